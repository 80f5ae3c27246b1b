/* Operands for peaks: power, and with it clocks, depend on how many bits change, so that zeros would tell too much. */
#ifndef LN_KERNEL_CUDA_PEAKS_RANDOM_CUH
#define LN_KERNEL_CUDA_PEAKS_RANDOM_CUH

#include "kernel/cuda/instructions.cuh"

namespace ln {

/* Two bf16 numbers of [0.5, 2) with signs. */
static __device__ __forceinline__ uint32_t random_pair(uint32_t i) {
    i = (i + 1) * 2654435761u;
    i = (i ^ i >> 15) * 2246822519u;
    i ^= i >> 13;
    return (i & 0x80ff80ffu) | 0x3f003f00u;
}

} // namespace ln

#endif
