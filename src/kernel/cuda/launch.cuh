/* Starting a kernel with its arguments as they are typed, on the current device. */
#ifndef LN_KERNEL_CUDA_LAUNCH_CUH
#define LN_KERNEL_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernel/cuda/device_cuda.h"

namespace ln {

template <class... PARAMETERS>
static ln_cuda_code launch_with(cudaLaunchAttribute *attribute, void (*kernel)(PARAMETERS...), dim3 grid, dim3 block,
                                int shared_bytes, void *stream, PARAMETERS... arguments) {
    cudaError_t error =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    /* One division of a multiprocessor's memory for kernels that follow one another: another one waits for it to empty.
     */
    if (error == cudaSuccess && attribute && attribute->id == cudaLaunchAttributeProgrammaticStreamSerialization)
        error = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    void *pointers[] = {(void *)&arguments...};
    cudaLaunchConfig_t how = {};
    how.gridDim = grid;
    how.blockDim = block;
    how.dynamicSmemBytes = (size_t)shared_bytes;
    how.stream = (cudaStream_t)stream;
    how.attrs = attribute;
    how.numAttrs = attribute ? 1 : 0;
    if (error == cudaSuccess) error = cudaLaunchKernelExC(&how, (const void *)kernel, pointers);
    if (error != cudaSuccess) cudaGetLastError();
    return ln_cuda_code_of(error);
}

template <class... PARAMETERS>
static ln_cuda_code launch(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes, void *stream,
                           PARAMETERS... arguments) {
    return launch_with(NULL, kernel, grid, block, shared_bytes, stream, arguments...);
}

/* The same, `blocks` (a divisor of grid.x) of a row together as a cluster. */
template <class... PARAMETERS>
static ln_cuda_code launch_clusters(int blocks, void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes,
                                    void *stream, PARAMETERS... arguments) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)blocks, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
    return launch_with(&cluster, kernel, grid, block, shared_bytes, stream, arguments...);
}

/* The same, but that the kernel may start while the one before it on the stream still runs: it must call
 * wait_for_previous() before it reads or writes what that one, or one before it, touches. */
template <class... PARAMETERS>
static ln_cuda_code launch_early(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes, void *stream,
                                 PARAMETERS... arguments) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    return launch_with(&early, kernel, grid, block, shared_bytes, stream, arguments...);
}

/* The same, with all blocks on the device at the same time: they may wait for each other. */
template <class... PARAMETERS>
static ln_cuda_code launch_together(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes,
                                    void *stream, PARAMETERS... arguments) {
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    return launch_with(&together, kernel, grid, block, shared_bytes, stream, arguments...);
}

} // namespace ln

#endif
