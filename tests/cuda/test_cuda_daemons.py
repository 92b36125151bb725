#!/usr/bin/env python3
"""test_cuda_daemons.py - router, prefill and decode as separate processes, the two workers on one GPU or on two: what
they generate equals the CPU backend's in precise mode, and is the same with and without drafts, alone and in a crowd.

    test_cuda_daemons.py --bin DIR [--gpu N] [--model DIR] [--kv-path auto|ring|direct] [CLAIM]

DIR holds the programs, side by side (an installed tree's bin) or each in its folder (a build tree). Needs nothing but
Python's own library. --gpu: the first one that may be used. Exit 77: no GPU that the CUDA backend can use, or not as
many as the claim needs.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

FOLDERS = {"tandem-router": "router", "tandem-prefill": "prefill", "tandem-decode": "decode",
           "tandemctl": "tools/tandemctl", "tandem-logits": "tools/tandem-logits"}
N_NEW = 120
READY_S, ANSWER_S, END_S = 60, 60, 20
SKIP = 77
UNAVAILABLE = 8  # tandemctl's status


def program(name):
    for path in (ARGS.bin / name, ARGS.bin / FOLDERS[name] / name):
        if path.is_file():
            return str(path)
    sys.exit(f"{name} is neither in {ARGS.bin} nor in its folder below")


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """A router and workers; `with` ends them, and looks whether they ended well. prefill, decode: options of those."""

    def __init__(self, backend, *common, drafts=0, prefill=(), decode=(), n_each=1):
        ports = free_ports(2 + 4 * n_each)
        at = [f"127.0.0.1:{p}" for p in ports]
        model = ["--model", str(ARGS.model)]
        worker = model + ["--backend", backend, "--gpu", str(ARGS.gpu), "--kv-pages", "512",
                          *common]
        if backend == "cuda":
            worker += ["--kv-path", ARGS.kv_path]
        self.router = at[0]
        self.logs = tempfile.TemporaryDirectory()
        self.processes, self.commands = {}, {}
        addresses = iter(at[2:])
        prefills, decodes = [], []
        for i in range(n_each):
            prefills.append(next(addresses))
            self.start(f"tandem-prefill.{i}", *worker, "--listen", prefills[-1], "--admin", next(addresses),
                       "--chunk", "256", *prefill)
            decodes.append(next(addresses))
            self.start(f"tandem-decode.{i}", *worker, "--listen", decodes[-1], "--admin", next(addresses),
                       "--drafts", str(drafts), *decode)
        self.start("tandem-router", *model, "--listen", at[0], "--admin", at[1], "--prefill-workers",
                   ",".join(prefills), "--decode-workers", ",".join(decodes))

    def log(self, name):
        return pathlib.Path(self.logs.name) / f"{name}.log"

    def start(self, name, *args):
        """With the options it had before, if none are given."""
        if args:
            self.commands[name] = [program(name.split(".")[0]), *args]
        with open(self.log(name), "a") as log:
            self.processes[name] = subprocess.Popen(self.commands[name], stdout=log, stderr=log)

    def is_ready(self):
        """The router and every worker."""
        done = subprocess.run([program("tandemctl"), "--router", self.router, "--json", "status"],
                              capture_output=True, text=True)
        workers = json.loads(done.stdout)["workers"] if done.returncode == 0 else []
        return len(workers) == len(self.processes) - 1 and all(w["reachable"] and w["status"]["state"] == "ready" for w in workers)

    def wait_ready(self):
        end = time.monotonic() + READY_S
        while not self.is_ready():
            dead = [n for n, p in self.processes.items() if p.poll() is not None]
            if dead or time.monotonic() > end:
                self.__exit__(None, None, None)
                sys.exit(f"not ready; ended: {dead}")
            time.sleep(0.1)
        return self

    def __enter__(self):
        return self.wait_ready()

    def kv_paths(self):
        """What the workers' logs say: {"direct"}."""
        logs = "".join(self.log(name).read_text() for name in self.processes)
        return {word[3:] for word in logs.split() if word.startswith("kv=")}

    def __exit__(self, kind, value, trace):
        for p in self.processes.values():
            p.terminate()
        for name, p in self.processes.items():
            try:
                code = p.wait(END_S)
            except subprocess.TimeoutExpired:
                p.kill()
                code = "none: killed"
            if code != 0 or kind is not None:
                print(f"--- {name}, status {code}\n{self.log(name).read_text()[-3000:]}")
            if code != 0 and kind is None:
                kind = RuntimeError
        self.logs.cleanup()
        if kind is RuntimeError and value is None:
            raise RuntimeError("a daemon ended badly")

    def ask(self, ids, *options):
        return subprocess.run([program("tandemctl"), "--router", self.router, "--json", "generate", "--ids",
                               json.dumps(ids), "--max-tokens", str(N_NEW), "--ignore-eos", *options],
                              capture_output=True, text=True, timeout=ANSWER_S)

    def generate(self, ids, *options):
        done = self.ask(ids, *options)
        if done.returncode != 0:
            raise AssertionError(f"tandemctl: status {done.returncode}: {done.stdout} {done.stderr}")
        answer = json.loads(done.stdout)
        assert len(answer["token_ids"]) == N_NEW, answer
        return answer["token_ids"], answer["usage"]


def prompt(n, seed):
    """BOS and n - 1 ids of the bundled model's vocabulary."""
    x, ids = seed * 2654435761 % 2**32, [0]
    while len(ids) < n:
        x = (x * 1664525 + 1013904223) % 2**32
        ids.append(256 + x % 3800)
    return ids


PROMPTS = [prompt(n, i + 1) for i, n in enumerate((1, 63, 64, 65, 300, 1000))]
GREEDY = ("--temperature", "0")


def all_of(cluster, requests):
    """Every request at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return [f.result() for f in [pool.submit(cluster.generate, ids, *options) for ids, options in requests]]


def precise_text_equals_the_cpu_backends():
    with Cluster("cpu", "--precise") as cpu:
        want = [cpu.generate(ids, *GREEDY)[0] for ids in PROMPTS]
    with Cluster("cuda", "--precise", drafts=3) as cuda:
        for ids, tokens in zip(PROMPTS, want):
            assert cuda.generate(ids, *GREEDY)[0] == tokens, f"prompt of {len(ids)} tokens"
        print("pages by:", *cuda.kv_paths())
        assert ARGS.kv_path == "auto" or cuda.kv_paths() == {ARGS.kv_path}


def drafts_and_a_crowd_change_nothing():
    requests = [(ids, GREEDY) for ids in PROMPTS]
    requests += [(ids, ("--temperature", "0.8", "--top-p", "0.9", "--seed", str(i))) for i, ids in enumerate(PROMPTS)]
    with Cluster("cuda") as plain:
        want = [plain.generate(ids, *options)[0] for ids, options in requests]
    for k in (1, 4):
        with Cluster("cuda", drafts=k) as drafting:
            got = all_of(drafting, requests)
            assert [tokens for tokens, _ in got] == want, f"{k} drafts"
            assert sum(usage["accepted_tokens"] for _, usage in got) > 0, got[0][1]


def ranks_on_one_gpu_equal_the_cpus():
    """Prefill and decode on two ranks each, context-parallel and tensor-parallel."""
    for moe in ("fused", "ep"):
        options = dict(prefill=("--ranks", "2", "--moe", moe), decode=("--ranks", "2"))
        with Cluster("cpu", "--precise", **options) as cpu:
            want = [cpu.generate(ids, *GREEDY)[0] for ids in PROMPTS]
        with Cluster("cuda", "--precise", "--ranks-per-gpu", "2", drafts=2, **options) as cuda:
            for ids, tokens in zip(PROMPTS, want):
                assert cuda.generate(ids, *GREEDY)[0] == tokens, f"{moe}: prompt of {len(ids)} tokens"
            got = all_of(cuda, [(ids, GREEDY) for ids in PROMPTS * 2])
            assert [tokens for tokens, _ in got] == want * 2, f"{moe}: a crowd"


def equals_the_cpus(what, want, **options):
    """Alone and in a crowd, with 0 and 3 drafts."""
    for k in (0, 3):
        with Cluster("cuda", "--precise", drafts=k, **options) as cuda:
            for ids, tokens in zip(PROMPTS, want):
                assert cuda.generate(ids, *GREEDY)[0] == tokens, f"{what}, {k} drafts: prompt of {len(ids)} tokens"
            got = all_of(cuda, [(ids, GREEDY) for ids in PROMPTS * 2])
            assert [tokens for tokens, _ in got] == want * 2, f"{what}, {k} drafts: a crowd"
            print(f"{what}, {k} drafts: pages by", *cuda.kv_paths())


def two_gpus_equal_the_cpu():
    """Prefill on two, on one and decode on the other, decode on two."""
    second = ("--gpu", str(ARGS.gpu + 1))
    need_gpu(ARGS.gpu + 1)
    with Cluster("cpu", "--precise") as cpu:
        want = [cpu.generate(ids, *GREEDY)[0] for ids in PROMPTS]
    equals_the_cpus("prefill and decode apart", want, decode=second)
    for comm in ("peer", "nccl"):
        two = ("--ranks", "2", "--comm", comm)
        for split, moe in (("round-robin", "fused"), ("round-robin", "ep"), ("in-seq", "ep")):
            equals_the_cpus(f"prefill on two by {comm}, {split}, {moe}", want,
                            prefill=(*two, "--split", split, "--moe", moe), decode=second)
        equals_the_cpus(f"decode on two by {comm}", want, decode=two)


def workers_that_die_or_stop_hurt_nobody():
    """In the middle of a crowd, at any moment: requests end in time, what is whole is right, and what comes after, too.

    Two of each kind, on one GPU, or the decode daemons on a second one; precise, so that every token is known."""
    rng = random.Random(ARGS.seed)
    want = {}
    apart = ("--gpu", str(ARGS.gpu + 1)) if has_gpu(ARGS.gpu + 1) else ()
    with Cluster("cuda", "--precise", decode=apart) as cuda:
        for i, ids in enumerate(PROMPTS):
            want[i] = cuda.generate(ids, *GREEDY)[0]
    with Cluster("cuda", "--precise", drafts=2, prefill=("--lease", "3s"), decode=apart, n_each=2) as c:
        n_whole = n_lost = 0
        for victim, how in [(w, h) for w in ("tandem-decode", "tandem-prefill") for h in ("kill", "stop", "kill", "stop")]:
            victim += f".{rng.randrange(2)}"
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                asked = [(i % len(PROMPTS), pool.submit(c.ask, PROMPTS[i % len(PROMPTS)], *GREEDY)) for i in range(24)]
                time.sleep(0.05 + 0.4 * rng.random())
                c.processes[victim].send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
                if how == "stop":
                    time.sleep(3)
                    c.processes[victim].send_signal(signal.SIGCONT)
                for i, future in asked:  # subprocess.TimeoutExpired: it did not end in time
                    done = future.result()
                    if done.returncode == 0:
                        assert json.loads(done.stdout)["token_ids"] == want[i], f"{how} {victim}: prompt {i}"
                    assert done.returncode in (0, UNAVAILABLE), f"{how} {victim}: {done.returncode} {done.stderr}"
                    n_whole += done.returncode == 0
                    n_lost += done.returncode != 0
            if how == "kill":
                assert c.processes[victim].wait(END_S) == -signal.SIGKILL
                c.start(victim)
            c.wait_ready()
            got = all_of(c, [(ids, GREEDY) for ids in PROMPTS * 2])
            assert [tokens for tokens, _ in got] == [want[i] for i in range(len(PROMPTS))] * 2, f"after {how} {victim}"
        print(f"{n_whole} answers were whole, {n_lost} requests ended with an error; pages by", *c.kv_paths())
        assert n_whole > n_lost


CLAIMS = {f.__name__: f for f in (precise_text_equals_the_cpu_backends, drafts_and_a_crowd_change_nothing,
                                  ranks_on_one_gpu_equal_the_cpus, two_gpus_equal_the_cpu,
                                  workers_that_die_or_stop_hurt_nobody)}


def try_gpu(index):
    """None when the CUDA backend can use it, or what it says."""
    with tempfile.TemporaryDirectory() as folder:
        ids = pathlib.Path(folder) / "ids.json"
        ids.write_text("[0, 300]")
        done = subprocess.run([program("tandem-logits"), "--backend", "cuda", "--gpu", str(index), "--model",
                               str(ARGS.model), "--ids", str(ids), "--out", str(ids) + ".out"],
                              capture_output=True, text=True)
        why = done.stderr.strip()
        if done.returncode == 0:
            return None
        # A plug-in that cannot be used where there are GPUs is no reason to skip; nor is anything else.
        if "backend cuda:" not in why or ("plug-in" in why and os.path.exists("/dev/nvidiactl")):
            sys.exit(why)
        return why


def has_gpu(index):
    return try_gpu(index) is None


def need_gpu(index):
    why = try_gpu(index)
    if why is not None:
        print("skipped:", why)
        sys.exit(SKIP)


if __name__ == "__main__":
    here = pathlib.Path(os.environ.get("TANDEM_SOURCE", "."))
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="print the claims, and that is all")
    parser.add_argument("--bin", type=pathlib.Path)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="of what is random in a claim")
    parser.add_argument("--kv-path", choices=("auto", "ring", "direct"), default="auto")
    parser.add_argument("--model", type=pathlib.Path, default=here / "models" / "tiny-v32")
    parser.add_argument("claim", nargs="?", choices=CLAIMS)
    ARGS = parser.parse_args()
    if ARGS.list:
        print(*CLAIMS, sep="\n")
        sys.exit(0)
    if ARGS.bin is None:
        parser.error("--bin is missing")
    print("seed", ARGS.seed)
    need_gpu(ARGS.gpu)
    for claim in [ARGS.claim] if ARGS.claim else CLAIMS:
        CLAIMS[claim]()
        print(claim, "ok")
