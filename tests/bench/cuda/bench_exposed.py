#!/usr/bin/env python3
"""bench_exposed.py - router, prefill and decode with a slice of V3.2 (random weights): how long a prompt computes, and
how long its KV is still under way after its last layer ("exposed").

    bench_exposed.py --bin DIR [--prefill-gpu N] [--decode-gpu N] [--kv-path auto|ring|direct] [--model slice:...]
                     [--prompts A,B,..] [--rounds N] [--drafts N] [--backend cuda|cpu]

With drafts decode wants the draft layer's KV, too, which is computed last; without, the draft layer's time hides the rest.

DIR: an installed tree's bin, or a build tree. Needs tests/cuda/test_cuda_daemons.py, which lies beside it in a
relocatable tar.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "cuda")]
import test_cuda_daemons as daemons  # noqa: E402

daemons.FOLDERS["tandem-slice"] = "tools/tandem-slice"
LOADING_S = 300


class Cluster(daemons.Cluster):
    """The workers make the slice in memory; the router has a folder with its config.json alone."""

    def __init__(self, router_model, *args, **kwargs):
        self.router_model = router_model
        super().__init__(*args, **kwargs)

    def start(self, name, *args):
        if name == "tandem-router":
            args = [self.router_model if x == str(daemons.ARGS.model) else x for x in args]
        super().start(name, *args)


def make_config(slice_text, folder):
    """config.json of "slice:layers=4,.." in the folder."""
    keys = [key.split("=") for key in slice_text.removeprefix("slice:").split(",")]
    options = [text for key, value in keys for text in ("--" + key, value)]
    subprocess.run([daemons.program("tandem-slice"), "--out", folder, "--config-only", *options], check=True,
                   stderr=subprocess.DEVNULL)


def generate(cluster, prompt_file):
    done = subprocess.run([daemons.program("tandemctl"), "--router", cluster.router, "--json", "generate", "--ids",
                           prompt_file, "--max-tokens", "4", "--ignore-eos", "--temperature", "0"],
                          capture_output=True, text=True, timeout=LOADING_S)
    if done.returncode != 0:
        sys.exit(f"tandemctl: status {done.returncode}: {done.stdout} {done.stderr}")
    return json.loads(done.stdout)["timing"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--prefill-gpu", type=int, default=0)
    parser.add_argument("--decode-gpu", type=int, default=0)
    parser.add_argument("--kv-path", choices=("auto", "ring", "direct"), default="auto")
    parser.add_argument("--model", default="slice:layers=4,dense=1,drafts=1")
    parser.add_argument("--prompts", default="1024,4096,16384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--backend", choices=("cuda", "cpu"), default="cuda")
    args = daemons.ARGS = parser.parse_args()
    args.gpu, daemons.READY_S = args.prefill_gpu, LOADING_S
    with tempfile.TemporaryDirectory() as folder:
        make_config(args.model, folder)
        with Cluster(folder, args.backend, drafts=args.drafts, prefill=("--chunk", "4096"),
                     decode=("--gpu", str(args.decode_gpu))) as c:
            print(f"{args.model}, {args.drafts} drafts, prefill on GPU {args.prefill_gpu}, decode on {args.decode_gpu}, "
                  "pages by", *c.kv_paths())
            for n in map(int, args.prompts.split(",")):
                prompt = pathlib.Path(folder) / "ids.json"
                prompt.write_text(json.dumps([256 + i * 7919 % 4096 for i in range(n)]))
                times = [generate(c, str(prompt)) for _ in range(args.rounds + 1)][1:]  # the first one warms up
                median = {key: 1e3 * statistics.median(t[key] for t in times) for key in times[0]}
                most = 1e3 * max(t["transfer_s"] for t in times)
                print(f"{n:7} tokens: prefill {median['prefill_s']:9.2f} ms, exposed {median['transfer_s']:6.2f} ms "
                      f"(most {most:.2f}), {100 * median['transfer_s'] / median['prefill_s']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
