/* The dot way of the matrix products (few tokens): its fillers, and what they share.
 *
 * Every kernel keeps its sums per row and token, so a result depends on its row and its token alone, not on how many of
 * either are in the call. */
#ifndef LN_KERNEL_DOT_H
#define LN_KERNEL_DOT_H

#include "kernel/matmul_kernels.h"

/* Portable C, then every instruction set that `cpu` (flags of base/cpu.h) allows, in ascending order. */
void ln_dot_choose(unsigned cpu, ln_matmul_kernels *kernels);

/* The fillers, one a file: each overwrites the prepare and dot slots that it has. */
void ln_dot_fill_portable(ln_matmul_kernels *kernels);
void ln_dot_fill_avx2(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512vnni(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512bf16(ln_matmul_kernels *kernels);
void ln_dot_fill_neon(ln_matmul_kernels *kernels);
void ln_dot_fill_neondot(ln_matmul_kernels *kernels);

/* Preparing INT8: q = round to even of x * (127 / largest), scale = largest / 127. A block that is not finite gets
 * scale NaN and q 0, so that its outputs are NaN; one below this limit counts as zero (its scale's reciprocal would
 * overflow). */
#define LN_INT8_LEAST 0x1p-110f

/* Parts of a prepared row of the INT8 form. */
static inline const float *ln_int8_scales(const void *row, int64_t padded) {
    return (const float *)(const void *)((const unsigned char *)row + padded);
}
static inline const int32_t *ln_int8_sums(const void *row, int64_t padded) {
    return (const int32_t *)(const void *)((const unsigned char *)row + padded + padded / 8);
}

#endif
