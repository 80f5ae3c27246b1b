/* Sessions under a policy, saved and loaded: the same logits bit for bit as without, from the middle of a prompt, where
 * it was interrupted, and of an answer; other models, policies and precisions are refused, and the session stays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "linnet/linnet.h"

enum { CONTEXT = 900, PIECE = 48, PROMPT = 700 };

#define CHECK(context, call)                                                            \
    do {                                                                                \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(context)); \
    } while (0)

static char path[] = "/tmp/linnet-session-XXXXXX";
static int64_t interrupt_at = -1;

static void interrupt(void *user, const char *what, int64_t done, int64_t total) {
    (void)what, (void)total;
    if (interrupt_at >= 0 && done >= interrupt_at) linnet_interrupt(*(linnet_context **)user);
}

static linnet_context *context;

static linnet_model *open_model(const char *name) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/golden/models/%s", TESTS_FOLDER, name);
    linnet_model *model;
    CHECK(context, linnet_model_open(context, folder, &model));
    return model;
}

/* cache: bytes beyond the least that the policy can do with. */
static linnet_session *open_session(linnet_model *model, const char *policy, linnet_type precision, uint64_t more) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = CONTEXT;
    settings.piece = PIECE;
    settings.policy = policy;
    settings.precision = precision;
    if (policy) {
        linnet_plan plan;
        settings.cache = 1;
        assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_MEMORY);
        settings.cache = plan.pages + more;
    }
    linnet_session *session;
    CHECK(context, linnet_session_open(model, &settings, &session));
    return session;
}

static int32_t ids[CONTEXT];

static void feed(linnet_session *session, int64_t count, int64_t step) {
    for (int64_t end = linnet_session_position(session) + count; linnet_session_position(session) < end;) {
        const int64_t at = linnet_session_position(session);
        CHECK(context, linnet_session_feed(session, ids + at, step < end - at ? step : end - at));
    }
}

static void expect_same(linnet_model *model, linnet_session *a, linnet_session *b) {
    const size_t bytes = (size_t)linnet_model_describe(model).vocabulary * sizeof(float);
    assert_int_equal(linnet_session_position(a), linnet_session_position(b));
    assert_memory_equal(linnet_session_tokens(a), linnet_session_tokens(b),
                        (size_t)linnet_session_position(a) * sizeof *ids);
    assert_non_null(linnet_session_logits(a));
    assert_memory_equal(linnet_session_logits(a), linnet_session_logits(b), bytes);
}

static const char *const policies[] = {"snapkv", "h2o",      "window", "quantized", "kivi",   "kvzip",
                                       "adakv",  "zipcache", "ems",    "expected",  "squeeze"};
static const char *const models[] = {"llama-3", "gemma3"};

static void test_resume(void **state) {
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        linnet_model *model = open_model(models[m]);
        for (int32_t i = 0; i < CONTEXT; i++)
            ids[i] = (i * 131 + i / 7) % (int32_t)linnet_model_describe(model).vocabulary;
        for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
            linnet_session *first = open_session(model, policies[i], LINNET_TYPE_AUTO, 20000),
                           *second = open_session(model, policies[i], LINNET_TYPE_AUTO, 20000);
            interrupt_at = 300;
            assert_int_equal(linnet_session_feed(first, ids, PROMPT), LINNET_INTERRUPTED);
            interrupt_at = -1;
            linnet_interrupt_clear(context);
            const int64_t at = linnet_session_position(first);
            assert_true(at >= 300 && at < PROMPT);
            CHECK(context, linnet_session_save(first, path));
            feed(second, 100, 31);
            CHECK(context, linnet_session_load(second, path));
            assert_int_equal(linnet_session_position(second), at);
            feed(first, PROMPT - at, PROMPT);
            feed(second, PROMPT - at, PROMPT);
            expect_same(model, first, second);
            feed(first, 20, 1);
            CHECK(context, linnet_session_save(first, path));
            CHECK(context, linnet_session_load(second, path));
            expect_same(model, first, second);
            feed(first, 20, 1);
            feed(second, 20, 1);
            expect_same(model, first, second);
            linnet_session_close(first);
            linnet_session_close(second);
        }
        linnet_model_close(model);
    }
}

static void test_refused(void **state) {
    (void)state;
    linnet_model *model = open_model("llama-3"), *other = open_model("llama-2");
    for (int32_t i = 0; i < CONTEXT; i++) ids[i] = i % 50;
    linnet_session *saved = open_session(model, "snapkv", LINNET_TYPE_AUTO, 300000);
    feed(saved, PROMPT, PROMPT);
    CHECK(context, linnet_session_save(saved, path));
    const struct {
        linnet_model *model;
        const char *policy, *word;
        linnet_type precision;
        uint64_t more;
    } rows[] = {{other, "snapkv", "another model", LINNET_TYPE_AUTO, 300000},
                {model, "h2o", "snapkv", LINNET_TYPE_AUTO, 300000},
                {model, "snapkv:keys=q4", "keys=q4", LINNET_TYPE_AUTO, 300000},
                {model, NULL, "snapkv", LINNET_TYPE_AUTO, 0},
                {model, "snapkv", "bytes more", LINNET_TYPE_AUTO, 1000}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        linnet_session *here = open_session(rows[i].model, rows[i].policy, rows[i].precision, rows[i].more),
                       *same = open_session(rows[i].model, rows[i].policy, rows[i].precision, rows[i].more);
        feed(here, 200, 50);
        feed(same, 200, 50);
        assert_true(linnet_session_load(here, path) != LINNET_OK);
        if (!strstr(linnet_last_error(context), rows[i].word)) fail_msg("%s", linnet_last_error(context));
        expect_same(rows[i].model, here, same);
        feed(here, 50, 50);
        feed(same, 50, 50);
        expect_same(rows[i].model, here, same);
        linnet_session_close(here);
        linnet_session_close(same);
    }
    linnet_session_close(saved);
    linnet_model_close(other);
    linnet_model_close(model);
}

int main(void) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 2;
    settings.progress = interrupt;
    settings.user = &context;
    if (linnet_context_open(&settings, &context) != LINNET_OK) return 1;
    const int file = mkstemp(path);
    if (file < 0) return 1;
    close(file);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resume), cmocka_unit_test(test_refused)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    linnet_context_close(context);
    return failed;
}
