/* Owns: fast dot kernels of the block formats with AVX-512 VNNI.
 *
 * 256 weights at a time (unpack_avx512.h) against INT8 activations, for groups g of 16:
 *     y += sum over g of xs_g scale_g sum(u xq)  +  sum over g of xs_g minimum_g sum(xq)
 * vpdpbusd leaves four lanes a group, so the 16 factors xs_g scale_g are spread four lanes wide; the second sum is one
 * multiply-add of the 16 sums that the activations carry. Even chunks of 64 and the minimums go to one accumulator, odd
 * chunks to the other: the order is the same for any number of rows and tokens. */
#include <string.h>

#include "kernel/dot.h"
#include "kernel/x86/unpack_avx512.h"

enum { AHEAD = 2048 /* bytes of weights asked for in advance */ };

typedef struct sums {
    __m512 even, odd;
} sums;

/* groups, blocks: masks of what the activations have (all but at the end of a row); chunks: of 64. */
LN_INLINE sums multiply(const ln_unpacked *w, const int8_t *xq, const float *xs, const int32_t *xsum, int chunks,
                        __mmask16 groups, __mmask8 blocks, sums y) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512 scale = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_maskz_loadu_ps(blocks, xs)));
    const __m512 factor = _mm512_mul_ps(w->scale, scale), minimum = _mm512_mul_ps(w->minimum, scale);
    y.even = _mm512_fmadd_ps(minimum, _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(groups, xsum)), y.even);
    for (int k = 0; k < chunks; k++) {
        const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w->u[k], _mm512_loadu_si512(xq + 64 * k));
        const __m512 f = _mm512_permutexvar_ps(_mm512_add_epi32(spread, _mm512_set1_epi32(4 * k)), factor);
        if (k % 2)
            y.odd = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), f, y.odd);
        else
            y.even = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), f, y.even);
    }
    return y;
}

/* block, bytes: of the format. tokens is a constant 1, or any number with one_token false. */
LN_INLINE void dot_rows(ln_unpack512 unpack, int block, int bytes, const void *weight, uint64_t row_bytes, int64_t rows,
                        const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    const int step = 256 / block * bytes;
    const int64_t whole = x->columns / 256 * 256, rest = x->columns - whole;
    const unsigned char *base = x->data + (uint64_t)first * x->row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        sums sum[8];
        for (int64_t t = 0; t < tokens; t++) sum[t].even = sum[t].odd = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 256, p += step) {
            for (int line = 0; line < step; line += 64) _mm_prefetch((const char *)p + AHEAD + line, _MM_HINT_T0);
            const ln_unpacked w = unpack(p);
            for (int64_t t = 0; t < tokens; t++) {
                const unsigned char *row = base + (uint64_t)t * x->row_bytes;
                sum[t] = multiply(&w, (const int8_t *)row + c, ln_int8_scales(row, x->padded) + c / 32,
                                  ln_int8_sums(row, x->padded) + c / 16, 4, 0xffff, 0xff, sum[t]);
            }
        }
        if (block == 32 && rest) {
            unsigned char last[8 * 34] = {0};
            memcpy(last, p, (size_t)(rest / block * bytes));
            const ln_unpacked w = unpack(last);
            const int chunks = (int)((rest + 63) / 64);
            for (int64_t t = 0; t < tokens; t++) {
                const unsigned char *row = base + (uint64_t)t * x->row_bytes;
                sum[t] = multiply(&w, (const int8_t *)row + whole, ln_int8_scales(row, x->padded) + whole / 32,
                                  ln_int8_sums(row, x->padded) + whole / 16, chunks,
                                  (__mmask16)((1u << 4 * chunks) - 1), (__mmask8)((1u << 2 * chunks) - 1), sum[t]);
            }
        }
        for (int64_t t = 0; t < tokens; t++)
            y[t * y_stride + r] = _mm512_reduce_add_ps(_mm512_add_ps(sum[t].even, sum[t].odd));
    }
}

#define LN_DOT(name, block, bytes)                                                                               \
    static void dot_##name(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x,         \
                           int64_t first, int64_t tokens, float *y, int64_t y_stride) {                          \
        if (tokens == 1)                                                                                         \
            dot_rows(ln_unpack512_##name, block, bytes, weight, row_bytes, rows, x, first, 1, y, y_stride);      \
        else                                                                                                     \
            dot_rows(ln_unpack512_##name, block, bytes, weight, row_bytes, rows, x, first, tokens, y, y_stride); \
    }
LN_DOT(q4_0, 32, 18)
LN_DOT(q4_1, 32, 20)
LN_DOT(q5_0, 32, 22)
LN_DOT(q5_1, 32, 24)
LN_DOT(q8_0, 32, 34)
LN_DOT(q2_k, 256, 84)
LN_DOT(q3_k, 256, 110)
LN_DOT(q4_k, 256, 144)
LN_DOT(q5_k, 256, 176)
LN_DOT(q6_k, 256, 210)

void ln_dot_fill_avx512vnni(ln_matmul_kernels *kernels) {
#define LN_FILL(name, NAME) \
    kernels->dot[0][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_int8__avx512vnni", LN_FORM_INT8, dot_##name};
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
}
