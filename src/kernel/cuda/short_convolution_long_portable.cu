/* The short convolution of 9 to 64 taps, and its gradients, for compute capability 8.0 and newer: as the kernels of few
 * taps, but a thread holds eight tokens of four channels and goes over the taps, reading one row of values for each.
 *
 *     sum[t] += weight[i] value[t - taps + 1 + i]   for i = 0, 1, ...: the rows of the next tap are those of this one,
 *                                                   a token later.
 *
 * Weights are turned first, so that neighbours of a tap lie together. Backward d, the gradient of the sums, is made and
 * kept in float32; then, by the same walk with the taps turned round, what values and states owe it; then of each span
 * the sums over its tokens, eight taps a thread. Spans are at least as long
 * as the state, so that the first one alone reads that. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/short_convolution_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using convolution_run = ln_cuda_convolution_run;
using convolution_span = ln_cuda_convolution_span;

enum { THREADS = 128, TOKENS = 8, CHANNELS = 4, TAPS = 8 };

/* One thread's channels of one span. */
struct long_lane {
    convolution_span span;
    int head, column;
    int64_t index, channel, slot; /* of the span; the first channel; of the state */

    __device__ __forceinline__ bool open(const convolution_run &run) {
        const int groups = run.value_size / CHANNELS * run.heads;
        const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
        if (i >= run.span_count * groups) return false;
        const int group = (int)(i % groups);
        index = i / groups;
        span = run.spans[index];
        head = group / (run.value_size / CHANNELS);
        column = group % (run.value_size / CHANNELS) * CHANNELS;
        channel = (int64_t)group * CHANNELS;
        slot = run.tensors.state_slots ? run.tensors.state_slots[span.sequence] : span.sequence;
        return true;
    }
    /* These channels of row `row` of a state of slot `slot`. */
    __device__ __forceinline__ int64_t state_at(const convolution_run &run, int64_t slot, int row) const {
        return ((slot * run.heads + head) * (run.taps - 1) + row) * run.value_size + column;
    }
    __device__ __forceinline__ int64_t place(const ln_cuda_tensor &of, int time) const {
        return (int64_t)(span.token + time) * of.token_stride + head * of.head_stride + column;
    }
    /* 0 before the state and from the end on. */
    __device__ __forceinline__ void value(float (&to)[CHANNELS], const convolution_run &run, int time) const {
        if (time >= 0 && time < span.length) {
            widen(to, *(const uint2 *)((const __nv_bfloat16 *)run.tensors.value.data + place(run.tensors.value, time)));
            return;
        }
        const bool given = time < 0 && time > -run.taps && run.tensors.state_in;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) to[c] = 0;
        if (given) load_floats(to, run.tensors.state_in + state_at(run, slot, time + run.taps - 1));
    }
    __device__ __forceinline__ void weight(float (&to)[CHANNELS], const convolution_run &run, int tap) const {
        load_floats(to, run.turned + (int64_t)tap * run.heads * run.value_size + channel);
    }
    /* The sums of TOKENS tokens from `time` on. */
    __device__ __forceinline__ void sums(float (&sum)[TOKENS][CHANNELS], const convolution_run &run, int time) const {
        float rows[TOKENS][CHANNELS], by[CHANNELS];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            value(rows[i], run, time - (run.taps - 1) + i - 1);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) sum[i][c] = run.tensors.bias ? run.tensors.bias[channel + c] : 0;
        }
#pragma unroll 1
        for (int tap = 0; tap < run.taps; tap++) {
            weight(by, run, tap);
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                if (i + 1 < TOKENS)
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) rows[i][c] = rows[i + 1][c];
                else
                    value(rows[i], run, time - (run.taps - 1) + i + tap);
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[i][c] += by[c] * rows[i][c];
            }
        }
    }
};

static __global__ void __launch_bounds__(THREADS) turn_weights(const __grid_constant__ convolution_run run) {
    const int64_t channels = (int64_t)run.heads * run.value_size, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < channels * run.taps) run.turned[i] = run.tensors.weight[i % channels * run.taps + i / channels];
}

static __global__ void __launch_bounds__(THREADS)
    long_convolution_forward(const __grid_constant__ convolution_run run) {
    long_lane lane;
    if (!lane.open(run) || lane.slot < 0) return;
    const convolution_span span = lane.span;
    const ln_cuda_tensor &to = run.tensors.output;
    for (int begin = span.position; begin < span.position + span.count; begin += TOKENS) {
        float sum[TOKENS][CHANNELS];
        lane.sums(sum, run, begin);
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            if (begin + i >= span.position + span.count) break;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
                if (run.silu) sum[i][c] *= sigmoid(sum[i][c]);
            if (run.output_float32)
                store_floats((float *)to.data + lane.place(to, begin + i), sum[i]);
            else
                store_bf16((__nv_bfloat16 *)to.data + lane.place(to, begin + i), sum[i]);
        }
    }
    /* Ascending, so that rows of a short sequence move within one state. */
    for (int row = 0; span.position == 0 && run.tensors.state_out && row < run.taps - 1; row++) {
        float last[CHANNELS];
        lane.value(last, run, span.length - (run.taps - 1) + row);
        store_floats(run.tensors.state_out + lane.state_at(run, lane.slot, row), last);
    }
}

/* ---- backward ---- */

static __device__ __forceinline__ float *slope_at(const convolution_run &run, const long_lane &lane, int time) {
    return run.slopes + (int64_t)(lane.span.token + time) * run.heads * run.value_size + lane.channel;
}

static __global__ void __launch_bounds__(THREADS) long_convolution_slopes(const __grid_constant__ convolution_run run) {
    long_lane lane;
    if (!lane.open(run)) return;
    const int end = lane.span.position + lane.span.count;
    const ln_cuda_tensor &given = run.gradients.output;
    for (int begin = lane.span.position; begin < end; begin += TOKENS) {
        float sum[TOKENS][CHANNELS];
        if (run.silu) lane.sums(sum, run, begin);
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            if (begin + i >= end) break;
            float slope[CHANNELS];
            widen(slope, *(const uint2 *)((const __nv_bfloat16 *)given.data + lane.place(given, begin + i)));
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                const float part = run.silu ? sigmoid(sum[i][c]) : 1;
                slope[c] *= run.silu ? part * (1 + sum[i][c] * (1 - part)) : 1;
            }
            store_floats(slope_at(run, lane, begin + i), slope);
        }
    }
}

static __device__ __forceinline__ void slope_of(float (&to)[CHANNELS], const convolution_run &run,
                                                const long_lane &lane, int time) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) to[c] = 0;
    if (time >= 0 && time < lane.span.length) load_floats(to, slope_at(run, lane, time));
}

/* What the values of TOKENS times from `time` on owe: weight[i] d[t + taps - 1 - i], and the last state. */
static __device__ __forceinline__ void owed(float (&sum)[TOKENS][CHANNELS], const convolution_run &run,
                                            const long_lane &lane, int time) {
    float rows[TOKENS][CHANNELS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        const int row = time + i - lane.span.length + run.taps - 1;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) sum[i][c] = 0;
        if (row >= 0 && row < run.taps - 1 && run.gradients.state_out)
            load_floats(sum[i], run.gradients.state_out + lane.state_at(run, lane.span.sequence, row));
        slope_of(rows[i], run, lane, time + i + run.taps);
    }
#pragma unroll 1
    for (int tap = 0; tap < run.taps; tap++) {
        float by[CHANNELS];
        lane.weight(by, run, tap);
#pragma unroll
        for (int i = TOKENS - 1; i >= 0; i--) {
            if (i)
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) rows[i][c] = rows[i - 1][c];
            else
                slope_of(rows[i], run, lane, time + run.taps - 1 - tap);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) sum[i][c] += by[c] * rows[i][c];
        }
    }
}

static __global__ void __launch_bounds__(THREADS) long_convolution_values(const __grid_constant__ convolution_run run) {
    long_lane lane;
    if (!lane.open(run)) return;
    const convolution_span span = lane.span;
    const ln_cuda_tensor &to = run.gradients.value;
    const int first = span.position ? span.position : 1 - run.taps, end = span.position + span.count;
    for (int begin = first; begin < end; begin += TOKENS) {
        float sum[TOKENS][CHANNELS];
        owed(sum, run, lane, begin);
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            const int time = begin + i;
            if (time >= end) break;
            if (time < 0 && run.gradients.state_in)
                store_floats(run.gradients.state_in + lane.state_at(run, span.sequence, time + run.taps - 1), sum[i]);
            if (time >= 0 && to.data) store_bf16((__nv_bfloat16 *)to.data + lane.place(to, time), sum[i]);
        }
    }
}

/* TAPS taps from TAPS blockIdx.y on; the first threads the bias too. */
static __global__ void __launch_bounds__(THREADS)
    long_convolution_weights(const __grid_constant__ convolution_run run) {
    long_lane lane;
    if (!lane.open(run)) return;
    const int first = blockIdx.y * TAPS, begin = lane.span.position - (run.taps - 1) + first;
    float sum[TAPS][CHANNELS] = {}, rows[TAPS][CHANNELS], bias[CHANNELS] = {};
#pragma unroll
    for (int j = 0; j < TAPS; j++) lane.value(rows[j], run, begin + j - 1);
#pragma unroll 1
    for (int i = 0; i < lane.span.count; i++) {
        float slope[CHANNELS];
        load_floats(slope, slope_at(run, lane, lane.span.position + i));
#pragma unroll
        for (int j = 0; j < TAPS; j++) {
            if (j + 1 < TAPS)
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) rows[j][c] = rows[j + 1][c];
            else
                lane.value(rows[j], run, begin + i + j);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) sum[j][c] += slope[c] * rows[j][c];
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) bias[c] += slope[c];
    }
    const int64_t channels = (int64_t)run.heads * run.value_size;
    float *to = run.partial + lane.index * (run.taps + 1) * channels + lane.channel;
#pragma unroll
    for (int j = 0; j < TAPS; j++)
        if (first + j < run.taps) store_floats(to + (first + j) * channels, sum[j]);
    if (first == 0) store_floats(to + run.taps * channels, bias);
}

static dim3 blocks_of(const convolution_run &run, int parts) {
    const int64_t threads = run.span_count * run.heads * (run.value_size / CHANNELS);
    return dim3((unsigned)((threads + THREADS - 1) / THREADS), (unsigned)parts);
}

static ln_cuda_code turn_start(const convolution_run *run, void *stream) {
    const int64_t weights = (int64_t)run->heads * run->value_size * run->taps;
    return launch(turn_weights, dim3((unsigned)((weights + THREADS - 1) / THREADS)), dim3(THREADS), 0, stream, *run);
}
static ln_cuda_code forward_start(const convolution_run *run, void *stream) {
    const ln_cuda_code code = turn_start(run, stream);
    return code ? code : launch(long_convolution_forward, blocks_of(*run, 1), dim3(THREADS), 0, stream, *run);
}
static ln_cuda_code backward_start(const convolution_run *run, void *stream) {
    const dim3 blocks = blocks_of(*run, 1), threads(THREADS);
    ln_cuda_code code = turn_start(run, stream);
    if (!code) code = launch(long_convolution_slopes, blocks, threads, 0, stream, *run);
    if (!code) code = launch(long_convolution_values, blocks, threads, 0, stream, *run);
    if (code || (!run->gradients.weight && !run->gradients.bias)) return code;
    code = launch(long_convolution_weights, blocks_of(*run, (run->taps + TAPS - 1) / TAPS), threads, 0, stream, *run);
    return code ? code : ln_cuda_convolution_add_spans(run, stream);
}

} // namespace ln

const ln_cuda_convolution_kernels ln_cuda_long_convolution = {ln::forward_start, ln::backward_start};
