/* Merging key-value heads: what can be merged without loss is, through files, at far positions; what cannot is merged
 * better than by means; eigenvectors are eigenvectors. Models are random, written as Hugging Face folders. */
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

#include "base/context.h"
#include "base/eigen.h"
#include "base/least_squares.h"
#include "linnet/linnet.h"
#include "model/file.h"
#include "stored.h"

#define CHECK(call)                                                                     \
    do {                                                                                \
        if ((call) != LINNET_OK) fail_msg("%s: %s", #call, linnet_last_error(context)); \
    } while (0)

static linnet_context *context;

static void *reserve(int64_t count, size_t size) {
    void *block = calloc((size_t)(count > 0 ? count : 1), size);
    assert_non_null(block);
    return block;
}

/* ---- random numbers ---- */

static uint64_t seed;

static double uniform(void) { /* -1 to 1 */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(seed >> 11) / (double)(1ll << 52) - 1;
}

static double normal(void) {
    double sum = 0;
    for (int i = 0; i < 6; i++) sum += uniform();
    return sum / sqrt(2);
}

/* ---- models ---- */

enum { VOCABULARY = 96, WIDTH = 64, LAYERS = 2, INNER = 80, HEADS = 8 };

typedef struct spec {
    const char *name, *type, *more; /* model_type, more keys of config.json */
    int64_t key_value_heads, size, rotated;
    bool bias, fused, norms;
    int64_t planted; /* heads that there really are; 0: all are random */
    double noise;    /* added to what is planted, relative to its size */
    bool no_rope;    /* of the last layer */
} spec;

typedef struct tensor {
    char name[96];
    int64_t rows, columns; /* columns 0: a vector */
    float *values;
} tensor;

typedef struct folder {
    tensor tensors[64];
    int count;
} folder;

static float *add(folder *f, int layer, const char *name, int64_t rows, int64_t columns) {
    tensor *t = &f->tensors[f->count++];
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", name);
    else
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, name);
    t->rows = rows;
    t->columns = columns;
    t->values = reserve(rows * (columns ? columns : 1), sizeof(float));
    return t->values;
}

static float *add_random(folder *f, int layer, const char *name, int64_t rows, int64_t columns, double size) {
    float *values = add(f, layer, name, rows, columns);
    for (int64_t i = 0; i < rows * (columns ? columns : 1); i++) values[i] = (float)(size * normal());
    return values;
}

static void add_ones(folder *f, int layer, const char *name, int64_t rows) {
    float *values = add(f, layer, name, rows, 0);
    for (int64_t i = 0; i < rows; i++) values[i] = (float)(1 + 0.2 * uniform());
}

/* Random maps of a head; those of keys turn pairs (i, i + rotated / 2) and mix only what does not rotate. */
static void random_map(double *map, int64_t size, int64_t rotated) {
    memset(map, 0, (size_t)(size * size) * sizeof *map);
    for (int64_t i = 0; i < rotated / 2; i++) {
        const double x = normal(), y = normal();
        const int64_t j = i + rotated / 2;
        map[i * size + i] = map[j * size + j] = x;
        map[i * size + j] = -y;
        map[j * size + i] = y;
    }
    for (int64_t i = rotated; i < size; i++)
        for (int64_t j = rotated; j < size; j++) map[i * size + j] = normal() / sqrt((double)(size - rotated));
}

/* Head a := map_a head (a mod planted), so that those which belong together do not stand together. [.., columns] */
static void plant(float *rows, int64_t columns, const spec *s, const double *maps) {
    const int64_t size = s->size;
    const double base_size = 1.5 / sqrt(WIDTH);
    float *base = reserve(s->planted * size * columns, sizeof *base);
    memcpy(base, rows, (size_t)(s->planted * size * columns) * sizeof *base);
    for (int64_t a = 0; a < s->key_value_heads; a++)
        for (int64_t i = 0; i < size; i++)
            for (int64_t c = 0; c < columns; c++) {
                double sum = 0;
                for (int64_t j = 0; j < size; j++)
                    sum += maps[(a * size + i) * size + j] * (double)base[(a % s->planted * size + j) * columns + c];
                rows[(a * size + i) * columns + c] = (float)(sum + s->noise * normal() * base_size);
            }
    free(base);
}

static void add_attention(folder *f, const spec *s, int layer) {
    const int64_t queries = HEADS * s->size, keys = s->key_value_heads * s->size;
    const double size = 1.5 / sqrt(WIDTH);
    const int64_t rotated = s->no_rope && layer == LAYERS - 1 ? 0 : s->rotated;
    double *maps[2];
    for (int k = 0; k < 2; k++) {
        maps[k] = reserve(keys * s->size, sizeof(double));
        for (int64_t a = 0; a < s->key_value_heads; a++)
            random_map(maps[k] + a * s->size * s->size, s->size, k ? 0 : rotated);
    }
    float *kv[4] = {NULL};
    if (s->fused) {
        float *all = add_random(f, layer, "self_attn.qkv_proj.weight", queries + 2 * keys, WIDTH, size);
        kv[0] = all + queries * WIDTH;
        kv[1] = kv[0] + keys * WIDTH;
    } else {
        add_random(f, layer, "self_attn.q_proj.weight", queries, WIDTH, size);
        kv[0] = add_random(f, layer, "self_attn.k_proj.weight", keys, WIDTH, size);
        kv[1] = add_random(f, layer, "self_attn.v_proj.weight", keys, WIDTH, size);
    }
    if (s->bias) {
        add_random(f, layer, "self_attn.q_proj.bias", queries, 0, 0.5);
        kv[2] = add_random(f, layer, "self_attn.k_proj.bias", keys, 0, 3);
        kv[3] = add_random(f, layer, "self_attn.v_proj.bias", keys, 0, 0.5);
    }
    if (s->norms) {
        add_ones(f, layer, "self_attn.q_norm.weight", s->size);
        add_ones(f, layer, "self_attn.k_norm.weight", s->size);
    }
    for (int k = 0; k < 4 && s->planted; k++)
        if (kv[k]) plant(kv[k], k < 2 ? WIDTH : 1, s, maps[k % 2]);
    add_random(f, layer, "self_attn.o_proj.weight", WIDTH, queries, size);
    free(maps[0]);
    free(maps[1]);
}

static void write_folder(const folder *f, const char *path) {
    char name[256], *header = reserve(1 << 16, 1), *at = header;
    uint64_t offset = 0;
    for (int i = 0; i < f->count; i++) {
        const tensor *t = &f->tensors[i];
        const uint64_t bytes = (uint64_t)(t->rows * (t->columns ? t->columns : 1)) * sizeof(float);
        at += sprintf(at, "%c\"%s\":{\"dtype\":\"F32\",\"shape\":[%lld", i ? ',' : '{', t->name, (long long)t->rows);
        if (t->columns) at += sprintf(at, ",%lld", (long long)t->columns);
        at += sprintf(at, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)offset,
                      (unsigned long long)(offset + bytes));
        offset += bytes;
    }
    at += sprintf(at, "}");
    while ((at - header) % 8) at += sprintf(at, " ");
    const uint64_t length = (uint64_t)(at - header);
    snprintf(name, sizeof name, "%s/model.safetensors", path);
    FILE *file = fopen(name, "wb");
    assert_non_null(file);
    fwrite(&length, sizeof length, 1, file);
    fwrite(header, 1, (size_t)length, file);
    for (int i = 0; i < f->count; i++)
        fwrite(f->tensors[i].values, sizeof(float),
               (size_t)(f->tensors[i].rows * (f->tensors[i].columns ? f->tensors[i].columns : 1)), file);
    assert_int_equal(fclose(file), 0);
    free(header);
}

static char path[96], out[112], again[112];

static void make_model(const spec *s) {
    folder f = {.count = 0};
    char text[1024];
    seed = 7;
    add_random(&f, -1, "model.embed_tokens.weight", VOCABULARY, WIDTH, 1);
    add_ones(&f, -1, "model.norm.weight", WIDTH);
    add_random(&f, -1, "lm_head.weight", VOCABULARY, WIDTH, 0.2);
    for (int layer = 0; layer < LAYERS; layer++) {
        add_ones(&f, layer, "input_layernorm.weight", WIDTH);
        add_ones(&f, layer, "post_attention_layernorm.weight", WIDTH);
        add_attention(&f, s, layer);
        if (s->fused) {
            add_random(&f, layer, "mlp.gate_up_proj.weight", 2 * INNER, WIDTH, 0.1);
        } else {
            add_random(&f, layer, "mlp.gate_proj.weight", INNER, WIDTH, 0.1);
            add_random(&f, layer, "mlp.up_proj.weight", INNER, WIDTH, 0.1);
        }
        add_random(&f, layer, "mlp.down_proj.weight", WIDTH, INNER, 0.1);
    }
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"hidden_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,"
             "\"num_key_value_heads\":%lld,\"head_dim\":%lld,\"intermediate_size\":%d,\"vocab_size\":%d,"
             "\"max_position_embeddings\":8192,\"rms_norm_eps\":1e-6,\"rope_theta\":10000%s}",
             s->type, WIDTH, LAYERS, HEADS, (long long)s->key_value_heads, (long long)s->size, INNER, VOCABULARY,
             s->more ? s->more : "");
    write_text_file(path, "config.json", text);
    write_folder(&f, path);
    for (int i = 0; i < f.count; i++) free(f.tensors[i].values);
}

/* ---- running ---- */

enum { CALIBRATION = 1200, PROMPT = 160 };

static linnet_status copy_logits(void *user, int64_t first, int64_t count, const float *logits) {
    memcpy((float *)user + first * VOCABULARY, logits, (size_t)(count * VOCABULARY) * sizeof *logits);
    return LINNET_OK;
}

static void random_ids(int32_t *ids, int64_t count, uint64_t from) {
    seed = from;
    for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)((uniform() + 1) / 2 * VOCABULARY) % VOCABULARY;
}

/* Logits [tokens, VOCABULARY]; *pages: bytes of the cache. */
static float *run(const char *model_path, int64_t tokens, uint64_t *pages) {
    linnet_model *model;
    linnet_session *session;
    CHECK(linnet_model_open(context, model_path, &model));
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = tokens;
    settings.precision = LINNET_F32;
    settings.compute = LINNET_COMPUTE_EXACT;
    CHECK(linnet_session_open(model, &settings, &session));
    if (pages) *pages = linnet_session_plan(session).bytes_per_token;
    int32_t *ids = reserve(tokens, sizeof *ids);
    random_ids(ids, tokens, 99);
    float *logits = reserve(tokens * VOCABULARY, sizeof *logits);
    CHECK(linnet_session_feed_logits(session, ids, tokens, copy_logits, logits));
    free(ids);
    linnet_session_close(session);
    linnet_model_close(model);
    return logits;
}

/* Root of the mean square of the difference in standard deviations of the first; *largest in the same. */
static double difference(const float *a, const float *b, int64_t tokens, double *largest) {
    double square = 0, sum = 0, error = 0, most = 0;
    const int64_t count = tokens * VOCABULARY;
    for (int64_t i = 0; i < count; i++) {
        sum += (double)a[i];
        square += (double)a[i] * (double)a[i];
        const double d = (double)a[i] - (double)b[i];
        error += d * d;
        most = fmax(most, fabs(d));
    }
    const double deviation = sqrt(square / (double)count - sum * sum / (double)count / (double)count);
    if (largest) *largest = most / deviation;
    return sqrt(error / (double)count) / deviation;
}

static void merge_into(const char *to, int64_t heads, bool mean) {
    int32_t ids[CALIBRATION];
    random_ids(ids, CALIBRATION, 5);
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.type = LINNET_F32;
    settings.key_value_heads = heads;
    settings.mean_heads = mean;
    settings.calibration_ids = ids;
    settings.calibration_count = CALIBRATION;
    CHECK(linnet_convert(context, path, to, &settings));
}

static int set_up(void **state) {
    (void)state;
    strcpy(path, "/tmp/linnet-heads-XXXXXX");
    if (!mkdtemp(path)) return -1;
    snprintf(out, sizeof out, "%s/out.gguf", path);
    snprintf(again, sizeof again, "%s/again.gguf", path);
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 2;
    return linnet_context_open(&settings, &context) == LINNET_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    remove_stored(path);
    linnet_context_close(context);
    return 0;
}

/* ---- what can be merged without loss ---- */

static const spec lossless[] = {
    {.name = "llama, 4 to 2", .type = "llama", .key_value_heads = 4, .size = 16, .rotated = 16, .planted = 2},
    {.name = "llama, 8 to 2", .type = "llama", .key_value_heads = 8, .size = 16, .rotated = 16, .planted = 2},
    {.name = "llama, 8 to 4", .type = "llama", .key_value_heads = 8, .size = 8, .rotated = 8, .planted = 4},
    {.name = "llama, 4 to 1", .type = "llama", .key_value_heads = 4, .size = 16, .rotated = 16, .planted = 1},
    {.name = "qwen2, biases",
     .type = "qwen2",
     .key_value_heads = 4,
     .size = 16,
     .rotated = 16,
     .planted = 2,
     .bias = true},
    {.name = "phi3, fused, half of the keys rotate",
     .type = "phi3",
     .more = ",\"partial_rotary_factor\":0.5",
     .key_value_heads = 4,
     .size = 16,
     .rotated = 8,
     .planted = 2,
     .fused = true},
    {.name = "smollm3, a layer without rotation",
     .type = "smollm3",
     .more = ",\"no_rope_layers\":[1,0]",
     .key_value_heads = 4,
     .size = 16,
     .rotated = 16,
     .planted = 2,
     .no_rope = true},
};

static void test_lossless(void **state) {
    const spec *s = *state;
    uint64_t before, after;
    make_model(s);
    float *whole = run(path, PROMPT, &before);
    merge_into(out, s->planted, false);
    float *merged = run(out, PROMPT, &after);
    double largest;
    difference(whole, merged, PROMPT, &largest);
    print_message("             largest error %.1e deviations\n", largest);
    assert_true(largest < 1e-4);
    assert_int_equal(before * (uint64_t)s->planted, after * (uint64_t)s->key_value_heads);
    linnet_model *model;
    CHECK(linnet_model_open(context, out, &model));
    assert_int_equal(linnet_model_describe(model).key_value_heads, s->planted);
    linnet_model_close(model);
    free(whole);
    free(merged);
}

/* From a GGUF file, whose pairs are neighbours, as from the folder. */
static void test_from_gguf(void **state) {
    (void)state;
    make_model(&lossless[0]);
    float *whole = run(path, PROMPT, NULL);
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.type = LINNET_F32;
    CHECK(linnet_convert(context, path, again, &settings));
    char kept[96];
    strcpy(kept, path);
    snprintf(path, sizeof path, "%.90s", again);
    merge_into(out, 2, false);
    strcpy(path, kept);
    float *merged = run(out, PROMPT, NULL);
    double largest;
    difference(whole, merged, PROMPT, &largest);
    assert_true(largest < 1e-4);
    free(whole);
    free(merged);
}

/* The rotation at positions far beyond the calibration's windows. */
static void test_far(void **state) {
    (void)state;
    make_model(&lossless[0]);
    float *whole = run(path, 5000, NULL);
    merge_into(out, 2, false);
    float *merged = run(out, 5000, NULL);
    double largest;
    difference(whole + 4900 * VOCABULARY, merged + 4900 * VOCABULARY, 100, &largest);
    assert_true(largest < 2e-4);
    free(whole);
    free(merged);
}

/* ---- what cannot ---- */

static void test_errors(void **state) {
    const spec *s = *state;
    make_model(s);
    float *whole = run(path, PROMPT, NULL);
    merge_into(out, s->key_value_heads, false);
    float *same = run(out, PROMPT, NULL);
    double largest, last = 0;
    difference(whole, same, PROMPT, &largest);
    assert_true(largest < 1e-4);
    free(same);
    for (int64_t heads = s->key_value_heads / 2; heads >= 1; heads /= 2) {
        merge_into(out, heads, false);
        merge_into(again, heads, true);
        float *merged = run(out, PROMPT, NULL), *mean = run(again, PROMPT, NULL);
        const double error = difference(whole, merged, PROMPT, NULL), pooled = difference(whole, mean, PROMPT, NULL);
        print_message("             %lld heads: error %.3f, of means %.3f\n", (long long)heads, error, pooled);
        /* one norm serves all groups, and suits a single one best */
        if (!s->norms) assert_true(error > last);
        assert_true(error < pooled);
        last = error;
        free(merged);
        free(mean);
    }
    free(whole);
}

static const spec lossy[] = {
    {.name = "llama", .type = "llama", .key_value_heads = 8, .size = 16, .rotated = 16},
    {.name = "qwen2", .type = "qwen2", .key_value_heads = 8, .size = 16, .rotated = 16, .bias = true},
    {.name = "qwen3",
     .type = "qwen3",
     .key_value_heads = 8,
     .size = 16,
     .rotated = 16,
     .norms = true,
     .planted = 1,
     .noise = 0.3},
    {.name = "smollm3",
     .type = "smollm3",
     .more = ",\"no_rope_layers\":[1,0]",
     .key_value_heads = 8,
     .size = 16,
     .rotated = 16,
     .planted = 1,
     .noise = 0.3,
     .no_rope = true},
};

/* ---- refusals ---- */

static void test_refusals(void **state) {
    (void)state;
    const uint64_t before = linnet_memory_used(context);
    make_model(&lossless[0]);
    int32_t ids[8] = {1, 2, 3, VOCABULARY};
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.calibration_ids = ids;
    settings.calibration_count = 3;
    const int64_t impossible[] = {3, 8, -1, -4};
    for (size_t i = 0; i < sizeof impossible / sizeof *impossible; i++) {
        settings.key_value_heads = impossible[i];
        assert_int_equal(linnet_convert(context, path, out, &settings), LINNET_ERROR_ARGUMENT);
        assert_non_null(strstr(linnet_last_error(context), "1, 2, 4"));
    }
    settings.key_value_heads = 2;
    settings.calibration_count = 4;
    assert_int_equal(linnet_convert(context, path, out, &settings), LINNET_ERROR_ARGUMENT);
    assert_non_null(strstr(linnet_last_error(context), "outside the vocabulary"));
    settings.calibration_count = 0;
    assert_int_equal(linnet_convert(context, path, out, &settings), LINNET_ERROR_ARGUMENT);
    assert_non_null(strstr(linnet_last_error(context), "calibration text"));
    settings.calibration_ids = NULL;
    settings.calibration_text = "text for a model without a tokenizer";
    assert_int_equal(linnet_convert(context, path, out, &settings), LINNET_ERROR_UNSUPPORTED);
    /* settings of an older program end before the new members */
    settings.size = offsetof(linnet_convert_settings, key_value_heads);
    CHECK(linnet_convert(context, path, out, &settings));
    assert_int_equal(access(out, R_OK), 0);
    assert_int_equal(linnet_memory_used(context), before);
}

static int calls, stop_at;

static void stop(void *user, const char *what, int64_t done, int64_t total) {
    (void)user;
    (void)what;
    (void)done;
    (void)total;
    if (calls++ == stop_at) linnet_interrupt(context);
}

/* While the text is read and while layers are made: nothing is written, nothing is lost. */
static void test_interrupt(void **state) {
    (void)state;
    make_model(&lossy[2]);
    int32_t ids[CALIBRATION];
    random_ids(ids, CALIBRATION, 5);
    linnet_convert_settings settings = linnet_convert_settings_default();
    settings.key_value_heads = 2;
    settings.calibration_ids = ids;
    settings.calibration_count = CALIBRATION;
    const int calibrating = (CALIBRATION + 255) / 256;
    const int at[] = {0, calibrating - 1, calibrating + 2};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        linnet_context_close(context);
        linnet_context_settings with = linnet_context_settings_default();
        with.threads = 1;
        with.progress = stop;
        calls = 0;
        stop_at = at[i];
        assert_int_equal(linnet_context_open(&with, &context), LINNET_OK);
        const uint64_t before = linnet_memory_used(context);
        assert_int_equal(linnet_convert(context, path, out, &settings), LINNET_INTERRUPTED);
        assert_int_equal(linnet_memory_used(context), before);
        assert_int_not_equal(access(out, F_OK), 0);
    }
}

/* The same bytes for any number of threads. */
static void test_threads(void **state) {
    (void)state;
    make_model(&lossy[0]);
    merge_into(out, 2, false);
    linnet_context_close(context);
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    merge_into(again, 2, false);
    linnet_file *files[2];
    CHECK(linnet_file_open(context, out, &files[0]));
    CHECK(linnet_file_open(context, again, &files[1]));
    for (int64_t i = 0; i < linnet_file_tensors(files[0]); i++) {
        linnet_tensor_info a, b;
        assert_true(linnet_file_tensor(files[0], i, &a) && linnet_file_tensor(files[1], i, &b));
        assert_int_equal(a.bytes, b.bytes);
        assert_memory_equal(a.data, b.data, a.bytes);
    }
    linnet_file_close(files[0]);
    linnet_file_close(files[1]);
}

/* ---- eigenvectors ---- */

static void check_eigen(int64_t n, int64_t rank) {
    double *a = reserve(n * n, sizeof *a), *kept = reserve(n * n, sizeof *a), *values = reserve(n, sizeof *a),
           *alone = reserve(n, sizeof *a), *work = reserve(2 * n, sizeof *a), *vector = reserve(n, sizeof *a);
    for (int64_t r = 0; r < rank; r++) {
        for (int64_t i = 0; i < n; i++) vector[i] = normal();
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) a[i * n + j] += (r % 3 ? 1 : -1) * vector[i] * vector[j];
    }
    memcpy(kept, a, (size_t)(n * n) * sizeof *a);
    assert_true(ln_eigen(a, n, true, values, work));
    double size = 1e-300;
    for (int64_t i = 0; i < n; i++) size = fmax(size, fabs(values[i]));
    for (int64_t i = 0; i < n; i++) {
        assert_true(i == 0 || values[i] >= values[i - 1]);
        for (int64_t j = 0; j < n; j++) {
            double product = 0, along = 0;
            for (int64_t k = 0; k < n; k++) {
                product += kept[j * n + k] * a[i * n + k];
                along += a[i * n + k] * a[j * n + k];
            }
            assert_true(fabs(product - values[i] * a[i * n + j]) < 1e-12 * size * (double)n);
            assert_true(fabs(along - (i == j)) < 1e-12 * (double)n);
        }
    }
    memcpy(a, kept, (size_t)(n * n) * sizeof *a);
    assert_true(ln_eigen(a, n, false, alone, work));
    for (int64_t i = 0; i < n; i++) assert_true(fabs(alone[i] - values[i]) < 1e-12 * size * (double)n);
    kept[n / 2] = NAN;
    assert_false(ln_eigen(kept, n, true, values, work));
    free(a);
    free(kept);
    free(values);
    free(alone);
    free(work);
    free(vector);
}

static void test_eigen(void **state) {
    (void)state;
    seed = 3;
    for (int64_t n = 1; n < 12; n++)
        for (int64_t rank = 0; rank <= n + 1; rank++) check_eigen(n, rank);
    check_eigen(64, 20);
    check_eigen(96, 200);
    check_eigen(128, 64);
    check_eigen(100, 3);
}

/* Normal equations of more rows than a block, with weights, solved. */
static void test_least_squares(void **state) {
    (void)state;
    enum { ROWS = 300, COLUMNS = 70, SIDES = 40 };
    linnet_context_settings settings = linnet_context_settings_default();
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    float *x = reserve(ROWS * COLUMNS, sizeof *x), *y = reserve(ROWS * SIDES, sizeof *y);
    double *wanted = reserve(COLUMNS * SIDES, sizeof *wanted), *gram = reserve(COLUMNS * COLUMNS, sizeof *gram),
           *cross = reserve(COLUMNS * SIDES, sizeof *cross), *weight = reserve(ROWS, sizeof *weight);
    seed = 11;
    for (int i = 0; i < ROWS * COLUMNS; i++) x[i] = (float)(int)(4 * normal());
    for (int i = 0; i < COLUMNS * SIDES; i++) wanted[i] = (int)(3 * normal());
    for (int i = 0; i < ROWS; i++) {
        weight[i] = i % 3;
        for (int j = 0; j < SIDES; j++)
            for (int k = 0; k < COLUMNS; k++)
                y[i * SIDES + j] += (float)((double)x[i * COLUMNS + k] * wanted[k * SIDES + j]);
    }
    const ln_samples left = {x, COLUMNS, COLUMNS}, right = {y, SIDES, SIDES};
    ln_gram(context->team, left, left, ROWS, weight, gram);
    ln_gram(context->team, left, right, ROWS, weight, cross);
    assert_true(ln_cholesky(context->team, gram, COLUMNS));
    ln_cholesky_solve(context->team, gram, COLUMNS, cross, SIDES);
    for (int i = 0; i < COLUMNS * SIDES; i++) assert_true(fabs(cross[i] - wanted[i]) < 1e-9);
    double singular[4] = {1, 1, 1, 1};
    assert_false(ln_cholesky(context->team, singular, 2));
    free(x);
    free(y);
    free(wanted);
    free(gram);
    free(cross);
    free(weight);
    linnet_context_close(context);
}

enum { MOST = 32 };

static void name_test(struct CMUnitTest *tests, int *count, const char *what, const spec *s, CMUnitTestFunction test) {
    char *label = reserve(96, 1);
    snprintf(label, 96, "%s %s", what, s->name);
    tests[(*count)++] = (struct CMUnitTest){label, test, set_up, tear_down, (void *)(uintptr_t)s};
}

int main(void) {
    static struct CMUnitTest tests[MOST] = {
        cmocka_unit_test(test_eigen),
        cmocka_unit_test(test_least_squares),
        cmocka_unit_test_setup_teardown(test_far, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_from_gguf, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_interrupt, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_threads, set_up, tear_down),
    };
    int count = 7;
    for (size_t i = 0; i < sizeof lossless / sizeof *lossless; i++)
        name_test(tests, &count, "without loss:", &lossless[i], test_lossless);
    for (size_t i = 0; i < sizeof lossy / sizeof *lossy; i++)
        name_test(tests, &count, "errors:", &lossy[i], test_errors);
    return _cmocka_run_group_tests("heads", tests, (size_t)count, NULL, NULL);
}
