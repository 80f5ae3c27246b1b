/* The bodies of the softmax kernels, written once and compiled for each instruction set by including this file
 * (softmax.c, x86/softmax_*.c) after defining W, lanes                                  a vector of W floats load,
 * store, stream (address, v), after_streams ()        stream: past the caches, to a multiple of the vector's size
 *   load_some (x, n, fill), store_some (y, v, n)              n < W lanes
 *   splat, add, subtract, multiply, multiply_add (a, b, c) = a b + c
 *   larger (a, b)                             b where one is NaN
 *   all_within (x, limit)                     VECTORS vectors: all x <= limit; false with a NaN
 *   keep_above (v, x, limit)                  v where x > limit, else 0
 *   reference_of (e), power (x, reference)    e^x 2^-e for -125 <= round(x log2 e) - e <= 126; anything outside, NaN
 * too LN_SOFTMAX_NAME, LN_SOFTMAX_SET
 *
 * e^x = m 2^n with n = round(x log2 e) and m = p(x log2 e - n), p of degree 5. A sum of such pairs has one exponent e,
 * and its terms are m 2^(n - e); only where a term would exceed 2^HEADROOM, e becomes that term's n and the sum is
 * multiplied by 2^(old e - e). Terms below 2^-125 are taken for that: beside a first term of about 1 they are nothing.
 */
#include <math.h>

#include "kernel/exponential.h"
#include "kernel/softmax.h"

enum { PREFETCH = 2048, HEADROOM = 64, LEAST = -125 };

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif

static const float ln_2 = 0.693147181f, log2_e = 1.44269504f;

INLINE float largest(lanes v) {
    float part[W], best;
    store(part, v);
    best = part[0];
    for (int i = 1; i < W; i++) best = part[i] > best ? part[i] : best;
    return best;
}

INLINE float fold(lanes v) {
    float part[W];
    store(part, v);
    for (int width = W / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

INLINE void load_block(lanes *block, const float *x, int64_t left) {
    if (left >= VECTORS * W) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            __builtin_prefetch((const void *)((uintptr_t)(x + v * W) + PREFETCH));
            block[v] = load(x + v * W);
        }
        return;
    }
    for (int v = 0; v < VECTORS; v++, left -= W, x += W)
        block[v] = left >= W ? load(x) : left > 0 ? load_some(x, left, -INFINITY) : splat(-INFINITY);
}

INLINE lanes add_four(const lanes *v) {
    return add(add(v[0], v[1]), add(v[2], v[3]));
}

/* ---- two passes ---- */

typedef struct sum_of_pairs {
    lanes mantissa[VECTORS], reference, low, limit;
    float exponent;
} sum_of_pairs;

/* Makes room for the block; false where it holds what pairs do not reach. */
static bool rebase(sum_of_pairs *sum, const lanes *block) {
    if (!all_within(block, splat(ln_2 * LN_SOFTMAX_REACH))) return false;
    const lanes most = larger(larger(block[0], block[1]), larger(block[2], block[3]));
    const float n = fmaxf(rintf(largest(most) * log2_e), -LN_SOFTMAX_REACH);
    const lanes factor = splat(ldexpf(1, (int)fmaxf(sum->exponent - n, -200)));
    UNROLL for (int v = 0; v < VECTORS; v++) sum->mantissa[v] = multiply(sum->mantissa[v], factor);
    sum->exponent = n;
    sum->reference = reference_of(n);
    sum->low = splat((n + LEAST) * ln_2);
    sum->limit = splat((n + HEADROOM) * ln_2);
    return true;
}

static ln_pair sum(const float *x, int64_t n) {
    sum_of_pairs all = {.exponent = -LN_SOFTMAX_REACH};
    lanes block[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) all.mantissa[v] = splat(0);
    load_block(block, x, n);
    if (!rebase(&all, block)) return (ln_pair){NAN, 0};
    for (int64_t i = 0; i < n; i += VECTORS * W) {
        load_block(block, x + i, n - i);
        if (!all_within(block, all.limit) && !rebase(&all, block)) return (ln_pair){NAN, 0};
        UNROLL for (int v = 0; v < VECTORS; v++) all.mantissa[v] =
            add(all.mantissa[v], power(larger(all.low, block[v]), all.reference));
    }
    return (ln_pair){fold(add_four(all.mantissa)), all.exponent};
}

/* y[i] = EXPRESSION of a = x[i], which knows no other element: where a row is cut changes no bits. */
#define MAP(y, x, n, past, EXPRESSION)                                                     \
    do {                                                                                   \
        const int64_t skew = past ? (int64_t)(-((uintptr_t)y / sizeof(float)) % W) : 0;    \
        int64_t i = 0;                                                                     \
        if (skew > 0) {                                                                    \
            i = skew < n ? skew : n;                                                       \
            const lanes a = load_some(x, i, 0);                                            \
            store_some(y, EXPRESSION, i);                                                  \
        }                                                                                  \
        for (; i + VECTORS * W <= n; i += VECTORS * W) {                                   \
            lanes result[VECTORS];                                                         \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                     \
                __builtin_prefetch((const void *)((uintptr_t)(x + i + v * W) + PREFETCH)); \
                const lanes a = load(x + i + v * W);                                       \
                result[v] = EXPRESSION;                                                    \
            }                                                                              \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                     \
                if (past)                                                                  \
                    stream(y + i + v * W, result[v]);                                      \
                else                                                                       \
                    store(y + i + v * W, result[v]);                                       \
            }                                                                              \
        }                                                                                  \
        for (; i < n; i += W) {                                                            \
            const lanes a = n - i < W ? load_some(x + i, n - i, 0) : load(x + i);          \
            if (n - i < W)                                                                 \
                store_some(y + i, EXPRESSION, n - i);                                      \
            else                                                                           \
                store(y + i, EXPRESSION);                                                  \
        }                                                                                  \
        if (past) after_streams();                                                         \
    } while (0)

static void write(float *y, const float *x, int64_t n, float factor, float exponent, bool past) {
    const lanes f = splat(factor), reference = reference_of(exponent), limit = splat((exponent + LEAST) * ln_2);
    MAP(y, x, n, past, multiply(keep_above(power(a, reference), a, limit), f));
}

static void shift(float *y, const float *x, int64_t n, float high, float low, bool past) {
    const lanes h = splat(high), l = splat(low);
    MAP(y, x, n, past, subtract(subtract(a, h), l));
}

/* ---- three passes ---- */

static float maximum(const float *x, int64_t n) {
    lanes most[VECTORS], block[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) most[v] = splat(-INFINITY);
    for (int64_t i = 0; i < n; i += VECTORS * W) {
        load_block(block, x + i, n - i);
        UNROLL for (int v = 0; v < VECTORS; v++) most[v] = larger(block[v], most[v]);
    }
    return largest(larger(larger(most[0], most[1]), larger(most[2], most[3])));
}

INLINE lanes power_below(lanes x, lanes base) {
    const lanes down = subtract(x, base);
    return keep_above(power(down, reference_of(0)), down, splat(LEAST * ln_2));
}

static float sum_below(const float *x, int64_t n, float base) {
    const lanes b = splat(base);
    lanes all[VECTORS], block[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) all[v] = splat(0);
    for (int64_t i = 0; i < n; i += VECTORS * W) {
        load_block(block, x + i, n - i);
        UNROLL for (int v = 0; v < VECTORS; v++) all[v] = add(all[v], power_below(block[v], b));
    }
    return fold(add_four(all));
}

static void write_below(float *y, const float *x, int64_t n, float base, float factor, bool past) {
    const lanes b = splat(base), f = splat(factor);
    MAP(y, x, n, past, multiply(power_below(a, b), f));
}

static float write_and_sum_below(float *y, const float *x, int64_t n, float base) {
    const lanes b = splat(base);
    lanes all[VECTORS], block[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) all[v] = splat(0);
    for (int64_t i = 0; i < n; i += VECTORS * W) {
        load_block(block, x + i, n - i);
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const int64_t left = n - i - v * W;
            const lanes e = power_below(block[v], b);
            all[v] = add(all[v], e);
            if (left >= W)
                store(y + i + v * W, e);
            else if (left > 0)
                store_some(y + i + v * W, e, left);
        }
    }
    return fold(add_four(all));
}

static void scale(float *y, const float *x, int64_t n, float factor, bool past) {
    const lanes f = splat(factor);
    MAP(y, x, n, past, multiply(a, f));
}

LN_SOFTMAX_SET {
    *kernels = (ln_softmax_kernels){.name = LN_SOFTMAX_NAME,
                                    .sum = sum,
                                    .write = write,
                                    .shift = shift,
                                    .maximum = maximum,
                                    .sum_below = sum_below,
                                    .write_below = write_below,
                                    .write_and_sum_below = write_and_sum_below,
                                    .scale = scale};
}
