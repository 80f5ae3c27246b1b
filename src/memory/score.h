/* Scorers: what each token of a lane is worth keeping, a number a token, higher for what to keep.
 *
 * A LANE is one key-value head of one layer. Its pages of 32 tokens come in any order and need not be full; key INDEX =
 * 32 * page + place. Tokens of the last piece come last, one after the other. After a piece was attended, the policy
 * asks the scorer for all tokens of the lane, and evicts by what it says. What a scorer learned of a token from queries
 * that are gone it keeps in scene->kept, which moves with the token; what it knows of the lane, in scene->state.
 *
 * No scorer allocates, or takes more than O(keys) memory or O(observed * keys * size) time. Scores are never NaN. They
 * depend on a token, its position and the queries alone, not on the place of the token in the pages. */
#ifndef LN_MEMORY_SCORE_H
#define LN_MEMORY_SCORE_H

#include "kernel/kernel.h"
#include "memory/policy.h"

/* How queries and keys were rotated: pair i by position * inverse[i], then scaled by magnitude. */
typedef struct ln_scene_rotation {
    int64_t size; /* values of a head that rotate */
    bool half;    /* pairs are (i, i + size / 2), else (2 i, 2 i + 1) */
    double magnitude;
    const double *inverse; /* [size / 2] */
} ln_scene_rotation;

typedef struct ln_scene {
    const ln_kernels *kernels;
    const ln_policy *policy;
    const ln_page_view *view; /* all keys, the piece's last */
    int64_t view_head;        /* the lane's head in the view */
    const uint8_t *counts;    /* [pages]: tokens in each; NULL: all are full */
    int64_t pages;
    const int32_t *positions; /* [32 pages]: of each token in the text */
    const float *key_bias;    /* [32 pages]: added to a key's scores (log n where it stands for n tokens); NULL: none */
    float *kept;              /* [32 pages][scorer->keeps]; zeros for tokens that are new */
    int64_t position;         /* tokens of the text so far, with the piece */
    int64_t piece;            /* tokens of the piece */
    int64_t layer, head;
    int64_t group, key_size, value_size;
    float scale, soft_cap;             /* of attention's scores; soft_cap 0: none */
    const ln_scene_rotation *rotation; /* NULL: none */
    int64_t observed;                  /* queries: those of the piece's last `observed` tokens, 0 too */
    const float *query;                /* [observed][group][key_size], rotated */
    int64_t query_stride, query_head_stride;
    const float *log_sum_exp; /* [observed][group], natural */
    int64_t log_sum_exp_stride;
    const float *columns; /* [32 pages]: what `observed` queries gave to each key, summed or the most of it, where keys
                             and queries are elsewhere; NULL: that is found out here */
    const float *gate;    /* [piece]: what the model's own gate says of the piece's tokens; NULL: it has none */
    int64_t gate_stride;
    void *state;     /* scorer->state bytes, zeros at first; kept; 8-aligned */
    void *workspace; /* scorer->workspace bytes, 64-aligned */
} ln_scene;

/* What a scorer looks at beside positions. */
enum {
    LN_READS_KEYS = 1,
    LN_READS_VALUES = 2,
    LN_READS_SUMS = 4,  /* of what all `observed` queries gave: scene->columns */
    LN_READS_MOST = 8,  /* and the most that any gave */
    LN_READS_EACH = 16, /* each of these queries, with keys and values */
    LN_READS_GATE = 32  /* the model's gate */
};

struct ln_scorer {
    const char *name, *source; /* "snapkv", "P205" */
    const char *rule;          /* one line for people */
    const char *defaults;      /* as published, in the text form of a policy: "window=64,pooling=5,recent=64" */
    int keeps;                 /* floats in scene->kept of each token; 0: none */
    int reads;                 /* LN_READS_...: keys and values when scores are asked for, the others each time */
    bool gate;                 /* it reads what the model's own gate says */
    bool turns;                /* it turns queries back by their rotation, so channels must lie as they were */
    bool shared;               /* the lanes of a layer take the mean of their scores: ln_score_share */
    /* How many of a piece's last queries it wants; NULL: none. */
    int64_t (*observes)(const ln_policy *policy, int64_t piece);
    /* Bytes for a lane; NULL: none. Of the shape, group, sizes, and, as the most there will be, pages, piece and
     * observed are read. */
    uint64_t (*state)(const ln_policy *policy, const ln_scene *shape);
    uint64_t (*workspace)(const ln_policy *policy, const ln_scene *shape);
    /* To be called once a piece. score: [32 pages]; those of absent tokens mean nothing. NULL: nothing is to be given
     * up yet, what the piece tells is to be kept for later, which mostly takes less time. */
    void (*score)(ln_scene *scene, float *score);
};

/* NULL where there is none of that name, or past the end. */
const ln_scorer *ln_scorer_of(const char *name);
const ln_scorer *ln_scorer_at(int index);

/* scores[lane][i] = mean over lanes, i < count: for lanes that hold the same tokens at the same indices. */
void ln_score_share(float *const *scores, int64_t lanes, int64_t count);

#endif
