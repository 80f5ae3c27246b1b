#!/usr/bin/env python3
"""Compares Linnet with the reference that a model's folder carries.

    tools/check_reference.py FOLDER [--model FILE] [--linnet PROGRAM] [--prompt TOKENS] [-- FLAGS of linnet logits]

FOLDER/reference.safetensors holds input_ids [n], argmax [n] and logits_last64 [64, vocabulary] of the weights computed in
float32, and greedy [m], a prompt (its first --prompt tokens) and its greedy continuation. Demanded: the largest error of the
logits is at most 2e-3 of their standard deviation, the most likely token is the same but for 2 places, and the continuation
is the same up to the first place where the two best logits lie within 1e-3. --model compares another file than FOLDER's own,
a conversion for example. Without flags: --exact --precision f32. Prints one JSON object; exit status 1 where it differs.
Needs numpy.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy

TYPES = {"F32": numpy.float32, "I32": numpy.int32, "I64": numpy.int64}
ERROR, MISSES, TIE = 2e-3, 2, 1e-3


def read_safetensors(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, end = tensor["data_offsets"]
            part = numpy.frombuffer(data[start + first:start + end], TYPES[tensor["dtype"]])
            tensors[name] = part.reshape(tensor["shape"])
    return tensors


def logits_of(program, model, ids, flags):
    with tempfile.TemporaryDirectory() as folder:
        given, output = pathlib.Path(folder) / "ids", pathlib.Path(folder) / "logits"
        given.write_text(" ".join(str(id) for id in ids))
        subprocess.run([program, "logits", "-q", "-m", str(model), "-i", str(given), "-o", str(output), *flags], check=True)
        return numpy.fromfile(output, "<f4").reshape(len(ids), -1)


def compare_greedy(logits, ids, prompt):
    """How many tokens of the continuation agree, and why the comparison ended there."""
    for place in range(prompt - 1, len(ids) - 1):
        second, best = numpy.sort(logits[place])[-2:]
        if int(logits[place].argmax()) != int(ids[place + 1]):
            return place + 1 - prompt, "tie" if best - second <= TIE else "differs"
        if best - second <= TIE:
            return place + 1 - prompt, "tie"
    return len(ids) - prompt, "end"


def main():
    parser = argparse.ArgumentParser(description="Compare Linnet with the reference in a model's folder.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--linnet", default="linnet")
    parser.add_argument("--prompt", type=int, default=6)
    arguments = sys.argv[1:]
    flags = ["--exact", "--precision", "f32"]
    if "--" in arguments:
        flags = arguments[arguments.index("--") + 1:]
        arguments = arguments[:arguments.index("--")]
    options = parser.parse_args(arguments)

    reference = read_safetensors(options.folder / "reference.safetensors")
    model = options.model or options.folder
    logits = logits_of(options.linnet, model, reference["input_ids"], flags)
    expected = reference["logits_last64"]
    error = float(numpy.abs(logits[-len(expected):] - expected).max() / expected.std())
    misses = int((logits.argmax(1) != reference["argmax"]).sum())
    agree, end = compare_greedy(logits_of(options.linnet, model, reference["greedy"], flags), reference["greedy"],
                                options.prompt)
    passed = error <= ERROR and misses <= MISSES and end != "differs"
    print(json.dumps({"error_in_deviations": float(f"{error:.2e}"), "argmax_equal": len(logits) - misses,
                      "argmax_of": len(logits), "greedy_equal": agree, "greedy_of": len(reference["greedy"]) - options.prompt,
                      "greedy_end": end, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
