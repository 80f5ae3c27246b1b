/* Lightning attention as a part (MiniMax-01, arXiv 2501.08313; Qin et al. 2024, arXiv 2401.04658):
 *     [q k v] = silu(W h) a head,   S[t] = e^-slope S[t-1] + k v^T,   o = S^T q,
 * and gives O (norm(o) sigmoid(G h)), the norm over all heads together. Layer l of L has, for head i of H counted from
 * 1, slope = 2^(-8 i / H) (1 - l / (L - 1 + 1e-5) + 1e-5). */
#ifndef LN_MODEL_PART_LIGHTNING_H
#define LN_MODEL_PART_LIGHTNING_H

#include "model/part.h"

/* attn_qkv (q k v of each head in turn), attn_gate, attn_norm_2, attn_output. */
linnet_status ln_lightning_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
