/* Owns: Mamba, Falcon-Mamba (by GGUF's name the same, with norms inside) and Mamba-2: every layer is one mixer,
 *     x += mixer(norm(x)) */
#include <math.h>
#include <string.h>

#include "model/state_space.h"
#include "model/take.h"
#include "model/transformer.h"

static const ln_name_row names[] = {
    {.huggingface = "embeddings", .gguf = "token_embd"},
    {.huggingface = "norm_f", .gguf = "output_norm"},
    {.huggingface = "norm", .gguf = "attn_norm"},
    LN_STATE_SPACE_NAMES("mixer"),
    {0},
};

static double number_of(const ln_config *config, const char *name, double fallback) {
    double value;
    return ln_config_number(config, name, &value) ? value : fallback;
}

/* What readers of GGUF want to be said of models without attention, and of a context that has no end. */
static int64_t write_common(const ln_config *config, ln_key_writer *keys) {
    const double width = number_of(config, "hidden_size", 0), expand = number_of(config, "expand", 2);
    ln_state_space_count(config, keys, "context_length", 1 << 20);
    ln_state_space_count(config, keys, "feed_forward_length", 0);
    ln_state_space_count(config, keys, "attention.head_count", 0);
    if (width >= 1 && width < 1 << 20 && expand > 0 && expand <= 64)
        ln_state_space_count(config, keys, "ssm.inner_size", (int64_t)(width * expand));
    return width >= 1 && width < 1 << 20 ? (int64_t)width : 0;
}

static linnet_status write_mamba(const ln_config *config, ln_key_writer *keys) {
    const int64_t width = write_common(config, keys);
    const double rank = number_of(config, "time_step_rank", (double)((width + 15) / 16));
    if (rank >= 1 && rank < 1 << 20) ln_state_space_count(config, keys, "ssm.time_step_rank", (int64_t)rank);
    const bool normed = strcmp(config->model_type, "falcon_mamba") == 0;
    char name[256];
    ln_write_integer(keys, ln_config_name(config, "ssm.dt_b_c_rms", name), LN_BOOL, normed);
    if (normed) ln_config_float(config, keys, "ssm.norm_rms_epsilon", number_of(config, "mixer_rms_eps", 1e-6));
    return LINNET_OK;
}

static linnet_status write_mamba2(const ln_config *config, ln_key_writer *keys) {
    write_common(config, keys);
    ln_state_space_limit(config, keys);
    return LINNET_OK;
}

static const ln_config_row mamba_config[] = {
    {"conv_kernel", "ssm.conv_kernel", LN_CONFIG_WHOLE, 4},
    {"state_size", "ssm.state_size", LN_CONFIG_WHOLE, 16},
    {"layer_norm_epsilon", "attention.layer_norm_rms_epsilon", LN_CONFIG_NUMBER, 1e-5},
    {0},
};
static const ln_config_row mamba2_config[] = {
    {"conv_kernel", "ssm.conv_kernel", LN_CONFIG_WHOLE, 4},
    {"state_size", "ssm.state_size", LN_CONFIG_WHOLE, 128},
    {"n_groups", "ssm.group_count", LN_CONFIG_WHOLE, 8},
    {"num_heads", "ssm.time_step_rank", LN_CONFIG_WHOLE, 128},
    {"layer_norm_epsilon", "attention.layer_norm_rms_epsilon", LN_CONFIG_NUMBER, 1e-5},
    {0},
};

static linnet_status make_mamba(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_mamba_take(model, index, &layer->block[0].part[0]));
    return ln_transformer_mixer(model, index, layer);
}

static linnet_status make_mamba2(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_mamba2_take(model, index, &layer->block[0].part[0]));
    return ln_transformer_mixer(model, index, layer);
}

const ln_architecture ln_architecture_mamba = {.name = "mamba",
                                               .model_types = {"mamba", "falcon_mamba"},
                                               .traits = LN_NO_ATTENTION,
                                               .names = names,
                                               .config = mamba_config,
                                               .write_keys = write_mamba,
                                               .open = ln_state_space_open,
                                               .make_layer = make_mamba};

const ln_architecture ln_architecture_mamba2 = {.name = "mamba2",
                                                .model_types = {"mamba2"},
                                                .traits = LN_NO_ATTENTION | LN_MAMBA2,
                                                .names = names,
                                                .config = mamba2_config,
                                                .write_keys = write_mamba2,
                                                .open = ln_state_space_open,
                                                .make_layer = make_mamba2};
