/* Products for compute capability 8.0 and newer.
 *
 * Few tokens: a block has a tile of 16 rows, its warps take turns at the tiles of 64 columns: the weights are the left
 * operand, tokens the columns of the right one. Which columns a product adds up is free as long as both operands agree,
 * so a lane takes 8 columns that lie together from both sides. The warps' sums are added in their order. Fewer tokens
 * than the operand has are repeated, and what they give is dropped.
 *     bf16    products of 16 x 8 x 16, 8 tokens at once.
 *     codes   products of bytes of 16 x 8 x 32, which are exact. x is rounded to 16 bits a block of 32 columns,
 *             x = step (256 high + low), and a token has two columns, one a digit: 4 tokens at once. Codes of Q4_0 are
 *             multiplied as 16 (code - 8), which a mask makes of them. An integer comes as the last bits of a float32
 *             near 1.5 2^23, where the sums began.
 *
 * Many tokens: tiles of 128 tokens and 128 rows, 32 columns at a time in a ring of shared memory. */
#include <string.h>

#include "kernel/cuda/digits.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/product_table.h"
#include "kernel/cuda/weight.cuh"

namespace ln {

/* ---- weights of a tile, as operands ---- */

template <int KIND> struct tile;

template <> struct tile<LN_CUDA_WEIGHT_BF16> {
    static constexpr int ahead = 2; /* tiles under way in a warp */
    uint4 word[4];
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const char *row = (const char *)weight.codes + ((row_tile * 16 + lane / 4) * tiles + at) * 128 + lane % 4 * 16;
        word[0] = *(const uint4 *)row;
        word[1] = *(const uint4 *)(row + (int64_t)tiles * 1024);
        word[2] = *(const uint4 *)(row + 64);
        word[3] = *(const uint4 *)(row + (int64_t)tiles * 1024 + 64);
    }
};

template <> struct tile<LN_CUDA_WEIGHT_Q8_0> {
    static constexpr int ahead = 4;
    static constexpr float unit = 1;
    uint4 word[2];
    uint2 scale;
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const int64_t i = row_tile * tiles + at;
        const uint4 *codes = (const uint4 *)weight.codes + i * 64 + lane;
        word[0] = codes[0];
        word[1] = codes[32];
        scale = ((const uint2 *)weight.scales)[i * 8 + lane / 4];
    }
    __device__ __forceinline__ void get(int half, uint32_t (&left)[4]) const {
        left[0] = word[half].x, left[1] = word[half].z, left[2] = word[half].y, left[3] = word[half].w;
    }
};

template <> struct tile<LN_CUDA_WEIGHT_Q4_0> {
    static constexpr int ahead = 4;
    static constexpr float unit = 1.0f / 16;
    uint4 word;
    uint2 scale;
    __device__ __forceinline__ void load(const ln_cuda_weight &weight, int64_t row_tile, int tiles, int at, int lane) {
        const int64_t i = row_tile * tiles + at;
        word = ((const uint4 *)weight.codes)[i * 32 + lane];
        scale = ((const uint2 *)weight.scales)[i * 8 + lane / 4];
    }
    /* Half bytes in the upper halves of bytes, their sign turned: 16 (code - 8). */
    static __device__ __forceinline__ uint32_t upper(uint32_t word) { return (word & 0xf0f0f0f0u) ^ 0x80808080u; }
    __device__ __forceinline__ void get(int half, uint32_t (&left)[4]) const {
        const uint32_t low = half ? word.z : word.x, high = half ? word.w : word.y;
        left[0] = upper(low << 4), left[1] = upper(high << 4), left[2] = upper(low), left[3] = upper(high);
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
    const signed char *digits; /* of codes: [tokens][high, low][64 columns of a tile in the order of the lanes] */
    const float *steps;        /* [tokens][blocks of 32 columns] */
    __nv_bfloat16 *given;
    int count, tokens, tiles, gated, activation;
    float gate_scale;
};

enum { FEW_WARPS = 8, FEW_THREADS = 32 * FEW_WARPS };

/* What a lane holds of x and of sums for a group of tokens. */
template <int KIND> struct group {
    static constexpr int tokens = 4, sums = 2;
    uint4 digits;
    float2 step;
    __device__ __forceinline__ void load(const few_run &run, int first, int at, int lane) {
        const int column = min(first + lane / 8, run.tokens - 1), token = min(first + lane % 4, run.tokens - 1);
        digits = *(const uint4 *)(run.digits + ((2 * column + lane / 4 % 2) * run.tiles + at) * 64 + lane % 4 * 16);
        step = *(const float2 *)(run.steps + (token * run.tiles + at) * 2);
    }
    __device__ __forceinline__ void add(const tile<KIND> &part, float *sum) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t right[2] = {half ? digits.z : digits.x, half ? digits.w : digits.y};
            const float2 scale = scales_of(half ? part.scale.y : part.scale.x);
            const float unit = half ? step.y : step.x, middle = 12582912;
            uint32_t left[4];
            int block[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
            part.get(half, left);
            add_product_bytes(block, left, right);
            const float high = __int_as_float(block[0]) - middle, low = __int_as_float(block[1]) - middle;
            const float high8 = __int_as_float(block[2]) - middle, low8 = __int_as_float(block[3]) - middle;
            sum[0] += unit * scale.x * (256 * high + low);
            sum[1] += unit * scale.y * (256 * high8 + low8);
        }
    }
    /* Token and row of a sum. */
    static __device__ __forceinline__ int token_of(int, int lane) {
        return lane % 4;
    }
    static __device__ __forceinline__ int row_of(int i, int lane) {
        return lane / 4 + 8 * i;
    }
};

template <> struct group<LN_CUDA_WEIGHT_BF16> {
    static constexpr int tokens = 8, sums = 4;
    uint4 columns[2];
    __device__ __forceinline__ void load(const few_run &run, int first, int at, int lane) {
        const int token = min(first + lane / 4, run.tokens - 1);
        const __nv_bfloat16 *x = run.x + token * run.x_stride + at * 64 + lane % 4 * 8;
        columns[0] = *(const uint4 *)x;
        columns[1] = *(const uint4 *)(x + 32);
    }
    __device__ __forceinline__ void add(const tile<LN_CUDA_WEIGHT_BF16> &part, float *sum) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 x = columns[half], low = part.word[2 * half], high = part.word[2 * half + 1];
            const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
            const uint32_t x_first[2] = {x.x, x.y}, x_second[2] = {x.z, x.w};
            add_product(sum, first, x_first);
            add_product(sum, second, x_second);
        }
    }
    static __device__ __forceinline__ int token_of(int i, int lane) {
        return lane % 4 * 2 + i % 2;
    }
    static __device__ __forceinline__ int row_of(int i, int lane) {
        return lane / 4 + 8 * (i / 2);
    }
};

/* The columns that this warp has of a tile of rows of one matrix, or of two of one shape. A ring of tiles is under way:
 * a place is filled again as soon as it was used. Weights are the same whatever ran before, so the first are asked for
 * before x is waited for. */
template <int KIND, int GROUPS, int MATRICES>
static __device__ __forceinline__ void add_columns(const few_run &run, const ln_cuda_weight *weight, int64_t row_tile,
                                                   float (&sum)[MATRICES][GROUPS][group<KIND>::sums]) {
    constexpr int most = tile<KIND>::ahead / MATRICES, ahead = GROUPS > 1 && most > 2 ? 2 : most;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    tile<KIND> part[ahead][MATRICES];
#pragma unroll
    for (int i = 0; i < ahead; i++)
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            if (warp + i * FEW_WARPS < run.tiles)
                part[i][m].load(weight[m], row_tile, run.tiles, warp + i * FEW_WARPS, lane);
    wait_for_previous();
    for (int begin = warp; begin < run.tiles; begin += FEW_WARPS * ahead) {
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const int at = begin + i * FEW_WARPS, next = at + ahead * FEW_WARPS;
            if (at >= run.tiles) break;
#pragma unroll
            for (int n = 0; n < GROUPS; n++) {
                group<KIND> x;
                x.load(run, n * group<KIND>::tokens, at, lane);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) x.add(part[i][m], sum[m][n]);
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

/* Outputs of a block: [token][row]. */
template <int KIND, int GROUPS> static constexpr int few_outputs = group<KIND>::tokens *GROUPS * 16;

/* Those of all warps: [warp][token][row]. */
template <int KIND, int GROUPS>
static __device__ __forceinline__ void keep_sums(float *to, const float (&sum)[GROUPS][group<KIND>::sums]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < GROUPS; n++)
#pragma unroll
        for (int i = 0; i < group<KIND>::sums; i++)
            to[warp * few_outputs<KIND, GROUPS> + (n * group<KIND>::tokens + group<KIND>::token_of(i, lane)) * 16 +
               group<KIND>::row_of(i, lane)] = sum[n][i];
}
template <int KIND, int GROUPS> static __device__ __forceinline__ float total_of(const float *sums, int i) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < FEW_WARPS; warp++) total += sums[warp * few_outputs<KIND, GROUPS> + i];
    if constexpr (KIND != LN_CUDA_WEIGHT_BF16) total *= tile<KIND>::unit;
    return total;
}

template <int KIND, int GROUPS, int MATRICES>
static __global__ void __launch_bounds__(FEW_THREADS, GROUPS == 1 ? 3 : 2)
    product_few(const __grid_constant__ few_run run) {
    float *sums = (float *)block_memory();
    constexpr int outputs = few_outputs<KIND, GROUPS>, stride = FEW_WARPS * outputs;
    int64_t row_tile = blockIdx.x;
    int matrix = 0;
    if (MATRICES == 1)
        while (row_tile >= run.row_tiles[matrix]) row_tile -= run.row_tiles[matrix++];
    float sum[MATRICES][GROUPS][group<KIND>::sums] = {};
    let_next_start();
    add_columns<KIND, GROUPS, MATRICES>(run, &run.weight[matrix], row_tile, sum);
#pragma unroll
    for (int m = 0; m < MATRICES; m++) keep_sums<KIND, GROUPS>(sums + m * stride, sum[m]);
    __syncthreads();
    const int64_t rows = run.weight[matrix].rows;
    for (int i = threadIdx.x; i < outputs; i += FEW_THREADS) {
        const int token = i / 16;
        const int64_t row = row_tile * 16 + i % 16;
        if (token >= run.tokens || row >= rows) continue;
        const float total = total_of<KIND, GROUPS>(sums, i);
        if (MATRICES == 2) {
            const float up = total_of<KIND, GROUPS>(sums + stride, i);
            run.given[token * run.given_stride + row] =
                __float2bfloat16(activate(run.activation, run.gate_scale * total) * up);
        } else {
            run.y[matrix][token * run.stride[matrix] + row] = total;
        }
    }
}

template <int KIND, int GROUPS> static ln_cuda_code start_groups(const few_run &run, int blocks, void *stream) {
    const int bytes = (1 + run.gated) * FEW_WARPS * few_outputs<KIND, GROUPS> * (int)sizeof(float);
    const dim3 grid((unsigned)blocks), block(FEW_THREADS);
    if (run.gated) return launch_early(product_few<KIND, GROUPS, 2>, grid, block, bytes, stream, run);
    return launch_early(product_few<KIND, GROUPS, 1>, grid, block, bytes, stream, run);
}

template <int KIND> static ln_cuda_code start_few(const few_run &run, int blocks, void *stream) {
    const int groups = (run.tokens + group<KIND>::tokens - 1) / group<KIND>::tokens;
    return groups <= 1   ? start_groups<KIND, 1>(run, blocks, stream)
           : groups <= 2 ? start_groups<KIND, 2>(run, blocks, stream)
                         : start_groups<KIND, 4>(run, blocks, stream);
}

/* x in digits: a thread has four columns, eight threads a block of 32. */
struct split_run {
    const __nv_bfloat16 *x;
    int64_t x_stride;
    int quarters, tokens; /* quarters: of a token's columns, in whole tiles */
    ln_cuda_digits to;
};

static __global__ void split_columns(const __grid_constant__ split_run run) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, token = i / run.quarters, at = i % run.quarters;
    let_next_start();
    wait_for_previous();
    if (token >= run.tokens) return; /* whole blocks of eight: quarters is a multiple of 16 */
    const __nv_bfloat16 *from = run.x + token * run.x_stride + at * 4;
    float x[4], most = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        x[k] = __bfloat162float(from[k]);
        most = fmaxf(most, digits_size(x[k]));
    }
    const unsigned eight = 255u << (threadIdx.x % 32 / 8 * 8);
#pragma unroll
    for (int k = 1; k < 8; k *= 2) most = fmaxf(most, __shfl_xor_sync(eight, most, k));
    const digit_scale scale = digits_scale(most);
    uint32_t high, low;
    digits_of(x, scale.inverse, &high, &low);
    char *to = (char *)run.to.high + 2 * token * (4 * (int64_t)run.quarters) + digits_place(at * 4);
    *(uint32_t *)to = high;
    *(uint32_t *)(to + 4 * run.quarters) = low;
    if (at % 8 == 0) run.to.step[token * (run.quarters / 8) + at / 8] = scale.step;
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

ln_cuda_code ln_cuda_product_few(const ln_cuda_product *product, void *workspace, void *stream) {
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
    ln_cuda_digits digits = product->digits;
    if (product->weight[0].kind != LN_CUDA_WEIGHT_BF16 && !digits.high) {
        digits.high = workspace;
        digits.step = (float *)((char *)workspace + (int64_t)run.tokens * run.tiles * 128);
        const split_run split = {run.x, run.x_stride, run.tiles * 16, run.tokens, digits};
        const ln_cuda_code code =
            launch_early(split_columns, blocks_of((int64_t)split.quarters * split.tokens), dim3(256), 0, stream, split);
        if (code) return code;
    }
    run.digits = (const signed char *)digits.high;
    run.steps = digits.step;
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
