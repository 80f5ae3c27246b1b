/* Owns: a model with fewer key-value heads: calibration, and folding what heads_basis.c found into the weights.
 *
 *     K' = encode K        Q'_ab = decode_a' Q_ab        V' = encode V        O'_ab = O_ab decode_a
 *
 * for the query heads b of the key-value head a, put in the order of the groups, so that query heads of one new head
 * stand together; biases as columns of their matrices. A layer is made when its first tensor is asked for: one layer in
 * float32 is in memory at a time, beside what its projections saw of the calibration text.
 */
#include "model/convert_heads.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/heads_attend.h"
#include "model/heads_norms.h"
#include "model/part_attention.h"

enum {
    CALIBRATION_TOKENS = 4096,
    WINDOW = 2048, /* tokens read from an empty memory */
    PIECE = 256,
    DISTANCE = 8192, /* that rotations must be right over */
    BLOCKS = 32      /* of one layer */
};

struct ln_heads {
    linnet_context *context;
    linnet_model *model;
    int64_t count; /* key-value heads to be */
    bool mean;
    int32_t *ids;
    int64_t tokens;       /* of the calibration */
    float *seen;          /* [layers, tokens, width] */
    int64_t fed;          /* tokens that all layers have seen */
    double *frequency[2]; /* [rope.size / 2] each: global, local */
    int64_t layer;        /* whose values are in `made`; -1: none */
    float *made; /* query, key, value rows [.., width], their biases, output [width, ..], norms [2, key_size] */
    void *blocks[BLOCKS];
    int blocks_used;
};

/* Where the parts of `made` begin, in floats; rows of query, key, value. */
typedef struct places {
    int64_t rows[3], projections[4], biases[4], output, norms, all;
} places;

static places places_of(const ln_heads *heads) {
    const ln_hyperparameters *h = &heads->model->hyper;
    places p = {.rows = {h->heads * h->key_size, heads->count * h->key_size, heads->count * h->value_size}};
    for (int i = 0; i < 3; i++) {
        p.projections[i + 1] = p.projections[i] + p.rows[i] * h->width;
        p.biases[i + 1] = p.biases[i] + p.rows[i];
    }
    for (int i = 0; i < 4; i++) p.biases[i] += p.projections[3];
    p.output = p.biases[3];
    p.norms = p.output + h->width * h->heads * h->value_size;
    p.all = p.norms + 2 * h->key_size;
    return p;
}

/* ---- calibration ---- */

static void keep_rows(void *watcher, int64_t layer, const float *h, int64_t tokens) {
    ln_heads *heads = watcher;
    const int64_t width = heads->model->hyper.width;
    memcpy(heads->seen + (layer * heads->tokens + heads->fed) * width, h, (size_t)(tokens * width) * sizeof *h);
}

static linnet_status feed(ln_heads *heads, ln_forward *forward, ln_memory *memory) {
    linnet_status status = LINNET_OK;
    while (heads->fed < heads->tokens && status == LINNET_OK) {
        ln_progress(heads->context, "reading the calibration text", heads->fed, heads->tokens);
        const int64_t in_window = heads->fed % WINDOW;
        if (in_window == 0) status = ln_memory_rewind(memory, 0);
        const int64_t piece = ln_min_i64(PIECE, ln_min_i64(WINDOW - in_window, heads->tokens - heads->fed));
        if (status == LINNET_OK) status = ln_forward_run(forward, memory, heads->ids + heads->fed, piece);
        if (status == LINNET_OK) heads->fed += piece;
    }
    return status;
}

static linnet_status calibrate(ln_heads *heads) {
    linnet_model *model = heads->model;
    const ln_hyperparameters *h = &model->hyper;
    const int64_t window = ln_min_i64(WINDOW, heads->tokens);
    heads->seen = ln_allocate(heads->context, (uint64_t)h->layers * (uint64_t)heads->tokens,
                              (uint64_t)h->width * sizeof(float), "what the layers see of the calibration text");
    if (!heads->seen) return LINNET_ERROR_MEMORY;
    const ln_forward_shape shape = {
        .piece = ln_min_i64(PIECE, window), .slice = h->feed_forward, .step = h->feed_forward, .exact = true};
    const ln_memory_shape memory_shape = {.layers = h->layers,
                                          .key_value_heads = h->key_value_heads,
                                          .key_size = h->key_size,
                                          .value_size = h->value_size,
                                          .window = model->windows,
                                          .precision = LINNET_F32,
                                          .capacity = window,
                                          .piece = shape.piece};
    ln_forward forward = {0};
    ln_memory *memory = NULL;
    linnet_status status = ln_forward_open(model, &shape, window, &forward);
    if (status == LINNET_OK) status = ln_memory_open(heads->context, &memory_shape, &memory);
    if (status == LINNET_OK) {
        forward.watch = keep_rows;
        forward.watcher = heads;
        status = feed(heads, &forward, memory);
    }
    ln_memory_close(memory);
    ln_forward_close(&forward);
    return status;
}

static linnet_status take_ids(ln_heads *heads, const linnet_convert_settings *settings) {
    linnet_context *context = heads->context;
    const int64_t vocabulary = heads->model->hyper.vocabulary;
    int64_t count = settings->calibration_count;
    heads->ids = NULL;
    if (settings->calibration_ids) {
        heads->ids = ln_allocate(context, (uint64_t)ln_max_i64(count, 1), sizeof *heads->ids, "calibration ids");
        if (!heads->ids) return LINNET_ERROR_MEMORY;
        for (int64_t i = 0; i < count; i++) heads->ids[i] = settings->calibration_ids[i];
    } else if (settings->calibration_text) {
        const linnet_tokenizer *tokenizer = linnet_model_tokenizer(heads->model);
        if (!tokenizer) return LINNET_ERROR_UNSUPPORTED;
        const size_t bytes = strlen(settings->calibration_text);
        const char *text = settings->calibration_text;
        linnet_status status = linnet_tokenize(tokenizer, text, bytes, LINNET_TOKENIZE_BEGIN, NULL, 0, &count);
        if (status != LINNET_OK) return status;
        heads->ids = ln_allocate(context, (uint64_t)ln_max_i64(count, 1), sizeof *heads->ids, "calibration ids");
        if (!heads->ids) return LINNET_ERROR_MEMORY;
        status = linnet_tokenize(tokenizer, text, bytes, LINNET_TOKENIZE_BEGIN, heads->ids, count, &count);
        if (status != LINNET_OK) return status;
    }
    heads->tokens = ln_min_i64(count, CALIBRATION_TOKENS);
    if (!heads->ids || heads->tokens < 1)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "heads are merged by how the model uses them: give a calibration text of some thousand tokens");
    for (int64_t i = 0; i < heads->tokens; i++)
        if (heads->ids[i] < 0 || heads->ids[i] >= vocabulary)
            return ln_fail(context, LINNET_ERROR_ARGUMENT,
                           "calibration token %lld has the id %d, outside the vocabulary of %lld", (long long)i,
                           heads->ids[i], (long long)vocabulary);
    return LINNET_OK;
}

static linnet_status find_frequencies(ln_heads *heads) {
    const ln_rope *rope = &heads->model->rope;
    for (int local = 0; local < 2; local++) {
        heads->frequency[local] =
            ln_allocate(heads->context, (uint64_t)rope->size / 2, sizeof(double), "rotary frequencies");
        if (!heads->frequency[local]) return LINNET_ERROR_MEMORY;
        ln_rope_frequencies(rope, local && rope->base_local > 0, WINDOW, heads->frequency[local]);
    }
    return LINNET_OK;
}

/* ---- one layer ---- */

/* Released with the layer. NULL: recorded. */
static void *take(ln_heads *heads, int64_t count, size_t size, const char *what) {
    if (heads->blocks_used == BLOCKS) return NULL;
    void *block = ln_allocate(heads->context, (uint64_t)ln_max_i64(count, 1), size, what);
    if (block) heads->blocks[heads->blocks_used++] = block;
    return block;
}

static void drop_blocks(ln_heads *heads) {
    while (heads->blocks_used > 0) ln_release(heads->context, heads->blocks[--heads->blocks_used]);
}

static float *decode(ln_heads *heads, const ln_matrix *matrix) {
    float *values = take(heads, matrix->rows * matrix->columns, sizeof(float), "a layer's weights");
    const uint64_t bytes = ln_format_bytes(matrix->type, matrix->columns);
    for (int64_t row = 0; values && row < matrix->rows; row++)
        ln_format_of(matrix->type)
            ->decode((const unsigned char *)matrix->data + (uint64_t)row * bytes, values + row * matrix->columns,
                     matrix->columns);
    return values;
}

/* A projection of the layer on the calibration text: [tokens, rows], with bias; norms come after. */
static float *project(ln_heads *heads, const ln_matrix *matrix, const float *bias, const float *h) {
    linnet_model *model = heads->model;
    ln_team *team = model->context->team;
    const uint64_t bytes = ln_matmul_workspace(&model->kernels, ln_team_size(team), PIECE, matrix->columns);
    void *workspace = ln_allocate(heads->context, bytes, 1, "workspace");
    float *out = take(heads, heads->tokens * matrix->rows, sizeof(float), "queries, keys and values");
    for (int64_t t = 0; workspace && out && t < heads->tokens; t += PIECE) {
        const ln_product product = {matrix, out + t * matrix->rows, matrix->rows};
        const int64_t tokens = ln_min_i64(PIECE, heads->tokens - t);
        ln_matmul(&model->kernels, team, &product, 1, h + t * matrix->columns, matrix->columns, tokens, true,
                  workspace);
        for (int64_t i = t; bias && i < t + tokens; i++)
            model->kernels.vector.add(out + i * matrix->rows, bias, matrix->rows);
    }
    ln_release(heads->context, workspace);
    return workspace ? out : NULL;
}

/* Rows of a new matrix from rows of an old one: row i is the sum over members a and rows j of
 * c[a * step_a + i * step_i + j * step_j] * source row j of the head order[a]. */
typedef struct fold {
    ln_heads *heads;
    const ln_head_bases *bases;
    const float *query, *key, *value, *output; /* old */
    const float *query_bias, *key_bias, *value_bias;
    places at;
    double *sums; /* [workers][width] */
    int64_t group;
} fold;

static void add_rows(double *sum, const double *c, int64_t step, const float *source, int64_t rows, int64_t width) {
    for (int64_t j = 0; j < rows; j++) {
        const double factor = c[j * step];
        if (factor == 0) continue;
        for (int64_t k = 0; k < width; k++) sum[k] += factor * (double)source[j * width + k];
    }
}

/* Row `row` of query, key or value, from `source` [.., width]: a matrix, or a bias with width 1. */
static void fold_into(const fold *f, int which, int64_t row, const float *source, int64_t width, double *sum,
                      float *to) {
    const ln_hyperparameters *h = &f->heads->model->hyper;
    const ln_head_bases *bases = f->bases;
    const int64_t size = which == 2 ? h->value_size : h->key_size, i = row % size, head = row / size;
    memset(sum, 0, (size_t)width * sizeof *sum);
    if (which == 0) {
        const int64_t place = head / f->group, old = bases->order[place] * f->group + head % f->group;
        add_rows(sum, bases->key_decode + place * size * size + i, size, source + old * size * width, size, width);
    } else {
        const double *encode = which == 1 ? bases->key_encode : bases->value_encode;
        for (int64_t a = 0; a < bases->members; a++)
            add_rows(sum, encode + ((head * size + i) * bases->members + a) * size, 1,
                     source + bases->order[head * bases->members + a] * size * width, size, width);
    }
    for (int64_t k = 0; k < width; k++) to[k] = (float)sum[k];
}

static void fold_row(void *argument, int64_t row, int worker) {
    const fold *f = argument;
    const int64_t width = f->heads->model->hyper.width;
    const float *const sources[] = {f->query, f->key, f->value}, *const biases[] = {f->query_bias, f->key_bias,
                                                                                    f->value_bias};
    int which = 0;
    for (; row >= f->at.rows[which]; which++) row -= f->at.rows[which];
    double *sum = f->sums + worker * width;
    float *made = f->heads->made;
    fold_into(f, which, row, sources[which], width, sum, made + f->at.projections[which] + row * width);
    float *bias = made + f->at.biases[which] + row;
    *bias = 0;
    if (biases[which]) fold_into(f, which, row, biases[which], 1, sum, bias);
}

static void fold_output_row(void *argument, int64_t row, int worker) {
    (void)worker;
    const fold *f = argument;
    const ln_hyperparameters *h = &f->heads->model->hyper;
    const int64_t size = h->value_size, mixed = h->heads * size;
    const float *from = f->output + row * mixed;
    float *to = f->heads->made + f->at.output + row * mixed;
    for (int64_t head = 0; head < h->heads; head++) {
        const int64_t place = head / f->group, old = f->bases->order[place] * f->group + head % f->group;
        const double *decoded = f->bases->value_decode + place * size * size;
        for (int64_t i = 0; i < size; i++) {
            double sum = 0;
            for (int64_t j = 0; j < size; j++) sum += (double)from[old * size + j] * decoded[j * size + i];
            to[head * size + i] = (float)sum;
        }
    }
}

/* x [tokens, count, size] through the norm. scale [count], where it is not NULL, gets the means of 1 / rms before. */
static void normalise(const ln_heads *heads, float *x, int64_t count, const float *norm, double *scale) {
    const ln_hyperparameters *h = &heads->model->hyper;
    const int64_t size = h->key_size;
    for (int64_t i = 0; scale && i < count; i++) scale[i] = 0;
    for (int64_t i = 0; norm && i < heads->tokens * count; i++) {
        double square = 0;
        for (int64_t k = 0; scale && k < size; k++) square += (double)x[i * size + k] * (double)x[i * size + k];
        if (scale)
            scale[i % count] += 1 / sqrt(square / (double)size + (double)h->norm_epsilon) / (double)heads->tokens;
        heads->model->kernels.vector.rms_norm(x + i * size, x + i * size, norm, size, h->norm_epsilon);
    }
}

static linnet_status merge(ln_heads *heads, const ln_attention_weights *layer, fold *f, ln_head_bases *bases,
                           const float *h, float **seen) {
    const ln_hyperparameters *hyper = &heads->model->hyper;
    const bool rotates = layer->rotation != LN_ROTATE_NOT;
    ln_head_samples samples = {.heads = hyper->heads,
                               .key_value_heads = hyper->key_value_heads,
                               .key_size = hyper->key_size,
                               .value_size = hyper->value_size,
                               .width = hyper->width,
                               .tokens = heads->tokens,
                               .rotated = rotates ? heads->model->rope.size : 0,
                               .half = heads->model->rope.half,
                               .frequency = heads->frequency[layer->rotation == LN_ROTATE_LOCAL],
                               .distance = (double)ln_min_i64(DISTANCE, hyper->context_length),
                               .output = f->output};
    linnet_status status = ln_head_bases_open(heads->context, &samples, heads->count, bases);
    if (status != LINNET_OK) return status;
    if (heads->mean) {
        ln_head_bases_mean(&samples, bases);
        return LINNET_OK;
    }
    float *query = project(heads, &layer->query, layer->query_bias, h);
    float *key = query ? project(heads, &layer->key, layer->key_bias, h) : NULL;
    float *value = key ? project(heads, &layer->value, layer->value_bias, h) : NULL;
    if (!value) return LINNET_ERROR_MEMORY;
    double *scale = take(heads, hyper->key_value_heads, sizeof *scale, "norms of heads");
    if (!scale) return LINNET_ERROR_MEMORY;
    normalise(heads, query, hyper->heads, layer->query_norm, NULL);
    normalise(heads, key, hyper->key_value_heads, layer->key_norm, scale);
    seen[0] = query;
    seen[1] = key;
    seen[2] = value;
    samples.query = query;
    samples.key = key;
    samples.value = value;
    status = ln_head_bases_fit(heads->context, &samples, bases);
    if (status != LINNET_OK || (!layer->query_norm && !layer->key_norm)) return status;
    float *made = heads->made + f->at.norms;
    ln_head_norms norms = {.query = layer->query_norm,
                           .key = layer->key_norm,
                           .key_scale = scale,
                           .new_query = made,
                           .new_key = made + hyper->key_size};
    status = ln_head_norms_fit(heads->context, &samples, bases, &norms);
    ln_log(heads->context, LINNET_LOG_INFO, "norms of merged heads: lengths of keys off by %.3f, of queries by %.3f",
           norms.key_error, norms.query_error);
    return status;
}

/* *output [tokens, heads * value_size] of attention; rotates queries and keys in place. */
static linnet_status attend(ln_heads *heads, int64_t layer, int64_t count, float *query, float *key, const float *value,
                            float **output) {
    linnet_model *model = heads->model;
    const ln_hyperparameters *h = &model->hyper;
    *output = take(heads, heads->tokens * h->heads * h->value_size, sizeof **output, "outputs of attention");
    linnet_status status = *output ? LINNET_OK : LINNET_ERROR_MEMORY;
    if (status == LINNET_OK) status = ln_heads_rotate(model, layer, query, heads->tokens, WINDOW, h->heads);
    if (status == LINNET_OK) status = ln_heads_rotate(model, layer, key, heads->tokens, WINDOW, count);
    if (status == LINNET_OK)
        status = ln_heads_attend(model, layer, count, query, key, value, heads->tokens, WINDOW, *output);
    return status;
}

/* The output matrix again, by what the whole layer gives. seen: queries, keys, values of the old heads. */
static linnet_status refit(ln_heads *heads, int64_t index, const fold *f, const float *h, float **seen) {
    linnet_model *model = heads->model;
    const ln_hyperparameters *hyper = &model->hyper;
    const ln_attention_weights *layer = ln_attention_of(model, index);
    float *made = heads->made, *now[3];
    for (int i = 0; i < 3; i++) {
        const ln_matrix matrix = {LINNET_F32, f->at.rows[i], hyper->width, made + f->at.projections[i]};
        now[i] = project(heads, &matrix, made + f->at.biases[i], h);
        if (!now[i]) return LINNET_ERROR_MEMORY;
    }
    if (layer->query_norm) normalise(heads, now[0], hyper->heads, made + f->at.norms, NULL);
    if (layer->key_norm) normalise(heads, now[1], heads->count, made + f->at.norms + hyper->key_size, NULL);
    float *old, *merged;
    linnet_status status = attend(heads, index, hyper->key_value_heads, seen[0], seen[1], seen[2], &old);
    if (status == LINNET_OK) status = attend(heads, index, heads->count, now[0], now[1], now[2], &merged);
    if (status != LINNET_OK) return status;
    float *target = project(heads, &layer->output, NULL, old);
    if (!target) return LINNET_ERROR_MEMORY;
    double before = 0, after = 0, all = 0;
    for (int64_t i = 0; i < heads->tokens * hyper->width; i++) all += (double)target[i] * (double)target[i] / 4;
    status = ln_heads_refit(model, made + f->at.output, hyper->heads * hyper->value_size, merged, target, heads->tokens,
                            &before, &after);
    ln_log(heads->context, LINNET_LOG_INFO, "layer %lld: error of attention %.4f, refitted %.4f", (long long)index,
           before / fmax(all, 1e-300), after / fmax(all, 1e-300));
    return status;
}

static linnet_status make_layer(ln_heads *heads, int64_t index) {
    linnet_model *model = heads->model;
    ln_team *team = model->context->team;
    const ln_hyperparameters *h = &model->hyper;
    const ln_attention_weights *layer = ln_attention_of(model, index);
    if (ln_interrupted(heads->context))
        return ln_fail(heads->context, LINNET_INTERRUPTED, "converting %s was interrupted; nothing was written",
                       model->file->path);
    fold f = {.heads = heads,
              .at = places_of(heads),
              .group = h->heads / h->key_value_heads,
              .query_bias = layer->query_bias,
              .key_bias = layer->key_bias,
              .value_bias = layer->value_bias};
    ln_head_bases bases = {0};
    f.bases = &bases;
    f.query = decode(heads, &layer->query);
    f.key = f.query ? decode(heads, &layer->key) : NULL;
    f.value = f.key ? decode(heads, &layer->value) : NULL;
    f.output = f.value ? decode(heads, &layer->output) : NULL;
    f.sums = f.output ? take(heads, ln_team_size(team) * h->width, sizeof(double), "a layer's weights") : NULL;
    if (!f.sums) return LINNET_ERROR_MEMORY;
    const float *seen = heads->seen ? heads->seen + index * heads->tokens * h->width : NULL;
    if (layer->query_norm) memcpy(heads->made + f.at.norms, layer->query_norm, (size_t)h->key_size * sizeof(float));
    if (layer->key_norm)
        memcpy(heads->made + f.at.norms + h->key_size, layer->key_norm, (size_t)h->key_size * sizeof(float));
    float *rows[3] = {NULL};
    linnet_status status = merge(heads, layer, &f, &bases, seen, rows);
    if (status == LINNET_OK) {
        ln_parallel(team, f.at.rows[0] + f.at.rows[1] + f.at.rows[2], fold_row, &f);
        ln_parallel(team, h->width, fold_output_row, &f);
        if (!heads->mean) status = refit(heads, index, &f, seen, rows);
        if (!heads->mean)
            ln_log(heads->context, LINNET_LOG_INFO,
                   "layer %lld: %lld heads keep %.4f of the weighted energy of keys (%lld loose pairs), %.4f of values",
                   (long long)index, (long long)heads->count, bases.key_kept, (long long)bases.loose, bases.value_kept);
    }
    ln_head_bases_close(heads->context, &bases);
    return status;
}

/* ---- tensors ---- */

/* The tensors that change; what of `made` each holds. */
static const struct tensor_row {
    const char *name;
    enum { QUERY, KEY, VALUE, ALL, OUTPUT, QUERY_NORM, KEY_NORM } what;
    bool bias;
} tensor_rows[] = {{"attn_q.weight", QUERY, false},        {"attn_q.bias", QUERY, true},
                   {"attn_k.weight", KEY, false},          {"attn_k.bias", KEY, true},
                   {"attn_v.weight", VALUE, false},        {"attn_v.bias", VALUE, true},
                   {"attn_qkv.weight", ALL, false},        {"attn_qkv.bias", ALL, true},
                   {"attn_output.weight", OUTPUT, false},  {"attn_q_norm.weight", QUERY_NORM, false},
                   {"attn_k_norm.weight", KEY_NORM, false}};

static const struct tensor_row *find_row(const ln_heads *heads, const char *name, int64_t *layer) {
    long long number;
    int used = 0;
    if (sscanf(name, "blk.%6lld.%n", &number, &used) != 1 || used == 0) return NULL;
    *layer = number;
    if (number < 0 || number >= heads->model->hyper.layers) return NULL;
    for (size_t i = 0; i < sizeof tensor_rows / sizeof *tensor_rows; i++)
        if (strcmp(name + used, tensor_rows[i].name) == 0) return &tensor_rows[i];
    return NULL;
}

bool ln_heads_changes(const ln_heads *heads, const linnet_tensor_info *tensor, linnet_tensor_info *changed) {
    int64_t layer = -1;
    const struct tensor_row *row = find_row(heads, tensor->name, &layer);
    if (!row) return false;
    const places at = places_of(heads);
    *changed = *tensor;
    changed->type = LINNET_F32;
    changed->data = NULL;
    if (row->what <= ALL) {
        int64_t rows = 0;
        for (int i = 0; i < 3; i++)
            if (row->what == ALL || (int)row->what == i) rows += at.rows[i];
        changed->size[row->bias ? 0 : 1] = rows;
    }
    changed->bytes = (uint64_t)(changed->size[0] * changed->size[1] * changed->size[2] * changed->size[3]) * 4;
    return true;
}

linnet_status ln_heads_make(ln_heads *heads, linnet_tensor_info *changed) {
    int64_t layer = -1;
    const struct tensor_row *row = find_row(heads, changed->name, &layer);
    const places at = places_of(heads);
    if (heads->layer != layer) {
        heads->layer = -1;
        const linnet_status status = make_layer(heads, layer);
        drop_blocks(heads);
        if (status != LINNET_OK) return status;
        heads->layer = layer;
    }
    int64_t first = at.output;
    if (row->what <= VALUE) first = row->bias ? at.biases[row->what] : at.projections[row->what];
    if (row->what == ALL) first = row->bias ? at.biases[0] : at.projections[0];
    if (row->what >= QUERY_NORM) first = at.norms + (row->what == KEY_NORM ? heads->model->hyper.key_size : 0);
    changed->data = heads->made + first;
    return LINNET_OK;
}

/* ---- opening ---- */

static linnet_status check_count(linnet_context *context, const linnet_model *model, int64_t count) {
    const int64_t heads = model->hyper.key_value_heads;
    if (!ln_attention_alone(model))
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: heads are merged where every layer attends; in a %s model not all do", model->file->path,
                       model->architecture->name);
    if (count > 0 && count <= heads && heads % count == 0) return LINNET_OK;
    char possible[128];
    size_t used = 0;
    for (int64_t i = 1; i <= heads && used < sizeof possible - 24; i++)
        if (heads % i == 0)
            used += (size_t)snprintf(possible + used, sizeof possible - used, "%s%lld", used ? ", " : "", (long long)i);
    return ln_fail(context, LINNET_ERROR_ARGUMENT,
                   "%s has %lld key-value heads, which cannot become %lld: only divisors of their number can (%s)",
                   model->file->path, (long long)heads, (long long)count, possible);
}

static linnet_status open_heads(ln_heads *heads, const char *source, const linnet_convert_settings *settings) {
    linnet_context *context = heads->context;
    linnet_status status = linnet_model_open(context, source, &heads->model);
    if (status == LINNET_OK) status = check_count(context, heads->model, heads->count);
    if (status != LINNET_OK || heads->count == heads->model->hyper.key_value_heads) return status;
    heads->made = ln_allocate(context, (uint64_t)places_of(heads).all, sizeof *heads->made, "a layer's weights");
    if (!heads->made) return LINNET_ERROR_MEMORY;
    if (heads->mean) return LINNET_OK;
    status = find_frequencies(heads);
    if (status == LINNET_OK) status = take_ids(heads, settings);
    return status == LINNET_OK ? calibrate(heads) : status;
}

linnet_status ln_heads_open(linnet_context *context, const char *source, const linnet_convert_settings *settings,
                            ln_heads **heads) {
    *heads = NULL;
    ln_heads *made = ln_allocate_zero(context, 1, sizeof *made, "heads being merged");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->count = settings->key_value_heads;
    made->mean = settings->mean_heads;
    made->layer = -1;
    const linnet_status status = open_heads(made, source, settings);
    if (status != LINNET_OK || !made->made) {
        ln_heads_close(made);
        return status;
    }
    *heads = made;
    return LINNET_OK;
}

void ln_heads_close(ln_heads *heads) {
    if (!heads) return;
    linnet_context *context = heads->context;
    drop_blocks(heads);
    ln_release(context, heads->made);
    for (int local = 0; local < 2; local++) ln_release(context, heads->frequency[local]);
    ln_release(context, heads->seen);
    ln_release(context, heads->ids);
    linnet_model_close(heads->model);
    ln_release(context, heads);
}
