/* Linear state-space layers in steps, and as convolutions. */
#ifndef LN_MIXER_STATE_SPACE_H
#define LN_MIXER_STATE_SPACE_H

#include <complex.h>
#include <stdbool.h>
#include <stdint.h>

#include "linnet/state_space.h"

/* The general bilinear form. inverse [n, n] becomes (1 - weight step a)^-1. false: there is none. work [n, n]. */
bool ln_bilinear(int64_t n, double step, double weight, const double *a, const double *b, double *out_a, double *out_b,
                 double *inverse, double *work);

/* One channel of the mixer s4d with complex states: kernel[l] = Re sum_n 2 read[n] write[n] e^(l step A[n])
 * (e^(step A[n]) - 1) / A[n], A = rate + i frequency, l < length; bilinear: with the bilinear multiplier instead of
 * e^(step A). write, read [2][states], write NULL: 1. Without the skip. Rounded from float64. */
void ln_s4d_kernel(int64_t length, float *kernel, int64_t states, float step, const float *rate, const float *frequency,
                   const float *write, const float *read, bool bilinear);

/* e = e^(step a) - 1 or its bilinear form, f = e / a: of the gradients of e and f, as pairs (d / d real) + i (d / d
 * imaginary), returns that of a, and adds that of the step. */
double complex ln_discrete_gradient(double step, double complex a, double complex e_gradient, double complex f_gradient,
                                    bool bilinear, double *step_gradient);

#endif
