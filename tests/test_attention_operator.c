/* The public attention operator against float64 (attention_oracle.h): random combinations of all options, each length
 * of tails, instruction sets, threads, strides and guards; and the plan's cost against counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "attention_run.h"
#include "number/format.h"

static int64_t between(ln_random *random, int64_t least, int64_t most) {
    return least + (int64_t)ln_random_below(random, (uint64_t)(most - least + 1));
}
static bool chance(ln_random *random, double p) {
    return ln_random_unit(random) < p;
}
static int64_t pick(ln_random *random, const int64_t *from, size_t count) {
    return from[ln_random_below(random, count)];
}
#define PICK(random, ...) \
    pick(random, (const int64_t[]){__VA_ARGS__}, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

/* ---- random scenes ---- */

static void random_heads(scene *s, ln_random *random) {
    linnet_attention_settings *set = &s->set;
    set->key_value_heads = PICK(random, 0, 1, 1, 2, 3);
    set->heads = ln_max_i64(1, set->key_value_heads) * PICK(random, 1, 1, 2, 4, 7);
    if (chance(random, 0.03)) {
        set->key_value_heads = 1;
        set->heads = between(random, 8, 130);
    }
    set->key_size = PICK(random, 8, 8, 16, 16, 24, 32, 32, 40, 64, 64, 72, 80, 96, 128, 192, 256, 264, 576);
    if (chance(random, 0.5))
        set->value_size = PICK(random, 8, 16, 16, 24, 32, 32, 48, 56, 64, 88, 96, 128, 256, 512, 576);
    set->type = chance(random, 0.5) ? LINNET_F32 : LINNET_BF16;
    set->exact = chance(random, 0.5);
    if (chance(random, 0.3)) set->scale = 0.05f + 0.3f * (float)ln_random_unit(random);
    for (int i = 0; i < 4; i++) s->layout[i] = (scene_layout)ln_random_below(random, LAYOUTS);
}

/* Tokens for about `work` products of elements. */
static int64_t longest(const scene *s, double work) {
    const double each = (double)(s->set.heads * (s->set.key_size + scene_value_size(s)));
    return ln_max_i64(2, ln_min_i64(600, (int64_t)sqrt(work / each)));
}

static int64_t random_length(ln_random *random, int64_t most) {
    const double kind = ln_random_unit(random);
    return kind < 0.1 ? 0 : kind < 0.2 ? 1 : kind < 0.3 ? most : between(random, 1, most);
}

static void random_lengths(scene *s, ln_random *random, double work) {
    const int64_t sequences = chance(random, 0.5) ? 1 : between(random, 1, SCENE_SEQUENCES);
    const int64_t most = longest(s, work / (double)sequences);
    const bool cross = chance(random, 0.4), few = chance(random, 0.2);
    s->set.sequences = sequences == 1 ? between(random, 0, 1) : sequences;
    for (int64_t i = 0; i < sequences; i++) {
        int64_t queries = random_length(random, most), keys = cross ? random_length(random, most) : queries;
        if (few) {
            queries = between(random, 0, 4);
            keys = random_length(random, ln_min_i64(2000, most * most / 4));
        }
        s->query_offsets[i + 1] = s->query_offsets[i] + queries;
        s->key_offsets[i + 1] = s->key_offsets[i] + keys;
    }
}

static void random_neighbourhood(scene *s, ln_random *random, double work) {
    linnet_neighbourhood *n = &s->set.neighbourhood;
    n->axes = (int)between(random, 1, LINNET_AXES_MOST);
    const int64_t most = longest(s, work), side = (int64_t)pow((double)most, 1 / (double)n->axes);
    int64_t points = 1;
    for (int a = 0; a < n->axes; a++) {
        n->extent[a] = between(random, ln_max_i64(1, side / 2), side + 1);
        n->dilation[a] = chance(random, 0.5) ? between(random, 0, 1) : between(random, 1, ln_min_i64(n->extent[a], 4));
        n->causal[a] = chance(random, 0.3);
        const int64_t limit = n->extent[a] / ln_max_i64(1, n->dilation[a]);
        n->window[a] = between(random, 1, limit);
        points *= n->extent[a];
    }
    s->set.sequences = between(random, 1, 2);
    for (int64_t i = 0; i < s->set.sequences; i++) s->query_offsets[i + 1] = s->key_offsets[i + 1] = (i + 1) * points;
}

static void random_documents(scene *s, ln_random *random) {
    const int64_t keys = s->key_offsets[ln_max_i64(1, s->set.sequences)];
    s->set.documents = between(random, 1, SCENE_DOCUMENTS);
    int64_t at = chance(random, 0.7) ? 0 : between(random, 0, keys / 4);
    for (int64_t d = 0; d <= s->set.documents; d++) {
        s->document_offsets[d] = at;
        at = ln_min_i64(keys, at + (chance(random, 0.2) ? 0 : between(random, 0, 1 + 2 * keys / s->set.documents)));
    }
    s->set.document_offsets = s->document_offsets;
}

static void random_blocks(scene *s, ln_random *random, double density) {
    linnet_block_mask *b = &s->set.blocks;
    b->query_tile = between(random, 1, 150);
    b->key_tile = 32 * between(random, 1, 5);
    b->per_head = chance(random, 0.5);
    const int64_t query_tiles = ln_ceil_div(s->query_offsets[1], b->query_tile),
                  key_tiles = ln_ceil_div(s->key_offsets[1], b->key_tile),
                  lists = query_tiles * (b->per_head ? s->set.heads : 1);
    int64_t *offsets = scene_take(s, lists + 1, sizeof *offsets), count = 0;
    int32_t *tiles = scene_take(s, lists * key_tiles, sizeof *tiles);
    for (int64_t l = 0; l < lists; l++) {
        offsets[l] = count;
        for (int64_t t = 0; t < key_tiles; t++)
            if (chance(random, density)) tiles[count++] = (int32_t)t;
    }
    offsets[lists] = count;
    b->offsets = offsets;
    b->tiles = tiles;
}

static void random_scene(scene *s, ln_random *random, double work) {
    linnet_attention_settings *set = &s->set;
    *s = (scene){.set = linnet_attention_settings_default()};
    random_heads(s, random);
    const bool grid = chance(random, 0.25), mask = !grid || chance(random, 0.3);
    if (grid)
        random_neighbourhood(s, random, work);
    else
        random_lengths(s, random, work);
    if (mask && chance(random, 0.4)) set->causal = true;
    if (mask && chance(random, 0.3)) set->window = between(random, 1, chance(random, 0.5) ? 20 : 300);
    if (mask && chance(random, 0.2)) set->prefix = between(random, 0, 60);
    if (mask && chance(random, 0.25)) random_documents(s, random);
    if (!grid && set->sequences <= 1 && chance(random, 0.4))
        random_blocks(s, random, chance(random, 0.2) ? 1 : ln_random_unit(random));
    static const float wanted;
    if (chance(random, 0.25)) set->alibi = &wanted;
    if (chance(random, 0.25)) set->rank = between(random, 1, 7);
    set->bias = chance(random, 0.25);
    if (chance(random, 0.25)) set->relative = between(random, 1, 90);
    if (chance(random, 0.25)) set->soft_cap = 0.5f + 40 * (float)ln_random_unit(random);
    set->sinks = chance(random, 0.25);
    if (chance(random, 0.2)) s->spread = 10;
    scene_fill(s, random);
}

/* ---- running ---- */

static const char *describe(const scene *s) {
    static char text[512];
    const linnet_attention_settings *a = &s->set;
    snprintf(text, sizeof text,
             "%s heads %d/%d sizes %d/%d sequences %d queries %d keys %d causal %d window %d prefix %d documents %d "
             "blocks %d/%d/%d axes %d alibi %d rank %d bias %d relative %d cap %g sinks %d spread %g layouts %d%d%d%d",
             linnet_type_name(a->type), (int)a->heads, (int)scene_key_heads(s), (int)a->key_size,
             (int)scene_value_size(s), (int)a->sequences, (int)s->queries, (int)s->keys, a->causal, (int)a->window,
             (int)a->prefix, (int)a->documents, (int)a->blocks.query_tile, (int)a->blocks.key_tile, a->blocks.per_head,
             a->neighbourhood.axes, a->alibi != NULL, (int)a->rank, a->bias, (int)a->relative, (double)a->soft_cap,
             a->sinks, (double)s->spread, (int)s->layout[0], (int)s->layout[1], (int)s->layout[2], (int)s->layout[3]);
    return text;
}

static double worst_error;

static void check_run(scene *s, int level, int threads) {
    const double extra = scene_run(s, test_context(level, threads)), error = scene_error(s, extra);
    if (extra == 0) worst_error = fmax(worst_error, error);
    if (!(error <= 1))
        fail_msg("%s, %d threads: %g times the tolerance: %s", levels[level], threads, error, describe(s));
}

/* All levels; of the highest all numbers of threads, bit for bit. */
static void check(scene *s) {
    scene_answer(s);
    int last = 0;
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        check_run(s, level, 2);
        last = level;
    }
    const size_t rows = (size_t)(s->queries * s->set.heads), bytes = (size_t)s->output_floats * sizeof(float);
    float *first = malloc(bytes + 1), *lse = malloc(rows * sizeof(float) + 1);
    scene_run(s, test_context(last, 1));
    memcpy(first, s->tensors.output.data, bytes);
    memcpy(lse, s->tensors.log_sum_exp, rows * sizeof(float));
    for (int threads = 2; threads <= THREADS_MOST; threads++) {
        scene_run(s, test_context(last, threads));
        assert_memory_equal(first, s->tensors.output.data, bytes);
        assert_memory_equal(lse, s->tensors.log_sum_exp, rows * sizeof(float));
    }
    free(first);
    free(lse);
}

static void test_combinations(void **state) {
    (void)state;
    ln_random random;
    const int count = SLOW ? 60 : 800;
    for (int i = 0; i < count; i++) {
        ln_random_seed(&random, (uint64_t)i);
        scene s;
        random_scene(&s, &random, SLOW ? 3e5 : 1e7);
        check(&s);
        scene_close(&s);
    }
}

/* ---- caches ---- */

/* Row by row what the cache makes of it. */
static void round_rows(const linnet_tensor *t, linnet_type precision, int64_t rows, int64_t size) {
    const ln_format *format = ln_format_of(precision);
    const int64_t whole = ln_ceil_div(size, format->block) * format->block;
    for (int64_t r = 0; r < rows; r++) {
        float row[640] = {0}, *at = (float *)t->data + r * size;
        unsigned char codes[4 * 640];
        memcpy(row, at, (size_t)size * sizeof *row);
        format->encode(row, codes, whole);
        format->decode(codes, row, whole);
        memcpy(at, row, (size_t)size * sizeof *row);
    }
}

/* The scene's keys and values (packed float32) appended in random pieces, some of them taken back and appended again.
 */
static void fill_caches(const scene *s, ln_random *random, linnet_context *context, linnet_type precision, bool joined,
                        linnet_cache **caches) {
    for (int64_t i = 0; i < ln_max_i64(1, s->set.sequences); i++) {
        linnet_cache_settings set = linnet_cache_settings_default();
        set.key_value_heads = scene_key_heads(s);
        set.key_size = s->set.key_size;
        set.value_size = scene_value_size(s);
        set.precision = precision;
        set.value_in_key = joined;
        set.capacity = ln_max_i64(1, keys_of(s, i));
        if (linnet_cache_open(context, &set, &caches[i])) fail_msg("%s", linnet_last_error(context));
        for (int64_t at = 0; at < keys_of(s, i);) {
            const int64_t n = between(random, 1, keys_of(s, i) - at), first = s->key_offsets[i] + at;
            linnet_tensor key = s->tensors.key, value = s->tensors.value;
            key.data = (float *)key.data + first * set.key_value_heads * set.key_size;
            if (!joined) value.data = (float *)value.data + first * set.key_value_heads * set.value_size;
            if (linnet_cache_append(caches[i], n, key, value)) fail_msg("%s", linnet_last_error(context));
            at += n;
            if (chance(random, 0.2)) {
                at -= between(random, 0, n);
                assert_int_equal(linnet_cache_rewind(caches[i], at), LINNET_OK);
            }
        }
        assert_int_equal(linnet_cache_tokens(caches[i]), keys_of(s, i));
    }
}

static void run_cached(scene *s, uint64_t seed, linnet_type precision, bool joined, int level, int threads) {
    linnet_context *context = test_context(level, threads);
    linnet_attention_settings set = s->set;
    set.key_offsets = NULL;
    set.cache_capacity = ln_max_i64(1, s->keys);
    linnet_attention_plan *plan;
    linnet_cache *caches[SCENE_SEQUENCES] = {0};
    ln_random random;
    ln_random_seed(&random, seed);
    fill_caches(s, &random, context, precision, joined, caches);
    if (linnet_attention_plan_open(context, &set, &plan)) fail_msg("%s", linnet_last_error(context));
    unsigned char *workspace = open_workspace(linnet_attention_workspace(plan));
    linnet_attention_tensors t = s->tensors;
    t.key = t.value = (linnet_tensor){0};
    if (linnet_attention_cached(plan, &t, caches, workspace)) fail_msg("%s", linnet_last_error(context));
    close_workspace(workspace, linnet_attention_workspace(plan));
    linnet_attention_plan_close(plan);
    for (int i = 0; i < SCENE_SEQUENCES; i++) linnet_cache_close(caches[i]);
}

/* The same answers from caches of every precision, also with values that are columns of the keys; few queries and many.
 */
static void test_cached(void **state) {
    (void)state;
    static const linnet_type precisions[] = {LINNET_F32, LINNET_BF16, LINNET_F16, LINNET_Q8_0, LINNET_Q4_0};
    ln_random random;
    int tried = 0;
    for (uint64_t i = 0; tried < (SLOW ? 30 : 250); i++) {
        ln_random_seed(&random, 5000 + i);
        scene s;
        random_scene(&s, &random, SLOW ? 3e5 : 2e6);
        if (s.set.neighbourhood.axes || s.set.blocks.query_tile) {
            scene_close(&s);
            continue;
        }
        const linnet_type precision = precisions[tried++ % 5];
        s.set.type = LINNET_F32; /* random numbers for it again */
        s.layout[1] = s.layout[2] = PACKED;
        scene_fill(&s, &random);
        scene copy = s; /* what the caches are given */
        copy.tensors.key.data = scene_take(&s, s.keys * scene_key_heads(&s) * s.set.key_size, sizeof(float));
        copy.tensors.value.data = scene_take(&s, s.keys * scene_key_heads(&s) * scene_value_size(&s), sizeof(float));
        memcpy(copy.tensors.key.data, s.tensors.key.data,
               (size_t)(s.keys * scene_key_heads(&s) * s.set.key_size) * sizeof(float));
        memcpy(copy.tensors.value.data, s.tensors.value.data,
               (size_t)(s.keys * scene_key_heads(&s) * scene_value_size(&s)) * sizeof(float));
        round_rows(&s.tensors.key, precision, s.keys * scene_key_heads(&s), s.set.key_size);
        round_rows(&s.tensors.value, precision, s.keys * scene_key_heads(&s), scene_value_size(&s));
        const bool joined = tried % 3 == 0 && scene_value_size(&s) <= s.set.key_size;
        for (int64_t r = 0; joined && r < s.keys * scene_key_heads(&s); r++)
            memcpy((float *)s.tensors.value.data + r * scene_value_size(&s),
                   (float *)s.tensors.key.data + r * s.set.key_size, (size_t)scene_value_size(&s) * sizeof(float));
        if (joined) copy.tensors.value.data = NULL;
        /* Few queries meet such pages as 16-bit integers where the processor multiplies bytes (kernel/attend.h). */
        const bool integers = precision == LINNET_Q8_0 || precision == LINNET_Q4_0;
        copy.set.exact = s.set.exact = !integers || s.set.type != LINNET_F32 || tried % 4 == 0;
        if (!s.set.exact) s.coarse = 0x1p-16;
        scene_answer(&s);
        for (int level = 0; level < LEVELS; level++) {
            if (!level_is_new(level)) continue;
            run_cached(&copy, i, precision, joined, level, 1 + level % THREADS_MOST);
            const double error = scene_error(&s, 0);
            if (!(error <= 1))
                fail_msg("%s, %s cache%s: %g times the tolerance: %s", levels[level] ? levels[level] : "all",
                         linnet_type_name(precision), joined ? " of keys alone" : "", error, describe(&s));
        }
        scene_close(&s);
    }
}

/* ---- tails ---- */

static void one_sequence(scene *s, int64_t queries, int64_t keys) {
    s->query_offsets[1] = queries;
    s->key_offsets[1] = keys;
}

/* Every residue of tokens, beside whole tiles and without. */
static void test_lengths(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 1);
    for (int64_t residue = 1; residue <= 64; residue += SLOW ? 5 : 1) {
        for (int kind = 0; kind < 4; kind++) {
            scene s = {.set = linnet_attention_settings_default(), .layout = {PADDED, PACKED, HEAD_MAJOR, PADDED}};
            s.set.heads = 1 + residue % 3;
            s.set.key_value_heads = 1;
            s.set.key_size = 8 * (1 + residue % 9);
            s.set.value_size = 8 * (1 + residue % 7);
            s.set.causal = kind % 2;
            s.set.type = residue % 2 ? LINNET_F32 : LINNET_BF16;
            one_sequence(&s, kind < 2 ? residue : 40, kind == 3 ? 128 + residue : residue);
            scene_fill(&s, &random);
            check(&s);
            scene_close(&s);
        }
    }
}

/* Every size of keys and values. */
static void test_sizes(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 2);
    for (int64_t size = 8; size <= 576; size += SLOW ? 104 : 8) {
        for (int kind = 0; kind < 3; kind++) {
            scene s = {.set = linnet_attention_settings_default(), .layout = {HEAD_MAJOR, PADDED, PADDED, HEAD_MAJOR}};
            s.set.heads = 2;
            s.set.key_value_heads = kind == 2 ? 2 : 1;
            s.set.key_size = kind == 1 ? 584 - size : size;
            s.set.value_size = kind == 0 ? 0 : size;
            s.set.causal = true;
            s.set.type = kind == 1 ? LINNET_BF16 : LINNET_F32;
            one_sequence(&s, 13, 45);
            scene_fill(&s, &random);
            check(&s);
            scene_close(&s);
        }
    }
}

/* ---- cost ---- */

/* Pairs of tiles in which some query sees some key. */
static void count_visits(const scene *s, const linnet_attention_cost *cost, int64_t *tiles, int64_t *visited,
                         int64_t *tasks) {
    const int64_t shared = scene_key_heads(s), group = s->set.heads / shared;
    *tiles = *visited = *tasks = 0;
    for (int64_t i = 0; i < ln_max_i64(1, s->set.sequences); i++)
        for (int64_t h = 0; h < shared; h++)
            for (int64_t q = 0; q < queries_of(s, i); q += cost->query_tile, ++*tasks)
                for (int64_t k = 0; k < keys_of(s, i); k += cost->key_tile) {
                    bool any = false;
                    for (int64_t g = 0; g < group && !any; g++)
                        for (int64_t t = q; t < ln_min_i64(queries_of(s, i), q + cost->query_tile) && !any; t++)
                            for (int64_t j = k; j < ln_min_i64(keys_of(s, i), k + cost->key_tile) && !any; j++)
                                any = scene_sees(s, i, h * group + g, t, j);
                    ++*tiles;
                    *visited += any;
                }
}

/* The plan counts what the formulas say. A mask may say that a tile is visited where documents or lists leave nothing
 * of it; intervals alone are exact. (Tiles of a neighbourhood are not runs of tokens: tests/test_mask.c.) */
static void test_cost(void **state) {
    (void)state;
    ln_random random;
    int64_t exact = 0, more = 0;
    for (int i = 0; i < (SLOW ? 40 : 400); i++) {
        ln_random_seed(&random, (uint64_t)(1000 + i));
        scene s;
        random_scene(&s, &random, 1e6);
        scene_answer(&s);
        linnet_context *context = test_context(0, 1);
        linnet_attention_plan *plan;
        assert_int_equal(linnet_attention_plan_open(context, &s.set, &plan), LINNET_OK);
        linnet_attention_cost cost = {.size = sizeof cost};
        assert_int_equal(linnet_attention_plan_cost(plan, &cost), LINNET_OK);
        const double each = 2 * (double)(s.set.key_size + scene_value_size(&s));
        assert_true(cost.flops == each * s.pairs);
        assert_true(cost.visited_flops >= cost.flops && cost.exponentials == cost.visited_flops / each);
        assert_true(cost.partial <= cost.visited && cost.visited <= cost.tiles);
        assert_int_equal(cost.passes, 1);
        if (!s.set.neighbourhood.axes) {
            int64_t tiles, visited, tasks;
            count_visits(&s, &cost, &tiles, &visited, &tasks);
            assert_int_equal(cost.tiles, tiles);
            assert_int_equal(cost.tasks, tasks);
            const bool plain = !s.set.documents && !s.set.blocks.query_tile;
            if (plain) assert_int_equal(cost.visited, visited);
            assert_true(cost.visited >= visited);
            exact += visited;
            more += cost.visited - visited;
            const bool open = plain && !s.set.causal && !s.set.window;
            if (open) assert_int_equal(cost.partial, 0);
            if (open) assert_true(cost.visited_flops == cost.flops);
        }
        linnet_attention_plan_close(plan);
        scene_close(&s);
    }
    assert_true(100 * more <= exact); /* at most 1 % is visited for nothing */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_combinations), cmocka_unit_test(test_lengths),
                                       cmocka_unit_test(test_sizes), cmocka_unit_test(test_cached),
                                       cmocka_unit_test(test_cost)};
    const int failed = cmocka_run_group_tests(tests, NULL, close_contexts);
    printf("largest error: %.2f of the tolerance\n", worst_error);
    return failed;
}
