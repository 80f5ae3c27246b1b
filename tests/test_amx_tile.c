/* Tile products on AMX, on tile instructions in plain C: the kernel check, and a whole mixer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ln_tile_fill_amx ln_tile_fill_amx_emulated
#include "amx_emulated.h"
#include "kernel/x86/tile_amx.c" /* on the instructions above */

#include <math.h>

#include "base/cpu.h"
#include "base/threads.h"
#include "kernel_check.h"
#include "mixer/mixer.h"

static bool can_run(void) {
    const unsigned needed = LN_CPU_AVX512 | LN_CPU_AVX512_BF16;
    return (ln_cpu_detect() & needed) == needed;
}

static void test_products(void **state) {
    (void)state;
    if (!can_run()) skip();
    ln_tile_kernels kernels;
    ln_tile_fill_amx_emulated(&kernels);
    const double error = check_tile_bf16(&kernels.bf16);
    if (!(error <= 1)) print_error("%g\n", error);
    assert_true(error <= 1);
    assert_false(emulated.configured); /* released */
}

/* A mixer with these kernels against the same in float32: what test_mixers allows of bf16. */
static void test_mixer(void **state) {
    (void)state;
    if (!can_run()) skip();
    enum { TOKENS = 150, HEADS = 2, KEY = 40, VALUE = 72 };
    static uint16_t query[TOKENS * KEY], key[TOKENS * KEY], value[TOKENS * HEADS * VALUE];
    static float decay[TOKENS * HEADS * KEY], output[2][TOKENS * HEADS * VALUE], memory[2][HEADS * KEY * VALUE];
    static float beta[TOKENS * HEADS];
    static const char *const names[] = {"simple_gla", "gla", "gated_delta_rule", "kda"};
    linnet_context_settings open = linnet_context_settings_default();
    open.threads = 2;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&open, &context), LINNET_OK);
    ln_random random;
    ln_random_seed(&random, 1);
    for (int i = 0; i < TOKENS * KEY; i++) query[i] = ln_float_bf16((float)ln_random_normal(&random));
    for (int i = 0; i < TOKENS * KEY; i++) key[i] = ln_float_bf16((float)ln_random_normal(&random));
    for (int i = 0; i < TOKENS * HEADS * VALUE; i++) value[i] = ln_float_bf16((float)ln_random_normal(&random));
    for (int i = 0; i < TOKENS * HEADS * KEY; i++) decay[i] = (float)(-0.2 * ln_random_unit(&random));
    for (int i = 0; i < TOKENS * HEADS; i++) beta[i] = (float)ln_random_unit(&random);
    for (int n = 0; n < 4; n++) {
        for (int exact = 0; exact < 2; exact++) {
            linnet_mixer_settings s = linnet_mixer_settings_default(names[n]);
            s.type = LINNET_BF16;
            s.heads = HEADS;
            s.key_heads = 1;
            s.key_size = KEY;
            s.value_size = VALUE;
            s.tokens = TOKENS;
            s.exact = exact;
            s.normalise_keys = n >= 2;
            const ln_mixer *mixer;
            assert_null(ln_mixer_complete(&s, &mixer));
            ln_kernels kernels;
            ln_kernels_choose(LN_CPU_AVX2 | LN_CPU_AVX512, &kernels);
            ln_tile_fill_amx_emulated(&kernels.tile);
            linnet_mixer_tensors t = {.size = sizeof t, .output.data = output[exact], .state_out = memory[exact]};
            t.input[0].data = query;
            t.input[1].data = key;
            t.input[2].data = value;
            t.input[3].data = decay;
            if (n >= 2) t.input[4].data = beta;
            void *workspace = aligned_alloc(64, ln_mixer_workspace(mixer, &kernels, 1, &s, LINNET_MIXER_FORWARD));
            assert_non_null(workspace);
            ln_team *alone; /* the emulated tiles are one set */
            assert_int_equal(ln_team_open(context, 1, &alone), LINNET_OK);
            ln_mixer_run(mixer, &kernels, alone, &s, &t, workspace, LINNET_MIXER_FORWARD);
            ln_team_close(context, alone);
            free(workspace);
            assert_false(emulated.configured);
        }
        double error = 0, size = 0;
        for (int i = 0; i < TOKENS * HEADS * VALUE; i++) {
            const double off = (double)output[0][i] - (double)output[1][i];
            error += off * off;
            size += (double)output[1][i] * (double)output[1][i];
        }
        for (int i = 0; i < HEADS * KEY * VALUE; i++) assert_true(fabsf(memory[0][i] - memory[1][i]) < 0.1f);
        assert_true(error > 0 && error < 4e-3 * 4e-3 * size);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products), cmocka_unit_test(test_mixer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
