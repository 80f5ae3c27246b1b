/* The layer of a transformer, and the same with other parts in its place:
 *     x += norm_a'(mixer(h)),           h = norm_a(x)
 *     x += norm_f'(feed-forward(h)),    h = norm_f(x) */
#ifndef LN_MODEL_TRANSFORMER_H
#define LN_MODEL_TRANSFORMER_H

#include "model/model.h"

/* Attention and what stands for the feed-forward network. */
linnet_status ln_transformer_layer(linnet_model *model, int64_t index, ln_layer *layer);
/* The norms around a mixer that the caller has put into block[0].part: attn_norm, post_attention_norm. */
linnet_status ln_transformer_mixer(linnet_model *model, int64_t index, ln_layer *layer);
/* One block more: ffn_norm, the feed-forward network (dense, or experts where the layer has a router), post_ffw_norm.
 */
linnet_status ln_transformer_feed_forward(linnet_model *model, int64_t index, ln_layer *layer);

#endif
