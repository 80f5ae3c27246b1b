/* Long convolutions beyond what test_mixers can afford: transforms that all threads share, many blocks, a filter's
 * transform that is kept, squashed filters. Sums are taken in float64 at some positions. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "attention_run.h"
#include "base/random.h"
#include "linnet/mixer.h"

typedef struct scene_of {
    linnet_mixer_settings s;
    int64_t channels;
    float *value, *filter, *state, *output, *gradient, *value_gradient, *filter_gradient, *state_gradient;
} scene_of;

static float *normal_floats(int64_t count, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) x[i] = (float)ln_random_normal(&random);
    return x;
}

static scene_of open_scene(int64_t heads, int64_t columns, int64_t tokens, int64_t slots) {
    scene_of c = {.s = linnet_mixer_settings_default("long_convolution"), .channels = heads * columns};
    c.s.heads = heads;
    c.s.key_size = c.s.value_size = columns;
    c.s.tokens = tokens;
    c.s.slots = slots;
    c.value = normal_floats(tokens * c.channels, 1);
    c.filter = normal_floats(slots * c.channels, 2);
    c.state = normal_floats(slots * c.channels, 3);
    c.gradient = normal_floats(tokens * c.channels, 4);
    c.output = normal_floats(tokens * c.channels, 5);
    c.value_gradient = normal_floats(tokens * c.channels, 5);
    c.filter_gradient = normal_floats(slots * c.channels, 5);
    c.state_gradient = normal_floats(slots * c.channels, 5);
    return c;
}

static void close_scene_of(scene_of *c) {
    free(c->value);
    free(c->filter);
    free(c->state);
    free(c->gradient);
    free(c->output);
    free(c->value_gradient);
    free(c->filter_gradient);
    free(c->state_gradient);
}

static void run_scene(scene_of *c, linnet_mixer_form form, int threads, bool state, unsigned char **workspace) {
    linnet_context *context = test_context(3, threads);
    const uint64_t bytes = linnet_mixer_workspace(context, &c->s, form);
    assert_true(bytes > 0);
    unsigned char *room = workspace && *workspace ? *workspace : open_workspace(bytes);
    linnet_mixer_tensors t = {.size = sizeof t, .state_in = state ? c->state : NULL};
    t.input[0].data = c->value;
    t.input[1].data = c->filter;
    t.output.data = c->output;
    t.output_gradient.data = c->gradient;
    t.input_gradient[0].data = c->value_gradient;
    t.input_gradient[1].data = c->filter_gradient;
    t.state_in_gradient = c->state_gradient;
    if (form == LINNET_MIXER_BACKWARD)
        assert_int_equal(linnet_mixer_backward(context, &c->s, &t, room), LINNET_OK);
    else
        assert_int_equal(linnet_mixer_forward(context, &c->s, &t, room), LINNET_OK);
    if (workspace)
        *workspace = room;
    else
        close_workspace(room, bytes);
}

/* Input at a step, of channel i; the state before step 0. */
static double input_at(const scene_of *c, bool state, int64_t step, int64_t i) {
    const int64_t n = c->s.value_size, slots = c->s.slots;
    if (step >= 0) return (double)c->value[step * c->channels + i];
    return state && step >= -slots ? (double)c->state[(i / n * slots + slots + step) * n + i % n] : 0;
}
static double filter_at(const scene_of *c, int64_t tap, int64_t i) {
    const int64_t n = c->s.value_size;
    return (double)c->filter[(i / n * c->s.slots + tap) * n + i % n];
}

/* Errors are about 1e-6 of the size of a sum of so many products of normal numbers. */
static double allowed(int64_t terms) {
    return 3e-6 * sqrt((double)terms);
}

static void check_output(const scene_of *c, bool state, int64_t step, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < c->s.slots; j++) sum += filter_at(c, j, i) * input_at(c, state, step - j, i);
    const double off = fabs((double)c->output[step * c->channels + i] - sum);
    if (!(off < allowed(c->s.slots)))
        fail_msg("T %lld slots %lld: channel %lld at %lld is off by %g, allowed %g", (long long)c->s.tokens,
                 (long long)c->s.slots, (long long)i, (long long)step, off, allowed(c->s.slots));
}

static void forward_is_right(int64_t heads, int64_t columns, int64_t tokens, int64_t slots, bool state) {
    scene_of c = open_scene(heads, columns, tokens, slots);
    run_scene(&c, LINNET_MIXER_FORWARD, 2, state, NULL);
    ln_random random;
    ln_random_seed(&random, 9);
    check_output(&c, state, 0, 0);
    check_output(&c, state, tokens - 1, c.channels - 1);
    for (int n = 0; n < (SLOW ? 20 : 200); n++)
        check_output(&c, state, (int64_t)ln_random_below(&random, (uint64_t)tokens),
                     (int64_t)ln_random_below(&random, (uint64_t)c.channels));
    float *before = c.output;
    c.output = normal_floats(tokens * c.channels, 1);
    run_scene(&c, LINNET_MIXER_FORWARD, 1, state, NULL);
    assert_memory_equal(before, c.output, (size_t)(tokens * c.channels) * sizeof *before);
    free(before);
    close_scene_of(&c);
}

static void outputs(void **state) {
    (void)state;
    forward_is_right(2, 3, 7000, 6000, true);   /* one block, all threads at once */
    forward_is_right(1, 20, 5000, 5000, false); /* more than 16 channels */
    forward_is_right(17, 1, 900, 300, true);    /* heads of one channel */
    forward_is_right(1, 3, 30000, 700, true);   /* many blocks */
    forward_is_right(1, 2, 40, 9000, true);     /* few tokens: direct */
    if (!SLOW) forward_is_right(1, 2, 300000, 20000, true);
}

static void gradients_of(int64_t heads, int64_t columns, int64_t tokens, int64_t slots) {
    scene_of c = open_scene(heads, columns, tokens, slots);
    run_scene(&c, LINNET_MIXER_BACKWARD, 2, true, NULL);
    ln_random random;
    ln_random_seed(&random, 9);
    for (int n = 0; n < (SLOW ? 10 : 60); n++) {
        const int64_t i = (int64_t)ln_random_below(&random, (uint64_t)c.channels);
        const int64_t step = (int64_t)ln_random_below(&random, (uint64_t)(tokens + slots)) - slots;
        double sum = 0;
        for (int64_t t = step < 0 ? 0 : step; t < tokens && t - step < slots; t++)
            sum += filter_at(&c, t - step, i) * (double)c.gradient[t * c.channels + i];
        const int64_t v = c.s.value_size;
        const float got = step < 0 ? c.state_gradient[(i / v * slots + slots + step) * v + i % v]
                                   : c.value_gradient[step * c.channels + i];
        assert_true(fabs((double)got - sum) < allowed(slots));
        const int64_t tap = (int64_t)ln_random_below(&random, (uint64_t)slots);
        sum = 0;
        for (int64_t t = 0; t < tokens; t++)
            sum += input_at(&c, true, t - tap, i) * (double)c.gradient[t * c.channels + i];
        assert_true(fabs((double)c.filter_gradient[(i / v * slots + tap) * v + i % v] - sum) < allowed(tokens));
    }
    close_scene_of(&c);
}

static void gradients(void **state) {
    (void)state;
    gradients_of(2, 3, 7000, 6000);
    gradients_of(1, 3, 30000, 700);
    gradients_of(1, 18, 50, 400);
}

/* A kept transform gives the same bits as one that is made; other tokens, the same filter. */
static void kept_filters(void **state) {
    (void)state;
    for (int large = 0; large < 2; large++) {
        scene_of c = open_scene(1, 24, large ? 7000 : 500, large ? 7000 : 500);
        c.s.option[0] = 1;
        unsigned char *workspace = NULL;
        run_scene(&c, LINNET_MIXER_FORWARD, 2, true, &workspace);
        free(c.value);
        c.value = normal_floats(c.s.tokens * c.channels, 77);
        c.s.option[0] = 2;
        run_scene(&c, LINNET_MIXER_FORWARD, 2, true, &workspace);
        free(workspace);
        float *kept = c.output;
        c.output = normal_floats(c.s.tokens * c.channels, 7);
        c.s.option[0] = 0;
        run_scene(&c, LINNET_MIXER_FORWARD, 2, true, NULL);
        assert_memory_equal(kept, c.output, (size_t)(c.s.tokens * c.channels) * sizeof *kept);
        free(kept);
        close_scene_of(&c);
    }
}

/* Every fourth frequency of M = 8192: the filter acts as its copies M / 4 apart, weighed by cos(pi m / 8) / 4. Rows
 * that have none of them are not computed. */
static void sparse_frequencies(void **state) {
    (void)state;
    scene_of c = open_scene(1, 3, 6000, 6000);
    c.s.name = "frequency_sparse_convolution";
    c.s.option[3] = 16;
    run_scene(&c, LINNET_MIXER_FORWARD, 2, false, NULL);
    for (int n = 0; n < 12; n++) {
        const int64_t t = 6000 / 12 * n + 7, i = n % 3;
        double sum = 0;
        for (int64_t s = 0; s < 6000; s++)
            for (int64_t m = -6; m <= 6; m++) {
                const int64_t j = t - s - m * 2048;
                if (j >= 0 && j < 6000)
                    sum += input_at(&c, false, s, i) * filter_at(&c, j, i) * cos(3.14159265358979 * (double)m / 8) / 4;
            }
        assert_true(fabs((double)c.output[t * 3 + i] - sum) < allowed(6000));
    }
    c.s.option[3] = 64; /* all: nothing but the convolution */
    run_scene(&c, LINNET_MIXER_FORWARD, 2, false, NULL);
    for (int n = 0; n < 12; n++) check_output(&c, false, 500 * n + 7, n % 3);
    close_scene_of(&c);
}

/* Taps that are not above the limit act as zeros, and learn nothing; a limit above all gives exact zeros. */
static void squashed_filters(void **state) {
    (void)state;
    scene_of c = open_scene(1, 4, 300, 200);
    c.s.option[1] = 0.7;
    run_scene(&c, LINNET_MIXER_BACKWARD, 1, true, NULL);
    int silent = 0;
    for (int64_t i = 0; i < 200 * 4; i++) {
        const bool small = fabsf(c.filter[i]) <= 0.7f;
        silent += small;
        assert_true((c.filter_gradient[i] == 0) == small);
    }
    assert_in_range(silent, 100, 700);
    c.s.option[1] = 100;
    run_scene(&c, LINNET_MIXER_FORWARD, 1, true, NULL);
    for (int64_t i = 0; i < 300 * 4; i++) assert_true(c.output[i] == 0);
    close_scene_of(&c);
}

static void wrong_settings(void **state) {
    (void)state;
    linnet_context *context = test_context(3, 1);
    static const double wrong[][2] = {{0, 3}, {0, -1}, {1, -1}, {1, (double)NAN}, {2, 0.5}, {2, 33}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        linnet_mixer_settings s = linnet_mixer_settings_default("long_convolution");
        s.key_size = 4;
        s.option[(int)wrong[i][0]] = wrong[i][1];
        assert_int_equal(linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(outputs),        cmocka_unit_test(gradients),
                                       cmocka_unit_test(kept_filters),   cmocka_unit_test(squashed_filters),
                                       cmocka_unit_test(wrong_settings), cmocka_unit_test(sparse_frequencies)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
