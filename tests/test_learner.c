/* Where memories that learn at test time are other mixers: a chunk of one token, the plain loss and no momentum make
 * the delta rule; and cells whose state is known in closed form. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "linnet/linnet.h"
#include "linnet/mixer.h"

enum { TOKENS = 70, HEADS = 2, SIZE = 24, MOST = TOKENS * HEADS * SIZE };

static linnet_context *context;

static int open_context(void **state) {
    (void)state;
    const linnet_context_settings settings = linnet_context_settings_default();
    return linnet_context_open(&settings, &context);
}
static int close_context(void **state) {
    (void)state;
    linnet_context_close(context);
    return 0;
}

static float query[MOST], key[MOST], value[MOST], beta[TOKENS * HEADS], half[TOKENS * HEADS], zeros[MOST], ones[MOST],
    never[TOKENS * HEADS];

static void draw(void) {
    ln_random random;
    ln_random_seed(&random, 5);
    for (int i = 0; i < MOST; i++) {
        query[i] = (float)ln_random_normal(&random);
        key[i] = (float)(ln_random_normal(&random) / sqrt(SIZE));
        value[i] = (float)ln_random_normal(&random);
        ones[i] = 1;
    }
    for (int i = 0; i < TOKENS * HEADS; i++) {
        beta[i] = (float)ln_random_unit(&random);
        half[i] = beta[i] / 2;
        never[i] = -INFINITY;
    }
}

static linnet_mixer_settings settings_of(const char *name) {
    linnet_mixer_settings s = linnet_mixer_settings_default(name);
    s.heads = HEADS;
    s.key_size = s.value_size = SIZE;
    s.tokens = TOKENS;
    return s;
}

typedef struct named {
    const char *name;
    const float *data;
} named;

static void run(const linnet_mixer_settings *s, const named *inputs, float *output) {
    linnet_mixer_tensors t = {.size = sizeof t, .output = {.data = output}};
    for (const named *i = inputs; i->name; i++) {
        const int at = linnet_mixer_input_index(s->name, i->name);
        assert_true(at >= 0);
        t.input[at].data = (void *)(uintptr_t)i->data;
    }
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, s, LINNET_MIXER_FORWARD));
    if (linnet_mixer_forward(context, s, &t, workspace) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    free(workspace);
}

static void assert_near(const float *got, const float *wanted, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)got[i] - (double)wanted[i]) * ((double)got[i] - (double)wanted[i]);
        size += (double)wanted[i] * (double)wanted[i];
    }
    if (!(sqrt(error / size) < 3e-6)) fail_msg("off by %g", sqrt(error / size));
}

static void learners_are_the_delta_rule(void **state) {
    (void)state;
    static float wanted[MOST], got[MOST];
    draw();
    linnet_mixer_settings s = settings_of("delta_rule");
    run(&s, (const named[]){{"query", query}, {"key", key}, {"value", value}, {"beta", beta}, {0}}, wanted);

    s = settings_of("titans");
    s.slots = 1;
    s.option[0] = 1;
    run(&s,
        (const named[]){{"query", query},
                        {"key", key},
                        {"value", value},
                        {"step_size", half},
                        {"decay", zeros},
                        {"momentum", never},
                        {0}},
        got);
    assert_near(got, wanted, MOST);

    s = settings_of("atlas");
    s.slots = 1;
    s.option[1] = 0;
    run(&s,
        (const named[]){{"query", query},
                        {"key", key},
                        {"value", value},
                        {"gain", ones},
                        {"step_size", half},
                        {"decay", zeros},
                        {"momentum", never},
                        {0}},
        got);
    assert_near(got, wanted, MOST);
}

/* Singular values of what Newton and Schulz's iteration gives are near 1, so from one token the memory is near
 * - step k^T error / (|k| |error|). */
static void one_token_is_learned_at_full_length(void **state) {
    (void)state;
    static float got[HEADS * SIZE];
    draw();
    linnet_mixer_settings s = settings_of("atlas");
    s.tokens = 1;
    s.scale = 1;
    run(&s,
        (const named[]){{"query", key},
                        {"key", key},
                        {"value", value},
                        {"gain", ones},
                        {"step_size", ones},
                        {"decay", zeros},
                        {"momentum", never},
                        {0}},
        got);
    for (int head = 0; head < HEADS; head++) {
        double keys = 0, values = 0, along = 0, all = 0;
        for (int i = head * SIZE; i < (head + 1) * SIZE; i++) {
            keys += (double)key[i] * (double)key[i];
            values += (double)value[i] * (double)value[i];
            along += (double)got[i] * (double)value[i];
            all += (double)got[i] * (double)got[i];
        }
        assert_true(fabs(along / sqrt(all * values) - 1) < 1e-6); /* in the direction of the value */
        const double length = sqrt(all / keys);
        assert_true(length > 0.67 && length < 1.2);
    }
}

/* Without anything written, a leaky memory's state decays and does nothing else. */
static void leaks_are_exponentials(void **state) {
    (void)state;
    enum { N = 8 };
    float decay[N], synapse_decay[N], out[TOKENS * N], none[4 * N * N] = {0}, silent[TOKENS * N] = {0}, start[2 * N];
    linnet_mixer_settings s = linnet_mixer_settings_default("leaky_memory");
    s.key_size = s.value_size = N;
    s.tokens = TOKENS;
    s.option[0] = 0;
    for (int i = 0; i < N; i++) {
        decay[i] = synapse_decay[i] = -0.01f * (float)(i + 1);
        start[i] = start[N + i] = 1 + (float)i;
    }
    linnet_mixer_tensors t = {.size = sizeof t, .output = {.data = out}, .state_in = start, .state_out = start};
    const named inputs[] = {{"value", silent}, {"synapse", none},   {"synapse_decay", synapse_decay},
                            {"branch", none},  {"recurrent", none}, {"write", none},
                            {"decay", decay}};
    for (int i = 0; i < 7; i++)
        t.input[linnet_mixer_input_index(s.name, inputs[i].name)].data = (void *)(uintptr_t)inputs[i].data;
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD));
    assert_int_equal(linnet_mixer_forward(context, &s, &t, workspace), LINNET_OK);
    free(workspace);
    for (int i = 0; i < N; i++) {
        const double wanted = (1 + i) * exp(-0.01 * (i + 1) * TOKENS);
        assert_true(fabs((double)start[i] - wanted) < 1e-5 && fabs((double)start[N + i] - wanted) < 1e-5);
        assert_true(fabs((double)out[(TOKENS - 1) * N + i] - wanted) < 1e-5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(learners_are_the_delta_rule),
                                       cmocka_unit_test(one_token_is_learned_at_full_length),
                                       cmocka_unit_test(leaks_are_exponentials)};
    return cmocka_run_group_tests(tests, open_context, close_context);
}
