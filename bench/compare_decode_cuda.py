"""Decode attention of PyTorch (cuDNN, FlashAttention-2) on a GPU, on the contiguous shapes of `cuda_check --bench --suite decode`.

    python3 bench/compare_decode_cuda.py [--rounds N]

One query a sequence, 32 query and 8 key-value heads of size 128, bf16, random numbers. A captured graph of 20 calls is
replayed; the median of the replays is told, and the bytes of keys and values by it."""

import argparse
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = [(16, 8192), (64, 8192), (1, 131072), (1, 32768), (1, 1024)]
REPEATS = 20


def time_graph(call, rounds):
    """Milliseconds of one call, or None where it refuses."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            call()
    times = []
    for _ in range(rounds + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / REPEATS)
    return statistics.median(times[2:])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    print(torch.cuda.get_device_name(0), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for sequences, length in SHAPES:
        query = torch.randn(sequences, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
        key, value = (torch.randn(sequences, 8, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for name, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)]:
            def call():
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            try:
                with sdpa_kernel(backend):
                    each = time_graph(call, rounds)
                read = 2 * key.numel() * 2
                print(f"{sequences:3} x {length:6} {name:18} {each * 1e3:9.2f} us {read / each * 1e-9:6.3f} TB/s", flush=True)
            except RuntimeError as error:
                print(f"{sequences:3} x {length:6} {name:18} refuses: {str(error).splitlines()[0][:100]}", flush=True)
        del query, key, value


if __name__ == "__main__":
    main()
