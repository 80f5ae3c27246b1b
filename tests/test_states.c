/* Recurrent states: what is read and written, committed, rewound, forked and saved against a list of all that ever was;
 * snapshots inside their number; and models with states: interrupted in the middle of a piece, going back to where a
 * text was still the same, many questions on one document, under a policy, in a budget, without any attention. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/context.h"
#include "base/random.h"
#include "generate/session.h"
#include "linnet/linnet.h"
#include "memory/states.h"

#define CHECK(context, call)                                                            \
    do {                                                                                \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(context)); \
    } while (0)

static linnet_context *open_context(void) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 2;
    linnet_context *context;
    CHECK(context, linnet_context_open(&settings, &context));
    return context;
}

/* ---- the states alone ---- */

enum { LAYERS = 3, MOST = 4000 };
static const int64_t floats[LAYERS] = {32, 0, 16};

/* A sequence is known by what its tokens were: the number that stands for the first `position` of them. */
typedef struct sequence {
    ln_states *states;
    int64_t position;
    float is[MOST]; /* at each position */
} sequence;

static void check_is(const sequence *s) {
    for (int64_t l = 0; l < LAYERS; l++)
        for (int64_t i = 0; i < floats[l]; i++)
            assert_true(ln_states_now(s->states, l)[i] == (s->position ? s->is[s->position] + (float)l : 0));
}

static void write_next(sequence *s, float value) {
    for (int64_t l = 0; l < LAYERS; l++)
        for (int64_t i = 0; i < floats[l]; i++) ln_states_next(s->states, l)[i] = value + (float)l;
}

static void go_on(sequence *s, int64_t tokens, ln_random *random) {
    const float value = 1 + (float)ln_random_below(random, 1 << 20);
    for (int64_t i = 1; i <= tokens; i++) s->is[s->position + i] = i == tokens ? value : -1; /* -1: never was a state */
    write_next(s, value);
    ln_states_commit(s->states, s->position, s->position + tokens);
    s->position += tokens;
}

static void go_back(sequence *s, ln_random *random) {
    const int64_t wanted = (int64_t)ln_random_below(random, (uint64_t)s->position + 1);
    const int64_t point = ln_states_point(s->states, s->position, wanted);
    assert_true(point >= 0 && point <= wanted);
    assert_int_equal(ln_states_point(s->states, s->position, point), point);
    ln_states_rewind(s->states, s->position, point);
    s->position = point;
}

static ln_states_shape shape_of(int64_t snapshots, int64_t interval) {
    return (ln_states_shape){.layers = LAYERS, .floats = floats, .snapshots = snapshots, .interval = interval};
}

static void test_any_order(void **state) {
    (void)state;
    linnet_context *context = open_context();
    for (int64_t snapshots = 0; snapshots < 6; snapshots++) {
        const ln_states_shape shape = shape_of(snapshots, snapshots % 2 ? 50 : 0);
        ln_random random;
        ln_random_seed(&random, (uint64_t)snapshots + 3);
        static sequence one, other;
        const uint64_t before = linnet_memory_used(context);
        CHECK(context, ln_states_open(context, &shape, &one.states));
        assert_int_equal(linnet_memory_used(context) - before, ln_states_bytes(&shape));
        one.position = 0;
        for (int step = 0; step < 3000; step++) {
            const uint64_t what = ln_random_below(&random, 10);
            const int64_t tokens = 1 + (int64_t)ln_random_below(&random, what < 3 ? 1 : 40);
            if (what < 5 && one.position + tokens < MOST) go_on(&one, tokens, &random);
            if (what == 5) write_next(&one, -7); /* not committed */
            if (what == 6) ln_states_mark(one.states, one.position);
            if (what == 7) go_back(&one, &random);
            if (what == 8 && step % 5 == 0) {
                CHECK(context, ln_states_fork(one.states, &other.states));
                other.position = one.position;
                memcpy(other.is, one.is, sizeof one.is);
                go_on(&one, 1, &random);
                check_is(&other);
                go_back(&other, &random);
                check_is(&other);
                ln_states_close(one.states);
                one = other;
            }
            if (one.position > MOST - 100) go_back(&one, &random);
            check_is(&one);
        }
        ln_states_rewind(one.states, one.position, 0);
        one.position = 0;
        check_is(&one);
        ln_states_close(one.states);
    }
    linnet_context_close(context);
}

/* The one before the last commit costs nothing; what is kept stays spread over the text. */
static void test_points(void **state) {
    (void)state;
    linnet_context *context = open_context();
    const ln_states_shape shape = shape_of(4, 0);
    static sequence s;
    ln_random random;
    ln_random_seed(&random, 1);
    CHECK(context, ln_states_open(context, &shape, &s.states));
    s.position = 0;
    go_on(&s, 1000, &random);
    for (int turn = 0; turn < 20; turn++) {
        ln_states_mark(s.states, s.position);
        go_on(&s, 100, &random);
    }
    assert_int_equal(ln_states_point(s.states, s.position, s.position - 1), s.position - 100);
    assert_int_equal(ln_states_point(s.states, s.position, 1000), 1000); /* nothing is as far from its neighbours */
    assert_int_equal(ln_states_point(s.states, s.position, 999), 0);
    write_next(&s, -7);
    assert_true(ln_states_point(s.states, s.position, s.position - 1) <= s.position - 100);
    ln_states_close(s.states);
    const ln_states_shape wrong[] = {shape_of(-1, 0), shape_of(1 << 20, 0), shape_of(0, -1)};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_true(ln_states_bytes(&wrong[i]) == UINT64_MAX);
        assert_int_equal(ln_states_open(context, &wrong[i], &s.states), LINNET_ERROR_ARGUMENT);
    }
    linnet_context_close(context);
}

/* ---- models ---- */

static linnet_model *open_model(linnet_context *context, const char *name) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/golden/models/%s", TESTS_FOLDER, name);
    linnet_model *model;
    CHECK(context, linnet_model_open(context, folder, &model));
    return model;
}

static linnet_session *open_session(linnet_model *model, int64_t snapshots, int64_t interval) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 400;
    settings.piece = 16;
    settings.precision = LINNET_F32;
    settings.snapshots = snapshots;
    settings.snapshot_interval = interval;
    linnet_session *session;
    CHECK(model->context, linnet_session_open(model, &settings, &session));
    return session;
}

static int32_t ids[400];

static void fill(const linnet_model *model, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    for (int i = 0; i < 400; i++) ids[i] = (int32_t)ln_random_below(&random, (uint64_t)model->hyper.vocabulary);
}

static float *logits_after(linnet_session *session, int64_t first, int64_t count) {
    linnet_model *model = session->model;
    CHECK(model->context, linnet_session_feed(session, ids + first, count));
    const size_t bytes = (size_t)model->hyper.vocabulary * sizeof(float);
    return memcpy(malloc(bytes), linnet_session_logits(session), bytes);
}

static void same(const linnet_model *model, float *a, float *b) {
    assert_memory_equal(a, b, (size_t)model->hyper.vocabulary * sizeof *a);
    free(b);
}

static int64_t stop_at = -1;

static void stop(void *watcher, int64_t layer, const float *h, int64_t tokens) {
    (void)h, (void)tokens;
    if (layer == stop_at) linnet_interrupt(watcher);
}

/* In any layer of any piece: nothing has changed. */
static void test_interrupted(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 5);
    linnet_session *session = open_session(model, 0, 0);
    float *whole = logits_after(session, 0, 40);
    for (stop_at = 0; stop_at < model->hyper.layers - 1; stop_at++) {
        CHECK(context, linnet_session_rewind(session, 0));
        CHECK(context, linnet_session_feed(session, ids, 16));
        session->workspace->forward.watch = stop;
        session->workspace->forward.watcher = context;
        assert_int_equal(linnet_session_feed(session, ids + 16, 24), LINNET_INTERRUPTED);
        assert_int_equal(linnet_session_position(session), 16);
        session->workspace->forward.watch = NULL;
        linnet_interrupt_clear(context);
        same(model, whole, logits_after(session, 16, 24));
    }
    free(whole);
    linnet_session_close(session);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* Questions on one document: by going back to its end, and by forks; then back to a turn of the conversation. */
static void test_questions(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    enum { DOCUMENT = 96, QUESTION = 21 };
    fill(model, 6);
    linnet_session *fresh = open_session(model, 0, 0), *session = open_session(model, 3, 0);
    float *answers[3];
    for (int q = 0; q < 3; q++) {
        CHECK(context, linnet_session_rewind(fresh, 0));
        CHECK(context, linnet_session_feed(fresh, ids, DOCUMENT));
        answers[q] = logits_after(fresh, DOCUMENT + q * QUESTION, QUESTION);
    }
    CHECK(context, linnet_session_feed(session, ids, DOCUMENT));
    for (int q = 0; q < 3; q++) {
        linnet_session *fork;
        CHECK(context, linnet_session_fork(session, &fork));
        same(model, answers[q], logits_after(fork, DOCUMENT + q * QUESTION, QUESTION));
        linnet_session_close(fork);
    }
    for (int q = 0; q < 3; q++) {
        same(model, answers[q], logits_after(session, DOCUMENT + q * QUESTION, QUESTION));
        const int64_t end = linnet_session_position(session);
        assert_int_equal(linnet_session_rewind_point(session, end), end);
        assert_int_equal(linnet_session_rewind_point(session, DOCUMENT + 3), DOCUMENT);
        assert_int_equal(linnet_session_rewind_point(session, DOCUMENT - 1), 0);
        assert_int_equal(linnet_session_rewind(session, DOCUMENT + 3), LINNET_ERROR_UNSUPPORTED);
        assert_non_null(strstr(linnet_last_error(context), "rewind to 96"));
        assert_int_equal(linnet_session_position(session), end);
        CHECK(context, linnet_session_rewind(session, DOCUMENT));
    }
    for (int q = 0; q < 3; q++) free(answers[q]);
    linnet_session_close(session);
    linnet_session_close(fresh);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* About every so many tokens; a token at a time the last one can always be taken back; saved states go on. */
static void test_interval(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 7);
    linnet_session *session = open_session(model, 8, 40), *loaded = open_session(model, 0, 0);
    float *whole = logits_after(session, 0, 300);
    assert_int_equal(linnet_session_rewind_point(session, 299), 288); /* the last piece */
    assert_int_equal(linnet_session_rewind_point(session, 180), 160);
    CHECK(context, linnet_session_rewind(session, 160));
    assert_int_equal(linnet_session_rewind_point(session, 159), 128);
    char path[] = "/tmp/linnet-states-XXXXXX";
    close(mkstemp(path));
    CHECK(context, linnet_session_save(session, path));
    same(model, whole, logits_after(session, 160, 140));
    CHECK(context, linnet_session_load(loaded, path));
    same(model, whole, logits_after(loaded, 160, 140));
    for (int64_t i = 300; i < 305; i++) {
        CHECK(context, linnet_session_feed(loaded, ids + i, 1));
        assert_int_equal(linnet_session_rewind_limit(loaded), i);
    }
    CHECK(context, linnet_session_rewind(loaded, 304));
    assert_int_equal(linnet_session_rewind_limit(loaded), 304);
    /* Of another model, whose states are others. */
    linnet_model *other = open_model(context, "llama-3");
    linnet_session *wrong = open_session(other, 0, 0);
    assert_int_equal(linnet_session_load(wrong, path), LINNET_ERROR_FORMAT);
    linnet_session_close(wrong);
    linnet_model_close(other);
    unlink(path);
    free(whole);
    linnet_session_close(loaded);
    linnet_session_close(session);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* The plan counts states and snapshots, and nothing more is taken. */
static void test_plan(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    const uint64_t one = linnet_model_describe(model).state_bytes;
    assert_true(one > 0);
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 100;
    settings.precision = LINNET_F32;
    for (settings.snapshots = 0; settings.snapshots < 9; settings.snapshots += 4) {
        linnet_plan plan;
        linnet_session *session;
        const uint64_t before = linnet_memory_used(context);
        CHECK(context, linnet_session_open(model, &settings, &session));
        plan = linnet_session_plan(session);
        assert_int_equal(linnet_memory_used(context) - before, plan.pages + plan.states + plan.workspace);
        assert_true(plan.states >= (2 + (uint64_t)settings.snapshots) * one &&
                    plan.states < (2 + (uint64_t)settings.snapshots) * one + 4096);
        assert_int_equal(plan.total, plan.model + plan.pages + plan.states + plan.workspace + plan.overhead);
        linnet_session_close(session);
        settings.memory = plan.total;
        CHECK(context, linnet_plan_session(model, &settings, &plan));
        settings.memory = plan.smallest - 1;
        assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_MEMORY);
        settings.memory = 0;
    }
    settings.snapshots = -1;
    linnet_plan plan;
    assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_ARGUMENT);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* A policy is about the layers that attend: all kept under it is what there is without, and little is little. */
static void test_policy(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 8);
    const char *const policies[] = {"full:keys=f32,values=f32,near=f32", "snapkv:recent=32", "keydiff:recent=32",
                                    "squeeze:recent=32"};
    linnet_session *plain = open_session(model, 0, 0);
    float *whole = logits_after(plain, 0, 200);
    linnet_session_close(plain);
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        linnet_session_settings settings = linnet_session_settings_default();
        settings.context = 400;
        settings.piece = 16;
        settings.policy = policies[i];
        linnet_session *session;
        if (i > 0) {
            settings.cache = 1;
            linnet_plan plan;
            assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_MEMORY);
            settings.cache = plan.pages + 2000;
        }
        CHECK(context, linnet_session_open(model, &settings, &session));
        float *logits = logits_after(session, 0, 200);
        if (i == 0)
            for (int64_t v = 0; v < model->hyper.vocabulary; v++)
                assert_true(logits[v] - whole[v] < 1e-3f && whole[v] - logits[v] < 1e-3f);
        const linnet_usage usage = linnet_session_usage(session);
        assert_true(i == 0 ? usage.evicted == 0 : usage.evicted > 0);
        assert_int_equal(usage.kept + usage.evicted,
                         200 * model->hyper.attention_layers * model->hyper.key_value_heads);
        free(logits);
        linnet_session_close(session);
    }
    free(whole);
    linnet_model_close(model);
    linnet_context_close(context);
}

static void test_no_attention(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    assert_int_equal(linnet_model_describe(model).attention_layers, 0);
    linnet_session_settings settings = linnet_session_settings_default();
    linnet_plan plan, longer;
    settings.context = 1000;
    CHECK(context, linnet_plan_session(model, &settings, &plan));
    settings.context = 1 << 24;
    settings.memory = 1 << 30;
    CHECK(context, linnet_plan_session(model, &settings, &longer));
    assert_int_equal(longer.bytes_per_token, 0);
    assert_int_equal(longer.states, plan.states);
    assert_true(longer.pages - plan.pages <= sizeof(int32_t) << 24);
    settings.policy = "snapkv";
    assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_UNSUPPORTED);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* ---- norms of matrix states ---- */

static linnet_session *open_limited(linnet_model *model, int64_t reference, double growth, double limit) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 400;
    settings.piece = 16;
    settings.precision = LINNET_F32;
    settings.state_reference = reference;
    settings.state_growth = growth;
    settings.state_limit = limit;
    linnet_session *session;
    CHECK(model->context, linnet_session_open(model, &settings, &session));
    return session;
}

static const float *head_of(const linnet_session *session, int64_t layer, int64_t head) {
    const ln_state_heads *heads = &session->model->state_heads[layer];
    return ln_memory_state(session->memory, layer) + heads->offset + head * heads->floats;
}

static double norm_of(const linnet_session *session, int64_t layer, int64_t head) {
    double sum = 0;
    for (int64_t i = session->model->state_heads[layer].floats; i-- > 0;)
        sum += pow((double)head_of(session, layer, head)[i], 2);
    return sqrt(sum);
}

static void near(double a, double b) {
    if (!(fabs(a - b) <= 1e-6 * (fabs(a) + fabs(b)))) fail_msg("%.9g is not %.9g", a, b);
}

/* Figures against sums by hand; what was remembered is of exactly that many tokens; remembering changes no bit. */
static void test_norms(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 11);
    linnet_session *plain = open_session(model, 0, 0), *early = open_session(model, 0, 0),
                   *watched = open_limited(model, 21, 0, 0);
    free(logits_after(early, 0, 21));
    float *whole = logits_after(plain, 0, 21);
    free(whole);
    whole = logits_after(plain, 21, 60);
    free(logits_after(watched, 0, 20));
    linnet_layer_states s;
    int64_t layers = 0;
    for (int64_t l = 0; l < model->hyper.layers; l++) {
        CHECK(context, linnet_session_states(watched, l, &s, NULL));
        assert_true(s.early_mean == 0 && s.growth == 0);
    }
    free(logits_after(watched, 20, 1));
    same(model, whole, logits_after(watched, 21, 60));
    for (int64_t l = 0; l < model->hyper.layers; l++) {
        double norms[256], sum = 0, sum_early = 0, largest = 0, growth = 0;
        CHECK(context, linnet_session_states(watched, l, &s, norms));
        assert_int_equal(s.heads, model->state_heads[l].count);
        layers += s.heads > 0;
        for (int64_t h = 0; h < s.heads; h++) {
            const double now = norm_of(plain, l, h), then = norm_of(early, l, h);
            near(norms[h], now);
            sum += now * now;
            sum_early += then * then;
            largest = fmax(largest, now);
            growth = fmax(growth, now / then);
        }
        if (!s.heads) continue;
        near(s.mean, sqrt(sum / (double)s.heads));
        near(s.early_mean, sqrt(sum_early / (double)s.heads));
        near(s.largest, largest);
        near(s.largest, norms[s.largest_head]);
        near(s.growth, growth);
        near(s.growth, norms[s.growth_head] / norm_of(early, l, s.growth_head));
    }
    assert_true(layers > 0);
    assert_int_equal(linnet_session_states(watched, model->hyper.layers, &s, NULL), LINNET_ERROR_ARGUMENT);
    free(whole);
    linnet_session_close(watched);
    linnet_session_close(early);
    linnet_session_close(plain);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* A piece's state is what the model made of it, head by head scaled down to p; heads within p keep their bits. */
static void test_limit(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 12);
    linnet_session *plain = open_session(model, 0, 0);
    free(logits_after(plain, 0, 16));
    int64_t layer = 0, scaled = 0, kept = 0;
    while (!model->state_heads[layer].count) layer++;
    double least = (double)INFINITY, most = 0;
    for (int64_t h = 0; h < model->state_heads[layer].count; h++) {
        least = fmin(least, norm_of(plain, layer, h));
        most = fmax(most, norm_of(plain, layer, h));
    }
    const double p = (least + most) / 2;
    linnet_session *limited = open_limited(model, 0, 0, p);
    free(logits_after(limited, 0, 16));
    for (int64_t l = 0; l < model->hyper.layers; l++)
        for (int64_t h = 0; h < model->state_heads[l].count; h++) {
            const double norm = norm_of(plain, l, h), by = fmin(1, p / norm);
            const float *a = head_of(plain, l, h), *b = head_of(limited, l, h);
            for (int64_t i = 0; i < model->state_heads[l].floats; i++) {
                if (by == 1) assert_true(a[i] == b[i]);
                near((double)a[i] * by, (double)b[i]);
            }
            if (by < 1) near(norm_of(limited, l, h), p);
            by < 1 ? scaled++ : kept++;
        }
    assert_true(scaled > 0);
    assert_true(kept > 0 || model->state_heads[layer].count == 1);
    for (int64_t t = 16; t < 80; t += t < 40 ? 1 : 20) {
        free(logits_after(limited, t, t < 40 ? 1 : 20));
        for (int64_t l = 0; l < model->hyper.layers; l++)
            for (int64_t h = 0; h < model->state_heads[l].count; h++)
                assert_true(norm_of(limited, l, h) <= p * (1 + 1e-6));
    }
    linnet_session_close(limited);
    linnet_session_close(plain);
    linnet_model_close(model);
    linnet_context_close(context);
}

/* A limit that is measured: forked, saved, gone back and read again, with one thread or more, it gives the same bits;
 * one that is never reached gives those of no limit. */
static void test_growth(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    fill(model, 13);
    linnet_session *plain = open_session(model, 0, 0), *far = open_limited(model, 20, 1e6, 1e9),
                   *one = open_limited(model, 20, 0.5, 0), *other = open_limited(model, 20, 0.5, 0), *fork;
    float *of_plain = logits_after(plain, 0, 90);
    free(logits_after(far, 0, 20)); /* where the pieces are cut */
    linnet_session *cut = open_session(model, 0, 0);
    free(logits_after(cut, 0, 20));
    float *of_cut = logits_after(cut, 20, 70);
    same(model, of_cut, logits_after(far, 20, 70));
    free(logits_after(one, 0, 50));
    linnet_layer_states s;
    for (int64_t l = 0; l < model->hyper.layers; l++) {
        CHECK(context, linnet_session_states(one, l, &s, NULL));
        assert_true(s.growth <= 0.5 * (1 + 1e-6));
    }
    char path[] = "/tmp/linnet-states-XXXXXX";
    close(mkstemp(path));
    CHECK(context, linnet_session_save(one, path));
    CHECK(context, linnet_session_fork(one, &fork));
    float *limited = logits_after(one, 50, 40);
    assert_memory_not_equal(limited, of_plain, (size_t)model->hyper.vocabulary * sizeof *limited);
    same(model, limited, logits_after(fork, 50, 40));
    CHECK(context, linnet_session_load(other, path));
    same(model, limited, logits_after(other, 50, 40));
    CHECK(context, linnet_session_rewind(other, 0));
    free(logits_after(other, 0, 50));
    same(model, limited, logits_after(other, 50, 40));
    assert_int_equal(linnet_session_load(plain, path), LINNET_ERROR_FORMAT);
    unlink(path);
    linnet_context_settings single = linnet_context_settings_default();
    single.threads = 1;
    linnet_context *alone;
    CHECK(NULL, linnet_context_open(&single, &alone));
    linnet_model *again = open_model(alone, *state);
    linnet_session *third = open_limited(again, 20, 0.5, 0);
    free(logits_after(third, 0, 50));
    same(model, limited, logits_after(third, 50, 40));
    linnet_session_close(third);
    linnet_model_close(again);
    linnet_context_close(alone);
    free(limited), free(of_cut), free(of_plain);
    linnet_session *const all[] = {cut, fork, other, one, far, plain};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) linnet_session_close(all[i]);
    linnet_model_close(model);
    linnet_context_close(context);
}

static void test_limits_refused(void **state) {
    linnet_context *context = open_context();
    linnet_model *model = open_model(context, *state);
    const struct {
        int64_t reference;
        double growth, limit;
        linnet_status status;
    } rows[] = {{0, 0, 1, LINNET_ERROR_UNSUPPORTED}, {9, 2, 0, LINNET_ERROR_UNSUPPORTED},
                {0, 2, 0, LINNET_ERROR_ARGUMENT},    {-1, 0, 0, LINNET_ERROR_ARGUMENT},
                {9, -1, 0, LINNET_ERROR_ARGUMENT},   {0, 0, (double)NAN, LINNET_ERROR_ARGUMENT}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        linnet_session_settings settings = linnet_session_settings_default();
        settings.context = 64;
        settings.state_reference = rows[i].reference;
        settings.state_growth = rows[i].growth;
        settings.state_limit = rows[i].limit;
        linnet_plan plan;
        assert_int_equal(linnet_plan_session(model, &settings, &plan), rows[i].status);
    }
    linnet_model_close(model);
    linnet_context_close(context);
}

int main(void) {
#define OF(test, model) \
    { #test " of " model, test, NULL, NULL, (void *)(uintptr_t)model }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order),
        cmocka_unit_test(test_points),
        OF(test_interrupted, "lfm2"),
        OF(test_interrupted, "rwkv7"),
        OF(test_questions, "lfm2"),
        OF(test_questions, "rwkv7"),
        OF(test_interval, "lfm2"),
        OF(test_interval, "rwkv7"),
        OF(test_plan, "lfm2"),
        OF(test_plan, "rwkv7"),
        OF(test_policy, "lfm2"),
        OF(test_no_attention, "rwkv7"),
        OF(test_norms, "mamba2"),
        OF(test_norms, "rwkv6"),
        OF(test_norms, "qwen3next"),
        OF(test_norms, "minimax"),
        OF(test_norms, "falcon-h1"),
        OF(test_norms, "kimi-linear"),
        OF(test_limit, "mamba2"),
        OF(test_limit, "qwen3next"),
        OF(test_limit, "minimax"),
        OF(test_limit, "gla"),
        OF(test_norms, "gla"),
        OF(test_norms, "retnet"),
        OF(test_limits_refused, "xlstm"),
        OF(test_growth, "mamba2"),
        OF(test_growth, "rwkv7"),
        OF(test_growth, "granite-hybrid"),
        OF(test_limits_refused, "llama-3"),
        OF(test_limits_refused, "mamba"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
