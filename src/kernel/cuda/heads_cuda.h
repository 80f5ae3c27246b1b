/* Queries, keys and values between their products and attention, on an NVIDIA GPU:
 *
 *     rotate(norm(x + bias)) of each head of queries and keys, x + bias of values,
 *
 * where norm is RMS norm over a head, and pair i of a head turns by the angle whose cosine and sine ln_cuda_angles
 * made. They come out as bf16, as float32, or straight in plain pages. */
#ifndef LN_KERNEL_CUDA_HEADS_H
#define LN_KERNEL_CUDA_HEADS_H

#include "kernel/cuda/decode_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Plain pages of one sequence, for the last `tokens` of its length. */
typedef struct ln_cuda_head_pages {
    ln_cuda_page_part part; /* data NULL: none */
    ln_cuda_page_format format;
    int64_t page_tokens;
    const int32_t *table, *length; /* on the device */
    int64_t table_stride;          /* not 0: each head has a row of the table and a length of its own (lanes_cuda.h) */
} ln_cuda_head_pages;

/* One of queries, keys and values. */
typedef struct ln_cuda_head_rows {
    int64_t heads, size;
    const float *from; /* [tokens, heads * size] */
    void *to;          /* likewise, packed */
    bool float32;      /* to; else bf16 */
    const float *bias; /* [heads * size]; NULL: none */
    const float *norm; /* [size]; NULL: none */
    bool rotated;
    ln_cuda_head_pages pages; /* in the place of `to` */
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
/* And what goes with it: tokens first .. first + tokens - 1 out of plain pages, as bf16. */
ln_cuda_code ln_cuda_gather_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors, int64_t first,
                                int64_t tokens, const ln_cuda_tensor *keys, const ln_cuda_tensor *values, void *stream);

#ifdef __cplusplus
}
#endif
#endif
