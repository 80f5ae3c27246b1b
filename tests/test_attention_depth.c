/* A decode step 131,072 tokens deep against float64: sums must not lose what they hold, whatever the values' mean is.
 *
 * The first head's scores are normal, the second's all equal: there every value weighs 2^-17, and a sum in short floats
 * would stop growing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "base/random.h"
#include "linnet/linnet.h"

enum { DEPTH = 131072, SIZE = 128, HEADS = 2, PIECE = 4096 };

static const double means[] = {0, 0.5, 1};
enum { MEANS = sizeof means / sizeof *means };

typedef struct problem {
    float *query, *key, *value; /* [HEADS][SIZE], [DEPTH][SIZE] */
    double *output;             /* [HEADS][SIZE], of values as they are */
} problem;

static void *numbers(size_t count, size_t size) {
    void *block = calloc(count, size);
    assert_non_null(block);
    return block;
}

static void solve(problem *p) {
    double *weight = numbers(DEPTH, sizeof *weight);
    for (int h = 0; h < HEADS; h++) {
        double most = -INFINITY, sum = 0;
        for (int j = 0; j < DEPTH; j++) {
            double score = 0;
            for (int i = 0; i < SIZE; i++) score += (double)p->query[h * SIZE + i] * (double)p->key[j * SIZE + i];
            weight[j] = score / sqrt(SIZE);
            most = fmax(most, weight[j]);
        }
        for (int j = 0; j < DEPTH; j++) {
            weight[j] = exp(weight[j] - most);
            sum += weight[j];
            for (int i = 0; i < SIZE; i++) p->output[h * SIZE + i] += weight[j] * (double)p->value[j * SIZE + i];
        }
        for (int i = 0; i < SIZE; i++) p->output[h * SIZE + i] /= sum;
    }
    free(weight);
}

static problem make_problem(double mean) {
    problem p = {numbers(HEADS * SIZE, sizeof(float)), numbers((size_t)DEPTH * SIZE, sizeof(float)),
                 numbers((size_t)DEPTH * SIZE, sizeof(float)), numbers(HEADS * SIZE, sizeof(double))};
    ln_random random;
    ln_random_seed(&random, 1);
    for (int i = 0; i < SIZE; i++) p.query[i] = (float)ln_random_normal(&random);
    for (int i = 0; i < DEPTH * SIZE; i++) p.key[i] = (float)(3.4641016 * (ln_random_unit(&random) - 0.5));
    for (int i = 0; i < DEPTH * SIZE; i++) p.value[i] = (float)(3.4641016 * (ln_random_unit(&random) - 0.5) + mean);
    solve(&p);
    return p;
}

static void free_problem(problem *p) {
    free(p->query);
    free(p->key);
    free(p->value);
    free(p->output);
}

/* The largest of the heads' relative errors, root of the mean of squares. */
static double error_of(const problem *p, const char *cpu, linnet_type precision) {
    linnet_context_settings of_context = linnet_context_settings_default();
    of_context.cpu = cpu;
    of_context.threads = 2;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&of_context, &context), LINNET_OK);
    linnet_cache_settings kept = linnet_cache_settings_default();
    kept.key_value_heads = 1;
    kept.key_size = SIZE;
    kept.precision = precision;
    kept.capacity = DEPTH;
    linnet_cache *cache;
    assert_int_equal(linnet_cache_open(context, &kept, &cache), LINNET_OK);
    for (int t = 0; t < DEPTH; t += PIECE)
        assert_int_equal(linnet_cache_append(cache, PIECE, (linnet_tensor){.data = p->key + (ptrdiff_t)t * SIZE},
                                             (linnet_tensor){.data = p->value + (ptrdiff_t)t * SIZE}),
                         LINNET_OK);
    const int64_t offsets[] = {0, 1};
    linnet_attention_settings settings = linnet_attention_settings_default();
    settings.heads = HEADS;
    settings.key_value_heads = 1;
    settings.key_size = SIZE;
    settings.query_offsets = offsets;
    settings.causal = true;
    settings.cache_capacity = DEPTH;
    linnet_attention_plan *plan;
    assert_int_equal(linnet_attention_plan_open(context, &settings, &plan), LINNET_OK);
    void *workspace = aligned_alloc(64, (size_t)(linnet_attention_workspace(plan) + 64) / 64 * 64);
    assert_non_null(workspace);
    float output[HEADS * SIZE];
    const linnet_attention_tensors tensors = {
        .size = sizeof tensors, .query = {.data = p->query}, .output = {.data = output}};
    assert_int_equal(linnet_attention_cached(plan, &tensors, &cache, workspace), LINNET_OK);
    double worst = 0;
    for (int h = 0; h < HEADS; h++) {
        double error = 0, size = 0;
        for (int i = h * SIZE; i < (h + 1) * SIZE; i++) {
            error += ((double)output[i] - p->output[i]) * ((double)output[i] - p->output[i]);
            size += p->output[i] * p->output[i];
        }
        worst = fmax(worst, sqrt(error / size));
    }
    free(workspace);
    linnet_attention_plan_close(plan);
    linnet_cache_close(cache);
    linnet_context_close(context);
    return worst;
}

static void test_depth(void **state) {
    (void)state;
    static const struct {
        linnet_type precision;
        double tolerance;
    } rows[] = {{LINNET_F32, 1e-5}, {LINNET_F16, 4e-3}, {LINNET_BF16, 4e-3}};
    static const char *const levels[] = {NULL, "avx512", "avx2", "portable"};
    for (int m = 0; m < MEANS; m++) {
        problem p = make_problem(means[m]);
        for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
            unsigned mask = 0;
            if (levels[l] && (!ln_cpu_mask(levels[l], &mask) || m != MEANS - 1)) continue;
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                const double error = error_of(&p, levels[l], rows[r].precision);
                print_message("%s pages, mean %.1f, %s: relative error %.1e\n", linnet_type_name(rows[r].precision),
                              means[m], levels[l] ? levels[l] : "all instruction sets", error);
                assert_true(error <= rows[r].tolerance);
            }
        }
        free_problem(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_depth)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
