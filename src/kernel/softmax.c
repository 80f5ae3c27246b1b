/* Owns: the portable softmax kernels, and the choice among the instruction sets. */
#include "kernel/softmax.h"

#include <string.h>

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

/* Without fused operations the argument is reduced in float64. */
enum { VECTORS = 4 };
typedef uint32_t lanes_bits __attribute__((vector_size(16), may_alias));
typedef double lanes_double __attribute__((vector_size(32), may_alias));

HELPER lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
HELPER void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}
HELPER void stream(float *y, lanes v) {
    store(y, v);
}
HELPER void after_streams(void) {}
HELPER lanes load_some(const float *x, int64_t n, float fill) {
    lanes v = {fill, fill, fill, fill};
    memcpy(&v, x, (size_t)n * sizeof *x);
    return v;
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    memcpy(y, &v, (size_t)n * sizeof *y);
}
HELPER bool all_within(const lanes *x, lanes limit) {
    lanes_int within = x[0] <= limit;
    for (int v = 1; v < VECTORS; v++) within &= x[v] <= limit;
    return (within[0] & within[1] & within[2] & within[3]) != 0;
}
HELPER lanes keep_above(lanes v, lanes x, lanes limit) {
    return (lanes)((lanes_int)v & (x > limit));
}
HELPER lanes reference_of(float e) {
    return splat(e);
}
#include "kernel/exponential.h"
/* Adding 3 * 2^51 rounds to an integer. */
HELPER lanes power(lanes x, lanes reference) {
    const double magic = 6755399441055744.0, log2e = 1.4426950408889634;
    const lanes_double y = __builtin_convertvector(x, lanes_double) * log2e, n = (y + magic) - magic;
    const lanes f = __builtin_convertvector(y - n, lanes);
    const lanes p = LN_POWER_NEAR_5(f), down = __builtin_convertvector(n, lanes) - reference;
    /* Outside the range it may be anything, but converting what no integer holds is undefined. */
    const lanes safe = (lanes)((lanes_int)down & (down > -1000) & (down < 1000));
    return (lanes)((lanes_bits)p + ((lanes_bits) __builtin_convertvector(safe, lanes_int) << 23));
}

#define LN_SOFTMAX_NAME "softmax__portable"
#define LN_SOFTMAX_SET static void fill_portable(ln_softmax_kernels *kernels)
#include "kernel/softmax_body.h"

void ln_softmax_choose(unsigned cpu, ln_softmax_kernels *kernels) {
    (void)cpu;
    fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_softmax_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_softmax_fill_avx512(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_softmax_fill_neon(kernels);
#endif
}
