/* Mergers: tokens that are the same merge without a change of attention; the mean is the mean; the most similar is
 * found as by brute force; worst cases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/random.h"
#include "memory/merge.h"

enum { KEY = 64, VALUE = 24, KEPT = 75, EVICTED = 130 };

typedef struct scene {
    ln_kernels kernels;
    float keys[KEPT][KEY], values[KEPT][VALUE], counts[KEPT];
    float evicted_keys[EVICTED][KEY], evicted_values[EVICTED][VALUE], evicted_counts[EVICTED];
    int32_t into[EVICTED];
    ln_merge merge;
} scene;

static void make(scene *s, ln_random *random) {
    ln_kernels_choose(ln_cpu_detect(), &s->kernels);
    for (int i = 0; i < KEPT; i++) {
        for (int c = 0; c < KEY; c++) s->keys[i][c] = (float)ln_random_normal(random);
        for (int c = 0; c < VALUE; c++) s->values[i][c] = (float)ln_random_normal(random);
        s->counts[i] = 1;
    }
    for (int i = 0; i < EVICTED; i++) {
        for (int c = 0; c < KEY; c++) s->evicted_keys[i][c] = (float)ln_random_normal(random);
        for (int c = 0; c < VALUE; c++) s->evicted_values[i][c] = (float)ln_random_normal(random);
        s->evicted_counts[i] = (float)(1 + i % 3);
    }
    s->merge = (ln_merge){.kernels = &s->kernels,
                          .key_size = KEY,
                          .value_size = VALUE,
                          .kept = KEPT,
                          .keys = s->keys[0],
                          .values = s->values[0],
                          .counts = s->counts,
                          .evicted = EVICTED,
                          .evicted_keys = s->evicted_keys[0],
                          .evicted_values = s->evicted_values[0],
                          .evicted_counts = s->evicted_counts,
                          .similar = -2,
                          .into = s->into};
}

static void run(scene *s, const char *name) {
    s->merge.workspace = aligned_alloc(64, ln_merge_workspace(KEY));
    memset(s->merge.workspace, 0xff, ln_merge_workspace(KEY));
    ln_merger_of(name)->merge(&s->merge);
    free(s->merge.workspace);
}

static double cosine(const float *a, const float *b) {
    double aa = 0, bb = 0, ab = 0;
    for (int i = 0; i < KEY; i++) {
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
        ab += (double)a[i] * (double)b[i];
    }
    return ab / sqrt(aa * bb);
}

static void test_similar(void **state) {
    (void)state;
    static scene s, before;
    ln_random random;
    ln_random_seed(&random, 1);
    for (int round = 0; round < 3; round++) {
        make(&s, &random);
        s.merge.similar = round == 2 ? 0.3 : -2;
        before = s;
        run(&s, "ems");
        static double key[KEPT][KEY], value[KEPT][VALUE], count[KEPT];
        int gone = 0;
        for (int i = 0; i < KEPT; i++) {
            count[i] = 1;
            for (int c = 0; c < KEY; c++) key[i][c] = (double)before.keys[i][c];
            for (int c = 0; c < VALUE; c++) value[i][c] = (double)before.values[i][c];
        }
        for (int i = 0; i < EVICTED; i++) {
            double best = -2;
            for (int j = 0; j < KEPT; j++) best = fmax(best, cosine(before.evicted_keys[i], before.keys[j]));
            const int j = s.into[i];
            gone += j < 0;
            if (j < 0) assert_true(best < s.merge.similar + 1e-6);
            if (j < 0) continue;
            assert_true(best >= s.merge.similar - 1e-6);
            assert_true(cosine(before.evicted_keys[i], before.keys[j]) > best - 1e-6);
            count[j] += (double)s.evicted_counts[i];
            for (int c = 0; c < KEY; c++) key[j][c] += (double)s.evicted_counts[i] * (double)s.evicted_keys[i][c];
            for (int c = 0; c < VALUE; c++) value[j][c] += (double)s.evicted_counts[i] * (double)s.evicted_values[i][c];
        }
        assert_true(round < 2 ? gone == 0 : gone > 0 && gone < EVICTED);
        for (int i = 0; i < KEPT; i++) {
            assert_true((double)s.counts[i] == count[i]);
            for (int c = 0; c < KEY; c++) assert_true(fabs((double)s.keys[i][c] - key[i][c] / count[i]) < 1e-5);
            for (int c = 0; c < VALUE; c++) assert_true(fabs((double)s.values[i][c] - value[i][c] / count[i]) < 1e-5);
        }
    }
}

/* softmax over keys with the bias log(count). */
static void attend(const float *query, int64_t n, const float *keys, const float *values, const float *counts,
                   double *output) {
    double sum = 0;
    memset(output, 0, VALUE * sizeof *output);
    for (int64_t i = 0; i < n; i++) {
        double dot = counts ? log((double)counts[i]) : 0;
        for (int c = 0; c < KEY; c++) dot += (double)query[c] * (double)keys[i * KEY + c] / 8;
        sum += exp(dot);
        for (int c = 0; c < VALUE; c++) output[c] += exp(dot) * (double)values[i * VALUE + c];
    }
    for (int c = 0; c < VALUE; c++) output[c] /= sum;
}

/* Copies of kept tokens (ems), and tokens that are all the same (compensation), leave attention as it was. */
static void test_exact(void **state) {
    (void)state;
    static scene s;
    static float keys[KEPT + EVICTED][KEY], values[KEPT + EVICTED][VALUE];
    ln_random random;
    ln_random_seed(&random, 2);
    for (int summary = 0; summary < 2; summary++) {
        make(&s, &random);
        s.merge.evicted_counts = NULL;
        for (int i = 0; i < EVICTED; i++) {
            const int from = summary ? 3 : i * 7 % KEPT;
            memcpy(s.evicted_keys[i], s.keys[from], sizeof s.keys[0]);
            memcpy(s.evicted_values[i], s.values[from], sizeof s.values[0]);
        }
        const int first = summary ? 1 : 0; /* the summary is empty, and holds anything */
        if (summary) {
            s.counts[0] = 0;
            for (int c = 0; c < KEY; c++) s.keys[0][c] = NAN;
            for (int c = 0; c < VALUE; c++) s.values[0][c] = NAN;
        }
        memcpy(keys, s.keys[first], sizeof(float) * KEY * (size_t)(KEPT - first));
        memcpy(values, s.values[first], sizeof(float) * VALUE * (size_t)(KEPT - first));
        memcpy(keys[KEPT - first], s.evicted_keys, sizeof s.evicted_keys);
        memcpy(values[KEPT - first], s.evicted_values, sizeof s.evicted_values);
        run(&s, summary ? "compensation" : "ems");
        if (summary) assert_true(s.counts[0] == EVICTED);
        for (int q = 0; q < 20; q++) {
            float query[KEY];
            double wanted[VALUE], found[VALUE];
            for (int c = 0; c < KEY; c++) query[c] = (float)(2 * ln_random_normal(&random));
            attend(query, KEPT - first + EVICTED, keys[0], values[0], NULL, wanted);
            attend(query, KEPT, s.keys[0], s.values[0], s.counts, found);
            for (int c = 0; c < VALUE; c++) assert_true(fabs(wanted[c] - found[c]) < 1e-6);
        }
    }
}

static void test_worst(void **state) {
    (void)state;
    static scene s;
    ln_random random;
    ln_random_seed(&random, 3);
    for (int n = 0; ln_merger_at(n); n++) {
        make(&s, &random);
        for (int i = 0; i < EVICTED; i += 5) s.evicted_keys[i][i % KEY] = i % 2 ? NAN : INFINITY;
        for (int i = 1; i < EVICTED; i += 5) s.evicted_values[i][3] = NAN;
        memset(s.evicted_keys[2], 0, sizeof s.evicted_keys[2]);
        memset(s.keys[4], 0, sizeof s.keys[4]);
        s.evicted_counts[3] = 0;
        run(&s, ln_merger_at(n)->name);
        for (int i = 0; i < EVICTED; i++) {
            if (i % 5 < 2) assert_int_equal(s.into[i], -1);
            assert_true(s.into[i] < KEPT);
        }
        for (int i = 0; i < KEPT; i++) {
            for (int c = 0; c < KEY; c++) assert_true(fabsf(s.keys[i][c]) < 10);
            for (int c = 0; c < VALUE; c++) assert_true(fabsf(s.values[i][c]) < 10);
        }
        s.merge.kept = 0;
        run(&s, ln_merger_at(n)->name);
        for (int i = 0; i < EVICTED; i++) assert_int_equal(s.into[i], -1);
    }
    assert_null(ln_merger_of("nothing"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_similar), cmocka_unit_test(test_exact),
                                       cmocka_unit_test(test_worst)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
