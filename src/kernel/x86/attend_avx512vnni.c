/* Owns: attention's products with Q8_0 and Q4_0 pages in integers, for few rows, with AVX-512 VNNI.
 *
 * A row's queries and weights are 16-bit integers times a scale, in two bytes: x = scale (256 high + low); so a product
 * with int8 codes is two of vpdpbusd, 256 H + L, exact in int32: scores   high and low signed, codes made unsigned by
 * an offset o: sum q (k + o) - o sum q; scales of keys per 32 columns and token, that of the row after it output
 * weights times the scales of their values, unsigned, with one scale for a row and page; codes signed vpdpbusd takes
 * four bytes of a lane's column together, but pages have rows of 32 columns: four rows are turned into two vectors by a
 * permutation of dwords and one of bytes, shared by all rows of A. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernel/attend_sets.h"

enum { GROUP = 4, BLOCK = 32, PAIR = 2 };

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* What is below LEAST counts as 0: its reciprocal might be none. */
static const float LARGEST = 65535, LEAST = 1e-30f;

/* ---- rows as integers ---- */

/* Largest of 32 values >= 0; NaN where one is. */
INLINE float largest(__m512 a, __m512 b) {
    const __mmask16 wrong = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
    return wrong ? NAN : _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

INLINE void split(__m512i x, int8_t *high, int8_t *low) {
    const __m512i up = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(up));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(x));
}

INLINE __mmask16 first_lanes(int64_t n) {
    return (__mmask16)(n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0);
}

/* Columns i and up as single bytes. */
static void quantize_block(const float *a, int64_t there, ln_attend_integers *to, int64_t i) {
    const __m512 x[2] = {_mm512_maskz_loadu_ps(first_lanes(there), a),
                         _mm512_maskz_loadu_ps(first_lanes(there - 16), a + 16)};
    const float most = largest(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1]));
    const __m512 inverse = _mm512_set1_ps(most > LEAST ? 127 / most : 0),
                 unit = _mm512_set1_ps(most < INFINITY ? most / 127 : NAN);
    __m512 rest = _mm512_setzero_ps();
    for (int v = 0; v < 2; v++) {
        const __m512i byte = _mm512_cvtps_epi32(_mm512_mul_ps(x[v], inverse));
        rest = _mm512_add_ps(rest, _mm512_fnmadd_ps(unit, _mm512_cvtepi32_ps(byte), x[v]));
        _mm_storeu_si128((__m128i *)(void *)(to->byte + i + 16 * v), _mm512_cvtepi32_epi8(byte));
    }
    to->unit[i / BLOCK] = _mm512_cvtss_f32(unit);
    to->rest[i / BLOCK] = _mm512_reduce_add_ps(rest);
    to->total[i / BLOCK] = _mm512_reduce_add_ps(_mm512_add_ps(x[0], x[1]));
}

/* low is signed: x = 256 high + low with high = (x + 128) / 256 rounded down. */
static void quantize(const float *a, int64_t depth, int64_t rows, ln_attend_integers *to) {
    for (int64_t r = 0; r < rows; r++, a += LN_ATTEND_STRIDE) {
        __m512 sizes = _mm512_setzero_ps();
        for (int64_t i = 0; i < depth; i += 16) {
            const __m512 size = _mm512_abs_ps(_mm512_maskz_loadu_ps(first_lanes(depth - i), a + i));
            sizes = _mm512_max_ps(_mm512_add_ps(sizes, _mm512_sub_ps(size, size)), size); /* NaN stays, inf is one */
        }
        const float most = largest(sizes, sizes);
        const float inverse = most > LEAST ? 32000 / most : 0;
        to[r].scale = most < INFINITY ? most / 32000 : NAN;
        for (int64_t i = 0; i < (depth + BLOCK - 1) / BLOCK * BLOCK; i += 16) {
            const __m512 x =
                _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(depth - i), a + i), _mm512_set1_ps(inverse));
            const __m512i v = _mm512_cvtps_epi32(x);
            split(v, to[r].high + i, to[r].low + i);
            const int32_t sum = _mm512_reduce_add_epi32(v);
            to[r].sum[i / BLOCK] = i % BLOCK ? to[r].sum[i / BLOCK] + sum : sum;
        }
        to[r].row = a;
        for (int64_t i = 0; i < depth; i += BLOCK) quantize_block(a + i, depth - i, &to[r], i);
    }
}

/* ---- codes ---- */

/* Rows k .. k + 3 of 32 bytes as lanes of four. */
INLINE void load_four(const unsigned char *rows, const unsigned char *ahead, __m512i *x) {
    const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i a = _mm512_loadu_si512(rows), b = _mm512_loadu_si512(rows + 64);
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + 64);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    x[0] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(a, first, b), bytes);
    x[1] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(a, second, b), bytes);
}

/* Q4_0 has rows 8 g + i and 8 g + 4 + i in the two halves of the bytes of row 4 g + i. */
INLINE const unsigned char *row_at(linnet_type precision, const unsigned char *codes, int64_t k) {
    return codes + (precision == LINNET_Q4_0 ? k / 2 : k) * LN_PANEL;
}

INLINE __m512i broadcast(const int8_t *four) {
    int32_t dword;
    memcpy(&dword, four, sizeof dword);
    return _mm512_set1_epi32(dword);
}

INLINE __m512 combined(__m512i high, __m512i low) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

INLINE __m512 load_scales(const unsigned char *scales, int64_t i) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(scales + 2 * i)));
}

/* ---- scores ---- */

typedef __m512i integers[GROUP][PAIR];

INLINE void multiply_queries(integers high, integers low, const __m512i *x, const ln_attend_integers *a, int rows,
                             int64_t k) {
    UNROLL for (int r = 0; r < rows; r++) {
        const __m512i h = broadcast(a[r].high + k), l = broadcast(a[r].low + k);
        UNROLL for (int v = 0; v < PAIR; v++) {
            high[r][v] = _mm512_dpbusd_epi32(high[r][v], x[v], h);
            low[r][v] = _mm512_dpbusd_epi32(low[r][v], x[v], l);
        }
    }
}

INLINE void multiply_eight(linnet_type precision, const ln_attend_part *part, integers high, integers low,
                           const ln_attend_integers *a, int rows, int64_t k) {
    const __m512i nibble = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(-128);
    __m512i x[PAIR], y[PAIR];
    load_four(row_at(precision, part->codes, k), row_at(precision, part->ahead, k), x);
    if (precision == LINNET_Q4_0) {
        UNROLL for (int v = 0; v < PAIR; v++) {
            y[v] = _mm512_and_si512(_mm512_srli_epi32(x[v], 4), nibble);
            x[v] = _mm512_and_si512(x[v], nibble);
        }
    } else {
        load_four(row_at(precision, part->codes, k + 4), row_at(precision, part->ahead, k + 4), y);
        UNROLL for (int v = 0; v < PAIR; v++) {
            x[v] = _mm512_xor_si512(x[v], middle);
            y[v] = _mm512_xor_si512(y[v], middle);
        }
    }
    multiply_queries(high, low, x, a, rows, k);
    multiply_queries(high, low, y, a, rows, k + 4);
}

INLINE void score_rows(linnet_type precision, const ln_attend_operand *b, const ln_attend_part *part,
                       const ln_attend_integers *a, int rows, float *c, bool add) {
    for (int64_t k = 0; k < b->depth; k += BLOCK) {
        const int64_t end = b->depth - k < BLOCK ? b->depth : k + BLOCK;
        integers high, low;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) {
                high[r][v] = _mm512_setzero_si512();
                low[r][v] = _mm512_set1_epi32(-a[r].sum[k / BLOCK] * (precision == LINNET_Q4_0 ? 8 : 128));
            }
        }
        if (end == k + BLOCK) {
            UNROLL for (int64_t i = 0; i < BLOCK; i += 8) multiply_eight(precision, part, high, low, a, rows, k + i);
        } else {
            for (int64_t i = k; i < end; i += 8) multiply_eight(precision, part, high, low, a, rows, i);
        }
        UNROLL for (int v = 0; v < PAIR; v++) {
            const __m512 scale = load_scales(part->scales, k + 16 * v);
            UNROLL for (int r = 0; r < rows; r++) {
                float *to = c + r * LN_ATTEND_STRIDE + 16 * v;
                const __m512 before = add || k > 0 ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
                const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(a[r].scale));
                _mm512_storeu_ps(to, _mm512_fmadd_ps(combined(high[r][v], low[r][v]), factor, before));
            }
        }
    }
}

/* ---- outputs ---- */

/* A row's 32 weights of a page, times 1 / weight of the largest. */
typedef struct page_weights {
    __m512 first, second;
    float weight; /* NaN where one is not finite */
} page_weights;

/* Bytes of integers x: the low ones of tokens 4 g and up in dword 4 g (g < 4) or 4 g - 15, the high ones 2 dwords on.
 */
typedef struct weight_bytes {
    int32_t dword[16];
} weight_bytes;

INLINE float reciprocal(float most) {
    return most > LEAST ? 1 / most : 0;
}

INLINE page_weights scale_weights(const float *weights) {
    const __m512 first = _mm512_loadu_ps(weights), second = _mm512_loadu_ps(weights + 16);
    const float most = largest(first, second);
    const __m512 factor = _mm512_set1_ps(reciprocal(most));
    return (page_weights){_mm512_mul_ps(first, factor), _mm512_mul_ps(second, factor), most < INFINITY ? most : NAN};
}

INLINE void store_bytes(const page_weights *w, const __m512 *scale, weight_bytes *to) {
    const __m512i x = _mm512_packus_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(w->first, scale[0])),
                                          _mm512_cvtps_epi32(_mm512_mul_ps(w->second, scale[1])));
    const __m512i low = _mm512_and_si512(x, _mm512_set1_epi16(255)), high = _mm512_srli_epi16(x, 8);
    _mm512_storeu_si512(to->dword, _mm512_packus_epi16(low, high));
}

INLINE void multiply_weights(integers high, integers low, const __m512i *x, const weight_bytes *a, int rows,
                             int64_t k) {
    const int64_t at = k < 16 ? k : k - 15;
    UNROLL for (int r = 0; r < rows; r++) {
        const __m512i l = _mm512_set1_epi32(a[r].dword[at]), h = _mm512_set1_epi32(a[r].dword[at + 2]);
        UNROLL for (int v = 0; v < PAIR; v++) {
            high[r][v] = _mm512_dpbusd_epi32(high[r][v], h, x[v]);
            low[r][v] = _mm512_dpbusd_epi32(low[r][v], l, x[v]);
        }
    }
}

/* A panel's weights: those of the rows times the scales of the values, and what a unit of them is. */
typedef struct panel_weights {
    weight_bytes bytes[GROUP];
    float unit[GROUP];
    /* Scales of Q4_0 have signs, weights none: half h of a token is (h ^ flip) + shift, h - 8 or 8 - h. */
    int8_t flip[LN_PAGE_TOKENS], shift[LN_PAGE_TOKENS];
} panel_weights;

INLINE void scale_panel(const unsigned char *scales, const page_weights *w, int rows, panel_weights *to) {
    __m512 scale[PAIR] = {load_scales(scales, 0), load_scales(scales, 16)};
    const __m512 zero = _mm512_setzero_ps();
    const __mmask32 negative = (__mmask32)_mm512_cmp_ps_mask(scale[1], zero, _CMP_LT_OQ) << 16 |
                               _mm512_cmp_ps_mask(scale[0], zero, _CMP_LT_OQ);
    _mm256_storeu_si256((__m256i *)(void *)to->flip, _mm256_movm_epi8(negative));
    _mm256_storeu_si256((__m256i *)(void *)to->shift,
                        _mm256_mask_blend_epi8(negative, _mm256_set1_epi8(-8), _mm256_set1_epi8(9)));
    UNROLL for (int v = 0; v < PAIR; v++) scale[v] = _mm512_abs_ps(scale[v]);
    const float most = largest(scale[0], scale[1]);
    const __m512 factor = _mm512_set1_ps(LARGEST * reciprocal(most));
    UNROLL for (int v = 0; v < PAIR; v++) scale[v] = _mm512_mul_ps(scale[v], factor);
    UNROLL for (int r = 0; r < rows; r++) {
        store_bytes(&w[r], scale, &to->bytes[r]);
        to->unit[r] = w[r].weight * (most < INFINITY ? most / LARGEST : NAN);
    }
}

/* Of tokens k .. k + 3. */
INLINE __m512i signed_halves(__m512i x, const panel_weights *w, int64_t k) {
    const __m512i half = _mm512_and_si512(x, _mm512_set1_epi8(15));
    return _mm512_add_epi8(_mm512_xor_si512(half, broadcast(w->flip + k)), broadcast(w->shift + k));
}

INLINE void add_panel(linnet_type precision, const unsigned char *codes, const unsigned char *ahead,
                      const panel_weights *w, int rows, float *c) {
    integers high, low;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) high[r][v] = low[r][v] = _mm512_setzero_si512();
    }
    UNROLL for (int64_t i = 0; i < LN_PAGE_TOKENS; i += precision == LINNET_Q4_0 ? 8 : 4) {
        __m512i x[PAIR], y[PAIR];
        load_four(row_at(precision, codes, i), row_at(precision, ahead, i), x);
        if (precision == LINNET_Q4_0) {
            UNROLL for (int v = 0; v < PAIR; v++) {
                y[v] = signed_halves(_mm512_srli_epi32(x[v], 4), w, i + 4);
                x[v] = signed_halves(x[v], w, i);
            }
        }
        multiply_weights(high, low, x, w->bytes, rows, i);
        if (precision == LINNET_Q4_0) multiply_weights(high, low, y, w->bytes, rows, i + 4);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const __m512 unit = _mm512_set1_ps(w->unit[r]);
        UNROLL for (int v = 0; v < PAIR; v++) {
            float *to = c + r * LN_ATTEND_STRIDE + 16 * v;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(combined(high[r][v], low[r][v]), unit, _mm512_loadu_ps(to)));
        }
    }
}

/* The weights of all panels first: products would wait for those of their own. */
INLINE void add_panels(linnet_type precision, const ln_attend_part *part, int64_t panels, const float *weights,
                       int rows, float *c) {
    page_weights w[GROUP];
    panel_weights panel[LN_ATTEND_DEPTH / LN_PANEL];
    UNROLL for (int r = 0; r < rows; r++) w[r] = scale_weights(weights + r * LN_ATTEND_STRIDE);
    for (int64_t p = 0; p < panels; p++)
        scale_panel(part->scales + p * (int64_t)sizeof(uint16_t) * LN_PAGE_TOKENS, w, rows, &panel[p]);
    for (int64_t p = 0; p < panels; p++)
        add_panel(precision, row_at(precision, part->codes, p * LN_PAGE_TOKENS),
                  row_at(precision, part->ahead, p * LN_PAGE_TOKENS), &panel[p], rows, c + p * LN_PANEL);
}

/* ---- any number of rows ---- */

#define BY_ROWS(rows, CALL) \
    switch (rows) {         \
    case 1:                 \
        CALL(1);            \
        break;              \
    case 2:                 \
        CALL(2);            \
        break;              \
    case 3:                 \
        CALL(3);            \
        break;              \
    default:                \
        CALL(4);            \
    }

INLINE void scores_of(linnet_type precision, const ln_attend_operand *keys, const ln_attend_integers *a, int64_t rows,
                      float *c, bool add) {
    for (int64_t r = 0; r < rows; r += GROUP) {
        for (int64_t i = 0; i < keys->count; i++) {
#define CALL(n) \
    score_rows(precision, keys, &keys->parts[i], a + r, n, c + r * LN_ATTEND_STRIDE + i * LN_PAGE_TOKENS, add)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}

INLINE void outputs_of(linnet_type precision, const ln_attend_operand *values, int64_t panels, const float *weights,
                       int64_t rows, float *c) {
    for (int64_t p = 0; p < values->count; p++, weights += LN_PAGE_TOKENS) {
        for (int64_t r = 0; r < rows; r += GROUP) {
#define CALL(n) \
    add_panels(precision, &values->parts[p], panels, weights + r * LN_ATTEND_STRIDE, n, c + r * LN_ATTEND_STRIDE)
            BY_ROWS(rows - r, CALL)
#undef CALL
        }
    }
}

#define PRECISION(name, type)                                                                                       \
    static void scores_##name(const ln_attend_operand *keys, const ln_attend_integers *a, int64_t rows, float *c,   \
                              bool add) {                                                                           \
        scores_of(type, keys, a, rows, c, add);                                                                     \
    }                                                                                                               \
    static void outputs_##name(const ln_attend_operand *values, int64_t panels, const float *weights, int64_t rows, \
                               float *c) {                                                                          \
        outputs_of(type, values, panels, weights, rows, c);                                                         \
    }
PRECISION(q8_0, LINNET_Q8_0)
PRECISION(q4_0, LINNET_Q4_0)

void ln_attend_fill_avx512vnni(ln_attend_kernels *kernels) {
    kernels->integer = (ln_attend_integer){
        .name = "attend_integer__avx512vnni",
        .quantize = quantize,
        .scores = {[LINNET_Q8_0] = scores_q8_0, [LINNET_Q4_0] = scores_q4_0},
        .outputs = {[LINNET_Q8_0] = outputs_q8_0, [LINNET_Q4_0] = outputs_q4_0},
    };
}
