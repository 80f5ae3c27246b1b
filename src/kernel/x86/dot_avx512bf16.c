/* Owns: the fast dot kernel of bfloat16 with AVX-512 BF16.
 *
 * vdpbf16ps adds two products to each of 16 float32 lanes. A row and token has four accumulators, vector i of 32 values
 * going to the accumulator i mod 4: the order is the same for any number of rows and tokens. */
#include <immintrin.h>

#include "kernel/dot.h"

#define LN_INLINE static inline __attribute__((always_inline))

enum { AHEAD = 2048 /* bytes of weights asked for in advance */ };

typedef struct sums {
    __m512 part[4];
} sums;

LN_INLINE __m512bh words(__m512i v) {
    return (__m512bh)v;
}

LN_INLINE const uint16_t *token_row(const ln_activation *x, int64_t token) {
    return (const uint16_t *)(const void *)(x->data + (uint64_t)token * x->row_bytes);
}

LN_INLINE void dot_rows(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first,
                        int64_t tokens, float *y, int64_t y_stride) {
    const int64_t whole = x->columns / 128 * 128;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_TOKENS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 128, p += 256) {
            __m512i w[4];
            for (int k = 0; k < 4; k++) {
                _mm_prefetch((const char *)p + AHEAD + 64 * k, _MM_HINT_T0);
                w[k] = _mm512_loadu_si512(p + 64 * k);
            }
            for (int64_t t = 0; t < tokens; t++)
                for (int k = 0; k < 4; k++)
                    sum[t].part[k] = _mm512_dpbf16_ps(sum[t].part[k], words(w[k]),
                                                      words(_mm512_loadu_si512(token_row(x, first + t) + c + 32 * k)));
        }
        for (int64_t c = whole; c < x->columns; c += 32, p += 64) {
            const int64_t left = x->columns - c;
            const __mmask32 mask = left >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
            const __m512i w = _mm512_maskz_loadu_epi16(mask, p);
            const int k = (int)(c / 32 & 3);
            for (int64_t t = 0; t < tokens; t++)
                sum[t].part[k] =
                    _mm512_dpbf16_ps(sum[t].part[k], words(w), words(_mm512_loadu_si512(token_row(x, first + t) + c)));
        }
        for (int64_t t = 0; t < tokens; t++) {
            const __m512 *part = sum[t].part;
            y[t * y_stride + r] =
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(part[0], part[1]), _mm512_add_ps(part[2], part[3])));
        }
    }
}

static void dot_bf16(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first,
                     int64_t tokens, float *y, int64_t y_stride) {
    if (tokens == 1)
        dot_rows(weight, row_bytes, rows, x, first, 1, y, y_stride);
    else
        dot_rows(weight, row_bytes, rows, x, first, tokens, y, y_stride);
}

void ln_dot_fill_avx512bf16(ln_matmul_kernels *kernels) {
    kernels->dot[0][LINNET_BF16] = (ln_dot_slot){"dot_bf16_bf16__avx512bf16", LN_FORM_BF16, dot_bf16};
}
