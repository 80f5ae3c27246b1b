/* Owns: the inverse of I + A, 64 x 64, A strictly lower triangular, by one warp, in float32.
 *
 * By blocks of 16: those on the diagonal by substitution, a lane a column; then, column by column of blocks,
 *
 *     T[i][j] = -T[i][i] M,   M = sum_{j <= k < i} A[i][k] T[k][j]
 *
 * as products of tf32. A block lies in registers as the accumulators of products do (instructions.cuh), 8 floats a
 * lane. The product X Y^T of two such blocks takes them as they are, whatever the order of the summed index is, as it
 * is the same in both. So M^T = sum T[k][j]^T A[i][k]^T comes from T^T and A, T[i][j] from T[i][i] and M^T, T[i][j]^T
 * from M^T and T[i][i]: nothing is ever turned around. */
#ifndef LN_KERNEL_CUDA_DELTA_INVERT_CUH
#define LN_KERNEL_CUDA_DELTA_INVERT_CUH

#include "kernel/cuda/instructions.cuh"

namespace ln {

enum { INVERT_ROW = 20, INVERT_BLOCK = 16 * INVERT_ROW, INVERT_FLOATS = 4 * INVERT_BLOCK };

/* Block (i, j) of the lower triangle, i >= j. */
static __device__ __forceinline__ constexpr int lower(int i, int j) {
    return i * (i + 1) / 2 + j;
}

/* Products of tf32 cut off the last 13 bits. Made larger by half of what that takes from a number on average, operands
 * are right on average; an instruction that rounds takes eight times as long. */
static __device__ __forceinline__ void make_operand(float (&block)[8], float sign) {
#pragma unroll
    for (int e = 0; e < 8; e++) block[e] *= sign * (1 + 0.000339f);
}
/* sum += left right^T, operands */
static __device__ __forceinline__ void add_blocks(float (&sum)[8], const float (&left)[8], const float (&right)[8]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const uint32_t one[4] = {__float_as_uint(left[4 * k]), __float_as_uint(left[4 * k + 2]),
                                 __float_as_uint(left[4 * k + 1]), __float_as_uint(left[4 * k + 3])};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t two[2] = {__float_as_uint(right[4 * k + 2 * n]), __float_as_uint(right[4 * k + 2 * n + 1])};
            add_product_tf32(sum + 4 * n, one, two);
        }
    }
}

/* The four blocks on the diagonal, in scratch [4][16][INVERT_ROW] of this warp, are inverted in place. What is not
 * below their diagonals is not read. */
static __device__ __forceinline__ void invert_diagonal(float *scratch) {
    const int column = threadIdx.x % 16, half = threadIdx.x / 16 % 2;
    float *one = scratch + half * INVERT_BLOCK, *two = one + 2 * INVERT_BLOCK;
    float x[16], y[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float odd_x = 0, odd_y = 0; /* two sums each, so that no long chain waits for itself */
        x[i] = y[i] = i == column;
#pragma unroll
        for (int j = 0; j < i; j += 4) {
            const float4 a = *(const float4 *)(one + i * INVERT_ROW + j),
                         b = *(const float4 *)(two + i * INVERT_ROW + j);
            x[i] -= a.x * x[j], y[i] -= b.x * y[j];
            if (j + 1 < i) odd_x += a.y * x[j + 1], odd_y += b.y * y[j + 1];
            if (j + 2 < i) x[i] -= a.z * x[j + 2], y[i] -= b.z * y[j + 2];
            if (j + 3 < i) odd_x += a.w * x[j + 3], odd_y += b.w * y[j + 3];
        }
        x[i] -= odd_x, y[i] -= odd_y;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i++) one[i * INVERT_ROW + column] = x[i], two[i * INVERT_ROW + column] = y[i];
    __syncwarp();
}

static __device__ __forceinline__ void put_block(float *to, const float (&block)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i += 2)
        *(float2 *)(to + (lane / 4 + i / 2 % 2 * 8) * INVERT_ROW + i / 4 * 8 + lane % 4 * 2) = {block[i], block[i + 1]};
}
static __device__ __forceinline__ void get_block(float (&block)[8], const float *from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const float2 two = *(const float2 *)(from + (lane / 4 + i / 2 % 2 * 8) * INVERT_ROW + i / 4 * 8 + lane % 4 * 2);
        block[i] = two.x, block[i + 1] = two.y;
    }
}
static __device__ __forceinline__ void get_turned(float (&block)[8], const float *from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++)
        block[i] = from[(i / 4 * 8 + lane % 4 * 2 + i % 2) * INVERT_ROW + lane / 4 + i / 2 % 2 * 8];
}

/* Column J of blocks of the inverse, below the diagonal, in the place of A's. Operands: A right of column J - 1 and the
 * inverted blocks on the diagonal, which lie in scratch too. */
template <int J> static __device__ __forceinline__ void invert_column(float (&block)[10][8], const float *scratch) {
    float turned[4][8]; /* T[k][J]^T */
    get_turned(turned[J], scratch + J * INVERT_BLOCK);
    make_operand(turned[J], 1);
#pragma unroll
    for (int i = J + 1; i < 4; i++) {
        float middle[8] = {}, made[8] = {};
#pragma unroll
        for (int k = J; k < i; k++) add_blocks(middle, turned[k], block[lower(i, k)]);
        make_operand(middle, -1);
        add_blocks(made, block[lower(i, i)], middle);
#pragma unroll
        for (int e = 0; e < 8; e++) turned[i][e] = 0;
        if (i < 3) add_blocks(turned[i], middle, block[lower(i, i)]);
        make_operand(turned[i], 1);
#pragma unroll
        for (int e = 0; e < 8; e++) block[lower(i, J)][e] = made[e];
    }
}

/* block[lower(i, j)], i > j, and in scratch the blocks on the diagonal: A before; block: (I + A)^-1 after. */
static __device__ __forceinline__ void invert(float (&block)[10][8], float *scratch) {
    __syncwarp();
    invert_diagonal(scratch);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        get_block(block[lower(i, i)], scratch + i * INVERT_BLOCK);
#pragma unroll
        for (int j = 0; j <= i; j++) make_operand(block[lower(i, j)], 1);
    }
    invert_column<0>(block, scratch);
    invert_column<1>(block, scratch);
    invert_column<2>(block, scratch);
#pragma unroll
    for (int i = 0; i < 4; i++) get_block(block[lower(i, i)], scratch + i * INVERT_BLOCK);
    __syncwarp();
}

} // namespace ln

#endif
