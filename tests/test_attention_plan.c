/* The plan of the attention operator: what it refuses, with which sentence and without leaving anything behind, its
 * text, and tensors that are missing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "attention_run.h"

typedef linnet_attention_settings settings;

static const int64_t self[] = {0, 64}, two[] = {0, 32, 64}, falling[] = {0, 40, 30}, late[] = {1, 64};
static const float steep[] = {1, INFINITY, 1, 1};
static const int64_t list_ends[] = {0, 1, 2};
static const int64_t long_end[] = {0, 65}, short_end[] = {0, 63}, late_ends[] = {1, 1, 2};
static const int32_t list_tiles[] = {0, 1}, wrong_tiles[] = {0, 2}, twice[] = {1, 1};
static const int64_t both_in_one[] = {0, 2, 2};

static void no_heads(settings *s) {
    s->heads = 0;
}
static void odd_groups(settings *s) {
    s->key_value_heads = 3;
}
static void negative_heads(settings *s) {
    s->key_value_heads = -2;
}
static void float16(settings *s) {
    s->type = LINNET_F16;
}
static void no_type(settings *s) {
    s->type = (linnet_type)999;
}
static void odd_key(settings *s) {
    s->key_size = 20;
}
static void small_key(settings *s) {
    s->key_size = 0;
}
static void large_key(settings *s) {
    s->key_size = 584;
}
static void odd_value(settings *s) {
    s->value_size = 12;
}
static void no_offsets(settings *s) {
    s->query_offsets = NULL;
}
static void negative_sequences(settings *s) {
    s->sequences = -1;
}
static void falling_offsets(settings *s) {
    s->sequences = 2, s->query_offsets = falling;
}
static void late_offsets(settings *s) {
    s->query_offsets = late;
}
static void falling_keys(settings *s) {
    s->sequences = 2, s->query_offsets = two, s->key_offsets = falling;
}
static void late_keys(settings *s) {
    s->key_offsets = late;
}
static void nan_scale(settings *s) {
    s->scale = NAN;
}
static void infinite_cap(settings *s) {
    s->soft_cap = INFINITY;
}
static void negative_window(settings *s) {
    s->window = -1;
}
static void negative_prefix(settings *s) {
    s->prefix = -1;
}
static void negative_documents(settings *s) {
    s->documents = -1;
}
static void no_documents(settings *s) {
    s->documents = 1;
}
static void falling_documents(settings *s) {
    s->documents = 2, s->document_offsets = falling;
}
static void long_documents(settings *s) {
    s->documents = 1, s->document_offsets = long_end;
}
static linnet_block_mask good_blocks(void) {
    return (linnet_block_mask){.query_tile = 32, .key_tile = 32, .offsets = list_ends, .tiles = list_tiles};
}
static void odd_key_tile(settings *s) {
    s->blocks = good_blocks(), s->blocks.key_tile = 48;
}
static void no_query_tile(settings *s) {
    s->blocks = good_blocks(), s->blocks.query_tile = 0;
}
static void no_key_tile(settings *s) {
    s->blocks = good_blocks(), s->blocks.key_tile = 0;
}
static void no_lists(settings *s) {
    s->blocks = good_blocks(), s->blocks.offsets = NULL;
}
static void no_tiles(settings *s) {
    s->blocks = good_blocks(), s->blocks.tiles = NULL;
}
static void far_tile(settings *s) {
    s->blocks = good_blocks(), s->blocks.tiles = wrong_tiles;
}
static void equal_tiles(settings *s) {
    s->blocks = good_blocks();
    s->blocks.offsets = both_in_one;
    s->blocks.tiles = twice;
}
static void late_lists(settings *s) {
    s->blocks = good_blocks(), s->blocks.offsets = late_ends;
}
static void two_in_blocks(settings *s) {
    s->blocks = good_blocks(), s->sequences = 2, s->query_offsets = two;
}
static linnet_neighbourhood good_grid(void) {
    return (linnet_neighbourhood){.axes = 2, .extent = {8, 8}, .window = {3, 3}};
}
static void blocks_on_grid(settings *s) {
    s->blocks = good_blocks(), s->neighbourhood = good_grid();
}
static void four_axes(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.axes = 4;
}
static void no_extent(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.extent[1] = 0;
}
static void wrong_points(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.extent[1] = 9;
}
static void no_window(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.window[0] = 0;
}
static void wide_window(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.window[0] = 9;
}
static void wide_dilation(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.dilation[0] = 4;
}
static void negative_dilation(settings *s) {
    s->neighbourhood = good_grid(), s->neighbourhood.dilation[0] = -1;
}
static void cross_grid(settings *s) {
    s->neighbourhood = good_grid(), s->key_offsets = short_end;
}
static void grid_of_cache(settings *s) {
    s->neighbourhood = good_grid(), s->cache_capacity = 64;
}
static void steep_alibi(settings *s) {
    s->alibi = steep;
}
static void negative_rank(settings *s) {
    s->rank = -1;
}
static void negative_relative(settings *s) {
    s->relative = -1;
}
static void negative_capacity(settings *s) {
    s->cache_capacity = -1;
}
static void endless_caches(settings *s) {
    s->query_offsets = two, s->sequences = 2, s->cache_capacity = (int64_t)1 << 40;
}
static void endless_keys(settings *s) {
    static const int64_t endless[] = {0, INT64_MAX};
    s->key_offsets = endless;
}
static void endless_factors(settings *s) {
    s->rank = INT32_MAX, s->heads = 1 << 20;
}

static const struct {
    void (*spoil)(settings *s);
    const char *says;
} refusals[] = {
    {no_heads, "0 heads cannot share"},
    {odd_groups, "4 heads cannot share 3"},
    {negative_heads, "cannot share -2"},
    {float16, "not f16"},
    {no_type, "unknown type"},
    {odd_key, "heads of 20 keys and 64 values"},
    {small_key, "heads of 0 keys"},
    {large_key, "heads of 584 keys"},
    {odd_value, "and 12 values"},
    {no_offsets, "query_offsets"},
    {negative_sequences, "sequences"},
    {falling_offsets, "query_offsets[2] is 30"},
    {late_offsets, "must begin with 0"},
    {falling_keys, "key_offsets[2] is 30"},
    {late_keys, "must begin with 0"},
    {nan_scale, "scale"},
    {infinite_cap, "soft_cap"},
    {negative_window, "window is negative"},
    {negative_prefix, "prefix is negative"},
    {negative_documents, "documents is negative"},
    {no_documents, "document_offsets are missing"},
    {falling_documents, "document_offsets[2] is 30"},
    {long_documents, "document_offsets end at 65"},
    {odd_key_tile, "key_tile"},
    {no_query_tile, "query_tile"},
    {no_key_tile, "key_tile"},
    {no_lists, "blocks.offsets are missing"},
    {no_tiles, "blocks.tiles are missing"},
    {far_tile, "blocks.tiles[1] is 2"},
    {equal_tiles, "blocks.tiles[1] must be above"},
    {late_lists, "blocks.offsets must begin with 0"},
    {two_in_blocks, "one sequence"},
    {blocks_on_grid, "together"},
    {four_axes, "axes"},
    {no_extent, "axis 1"},
    {wrong_points, "multiply to 72"},
    {no_window, "axis 0"},
    {wide_window, "axis 0"},
    {wide_dilation, "axis 0"},
    {negative_dilation, "axis 0"},
    {cross_grid, "63 keys"},
    {grid_of_cache, "cache"},
    {steep_alibi, "alibi[1]"},
    {negative_rank, "rank"},
    {negative_relative, "relative"},
    {negative_capacity, "cache_capacity"},
    {endless_caches, "2^48"},
    {endless_keys, "2^48"},
    {endless_factors, "2^48"},
};

/* Each wrong setting: its own sentence, no plan, nothing left allocated. */
static void test_refusals(void **state) {
    (void)state;
    linnet_context *context = test_context(0, 1);
    const uint64_t used = linnet_memory_used(context);
    settings good = linnet_attention_settings_default();
    good.heads = 4;
    good.key_size = good.value_size = 64;
    good.query_offsets = self;
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(context, &good, &plan), LINNET_OK);
    linnet_attention_plan_close(plan);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        settings bad = good;
        refusals[i].spoil(&bad);
        plan = (linnet_attention_plan *)&bad;
        assert_int_equal(linnet_attention_plan_open(context, &bad, &plan), LINNET_ERROR_ARGUMENT);
        assert_null(plan);
        if (!strstr(linnet_last_error(context), refusals[i].says))
            fail_msg("\"%s\" is not in \"%s\"", refusals[i].says, linnet_last_error(context));
        assert_int_equal(linnet_memory_used(context), used);
    }
    assert_int_equal(linnet_attention_plan_open(context, NULL, &plan), LINNET_ERROR_ARGUMENT);
    linnet_attention_plan_close(NULL);
}

/* Tensors that the plan needs and that are not there. */
static void test_missing_tensors(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 3);
    scene s = {.set = linnet_attention_settings_default()};
    static const float wanted;
    s.set.heads = 2;
    s.set.key_size = 16;
    s.set.alibi = &wanted;
    s.set.rank = s.set.relative = 2;
    s.set.bias = s.set.sinks = true;
    s.query_offsets[1] = s.key_offsets[1] = 5;
    scene_fill(&s, &random);
    linnet_context *context = test_context(0, 1);
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(context, &s.set, &plan), LINNET_OK);
    unsigned char *workspace = open_workspace(linnet_attention_workspace(plan));
    static const struct {
        size_t at;
        const char *name;
    } parts[] = {{offsetof(linnet_attention_tensors, query), "query"},
                 {offsetof(linnet_attention_tensors, key), "key"},
                 {offsetof(linnet_attention_tensors, value), "value"},
                 {offsetof(linnet_attention_tensors, output), "output"},
                 {offsetof(linnet_attention_tensors, sinks), "sinks"},
                 {offsetof(linnet_attention_tensors, query_factors), "query_factors"},
                 {offsetof(linnet_attention_tensors, key_factors), "key_factors"},
                 {offsetof(linnet_attention_tensors, bias), "bias"},
                 {offsetof(linnet_attention_tensors, relative), "relative"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        linnet_attention_tensors t = s.tensors;
        memset((char *)&t + parts[i].at, 0, sizeof(void *)); /* a tensor's data is first */
        assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_ERROR_ARGUMENT);
        assert_non_null(strstr(linnet_last_error(context), parts[i].name));
    }
    assert_int_equal(linnet_attention_forward(plan, NULL, workspace), LINNET_ERROR_ARGUMENT);
    linnet_attention_tensors t = s.tensors;
    t.log_sum_exp = NULL; /* may be missing */
    assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_OK);
    close_workspace(workspace, linnet_attention_workspace(plan));
    linnet_attention_plan_close(plan);
    scene_close(&s);
}

static void test_caches(void **state) {
    (void)state;
    linnet_context *context = test_context(0, 1);
    const uint64_t used = linnet_memory_used(context);
    static const int64_t one[] = {0, 1};
    static float rows[4 * 4 * 64];
    float output[4 * 64];
    const linnet_tensor row = {.data = rows};
    settings set = linnet_attention_settings_default();
    set.heads = 4;
    set.key_size = 64;
    set.query_offsets = one;
    linnet_cache_settings of = linnet_cache_settings_default();
    of.key_value_heads = 4;
    of.key_size = 64;
    of.capacity = 3;
    linnet_cache *cache, *other, *none = NULL;
    assert_int_equal(linnet_cache_open(context, &of, &cache), LINNET_OK);
    of.key_size = 32;
    assert_int_equal(linnet_cache_open(context, &of, &other), LINNET_OK);
    /* Appending and going back. */
    assert_int_equal(linnet_cache_append(cache, 2, row, row), LINNET_OK);
    assert_int_equal(linnet_cache_append(cache, 2, row, row), LINNET_ERROR_FULL);
    assert_non_null(strstr(linnet_last_error(context), "room for 1 more, not for 2"));
    assert_int_equal(linnet_cache_append(cache, 1, (linnet_tensor){0}, row), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_cache_append(cache, -1, row, row), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_cache_rewind(cache, 3), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_cache_rewind(cache, -1), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_cache_tokens(cache), 2);
    /* Attention over them. */
    const struct {
        int64_t capacity;
        linnet_cache **caches;
        const char *says; /* NULL: it runs */
    } cases[] = {{0, &cache, "without cache_capacity"}, {3, NULL, "no caches"},
                 {3, &none, "sequence 0 is NULL"},      {3, &other, "4 heads of 32/32, the plan 4 of 64/64"},
                 {1, &cache, "cache_capacity of 1"},    {3, &cache, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set.cache_capacity = cases[i].capacity;
        linnet_attention_plan *plan;
        assert_int_equal(linnet_attention_plan_open(context, &set, &plan), LINNET_OK);
        unsigned char *workspace = open_workspace(linnet_attention_workspace(plan));
        const linnet_attention_tensors t = {.size = sizeof t, .query = row, .output = {.data = output}};
        const linnet_status status = linnet_attention_cached(plan, &t, cases[i].caches, workspace);
        assert_int_equal(status, cases[i].says ? LINNET_ERROR_ARGUMENT : LINNET_OK);
        if (cases[i].says) assert_non_null(strstr(linnet_last_error(context), cases[i].says));
        /* The workspace is that of caches. */
        if (cases[i].capacity) {
            assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_ERROR_ARGUMENT);
            assert_non_null(strstr(linnet_last_error(context), "linnet_attention_cached"));
        }
        close_workspace(workspace, linnet_attention_workspace(plan));
        linnet_attention_plan_close(plan);
    }
    linnet_cache_close(cache);
    linnet_cache_close(other);
    assert_int_equal(linnet_memory_used(context), used);
    /* Caches that there cannot be. */
    of.precision = LINNET_Q6_K;
    assert_int_not_equal(linnet_cache_open(context, &of, &cache), LINNET_OK);
    assert_null(cache);
    of.precision = LINNET_F32;
    of.value_in_key = true;
    of.value_size = 64;
    assert_int_equal(linnet_cache_open(context, &of, &cache), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_memory_used(context), used);
}

/* Whichever allocation fails, the plan is refused and nothing is left behind. */
static void test_memory(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 4);
    linnet_context_settings limited = linnet_context_settings_default();
    limited.threads = 1;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&limited, &context), LINNET_OK);
    const uint64_t used = linnet_memory_used(context);
    for (int kind = 0; kind < 2; kind++) {
        settings set = linnet_attention_settings_default();
        set.heads = 4;
        set.key_size = 64;
        set.query_offsets = self;
        set.documents = 1;
        set.document_offsets = self;
        set.alibi = (const float[]){1, 2, 3, 4};
        if (kind)
            set.neighbourhood = good_grid();
        else
            set.blocks = good_blocks();
        linnet_status status = LINNET_ERROR_MEMORY;
        int refused = 0;
        for (uint64_t bytes = 0; status; bytes += 64) {
            linnet_attention_plan *plan;
            assert_int_equal(linnet_memory_limit(context, used + 1 + bytes), LINNET_OK);
            status = linnet_attention_plan_open(context, &set, &plan);
            assert_true(status == LINNET_OK || status == LINNET_ERROR_MEMORY);
            refused += status != LINNET_OK;
            if (!status) linnet_attention_plan_close(plan);
            assert_int_equal(linnet_memory_used(context), used);
        }
        assert_true(refused > 10);
    }
    linnet_context_close(context);
}

/* The text has one line a subject, and says how long it is. */
static void test_text(void **state) {
    (void)state;
    static const int64_t offsets[] = {0, 300};
    linnet_attention_settings set = linnet_attention_settings_default();
    set.heads = 4;
    set.key_size = 64;
    set.causal = true;
    set.query_offsets = offsets;
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(test_context(0, 1), &set, &plan), LINNET_OK);
    char whole[2048], part[100];
    const size_t bytes = linnet_attention_plan_text(plan, NULL, 0);
    assert_int_equal(linnet_attention_plan_text(plan, whole, sizeof whole), bytes);
    assert_int_equal(strlen(whole) + 1, bytes);
    assert_int_equal(linnet_attention_plan_text(plan, part, sizeof part), bytes);
    assert_memory_equal(part, whole, sizeof part - 1);
    assert_int_equal(part[sizeof part - 1], 0);
    static const char *const subjects[] = {"attention f32, 4 heads on 4, sizes 64/64",
                                           "\nkernel ",
                                           "\nrefused ",
                                           "\nworkspace ",
                                           "\ntiles ",
                                           "\nwork ",
                                           "\ntraffic "};
    for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++) assert_non_null(strstr(whole, subjects[i]));
    linnet_attention_plan_close(plan);
}

/* An interrupted run says so and leaves the rest; cleared, the same plan gives what it gave before. */
static void test_interruption(void **state) {
    (void)state;
    enum { TOKENS = 64, HEADS = 4, SIZE = 64, NUMBERS = TOKENS * HEADS * SIZE };
    linnet_context *context = test_context(0, 2);
    static float x[NUMBERS], before[NUMBERS], after[NUMBERS], gradient[NUMBERS], lse[TOKENS * HEADS];
    for (int i = 0; i < NUMBERS; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
    settings set = linnet_attention_settings_default();
    set.heads = HEADS;
    set.key_size = SIZE;
    set.query_offsets = self;
    set.backward = true;
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(context, &set, &plan), LINNET_OK);
    unsigned char *workspace = open_workspace(linnet_attention_workspace(plan));
    linnet_attention_tensors t = {.size = sizeof t,
                                  .query = {.data = x},
                                  .key = {.data = x},
                                  .value = {.data = x},
                                  .output = {.data = before},
                                  .log_sum_exp = lse,
                                  .output_gradient = {.data = x},
                                  .query_gradient = {.data = gradient}};
    assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_OK);
    t.output.data = after;
    linnet_interrupt(context);
    assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_INTERRUPTED);
    assert_int_equal(linnet_attention_backward(plan, &t, workspace), LINNET_INTERRUPTED);
    assert_non_null(strstr(linnet_last_error(context), "interrupted"));
    assert_memory_not_equal(before, after, sizeof before);
    linnet_interrupt_clear(context);
    assert_int_equal(linnet_attention_forward(plan, &t, workspace), LINNET_OK);
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(linnet_attention_backward(plan, &t, workspace), LINNET_OK);
    close_workspace(workspace, linnet_attention_workspace(plan));
    linnet_attention_plan_close(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_caches), cmocka_unit_test(test_missing_tensors),
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_text),   cmocka_unit_test(test_interruption)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
