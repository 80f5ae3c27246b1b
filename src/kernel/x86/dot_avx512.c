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

enum { AHEAD = 2048 /* bytes of weights asked for in advance */ };

/* ---- preparing ---- */

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

LN_INLINE void prefetch(const unsigned char *p, int bytes) {
    for (int line = 0; line < bytes; line += 64) _mm_prefetch((const char *)p + AHEAD + line, _MM_HINT_T0);
}

LN_INLINE const float *token_row(const ln_activation *x, int64_t token) {
    return (const float *)(const void *)(x->data + (uint64_t)token * x->row_bytes);
}

LN_INLINE void plain_rows(load16 load, int bytes, const void *weight, uint64_t row_bytes, int64_t rows,
                          const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    const int64_t whole = x->columns / 64 * 64;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_TOKENS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 64, p += 64 * bytes) {
            __m512 w[4];
            prefetch(p, 64 * bytes);
            for (int k = 0; k < 4; k++) w[k] = load(p + 16 * k * bytes, 0xffff);
            for (int64_t t = 0; t < tokens; t++)
                for (int k = 0; k < 4; k++)
                    sum[t].part[k] =
                        _mm512_fmadd_ps(w[k], _mm512_loadu_ps(token_row(x, first + t) + c + 16 * k), sum[t].part[k]);
        }
        for (int64_t c = whole; c < x->columns; c += 16, p += 16 * bytes) {
            const __m512 w = load(p, lanes(x->columns - c));
            const int k = (int)(c / 16 & 3);
            for (int64_t t = 0; t < tokens; t++)
                sum[t].part[k] = _mm512_fmadd_ps(w, _mm512_loadu_ps(token_row(x, first + t) + c), sum[t].part[k]);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- exact block formats ---- */

LN_INLINE void block_values(const ln_unpacked *w, uint8_t u[256], float scale[16], float minimum[16]) {
    for (int k = 0; k < 4; k++) _mm512_store_si512(u + 64 * k, w->u[k]);
    _mm512_store_ps(scale, w->scale);
    _mm512_store_ps(minimum, w->minimum);
}

LN_INLINE void block_rows(ln_unpack512 unpack, int block, int bytes, const void *weight, uint64_t row_bytes,
                          int64_t rows, const ln_activation *x, int64_t first, int64_t tokens, float *y,
                          int64_t y_stride) {
    _Alignas(64) uint8_t u[256];
    _Alignas(64) float scale[16], minimum[16];
    const int step = 256 / block * bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_TOKENS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < x->columns; c += 256, p += step) {
            int groups = 16;
            unsigned char last[8 * 34] = {0};
            const unsigned char *from = p;
            if (block == 32 && x->columns - c < 256) {
                groups = (int)((x->columns - c) / 16);
                memcpy(last, p, (size_t)(groups / 2 * bytes));
                from = last;
            }
            prefetch(p, step);
            const ln_unpacked unpacked = unpack(from);
            block_values(&unpacked, u, scale, minimum);
            for (int g = 0; g < groups; g += 2)
                for (int k = g; k < g + 2; k++) {
                    const __m128i bytes16 = _mm_load_si128((const __m128i *)(const void *)(u + 16 * k));
                    const __m512 w = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes16)),
                                                     _mm512_set1_ps(scale[k]), _mm512_set1_ps(minimum[k]));
                    for (int64_t t = 0; t < tokens; t++)
                        sum[t].part[k & 1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(token_row(x, first + t) + c + 16 * k),
                                                             sum[t].part[k & 1]);
                }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- the table ---- */

#define LN_DOT(name, core, ...)                                                                          \
    static void dot_##name(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, \
                           int64_t first, int64_t tokens, float *y, int64_t y_stride) {                  \
        if (tokens == 1)                                                                                 \
            core(__VA_ARGS__, weight, row_bytes, rows, x, first, 1, y, y_stride);                        \
        else                                                                                             \
            core(__VA_ARGS__, weight, row_bytes, rows, x, first, tokens, y, y_stride);                   \
    }
LN_DOT(f32, plain_rows, load_f32, 4)
LN_DOT(f16, plain_rows, load_f16, 2)
LN_DOT(bf16, plain_rows, load_bf16, 2)
LN_DOT(q4_0, block_rows, ln_unpack512_q4_0, 32, 18)
LN_DOT(q4_1, block_rows, ln_unpack512_q4_1, 32, 20)
LN_DOT(q5_0, block_rows, ln_unpack512_q5_0, 32, 22)
LN_DOT(q5_1, block_rows, ln_unpack512_q5_1, 32, 24)
LN_DOT(q8_0, block_rows, ln_unpack512_q8_0, 32, 34)
LN_DOT(q2_k, block_rows, ln_unpack512_q2_k, 256, 84)
LN_DOT(q3_k, block_rows, ln_unpack512_q3_k, 256, 110)
LN_DOT(q4_k, block_rows, ln_unpack512_q4_k, 256, 144)
LN_DOT(q5_k, block_rows, ln_unpack512_q5_k, 256, 176)
LN_DOT(q6_k, block_rows, ln_unpack512_q6_k, 256, 210)

void ln_dot_fill_avx512(ln_matmul_kernels *kernels) {
    kernels->prepare[LN_FORM_F32] = prepare_f32;
    kernels->prepare[LN_FORM_BF16] = prepare_bf16;
    kernels->prepare[LN_FORM_INT8] = prepare_int8;
#define LN_FILL(name, NAME) \
    kernels->dot[1][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_f32__avx512", LN_FORM_F32, dot_##name};
    LN_FILL(f32, F32)
    LN_FILL(f16, F16)
    LN_FILL(bf16, BF16)
    LN_FILL(q4_0, Q4_0)
    LN_FILL(q4_1, Q4_1)
    LN_FILL(q5_0, Q5_0)
    LN_FILL(q5_1, Q5_1)
    LN_FILL(q8_0, Q8_0)
    LN_FILL(q2_k, Q2_K)
    LN_FILL(q3_k, Q3_K)
    LN_FILL(q4_k, Q4_K)
    LN_FILL(q5_k, Q5_K)
    LN_FILL(q6_k, Q6_K)
    const linnet_type plain[] = {LINNET_F32, LINNET_F16, LINNET_BF16};
    for (int i = 0; i < 3; i++) kernels->dot[0][plain[i]] = kernels->dot[1][plain[i]];
}
