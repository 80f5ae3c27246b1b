/* Tokens against precision at the same bytes (P117), and channels in an order in which blocks of them round well
 * (P044). */
#ifndef LN_MEMORY_PRECISION_H
#define LN_MEMORY_PRECISION_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/allocate.h"

/* ---- how many tokens, at which precision ---- */

typedef struct ln_precision_option {
    double bytes; /* of a token, with scales and all */
    double error; /* of what a token contributes, the part that is lost: 0 exact, 1 all of it */
} ln_precision_option;

/* The most attended tokens at one precision, the next at another, the others evicted. */
typedef struct ln_precision_choice {
    int high, low; /* options; -1: none */
    int64_t high_tokens, low_tokens;
    double loss; /* share of the attention that is lost */
} ln_precision_choice;

/* The least loss, exactly, for a curve that is a line between its points: with P(n) the share that the top n of
 * `tokens` tokens hold (ln_statistics.mass),
 *     loss = error_high P(high) + error_low (P(high + low) - P(high)) + 1 - P(high + low). */
ln_precision_choice ln_precision_solve(const ln_precision_option *options, int count, double bytes, int64_t tokens,
                                       const double mass[LN_STATISTICS_MASS]);

/* ---- channels ---- */

/* amplitude[i] = the largest |row[i]| so far. */
void ln_channels_observe(float *amplitude, const float *rows, int64_t count, int64_t stride, int64_t size);
/* order[new] = old channel, by falling amplitude, so that outliers share blocks. The first `rotated` channels stay
 * pairs (`half` as in a rotation: (i, i + rotated / 2), else (2 i, 2 i + 1)) among themselves, for orders that are
 * folded into weights; rotated 0: any order, for keys and queries that were rotated before. size <= LN_HEAD_MOST. */
void ln_channels_order(const float *amplitude, int64_t size, int64_t rotated, bool half, int32_t *order);
/* to[i] = from[order[i]] */
void ln_channels_apply(const int32_t *order, int64_t size, const float *from, float *to);

/* Block floating point: `block` values share the exponent of their largest, each has a signed mantissa of `bits` bits.
 * y may be x. A block that is not finite becomes NaN. */
void ln_block_float(const float *x, int64_t n, int64_t block, int bits, float *y);

#endif
