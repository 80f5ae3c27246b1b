/* Owns: fast dot kernels of the block formats with AVX-512 VNNI.
 *
 * 256 weights at a time (unpack_avx512.h) against INT8 activations, for groups g of 16:
 *     y += sum over g of xs_g scale_g sum(u xq)  +  sum over g of xs_g minimum_g sum(xq)
 * vpdpbusd leaves four lanes a group, so the 16 factors xs_g scale_g are spread four lanes wide; the second sum is one
 * multiply-add of the 16 sums that the activations carry. Even chunks of 64, odd chunks and minimums have an
 * accumulator each: the order is the same for any number of rows and tokens. */
#include "kernel/dot.h"
#include "kernel/x86/unpack_avx512.h"

typedef struct sums {
    __m512 even, odd, minimum;
} sums;

/* w times 256 prepared values of a row from `column`, of which `groups` groups of 16 are there. */
LN_INLINE sums multiply(const ln_unpacked *w, const unsigned char *row, int64_t padded, int64_t column, int groups,
                        sums y) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const float *xs = ln_int8_scales(row, padded) + (column >> 5);
    const int32_t *xsum = ln_int8_sums(row, padded) + (column >> 4);
    const int8_t *xq = (const int8_t *)row + column;
    const __mmask16 present = (__mmask16)((1u << groups) - 1);
    const __mmask8 blocks = (__mmask8)((1u << groups / 2) - 1);
    const __m256 scales = groups == 16 ? _mm256_loadu_ps(xs) : _mm256_maskz_loadu_ps(blocks, xs);
    const __m512i sum = groups == 16 ? _mm512_loadu_si512(xsum) : _mm512_maskz_loadu_epi32(present, xsum);
    const __m512 scale = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scales));
    const __m512 factor = _mm512_mul_ps(w->scale, scale);
    y.minimum = _mm512_fmadd_ps(_mm512_mul_ps(w->minimum, scale), _mm512_cvtepi32_ps(sum), y.minimum);
    LN_UNROLL
    for (int k = 0; k < 4; k++) {
        if (4 * k >= groups) break;
        const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w->u[k], _mm512_loadu_si512(xq + 64 * k));
        const __m512 f = _mm512_permutexvar_ps(_mm512_add_epi32(spread, _mm512_set1_epi32(4 * k)), factor);
        if (k % 2)
            y.odd = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), f, y.odd);
        else
            y.even = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), f, y.even);
    }
    return y;
}

/* block, bytes: of the format. tokens: 1 to 4. */
LN_INLINE void dot_rows(int64_t tokens, ln_unpack512 unpack, int block, int bytes, const unsigned char *weight,
                        uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first, float *y,
                        int64_t y_stride) {
    const int step = 256 / block * bytes, groups = (int)(x->columns % 256 / 16);
    const int64_t whole = x->columns - 16 * groups;
    const unsigned char *base = x->data + (uint64_t)first * x->row_bytes, *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++) sum[t].even = sum[t].odd = sum[t].minimum = _mm512_setzero_ps();
        for (int64_t c = 0; c < whole; c += 256, p += step) {
            ln_dot_prefetch(p, step);
            const ln_unpacked w = unpack(p);
            LN_UNROLL
            for (int64_t t = 0; t < tokens; t++)
                sum[t] = multiply(&w, base + (uint64_t)t * x->row_bytes, x->padded, c, 16, sum[t]);
        }
        if (block == 32 && groups) {
            ln_dot_prefetch(p, step);
            unsigned char copy[8 * 34];
            p = ln_dot_end(p, groups / 2 * bytes, step, end - p, copy);
            const ln_unpacked w = ln_first_groups(unpack(p), groups);
            LN_UNROLL
            for (int64_t t = 0; t < tokens; t++)
                sum[t] = multiply(&w, base + (uint64_t)t * x->row_bytes, x->padded, whole, groups, sum[t]);
        }
        for (int64_t t = 0; t < tokens; t++)
            y[t * y_stride + r] =
                _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[t].even, sum[t].odd), sum[t].minimum));
    }
}

#define LN_DEFINE(name, NAME, block, bytes, has_minimum) \
    LN_DOT_KERNEL(dot_##name, dot_rows, ln_unpack512_##name, block, bytes)
LN_BLOCK_FORMATS(LN_DEFINE)

void ln_dot_fill_avx512vnni(ln_matmul_kernels *kernels) {
#define LN_FILL(name, NAME, block, bytes, has_minimum) \
    kernels->dot[0][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_int8__avx512vnni", LN_FORM_INT8, dot_##name};
    LN_BLOCK_FORMATS(LN_FILL)
}
