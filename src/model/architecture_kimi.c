/* Kimi Linear: delta nets with a decay a channel, some layers latent attention without positions; the first layers
 * dense, the others with experts. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/huggingface.h"
#include "model/part_delta.h"
#include "model/part_latent.h"
#include "model/take.h"
#include "model/transformer.h"

static void negative_exponential(float *values, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; i++) values[i] = -expf(values[i]);
}

static const ln_name_row names[] = {
    {.huggingface = "self_attn.q_conv1d", .gguf = "ssm_conv1d_q"},
    {.huggingface = "self_attn.k_conv1d", .gguf = "ssm_conv1d_k"},
    {.huggingface = "self_attn.v_conv1d", .gguf = "ssm_conv1d_v"},
    {.huggingface = "self_attn.f_a_proj", .gguf = "ssm_f_a"},
    {.huggingface = "self_attn.f_b_proj", .gguf = "ssm_f_b"},
    {.huggingface = "self_attn.g_a_proj", .gguf = "ssm_g_a"},
    {.huggingface = "self_attn.g_b_proj", .gguf = "ssm_g_b"},
    {.huggingface = "self_attn.b_proj", .gguf = "ssm_beta"},
    {.huggingface = "self_attn.A_log", .gguf = "ssm_a", .change = negative_exponential},
    {.huggingface = "self_attn.dt_bias", .gguf = "ssm_dt.bias"},
    {.huggingface = "self_attn.o_norm", .gguf = "ssm_norm"},
    {.huggingface = "self_attn.q_a_proj", .gguf = "attn_q_a"},
    {.huggingface = "self_attn.q_a_layernorm", .gguf = "attn_q_a_norm"},
    {.huggingface = "self_attn.q_b_proj", .gguf = "attn_q_b"},
    {.huggingface = "self_attn.kv_a_proj_with_mqa", .gguf = "attn_kv_a_mqa"},
    {.huggingface = "self_attn.kv_a_layernorm", .gguf = "attn_kv_a_norm"},
    {.huggingface = "self_attn.kv_b_proj", .gguf = "attn_kv_b"},
    {.huggingface = "block_sparse_moe.gate.weight", .gguf = "ffn_gate_inp.weight"},
    {.huggingface = "block_sparse_moe.gate.e_score_correction_bias", .gguf = "exp_probs_b.bias"},
    {.huggingface = "block_sparse_moe.experts.*.w1", .gguf = "ffn_gate.*"},
    {.huggingface = "block_sparse_moe.experts.*.w2", .gguf = "ffn_down.*"},
    {.huggingface = "block_sparse_moe.experts.*.w3", .gguf = "ffn_up.*"},
    {.huggingface = "block_sparse_moe.shared_experts.gate_proj", .gguf = "ffn_gate_shexp"},
    {.huggingface = "block_sparse_moe.shared_experts.up_proj", .gguf = "ffn_up_shexp"},
    {.huggingface = "block_sparse_moe.shared_experts.down_proj", .gguf = "ffn_down_shexp"},
    {0},
};

static const ln_config_row config[] = {
    {"kv_lora_rank", "attention.kv_lora_rank", LN_CONFIG_WHOLE, 512},
    {"q_lora_rank", "attention.q_lora_rank", LN_CONFIG_WHOLE, NAN},
    {"qk_rope_head_dim", "rope.dimension_count", LN_CONFIG_WHOLE, 64},
    {"v_head_dim", "attention.value_length_mla", LN_CONFIG_WHOLE, 128},
    {"num_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_local_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_experts_per_token", "expert_used_count", LN_CONFIG_WHOLE, NAN},
    {"num_experts_per_tok", "expert_used_count", LN_CONFIG_WHOLE, NAN},
    {"num_shared_experts", "expert_shared_count", LN_CONFIG_WHOLE, NAN},
    {"n_shared_experts", "expert_shared_count", LN_CONFIG_WHOLE, NAN},
    {"moe_intermediate_size", "expert_feed_forward_length", LN_CONFIG_WHOLE, NAN},
    {"first_k_dense_replace", "leading_dense_block_count", LN_CONFIG_WHOLE, 1},
    {"routed_scaling_factor", "expert_weights_scale", LN_CONFIG_NUMBER, 1},
    {"moe_renormalize", "expert_weights_norm", LN_CONFIG_FLAG, NAN},
    {"norm_topk_prob", "expert_weights_norm", LN_CONFIG_FLAG, NAN},
    {"num_expert_group", "expert_group_count", LN_CONFIG_WHOLE, NAN},
    {"n_group", "expert_group_count", LN_CONFIG_WHOLE, NAN},
    {"topk_group", "expert_group_used_count", LN_CONFIG_WHOLE, NAN},
    {"model_max_length", "context_length", LN_CONFIG_WHOLE, NAN},
    {0},
};

static double number(const json_t *object, const char *name, double fallback) {
    const json_t *value = json_object_get(object, name);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

/* By the list of layers of this kind, counted from 1, else by their types, else every fourth but the first. */
static bool attends(const ln_config *c, int64_t layer) {
    const json_t *listed = json_object_get(json_object_get(c->text, "linear_attn_config"), "full_attn_layers");
    const char *type = ln_config_layer_type(c, layer);
    if (!json_is_array(listed)) return type ? strcmp(type, "full_attention") == 0 : layer > 0 && layer % 4 == 0;
    for (size_t k = 0; k < json_array_size(listed); k++)
        if (json_number_value(json_array_get(listed, k)) == (double)layer + 1) return true;
    return false;
}

static linnet_status write_keys(const ln_config *c, ln_key_writer *keys) {
    const json_t *own = json_object_get(c->text, "linear_attn_config");
    double layers = 0, size = 128, taps = 4, plain = 128, shared = 64, rank = 512;
    ln_config_number(c, "linear_head_dim", &size);
    ln_config_number(c, "linear_conv_kernel_dim", &taps);
    ln_config_number(c, "num_hidden_layers", &layers);
    ln_config_number(c, "qk_nope_head_dim", &plain);
    ln_config_number(c, "qk_rope_head_dim", &shared);
    ln_config_number(c, "kv_lora_rank", &rank);
    ln_config_size(c, keys, "kda.head_dim", number(own, "head_dim", size));
    ln_config_size(c, keys, "ssm.conv_kernel", number(own, "short_conv_kernel_size", taps));
    ln_config_size(c, keys, "attention.key_length_mla", plain + shared);
    ln_config_size(c, keys, "attention.key_length", rank + shared);
    ln_config_size(c, keys, "attention.value_length", rank);
    ln_config_whole(c, keys, "expert_gating_func", 2);
    if (!(layers >= 1) || layers > LN_LAYERS_MOST) return LINNET_OK;
    int32_t heads[LN_LAYERS_MOST];
    for (int64_t i = 0; i < (int64_t)layers; i++) heads[i] = attends(c, i);
    ln_config_layers(c, keys, "attention.head_count_kv", heads, (int64_t)layers);
    return LINNET_OK;
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    const bool attention = ln_take_integer(model, "attention.head_count_kv", index, 1) != 0;
    LN_TRY((attention ? ln_latent_take : ln_delta_channel_take)(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}

const ln_architecture ln_architecture_kimi_linear = {.name = "kimi-linear",
                                                     .model_types = {"kimi_linear"},
                                                     .traits = LN_EXPERTS_RENORMALISED,
                                                     .names = names,
                                                     .config = config,
                                                     .write_keys = write_keys,
                                                     .open = ln_latent_open,
                                                     .make_layer = make_layer};
