/* Linnet: the softmax of long rows, in two passes over memory.
 *
 *     y[i] = exp(x[i]) / sum_j exp(x[j]),   log_sum_exp = log sum_j exp(x[j]),   log_softmax: y[i] = x[i] - log_sum_exp
 *
 * No maximum is looked for: every e^x is a pair (m, n), m 2^n, and so is their sum (P260: Dukhan and Ablavatski 2020),
 * so nothing overflows whatever the inputs are. An entry of -inf gives 0; a row of nothing else gives zeros and a
 * log_sum_exp of -inf; a row with a NaN or +inf is NaN throughout, and its log_sum_exp is NaN or +inf. Results below
 * the smallest normal float (1.2e-38) may be 0. The same bits for any number of threads. */
#ifndef LINNET_SOFTMAX_H
#define LINNET_SOFTMAX_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Row r of x begins at x + r * x_stride, that of y at y + r * y_stride; strides 0: columns. y is x (with the same
 * stride) or does not overlap it; NULL: only log_sum_exp is wanted. log_sum_exp [rows]; NULL: not wanted.
 * LINNET_ERROR_ARGUMENT for negative sizes and strides below the columns. */
LINNET_API linnet_status linnet_softmax(linnet_context *context, int64_t rows, int64_t columns, const float *x,
                                        int64_t x_stride, float *y, int64_t y_stride, float *log_sum_exp);
LINNET_API linnet_status linnet_log_softmax(linnet_context *context, int64_t rows, int64_t columns, const float *x,
                                            int64_t x_stride, float *y, int64_t y_stride, float *log_sum_exp);

#ifdef __cplusplus
}
#endif
#endif
