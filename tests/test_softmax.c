/* linnet_softmax against float64, on every instruction set. */
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
#include "kernel/kernel.h"
#include "linnet/linnet.h"
#include "number/format.h"

/* In units of the last place (6e-8 to 1.2e-7 of the value): of e^x 3.6 (kernel/exponential.h), of the sum, whose terms'
 * errors mostly cancel, up to 2, of the reciprocal and of the product with it 1 each. Measured: 4.7. */
static const double most_ulp = 8;
static const char *const levels[] = {"portable", "avx2", "avx512"};
enum { LEVELS = sizeof levels / sizeof *levels, GUARD = 16, THREADS = 3 };

static linnet_context *open_context(const char *cpu, int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.cpu = cpu;
    settings.threads = threads;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

static float *numbers(int64_t n) {
    float *x = malloc((size_t)(n + 2 * GUARD) * sizeof *x);
    assert_non_null(x);
    return x;
}

static void fill_normal(uint64_t seed, float *x, int64_t n, double spread) {
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(spread * ln_random_normal(&random));
}

static double log_sum(const float *x, int64_t n) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, (double)x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp((double)x[i] - most);
    return most + log(sum);
}

/* |got - want| in units of the last place of a float32 of want's size; below 5e-38 anything may be 0. */
static double ulps(float got, double want) {
    const double unit = ldexp(1, (int)fmax(ilogb(want == 0 ? 1e-300 : want), -126) - 23);
    if (want < 5e-38 && got < 5e-38f) return 0;
    return fabs((double)got - want) / unit;
}

static double check_row(linnet_context *context, const float *x, int64_t n, float *y) {
    float lse[2];
    double sum = 0, worst = 0;
    const double want_lse = log_sum(x, n);
    memset(y, 0x55, (size_t)(n + GUARD) * sizeof *y);
    float guard[GUARD];
    memcpy(guard, y + n, sizeof guard);
    assert_int_equal(linnet_softmax(context, 1, n, x, 0, y, 0, lse), LINNET_OK);
    assert_memory_equal(guard, y + n, sizeof guard);
    for (int64_t i = 0; i < n; i++) {
        worst = fmax(worst, ulps(y[i], exp((double)x[i] - want_lse)));
        sum += (double)y[i];
    }
    assert_true(fabs(sum - 1) < 5e-7);
    assert_true(ulps(lse[0], fabs(want_lse)) <= 1 || fabs((double)lse[0] - want_lse) < 1e-6);
    assert_int_equal(linnet_log_softmax(context, 1, n, x, 0, y, 0, &lse[1]), LINNET_OK);
    assert_memory_equal(guard, y + n, sizeof guard);
    assert_true(lse[0] == lse[1]);
    for (int64_t i = 0; i < n; i++) {
        const double want = (double)x[i] - want_lse;
        assert_true((double)y[i] == want ||
                    fabs((double)y[i] - want) <= 1.2e-7 * (fabs(want) + fabs((double)x[i]) * 0x1p-20) + 1e-6);
    }
    return worst;
}

/* All tails, and rows cut into pieces and chunks. */
static void test_lengths(void **state) {
    (void)state;
    static const int64_t lengths[] = {200, 511, 4095, 4097, 32767, 32768, 32769, 100003};
    for (int level = 0; level < LEVELS; level++) {
        linnet_context *context = open_context(levels[level], 1);
        float *x = numbers(100003), *y = numbers(100003);
        double worst = 0;
        for (int64_t n = 1; n < 140; n++) {
            fill_normal((uint64_t)n, x, n, n % 3 ? 3 : 30);
            worst = fmax(worst, check_row(context, x, n, y));
        }
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            fill_normal(i, x, lengths[i], i % 2 ? 1 : 8);
            worst = fmax(worst, check_row(context, x, lengths[i], y));
        }
        print_message("%s: largest error %.2f ulp\n", linnet_cpu(context), worst);
        assert_true(worst <= most_ulp);
        free(x);
        free(y);
        linnet_context_close(context);
    }
}

/* Inputs of every size; where float32 spacing allows, a shift by a power of two changes no bit. */
static void test_sizes_of_inputs(void **state) {
    (void)state;
    enum { N = 5000 };
    static const double spreads[] = {1e-30, 1, 1e2, 1e4, 1e6, 1e12, 1e30, 1e37};
    float *x = numbers(N), *y = numbers(N), *z = numbers(N);
    for (int level = 0; level < LEVELS; level++) {
        linnet_context *context = open_context(levels[level], 1);
        double worst = 0;
        for (size_t s = 0; s < sizeof spreads / sizeof *spreads; s++) {
            fill_normal(s, x, N, spreads[s]);
            worst = fmax(worst, check_row(context, x, N, y));
            for (int i = 0; i < N; i += 3) x[i] = -INFINITY;
            worst = fmax(worst, check_row(context, x, N, y));
            for (int i = 0; i < N; i += 3) assert_true(y[i] == -INFINITY);
        }
        for (float shift = -0x1p20f; shift <= 0x1p20f; shift += 0x1p16f) {
            ln_random random;
            ln_random_seed(&random, 7);
            for (int i = 0; i < N; i++) x[i] = (float)(int)(16 * ln_random_normal(&random)) / 8;
            linnet_softmax(context, 1, N, x, 0, y, 0, NULL);
            for (int i = 0; i < N; i++) x[i] += shift;
            linnet_softmax(context, 1, N, x, 0, z, 0, NULL);
            for (int i = 0; i < N; i++) assert_true(ulps(z[i], (double)y[i]) <= 2 * most_ulp);
        }
        print_message("%s: largest error %.2f ulp\n", linnet_cpu(context), worst);
        assert_true(worst <= most_ulp);
        linnet_context_close(context);
    }
    free(x);
    free(y);
    free(z);
}

static void test_special_rows(void **state) {
    (void)state;
    enum { N = 40000 };
    float *x = numbers(N), *y = numbers(N), lse;
    for (int level = 0; level < LEVELS; level++) {
        linnet_context *context = open_context(levels[level], 2);
        for (int64_t n = 1; n <= N; n += n < 70 ? 1 : 13309) {
            for (int64_t i = 0; i < n; i++) x[i] = -INFINITY;
            linnet_softmax(context, 1, n, x, 0, y, 0, &lse);
            assert_true(lse == -INFINITY);
            for (int64_t i = 0; i < n; i++) assert_true(y[i] == 0);
            x[n / 2] = -2e6f;
            linnet_softmax(context, 1, n, x, 0, y, 0, &lse);
            assert_true(lse == -2e6f);
            for (int64_t i = 0; i < n; i++) assert_true(y[i] == (i == n / 2));
            for (int bad = 0; bad < 2; bad++) {
                for (int64_t i = 0; i < n; i++) x[i] = (float)(i % 100);
                x[n - 1] = bad ? INFINITY : NAN;
                linnet_softmax(context, 1, n, x, 0, y, 0, &lse);
                assert_true(bad ? lse == INFINITY : isnan(lse));
                for (int64_t i = 0; i < n; i++) assert_true(isnan(y[i]));
            }
        }
        assert_int_equal(linnet_softmax(context, 1, 0, x, 0, y, 0, &lse), LINNET_OK);
        assert_true(lse == -INFINITY);
        assert_int_equal(linnet_softmax(context, 2, 5, x, 4, y, 0, NULL), LINNET_ERROR_ARGUMENT);
        assert_int_equal(linnet_softmax(context, -1, 5, x, 0, y, 0, NULL), LINNET_ERROR_ARGUMENT);
        linnet_context_close(context);
    }
    free(x);
    free(y);
}

/* The same bits for any number of threads, in place or not, with strides, past the caches or not, at any address.
 */
static void test_same_bits(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{300, 50}, {7, 3001}, {3, 70001}, {2, 2200000}};
    for (int level = 0; level < LEVELS; level++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const int64_t rows = shapes[s][0], n = shapes[s][1], stride = n + 3, all = rows * stride;
            float *x = numbers(all), *first = numbers(all), *y = numbers(all), *lse = numbers(rows);
            fill_normal(s, x, all, 4);
            for (int64_t i = 0; i < all; i++) first[i] = y[i] = 7;
            for (int threads = 1; threads <= THREADS; threads++) {
                linnet_context *context = open_context(levels[level], threads);
                float *to = threads == 1 ? first : y + threads % 2;
                linnet_softmax(context, rows, n, x, stride, to, stride, lse);
                if (threads == 1) {
                    float *one = numbers(n);
                    linnet_softmax(context, 1, n, x + stride, stride, one, 0, NULL);
                    assert_memory_equal(one, first + stride, (size_t)n * sizeof *one);
                    free(one);
                }
                for (int64_t r = 0; r < rows; r++)
                    assert_memory_equal(to + r * stride, first + r * stride, (size_t)n * sizeof *to);
                if (threads == THREADS) {
                    linnet_softmax(context, rows, n, x, stride, x, stride, NULL);
                    for (int64_t r = 0; r < rows; r++)
                        assert_memory_equal(x + r * stride, first + r * stride, (size_t)n * sizeof *to);
                }
                linnet_context_close(context);
            }
            free(x);
            free(first);
            free(y);
            free(lse);
        }
    }
}

/* The online softmax of attention renews its maximum only where a score exceeds it by LN_ATTEND_SLACK powers of two
 * (P265): the result is the same whatever maximum within the slack it goes on with, no weight exceeds 2^slack, and it
 * rescales less often than the running maximum rises. */
static void test_rescaling(void **state) {
    (void)state;
    enum { BLOCK = 64, BLOCKS = 200, N = BLOCK * BLOCKS };
    float *scores = numbers(N), *weights = numbers(N);
    for (int level = 0; level < LEVELS; level++) {
        unsigned mask;
        ln_kernels kernels;
        ln_cpu_mask(levels[level], &mask);
        ln_kernels_choose(mask & ln_cpu_detect(), &kernels);
        for (int stale = 0; stale <= LN_ATTEND_SLACK; stale++) {
            fill_normal((uint64_t)stale, scores, N, 3);
            for (int i = 0; i < N; i++) scores[i] += (float)i * (20.0f / N); /* the maximum creeps up */
            double most = -INFINITY, want_sum = 0, want = 0, got = 0, sum = 0;
            for (int i = 0; i < N; i++) most = fmax(most, (double)scores[i]);
            for (int i = 0; i < N; i++) {
                want_sum += exp2((double)scores[i] - most);
                want += exp2((double)scores[i] - most) * (i % 7);
            }
            float running = -INFINITY, first = -INFINITY, lanes[LN_ATTEND_LANES] = {0};
            for (int i = 0; i < BLOCK; i++) first = fmaxf(first, scores[i]);
            float maximum = first - (float)stale;
            int rises = 0, rescales = 0;
            memcpy(weights, scores, N * sizeof *weights);
            for (int b = 0; b < N; b += BLOCK) {
                const float before = running;
                for (int i = b; i < b + BLOCK; i++) running = fmaxf(running, scores[i]);
                rises += running > before;
                const float factor = kernels.attend.softmax(weights + b, BLOCK, &maximum, lanes);
                rescales += factor != 1;
                got *= (double)factor;
                for (int i = b; i < b + BLOCK; i++) {
                    assert_true(weights[i] >= 0 && weights[i] <= 256.001f);
                    got += (double)weights[i] * (i % 7);
                }
            }
            for (int i = 0; i < LN_ATTEND_LANES; i++) sum += (double)lanes[i];
            assert_true(fabs(got / sum - want / want_sum) < 2e-6 * want / want_sum);
            assert_true(fabs(log2(sum) + (double)maximum - log2(want_sum) - most) < 1e-5);
            assert_true(3 * rescales < rises);
            if (stale == 0)
                print_message("%s: %d rescales, the maximum rose %d times\n", levels[level], rescales, rises);
        }
    }
    free(scores);
    free(weights);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),   cmocka_unit_test(test_sizes_of_inputs), cmocka_unit_test(test_special_rows),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_rescaling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
