/* Owns: products of pairs of bf16 on AVX-512 BF16, 8 rows x 32 columns in registers, and the row work between them. */
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
            const __mmask16 here = (__mmask16)(left >= W ? 0xffff : (1u << left) - 1);
            _mm256_mask_storeu_epi16(
                (unsigned char *)to + r * to_stride + 2 * c, here,
                (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(here, from + r * from_stride + c)));
        }
}

/* ---- weights and their gradients ---- */

/* 2^x by a polynomial of degree 3, relative error 7.5e-5: what follows is rounded to bf16. */
static inline __m512 power_of_two(__m512 x) {
    enum { TOWARD_MINUS_INFINITY = 1 };
    const __m512 r = _mm512_reduce_ps(x, TOWARD_MINUS_INFINITY);
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(0.0780245140f), _mm512_set1_ps(0.226067245f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.695833445f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.999925256f));
    return _mm512_scalef_ps(p, x);
}

/* 16 columns of a row. */
static inline __attribute__((always_inline)) void weigh_lanes(const ln_attend_gradient_tile *t, int64_t r, int64_t c,
                                                              __mmask16 seen, __m512 *weight, __m512 *gradient) {
    const int64_t at = r * LN_ATTEND_STRIDE + c;
    __m512 x =
        _mm512_fmsub_ps(_mm512_loadu_ps(t->weights + at), _mm512_set1_ps(t->factor), _mm512_loadu_ps(t->shift + c));
    if (t->bias) x = _mm512_add_ps(x, _mm512_loadu_ps(t->bias + at));
    *weight = _mm512_maskz_mov_ps(seen, power_of_two(x));
    *gradient = _mm512_setzero_ps();
    if (!t->gradient) return;
    *gradient = _mm512_maskz_mul_ps(seen, *weight,
                                    _mm512_sub_ps(_mm512_loadu_ps(t->gradient + at), _mm512_loadu_ps(t->delta + c)));
    if (t->uncapped) _mm512_storeu_ps(t->uncapped + at, *gradient);
}

static inline __m512i both(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static void weigh(const ln_attend_gradient_tile *t, int64_t rows, void *weights, void *gradients, int64_t stride,
                  void *pairs, int64_t pairs_stride) {
    _Alignas(64) uint16_t order[32];
    for (int i = 0; i < 16; i++) {
        order[2 * i] = (uint16_t)i;
        order[2 * i + 1] = (uint16_t)(i + 16);
    }
    const __m512i by_turns = _mm512_load_si512(order);
    for (int64_t r = 0; r < rows; r += 2) {
        for (int64_t c = 0; c < t->columns; c += 32) {
            __m512 w[2][2] = {{_mm512_setzero_ps(), _mm512_setzero_ps()}, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
            __m512 g[2][2] = {{w[0][0], w[0][0]}, {w[0][0], w[0][0]}};
            for (int i = 0; i < 2 && r + i < t->rows; i++) {
                const uint32_t seen = t->bits ? t->bits[(r + i) * (LN_ATTEND_BLOCK / 32) + c / 32] : ~(uint32_t)0;
                weigh_lanes(t, r + i, c, (__mmask16)seen, &w[i][0], &g[i][0]);
                weigh_lanes(t, r + i, c + W, (__mmask16)(seen >> 16), &w[i][1], &g[i][1]);
            }
            for (int i = 0; i < 2; i++) {
                const int64_t at = (r + i) * stride + 2 * c;
                _mm512_storeu_si512((unsigned char *)weights + at, both(w[i][0], w[i][1]));
                _mm512_storeu_si512((unsigned char *)gradients + at, both(g[i][0], g[i][1]));
            }
            unsigned char *to = (unsigned char *)pairs + r / 2 * pairs_stride + 4 * c;
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(by_turns, both(g[0][0], g[1][0])));
            _mm512_storeu_si512(to + 64, _mm512_permutexvar_epi16(by_turns, both(g[0][1], g[1][1])));
        }
    }
}

void ln_attend_fill_avx512bf16(ln_attend_kernels *kernels) {
    kernels->pairs = (ln_attend_pairs){"attend_pairs__avx512bf16", nothing, nothing, product, join, round_rows, weigh};
}
