/* The inside of a memory under a policy, for ragged*.c alone. */
#ifndef LN_MEMORY_RAGGED_INSIDE_H
#define LN_MEMORY_RAGGED_INSIDE_H

#include "base/checked.h"
#include "memory/allocate.h"
#include "memory/ragged.h"
#include "memory/score.h"
#include "memory/tier.h"

/* Kinds of pages, as the pool numbers them. */
enum { LN_NEAR, LN_FAR, LN_LOW, LN_LANE_KINDS };

enum { LN_HEADS_MOST = 256 /* key-value heads of a layer, for what looks at all of them together */ };

typedef struct ln_lane {
    int64_t begin, room;          /* entries of the tables */
    int64_t pages[LN_LANE_KINDS]; /* far, low, near ones from `begin` */
    int64_t tokens[LN_LANE_KINDS];
    int64_t given_up;
    uint64_t version; /* of the pool when slots were filled */
} ln_lane;

struct ln_ragged {
    linnet_context *context;
    ln_ragged_shape shape;
    ln_policy policy;
    ln_pool *pool;
    int64_t position, appended; /* appended: tokens since the last commit, of the layers that got them */
    ln_pass pass;
    bool settled;               /* since the last commit something was moved or given up */
    int64_t limit;              /* see ln_ragged_rewind_limit */
    int64_t lanes, entries;     /* entries: of the tables */
    uint64_t allowance;         /* bytes of far pages, of all lanes */
    uint64_t far_used;          /* bytes of far pages now */
    double *share;              /* [layers] of the allowance, sum 1 */
    ln_statistics *statistics;  /* [layers] */
    double *distance;           /* [lanes] */
    uint8_t *heads;             /* [lanes], LN_HEAD_...; NULL: unknown */
    ln_lane *lane;              /* [layers * key_value_heads] */
    ln_page *page;              /* [entries] */
    const unsigned char **slot; /* [entries] */
    uint8_t *kind, *count;      /* [entries] */
    unsigned char *state;       /* [lanes][state_bytes] of the scorer */
    uint64_t state_bytes;
    int32_t *order; /* [lanes][key_size] of key channels; zeros: as they are. NULL: the policy has none */
    ln_tier *tier;  /* of far pages that are chosen or in a file; NULL: lanes have them */
};

static inline ln_lane *ln_lane_of(const ln_ragged *ragged, int64_t layer, int64_t head) {
    return &ragged->lane[layer * ragged->shape.key_value_heads + head];
}
static inline int64_t ln_lane_pages(const ln_lane *lane) {
    return lane->pages[LN_FAR] + lane->pages[LN_LOW] + lane->pages[LN_NEAR];
}
/* The first entry of a kind. */
static inline int64_t ln_lane_first(const ln_lane *lane, int kind) {
    if (kind == LN_FAR) return lane->begin;
    return lane->begin + lane->pages[LN_FAR] + (kind == LN_NEAR ? lane->pages[LN_LOW] : 0);
}
/* The end of the keys, as attention counts them. */
static inline int64_t ln_lane_keys(const ln_ragged *ragged, const ln_lane *lane) {
    const int64_t pages = ln_lane_pages(lane);
    return pages ? (pages - 1) * LN_PAGE_TOKENS + ragged->count[lane->begin + pages - 1] : 0;
}
/* Pages at the front of the near ones that never leave. */
static inline int64_t ln_sink_pages(const ln_policy *policy) {
    return ln_ceil_div(policy->sinks, LN_PAGE_TOKENS);
}

/* The order of a lane's key channels: row[i] was order[i]. NULL: none yet, or never. */
static inline const int32_t *ln_lane_order(const ln_ragged *ragged, int64_t number) {
    const int32_t *order = ragged->order ? ragged->order + number * ragged->shape.key_size : NULL;
    return order && (order[0] || order[1]) ? order : NULL;
}

/* What is added to scores of the lane's keys: log n where one stands for n tokens. [32 pages]; with a merger only. A
 * negative weight is that of a summary, which is never given up. */
void ln_ragged_bias(const ln_ragged *ragged, const ln_lane *lane, float *bias);
/* Pages of all lanes of a layer while they are settled, at most. */
int64_t ln_ragged_layer_pages(const ln_ragged_shape *shape, const ln_pool_shape *pool);
/* What attention reads; valid until pages move. */
ln_page_view ln_ragged_view(ln_ragged *ragged, ln_lane *lane);
/* Room for so many more pages in each lane of a layer. */
void ln_ragged_make_room(ln_ragged *ragged, int64_t layer, int64_t more);

/* Keeps the first near tokens of a lane. */
void ln_ragged_keep_near(ln_ragged *ragged, ln_lane *lane, int64_t tokens);

/* false: impossible sizes. bytes: the pool's part of the shape's bytes. */
bool ln_ragged_pool_shape(const ln_ragged_shape *shape, ln_pool_shape *pool);

/* ---- far pages that are chosen or in a file (ragged_tier.c) ---- */

/* Whether the policy has such; its tier, next to such a pool. */
bool ln_ragged_tier_shape(const ln_ragged_shape *shape, const ln_pool_shape *pool, ln_tier_shape *tier);
/* Beside that of attention. */
uint64_t ln_ragged_tier_workspace(const ln_ragged_shape *shape, const ln_tier_shape *tier_shape, int threads);
/* As ln_attention_run of the sequences, of which views, keys and positions are still unknown. */
linnet_status ln_ragged_tier_attend(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call,
                                    const ln_attention *attention, ln_attention_sequence *sequences, void *workspace);
/* The tier takes the far pages of a layer's lanes. */
linnet_status ln_ragged_tier_take(ln_ragged *ragged, ln_team *team, int64_t layer);
/* Forgets what was appended since the last commit. */
void ln_ragged_undo(ln_ragged *ragged);

/* ---- orders of key channels (ragged_order.c) ---- */

enum { LN_ORDER_QUERIES = 32 /* that an order is chosen by, where a scorer asks for none */ };

uint64_t ln_ragged_order_bytes(const ln_ragged_shape *shape);
/* Queries that the layer's orders want now. */
int64_t ln_ragged_order_observes(const ln_ragged *ragged, int64_t layer, int64_t tokens);
void ln_ragged_order_row(const int32_t *order, int64_t size, float *row);
void ln_ragged_order_queries(const ln_ragged *ragged, int64_t layer, const ln_ragged_call *call);

/* ---- settling (ragged_settle.c) ---- */

typedef struct ln_settling {
    int64_t layer, tokens; /* of the piece */
    const ln_ragged_call *call;
    int64_t observed;         /* queries that the scorer wants */
    const float *query;       /* [observed][heads][key_size] */
    const float *log_sum_exp; /* [key-value heads][tokens][group] */
    void *workspace;
} ln_settling;

/* A page that only this memory has, in the place of a shared one, which goes to `dropped`. false: none was left. */
bool ln_ragged_own(ln_ragged *ragged, ln_page *page, ln_page *dropped, int64_t *drops);
/* Chooses the order of a lane that has none, and puts its near keys into it. key: key_size floats. false: as above. */
bool ln_ragged_order_lane(ln_ragged *ragged, const ln_settling *settling, int64_t head, float *key, ln_page *dropped,
                          int64_t *drops);

/* Whether the layer will be settled after a piece, and how many queries that needs. */
bool ln_ragged_settles(const ln_ragged *ragged, int64_t layer, int64_t tokens, int64_t *observed);
linnet_status ln_ragged_settle(ln_ragged *ragged, const ln_settling *settling);
uint64_t ln_ragged_settle_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape,
                                    const ln_pool_shape *pool);

#endif
