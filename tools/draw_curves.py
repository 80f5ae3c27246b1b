#!/usr/bin/env python3
"""Measures and draws the curves of docs/: speed against length, of the built-in model, of attention alone and
of a model of yours, and memory and time of a long stream.

    tools/draw_curves.py build/release/cli/linnet docs [--model MODEL.gguf --llama /path/to/llama-bench] [--only speed,attention,engine,stream]

Writes an SVG file for each curve, and curves.json with the figures; a curve that is not measured is drawn from the figures there are.
--only nothing measures none. MODEL is measured beside llama.cpp, in turn, at one depth after the other; a run of either that takes longer than --limit seconds ends
its line. Needs Matplotlib (Debian: python3-matplotlib)."""
import argparse
import json
import pathlib
import re
import subprocess
import tempfile
import time

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "linnet"
import matplotlib.pyplot as plt

DEPTHS = [0, 1024, 2048, 4096, 8192, 16384, 32768]
LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
COLOURS = ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"]


def lines_of(command, limit=None):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit).stdout


def ask(linnet, *arguments):
    return json.loads(lines_of([linnet, *arguments, "--json"]))


def measure_speed(options):
    rows = ask(options.linnet, "bench", "-p", "512", "-n", "32", "-d", ",".join(map(str, DEPTHS)), "-r", "3")["rows"]
    return [{"test": r["test"], "depth": r["depth"], "tokens_per_second": r["tokens_per_second"]} for r in rows]


def measure_attention(options):
    lengths = ",".join(map(str, LENGTHS[:-1]))
    text = lines_of([options.linnet, "bench", "attention", "--works", "forward,backward", "--sizes", "128", "--lengths", lengths, "--seconds", "20", "--json"])
    rows = [json.loads(line) for line in text.splitlines()]
    kept = ("work", "path", "length", "threads", "seconds", "gflops", "peak", "percent_of_peak")
    return [{key: r[key] for key in kept} for r in rows if "length" in r]


def measure_engine(options):
    if not options.model:
        raise SystemExit("the engine's curve needs --model")
    rows, programs = [], {"linnet": [options.linnet, "bench", "--json"]}
    if options.llama:
        programs["llama.cpp"] = [options.llama, "-o", "json"]
    for depth in LENGTHS:
        for program in list(programs):
            command = programs[program] + ["-m", options.model, "-p", "512", "-n", "32", "-d", str(depth), "-r", "3"]
            try:
                answer = json.loads(lines_of(command, options.limit))
            except subprocess.TimeoutExpired:
                del programs[program]
                continue
            for r in answer["rows"] if program == "linnet" else answer:
                prompt = r["test"].startswith("pp") if program == "linnet" else r["n_prompt"] > 0
                speed = r["tokens_per_second"] if program == "linnet" else r["avg_ts"]
                rows.append({"program": program, "test": "prompt" if prompt else "generation", "depth": depth, "tokens_per_second": speed})
    return rows


def resident(pid):
    """Resident bytes that belong to no file."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status).group(1))


def measure_stream(options):
    """A text of options.tokens tokens, the built-in document over and over, through the built-in model in 64 MiB."""
    document = pathlib.Path(__file__).parent.parent / "share/linnet/document.txt"
    length = len(subprocess.run([options.linnet, "tokenize", "-f", document], check=True, capture_output=True, text=True).stdout.split())
    rows = []
    with tempfile.NamedTemporaryFile("wb") as text:
        text.write(document.read_bytes() * (options.tokens // length + 1))
        text.flush()
        command = [options.linnet, "run", "-f", text.name, "-p", "What is the room number of Carl?", "--memory", "64M", "--cache", "4800K", "--temp", "0", "-n", "16"]
        began = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
            for line in program.stderr:
                found = re.match(r"reading the prompt (\d+)/", line)
                if found:
                    rows.append({"tokens": int(found.group(1)), "seconds": time.monotonic() - began, "resident": resident(program.pid)})
                else:
                    print(line, end="")
    return rows


def save(figure, path):
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_lines(rows, path, x, y, name_of, **labels):
    """A line for each name, of x and y of its rows. Lines of the second of two programs are dashed."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for i, name in enumerate(dict.fromkeys(map(name_of, rows))):
        line = [r for r in rows if name_of(r) == name]
        axes.plot([r[x] for r in line], [r[y] for r in line], "o--" if "llama" in name else "o-", label=name, color=COLOURS[i % len(COLOURS)])
    axes.set(**labels)
    if labels.get("xscale") == "log":
        axes.set_xscale("log", base=2)
        ticks = sorted({r[x] for r in rows})
        axes.set_xticks(ticks, [f"{t // 1024}k" for t in ticks])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save(figure, path)


def draw_speed(rows, path):
    draw_lines(rows, path, "depth", "tokens_per_second", lambda r: "prompt" if r["test"].startswith("pp") else "generation", xlabel="tokens that stand before",
               ylabel="tokens a second", yscale="log", title="Speed against length (fledgling, Q8_0 weights)")


def draw_attention(rows, path):
    draw_lines(rows, path, "length", "gflops", lambda r: r["work"].replace("_", " "), xlabel="tokens", ylabel="GFLOP/s", xscale="log", ylim=(0, None),
               title=f"Attention of 32 heads against length, {rows[0]['threads']} threads")


def draw_engine(rows, path):
    draw_lines(rows, path, "depth", "tokens_per_second", lambda r: f"{r['test']}, {r['program']}", xlabel="tokens that stand before", ylabel="tokens a second", xscale="log",
               yscale="log", title="Speed against length (0.5 B parameters, Q8_0 weights)")


def draw_stream(rows, path):
    figure, (memory, speed) = plt.subplots(2, 1, figsize=(6, 5), sharex=True)
    tokens = [r["tokens"] / 1000 for r in rows]
    memory.plot(tokens, [r["resident"] / 2**20 for r in rows], color=COLOURS[0])
    memory.axhline(64, color="gray", linestyle=":")
    memory.set(ylim=(0, 70), ylabel="resident MiB beside\nmapped weights", title=f"{rows[-1]['tokens']:,} tokens in 64 MiB (fledgling)")
    steps = list(zip(rows, rows[1:]))
    speed.plot([b["tokens"] / 1000 for _, b in steps], [1e6 * (b["seconds"] - a["seconds"]) / (b["tokens"] - a["tokens"]) for a, b in steps], color=COLOURS[1])
    speed.set(ylim=(0, None), xlabel="thousand tokens read", ylabel="microseconds a token")
    for axes in (memory, speed):
        axes.grid(alpha=0.3)
    save(figure, path)


CURVES = {"stream": (measure_stream, draw_stream, "million-tokens.svg"),
          "speed": (measure_speed, draw_speed, "speed-against-length.svg"),
          "attention": (measure_attention, draw_attention, "attention-against-length.svg"), "engine": (measure_engine, draw_engine, "engine-against-length.svg")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--llama")
    parser.add_argument("--limit", type=float, default=1200)
    parser.add_argument("--tokens", type=int, default=1000000, help="of the stream")
    parser.add_argument("--only", default=",".join(CURVES))
    options = parser.parse_args()
    path = options.folder / "curves.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name, (measure, draw, file) in CURVES.items():
        if name in options.only.split(","):
            figures[name] = measure(options)
        if figures.get(name):
            draw(figures[name], options.folder / file)
    path.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
