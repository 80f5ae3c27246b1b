/* The activations of gated units. */
#ifndef LN_KERNEL_CUDA_PRODUCT_ACTIVATION_CUH
#define LN_KERNEL_CUDA_PRODUCT_ACTIVATION_CUH

#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/product_cuda.h"

namespace ln {

static __device__ __forceinline__ float activate(int activation, float x) {
    if (activation == LN_CUDA_GELU_TANH) {
        const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1 + __expf(-2 * inner));
    }
    return x / (1 + __expf(-x));
}

} // namespace ln

#endif
