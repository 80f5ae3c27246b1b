/* Attention on AMX tiles, on tile instructions in plain C: checked like those of the table, on any processor with the
 * vector instructions that they also use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ln_attend_fill_amx ln_attend_fill_amx_emulated
#include "amx_emulated.h"
#include "kernel/x86/attend_amx.c" /* on the instructions above */

#include "base/cpu.h"
#include "kernel_check.h"

static bool can_run(void) {
    const unsigned needed = LN_CPU_AVX512 | LN_CPU_AVX512_BF16;
    return (ln_cpu_detect() & needed) == needed && __builtin_cpu_supports("avx512vbmi");
}

static void test_kernels(void **state) {
    (void)state;
    if (!can_run()) skip();
    static const linnet_type precisions[] = {LINNET_BF16, LINNET_F32, LINNET_F16, LINNET_Q8_0};
    ln_attend_kernels kernels;
    ln_attend_fill_amx_emulated(&kernels);
    for (int i = 0; i < 4; i++) {
        const double error = check_attend_bf16_slot(&kernels.bf16, precisions[i]);
        print_message("%s: %g\n", linnet_type_name(precisions[i]), error);
        if (!(error <= 1)) print_error("%s: %g\n", linnet_type_name(precisions[i]), error);
        assert_true(error <= 1);
        assert_false(emulated.configured); /* released */
    }
}

/* A query that is not finite makes its own row's sum NaN, and changes no bit of the others. */
static void test_not_finite(void **state) {
    (void)state;
    if (!can_run()) skip();
    enum { SIZE = 32, KEYS = 64 };
    static _Alignas(64) unsigned char query[ROWS * 64], keys[2 * 2048], values[2 * 2048], page[8192];
    static _Alignas(64) float sum[2][ROWS][LN_ATTEND_LANES], output[2][ROWS][SIZE];
    float length[ROWS], maximum[ROWS];
    ln_page_layout layout;
    ln_random random;
    ln_random_seed(&random, 1);
    assert_true(ln_page_layout_of(LINNET_BF16, LINNET_BF16, SIZE, SIZE, &layout) && layout.bytes <= sizeof page);
    for (size_t i = 0; i < layout.bytes; i += 2) {
        const uint16_t code = ln_float_bf16((float)ln_random_normal(&random));
        memcpy(page + i, &code, 2);
    }
    ln_attend_bf16_block block = {.keys = keys, .values = values, .count = KEYS};
    for (int p = 0; p < 2; p++) {
        block.length = pack_keys(&layout, page, LN_PAGE_TOKENS, keys + p * key_bytes(SIZE));
        assert_true(pack_values(&layout, page, LN_PAGE_TOKENS, values + p * value_bytes(SIZE)) < 100);
    }
    for (int run = 0; run < 2; run++) {
        ln_random_seed(&random, 2);
        for (int r = 0; r < ROWS; r++) {
            float x[SIZE];
            for (int i = 0; i < SIZE; i++) x[i] = (float)ln_random_normal(&random);
            if (run && r == 5) x[7] = NAN;
            if (run && r == 20) x[0] = -INFINITY;
            length[r] = pack_query(LINNET_F32, x, SIZE, r, query);
            maximum[r] = -INFINITY;
        }
        const ln_attend_bf16_tile tile = {.rows = ROWS,
                                          .key_size = SIZE,
                                          .value_size = SIZE,
                                          .query = query,
                                          .length = length,
                                          .factor = 0.25f,
                                          .maximum = maximum,
                                          .sum = sum[run][0],
                                          .output = output[run][0],
                                          .output_stride = SIZE};
        step(&tile, &block);
        step(&tile, &block);
    }
    for (int r = 0; r < ROWS; r++) {
        if (r == 5 || r == 20) {
            assert_true(isnan(sum[1][r][0]));
            continue;
        }
        assert_memory_equal(sum[0][r], sum[1][r], sizeof sum[0][r]);
        assert_memory_equal(output[0][r], output[1][r], sizeof output[0][r]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels), cmocka_unit_test(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
