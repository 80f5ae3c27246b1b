#!/usr/bin/env python3
"""Measures exact attention on one GPU: Linnet and PyTorch's cuDNN and FlashAttention-2 on the same work in turn, A B C A B C, and prints medians and ratios.

    bench/compare_cuda.py build/cuda/cli/linnet [--works d128,decode] [-r 3] [--backends cudnn,flash]

The works are those of `linnet bench attention --device cuda` and its way of timing: as many runs as take 20 ms, started together and waited for once (a decode step
a 20th of a captured graph of 20). PyTorch is what the Python that runs this has; its keys and values are contiguous, Linnet's decode reads pages. Random bf16 numbers. Clock and
power are Linnet's, under load. A ratio is that of times, the peer's by Linnet's, the median over rounds."""
import argparse
import json
import statistics
import subprocess
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

STEPS = 20  # of a graph
BACKENDS = {"cudnn": ("cuDNN", SDPBackend.CUDNN_ATTENTION), "flash": ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)}


def linnet(program, works):
    command = [program, "bench", "attention", "--device", "cuda", "--json", "-r", "3"] + (["--works", works] if works else [])
    rows = [json.loads(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()]
    return rows[0], rows[1:]


def prepare(row, backend):
    """A function that starts the work once; None where the backend refuses it."""
    make = lambda heads, tokens, size: torch.randn(row["sequences"], heads, tokens, size, device="cuda", dtype=torch.bfloat16)
    decode, backward = row["form"] == "decode", row["form"] == "backward"
    query = make(row["heads"], 1 if decode else row["tokens"], row["key_size"])
    key, value = make(row["key_heads"], row["tokens"], row["key_size"]), make(row["key_heads"], row["tokens"], row["value_size"])
    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"is_causal": row["causal"], "enable_gqa": row["heads"] != row["key_heads"]}
    try:
        with sdpa_kernel(backend):
            if backward:
                for x in (query, key, value):
                    x.requires_grad_()
                output = attend(query, key, value, **options)
                gradient = torch.randn_like(output)
                once = lambda: torch.autograd.grad(output, (query, key, value), gradient, retain_graph=True)
                once()
                return once
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    attend(query, key, value, **options)
            torch.cuda.synchronize()
            if not decode:

                def once():
                    with sdpa_kernel(backend):
                        attend(query, key, value, **options)

                return once
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(STEPS):
                    kept = attend(query, key, value, **options)
            return lambda: (graph.replay(), kept)
    except RuntimeError:
        return None


def seconds(once):
    """Of one run, of as many as take 20 ms."""

    def of(runs):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(runs):
            once()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / runs

    of(1)
    runs = int(0.02 / of(3)) + 1
    return statistics.median(of(runs) for _ in range(3))


def compare(program, row, backends, rounds):
    """One line of the table: the works in turn."""
    calls = {name: prepare(row, backend) for name, backend in backends}
    times, rows = {name: [] for name, _ in backends}, []
    for _ in range(rounds):
        for name, call in calls.items():
            if call:
                times[name].append(seconds(call) / (STEPS if row["form"] == "decode" else 1))
        rows += [r for r in linnet(program, row["work"])[1] if r["work"] == row["work"]]
    ours = statistics.median(r["seconds"] for r in rows)
    scale, unit = (1e-12 * row["bytes"], "TB/s") if row["form"] == "decode" else (1e-12 * row["flops"], "TFLOP/s")
    cells = [f"{1e3 * ours:9.4f} ms {scale / ours:7.2f} {unit}", f"{rows[-1]['clock']:.0f} MHz {rows[-1]['power']:.0f} W"]
    for name, _ in backends:
        if not calls[name]:
            cells.append("refuses")
            continue
        ratio = statistics.median(theirs / mine["seconds"] for theirs, mine in zip(times[name], rows))
        cells.append(f"{scale / statistics.median(times[name]):7.2f} ({ratio:.2f})")
    print(f"| {row['work']} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--works")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--backends", default="cudnn,flash")
    options = parser.parse_args()
    backends = [BACKENDS[name] for name in options.backends.split(",")]
    device, rows = linnet(options.program, options.works)
    print(f"{device['device']}; peaks: {1e-12 * device['bf16_operations']:.0f} TFLOP/s (bf16 products), {1e-12 * device['copy_bytes']:.2f} TB/s (a copy)")
    print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}; in brackets the peer's time by Linnet's\n")
    print("| work | Linnet | state | " + " | ".join(name for name, _ in backends) + " |\n| :-- | --: | --: |" + " --: |" * len(backends))
    for row in rows:
        if row.get("comparable", True):
            compare(options.program, row, backends, options.rounds)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
