/* Owns: keys of state-space mixers: GGUF's ssm.*, and what config.json says in their place.
 *
 * Falcon-H1 multiplies what its projections give by numbers of its own. GGUF holds weights that are multiplied already;
 * of a folder they stay as they are, and the numbers are keys:
 *     ssm.input_scale [5]   gate, value, B, C and step as the projection gives them, in its order
 *     ssm.output_scale, attention.output_scale, feed_forward.gate_scale, feed_forward.output_scale
 * which linnet_convert multiplies into the weights. */
#include "model/state_space.h"

#include <math.h>
#include <string.h>

#include "model/take.h"

enum { LEAST = 1, MOST_TAPS = 64, MOST_SIZE = 1 << 22 };

void ln_state_space_rates(float *values, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; i++) values[i] = (float)-exp((double)values[i]);
}

/* ---- keys of a file ---- */

static double listed(const linnet_model *model, const char *suffix, uint64_t index, double fallback) {
    const ln_key *key = ln_file_key_of(model->file, suffix);
    return key && key->array && index < key->count ? ln_key_number(key, index, fallback) : fallback;
}

linnet_status ln_state_space_open(linnet_model *model) {
    ln_state_space *s = ln_file_own(model->file, 1, sizeof *s, "layers");
    if (!s) return LINNET_ERROR_MEMORY;
    model->own = s;
    *s = (ln_state_space){.groups = 1};
    LN_TRY(ln_take_count(model, "ssm.conv_kernel", -1, LEAST, MOST_TAPS, &s->taps));
    LN_TRY(ln_take_count(model, "ssm.inner_size", -1, LEAST, MOST_SIZE, &s->inner));
    LN_TRY(ln_take_count(model, "ssm.state_size", -1, LEAST, MOST_SIZE, &s->states));
    LN_TRY(ln_take_count(model, "ssm.time_step_rank", -1, LEAST, MOST_SIZE, &s->heads));
    LN_TRY(ln_take_count(model, "ssm.group_count", -1, LEAST, MOST_SIZE, &s->groups));
    s->epsilon = (float)ln_take_number(model, "ssm.norm_rms_epsilon", -1, (double)model->hyper.norm_epsilon);
    s->normed = ln_take_integer(model, "ssm.dt_b_c_rms", -1, 0) != 0;
    s->norm_first = ln_take_integer(model, "ssm.norm_before_gate", -1, 0) != 0;
    s->step_least = (float)listed(model, "ssm.time_step_limit", 0, 0);
    s->step_most = (float)listed(model, "ssm.time_step_limit", 1, INFINITY);
    bool sound = s->epsilon >= 0 && !isinf(s->epsilon) && s->step_least >= 0 && s->step_most >= s->step_least;
    for (uint64_t i = 0; i < LN_SSM_PARTS; i++) {
        s->scale[i] = (float)listed(model, "ssm.input_scale", i, 1);
        sound = sound && isfinite(s->scale[i]);
    }
    if (!sound)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: the limits, scales and the norm epsilon of ssm.* must be finite, limits in order",
                       model->file->path);
    return LINNET_OK;
}

linnet_status ln_state_space_ends(linnet_model *model) {
    const double divisor = ln_take_number(model, "logit_scale", -1, 1);
    model->hyper.embedding_scale = (float)ln_take_number(model, "embedding_scale", -1, 1);
    model->hyper.logit_scale = (float)(1 / divisor);
    if (divisor > 0 && isfinite(divisor) && isfinite(model->hyper.embedding_scale)) return LINNET_OK;
    return ln_fail(model->context, LINNET_ERROR_FORMAT,
                   "%s: embedding_scale and logit_scale must be finite, the latter positive", model->file->path);
}

/* ---- keys of config.json ---- */

static int64_t count_of(const ln_config *config, const char *name) {
    double value;
    return ln_config_number(config, name, &value) && value >= 1 && value <= MOST_SIZE && value == floor(value)
               ? (int64_t)value
               : 0;
}

void ln_state_space_count(const ln_config *config, ln_key_writer *keys, const char *suffix, int64_t count) {
    char name[256];
    ln_write_integer(keys, ln_config_name(config, suffix, name), LN_U32, count);
}

/* null, or no end: the greatest number. */
void ln_state_space_limit(const ln_config *config, ln_key_writer *keys) {
    const json_t *limit = json_object_get(config->text, "time_step_limit");
    if (json_array_size(limit) != 2) return;
    const json_t *const ends[] = {json_array_get(limit, 0), json_array_get(limit, 1)};
    const float values[] = {json_is_number(ends[0]) ? (float)json_number_value(ends[0]) : 0,
                            json_is_number(ends[1]) ? (float)json_number_value(ends[1]) : INFINITY};
    char name[256];
    if (values[0] > 0 || isfinite(values[1]))
        ln_write_array(keys, ln_config_name(config, "ssm.time_step_limit", name), LN_FLOAT, values, 2);
}

void ln_state_space_keys(const ln_config *config, ln_key_writer *keys) {
    static const struct {
        const char *name, *suffix;
    } rows[] = {{"mamba_d_conv", "ssm.conv_kernel"},
                {"mamba_d_state", "ssm.state_size"},
                {"mamba_n_groups", "ssm.group_count"},
                {"mamba_n_heads", "ssm.time_step_rank"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const int64_t count = count_of(config, rows[i].name);
        if (count) ln_state_space_count(config, keys, rows[i].suffix, count);
    }
    int64_t inner = count_of(config, "mamba_d_ssm");
    if (!inner) inner = count_of(config, "mamba_expand") * count_of(config, "hidden_size");
    ln_state_space_count(config, keys, "ssm.inner_size", inner);
    ln_state_space_limit(config, keys);
}
