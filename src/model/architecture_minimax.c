/* MiniMax-01: lightning attention, every eighth layer softmax attention; experts in each. A block goes on from what was
 * normed: x = alpha norm(x) + beta part(norm(x)). */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/huggingface.h"
#include "model/part_attention.h"
#include "model/part_experts.h"
#include "model/part_feed_forward.h"
#include "model/part_lightning.h"
#include "model/take.h"

static const ln_name_row names[] = {
    {.huggingface = "self_attn.norm", .gguf = "attn_norm_2"},
    {.huggingface = "self_attn.output_gate", .gguf = "attn_gate"},
    {.huggingface = "self_attn.out_proj", .gguf = "attn_output"},
    {.huggingface = "block_sparse_moe.gate", .gguf = "ffn_gate_inp"},
    {.huggingface = "block_sparse_moe.experts.*.w1", .gguf = "ffn_gate.*"},
    {.huggingface = "block_sparse_moe.experts.*.w2", .gguf = "ffn_down.*"},
    {.huggingface = "block_sparse_moe.experts.*.w3", .gguf = "ffn_up.*"},
    {0},
};

/* Keys of Linnet's own where the factors differ: the format has residual_scale alone, alpha of all. */
static const ln_config_row config[] = {
    {"layernorm_full_attention_alpha", "attention.residual_alpha", LN_CONFIG_NUMBER, NAN},
    {"layernorm_full_attention_beta", "attention.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"layernorm_linear_attention_alpha", "lightning.residual_alpha", LN_CONFIG_NUMBER, NAN},
    {"layernorm_linear_attention_beta", "lightning.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"layernorm_mlp_alpha", "residual_scale", LN_CONFIG_NUMBER, NAN},
    {"layernorm_mlp_beta", "feed_forward.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"full_attn_alpha_factor", "attention.residual_alpha", LN_CONFIG_NUMBER, NAN},
    {"full_attn_beta_factor", "attention.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"linear_attn_alpha_factor", "lightning.residual_alpha", LN_CONFIG_NUMBER, NAN},
    {"linear_attn_beta_factor", "lightning.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"mlp_alpha_factor", "residual_scale", LN_CONFIG_NUMBER, NAN},
    {"mlp_beta_factor", "feed_forward.residual_beta", LN_CONFIG_NUMBER, NAN},
    {"num_local_experts", "expert_count", LN_CONFIG_WHOLE, 8},
    {"num_experts_per_tok", "expert_used_count", LN_CONFIG_WHOLE, 2},
    {"rotary_dim", "rope.dimension_count", LN_CONFIG_WHOLE, NAN},
    {0},
};

/* 1 is lightning where layers are listed by number. Without a list every other layer, from the second on. */
static bool is_lightning(const ln_config *c, int64_t layer) {
    const json_t *listed = json_array_get(json_object_get(c->text, "attn_type_list"), (size_t)layer);
    const char *type = ln_config_layer_type(c, layer);
    if (json_is_number(listed)) return json_number_value(listed) == 0;
    return type ? strcmp(type, "linear_attention") == 0 : layer % 2 == 1;
}

static linnet_status write_keys(const ln_config *c, ln_key_writer *keys) {
    double layers = 0;
    int32_t recurrent[LN_LAYERS_MOST];
    ln_config_number(c, "num_hidden_layers", &layers);
    if (!(layers >= 1) || layers > LN_LAYERS_MOST) return LINNET_OK;
    for (int64_t i = 0; i < (int64_t)layers; i++) recurrent[i] = is_lightning(c, i);
    ln_config_layers(c, keys, "attention.recurrent_layers", recurrent, (int64_t)layers);
    return LINNET_OK;
}

static float factor(const linnet_model *model, const char *suffix, double fallback) {
    return (float)ln_take_number(model, suffix, 0, fallback);
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    const bool usual = (index + 1) % ln_max_i64(ln_take_integer(model, "full_attention_interval", 0, 8), 1) != 0;
    const bool recurrent = ln_take_integer(model, "attention.recurrent_layers", index, usual) != 0;
    const double alpha = (double)factor(model, "residual_scale", 1);
    ln_block *mixer = &layer->block[0], *experts = &layer->block[1];
    layer->count = 2;
    mixer->parts = experts->parts = 1;
    mixer->from_norm = experts->from_norm = true;
    mixer->keep = factor(model, recurrent ? "lightning.residual_alpha" : "attention.residual_alpha", alpha);
    mixer->add = factor(model, recurrent ? "lightning.residual_beta" : "attention.residual_beta", 1);
    experts->keep = (float)alpha;
    experts->add = factor(model, "feed_forward.residual_beta", 1);
    LN_TRY(ln_take_norm(model, index, "attn_norm", true, &mixer->norm));
    LN_TRY(ln_take_norm(model, index, "ffn_norm", true, &experts->norm));
    LN_TRY((recurrent ? ln_lightning_take : ln_attention_take)(model, index, &mixer->part[0]));
    return (ln_experts_has(model, index) ? ln_experts_take : ln_feed_forward_take)(model, index, &experts->part[0]);
}

const ln_architecture ln_architecture_minimax = {.name = "minimax-01",
                                                 .model_types = {"minimax", "minimax_text_01"},
                                                 .traits = LN_EXPERTS_RENORMALISED,
                                                 .names = names,
                                                 .config = config,
                                                 .write_keys = write_keys,
                                                 .make_layer = make_layer};
