/* Owns: preparing activations, and the dot kernels of every format, with AVX2.
 *
 * Fast block formats: 256 weights at a time (unpack_avx2.h) against INT8 activations, for groups g of 16:
 *     y += sum over g of xs_g scale_g sum(q xq)  +  sum over g of xs_g minimum_g sum(xq)
 * vpmaddubsw adds pairs of products in 16 bits: q < 64 gives at most 2 * 63 * 127, and Q8_0, as |q| <= 128 with its
 * sign moved to xq, 2 * 128 * 127 = 32512, so nothing saturates. All else: W becomes float32 in registers. A row and
 * token has its own accumulators, vector i of the row going to the accumulator i mod 2 or 4: the order is the same for
 * any number of rows and tokens. */
#include <math.h>
#include <string.h>

#include "kernel/dot.h"
#include "kernel/x86/unpack_avx2.h"

typedef struct sums {
    __m256 part[4];
} sums;

/* Lanes folded in halves, from far to near. */
LN_INLINE float add_lanes(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
LN_INLINE float total(sums y) {
    return add_lanes(_mm256_add_ps(_mm256_add_ps(y.part[0], y.part[1]), _mm256_add_ps(y.part[2], y.part[3])));
}

LN_INLINE const unsigned char *token_row(const ln_activation *x, int64_t token) {
    return x->data + (uint64_t)token * x->row_bytes;
}

/* ---- preparing ---- */

static inline int add_ints(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

static inline void prepare_block(const float *x, int8_t *q, float *scale, int32_t *sum) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), most = _mm256_set1_ps(0x1.fffffep127f);
    __m256 v[4], largest = _mm256_setzero_ps(), finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        const __m256 size = _mm256_and_ps(v[i], magnitude);
        largest = _mm256_max_ps(largest, size);
        finite = _mm256_and_ps(finite, _mm256_cmp_ps(size, most, _CMP_LE_OQ));
    }
    __m128 one = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    one = _mm_max_ps(one, _mm_movehl_ps(one, one));
    const float top = _mm_cvtss_f32(_mm_max_ss(one, _mm_movehdup_ps(one)));
    const bool all = _mm256_movemask_ps(finite) == 255;
    if (!all || top < LN_INT8_LEAST) {
        _mm256_storeu_si256((__m256i *)(void *)q, _mm256_setzero_si256());
        *scale = all ? 0 : NAN;
        sum[0] = sum[1] = 0;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127 / top);
    __m256i n[4];
    for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    *scale = top / 127;
    sum[0] = add_ints(_mm256_add_epi32(n[0], n[1]));
    sum[1] = add_ints(_mm256_add_epi32(n[2], n[3]));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    _mm256_storeu_si256((__m256i *)(void *)q, _mm256_permutevar8x32_epi32(packed, order));
}

static void prepare_int8(const float *x, int64_t columns, int64_t padded, void *row) {
    int8_t *q = row;
    float *scale = (float *)(void *)((unsigned char *)row + padded);
    int32_t *sum = (int32_t *)(void *)((unsigned char *)row + padded + padded / 8);
    for (int64_t i = 0; i < padded; i += 32) {
        float end[32] = {0};
        if (i < columns && columns - i < 32) memcpy(end, x + i, (size_t)(columns - i) * 4);
        prepare_block(columns - i < 32 ? end : x + i, q + i, scale + i / 32, sum + i / 16);
    }
}

static void prepare_bf16(const float *x, int64_t columns, int64_t padded, void *row) {
    uint16_t *to = row;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
        const __m256i half = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(64)), nan);
        _mm_storeu_si128((__m128i *)(void *)(to + i),
                         _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1)));
    }
    for (; i < columns; i++) to[i] = ln_float_bf16(x[i]);
    for (; i < padded; i++) to[i] = 0;
}

/* ---- fast block formats ---- */

/* 32 weights times 32 activations, in eight lanes of four. */
LN_INLINE __m256i products(__m256i q, __m256i xq, bool is_signed) {
    const __m256i size = is_signed ? _mm256_abs_epi8(q) : q, other = is_signed ? _mm256_sign_epi8(xq, q) : xq;
    return _mm256_madd_epi16(_mm256_maddubs_epi16(size, other), _mm256_set1_epi16(1));
}

/* w times 256 prepared values of a row from `column`, of which `groups` groups of 16 are there. */
LN_INLINE sums multiply(const ln_unpacked *w, bool is_signed, const unsigned char *row, int64_t padded, int64_t column,
                        int groups, sums y) {
    const float *xs = ln_int8_scales(row, padded) + (column >> 5);
    const int32_t *xsum = ln_int8_sums(row, padded) + (column >> 4);
    const int8_t *xq = (const int8_t *)row + column;
    const __m256 scales = groups == 16 ? _mm256_loadu_ps(xs) : _mm256_maskload_ps(xs, ln_first_lanes(groups / 2, 0));
    __m256 factor[2];
    for (int i = 0; i < 2; i++) {
        const __m256i twice = _mm256_add_epi32(_mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0), _mm256_set1_epi32(4 * i));
        const __m256 scale = _mm256_permutevar8x32_ps(scales, twice);
        factor[i] = _mm256_mul_ps(w->scale[i], scale);
        if (is_signed) continue;
        const __m256i sum = groups == 16 ? ln_load256((const unsigned char *)(xsum + 8 * i))
                                         : _mm256_maskload_epi32(xsum + 8 * i, ln_first_lanes(groups, i));
        y.part[2 + i] = _mm256_fmadd_ps(_mm256_mul_ps(w->minimum[i], scale), _mm256_cvtepi32_ps(sum), y.part[2 + i]);
    }
    LN_UNROLL
    for (int j = 0; j < 8; j++) {
        if (2 * j >= groups) break;
        const __m256i dot = products(w->q[j], ln_load256((const unsigned char *)xq + 32 * j), is_signed);
        const __m256i spread =
            _mm256_add_epi32(_mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0), _mm256_set1_epi32(2 * (j & 3)));
        const __m256 f = _mm256_permutevar8x32_ps(factor[j >> 2], spread);
        y.part[j & 1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), f, y.part[j & 1]);
    }
    return y;
}

LN_INLINE void int8_rows(int64_t tokens, ln_unpack256 unpack, int block, int bytes, bool is_signed,
                         const unsigned char *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x,
                         int64_t first, float *y, int64_t y_stride) {
    const int step = 256 / block * bytes, groups = (int)(x->columns % 256 / 16);
    const int64_t whole = x->columns - 16 * groups;
    const unsigned char *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        ln_unpacked w;
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm256_setzero_ps();
        for (int64_t c = 0; c < whole; c += 256, p += step) {
            ln_dot_prefetch(p, step);
            unpack(p, &w);
            for (int64_t t = 0; t < tokens; t++)
                sum[t] = multiply(&w, is_signed, token_row(x, first + t), x->padded, c, 16, sum[t]);
        }
        if (block == 32 && groups) {
            unsigned char copy[8 * 34];
            ln_dot_prefetch(p, step);
            unpack(ln_dot_end(p, groups / 2 * bytes, step, end - p, copy), &w);
            ln_first_groups(&w, groups);
            for (int64_t t = 0; t < tokens; t++)
                sum[t] = multiply(&w, is_signed, token_row(x, first + t), x->padded, whole, groups, sum[t]);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- float32 in registers ---- */

/* 32 floats times the activations of all tokens. */
LN_INLINE void multiply_floats(const __m256 w[4], const ln_activation *x, int64_t first, int64_t tokens, int64_t column,
                               sums *sum) {
    for (int64_t t = 0; t < tokens; t++) {
        const float *xt = (const float *)(const void *)token_row(x, first + t) + column;
        for (int k = 0; k < 4; k++) sum[t].part[k] = _mm256_fmadd_ps(w[k], _mm256_loadu_ps(xt + 8 * k), sum[t].part[k]);
    }
}

typedef __m256 (*load8)(const unsigned char *p);

LN_INLINE __m256 load_f32(const unsigned char *p) {
    return _mm256_loadu_ps((const float *)(const void *)p);
}
LN_INLINE __m256 load_f16(const unsigned char *p) {
    return _mm256_cvtph_ps(ln_load128(p));
}
LN_INLINE __m256 load_bf16(const unsigned char *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(ln_load128(p)), 16));
}

LN_INLINE void plain_rows(int64_t tokens, load8 load, int bytes, const unsigned char *weight, uint64_t row_bytes,
                          int64_t rows, const ln_activation *x, int64_t first, float *y, int64_t y_stride) {
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm256_setzero_ps();
        for (int64_t c = 0; c < x->columns; c += 32, p += 32 * bytes) {
            const unsigned char *from = p;
            unsigned char copy[32 * 4];
            if (x->columns - c < 32) from = ln_dot_end(p, (x->columns - c) * bytes, 32 * bytes, 0, copy);
            __m256 w[4];
            ln_dot_prefetch(p, 32 * bytes);
            for (int k = 0; k < 4; k++) w[k] = load(from + 8 * k * bytes);
            multiply_floats(w, x, first, tokens, c, sum);
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* 32 values j of w as floats. */
LN_INLINE void floats(const ln_unpacked *w, bool is_signed, int j, __m256 to[4]) {
    const unsigned char *q = (const unsigned char *)(w->q + j);
    const float *scale = (const float *)w->scale, *minimum = (const float *)w->minimum;
    for (int k = 0; k < 4; k++) {
        const __m128i eight = _mm_loadl_epi64((const __m128i *)(const void *)(q + 8 * k));
        const __m256i wide = is_signed ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
        const int g = 2 * j + (k >> 1);
        to[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale[g]), _mm256_set1_ps(minimum[g]));
    }
}

LN_INLINE void block_rows(int64_t tokens, ln_unpack256 unpack, int block, int bytes, bool is_signed,
                          const unsigned char *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x,
                          int64_t first, float *y, int64_t y_stride) {
    const int step = 256 / block * bytes;
    const unsigned char *end = weight + (uint64_t)rows * row_bytes;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = weight + (uint64_t)r * row_bytes;
        sums sum[LN_DOT_PASS];
        ln_unpacked unpacked;
        for (int64_t t = 0; t < tokens; t++)
            for (int k = 0; k < 4; k++) sum[t].part[k] = _mm256_setzero_ps();
        for (int64_t c = 0; c < x->columns; c += 256, p += step) {
            const int chunks = x->columns - c < 256 ? (int)((x->columns - c) / 32) : 8;
            unsigned char copy[256 * 2];
            ln_dot_prefetch(p, step);
            unpack(chunks == 8 ? p : ln_dot_end(p, chunks * bytes, step, end - p, copy), &unpacked);
            for (int j = 0; j < chunks; j++) {
                __m256 w[4];
                floats(&unpacked, is_signed, j, w);
                multiply_floats(w, x, first, tokens, c + 32 * j, sum);
            }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = total(sum[t]);
    }
}

/* ---- the table ---- */

#define LN_DEFINE_PLAIN(name, NAME, bytes) LN_DOT_KERNEL(exact_##name, plain_rows, load_##name, bytes)
#define LN_DEFINE_BLOCK(name, NAME, block, bytes, has_minimum)                                             \
    LN_DOT_KERNEL(fast_##name, int8_rows, ln_unpack256_##name, block, bytes, LINNET_##NAME == LINNET_Q8_0) \
    LN_DOT_KERNEL(exact_##name, block_rows, ln_unpack256_##name, block, bytes, LINNET_##NAME == LINNET_Q8_0)
LN_PLAIN_FORMATS(LN_DEFINE_PLAIN)
LN_BLOCK_FORMATS(LN_DEFINE_BLOCK)

void ln_dot_fill_avx2(ln_matmul_kernels *kernels) {
    kernels->prepare[LN_FORM_BF16] = prepare_bf16;
    kernels->prepare[LN_FORM_INT8] = prepare_int8;
#define LN_FILL_PLAIN(name, NAME, bytes)                              \
    kernels->dot[0][LINNET_##NAME] = kernels->dot[1][LINNET_##NAME] = \
        (ln_dot_slot){"dot_" #name "_f32__avx2", LN_FORM_F32, exact_##name};
#define LN_FILL_BLOCK(name, NAME, block, bytes, has_minimum)                                               \
    kernels->dot[0][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_int8__avx2", LN_FORM_INT8, fast_##name}; \
    kernels->dot[1][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_f32__avx2", LN_FORM_F32, exact_##name};
    LN_PLAIN_FORMATS(LN_FILL_PLAIN)
    LN_BLOCK_FORMATS(LN_FILL_BLOCK)
}
