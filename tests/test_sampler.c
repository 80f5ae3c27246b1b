/* Choosing tokens: each cut alone, their frequencies against the distribution, worst-case logits, bad settings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "generate/session.h"

enum { VOCABULARY = 50 };

typedef struct scene {
    linnet_context *context;
    linnet_model model;
    linnet_session session;
    float logits[VOCABULARY];
    int32_t tokens[4];
} scene;

static void open_scene(scene *s) {
    memset(s, 0, sizeof *s);
    assert_int_equal(linnet_context_open(NULL, &s->context), LINNET_OK);
    s->model.context = s->context;
    s->model.hyper.vocabulary = VOCABULARY;
    s->session = (linnet_session){.model = &s->model, .logits = s->logits, .tokens = s->tokens, .has_logits = true};
    for (int i = 0; i < VOCABULARY; i++) s->logits[i] = (float)((i * 7) % VOCABULARY) / 10;
}

static linnet_sampler_settings plain(void) {
    linnet_sampler_settings settings = linnet_sampler_settings_default();
    settings.temperature = 1;
    settings.top_k = 0;
    settings.top_p = 1;
    settings.min_p = 0;
    return settings;
}

static void count_draws(scene *s, const linnet_sampler_settings *settings, int draws, int counts[VOCABULARY]) {
    linnet_sampler *sampler;
    assert_int_equal(linnet_sampler_open(&s->model, settings, &sampler), LINNET_OK);
    memset(counts, 0, VOCABULARY * sizeof *counts);
    for (int i = 0; i < draws; i++) {
        int32_t id;
        assert_int_equal(linnet_sample(sampler, &s->session, &id), LINNET_OK);
        assert_in_range(id, 0, VOCABULARY - 1);
        counts[id]++;
    }
    linnet_sampler_close(sampler);
}

static void test_distribution(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    int counts[VOCABULARY];
    const linnet_sampler_settings settings = plain();
    count_draws(&s, &settings, 100000, counts);
    double sum = 0;
    for (int i = 0; i < VOCABULARY; i++) sum += exp((double)s.logits[i]);
    for (int i = 0; i < VOCABULARY; i++) {
        const double want = 100000 * exp((double)s.logits[i]) / sum;
        assert_true(fabs(counts[i] - want) < 5 * sqrt(want) + 1);
    }
    linnet_context_close(s.context);
}

static int distinct(const int counts[VOCABULARY]) {
    int n = 0;
    for (int i = 0; i < VOCABULARY; i++) n += counts[i] > 0;
    return n;
}

static void test_cuts(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    int counts[VOCABULARY];
    linnet_sampler_settings settings = plain();
    settings.top_k = 3;
    count_draws(&s, &settings, 2000, counts);
    assert_int_equal(distinct(counts), 3);
    for (int i = 0; i < VOCABULARY; i++) assert_int_equal(counts[i] > 0, s.logits[i] > 4.65f);
    settings = plain();
    settings.min_p = 0.5f; /* log 2 = 0.69: the top seven, 0.1 apart */
    count_draws(&s, &settings, 5000, counts);
    assert_int_equal(distinct(counts), 7);
    settings = plain();
    settings.top_p = 0.05f; /* the first alone has 0.096 */
    count_draws(&s, &settings, 500, counts);
    assert_int_equal(distinct(counts), 1);
    settings = plain();
    settings.temperature = 0;
    count_draws(&s, &settings, 10, counts);
    assert_int_equal(distinct(counts), 1);
    linnet_context_close(s.context);
}

static void test_penalty(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    int counts[VOCABULARY];
    linnet_sampler_settings settings = plain();
    settings.temperature = 0;
    count_draws(&s, &settings, 1, counts);
    int32_t best = 0;
    while (!counts[best]) best++;
    s.tokens[0] = s.tokens[1] = best;
    s.session.position = 2;
    settings.repeat_penalty = 1.5f;
    count_draws(&s, &settings, 1, counts);
    assert_int_equal(counts[best], 0);
    settings.repeat_last = 0;
    count_draws(&s, &settings, 1, counts);
    assert_int_equal(counts[best], 1);
    linnet_context_close(s.context);
}

static void test_seeds(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    int first[VOCABULARY], again[VOCABULARY], other[VOCABULARY];
    linnet_sampler_settings settings = plain();
    settings.seed = 7;
    count_draws(&s, &settings, 200, first);
    count_draws(&s, &settings, 200, again);
    settings.seed = 8;
    count_draws(&s, &settings, 200, other);
    assert_memory_equal(first, again, sizeof first);
    assert_memory_not_equal(first, other, sizeof first);
    linnet_context_close(s.context);
}

static void test_worst_logits(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    int counts[VOCABULARY];
    const linnet_sampler_settings settings = plain();
    for (int i = 0; i < VOCABULARY; i++) s.logits[i] = i % 2 ? NAN : -INFINITY;
    s.logits[4] = 1e30f;
    count_draws(&s, &settings, 10, counts);
    assert_int_equal(counts[4], 10);
    for (int i = 0; i < VOCABULARY; i++) s.logits[i] = NAN; /* nothing sensible, but an id and no crash */
    count_draws(&s, &settings, 10, counts);
    s.session.has_logits = false;
    linnet_sampler *sampler;
    int32_t id;
    assert_int_equal(linnet_sampler_open(&s.model, &settings, &sampler), LINNET_OK);
    assert_int_equal(linnet_sample(sampler, &s.session, &id), LINNET_ERROR_ARGUMENT);
    linnet_sampler_close(sampler);
    linnet_context_close(s.context);
}

static void test_bad_settings(void **state) {
    (void)state;
    scene s;
    open_scene(&s);
    linnet_sampler *sampler;
    for (int i = 0; i < 7; i++) {
        linnet_sampler_settings settings = plain();
        if (i == 0) settings.temperature = -1;
        if (i == 1) settings.temperature = NAN;
        if (i == 2) settings.top_k = -1;
        if (i == 3) settings.top_p = 0;
        if (i == 4) settings.min_p = 1.5f;
        if (i == 5) settings.repeat_penalty = 0;
        if (i == 6) settings.repeat_last = -1;
        assert_int_equal(linnet_sampler_open(&s.model, &settings, &sampler), LINNET_ERROR_ARGUMENT);
        assert_null(sampler);
        assert_true(strlen(linnet_last_error(s.context)) > 10);
    }
    linnet_context_close(s.context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution), cmocka_unit_test(test_cuts),         cmocka_unit_test(test_penalty),
        cmocka_unit_test(test_seeds),        cmocka_unit_test(test_worst_logits), cmocka_unit_test(test_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
