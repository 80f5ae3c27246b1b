/* LFM2: layers of gated short convolutions, and of attention where head_count_kv of the layer is not 0; each with a
 * feed-forward network. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "model/huggingface.h"
#include "model/part_attention.h"
#include "model/part_short_convolution.h"
#include "model/take.h"
#include "model/transformer.h"

static const ln_name_row names[] = {
    {.huggingface = "embedding_norm", .gguf = "token_embd_norm"},
    {.huggingface = "operator_norm", .gguf = "attn_norm"},
    {.huggingface = "ffn_norm", .gguf = "ffn_norm"},
    {.huggingface = "feed_forward.w1", .gguf = "ffn_gate"},
    {.huggingface = "feed_forward.w2", .gguf = "ffn_down"},
    {.huggingface = "feed_forward.w3", .gguf = "ffn_up"},
    {.huggingface = "self_attn.out_proj", .gguf = "attn_output"},
    {.huggingface = "self_attn.q_layernorm", .gguf = "attn_q_norm"},
    {.huggingface = "self_attn.k_layernorm", .gguf = "attn_k_norm"},
    {.huggingface = "conv.conv", .gguf = "shortconv.conv"},
    {.huggingface = "conv.in_proj", .gguf = "shortconv.in_proj"},
    {.huggingface = "conv.out_proj", .gguf = "shortconv.out_proj"},
    {0},
};

static const ln_config_row config[] = {
    {"norm_eps", "attention.layer_norm_rms_epsilon", LN_CONFIG_NUMBER, 1e-5},
    {"conv_L_cache", "shortconv.l_cache", LN_CONFIG_WHOLE, 3},
    {NULL, NULL, LN_CONFIG_NUMBER, 0},
};

/* The size is said before a part of it is taken off and it is rounded up. */
static int64_t feed_forward(const ln_config *c) {
    double size = 12288, adjusts = 1, factor = 1, unit = 256;
    if (!ln_config_number(c, "block_ff_dim", &size)) ln_config_number(c, "intermediate_size", &size);
    ln_config_number(c, "block_auto_adjust_ff_dim", &adjusts);
    ln_config_number(c, "block_ffn_dim_multiplier", &factor);
    ln_config_number(c, "block_multiple_of", &unit);
    if (!(size >= 1) || size > LN_FEED_FORWARD_MOST || !(unit >= 1) || unit > LN_FEED_FORWARD_MOST || !(factor > 0))
        return 0;
    if (adjusts == 0) return (int64_t)size;
    const double taken = floor(factor * floor(2 * size / 3));
    return taken < LN_FEED_FORWARD_MOST ? ln_ceil_div((int64_t)taken, (int64_t)unit) * (int64_t)unit : 0;
}

static bool attends(const ln_config *c, int64_t layer) {
    const json_t *listed = json_object_get(c->text, "full_attn_idxs");
    const char *type = ln_config_layer_type(c, layer);
    if (type || !json_is_array(listed)) return !type || strcmp(type, "conv") != 0;
    for (size_t i = 0; i < json_array_size(listed); i++)
        if (json_number_value(json_array_get(listed, i)) == (double)layer) return true;
    return false;
}

static linnet_status write_keys(const ln_config *c, ln_key_writer *keys) {
    double layers = 0, heads = 0;
    ln_config_number(c, "num_hidden_layers", &layers);
    if (!ln_config_number(c, "num_key_value_heads", &heads)) ln_config_number(c, "num_attention_heads", &heads);
    ln_config_whole(c, keys, "feed_forward_length", feed_forward(c));
    if (!(layers >= 1) || layers > LN_LAYERS_MOST || !(heads >= 1) || heads > 1 << 16) return LINNET_OK;
    int32_t *values = ln_allocate(c->file->context, (uint64_t)layers, sizeof *values, "pattern of layers");
    if (!values) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < (int64_t)layers; i++) values[i] = attends(c, i) ? (int32_t)heads : 0;
    ln_config_layers(c, keys, "attention.head_count_kv", values, (int64_t)layers);
    ln_release(c->file->context, values);
    return LINNET_OK;
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    const bool attention = ln_take_integer(model, "attention.head_count_kv", index, 1) != 0;
    LN_TRY((attention ? ln_attention_take : ln_short_convolution_take)(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}

const ln_architecture ln_architecture_lfm2 = {.name = "lfm2",
                                              .model_types = {"lfm2"},
                                              .names = names,
                                              .config = config,
                                              .write_keys = write_keys,
                                              .make_layer = make_layer};
