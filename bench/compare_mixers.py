#!/usr/bin/env python3
"""Times Linnet's mixers beside PyTorch on the same work, in turn, on one thread.

    bench/compare_mixers.py LINNET [--tokens 4096] [--heads 4] [--size 128] [--rounds 5]

PyTorch's side is the chunked form of the same recurrence, written with its matrix products (chunks of 64, float32): linear
attention with a scalar decay, the same with a decay a channel, and the gated delta rule by a triangular solve. The figure is
microseconds for a token of a head, the median of the rounds. Needs torch, numpy.
"""

import argparse
import json
import statistics
import subprocess
import time

import torch

CHUNK = 64


def inputs(tokens, heads, size):
    generator = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=generator)
    q, k = (torch.nn.functional.normalize(make(heads, tokens, size), dim=-1) for _ in range(2))
    return q, k, make(heads, tokens, size)


def chunks(x):
    return x.view(x.shape[0], -1, CHUNK, x.shape[-1])


def simple_gla(q, k, v, g):
    q, k, v, g = chunks(q), chunks(k), chunks(v), g.view(g.shape[0], -1, CHUNK).cumsum(-1)
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    inside = (q @ k.transpose(-1, -2)) * (g[..., None] - g[..., None, :]).masked_fill(~mask, -torch.inf).exp()
    out = inside @ v
    q, k, end = q * g.exp()[..., None], k * (g[..., -1:] - g).exp()[..., None], g[..., -1].exp()
    state = torch.zeros(q.shape[0], q.shape[-1], v.shape[-1])
    for i in range(q.shape[1]):
        out[:, i] += q[:, i] @ state
        state = end[:, i, None, None] * state + k[:, i].transpose(-1, -2) @ v[:, i]
    return out


def gla(q, k, v, g):
    """Factors relative to the chunk's beginning, safe for the gentle decays of this benchmark alone."""
    q, k, v, g = chunks(q), chunks(k), chunks(v), chunks(g).cumsum(-2)
    inside = ((q * g.exp()) @ (k * (-g).exp()).transpose(-1, -2)).tril()
    out = inside @ v
    q, k, end = q * g.exp(), k * (g[..., -1:, :] - g).exp(), g[..., -1, :].exp()
    state = torch.zeros(q.shape[0], q.shape[-1], v.shape[-1])
    for i in range(q.shape[1]):
        out[:, i] += q[:, i] @ state
        state = end[:, i, :, None] * state + k[:, i].transpose(-1, -2) @ v[:, i]
    return out


def gated_delta_rule(q, k, v, g, beta):
    q, k, v, g = chunks(q), chunks(k), chunks(v), g.view(g.shape[0], -1, CHUNK).cumsum(-1)
    beta = beta.view(beta.shape[0], -1, CHUNK, 1)
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    decay = (g[..., None] - g[..., None, :]).masked_fill(~mask, -torch.inf).exp()
    system = ((beta * k) @ k.transpose(-1, -2) * decay).tril(-1)
    both = torch.cat([beta * v, beta * k * g.exp()[..., None]], -1)
    values, keys = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True).split(v.shape[-1], -1)
    inside = (q @ k.transpose(-1, -2)) * decay
    q, k, end = q * g.exp()[..., None], k * (g[..., -1:] - g).exp()[..., None], g[..., -1].exp()
    state, out = torch.zeros(q.shape[0], q.shape[-1], v.shape[-1]), torch.empty_like(v)
    for i in range(q.shape[1]):
        new = values[:, i] - keys[:, i] @ state
        out[:, i] = q[:, i] @ state + inside[:, i] @ new
        state = end[:, i, None, None] * state + k[:, i].transpose(-1, -2) @ new
    return out


def linnet(program, work, arguments):
    command = [program, "bench", "mixers", "--json", "-t", "1", "--works", work, "--heads", str(arguments.heads), "--lengths",
               str(arguments.tokens), "--sizes", str(arguments.size), "--seconds", "1"]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        row = json.loads(line)
        if row["work"] == work:
            return row["microseconds"]
    return float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    for name, value in (("tokens", 4096), ("heads", 4), ("size", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    q, k, v = inputs(arguments.tokens, arguments.heads, arguments.size)
    scalar = -0.1 * torch.rand(arguments.heads, arguments.tokens)
    channel = -0.1 * torch.rand(arguments.heads, arguments.tokens, arguments.size)
    beta = torch.rand(arguments.heads, arguments.tokens)
    works = {"simple_gla": lambda: simple_gla(q, k, v, scalar), "gla": lambda: gla(q, k, v, channel),
             "gated_delta_rule": lambda: gated_delta_rule(q, k, v, scalar, beta)}
    print(f"{arguments.tokens} tokens, {arguments.heads} heads, {arguments.size} x {arguments.size}, one thread, float32")
    print("| work | Linnet, us | PyTorch, us | ratio |\n| :-- | --: | --: | --: |")
    with torch.no_grad():
        for name, run in works.items():
            run()
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                ours.append(linnet(arguments.linnet, f"{name}_forward_f32", arguments))
                began = time.perf_counter()
                run()
                theirs.append(1e6 * (time.perf_counter() - began) / (arguments.tokens * arguments.heads))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"| {name} | {a:.2f} | {b:.2f} | {b / a:.1f} |")


if __name__ == "__main__":
    main()
