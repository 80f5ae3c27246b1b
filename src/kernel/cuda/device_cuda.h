/* NVIDIA GPUs as plain C sees them: what a device is and can do, how a call ends, and tensors that lie on it. All
 * headers NAME_cuda.h follow the same pattern:
 *
 *     problem (shapes, options; on the host) -> plan (which kernel, why, bytes of workspace) -> prepare (tables of the
 *     plan, once) -> run (starts work on a stream).
 *
 * Streams are `void *` (a cudaStream_t). Nothing prints, exits, allocates device memory or waits for the device, except
 * prepare, which waits for its stream; every run may be captured in a graph and gives the same bits each time. */
#ifndef LN_KERNEL_CUDA_DEVICE_H
#define LN_KERNEL_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ln_cuda_code {
    LN_CUDA_OK,
    LN_CUDA_NO_DEVICE,   /* none, or none that the driver can use */
    LN_CUDA_OLD_DRIVER,  /* older than the runtime that this was built with */
    LN_CUDA_UNSUPPORTED, /* no kernel for this shape or device: plan.why says which */
    LN_CUDA_ARGUMENT,
    LN_CUDA_OUT_OF_MEMORY,
    LN_CUDA_FAILED /* the device reported an error */
} ln_cuda_code;

/* What a device can do, read once. */
typedef struct ln_cuda_device {
    int index, major, minor, multiprocessors;
    int64_t block_shared_bytes, cache_bytes;
} ln_cuda_device;

ln_cuda_code ln_cuda_device_read(int index, ln_cuda_device *device);
/* The code of a cudaError_t. */
ln_cuda_code ln_cuda_code_of(int error);
/* The runtime's name of the error that was LN_CUDA_FAILED last in this thread. */
const char *ln_cuda_error_name(void);

/* Elements at token * token_stride + head * head_stride + i; strides in elements, multiples of 8; data aligned to 16.
 */
typedef struct ln_cuda_tensor {
    void *data;
    int64_t token_stride, head_stride;
} ln_cuda_tensor;

/* Whether a tensor of elements of so many bytes is as said above. */
bool ln_cuda_tensor_right(const ln_cuda_tensor *tensor, int64_t element);

enum { LN_CUDA_WHY = 320 }; /* bytes of a plan's sentence: which kernel, and why not a faster one */

#ifdef __cplusplus
}
#endif
#endif
