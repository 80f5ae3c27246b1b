/* What each key was given, against attention's matrix in float64: sums, maxima, logarithms, chosen rows, pages of
 * several layouts and not full, few and many rows, long keys; worst cases; the same bits in any order of keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "lane.h"
#include "mixer/columns.h"

static ln_columns columns_of(const lane *l, int64_t tokens, const float *lse) {
    return (ln_columns){.kernels = &l->kernels,
                        .view = &l->view,
                        .counts = l->counts,
                        .pages = l->pages,
                        .bias = l->biased ? l->bias : NULL,
                        .group = l->group,
                        .key_size = l->key_size,
                        .scale = l->scale,
                        .soft_cap = l->soft_cap,
                        .tokens = tokens,
                        .position = lane_end(l) - tokens,
                        .query = l->query + (l->text - tokens) * l->group * l->key_size,
                        .query_stride = l->group * l->key_size,
                        .query_head_stride = l->key_size,
                        .log_sum_exp = lse,
                        .log_sum_exp_stride = l->group};
}

static void run(const ln_columns *c, ln_columns_take take, void *taker) {
    void *workspace = aligned_alloc(64, ln_columns_workspace(c->key_size));
    memset(workspace, 0xff, ln_columns_workspace(c->key_size));
    ln_columns_run(c, workspace, take, taker);
    free(workspace);
}

/* Relative to the largest; products of bf16 pages in float32, exponentials. */
static void check(const lane *l, const float *found, const double *wanted, double tolerance) {
    double most = 0;
    for (int64_t i = 0; i < 32 * l->pages; i++) most = fmax(most, fabs(wanted[i]));
    for (int64_t i = 0; i < 32 * l->pages; i++)
        if (!(fabs((double)found[i] - wanted[i]) <= tolerance * most)) {
            fprintf(stderr, "key %d: %g instead of %g\n", (int)i, (double)found[i], wanted[i]);
            fail();
        }
}

static void check_lane(const lane *l, int64_t tokens) {
    const int64_t slots = 32 * l->pages, rows = tokens * l->group;
    float *lse = malloc(sizeof *lse * (size_t)rows), *found = calloc((size_t)(2 * slots), sizeof *found);
    double *matrix = lane_matrix(l, tokens, lse), *wanted = calloc((size_t)(2 * slots), sizeof *wanted);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < slots; i++) {
            wanted[i] += matrix[r * slots + i];
            wanted[slots + i] = fmax(wanted[slots + i], matrix[r * slots + i]);
        }
    }
    ln_columns c = columns_of(l, tokens, lse);
    run(&c, ln_columns_add, found);
    run(&c, ln_columns_most, found + slots);
    check(l, found, wanted, 2e-5);
    check(l, found + slots, wanted + slots, 2e-5);
    free(lse);
    free(found);
    free(matrix);
    free(wanted);
}

static const unsigned levels[] = {0, ~0u};

static void test_sums(void **state) {
    (void)state;
    static const int64_t shapes[][4] = {{1, 64, 64, 40}, {4, 64, 32, 90}, {2, 32, 32, 1},
                                        {8, 128, 64, 1}, {3, 40, 24, 7},  {2, 288, 64, 50}};
    for (size_t n = 0; n < sizeof shapes / sizeof *shapes; n++) {
        for (size_t level = 0; level < 2; level++) {
            lane l;
            lane_open(&l, 17 + n, levels[level] & ln_cpu_detect(), shapes[n][0], shapes[n][1], shapes[n][2]);
            l.used_kinds = n % 2 ? LANE_KINDS : 2;
            lane_append(&l, 333);
            lane_repack(&l, NULL, true);
            lane_append(&l, shapes[n][3]);
            check_lane(&l, shapes[n][3]);
            l.biased = true;
            l.soft_cap = n % 2 ? 5 : 0;
            check_lane(&l, shapes[n][3] > 3 ? 3 : 1);
            lane_close(&l);
        }
    }
}

static void test_small(void **state) {
    (void)state;
    lane l;
    lane_open(&l, 3, ln_cpu_detect(), 2, 64, 64);
    lane_append(&l, 1);
    check_lane(&l, 1);
    float lse = 0, none[32] = {0};
    ln_columns c = columns_of(&l, 0, &lse);
    run(&c, ln_columns_add, none);
    c = columns_of(&l, 1, &lse);
    c.pages = 0;
    run(&c, ln_columns_add, none);
    assert_true(none[0] == 0);
    lane_close(&l);
}

/* ---- logarithms, chosen rows, what is seen ---- */

typedef struct keeper {
    float *rows; /* [tokens * group][32 pages] */
    int64_t slots;
    bool right;
} keeper;

static void keep(void *taker, const ln_columns *c, const ln_columns_block *block) {
    keeper *k = taker;
    for (int64_t r = 0; r < block->rows; r++) {
        const float *x = block->weights + r * LN_ATTEND_STRIDE;
        const int64_t seen = ln_columns_seen(c, block, r);
        memcpy(k->rows + (block->row + r) * k->slots + block->key, x, (size_t)block->count * sizeof *x);
        for (int64_t i = 0; i < block->count; i++) {
            const bool hidden = i >= seen || (block->key + i) % 32 >= c->counts[(block->key + i) / 32];
            k->right = k->right && (!hidden || x[i] == (c->logarithms ? -INFINITY : 0));
        }
    }
}

static void test_rows(void **state) {
    (void)state;
    enum { TOKENS = 70, CHOSEN = 21 };
    lane l;
    lane_open(&l, 5, ln_cpu_detect(), 3, 64, 64);
    lane_append(&l, 200);
    lane_repack(&l, NULL, true);
    lane_append(&l, TOKENS);
    const int64_t slots = 32 * l.pages;
    static float lse[TOKENS * 3];
    int32_t chosen[CHOSEN];
    for (int i = 0; i < CHOSEN; i++) chosen[i] = i * 10 / 3;
    double *matrix = lane_matrix(&l, TOKENS, lse);
    keeper k = {calloc((size_t)(TOKENS * 3 * slots), sizeof(float)), slots, true};
    ln_columns c = columns_of(&l, TOKENS, lse);
    c.chosen = chosen;
    c.tokens = CHOSEN;
    for (int logarithms = 0; logarithms < 2; logarithms++) {
        for (int64_t i = 0; i < TOKENS * 3 * slots; i++) k.rows[i] = logarithms ? -INFINITY : 0;
        c.logarithms = logarithms;
        run(&c, keep, &k);
        assert_true(k.right);
        for (int64_t r = 0; r < CHOSEN * 3; r++) {
            for (int64_t i = 0; i < slots; i++) {
                const double wanted = matrix[(chosen[r / 3] * 3 + r % 3) * slots + i];
                const double found = (double)k.rows[r * slots + i];
                assert_true(fabs((logarithms ? exp(found) : found) - wanted) < 2e-5);
            }
        }
    }
    free(matrix);
    free(k.rows);
    lane_close(&l);
}

/* ---- order and worst cases ---- */

/* Sums by position do not change by a bit when tokens lie elsewhere. */
static void test_order(void **state) {
    (void)state;
    enum { TEXT = 400, TOKENS = 33 };
    lane l;
    lane_open(&l, 7, ln_cpu_detect(), 2, 64, 64);
    lane_append(&l, TEXT);
    bool keep_all[LANE_TEXT];
    memset(keep_all, 1, sizeof keep_all);
    static float lse[TOKENS * 2], first[LANE_TEXT];
    for (int turn = 0; turn < 3; turn++) {
        l.pages = 0, l.text = 0;
        lane_append(&l, TEXT);
        lane_repack(&l, keep_all, turn > 0);
        lane_append(&l, TOKENS);
        if (turn == 0) free(lane_matrix(&l, TOKENS, lse));
        float *sums = calloc((size_t)(32 * l.pages), sizeof *sums);
        const ln_columns c = columns_of(&l, TOKENS, lse);
        run(&c, ln_columns_add, sums);
        for (int64_t i = 0; i < 32 * l.pages; i++) {
            if (!lane_there(&l, i)) continue;
            if (turn == 0) first[l.positions[i]] = sums[i];
            assert_true(first[l.positions[i]] == sums[i]);
        }
        free(sums);
    }
    lane_close(&l);
}

static void test_worst(void **state) {
    (void)state;
    lane l;
    lane_open(&l, 11, ln_cpu_detect(), 2, 64, 64);
    l.scale = 1e4f; /* logits of 1e5 */
    for (int i = 0; i < 64; i++) l.key[5 * 64 + i] = NAN;
    l.key[6 * 64] = INFINITY;
    l.key[7 * 64] = -INFINITY;
    lane_append(&l, 100);
    static float lse[100 * 2], sums[2][LANE_SLOTS];
    for (int i = 0; i < 200; i++) lse[i] = i % 5 == 0 ? -INFINITY : i % 5 == 1 ? NAN : i % 5 == 2 ? INFINITY : 3;
    for (int logarithms = 0; logarithms < 2; logarithms++) {
        ln_columns c = columns_of(&l, 100, lse);
        c.logarithms = logarithms;
        memset(sums, 0, sizeof sums);
        run(&c, logarithms ? ln_columns_most : ln_columns_add, sums[0]);
        for (int64_t i = 0; i < 32 * l.pages; i++) assert_true(sums[0][i] >= 0 && sums[0][i] <= 200);
    }
    lane_close(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums), cmocka_unit_test(test_small),
                                       cmocka_unit_test(test_rows), cmocka_unit_test(test_order),
                                       cmocka_unit_test(test_worst)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
