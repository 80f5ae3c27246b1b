/* Butterfly products: what can be written down against its sum, gradients against differences, learning Fourier from
 * nearby. Walsh-Hadamard: dense and sparse. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "attention_run.h"
#include "base/random.h"
#include "linnet/transform.h"

static const double TURN = 6.283185307179586476925;

static float *normal_floats(int64_t count, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    float *x = malloc((size_t)(count + 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) x[i] = (float)ln_random_normal(&random);
    return x;
}

/* Entry (k, j) of the matrix of a kind. */
static double entry_of(linnet_butterfly_kind kind, int64_t n, int64_t k, int64_t j, const float *kernel,
                       bool imaginary) {
    const double angle = -TURN * (double)(j * k % n) / (double)n;
    switch (kind) {
    case LINNET_BUTTERFLY_IDENTITY:
        return imaginary ? 0 : k == j;
    case LINNET_BUTTERFLY_HADAMARD:
        return imaginary ? 0 : (__builtin_parityll((unsigned long long)(j & k)) ? -1 : 1) / sqrt((double)n);
    case LINNET_BUTTERFLY_FOURIER:
        return imaginary ? sin(angle) : cos(angle);
    case LINNET_BUTTERFLY_COSINE:
        return cos(TURN / 2 * ((double)j + 0.5) * (double)k / (double)n);
    case LINNET_BUTTERFLY_CONVOLUTION:
        return imaginary ? 0 : (double)kernel[(k - j + n) % n];
    }
    return 0;
}

static void kind_is_right(linnet_butterfly_kind kind, int depth, bool tied, bool complex_numbers) {
    linnet_butterfly_settings s = linnet_butterfly_settings_default(depth);
    s.tied = tied;
    s.complex_numbers = complex_numbers;
    s.products = 2;
    const int64_t n = (int64_t)1 << depth, row = complex_numbers ? 2 * n : n;
    enum { ROWS = 3 };
    float *factors = normal_floats(linnet_butterfly_factors(&s), 1),
          *choices = normal_floats(linnet_butterfly_choices(&s), 2), *kernel = normal_floats(n, 3),
          *x = normal_floats(ROWS * row, 4), *y = normal_floats(ROWS * row, 5);
    if (kind == LINNET_BUTTERFLY_COSINE)
        for (int64_t i = 0; i < ROWS * row; i++)
            if (i % row >= n) x[i] = 0;
    linnet_context *context = test_context(3, 2);
    assert_int_equal(linnet_butterfly_set(context, &s, kind, kernel, factors, choices), LINNET_OK);
    assert_int_equal(linnet_butterfly_forward(context, &s, factors, choices, ROWS, x, y), LINNET_OK);
    for (int r = 0; r < ROWS; r++)
        for (int64_t k = 0; k<n; k += n> 64 ? 7 : 1) {
            double re = 0, im = 0, size = 0;
            for (int64_t j = 0; j < n; j++) {
                const double a = entry_of(kind, n, k, j, kernel, false), b = entry_of(kind, n, k, j, kernel, true);
                const double u = (double)x[r * row + j], v = complex_numbers ? (double)x[r * row + n + j] : 0;
                re += a * u - b * v;
                im += a * v + b * u;
                size += (a * a + b * b) * (u * u + v * v);
            }
            const double allowed = 1e-6 * (1 + 3 * sqrt(size)) * (1 + depth);
            assert_true(fabs((double)y[r * row + k] - re) < allowed);
            if (complex_numbers && kind != LINNET_BUTTERFLY_COSINE)
                assert_true(fabs((double)y[r * row + n + k] - im) < allowed);
        }
    free(factors);
    free(choices);
    free(kernel);
    free(x);
    free(y);
}

static void known_transforms(void **state) {
    (void)state;
    for (int depth = 0; depth <= 10; depth += depth < 4 ? 1 : 3)
        for (int tied = 0; tied < 2; tied++)
            for (int kind = LINNET_BUTTERFLY_IDENTITY; kind <= LINNET_BUTTERFLY_CONVOLUTION; kind++) {
                if (depth == 0 && kind > LINNET_BUTTERFLY_FOURIER) continue;
                kind_is_right((linnet_butterfly_kind)kind, depth, tied, true);
                if (kind < LINNET_BUTTERFLY_FOURIER) kind_is_right((linnet_butterfly_kind)kind, depth, tied, false);
            }
}

/* ---- gradients ---- */

typedef struct product {
    linnet_butterfly_settings s;
    int64_t rows, row, factor_count, choice_count;
    float *factors, *choices, *x, *weight, *y;
} product;

static double loss_of(const product *p) {
    assert_int_equal(linnet_butterfly_forward(test_context(3, 1), &p->s, p->factors, p->choices, p->rows, p->x, p->y),
                     LINNET_OK);
    double sum = 0;
    for (int64_t i = 0; i < p->rows * p->row; i++) sum += (double)p->y[i] * (double)p->weight[i];
    return sum;
}

/* All is linear in one number, so differences need not be small. */
static void check_slopes(const product *p, float *values, const float *gradient, int64_t count) {
    for (int64_t i = 0; i<count; i += count> 60 ? count / 41 : 1) {
        const float before = values[i];
        values[i] = before + 0.5f;
        const double more = loss_of(p);
        values[i] = before - 0.5f;
        const double less = loss_of(p);
        values[i] = before;
        assert_true(fabs(more - less - (double)gradient[i]) < 2e-4 * (1 + fabs(more) + fabs(less)));
    }
}

static void gradients(void **state) {
    (void)state;
    for (int variant = 0; variant < 8; variant++) {
        product p = {.s = linnet_butterfly_settings_default(variant % 2 ? 3 : 4), .rows = variant < 2 ? 1 : 11};
        p.s.complex_numbers = variant & 2;
        p.s.tied = variant & 4;
        p.s.products = variant & 1 ? 2 : 1;
        p.row = ((int64_t)1 << p.s.levels) * (p.s.complex_numbers ? 2 : 1);
        p.factor_count = linnet_butterfly_factors(&p.s);
        p.choice_count = linnet_butterfly_choices(&p.s);
        p.factors = normal_floats(p.factor_count, 1);
        p.choices = normal_floats(p.choice_count, 2);
        p.x = normal_floats(p.rows * p.row, 3);
        p.weight = normal_floats(p.rows * p.row, 4);
        p.y = normal_floats(p.rows * p.row, 5);
        float *first[3] = {0};
        for (int threads = 1; threads <= 3; threads++) {
            float *dx = normal_floats(p.rows * p.row, 6), *factors = normal_floats(p.factor_count, 7),
                  *choices = normal_floats(p.choice_count, 8);
            assert_int_equal(linnet_butterfly_backward(test_context(3, threads), &p.s, p.factors, p.choices, p.rows,
                                                       p.x, p.weight, dx, factors, choices),
                             LINNET_OK);
            if (threads == 1) {
                check_slopes(&p, p.x, dx, p.rows * p.row);
                check_slopes(&p, p.factors, factors, p.factor_count);
                check_slopes(&p, p.choices, choices, p.choice_count);
                first[0] = dx, first[1] = factors, first[2] = choices;
                continue;
            }
            assert_memory_equal(first[0], dx, (size_t)(p.rows * p.row) * sizeof *dx);
            assert_memory_equal(first[1], factors, (size_t)p.factor_count * sizeof *dx);
            assert_memory_equal(first[2], choices, (size_t)p.choice_count * sizeof *dx);
            free(dx);
            free(factors);
            free(choices);
        }
        for (int i = 0; i < 3; i++) free(first[i]);
        free(p.factors);
        free(p.choices);
        free(p.x);
        free(p.weight);
        free(p.y);
    }
}

/* Factors some way off Fourier's find it again: all of the matrix as rows, Adam. */
static void learns_fourier(void **state) {
    (void)state;
    enum { LEVELS_OF_IT = 4, N = 1 << LEVELS_OF_IT, STEPS = SLOW ? 300 : 3000 };
    linnet_butterfly_settings s = linnet_butterfly_settings_default(LEVELS_OF_IT);
    s.complex_numbers = true;
    const int64_t count = linnet_butterfly_factors(&s);
    float *target = normal_floats(count, 1), *choices = normal_floats(linnet_butterfly_choices(&s), 1),
          *factors = normal_floats(count, 2), *gradient = normal_floats(count, 3), *first = normal_floats(count, 3),
          *second = normal_floats(count, 3);
    float x[N * 2 * N] = {0}, wanted[N * 2 * N], y[N * 2 * N], dy[N * 2 * N];
    linnet_context *context = test_context(3, 1);
    assert_int_equal(linnet_butterfly_set(context, &s, LINNET_BUTTERFLY_FOURIER, NULL, target, choices), LINNET_OK);
    for (int i = 0; i < N; i++) x[i * 2 * N + i] = 1;
    assert_int_equal(linnet_butterfly_forward(context, &s, target, choices, N, x, wanted), LINNET_OK);
    for (int64_t i = 0; i < count; i++) {
        factors[i] = target[i] + 0.3f * factors[i];
        first[i] = second[i] = 0;
    }
    double error = 0;
    for (int step = 1; step <= STEPS; step++) {
        assert_int_equal(linnet_butterfly_forward(context, &s, factors, choices, N, x, y), LINNET_OK);
        error = 0;
        for (int i = 0; i < N * 2 * N; i++) {
            dy[i] = y[i] - wanted[i];
            error += (double)dy[i] * (double)dy[i];
        }
        error = sqrt(error / (N * N));
        assert_int_equal(linnet_butterfly_backward(context, &s, factors, choices, N, x, dy, NULL, gradient, NULL),
                         LINNET_OK);
        const double rate = 0.02 * pow(1e-3, (double)step / STEPS);
        for (int64_t i = 0; i < count; i++) {
            first[i] = 0.9f * first[i] + 0.1f * gradient[i];
            second[i] = 0.99f * second[i] + 0.01f * gradient[i] * gradient[i];
            factors[i] -= (float)(rate * (double)first[i] / (1 - pow(0.9, step)) /
                                  (sqrt((double)second[i] / (1 - pow(0.99, step))) + 1e-9));
        }
    }
    assert_true(error < (SLOW ? 0.3 : 1e-4));
    free(target);
    free(choices);
    free(factors);
    free(gradient);
    free(first);
    free(second);
}

/* ---- Walsh-Hadamard ---- */

static void dense_hadamard(void **state) {
    (void)state;
    for (int depth = 0; depth <= 9; depth++) {
        const int64_t n = (int64_t)1 << depth;
        float *x = normal_floats(2 * n, 1), *y = normal_floats(2 * n, 1);
        assert_int_equal(linnet_walsh_hadamard(test_context(3, 2), 2, n, y), LINNET_OK);
        for (int64_t k = 0; k < 2 * n; k++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++)
                sum += (__builtin_parityll((unsigned long long)(j & k % n)) ? -1 : 1) * (double)x[k / n * n + j];
            assert_true(fabs((double)y[k] - sum / sqrt((double)n)) < 1e-5);
        }
        free(x);
        free(y);
    }
    assert_int_equal(linnet_walsh_hadamard(test_context(3, 1), 1, 12, NULL), LINNET_ERROR_ARGUMENT);
}

typedef struct planted {
    linnet_sparse_coefficient *terms;
    int64_t count, taken;
    double noise;
    ln_random random;
} planted;

static float planted_sample(void *user, int64_t index) {
    planted *p = user;
    double sum = p->noise > 0 ? p->noise * ln_random_normal(&p->random) : 0;
    for (int64_t i = 0; i < p->count; i++)
        sum += __builtin_parityll((unsigned long long)(p->terms[i].index & index)) ? -p->terms[i].value
                                                                                   : p->terms[i].value;
    p->taken++;
    return (float)sum;
}

/* Times that all of `count` coefficients of size 1 are found and nothing else. */
static int recovered(int depth, int64_t count, double noise, int trials, int64_t *samples) {
    int right = 0;
    for (int trial = 0; trial < trials; trial++) {
        planted p = {.count = count, .noise = noise};
        ln_random_seed(&p.random, (uint64_t)(100 * depth + trial));
        p.terms = calloc((size_t)count, sizeof *p.terms);
        linnet_sparse_coefficient *found = calloc((size_t)count * 2, sizeof *found);
        for (int64_t i = 0; i < count; i++) { /* all different */
            p.terms[i].index =
                (int64_t)(ln_random_below(&p.random, ((uint64_t)1 << depth) / (uint64_t)count)) * count + i;
            p.terms[i].value = ln_random_below(&p.random, 2) ? 1 : -1;
        }
        linnet_sparse_settings s = linnet_sparse_settings_default(depth, count);
        s.noise = noise;
        s.seed = (uint64_t)trial + 5;
        linnet_sparse_result result;
        assert_int_equal(
            linnet_sparse_walsh_hadamard(test_context(3, 1), &s, planted_sample, &p, found, 2 * count, &result),
            LINNET_OK);
        assert_int_equal(result.samples, p.taken);
        *samples = result.samples;
        bool fine = result.found == count && result.complete;
        for (int64_t i = 0; i < result.found; i++) {
            bool known = false;
            for (int64_t j = 0; j < count; j++)
                known |= p.terms[j].index == found[i].index &&
                         fabs(p.terms[j].value - found[i].value) < (noise > 0 ? 0.3 : 1e-4);
            fine &= known;
            if (i > 0) assert_true(found[i].index > found[i - 1].index);
        }
        right += fine;
        free(p.terms);
        free(found);
    }
    return right;
}

static void sparse_hadamard(void **state) {
    (void)state;
    const int trials = SLOW ? 4 : 40;
    int64_t samples, before = 0;
    for (int depth = 16; depth <= 40; depth += 8) {
        assert_true(recovered(depth, 20, 0, trials, &samples) >= trials * 98 / 100);
        assert_true(samples < (int64_t)1 << depth);
        assert_true(before == 0 || samples < 2 * before); /* grows with the logarithm of n */
        before = samples;
    }
    assert_true(recovered(20, 16, 1.0, trials, &samples) >= trials * 95 / 100);
    assert_true(recovered(16, 1, 0, trials, &samples) == trials);
}

/* Far more coefficients than were announced: said, not passed over. */
static void sparse_failure(void **state) {
    (void)state;
    planted p = {.count = 200};
    ln_random_seed(&p.random, 3);
    p.terms = calloc(200, sizeof *p.terms);
    for (int64_t i = 0; i < 200; i++) p.terms[i] = (linnet_sparse_coefficient){i * 37 + 1, 1};
    linnet_sparse_settings s = linnet_sparse_settings_default(16, 8);
    linnet_sparse_coefficient found[16];
    linnet_sparse_result result;
    assert_int_equal(linnet_sparse_walsh_hadamard(test_context(3, 1), &s, planted_sample, &p, found, 16, &result),
                     LINNET_OK);
    assert_false(result.complete);
    assert_int_equal(linnet_sparse_walsh_hadamard(test_context(3, 1), &s, planted_sample, &p, found, 7, &result),
                     LINNET_ERROR_ARGUMENT);
    free(p.terms);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_transforms), cmocka_unit_test(gradients),
                                       cmocka_unit_test(learns_fourier),   cmocka_unit_test(dense_hadamard),
                                       cmocka_unit_test(sparse_hadamard),  cmocka_unit_test(sparse_failure)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
