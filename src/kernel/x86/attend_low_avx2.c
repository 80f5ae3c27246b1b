/* Owns: attention's products with pages of 2 to 5 bits, for few rows, with AVX2.
 *
 * The equations are those of attend_low_avx512vnni.c. vpmaddubsw adds products of codes and bytes by twos in 16 bits;
 * eight groups of rows sum up to 16 * 127 * code there, so codes of 5 bits are taken to 32 bits after every four.
 * Sixteen columns at a time, two vectors for each of four rows. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernel/attend_sets.h"

enum { GROUP = 4, PAIR = 2, W = 8, EIGHT = 8, PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS, MOST = 127 };

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* What is below LEAST counts as 0: its reciprocal might be none. */
static const float LEAST = 1e-30f;

INLINE float middle_of(int bits) {
    return 0.5f * (float)((1 << bits) - 1);
}
INLINE float reciprocal(float x) {
    return x > LEAST ? 1 / x : 0;
}

INLINE __m256i load_bytes(const void *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}

/* Four rows, those of group g, of columns 8 v and up. */
INLINE __m256i load_codes(int bits, const unsigned char *square, int g, int64_t v) {
    const int low = ln_plane_bits(bits), shift = ln_code_shift(bits, 4 * g);
    const __m256i bytes = load_bytes(square + ln_code_section(bits, 4 * g) + 32 * v);
    const __m256i code =
        _mm256_and_si256(shift ? _mm256_srli_epi32(bytes, shift) : bytes, _mm256_set1_epi8((char)((1 << low) - 1)));
    if (bits == low) return code;
    const __m256i tops = load_bytes(square + ln_top_section(bits) + 32 * v);
    const __m256i moved = g < low ? _mm256_slli_epi32(tops, low - g) : _mm256_srli_epi32(tops, g - low);
    return _mm256_or_si256(code, _mm256_and_si256(moved, _mm256_set1_epi8((char)(1 << low))));
}

/* Steps, and z, of blocks by token i and up. */
typedef struct token_steps {
    __m256 step, zero;
} token_steps;

INLINE token_steps load_steps(int bits, const unsigned char *scales, int64_t i) {
    const __m128i words = _mm_loadu_si128((const __m128i *)(const void *)(scales + 2 * i));
    const __m256i zeros = _mm256_cvtepu16_epi32(_mm_and_si128(words, _mm_set1_epi16(63)));
    return (token_steps){_mm256_cvtph_ps(_mm_slli_epi16(_mm_srli_epi16(words, 6), 5)),
                         _mm256_mul_ps(_mm256_cvtepi32_ps(zeros), _mm256_set1_ps(ln_zero_unit(bits)))};
}

typedef __m256i integers[GROUP][PAIR];
typedef __m256 floats[GROUP][PAIR];

/* sum = products of a square's columns 16 half and up with 32 bytes of each row, `stride` bytes apart. */
INLINE void multiply_square(int bits, const unsigned char *square, int64_t half, integers sum, const int8_t *bytes,
                            int64_t stride, int rows) {
    integers narrow;
    UNROLL for (int g = 0; g < EIGHT; g++) {
        __m256i x[PAIR];
        UNROLL for (int v = 0; v < PAIR; v++) x[v] = load_codes(bits, square, g, PAIR * half + v);
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, bytes + r * stride + 4 * g, sizeof four);
            UNROLL for (int v = 0; v < PAIR; v++) {
                const __m256i products = _mm256_maddubs_epi16(x[v], _mm256_set1_epi32(four));
                const bool first = g == 0 || (bits == 5 && g == 4);
                narrow[r][v] = first ? products : _mm256_add_epi16(narrow[r][v], products);
                if (bits == 5 && g == 3) sum[r][v] = _mm256_madd_epi16(narrow[r][v], _mm256_set1_epi16(1));
                if (g < EIGHT - 1) continue;
                const __m256i wide = _mm256_madd_epi16(narrow[r][v], _mm256_set1_epi16(1));
                sum[r][v] = bits == 5 ? _mm256_add_epi32(sum[r][v], wide) : wide;
            }
        }
    }
}

/* ---- sums over lanes ---- */

/* Largest of the sizes of 32 numbers, ordered as integers: a NaN is larger than all. */
INLINE float largest_of(const __m256 *x) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 4; i++) most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(x[i]), size));
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1))));
}

INLINE float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* ---- scores ---- */

/* n values, a multiple of 8, as bytes, those up to the next 32 zeros; returns the unit. */
static float quantize_some(const float *x, int64_t n, int8_t *bytes, float *rest, float *total) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    __m256 most[4], sum = _mm256_setzero_ps(), left = sum;
    for (int i = 0; i < 4; i++) most[i] = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += W) {
        const __m256 v = _mm256_loadu_ps(x + i);
        const __m256i here = _mm256_and_si256(_mm256_castps_si256(v), size);
        most[0] = _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most[0]), here));
        sum = _mm256_add_ps(sum, v);
    }
    const float widest = largest_of(most);
    const __m256 inverse = _mm256_set1_ps(widest < INFINITY ? MOST * reciprocal(widest) : 0),
                 unit = _mm256_set1_ps(widest < INFINITY ? widest / MOST : NAN);
    for (int64_t i = 0; i < (n + 31) / 32 * 32; i += W) {
        const __m256 v = i < n ? _mm256_loadu_ps(x + i) : _mm256_setzero_ps();
        const __m256i byte = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(byte), _mm256_extracti128_si256(byte, 1));
        left = _mm256_add_ps(left, _mm256_fnmadd_ps(unit, _mm256_cvtepi32_ps(byte), v));
        _mm_storel_epi64((__m128i *)(void *)(bytes + i), _mm_packs_epi16(words, words));
    }
    *rest = sum_of(left);
    *total = sum_of(sum);
    return _mm256_cvtss_f32(unit);
}

static void quantize(const float *a, int64_t depth, int64_t rows, ln_attend_integers *to) {
    for (int64_t r = 0; r < rows; r++, a += LN_ATTEND_STRIDE) {
        to[r].row = a;
        for (int64_t i = 0; i < depth; i += 32)
            to[r].unit[i / 32] = quantize_some(a + i, depth - i < 32 ? depth - i : 32, to[r].byte + i,
                                               &to[r].rest[i / 32], &to[r].total[i / 32]);
    }
}

INLINE void store_scores(floats total, int64_t half, int rows, float *c, bool add) {
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) {
            float *to = c + r * LN_ATTEND_STRIDE + W * (PAIR * half + v);
            _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), total[r][v]) : total[r][v]);
        }
    }
}

INLINE void score_tokens(int bits, const ln_attend_part *part, int64_t depth, const ln_attend_integers *a, int rows,
                         float *c, bool add) {
    for (int64_t half = 0; half < 2; half++) {
        floats total;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) total[r][v] = _mm256_setzero_ps();
        }
        for (int64_t b = 0; b * LN_LOW_SQUARE < depth; b++) {
            integers sum;
            multiply_square(bits, part->codes + b * LN_LOW_SECTION * bits, half, sum, a[0].byte + b * LN_LOW_SQUARE,
                            (int64_t)sizeof *a, rows);
            UNROLL for (int v = 0; v < PAIR; v++) {
                const token_steps s = load_steps(bits, part->scales, b * LN_LOW_SQUARE + W * (PAIR * half + v));
                UNROLL for (int r = 0; r < rows; r++) {
                    const __m256 rest = _mm256_set1_ps(middle_of(bits) * a[r].rest[b]);
                    __m256 x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][v]), _mm256_set1_ps(a[r].unit[b]), rest);
                    x = _mm256_fnmadd_ps(s.zero, _mm256_set1_ps(a[r].total[b]), x);
                    total[r][v] = _mm256_fmadd_ps(s.step, x, total[r][v]);
                }
            }
        }
        store_scores(total, half, rows, c, add);
    }
}

INLINE void score_channels(int bits, const ln_attend_part *part, int64_t depth, const ln_attend_integers *a, int rows,
                           float *c, bool add) {
    const ln_channel_steps *steps = (const ln_channel_steps *)(const void *)part->scales;
    float step[LN_ATTEND_DEPTH], minimum[LN_ATTEND_DEPTH], unit[GROUP], rest[GROUP];
    int8_t bytes[GROUP][LN_ATTEND_DEPTH];
    for (int64_t i = 0; i < (depth + 31) / 32 * 32; i += W) {
        const __m128i halves = _mm_slli_epi16(
            _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)(steps[i / 32].step + i % 32))), 7);
        _mm256_storeu_ps(step + i, _mm256_cvtph_ps(halves));
        _mm256_storeu_ps(minimum + i, _mm256_cvtph_ps(_mm_loadu_si128(
                                          (const __m128i *)(const void *)(steps[i / 32].minimum + i % 32))));
    }
    for (int r = 0; r < rows; r++) {
        float scaled[LN_ATTEND_DEPTH], offset, total;
        __m256 sum = _mm256_setzero_ps();
        for (int64_t i = 0; i < depth; i += W) {
            const __m256 query = _mm256_loadu_ps(a[r].row + i);
            _mm256_storeu_ps(scaled + i, _mm256_mul_ps(query, _mm256_loadu_ps(step + i)));
            sum = _mm256_fmadd_ps(query, _mm256_loadu_ps(minimum + i), sum);
        }
        offset = sum_of(sum);
        unit[r] = quantize_some(scaled, depth, bytes[r], &rest[r], &total);
        rest[r] = offset + middle_of(bits) * rest[r];
    }
    for (int64_t half = 0; half < 2; half++) {
        floats total;
        integers all;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) all[r][v] = _mm256_setzero_si256();
        }
        for (int64_t b = 0; b * LN_LOW_SQUARE < depth; b++) {
            integers sum;
            multiply_square(bits, part->codes + b * LN_LOW_SECTION * bits, half, sum, bytes[0] + b * LN_LOW_SQUARE,
                            LN_ATTEND_DEPTH, rows);
            UNROLL for (int r = 0; r < rows; r++) {
                UNROLL for (int v = 0; v < PAIR; v++) all[r][v] = _mm256_add_epi32(all[r][v], sum[r][v]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) total[r][v] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(all[r][v]), _mm256_set1_ps(unit[r]), _mm256_set1_ps(rest[r]));
        }
        store_scores(total, half, rows, c, add);
    }
}

/* ---- outputs ---- */

/* What the products of a panel with up to PAGES pages need. */
typedef struct panel_weights {
    int8_t bytes[PAGES][GROUP][LN_PAGE_TOKENS];
    float unit[PAGES][GROUP];
    float centre[GROUP]; /* sum of w s (middle - z) - unit middle i: added to all columns */
} panel_weights;

INLINE void weigh_panel(int bits, const ln_attend_part *parts, int64_t pages, int64_t panel, const float *weights,
                        const float *most, int rows, panel_weights *w) {
    const __m256 middle = _mm256_set1_ps(middle_of(bits));
    __m256 centre[GROUP];
    UNROLL for (int r = 0; r < rows; r++) centre[r] = _mm256_setzero_ps();
    for (int64_t p = 0; p < pages; p++) {
        __m256 step[4], offset[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const token_steps s = load_steps(bits, parts[p].scales + panel * 2 * LN_PAGE_TOKENS, W * i);
            step[i] = s.step;
            offset[i] = _mm256_mul_ps(s.step, _mm256_sub_ps(middle, s.zero));
        }
        const float widest = largest_of(step), inverse = MOST * reciprocal(widest);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256 factor = _mm256_set1_ps(inverse * reciprocal(most[p * GROUP + r]));
            __m256i x[4];
            __m256 sum = _mm256_setzero_ps();
            w->unit[p][r] = most[p * GROUP + r] * widest / MOST;
            UNROLL for (int i = 0; i < 4; i++) {
                const __m256 weight = _mm256_loadu_ps(weights + r * LN_ATTEND_STRIDE + p * LN_PAGE_TOKENS + W * i);
                x[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_mul_ps(weight, factor), step[i]));
                sum = _mm256_add_ps(sum, _mm256_cvtepi32_ps(x[i]));
                centre[r] = _mm256_fmadd_ps(offset[i], weight, centre[r]);
            }
            centre[r] = _mm256_fnmadd_ps(_mm256_set1_ps(w->unit[p][r] * middle_of(bits)), sum, centre[r]);
            const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
            _mm256_storeu_si256((__m256i *)(void *)w->bytes[p][r],
                                _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) w->centre[r] = sum_of(centre[r]);
}

INLINE void add_panel(int bits, const ln_attend_part *parts, int64_t pages, int64_t panel, const panel_weights *w,
                      int rows, float *c) {
    for (int64_t half = 0; half < 2; half++) {
        floats total;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) total[r][v] = _mm256_add_ps(
                _mm256_loadu_ps(c + r * LN_ATTEND_STRIDE + W * (PAIR * half + v)), _mm256_set1_ps(w->centre[r]));
        }
        for (int64_t p = 0; p < pages; p++) {
            integers sum;
            multiply_square(bits, parts[p].codes + panel * LN_LOW_SECTION * bits, half, sum, w->bytes[p][0],
                            LN_PAGE_TOKENS, rows);
            UNROLL for (int r = 0; r < rows; r++) {
                UNROLL for (int v = 0; v < PAIR; v++) total[r][v] =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][v]), _mm256_set1_ps(w->unit[p][r]), total[r][v]);
            }
        }
        store_scores(total, half, rows, c, false);
    }
}

/* The weights of a panel before the products of the one before: products would wait for those of their own. */
INLINE void add_pages(int bits, const ln_attend_operand *values, int64_t panels, const float *weights, int rows,
                      float *c) {
    for (int64_t first = 0; first < values->count; first += PAGES, weights += PAGES * LN_PAGE_TOKENS) {
        const int64_t left = values->count - first, pages = left < PAGES ? left : PAGES;
        const ln_attend_part *parts = values->parts + first;
        float most[PAGES * GROUP];
        panel_weights w[2];
        for (int64_t p = 0; p < pages; p++) {
            UNROLL for (int r = 0; r < rows; r++) {
                __m256 x[4];
                UNROLL for (int i = 0; i < 4; i++) x[i] =
                    _mm256_loadu_ps(weights + r * LN_ATTEND_STRIDE + p * LN_PAGE_TOKENS + W * i);
                most[p * GROUP + r] = largest_of(x);
            }
        }
        for (int64_t panel = 0; panel <= panels; panel++) {
            if (panel < panels) weigh_panel(bits, parts, pages, panel, weights, most, rows, &w[panel % 2]);
            if (panel > 0)
                add_panel(bits, parts, pages, panel - 1, &w[(panel - 1) % 2], rows, c + (panel - 1) * LN_PANEL);
        }
    }
}

#include "kernel/x86/attend_low_rows.h"

void ln_attend_fill_low_avx2(ln_attend_kernels *kernels) {
    kernels->integer = (ln_attend_integer){
        .name = "attend_integer__avx2",
        .quantize = quantize,
        .scores = {[LINNET_Q2] = scores_q2, [LINNET_Q3] = scores_q3, [LINNET_Q4] = scores_q4, [LINNET_Q5] = scores_q5},
        .outputs =
            {[LINNET_Q2] = outputs_q2, [LINNET_Q3] = outputs_q3, [LINNET_Q4] = outputs_q4, [LINNET_Q5] = outputs_q5},
    };
}
