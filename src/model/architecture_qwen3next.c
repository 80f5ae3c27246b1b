/* Qwen3-Next: gated delta nets, every fourth layer gated attention; experts in each. */
#include <math.h>
#include <string.h>

#include "model/huggingface.h"
#include "model/part_attention.h"
#include "model/part_delta.h"
#include "model/part_experts.h"
#include "model/part_feed_forward.h"
#include "model/take.h"

static void negative_exponential(float *values, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; i++) values[i] = -expf(values[i]);
}

static const ln_name_row names[] = {
    {.huggingface = "linear_attn.in_proj_qkvz", .gguf = "ssm_in"},
    {.huggingface = "linear_attn.in_proj_ba", .gguf = "ssm_ba"},
    {.huggingface = "linear_attn.conv1d", .gguf = "ssm_conv1d"},
    {.huggingface = "linear_attn.A_log", .gguf = "ssm_a", .change = negative_exponential},
    {.huggingface = "linear_attn.dt_bias", .gguf = "ssm_dt.bias"},
    {.huggingface = "linear_attn.norm", .gguf = "ssm_norm"},
    {.huggingface = "linear_attn.out_proj", .gguf = "ssm_out"},
    {.huggingface = "post_attention_layernorm", .gguf = "post_attention_norm"},
    {0},
};

static const ln_config_row config[] = {
    {"linear_conv_kernel_dim", "ssm.conv_kernel", LN_CONFIG_WHOLE, 4},
    {"linear_key_head_dim", "ssm.state_size", LN_CONFIG_WHOLE, 128},
    {"linear_num_key_heads", "ssm.group_count", LN_CONFIG_WHOLE, 16},
    {"linear_num_value_heads", "ssm.time_step_rank", LN_CONFIG_WHOLE, 32},
    {"full_attention_interval", "full_attention_interval", LN_CONFIG_WHOLE, 4},
    {"num_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_experts_per_tok", "expert_used_count", LN_CONFIG_WHOLE, NAN},
    {"moe_intermediate_size", "expert_feed_forward_length", LN_CONFIG_WHOLE, NAN},
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length", LN_CONFIG_WHOLE, NAN},
    {"norm_topk_prob", "expert_weights_norm", LN_CONFIG_FLAG, 1},
    {NULL, NULL, LN_CONFIG_NUMBER, 0},
};

static linnet_status write_keys(const ln_config *c, ln_key_writer *keys) {
    double heads = 32, size = 128, layers = 0, factor = 0.25;
    ln_config_number(c, "linear_num_value_heads", &heads);
    ln_config_number(c, "linear_value_head_dim", &size);
    ln_config_number(c, "num_hidden_layers", &layers);
    ln_config_size(c, keys, "ssm.inner_size", heads * size);
    const json_t *rope = json_object_get(c->text, "rope_parameters");
    const json_t *said = json_object_get(rope, "partial_rotary_factor");
    if (json_is_number(said))
        factor = json_number_value(said);
    else
        ln_config_number(c, "partial_rotary_factor", &factor);
    ln_config_size(c, keys, "rope.dimension_count", factor * (double)ln_config_head_size(c));
    if (!ln_config_layer_type(c, 0) || !(layers >= 1) || layers > LN_LAYERS_MOST) return LINNET_OK;
    int32_t recurrent[LN_LAYERS_MOST];
    for (int64_t i = 0; i < (int64_t)layers; i++) {
        const char *type = ln_config_layer_type(c, i);
        recurrent[i] = type && strcmp(type, "linear_attention") == 0;
    }
    ln_config_layers(c, keys, "attention.recurrent_layers", recurrent, (int64_t)layers);
    return LINNET_OK;
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    const int64_t every = ln_take_integer(model, "full_attention_interval", 0, 4);
    const bool usual = every > 0 && (index + 1) % every != 0;
    const bool recurrent = ln_take_integer(model, "attention.recurrent_layers", index, usual) != 0;
    LN_TRY((recurrent ? ln_delta_take : ln_attention_take)(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_take_norm(model, index, "attn_norm", true, &layer->block[0].norm));
    layer->block[0].parts = 1;
    layer->count = 2;
    ln_block *block = &layer->block[1];
    block->parts = 1;
    LN_TRY(ln_take_norm(model, index, "post_attention_norm", true, &block->norm));
    return (ln_experts_has(model, index) ? ln_experts_take : ln_feed_forward_take)(model, index, &block->part[0]);
}

const ln_architecture ln_architecture_qwen3next = {.name = "qwen3next",
                                                   .model_types = {"qwen3_next"},
                                                   .traits =
                                                       LN_NORM_PLUS_ONE | LN_ATTENTION_GATED | LN_EXPERTS_RENORMALISED,
                                                   .names = names,
                                                   .config = config,
                                                   .write_keys = write_keys,
                                                   .make_layer = make_layer};
