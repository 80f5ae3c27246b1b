/* Owns: a tile of attention's backward pass in products of bf16, with sums in float32. Rows of the tile are keys:
 *     S = K Q^T,  dP = V dO^T,  dV += P dO,  dK += ds Q,  dQ^T += K^T ds.
 * The right-hand operands hold pairs of rows (kernel/attend.h). Of ds, the rows serve dK and the pairs of rows dQ, so
 * no tile is turned: dQ is summed turned, and turned back after the last key in scratch.
 *
 * P, ds and dO are rounded to bf16: of each term of a sum, a relative error of up to 2^-8 twice. Exponents, D and sums
 * are float32. */
#include "mixer/attention_gradient_inside.h"

enum {
    SECOND = LN_GRADIENT_TILE,                  /* column of dP in the tile */
    UNIT = 32,                                  /* of a product's sizes */
    LINE = 64,                                  /* bytes by which strides miss powers of two */
    KEYS_STRIDE = 2 * LN_GRADIENT_PASS + LINE,  /* bytes, of rows of all keys */
    TILE_STRIDE = 2 * LN_GRADIENT_TILE + LINE,  /* of a tile's rows */
    PAIRS_STRIDE = 4 * LN_GRADIENT_TILE + LINE, /* of a tile's pairs of rows */
};

/* bf16, rows `stride` bytes apart. */
typedef struct matrix {
    unsigned char *data;
    int64_t stride;
} matrix;

typedef struct scratch {
    matrix key, value, turned_key; /* rows of keys in scratch; turned: [size][keys] */
    matrix query, gradient;        /* rows of the tile's queries, gradient: of outputs */
    matrix query_pairs, gradient_pairs, query_turned, gradient_turned; /* turned: [size / 2][queries] pairs */
    matrix weights, scores, score_pairs;                               /* P; ds */
    float *tile, *query_sum; /* [UNIT][LN_ATTEND_STRIDE]; [size][LN_ATTEND_STRIDE] */
} scratch;

static int64_t padded(int64_t size) {
    return (size + UNIT - 1) / UNIT * UNIT;
}
static matrix take_matrix(float *base, uint64_t *at, int64_t rows, int64_t stride) {
    return (matrix){(unsigned char *)ln_take(base, at, rows * stride / (int64_t)sizeof(float)), stride};
}
static inline unsigned char *row_of(const matrix *m, int64_t row) {
    return m->data + row * m->stride;
}

static uint64_t lay_scratch(const ln_gradient_call *call, float *base, scratch *s) {
    const int64_t key = padded(call->attention->key_size), value = padded(call->attention->value_size);
    const int64_t tile = LN_GRADIENT_TILE;
    uint64_t at = 0;
    s->key = take_matrix(base, &at, LN_GRADIENT_PASS, 2 * key);
    s->value = take_matrix(base, &at, LN_GRADIENT_PASS, 2 * value);
    s->turned_key = take_matrix(base, &at, key, KEYS_STRIDE);
    s->query = take_matrix(base, &at, tile, 2 * key);
    s->gradient = take_matrix(base, &at, tile, 2 * value);
    s->query_pairs = take_matrix(base, &at, tile / 2, 4 * key);
    s->gradient_pairs = take_matrix(base, &at, tile / 2, 4 * value);
    s->query_turned = take_matrix(base, &at, key / 2, PAIRS_STRIDE);
    s->gradient_turned = take_matrix(base, &at, value / 2, PAIRS_STRIDE);
    s->weights = take_matrix(base, &at, tile, TILE_STRIDE);
    s->scores = take_matrix(base, &at, tile, TILE_STRIDE);
    s->score_pairs = take_matrix(base, &at, tile / 2, PAIRS_STRIDE);
    s->tile = ln_take(base, &at, UNIT * LN_ATTEND_STRIDE);
    s->query_sum = ln_take(base, &at, key * LN_ATTEND_STRIDE);
    return at;
}

static uint64_t scratch_floats(const ln_gradient_call *call) {
    scratch s;
    return lay_scratch(call, NULL, &s);
}

/* A row of a bf16 tensor, padded by zeros. */
static void copy_row(const ln_gradient_task *t, const linnet_tensor *tensor, int64_t token, int64_t head, int64_t size,
                     const matrix *to, int64_t row) {
    const int64_t from = t->sequence->order ? t->sequence->order[token] : token;
    const uint16_t *data = (const uint16_t *)tensor->data + from * tensor->token_stride + head * tensor->head_stride;
    memset(row_of(to, row) + 2 * size, 0, (size_t)(to->stride - 2 * size));
    memcpy(row_of(to, row), data, 2 * (size_t)size);
}

static void load_keys(const ln_gradient_task *t) {
    const ln_gradient_call *call = t->call;
    const ln_gradient_sequence *sequence = t->sequence;
    const ln_attend_kernels *kernels = &call->kernels->attend;
    const int64_t key_size = call->attention->key_size, value_size = call->attention->value_size;
    scratch s;
    lay_scratch(call, t->s.own, &s);
    for (int64_t i = 0; i < t->keys; i++) {
        const int64_t ahead = t->key + i + LN_GRADIENT_AHEAD, end = t->key + t->keys;
        ln_gradient_fetch(t, &sequence->key, sequence->type, ahead, end, t->head, key_size);
        ln_gradient_fetch(t, &sequence->value, sequence->type, ahead, end, t->head, value_size);
        copy_row(t, &sequence->key, t->key + i, t->head, key_size, &s.key, i);
        copy_row(t, &sequence->value, t->key + i, t->head, value_size, &s.value, i);
    }
    for (int64_t i = t->keys; i < padded(t->keys); i++) memset(row_of(&s.key, i), 0, (size_t)s.key.stride);
    for (int64_t i = 0; i < t->keys; i += UNIT) {
        kernels->pairs.join(row_of(&s.key, i), s.key.stride, UNIT, padded(key_size), s.query_pairs.data,
                            s.query_pairs.stride);
        kernels->transpose((const float *)(const void *)s.query_pairs.data, padded(key_size), UNIT / 2,
                           padded(key_size), (float *)(void *)(s.turned_key.data + 2 * i),
                           s.turned_key.stride / (int64_t)sizeof(float));
    }
}

static void pair_queries(const ln_attend_kernels *kernels, const matrix *rows, int64_t count, const matrix *pairs,
                         const matrix *turned) {
    const int64_t size = rows->stride / 2;
    kernels->pairs.join(rows->data, rows->stride, count, size, pairs->data, pairs->stride);
    kernels->transpose((const float *)(const void *)rows->data, size / 2, count, size / 2,
                       (float *)(void *)turned->data, turned->stride / (int64_t)sizeof(float));
}

static void load_queries(const ln_gradient_task *t) {
    const ln_gradient_call *call = t->call;
    const ln_gradient_sequence *sequence = t->sequence;
    const ln_attend_kernels *kernels = &call->kernels->attend;
    const int64_t key_size = call->attention->key_size, value_size = call->attention->value_size;
    const int64_t count = ln_tile_pages(t) * LN_SQUARE;
    scratch s;
    lay_scratch(call, t->s.own, &s);
    memset(row_of(&s.query, t->tokens), 0, (size_t)((count - t->tokens) * s.query.stride));
    memset(s.gradient.data, 0, (size_t)(count * s.gradient.stride));
    for (int64_t i = 0; i < t->tokens; i++) {
        const int64_t ahead = t->token + i + LN_GRADIENT_AHEAD, end = t->token + t->tokens;
        ln_gradient_fetch(t, &sequence->query, sequence->type, ahead, end, t->query_head, key_size);
        ln_gradient_fetch(t, &sequence->output_gradient, LINNET_F32, ahead, end, t->query_head, value_size);
        copy_row(t, &sequence->query, t->token + i, t->query_head, key_size, &s.query, i);
        const float *row =
            ln_gradient_row(t, &sequence->output_gradient, LINNET_F32, t->token + i, t->query_head, value_size);
        kernels->pairs.round(row, 0, 1, value_size, row_of(&s.gradient, i), 0);
    }
    pair_queries(kernels, &s.query, count, &s.query_pairs, &s.query_turned);
    pair_queries(kernels, &s.gradient, count, &s.gradient_pairs, &s.gradient_turned);
    for (int64_t i = 0; i < s.query.stride / 2; i++)
        memset(s.query_sum + i * LN_ATTEND_STRIDE, 0, (size_t)count * sizeof(float));
}

/* C [rows of A] (+)= A B, as wide as `size`, at row `row` of c. */
static void add_product(const ln_gradient_task *t, const unsigned char *a, int64_t a_stride, const unsigned char *b,
                        int64_t b_stride, int64_t rows, int64_t depth, const ln_slab *c, int64_t row) {
    for (int64_t k = 0; k < c->size; k += LN_DEPTH)
        t->call->kernels->attend.pairs.product(a, a_stride, b + 4 * k, b_stride, rows,
                                               ln_min_i64(LN_DEPTH, padded(c->size) - k), depth, ln_slab_at(c, row, k),
                                               true);
}

/* P and ds of UNIT keys of the rectangle, from `from` on: the scores of so few stay in the first cache. */
static void weigh(const ln_gradient_task *t, const scratch *s, int64_t row, const ln_rectangle *r, int64_t from) {
    const ln_gradient_call *call = t->call;
    const ln_attend_kernels *kernels = &call->kernels->attend;
    const ln_attend_pairs *pairs = &kernels->pairs;
    const int64_t query = r->page * LN_SQUARE, queries = r->pages * LN_SQUARE, key = row + r->key + from;
    const bool scores = ln_gradient_scores(call);
    const ln_rectangle part = {r->key + from, ln_min_i64(UNIT, r->keys - from), r->page, r->pages, r->masked};
    pairs->product(row_of(&s->key, key), s->key.stride, s->query_turned.data + 4 * query, PAIRS_STRIDE, UNIT, queries,
                   s->key.stride / 2, s->tile, false);
    if (scores)
        pairs->product(row_of(&s->value, key), s->value.stride, s->gradient_turned.data + 4 * query, PAIRS_STRIDE, UNIT,
                       queries, s->value.stride / 2, s->tile + SECOND, false);
    const ln_attend_gradient_tile view = ln_gradient_view(t, &part, s->tile, scores ? s->tile + SECOND : NULL);
    void *weights = row_of(&s->weights, from), *gradient = row_of(&s->scores, from);
    if (view.cap == 0) {
        pairs->weigh(&view, UNIT, weights, gradient, TILE_STRIDE, row_of(&s->score_pairs, from / 2), PAIRS_STRIDE);
        return;
    }
    kernels->gradient(&view);
    for (int64_t i = part.keys; i < UNIT; i++)
        memset(s->tile + i * LN_ATTEND_STRIDE, 0, LN_ATTEND_STRIDE * sizeof *s->tile);
    pairs->round(s->tile, LN_ATTEND_STRIDE, UNIT, queries, weights, TILE_STRIDE);
    pairs->round(s->tile + SECOND, LN_ATTEND_STRIDE, UNIT, queries, gradient, TILE_STRIDE);
    pairs->join(gradient, TILE_STRIDE, UNIT, queries, row_of(&s->score_pairs, from / 2), PAIRS_STRIDE);
}

static void step(const ln_gradient_task *t, int64_t row, const ln_rectangle *r) {
    const ln_gradient_call *call = t->call;
    const ln_attend_pairs *pairs = &call->kernels->attend.pairs;
    const int64_t query = r->page * LN_SQUARE, queries = r->pages * LN_SQUARE, key = row + r->key;
    const int64_t keys = padded(r->keys);
    scratch s;
    lay_scratch(call, t->s.own, &s);
    pairs->start();
    for (int64_t from = 0; from < keys; from += UNIT) weigh(t, &s, row, r, from);
    if (call->want_value)
        add_product(t, s.weights.data, TILE_STRIDE, row_of(&s.gradient_pairs, query / 2), s.gradient_pairs.stride, keys,
                    queries, &t->s.value_sum, key);
    if (call->want_key)
        add_product(t, s.scores.data, TILE_STRIDE, row_of(&s.query_pairs, query / 2), s.query_pairs.stride, keys,
                    queries, &t->s.key_sum, key);
    if (call->want_query)
        pairs->product(s.turned_key.data + 2 * key, KEYS_STRIDE, s.score_pairs.data, PAIRS_STRIDE, s.key.stride / 2,
                       queries, keys, s.query_sum + query, true);
    pairs->stop();
}

static void store_queries(const ln_gradient_task *t) {
    scratch s;
    lay_scratch(t->call, t->s.own, &s);
    for (int64_t k = 0; k < t->s.query_sum.size; k += UNIT)
        t->call->kernels->attend.transpose(s.query_sum + k * LN_ATTEND_STRIDE, LN_ATTEND_STRIDE, UNIT,
                                           ln_tile_pages(t) * LN_SQUARE, ln_slab_at(&t->s.query_sum, 0, k),
                                           LN_ATTEND_STRIDE);
}

const ln_gradient_way ln_gradient_bf16 = {"bf16", scratch_floats, load_keys, load_queries, step, store_queries};
