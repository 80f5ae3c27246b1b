/* A gated delta net as a part (Yang et al. 2024, arXiv 2412.06464; as Qwen3-Next has it):
 *     [q k v] = silu(short convolution(W h)),   z = Z h,   [b a] = B h,
 *     beta = sigmoid(b),   log decay = rate softplus(a + bias),   rate < 0,
 *     o = gated delta rule(q, k, v, decay, beta), queries and keys of length one,
 * and gives O (norm(o) silu(z)), the norm over each head. State: the last inputs of the convolution, then that of the
 * rule. */
#ifndef LN_MODEL_PART_DELTA_H
#define LN_MODEL_PART_DELTA_H

#include "model/part.h"

/* attn_qkv [q k v] and attn_gate, or ssm_in, in which q k v z of each key head follow one another; ssm_conv1d, ssm_ba
 * (b and a of each key head's value heads in turn), ssm_a, ssm_dt.bias, ssm_norm, ssm_out. Keys: ssm.conv_kernel,
 * ssm.state_size (of keys), ssm.group_count (key heads), ssm.time_step_rank (value heads), ssm.inner_size. */
linnet_status ln_delta_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
