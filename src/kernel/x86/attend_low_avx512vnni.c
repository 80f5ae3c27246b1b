/* Owns: attention's products with pages of 2 to 5 bits, for few rows, with AVX-512 VNNI.
 *
 * Codes are bytes from 0 to 31, queries and weights bytes with a unit, so that one vpdpbusd does 64 products; sixteen
 * columns of four rows are a vector, and the planes that lie over one another in a byte need a shift and a mask each.
 * With x = unit i + e (i the byte, e what it leaves), codes c <= top and middle = top / 2,
 *   sum x c  =  unit sum i c + sum e c  ~  unit sum i c + middle sum e
 * whose error, sum e (c - middle), has no part that all columns share.
 *   by token    score = sum over blocks of s_t (q . c - z_t sum q)
 *   by channel  score = (q s) . c + q . m, the products q s made bytes for each page
 *   output      sum over tokens of (w s) (c - z), the products w s >= 0 made bytes for each page and panel */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernel/attend_sets.h"

enum {
    GROUP = 4,
    PAIR = 2,
    EIGHT = 8, /* groups of four rows in a square */
    PANELS = LN_ATTEND_DEPTH / LN_PANEL,
    PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS
};

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

/* ---- codes ---- */

/* Four rows, those of group g, of 16 columns. */
INLINE __m512i load_codes(int bits, const unsigned char *square, int g, int v) {
    const int low = ln_plane_bits(bits), shift = ln_code_shift(bits, 4 * g);
    const __m512i bytes = _mm512_loadu_si512(square + ln_code_section(bits, 4 * g) + 64 * v);
    const __m512i mask = _mm512_set1_epi8((char)((1 << low) - 1));
    const __m512i code = _mm512_and_si512(shift ? _mm512_srli_epi32(bytes, (unsigned)shift) : bytes, mask);
    if (bits == low) return code;
    const __m512i tops = _mm512_loadu_si512(square + ln_top_section(bits) + 64 * v);
    const __m512i moved = g < low   ? _mm512_slli_epi32(tops, (unsigned)(low - g))
                          : g > low ? _mm512_srli_epi32(tops, (unsigned)(g - low))
                                    : tops;
    return _mm512_or_si512(code, _mm512_and_si512(moved, _mm512_set1_epi8((char)(1 << low))));
}

/* Square b of what will be needed soon, and its steps. */
INLINE void fetch_ahead(const ln_attend_part *part, int64_t b, int bits) {
    const uintptr_t codes = (uintptr_t)part->ahead + (uintptr_t)(b * LN_LOW_SECTION * bits);
    const uintptr_t steps = (uintptr_t)part->ahead + ((uintptr_t)part->scales - (uintptr_t)part->codes);
    UNROLL for (uintptr_t i = 0; i < (uintptr_t)(128 * bits); i += 64) __builtin_prefetch((const void *)(codes + i));
    __builtin_prefetch((const void *)(steps + (uintptr_t)b * (part->channels ? sizeof(ln_channel_steps) : 64)));
}

INLINE __m512i broadcast(const int8_t *four) {
    int32_t dword;
    memcpy(&dword, four, sizeof dword);
    return _mm512_set1_epi32(dword);
}

/* Steps, and z, of 16 blocks by token. */
typedef struct token_steps {
    __m512 step, zero;
} token_steps;

INLINE token_steps load_steps(int bits, const unsigned char *scales, int64_t i) {
    const __m256i words = _mm256_loadu_si256((const __m256i *)(const void *)(scales + 2 * i));
    const __m256i halves = _mm256_slli_epi16(_mm256_srli_epi16(words, 6), 5);
    const __m512i zeros = _mm512_cvtepu16_epi32(_mm256_and_si256(words, _mm256_set1_epi16(63)));
    return (token_steps){_mm512_cvtph_ps(halves),
                         _mm512_mul_ps(_mm512_cvtepi32_ps(zeros), _mm512_set1_ps(ln_zero_unit(bits)))};
}

typedef __m512i integers[GROUP][PAIR];
typedef __m512 floats[GROUP][PAIR];

/* ---- sums over lanes ---- */

/* The lanes' largest of four vectors of numbers >= 0, ordered as integers: a NaN is larger than all. */
INLINE __m128i largest_of(const __m512i *x) {
    const __m512i a = _mm512_max_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1])),
                  b = _mm512_max_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    const __m512i c = _mm512_max_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    return _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* 1 / x; 0 for what is too small or not a number. */
INLINE __m128 reciprocals(__m128 x, float least) {
    return _mm_maskz_div_ps(_mm_cmp_ps_mask(x, _mm_set1_ps(least), _CMP_GT_OQ), _mm_set1_ps(1), x);
}

/* The lanes' sums of four vectors. */
INLINE __m128 sums_of(const __m512 *x) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1])),
                 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* ---- scores ---- */

/* Where a dword of bytes is: those of row r and of rows 4 g and up of a square. Paired: of two rows in one vector. */
INLINE int64_t bytes_at(int r, int g, int64_t stride, bool paired) {
    return paired ? 64 * (r / 2) + 4 * (4 * (g % 4) + 2 * (r % 2) + g / 4) : r * stride + 4 * g;
}

/* Adds a square's products with 32 bytes of each row: signed queries, or weights, which have no sign. */
INLINE void multiply_square(int bits, const unsigned char *square, integers sum, const void *bytes, int64_t stride,
                            bool paired, bool weights, int rows) {
    UNROLL for (int g = 0; g < EIGHT; g++) {
        __m512i x[PAIR];
        UNROLL for (int v = 0; v < PAIR; v++) x[v] = load_codes(bits, square, g, v);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512i four = broadcast((const int8_t *)bytes + bytes_at(r, g, stride, paired));
            UNROLL for (int v = 0; v < PAIR; v++) sum[r][v] =
                weights ? _mm512_dpbusd_epi32(sum[r][v], four, x[v]) : _mm512_dpbusd_epi32(sum[r][v], x[v], four);
        }
    }
}

/* Two rows' 32 integers as such bytes. */
INLINE __m512i pair_bytes(__m512i (*x)[PAIR], bool weights) {
    const __m512i first = _mm512_packs_epi32(x[0][0], x[0][1]), second = _mm512_packs_epi32(x[1][0], x[1][1]);
    return weights ? _mm512_packus_epi16(first, second) : _mm512_packs_epi16(first, second);
}

enum { SECOND = 0xcccc /* lanes of the second row of two */ };

INLINE __m512 pair_floats(const float *x) {
    return _mm512_mask_blend_ps(SECOND, _mm512_set1_ps(x[0]), _mm512_set1_ps(x[1]));
}

INLINE void clear_integers(integers sum, int rows) {
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) sum[r][v] = _mm512_setzero_si512();
    }
}

INLINE void store_scores(const floats sum, int rows, float *c, bool add) {
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) {
            float *to = c + r * LN_ATTEND_STRIDE + 16 * v;
            _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum[r][v]) : sum[r][v]);
        }
    }
}

INLINE void score_tokens(int bits, const ln_attend_part *part, int64_t depth, const ln_attend_integers *a, int rows,
                         float *c, bool add) {
    const __m512 middle = _mm512_set1_ps(middle_of(bits));
    floats total;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) total[r][v] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b * LN_LOW_SQUARE < depth; b++) {
        integers sum;
        clear_integers(sum, rows);
        fetch_ahead(part, b, bits);
        multiply_square(bits, part->codes + b * LN_LOW_SECTION * bits, sum, a[0].byte + b * LN_LOW_SQUARE,
                        (int64_t)sizeof *a, false, false, rows);
        UNROLL for (int v = 0; v < PAIR; v++) {
            const token_steps s = load_steps(bits, part->scales, b * LN_LOW_SQUARE + 16 * v);
            UNROLL for (int r = 0; r < rows; r++) {
                const __m512 rest = _mm512_mul_ps(middle, _mm512_set1_ps(a[r].rest[b]));
                __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][v]), _mm512_set1_ps(a[r].unit[b]), rest);
                x = _mm512_fnmadd_ps(s.zero, _mm512_set1_ps(a[r].total[b]), x);
                total[r][v] = _mm512_fmadd_ps(s.step, x, total[r][v]);
            }
        }
    }
    store_scores(total, rows, c, add);
}

/* ---- keys by channel ---- */

/* Queries times a page's steps as bytes, in pairs of rows; rest: with minima, and what the bytes leave. */
typedef struct channel_queries {
    __m512i bytes[LN_ATTEND_DEPTH / LN_LOW_SQUARE][GROUP / 2];
    float unit[GROUP], rest[GROUP];
} channel_queries;

INLINE void scale_queries(int bits, const unsigned char *scales, int64_t depth, const ln_attend_integers *a, int rows,
                          channel_queries *to) {
    const __m512i size = _mm512_set1_epi32(0x7fffffff);
    const __m512 middle = _mm512_set1_ps(middle_of(bits));
    const ln_channel_steps *steps = (const ln_channel_steps *)(const void *)scales;
    __m512 x[LN_ATTEND_DEPTH / 16][GROUP], centre[GROUP], whole[GROUP / 2];
    __m512i most[GROUP];
    UNROLL for (int r = 0; r < GROUP; r++) {
        centre[r] = whole[r / 2] = _mm512_setzero_ps();
        most[r] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < depth; i += 16) {
        const __mmask16 mask = (__mmask16)(depth - i >= 16 ? 0xffff : 0xff);
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(steps[i / 32].step + i % 32));
        const __m256i minima = _mm256_loadu_si256((const __m256i *)(const void *)(steps[i / 32].minimum + i % 32));
        const __m512 step =
            _mm512_maskz_mov_ps(mask, _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7)));
        const __m512 offset = _mm512_fmadd_ps(step, middle, _mm512_maskz_mov_ps(mask, _mm512_cvtph_ps(minima)));
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512 query = _mm512_maskz_loadu_ps(mask, a[r].row + i);
            x[i / 16][r] = _mm512_mul_ps(query, step);
            most[r] = _mm512_max_epi32(most[r], _mm512_and_si512(_mm512_castps_si512(x[i / 16][r]), size));
            centre[r] = _mm512_fmadd_ps(query, offset, centre[r]);
        }
    }
    for (int64_t i = (depth + 15) / 16; i % PAIR; i++)
        UNROLL for (int r = 0; r < rows; r++) x[i][r] = _mm512_setzero_ps();
    const __m128 unit = _mm_mul_ps(_mm_castsi128_ps(largest_of(most)), _mm_set1_ps(1.0f / 127));
    float inverse[GROUP];
    _mm_storeu_ps(inverse, reciprocals(unit, LEAST));
    _mm_storeu_ps(to->unit,
                  _mm_mask_blend_ps(_mm_cmp_ps_mask(unit, _mm_set1_ps(INFINITY), _CMP_EQ_OQ), unit, _mm_set1_ps(NAN)));
    for (int64_t b = 0; b * LN_LOW_SQUARE < depth; b++) {
        __m512i byte[GROUP][PAIR];
        UNROLL for (int r = 0; r < GROUP; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) byte[r][v] =
                r < rows ? _mm512_cvtps_epi32(_mm512_mul_ps(x[b * PAIR + v][r], _mm512_set1_ps(inverse[r])))
                         : _mm512_setzero_si512();
        }
        UNROLL for (int r = 0; r < rows; r += 2) {
            to->bytes[b][r / 2] = pair_bytes(byte + r, false);
            const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), to->bytes[b][r / 2]);
            whole[r / 2] = _mm512_add_ps(whole[r / 2], _mm512_cvtepi32_ps(sum));
        }
    }
    UNROLL for (int r = 0; r < GROUP; r++) centre[r] = _mm512_mask3_fmadd_ps(
        whole[r / 2], _mm512_set1_ps(-middle_of(bits) * to->unit[r]), centre[r], (__mmask16)(r % 2 ? SECOND : ~SECOND));
    _mm_storeu_ps(to->rest, sums_of(centre));
}

INLINE void score_channels(int bits, const ln_attend_part *part, int64_t depth, const ln_attend_integers *a, int rows,
                           float *c, bool add) {
    channel_queries queries;
    integers sum;
    floats total;
    clear_integers(sum, rows);
    scale_queries(bits, part->scales, depth, a, rows, &queries);
    for (int64_t b = 0; b * LN_LOW_SQUARE < depth; b++) {
        fetch_ahead(part, b, bits);
        multiply_square(bits, part->codes + b * LN_LOW_SECTION * bits, sum, queries.bytes[b], 0, true, false, rows);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) total[r][v] = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(sum[r][v]), _mm512_set1_ps(queries.unit[r]), _mm512_set1_ps(queries.rest[r]));
    }
    store_scores(total, rows, c, add);
}

/* ---- outputs ---- */

/* Weights of pages, and what is made of them before the first product: products would wait for it.
 *
 * Two rows' bytes are a vector: dword 4 (g % 4) + 2 (r % 2) + g / 4 of bytes [panel][page][r / 2] are those of row r
 * and tokens 4 g and up. */
typedef struct block_weights {
    __m512 part[PAGES][GROUP][PAIR]; /* times 1 / the largest of row and page */
    float largest[PAGES * GROUP];
    float unit[PANELS][PAGES], inverse[PANELS][PAGES]; /* the panel's largest step / 255, and 1 / it */
    __m512i bytes[PANELS][PAGES][GROUP / 2];
} block_weights;

INLINE void scale_weights(const float *weights, int64_t pages, int rows, block_weights *w) {
    const __m512i size = _mm512_set1_epi32(0x7fffffff);
    for (int64_t i = 0; i < pages; i++) {
        float inverse[GROUP];
        __m512 x[GROUP][PAIR];
        __m512i most[GROUP];
        UNROLL for (int r = 0; r < GROUP; r++) {
            const float *from = weights + r * LN_ATTEND_STRIDE + i * LN_PAGE_TOKENS;
            most[r] = _mm512_setzero_si512();
            if (r >= rows) continue;
            UNROLL for (int v = 0; v < PAIR; v++) {
                x[r][v] = _mm512_loadu_ps(from + 16 * v);
                most[r] = _mm512_max_epi32(most[r], _mm512_and_si512(_mm512_castps_si512(x[r][v]), size));
            }
        }
        const __m128 largest = _mm_castsi128_ps(largest_of(most));
        _mm_storeu_ps(w->largest + i * GROUP, largest);
        _mm_storeu_ps(inverse, reciprocals(largest, LEAST));
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < PAIR; v++) w->part[i][r][v] = _mm512_mul_ps(x[r][v], _mm512_set1_ps(inverse[r]));
        }
    }
}

/* Steps are ordered as their words are. */
INLINE void scale_panels(const ln_attend_part *parts, int64_t pages, int64_t panels, block_weights *w) {
    for (int64_t p = 0; p < panels; p++) {
        __m512i most[PAGES];
        UNROLL for (int i = 0; i < PAGES; i++) {
            most[i] = _mm512_setzero_si512();
            if (i >= pages) continue;
            const __m512i words = _mm512_loadu_si512(parts[i].scales + p * 2 * LN_PAGE_TOKENS);
            most[i] = _mm512_max_epi32(_mm512_srli_epi32(words, 22),
                                       _mm512_and_si512(_mm512_srli_epi32(words, 6), _mm512_set1_epi32(0x3ff)));
        }
        const __m128i halves = _mm_slli_epi32(largest_of(most), 5);
        const __m128 unit = _mm_mul_ps(_mm_cvtph_ps(_mm_packus_epi32(halves, halves)), _mm_set1_ps(1.0f / 255));
        _mm_storeu_ps(w->unit[p], unit);
        _mm_storeu_ps(w->inverse[p], reciprocals(unit, 0));
    }
}

/* The bytes of a panel; returns what is added to all its columns: sum of w s (middle - z) - unit middle i. */
INLINE __m128 weigh_panel(int bits, const ln_attend_part *parts, int64_t pages, int64_t panel, const float *weights,
                          int rows, block_weights *w) {
    const __m512 middle = _mm512_set1_ps(middle_of(bits)), minus = _mm512_set1_ps(-middle_of(bits));
    __m512 centre[GROUP], whole[GROUP / 2];
    UNROLL for (int r = 0; r < GROUP; r++) centre[r] = whole[r / 2] = _mm512_setzero_ps();
    for (int64_t i = 0; i < pages; i++) {
        const __m512 inverse = _mm512_set1_ps(w->inverse[panel][i]);
        __m512 step[PAIR], offset[PAIR];
        __m512i x[GROUP][PAIR];
        UNROLL for (int v = 0; v < PAIR; v++) {
            const token_steps s = load_steps(bits, parts[i].scales + panel * 2 * LN_PAGE_TOKENS, 16 * v);
            step[v] = _mm512_mul_ps(s.step, inverse);
            offset[v] = _mm512_mul_ps(s.step, _mm512_sub_ps(middle, s.zero));
        }
        UNROLL for (int r = 0; r < GROUP; r++) {
            const float *from = weights + r * LN_ATTEND_STRIDE + i * LN_PAGE_TOKENS;
            UNROLL for (int v = 0; v < PAIR; v++) {
                if (r >= rows) {
                    x[r][v] = _mm512_setzero_si512();
                    continue;
                }
                x[r][v] = _mm512_cvtps_epi32(_mm512_mul_ps(w->part[i][r][v], step[v]));
                centre[r] = _mm512_fmadd_ps(offset[v], _mm512_loadu_ps(from + 16 * v), centre[r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r += 2) {
            const __m512i bytes = pair_bytes(x + r, true);
            const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_set1_epi8(1));
            const __m512 unit =
                _mm512_mul_ps(pair_floats(w->largest + i * GROUP + r), _mm512_set1_ps(w->unit[panel][i]));
            whole[r / 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), unit, whole[r / 2]);
            w->bytes[panel][i][r / 2] = bytes;
        }
    }
    UNROLL for (int r = 0; r < GROUP; r++) centre[r] =
        _mm512_mask3_fmadd_ps(whole[r / 2], minus, centre[r], (__mmask16)(r % 2 ? SECOND : ~SECOND));
    return sums_of(centre);
}

/* c's rows += unit i . codes + centre */
INLINE void add_panel(int bits, const ln_attend_part *parts, int64_t pages, int64_t panel, int rows,
                      const block_weights *w, __m128 centre, float *c) {
    __m512 total[GROUP][PAIR];
    float all[GROUP];
    _mm_storeu_ps(all, centre);
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) total[r][v] =
            _mm512_add_ps(_mm512_loadu_ps(c + r * LN_ATTEND_STRIDE + 16 * v), _mm512_set1_ps(all[r]));
    }
    for (int64_t i = 0; i < pages; i++) {
        const int64_t at = panel * LN_LOW_SECTION * bits;
        integers sum;
        clear_integers(sum, rows);
        fetch_ahead(&parts[i], panel, bits);
        multiply_square(bits, parts[i].codes + at, sum, w->bytes[panel][i], 0, true, true, rows);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512 unit = _mm512_set1_ps(w->largest[i * GROUP + r] * w->unit[panel][i]);
            UNROLL for (int v = 0; v < PAIR; v++) total[r][v] =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][v]), unit, total[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < PAIR; v++) _mm512_storeu_ps(c + r * LN_ATTEND_STRIDE + 16 * v, total[r][v]);
    }
}

INLINE void add_pages(int bits, const ln_attend_operand *values, int64_t panels, const float *weights, int rows,
                      float *c) {
    for (int64_t first = 0; first < values->count; first += PAGES, weights += PAGES * LN_PAGE_TOKENS) {
        const int64_t left = values->count - first, pages = left < PAGES ? left : PAGES;
        const ln_attend_part *parts = values->parts + first;
        block_weights w;
        __m128 centre[PANELS];
        scale_weights(weights, pages, rows, &w);
        scale_panels(parts, pages, panels, &w);
        for (int64_t p = 0; p < panels; p++) centre[p] = weigh_panel(bits, parts, pages, p, weights, rows, &w);
        for (int64_t p = 0; p < panels; p++) add_panel(bits, parts, pages, p, rows, &w, centre[p], c + p * LN_PANEL);
    }
}

#include "kernel/x86/attend_low_rows.h"

void ln_attend_fill_low_avx512vnni(ln_attend_kernels *kernels) {
    ln_attend_integer *k = &kernels->integer;
    k->scores[LINNET_Q2] = scores_q2;
    k->scores[LINNET_Q3] = scores_q3;
    k->scores[LINNET_Q4] = scores_q4;
    k->scores[LINNET_Q5] = scores_q5;
    k->outputs[LINNET_Q2] = outputs_q2;
    k->outputs[LINNET_Q3] = outputs_q3;
    k->outputs[LINNET_Q4] = outputs_q4;
    k->outputs[LINNET_Q5] = outputs_q5;
}
