/* RWKV-6 (its checkpoints' own layout) and RWKV-7 (that of flash-linear-attention): a time mix and a channel mix a
 * layer. */
#include <math.h>

#include "model/huggingface.h"
#include "model/part_rwkv.h"
#include "model/take.h"

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer,
                                linnet_status (*take_time)(linnet_model *, int64_t, ln_part *)) {
    ln_block *time = &layer->block[0], *channel = &layer->block[1];
    layer->count = 2;
    time->parts = channel->parts = 1;
    LN_TRY(ln_take_norm(model, index, "attn_norm", true, &time->norm));
    LN_TRY(ln_take_norm(model, index, "attn_norm_2", true, &channel->norm));
    LN_TRY(take_time(model, index, &time->part[0]));
    LN_TRY(ln_rwkv_channel_take(model, index, &channel->part[0]));
    /* Some files halve the residual stream every few layers, and the weights after it with it. */
    const int64_t every = ln_take_integer(model, "rescale_every_n_layers", index, 0);
    if (every > 0 && (index + 1) % every == 0) channel->keep = channel->add = 0.5F;
    return LINNET_OK;
}

/* ---- RWKV-6 ---- */

static const ln_name_row names6[] = {
    {.huggingface = "embeddings", .gguf = "token_embd"},
    {.huggingface = "ln_out", .gguf = "output_norm"},
    {.huggingface = "head", .gguf = "output"},
    {.huggingface = "pre_ln", .gguf = "/token_embd_norm"},
    {.huggingface = "ln1", .gguf = "attn_norm"},
    {.huggingface = "ln2", .gguf = "attn_norm_2"},
    {.huggingface = "attention.time_maa_x", .gguf = "time_mix_lerp_x.weight"},
    {.huggingface = "attention.time_maa_w", .gguf = "time_mix_lerp_fused.weight", .part = 0, .parts = 5},
    {.huggingface = "attention.time_maa_k", .gguf = "time_mix_lerp_fused.weight", .part = 1, .parts = 5},
    {.huggingface = "attention.time_maa_v", .gguf = "time_mix_lerp_fused.weight", .part = 2, .parts = 5},
    {.huggingface = "attention.time_maa_r", .gguf = "time_mix_lerp_fused.weight", .part = 3, .parts = 5},
    {.huggingface = "attention.time_maa_g", .gguf = "time_mix_lerp_fused.weight", .part = 4, .parts = 5},
    {.huggingface = "attention.time_maa_w1", .gguf = "time_mix_w1.weight", .transpose = true},
    {.huggingface = "attention.time_maa_w2", .gguf = "time_mix_w2.weight", .transpose = true},
    {.huggingface = "attention.time_decay", .gguf = "time_mix_decay.weight"},
    {.huggingface = "attention.time_decay_w1", .gguf = "time_mix_decay_w1.weight", .transpose = true},
    {.huggingface = "attention.time_decay_w2", .gguf = "time_mix_decay_w2.weight", .transpose = true},
    {.huggingface = "attention.time_faaaa", .gguf = "time_mix_first.weight"},
    {.huggingface = "attention.receptance", .gguf = "time_mix_receptance"},
    {.huggingface = "attention.key", .gguf = "time_mix_key"},
    {.huggingface = "attention.value", .gguf = "time_mix_value"},
    {.huggingface = "attention.gate", .gguf = "time_mix_gate"},
    {.huggingface = "attention.output", .gguf = "time_mix_output"},
    {.huggingface = "attention.ln_x", .gguf = "time_mix_ln"},
    {.huggingface = "feed_forward.time_maa_k", .gguf = "channel_mix_lerp_k.weight"},
    {.huggingface = "feed_forward.time_maa_r", .gguf = "channel_mix_lerp_r.weight"},
    {.huggingface = "feed_forward.key", .gguf = "channel_mix_key"},
    {.huggingface = "feed_forward.value", .gguf = "channel_mix_value"},
    {.huggingface = "feed_forward.receptance", .gguf = "channel_mix_receptance"},
    {0},
};

static const ln_config_row config6[] = {
    {"layer_norm_epsilon", "attention.layer_norm_epsilon", false, 1e-5},
    {"head_size", "wkv.head_size", true, 64},
    {"context_length", "context_length", true, 1 << 20},
    {NULL, NULL, false, 0},
};

/* What only files for others say. */
static void write_counts(const ln_config *c, ln_key_writer *keys) {
    char name[256];
    ln_write_integer(keys, ln_config_name(c, "attention.head_count", name), LN_U32, 0);
}

static linnet_status write_keys6(const ln_config *c, ln_key_writer *keys) {
    double width = 0, columns = 0;
    ln_config_number(c, "hidden_size", &width);
    if (!ln_config_number(c, "intermediate_size", &columns)) columns = floor(width * 3.5 / 32) * 32;
    ln_config_size(c, keys, "feed_forward_length", columns);
    /* The ranks, which the format names but the tensors say. */
    ln_config_whole(c, keys, "time_mix_extra_dim", width >= 4096 ? 64 : 32);
    ln_config_whole(c, keys, "time_decay_extra_dim", width >= 4096 ? 128 : 64);
    write_counts(c, keys);
    return LINNET_OK;
}

static linnet_status make_layer6(linnet_model *model, int64_t index, ln_layer *layer) {
    return make_layer(model, index, layer, ln_rwkv6_time_take);
}

const ln_architecture ln_architecture_rwkv6 = {.name = "rwkv6",
                                               .model_types = {"rwkv6"},
                                               .traits = LN_NO_ATTENTION,
                                               .names = names6,
                                               .config = config6,
                                               .write_keys = write_keys6,
                                               .make_layer = make_layer6};

/* ---- RWKV-7 ---- */

static const ln_name_row names7[] = {
    {.huggingface = "embeddings", .gguf = "token_embd"},
    {.huggingface = "pre_norm", .gguf = "/token_embd_norm"},
    {.huggingface = "attn_norm", .gguf = "attn_norm"},
    {.huggingface = "ffn_norm", .gguf = "attn_norm_2"},
    {.huggingface = "attn.x_r", .gguf = "time_mix_lerp_fused.weight", .part = 0, .parts = 6},
    {.huggingface = "attn.x_w", .gguf = "time_mix_lerp_fused.weight", .part = 1, .parts = 6},
    {.huggingface = "attn.x_k", .gguf = "time_mix_lerp_fused.weight", .part = 2, .parts = 6},
    {.huggingface = "attn.x_v", .gguf = "time_mix_lerp_fused.weight", .part = 3, .parts = 6},
    {.huggingface = "attn.x_a", .gguf = "time_mix_lerp_fused.weight", .part = 4, .parts = 6},
    {.huggingface = "attn.x_g", .gguf = "time_mix_lerp_fused.weight", .part = 5, .parts = 6},
    {.huggingface = "attn.k_k", .gguf = "time_mix_k_k.weight"},
    {.huggingface = "attn.k_a", .gguf = "time_mix_k_a.weight"},
    {.huggingface = "attn.r_k", .gguf = "time_mix_r_k.weight", .flat = true},
    {.huggingface = "attn.r_proj", .gguf = "time_mix_receptance"},
    {.huggingface = "attn.k_proj", .gguf = "time_mix_key"},
    {.huggingface = "attn.v_proj", .gguf = "time_mix_value"},
    {.huggingface = "attn.o_proj", .gguf = "time_mix_output"},
    {.huggingface = "attn.w_lora.lora.0.weight", .gguf = "time_mix_w1.weight"},
    {.huggingface = "attn.w_lora.lora.2.weight", .gguf = "time_mix_w2.weight"},
    {.huggingface = "attn.w_lora.lora.2.bias", .gguf = "time_mix_w0.weight"},
    {.huggingface = "attn.a_lora.lora.0.weight", .gguf = "time_mix_a1.weight"},
    {.huggingface = "attn.a_lora.lora.2.weight", .gguf = "time_mix_a2.weight"},
    {.huggingface = "attn.a_lora.lora.2.bias", .gguf = "time_mix_a0.weight"},
    {.huggingface = "attn.v_lora.lora.0.weight", .gguf = "time_mix_v1.weight"},
    {.huggingface = "attn.v_lora.lora.2.weight", .gguf = "time_mix_v2.weight"},
    {.huggingface = "attn.v_lora.lora.2.bias", .gguf = "time_mix_v0.weight"},
    {.huggingface = "attn.g_lora.lora.0.weight", .gguf = "time_mix_g1.weight"},
    {.huggingface = "attn.g_lora.lora.2.weight", .gguf = "time_mix_g2.weight"},
    {.huggingface = "attn.g_norm", .gguf = "time_mix_ln"},
    {.huggingface = "ffn.x_k", .gguf = "channel_mix_lerp_k.weight"},
    {.huggingface = "ffn.key", .gguf = "channel_mix_key"},
    {.huggingface = "ffn.value", .gguf = "channel_mix_value"},
    {0},
};

static const ln_config_row config7[] = {
    {"norm_eps", "attention.layer_norm_epsilon", false, 1e-5},
    {"head_dim", "wkv.head_size", true, 64},
    {"decay_low_rank_dim", "attention.decay_lora_rank", true, NAN},
    {"a_low_rank_dim", "attention.iclr_lora_rank", true, NAN},
    {"v_low_rank_dim", "attention.value_residual_mix_lora_rank", true, NAN},
    {"gate_low_rank_dim", "attention.gate_lora_rank", true, NAN},
    {NULL, NULL, false, 0},
};

static linnet_status write_keys7(const ln_config *c, ln_key_writer *keys) {
    double width = 0, columns = 0;
    ln_config_number(c, "hidden_size", &width);
    if (!ln_config_number(c, "intermediate_size", &columns)) columns = 4 * width;
    ln_config_size(c, keys, "feed_forward_length", columns);
    ln_config_whole(c, keys, "context_length", 1 << 20);
    write_counts(c, keys);
    return LINNET_OK;
}

static linnet_status make_layer7(linnet_model *model, int64_t index, ln_layer *layer) {
    return make_layer(model, index, layer, ln_rwkv7_time_take);
}

const ln_architecture ln_architecture_rwkv7 = {.name = "rwkv7",
                                               .model_types = {"rwkv7"},
                                               .traits = LN_NO_ATTENTION,
                                               .activation = LN_RELU_SQUARED,
                                               .names = names7,
                                               .config = config7,
                                               .write_keys = write_keys7,
                                               .make_layer = make_layer7};
