/* Owns: the choice between tokens and bits, the order of channels, block floating point.
 *
 * The loss of a pair of precisions, with all bytes spent, is piecewise linear in the number of tokens of the higher
 * one; it bends only where this number, or that of all tokens, is a point of the curve. So its least is at one of
 * these. */
#include "memory/precision.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/attend.h"

/* ---- tokens and bits ---- */

typedef struct problem {
    const ln_precision_option *options;
    double bytes;
    int64_t tokens;
    const double *mass;
} problem;

static double mass_of(const problem *p, int64_t n) {
    const double place = (double)n * LN_STATISTICS_MASS / (double)p->tokens;
    const int i = (int)place;
    if (n >= p->tokens || i >= LN_STATISTICS_MASS) return 1;
    const double below = i ? p->mass[i - 1] : 0, here = i == LN_STATISTICS_MASS - 1 ? 1 : p->mass[i];
    return below + (here - below) * (place - i);
}

/* `high` tokens of one option, as many of the other as the bytes leave. */
static void consider(const problem *p, int high, int low, double wanted, ln_precision_choice *best) {
    const ln_precision_option *a = &p->options[high], *b = &p->options[low];
    const double most = fmin((double)p->tokens, floor(p->bytes / a->bytes + 1e-9));
    const int64_t first = (int64_t)fmax(0, fmin(most, floor(wanted + 1e-9)));
    const double left = floor((p->bytes - (double)first * a->bytes) / b->bytes + 1e-9);
    const int64_t second = (int64_t)fmax(0, fmin(left, (double)(p->tokens - first)));
    const double p1 = mass_of(p, first), p2 = mass_of(p, first + second);
    const double loss = a->error * p1 + b->error * (p2 - p1) + 1 - p2;
    if (!(loss < best->loss - 1e-12)) return;
    *best = (ln_precision_choice){first ? high : -1, second ? low : -1, first, second, loss};
}

ln_precision_choice ln_precision_solve(const ln_precision_option *options, int count, double bytes, int64_t tokens,
                                       const double mass[LN_STATISTICS_MASS]) {
    const problem p = {options, fmax(bytes, 0), tokens, mass};
    ln_precision_choice best = {-1, -1, 0, 0, 1};
    for (int high = 0; tokens > 0 && high < count; high++) {
        for (int low = 0; low < count; low++) {
            const double a = options[high].bytes, b = options[low].bytes;
            if (!(a > 0 && b > 0) || (high != low && a <= b)) continue;
            consider(&p, high, low, (double)tokens, &best);
            for (int i = 0; high != low && i <= LN_STATISTICS_MASS; i++) {
                const double point = (double)tokens * i / LN_STATISTICS_MASS;
                consider(&p, high, low, point, &best);
                consider(&p, high, low, (p.bytes - b * point) / (a - b), &best);
            }
        }
    }
    return best;
}

/* ---- channels ---- */

void ln_channels_observe(float *amplitude, const float *rows, int64_t count, int64_t stride, int64_t size) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < size; i++) amplitude[i] = fmaxf(amplitude[i], fabsf(rows[t * stride + i]));
}

/* place[i]: of n sizes, how many are larger, or as large and earlier. */
static void rank(const float *sizes, int64_t n, int32_t *place) {
    for (int64_t i = 0; i < n; i++) {
        place[i] = 0;
        for (int64_t j = 0; j < n; j++) place[i] += sizes[j] > sizes[i] || (sizes[j] == sizes[i] && j < i);
    }
}

void ln_channels_order(const float *amplitude, int64_t size, int64_t rotated, bool half, int32_t *order) {
    float sizes[LN_HEAD_MOST] = {0};
    int32_t place[LN_HEAD_MOST];
    const int64_t pairs = rotated / 2, step = half ? 1 : 2, other = half ? pairs : 1;
    for (int64_t i = 0; i < pairs; i++) sizes[i] = fmaxf(amplitude[i * step], amplitude[i * step + other]);
    rank(sizes, pairs, place);
    for (int64_t i = 0; i < pairs; i++) {
        order[place[i] * step] = (int32_t)(i * step);
        order[place[i] * step + other] = (int32_t)(i * step + other);
    }
    rank(amplitude + 2 * pairs, size - 2 * pairs, place);
    for (int64_t i = 0; i < size - 2 * pairs; i++) order[2 * pairs + place[i]] = (int32_t)(2 * pairs + i);
}

void ln_channels_apply(const int32_t *order, int64_t size, const float *from, float *to) {
    for (int64_t i = 0; i < size; i++) to[i] = from[order[i]];
}

void ln_block_float(const float *x, int64_t n, int64_t block, int bits, float *y) {
    const double most_code = ldexp(1, bits - 1) - 1;
    for (int64_t begin = 0; begin < n; begin += block) {
        const int64_t end = ln_min_i64(n, begin + block);
        double most = 0;
        bool finite = true;
        int exponent;
        for (int64_t i = begin; i < end; i++) {
            finite = finite && fabsf(x[i]) < INFINITY;
            most = fmax(most, fabs((double)x[i]));
        }
        frexp(finite ? most : 1, &exponent);
        const double step = ldexp(1, exponent - (bits - 1));
        for (int64_t i = begin; i < end; i++) {
            const double code = fmin(fmax(nearbyint((double)x[i] / step), -most_code), most_code);
            y[i] = finite ? (float)(code * step) : NAN;
        }
    }
}
