#!/usr/bin/env python3
"""Asks llama.cpp the questions of `linnet eval recall`, for each type of its cache, and appends what comes of it to the file of results that `linnet eval -o FOLDER` draws from.

    bench/recall_llama.py build/release/cli/linnet /path/to/llama-completion docs/memory-evaluation.jsonl [-l 8192] [-n 100] [--types f16,q8_0,q4_0]

A document is read once, with its first question, and kept in a file of llama.cpp's (--prompt-cache); the other questions go on from there. What the file of results has already is not asked again.
Bytes are those of the cache's types for the length asked for; llama.cpp rounds its context up to a multiple of 256 tokens."""
import argparse
import json
import pathlib
import re
import subprocess
import tempfile


def ask(options, item, question, cache, first, length):
    with tempfile.NamedTemporaryFile(suffix=".txt") as prompt:
        ids = " ".join(map(str, item["ids"] + question["ids"]))
        prompt.write(subprocess.run([options.linnet, "tokenize", "--decode", "--special", "-p", ids, "-m", options.model], check=True, capture_output=True).stdout)
        prompt.flush()
        command = [options.llama, "-m", options.model, "-f", prompt.name, "-n", "16", "--temp", "0", "-no-cnv", "--no-escape", "-t", str(options.threads), "-c", str(length), "--no-warmup",
                   "-fa", "on", "-ctk", cache, "-ctv", cache, "--no-display-prompt", "--prompt-cache", options.kept] + ([] if first else ["--prompt-cache-ro"])
        # On a busy machine it may end before all it had to say was written: then the figures at its end are missing too.
        for _ in range(10):
            done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if "total time =" in done.stderr:
                break
    read = re.search(r"prompt eval time =\s*([\d.]+) ms /\s*(\d+) tokens", done.stderr)
    said = re.search(r"   eval time =\s*([\d.]+) ms /\s*(\d+) runs", done.stderr)
    answer = done.stdout.split("[end of text]")[0].strip()
    return answer == question["answers"][0], read, said


def measure(options, item, cache, length, token):
    record = {"key": f"llama.cpp recall {cache} {length} {options.seed} {item['document']}", "base": "llama.cpp", "program": "llama.cpp", "task": "recall", "length": length,
              "policy": f"llama.cpp {cache}", "budget": "-", "cache": 0, "full": token["f16"] * length, "documents": 1, "questions": len(item["questions"]), "score": 0.0, "tokens": 0,
              "seconds": 0.0, "answer_tokens": 0, "answer_seconds": 0.0, "peak": token[cache] * length, "end": token[cache] * length}
    pathlib.Path(options.kept).unlink(missing_ok=True)
    for i, question in enumerate(item["questions"]):
        right, read, said = ask(options, item, question, cache, i == 0, length)
        record["score"] += right
        if i == 0 and read:
            record["seconds"], record["tokens"] = float(read[1]) / 1000, int(read[2])
        if said:
            record["answer_seconds"] += float(said[1]) / 1000
            record["answer_tokens"] += int(said[2])
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("llama")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("-m", "--model", default="share/linnet/linnet-fledgling-q8_0.gguf")
    parser.add_argument("-l", "--lengths", default="8192")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    options = parser.parse_args()
    token = json.loads(subprocess.run([options.linnet, "inspect", options.model, "--json"], check=True, capture_output=True).stdout)["bytes_per_token"]
    known = {json.loads(line)["key"] for line in options.results.read_text().splitlines()} if options.results.exists() else set()
    with tempfile.TemporaryDirectory() as folder:
        options.kept = f"{folder}/document"
        for length in map(int, options.lengths.split(",")):
            shown = subprocess.run([options.linnet, "eval", "recall", "--show", "-q", "-m", options.model, "-l", str(length), "-n", str(options.n), "--seed", str(options.seed)], check=True,
                                   capture_output=True).stdout
            for cache in options.types.split(","):
                asked = right = 0
                for item in map(json.loads, shown.splitlines()):
                    if f"llama.cpp recall {cache} {length} {options.seed} {item['document']}" in known:
                        continue
                    record = measure(options, item, cache, length, token)
                    asked, right = asked + record["questions"], right + record["score"]
                    with options.results.open("a") as results:
                        results.write(json.dumps(record) + "\n")
                print(f"llama.cpp {cache}, {length} tokens: {right:g} of {asked}", flush=True)


if __name__ == "__main__":
    main()
