/* Products of one token: x as the blocks make it for themselves, and what is added up.
 *
 * Code that runs once a block is kept short: between two uses of a kernel other kernels' code has taken its place in
 * the caches, and instructions are waited for like data. */
#ifndef LN_KERNEL_CUDA_PRODUCT_ONE_CUH
#define LN_KERNEL_CUDA_PRODUCT_ONE_CUH

#include "kernel/cuda/product_few.cuh"
#include "kernel/cuda/row_work.cuh"

namespace ln {

/* ---- x of one token ---- */

/* Code that runs once a block is kept short: between two uses of a kernel other kernels' code has taken its place in
 * the caches, and instructions are waited for like data. */

/* Eight columns, to be multiplied. */
template <int KIND>
static __device__ __forceinline__ void one_give(const few_run &run, char *room, int column, const float (&x)[8],
                                                bool inside) {
    if constexpr (few_codes<KIND>)
        split(x, column, room, room + run.x_step, (float *)(room + 2 * run.x_step), inside);
    else if (inside)
        store_bf16((__nv_bfloat16 *)room + column, x);
}

template <int KIND> static __device__ __forceinline__ void one_copy(const few_run &run, char *room) {
    constexpr int threads = few_threads<KIND>, at_once = 4;
    const int pieces = run.tiles * 8, thread = threadIdx.x;
    uint4 word[at_once];
#pragma unroll
    for (int k = 0; k < at_once; k++)
        if (thread + k * threads < pieces) word[k] = __ldcg((const uint4 *)run.x + thread + k * threads);
#pragma unroll 1
    for (int i = thread; i - thread < pieces; i += threads) {
        float x[8];
        widen(x, word[0]);
#pragma unroll
        for (int k = 1; k < at_once; k++) word[k - 1] = word[k];
        if (i + at_once * threads < pieces) word[at_once - 1] = __ldcg((const uint4 *)run.x + i + at_once * threads);
        one_give<KIND>(run, room, i * 8, x, i < pieces);
    }
}

/* The block's room for rows: the finished one, then the norm's weights. */
template <int KIND> static __device__ __forceinline__ void one_load_norm(const few_run &run, float *rows) {
    const int pieces = run.tiles * 16;
    for (int i = threadIdx.x; i < pieces; i += few_threads<KIND>)
        ((float4 *)rows)[pieces + i] = ((const float4 *)run.finish.norm)[i];
}
template <int KIND>
static __device__ __forceinline__ void one_finish(const few_run &run, char *room, float *rows, float *sums) {
    constexpr int threads = few_threads<KIND>;
    const few_finish &finish = run.finish;
    const int pieces = run.tiles * 8, thread = threadIdx.x;
    float squares = 0;
#pragma unroll 1
    for (int i = thread; i < pieces; i += threads)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float4 x = __ldcg((const float4 *)finish.x + 2 * i + k),
                         given = __ldcg((const float4 *)finish.given + 2 * i + k);
            const float4 row =
                make_float4(finish.keep * x.x + finish.add * given.x, finish.keep * x.y + finish.add * given.y,
                            finish.keep * x.z + finish.add * given.z, finish.keep * x.w + finish.add * given.w);
            squares += row.x * row.x + row.y * row.y + row.z * row.z + row.w * row.w;
            ((float4 *)rows)[2 * i + k] = row;
            if (blockIdx.x == 0) ((float4 *)finish.finished)[2 * i + k] = row;
        }
    const float factor = 1.0f / sqrtf(block_sum(squares, sums) / (float)(pieces * 8) + finish.epsilon);
#pragma unroll 1
    for (int i = thread; i - thread < pieces; i += threads) {
        float x[8] = {}, norm[8] = {};
        if (i < pieces) {
            load_floats(x, rows + 8 * i);
            load_floats(norm, rows + 8 * (pieces + i));
        }
#pragma unroll
        for (int k = 0; k < 8; k++) x[k] *= factor * norm[k];
        if (finish.h && blockIdx.x == 0 && i < pieces) store_bf16(finish.h + 8 * i, x);
        one_give<KIND>(run, room, i * 8, x, i < pieces);
    }
}

/* x of the token in shared memory. */
template <int KIND> static __device__ __forceinline__ few_x one_take(const few_run &run, char *room, float *sums) {
    float *steps = (float *)(room + 2 * run.x_step), *rows = (float *)(room + run.x_bytes) - run.tiles * 128;
    if (run.finish.given) one_load_norm<KIND>(run, rows);
    /* Tiles are taken by twos: the one after the last is worth nothing. */
    if (few_codes<KIND> && threadIdx.x < 2) steps[run.tiles * 2 + threadIdx.x] = 0;
    wait_for_previous();
    if (run.finish.given)
        one_finish<KIND>(run, room, rows, sums);
    else
        one_copy<KIND>(run, room);
    __syncthreads();
    return {room, steps, run.x_step};
}

/* One token and codes: of 8 columns of the right operand it has two, so that each of four blocks of 32 columns takes
 * two of its own. Their sums lie in one operand, and lane c of four has those of block c: what is done to them is done
 * once for two tiles. */
template <int KIND> static __device__ __forceinline__ uint32_t read_scale(const char *stage, int i) {
    const int lane = threadIdx.x % 32;
    return *(const uint32_t *)(stage + tile<KIND>::shape::chunk * tile<KIND>::words * 512 + (i + lane % 4 / 2) * 64 +
                               lane / 4 * 8 + lane % 2 * 4);
}
/* What a lane has of x, from the first tile on; it is in shared memory. */
struct few_single {
    const char *digits;
    const float *steps;
    uint32_t mask[4]; /* all bits of the block whose digits the lane has */
};
static __device__ __forceinline__ few_single single_of(const few_run &run, const char *room) {
    const int lane = threadIdx.x % 32;
    few_single x = {room + lane / 4 % 2 * run.x_step + lane / 16 * 64 + lane % 4 * 16 + lane / 8 % 2 * 8,
                    (const float *)(room + 2 * run.x_step) + lane % 4,
                    {}};
#pragma unroll
    for (int i = 0; i < 4; i++) x.mask[i] = lane / 8 == i ? ~0u : 0;
    return x;
}
template <int KIND>
static __device__ __forceinline__ void add_pair(const few_single &x, const tile<KIND> &first, const tile<KIND> &second,
                                                uint32_t scales, int at, float *sum) {
    const uint2 digits = *(const uint2 *)(x.digits + at * 64);
    const float step = x.steps[at * 2], middle = 12582912;
    int block[4] = {0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t right[2] = {digits.x & x.mask[i], digits.y & x.mask[i]};
        uint32_t left[4];
        (i < 2 ? first : second).get(i % 2, left);
        add_product_bytes(block, left, right);
    }
    const float2 scale = scales_of(scales);
    const float high = __int_as_float(block[0]) - middle, low = __int_as_float(block[1]) - middle;
    const float high8 = __int_as_float(block[2]) - middle, low8 = __int_as_float(block[3]) - middle;
    sum[0] += step * scale.x * (256 * high + low);
    sum[1] += step * scale.y * (256 * high8 + low8);
}

} // namespace ln

#endif
