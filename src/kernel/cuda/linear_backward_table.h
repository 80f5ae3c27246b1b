/* The kernels behind the walks of a gradient. */
#ifndef LN_KERNEL_CUDA_LINEAR_BACKWARD_TABLE_H
#define LN_KERNEL_CUDA_LINEAR_BACKWARD_TABLE_H

#include "kernel/cuda/linear_backward_cuda.h"

/* What they are given; rows are float32 [tokens][heads][size]. */
typedef struct ln_cuda_linear_finish {
    ln_cuda_linear_tensors tensors;
    ln_cuda_linear_gradients gradients;
    const float *query_rows, *key_rows, *value_rows, *output_rows; /* output_rows: with decays of values */
    float *along, *skip;                                           /* [tokens][heads] */
    const float *sums, *sums_back; /* of a normaliser, [slots][key_size]: n and its gradient; NULL: there is none */
    ln_cuda_linear_slots before, after; /* states, and their gradients divided by the scale */
    int64_t tokens;
    int64_t state_floats;
    int normalise; /* ln_cuda_linear_sum */
    int sequences, heads, key_heads, group, tiled, key_size, value_size, output_float32;
    float scale;
} ln_cuda_linear_finish;

/* to += from */
ln_cuda_code ln_cuda_linear_add_rows(float *to, const float *from, int64_t count, void *stream);
/* Sums over heads that share keys, products along channels; gradients.write is added to with a normaliser. Then the
 * gradients of decays, by segments. */
/* to, bf16 [tokens][heads][value_size], = write value */
ln_cuda_code ln_cuda_linear_write_values(const ln_cuda_linear_finish *finish, void *to, void *stream);
ln_cuda_code ln_cuda_linear_finish_rows(const ln_cuda_linear_finish *finish, void *stream);
ln_cuda_code ln_cuda_linear_finish_decays(const ln_cuda_linear_finish *finish, const ln_cuda_linear_task *tasks,
                                          int task_count, ln_cuda_linear_decay decay, void *stream);
/* gradients.ends */
ln_cuda_code ln_cuda_linear_finish_ends(const ln_cuda_linear_finish *finish, void *stream);

/* A scan of vectors, y[t] = e^decay[t] y[t-1] + factor[t] rows[t], by segments; in reversed time the decay of token t +
 * 1 stands between t and t + 1. */
typedef struct ln_cuda_vector_scan {
    ln_cuda_tensor rows; /* bf16, with key_heads */
    ln_cuda_gate decay, factor;
    float scale;                      /* of factors */
    const float *start;               /* of the first head; NULL: zeros */
    float *end;                       /* NULL: not wanted */
    const int64_t *state_slots;       /* of both */
    int64_t head_floats;              /* of both */
    float *sums, *logs;               /* [slots][key_size], [slots] */
    const int32_t (*chains)[2];       /* of the slots: one more than segments */
    const ln_cuda_linear_task *tasks; /* segments */
    int task_count, chain_count, heads, key_heads, group, tiled, key_size, reverse;
} ln_cuda_vector_scan;
/* Leaves y at the ends of segments in `sums`. */
ln_cuda_code ln_cuda_vector_scan_run(const ln_cuda_vector_scan *scan, void *stream);
/* dot[t] = scale query[t] . y[t] */
ln_cuda_code ln_cuda_vector_scan_dot(const ln_cuda_vector_scan *scan, const ln_cuda_tensor *query, float scale,
                                     float *dot, void *stream);
/* to[t] += scale by[t] y[t]; by without data: 1. dot[t] = scale other[t] . y[t], NULL: not wanted. */
ln_cuda_code ln_cuda_vector_scan_add(const ln_cuda_vector_scan *scan, ln_cuda_gate by, float scale, float *to,
                                     const ln_cuda_tensor *other, float *dot, void *stream);

/* With `dot`: gradients of sums before their division, bf16 [tokens][heads][value_size], of dots and of maxima. */
ln_cuda_code ln_cuda_linear_undo_normaliser(const ln_cuda_linear_finish *finish, const float *dot, void *weighted,
                                            float *dot_gradient, void *stream);

#endif
