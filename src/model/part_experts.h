/* A mixture of experts as a part: a router gives each token numbers for all experts, of which the `used` largest run,
 *     s = softmax(R h) or sigmoid(R h),   T = the largest of s + bias, where groups are limited of the best groups,
 *     sum over e in T of w_e D_e (activation(G_e h) * U_e h),   w_e = scale s_e [/ sum over T of s]
 *     + sigmoid(r h) D (activation(G h) * U h)
 * where the second line is the shared expert, if there is one, with its own gate or without. */
#ifndef LN_MODEL_PART_EXPERTS_H
#define LN_MODEL_PART_EXPERTS_H

#include "model/forward.h"

extern const ln_part_kind ln_experts_part;

/* Whether the layer has a router. */
bool ln_experts_has(linnet_model *model, int64_t layer);
/* Router ffn_gate_inp and exp_probs_b.bias; experts as tensors of three dimensions (ffn_gate_exps or ffn_gate_up_exps,
 * ffn_up_exps, ffn_down_exps) or one by one (ffn_gate.N); shared expert ffn_*_shexp, its gate ffn_gate_inp_shexp. Keys:
 * expert_count, expert_used_count, expert_weights_norm (default: the architecture's), expert_weights_scale,
 * expert_gating_func (1 softmax, 2 sigmoid), expert_group_count, expert_group_used_count. */
linnet_status ln_experts_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
