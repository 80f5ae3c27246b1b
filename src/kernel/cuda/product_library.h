/* cuBLASLt, loaded at run time: nothing is linked with it, and where it is not there our own kernels multiply. */
#ifndef LN_KERNEL_CUDA_PRODUCT_LIBRARY_H
#define LN_KERNEL_CUDA_PRODUCT_LIBRARY_H

#include "kernel/cuda/product_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LN_CUDA_LIBRARY_BYTES = 32 << 20 }; /* of its workspace */

/* y [tokens, stride] = x [tokens, x_stride] weight [rows, columns]', bf16 with float32 sums. LN_CUDA_UNSUPPORTED: it
 * has no way for this shape. */
ln_cuda_code ln_cuda_library_multiply(void *library, const void *weight, int64_t rows, int64_t columns, const void *x,
                                      int64_t x_stride, int64_t tokens, float *y, int64_t stride, void *workspace,
                                      void *stream);

#ifdef __cplusplus
}
#endif
#endif
