/* Tensors and states made to fit the kernels of a mixer on an NVIDIA GPU: rows filled with zeros to the sizes that
 * there are kernels for, heads of keys repeated for each head of values, keys divided by their lengths, time turned
 * round; and what kernels made brought back. All of the recurrences take zeros for no channels at all, so that the
 * results are those of the tensors as they were. */
#ifndef LN_KERNEL_CUDA_FIT_H
#define LN_KERNEL_CUDA_FIT_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows [token][head][lines * columns] of a caller, and the same without gaps for a kernel. */
typedef struct ln_cuda_fit {
    int64_t tokens;
    bool turned;                /* time; else both have the same tokens */
    const int32_t *mirror;      /* then, on the device, [tokens]: the caller's token of a kernel's */
    int64_t outer_heads, heads; /* the caller's; the kernel's, a multiple */
    bool tiled;                 /* head h is the caller's h % outer_heads, else h / (heads / outer_heads) */
    int64_t outer_lines, lines; /* of a row; the kernel's are at least the caller's */
    int64_t outer_columns, columns;
    bool outer_bf16, bf16; /* elements, else float32 */
    bool normalise;        /* rows are divided by (sum of squares + 1e-6)^1/2 */
} ln_cuda_fit;

/* The kernel's rows, from the caller's, zeros where these have nothing. */
ln_cuda_code ln_cuda_fit_in(const ln_cuda_fit *fit, ln_cuda_tensor from, void *to, void *stream);
/* The caller's rows from the kernel's: heads that read the same are summed in their order. normalise: they are
 * gradients, `given` what was divided. */
ln_cuda_code ln_cuda_fit_out(const ln_cuda_fit *fit, const void *from, ln_cuda_tensor given, ln_cuda_tensor to,
                             void *stream);

/* The parts of a head's state in floats, [lines][columns] each. */
enum { LN_CUDA_FIT_PARTS = 4 };
typedef struct ln_cuda_fit_part {
    int64_t outer_at, outer_lines, outer_columns, at, lines, columns;
} ln_cuda_fit_part;
typedef struct ln_cuda_fit_states {
    int64_t sequences, heads, outer_floats, floats; /* floats: of a head */
    int parts;
    ln_cuda_fit_part part[LN_CUDA_FIT_PARTS];
    const int64_t *slots; /* on the device: where the caller's lie; NULL: 0, 1, ... */
} ln_cuda_fit_states;
ln_cuda_code ln_cuda_fit_states_in(const ln_cuda_fit_states *fit, const float *from, float *to, void *stream);
ln_cuda_code ln_cuda_fit_states_out(const ln_cuda_fit_states *fit, const float *from, float *to, void *stream);

#ifdef __cplusplus
}
#endif
#endif
