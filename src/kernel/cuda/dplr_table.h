/* What the host's side of diagonal plus low rank and its kernels share. */
#ifndef LN_KERNEL_CUDA_DPLR_TABLE_H
#define LN_KERNEL_CUDA_DPLR_TABLE_H

#include "kernel/cuda/dplr_cuda.h"

enum { LN_CUDA_DPLR_CHUNK = 16 };

/* A sequence; the longest come first. */
typedef struct ln_cuda_dplr_sequence {
    int32_t token, count, sequence;
} ln_cuda_dplr_sequence;

/* One segment: chunks first_chunk .. first_chunk + segment - 1 of every sequence. */
typedef struct ln_cuda_dplr_run {
    ln_cuda_dplr_tensors tensors;
    const ln_cuda_dplr_sequence *sequence;
    float *carried;              /* [sequences][heads] states between segments */
    char *records;               /* [sequences][heads][segment] */
    int sequences, heads, group; /* sequences: those that reach the segment; group: heads that share keys */
    int first_chunk, segment;
    float scale;
    bool output_float32;
} ln_cuda_dplr_run;

extern const ln_cuda_dplr_kernel ln_cuda_portable_dplrs[];
extern const int ln_cuda_portable_dplr_count;

#endif
