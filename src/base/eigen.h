/* Eigenvalues and eigenvectors of symmetric matrices, in double. */
#ifndef LN_BASE_EIGEN_H
#define LN_BASE_EIGEN_H

#include <stdbool.h>
#include <stdint.h>

/* a [n, n], symmetric, is overwritten: row i becomes the unit eigenvector of values[i]; values ascend. vectors false:
 * the values alone, and a is destroyed. work [2 * n]. A Hermitian matrix A + iB goes in as [[A, -B], [B, A]], 2n x 2n:
 * its values come twice, and (x, y) of a row is the vector x + iy. False where a holds what is not finite. */
bool ln_eigen(double *a, int64_t n, bool vectors, double *values, double *work);

#endif
