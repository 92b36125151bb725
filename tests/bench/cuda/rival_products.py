#!/usr/bin/env python3
"""rival_products.py - the products of bench_cuda by cuBLASLt, as PyTorch calls it: bf16, and e4m3 with scales of 1x128
and 128x128. It chooses a form for each number of rows, so that a row's bits depend on its batch; ours do not.

    rival_products.py [--gpu N]

Every row: recorded as a CUDA graph, weights rotated through 256 MB or more, the median of several launches.
"""
import argparse

import torch

E4M3 = [(2112, 7168), (24576, 1536), (7168, 16384), (4096, 7168), (7168, 2048), (128, 7168), (1536, 7168)]
BF16 = [(4096, 7168), (64, 7168), (256, 7168), (7168, 14336), (129280, 7168)]
ROWS = (1, 8, 32, 128, 1024, 4096)
ROTATE_BYTES = 256 << 20


def blockwise(x, w, N, K, M):
    xs = torch.rand(K // 128, M, device="cuda").t() + 0.5  # [M, K / 128], rows side by side
    ws = torch.rand(N // 128, K // 128, device="cuda").t() + 0.5
    return lambda i: torch._scaled_mm(x, w[i].t(), scale_a=xs, scale_b=ws, out_dtype=torch.bfloat16)


def microseconds(call, n):
    for i in range(n):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            call(i)
    times = []
    for _ in range(9):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / n)
    return sorted(times)[len(times) // 2]


def run(kind, N, K, M):
    itemsize = 1 if kind == "e4m3" else 2
    n = max(8, min(64, ROTATE_BYTES // (N * K * itemsize) + 1))
    if kind == "bf16":
        x, w = torch.randn(M, K, device="cuda", dtype=torch.bfloat16), torch.randn(n, N, K, device="cuda", dtype=torch.bfloat16)
        us = microseconds(lambda i: torch.mm(x, w[i].t()), n)
    else:
        x = torch.randn(M, K, device="cuda").to(torch.float8_e4m3fn)
        w = torch.randn(n, N, K, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
        us = microseconds(blockwise(x, w, N, K, M), n)
    print(f"cublaslt {kind} {N}x{K} M {M:<5} {us:10.1f} us {2e-6 * M * N * K / us:10.1f} TFLOP/s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", type=int, default=0)
    torch.cuda.set_device(parser.parse_args().gpu)
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__, "CUDA", torch.version.cuda)
    for kind, shapes in (("e4m3", E4M3), ("bf16", BF16)):
        for N, K in shapes:
            for M in ROWS:
                try:
                    run(kind, N, K, M)
                except (RuntimeError, ValueError) as error:
                    print(f"cublaslt {kind} {N}x{K} M {M:<5} refused: {str(error).splitlines()[0][:120]}", flush=True)
                torch.cuda.empty_cache()
