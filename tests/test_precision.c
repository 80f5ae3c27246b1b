/* Tokens against bits by brute force; the order of channels keeps products and makes blocks round better; heads that
 * repeat are found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "lane.h"
#include "memory/heads.h"
#include "memory/precision.h"

/* ---- tokens and bits ---- */

static double mass_at(const double *mass, int64_t tokens, double n) {
    const double place = n * 64 / (double)tokens;
    const int i = (int)fmin(63, floor(place));
    const double below = i ? mass[i - 1] : 0;
    return below + ((i == 63 ? 1 : mass[i]) - below) * (place - i);
}

static void test_solve(void **state) {
    (void)state;
    enum { TOKENS = 640 };
    ln_random random;
    ln_random_seed(&random, 1);
    for (int round = 0; round < 200; round++) {
        double mass[64], left = 1;
        const double power = 0.05 + ln_random_unit(&random);
        for (int i = 0; i < 64; i++) mass[i] = pow((i + 1) / 64.0, power);
        const ln_precision_option options[] = {{512, 0},
                                               {272, 0.004 * ln_random_unit(&random)},
                                               {144, 0.05 * ln_random_unit(&random)},
                                               {80, 0.3 * ln_random_unit(&random)}};
        const double bytes = ln_random_unit(&random) * 1.1 * TOKENS * 512;
        for (int h = 0; h < 4; h++) {
            for (int l = h; l < 4; l++) {
                for (int64_t n = 0; n <= TOKENS; n++) {
                    if ((double)n * options[h].bytes > bytes) break;
                    const double more =
                        fmin((double)(TOKENS - n), floor((bytes - (double)n * options[h].bytes) / options[l].bytes));
                    const double p1 = mass_at(mass, TOKENS, (double)n), p2 = mass_at(mass, TOKENS, (double)n + more);
                    left = fmin(left, options[h].error * p1 + options[l].error * (p2 - p1) + 1 - p2);
                }
            }
        }
        const ln_precision_choice c = ln_precision_solve(options, 4, bytes, TOKENS, mass);
        const double spent = (c.high < 0 ? 0 : (double)c.high_tokens * options[c.high].bytes) +
                             (c.low < 0 ? 0 : (double)c.low_tokens * options[c.low].bytes);
        assert_true(spent <= bytes * (1 + 1e-9) && c.high_tokens + c.low_tokens <= TOKENS);
        if (!(c.loss <= left + 0.004)) fprintf(stderr, "%g instead of %g\n", c.loss, left); /* whole tokens */
        assert_true(c.loss <= left + 0.004 && c.loss >= left - 1e-9);
    }
    const double line[64] = {0};
    const ln_precision_option one = {100, 0.1};
    ln_precision_choice c = ln_precision_solve(&one, 1, 1e9, TOKENS, line);
    assert_true(c.high == 0 && c.high_tokens == TOKENS && c.low == -1 && fabs(c.loss - 0.1) < 1e-12);
    c = ln_precision_solve(&one, 1, 50, TOKENS, line);
    assert_true(c.high == -1 && c.low == -1 && c.loss == 1);
    c = ln_precision_solve(&one, 1, 1e9, 0, line);
    assert_true(c.high == -1);
}

/* As published: with errors of 4 bits that are small, and of 2 bits that are not, four times the tokens win at 4 bits.
 */
static void test_four_bits(void **state) {
    (void)state;
    double mass[64];
    for (int i = 0; i < 64; i++) mass[i] = pow((i + 1) / 64.0, 0.4);
    const ln_precision_option options[] = {{512, 0}, {272, 0.001}, {144, 0.01}, {80, 0.4}};
    const ln_precision_choice c = ln_precision_solve(options, 4, 512 * 100, 1000, mass);
    assert_true((c.high == 2 || c.low == 2) && c.high_tokens + c.low_tokens > 300);
}

/* ---- channels ---- */

enum { SIZE = 128, ROWS = 200 };

static double dot(const float *a, const float *b) {
    double sum = 0;
    for (int i = 0; i < SIZE; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Planted outliers: products are kept, and errors of products with keys in 4 bits fall. */
static void test_channels(void **state) {
    (void)state;
    static float keys[ROWS][SIZE], query[SIZE], moved[SIZE], moved_query[SIZE], rounded[SIZE];
    ln_random random;
    ln_random_seed(&random, 2);
    for (int rotated = 0; rotated <= SIZE; rotated += SIZE / 2) {
        for (int half = 0; half < 2; half++) {
            float amplitude[SIZE] = {0};
            int32_t order[SIZE];
            int seen[SIZE] = {0};
            for (int t = 0; t < ROWS; t++)
                for (int i = 0; i < SIZE; i++)
                    keys[t][i] = (float)ln_random_normal(&random) * (i % 32 == 5 || i % 32 == 21 ? 8.0f : 1.0f);
            ln_channels_observe(amplitude, keys[0], ROWS, SIZE, SIZE);
            ln_channels_order(amplitude, SIZE, rotated, half, order);
            for (int i = 0; i < SIZE; i++) seen[order[i]]++;
            for (int i = 0; i < SIZE; i++) assert_int_equal(seen[i], 1);
            for (int i = 0; i < rotated / 2; i++) { /* pairs stay pairs */
                const int a = half ? i : 2 * i, b = half ? i + rotated / 2 : 2 * i + 1;
                assert_int_equal(order[b] - order[a], half ? rotated / 2 : 1);
                assert_true(order[b] < rotated);
            }
            double plain = 0, grouped = 0;
            for (int t = 0; t < ROWS; t++) {
                for (int i = 0; i < SIZE; i++) query[i] = (float)ln_random_normal(&random);
                ln_channels_apply(order, SIZE, query, moved_query);
                ln_channels_apply(order, SIZE, keys[t], moved);
                assert_true(fabs(dot(query, keys[t]) - dot(moved_query, moved)) < 1e-9);
                ln_block_float(keys[t], SIZE, 16, 4, rounded);
                plain += pow(dot(query, rounded) - dot(query, keys[t]), 2);
                ln_block_float(moved, SIZE, 16, 4, rounded);
                grouped += pow(dot(moved_query, rounded) - dot(moved_query, moved), 2);
            }
            if (!(grouped < 0.8 * plain)) fprintf(stderr, "%d %d: %g %g\n", rotated, half, grouped, plain);
            assert_true(grouped < 0.8 * plain);
        }
    }
}

static void test_block_float(void **state) {
    (void)state;
    const float x[] = {1, -0.3f, 0.06f, -1.9f, 0, 0, 0, 0, NAN, 1, 2, 3, 1e-38f, INFINITY, 0, 0, 3};
    float y[17];
    ln_block_float(x, 17, 4, 4, y); /* steps of 1/4; 0; NaN; NaN; a part: 1/2 */
    assert_true(y[0] == 1 && y[1] == -0.25f && y[2] == 0 && y[3] == -1.75f);
    for (int i = 4; i < 8; i++) assert_true(y[i] == 0);
    for (int i = 8; i < 16; i++) assert_true(y[i] != y[i]);
    assert_true(y[16] == 3);
    for (int bits = 2; bits < 16; bits++) {
        ln_block_float(x, 4, 4, bits, y);
        for (int i = 0; i < 4; i++) assert_true(fabs((double)(y[i] - x[i])) <= ldexp(1, 2 - bits));
    }
}

/* ---- heads ---- */

/* A text of 40 random tokens, four times; head 0 asks for the same token, head 1 for what followed it, 2 for nothing,
 * 3 for the token before: what is found is what the matrix holds, and the table has the first two. */
static void test_heads(void **state) {
    (void)state;
    enum { PERIOD = 40, ROUNDS = 4, TEXT = PERIOD * ROUNDS, GROUP = 4, KEY = 64 };
    lane l;
    lane_open(&l, 9, ln_cpu_detect(), GROUP, KEY, 32);
    float content[PERIOD][KEY / 2];
    for (int t = 0; t < PERIOD; t++)
        for (int i = 0; i < KEY / 2; i++) content[t][i] = lane_number(&l);
    for (int t = 0; t < TEXT; t++) {
        for (int i = 0; i < KEY / 2; i++) {
            float *q = l.query + t * GROUP * KEY;
            const float own = content[t % PERIOD][i];
            l.key[t * KEY + i] = own;
            l.key[t * KEY + KEY / 2 + i] = content[(t + PERIOD - 1) % PERIOD][i];
            for (int h = 0; h < GROUP; h++) {
                q[h * KEY + i] = h == 0 ? 4 * own : 0;
                q[h * KEY + KEY / 2 + i] = h == 1 ? 4 * own : 0;
                if (h == 3) q[h * KEY + i] = 4 * content[(t + PERIOD - 1) % PERIOD][i];
            }
        }
    }
    lane_append(&l, TEXT);
    static float lse[TEXT * GROUP];
    double *matrix = lane_matrix(&l, TEXT, lse), echo[GROUP], induction[GROUP];
    const ln_columns columns = {.kernels = &l.kernels,
                                .view = &l.view,
                                .counts = l.counts,
                                .pages = l.pages,
                                .group = GROUP,
                                .key_size = KEY,
                                .scale = l.scale,
                                .tokens = TEXT,
                                .query = l.query,
                                .query_stride = GROUP * KEY,
                                .query_head_stride = KEY,
                                .log_sum_exp = lse,
                                .log_sum_exp_stride = GROUP};
    void *workspace = aligned_alloc(64, ln_columns_workspace(KEY));
    ln_head_echo(&columns, PERIOD, workspace, echo, induction);
    for (int h = 0; h < GROUP; h++) {
        double same = 0, next = 0;
        for (int t = PERIOD; t < TEXT; t++) {
            for (int k = t - PERIOD; k >= 0; k -= PERIOD) {
                same += matrix[(t * GROUP + h) * 32 * l.pages + k] / (TEXT - PERIOD);
                next += matrix[(t * GROUP + h) * 32 * l.pages + k + 1] / (TEXT - PERIOD);
            }
        }
        assert_true(fabs(echo[h] - same) < 1e-5 && fabs(induction[h] - next) < 1e-5);
    }
    assert_true(echo[0] > 0.5 && induction[1] > 0.8 && echo[1] < 0.1 && induction[0] < 0.1);
    assert_true(echo[2] < 0.1 && induction[2] < 0.1 && echo[3] < 0.1 && induction[3] < 0.1);
    uint8_t kinds[GROUP];
    ln_head_razor(echo, induction, GROUP, 1, kinds);
    assert_true(kinds[0] && kinds[1] && !kinds[2] && !kinds[3]);
    const double figures[] = {0.1, 0.9, 0.5, 0.5, NAN, 0.2, 0, 0};
    memset(kinds, 0, sizeof kinds);
    ln_head_table(figures, 4, 2, 0.5, kinds);
    assert_true(kinds[0] && kinds[1] && !kinds[2] && !kinds[3]);
    ln_head_table(figures, 4, 2, 1, kinds);
    assert_true(kinds[2] && kinds[3]);
    free(workspace);
    free(matrix);
    lane_close(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_solve), cmocka_unit_test(test_four_bits),
                                       cmocka_unit_test(test_channels), cmocka_unit_test(test_block_float),
                                       cmocka_unit_test(test_heads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
