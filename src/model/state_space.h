/* What all state-space mixers of a model share, from its keys and from config.json. */
#ifndef LN_MODEL_STATE_SPACE_H
#define LN_MODEL_STATE_SPACE_H

#include "model/huggingface.h"
#include "model/part_mixer.h"

/* The parts of a projection of Mamba-2, in its order. */
enum { LN_SSM_GATE, LN_SSM_VALUE, LN_SSM_KEY, LN_SSM_QUERY, LN_SSM_STEP, LN_SSM_PARTS };

typedef struct ln_state_space {
    int64_t taps, inner, states;
    int64_t heads;   /* of Mamba-2; of Mamba the rank of the step's projection */
    int64_t groups;  /* of heads that share what they read and write by */
    float epsilon;   /* of the norms inside the mixer */
    bool normed;     /* of Mamba: step, B and C are normalised */
    bool norm_first; /* of Mamba-2: before the gate, not after it */
    float step_least, step_most;
    float scale[LN_SSM_PARTS]; /* of what the projection gives */
} ln_state_space;

/* Reads the keys into model->own. */
linnet_status ln_state_space_open(linnet_model *model);
/* Embeddings are multiplied by embedding_scale, logits divided by logit_scale. */
linnet_status ln_state_space_ends(linnet_model *model);

/* Mamba (Gu and Dao 2023, P182), with R the rank and N the states of a channel:
 *     u, z = I h,  u = silu(conv(u) + b),  s, B, C = X u  (normalised: each divided by its root mean square)
 *     d = softplus(S s + t),  H' = exp(d A) H + d u B,  y = H' C + D u,  gives O (y silu(z)) */
extern const ln_part_kind ln_mamba_part, ln_mamba2_part;
linnet_status ln_mamba_take(linnet_model *model, int64_t layer, ln_part *part);
/* Mamba-2 (Dao and Gu 2024): one decay a head, B and C shared by groups of heads,
 *     z, u, B, C, d = I h,  (u, B, C) = silu(conv(u, B, C) + b),  d = softplus(d + t) within limits
 *     H' = exp(d A) H + d u B,  y = H' C + D u,  gives O norm(y silu(z)) */
linnet_status ln_mamba2_take(linnet_model *model, int64_t layer, ln_part *part);

/* ---- of Hugging Face folders ---- */

/* Names under a module of a layer ("mixer", "mamba"). */
#define LN_STATE_SPACE_NAMES(module)                                                                                 \
    {.huggingface = module ".in_proj", .gguf = "ssm_in"}, {.huggingface = module ".conv1d", .gguf = "ssm_conv1d"},   \
        {.huggingface = module ".x_proj", .gguf = "ssm_x"}, {.huggingface = module ".dt_proj", .gguf = "ssm_dt"},    \
        {.huggingface = module ".out_proj", .gguf = "ssm_out"}, {.huggingface = module ".norm", .gguf = "ssm_norm"}, \
        {.huggingface = module ".A_log", .gguf = "ssm_a", .change = ln_state_space_rates},                           \
        {.huggingface = module ".D", .gguf = "ssm_d"}, {                                                             \
        .huggingface = module ".dt_bias", .gguf = "ssm_dt.bias"                                                      \
    }

/* a = -exp(a) */
void ln_state_space_rates(float *values, int64_t rows, int64_t columns);
void ln_state_space_count(const ln_config *config, ln_key_writer *keys, const char *suffix, int64_t count);
void ln_state_space_limit(const ln_config *config, ln_key_writer *keys);
/* The keys of Mamba-2 mixers whose settings begin with "mamba_". */
void ln_state_space_keys(const ln_config *config, ln_key_writer *keys);

#endif
