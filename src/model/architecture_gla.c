/* GLA and RetNet in flash-linear-attention's layout: linear attention with decays, then a gated feed-forward network.
 */
#include <math.h>

#include "model/huggingface.h"
#include "model/part_gated_linear.h"
#include "model/take.h"
#include "model/transformer.h"

static const ln_name_row names[] = {
    {.huggingface = "embeddings", .gguf = "token_embd"},
    {.huggingface = "attn_norm", .gguf = "attn_norm"},
    {.huggingface = "mlp_norm", .gguf = "ffn_norm"},
    {.huggingface = "attn.q_proj", .gguf = "attn_q"},
    {.huggingface = "attn.k_proj", .gguf = "attn_k"},
    {.huggingface = "attn.v_proj", .gguf = "attn_v"},
    {.huggingface = "attn.g_proj", .gguf = "attn_gate"},
    {.huggingface = "attn.o_proj", .gguf = "attn_output"},
    {.huggingface = "attn.g_norm_swish_gate", .gguf = "attn_norm_2"},
    {.huggingface = "attn.gk_proj.0", .gguf = "ssm_f_a"},
    {.huggingface = "attn.gk_proj.1.weight", .gguf = "ssm_f_b.weight"},
    {.huggingface = "attn.gk_proj.1.bias", .gguf = "ssm_dt.bias"},
    {0},
};

static const ln_config_row config[] = {
    {"norm_eps", "attention.layer_norm_rms_epsilon", LN_CONFIG_NUMBER, 1e-6},
    {"num_heads", "linear.head_count", LN_CONFIG_WHOLE, 4},
    {"gate_logit_normalizer", "linear.gate_normalizer", LN_CONFIG_NUMBER, 16},
    {0},
};

/* What layers of others may do beside is refused where the config asks for it. */
static linnet_status write_keys(const ln_config *c, ln_key_writer *keys, double key, double value) {
    double width = 0, heads = 4, ratio = 4, columns = 0, number = 0;
    static const char *const unknown[] = {"use_short_conv", "clamp_min", "num_kv_heads"};
    for (int i = 0; i < 3; i++)
        if (ln_config_number(c, unknown[i], &number) && number != 0 &&
            !(i == 2 && ln_config_number(c, "num_heads", &heads) && number == heads))
            return ln_fail(c->file->context, LINNET_ERROR_UNSUPPORTED, "%s: \"%s\" is not known for %s", c->path,
                           unknown[i], c->architecture->name);
    ln_config_number(c, "hidden_size", &width);
    ln_config_number(c, "num_heads", &heads);
    ln_config_number(c, "expand_k", &key);
    ln_config_number(c, "expand_v", &value);
    ln_config_number(c, "hidden_ratio", &ratio);
    if (heads < 1) return LINNET_OK;
    ln_config_size(c, keys, "linear.key_length", width * key / heads);
    ln_config_size(c, keys, "linear.value_length", width * value / heads);
    /* Two thirds of the ratio, rounded up to 256, where the size is not said. */
    if (!ln_config_number(c, "intermediate_size", &columns)) columns = ceil(floor(width * ratio * 2 / 3) / 256) * 256;
    ln_config_size(c, keys, "feed_forward_length", columns);
    return LINNET_OK;
}

static linnet_status write_gla(const ln_config *c, ln_key_writer *keys) {
    return write_keys(c, keys, 0.5, 1);
}

static linnet_status write_retnet(const ln_config *c, ln_key_writer *keys) {
    return write_keys(c, keys, 1, 2);
}

static linnet_status make_gla(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_gated_linear_take(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}

static linnet_status make_retnet(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_retention_take(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}

/* The rotation of all of a head, as there is no attention whose keys would say it. */
static linnet_status open_retnet(linnet_model *model) {
    int64_t size = 0;
    LN_TRY(ln_take_count(model, "linear.key_length", 0, 2, 1 << 12, &size));
    if (size % 2 != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: heads of %lld keys do not rotate", model->file->path,
                       (long long)size);
    model->rope = (ln_rope){.size = size,
                            .half = true,
                            .base = 10000,
                            .factor = 1,
                            .magnitude = 1,
                            .beta_fast = 32,
                            .beta_slow = 1,
                            .original_context = model->hyper.context_length};
    return LINNET_OK;
}

const ln_architecture ln_architecture_gla = {.name = "gla",
                                             .model_types = {"gla"},
                                             .traits = LN_NO_ATTENTION,
                                             .names = names,
                                             .config = config,
                                             .write_keys = write_gla,
                                             .make_layer = make_gla};

const ln_architecture ln_architecture_retnet = {.name = "retnet",
                                                .model_types = {"retnet"},
                                                .traits = LN_NO_ATTENTION,
                                                .names = names,
                                                .config = config,
                                                .write_keys = write_retnet,
                                                .open = open_retnet,
                                                .make_layer = make_retnet};

/* ---- xLSTM ---- */

static const ln_name_row xlstm_names[] = {
    {.huggingface = "embeddings", .gguf = "token_embd"},
    {.huggingface = "out_norm", .gguf = "output_norm"},
    {.huggingface = "norm_mlstm", .gguf = "attn_norm"},
    {.huggingface = "norm_ffn", .gguf = "ffn_norm"},
    {.huggingface = "mlstm_layer.q", .gguf = "attn_q"},
    {.huggingface = "mlstm_layer.k", .gguf = "attn_k"},
    {.huggingface = "mlstm_layer.v", .gguf = "attn_v"},
    {.huggingface = "mlstm_layer.ogate_preact", .gguf = "attn_gate"},
    {.huggingface = "mlstm_layer.igate_preact", .gguf = "attn_input_gate"},
    {.huggingface = "mlstm_layer.fgate_preact", .gguf = "attn_forget_gate"},
    {.huggingface = "mlstm_layer.multihead_norm", .gguf = "attn_norm_2"},
    {.huggingface = "mlstm_layer.out_proj", .gguf = "attn_output"},
    {.huggingface = "ffn.proj_up_gate", .gguf = "ffn_gate"},
    {.huggingface = "ffn.proj_up", .gguf = "ffn_up"},
    {.huggingface = "ffn.proj_down", .gguf = "ffn_down"},
    {0},
};

static const ln_config_row xlstm_config[] = {
    {"norm_eps", "attention.layer_norm_rms_epsilon", LN_CONFIG_NUMBER, 1e-6},
    {"num_heads", "linear.head_count", LN_CONFIG_WHOLE, 8},
    {"gate_soft_cap", "linear.gate_cap", LN_CONFIG_NUMBER, 15},
    {"output_logit_soft_cap", "final_logit_softcapping", LN_CONFIG_NUMBER, 30},
    {"num_blocks", "block_count", LN_CONFIG_WHOLE, NAN},
    {"embedding_dim", "embedding_length", LN_CONFIG_WHOLE, NAN},
    {0},
};

static linnet_status write_xlstm(const ln_config *c, ln_key_writer *keys) {
    double width = 0, heads = 8, key = 0.5, value = 1, factor = 2.667, unit = 64;
    if (!ln_config_number(c, "hidden_size", &width)) ln_config_number(c, "embedding_dim", &width);
    ln_config_number(c, "num_heads", &heads);
    ln_config_number(c, "qk_dim_factor", &key);
    ln_config_number(c, "v_dim_factor", &value);
    ln_config_number(c, "ffn_proj_factor", &factor);
    ln_config_number(c, "ffn_round_up_to_multiple_of", &unit);
    if (!(heads >= 1) || !(unit >= 1)) return LINNET_OK;
    ln_config_size(c, keys, "linear.key_length", floor(width * key) / heads);
    ln_config_size(c, keys, "linear.value_length", floor(width * value) / heads);
    ln_config_size(c, keys, "feed_forward_length", ceil(floor(width * factor) / unit) * unit);
    return LINNET_OK;
}

static linnet_status make_xlstm(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_mlstm_take(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}

const ln_architecture ln_architecture_xlstm = {.name = "xlstm",
                                               .model_types = {"xlstm"},
                                               .traits = LN_NO_ATTENTION,
                                               .names = xlstm_names,
                                               .config = xlstm_config,
                                               .write_keys = write_xlstm,
                                               .make_layer = make_xlstm};
