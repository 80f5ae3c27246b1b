/* Allocators: exact sums and bounds for anything, the rules on cases that are obvious or brute force, statistics. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "memory/allocate.h"

enum { LAYERS = 12, HEADS = 8, TOKENS = 300 };

static ln_policy_row no_parameters;
static const ln_policy plain = {.row = &no_parameters};

typedef struct scene {
    float scores[HEADS][TOKENS];
    const float *rows[HEADS];
    int64_t held[HEADS];
    uint8_t kinds[HEADS];
    double distance[HEADS];
    ln_statistics statistics;
    ln_head_tokens heads;
} scene;

static void make(scene *s, ln_random *random, bool ties) {
    for (int h = 0; h < HEADS; h++) {
        s->rows[h] = s->scores[h];
        s->held[h] = (int64_t)ln_random_below(random, TOKENS + 1);
        s->kinds[h] = (uint8_t)ln_random_below(random, 2);
        s->distance[h] = ln_random_unit(random);
        for (int t = 0; t < TOKENS; t++)
            s->scores[h][t] =
                ties ? (float)ln_random_below(random, 4) : (float)(ln_random_normal(random) + (double)h / 2);
    }
    s->statistics.distance = s->distance;
    s->heads = (ln_head_tokens){&plain,
                                HEADS,
                                (int64_t)ln_random_below(random, HEADS * TOKENS + 100),
                                (int64_t)ln_random_below(random, 30),
                                s->held,
                                s->rows,
                                &s->statistics,
                                s->kinds};
}

static void test_exact(void **state) {
    (void)state;
    static scene s;
    ln_random random;
    ln_random_seed(&random, 1);
    for (int i = 0; i < 3000; i++) {
        make(&s, &random, i % 2);
        if (i % 7 == 0) s.scores[3][5] = NAN, s.scores[4][6] = INFINITY, s.scores[4][7] = -INFINITY;
        const ln_allocator *allocator = i % 8 == 7 ? NULL : ln_allocator_at(i % 8);
        int64_t tokens[HEADS], sum = 0, held = 0, floor = 0;
        ln_allocate_heads(allocator, &s.heads, tokens);
        for (int h = 0; h < HEADS; h++) {
            held += s.held[h];
            floor += ln_min_i64(s.held[h], s.heads.least);
            sum += tokens[h];
        }
        assert_int_equal(sum, ln_min_i64(held, s.heads.tokens));
        for (int h = 0; h < HEADS; h++) {
            assert_true(tokens[h] >= 0 && tokens[h] <= s.held[h]);
            if (floor <= s.heads.tokens) assert_true(tokens[h] >= ln_min_i64(s.held[h], s.heads.least));
        }
    }
}

static void test_round(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 2);
    for (int i = 0; i < 1000; i++) {
        double share[HEADS], all = 0;
        int64_t tokens[HEADS], sum = 0;
        for (int h = 0; h < HEADS; h++) all += share[h] = i % 3 ? ln_random_unit(&random) : (double)(h % 3);
        const int64_t total = (int64_t)ln_random_below(&random, 1000000);
        ln_allocate_round(share, HEADS, total, 0, NULL, tokens);
        for (int h = 0; h < HEADS; h++) {
            sum += tokens[h];
            assert_true(fabs((double)tokens[h] - share[h] / all * (double)total) <= 1.01);
        }
        assert_int_equal(sum, total);
    }
    int64_t one;
    ln_allocate_round((double[]){0}, 1, 77, 0, NULL, &one);
    assert_int_equal(one, 77);
    ln_allocate_round((double[]){1}, 1, -5, 0, NULL, &one);
    assert_int_equal(one, 0);
}

/* ---- heads ---- */

static int by_score(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* AdaKV as published: each head's top 20 % of the even share are safe, then the best of all heads. */
static void test_adakv(void **state) {
    (void)state;
    static scene s;
    ln_random random;
    ln_random_seed(&random, 3);
    for (int i = 0; i < 50; i++) {
        make(&s, &random, false);
        for (int h = 0; h < HEADS; h++) s.held[h] = TOKENS;
        s.heads.least = 0;
        s.heads.tokens = HEADS * (10 + 5 * i);
        const int64_t safe = (int64_t)(0.2 * (10 + 5 * i));
        static float sorted[HEADS][TOKENS], rest[HEADS * TOKENS];
        int64_t n = 0, wanted[HEADS], tokens[HEADS];
        for (int h = 0; h < HEADS; h++) {
            memcpy(sorted[h], s.scores[h], sizeof sorted[h]);
            qsort(sorted[h], TOKENS, sizeof(float), by_score);
            for (int64_t t = safe; t < TOKENS; t++) rest[n++] = sorted[h][t];
        }
        qsort(rest, (size_t)n, sizeof *rest, by_score);
        const float last = rest[s.heads.tokens - HEADS * safe - 1];
        for (int h = 0; h < HEADS; h++) {
            wanted[h] = safe;
            while (wanted[h] < TOKENS && sorted[h][wanted[h]] >= last) wanted[h]++;
        }
        ln_allocate_heads(ln_allocator_of("adakv"), &s.heads, tokens);
        for (int h = 0; h < HEADS; h++) assert_int_equal(tokens[h], wanted[h]);
    }
}

static void test_favours(void **state) {
    (void)state;
    static scene s;
    ln_random random;
    ln_random_seed(&random, 4);
    make(&s, &random, false);
    int64_t tokens[HEADS];
    for (int h = 0; h < HEADS; h++) {
        s.held[h] = TOKENS;
        s.kinds[h] = h == 2 || h == 5;
        s.distance[h] = h == 1 ? 5 : 1;
    }
    s.heads.least = 3;
    s.heads.tokens = 400;
    ln_allocate_heads(ln_allocator_of("duo"), &s.heads, tokens);
    for (int h = 0; h < HEADS; h++) assert_int_equal(tokens[h], h == 2 || h == 5 ? 191 : 3);
    s.heads.tokens = 2 * TOKENS + 66; /* full heads hold all, the rest goes to the others */
    ln_allocate_heads(ln_allocator_of("duo"), &s.heads, tokens);
    for (int h = 0; h < HEADS; h++) assert_int_equal(tokens[h], h == 2 || h == 5 ? TOKENS : 11);
    s.heads.tokens = 160; /* a tenth of the even share is 2, below the least */
    ln_allocate_heads(ln_allocator_of("task"), &s.heads, tokens);
    for (int h = 0; h < HEADS; h++) assert_int_equal(tokens[h], h == 1 ? 139 : 3);
    s.heads.tokens = 480;
    ln_allocate_heads(ln_allocator_of("task"), &s.heads, tokens);
    assert_int_equal(tokens[1], TOKENS);
    s.heads.tokens = HEADS * TOKENS;
    for (int i = 0; ln_allocator_at(i); i++) {
        ln_allocate_heads(ln_allocator_at(i), &s.heads, tokens);
        for (int h = 0; h < HEADS; h++) assert_int_equal(tokens[h], TOKENS);
    }
}

/* ---- layers ---- */

static void test_layers(void **state) {
    (void)state;
    ln_statistics statistics[LAYERS] = {0};
    uint8_t kinds[LAYERS * HEADS];
    ln_random random;
    ln_random_seed(&random, 5);
    for (int round = 0; round < 300; round++) {
        for (int l = 0; l < LAYERS; l++) {
            statistics[l].cosines = statistics[l].masses = 1;
            statistics[l].cosine = round % 5 == 0 ? 0.5 : ln_random_unit(&random);
            double power = 0.1 + ln_random_unit(&random);
            for (int i = 0; i < LN_STATISTICS_MASS; i++) statistics[l].mass[i] = pow((i + 1) / 64.0, power);
        }
        for (int i = 0; i < LAYERS * HEADS; i++)
            kinds[i] = (uint8_t)(round % 3 == 0 ? i / HEADS == 4 : ln_random_below(&random, 2) > 0);
        const ln_layer_shares layers = {&plain, LAYERS, HEADS, statistics, kinds, 0.02 + 1.1 * ln_random_unit(&random)};
        for (int i = 0; ln_allocator_at(i); i++) {
            double share[LAYERS], sum = 0;
            ln_allocate_layers(ln_allocator_at(i), &layers, share);
            for (int l = 0; l < LAYERS; l++) {
                sum += share[l];
                assert_true(share[l] >= 0 && share[l] * LAYERS * fmin(1, layers.kept) <= 1 + 1e-9);
            }
            assert_true(fabs(sum - 1) < 1e-9);
        }
    }
    /* What is not known leaves even shares. */
    const ln_layer_shares unknown = {&plain, LAYERS, HEADS, NULL, NULL, 0.1};
    static const char *const need[] = {"squeeze", "prefix", "duo", "uniform", "adakv"};
    for (size_t i = 0; i < sizeof need / sizeof *need; i++) {
        double share[LAYERS];
        ln_allocate_layers(ln_allocator_of(need[i]), &unknown, share);
        for (int l = 0; l < LAYERS; l++) assert_true(fabs(share[l] - 1.0 / LAYERS) < 1e-12);
    }
}

static void test_pyramid(void **state) {
    (void)state;
    double share[LAYERS];
    const ln_layer_shares layers = {&plain, LAYERS, HEADS, NULL, NULL, 0.1};
    ln_allocate_layers(ln_allocator_of("pyramid"), &layers, share);
    for (int l = 0; l < LAYERS; l++) assert_true(fabs(share[l] * LAYERS - (1.95 - 1.9 * l / (LAYERS - 1))) < 1e-9);
    const ln_layer_shares most = {&plain, LAYERS, HEADS, NULL, NULL, 0.8}; /* the first layer holds the whole text */
    ln_allocate_layers(ln_allocator_of("pyramid"), &most, share);
    assert_true(fabs(share[0] * LAYERS - 1.25) < 1e-9 && fabs(share[LAYERS - 1] * LAYERS - 0.75) < 1e-9);
    const ln_layer_shares one = {&plain, 1, HEADS, NULL, NULL, 0.1};
    ln_allocate_layers(ln_allocator_of("pyramid"), &one, share);
    assert_true(share[0] == 1);
}

/* Layers that attention hardly changes get p of the even share; p = 1 is even. */
static void test_squeeze(void **state) {
    (void)state;
    ln_statistics statistics[LAYERS] = {0};
    for (int l = 0; l < LAYERS; l++) {
        statistics[l].cosines = 1;
        statistics[l].cosine = l == 3 || l == 7 ? 0.99 - l * 1e-3 : l % 2 ? 0.6 + l * 1e-3 : 0.2 - l * 1e-3;
    }
    double share[LAYERS];
    ln_layer_shares layers = {&plain, LAYERS, HEADS, statistics, NULL, 0.1};
    ln_allocate_layers(ln_allocator_of("squeeze"), &layers, share);
    for (int l = 0; l < LAYERS; l++)
        assert_true(fabs(share[l] * LAYERS - (l == 3 || l == 7 ? 0.35 : (12 - 0.7) / 10)) < 1e-9);
    const ln_policy even = {.parameter = {{"p", 1}}, .parameters = 1};
    layers.policy = &even;
    ln_allocate_layers(ln_allocator_of("squeeze"), &layers, share);
    for (int l = 0; l < LAYERS; l++) assert_true(fabs(share[l] * LAYERS - 1) < 1e-9);
}

/* Layers keep the same mass of attention, and the sum is the budget. */
static void test_prefix(void **state) {
    (void)state;
    ln_statistics statistics[LAYERS] = {0};
    for (int l = 0; l < LAYERS; l++) {
        statistics[l].masses = 1;
        for (int i = 0; i < 64; i++)
            statistics[l].mass[i] = fmin(1, (i + 1) / 64.0 * (l % 3 == 0 ? 1 : l % 3 == 1 ? 2 : 4));
    }
    const ln_layer_shares layers = {&plain, LAYERS, HEADS, statistics, NULL, 0.3};
    double share[LAYERS];
    ln_allocate_layers(ln_allocator_of("prefix"), &layers, share);
    for (int l = 0; l < LAYERS; l++) {
        const double tokens = share[l] * 0.3 * LAYERS, mass = fmin(1, tokens * (l % 3 == 0 ? 1 : l % 3 == 1 ? 2 : 4));
        assert_true(fabs(mass - 0.3 * 12 / 7) < 1e-6);
    }
}

/* ---- statistics ---- */

static void test_statistics(void **state) {
    (void)state;
    ln_statistics s = {0};
    const float before[] = {1, 0, 0, 2, 0, 0}, after[] = {1, 0, 1, 1, 5, 5};
    ln_statistics_cosine(&s, before, after, 2, 2);
    assert_true(fabs(s.cosine - (1 + sqrt(0.5)) / 2) < 1e-7);
    ln_statistics_cosine(&s, before + 4, after + 4, 1, 2); /* a row of zeros says nothing */
    assert_int_equal(s.cosines, 2);

    float weights[1000], workspace[2000];
    ln_random random;
    ln_random_seed(&random, 8);
    for (int i = 0; i < 1000; i++) weights[i] = (float)pow(ln_random_unit(&random), 8);
    ln_statistics_mass(&s, weights, 1000, workspace);
    float sorted[1000];
    memcpy(sorted, weights, sizeof sorted);
    qsort(sorted, 1000, sizeof *sorted, by_score);
    double all = 0;
    for (int i = 0; i < 1000; i++) all += (double)sorted[i];
    for (int i = 0; i < 64; i++) {
        double part = 0;
        for (int t = 0; t < 1000; t++) part += (double)sorted[t] * fmin(1, fmax(0, (i + 1) * 1000 / 64.0 - t));
        assert_true(fabs(s.mass[i] - part / all) < 1e-6);
    }
    for (int i = 0; i < 1000; i++) weights[i] = 1;
    ln_statistics_mass(&s, weights, 1000, workspace);
    assert_true(s.masses == 2 && fabs(s.mass[63] - 1) < 1e-12);
    ln_statistics_mass(&s, weights, 0, workspace);
    ln_statistics_mass(&s, (float[]){0, -1, NAN}, 3, workspace);
    assert_int_equal(s.masses, 2);

    /* 2 tokens, 4 heads of 2, groups of 2; only head 3 differs. */
    const float output[] = {1, 1, 1, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 1, 5, 1};
    double distance[2];
    ln_statistics_distance(output, 2, 8, 2, 4, 2, 2, distance);
    assert_true(fabs(distance[0] - 1) < 1e-9 && fabs(distance[1] - 2) < 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact),   cmocka_unit_test(test_round),  cmocka_unit_test(test_adakv),
        cmocka_unit_test(test_favours), cmocka_unit_test(test_layers), cmocka_unit_test(test_pyramid),
        cmocka_unit_test(test_squeeze), cmocka_unit_test(test_prefix), cmocka_unit_test(test_statistics)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
