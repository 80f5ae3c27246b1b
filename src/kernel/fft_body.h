/* The bodies of the transforms of kernel/fft.h, written once and compiled for each instruction set by including this
 * file (fft.c, x86/fft_*.c, arm/fft_neon.c) after a lanes header, which brings W, lanes, splat and arithmetic, with
 *   load (x), store (y, v)
 *   negative_multiply_add (a, b, c) = c - a b
 *   LN_FFT_NAME, LN_FFT_SET
 *
 * Subtrees of at most 2^INNER points are in the first cache: they go level by level, larger ones depth first. */
#include "kernel/fft.h"

enum { INNER = 8, LANES = LN_FFT_LANES, POINT = LN_FFT_POINT };

typedef struct complex_lanes {
    lanes re, im;
} complex_lanes;

HELPER complex_lanes get(const float *point) {
    return (complex_lanes){load(point), load(point + LANES)};
}
HELPER void put(float *point, complex_lanes v) {
    store(point, v.re);
    store(point + LANES, v.im);
}
HELPER complex_lanes plus(complex_lanes a, complex_lanes b) {
    return (complex_lanes){add(a.re, b.re), add(a.im, b.im)};
}
HELPER complex_lanes minus(complex_lanes a, complex_lanes b) {
    return (complex_lanes){subtract(a.re, b.re), subtract(a.im, b.im)};
}
HELPER complex_lanes times_i(complex_lanes a, complex_lanes b) { /* a + i b */
    return (complex_lanes){subtract(a.re, b.im), add(a.im, b.re)};
}
HELPER complex_lanes less_i(complex_lanes a, complex_lanes b) { /* a - i b */
    return (complex_lanes){add(a.re, b.im), subtract(a.im, b.re)};
}
HELPER complex_lanes times(complex_lanes a, complex_lanes b) {
    return (complex_lanes){negative_multiply_add(a.im, b.im, multiply(a.re, b.re)),
                           multiply_add(a.im, b.re, multiply(a.re, b.im))};
}
HELPER complex_lanes times_conjugate(complex_lanes a, complex_lanes b) {
    return (complex_lanes){multiply_add(a.im, b.im, multiply(a.re, b.re)),
                           negative_multiply_add(a.re, b.im, multiply(a.im, b.re))};
}
HELPER complex_lanes root(const float *r) {
    return (complex_lanes){splat(r[0]), splat(r[1])};
}

HELPER void down_4(float *x, int64_t q, const float *roots) {
    const complex_lanes r1 = root(roots), r2 = root(roots + 2), r3 = root(roots + 4);
    const int64_t far = q * POINT;
    for (int64_t j = 0; j < far; j += POINT)
        for (int h = 0; h < LANES; h += W) {
            float *p = x + j + h;
            const complex_lanes a0 = get(p), a1 = times(get(p + far), r1), a2 = times(get(p + 2 * far), r2),
                                a3 = times(get(p + 3 * far), r3);
            const complex_lanes even = plus(a0, a2), odd = minus(a0, a2), sum = plus(a1, a3), rest = minus(a1, a3);
            put(p, plus(even, sum));
            put(p + far, minus(even, sum));
            put(p + 2 * far, times_i(odd, rest));
            put(p + 3 * far, less_i(odd, rest));
        }
}

HELPER void up_4(float *x, int64_t q, const float *roots) {
    const complex_lanes r1 = root(roots), r2 = root(roots + 2), r3 = root(roots + 4);
    const int64_t far = q * POINT;
    for (int64_t j = 0; j < far; j += POINT)
        for (int h = 0; h < LANES; h += W) {
            float *p = x + j + h;
            const complex_lanes b0 = get(p), b1 = get(p + far), b2 = get(p + 2 * far), b3 = get(p + 3 * far);
            const complex_lanes even = plus(b0, b1), sum = minus(b0, b1), odd = plus(b2, b3), rest = minus(b2, b3);
            put(p, plus(even, odd));
            put(p + far, times_conjugate(less_i(sum, rest), r1));
            put(p + 2 * far, times_conjugate(minus(even, odd), r2));
            put(p + 3 * far, times_conjugate(times_i(sum, rest), r3));
        }
}

static void down_2(float *x, int64_t q, const float *roots) {
    const complex_lanes r = root(roots);
    const int64_t far = q * POINT;
    for (int64_t j = 0; j < far; j += POINT)
        for (int h = 0; h < LANES; h += W) {
            const complex_lanes a = get(x + j + h), b = times(get(x + j + h + far), r);
            put(x + j + h, plus(a, b));
            put(x + j + h + far, minus(a, b));
        }
}

static void up_2(float *x, int64_t q, const float *roots) {
    const complex_lanes r = root(roots);
    const int64_t far = q * POINT;
    for (int64_t j = 0; j < far; j += POINT)
        for (int h = 0; h < LANES; h += W) {
            const complex_lanes a = get(x + j + h), b = get(x + j + h + far);
            put(x + j + h, plus(a, b));
            put(x + j + h + far, times_conjugate(minus(a, b), r));
        }
}

static void down_inner(const ln_fft *fft, float *x, int level, int64_t node, int levels) {
    for (int l = 0; l < levels; l += 2) {
        const int64_t q = (int64_t)1 << (levels - l - 2);
        const float *roots = fft->roots[level + l] + (node << l) * 6;
        if (q == 1)
            for (int64_t b = 0; b < (int64_t)1 << l; b++) down_4(x + b * 4 * POINT, 1, roots + 6 * b);
        else
            for (int64_t b = 0; b < (int64_t)1 << l; b++) down_4(x + b * 4 * q * POINT, q, roots + 6 * b);
    }
}

static void up_inner(const ln_fft *fft, float *x, int level, int64_t node, int levels) {
    for (int l = levels - 2; l >= 0; l -= 2) {
        const int64_t q = (int64_t)1 << (levels - l - 2);
        const float *roots = fft->roots[level + l] + (node << l) * 6;
        if (q == 1)
            for (int64_t b = 0; b < (int64_t)1 << l; b++) up_4(x + b * 4 * POINT, 1, roots + 6 * b);
        else
            for (int64_t b = 0; b < (int64_t)1 << l; b++) up_4(x + b * 4 * q * POINT, q, roots + 6 * b);
    }
}

static void down(const ln_fft *fft, float *x, int level, int64_t node, int levels) {
    if (levels & 1) {
        const int64_t q = (int64_t)1 << (levels - 1);
        down_2(x, q, fft->roots[level] + 2 * node);
        down(fft, x, level + 1, 2 * node, levels - 1);
        down(fft, x + q * POINT, level + 1, 2 * node + 1, levels - 1);
    } else if (levels <= INNER) {
        down_inner(fft, x, level, node, levels);
    } else {
        const int64_t q = (int64_t)1 << (levels - 2);
        down_4(x, q, fft->roots[level] + 6 * node);
        for (int64_t b = 0; b < 4; b++) down(fft, x + b * q * POINT, level + 2, 4 * node + b, levels - 2);
    }
}

static void up(const ln_fft *fft, float *x, int level, int64_t node, int levels) {
    if (levels & 1) {
        const int64_t q = (int64_t)1 << (levels - 1);
        up(fft, x, level + 1, 2 * node, levels - 1);
        up(fft, x + q * POINT, level + 1, 2 * node + 1, levels - 1);
        up_2(x, q, fft->roots[level] + 2 * node);
    } else if (levels <= INNER) {
        up_inner(fft, x, level, node, levels);
    } else {
        const int64_t q = (int64_t)1 << (levels - 2);
        for (int64_t b = 0; b < 4; b++) up(fft, x + b * q * POINT, level + 2, 4 * node + b, levels - 2);
        up_4(x, q, fft->roots[level] + 6 * node);
    }
}

static void multiply_points(float *x, const float *y, int64_t n) {
    for (int64_t j = 0; j < n * POINT; j += POINT)
        for (int h = 0; h < LANES; h += W) put(x + j + h, times(get(x + j + h), get(y + j + h)));
}

static void multiply_conjugate(float *x, const float *y, int64_t n) {
    for (int64_t j = 0; j < n * POINT; j += POINT)
        for (int h = 0; h < LANES; h += W) put(x + j + h, times_conjugate(get(x + j + h), get(y + j + h)));
}

static void correlate(float *sum, const float *x, const float *y, int64_t n) {
    for (int64_t j = 0; j < n * POINT; j += POINT)
        for (int h = 0; h < LANES; h += W)
            put(sum + j + h, plus(get(sum + j + h), times_conjugate(get(x + j + h), get(y + j + h))));
}

enum {
    TOGETHER = 4, /* tokens whose sums are in registers */
    TAPS = 256    /* summed before they are added to y: errors of long sums stay small */
};

static void slide_part(float *y, const float *x, int64_t x_stride, const float *filter, int64_t filter_stride,
                       int64_t tokens, int64_t taps) {
    for (int h = 0; h < LANES; h += W) {
        int64_t t = 0;
        for (; t + TOGETHER <= tokens; t += TOGETHER) {
            const float *at = x + t * x_stride + h;
            lanes sum[TOGETHER];
            for (int i = 0; i < TOGETHER; i++) sum[i] = splat(0);
            for (int64_t j = 0; j < taps; j++) {
                const lanes f = load(filter + j * filter_stride + h);
                for (int i = 0; i < TOGETHER; i++) sum[i] = multiply_add(f, load(at + (i - j) * x_stride), sum[i]);
            }
            for (int i = 0; i < TOGETHER; i++) {
                float *to = y + (t + i) * LANES + h;
                store(to, add(load(to), sum[i]));
            }
        }
        for (; t < tokens; t++) {
            const float *at = x + t * x_stride + h;
            lanes sum = splat(0), other = splat(0); /* two chains */
            int64_t j = 0;
            for (; j + 2 <= taps; j += 2) {
                sum = multiply_add(load(filter + j * filter_stride + h), load(at - j * x_stride), sum);
                other = multiply_add(load(filter + (j + 1) * filter_stride + h), load(at - (j + 1) * x_stride), other);
            }
            if (j < taps) sum = multiply_add(load(filter + j * filter_stride + h), load(at - j * x_stride), sum);
            store(y + t * LANES + h, add(load(y + t * LANES + h), add(sum, other)));
        }
    }
}

static void slide(float *y, const float *x, int64_t x_stride, const float *filter, int64_t filter_stride,
                  int64_t tokens, int64_t taps) {
    for (int64_t j = 0; j < taps; j += TAPS)
        slide_part(y, x - j * x_stride, x_stride, filter + j * filter_stride, filter_stride, tokens,
                   taps - j < TAPS ? taps - j : TAPS);
}

LN_FFT_SET {
    *kernels = (ln_fft_kernels){.name = LN_FFT_NAME,
                                .down = down,
                                .up = up,
                                .multiply = multiply_points,
                                .multiply_conjugate = multiply_conjugate,
                                .correlate = correlate,
                                .slide = slide};
}
