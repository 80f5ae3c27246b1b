/* Latent attention as a part (MLA; DeepSeek-V2, arXiv 2405.04434; without positions as Kimi Linear has it):
 *     [c r] = A h,   c = norm(c),   key of head i = [K_i c, r],   value = V_i c,   [p s] = query of head i,
 * and gives O of what all heads find. It is computed absorbed: one key [c r] a token serves all heads, its first
 * columns are the value, the query is [K_i^T p, s], and V_i comes after attention: pages hold c and r alone. */
#ifndef LN_MODEL_PART_LATENT_H
#define LN_MODEL_PART_LATENT_H

#include "model/part.h"

/* Makes the sizes of heads what pages hold; before layers are taken. Keys: attention.kv_lora_rank,
 * attention.key_length_mla, attention.value_length_mla, rope.dimension_count (columns of r). */
linnet_status ln_latent_open(linnet_model *model);
/* attn_q, or attn_q_a, attn_q_a_norm and attn_q_b; attn_kv_a_mqa, attn_kv_a_norm; attn_k_b and attn_v_b, or attn_kv_b;
 * attn_output. */
linnet_status ln_latent_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
