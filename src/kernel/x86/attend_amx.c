/* Owns: attention's step on AMX tiles.
 *
 * 32 query rows against a page of 32 keys are 2 x 2 tiles of scores, S = Q K^T, and 2 tiles of weights, which are the
 * A operand of O += P V. Beside tile products the vector units have one floating-point operation a cycle left, and
 * shuffles and logic beside that. So the products of one page's scores stand in the source between the rows of the
 * softmax of the page two before, 8 / depth tiles rows after each product (that of the page before has just left the
 * tiles). O, in memory, takes the weights of SPAN pages at once: 2 x 2 tiles, fetched, loaded, multiplied, stored; ones
 * as a last column of values give the sums. What is read once (keys, values) is loaded as a stream: weights, queries
 * and outputs stay in the first cache.
 *
 * The softmax of 32 scores of a row is 8 operations:
 *     u = 256 (factor s - maximum + 127) - 1/2 - 32       two multiply-adds
 *     u as 16 bits, 0 .. 65535, saturated                 two conversions, one packing
 *     bits of the weight as bf16 = (u + T[u / 4 % 64] + 1) / 2    a shift by VBMI, a table, an average
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
#ifdef __clang__
#define LN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LN_UNROLL _Pragma("GCC unroll 32")
#endif

enum {
    ROWS = LN_BF16_ROWS,
    TILE = 16,         /* rows of a tile */
    TILE_BYTES = 1024, /* tiles are packed, 64 bytes a row */
    TILE_FLOATS = 256,
    PAGE_FLOATS = 4 * TILE_FLOATS, /* scores: [ROWS][first, second tile of keys][16] */
    PAGE_WEIGHTS = 2 * TILE_BYTES, /* [ROWS][32] */
    SPAN = 16,                     /* pages whose weights are added at once */
    HELD = 4,                      /* pages whose scores are held where maximum may rise */
    UNIT = 256,                    /* u of a power of two */
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
    const int64_t row = LN_PAGE_TOKENS * layout->key_bits / 8, whole = 32 * depth_tiles(layout->key_size);
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
        for (int64_t t = 0; t < LN_PAGE_TOKENS; t += 2, codes += 2 * columns * layout->value_bits / 8) {
            __m512i x[2];
            for (int j = 0; j < 2; j++) {
                const __m512 scale = _mm512_set1_ps(precision == LINNET_Q8_0 && t + j < tokens
                                                        ? _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(scales[t + j])))
                                                        : 0);
                x[j] = load_codes(precision, codes + j * columns * layout->value_bits / 8, t + j < tokens ? mask : 0,
                                  scale, scale);
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

#define LN_PACK(name, type)                                                                                \
    static float name(const ln_page_layout *layout, const unsigned char *page, int64_t tokens, void *to) { \
        switch (layout->type) {                                                                            \
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
LN_PACK(pack_keys, key_type)
LN_PACK(pack_values, value_type)

/* ---- softmax ---- */

static const _Alignas(64) unsigned char table[64] = {23, 22, 21, 20, 19, 18, 17, 17, 16, 15, 15, 14, 14, 13, 13, 12,
                                                     12, 11, 11, 11, 11, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 11,
                                                     11, 11, 12, 12, 12, 13, 14, 14, 15, 16, 16, 17, 18, 19, 20, 21,
                                                     22, 23, 24, 26, 27, 28, 30, 31, 31, 30, 29, 28, 27, 26, 25, 24};

/* Scores of ROWS rows and a page that are to become weights. */
typedef struct piece {
    const float *scores;    /* [PAGE_FLOATS] */
    const float *shift;     /* [ROWS] */
    unsigned char *weights; /* [PAGE_WEIGHTS] */
    float factor;           /* times UNIT */
    bool masked;
    uint32_t mask[ROWS]; /* bit i: key i is seen */
} piece;

/* Where the next rows are, and what they take: constants that the compiler must not make anew for each. */
typedef struct cursor {
    const float *scores, *shift;
    unsigned char *weights;
    const uint32_t *mask;
    __m512 factor;
    __m512i table, bits;
    __mmask64 even;
} cursor;

LN_INLINE cursor cursor_of(const piece *z) {
    cursor c = {.scores = z->scores, .shift = z->shift, .weights = z->weights, .mask = z->mask};
    c.factor = _mm512_set1_ps(z->factor);
    c.table = _mm512_load_si512(table);
    c.bits = _mm512_set1_epi64(0x0032002200120002);
    c.even = 0x5555555555555555;
    __asm__("" : "+v"(c.factor), "+v"(c.table), "+v"(c.bits), "+k"(c.even));
    return c;
}

static float shift_of(float maximum) {
    return maximum == -INFINITY ? 0 : UNIT * (127 - maximum) - 32.5f;
}

LN_INLINE void soften_row(const cursor *z, int r, const bool masked) {
    const float *s = z->scores + r * LN_PAGE_TOKENS;
    const __m512 shift = _mm512_set1_ps(z->shift[r]);
    const __m512i a = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(s), z->factor, shift));
    const __m512i b = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(s + TILE), z->factor, shift));
    const __m512i u = _mm512_packus_epi32(a, b);
    const __m512i t = _mm512_maskz_permutexvar_epi8(z->even, _mm512_multishift_epi64_epi8(z->bits, u), z->table);
    _mm512_store_si512(z->weights + r * 64, masked ? _mm512_maskz_avg_epu16(z->mask[r], u, t) : _mm512_avg_epu16(u, t));
}

LN_INLINE void soften_rows(cursor *z, const int rows, const bool masked) {
    LN_UNROLL for (int r = 0; r < rows; r++) soften_row(z, r, masked);
    z->scores += rows * LN_PAGE_TOKENS;
    z->shift += rows;
    z->weights += rows * 64;
    z->mask += rows;
}

static void soften(const piece *z) {
    cursor c = cursor_of(z);
    ln_amx_fence();
    for (int r = 0; r < ROWS; r += 8) {
        if (z->masked)
            soften_rows(&c, 8, true);
        else
            soften_rows(&c, 8, false);
    }
}

/* ---- products ---- */

/* Scores of ROWS rows and a page of keys, while a piece, if there is one, becomes weights: `rate` rows of it after each
 * product. */
LN_INLINE void score_page(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores,
                          const piece *waiting, const int rate, const bool masked) {
    const int64_t below = steps * TILE_BYTES;
    cursor z = cursor_of(waiting);
    int left = rate ? ROWS : 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; k++, query += TILE_BYTES, keys += 2 * TILE_BYTES) {
        const bool more = rate && left >= 4 * rate;
        _tile_loadd(4, query, 64);
        _tile_stream_loadd(6, keys, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (more) soften_rows(&z, rate, masked);
        _tile_stream_loadd(7, keys + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (more) soften_rows(&z, rate, masked);
        _tile_loadd(5, query + below, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (more) soften_rows(&z, rate, masked);
        _tile_dpbf16ps(3, 5, 7);
        if (more) soften_rows(&z, rate, masked);
        if (more) left -= 4 * rate;
    }
    _tile_stored(0, scores, 4 * LN_PAGE_TOKENS);
    _tile_stored(1, scores + TILE, 4 * LN_PAGE_TOKENS);
    _tile_stored(2, scores + 2 * TILE_FLOATS, 4 * LN_PAGE_TOKENS);
    _tile_stored(3, scores + 2 * TILE_FLOATS + TILE, 4 * LN_PAGE_TOKENS);
    for (; left > 0; left -= 4) soften_rows(&z, 4, masked);
}

#define LN_SCORE(name, rate, masked)                                                                      \
    static void name(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores, \
                     const piece *waiting) {                                                              \
        score_page(query, keys, steps, scores, waiting, rate, masked);                                    \
    }
LN_SCORE(score_0, 0, false)
LN_SCORE(score_1, 1, false)
LN_SCORE(score_2, 2, false)
LN_SCORE(score_4, 4, false)
LN_SCORE(score_8, 8, false)
LN_SCORE(score_masked, 2, true)

static void score(const unsigned char *query, const unsigned char *keys, int64_t steps, float *scores,
                  const piece *waiting) {
    static const piece none;
    ln_amx_fence();
    if (!waiting)
        score_0(query, keys, steps, scores, &none);
    else if (waiting->masked)
        score_masked(query, keys, steps, scores, waiting);
    else if (steps >= 8)
        score_1(query, keys, steps, scores, waiting);
    else if (steps >= 3)
        score_2(query, keys, steps, scores, waiting);
    else if (steps == 2)
        score_4(query, keys, steps, scores, waiting);
    else
        score_8(query, keys, steps, scores, waiting);
}

/* Weights of ROWS rows and some pages, and what they are added to. */
typedef struct addend {
    const unsigned char *weights, *values;
    int64_t pages, columns; /* tiles of columns */
    float *output, *sum;
    int64_t stride;
} addend;

static const _Alignas(64) uint32_t ones[TILE][TILE] = {
#define LN_ONE \
    { 0x3f803f80 }
    LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE,
    LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE, LN_ONE};

/* ROWS rows and TILE columns. */
LN_INLINE void add_column(const addend *x, float *to, int64_t stride, const unsigned char *values, int64_t page) {
    const unsigned char *w = x->weights;
    float *below = to + TILE * stride;
    _tile_loadd(0, to, 4 * stride);
    _tile_loadd(2, below, 4 * stride);
    for (int64_t p = 0; p < x->pages; p++, values += page, w += PAGE_WEIGHTS) {
        _tile_loadd(6, values, 64);
        _tile_loadd(4, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 5, 6);
    }
    _tile_stored(0, to, 4 * stride);
    _tile_stored(2, below, 4 * stride);
}

/* Two tiles' columns of rows are fetched before they are loaded: products wait for them. */
LN_INLINE void fetch(const float *from, int64_t stride, int64_t row, int64_t rows) {
    for (int64_t r = row; r < row + rows; r++) {
        _mm_prefetch((const char *)(from + r * stride), _MM_HINT_T0);
        _mm_prefetch((const char *)(from + r * stride + TILE), _MM_HINT_T0);
    }
}

/* output and sum += weights times values, and ones. */
static void add_values(const addend *x) {
    const int64_t page = x->columns * TILE_BYTES, bytes = 4 * x->stride, fetched = (ROWS + x->pages - 1) / x->pages;
    ln_amx_fence();
    int64_t c = 0;
    for (; c + 2 <= x->columns; c += 2) {
        const unsigned char *v = x->values + c * TILE_BYTES, *w = x->weights;
        float *y = x->output + c * TILE, *z = y + TILE * x->stride;
        const float *next = c + 4 <= x->columns ? y + 2 * TILE : y;
        _tile_loadd(0, y, bytes);
        _tile_loadd(1, y + TILE, bytes);
        _tile_loadd(2, z, bytes);
        _tile_loadd(3, z + TILE, bytes);
        for (int64_t p = 0; p < x->pages; p++, v += page, w += PAGE_WEIGHTS) {
            _tile_loadd(4, w, 64);
            _tile_stream_loadd(6, v, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_stream_loadd(7, v + TILE_BYTES, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, w + TILE_BYTES, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            if (p * fetched < ROWS) fetch(next, x->stride, p * fetched, fetched);
        }
        _tile_stored(0, y, bytes);
        _tile_stored(1, y + TILE, bytes);
        _tile_stored(2, z, bytes);
        _tile_stored(3, z + TILE, bytes);
    }
    if (c < x->columns) add_column(x, x->output + c * TILE, x->stride, x->values + c * TILE_BYTES, page);
    add_column(x, x->sum, LN_ATTEND_LANES, (const unsigned char *)ones, 0);
}

/* ---- a step ---- */

/* ROWS rows of a tile against the pages first .. end - 1 of a block, those that any of them sees. */
typedef struct group {
    const ln_attend_bf16_tile *tile;
    const ln_attend_bf16_block *block;
    int64_t row, first, end;
    int64_t start; /* the page from which on maximum stays */
    float factor;  /* not yet in the scores */
    _Alignas(64) float shift[ROWS];
} group;

static const unsigned char *query_of(const group *g) {
    return (const unsigned char *)g->tile->query + g->row * query_bytes(g->tile->key_size);
}
static const unsigned char *keys_of(const group *g, int64_t page) {
    return (const unsigned char *)g->block->keys + page * key_bytes(g->tile->key_size);
}

/* Which keys of a page a row sees. */
LN_INLINE uint32_t seen_of(const group *g, int64_t r, int64_t page) {
    const uint32_t there = first_of_32(g->block->count - page * LN_PAGE_TOKENS);
    if (!g->block->seen) return there;
    return there & (uint32_t)(g->block->seen[g->row + r][page / 2] >> page % 2 * 32);
}

/* false where no row sees a key. */
static bool group_open(group *g, const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, int64_t row,
                       float factor) {
    g->tile = tile;
    g->block = block;
    g->row = row;
    g->factor = factor;
    g->first = 0;
    g->end = (block->count + LN_PAGE_TOKENS - 1) / LN_PAGE_TOKENS;
    if (!block->seen) return g->end > 0;
    uint64_t any[LN_BF16_BLOCK / 64] = {0};
    for (int64_t r = 0; r < ROWS; r++)
        for (int i = 0; i < LN_BF16_BLOCK / 64; i++) any[i] |= block->seen[row + r][i];
    if (block->count % LN_PAGE_TOKENS)
        any[g->end / 2 - !(g->end % 2)] &= ~(uint64_t)0 >> ((64 - block->count % 64) % 64);
    while (g->first < g->end && !(uint32_t)(any[g->first / 2] >> g->first % 2 * 32)) g->first++;
    while (g->first < g->end && !(uint32_t)(any[(g->end - 1) / 2] >> (g->end - 1) % 2 * 32)) g->end--;
    return g->first < g->end;
}

LN_INLINE void set_piece(piece *z, const group *g, int64_t page, const float *scores, unsigned char *weights) {
    z->scores = scores;
    z->shift = g->shift;
    z->weights = weights;
    z->factor = g->factor * UNIT;
    const uint32_t there = first_of_32(g->block->count - page * LN_PAGE_TOKENS);
    uint32_t all = there;
    if (g->block->seen)
        for (int64_t r = 0; r < ROWS; r++) all &= z->mask[r] = seen_of(g, r, page);
    else if (there != ~(uint32_t)0)
        for (int64_t r = 0; r < ROWS; r++) z->mask[r] = there;
    z->masked = all != ~(uint32_t)0;
}

/* Adds pages first .. end - 1, whose weights these are. */
static void add_pages(const group *g, const unsigned char *weights, int64_t first, int64_t end) {
    const ln_attend_bf16_tile *tile = g->tile;
    const addend x = {.weights = weights,
                      .values = (const unsigned char *)g->block->values + first * value_bytes(tile->value_size),
                      .pages = end - first,
                      .columns = column_tiles(tile->value_size),
                      .output = tile->output + g->row * tile->output_stride,
                      .sum = tile->sum + g->row * LN_ATTEND_LANES,
                      .stride = tile->output_stride};
    add_values(&x);
}

/* Whether no score can exceed its row's maximum by more than the slack. */
static bool bounded(group *g) {
    const float *maximum = g->tile->maximum + g->row, *length = g->tile->length + g->row;
    const __m512 most = _mm512_set1_ps(g->block->length * g->factor), slack = _mm512_set1_ps(LN_BF16_SLACK);
    uint32_t beyond = 0;
    for (int64_t r = 0; r < ROWS; r += TILE) {
        const __m512 bound = _mm512_mul_ps(_mm512_loadu_ps(length + r), most),
                     allowed = _mm512_add_ps(_mm512_loadu_ps(maximum + r), slack);
        beyond |= (uint32_t)_mm512_cmp_ps_mask(bound, allowed, _CMP_NLE_UQ) << r;
    }
    for (int64_t r = 0; r < ROWS; r++) {
        g->shift[r] = shift_of(maximum[r]);
        if (!(beyond >> r & 1) || !g->block->seen) continue;
        bool any = false;
        for (int64_t page = g->first; page < g->end; page++) any |= seen_of(g, r, page) != 0;
        if (!any) beyond &= ~((uint32_t)1 << r);
    }
    return beyond == 0;
}

/* The bits 0-3, 8-11, 16-19, 24-27 of mask together. */
static __mmask16 even_nibbles(uint32_t mask) {
    return (__mmask16)((mask & 0xf) | (mask >> 4 & 0xf0) | (mask >> 8 & 0xf00) | (mask >> 12 & 0xf000));
}

/* Raises a row's maximum if need be; scores: of pages first .. end - 1. */
static void settle_row(group *g, int64_t r, const float *scores, int64_t first, int64_t end) {
    const ln_attend_bf16_tile *tile = g->tile;
    const int64_t row = g->row + r;
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 most = nothing;
    __mmask16 unsound = 0;
    for (int64_t page = first; page < end; page++) {
        const float *s = scores + (page - first) * PAGE_FLOATS + r * LN_PAGE_TOKENS;
        const uint32_t seen = seen_of(g, r, page);
        const __m512 a = _mm512_mask_load_ps(nothing, even_nibbles(seen), s),
                     b = _mm512_mask_load_ps(nothing, even_nibbles(seen >> 4), s + TILE);
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

/* Pages are taken together up to this one, exclusive: maximum rises between such spans alone. The first page of a block
 * is alone, because it mostly settles maximum for the rest. */
static int64_t span_end(const group *g, int64_t page) {
    const int64_t end = page == 0 ? 1 : (page / HELD + 1) * HELD;
    return end < g->end ? end : g->end;
}

/* Softmax and output of a span whose scores are all there: [pages][PAGE_FLOATS]. */
static void settle(group *g, const float *scores, unsigned char *weights, int64_t first, int64_t end) {
    piece z;
    for (int64_t r = 0; r < ROWS; r++) settle_row(g, r, scores, first, end);
    for (int64_t page = first; page < end; page++) {
        set_piece(&z, g, page, scores + (page - first) * PAGE_FLOATS, weights + (page - first) * PAGE_WEIGHTS);
        soften(&z);
    }
    add_pages(g, weights, first, end);
}

static void score_span(const group *g, float *scores, int64_t first, int64_t end) {
    for (int64_t page = first; page < end; page++)
        score(query_of(g), keys_of(g, page), depth_tiles(g->tile->key_size), scores + (page - first) * PAGE_FLOATS,
              NULL);
}

static void configure(void) {
    const ln_amx_shape shape = ln_amx_shape_of(64);
    ln_amx_configure(&shape);
}

/* What is on its way while tiles multiply: while page n's scores are, those of page n - 2 become weights (those of
 * n - 1 are hardly stored). With the last page of a span, the span's weights are added. */
enum { SLOTS = 3 };
typedef struct pipeline {
    int64_t pages, on_way; /* so far; the last of them that have no weights, at most 2 */
    group *of[SLOTS];      /* page n is in slot n % SLOTS */
    int64_t page[SLOTS];
    piece pieces[SLOTS];
    _Alignas(64) float scores[SLOTS][PAGE_FLOATS];
    unsigned char weights[SPAN * PAGE_WEIGHTS];
} pipeline;

/* Page n is the last of a span. */
static bool ends_span(const pipeline *p, int64_t n) {
    const int64_t end = p->page[n % SLOTS] + 1;
    return end == p->of[n % SLOTS]->end || end % SPAN == 0;
}

/* Page n has its weights. */
static void weighed(pipeline *p, int64_t n) {
    const group *g = p->of[n % SLOTS];
    const int64_t page = p->page[n % SLOTS], span = page / SPAN * SPAN, first = span > g->start ? span : g->start;
    p->on_way--;
    if (ends_span(p, n)) add_pages(g, p->weights + first % SPAN * PAGE_WEIGHTS, first, page + 1);
}

/* A page of a group whose maximum stays. */
static void push(pipeline *p, group *g, int64_t page) {
    const int64_t n = p->pages++, slot = n % SLOTS;
    const bool waits = p->on_way == 2;
    if (waits && ends_span(p, n - 2)) {
        const group *w = p->of[(n - 2) % SLOTS];
        fetch(w->tile->output + w->row * w->tile->output_stride, w->tile->output_stride, 0, ROWS);
    }
    score(query_of(g), keys_of(g, page), depth_tiles(g->tile->key_size), p->scores[slot],
          waits ? &p->pieces[(n + 1) % SLOTS] : NULL);
    p->of[slot] = g;
    p->page[slot] = page;
    set_piece(&p->pieces[slot], g, page, p->scores[slot], p->weights + page % SPAN * PAGE_WEIGHTS);
    if (waits) weighed(p, n - 2);
    p->on_way++;
}

static void drain(pipeline *p) {
    while (p->on_way) {
        const int64_t n = p->pages - p->on_way;
        soften(&p->pieces[n % SLOTS]);
        weighed(p, n);
    }
}

static void step(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block) {
    _Alignas(64) float held[HELD * PAGE_FLOATS];
    group groups[SLOTS]; /* two on their way */
    pipeline p;
    int turn = 0;
    p.pages = p.on_way = 0;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        group *g = &groups[turn];
        if (!group_open(g, tile, block, row, tile->factor)) continue;
        int64_t page = g->first;
        while (page < g->end && !bounded(g)) {
            const int64_t end = span_end(g, page);
            drain(&p);
            score_span(g, held, page, end);
            settle(g, held, p.weights, page, end);
            page = end;
        }
        if (page == g->end) continue;
        g->start = page;
        for (; page < g->end; page++) push(&p, g, page);
        turn = (turn + 1) % SLOTS;
    }
    drain(&p);
    ln_amx_release();
}

static void scores_only(const ln_attend_bf16_tile *tile, const ln_attend_bf16_block *block, float factor, float *scores,
                        int64_t stride) {
    const __m512i left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512 times = _mm512_set1_ps(factor);
    _Alignas(64) float held[HELD * PAGE_FLOATS];
    group g;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        if (!group_open(&g, tile, block, row, factor)) continue;
        for (int64_t first = g.first, end; first < g.end; first = end) {
            end = span_end(&g, first);
            score_span(&g, held, first, end);
            for (int64_t i = 0; i < (end - first) * ROWS; i++) {
                const float *s = held + i * LN_PAGE_TOKENS;
                const __m512i a = _mm512_load_si512(s), b = _mm512_load_si512(s + TILE);
                float *to = scores + (row + i % ROWS) * stride + (first + i / ROWS) * LN_PAGE_TOKENS;
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
    _Alignas(64) float held[HELD * PAGE_FLOATS];
    _Alignas(64) unsigned char weights[HELD * PAGE_WEIGHTS];
    group g;
    configure();
    for (int64_t row = 0; row < tile->rows; row += ROWS) {
        if (!group_open(&g, tile, block, row, factor)) continue;
        for (int64_t first = g.first, end; first < g.end; first = end) {
            end = span_end(&g, first);
            for (int64_t i = 0; i < (end - first) * ROWS; i++) {
                const float *from = scores + (row + i % ROWS) * stride + (first + i / ROWS) * LN_PAGE_TOKENS;
                const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + TILE);
                _mm512_store_si512(held + i * LN_PAGE_TOKENS, _mm512_shuffle_i32x4(a, b, 0x88));
                _mm512_store_si512(held + i * LN_PAGE_TOKENS + TILE, _mm512_shuffle_i32x4(a, b, 0xdd));
            }
            settle(&g, held, weights, first, end);
        }
    }
    ln_amx_release();
}

void ln_attend_fill_amx(ln_attend_kernels *kernels) {
    kernels->bf16 = (ln_attend_bf16){"attend_bf16__amx", query_bytes, key_bytes, value_bytes, pack_query,
                                     pack_keys,          pack_values, step,      scores_only, finish};
}
