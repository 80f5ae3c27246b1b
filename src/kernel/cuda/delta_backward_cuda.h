/* Gradients of the delta rule, gated delta rule and KDA (delta_cuda.h) on an NVIDIA GPU.
 *
 * A chunk of 64 tokens, its keys and queries with the decays since its beginning (K~, Q~) or up to its end (K^), S the
 * state before it and D the gradient of the state after it:
 *
 *     (1 + A) V' = beta (V - K~ S),  O = Q~ S + P V',  S <- e^g S + K^T V'
 *     dV' = P^T dO + K^ D,  R = (1 + A)^-T dV',  D <- e^g D + Q~^T dO - K~^T beta R
 *     dV = beta R,  dQ~ = dO S^T,  dP = dO V'^T,  dA = -R V'^T,  dK~ = -beta R S^T,  dK^ = V' D^T,  dbeta = R V' / beta
 *
 * Three kernels: the pairs of each chunk (P and T = (1 + A)^-1); two walks over the chunks of a sequence side by side,
 * forward for S and V', backward for D and R, neither of which needs the other; and what is left of each chunk, all
 * chunks at once. Sums over the value heads of a key head go in the order of the heads. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_H
#define LN_KERNEL_CUDA_DELTA_BACKWARD_H

#include "kernel/cuda/delta_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_delta_backward {
    ln_cuda_delta forward;
    bool output_gradient_float32; /* else bf16 */
    bool gradients_bf16;          /* of query, key and value; else float32 */
} ln_cuda_delta_backward;

/* Memory on the device. What a gradient has NULL for is not wanted; those of beta, decay and states are float32. */
typedef struct ln_cuda_delta_backward_tensors {
    ln_cuda_tensor query, key, value; /* as the forward had them, like the next four */
    const float *beta, *decay;
    const float *state_in;
    const int64_t *state_slots;      /* of state_in */
    ln_cuda_tensor output_gradient;  /* [tokens, heads, value_size] */
    const float *state_out_gradient; /* [sequences, heads, key_size, value_size]; NULL: zeros */
    ln_cuda_tensor query_gradient, key_gradient, value_gradient;
    float *beta_gradient, *decay_gradient;
    float *state_in_gradient; /* [sequences, heads, key_size, value_size] */
} ln_cuda_delta_backward_tensors;

/* One set of compiled kernels. */
typedef struct ln_cuda_delta_backward_kernel {
    const char *name;
    int key_size;
    ln_cuda_delta_decay decay; /* KEY, or HEAD, which also does NONE */
    int shared_bytes, major;
    /* Starts them. NULL: the end of the table. */
    ln_cuda_code (*start)(const void *run, void *stream);
} ln_cuda_delta_backward_kernel;

typedef struct ln_cuda_delta_backward_plan {
    ln_cuda_device device;
    const ln_cuda_delta_backward_kernel *kernel;
    int64_t chunks, workspace; /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_delta_backward_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_delta_backward_kernel *ln_cuda_delta_backward_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_delta_backward_plan_make(const ln_cuda_delta_backward *delta, const ln_cuda_device *device,
                                              const ln_cuda_delta_backward_kernel *kernel,
                                              ln_cuda_delta_backward_plan *plan);
/* Fills the tables of a workspace on the device; waits for the stream. Once for a plan. Two runs may not use one
 * workspace at the same time. */
ln_cuda_code ln_cuda_delta_backward_prepare(const ln_cuda_delta_backward *delta,
                                            const ln_cuda_delta_backward_plan *plan, void *workspace, void *stream);
/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_delta_backward_run(const ln_cuda_delta_backward *delta, const ln_cuda_delta_backward_plan *plan,
                                        const ln_cuda_delta_backward_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
