/* Descriptions of tensors for the copy engine of compute capability 9.0: which boxes it copies, and in which order
 * their pieces lie in shared memory (hopper.cuh). The driver's function that makes them is asked for at run time, so
 * that nothing is linked against the driver. C++, for the hosts of the families alone. */
#ifndef LN_KERNEL_CUDA_BOXES_H
#define LN_KERNEL_CUDA_BOXES_H

#include <cuda.h>

#include "kernel/cuda/device_cuda.h"

/* A tensor of three axes, the innermost first, which has no gaps. What of a box lies outside is filled with zeros. */
typedef struct ln_cuda_boxes {
    const void *data;
    int element;        /* bytes: 2 or 4 */
    int64_t extents[3]; /* elements */
    int64_t strides[2]; /* bytes, of the other two */
    int box[3];         /* rows of 128 or 64 bytes, of elements of 2, are stored with their pieces exchanged */
    bool near;          /* the second cache fetches 128 bytes for a miss, else 256 */
} ln_cuda_boxes;

ln_cuda_code ln_cuda_boxes_describe(const ln_cuda_boxes *boxes, CUtensorMap *map);
/* Boxes of `columns` columns of one head, `rows` tokens high, of a tensor [tokens, heads, size]. */
ln_cuda_code ln_cuda_boxes_of_heads(const ln_cuda_tensor *tensor, int element, int64_t size, int64_t heads,
                                    int64_t tokens, int columns, int rows, CUtensorMap *map);

#endif
