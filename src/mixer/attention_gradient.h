/* The backward pass of exact softmax attention (linnet/attention.h): with S the scores after cap and bias, s before,
 *     P = exp(S - lse),  D[i] = dO[i] . O[i],  dV[j] = sum_i P[i][j] dO[i],
 *     dS = P (dO V^T - D),  ds = dS (1 - (cap(s) / soft_cap)^2),
 *     dQ[i] = scale sum_j ds[i][j] K[j],  dK[j] = scale sum_i ds[i][j] Q[i],
 *     of factors f . g in the bias: df[i] = sum_j dS[i][j] g[j],  dg[j] = sum_i dS[i][j] f[i],
 *     of a sink: - sum_i exp(sink - lse[i]) D[i].
 * A key-value head's gradients are the sums over its query heads. */
#ifndef LN_MIXER_ATTENTION_GRADIENT_H
#define LN_MIXER_ATTENTION_GRADIENT_H

#include "base/threads.h"
#include "kernel/kernel.h"
#include "mixer/mask.h"

/* What the sequences of a call share. */
typedef struct ln_attention_gradients {
    int64_t heads, key_value_heads; /* heads is a multiple; a key-value head serves consecutive heads */
    int64_t key_size, value_size;   /* multiples of 8, 8 to 576 */
    int64_t rank;                   /* of factors in the bias; 0: none */
    linnet_type type;               /* of query, key and value: F32 or BF16 */
    float scale, soft_cap;          /* soft_cap 0: none */
    ln_mask mask;
    const float *sinks;    /* [heads]; NULL: none */
    float *sinks_gradient; /* [heads]; NULL: not wanted */
} ln_attention_gradients;

/* Strides of tensors are never 0 here. */
typedef struct ln_gradient_sequence {
    int64_t tokens, keys, position; /* position: of the first query, counted in keys */
    linnet_tensor query, key, value;
    linnet_tensor output, output_gradient; /* float32 */
    const float *log_sum_exp;              /* [tokens, heads], natural */
    const int64_t *order; /* row of all tensors that is the i-th token; NULL: i. Else queries are the keys' tokens */
    ln_bias bias;
    int64_t key_begin; /* overrides the mask's */
    /* float32, overwritten; data NULL: not wanted, for all sequences of a call or none. */
    linnet_tensor query_gradient, key_gradient, value_gradient;
    float *query_factors_gradient, *key_factors_gradient; /* [tokens, heads, rank], [keys, key_value_heads, rank] */
} ln_gradient_sequence;

/* Bytes of workspace. Of the sequences, tokens and keys alone are read. */
uint64_t ln_attention_gradient_workspace(int threads, const ln_attention_gradients *shape,
                                         const ln_gradient_sequence *sequences, int64_t count);

/* workspace: aligned to 64 bytes. The same bits for any number of threads. A query that sees no key (log_sum_exp -inf)
 * gives and receives nothing. What is not finite stays in its head. */
void ln_attention_gradient(const ln_kernels *kernels, ln_team *team, const ln_attention_gradients *shape,
                           const ln_gradient_sequence *sequences, int64_t count, void *workspace);

#endif
