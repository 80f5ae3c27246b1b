/* Owns: attention's step on AMX tiles.
 *
 * 32 query rows against a page of 32 keys are 2 x 2 tiles of scores, S = Q K^T, and 2 tiles of weights, which are the
 * A operand of O += P V. A tile product holds half of the vector units' issue for 16 cycles, and 16 vector operations
 * beside it are free: so the products of one page's scores stand in the source between the rows of the softmax of the
 * page before (of the rows before, at their first page), 8 / depth tiles rows after each product. O, in memory, takes
 * the block's weights at once: 2 x 2 tiles loaded, one product chain a tile, stored.
 *
 * The softmax of 32 scores of a row is 8 operations:
 *     u = 256 (factor s - maximum + 127) - 1/2 - 32       two multiply-adds
 *     u as 16 bits, 0 .. 65535, saturated                 two conversions, one packing
 *     bits of the weight as bf16 = (u + T[u / 4 % 64] + 1) / 2    a shift, a table, an average
 * for u + 32 are the bits of a linear interpolation of 2^x with one more than bf16's; T, of 64 bytes, is 32 more than
 * what it lacks, 256 (2^f - 1 - f), chosen for the least square error. Below 2^-126 weights are denormal, which tile
 * products read as zero.
 *
 * That maximum stays is proved by |query| |key| where it can be; else the block's scores are held and looked at first.
 *
 * Order of keys: interleaving the rows of two sizes by 128-bit lanes puts tokens 0-3, 8-11, .. in the first tile of
 * scores and 4-7, 12-15, .. in the second; packing two vectors of u by lanes puts them in order again. */
#include <math.h>
#include <string.h>

#include "kernel/attend_sets.h"
#include "kernel/x86/amx.h"

#include <immintrin.h>

#define LN_INLINE static inline __attribute__((always_inline))

enum {
    ROWS = LN_BF16_ROWS,
    TILE = 16,         /* rows of a tile */
    TILE_BYTES = 1024, /* tiles are packed, 64 bytes a row */
    TILE_FLOATS = 256,
    PAGE_FLOATS = 4 * TILE_FLOATS, /* scores of ROWS rows: [rows / 16][first, second tile of keys][16][16] */
    PAGE_WEIGHTS = 2 * TILE_BYTES, /* [ROWS][32] */
    PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS,
    UNIT = 256, /* u of a power of two */
};

static int64_t depth_tiles(int64_t key_size) {
    return (key_size + 31) / 32;
}
static int64_t column_tiles(int64_t value_size) {
    return (value_size + TILE - 1) / TILE;
}
static int64_t query_bytes(int64_t key_size) {
    return 64 * depth_tiles(key_size);
}
static int64_t key_bytes(int64_t key_size) {
    return 2 * TILE_BYTES * depth_tiles(key_size);
}
static int64_t value_bytes(int64_t value_size) {
    return TILE_BYTES * column_tiles(value_size);
}

/* ---- packing ---- */

LN_INLINE __m512i to_bf16(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 32 codes, of which those in `mask` count, as bf16. */
LN_INLINE __m512i load_codes(linnet_type precision, const unsigned char *codes, __mmask32 mask, __m512 scale_low,
                             __m512 scale_high) {
    if (precision == LINNET_BF16) return _mm512_maskz_loadu_epi16(mask, codes);
    if (precision == LINNET_F16) {
        const __m512i x = _mm512_maskz_loadu_epi16(mask, codes);
        return to_bf16(_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
    }
    if (precision == LINNET_F32)
        return to_bf16(_mm512_maskz_loadu_ps((__mmask16)mask, codes),
                       _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), codes + 64));
    const __m256i x = _mm256_maskz_loadu_epi8(mask, codes);
    const __m512i low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)),
                  high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1));
    return to_bf16(_mm512_mul_ps(_mm512_cvtepi32_ps(low), scale_low),
                   _mm512_mul_ps(_mm512_cvtepi32_ps(high), scale_high));
}

static __mmask32 first_of_32(int64_t n) {
    return n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << n) - 1;
}

/* A bound on sqrt(sum) for a sum of squares in bf16 products, of which small ones were lost. */
static float length_of(float squares) {
    return 1.01f * sqrtf(squares + 1e-35f);
}

static float pack_query(linnet_type type, const void *query, int64_t key_size, int64_t row, void *operand) {
    const int64_t steps = depth_tiles(key_size);
    unsigned char *to = (unsigned char *)operand + row / TILE * steps * TILE_BYTES + row % TILE * 64;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++, to += TILE_BYTES) {
        __m512i x = _mm512_setzero_si512();
        if (query) {
            const unsigned char *from = (const unsigned char *)query + k * 32 * (type == LINNET_F32 ? 4 : 2);
            x = load_codes(type == LINNET_F32 ? LINNET_F32 : LINNET_BF16, from, first_of_32(key_size - 32 * k),
                           _mm512_setzero_ps(), _mm512_setzero_ps());
        }
        squares = _mm512_dpbf16_ps(squares, (__m512bh)x, (__m512bh)x);
        _mm512_store_si512(to, x);
    }
    return length_of(_mm512_reduce_add_ps(squares));
}

LN_INLINE float pack_keys_of(linnet_type precision, const ln_page_layout *layout, const unsigned char *page,
                             int64_t tokens, unsigned char *to) {
    const __mmask32 mask = first_of_32(tokens);
    const uint16_t *scales = (const uint16_t *)(const void *)(page + layout->key_scales);
    const int64_t row = LN_PAGE_TOKENS * layout->element, whole = 32 * depth_tiles(layout->key_size);
    __m512 low = _mm512_setzero_ps(), high = low, scale[2] = {low, low};
    for (int64_t i = 0; i < whole; i += 2) {
        __m512i a = _mm512_setzero_si512(), b = a;
        if (precision == LINNET_Q8_0 && i % 32 == 0)
            for (int j = 0; j < 2; j++)
                scale[j] = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)(scales + i + 16 * j)));
        if (i < layout->key_size) {
            a = load_codes(precision, page + i * row, mask, scale[0], scale[1]);
            b = load_codes(precision, page + (i + 1) * row, mask, scale[0], scale[1]);
        }
        const __m512i first = _mm512_unpacklo_epi16(a, b), second = _mm512_unpackhi_epi16(a, b);
        unsigned char *at = to + i / 32 * 2 * TILE_BYTES + i % 32 * 32;
        _mm512_store_si512(at, first);
        _mm512_store_si512(at + TILE_BYTES, second);
        low = _mm512_dpbf16_ps(low, (__m512bh)first, (__m512bh)first);
        high = _mm512_dpbf16_ps(high, (__m512bh)second, (__m512bh)second);
    }
    /* Not finite where some sum is not: differences of infinities are NaN, and the largest of others hides nothing. */
    const __m512 sound = _mm512_sub_ps(_mm512_add_ps(low, high), _mm512_add_ps(low, high));
    if (_mm512_cmp_ps_mask(sound, sound, _CMP_UNORD_Q)) return INFINITY;
    return length_of(_mm512_reduce_max_ps(_mm512_max_ps(low, high)));
}

LN_INLINE float pack_values_of(linnet_type precision, const ln_page_layout *layout, const unsigned char *page,
                               int64_t tokens, unsigned char *to) {
    const __m512i left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const uint16_t *scales = (const uint16_t *)(const void *)(page + layout->value_scales);
    const unsigned char *codes = page + layout->values;
    __m512i most = _mm512_setzero_si512();
    for (int64_t c = 0; c < layout->value_size; c += LN_PANEL, to += 2 * TILE_BYTES, scales += LN_PAGE_TOKENS) {
        const int64_t columns = layout->value_size - c < LN_PANEL ? layout->value_size - c : LN_PANEL;
        const __mmask32 mask = first_of_32(columns);
        for (int64_t t = 0; t < LN_PAGE_TOKENS; t += 2, codes += 2 * columns * layout->element) {
            __m512i x[2];
            for (int j = 0; j < 2; j++) {
                const __m512 scale = _mm512_set1_ps(precision == LINNET_Q8_0 && t + j < tokens
                                                        ? _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(scales[t + j])))
                                                        : 0);
                x[j] = load_codes(precision, codes + j * columns * layout->element, t + j < tokens ? mask : 0, scale,
                                  scale);
            }
            most = _mm512_max_epu16(most, _mm512_and_si512(x[0], _mm512_set1_epi16(0x7fff)));
            most = _mm512_max_epu16(most, _mm512_and_si512(x[1], _mm512_set1_epi16(0x7fff)));
            const __m512i a = _mm512_unpacklo_epi16(x[0], x[1]), b = _mm512_unpackhi_epi16(x[0], x[1]);
            _mm512_store_si512(to + t * 32, _mm512_permutex2var_epi64(a, left, b));
            if (columns > TILE) _mm512_store_si512(to + TILE_BYTES + t * 32, _mm512_permutex2var_epi64(a, right, b));
        }
    }
    const __m512i halves =
        _mm512_max_epu32(_mm512_and_si512(most, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(most, 16));
    const uint32_t bits = _mm512_reduce_max_epu32(halves);
    return bits < 0x7f80 ? ln_bf16_float((uint16_t)bits) : INFINITY;
}

#define LN_PACK(name)                                                                                      \
    static float name(const ln_page_layout *layout, const unsigned char *page, int64_t tokens, void *to) { \
        switch (layout->precision) {                                                                       \
        case LINNET_F16:                                                                                   \
            return name##_of(LINNET_F16, layout, page, tokens, to);                                        \
        case LINNET_BF16:                                                                                  \
            return name##_of(LINNET_BF16, layout, page, tokens, to);                                       \
        case LINNET_Q8_0:                                                                                  \
            return name##_of(LINNET_Q8_0, layout, page, tokens, to);                                       \
        default:                                                                                           \
            return name##_of(LINNET_F32, layout, page, tokens, to);                                        \
        }                                                                                                  \
    }
LN_PACK(pack_keys)
LN_PACK(pack_values)

/* ---- softmax ---- */

static const _Alignas(64) unsigned char table[64] = {23, 22, 21, 20, 19, 18, 17, 17, 16, 15, 15, 14, 14, 13, 13, 12,
                                                     12, 11, 11, 11, 11, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 11,
                                                     11, 11, 12, 12, 12, 13, 14, 14, 15, 16, 16, 17, 18, 19, 20, 21,
                                                     22, 23, 24, 26, 27, 28, 30, 31, 31, 30, 29, 28, 27, 26, 25, 24};

/* Scores of ROWS rows for a page that are to become weights. */
typedef struct piece {
    const float *scores;    /* [PAGE_FLOATS] */
    const float *shift;     /* [ROWS] */
    unsigned char *weights; /* [PAGE_WEIGHTS] */
    float *sum;             /* [ROWS][LN_ATTEND_LANES] */
    float factor;           /* times UNIT */
    bool masked;
    uint32_t mask[ROWS]; /* bit i: key i is seen */
} piece;

typedef struct constants {
    __m512 factor;
    __m512i table, ones;
} constants;

LN_INLINE constants constants_of(float factor) {
    return (constants){_mm512_set1_ps(factor), _mm512_load_si512(table), _mm512_set1_epi16(0x3f80)};
}

static float shift_of(float maximum) {
    return maximum == -INFINITY ? 0 : UNIT * (127 - maximum) - 32.5f;
}

LN_INLINE void soften_row(const piece *z, const constants *k, int64_t r, const bool masked) {
    const float *s = z->scores + r / TILE * 2 * TILE_FLOATS + r % TILE * TILE;
    const __m512 shift = _mm512_set1_ps(z->shift[r]);
    const __m512i a = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(s), k->factor, shift));
    const __m512i b = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(s + TILE_FLOATS), k->factor, shift));
    const __m512i u = _mm512_packus_epi32(a, b);
    const __m512i t = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(u, 2), k->table);
    const __m512i w = masked ? _mm512_maskz_avg_epu16(z->mask[r], u, t) : _mm512_avg_epu16(u, t);
    _mm512_store_si512(z->weights + r * 64, w);
    float *sum = z->sum + r * LN_ATTEND_LANES;
    _mm512_store_ps(sum, _mm512_dpbf16_ps(_mm512_load_ps(sum), (__m512bh)w, (__m512bh)k->ones));
}

LN_INLINE void soften_rows(const piece *z, const constants *k, int64_t from, int64_t to, const bool masked) {
    for (int64_t r = from; r < to; r++) soften_row(z, k, r, masked);
}

static void soften(const piece *z) {
    const constants k = constants_of(z->factor);
    ln_amx_fence();
    if (z->masked)
        soften_rows(z, &k, 0, ROWS, true);
    else
        soften_rows(z, &k, 0, ROWS, false);
}

/* ---- products ---- */

#define LN_ROWS_BETWEEN                                          \
    do {                                                         \
        _Pragma("GCC unroll 8") for (int i = 0; i < rate; i++) { \
            soften_row(z, &c, row + i, masked);                  \
        }                                                        \
        row += rate;                                             \
    } while (0)

/* scores = queries of ROWS rows times a page of keys, between them `rate` rows of softmax after each product. */
LN_INLINE void score_soften(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores,
                            const piece *z, const int rate, const bool masked) {
    const unsigned char *second = query + steps * TILE_BYTES;
    const constants c = constants_of(rate ? z->factor : 0);
    int64_t row = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    int64_t k = 0;
    for (; k < steps && (rate == 0 || row + 4 * rate <= ROWS); k++) {
        _tile_loadd(4, query + k * TILE_BYTES, 64);
        _tile_loadd(6, keys + 2 * k * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        LN_ROWS_BETWEEN;
        _tile_loadd(7, keys + (2 * k + 1) * TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        LN_ROWS_BETWEEN;
        _tile_loadd(5, second + k * TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        LN_ROWS_BETWEEN;
        _tile_dpbf16ps(3, 5, 7);
        LN_ROWS_BETWEEN;
    }
    for (; k < steps; k++) {
        _tile_loadd(4, query + k * TILE_BYTES, 64);
        _tile_loadd(6, keys + 2 * k * TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, keys + (2 * k + 1) * TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, second + k * TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + TILE_FLOATS, 64);
    _tile_stored(2, scores + 2 * TILE_FLOATS, 64);
    _tile_stored(3, scores + 3 * TILE_FLOATS, 64);
    if (rate) soften_rows(z, &c, row, ROWS, masked);
}

#define LN_SCORE(name, rate, masked)                                                                      \
    static void name(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores, \
                     const piece *z) {                                                                    \
        score_soften(query, keys, steps, scores, z, rate, masked);                                        \
    }
LN_SCORE(score_0, 0, false)
LN_SCORE(score_1, 1, false)
LN_SCORE(score_2, 2, false)
LN_SCORE(score_4, 4, false)
LN_SCORE(score_8, 8, false)
LN_SCORE(score_masked, 2, true)

/* Scores of a page; and z, if not NULL, becomes weights. */
static void score(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores, const piece *z) {
    ln_amx_fence();
    if (!z)
        score_0(query, keys, steps, scores, z);
    else if (z->masked)
        score_masked(query, keys, steps, scores, z);
    else if (steps >= 8)
        score_1(query, keys, steps, scores, z);
    else if (steps >= 3)
        score_2(query, keys, steps, scores, z);
    else if (steps == 2)
        score_4(query, keys, steps, scores, z);
    else
        score_8(query, keys, steps, scores, z);
}

/* output of ROWS rows += weights of `pages` pages times their values. */
static void add_values(const unsigned char *weights, const unsigned char *values, int64_t pages, int64_t columns,
                       float *output, int64_t stride) {
    const int64_t page = columns * TILE_BYTES, bytes = 4 * stride;
    float *below = output + TILE * stride;
    ln_amx_fence();
    int64_t c = 0;
    for (; c + 2 <= columns; c += 2) {
        const unsigned char *v = values + c * TILE_BYTES, *w = weights;
        float *y = output + c * TILE, *z = below + c * TILE;
        _tile_loadd(0, y, bytes);
        _tile_loadd(1, y + TILE, bytes);
        _tile_loadd(2, z, bytes);
        _tile_loadd(3, z + TILE, bytes);
        for (int64_t p = 0; p < pages; p++, v += page, w += PAGE_WEIGHTS) {
            _tile_loadd(4, w, 64);
            _tile_loadd(6, v, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, v + TILE_BYTES, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, w + TILE_BYTES, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, y, bytes);
        _tile_stored(1, y + TILE, bytes);
        _tile_stored(2, z, bytes);
        _tile_stored(3, z + TILE, bytes);
    }
    if (c == columns) return;
    const unsigned char *v = values + c * TILE_BYTES, *w = weights;
    _tile_loadd(0, output + c * TILE, bytes);
    _tile_loadd(2, below + c * TILE, bytes);
    for (int64_t p = 0; p < pages; p++, v += page, w += PAGE_WEIGHTS) {
        _tile_loadd(6, v, 64);
        _tile_loadd(4, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
    }
    _tile_stored(0, output + c * TILE, bytes);
    _tile_stored(2, below + c * TILE, bytes);
}

/* ---- a step ---- */

/* ROWS rows of a tile against the pages first .. end - 1 of a block, those that any of them sees. */
typedef struct group {
    const ln_attend_bf16_tile *tile;
    const ln_attend_bf16_block *block;
    int64_t row, first, end;
    float factor; /* not yet in the scores */
    _Alignas(64) float shift[ROWS];
    _Alignas(64) unsigned char weights[PAGES * PAGE_WEIGHTS]; /* of the pages from `first` on */
} group;

static const unsigned char *query_of(const group *g) {
    return (const unsigned char *)g->tile->query + g->row * query_bytes(g->tile->key_size);
}
static const unsigned char *keys_of(const group *g, int64_t page) {
    return (const unsigned char *)g->block->keys + page * key_bytes(g->tile->key_size);
}

/* Which keys of a page a row sees. */
static uint32_t seen_of(const group *g, int64_t r, int64_t page) {
    const uint32_t there = first_of_32(g->block->count - page * LN_PAGE_TOKENS);
    if (!g->block->seen) return there;
    return there & (uint32_t)(g->block->seen[g->row + r][page / 2] >> page % 2 * 32);
}

static bool group_open(group *g, const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, int64_t row,
                       float factor) {
    g->tile = tile;
    g->block = block;
    g->row = row;
    g->factor = factor;
    g->first = 0;
    g->end = (block->count + LN_PAGE_TOKENS - 1) / LN_PAGE_TOKENS;
    if (!block->seen) return g->end > 0;
    uint32_t any[PAGES] = {0};
    for (int64_t page = 0; page < g->end; page++)
        for (int64_t r = 0; r < ROWS; r++) any[page] |= seen_of(g, r, page);
    while (g->first < g->end && !any[g->first]) g->first++;
    while (g->first < g->end && !any[g->end - 1]) g->end--;
    return g->first < g->end;
}

static piece piece_of(group *g, int64_t page, const float *scores) {
    piece z = {.scores = scores,
               .shift = g->shift,
               .weights = g->weights + (page - g->first) * PAGE_WEIGHTS,
               .sum = g->tile->sum + g->row * LN_ATTEND_LANES,
               .factor = g->factor * UNIT,
               .masked = g->block->seen || (page + 1) * LN_PAGE_TOKENS > g->block->count};
    for (int64_t r = 0; z.masked && r < ROWS; r++) z.mask[r] = seen_of(g, r, page);
    return z;
}

static void add_group(const group *g) {
    const int64_t bytes = value_bytes(g->tile->value_size);
    add_values(g->weights, (const unsigned char *)g->block->values + g->first * bytes, g->end - g->first,
               column_tiles(g->tile->value_size), g->tile->output + g->row * g->tile->output_stride,
               g->tile->output_stride);
}

/* Whether no score can exceed its row's maximum by more than the slack; then also shift. */
static bool bounded(group *g) {
    const float *maximum = g->tile->maximum + g->row, *length = g->tile->length + g->row;
    const float most = g->block->length * g->factor;
    bool all = true;
    for (int64_t r = 0; r < ROWS; r++) {
        bool here = length[r] * most <= maximum[r] + LN_BF16_SLACK;
        if (!here && g->block->seen) {
            here = true;
            for (int64_t page = g->first; page < g->end; page++) here &= seen_of(g, r, page) == 0;
        }
        all &= here;
        g->shift[r] = shift_of(maximum[r]);
    }
    return all;
}

/* The bits 0-3, 8-11, 16-19, 24-27 of mask together. */
static __mmask16 even_nibbles(uint32_t mask) {
    return (__mmask16)((mask & 0xf) | (mask >> 4 & 0xf0) | (mask >> 8 & 0xf00) | (mask >> 12 & 0xf000));
}

/* Raises a row's maximum if need be; scores: [pages][PAGE_FLOATS]. */
static void settle_row(group *g, int64_t r, const float *scores) {
    const ln_attend_bf16_tile *tile = g->tile;
    const int64_t row = g->row + r;
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 most = nothing;
    __mmask16 unsound = 0;
    for (int64_t page = g->first; page < g->end; page++) {
        const float *s = scores + (page - g->first) * PAGE_FLOATS + r / TILE * 2 * TILE_FLOATS + r % TILE * TILE;
        const uint32_t seen = seen_of(g, r, page);
        const __m512 a = _mm512_mask_load_ps(nothing, even_nibbles(seen), s),
                     b = _mm512_mask_load_ps(nothing, even_nibbles(seen >> 4), s + TILE_FLOATS);
        unsound |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
        most = _mm512_max_ps(most, _mm512_max_ps(a, b));
    }
    const float largest = _mm512_reduce_max_ps(most) * g->factor, before = tile->maximum[row];
    float *sum = tile->sum + row * LN_ATTEND_LANES;
    if (unsound || largest == INFINITY) {
        sum[0] = NAN;
        if (before == -INFINITY) tile->maximum[row] = 0;
    } else if (largest > before + LN_BF16_SLACK) {
        const float after = ceilf(largest), scale = exp2f(before - after);
        float *y = tile->output + row * tile->output_stride;
        for (int64_t i = 0; i < tile->value_size; i += TILE)
            _mm512_store_ps(y + i, _mm512_mul_ps(_mm512_load_ps(y + i), _mm512_set1_ps(scale)));
        _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), _mm512_set1_ps(scale)));
        tile->maximum[row] = after;
    }
    g->shift[r] = shift_of(tile->maximum[row]);
}

/* Softmax and output of a group whose scores are all there. */
static void settle(group *g, const float *scores) {
    for (int64_t r = 0; r < ROWS; r++) settle_row(g, r, scores);
    for (int64_t page = g->first; page < g->end; page++) {
        const piece z = piece_of(g, page, scores + (page - g->first) * PAGE_FLOATS);
        soften(&z);
    }
    add_group(g);
}

static void configure(void) {
    const ln_amx_shape shape = ln_amx_shape_of(64);
    ln_amx_configure(&shape);
}

static void step(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block) {
    const int64_t steps = depth_tiles(tile->key_size);
    _Alignas(64) float held[PAGES * PAGE_FLOATS], scores[2][PAGE_FLOATS];
    group groups[2], *waiting = NULL; /* waiting: its last page's scores are to become weights */
    piece z;
    int turn = 0;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        group *g = waiting == &groups[0] ? &groups[1] : &groups[0];
        if (!group_open(g, tile, block, row, tile->factor)) continue;
        const bool hold = !bounded(g);
        for (int64_t page = g->first; page < g->end; page++) {
            float *to = hold ? held + (page - g->first) * PAGE_FLOATS : scores[turn ^= 1];
            const bool pending = waiting || (!hold && page > g->first);
            score(query_of(g), keys_of(g, page), steps, to, pending ? &z : NULL);
            if (waiting) add_group(waiting);
            waiting = NULL;
            if (!hold) z = piece_of(g, page, to);
        }
        if (hold)
            settle(g, held);
        else
            waiting = g;
    }
    if (waiting) {
        soften(&z);
        add_group(waiting);
    }
    ln_amx_release();
}

static void scores_only(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, float factor, float *scores,
                        int64_t stride) {
    const int64_t steps = depth_tiles(tile->key_size);
    const __m512i left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512 times = _mm512_set1_ps(factor);
    _Alignas(64) float page_scores[PAGE_FLOATS];
    group g;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        if (!group_open(&g, tile, block, row, factor)) continue;
        for (int64_t page = g.first; page < g.end; page++) {
            score(query_of(&g), keys_of(&g, page), steps, page_scores, NULL);
            for (int64_t r = 0; r < ROWS; r++) {
                const float *s = page_scores + r / TILE * 2 * TILE_FLOATS + r % TILE * TILE;
                const __m512i a = _mm512_load_si512(s), b = _mm512_load_si512(s + TILE_FLOATS);
                float *to = scores + (row + r) * stride + page * LN_PAGE_TOKENS;
                const __m512 x = _mm512_castsi512_ps(_mm512_permutex2var_epi64(a, left, b)),
                             y = _mm512_castsi512_ps(_mm512_permutex2var_epi64(a, right, b));
                _mm512_storeu_ps(to, _mm512_mul_ps(x, times));
                _mm512_storeu_ps(to + TILE, _mm512_mul_ps(y, times));
            }
        }
    }
    ln_amx_release();
}

static void finish(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, float factor,
                   const float *scores, int64_t stride) {
    _Alignas(64) float held[PAGES * PAGE_FLOATS];
    group g;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        if (!group_open(&g, tile, block, row, factor)) continue;
        for (int64_t page = g.first; page < g.end; page++) {
            for (int64_t r = 0; r < ROWS; r++) {
                const float *from = scores + (row + r) * stride + page * LN_PAGE_TOKENS;
                const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + TILE);
                float *s = held + (page - g.first) * PAGE_FLOATS + r / TILE * 2 * TILE_FLOATS + r % TILE * TILE;
                _mm512_store_si512(s, _mm512_shuffle_i32x4(a, b, 0x88));
                _mm512_store_si512(s + TILE_FLOATS, _mm512_shuffle_i32x4(a, b, 0xdd));
            }
        }
        settle(&g, held);
    }
    ln_amx_release();
}

void ln_attend_fill_amx(ln_attend_kernels *kernels) {
    kernels->bf16 = (ln_attend_bf16){"attend_bf16__amx", query_bytes, key_bytes, value_bytes, pack_query,
                                     pack_keys,          pack_values, step,      scores_only, finish};
}
