/* Products for compute capability 8.0 and newer.
 *
 * Few tokens: a block has a tile of 16 rows, its warps take turns at the tiles of 64 columns: the weights are the left
 * operand of 16 x 8 x 16, tokens the columns of the right one. Which columns a product adds up is free as long as both
 * operands agree, so a lane takes 8 columns that lie together from both sides: 16 bytes of x, 4, 8 or 16 of weights.
 * Codes are integers that bf16 holds exactly; what a block of 32 columns gives is scaled in float32. The warps' sums
 * are added in their order. Fewer tokens than the operand has are repeated, and what they give is dropped.
 *
 * Many tokens: tiles of 128 tokens and 128 rows, 32 columns at a time in a ring of shared memory. */
#include <string.h>

#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/product_table.h"
#include "kernel/cuda/weight.cuh"

#ifndef LN_AHEAD
#define LN_AHEAD 4
#define LN_AHEAD16 2
#define LN_WARPS 8
#endif

namespace ln {

/* ---- weights of a tile, as operands ---- */

struct operand {
    uint32_t part[2][4]; /* [product][of 16 x 16] */
};

template <int KIND> struct tile;

template <> struct tile<LN_CUDA_WEIGHT_BF16> {
    static constexpr bool scaled = false;
    static constexpr int ahead = LN_AHEAD16; /* tiles under way in a warp */
    uint4 word[4];
    uint2 scale;
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const char *row = (const char *)weight.codes + ((row_tile * 16 + lane / 4) * tiles + at) * 128 + lane % 4 * 16;
        word[0] = *(const uint4 *)row;
        word[1] = *(const uint4 *)(row + (int64_t)tiles * 1024);
        word[2] = *(const uint4 *)(row + 64);
        word[3] = *(const uint4 *)(row + (int64_t)tiles * 1024 + 64);
    }
    __device__ __forceinline__ operand get(int half) const {
        const uint4 low = word[2 * half], high = word[2 * half + 1];
        return {{{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}}};
    }
};

/* Bytes 2 i and 2 i + 1 of a word as bf16: 2^23 + code + 128 is a float32 whose last byte is the code with its sign
 * turned. */
static __device__ __forceinline__ uint32_t bytes_pair(uint32_t turned, int i) {
    const float low = __uint_as_float(__byte_perm(turned, 0x4b000000u, i ? 0x7652 : 0x7650)) - 8388736.0f;
    const float high = __uint_as_float(__byte_perm(turned, 0x4b000000u, i ? 0x7653 : 0x7651)) - 8388736.0f;
    return pack(low, high);
}

template <> struct tile<LN_CUDA_WEIGHT_Q8_0> {
    static constexpr bool scaled = true;
    static constexpr int ahead = LN_AHEAD;
    uint4 word[2];
    uint2 scale;
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const int64_t i = row_tile * tiles + at;
        const uint4 *codes = (const uint4 *)weight.codes + i * 64 + lane;
        word[0] = codes[0];
        word[1] = codes[32];
        scale = ((const uint2 *)weight.scales)[i * 8 + lane / 4];
    }
    __device__ __forceinline__ operand get(int half) const {
        const uint32_t turn = 0x80808080u, low = word[half].x ^ turn, low2 = word[half].y ^ turn,
                       high = word[half].z ^ turn, high2 = word[half].w ^ turn;
        return {{{bytes_pair(low, 0), bytes_pair(high, 0), bytes_pair(low, 1), bytes_pair(high, 1)},
                 {bytes_pair(low2, 0), bytes_pair(high2, 0), bytes_pair(low2, 1), bytes_pair(high2, 1)}}};
    }
};

/* Nibbles i and i + 4 of a word as bf16: 128 + nibble has the nibble as its last bits. */
static __device__ __forceinline__ uint32_t nibbles_pair(uint32_t word, int i) {
    const uint32_t both = (word >> 4 * i & 0x000f000fu) | 0x43004300u;
    __nv_bfloat162 pair;
    uint32_t bits;
    memcpy(&pair, &both, 4);
    pair = __hsub2(pair, __floats2bfloat162_rn(136, 136));
    memcpy(&bits, &pair, 4);
    return bits;
}

template <> struct tile<LN_CUDA_WEIGHT_Q4_0> {
    static constexpr bool scaled = true;
    static constexpr int ahead = LN_AHEAD;
    uint4 word;
    uint2 scale;
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const int64_t i = row_tile * tiles + at;
        word = ((const uint4 *)weight.codes)[i * 32 + lane];
        scale = ((const uint2 *)weight.scales)[i * 8 + lane / 4];
    }
    __device__ __forceinline__ operand get(int half) const {
        const uint32_t low = half ? word.z : word.x, high = half ? word.w : word.y;
        return {{{nibbles_pair(low, 0), nibbles_pair(high, 0), nibbles_pair(low, 1), nibbles_pair(high, 1)},
                 {nibbles_pair(low, 2), nibbles_pair(high, 2), nibbles_pair(low, 3), nibbles_pair(high, 3)}}};
    }
};

static __device__ __forceinline__ float2 scales_of(uint32_t both) {
    __half2 pair;
    memcpy(&pair, &both, 4);
    return __half22float2(pair);
}

/* ---- few tokens ---- */

struct few_run {
    ln_cuda_weight weight[LN_CUDA_PRODUCT_MOST];
    float *y[LN_CUDA_PRODUCT_MOST];
    int64_t stride[LN_CUDA_PRODUCT_MOST], x_stride, given_stride;
    int row_tiles[LN_CUDA_PRODUCT_MOST];
    const __nv_bfloat16 *x;
    __nv_bfloat16 *given;
    int count, tokens, tiles, gated, activation;
    float gate_scale;
};

enum { FEW_WARPS = LN_WARPS, FEW_THREADS = 32 * FEW_WARPS };

/* sums += a tile of weights times its columns of x. */
template <int KIND, int GROUPS>
static __device__ __forceinline__ void add_half(const tile<KIND> &part, int half, const uint4 (&x)[GROUPS],
                                                float (&sum)[GROUPS][4]) {
    const operand left = part.get(half);
    const float2 scale = tile<KIND>::scaled ? scales_of(half ? part.scale.y : part.scale.x) : make_float2(1, 1);
#pragma unroll
    for (int n = 0; n < GROUPS; n++) {
        const uint32_t first[2] = {x[n].x, x[n].y}, second[2] = {x[n].z, x[n].w};
        if (!tile<KIND>::scaled) {
            add_product(sum[n], left.part[0], first);
            add_product(sum[n], left.part[1], second);
            continue;
        }
        float block[4] = {0, 0, 0, 0};
        add_product(block, left.part[0], first);
        add_product(block, left.part[1], second);
        sum[n][0] += scale.x * block[0];
        sum[n][1] += scale.x * block[1];
        sum[n][2] += scale.y * block[2];
        sum[n][3] += scale.y * block[3];
    }
}

/* The columns that this warp has of a tile of rows of one matrix, or of two of one shape. A ring of tiles is under way:
 * a place is filled again as soon as it was used. Weights are the same whatever ran before, so the first are asked for
 * before x is waited for. */
template <int KIND, int GROUPS, int MATRICES>
static __device__ __forceinline__ void add_columns(const few_run &run, const ln_cuda_weight *weight, int64_t row_tile,
                                                   float (&sum)[MATRICES][GROUPS][4]) {
    constexpr int most = tile<KIND>::ahead / MATRICES,
                  fitting = GROUPS == 1                         ? most
                            : GROUPS == 2 || tile<KIND>::scaled ? 2
                                                                : 1,
                  ahead = most < fitting ? most : fitting;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    tile<KIND> part[ahead][MATRICES];
#pragma unroll
    for (int i = 0; i < ahead; i++)
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            if (warp + i * FEW_WARPS < run.tiles)
                part[i][m].load(weight[m], row_tile, run.tiles, warp + i * FEW_WARPS, lane);
    wait_for_previous();
    const __nv_bfloat16 *x[GROUPS];
#pragma unroll
    for (int n = 0; n < GROUPS; n++) {
        const int token = 8 * n + lane / 4;
        x[n] = run.x + (token < run.tokens ? token : run.tokens - 1) * run.x_stride + lane % 4 * 8;
    }
    for (int begin = warp; begin < run.tiles; begin += FEW_WARPS * ahead) {
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const int at = begin + i * FEW_WARPS, next = at + ahead * FEW_WARPS;
            if (at >= run.tiles) break;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 columns[GROUPS];
#pragma unroll
                for (int n = 0; n < GROUPS; n++) columns[n] = *(const uint4 *)(x[n] + at * 64 + half * 32);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) add_half<KIND, GROUPS>(part[i][m], half, columns, sum[m]);
            }
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                if (next < run.tiles) part[i][m].load(weight[m], row_tile, run.tiles, next, lane);
        }
    }
}

static __device__ __forceinline__ float activate(int activation, float x) {
    if (activation == LN_CUDA_GELU_TANH) {
        const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1 + __expf(-2 * inner));
    }
    return x / (1 + __expf(-x));
}

/* Sums of all warps of one matrix: [warp][token][row]. */
template <int GROUPS> static __device__ __forceinline__ void keep_sums(float *to, const float (&sum)[GROUPS][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < GROUPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 8 * n + 2 * (lane % 4) + i % 2, row = lane / 4 + 8 * (i / 2);
            to[(warp * 8 * GROUPS + token) * 16 + row] = sum[n][i];
        }
}
template <int GROUPS> static __device__ __forceinline__ float total_of(const float *sums, int i) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < FEW_WARPS; warp++) total += sums[warp * 8 * GROUPS * 16 + i];
    return total;
}

template <int KIND, int GROUPS, int MATRICES>
static __global__ void __launch_bounds__(FEW_THREADS) product_few(const __grid_constant__ few_run run) {
    float *sums = (float *)block_memory();
    constexpr int outputs = 8 * GROUPS * 16, stride = FEW_WARPS * outputs;
    int64_t row_tile = blockIdx.x;
    int matrix = 0;
    if (MATRICES == 1)
        while (row_tile >= run.row_tiles[matrix]) row_tile -= run.row_tiles[matrix++];
    float sum[MATRICES][GROUPS][4] = {};
    let_next_start();
    add_columns<KIND, GROUPS, MATRICES>(run, &run.weight[matrix], row_tile, sum);
#pragma unroll
    for (int m = 0; m < MATRICES; m++) keep_sums<GROUPS>(sums + m * stride, sum[m]);
    __syncthreads();
    const int64_t rows = run.weight[matrix].rows;
    for (int i = threadIdx.x; i < outputs; i += FEW_THREADS) {
        const int token = i / 16;
        const int64_t row = row_tile * 16 + i % 16;
        if (token >= run.tokens || row >= rows) continue;
        const float total = total_of<GROUPS>(sums, i);
        if (MATRICES == 2) {
            const float up = total_of<GROUPS>(sums + stride, i);
            run.given[token * run.given_stride + row] =
                __float2bfloat16(activate(run.activation, run.gate_scale * total) * up);
        } else {
            run.y[matrix][token * run.stride[matrix] + row] = total;
        }
    }
}

template <int KIND, int GROUPS> static ln_cuda_code start_groups(const few_run &run, int blocks, void *stream) {
    const int bytes = (1 + run.gated) * FEW_WARPS * 8 * GROUPS * 16 * (int)sizeof(float);
    const dim3 grid((unsigned)blocks), block(FEW_THREADS);
    if (run.gated) return launch_early(product_few<KIND, GROUPS, 2>, grid, block, bytes, stream, run);
    return launch_early(product_few<KIND, GROUPS, 1>, grid, block, bytes, stream, run);
}

template <int KIND> static ln_cuda_code start_few(const few_run &run, int blocks, void *stream) {
    return run.tokens <= 8    ? start_groups<KIND, 1>(run, blocks, stream)
           : run.tokens <= 16 ? start_groups<KIND, 2>(run, blocks, stream)
                              : start_groups<KIND, 4>(run, blocks, stream);
}

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
            packed[j] = pack(scale * (float)((int)(word >> 4 * j & 15) - 8),
                             scale * (float)((int)(word >> (16 + 4 * j) & 15) - 8));
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
                word |= (uint32_t)(v < 16 ? byte & 15 : byte >> 4) << 4 * (j % 2 * 4 + j / 2);
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

ln_cuda_code ln_cuda_product_few(const ln_cuda_product *product, void *stream) {
    few_run run = {};
    int blocks = 0;
    for (int m = 0; m < product->count; m++) {
        run.weight[m] = product->weight[m];
        run.y[m] = product->y[m];
        run.stride[m] = product->stride[m];
        run.row_tiles[m] = (int)((product->weight[m].rows + 15) / 16);
        if (m == 0 || !product->gated) blocks += run.row_tiles[m];
    }
    run.x = (const __nv_bfloat16 *)product->x;
    run.given = (__nv_bfloat16 *)product->given;
    run.x_stride = product->x_stride;
    run.given_stride = product->given_stride;
    run.count = product->count;
    run.tokens = (int)product->tokens;
    run.tiles = (int)((product->weight[0].columns + 63) / 64);
    run.gated = product->gated;
    run.activation = product->activation;
    run.gate_scale = product->gate_scale;
    switch (product->weight[0].kind) {
    case LN_CUDA_WEIGHT_BF16:
        return start_few<LN_CUDA_WEIGHT_BF16>(run, blocks, stream);
    case LN_CUDA_WEIGHT_Q8_0:
        return start_few<LN_CUDA_WEIGHT_Q8_0>(run, blocks, stream);
    case LN_CUDA_WEIGHT_Q4_0:
        return start_few<LN_CUDA_WEIGHT_Q4_0>(run, blocks, stream);
    }
    return LN_CUDA_UNSUPPORTED;
}

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
