/* Gradients of linear attention on an NVIDIA GPU, of decays of tokens and of keys.
 *
 * With c[i] the sum of the decays' logarithms up to token i, D the gradient of the state behind the last token, and
 * without write:
 *
 *     query'[i] = scale sum_{j<=i} e^(c[i]-c[j]) (output'[i] . value[j]) key[j]       + e^c[i] scale S output'[i],
 *     key'[j]   = scale sum_{i>=j} e^(c[i]-c[j]) (value[j] . output'[i]) query[i]     + e^(c[last]-c[j]) D value[j],
 *     value'[j] = scale sum_{i>=j} e^(c[i]-c[j]) (key[j] . query[i]) output'[i]       + e^(c[last]-c[j]) D^T key[j],
 *
 * which are three walks of linear attention itself, the last two in reversed time. Of the decays
 *
 *     decay'[t] = sum_{i>=t} (query[i] . query'[i] - key[i] . key'[i]) + S[last] . D,
 *
 * of a key's channel the products of that channel alone (2312.06635, appendix C). Sums over a whole text would drown in
 * the roundings of what they cancel; here they run over a segment of 256 tokens, behind which S . D is formed anew from
 * states of both directions. Inside a chunk what cancels is rounded alike in both walks. */
#ifndef LN_KERNEL_CUDA_LINEAR_BACKWARD_H
#define LN_KERNEL_CUDA_LINEAR_BACKWARD_H

#include "kernel/cuda/linear_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_linear_gradient_plan {
    ln_cuda_linear states, query, key, value; /* the walks: states forward, and one for each gradient */
    ln_cuda_linear_plan states_plan, query_plan, key_plan, value_plan;
    /* In the workspace: of the walks, then float32 gradients of each head [tokens][heads][size], then numbers of each
     * token and head. */
    int64_t states_at, query_at, key_at, value_at, tasks_at, query_rows_at, key_rows_at, value_rows_at, along_at,
        skip_at;
    int64_t tasks;     /* segments of all heads */
    int64_t workspace; /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_linear_gradient_plan;

/* major: of the newest kernels to be taken; 0: of the device. The problem's output_float32 is of the gradients of
 * queries, keys and values. Not of decays of values, reversed time or a normaliser. */
ln_cuda_code ln_cuda_linear_gradient_plan_make(const ln_cuda_linear *linear, const ln_cuda_device *device, int major,
                                               ln_cuda_linear_gradient_plan *plan);
/* Fills a workspace; waits for the stream. */
ln_cuda_code ln_cuda_linear_gradient_prepare(const ln_cuda_linear_gradient_plan *plan, void *workspace, void *stream);

typedef struct ln_cuda_linear_gradients {
    ln_cuda_tensor output;  /* given, bf16 */
    const float *state_out; /* given, [sequence][head][key][value]; NULL: zeros */
    ln_cuda_tensor query, key, value;
    ln_cuda_tensor decay;       /* float32 [token, head, key_size], of decays of keys */
    float *token_decay, *write; /* [tokens][heads]; NULL: not wanted. That of a head is their sum over tokens */
    float *skip;                /* [heads]; NULL: not wanted */
    float *state_in;            /* NULL: not wanted */
} ln_cuda_linear_gradients;

/* `tensors` are those of the forward run; their output and state_out are not read. */
ln_cuda_code ln_cuda_linear_backward(const ln_cuda_linear *linear, const ln_cuda_linear_gradient_plan *plan,
                                     const ln_cuda_linear_tensors *tensors, const ln_cuda_linear_gradients *gradients,
                                     void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
