/* Linnet: matrices of linear state-space layers, x' = A x + B u, in float64: where they begin (HiPPO, S4D) and what
 * they are in steps (x[t] = A' x[t-1] + B' u[t]).
 *
 * HiPPO (Gu et al. 2020, arXiv 2008.07669): x holds the coefficients of the past of u in a basis p_n that is
 * orthonormal for a measure, so that u is found again as sum_n x_n p_n:
 *
 *     LEGS     all of the past, equally; x' = (A x + B u) / t. p_n(s) = (2n+1)^1/2 P_n(2 s / t - 1), 0 <= s <= t
 *     LEGT     the last unit of time. p_n(s) = (2n+1)^1/2 P_n(2 s - 1), s = 0 .. 1 from its beginning to now
 *     FOURIER  the last unit of time. p_0 = 1, p_(2k-1)(s) = 2^1/2 cos 2 pi k s, p_2k(s) = 2^1/2 sin 2 pi k s
 *
 * (P_n: Legendre). A window of another length L: A / L, B / L. Experimental: may change between versions. */
#ifndef LINNET_STATE_SPACE_H
#define LINNET_STATE_SPACE_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum linnet_hippo_measure { LINNET_HIPPO_LEGS, LINNET_HIPPO_LEGT, LINNET_HIPPO_FOURIER } linnet_hippo_measure;
/* a [n, n], b [n]; n from 1 to 4096, LINNET_ERROR_ARGUMENT otherwise. */
LINNET_API linnet_status linnet_hippo(linnet_context *context, linnet_hippo_measure measure, int64_t n, double *a,
                                      double *b);

typedef enum linnet_discretisation {
    LINNET_DISCRETISE_ZOH,     /* u is constant over a step: A' = e^(step A), B' = A^-1 (A' - 1) B */
    LINNET_DISCRETISE_BILINEAR /* the general one with `weight` w of the step's end (1/2: bilinear, 0: forward Euler,
                                  1: backward Euler): A' = (1 - w step A)^-1 (1 + (1 - w) step A),
                                  B' = (1 - w step A)^-1 step B */
} linnet_discretisation;
/* a, out_a [n, n], b, out_b [n]; out_a and out_b are not a and b. LINNET_ERROR_ARGUMENT for n outside 1 .. 4096, a step
 * that is not finite, or where 1 - w step A cannot be inverted. */
LINNET_API linnet_status linnet_discretise(linnet_context *context, linnet_discretisation how, double weight, int64_t n,
                                           double step, const double *a, const double *b, double *out_a, double *out_b);

/* Beginnings of the diagonal rows (Gu et al. 2022, arXiv 2206.11893): `states` pairs of conjugate eigenvalues, of which
 * one each, rate + i frequency: -1/2 + i pi n (LINEAR), -1/2 + i N/pi (N / (2n+1) - 1) with N = 2 states (INVERSE). */
typedef enum linnet_s4d_spectrum { LINNET_S4D_LINEAR, LINNET_S4D_INVERSE } linnet_s4d_spectrum;
LINNET_API void linnet_s4d_initial(linnet_s4d_spectrum spectrum, int64_t states, float *rate, float *frequency);

#ifdef __cplusplus
}
#endif
#endif
