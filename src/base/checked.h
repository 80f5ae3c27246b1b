/* Arithmetic on sizes that come from files and callers, false instead of overflow; and searching offsets. */
#ifndef LN_BASE_CHECKED_H
#define LN_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool ln_add_u64(uint64_t a, uint64_t b, uint64_t *sum) {
    return !__builtin_add_overflow(a, b, sum);
}
static inline bool ln_multiply_u64(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}
static inline bool ln_multiply_i64(int64_t a, int64_t b, int64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}

static inline int64_t ln_min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t ln_max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t ln_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline size_t ln_round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

/* Of ascending[0] <= x < ascending[count]: the last i with ascending[i] <= x. */
static inline int64_t ln_find_i64(const int64_t *ascending, int64_t count, int64_t x) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (ascending[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return low;
}

#endif
