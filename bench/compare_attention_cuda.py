#!/usr/bin/env python3
"""Measures exact attention on one GPU: Linnet's check program and PyTorch's cuDNN and flash backends on the same shapes, one after the other.

    bench/compare_attention_cuda.py build/cuda/tests/cuda_check [-r 15] [--backward]

Random bf16 inputs, medians over rounds, events around single calls. TFLOP/s count 2 (key size + value size) for every pair of query and key of the full square, half of
it when causal; gradients (--backward) 2 (3 key size + 2 value size). Without PyTorch the program alone is run."""
import argparse
import statistics
import subprocess

#          name, sequences, tokens, heads, key-value heads, key size, value size, causal
WORKS = [
    ("d128 full 16k", 1, 16384, 16, 16, 128, 128, False),
    ("d128 causal 16k", 1, 16384, 16, 16, 128, 128, True),
    ("d128 causal 8k x 2", 2, 8192, 16, 16, 128, 128, True),
    ("d128 causal 4k x 4", 4, 4096, 16, 16, 128, 128, True),
    ("d128 causal 2k x 8", 8, 2048, 16, 16, 128, 128, True),
    ("d128 full 2k x 8", 8, 2048, 16, 16, 128, 128, False),
    ("d64 full 16k", 1, 16384, 32, 32, 64, 64, False),
    ("d64 causal 16k", 1, 16384, 32, 32, 64, 64, True),
    ("d256 full 16k", 1, 16384, 8, 8, 256, 256, False),
    ("d256 causal 16k", 1, 16384, 8, 8, 256, 256, True),
    ("d96 full 16k", 1, 16384, 16, 16, 96, 96, False),
    ("d192/128 causal 8k x 2", 2, 8192, 16, 16, 192, 128, True),
]


def measure(torch, backend, work, rounds, backward):
    """Median milliseconds of the forward pass, or of the backward pass alone; None where the backend refuses."""
    from torch.nn.attention import sdpa_kernel

    _, batch, tokens, heads, shared, key_size, value_size, causal = work
    make = lambda h, size: torch.randn(batch, h, tokens, size, device="cuda", dtype=torch.bfloat16, requires_grad=backward)
    query, key, value = make(heads, key_size), make(shared, key_size), make(shared, value_size)
    gradient = torch.randn(batch, heads, tokens, value_size, device="cuda", dtype=torch.bfloat16)
    forward = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    times = []
    try:
        with sdpa_kernel(backend):
            for round in range(rounds + 3):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                output = forward() if backward else None
                begin.record()
                if backward:
                    torch.autograd.grad(output, (query, key, value), gradient)
                else:
                    forward()
                end.record()
                end.synchronize()
                if round >= 3:
                    times.append(begin.elapsed_time(end))
    except RuntimeError:
        return None
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args()
    suite = "attention_backward" if options.backward else "attention"
    subprocess.run([options.program, "--bench", "--suite", suite, "--rounds", str(options.rounds)], check=True)
    try:
        import torch
        from torch.nn.attention import SDPBackend
    except ImportError:
        print("no PyTorch: nothing to compare with")
        return
    print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for work in WORKS:
        name, batch, tokens, heads, _, key_size, value_size, causal = work
        flops = 2 * (3 * key_size + 2 * value_size if options.backward else key_size + value_size) * batch * heads * tokens * tokens * (0.5 if causal else 1)
        cells = []
        for label, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)):
            milliseconds = measure(torch, backend, work, options.rounds, options.backward)
            cells.append(f"{label} " + (f"{milliseconds:8.3f} ms {flops / milliseconds * 1e-9:7.1f} TFLOP/s" if milliseconds else "refuses"))
        print(f"{name:30} " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
