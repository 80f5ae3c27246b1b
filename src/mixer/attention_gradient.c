/* Owns: the backward pass of exact attention (equations in the header): cutting it into tasks, and the order of work in
 * one.
 *
 * A task is a key-value head of a sequence and a range of its keys, taken PASS keys at a time: their keys, values and
 * sums dK, dV lie in the worker's scratch while all queries that see any of them go by, in tiles of QUERIES tokens of
 * one head against blocks of LN_ATTEND_BLOCK keys. A tile is held with keys as rows, so that P and dS lie side by side
 *     [P | dS][keys] = [K Q^T | V dO^T],  dV += P dO,  dK += dS Q,  dQ += turned(dS) K,
 * and all five products are the one of kernel/attend.h. dK and dV belong to one task. dQ is a sum over ranges: the
 * first range writes the result, the others a partial one each, merged in ascending order. Ranges depend on shapes
 * only: that is why any number of threads gives the same bits.
 *
 * A tile that its queries see in part is cut into squares of 32 x 32, of which those not seen are left out. */
#include "mixer/attention_gradient.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "number/format.h"

enum {
    SQUARE = LN_PANEL,
    QUERIES = LN_ATTEND_BLOCK, /* of a tile */
    KEYS = LN_ATTEND_BLOCK,    /* of a tile */
    PAGES = QUERIES / SQUARE,
    STEPS = KEYS / SQUARE,
    PASS = 512,      /* keys in scratch at once */
    TASKS = 64,      /* keys are cut into ranges up to about this many tasks, */
    RANGES_MOST = 8, /* and this many ranges of a sequence */
    SIDE = 256,      /* columns of a matrix that lie side by side */
    PIECE = 64,      /* tokens in a task of row work */
};
static const float log2e = 1.44269504f;

/* ---- matrices in scratch ---- */

/* [size / SIDE, rounded up][rows][LN_ATTEND_STRIDE]: A and C of products. */
typedef struct slab {
    float *data;
    int64_t rows, size;
} slab;

/* [panel of 32 columns][rows][columns]: B of products. The size is a multiple of 8. */
typedef struct panels {
    float *data;
    int64_t rows, size;
} panels;

static inline float *slab_at(const slab *s, int64_t row, int64_t column) {
    return s->data + (column / SIDE * s->rows + row) * LN_ATTEND_STRIDE + column % SIDE;
}
static inline int64_t panel_columns(const panels *p, int64_t column) {
    return ln_min_i64(LN_PANEL, p->size - column);
}
static inline float *panel_at(const panels *p, int64_t row, int64_t column) {
    return p->data + column * p->rows + row * panel_columns(p, column);
}

static void slab_clear(const slab *s, int64_t rows) {
    for (int64_t c = 0; c < s->size; c += SIDE)
        for (int64_t r = 0; r < rows; r++)
            memset(slab_at(s, r, c), 0, (size_t)ln_min_i64(SIDE, s->size - c) * sizeof(float));
}
static void slab_put(const slab *s, int64_t row, const float *from) {
    for (int64_t c = 0; c < s->size; c += SIDE)
        memcpy(slab_at(s, row, c), from + c, (size_t)ln_min_i64(SIDE, s->size - c) * sizeof(float));
}
/* from: at least size floats; NULL: zeros. */
static void panels_put(const panels *p, int64_t row, const float *from) {
    for (int64_t c = 0; c < p->size; c += LN_PANEL) {
        const size_t bytes = (size_t)panel_columns(p, c) * sizeof(float);
        if (from)
            memcpy(panel_at(p, row, c), from + c, bytes);
        else
            memset(panel_at(p, row, c), 0, bytes);
    }
}

/* to [columns] += factor * row */
static void add_row(const slab *s, int64_t row, int64_t columns, float factor, float *to) {
    for (int64_t c = 0; c < columns; c += SIDE) {
        const float *from = slab_at(s, row, c);
        const int64_t n = ln_min_i64(SIDE, columns - c);
        for (int64_t i = 0; i < n; i++) to[c + i] += factor * from[i];
    }
}

/* ---- the shape of a call ---- */

/* A worker's scratch. Queries: `query`, `gradient` as panels [tile's tokens], and turned into pages
 * [page][size][SQUARE]. */
typedef struct scratch {
    slab key, value, key_sum, value_sum, key_factor_sum; /* rows: PASS */
    panels key_panels, key_factors;
    panels query, gradient, query_factors; /* rows: QUERIES */
    float *query_pages, *gradient_pages;
    slab query_sum, query_factor_sum;
    float *tile, *turned;                   /* [KEYS][LN_ATTEND_STRIDE] P | dS; [QUERIES][..] ds | dS */
    float *extra;                           /* [KEYS][..] bias | dS */
    float *row;                             /* of a tensor, as floats */
    float *shift, *delta;                   /* [QUERIES] */
    uint32_t (*bits)[LN_ATTEND_BLOCK / 32]; /* [KEYS] */
} scratch;

/* What lies before a sequence: tokens of queries, tasks, pieces of row work, floats of partial results. */
typedef struct gradient_first {
    int64_t token, task, piece, partial;
} gradient_first;

typedef struct gradient_call {
    const ln_kernels *kernels;
    const ln_attention_gradients *shape;
    const ln_gradient_sequence *sequences;
    int64_t count, tokens; /* of sequences, of their queries */
    int64_t group, padded_rank, range_keys;
    gradient_first *first; /* [count + 1] */
    float *delta, *shift;  /* [heads][tokens]: D; lse in base 2, inf instead of -inf */
    float *partial;        /* [sequence][range - 1][heads][tokens][key_size + rank] */
    float *scratch;
    uint64_t worker_floats;
    bool want_query, want_key, want_value, want_query_factors, want_key_factors;
} gradient_call;

/* `count` floats from base + *at on, aligned to 64 bytes; NULL where base is. */
static float *take(float *base, uint64_t *at, int64_t count) {
    float *here = base ? base + *at : NULL;
    *at += ln_round_up((uint64_t)count, 16);
    return here;
}
static slab take_slab(float *base, uint64_t *at, int64_t rows, int64_t size) {
    return (slab){take(base, at, ln_ceil_div(size, SIDE) * rows * LN_ATTEND_STRIDE), rows, size};
}
static panels take_panels(float *base, uint64_t *at, int64_t rows, int64_t size) {
    return (panels){take(base, at, rows * size), rows, size};
}

/* Returns the floats of it all. */
static uint64_t lay_scratch(const gradient_call *call, float *base, scratch *s) {
    const int64_t key_size = call->shape->key_size, value_size = call->shape->value_size, rank = call->padded_rank;
    uint64_t at = 0;
    s->key = take_slab(base, &at, PASS, key_size);
    s->value = take_slab(base, &at, PASS, value_size);
    s->key_sum = take_slab(base, &at, PASS, key_size);
    s->value_sum = take_slab(base, &at, PASS, value_size);
    s->key_factor_sum = take_slab(base, &at, PASS, rank);
    s->key_panels = take_panels(base, &at, PASS, key_size);
    s->key_factors = take_panels(base, &at, PASS, rank);
    s->query = take_panels(base, &at, QUERIES, key_size);
    s->gradient = take_panels(base, &at, QUERIES, value_size);
    s->query_factors = take_panels(base, &at, QUERIES, rank);
    s->query_pages = take(base, &at, QUERIES * key_size);
    s->gradient_pages = take(base, &at, QUERIES * value_size);
    s->query_sum = take_slab(base, &at, QUERIES, key_size);
    s->query_factor_sum = take_slab(base, &at, QUERIES, rank);
    s->tile = take(base, &at, KEYS * LN_ATTEND_STRIDE);
    s->turned = take(base, &at, QUERIES * LN_ATTEND_STRIDE);
    s->extra = take(base, &at, KEYS * LN_ATTEND_STRIDE);
    s->row = take(base, &at, ln_max_i64(rank, ln_max_i64(key_size, value_size)));
    s->shift = take(base, &at, QUERIES);
    s->delta = take(base, &at, QUERIES);
    s->bits = (uint32_t(*)[LN_ATTEND_BLOCK / 32])(void *)take(base, &at, KEYS * (LN_ATTEND_BLOCK / 32));
    return at;
}

static int64_t ranges_of(const gradient_call *call, const ln_gradient_sequence *sequence) {
    return ln_max_i64(1, ln_ceil_div(sequence->keys, call->range_keys));
}

static void cut_keys(gradient_call *call) {
    int64_t keys = 0, longest = 0;
    for (int64_t i = 0; i < call->count; i++) {
        keys += call->sequences[i].keys;
        longest = ln_max_i64(longest, call->sequences[i].keys);
    }
    const int64_t by_tasks = ln_ceil_div(keys, ln_max_i64(1, TASKS / call->shape->key_value_heads));
    const int64_t least = ln_max_i64(by_tasks, ln_ceil_div(longest, RANGES_MOST));
    call->range_keys = ln_max_i64(1, ln_ceil_div(least, PASS)) * PASS;
}

/* workspace NULL: sizes alone. Returns the floats of it all. */
static uint64_t lay_call(gradient_call *call, float *workspace, int threads) {
    const ln_attention_gradients *shape = call->shape;
    call->group = shape->heads / shape->key_value_heads;
    call->padded_rank = (shape->rank + 7) / 8 * 8;
    cut_keys(call);
    uint64_t at = 0;
    gradient_first before = {0};
    call->first = (gradient_first *)(void *)take(workspace, &at, 8 * (call->count + 1));
    for (int64_t i = 0; i < call->count; i++) {
        const ln_gradient_sequence *sequence = &call->sequences[i];
        const int64_t ranges = ranges_of(call, sequence);
        if (workspace) call->first[i] = before;
        before.token += sequence->tokens;
        before.task += ranges * shape->key_value_heads;
        before.piece += ln_ceil_div(sequence->tokens, PIECE);
        before.partial += (ranges - 1) * sequence->tokens * shape->heads * (shape->key_size + shape->rank);
    }
    if (workspace) call->first[call->count] = before;
    call->tokens = before.token;
    call->delta = take(workspace, &at, shape->heads * call->tokens);
    call->shift = take(workspace, &at, shape->heads * call->tokens);
    call->partial = take(workspace, &at, before.partial);
    scratch s;
    call->worker_floats = lay_scratch(call, NULL, &s);
    call->scratch = take(workspace, &at, (int64_t)call->worker_floats * threads);
    return at;
}

/* ---- one task ---- */

typedef struct gradient_task {
    const gradient_call *call;
    const ln_gradient_sequence *sequence;
    ln_mask mask;
    scratch s;
    int64_t head, key, keys;           /* key-value head; keys in scratch */
    int64_t query_head, token, tokens; /* of the tile, `token` counted in the sequence */
} gradient_task;

/* Rows of a result: a tensor, or a partial one. */
typedef struct rows {
    float *data;
    int64_t token_stride, head_stride;
    const int64_t *order;
} rows;

static inline float *row_at(const rows *r, int64_t token, int64_t head) {
    return r->data + (r->order ? r->order[token] : token) * r->token_stride + head * r->head_stride;
}
static rows rows_of(const ln_gradient_sequence *sequence, const linnet_tensor *tensor) {
    return (rows){tensor->data, tensor->token_stride, tensor->head_stride, sequence->order};
}
static rows factor_rows(const ln_gradient_sequence *sequence, const float *data, int64_t heads, int64_t rank) {
    return (rows){(float *)(uintptr_t)data, heads * rank, rank, sequence->order};
}
/* Of range `range` > 0 of a sequence, the part of the query's gradient (columns 0) or that of its factors. */
static rows partial_rows(const gradient_call *call, int64_t index, int64_t range, bool factors) {
    const ln_attention_gradients *shape = call->shape;
    const int64_t width = shape->key_size + shape->rank, tokens = call->sequences[index].tokens;
    float *data = call->partial + call->first[index].partial + (range - 1) * tokens * shape->heads * width;
    return (rows){data + (factors ? shape->key_size : 0), width, tokens * width, NULL};
}

/* A row of a tensor, as floats. */
static const float *read_row(const gradient_task *t, const linnet_tensor *tensor, linnet_type type, int64_t token,
                             int64_t head, int64_t size) {
    const int64_t row = t->sequence->order ? t->sequence->order[token] : token;
    const int64_t at = row * tensor->token_stride + head * tensor->head_stride;
    if (type == LINNET_F32) return (const float *)tensor->data + at;
    const uint16_t *from = (const uint16_t *)tensor->data + at;
    for (int64_t i = 0; i < size; i++) t->s.row[i] = ln_bf16_float(from[i]);
    return t->s.row;
}
static void put_factors(const gradient_task *t, const panels *to, int64_t row, const rows *from, int64_t token,
                        int64_t head) {
    const int64_t rank = t->call->shape->rank;
    memset(t->s.row, 0, (size_t)to->size * sizeof(float));
    memcpy(t->s.row, row_at(from, token, head), (size_t)rank * sizeof(float));
    panels_put(to, row, t->s.row);
}

static void load_keys(const gradient_task *t) {
    const ln_attention_gradients *shape = t->call->shape;
    const ln_gradient_sequence *sequence = t->sequence;
    const rows factors = factor_rows(sequence, sequence->bias.key_factors, shape->key_value_heads, shape->rank);
    for (int64_t i = 0; i < t->keys; i++) {
        const float *row = read_row(t, &sequence->key, shape->type, t->key + i, t->head, shape->key_size);
        slab_put(&t->s.key, i, row);
        panels_put(&t->s.key_panels, i, row);
        slab_put(&t->s.value, i, read_row(t, &sequence->value, shape->type, t->key + i, t->head, shape->value_size));
        if (t->call->want_query_factors) put_factors(t, &t->s.key_factors, i, &factors, t->key + i, t->head);
    }
    slab_clear(&t->s.key_sum, t->keys);
    slab_clear(&t->s.value_sum, t->keys);
    slab_clear(&t->s.key_factor_sum, t->keys);
}

static int64_t tile_pages(const gradient_task *t) {
    return ln_ceil_div(t->tokens, SQUARE);
}

static void turn_pages(const gradient_task *t, const panels *from, float *pages) {
    for (int64_t p = 0; p < tile_pages(t); p++)
        for (int64_t c = 0; c < from->size; c += LN_PANEL) {
            const int64_t columns = panel_columns(from, c);
            t->call->kernels->attend.transpose(panel_at(from, p * SQUARE, c), columns, SQUARE, columns,
                                               pages + (p * from->size + c) * SQUARE, SQUARE);
        }
}

/* The tile's queries and gradients of outputs, padded to whole pages by rows that weigh nothing. */
static void load_queries(const gradient_task *t) {
    const gradient_call *call = t->call;
    const ln_attention_gradients *shape = call->shape;
    const ln_gradient_sequence *sequence = t->sequence;
    const int64_t padded = tile_pages(t) * SQUARE;
    const rows factors = factor_rows(sequence, sequence->bias.query_factors, shape->heads, shape->rank);
    for (int64_t i = 0; i < padded; i++) {
        const bool real = i < t->tokens;
        const int64_t token = t->token + i;
        panels_put(&t->s.query, i,
                   real ? read_row(t, &sequence->query, shape->type, token, t->query_head, shape->key_size) : NULL);
        panels_put(&t->s.gradient, i,
                   real ? read_row(t, &sequence->output_gradient, LINNET_F32, token, t->query_head, shape->value_size)
                        : NULL);
        if (!call->want_key_factors) continue;
        if (real)
            put_factors(t, &t->s.query_factors, i, &factors, token, t->query_head);
        else
            panels_put(&t->s.query_factors, i, NULL);
    }
    turn_pages(t, &t->s.query, t->s.query_pages);
    turn_pages(t, &t->s.gradient, t->s.gradient_pages);
    const float factor = shape->soft_cap != 0 ? shape->scale / shape->soft_cap : shape->scale * log2e;
    call->kernels->vector.scale(t->s.query_pages, factor, padded * shape->key_size);
    const int64_t at = t->query_head * call->tokens + call->first[sequence - call->sequences].token + t->token;
    for (int64_t i = 0; i < padded; i++) {
        t->s.shift[i] = i < t->tokens ? call->shift[at + i] : INFINITY;
        t->s.delta[i] = i < t->tokens ? call->delta[at + i] : 0;
    }
    slab_clear(&t->s.query_sum, t->tokens);
    slab_clear(&t->s.query_factor_sum, t->tokens);
}

/* ---- what a tile sees ---- */

/* Keys counted in the block, pages of 32 queries. */
typedef struct rectangle {
    int64_t key, keys, page, pages;
    bool masked;
} rectangle;
enum { RECTANGLES = STEPS * PAGES };

static ln_sight sight_of(const gradient_task *t, int64_t query, int64_t queries, int64_t key, int64_t keys) {
    const ln_mask_tile tile = {t->query_head, 1, t->sequence->position + t->token + query, queries};
    return ln_mask_block(&t->mask, &tile, key, keys);
}

/* Adds a run of squares, to the rectangle above it where there is one as wide. */
static int add_run(rectangle *list, int n, rectangle run) {
    for (int i = 0; i < n; i++) {
        rectangle *r = &list[i];
        if (r->page != run.page || r->pages != run.pages || r->key + r->keys != run.key) continue;
        r->keys += run.keys;
        r->masked |= run.masked;
        return n;
    }
    list[n] = run;
    return n + 1;
}

/* Rectangles without overlap of all squares that are seen. */
static int find_rectangles(const gradient_task *t, int64_t key, int64_t keys, rectangle list[RECTANGLES]) {
    const int64_t pages = tile_pages(t);
    const ln_sight sight = sight_of(t, 0, t->tokens, key, keys);
    if (sight == LN_SEES_NONE) return 0;
    list[0] = (rectangle){0, keys, 0, pages, false};
    if (sight == LN_SEES_ALL) return 1;
    int n = 0;
    for (int64_t at = 0; at < keys; at += SQUARE) {
        rectangle run = {at, ln_min_i64(SQUARE, keys - at), 0, 0, false};
        for (int64_t page = 0; page <= pages; page++) {
            const int64_t query = page * SQUARE;
            const ln_sight square = page == pages
                                        ? LN_SEES_NONE
                                        : sight_of(t, query, ln_min_i64(SQUARE, t->tokens - query), key + at, run.keys);
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
static void turn_bits(uint32_t x[SQUARE]) {
    uint32_t low = 0x0000ffff;
    for (int width = SQUARE / 2; width; width /= 2, low ^= low << width)
        for (int r = 0; r < SQUARE; r++) {
            if (r & width) continue;
            const uint32_t both = (x[r] >> width ^ x[r + width]) & low;
            x[r] ^= both << width;
            x[r + width] ^= both;
        }
}

static void fill_bits(const gradient_task *t, int64_t key, int64_t keys) {
    for (int64_t page = 0; page < tile_pages(t); page++) {
        uint32_t squares[STEPS][SQUARE] = {0};
        for (int64_t i = 0; i < ln_min_i64(SQUARE, t->tokens - page * SQUARE); i++) {
            uint64_t seen[LN_MASK_WORDS];
            ln_mask_row(&t->mask, t->query_head, t->sequence->position + t->token + page * SQUARE + i, key, keys, seen);
            for (int step = 0; step < STEPS; step++) squares[step][i] = (uint32_t)(seen[step / 2] >> step % 2 * SQUARE);
        }
        for (int step = 0; step < STEPS; step++) {
            turn_bits(squares[step]);
            for (int k = 0; k < SQUARE; k++) t->s.bits[step * SQUARE + k][page] = squares[step][k];
        }
    }
}

static void fill_bias(const gradient_task *t, int64_t key, int64_t keys) {
    const ln_gradient_sequence *sequence = t->sequence;
    const int64_t padded = tile_pages(t) * SQUARE;
    for (int64_t i = 0; i < padded; i++) {
        float *row = t->s.turned + i * LN_ATTEND_STRIDE;
        const int64_t place = t->token + i;
        memset(row, 0, (size_t)keys * sizeof *row);
        if (i < t->tokens)
            ln_bias_add(&t->call->kernels->vector, &sequence->bias, t->query_head,
                        sequence->order ? sequence->order[place] : place, sequence->position + place, key, keys, row);
    }
    t->call->kernels->attend.transpose(t->s.turned, LN_ATTEND_STRIDE, padded, (keys + 7) / 8 * 8, t->s.extra,
                                       LN_ATTEND_STRIDE);
}

/* ---- products of a tile ---- */

/* c [rows][SQUARE] = rows `row` and up of A times a page. */
static void multiply_page(const gradient_task *t, const slab *a, int64_t row, int64_t count, const float *page,
                          float *c) {
    for (int64_t k = 0; k < a->size; k += SIDE) {
        const ln_attend_part part = {.codes = (const unsigned char *)(page + k * SQUARE)};
        const ln_attend_operand b = {&part, 1, ln_min_i64(SIDE, a->size - k), SQUARE, false};
        t->call->kernels->attend.many(&b, slab_at(a, row, k), count, c, k > 0);
    }
}

/* Rows `row` and up of C += A [count, depth] times rows `from` and up of B. */
static void multiply_panels(const gradient_task *t, const float *a, int64_t count, const panels *b, int64_t from,
                            int64_t depth, const slab *c, int64_t row) {
    for (int64_t k = 0; k < b->size; k += LN_PANEL) {
        const ln_attend_part part = {.codes = (const unsigned char *)panel_at(b, from, k)};
        const ln_attend_operand operand = {&part, 1, depth, panel_columns(b, k), true};
        t->call->kernels->attend.many(&operand, a, count, slab_at(c, row, k), true);
    }
}

/* Where the square of key, page is in [P | ds], [bias | dS] and, turned, in [ds | dS]. */
static inline int64_t tile_at(const rectangle *r) {
    return r->key * LN_ATTEND_STRIDE + r->page * SQUARE;
}
static inline int64_t turned_at(const rectangle *r) {
    return r->page * SQUARE * LN_ATTEND_STRIDE + r->key;
}

/* P and the gradients of scores. */
static void weigh(const gradient_task *t, int64_t row, const rectangle *r, bool biased) {
    const gradient_call *call = t->call;
    const scratch *s = &t->s;
    float *tile = s->tile + tile_at(r);
    const bool scores = call->want_query || call->want_key || call->want_query_factors || call->want_key_factors;
    const bool factors = call->want_query_factors || call->want_key_factors;
    for (int64_t p = 0; p < r->pages; p++) {
        const int64_t page = (r->page + p) * SQUARE;
        multiply_page(t, &s->key, row + r->key, r->keys, s->query_pages + page * s->key.size, tile + p * SQUARE);
        if (scores)
            multiply_page(t, &s->value, row + r->key, r->keys, s->gradient_pages + page * s->value.size,
                          tile + QUERIES + p * SQUARE);
    }
    const ln_attend_gradient_tile step = {
        .rows = r->keys,
        .columns = r->pages * SQUARE,
        .weights = tile,
        .gradient = scores ? tile + QUERIES : NULL,
        .uncapped = factors ? s->extra + QUERIES + tile_at(r) : NULL,
        .bias = biased ? s->extra + tile_at(r) : NULL,
        .bits = r->masked ? &s->bits[r->key][r->page] : NULL,
        .shift = s->shift + r->page * SQUARE,
        .delta = s->delta + r->page * SQUARE,
        .cap = call->shape->soft_cap * log2e,
    };
    call->kernels->attend.gradient(&step);
}

/* Sums over queries: of values, keys and their factors. */
static void add_to_keys(const gradient_task *t, int64_t row, const rectangle *r) {
    const gradient_call *call = t->call;
    const scratch *s = &t->s;
    const float *tile = s->tile + tile_at(r);
    const int64_t query = r->page * SQUARE, depth = r->pages * SQUARE, key = row + r->key;
    if (call->want_value) multiply_panels(t, tile, r->keys, &s->gradient, query, depth, &s->value_sum, key);
    if (call->want_key) multiply_panels(t, tile + QUERIES, r->keys, &s->query, query, depth, &s->key_sum, key);
    if (call->want_key_factors)
        multiply_panels(t, s->extra + QUERIES + tile_at(r), r->keys, &s->query_factors, query, depth,
                        &s->key_factor_sum, key);
}

/* Sums over keys: of queries and their factors. */
static void add_to_queries(const gradient_task *t, int64_t row, const rectangle *r) {
    const gradient_call *call = t->call;
    const scratch *s = &t->s;
    const int64_t query = r->page * SQUARE, queries = ln_min_i64(r->pages * SQUARE, t->tokens - query);
    float *turned = s->turned + turned_at(r);
    const ln_attend_transpose transpose = call->kernels->attend.transpose;
    const int64_t keys = (r->keys + LN_ATTEND_LANES - 1) / LN_ATTEND_LANES * LN_ATTEND_LANES;
    if (call->want_query) {
        transpose(s->tile + QUERIES + tile_at(r), LN_ATTEND_STRIDE, keys, r->pages * SQUARE, turned, LN_ATTEND_STRIDE);
        multiply_panels(t, turned, queries, &s->key_panels, row + r->key, r->keys, &s->query_sum, query);
    }
    if (call->want_query_factors) {
        transpose(s->extra + QUERIES + tile_at(r), LN_ATTEND_STRIDE, keys, r->pages * SQUARE, turned + KEYS,
                  LN_ATTEND_STRIDE);
        multiply_panels(t, turned + KEYS, queries, &s->key_factors, row + r->key, r->keys, &s->query_factor_sum, query);
    }
}

/* ---- the loops of a task ---- */

/* The tile against all keys in scratch; the sums over these keys are added to the targets. */
static void run_tile(const gradient_task *t, const rows *query, const rows *factors) {
    const ln_mask_tile tile = {t->query_head, 1, t->sequence->position + t->token, t->tokens};
    const bool biased = ln_bias_any(&t->sequence->bias);
    int64_t first, end;
    ln_mask_range(&t->mask, &tile, t->sequence->keys, &first, &end);
    end = ln_min_i64(end, t->key + t->keys) - t->key;
    bool loaded = false;
    for (int64_t row = ln_max_i64(0, first - t->key) / KEYS * KEYS; row < end; row += KEYS) {
        rectangle list[RECTANGLES];
        const int64_t keys = ln_min_i64(KEYS, t->keys - row);
        const int n = find_rectangles(t, t->key + row, keys, list);
        if (n == 0) continue;
        if (!loaded) load_queries(t);
        loaded = true;
        bool masked = false;
        for (int i = 0; i < n; i++) masked |= list[i].masked;
        if (masked) fill_bits(t, t->key + row, keys);
        if (biased) fill_bias(t, t->key + row, keys);
        for (int i = 0; i < n; i++) {
            weigh(t, row, &list[i], biased);
            add_to_keys(t, row, &list[i]);
            add_to_queries(t, row, &list[i]);
        }
    }
    if (!loaded) return;
    for (int64_t i = 0; i < t->tokens; i++) {
        if (query->data)
            add_row(&t->s.query_sum, i, t->call->shape->key_size, t->call->shape->scale,
                    row_at(query, t->token + i, t->query_head));
        if (factors->data)
            add_row(&t->s.query_factor_sum, i, t->call->shape->rank, 1, row_at(factors, t->token + i, t->query_head));
    }
}

static void clear_rows(const rows *to, int64_t token, int64_t tokens, int64_t head, int64_t heads, int64_t size) {
    if (!to->data) return;
    for (int64_t t = token; t < token + tokens; t++)
        for (int64_t h = head; h < head + heads; h++) memset(row_at(to, t, h), 0, (size_t)size * sizeof(float));
}

/* Sums over queries, of the keys in scratch. */
static void store_keys(const gradient_task *t) {
    const ln_attention_gradients *shape = t->call->shape;
    const ln_gradient_sequence *sequence = t->sequence;
    const struct {
        rows to;
        const slab *from;
        int64_t size;
        float factor;
    } results[] = {
        {rows_of(sequence, &sequence->key_gradient), &t->s.key_sum, shape->key_size, shape->scale},
        {rows_of(sequence, &sequence->value_gradient), &t->s.value_sum, shape->value_size, 1},
        {factor_rows(sequence, sequence->key_factors_gradient, shape->key_value_heads, shape->rank),
         &t->s.key_factor_sum, shape->rank, 1},
    };
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        clear_rows(&results[i].to, t->key, t->keys, t->head, 1, results[i].size);
        for (int64_t k = 0; k < t->keys && results[i].to.data; k++)
            add_row(results[i].from, k, results[i].size, results[i].factor,
                    row_at(&results[i].to, t->key + k, t->head));
    }
}

/* Index of the last sequence that begins at or before `at`. */
static int64_t find_sequence(const gradient_call *call, int64_t at, size_t field) {
    int64_t low = 0, high = call->count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        int64_t first;
        memcpy(&first, (const char *)&call->first[middle] + field, sizeof first);
        if (first <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void run_task(void *argument, int64_t task, int worker) {
    const gradient_call *call = argument;
    const ln_attention_gradients *shape = call->shape;
    const int64_t index = find_sequence(call, task, offsetof(gradient_first, task)), group = call->group;
    const ln_gradient_sequence *sequence = &call->sequences[index];
    gradient_task t = {.call = call, .sequence = sequence, .mask = shape->mask};
    t.mask.key_begin = sequence->key_begin;
    lay_scratch(call, call->scratch + (uint64_t)worker * call->worker_floats, &t.s);
    const int64_t range = (task - call->first[index].task) / shape->key_value_heads;
    t.head = (task - call->first[index].task) % shape->key_value_heads;
    rows query = rows_of(sequence, &sequence->query_gradient);
    rows factors = factor_rows(sequence, sequence->query_factors_gradient, shape->heads, shape->rank);
    if (range > 0 && query.data) query = partial_rows(call, index, range, false);
    if (range > 0 && factors.data) factors = partial_rows(call, index, range, true);
    clear_rows(&query, 0, sequence->tokens, t.head * group, group, shape->key_size);
    clear_rows(&factors, 0, sequence->tokens, t.head * group, group, shape->rank);
    const int64_t end = ln_min_i64(sequence->keys, (range + 1) * call->range_keys);
    for (t.key = range * call->range_keys; t.key < end; t.key += PASS) {
        t.keys = ln_min_i64(PASS, end - t.key);
        load_keys(&t);
        for (t.query_head = t.head * group; t.query_head < (t.head + 1) * group; t.query_head++) {
            for (t.token = 0; t.token < sequence->tokens; t.token += QUERIES) {
                t.tokens = ln_min_i64(QUERIES, sequence->tokens - t.token);
                run_tile(&t, &query, &factors);
            }
        }
        store_keys(&t);
    }
}

/* ---- row work ---- */

static float dot(const float *a, const float *b, int64_t n) {
    enum { LANES = 8 };
    float sums[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t j = 0; j < LANES; j++) sums[j] += a[i + j] * b[i + j];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* D and the shift of a piece of a sequence's tokens. */
static void prepare_piece(void *argument, int64_t task, int worker) {
    const gradient_call *call = argument;
    const ln_attention_gradients *shape = call->shape;
    const int64_t index = find_sequence(call, task, offsetof(gradient_first, piece));
    const ln_gradient_sequence *sequence = &call->sequences[index];
    const int64_t token = (task - call->first[index].piece) * PIECE;
    const rows output = rows_of(sequence, &sequence->output), gradient = rows_of(sequence, &sequence->output_gradient);
    (void)worker;
    for (int64_t t = token; t < ln_min_i64(token + PIECE, sequence->tokens); t++) {
        const float *lse = sequence->log_sum_exp + (sequence->order ? sequence->order[t] : t) * shape->heads;
        for (int64_t h = 0; h < shape->heads; h++) {
            const int64_t at = h * call->tokens + call->first[index].token + t;
            call->delta[at] = dot(row_at(&output, t, h), row_at(&gradient, t, h), shape->value_size);
            call->shift[at] = lse[h] == -INFINITY ? INFINITY : lse[h] * log2e;
        }
    }
}

static void sum_sink(void *argument, int64_t head, int worker) {
    const gradient_call *call = argument;
    const ln_attention_gradients *shape = call->shape;
    double sum = 0;
    (void)worker;
    for (int64_t i = 0; i < call->count; i++) {
        const ln_gradient_sequence *sequence = &call->sequences[i];
        const float *delta = call->delta + head * call->tokens + call->first[i].token;
        for (int64_t t = 0; t < sequence->tokens; t++) {
            const float lse = sequence->log_sum_exp[(sequence->order ? sequence->order[t] : t) * shape->heads + head];
            if (lse != -INFINITY) sum -= exp((double)shape->sinks[head] - (double)lse) * (double)delta[t];
        }
    }
    shape->sinks_gradient[head] = (float)sum;
}

/* Adds the other ranges' results to the first one's, for a piece of a sequence's tokens. */
static void merge_piece(void *argument, int64_t task, int worker) {
    const gradient_call *call = argument;
    const ln_attention_gradients *shape = call->shape;
    const int64_t index = find_sequence(call, task, offsetof(gradient_first, piece));
    const ln_gradient_sequence *sequence = &call->sequences[index];
    const int64_t token = (task - call->first[index].piece) * PIECE;
    const rows results[] = {
        rows_of(sequence, &sequence->query_gradient),
        factor_rows(sequence, sequence->query_factors_gradient, shape->heads, shape->rank),
    };
    (void)worker;
    for (int factors = 0; factors < 2; factors++) {
        const int64_t size = factors ? shape->rank : shape->key_size;
        for (int64_t range = 1; results[factors].data && range < ranges_of(call, sequence); range++) {
            const rows from = partial_rows(call, index, range, factors);
            for (int64_t t = token; t < ln_min_i64(token + PIECE, sequence->tokens); t++)
                for (int64_t h = 0; h < shape->heads; h++)
                    call->kernels->vector.add(row_at(&results[factors], t, h), row_at(&from, t, h), size);
        }
    }
}

/* ---- the call ---- */

uint64_t ln_attention_gradient_workspace(int threads, const ln_attention_gradients *shape,
                                         const ln_gradient_sequence *sequences, int64_t count) {
    gradient_call call = {.shape = shape, .sequences = sequences, .count = count};
    return sizeof(float) * lay_call(&call, NULL, threads);
}

void ln_attention_gradient(const ln_kernels *kernels, ln_team *team, const ln_attention_gradients *shape,
                           const ln_gradient_sequence *sequences, int64_t count, void *workspace) {
    gradient_call call = {.kernels = kernels, .shape = shape, .sequences = sequences, .count = count};
    if (count > 0) {
        call.want_query = sequences->query_gradient.data != NULL;
        call.want_key = sequences->key_gradient.data != NULL;
        call.want_value = sequences->value_gradient.data != NULL;
        call.want_query_factors = sequences->query_factors_gradient && shape->rank;
        call.want_key_factors = sequences->key_factors_gradient && shape->rank;
    }
    lay_call(&call, workspace, ln_team_size(team));
    const gradient_first *all = &call.first[count];
    ln_parallel(team, all->piece, prepare_piece, &call);
    if (shape->sinks && shape->sinks_gradient) ln_parallel(team, shape->heads, sum_sink, &call);
    ln_parallel(team, all->task, run_task, &call);
    if (call.want_query || call.want_query_factors) ln_parallel(team, all->piece, merge_piece, &call);
}
