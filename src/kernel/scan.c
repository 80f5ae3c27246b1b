/* Owns: the portable scan kernels, and the choice among the instruction sets. */
#include "kernel/scan.h"

#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

HELPER lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
HELPER void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}
HELPER lanes load_some(const float *x, int64_t n) {
    lanes v = {0};
    memcpy(&v, x, (size_t)n * sizeof *x);
    return v;
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    memcpy(y, &v, (size_t)n * sizeof *y);
}
HELPER lanes divide(lanes a, lanes b) {
    return a / b;
}
HELPER lanes root(lanes x) {
    return (lanes){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])};
}
HELPER lanes where_below(lanes a, lanes b, lanes yes, lanes no) {
    return choose(a < b, yes, no);
}
/* Below 2^22 in magnitude; 3 * 2^22 has no bits left for a fraction. */
HELPER lanes nearest(lanes x) {
    const lanes magic = splat(12582912.0f);
    return (x + magic) - magic;
}
#include "kernel/exponential.h"
/* 2^128 is no float: the exponent goes on in two halves. */
HELPER lanes power(lanes x) {
    const lanes below = choose(x < 129, x, splat(129)), clamped = choose(below > -127, below, splat(-127));
    const lanes n = nearest(clamped), f = clamped - n, p = LN_POWER_NEAR_5(f);
    const lanes_int whole = __builtin_convertvector(n, lanes_int), half = whole >> 1, rest = whole - half;
    const lanes y = p * (lanes)((half + 127) << 23) * (lanes)((rest + 127) << 23);
    return choose(x == x, (lanes)((lanes_int)y & ~(x < -126)), x);
}
HELPER lanes power_of_product(lanes a, lanes b) {
    return power(multiply(a, b));
}
HELPER lanes fold_two(lanes a, lanes b) {
    return (lanes){a[0] + a[2], b[0] + b[2], a[1] + a[3], b[1] + b[3]};
}
HELPER lanes fold_four(lanes a, lanes b) {
    return (lanes){a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3]};
}
HELPER lanes fold_rest(const lanes *x) {
    return x[0];
}

#define LN_SCAN_NAME "scan__portable"
#define LN_SCAN_SET static void fill_portable(ln_scan_kernels *kernels)
#include "kernel/scan_body.h"

void ln_scan_choose(unsigned cpu, ln_scan_kernels *kernels) {
    (void)cpu;
    fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_scan_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_scan_fill_avx512(kernels);
#endif
}
