/* Diagonal plus low rank, the rows `dplr` and `rwkv7` of the mixers, on an NVIDIA GPU:
 *
 *     S[t] = diag(e^decay[t]) S[t-1] + b[t] (a[t]^T S[t-1]) + key[t] value[t]^T,   output[t] = scale S[t]^T query[t].
 *
 * S [key_size, value_size] of a head is float32. Sequences are cut into chunks of 16 tokens. What of a chunk does not
 * need the state is made for all chunks of a segment at once; then the states go through the segment, chunk by chunk. A
 * segment is as long as its room in the workspace, which should stay in the second-level cache. */
#ifndef LN_KERNEL_CUDA_DPLR_H
#define LN_KERNEL_CUDA_DPLR_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_dplr {
    int64_t heads, key_heads; /* head h reads query, key, a, b of head h / (heads / key_heads) */
    int64_t key_size, value_size;
    int64_t sequences;
    const int64_t *offsets; /* on the host, [sequences + 1], ascending from 0 */
    float scale;
    bool output_float32; /* output is float32, else bf16 */
} ln_cuda_dplr;

typedef struct ln_cuda_dplr_kernel {
    const char *name;
    int key_size, value_size;
    int record; /* bytes that a chunk of a head takes in the workspace */
    ln_cuda_code (*inside)(const void *run, void *stream);
    ln_cuda_code (*states)(const void *run, void *stream); /* NULL: the end of the table */
} ln_cuda_dplr_kernel;

typedef struct ln_cuda_dplr_plan {
    ln_cuda_device device;
    const ln_cuda_dplr_kernel *kernel;
    int64_t longest;            /* chunks of a sequence */
    int64_t segment;            /* chunks of each sequence at once */
    int64_t carried, workspace; /* where the records begin; bytes, aligned to 256 */
    char why[LN_CUDA_WHY];
} ln_cuda_dplr_plan;

typedef struct ln_cuda_dplr_tensors {
    ln_cuda_tensor query, key, value, a, b; /* bf16 */
    ln_cuda_tensor decay;                   /* float32, of key_size; from -inf to 0 */
    ln_cuda_tensor output;
    const float *state_in;      /* [slots][heads][key_size][value_size]; NULL: zeros */
    float *state_out;           /* likewise; NULL: not wanted; may be state_in */
    const int64_t *state_slots; /* on the device, [sequences]: where the states lie; NULL: 0, 1, ... */
} ln_cuda_dplr_tensors;

/* The table of kernels, ended by a row that cannot start. */
const ln_cuda_dplr_kernel *ln_cuda_dplr_kernels(int row);
/* Chooses a kernel. records: bytes of the workspace that records may take; 0: chosen. */
ln_cuda_code ln_cuda_dplr_plan_make(const ln_cuda_dplr *dplr, const ln_cuda_device *device, int64_t records,
                                    ln_cuda_dplr_plan *plan);
/* Fills a workspace on the device; waits for the stream. Once for a plan. One workspace serves one run at a time. */
ln_cuda_code ln_cuda_dplr_prepare(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan, void *workspace,
                                  void *stream);
ln_cuda_code ln_cuda_dplr_forward(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan,
                                  const ln_cuda_dplr_tensors *tensors, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
