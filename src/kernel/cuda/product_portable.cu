/* Products of many tokens for compute capability 8.0 and newer, and what prepares them: tiles of 128 tokens and 128
 * rows, 32 columns at a time in a ring of shared memory; quantised weights as bf16; gated units of whole rows; weights
 * as product_cuda.h lays them out. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/product_activation.cuh"
#include "kernel/cuda/product_table.h"
#include "kernel/cuda/weight.cuh"

namespace ln {

/* ---- many tokens ---- */

struct many_run {
    const __nv_bfloat16 *weight, *x;
    float *y;
    int64_t columns, x_stride, stride; /* columns: whole tiles */
    int rows, tokens;
};

enum { MANY = 128, MANY_STEP = 32, MANY_ROW = MANY_STEP + 8, MANY_STAGES = 4, MANY_THREADS = 256 };
enum { MANY_STAGE = 2 * MANY * MANY_ROW }; /* elements */

/* 128 rows of 32 columns; a thread copies a piece of two of them. */
static __device__ __forceinline__ void copy_step(__nv_bfloat16 *to, const __nv_bfloat16 *from, int64_t stride,
                                                 int rows) {
#pragma unroll
    for (int i = threadIdx.x; i < MANY * 4; i += MANY_THREADS) {
        const int row = i / 4, column = i % 4 * 8;
        copy_piece(to + row * MANY_ROW + column, from + (row < rows ? row * stride : 0) + column, row < rows);
    }
}

/* Warp w has 64 tokens from 64 (w / 4) and 32 rows from 32 (w % 4) on. */
static __global__ void __launch_bounds__(MANY_THREADS, 2) product_many(const __grid_constant__ many_run run) {
    __nv_bfloat16 *ring = (__nv_bfloat16 *)block_memory();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int token = (int)blockIdx.x * MANY, row = (int)blockIdx.y * MANY, steps = (int)(run.columns / MANY_STEP);
    const __nv_bfloat16 *x = run.x + token * run.x_stride, *weight = run.weight + row * run.columns;
    float sum[4][4][4] = {};
#pragma unroll
    for (int s = 0; s < MANY_STAGES - 1; s++) {
        if (s < steps) {
            copy_step(ring + s * MANY_STAGE, x + s * MANY_STEP, run.x_stride, run.tokens - token);
            copy_step(ring + s * MANY_STAGE + MANY * MANY_ROW, weight + s * MANY_STEP, run.columns, run.rows - row);
        }
        copies_commit();
    }
    const int left_at = (warp / 4 * 64 + lane % 16) * MANY_ROW + lane / 16 * 8;
    const int right_at = MANY * MANY_ROW + (warp % 4 * 32 + lane / 16 * 8 + lane % 8) * MANY_ROW + lane / 8 % 2 * 8;
    for (int s = 0; s < steps; s++) {
        copies_wait<MANY_STAGES - 2>();
        __syncthreads();
        const int next = s + MANY_STAGES - 1;
        if (next < steps) {
            __nv_bfloat16 *to = ring + next % MANY_STAGES * MANY_STAGE;
            copy_step(to, x + next * MANY_STEP, run.x_stride, run.tokens - token);
            copy_step(to + MANY * MANY_ROW, weight + next * MANY_STEP, run.columns, run.rows - row);
        }
        copies_commit();
        const __nv_bfloat16 *stage = ring + s % MANY_STAGES * MANY_STAGE;
#pragma unroll
        for (int k = 0; k < MANY_STEP; k += 16) {
            uint32_t left[4][4], right[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) load_matrices<false>(left[i], stage + left_at + i * 16 * MANY_ROW + k);
#pragma unroll
            for (int j = 0; j < 2; j++) load_matrices<false>(right[j], stage + right_at + j * 16 * MANY_ROW + k);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) add_product(sum[i][j], left[i], right[j / 2] + j % 2 * 2);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int t = token + warp / 4 * 64 + i * 16 + lane / 4 + e / 2 * 8;
                const int r = row + warp % 4 * 32 + j * 8 + lane % 4 * 2 + e % 2;
                if (t < run.tokens && r < run.rows) run.y[t * run.stride + r] = sum[i][j][e];
            }
}

/* ---- rounding, gating, tiling ---- */

struct round_run {
    ln_cuda_weight weight;
    int64_t first_row, rows, columns; /* columns: whole tiles */
    __nv_bfloat16 *to;
};

static __global__ void round_weights(const __grid_constant__ round_run run) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, eighths = run.columns / 8;
    const int64_t row = i / eighths, column = i % eighths * 8;
    if (row >= run.rows) return;
    const weight_place at = place_of(run.columns, run.first_row + row, column);
    const float scale = __half2float(((const __half *)run.weight.scales)[scale_place(at)]);
    uint32_t packed[4];
    if (run.weight.kind == LN_CUDA_WEIGHT_Q8_0) {
        const signed char *codes = (const signed char *)run.weight.codes + q8_place(at);
#pragma unroll
        for (int j = 0; j < 4; j++) packed[j] = pack(scale * (float)codes[2 * j], scale * (float)codes[2 * j + 1]);
    } else {
        const uint32_t word = *(const uint32_t *)((const char *)run.weight.codes + q4_place(at));
#pragma unroll
        for (int j = 0; j < 4; j++)
            packed[j] = pack(scale * (float)((int)(word >> (j % 2 * 16 + j / 2 * 4) & 15) - 8),
                             scale * (float)((int)(word >> (j % 2 * 16 + j / 2 * 4 + 8) & 15) - 8));
    }
    *(uint4 *)(run.to + row * run.columns + column) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

struct gate_run {
    const float *gate, *up;
    int64_t gate_stride, up_stride, given_stride, rows, tokens;
    __nv_bfloat16 *given;
    int activation;
    float gate_scale;
};

static __global__ void gate_rows(const __grid_constant__ gate_run run) {
    const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= run.rows) return;
    for (int64_t token = blockIdx.y; token < run.tokens; token += gridDim.y) {
        const float gate = run.gate_scale * run.gate[token * run.gate_stride + row];
        run.given[token * run.given_stride + row] =
            __float2bfloat16(activate(run.activation, gate) * run.up[token * run.up_stride + row]);
    }
}

struct tile_run {
    ln_cuda_weight weight;
    const unsigned char *raw;
    int64_t first_row, rows, padded; /* padded: columns in whole tiles */
    int kind;
};

/* A thread has 8 columns of a row; of rows and columns beyond the matrix it writes zeros. */
static __global__ void tile_rows(const __grid_constant__ tile_run run) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, eighths = run.padded / 8;
    const int64_t row = i / eighths, column = i % eighths * 8, columns = run.weight.columns;
    if (row >= (run.rows + 15) / 16 * 16) return;
    const bool inside = row < run.rows;
    const weight_place at = place_of(columns, run.first_row + row, column);
    if (run.weight.kind == LN_CUDA_WEIGHT_BF16) {
        float value[8];
        for (int j = 0; j < 8; j++) {
            const int64_t from = row * columns + column + j;
            const bool there = inside && column + j < columns;
            value[j] = !there                        ? 0.0f
                       : run.kind == LN_CUDA_RAW_F32 ? ((const float *)run.raw)[from]
                       : run.kind == LN_CUDA_RAW_F16 ? __half2float(((const __half *)run.raw)[from])
                                                     : __bfloat162float(((const __nv_bfloat16 *)run.raw)[from]);
        }
        *(uint4 *)((__nv_bfloat16 *)run.weight.codes + (run.first_row + row) * run.padded + column) = make_uint4(
            pack(value[0], value[1]), pack(value[2], value[3]), pack(value[4], value[5]), pack(value[6], value[7]));
        return;
    }
    /* Blocks of 32 are whole: those of the last tile that the matrix has not are zeros. */
    const bool there = inside && column < columns;
    const int64_t block = row * (columns / 32) + column / 32;
    const int within = (int)(column % 32);
    uint16_t scale = 0;
    if (run.weight.kind == LN_CUDA_WEIGHT_Q8_0) {
        uint32_t word[2] = {0, 0};
        if (there) {
            const unsigned char *from = run.raw + block * 34;
            scale = (uint16_t)(from[0] | from[1] << 8);
            for (int j = 0; j < 8; j++) word[j / 4] |= (uint32_t)from[2 + within + j] << 8 * (j % 4);
        }
        *(uint2 *)((char *)run.weight.codes + q8_place(at)) = make_uint2(word[0], word[1]);
    } else {
        uint32_t word = 0x88888888u;
        if (there) {
            const unsigned char *from = run.raw + block * 18;
            scale = (uint16_t)(from[0] | from[1] << 8);
            word = 0;
            for (int j = 0; j < 8; j++) { /* value v of a block is the low half of byte v, or the high one of v - 16 */
                const int v = within + j, byte = from[2 + v % 16];
                word |= (uint32_t)(v < 16 ? byte & 15 : byte >> 4) << 4 * (j % 4 * 2 + j / 4);
            }
        }
        *(uint32_t *)((char *)run.weight.codes + q4_place(at)) = word;
    }
    if (within == 0) ((uint16_t *)run.weight.scales)[scale_place(at)] = scale;
}

static dim3 blocks_of(int64_t threads) {
    return dim3((unsigned)((threads + 255) / 256));
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_product_many(const void *weight, int64_t rows, int64_t columns, const void *x, int64_t x_stride,
                                  int64_t tokens, float *y, int64_t stride, void *stream) {
    const many_run run = {(const __nv_bfloat16 *)weight,
                          (const __nv_bfloat16 *)x,
                          y,
                          (columns + 63) / 64 * 64,
                          x_stride,
                          stride,
                          (int)rows,
                          (int)tokens};
    const dim3 grid((unsigned)((tokens + MANY - 1) / MANY), (unsigned)((rows + MANY - 1) / MANY));
    return launch(product_many, grid, dim3(MANY_THREADS), MANY_STAGES * MANY_STAGE * 2, stream, run);
}

ln_cuda_code ln_cuda_product_round(const ln_cuda_weight *weight, int64_t first_row, int64_t rows, void *to,
                                   void *stream) {
    const int64_t padded = (weight->columns + 63) / 64 * 64;
    const round_run run = {*weight, first_row, rows, padded, (__nv_bfloat16 *)to};
    return launch(round_weights, blocks_of(rows * padded / 8), dim3(256), 0, stream, run);
}

ln_cuda_code ln_cuda_product_gate(const ln_cuda_product *product, void *stream) {
    const gate_run run = {
        product->y[0],         product->y[1],           product->stride[0], product->stride[1],
        product->given_stride, product->weight[0].rows, product->tokens,    (__nv_bfloat16 *)product->given,
        product->activation,   product->gate_scale};
    const int64_t tokens = product->tokens < 4096 ? product->tokens : 4096;
    return launch(gate_rows, dim3(blocks_of(run.rows).x, (unsigned)tokens), dim3(256), 0, stream, run);
}

ln_cuda_code ln_cuda_weight_tile(const ln_cuda_weight *weight, ln_cuda_raw_kind kind, const void *raw,
                                 int64_t first_row, int64_t rows, void *stream) {
    const int64_t padded = (weight->columns + 63) / 64 * 64;
    const tile_run run = {*weight, (const unsigned char *)raw, first_row, rows, padded, kind};
    return launch(tile_rows, blocks_of((rows + 15) / 16 * 16 * padded / 8), dim3(256), 0, stream, run);
}
