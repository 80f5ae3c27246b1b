#!/usr/bin/env python3
"""Writes src/model/tokenizer_nfc_table.c: what Unicode's normalisation form C needs, from Python's unicodedata.

    python3 tools/make_unicode_tables.py > src/model/tokenizer_nfc_table.c && clang-format -i src/model/tokenizer_nfc_table.c
"""
import sys
import unicodedata

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def decompositions():
    rows = []
    for code in CODES:
        mapping = unicodedata.decomposition(chr(code))
        if mapping and not mapping.startswith("<"):
            parts = [int(part, 16) for part in mapping.split()]
            rows.append((code, parts[0], parts[1] if len(parts) > 1 else 0))
    return rows


def classes():
    ranges = []
    for code in CODES:
        value = unicodedata.combining(chr(code))
        if not value:
            continue
        if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == value:
            ranges[-1][1] = code
        else:
            ranges.append([code, code, value])
    return ranges


def main():
    rows = decompositions()
    composed = [
        index
        for index, (code, first, second) in enumerate(rows)
        if second and unicodedata.normalize("NFC", chr(first) + chr(second)) == chr(code)
    ]
    composed.sort(key=lambda index: rows[index][1:])
    out = sys.stdout
    out.write(f"/* Made by tools/make_unicode_tables.py from Unicode {unicodedata.unidata_version}. */\n")
    out.write('#include "model/tokenizer_nfc.h"\n\n')
    out.write("const ln_decomposition ln_decompositions[] = {\n")
    out.write(", ".join("{0x%X, 0x%X, 0x%X}" % row for row in rows))
    out.write("};\nconst int ln_decomposition_count = %d;\n\n" % len(rows))
    out.write("const uint16_t ln_compositions[] = {\n" + ", ".join(map(str, composed)))
    out.write("};\nconst int ln_composition_count = %d;\n\n" % len(composed))
    seconds = {rows[index][2] for index in composed}
    starters = sorted(code for code in seconds if not unicodedata.combining(chr(code)))
    out.write("const uint32_t ln_joining_starters[] = {\n" + ", ".join("0x%X" % code for code in starters))
    out.write("};\nconst int ln_joining_starter_count = %d;\n\n" % len(starters))
    ranges = classes()
    out.write("const ln_combining_range ln_combining_ranges[] = {\n")
    out.write(", ".join("{0x%X, 0x%X, %d}" % tuple(entry) for entry in ranges))
    out.write("};\nconst int ln_combining_range_count = %d;\n" % len(ranges))


main()
