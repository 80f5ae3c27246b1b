/* Owns: preparing activations, the dot kernels of the plain formats, and the exact ones of the block formats, with
 * AVX-512.
 *
 * W becomes float32 in registers, 64 values (plain formats) or 256 (blocks, unpack_avx512.h) at a time, and meets the
 * activations of all tokens there. A row and token has four accumulators of 16 lanes, vector i of the row going to the
 * accumulator i mod 4: the order is the same for any number of rows and tokens. */
#include <math.h>
#include <string.h>

#include "kernel/dot.h"
#include "kernel/x86/unpack_avx512.h"

/* ---- preparing ---- */

enum { PREPARED_AHEAD = 4096 /* bytes of activations asked for in advance: a prompt's come from memory */ };

static void prepare_f32(const float *x, int64_t columns, int64_t padded, void *row) {
    memcpy(row, x, (size_t)columns * 4);
    memset((float *)row + columns, 0, (size_t)(padded - columns) * 4);
}

/* The first `left` lanes of 16. */
LN_INLINE __mmask16 lanes(int64_t left) {
    return (__mmask16)(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1 : 0u);
}

static void prepare_bf16(const float *x, int64_t columns, int64_t padded, void *row) {
    uint16_t *to = row;
    for (int64_t i = 0; i < padded; i += 16) {
        _mm_prefetch((const char *)(x + i) + PREPARED_AHEAD, _MM_HINT_T0);
        const __m512 v = _mm512_maskz_loadu_ps(lanes(columns - i), x + i);
        const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
        const __m512i half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i result = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(64));
        _mm256_store_si256((__m256i *)(void *)(to + i), _mm512_cvtepi32_epi16(result));
    }
}

static void prepare_int8(const float *x, int64_t columns, int64_t padded, void *row) {
    int8_t *q = row;
    float *scale = (float *)(void *)((unsigned char *)row + padded);
    int32_t *sum = (int32_t *)(void *)((unsigned char *)row + padded + padded / 8);
    const __m512 most = _mm512_set1_ps(0x1.fffffep127f);
    for (int64_t i = 0; i < padded; i += 32) {
        _mm_prefetch((const char *)(x + i) + PREPARED_AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)(x + i) + PREPARED_AHEAD + 64, _MM_HINT_T0);
        const __m512 a = _mm512_maskz_loadu_ps(lanes(columns - i), x + i);
        const __m512 b = _mm512_maskz_loadu_ps(lanes(columns - i - 16), x + i + 16);
        const __m512 a_size = _mm512_abs_ps(a), b_size = _mm512_abs_ps(b);
        const bool finite =
            (_mm512_cmp_ps_mask(a_size, most, _CMP_LE_OQ) & _mm512_cmp_ps_mask(b_size, most, _CMP_LE_OQ)) == 0xffff;
        const float largest = _mm512_reduce_max_ps(_mm512_max_ps(a_size, b_size));
        const bool some = finite && largest >= LN_INT8_LEAST;
        const __m512 inverse = _mm512_set1_ps(some ? 127 / largest : 0);
        scale[i / 32] = !finite ? NAN : some ? largest / 127 : 0;
        const __mmask16 keep = some ? 0xffff : 0;
        const __m512i a_q = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(a, inverse));
        const __m512i b_q = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(b, inverse));
        _mm_store_si128((__m128i *)(void *)(q + i), _mm512_cvtepi32_epi8(a_q));
        _mm_store_si128((__m128i *)(void *)(q + i + 16), _mm512_cvtepi32_epi8(b_q));
        sum[i / 16] = _mm512_reduce_add_epi32(a_q);
        sum[i / 16 + 1] = _mm512_reduce_add_epi32(b_q);
    }
}

/* ---- plain formats ---- */

/* 16 values at p; `mask` of them where the row ends. */
typedef __m512 (*load16)(const unsigned char *p, __mmask16 mask);

LN_INLINE __m512 load_f32(const unsigned char *p, __mmask16 mask) {
    return mask == 0xffff ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask, p);
}
LN_INLINE __m256i load_words(const unsigned char *p, __mmask16 mask) {
    return mask == 0xffff ? _mm256_loadu_si256((const __m256i *)(const void *)p) : _mm256_maskz_loadu_epi16(mask, p);
}
LN_INLINE __m512 load_f16(const unsigned char *p, __mmask16 mask) {
    return _mm512_cvtph_ps(load_words(p, mask));
}
LN_INLINE __m512 load_bf16(const unsigned char *p, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p, mask)), 16));
}

typedef struct sums {
    __m512 part[4];
} sums;

LN_INLINE float total(sums y) {
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(y.part[0], y.part[1]), _mm512_add_ps(y.part[2], y.part[3])));
}

LN_INLINE const float *token_row(const ln_activation *x, int64_t token) {
    return (const float *)(const void *)(x->data + (uint64_t)token * x->row_bytes);
}

LN_INLINE void plain_rows(int64_t tokens, load16 load, int bytes, const unsigned char *weight, uint64_t row_bytes,
                          int64_t rows, const ln_activation *x, int64_t first, float *y, int64_t y_stride) {
    const int64_t whole = x->columns >> 6 << 6;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 64, p += 64 * bytes) {
            __m512 w[4];
            ln_dot_prefetch(p, 64 * bytes);
            for (int k = 0; k < 4; k++) w[k] = load(p + 16 * k * bytes, 0xffff);
            for (int64_t t = 0; t < tokens; t++)
                for (int k = 0; k < 4; k++)
                    sum[t].part[k] =
                        _mm512_fmadd_ps(w[k], _mm512_loadu_ps(token_row(x, first + t) + c + 16 * k), sum[t].part[k]);
        }
        for (int k = 0; k < 4; k++) {
            const int64_t left = x->columns - whole - 16 * k;
            if (left <= 0) break;
            const __m512 w = load(p + 16 * k * bytes, lanes(left));
            for (int64_t t = 0; t < tokens; t++)
                sum[t].part[k] =
                    _mm512_fmadd_ps(w, _mm512_loadu_ps(token_row(x, first + t) + whole + 16 * k), sum[t].part[k]);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- exact block formats ---- */

/* Group g of 16 weights as floats; signed: the four vectors are (w.offset taken off). */
LN_INLINE __m512 group(const ln_unpacked *w, const __m512i q[4], int g) {
    const __m128i bytes = g % 4 == 0   ? _mm512_castsi512_si128(q[g / 4])
                          : g % 4 == 1 ? _mm512_extracti32x4_epi32(q[g / 4], 1)
                          : g % 4 == 2 ? _mm512_extracti32x4_epi32(q[g / 4], 2)
                                       : _mm512_extracti32x4_epi32(q[g / 4], 3);
    const __m512i place = _mm512_set1_epi32(g);
    const __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)),
                 scale = _mm512_permutexvar_ps(place, w->scale);
    if (w->offset) return _mm512_mul_ps(value, scale);
    return _mm512_fmadd_ps(value, scale, _mm512_permutexvar_ps(place, w->minimum));
}

/* w times 256 values of the tokens from `column`, of which `groups` groups are there. */
LN_INLINE void multiply_groups(const ln_unpacked *w, const ln_activation *x, int64_t first, int64_t tokens,
                               int64_t column, int groups, sums *sum) {
    __m512i q[4];
    LN_UNROLL
    for (int k = 0; k < 4; k++) q[k] = _mm512_sub_epi8(w->u[k], _mm512_set1_epi8((char)w->offset));
    LN_UNROLL
    for (int g = 0; g < 16; g++) {
        if (g >= groups) break;
        const __m512 weights = group(w, q, g);
        LN_UNROLL
        for (int64_t t = 0; t < tokens; t++)
            sum[t].part[g % 4] = _mm512_fmadd_ps(weights, _mm512_loadu_ps(token_row(x, first + t) + column + 16 * g),
                                                 sum[t].part[g % 4]);
    }
}

LN_INLINE void block_rows(int64_t tokens, ln_unpack512 unpack, int block, int bytes, const unsigned char *weight,
                          uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first, float *y,
                          int64_t y_stride) {
    const int step = 256 / block * bytes, groups = (int)(x->columns % 256 / 16);
    const int64_t whole = x->columns - 16 * groups;
    const unsigned char *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 256, p += step) {
            ln_dot_prefetch(p, step);
            const ln_unpacked w = unpack(p);
            multiply_groups(&w, x, first, tokens, c, 16, sum);
        }
        if (block == 32 && groups) {
            ln_dot_prefetch(p, step);
            unsigned char copy[8 * 34];
            p = ln_dot_end(p, groups / 2 * bytes, step, end - p, copy);
            const ln_unpacked w = ln_first_groups(unpack(p), groups);
            multiply_groups(&w, x, first, tokens, whole, groups, sum);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- the table ---- */

#define LN_DEFINE_PLAIN(name, NAME, bytes) LN_DOT_KERNEL(dot_##name, plain_rows, load_##name, bytes)
#define LN_DEFINE_BLOCK(name, NAME, block, bytes, has_minimum) \
    LN_DOT_KERNEL(dot_##name, block_rows, ln_unpack512_##name, block, bytes)
LN_PLAIN_FORMATS(LN_DEFINE_PLAIN)
LN_BLOCK_FORMATS(LN_DEFINE_BLOCK)

void ln_dot_fill_avx512(ln_matmul_kernels *kernels) {
    kernels->prepare[LN_FORM_F32] = prepare_f32;
    kernels->prepare[LN_FORM_BF16] = prepare_bf16;
    kernels->prepare[LN_FORM_INT8] = prepare_int8;
#define LN_FILL_PLAIN(name, NAME, bytes)                              \
    kernels->dot[0][LINNET_##NAME] = kernels->dot[1][LINNET_##NAME] = \
        (ln_dot_slot){"dot_" #name "_f32__avx512", LN_FORM_F32, dot_##name};
#define LN_FILL_BLOCK(name, NAME, block, bytes, has_minimum) \
    kernels->dot[1][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_f32__avx512", LN_FORM_F32, dot_##name};
    LN_PLAIN_FORMATS(LN_FILL_PLAIN)
    LN_BLOCK_FORMATS(LN_FILL_BLOCK)
}
