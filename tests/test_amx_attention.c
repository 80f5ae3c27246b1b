/* Attention's bf16 way, on tile instructions in plain C, against the float32 way on the same pages: masks, biases,
 * caps, sinks, groups, sizes, values that are columns of the keys, and values that are not finite. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ln_attend_fill_amx ln_attend_fill_amx_emulated
#include "amx_emulated.h"
#include "attention_pages.h"
#include "kernel/x86/attend_amx.c" /* on the instructions above */

#include "base/context.h"
#include "base/cpu.h"
#include "base/random.h"
#include "mixer/attention.h"

typedef struct scene {
    ln_attention attention;
    int64_t keys, tokens;
    linnet_type precision;
    bool value_in_key;
    ln_bias bias;
} scene;

static float *random_floats(int64_t n, uint64_t seed) {
    float *x = malloc((size_t)n * sizeof *x);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = (float)ln_random_normal(&random);
    return x;
}

typedef struct store {
    ln_page_view view;
    unsigned char *bytes;
    const unsigned char **slots;
} store;

static store make_pages(const scene *s, float poison, int64_t poisoned) {
    const ln_attention *a = &s->attention;
    ln_page_layout layout;
    assert_true(ln_page_layout_of(s->precision, s->precision, a->key_size, a->value_size, &layout));
    if (s->value_in_key) ln_page_layout_join(&layout);
    const int64_t pages = (s->keys + 31) / 32, size = s->precision == LINNET_F32 ? 4 : 2;
    const linnet_type rows = s->precision;
    store made = {.bytes = aligned_alloc(64, (size_t)(pages * a->key_value_heads) * layout.bytes),
                  .slots = malloc((size_t)pages * sizeof(void *))};
    memset(made.bytes, 0xff, (size_t)(pages * a->key_value_heads) * layout.bytes);
    for (int64_t p = 0; p < pages; p++) made.slots[p] = made.bytes + (uint64_t)p * layout.bytes;
    made.view = (ln_page_view){.layout = layout,
                               .key_value_heads = a->key_value_heads,
                               .slots = made.slots,
                               .slot_count = pages,
                               .head_stride = (uint64_t)pages * layout.bytes,
                               .end = s->keys};
    for (int64_t head = 0; head < a->key_value_heads; head++) {
        float *keys = random_floats(s->keys * a->key_size, 5 + (uint64_t)head);
        float *values = random_floats(s->keys * a->value_size, 9 + (uint64_t)head);
        if (poisoned >= 0 && head == 0) values[poisoned * a->value_size + 3] = poison;
        char *key_codes = malloc((size_t)(s->keys * a->key_size * 4)),
             *value_codes = malloc((size_t)(s->keys * a->value_size * 4));
        ln_format_of(rows)->encode(keys, key_codes, s->keys * a->key_size);
        ln_format_of(rows)->encode(values, value_codes, s->keys * a->value_size);
        for (int64_t p = 0; p < pages; p++) {
            const void *key[32], *value[32];
            const int64_t n = s->keys - 32 * p < 32 ? s->keys - 32 * p : 32;
            for (int64_t t = 0; t < n; t++) {
                key[t] = key_codes + (32 * p + t) * a->key_size * size;
                value[t] = value_codes + (32 * p + t) * a->value_size * size;
            }
            ln_page_layout whole = layout;
            unsigned char *to = (unsigned char *)(uintptr_t)ln_page_of(&made.view, head, p);
            if (s->value_in_key) whole.value_size = 0;
            ln_page_fill(&whole, to, rows, n, key, value);
        }
        free(keys);
        free(values);
        free(key_codes);
        free(value_codes);
    }
    return made;
}

/* packed: the keys and values once for all tiles. */
static float *run(const scene *s, const store *pages, const ln_kernels *kernels, bool exact, bool packed, float **lse) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    ln_attention a = s->attention;
    a.bf16 = !exact;
    const int64_t q = a.heads * a.key_size, o = a.heads * a.value_size;
    float *query = random_floats(s->tokens * q, 77), *output = malloc((size_t)(s->tokens * o) * sizeof *output);
    *lse = malloc((size_t)(s->tokens * a.heads) * sizeof **lse);
    ln_attention_sequence sequence = {.view = pages->view,
                                      .keys = s->keys,
                                      .tokens = s->tokens,
                                      .position = s->keys - s->tokens,
                                      .query = query,
                                      .output = output,
                                      .query_stride = q,
                                      .query_head_stride = a.key_size,
                                      .output_stride = o,
                                      .output_head_stride = a.value_size,
                                      .log_sum_exp = *lse,
                                      .bias = s->bias};
    const uint64_t bytes = ln_attention_workspace(kernels, 1, &a, 1, s->tokens);
    unsigned char *workspace = ln_allocate(context, bytes + 64, 1, "workspace");
    memset(workspace, 0xff, bytes + 64);
    unsigned char *operands = NULL;
    if (packed) {
        const uint64_t size = ln_attention_operand_bytes(kernels, &a, s->keys);
        operands = ln_allocate(context, size, 1, "operands");
        memset(operands, 0xff, size);
        ln_attention_pack(kernels, context->team, &a, &sequence, operands);
    }
    ln_attention_run(kernels, context->team, &a, &sequence, 1, workspace);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + (uint64_t)i], 0xff);
    ln_release(context, operands);
    ln_release(context, workspace);
    free(query);
    linnet_context_close(context);
    return output;
}

/* bf16 has 8 bits: queries, keys, values and weights are each off by up to 2^-9, rms about 2^-10.3; a score of size s
 * is off by about s times that, and so is its weight. */
static const double TOLERANCE = 1.2e-2, LSE_TOLERANCE = 6e-2;

static bool choose(ln_kernels *kernels) {
    const unsigned needed = LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16;
    if ((ln_cpu_detect() & needed) != needed) return false;
    ln_kernels_choose(needed, kernels);
    ln_attend_fill_amx_emulated(&kernels->attend);
    return true;
}

static void compare(const scene *s) {
    ln_kernels kernels;
    if (!choose(&kernels)) skip();
    const store pages = make_pages(s, 0, -1);
    float *lse, *exact_lse;
    float *output = run(s, &pages, &kernels, false, false, &lse);
    float *exact = run(s, &pages, &kernels, true, false, &exact_lse);
    if (!s->value_in_key) {
        float *packed_lse, *packed = run(s, &pages, &kernels, false, true, &packed_lse);
        const int64_t rows = s->tokens * s->attention.heads;
        double worst = 0;
        for (int64_t i = 0; i < rows * s->attention.value_size; i++)
            worst = fmax(worst, fabs((double)packed[i] - (double)output[i]));
        for (int64_t i = 0; i < rows; i++)
            if (packed_lse[i] != lse[i]) worst = fmax(worst, fabs((double)packed_lse[i] - (double)lse[i]));
        if (!(worst < 2e-2)) fail_msg("packed once: off by %g", worst);
        free(packed);
        free(packed_lse);
    }
    double error = 0, size = 0;
    for (int64_t i = 0; i < s->tokens * s->attention.heads * s->attention.value_size; i++) {
        error += pow((double)output[i] - (double)exact[i], 2);
        size += pow((double)exact[i], 2);
    }
    error = sqrt(error / size);
    if (!(error < TOLERANCE) || error == 0)
        fail_msg("heads %d/%d sizes %d/%d keys %d tokens %d: error %g", (int)s->attention.heads,
                 (int)s->attention.key_value_heads, (int)s->attention.key_size, (int)s->attention.value_size,
                 (int)s->keys, (int)s->tokens, error);
    for (int64_t i = 0; i < s->tokens * s->attention.heads; i++) {
        if (lse[i] == exact_lse[i]) continue; /* -inf too */
        if (!(fabs((double)lse[i] - (double)exact_lse[i]) < LSE_TOLERANCE))
            fail_msg("log-sum-exp of row %d: %g, not %g", (int)i, (double)lse[i], (double)exact_lse[i]);
    }
    free(lse);
    free(exact_lse);
    free(output);
    free(exact);
    free(pages.bytes);
    free(pages.slots);
}

static scene scene_of(int64_t heads, int64_t key_value_heads, int64_t key_size, int64_t value_size, int64_t keys,
                      int64_t tokens) {
    return (scene){.attention = {.heads = heads,
                                 .key_value_heads = key_value_heads,
                                 .key_size = key_size,
                                 .value_size = value_size,
                                 .scale = 1 / sqrtf((float)key_size),
                                 .mask = {.causal = true}},
                   .keys = keys,
                   .tokens = tokens,
                   .precision = LINNET_BF16,
                   .bias = {.heads = heads, .key_value_heads = key_value_heads}};
}

static void test_shapes(void **state) {
    (void)state;
    static const int64_t shapes[][6] = {{2, 2, 64, 64, 300, 300}, {4, 1, 128, 128, 200, 77}, {6, 2, 40, 24, 129, 65},
                                        {1, 1, 8, 8, 33, 33},     {5, 1, 256, 264, 97, 13},  {3, 1, 96, 80, 160, 160},
                                        {7, 1, 16, 16, 40, 700}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int precision = 0; precision < 2; precision++) {
            scene s = scene_of(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4], shapes[i][5]);
            s.precision = precision ? LINNET_F32 : LINNET_BF16;
            compare(&s);
            s.attention.mask.causal = false;
            compare(&s);
        }
}

static void test_options(void **state) {
    (void)state;
    static const float slopes[4] = {0.5f, 0.25f, 0.01f, 1}, sinks[4] = {0, 2, -1, 5};
    static const int64_t documents[] = {0, 60, 61, 200, 400};
    for (int option = 0; option < 7; option++) {
        scene s = scene_of(4, 2, 32, 48, 300, 290);
        if (option == 1 || option == 6) s.attention.mask.window = 50;
        if (option == 2) s.attention.mask.prefix = 100;
        if (option == 3 || option == 6) s.attention.mask.documents = 4;
        s.attention.mask.document_offsets = documents;
        if (option == 4 || option == 6) s.attention.soft_cap = 2;
        if (option == 5 || option == 6) s.bias.alibi = slopes;
        if (option == 0 || option == 6) s.attention.sinks = sinks;
        compare(&s);
    }
}

static void test_values_in_keys(void **state) {
    (void)state;
    for (int precision = 0; precision < 2; precision++) {
        scene s = scene_of(48, 1, 576, 512, 70, 2);
        s.value_in_key = true;
        s.precision = precision ? LINNET_F32 : LINNET_BF16;
        compare(&s);
    }
}

/* A value that is not finite reaches the rows of its head that see it, and no other. */
static void test_poison(void **state) {
    (void)state;
    ln_kernels kernels;
    if (!choose(&kernels)) skip();
    const float poisons[] = {NAN, INFINITY, 1e30f};
    for (int i = 0; i < 3; i++) {
        const scene s = scene_of(4, 2, 16, 16, 260, 260);
        const store pages = make_pages(&s, poisons[i], 150), clean = make_pages(&s, 0, -1);
        float *lse, *clean_lse;
        float *output = run(&s, &pages, &kernels, false, i % 2, &lse);
        float *expected = run(&s, &clean, &kernels, true, false, &clean_lse);
        for (int64_t t = 0; t < 260; t++)
            for (int64_t h = 0; h < 4; h++)
                for (int64_t c = 0; c < 16; c++) {
                    const int64_t at = (t * 4 + h) * 16 + c;
                    if (h < 2 && t >= 150 && c == 3)
                        assert_true(i == 2 ? fabsf(output[at]) > 1e20f : !isfinite(output[at]));
                    else if (!(fabsf(output[at] - expected[at]) < 0.1f))
                        fail_msg("poison %d: token %d head %d column %d: %g, not %g", i, (int)t, (int)h, (int)c,
                                 (double)output[at], (double)expected[at]);
                }
        free(lse);
        free(clean_lse);
        free(output);
        free(expected);
        free(pages.bytes);
        free(pages.slots);
        free(clean.bytes);
        free(clean.slots);
    }
}

/* Pages of several layouts, partly filled, with biases of keys. */
static void test_mixed_pages(void **state) {
    (void)state;
    static const linnet_type types[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0};
    static const int64_t sizes[][2] = {{64, 64}, {128, 80}, {40, 24}, {96, 128}, {264, 16}};
    ln_kernels kernels;
    if (!choose(&kernels)) skip();
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    for (uint64_t seed = 0; seed < 40; seed++) {
        const int64_t shared = 1 + (int64_t)(seed % 4), heads = 1 + (int64_t)(seed % 3 == 0),
                      tokens = 32 + (int64_t)(seed * 7 % 50);
        const ln_attention a = {.heads = shared * heads,
                                .key_value_heads = heads,
                                .key_size = sizes[seed % 5][0],
                                .value_size = sizes[seed % 5][1],
                                .scale = 1 / sqrtf((float)sizes[seed % 5][0]),
                                .bf16 = true,
                                .mask = {.causal = true}};
        lane l = lane_make(&a, types, 4, (tokens + 31) / 32 + (int64_t)(seed % 20), tokens, seed);
        lane_set_biases(&l, seed % 3 == 1, seed % 3 == 2);
        lane_solve(&l);
        const ln_attention_sequence sequence = lane_sequence(&l);
        for (int packed = 0; packed < 2; packed++) {
            lane_run(&l, &kernels, context, 1, &sequence, packed);
            double error = 0, size = 0;
            for (int64_t i = 0; i < tokens * a.heads * a.value_size; i++) {
                error += pow((double)l.output[i] - l.expected[i], 2);
                size += pow(l.expected[i], 2);
            }
            error = sqrt(error / size);
            if (!(error < TOLERANCE) || error < 1e-5 || !(lane_lse_error(&l) < LSE_TOLERANCE))
                fail_msg("seed %d packed %d: error %g, of log-sum-exp %g", (int)seed, packed, error,
                         lane_lse_error(&l));
        }
        lane_free(&l);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_options),
                                       cmocka_unit_test(test_values_in_keys), cmocka_unit_test(test_poison),
                                       cmocka_unit_test(test_mixed_pages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
