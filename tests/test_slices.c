/* Activations in slices: for every architecture, the bits of the whole; and a bound on their bytes that holds whatever
 * the length of the prompt. The models are those of golden/models with a feed-forward part wide enough to be cut, of
 * random numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/context.h"
#include "base/random.h"
#include "generate/session.h"
#include "linnet/linnet.h"

#define CHECK(context, call)                                                            \
    do {                                                                                \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(context)); \
    } while (0)

enum { COLUMNS = 2592, PIECE = 37 }; /* 81 blocks of 32; neither a multiple of any unit */

static linnet_context *open_context(int threads, const char *cpu) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = cpu;
    linnet_context *context;
    CHECK(context, linnet_context_open(&settings, &context));
    return context;
}

/* ---- wide models ---- */

static char *read_all(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

static void widen_config(const char *from, const char *to) {
    json_t *config = json_load_file(from, 0, NULL);
    assert_non_null(config);
    json_t *nested = json_object_get(config, "text_config");
    json_object_set_new(nested ? nested : config, "intermediate_size", json_integer(COLUMNS));
    json_object_set_new(nested ? nested : config, "block_auto_adjust_ff_dim", json_false());
    assert_int_equal(json_dump_file(config, to, 0), 0);
    json_decref(config);
}

/* Of a dense feed-forward part. */
static bool is_wide(const char *name) {
    if (strstr(name, ".experts.") || strstr(name, ".shared_expert") || strstr(name, ".mlp.gate.")) return false;
    return strstr(name, ".mlp.") || strstr(name, ".feed_forward.w") ||
           (strstr(name, ".feed_forward.") && strstr(name, "_proj."));
}

/* The new shape of a tensor of the feed-forward part; its number of values. */
static size_t widen_shape(const char *name, json_t *shape) {
    const size_t wide = strstr(name, "down_proj") || strstr(name, ".w2.") ? 1 : 0;
    json_array_set_new(shape, wide, json_integer(strstr(name, "gate_up") ? 2 * COLUMNS : COLUMNS));
    return (size_t)(json_integer_value(json_array_get(shape, 0)) * json_integer_value(json_array_get(shape, 1)));
}

/* false: the model has none. */
static bool widen_weights(const char *from, const char *to) {
    size_t bytes;
    char *data = read_all(from, &bytes);
    uint64_t header;
    memcpy(&header, data, sizeof header);
    json_t *tensors = json_loadb(data + 8, header, 0, NULL), *entry;
    assert_non_null(tensors);
    const char *old = data + 8 + header, *name;
    FILE *payload = tmpfile();
    ln_random random;
    ln_random_seed(&random, 11);
    size_t end = 0;
    bool any = false;
    json_object_foreach(tensors, name, entry) {
        if (!strcmp(name, "__metadata__")) continue;
        json_t *offsets = json_object_get(entry, "data_offsets");
        const size_t first = (size_t)json_integer_value(json_array_get(offsets, 0)),
                     last = (size_t)json_integer_value(json_array_get(offsets, 1)), begin = end;
        if (is_wide(name)) {
            any = true;
            const size_t count = widen_shape(name, json_object_get(entry, "shape"));
            const bool f32 = !strcmp(json_string_value(json_object_get(entry, "dtype")), "F32");
            for (size_t i = 0; i < count; i++) {
                const float value = 0.05f * (float)ln_random_normal(&random);
                const uint16_t brain = ln_float_bf16(value);
                fwrite(f32 ? (const void *)&value : &brain, f32 ? 4 : 2, 1, payload);
            }
            end += count * (f32 ? 4 : 2);
        } else {
            fwrite(old + first, 1, last - first, payload);
            end += last - first;
        }
        json_array_set_new(offsets, 0, json_integer((json_int_t)begin));
        json_array_set_new(offsets, 1, json_integer((json_int_t)end));
    }
    char *text = json_dumps(tensors, JSON_COMPACT);
    FILE *file = fopen(to, "wb");
    assert_true(text && file && payload);
    header = strlen(text);
    fwrite(&header, sizeof header, 1, file);
    fwrite(text, 1, header, file);
    rewind(payload);
    for (int c; (c = getc(payload)) != EOF;) putc(c, file);
    assert_int_equal(fclose(file), 0);
    fclose(payload);
    free(text);
    json_decref(tensors);
    free(data);
    return any;
}

/* The model `name`, wide, as a GGUF file of `type`; false: it has nothing to be widened. */
static bool make_model(const char *name, linnet_type type, char path[64]) {
    char folder[] = "/tmp/linnet-slices-XXXXXX", from[600], other[600], config[600], weights[600];
    assert_non_null(mkdtemp(folder));
    snprintf(from, sizeof from, "%s/golden/models/%s/config.json", TESTS_FOLDER, name);
    snprintf(config, sizeof config, "%s/config.json", folder);
    snprintf(other, sizeof other, "%s/golden/models/%s/model.safetensors", TESTS_FOLDER, name);
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    const bool any = widen_weights(other, weights);
    if (any) widen_config(from, config);
    strcpy(path, "/tmp/linnet-slices-XXXXXX");
    close(mkstemp(path));
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.type = type;
    linnet_context *context = open_context(1, NULL);
    if (any) CHECK(context, linnet_convert(context, folder, path, &settings));
    linnet_context_close(context);
    unlink(config);
    unlink(weights);
    rmdir(folder);
    if (!any) unlink(path);
    return any;
}

/* ---- the same bits ---- */

/* Logits [2 * PIECE + 3, vocabulary]: two pieces, then few tokens, taken `rows` at a time. */
static float *run(linnet_model *model, const ln_forward_shape *shape, int64_t rows) {
    const int64_t vocabulary = model->hyper.vocabulary, counts[] = {PIECE, PIECE, 3};
    ln_forward forward;
    CHECK(model->context, ln_forward_open(model, shape, 100, &forward));
    const ln_memory_shape memory_shape = ln_session_shape(model, 100, PIECE, LINNET_F16, NULL, 0);
    ln_memory *memory;
    CHECK(model->context, ln_memory_open(model->context, &memory_shape, &memory));
    float *logits = calloc((size_t)(vocabulary * (2 * PIECE + 3)), sizeof *logits), *to = logits;
    int32_t ids[PIECE];
    for (int i = 0; i < 3; i++) {
        for (int t = 0; t < counts[i]; t++) ids[t] = (int32_t)((31 * t + 7 * i + 3) % vocabulary);
        CHECK(model->context, ln_forward_run(&forward, memory, ids, counts[i]));
        for (int64_t t = 0; t < counts[i]; t += rows) {
            const int64_t count = t + rows < counts[i] ? rows : counts[i] - t;
            ln_forward_logits(&forward, t, count, counts[i], to);
            to += count * vocabulary;
        }
    }
    ln_memory_close(memory);
    ln_forward_close(&forward);
    return logits;
}

static void check_model(const char *path, const char *cpu, bool exact) {
    linnet_context *context = open_context(2, cpu);
    linnet_model *model;
    CHECK(context, linnet_model_open(context, path, &model));
    const int64_t columns = model->hyper.feed_forward, unit = ln_forward_unit(model, exact);
    assert_int_equal(columns, COLUMNS);
    const ln_forward_shape shapes[] = {{PIECE, columns, columns, exact, 0},
                                       {PIECE, unit, unit, exact, 0},
                                       {PIECE, unit, 48, exact, 0},
                                       {PIECE, 2 * unit, 256, exact, 0},
                                       {PIECE, columns, 512, exact, 0}};
    float *whole = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        float *logits = run(model, &shapes[i], i % 2 ? 5 : PIECE);
        if (i == 0) {
            whole = logits;
            continue;
        }
        if (memcmp(whole, logits, sizeof(float) * (size_t)(model->hyper.vocabulary * (2 * PIECE + 3))) != 0)
            fail_msg("cpu %s, exact %d: slices of %lld, steps of %lld give other bits", cpu ? cpu : "any", exact,
                     (long long)shapes[i].slice, (long long)shapes[i].step);
        free(logits);
    }
    free(whole);
    linnet_model_close(model);
    linnet_context_close(context);
}

static void test_same_bits(void **state) {
    static const linnet_type types[] = {LINNET_Q8_0, LINNET_BF16};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char path[64];
        if (!make_model(*state, types[i], path)) skip();
        check_model(path, NULL, false);
        if (i == 0) check_model(path, NULL, true);
        if (i == 0) check_model(path, "avx2", false);
        if (i == 0 && strstr(*state, "llama")) check_model(path, "portable", false);
        unlink(path);
    }
}

/* ---- the bound ---- */

/* Opens a session of `context` tokens within `activations` bytes, feeds `tokens`; what it took beside its pages and
 * what there was before. */
static uint64_t taken(const char *path, int64_t tokens, uint64_t activations, linnet_plan *plan) {
    linnet_context *context = open_context(2, NULL);
    linnet_model *model;
    linnet_session *session;
    CHECK(context, linnet_model_open(context, path, &model));
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = tokens;
    settings.activations = activations;
    settings.precision = LINNET_F16;
    const uint64_t before = linnet_memory_used(context);
    CHECK(context, linnet_session_open(model, &settings, &session));
    *plan = linnet_session_plan(session);
    assert_int_equal(linnet_memory_used(context) - before, plan->pages + plan->workspace);
    int32_t *ids = calloc((size_t)tokens, sizeof *ids);
    for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)(i * 31 % model->hyper.vocabulary);
    CHECK(context, linnet_session_feed(session, ids, tokens));
    free(ids);
    const uint64_t peak = linnet_memory_peak(context);
    linnet_session_close(session);
    assert_int_equal(linnet_memory_used(context), before);
    linnet_model_close(model);
    linnet_context_close(context);
    return peak - before - plan->pages;
}

/* A window of 17 tokens: work is linear in the length. */
static void test_any_length(void **state) {
    (void)state;
    char path[64];
    make_model("mistral-window", LINNET_Q8_0, path);
    static const int64_t lengths[] = {1024, 8192, 65536};
    const uint64_t bounds[] = {4 << 20, 1200 << 10};
    for (size_t b = 0; b < sizeof bounds / sizeof *bounds; b++) {
        uint64_t first = 0;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths - b; i++) {
            linnet_plan plan;
            const uint64_t bytes = taken(path, lengths[i], bounds[b], &plan);
            assert_true(bytes <= bounds[b]);
            assert_int_equal(bytes, plan.workspace);
            if (i == 0) first = bytes;
            assert_int_equal(bytes, first);
        }
    }
    unlink(path);
}

static linnet_status count_rows(void *user, int64_t first, int64_t count, const float *logits) {
    (void)first;
    (void)logits;
    *(int64_t *)user += count;
    return LINNET_OK;
}

/* Every bound from the smallest on is met, used, and never overstepped; one byte less is refused with the figure. */
static void test_bounds(void **state) {
    (void)state;
    char path[64];
    make_model("llama-3", LINNET_BF16, path);
    linnet_context *context = open_context(2, NULL);
    linnet_model *model;
    CHECK(context, linnet_model_open(context, path, &model));
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = 3000;
    settings.activations = 1;
    linnet_plan plan;
    assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_MEMORY);
    const uint64_t smallest = plan.smallest_workspace;
    char figure[32];
    snprintf(figure, sizeof figure, "%llu", (unsigned long long)smallest);
    assert_non_null(strstr(linnet_last_error(context), figure));
    settings.activations = smallest - 1;
    assert_int_equal(linnet_plan_session(model, &settings, &plan), LINNET_ERROR_MEMORY);
    bool cut = false;
    for (uint64_t bound = smallest; bound < 64 << 20; bound += bound / 7) {
        settings.activations = bound;
        CHECK(context, linnet_plan_session(model, &settings, &plan));
        assert_true(plan.workspace <= bound && plan.smallest_workspace == smallest);
        cut = cut || plan.slice < plan.feed_forward;
    }
    assert_true(cut);
    /* The logits of every token stay inside as well. */
    settings.activations = smallest + (100 << 10);
    settings.context = 300;
    const uint64_t before = linnet_memory_used(context);
    linnet_session *session;
    CHECK(context, linnet_session_open(model, &settings, &session));
    int32_t ids[300] = {1, 2, 3};
    int64_t rows = 0;
    CHECK(context, linnet_session_feed_logits(session, ids, 300, count_rows, &rows));
    assert_int_equal(rows, 300);
    assert_true(linnet_memory_peak(context) <= before + linnet_session_plan(session).pages + settings.activations);
    linnet_session_close(session);
    linnet_model_close(model);
    linnet_context_close(context);
    unlink(path);
}

/* Models of one file. */
static int usable(const struct dirent *entry) {
    char path[600];
    snprintf(path, sizeof path, "%s/golden/models/%s/model.safetensors", TESTS_FOLDER, entry->d_name);
    return access(path, R_OK) == 0;
}

/* Arguments, where given, are the models to test. */
int main(int count, char **names) {
    struct dirent **entries;
    const int found = scandir(TESTS_FOLDER "/golden/models", &entries, usable, alphasort);
    static struct CMUnitTest tests[102];
    size_t made = 0;
    for (int i = 0; i < found && made < 100; i++) {
        bool wanted = count < 2;
        for (int k = 1; k < count; k++) wanted = wanted || strcmp(names[k], entries[i]->d_name) == 0;
        if (wanted)
            tests[made++] =
                (struct CMUnitTest){entries[i]->d_name, test_same_bits, NULL, NULL, (void *)entries[i]->d_name};
    }
    if (made == 0) return 1;
    tests[made++] = (struct CMUnitTest)cmocka_unit_test(test_any_length);
    tests[made++] = (struct CMUnitTest)cmocka_unit_test(test_bounds);
    const int failed = _cmocka_run_group_tests("slices", tests, made, NULL, NULL);
    for (int i = 0; i < found; i++) free(entries[i]);
    free(entries);
    return failed;
}
