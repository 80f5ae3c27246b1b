/* Owns: the layer of a transformer (equation in transformer.h). */
#include "model/transformer.h"

#include "model/part_attention.h"
#include "model/part_experts.h"
#include "model/part_feed_forward.h"
#include "model/take.h"

linnet_status ln_transformer_mixer(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_take_norm(model, index, "attn_norm", true, &layer->block[0].norm));
    LN_TRY(ln_take_norm(model, index, "post_attention_norm", false, &layer->block[0].post_norm));
    if (layer->block[0].parts == 0) layer->block[0].parts = 1;
    layer->count = 1;
    return LINNET_OK;
}

linnet_status ln_transformer_feed_forward(linnet_model *model, int64_t index, ln_layer *layer) {
    ln_block *block = &layer->block[layer->count++];
    block->parts = 1;
    LN_TRY(ln_take_norm(model, index, "ffn_norm", true, &block->norm));
    LN_TRY(ln_take_norm(model, index, "post_ffw_norm", false, &block->post_norm));
    return (ln_experts_has(model, index) ? ln_experts_take : ln_feed_forward_take)(model, index, &block->part[0]);
}

linnet_status ln_transformer_layer(linnet_model *model, int64_t index, ln_layer *layer) {
    LN_TRY(ln_attention_take(model, index, &layer->block[0].part[0]));
    LN_TRY(ln_transformer_mixer(model, index, layer));
    return ln_transformer_feed_forward(model, index, layer);
}
