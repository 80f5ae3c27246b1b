#!/usr/bin/env python3
"""Writes tests/golden/format.bin: blocks of every number format and what the `gguf` package says they mean.

Little-endian records: name (8 bytes, zero-padded), n (u32), has_source (u32), [source: n float32], blocks, values:
n float32. Where has_source is 1, blocks is what the package encodes source to.

    python3 tools/make_format_goldens.py        (needs: pip install gguf numpy)
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(20)
SIZES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
# Where a K block keeps its float16 factors: random bytes elsewhere are all valid.
FACTORS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def source(n):
    x = rng.standard_normal(n).astype(np.float32) * np.repeat(
        np.exp(rng.uniform(-12, 6, n // 32)), 32).astype(np.float32)
    x[:32] = 0  # a block of zeros
    x[32:64] = np.arange(-16, 16)  # ties of the rounding
    x[64:96] = np.linspace(-127, 127, 32).round() / 2
    x[96:128] = 3e-7 * rng.standard_normal(32)  # its scale is a subnormal float16
    x[128] = -x[129]
    return x


def blocks_k(name, count):
    b = rng.integers(0, 256, (count, SIZES[name]), dtype=np.uint8)
    for at in FACTORS[name]:
        b[:, at:at + 2] = (rng.standard_normal(count) * 0.01).astype(np.float16).view(np.uint8).reshape(count, 2)
    return b.reshape(1, -1)


out = bytearray()


def record(name, x, b, y):
    out.extend(name.lower().encode().ljust(8, b"\0") + struct.pack("<II", y.size, x is not None))
    if x is not None:
        out.extend(x.astype("<f4").tobytes())
    out.extend(b.tobytes())
    out.extend(y.astype("<f4").tobytes())


for name in ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
    x = source(512).reshape(1, -1)
    if name in ("F16", "BF16"):
        x[0, -8:] = [np.inf, -np.inf, 65519.9, 65520, 1e-8, 2**-25, 3 * 2**-25, -0.0]
    with np.errstate(over="ignore"):
        b = quantize(x, T[name])
    record(name, x, b, dequantize(b, T[name]))
for name in SIZES:
    b = blocks_k(name, 2)
    record(name, None, b, dequantize(b, T[name]))

path = pathlib.Path(__file__).parent.parent / "tests/golden/format.bin"
path.write_bytes(out)
print(f"{path}: {len(out)} bytes")
