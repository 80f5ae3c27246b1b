/* Which heads need the whole text: found once for a model, from what they look at in a random text that repeats itself
 * (RazorAttention, P170), or from figures of a calibration (DuoAttention). */
#ifndef LN_MEMORY_HEADS_H
#define LN_MEMORY_HEADS_H

#include "memory/allocate.h"
#include "mixer/columns.h"

/* Shares of attention, mean over the tokens of the columns from position `period` on, for a text of `period` random
 * tokens over and over, whose keys lie in order: echo[head of the group] given to the same token in earlier rounds,
 * induction[] to the tokens after those. workspace: ln_columns_workspace. */
void ln_head_echo(const ln_columns *columns, int64_t period, void *workspace, double *echo, double *induction);

/* LN_HEAD_FULL for the key-value heads with the largest figures, share * heads of them rounded up; the others stay as
 * they are. A key-value head has the largest figure of its group's; figures: [heads][group]. */
void ln_head_table(const double *figures, int64_t heads, int64_t group, double share, uint8_t *kinds);

/* As published: 14 % of the heads by induction and 1 % by echo. */
static inline void ln_head_razor(const double *echo, const double *induction, int64_t heads, int64_t group,
                                 uint8_t *kinds) {
    for (int64_t h = 0; h < heads; h++) kinds[h] = LN_HEAD_STREAMING;
    ln_head_table(induction, heads, group, 0.14, kinds);
    ln_head_table(echo, heads, group, 0.01, kinds);
}

#endif
