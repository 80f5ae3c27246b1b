/* Owns: opening a model: hyperparameters out of the file's keys, weights out of its tensors, each checked against the
 * other.
 *
 * Invariant: once ln_model is open, every ln_matrix has exactly the rows and columns that the forward pass will
 * multiply, lies whole in the mapped file, and has a type the kernels know; the forward pass checks nothing. */
#include "model/take.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/attend.h"
#include "model/device.h"
#include "model/transformer.h"
linnet_status ln_tokenizer_make(linnet_context *context, const linnet_file *file, linnet_tokenizer **tokenizer);

/* ---- hyperparameters ---- */

typedef struct limit {
    const char *suffix;
    int64_t least, most, fallback; /* fallback 0: must be there */
    size_t offset;
} limit;

#define FIELD(name) offsetof(ln_hyperparameters, name)

static const limit limits[] = {
    {"block_count", 1, LN_LAYERS_MOST, 0, FIELD(layers)},
    {"embedding_length", 1, 1 << 20, 0, FIELD(width)},
    {"attention.head_count", 0, 1 << 16, 0, FIELD(heads)},
    {"attention.head_count_kv", 0, 1 << 16, -1, FIELD(key_value_heads)},
    {"attention.key_length", 2, 1024, -1, FIELD(key_size)},
    {"attention.value_length", 2, 1024, -1, FIELD(value_size)},
    {"feed_forward_length", 0, LN_FEED_FORWARD_MOST, 0, FIELD(feed_forward)},
    {"context_length", 1, 1 << 30, 2048, FIELD(context_length)},
    {"attention.sliding_window", 0, 1 << 30, -1, FIELD(window)},
};

static linnet_status read_heads(linnet_model *model) {
    linnet_file *file = model->file;
    ln_hyperparameters *hyper = &model->hyper;
    if (hyper->heads < 1)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: %s.attention.head_count must be at least 1",
                       file->path, model->architecture->name);
    if (hyper->key_value_heads < 1) hyper->key_value_heads = hyper->heads;
    if (hyper->key_size < 0) hyper->key_size = hyper->width / hyper->heads;
    if (hyper->value_size < 0) hyper->value_size = hyper->key_size;
    const ln_key *shared = ln_file_key_of(file, "attention.head_count_kv");
    for (uint64_t i = 0; shared && shared->array && i < shared->count; i++) {
        const int64_t one = ln_key_integer(shared, i, 0);
        if (one && one != hyper->key_value_heads)
            return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                           "%s: layers with %lld and with %lld key-value heads in one model are not supported",
                           file->path, (long long)one, (long long)hyper->key_value_heads);
    }
    if (hyper->heads % hyper->key_value_heads != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: %lld query heads cannot share %lld key-value heads evenly", file->path,
                       (long long)hyper->heads, (long long)hyper->key_value_heads);
    ln_page_layout page;
    if (!ln_page_layout_of(LINNET_F32, LINNET_F32, hyper->key_size, hyper->value_size, &page))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: heads of %lld keys and %lld values are not supported; multiples of 8 up to %d are",
                       file->path, (long long)hyper->key_size, (long long)hyper->value_size, LN_HEAD_MOST);
    return LINNET_OK;
}

/* A number, or the largest of an array that has one for each layer. */
static bool largest(const ln_key *key, int64_t least, int64_t most, int64_t *value) {
    *value = INT64_MIN;
    for (uint64_t i = 0; i < key->count; i++) {
        const int64_t one = ln_key_integer(key, i, INT64_MIN);
        if (one < (key->array ? 0 : least) || one > most) return false;
        *value = ln_max_i64(*value, one);
    }
    return *value >= least;
}

/* Transformers need what other layers may do without. */
static linnet_status read_sizes(linnet_model *model) {
    linnet_file *file = model->file;
    ln_hyperparameters *hyper = &model->hyper;
    const bool transformer = !model->architecture->make_layer, free = model->architecture->traits & LN_NO_ATTENTION;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const limit *l = &limits[i];
        const ln_key *key = ln_file_key_of(file, l->suffix);
        const bool own = l->offset == FIELD(feed_forward) || (l->offset == FIELD(heads) && free);
        const int64_t least = transformer && own ? ln_max_i64(l->least, 1) : l->least;
        int64_t value = l->fallback;
        if (!key && l->fallback == 0 && (transformer || !own))
            return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: the key %s.%s is missing", file->path,
                           model->architecture->name, l->suffix);
        if (key && !largest(key, least, l->most, &value))
            return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: %s.%s must be a number from %lld to %lld",
                           file->path, model->architecture->name, l->suffix, (long long)least, (long long)l->most);
        memcpy((char *)hyper + l->offset, &value, sizeof value);
    }
    if (hyper->window < 0) hyper->window = 0;
    if (free) {
        hyper->heads = hyper->key_value_heads = hyper->key_size = hyper->value_size = hyper->window = 0;
        return LINNET_OK;
    }
    return read_heads(model);
}

static float key_float(const linnet_file *file, const char *suffix, double fallback) {
    return (float)ln_key_number(ln_file_key_of(file, suffix), 0, fallback);
}

static linnet_status read_numbers(linnet_model *model) {
    const linnet_file *file = model->file;
    const ln_architecture *architecture = model->architecture;
    ln_hyperparameters *hyper = &model->hyper;
    const bool by_width = architecture->scale_by_width_layers == hyper->layers;
    const double head_width = by_width ? (double)hyper->width / (double)hyper->heads : (double)hyper->key_size;
    hyper->logit_scale = 1;
    const double centred = (double)key_float(file, "attention.layer_norm_epsilon", 1e-5);
    hyper->norm_epsilon = key_float(file, "attention.layer_norm_rms_epsilon", centred);
    hyper->score_scale = key_float(file, "attention.scale", head_width > 0 ? 1 / sqrt(head_width) : 1);
    hyper->score_cap = key_float(file, "attn_logit_softcapping", 0);
    hyper->logit_cap = key_float(file, "final_logit_softcapping", 0);
    hyper->embedding_scale = architecture->traits & LN_EMBEDDING_SCALED ? sqrtf((float)hyper->width) : 1;
    const float numbers[] = {hyper->norm_epsilon, hyper->score_scale, hyper->score_cap, hyper->logit_cap};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!(numbers[i] >= 0) || isinf(numbers[i]))
            return ln_fail(model->context, LINNET_ERROR_FORMAT,
                           "%s: norm epsilon, attention scale and soft caps must be finite and not negative",
                           file->path);
    return LINNET_OK;
}

/* ---- tensors ---- */

/* Where the state of each part lies in that of its layer: on whole cache lines. */
static void finish_layer(linnet_model *model, int64_t i) {
    ln_layer *layer = &model->layers[i];
    for (int b = 0; b < layer->count; b++)
        for (int p = 0; p < layer->block[b].parts; p++) {
            ln_part *part = &layer->block[b].part[p];
            part->state_offset = model->state_floats[i];
            if (part->matrices.count) {
                model->state_heads[i] = part->matrices;
                model->state_heads[i].offset += part->state_offset;
            }
            model->state_floats[i] += ln_stage(1, part->state_floats);
            if (p > 0) model->parallel = true;
            if (!part->kind->attends) continue;
            if (!model->attends[i]) model->hyper.attention_layers++;
            model->attends[i] = true;
        }
}

static linnet_status take_weights(linnet_model *model) {
    ln_hyperparameters *h = &model->hyper;
    const linnet_tensor_info *embedding = ln_take_find(model, -1, "token_embd.weight");
    if (!embedding)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: the tensor token_embd.weight is missing",
                       model->file->path);
    h->vocabulary = embedding->dimensions == 2 ? embedding->size[1] : 0;
    if (h->vocabulary < 1 || h->vocabulary > 1 << 24) return ln_take_wrong(model, embedding, 0, h->width);
    LN_TRY(ln_take_matrix(model, -1, "token_embd.weight", h->vocabulary, h->width, &model->embedding));
    model->head = model->embedding;
    if (ln_take_find(model, -1, "output.weight"))
        LN_TRY(ln_take_matrix(model, -1, "output.weight", h->vocabulary, h->width, &model->head));
    /* Some files have the norm before the head under the name of the one behind the embedding. */
    const bool named = ln_take_find(model, -1, "output_norm.weight") != NULL;
    LN_TRY(ln_take_norm(model, -1, named ? "output_norm" : "token_embd_norm", true, &model->output_norm));
    if (named) LN_TRY(ln_take_norm(model, -1, "token_embd_norm", false, &model->embedding_norm));
    const ln_architecture *a = model->architecture;
    for (int64_t i = 0; i < h->layers; i++) {
        LN_TRY((a->make_layer ? a->make_layer : ln_transformer_layer)(model, i, &model->layers[i]));
        finish_layer(model, i);
    }
    return LINNET_OK;
}

/* Towers of images beside a text model, tables that are computed, layers past the last, the gate (gate.c). */
static bool may_stay(const linnet_model *model, const char *name) {
    int layer, prefix = 0;
    if (sscanf(name, "blk.%6d.%n", &layer, &prefix) == 1 && layer >= model->hyper.layers) return true;
    if (ln_gate_owns(name + prefix)) return true;
    return strncmp(name, "v.", 2) == 0 || strncmp(name, "mm.", 3) == 0 || strstr(name, ".attn_rot_embd") != NULL;
}

/* A tensor that the forward pass does not know would be missing from the result: no silent wrong answer. */
static linnet_status refuse_the_rest(linnet_model *model) {
    const linnet_file *file = model->file;
    for (int64_t i = 0; i < file->tensor_count; i++)
        if (!model->taken[i] && !may_stay(model, file->tensors[i].name))
            return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                           "%s: the tensor %s has no place in a %s model as Linnet knows it", file->path,
                           file->tensors[i].name, model->architecture->name);
    return LINNET_OK;
}

/* ---- rotation ---- */

static bool text_is(ln_text text, const char *word) {
    return text.data && text.bytes == strlen(word) && memcmp(text.data, word, text.bytes) == 0;
}

static linnet_status read_rope_scaling(linnet_model *model) {
    const linnet_file *file = model->file;
    ln_rope *rope = &model->rope;
    const ln_text kind = ln_key_text(ln_file_key_of(file, "rope.scaling.type"), 0);
    rope->factor = (double)key_float(file, "rope.scaling.factor", 1);
    rope->magnitude = (double)key_float(file, "rope.scaling.attn_factor", 1);
    rope->beta_fast = (double)key_float(file, "rope.scaling.yarn_beta_fast", 32);
    rope->beta_slow = (double)key_float(file, "rope.scaling.yarn_beta_slow", 1);
    rope->truncate = ln_key_integer(ln_file_key_of(file, "rope.scaling.yarn_truncate"), 0, 1) != 0;
    rope->original_context =
        ln_key_integer(ln_file_key_of(file, "rope.scaling.original_context_length"), 0, model->hyper.context_length);
    const int64_t pairs = rope->size / 2;
    LN_TRY(ln_take_vector(model, -1, "rope_freqs.weight", pairs, false, &rope->divisors));
    LN_TRY(ln_take_vector(model, -1, "rope_factors_long.weight", pairs, false, &rope->long_factors));
    LN_TRY(ln_take_vector(model, -1, "rope_factors_short.weight", pairs, false, &rope->short_factors));
    if (text_is(kind, "linear"))
        rope->scaling = LN_ROPE_LINEAR;
    else if (text_is(kind, "yarn")) {
        rope->scaling = LN_ROPE_YARN;
        /* attn_factor scales the paper's magnitude, yarn_attn_factor (Hugging Face's attention_factor) replaces it */
        rope->magnitude *= 1 + 0.1 * log(rope->factor);
        rope->magnitude = (double)key_float(file, "rope.scaling.yarn_attn_factor", rope->magnitude);
    } else if (rope->long_factors && rope->short_factors)
        rope->scaling = LN_ROPE_LONG;
    else if (kind.data && !text_is(kind, "none"))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: rope scaling of the kind '%.*s' is not known; linear, yarn and none are", file->path,
                       (int)ln_min_i64((int64_t)kind.bytes, 64), kind.data);
    if (!(rope->factor > 0) || !(rope->magnitude > 0) || rope->original_context < 1 || !(rope->beta_fast > 0) ||
        !(rope->beta_slow > 0))
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: the numbers of rope.scaling must be positive",
                       file->path);
    return LINNET_OK;
}

static linnet_status read_rope(linnet_model *model) {
    const linnet_file *file = model->file;
    ln_rope *rope = &model->rope;
    rope->size = ln_key_integer(ln_file_key_of(file, "rope.dimension_count"), 0, model->hyper.key_size);
    rope->half = file->huggingface || !(model->architecture->traits & LN_ROPE_INTERLEAVED);
    rope->base = (double)key_float(file, "rope.freq_base", 10000);
    rope->base_local = (double)key_float(file, "rope.freq_base_swa", (double)model->architecture->rope_base_local);
    if (rope->size < 2 || rope->size > model->hyper.key_size || rope->size % 2 != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: rope.dimension_count must be even and at most the head's %lld", file->path,
                       (long long)model->hyper.key_size);
    if (!(rope->base > 1) || !(rope->base_local >= 0) || isinf(rope->base) || isinf(rope->base_local))
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: rope.freq_base must be more than 1", file->path);
    return read_rope_scaling(model);
}

/* ---- opening ---- */

static linnet_status find_architecture(linnet_model *model) {
    const ln_text name = ln_key_text(ln_file_key(model->file, "general.architecture"), 0);
    char known[512];
    ln_architecture_names(known, sizeof known);
    if (!name.data)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s does not say its architecture (general.architecture, or model_type in config.json)",
                       model->file->path);
    model->architecture = ln_architecture_find(name.data, name.bytes);
    if (!model->architecture)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the architecture '%.*s' is not known; known are %s", model->file->path,
                       (int)ln_min_i64((int64_t)name.bytes, 64), name.data, known);
    return LINNET_OK;
}

static uint64_t mix(uint64_t hash, const void *data, size_t bytes) { /* FNV-1a */
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

/* Sizes and a number that tells models apart, from the shapes and the first bytes of every tensor. */
static void measure(linnet_model *model) {
    uint64_t hash = mix(0xcbf29ce484222325u, &model->hyper, offsetof(ln_hyperparameters, attention_layers));
    for (int64_t i = 0; i < model->file->tensor_count; i++) {
        const linnet_tensor_info *tensor = &model->file->tensors[i];
        uint64_t values = 1;
        for (int k = 0; k < tensor->dimensions; k++) values *= (uint64_t)tensor->size[k];
        model->parameters += values;
        model->weight_bytes += tensor->bytes;
        hash = mix(hash, tensor->name, strlen(tensor->name));
        hash = mix(hash, &tensor->type, sizeof tensor->type);
        hash = mix(hash, tensor->data, tensor->bytes < 32 ? tensor->bytes : 32);
    }
    model->fingerprint = hash;
}

static linnet_status open_model(linnet_model *model, const char *path) {
    linnet_context *context = model->context;
    LN_TRY(linnet_file_open(context, path, &model->file));
    LN_TRY(find_architecture(model));
    LN_TRY(read_sizes(model));
    LN_TRY(read_numbers(model));
    model->taken =
        ln_allocate_zero(context, (uint64_t)model->file->tensor_count + 1, sizeof *model->taken, "list of tensors");
    if (!model->taken) return LINNET_ERROR_MEMORY;
    if (model->hyper.heads) LN_TRY(read_rope(model));
    const uint64_t layers = (uint64_t)model->hyper.layers;
    model->layers = ln_allocate_zero(context, layers, sizeof *model->layers, "layers");
    model->windows = ln_allocate_zero(context, layers, sizeof *model->windows, "layers");
    model->state_floats = ln_allocate_zero(context, layers, sizeof *model->state_floats, "layers");
    model->state_heads = ln_allocate_zero(context, layers, sizeof *model->state_heads, "layers");
    model->attends = ln_allocate_zero(context, layers, sizeof *model->attends, "layers");
    if (!model->layers || !model->windows || !model->state_floats || !model->state_heads || !model->attends)
        return LINNET_ERROR_MEMORY;
    if (model->architecture->open) LN_TRY(model->architecture->open(model));
    LN_TRY(take_weights(model));
    LN_TRY(refuse_the_rest(model));
    if (model->hyper.heads)
        LN_TRY(ln_gate_open(context, model->file, model->hyper.layers, model->hyper.width, model->hyper.key_value_heads,
                            &model->gate));
    ln_release(context, model->taken);
    model->taken = NULL;
    const ln_text name = ln_key_text(ln_file_key(model->file, "general.name"), 0);
    model->name = ln_copy_text(context, name.data ? name.data : "", name.bytes);
    if (!model->name) return LINNET_ERROR_MEMORY;
    ln_kernels_choose(context->cpu, &model->kernels);
    measure(model);
    /* A model without a usable tokenizer still runs on token ids. */
    const linnet_status status = ln_tokenizer_make(context, model->file, &model->tokenizer);
    if (status == LINNET_ERROR_MEMORY) return status;
    if (status != LINNET_OK) snprintf(model->tokenizer_error, sizeof model->tokenizer_error, "%s", context->error);
    return LINNET_OK;
}

linnet_status linnet_model_open(linnet_context *context, const char *path, linnet_model **model) {
    *model = NULL;
    const uint64_t before = linnet_memory_used(context);
    linnet_model *made = ln_allocate_zero(context, 1, sizeof *made, "model");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    const linnet_status status = open_model(made, path);
    if (status != LINNET_OK) {
        linnet_model_close(made);
        return status;
    }
    made->resident_bytes = linnet_memory_used(context) - before;
    *model = made;
    return LINNET_OK;
}

void linnet_model_close(linnet_model *model) {
    if (!model) return;
    linnet_context *context = model->context;
    if (model->on_device) ln_device_cuda()->release(model);
    linnet_tokenizer_close(model->tokenizer);
    ln_gate_close(model->gate);
    linnet_file_close(model->file);
    ln_release(context, model->taken);
    ln_release(context, model->name);
    ln_release(context, model->attends);
    ln_release(context, model->state_heads);
    ln_release(context, model->state_floats);
    ln_release(context, model->windows);
    ln_release(context, model->layers);
    ln_release(context, model);
}

const linnet_tokenizer *linnet_model_tokenizer(const linnet_model *model) {
    if (!model->tokenizer)
        ln_fail(model->context, LINNET_ERROR_UNSUPPORTED, "%s has no usable tokenizer: %s", model->file->path,
                model->tokenizer_error);
    return model->tokenizer;
}

const linnet_file *linnet_model_file(const linnet_model *model) {
    return model->file;
}

linnet_model_info linnet_model_describe(const linnet_model *model) {
    const ln_hyperparameters *h = &model->hyper;
    linnet_model_info info = {.size = sizeof info,
                              .architecture = model->architecture->name,
                              .name = model->name,
                              .layers = h->layers,
                              .width = h->width,
                              .heads = h->heads,
                              .key_value_heads = h->key_value_heads,
                              .key_size = h->key_size,
                              .value_size = h->value_size,
                              .vocabulary = h->vocabulary,
                              .context_length = h->context_length,
                              .parameters = model->parameters,
                              .weight_bytes = model->weight_bytes,
                              .resident_bytes = model->resident_bytes,
                              .attention_layers = h->attention_layers,
                              .experts = ln_take_integer(model, "expert_count", 0, 0),
                              .experts_used = ln_take_integer(model, "expert_used_count", 0, 0)};
    for (int64_t i = 0; i < h->layers; i++) {
        if (model->windows[i]) info.window_layers++;
        info.state_bytes += (uint64_t)model->state_floats[i] * sizeof(float);
    }
    if (info.window_layers) info.window = h->window;
    return info;
}
