/* The inside of attention's backward pass, for attention_gradient.c, its tiles (attention_gradient_tile.c) and its ways
 * of computing one (attention_gradient_f32.c). */
#ifndef LN_MIXER_ATTENTION_GRADIENT_INSIDE_H
#define LN_MIXER_ATTENTION_GRADIENT_INSIDE_H

#include <string.h>

#include "mixer/attention_gradient.h"
#include "mixer/attention_inside.h"

enum {
    LN_GRADIENT_TILE = LN_ATTEND_BLOCK, /* queries, and keys, of a tile */
    LN_GRADIENT_PASS = 512,             /* keys in scratch at once */
    LN_GRADIENT_AHEAD = 8,
    LN_SQUARE = LN_PANEL, /* a tile that is seen in part is cut into squares */
    LN_TILE_SQUARES = LN_GRADIENT_TILE / LN_SQUARE,
    LN_RECTANGLES = LN_TILE_SQUARES * LN_TILE_SQUARES,
};

/* ---- matrices in scratch ---- */

/* [size / LN_DEPTH, rounded up][rows][LN_ATTEND_STRIDE]: A and C of products. */
typedef struct ln_slab {
    float *data;
    int64_t rows, size;
} ln_slab;

/* [panel of 32 columns][rows][columns]: B of products. The size is a multiple of 8. */
typedef struct ln_panels {
    float *data;
    int64_t rows, size;
} ln_panels;

static inline float *ln_slab_at(const ln_slab *s, int64_t row, int64_t column) {
    return s->data + (column / LN_DEPTH * s->rows + row) * LN_ATTEND_STRIDE + column % LN_DEPTH;
}
static inline int64_t ln_panel_columns(const ln_panels *p, int64_t column) {
    return ln_min_i64(LN_PANEL, p->size - column);
}
static inline float *ln_panel_at(const ln_panels *p, int64_t row, int64_t column) {
    return p->data + column * p->rows + row * ln_panel_columns(p, column);
}

/* `count` floats from base + *at on, aligned to 64 bytes; NULL where base is. */
static inline float *ln_take(float *base, uint64_t *at, int64_t count) {
    float *here = base ? base + *at : NULL;
    *at += ln_round_up((uint64_t)count, 16);
    return here;
}
static inline ln_slab ln_take_slab(float *base, uint64_t *at, int64_t rows, int64_t size) {
    return (ln_slab){ln_take(base, at, ln_depth_panels(size) * rows * LN_ATTEND_STRIDE), rows, size};
}
static inline ln_panels ln_take_panels(float *base, uint64_t *at, int64_t rows, int64_t size) {
    return (ln_panels){ln_take(base, at, rows * size), rows, size};
}

static inline void ln_slab_clear(const ln_slab *s, int64_t rows) {
    for (int64_t c = 0; c < s->size; c += LN_DEPTH)
        for (int64_t r = 0; r < rows; r++)
            memset(ln_slab_at(s, r, c), 0, (size_t)ln_min_i64(LN_DEPTH, s->size - c) * sizeof(float));
}

/* ---- a call, a task ---- */

typedef struct ln_gradient_call ln_gradient_call;
typedef struct ln_gradient_task ln_gradient_task;

/* Part of a tile: keys counted from the tile's first, pages of 32 queries. masked: not all of it is seen. */
typedef struct ln_rectangle {
    int64_t key, keys, page, pages;
    bool masked;
} ln_rectangle;

/* A way of computing a tile. */
typedef struct ln_gradient_way {
    const char *name;
    uint64_t (*scratch)(const ln_gradient_call *call); /* floats of the way's own */
    void (*load_keys)(const ln_gradient_task *task);
    void (*load_queries)(const ln_gradient_task *task);
    /* A rectangle of the tile whose keys begin at row `row` of those in scratch: from what was loaded, bits, bias,
     * shift and delta come P and dS, which are added up in key_sum, value_sum and query_sum as far as they are wanted;
     * `uncapped` takes dS where factors want it. */
    void (*step)(const ln_gradient_task *task, int64_t row, const ln_rectangle *rectangle);
    void (*store_queries)(const ln_gradient_task *task); /* completes query_sum; NULL: it is */
} ln_gradient_way;

extern const ln_gradient_way ln_gradient_f32, ln_gradient_bf16;

/* A worker's scratch. */
typedef struct ln_gradient_scratch {
    ln_slab key_sum, value_sum, key_factor_sum; /* rows: LN_GRADIENT_PASS */
    ln_slab query_sum, query_factor_sum;        /* rows: LN_GRADIENT_TILE */
    ln_slab key_factors;                        /* rows: LN_GRADIENT_PASS */
    ln_panels key_factor_panels, query_factors;
    float *query_factor_pages;         /* [page][rank][LN_SQUARE], times log2(e) */
    float *bias, *uncapped, *turned;   /* [LN_GRADIENT_TILE][LN_ATTEND_STRIDE]: by key, by key, by query */
    float *shift, *delta;              /* [LN_GRADIENT_TILE]: log_sum_exp in base 2, inf instead of -inf; D */
    uint32_t (*bits)[LN_TILE_SQUARES]; /* [LN_GRADIENT_TILE]: of a key, the queries that see it */
    float *row;                        /* of a tensor, as floats */
    float *own;                        /* the way's */
} ln_gradient_scratch;

/* What lies before a sequence: tokens of queries, tasks, pieces of row work, floats of partial results. */
typedef struct ln_gradient_first {
    int64_t token, task, piece, partial;
} ln_gradient_first;

struct ln_gradient_call {
    const ln_kernels *kernels;
    const ln_attention *attention;
    const ln_gradient_way *way;
    const ln_gradient_sequence *sequences;
    float *sinks_gradient;
    int64_t count, tokens; /* of sequences, of their queries */
    int64_t group, rank, padded_rank, range_keys;
    ln_gradient_first *first; /* [count + 1] */
    float *delta, *shift;     /* [heads][tokens] */
    float *partial;           /* [sequence][range - 1][heads][tokens][key_size + rank] */
    float *scratch;
    uint64_t worker_floats;
    bool want_query, want_key, want_value, want_query_factors, want_key_factors;
};

static inline bool ln_gradient_factors(const ln_gradient_call *call) {
    return call->want_query_factors || call->want_key_factors;
}
/* Whether gradients of scores are needed. */
static inline bool ln_gradient_scores(const ln_gradient_call *call) {
    return call->want_query || call->want_key || ln_gradient_factors(call);
}

struct ln_gradient_task {
    const ln_gradient_call *call;
    const ln_gradient_sequence *sequence;
    ln_mask mask;
    ln_gradient_scratch s;
    int64_t head, key, keys;           /* key-value head; keys in scratch */
    int64_t query_head, token, tokens; /* of the tile, `token` counted in the sequence */
};

static inline int64_t ln_tile_pages(const ln_gradient_task *t) {
    return ln_ceil_div(t->tokens, LN_SQUARE);
}

/* Rows of a result: a tensor, or a partial one. */
typedef struct ln_rows {
    float *data;
    int64_t token_stride, head_stride;
    const int64_t *order;
} ln_rows;

static inline float *ln_row_at(const ln_rows *r, int64_t token, int64_t head) {
    return r->data + (r->order ? r->order[token] : token) * r->token_stride + head * r->head_stride;
}
static inline ln_rows ln_factor_rows(const ln_gradient_sequence *sequence, const float *data, int64_t heads,
                                     int64_t rank) {
    return (ln_rows){(float *)(uintptr_t)data, heads * rank, rank, sequence->order};
}

/* ---- tiles ---- */

/* A row of a tensor, as floats: from the tensor, or in scratch. */
const float *ln_gradient_row(const ln_gradient_task *task, const linnet_tensor *tensor, linnet_type type, int64_t token,
                             int64_t head, int64_t size);
/* Fetches a row that will be read LN_GRADIENT_AHEAD rows later; nothing where token >= end. Rows of one head mostly lie
 * in pages of memory of their own, where the processor does not look ahead. */
void ln_gradient_fetch(const ln_gradient_task *task, const linnet_tensor *tensor, linnet_type type, int64_t token,
                       int64_t end, int64_t head, int64_t size);
void ln_slab_put(const ln_slab *slab, int64_t row, const float *from);
/* from: at least size floats; NULL: zeros. */
void ln_panels_put(const ln_panels *panels, int64_t row, const float *from);
/* pages [page][size][LN_SQUARE] of the tile's queries: panels turned. */
void ln_turn_pages(const ln_gradient_task *task, const ln_panels *from, float *pages);
/* c [count][LN_SQUARE] (+)= rows `row` and up of A times a page. */
void ln_multiply_page(const ln_gradient_task *task, const ln_slab *a, int64_t row, int64_t count, const float *page,
                      float *c, bool add);
/* Rows `row` and up of C += A [count][depth] times rows `from` and up of B. */
void ln_multiply_panels(const ln_gradient_task *task, const float *a, int64_t count, const ln_panels *b, int64_t from,
                        int64_t depth, const ln_slab *c, int64_t row);
/* The same for queries of the rectangle, A [keys][..] turned. */
void ln_multiply_turned(const ln_gradient_task *task, const float *a, const ln_rectangle *rectangle, const ln_panels *b,
                        int64_t from, const ln_slab *c);
/* The kernels' view of the rectangle: its scores (but for their factor) and dP; gradient NULL: not wanted. */
ln_attend_gradient_tile ln_gradient_view(const ln_gradient_task *task, const ln_rectangle *rectangle, float *weights,
                                         float *gradient);

/* Factors of the task's keys. */
void ln_gradient_load_keys(const ln_gradient_task *task);
/* The tile's queries against all keys in scratch: sums over these keys in query_sum and query_factor_sum. false: they
 * see none. */
bool ln_gradient_tile(const ln_gradient_task *task);

#endif
