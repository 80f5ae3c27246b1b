/* Owns: the rows. Everything that a file can say of itself (sizes, fused or biased projections, norms of queries and
 * keys, soft caps, rotary scaling) is read from the file, by the presence of its key or tensor; a row holds only what
 * no file says. */
#include "model/huggingface.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const ln_config_row ln_experts_config[] = {
    {"num_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_local_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"n_routed_experts", "expert_count", LN_CONFIG_WHOLE, NAN},
    {"num_experts_per_tok", "expert_used_count", LN_CONFIG_WHOLE, NAN},
    {"moe_intermediate_size", "expert_feed_forward_length", LN_CONFIG_WHOLE, NAN},
    {"norm_topk_prob", "expert_weights_norm", LN_CONFIG_FLAG, 0},
    {"routed_scaling_factor", "expert_weights_scale", LN_CONFIG_NUMBER, NAN},
    {"n_group", "expert_group_count", LN_CONFIG_WHOLE, NAN},
    {"topk_group", "expert_group_used_count", LN_CONFIG_WHOLE, NAN},
    {"n_shared_experts", "expert_shared_count", LN_CONFIG_WHOLE, NAN},
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length", LN_CONFIG_WHOLE, NAN},
    {"first_k_dense_replace", "leading_dense_block_count", LN_CONFIG_WHOLE, NAN},
    {NULL, NULL, LN_CONFIG_NUMBER, 0},
};

linnet_status ln_experts_sigmoid(const ln_config *config, ln_key_writer *keys) {
    enum { SIGMOID = 2 };
    ln_config_whole(config, keys, "expert_gating_func", SIGMOID);
    return LINNET_OK;
}

static const ln_architecture transformers[] = {
    {.name = "llama", .model_types = {"llama", "mistral"}, .traits = LN_ROPE_INTERLEAVED},
    {.name = "qwen2", .model_types = {"qwen2"}},
    {.name = "qwen2moe", .model_types = {"qwen2_moe"}, .traits = LN_GATES_APART, .config = ln_experts_config},
    {.name = "qwen3", .model_types = {"qwen3"}},
    {.name = "qwen3moe",
     .model_types = {"qwen3_moe"},
     .traits = LN_EXPERTS_RENORMALISED | LN_GATES_APART,
     .config = ln_experts_config},
    {.name = "gemma",
     .model_types = {"gemma"},
     .traits = LN_NORM_PLUS_ONE | LN_EMBEDDING_SCALED,
     .activation = LN_GELU_TANH},
    {.name = "gemma2",
     .model_types = {"gemma2"},
     .traits = LN_NORM_PLUS_ONE | LN_EMBEDDING_SCALED | LN_POST_NORMS,
     .activation = LN_GELU_TANH,
     .window_period = 2,
     .scale_by_width_layers = 46},
    {.name = "gemma3",
     .model_types = {"gemma3_text", "gemma3"},
     .traits = LN_NORM_PLUS_ONE | LN_EMBEDDING_SCALED | LN_POST_NORMS,
     .activation = LN_GELU_TANH,
     .window_period = 6,
     .rope_base_local = 10000,
     .scale_by_width_layers = 62},
    {.name = "dots1",
     .model_types = {"dots1"},
     .traits = LN_GATES_APART,
     .config = ln_experts_config,
     .write_keys = ln_experts_sigmoid},
    {.name = "phi3", .model_types = {"phi3"}},
    {.name = "smollm3", .model_types = {"smollm3"}, .traits = LN_ROPE_INTERLEAVED, .no_rope_period = 4},
};

/* Those in files of their own: architecture_NAME.c. */
static const ln_architecture *const others[] = {
    &ln_architecture_lfm2,
    &ln_architecture_rwkv6,
    &ln_architecture_rwkv7,
    &ln_architecture_mamba,
    &ln_architecture_mamba2,
    &ln_architecture_falcon_h1,
    &ln_architecture_granite_hybrid,
    &ln_architecture_granite,
    &ln_architecture_granite_moe,
    &ln_architecture_qwen3next,
    &ln_architecture_minimax,
    &ln_architecture_kimi_linear,
    &ln_architecture_gla,
    &ln_architecture_retnet,
    &ln_architecture_xlstm,
};

enum {
    TRANSFORMERS = sizeof transformers / sizeof *transformers,
    ROWS = TRANSFORMERS + sizeof others / sizeof *others
};

static const ln_architecture *row(int i) {
    return i < TRANSFORMERS ? &transformers[i] : others[i - TRANSFORMERS];
}

static bool same(const char *name, const char *text, size_t bytes) {
    return strlen(name) == bytes && memcmp(name, text, bytes) == 0;
}

const ln_architecture *ln_architecture_find(const char *name, size_t bytes) {
    for (int i = 0; i < ROWS; i++)
        if (same(row(i)->name, name, bytes)) return row(i);
    return NULL;
}

const ln_architecture *ln_architecture_of_model_type(const char *model_type, size_t bytes) {
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < 4 && row(i)->model_types[k]; k++)
            if (same(row(i)->model_types[k], model_type, bytes)) return row(i);
    return NULL;
}

const char *linnet_architecture(int index) {
    return index >= 0 && index < ROWS ? row(index)->name : NULL;
}

void ln_architecture_names(char *text, size_t capacity) {
    size_t used = 0;
    for (int i = 0; i < ROWS && used < capacity; i++) {
        const int wrote = snprintf(text + used, capacity - used, "%s%s", i ? ", " : "", row(i)->name);
        if (wrote > 0) used += (size_t)wrote;
    }
}
