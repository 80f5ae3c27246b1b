/* The bodies of attention's kernels, written once and compiled for each instruction set by including this file
 * (attend.c, x86/attend_*.c, arm/attend_neon.c) after defining
 *
 *   W, VECTORS, ROWS         lanes of a vector; vectors and rows (at most ROWS_MOST) of a register tile
 *   lanes                    a vector of W floats
 *   load (x, n)              n <= W lanes as floats, the others 0 where n can be less than W at all (8 of 16);
 *                            also load_f16, load_bf16, load_q8
 *   load_bits (x, up, mask)  W dwords as floats, each shifted right by up
 *   store (y, v, n)
 *   splat, add, subtract, multiply, divide
 *   multiply_add (a, b, c)   a b + c
 *   larger, smaller (a, b)   b where one is NaN
 *   power_of_two (x)         2^x for x <= 127, 0 below -127, by kernel/exponential.h
 *   largest (v)              over the lanes
 *   any_above (a, b)         a > b in some lane
 *   keep (v, bits)           0 in the lanes whose bit is 0
 *   transpose_lanes (x[W])   in place
 *   LN_ATTEND_NAME, LN_ATTEND_SET
 *
 * Relative error of 2^x: below 2e-7 (degree 5). */
#include <math.h>
#include <string.h>

#include "kernel/attend.h"

/* Under sanitizers the loops stay loops: unrolled, a file would take minutes to compile. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(undefined_behavior_sanitizer) || __has_feature(thread_sanitizer)
#define ROLLED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ROLLED 1
#endif
#if defined(ROLLED)
#define INLINE static
#define UNROLL
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* ---- softmax ---- */

/* tanh(x) = 1 - 2 / (e^2x + 1) */
INLINE lanes hyperbolic_tangent(lanes x) {
    const lanes y = smaller(splat(120), larger(splat(-120), multiply(x, splat(2.88539008f))));
    return subtract(splat(1), divide(splat(2), add(power_of_two(y), splat(1))));
}

static void cap_scores(float *scores, int64_t n, float cap) {
    for (int64_t i = 0; i < n; i += W)
        store(scores + i, multiply(splat(cap), hyperbolic_tangent(load(scores + i, W))), W);
}

/* 0 times a number is 0, times anything else NaN. */
static bool all_finite(const float *x, int64_t n) {
    lanes sum = splat(0);
    for (int64_t i = 0; i < n; i += W) sum = multiply_add(load(x + i, n - i < W ? (int)(n - i) : W), splat(0), sum);
    float part[W];
    store(part, sum, W);
    for (int i = 0; i < W; i++)
        if (part[i] != 0) return false;
    return true;
}

static float softmax(float *scores, int64_t n, float *maximum, float *sum) {
    for (int64_t i = n; i % LN_ATTEND_PAD; i++) scores[i] = -INFINITY;
    lanes most = splat(-INFINITY);
    for (int64_t i = 0; i < n; i += W) most = larger(load(scores + i, W), most);
    const float before = *maximum;
    float factor = 1;
    if (any_above(most, splat(before + LN_ATTEND_SLACK))) {
        float part[W];
        *maximum = largest(most);
        store(part, power_of_two(splat(before - *maximum)), W);
        factor = part[0];
    }
    const lanes shift = splat(*maximum == -INFINITY ? 0 : *maximum);
    lanes added = splat(0);
    for (int64_t i = 0; i < n; i += W) {
        const lanes weight = power_of_two(subtract(load(scores + i, W), shift));
        added = add(added, weight);
        store(scores + i, weight, W);
    }
    store(sum, multiply_add(load(sum, W), splat(factor), added), W);
    return factor;
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

/* Rows of B of one part, columns c to c + vectors W - 1. */
typedef struct b_rows {
    const unsigned char *codes, *ahead;
    const uint16_t *scales;
    bool channels;
    int64_t first, columns, c;
    int vectors, n; /* n: lanes of a vector that are used */
} b_rows;

INLINE b_rows rows_of(const ln_attend_operand *b, int64_t part, int64_t c, int vectors, int n) {
    const ln_attend_part *p = &b->parts[part];
    return (b_rows){p->codes, p->ahead, (const uint16_t *)(const void *)p->scales, p->channels, p->first, b->columns, c,
                    vectors,  n};
}

INLINE bool in_blocks(linnet_type precision) {
    return precision == LINNET_Q8_0 || precision == LINNET_Q4_0;
}

/* Codes of row k as floats, without their scale. */
INLINE void load_row(lanes *x, linnet_type precision, const b_rows *b, int64_t k) {
    if (precision == LINNET_Q4_0) {
        const int64_t row = k + b->first;
        const unsigned char *bytes = b->codes + (row / 8 * 4 + row % 4) * b->columns + b->c;
        UNROLL for (int v = 0; v < b->vectors; v++) x[v] = load_q4(bytes + v * W, row & 4, b->n);
        return;
    }
    const int bits = ln_low_bits(precision), low = ln_plane_bits(bits);
    if (bits) {
        const int64_t row = (k + b->first) % LN_LOW_SQUARE;
        const unsigned char *square = b->codes + (k + b->first) / LN_LOW_SQUARE * LN_LOW_SECTION * bits + 4 * b->c;
        const int up = (int)(row % 4) * 8 + ln_code_shift(bits, row), top = (int)(row % 4 * 8 + row / 4);
        UNROLL for (int v = 0; v < b->vectors; v++) {
            x[v] = load_bits(square + ln_code_section(bits, row) + 4 * v * W, up, (1 << low) - 1);
            if (bits > low)
                x[v] = multiply_add(load_bits(square + ln_top_section(bits) + 4 * v * W, top, 1),
                                    splat((float)(1 << low)), x[v]);
        }
        return;
    }
    UNROLL for (int v = 0; v < b->vectors; v++) x[v] =
        load_code(precision, b->codes, k * b->columns + b->c + v * W, b->n);
}

INLINE void prefetch_row(linnet_type precision, const b_rows *b, int64_t k) {
    enum { LINE = 64 };
    const int64_t element = precision == LINNET_F32 ? 4 : in_blocks(precision) ? 1 : 2;
    const int64_t row = precision == LINNET_Q4_0 ? k / 8 * 4 + k % 4 : k;
    const uintptr_t at = (uintptr_t)b->ahead + (uintptr_t)((row * b->columns + b->c) * element);
    UNROLL for (int64_t i = 0; i < b->vectors * W * element; i += LINE)
        __builtin_prefetch((const void *)(at + (uintptr_t)i));
}

INLINE void load_scales(lanes *scale, const b_rows *b, int64_t k) {
    UNROLL for (int v = 0; v < b->vectors; v++) scale[v] =
        load_f16(b->scales + k / LN_PAGE_TOKENS * LN_PAGE_TOKENS + b->c + v * W, b->n);
}

/* Steps and minima of a square of low bits: of its columns, or of its rows from `first` on. */
typedef struct square_steps {
    float step[LN_LOW_SQUARE], minimum[LN_LOW_SQUARE];
} square_steps;

INLINE void load_steps(square_steps *to, linnet_type precision, const b_rows *b, int64_t k, int64_t count) {
    const int bits = ln_low_bits(precision);
    uint16_t step[LN_LOW_SQUARE] = {0}, minimum[LN_LOW_SQUARE] = {0};
    if (b->channels) {
        const ln_channel_steps *steps = (const ln_channel_steps *)(const void *)b->scales + k / LN_LOW_SQUARE;
        for (int i = 0; i < LN_LOW_SQUARE; i++) step[i] = (uint16_t)(steps->step[i] << 7);
        memcpy(minimum, steps->minimum, sizeof minimum);
    } else {
        uint16_t words[LN_LOW_SQUARE] = {0};
        memcpy(words, b->scales + k / LN_LOW_SQUARE * LN_LOW_SQUARE, (size_t)count * sizeof *words);
        for (int i = 0; i < LN_LOW_SQUARE; i++) step[i] = (uint16_t)(words[i] >> 6 << 5);
        for (int i = 0; i < LN_LOW_SQUARE; i++) to->minimum[i] = (float)(words[i] & 63) * ln_zero_unit(bits);
    }
    for (int i = 0; i < LN_LOW_SQUARE; i += W) {
        const lanes s = load_f16(step + i, W);
        store(to->step + i, s, W);
        if (b->channels)
            store(to->minimum + i, load_f16(minimum + i, W), W);
        else
            store(to->minimum + i, subtract(splat(0), multiply(s, load(to->minimum + i, W))), W);
    }
}

/* Row k of a square, in which steps are those of its row j or of its columns. */
INLINE void load_low_row(lanes *x, linnet_type precision, const b_rows *b, const square_steps *s, int64_t k, int64_t j,
                         bool by_row) {
    load_row(x, precision, b, k);
    UNROLL for (int v = 0; v < b->vectors; v++) x[v] =
        by_row ? multiply_add(x[v], splat(s->step[j]), splat(s->minimum[j]))
               : multiply_add(x[v], load(s->step + b->c + v * W, W), load(s->minimum + b->c + v * W, W));
}

/* scaled [rows][LN_PAGE_TOKENS] = A, each column times the scale of that row of B. */
INLINE void scale_weights(float *scaled, const float *a, int rows, const uint16_t *scales, int64_t depth) {
    uint16_t whole[LN_PAGE_TOKENS] = {0};
    if (depth % W) {
        memcpy(whole, scales, (size_t)depth * sizeof *whole);
        scales = whole;
    }
    for (int64_t j = 0; j < depth; j += W) {
        const lanes scale = load_f16(scales + j, W);
        for (int r = 0; r < rows; r++)
            store(scaled + r * LN_PAGE_TOKENS + j, multiply(load(a + r * LN_ATTEND_STRIDE + j, W), scale), W);
    }
}

enum { ROWS_MOST = 12 };
typedef lanes sums[ROWS_MOST][VECTORS];

/* sum += A's columns 0 .. depth - 1 times rows k .. k + depth - 1 of B. few: two sums in turn, because one would wait
 * for its own last addition, and fetching ahead. */
INLINE void accumulate(sums sum, linnet_type precision, const b_rows *b, int64_t k, int64_t depth, const float *a,
                       int64_t a_stride, int rows, const lanes *scale, bool few) {
    const int turns = few ? 2 : 1;
    lanes x[VECTORS];
    sums other;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < b->vectors; v++) other[r][v] = splat(0);
    }
    for (int64_t j = 0; j < depth; j += turns) {
        UNROLL for (int turn = 0; turn < turns; turn++) {
            if (turn > 0 && j + turn >= depth) break;
            load_row(x, precision, b, k + j + turn);
            if (few) prefetch_row(precision, b, k + j + turn);
            if (scale) {
                UNROLL for (int v = 0; v < b->vectors; v++) x[v] = multiply(x[v], scale[v]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                const lanes factor = splat(a[r * a_stride + j + turn]);
                UNROLL for (int v = 0; v < b->vectors; v++) {
                    if (turn)
                        other[r][v] = multiply_add(factor, x[v], other[r][v]);
                    else
                        sum[r][v] = multiply_add(factor, x[v], sum[r][v]);
                }
            }
        }
    }
    if (turns == 1) return;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < b->vectors; v++) sum[r][v] = add(sum[r][v], other[r][v]);
    }
}

/* One part in blocks: keys have a scale for each column and 32 rows, values one for each row. */
INLINE void accumulate_blocks(sums sum, linnet_type precision, const b_rows *b, int64_t depth, const float *a, int rows,
                              bool values) {
    if (values) {
        float scaled[ROWS_MOST * LN_PAGE_TOKENS];
        scale_weights(scaled, a, rows, b->scales, depth);
        accumulate(sum, precision, b, 0, depth, scaled, LN_PAGE_TOKENS, rows, NULL, true);
        return;
    }
    for (int64_t k = 0; k < depth; k += LN_PAGE_TOKENS) {
        const int64_t here = depth - k < LN_PAGE_TOKENS ? depth - k : LN_PAGE_TOKENS;
        lanes scale[VECTORS];
        load_scales(scale, b, k);
        if (3 * rows > ROWS) {
            accumulate(sum, precision, b, k, here, a + k, LN_ATTEND_STRIDE, rows, scale, true);
            continue;
        }
        sums part;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < b->vectors; v++) part[r][v] = splat(0);
        }
        accumulate(part, precision, b, k, here, a + k, LN_ATTEND_STRIDE, rows, NULL, true);
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < b->vectors; v++) sum[r][v] = multiply_add(part[r][v], scale[v], sum[r][v]);
        }
    }
}

/* The same of low bits. */
INLINE void accumulate_low(sums sum, linnet_type precision, const b_rows *b, int64_t depth, const float *a, int rows,
                           bool values) {
    const bool by_row = values || b->channels;
    lanes x[VECTORS];
    for (int64_t k = 0; k < depth; k += LN_LOW_SQUARE) {
        const int64_t here = depth - k < LN_LOW_SQUARE ? depth - k : LN_LOW_SQUARE;
        square_steps steps;
        load_steps(&steps, precision, b, k, values ? here : LN_LOW_SQUARE);
        for (int64_t j = 0; j < here; j++) {
            load_low_row(x, precision, b, &steps, k + j, j, by_row);
            UNROLL for (int r = 0; r < rows; r++) {
                const lanes factor = splat(a[r * LN_ATTEND_STRIDE + k + j]);
                UNROLL for (int v = 0; v < b->vectors; v++) sum[r][v] = multiply_add(factor, x[v], sum[r][v]);
            }
        }
    }
}

/* C [rows, vectors W] (+)= A B for the columns c and up, rows x vectors sums in registers. */
INLINE void tile(linnet_type precision, const ln_attend_operand *b, const float *a, float *to, bool more, int64_t c,
                 int rows, int vectors, int n, bool values, bool few) {
    sums sum;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) sum[r][v] =
            more ? load(to + r * LN_ATTEND_STRIDE + v * W, n) : splat(0);
    }
    for (int64_t p = 0; p < b->count; p++) {
        const b_rows part = rows_of(b, p, c, vectors, n);
        if (ln_low_bits(precision))
            accumulate_low(sum, precision, &part, b->depth, a, rows, values);
        else if (in_blocks(precision))
            accumulate_blocks(sum, precision, &part, b->depth, a, rows, values);
        else
            accumulate(sum, precision, &part, 0, b->depth, a, LN_ATTEND_STRIDE, rows, NULL, few);
        a += b->depth;
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) store(to + r * LN_ATTEND_STRIDE + v * W, sum[r][v], n);
    }
}

/* All columns for a fixed number of rows: whole register tiles, then single vectors. */
INLINE void columns(linnet_type precision, const ln_attend_operand *b, const float *a, float *to, bool more, int rows,
                    bool values, bool few) {
    int64_t c = 0;
    for (; c + VECTORS * W <= b->columns; c += VECTORS * W)
        tile(precision, b, a, to + c, more, c, rows, VECTORS, W, values, few);
    for (; c < b->columns; c += W)
        tile(precision, b, a, to + c, more, c, rows, 1, b->columns - c < W ? (int)(b->columns - c) : W, values, few);
}

/* All rows, in groups as even as can be. */
INLINE void product(linnet_type precision, const ln_attend_operand *b, const float *a, int64_t rows, float *to,
                    bool more, bool values, bool few) {
    const int most = few ? ROWS / 2 : ROWS;
#define CASE(n)                                                                            \
    case n:                                                                                \
        if (n <= most) columns(precision, b, a, to, more, n <= most ? n : 1, values, few); \
        break;
    while (rows > 0) {
        const int64_t groups = (rows + most - 1) / most, done = (rows + groups - 1) / groups;
#if defined(ROLLED)
        columns(precision, b, a, to, more, (int)done, values, few);
#else
        switch (done) {
            CASE(1)
            CASE(2)
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
            CASE(7)
            CASE(8)
            CASE(9)
            CASE(10)
            CASE(11)
            CASE(12)
        }
#endif
        a += done * LN_ATTEND_STRIDE;
        to += done * LN_ATTEND_STRIDE;
        rows -= done;
    }
#undef CASE
}

INLINE void decode(linnet_type precision, const ln_attend_operand *b, float *to, bool values) {
    for (int64_t p = 0; p < b->count; p++) {
        for (int64_t c = 0; c < b->columns; c += W) {
            const b_rows part = rows_of(b, p, c, 1, b->columns - c < W ? (int)(b->columns - c) : W);
            lanes scale = splat(1);
            square_steps steps;
            for (int64_t k = 0; k < b->depth; k++) {
                lanes x[VECTORS];
                if (ln_low_bits(precision)) {
                    const int64_t left = b->depth - k;
                    if (k % LN_LOW_SQUARE == 0)
                        load_steps(&steps, precision, &part, k, values && left < LN_LOW_SQUARE ? left : LN_LOW_SQUARE);
                    load_low_row(x, precision, &part, &steps, k, k % LN_LOW_SQUARE, values || part.channels);
                    store(to + k * b->columns + c, x[0], part.n);
                    continue;
                }
                load_row(x, precision, &part, k);
                if (in_blocks(precision)) {
                    if (values)
                        scale = splat(ln_f16_float(part.scales[k]));
                    else if (k % LN_PAGE_TOKENS == 0)
                        load_scales(&scale, &part, k);
                    x[0] = multiply(x[0], scale);
                }
                store(to + k * b->columns + c, x[0], part.n);
            }
        }
        to += b->depth * b->columns;
    }
}

#define PRECISION(name, type)                                                                                   \
    static void product_##name(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool more) { \
        if (b->values && (in_blocks(type) || ln_low_bits(type)))                                                \
            product(type, b, a, rows, c, more, true, true);                                                     \
        else                                                                                                    \
            product(type, b, a, rows, c, more, false, true);                                                    \
    }                                                                                                           \
    static void decode_##name(const ln_attend_operand *b, float *values) {                                      \
        decode(type, b, values, b->values);                                                                     \
    }

PRECISION(f32, LINNET_F32)
PRECISION(f16, LINNET_F16)
PRECISION(bf16, LINNET_BF16)
PRECISION(q8_0, LINNET_Q8_0)
PRECISION(q4_0, LINNET_Q4_0)
PRECISION(q2, LINNET_Q2)
PRECISION(q3, LINNET_Q3)
PRECISION(q4, LINNET_Q4)
PRECISION(q5, LINNET_Q5)

static void product_many(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool more) {
    product(LINNET_F32, b, a, rows, c, more, false, false);
}

/* ---- gradients ---- */

/* One vector of a row. `factor`: 1 - tanh^2 of the cap. */
INLINE void gradient_lanes(const ln_attend_gradient_tile *t, int64_t at, int64_t c, unsigned bits, bool capped,
                           bool masked) {
    lanes score = multiply(splat(t->factor), load(t->weights + at, W)), slope = splat(1);
    if (capped) {
        const lanes h = hyperbolic_tangent(score);
        score = multiply(splat(t->cap), h);
        slope = subtract(splat(1), multiply(h, h));
    }
    if (t->bias) score = add(score, load(t->bias + at, W));
    /* The rounding of shift alone takes a weight above 1; a wrong shift must not leave what 2^x can take. */
    lanes weight = power_of_two(smaller(splat(127), subtract(score, load(t->shift + c, W))));
    if (masked) weight = keep(weight, bits);
    store(t->weights + at, weight, W);
    if (!t->gradient) return;
    lanes g = multiply(weight, subtract(load(t->gradient + at, W), load(t->delta + c, W)));
    if (masked) g = keep(g, bits);
    if (t->uncapped) store(t->uncapped + at, g, W);
    store(t->gradient + at, capped ? multiply(g, slope) : g, W);
}

INLINE void gradient_rows(const ln_attend_gradient_tile *t, bool capped, bool masked) {
    for (int64_t r = 0; r < t->rows; r++) {
        for (int64_t c = 0; c < t->columns; c += W) {
            const unsigned bits = masked ? t->bits[r * (LN_ATTEND_BLOCK / 32) + c / 32] >> c % 32 : 0;
            gradient_lanes(t, r * LN_ATTEND_STRIDE + c, c, bits, capped, masked);
        }
    }
}

static void gradient(const ln_attend_gradient_tile *tile) {
    if (tile->cap != 0)
        gradient_rows(tile, true, tile->bits != NULL);
    else if (tile->bits)
        gradient_rows(tile, false, true);
    else
        gradient_rows(tile, false, false);
}

static void transpose(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float *to,
                      int64_t to_stride) {
    for (int64_t c = 0; c + W <= columns; c += W) {
        for (int64_t r = 0; r < rows; r += W) {
            lanes x[W];
            UNROLL for (int i = 0; i < W; i++) x[i] = load(from + (r + i) * from_stride + c, W);
            transpose_lanes(x);
            UNROLL for (int i = 0; i < W; i++) store(to + (c + i) * to_stride + r, x[i], W);
        }
    }
    for (int64_t c = columns / W * W; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) to[c * to_stride + r] = from[r * from_stride + c];
}

LN_ATTEND_SET {
    *kernels = (ln_attend_kernels){
        .name = LN_ATTEND_NAME,
        .many = product_many,
        .few = {[LINNET_F32] = product_f32,
                [LINNET_F16] = product_f16,
                [LINNET_BF16] = product_bf16,
                [LINNET_Q8_0] = product_q8_0,
                [LINNET_Q4_0] = product_q4_0,
                [LINNET_Q2] = product_q2,
                [LINNET_Q3] = product_q3,
                [LINNET_Q4] = product_q4,
                [LINNET_Q5] = product_q5},
        .decode = {[LINNET_F32] = decode_f32,
                   [LINNET_F16] = decode_f16,
                   [LINNET_BF16] = decode_bf16,
                   [LINNET_Q8_0] = decode_q8_0,
                   [LINNET_Q4_0] = decode_q4_0,
                   [LINNET_Q2] = decode_q2,
                   [LINNET_Q3] = decode_q3,
                   [LINNET_Q4] = decode_q4,
                   [LINNET_Q5] = decode_q5},
        .cap = cap_scores,
        .finite = all_finite,
        .softmax = softmax,
        .gradient = gradient,
        .transpose = transpose,
    };
}
