/* A gated short convolution as a part (LFM2):
 *     [b c u] = W h,   v = b * u,   O (c * sum over k of taps_k * v_(t - taps + 1 + k))
 * channel by channel; the state is the last taps - 1 rows of v. */
#ifndef LN_MODEL_PART_SHORT_CONVOLUTION_H
#define LN_MODEL_PART_SHORT_CONVOLUTION_H

#include "model/forward.h"

extern const ln_part_kind ln_short_convolution_part;

/* shortconv.in_proj, shortconv.conv, shortconv.out_proj; the key shortconv.l_cache says how many taps. */
linnet_status ln_short_convolution_take(linnet_model *model, int64_t layer, ln_part *part);

#endif
