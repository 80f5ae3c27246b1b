/* The compiled kernels of each file, best first. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_TABLE_H
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_TABLE_H

#include "kernel/cuda/attention_backward_cuda.h"

extern const ln_cuda_backward_kernel ln_cuda_backward_hopper_kernels[], ln_cuda_backward_hopper_half_kernels[],
    ln_cuda_backward_portable_kernels[];
extern const int ln_cuda_backward_hopper_count, ln_cuda_backward_hopper_half_count, ln_cuda_backward_portable_count;

/* Lists, in attention_backward_lists.cu: the tiles of keys that a tile of queries of a head meets, ascending (`tiles`
 * NULL: only counted), how many; and all tables of those that meet, from tiles and tasks as they are without lists. */
int64_t ln_cuda_backward_listed(const ln_cuda_attention *attention, const ln_cuda_backward_kernel *kernel,
                                const ln_cuda_backward_rows *rows, int64_t head, int32_t *tiles);
void ln_cuda_backward_lists(const ln_cuda_attention *attention, const ln_cuda_backward_plan *plan,
                            const ln_cuda_backward_tables *tables);

namespace ln {
struct backward_run;
}
/* What comes before and after the kernel of the table: rows of the forward pass; sums of query gradients, which the
 * kernels of compute capability 9.0 leave; gradients of sinks. */
ln_cuda_code ln_cuda_backward_open(const ln::backward_run *run, void *stream);
ln_cuda_code ln_cuda_backward_close(const ln::backward_run *run, void *stream);
ln_cuda_code ln_cuda_backward_sinks(const ln::backward_run *run, void *stream);

/* From float32 gradients [tokens, heads, packed_size] of rows as ln_cuda_attention_pack makes them to those of the rows
 * (`to`, float32 or of the 2-byte type) and, where wanted, to those of the factors, [tokens, heads, rank]. */
typedef struct ln_cuda_unpacking {
    const float *from;
    ln_cuda_tensor to;
    float *factors;     /* NULL: not wanted */
    float factor_scale; /* that the factors had in the rows */
    int64_t tokens, heads, size, rank, packed_size;
    bool float32, half, keys;
} ln_cuda_unpacking;
ln_cuda_code ln_cuda_backward_unpack(const ln_cuda_unpacking *unpacking, void *stream);

#endif
