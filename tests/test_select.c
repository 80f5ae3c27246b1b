/* Selectors: boxes bound every key's score, choices are the best units, reading everything changes no bit, and what a
 * step reads finds what it looks for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "far.h"

enum { PAGES = 75, ROWS = 11 };

static void open_kernels(ln_kernels *kernels) {
    linnet_context_settings settings = linnet_context_settings_default();
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    ln_kernels_choose(context->cpu, kernels);
    linnet_context_close(context);
}

/* Summaries of random pages, with channels of very different sizes. */
static unsigned char *summarise(const ln_summary *summary, ln_random *random, int64_t pages, float *keys) {
    unsigned char *lane = aligned_alloc(64, ln_summary_bytes(summary, pages));
    for (int64_t i = 0; i < pages * LN_PAGE_TOKENS * summary->key_size; i++) {
        const float size = i % 7 == 0 ? 30 : i % 5 == 0 ? 1e-3F : 1;
        keys[i] = size * (float)ln_random_normal(random);
    }
    for (int64_t p = 0; p < pages; p++) ln_summary_add(summary, lane, p, keys + p * LN_PAGE_TOKENS * summary->key_size);
    return lane;
}

static void test_boxes_bound_every_score(void **state) {
    (void)state;
    static const int64_t sizes[] = {24, 64, 96, 264};
    ln_kernels kernels;
    open_kernels(&kernels);
    for (int i = 0; i < 8; i++) {
        ln_random random;
        ln_random_seed(&random, (uint64_t)i);
        ln_policy policy = {.selector = ln_selector_of(i % 2 ? "lserve" : "quest")};
        policy.parameter[0].name = "open";
        policy.parameter[0].value = i < 4 ? 1 : 3;
        policy.parameters = 1;
        ln_summary summary;
        assert_true(ln_summary_of(&policy, sizes[i / 2], &summary));
        const int64_t n = summary.key_size;
        float *keys = malloc(sizeof(float) * (size_t)(PAGES * LN_PAGE_TOKENS * n));
        unsigned char *lane = summarise(&summary, &random, PAGES, keys);
        float query[LN_HEAD_MOST], score[PAGES],
            *workspace =
                aligned_alloc(64, ln_round_up(sizeof(float) * (size_t)ln_summary_workspace(&summary, PAGES), 64));
        for (int64_t k = 0; k < n; k++) query[k] = (float)ln_random_normal(&random);
        const float *rows[] = {query};
        const int64_t units = ln_summary_score(&summary, &kernels, lane, PAGES, rows, 1, 1, score, workspace);
        assert_int_equal(units, ln_ceil_div(PAGES, summary.unit));
        /* Scores are from the best unit's down: its own bound is at least its best key. */
        double above = INFINITY;
        int64_t best = 0;
        for (int64_t u = 0; u < units; u++)
            if (score[u] == 0) best = u;
        double *exact = calloc((size_t)units, sizeof *exact), worst = -INFINITY;
        for (int64_t u = 0; u < units; u++) exact[u] = -INFINITY;
        for (int64_t t = 0; t < PAGES * LN_PAGE_TOKENS; t++) {
            double dot = 0;
            for (int64_t k = 0; k < n; k++) dot += (double)query[k] * (double)keys[t * n + k];
            exact[t / LN_PAGE_TOKENS / summary.unit] = fmax(exact[t / LN_PAGE_TOKENS / summary.unit], dot);
            worst = fmax(worst, dot);
        }
        /* The bound of the best unit, by hand from its decoded box. */
        double bound = -INFINITY;
        for (int p = 0; p < summary.selector->parts; p++) {
            double sum = 0;
            float box[2][LN_HEAD_MOST];
            for (int v = 0; v < 2; v++)
                ln_page_decode_token(&summary.layout,
                                     lane + (uint64_t)(best / 32 * summary.vectors + 2 * p + v) * summary.layout.bytes,
                                     best % 32, box[v], NULL);
            for (int64_t k = 0; k < n; k++) sum += (double)query[k] * (double)box[query[k] < 0][k];
            bound = fmax(bound, sum);
        }
        for (int64_t u = 0; u < units; u++) above = fmin(above, (double)score[u] + bound - exact[u]);
        assert_true(above >= -1e-4 * fabs(bound));
        assert_true(bound >= worst);
        free(keys), free(lane), free(workspace), free(exact);
    }
}

/* Means and centres of pages whose keys are all alike are those keys. */
static void test_summaries_of_equal_keys_are_keys(void **state) {
    (void)state;
    ln_kernels kernels;
    open_kernels(&kernels);
    for (int s = 0; ln_selector_at(s); s++) {
        ln_policy policy = {.selector = ln_selector_at(s)};
        ln_summary summary;
        assert_true(ln_summary_of(&policy, FAR_KEY, &summary));
        static float keys[PAGES][LN_PAGE_TOKENS * FAR_KEY];
        unsigned char *lane = aligned_alloc(64, ln_summary_bytes(&summary, PAGES));
        for (int64_t p = 0; p < PAGES; p++) {
            far_row(keys[p], FAR_KEY, 5, 0, p / summary.unit);
            for (int t = 1; t < LN_PAGE_TOKENS; t++) memcpy(keys[p] + t * FAR_KEY, keys[p], FAR_KEY * sizeof(float));
            ln_summary_add(&summary, lane, p, keys[p]);
        }
        float query[ROWS][FAR_KEY], score[PAGES],
            *workspace =
                aligned_alloc(64, ln_round_up(sizeof(float) * (size_t)ln_summary_workspace(&summary, PAGES), 64));
        const float *rows[ROWS];
        for (int r = 0; r < ROWS; r++) {
            far_row(query[r], FAR_KEY, 6, 0, r);
            rows[r] = query[r];
        }
        const int64_t units = ln_summary_score(&summary, &kernels, lane, PAGES, rows, ROWS, 0.5F, score, workspace);
        for (int64_t u = 0; u < units; u++) {
            double expected = -INFINITY;
            for (int r = 0; r < ROWS; r++) {
                double most = -INFINITY, own = 0;
                for (int64_t v = 0; v < units; v++) {
                    double dot = 0;
                    for (int k = 0; k < FAR_KEY; k++) dot += (double)query[r][k] * (double)keys[v * summary.unit][k];
                    most = fmax(most, dot);
                    if (v == u) own = dot;
                }
                expected = fmax(expected, 0.5 * (own - most));
            }
            const double slack = summary.selector->kind == LN_SUMMARY_BOX ? 1.5 : 0.2; /* of rounded numbers */
            assert_true(fabs((double)score[u] - expected) < slack);
        }
        free(lane), free(workspace);
    }
}

static void test_choice_is_the_best_units(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 3);
    for (int round = 0; round < 300; round++) {
        const int64_t unit = 1 + (int64_t)ln_random_below(&random, 4),
                      pages = 1 + (int64_t)ln_random_below(&random, PAGES);
        const int64_t units = ln_ceil_div(pages, unit), first = 1 + (int64_t)ln_random_below(&random, 40),
                      most = first + (int64_t)ln_random_below(&random, 20);
        const ln_summary summary = {.unit = unit};
        float score[PAGES];
        int32_t chosen[PAGES];
        int64_t front;
        for (int64_t u = 0; u < units; u++) score[u] = (float)ln_random_below(&random, 9);
        const int64_t n = ln_summary_choose(&summary, score, pages, first, most, chosen, &front);
        assert_true(front >= 1 && front <= n && n <= pages && n <= ln_max_i64(most, unit));
        bool taken[PAGES] = {false};
        for (int64_t i = 0; i < n; i++) {
            assert_false(taken[chosen[i]]);
            taken[chosen[i]] = true;
        }
        for (int64_t i = 0; i < front; i++)
            for (int64_t u = 0; u < units; u++) {
                bool in_front = false;
                for (int64_t k = 0; k < front; k++) in_front = in_front || chosen[k] / unit == u;
                if (!in_front) assert_true(score[chosen[i] / unit] >= score[u]);
            }
    }
}

static void open_far(far *f, int threads, const char *policy) {
    assert_int_equal(far_try(f, threads, policy, 0, 1 << 20, NULL), LINNET_OK);
}

static void test_reading_everything_changes_no_bit(void **state) {
    (void)state;
    static far a, b;
    static const char *const policies[][2] = {
        {"quantized", "quantized:selector=quest,read=100000"},
        {"kivi:recent=64", "kivi:recent=64,selector=sentence,read=100000"},
        {"full:recent=40,sinks=7", "full:recent=40,sinks=7,selector=zoomr,read=100000"},
        {"quantized", "quantized:selector=lserve,dense=3,read=64"},
        {"quantized", "quantized:tier=file"},
    };
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        open_far(&a, 2, policies[i][0]);
        open_far(&b, 1, policies[i][1]);
        for (int64_t position = 0; position < 700; position += position < 600 ? 77 : 1) {
            const int64_t tokens = position < 600 ? 77 : 1;
            assert_int_equal(far_feed(&a, a.ragged, tokens), LINNET_OK);
            assert_int_equal(far_feed(&b, b.ragged, tokens), LINNET_OK);
            assert_memory_equal(a.output[0][0], b.output[0][0], sizeof(float) * FAR_HEADS * FAR_VALUE);
            assert_true(far_difference(&a, &b, tokens) == 0);
        }
        const ln_ragged_usage x = ln_ragged_measure(a.ragged), y = ln_ragged_measure(b.ragged);
        assert_int_equal(x.kept, y.kept);
        far_close(&a);
        far_close(&b);
    }
}

/* With more and more pages read, outputs come closer to those of all pages; any number of threads gives the same. */
static void test_more_pages_come_closer(void **state) {
    (void)state;
    static far whole, some, threads;
    for (int s = 0; ln_selector_at(s); s++) {
        float before = INFINITY;
        for (int read = 128; read <= 2048; read *= 4) {
            char policy[96];
            snprintf(policy, sizeof policy, "quantized:selector=%s,read=%d", ln_selector_at(s)->name, read);
            open_far(&whole, 2, "quantized");
            open_far(&some, 2, policy);
            open_far(&threads, 3, policy);
            far *const all[] = {&whole, &some, &threads};
            for (int i = 0; i < 3; i++) assert_int_equal(far_read(all[i], all[i]->ragged, 1500), LINNET_OK);
            assert_true(far_difference(&whole, &some, 60) == 0); /* a prompt reads all */
            float sum = 0;
            for (int step = 0; step < 6; step++) {
                for (int i = 0; i < 3; i++) assert_int_equal(far_feed(all[i], all[i]->ragged, 1 + step % 2), LINNET_OK);
                assert_true(far_difference(&some, &threads, 1 + step % 2) == 0);
                sum += far_difference(&whole, &some, 1);
            }
            assert_true(read == 2048 ? sum == 0 : sum > 0 && sum < before);
            before = sum;
            for (int i = 0; i < 3; i++) far_close(all[i]);
        }
    }
}

static void test_forks_and_rewinds(void **state) {
    (void)state;
    static far a, b;
    open_far(&a, 2, "quantized:selector=quest,read=256");
    open_far(&b, 2, "quantized:selector=quest,read=256");
    assert_int_equal(far_read(&a, a.ragged, 900), LINNET_OK);
    assert_int_equal(far_read(&b, b.ragged, 900), LINNET_OK);
    ln_ragged *fork;
    assert_int_equal(ln_ragged_fork(a.ragged, &fork), LINNET_OK);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(far_feed(&b, b.ragged, 1), LINNET_OK);
        assert_int_equal(far_feed(&a, fork, 1), LINNET_OK);
        assert_true(far_difference(&a, &b, 1) == 0);
        if (i % 3) continue;
        assert_int_equal(far_feed(&a, a.ragged, 1), LINNET_OK);
    }
    ln_ragged_close(fork);
    ln_ragged_rewind(a.ragged, 0);
    ln_ragged_rewind(b.ragged, 0);
    assert_int_equal(ln_ragged_measure(a.ragged).kept, 0);
    assert_int_equal(far_read(&a, a.ragged, 400), LINNET_OK);
    assert_int_equal(far_read(&b, b.ragged, 400), LINNET_OK);
    assert_true(far_difference(&a, &b, 16) == 0);
    far_close(&a);
    far_close(&b);
}

static void test_refusals(void **state) {
    (void)state;
    static far f;
    static const char *const wrong[] = {"quantized:selector=best", "snapkv:selector=quest", "snapkv:tier=file",
                                        "quest:read=0", "quest:open=0"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(far_try(&f, 1, wrong[i], 0, 0, NULL), LINNET_ERROR_ARGUMENT);
        assert_true(strlen(linnet_last_error(f.context)) > 20);
        linnet_context_close(f.context);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boxes_bound_every_score),
        cmocka_unit_test(test_summaries_of_equal_keys_are_keys),
        cmocka_unit_test(test_choice_is_the_best_units),
        cmocka_unit_test(test_reading_everything_changes_no_bit),
        cmocka_unit_test(test_more_pages_come_closer),
        cmocka_unit_test(test_forks_and_rewinds),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
