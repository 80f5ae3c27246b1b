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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
