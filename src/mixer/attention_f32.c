/* Owns: a block of attention in float32, from pages of any precision.
 *
 * Many rows: the block's keys and values are decoded to float32 once and multiplied with all rows, or, where the rows
 * see different parts of it, a few rows at a time with the pages that these see. Few rows (decoding): pages are read as
 * they lie, one after the other, each byte once. A row's numbers are the same in both divisions of many rows: keys that
 * it does not see add weights of exactly 0. */
#include <math.h>
#include <string.h>

#include "mixer/attention_inside.h"

enum {
    ROWS_LEAST = 96, /* rows of a tile: more by the cache */
    ROWS_MOST = 192,
    ROWS_UNIT = 48,    /* whole products of all kernels */
    PRODUCT_ROWS = 12, /* rows of one product where a block is ragged */
};

/* The parts of the way's scratch. */
typedef struct scratch {
    int64_t rows, panels;         /* padded rows; panels of LN_DEPTH columns of a query */
    float *query;                 /* [panels][rows][LN_ATTEND_STRIDE] */
    float *scores;                /* [rows][LN_ATTEND_STRIDE] */
    float *keys;                  /* a page decoded: [key_size][32 tokens] */
    float *values;                /* a block decoded: [panel of 32 sizes][token][column] */
    ln_attend_integers *integers; /* [panels][LN_ATTEND_FEW_ROWS]: few queries as integers */
} scratch;

static scratch scratch_of(const ln_attention_tile *tile) {
    const ln_attention *a = tile->call->attention;
    scratch s = {.rows = tile->padded_rows, .panels = ln_depth_panels(a->key_size), .query = tile->scratch};
    s.scores = s.query + s.panels * s.rows * LN_ATTEND_STRIDE;
    s.keys = s.scores + s.rows * LN_ATTEND_STRIDE;
    s.values = s.keys + LN_PAGE_TOKENS * a->key_size;
    s.integers = (ln_attend_integers *)(void *)(s.values + LN_ATTEND_BLOCK * a->value_size);
    return s;
}

static uint64_t scratch_floats(const ln_kernels *kernels, const ln_attention *a, int64_t rows) {
    (void)kernels;
    const int64_t panels = ln_depth_panels(a->key_size);
    return (uint64_t)((panels + 1) * rows * LN_ATTEND_STRIDE + LN_PAGE_TOKENS * a->key_size +
                      LN_ATTEND_BLOCK * a->value_size +
                      panels * LN_ATTEND_FEW_ROWS * (int64_t)(sizeof(ln_attend_integers) / sizeof(float)));
}

/* Pages are read as they lie. */
static bool few_rows(const ln_attention_tile *tile) {
    int64_t layouts;
    const ln_page_layout *layout = ln_page_layouts(&tile->sequence->view, &layouts);
    for (int64_t i = 0; i < layouts; i++)
        if (layout[i].value_in_key) return false;
    return tile->rows <= LN_ATTEND_FEW_ROWS;
}

/* Few rows are multiplied with keys of integers in integers: whole queries, or whole blocks of them. */
static bool in_integers(const ln_attention_tile *tile, const ln_page_layout *layout) {
    const ln_attention *a = tile->call->attention;
    return !a->exact && tile->call->kernels->attend.integer.scores[layout->key_type] &&
           (layout->key_size == a->key_size || layout->key_size % 32 == 0);
}
static bool any_in_integers(const ln_attention_tile *tile) {
    int64_t layouts;
    const ln_page_layout *layout = ln_page_layouts(&tile->sequence->view, &layouts);
    for (int64_t i = 0; i < layouts; i++)
        if (in_integers(tile, &layout[i])) return true;
    return false;
}
static bool values_in_integers(const ln_attention_tile *tile, const ln_page_layout *layout) {
    return !tile->call->attention->exact && tile->call->kernels->attend.integer.outputs[layout->value_type];
}

/* Many rows read values of float32 as they lie, where all that is there may be multiplied. */
static bool values_straight(const ln_attention_tile *tile, int64_t key) {
    const ln_page_layout *layout = ln_tile_layout(tile, key);
    return layout->value_type == LINNET_F32 && !layout->value_in_key &&
           ln_tokens_there(tile->sequence, key, INT64_MAX) == LN_PAGE_TOKENS;
}

/* Queries, scores and outputs take half of the cache, keys and values stream through the other. They are read once for
 * each tile, so that words moved fall as the cache grows, up to where reading them costs nothing any more and larger
 * tiles only have more rows that see different keys. */
static int64_t tile_rows(const ln_kernels *kernels, const ln_attention *a) {
    const int64_t row = (a->key_size + a->value_size + LN_ATTEND_BLOCK) * (int64_t)sizeof(float);
    const int64_t rows = kernels->cache_bytes / (2 * row) / ROWS_UNIT * ROWS_UNIT;
    return ln_max_i64(ROWS_LEAST, ln_min_i64(ROWS_MOST, rows));
}

static void load(ln_attention_tile *tile) {
    const ln_attention_call *call = tile->call;
    const ln_attention_sequence *sequence = tile->sequence;
    const ln_attention *a = call->attention;
    const scratch s = scratch_of(tile);
    tile->output_stride = LN_ATTEND_STRIDE;
    tile->output_panel = tile->padded_rows * LN_ATTEND_STRIDE;
    const float factor = a->soft_cap != 0 ? a->scale / a->soft_cap : a->scale * LN_LOG2E;
    for (int64_t r = 0; r < tile->rows; r++) {
        const int64_t token = tile->token + r / call->group, head = tile->head * call->group + r % call->group;
        const int64_t row = sequence->order ? sequence->order[token] : token;
        const int64_t from = row * sequence->query_stride + head * sequence->query_head_stride;
        float *to = s.query + r * LN_ATTEND_STRIDE, whole[LN_HEAD_MOST];
        float *taken = s.panels == 1 ? to : whole;
        if (sequence->query_type == LINNET_BF16)
            ln_format_of(LINNET_BF16)->decode((const uint16_t *)sequence->query + from, taken, a->key_size);
        else
            memcpy(taken, (const float *)sequence->query + from, (size_t)a->key_size * sizeof *taken);
        call->kernels->vector.scale(taken, factor, a->key_size);
        for (int64_t p = 0; taken == whole && p < s.panels; p++)
            memcpy(to + p * s.rows * LN_ATTEND_STRIDE, whole + p * LN_DEPTH,
                   (size_t)ln_min_i64(LN_DEPTH, a->key_size - p * LN_DEPTH) * sizeof *whole);
    }
    const ln_attend_integer *integer = &call->kernels->attend.integer;
    if (!few_rows(tile) || !any_in_integers(tile)) return;
    for (int64_t p = 0; p < s.panels; p++)
        integer->quantize(s.query + p * s.rows * LN_ATTEND_STRIDE, ln_min_i64(LN_DEPTH, a->key_size - p * LN_DEPTH),
                          tile->rows, s.integers + p * LN_ATTEND_FEW_ROWS);
}

/* ---- operands ---- */

static ln_attend_operand keys_operand(const ln_page_layout *layout, ln_attend_part *part, const unsigned char *page,
                                      int64_t panel) {
    *part = ln_page_keys(layout, page, panel * LN_DEPTH);
    return (ln_attend_operand){part, 1, ln_min_i64(LN_DEPTH, layout->key_size - panel * LN_DEPTH), LN_PAGE_TOKENS,
                               false};
}

/* Few rows: what is fetched while a page is read. In integers, the same of the page a block further on; else what lies
 * a little further on in memory, as pages of a head mostly do. */
static void look_ahead(const ln_attention_tile *tile, int64_t key, bool integers, ln_attend_part *part) {
    enum { AHEAD = 8192 };
    if (!integers)
        part->ahead = part->codes + AHEAD;
    else if (key + LN_ATTEND_BLOCK < tile->sequence->keys)
        part->ahead = ln_tile_page(tile, key + LN_ATTEND_BLOCK) + (part->codes - ln_tile_page(tile, key));
}

static ln_attend_operand values_operand(const ln_page_layout *layout, ln_attend_part *parts, int64_t panel,
                                        int64_t depth) {
    return (ln_attend_operand){parts, 0, depth, ln_min_i64(LN_PANEL, layout->value_size - panel * LN_PANEL), true};
}

static void decode_keys(const ln_attention_tile *tile, int64_t key, float *to) {
    const ln_page_layout *layout = ln_tile_layout(tile, key);
    for (int64_t p = 0; p * LN_DEPTH < layout->key_size; p++) {
        ln_attend_part part;
        const ln_attend_operand b = keys_operand(layout, &part, ln_tile_page(tile, key), p);
        tile->call->kernels->attend.decode[layout->key_type](&b, to + p * LN_DEPTH * LN_PAGE_TOKENS);
    }
}

/* Values that are columns of the keys: a page of them, from the decoded keys. */
static void transpose_values(const ln_page_layout *layout, const float *keys, float *values, int64_t token) {
    for (int64_t c = 0; c < layout->value_size; c += LN_PANEL) {
        const int64_t n = ln_min_i64(LN_PANEL, layout->value_size - c);
        float *panel = values + c * LN_ATTEND_BLOCK + token * n;
        for (int64_t t = 0; t < LN_PAGE_TOKENS; t++)
            for (int64_t i = 0; i < n; i++) panel[t * n + i] = keys[(c + i) * LN_PAGE_TOKENS + t];
    }
}

/* Where a panel of the page's decoded values begins, from token `token` on. */
static float *decoded_values(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t key, int64_t panel,
                             int64_t token) {
    const int64_t columns = ln_min_i64(LN_PANEL, tile->call->attention->value_size - panel * LN_PANEL);
    return s->values + panel * LN_PANEL * LN_ATTEND_BLOCK + (key - begin + token) * columns;
}

static void decode_panels(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t key) {
    const ln_page_layout *layout = ln_tile_layout(tile, key);
    for (int64_t panel = 0; panel * LN_PANEL < layout->value_size; panel++) {
        ln_attend_part part = ln_page_values(layout, ln_tile_page(tile, key), panel, 0);
        ln_attend_operand b = values_operand(layout, &part, panel, LN_PAGE_TOKENS);
        b.count = 1;
        tile->call->kernels->attend.decode[layout->value_type](&b, decoded_values(tile, s, begin, key, panel, 0));
    }
}

/* Values that are not there become 0. */
static void clear_absent(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t key) {
    const int64_t there = ln_tokens_there(tile->sequence, key, INT64_MAX);
    if (there == LN_PAGE_TOKENS) return;
    for (int64_t panel = 0; panel * LN_PANEL < tile->call->attention->value_size; panel++) {
        float *from = decoded_values(tile, s, begin, key, panel, there);
        const float *to = decoded_values(tile, s, begin, key, panel, LN_PAGE_TOKENS);
        memset(from, 0, (size_t)(to - from) * sizeof *from);
    }
}

static void decode_values(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t end) {
    for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS) {
        if (values_straight(tile, key)) continue;
        if (ln_tile_layout(tile, key)->value_in_key) {
            decode_keys(tile, key, s->keys);
            transpose_values(ln_tile_layout(tile, key), s->keys, s->values, key - begin);
        } else {
            decode_panels(tile, s, begin, key);
        }
        clear_absent(tile, s, begin, key);
    }
}

/* ---- steps: scores, weights, outputs of rows `row` and up, keys from .. to - 1 of the block at `begin` ---- */

typedef struct piece {
    const ln_attention_tile *tile;
    const scratch *s;
    int64_t begin; /* of the block */
    int64_t row, rows;
    int64_t from, to; /* whole pages, but for the end of the keys */
    bool decoded;
    ln_sight sight;
} piece;

static ln_attend_product product_of(const piece *p, linnet_type type) {
    const ln_attend_kernels *kernels = &p->tile->call->kernels->attend;
    return p->decoded ? kernels->many : kernels->few[type];
}

/* Pages of one layout in integers; returns where they end. */
static int64_t score_integers(const piece *p, int64_t key) {
    const ln_page_layout *layout = ln_tile_layout(p->tile, key);
    float *scores = p->s->scores + p->row * LN_ATTEND_STRIDE + (key - p->begin);
    int64_t end = key;
    for (int64_t panel = 0; panel * LN_DEPTH < layout->key_size; panel++) {
        ln_attend_part parts[LN_BLOCK_PAGES];
        ln_attend_operand keys = {0};
        int64_t pages = 0;
        for (end = key; end < p->to && ln_tile_layout(p->tile, end) == layout; end += LN_PAGE_TOKENS, pages++) {
            keys = keys_operand(layout, &parts[pages], ln_tile_page(p->tile, end), panel);
            look_ahead(p->tile, end, true, &parts[pages]);
        }
        keys.parts = parts;
        keys.count = pages;
        p->tile->call->kernels->attend.integer.scores[layout->key_type](
            &keys, p->s->integers + panel * LN_ATTEND_FEW_ROWS + p->row, p->rows, scores, panel > 0);
    }
    return end;
}

static void score_page(const piece *p, int64_t key) {
    const ln_page_layout *layout = ln_tile_layout(p->tile, key);
    const unsigned char *page = ln_tile_page(p->tile, key);
    const bool decoded = p->decoded && layout->key_type != LINNET_F32;
    float *scores = p->s->scores + p->row * LN_ATTEND_STRIDE + (key - p->begin);
    if (decoded) decode_keys(p->tile, key, p->s->keys);
    for (int64_t panel = 0; panel * LN_DEPTH < layout->key_size; panel++) {
        ln_attend_part part;
        const ln_attend_operand keys = keys_operand(layout, &part, page, panel);
        look_ahead(p->tile, key, false, &part);
        if (decoded) part.codes = (const unsigned char *)(p->s->keys + panel * LN_DEPTH * LN_PAGE_TOKENS);
        product_of(p, layout->key_type)(&keys, p->s->query + (panel * p->s->rows + p->row) * LN_ATTEND_STRIDE, p->rows,
                                        scores, panel > 0);
    }
}

static void score(const piece *p) {
    for (int64_t key = p->from, next; key < p->to; key = next) {
        next = key + LN_PAGE_TOKENS;
        if (!p->decoded && in_integers(p->tile, ln_tile_layout(p->tile, key)))
            next = score_integers(p, key);
        else
            score_page(p, key);
    }
}

static void soften(const piece *p) {
    const ln_attention_tile *tile = p->tile;
    const ln_attention_call *call = tile->call;
    const bool adjusts = p->sight != LN_SEES_ALL || ln_tile_adjusts(tile);
    for (int64_t r = p->row; r < p->row + p->rows; r++) {
        float *scores = p->s->scores + r * LN_ATTEND_STRIDE + (p->from - p->begin);
        if (adjusts) ln_tile_adjust(tile, r, p->from, p->to, p->sight, scores);
        const float factor =
            call->kernels->attend.softmax(scores, p->to - p->from, &tile->maximum[r], tile->sum + r * LN_ATTEND_LANES);
        if (factor == 1) continue;
        for (int64_t at = 0; at < call->attention->value_size; at += LN_DEPTH)
            call->kernels->vector.scale(ln_tile_output(tile, r, at / LN_PANEL), factor,
                                        ln_min_i64(LN_DEPTH, call->attention->value_size - at));
    }
}

/* Whole panels, and whole pages of one layout, in integers; returns how many columns that were. */
static int64_t add_integers(const piece *p, int64_t row, int64_t rows, int64_t from, int64_t to) {
    const ln_page_layout *layout = ln_tile_layout(p->tile, from);
    const ln_attend_integer *kernels = &p->tile->call->kernels->attend.integer;
    const int64_t whole = layout->value_size / LN_PANEL * LN_PANEL;
    if (p->decoded || !values_in_integers(p->tile, layout) || (to - from) % LN_PAGE_TOKENS || from % LN_PAGE_TOKENS)
        return 0;
    ln_attend_part parts[LN_BLOCK_PAGES];
    for (int64_t c = 0; c < whole; c += LN_DEPTH) {
        ln_attend_operand b = values_operand(layout, parts, c / LN_PANEL, LN_PAGE_TOKENS);
        for (int64_t key = from; key < to; key += LN_PAGE_TOKENS) {
            parts[b.count] = ln_page_values(layout, ln_tile_page(p->tile, key), c / LN_PANEL, 0);
            look_ahead(p->tile, key, true, &parts[b.count++]);
        }
        kernels->outputs[layout->value_type](&b, ln_min_i64(LN_DEPTH, whole - c) / LN_PANEL,
                                             p->s->scores + row * LN_ATTEND_STRIDE + (from - p->begin), rows,
                                             ln_tile_output(p->tile, row, c / LN_PANEL));
    }
    return whole;
}

/* Outputs += weights of keys from .. to - 1 times values: whole pages in one product, or a piece of one page. Pages as
 * they lie are of one layout. */
static void add_product(const piece *p, int64_t row, int64_t rows, int64_t from, int64_t to) {
    const ln_page_layout *first = ln_tile_layout(p->tile, from);
    const bool ahead = !p->decoded, integers = values_in_integers(p->tile, first);
    const int64_t depth = ln_min_i64(to - from, LN_PAGE_TOKENS), done = add_integers(p, row, rows, from, to);
    const float *weights = p->s->scores + row * LN_ATTEND_STRIDE + (from - p->begin);
    ln_attend_part parts[LN_BLOCK_PAGES];
    for (int64_t panel = done / LN_PANEL; panel * LN_PANEL < first->value_size; panel++) {
        ln_attend_operand b = values_operand(first, parts, panel, depth);
        for (int64_t key = from; key + depth <= to; key += depth) {
            const ln_page_layout *layout = ln_tile_layout(p->tile, key);
            const float *decoded = decoded_values(p->tile, p->s, p->begin, key, panel, 0);
            parts[b.count++] = !p->decoded || values_straight(p->tile, key)
                                   ? ln_page_values(layout, ln_tile_page(p->tile, key), panel, key % LN_PAGE_TOKENS)
                                   : (ln_attend_part){.codes = (const unsigned char *)decoded};
            if (ahead) look_ahead(p->tile, key, integers, &parts[b.count - 1]);
        }
        product_of(p, first->value_type)(&b, weights, rows, ln_tile_output(p->tile, row, panel), true);
    }
}

/* The end of the pages that one product takes. */
static int64_t joined(const piece *p, int64_t from, int64_t to) {
    const ln_page_layout *layout = ln_tile_layout(p->tile, from);
    if (p->decoded) return to;
    int64_t end = from + LN_PAGE_TOKENS;
    while (end < to && ln_tile_layout(p->tile, end) == layout) end += LN_PAGE_TOKENS;
    return end;
}

/* The same for any range of the block: a piece of a page, whole pages, a piece. */
static void add_range(const piece *p, int64_t row, int64_t rows, int64_t from, int64_t to) {
    while (from < to) {
        const int64_t whole = to / LN_PAGE_TOKENS * LN_PAGE_TOKENS,
                      page_end = (from / LN_PAGE_TOKENS + 1) * LN_PAGE_TOKENS;
        const int64_t next =
            from % LN_PAGE_TOKENS == 0 && whole > from ? joined(p, from, whole) : ln_min_i64(page_end, to);
        add_product(p, row, rows, from, next);
        from = next;
    }
}

/* Each row with exactly the values that it sees. */
static void add_seen(const piece *p) {
    const ln_attention_tile *tile = p->tile;
    const int64_t group = tile->call->group;
    for (int64_t r = p->row; r < p->row + p->rows; r++) {
        uint64_t bits[LN_MASK_WORDS];
        ln_mask_row(&tile->mask, tile->head * group + r % group, tile->position + r / group, p->from, p->to - p->from,
                    bits);
        int64_t i = 0;
        const int64_t n = p->to - p->from;
        while (i < n) {
            int64_t stop = i;
            while (stop < n && bits[stop / 64] >> (stop % 64) & 1) stop++;
            add_range(p, r, 1, p->from + i, p->from + stop);
            i = stop + 1;
        }
    }
}

static void run_piece(const piece *p, bool finite) {
    score(p);
    soften(p);
    if (p->sight == LN_SEES_ALL || finite)
        add_range(p, p->row, p->rows, p->from, p->to);
    else
        add_seen(p);
}

/* ---- blocks ---- */

static bool values_finite(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t end) {
    const int64_t size = tile->call->attention->value_size;
    for (int64_t panel = 0; panel * LN_PANEL < size; panel++) {
        const int64_t columns = ln_min_i64(LN_PANEL, size - panel * LN_PANEL);
        for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS) {
            const float *x = decoded_values(tile, s, begin, key, panel, 0);
            if (values_straight(tile, key))
                x = (const float *)(const void *)ln_page_values(ln_tile_layout(tile, key), ln_tile_page(tile, key),
                                                                panel, 0)
                        .codes;
            if (!tile->call->kernels->attend.finite(x, ln_min_i64(LN_PAGE_TOKENS, end - key) * columns)) return false;
        }
    }
    return true;
}

/* Some rows see some keys: a few rows at a time, with the pages that any of them sees. */
static void step_ragged(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t end) {
    const int64_t group = tile->call->group, together = ln_max_i64(1, PRODUCT_ROWS / group);
    const bool finite = values_finite(tile, s, begin, end);
    for (int64_t t = 0; t < tile->tokens; t += together) {
        const int64_t tokens = ln_min_i64(together, tile->tokens - t);
        const ln_mask_tile queries = ln_tile_queries(tile, t, tokens);
        int64_t from, to;
        ln_mask_range(&tile->mask, &queries, tile->sequence->keys, &from, &to);
        from = ln_max_i64(begin, from / LN_PAGE_TOKENS * LN_PAGE_TOKENS);
        to = ln_min_i64(end, ln_ceil_div(to, LN_PAGE_TOKENS) * LN_PAGE_TOKENS);
        if (from >= to) continue;
        const ln_sight sight = ln_mask_block(&tile->mask, &queries, from, to - from);
        const piece p = {tile, s, begin, t * group, tokens * group, from, to, true, sight};
        if (sight != LN_SEES_NONE) run_piece(&p, finite);
    }
}

/* Pages that all of few rows see. Keys, then values of one before the next, so that memory is read in one stream; those
 * of integers together, which multiply faster than they are read. */
static void step_pages(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t end) {
    for (int64_t key = begin, next; key < end; key = next) {
        next = key + LN_PAGE_TOKENS;
        if (in_integers(tile, ln_tile_layout(tile, key)))
            while (next < end && in_integers(tile, ln_tile_layout(tile, next))) next += LN_PAGE_TOKENS;
        run_piece(&(piece){tile, s, begin, 0, tile->rows, key, ln_min_i64(end, next), false, LN_SEES_ALL}, false);
    }
}

/* Pages as they lie, as far as they are filled. A row that does not see all of one takes exactly its values. */
static void step_few(const ln_attention_tile *tile, const scratch *s, int64_t begin, int64_t end, ln_sight sight) {
    const ln_mask_tile queries = ln_tile_queries(tile, 0, tile->tokens);
    if (sight == LN_SEES_ALL) {
        step_pages(tile, s, begin, end);
        return;
    }
    for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS) {
        const int64_t there = ln_tokens_there(tile->sequence, key, end);
        if (there == 0) continue;
        piece p = {tile, s, begin, 0, tile->rows, key, key + there, false, sight};
        p.sight = ln_mask_block(&tile->mask, &queries, p.from, p.to - p.from);
        if (p.sight != LN_SEES_NONE) run_piece(&p, false);
    }
}

/* Only what is not there is hidden. */
static bool all_see_the_same(const ln_attention_tile *tile, int64_t begin, int64_t end) {
    const ln_mask_tile queries = ln_tile_queries(tile, 0, tile->tokens);
    ln_mask mask = tile->mask;
    mask.counts = NULL;
    return tile->mask.counts && ln_mask_block(&mask, &queries, begin, end - begin) == LN_SEES_ALL;
}

static bool step(ln_attention_tile *tile, int64_t begin, int64_t end, ln_sight sight) {
    const scratch s = scratch_of(tile);
    if (few_rows(tile)) {
        step_few(tile, &s, begin, end, sight);
        return true;
    }
    decode_values(tile, &s, begin, end);
    if (sight == LN_SEES_ALL || all_see_the_same(tile, begin, end))
        run_piece(&(piece){tile, &s, begin, 0, tile->rows, begin, end, true, sight}, true);
    else
        step_ragged(tile, &s, begin, end);
    return true;
}

const ln_attention_way ln_attention_f32 = {tile_rows, 1, 1, scratch_floats, load, step};
