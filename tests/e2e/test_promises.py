"""What the daemons promise besides the right text: sampling, limits, identity, refusals, rest."""
import collections
import contextlib
import json
import os
import shutil
import socket
import tempfile
import time

import grpc

from harness import Cluster, inference_pb2, is_sanitized, run
from reference import prompt_ids
from tandem.v1 import decode_pb2, decode_pb2_grpc


# ---- sampling ----

def a_seeded_request_gives_the_same_text_alone_and_in_a_crowd(args):
    with Cluster(args.bin, model=args.model, prefill_flags=["--ranks", "2"], decode_flags=["--drafts", "3"]) as c:
        prompt = prompt_ids(c, 120)
        fields = dict(max_tokens=48, temperature=0.9, top_p=0.95, top_k=50, seed=12345)
        alone = c.generate(prompt, **fields)
        n = 32 if is_sanitized(args.bin) else 64
        others = range(0, 15, 2) if is_sanitized(args.bin) else range(15)
        crowd = [c.submit(prompt_ids(c, 20 + 13 * i), max_tokens=n, temperature=1.0, seed=i) for i in others]
        among = c.generate(prompt, **fields)
        assert alone.ok and among.ok and alone.ids == among.ids, (alone.ids, among.ids)
        assert all(r.result().ok for r in crowd)
        other = c.generate(prompt, **dict(fields, seed=54321))
        assert other.ids != alone.ids  # the seed does something
        c.wait_idle()


def sampling_with_drafts_has_the_distribution_without_them(args):
    """Tokens 2 and 3 of many seeds: counts with and without drafts, compared by a chi-square of two samples."""
    n = 100 if is_sanitized(args.bin) else 400
    counts = []
    for drafts in ("0", "3"):
        with Cluster(args.bin, model=args.model, decode_flags=["--drafts", drafts, "--max-requests", "32"]) as c:
            prompt = prompt_ids(c, 8 if is_sanitized(args.bin) else 40)
            base = 0 if drafts == "0" else 1000000  # other seeds: equal ones give equal text, which proves less
            found = collections.Counter()
            for begin in range(0, n, 20):
                batch = [c.submit(prompt, max_tokens=4, temperature=0.8, seed=base + i, ignore_eos=True)
                         for i in range(begin, begin + 20)]
                for r in batch:
                    answer = r.result()
                    assert answer.ok, answer
                    for place, token in enumerate(answer.ids):
                        found[place, token] += 1
            counts.append(found)
    chi2, freedom = 0.0, 0
    for place in range(4):
        rest = [0, 0]
        for token in {t for p, t in set(counts[0]) | set(counts[1]) if p == place}:
            a, b = counts[0][place, token], counts[1][place, token]
            if a + b < 10:
                rest[0], rest[1] = rest[0] + a, rest[1] + b
                continue
            chi2, freedom = chi2 + (a - b) ** 2 / (a + b), freedom + 1
        if sum(rest):
            chi2, freedom = chi2 + (rest[0] - rest[1]) ** 2 / sum(rest), freedom + 1
        freedom -= 1
    limit = freedom + 4.0 * (2.0 * freedom) ** 0.5 + 6.0  # far beyond chance: about 1 in 10,000 or less
    assert freedom > n // 40 and chi2 < limit, (chi2, freedom, limit)


def a_seeded_text_does_not_depend_on_the_number_of_drafts(args):
    texts = []
    for drafts in ("0", "2", "4"):
        with Cluster(args.bin, model=args.model, decode_flags=["--drafts", drafts]) as c:
            answer = c.generate(prompt_ids(c, 90), max_tokens=60, temperature=1.0, seed=7, ignore_eos=True)
            assert answer.ok and (answer.usage.accepted_tokens > 0) == (drafts != "0"), answer
            texts.append(answer.ids)
    assert texts[0] == texts[1] == texts[2], texts


# ---- the ends of a request ----

def stop_strings_stop_ids_min_tokens_and_length_end_a_request(args):
    with Cluster(args.bin, model=args.model) as c:
        full = c.generate("In the beginning", max_tokens=60, temperature=0, ignore_eos=True)
        assert full.ok and full.finish_reason == "length" and len(full.ids) == 60
        word = full.text.split()[4]
        stopped = c.generate("In the beginning", max_tokens=60, temperature=0, ignore_eos=True, stop=[word])
        assert stopped.finish_reason == "stop" and stopped.text == full.text[:full.text.index(word)], stopped
        token = full.ids[10]
        by_id = c.generate("In the beginning", max_tokens=60, temperature=0, ignore_eos=True, stop_token_ids=[token])
        assert by_id.finish_reason == "stop" and by_id.ids == full.ids[:full.ids.index(token)], by_id
        later = c.generate("In the beginning", max_tokens=60, temperature=0, ignore_eos=True, stop_token_ids=[token],
                           min_tokens=30)
        assert len(later.ids) >= 30 and token not in later.ids[:29], later
        one = c.generate("In the beginning", max_tokens=1, temperature=0, ignore_eos=True)
        assert one.ids == full.ids[:1] and one.finish_reason == "length"
        c.wait_idle()


def max_tokens_left_out_is_the_default_cut_at_the_contexts_end(args):
    with tempfile.TemporaryDirectory() as folder:
        short = altered(args.model, folder, lambda config: config.update(max_position_embeddings=700))
        with Cluster(args.bin, model=short, router_flags=["--default-max-tokens", "50"]) as c:
            answer = c.generate(prompt_ids(c, 10), temperature=0, ignore_eos=True)
            assert answer.ok and len(answer.ids) == 50
            assert c.inference().GetModel(inference_pb2.GetModelRequest(), timeout=5).context_length == 700
            answer = c.generate(prompt_ids(c, 680), temperature=0, ignore_eos=True)
            assert answer.ok and len(answer.ids) == 20, answer
            c.wait_idle()


# ---- room ----

def a_request_without_room_waits_then_is_refused_and_one_that_never_fits_is_refused_at_once(args):
    with Cluster(args.bin, model=args.model, router_flags=["--queue-length", "2"], prefill_flags=["--kv-pages", "40"],
                 decode_flags=["--kv-pages", "16", "--drafts", "0"]) as c:
        begun = time.monotonic()
        never = c.generate(prompt_ids(c, 600), max_tokens=1000)
        assert not never.ok and "25" in never.details and "16" in never.details, never
        assert time.monotonic() - begun < 3.0
        long = c.submit(prompt_ids(c, 64), max_tokens=960, temperature=0, ignore_eos=True).wait_token()
        waits = c.submit(prompt_ids(c, 64), max_tokens=64, temperature=0, ignore_eos=True)
        for _ in range(3):  # the router answers a tenth of a second before the deadline, which a busy machine may need
            tired = c.generate(prompt_ids(c, 64), timeout=0.3, max_tokens=64, temperature=0)
            if tired.code != grpc.StatusCode.DEADLINE_EXCEEDED:
                break
        assert tired.code == grpc.StatusCode.RESOURCE_EXHAUSTED, tired
        second = c.submit(prompt_ids(c, 64), max_tokens=64, temperature=0, ignore_eos=True)
        time.sleep(0.1)
        full = c.generate(prompt_ids(c, 64), max_tokens=64, temperature=0)
        assert full.code == grpc.StatusCode.RESOURCE_EXHAUSTED and "queue" in full.details, full
        assert long.result().ok and waits.result().ok and second.result().ok
        c.wait_idle()


def a_request_is_admitted_up_to_the_last_token_that_fits(args):
    """Router and decode daemon count alike: prompt + max_tokens + drafts, in pages."""
    with Cluster(args.bin, model=args.model, decode_flags=["--kv-pages", "4", "--drafts", "3"]) as c:
        fits = 4 * 64 - 100 - 3
        assert len(c.generate(prompt_ids(c, 100), max_tokens=fits, temperature=0, ignore_eos=True).ids) == fits
        never = c.generate(prompt_ids(c, 100), max_tokens=fits + 1, temperature=0, ignore_eos=True)
        assert not never.ok and "needs 5 KV pages" in never.details, never
        request = decode_pb2.DecodeRequest(request_id="x", token_ids=[5] * 100, max_tokens=fits + 1,
                                           sampling=decode_pb2.Sampling(top_p=1.0), prefill_address=c.prefill[0].listen)
        try:
            list(decode_pb2_grpc.DecodeStub(c.decode[0].rpc()).Generate(request, timeout=10))
            raise AssertionError("it was admitted")
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.OUT_OF_RANGE and "need 5 KV pages, the pool has 4" in e.details(), e
        c.wait_idle()


# ---- refusals ----

def bad_input_is_refused_with_a_reason_and_nothing_else_suffers(args):
    with Cluster(args.bin, model=args.model) as c:
        model = c.inference().GetModel(inference_pb2.GetModelRequest(), timeout=5)
        going = c.submit(prompt_ids(c, 65), max_tokens=300, temperature=0, ignore_eos=True)
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        cases = [
            ("", {}, invalid, "empty"),
            ([], {}, invalid, "empty"),
            (None, {}, invalid, "input"),
            ([1, model.vocab_size], {}, invalid, str(model.vocab_size)),
            ([1] * model.context_length, {}, invalid, str(model.context_length)),
            ([1, 2], {"max_tokens": model.context_length}, invalid, "context"),
            ([1, 2], {"max_tokens": 0}, invalid, "max_tokens"),
            ([1, 2], {"temperature": float("nan")}, invalid, "temperature"),
            ([1, 2], {"temperature": -1.0}, invalid, "temperature"),
            ([1, 2], {"top_p": 0.0}, invalid, "top_p"),
            ([1, 2], {"min_tokens": 9, "max_tokens": 8}, invalid, "min_tokens"),
            ([1, 2], {"stop_token_ids": [model.vocab_size]}, invalid, "stop_token_ids"),
            ([1, 2], {"stop": ["x" * 300]}, invalid, "stop"),
            ([1, 2], {"model": "another"}, grpc.StatusCode.NOT_FOUND, "another"),
        ]
        for prompt, fields, code, word in cases:
            answer = c.generate(prompt, timeout=10, **fields)
            assert answer.code == code and word in answer.details, (fields, answer)
        assert going.result().ok
        c.wait_idle()


def altered(model, folder, change):
    out = os.path.join(folder, "tiny-v32")
    shutil.copytree(model, out)
    path = os.path.join(out, "config.json")
    with open(path) as f:
        config = json.load(f)
    change(config)
    with open(path, "w") as f:
        json.dump(config, f)
    return out


def mismatched_checkpoints_are_refused_and_the_differing_fields_shown(args):
    with tempfile.TemporaryDirectory() as folder:
        other = altered(args.model, folder, lambda config: config.update(routed_scaling_factor=2.25))
        with Cluster(args.bin, model=args.model, start=False) as c:
            c.decode[0].flags[c.decode[0].flags.index("--model") + 1] = other
            c.start()
            answer = c.generate(prompt_ids(c, 65), max_tokens=4)
            assert answer.code == grpc.StatusCode.FAILED_PRECONDITION and "config" in answer.details, answer
            c.wait_idle()
    for flags, field in ((["--kv", "bf16"], "kv-dtype"), (["--draft-prenorm"], "draft-state")):
        with Cluster(args.bin, model=args.model, prefill_flags=flags) as c:
            answer = c.generate(prompt_ids(c, 65), max_tokens=4)
            assert answer.code == grpc.StatusCode.FAILED_PRECONDITION and field in answer.details, answer
            c.wait_idle()


def the_draft_layers_input_changes_the_drafts_but_not_the_text(args):
    answers = []
    for flags in ([], ["--draft-prenorm"]):
        with Cluster(args.bin, model=args.model, prefill_flags=flags, decode_flags=flags + ["--drafts", "3"]) as c:
            answers.append(c.generate(prompt_ids(c, 65), max_tokens=60, temperature=0, ignore_eos=True))
            c.wait_idle()
    assert answers[0].ok and answers[1].ok, answers
    assert answers[0].ids == answers[1].ids, answers
    accepted = [a.usage.accepted_tokens for a in answers]
    assert accepted[0] != accepted[1], accepted


def a_listen_address_beyond_loopback_needs_a_word(args):
    with Cluster(args.bin, model=args.model, start=False) as c:
        for d in c.daemons:
            d.listen = "0.0.0.0:" + d.listen.rsplit(":", 1)[1]
            d.start()
            assert d.process.wait(20) != 0 and "allow-plaintext" in d.log(), d.tail()


def a_wildcard_address_works_for_decode_and_is_refused_for_prefill_before_the_weights_are_read(args):
    with Cluster(args.bin, model=args.model, start=False) as c:
        prefill, flags = c.prefill[0], list(c.prefill[0].flags)
        for listen in ("0.0.0.0:", "no-such-host.invalid:"):
            was, prefill.listen = prefill.listen, listen + prefill.listen.rsplit(":", 1)[1]
            prefill.start(flags + ["--allow-plaintext"])
            assert prefill.process.wait(20) != 0 and "kv-listen" in prefill.log(), prefill.tail()
            prefill.listen = was
    with Cluster(args.bin, model=args.model, prefill_flags=["--kv-listen", "127.0.0.1:0"], start=False) as c:
        for d in c.prefill + c.decode:
            d.listen, d.flags = "0.0.0.0:" + d.listen.rsplit(":", 1)[1], d.flags + ["--allow-plaintext"]
        c.start()
        assert c.generate(prompt_ids(c, 65), max_tokens=4).ok
        connected = [line for line in c.prefill[0].log().splitlines() if "peer.connect" in line]
        assert len(connected) == 1 and "remote=127.0.0.1:" in connected[0], connected
        c.wait_idle()
        c.check_exits()


# ---- rest ----

def an_idle_daemon_uses_less_than_one_percent_of_a_core(args):
    with Cluster(args.bin, model=args.model, prefill_flags=["--ranks", "2"]) as c:
        assert c.generate(prompt_ids(c, 65), max_tokens=20, temperature=0).ok
        c.wait_idle()
        time.sleep(1)
        before = {d.name: d.cpu_seconds() for d in c.daemons}
        seconds = 8 if is_sanitized(args.bin) else 30
        time.sleep(seconds)
        used = {d.name: (d.cpu_seconds() - before[d.name]) / seconds for d in c.daemons}
        assert all(share < 0.01 for share in used.values()), used
        print("  share of a core:", used)


def a_models_text_is_not_in_the_logs(args):
    for level in ("info", "debug"):
        flags = ["--log-level", level]
        with Cluster(args.bin, model=args.model, router_flags=flags, prefill_flags=flags, decode_flags=flags) as c:
            answer = c.generate("It was a truth universally acknowledged", max_tokens=30, temperature=0,
                                stop=["incontrovertible"], request_id="find-me-in-every-log")
            assert answer.ok
            refused = c.generate("Unquestionably so", model="another", request_id="find-me-as-well")
            assert refused.code == grpc.StatusCode.NOT_FOUND, refused
            c.inference().Tokenize(inference_pb2.TokenizeRequest(text="Undeniably"), timeout=5)
            for d in c.daemons:
                log = d.log()
                for secret in ("universally", "incontrovertible", "Unquestionably", "Undeniably",
                               answer.text.strip()[:20]):
                    assert secret not in log, (d.name, secret)
                assert "find-me-in-every-log" in log, d.tail()
            assert "find-me-as-well" in c.router.log()


# ---- ready ----

def _notifications(socket_):
    """What waits in a notify socket."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(socket_.recv(4096).decode())
    return found


def _readyz(daemon):
    try:
        return daemon.http("/readyz")[0]
    except OSError:  # its port is not open yet
        return 503


def ready_is_said_when_the_weights_are_loaded_and_not_before(args):
    """systemd's notify socket and /readyz say the same, and a checkpoint without its weights is never ready."""
    with tempfile.TemporaryDirectory() as folder:
        damaged = os.path.join(folder, "tiny-v32")
        shutil.copytree(args.model, damaged)
        shard = sorted(name for name in os.listdir(damaged) if name.endswith(".safetensors"))[-1]
        os.truncate(os.path.join(damaged, shard), os.path.getsize(os.path.join(damaged, shard)) // 2)
        with Cluster(args.bin, model=args.model, start=False) as c, \
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = os.path.join(folder, "notify")
            notify.bind(path)
            notify.setblocking(False)
            for d in (c.prefill[0], c.decode[0]):
                d.env["NOTIFY_SOCKET"] = path
                d.start()
                said, until = [], time.monotonic() + 60
                while _readyz(d) != 200:
                    said += _notifications(notify)
                    assert d.running() and time.monotonic() < until, d.tail()
                    time.sleep(0.002)
                said += _notifications(notify)
                assert said[0].startswith("STATUS=starting"), said
                assert sum("READY=1" in word for word in said) == 1, said
                assert d.metric("tandem_kv_pages", state="free") > 0 and d.serving(timeout=5), d.tail()
                d.kill()
                _notifications(notify)
                d.flags[d.flags.index("--model") + 1] = damaged
                d.start()
                while d.running():
                    assert _readyz(d) != 200, d.tail()
                    assert time.monotonic() < until, d.tail()
                    time.sleep(0.002)
                assert d.process.returncode != 0 and shard in d.log(), d.tail()
                assert not any("READY=1" in word for word in _notifications(notify))
                d.process = None  # it was to fail


def a_prefill_that_has_warmed_up_answers_as_one_that_has_not(args):
    """The made-up prompt is over before the daemon is ready; its pages are free then, and poisoned like any other.
    On the CPU there is none unless it is asked for."""
    answers = []
    on = ["--warm-up", "on"]
    for warm_up in ([], on, on + ["--ranks", "3"]):
        with Cluster(args.bin, model=args.model, decode_flags=["--debug-poison"], prefill_flags=warm_up + [
                "--chunk", "64", "--kv-pages", "8", "--debug-poison"]) as c:
            log = c.prefill[0].log()
            assert ("prefill.warm_up" in log) == bool(warm_up), log
            if warm_up:
                assert "tokens=321 steps=6" in log and log.index("prefill.warm_up") < log.index("prefill.ready"), log
            assert c.prefill[0].metric("tandem_kv_pages", state="free") == 8
            answer = c.generate(prompt_ids(c, 8 * 64), max_tokens=8, temperature=0)  # every page
            assert answer.ok, answer
            answers.append(answer.ids)
            c.check_exits()
            assert "kv.poison" not in c.prefill[0].log(), c.prefill[0].tail()
    assert answers[0] == answers[1] == answers[2], answers


def a_daemon_told_to_end_while_it_warms_up_ends_at_once(args):
    with Cluster(args.bin, model=args.model, start=False, prefill_flags=[
            "--warm-up", "on", "--chunk", "16384", "--threads", "1"]) as c:
        d = c.prefill[0].start()
        until = time.monotonic() + 60
        while "prefill.device" not in d.log():
            assert d.running() and time.monotonic() < until, d.tail()
            time.sleep(0.001)
        assert d.terminate(10) == 0, d.tail()
        assert "prefill.warm_up" not in d.log() and "prefill.ready" not in d.log(), d.tail()


def a_model_without_tokenizer_serves_token_ids_only(args):
    with tempfile.TemporaryDirectory() as folder:
        bare = os.path.join(folder, "tiny-v32")
        shutil.copytree(args.model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
        with Cluster(args.bin, model=bare) as c:
            answer = c.generate([5, 6, 7, 8], max_tokens=8, temperature=0, ignore_eos=True)
            assert answer.ok and len(answer.ids) == 8 and answer.text == "", answer
            answer = c.generate("text", max_tokens=8)
            assert answer.code == grpc.StatusCode.INVALID_ARGUMENT and "tokenizer" in answer.details, answer


if __name__ == "__main__":
    run()
