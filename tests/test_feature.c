/* Random features: what their projections are, and how near the kernel they come; a mixer that draws them itself. */
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
#include "linnet/mixer.h"
#include "mixer/feature.h"

enum { SIZE = 8, SLOTS = 32, DRAWS = 3000 };
static double room[2 * SLOTS + 8];

static void normal_quantiles(void **state) {
    (void)state;
    for (double p = 1e-12; p < 1; p = p < 0.01 ? p * 3 : p + 0.01) {
        const double x = ln_normal_quantile(p);
        assert_true(fabs(0.5 * erfc(-x / sqrt(2.0)) - p) <= 1e-12 * p + 1e-16);
        assert_true(fabs(ln_normal_quantile(1 - p) + x) <= 1e-3);
    }
}

static void orthogonal_rows(void **state) {
    (void)state;
    float w[SLOTS * SIZE];
    ln_random_projection(LN_RANDOM_ORTHOGONAL, 7, SLOTS, SIZE, w, room);
    for (int a = 0; a < SLOTS; a++)
        for (int b = a / SIZE * SIZE; b < a; b++) {
            double dot = 0;
            for (int i = 0; i < SIZE; i++) dot += (double)w[a * SIZE + i] * (double)w[b * SIZE + i];
            assert_true(fabs(dot) < 1e-5);
        }
}

/* The lattice is even: along every coordinate each of its points is in a cell of its own. */
static void even_lattice(void **state) {
    (void)state;
    enum { PRIME = 31 };
    float w[PRIME * SIZE];
    ln_random_projection(LN_RANDOM_LATTICE, 7, PRIME, SIZE, w, room);
    for (int i = 0; i < SIZE; i++) {
        bool taken[PRIME + 1] = {false};
        int cells = 0;
        double first = 0.5 * erfc(-(double)w[i] / sqrt(2.0));
        for (int m = 0; m < PRIME; m++) {
            double u = 0.5 * erfc(-(double)w[m * SIZE + i] / sqrt(2.0)) - first + 1 + 0.5 / PRIME;
            const int cell = (int)((u - floor(u)) * PRIME);
            cells += !taken[cell];
            taken[cell] = true;
        }
        assert_int_equal(cells, PRIME);
    }
}

/* Mean square of what phi(q) . phi(k) is off e^(q . k), relative, over draws of projections. */
static double kernel_error(int kind) {
    ln_random random;
    ln_random_seed(&random, 5);
    float w[SLOTS * SIZE];
    double error = 0;
    for (int draw = 0; draw < DRAWS; draw++) {
        double q[SIZE], k[SIZE], exponent = 0, sum = 0;
        ln_random_projection(kind, (uint64_t)draw, SLOTS, SIZE, w, room);
        for (int i = 0; i < SIZE; i++) {
            q[i] = 0.25 * ln_random_normal(&random);
            k[i] = 0.25 * ln_random_normal(&random);
            exponent += q[i] * k[i];
        }
        for (int m = 0; m < SLOTS; m++) {
            double a = 0;
            for (int i = 0; i < SIZE; i++)
                a += (double)w[m * SIZE + i] * (q[i] + k[i]) - 0.5 * (q[i] * q[i] + k[i] * k[i]);
            sum += exp(a) / SLOTS;
        }
        error += pow(sum / exp(exponent) - 1, 2) / DRAWS;
    }
    return error;
}

static void better_than_independent(void **state) {
    (void)state;
    const double normal = kernel_error(LN_RANDOM_NORMAL), orthogonal = kernel_error(LN_RANDOM_ORTHOGONAL),
                 lattice = kernel_error(LN_RANDOM_LATTICE);
    print_message("mean square error of the kernel: normal %.4f, orthogonal %.4f, lattice %.4f\n", normal, orthogonal,
                  lattice);
    assert_true(orthogonal < normal);
    assert_true(lattice < normal);
}

/* With no projection given, the drawn one is used: the same bits as if it had been given. */
static void drawn_projections(void **state) {
    (void)state;
    for (int kind = 0; kind < LN_RANDOM_KINDS; kind++) {
        linnet_context *context = test_context(3, 1);
        linnet_mixer_settings s = linnet_mixer_settings_default("performer");
        s.key_size = s.value_size = SIZE;
        s.slots = SLOTS;
        s.tokens = 20;
        s.option[0] = kind;
        s.option[1] = 99;
        float input[20 * SIZE], projection[SLOTS * SIZE], given[20 * SIZE], drawn[20 * SIZE];
        ln_random random;
        ln_random_seed(&random, 3);
        for (int i = 0; i < 20 * SIZE; i++) input[i] = (float)ln_random_normal(&random);
        ln_random_projection(kind, 99, SLOTS, SIZE, projection, room);
        linnet_mixer_tensors t = {.size = sizeof t};
        for (int i = 0; i < 3; i++) t.input[i].data = input;
        void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD));
        t.output.data = drawn;
        assert_int_equal(linnet_mixer_forward(context, &s, &t, workspace), LINNET_OK);
        t.input[3].data = projection;
        t.output.data = given;
        assert_int_equal(linnet_mixer_forward(context, &s, &t, workspace), LINNET_OK);
        assert_memory_equal(drawn, given, sizeof given);
        free(workspace);
    }
}

/* Settings whose workspace nobody has are refused, not wrapped around. */
static void endless_workspaces(void **state) {
    (void)state;
    static const char *const names[] = {"mom", "gsa", "scout", "log_linear", "linear_elu"};
    for (int i = 0; i < 5; i++) {
        linnet_mixer_settings s = linnet_mixer_settings_default(names[i]);
        s.heads = s.key_size = s.value_size = (int64_t)1 << 24;
        s.tokens = (int64_t)1 << 40;
        for (int form = 0; form < 3; form++) {
            const uint64_t bytes = linnet_mixer_workspace(test_context(3, 1), &s, (linnet_mixer_form)form);
            assert_true(bytes == 0 || bytes > (uint64_t)1 << 40);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(normal_quantiles),  cmocka_unit_test(orthogonal_rows),
                                       cmocka_unit_test(even_lattice),      cmocka_unit_test(better_than_independent),
                                       cmocka_unit_test(drawn_projections), cmocka_unit_test(endless_workspaces)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
