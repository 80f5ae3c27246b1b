/* What the host's side of the selective scan and its kernels share. */
#ifndef LN_KERNEL_CUDA_SCAN_TABLE_H
#define LN_KERNEL_CUDA_SCAN_TABLE_H

#include "kernel/cuda/scan_cuda.h"

/* A sequence; the longest come first. */
typedef struct ln_cuda_scan_sequence {
    int32_t token, count, sequence;
} ln_cuda_scan_sequence;

typedef struct ln_cuda_scan_run {
    ln_cuda_scan_tensors tensors;
    const ln_cuda_scan_sequence *sequence;
    int sequences, heads, key_heads, value_size, group; /* group: channels that share keys */
    bool softplus, output_float32;
} ln_cuda_scan_run;

extern const ln_cuda_scan_kernel ln_cuda_portable_scans[];
extern const int ln_cuda_portable_scan_count;

#endif
