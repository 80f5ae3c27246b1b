/* Writing keys and values into pages, and reading them back, with the bits of the CPU: the codecs of number/format.c
 * (q8_0, q4_0, half precisions) and kernel/low_bits.c (q4, q2 by token), whose comments tell why they are so.
 *
 * Four lanes have a block of 32 values, lane l the values 4 i + l: sums over a block are then added in the order of the
 * CPU's vectors, (s0 + s1) + (s2 + s3) of the sums of lanes. Every product and sum is rounded by itself. */
#ifndef LN_KERNEL_CUDA_DECODE_PAGES_CUH
#define LN_KERNEL_CUDA_DECODE_PAGES_CUH

#include "kernel/cuda/decode_codes.cuh"
#include "kernel/cuda/decode_work.cuh"

namespace ln {

static __device__ __forceinline__ float times(float a, float b) {
    return __fmul_rn(a, b);
}
static __device__ __forceinline__ float plus(float a, float b) {
    return __fadd_rn(a, b);
}
static __device__ __forceinline__ float divided(float a, float b) {
    return __fdiv_rn(a, b);
}

/* To nearest even; a NaN keeps its upper bits. */
static __device__ __forceinline__ uint32_t bf16_bits(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 64;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
static __device__ __forceinline__ uint32_t f16_bits(float value) {
    const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u | (magnitude >> 13 & 0x3ffu);
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < 0x38800000u) return sign | (__float_as_uint(plus(__uint_as_float(magnitude), 0.5f)) - 0x3f000000u);
    return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
}

/* Over the four lanes of a block. */
static __device__ __forceinline__ float block_sum(float x) {
    x = plus(x, __shfl_xor_sync(~0u, x, 1));
    return plus(x, __shfl_xor_sync(~0u, x, 2));
}
static __device__ __forceinline__ float block_most(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
static __device__ __forceinline__ bool block_finite(const float (&x)[8]) {
    float nothing = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) nothing = plus(nothing, times(0.0f, x[i]));
    return block_sum(nothing) == 0;
}
/* 0 where there is none. */
static __device__ __forceinline__ float safe_reciprocal(float scale) {
    const float inverse = scale == 0 ? 0.0f : divided(1.0f, scale);
    return isinf(inverse) ? 0.0f : inverse;
}

/* ---- blocks with one scale; they return its bits ---- */

enum { HALF_NOT_A_NUMBER = 0x7e00, STEP_NOT_A_NUMBER = 0xffc0 };

static __device__ __forceinline__ uint32_t encode_q8_0(const float (&x)[8], uint32_t (&code)[8]) {
    const bool finite = block_finite(x);
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(x[i]));
    const float scale = divided(block_most(largest), 127.0f), inverse = safe_reciprocal(scale);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float q = finite ? times(x[i], inverse) : 0.0f, magnitude = fabsf(q);
        const int down = (int)magnitude, rounded = down + (plus(magnitude, -(float)down) >= 0.5f);
        code[i] = (uint32_t)(q < 0 ? -rounded : rounded) & 255u;
    }
    return finite ? f16_bits(scale) : (uint32_t)HALF_NOT_A_NUMBER;
}

/* The first value of the largest magnitude, with its sign, becomes -8. */
static __device__ __forceinline__ uint32_t encode_q4_0(const float (&x)[8], uint32_t (&code)[8]) {
    const bool finite = block_finite(x);
    float largest = 0;
    int place = 32;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i], place = 4 * i + (int)threadIdx.x % 4;
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(~0u, largest, step);
        const int there = __shfl_xor_sync(~0u, place, step);
        const bool take = fabsf(other) > fabsf(largest) || (fabsf(other) == fabsf(largest) && there < place);
        largest = take ? other : largest, place = take ? there : place;
    }
    const float scale = divided(largest, -8.0f), inverse = safe_reciprocal(scale);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int up = (int)plus(finite ? times(x[i], inverse) : 0.0f, 8.5f);
        code[i] = (uint32_t)min(max(up, 0), 15);
    }
    return finite ? f16_bits(scale) : (uint32_t)HALF_NOT_A_NUMBER;
}

/* ---- blocks with a step and a zero: the best of some ranges ---- */

template <int BITS> struct block_search {
    static constexpr int top = (1 << BITS) - 1, tries = BITS == 2 ? 10 : 6, refinements = BITS == 2 ? 3 : 2;
    static constexpr float narrower = BITS == 2 ? 0.06f : 0.035f, unit = (float)top / 63;
    float x[8], step, minimum, error;
    uint32_t word;

    __device__ __forceinline__ float code_of(float value, float inverse, float from) const {
        const float c = times(plus(value, -from), inverse), magic = 12582912.0f;
        return plus(plus(fminf(c > 0 ? c : 0.0f, (float)top), magic), -magic);
    }
    static __device__ __forceinline__ float inverse_of(float step) { return step > 0 ? divided(1.0f, step) : 0.0f; }
    __device__ __forceinline__ float error_of(float step, float minimum) const {
        const float inverse = inverse_of(step);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float off = plus(plus(times(code_of(x[i], inverse, minimum), step), minimum), -x[i]);
            sum = plus(sum, times(off, off));
        }
        return block_sum(sum);
    }
    /* All lanes of a warp take part; `wanted` is the same in a block. */
    __device__ __forceinline__ void try_range(float low, float high, bool wanted) {
        const uint32_t half = f16_bits(divided(plus(high, -low), (float)top)), most = 0x7c00u - 32;
        const uint32_t stored = min((half + 16) / 32 * 32, most);
        const float next = half_float(stored), zero = next > 0 ? divided(divided(-low, next), unit) : 0.0f;
        const int nearest = (int)plus(zero > 0 ? zero < 63 ? zero : 63.0f : 0.0f, 0.5f);
        const float from = -times(next, times((float)nearest, unit)), worse = error_of(next, from);
        if (!wanted || !(worse < error)) return;
        step = next, minimum = from, error = worse, word = stored >> 5 << 6 | (uint32_t)nearest;
    }
    __device__ __forceinline__ void refine() {
        const float inverse = inverse_of(step);
        float c1 = 0, c2 = 0, x1 = 0, cx = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float c = code_of(x[i], inverse, minimum);
            c1 = plus(c1, c), c2 = plus(c2, times(c, c));
            x1 = plus(x1, x[i]), cx = plus(cx, times(c, x[i]));
        }
        const float n = 32, c = block_sum(c1), all = block_sum(x1),
                    spread = plus(times(n, block_sum(c2)), -times(c, c)), both = block_sum(cx);
        const float better = divided(plus(times(n, both), -times(c, all)), spread),
                    low = divided(plus(all, -times(better, c)), n);
        try_range(low, plus(low, times(better, (float)top)), spread > 0 && better > 0);
    }
};

template <int BITS> static __device__ __forceinline__ uint32_t encode_low(const float (&x)[8], uint32_t (&code)[8]) {
    block_search<BITS> search;
    float low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        low = fminf(low, x[i]), high = fmaxf(high, x[i]);
        search.x[i] = fminf(fmaxf(x[i], -65000.0f), 65000.0f);
    }
    low = fmaxf(-block_most(-low), -65000.0f), high = fminf(block_most(high), 65000.0f);
    low = plus(low, 0.0f), high = plus(high, 0.0f); /* no -0, whose step would be negative */
    search.step = search.minimum = 0, search.error = CUDART_INF_F, search.word = 0;
#pragma unroll 1
    for (int i = 0; i < block_search<BITS>::tries; i++) {
        const float factor = plus(1.0f, -times(block_search<BITS>::narrower, (float)i));
        search.try_range(times(factor, low), times(factor, high), true);
    }
#pragma unroll 1
    for (int i = 0; i < block_search<BITS>::refinements; i++) search.refine();
    const bool finite = block_finite(x);
    const float inverse = block_search<BITS>::inverse_of(search.step);
#pragma unroll
    for (int i = 0; i < 8; i++) code[i] = finite ? (uint32_t)search.code_of(search.x[i], inverse, search.minimum) : 0u;
    return finite ? search.word : (uint32_t)STEP_NOT_A_NUMBER;
}

template <int FORMAT>
static __device__ __forceinline__ uint32_t encode_block(const float (&x)[8], uint32_t (&code)[8]) {
    if constexpr (FORMAT == LN_CUDA_PAGE_Q8_0)
        return encode_q8_0(x, code);
    else if constexpr (FORMAT == LN_CUDA_PAGE_Q4_0)
        return encode_q4_0(x, code);
    else
        return encode_low<page_codes<FORMAT>::bits>(x, code);
}

/* ---- pages ---- */

/* Keys or values, which of them are written or read. */
struct page_side {
    ln_cuda_page_part pages;
    ln_cuda_tensor rows;
    int size, element, values; /* element: of rows */
};
struct page_run {
    page_side side[2];
    const int32_t *page_table, *lengths;
    int64_t table_stride;
    int page_shift, heads, sequences;
    int tokens, first; /* of a sequence; first: of reading, of sequence `sequences` */
};

static __device__ __forceinline__ char *page_place(const page_run &run, const page_side &side, int sequence, int head,
                                                   int token, int bits) {
    const int page =
        run.page_table ? run.page_table[sequence * run.table_stride + (token >> run.page_shift)] : sequence;
    const int inside = token & ((1 << run.page_shift) - 1);
    const int64_t at = bits == 16
                           ? inside * side.pages.token_stride
                           : (int64_t)(inside / LN_CUDA_TILE) * (LN_CUDA_TILE * side.size * bits / 8 + side.size);
    return (char *)side.pages.data + page * side.pages.page_stride + head * side.pages.head_stride + at;
}

/* Lane l of a block stores values 8 l .. 8 l + 7, which it finds in `row`. */
template <int FORMAT>
static __device__ __forceinline__ void store_codes(char *tile, const page_side &side, int token, int block, int l,
                                                   const uint8_t *row) {
    constexpr int bits = page_codes<FORMAT>::bits;
    const ln_cuda_page_format format = (ln_cuda_page_format)FORMAT;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        uint32_t word = 0;
        int bit;
#pragma unroll
        for (int k = 0; k < 4; k++) word |= (uint32_t)row[8 * l + i + k] << bits * k;
        char *to = tile + ln_cuda_code_place(format, side.values, side.size, token, 32 * block + 8 * l + i, &bit);
        if constexpr (bits == 8) *(uint32_t *)to = word;
        if constexpr (bits == 4) *(uint16_t *)to = (uint16_t)word;
        if constexpr (bits == 2) *(uint8_t *)to = (uint8_t)word;
    }
}

static __device__ __forceinline__ float row_value(const page_side &side, int64_t at) {
    if (side.element == LN_CUDA_ELEMENT_FLOAT32) return ((const float *)side.rows.data)[at];
    const uint32_t bits = ((const uint16_t *)side.rows.data)[at];
    return side.element == LN_CUDA_ELEMENT_BF16 ? __uint_as_float(bits << 16) : half_float(bits);
}

enum { PAGE_THREADS = 128 };

/* Four threads for each block of 32 values of (sequence, token, head, keys then values). */
template <int FORMAT>
static __global__ void __launch_bounds__(PAGE_THREADS) append_rows(const __grid_constant__ page_run run) {
    __shared__ uint8_t rows[PAGE_THREADS / 4][32];
    const int key_blocks = run.side[0].size / 32, blocks = key_blocks + run.side[1].size / 32;
    const int64_t unit = ((int64_t)blockIdx.x * PAGE_THREADS + threadIdx.x) / 4;
    const bool inside = unit < (int64_t)run.sequences * run.tokens * run.heads * blocks;
    const int block0 = (int)(unit % blocks), head = (int)(unit / blocks % run.heads), l = threadIdx.x % 4;
    const int row = inside ? (int)(unit / blocks / run.heads) : 0, sequence = row / run.tokens;
    const page_side &side = run.side[block0 >= key_blocks];
    const int block = block0 >= key_blocks ? block0 - key_blocks : block0;
    const int token = run.lengths[sequence] - run.tokens + row % run.tokens;
    const bool stored = inside && token >= 0;
    const int64_t from = row * side.rows.token_stride + head * side.rows.head_stride + 32 * block;
    char *to = stored ? page_place(run, side, sequence, head, token, page_codes<FORMAT>::bits) : NULL;
    if constexpr (page_codes<FORMAT>::plain) {
        if (!stored) return;
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float low = row_value(side, from + 8 * l + 2 * i), high = row_value(side, from + 8 * l + 2 * i + 1);
            word[i] = FORMAT == LN_CUDA_PAGE_F16 ? f16_bits(low) | f16_bits(high) << 16
                                                 : bf16_bits(low) | bf16_bits(high) << 16;
        }
        *(uint4 *)(to + (32 * block + 8 * l) * 2) = {word[0], word[1], word[2], word[3]};
    } else {
        float x[8];
        uint32_t code[8];
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = inside ? row_value(side, from + 4 * i + l) : 0.0f;
        const uint32_t scale = encode_block<FORMAT>(x, code);
#pragma unroll
        for (int i = 0; i < 8; i++) rows[threadIdx.x / 4][4 * i + l] = (uint8_t)code[i];
        __syncwarp();
        if (!stored) return;
        const int in_tile = token % LN_CUDA_TILE;
        store_codes<FORMAT>(to, side, in_tile, block, l, rows[threadIdx.x / 4]);
        if (l == 0)
            *(uint16_t *)(to + ln_cuda_scale_place((ln_cuda_page_format)FORMAT, side.values, side.size, in_tile,
                                                   block)) = (uint16_t)scale;
    }
}

/* As the CPU decodes it. */
template <int FORMAT> static __device__ __forceinline__ float decoded(uint32_t code, uint32_t scale) {
    const float step = step_of<FORMAT>(scale, 0);
    if constexpr (FORMAT == LN_CUDA_PAGE_Q8_0)
        return times(step, (float)(int8_t)code);
    else if constexpr (FORMAT == LN_CUDA_PAGE_Q4_0)
        return times(step, (float)((int)code - 8));
    else
        return plus(times(step, (float)code),
                    -times(step, times((float)(scale & 63u), block_search<page_codes<FORMAT>::bits>::unit)));
}

/* A thread for eight values of (token, head, keys then values) of one sequence. */
template <int FORMAT>
static __global__ void __launch_bounds__(PAGE_THREADS) unpack_rows(const __grid_constant__ page_run run) {
    constexpr int bits = page_codes<FORMAT>::bits;
    const int key_pieces = run.side[0].size / 8, pieces = key_pieces + run.side[1].size / 8;
    const int64_t unit = (int64_t)blockIdx.x * PAGE_THREADS + threadIdx.x;
    if (unit >= (int64_t)run.tokens * run.heads * pieces) return;
    const int piece0 = (int)(unit % pieces), head = (int)(unit / pieces % run.heads);
    const int row = (int)(unit / pieces / run.heads), token = run.first + row;
    const page_side &side = run.side[piece0 >= key_pieces];
    const int at = 8 * (piece0 >= key_pieces ? piece0 - key_pieces : piece0);
    const char *from = page_place(run, side, run.sequences, head, token, bits);
    float x[8];
    if constexpr (page_codes<FORMAT>::plain) {
        load_eight(x, from, at, FORMAT == LN_CUDA_PAGE_F16 ? LN_CUDA_ELEMENT_F16 : LN_CUDA_ELEMENT_BF16);
    } else {
        const ln_cuda_page_format format = (ln_cuda_page_format)FORMAT;
        const int in_tile = token % LN_CUDA_TILE;
        const uint32_t scale =
            *(const uint16_t *)(from + ln_cuda_scale_place(format, side.values, side.size, in_tile, at / 32));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int bit;
            const int place = ln_cuda_code_place(format, side.values, side.size, in_tile, at + i, &bit);
            x[i] = decoded<FORMAT>((uint32_t)(uint8_t)from[place] >> bit & ((1u << bits) - 1), scale);
        }
    }
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = bf16_bits(x[2 * i]) | bf16_bits(x[2 * i + 1]) << 16;
    *(uint4 *)((uint16_t *)side.rows.data + row * side.rows.token_stride + head * side.rows.head_stride +
               at) = {word[0], word[1], word[2], word[3]};
}

} // namespace ln

#endif
