/* Where elements stay what they are and rows are whole pieces of 16 bytes, which is the rule, a thread a piece; else
 * one warp a row. One block a head's state. Sums have a fixed order. */
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

/* Pieces of the rows that are made, and of those that are there, of this many. */
struct fit_pieces {
    const void *from;
    void *to;
    ln_cuda_tensor outer; /* the caller's side of the two */
    uint32_t all, made, there;
    int element; /* bytes */
};

template <bool IN, class PIECE>
static __global__ void __launch_bounds__(FIT_THREADS)
    fit_copy(const __grid_constant__ ln_cuda_fit f, const __grid_constant__ fit_pieces p) {
    const uint32_t i = blockIdx.x * FIT_THREADS + threadIdx.x;
    if (i >= p.all) return;
    const uint32_t row = i / p.made, piece = i % p.made, heads = (uint32_t)f.heads, shared = (uint32_t)f.outer_heads,
                   token = row / heads, head = row % heads;
    const int64_t at = outer_row(f, p.outer, token, f.tiled ? head % shared : head / (heads / shared)) * p.element;
    PIECE x = {};
    if (IN) {
        if (piece < p.there) x = ((const PIECE *)((const char *)p.from + at))[piece];
        ((PIECE *)p.to)[i] = x;
    } else
        ((PIECE *)((char *)p.to + at))[piece] = ((const PIECE *)p.from)[(int64_t)row * p.there + piece];
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

/* Whether rows go by pieces of so many bytes. */
static bool pieces_of(const ln_cuda_fit *f, bool in, const void *from, void *to, const ln_cuda_tensor *outer,
                      int64_t bytes, fit_pieces *p) {
    const int64_t element = f->bf16 ? 2 : 4, inner = f->lines * f->columns * element,
                  own = f->outer_lines * f->outer_columns * element, made = in ? inner : own;
    const bool strides = outer->token_stride * element % bytes == 0 && outer->head_stride * element % bytes == 0,
               places = ((uintptr_t)from | (uintptr_t)to) % (uintptr_t)bytes == 0,
               lines = f->lines == 1 || (f->lines == f->outer_lines && f->columns == f->outer_columns);
    const int64_t all = f->tokens * f->heads * (made / bytes);
    if (f->bf16 != f->outer_bf16 || f->normalise || !strides || !places || !lines || inner % bytes || own % bytes ||
        all > INT32_MAX || (!in && f->heads != f->outer_heads))
        return false;
    *p = {from,        to, *outer, (uint32_t)all, (uint32_t)(made / bytes), (uint32_t)((in ? own : inner) / bytes),
          (int)element};
    return true;
}
template <bool IN, class PIECE>
static ln_cuda_code copy_start(const ln_cuda_fit *fit, const fit_pieces &pieces, void *stream) {
    return launch(fit_copy<IN, PIECE>, dim3((pieces.all + FIT_THREADS - 1) / FIT_THREADS), dim3(FIT_THREADS), 0, stream,
                  *fit, pieces);
}

static unsigned blocks_of(int64_t rows) {
    return (unsigned)((rows + FIT_THREADS / 32 - 1) / (FIT_THREADS / 32));
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_fit_in(const ln_cuda_fit *fit, ln_cuda_tensor from, void *to, void *stream) {
    const int64_t rows = fit->tokens * fit->heads;
    fit_pieces pieces;
    if (rows == 0) return LN_CUDA_OK;
    if (pieces_of(fit, true, from.data, to, &from, 16, &pieces)) return copy_start<true, uint4>(fit, pieces, stream);
    if (pieces_of(fit, true, from.data, to, &from, 4, &pieces)) return copy_start<true, uint32_t>(fit, pieces, stream);
    return launch(fit_in, dim3(blocks_of(rows)), dim3(FIT_THREADS), 0, stream, *fit, from, to);
}

ln_cuda_code ln_cuda_fit_out(const ln_cuda_fit *fit, const void *from, ln_cuda_tensor given, ln_cuda_tensor to,
                             void *stream) {
    const int64_t rows = fit->tokens * fit->outer_heads;
    fit_pieces pieces;
    if (rows == 0) return LN_CUDA_OK;
    if (pieces_of(fit, false, from, to.data, &to, 16, &pieces)) return copy_start<false, uint4>(fit, pieces, stream);
    if (pieces_of(fit, false, from, to.data, &to, 4, &pieces)) return copy_start<false, uint32_t>(fit, pieces, stream);
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
