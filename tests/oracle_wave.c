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

const mixer_oracle oracle_wave[] = {
    {.name = "long_convolution", .run = long_convolution, .variants = 3, .vary = vary_convolution},
    {0},
};
