/* Owns: butterfly products (linnet/transform.h): applying them, their gradients, and the transforms that can be written
 * down.
 *
 * A row goes through 4 stages a level and product: three soft permutations for each block size from n down to 2, then a
 * layer of factors for each half from 1 up. Backward keeps what every stage was given. Sums over rows are made in parts
 * whose number depends on the rows alone, added in ascending order, so that bits know nothing of threads. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "base/threads.h"
#include "linnet/transform.h"

enum { LEVELS_MOST = 24, PRODUCTS_MOST = 16, KINDS = 3, PARTS = 8 };

typedef struct butterfly {
    linnet_butterfly_settings s;
    int64_t n, row; /* floats of a row */
    const float *factors, *choices;
    const float *x, *y_gradient;
    float *y, *x_gradient;
    int64_t rows, parts;
    float *scratch, *factor_sums, *choice_sums; /* of a worker; of parts */
    int64_t scratch_floats, factor_floats, choice_floats;
} butterfly;

linnet_butterfly_settings linnet_butterfly_settings_default(int levels) {
    return (linnet_butterfly_settings){.size = sizeof(linnet_butterfly_settings), .levels = levels, .products = 1};
}

static bool sound(const linnet_butterfly_settings *s) {
    return s->size == sizeof *s && s->levels >= 0 && s->levels <= LEVELS_MOST && s->products >= 1 &&
           s->products <= PRODUCTS_MOST;
}

/* Pairs of a level that have factors of their own. */
static int64_t pairs_of(const linnet_butterfly_settings *s, int level) {
    return (int64_t)1 << (s->tied ? level : s->levels - 1);
}
static int64_t level_floats(const linnet_butterfly_settings *s, int level) {
    return pairs_of(s, level) * 4 * (s->complex_numbers ? 2 : 1);
}
static int64_t factors_before(const linnet_butterfly_settings *s, int product, int level) {
    int64_t all = 0, before = 0;
    for (int l = 0; l < s->levels; l++) {
        if (l < level) before += level_floats(s, l);
        all += level_floats(s, l);
    }
    return product * all + before;
}

int64_t linnet_butterfly_factors(const linnet_butterfly_settings *s) {
    return sound(s) ? factors_before(s, s->products, 0) : 0;
}
int64_t linnet_butterfly_choices(const linnet_butterfly_settings *s) {
    return sound(s) ? (int64_t)s->products * s->levels * KINDS : 0;
}

/* ---- stages ---- */

/* Where entry i of a permuted block of 2h comes from. */
static int64_t origin_of(int kind, int64_t h, int64_t i) {
    if (kind == 0) return i < h ? 2 * i : 2 * (i - h) + 1;
    if (kind == 1) return i < h ? h - 1 - i : i;
    return i < h ? i : 3 * h - 1 - i;
}

static void permute(float *y, const float *x, int64_t n, int64_t h, int kind, float p) {
    const float stay = 1 - p;
    for (int64_t block = 0; block < n; block += 2 * h)
        for (int64_t i = 0; i < 2 * h; i++) {
            const float other = x[block + origin_of(kind, h, i)];
            y[block + i] = p == 1 ? other : stay * x[block + i] + p * other;
        }
}

/* dx from dy; returns the gradient of p. */
static double permute_back(float *dx, const float *dy, const float *x, int64_t n, int64_t h, int kind, float p) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) dx[i] = (1 - p) * dy[i];
    for (int64_t block = 0; block < n; block += 2 * h)
        for (int64_t i = 0; i < 2 * h; i++) {
            const int64_t from = block + origin_of(kind, h, i);
            dx[from] += p * dy[block + i];
            sum += (double)dy[block + i] * ((double)x[from] - (double)x[block + i]);
        }
    return sum;
}

typedef struct layer {
    const float *factor[4], *imaginary[4];
    float *gradient[4], *imaginary_gradient[4];
} layer;

static layer layer_of(const butterfly *c, int product, int level, float *gradients) {
    const int64_t pairs = pairs_of(&c->s, level), at = factors_before(&c->s, product, level);
    layer l = {0};
    for (int k = 0; k < 4; k++) {
        const int64_t place = at + k * pairs * (c->s.complex_numbers ? 2 : 1);
        l.factor[k] = c->factors + place;
        l.imaginary[k] = l.factor[k] + pairs;
        l.gradient[k] = gradients ? gradients + place : NULL;
        l.imaginary_gradient[k] = gradients ? l.gradient[k] + pairs : NULL;
    }
    return l;
}

static void multiply_layer(const butterfly *c, const layer *l, float *y, const float *x, int level) {
    const int64_t h = (int64_t)1 << level, n = c->n;
    for (int64_t block = 0, k = 0; block < n; block += 2 * h, k += c->s.tied ? 0 : h)
        for (int half = 0; half < 2; half++) {
            const float *a = l->factor[2 * half] + k, *b = l->factor[2 * half + 1] + k, *u = x + block, *v = u + h;
            float *to = y + block + half * h;
            for (int64_t j = 0; j < h; j++) to[j] = a[j] * u[j] + b[j] * v[j];
            if (!c->s.complex_numbers) continue;
            const float *ai = l->imaginary[2 * half] + k, *bi = l->imaginary[2 * half + 1] + k, *ui = u + n,
                        *vi = v + n;
            for (int64_t j = 0; j < h; j++) {
                to[j] -= ai[j] * ui[j] + bi[j] * vi[j];
                to[n + j] = (a[j] * ui[j] + ai[j] * u[j]) + (b[j] * vi[j] + bi[j] * v[j]);
            }
        }
}

/* One of a, b, c, d: dx[j] += conj(f[j]) dy[j], df[j] += dy[j] conj(x[j]). */
static void back_entry(const butterfly *c, const layer *l, int entry, int64_t k, float *dx, const float *dy,
                       const float *x, int64_t h) {
    const float *f = l->factor[entry] + k, *fi = l->imaginary[entry] + k;
    float *df = l->gradient[entry] ? l->gradient[entry] + k : NULL, *dfi = df ? l->imaginary_gradient[entry] + k : NULL;
    const int64_t n = c->n;
    for (int64_t j = 0; j < h; j++) dx[j] += f[j] * dy[j];
    for (int64_t j = 0; df && j < h; j++) df[j] += dy[j] * x[j];
    if (!c->s.complex_numbers) return;
    for (int64_t j = 0; j < h; j++) {
        dx[j] += fi[j] * dy[n + j];
        dx[n + j] += f[j] * dy[n + j] - fi[j] * dy[j];
    }
    for (int64_t j = 0; df && j < h; j++) {
        df[j] += dy[n + j] * x[n + j];
        dfi[j] += dy[n + j] * x[j] - dy[j] * x[n + j];
    }
}

static void layer_back(const butterfly *c, const layer *l, float *dx, const float *dy, const float *x, int level) {
    const int64_t h = (int64_t)1 << level;
    memset(dx, 0, (size_t)c->row * sizeof *dx);
    for (int64_t block = 0, k = 0; block < c->n; block += 2 * h, k += c->s.tied ? 0 : h)
        for (int entry = 0; entry < 4; entry++) {
            const int64_t to = block + (entry & 1) * h, from = block + (entry >> 1) * h;
            back_entry(c, l, entry, k, dx + to, dy + from, x + to, h);
        }
}

static float choice_of(const butterfly *c, int product, int level, int kind) {
    return c->choices ? c->choices[((int64_t)product * c->s.levels + level) * KINDS + kind] : 0;
}
/* Real and imaginary parts are permuted alike. */
static int planes(const butterfly *c) {
    return c->s.complex_numbers ? 2 : 1;
}

/* All stages; each reads `at` and writes what follows it: at + row where `keep`, else the other of two rows. Returns
 * where the result is. */
static float *run_stages(const butterfly *c, float *at, bool keep) {
    float *const first = at;
    for (int product = 0; product < c->s.products; product++) {
        for (int level = c->s.levels - 1; level >= 0; level--)
            for (int kind = 0; kind < KINDS; kind++) {
                const float p = choice_of(c, product, level, kind);
                if (p == 0 && !keep) continue;
                float *next = keep || at == first ? at + c->row : first;
                for (int plane = 0; plane < planes(c); plane++)
                    permute(next + plane * c->n, at + plane * c->n, c->n, (int64_t)1 << level, kind, p);
                at = next;
            }
        for (int level = 0; level < c->s.levels; level++) {
            float *next = keep || at == first ? at + c->row : first;
            const layer l = layer_of(c, product, level, NULL);
            multiply_layer(c, &l, next, at, level);
            at = next;
        }
    }
    return at;
}

static void forward_task(void *argument, int64_t row, int worker) {
    const butterfly *c = argument;
    float *scratch = c->scratch + worker * c->scratch_floats;
    memcpy(scratch, c->x + row * c->row, (size_t)c->row * sizeof *scratch);
    memcpy(c->y + row * c->row, run_stages(c, scratch, false), (size_t)c->row * sizeof *scratch);
}

static void back_row(const butterfly *c, int64_t row, float *scratch, float *factor_sums, float *choice_sums) {
    memcpy(scratch, c->x + row * c->row, (size_t)c->row * sizeof *scratch);
    float *at = run_stages(c, scratch, true), *dy = at + c->row, *dx = dy + c->row;
    memcpy(dy, c->y_gradient + row * c->row, (size_t)c->row * sizeof *dy);
    for (int product = c->s.products - 1; product >= 0; product--) {
        for (int level = c->s.levels - 1; level >= 0; level--) {
            const layer l = layer_of(c, product, level, factor_sums);
            at -= c->row;
            layer_back(c, &l, dx, dy, at, level);
            float *swap = dx;
            dx = dy;
            dy = swap;
        }
        for (int level = 0; level < c->s.levels; level++)
            for (int kind = KINDS - 1; kind >= 0; kind--) {
                const float p = choice_of(c, product, level, kind);
                double sum = 0;
                at -= c->row;
                for (int plane = 0; plane < planes(c); plane++)
                    sum += permute_back(dx + plane * c->n, dy + plane * c->n, at + plane * c->n, c->n,
                                        (int64_t)1 << level, kind, p);
                if (choice_sums) choice_sums[((int64_t)product * c->s.levels + level) * KINDS + kind] += (float)sum;
                float *swap = dx;
                dx = dy;
                dy = swap;
            }
    }
    if (c->x_gradient) memcpy(c->x_gradient + row * c->row, dy, (size_t)c->row * sizeof *dy);
}

static void backward_task(void *argument, int64_t part, int worker) {
    const butterfly *c = argument;
    const int64_t first = c->rows * part / c->parts, end = c->rows * (part + 1) / c->parts;
    float *factors = c->factor_sums ? c->factor_sums + part * c->factor_floats : NULL,
          *choices = c->choice_sums ? c->choice_sums + part * c->choice_floats : NULL;
    for (int64_t row = first; row < end; row++)
        back_row(c, row, c->scratch + worker * c->scratch_floats, factors, choices);
}

/* ---- the interface ---- */

static linnet_status check(linnet_context *context, const butterfly *c) {
    if (!sound(&c->s))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "butterfly: settings come from linnet_butterfly_settings_default; levels are 0 to %d, products "
                       "1 to %d",
                       LEVELS_MOST, PRODUCTS_MOST);
    if (c->rows < 0 || c->rows > INT64_MAX >> (LEVELS_MOST + 4))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "butterfly: rows must be from 0 to 2^35");
    return LINNET_OK;
}

static butterfly open_butterfly(const linnet_butterfly_settings *settings, const float *factors, const float *choices,
                                int64_t rows, const float *x) {
    butterfly c = {.s = *settings, .factors = factors, .choices = choices, .rows = rows, .x = x};
    if (!sound(settings)) return c;
    c.n = (int64_t)1 << c.s.levels;
    c.row = c.n * (c.s.complex_numbers ? 2 : 1);
    c.factor_floats = linnet_butterfly_factors(settings);
    c.choice_floats = linnet_butterfly_choices(settings);
    return c;
}

linnet_status linnet_butterfly_forward(linnet_context *context, const linnet_butterfly_settings *settings,
                                       const float *factors, const float *choices, int64_t rows, const float *x,
                                       float *y) {
    butterfly c = open_butterfly(settings, factors, choices, rows, x);
    const linnet_status status = check(context, &c);
    if (status != LINNET_OK || rows == 0) return status;
    c.y = y;
    c.scratch_floats = 2 * c.row;
    c.scratch = ln_allocate(context, (uint64_t)(ln_team_size(context->team) * c.scratch_floats), sizeof(float),
                            "rows of a butterfly product");
    if (!c.scratch) return LINNET_ERROR_MEMORY;
    ln_parallel(context->team, rows, forward_task, &c);
    ln_release(context, c.scratch);
    return LINNET_OK;
}

static void add_parts(float *sum, const float *parts, int64_t count, int64_t floats) {
    memset(sum, 0, (size_t)floats * sizeof *sum);
    for (int64_t part = 0; part < count; part++)
        for (int64_t i = 0; i < floats; i++) sum[i] += parts[part * floats + i];
}

linnet_status linnet_butterfly_backward(linnet_context *context, const linnet_butterfly_settings *settings,
                                        const float *factors, const float *choices, int64_t rows, const float *x,
                                        const float *y_gradient, float *x_gradient, float *factors_gradient,
                                        float *choices_gradient) {
    butterfly c = open_butterfly(settings, factors, choices, rows, x);
    linnet_status status = check(context, &c);
    if (status != LINNET_OK) return status;
    c.y_gradient = y_gradient;
    c.x_gradient = x_gradient;
    c.parts = ln_min_i64(rows, PARTS);
    c.scratch_floats = ((int64_t)c.s.products * c.s.levels * (KINDS + 1) + 3) * c.row;
    const uint64_t threads = (uint64_t)ln_team_size(context->team), parts = (uint64_t)c.parts;
    c.scratch = ln_allocate(context, threads * (uint64_t)c.scratch_floats, sizeof(float), "stages of a butterfly");
    if (factors_gradient)
        c.factor_sums = ln_allocate_zero(context, parts * (uint64_t)c.factor_floats, sizeof(float), "sums of factors");
    if (choices_gradient)
        c.choice_sums = ln_allocate_zero(context, parts * (uint64_t)c.choice_floats, sizeof(float), "sums of choices");
    if (!c.scratch || (factors_gradient && !c.factor_sums) || (choices_gradient && !c.choice_sums))
        status = LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) {
        ln_parallel(context->team, c.parts, backward_task, &c);
        if (factors_gradient) add_parts(factors_gradient, c.factor_sums, c.parts, c.factor_floats);
        if (choices_gradient) add_parts(choices_gradient, c.choice_sums, c.parts, c.choice_floats);
    }
    ln_release(context, c.choice_sums);
    ln_release(context, c.factor_sums);
    ln_release(context, c.scratch);
    return status;
}

/* ---- what can be written down ---- */

static const double TURN = 6.283185307179586476925;

typedef struct builder {
    const linnet_butterfly_settings *s;
    float *factors, *choices;
} builder;

static void put(const builder *b, int product, int level, int entry, int64_t pair, double re, double im) {
    const int64_t pairs = pairs_of(b->s, level), parts = b->s->complex_numbers ? 2 : 1;
    float *at = b->factors + factors_before(b->s, product, level) + entry * pairs * parts + pair;
    at[0] = (float)re;
    if (parts == 2) at[pairs] = (float)im;
}

static void choose(const builder *b, int product, int level, int kind) {
    b->choices[((int64_t)product * b->s->levels + level) * KINDS + kind] = 1;
}

/* A product that changes nothing. */
static void build_identity(const builder *b, int product) {
    for (int level = 0; level < b->s->levels; level++)
        for (int64_t pair = 0; pair < pairs_of(b->s, level); pair++)
            for (int entry = 0; entry < 4; entry++) put(b, product, level, entry, pair, entry == 0 || entry == 3, 0);
}

static void build_hadamard(const builder *b, int product) {
    for (int level = 0; level < b->s->levels; level++)
        for (int64_t pair = 0; pair < pairs_of(b->s, level); pair++)
            for (int entry = 0; entry < 4; entry++)
                put(b, product, level, entry, pair, sqrt(0.5) * (entry == 3 ? -1 : 1), 0);
}

/* What the last level's outputs are multiplied with. */
typedef void (*gain_of)(const void *argument, int64_t k, double *re, double *im);

/* Cooley and Tukey 1965: evens before odds at every size, then sums with e^(-+ 2 pi i j / 2h). */
static void build_fourier(const builder *b, int product, double sign, gain_of gain, const void *argument) {
    for (int level = 0; level < b->s->levels; level++) {
        const int64_t h = (int64_t)1 << level;
        choose(b, product, level, 0);
        for (int64_t pair = 0; pair < pairs_of(b->s, level); pair++)
            for (int entry = 0; entry < 4; entry++) {
                const int64_t j = pair % h;
                const double angle = sign * TURN * (double)j / (double)(2 * h);
                double re = entry & 1 ? cos(angle) : 1, im = entry & 1 ? sin(angle) : 0, g = 1, gi = 0;
                if (entry == 3) re = -re, im = -im;
                if (gain && level == b->s->levels - 1) gain(argument, j + (entry >> 1) * h, &g, &gi);
                put(b, product, level, entry, pair, re * g - im * gi, re * gi + im * g);
            }
    }
}

static void cosine_gain(const void *argument, int64_t k, double *re, double *im) {
    const int64_t n = *(const int64_t *)argument;
    *re = cos(TURN * (double)k / (double)(4 * n));
    *im = -sin(TURN * (double)k / (double)(4 * n));
}

typedef struct spectrum {
    const float *kernel;
    int64_t n;
} spectrum;
static void spectrum_gain(const void *argument, int64_t k, double *re, double *im) {
    const spectrum *s = argument;
    *re = *im = 0;
    for (int64_t j = 0; j < s->n; j++) {
        const double angle = -TURN * (double)(j * k % s->n) / (double)s->n;
        *re += (double)s->kernel[j] * cos(angle);
        *im += (double)s->kernel[j] * sin(angle);
    }
}
static void inverse_gain(const void *argument, int64_t k, double *re, double *im) {
    (void)k;
    *re = 1 / (double)*(const int64_t *)argument;
    *im = 0;
}

linnet_status linnet_butterfly_set(linnet_context *context, const linnet_butterfly_settings *settings,
                                   linnet_butterfly_kind kind, const float *kernel, float *factors, float *choices) {
    butterfly c = open_butterfly(settings, factors, choices, 0, NULL);
    const linnet_status status = check(context, &c);
    if (status != LINNET_OK) return status;
    const bool twice = kind == LINNET_BUTTERFLY_COSINE || kind == LINNET_BUTTERFLY_CONVOLUTION;
    if ((kind >= LINNET_BUTTERFLY_FOURIER && !settings->complex_numbers) || (twice && settings->products < 2) ||
        (kind == LINNET_BUTTERFLY_CONVOLUTION && !kernel))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "butterfly: Fourier, cosine and convolution need complex numbers; cosine and convolution two "
                       "products; convolution a kernel");
    const builder b = {settings, factors, choices};
    memset(choices, 0, (size_t)c.choice_floats * sizeof *choices);
    for (int product = 0; product < settings->products; product++) build_identity(&b, product);
    const spectrum s = {kernel, c.n};
    if (kind == LINNET_BUTTERFLY_HADAMARD) build_hadamard(&b, 0);
    if (kind == LINNET_BUTTERFLY_FOURIER) build_fourier(&b, 0, -1, NULL, NULL);
    if (kind == LINNET_BUTTERFLY_COSINE) { /* Makhoul 1980: evens, then odds backward, through Fourier */
        for (int which = 0; settings->levels > 0 && which < 3; which += 2) choose(&b, 0, settings->levels - 1, which);
        build_fourier(&b, 1, -1, cosine_gain, &c.n);
    }
    if (kind == LINNET_BUTTERFLY_CONVOLUTION) {
        build_fourier(&b, 0, -1, spectrum_gain, &s);
        build_fourier(&b, 1, 1, inverse_gain, &c.n);
    }
    return LINNET_OK;
}
