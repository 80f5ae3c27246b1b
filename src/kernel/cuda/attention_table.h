/* The compiled kernels of each file, best first, and what the gradients share with the forward pass: arguments, and the
 * packing of factors. */
#ifndef LN_KERNEL_CUDA_ATTENTION_TABLE_H
#define LN_KERNEL_CUDA_ATTENTION_TABLE_H

#include "kernel/cuda/attention_cuda.h"

extern const ln_cuda_kernel ln_cuda_hopper_kernels[], ln_cuda_hopper_half_kernels[], ln_cuda_portable_kernels[];
extern const int ln_cuda_hopper_count, ln_cuda_hopper_half_count, ln_cuda_portable_count;

/* NULL, or which of heads, offsets, window, scale, cap, rank and lists is out of range. `most`: of window and tokens.
 */
const char *ln_cuda_attention_wrong(const ln_cuda_attention *attention, int64_t most);
/* NULL, or what is right but made by no kernel. */
const char *ln_cuda_attention_lacking(const ln_cuda_attention *attention);

/* to [tokens, heads, packed_size], packed: a row of `from`, then factors [tokens, heads, rank] times `scale` in three
 * groups of rank columns, and zeros. Of queries the groups are high, high, low halves, of keys high, low, high: their
 * products give all but low times low. */
ln_cuda_code ln_cuda_attention_pack(const ln_cuda_tensor *from, int64_t size, const float *factors, int64_t rank,
                                    float scale, int64_t tokens, int64_t heads, bool half, bool keys,
                                    int64_t packed_size, void *to, void *stream);

#endif
