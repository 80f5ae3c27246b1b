/* Attention of one layer on the calibration text, and the matrix behind it refitted. */
#ifndef LN_MODEL_HEADS_ATTEND_H
#define LN_MODEL_HEADS_ATTEND_H

#include "model/model.h"

/* Rotates rows x [tokens, heads, key_size] of windows of `window` tokens, as the layer does. */
linnet_status ln_heads_rotate(linnet_model *model, int64_t layer, float *x, int64_t tokens, int64_t window,
                              int64_t heads);
/* output [tokens, heads * value_size] of rotated queries and keys, every window from an empty memory. */
linnet_status ln_heads_attend(linnet_model *model, int64_t layer, int64_t key_value_heads, const float *query,
                              const float *key, const float *value, int64_t tokens, int64_t window, float *output);
/* matrix [width, columns] += D with D the ridge regression of target [tokens, width] - seen matrix' on seen [tokens,
 * columns]; the ridge is what predicts a quarter of the tokens best from the others, at the strongest D = 0. target is
 * overwritten by what is left. *before, *after: relative errors, squared, of that quarter. */
linnet_status ln_heads_refit(linnet_model *model, float *matrix, int64_t columns, const float *seen, float *target,
                             int64_t tokens, double *before, double *after);

#endif
