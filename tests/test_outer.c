/* What the outer core does beside what test_mixers sees: slices of columns where heads are few, groups of chunks where
 * sequences are long, gates that bring every factor below what float32 holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "linnet/linnet.h"
#include "linnet/mixer.h"

typedef struct work {
    linnet_mixer_settings settings;
    linnet_mixer_tensors tensors;
    float *input[LINNET_MIXER_INPUTS], *gradient[LINNET_MIXER_INPUTS], *output, *state, *output_gradient;
    int64_t counts[LINNET_MIXER_INPUTS], outputs, states;
} work;

static float *take(int64_t count) {
    float *x = calloc((size_t)count + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static void open_work(work *w, const linnet_mixer_settings *settings) {
    memset(w, 0, sizeof *w);
    w->settings = *settings;
    w->tensors.size = sizeof w->tensors;
    ln_random random;
    ln_random_seed(&random, 3);
    linnet_mixer_input input;
    for (int i = 0; linnet_mixer_input_of(settings, i, &input); i++) {
        w->counts[i] = (input.parameter ? 1 : settings->tokens) * input.heads * input.columns;
        w->input[i] = take(w->counts[i]);
        w->gradient[i] = take(w->counts[i]);
        for (int64_t n = 0; n < w->counts[i]; n++)
            w->input[i][n] = input.range == LINNET_RANGE_DECAY ? -0.2f * (float)ln_random_unit(&random)
                                                               : 0.1f + (float)ln_random_unit(&random);
        w->tensors.input[i].data = w->input[i];
        w->tensors.input_gradient[i].data = w->gradient[i];
    }
    w->outputs = settings->tokens * settings->heads * linnet_mixer_output_columns(settings);
    w->states = linnet_mixer_state_floats(settings);
    w->output = take(w->outputs);
    w->output_gradient = take(w->outputs);
    w->state = take(w->states);
    for (int64_t n = 0; n < w->outputs; n++) w->output_gradient[n] = (float)ln_random_normal(&random);
    w->tensors.output.data = w->output;
    w->tensors.output_gradient.data = w->output_gradient;
    w->tensors.state_in = w->tensors.state_out = w->state;
}

static void close_work(work *w) {
    for (int i = 0; i < LINNET_MIXER_INPUTS; i++) {
        free(w->input[i]);
        free(w->gradient[i]);
    }
    free(w->output);
    free(w->output_gradient);
    free(w->state);
}

static void run(work *w, int threads, linnet_mixer_form form) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &w->settings, form));
    assert_non_null(workspace);
    assert_int_equal(form == LINNET_MIXER_FORWARD
                         ? linnet_mixer_forward(context, &w->settings, &w->tensors, workspace)
                         : linnet_mixer_backward(context, &w->settings, &w->tensors, workspace),
                     LINNET_OK);
    free(workspace);
    linnet_context_close(context);
}

/* One head on several threads: slices, which also share a normaliser, give the bits of one thread. */
static void test_slices(void **state) {
    (void)state;
    static const char *const names[] = {"linear_attention", "simple_gla", "gla"};
    for (int n = 0; n < 3; n++)
        for (int columns = 40; columns <= 136; columns += 48) {
            linnet_mixer_settings s = linnet_mixer_settings_default(names[n]);
            s.key_size = 24;
            s.value_size = columns;
            s.tokens = 150;
            s.normalise = n == 0;
            work one, more;
            open_work(&one, &s);
            open_work(&more, &s);
            for (int times = 0; times < 2; times++) { /* the second time from the state of the first, in place */
                run(&one, 1, LINNET_MIXER_FORWARD);
                run(&more, 2 + n, LINNET_MIXER_FORWARD);
                assert_memory_equal(one.output, more.output, (size_t)one.outputs * sizeof(float));
                assert_memory_equal(one.state, more.state, (size_t)one.states * sizeof(float));
            }
            close_work(&one);
            close_work(&more);
        }
}

static double ratio(const float *a, const float *b, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)a[i] * (double)a[i];
    }
    return sqrt(error / size);
}

/* Few chunks are kept all; many go by groups. */
static void test_groups(void **state) {
    (void)state;
    static const char *const names[] = {"simple_gla", "gla"};
    for (int n = 0; n < 2; n++) {
        linnet_mixer_settings s = linnet_mixer_settings_default(names[n]);
        s.key_size = 8;
        s.value_size = 12;
        s.tokens = 1111;
        s.chunk = 64;
        work few, many;
        open_work(&few, &s);
        s.chunk = 16;
        open_work(&many, &s);
        run(&few, 1, LINNET_MIXER_BACKWARD);
        run(&many, 1, LINNET_MIXER_BACKWARD);
        for (int i = 0; i < 4; i++) assert_true(ratio(few.gradient[i], many.gradient[i], few.counts[i]) < 2e-5);
        close_work(&few);
        close_work(&many);
    }
}

/* A gate that is never open leaves each token to itself, whatever was before. */
static void test_closed(void **state) {
    (void)state;
    static const char *const names[] = {"simple_gla", "gla"};
    static const float gates[] = {-INFINITY, -1e30f, -104};
    for (int n = 0; n < 6; n++) {
        linnet_mixer_settings s = linnet_mixer_settings_default(names[n % 2]);
        s.key_size = 20;
        s.value_size = 7;
        s.tokens = 70;
        s.scale = 1;
        work w;
        open_work(&w, &s);
        for (int64_t i = 0; i < w.counts[3]; i++) w.input[3][i] = gates[n / 2];
        for (int64_t i = 0; i < w.states; i++) w.state[i] = 1e6f;
        run(&w, 1, LINNET_MIXER_FORWARD);
        for (int64_t t = 0; t < s.tokens; t++)
            for (int64_t c = 0; c < s.value_size; c++) {
                double sum = 0;
                for (int64_t i = 0; i < s.key_size; i++)
                    sum += (double)w.input[0][t * s.key_size + i] * (double)w.input[1][t * s.key_size + i];
                sum *= (double)w.input[2][t * s.value_size + c];
                assert_true(fabs((double)w.output[t * s.value_size + c] - sum) < 1e-5 * (1 + fabs(sum)));
            }
        close_work(&w);
    }
}

/* ---- windows by difference ---- */

/* Tokens first .. first + count - 1 of a work's inputs, from state_in. */
static void run_span(const work *w, linnet_context *context, int64_t first, int64_t count, const float *in,
                     float *out) {
    linnet_mixer_settings s = w->settings;
    s.tokens = count;
    linnet_mixer_tensors t = {.size = sizeof t, .output.data = w->output, .state_in = in, .state_out = out};
    linnet_mixer_input input;
    for (int i = 0; linnet_mixer_input_of(&w->settings, i, &input); i++)
        t.input[i].data = w->input[i] + (input.parameter ? 0 : first * input.heads * input.columns);
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD));
    assert_int_equal(linnet_mixer_forward(context, &s, &t, workspace), LINNET_OK);
    free(workspace);
}

/* log decay of a token and column of a head */
static double decay_of(const work *w, int64_t token, int64_t head, int64_t column) {
    const int64_t heads = w->settings.heads, keys = w->settings.key_size;
    const char *name = w->settings.name;
    const int decay = linnet_mixer_input_index(name, "decay");
    if (strcmp(name, "ssd") == 0)
        return (double)w->input[linnet_mixer_input_index(name, "step_size")][token * heads + head] *
               (double)w->input[linnet_mixer_input_index(name, "rate")][head];
    if (strcmp(name, "lightning_attention") == 0)
        return -(double)w->input[linnet_mixer_input_index(name, "slope")][head];
    return (double)w->input[decay][strcmp(name, "gla") ? token * heads + head : (token * heads + head) * keys + column];
}

/* S[c][j] after `count` tokens from nothing, in float64. */
static double recurrence(const work *w, int64_t first, int64_t count, int64_t head, int64_t c, int64_t j) {
    const int64_t heads = w->settings.heads, keys = w->settings.key_size, values = w->settings.value_size;
    const char *name = w->settings.name;
    const float *key = w->input[linnet_mixer_input_index(name, "key")],
                *value = w->input[linnet_mixer_input_index(name, "value")];
    const int step = linnet_mixer_input_index(name, "step_size");
    const bool decays = strcmp(name, "linear_attention") != 0;
    double sum = 0;
    for (int64_t t = first; t < first + count; t++) {
        const double by = step < 0 ? 1 : (double)w->input[step][t * heads + head];
        sum = (decays ? exp(decay_of(w, t, head, c)) : 1) * sum +
              by * (double)key[(t * heads + head) * keys + c] * (double)value[(t * heads + head) * values + j];
    }
    return sum;
}

static void check_window(linnet_context *context, const char *name, int64_t window) {
    enum { TOKENS = 150, HEADS = 3, KEYS = 16, VALUES = 24 };
    linnet_mixer_settings s = linnet_mixer_settings_default(name);
    s.heads = s.key_heads = HEADS;
    s.key_size = KEYS;
    s.value_size = VALUES;
    s.tokens = TOKENS;
    work w;
    open_work(&w, &s);
    const int rate = linnet_mixer_input_index(name, "rate"), slope = linnet_mixer_input_index(name, "slope");
    for (int h = 0; h < HEADS; h++) {
        if (rate >= 0) w.input[rate][h] = -0.01f * (float)(1 + h);
        if (slope >= 0) w.input[slope][h] = 0.01f * (float)(1 + h);
    }
    const int64_t columns = strcmp(name, "gla") ? 1 : KEYS, floats = w.states / HEADS;
    double decay[HEADS * KEYS] = {0};
    const bool decays = strcmp(name, "linear_attention") != 0;
    for (int64_t t = TOKENS - window; decays && t < TOKENS; t++)
        for (int64_t i = 0; i < HEADS * columns; i++) decay[i] += decay_of(&w, t, i / columns, i % columns);
    float *before = take(w.states), *last = take(w.states);
    run_span(&w, context, 0, TOKENS - window, NULL, before);
    run_span(&w, context, TOKENS - window, window, before, w.state);
    run_span(&w, context, TOKENS - window, window, NULL, last);
    assert_int_equal(linnet_mixer_window(context, &s, w.state, before, decays ? decay : NULL, before), LINNET_OK);
    double size = 0, worst = 0;
    for (int64_t i = 0; i < w.states; i++) {
        const int64_t at = i % floats;
        size = fmax(size, fabs((double)w.state[i]));
        worst = fmax(worst, fabs((double)before[i] - (double)last[i]));
        if (at < KEYS * VALUES)
            worst = fmax(worst, fabs((double)before[i] -
                                     recurrence(&w, TOKENS - window, window, i / floats, at / VALUES, at % VALUES)));
    }
    if (!(worst <= 2e-6 * size)) fail_msg("%s, window %d: off by %g of %g", name, (int)window, worst, size);
    free(before), free(last);
    close_work(&w);
}

static void test_window(void **state) {
    (void)state;
    linnet_context *context;
    assert_int_equal(linnet_context_open(NULL, &context), LINNET_OK);
    static const char *const rows[] = {"linear_attention", "lightning_attention", "simple_gla", "ssd", "gla"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int64_t window = 1; window < 150; window += 37) check_window(context, rows[i], window);
    static const char *const others[] = {"mlstm", "gla_value", "gated_delta_rule"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        linnet_mixer_settings s = linnet_mixer_settings_default(others[i]);
        s.key_size = 16;
        s.tokens = 1;
        float x[1024] = {0};
        const double decay[16] = {0};
        assert_int_equal(linnet_mixer_window(context, &s, x, x, decay, x), LINNET_ERROR_UNSUPPORTED);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slices), cmocka_unit_test(test_groups),
                                       cmocka_unit_test(test_closed), cmocka_unit_test(test_window)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
