/* The short causal convolution of every channel on an NVIDIA GPU, as the row `short_convolution` of the mixers:
 *
 *     sum[t][c] = bias[c] + sum_i weight[c][i] value[t - taps + 1 + i][c],   output = sum, or sum / (1 + e^-sum).
 *
 * Values before a sequence are its state: the last taps - 1 values of what came before. A token each of many sequences
 * is the same call. Channels are heads x value_size. */
#ifndef LN_KERNEL_CUDA_SHORT_CONVOLUTION_H
#define LN_KERNEL_CUDA_SHORT_CONVOLUTION_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_short_convolution {
    int64_t heads, value_size, taps; /* value_size a multiple of 8; taps from 2 to 64 */
    int64_t sequences;
    const int64_t *offsets; /* on the host, [sequences + 1], ascending from 0 */
    bool silu;
    bool output_float32; /* output is float32, else bf16 */
} ln_cuda_short_convolution;

typedef struct ln_cuda_short_convolution_plan {
    ln_cuda_device device;
    int taps;
    int64_t time;                          /* tokens that one thread takes */
    int64_t spans, gradient_spans;         /* pieces of sequences, forward and backward */
    int64_t workspace, gradient_workspace; /* bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_short_convolution_plan;

typedef struct ln_cuda_short_convolution_tensors {
    ln_cuda_tensor value;       /* bf16 */
    const float *weight, *bias; /* [heads][value_size][taps], the last tap of the present token; bias may be NULL */
    ln_cuda_tensor output;
    const float *state_in; /* [slots][heads][taps - 1][value_size]; NULL: zeros */
    float *state_out;      /* likewise; NULL: not wanted; may be state_in */
    /* On the device, [sequences], no two alike: where the states lie; NULL: 0, 1, ... Forward, a sequence in a negative
     * slot does not take part. */
    const int64_t *state_slots;
} ln_cuda_short_convolution_tensors;

/* No two of these may overlap. NULL (or no data): not there, or not wanted. */
typedef struct ln_cuda_short_convolution_gradients {
    ln_cuda_tensor output, value; /* bf16; output is given */
    float *weight, *bias;
    const float *state_out; /* given */
    float *state_in;        /* [sequences][heads][taps - 1][value_size], as state_out: without slots */
} ln_cuda_short_convolution_gradients;

ln_cuda_code ln_cuda_short_convolution_plan_make(const ln_cuda_short_convolution *convolution,
                                                 const ln_cuda_device *device, ln_cuda_short_convolution_plan *plan);
/* Fills a workspace on the device; waits for the stream. Once for a plan. One workspace serves one run at a time going
 * backward, any number forward. `backward`: of plan.gradient_workspace bytes. */
ln_cuda_code ln_cuda_short_convolution_prepare(const ln_cuda_short_convolution *convolution,
                                               const ln_cuda_short_convolution_plan *plan, bool backward,
                                               void *workspace, void *stream);
ln_cuda_code ln_cuda_short_convolution_forward(const ln_cuda_short_convolution *convolution,
                                               const ln_cuda_short_convolution_plan *plan,
                                               const ln_cuda_short_convolution_tensors *tensors, void *workspace,
                                               void *stream);
/* Of tensors, `output` and `state_out` are not read. */
ln_cuda_code ln_cuda_short_convolution_backward(const ln_cuda_short_convolution *convolution,
                                                const ln_cuda_short_convolution_plan *plan,
                                                const ln_cuda_short_convolution_tensors *tensors,
                                                const ln_cuda_short_convolution_gradients *gradients, void *workspace,
                                                void *stream);

#ifdef __cplusplus
}
#endif
#endif
