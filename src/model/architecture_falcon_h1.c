/* Owns: Falcon-H1: in each layer attention and Mamba-2 read the same h, and both are added. The numbers by which it
 * multiplies become, where they can, those that a model has anyway: queries, keys and scores are one product, so
 *     attention.scale = attention_in^2 key / sqrt(head),  attention.output_scale = attention_in attention_out */
#include <math.h>
#include <string.h>

#include "model/part_attention.h"
#include "model/state_space.h"
#include "model/take.h"
#include "model/transformer.h"

static const ln_name_row names[] = {
    LN_STATE_SPACE_NAMES("mamba"),
    {.huggingface = "final_layernorm", .gguf = "output_norm"},
    {.huggingface = "pre_ff_layernorm.weight", .gguf = "ffn_norm"}, /* GGUF has it without an ending */
    {.huggingface = "feed_forward.gate_proj", .gguf = "ffn_gate"},
    {.huggingface = "feed_forward.up_proj", .gguf = "ffn_up"},
    {.huggingface = "feed_forward.down_proj", .gguf = "ffn_down"},
    {0},
};

static const ln_config_row config_rows[] = {
    {"embedding_multiplier", "embedding_scale", LN_CONFIG_NUMBER, NAN},
    {"ssm_out_multiplier", "ssm.output_scale", LN_CONFIG_NUMBER, NAN},
    {0},
};

static double multiplier(const ln_config *config, const char *name) {
    double value;
    return ln_config_number(config, name, &value) ? value : 1;
}

static double listed(const ln_config *config, const char *name, size_t index) {
    const json_t *value = json_array_get(json_object_get(config->text, name), index);
    return json_is_number(value) ? json_number_value(value) : 1;
}

static linnet_status write_keys(const ln_config *config, ln_key_writer *keys) {
    char name[256];
    ln_state_space_keys(config, keys);
    const double in = multiplier(config, "attention_in_multiplier"), key = multiplier(config, "key_multiplier"),
                 state_in = multiplier(config, "ssm_in_multiplier"), head = multiplier(config, "lm_head_multiplier");
    const bool biased = json_is_true(json_object_get(config->text, "attention_bias")) && (in != 1 || key != 1);
    if (biased || (json_is_true(json_object_get(config->text, "mamba_proj_bias")) && state_in != 1))
        return ln_fail(config->file->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: biases together with multipliers of what they are added to are not supported",
                       config->path);
    if (!(head > 0))
        return ln_fail(config->file->context, LINNET_ERROR_FORMAT,
                       "%s: \"lm_head_multiplier\" is %g; the file is damaged", config->path, head);
    const int64_t size = ln_config_head_size(config);
    if (size > 0) ln_config_float(config, keys, "attention.scale", in * in * key / sqrt((double)size));
    ln_config_float(config, keys, "attention.output_scale", in * multiplier(config, "attention_out_multiplier"));
    ln_config_float(config, keys, "logit_scale", 1 / head);
    ln_config_float(config, keys, "feed_forward.gate_scale", listed(config, "mlp_multipliers", 0));
    ln_config_float(config, keys, "feed_forward.output_scale", listed(config, "mlp_multipliers", 1));
    float scales[LN_SSM_PARTS];
    for (size_t i = 0; i < LN_SSM_PARTS; i++) scales[i] = (float)(state_in * listed(config, "ssm_multipliers", i));
    ln_write_array(keys, ln_config_name(config, "ssm.input_scale", name), LN_FLOAT, scales, LN_SSM_PARTS);
    if (json_is_true(json_object_get(config->text, "mamba_norm_before_gate")))
        ln_write_integer(keys, ln_config_name(config, "ssm.norm_before_gate", name), LN_BOOL, 1);
    return LINNET_OK;
}

static linnet_status open_model(linnet_model *model) {
    LN_TRY(ln_state_space_ends(model));
    return ln_state_space_open(model);
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    ln_block *block = &layer->block[0];
    LN_TRY(ln_attention_take(model, index, &block->part[0]));
    LN_TRY(ln_mamba2_take(model, index, &block->part[1]));
    block->parts = 2;
    block->part[0].scale = (float)ln_take_number(model, "attention.output_scale", -1, 1);
    block->part[1].scale = (float)ln_take_number(model, "ssm.output_scale", -1, 1);
    LN_TRY(ln_transformer_mixer(model, index, layer));
    LN_TRY(ln_transformer_feed_forward(model, index, layer));
    layer->block[1].part[0].scale = (float)ln_take_number(model, "feed_forward.output_scale", -1, 1);
    return LINNET_OK;
}

const ln_architecture ln_architecture_falcon_h1 = {.name = "falcon-h1",
                                                   .model_types = {"falcon_h1"},
                                                   .traits = LN_MULTIPLIED | LN_MAMBA2,
                                                   .names = names,
                                                   .config = config_rows,
                                                   .write_keys = write_keys,
                                                   .open = open_model,
                                                   .make_layer = make_layer};
