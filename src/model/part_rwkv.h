/* The parts of RWKV-6 (Peng et al. 2024, arXiv 2404.05892) and RWKV-7 (Peng et al. 2025, arXiv 2503.14456).
 *
 * Every part sees a token and the one before it, x_j = h + (h' - h) lerp_j, h' the predecessor's h, zeros before the
 * first. With low rank maps lora(x) = b + W2 f(W1 x):
 *
 * RWKV-6 time mix: lerp_j = m_j + W2_j tanh(W1_j (h + (h' - h) m_x)) for j of w k v r g;
 *     log decay = -exp(lora_w(x_w)), f = tanh;   o = rwkv6(r, k, v, decay, bonus);   g = silu(G x_g)
 *     gives O (group norm(o) g)
 * RWKV-7 time mix, j of r w k v a g:
 *     log decay = -e^-1/2 sigmoid(lora_w(x_w)), f = tanh;   a = sigmoid(lora_a(x_a));   g = W2 sigmoid(W1 x_g)
 *     layer 0: v stays, others: v += (v of layer 0 - v) sigmoid(lora_v(x_v))
 *     kk = k k_k, each head divided by its length;   k *= 1 + (a - 1) k_a;   o = rwkv7(r, decay, k, v, -kk, kk a)
 *     gives O ((group norm(o) + (r . (k r_k)) v) g)
 * channel mix: V relu(K x_k)^2, in RWKV-6 times sigmoid(R x_r).
 *
 * State: the last token's h, then that of the mixer. */
#ifndef LN_MODEL_PART_RWKV_H
#define LN_MODEL_PART_RWKV_H

#include "model/part.h"

linnet_status ln_rwkv6_time_take(linnet_model *model, int64_t layer, ln_part *part);
linnet_status ln_rwkv7_time_take(linnet_model *model, int64_t layer, ln_part *part);
linnet_status ln_rwkv_channel_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
