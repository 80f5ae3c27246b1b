/* Naive sums of the rows of src/mixer/rows_wave.c. */
#include <math.h>

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

const mixer_oracle oracle_wave[] = {
    {.name = "long_convolution", .run = long_convolution, .variants = 3, .vary = vary_convolution},
    {.name = "toeplitz_attention", .run = toeplitz_attention, .variants = 2, .vary = vary_toeplitz},
    {.name = "toeplitz_attention_both", .run = toeplitz_attention_both, .variants = 2, .vary = vary_toeplitz},
    {.name = "laplace_attention", .run = laplace_attention, .variants = 4, .vary = vary_laplace},
    {0},
};
