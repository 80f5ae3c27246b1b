/* Queries, keys and values between their products and attention, on an NVIDIA GPU:
 *
 *     rotate(norm(x + bias)) of each head of queries and keys, x + bias of values,
 *
 * where norm is RMS norm over a head, and pair i of a head turns by the angle whose cosine and sine ln_cuda_angles
 * made. Queries and keys come out as bf16, or float32. */
#ifndef LN_KERNEL_CUDA_HEADS_H
#define LN_KERNEL_CUDA_HEADS_H

#include "kernel/cuda/decode_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One of queries, keys and values. */
typedef struct ln_cuda_head_rows {
    int64_t heads, size;
    const float *from; /* [tokens, heads * size] */
    void *to;          /* likewise, packed */
    bool float32;      /* to; else bf16 */
    const float *bias; /* [heads * size]; NULL: none */
    const float *norm; /* [size]; NULL: none */
    bool rotated;
} ln_cuda_head_rows;

typedef struct ln_cuda_heads {
    int64_t tokens;
    ln_cuda_head_rows part[3];
    float epsilon;
    const float *cosine, *sine; /* [tokens, rotary_size / 2] */
    int64_t rotary_size;        /* values of a head that turn */
    bool half;                  /* pairs are (i, i + rotary_size / 2), else (2 i, 2 i + 1) */
} ln_cuda_heads;

ln_cuda_code ln_cuda_heads_run(const ln_cuda_heads *heads, void *stream);

/* Attention over plain pages (bf16, f16) for what has no kernel of its own: any sizes, any number of queries of one
 * sequence, a block for each query and head. decode->queries is not bound to LN_CUDA_QUERIES. */
ln_cuda_code ln_cuda_attend_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors, void *stream);
/* And what goes with it, for plain pages of any size: rows into them, and tokens first .. first + tokens - 1 out of
 * them as bf16. */
ln_cuda_code ln_cuda_append_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors,
                                const ln_cuda_decode_rows *keys, const ln_cuda_decode_rows *values, void *stream);
ln_cuda_code ln_cuda_gather_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors, int64_t first,
                                int64_t tokens, const ln_cuda_tensor *keys, const ln_cuda_tensor *values, void *stream);

#ifdef __cplusplus
}
#endif
#endif
