#!/usr/bin/env python3
"""Measures Linnet and llama.cpp on the same GGUF files in turn, A B A B, and prints the medians and their ratio.

    bench/compare_llama.py build/release/cli/linnet /path/to/llama-bench MODEL.gguf [MODEL.gguf ...] [-p 512] [-n 64] [-d 0,4096]

Each round is one run of each program with one repetition of its own; the first round is not counted."""
import argparse
import json
import os
import statistics
import subprocess


def linnet(program, model, options):
    command = [program, "bench", "-m", model, "-t", options.threads, "-p", options.p, "-n", options.n, "-d", options.d, "-r", "1", "--json"]
    command += options.ours.split()
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {(row["test"], row["depth"]): row["tokens_per_second"] for row in answer["rows"]}


def llama(program, model, options):
    command = [program, "-m", model, "-t", options.threads, "-p", options.p, "-n", options.n, "-d", options.d, "-r", "1", "-o", "json"]
    command += options.llama.split()
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {(f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}", row["n_depth"]): row["avg_ts"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("llama_bench")
    parser.add_argument("models", nargs="+")
    parser.add_argument("-p", default="512")
    parser.add_argument("-n", default="64")
    parser.add_argument("-d", default="0")
    parser.add_argument("-t", "--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--llama", default="", help="more options of llama-bench: --llama='-fa 0 -ctk q8_0'")
    parser.add_argument("--ours", default="", help="more options of linnet bench: --ours='--precision q8_0'")
    options = parser.parse_args()
    print("| model | test | depth | linnet, tokens/s | llama.cpp, tokens/s | ratio |")
    print("|---|---|---:|---:|---:|---:|")
    for model in options.models:
        ours, theirs = [], []
        for _ in range(options.rounds + 1):
            ours.append(linnet(options.linnet, model, options))
            theirs.append(llama(options.llama_bench, model, options))
        for key in ours[0]:
            a = [row[key] for row in ours[1:]]
            b = [row[key] for row in theirs[1:]]
            ratio = statistics.median(x / y for x, y in zip(a, b))
            print(f"| {os.path.basename(model)} | {key[0]} | {key[1]} | {statistics.median(a):.1f} | {statistics.median(b):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
