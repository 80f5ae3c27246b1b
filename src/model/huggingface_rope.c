/* Owns: rotary embedding settings in GGUF's keys and tensors. transformers knows two styles: "rope_theta" beside
 * "rope_scaling", and "rope_parameters" with all in one, by layer type where layers differ.
 *
 * llama3 (Llama 3.1): frequency i, of wave length l = 2 pi base^(2i/d), is divided by
 *     1                                  where l < original / high
 *     factor                             where l > original / low
 *     1 / ((1 - s) / factor + s)         between, s = (original / l - low) / (high - low)
 * and GGUF carries these divisors as the tensor rope_freqs.weight. LongRoPE (Ding et al. 2024) carries its two lists as
 * rope_factors_long.weight and rope_factors_short.weight.
 *
 * rope.scaling.attn_factor is llama.cpp's: with YaRN (Peng et al. 2023) cosine and sine are multiplied by
 * attn_factor (1 + 0.1 ln factor), with LongRoPE by attn_factor. */
#include <math.h>
#include <string.h>

#include "model/huggingface.h"

#define BAD(rope, ...) ln_fail((rope)->config->file->context, LINNET_ERROR_FORMAT, __VA_ARGS__)

typedef struct rope {
    const ln_config *config;
    const json_t *scaling;    /* where the kind of scaling stands; may be the same as the next */
    const json_t *parameters; /* of full attention, or NULL */
    const json_t *local;      /* of sliding attention, or NULL */
    int64_t pairs;            /* rotated pairs of a head */
    double base;
    ln_key_writer *keys;
    ln_take_made take;
    void *user;
} rope;

static const json_t *object(const json_t *json) {
    return json_is_object(json) ? json : NULL;
}

static bool number_of(const json_t *json, const char *name, double *value) {
    const json_t *found = json_object_get(json, name);
    if (!json_is_number(found)) return false;
    *value = json_number_value(found);
    return isfinite(*value);
}

/* The setting in any of the places, or `fallback`. */
static double number(const rope *r, const char *name, double fallback) {
    double value;
    if (number_of(r->scaling, name, &value) || number_of(r->parameters, name, &value)) return value;
    return ln_config_number(r->config, name, &value) ? value : fallback;
}

static void write_kind(const rope *r, const char *kind) {
    char name[256];
    ln_write_text(r->keys, ln_config_name(r->config, "rope.scaling.type", name), kind, strlen(kind));
}

/* The tokens of the first training: beside the settings it comes before the one in them. */
static double original_length(const rope *r) {
    double value;
    if (ln_config_number(r->config, "original_max_position_embeddings", &value)) return value;
    return number(r, "original_max_position_embeddings", number(r, "max_position_embeddings", 0));
}

static linnet_status positive(const rope *r, const char *name, double value) {
    if (value > 0 && value < 1e12) return LINNET_OK;
    return BAD(r, "%s: the rotary setting \"%s\" is %g or missing; the file is damaged", r->config->path, name, value);
}

static linnet_status write_factor(const rope *r, double original, double *factor) {
    *factor = number(r, "factor", 0);
    if (*factor == 0 && original > 0) *factor = number(r, "max_position_embeddings", 0) / original;
    return positive(r, "factor", *factor);
}

static linnet_status write_original(const rope *r, double *original) {
    char name[256];
    *original = original_length(r);
    const linnet_status status = positive(r, "original_max_position_embeddings", *original);
    if (status == LINNET_OK && *original < INT32_MAX)
        ln_write_integer(r->keys, ln_config_name(r->config, "rope.scaling.original_context_length", name), LN_U32,
                         (int64_t)*original);
    return status;
}

/* ---- the kinds of scaling ---- */

static linnet_status scale_not(const rope *r) {
    (void)r;
    return LINNET_OK;
}

static linnet_status scale_linear(const rope *r) {
    double factor;
    const linnet_status status = write_factor(r, 0, &factor);
    write_kind(r, "linear");
    ln_config_float(r->config, r->keys, "rope.scaling.factor", factor);
    return status;
}

static double yarn_magnitude(double factor, double weight) {
    return factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1;
}

static linnet_status scale_yarn(const rope *r) {
    double original, factor;
    linnet_status status = write_original(r, &original);
    if (status == LINNET_OK) status = write_factor(r, original, &factor);
    if (status != LINNET_OK) return status;
    const double mscale = number(r, "mscale", 0), all = number(r, "mscale_all_dim", 0);
    double magnitude = yarn_magnitude(factor, 1);
    if (mscale != 0 && all != 0) magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all);
    magnitude = number(r, "attention_factor", magnitude);
    write_kind(r, "yarn");
    ln_config_float(r->config, r->keys, "rope.scaling.factor", factor);
    if (magnitude != yarn_magnitude(factor, 1))
        ln_config_float(r->config, r->keys, "rope.scaling.attn_factor", magnitude / yarn_magnitude(factor, 1));
    char name[256];
    if (json_is_false(json_object_get(r->scaling, "truncate")))
        ln_write_integer(r->keys, ln_config_name(r->config, "rope.scaling.yarn_truncate", name), LN_BOOL, 0);
    const double fast = number(r, "beta_fast", 0), slow = number(r, "beta_slow", 0);
    if (fast != 0) ln_config_float(r->config, r->keys, "rope.scaling.yarn_beta_fast", fast);
    if (slow != 0) ln_config_float(r->config, r->keys, "rope.scaling.yarn_beta_slow", slow);
    return LINNET_OK;
}

static linnet_status take_list(const rope *r, const char *name, const char *tensor) {
    const json_t *list = json_object_get(r->scaling, name);
    if (!json_is_array(list) || (int64_t)json_array_size(list) != r->pairs)
        return BAD(r, "%s: the rotary setting \"%s\" is no list of %lld numbers; the file is damaged", r->config->path,
                   name, (long long)r->pairs);
    float *values = ln_file_own(r->config->file, (uint64_t)r->pairs, sizeof *values, "rotary factors");
    if (!values) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < r->pairs; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        const linnet_status status = positive(r, name, json_number_value(value));
        if (status != LINNET_OK) return status;
        values[i] = (float)json_number_value(value);
    }
    return r->take(r->user, tensor, values, r->pairs);
}

static linnet_status scale_long(const rope *r) {
    double original, factor;
    linnet_status status = write_original(r, &original);
    if (status == LINNET_OK) status = write_factor(r, original, &factor);
    if (status != LINNET_OK) return status;
    write_kind(r, "longrope");
    const double magnitude = factor <= 1 || original <= 1 ? 1 : sqrt(1 + log(factor) / log(original));
    ln_config_float(r->config, r->keys, "rope.scaling.attn_factor", number(r, "attention_factor", magnitude));
    status = take_list(r, "long_factor", "rope_factors_long.weight");
    return status == LINNET_OK ? take_list(r, "short_factor", "rope_factors_short.weight") : status;
}

static linnet_status scale_llama3(const rope *r) {
    const double factor = number(r, "factor", 8), low = number(r, "low_freq_factor", 1);
    const double high = number(r, "high_freq_factor", 4), original = original_length(r);
    linnet_status status = positive(r, "factor", factor);
    if (status == LINNET_OK) status = positive(r, "low_freq_factor", low);
    if (status == LINNET_OK) status = positive(r, "high_freq_factor - low_freq_factor", high - low);
    if (status == LINNET_OK) status = positive(r, "original_max_position_embeddings", original);
    if (status != LINNET_OK) return status;
    float *values = ln_file_own(r->config->file, (uint64_t)r->pairs, sizeof *values, "rotary factors");
    if (!values) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < r->pairs; i++) {
        const double length = 2 * 3.14159265358979323846 * pow(r->base, (double)i / (double)r->pairs);
        const double between = (original / length - low) / (high - low);
        if (length < original / high)
            values[i] = 1;
        else if (length > original / low)
            values[i] = (float)factor;
        else
            values[i] = (float)(1 / ((1 - between) / factor + between));
    }
    return r->take(r->user, "rope_freqs.weight", values, r->pairs);
}

static const struct scaling_row {
    const char *kind, *model; /* model "": all */
    linnet_status (*scale)(const rope *r);
} scalings[] = {{"su", "", scale_long},      {"yarn", "phi3", scale_long}, {"longrope", "", scale_long},
                {"default", "", scale_not},  {"linear", "", scale_linear}, {"yarn", "", scale_yarn},
                {"llama3", "", scale_llama3}};

static linnet_status scale(const rope *r) {
    const char *kind = json_string_value(json_object_get(r->scaling, "rope_type"));
    if (!kind) kind = json_string_value(json_object_get(r->scaling, "type"));
    if (!kind) kind = "default";
    for (size_t i = 0; i < sizeof scalings / sizeof *scalings; i++)
        if (strcmp(kind, scalings[i].kind) == 0 &&
            (!*scalings[i].model || strcmp(scalings[i].model, r->config->model_type) == 0))
            return scalings[i].scale(r);
    return ln_fail(r->config->file->context, LINNET_ERROR_UNSUPPORTED,
                   "%s: rotary scaling '%.40s' is not known; linear, yarn, llama3 and longrope are", r->config->path,
                   kind);
}

linnet_status ln_config_rope(const ln_config *config, ln_key_writer *keys, ln_take_made take, void *user) {
    rope r = {.config = config, .keys = keys, .take = take, .user = user};
    const json_t *parameters = object(json_object_get(config->text, "rope_parameters"));
    const json_t *full = object(json_object_get(parameters, "full_attention"));
    r.parameters = full ? full : parameters;
    r.local = object(json_object_get(parameters, "sliding_attention"));
    r.scaling = object(json_object_get(config->text, "rope_scaling"));
    if (!r.scaling) r.scaling = r.parameters;
    r.base = number(&r, "rope_theta", 10000);
    linnet_status status = positive(&r, "rope_theta", r.base);
    if (status != LINNET_OK) return status;
    ln_config_float(config, keys, "rope.freq_base", r.base);
    double local = 0;
    if (config->architecture && config->architecture->rope_base_local > 0) {
        local = config->architecture->rope_base_local;
        ln_config_number(config, "rope_local_base_freq", &local);
        number_of(r.local, "rope_theta", &local);
        status = positive(&r, "rope_local_base_freq", local);
        if (status != LINNET_OK) return status;
        ln_config_float(config, keys, "rope.freq_base_swa", local);
    }
    const double share = number(&r, "partial_rotary_factor", 1);
    const int64_t rotated = share > 0 && share <= 1 ? (int64_t)((double)ln_config_head_size(config) * share) : 0;
    if (rotated < 2 || rotated % 2 != 0) {
        if (!config->architecture) return LINNET_OK;
        return BAD(&r, "%s: %lld values of a head would be rotated, no even number; the file is damaged", config->path,
                   (long long)rotated);
    }
    r.pairs = rotated / 2;
    char name[256];
    ln_write_integer(keys, ln_config_name(config, "rope.dimension_count", name), LN_U32, rotated);
    return config->architecture ? scale(&r) : LINNET_OK;
}
