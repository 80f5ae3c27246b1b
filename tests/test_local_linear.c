/* Local linear attention against the weighted least squares it stands for, solved in float64, and its two limits. */
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
    linnet_local_linear_settings s;
    float *query, *key, *value, *output;
    linnet_local_linear_report report;
} problem;

static int64_t numbers(int64_t tokens, int64_t heads, int64_t size) {
    return tokens * heads * size;
}

static float *normals(int64_t n, uint64_t seed, double scale) {
    float *x = malloc((size_t)n * sizeof *x + 1);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(scale * ln_random_normal(&random));
    return x;
}

static problem make(int64_t heads, int64_t shared, int64_t key_size, int64_t value_size, int64_t queries,
                    int64_t keys) {
    problem p = {.s = linnet_local_linear_settings_default()};
    p.s.heads = heads;
    p.s.key_value_heads = shared;
    p.s.key_size = key_size;
    p.s.value_size = value_size;
    p.s.queries = queries;
    p.s.keys = keys;
    p.query = normals(numbers(queries, heads, key_size), 1, 1);
    p.key = normals(numbers(keys, shared, key_size), 2, 1);
    p.value = normals(numbers(keys, shared, value_size), 3, 1);
    p.output = calloc((size_t)numbers(queries, heads, value_size) + 1, sizeof(float));
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

static void run(problem *p, int threads) {
    linnet_context *context = open_context(threads);
    const uint64_t bytes = linnet_local_linear_workspace(context, &p->s);
    assert_true(bytes > 0 || p->s.queries == 0);
    void *workspace = aligned_alloc(64, bytes);
    memset(workspace, 0xff, bytes); /* NaN: nothing may be read before it is written */
    const linnet_local_linear_tensors tensors = {.size = sizeof tensors,
                                                 .query = {p->query, 0, 0},
                                                 .key = {p->key, 0, 0},
                                                 .value = {p->value, 0, 0},
                                                 .output = {p->output, 0, 0}};
    const uint64_t used = linnet_memory_used(context);
    const linnet_status status = linnet_local_linear_forward(context, &p->s, &tensors, workspace, &p->report);
    if (status != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    assert_int_equal(linnet_memory_used(context), used);
    free(workspace);
    linnet_context_close(context);
}

/* ---- oracle ---- */

/* Solves m x = b for several columns by elimination with pivots; m [n][n], b [n][columns]. */
static void solve(double *m, double *b, int64_t n, int64_t columns) {
    for (int64_t i = 0; i < n; i++) {
        int64_t pivot = i;
        for (int64_t r = i + 1; r < n; r++)
            if (fabs(m[r * n + i]) > fabs(m[pivot * n + i])) pivot = r;
        for (int64_t c = 0; c < n; c++) {
            const double keep = m[i * n + c];
            m[i * n + c] = m[pivot * n + c];
            m[pivot * n + c] = keep;
        }
        for (int64_t c = 0; c < columns; c++) {
            const double keep = b[i * columns + c];
            b[i * columns + c] = b[pivot * columns + c];
            b[pivot * columns + c] = keep;
        }
        for (int64_t r = 0; r < n; r++) {
            if (r == i) continue;
            const double factor = m[r * n + i] / m[i * n + i];
            for (int64_t c = i; c < n; c++) m[r * n + c] -= factor * m[i * n + c];
            for (int64_t c = 0; c < columns; c++) b[r * columns + c] -= factor * b[i * columns + c];
        }
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < columns; c++) b[i * columns + c] /= m[i * n + i];
}

/* The intercept of one row: [1 mu'; mu Sigma] [a; B] = [mean value; sum p z value']. ridge < 0: softmax attention. */
static void oracle(const problem *p, int64_t token, int64_t head, double *output) {
    const linnet_local_linear_settings *s = &p->s;
    const int64_t shared = head / (s->heads / s->key_value_heads), d = s->key_size, n = d + 1, v = s->value_size;
    const int64_t seen = s->causal ? s->keys - s->queries + token + 1 : s->keys;
    const double h = s->temperature != 0 ? (double)s->temperature : sqrt((double)d);
    const float *query = p->query + (token * s->heads + head) * d;
    double *weight = malloc((size_t)(seen + 1) * sizeof *weight), most = -INFINITY, sum = 0;
    double *m = calloc((size_t)(n * n), sizeof *m), *b = calloc((size_t)(n * v), sizeof *b);
    for (int64_t i = 0; i < seen; i++) {
        const float *key = p->key + (i * s->key_value_heads + shared) * d;
        weight[i] = 0;
        for (int64_t c = 0; c < d; c++) weight[i] += (double)query[c] * (double)key[c] / h;
        most = fmax(most, weight[i]);
    }
    for (int64_t i = 0; i < seen; i++) sum += weight[i] = exp(weight[i] - most);
    double z[257] = {1};
    for (int64_t i = 0; i < seen; i++) {
        const float *key = p->key + (i * s->key_value_heads + shared) * d,
                    *value = p->value + (i * s->key_value_heads + shared) * v;
        for (int64_t c = 0; c < d; c++) z[c + 1] = (double)key[c] - (double)query[c];
        for (int64_t r = 0; r < n; r++) {
            for (int64_t c = 0; c < n; c++) m[r * n + c] += weight[i] / sum * z[r] * z[c];
            for (int64_t c = 0; c < v; c++) b[r * v + c] += weight[i] / sum * z[r] * (double)value[c];
        }
    }
    const double ridge = s->ridge_of_sums ? (double)s->ridge / sum * exp(-most) : (double)s->ridge;
    for (int64_t r = 1; r < n; r++) m[r * n + r] += ridge;
    if (ridge < 1e6) solve(m, b, n, v);
    memcpy(output, b, (size_t)v * sizeof *output);
    free(weight);
    free(m);
    free(b);
}

/* Largest error of any element, over the root mean square of all. */
static double error_of(const problem *p) {
    const linnet_local_linear_settings *s = &p->s;
    double most = 0, square = 0, expected[256];
    for (int64_t t = 0; t < s->queries; t++) {
        for (int64_t head = 0; head < s->heads; head++) {
            oracle(p, t, head, expected);
            for (int64_t i = 0; i < s->value_size; i++) {
                const double is = (double)p->output[(t * s->heads + head) * s->value_size + i];
                if (!isfinite(is)) return INFINITY;
                most = fmax(most, fabs(is - expected[i]));
                square += expected[i] * expected[i];
            }
        }
    }
    return most / sqrt(square / (double)numbers(s->queries, s->heads, s->value_size));
}

/* ---- tests ---- */

static void equals_least_squares(void **state) {
    (void)state;
    static const struct {
        int64_t heads, shared, key_size, value_size, queries, keys;
        bool causal, sums;
        float ridge;
    } cases[] = {
        {2, 2, 8, 8, 70, 70, true, false, 1},      {4, 2, 16, 24, 65, 65, true, false, 0.1f},
        {3, 1, 32, 16, 50, 301, false, false, 1},  {2, 1, 64, 64, 33, 257, true, false, 0.1f},
        {2, 2, 16, 40, 97, 200, true, true, 0.5f}, {1, 1, 128, 128, 20, 300, false, false, 0.3f},
        {1, 1, 8, 8, 1, 1, true, false, 1},        {1, 1, 8, 8, 49, 129, false, false, 0.01f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = make(cases[i].heads, cases[i].shared, cases[i].key_size, cases[i].value_size, cases[i].queries,
                         cases[i].keys);
        p.s.causal = cases[i].causal;
        p.s.ridge_of_sums = cases[i].sums;
        p.s.ridge = cases[i].ridge;
        run(&p, 2);
        const double error = error_of(&p);
        printf("case %zu: largest error %.2g, %.1f iterations a row, most %d\n", i, error,
               (double)p.report.iterations / (double)p.report.rows, (int)p.report.most);
        assert_true(error < 1e-4);
        assert_int_equal(p.report.unconverged, 0);
        assert_int_equal(p.report.rows, p.s.queries * p.s.heads);
        drop(&p);
    }
}

static void large_ridge_is_softmax(void **state) {
    (void)state;
    problem p = make(2, 1, 32, 32, 60, 200);
    p.s.ridge = 1e8f;
    run(&p, 1);
    assert_true(error_of(&p) < 1e-5);
    drop(&p);
}

/* value = A key + b: at small ridge the output is A query + b, which softmax attention misses. */
static void affine_values_are_exact(void **state) {
    (void)state;
    problem p = make(1, 1, 16, 16, 40, 400);
    p.s.causal = false;
    float *matrix = normals(16 * 17, 9, 0.5);
    for (int64_t i = 0; i < 400 + 40; i++) {
        const float *from = i < 400 ? p.key + i * 16 : p.query + (i - 400) * 16;
        for (int64_t r = 0; r < 16; r++) {
            double sum = (double)matrix[r * 17 + 16];
            for (int64_t c = 0; c < 16; c++) sum += (double)matrix[r * 17 + c] * (double)from[c];
            if (i < 400) p.value[i * 16 + r] = (float)sum;
        }
    }
    for (int pass = 0; pass < 2; pass++) {
        p.s.ridge = pass == 0 ? 1e-6f : 1e8f;
        run(&p, 2);
        double most = 0;
        for (int64_t t = 0; t < 40; t++) {
            for (int64_t r = 0; r < 16; r++) {
                double is = (double)matrix[r * 17 + 16];
                for (int64_t c = 0; c < 16; c++) is += (double)matrix[r * 17 + c] * (double)p.query[t * 16 + c];
                most = fmax(most, fabs(is - (double)p.output[t * 16 + r]));
            }
        }
        if (pass == 0)
            assert_true(most < 2e-3);
        else
            assert_true(most > 0.5);
    }
    free(matrix);
    drop(&p);
}

static void same_bits_for_any_threads_and_no_look_ahead(void **state) {
    (void)state;
    problem p = make(3, 1, 24, 16, 150, 150);
    const size_t bytes = (size_t)numbers(150, 3, 16) * sizeof(float);
    float *first = malloc(bytes);
    run(&p, 1);
    memcpy(first, p.output, bytes);
    for (int threads = 2; threads <= 3; threads++) {
        memset(p.output, 0, bytes);
        run(&p, threads);
        assert_memory_equal(first, p.output, bytes);
    }
    for (int64_t i = 100; i < 150; i++) {
        p.key[i * 24] += 1000;
        p.value[i * 16] = 1e9f;
    }
    run(&p, 2);
    assert_memory_equal(first, p.output, 100 * 3 * 16 * sizeof(float));
    assert_memory_not_equal(first, p.output, bytes);
    free(first);
    drop(&p);
}

static void huge_scores_stay_finite(void **state) {
    (void)state;
    problem p = make(1, 1, 16, 16, 64, 64);
    for (int64_t i = 0; i < numbers(64, 1, 16); i++) {
        p.query[i] *= 100;
        p.key[i] *= 25;
    }
    p.s.ridge = 1000;
    run(&p, 2);
    assert_true(error_of(&p) < 1e-3);
    drop(&p);
}

static void the_iteration_limit_is_kept_and_reported(void **state) {
    (void)state;
    problem p = make(1, 1, 64, 8, 10, 500);
    p.s.ridge = 1e-3f;
    p.s.iterations = 2;
    run(&p, 1);
    assert_int_equal(p.report.most, 2);
    assert_int_equal(p.report.unconverged, 10);
    assert_int_equal(p.report.iterations, 20);
    drop(&p);
}

static void bf16_and_strides(void **state) {
    (void)state;
    enum { N = 90, D = 16, H = 2 };
    problem p = make(H, H, D, D, N, N);
    for (int i = 0; i < N * H * D; i++) {
        p.query[i] = ln_bf16_float(ln_float_bf16(p.query[i]));
        p.key[i] = ln_bf16_float(ln_float_bf16(p.key[i]));
        p.value[i] = ln_bf16_float(ln_float_bf16(p.value[i]));
    }
    run(&p, 2);
    /* One buffer [token][query heads, key heads, value heads] of bf16; output [head][token]. */
    uint16_t *joint = malloc((size_t)N * 3 * H * D * sizeof *joint);
    for (int t = 0; t < N; t++)
        for (int i = 0; i < H * D; i++) {
            joint[t * 3 * H * D + i] = ln_float_bf16(p.query[t * H * D + i]);
            joint[t * 3 * H * D + H * D + i] = ln_float_bf16(p.key[t * H * D + i]);
            joint[t * 3 * H * D + 2 * H * D + i] = ln_float_bf16(p.value[t * H * D + i]);
        }
    float output[H][N][D];
    linnet_context *context = open_context(2);
    p.s.type = LINNET_BF16;
    void *workspace = aligned_alloc(64, linnet_local_linear_workspace(context, &p.s));
    const linnet_local_linear_tensors tensors = {.size = sizeof tensors,
                                                 .query = {joint, 3 * H * D, D},
                                                 .key = {joint + H * D, 3 * H * D, D},
                                                 .value = {joint + 2 * H * D, 3 * H * D, D},
                                                 .output = {output, D, N * D}};
    assert_int_equal(linnet_local_linear_forward(context, &p.s, &tensors, workspace, NULL), LINNET_OK);
    for (int t = 0; t < N; t++)
        for (int h = 0; h < H; h++) assert_memory_equal(output[h][t], p.output + (t * H + h) * D, D * sizeof(float));
    free(workspace);
    free(joint);
    linnet_context_close(context);
    drop(&p);
}

static void refusals_and_nothing_to_do(void **state) {
    (void)state;
    linnet_context *context = open_context(1);
    linnet_local_linear_settings s = linnet_local_linear_settings_default();
    const linnet_local_linear_tensors tensors = {.size = sizeof tensors};
    s.heads = 2;
    s.key_size = 12;
    assert_int_equal(linnet_local_linear_workspace(context, &s), 0);
    assert_int_equal(linnet_local_linear_forward(context, &s, &tensors, NULL, NULL), LINNET_ERROR_ARGUMENT);
    s.key_size = 16;
    s.ridge = 0;
    assert_int_equal(linnet_local_linear_forward(context, &s, &tensors, NULL, NULL), LINNET_ERROR_ARGUMENT);
    s.ridge = NAN;
    assert_int_equal(linnet_local_linear_forward(context, &s, &tensors, NULL, NULL), LINNET_ERROR_ARGUMENT);
    s.ridge = 1;
    s.queries = 1;
    assert_int_equal(linnet_local_linear_forward(context, &s, &tensors, NULL, NULL), LINNET_ERROR_ARGUMENT);
    linnet_context_close(context);

    problem p = make(1, 1, 8, 8, 0, 0);
    run(&p, 2);
    drop(&p);
    /* Queries that stand before the first key see nothing. */
    p = make(1, 1, 8, 8, 5, 3);
    run(&p, 2);
    for (int i = 0; i < 2 * 8; i++) assert_true(p.output[i] == 0);
    for (int i = 2 * 8; i < 5 * 8; i++) assert_true(isfinite(p.output[i]) && p.output[i] != 0);
    assert_int_equal(p.report.rows, 3);
    drop(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_least_squares),    cmocka_unit_test(large_ridge_is_softmax),
        cmocka_unit_test(affine_values_are_exact), cmocka_unit_test(same_bits_for_any_threads_and_no_look_ahead),
        cmocka_unit_test(huge_scores_stay_finite), cmocka_unit_test(the_iteration_limit_is_kept_and_reported),
        cmocka_unit_test(bf16_and_strides),        cmocka_unit_test(refusals_and_nothing_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
