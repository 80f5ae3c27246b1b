/* Starting a kernel with its arguments as they are typed, on the current device. */
#ifndef LN_KERNEL_CUDA_LAUNCH_CUH
#define LN_KERNEL_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernel/cuda/device_cuda.h"

namespace ln {

template <class... PARAMETERS>
static ln_cuda_code launch(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes, void *stream,
                           PARAMETERS... arguments) {
    cudaError_t error =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    void *pointers[] = {(void *)&arguments...};
    if (error == cudaSuccess)
        error =
            cudaLaunchKernel((const void *)kernel, grid, block, pointers, (size_t)shared_bytes, (cudaStream_t)stream);
    if (error != cudaSuccess) cudaGetLastError();
    return ln_cuda_code_of(error);
}

/* The same, with all blocks on the device at the same time: they may wait for each other. */
template <class... PARAMETERS>
static ln_cuda_code launch_together(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes,
                                    void *stream, PARAMETERS... arguments) {
    cudaError_t error =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    void *pointers[] = {(void *)&arguments...};
    if (error == cudaSuccess)
        error = cudaLaunchCooperativeKernel((const void *)kernel, grid, block, pointers, (size_t)shared_bytes,
                                            (cudaStream_t)stream);
    if (error != cudaSuccess) cudaGetLastError();
    return ln_cuda_code_of(error);
}

} // namespace ln

#endif
