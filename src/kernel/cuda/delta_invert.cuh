/* Owns: the inverse of I + A, 64 x 64, A strictly lower triangular, in float32.
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

/* 2 EACH blocks on the diagonal, in scratch [][16][INVERT_ROW], are inverted in place, EACH by half a warp. What is not
 * below their diagonals is not read. */
template <int EACH> static __device__ __forceinline__ void invert_diagonal(float *scratch) {
    const int column = threadIdx.x % 16;
    float *block = scratch + threadIdx.x / 16 % 2 * INVERT_BLOCK, x[EACH][16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float odd[EACH] = {}; /* two sums each, so that no long chain waits for itself */
#pragma unroll
        for (int b = 0; b < EACH; b++) {
            x[b][i] = i == column;
#pragma unroll
            for (int j = 0; j < i; j += 4) {
                const float4 a = *(const float4 *)(block + 2 * b * INVERT_BLOCK + i * INVERT_ROW + j);
                x[b][i] -= a.x * x[b][j];
                if (j + 1 < i) odd[b] += a.y * x[b][j + 1];
                if (j + 2 < i) x[b][i] -= a.z * x[b][j + 2];
                if (j + 3 < i) odd[b] += a.w * x[b][j + 3];
            }
            x[b][i] -= odd[b];
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i++)
#pragma unroll
        for (int b = 0; b < EACH; b++) block[2 * b * INVERT_BLOCK + i * INVERT_ROW + column] = x[b][i];
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

/* Column J of blocks of the inverse, below the diagonal, in the place of A's. block: A below the diagonal and right of
 * column J - 1, operands; scratch: the inverted blocks on the diagonal. */
template <int J> static __device__ __forceinline__ void invert_column(float (&block)[10][8], const float *scratch) {
    float turned[4][8], own[8]; /* T[k][J]^T, T[i][i] */
    get_turned(turned[J], scratch + J * INVERT_BLOCK);
    make_operand(turned[J], 1);
#pragma unroll
    for (int i = J + 1; i < 4; i++) {
        float middle[8] = {}, made[8] = {};
#pragma unroll
        for (int k = J; k < i; k++) add_blocks(middle, turned[k], block[lower(i, k)]);
        make_operand(middle, -1);
        get_block(own, scratch + i * INVERT_BLOCK);
        make_operand(own, 1);
        add_blocks(made, own, middle);
#pragma unroll
        for (int e = 0; e < 8; e++) turned[i][e] = 0;
        if (i < 3) add_blocks(turned[i], middle, own);
        make_operand(turned[i], 1);
#pragma unroll
        for (int e = 0; e < 8; e++) block[lower(i, J)][e] = made[e];
    }
}

/* All of it: A below the diagonal in block and on it in scratch before; the inverse in block after. */
static __device__ __forceinline__ void invert(float (&block)[10][8], float *scratch) {
    __syncwarp();
    invert_diagonal<2>(scratch);
#pragma unroll
    for (int i = 1; i < 4; i++)
#pragma unroll
        for (int j = 0; j < i; j++) make_operand(block[lower(i, j)], 1);
    invert_column<0>(block, scratch);
    invert_column<1>(block, scratch);
    invert_column<2>(block, scratch);
#pragma unroll
    for (int i = 0; i < 4; i++) get_block(block[lower(i, i)], scratch + i * INVERT_BLOCK);
    __syncwarp();
}

} // namespace ln

#endif
