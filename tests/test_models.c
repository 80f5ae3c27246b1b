/* Every architecture against Hugging Face transformers: each folder of golden/models holds a tiny model, a prompt and
 * the logits of every token (docs/goldens.md). The prompt is fed in several ways, from the folder and from its
 * conversion to GGUF; what comes out must lie within 1e-4 standard deviations of the reference, and not depend on the
 * number of threads by a single bit. Then sessions are forked, rewound, saved and loaded, and must go on as if nothing
 * had happened. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "linnet/linnet.h"

static const linnet_convert_settings *to_type(linnet_type type) {
    static linnet_convert_settings settings;
    settings = linnet_convert_settings_default();
    settings.type = type;
    return &settings;
}

static const double tolerance = 1e-4; /* standard deviations of the reference */

#define CHECK(context, call)                                                            \
    do {                                                                                \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(context)); \
    } while (0)

static void *reserve(size_t count, size_t size) {
    void *block = calloc(count ? count : 1, size);
    assert_non_null(block);
    return block;
}

static linnet_context *open_context(int threads, const char *cpu) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = cpu;
    linnet_context *context;
    CHECK(context, linnet_context_open(&settings, &context));
    return context;
}

/* ---- the reference ---- */

typedef struct golden {
    char folder[512];
    int32_t *ids;
    float *logits; /* [tokens, vocabulary] */
    int64_t tokens, vocabulary;
    double deviation;
} golden;

static double standard_deviation(const float *values, int64_t count) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)values[i];
    for (int64_t i = 0; i < count; i++) squares += pow((double)values[i] - sum / (double)count, 2);
    return sqrt(squares / (double)count);
}

static const linnet_tensor_info *find_tensor(const linnet_file *file, const char *name, linnet_tensor_info *info) {
    for (int64_t i = 0; linnet_file_tensor(file, i, info); i++)
        if (strcmp(info->name, name) == 0 && info->type == LINNET_F32) return info;
    fail_msg("the reference has no float32 tensor %s", name);
    return NULL;
}

static golden read_golden(const char *name) {
    golden g = {0};
    snprintf(g.folder, sizeof g.folder, "%s/golden/models/%s", TESTS_FOLDER, name);
    char path[600];
    snprintf(path, sizeof path, "%s/reference.safetensors", g.folder);
    linnet_context *context = open_context(1, NULL);
    linnet_file *file;
    CHECK(context, linnet_file_open(context, path, &file));
    linnet_tensor_info info;
    const float *ids = find_tensor(file, "input_ids", &info)->data;
    g.tokens = info.size[0];
    g.ids = reserve((size_t)g.tokens, sizeof *g.ids);
    for (int64_t i = 0; i < g.tokens; i++) g.ids[i] = (int32_t)ids[i];
    const float *logits = find_tensor(file, "logits", &info)->data;
    g.vocabulary = info.size[0];
    assert_int_equal(info.size[1], g.tokens);
    g.logits = reserve((size_t)(g.tokens * g.vocabulary), sizeof *g.logits);
    memcpy(g.logits, logits, (size_t)(g.tokens * g.vocabulary) * sizeof *g.logits);
    g.deviation = standard_deviation(g.logits, g.tokens * g.vocabulary);
    linnet_file_close(file);
    linnet_context_close(context);
    return g;
}

static void release_golden(golden *g) {
    free(g->ids);
    free(g->logits);
}

/* ---- running ---- */

typedef struct rows {
    float *to;
    int64_t vocabulary, next;
} rows;

static linnet_status take_rows(void *user, int64_t first, int64_t count, const float *logits) {
    rows *taken = user;
    assert_int_equal(first, taken->next);
    memcpy(taken->to + first * taken->vocabulary, logits, (size_t)(count * taken->vocabulary) * sizeof *logits);
    taken->next += count;
    return LINNET_OK;
}

/* Feeds ids[first .. end) in calls of `step` tokens; their logits go to the same rows of `logits`. */
static void feed(linnet_context *context, linnet_session *session, const golden *g, int64_t first, int64_t end,
                 int64_t step, float *logits) {
    for (int64_t at = first; at < end; at += step) {
        const int64_t count = at + step < end ? step : end - at;
        rows taken = {logits + at * g->vocabulary, g->vocabulary, 0};
        CHECK(context, linnet_session_feed_logits(session, g->ids + at, count, take_rows, &taken));
        assert_int_equal(taken.next, count);
        assert_int_equal(linnet_session_position(session), at + count);
    }
    assert_memory_equal(linnet_session_tokens(session), g->ids, (size_t)end * sizeof *g->ids);
}

/* Room for exactly the prompt: models with two sets of rotary factors choose by it. */
static linnet_session *open_session(linnet_context *context, linnet_model *model, const golden *g, int64_t piece,
                                    linnet_type precision) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = g->tokens;
    settings.precision = precision;
    settings.piece = piece;
    settings.compute = LINNET_COMPUTE_EXACT;
    linnet_session *session;
    CHECK(context, linnet_session_open(model, &settings, &session));
    return session;
}

typedef struct way {
    int64_t step;  /* tokens a call; 0: all */
    int64_t piece; /* tokens processed at once inside a call; 0: chosen by the plan */
    const char *cpu;
} way;

static const way ways[] = {{0, 0, NULL},       {0, 16, NULL},      {7, 0, NULL},   {1, 0, NULL},
                           {0, 0, "portable"}, {1, 0, "portable"}, {0, 0, "avx2"}, {1, 0, "avx2"}};

static float *run(const char *path, const golden *g, const way *w, int threads) {
    linnet_context *context = open_context(threads, w->cpu);
    linnet_model *model;
    CHECK(context, linnet_model_open(context, path, &model));
    assert_int_equal(linnet_model_describe(model).vocabulary, g->vocabulary);
    linnet_session *session = open_session(context, model, g, w->piece, LINNET_F32);
    float *logits = reserve((size_t)(g->tokens * g->vocabulary), sizeof *logits);
    feed(context, session, g, 0, g->tokens, w->step ? w->step : g->tokens, logits);
    assert_memory_equal(linnet_session_logits(session), logits + (g->tokens - 1) * g->vocabulary,
                        (size_t)g->vocabulary * sizeof *logits);
    linnet_session_close(session);
    linnet_model_close(model);
    linnet_context_close(context);
    return logits;
}

/* Returns the largest error in standard deviations. */
static double compare(const char *path, const golden *g, const way *w, const float *logits) {
    double worst = 0;
    int64_t place = 0;
    for (int64_t i = 0; i < g->tokens * g->vocabulary; i++) {
        const double error = fabs((double)logits[i] - (double)g->logits[i]) / g->deviation;
        if (!(error <= worst)) {
            worst = error;
            place = i;
        }
    }
    if (!(worst <= tolerance))
        fail_msg(
            "%s, calls of %lld, pieces of %lld, cpu %s: logit %lld of token %lld is %.6f, not %.6f: %.1e deviations",
            path, (long long)w->step, (long long)w->piece, w->cpu ? w->cpu : "any", (long long)(place % g->vocabulary),
            (long long)(place / g->vocabulary), (double)logits[place], (double)g->logits[place], worst);
    return worst;
}

static void match(const char *path, const golden *g) {
    double worst = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        float *one = run(path, g, &ways[i], 1);
        float *two = run(path, g, &ways[i], 2);
        worst = fmax(worst, compare(path, g, &ways[i], one));
        if (memcmp(one, two, (size_t)(g->tokens * g->vocabulary) * sizeof *one) != 0)
            fail_msg("%s, calls of %lld: two threads give other bits", path, (long long)ways[i].step);
        free(one);
        free(two);
    }
    print_message("             largest error %.1e deviations\n", worst);
}

static void temporary(char path[64]) {
    strcpy(path, "/tmp/linnet-models-XXXXXX");
    const int handle = mkstemp(path);
    assert_true(handle >= 0);
    close(handle);
}

static void test_folder(void **state) {
    golden g = read_golden(*state);
    match(g.folder, &g);
    release_golden(&g);
}

static void test_conversion(void **state) {
    golden g = read_golden(*state);
    char path[64];
    temporary(path);
    linnet_context *context = open_context(1, NULL);
    CHECK(context, linnet_convert(context, g.folder, path, to_type(LINNET_F32)));
    linnet_context_close(context);
    match(path, &g);
    unlink(path);
    release_golden(&g);
}

/* ---- memories that are forked, rewound, saved and loaded ---- */

typedef struct bench {
    golden g;
    linnet_context *context;
    linnet_model *model;
    int64_t half;
    float *logits, *again; /* uninterrupted, and what is compared with it */
} bench;

static bench open_bench(const char *name) {
    bench b = {.g = read_golden(name)};
    b.context = open_context(2, NULL);
    CHECK(b.context, linnet_model_open(b.context, b.g.folder, &b.model));
    b.half = b.g.tokens / 2;
    b.logits = reserve((size_t)(b.g.tokens * b.g.vocabulary), sizeof(float));
    b.again = reserve((size_t)(b.g.tokens * b.g.vocabulary), sizeof(float));
    linnet_session *session = open_session(b.context, b.model, &b.g, 0, LINNET_F32);
    feed(b.context, session, &b.g, 0, b.half, b.half, b.logits);
    feed(b.context, session, &b.g, b.half, b.g.tokens, b.g.tokens, b.logits);
    linnet_session_close(session);
    return b;
}

static void close_bench(bench *b) {
    free(b->logits);
    free(b->again);
    linnet_model_close(b->model);
    linnet_context_close(b->context);
    release_golden(&b->g);
}

static linnet_session *half_way(bench *b) {
    linnet_session *session = open_session(b->context, b->model, &b->g, 0, LINNET_F32);
    feed(b->context, session, &b->g, 0, b->half, b->half, b->again);
    return session;
}

/* Feeds the second half and demands the bits of the uninterrupted run. */
static void go_on(bench *b, linnet_session *session) {
    const int64_t at = b->half * b->g.vocabulary, count = (b->g.tokens - b->half) * b->g.vocabulary;
    assert_int_equal(linnet_session_position(session), b->half);
    memset(b->again + at, 0, (size_t)count * sizeof(float));
    feed(b->context, session, &b->g, b->half, b->g.tokens, b->g.tokens, b->again);
    assert_memory_equal(b->again + at, b->logits + at, (size_t)count * sizeof(float));
}

static void feed_other(bench *b, linnet_session *session, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const int32_t id = (int32_t)((b->g.ids[i] + 1) % b->g.vocabulary);
        CHECK(b->context, linnet_session_feed(session, &id, 1));
    }
}

static void test_fork(void **state) {
    bench b = open_bench(*state);
    linnet_session *session = half_way(&b), *fork, *twin, *third;
    CHECK(b.context, linnet_session_fork(session, &fork));
    CHECK(b.context, linnet_session_fork(session, &twin));
    feed_other(&b, fork, b.g.tokens - b.half);
    go_on(&b, session);
    linnet_session_close(session);
    CHECK(b.context, linnet_session_fork(twin, &third));
    go_on(&b, twin);
    linnet_session_close(twin);
    linnet_session_close(fork);
    go_on(&b, third);
    linnet_session_close(third);
    close_bench(&b);
}

static void test_rewind(void **state) {
    bench b = open_bench(*state);
    linnet_session *session = half_way(&b);
    assert_non_null(linnet_session_logits(session));
    feed_other(&b, session, 1);
    assert_true(linnet_session_rewind_limit(session) <= b.half);
    CHECK(b.context, linnet_session_rewind(session, b.half));
    assert_null(linnet_session_logits(session));
    go_on(&b, session);
    /* as far back as it goes, and no further */
    const int64_t limit = linnet_session_rewind_limit(session);
    assert_true(limit >= 0 && limit <= b.g.tokens);
    if (limit > 1) {
        assert_int_equal(linnet_session_rewind(session, limit - 1), LINNET_ERROR_UNSUPPORTED);
        assert_int_equal(linnet_session_position(session), b.g.tokens);
    }
    assert_int_equal(linnet_session_rewind(session, b.g.tokens + 1), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_session_rewind(session, -1), LINNET_ERROR_ARGUMENT);
    CHECK(b.context, linnet_session_rewind(session, limit));
    feed(b.context, session, &b.g, limit, b.g.tokens, b.g.tokens, b.again);
    compare(b.g.folder, &b.g, &ways[0], b.again);
    CHECK(b.context, linnet_session_rewind(session, 0));
    feed(b.context, session, &b.g, 0, b.half, b.half, b.again);
    go_on(&b, session);
    linnet_session_close(session);
    close_bench(&b);
}

static void test_save(void **state) {
    bench b = open_bench(*state);
    char path[64];
    temporary(path);
    linnet_session *session = half_way(&b);
    CHECK(b.context, linnet_session_save(session, path));
    go_on(&b, session);
    CHECK(b.context, linnet_session_load(session, path));
    go_on(&b, session);
    linnet_session_close(session);

    linnet_session *fresh = open_session(b.context, b.model, &b.g, 0, LINNET_F32);
    CHECK(b.context, linnet_session_load(fresh, path));
    go_on(&b, fresh);
    /* a damaged file is refused */
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -5, SEEK_END), 0);
    const int last = fgetc(file);
    assert_int_equal(fseek(file, -5, SEEK_END), 0);
    fputc(last ^ 1, file);
    fclose(file);
    assert_int_equal(linnet_session_load(fresh, path), LINNET_ERROR_FORMAT);
    linnet_session_close(fresh);
    unlink(path);
    close_bench(&b);
}

static void test_full(void **state) {
    bench b = open_bench(*state);
    linnet_session *session = half_way(&b);
    assert_int_equal(linnet_session_feed(session, b.g.ids, b.g.tokens), LINNET_ERROR_FULL);
    int32_t id = (int32_t)b.g.vocabulary;
    assert_int_equal(linnet_session_feed(session, &id, 1), LINNET_ERROR_ARGUMENT);
    id = -1;
    assert_int_equal(linnet_session_feed(session, &id, 1), LINNET_ERROR_ARGUMENT);
    go_on(&b, session);
    assert_int_equal(linnet_session_feed(session, b.g.ids, 1), LINNET_ERROR_FULL);
    assert_int_equal(linnet_session_position(session), b.g.tokens);
    linnet_session_close(session);
    close_bench(&b);
}

/* ---- a tensor that no layer knows ---- */

static size_t read_all(const char *path, char **data, size_t spare) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const size_t bytes = (size_t)ftell(file);
    rewind(file);
    *data = reserve(bytes + spare, 1);
    assert_int_equal(fread(*data, 1, bytes, file), bytes);
    fclose(file);
    return bytes;
}

static void write_all(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* Adds a float32 vector of `count` zeros, named `name`, to the text of a safetensors file. */
static size_t add_vector(char *data, size_t bytes, size_t spare, const char *name, size_t count) {
    uint64_t header;
    memcpy(&header, data, sizeof header);
    size_t last = sizeof header + (size_t)header - 1;
    while (data[last] != '}') last--;
    const size_t payload = bytes - sizeof header - (size_t)header, end = payload + 4 * count;
    char entry[256];
    const int wrote =
        snprintf(entry, sizeof entry, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}", name,
                 count, payload, end);
    assert_true(wrote > 0 && (size_t)wrote < sizeof entry && (size_t)wrote + 4 * count <= spare);
    memmove(data + last + wrote, data + last, bytes - last);
    memcpy(data + last, entry, (size_t)wrote);
    header += (uint64_t)wrote;
    memcpy(data, &header, sizeof header);
    memset(data + bytes + wrote, 0, 4 * count);
    return bytes + (size_t)wrote + 4 * count;
}

/* Biases of the feed-forward part, which no row of the table has: left out, the answer would be wrong. */
static void test_unknown_tensor(void **state) {
    golden g = read_golden(*state);
    char folder[] = "/tmp/linnet-models-XXXXXX", from[600], to[600], *data;
    assert_non_null(mkdtemp(folder));
    snprintf(from, sizeof from, "%s/config.json", g.folder);
    snprintf(to, sizeof to, "%s/config.json", folder);
    size_t bytes = read_all(from, &data, 0);
    write_all(to, data, bytes);
    free(data);
    snprintf(from, sizeof from, "%s/model.safetensors", g.folder);
    snprintf(to, sizeof to, "%s/model.safetensors", folder);
    bytes = read_all(from, &data, 1024);
    bytes = add_vector(data, bytes, 1024, "model.layers.1.mlp.up_proj.bias", 75);
    write_all(to, data, bytes);
    free(data);
    linnet_context *context = open_context(1, NULL);
    linnet_model *model;
    assert_int_equal(linnet_model_open(context, folder, &model), LINNET_ERROR_UNSUPPORTED);
    assert_non_null(strstr(linnet_last_error(context), "blk.1.ffn_up.bias"));
    linnet_context_close(context);
    unlink(to);
    snprintf(to, sizeof to, "%s/config.json", folder);
    unlink(to);
    rmdir(folder);
    release_golden(&g);
}

/* ---- the table: what the folder holds ---- */

enum { MOST = 200 };

static int visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static void add(struct CMUnitTest *tests, size_t *count, const char *kind, const char *name,
                CMUnitTestFunction function) {
    if (*count == MOST) abort();
    char *label = malloc(strlen(kind) + strlen(name) + 2), *model = strdup(name);
    if (!label || !model) abort();
    sprintf(label, "%s %s", name, kind);
    tests[(*count)++] = (struct CMUnitTest){label, function, NULL, NULL, model};
}

/* Arguments, where given, are the models to test. */
int main(int count, char **names) {
    struct dirent **entries;
    const int found = scandir(TESTS_FOLDER "/golden/models", &entries, visible, alphasort);
    if (found <= 0) {
        fprintf(stderr, "no models in %s/golden/models\n", TESTS_FOLDER);
        return 1;
    }
    static struct CMUnitTest tests[MOST];
    size_t tests_count = 0;
    for (int i = 0; i < found; i++) {
        const char *name = entries[i]->d_name;
        bool wanted = count < 2;
        for (int k = 1; k < count; k++) wanted = wanted || strcmp(names[k], name) == 0;
        if (wanted) {
            add(tests, &tests_count, "folder", name, test_folder);
            add(tests, &tests_count, "gguf", name, test_conversion);
        }
        free(entries[i]);
    }
    free(entries);
    static const char *const sessions[] = {"llama-3",   "gemma3",   "mistral-window", "lfm2",
                                           "lfm2-bias", "qwen3moe", "mamba",          "falcon-h1"};
    for (size_t i = 0; i < sizeof sessions / sizeof *sessions && count < 2; i++) {
        add(tests, &tests_count, "fork", sessions[i], test_fork);
        add(tests, &tests_count, "rewind", sessions[i], test_rewind);
        add(tests, &tests_count, "save", sessions[i], test_save);
        add(tests, &tests_count, "full", sessions[i], test_full);
    }
    if (count < 2) add(tests, &tests_count, "with an unknown tensor", "llama-2", test_unknown_tensor);
    const int failed = _cmocka_run_group_tests("models", tests, tests_count, NULL, NULL);
    for (size_t i = 0; i < tests_count; i++) {
        free((void *)(uintptr_t)tests[i].name);
        free(tests[i].initial_state);
    }
    return failed;
}
