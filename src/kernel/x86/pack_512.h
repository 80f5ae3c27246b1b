/* Packing panels with AVX-512: what several panel files use. */
#ifndef LN_KERNEL_X86_PACK_512_H
#define LN_KERNEL_X86_PACK_512_H

#include <stdint.h>

#include "kernel/matmul_kernels.h"

/* Most columns of a panel of each form. */
enum { LN_F32_COLUMNS_512 = 256, LN_BF16_COLUMNS_512 = 512, LN_INT8_COLUMNS_512 = 1024 };

/* Columns of a row of a block format to unsigned bytes u, a scale and a minimum for each 16 of them:
 *     w = scale * u + minimum = scale * (u - ln_unpack_offset(type))      (the second: formats without minimum)
 * Writes whole groups of 256: u has room for columns rounded up to them. */
void ln_unpack_row_512(linnet_type type, const unsigned char *from, int64_t columns, uint8_t *u, float *scale,
                       float *minimum);

static inline int ln_unpack_offset(linnet_type type) {
    switch (type) {
    case LINNET_Q8_0:
        return 128;
    case LINNET_Q6_K:
        return 32;
    case LINNET_Q5_0:
        return 16;
    case LINNET_Q4_0:
        return 8;
    case LINNET_Q3_K:
        return 4;
    default:
        return 0;
    }
}

/* Columns (at most LN_BF16_COLUMNS_512) of a row of any format as its codec decodes them, bit for bit. */
void ln_decode_row_512(linnet_type type, const unsigned char *from, int64_t columns, float *to);

/* Of the kernel table. */
void ln_pack_f32_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                     int64_t columns, void *panel);
void ln_pack_bf16_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                      int64_t columns, void *panel);
void ln_pack_int8_512(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                      int64_t columns, void *panel);

#endif
