/* Naive sums of the rows of src/mixer/rows_wave.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

/* ---- long convolution ---- */

static double tap(const oracle_call *c, int64_t head, int64_t j, int64_t i) {
    const int64_t n = c->output_columns, slots = c->settings->slots, width = (int64_t)c->settings->option[2];
    const double limit = c->settings->option[1];
    const double *filter = oracle_input(c, 1, 0, head);
    double sum = 0;
    for (int64_t k = j - width; k <= j + width; k++)
        if (k >= 0 && k < slots) sum += filter[k * n + i];
    sum /= (double)(2 * width + 1);
    return sum > limit ? sum - limit : sum < -limit ? sum + limit : 0;
}

static double gated(const oracle_call *c, int64_t head, int64_t t, int64_t i) {
    const int64_t n = c->output_columns, slots = c->settings->slots;
    if (t < -slots) return 0;
    if (t < 0) return c->state_in[(head * slots + slots + t) * n + i];
    return oracle_input(c, 0, t, head)[i] * (c->input[2] ? oracle_input(c, 2, t, head)[i] : 1);
}

static void long_convolution(const oracle_call *c) {
    const int64_t n = c->output_columns, slots = c->settings->slots;
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            for (int64_t t = 0; t < c->tokens; t++) {
                double y = c->input[4] ? oracle_input(c, 4, 0, head)[i] * gated(c, head, t, i) : 0;
                for (int64_t j = 0; j < slots; j++) y += tap(c, head, j, i) * gated(c, head, t - j, i);
                oracle_output(c, t, head)[i] = y * (c->input[3] ? oracle_input(c, 3, t, head)[i] : 1);
            }
            for (int64_t r = 0; r < slots; r++)
                c->state_out[(head * slots + r) * n + i] = gated(c, head, c->tokens - slots + r, i);
        }
}

static void vary_convolution(linnet_mixer_settings *s, int variant) {
    static const int64_t slots[] = {37, 1, 200, 64};
    s->slots = slots[variant];
    if (variant == 3) {
        s->option[1] = 0.4;
        s->option[2] = 2;
    }
}

/* The kept frequencies of M as a kernel: g(d) = 1 / M sum over them of cos(2 pi (f + 1/4) d / M). */
enum { KERNEL_MOST = 2048 };
static const double *kept_kernel(int64_t points, int64_t kept) {
    static double g[KERNEL_MOST];
    static int64_t last_points, last_kept;
    if (points == last_points && kept == last_kept) return g;
    for (int64_t d = 0; d < KERNEL_MOST; d++) {
        g[d] = 0;
        for (int64_t f = 0; f < points; f++) {
            int64_t reversed = 0;
            for (int64_t bit = 1; bit < points; bit *= 2) reversed = 2 * reversed + (f & bit ? 1 : 0);
            const double angle = 6.283185307179586 * fmod(((double)f + 0.25) * (double)d / (double)points, 1);
            if (reversed == 0 || reversed * 64 < points * kept - 63) g[d] += cos(angle) / (double)points;
        }
    }
    last_points = points;
    last_kept = kept;
    return g;
}

static void frequency_sparse_convolution(const oracle_call *c) {
    const int64_t n = c->output_columns, slots = c->settings->slots, tokens = c->tokens;
    int64_t points = 1;
    while (points < slots) points *= 2;
    const double *g = kept_kernel(points, (int64_t)c->settings->option[3]);
    double *acting = calloc((size_t)(2 * tokens), sizeof *acting); /* at distances 1 - tokens .. tokens - 1 */
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t i = 0; i < n; i++) {
            for (int64_t d = 1 - tokens; d < tokens; d++) {
                acting[d + tokens - 1] = 0;
                for (int64_t j = 0; j < slots; j++) acting[d + tokens - 1] += tap(c, head, j, i) * g[labs(d - j)];
            }
            for (int64_t t = 0; t < tokens; t++) {
                double y = c->input[4] ? oracle_input(c, 4, 0, head)[i] * gated(c, head, t, i) : 0;
                for (int64_t s = 0; s < tokens; s++) y += acting[t - s + tokens - 1] * gated(c, head, s, i);
                oracle_output(c, t, head)[i] = y * (c->input[3] ? oracle_input(c, 3, t, head)[i] : 1);
            }
        }
    free(acting);
}

static void vary_sparse(linnet_mixer_settings *s, int variant) {
    s->slots = s->tokens + (variant == 2 ? 3 : s->tokens == 0);
    s->option[3] = variant == 0 ? 32 : variant == 1 ? 64 : 5;
}

/* ---- kernelised attention with relative positions ---- */

static double feature(int map, double x) {
    return map == 2 ? exp(x) : map == 1 ? (x > 0 ? x + 1 : exp(x)) : x;
}

/* Row of keys (1), values (2) or weights (3: what a row counts in the divisor) at a step; NULL: nothing is there. */
static const double *row_at(const oracle_call *c, int part, int64_t head, int64_t step) {
    static const double one = 1;
    const int64_t slots = c->settings->slots, keys = c->settings->key_size, values = c->output_columns;
    if (step >= 0) return part == 3 ? &one : oracle_input(c, part, step, head);
    if (step < -slots || c->head_floats == 0) return NULL;
    const double *state = c->state_in + head * c->head_floats;
    if (part == 1) return state + (slots + step) * keys;
    return part == 2 ? state + slots * keys + (slots + step) * values : state + slots * (keys + values) + slots + step;
}

static void toeplitz(const oracle_call *c, bool both) {
    const int64_t slots = c->settings->slots, keys = c->settings->key_size, values = c->output_columns;
    const int map = (int)c->settings->option[0];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const double *bias = oracle_input(c, 3, 0, head) + (both ? slots - 1 : 0);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *query = oracle_input(c, 0, t, head);
            double *y = oracle_output(c, t, head), divisor = 0;
            for (int64_t i = 0; i < values; i++) y[i] = 0;
            for (int64_t j = t - slots + 1; j < (both ? t + slots : t + 1); j++) {
                const double *key = j < c->tokens ? row_at(c, 1, head, j) : NULL;
                if (!key) continue;
                double score = 0;
                for (int64_t a = 0; a < keys; a++) score += feature(map, query[a]) * feature(map, key[a]);
                score *= exp(bias[t - j]);
                divisor += score * fabs(*row_at(c, 3, head, j));
                for (int64_t i = 0; i < values; i++) y[i] += score * row_at(c, 2, head, j)[i];
            }
            for (int64_t i = 0; i < values; i++)
                y[i] *= (double)c->settings->scale / (c->settings->normalise ? divisor : 1);
        }
        double *out = c->state_out + head * c->head_floats;
        for (int part = 1; !both && part < 4; part++)
            for (int64_t r = 0; r < slots; r++)
                for (int64_t i = 0; i < (part == 1 ? keys : part == 2 ? values : 1); i++)
                    *out++ = row_at(c, part, head, c->tokens - slots + r)[i];
    }
}
static void toeplitz_attention(const oracle_call *c) {
    toeplitz(c, false);
}
static void toeplitz_attention_both(const oracle_call *c) {
    toeplitz(c, true);
}

static void vary_toeplitz(linnet_mixer_settings *s, int variant) {
    static const int64_t slots[] = {37, 90, 1};
    s->slots = slots[variant];
    if (variant == 1) s->option[0] = 2;
    if (variant == 2) {
        s->option[0] = 0;
        s->normalise = false;
        s->scale = 0.3f;
    }
}

/* ---- sums of Laplacian kernels ---- */

static void laplace_attention(const oracle_call *c) {
    for (int64_t head = 0; head < c->settings->heads; head++)
        for (int64_t t = 0; t < c->tokens; t++) {
            double *y = oracle_output(c, t, head), divisor = 0;
            for (int64_t i = 0; i < c->output_columns; i++) y[i] = 0;
            for (int64_t j = 0; j < c->tokens; j++) {
                double distance = 0;
                for (int64_t a = 0; a < c->settings->key_size; a++)
                    distance += fabs(oracle_input(c, 0, t, head)[a] - oracle_input(c, 1, j, head)[a]);
                const double weight = exp(-(double)c->settings->scale * distance);
                divisor += weight;
                for (int64_t i = 0; i < c->output_columns; i++) y[i] += weight * oracle_input(c, 2, j, head)[i];
            }
            for (int64_t i = 0; c->settings->normalise && i < c->output_columns; i++) y[i] /= divisor;
        }
}

static void vary_laplace(linnet_mixer_settings *s, int variant) {
    s->key_size = variant == 0 ? 1 : variant;
    s->scale = variant == 3 ? 40.0f : 1.0f; /* large coordinates */
    s->normalise = variant != 2;
}

/* ---- linear attention behind wavelets ---- */

/* One column of queries or keys, filtered, by recursion: sums to the next level, details scaled, and back. stride:
 * tokens between numbers of this level. */
static void haar(const oracle_call *c, int64_t head, double *x, int64_t n, int64_t level, int64_t stride) {
    if (level == c->settings->slots || n < 2) return;
    const int64_t pairs = n / 2, rest = n - pairs;
    double *sums = calloc((size_t)rest, sizeof *sums), *details = calloc((size_t)pairs, sizeof *details);
    for (int64_t p = 0; p < pairs; p++) {
        sums[p] = (x[2 * p] + x[2 * p + 1]) / sqrt(2);
        details[p] = (x[2 * p] - x[2 * p + 1]) / sqrt(2) * oracle_input(c, 3, 0, head)[level];
        if (c->input[4]) details[p] *= oracle_input(c, 4, 2 * p * stride, head)[level];
    }
    if (rest > pairs) sums[pairs] = x[n - 1];
    haar(c, head, sums, rest, level + 1, 2 * stride);
    for (int64_t p = 0; p < pairs; p++) {
        x[2 * p] = (sums[p] + details[p]) / sqrt(2);
        x[2 * p + 1] = (sums[p] - details[p]) / sqrt(2);
    }
    if (rest > pairs) x[n - 1] = sums[pairs];
    free(sums);
    free(details);
}

/* [tokens, keys] features of queries (0) or keys (1) */
static double *wavelet_features(const oracle_call *c, int input, int64_t head) {
    const int64_t keys = c->settings->key_size, tokens = c->tokens;
    double *x = calloc((size_t)(keys * tokens), sizeof *x), *f = calloc((size_t)(keys * tokens), sizeof *f);
    for (int64_t a = 0; a < keys; a++) {
        for (int64_t t = 0; t < tokens; t++) x[a * tokens + t] = oracle_input(c, input, t, head)[a];
        haar(c, head, x + a * tokens, tokens, 0, 1);
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t a = 0; a < keys; a++) {
            double exponent = 0;
            for (int64_t b = 0; b < keys; b++)
                exponent += oracle_input(c, 5, 0, head)[a * keys + b] * x[b * tokens + t] -
                            x[b * tokens + t] * x[b * tokens + t] / 2;
            f[t * keys + a] = exp(exponent) + (double)1e-6f;
        }
    free(x);
    return f;
}

static void wavelet_attention(const oracle_call *c) {
    const int64_t keys = c->settings->key_size;
    for (int64_t head = 0; head < c->settings->heads; head++) {
        double *query = wavelet_features(c, 0, head), *key = wavelet_features(c, 1, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            double *y = oracle_output(c, t, head), divisor = 0;
            for (int64_t i = 0; i < c->output_columns; i++) y[i] = 0;
            for (int64_t j = 0; j < c->tokens; j++) {
                double score = 0;
                for (int64_t a = 0; a < keys; a++) score += query[t * keys + a] * key[j * keys + a];
                divisor += score;
                for (int64_t i = 0; i < c->output_columns; i++) y[i] += score * oracle_input(c, 2, j, head)[i];
            }
            for (int64_t i = 0; i < c->output_columns; i++) y[i] /= divisor;
        }
        free(query);
        free(key);
    }
}

static void vary_wavelet(linnet_mixer_settings *s, int variant) {
    s->slots = variant ? 3 : 20;
}

/* Queries and keys of a size at which features do not vanish. */
static bool fill_wavelet(const linnet_mixer_settings *s, const char *input, double *values, int64_t count,
                         int extreme) {
    (void)extreme;
    if (strcmp(input, "query") != 0 && strcmp(input, "key") != 0) return false;
    for (int64_t i = 0; i < count; i++) values[i] *= 1.5 / sqrt((double)s->key_size);
    return true;
}

const mixer_oracle oracle_wave[] = {
    {.name = "long_convolution", .run = long_convolution, .variants = 3, .vary = vary_convolution},
    {.name = "frequency_sparse_convolution", .run = frequency_sparse_convolution, .variants = 2, .vary = vary_sparse},
    {.name = "toeplitz_attention", .run = toeplitz_attention, .variants = 2, .vary = vary_toeplitz},
    {.name = "toeplitz_attention_both", .run = toeplitz_attention_both, .variants = 2, .vary = vary_toeplitz},
    {.name = "laplace_attention", .run = laplace_attention, .variants = 4, .vary = vary_laplace},
    {.name = "wavelet_attention",
     .run = wavelet_attention,
     .forward = 5e-6,
     .gradient = 5e-5,
     .variants = 1,
     .vary = vary_wavelet,
     .fill = fill_wavelet},
    {0},
};
