/* Rows of block formats unpacked for panels. */
#ifndef LN_KERNEL_X86_PANEL_UNPACK_H
#define LN_KERNEL_X86_PANEL_UNPACK_H

#include <stdint.h>

#include "linnet/types.h"

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

#endif
