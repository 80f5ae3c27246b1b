/* Four lanes of the compiler's vectors, plain C where the machine has none, and what every family of kernels does with
 * them. */
#ifndef LN_KERNEL_LANES_PORTABLE_H
#define LN_KERNEL_LANES_PORTABLE_H

#include <stdint.h>

#define HELPER static inline __attribute__((always_inline))

enum { W = 4 };
typedef float lanes __attribute__((vector_size(16), may_alias));
typedef int32_t lanes_int __attribute__((vector_size(16), may_alias));

HELPER lanes splat(float x) {
    return (lanes){x, x, x, x};
}
HELPER lanes add(lanes a, lanes b) {
    return a + b;
}
HELPER lanes subtract(lanes a, lanes b) {
    return a - b;
}
HELPER lanes multiply(lanes a, lanes b) {
    return a * b;
}
HELPER lanes multiply_add(lanes a, lanes b, lanes c) {
    return a * b + c;
}
HELPER lanes choose(lanes_int condition, lanes yes, lanes no) {
    return (lanes)((condition & (lanes_int)yes) | (~condition & (lanes_int)no));
}
HELPER lanes larger(lanes a, lanes b) {
    return choose(a > b, a, b);
}

#endif
