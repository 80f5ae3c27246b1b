/* The selective scan (Mamba) on an NVIDIA GPU, as the row `selective_scan` of the mixers: every channel c has `slots`
 * states h[c][n] of its own,
 *
 *     h[c][n] = e^(step[c] rate[c][n]) h[c][n] + step[c] value[c] key[n],
 *     output[c] = sum_n query[n] h[c][n] + skip[c] value[c], and times gate[c] / (1 + e^-gate[c]) where there is a
 * gate.
 *
 * Channels are heads x value_size; those of heads / key_heads heads read the same keys and queries. A token each of
 * many sequences is the same call. */
#ifndef LN_KERNEL_CUDA_SCAN_H
#define LN_KERNEL_CUDA_SCAN_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_scan {
    int64_t heads, key_heads, value_size, slots; /* value_size a multiple of 8; slots 8, 16, 32 or 64 */
    int64_t sequences;
    const int64_t *offsets; /* on the host, [sequences + 1], ascending from 0 */
    bool softplus;          /* step is log(1 + e^step) of what is given */
    bool output_float32;    /* output is float32, else bf16 */
} ln_cuda_scan;

typedef struct ln_cuda_scan_kernel {
    const char *name;
    int slots, lanes, channels; /* lanes: threads that share `channels` channels; 0: one token of each sequence */
    ln_cuda_code (*start)(const void *run, void *stream);
} ln_cuda_scan_kernel;

typedef struct ln_cuda_scan_plan {
    ln_cuda_device device;
    const ln_cuda_scan_kernel *kernel;
    int64_t workspace, gradient_workspace; /* bytes, aligned to 256 */
    int64_t chunks;                        /* of 16 tokens, whose states backward keeps */
    char why[LN_CUDA_WHY];
} ln_cuda_scan_plan;

typedef struct ln_cuda_scan_tensors {
    ln_cuda_tensor value, key, query; /* bf16; of value_size, slots, slots */
    ln_cuda_tensor step;              /* float32, of value_size */
    ln_cuda_tensor gate;              /* bf16; no data: none */
    const float *rate, *skip;         /* [heads][value_size][slots], [heads][value_size]; skip may be NULL */
    ln_cuda_tensor output;
    const float *state_in; /* [slots of the pool][heads][value_size][slots]; NULL: zeros */
    float *state_out;      /* likewise; NULL: not wanted; may be state_in */
    /* On the device, [sequences], no two alike: where the states lie; NULL: 0, 1, ... Forward, a sequence in a negative
     * slot does not take part. */
    const int64_t *state_slots;
} ln_cuda_scan_tensors;

/* No two of these may overlap. NULL (or no data): not there, or not wanted. */
typedef struct ln_cuda_scan_gradients {
    ln_cuda_tensor output;            /* given, bf16 */
    ln_cuda_tensor value, key, query; /* bf16 */
    ln_cuda_tensor step;              /* float32: of what was given */
    float *rate, *skip;
    const float *state_out; /* given; [sequences][heads][value_size][slots], without slots of a pool */
    float *state_in;        /* likewise */
} ln_cuda_scan_gradients;

/* The table of kernels, ended by a row that cannot start. */
const ln_cuda_scan_kernel *ln_cuda_scan_kernels(int row);
/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_scan_plan_make(const ln_cuda_scan *scan, const ln_cuda_device *device,
                                    const ln_cuda_scan_kernel *kernel, ln_cuda_scan_plan *plan);
/* Fills a workspace on the device, of plan.workspace or plan.gradient_workspace bytes; waits for the stream. Once for
 * a plan. One workspace serves one run at a time going backward, any number forward. */
ln_cuda_code ln_cuda_scan_prepare(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan, void *workspace,
                                  void *stream);
ln_cuda_code ln_cuda_scan_forward(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan,
                                  const ln_cuda_scan_tensors *tensors, void *workspace, void *stream);
/* Of a multiple of 16 slots, without a gate. Of tensors, `output` and `state_out` are not read. */
ln_cuda_code ln_cuda_scan_backward(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan,
                                   const ln_cuda_scan_tensors *tensors, const ln_cuda_scan_gradients *gradients,
                                   void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
