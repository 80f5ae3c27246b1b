/* Owns: the names of weights. Adding an architecture whose weights have other names is adding rows. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "model/huggingface.h"

static const ln_name_row model_rows[] = {
    {.huggingface = "embed_tokens", .gguf = "token_embd"},
    {.huggingface = "norm", .gguf = "output_norm"},
    {.huggingface = "lm_head", .gguf = "output"},
    {0},
};

static const ln_name_row layer_rows[] = {
    {.huggingface = "input_layernorm", .gguf = "attn_norm"},
    {.huggingface = "self_attn.q_proj", .gguf = "attn_q"},
    {.huggingface = "self_attn.k_proj", .gguf = "attn_k"},
    {.huggingface = "self_attn.v_proj", .gguf = "attn_v"},
    {.huggingface = "self_attn.qkv_proj", .gguf = "attn_qkv"},
    {.huggingface = "self_attn.o_proj", .gguf = "attn_output"},
    {.huggingface = "self_attn.q_norm", .gguf = "attn_q_norm"},
    {.huggingface = "self_attn.k_norm", .gguf = "attn_k_norm"},
    {.huggingface = "post_attention_layernorm", .gguf = "post_attention_norm", .trait = LN_POST_NORMS},
    {.huggingface = "post_attention_layernorm", .gguf = "ffn_norm"},
    {.huggingface = "pre_feedforward_layernorm", .gguf = "ffn_norm"},
    {.huggingface = "post_feedforward_layernorm", .gguf = "post_ffw_norm"},
    {.huggingface = "mlp.gate_proj", .gguf = "ffn_gate"},
    {.huggingface = "mlp.up_proj", .gguf = "ffn_up"},
    {.huggingface = "mlp.down_proj", .gguf = "ffn_down"},
    {.huggingface = "mlp.gate_up_proj", .gguf = "ffn_up"},
    {.huggingface = "mlp.gate", .gguf = "ffn_gate_inp"},
    {.huggingface = "mlp.gate.e_score_correction_bias", .gguf = "exp_probs_b.bias"},
    {.huggingface = "mlp.experts.*.gate_proj", .gguf = "ffn_gate.*"},
    {.huggingface = "mlp.experts.*.up_proj", .gguf = "ffn_up.*"},
    {.huggingface = "mlp.experts.*.down_proj", .gguf = "ffn_down.*"},
    {.huggingface = "mlp.experts.gate_up_proj", .gguf = "ffn_gate_up_exps.weight"},
    {.huggingface = "mlp.experts.down_proj", .gguf = "ffn_down_exps.weight"},
    {.huggingface = "mlp.shared_expert.gate_proj", .gguf = "ffn_gate_shexp"},
    {.huggingface = "mlp.shared_expert.up_proj", .gguf = "ffn_up_shexp"},
    {.huggingface = "mlp.shared_expert.down_proj", .gguf = "ffn_down_shexp"},
    {.huggingface = "mlp.shared_expert_gate", .gguf = "ffn_gate_inp_shexp"},
    {.huggingface = "mlp.shared_experts.gate_proj", .gguf = "ffn_gate_shexp"},
    {.huggingface = "mlp.shared_experts.up_proj", .gguf = "ffn_up_shexp"},
    {.huggingface = "mlp.shared_experts.down_proj", .gguf = "ffn_down_shexp"},
    {0},
};

/* Anywhere in a name: image towers beside a text model, and tables that are computed. */
static const char *const ignored[] = {
    "vision_tower.",    "vision_model.",         "multi_modal_projector.", "rotary_emb.inv_freq", "masked_bias",
    "embed_positions.", "rotary_emb.cos_cached", "rotary_emb.sin_cached",  ".slope_rate",         ".query_decay",
    ".key_decay",       ".diagonal_decay"};

/* Wrappers in front of a name, in any order. */
static const char *const prefixes[] = {"model.", "language_model.", "backbone.", "rwkv."};
/* What comes before the number of a layer. */
static const char *const lists[] = {"layers.", "blocks."};

/* Whether `name` [bytes] is the pattern, whose * stands for digits: *digits, *count. */
static bool matches(const char *pattern, const char *name, size_t bytes, const char **digits, size_t *count) {
    const char *star = strchr(pattern, '*');
    const size_t before = star ? (size_t)(star - pattern) : strlen(pattern);
    *digits = NULL;
    *count = 0;
    if (bytes < before || memcmp(pattern, name, before) != 0) return false;
    if (!star) return bytes == before;
    *digits = name + before;
    while (before + *count < bytes && isdigit((unsigned char)(*digits)[*count])) ++*count;
    const size_t rest = strlen(star + 1);
    return *count > 0 && *count < 6 && before + *count + rest == bytes && memcmp(star + 1, *digits + *count, rest) == 0;
}

/* The row of `name` [bytes] without its ending, or of the whole of it; writes its GGUF name. */
static const ln_name_row *find_row(const ln_name_row *rows, const char *name, size_t bytes, unsigned traits, char *text,
                                   size_t capacity) {
    const char *digits;
    size_t count;
    for (const ln_name_row *row = rows; row && row->huggingface; row++) {
        if (row->trait != 0 && !(row->trait & traits)) continue;
        const bool whole = matches(row->huggingface, name, strlen(name), &digits, &count);
        if (!whole && !matches(row->huggingface, name, bytes, &digits, &count)) continue;
        const char *star = strchr(row->gguf, '*');
        const int wrote =
            snprintf(text, capacity, "%.*s%.*s%s%s", star ? (int)(star - row->gguf) : 0, row->gguf,
                     star ? (int)count : 0, star ? digits : "", star ? star + 1 : row->gguf, whole ? "" : name + bytes);
        return wrote > 0 && (size_t)wrote < capacity ? row : NULL;
    }
    return NULL;
}

static const char *without_prefixes(const char *name) {
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) {
                name += strlen(prefixes[i]);
                again = true;
            }
    }
    return name;
}

ln_name_fate ln_gguf_name(const ln_architecture *architecture, const char *name, char *text, size_t capacity,
                          const ln_name_row **row) {
    *row = NULL;
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        if (strstr(name, ignored[i])) return LN_NAME_IGNORED;
    const unsigned traits = architecture ? architecture->traits : 0;
    const ln_name_row *common = model_rows;
    const char *rest = without_prefixes(name);
    size_t used = 0;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        const size_t bytes = strlen(lists[i]);
        int layer = -1, digits = 0;
        if (strncmp(rest, lists[i], bytes) != 0 || !isdigit((unsigned char)rest[bytes]) ||
            sscanf(rest + bytes, "%5d%n", &layer, &digits) != 1 || rest[bytes + (size_t)digits] != '.')
            continue;
        const int wrote = snprintf(text, capacity, "blk.%d.", layer);
        if (wrote < 0 || (size_t)wrote >= capacity) return LN_NAME_UNKNOWN;
        used = (size_t)wrote;
        rest += bytes + (size_t)digits + 1;
        common = layer_rows;
        break;
    }
    const char *dot = strrchr(rest, '.');
    const bool ends = dot && (strcmp(dot, ".weight") == 0 || strcmp(dot, ".bias") == 0);
    const size_t bytes = ends ? (size_t)(dot - rest) : strlen(rest);
    if (architecture && architecture->names)
        *row = find_row(architecture->names, rest, bytes, traits, text + used, capacity - used);
    if (!*row) *row = find_row(common, rest, bytes, traits, text + used, capacity - used);
    if (*row && text[used] == '/') memmove(text, text + used + 1, strlen(text + used));
    return *row ? LN_NAME_KNOWN : LN_NAME_UNKNOWN;
}
