/* Owns: a block of attention in bf16 on matrix units: queries, keys, values and weights rounded to bf16, sums float32
 * (kernel/attend.h has the kernels and their errors).
 *
 * A block's pages are packed once for all rows of the tile, or were packed for all tiles (ln_attention_pack). Where all
 * rows see the block, one step takes it. Else rows go in groups of LN_BF16_ROWS, each with the pages that any of its
 * rows sees, under a mask by bits; a cap or a bias changes the scores between the step's halves. Values that these
 * kernels cannot take (not finite, or enormous) make the tile start again in float32. */
#include <string.h>

#include "mixer/attention_inside.h"

enum { TILE_ROWS = 512, PAGES = LN_BF16_BLOCK / LN_PAGE_TOKENS, SCORES_STRIDE = LN_ATTEND_BLOCK + 16 };

/* The parts of the way's scratch. */
typedef struct scratch {
    unsigned char *query, *keys, *values; /* operands of the tile, and of a block's pages */
    unsigned char *page;                  /* values that are columns of the keys, laid out as values */
    float *length;                        /* [rows] */
    float *scores;                        /* [rows][SCORES_STRIDE] */
    uint64_t (*seen)[LN_BF16_BLOCK / 64]; /* [rows] */
} scratch;

/* Bytes of all parts; s NULL: that alone. */
static uint64_t place(const ln_kernels *kernels, const ln_attention *a, int64_t rows, void *base, scratch *s) {
    const ln_attend_bf16 *k = &kernels->attend.bf16;
    uint64_t used = 0;
    const uint64_t sizes[] = {(uint64_t)(rows * k->query_bytes(a->key_size)),
                              (uint64_t)(PAGES * k->key_bytes(a->key_size)),
                              (uint64_t)(PAGES * k->value_bytes(a->value_size)),
                              (uint64_t)(LN_PAGE_TOKENS * (4 * a->value_size + 128)),
                              (uint64_t)rows * sizeof(float),
                              (uint64_t)(rows * SCORES_STRIDE) * sizeof(float),
                              (uint64_t)rows * sizeof *s->seen};
    void *parts[sizeof sizes / sizeof *sizes];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        parts[i] = s ? (unsigned char *)base + used : NULL;
        used += ln_round_up(sizes[i], 64);
    }
    if (s) *s = (scratch){parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6]};
    return used;
}

static scratch scratch_of(const ln_attention_tile *tile) {
    scratch s;
    place(tile->call->kernels, tile->call->attention, tile->padded_rows, tile->scratch, &s);
    return s;
}

static uint64_t scratch_floats(const ln_kernels *kernels, const ln_attention *a, int64_t rows) {
    return place(kernels, a, rows, NULL, NULL) / sizeof(float);
}

static int64_t tile_rows(const ln_kernels *kernels, const ln_attention *a) {
    (void)kernels;
    return a->value_size > LN_DEPTH ? TILE_ROWS / 2 : TILE_ROWS;
}

static void load(ln_attention_tile *tile) {
    const ln_attention_call *call = tile->call;
    const ln_attention_sequence *sequence = tile->sequence;
    const ln_attend_bf16 *kernels = &call->kernels->attend.bf16;
    const scratch s = scratch_of(tile);
    tile->output_stride = ln_depth_panels(call->attention->value_size) * LN_ATTEND_STRIDE;
    tile->output_panel = LN_DEPTH;
    for (int64_t r = 0; r < tile->padded_rows; r++) {
        const void *query = NULL;
        if (r < tile->rows) {
            const int64_t token = tile->token + r / call->group, head = tile->head * call->group + r % call->group;
            const int64_t row = sequence->order ? sequence->order[token] : token;
            const int64_t at = row * sequence->query_stride + head * sequence->query_head_stride;
            query = (const char *)sequence->query + at * (sequence->query_type == LINNET_BF16 ? 2 : 4);
        }
        s.length[r] = kernels->pack_query(sequence->query_type, query, call->attention->key_size, r, s.query);
    }
}

/* ---- packing ---- */

/* A page of values from one of keys: codes turned, scales as they are. */
static const unsigned char *turn_page(const ln_page_layout *layout, const unsigned char *page, ln_page_layout *values,
                                      unsigned char *to) {
    ln_page_layout_of(layout->key_type, layout->key_type, 8, layout->value_size, values);
    const uint64_t shift = values->values; /* keys of that layout are not there */
    const size_t element = (size_t)layout->key_bits / 8;
    for (int64_t c = 0; c < layout->value_size; c += LN_PANEL) {
        const int64_t n = ln_min_i64(LN_PANEL, layout->value_size - c);
        unsigned char *panel = to + (size_t)(c * LN_PAGE_TOKENS) * element;
        for (int64_t i = 0; i < n; i++)
            for (int64_t t = 0; t < LN_PAGE_TOKENS; t++)
                memcpy(panel + (size_t)(t * n + i) * element, page + (size_t)((c + i) * LN_PAGE_TOKENS + t) * element,
                       element);
    }
    if (values->bytes > values->value_scales)
        memcpy(to + (values->value_scales - shift), page + layout->key_scales, values->bytes - values->value_scales);
    values->values = 0;
    values->value_scales -= shift;
    return to;
}

/* Packs the first `tokens` tokens of a page; returns the largest length of a key and magnitude of a value. */
typedef struct extent {
    float length, most;
} extent;
static extent pack_page(const ln_kernels *kernels, const ln_attention *a, const ln_page_layout *layout,
                        const unsigned char *page, int64_t tokens, unsigned char *scratch_page, unsigned char *keys,
                        unsigned char *values) {
    const unsigned char *from = page;
    const int64_t written = kernels->attend.bf16.key_bytes(layout->key_size);
    memset(keys + written, 0, (size_t)(kernels->attend.bf16.key_bytes(a->key_size) - written));
    ln_page_layout turned = *layout;
    if (layout->value_in_key) from = turn_page(layout, page, &turned, scratch_page);
    return (extent){kernels->attend.bf16.pack_keys(layout, page, tokens, keys),
                    kernels->attend.bf16.pack_values(&turned, from, tokens, values)};
}

/* false: the values are not for these kernels. */
static bool join(extent page, float *length) {
    if (!(page.most < (float)(1ull << LN_BF16_VALUE))) return false;
    if (!(page.length <= *length)) *length = page.length;
    return true;
}

/* A head's part of a sequence's operands: keys, values and extents of its pages. */
typedef struct head_operands {
    unsigned char *keys, *values;
    extent *extents;
} head_operands;

static uint64_t head_bytes(const ln_kernels *kernels, const ln_attention *a, int64_t pages) {
    const ln_attend_bf16 *k = &kernels->attend.bf16;
    return (uint64_t)(pages * (k->key_bytes(a->key_size) + k->value_bytes(a->value_size))) +
           ln_round_up((uint64_t)pages * sizeof(extent), 64);
}

static head_operands operands_of(const ln_kernels *kernels, const ln_attention *a, int64_t keys, int64_t head,
                                 const unsigned char *base) {
    const int64_t pages = ln_ceil_div(keys, LN_PAGE_TOKENS);
    head_operands o = {.keys = (unsigned char *)(uintptr_t)base + (uint64_t)head * head_bytes(kernels, a, pages)};
    o.values = o.keys + pages * kernels->attend.bf16.key_bytes(a->key_size);
    o.extents = (extent *)(void *)(o.values + pages * kernels->attend.bf16.value_bytes(a->value_size));
    return o;
}

uint64_t ln_attention_operand_bytes(const ln_kernels *kernels, const ln_attention *attention, int64_t keys) {
    return (uint64_t)attention->key_value_heads * head_bytes(kernels, attention, ln_ceil_div(keys, LN_PAGE_TOKENS));
}

typedef struct pack_call {
    const ln_kernels *kernels;
    const ln_attention *attention;
    const ln_attention_sequence *sequence;
    unsigned char *base;
} pack_call;

static void pack_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const pack_call *call = argument;
    const ln_attention *a = call->attention;
    const ln_attend_bf16 *k = &call->kernels->attend.bf16;
    const int64_t head = task % a->key_value_heads, page = task / a->key_value_heads;
    const head_operands o = operands_of(call->kernels, a, call->sequence->keys, head, call->base);
    const int64_t tokens = ln_tokens_there(call->sequence, page * LN_PAGE_TOKENS, call->sequence->keys);
    unsigned char *keys = o.keys + page * k->key_bytes(a->key_size),
                  *values = o.values + page * k->value_bytes(a->value_size);
    o.extents[page] = pack_page(call->kernels, a, ln_page_layout_at(&call->sequence->view, page),
                                ln_page_of(&call->sequence->view, head, page), tokens, NULL, keys, values);
}

void ln_attention_pack(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                       ln_attention_sequence *sequence, unsigned char *operands) {
    pack_call call = {kernels, attention, sequence, operands};
    ln_parallel(team, ln_ceil_div(sequence->keys, LN_PAGE_TOKENS) * attention->key_value_heads, pack_task, &call);
    sequence->operands = operands;
}

/* Keys begin .. end - 1 as operands in s; false where values are not for these kernels. */
static bool pack(const ln_attention_tile *tile, scratch *s, int64_t begin, int64_t end, float *length) {
    const ln_kernels *kernels = tile->call->kernels;
    const ln_attention *a = tile->call->attention;
    const ln_attend_bf16 *k = &kernels->attend.bf16;
    *length = 0;
    /* A page that is seen in part is packed in part: what is beyond must be zeros. */
    if (tile->sequence->operands && (end % LN_PAGE_TOKENS == 0 || end == tile->sequence->keys)) {
        const head_operands o = operands_of(kernels, a, tile->sequence->keys, tile->head, tile->sequence->operands);
        const int64_t first = begin / LN_PAGE_TOKENS;
        s->keys = o.keys + first * k->key_bytes(a->key_size);
        s->values = o.values + first * k->value_bytes(a->value_size);
        for (int64_t page = first; page * LN_PAGE_TOKENS < end; page++)
            if (!join(o.extents[page], length)) return false;
        return true;
    }
    for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS) {
        const int64_t index = (key - begin) / LN_PAGE_TOKENS;
        const extent page = pack_page(
            kernels, a, ln_tile_layout(tile, key), ln_tile_page(tile, key), ln_tokens_there(tile->sequence, key, end),
            s->page, s->keys + index * k->key_bytes(a->key_size), s->values + index * k->value_bytes(a->value_size));
        if (!join(page, length)) return false;
    }
    return true;
}

/* ---- steps ---- */

/* Rows row .. row + rows - 1 of the tile. */
static ln_attend_bf16_tile rows_of(const ln_attention_tile *tile, const scratch *s, int64_t row, int64_t rows) {
    const ln_attention *a = tile->call->attention;
    return (ln_attend_bf16_tile){.rows = rows,
                                 .key_size = a->key_size,
                                 .value_size = a->value_size,
                                 .query = s->query + row * tile->call->kernels->attend.bf16.query_bytes(a->key_size),
                                 .length = s->length + row,
                                 .factor = a->scale * LN_LOG2E,
                                 .maximum = tile->maximum + row,
                                 .sum = tile->sum + row * LN_ATTEND_LANES,
                                 .output = tile->output + row * tile->output_stride,
                                 .output_stride = tile->output_stride};
}

/* The halves, with what cap, bias and mask do to the scores of keys from .. from + block->count - 1. */
static void step_adjusted(const ln_attention_tile *tile, const scratch *s, int64_t row, ln_attend_bf16_tile *rows,
                          const ln_attend_bf16_block *block, int64_t from, ln_sight sight) {
    const ln_attend_bf16 *kernels = &tile->call->kernels->attend.bf16;
    const ln_attention *a = tile->call->attention;
    float *scores = s->scores + row * SCORES_STRIDE;
    kernels->scores(rows, block, a->soft_cap != 0 ? a->scale / a->soft_cap : a->scale * LN_LOG2E, scores,
                    SCORES_STRIDE);
    for (int64_t r = row; r < ln_min_i64(tile->rows, row + rows->rows); r++)
        ln_tile_adjust(tile, r, from, from + block->count, sight, s->scores + r * SCORES_STRIDE);
    kernels->finish(rows, block, 1, scores, SCORES_STRIDE);
}

/* Rows row .. row + rows - 1 with keys from .. to - 1 of the block at begin. */
static void step_rows(const ln_attention_tile *tile, const scratch *s, int64_t row, int64_t rows, int64_t begin,
                      int64_t from, int64_t to, float length, ln_sight sight) {
    const ln_attend_bf16 *kernels = &tile->call->kernels->attend.bf16;
    const ln_attention *a = tile->call->attention;
    const int64_t page = (from - begin) / LN_PAGE_TOKENS, group = tile->call->group;
    ln_attend_bf16_tile part = rows_of(tile, s, row, rows);
    ln_attend_bf16_block block = {.keys = s->keys + page * kernels->key_bytes(a->key_size),
                                  .values = s->values + page * kernels->value_bytes(a->value_size),
                                  .count = to - from,
                                  .length = length};
    if (ln_tile_adjusts(tile)) {
        step_adjusted(tile, s, row, &part, &block, from, sight);
        return;
    }
    if (sight == LN_SEES_SOME) {
        for (int64_t r = row; r < row + rows; r++) {
            if (r < tile->rows)
                ln_mask_row(&tile->mask, tile->head * group + r % group, tile->position + r / group, from, to - from,
                            s->seen[r]);
            else
                memset(s->seen[r], 0, sizeof s->seen[r]);
        }
        block.seen = (const uint64_t(*)[LN_BF16_BLOCK / 64])(s->seen + row);
    }
    kernels->step(&part, &block);
}

static bool step(ln_attention_tile *tile, int64_t begin, int64_t end, ln_sight sight) {
    scratch s = scratch_of(tile);
    const int64_t group = tile->call->group;
    float length;
    if (!pack(tile, &s, begin, end, &length)) return false;
    if (sight == LN_SEES_ALL) {
        step_rows(tile, &s, 0, tile->padded_rows, begin, begin, end, length, sight);
        return true;
    }
    for (int64_t row = 0; row < tile->rows; row += LN_BF16_ROWS) {
        const int64_t t = row / group, last = ln_min_i64(tile->rows, row + LN_BF16_ROWS) - 1;
        const ln_mask_tile queries = ln_tile_queries(tile, t, last / group - t + 1);
        int64_t from, to;
        ln_mask_range(&tile->mask, &queries, tile->sequence->keys, &from, &to);
        from = ln_max_i64(begin, from / LN_PAGE_TOKENS * LN_PAGE_TOKENS);
        to = ln_min_i64(end, ln_ceil_div(to, LN_PAGE_TOKENS) * LN_PAGE_TOKENS);
        if (from >= to) continue;
        const ln_sight part = ln_mask_block(&tile->mask, &queries, from, to - from);
        if (part != LN_SEES_NONE) step_rows(tile, &s, row, LN_BF16_ROWS, begin, from, to, length, part);
    }
    return true;
}

const ln_attention_way ln_attention_bf16 = {tile_rows,      LN_BF16_ROWS, LN_BF16_BLOCK / LN_ATTEND_BLOCK,
                                            scratch_floats, load,         step};
