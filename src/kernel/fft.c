/* Owns: the roots of the transforms, the portable transforms, and the choice among instruction sets.
 *
 * Node b of level l is x^(M / 2^l) = e^(i theta), theta = pi / 2^(l + 1) + 2 pi reversed(b), where reversed(b) is the
 * sum of bit k of b times 2^-(k + 1): a child's angle is half its parent's, plus half a turn for the second. */
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

#define LN_FFT_NAME "portable"
#define LN_FFT_SET void ln_fft_fill_portable(ln_fft_kernels *kernels)

HELPER lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
HELPER void store(float *y, lanes v) {
    memcpy(y, &v, sizeof v);
}
HELPER lanes negative_multiply_add(lanes a, lanes b, lanes c) {
    return c - a * b;
}

#include "kernel/fft_body.h"

static const double TURN = 6.283185307179586476925;

int64_t ln_fft_floats(int levels) {
    int64_t floats = levels & 1 ? 2 : 0;
    for (int l = levels & 1; l < levels; l += 2) floats += (int64_t)6 << l;
    return floats;
}

static double reversed(int64_t b) {
    double value = 0;
    for (double part = 0.5; b; b >>= 1, part /= 2)
        if (b & 1) value += part;
    return value;
}

/* b = high 2^FINE + low: reversed(b) = reversed(low) + reversed(high) / 2^FINE, so that a root is a product of two and
 * few sines are taken. */
enum { FINE = 8 };

static void fill_level(float *roots, int level) {
    double low[1 << FINE][2];
    const int64_t nodes = (int64_t)1 << level, fine = nodes < 1 << FINE ? nodes : 1 << FINE;
    for (int64_t b = 0; b < fine; b++) {
        const double angle = TURN / 4 * reversed(b);
        low[b][0] = cos(angle);
        low[b][1] = sin(angle);
    }
    for (int64_t high = 0; high < nodes / fine; high++) {
        const double angle = TURN / 4 * (ldexp(1, -level - 2) + reversed(high) / (1 << FINE));
        const double c = cos(angle), s = sin(angle);
        for (int64_t b = 0; b < fine; b++, roots += 6) {
            const double re = c * low[b][0] - s * low[b][1], im = c * low[b][1] + s * low[b][0];
            const double re2 = re * re - im * im, im2 = 2 * re * im;
            roots[0] = (float)re;
            roots[1] = (float)im;
            roots[2] = (float)re2;
            roots[3] = (float)im2;
            roots[4] = (float)(re2 * re - im2 * im);
            roots[5] = (float)(re2 * im + im2 * re);
        }
    }
}

void ln_fft_open(ln_fft *fft, int levels, float *roots, int fill) {
    *fft = (ln_fft){.levels = levels};
    if (levels & 1) {
        fft->roots[0] = roots;
        if (fill) {
            roots[0] = (float)cos(TURN / 8);
            roots[1] = (float)sin(TURN / 8);
        }
        roots += 2;
    }
    for (int l = levels & 1; l < levels; roots += (int64_t)6 << l, l += 2) {
        fft->roots[l] = roots;
        if (fill) fill_level(roots, l);
    }
}

void ln_fft_choose(unsigned cpu, ln_fft_kernels *kernels) {
    (void)cpu;
    ln_fft_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_fft_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_fft_fill_avx512(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_fft_fill_neon(kernels);
#endif
}
