/* Starting a kernel on the emulated device. */
#ifndef LN_KERNEL_CUDA_LAUNCH_CUH
#define LN_KERNEL_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernel/cuda/device_cuda.h"

namespace ln {

template <class... PARAMETERS>
static ln_cuda_code launch_clusters(int blocks, void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes,
                                    void *stream, PARAMETERS... arguments) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error == cudaSuccess)
        error = ln_emulator::launch((const void *)kernel, [=] { kernel(arguments...); }, grid, block, shared_bytes,
                                    (cudaStream_t)stream, blocks);
    return ln_cuda_code_of(error);
}

template <class... PARAMETERS>
static ln_cuda_code launch(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes, void *stream,
                           PARAMETERS... arguments) {
    return launch_clusters(1, kernel, grid, block, shared_bytes, stream, arguments...);
}

/* As late as it may: after all before it. */
template <class... PARAMETERS>
static ln_cuda_code launch_early(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes, void *stream,
                                 PARAMETERS... arguments) {
    return launch(kernel, grid, block, shared_bytes, stream, arguments...);
}

template <class... PARAMETERS>
static ln_cuda_code launch_together(void (*kernel)(PARAMETERS...), dim3 grid, dim3 block, int shared_bytes,
                                    void *stream, PARAMETERS... arguments) {
    return launch(kernel, grid, block, shared_bytes, stream, arguments...);
}

} // namespace ln

#endif
