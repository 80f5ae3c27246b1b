/* Owns: the fast dot kernel of bfloat16 with AVX-512 BF16.
 *
 * vdpbf16ps adds two products to each of 16 float32 lanes. A row and token has four accumulators, vector i of 32 values
 * going to the accumulator i mod 4: the order is the same for any number of rows and tokens. */
#include <immintrin.h>

#include "kernel/dot.h"

#define LN_INLINE static inline __attribute__((always_inline))

typedef struct sums {
    __m512 part[4];
} sums;

LN_INLINE __m512bh words(__m512i v) {
    return (__m512bh)v;
}

LN_INLINE const uint16_t *token_row(const ln_activation *x, int64_t token) {
    return (const uint16_t *)(const void *)(x->data + (uint64_t)token * x->row_bytes);
}

/* bytes: of a value. tokens: 1 to 4. */
LN_INLINE void dot_rows(int64_t tokens, int bytes, const unsigned char *weight, uint64_t row_bytes, int64_t rows,
                        const ln_activation *x, int64_t first, float *y, int64_t y_stride) {
    const int64_t whole = x->columns >> 7 << 7;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 128, p += 128 * bytes) {
            __m512i w[4];
            ln_dot_prefetch(p, 128 * bytes);
            for (int k = 0; k < 4; k++) w[k] = _mm512_loadu_si512(p + 64 * k);
            for (int64_t t = 0; t < tokens; t++)
                for (int k = 0; k < 4; k++)
                    sum[t].part[k] = _mm512_dpbf16_ps(sum[t].part[k], words(w[k]),
                                                      words(_mm512_loadu_si512(token_row(x, first + t) + c + 32 * k)));
        }
        for (int k = 0; k < 4; k++) {
            const int64_t left = x->columns - whole - 32 * k;
            if (left <= 0) break;
            const __m512i w = _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : (1u << left) - 1, p + 64 * k);
            for (int64_t t = 0; t < tokens; t++)
                sum[t].part[k] = _mm512_dpbf16_ps(sum[t].part[k], words(w),
                                                  words(_mm512_loadu_si512(token_row(x, first + t) + whole + 32 * k)));
        }
        for (int64_t t = 0; t < tokens; t++) {
            const __m512 *part = sum[t].part;
            y[t * y_stride + r] =
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(part[0], part[1]), _mm512_add_ps(part[2], part[3])));
        }
    }
}

LN_DOT_KERNEL(dot_bf16, dot_rows, 2)

void ln_dot_fill_avx512bf16(ln_matmul_kernels *kernels) {
    kernels->dot[0][LINNET_BF16] = (ln_dot_slot){"dot_bf16_bf16__avx512bf16", LN_FORM_BF16, dot_bf16};
}
