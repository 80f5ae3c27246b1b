/* Attention over pages of different layouts, partly filled ones and biases of keys, against float64: few and many
 * queries, groups, sizes, every instruction set; nothing of what is not there is used; the same bits for any number of
 * threads, and as without layouts and counts where these say nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "attention_pages.h"
#include "base/cpu.h"

static const char *const levels[] = {"portable", "avx2", "avx512", "all"};
static const linnet_type types[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0,
                                    LINNET_Q5,  LINNET_Q4,  LINNET_Q3,   LINNET_Q2};
enum { LEVELS = 4, TYPES = 9 };

static bool level_is_new(int level) {
    unsigned mask, before = 0;
    ln_cpu_mask(levels[level], &mask);
    if (level > 0) ln_cpu_mask(levels[level - 1], &before);
    return level == 0 || (mask & ln_cpu_detect()) != (before & ln_cpu_detect());
}

static linnet_context *open_context(int threads, const char *cpu) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = cpu;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

static ln_attention shape_of(int64_t group, int64_t key_value_heads, int64_t key_size, int64_t value_size) {
    return (ln_attention){.heads = group * key_value_heads,
                          .key_value_heads = key_value_heads,
                          .key_size = key_size,
                          .value_size = value_size,
                          .scale = 1 / sqrtf((float)key_size),
                          .mask = {.causal = true}};
}

static void check_error(const lane *l, const ln_kernels *kernels, const char *level, uint64_t seed) {
    double allowed = 4e-6;
    for (int64_t i = 0; i < l->layout_count && !l->attention.exact; i++) {
        const linnet_type key = l->layouts[i].key_type, value = l->layouts[i].value_type;
        if (kernels->attend.integer.scores[key]) allowed = fmax(allowed, ln_low_bits(key) ? 3e-2 : 3e-4);
        if (kernels->attend.integer.outputs[value]) allowed = fmax(allowed, ln_low_bits(value) ? 3e-2 : 3e-4);
    }
    const double error = lane_error(l), lse = lane_lse_error(l);
    if (!(error <= allowed && lse <= allowed))
        fail_msg("%s seed %d: heads %d/%d sizes %d/%d pages %d tokens %d layouts %d cap %g biases %d: error %g, of "
                 "log-sum-exp %g",
                 level, (int)seed, (int)l->attention.heads, (int)l->attention.key_value_heads,
                 (int)l->attention.key_size, (int)l->attention.value_size, (int)l->pages, (int)l->tokens,
                 (int)l->layout_count, (double)l->attention.soft_cap, l->bias.keys != NULL, error, lse);
}

/* Every level; at the last one also with three threads. */
static void check(const ln_attention *a, int64_t pages, int64_t tokens, uint64_t seed) {
    lane l = lane_make(a, types, TYPES, pages, tokens, seed);
    lane_set_biases(&l, seed % 2, seed % 5 == 0);
    lane_solve(&l);
    const ln_attention_sequence sequence = lane_sequence(&l);
    const size_t bytes = (size_t)(tokens * a->heads * a->value_size) * sizeof(float);
    float *first = malloc(bytes);
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        for (int threads = 1; threads <= 3; threads += 2) {
            linnet_context *context = open_context(threads, levels[level]);
            ln_kernels kernels;
            ln_kernels_choose(context->cpu, &kernels);
            memset(l.output, 0xff, bytes);
            lane_run(&l, &kernels, context, threads, &sequence, false);
            check_error(&l, &kernels, levels[level], seed);
            if (threads == 1)
                memcpy(first, l.output, bytes);
            else
                assert_memory_equal(first, l.output, bytes);
            linnet_context_close(context);
        }
    }
    free(first);
    lane_free(&l);
}

static void test_mixed(void **state) {
    (void)state;
    static const int64_t groups[] = {1, 4, 8, 3}, tokens[] = {1, 2, 33, 100, 7, 1};
    static const int64_t sizes[][2] = {{64, 64}, {128, 128}, {40, 24}, {96, 80}, {128, 64}, {8, 16}, {56, 120}};
    uint64_t seed = 1;
    for (int round = 0; round < 12; round++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++, seed++) {
                ln_attention a = shape_of(groups[g], 1 + (int64_t)(seed % 3 == 0), sizes[s][0], sizes[s][1]);
                a.soft_cap = seed % 7 == 0 ? 3 : 0;
                a.exact = seed % 6 == 0;
                const int64_t n = tokens[seed % (sizeof tokens / sizeof *tokens)];
                check(&a, ln_ceil_div(n, LN_PAGE_TOKENS) + (int64_t)(seed * 5 % 19), n, seed);
            }
}

static void test_large(void **state) {
    (void)state;
    for (uint64_t seed = 1000; seed < 1006; seed++) {
        const ln_attention a = shape_of(seed % 2 ? 4 : 1, 1, seed % 3 ? 576 : 320, seed % 3 ? 512 : 264);
        check(&a, 9, seed % 2 ? 1 : 40, seed);
    }
}

/* Nothing is there. */
static void test_empty(void **state) {
    (void)state;
    ln_attention a = shape_of(4, 1, 64, 64);
    a.mask.causal = false;
    for (int level = 0; level < LEVELS; level++)
        for (int64_t tokens = 1; tokens <= 40; tokens += 39) {
            if (!level_is_new(level)) continue;
            lane l = lane_make(&a, types, TYPES, 7, tokens, 77);
            memset(l.counts, 0, sizeof l.counts);
            linnet_context *context = open_context(2, levels[level]);
            ln_kernels kernels;
            ln_kernels_choose(context->cpu, &kernels);
            const ln_attention_sequence sequence = lane_sequence(&l);
            lane_run(&l, &kernels, context, 2, &sequence, false);
            for (int64_t i = 0; i < tokens * a.heads; i++) assert_true(l.lse[i] == -INFINITY);
            for (int64_t i = 0; i < tokens * a.heads * a.value_size; i++) assert_true(l.output[i] == 0);
            linnet_context_close(context);
            lane_free(&l);
        }
}

/* Layouts and counts that say nothing change no bit. */
static void test_same_bits(void **state) {
    (void)state;
    for (int type = 0; type < TYPES; type++)
        for (int64_t tokens = 1; tokens <= 70; tokens += tokens < 3 ? 1 : 67) {
            const ln_attention a = shape_of(4, 1, 64, 128);
            lane l = lane_make(&a, &types[type], 1, 20, tokens, 5);
            free(l.bytes);
            free(l.keys);
            free(l.values);
            ln_page_layout_of(types[type], types[type], 64, 128, &l.layouts[0]);
            l.layout_count = 1;
            memset(l.kinds, 0, sizeof l.kinds);
            memset(l.counts, LN_PAGE_TOKENS, sizeof l.counts);
            ln_random random;
            ln_random_seed(&random, 9);
            lane_fill(&l, &random);
            linnet_context *context = open_context(2, NULL);
            ln_kernels kernels;
            ln_kernels_choose(context->cpu, &kernels);
            const size_t bytes = (size_t)(tokens * a.heads * a.value_size) * sizeof(float);
            float *with = malloc(bytes);
            ln_attention_sequence sequence = lane_sequence(&l);
            lane_run(&l, &kernels, context, 2, &sequence, false);
            memcpy(with, l.output, bytes);
            sequence.view.layout = l.layouts[0];
            sequence.view.kinds = NULL;
            sequence.counts = NULL;
            lane_run(&l, &kernels, context, 2, &sequence, false);
            assert_memory_equal(with, l.output, bytes);
            free(with);
            linnet_context_close(context);
            lane_free(&l);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mixed), cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_empty), cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
