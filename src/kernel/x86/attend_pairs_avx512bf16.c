/* Owns: products of pairs of bf16 on AVX-512 BF16: 8 rows x 32 columns in registers. */
#include <immintrin.h>
#include <string.h>

#include "kernel/attend_sets.h"

enum { ROWS = 8, COLUMNS = 32, W = 16 };

static void nothing(void) {}

static inline __attribute__((always_inline)) void tile(const unsigned char *a, int64_t a_stride, const unsigned char *b,
                                                       int64_t b_stride, int64_t depth, float *c, bool add) {
    __m512 sum[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++)
            sum[r][v] = add ? _mm512_loadu_ps(c + r * LN_ATTEND_STRIDE + v * W) : _mm512_setzero_ps();
    for (int64_t k = 0; k < 2 * depth; k += 4, b += b_stride) {
        const __m512bh x = (__m512bh)_mm512_loadu_si512(b), y = (__m512bh)_mm512_loadu_si512(b + 64);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_stride + k, sizeof pair);
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], factor, x);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], factor, y);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(c + r * LN_ATTEND_STRIDE + v * W, sum[r][v]);
}

static void product(const void *a, int64_t a_stride, const void *b, int64_t b_stride, int64_t rows, int64_t columns,
                    int64_t depth, float *c, bool add) {
    for (int64_t j = 0; j < columns; j += COLUMNS)
        for (int64_t i = 0; i < rows; i += ROWS)
            tile((const unsigned char *)a + i * a_stride, a_stride, (const unsigned char *)b + 4 * j, b_stride, depth,
                 c + i * LN_ATTEND_STRIDE + j, add);
}

static void join(const void *from, int64_t from_stride, int64_t rows, int64_t columns, void *pairs,
                 int64_t pairs_stride) {
    for (int64_t r = 0; r < rows; r += 2) {
        const unsigned char *a = (const unsigned char *)from + r * from_stride, *b = a + from_stride;
        unsigned char *to = (unsigned char *)pairs + r / 2 * pairs_stride;
        for (int64_t c = 0; c < columns; c += W) {
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(a + 2 * c)));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(b + 2 * c)));
            _mm512_storeu_si512(to + 4 * c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

static void round_rows(const float *from, int64_t from_stride, int64_t rows, int64_t columns, void *to,
                       int64_t to_stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += W) {
            const int64_t left = columns - c;
            const __mmask16 here = left >= W ? 0xffff : (__mmask16)((1u << left) - 1);
            _mm256_mask_storeu_epi16(
                (unsigned char *)to + r * to_stride + 2 * c, here,
                (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(here, from + r * from_stride + c)));
        }
}

void ln_attend_fill_avx512bf16(ln_attend_kernels *kernels) {
    kernels->pairs = (ln_attend_pairs){"attend_pairs__avx512bf16", nothing, nothing, product, join, round_rows};
}
