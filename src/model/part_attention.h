/* Softmax attention as a part:
 *     O attend(rope(norm_q(Q h)), rope(norm_k(K h)), V h) + o
 * where whatever the file has no tensor for is left out. */
#ifndef LN_MODEL_PART_ATTENTION_H
#define LN_MODEL_PART_ATTENTION_H

#include "memory/pages.h"
#include "model/forward.h"
#include "model/model.h"

typedef enum ln_rotation { LN_ROTATE_NOT, LN_ROTATE_GLOBAL, LN_ROTATE_LOCAL } ln_rotation;

typedef struct ln_attention_weights {
    ln_matrix query, key, value, output;
    const float *query_bias, *key_bias, *value_bias;
    const float *query_norm, *key_norm; /* [key_size] */
    int64_t window;
    ln_rotation rotation;
    bool gated; /* a head's query is followed by a gate of its size, by whose sigmoid its output is multiplied */
} ln_attention_weights;

extern const ln_part_kind ln_attention_part;

linnet_status ln_attention_take(linnet_model *model, int64_t layer, ln_part *part);
/* NULL: the layer does not attend. */
const ln_attention_weights *ln_attention_of(const linnet_model *model, int64_t layer);
/* Whether every layer attends and nothing else in the model holds anything of the text. */
bool ln_attention_alone(const linnet_model *model);
/* Keys and values [tokens, key_value_heads * size] as the products give them, in forward->stage one after the other
 * (ln_stage), get biases, norms and rotation and go into the memory. The rotation is that of forward's last ln_turn. */
void ln_attention_fill(ln_forward *forward, ln_memory *memory, int64_t layer, int64_t tokens, float *keys,
                       float *values);

#endif
