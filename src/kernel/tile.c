/* Owns: the tile kernels in the compiler's vectors of four, 6 rows x 8 columns in 12 sums, which fit any machine with
 * 16 registers; and choosing among instruction sets. */
#include "kernel/tile.h"

#include <string.h>

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

enum { VECTORS = 2 };
#define LN_TILE_VECTORS 2

HELPER lanes load_some(const float *x, int64_t n) {
    float part[W] = {0};
    lanes v;
    if (n < W) memcpy(part, x, (size_t)n * sizeof *x);
    memcpy(&v, n < W ? part : x, sizeof v);
    return v;
}
HELPER void store_some(float *y, lanes v, int64_t n) {
    float part[W];
    memcpy(n < W ? part : y, &v, sizeof v);
    if (n < W) memcpy(y, part, (size_t)n * sizeof *y);
}
HELPER lanes multiply_first(lanes v, lanes factor, int n) {
    return choose((lanes_int){0, 1, 2, 3} < (lanes_int){n, n, n, n}, v * factor, v);
}
#include "kernel/exponential.h"
/* As in kernel/lanes16.h. */
HELPER lanes exponential_of(lanes x) {
    const lanes magic = splat(12582912.0f), shifted = x * splat(1.44269502f) + magic, n = shifted - magic;
    const lanes r = (x - n * splat(0.693145752f)) - n * splat(1.42860677e-6f), f = r * splat(1.44269502f);
    const lanes power = (lanes)(((lanes_int)shifted - (lanes_int)magic + 127) << 23);
    return choose(x < splat(LN_TILE_LEAST), splat(0), LN_POWER_NEAR_6(f) * power);
}
HELPER lanes differences(double x, const double *y, int64_t n) {
    float part[W] = {0};
    lanes v;
    for (int64_t i = 0; i < n; i++) part[i] = (float)(x - y[i]);
    memcpy(&v, part, sizeof v);
    return v;
}
HELPER void transpose_lanes(lanes x[W]) {
    const lanes a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5),
                b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5),
                c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7),
                d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    x[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    x[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    x[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    x[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

#define LN_TILE_NAME "tile__portable"
#define LN_TILE_SET void ln_tile_fill_portable(ln_tile_kernels *kernels)
#include "kernel/tile_body.h"

void ln_tile_choose(unsigned cpu, ln_tile_kernels *kernels) {
    (void)cpu;
    ln_tile_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_tile_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_tile_fill_avx512(kernels);
    if (cpu & LN_CPU_AVX512_BF16) ln_tile_fill_avx512bf16(kernels);
    if (cpu & LN_CPU_AMX_BF16) ln_tile_fill_amx(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_tile_fill_neon(kernels);
#endif
}
