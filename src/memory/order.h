/* Order: floats as integers of the same order, to search thresholds and to sort by digits; and the best of a list. */
#ifndef LN_MEMORY_ORDER_H
#define LN_MEMORY_ORDER_H

#include <stdbool.h>

#include "number/format.h"

/* key(a) < key(b) where a < b; -0 is below 0; NaN is 0, below everything. */
static inline uint32_t ln_order_key(float x) {
    const uint32_t bits = ln_float_bits(x);
    if (x != x) return 0;
    return bits >> 31 ? ~bits : bits | UINT32_C(1) << 31;
}

/* Whether a comes before b: a strict order of all that are compared. */
typedef bool (*ln_order_before)(const void *what, int32_t a, int32_t b);

/* list[0 .. n - 1] so that the first k of the order are the first k, in any order: selection by partition. */
static inline void ln_order_select(int32_t *list, int64_t n, int64_t k, ln_order_before before, const void *what) {
    int64_t low = 0, high = n - 1;
    while (low < high && k > low && k <= high) {
        const int32_t pivot = list[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(what, list[i], pivot)) i++;
            while (before(what, pivot, list[j])) j--;
            if (i > j) break;
            const int32_t swapped = list[i];
            list[i++] = list[j];
            list[j--] = swapped;
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            break;
    }
}

#endif
