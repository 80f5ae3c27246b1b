/* Mergers and statistics in memory under a policy: a text of a few tokens over and over is attended to exactly within a
 * few pages, every token stays counted, and bytes hold while shares of layers move. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "memory/merge.h"
#include "ragged.h"

enum { TEXT = 1500, TOKENS = 60, DISTINCT = 3 };

/* How many tokens those of a lane stand for. */
static double counted(const ln_ragged *ragged, const ln_lane *lane, int *summaries) {
    double sum = 0;
    for (int64_t p = 0; p < ln_lane_pages(lane); p++) {
        const float *weights = ln_pool_weights(ragged->pool, ragged->page[lane->begin + p]);
        for (int64_t i = 0; i < ragged->count[lane->begin + p]; i++) {
            sum += weights[i] != 0 ? (double)fabsf(weights[i]) : 1;
            *summaries += weights[i] < 0;
        }
    }
    return sum;
}

static void check_counts(const ln_ragged *ragged, bool summary) {
    for (int64_t i = 0; i < ragged->lanes; i++) {
        int summaries = 0;
        assert_true(counted(ragged, &ragged->lane[i], &summaries) == (double)ragged->position);
        assert_int_equal(summaries, summary && ragged->lane[i].given_up > 0);
    }
}

/* distinct: so many tokens, over and over. */
static void run_merger(const char *text, int distinct, bool exact) {
    static float plain[OUTPUT], lanes[OUTPUT];
    world w;
    open_world(&w, 2);
    ln_policy policy;
    assert_int_equal(ln_policy_parse(w.context, text, &policy), LINNET_OK);
    const ln_memory_shape with = test_shape(&w, &policy, TEXT, 0), without = test_shape(&w, NULL, TEXT, 0);
    ln_memory *a, *b;
    assert_int_equal(open_memory(&w, &with, &a), LINNET_OK);
    assert_int_equal(open_memory(&w, &without, &b), LINNET_OK);
    double most = 0;
    for (int64_t at = 0; at < TEXT; at += TOKENS) {
        uint32_t seeds[TOKENS];
        for (int64_t t = 0; t < TOKENS; t++) seeds[t] = (uint32_t)((at + t) * 5 % distinct) + 1;
        assert_int_equal(feed_seeds(&w, a, seeds, TOKENS, lanes, NULL, NULL), LINNET_OK);
        assert_int_equal(feed_seeds(&w, b, seeds, TOKENS, plain, NULL, NULL), LINNET_OK);
        for (int64_t i = 0; i < LAYERS * TOKENS * HEADS * VALUE; i++)
            most = fmax(most, fabs((double)plain[i] - (double)lanes[i]));
        check_counts(a->lanes, policy.merger->summary);
    }
    assert_true(ln_memory_measure(a).evicted > TEXT);
    printf("%s: largest difference %g\n", text, most);
    assert_true(most < (exact ? 1e-4 : INFINITY));
    ln_memory_close(a);
    ln_memory_close(b);
    close_world(&w);
}

static void test_mergers(void **state) {
    (void)state;
    run_merger("ems:scorer=random,similar=0.99", DISTINCT, true);
    run_merger("ems:similar=-1,keys=q8_0,values=q8_0", TEXT, false);
    run_merger("razor:allocator=none", TEXT, false);
    run_merger("random:merge=compensation", 1, true);
}

/* How much attention changes is told by the test: at first the last layer changes least, then the first. */
static void test_shares(void **state) {
    (void)state;
    static float output[OUTPUT];
    static const char *const texts[] = {"squeeze", "prefixkv", "taskkv:allocator=squeeze", "pyramidkv"};
    for (size_t n = 0; n < sizeof texts / sizeof *texts; n++) {
        world w;
        open_world(&w, 1);
        ln_policy policy;
        assert_int_equal(ln_policy_parse(w.context, texts[n], &policy), LINNET_OK);
        ln_memory_shape shape = test_shape(&w, &policy, TEXT, 0);
        static const int64_t whole[LAYERS] = {0};
        shape.window = whole;
        ln_ragged_shape all;
        assert_true(ln_memory_lanes(&shape, &all));
        assert_int_equal(ln_ragged_least(w.context, &all, &shape.lane_bytes), LINNET_OK);
        shape.lane_bytes += 64 << 10;
        reserve_workspace(&w, &shape);
        ln_memory *memory;
        assert_int_equal(open_memory(&w, &shape, &memory), LINNET_OK);
        const ln_ragged *ragged = memory->lanes;
        double least = 1, most = 0;
        for (int64_t at = 0; at < TEXT; at += TOKENS) {
            uint32_t seeds[TOKENS];
            double cosine[TOKENS];
            const bool idle = at >= TEXT / 3; /* then the first layer does little */
            for (int64_t t = 0; t < TOKENS; t++) seeds[t] = (uint32_t)(at + t);
            assert_int_equal(ln_memory_wants_cosine(memory), policy.allocator->cosine);
            for (int64_t layer = 0; layer < LAYERS; layer++) {
                for (int64_t t = 0; t < TOKENS; t++) cosine[t] = layer == 1 ? 0.5 : (layer == 0) == idle ? 0.99 : 0.2;
                ln_memory_observe_cosine(memory, layer, cosine, TOKENS);
            }
            assert_int_equal(feed_seeds(&w, memory, seeds, TOKENS, output, NULL, NULL), LINNET_OK);
            double sum = 0;
            for (int64_t l = 0; l < ragged->shape.layers; l++) sum += ragged->share[l];
            assert_true(fabs(sum - 1) < 1e-9);
            assert_true(ragged->far_used <= ragged->allowance);
            assert_true(ln_memory_measure(memory).peak <= ln_memory_bytes(&shape));
            least = fmin(least, ragged->share[0]);
            most = fmax(most, ragged->share[0]);
        }
        printf("%s: the first layer has %g to %g of the bytes\n", texts[n], least, most);
        if (policy.allocator->cosine) assert_true(least < 0.3 && most > 0.36);
        ln_memory_close(memory);
        close_world(&w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mergers), cmocka_unit_test(test_shares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
