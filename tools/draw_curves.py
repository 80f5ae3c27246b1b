#!/usr/bin/env python3
"""Measures and draws the two curves of docs/: quality against bytes of cache, and speed against length.

    tools/draw_curves.py build/release/cli/linnet TEXT docs

TEXT is any long English text. Writes quality-against-bytes.svg, speed-against-length.svg and curves.json with the figures.
Needs Matplotlib (Debian: python3-matplotlib)."""
import argparse
import json
import pathlib
import subprocess

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PRECISIONS = ["f32", "f16", "bf16", "q8_0"]
DEPTHS = [0, 1024, 2048, 4096, 8192, 16384, 32768]


def ask(linnet, *arguments):
    return json.loads(subprocess.run([linnet, *arguments, "--json"], check=True, capture_output=True, text=True).stdout)


def measure_quality(linnet, text):
    points = []
    for precision in PRECISIONS:
        answer = ask(linnet, "perplexity", "-f", text, "-c", "2048", "--precision", precision)
        plan = ask(linnet, "plan", "-c", "2048", "--precision", precision)
        points.append({"precision": precision, "bytes_per_token": plan["bytes_per_token"], "perplexity": answer["perplexity"]})
    return points


def measure_speed(linnet):
    rows = ask(linnet, "bench", "-p", "512", "-n", "32", "-d", ",".join(map(str, DEPTHS)), "-r", "3")["rows"]
    return [{"test": r["test"], "depth": r["depth"], "tokens_per_second": r["tokens_per_second"]} for r in rows]


def draw_quality(points, path):
    figure, axes = plt.subplots(figsize=(6, 4))
    for p in points:
        axes.plot(p["bytes_per_token"], p["perplexity"], "o", color="tab:blue")
        axes.annotate(p["precision"], (p["bytes_per_token"], p["perplexity"]), textcoords="offset points", xytext=(6, 6))
    axes.set(xlabel="bytes of keys and values a token", ylabel="perplexity, windows of 2,048 tokens", xlim=(0, None),
             title="Quality against bytes (fledgling, Q8_0 weights)")
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


def draw_speed(rows, path):
    figure, axes = plt.subplots(figsize=(6, 4))
    for test in sorted({r["test"] for r in rows}):
        line = [r for r in rows if r["test"] == test]
        axes.plot([r["depth"] for r in line], [r["tokens_per_second"] for r in line], "o-", label="prompt" if test.startswith("pp") else "generation")
    axes.set(xlabel="tokens that stand before", ylabel="tokens a second", yscale="log", title="Speed against length (fledgling, Q8_0 weights)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("text")
    parser.add_argument("folder", type=pathlib.Path)
    options = parser.parse_args()
    figures = {"quality": measure_quality(options.linnet, options.text), "speed": measure_speed(options.linnet)}
    (options.folder / "curves.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw_quality(figures["quality"], options.folder / "quality-against-bytes.svg")
    draw_speed(figures["speed"], options.folder / "speed-against-length.svg")


if __name__ == "__main__":
    main()
