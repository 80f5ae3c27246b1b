/* What comes before and after the kernels of the backward pass: one block a tile of queries and head.
 *
 *     lse by log2(e), part = sum of output_gradient * output, counters of turns to 0;
 *     query_gradient = scale * the sums that were left; sink_gradient = -sum of exp(sink - lse) part;
 *     with factors of a bias, rows of gradients to their parts: factor_gradient = those of its high and low halves.
 *
 * Each sum is taken by one thread, and over threads by halves: in the same order every time. */
#include "kernel/cuda/attention_backward_rows.cuh"
#include "kernel/cuda/attention_backward_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { OPEN_THREADS = 256, ROW_THREADS = 8, SINK_THREADS = 256 };

static __device__ __forceinline__ void read_eight(float (&to)[8], const ln_cuda_tensor &from, int64_t at, int float32,
                                                  int half) {
    if (float32) {
        const float4 *four = (const float4 *)((const float *)from.data + at);
        const float4 low = four[0], high = four[1];
        to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
        to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
        return;
    }
    const uint4 eight = *(const uint4 *)((const __nv_bfloat16 *)from.data + at);
    const uint32_t word[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        to[i] = half ? unpack_as<true>(word[i / 2], i % 2) : unpack_as<false>(word[i / 2], i % 2);
}

static __global__ void __launch_bounds__(OPEN_THREADS) backward_open(const __grid_constant__ backward_run run) {
    const int head = blockIdx.y, place = head * run.tile_count + blockIdx.x, lane = threadIdx.x % ROW_THREADS;
    const ln_cuda_backward_rows tile = run.tiles[blockIdx.x];
    float *lse = run.rows + (int64_t)place * 2 * run.tile_queries, *part = lse + run.tile_queries;
    if (threadIdx.x == 0) run.turns[place] = 0;
    for (int row = threadIdx.x / ROW_THREADS; row < run.tile_queries; row += OPEN_THREADS / ROW_THREADS) {
        const int64_t token = tile.query + row;
        float sum = 0, base = CUDART_INF_F;
        if (row < tile.rows) {
            for (int i = 8 * lane; i < run.value_size; i += 8 * ROW_THREADS) {
                float output[8], gradient[8];
                read_eight(output, run.output, token * run.output.token_stride + head * run.output.head_stride + i,
                           run.output_float32, run.half);
                read_eight(gradient, run.output_gradient,
                           token * run.output_gradient.token_stride + head * run.output_gradient.head_stride + i, 0,
                           run.half);
#pragma unroll
                for (int k = 0; k < 8; k++) sum = fmaf(output[k], gradient[k], sum);
            }
            const float given = run.log_sum_exp[token * run.heads + head];
            if (given != -CUDART_INF_F) base = given * 1.44269504088896341f;
        }
        for (int by = 1; by < ROW_THREADS; by *= 2) sum += __shfl_xor_sync(~0u, sum, by);
        if (lane == 0) {
            lse[rows_place(row)] = base;
            part[rows_place(row)] = base == CUDART_INF_F ? 0 : sum;
        }
    }
}

/* 128 threads for each block of 64 x 64 of the sums. */
static __global__ void __launch_bounds__(1024) backward_close(const __grid_constant__ backward_run run) {
    const int head = blockIdx.y, place = head * run.tile_count + blockIdx.x;
    const int columns = run.wide_key_size / 64, blocks = run.tile_queries / 64 * columns;
    const ln_cuda_backward_rows tile = run.tiles[blockIdx.x];
    const bool any = run.turns[place] > 0;
    const int block = threadIdx.x / 128, thread = threadIdx.x % 128;
    float sum[32];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float4 four = {0, 0, 0, 0};
        if (any) four = *(const float4 *)(run.sums + ((int64_t)place * blocks + block) * 4096 + j * 512 + thread * 4);
        sum[4 * j] = four.x, sum[4 * j + 1] = four.y, sum[4 * j + 2] = four.z, sum[4 * j + 3] = four.w;
    }
    const int row = block / columns * 64 + thread / 32 * 16 + thread % 32 / 4;
    if (run.half)
        store_gradient<64, true>(run.query_gradient, run.packed_float32, tile.query, head, row, tile.rows,
                                 block % columns * 64, run.key_size, sum, run.gradient_scale);
    else
        store_gradient<64, false>(run.query_gradient, run.packed_float32, tile.query, head, row, tile.rows,
                                  block % columns * 64, run.key_size, sum, run.gradient_scale);
}

static __global__ void __launch_bounds__(SINK_THREADS) backward_sinks(const __grid_constant__ backward_run run) {
    const int head = blockIdx.x, width = 2 * run.tile_queries;
    const float *rows = run.rows + (int64_t)head * run.tile_count * width;
    const float sink = run.sinks[head] * 1.44269504088896341f;
    float sum = 0, *shared = (float *)block_memory();
    for (int i = threadIdx.x; i < run.tile_count * run.tile_queries; i += SINK_THREADS) {
        const float *at = rows + (int64_t)(i / run.tile_queries) * width + i % run.tile_queries;
        sum = fmaf(exponential(sink - at[0]), at[run.tile_queries], sum);
    }
    shared[threadIdx.x] = sum;
    for (int by = SINK_THREADS / 2; by > 0; by /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < by) shared[threadIdx.x] += shared[threadIdx.x + by];
    }
    if (threadIdx.x == 0) run.sink_gradient[head] = -shared[0];
}

/* One warp a row. Of queries [x, high, high, low] meet the keys' [x, high, low, high], and the other way about: the
 * gradient of a factor lies where the other side has high and low, of queries in the first two groups, of keys in the
 * first and third. */
template <bool HALF>
static __global__ void __launch_bounds__(256) backward_unpack(const __grid_constant__ ln_cuda_unpacking u) {
    const int64_t row = (int64_t)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= u.tokens * u.heads) return;
    const float *from = u.from + row * u.packed_size, *factors = from + u.size;
    const int64_t at = row / u.heads * u.to.token_stride + row % u.heads * u.to.head_stride;
    for (int i = threadIdx.x % 32; i < u.size; i += 32) {
        if (u.float32)
            ((float *)u.to.data)[at + i] = from[i];
        else
            ((uint16_t *)u.to.data)[at + i] = (uint16_t)(pack_as<HALF>(from[i], 0.0f) & 0xffff);
    }
    if (!u.factors) return;
    for (int i = threadIdx.x % 32; i < u.rank; i += 32)
        u.factors[row * u.rank + i] = (factors[i] + factors[(u.keys ? 2 : 1) * u.rank + i]) * u.factor_scale;
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_backward_open(const backward_run *run, void *stream) {
    return launch(backward_open, dim3((unsigned)run->tile_count, (unsigned)run->heads), dim3(OPEN_THREADS), 0, stream,
                  *run);
}

ln_cuda_code ln_cuda_backward_close(const backward_run *run, void *stream) {
    const int blocks = run->tile_queries / 64 * (run->wide_key_size / 64);
    return launch(backward_close, dim3((unsigned)run->tile_count, (unsigned)run->heads), dim3((unsigned)(128 * blocks)),
                  0, stream, *run);
}

ln_cuda_code ln_cuda_backward_sinks(const backward_run *run, void *stream) {
    return launch(backward_sinks, dim3((unsigned)run->heads), dim3(SINK_THREADS), SINK_THREADS * 4, stream, *run);
}

ln_cuda_code ln_cuda_backward_unpack(const ln_cuda_unpacking *unpacking, void *stream) {
    const int64_t rows = unpacking->tokens * unpacking->heads;
    if (rows == 0) return LN_CUDA_OK;
    const dim3 grid((unsigned)((rows + 7) / 8));
    return unpacking->half ? launch(backward_unpack<true>, grid, dim3(256), 0, stream, *unpacking)
                           : launch(backward_unpack<false>, grid, dim3(256), 0, stream, *unpacking);
}
