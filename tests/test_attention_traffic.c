/* Words that attention moves between memory and a cache of M words, counted on a simulated fully associative cache that
 * forgets what was used longest ago: loops written out here against the law of Saha and Ye (2024), and the real tile
 * loop, whose kernels are watched, against what its plan says. And passes over keys (Nayak et al. 2024). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "attention_run.h"
#include "mixer/attention_plan.h"

/* ---- a cache ---- */

typedef struct line {
    int32_t newer, older;
    bool here, dirty;
} line;

/* Lines are numbers from 0; the list runs from the newest to the oldest, `lines` is its end on both sides. A line that
 * is written is not read first. */
static struct {
    line *line;
    int64_t lines, capacity, held, loads, stores;
} cache;

static void open_cache(int64_t lines, int64_t capacity) {
    cache.line = calloc((size_t)lines + 1, sizeof *cache.line);
    assert_non_null(cache.line);
    cache.lines = lines;
    cache.capacity = capacity;
    cache.held = cache.loads = cache.stores = 0;
    cache.line[lines].newer = cache.line[lines].older = (int32_t)lines;
}

static void take_out(int64_t at) {
    line *l = &cache.line[at];
    cache.line[l->newer].older = l->older;
    cache.line[l->older].newer = l->newer;
    l->here = false;
    cache.stores += l->dirty;
    cache.held--;
}

static void touch(int64_t at, bool write) {
    line *l = &cache.line[at], *end = &cache.line[cache.lines];
    const bool dirty = l->here && l->dirty;
    if (l->here) {
        l->dirty = false;
        take_out(at);
    } else {
        cache.loads += !write;
        if (cache.held == cache.capacity) take_out(end->newer);
    }
    *l = (line){.newer = (int32_t)cache.lines, .older = end->older, .here = true, .dirty = dirty || write};
    cache.line[end->older].newer = (int32_t)at;
    end->older = (int32_t)at;
    cache.held++;
}

/* Words moved, what is left in the cache included. */
static int64_t close_cache(void) {
    for (int64_t i = 0; i < cache.lines; i++) cache.stores += cache.line[i].here && cache.line[i].dirty;
    free(cache.line);
    cache.line = NULL;
    return cache.loads + cache.stores;
}

/* ---- two loops for one head, word by word ---- */

/* Where matrices of n rows of d words begin, and the scores. */
enum { N = 96, D = 16, Q = 0, K = N * D, V = 2 * N * D, O = 3 * N * D, S = 4 * N * D, WORDS = S + N * N };

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Tiles of `rows` queries over single keys: scores of a tile stay in the cache. */
static int64_t flash(int64_t capacity, int64_t rows) {
    open_cache(WORDS, capacity);
    for (int64_t q = 0; q < N; q += rows)
        for (int64_t k = 0; k < N; k++) {
            for (int64_t i = q; i < least(N, q + rows); i++) {
                for (int64_t x = 0; x < D; x++) {
                    touch(Q + i * D + x, false);
                    touch(K + k * D + x, false);
                }
                touch(S + i - q, true);
            }
            for (int64_t i = q; i < least(N, q + rows); i++) {
                touch(S + i - q, false);
                for (int64_t x = 0; x < D; x++) {
                    touch(V + k * D + x, false);
                    touch(O + i * D + x, true);
                }
            }
        }
    return close_cache();
}

/* C [n, m] += A [n, depth] B [depth, m] in square tiles of `side`; `turned`: B is given as [m, depth]. */
static void square_product(int64_t c, int64_t a, int64_t b, int64_t m, int64_t depth, bool turned, int64_t side) {
    for (int64_t i = 0; i < N; i += side)
        for (int64_t j = 0; j < m; j += side)
            for (int64_t x = 0; x < depth; x++)
                for (int64_t r = i; r < least(N, i + side); r++)
                    for (int64_t s = j; s < least(m, j + side); s++) {
                        touch(a + r * depth + x, false);
                        touch(b + (turned ? s * depth + x : x * m + s), false);
                        touch(c + r * m + s, true);
                    }
}

/* Both products by square tiles, the scores written to memory between them; the softmax is part of the first. */
static int64_t squares(int64_t capacity, int64_t side) {
    open_cache(WORDS, capacity);
    square_product(S, Q, K, N, D, true, side);
    square_product(O, S, V, D, N, false, side);
    return close_cache();
}

static int64_t best(int64_t (*loop)(int64_t, int64_t), int64_t capacity, int64_t *size) {
    int64_t words = INT64_MAX;
    for (int64_t each = 1; each <= N; each += each < 16 ? 1 : 8) {
        const int64_t moved = loop(capacity, each);
        if (moved >= words) continue;
        words = moved;
        *size = each;
    }
    return words;
}

static double law(double n, double d, double m) {
    return m >= d * d ? n * n * d * d / m : n * n * d / sqrt(m);
}

/* The better loop moves 5 to 8.5 times the law's words for every cache, and which one that is changes at M = d^2. */
static void test_law(void **state) {
    (void)state;
    int64_t rows_before = 0, side_before = 0;
    for (int64_t m = 64; m <= 2048; m *= 2) {
        int64_t rows = 0, side = 0;
        const int64_t by_tiles = best(flash, m, &rows), by_squares = best(squares, m, &side);
        const double ratio = (double)least(by_tiles, by_squares) / law(N, D, (double)m);
        if (!(ratio > 5 && ratio < 8.5)) fail_msg("M %d: %g times the law", (int)m, ratio);
        assert_true((by_tiles < by_squares) == (m >= D * D));
        /* The best tile grows with the cache: rows as M / d, the side as sqrt M. */
        if (m >= D * D) {
            assert_in_range(rows, 3 * m / (8 * D), m / D);
            assert_true(rows > rows_before);
            rows_before = rows;
        } else {
            assert_in_range(side * side, m / 2, m);
            assert_true(side > side_before);
            side_before = side;
        }
    }
}

/* ---- the real tile loop ---- */

enum { LINE = 16 }; /* words */

static struct {
    ln_attend_kernels real;
    const unsigned char *memory; /* the workspace: pages, and the scratch of the one thread */
    uint64_t bytes;
    int64_t key_pages; /* products with a page of keys */
} watch;

static void touch_words(const void *at, int64_t words, bool write) {
    const uintptr_t from = (uintptr_t)at - (uintptr_t)watch.memory;
    if (from >= watch.bytes) return; /* not in the workspace: on the stack */
    for (uintptr_t i = from / 4 / LINE; i <= (from / 4 + (uintptr_t)words - 1) / LINE; i++) touch((int64_t)i, write);
}

/* A few rows of A and C at a time, all of B for each: as the kernels do. */
static void watch_product(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool add) {
    enum { TOGETHER = 12 };
    watch.key_pages += !b->values && !add;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t p = 0; r % TOGETHER == 0 && p < b->count; p++)
            touch_words(b->parts[p].codes, b->depth * b->columns, false);
        touch_words(a + r * LN_ATTEND_STRIDE, b->count * b->depth, false);
        touch_words(c + r * LN_ATTEND_STRIDE, b->columns, true);
    }
}
static void watch_many(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool add) {
    watch_product(b, a, rows, c, add);
    watch.real.many(b, a, rows, c, add);
}
static void watch_few(const ln_attend_operand *b, const float *a, int64_t rows, float *c, bool add) {
    watch_product(b, a, rows, c, add);
    watch.real.few[LINNET_F32](b, a, rows, c, add);
}
static float watch_softmax(float *scores, int64_t n, float *maximum, float *sum) {
    touch_words(scores, n, true);
    return watch.real.softmax(scores, n, maximum, sum);
}

/* Words that a forward pass moves past a cache of the bytes given, and what its plan says of it. Queries are read and
 * outputs written past the watched kernels, once each: they are added. */
static double watched_words(scene *s, int64_t bytes, linnet_attention_cost *cost) {
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(test_context(0, 1), &s->set, &plan), LINNET_OK);
    plan->kernels.cache_bytes = bytes;
    *cost = (linnet_attention_cost){.size = sizeof *cost};
    assert_int_equal(linnet_attention_plan_cost(plan, cost), LINNET_OK);
    watch.real = plan->kernels.attend;
    watch.bytes = linnet_attention_workspace(plan) + (1 << 24); /* whatever cache the plan was laid out for */
    watch.key_pages = 0;
    unsigned char *workspace = open_workspace(watch.bytes);
    watch.memory = workspace;
    plan->kernels.attend.many = watch_many;
    plan->kernels.attend.few[LINNET_F32] = watch_few;
    plan->kernels.attend.softmax = watch_softmax;
    open_cache((int64_t)watch.bytes / 4 / LINE + 1, bytes / 4 / LINE);
    assert_int_equal(linnet_attention_forward(plan, &s->tensors, workspace), LINNET_OK);
    const int64_t lines = close_cache();
    close_workspace(workspace, watch.bytes);
    linnet_attention_plan_close(plan);
    const int64_t rows = s->queries * s->set.heads;
    return (double)(lines * LINE + rows * (s->set.key_size + scene_value_size(s)));
}

/* Streams of keys and values are counted to a few percent; the tile's own rows, which the plan takes to stay in the
 * cache from the start, are the rest. Where tiles next to each other see the same keys (windows), or all keys nearly
 * fit, the cache keeps more than the plan hopes for. */
static void test_plan(void **state) {
    (void)state;
    static const struct {
        int64_t heads, shared, size, tokens, window;
        bool causal;
        double least, most;                          /* measured in units of the plan's */
    } cases[] = {{1, 1, 32, 1600, 0, false, 1, 1.2}, /* streams but for the largest cache */
                 {2, 1, 32, 1000, 0, true, 0.8, 1.25},
                 {2, 2, 16, 1500, 300, true, 0.4, 1.2},
                 {3, 3, 32, 250, 0, true, 0.9, 1.4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int64_t bytes = 1 << 17; bytes <= 1 << 20; bytes *= SLOW ? 8 : 2) {
            scene s = {.set = linnet_attention_settings_default()};
            s.set.heads = cases[i].heads;
            s.set.key_value_heads = cases[i].shared;
            s.set.key_size = cases[i].size;
            s.set.window = cases[i].window;
            s.set.causal = cases[i].causal;
            s.query_offsets[1] = s.key_offsets[1] = cases[i].tokens;
            ln_random random;
            ln_random_seed(&random, 1);
            scene_fill(&s, &random);
            linnet_attention_cost cost;
            const double words = watched_words(&s, bytes, &cost), ratio = words / cost.slow_words;
            if (!(ratio >= cases[i].least && ratio <= cases[i].most))
                fail_msg("case %d, %g words of cache: %g times the plan's", (int)i, cost.cache_words, ratio);
            assert_true(cost.cache_words == (double)(bytes / 4));
            if (i == 0) { /* every tile of queries meets every page of keys once */
                const int64_t pages = ln_ceil_div(1600, LN_PAGE_TOKENS), tiles = ln_ceil_div(1600, cost.query_tile);
                assert_int_equal(watch.key_pages, pages * tiles);
                /* Tiles take half of the cache and hold a row of scores beside 2 d words: 8 (1 + 64 / d) = 24; up to 53
                 * where no taller tile is taken. */
                assert_true(words / cost.bound_words > 20 && words / cost.bound_words < 55);
            }
            scene_close(&s);
        }
}

/* ---- passes over keys ---- */

/* One query; keys and values are read through the cache. Scores are not kept: that would take as much room as there are
 * keys, so a pass that needs them again reads the keys again. */
enum { KEYS = 600 };
static float query[D], key[KEYS][D], value[KEYS][D];

static float score_of(int64_t j) {
    float sum = 0;
    for (int64_t x = 0; x < D; x++) {
        touch(j * D + x, false);
        sum += query[x] * key[j][x];
    }
    return sum;
}
static void add_value(int64_t j, float weight, float *output) {
    for (int64_t x = 0; x < D; x++) {
        touch((KEYS + j) * D + x, false);
        output[x] += weight * value[j][x];
    }
}

/* Maximum; sum of exponentials; weights times values. */
static void three_passes(float *output) {
    float most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < KEYS; j++) most = fmaxf(most, score_of(j));
    for (int64_t j = 0; j < KEYS; j++) sum += expf(score_of(j) - most);
    for (int64_t j = 0; j < KEYS; j++) add_value(j, expf(score_of(j) - most) / sum, output);
}

/* Maximum and sum together, tile by tile, the sum corrected; weights times values. */
static void two_passes(float *output) {
    enum { TILE = 50 };
    float most = -INFINITY, sum = 0;
    for (int64_t t = 0; t < KEYS; t += TILE) {
        float scores[TILE], before = most, part = 0;
        for (int64_t j = 0; j < TILE; j++) {
            scores[j] = score_of(t + j);
            most = fmaxf(most, scores[j]);
        }
        for (int64_t j = 0; j < TILE; j++) part += expf(scores[j] - most);
        sum = sum * expf(before - most) + part;
    }
    for (int64_t j = 0; j < KEYS; j++) add_value(j, expf(score_of(j) - most) / sum, output);
}

/* The output corrected too, and divided once. */
static void one_pass(float *output) {
    float most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < KEYS; j++) {
        const float score = score_of(j), before = most;
        most = fmaxf(most, score);
        const float factor = expf(before - most), weight = expf(score - most);
        sum = sum * factor + weight;
        for (int64_t x = 0; x < D; x++) output[x] *= factor;
        add_value(j, weight, output);
    }
    for (int64_t x = 0; x < D; x++) output[x] /= sum;
}

static void test_passes(void **state) {
    (void)state;
    static void (*const forms[])(float *output) = {one_pass, two_passes, three_passes};
    ln_random random;
    ln_random_seed(&random, 2);
    for (int x = 0; x < D; x++) query[x] = (float)ln_random_normal(&random);
    for (int64_t i = 0; i < KEYS * D; i++) {
        key[i / D][i % D] = (float)ln_random_normal(&random);
        value[i / D][i % D] = (float)ln_random_normal(&random);
    }
    /* The operator: one pass by its own count. */
    scene s = {.set = linnet_attention_settings_default()};
    s.set.heads = 1;
    s.set.key_size = D;
    s.set.scale = 1;
    s.query_offsets[1] = 1;
    s.key_offsets[1] = KEYS;
    scene_fill(&s, &random);
    s.tensors.query.data = query;
    s.tensors.key.data = key;
    s.tensors.value.data = value;
    linnet_attention_cost cost;
    watched_words(&s, 1 << 17, &cost);
    assert_int_equal(cost.passes, 1);
    assert_int_equal(watch.key_pages, ln_ceil_div(KEYS, LN_PAGE_TOKENS));
    const float *ours = s.tensors.output.data;
    for (int passes = 1; passes <= 3; passes++) {
        float output[D] = {0};
        open_cache(2 * KEYS * D, KEYS * D / 2);
        forms[passes - 1](output);
        assert_int_equal(close_cache(), (passes + 1) * KEYS * D); /* keys each time, values once */
        for (int x = 0; x < D; x++) assert_true(fabsf(output[x] - ours[x]) < 1e-5f);
    }
    scene_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_law), cmocka_unit_test(test_plan),
                                       cmocka_unit_test(test_passes)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
