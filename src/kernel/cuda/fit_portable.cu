/* One warp a row, one block a head's state: reads and writes follow one another, sums have a fixed order. */
#include "kernel/cuda/fit_cuda.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { FIT_THREADS = 256 };
static constexpr float LEAST_SQUARE = 1e-6f;

static __device__ __forceinline__ float number_at(const void *data, int64_t at, bool bf16) {
    return bf16 ? __bfloat162float(((const __nv_bfloat16 *)data)[at]) : ((const float *)data)[at];
}
static __device__ __forceinline__ void number_set(void *data, int64_t at, bool bf16, float x) {
    if (bf16)
        ((__nv_bfloat16 *)data)[at] = __float2bfloat16(x);
    else
        ((float *)data)[at] = x;
}
static __device__ __forceinline__ float sum_row(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

/* Where the caller's row of a kernel's token begins. */
static __device__ __forceinline__ int64_t outer_row(const ln_cuda_fit &f, const ln_cuda_tensor &of, int64_t token,
                                                    int64_t head) {
    return (f.turned ? f.mirror[token] : token) * of.token_stride + head * of.head_stride;
}
/* 1 / length of a caller's row of queries or keys. */
static __device__ __forceinline__ float length_of(const ln_cuda_fit &f, const ln_cuda_tensor &of, int64_t row) {
    float square = 0;
    for (int64_t i = threadIdx.x % 32; i < f.outer_lines * f.outer_columns; i += 32) {
        const float x = number_at(of.data, row + i, true);
        square += x * x;
    }
    return rsqrtf(sum_row(square) + LEAST_SQUARE);
}

static __global__ void __launch_bounds__(FIT_THREADS)
    fit_in(const __grid_constant__ ln_cuda_fit f, const __grid_constant__ ln_cuda_tensor from, void *to) {
    const int64_t row = (int64_t)blockIdx.x * (FIT_THREADS / 32) + threadIdx.x / 32;
    if (row >= f.tokens * f.heads) return;
    const int64_t head = row % f.heads, group = f.heads / f.outer_heads, size = f.lines * f.columns,
                  outer = outer_row(f, from, row / f.heads, f.tiled ? head % f.outer_heads : head / group);
    const float factor = f.normalise ? length_of(f, from, outer) : 1;
    for (int64_t i = threadIdx.x % 32; i < size; i += 32) {
        const int64_t line = i / f.columns, column = i % f.columns;
        float x = 0;
        if (line < f.outer_lines && column < f.outer_columns)
            x = number_at(from.data, outer + line * f.outer_columns + column, f.outer_bf16);
        number_set(to, row * size + i, f.bf16, factor * x);
    }
}

/* Of an element of the caller's: the sum over the kernel's heads that read it. */
static __device__ __forceinline__ float sum_heads(const ln_cuda_fit &f, const void *from, int64_t token, int64_t shared,
                                                  int64_t i) {
    const int64_t group = f.heads / f.outer_heads, size = f.lines * f.columns,
                  at = i / f.outer_columns * f.columns + i % f.outer_columns;
    float sum = 0;
    for (int64_t n = 0; n < group; n++) {
        const int64_t head = f.tiled ? n * f.outer_heads + shared : shared * group + n;
        sum += number_at(from, (token * f.heads + head) * size + at, f.bf16);
    }
    return sum;
}

static __global__ void __launch_bounds__(FIT_THREADS)
    fit_out(const __grid_constant__ ln_cuda_fit f, const void *from, const __grid_constant__ ln_cuda_tensor given,
            const __grid_constant__ ln_cuda_tensor to) {
    const int64_t row = (int64_t)blockIdx.x * (FIT_THREADS / 32) + threadIdx.x / 32;
    if (row >= f.tokens * f.outer_heads) return;
    const int64_t token = row / f.outer_heads, head = row % f.outer_heads, size = f.outer_lines * f.outer_columns,
                  outer = outer_row(f, to, token, head);
    float factor = 1, along = 0;
    int64_t own = 0;
    if (f.normalise) {
        own = outer_row(f, given, token, head);
        factor = length_of(f, given, own);
        for (int64_t i = threadIdx.x % 32; i < size; i += 32)
            along += sum_heads(f, from, token, head, i) * number_at(given.data, own + i, true);
        along = sum_row(along) * factor * factor;
    }
    for (int64_t i = threadIdx.x % 32; i < size; i += 32) {
        float x = sum_heads(f, from, token, head, i);
        if (f.normalise) x = factor * (x - along * number_at(given.data, own + i, true));
        number_set(to.data, outer + i, f.outer_bf16, x);
    }
}

template <bool IN>
static __global__ void __launch_bounds__(FIT_THREADS)
    fit_states(const __grid_constant__ ln_cuda_fit_states f, const float *from, float *to) {
    const int64_t sequence = blockIdx.x / f.heads, head = blockIdx.x % f.heads,
                  slot = f.slots ? f.slots[sequence] : sequence, outer = (slot * f.heads + head) * f.outer_floats,
                  inner = (sequence * f.heads + head) * f.floats;
    for (int p = 0; p < f.parts; p++) {
        const ln_cuda_fit_part &part = f.part[p];
        const int64_t lines = IN ? part.lines : part.outer_lines, columns = IN ? part.columns : part.outer_columns;
        for (int64_t i = threadIdx.x; i < lines * columns; i += FIT_THREADS) {
            const int64_t line = i / columns, column = i % columns;
            if (IN) {
                const bool inside = slot >= 0 && line < part.outer_lines && column < part.outer_columns;
                to[inner + part.at + i] = inside ? from[outer + part.outer_at + line * part.outer_columns + column] : 0;
            } else if (slot >= 0)
                to[outer + part.outer_at + i] = from[inner + part.at + line * part.columns + column];
        }
    }
}

static unsigned blocks_of(int64_t rows) {
    return (unsigned)((rows + FIT_THREADS / 32 - 1) / (FIT_THREADS / 32));
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_fit_in(const ln_cuda_fit *fit, ln_cuda_tensor from, void *to, void *stream) {
    const int64_t rows = fit->tokens * fit->heads;
    if (rows == 0) return LN_CUDA_OK;
    return launch(fit_in, dim3(blocks_of(rows)), dim3(FIT_THREADS), 0, stream, *fit, from, to);
}

ln_cuda_code ln_cuda_fit_out(const ln_cuda_fit *fit, const void *from, ln_cuda_tensor given, ln_cuda_tensor to,
                             void *stream) {
    const int64_t rows = fit->tokens * fit->outer_heads;
    if (rows == 0) return LN_CUDA_OK;
    return launch(fit_out, dim3(blocks_of(rows)), dim3(FIT_THREADS), 0, stream, *fit, from, given, to);
}

ln_cuda_code ln_cuda_fit_states_in(const ln_cuda_fit_states *fit, const float *from, float *to, void *stream) {
    return launch(fit_states<true>, dim3((unsigned)(fit->sequences * fit->heads)), dim3(FIT_THREADS), 0, stream, *fit,
                  from, to);
}

ln_cuda_code ln_cuda_fit_states_out(const ln_cuda_fit_states *fit, const float *from, float *to, void *stream) {
    return launch(fit_states<false>, dim3((unsigned)(fit->sequences * fit->heads)), dim3(FIT_THREADS), 0, stream, *fit,
                  from, to);
}
