/* The vector kernels: against float64, and each instruction set against the portable one bit for bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/random.h"
#include "kernel/vector.h"
#include "number/format.h"

enum { MOST = 200 };
static const unsigned cpu_sets[] = {0, LN_CPU_AVX2, LN_CPU_AVX2 | LN_CPU_AVX512};
enum { SETS = sizeof cpu_sets / sizeof *cpu_sets };

static void fill(ln_random *random, float *x, int64_t n, double spread) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(spread * ln_random_normal(random));
}

static double relative(double got, double want) {
    return got == want ? 0 : fabs(got - want) / fmax(fabs(want), 1e-30);
}

/* Every 97th float of all of them. */
static void test_exponential_error(void **state) {
    (void)state;
    ln_vector_kernels kernels;
    ln_vector_choose(ln_cpu_detect(), &kernels);
    double worst = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 97 * 16) {
        float x[16], y[16];
        for (unsigned i = 0; i < 16; i++) x[i] = ln_bits_float((uint32_t)(bits + 97 * i));
        kernels.exponential(y, x, 0, 16);
        for (int i = 0; i < 16; i++) {
            const double want = exp((double)x[i]);
            if (isnan(x[i]))
                assert_true(isnan(y[i]));
            else if (x[i] < -87.3365448f)
                assert_true(y[i] == 0);
            else if (x[i] > 88.7228394f)
                assert_true(isinf(y[i]));
            else
                worst = fmax(worst, relative((double)y[i], want));
        }
    }
    print_message("exp: largest relative error %.3g\n", worst);
    assert_true(worst < 2e-7);
}

static double gelu(double g) {
    return 0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)));
}

static void check_row(const ln_vector_kernels *kernels, const float *x, const float *z, int64_t n) {
    float y[MOST + 1];
    double squares = 0, sum = 0, most = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        squares += (double)x[i] * (double)x[i];
        sum += exp((double)x[i] - 0.5);
        most = fmax(most, (double)x[i]);
    }
    y[n] = 12345;
    kernels->rms_norm(y, x, z, n, 1e-5f);
    for (int64_t i = 0; i < n; i++)
        assert_true(relative((double)y[i], (double)x[i] * (double)z[i] / sqrt(squares / (double)n + 1e-5)) < 1e-6);
    kernels->silu_multiply(y, x, z, n);
    for (int64_t i = 0; i < n; i++)
        assert_true(relative((double)y[i], (double)x[i] / (1 + exp(-(double)x[i])) * (double)z[i]) < 1e-6);
    kernels->gelu_tanh_multiply(y, x, z, n);
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs((double)y[i] - gelu((double)x[i]) * (double)z[i]) <
                    2e-6 * (1 + fabs((double)x[i] * (double)z[i])));
    memcpy(y, x, (size_t)n * sizeof *y);
    kernels->soft_cap(y, 3, n);
    for (int64_t i = 0; i < n; i++) assert_true(fabs((double)y[i] - 3 * tanh((double)x[i] / 3)) < 1e-6);
    if (n > 0) assert_true(relative((double)kernels->exponential(y, x, 0.5f, n), sum) < 1e-6);
    assert_true((double)kernels->maximum(x, n) == most);
    assert_true(y[n] == 12345);
}

static void test_rows(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 1);
    float x[MOST], z[MOST];
    for (int set = 0; set < SETS; set++) {
        ln_vector_kernels kernels;
        ln_vector_choose(cpu_sets[set] & ln_cpu_detect(), &kernels);
        for (int64_t n = 0; n <= MOST; n += n < 40 ? 1 : 37) {
            fill(&random, x, n, 2);
            fill(&random, z, n, 1);
            check_row(&kernels, x, z, n);
        }
    }
}

static void test_same_bits(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 2);
    ln_vector_kernels portable, other;
    ln_vector_fill_portable(&portable);
    for (int set = 0; set < SETS; set++) {
        ln_vector_choose(cpu_sets[set] & ln_cpu_detect(), &other);
        for (int64_t n = 1; n <= MOST; n += 1 + n / 3) {
            float x[MOST], z[MOST], a[MOST], b[MOST], cosine[MOST], sine[MOST];
            fill(&random, x, n, 3);
            fill(&random, z, n, 3);
            fill(&random, cosine, n, 1);
            fill(&random, sine, n, 1);
            portable.rms_norm(a, x, z, n, 1e-6f);
            other.rms_norm(b, x, z, n, 1e-6f);
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
            portable.silu_multiply(a, x, z, n);
            other.silu_multiply(b, x, z, n);
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
            const float first = portable.exponential(a, x, 1, n), second = other.exponential(b, x, 1, n);
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
            assert_memory_equal(&first, &second, sizeof first);
            for (int half = 0; half < 2; half++) {
                memcpy(a, x, sizeof a);
                memcpy(b, x, sizeof b);
                portable.rotate(a, cosine, sine, n, half);
                other.rotate(b, cosine, sine, n, half);
                assert_memory_equal(a, b, (size_t)n * sizeof *a);
            }
            memcpy(a, x, sizeof a);
            memcpy(b, x, sizeof b);
            portable.hadamard(a, n);
            other.hadamard(b, n);
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
        }
    }
}

/* Against the definition, row i of the matrix having (-1)^(bits that i and j share), and twice. */
static void test_hadamard(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 7);
    ln_vector_kernels kernels;
    ln_vector_choose(ln_cpu_detect(), &kernels);
    for (int64_t n = 1; n <= 576; n = n < 8 ? 2 * n : n + 8) {
        const int64_t block = n & -n;
        float x[576], y[576];
        fill(&random, x, n, 3);
        memcpy(y, x, sizeof y);
        kernels.hadamard(y, n);
        for (int64_t i = 0; i < n; i++) {
            double want = 0;
            for (int64_t j = 0; j < block; j++)
                want += (__builtin_popcountll((unsigned long long)(i % block & j)) % 2 ? -1 : 1) *
                        (double)x[i / block * block + j];
            assert_true(fabs((double)y[i] - want / sqrt((double)block)) < 2e-5);
        }
        kernels.hadamard(y, n);
        for (int64_t i = 0; i < n; i++) assert_true(fabsf(y[i] - x[i]) < 1e-5f);
    }
}

static void test_worst_inputs(void **state) {
    (void)state;
    for (int set = 0; set < SETS; set++) {
        ln_vector_kernels kernels;
        ln_vector_choose(cpu_sets[set] & ln_cpu_detect(), &kernels);
        for (int64_t n = 1; n < 40; n++) {
            float x[40], y[40];
            for (int64_t i = 0; i < n; i++) x[i] = -INFINITY;
            assert_true(kernels.exponential(y, x, 0, n) == 0);
            assert_true(isinf(kernels.maximum(x, n)));
            for (int64_t i = 0; i < n; i++) x[i] = (float)i;
            x[n / 2] = NAN;
            assert_true(isnan(kernels.maximum(x, n)));
            assert_true(isnan(kernels.exponential(y, x, 0, n)));
            kernels.soft_cap(x, 30, n);
            for (int64_t i = 0; i < n; i++) assert_true(isnan(x[i]) == (i == n / 2));
            for (int64_t i = 0; i < n; i++) x[i] = i % 2 ? 1e30f : -1e30f;
            kernels.soft_cap(x, 30, n);
            for (int64_t i = 0; i < n; i++) assert_true(x[i] == (i % 2 ? 30 : -30));
        }
        assert_true(kernels.maximum(NULL, 0) == -INFINITY);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exponential_error), cmocka_unit_test(test_rows),         cmocka_unit_test(test_hadamard),
        cmocka_unit_test(test_same_bits),         cmocka_unit_test(test_worst_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
