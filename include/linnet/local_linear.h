/* Linnet: local linear attention (P100: Zuo et al. 2025): attention that fits, for each query, a line through the
 * values near it, where softmax attention fits a constant. With
 *
 *     p[i] = exp(query . key[i] / h) / sum_j exp(query . key[j] / h),   z[i] = key[i] - query,
 *     mu = sum_i p[i] z[i],   Sigma = sum_i p[i] z[i] z[i]^T + ridge I,   rho = Sigma^-1 mu,
 *     output = sum_i p[i] (1 - z[i] . rho) value[i] / (1 - mu . rho),
 *
 * the intercept of the weighted least squares that leaves the intercept free and penalises the slope by `ridge`.
 * A large ridge gives softmax attention; ridge near 0 reproduces values that are affine in their keys. rho is found
 * by conjugate gradients whose products with Sigma run over the keys: memory is linear in tokens and no matrix of
 * key_size x key_size is kept. Experimental: may change between versions. */
#ifndef LINNET_LOCAL_LINEAR_H
#define LINNET_LOCAL_LINEAR_H

#include "linnet/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct linnet_local_linear_settings {
    size_t size;
    linnet_type type;               /* of query, key and value: LINNET_F32 or LINNET_BF16 */
    int64_t heads, key_value_heads; /* key_value_heads 0: as many as heads; divides heads */
    int64_t key_size, value_size;   /* multiples of 8, 8 to 256; value_size 0: key_size */
    int64_t queries, keys;          /* tokens; keys 0: as many as queries */
    bool causal;                    /* aligned to the end, as in linnet_attention */
    float temperature;              /* h; 0: key_size^1/2 */
    float ridge;                    /* above 0; default 1 */
    bool ridge_of_sums;             /* Sigma of exponentials that are not divided by their sum, as the paper writes it:
                                       the ridge is then divided by that sum. Such a ridge fades as scores grow; default: no */
    float tolerance;                /* a row's iteration ends where |residual| <= tolerance |mu|; default 1e-5, */
    int iterations;                 /* or after so many; 0: key_size + 8 */
} linnet_local_linear_settings;

LINNET_API linnet_local_linear_settings linnet_local_linear_settings_default(void);

typedef struct linnet_local_linear_tensors {
    size_t size;
    linnet_tensor query, key, value; /* [token, head, size] of settings.type, strides as in linnet_attention_tensors */
    linnet_tensor output;            /* float32 */
} linnet_local_linear_tensors;

typedef struct linnet_local_linear_report {
    size_t size;
    int64_t rows;        /* query tokens x heads that see a key */
    int64_t iterations;  /* summed over rows */
    int64_t most;        /* of one row */
    int64_t unconverged; /* rows that ended by the limit */
} linnet_local_linear_report;

/* Bytes of workspace, aligned to 64; 0 for settings that linnet_local_linear_forward refuses. */
LINNET_API uint64_t linnet_local_linear_workspace(const linnet_context *context,
                                                  const linnet_local_linear_settings *settings);
/* Allocates nothing; the same bits for any number of threads. A query that sees no key gives zeros. report may be NULL.
 * LINNET_ERROR_ARGUMENT names the setting that is wrong. */
LINNET_API linnet_status linnet_local_linear_forward(linnet_context *context,
                                                     const linnet_local_linear_settings *settings,
                                                     const linnet_local_linear_tensors *tensors, void *workspace,
                                                     linnet_local_linear_report *report);

#ifdef __cplusplus
}
#endif
#endif
