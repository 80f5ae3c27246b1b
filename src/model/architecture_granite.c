/* Owns: Granite 3 and 4 and Bamba: layers of Mamba-2 and some of attention, or of attention alone, each followed by a
 * dense or a sparse feed-forward network; sums and ends are multiplied by numbers of the model. GGUF has three names
 * for them: granitehybrid, and where every layer attends granite or granitemoe. */
#include <math.h>
#include <string.h>

#include "model/part_attention.h"
#include "model/state_space.h"
#include "model/take.h"
#include "model/transformer.h"

/* clang-format off */
#define NAMES                                                                                                    \
    LN_STATE_SPACE_NAMES("mamba"), {.huggingface = "final_layernorm", .gguf = "output_norm"},                    \
        {.huggingface = "pre_ff_layernorm", .gguf = "ffn_norm"},                                                 \
        {.huggingface = "feed_forward.gate_proj", .gguf = "ffn_gate"},                                           \
        {.huggingface = "feed_forward.up_proj", .gguf = "ffn_up"},                                               \
        {.huggingface = "feed_forward.down_proj", .gguf = "ffn_down"}
/* clang-format on */

static const ln_name_row dense_names[] = {
    NAMES,
    {.huggingface = "shared_mlp.input_linear", .gguf = "ffn_up"},
    {.huggingface = "shared_mlp.output_linear", .gguf = "ffn_down"},
    {0},
};

static const ln_name_row names[] = {
    NAMES,
    {.huggingface = "shared_mlp.input_linear", .gguf = "ffn_up_shexp"},
    {.huggingface = "shared_mlp.output_linear", .gguf = "ffn_down_shexp"},
    {.huggingface = "block_sparse_moe.router", .gguf = "ffn_gate_inp"},
    {.huggingface = "block_sparse_moe.router.layer", .gguf = "ffn_gate_inp"},
    {.huggingface = "block_sparse_moe.input_linear", .gguf = "ffn_gate_up_exps"},
    {.huggingface = "block_sparse_moe.output_linear", .gguf = "ffn_down_exps"},
    {.huggingface = "block_sparse_moe.experts.gate_up_proj", .gguf = "ffn_gate_up_exps.weight"},
    {.huggingface = "block_sparse_moe.experts.down_proj", .gguf = "ffn_down_exps.weight"},
    {0},
};

static const ln_config_row config_rows[] = {
    {"embedding_multiplier", "embedding_scale", LN_CONFIG_NUMBER, NAN},
    {"residual_multiplier", "residual_scale", LN_CONFIG_NUMBER, NAN},
    {"logits_scaling", "logit_scale", LN_CONFIG_NUMBER, NAN},
    {"attention_multiplier", "attention.scale", LN_CONFIG_NUMBER, NAN},
    {"num_local_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_experts_per_tok", "expert_used_count", LN_CONFIG_WHOLE, NAN},
    {0},
};

/* Layer i attends, by the first rule that the config has. */
static bool attends(const ln_config *config, int64_t i) {
    const json_t *types = json_object_get(config->text, "layer_types");
    if (json_is_array(types)) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        return type && (strcmp(type, "attention") == 0 || strcmp(type, "full_attention") == 0);
    }
    const json_t *listed = json_object_get(config->text, "attn_layer_indices");
    for (size_t k = 0; k < json_array_size(listed); k++)
        if (json_number_value(json_array_get(listed, k)) == (double)i) return true;
    return false;
}

static int64_t layers_of(const ln_config *config) {
    double layers = 0;
    return ln_config_number(config, "num_hidden_layers", &layers) && layers >= 1 && layers <= LN_LAYERS_MOST
               ? (int64_t)layers
               : 0;
}

/* Whether some layer has a state. */
static bool recurs(const ln_config *config) {
    if (strcmp(config->model_type, "granitemoehybrid") != 0 && strcmp(config->model_type, "bamba") != 0) return false;
    for (int64_t i = 0; i < layers_of(config); i++)
        if (!attends(config, i)) return true;
    return false;
}

static linnet_status write_layers(const ln_config *config, ln_key_writer *keys) {
    char name[256];
    double heads = 0;
    const int64_t layers = layers_of(config);
    if (!ln_config_number(config, "num_key_value_heads", &heads))
        ln_config_number(config, "num_attention_heads", &heads);
    if (layers == 0 || !(heads >= 1 && heads <= 1 << 16)) return LINNET_OK; /* told later */
    uint32_t *each = ln_allocate(config->file->context, (uint64_t)layers, sizeof *each, "pattern of layers");
    if (!each) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < layers; i++) each[i] = attends(config, i) ? (uint32_t)heads : 0;
    ln_write_array(keys, ln_config_name(config, "attention.head_count_kv", name), LN_U32, each, (uint64_t)layers);
    ln_release(config->file->context, each);
    ln_state_space_keys(config, keys);
    return LINNET_OK;
}

static bool has_experts(const ln_config *config) {
    double count = 0;
    return ln_config_number(config, "num_local_experts", &count) && count >= 1;
}

static linnet_status write_keys(const ln_config *config, ln_key_writer *keys) {
    char name[256];
    double shared = 0;
    if (recurs(config)) LN_TRY(write_layers(config, keys));
    /* Readers of GGUF take this key for whether layers rotate. */
    const char *position = json_string_value(json_object_get(config->text, "position_embedding_type"));
    const bool rotates =
        strcmp(config->model_type, "granitemoehybrid") != 0 || (position && strcmp(position, "rope") == 0);
    ln_write_integer(keys, ln_config_name(config, "rope.scaling.finetuned", name), LN_BOOL, rotates);
    ln_config_number(config, "shared_intermediate_size", &shared);
    if (shared >= 1 && shared <= LN_FEED_FORWARD_MOST)
        ln_state_space_count(config, keys,
                             has_experts(config) ? "expert_shared_feed_forward_length" : "feed_forward_length",
                             (int64_t)shared);
    return LINNET_OK;
}

static linnet_status open_model(linnet_model *model) {
    if (!ln_take_integer(model, "rope.scaling.finetuned", -1, 1)) model->rope.size = 0;
    LN_TRY(ln_state_space_ends(model));
    const ln_key *heads = ln_file_key_of(model->file, "attention.head_count_kv");
    for (uint64_t i = 0; heads && i < heads->count; i++)
        if (ln_key_integer(heads, i, 1) == 0) return ln_state_space_open(model);
    return LINNET_OK;
}

static linnet_status make_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    ln_part *mixer = &layer->block[0].part[0];
    const bool recurrent = model->own && ln_take_integer(model, "attention.head_count_kv", index, 1) == 0;
    LN_TRY((recurrent ? ln_mamba2_take : ln_attention_take)(model, index, mixer));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    LN_TRY(ln_transformer_feed_forward(model, index, layer));
    layer->block[0].add = layer->block[1].add = (float)ln_take_number(model, "residual_scale", -1, 1);
    return LINNET_OK;
}

static const ln_architecture *choose(const ln_config *config);

/* clang-format off */
#define GRANITE(NAME, NAMES_OF_TENSORS)                                                                          \
    .name = NAME, .names = NAMES_OF_TENSORS, .config = config_rows, .write_keys = write_keys, .choose = choose,  \
    .open = open_model, .make_layer = make_layer,                                                                \
    .traits = LN_ROPE_INTERLEAVED | LN_EXPERTS_RENORMALISED | LN_GATES_APART | LN_MAMBA2
/* clang-format on */

static const ln_architecture dense_hybrid = {GRANITE("granitehybrid", dense_names)};

const ln_architecture ln_architecture_granite_hybrid = {GRANITE("granitehybrid", names),
                                                        .model_types = {"granitemoehybrid", "bamba"}};
const ln_architecture ln_architecture_granite = {GRANITE("granite", dense_names), .model_types = {"granite"}};
const ln_architecture ln_architecture_granite_moe = {GRANITE("granitemoe", names),
                                                     .model_types = {"granitemoe", "granitemoeshared"}};

static const ln_architecture *choose(const ln_config *config) {
    if (recurs(config)) return has_experts(config) ? &ln_architecture_granite_hybrid : &dense_hybrid;
    return has_experts(config) ? &ln_architecture_granite_moe : &ln_architecture_granite;
}
