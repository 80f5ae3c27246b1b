/* Owns: a tile of attention's backward pass, queries of one head against keys: which parts of it are seen, the bias of
 * its scores, the gradients of factors in it, and the operands that it is multiplied from.
 *
 * A tile that its queries see in part is cut into squares of 32 x 32; those not seen are left out, the others are
 * joined to rectangles. The way of computing (attention_gradient_f32.c) takes one rectangle after the other. Factors in
 * the bias are products of float32 in every way:
 *     bias = key factors . query factors,  d(query factors) += turned(dS) key factors,
 *     d(key factors) += dS query factors. */
#include <math.h>

#include "mixer/attention_gradient_inside.h"
#include "number/format.h"

/* ---- operands ---- */

void ln_slab_put(const ln_slab *s, int64_t row, const float *from) {
    for (int64_t c = 0; c < s->size; c += LN_DEPTH)
        memcpy(ln_slab_at(s, row, c), from + c, (size_t)ln_min_i64(LN_DEPTH, s->size - c) * sizeof(float));
}
void ln_panels_put(const ln_panels *p, int64_t row, const float *from) {
    for (int64_t c = 0; c < p->size; c += LN_PANEL) {
        const size_t bytes = (size_t)ln_panel_columns(p, c) * sizeof(float);
        if (from)
            memcpy(ln_panel_at(p, row, c), from + c, bytes);
        else
            memset(ln_panel_at(p, row, c), 0, bytes);
    }
}

const float *ln_gradient_row(const ln_gradient_task *t, const linnet_tensor *tensor, linnet_type type, int64_t token,
                             int64_t head, int64_t size) {
    const int64_t row = t->sequence->order ? t->sequence->order[token] : token;
    const int64_t at = row * tensor->token_stride + head * tensor->head_stride;
    if (type == LINNET_F32) return (const float *)tensor->data + at;
    const uint16_t *from = (const uint16_t *)tensor->data + at;
    for (int64_t i = 0; i < size; i++) t->s.row[i] = ln_bf16_float(from[i]);
    return t->s.row;
}
void ln_gradient_fetch(const ln_gradient_task *t, const linnet_tensor *tensor, linnet_type type, int64_t token,
                       int64_t end, int64_t head, int64_t size) {
    enum { LINE = 64 };
    if (token >= end) return;
    const int64_t row = t->sequence->order ? t->sequence->order[token] : token, element = type == LINNET_BF16 ? 2 : 4;
    const char *from = (const char *)tensor->data + (row * tensor->token_stride + head * tensor->head_stride) * element;
    for (int64_t i = 0; i < size * element; i += LINE) __builtin_prefetch(from + i);
}

/* Padded to whole eights. */
static const float *factor_row(const ln_gradient_task *t, const ln_rows *from, int64_t token, int64_t head) {
    memset(t->s.row, 0, (size_t)t->call->padded_rank * sizeof(float));
    memcpy(t->s.row, ln_row_at(from, token, head), (size_t)t->call->rank * sizeof(float));
    return t->s.row;
}

void ln_turn_pages(const ln_gradient_task *t, const ln_panels *from, float *pages) {
    for (int64_t p = 0; p < ln_tile_pages(t); p++)
        for (int64_t c = 0; c < from->size; c += LN_PANEL) {
            const int64_t columns = ln_panel_columns(from, c);
            t->call->kernels->attend.transpose(ln_panel_at(from, p * LN_SQUARE, c), columns, LN_SQUARE, columns,
                                               pages + (p * from->size + c) * LN_SQUARE, LN_SQUARE);
        }
}

void ln_multiply_page(const ln_gradient_task *t, const ln_slab *a, int64_t row, int64_t count, const float *page,
                      float *c, bool add) {
    for (int64_t k = 0; k < a->size; k += LN_DEPTH) {
        const ln_attend_part part = {.codes = (const unsigned char *)(page + k * LN_SQUARE)};
        const ln_attend_operand b = {&part, 1, ln_min_i64(LN_DEPTH, a->size - k), LN_SQUARE, false};
        t->call->kernels->attend.many(&b, ln_slab_at(a, row, k), count, c, add || k > 0);
    }
}

void ln_multiply_panels(const ln_gradient_task *t, const float *a, int64_t count, const ln_panels *b, int64_t from,
                        int64_t depth, const ln_slab *c, int64_t row) {
    for (int64_t k = 0; k < b->size; k += LN_PANEL) {
        const ln_attend_part part = {.codes = (const unsigned char *)ln_panel_at(b, from, k)};
        const ln_attend_operand operand = {&part, 1, depth, ln_panel_columns(b, k), true};
        t->call->kernels->attend.many(&operand, a, count, ln_slab_at(c, row, k), true);
    }
}

void ln_multiply_turned(const ln_gradient_task *t, const float *a, const ln_rectangle *r, const ln_panels *b,
                        int64_t from, const ln_slab *c) {
    const int64_t keys = (r->keys + LN_ATTEND_LANES - 1) / LN_ATTEND_LANES * LN_ATTEND_LANES;
    const int64_t query = r->page * LN_SQUARE, queries = ln_min_i64(r->pages * LN_SQUARE, t->tokens - query);
    t->call->kernels->attend.transpose(a, LN_ATTEND_STRIDE, keys, r->pages * LN_SQUARE, t->s.turned, LN_ATTEND_STRIDE);
    ln_multiply_panels(t, t->s.turned, queries, b, from, r->keys, c, query);
}

/* ---- factors and what belongs to queries ---- */

void ln_gradient_load_keys(const ln_gradient_task *t) {
    const ln_gradient_call *call = t->call;
    if (call->rank == 0) return;
    const ln_rows factors =
        ln_factor_rows(t->sequence, t->sequence->bias.key_factors, call->attention->key_value_heads, call->rank);
    for (int64_t i = 0; i < t->keys; i++) {
        const float *row = factor_row(t, &factors, t->key + i, t->head);
        ln_slab_put(&t->s.key_factors, i, row);
        ln_panels_put(&t->s.key_factor_panels, i, row);
    }
}

static void load_queries(const ln_gradient_task *t) {
    const ln_gradient_call *call = t->call;
    const ln_gradient_sequence *sequence = t->sequence;
    const int64_t padded = ln_tile_pages(t) * LN_SQUARE;
    const int64_t at = t->query_head * call->tokens + call->first[sequence - call->sequences].token + t->token;
    for (int64_t i = 0; i < padded; i++) {
        t->s.shift[i] = i < t->tokens ? call->shift[at + i] : INFINITY;
        t->s.delta[i] = i < t->tokens ? call->delta[at + i] : 0;
    }
    ln_slab_clear(&t->s.query_sum, t->tokens);
    ln_slab_clear(&t->s.query_factor_sum, t->tokens);
    call->way->load_queries(t);
    if (call->rank == 0) return;
    const ln_rows factors = ln_factor_rows(sequence, sequence->bias.query_factors, call->attention->heads, call->rank);
    for (int64_t i = 0; i < padded; i++)
        ln_panels_put(&t->s.query_factors, i,
                      i < t->tokens ? factor_row(t, &factors, t->token + i, t->query_head) : NULL);
    ln_turn_pages(t, &t->s.query_factors, t->s.query_factor_pages);
    call->kernels->vector.scale(t->s.query_factor_pages, LN_LOG2E, padded * call->padded_rank);
}

/* ---- what a tile sees ---- */

static ln_sight sight_of(const ln_gradient_task *t, int64_t query, int64_t queries, int64_t key, int64_t keys) {
    const ln_mask_tile tile = {t->query_head, 1, t->sequence->position + t->token + query, queries};
    return ln_mask_block(&t->mask, &tile, key, keys);
}

/* Adds a run of squares, to the ln_rectangle above it where there is one as wide. */
static int add_run(ln_rectangle *list, int n, ln_rectangle run) {
    for (int i = 0; i < n; i++) {
        ln_rectangle *r = &list[i];
        if (r->page != run.page || r->pages != run.pages || r->key + r->keys != run.key) continue;
        r->keys += run.keys;
        r->masked |= run.masked;
        return n;
    }
    list[n] = run;
    return n + 1;
}

/* Rectangles without overlap of all squares that are seen. */
static int find_rectangles(const ln_gradient_task *t, int64_t key, int64_t keys, ln_rectangle list[LN_RECTANGLES]) {
    const int64_t pages = ln_tile_pages(t);
    const ln_sight sight = sight_of(t, 0, t->tokens, key, keys);
    if (sight == LN_SEES_NONE) return 0;
    list[0] = (ln_rectangle){0, keys, 0, pages, false};
    if (sight == LN_SEES_ALL) return 1;
    int n = 0;
    for (int64_t at = 0; at < keys; at += LN_SQUARE) {
        ln_rectangle run = {at, ln_min_i64(LN_SQUARE, keys - at), 0, 0, false};
        for (int64_t page = 0; page <= pages; page++) {
            const int64_t query = page * LN_SQUARE;
            const ln_sight square =
                page == pages ? LN_SEES_NONE
                              : sight_of(t, query, ln_min_i64(LN_SQUARE, t->tokens - query), key + at, run.keys);
            if (square != LN_SEES_NONE) {
                if (run.pages == 0) run.page = page;
                run.pages++;
                run.masked |= square == LN_SEES_SOME;
            } else if (run.pages > 0) {
                n = add_run(list, n, run);
                run.pages = 0;
                run.masked = false;
            }
        }
    }
    return n;
}

/* Bit c of x[r] <-> bit r of x[c]: halves change places, then quarters, and so on. */
static void turn_bits(uint32_t x[LN_SQUARE]) {
    uint32_t low = 0x0000ffff;
    for (int width = LN_SQUARE / 2; width; width /= 2, low ^= low << width)
        for (int r = 0; r < LN_SQUARE; r++) {
            if (r & width) continue;
            const uint32_t both = (x[r] >> width ^ x[r + width]) & low;
            x[r] ^= both << width;
            x[r + width] ^= both;
        }
}

static void fill_bits(const ln_gradient_task *t, int64_t key, int64_t keys) {
    for (int64_t page = 0; page < ln_tile_pages(t); page++) {
        uint32_t squares[LN_TILE_SQUARES][LN_SQUARE] = {0};
        for (int64_t i = 0; i < ln_min_i64(LN_SQUARE, t->tokens - page * LN_SQUARE); i++) {
            uint64_t seen[LN_MASK_WORDS];
            ln_mask_row(&t->mask, t->query_head, t->sequence->position + t->token + page * LN_SQUARE + i, key, keys,
                        seen);
            for (int step = 0; step < LN_TILE_SQUARES; step++)
                squares[step][i] = (uint32_t)(seen[step / 2] >> step % 2 * LN_SQUARE);
        }
        for (int step = 0; step < LN_TILE_SQUARES; step++) {
            turn_bits(squares[step]);
            for (int k = 0; k < LN_SQUARE; k++) t->s.bits[step * LN_SQUARE + k][page] = squares[step][k];
        }
    }
}

/* All but that of factors. */
static void fill_bias(const ln_gradient_task *t, const ln_bias *bias, int64_t key, int64_t keys) {
    const ln_gradient_sequence *sequence = t->sequence;
    const int64_t padded = ln_tile_pages(t) * LN_SQUARE;
    for (int64_t i = 0; i < padded; i++) {
        float *row = t->s.turned + i * LN_ATTEND_STRIDE;
        const int64_t place = t->token + i;
        memset(row, 0, (size_t)keys * sizeof *row);
        if (i < t->tokens)
            ln_bias_add(&t->call->kernels->vector, bias, t->query_head,
                        sequence->order ? sequence->order[place] : place, sequence->position + place, key, keys, row);
    }
    t->call->kernels->attend.transpose(t->s.turned, LN_ATTEND_STRIDE, padded, (keys + 7) / 8 * 8, t->s.bias,
                                       LN_ATTEND_STRIDE);
}

/* ---- the loop over keys ---- */

ln_attend_gradient_tile ln_gradient_view(const ln_gradient_task *t, const ln_rectangle *r, float *weights,
                                         float *gradient) {
    const ln_attention *attention = t->call->attention;
    const int64_t at = r->key * LN_ATTEND_STRIDE + r->page * LN_SQUARE;
    const float cap = attention->soft_cap;
    return (ln_attend_gradient_tile){
        .rows = r->keys,
        .columns = r->pages * LN_SQUARE,
        .weights = weights,
        .gradient = gradient,
        .uncapped = ln_gradient_factors(t->call) ? t->s.uncapped + at : NULL,
        .bias = ln_bias_any(&t->sequence->bias) ? t->s.bias + at : NULL,
        .bits = r->masked ? &t->s.bits[r->key][r->page] : NULL,
        .shift = t->s.shift + r->page * LN_SQUARE,
        .delta = t->s.delta + r->page * LN_SQUARE,
        .factor = attention->scale * (cap != 0 ? 1 / cap : LN_LOG2E),
        .cap = cap * LN_LOG2E,
    };
}

static void run_rectangle(const ln_gradient_task *t, int64_t row, const ln_rectangle *r, bool biased) {
    const ln_gradient_call *call = t->call;
    const int64_t at = r->key * LN_ATTEND_STRIDE + r->page * LN_SQUARE, key = row + r->key;
    for (int64_t p = 0; p < r->pages && call->rank; p++)
        ln_multiply_page(t, &t->s.key_factors, key, r->keys,
                         t->s.query_factor_pages + (r->page + p) * LN_SQUARE * call->padded_rank,
                         t->s.bias + at + p * LN_SQUARE, biased);
    call->way->step(t, row, r);
    if (call->want_key_factors)
        ln_multiply_panels(t, t->s.uncapped + at, r->keys, &t->s.query_factors, r->page * LN_SQUARE,
                           r->pages * LN_SQUARE, &t->s.key_factor_sum, key);
    if (call->want_query_factors)
        ln_multiply_turned(t, t->s.uncapped + at, r, &t->s.key_factor_panels, key, &t->s.query_factor_sum);
}

bool ln_gradient_tile(const ln_gradient_task *t) {
    const ln_mask_tile tile = {t->query_head, 1, t->sequence->position + t->token, t->tokens};
    ln_bias bias = t->sequence->bias;
    bias.rank = 0;
    const bool biased = ln_bias_any(&bias);
    int64_t first, end;
    ln_mask_range(&t->mask, &tile, t->sequence->keys, &first, &end);
    end = ln_min_i64(end, t->key + t->keys) - t->key;
    bool loaded = false;
    for (int64_t row = ln_max_i64(0, first - t->key) / LN_GRADIENT_TILE * LN_GRADIENT_TILE; row < end;
         row += LN_GRADIENT_TILE) {
        ln_rectangle list[LN_RECTANGLES];
        const int64_t keys = ln_min_i64(LN_GRADIENT_TILE, t->keys - row);
        const int n = find_rectangles(t, t->key + row, keys, list);
        if (n == 0) continue;
        if (!loaded) load_queries(t);
        loaded = true;
        bool masked = false;
        for (int i = 0; i < n; i++) masked |= list[i].masked;
        if (masked) fill_bits(t, t->key + row, keys);
        if (biased) fill_bias(t, &bias, t->key + row, keys);
        for (int i = 0; i < n; i++) run_rectangle(t, row, &list[i], biased);
    }
    if (loaded && t->call->way->store_queries) t->call->way->store_queries(t);
    return loaded;
}
