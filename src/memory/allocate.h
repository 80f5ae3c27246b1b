/* Allocators: how a budget is divided over layers, and that of a layer over its heads. What is divided is what is left
 * when sinks and recent tokens, which all heads keep, are paid for.
 *
 * Layers get shares, which sum to 1, none more than holds the whole text; heads get whole tokens, whose sum is exactly
 * what the layer has to give, whatever the rule says: each head at least `least` of them and never more than it
 * holds. */
#ifndef LN_MEMORY_ALLOCATE_H
#define LN_MEMORY_ALLOCATE_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/policy.h"

enum { LN_STATISTICS_MASS = 64 };

/* Of one layer, over the text so far. */
typedef struct ln_statistics {
    int64_t cosines, masses;         /* tokens and pieces that the next two are means over; 0: unknown */
    double cosine;                   /* of the residual stream before and after attention */
    double mass[LN_STATISTICS_MASS]; /* share of attention that the top (i + 1) / 64 of the tokens hold; or, of an
                                        allocator that reads `scores`, of tokens that scored 2^(-i / 4) or more when
                                        they left the recent ones, over `masses` tokens */
    const double *distance;          /* [key-value heads]: of its output from the mean of all heads; NULL: unknown */
} ln_statistics;

/* Which heads need the whole text, found once for a model. */
enum { LN_HEAD_STREAMING, LN_HEAD_FULL };

typedef struct ln_layer_shares {
    const ln_policy *policy;
    int64_t layers, heads;           /* key-value heads of each */
    const ln_statistics *statistics; /* [layers]; NULL: nothing is known */
    const uint8_t *kinds;            /* [layers][heads], LN_HEAD_...; NULL: unknown */
    double kept;                     /* tokens that may be kept, of those of the text, 0 .. 1, mean over layers */
} ln_layer_shares;

typedef struct ln_head_tokens {
    const ln_policy *policy;
    int64_t heads;
    int64_t tokens;                  /* to divide: the result's sum, or of `held` where that is less */
    int64_t least;                   /* for each head, where tokens >= heads * least */
    const int64_t *held;             /* [heads]: tokens that may be kept or evicted */
    const float *const *scores;      /* [heads][held]: of these */
    const ln_statistics *statistics; /* of the layer; NULL: nothing is known */
    const uint8_t *kinds;            /* [heads], of the layer; NULL: unknown */
} ln_head_tokens;

struct ln_allocator {
    const char *name, *source, *rule;
    const char *defaults;                                                  /* as of a scorer */
    bool cosine, mass, scores, distance;                                   /* statistics that it reads */
    bool kinds;                                                            /* it needs the table of heads */
    void (*layers)(const ln_layer_shares *layers, double *share);          /* [layers]; NULL: even */
    void (*heads)(const ln_head_tokens *heads, int64_t *tokens_of_a_head); /* [heads]; NULL: even */
};

const ln_allocator *ln_allocator_of(const char *name);
const ln_allocator *ln_allocator_at(int index);

/* With allocator NULL, or no rule of its own: even. */
void ln_allocate_layers(const ln_allocator *allocator, const ln_layer_shares *layers, double *share);
void ln_allocate_heads(const ln_allocator *allocator, const ln_head_tokens *heads, int64_t *tokens_of_a_head);

/* tokens_of[i] in proportion to share[i] (none negative), within least .. held[i], the sum exact as above; the largest
 * remainders are rounded up. held NULL: no bound. */
void ln_allocate_round(const double *share, int64_t n, int64_t tokens, int64_t least, const int64_t *held,
                       int64_t *tokens_of);

/* ---- statistics ---- */

/* Running mean of the cosine of rows before and after (residual stream), `tokens` rows of n. */
void ln_statistics_cosine(ln_statistics *statistics, const float *before, const float *after, int64_t tokens,
                          int64_t n);
/* The curve of one lane's weights (none negative), count of them; workspace: 2 count floats. Mean over the calls. */
void ln_statistics_mass(ln_statistics *statistics, const float *weights, int64_t count, float *workspace);
/* The scores of tokens of one lane. */
void ln_statistics_scores(ln_statistics *statistics, const float *scores, int64_t count);
/* distance[key-value head] = mean over tokens and its group of |o_h - mean over heads of o|. output: [tokens][heads]
 * [value_size], strides in floats. */
void ln_statistics_distance(const float *output, int64_t tokens, int64_t stride, int64_t head_stride, int64_t heads,
                            int64_t group, int64_t value_size, double *distance);

#endif
