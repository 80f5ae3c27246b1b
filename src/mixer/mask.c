/* Owns: masks of attention: which keys a row sees, and bounds of that for a tile.
 *
 * Without lists and grids a row sees ([low, high) or [0, prefix)) and [document_low, document_high): intervals, whose
 * ends do not fall from one position to the next. So the first and last position of a tile bound all the others. Lists,
 * a grid and counts take away from that. */
#include "mixer/mask.h"

#include "base/checked.h"

/* ---- intervals ---- */

static const int64_t FAR = INT64_MAX / 4; /* beyond all keys */

typedef struct span {
    int64_t low, high, document_low, document_high;
} span;

/* What a position sees, its prefix left aside. */
static span span_of(const ln_mask *mask, int64_t position) {
    const int64_t window = mask->window > 0 ? ln_min_i64(mask->window, FAR) : 0;
    span s = {.low = window ? position - window + 1 : -FAR, .high = FAR, .document_low = 0, .document_high = FAR};
    if (mask->causal)
        s.high = position + 1;
    else if (window)
        s.high = position + window;
    if (mask->documents == 0) return s;
    const int64_t *offsets = mask->document_offsets, at = mask->key_begin + position;
    s.document_high = 0;
    if (position < 0 || at < offsets[0] || at >= offsets[mask->documents]) return s;
    const int64_t document = ln_find_i64(offsets, mask->documents, at);
    s.document_low = ln_max_i64(0, offsets[document] - mask->key_begin);
    s.document_high = offsets[document + 1] - mask->key_begin;
    return s;
}

/* The tile's positions that have a document; false: none. */
static bool clip_to_documents(const ln_mask *mask, int64_t *first, int64_t *last) {
    if (mask->documents == 0) return true;
    *first = ln_max_i64(*first, ln_max_i64(0, mask->document_offsets[0] - mask->key_begin));
    *last = ln_min_i64(*last, mask->document_offsets[mask->documents] - mask->key_begin - 1);
    return *first <= *last;
}

/* Keys that some row of the tile may see are in [0, prefix) or [low, high), and in [document_low, document_high). */
static bool widest_span(const ln_mask *mask, const ln_mask_tile *tile, span *s) {
    int64_t first = tile->position, last = first + tile->tokens - 1;
    if (!clip_to_documents(mask, &first, &last)) return false;
    const span end = span_of(mask, last);
    *s = span_of(mask, first);
    s->high = end.high;
    s->document_high = end.document_high;
    return true;
}

static bool all_in_span(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count) {
    const span begin = span_of(mask, tile->position), end = span_of(mask, tile->position + tile->tokens - 1);
    const int64_t after = ln_max_i64(key, mask->prefix); /* keys before it need neither causal nor window */
    if (after < key + count && (after < end.low || key + count > begin.high)) return false;
    return ln_max_i64(begin.document_low, end.document_low) <= key &&
           key + count <= ln_min_i64(begin.document_high, end.document_high);
}

/* ---- block lists ---- */

typedef struct list {
    const int32_t *tiles;
    int64_t count;
} list;

static int64_t query_tile_of(const ln_mask *mask, int64_t position) {
    return (position - mask->query_begin) / mask->blocks.query_tile;
}

static list list_of(const ln_mask *mask, int64_t head, int64_t query_tile) {
    const int64_t l = mask->blocks.per_head ? head * mask->query_tiles + query_tile : query_tile;
    const int64_t begin = mask->blocks.offsets[l], count = mask->blocks.offsets[l + 1] - begin;
    return (list){count ? mask->blocks.tiles + begin : NULL, count};
}

/* Index of the first entry that is not below `tile`. */
static int64_t find_tile(list l, int64_t tile) {
    int64_t begin = 0, end = l.count;
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (l.tiles[middle] < tile)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/* For each list of the tile's rows. */
typedef struct lists {
    int64_t head, last_head, query_tile, first_query_tile, last_query_tile;
} lists;
static lists lists_of(const ln_mask *mask, const ln_mask_tile *tile) {
    lists l = {.head = tile->head, .last_head = mask->blocks.per_head ? tile->head + tile->heads - 1 : tile->head};
    l.query_tile = l.first_query_tile = query_tile_of(mask, tile->position);
    l.last_query_tile = query_tile_of(mask, tile->position + tile->tokens - 1);
    return l;
}
static bool next_list(const ln_mask *mask, lists *l, list *next) {
    if (l->query_tile > l->last_query_tile) {
        l->head++;
        l->query_tile = l->first_query_tile;
    }
    if (l->head > l->last_head) return false;
    *next = list_of(mask, l->head, l->query_tile++);
    return true;
}

static ln_sight listed(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count) {
    const int64_t first = key / mask->blocks.key_tile, last = (key + count - 1) / mask->blocks.key_tile;
    bool any = false, all = true;
    lists each = lists_of(mask, tile);
    for (list l; next_list(mask, &each, &l);) {
        const int64_t found = find_tile(l, first);
        any = any || (found < l.count && l.tiles[found] <= last);
        all = all && found + last - first < l.count && l.tiles[found + last - first] == last;
    }
    return all ? LN_SEES_ALL : any ? LN_SEES_SOME : LN_SEES_NONE;
}

/* ---- tiles ---- */

void ln_mask_range(const ln_mask *mask, const ln_mask_tile *tile, int64_t keys, int64_t *first, int64_t *end) {
    *first = *end = 0;
    if (mask->grid) {
        ln_grid_range(mask->grid, tile->position, tile->tokens, first, end);
        return;
    }
    span s;
    if (!widest_span(mask, tile, &s)) return;
    int64_t low = ln_max_i64(s.low, s.document_low), high = ln_min_i64(s.high, s.document_high);
    const int64_t prefix = ln_min_i64(mask->prefix, s.document_high);
    if (prefix > s.document_low) {
        low = s.document_low;
        high = ln_max_i64(high, prefix);
    }
    if (mask->blocks.query_tile) {
        int64_t least = INT64_MAX, most = -1;
        lists each = lists_of(mask, tile);
        for (list l; next_list(mask, &each, &l);) {
            if (l.count == 0) continue;
            least = ln_min_i64(least, l.tiles[0]);
            most = ln_max_i64(most, l.tiles[l.count - 1]);
        }
        if (most < 0) return;
        low = ln_max_i64(low, least * mask->blocks.key_tile);
        high = ln_min_i64(high, (most + 1) * mask->blocks.key_tile);
    }
    low = ln_max_i64(low, 0);
    high = ln_min_i64(high, keys);
    if (low >= high) return;
    *first = low;
    *end = high;
}

static bool intervals_any(const ln_mask *mask) {
    return mask->causal || mask->window || mask->documents;
}

/* A grid's boxes are widened to whole words, so doubt is settled by the rows: then NONE is said whenever it is true. */
static ln_sight grid_sight(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count) {
    if (ln_grid_nothing(mask->grid, tile->position, tile->tokens, key, count)) return LN_SEES_NONE;
    if (ln_grid_everything(mask->grid, tile->position, tile->tokens, key, count) && !intervals_any(mask))
        return LN_SEES_ALL;
    for (int64_t t = 0; t < tile->tokens; t++) {
        uint64_t bits[LN_MASK_WORDS], any = 0;
        ln_mask_row(mask, tile->head, tile->position + t, key, count, bits);
        for (int w = 0; w < LN_MASK_WORDS; w++) any |= bits[w];
        if (any) return LN_SEES_SOME;
    }
    return LN_SEES_NONE;
}

/* What counts leave of a run. */
static ln_sight present(const ln_mask *mask, int64_t key, int64_t count) {
    bool any = false, all = true;
    for (int64_t page = key / LN_PAGE_TOKENS; page * LN_PAGE_TOKENS < key + count; page++) {
        const int64_t end = page * LN_PAGE_TOKENS + mask->counts[page];
        any = any || ln_max_i64(key, page * LN_PAGE_TOKENS) < end;
        all = all && ln_min_i64(key + count, (page + 1) * LN_PAGE_TOKENS) <= end;
    }
    return all ? LN_SEES_ALL : any ? LN_SEES_SOME : LN_SEES_NONE;
}

static ln_sight block_sight(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count) {
    if (mask->grid) return grid_sight(mask, tile, key, count);
    span s;
    if (!widest_span(mask, tile, &s)) return LN_SEES_NONE;
    const int64_t low = ln_max_i64(key, s.document_low), high = ln_min_i64(key + count, s.document_high);
    const bool in_prefix = low < ln_min_i64(high, mask->prefix);
    if (!in_prefix && ln_max_i64(low, s.low) >= ln_min_i64(high, s.high)) return LN_SEES_NONE;
    const ln_sight blocks = mask->blocks.query_tile ? listed(mask, tile, key, count) : LN_SEES_ALL;
    return blocks == LN_SEES_ALL && !all_in_span(mask, tile, key, count) ? LN_SEES_SOME : blocks;
}

ln_sight ln_mask_block(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count) {
    const ln_sight there = mask->counts ? present(mask, key, count) : LN_SEES_ALL;
    if (there == LN_SEES_NONE) return there;
    const ln_sight sight = block_sight(mask, tile, key, count);
    return sight == LN_SEES_ALL ? there : sight;
}

/* ---- rows ---- */

/* Bits from .. to - 1 of those that are in a word. */
static uint64_t ones(int64_t from, int64_t to) {
    from = ln_max_i64(from, 0);
    to = ln_min_i64(to, 64);
    return from < to ? (UINT64_MAX >> (64 - (to - from))) << from : 0;
}

static bool sees(const ln_mask *mask, const span *s, int64_t key) {
    return (key < mask->prefix || (key >= s->low && key < s->high)) && key >= s->document_low && key < s->document_high;
}

static void grid_row(const ln_mask *mask, int64_t position, int64_t key, int64_t count, uint64_t bits[LN_MASK_WORDS]) {
    const ln_grid *grid = mask->grid;
    const int64_t word = key / 64, last = (key + count - 1) / 64, shift = key % 64;
    for (int w = 0; w < LN_MASK_WORDS; w++) {
        bits[w] = word + w <= last ? ln_grid_bits(grid, position, word + w) >> shift : 0;
        if (shift && word + w + 1 <= last) bits[w] |= ln_grid_bits(grid, position, word + w + 1) << (64 - shift);
        bits[w] &= ones(0, count - 64 * w);
    }
    if (!intervals_any(mask)) return;
    const span s = span_of(mask, grid->token[position]);
    for (int64_t i = 0; i < count; i++)
        if (!sees(mask, &s, grid->token[key + i])) bits[i / 64] &= ~(UINT64_C(1) << i % 64);
}

static void list_row(const ln_mask *mask, int64_t head, int64_t position, int64_t key, int64_t count,
                     uint64_t bits[LN_MASK_WORDS]) {
    const list l = list_of(mask, head, query_tile_of(mask, position));
    const int64_t size = mask->blocks.key_tile;
    uint64_t in[LN_MASK_WORDS] = {0};
    for (int64_t i = find_tile(l, key / size); i < l.count && l.tiles[i] * size < key + count; i++)
        for (int w = 0; w < LN_MASK_WORDS; w++)
            in[w] |= ones(l.tiles[i] * size - key - 64 * w, (l.tiles[i] + 1) * size - key - 64 * w);
    for (int w = 0; w < LN_MASK_WORDS; w++) bits[w] &= in[w];
}

static void interval_row(const ln_mask *mask, int64_t head, int64_t position, int64_t key, int64_t count,
                         uint64_t bits[LN_MASK_WORDS]) {
    const span s = span_of(mask, position);
    for (int w = 0; w < LN_MASK_WORDS; w++) {
        const int64_t at = key + 64 * w;
        bits[w] = (ones(s.low - at, s.high - at) | ones(-at, mask->prefix - at)) &
                  ones(s.document_low - at, s.document_high - at) & ones(0, key + count - at);
    }
    if (mask->blocks.query_tile) list_row(mask, head, position, key, count, bits);
}

void ln_mask_row(const ln_mask *mask, int64_t head, int64_t position, int64_t key, int64_t count,
                 uint64_t bits[LN_MASK_WORDS]) {
    if (mask->grid)
        grid_row(mask, position, key, count, bits);
    else
        interval_row(mask, head, position, key, count, bits);
    if (!mask->counts) return;
    for (int64_t page = key / LN_PAGE_TOKENS; page * LN_PAGE_TOKENS < key + count; page++) {
        const int64_t from = page * LN_PAGE_TOKENS + mask->counts[page] - key, to = (page + 1) * LN_PAGE_TOKENS - key;
        for (int w = 0; w < LN_MASK_WORDS; w++) bits[w] &= ~ones(from - 64 * w, to - 64 * w);
    }
}
