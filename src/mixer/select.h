/* The inside of approximate attention: a method is a row of a table that says which keys the exact tile loop visits.
 * Most rows only mark tiles; the others (run) compose calls of the loop themselves. */
#ifndef LN_MIXER_SELECT_H
#define LN_MIXER_SELECT_H

#include "linnet/approximate.h"
#include "mixer/attention.h"
#include "mixer/carve.h"
#include "mixer/pack.h"

enum {
    LN_SELECT_SIZE_MOST = 256, /* of a head, and of random features */
    LN_SELECT_STRIDE = LN_ATTEND_STRIDE
};

typedef struct ln_select_row ln_select_row;

struct linnet_approximate_plan {
    linnet_context *context;
    linnet_approximate_settings s;
    ln_kernels kernels;
    const ln_select_row *row;
    ln_page_layout layout; /* of pages of the inputs */
    int64_t group;         /* query heads that share a key */
    int64_t query_tiles, key_tiles;
    uint64_t workspace;
    void *own; /* of the method, made by open */
};

/* Pages of one layout, `tokens` of every key-value head, those of a head one after the other. */
typedef struct ln_paged {
    ln_page_layout layout;
    int64_t tokens;
    unsigned char *pages;
    const unsigned char **slots; /* of head 0, filled when they are packed */
} ln_paged;

typedef struct ln_select_call {
    const linnet_approximate_plan *plan;
    const linnet_approximate_settings *s;
    const ln_kernels *kernels;
    ln_team *team;
    const linnet_approximate_tensors *tensors;
    ln_rows query_rows, key_rows, value_rows, output_rows;
    float *query, *key, *value; /* [head][token][size]: float32, where the row asks for them */
    ln_paged all;               /* tokens in order */
    float *visited;             /* [token][head]: log-sum-exp of the keys visited exactly */
    int64_t *offsets;           /* lists of the block mask */
    int32_t *tiles;
    int64_t list_stride; /* entries of a list at most */
    unsigned char *worker_bytes;
    uint64_t worker_stride;
    void *attention_workspace;
    float *sparse;            /* backward: output of the tile loop, [token][head][value_size] */
    void *gradient_workspace; /* likewise */
    ln_rows output_gradient, query_gradient, key_gradient, value_gradient;
    void *own; /* the method's arrays */
    _Atomic int64_t pairs, scored;
} ln_select_call;

/* What a row's tile function is asked: which of the tiles 0 .. limit - 1 the queries begin .. end - 1 of a head or some
 * visit. marks[j] != 0: visited already for certain. */
typedef struct ln_select_tile {
    int64_t head, heads; /* heads: that choose together, from `head` on */
    int64_t shared;      /* the key-value head */
    int64_t tile, begin, end, limit;
    unsigned char *marks;
    void *scratch;
} ln_select_tile;

enum ln_select_needs {
    LN_SELECT_QUERY = 1, /* float32 copies */
    LN_SELECT_KEY = 2,
    LN_SELECT_VALUE = 4,
    LN_SELECT_SPAN = 8,      /* sinks and recent tiles are marked */
    LN_SELECT_DIAGONAL = 16, /* causal: tiles on the diagonal are marked */
    LN_SELECT_BACKWARD = 32,
    LN_SELECT_GROUPS = 64 /* heads may choose together */
};

struct ln_select_row {
    const char *name, *source;
    unsigned needs;
    /* Each may be NULL. check: the sentence of what is wrong with the settings. */
    const char *(*check)(linnet_approximate_settings *s);
    linnet_status (*open)(linnet_approximate_plan *plan);
    /* Sets call->own, which it carves like the rest. */
    void (*carve)(ln_select_call *call, ln_carver *carver);
    uint64_t (*scratch)(const linnet_approximate_plan *plan); /* bytes of a worker */
    void (*prepare)(ln_select_call *call);
    void (*tile)(ln_select_call *call, const ln_select_tile *tile);
    void (*finish)(ln_select_call *call);
    void (*run)(ln_select_call *call); /* instead of lists */
    /* Adds to the gradients what does not go through the tile loop. */
    void (*backward)(ln_select_call *call);
};

/* NULL for a number that is no method. */
const ln_select_row *ln_select_row_of(linnet_approximation method);

extern const ln_select_row ln_select_blocks, ln_select_hyper, ln_select_hip, ln_select_core, ln_select_ranking,
    ln_select_sea, ln_select_sla, ln_select_pages;

/* ---- tools of the rows ---- */

static inline void *ln_select_scratch(const ln_select_call *call, int worker) {
    return call->worker_bytes + (uint64_t)worker * call->worker_stride;
}
static inline const float *ln_select_query(const ln_select_call *call, int64_t head, int64_t token) {
    return call->query + (head * call->s->tokens + token) * call->s->key_size;
}
static inline const float *ln_select_key(const ln_select_call *call, int64_t head, int64_t token) {
    return call->key + (head * call->s->tokens + token) * call->s->key_size;
}
static inline const float *ln_select_value(const ln_select_call *call, int64_t head, int64_t token) {
    return call->value + (head * call->s->tokens + token) * call->s->value_size;
}
/* c [rows][32] (+)= a [rows][depth] panel [depth][32]; rows of a and c are LN_SELECT_STRIDE apart. */
void ln_select_product(const ln_select_call *call, const float *panel, int64_t depth, const float *a, int64_t rows,
                       float *c, bool add);
/* Column `column` of a panel [n][32]. */
static inline void ln_select_column(float *panel, int64_t column, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) panel[i * LN_PANEL + column] = from[i];
}
/* The k largest of scores[0 .. n - 1], ties to the lower index: their indices in ascending order; returns how many
 * there are, min(k, n). heap: n entries. */
int64_t ln_select_top(const float *scores, int64_t n, int64_t k, int32_t *heap, int32_t *chosen);
/* The tiles that are not marked; returns how many. */
int64_t ln_select_free(const ln_select_tile *tile, int32_t *free_tiles);
/* Rows of every query_stride-th query of the tile's heads, LN_SELECT_STRIDE apart; returns how many. */
int64_t ln_select_sampled_queries(const ln_select_call *call, const ln_select_tile *tile, float *rows);
static inline int64_t ln_select_sampled_most(const linnet_approximate_plan *plan) {
    const int64_t rows = (plan->s.query_tile + plan->s.query_stride - 1) / plan->s.query_stride;
    return rows * (plan->s.group_choice ? plan->group : 1);
}

/* One call of the tile loop: sequences of one mask. */
void ln_select_attend(const ln_select_call *call, const ln_mask *mask, const ln_attention_sequence *sequences,
                      int64_t count);
ln_paged ln_paged_carve(const ln_select_call *call, ln_carver *carver, const ln_page_layout *layout, int64_t tokens);
/* Tokens of the rows, by order where there is one, to the pages from token `at`, a multiple of a page, on. */
void ln_select_pack(const ln_select_call *call, const ln_paged *pages, int64_t at, const ln_rows *key,
                    const ln_rows *value, int64_t tokens, const int32_t *order, int64_t order_stride);
/* `tokens` tokens from token `at` on, again a multiple of a page. */
ln_page_view ln_select_view(const ln_select_call *call, const ln_paged *pages, int64_t at, int64_t tokens);
/* Merges a result into another over disjoint keys, both with their log-sum-exp. */
void ln_select_merge(float *output, float *lse, const float *other, float other_lse, int64_t n);

#endif
