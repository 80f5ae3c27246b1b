/* What the host's side of the selective scan and its kernels share. */
#ifndef LN_KERNEL_CUDA_SCAN_TABLE_H
#define LN_KERNEL_CUDA_SCAN_TABLE_H

#include "kernel/cuda/scan_cuda.h"

/* A sequence; the longest come first. */
typedef struct ln_cuda_scan_sequence {
    int32_t token, count, sequence, chunk; /* chunk: its first, of all */
} ln_cuda_scan_sequence;

typedef struct ln_cuda_scan_run {
    ln_cuda_scan_tensors tensors;
    ln_cuda_scan_gradients gradients;
    const ln_cuda_scan_sequence *sequence;
    int sequences, heads, key_heads, value_size, group; /* group: channels that share keys */
    int slots, slot;                                    /* backward: of the states, and the first of 16 taken now */
    bool softplus, output_float32;
} ln_cuda_scan_run;

/* What backward keeps. Channels of a block: LN_CUDA_SCAN_BLOCK, all of one group. */
enum { LN_CUDA_SCAN_CHUNK = 16, LN_CUDA_SCAN_BLOCK = 32 };
typedef struct ln_cuda_scan_kept {
    float *states; /* [chunks][channels][16], before each chunk */
    float *shared; /* [blocks of channels][tokens][2][16]: gradients of keys, of queries */
    float *rates;  /* [sequences][channels][16] */
    float *skips;  /* [sequences][channels] */
    int64_t tokens;
    int blocks; /* of channels, of a group */
} ln_cuda_scan_kept;
/* The states, the gradients, the sums, of 16 slots: those of the first slots are written, the others' are added to
 * values and steps. */
ln_cuda_code ln_cuda_scan_gradients_start(const ln_cuda_scan_run *run, const ln_cuda_scan_kept *kept, void *stream);

extern const ln_cuda_scan_kernel ln_cuda_portable_scans[];
extern const int ln_cuda_portable_scan_count;

#endif
