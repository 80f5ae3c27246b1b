/* What the delta rule and its gradients do alike with pairs of tokens of a chunk of 64: blocks of 16 x 16, as the
 * accumulators of products hold them (instructions.cuh: 8 floats a lane), get the decays between their rows and
 * columns. A warp has two tokens a lane. */
#ifndef LN_KERNEL_CUDA_DELTA_BLOCKS_CUH
#define LN_KERNEL_CUDA_DELTA_BLOCKS_CUH

#include "kernel/cuda/instructions.cuh"

namespace ln {

static constexpr float LOG2_E = 1.4426950408889634f;
static constexpr float FAINT = -160; /* of base 2: its power is 0 in float32, and sums of a chunk stay finite */

/* A logarithm of base 2, no smaller than FAINT; what is not a number stays so. */
static __device__ __forceinline__ float gate_of(float decay) {
    const float gate = decay * LOG2_E;
    return gate < FAINT ? FAINT : gate;
}

/* Sums before the first token of a lane's block of 16, and up to its last. */
struct decay_span {
    float begin, end;
};
/* decay: logarithms of this lane's tokens, 2 lane and the one after, become sums from the chunk's first token on. */
static __device__ __forceinline__ decay_span sum_decays(float (&decay)[2]) {
    const int lane = threadIdx.x % 32;
    decay[1] += decay[0];
    float sum = decay[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    float before = __shfl_up_sync(~0u, sum, 1);
    if (lane == 0) before = 0;
    decay[0] += before, decay[1] = sum;
    return {__shfl_sync(~0u, before, lane & 24), __shfl_sync(~0u, sum, lane | 7)};
}

/* A block of 16 x 16 as lanes keep it, in shared memory. */
static __device__ __forceinline__ void put_lane(float *to, const float *block) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e += 4)
        *(float4 *)(to + e * 32 + lane * 4) = {block[e], block[e + 1], block[e + 2], block[e + 3]};
}
static __device__ __forceinline__ void get_lane(float (&block)[8], const float *from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
        const float4 four = *(const float4 *)(from + e * 32 + lane * 4);
        block[e] = four.x, block[e + 1] = four.y, block[e + 2] = four.z, block[e + 3] = four.w;
    }
}

/* Below the diagonal: rows times row, columns times column. */
static __device__ __forceinline__ void decay_below(float (&block)[8], const float (&row)[2], const float (&column)[4]) {
#pragma unroll
    for (int e = 0; e < 8; e++) block[e] *= row[e / 2 % 2] * column[e / 4 * 2 + e % 2];
}
/* On the diagonal: 0 above it, and on it where STRICT. pair: the decays of its elements. */
template <bool STRICT>
static __device__ __forceinline__ void decay_diagonal(float (&block)[8], const float (&row)[2],
                                                      const float (&column)[4], const float (&pair)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const int below = lane / 4 + e / 2 % 2 * 8 - e / 4 * 8 - lane % 4 * 2 - e % 2;
        const float x = block[e] * (row[e / 2 % 2] * column[e / 4 * 2 + e % 2]) * pair[e];
        block[e] = below >= STRICT ? x : 0;
    }
}
/* Elements of a row of a block, and of its columns. */
static __device__ __forceinline__ void load_rows(float (&row)[2], const float *from) {
    row[0] = from[threadIdx.x % 32 / 4], row[1] = from[threadIdx.x % 32 / 4 + 8];
}
static __device__ __forceinline__ void load_columns(float (&column)[4], const float *from) {
    const float2 one = *(const float2 *)(from + threadIdx.x % 4 * 2),
                 two = *(const float2 *)(from + threadIdx.x % 4 * 2 + 8);
    column[0] = one.x, column[1] = one.y, column[2] = two.x, column[3] = two.y;
}

} // namespace ln

#endif
