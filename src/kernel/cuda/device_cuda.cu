/* What there is of a device, and how errors of the runtime are told. */
#include "kernel/cuda/device_cuda.h"

#include <cuda_runtime.h>

static thread_local int failure;

const char *ln_cuda_error_name(void) {
    return cudaGetErrorName((cudaError_t)failure);
}

ln_cuda_code ln_cuda_code_of(int error) {
    switch (error) {
    case cudaSuccess:
        return LN_CUDA_OK;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorStubLibrary:
        return LN_CUDA_NO_DEVICE;
    case cudaErrorInsufficientDriver:
        return LN_CUDA_OLD_DRIVER;
    case cudaErrorMemoryAllocation:
        return LN_CUDA_OUT_OF_MEMORY;
    case cudaErrorNoKernelImageForDevice:
        return LN_CUDA_UNSUPPORTED;
    default:
        failure = error;
        return LN_CUDA_FAILED;
    }
}

ln_cuda_code ln_cuda_device_read(int index, ln_cuda_device *device) {
    const cudaDeviceAttr wanted[5] = {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
                                      cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                      cudaDevAttrL2CacheSize};
    int value[5], count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && (index < 0 || index >= count)) return LN_CUDA_NO_DEVICE;
    for (int i = 0; i < 5 && error == cudaSuccess; i++) error = cudaDeviceGetAttribute(&value[i], wanted[i], index);
    if (error != cudaSuccess) {
        int driver = 0; /* 0: there is none, which the runtime too calls too old */
        cudaGetLastError();
        return cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0 ? LN_CUDA_NO_DEVICE : ln_cuda_code_of(error);
    }
    *device = {index, value[0], value[1], value[2], value[3], value[4]};
    return LN_CUDA_OK;
}

bool ln_cuda_tensor_right(const ln_cuda_tensor *tensor, int64_t element) {
    const int64_t unit = 16 / element;
    return tensor->data && (uintptr_t)tensor->data % 16 == 0 && tensor->token_stride % unit == 0 &&
           tensor->head_stride % unit == 0 && tensor->token_stride >= 0 && tensor->head_stride >= 0;
}
