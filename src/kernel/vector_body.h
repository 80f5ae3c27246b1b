/* The bodies of the vector kernels, written once with the compiler's 16-lane vectors and compiled for each instruction
 * set by including this file with LN_VECTOR_SET(name) defined (vector.c, x86/vector_*.c). No operation is fused, so
 * each instruction set gives the same bits. */
#include "kernel/vector.h"

#include "kernel/lanes16.h"
#include "number/format.h"

INLINE lanes silu_lanes(lanes x) {
    return x / (splat(1) + exponential_lanes(-x));
}

INLINE lanes gelu_tanh_lanes(lanes x) {
    const lanes inner = splat(0.797884561f) * (x + splat(0.044715f) * x * x * x);
    return splat(0.5f) * x * (splat(1) + tanh_lanes(inner));
}

/* y[i] = EXPRESSION of a = x[i], b = z[i] */
#define MAP(y, x, z, n, EXPRESSION)                                                     \
    do {                                                                                \
        int64_t i = 0;                                                                  \
        for (; i + LANES <= n; i += LANES) {                                            \
            const lanes a = load(x + i), b = load(z + i);                               \
            (void)b;                                                                    \
            store(y + i, EXPRESSION);                                                   \
        }                                                                               \
        if (i < n) {                                                                    \
            const lanes a = load_some(x + i, n - i, 0), b = load_some(z + i, n - i, 0); \
            (void)b;                                                                    \
            store_some(y + i, EXPRESSION, n - i);                                       \
        }                                                                               \
    } while (0)

static void rms_norm(float *y, const float *x, const float *weight, int64_t n, float epsilon) {
    lanes squares = splat(0);
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) squares += load(x + c) * load(x + c);
    if (c < n) squares += load_some(x + c, n - c, 0) * load_some(x + c, n - c, 0);
    const float factor = 1 / sqrtf(sum_lanes(squares) / (float)n + epsilon);
    const lanes f = splat(factor);
    if (weight)
        MAP(y, x, weight, n, a * f * b);
    else
        MAP(y, x, x, n, a * f);
}

static void add(float *y, const float *x, int64_t n) {
    MAP(y, y, x, n, a + b);
}

/* In vectors as wide as registers: wider ones are kept in memory from one term of the sum to the next. */
#if defined(__AVX512F__)
typedef float native __attribute__((vector_size(64), may_alias));
#elif defined(__AVX__)
typedef float native __attribute__((vector_size(32), may_alias));
#else
typedef float native __attribute__((vector_size(16), may_alias));
#endif

static void add_products(float *y, float factor, const float *factors, int64_t rows, const float *x, int64_t stride,
                         int64_t n) {
    enum { WIDTH = sizeof(native) / sizeof(float) };
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        native sum, v;
        memcpy(&v, x + i, sizeof v);
        sum = v * factors[0];
        for (int64_t r = 1; r < rows; r++) {
            memcpy(&v, x + r * stride + i, sizeof v);
            sum += v * factors[r];
        }
        memcpy(&v, y + i, sizeof v);
        v += sum * factor;
        memcpy(y + i, &v, sizeof v);
    }
    for (; i < n; i++) {
        float sum = x[i] * factors[0];
        for (int64_t r = 1; r < rows; r++) sum += x[r * stride + i] * factors[r];
        y[i] += sum * factor;
    }
}

/* Of a row shorter than 2^31, first + i as its lanes: 32 bits hold them where they hold both ends. */
static void add_distance(float *y, float factor, int64_t first, int64_t n) {
    int64_t i = 0;
    const lanes_int ascending = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (first > -INT32_MAX && first + n < INT32_MAX) {
        for (; i + LANES <= n; i += LANES) {
            const lanes_int d = ascending + (int32_t)(first + i), sign = d >> 31;
            store(y + i, load(y + i) + splat(factor) * __builtin_convertvector((d ^ sign) - sign, lanes));
        }
    }
    for (; i < n; i++) y[i] += factor * (float)(first + i < 0 ? -(first + i) : first + i);
}

static void scale(float *y, float factor, int64_t n) {
    const lanes f = splat(factor);
    MAP(y, y, y, n, a * f);
}

static void silu_multiply(float *y, const float *gate, const float *up, int64_t n) {
    MAP(y, gate, up, n, silu_lanes(a) * b);
}

static void gelu_tanh_multiply(float *y, const float *gate, const float *up, int64_t n) {
    MAP(y, gate, up, n, gelu_tanh_lanes(a) * b);
}

static void soft_cap(float *y, float cap, int64_t n) {
    const lanes c = splat(cap);
    MAP(y, y, y, n, c * tanh_lanes(a / c));
}

/* Lanes i and i ^ stride: their sum where the stride's bit of i is 0, else their difference. */
#define EXCHANGE(v, s)                                                                                             \
    __builtin_shufflevector(v, v, 0 ^ (s), 1 ^ (s), 2 ^ (s), 3 ^ (s), 4 ^ (s), 5 ^ (s), 6 ^ (s), 7 ^ (s), 8 ^ (s), \
                            9 ^ (s), 10 ^ (s), 11 ^ (s), 12 ^ (s), 13 ^ (s), 14 ^ (s), 15 ^ (s))
INLINE lanes butterfly(lanes v, lanes exchanged, int stride) {
    lanes_int negative;
    for (int i = 0; i < LANES; i++) negative[i] = i & stride ? (int32_t)0x80000000u : 0;
    return exchanged + (lanes)((lanes_int)v ^ negative);
}

static void hadamard_narrow(float *x, int64_t block) {
    for (int64_t stride = 1; stride < block; stride *= 2)
        for (int64_t i = 0; i < block; i++) {
            if (i & stride) continue;
            const float a = x[i], b = x[i + stride];
            x[i] = a + b;
            x[i + stride] = a - b;
        }
}

static void hadamard(float *x, int64_t n) {
    const int64_t block = n & -n;
    for (int64_t at = 0; at < n; at += block) {
        float *row = x + at;
        if (block < LANES) hadamard_narrow(row, block);
        for (int64_t i = 0; i + LANES <= block; i += LANES) {
            lanes v = load(row + i);
            v = butterfly(v, EXCHANGE(v, 1), 1);
            v = butterfly(v, EXCHANGE(v, 2), 2);
            v = butterfly(v, EXCHANGE(v, 4), 4);
            store(row + i, butterfly(v, EXCHANGE(v, 8), 8));
        }
        for (int64_t stride = LANES; stride < block; stride *= 2)
            for (int64_t i = 0; i < block; i += (i + LANES) & stride ? stride + LANES : LANES) {
                const lanes a = load(row + i), b = load(row + i + stride);
                store(row + i, a + b);
                store(row + i + stride, a - b);
            }
    }
    scale(x, 1 / sqrtf((float)block), n);
}

static void rotate(float *x, const float *cosine, const float *sine, int64_t n, int half) {
    const int64_t pairs = n / 2;
    if (half) {
        for (int64_t i = 0; i < pairs; i++) {
            const float a = x[i], b = x[i + pairs];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + pairs] = b * cosine[i] + a * sine[i];
        }
    } else {
        for (int64_t i = 0; i < pairs; i++) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cosine[i] - b * sine[i];
            x[2 * i + 1] = b * cosine[i] + a * sine[i];
        }
    }
}

typedef uint16_t halves __attribute__((vector_size(32), may_alias));

static void widen(float *y, const uint16_t *x, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        halves v;
        memcpy(&v, x + i, sizeof v);
        store(y + i, (lanes)(__builtin_convertvector(v, lanes_int) << 16));
    }
    for (; i < n; i++) y[i] = ln_bf16_float(x[i]);
}

static float maximum(const float *x, int64_t n) {
    lanes most = splat(-INFINITY);
    for (int64_t i = 0; i < n; i += LANES) {
        const lanes v = n - i >= LANES ? load(x + i) : load_some(x + i, n - i, -INFINITY);
        most = choose((v > most) | (v != v), v, most);
    }
    float part[LANES], best = -INFINITY;
    store(part, most);
    for (int i = 0; i < LANES; i++)
        if (part[i] > best || isnan(part[i])) best = part[i];
    return best;
}

static float exponential(float *y, const float *x, float shift, int64_t n) {
    const lanes s = splat(shift);
    lanes sum = splat(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const lanes e = exponential_lanes(load(x + i) - s);
        sum += e;
        store(y + i, e);
    }
    if (i < n) {
        const lanes e = exponential_lanes(load_some(x + i, n - i, 0) - s);
        store_some(y + i, e, n - i);
        sum += load_some(y + i, n - i, 0);
    }
    return sum_lanes(sum);
}

LN_VECTOR_SET {
    *kernels = (ln_vector_kernels){.name = LN_VECTOR_NAME,
                                   .rms_norm = rms_norm,
                                   .add = add,
                                   .add_products = add_products,
                                   .add_distance = add_distance,
                                   .scale = scale,
                                   .silu_multiply = silu_multiply,
                                   .gelu_tanh_multiply = gelu_tanh_multiply,
                                   .soft_cap = soft_cap,
                                   .rotate = rotate,
                                   .hadamard = hadamard,
                                   .widen = widen,
                                   .maximum = maximum,
                                   .exponential = exponential};
}
