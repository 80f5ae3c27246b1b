/* Linnet: fast structured transforms: butterfly products, which can be learned, and Walsh-Hadamard transforms, dense
 * and sparse. Experimental: may change between versions. */
#ifndef LINNET_TRANSFORM_H
#define LINNET_TRANSFORM_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- butterfly products (P245: Dao et al. 2019, arXiv 1903.05895) ----
 *
 * A matrix of n = 2^levels columns as `products` times B P, applied in n log n:
 *
 * P, soft permutations: for block sizes n, n/2, ..., 2, every block v becomes (1 - p) v + p permuted(v) three times,
 * with one p a choice and size: evens before odds; the first half reversed; the second half reversed. p of 0 and 1 make
 * it a permutation. B: for halves h = 1, 2, ..., n/2, every block of 2h becomes, for j < h, y[j] = a[j] x[j] + b[j] x[j
 * + h],   y[j + h] = c[j] x[j] + d[j] x[j + h].
 *
 * Complex rows are n real parts, then n imaginary parts. */
typedef struct linnet_butterfly_settings {
    size_t size;
    int levels;   /* 0 to 24 */
    int products; /* default 1 */
    bool complex_numbers;
    bool tied; /* all blocks of one size have the same a, b, c, d */
} linnet_butterfly_settings;
LINNET_API linnet_butterfly_settings linnet_butterfly_settings_default(int levels);

/* Floats of the factors, [product][half 1, 2, ..][a, b, c, d][real, imaginary][block][j]; 0 for wrong settings. */
LINNET_API int64_t linnet_butterfly_factors(const linnet_butterfly_settings *settings);
/* Floats of the permutations' p, [product][block size 2, 4, ..][evens first, first half reversed, second reversed]. */
LINNET_API int64_t linnet_butterfly_choices(const linnet_butterfly_settings *settings);

/* What can be written down. Fourier: y[k] = sum_j x[j] e^(-2 pi i j k / n); cosine: real parts are y[k] = sum_j x[j]
 * cos(pi (j + 1/2) k / n), where x is real; convolution: y[k] = sum_j kernel[j] x[k - j], indices modulo n, kernel
 * real. Fourier, cosine and convolution need complex numbers, the last two also two products. */
typedef enum linnet_butterfly_kind {
    LINNET_BUTTERFLY_IDENTITY,
    LINNET_BUTTERFLY_HADAMARD, /* orthonormal */
    LINNET_BUTTERFLY_FOURIER,
    LINNET_BUTTERFLY_COSINE,
    LINNET_BUTTERFLY_CONVOLUTION
} linnet_butterfly_kind;
/* kernel [n]: of a convolution alone. LINNET_ERROR_ARGUMENT where the settings do not allow the kind. */
LINNET_API linnet_status linnet_butterfly_set(linnet_context *context, const linnet_butterfly_settings *settings,
                                              linnet_butterfly_kind kind, const float *kernel, float *factors,
                                              float *choices);

/* Rows x and y, one after the other; y may be x. choices NULL: no permutation. */
LINNET_API linnet_status linnet_butterfly_forward(linnet_context *context, const linnet_butterfly_settings *settings,
                                                  const float *factors, const float *choices, int64_t rows,
                                                  const float *x, float *y);
/* Gradients of sum(y * y_gradient), overwritten; NULL: not wanted. The same bits for any number of threads. */
LINNET_API linnet_status linnet_butterfly_backward(linnet_context *context, const linnet_butterfly_settings *settings,
                                                   const float *factors, const float *choices, int64_t rows,
                                                   const float *x, const float *y_gradient, float *x_gradient,
                                                   float *factors_gradient, float *choices_gradient);

/* ---- Walsh-Hadamard ---- */

/* Each row of n = 2^k numbers, in place: y[k] = n^-1/2 sum_j x[j] (-1)^(number of bits of j & k); its own inverse. */
LINNET_API linnet_status linnet_walsh_hadamard(linnet_context *context, int64_t rows, int64_t n, float *x);

/* The same, where only few of n coefficients are not zero (P264: Li et al. 2015, arXiv 1508.06336): from about
 * `most` log n samples in about most (log n)^2 steps,
 *     x[j] = sum over found of value (-1)^(number of bits of j & index) + noise.
 * Samples are hashed into bins by random subspaces; a bin with one coefficient tells its index bit by bit, by votes of
 * shifted samples, and is taken out of the others'. */
typedef struct linnet_sparse_settings {
    size_t size;
    int levels;    /* n = 2^levels, 1 to 48 */
    int64_t most;  /* coefficients expected, at least 1 */
    double noise;  /* standard deviation of samples; default 0 */
    double least;  /* coefficients below this may be missed; default 0: six times what noise leaves in a bin */
    int repeats;   /* votes for a bit; default 0: chosen from the noise */
    uint64_t seed; /* of the subspaces */
} linnet_sparse_settings;
LINNET_API linnet_sparse_settings linnet_sparse_settings_default(int levels, int64_t most);

typedef struct linnet_sparse_coefficient {
    int64_t index;
    double value;
} linnet_sparse_coefficient;
typedef struct linnet_sparse_result {
    size_t size;
    int64_t found;   /* ascending indices */
    int64_t samples; /* taken */
    bool complete;   /* false: something is left in the bins that could not be told apart; try again with more `most` */
} linnet_sparse_result;
typedef float (*linnet_sample_at)(void *user, int64_t index);
/* coefficients [capacity]. LINNET_ERROR_ARGUMENT where capacity < most. */
LINNET_API linnet_status linnet_sparse_walsh_hadamard(linnet_context *context, const linnet_sparse_settings *settings,
                                                      linnet_sample_at sample, void *user,
                                                      linnet_sparse_coefficient *coefficients, int64_t capacity,
                                                      linnet_sparse_result *result);

#ifdef __cplusplus
}
#endif
#endif
