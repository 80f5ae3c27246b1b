/* KV Prediction from the small built-in model to the built-in model: PyTorch's numbers, recall from keys and values
 * that the model did not compute, and refusals. */
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

#include "base/map.h"
#include "linnet/session.h"
#include "model/file.h"
#include "model/gguf_write.h"

#define BUILT_IN TESTS_FOLDER "/../share/linnet/linnet-fledgling-q8_0.gguf"
#define HELPER TESTS_FOLDER "/../share/linnet/linnet-nestling-q8_0.gguf"

enum { CONTEXT = 1536 };

typedef struct pair {
    linnet_context *context;
    linnet_model *model, *helping;
    linnet_session *session, *helper;
} pair;

static void open_pair(pair *p, int threads, linnet_compute compute, int64_t piece) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    assert_int_equal(linnet_context_open(&settings, &p->context), LINNET_OK);
    assert_int_equal(linnet_model_open(p->context, BUILT_IN, &p->model), LINNET_OK);
    assert_int_equal(linnet_model_open(p->context, HELPER, &p->helping), LINNET_OK);
    linnet_session_settings s = linnet_session_settings_default();
    s.context = CONTEXT;
    s.compute = compute;
    s.precision = compute == LINNET_COMPUTE_EXACT ? LINNET_F32 : LINNET_F16;
    s.piece = piece;
    assert_int_equal(linnet_session_open(p->helping, &s, &p->helper), LINNET_OK);
    s.piece = 0;
    assert_int_equal(linnet_session_open(p->model, &s, &p->session), LINNET_OK);
}

static void close_pair(pair *p) {
    linnet_session_close(p->session);
    linnet_session_close(p->helper);
    linnet_model_close(p->model);
    linnet_model_close(p->helping);
    linnet_context_close(p->context);
}

static void test_golden(void **state) {
    (void)state;
    pair p;
    open_pair(&p, 2, LINNET_COMPUTE_EXACT, 0);
    linnet_file *golden;
    assert_int_equal(linnet_file_open(p.context, TESTS_FOLDER "/golden/prediction.gguf", &golden), LINNET_OK);
    const float *stored = ln_file_find(golden, "ids")->data, *wanted = ln_file_find(golden, "logits")->data;
    int32_t ids[300];
    for (int i = 0; i < 300; i++) ids[i] = (int32_t)stored[i];
    /* in pieces, the last of which is fed to the model itself */
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids, 100), LINNET_OK);
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids + 100, 160), LINNET_OK);
    assert_null(linnet_session_logits(p.session));
    assert_int_equal(linnet_session_position(p.session), 260);
    for (int last = 0; last < 2; last++) {
        const int64_t at = linnet_session_position(p.session);
        assert_int_equal(linnet_session_feed(p.session, ids + at, 299 + last - at), LINNET_OK);
        const float *logits = linnet_session_logits(p.session);
        for (int i = 0; i < 8192; i++) assert_true(fabsf(logits[i] - wanted[last * 8192 + i]) < 2e-3f);
    }
    linnet_file_close(golden);
    close_pair(&p);
}

/* The first `room` tokens of a text. */
static int64_t put(const linnet_model *model, const char *text, int32_t *ids, int64_t room) {
    static int32_t made[8192];
    int64_t count;
    assert_int_equal(
        linnet_tokenize(linnet_model_tokenizer(model), text, strlen(text), LINNET_TOKENIZE_SPECIAL, made, 8192, &count),
        LINNET_OK);
    if (count > room) count = room;
    memcpy(ids, made, (size_t)count * sizeof *ids);
    return count;
}

static void test_recall(void **state) {
    (void)state;
    int32_t answers[2][8];
    for (int run = 0; run < 2; run++) { /* other pieces, other threads */
        pair p;
        open_pair(&p, 1 + run, LINNET_COMPUTE_FAST, run ? 64 : 0);
        static char prose[8192];
        FILE *file = fopen(TESTS_FOLDER "/../share/linnet/document.txt", "rb");
        assert_non_null(file);
        prose[fread(prose, 1, sizeof prose - 1, file)] = 0;
        fclose(file);
        int32_t ids[CONTEXT];
        int64_t n = put(p.model, prose, ids, 500);
        n += put(p.model, "\nThe parcel number of Xena is 27182.\n", ids + n, 64);
        n += put(p.model, prose + 3000, ids + n, 700);
        assert_int_equal(linnet_session_predict(p.session, p.helper, ids, n), LINNET_OK);
        const int64_t question = put(p.model, "<|user|>What is the parcel number of Xena?<|assistant|>", ids, 64);
        assert_int_equal(linnet_session_feed(p.session, ids, question), LINNET_OK);
        for (int i = 0; i < 6; i++) {
            const float *logits = linnet_session_logits(p.session);
            int32_t best = 0;
            for (int32_t k = 1; k < 8192; k++)
                if (logits[k] > logits[best]) best = k;
            answers[run][i] = best;
            assert_int_equal(linnet_session_feed(p.session, &best, 1), LINNET_OK);
        }
        int32_t wanted[8];
        assert_int_equal(put(p.model, "27182<|end|>", wanted, 8), 6);
        assert_memory_equal(answers[run], wanted, 6 * sizeof *wanted);
        close_pair(&p);
    }
}

static void test_refused(void **state) {
    (void)state;
    pair p;
    open_pair(&p, 1, LINNET_COMPUTE_FAST, 0);
    const int32_t ids[] = {10, 11, 8192};
    assert_int_equal(linnet_session_predict(p.helper, p.session, ids, 2), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(p.context), "predict.gguf"));
    assert_int_equal(linnet_session_predict(p.session, p.session, ids, 2), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids, 3), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_session_position(p.session), 0);
    assert_int_equal(linnet_session_feed(p.helper, ids, 1), LINNET_OK);
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids, 2), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_session_rewind(p.helper, 0), LINNET_OK);
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids, 2), LINNET_OK);
    linnet_session *second;
    linnet_session_settings s = linnet_session_settings_default();
    s.context = CONTEXT;
    assert_int_equal(linnet_session_open(p.helping, &s, &second), LINNET_OK);
    assert_int_equal(linnet_session_predict(second, p.helper, ids, 0), LINNET_ERROR_ARGUMENT); /* other positions */
    assert_int_equal(linnet_session_feed(second, ids, 2), LINNET_OK);
    assert_int_equal(linnet_session_predict(second, p.helper, ids, 2), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(p.context), "other models"));
    linnet_session_close(second);
    s.policy = "snapkv";
    s.cache = 4 << 20;
    assert_int_equal(linnet_session_open(p.model, &s, &second), LINNET_OK);
    assert_int_equal(linnet_session_rewind(p.helper, 0), LINNET_OK);
    assert_int_equal(linnet_session_predict(second, p.helper, ids, 2), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(p.context), "policy"));
    linnet_session_close(second);
    close_pair(&p);
}

/* ---- a model that helps itself ---- */

/* Maps that take of all layers' keys and values those of their own layer. */
static void write_identity(linnet_context *context, const char *path, int64_t layers, int64_t rows) {
    ln_gguf_writer writer = ln_gguf_writer_open(context);
    const int64_t columns = layers * rows;
    float *values = calloc((size_t)(rows * columns), sizeof *values);
    assert_non_null(values);
    ln_write_text(&writer.keys, "general.architecture", "linnet-prediction", 17);
    for (int64_t i = 0; i < layers; i++) {
        char name[64];
        snprintf(name, sizeof name, "kvp.blk.%d.weight", (int)i);
        ln_gguf_add_tensor(&writer, name, LINNET_F32, 2, (const int64_t[]){columns, rows},
                           (uint64_t)(rows * columns) * sizeof *values);
        snprintf(name, sizeof name, "kvp.blk.%d.bias", (int)i);
        ln_gguf_add_tensor(&writer, name, LINNET_F32, 1, &rows, (uint64_t)rows * sizeof *values);
    }
    ln_output output;
    assert_int_equal(ln_output_open(context, path, &output), LINNET_OK);
    assert_int_equal(ln_gguf_write_head(&writer, &output), LINNET_OK);
    for (int64_t i = 0; i < layers; i++) {
        memset(values, 0, (size_t)(rows * columns) * sizeof *values);
        for (int64_t r = 0; r < rows; r++) values[r * columns + i * rows + r] = 1;
        ln_output_write(&output, values, (size_t)(rows * columns) * sizeof *values);
        ln_gguf_pad(&output);
        memset(values, 0, (size_t)rows * sizeof *values);
        ln_output_write(&output, values, (size_t)rows * sizeof *values);
        ln_gguf_pad(&output);
    }
    assert_int_equal(ln_output_close(&output, true), LINNET_OK);
    ln_gguf_writer_close(&writer);
    free(values);
}

/* Through maps that change nothing, the model's own prediction is what it would have read. Its keys have neither norms
 * nor biases, which would be applied twice. */
static void test_identity(void **state) {
    (void)state;
    enum { TOKENS = 200, PIECE = 64 };
    pair p = {0};
    assert_int_equal(linnet_context_open(NULL, &p.context), LINNET_OK);
    char folder[] = "/tmp/linnet-predict-XXXXXX", path[64], maps[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    snprintf(maps, sizeof maps, "%s/model.predict.gguf", folder);
    linnet_convert_settings convert = linnet_convert_settings_default();
    convert.type = LINNET_F32;
    assert_int_equal(linnet_convert(p.context, TESTS_FOLDER "/golden/models/llama-2", path, &convert), LINNET_OK);
    assert_int_equal(linnet_model_open(p.context, path, &p.model), LINNET_OK);
    const linnet_model_info info = linnet_model_describe(p.model);
    write_identity(p.context, maps, info.layers, info.key_value_heads * (info.key_size + info.value_size));
    linnet_session_settings s = linnet_session_settings_default();
    s.context = TOKENS + 8;
    s.piece = PIECE;
    s.compute = LINNET_COMPUTE_EXACT;
    s.precision = LINNET_F32;
    linnet_session *own;
    assert_int_equal(linnet_session_open(p.model, &s, &p.session), LINNET_OK);
    assert_int_equal(linnet_session_open(p.model, &s, &p.helper), LINNET_OK);
    assert_int_equal(linnet_session_open(p.model, &s, &own), LINNET_OK);
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * 7919 + 13) % info.vocabulary);
    assert_int_equal(linnet_session_predict(p.session, p.helper, ids, TOKENS - 1), LINNET_OK);
    assert_int_equal(linnet_session_feed(own, ids, TOKENS - 1), LINNET_OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(linnet_session_feed(p.session, &ids[TOKENS - 1 - i], 1), LINNET_OK);
        assert_int_equal(linnet_session_feed(own, &ids[TOKENS - 1 - i], 1), LINNET_OK);
        assert_memory_equal(linnet_session_logits(p.session), linnet_session_logits(own),
                            (size_t)info.vocabulary * sizeof(float));
    }
    linnet_session_close(own);
    close_pair(&p);
    unlink(path);
    unlink(maps);
    rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity), cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_recall), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
