/* The AMX panel kernels, on tile instructions in plain C: checked like those of the table, on any processor with the
 * vector instructions they also use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ln_panel_fill_amx ln_panel_fill_amx_emulated
#include "amx_emulated.h"
#include "kernel/x86/panel_amx.c" /* on the instructions above */

#include "kernel_check.h"

static void test_kernels(void **state) {
    (void)state;
    const unsigned needed = LN_CPU_AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16;
    if ((ln_cpu_detect() & needed) != needed) skip();
    static const unsigned sets[] = {LN_CPU_AMX_INT8, LN_CPU_AMX_INT8 | LN_CPU_AMX_BF16};
    for (int i = 0; i < 2; i++) {
        ln_kernels kernels;
        ln_kernels_choose(needed | LN_CPU_AVX2, &kernels);
        ln_panel_fill_amx_emulated(sets[i], &kernels.matmul);
        for (int type = 0; type < LN_TYPES; type++) {
            const ln_panel_slot *slot = &kernels.matmul.panel[0][type];
            if (!slot->run || (slot->run != panel_int8 && slot->run != panel_bf16)) continue;
            const double error = check_panel_slot(slot, kernels.matmul.prepare[slot->form], (linnet_type)type);
            if (!(error <= 1)) print_error("%s %s: %g\n", slot->name, ln_format_of((linnet_type)type)->name, error);
            assert_true(error <= 1);
            assert_false(emulated.configured); /* released */
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
