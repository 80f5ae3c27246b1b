#!/usr/bin/env python3
"""Measures the attention of Linnet, PyTorch and llama.cpp on the same work in turn, A B C A B C, and prints medians and ratios.

    bench/compare_attention.py build/release/cli/linnet [--ggml FOLDER] [--works forward_f32,decode] [--lengths 1024,4096] [-t 1,2] [-r 5]

The works are those of `linnet bench attention`. PyTorch is what the Python that runs this has (scaled_dot_product_attention and softmax), head after head in
memory; none without it. --ggml: where libggml-base.so and libggml-cpu.so of a llama.cpp built with shared libraries lie (ggml_flash_attn_ext), head after head in
memory too, which suits it better than its own cache; where Linnet has bf16 it gets f16. The first round is not counted. A ratio is that of times, the peer's by
Linnet's, the median over rounds. The backward pass is timed alone, after a forward pass that is not."""
import argparse
import contextlib
import ctypes
import glob
import json
import os
import platform
import statistics
import subprocess
import time

KINDS = [f"forward_{t}_d{d}_{m}" for d in (128, 64) for t in ("f32", "bf16") for m in ("causal", "full")]
KINDS += [f"backward_{t}_d{d}_causal" for d in (128, 64) for t in ("f32", "bf16")]
KINDS += [f"decode_{t}_d128_g{g}" for t in ("f32", "bf16", "f16", "q8_0", "q4_0") for g in (1, 4, 8)]
KINDS += ["softmax_f32"]


class Work:
    def __init__(self, name, length, heads):
        words = name.split("_")
        self.name, self.length, self.heads = name, length, heads
        self.kind = words[0]
        self.size = next((int(w[1:]) for w in words if w[0] == "d" and w[1:].isdigit()), 0)
        self.group = next((int(w[1:]) for w in words if w[0] == "g" and w[1:].isdigit()), 1)
        self.key_heads = heads // self.group
        self.type = name[len(self.kind) + 1 :].split("_d")[0]
        self.causal = "causal" in words
        self.queries = 1 if self.kind == "decode" else length


def linnet(program, work, threads):
    """Seconds, and the row."""
    command = [program, "bench", "attention", "--json", "--works", work.name, "--heads", str(work.heads), "--sizes", str(work.size or 64), "-t", str(threads)]
    if work.kind in ("forward", "backward"):
        command += ["--lengths", str(work.length)]
    command += ["-r", "1", "--seconds", "0.5"]
    rows = [json.loads(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()]
    return next(row for row in rows if row["work"] == work.name)


class Torch:
    def __init__(self):
        import torch

        self.torch = torch
        self.name = f"PyTorch {torch.__version__}"

    def prepare(self, work):
        """A function of the number of threads that does the work once; None where it cannot."""
        torch = self.torch
        types = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
        if work.type not in types:
            return None
        torch.manual_seed(1)
        if work.kind == "softmax":
            x = torch.randn(32, work.length)
            return lambda: torch.softmax(x, -1)
        shape = (1, work.key_heads, work.length, work.size)
        q = torch.randn(1, work.heads, work.queries, work.size).to(types[work.type])
        k, v = torch.randn(shape).to(types[work.type]), torch.randn(shape).to(types[work.type])
        attend = torch.nn.functional.scaled_dot_product_attention
        options = {"is_causal": work.causal, "enable_gqa": work.group > 1}
        if work.kind != "backward":
            return lambda: attend(q, k, v, **options)
        for x in (q, k, v):
            x.requires_grad_()
        output = attend(q, k, v, **options)
        gradient = torch.randn(output.shape).to(types[work.type])
        return lambda: torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)

    def run(self, function, work, threads):
        self.torch.set_num_threads(threads)
        with contextlib.nullcontext() if work.kind == "backward" else self.torch.no_grad():
            function()


class Ggml:
    """ggml_flash_attn_ext, by its C interface."""

    class Settings(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class Plan(ctypes.Structure):
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("threads", ctypes.c_int), ("pool", ctypes.c_void_p), ("abort", ctypes.c_void_p),
                    ("abort_data", ctypes.c_void_p), ("reference", ctypes.c_bool)]

    TYPES = {"f32": (0, 4, 1), "f16": (1, 2, 1), "bf16": (1, 2, 1), "q8_0": (8, 34, 32), "q4_0": (2, 18, 32)}  # number, bytes and values of a block

    def __init__(self, folder):
        import numpy

        self.numpy = numpy
        self.base, self.cpu = (ctypes.CDLL(sorted(glob.glob(os.path.join(folder, f"libggml-{part}.so*")))[0], ctypes.RTLD_GLOBAL) for part in ("base", "cpu"))
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        signatures = [("ggml_init", pointer, [self.Settings]), ("ggml_free", None, [pointer]), ("ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int] + [size] * 4),
                      ("ggml_get_data", pointer, [pointer]), ("ggml_flash_attn_ext", pointer, [pointer] * 5 + [number] * 3), ("ggml_new_graph", pointer, [pointer]),
                      ("ggml_build_forward_expand", None, [pointer, pointer]), ("ggml_version", ctypes.c_char_p, [])]
        for name, result, arguments in signatures:
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_graph_plan.restype, self.cpu.ggml_graph_plan.argtypes = self.Plan, [pointer, ctypes.c_int, pointer]
        self.cpu.ggml_graph_compute.argtypes = [pointer, ctypes.POINTER(self.Plan)]
        self.cpu.ggml_cpu_init()
        self.name = f"llama.cpp (ggml {self.base.ggml_version().decode()})"
        self.context = None

    def tensor(self, kind, *sizes):
        number, bytes_, block = self.TYPES[kind]
        t = self.base.ggml_new_tensor_4d(self.context, number, *sizes)
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        buffer = (ctypes.c_uint8 * (count // block * bytes_)).from_address(self.base.ggml_get_data(t))
        return t, self.numpy.frombuffer(buffer, self.numpy.uint8)

    def random(self, kind, *sizes):
        numpy = self.numpy
        t, data = self.tensor(kind, *sizes)
        _, bytes_, block = self.TYPES[kind]
        rng = numpy.random.default_rng(1)
        if block == 1:
            data.view(numpy.float32 if bytes_ == 4 else numpy.float16)[:] = rng.standard_normal(data.size // bytes_, numpy.float32)
        else:
            rows = data.reshape(-1, bytes_)
            rows[:, 2:] = rng.integers(0, 256, (rows.shape[0], bytes_ - 2), numpy.uint8)
            rows[:, :2].view(numpy.float16)[:] = 0.01 if kind == "q8_0" else 0.15
        return t

    def prepare(self, work):
        if self.context:
            self.base.ggml_free(self.context)
            self.context = None
        if work.kind not in ("forward", "decode"):
            return None
        values = work.heads * work.size * (2 * work.queries) + 2 * work.key_heads * work.size * work.length
        self.context = self.base.ggml_init(self.Settings(4 * values + 2 * work.queries * work.length + (64 << 20), None, False))
        q = self.random("f32", work.size, work.queries, work.heads, 1)
        k, v = (self.random(work.type, work.size, work.length, work.key_heads, 1) for _ in range(2))
        mask = None
        if work.causal:
            mask, data = self.tensor("f16", work.length, work.queries, 1, 1)
            numpy = self.numpy
            seen = numpy.tri(work.queries, work.length, work.length - work.queries, dtype=bool)
            data.view(numpy.float16).reshape(seen.shape)[:] = numpy.where(seen, numpy.float16(0), numpy.float16(-numpy.inf))
        result = self.base.ggml_flash_attn_ext(self.context, q, k, v, mask, work.size**-0.5, 0.0, 0.0)
        graph = self.base.ggml_new_graph(self.context)
        self.base.ggml_build_forward_expand(graph, result)
        return graph

    def run(self, graph, work, threads):
        plan = self.cpu.ggml_graph_plan(graph, threads, None)
        if plan.work_size:
            if getattr(self, "room", None) is None or len(self.room) < plan.work_size:
                self.room = ctypes.create_string_buffer(plan.work_size)
            plan.work_data = ctypes.addressof(self.room)
        if self.cpu.ggml_graph_compute(graph, ctypes.byref(plan)):
            raise RuntimeError("ggml_graph_compute failed")


def seconds_of(peer, prepared, work, threads):
    """The median of runs for half a second, at least one, after one that is not counted."""
    times, spent = [], 0
    peer.run(prepared, work, threads)
    while spent < 0.5:
        began = time.perf_counter()
        peer.run(prepared, work, threads)
        times.append(time.perf_counter() - began)
        spent += times[-1]
    return statistics.median(times)


def compare(options, peers, work, threads):
    prepared = [peer.prepare(work) for peer in peers]
    ours, theirs = [], [[] for _ in peers]
    for _ in range(options.rounds + 1):
        ours.append(linnet(options.linnet, work, threads))
        for peer, ready, times in zip(peers, prepared, theirs):
            if ready is not None:
                times.append(seconds_of(peer, ready, work, threads))
    ours = ours[1:]
    median = lambda key: statistics.median(row[key] for row in ours)
    rate = f"{median('gbs'):.1f} GB/s" if "gbs" in ours[0] else f"{median('gflops'):.0f} GFLOP/s"
    cells = [work.name, f"{work.length}", f"{threads}", ours[0]["path"], f"{1e3 * median('seconds'):.2f}", rate, f"{median('percent_of_peak'):.0f} % of {ours[0]['peak']}"]
    for times in theirs:
        ratio = statistics.median(t / row["seconds"] for t, row in zip(times[1:], ours)) if times else 0
        cells += [f"{1e3 * statistics.median(times[1:]):.2f}", f"{ratio:.2f}"] if times else ["", ""]
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("linnet")
    parser.add_argument("--ggml", metavar="FOLDER")
    parser.add_argument("--works", default="", help="those whose name contains one of these words")
    parser.add_argument("--lengths", default="4096", help="of the forward and backward passes")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("-t", "--threads", default="1,2")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    options = parser.parse_args()
    peers = []
    with contextlib.suppress(ImportError):
        peers.append(Torch())
    if options.ggml:
        peers.append(Ggml(options.ggml))
    version = subprocess.run([options.linnet, "version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    print("; ".join([version] + [peer.name for peer in peers] + [f"Python {platform.python_version()}"]) + f"; {options.heads} heads, medians of {options.rounds} rounds\n")
    titles = ["work", "length", "threads", "kernel", "linnet, ms", "speed", "of the peak"] + [t for peer in peers for t in (f"{peer.name.split()[0]}, ms", "ratio")]
    print("| " + " | ".join(titles) + " |\n|---|---:|---:|---|" + "---:|" * (len(titles) - 4))
    words = [w for w in options.works.split(",") if w]
    for name in KINDS:
        if words and not any(w in name for w in words):
            continue
        fixed = name.startswith(("decode", "softmax"))
        for length in [0] if fixed else map(int, options.lengths.split(",")):
            if fixed:
                length = linnet(options.linnet, Work(name, 0, options.heads), 1)["length"]
            for threads in map(int, options.threads.split(",")):
                compare(options, peers, Work(name, length, options.heads), threads)


if __name__ == "__main__":
    main()
