/* Products of few tokens for compute capability 8.0 and newer: each weight is read once, and the memory decides.
 *
 * As many blocks as multiprocessors stay: each has tiles of 16 rows that lie together, its warps have a range of
 * columns each, and a warp's weights come to a ring in shared memory that is its own, far ahead and across the ends of
 * rows. Weights are the same whatever ran before, so the ring is filled before x is waited for, while the kernel before
 * this one ends.
 *
 * The weights are the left operand, tokens the columns of the right one. Which columns a product adds up is free as
 * long as both operands agree, so a lane takes 8 columns that lie together from both sides. The warps' sums are added
 * in their order. Fewer tokens than the operand has are repeated, and what they give is dropped. bf16    products of 16
 * x 8 x 16, 8 tokens at once. codes   products of bytes of 16 x 8 x 32, which are exact. x is rounded to 16 bits a
 * block of 32 columns, x = step (256 high + low), and a token has two columns, one a digit: 4 tokens at once. Codes of
 * Q4_0 are multiplied as 16 (code - 8), which a mask makes of them. An integer comes as the last bits of a float32
 *             near 1.5 2^23, where the sums began.
 *
 * Invariant: a commit of copies is a stage, also where there was nothing left to copy, so that the oldest of STAGES
 * commits is the stage that is read next. */
#include <string.h>

#include "kernel/cuda/digits.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/product_activation.cuh"
#include "kernel/cuda/product_table.h"
#include "kernel/cuda/row_work.cuh"
#include "kernel/cuda/vectors.cuh"
#include "kernel/cuda/weight.cuh"

namespace ln {

/* Something of each tile of rows; a block asks for no more than `most` bytes of its share of them. */
struct few_ahead {
    const char *from;
    int rows, bytes, most;
};

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
    few_ahead ahead[2 * LN_CUDA_PRODUCT_MOST]; /* codes and scales of weights that come next */
    int ahead_count;
    few_finish finish; /* given NULL: x is there */
};

/* ---- weights of a tile, as operands ---- */

/* A stage has `chunk` tiles of 64 columns: their words, a piece of 16 bytes a lane, then their scales. */
template <int KIND> struct tile;

#ifndef LN_FEW_AHEAD
#define LN_FEW_AHEAD (20 << 20)
#endif
#ifndef LN_FEW_BF16
#define LN_FEW_BF16 8, 1
#define LN_FEW_Q8 8, 2
#define LN_FEW_Q4 16, 2
#endif
template <int WARPS, int CHUNK> struct few_shape {
    static constexpr int warps = WARPS, chunk = CHUNK, threads = 32 * WARPS;
};
/* Stages of a ring, where a block has room for them and where it has not. */
enum { FEW_DEEP = 8, FEW_SHALLOW = 4 };
template <int KIND> static constexpr int few_threads = few_shape<LN_FEW_Q4>::threads;
template <> constexpr int few_threads<LN_CUDA_WEIGHT_Q8_0> = few_shape<LN_FEW_Q8>::threads;
template <> constexpr int few_threads<LN_CUDA_WEIGHT_BF16> = few_shape<LN_FEW_BF16>::threads;

template <> struct tile<LN_CUDA_WEIGHT_BF16> {
    using shape = few_shape<LN_FEW_BF16>;
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
    using shape = few_shape<LN_FEW_Q8>;
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
    using shape = few_shape<LN_FEW_Q4>;
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
    uint64_t policy;

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
                        copy_piece_once(stage + (i * words + w) * 512 + lane * 16,
                                        from + i * tile<KIND>::next + tile<KIND>::step(run.tiles, w), true, policy);
            if (few_codes<KIND> && lane < 4 * chunk) /* zeros where there is no tile */
                copy_piece_once(stage + chunk * words * 512 + lane * 16, scales + (m ? run.between[1] : 0),
                                at + lane / 4 < end, policy);
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

/* What the next product begins with: blocks have a share each, the lanes of a warp ask in turn. */
static __device__ __forceinline__ void ask_ahead(const few_run &run) {
    enum { PIECE = 2048 };
#pragma unroll 1
    for (int m = 0; m < run.ahead_count; m++) {
        const few_ahead &ahead = run.ahead[m];
        const int first = (int)((int64_t)blockIdx.x * ahead.rows / gridDim.x),
                  last = (int)((int64_t)(blockIdx.x + 1) * ahead.rows / gridDim.x);
        const char *from = ahead.from + (int64_t)first * ahead.bytes;
        const int64_t all = (int64_t)(last - first) * ahead.bytes;
        const int bytes = all < ahead.most ? (int)all : ahead.most;
#pragma unroll 1
        for (int i = (int)threadIdx.x % 32 * PIECE; i < bytes; i += 32 * PIECE)
            prefetch_row(from + i, min(PIECE, bytes - i));
    }
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

/* ---- x of one token ---- */

/* Code that runs once a block is kept short: between two uses of a kernel other kernels' code has taken its place in
 * the caches, and instructions are waited for like data. */

/* Eight columns, to be multiplied. */
template <int KIND>
static __device__ __forceinline__ void one_give(const few_run &run, char *room, int column, const float (&x)[8],
                                                bool inside) {
    if constexpr (few_codes<KIND>)
        split(x, column, room, room + run.x_step, (float *)(room + 2 * run.x_step), inside);
    else if (inside)
        store_bf16((__nv_bfloat16 *)room + column, x);
}

template <int KIND> static __device__ __forceinline__ void one_copy(const few_run &run, char *room) {
    constexpr int threads = few_threads<KIND>, at_once = 4;
    const int pieces = run.tiles * 8, thread = threadIdx.x;
    uint4 word[at_once];
#pragma unroll
    for (int k = 0; k < at_once; k++)
        if (thread + k * threads < pieces) word[k] = __ldcg((const uint4 *)run.x + thread + k * threads);
#pragma unroll 1
    for (int i = thread; i - thread < pieces; i += threads) {
        float x[8];
        widen(x, word[0]);
#pragma unroll
        for (int k = 1; k < at_once; k++) word[k - 1] = word[k];
        if (i + at_once * threads < pieces) word[at_once - 1] = __ldcg((const uint4 *)run.x + i + at_once * threads);
        one_give<KIND>(run, room, i * 8, x, i < pieces);
    }
}

/* The block's room for rows: the finished one, then the norm's weights. */
template <int KIND> static __device__ __forceinline__ void one_load_norm(const few_run &run, float *rows) {
    const int pieces = run.tiles * 16;
    for (int i = threadIdx.x; i < pieces; i += few_threads<KIND>)
        ((float4 *)rows)[pieces + i] = ((const float4 *)run.finish.norm)[i];
}
template <int KIND>
static __device__ __forceinline__ void one_finish(const few_run &run, char *room, float *rows, float *sums) {
    constexpr int threads = few_threads<KIND>;
    const few_finish &finish = run.finish;
    const int pieces = run.tiles * 8, thread = threadIdx.x;
    float squares = 0;
#pragma unroll 1
    for (int i = thread; i < pieces; i += threads)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float4 x = __ldcg((const float4 *)finish.x + 2 * i + k),
                         given = __ldcg((const float4 *)finish.given + 2 * i + k);
            const float4 row =
                make_float4(finish.keep * x.x + finish.add * given.x, finish.keep * x.y + finish.add * given.y,
                            finish.keep * x.z + finish.add * given.z, finish.keep * x.w + finish.add * given.w);
            squares += row.x * row.x + row.y * row.y + row.z * row.z + row.w * row.w;
            ((float4 *)rows)[2 * i + k] = row;
            if (blockIdx.x == 0) ((float4 *)finish.finished)[2 * i + k] = row;
        }
    const float factor = 1.0f / sqrtf(block_sum(squares, sums) / (float)(pieces * 8) + finish.epsilon);
#pragma unroll 1
    for (int i = thread; i - thread < pieces; i += threads) {
        float x[8] = {}, norm[8] = {};
        if (i < pieces) {
            load_floats(x, rows + 8 * i);
            load_floats(norm, rows + 8 * (pieces + i));
        }
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] *= factor * norm[k];
        if (finish.h && blockIdx.x == 0 && i < pieces) store_bf16(finish.h + 8 * i, x);
        one_give<KIND>(run, room, i * 8, x, i < pieces);
    }
}

/* x of the token in shared memory. */
template <int KIND> static __device__ __forceinline__ few_x one_take(const few_run &run, char *room, float *sums) {
    float *steps = (float *)(room + 2 * run.x_step), *rows = (float *)(room + run.x_bytes) - run.tiles * 128;
    if (run.finish.given) one_load_norm<KIND>(run, rows);
    /* Tiles are taken by twos: the one after the last is worth nothing. */
    if (few_codes<KIND> && threadIdx.x < 2) steps[run.tiles * 2 + threadIdx.x] = 0;
    wait_for_previous();
    if (run.finish.given)
        one_finish<KIND>(run, room, rows, sums);
    else
        one_copy<KIND>(run, room);
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

/* One token and codes: of 8 columns of the right operand it has two, so that each of four blocks of 32 columns takes
 * two of its own. Their sums lie in one operand, and lane c of four has those of block c: what is done to them is done
 * once for two tiles. */
template <int KIND> static __device__ __forceinline__ uint32_t read_scale(const char *stage, int i) {
    const int lane = threadIdx.x % 32;
    return *(const uint32_t *)(stage + tile<KIND>::shape::chunk * tile<KIND>::words * 512 + (i + lane % 4 / 2) * 64 +
                               lane / 4 * 8 + lane % 2 * 4);
}
/* What a lane has of x, from the first tile on; it is in shared memory. */
struct few_single {
    const char *digits;
    const float *steps;
    uint32_t mask[4]; /* all bits of the block whose digits the lane has */
};
static __device__ __forceinline__ few_single single_of(const few_run &run, const char *room) {
    const int lane = threadIdx.x % 32;
    few_single x = {room + lane / 4 % 2 * run.x_step + lane / 16 * 64 + lane % 4 * 16 + lane / 8 % 2 * 8,
                    (const float *)(room + 2 * run.x_step) + lane % 4,
                    {}};
#pragma unroll
    for (int i = 0; i < 4; i++) x.mask[i] = lane / 8 == i ? ~0u : 0;
    return x;
}
template <int KIND>
static __device__ __forceinline__ void add_pair(const few_single &x, const tile<KIND> &first, const tile<KIND> &second,
                                                uint32_t scales, int at, float *sum) {
    const uint2 digits = *(const uint2 *)(x.digits + at * 64);
    const float step = x.steps[at * 2], middle = 12582912;
    int block[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t right[2] = {digits.x & x.mask[i], digits.y & x.mask[i]};
        uint32_t left[4];
        (i < 2 ? first : second).get(i % 2, left);
        add_product_bytes(block, left, right);
    }
    const float2 scale = scales_of(scales);
    const float high = __int_as_float(block[0]) - middle, low = __int_as_float(block[1]) - middle;
    const float high8 = __int_as_float(block[2]) - middle, low8 = __int_as_float(block[3]) - middle;
    sum[0] += step * scale.x * (256 * high + low);
    sum[1] += step * scale.y * (256 * high8 + low8);
}

/* ---- sums ---- */

/* GROUPS of tokens, or 0: one token. */
template <int KIND, int GROUPS> static constexpr int few_sums = GROUPS ? GROUPS *group<KIND>::sums : group<KIND>::sums;

/* Those of all warps: [tile of rows][matrix][warp][token][row]. */
template <int KIND, int GROUPS>
static __device__ __forceinline__ void keep_sums(const few_run &run, float *to,
                                                 const float (&sum)[few_sums<KIND, GROUPS>]) {
    const int lane = threadIdx.x % 32;
    if constexpr (GROUPS == 0 && few_codes<KIND>) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float all = sum[i];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            if (lane % 4 == 0) to[lane / 4 + 8 * i] = all;
        }
    } else {
#pragma unroll
        for (int n = 0; n < (GROUPS ? GROUPS : 1); n++)
#pragma unroll
            for (int i = 0; i < group<KIND>::sums; i++) {
                const int token = n * group<KIND>::tokens + group<KIND>::token_of(i, lane);
                if (token < run.tokens) to[token * 16 + group<KIND>::row_of(i, lane)] = sum[n * group<KIND>::sums + i];
            }
    }
}
template <int KIND> static __device__ __forceinline__ float total_of(const float *sums, int outputs) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < tile<KIND>::shape::warps; warp++) total += sums[warp * outputs];
    if constexpr (few_codes<KIND>) total *= tile<KIND>::unit;
    return total;
}

/* Results of `count` tiles of rows from row_tile on; all threads. */
template <int KIND, int MATRICES>
static __device__ __forceinline__ void give_rows(const few_run &run, const float *sums, int row_tile, int count) {
    const int outputs = run.tokens * 16, stride = tile<KIND>::shape::warps * outputs;
    for (int i = threadIdx.x; i < count * outputs; i += blockDim.x) {
        const int slot = i / outputs, within = i % outputs, token = within / 16;
        const few_place place = few_locate(run, row_tile + slot);
        const int64_t row = (int64_t)place.row_tile * 16 + within % 16;
        const float *from = sums + slot * MATRICES * stride + within;
        if (row >= run.weight[place.matrix].rows) continue;
        const float total = total_of<KIND>(from, outputs);
        if constexpr (MATRICES == 2) {
            const float up = total_of<KIND>(from + stride, outputs);
            run.given[token * run.given_stride + row] =
                __float2bfloat16(activate(run.activation, run.gate_scale * total) * up);
        } else {
            run.y[place.matrix][token * run.stride[place.matrix] + row] = total;
        }
    }
}

/* The warp's columns of a tile of rows. */
template <int KIND, int GROUPS, int MATRICES>
static __device__ __forceinline__ void add_row(const few_run &run, const few_x &x, const few_single &single,
                                               few_stream<KIND, MATRICES> &next, char *ring, int *stage,
                                               float (&sum)[MATRICES][few_sums<KIND, GROUPS>]) {
    using shape = typename tile<KIND>::shape;
    const int lane = threadIdx.x % 32;
    for (int at = next.first; at < next.end; at += shape::chunk) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            tile<KIND> part[shape::chunk];
            char *from = ring + *stage;
            if (run.stages == FEW_DEEP)
                copies_wait<FEW_DEEP - 1>();
            else
                copies_wait<FEW_SHALLOW - 1>();
            __syncwarp(); /* other lanes' copies of scales too */
#pragma unroll
            for (int i = 0; i < shape::chunk; i++) read_tile<KIND>(part[i], from, i);
            uint32_t scale[shape::chunk / 2 + 1];
            if constexpr (GROUPS == 0 && few_codes<KIND>)
#pragma unroll
                for (int i = 0; i < shape::chunk / 2; i++) scale[i] = read_scale<KIND>(from, 2 * i);
            __syncwarp();
            next.fetch(run, m, from);
            if ((*stage += few_stage<KIND>) == run.stages * few_stage<KIND>) *stage = 0;
            if constexpr (GROUPS == 0 && few_codes<KIND>) {
#pragma unroll
                for (int i = 0; i < shape::chunk; i += 2) {
                    if (i > 0 && at + i >= next.end) break;
                    add_pair<KIND>(single, part[i], part[i + 1], scale[i / 2], at + i, sum[m]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < shape::chunk; i++) {
                    if (i > 0 && at + i >= next.end) break;
#pragma unroll
                    for (int n = 0; n < (GROUPS ? GROUPS : 1); n++) {
                        group<KIND> columns;
                        columns.load(run, x, n * group<KIND>::tokens, at + i, lane);
                        columns.add(part[i], sum[m] + n * group<KIND>::sums);
                    }
                }
            }
        }
        next.advance(run);
    }
}

template <int KIND, int GROUPS, int MATRICES>
static __global__ void __launch_bounds__(few_threads<KIND>, 1) product_few(const __grid_constant__ few_run run) {
    using shape = typename tile<KIND>::shape;
    static_assert(FEW_DEEP % MATRICES == 0 && FEW_SHALLOW % MATRICES == 0, "a stage is always of the same matrix");
    const int warp = threadIdx.x / 32;
    char *ring = block_memory() + warp * run.stages * few_stage<KIND>;
    char *x_room = block_memory() + shape::warps * run.stages * few_stage<KIND>;
    const int first = (int)((int64_t)blockIdx.x * run.rows / gridDim.x),
              last = (int)((int64_t)(blockIdx.x + 1) * run.rows / gridDim.x);
    few_stream<KIND, MATRICES> next = {};
    let_next_start();
    next.row = first, next.last = last, next.policy = policy_once();
    const int chunks = (run.tiles + shape::chunk - 1) / shape::chunk;
    next.first = warp * chunks / shape::warps * shape::chunk;
    next.end = min((warp + 1) * chunks / shape::warps * shape::chunk, run.tiles);
    if (next.first == next.end) next.row = last;
    next.open(run);
#pragma unroll 1
    for (int s = 0; s < run.stages; s += MATRICES) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++) next.fetch(run, m, ring + (s + m) * few_stage<KIND>);
        if (next.row < last) next.advance(run);
    }
    bool asks = run.ahead_count && warp == 0; /* when its own weights are all asked for */
    if (asks && next.row >= last) ask_ahead(run), asks = false;
    const int outputs = run.tokens * 16;
    float *sums = (float *)(x_room + run.x_bytes);
    few_x x;
    if constexpr (GROUPS == 0) {
        x = one_take<KIND>(run, x_room, sums);
    } else {
        wait_for_previous();
        x = few_take_x<KIND>(run, x_room);
    }
    few_single single = {};
    if (GROUPS == 0 && few_codes<KIND>) single = single_of(run, x_room);
    int stage = 0, slot = 0;
    for (int row = first; row < last; row++) {
        float sum[MATRICES][few_sums<KIND, GROUPS>] = {};
        add_row<KIND, GROUPS, MATRICES>(run, x, single, next, ring, &stage, sum);
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            keep_sums<KIND, GROUPS>(run, sums + ((slot * MATRICES + m) * shape::warps + warp) * outputs, sum[m]);
        if (asks && next.row >= last) ask_ahead(run), asks = false;
        if (++slot < run.slots && row + 1 < last) continue;
        __syncthreads();
        give_rows<KIND, MATRICES>(run, sums, row + 1 - slot, slot);
        if (row + 1 < last) __syncthreads(); /* the sums' room is used again */
        slot = 0;
    }
    copies_wait<0>();
}

/* ---- starting ---- */

struct few_room {
    int bytes, blocks; /* of shared memory; of the grid */
};

template <int KIND, int GROUPS>
static ln_cuda_code start_groups(const few_run &run, const few_room &room, void *stream) {
    const dim3 grid((unsigned)room.blocks), block(few_threads<KIND>);
    if (run.gated) return launch_early(product_few<KIND, GROUPS, 2>, grid, block, room.bytes, stream, run);
    return launch_early(product_few<KIND, GROUPS, 1>, grid, block, room.bytes, stream, run);
}

/* More than half of what a multiprocessor of compute capability 9.0 has, so that each has one block: a kernel that
 * starts while another ends may else find two places on some and none on others. */
enum { FEW_ALONE = 116 << 10, FEW_SUMS = 8 << 10, FEW_LEAST = 4 << 10 };

/* Where x and sums go, with a ring as deep as there is room for. false: x is read from memory. */
template <int KIND> static bool few_lay_out(few_run *run, const ln_cuda_device *device, few_room *room) {
    const int64_t limit = device->block_shared_bytes, tiles = run->tiles;
    const int64_t rows = few_codes<KIND> ? 2 * run->tokens : run->tokens, row = tiles * (few_codes<KIND> ? 64 : 128);
    const int64_t step = row % 128 ? row : row + 64;                                           /* meets all banks */
    const int64_t plain = rows * step + (few_codes<KIND> ? (run->tokens * tiles + 1) * 8 : 0); /* and a tile of zeros */
    const int64_t x = (plain + 15) / 16 * 16 + (run->finish.given ? tiles * 512 : 0);
    const int64_t slot = (1 + run->gated) * (int64_t)tile<KIND>::shape::warps * run->tokens * 64;
    const int64_t least = slot > FEW_LEAST ? slot : FEW_LEAST, stage = tile<KIND>::shape::warps * few_stage<KIND>;
    const bool deep = FEW_DEEP * stage + x + least <= limit;
    run->x_step = (int)step;
    run->x_here = deep || FEW_SHALLOW * stage + x + least <= limit;
    run->x_bytes = run->x_here ? (int)x : 0;
    run->stages = deep || (!run->x_here && FEW_DEEP * stage + least <= limit) ? FEW_DEEP : FEW_SHALLOW;
    room->blocks = run->rows < device->multiprocessors ? run->rows : device->multiprocessors;
    const int64_t used = run->stages * stage + run->x_bytes, left = limit - used;
    const int64_t most = (run->rows + room->blocks - 1) / room->blocks,
                  fit = (left < FEW_SUMS ? left : FEW_SUMS) / slot;
    run->slots = (int)(fit < 1 ? 1 : fit < most ? fit : most);
    room->bytes = (int)(used + run->slots * slot);
    if (room->bytes < FEW_ALONE && FEW_ALONE <= limit) room->bytes = FEW_ALONE;
    return run->x_here;
}

/* x in digits, where it does not fit into a block's memory. */
static __global__ void split_columns(const __grid_constant__ few_run run) {
    let_next_start();
    wait_for_previous();
    split_rows(run, (char *)run.digits.high, run.tiles * 64, run.digits.step,
               (int)(blockIdx.x * blockDim.x + threadIdx.x), (int)(gridDim.x * blockDim.x));
}

template <int KIND>
static ln_cuda_code start_few(few_run run, const ln_cuda_device *device, void *workspace, void *stream) {
    const int groups = (run.tokens + group<KIND>::tokens - 1) / group<KIND>::tokens;
    few_room room;
    const bool here = few_lay_out<KIND>(&run, device, &room);
    if (run.finish.given && !here) return LN_CUDA_UNSUPPORTED;
    if (run.tokens == 1 && here) return start_groups<KIND, 0>(run, room, stream);
    if (few_codes<KIND> && !here && !run.digits.high) {
        run.digits.high = workspace;
        run.digits.step = (float *)((char *)workspace + (int64_t)run.tokens * run.tiles * 128);
        const unsigned blocks = ((unsigned)run.tiles * 8 * run.tokens + 255) / 256;
        const ln_cuda_code code = launch_early(split_columns, dim3(blocks), dim3(256), 0, stream, run);
        if (code) return code;
    }
    return groups <= 1   ? start_groups<KIND, 1>(run, room, stream)
           : groups <= 2 ? start_groups<KIND, 2>(run, room, stream)
                         : start_groups < KIND,
           few_codes<KIND> ? 4 : 2 > (run, room, stream);
}

} // namespace ln

using namespace ln;

/* Bytes that all blocks ask for together: about what memory brings while attention runs, and half of the second cache.
 */
enum { FEW_AHEAD = LN_FEW_AHEAD };

static void look_ahead(few_run *run, const ln_cuda_product *product, int blocks) {
    int64_t all = 0;
    for (int m = 0; m < product->ahead_count; m++) {
        const ln_cuda_weight *weight = &product->ahead[m];
        const int tiles = (int)((weight->columns + 63) / 64), rows = (int)((weight->rows + 15) / 16);
        const int bytes = weight->kind == LN_CUDA_WEIGHT_Q4_0 ? 512 : weight->kind == LN_CUDA_WEIGHT_Q8_0 ? 1024 : 2048;
        run->ahead[run->ahead_count++] = {(const char *)weight->codes, rows, tiles * bytes, 0};
        if (weight->kind != LN_CUDA_WEIGHT_BF16)
            run->ahead[run->ahead_count++] = {(const char *)weight->scales, rows, tiles * 64, 0};
    }
    for (int m = 0; m < run->ahead_count; m++) all += (int64_t)run->ahead[m].rows * run->ahead[m].bytes;
    for (int m = 0; m < run->ahead_count; m++) {
        few_ahead *ahead = &run->ahead[m];
        const double each = (double)ahead->rows / blocks * ahead->bytes;
        ahead->most = all <= FEW_AHEAD
                          ? ahead->rows * (int64_t)ahead->bytes > INT32_MAX ? INT32_MAX : ahead->rows * ahead->bytes
                          : (int)(each * FEW_AHEAD / (double)all) / 16 * 16;
    }
}

bool ln_cuda_product_finishes(const ln_cuda_product *product, const ln_cuda_device *device, const ln_cuda_rows *rows) {
    const float one = 1;
    few_run run = {};
    few_room room;
    run.tokens = 1, run.rows = 1 << 20, run.tiles = (int)((rows->width + 63) / 64), run.gated = product->gated;
    run.finish.given = &one;
    if (product->tokens != 1 || rows->tokens != 1 || rows->width % 64 || rows->width > 1 << 16 ||
        product->weight[0].columns != rows->width || !rows->next.weight || rows->next.bias || rows->bias ||
        rows->post.weight || rows->from_norm)
        return false;
    return product->weight[0].kind == LN_CUDA_WEIGHT_BF16   ? few_lay_out<LN_CUDA_WEIGHT_BF16>(&run, device, &room)
           : product->weight[0].kind == LN_CUDA_WEIGHT_Q8_0 ? few_lay_out<LN_CUDA_WEIGHT_Q8_0>(&run, device, &room)
                                                            : few_lay_out<LN_CUDA_WEIGHT_Q4_0>(&run, device, &room);
}

ln_cuda_code ln_cuda_product_few(const ln_cuda_product *product, const ln_cuda_device *device, void *workspace,
                                 void *stream) {
    few_run run = {};
    for (int m = 0; m < product->count; m++) {
        run.weight[m] = product->weight[m];
        run.y[m] = product->y[m];
        run.stride[m] = product->stride[m];
        run.row_tiles[m] = (int)((product->weight[m].rows + 15) / 16);
        if (m == 0 || !product->gated) run.rows += run.row_tiles[m];
    }
    if (product->gated) {
        run.between[0] = (const char *)run.weight[1].codes - (const char *)run.weight[0].codes;
        run.between[1] = (const char *)run.weight[1].scales - (const char *)run.weight[0].scales;
    }
    run.x = (const __nv_bfloat16 *)product->x;
    run.given = (__nv_bfloat16 *)product->given;
    run.x_stride = product->x_stride;
    run.given_stride = product->given_stride;
    run.tokens = (int)product->tokens;
    run.tiles = (int)((product->weight[0].columns + 63) / 64);
    run.gated = product->gated;
    run.activation = product->activation;
    run.gate_scale = product->gate_scale;
    run.digits = product->digits;
    if (product->rows) {
        const ln_cuda_rows *rows = product->rows;
        run.finish = {rows->x,       rows->given, rows->next.weight,      rows->finished, (__nv_bfloat16 *)rows->h,
                      rows->epsilon, rows->keep,  rows->add * rows->scale};
    }
    look_ahead(&run, product, device->multiprocessors);
    switch (product->weight[0].kind) {
    case LN_CUDA_WEIGHT_BF16:
        return start_few<LN_CUDA_WEIGHT_BF16>(run, device, workspace, stream);
    case LN_CUDA_WEIGHT_Q8_0:
        return start_few<LN_CUDA_WEIGHT_Q8_0>(run, device, workspace, stream);
    case LN_CUDA_WEIGHT_Q4_0:
        return start_few<LN_CUDA_WEIGHT_Q4_0>(run, device, workspace, stream);
    }
    return LN_CUDA_UNSUPPORTED;
}
