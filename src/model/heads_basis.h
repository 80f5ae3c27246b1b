/* What takes the place of several key-value heads: one head, and how to read the several from it.
 *
 * For g heads that become one: keys u = encode [k_1 .. k_g], k_a ~ decode_a u, the same for values. decode_a of keys
 * commutes with the rotation of positions, so that q . R k_a ~ (decode_a' q) . R u: queries are decoded, not keys. */
#ifndef LN_MODEL_HEADS_BASIS_H
#define LN_MODEL_HEADS_BASIS_H

#include "base/context.h"

/* One layer seen on a text. Heads of [tokens, heads * size] lie as the model's projections give them, with biases and
 * norms, before the rotation. */
typedef struct ln_head_samples {
    int64_t heads, key_value_heads, key_size, value_size, width, tokens;
    int64_t rotated;         /* values of a key that rotate: the first */
    bool half;               /* pairs (i, i + rotated / 2), else (2i, 2i + 1) */
    const double *frequency; /* [rotated / 2]: radians a position, descending */
    double distance;         /* how far apart positions are that must be right */
    const float *query, *key, *value;
    const float *output; /* [width, heads * value_size]: the matrix behind attention */
} ln_head_samples;

typedef struct ln_head_bases {
    int64_t groups, members;
    int64_t *order;                    /* [key_value_heads]: the heads of the first group, the second, ... */
    double *key_encode, *value_encode; /* [groups][size][members * size] */
    double *key_decode, *value_decode; /* [key_value_heads, in order][size][size] */
    int64_t loose;                     /* rotary pairs that mix as if they did not rotate */
    double key_kept, value_kept;       /* share of the weighted energy */
} ln_head_bases;

/* Room for the bases of `groups` heads; everything is allocated here, also for the means. */
linnet_status ln_head_bases_open(linnet_context *context, const ln_head_samples *samples, int64_t groups,
                                 ln_head_bases *bases);
void ln_head_bases_close(linnet_context *context, ln_head_bases *bases);
/* Neighbours become their mean (GQA, Ainslie et al. 2023): needs no samples. */
void ln_head_bases_mean(const ln_head_samples *samples, ln_head_bases *bases);
/* Similar heads become their principal components. */
linnet_status ln_head_bases_fit(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases);

/* The two values of rotary pair `pair`. */
static inline void ln_head_pair(const ln_head_samples *samples, int64_t pair, int64_t *x, int64_t *y) {
    *x = samples->half ? pair : 2 * pair;
    *y = samples->half ? pair + samples->rotated / 2 : 2 * pair + 1;
}

#endif
