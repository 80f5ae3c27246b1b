/* Approximate attention: where each method is exact, what it visits and how it mixes against float64, causality and
 * threads bit for bit, planted structure, and error that falls with the budget.
 *
 * Values that are rows of the identity make an output row the weights of the keys: so a test sees what was visited. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "linnet/linnet.h"
#include "number/format.h"

typedef struct problem {
    linnet_approximate_settings s;
    float *query, *key, *value, *output;
    double *document_scores;
    const float *projection;
    linnet_approximate_report report;
} problem;

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static float *normals(int64_t n, uint64_t seed) {
    float *x = malloc((size_t)n * sizeof *x + 1);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)ln_random_normal(&random);
    return x;
}

static void fill_inputs(problem *p) {
    const linnet_approximate_settings *s = &p->s;
    p->query = normals(s->tokens * s->heads * s->key_size, 1);
    p->key = normals(s->tokens * s->key_value_heads * s->key_size, 2);
    p->value = normals(s->tokens * s->key_value_heads * s->value_size, 3);
    p->output = calloc((size_t)(s->tokens * s->heads * s->value_size) + 1, sizeof(float));
}

static problem make(linnet_approximation method, int64_t tokens, int64_t heads, int64_t shared, int64_t key_size,
                    int64_t value_size) {
    problem p = {.s = linnet_approximate_settings_default(method)};
    p.s.tokens = tokens;
    p.s.heads = heads;
    p.s.key_value_heads = shared;
    p.s.key_size = key_size;
    p.s.value_size = value_size;
    p.s.query_tile = p.s.key_tile = 32;
    p.s.sinks = 32;
    p.s.recent = 32;
    p.s.budget = 64;
    p.s.query_stride = 4;
    p.s.bucket = 32;
    p.s.samples = 32;
    p.s.leaf = 64;
    p.s.group = 4;
    p.s.window = 24;
    fill_inputs(&p);
    return p;
}

/* One key-value head whose values are the identity. */
static problem make_transparent(linnet_approximation method, int64_t tokens, int64_t heads, int64_t key_size) {
    problem p = make(method, tokens, heads, 1, key_size, (tokens + 7) / 8 * 8);
    p.s.recent = 1; /* the diagonal's tile */
    memset(p.value, 0, (size_t)(tokens * p.s.value_size) * sizeof(float));
    for (int64_t t = 0; t < tokens; t++) p.value[t * p.s.value_size + t] = 1;
    return p;
}

static void drop(problem *p) {
    free(p->query);
    free(p->key);
    free(p->value);
    free(p->output);
}

static linnet_context *open_context(int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

static linnet_approximate_tensors tensors_of(const problem *p) {
    return (linnet_approximate_tensors){.size = sizeof(linnet_approximate_tensors),
                                        .query = {p->query, 0, 0},
                                        .key = {p->key, 0, 0},
                                        .value = {p->value, 0, 0},
                                        .output = {p->output, 0, 0},
                                        .document_scores = p->document_scores,
                                        .projection = p->projection};
}

static void run_on(problem *p, int threads, bool compare) {
    linnet_context *context = open_context(threads);
    linnet_approximate_plan *plan;
    if (linnet_approximate_plan_open(context, &p->s, &plan) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    const uint64_t bytes = linnet_approximate_workspace(plan), used = linnet_memory_used(context);
    void *workspace = aligned_alloc(64, bytes);
    memset(workspace, 0xff, bytes); /* NaN: nothing may be read before it is written */
    const linnet_approximate_tensors tensors = tensors_of(p);
    assert_int_equal(compare ? linnet_approximate_error(plan, &tensors, workspace, &p->report)
                             : linnet_approximate_forward(plan, &tensors, workspace),
                     LINNET_OK);
    assert_int_equal(linnet_memory_used(context), used);
    free(workspace);
    linnet_approximate_plan_close(plan);
    linnet_context_close(context);
}

static linnet_status open_status(const linnet_approximate_settings *s) {
    linnet_context *context = open_context(1);
    linnet_approximate_plan *plan;
    const linnet_status status = linnet_approximate_plan_open(context, s, &plan);
    if (status != LINNET_OK) assert_true(plan == NULL && linnet_last_error(context)[0]);
    linnet_approximate_plan_close(plan);
    linnet_context_close(context);
    return status;
}

/* ---- float64 ---- */

static double score_of(const problem *p, int64_t head, int64_t t, int64_t j) {
    const linnet_approximate_settings *s = &p->s;
    const float *q = p->query + (t * s->heads + head) * s->key_size,
                *k = p->key + (j * s->key_value_heads + head / (s->heads / s->key_value_heads)) * s->key_size;
    double sum = 0;
    for (int64_t i = 0; i < s->key_size; i++) sum += (double)q[i] * (double)k[i];
    return sum / sqrt((double)s->key_size);
}

static const float *value_of(const problem *p, int64_t head, int64_t j) {
    const linnet_approximate_settings *s = &p->s;
    return p->value + (j * s->key_value_heads + head / (s->heads / s->key_value_heads)) * s->value_size;
}

/* Softmax of a query over the keys that sees[] names; output [value_size]. Returns the log-sum-exp. */
static double attend(const problem *p, int64_t head, int64_t t, const bool *sees, double *output) {
    const int64_t n = p->s.tokens;
    double *score = malloc((size_t)n * sizeof *score + 1), most = -INFINITY, sum = 0;
    memset(output, 0, (size_t)p->s.value_size * sizeof *output);
    for (int64_t j = 0; j < n; j++) {
        if (!sees[j]) continue;
        score[j] = score_of(p, head, t, j);
        most = fmax(most, score[j]);
    }
    for (int64_t j = 0; j < n; j++)
        if (sees[j]) sum += exp(score[j] - most);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < p->s.value_size && sees[j]; i++)
            output[i] += exp(score[j] - most) / sum * (double)value_of(p, head, j)[i];
    free(score);
    return most + log(sum);
}

typedef bool (*mask_of)(const problem *p, int64_t head, int64_t t, int64_t j);

/* Largest difference from attention under a mask. */
static double error_under(const problem *p, mask_of mask) {
    bool *sees = malloc((size_t)p->s.tokens + 1);
    double most = 0, expected[256];
    for (int64_t t = 0; t < p->s.tokens; t++) {
        for (int64_t head = 0; head < p->s.heads; head++) {
            for (int64_t j = 0; j < p->s.tokens; j++) sees[j] = mask(p, head, t, j);
            attend(p, head, t, sees, expected);
            for (int64_t i = 0; i < p->s.value_size; i++) {
                const double is = (double)p->output[(t * p->s.heads + head) * p->s.value_size + i];
                most = isfinite(is) ? fmax(most, fabs(is - expected[i])) : INFINITY;
            }
        }
    }
    free(sees);
    return most;
}

static bool sees_all(const problem *p, int64_t head, int64_t t, int64_t j) {
    (void)head;
    return !p->s.causal || j <= t;
}

/* ---- limits ---- */

/* The setting at which a method is exact attention. */
static void loosen(problem *p, int limit) {
    static int64_t offsets[65];
    static int32_t tiles[65 * 64];
    p->s.budget = p->s.bucket = 4096;
    p->s.group = 1;
    p->s.critical = 1;
    if (p->s.method == LINNET_APPROXIMATE_HYPER && limit == 1) {
        p->s.bucket = 32;
        p->s.samples = 4096;
    }
    if (p->s.method == LINNET_APPROXIMATE_BLOCKS) {
        const int64_t count = (p->s.tokens + 31) / 32;
        for (int64_t l = 0; l < count; l++)
            for (int64_t j = 0; j < count; j++) tiles[l * count + j] = (int32_t)j;
        for (int64_t l = 0; l <= count; l++) offsets[l] = l * count;
        p->s.blocks = (linnet_block_mask){32, 32, false, offsets, tiles};
    }
}

static void methods_are_exact_at_their_limits(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 31, 64, 65, 200, 333};
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        for (int i = 0; i < 24; i++) {
            const bool causal = i % 2 == 0;
            if (method == LINNET_APPROXIMATE_RANKING || (method == LINNET_APPROXIMATE_CORE && !causal)) continue;
            problem p = make((linnet_approximation)method, lengths[i / 4], 4, i / 2 % 2 ? 2 : 4, 16, 24);
            p.s.causal = causal;
            for (int limit = 0; limit < (method == LINNET_APPROXIMATE_HYPER ? 2 : 1); limit++) {
                loosen(&p, limit);
                run_on(&p, 2, true);
                const double error = error_under(&p, sees_all);
                if (!(error < 3e-6) || !(p.report.error < 1e-6) || !(p.report.row_error < 1e-5))
                    fail_msg("%s, %d tokens, causal %d: %g, %g, %g", linnet_approximate_name(p.s.method),
                             (int)p.s.tokens, causal, error, p.report.error, p.report.row_error);
                if (method != LINNET_APPROXIMATE_HYPER && method != LINNET_APPROXIMATE_CORE) {
                    assert_true(fabs(p.report.mass - 1) < 1e-5 && p.report.least_mass > 0.9999);
                    assert_true(p.report.visited == p.report.pairs);
                }
            }
            drop(&p);
        }
    }
}

/* ---- what is visited ---- */

/* weights of (t, head) from a transparent problem */
static const float *weights_of(const problem *p, int64_t head, int64_t t) {
    return p->output + (t * p->s.heads + head) * p->s.value_size;
}

static bool visited(const problem *p, int64_t head, int64_t t, int64_t j) {
    return weights_of(p, head, t)[j] > 0;
}

static bool tile_visited(const problem *p, int64_t head, int64_t query_tile, int64_t key_tile) {
    return visited(p, head, min64(query_tile * 32 + 31, p->s.tokens - 1), key_tile * 32);
}

/* The weights are those of softmax over what was visited, whole tiles under causality; each tile of queries visits
 * `budget` tiles besides the sinks and its own. */
static void check_tiles(const problem *p, double budget_tiles) {
    assert_true(error_under(p, visited) < 2e-6);
    const int64_t tiles = (p->s.tokens + 31) / 32;
    double pairs = 0, mass = 0;
    for (int64_t h = 0; h < p->s.heads; h++) {
        for (int64_t t = 0; t < p->s.tokens; t++) {
            bool sees[256];
            double unused[256];
            for (int64_t j = 0; j < p->s.tokens; j++) {
                const bool own = tile_visited(p, h, t / 32, j / 32) && (!p->s.causal || j <= t);
                if (visited(p, h, t, j) != own) fail_msg("head %d query %d key %d", (int)h, (int)t, (int)j);
                pairs += own;
                sees[j] = own;
            }
            const double part = attend(p, h, t, sees, unused);
            for (int64_t j = 0; j < p->s.tokens; j++) sees[j] = !p->s.causal || j <= t;
            mass += exp(part - attend(p, h, t, sees, unused));
        }
        for (int64_t tile = 0; tile < tiles && budget_tiles >= 0; tile++) {
            double count = 0;
            for (int64_t j = 0; j < tiles; j++) count += tile_visited(p, h, tile, j);
            const double others = p->s.causal ? (tile > 1 ? (double)(tile - 1) : 0) : (double)tiles - (tile ? 2 : 1);
            const double forced = tile ? 2 : 1;
            assert_true(tile_visited(p, h, tile, tile) && tile_visited(p, h, tile, 0));
            assert_true(count == forced + fmin(budget_tiles, others));
        }
    }
    assert_true(p->report.visited == pairs);
    assert_true(fabs(p->report.mass - mass / (double)(p->s.tokens * p->s.heads)) < 1e-5);
}

/* Best k tiles between the sinks and the diagonal by a score. */
static void check_best(const problem *p, int64_t head, int64_t tile, int64_t k, const double *score) {
    for (int64_t j = 1; j < tile; j++) {
        int64_t better = 0;
        for (int64_t i = 1; i < tile; i++) better += i != j && score[i] > score[j];
        if (tile_visited(p, head, tile, j) != (better < k))
            fail_msg("head %d tile %d: key tile %d is number %d", (int)head, (int)tile, (int)j, (int)better);
    }
}

/* The bound of a page is at least the score of each of its keys, and the best bounds are visited. */
static void pages_go_by_bounds(void **state) {
    (void)state;
    problem p = make_transparent(LINNET_APPROXIMATE_PAGES, 250, 2, 16);
    p.s.page = 8;
    p.s.query_stride = 5;
    p.s.group_choice = false;
    run_on(&p, 2, true);
    check_tiles(&p, 2);
    for (int64_t h = 0; h < 2; h++) {
        for (int64_t tile = 0; tile < 8; tile++) {
            double score[8];
            for (int64_t j = 0; j < 8; j++) score[j] = -INFINITY;
            for (int64_t t = tile * 32; t < min64(tile * 32 + 32, 250); t += 5) {
                for (int64_t page = 0; page < 250 / 8; page++) {
                    double bound = 0, best = -INFINITY;
                    for (int64_t i = 0; i < 16; i++) {
                        double low = INFINITY, high = -INFINITY;
                        for (int64_t j = page * 8; j < page * 8 + 8; j++) {
                            low = fmin(low, (double)p.key[j * 16 + i]);
                            high = fmax(high, (double)p.key[j * 16 + i]);
                        }
                        const double q = (double)p.query[(t * 2 + h) * 16 + i];
                        bound += fmax(q * low, q * high);
                    }
                    for (int64_t j = page * 8; j < page * 8 + 8; j++) best = fmax(best, 4 * score_of(&p, h, t, j));
                    assert_true(bound >= best - 1e-12);
                    score[page / 4] = fmax(score[page / 4], bound);
                }
            }
            check_best(&p, h, tile, 2, score);
        }
    }
    drop(&p);
}

static bool streams(const problem *p, int64_t head, int64_t t, int64_t j) {
    /* Whole tiles around sinks of 40 and the last 50 keys of each query of the tile. */
    (void)head;
    const int64_t first = t / 32 * 32 - 50 + 1, from = (first > 0 ? first : 0) / 32 * 32;
    return j <= t && (j < 64 || j >= from) && p->s.causal;
}

static void streaming_heads_see_sinks_and_window(void **state) {
    (void)state;
    problem p = make(LINNET_APPROXIMATE_PAGES, 333, 2, 2, 16, 16);
    unsigned char streaming[2] = {1, 1};
    p.s.streaming_heads = streaming;
    p.s.sinks = 40;
    p.s.recent = 50;
    run_on(&p, 2, true);
    assert_true(error_under(&p, streams) < 2e-6);
    streaming[1] = 0; /* the plan of the next run copies them; a head with its budget is exact */
    p.s.budget = 4096;
    run_on(&p, 1, true);
    for (int64_t t = 0; t < 333; t++) {
        bool sees[333];
        double expected[16];
        for (int64_t j = 0; j < 333; j++) sees[j] = j <= t;
        attend(&p, 1, t, sees, expected);
        for (int i = 0; i < 16; i++) assert_true(fabs((double)p.output[(t * 2 + 1) * 16 + i] - expected[i]) < 2e-6);
    }
    drop(&p);
}

/* Keys whose projection on one direction rises and falls smoothly: the tree must find the top. */
static void hip_finds_smooth_peaks(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        problem p = make_transparent(LINNET_APPROXIMATE_HIP, 256, 1, 8);
        p.s.causal = causal;
        run_on(&p, 2, true);
        check_tiles(&p, 2);
        drop(&p);
    }
    /* Score of key j: a hill about key 800 of 2048; the last tiles of queries must see its top. */
    problem p = make(LINNET_APPROXIMATE_HIP, 2048, 1, 1, 8, 8);
    p.s.budget = 64;
    for (int64_t j = 0; j < 2048; j++) {
        for (int64_t i = 0; i < 8; i++) p.query[j * 8 + i] = p.key[j * 8 + i] = 0;
        p.query[j * 8] = 30;
        const double distance = (double)(j - 800) / 300;
        p.key[j * 8] = (float)exp(-distance * distance);
        memset(p.value + j * 8, 0, 8 * sizeof(float));
        p.value[j * 8] = j / 32 == 25 || j / 32 == 24;
    }
    run_on(&p, 1, true);
    for (int64_t t = 1500; t < 2048; t++) assert_true(p.output[t * 8] > 0.9f);
    drop(&p);
}

static void hip_counts_its_scores(void **state) {
    (void)state;
    double before = 0;
    for (int64_t n = 4096; n <= 16384; n *= 2) {
        problem p = make(LINNET_APPROXIMATE_HIP, n, 1, 1, 8, 8);
        run_on(&p, 2, true);
        const double k = 2, rows = 8, tiles = (double)(n / 32);
        assert_true(p.report.scored <= tiles * rows * 2 * k * (1 + ceil(log2(tiles / k))));
        if (before > 0) assert_true(p.report.scored < 2.5 * before); /* n log n; n^2 would be 4 */
        before = p.report.scored;
        drop(&p);
    }
}

/* Heads that choose together see the same tiles: the best for any of them. */
static void groups_choose_together(void **state) {
    (void)state;
    problem p = make_transparent(LINNET_APPROXIMATE_PAGES, 250, 4, 16);
    p.s.group_choice = true;
    run_on(&p, 2, true);
    check_tiles(&p, 2);
    for (int64_t h = 1; h < 4; h++)
        for (int64_t tile = 0; tile < 8; tile++)
            for (int64_t j = 0; j < 8; j++) assert_true(tile_visited(&p, h, tile, j) == tile_visited(&p, 0, tile, j));
    unsigned char streaming[4] = {1, 1, 1, 1};
    p.s.streaming_heads = streaming;
    assert_int_equal(open_status(&p.s), LINNET_OK);
    streaming[2] = 0;
    assert_int_equal(open_status(&p.s), LINNET_ERROR_ARGUMENT);
    p.s.streaming_heads = NULL;
    p.s.method = LINNET_APPROXIMATE_HIP;
    run_on(&p, 3, true);
    check_tiles(&p, 2);
    drop(&p);
}

/* ---- block lists ---- */

static bool in_lists(const problem *p, int64_t head, int64_t t, int64_t j) {
    const linnet_block_mask *b = &p->s.blocks;
    const int64_t tiles = (p->s.tokens + b->query_tile - 1) / b->query_tile,
                  l = (b->per_head ? head * tiles : 0) + t / b->query_tile;
    for (int64_t i = b->offsets[l]; i < b->offsets[l + 1]; i++)
        if (b->tiles[i] == j / b->key_tile) return !p->s.causal || j <= t;
    return false;
}

static void given_lists_are_followed(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 5);
    for (int pass = 0; pass < 4; pass++) {
        problem p = make(LINNET_APPROXIMATE_BLOCKS, 300, 4, 2, 16, 16);
        p.s.causal = pass % 2;
        int64_t offsets[4 * 5 + 1] = {0};
        int32_t tiles[4 * 5 * 10];
        const int64_t lists = pass / 2 ? 20 : 5;
        for (int64_t l = 0; l < lists; l++) {
            offsets[l + 1] = offsets[l];
            for (int32_t j = 0; j < 10; j++)
                if (j == 0 || ln_random_below(&random, 3) == 0) tiles[offsets[l + 1]++] = j;
        }
        p.s.blocks = (linnet_block_mask){64, 32, pass / 2, offsets, tiles};
        run_on(&p, 2, true);
        assert_true(error_under(&p, in_lists) < 2e-6);
        drop(&p);
    }
}

/* ---- Core Context Aware ---- */

static void core_equals_its_formula(void **state) {
    (void)state;
    static const int64_t cases[][3] = {{4, 24, 200}, {16, 1, 150}, {7, 10, 100}, {64, 32, 130}, {32, 64, 300}};
    for (size_t c = 0; c < 5; c++) {
        const int64_t g = cases[c][0], w = cases[c][1], n = cases[c][2];
        problem p = make(LINNET_APPROXIMATE_CORE, n, 4, 2, 16, 8);
        p.s.group = g;
        p.s.window = w;
        run_on(&p, 2, true);
        double most = 0, visited_pairs = 0;
        for (int64_t h = 0; h < 4; h++) {
            for (int64_t t = 0; t < n; t++) {
                const int64_t u = (t + 1 > w ? t + 1 - w : 0) / g * g;
                double sum = 0, expected[8] = {0};
                for (int64_t c2 = 0; c2 < u / g; c2++) {
                    double weight[64], all = 0, score = 0, value[8] = {0};
                    for (int64_t j = 0; j < g; j++) {
                        const int64_t first = h / 2 * 2;
                        weight[j] = exp((score_of(&p, first, c2 * g + g - 1, c2 * g + j) +
                                         score_of(&p, first + 1, c2 * g + g - 1, c2 * g + j)) /
                                        2);
                        all += weight[j];
                    }
                    for (int64_t j = 0; j < g; j++) {
                        score += weight[j] / all * score_of(&p, h, t, c2 * g + j);
                        for (int i = 0; i < 8; i++)
                            value[i] += weight[j] / all * (double)value_of(&p, h, c2 * g + j)[i];
                    }
                    sum += exp(score);
                    for (int i = 0; i < 8; i++) expected[i] += exp(score) * value[i];
                }
                for (int64_t j = u; j <= t; j++) {
                    const double e = exp(score_of(&p, h, t, j));
                    sum += e;
                    for (int i = 0; i < 8; i++) expected[i] += e * (double)value_of(&p, h, j)[i];
                }
                visited_pairs += (double)(t + 1 - u);
                for (int i = 0; i < 8; i++)
                    most = fmax(most, fabs(expected[i] / sum - (double)p.output[(t * 4 + h) * 8 + i]));
            }
        }
        assert_true(most < 2e-6);
        assert_true(p.report.visited == visited_pairs);
        drop(&p);
    }
}

/* ---- ranking ---- */

static const int64_t DOCUMENTS[] = {20, 60, 61, 61, 140, 201, 260};

static bool in_layout(const problem *p, int64_t head, int64_t t, int64_t j) {
    (void)head;
    if (p->s.causal && j > t) return false;
    if (t < 20) return j < 20;
    if (t >= 260 || j < 20) return true;
    for (int i = 0; i < 6; i++)
        if (t >= DOCUMENTS[i] && t < DOCUMENTS[i + 1]) return j >= DOCUMENTS[i] && j < DOCUMENTS[i + 1];
    return false;
}

static problem make_ranking(void) {
    problem p = make(LINNET_APPROXIMATE_RANKING, 300, 4, 2, 16, 16);
    p.s.instruction = 20;
    p.s.documents = 6;
    p.s.document_offsets = DOCUMENTS;
    return p;
}

static void ranking_equals_its_mask_and_scores(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        problem p = make_ranking();
        double scores[6];
        p.document_scores = scores;
        p.s.causal = causal;
        run_on(&p, 2, true);
        assert_true(error_under(&p, in_layout) < 2e-6);
        double pairs = 0;
        for (int64_t t = 0; t < 300; t++)
            for (int64_t j = 0; j < 300; j++) pairs += in_layout(&p, 0, t, j);
        assert_true(p.report.visited == 4 * pairs);
        for (int d = 0; d < 6; d++) {
            double expected = 0;
            for (int64_t h = 0; h < 4; h++) {
                for (int64_t t = 260; t < 300; t++) {
                    bool sees[300];
                    double unused[256];
                    for (int64_t j = 0; j < 300; j++) sees[j] = in_layout(&p, h, t, j);
                    const double lse = attend(&p, h, t, sees, unused);
                    for (int64_t j = DOCUMENTS[d]; j < DOCUMENTS[d + 1]; j++)
                        expected += exp(score_of(&p, h, t, j) - lse);
                }
            }
            assert_true(fabs(scores[d] - expected) < 1e-5 * (1 + expected));
        }
        drop(&p);
    }
}

static void documents_do_not_touch_each_other(void **state) {
    (void)state;
    problem p = make_ranking();
    float *before = malloc(300 * 64 * sizeof(float));
    run_on(&p, 2, false);
    memcpy(before, p.output, 300 * 64 * sizeof(float));
    /* Others change, and their number and lengths with them. */
    static const int64_t others[] = {20, 60, 100, 140, 201, 222};
    for (int64_t t = 20; t < 300; t++) {
        if (t >= 140 && t < 201) continue;
        for (int64_t i = 0; i < 32; i++) p.key[t * 32 + i] += 3;
        for (int64_t i = 0; i < 64; i++) p.query[t * 64 + i] *= 2;
    }
    p.s.documents = 5;
    p.s.document_offsets = others;
    run_on(&p, 3, false);
    assert_memory_equal(before + 140 * 64, p.output + 140 * 64, 61 * 64 * sizeof(float));
    assert_memory_equal(before, p.output, 20 * 64 * sizeof(float));
    assert_memory_not_equal(before + 60 * 64, p.output + 60 * 64, 64 * sizeof(float));
    free(before);
    drop(&p);
}

/* The document whose keys match the query's wins. */
static void ranking_finds_the_matching_document(void **state) {
    (void)state;
    problem p = make_ranking();
    double scores[6];
    p.document_scores = scores;
    for (int64_t t = 260; t < 300; t++)
        for (int64_t i = 0; i < 64; i++) p.query[t * 64 + i] = 3 * p.key[(140 + t % 61) * 32 + i / 32 * 16 + i % 16];
    run_on(&p, 1, false);
    for (int d = 0; d < 6; d++)
        if (d != 4) assert_true(scores[4] > 2 * scores[d]);
    drop(&p);
}

/* ---- SEA ---- */

static void sea_mixes_with_the_mean(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        problem p = make_transparent(LINNET_APPROXIMATE_SEA, 250, 2, 8);
        p.s.causal = causal;
        p.s.mix = 0;
        run_on(&p, 2, true);
        check_tiles(&p, 2);
        float *sparse = malloc((size_t)(250 * 2 * p.s.value_size) * sizeof(float));
        memcpy(sparse, p.output, (size_t)(250 * 2 * p.s.value_size) * sizeof(float));
        p.s.mix = 0.25f;
        run_on(&p, 2, false);
        for (int64_t row = 0; row < 500; row++) {
            for (int64_t j = 0; j < 250; j++) {
                const int64_t t = row / 2;
                const double mean = causal ? (j <= t ? 1 / (double)(t + 1) : 0) : 1.0 / 250,
                             at = (double)sparse[row * p.s.value_size + j] * 0.75 + 0.25 * mean;
                assert_true(fabs(at - (double)p.output[row * p.s.value_size + j]) < 1e-6);
            }
        }
        free(sparse);
        drop(&p);
    }
}

/* Small scores: the estimate is accurate, so the tiles of most mass are chosen and the mass left is right. */
static void sea_estimates_mass(void **state) {
    (void)state;
    problem p = make(LINNET_APPROXIMATE_SEA, 512, 1, 1, 16, 8);
    p.s.features = 256;
    for (int64_t i = 0; i < 512 * 16; i++) p.query[i] *= 0.5f;
    for (int64_t i = 0; i < 512 * 8; i++) p.value[i] = i % 8 == 0; /* a constant: mixing must not change it */
    run_on(&p, 2, true);
    assert_true(p.report.error < 1e-5);
    /* Visited values 0, others 1: what is mixed in is u times the share of the mean. */
    p.s.sinks = 0;
    p.s.recent = 1;
    p.s.budget = 0;
    for (int64_t t = 0; t < 512; t++) p.value[t * 8] = t < 480;
    run_on(&p, 2, false);
    double sum = 0;
    for (int64_t t = 480; t < 512; t++) {
        bool sees[512] = {false};
        double unused[8];
        for (int64_t j = 480; j <= t; j++) sees[j] = true;
        const double part = attend(&p, 0, t, sees, unused);
        for (int64_t j = 0; j <= t; j++) sees[j] = true;
        const double left = 1 - exp(part - attend(&p, 0, t, sees, unused));
        const double u = (double)p.output[t * 8] * (double)(t + 1) / 480;
        sum += fabs(u - left);
    }
    assert_true(sum / 32 < 0.02);
    drop(&p);
}

/* ---- SLA ---- */

static void features_of(const problem *p, const float *x, double *phi) {
    double sum = 0;
    for (int64_t i = 0; i < p->s.key_size; i++) {
        if (p->s.feature_map == LINNET_FEATURES_ELU)
            phi[i] = x[i] > 0 ? (double)x[i] + 1 : exp((double)x[i]);
        else
            sum += phi[i] = exp((double)x[i]);
    }
    for (int64_t i = 0; i < p->s.key_size && p->s.feature_map == LINNET_FEATURES_SOFTMAX; i++) phi[i] /= sum;
}

/* Number of key tiles of one query tile that score better than tile j by pooled queries and keys. */
static int64_t rank_of(const problem *p, int64_t head, int64_t tile, int64_t limit, int64_t j) {
    const int64_t n = p->s.tokens, d = p->s.key_size, shared = head / (p->s.heads / p->s.key_value_heads);
    double q[64] = {0}, score[64];
    for (int64_t t = tile * 32; t < min64(n, tile * 32 + 32); t++)
        for (int64_t i = 0; i < d; i++) q[i] += (double)p->query[(t * p->s.heads + head) * d + i];
    for (int64_t k = 0; k < limit; k++) {
        score[k] = 0;
        const int64_t end = min64(n, k * 32 + 32);
        for (int64_t t = k * 32; t < end; t++)
            for (int64_t i = 0; i < d; i++)
                score[k] += q[i] * (double)p->key[(t * p->s.key_value_heads + shared) * d + i] / (double)(end - k * 32);
    }
    int64_t better = 0;
    for (int64_t k = 0; k < limit; k++) better += score[k] > score[j];
    return better;
}

/* The row of the definition: classes from ranks, softmax over the critical, linear attention over the marginal. */
static void sla_row(const problem *p, int64_t head, int64_t t, const int *class_of, double *expected) {
    bool sees[512];
    double linear[64] = {0}, norm = 0, phi_q[64], phi_k[64];
    const int64_t d = p->s.key_size, v = p->s.value_size, shared = head / (p->s.heads / p->s.key_value_heads);
    features_of(p, p->query + (t * p->s.heads + head) * d, phi_q);
    bool any = false;
    for (int64_t j = 0; j < p->s.tokens; j++) {
        sees[j] = class_of[j / 32] == 0 && (!p->s.causal || j <= t);
        any = any || sees[j];
        if (class_of[j / 32] != 1) continue;
        features_of(p, p->key + (j * p->s.key_value_heads + shared) * d, phi_k);
        double weight = 0;
        for (int64_t i = 0; i < d; i++) weight += phi_q[i] * phi_k[i];
        norm += weight;
        for (int64_t i = 0; i < v; i++) linear[i] += weight * (double)value_of(p, head, j)[i];
    }
    memset(expected, 0, (size_t)v * sizeof *expected);
    if (any) attend(p, head, t, sees, expected);
    for (int64_t i = 0; i < v && norm > 0; i++)
        for (int64_t o = 0; o < v; o++) {
            const double to = p->projection ? (double)p->projection[(head * v + i) * v + o] : i == o;
            expected[o] += linear[i] / norm * to;
        }
}

/* Classes of the key tiles of a tile of queries. */
static void classes_of(const problem *p, int64_t head, int64_t tile, int class_of[16]) {
    const int64_t tiles = (p->s.tokens + 31) / 32, limit = p->s.causal ? tile + 1 : tiles,
                  free_tiles = p->s.causal ? limit - 1 : limit;
    const int64_t critical = (int64_t)ceil(p->s.critical * (float)limit) - (p->s.causal ? 1 : 0),
                  top = critical > 0 ? critical : 0,
                  skipped = min64((int64_t)floor(p->s.skipped * (float)limit), free_tiles - top);
    for (int64_t j = 0; j < tiles; j++) {
        class_of[j] = j >= limit ? 2 : 0;
        if (j >= free_tiles) continue;
        const int64_t rank = rank_of(p, head, tile, free_tiles, j);
        class_of[j] = rank < top ? 0 : rank < free_tiles - skipped ? 1 : 2;
    }
}

static void sla_equals_its_formula(void **state) {
    (void)state;
    for (int pass = 0; pass < 8; pass++) {
        problem p = make(LINNET_APPROXIMATE_SLA, 500, 2, 1, 16, 24);
        float *projection = normals(2 * 24 * 24, 7);
        p.s.causal = pass % 2;
        p.s.feature_map = pass / 2 % 2 ? LINNET_FEATURES_ELU : LINNET_FEATURES_SOFTMAX;
        p.s.critical = pass / 4 ? 0.25f : 0; /* 0 and not causal: linear attention alone */
        p.s.skipped = pass / 4 ? 0.25f : 0;
        if (pass / 4) p.projection = projection;
        run_on(&p, 2, true);
        double most = 0;
        for (int64_t h = 0; h < 2; h++) {
            for (int64_t tile = 0; tile < 16; tile++) {
                int class_of[16];
                classes_of(&p, h, tile, class_of);
                for (int64_t t = tile * 32; t < min64(500, tile * 32 + 32); t++) {
                    double expected[24];
                    sla_row(&p, h, t, class_of, expected);
                    for (int i = 0; i < 24; i++)
                        most = fmax(most, fabs(expected[i] - (double)p.output[(t * 2 + h) * 24 + i]));
                }
            }
        }
        assert_true(most < 5e-6);
        if (!p.s.causal) { /* counts are the percentages */
            double share = pass / 4 ? 4.0 : 0;
            double pairs = 0;
            for (int64_t tile = 0; tile < 16; tile++) pairs += share * 32;
            assert_true(fabs(p.report.visited / p.report.pairs - pairs / 16 / 500) < 0.01);
        }
        free(projection);
        drop(&p);
    }
}

/* ---- gradients ---- */

typedef struct gradients {
    float *output, *query, *key, *value, *projection;
} gradients;

static gradients run_backward(problem *p, int threads) {
    const linnet_approximate_settings *s = &p->s;
    const int64_t q = s->tokens * s->heads, k = s->tokens * s->key_value_heads;
    gradients g = {.output = normals(q * s->value_size, 21),
                   .query = normals(q * s->key_size, 22),
                   .key = normals(k * s->key_size, 23),
                   .value = normals(k * s->value_size, 24),
                   .projection = normals(s->heads * s->value_size * s->value_size, 25)};
    p->s.backward = true;
    linnet_context *context = open_context(threads);
    linnet_approximate_plan *plan;
    assert_int_equal(linnet_approximate_plan_open(context, s, &plan), LINNET_OK);
    const uint64_t bytes = linnet_approximate_workspace(plan);
    void *workspace = aligned_alloc(64, bytes);
    memset(workspace, 0xff, bytes);
    linnet_approximate_tensors tensors = tensors_of(p);
    tensors.output = (linnet_tensor){0};
    tensors.output_gradient.data = g.output;
    tensors.query_gradient.data = g.query;
    tensors.key_gradient.data = g.key;
    tensors.value_gradient.data = g.value;
    if (p->projection) tensors.projection_gradient = g.projection;
    assert_int_equal(linnet_approximate_backward(plan, &tensors, workspace), LINNET_OK);
    free(workspace);
    linnet_approximate_plan_close(plan);
    linnet_context_close(context);
    return g;
}

static void drop_gradients(const gradients *g) {
    free(g->output);
    free(g->query);
    free(g->key);
    free(g->value);
    free(g->projection);
}

/* sum(output * gradient) in float64 with the classes (SLA) or lists of the unchanged inputs. */
static double loss_of(const problem *p, const int *classes, const float *gradient) {
    const int64_t n = p->s.tokens, v = p->s.value_size;
    double sum = 0, row[64];
    for (int64_t h = 0; h < p->s.heads; h++) {
        for (int64_t t = 0; t < n; t++) {
            if (p->s.method == LINNET_APPROXIMATE_SLA) {
                sla_row(p, h, t, classes + (h * 16 + t / 32) * 16, row);
            } else {
                bool sees[512];
                for (int64_t j = 0; j < n; j++) sees[j] = in_lists(p, h, t, j);
                attend(p, h, t, sees, row);
            }
            for (int64_t i = 0; i < v; i++) sum += row[i] * (double)gradient[(t * p->s.heads + h) * v + i];
        }
    }
    return sum;
}

static void check_gradient(const problem *p, const int *classes, const float *output_gradient, float *x, int64_t n,
                           const float *gradient, const char *what) {
    ln_random random;
    ln_random_seed(&random, 77);
    for (int trial = 0; trial < 12; trial++) {
        const int64_t i = (int64_t)ln_random_below(&random, (uint64_t)n);
        const float keep = x[i], step = 0x1p-9f;
        x[i] = keep + step;
        const double high = (double)x[i], above = loss_of(p, classes, output_gradient);
        x[i] = keep - step;
        const double expected = (above - loss_of(p, classes, output_gradient)) / (high - (double)x[i]);
        x[i] = keep;
        if (fabs(expected - (double)gradient[i]) > 1e-4 * (1 + fabs(expected)))
            fail_msg("%s %d: %g instead of %g", what, (int)i, (double)gradient[i], expected);
    }
}

static void gradients_are_those_of_differences(void **state) {
    (void)state;
    for (int pass = 0; pass < 6; pass++) {
        problem p = make(pass < 4 ? LINNET_APPROXIMATE_SLA : LINNET_APPROXIMATE_BLOCKS, 170, 4, 2, 16, 24);
        float *projection = normals(4 * 24 * 24, 7);
        int classes[4 * 16 * 16];
        static const int64_t offsets[] = {0, 1, 3, 5, 7, 9, 11};
        static const int32_t tiles[] = {0, 0, 1, 0, 2, 1, 3, 2, 4, 0, 5};
        p.s.causal = pass % 2;
        p.s.feature_map = pass / 2 ? LINNET_FEATURES_ELU : LINNET_FEATURES_SOFTMAX;
        p.s.critical = 0.3f;
        p.s.skipped = 0.2f;
        p.s.blocks = (linnet_block_mask){32, 32, false, offsets, tiles};
        if (pass < 4 && pass % 2) p.projection = projection;
        for (int64_t h = 0; h < 4 && pass < 4; h++)
            for (int64_t tile = 0; tile < 6; tile++) classes_of(&p, h, tile, classes + (h * 16 + tile) * 16);
        const gradients g = run_backward(&p, 2);
        check_gradient(&p, classes, g.output, p.query, 170 * 64, g.query, "query");
        check_gradient(&p, classes, g.output, p.key, 170 * 32, g.key, "key");
        check_gradient(&p, classes, g.output, p.value, 170 * 48, g.value, "value");
        if (p.projection) check_gradient(&p, classes, g.output, projection, 4 * 24 * 24, g.projection, "projection");
        const gradients again = run_backward(&p, 3);
        assert_memory_equal(g.query, again.query, 170 * 64 * sizeof(float));
        assert_memory_equal(g.key, again.key, 170 * 32 * sizeof(float));
        assert_memory_equal(g.value, again.value, 170 * 48 * sizeof(float));
        drop_gradients(&g);
        drop_gradients(&again);
        free(projection);
        drop(&p);
    }
    /* A choice that takes everything has the gradients of a list of everything. */
    problem p = make(LINNET_APPROXIMATE_BLOCKS, 170, 4, 2, 16, 24);
    loosen(&p, 0);
    const gradients all = run_backward(&p, 2);
    static const linnet_approximation others[] = {LINNET_APPROXIMATE_HIP, LINNET_APPROXIMATE_PAGES,
                                                  LINNET_APPROXIMATE_SLA};
    for (int i = 0; i < 3; i++) {
        p.s.method = others[i];
        const gradients g = run_backward(&p, 2);
        assert_memory_equal(g.key, all.key, 170 * 32 * sizeof(float));
        assert_memory_equal(g.query, all.query, 170 * 64 * sizeof(float));
        drop_gradients(&g);
    }
    drop_gradients(&all);
    p.s.method = LINNET_APPROXIMATE_SEA;
    assert_int_equal(open_status(&p.s), LINNET_ERROR_ARGUMENT);
    drop(&p);
}

/* ---- HyperAttention ---- */

/* Queries that repeat keys find them in their block. */
static void hyper_finds_heavy_entries(void **state) {
    (void)state;
    problem p = make(LINNET_APPROXIMATE_HYPER, 1024, 2, 2, 32, 16);
    p.s.causal = false;
    p.s.bucket = 64;
    p.s.samples = 64;
    run_on(&p, 2, true);
    const double at_random = p.report.mass;
    for (int64_t t = 0; t < 1024; t++)
        for (int64_t i = 0; i < 64; i++) p.query[t * 64 + i] = 3 * p.key[(t * 389 % 1024) * 64 + i];
    run_on(&p, 2, true);
    assert_true(at_random < 0.25);
    assert_true(p.report.mass > 0.7);
    assert_true(p.report.visited == 2 * 1024 * 64);
    drop(&p);
}

/* With one hash the sum over samples is an unbiased estimate: means over seeds approach the exact sums. Tested by
 * values of 1 and keys of equal score, where every estimate is exact. */
static void hyper_weights_are_right(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        problem p = make_transparent(LINNET_APPROXIMATE_HYPER, 256, 1, 8);
        p.s.causal = causal;
        memset(p.query, 0, 256 * 8 * sizeof(float));
        double *mean = calloc(256 * 256, sizeof *mean);
        enum { SEEDS = 100 };
        for (int seed = 0; seed < SEEDS; seed++) {
            p.s.seed = (uint64_t)seed;
            run_on(&p, 1, false);
            for (int64_t t = 0; t < 256; t++) {
                double sum = 0;
                for (int64_t j = 0; j < 256; j++) {
                    const double w = (double)weights_of(&p, 0, t)[j];
                    sum += w;
                    mean[t * 256 + j] += w / SEEDS;
                    if (causal && j > t) assert_true(weights_of(&p, 0, t)[j] == 0);
                }
                assert_true(fabs(sum - 1) < 1e-5);
            }
        }
        double worst = 0;
        for (int64_t t = 200; t < 256; t++)
            for (int64_t j = 0; j < (causal ? t + 1 : 256); j++)
                worst = fmax(worst, fabs(mean[t * 256 + j] * (double)(causal ? t + 1 : 256) - 1));
        assert_true(worst < 1.2); /* each pair's mean weight over 100 seeds is 1 +- 0.27 */
        free(mean);
        drop(&p);
    }
}

/* ---- all methods ---- */

static void prepare_any(problem *p) {
    static const int64_t documents[] = {40, 200, 500, 700};
    static const int64_t offsets[] = {0,  1,  3,  6,  9,  12, 15, 18, 21, 24, 27, 30,
                                      33, 36, 39, 42, 45, 48, 51, 54, 57, 60, 63, 66};
    static int32_t tiles[66];
    for (int l = 2; l < 23; l++)
        for (int i = 0; i < 3; i++) tiles[offsets[l] + i] = (int32_t)(i == 0 ? 0 : i == 1 ? l / 2 + 1 : l);
    tiles[0] = 0;
    tiles[1] = 0;
    tiles[2] = 1;
    tiles[4] = 1; /* list 2: 0, 1, 2 */
    tiles[5] = 2;
    for (int l = 3; l < 23; l++) tiles[offsets[l] + 1] = l / 2;
    p->s.instruction = 40;
    p->s.documents = 3;
    p->s.document_offsets = documents;
    p->s.blocks = (linnet_block_mask){32, 32, false, offsets, tiles};
}

static void same_bits_for_any_number_of_threads(void **state) {
    (void)state;
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        problem p = make((linnet_approximation)method, 721, 4, 2, 16, 16);
        const size_t bytes = 721 * 64 * sizeof(float);
        float *first = malloc(bytes);
        prepare_any(&p);
        for (int threads = 1; threads <= 3; threads++) {
            memset(p.output, 0xff, bytes);
            run_on(&p, threads, false);
            if (threads == 1) memcpy(first, p.output, bytes);
            assert_memory_equal(first, p.output, bytes);
        }
        for (size_t i = 0; i < 721 * 64; i++) assert_true(isfinite(p.output[i]));
        free(first);
        drop(&p);
    }
}

static void the_future_does_not_matter(void **state) {
    (void)state;
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        for (int64_t cut = 96; cut < 721; cut += 211) {
            problem p = make((linnet_approximation)method, 721, 4, 2, 16, 16);
            prepare_any(&p);
            float *before = malloc(721 * 64 * sizeof(float));
            run_on(&p, 2, false);
            memcpy(before, p.output, 721 * 64 * sizeof(float));
            for (int64_t t = cut; t < 721; t++) {
                for (int64_t i = 0; i < 32; i++) {
                    p.key[t * 32 + i] = 5 - 2 * p.key[t * 32 + i];
                    p.value[t * 32 + i] *= 100;
                }
                /* Queries take part in the choice for their tile, and in HyperAttention for their half. */
                for (int64_t i = 0; i < 64 && t >= (cut + 31) / 32 * 32 && method != LINNET_APPROXIMATE_HYPER; i++)
                    p.query[t * 64 + i] += 2;
            }
            run_on(&p, 2, false);
            if (memcmp(before, p.output, (size_t)cut * 64 * sizeof(float)) != 0)
                fail_msg("%s looks ahead", linnet_approximate_name(p.s.method));
            assert_memory_not_equal(before, p.output, 721 * 64 * sizeof(float));
            free(before);
            drop(&p);
        }
    }
}

/* What is not finite in one key-value head reaches no other. */
static void heads_keep_what_is_not_finite(void **state) {
    (void)state;
    static const float wrong[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        problem p = make((linnet_approximation)method, 721, 4, 2, 16, 16);
        prepare_any(&p);
        float *before = malloc(721 * 64 * sizeof(float));
        run_on(&p, 2, false);
        memcpy(before, p.output, 721 * 64 * sizeof(float));
        for (int64_t t = 0; t < 721; t += 5) {
            p.key[t * 32 + 16 + t % 16] = wrong[t % 4];
            p.value[t * 32 + 16 + t % 16] = wrong[(t + 1) % 4];
            p.query[t * 64 + 32 + t % 32] = wrong[(t + 2) % 4];
        }
        run_on(&p, 3, false);
        for (int64_t t = 0; t < 721; t++) assert_memory_equal(before + t * 64, p.output + t * 64, 32 * sizeof(float));
        free(before);
        drop(&p);
    }
}

/* Each tile of queries looks for one tile of keys, planted at random before it. */
static void plant(problem *p) {
    ln_random random;
    ln_random_seed(&random, 11);
    const int64_t d = p->s.key_size, tiles = p->s.tokens / 32;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t target = (int64_t)ln_random_below(&random, (uint64_t)tile + 1);
        for (int64_t t = tile * 32; t < tile * 32 + 32; t++)
            for (int64_t i = 0; i < d; i++) {
                p->query[t * d + i] = 0.3f * p->query[t * d + i];
                p->key[t * d + i] = 0.3f * p->key[t * d + i];
            }
        for (int64_t i = 0; i < d; i++) {
            uint64_t own = (uint64_t)(tile * 1000 + i), its = (uint64_t)(target * 1000 + i);
            for (int64_t t = tile * 32; t < tile * 32 + 32; t++) {
                p->key[t * d + i] += ln_random_mix(&(uint64_t){own}) & 1 ? 1 : -1;
                p->query[t * d + i] += ln_random_mix(&(uint64_t){its}) & 1 ? 1.6f : -1.6f;
            }
        }
    }
}

static void planted_tiles_are_found(void **state) {
    (void)state;
    static const linnet_approximation methods[] = {LINNET_APPROXIMATE_HIP, LINNET_APPROXIMATE_PAGES,
                                                   LINNET_APPROXIMATE_SEA, LINNET_APPROXIMATE_SLA};
    for (int i = 0; i < 4; i++) {
        problem p = make(methods[i], 2048, 1, 1, 32, 16);
        plant(&p);
        p.s.budget = i == 0 ? 512 : 128;
        p.s.critical = 0.1f;
        run_on(&p, 2, true);
        printf("%-6s planted: error %.3g, mass %.3f of %.3f of the pairs\n", linnet_approximate_name(methods[i]),
               p.report.error, p.report.mass, p.report.visited / p.report.pairs);
        assert_true(p.report.mass > (i == 0 ? 0.95 : 0.8));
        assert_true(p.report.visited / p.report.pairs < (i == 0 ? 0.55 : 0.25));
        drop(&p);
    }
}

static void set_budget(problem *p, int step) {
    p->s.budget = 128 << 2 * step;
    p->s.samples = 16 << 3 * step;
    p->s.bucket = 32 << 2 * step;
    p->s.group = 32 >> 2 * step;
    p->s.critical = (float)(0.05 * (1 << 2 * step));
}

static void error_falls_with_the_budget(void **state) {
    (void)state;
    static const linnet_approximation methods[] = {LINNET_APPROXIMATE_HYPER, LINNET_APPROXIMATE_HIP,
                                                   LINNET_APPROXIMATE_CORE,  LINNET_APPROXIMATE_SEA,
                                                   LINNET_APPROXIMATE_SLA,   LINNET_APPROXIMATE_PAGES};
    for (int i = 0; i < 6; i++) {
        for (int planted = 0; planted < 2; planted++) {
            double before = INFINITY, mass = 0;
            printf("%-6s %s:", linnet_approximate_name(methods[i]), planted ? "planted" : "random ");
            for (int step = 0; step < 3; step++) {
                problem p = make(methods[i], 2048, 1, 1, 32, 16);
                if (planted) plant(&p);
                set_budget(&p, step);
                run_on(&p, 2, true);
                printf("  %.3g (mass %.2f, pairs %.2f)", p.report.error, p.report.mass,
                       p.report.visited / p.report.pairs);
                /* SLA's linear part has a norm of its own: before tuning only the mass must grow. */
                assert_true(p.report.error < before || methods[i] == LINNET_APPROXIMATE_SLA);
                assert_true(p.report.mass >= mass || methods[i] == LINNET_APPROXIMATE_CORE);
                before = p.report.error;
                mass = p.report.mass;
                drop(&p);
            }
            printf("\n");
        }
    }
}

static void bf16_and_strides(void **state) {
    (void)state;
    enum { N = 333, H = 2, D = 16 };
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        problem p = make((linnet_approximation)method, N, H, H, D, D);
        const int64_t documents[] = {30, 100, 300};
        int64_t offsets[12];
        int32_t tiles[22];
        for (int l = 0; l < 11; l++) {
            offsets[l] = l ? 2 * l - 1 : 0;
            if (l) tiles[offsets[l]] = 0;
            tiles[offsets[l] + (l > 0)] = l;
        }
        offsets[11] = 21;
        p.s.instruction = 30;
        p.s.documents = 2;
        p.s.document_offsets = documents;
        p.s.blocks = (linnet_block_mask){32, 32, false, offsets, tiles};
        p.s.exact = true; /* float32 products of bf16 numbers: the same as in float32 */
        uint16_t *joint = malloc(N * 3 * H * D * sizeof *joint);
        float *from[3] = {p.query, p.key, p.value};
        for (int which = 0; which < 3; which++)
            for (int t = 0; t < N; t++)
                for (int i = 0; i < H * D; i++) {
                    joint[(t * 3 + which) * H * D + i] = ln_float_bf16(from[which][t * H * D + i]);
                    from[which][t * H * D + i] = ln_bf16_float(joint[(t * 3 + which) * H * D + i]);
                }
        run_on(&p, 2, false);
        float *output = malloc(H * N * D * sizeof *output);
        linnet_context *context = open_context(2);
        linnet_approximate_plan *plan;
        p.s.type = LINNET_BF16;
        assert_int_equal(linnet_approximate_plan_open(context, &p.s, &plan), LINNET_OK);
        void *workspace = aligned_alloc(64, linnet_approximate_workspace(plan));
        const linnet_approximate_tensors tensors = {.size = sizeof tensors,
                                                    .query = {joint, 3 * H * D, D},
                                                    .key = {joint + H * D, 3 * H * D, D},
                                                    .value = {joint + 2 * H * D, 3 * H * D, D},
                                                    .output = {output, D, N * D}};
        assert_int_equal(linnet_approximate_forward(plan, &tensors, workspace), LINNET_OK);
        for (int t = 0; t < N; t++)
            for (int h = 0; h < H; h++)
                for (int i = 0; i < D; i++)
                    if (fabsf(output[(h * N + t) * D + i] - p.output[(t * H + h) * D + i]) > 1e-5f)
                        fail_msg("%s: token %d", linnet_approximate_name(p.s.method), t);
        free(workspace);
        free(joint);
        free(output);
        linnet_approximate_plan_close(plan);
        linnet_context_close(context);
        drop(&p);
    }
}

/* The defaults, and tokens that are no multiple of anything. */
static void defaults_run(void **state) {
    (void)state;
    for (int method = LINNET_APPROXIMATE_HYPER; method < LINNET_APPROXIMATIONS; method++) {
        if (method == LINNET_APPROXIMATE_RANKING) continue;
        problem p = make((linnet_approximation)method, 4099, 2, 1, 16, 16);
        p.s = linnet_approximate_settings_default((linnet_approximation)method);
        p.s.tokens = 4099;
        p.s.heads = 2;
        p.s.key_value_heads = 1;
        p.s.key_size = 16;
        run_on(&p, 2, true);
        assert_true(isfinite(p.report.error) && p.report.mass > 0 && p.report.mass < 1);
        assert_true(p.report.visited < p.report.pairs);
        drop(&p);
    }
}

static void refusals(void **state) {
    (void)state;
    problem p = make(LINNET_APPROXIMATE_HIP, 64, 2, 2, 16, 16);
    assert_int_equal(open_status(&p.s), LINNET_OK);
#define REFUSED(change)                                           \
    do {                                                          \
        linnet_approximate_settings s = p.s;                      \
        change;                                                   \
        assert_int_equal(open_status(&s), LINNET_ERROR_ARGUMENT); \
    } while (0)
    REFUSED(s.method = LINNET_APPROXIMATIONS);
    REFUSED(s.method = (linnet_approximation)-1);
    REFUSED(s.type = LINNET_Q8_0);
    REFUSED(s.heads = 3; s.key_value_heads = 2);
    REFUSED(s.heads = 0; s.key_value_heads = 0);
    REFUSED(s.key_size = 20);
    REFUSED(s.value_size = 264);
    REFUSED(s.tokens = -1);
    REFUSED(s.key_tile = 48);
    REFUSED(s.query_tile = 2048);
    REFUSED(s.budget = -1);
    REFUSED(s.query_stride = 0);
    REFUSED(s.scale = NAN);
    REFUSED(s.method = LINNET_APPROXIMATE_BLOCKS);
    REFUSED(s.method = LINNET_APPROXIMATE_RANKING);
    REFUSED(s.method = LINNET_APPROXIMATE_HYPER; s.bucket = 40);
    REFUSED(s.method = LINNET_APPROXIMATE_HYPER; s.hash_bits = 13);
    REFUSED(s.method = LINNET_APPROXIMATE_CORE; s.group = 0);
    REFUSED(s.method = LINNET_APPROXIMATE_CORE; s.causal = false);
    REFUSED(s.method = LINNET_APPROXIMATE_SEA; s.features = 12);
    REFUSED(s.method = LINNET_APPROXIMATE_SEA; s.mix = 2);
    REFUSED(s.method = LINNET_APPROXIMATE_SLA; s.critical = 1.5f);
    REFUSED(s.method = LINNET_APPROXIMATE_PAGES; s.page = 5);
    const int64_t offsets[] = {0, 2, 3};
    const int32_t wrong[] = {1, 0, 0}, beyond[] = {0, 1, 2};
    REFUSED(s.method = LINNET_APPROXIMATE_BLOCKS; s.blocks = ((linnet_block_mask){32, 32, false, offsets, wrong}));
    REFUSED(s.method = LINNET_APPROXIMATE_BLOCKS; s.blocks = ((linnet_block_mask){32, 32, false, offsets, beyond}));
    drop(&p);
    for (int method = 0; method < LINNET_APPROXIMATIONS; method++) {
        assert_non_null(linnet_approximate_name((linnet_approximation)method));
        assert_non_null(linnet_approximate_source((linnet_approximation)method));
        problem none = make((linnet_approximation)method, 0, 2, 2, 16, 16);
        const int64_t zeros[3] = {0};
        none.s.documents = 2;
        none.s.document_offsets = zeros;
        none.s.blocks = (linnet_block_mask){32, 32, false, zeros, NULL};
        run_on(&none, 2, true);
        drop(&none);
    }
    assert_null(linnet_approximate_name(LINNET_APPROXIMATIONS));
    linnet_context *context = open_context(1);
    linnet_approximate_plan *plan;
    assert_int_equal(linnet_approximate_plan_open(context, &p.s, &plan), LINNET_OK);
    const linnet_approximate_tensors nothing = {.size = sizeof nothing};
    assert_int_equal(linnet_approximate_forward(plan, &nothing, NULL), LINNET_ERROR_ARGUMENT);
    linnet_approximate_plan_close(plan);
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(methods_are_exact_at_their_limits),
        cmocka_unit_test(given_lists_are_followed),
        cmocka_unit_test(pages_go_by_bounds),
        cmocka_unit_test(streaming_heads_see_sinks_and_window),
        cmocka_unit_test(hip_finds_smooth_peaks),
        cmocka_unit_test(hip_counts_its_scores),
        cmocka_unit_test(groups_choose_together),
        cmocka_unit_test(core_equals_its_formula),
        cmocka_unit_test(ranking_equals_its_mask_and_scores),
        cmocka_unit_test(documents_do_not_touch_each_other),
        cmocka_unit_test(ranking_finds_the_matching_document),
        cmocka_unit_test(sea_mixes_with_the_mean),
        cmocka_unit_test(sea_estimates_mass),
        cmocka_unit_test(sla_equals_its_formula),
        cmocka_unit_test(gradients_are_those_of_differences),
        cmocka_unit_test(hyper_finds_heavy_entries),
        cmocka_unit_test(hyper_weights_are_right),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(the_future_does_not_matter),
        cmocka_unit_test(heads_keep_what_is_not_finite),
        cmocka_unit_test(planted_tiles_are_found),
        cmocka_unit_test(error_falls_with_the_budget),
        cmocka_unit_test(bf16_and_strides),
        cmocka_unit_test(defaults_run),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
