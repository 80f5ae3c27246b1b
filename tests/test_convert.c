/* Conversion: the same model comes out, in GGUF's order; the output appears whole or not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "base/map.h"
#include "model/file.h"
#include "stored.h"

static const linnet_convert_settings *to_type(linnet_type type) {
    static linnet_convert_settings settings;
    settings = linnet_convert_settings_default();
    settings.type = type;
    return &settings;
}

static char folder[64], out[96], again[96];
static linnet_context *context;

static linnet_context *open_context(int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *opened = NULL;
    linnet_context_open(&settings, &opened);
    return opened;
}

enum { HIDDEN = 64, HEADS = 4, KEY_HEADS = 2, HEAD = 16, VOCABULARY = 100 };

/* Columns of 64: whole blocks. One row of 70000: longer than a piece. One matrix of 40 columns: no whole blocks. */
static const stored weights[] = {
    {"model.embed_tokens.weight", "BF16", VOCABULARY, HIDDEN},
    {"lm_head.weight", "BF16", 2, 70016},
    {"model.norm.weight", "BF16", HIDDEN, 0},
    {"model.layers.0.self_attn.q_proj.weight", "BF16", HEADS *HEAD, HIDDEN},
    {"model.layers.0.self_attn.k_proj.weight", "F32", KEY_HEADS *HEAD, HIDDEN},
    {"model.layers.0.self_attn.v_proj.weight", "F16", KEY_HEADS *HEAD, HIDDEN},
    {"model.layers.0.self_attn.k_proj.bias", "F16", KEY_HEADS *HEAD, 0},
    {"model.layers.0.mlp.up_proj.weight", "F32", 3000, HIDDEN},
    {"model.layers.0.mlp.down_proj.weight", "F32", HIDDEN, 40},
};
enum { WEIGHTS = sizeof weights / sizeof *weights };

static const char config[] = "{\"model_type\":\"%s\",\"hidden_size\":64,\"num_hidden_layers\":1,"
                             "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":3000%s}";

static int set_up(void **state) {
    (void)state;
    strcpy(folder, "/tmp/linnet-convert-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(out, sizeof out, "%s/out.gguf", folder);
    snprintf(again, sizeof again, "%s/again.gguf", folder);
    char text[512];
    snprintf(text, sizeof text, config, "llama", "");
    write_text_file(folder, "config.json", text);
    write_stored(folder, "model.safetensors", weights, WEIGHTS);
    context = open_context(2);
    return context ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    remove_stored(folder);
    linnet_context_close(context);
    return 0;
}

static void convert(const char *from, const char *to, linnet_type type) {
    if (linnet_convert(context, from, to, to_type(type)) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
}

static linnet_file *open_file(const char *path) {
    linnet_file *file;
    if (linnet_file_open(context, path, &file) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    return file;
}

/* Row of the source that becomes row `row` of rotated heads. */
static int64_t unrotated(int64_t row, int64_t rotated) {
    const int64_t in_head = row % HEAD;
    if (in_head >= rotated) return row;
    return row - in_head + (in_head % 2 ? rotated / 2 : 0) + in_head / 2;
}

/* Compares with the source; `error` relative to the largest value, 2. */
static void check_tensor(const linnet_file *file, const char *name, const stored *source, linnet_type type,
                         int64_t rotated, float error) {
    const linnet_tensor_info *info = ln_file_find(file, name);
    if (!info) fail_msg("%s is missing", name);
    assert_int_equal(info->type, type);
    const int64_t columns = source->columns ? source->columns : 1, values = source->rows * columns;
    assert_int_equal(info->size[0] * info->size[1], values);
    float *decoded = malloc((size_t)values * sizeof *decoded);
    assert_non_null(decoded);
    ln_format_of(type)->decode(info->data, decoded, values);
    for (int64_t i = 0; i < values; i++) {
        const int64_t row = unrotated(i / columns, rotated);
        const float wanted = stored_value(source, row * columns + i % columns);
        if (!(fabsf(decoded[i] - wanted) <= 2 * error))
            fail_msg("%s[%lld] is %g, not %g", name, (long long)i, (double)decoded[i], (double)wanted);
    }
    free(decoded);
}

static void test_types(void **state) {
    (void)state;
    static const struct {
        linnet_type type, ends;
        int file_type;
        float error, end_error;
    } rows[] = {{LINNET_F32, LINNET_F32, 0, 0, 0},
                {LINNET_F16, LINNET_F16, 1, 0, 0},
                {LINNET_BF16, LINNET_BF16, 32, 0, 0},
                {LINNET_Q8_0, LINNET_Q8_0, 7, 0.005f, 0.005f},
                {LINNET_Q4_0, LINNET_Q8_0, 2, 0.13f, 0.005f}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const linnet_type type = rows[i].type;
        const bool blocks = rows[i].error > 0;
        convert(folder, out, type);
        linnet_file *file = open_file(out);
        assert_string_equal(linnet_file_kind(file), "GGUF v3");
        assert_int_equal(ln_key_integer(ln_file_key(file, "general.file_type"), 0, -1), rows[i].file_type);
        assert_int_equal(ln_key_integer(ln_file_key(file, "general.quantization_version"), 0, -1), 2);
        assert_int_equal(ln_key_integer(ln_file_key_of(file, "attention.head_count"), 0, -1), 4);
        assert_int_equal(linnet_file_tensors(file), WEIGHTS);
        check_tensor(file, "token_embd.weight", &weights[0], rows[i].ends, 0, rows[i].end_error);
        check_tensor(file, "output.weight", &weights[1], rows[i].ends, 0, rows[i].end_error);
        check_tensor(file, "output_norm.weight", &weights[2], LINNET_F32, 0, 0);
        check_tensor(file, "blk.0.attn_q.weight", &weights[3], type, HEAD, rows[i].error);
        check_tensor(file, "blk.0.attn_k.weight", &weights[4], type, HEAD, rows[i].error);
        check_tensor(file, "blk.0.attn_v.weight", &weights[5], type, 0, rows[i].error);
        check_tensor(file, "blk.0.attn_k.bias", &weights[6], LINNET_F32, HEAD, 0);
        check_tensor(file, "blk.0.ffn_up.weight", &weights[7], type, 0, rows[i].error);
        check_tensor(file, "blk.0.ffn_down.weight", &weights[8], blocks ? LINNET_F16 : type, 0, 0);
        linnet_file_close(file);
    }
}

/* Half of each head rotates; and an architecture whose GGUF form keeps Hugging Face's order. */
static void test_order(void **state) {
    (void)state;
    char text[512];
    snprintf(text, sizeof text, config, "llama", ",\"partial_rotary_factor\":0.5");
    write_text_file(folder, "config.json", text);
    convert(folder, out, LINNET_F32);
    linnet_file *file = open_file(out);
    check_tensor(file, "blk.0.attn_q.weight", &weights[3], LINNET_F32, HEAD / 2, 0);
    linnet_file_close(file);
    snprintf(text, sizeof text, config, "qwen2", "");
    write_text_file(folder, "config.json", text);
    convert(folder, out, LINNET_F32);
    file = open_file(out);
    check_tensor(file, "blk.0.attn_q.weight", &weights[3], LINNET_F32, 0, 0);
    linnet_file_close(file);
}

static bool same_bytes(const char *a, const char *b) {
    ln_map maps[2];
    assert_int_equal(ln_map_open(context, a, &maps[0]), LINNET_OK);
    assert_int_equal(ln_map_open(context, b, &maps[1]), LINNET_OK);
    const bool same = maps[0].bytes == maps[1].bytes && memcmp(maps[0].data, maps[1].data, (size_t)maps[0].bytes) == 0;
    ln_map_close(&maps[0]);
    ln_map_close(&maps[1]);
    return same;
}

/* GGUF to GGUF: the same type is a copy, over the source itself too; threads change nothing. */
static void test_again(void **state) {
    (void)state;
    convert(folder, out, LINNET_Q8_0);
    convert(out, again, LINNET_Q8_0);
    assert_true(same_bytes(out, again));
    convert(again, again, LINNET_Q8_0);
    assert_true(same_bytes(out, again));
    linnet_context_close(context);
    context = open_context(1);
    convert(folder, again, LINNET_Q8_0);
    assert_true(same_bytes(out, again));
    convert(out, again, LINNET_F32);
    linnet_file *file = open_file(again);
    check_tensor(file, "blk.0.attn_q.weight", &weights[3], LINNET_F32, HEAD, 0.005f);
    linnet_file_close(file);
}

static int files_in_folder(void) {
    int count = 0;
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    while (readdir(listing)) count++;
    closedir(listing);
    return count;
}

/* A disk that fills up: the old file stays, the new one leaves nothing. */
static void test_full_disk(void **state) {
    (void)state;
    write_text_file(folder, "out.gguf", "the old one");
    const int before = files_in_folder();
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (int bytes = 100; bytes < 1000000; bytes *= 20) {
        small = limit;
        small.rlim_cur = (rlim_t)bytes;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        assert_int_equal(linnet_convert(context, folder, out, to_type(LINNET_F32)), LINNET_ERROR_FILE);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        assert_non_null(strstr(linnet_last_error(context), out));
        assert_non_null(strstr(linnet_last_error(context), "unchanged"));
        assert_int_equal(files_in_folder(), before);
    }
    signal(SIGXFSZ, handler);
    ln_map map;
    assert_int_equal(ln_map_open(context, out, &map), LINNET_OK);
    assert_int_equal(map.bytes, 11);
    assert_memory_equal(map.data, "the old one", 11);
    ln_map_close(&map);
}

static int64_t calls, last_done, last_total;
static linnet_context *to_interrupt;

static void count_progress(void *user, const char *what, int64_t done, int64_t total) {
    (void)user;
    (void)what;
    calls++;
    assert_true(done >= last_done && done <= total);
    last_done = done;
    last_total = total;
    if (to_interrupt) linnet_interrupt(to_interrupt);
}

static void test_progress_and_interrupt(void **state) {
    (void)state;
    linnet_context_close(context);
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    settings.progress = count_progress;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    convert(folder, out, LINNET_F32);
    assert_true(calls >= WEIGHTS);
    assert_int_equal(last_done, last_total);
    const int before = files_in_folder();
    calls = last_done = 0;
    to_interrupt = context;
    assert_int_equal(linnet_convert(context, folder, again, to_type(LINNET_F32)), LINNET_INTERRUPTED);
    assert_int_equal(calls, 1);
    assert_int_equal(files_in_folder(), before);
    to_interrupt = NULL;
}

static void test_refusals(void **state) {
    (void)state;
    char text[512], path[128];
    const uint64_t before = linnet_memory_used(context);
    assert_int_equal(linnet_convert(context, folder, out, to_type(LINNET_Q4_K)), LINNET_ERROR_ARGUMENT);
    assert_non_null(strstr(linnet_last_error(context), "q4_k"));
    assert_int_equal(linnet_convert(context, "/nowhere", out, to_type(LINNET_F32)), LINNET_ERROR_FILE);
    assert_int_equal(linnet_convert(context, folder, "/nowhere/x.gguf", to_type(LINNET_F32)), LINNET_ERROR_FILE);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(linnet_convert(context, path, out, to_type(LINNET_F32)), LINNET_ERROR_UNSUPPORTED);
    snprintf(text, sizeof text, config, "mamba-9", "");
    write_text_file(folder, "config.json", text);
    assert_int_equal(linnet_convert(context, folder, out, to_type(LINNET_F32)), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(context), "'mamba-9'"));
    assert_non_null(strstr(linnet_last_error(context), "qwen3"));
    write_text_file(folder, "config.json",
                    "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":1,"
                    "\"num_attention_heads\":5,\"head_dim\":16,\"intermediate_size\":3000}");
    assert_int_equal(linnet_convert(context, folder, out, to_type(LINNET_F32)), LINNET_ERROR_FORMAT);
    assert_non_null(strstr(linnet_last_error(context), "blk.0.attn_q.weight"));
    assert_int_equal(linnet_memory_used(context), before);
}

/* Beyond 65504 f16 ends; bf16 and f32 hold it. */
static void test_overflow(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *file = fopen(path, "r+b");
    const float large = 70000;
    assert_int_equal(fseek(file, -4, SEEK_END), 0);
    assert_int_equal(fwrite(&large, sizeof large, 1, file), 1);
    fclose(file);
    assert_int_equal(linnet_convert(context, folder, out, to_type(LINNET_F16)), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(context), "65504"));
    convert(folder, out, LINNET_BF16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_types, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_progress_and_interrupt, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_overflow, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
