"""A decode daemon on several tensor-parallel ranks: tandem-logits' continuation on as many, token for token; alone, in
a crowd, with drafts and without; and requests that end in the middle leave nothing behind."""
import time

from harness import Cluster, is_sanitized, run
from reference import continuation, prompt_ids

N_NEW = 24


def _continue_as_one_process(args, ranks, mode, drafts, path="auto"):
    worker = mode + ["--kv-path", path, "--debug-poison"]
    lengths = [1, 63, 65] if is_sanitized(args.bin) else [1, 63, 64, 65, 300]
    with Cluster(args.bin, model=args.model, prefill_flags=worker + ["--ranks", "2"],
                 decode_flags=worker + ["--ranks", str(ranks), "--drafts", str(drafts)]) as c:
        prompts = [prompt_ids(c, n) for n in lengths]
        flags = mode + ["--ranks", "2", "--tp", str(ranks)]
        want = [continuation(args, ids, N_NEW, flags) for ids in prompts]
        fields = dict(max_tokens=N_NEW, temperature=0, ignore_eos=True)
        for ids, text in zip(prompts, want):
            answer = c.generate(ids, **fields)
            assert answer.ok and answer.ids == text, (ranks, mode, drafts, len(ids), answer)
        crowd = [c.submit(ids, **fields) for ids in prompts * 3]
        for answer, text in zip([r.result() for r in crowd], want * 3):
            assert answer.ok and answer.ids == text, (ranks, mode, drafts, answer)
        c.wait_idle()
        for d in c.prefill + c.decode:
            assert "kv.poison" not in d.log(), d.tail()


def a_decoder_on_several_ranks_continues_as_one_process_does(args):
    """3 of 4 heads' owners in precise mode; heads in pairs, and ranks without any, where FP8 blocks ask for it; pages by the
    ring and without."""
    _continue_as_one_process(args, 3, ["--precise"], 2, "ring")
    if not is_sanitized(args.bin):
        _continue_as_one_process(args, 2, ["--kv", "fp8"], 0)
        _continue_as_one_process(args, 4, ["--kv", "bf16"], 3)


def requests_that_end_early_leave_the_ranks_in_step(args):
    with Cluster(args.bin, model=args.model, decode_flags=["--ranks", "2", "--drafts", "2", "--max-requests", "4"]) as c:
        ids = prompt_ids(c, 100)
        fields = dict(max_tokens=40, temperature=0, ignore_eos=True)
        want = c.generate(ids, **fields)
        assert want.ok, want
        for i in range(4 if is_sanitized(args.bin) else 12):
            going = [c.submit(prompt_ids(c, 20 + 7 * i + k), max_tokens=400, temperature=1.0, seed=k) for k in range(3)]
            time.sleep(0.02 * (i % 4))
            for request in going:
                request.cancel()
            stopped = c.generate(ids, stop_token_ids=[want.ids[7]], **dict(fields, ignore_eos=False))
            assert stopped.ok, stopped
            answer = c.generate(ids, **fields)
            assert answer.ok and answer.ids == want.ids, answer
            for request in going:
                request.result()
        c.wait_idle()


if __name__ == "__main__":
    run()
