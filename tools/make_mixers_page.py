#!/usr/bin/env python3
"""Writes the tables of docs/mixers.md from what the program says of itself and what it measured.

    linnet bench mixers --json > mixers.jsonl
    tools/make_mixers_page.py LINNET mixers.jsonl [docs/mixers.md]

LINNET is the program; its `bench mixers --list --json` gives names, formulas, papers, inputs and states. Of the page only
what lies between the lines `<!-- table -->` and `<!-- end -->` is replaced.
"""

import json
import pathlib
import subprocess
import sys

CORES = {
    "outer": "Diagonal decay and outer product (I)",
    "delta": "Delta rules (II)",
    "scan": "Elementwise scans, state spaces, short convolution",
    "cell": "Nonlinear cells",
    "learner": "Memories that learn at test time",
    "wave": "Long convolutions and transforms",
}


def figures(lines):
    """(mixer, form, type) -> the row of the largest size."""
    found = {}
    for line in lines:
        row = json.loads(line)
        name, form, kind = row["work"].rsplit("_", 2)
        key = name, form, kind
        if key not in found or row["size"] >= found[key]["size"]:
            found[key] = row
    return found


def speed(found, name, form, kind):
    row = found.get((name, form, kind))
    if not row:
        return ""
    text = f"{row['microseconds']:.3g}"
    percent = row["percent_of_peak"]
    return f"{text} ({percent:.0f} %)" if percent >= 0.5 else text


def escaped(text):
    return text.replace("|", "\\|")


def table(rows, found):
    out = []
    for core, title in CORES.items():
        own = [row for row in rows if row["core"] == core]
        if not own:
            continue
        out += [f"### {title}", "", "| mixer | formula | source | state, bytes a head | forms | forward f32 | forward bf16 | "
                "step | backward |", "| :-- | :-- | :-- | :-- | :-- | --: | --: | --: | --: |"]
        for row in own:
            name = row["name"]
            forms = [form for form in ("step", "backward", "reverse") if row[form]]
            forms = ", ".join(["forward"] + forms) + ("" if row["causal"] else "; not causal")
            state = f"{row['states']}: {row['state_bytes']:,}" if row["states"] else ""
            formula = f"`{escaped(row['formula'])}`" + "".join(f"; option {i}: {text}" for i, text in enumerate(row["options"]))
            size = f"{row['size']} x {row['value_size']}"
            out.append(f"| `{name}` ({size}): {row['inputs']} | {formula} | {escaped(row['paper'])} | {state} | {forms} | "
                       f"{speed(found, name, 'forward', 'f32')} | {speed(found, name, 'forward', 'bf16')} | "
                       f"{speed(found, name, 'step', 'f32')} | {speed(found, name, 'backward', 'f32')} |")
        out.append("")
    return out


def main(program, measured, page="docs/mixers.md"):
    listed = subprocess.run([program, "bench", "mixers", "--list", "--json"], check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    path = pathlib.Path(page)
    before, rest = path.read_text().split("<!-- table -->\n", 1)
    after = rest.split("<!-- end -->\n", 1)[1]
    strange = {row["core"] for row in rows} - set(CORES)
    assert not strange, f"CORES has no title for {strange}"
    lines = table(rows, figures(pathlib.Path(measured).read_text().splitlines()))
    path.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "<!-- end -->\n" + after)


if __name__ == "__main__":
    main(*sys.argv[1:])
