/* Products of pairs of bf16 against float64: of this processor, and of AMX on tile instructions in plain C. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ln_attend_fill_pairs_amx ln_attend_fill_pairs_amx_emulated
#include "amx_emulated.h"
#include "kernel/x86/attend_pairs_amx.c" /* on the instructions above */

#include <math.h>

#include "base/cpu.h"
#include "base/random.h"

enum { MOST = 96, A_STRIDE = 2 * MOST + 64, B_STRIDE = 4 * MOST + 64 };

static unsigned char a[MOST * A_STRIDE], b[MOST / 2 * B_STRIDE];
static float c[MOST * LN_ATTEND_STRIDE], before[MOST * LN_ATTEND_STRIDE];

static double a_at(int64_t row, int64_t k) {
    uint16_t x;
    memcpy(&x, a + row * A_STRIDE + 2 * k, sizeof x);
    return (double)ln_bf16_float(x);
}
static double b_at(int64_t k, int64_t column) {
    uint16_t x;
    memcpy(&x, b + k / 2 * B_STRIDE + 4 * column + 2 * (k % 2), sizeof x);
    return (double)ln_bf16_float(x);
}

static void check_product(const ln_attend_pairs *pairs, int64_t rows, int64_t columns, int64_t depth, bool add) {
    memcpy(c, before, sizeof c);
    pairs->start();
    pairs->product(a, A_STRIDE, b, B_STRIDE, rows, columns, depth, c, add);
    pairs->stop();
    for (int64_t i = 0; i < MOST; i++) {
        for (int64_t j = 0; j < LN_ATTEND_STRIDE; j++) {
            const float got = c[i * LN_ATTEND_STRIDE + j], old = before[i * LN_ATTEND_STRIDE + j];
            if (i >= rows || j >= columns) {
                assert_true(got == old);
                continue;
            }
            double want = add ? (double)old : 0, size = fabs(want);
            for (int64_t k = 0; k < depth; k++) {
                want += a_at(i, k) * b_at(k, j);
                size += fabs(a_at(i, k) * b_at(k, j));
            }
            assert_true(fabs((double)got - want) <= (double)depth * 0x1p-24 * size);
        }
    }
}

static void check_pairs(const ln_attend_pairs *pairs) {
    for (int64_t rows = 32; rows <= MOST; rows += 32)
        for (int64_t columns = 32; columns <= MOST; columns += 32)
            for (int64_t depth = 32; depth <= MOST; depth += 32)
                for (int add = 0; add < 2; add++) check_product(pairs, rows, columns, depth, add);
}

static void fill(void *to, int64_t bytes, bool floats) {
    ln_random random;
    ln_random_seed(&random, (uint64_t)bytes);
    for (int64_t i = 0; i < bytes / (floats ? 4 : 2); i++) {
        if (floats)
            ((float *)to)[i] = (float)ln_random_normal(&random);
        else
            ((uint16_t *)to)[i] = ln_float_bf16((float)ln_random_normal(&random));
    }
}

/* This file is compiled for these. */
static bool can_run(void) {
    const unsigned needed = LN_CPU_AVX512 | LN_CPU_AVX512_BF16;
    return (ln_cpu_detect() & needed) == needed && __builtin_cpu_supports("avx512vbmi");
}

static void test_product(void **state) {
    (void)state;
    if (!can_run()) skip();
    fill(a, sizeof a, false);
    fill(b, sizeof b, false);
    fill(before, sizeof before, true);
    ln_attend_kernels kernels;
    ln_attend_choose(ln_cpu_detect(), &kernels);
    if (kernels.pairs.name) check_pairs(&kernels.pairs);
    ln_attend_fill_pairs_amx_emulated(&kernels);
    check_pairs(&kernels.pairs);
    assert_false(emulated.configured); /* released */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_product)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
