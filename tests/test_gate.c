/* The gate of the built-in model: PyTorch's numbers, the same bits for any threads, and files that do not fit are
 * refused with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/gguf_write.h"
#include "model/model.h"

#define BUILT_IN TESTS_FOLDER "/../share/linnet/linnet-fledgling-q8_0.gguf"

enum { TOKENS = 40, WIDTH = 512 };

static linnet_context *open_context(int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

/* ---- numbers ---- */

static void run(linnet_context *context, const linnet_model *model, int64_t layer, const float *h, int64_t tokens,
                int64_t step, float *score) {
    const int threads = ln_team_size(context->team);
    const uint64_t bytes = ln_gate_workspace(model->gate, &model->kernels, threads, step);
    void *workspace = ln_allocate(context, bytes, 1, "workspace");
    float *aligned = ln_allocate(context, (uint64_t)(step * WIDTH), sizeof(float), "rows");
    assert_true(workspace && aligned);
    for (int64_t at = 0; at < tokens; at += step) {
        memcpy(aligned, h + at * WIDTH, (size_t)(step * WIDTH) * sizeof(float));
        ln_gate_run(model->gate, &model->kernels, context->team, layer, aligned, step, score + at * 2, workspace);
    }
    ln_release(context, aligned);
    ln_release(context, workspace);
}

static void test_golden(void **state) {
    (void)state;
    linnet_context *context = open_context(1), *three = open_context(3);
    linnet_model *model, *other;
    linnet_file *golden;
    assert_int_equal(linnet_model_open(context, BUILT_IN, &model), LINNET_OK);
    assert_int_equal(linnet_model_open(three, BUILT_IN, &other), LINNET_OK);
    assert_int_equal(linnet_file_open(context, TESTS_FOLDER "/golden/gate.gguf", &golden), LINNET_OK);
    assert_non_null(model->gate);
    assert_int_equal(model->gate->hidden, 64);
    assert_true(model->gate->importance[10] > 1);
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += model->gate->share[i];
    assert_true(fabsf(sum - 16) < 0.01f);
    const float *h = ln_file_find(golden, "h")->data;
    static const int64_t layers[] = {0, 5};
    for (int k = 0; k < 2; k++) {
        char name[16];
        snprintf(name, sizeof name, "score.%d", (int)layers[k]);
        const float *wanted = ln_file_find(golden, name)->data;
        float together[2 * TOKENS], threads[2 * TOKENS], alone[2 * TOKENS];
        run(context, model, layers[k], h, TOKENS, TOKENS, together);
        run(three, other, layers[k], h, TOKENS, TOKENS, threads);
        run(context, model, layers[k], h, TOKENS, 1, alone);
        assert_memory_equal(together, threads, sizeof together);
        for (int i = 0; i < 2 * TOKENS; i++) {
            assert_true(fabsf(together[i] - wanted[i]) < 1e-4f * (1 + fabsf(wanted[i])));
            assert_true(fabsf(alone[i] - wanted[i]) < 1e-4f * (1 + fabsf(wanted[i])));
        }
    }
    linnet_file_close(golden);
    linnet_model_close(model);
    linnet_model_close(other);
    linnet_context_close(context);
    linnet_context_close(three);
}

/* ---- files that do not fit ---- */

typedef struct part {
    const char *name;
    int64_t columns, rows;
} part;

/* A gate of 1 layer, width 8, 2 heads, 4 hidden, with one part changed. */
static void write_gate(linnet_context *context, const char *path, int changed, part with, float value,
                       int64_t importances) {
    part parts[] = {{"blk.0.attn_keep_up.weight", 8, 4},
                    {"blk.0.attn_keep_up.bias", 4, 1},
                    {"blk.0.attn_keep_down.weight", 4, 2},
                    {"blk.0.attn_keep_down.bias", 2, 1}};
    if (changed >= 0) parts[changed] = with;
    ln_gguf_writer writer = ln_gguf_writer_open(context);
    ln_write_text(&writer.keys, "general.architecture", "linnet-gate", 11);
    const float importance[4] = {value, 0, 0, 0};
    if (importances)
        ln_write_array(&writer.keys, "linnet.gate.importance", LN_FLOAT, importance, (uint64_t)importances);
    for (int i = 0; i < 4; i++) {
        const int64_t size[] = {parts[i].columns, parts[i].rows};
        ln_gguf_add_tensor(&writer, parts[i].name, LINNET_F32, parts[i].rows > 1 ? 2 : 1, size,
                           (uint64_t)(size[0] * size[1]) * sizeof(float));
    }
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    assert_int_equal(ln_gguf_write_head(&writer, &output), LINNET_OK);
    for (int i = 0; i < 4; i++) {
        for (int64_t k = 0; k < parts[i].columns * parts[i].rows; k++) {
            const float one = k == 0 ? value : 0.5f;
            ln_output_write(&output, &one, sizeof one);
        }
        ln_gguf_pad(&output);
    }
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    ln_gguf_writer_close(&writer);
}

static void try_gate(linnet_context *context, int changed, part with, float value, int64_t importances,
                     const char *sentence) {
    char path[] = "/tmp/linnet-gate-XXXXXX";
    const int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    write_gate(context, path, changed, with, value, importances);
    linnet_file *file;
    assert_int_equal(linnet_file_open(context, path, &file), LINNET_OK);
    ln_gate *gate = NULL;
    const linnet_status status = ln_gate_open(context, file, 1, 8, 2, &gate);
    if (sentence) {
        assert_int_equal(status, LINNET_ERROR_FORMAT);
        assert_null(gate);
        assert_non_null(strstr(linnet_last_error(context), sentence));
    } else {
        assert_int_equal(status, LINNET_OK);
        assert_non_null(gate);
    }
    ln_gate_close(gate);
    linnet_file_close(file);
    unlink(path);
}

static void test_refused(void **state) {
    (void)state;
    linnet_context *context = open_context(1);
    const part none = {0};
    try_gate(context, -1, none, 0.25f, 2, NULL);
    try_gate(context, -1, none, 0.25f, 0, NULL);
    try_gate(context, -1, none, 0.25f, 3, "a number for each of 2 heads");
    try_gate(context, -1, none, -1.0f, 2, "not negative");
    try_gate(context, -1, none, NAN, 0, "finite");
    try_gate(context, 0, (part){"blk.0.attn_keep_up.weight", 16, 4}, 0.25f, 0, "size that the model asks for");
    try_gate(context, 1, (part){"blk.0.attn_keep_up.bias", 5, 1}, 0.25f, 0, "size that the model asks for");
    try_gate(context, 2, (part){"blk.0.attn_keep_down.weight", 4, 3}, 0.25f, 0, "size that the model asks for");
    try_gate(context, 3, (part){"blk.0.something", 2, 1}, 0.25f, 0, "is missing");
    try_gate(context, 0, (part){"blk.0.attn_keep_up.weight", 8, 1025}, 0.25f, 0, "1024 rows");
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
