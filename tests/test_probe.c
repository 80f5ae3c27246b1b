/* Probes and draft models on tiny models: what a probe scores is what the same tokens would have scored as a part of
 * the text (so a draft model that is the model itself finds the oracle's importance), it leaves nothing behind, and
 * where there is room for everything the full cache comes out; which tokens of a prompt a draft model chooses, by a
 * plain rule; what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate/session.h"
#include "linnet/linnet.h"

enum { CONTEXT = 512, TEXT = 90, LOOKAHEAD = 16, PIECE = 96, ROOM = 8 << 20 };

#define CHECK(call)                                                                           \
    do {                                                                                      \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(bench.context)); \
    } while (0)

static struct {
    linnet_context *context;
    linnet_model *model;
    int64_t vocabulary;
    int32_t text[CONTEXT];
} bench;

static linnet_model *open_model(const char *name) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/golden/models/%s", TESTS_FOLDER, name);
    linnet_model *model;
    CHECK(linnet_model_open(bench.context, folder, &model));
    return model;
}

static int open_bench(void **state) {
    (void)state;
    CHECK(linnet_context_open(NULL, &bench.context));
    bench.model = open_model("qwen3");
    bench.vocabulary = linnet_model_describe(bench.model).vocabulary;
    uint64_t random = 1;
    for (int i = 0; i < CONTEXT; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bench.text[i] = (int32_t)((random >> 33) % (uint64_t)bench.vocabulary);
    }
    return 0;
}

static int close_bench(void **state) {
    (void)state;
    linnet_model_close(bench.model);
    linnet_context_close(bench.context);
    return 0;
}

static linnet_session_settings settings_of(const char *policy, uint64_t cache) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = CONTEXT;
    settings.piece = PIECE;
    settings.compute = LINNET_COMPUTE_EXACT;
    settings.policy = policy;
    settings.cache = cache;
    settings.draft = bench.model;
    return settings;
}

static linnet_session *open_session(const char *policy, uint64_t cache) {
    const linnet_session_settings settings = settings_of(policy, cache);
    linnet_session *session;
    CHECK(linnet_session_open(bench.model, &settings, &session));
    return session;
}

static void same_importance(const linnet_session *a, const linnet_session *b, int64_t count) {
    static float of[2][2 * CONTEXT];
    memset(of, 0, sizeof of);
    ln_memory_importance(a->memory, of[0]);
    ln_memory_importance(b->memory, of[1]);
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        if (of[0][i] != of[1][i]) fail_msg("token %lld: %g, not %g", (long long)i, (double)of[0][i], (double)of[1][i]);
        sum += (double)of[0][i];
    }
    assert_true(sum > 0);
}

static int32_t most_likely(const linnet_session *session) {
    const float *logits = linnet_session_logits(session);
    int32_t best = 0;
    for (int32_t i = 1; i < bench.vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* The text goes on as the model itself would have it go on. */
static void test_draft_is_the_oracle(void **state) {
    (void)state;
    linnet_session_settings settings = settings_of(NULL, 0);
    settings.precision = LINNET_Q8_0;
    linnet_session *own, *oracle = open_session("snapkv:window=64", ROOM);
    linnet_session *session = open_session("speckv:draft-window=200", ROOM);
    CHECK(linnet_session_open(bench.model, &settings, &own));
    int32_t next[LOOKAHEAD];
    CHECK(linnet_session_feed(own, bench.text, TEXT));
    for (int i = 0; i < LOOKAHEAD; i++) {
        next[i] = most_likely(own);
        CHECK(linnet_session_feed(own, &next[i], 1));
    }
    CHECK(linnet_session_feed(session, bench.text, TEXT));
    CHECK(linnet_session_feed(oracle, bench.text, TEXT));
    CHECK(linnet_session_feed(oracle, next, LOOKAHEAD));
    same_importance(session, oracle, TEXT);
    linnet_session_close(own);
    linnet_session_close(oracle);
    linnet_session_close(session);
}

/* What a repetition gives, and that it is gone after. */
static void test_repetition(void **state) {
    (void)state;
    linnet_session *session = open_session("kvzip", ROOM), *plain = open_session("kvzip", ROOM);
    linnet_session *none = open_session("kvzip:probe=none", ROOM);
    CHECK(linnet_session_feed(session, bench.text, TEXT / 2));
    ln_forward *forward = &plain->workspace->forward;
    ln_memory_begin(plain->memory, LN_PASS_HELD);
    CHECK(ln_forward_run(forward, plain->memory, bench.text, TEXT / 2));
    CHECK(ln_forward_run(forward, plain->memory, bench.text, TEXT / 2));
    same_importance(session, plain, TEXT / 2);
    CHECK(linnet_session_feed(none, bench.text, TEXT / 2));
    for (int i = 0; i < 3; i++) { /* a piece with a probe, one without */
        const int64_t at = linnet_session_position(session), count = i == 1 ? 7 : 40;
        CHECK(linnet_session_feed(session, bench.text + at, count));
        CHECK(linnet_session_feed(none, bench.text + at, count));
        const linnet_usage usage = linnet_session_usage(session), expected = linnet_session_usage(none);
        assert_int_equal(usage.kept, expected.kept);
        assert_int_equal(usage.evicted, 0);
        for (int64_t n = 0; n < bench.vocabulary; n++)
            if (!(fabsf(linnet_session_logits(session)[n] - linnet_session_logits(none)[n]) <= 1e-4f))
                fail_msg("a probe changes logit %lld", (long long)n);
    }
    linnet_session_close(session);
    linnet_session_close(plain);
    linnet_session_close(none);
}

/* A piece that waits for its probe is held by all layers: that is part of the least bytes. */
static void test_budget(void **state) {
    (void)state;
    const char *const names[] = {"kvzip", "kvzip:probe=none"};
    uint64_t least[2];
    for (int i = 0; i < 2; i++) {
        const linnet_session_settings settings = settings_of(names[i], 0);
        linnet_plan plan;
        CHECK(linnet_plan_session(bench.model, &settings, &plan));
        least[i] = plan.pages;
    }
    assert_true(least[0] > least[1]);
    linnet_session *session = open_session("kvzip", least[0]);
    for (int i = 0; i < 5; i++) {
        CHECK(linnet_session_feed(session, bench.text + i * PIECE, PIECE));
        assert_true(linnet_session_usage(session).pages_peak <= least[0]);
    }
    assert_true(linnet_session_usage(session).evicted > 0);
    assert_int_equal(linnet_session_position(session), 5 * PIECE);
    linnet_session_close(session);
}

/* Rank of each token among all by what it and its neighbours were given: later ones first where equal. */
static void test_prompt(void **state) {
    (void)state;
    enum { ALL = 400, MOST = 160, LAST = 64, SINKS = 4, WIDTH = 13 };
    static float given[2 * CONTEXT], near[ALL];
    linnet_session *session = open_session("specpc:prompt-tokens=160", ROOM);
    linnet_session_settings settings = settings_of("snapkv:near=q8_0,keys=q8_0,values=q8_0,sinks=4", ROOM);
    linnet_session *draft;
    settings.piece = 256; /* as a draft model reads */
    CHECK(linnet_session_open(bench.model, &settings, &draft));
    CHECK(linnet_session_feed(session, bench.text, ALL));
    CHECK(linnet_session_feed(draft, bench.text, ALL));
    assert_int_equal(linnet_session_position(session), MOST);
    ln_memory_importance(draft->memory, given);
    for (int i = 0; i < ALL; i++) {
        for (int n = i - WIDTH / 2; n <= i + WIDTH / 2; n++) near[i] += n >= 0 && n < ALL ? given[n] : 0;
        near[i] /= WIDTH;
        if (i < SINKS || i >= ALL - LAST) near[i] = INFINITY;
    }
    const int32_t *held = linnet_session_tokens(session);
    int wrong = 0, at = 0;
    for (int i = 0; i < ALL && at < MOST; i++) {
        int before = 0;
        for (int n = 0; n < ALL; n++) before += near[n] > near[i] || (near[n] == near[i] && n > i);
        if (before >= MOST) continue;
        wrong += held[at++] != bench.text[i];
    }
    assert_int_equal(at, MOST);
    assert_int_equal(wrong, 0);
    linnet_session_close(draft);
    linnet_session_close(session);

    linnet_session *whole = open_session("specpc", ROOM), *full = open_session("snapkv:sinks=4", ROOM);
    CHECK(linnet_session_feed(whole, bench.text, ALL));
    CHECK(linnet_session_feed(full, bench.text, ALL));
    assert_int_equal(linnet_session_position(whole), ALL);
    assert_memory_equal(linnet_session_logits(whole), linnet_session_logits(full),
                        (size_t)bench.vocabulary * sizeof(float));
    linnet_session_close(whole);
    linnet_session_close(full);
}

static void refused(const char *policy, linnet_model *draft, const char *word) {
    linnet_session_settings settings = settings_of(policy, ROOM);
    settings.draft = draft;
    linnet_plan plan;
    assert_int_equal(linnet_plan_session(bench.model, &settings, &plan), LINNET_ERROR_ARGUMENT);
    if (!strstr(linnet_last_error(bench.context), word)) fail_msg("%s: %s", policy, linnet_last_error(bench.context));
}

static void test_refusals(void **state) {
    (void)state;
    linnet_model *other = open_model("gemma3");
    refused("speckv", NULL, "needs a draft model");
    refused("specpc", NULL, "needs a draft model");
    refused("speckv", other, "vocabulary");
    refused("specpc:probe=draft", bench.model, "use one of them");
    refused("window:probe=repeat", NULL, "attention");
    refused("kvzip:probe=twice", NULL, "none, repeat or draft");
    linnet_model_close(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_draft_is_the_oracle), cmocka_unit_test(test_repetition),
                                       cmocka_unit_test(test_budget), cmocka_unit_test(test_prompt),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, open_bench, close_bench);
}
