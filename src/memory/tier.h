/* Far pages of all lanes where a step does not read all of them, or not all lie in RAM: for ragged*.c alone.
 *
 * The memory hands its far pages over as soon as they are whole; they never change. The tier knows each page's place,
 * keeps summaries of them (select.h), and with a file holds at most `resident` pages of a lane in RAM: the others, and
 * copies of these, lie in the file (store.h). Least recently used pages leave, which is only forgetting a copy. */
#ifndef LN_MEMORY_TIER_H
#define LN_MEMORY_TIER_H

#include "memory/pool.h"
#include "memory/select.h"
#include "memory/store.h"

typedef struct ln_tier_shape {
    const ln_policy *policy;
    const ln_pool_shape *pool;
    int kind;             /* of the pool: of far pages */
    int64_t lanes, heads; /* heads: lanes of a layer */
    int64_t key_size;
    int64_t capacity; /* pages of a lane at most */
    int64_t resident; /* pages of a lane in RAM at most; with capacity or more there is no file */
    const char *folder;
} ln_tier_shape;

typedef struct ln_far_page {
    ln_page page; /* 0: not in RAM */
    ln_slot slot; /* 0: not in the file */
    uint32_t used;
} ln_far_page;

typedef struct ln_far_lane {
    int64_t pages, tokens;
    int32_t resident, picked, front, age; /* see below */
} ln_far_lane;

typedef struct ln_tier {
    linnet_context *context;
    ln_tier_shape shape; /* policy and pool: of the owner */
    ln_pool *pool;
    bool file;
    int64_t read, dense; /* pages of a lane that a step reads; layers that read all */
    int64_t picks;       /* pages that a selection ranks */
    int64_t reuse;
    int64_t run; /* pages of a lane that are staged at once */
    ln_summary summary;
    uint64_t summary_bytes; /* of a lane */
    uint32_t clock;
    ln_far_lane *lane; /* [lanes] */
    ln_far_page *page; /* [lanes][capacity] */
    uint8_t *count;    /* [lanes][capacity]: tokens */
    int32_t *resident; /* [lanes][resident]: pages in RAM */
    int32_t *pick;     /* [lanes][picks]: the last selection, the best first `front` of them read; front 0: none */
    unsigned char *summaries;
    unsigned char *staging;  /* [2][heads][run][page bytes] */
    ln_fetch *fetch;         /* [2][heads][run or picks] */
    ln_fetch *ahead;         /* [heads][picks] */
    int64_t fetches, aheads; /* fetches: room of a half; aheads: in flight */
    ln_store *store;
} ln_tier;

/* Sizes, without tables. */
void ln_tier_describe(const ln_tier_shape *shape, ln_tier *tier);
/* Bytes that a member allocates; what remains of `resident` is the pool's. */
uint64_t ln_tier_bytes(const ln_tier_shape *shape);
linnet_status ln_tier_open(linnet_context *context, const ln_tier_shape *shape, ln_pool *pool, ln_tier **tier);
void ln_tier_close(ln_tier *tier);
/* Of another member of the pool. */
linnet_status ln_tier_fork(ln_tier *tier, const ln_tier_shape *shape, ln_tier **fork);
/* Keeps the first tokens of a lane. */
void ln_tier_cut(ln_tier *tier, int64_t lane, int64_t tokens);

static inline ln_far_page *ln_far_page_of(const ln_tier *tier, int64_t lane, int64_t page) {
    return &tier->page[lane * tier->shape.capacity + page];
}
static inline bool ln_tier_selects(const ln_tier *tier) {
    return tier->summary.selector != NULL;
}

/* Room in the file for so many new pages. */
linnet_status ln_tier_reserve(ln_tier *tier, int64_t pages);
/* The next page of a lane, whose user the tier becomes: into the tables, and its summary from keys [32][key_size]. */
void ln_tier_add(ln_tier *tier, int64_t lane, ln_page page, const float *keys);
/* Copies new pages of a layer to the file and lets those go that are too many. */
linnet_status ln_tier_flush(ln_tier *tier, int64_t layer);

/* Marks pages of a lane as used and gives those that are not in RAM a place there: adds them to the fetches. false: no
 * place is left. Moves pages. */
bool ln_tier_place(ln_tier *tier, int64_t lane, const int32_t *pages, int64_t count, ln_fetch *fetches, int64_t *n);
/* What could not be read is not in RAM. */
linnet_status ln_tier_arrive(ln_tier *tier, ln_fetch *fetches, int64_t count);
/* Begins to read what was placed. Until it has arrived no page may move. */
void ln_tier_begin(ln_tier *tier, ln_fetch *fetches, int64_t count);
/* Begins to read what the layer will likely want: what its last selection ranked first. Likewise. */
void ln_tier_look_ahead(ln_tier *tier, int64_t layer);
/* Nothing is in flight afterwards. */
void ln_tier_quiet(ln_tier *tier);

#endif
