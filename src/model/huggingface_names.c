/* Owns: the names of weights. Adding an architecture whose weights have other names is adding rows. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "model/huggingface.h"

typedef struct name_row {
    const char *huggingface, *gguf;
    unsigned trait; /* only for architectures with this trait; 0: for all that no row above serves */
} name_row;

static const name_row model_rows[] = {
    {"embed_tokens", "token_embd", 0},
    {"norm", "output_norm", 0},
    {"lm_head", "output", 0},
};

static const name_row layer_rows[] = {
    {"input_layernorm", "attn_norm", 0},
    {"self_attn.q_proj", "attn_q", 0},
    {"self_attn.k_proj", "attn_k", 0},
    {"self_attn.v_proj", "attn_v", 0},
    {"self_attn.qkv_proj", "attn_qkv", 0},
    {"self_attn.o_proj", "attn_output", 0},
    {"self_attn.q_norm", "attn_q_norm", 0},
    {"self_attn.k_norm", "attn_k_norm", 0},
    {"post_attention_layernorm", "post_attention_norm", LN_POST_NORMS},
    {"post_attention_layernorm", "ffn_norm", 0},
    {"pre_feedforward_layernorm", "ffn_norm", 0},
    {"post_feedforward_layernorm", "post_ffw_norm", 0},
    {"mlp.gate_proj", "ffn_gate", 0},
    {"mlp.up_proj", "ffn_up", 0},
    {"mlp.down_proj", "ffn_down", 0},
    {"mlp.gate_up_proj", "ffn_up", 0},
};

/* Anywhere in a name: image towers beside a text model, and tables that are computed. */
static const char *const ignored[] = {"vision_tower.",         "vision_model.",        "multi_modal_projector.",
                                      "rotary_emb.inv_freq",   "masked_bias",          "embed_positions.",
                                      "rotary_emb.cos_cached", "rotary_emb.sin_cached"};

/* Wrappers in front of a name, in any order. */
static const char *const prefixes[] = {"model.", "language_model."};

static const char *find_row(const name_row *rows, size_t count, const char *name, size_t bytes, unsigned traits) {
    for (size_t i = 0; i < count; i++)
        if (strlen(rows[i].huggingface) == bytes && memcmp(rows[i].huggingface, name, bytes) == 0 &&
            (rows[i].trait == 0 || rows[i].trait & traits))
            return rows[i].gguf;
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

ln_name_fate ln_gguf_name(const ln_architecture *architecture, const char *name, char *text, size_t capacity) {
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        if (strstr(name, ignored[i])) return LN_NAME_IGNORED;
    const unsigned traits = architecture ? architecture->traits : 0;
    const char *rest = without_prefixes(name), *dot = strrchr(rest, '.');
    if (!dot || (strcmp(dot, ".weight") != 0 && strcmp(dot, ".bias") != 0)) return LN_NAME_UNKNOWN;
    const char *known;
    int wrote = -1, layer = -1, digits = 0;
    if (sscanf(rest, "layers.%5d%n", &layer, &digits) == 1 && layer >= 0 && isdigit((unsigned char)rest[7]) &&
        rest[digits] == '.') {
        rest += digits + 1;
        if (rest > dot) return LN_NAME_UNKNOWN;
        known = find_row(layer_rows, sizeof layer_rows / sizeof *layer_rows, rest, (size_t)(dot - rest), traits);
        if (known) wrote = snprintf(text, capacity, "blk.%d.%s%s", layer, known, dot);
    } else {
        known = find_row(model_rows, sizeof model_rows / sizeof *model_rows, rest, (size_t)(dot - rest), traits);
        if (known) wrote = snprintf(text, capacity, "%s%s", known, dot);
    }
    return wrote > 0 && (size_t)wrote < capacity ? LN_NAME_KNOWN : LN_NAME_UNKNOWN;
}
