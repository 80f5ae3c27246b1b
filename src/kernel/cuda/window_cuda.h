/* States of a sliding window by difference on an NVIDIA GPU: window = now - e^decay before, of heads of all sequences.
 * A head's state is [features][columns], then rows of [features]. Products are float64. */
#ifndef LN_KERNEL_CUDA_WINDOW_H
#define LN_KERNEL_CUDA_WINDOW_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_window {
    int64_t heads, floats, features, columns, decays; /* decays of a head: 1 or features */
    const float *now, *before;
    const double *decay; /* [heads][decays]; NULL: none */
    float *window;       /* may be now or before */
} ln_cuda_window;
ln_cuda_code ln_cuda_window_take(const ln_cuda_window *window, void *stream);

#ifdef __cplusplus
}
#endif
#endif
