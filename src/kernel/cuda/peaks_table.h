/* The kernels of peaks_cuda.cu. */
#ifndef LN_KERNEL_CUDA_PEAKS_TABLE_H
#define LN_KERNEL_CUDA_PEAKS_TABLE_H

#include "kernel/cuda/peaks_cuda.h"

/* Multiplies random bf16 numbers `rounds` times over, on all multiprocessors. *operations: how many that were; sums: at
 * least 1024 floats for each multiprocessor, so that nothing is left out as unread. */
typedef ln_cuda_code ln_cuda_peaks_start(const ln_cuda_device *device, int64_t rounds, float *sums, void *stream,
                                         double *operations);
extern "C" ln_cuda_peaks_start ln_cuda_peaks_hopper;
extern "C" ln_cuda_peaks_start ln_cuda_peaks_portable;

#endif
