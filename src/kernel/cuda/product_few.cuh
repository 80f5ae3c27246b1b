/* What products of few tokens are made of (product_few_portable.cu): weights of a tile as operands, the order in which
 * a warp reads them through its ring in shared memory, and rows of several tokens.
 *
 * Invariant: a commit of copies is a stage, also where there was nothing left to copy, so that the oldest commit is the
 * stage that is read next. */
#ifndef LN_KERNEL_CUDA_PRODUCT_FEW_CUH
#define LN_KERNEL_CUDA_PRODUCT_FEW_CUH

#include <string.h>

#include "kernel/cuda/digits.cuh"
#include "kernel/cuda/product_cuda.h"
#include "kernel/cuda/vectors.cuh"
#include "kernel/cuda/weight.cuh"

namespace ln {

/* A row that is finished here: finished = keep x + add given, and what is multiplied is its norm. */
struct few_finish {
    const float *x, *given, *norm;
    float *finished;
    __nv_bfloat16 *h; /* NULL: not wanted */
    float epsilon, keep, add;
};

struct few_run {
    ln_cuda_weight weight[LN_CUDA_PRODUCT_MOST];
    float *y[LN_CUDA_PRODUCT_MOST];
    int64_t stride[LN_CUDA_PRODUCT_MOST], x_stride, given_stride;
    int row_tiles[LN_CUDA_PRODUCT_MOST], rows; /* rows: tiles of them in all; of gated matrices, of one */
    const __nv_bfloat16 *x;
    ln_cuda_digits digits; /* of codes; high NULL: blocks make them */
    __nv_bfloat16 *given;
    int64_t between[2]; /* gated: from the codes and scales of the first to those of the second */
    int tokens, tiles, gated, activation;
    int stages;          /* of a warp's ring */
    int slots;           /* tiles of rows whose sums are kept before warps add them up */
    int x_here, x_bytes; /* x is copied to shared memory; bytes that it has there */
    int x_step;          /* bytes from a row of x there, or of a digit, to the next */
    float gate_scale;
    few_finish finish; /* given NULL: x is there */
};

/* ---- weights of a tile, as operands ---- */

/* A stage has `chunk` tiles of 64 columns: their words, a piece of 16 bytes a lane, then their scales. */
template <int KIND> struct tile;

template <int WARPS, int CHUNK> struct few_shape {
    static constexpr int warps = WARPS, chunk = CHUNK, threads = 32 * WARPS;
};
/* Stages of a ring, where a block has room for them and where it has not. */
enum { FEW_DEEP = 8, FEW_SHALLOW = 4 };
template <int KIND> static constexpr int few_threads = few_shape<16, 2>::threads;
template <> constexpr int few_threads<LN_CUDA_WEIGHT_Q8_0> = few_shape<8, 2>::threads;
template <> constexpr int few_threads<LN_CUDA_WEIGHT_BF16> = few_shape<8, 1>::threads;

template <> struct tile<LN_CUDA_WEIGHT_BF16> {
    using shape = few_shape<8, 1>;
    static constexpr int words = 4;
    uint4 word[words];
    /* Rows lie one after the other: where a lane's columns begin, and how far its words are from there. */
    static __device__ __forceinline__ int64_t begin(int64_t row_tile, int tiles, int at, int lane) {
        return ((row_tile * 16 + lane / 4) * tiles + at) * 128 + lane % 4 * 16;
    }
    static __device__ __forceinline__ int64_t step(int tiles, int w) {
        return w % 2 * (int64_t)tiles * 1024 + w / 2 * 64;
    }
    static constexpr int next = 128; /* from a tile to that of the next columns */
};

template <> struct tile<LN_CUDA_WEIGHT_Q8_0> {
    using shape = few_shape<8, 2>;
    static constexpr int words = 2;
    static constexpr float unit = 1;
    uint4 word[words];
    uint2 scale;
    static __device__ __forceinline__ int64_t begin(int64_t row_tile, int tiles, int at, int lane) {
        return (row_tile * tiles + at) * 1024 + lane * 16;
    }
    static __device__ __forceinline__ int64_t step(int, int w) { return w * 512; }
    static constexpr int next = 1024;
    __device__ __forceinline__ void get(int half, uint32_t (&left)[4]) const {
        left[0] = word[half].x, left[1] = word[half].z, left[2] = word[half].y, left[3] = word[half].w;
    }
};

template <> struct tile<LN_CUDA_WEIGHT_Q4_0> {
    using shape = few_shape<16, 2>;
    static constexpr int words = 1;
    static constexpr float unit = 1.0f / 16;
    uint4 word[words];
    uint2 scale;
    static __device__ __forceinline__ int64_t begin(int64_t row_tile, int tiles, int at, int lane) {
        return (row_tile * tiles + at) * 512 + lane * 16;
    }
    static __device__ __forceinline__ int64_t step(int, int) { return 0; }
    static constexpr int next = 512;
    /* Half bytes in the upper halves of bytes, their sign turned: 16 (code - 8). */
    static __device__ __forceinline__ uint32_t upper(uint32_t word) {
        return turn_bits(word, 0xf0f0f0f0u, 0x80808080u);
    }
    __device__ __forceinline__ void get(int half, uint32_t (&left)[4]) const {
        const uint32_t low = half ? word[0].z : word[0].x, high = half ? word[0].w : word[0].y;
        left[0] = upper(low << 4), left[1] = upper(high << 4), left[2] = upper(low), left[3] = upper(high);
    }
};

template <int KIND> static constexpr bool few_codes = KIND != LN_CUDA_WEIGHT_BF16;
template <int KIND>
static constexpr int few_stage = tile<KIND>::shape::chunk *(tile<KIND>::words * 512 + (few_codes<KIND> ? 64 : 0));

static __device__ __forceinline__ float2 scales_of(uint32_t both) {
    __half2 pair;
    memcpy(&pair, &both, 4);
    return __half22float2(pair);
}

/* ---- what a warp reads, in its order ---- */

struct few_place {
    int matrix, row_tile;
};
static __device__ __forceinline__ few_place few_locate(const few_run &run, int row_tile) {
    int matrix = 0;
    if (!run.gated)
        while (row_tile >= run.row_tiles[matrix]) row_tile -= run.row_tiles[matrix++];
    return {matrix, row_tile};
}

/* Tiles of columns, of one tile of rows after the other; of two matrices, which are of one shape, the same in turn. */
template <int KIND, int MATRICES> struct few_stream {
    const char *codes, *scales; /* a lane's; of the second matrix run.between later */
    int row, last, first, end, at;

    __device__ __forceinline__ void open(const few_run &run) {
        at = first;
        if (row >= last) return;
        const int lane = threadIdx.x % 32;
        const few_place place = few_locate(run, row);
        const ln_cuda_weight &weight = run.weight[place.matrix];
        codes = (const char *)weight.codes + tile<KIND>::begin(place.row_tile, run.tiles, first, lane);
        scales = (const char *)weight.scales + ((int64_t)place.row_tile * run.tiles + first) * 64 + lane * 16;
    }
    __device__ __forceinline__ void fetch(const few_run &run, int m, char *stage) const {
        constexpr int chunk = tile<KIND>::shape::chunk, words = tile<KIND>::words;
        const int lane = threadIdx.x % 32;
        if (row < last) {
            const char *from = codes + (m ? run.between[0] : 0);
#pragma unroll
            for (int i = 0; i < chunk; i++)
                if (i == 0 || at + i < end)
#pragma unroll
                    for (int w = 0; w < words; w++)
                        copy_piece(stage + (i * words + w) * 512 + lane * 16,
                                   from + i * tile<KIND>::next + tile<KIND>::step(run.tiles, w), true);
            if (few_codes<KIND> && lane < 4 * chunk) /* zeros where there is no tile */
                copy_piece(stage + chunk * words * 512 + lane * 16, scales + (m ? run.between[1] : 0),
                           at + lane / 4 < end);
        }
        copies_commit();
    }
    __device__ __forceinline__ void advance(const few_run &run) {
        constexpr int chunk = tile<KIND>::shape::chunk;
        at += chunk;
        codes += chunk * tile<KIND>::next;
        scales += chunk * 64;
        if (at < end) return;
        row++;
        open(run);
    }
};

template <int KIND> static __device__ __forceinline__ void read_tile(tile<KIND> &part, const char *stage, int i) {
    constexpr int words = tile<KIND>::words;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int w = 0; w < words; w++) part.word[w] = *(const uint4 *)(stage + (i * words + w) * 512 + lane * 16);
    if constexpr (few_codes<KIND>)
        part.scale = *(const uint2 *)(stage + tile<KIND>::shape::chunk * words * 512 + i * 64 + lane / 4 * 8);
}

/* ---- x ---- */

/* Rows of bf16; of codes the digits, [token][high, low][64 columns of a tile in the order of the lanes]. */
struct few_x {
    const char *rows;
    const float *steps; /* [tokens][blocks of 32 columns] */
    int64_t step;       /* from a row to the next, bytes */
};

/* COUNT columns of a token in digits; 32 / COUNT threads have a block of 32, and all lanes are here. */
template <int COUNT>
static __device__ __forceinline__ void split(const float (&x)[COUNT], int column, char *high_at, char *low_at,
                                             float *steps, bool inside) {
    float most = 0;
#pragma unroll
    for (int k = 0; k < COUNT; k++) most = fmaxf(most, digits_size(x[k]));
#pragma unroll
    for (int k = 1; k < 32 / COUNT; k *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, k));
    if (!inside) return;
    const digit_scale scale = digits_scale(most);
#pragma unroll
    for (int k = 0; k < COUNT; k += 4) {
        const float four[4] = {x[k], x[k + 1], x[k + 2], x[k + 3]};
        uint32_t high, low;
        digits_of(four, scale.inverse, &high, &low);
        *(uint32_t *)(high_at + digits_place(column + k)) = high;
        *(uint32_t *)(low_at + digits_place(column + k)) = low;
    }
    if (column % 32 == 0) steps[column / 32] = scale.step;
}

/* Digits of all tokens, `step` bytes from one to the next, by threads first, first + stride ...: four
 * times eight columns are asked for at once. */
static __device__ __forceinline__ void split_rows(const few_run &run, char *to, int64_t step, float *steps, int first,
                                                  int stride) {
    enum { AT_ONCE = 4 };
    const int eighths = run.tiles * 8, all = eighths * run.tokens;
#pragma unroll 1
    for (int begin = first; begin - first < all; begin += AT_ONCE * stride) {
        uint4 word[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = begin + k * stride, token = i / eighths;
            word[k] = make_uint4(0, 0, 0, 0);
            if (i < all) word[k] = __ldcg((const uint4 *)(run.x + token * run.x_stride + (i - token * eighths) * 8));
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = begin + k * stride, token = i / eighths;
            if (i - first >= all) break;
            float x[8];
            widen(x, word[k]);
            char *high = to + 2 * token * step;
            split(x, (i - token * eighths) * 8, high, high + step, steps + token * run.tiles * 2, i < all);
        }
    }
}

/* Pieces of 16 bytes that lie in a row; four are asked for at once. */
static __device__ __forceinline__ void copy_row_of(char *to, const char *from, int pieces) {
    enum { AT_ONCE = 4 };
    for (int begin = threadIdx.x; begin < pieces; begin += AT_ONCE * blockDim.x) {
        uint4 word[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (begin + k * (int)blockDim.x < pieces) word[k] = __ldcg((const uint4 *)from + begin + k * blockDim.x);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (begin + k * (int)blockDim.x < pieces) *((uint4 *)to + begin + k * blockDim.x) = word[k];
    }
}

/* x of the block, in `room` where it is wanted there; all threads. */
template <int KIND> static __device__ __forceinline__ few_x few_take_x(const few_run &run, char *room) {
    const int threads = blockDim.x, pieces = run.tiles * (few_codes<KIND> ? 4 : 8); /* of 16 bytes of a row */
    const int tokens = run.tokens, rows = few_codes<KIND> ? 2 * tokens : tokens;
    const char *from = few_codes<KIND> ? (const char *)run.digits.high : (const char *)run.x;
    const int64_t from_step = few_codes<KIND> ? run.tiles * 64 : run.x_stride * 2;
    if (!run.x_here) return {from, run.digits.step, from_step};
    float *steps = (float *)(room + rows * run.x_step);
    if (few_codes<KIND> && !run.digits.high) {
        split_rows(run, room, run.x_step, steps, (int)threadIdx.x, threads);
    } else {
        for (int row = 0; row < rows; row++) copy_row_of(room + row * run.x_step, from + row * from_step, pieces);
        for (int i = threadIdx.x; few_codes<KIND> && i < tokens * run.tiles * 2; i += threads)
            steps[i] = __ldcg(run.digits.step + i);
    }
    __syncthreads();
    return {room, steps, run.x_step};
}

/* What a lane holds of x and of sums for a group of tokens. */
template <int KIND> struct group {
    static constexpr int tokens = 4, sums = 2;
    uint4 digits;
    float2 step;
    __device__ __forceinline__ void load(const few_run &run, const few_x &x, int first, int at, int lane) {
        const int column = min(first + lane / 8, run.tokens - 1), token = min(first + lane % 4, run.tokens - 1);
        digits = *(const uint4 *)(x.rows + (2 * column + lane / 4 % 2) * x.step + at * 64 + lane % 4 * 16);
        step = *(const float2 *)(x.steps + (token * run.tiles + at) * 2);
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
    __device__ __forceinline__ void load(const few_run &run, const few_x &x, int first, int at, int lane) {
        const int token = min(first + lane / 4, run.tokens - 1);
        const char *from = x.rows + token * x.step + at * 128 + lane % 4 * 16;
        columns[0] = *(const uint4 *)from;
        columns[1] = *(const uint4 *)(from + 64);
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

} // namespace ln

#endif
