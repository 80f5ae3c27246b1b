/* A row of a model's stream in the registers of a block: norms, and what a part gave on top of it. Sums go through a
 * tree whose shape the width and the threads decide. */
#ifndef LN_KERNEL_CUDA_ROW_WORK_CUH
#define LN_KERNEL_CUDA_ROW_WORK_CUH

#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/row_work_cuda.h"

namespace ln {

/* The sum over the block, the same in each thread; `room` has a float a warp. */
static __device__ __forceinline__ float block_sum(float value, float *room) {
#pragma unroll
    for (int i = 16; i; i /= 2) value += __shfl_xor_sync(0xffffffffu, value, i);
    __syncthreads(); /* the room may still be read */
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++) sum += room[i];
    return sum;
}

/* A thread's four columns of each of VECTORS parts of the row, in registers; those beyond the width are zeros. */
template <int VECTORS> struct row_part {
    float value[VECTORS][4];
    static __device__ __forceinline__ int column(int v) { return (int)(v * blockDim.x + threadIdx.x) * 4; }
};

template <int VECTORS>
static __device__ __forceinline__ void load_row(row_part<VECTORS> &to, const float *from, int width) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = row_part<VECTORS>::column(v);
        if (column + 3 < width && width % 4 == 0) {
            const float4 four = __ldcg((const float4 *)(from + column));
            to.value[v][0] = four.x, to.value[v][1] = four.y, to.value[v][2] = four.z, to.value[v][3] = four.w;
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) to.value[v][k] = column + k < width ? from[column + k] : 0.0f;
        }
    }
}
template <int VECTORS>
static __device__ __forceinline__ void store_row(float *to, const row_part<VECTORS> &from, int width) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (row_part<VECTORS>::column(v) + k < width) to[row_part<VECTORS>::column(v) + k] = from.value[v][k];
}

template <int VECTORS>
static __device__ __forceinline__ void norm_row(row_part<VECTORS> &row, const row_part<VECTORS> &weight,
                                                const ln_cuda_norm &norm, int width, float epsilon, float *room) {
    if (!norm.weight) return;
    float mean = 0, squares = 0;
    if (norm.bias) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
#pragma unroll
            for (int k = 0; k < 4; k++) mean += row.value[v][k];
        mean = block_sum(mean, room) / (float)width;
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (row_part<VECTORS>::column(v) + k < width) {
                row.value[v][k] -= mean;
                squares += row.value[v][k] * row.value[v][k];
            }
    squares = block_sum(squares, room);
    const float factor = 1.0f / sqrtf(squares / (float)width + epsilon);
    row_part<VECTORS> bias = {};
    if (norm.bias) load_row(bias, norm.bias, width);
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int k = 0; k < 4; k++) row.value[v][k] = row.value[v][k] * factor * weight.value[v][k] + bias.value[v][k];
}

/* What a part gave, with its bias and scale, and x. */
template <int VECTORS>
static __device__ __forceinline__ void load_given(row_part<VECTORS> &row, row_part<VECTORS> &x, const ln_cuda_rows &run,
                                                  int64_t token, int width) {
    load_row(row, run.given + token * run.width, width);
    load_row(x, run.x + token * run.width, width);
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int column = row_part<VECTORS>::column(v) + k;
            if (run.bias && column < width) row.value[v][k] += run.bias[column];
            row.value[v][k] *= run.scale;
        }
}
template <int VECTORS>
static __device__ __forceinline__ void add_given(row_part<VECTORS> &row, const row_part<VECTORS> &x,
                                                 const ln_cuda_rows &run) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int k = 0; k < 4; k++) row.value[v][k] = run.keep * x.value[v][k] + run.add * row.value[v][k];
}

} // namespace ln

#endif
