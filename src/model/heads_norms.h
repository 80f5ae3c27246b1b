/* Merged heads behind norms of queries and keys. */
#ifndef LN_MODEL_HEADS_NORMS_H
#define LN_MODEL_HEADS_NORMS_H

#include "model/heads_basis.h"

typedef struct ln_head_norms {
    const float *query, *key; /* [key_size]: weights of the norms; NULL: there is none */
    const double *key_scale;  /* [key_value_heads]: mean of 1 / the root mean square before the norm */
    float *new_query, *new_key;
    double key_error, query_error; /* of the length that the norms give, relative */
} ln_head_norms;

/* Turns bases of what comes out of the norms into bases of what goes in, and chooses the weights of the norms. */
linnet_status ln_head_norms_fit(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases,
                                ln_head_norms *norms);

#endif
