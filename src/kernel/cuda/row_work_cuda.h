/* What lies between the products of a model's pass, row by row, on an NVIDIA GPU: embeddings, residuals and norms,
 * rotary angles, logits. The residual stream x is float32, what goes into products (h) is bf16.
 *
 *     enter   x = scale * embedding[id], normed if the model says so
 *     finish  given = scale (given + bias);  x = keep x + add norm'(given)
 *     both    h = norm(x), and x = h where the stream goes on from it
 *
 * norm(x) = x / sqrt(mean(x^2) + epsilon) * weight, and with a bias the mean is taken off before and the bias added.
 * What decode needs to know of time lies on the device: the position, and the ids, so that a captured graph serves any
 * step. */
#ifndef LN_KERNEL_CUDA_ROW_WORK_H
#define LN_KERNEL_CUDA_ROW_WORK_H

#include "kernel/cuda/product_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_norm {
    const float *weight, *bias; /* [width]; weight NULL: the row as it is */
} ln_cuda_norm;

typedef struct ln_cuda_rows {
    int64_t tokens, width;
    float epsilon;
    float *x; /* [tokens, width] */
    void *h;  /* bf16 [tokens, h_stride] */
    int64_t h_stride;
    ln_cuda_digits digits; /* h for products with codes; high NULL: not wanted */
    ln_cuda_norm next;
    bool from_norm; /* x = h as float32 */
    /* enter */
    const int32_t *ids; /* [tokens] on the device */
    float embedding_scale;
    ln_cuda_norm embedding_norm;
    /* finish */
    const float *given; /* [tokens, width] */
    const float *bias;  /* [width], or NULL */
    float scale, keep, add;
    ln_cuda_norm post;
    float *finished; /* where x goes when a product finishes the rows: other blocks still read x */
} ln_cuda_rows;

ln_cuda_code ln_cuda_rows_enter(const ln_cuda_rows *rows, const ln_cuda_weight *embedding, void *stream);
ln_cuda_code ln_cuda_rows_finish(const ln_cuda_rows *rows, void *stream);

/* Cosines and sines [tokens, pairs] of *position + token, computed in float64: magnitude cos(p inverse[i]). */
ln_cuda_code ln_cuda_angles(const int32_t *position, const double *inverse, double magnitude, int64_t pairs,
                            int64_t tokens, float *cosine, float *sine, void *stream);

/* logits = cap tanh(scale logits / cap) (cap 0: none) in place, [tokens, vocabulary]; where best is not NULL, *best is
 * the first of the largest of the last row's first `named`, NaN being less than all. workspace:
 * LN_CUDA_BEST_BYTES. */
enum { LN_CUDA_BEST_BYTES = 4096 };
ln_cuda_code ln_cuda_logits(float *logits, int64_t tokens, int64_t vocabulary, int64_t named, float scale, float cap,
                            int32_t *best, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
