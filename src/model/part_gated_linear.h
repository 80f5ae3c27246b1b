/* Linear attention with decays as a part, in the form of flash-linear-attention's layers:
 *     q, k, v = Q h, K h, V h;   S[t] = decay S[t-1] + k v^T;   o = S^T q / key_size^1/2
 * and gives O (norm(o) silu(G h)), the norm over each head. GLA (Yang et al. 2023, arXiv 2312.06635):
 *     log decay = log(sigmoid(B2 B1 h + b)) / normalizer, a number a key channel.
 * Retention (Sun et al. 2023, arXiv 2307.08621): queries and keys rotate, decay = 1 - 2^(-5 - head). The mLSTM of xLSTM
 * (Beck et al. 2024, arXiv 2405.04517): with the numbers a head i = cap(I h + b_i) and f = cap(F h + b_f),
 *     C[t] = sigmoid(f) C[t-1] + e^i k v^T,   o = C^T q / (key_size^1/2 (max(|n . q|, 1) + 1e-6)),   n likewise without
 * v, and the norm over each head takes off the mean, the gate is sigmoid(G h). */
#ifndef LN_MODEL_PART_GATED_LINEAR_H
#define LN_MODEL_PART_GATED_LINEAR_H

#include "model/part.h"

/* attn_q, attn_k, attn_v, attn_gate, attn_output, attn_norm_2 [value size]; GLA also ssm_f_a, ssm_f_b, ssm_dt.bias.
 * Keys: linear.head_count, linear.key_length, linear.value_length, linear.gate_normalizer. Retention rotates where
 * model->rope has a size. */
linnet_status ln_gated_linear_take(linnet_model *model, int64_t layer, ln_part *part);
linnet_status ln_retention_take(linnet_model *model, int64_t layer, ln_part *part);
/* attn_input_gate and attn_forget_gate [heads], with biases; attn_norm_2 [heads, value size]. Key: linear.gate_cap. */
linnet_status ln_mlstm_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
