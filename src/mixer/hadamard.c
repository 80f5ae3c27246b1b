/* Owns: Walsh-Hadamard transforms of rows, and of long vectors with few coefficients (linnet/transform.h).
 *
 * Sparse: a group is a random set of b masks of n bits. Coefficient k falls into bin h(k), bit i of which is the parity
 * of mask i and k. Samples at combinations of the masks, shifted by d, transformed, give for all bins
 *     u[bin] = sum over k in the bin of value[k] (-1)^parity(d & k).
 * A shift r and the shifts r ^ 2^i tell, for a bin with one coefficient, bit i of k as a change of sign; several r
 * vote. It is believed where its k falls into this bin and leaves no more than noise in all shifts. Then it is taken
 * out of every group, which may leave others alone in their bins. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "base/random.h"
#include "kernel/kernel.h"
#include "linnet/transform.h"

/* ---- dense ---- */

typedef struct dense {
    ln_kernels kernels;
    float *x;
    int64_t n;
} dense;

static void dense_task(void *argument, int64_t row, int worker) {
    const dense *d = argument;
    (void)worker;
    d->kernels.vector.hadamard(d->x + row * d->n, d->n);
}

linnet_status linnet_walsh_hadamard(linnet_context *context, int64_t rows, int64_t n, float *x) {
    if (rows < 0 || n < 1 || (n & (n - 1)) != 0)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "Walsh-Hadamard: rows of a power of two of numbers");
    dense d = {.x = x, .n = n};
    ln_kernels_choose(context->cpu, &d.kernels);
    ln_parallel(context->team, rows, dense_task, &d);
    return LINNET_OK;
}

/* ---- sparse ---- */

enum { GROUPS = 4, LEVELS_MOST = 48, REPEATS_MOST = 64, SWEEPS_MOST = 64 };

typedef struct search {
    linnet_sparse_settings s;
    int bits, shifts; /* of a bin's number; shifts: repeats * (levels + 1) */
    int64_t bins, capacity, found;
    int64_t *shift; /* [shifts]: repeat r, then r with bit 0, 1, .. turned */
    int64_t masks[GROUPS][LEVELS_MOST];
    double *u; /* [group][bin][shift] */
    linnet_sparse_coefficient *out;
    double limit; /* of the mean square of what noise leaves in a bin */
} search;

linnet_sparse_settings linnet_sparse_settings_default(int levels, int64_t most) {
    return (linnet_sparse_settings){.size = sizeof(linnet_sparse_settings), .levels = levels, .most = most, .seed = 1};
}

static int parity(int64_t x) {
    return __builtin_parityll((unsigned long long)x);
}

static int64_t bin_of(const search *f, int group, int64_t k) {
    int64_t bin = 0;
    for (int i = 0; i < f->bits; i++) bin |= (int64_t)parity(f->masks[group][i] & k) << i;
    return bin;
}

static double *bin_at(const search *f, int group, int64_t bin) {
    return f->u + (group * f->bins + bin) * f->shifts;
}

/* Masks are independent: each is reduced by the ones before until a bit of its own is left. */
static void draw_masks(search *f, int group, ln_random *random) {
    int64_t reduced[LEVELS_MOST];
    for (int i = 0; i < f->bits;) {
        const int64_t mask = (int64_t)(ln_random_u64(random) & (((uint64_t)1 << f->s.levels) - 1));
        int64_t rest = mask;
        for (int j = 0; j < i; j++)
            if ((rest ^ reduced[j]) < rest) rest ^= reduced[j];
        if (rest == 0) continue;
        f->masks[group][i] = mask;
        reduced[i++] = rest;
        for (int j = i - 1; j > 0 && reduced[j] > reduced[j - 1]; j--) { /* descending, for the next reduction */
            const int64_t swap = reduced[j];
            reduced[j] = reduced[j - 1];
            reduced[j - 1] = swap;
        }
    }
}

static void transform(double *x, int64_t n, int64_t stride) {
    for (int64_t h = 1; h < n; h *= 2)
        for (int64_t block = 0; block < n; block += 2 * h)
            for (int64_t j = block; j < block + h; j++) {
                const double a = x[j * stride], b = x[(j + h) * stride];
                x[j * stride] = a + b;
                x[(j + h) * stride] = a - b;
            }
}

static void take_samples(search *f, linnet_sample_at sample, void *user) {
    for (int group = 0; group < GROUPS; group++)
        for (int d = 0; d < f->shifts; d++) {
            double *x = bin_at(f, group, 0) + d;
            int64_t at = f->shift[d];
            for (int64_t step = 0; step < f->bins; step++) { /* in Gray's order: one mask changes a step */
                x[(step ^ step >> 1) * f->shifts] = (double)sample(user, at) / (double)f->bins;
                at ^= f->masks[group][__builtin_ctzll((unsigned long long)(step + 1)) % f->bits];
            }
            transform(x, f->bins, f->shifts);
        }
}

static double mean_square(const search *f, const double *u) {
    double sum = 0;
    for (int d = 0; d < f->shifts; d++) sum += u[d] * u[d];
    return sum / f->shifts;
}

/* The one coefficient of a bin; false: there is none, or more. */
static bool decode(const search *f, int group, int64_t bin, linnet_sparse_coefficient *one) {
    const double *u = bin_at(f, group, bin);
    const int stride = f->s.levels + 1;
    int64_t k = 0;
    for (int bit = 0; bit < f->s.levels; bit++) {
        double votes = 0;
        for (int r = 0; r < f->s.repeats; r++) votes += u[r * stride] * u[r * stride + 1 + bit];
        if (votes < 0) k |= (int64_t)1 << bit;
    }
    double value = 0, rest = 0;
    for (int d = 0; d < f->shifts; d++) value += parity(f->shift[d] & k) ? -u[d] : u[d];
    value /= f->shifts;
    for (int d = 0; d < f->shifts; d++) {
        const double off = u[d] - (parity(f->shift[d] & k) ? -value : value);
        rest += off * off;
    }
    *one = (linnet_sparse_coefficient){k, value};
    return bin_of(f, group, k) == bin && rest / f->shifts <= f->limit && fabs(value) >= f->s.least;
}

static void take_out(search *f, const linnet_sparse_coefficient *one) {
    for (int group = 0; group < GROUPS; group++) {
        double *u = bin_at(f, group, bin_of(f, group, one->index));
        for (int d = 0; d < f->shifts; d++) u[d] -= parity(f->shift[d] & one->index) ? -one->value : one->value;
    }
}

/* Peels until nothing changes; true: all bins are empty. */
static bool peel(search *f) {
    bool empty = false;
    for (int sweep = 0, news = 1; news && sweep < SWEEPS_MOST; sweep++) {
        news = 0;
        empty = true;
        for (int group = 0; group < GROUPS; group++)
            for (int64_t bin = 0; bin < f->bins; bin++) {
                linnet_sparse_coefficient one;
                if (mean_square(f, bin_at(f, group, bin)) <= f->limit) continue;
                if (f->found < f->capacity && decode(f, group, bin, &one)) {
                    f->out[f->found++] = one;
                    take_out(f, &one);
                    news = 1;
                } else {
                    empty = false;
                }
            }
    }
    return empty;
}

static int by_index(const void *a, const void *b) {
    const int64_t x = ((const linnet_sparse_coefficient *)a)->index, y = ((const linnet_sparse_coefficient *)b)->index;
    return (x > y) - (x < y);
}

/* Ascending; one that was corrected later is one again, and one that was taken back none. */
static void settle(search *f) {
    int64_t kept = 0;
    qsort(f->out, (size_t)f->found, sizeof *f->out, by_index);
    for (int64_t i = 0; i < f->found; i++)
        if (kept > 0 && f->out[kept - 1].index == f->out[i].index)
            f->out[kept - 1].value += f->out[i].value;
        else
            f->out[kept++] = f->out[i];
    f->found = 0;
    for (int64_t i = 0; i < kept; i++)
        if (fabs(f->out[i].value) >= f->s.least) f->out[f->found++] = f->out[i];
}

/* What is left of a sample's noise in a bin, and, without any, of float32 samples' rounding. */
static void set_limits(search *f) {
    double energy = 0;
    for (int64_t bin = 0; bin < f->bins; bin++) energy += mean_square(f, bin_at(f, 0, bin));
    const double noise = f->s.noise * f->s.noise / (double)f->bins + 1e-13 * energy;
    f->limit = noise * (1 + 5 * sqrt(2.0 / f->shifts));
    if (f->s.least <= 0) f->s.least = 6 * sqrt(noise / f->shifts);
}

static linnet_status check_sparse(linnet_context *context, const linnet_sparse_settings *s, int64_t capacity) {
    if (s->size != sizeof *s || s->levels < 1 || s->levels > LEVELS_MOST || s->most < 1 || s->most > (int64_t)1 << 32 ||
        !(s->noise >= 0) || s->repeats < 0 || s->repeats > REPEATS_MOST || !(s->least >= 0))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "sparse Walsh-Hadamard: levels 1 to %d, most 1 to 2^32, repeats 0 to %d, noise and least not "
                       "negative",
                       LEVELS_MOST, REPEATS_MOST);
    if (capacity < s->most)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "sparse Walsh-Hadamard: capacity must be at least `most`");
    return LINNET_OK;
}

linnet_status linnet_sparse_walsh_hadamard(linnet_context *context, const linnet_sparse_settings *settings,
                                           linnet_sample_at sample, void *user, linnet_sparse_coefficient *coefficients,
                                           int64_t capacity, linnet_sparse_result *result) {
    linnet_status status = check_sparse(context, settings, capacity);
    if (status != LINNET_OK) return status;
    search f = {.s = *settings, .capacity = capacity, .out = coefficients};
    if (f.s.repeats == 0) f.s.repeats = f.s.noise > 0 ? 6 : 2;
    while (f.bits < f.s.levels && ((int64_t)1 << f.bits) < f.s.most) f.bits++;
    if (f.bits == 0) f.bits = 1;
    f.bins = (int64_t)1 << f.bits;
    f.shifts = f.s.repeats * (f.s.levels + 1);
    f.shift = ln_allocate(context, (uint64_t)f.shifts, sizeof *f.shift, "shifts");
    f.u = ln_allocate(context, (uint64_t)(GROUPS * f.bins), (uint64_t)f.shifts * sizeof *f.u, "bins");
    if (f.shift && f.u) {
        ln_random random;
        ln_random_seed(&random, f.s.seed);
        for (int group = 0; group < GROUPS; group++) draw_masks(&f, group, &random);
        for (int r = 0; r < f.s.repeats; r++) {
            int64_t *shift = f.shift + r * (f.s.levels + 1);
            shift[0] = (int64_t)(ln_random_u64(&random) & (((uint64_t)1 << f.s.levels) - 1));
            for (int bit = 0; bit < f.s.levels; bit++) shift[1 + bit] = shift[0] ^ (int64_t)1 << bit;
        }
        take_samples(&f, sample, user);
        set_limits(&f);
        const bool complete = peel(&f);
        settle(&f);
        *result = (linnet_sparse_result){sizeof *result, f.found, GROUPS * f.bins * f.shifts, complete};
    } else {
        status = LINNET_ERROR_MEMORY;
    }
    ln_release(context, f.u);
    ln_release(context, f.shift);
    return status;
}
