/* What the kernels of the selective scan share: which channels a block has, where things lie, sums over lanes. */
#ifndef LN_KERNEL_CUDA_SCAN_ROWS_CUH
#define LN_KERNEL_CUDA_SCAN_ROWS_CUH

#include "kernel/cuda/scan_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using scan_run = ln_cuda_scan_run;

static constexpr float LOG2_E = 1.442695041f, LN_2 = 0.6931471806f;

/* log(1 + e^x) without overflow. Where e^x is small a logarithm would lose digits: five terms of its series do not. */
static __device__ __forceinline__ float softplus(float x) {
    const float small = exponential(-LOG2_E * fabsf(x));
    const float series = small * (1 + small * (-0.5f + small * (0.33333333f + small * (-0.25f + small * 0.2f))));
    return fmaxf(x, 0.0f) + (small < 0.06f ? series : LN_2 * __log2f(1 + small));
}

static __device__ __forceinline__ int64_t scan_slot(const scan_run &run, int sequence) {
    return run.tensors.state_slots ? run.tensors.state_slots[sequence] : sequence;
}

/* A block's channels: first .. first + count - 1 of the model, all of one group. */
struct scan_channels {
    ln_cuda_scan_sequence sequence;
    int first, count, group;
};

template <int CHANNELS> static __device__ __forceinline__ scan_channels channels_of(const scan_run &run, int block) {
    const int blocks = (run.group + CHANNELS - 1) / CHANNELS, all = blocks * run.key_heads;
    scan_channels at;
    at.sequence = run.sequence[block / all];
    at.group = block % all / blocks;
    const int inside = block % blocks * CHANNELS;
    at.first = at.group * run.group + inside;
    at.count = run.group - inside < CHANNELS ? run.group - inside : CHANNELS;
    return at;
}

/* Where a channel of a token lies. */
static __device__ __forceinline__ int64_t scan_place(const scan_run &run, const ln_cuda_tensor &of, int64_t token,
                                                     int channel) {
    return token * of.token_stride + channel / run.value_size * of.head_stride + channel % run.value_size;
}

/* LANES sums over the lanes of a channel; a lane ends with the sum of its number. */
template <int LANES> static __device__ __forceinline__ float add_lanes(float (&sum)[LANES]) {
    const int lane = threadIdx.x % LANES;
#pragma unroll
    for (int half = LANES / 2; half; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int j = 0; j < half; j++) {
            const float mine = upper ? sum[j + half] : sum[j], other = upper ? sum[j] : sum[j + half];
            sum[j] = mine + __shfl_xor_sync(0xffffffffu, other, half);
        }
    }
    return sum[0];
}

} // namespace ln

#endif
