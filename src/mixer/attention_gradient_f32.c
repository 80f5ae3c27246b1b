/* Owns: a tile of attention's backward pass in float32 products. Its rows are keys, so that P and ds lie side by side
 *     [P | ds] [keys] = [K Q^T | V dO^T],  dV += P dO,  dK += ds Q,  dQ += turned(ds) K,
 * and all five products are the one of kernel/attend.h, with B from pages (queries turned) or panels (rows). */
#include "mixer/attention_gradient_inside.h"

enum { SECOND = LN_GRADIENT_TILE }; /* column of ds in the tile */

typedef struct scratch {
    ln_slab key, value;        /* rows: LN_GRADIENT_PASS */
    ln_panels key_panels;      /* likewise */
    ln_panels query, gradient; /* rows: LN_GRADIENT_TILE; gradient: of outputs */
    float *query_pages, *gradient_pages;
    float *tile; /* [LN_GRADIENT_TILE][LN_ATTEND_STRIDE] */
} scratch;

static uint64_t lay_scratch(const ln_gradient_call *call, float *base, scratch *s) {
    const int64_t key_size = call->attention->key_size, value_size = call->attention->value_size;
    uint64_t at = 0;
    s->key = ln_take_slab(base, &at, LN_GRADIENT_PASS, key_size);
    s->value = ln_take_slab(base, &at, LN_GRADIENT_PASS, value_size);
    s->key_panels = ln_take_panels(base, &at, LN_GRADIENT_PASS, key_size);
    s->query = ln_take_panels(base, &at, LN_GRADIENT_TILE, key_size);
    s->gradient = ln_take_panels(base, &at, LN_GRADIENT_TILE, value_size);
    s->query_pages = ln_take(base, &at, LN_GRADIENT_TILE * key_size);
    s->gradient_pages = ln_take(base, &at, LN_GRADIENT_TILE * value_size);
    s->tile = ln_take(base, &at, LN_GRADIENT_TILE * LN_ATTEND_STRIDE);
    return at;
}

static uint64_t scratch_floats(const ln_gradient_call *call) {
    scratch s;
    return lay_scratch(call, NULL, &s);
}

static void load_keys(const ln_gradient_task *t) {
    const ln_gradient_sequence *sequence = t->sequence;
    scratch s;
    lay_scratch(t->call, t->s.own, &s);
    for (int64_t i = 0; i < t->keys; i++) {
        const int64_t ahead = t->key + i + LN_GRADIENT_AHEAD, end = t->key + t->keys;
        ln_gradient_fetch(t, &sequence->key, sequence->type, ahead, end, t->head, s.key.size);
        ln_gradient_fetch(t, &sequence->value, sequence->type, ahead, end, t->head, s.value.size);
        const float *row = ln_gradient_row(t, &sequence->key, sequence->type, t->key + i, t->head, s.key.size);
        ln_slab_put(&s.key, i, row);
        ln_panels_put(&s.key_panels, i, row);
        ln_slab_put(&s.value, i,
                    ln_gradient_row(t, &sequence->value, sequence->type, t->key + i, t->head, s.value.size));
    }
}

static void load_queries(const ln_gradient_task *t) {
    const ln_gradient_sequence *sequence = t->sequence;
    const int64_t padded = ln_tile_pages(t) * LN_SQUARE;
    scratch s;
    lay_scratch(t->call, t->s.own, &s);
    for (int64_t i = 0; i < padded; i++) {
        const int64_t ahead = t->token + i + LN_GRADIENT_AHEAD, end = t->token + t->tokens;
        ln_gradient_fetch(t, &sequence->query, sequence->type, ahead, end, t->query_head, s.query.size);
        ln_gradient_fetch(t, &sequence->output_gradient, LINNET_F32, ahead, end, t->query_head, s.gradient.size);
        const int64_t token = t->token + i;
        const float *query = NULL, *gradient = NULL;
        if (i < t->tokens)
            query = ln_gradient_row(t, &sequence->query, sequence->type, token, t->query_head, s.query.size);
        ln_panels_put(&s.query, i, query);
        if (i < t->tokens)
            gradient =
                ln_gradient_row(t, &sequence->output_gradient, LINNET_F32, token, t->query_head, s.gradient.size);
        ln_panels_put(&s.gradient, i, gradient);
    }
    ln_turn_pages(t, &s.query, s.query_pages);
    ln_turn_pages(t, &s.gradient, s.gradient_pages);
}

/* P and ds. */
static void weigh(const ln_gradient_task *t, const scratch *s, int64_t row, const ln_rectangle *r) {
    const ln_gradient_call *call = t->call;
    const int64_t at = r->key * LN_ATTEND_STRIDE + r->page * LN_SQUARE;
    float *tile = s->tile + at;
    const bool scores = ln_gradient_scores(call);
    for (int64_t p = 0; p < r->pages; p++) {
        const int64_t query = (r->page + p) * LN_SQUARE;
        ln_multiply_page(t, &s->key, row + r->key, r->keys, s->query_pages + query * s->key.size, tile + p * LN_SQUARE,
                         false);
        if (scores)
            ln_multiply_page(t, &s->value, row + r->key, r->keys, s->gradient_pages + query * s->value.size,
                             tile + SECOND + p * LN_SQUARE, false);
    }
    const ln_attend_gradient_tile view = ln_gradient_view(t, r, tile, scores ? tile + SECOND : NULL);
    call->kernels->attend.gradient(&view);
}

static void step(const ln_gradient_task *t, int64_t row, const ln_rectangle *r) {
    const ln_gradient_call *call = t->call;
    scratch s;
    lay_scratch(call, t->s.own, &s);
    weigh(t, &s, row, r);
    const float *weights = s.tile + r->key * LN_ATTEND_STRIDE + r->page * LN_SQUARE, *scores = weights + SECOND;
    const int64_t query = r->page * LN_SQUARE, depth = r->pages * LN_SQUARE, key = row + r->key;
    if (call->want_value) ln_multiply_panels(t, weights, r->keys, &s.gradient, query, depth, &t->s.value_sum, key);
    if (call->want_key) ln_multiply_panels(t, scores, r->keys, &s.query, query, depth, &t->s.key_sum, key);
    if (call->want_query) ln_multiply_turned(t, scores, r, &s.key_panels, key, &t->s.query_sum);
}

const ln_gradient_way ln_gradient_f32 = {"float32", scratch_floats, load_keys, load_queries, step, NULL};
