/* The kernels of product_portable.cu and product_few_portable.cu, for product_cuda.cu alone. */
#ifndef LN_KERNEL_CUDA_PRODUCT_TABLE_H
#define LN_KERNEL_CUDA_PRODUCT_TABLE_H

#include "kernel/cuda/product_cuda.h"

/* Few tokens: at most LN_CUDA_PRODUCT_FEW; workspace: of codes, for x in digits. */
ln_cuda_code ln_cuda_product_few(const ln_cuda_product *product, const ln_cuda_device *device, void *workspace,
                                 void *stream);
/* y [tokens, stride] of rows of bf16, which are all of a weight or a slice. */
ln_cuda_code ln_cuda_product_many(const void *weight, int64_t rows, int64_t columns, const void *x, int64_t x_stride,
                                  int64_t tokens, float *y, int64_t stride, void *stream);
/* Rows of a quantised weight, from a multiple of 16 on, as bf16 [rows, padded columns]. */
ln_cuda_code ln_cuda_product_round(const ln_cuda_weight *weight, int64_t first_row, int64_t rows, void *to,
                                   void *stream);
/* The gated unit of y[0] and y[1]. */
ln_cuda_code ln_cuda_product_gate(const ln_cuda_product *product, void *stream);
ln_cuda_code ln_cuda_weight_tile(const ln_cuda_weight *weight, ln_cuda_raw_kind kind, const void *raw,
                                 int64_t first_row, int64_t rows, void *stream);

#endif
