/* Owns: T = (1 + A)^-1 of a chunk by a block of 128 threads, where the tensor cores cannot make all of A: solved in
 * float32 by blocks of 16, then as products of tf32 by blocks of 32 and the whole:
 *
 *     T = [T1, 0; -T2 A21 T1, T2].
 */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_SOLVE_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_SOLVE_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

enum { SOLVE_ROW = 68 /* floats */, SOLVE_BYTES = 64 * SOLVE_ROW * 4 };

/* 1 / length of this thread's row (two threads a row), or 1. */
template <int KEY> static __device__ __forceinline__ float norm_of(const char *tile, bool normalise) {
    const int row = threadIdx.x / 2 % 64, half = threadIdx.x % 2;
    float square = 0;
    if (!normalise) return 1;
    for (int piece = half; piece < KEY / 8; piece += 2) {
        const uint4 x = *(const uint4 *)(tile + tile_at(row, piece));
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 both = unpack(words[i]);
            square += both.x * both.x + both.y * both.y;
        }
    }
    square += __shfl_xor_sync(~0u, square, 1);
    return rsqrtf(square + 1e-6f);
}

/* The inverse of 1 + the 16 x 16 lower triangle at `a`, in its place; lanes l and l + 16 have column l. */
static __device__ __forceinline__ void solve_block(float *a) {
    const int lane = threadIdx.x % 16;
    float column[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum[2] = {lane == i ? 1.0f : 0.0f, 0};
#pragma unroll
        for (int m = 0; m < i; m += 4) {
            const float4 row = *(const float4 *)(a + i * SOLVE_ROW + m);
            sum[0] -= row.x * column[m];
            if (m + 1 < i) sum[1] -= row.y * column[m + 1];
            if (m + 2 < i) sum[0] -= row.z * column[m + 2];
            if (m + 3 < i) sum[1] -= row.w * column[m + 3];
        }
        column[i] = sum[0] + sum[1];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (threadIdx.x % 32 < 16) a[i * SOLVE_ROW + lane] = column[i];
    __syncwarp();
}

/* Rounded to tf32, whose products leave the last 13 bits unread. */
static __device__ __forceinline__ uint32_t rounded_tf32(float x) {
    return __float_as_uint(x) + 0x1000;
}

/* to (16 x 16) = sign left (16 x INNER) * right, by a warp. */
template <int INNER>
static __device__ __forceinline__ void multiply_blocks(float *to, const float *left, const float *right, float sign) {
    const int lane = threadIdx.x % 32, row = lane / 4;
    float sum[8] = {};
#pragma unroll
    for (int k = 0; k < INNER; k += 8) {
        const float *x = left + row * SOLVE_ROW + k + lane % 4, *y = right + (k + lane % 4) * SOLVE_ROW + lane / 4;
        const uint32_t part[4] = {rounded_tf32(x[0]), rounded_tf32(x[8 * SOLVE_ROW]), rounded_tf32(x[4]),
                                  rounded_tf32(x[8 * SOLVE_ROW + 4])};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t other[2] = {rounded_tf32(y[8 * n]), rounded_tf32(y[8 * n + 4 * SOLVE_ROW])};
            add_product_tf32(sum + 4 * n, part, other);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        to[(row + i / 2 % 2 * 8) * SOLVE_ROW + i / 4 * 8 + lane % 4 * 2 + i % 2] = sign * sum[i];
}

/* All 128 threads; `a` is spoiled, of which the blocks of 16 beside the diagonal of each half must be 0 above it. T
 * goes to a panel as bf16. */
static __device__ __forceinline__ void solve(float *a, char *panel) {
    float *low = a + 32 * SOLVE_ROW, *corner = low + 32, *idle = a + 32;
    const int warp = threadIdx.x / 32, row = warp / 2 * 16 * SOLVE_ROW, column = warp % 2 * 16;
    __syncthreads();
    solve_block(a + warp * 16 * (SOLVE_ROW + 1));
    __syncthreads();
    if (warp < 2) {
        float *half = warp == 0 ? a : corner, *below = half + 16 * SOLVE_ROW, *room = idle + warp * 16;
        multiply_blocks<16>(room, below, half, 1);
        __syncwarp();
        multiply_blocks<16>(below, below + 16, room, -1);
    }
    __syncthreads();
    multiply_blocks<32>(idle + row + column, low + row, a + column, 1);
    __syncthreads();
    multiply_blocks<32>(low + row + column, corner + row, idle + column, -1);
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
        const int row = i / 8, piece = i % 8;
        const float *x = a + row * SOLVE_ROW + piece * 8;
        uint4 all = {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
        if (row < 32 && piece >= 4) all = {0, 0, 0, 0};
        *(uint4 *)(panel + tile_at(row, piece)) = all;
    }
}

} // namespace ln

#endif
