/* Eight neighbouring numbers at a time: one access of 16 bytes of bf16, two of float32. Loads and stores of operators
 * that are bound by memory. */
#ifndef LN_KERNEL_CUDA_VECTORS_CUH
#define LN_KERNEL_CUDA_VECTORS_CUH

#include "kernel/cuda/instructions.cuh"

namespace ln {

static __device__ __forceinline__ float bf16_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ void widen(float (&to)[8], const uint4 &from) {
    const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) to[2 * i] = bf16_low(pairs[i]), to[2 * i + 1] = bf16_high(pairs[i]);
}
static __device__ __forceinline__ void widen(float (&to)[4], const uint2 &from) {
    to[0] = bf16_low(from.x), to[1] = bf16_high(from.x), to[2] = bf16_low(from.y), to[3] = bf16_high(from.y);
}
template <int COUNT> static __device__ __forceinline__ void load_floats(float (&to)[COUNT], const float *from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const float4 part = *(const float4 *)(from + i);
        to[i] = part.x, to[i + 1] = part.y, to[i + 2] = part.z, to[i + 3] = part.w;
    }
}
template <int COUNT> static __device__ __forceinline__ void store_floats(float *to, const float (&from)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
        *(float4 *)(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
}
static __device__ __forceinline__ void store_bf16(__nv_bfloat16 *to, const float (&from)[8]) {
    *(uint4 *)to =
        make_uint4(pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]), pack(from[6], from[7]));
}
static __device__ __forceinline__ void store_bf16(__nv_bfloat16 *to, const float (&from)[4]) {
    *(uint2 *)to = make_uint2(pack(from[0], from[1]), pack(from[2], from[3]));
}
/* x / (1 + e^-x) */
static __device__ __forceinline__ float sigmoid(float x) {
    return reciprocal(1 + exponential(-1.442695041f * x));
}

} // namespace ln

#endif
