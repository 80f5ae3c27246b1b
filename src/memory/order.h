/* Floats as integers of the same order, to search thresholds and to sort by digits. */
#ifndef LN_MEMORY_ORDER_H
#define LN_MEMORY_ORDER_H

#include "number/format.h"

/* key(a) < key(b) where a < b; -0 is below 0; NaN is 0, below everything. */
static inline uint32_t ln_order_key(float x) {
    const uint32_t bits = ln_float_bits(x);
    if (x != x) return 0;
    return bits >> 31 ? ~bits : bits | UINT32_C(1) << 31;
}

#endif
