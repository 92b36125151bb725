"""Text through the daemons is tandem-logits' greedy continuation, token for token."""
import collections
import itertools
import os
import random

from harness import (Cluster, Daemon, Request, admin_pb2, admin_pb2_grpc, inference_pb2_grpc, is_sanitized,
                     make_request, run)
from pairwise import cover
from reference import continuation, prompt_ids

LENGTHS = [1, 63, 64, 65, 1000, 3000]
LENGTH_PAIRS = [(1, 1000), (63, 65), (64, 3000)]
N_NEW = 24
FACTORS = {
    "mode": ["fp8", "bf16", "precise"],
    "ranks": [1, 2, 4],
    "split": ["round-robin", "in-seq"],
    "moe": ["fused", "ep"],
    "transport": ["shm", "tcp"],
    "kv_path": ["auto", "ring"],
    "drafts": [0, 1, 2, 3, 4],
    "chunk": [256, 8192],
    "crowd": [False, True],
}


def allowed(row):
    """One rank has one split and one MoE mode."""
    return row["ranks"] > 1 or (row["split"] == "round-robin" and row["moe"] == "fused")


def mode_flags(row):
    return ["--precise"] if row["mode"] == "precise" else ["--kv", row["mode"]]


def rank_flags(row):
    return ["--ranks", str(row["ranks"]), "--split", row["split"], "--moe", row["moe"], "--chunk", str(row["chunk"])]


class References:
    """Continuations by what can change them: not transport, kv-path, crowd, nor drafts (test_golden claims that)."""

    def __init__(self, args):
        self.args, self.known = args, {}

    def get(self, row, ids):
        key = (tuple(mode_flags(row) + rank_flags(row)), tuple(ids))
        if key not in self.known:
            self.known[key] = continuation(self.args, ids, N_NEW, list(key[0]) + ["--drafts", str(row["drafts"])])
        return self.known[key]


class Group:
    """Rows that differ in drafts and crowd only share a prefill daemon: one decode daemon and router for each k."""

    def __init__(self, args, row, drafts):
        common = mode_flags(row) + ["--transport", row["transport"], "--kv-path", row["kv_path"], "--debug-poison"]
        self.cluster = Cluster(args.bin, model=args.model, n_decode=len(drafts), start=False,
                               prefill_flags=common + rank_flags(row),
                               decode_flags=[common + ["--drafts", str(k)] for k in drafts])
        c = self.cluster
        self.routers = {}
        for k, decode in zip(drafts, c.decode):
            router = c.router if k == drafts[0] else Daemon(c.router.program, [], "router%d" % k, c.folder)
            router.flags = ["--model", os.path.abspath(args.model), "--prefill-workers", c.prefill[0].listen,
                            "--decode-workers", decode.listen]
            self.routers[k] = router
        c.daemons = c.prefill + c.decode + list(self.routers.values())

    def __enter__(self):
        self.cluster.start()
        return self

    def __exit__(self, *what):
        return self.cluster.__exit__(*what)

    def submit(self, row, prompt):
        stub = inference_pb2_grpc.InferenceStub(self.routers[row["drafts"]].rpc())
        fields = dict(max_tokens=N_NEW, temperature=0, ignore_eos=True)
        return Request(stub, make_request(prompt, **fields), 300, None)


def check_answer(row, want, answer):
    assert answer.ok and answer.finish_reason == "length", (row, answer)
    assert answer.ids == want, "%s: %s\n  daemons   %s\n  reference %s" % (row, answer, answer.ids, want)
    assert answer.usage.generated_tokens == N_NEW
    assert (answer.usage.drafted_tokens > 0) == (row["drafts"] > 0)
    t = answer.timing
    assert 0 <= t.queue_s + t.prefill_s + t.transfer_s + t.first_token_s <= t.total_s + 0.001, t


def check_row(args, references, row, lengths, group):
    if row["crowd"]:
        rng = random.Random(args.seed)
        picked = list(lengths) + [rng.choice([1, 63, 64, 65]) for _ in range(16 - len(lengths))]
        rng.shuffle(picked)
        prompts = [prompt_ids(group.cluster, n) for n in picked]
        pending = [group.submit(row, p) for p in prompts]
        answers = [p.result(300) for p in pending]
    else:
        prompts = [prompt_ids(group.cluster, n) for n in lengths]
        answers = [group.submit(row, p).result(300) for p in prompts]
    for prompt, answer in zip(prompts, answers):
        check_answer(row, references.get(row, prompt), answer)
    # Now, for a peer that is silent while the machine computes for others is given up.
    admin = admin_pb2_grpc.AdminStub(group.routers[row["drafts"]].rpc())
    links = admin.ListLinks(admin_pb2.ListLinksRequest(), timeout=5).links
    used = {e.link.transport for e in links if e.link.role == "reader"}
    assert used == {{"shm": "posix", "tcp": "tcp"}[row["transport"]]}, (row, used)
    print("  ok", " ".join("%s=%s" % pair for pair in row.items()), flush=True)


def check_rest(group):
    c = group.cluster
    c.wait_idle()
    for d in c.prefill + c.decode:
        assert "kv.poison" not in d.log(), d.tail()
    c.check_exits()


def grouped(rows):
    """The rows of each group, groups in order of appearance."""
    groups = collections.OrderedDict()
    for row in rows:
        groups.setdefault(tuple(v for k, v in row.items() if k not in ("drafts", "crowd", "lengths")), []).append(row)
    return list(groups.values())


def check_groups(args, groups, lengths=None):
    """Each row with these prompts, or with those that it names itself."""
    references = References(args)
    for members in groups:
        with Group(args, members[0], sorted({row["drafts"] for row in members})) as group:
            for row in members:
                check_row(args, references, row, lengths or row["lengths"], group)
            check_rest(group)


def part(args, i, n):
    rows = cover(dict(FACTORS, lengths=LENGTH_PAIRS), allowed)
    if is_sanitized(args.bin):  # their runs leave the long prompts to the others
        check_groups(args, grouped(rows[::8][i::n]), [1, 64, 65, 300])
    else:
        check_groups(args, grouped(rows[i::n]))


def whole_part(args, i, n):
    """Neighbouring groups differ in their chunks: parts have no reference in common."""
    rows = [dict(zip(FACTORS, values)) for values in itertools.product(*FACTORS.values())]
    check_groups(args, grouped([row for row in rows if allowed(row)])[i::n], LENGTHS)


def every_pair_of_settings_equals_one_process_a(args):
    part(args, 0, 2)


def every_pair_of_settings_equals_one_process_b(args):
    part(args, 1, 2)


def all_settings_equal_one_process_a(args):
    whole_part(args, 0, 2)


def all_settings_equal_one_process_b(args):
    whole_part(args, 1, 2)


if __name__ == "__main__":
    run()
