/* Owns: config.json said in GGUF's keys. What transformers assumes where a config is silent is a row of `defaults`. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/huggingface.h"

enum { MOST_LAYERS = 100000, LARGEST_SIZE = 1 << 30 };

#define BAD(config, ...) ln_fail((config)->file->context, LINNET_ERROR_FORMAT, __VA_ARGS__)
#define UNSUPPORTED(config, ...) ln_fail((config)->file->context, LINNET_ERROR_UNSUPPORTED, __VA_ARGS__)

/* ---- values ---- */

/* By model_type or by architecture; the first that fits. */
static const struct default_row {
    const char *model, *name;
    double value;
} defaults[] = {
    {"gemma", "head_dim", 256},
    {"dots1", "sliding_window", 4096},
    {"dots1", "max_window_layers", 62},
    {"gemma2", "head_dim", 256},
    {"gemma2", "sliding_window", 4096},
    {"gemma2", "query_pre_attn_scalar", 256},
    {"gemma2", "attn_logit_softcapping", 50},
    {"gemma2", "final_logit_softcapping", 30},
    {"gemma3", "num_attention_heads", 8},
    {"gemma3", "num_key_value_heads", 4},
    {"gemma3", "head_dim", 256},
    {"gemma3", "vocab_size", 262208},
    {"gemma3", "max_position_embeddings", 131072},
    {"gemma3", "sliding_window", 4096},
    {"gemma3", "query_pre_attn_scalar", 256},
    {"gemma3", "rope_theta", 1000000},
    {"mistral", "sliding_window", 4096},
    {"mistral", "num_key_value_heads", 8},
    {"phi3", "rms_norm_eps", 1e-5},
    {"phi3", "original_max_position_embeddings", 4096},
    {"qwen2", "use_sliding_window", 0},
    {"qwen2", "max_window_layers", 28},
    {"qwen2moe", "use_sliding_window", 0},
    {"qwen3moe", "use_sliding_window", 0},
    {"qwen3", "head_dim", 128},
    {"qwen3", "use_sliding_window", 0},
    {"qwen3", "max_window_layers", 28},
    {"smollm3", "rope_theta", 2000000},
    {"smollm3", "use_sliding_window", 0},
    {"smollm3", "no_rope_layer_interval", 4},
    {"mamba", "tie_word_embeddings", 1},
    {"bamba", "partial_rotary_factor", 0.5},
    {"bamba", "rms_norm_eps", 1e-5},
    {"falcon_h1", "rms_norm_eps", 1e-5},
    {"granitemoehybrid", "attention_multiplier", 1},
    {"granitemoe", "attention_multiplier", 1},
    {"granitemoeshared", "attention_multiplier", 1},
    {"granite", "attention_multiplier", 1},
    {"gemma", "tie_word_embeddings", 1},
    {"gemma2", "tie_word_embeddings", 1},
    {"gemma3", "tie_word_embeddings", 1},
    {"smollm3", "tie_word_embeddings", 1},
    {"lfm2", "tie_word_embeddings", 1},
    {"lfm2", "rope_theta", 1000000},
    {"", "rms_norm_eps", 1e-6},
    {"", "rope_theta", 10000},
    {"", "use_sliding_window", 1},
    {"", "tie_word_embeddings", 0},
};

static bool default_number(const ln_config *config, const char *name, double *value) {
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) {
        const struct default_row *row = &defaults[i];
        if (strcmp(row->name, name) != 0) continue;
        if (*row->model && strcmp(row->model, config->model_type) != 0 &&
            (!config->architecture || strcmp(row->model, config->architecture->name) != 0))
            continue;
        *value = row->value;
        return true;
    }
    return false;
}

static bool json_number(const json_t *json, double *value) {
    if (json_is_boolean(json))
        *value = json_is_true(json) ? 1 : 0;
    else if (json_is_number(json))
        *value = json_number_value(json);
    else
        return false;
    return isfinite(*value);
}

bool ln_config_number(const ln_config *config, const char *name, double *value) {
    const json_t *json = json_object_get(config->text, name);
    return json ? json_number(json, value) : default_number(config, name, value);
}

/* A count from 1 on; `fallback` where it is not said, a failure where it is nonsense. */
static linnet_status config_count(const ln_config *config, const char *name, int64_t fallback, int64_t *count) {
    double value;
    *count = fallback;
    if (!ln_config_number(config, name, &value)) return LINNET_OK;
    if (value < 1 || value > LARGEST_SIZE || value != floor(value))
        return BAD(config, "%s: \"%s\" is %g, no count from 1 to %d; the file is damaged", config->path, name, value,
                   LARGEST_SIZE);
    *count = (int64_t)value;
    return LINNET_OK;
}

const char *ln_config_name(const ln_config *config, const char *suffix, char *name) {
    snprintf(name, 256, "%.100s.%.100s", config->architecture ? config->architecture->name : config->model_type,
             suffix);
    return name;
}

void ln_config_whole(const ln_config *config, ln_key_writer *keys, const char *suffix, int64_t count) {
    char name[256];
    if (count > 0) ln_write_integer(keys, ln_config_name(config, suffix, name), LN_U32, count);
}

void ln_config_size(const ln_config *config, ln_key_writer *keys, const char *suffix, double size) {
    if (size >= 1 && size <= LARGEST_SIZE) ln_config_whole(config, keys, suffix, (int64_t)size);
}

void ln_config_float(const ln_config *config, ln_key_writer *keys, const char *suffix, double value) {
    char name[256];
    ln_write_float(keys, ln_config_name(config, suffix, name), value);
}

void ln_config_layers(const ln_config *config, ln_key_writer *keys, const char *suffix, const int32_t *values,
                      int64_t layers) {
    char name[256];
    ln_write_array(keys, ln_config_name(config, suffix, name), LN_I32, values, (uint64_t)layers);
}

const char *ln_config_layer_type(const ln_config *config, int64_t layer) {
    const json_t *types = json_object_get(config->text, "layer_types");
    return json_string_value(json_array_get(types, (size_t)layer));
}

/* The architecture's own numbers, which come before those that most models have. */
static linnet_status write_own(const ln_config *config, ln_key_writer *keys) {
    const ln_architecture *architecture = config->architecture;
    if (!architecture) return LINNET_OK;
    for (const ln_config_row *row = architecture->config; row && row->name; row++) {
        double value = row->fallback;
        const bool said = ln_config_number(config, row->name, &value);
        if (isnan(value)) continue;
        if (row->kind == LN_CONFIG_WHOLE && (value != floor(value) || fabs(value) > LARGEST_SIZE))
            return BAD(config, "%s: \"%s\" is %g, no whole number; the file is damaged", config->path, row->name,
                       value);
        char name[256];
        ln_config_name(config, row->suffix, name);
        if (!said && ln_key_writer_has(keys, name)) continue;
        if (row->kind == LN_CONFIG_FLAG)
            ln_write_integer(keys, name, LN_BOOL, value != 0);
        else if (row->kind == LN_CONFIG_WHOLE)
            ln_write_integer(keys, name, value < 0 ? LN_I32 : LN_U32, (int64_t)value);
        else
            ln_write_float(keys, name, value);
    }
    return architecture->write_keys ? architecture->write_keys(config, keys) : LINNET_OK;
}

int64_t ln_config_head_size(const ln_config *config) {
    double size, width, heads;
    if (ln_config_number(config, "head_dim", &size) && size >= 1 && size <= LARGEST_SIZE) return (int64_t)size;
    if (!ln_config_number(config, "hidden_size", &width) || !ln_config_number(config, "num_attention_heads", &heads))
        return 0;
    return heads >= 1 && width >= heads && width <= LARGEST_SIZE ? (int64_t)width / (int64_t)heads : 0;
}

bool ln_config_tied(const ln_config *config) {
    double tied = 0;
    if (ln_config_number(config, "tie_embedding", &tied)) return tied != 0; /* LFM2 */
    const json_t *outer = json_object_get(config->root, "tie_word_embeddings");
    if (outer && !json_object_get(config->text, "tie_word_embeddings")) return json_is_true(outer);
    return ln_config_number(config, "tie_word_embeddings", &tied) && tied != 0;
}

/* ---- opening ---- */

linnet_status ln_config_open(linnet_file *file, const char *path, const json_t *root, const json_t *generate,
                             ln_config *config) {
    *config = (ln_config){.file = file, .path = path, .root = root, .text = root, .generate = generate};
    const json_t *text = json_object_get(root, "text_config");
    if (json_is_object(text)) config->text = text;
    config->model_type = json_string_value(json_object_get(config->text, "model_type"));
    if (!config->model_type) config->model_type = json_string_value(json_object_get(root, "model_type"));
    if (!config->model_type || !*config->model_type || strlen(config->model_type) > 64 ||
        !ln_printable(config->model_type, strlen(config->model_type)))
        return BAD(config, "%s has no \"model_type\"; add the one that the model's page names", path);
    config->architecture = ln_architecture_of_model_type(config->model_type, strlen(config->model_type));
    if (config->architecture && config->architecture->choose)
        config->architecture = config->architecture->choose(config);
    if (json_is_object(json_object_get(root, "quantization_config")))
        return UNSUPPORTED(
            config,
            "%s: the weights are quantised in a way of their own (\"quantization_config\"), which is not "
            "read; use the model in f32, f16 or bf16, or a GGUF file of it",
            path);
    return LINNET_OK;
}

/* What the row of the architecture takes for granted must be so. */
static linnet_status check_row(const ln_config *config) {
    const ln_architecture *architecture = config->architecture;
    if (!architecture) return LINNET_OK;
    static const char *const names[3][2] = {[LN_SILU] = {"silu", "swish"},
                                            [LN_GELU_TANH] = {"gelu_pytorch_tanh", "gelu"},
                                            [LN_RELU_SQUARED] = {"sqrelu", "relu2"}};
    const char *activation = json_string_value(json_object_get(config->text, "hidden_activation"));
    if (!activation) activation = json_string_value(json_object_get(config->text, "hidden_act"));
    bool known = !activation;
    for (int i = 0; i < 2 && !known; i++) known = strcmp(activation, names[architecture->activation][i]) == 0;
    if (!known)
        return UNSUPPORTED(config, "%s: the activation '%.40s' is not one that Linnet knows for %s", config->path,
                           activation, architecture->name);
    if (json_is_true(json_object_get(config->text, "use_bidirectional_attention")))
        return UNSUPPORTED(config, "%s: the model looks at tokens in both directions, which Linnet does not do",
                           config->path);
    return LINNET_OK;
}

/* ---- sizes ---- */

static linnet_status write_sizes(const ln_config *config, ln_key_writer *keys, int64_t *layers) {
    static const struct {
        const char *name, *suffix;
        bool needed;
    } rows[] = {{"max_position_embeddings", "context_length", false},
                {"hidden_size", "embedding_length", true},
                {"num_hidden_layers", "block_count", true},
                {"intermediate_size", "feed_forward_length", true},
                {"vocab_size", "vocab_size", false},
                {"num_attention_heads", "attention.head_count", true}};
    int64_t count = 0;
    char name[256];
    const ln_architecture *architecture = config->architecture;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const linnet_status status = config_count(config, rows[i].name, 0, &count);
        if (status != LINNET_OK) return status;
        const bool free = i >= 3 && architecture && architecture->make_layer;
        const bool said = ln_key_writer_has(keys, ln_config_name(config, rows[i].suffix, name));
        if (count == 0 && rows[i].needed && architecture && !free && !said)
            return BAD(config, "%s lacks \"%s\", without which a %s model cannot be run", config->path, rows[i].name,
                       config->architecture->name);
        ln_config_whole(config, keys, rows[i].suffix, count);
        if (i == 2) *layers = count;
    }
    if (*layers > MOST_LAYERS)
        return BAD(config, "%s: \"num_hidden_layers\" is %lld; the file is damaged", config->path, (long long)*layers);
    if (count == 0 || (architecture && architecture->traits & LN_NO_ATTENTION)) return LINNET_OK;
    int64_t key_value_heads;
    const linnet_status status = config_count(config, "num_key_value_heads", count, &key_value_heads);
    if (status != LINNET_OK) return status;
    ln_config_whole(config, keys, "attention.head_count_kv", key_value_heads);
    ln_config_whole(config, keys, "attention.key_length", ln_config_head_size(config));
    ln_config_whole(config, keys, "attention.value_length", ln_config_head_size(config));
    return LINNET_OK;
}

static void write_numbers(const ln_config *config, ln_key_writer *keys) {
    static const struct {
        const char *name, *suffix;
    } rows[] = {{"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
                {"attn_logit_softcapping", "attn_logit_softcapping"},
                {"final_logit_softcapping", "final_logit_softcapping"}};
    double value;
    char name[256];
    /* An architecture of other norms has said its own number. */
    const bool centred = ln_key_writer_has(keys, ln_config_name(config, "attention.layer_norm_epsilon", name));
    for (size_t i = centred ? 1 : 0; i < sizeof rows / sizeof *rows; i++)
        if (ln_config_number(config, rows[i].name, &value)) ln_config_float(config, keys, rows[i].suffix, value);
    /* Scores are divided by the square root of this number; most models take the head size. */
    if (ln_config_number(config, "query_pre_attn_scalar", &value) && value > 0 &&
        value != (double)ln_config_head_size(config))
        ln_config_float(config, keys, "attention.scale", 1 / sqrt(value));
}

/* ---- what differs from layer to layer ---- */

/* Whether layer i rotates queries and keys. */
static bool rotates(const ln_config *config, int64_t i) {
    const json_t *listed = json_object_get(config->text, "no_rope_layers");
    double value;
    if (json_is_array(listed)) return !json_number(json_array_get(listed, (size_t)i), &value) || value != 0;
    if (ln_config_number(config, "no_rope_layer_interval", &value) && value >= 1 && value < LARGEST_SIZE)
        return (i + 1) % (int64_t)value != 0;
    return true;
}

/* Whether layer i sees only the window, by the first rule that the config or the architecture has. */
static bool slides(const ln_config *config, int64_t i) {
    const json_t *types = json_object_get(config->text, "layer_types");
    if (json_is_array(types)) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        return type && strcmp(type, "sliding_attention") == 0;
    }
    double value = config->architecture ? config->architecture->window_period : 0;
    ln_config_number(config, "sliding_window_pattern", &value);
    if (value >= 1 && value < LARGEST_SIZE) return (i + 1) % (int64_t)value != 0;
    if (config->architecture && config->architecture->no_rope_period) return !rotates(config, i);
    if (ln_config_number(config, "max_window_layers", &value)) return (double)i >= value;
    return true;
}

static linnet_status check_layer_types(const ln_config *config, int64_t layers) {
    const json_t *types = json_object_get(config->text, "layer_types");
    if (!json_is_array(types) || !config->architecture || config->architecture->make_layer) return LINNET_OK;
    if ((int64_t)json_array_size(types) < layers)
        return BAD(config, "%s: \"layer_types\" names %zu of %lld layers; the file is damaged", config->path,
                   json_array_size(types), (long long)layers);
    for (int64_t i = 0; i < layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type || (strcmp(type, "sliding_attention") != 0 && strcmp(type, "full_attention") != 0))
            return UNSUPPORTED(config,
                               "%s: layer %lld is of the type '%.40s'; Linnet knows full_attention and "
                               "sliding_attention here",
                               config->path, (long long)i, type ? type : "");
    }
    return LINNET_OK;
}

static linnet_status write_layers(const ln_config *config, ln_key_writer *keys, int64_t layers) {
    const linnet_status status = check_layer_types(config, layers);
    if (status != LINNET_OK || layers == 0) return status;
    double window = 0, used = 1;
    ln_config_number(config, "sliding_window", &window);
    ln_config_number(config, "use_sliding_window", &used);
    if (window < 0 || window > LARGEST_SIZE)
        return BAD(config, "%s: \"sliding_window\" is %g; the file is damaged", config->path, window);
    unsigned char *flags = ln_allocate(config->file->context, (uint64_t)layers, 1, "pattern of layers");
    if (!flags) return LINNET_ERROR_MEMORY;
    char name[256];
    bool any = false, differs = false;
    for (int64_t i = 0; i < layers; i++) any |= flags[i] = used != 0 && window >= 1 && slides(config, i);
    if (any) {
        ln_config_whole(config, keys, "attention.sliding_window", (int64_t)window);
        ln_write_array(keys, ln_config_name(config, "attention.sliding_window_pattern", name), LN_BOOL, flags,
                       (uint64_t)layers);
    }
    const int period = config->architecture ? config->architecture->no_rope_period : 0;
    for (int64_t i = 0; i < layers; i++) {
        flags[i] = rotates(config, i);
        differs |= flags[i] != (period == 0 || (i + 1) % period != 0);
    }
    if (differs)
        ln_write_array(keys, ln_config_name(config, "attention.rope_pattern", name), LN_BOOL, flags, (uint64_t)layers);
    ln_release(config->file->context, flags);
    return LINNET_OK;
}

/* ---- tokens with a meaning ---- */

static bool token_id(const json_t *json, int32_t *id) {
    double value;
    if (!json_is_number(json) || !json_number(json, &value) || value < 0 || value > INT32_MAX) return false;
    *id = (int32_t)value;
    return true;
}

enum { MOST_ENDS = 64 };

static void collect_ends(const json_t *json, int32_t *ends, int *count) {
    const size_t listed = json_is_array(json) ? json_array_size(json) : 1;
    for (size_t i = 0; i < listed; i++) {
        int32_t id;
        if (!token_id(json_is_array(json) ? json_array_get(json, i) : json, &id)) continue;
        bool known = *count == MOST_ENDS;
        for (int k = 0; k < *count; k++) known |= ends[k] == id;
        if (!known) ends[(*count)++] = id;
    }
}

/* generation_config.json is what the model's makers correct, so it comes before config.json. */
static void write_tokens(const ln_config *config, ln_key_writer *keys) {
    const json_t *const places[] = {config->generate, config->root, config->text};
    int32_t ends[MOST_ENDS], id;
    int count = 0;
    for (int i = 0; i < 3; i++) {
        if (token_id(json_object_get(places[i], "bos_token_id"), &id))
            ln_write_integer(keys, "tokenizer.ggml.bos_token_id", LN_U32, id);
        if (token_id(json_object_get(places[i], "pad_token_id"), &id))
            ln_write_integer(keys, "tokenizer.ggml.padding_token_id", LN_U32, id);
        collect_ends(json_object_get(places[i], "eos_token_id"), ends, &count);
    }
    if (count > 0) ln_write_integer(keys, "tokenizer.ggml.eos_token_id", LN_U32, ends[0]);
    if (count > 1) ln_write_integer(keys, "tokenizer.ggml.eot_token_id", LN_U32, ends[1]);
    if (count > 0) ln_write_array(keys, "tokenizer.linnet.end_token_ids", LN_I32, ends, (uint64_t)count);
}

linnet_status ln_config_keys(const ln_config *config, ln_key_writer *keys, ln_take_made take, void *user) {
    linnet_status status = check_row(config);
    if (status != LINNET_OK) return status;
    const char *name = config->architecture ? config->architecture->name : config->model_type;
    ln_write_text(keys, "general.architecture", name, strlen(name));
    int64_t layers = 0;
    status = write_own(config, keys);
    if (status != LINNET_OK) return status;
    status = write_sizes(config, keys, &layers);
    if (status != LINNET_OK) return status;
    write_numbers(config, keys);
    status = write_layers(config, keys, layers);
    const bool rotates_any = !config->architecture || !(config->architecture->traits & LN_NO_ATTENTION);
    if (status == LINNET_OK && rotates_any) status = ln_config_rope(config, keys, take, user);
    write_tokens(config, keys);
    return status;
}
