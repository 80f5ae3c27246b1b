/* Every row of the table of policies on a tiny model, end to end: a text is fed in pieces of all sizes inside a budget
 * of bytes; at every step the budget holds; threads change no bit; a fork goes on as the session does, and leaves it
 * as it was; tokens are generated; and where the budget holds the whole text, the full cache comes out, to the
 * precision of the pages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linnet/linnet.h"

enum { CONTEXT = 1024, TEXT = 900, GENERATED = 40, PIECE = 96 };

#define CHECK(context, call)                                                                      \
    do {                                                                                          \
        if ((call) != LINNET_OK) fail_msg("%s: %s: %s", name, #call, linnet_last_error(context)); \
    } while (0)

/* ---- a model and a text ---- */

typedef struct bench {
    linnet_context *context;
    linnet_model *model;
    int64_t vocabulary;
    int64_t tokens; /* of the text that is fed */
    int32_t text[CONTEXT];
} bench;

static bench open_bench(const char *name, int threads) {
    bench b = {.tokens = TEXT};
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    CHECK(b.context, linnet_context_open(&settings, &b.context));
    char folder[512];
    snprintf(folder, sizeof folder, "%s/%s", TESTS_FOLDER, name);
    CHECK(b.context, linnet_model_open(b.context, folder, &b.model));
    b.vocabulary = linnet_model_describe(b.model).vocabulary;
    uint64_t state = 1;
    for (int i = 0; i < CONTEXT; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        b.text[i] = (int32_t)((state >> 33) % (uint64_t)b.vocabulary);
        if (i >= 64 && i % 200 < 90) b.text[i] = b.text[i - 64]; /* something to find again */
    }
    return b;
}

static void close_bench(bench *b) {
    linnet_model_close(b->model);
    linnet_context_close(b->context);
}

static linnet_session_settings settings_of(const char *policy, uint64_t cache) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = CONTEXT;
    settings.piece = PIECE;
    settings.compute = LINNET_COMPUTE_EXACT;
    settings.policy = policy;
    settings.cache = cache;
    return settings;
}

static uint64_t least_cache(const bench *b, const char *name) {
    linnet_session_settings settings = settings_of(name, 0);
    settings.draft = b->model; /* its own, where a row wants one */
    linnet_plan plan;
    CHECK(b->context, linnet_plan_session(b->model, &settings, &plan));
    return plan.pages;
}

static linnet_session *open_session(const bench *b, const char *name, uint64_t cache) {
    linnet_session_settings settings = settings_of(name, cache);
    settings.draft = b->model;
    linnet_session *session;
    CHECK(b->context, linnet_session_open(b->model, &settings, &session));
    return session;
}

/* ---- running ---- */

static void check_usage(const linnet_session *session, const char *name, int64_t members) {
    const linnet_usage usage = linnet_session_usage(session);
    const linnet_plan plan = linnet_session_plan(session);
    if (usage.pages_peak > (uint64_t)members * plan.pages)
        fail_msg("%s: %llu bytes of keys and values in a budget of %llu at token %lld", name,
                 (unsigned long long)usage.pages_peak, (unsigned long long)plan.pages,
                 (long long)linnet_session_position(session));
}

static void check_logits(const bench *b, const linnet_session *session, const char *name) {
    const float *logits = linnet_session_logits(session);
    for (int64_t i = 0; i < b->vocabulary; i++)
        if (!isfinite(logits[i]))
            fail_msg("%s: a logit at token %lld is not finite", name, (long long)linnet_session_position(session));
}

/* Pieces of all sizes, single tokens too. */
static void feed_to(const bench *b, linnet_session *session, const char *name, int64_t end, int64_t members) {
    static const int64_t sizes[] = {96, 1, 33, 64, 7, 96, 2, 32, 95};
    for (int i = 0; linnet_session_position(session) < end; i++) {
        const int64_t at = linnet_session_position(session), most = sizes[i % 9],
                      count = at + most < end ? most : end - at;
        CHECK(b->context, linnet_session_feed(session, b->text + at, count));
        check_usage(session, name, members);
        check_logits(b, session, name);
    }
}

static int32_t most_likely(const bench *b, const linnet_session *session) {
    const float *logits = linnet_session_logits(session);
    int32_t best = 0;
    for (int32_t i = 1; i < b->vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static void generate(const bench *b, linnet_session *session, const char *name, int64_t count, int64_t members,
                     int32_t *ids) {
    for (int64_t i = 0; i < count; i++) {
        ids[i] = most_likely(b, session);
        CHECK(b->context, linnet_session_feed(session, &ids[i], 1));
        check_usage(session, name, members);
        check_logits(b, session, name);
    }
}

static float *copy_logits(const bench *b, const linnet_session *session) {
    const size_t bytes = (size_t)b->vocabulary * sizeof(float);
    float *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, linnet_session_logits(session), bytes);
    return copy;
}

static void same_logits(const bench *b, const linnet_session *session, const float *expected, const char *name,
                        const char *what) {
    if (memcmp(linnet_session_logits(session), expected, (size_t)b->vocabulary * sizeof(float)) != 0)
        fail_msg("%s: %s changes bits", name, what);
}

/* ---- what holds for every row ---- */

typedef struct outcome {
    float *text, *end; /* logits */
    int32_t ids[GENERATED];
} outcome;

static void check_evicts(const linnet_session *session, const char *name) {
    const linnet_usage usage = linnet_session_usage(session);
    const bool evicts = strstr(linnet_session_plan(session).policy, "scorer=none") == NULL;
    if (strcmp(name, "specpc") == 0) return; /* reads less of a prompt */
    if (evicts != (usage.evicted > 0)) fail_msg("%s: %lld tokens given up", name, (long long)usage.evicted);
}

/* A text, then tokens of its own, with a fork on the way. */
static outcome run_row(const bench *b, const char *name, uint64_t cache) {
    outcome out;
    linnet_session *session = open_session(b, name, cache);
    feed_to(b, session, name, b->tokens / 2, 1);
    linnet_session *fork;
    CHECK(b->context, linnet_session_fork(session, &fork));
    feed_to(b, fork, name, b->tokens, 2);
    out.text = copy_logits(b, fork);
    feed_to(b, session, name, b->tokens, 2);
    same_logits(b, session, out.text, name, "a fork");
    check_evicts(session, name);
    linnet_session_close(session);
    generate(b, fork, name, GENERATED, 2, out.ids);
    out.end = copy_logits(b, fork);
    linnet_session_close(fork);
    return out;
}

static void free_outcome(outcome *out) {
    free(out->text);
    free(out->end);
}

static void check_threads(const bench *one, const bench *two, const char *name, uint64_t cache) {
    outcome a = run_row(one, name, cache), b = run_row(two, name, cache);
    const size_t bytes = (size_t)one->vocabulary * sizeof(float);
    if (memcmp(a.text, b.text, bytes) != 0 || memcmp(a.end, b.end, bytes) != 0 ||
        memcmp(a.ids, b.ids, sizeof a.ids) != 0)
        fail_msg("%s: threads change bits", name);
    free_outcome(&a);
    free_outcome(&b);
}

/* Standard deviations of the full cache's logits, that pages of few bits may be away. */
static double tolerance_of(const char *policy) {
    static const struct {
        const char *word;
        double tolerance;
    } coarse[] = {{"channels=", 1.2}, {"=q2", 1.2}, {"=q3", 0.8}, {"=q4", 0.4}, {"=q5", 0.3}, {"=q8", 0.05}};
    for (size_t i = 0; i < sizeof coarse / sizeof *coarse; i++)
        if (strstr(policy, coarse[i].word)) return coarse[i].tolerance;
    return 0.01;
}

static void check_whole(const bench *b, const char *name, const float *full) {
    linnet_session *session = open_session(b, name, 8 << 20);
    feed_to(b, session, name, TEXT, 1);
    const float *logits = linnet_session_logits(session);
    double sum = 0, squares = 0, off = 0;
    for (int64_t i = 0; i < b->vocabulary; i++) {
        sum += (double)full[i];
        squares += (double)full[i] * (double)full[i];
        off += pow((double)logits[i] - (double)full[i], 2);
    }
    const double n = (double)b->vocabulary, deviation = sqrt(squares / n - sum / n * sum / n), error = sqrt(off / n);
    const char *policy = linnet_session_plan(session).policy;
    if (!(error <= tolerance_of(policy) * deviation))
        fail_msg("%s: %g standard deviations from the full cache", name, error / deviation);
    if (linnet_session_usage(session).evicted != 0) fail_msg("%s gives up tokens for which there is room", name);
    linnet_session_close(session);
}

static float *run_full(const bench *b) {
    linnet_session *session = open_session(b, NULL, 0);
    feed_to(b, session, "no policy", TEXT, 1);
    float *logits = copy_logits(b, session);
    linnet_session_close(session);
    return logits;
}

static void check_refused(const bench *b, const char *policy, const char *sentence) {
    const linnet_session_settings settings = settings_of(policy, 0);
    linnet_session *session;
    if (linnet_session_open(b->model, &settings, &session) == LINNET_OK) fail_msg("%s is not refused", policy);
    if (!strstr(linnet_last_error(b->context), sentence)) fail_msg("%s: %s", policy, linnet_last_error(b->context));
}

/* What a row asks of the model that these do not have. */
static const char *missing(const char *name) {
    if (!strcmp(name, "gate")) return "this model has none";
    return !strcmp(name, "duo") || !strcmp(name, "razor") ? "linnet calibrate" : NULL;
}

/* The rows, and what else is worth trying. */
static const char *policy_at(int index) {
    static const char *const more[] = {"razor:allocator=none", "ems:similar=-1,keys=q8_0,values=q8_0",
                                       "think:channels=1", "think:scorer=none,near=q8_0,keys=q4,values=q8_0"};
    int rows = 0;
    while (linnet_policy_name(rows)) rows++;
    if (index < rows) return linnet_policy_name(index);
    return index - rows < (int)(sizeof more / sizeof *more) ? more[index - rows] : NULL;
}

static void check_rows(const char *model, uint64_t more) {
    bench one = open_bench(model, 1), two = open_bench(model, 2);
    float *full = run_full(&one);
    for (int i = 0; policy_at(i); i++) {
        const char *name = policy_at(i);
        if (missing(name)) {
            check_refused(&one, name, missing(name));
            continue;
        }
        check_threads(&one, &two, name, least_cache(&one, name) + more);
        check_whole(&one, name, full);
    }
    free(full);
    close_bench(&one);
    close_bench(&two);
}

static void test_grouped_heads(void **state) {
    (void)state;
    check_rows("golden/models/qwen3", 0);
}

static void test_small_heads(void **state) {
    (void)state;
    check_rows("golden/models/llama-2", 48 * 1024);
}

/* The built-in model has a gate. */
static void test_built_in(void **state) {
    (void)state;
    static const char *const names[] = {"gate"};
    bench one = open_bench("../share/linnet/linnet-fledgling-q8_0.gguf", 1),
          two = open_bench("../share/linnet/linnet-fledgling-q8_0.gguf", 2);
    one.tokens = two.tokens = 300;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_threads(&one, &two, names[i], least_cache(&one, names[i]));
    close_bench(&one);
    close_bench(&two);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_grouped_heads), cmocka_unit_test(test_small_heads),
                                       cmocka_unit_test(test_built_in)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
