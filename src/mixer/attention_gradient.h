/* The backward pass of exact softmax attention (linnet/attention.h): with S the scores after cap and bias, s before,
 *     P = exp(S - lse),  D[i] = dO[i] . O[i],  dV[j] = sum_i P[i][j] dO[i],
 *     dS = P (dO V^T - D),  ds = dS (1 - (cap(s) / soft_cap)^2),
 *     dQ[i] = scale sum_j ds[i][j] K[j],  dK[j] = scale sum_i ds[i][j] Q[i],
 *     of factors f . g in the bias: df[i] = sum_j dS[i][j] g[j],  dg[j] = sum_i dS[i][j] f[i],
 *     of a sink: - sum_i exp(sink - lse[i]) D[i].
 * A key-value head's gradients are the sums over its query heads. */
#ifndef LN_MIXER_ATTENTION_GRADIENT_H
#define LN_MIXER_ATTENTION_GRADIENT_H

#include "mixer/attention.h"

/* Strides of tensors are never 0 here. */
typedef struct ln_gradient_sequence {
    int64_t tokens, keys, position; /* position: of the first query, counted in keys */
    linnet_type type;               /* of query, key and value: F32 or BF16 */
    linnet_tensor query, key, value;
    linnet_tensor output, output_gradient; /* float32 */
    const float *log_sum_exp;              /* [tokens, heads], natural */
    const int64_t *order; /* row of all tensors that is the i-th token; NULL: i. Else queries are the keys' tokens */
    ln_bias bias;         /* the same rank in all sequences; factor_stride 0 */
    int64_t key_begin;    /* overrides the mask's, and position its query_begin */
    /* float32, overwritten; data NULL: not wanted, for all sequences of a call or none. */
    linnet_tensor query_gradient, key_gradient, value_gradient;
    float *query_factors_gradient, *key_factors_gradient; /* [tokens, heads, rank], [keys, key_value_heads, rank] */
} ln_gradient_sequence;

/* The name of the kernel that does the products for tensors of this type. */
const char *ln_attention_gradient_kernel(const ln_kernels *kernels, const ln_attention *attention, linnet_type type);

/* Bytes of workspace. Of the sequences, type, tokens, keys and the bias's rank are read. */
uint64_t ln_attention_gradient_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention,
                                         const ln_gradient_sequence *sequences, int64_t count);

/* sinks_gradient [heads]; NULL: not wanted. workspace: aligned to 64 bytes. The same bits for any number of threads. A
 * query that sees no key (log_sum_exp -inf) gives and receives nothing. What is not finite stays in its head. */
void ln_attention_gradient(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                           const ln_gradient_sequence *sequences, int64_t count, float *sinks_gradient,
                           void *workspace);

#endif
