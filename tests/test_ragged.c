/* Memory under a policy against an obviously right model: attention equals that of the plain memory where nothing is
 * given up; the tokens kept are those that a plain rule keeps, with their positions, keys, values and what the scorer
 * keeps of them, after thousands of tokens, rewinds and forks; bytes are never exceeded; as many threads as you like.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "ragged.h"

enum { LANES = 2 * KV, MEMORIES = 4 };

/* ---- the model ---- */

typedef struct token {
    int32_t position;
    int32_t kind;
} token;

typedef struct model {
    ln_memory *memory;
    int64_t position, limit, near_first; /* near tokens beside the sinks begin at this position */
    int64_t asked[LAYERS];               /* scorings so far, by lane layer */
    int64_t count[LANES];
    token far[LANES][CAPACITY];
    float kept[LANES][CAPACITY]; /* by position */
    uint32_t seed[CAPACITY];
} model;

static float score_of(const ln_policy *policy, int64_t position, int64_t lane, int64_t asked) {
    if (policy->scorer == &test_fixed) return test_score(position, lane / KV, lane % KV, 0);
    if (policy->scorer == &test_flipping) return test_score(position, lane / KV, lane % KV, asked);
    return (float)position; /* window */
}

typedef struct candidate {
    float score;
    token token;
} candidate;

static int by_worth(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->token.position > y->token.position ? -1 : 1;
}

/* Tokens of the rest that each lane may keep, as the memory has it. */
static int64_t allowance_of(const ln_ragged *ragged) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const double far = (double)ln_pool_page_bytes(pool, LN_FAR), salient = ragged->policy.salient;
    const double page =
        pool->kinds > LN_LOW ? salient * far + (1 - salient) * (double)ln_pool_page_bytes(pool, LN_LOW) : far;
    const int64_t pages = (int64_t)((double)(uint64_t)(0.5 * (double)ragged->allowance) / page);
    return pages / KV * LN_PAGE_TOKENS;
}

static void settle_lane(model *m, const ln_policy *policy, int64_t lane, int64_t leaving, int64_t allowance) {
    static candidate list[CAPACITY];
    int64_t n = 0;
    for (int64_t i = 0; i < m->count[lane]; i++) list[n++].token = m->far[lane][i];
    for (int64_t i = 0; i < leaving; i++) list[n++].token = (token){(int32_t)(m->near_first + i), LN_FAR};
    for (int64_t i = 0; i < n; i++) list[i].score = score_of(policy, list[i].token.position, lane, m->asked[lane / KV]);
    const bool low = policy->low_keys != LINNET_TYPE_AUTO;
    int64_t kept = n, far = n;
    if (policy->scorer) {
        kept = ln_min_i64(n, allowance);
        far = kept;
        if (low && n > (int64_t)(policy->salient * (double)allowance))
            far = ln_min_i64(kept, (int64_t)(policy->salient * (double)(allowance / LN_PAGE_TOKENS)) * LN_PAGE_TOKENS);
        qsort(list, (size_t)n, sizeof *list, by_worth);
    }
    for (int64_t i = 0, high = 0; i < kept; i++)
        if (list[i].token.kind == LN_FAR && high++ >= far) list[i].token.kind = LN_LOW;
    m->count[lane] = kept;
    for (int64_t i = 0; i < kept; i++) m->far[lane][i] = list[i].token;
}

static void settle(model *m, int64_t lane_layer, int64_t tokens) {
    const ln_policy *policy = &m->memory->policy;
    const int64_t sinks = ln_sink_pages(policy) * LN_PAGE_TOKENS, end = m->position + tokens;
    const int64_t near = ln_min_i64(end, sinks) + ln_max_i64(0, end - ln_max_i64(m->near_first, sinks));
    const int64_t leaving = ln_max_i64(0, (near - sinks - policy->recent) / LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
    if (policy->scorer && policy->scorer->keeps) m->asked[lane_layer]++;
    for (int64_t h = 0; h < KV; h++)
        if (leaving) settle_lane(m, policy, lane_layer * KV + h, leaving, allowance_of(m->memory->lanes));
    if (leaving || (policy->scorer && policy->scorer->keeps)) m->limit = end;
    if (lane_layer == 1) m->near_first += leaving;
}

static void expect_kept(model *m, int64_t tokens) {
    for (int64_t l = 0; l < LANES; l++)
        for (int64_t p = 0; p < m->position + tokens; p++)
            m->kept[l][p] = (p < m->position ? m->kept[l][p] : 0) + (float)(1 + p % 7);
}

/* ---- what is there ---- */

static int by_position(const void *a, const void *b) {
    const token *x = a, *y = b;
    return (x->position > y->position) - (x->position < y->position);
}

/* The error that a type makes of numbers from -1 to 1, in the mean. */
static double error_of(linnet_type type) {
    return type == LINNET_F16 ? 1e-3 : type == LINNET_Q8_0 ? 6e-3 : type == LINNET_Q4 ? 0.1 : 0.3;
}

static void check_row(linnet_type type, const float *found, const float *wanted, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += fabs((double)found[i] - (double)wanted[i]);
    if (!(sum <= error_of(type) * (double)n))
        fail_msg("a row of %s is off by %g", linnet_type_name(type), sum / (double)n);
}

static void check_token(const model *m, ln_page page, int64_t place, int64_t position, int64_t layer, int64_t head) {
    const ln_ragged *ragged = m->memory->lanes;
    const ln_page_layout *layout = &ln_pool_layouts(ragged->pool)[ln_pool_kind(ragged->pool, page)];
    float key[KEY], value[VALUE], keys[KV * KEY], values[KV * VALUE];
    ln_page_decode_token(layout, ln_pool_data(ragged->pool, page), place, key, value);
    if (ragged->policy.rotate) {
        ln_hadamard(key, KEY);
        ln_hadamard(value, VALUE);
    }
    test_row(m->seed[position], layer, 0, KV, KEY, keys);
    test_row(m->seed[position], layer, 1, KV, VALUE, values);
    const int32_t *order = ln_lane_order(ragged, layer / 2 * KV + head);
    if (order) ln_ragged_order_row(order, KEY, keys + head * KEY);
    check_row(layout->key_type, key, keys + head * KEY, layout->key_size);
    check_row(layout->value_type, value, values + head * VALUE, VALUE);
}

static void check_lane(const model *m, int64_t lane_index) {
    static token found[CAPACITY];
    const ln_ragged *ragged = m->memory->lanes;
    const ln_lane *lane = &ragged->lane[lane_index];
    const bool scores = ragged->policy.scorer != NULL, keeps = scores && ragged->policy.scorer->keeps;
    const int64_t layer = lane_index / KV * 2, sinks = ln_sink_pages(&ragged->policy) * LN_PAGE_TOKENS;
    int64_t n = 0, near = 0, tokens = 0, in_far = 0;
    for (int64_t p = 0; p < ln_lane_pages(lane); p++) {
        const ln_page page = ragged->page[lane->begin + p];
        const int kind = ragged->kind[lane->begin + p];
        assert_int_equal(kind, ln_pool_kind(ragged->pool, page));
        assert_int_equal(kind, p < lane->pages[LN_FAR]                         ? LN_FAR
                               : p < lane->pages[LN_FAR] + lane->pages[LN_LOW] ? LN_LOW
                                                                               : LN_NEAR);
        for (int64_t i = 0; i < ragged->count[lane->begin + p]; i++, tokens++) {
            int64_t position;
            if (kind == LN_NEAR) {
                position = near < sinks ? near : m->near_first + near - sinks;
                near++;
            } else {
                position = scores ? ln_pool_positions(ragged->pool, page)[i] : m->far[lane_index][in_far++].position;
                found[n++] = (token){(int32_t)position, kind};
            }
            if (scores) assert_int_equal(ln_pool_positions(ragged->pool, page)[i], position);
            if (keeps) assert_true(ln_pool_kept(ragged->pool, page)[i] == m->kept[lane_index][position]);
            check_token(m, page, i, position, layer, lane_index % KV);
        }
    }
    assert_int_equal(near, lane->tokens[LN_NEAR]);
    assert_int_equal(near,
                     ln_min_i64(m->position, sinks) + ln_max_i64(0, m->position - ln_max_i64(sinks, m->near_first)));
    assert_int_equal(n, m->count[lane_index]);
    assert_int_equal(tokens + lane->given_up, m->position);
    static token wanted[CAPACITY];
    memcpy(wanted, m->far[lane_index], (size_t)n * sizeof *wanted);
    qsort(wanted, (size_t)n, sizeof *wanted, by_position);
    qsort(found, (size_t)n, sizeof *found, by_position);
    assert_memory_equal(found, wanted, (size_t)n * sizeof *found);
    if (keeps) {
        int64_t asked;
        memcpy(&asked, ragged->state + (uint64_t)lane_index * ragged->state_bytes, sizeof asked);
        assert_int_equal(asked, m->asked[lane_index / KV]);
    }
}

static void check_model(const model *m) {
    assert_int_equal(ln_memory_position(m->memory), m->position);
    assert_int_equal(ln_ragged_rewind_limit(m->memory->lanes), m->limit);
    for (int64_t l = 0; l < LANES; l++) check_lane(m, l);
    const ln_ragged_usage usage = ln_ragged_measure(m->memory->lanes);
    assert_true(usage.bytes <= usage.peak);
}

/* ---- attention over exactly what is there ---- */

static void attend_plainly(ln_memory *memory, int64_t lane_index, int64_t tokens, int64_t token_, const float *query,
                           double *output) {
    static float key[KEY], value[VALUE];
    const ln_ragged *ragged = memory->lanes;
    const ln_lane *lane = &ragged->lane[lane_index];
    double sum = 0;
    memset(output, 0, VALUE * sizeof *output);
    const int64_t seen = lane->tokens[LN_FAR] + lane->tokens[LN_LOW] + lane->tokens[LN_NEAR] - tokens + token_ + 1;
    int64_t at = 0;
    for (int64_t p = 0; p < ln_lane_pages(lane); p++) {
        const ln_page page = ragged->page[lane->begin + p];
        for (int64_t i = 0; i < ragged->count[lane->begin + p] && at < seen; i++, at++) {
            const ln_page_layout *layout = &ln_pool_layouts(ragged->pool)[ragged->kind[lane->begin + p]];
            ln_page_decode_token(layout, ln_pool_data(ragged->pool, page), i, key, value);
            double dot = 0;
            for (int d = 0; d < layout->key_size; d++) dot += (double)key[d] * (double)query[d];
            const double weight = exp(0.6f * dot);
            sum += weight;
            for (int d = 0; d < VALUE; d++) output[d] += weight * (double)value[d];
        }
    }
    for (int d = 0; d < VALUE; d++) output[d] /= sum;
}

typedef struct watcher {
    model *model;
    bool attends;
    double expected[2][HEADS][VALUE]; /* of the first and the last token */
} watcher;

static void watch(void *of, ln_memory *memory, int64_t layer, int64_t tokens, const float *query, const float *output) {
    watcher *w = of;
    if (layer == 1) return;
    for (int last = 0; w->attends && last < 2; last++) {
        const int64_t t = last ? tokens - 1 : 0;
        for (int64_t h = 0; h < HEADS; h++) {
            if (output) {
                for (int d = 0; d < VALUE; d++)
                    assert_true(fabs((double)output[(t * HEADS + h) * VALUE + d] - w->expected[last][h][d]) < 2e-5);
                continue;
            }
            float rotated[KEY];
            memcpy(rotated, query + (t * HEADS + h) * KEY, sizeof rotated);
            if (memory->policy.rotate) ln_hadamard(rotated, KEY);
            const int32_t *order = ln_lane_order(memory->lanes, layer / 2 * KV + h / (HEADS / KV));
            if (order) ln_ragged_order_row(order, KEY, rotated);
            attend_plainly(memory, layer / 2 * KV + h / (HEADS / KV), tokens, t, rotated, w->expected[last][h]);
            if (!memory->policy.rotate) continue;
            float back[VALUE];
            for (int d = 0; d < VALUE; d++) back[d] = (float)w->expected[last][h][d];
            ln_hadamard(back, VALUE);
            for (int d = 0; d < VALUE; d++) w->expected[last][h][d] = (double)back[d];
        }
    }
    if (output) settle(w->model, layer / 2, tokens);
}

static void feed(world *w, model *m, ln_random *random, int64_t tokens, bool attends) {
    static float output[OUTPUT];
    for (int64_t t = 0; t < tokens; t++) m->seed[m->position + t] = (uint32_t)ln_random_u64(random);
    watcher watching = {.model = m, .attends = attends};
    assert_int_equal(feed_seeds(w, m->memory, m->seed + m->position, tokens, output, watch, &watching), LINNET_OK);
    if (m->memory->policy.scorer && m->memory->policy.scorer->keeps) expect_kept(m, tokens);
    m->position += tokens;
}

static void rewind_model(model *m, int64_t to) {
    assert_int_equal(ln_memory_rewind(m->memory, to), LINNET_OK);
    m->position = to;
    if (to) return;
    m->limit = 0;
    m->near_first = ln_sink_pages(&m->memory->policy) * LN_PAGE_TOKENS;
    memset(m->asked, 0, sizeof m->asked);
    memset(m->count, 0, sizeof m->count);
}

/* ---- tests ---- */

static const char *const policies[] = {
    "full",
    "full:recent=100,sinks=40",
    "quantized:keys=q4,values=q3,recent=40",
    "kivi:recent=64",
    "window:sinks=4,recent=40",
    "window:sinks=0,recent=0,keys=q8_0,values=q4",
    "fixed,window:sinks=4,recent=64",
    "fixed,window:sinks=0,recent=33,keys=q4,values=q4,rotate=1",
    "flipping,window:sinks=4,recent=64",
    "fixed,zipcache:sinks=0,recent=64",
    "flipping,zipcache:sinks=33,recent=20,salient=0.5",
    "flipping,zipcache:sinks=0,recent=0,salient=0.1",
    "bfp:recent=40",
    "full:recent=70,channels=0.4",
    "window:sinks=4,recent=40,channels=0.5",
    "fixed,window:sinks=0,recent=33,channels=0.7,keys=q8_0,values=q4",
    "flipping,zipcache:sinks=33,recent=20,salient=0.5,channels=0.6,order=magnitude",
};
enum { POLICIES = sizeof policies / sizeof *policies };

static void check_bytes(const world *w, const ln_memory_shape *shape, const model *models, int64_t open, int64_t most) {
    /* Page numbers of those that closed stay in the pool's tables. */
    const ln_pool_shape *pool = ln_pool_shape_of(models[0].memory->lanes->pool);
    const uint64_t family =
        (uint64_t)open * ln_memory_bytes(shape) +
        (uint64_t)(MEMORIES - open) * (ln_pool_bytes(pool) - ln_pool_capacity(pool)) * (open < most);
    if (linnet_memory_used(w->context) - w->before > family)
        fail_msg("%s: %lld memories take %lld bytes too many", shape->policy->row->name, (long long)open,
                 (long long)(linnet_memory_used(w->context) - w->before - family));
    for (int64_t i = 0; i < open; i++)
        assert_true(ln_ragged_measure(models[i].memory->lanes).bytes <= (uint64_t)open * shape->lane_bytes);
}

static void test_kept(void **state) {
    (void)state;
    static model m;
    for (int i = 0; i < 2 * POLICIES; i++) {
        world w;
        open_world(&w, 2);
        const ln_policy policy = test_policy(w.context, policies[i / 2]);
        const int64_t capacity = policy.scorer ? CAPACITY : 1000;
        ln_memory_shape shape = test_shape(&w, &policy, capacity, 0);
        if (i % 2) shape.lane_bytes += policy.scorer ? 600000 : 50000;
        memset(&m, 0, sizeof m);
        m.near_first = ln_sink_pages(&policy) * LN_PAGE_TOKENS;
        assert_int_equal(open_memory(&w, &shape, &m.memory), LINNET_OK);
        ln_random random;
        ln_random_seed(&random, (uint64_t)i);
        for (int step = 0; m.position < capacity; step++) {
            const int64_t room = ln_min_i64(step % 3 ? PIECE : 3, capacity - m.position);
            feed(&w, &m, &random, 1 + (int64_t)ln_random_below(&random, (uint64_t)room), step % 7 == 0);
            if (step % 9 == 0 && m.position > m.limit)
                rewind_model(&m, m.limit + (int64_t)ln_random_below(&random, (uint64_t)(m.position - m.limit)));
            if (step == 20) rewind_model(&m, 0);
            if (step < 10 || step % 16 == 0) check_model(&m);
            check_bytes(&w, &shape, &m, 1, 1);
        }
        check_model(&m);
        const ln_ragged_usage usage = ln_ragged_measure(m.memory->lanes);
        assert_int_equal(usage.kept + usage.evicted, LANES * capacity);
        if (policy.scorer)
            assert_true(usage.evicted > 0);
        else
            assert_int_equal(usage.evicted, 0);
        ln_memory_close(m.memory);
        assert_int_equal(linnet_memory_used(w.context), w.before);
        close_world(&w);
    }
}

/* Forks and their forks: none disturbs another, in whatever order they close. */
static void test_forks(void **state) {
    (void)state;
    static model models[MEMORIES];
    for (int i = 0; i < POLICIES; i++) {
        world w;
        open_world(&w, 2);
        const ln_policy policy = test_policy(w.context, policies[i]);
        ln_memory_shape shape = test_shape(&w, &policy, 1500, 0);
        if (policy.scorer) shape.lane_bytes += 60000;
        memset(models, 0, sizeof models);
        models[0].near_first = ln_sink_pages(&policy) * LN_PAGE_TOKENS;
        assert_int_equal(open_memory(&w, &shape, &models[0].memory), LINNET_OK);
        int64_t open = 1, most = 1;
        ln_random random;
        ln_random_seed(&random, (uint64_t)i);
        for (int step = 0; step < 160; step++) {
            model *m = &models[ln_random_below(&random, (uint64_t)open)];
            const uint64_t action = ln_random_below(&random, 16);
            if (action < 10) {
                const int64_t room = ln_min_i64(PIECE, shape.capacity - m->position);
                if (room > 0)
                    feed(&w, m, &random, 1 + (int64_t)ln_random_below(&random, (uint64_t)room), step % 5 == 0);
            } else if (action < 12 && m->position > m->limit) {
                rewind_model(m, m->limit + (int64_t)ln_random_below(&random, (uint64_t)(m->position - m->limit)));
            } else if (action < 14 && open < MEMORIES) {
                memcpy(&models[open], m, sizeof *m);
                assert_int_equal(ln_memory_fork(m->memory, &models[open].memory), LINNET_OK);
                open++;
            } else if (action < 15 && open > 1) {
                ln_memory_close(m->memory);
                if (m != &models[--open]) memcpy(m, &models[open], sizeof *m);
            } else if (step % 40 == 0) {
                rewind_model(m, 0);
            }
            most = ln_max_i64(most, open);
            check_bytes(&w, &shape, models, open, most);
            for (int64_t k = 0; k < open; k++) check_model(&models[k]);
        }
        while (open > 1) ln_memory_close(models[--open].memory);
        rewind_model(&models[0], 0);
        assert_int_equal(ln_pool_used(models[0].memory->lanes->pool, NULL), 0);
        ln_memory_close(models[0].memory);
        assert_int_equal(linnet_memory_used(w.context), w.before);
        close_world(&w);
    }
}

/* Where all is kept as it is, nothing differs from the plain memory but the order of sums. */
static void test_full(void **state) {
    (void)state;
    static float plain[OUTPUT], lanes[OUTPUT];
    static uint32_t seeds[1200];
    world w;
    open_world(&w, 2);
    const ln_policy policy = test_policy(w.context, "full");
    const ln_memory_shape with = test_shape(&w, &policy, 1200, 0), without = test_shape(&w, NULL, 1200, 0);
    ln_memory *a[2], *b[2];
    assert_int_equal(open_memory(&w, &with, &a[0]), LINNET_OK);
    assert_int_equal(open_memory(&w, &without, &b[0]), LINNET_OK);
    ln_random random;
    ln_random_seed(&random, 1);
    double most = 0;
    for (int round = 0; round < 2; round++) {
        if (round) {
            assert_int_equal(ln_memory_fork(a[0], &a[1]), LINNET_OK);
            assert_int_equal(ln_memory_fork(b[0], &b[1]), LINNET_OK);
        }
        for (int step = 0; step < 30; step++) {
            const int side = round ? step % 2 : 0;
            const int64_t tokens = 1 + (int64_t)ln_random_below(&random, PIECE), at = ln_memory_position(a[side]);
            if (at + tokens > 1200) break;
            for (int64_t t = 0; t < tokens; t++) seeds[t] = (uint32_t)ln_random_u64(&random);
            assert_int_equal(feed_seeds(&w, a[side], seeds, tokens, lanes, NULL, NULL), LINNET_OK);
            assert_int_equal(feed_seeds(&w, b[side], seeds, tokens, plain, NULL, NULL), LINNET_OK);
            for (int64_t i = 0; i < LAYERS * tokens * HEADS * VALUE; i++)
                most = fmax(most, fabs((double)plain[i] - (double)lanes[i]));
            const int64_t limit = ln_memory_rewind_limit(a[side]), end = ln_memory_position(a[side]);
            if (step % 4 == 3 && limit < end) {
                assert_int_equal(ln_memory_rewind(a[side], limit), LINNET_OK);
                assert_int_equal(ln_memory_rewind(b[side], limit), LINNET_OK);
            }
        }
    }
    printf("largest difference %g\n", most);
    assert_true(most < 1e-6);
    for (int i = 0; i < 2; i++) {
        ln_memory_close(a[i]);
        ln_memory_close(b[i]);
    }
    assert_int_equal(linnet_memory_used(w.context), w.before);
    close_world(&w);
}

static void test_threads(void **state) {
    (void)state;
    static const char *const rows[] = {"full",   "quantized", "kivi",  "window",   "h2o",     "scissorhands",
                                       "snapkv", "keyformer", "tova",  "expected", "keydiff", "l2norm",
                                       "lagkv",  "kvzip",     "alisa", "zipcache", "random"};
    static float outputs[2][OUTPUT];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        static uint64_t sums[2][40];
        for (int threads = 1; threads <= 2; threads++) {
            world w;
            open_world(&w, threads);
            const ln_policy policy = test_policy(w.context, rows[r]);
            const ln_memory_shape shape = test_shape(&w, &policy, 1200, 0);
            ln_memory *memory;
            assert_int_equal(open_memory(&w, &shape, &memory), LINNET_OK);
            ln_random random;
            ln_random_seed(&random, 77);
            for (int step = 0; step < 30; step++) {
                uint32_t seeds[PIECE];
                const int64_t tokens = step % 5 == 4 ? 1 : 36;
                for (int64_t t = 0; t < tokens; t++) seeds[t] = (uint32_t)ln_random_u64(&random);
                assert_int_equal(feed_seeds(&w, memory, seeds, tokens, outputs[0], NULL, NULL), LINNET_OK);
                uint64_t sum = 0;
                for (int64_t i = 0; i < LAYERS * tokens * HEADS * VALUE; i++) {
                    uint32_t bits;
                    memcpy(&bits, &outputs[0][i], sizeof bits);
                    sum = (sum ^ bits) * 0x100000001b3u;
                    assert_true(isfinite(outputs[0][i]));
                }
                sums[threads - 1][step] = sum;
            }
            ln_memory_close(memory);
            assert_int_equal(linnet_memory_used(w.context), w.before);
            close_world(&w);
        }
        assert_memory_equal(sums[0], sums[1], 30 * sizeof(uint64_t));
    }
}

/* Every budget from the least on opens, and is kept to the byte. */
static void test_budgets(void **state) {
    (void)state;
    world w;
    open_world(&w, 1);
    for (int i = 0; i < POLICIES; i++) {
        const ln_policy policy = test_policy(w.context, policies[i]);
        const ln_memory_shape least = test_shape(&w, &policy, 700, 0);
        for (uint64_t more = 0, step = 1; more < 4u << 20; more += step, step += step / 3 + 1) {
            ln_memory_shape shape = least;
            shape.lane_bytes += more;
            ln_memory *memory;
            const linnet_status status = ln_memory_open(w.context, &shape, &memory);
            if (status != LINNET_OK)
                fail_msg("%s: %llu bytes and %llu more: %s", policies[i], (unsigned long long)least.lane_bytes,
                         (unsigned long long)more, linnet_last_error(w.context));
            assert_true(linnet_memory_used(w.context) - w.before <= ln_memory_bytes(&shape));
            assert_true(ln_ragged_measure(memory->lanes).bytes <= shape.lane_bytes);
            ln_memory_close(memory);
        }
        ln_memory_shape shape = least;
        ln_memory *memory;
        shape.lane_bytes = least.lane_bytes / 2;
        assert_int_equal(ln_memory_open(w.context, &shape, &memory), LINNET_ERROR_MEMORY);
        assert_null(memory);
    }
    assert_int_equal(linnet_memory_used(w.context), w.before);
    close_world(&w);
}

static void test_refused_allocations(void **state) {
    (void)state;
    for (int64_t n = 1; n < 16; n++) {
        world w;
        open_world(&w, 1);
        const ln_policy policy = test_policy(w.context, "fixed,window:sinks=4,recent=64");
        const ln_memory_shape shape = test_shape(&w, &policy, 500, 0);
        ln_memory *memory, *fork = NULL;
        w.count.fail_at = w.count.calls + n;
        linnet_status status = open_memory(&w, &shape, &memory);
        if (status == LINNET_OK) status = ln_memory_fork(memory, &fork);
        if (status != LINNET_OK) assert_true(*linnet_last_error(w.context) != 0 && !fork);
        ln_memory_close(fork);
        ln_memory_close(memory);
        assert_int_equal(linnet_memory_used(w.context), w.before);
        close_world(&w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budgets), cmocka_unit_test(test_full),    cmocka_unit_test(test_kept),
        cmocka_unit_test(test_forks),   cmocka_unit_test(test_threads), cmocka_unit_test(test_refused_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
