/* Gradients of linear attention on an NVIDIA GPU.
 *
 * With c[i] the sum of the decays' logarithms up to token i, D the gradient of the state behind the last token, and
 * without write:
 *
 *     query'[i] = scale sum_{j<=i} e^(c[i]-c[j]) (output'[i] . value[j]) key[j]       + e^c[i] scale S output'[i],
 *     key'[j]   = scale sum_{i>=j} e^(c[i]-c[j]) (value[j] . output'[i]) query[i]     + e^(c[last]-c[j]) D value[j],
 *     value'[j] = scale sum_{i>=j} e^(c[i]-c[j]) (key[j] . query[i]) output'[i]       + e^(c[last]-c[j]) D^T key[j],
 *
 * which are three walks of linear attention itself, the last two in reversed time. A write is taken into the values
 * first, so that all walks round the same weights. Of the decays
 *
 *     decay'[t] = sum_{i>=t} (query[i] . query'[i] - key[i] . key'[i]) + S[last] . D,
 *
 * of a key's channel the products of that channel alone (2312.06635, appendix C), of a value's likewise those of output
 * . output' - value . value'. Sums over a whole text would drown in
 * the roundings of what they cancel; here they run over a segment of 256 tokens, behind which S . D is formed anew from
 * states of both directions. Inside a chunk what cancels is rounded alike in both walks.
 *
 * With a normaliser output = sums / weight (linear_cuda.h), the walks take output' / weight, and
 *
 *     dot' = -sign(dot) (output' . output) / weight  where weight follows |dot|,
 *
 * goes on to query' += scale dot' n and to key' by a scan of vectors in reversed time.
 *
 * Of mLSTM's maximum m[t] all of state, n and weight are multiples of e^-m[t] but for 1e-6 in the weight, so that its
 * gradient with all that follows is -1e-6 (output' . output) / weight, and what the state behind the last token leaves.
 * Summed from its parts it would be their roundings. */
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
    int64_t states_at, query_at, key_at, value_at, tasks_at, query_rows_at, key_rows_at, value_rows_at, output_rows_at,
        along_at, skip_at;
    int64_t written_at;                                                  /* values times write */
    int64_t dot_at, dot_gradient_at, weighted_at, sums_at, sums_back_at; /* of a normaliser */
    int64_t tasks, slots;                                                /* segments of all heads, their ends */
    int64_t parts, part_at; /* values are taken 256 at a time where they stand for keys; the rows of one such part */
    int64_t workspace;      /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_linear_gradient_plan;

/* major: of the newest kernels to be taken; 0: of the device. The problem's output_float32 is of the gradients of
 * queries, keys and values, and of a normaliser's output. Not of reversed time. */
ln_cuda_code ln_cuda_linear_gradient_plan_make(const ln_cuda_linear *linear, const ln_cuda_device *device, int major,
                                               ln_cuda_linear_gradient_plan *plan);
/* Fills a workspace; waits for the stream. */
ln_cuda_code ln_cuda_linear_gradient_prepare(const ln_cuda_linear_gradient_plan *plan, void *workspace, void *stream);

typedef struct ln_cuda_linear_gradients {
    ln_cuda_tensor output;  /* given, bf16 */
    const float *state_out; /* given, as a state; NULL: zeros */
    ln_cuda_tensor query, key, value;
    ln_cuda_tensor decay;       /* float32, of decays of keys or values; no data: not wanted */
    float *token_decay, *write; /* [tokens][heads]; NULL: not wanted. That of a head is their sum over tokens */
    /* Of mLSTM: [tokens][heads], of the maxima with what follows them; [sequences][heads], state . state_out behind the
     * last token. NULL: not wanted. */
    float *maximum, *ends;
    float *skip;     /* [heads]; NULL: not wanted */
    float *state_in; /* NULL: not wanted */
} ln_cuda_linear_gradients;

/* `tensors` are those of the forward run; their state_out is not read, nor, without a normaliser, their output. States
 * and their gradients lie in the same slots; those of mLSTM are given and made but for their maxima. */
ln_cuda_code ln_cuda_linear_backward(const ln_cuda_linear *linear, const ln_cuda_linear_gradient_plan *plan,
                                     const ln_cuda_linear_tensors *tensors, const ln_cuda_linear_gradients *gradients,
                                     void *workspace, void *stream);

/* Back through ln_cuda_mlstm_gates: of the gradients of its outputs those of input and decay, [tokens][heads].
 * maximum_gradient, ends: as made above; ends NULL: zeros. The maxima's in state_out_gradient and state_in_gradient
 * (NULL: 0, not wanted; slots as in tensors) are read and written in place. */
ln_cuda_code ln_cuda_mlstm_gates_backward(const ln_cuda_linear *linear, const int64_t *offsets, ln_cuda_gate input,
                                          ln_cuda_gate decay, const float *write, const float *maximum,
                                          const float *state_in, const float *decay_gradient,
                                          const float *write_gradient, const float *maximum_gradient, const float *ends,
                                          const float *state_out_gradient, float *input_gradient,
                                          float *decay_in_gradient, float *state_in_gradient,
                                          const int64_t *state_slots, void *stream);

#ifdef __cplusplus
}
#endif
#endif
