/* Owns: the best step of a low-bit block.
 *
 * A block's range is made narrower in a few steps, which moves error from the many values inside to the few at its
 * ends; from the best of them the least squares of its codes are taken, and their codes again. Steps are tried as they
 * are stored, so what is measured is what is read. */
#include "kernel/low_bits.h"

#include <math.h>
#include <string.h>

#include "kernel/lanes_portable.h"

enum { VECTORS = LN_LOW_SQUARE / W };

/* What a float16 can hold. */
static float clipped(float x) {
    const float most = 65000;
    return x < -most ? -most : x > most ? most : x;
}

typedef struct trial {
    float step, minimum, error;
    uint16_t word; /* by token, or the minimum of a channel */
    uint8_t byte;
} trial;

typedef struct search {
    lanes x[VECTORS];
    int bits;
    bool channel;
    trial best;
} search;

HELPER lanes codes_of(lanes x, float inverse, float minimum, float top) {
    const lanes c = (x - splat(minimum)) * splat(inverse), magic = splat(0x1.8p23f);
    return choose(choose(c > 0, c, splat(0)) < top, choose(c > 0, c, splat(0)), splat(top)) + magic - magic;
}

static float sum_of(lanes v) {
    return v[0] + v[1] + (v[2] + v[3]);
}

static float inverse_of(float step) {
    return step > 0 ? 1 / step : 0;
}

static float error_of(const search *s, float step, float minimum) {
    const float inverse = inverse_of(step), top = (float)((1 << s->bits) - 1);
    lanes sum = splat(0);
    for (int i = 0; i < VECTORS; i++) {
        const lanes off = codes_of(s->x[i], inverse, minimum, top) * splat(step) + splat(minimum) - s->x[i];
        sum += off * off;
    }
    return sum_of(sum);
}

/* The stored step nearest to one, `drop` bits of a float16's mantissa less; not above the largest finite. */
static uint16_t stored_step(float step, int drop) {
    const unsigned half = ln_float_f16(step), unit = 1u << drop, most = 0x7c00u - unit;
    const unsigned rounded = (half + unit / 2) / unit * unit;
    return (uint16_t)(rounded < most ? rounded : most);
}

static void try_range(search *s, float low, float high) {
    const float top = (float)((1 << s->bits) - 1), step = (high - low) / top;
    trial t = {0};
    if (s->channel) {
        const uint16_t half = stored_step(step, 7);
        t.byte = (uint8_t)(half >> 7);
        t.step = ln_channel_step(t.byte);
        t.word = ln_float_f16(low);
        t.minimum = ln_f16_float(t.word);
        if (!(fabsf(t.minimum) <= 65504)) return;
    } else {
        const uint16_t half = stored_step(step, 5);
        t.step = ln_f16_float(half);
        const float zero = t.step > 0 ? -low / t.step / ln_zero_unit(s->bits) : 0;
        const int nearest = (int)((zero > 0 ? zero < 63 ? zero : 63 : 0) + 0.5f);
        t.word = (uint16_t)(half >> 5 << 6 | nearest);
        t.minimum = ln_token_minimum(t.word, s->bits);
    }
    t.error = error_of(s, t.step, t.minimum);
    if (t.error < s->best.error) s->best = t;
}

/* value = minimum + step code by least squares, for the codes of the best. */
static void refine(search *s) {
    const float inverse = inverse_of(s->best.step), top = (float)((1 << s->bits) - 1);
    lanes c1 = splat(0), c2 = splat(0), x1 = splat(0), cx = splat(0);
    for (int i = 0; i < VECTORS; i++) {
        const lanes c = codes_of(s->x[i], inverse, s->best.minimum, top);
        c1 += c;
        c2 += c * c;
        x1 += s->x[i];
        cx += c * s->x[i];
    }
    const float n = LN_LOW_SQUARE, c = sum_of(c1), x = sum_of(x1), spread = n * sum_of(c2) - c * c;
    if (!(spread > 0)) return;
    const float step = (n * sum_of(cx) - c * x) / spread, low = (x - step * c) / n;
    if (step > 0) try_range(s, low, low + step * top);
}

/* Of n values in a range that is finite; those of the block beyond n repeat them. */
static void search_step(search *s, const float *values, int64_t n, float low, float high) {
    static const struct {
        int tries, refinements;
        float narrower;
    } effort[] = {[2] = {10, 3, 0.06f}, [3] = {7, 3, 0.05f}, [4] = {6, 2, 0.035f}, [5] = {4, 2, 0.025f}};
    float whole[LN_LOW_SQUARE];
    for (int64_t i = 0; i < LN_LOW_SQUARE; i++) whole[i] = clipped(values[i % n]);
    memcpy(s->x, whole, sizeof s->x);
    s->best = (trial){.error = INFINITY};
    for (int i = 0; i < effort[s->bits].tries; i++) {
        const float factor = 1 - effort[s->bits].narrower * (float)i;
        const float middle = s->channel ? 0.5f * (low + high) : 0;
        try_range(s, middle + factor * (low - middle), middle + factor * (high - middle));
    }
    for (int i = 0; i < effort[s->bits].refinements; i++) refine(s);
}

static void put_codes(const search *s, int64_t n, uint8_t *codes) {
    float whole[LN_LOW_SQUARE];
    const float inverse = inverse_of(s->best.step), top = (float)((1 << s->bits) - 1);
    for (int i = 0; i < VECTORS; i++) {
        const lanes c = codes_of(s->x[i], inverse, s->best.minimum, top);
        memcpy(whole + i * W, &c, sizeof c);
    }
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)whole[i];
}

enum { NOT_A_NUMBER = 0xffc0 /* a word whose step is one */ };

uint16_t ln_fit_token(const float *values, int64_t n, int bits, uint8_t *codes) {
    float low = 0, high = 0, zero = 0;
    for (int64_t i = 0; i < n; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
        zero += 0 * values[i];
    }
    memset(codes, 0, LN_LOW_SQUARE);
    if (zero != 0) return NOT_A_NUMBER;
    search s = {.bits = bits};
    search_step(&s, values, n, clipped(low), clipped(high));
    put_codes(&s, n, codes);
    return s.best.word;
}

void ln_fit_channel(const float *values, int64_t n, int bits, uint16_t *minimum, uint8_t *step, uint8_t *codes) {
    float low = INFINITY, high = -INFINITY, finite[LN_LOW_SQUARE];
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(values[i])) continue;
        finite[i] = values[i];
        low = fminf(low, finite[i]);
        high = fmaxf(high, finite[i]);
    }
    if (low > high) low = high = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i])) finite[i] = values[i] > 0 ? high : low;
    search s = {.bits = bits, .channel = true};
    search_step(&s, finite, n, clipped(low), clipped(high));
    *minimum = s.best.word;
    *step = s.best.byte;
    put_codes(&s, n, codes);
}
