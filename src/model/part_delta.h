/* Gated delta nets as parts. That of Qwen3-Next (Yang et al. 2024, arXiv 2412.06464):
 *     [q k v] = silu(short convolution(W h)),   z = Z h,   [b a] = B h,
 *     beta = sigmoid(b),   log decay = rate softplus(a + bias),   rate < 0,
 *     o = gated delta rule(q, k, v, decay, beta), queries and keys of length one,
 * and gives O (norm(o) silu(z)), the norm over each head. That of Kimi Linear (KDA, arXiv 2510.26692) has a decay for
 * each key channel, maps of low rank, a = A2 A1 h and z = Z2 Z1 h, and gives O (norm(o) sigmoid(z)). State: the last
 * inputs of the convolution, then that of the rule. */
#ifndef LN_MODEL_PART_DELTA_H
#define LN_MODEL_PART_DELTA_H

#include "model/part.h"

/* attn_qkv [q k v] and attn_gate, or ssm_in, in which q k v z of each key head follow one another; ssm_conv1d, ssm_ba
 * (b and a of each key head's value heads in turn), ssm_a, ssm_dt.bias, ssm_norm, ssm_out. Keys: ssm.conv_kernel,
 * ssm.state_size (of keys), ssm.group_count (key heads), ssm.time_step_rank (value heads), ssm.inner_size. */
linnet_status ln_delta_take(linnet_model *model, int64_t layer, ln_part *part);
/* attn_q, attn_k, attn_v, ssm_conv1d_q and so on or ssm_conv1d, ssm_f_a and ssm_f_b (A1, A2), ssm_g_a and ssm_g_b (Z1,
 * Z2), ssm_beta, ssm_a, ssm_dt.bias, ssm_norm, attn_output. Keys: ssm.conv_kernel, kda.head_dim. */
linnet_status ln_delta_channel_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
