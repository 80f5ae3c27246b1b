"""GGUF files: reads the tensors of the types used here, appends tensors, writes small files. Layout: header, keys,
tensor directory, padding to the alignment, data."""
import struct

import numpy

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, path):
        self.data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
        self.at = 0
        magic, self.version, tensors, keys = self.take("<4sIQQ")
        if magic != b"GGUF":
            raise SystemExit(f"{path} is no GGUF file")
        self.keys = {}
        for _ in range(keys):
            name = self.string()
            self.keys[name] = self.value(*self.take("<I"))
        self.keys_end = self.at
        self.tensors = {}
        for _ in range(tensors):
            name = self.string()
            (dimensions,) = self.take("<I")
            shape = self.take(f"<{dimensions}Q")
            kind, offset = self.take("<IQ")
            self.tensors[name] = (tuple(reversed(shape)), kind, offset)
        self.directory_end = self.at
        alignment = self.keys.get("general.alignment", 32)
        self.base = (self.at + alignment - 1) // alignment * alignment

    def take(self, form):
        size = struct.calcsize(form)
        values = struct.unpack(form, self.data[self.at:self.at + size].tobytes())
        self.at += size
        return values

    def string(self):
        (size,) = self.take("<Q")
        text = self.data[self.at:self.at + size].tobytes()
        self.at += size
        return text.decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.take("<IQ")
            if inner in SCALARS:
                return list(self.take(f"<{count}{SCALARS[inner]}"))
            return [self.value(inner) for _ in range(count)]
        return self.take("<" + SCALARS[kind])[0]

    def tensor(self, name):
        """As float32."""
        shape, kind, offset = self.tensors[name]
        count = int(numpy.prod(shape))
        at = self.base + offset
        raw = lambda size: self.data[at:at + size]
        if kind == F32:
            return raw(4 * count).view("<f4").reshape(shape).copy()
        if kind == F16:
            return raw(2 * count).view("<f2").astype(numpy.float32).reshape(shape)
        if kind == BF16:
            return (raw(2 * count).view("<u2").astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)
        if kind == Q8_0:
            blocks = raw(count // 32 * 34).reshape(-1, 34)
            scale = blocks[:, :2].copy().view("<f2").astype(numpy.float32)
            return (blocks[:, 2:].copy().view(numpy.int8) * scale).reshape(shape)
        raise SystemExit(f"{name} has type {kind}, which is not read here")


def packed(text):
    text = text.encode()
    return struct.pack("<Q", len(text)) + text


def key(name, value):
    """value: text, float, list of floats, or whole number."""
    if isinstance(value, str):
        return packed(name) + struct.pack("<I", STRING) + packed(value)
    if isinstance(value, list):
        return packed(name) + struct.pack(f"<IIQ{len(value)}f", ARRAY, 6, len(value), *value)
    if isinstance(value, float):
        return packed(name) + struct.pack("<If", 6, value)
    return packed(name) + struct.pack("<II", 4, value)


class Quantised:
    """A float32 matrix to be written in Q8_0: blocks of 32, the largest of them 127 steps of a float16 scale."""

    def __init__(self, array):
        blocks = array.astype(numpy.float32).reshape(-1, 32)
        scale = (numpy.abs(blocks).max(1) / 127).astype(numpy.float32)
        steps = numpy.where(scale[:, None] > 0, blocks / numpy.where(scale > 0, scale, 1)[:, None], 0)
        steps = numpy.sign(steps) * numpy.floor(numpy.abs(steps) + 0.5)
        packed_blocks = numpy.empty((len(blocks), 34), numpy.uint8)
        packed_blocks[:, :2] = scale.astype("<f2")[:, None].view(numpy.uint8)
        packed_blocks[:, 2:] = steps.astype(numpy.int8).view(numpy.uint8)
        self.shape, self.ndim, self.dtype, self.blocks = array.shape, array.ndim, "q8_0", packed_blocks

    def tobytes(self):
        return self.blocks.tobytes()


def write(path, keys, tensors):
    """tensors: name -> float32 or float16 array, or Quantised."""
    head, data = b"", b""
    for name, value in keys.items():
        head += key(name, value)
    for name, array in tensors.items():
        kind = {"float32": F32, "float16": F16, "q8_0": Q8_0}[str(array.dtype)]
        head += packed(name) + struct.pack(f"<I{array.ndim}QIQ", array.ndim, *reversed(array.shape), kind, len(data))
        data += array.tobytes()
        data += bytes(-len(data) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + head
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32) + data)
