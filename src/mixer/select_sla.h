/* What SLA's forward (select_sla.c) and backward (select_sla_gradient.c) pass share. */
#ifndef LN_MIXER_SELECT_SLA_H
#define LN_MIXER_SELECT_SLA_H

#include "mixer/select.h"

enum ln_sla_class { LN_SLA_CRITICAL, LN_SLA_MARGINAL, LN_SLA_SKIPPED };

enum { LN_SLA_CHUNK = 128 }; /* tokens of one product */

typedef struct ln_sla_sums {
    float *means;           /* [key-value head][panel of 32 tiles][key_size][32] */
    float *products;        /* h: [key-value head][tile][panel of 32 values][key_size][32] */
    float *features;        /* z: [key-value head][tile][key_size] */
    unsigned char *classes; /* [head][query tile][key tile] */
    /* Backward alone: gradients of the sums of h and z that a tile of queries takes: [head][query tile]...; and the
     * linear part's output before the projection, [head][token][value_size]. */
    float *products_gradient, *features_gradient, *linear;
} ln_sla_sums;

typedef struct ln_sla_places {
    float *mean, *row;                   /* [LN_SELECT_STRIDE] */
    float *score;                        /* [tiles] */
    int32_t *free_tiles, *heap, *chosen; /* [tiles] */
    float *phi, *result;                 /* [a tile's rows or 256][LN_SELECT_STRIDE] */
    float *panel;                        /* [LN_SLA_CHUNK][32] */
    float *h, *z;                        /* [panels][key_size][32], [key_size] */
    /* Backward alone. */
    float *numerator, *turned; /* as phi */
    float *turned_h;           /* [panel of 32 keys' sizes][value_size][32] */
    float *denominator;        /* [a tile's rows] */
} ln_sla_places;

static inline int64_t ln_sla_panels(int64_t n) {
    return (n + LN_PANEL - 1) / LN_PANEL;
}
/* Floats of one h. */
static inline int64_t ln_sla_product_floats(const linnet_approximate_settings *s) {
    return ln_sla_panels(s->value_size) * s->key_size * LN_PANEL;
}
ln_sla_places ln_sla_place(const ln_select_call *call, int worker);
void ln_sla_features(const ln_select_call *call, const float *x, float *phi);
/* h and z summed over the marginal tiles of a tile of queries; how many there are. */
int64_t ln_sla_gather(const ln_select_call *call, const ln_sla_places *p, int64_t head, int64_t tile);
/* h += phi^T B over at most LN_SLA_CHUNK tokens: `turned` is phi^T [key_size][LN_SELECT_STRIDE], rows of B
 * [rows][value_size] lie `stride` apart. Uses p->panel and p->result. */
void ln_sla_outer(const ln_select_call *call, const ln_sla_places *p, const float *turned, const float *b,
                  int64_t stride, int64_t rows, float *h);
/* Adds the linear part's gradients to those of the tensors, which hold the softmax part's. */
void ln_sla_backward(ln_select_call *call);

#endif
