/* A dense gated feed-forward network as a part:
 *     D (activation(G h) * U h)
 * Activations are held in slices (after AutoChunk, P114): `slice` columns at a time go through
 *     given += D[:, slice] (activation(G[slice] h) * U[slice] h),
 * G and U `step` rows at a time. The product by D adds up its columns in the same groups whether sliced or not, and
 * every weight is still read once a piece: slices cost neither a bit nor a second pass. */
#ifndef LN_MODEL_PART_FEED_FORWARD_H
#define LN_MODEL_PART_FEED_FORWARD_H

#include "model/forward.h"

typedef struct ln_feed_forward_weights {
    ln_matrix gate, up, down;
    int64_t columns;
    float gate_scale; /* of G h */
    ln_nonlinearity activation;
} ln_feed_forward_weights;

extern const ln_part_kind ln_feed_forward_part;

/* ffn_gate, ffn_up, ffn_down, of as many columns as the key feed_forward_length says of the layer. */
linnet_status ln_feed_forward_take(linnet_model *model, int64_t layer, ln_part *part);
/* The matrices alone: ffn_gateSUFFIX and so on; without a gate of its own, ffn_up has its rows first. */
linnet_status ln_feed_forward_take_as(linnet_model *model, int64_t layer, const char *suffix, int64_t columns,
                                      ln_feed_forward_weights *made);
/* gate = activation(gate) * up, of rows [tokens, columns] that lie gate_stride and up_stride apart. */
void ln_feed_forward_activate(const linnet_model *model, ln_nonlinearity activation, float *gate, int64_t gate_stride,
                              const float *up, int64_t up_stride, int64_t columns, int64_t tokens);

#endif
