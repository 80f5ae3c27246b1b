/* The bodies of attention's kernels, written once and compiled for each instruction set by including this file
 * (attend.c, x86/attend_*.c, arm/attend_neon.c) after defining
 *   W, VECTORS, ROWS     lanes of a vector, vectors and rows of a register tile: ROWS x VECTORS sums stay in registers
 *   lanes                a vector of W floats
 *   load, load_f16, load_bf16, load_q8 (address, n)     n <= W lanes from memory as floats; the others are 0 where
 *   store (address, v, n)                                n can be less than W at all (8 of 16)
 *   splat, add, subtract, multiply, divide, multiply_add (a, b, c) = a b + c
 *   larger (a, b), smaller (a, b)                        b where one is NaN
 *   fraction (x) = x - floor(x), 0 for -inf              of -inf or -127 <= x <= 127
 *   power (p, x) = p 2^floor(x), 0 for x < -127
 *   largest (v), total (v)                               over the lanes, in a fixed tree
 *   LN_ATTEND_NAME, LN_ATTEND_SET
 *
 * 2^x = 2^floor(x) p(x - floor(x)), p of degree 6 with p(0) = 1: relative error of the polynomial 2e-9, of the whole
 * below 1.5e-7. */
#include <math.h>

#include "kernel/attend.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* ---- softmax ---- */

INLINE lanes power_of_two(lanes x) {
    const lanes r = fraction(x);
    lanes p = splat(0x1.c541743fdf800p-13f);
    p = multiply_add(p, r, splat(0x1.46d64d0b73d00p-10f));
    p = multiply_add(p, r, splat(0x1.3d0b9208ee308p-7f));
    p = multiply_add(p, r, splat(0x1.c689113507ae4p-5f));
    p = multiply_add(p, r, splat(0x1.ebfd57971eecap-3f));
    p = multiply_add(p, r, splat(0x1.62e42b5e67e35p-1f));
    p = multiply_add(p, r, splat(1));
    return power(p, x);
}

/* tanh(x) = 1 - 2 / (e^2x + 1) */
INLINE lanes hyperbolic_tangent(lanes x) {
    const lanes y = smaller(splat(120), larger(splat(-120), multiply(x, splat(2.88539008f))));
    return subtract(splat(1), divide(splat(2), add(power_of_two(y), splat(1))));
}

static float softmax(float *scores, int64_t n, float cap, float *maximum, float *sum) {
    if (cap != 0)
        for (int64_t i = 0; i < n; i += W)
            store(scores + i, multiply(splat(cap), hyperbolic_tangent(load(scores + i, W))), W);
    for (int64_t i = n; i % LN_ATTEND_PAD; i++) scores[i] = -INFINITY;
    lanes most = splat(*maximum);
    for (int64_t i = 0; i < n; i += W) most = larger(load(scores + i, W), most);
    const float before = *maximum, after = largest(most), shift = after == -INFINITY ? 0 : after;
    lanes added = splat(0);
    for (int64_t i = 0; i < n; i += W) {
        const lanes weight = power_of_two(subtract(load(scores + i, W), splat(shift)));
        added = add(added, weight);
        store(scores + i, weight, W);
    }
    float part[W];
    store(part, power_of_two(splat(before - shift)), W);
    *maximum = after;
    *sum = *sum * part[0] + total(added);
    return part[0];
}

/* ---- products ---- */

INLINE lanes load_code(linnet_type precision, const unsigned char *codes, int64_t i, int n) {
    switch (precision) {
    case LINNET_F16:
        return load_f16((const uint16_t *)(const void *)codes + i, n);
    case LINNET_BF16:
        return load_bf16((const uint16_t *)(const void *)codes + i, n);
    case LINNET_Q8_0:
        return load_q8((const int8_t *)codes + i, n);
    default:
        return load((const float *)(const void *)codes + i, n);
    }
}

/* The scales of up to 32 rows of B, from row k on: those of the columns c to c + vectors W - 1, or those of the rows.
 */
typedef struct b_scales {
    lanes column[VECTORS];
    float row[LN_PAGE_TOKENS];
} b_scales;

INLINE void load_scales(b_scales *s, const ln_attend_part *part, int64_t k, int64_t depth, int64_t c, int vectors,
                        int n, bool values) {
    const uint16_t *from = (const uint16_t *)(const void *)part->scales;
    for (int64_t i = 0; values && i < depth; i++) s->row[i] = ln_f16_float(from[k + i]);
    UNROLL for (int v = 0; v < vectors; v++) s->column[v] = values ? splat(0) : load_f16(from + k + c + v * W, n);
}

/* Row k of B (k0 + j of the part), columns c and up, as floats. */
INLINE void load_row(lanes *x, linnet_type precision, const unsigned char *codes, int64_t index, int64_t j,
                     const b_scales *s, int vectors, int n, bool values) {
    UNROLL for (int v = 0; v < vectors; v++) {
        x[v] = load_code(precision, codes, index + v * W, n);
        if (precision == LINNET_Q8_0) x[v] = multiply(x[v], values ? splat(s->row[j]) : s->column[v]);
    }
}

/* C [rows, vectors W] (+)= A B for the columns c and up, rows x vectors sums in registers. */
INLINE void tile(linnet_type precision, const ln_attend_operand *b, const float *a, float *to, bool sum, int64_t c,
                 int rows, int vectors, int n, bool values) {
    lanes result[ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) result[r][v] =
            sum ? load(to + r * LN_ATTEND_STRIDE + v * W, n) : splat(0);
    }
    const int64_t step = precision == LINNET_Q8_0 ? LN_PAGE_TOKENS : b->depth;
    for (int64_t p = 0; p < b->count; p++) {
        for (int64_t k = 0; k < b->depth; k += step) {
            const int64_t depth = b->depth - k < step ? b->depth - k : step;
            b_scales s;
            if (precision == LINNET_Q8_0) load_scales(&s, &b->parts[p], k, depth, c, vectors, n, values);
            for (int64_t j = 0; j < depth; j++) {
                lanes x[VECTORS];
                load_row(x, precision, b->parts[p].codes, (k + j) * b->columns + c, j, &s, vectors, n, values);
                UNROLL for (int r = 0; r < rows; r++) {
                    const lanes factor = splat(a[r * LN_ATTEND_STRIDE + j]);
                    UNROLL for (int v = 0; v < vectors; v++) result[r][v] = multiply_add(factor, x[v], result[r][v]);
                }
            }
            a += depth;
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) store(to + r * LN_ATTEND_STRIDE + v * W, result[r][v], n);
    }
}

/* All columns for a fixed number of rows: whole register tiles, then single vectors. */
INLINE void columns(linnet_type precision, const ln_attend_operand *b, const float *a, float *to, bool sum, int rows,
                    bool values) {
    int64_t c = 0;
    for (; c + VECTORS * W <= b->columns; c += VECTORS * W)
        tile(precision, b, a, to + c, sum, c, rows, VECTORS, W, values);
    for (; c < b->columns; c += W)
        tile(precision, b, a, to + c, sum, c, rows, 1, b->columns - c < W ? (int)(b->columns - c) : W, values);
}

INLINE void product(linnet_type precision, const ln_attend_operand *b, const float *a, int64_t rows, float *to,
                    bool sum, bool values) {
#define CASE(count, size)                                                   \
    if (size <= ROWS && rows >= size) {                                     \
        columns(precision, b, a, to, sum, size <= ROWS ? size : 1, values); \
        count = size;                                                       \
    }
    while (rows > 0) {
        int64_t done = 0;
        CASE(done, 12)
        else CASE(done, 8) else CASE(done, 7) else CASE(done, 6) else CASE(done, 5) else CASE(done, 4) else CASE(
            done, 3) else CASE(done, 2) else CASE(done, 1) a += done * LN_ATTEND_STRIDE;
        to += done * LN_ATTEND_STRIDE;
        rows -= done;
    }
#undef CASE
}

INLINE void decode(linnet_type precision, const ln_attend_operand *b, float *to, bool values) {
    const int64_t step = precision == LINNET_Q8_0 ? LN_PAGE_TOKENS : b->depth;
    for (int64_t p = 0; p < b->count; p++) {
        for (int64_t k = 0; k < b->depth; k += step) {
            const int64_t depth = b->depth - k < step ? b->depth - k : step;
            for (int64_t c = 0; c < b->columns; c += W) {
                const int n = b->columns - c < W ? (int)(b->columns - c) : W;
                b_scales s;
                if (precision == LINNET_Q8_0) load_scales(&s, &b->parts[p], k, depth, c, 1, n, values);
                for (int64_t j = 0; j < depth; j++) {
                    lanes x[VECTORS];
                    load_row(x, precision, b->parts[p].codes, (k + j) * b->columns + c, j, &s, 1, n, values);
                    store(to + j * b->columns + c, x[0], n);
                }
            }
            to += depth * b->columns;
        }
    }
}

#define PRECISION(name, type)                                                                                  \
    static void product_##name(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool sum) { \
        if (type == LINNET_Q8_0 && b->values)                                                                  \
            product(type, b, a, rows, c, sum, true);                                                           \
        else                                                                                                   \
            product(type, b, a, rows, c, sum, false);                                                          \
    }                                                                                                          \
    static void decode_##name(const ln_attend_operand *b, float *values) {                                     \
        decode(type, b, values, b->values);                                                                    \
    }

PRECISION(f32, LINNET_F32)
PRECISION(f16, LINNET_F16)
PRECISION(bf16, LINNET_BF16)
PRECISION(q8_0, LINNET_Q8_0)

LN_ATTEND_SET {
    *kernels = (ln_attend_kernels){
        .name = LN_ATTEND_NAME,
        .product = {[LINNET_F32] = product_f32,
                    [LINNET_F16] = product_f16,
                    [LINNET_BF16] = product_bf16,
                    [LINNET_Q8_0] = product_q8_0},
        .decode = {[LINNET_F32] = decode_f32,
                   [LINNET_F16] = decode_f16,
                   [LINNET_BF16] = decode_bf16,
                   [LINNET_Q8_0] = decode_q8_0},
        .softmax = softmax,
    };
}
