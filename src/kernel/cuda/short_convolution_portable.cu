/* The short convolution and its gradients, for compute capability 8.0 and newer. Bound by memory: a thread takes eight
 * (backward four) neighbouring channels over the tokens of a span, and keeps the last taps - 1 rows in registers, so
 * that values are read once, but for the first rows of a span, which the span before has read too.
 *
 * Backward, with s the sums and d = output_gradient times the activation's slope at s:
 *
 *     value_gradient[t] = sum_i weight[i] d[t + taps - 1 - i],   weight_gradient[i] = sum_t d[t] value[t - taps + 1 +
 * i].
 *
 * d is 0 behind the sequence, but the last values owe the state's gradient besides. A span makes d of the taps - 1
 * tokens behind it again. Sums over tokens are kept span by span and added in the spans' order: same bits every time.
 */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/short_convolution_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using convolution_run = ln_cuda_convolution_run;
using convolution_span = ln_cuda_convolution_span;

enum { CONVOLUTION_THREADS = 128, CONVOLUTION_TOKENS = 4 };

/* One thread's channels of one span. */
template <int TAPS, int WIDTH> struct lane_of_channels {
    convolution_span span;
    int head, column;
    int64_t index, channel; /* of the span, and the first channel */

    __device__ __forceinline__ bool open(const convolution_run &run) {
        const int groups = run.value_size / WIDTH * run.heads;
        const int64_t i = (int64_t)blockIdx.x * CONVOLUTION_THREADS + threadIdx.x;
        if (i >= run.span_count * groups) return false;
        const int group = (int)(i % groups);
        index = i / groups;
        span = run.spans[index];
        head = group / (run.value_size / WIDTH);
        column = group % (run.value_size / WIDTH) * WIDTH;
        channel = (int64_t)group * WIDTH;
        return true;
    }
    /* Where these channels of the state of a slot begin; its rows are value_size apart. */
    __device__ __forceinline__ int64_t state_at(const convolution_run &run, int64_t slot) const {
        return (slot * run.heads + head) * (TAPS - 1) * run.value_size + column;
    }
    __device__ __forceinline__ const __nv_bfloat16 *row(const ln_cuda_tensor &of, int time) const {
        return (const __nv_bfloat16 *)of.data + (int64_t)(span.token + time) * of.token_stride + head * of.head_stride +
               column;
    }
    /* Values of a time from 1 - taps on. */
    __device__ __forceinline__ void value(float (&to)[WIDTH], const convolution_run &run, int time) const {
        if (time >= 0) {
            if constexpr (WIDTH == 8)
                widen(to, *(const uint4 *)row(run.tensors.value, time));
            else
                widen(to, *(const uint2 *)row(run.tensors.value, time));
        } else if (run.tensors.state_in) {
            const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[span.sequence] : span.sequence;
            load_floats(to, run.tensors.state_in + state_at(run, slot) + (int64_t)(time + TAPS - 1) * run.value_size);
        } else {
#pragma unroll
            for (int c = 0; c < WIDTH; c++) to[c] = 0;
        }
    }
    __device__ __forceinline__ void weights(float (&to)[TAPS][WIDTH], const convolution_run &run) const {
        float lines[TAPS * WIDTH]; /* [channel][tap] */
        load_floats(lines, run.tensors.weight + channel * TAPS);
#pragma unroll
        for (int c = 0; c < WIDTH; c++)
#pragma unroll
            for (int i = 0; i < TAPS; i++) to[i][c] = lines[c * TAPS + i];
    }
    __device__ __forceinline__ void biases(float (&to)[WIDTH], const convolution_run &run) const {
#pragma unroll
        for (int c = 0; c < WIDTH; c++) to[c] = 0;
        if (run.tensors.bias) load_floats(to, run.tensors.bias + channel);
    }
};

/* The state after the sequence, by its first span: the only one that reads the state before. Ascending, so that rows
 * of a short sequence move within one state. */
template <int TAPS>
static __device__ __forceinline__ void keep_state(const convolution_run &run, const lane_of_channels<TAPS, 8> &lane) {
    const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[lane.span.sequence] : lane.span.sequence;
    float *to = run.tensors.state_out + lane.state_at(run, slot);
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) {
        float row[8];
        lane.value(row, run, lane.span.length - (TAPS - 1) + i);
        store_floats(to + (int64_t)i * run.value_size, row);
    }
}

template <int TAPS>
static __global__ void __launch_bounds__(CONVOLUTION_THREADS, TAPS <= 4 ? 4 : 2)
    short_convolution_forward(const __grid_constant__ convolution_run run) {
    constexpr int tokens = CONVOLUTION_TOKENS;
    lane_of_channels<TAPS, 8> lane;
    if (!lane.open(run)) return;
    const convolution_span span = lane.span;
    if (run.tensors.state_slots && run.tensors.state_slots[span.sequence] < 0) return;
    const __nv_bfloat16 *from = lane.row(run.tensors.value, span.position);
    const int64_t stride = run.tensors.value.token_stride;
    uint4 next[tokens] = {};
#pragma unroll
    for (int i = 0; i < tokens; i++)
        if (i < span.count) next[i] = *(const uint4 *)(from + i * stride);

    float weight[TAPS][8], bias[8], rows[TAPS - 1 + tokens][8];
    lane.weights(weight, run);
    lane.biases(bias, run);
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) lane.value(rows[i], run, span.position - (TAPS - 1) + i);
    if (span.position == 0 && run.tensors.state_out) keep_state<TAPS>(run, lane);

    const int64_t to_stride = run.tensors.output.token_stride;
    const int64_t to =
        (int64_t)(span.token + span.position) * to_stride + lane.head * run.tensors.output.head_stride + lane.column;
    for (int t = 0; t < span.count; t += tokens) {
#pragma unroll
        for (int i = 0; i < tokens; i++) {
            widen(rows[TAPS - 1 + i], next[i]);
            if (t + tokens + i < span.count) next[i] = *(const uint4 *)(from + (t + tokens + i) * stride);
        }
#pragma unroll
        for (int i = 0; i < tokens; i++) {
            if (t + i >= span.count) break;
            float sum[8];
#pragma unroll
            for (int c = 0; c < 8; c++) {
                sum[c] = bias[c];
#pragma unroll
                for (int j = 0; j < TAPS; j++) sum[c] += weight[j][c] * rows[i + j][c];
                if (run.silu) sum[c] *= sigmoid(sum[c]);
            }
            if (run.output_float32)
                store_floats((float *)run.tensors.output.data + to + (t + i) * to_stride, sum);
            else
                store_bf16((__nv_bfloat16 *)run.tensors.output.data + to + (t + i) * to_stride, sum);
        }
#pragma unroll
        for (int i = 0; i < TAPS - 1; i++)
#pragma unroll
            for (int c = 0; c < 8; c++) rows[i][c] = rows[i + tokens][c];
    }
}

/* What the values of the taps - 1 last times of a sequence, some of them in its first state, owe the last state. */
template <int TAPS>
static __device__ __forceinline__ void add_state_gradient(float (&to)[4], const convolution_run &run,
                                                          const lane_of_channels<TAPS, 4> &lane, int time) {
    const int row = time - lane.span.length + TAPS - 1;
    if (row < 0 || !run.gradients.state_out) return;
    float more[4];
    load_floats(more, run.gradients.state_out + lane.state_at(run, lane.span.sequence) + (int64_t)row * run.value_size);
#pragma unroll
    for (int c = 0; c < 4; c++) to[c] += more[c];
}

/* `to`: these channels of the gradients of the first value. */
template <int TAPS>
static __device__ __forceinline__ void store_gradient(const convolution_run &run, const lane_of_channels<TAPS, 4> &lane,
                                                      __nv_bfloat16 *to, int time, float (&gradient)[4]) {
    if (time >= lane.span.length - (TAPS - 1)) add_state_gradient<TAPS>(gradient, run, lane, time);
    if (time >= 0) {
        if (run.gradients.value.data) store_bf16(to + time * run.gradients.value.token_stride, gradient);
    } else if (run.gradients.state_in) {
        store_floats(run.gradients.state_in + lane.state_at(run, lane.span.sequence) +
                         (int64_t)(time + TAPS - 1) * run.value_size,
                     gradient);
    }
}

template <int TAPS>
static __device__ __forceinline__ float silu_slope(float sum, const float (&weight)[TAPS][4],
                                                   const float (&rows)[TAPS][4], int c) {
#pragma unroll
    for (int j = 0; j < TAPS; j++) sum += weight[j][c] * rows[j][c];
    const float part = sigmoid(sum);
    return part * (1 + sum * (1 - part));
}

template <int TAPS, bool SILU>
static __global__ void __launch_bounds__(CONVOLUTION_THREADS, TAPS < 4    ? 4
                                                              : TAPS == 4 ? 3
                                                                          : 2)
    short_convolution_backward(const __grid_constant__ convolution_run run) {
    constexpr int tokens = CONVOLUTION_TOKENS;
    lane_of_channels<TAPS, 4> lane;
    if (!lane.open(run)) return;
    const convolution_span span = lane.span;
    float weight[TAPS][4], bias[4], rows[TAPS][4], sums[TAPS][4] = {}, bias_sum[4] = {};
    float pending[TAPS][4] = {}; /* of the values of the last taps - 1 times and of now, as far as known */
    lane.weights(weight, run);
    lane.biases(bias, run);
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) lane.value(rows[i + 1], run, span.position - (TAPS - 1) + i);

    /* The first span owes the state before the sequence its gradient too, and begins taps - 1 times earlier. */
    const int first = span.position == 0 ? 1 - TAPS : span.position, end = span.position + span.count;
    const int last = end + TAPS - 1, read = last < span.length ? last : span.length;
    const int64_t value_stride = run.tensors.value.token_stride, slope_stride = run.gradients.output.token_stride;
    const __nv_bfloat16 *values = lane.row(run.tensors.value, 0), *gradients = lane.row(run.gradients.output, 0);
    __nv_bfloat16 *to_value = (__nv_bfloat16 *)lane.row(run.gradients.value, 0);
    uint2 value[tokens] = {}, slopes[tokens] = {};
#pragma unroll
    for (int i = 0; i < tokens; i++)
        if (span.position + i < read) {
            value[i] = *(const uint2 *)(values + (span.position + i) * value_stride);
            slopes[i] = *(const uint2 *)(gradients + (span.position + i) * slope_stride);
        }
    for (int begin = span.position; begin < last; begin += tokens)
#pragma unroll
        for (int i = 0; i < tokens; i++) {
            const int time = begin + i, done = time - (TAPS - 1), next = time + tokens;
            float slope[4];
#pragma unroll
            for (int j = 0; j < TAPS - 1; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) rows[j][c] = rows[j + 1][c], pending[j][c] = pending[j + 1][c];
#pragma unroll
            for (int c = 0; c < 4; c++) pending[TAPS - 1][c] = 0;
            widen(rows[TAPS - 1], value[i]);
            widen(slope, slopes[i]);
            if (next < read) {
                value[i] = *(const uint2 *)(values + next * value_stride);
                slopes[i] = *(const uint2 *)(gradients + next * slope_stride);
            }
            if (time < read) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    if (SILU) slope[c] *= silu_slope<TAPS>(bias[c], weight, rows, c);
#pragma unroll
                    for (int j = 0; j < TAPS; j++) pending[j][c] += weight[j][c] * slope[c];
                    if (time >= end) continue;
                    bias_sum[c] += slope[c];
#pragma unroll
                    for (int j = 0; j < TAPS; j++) sums[j][c] += slope[c] * rows[j][c];
                }
            }
            if (done >= first && done < end) store_gradient<TAPS>(run, lane, to_value, done, pending[0]);
        }
    const int64_t channels = (int64_t)run.heads * run.value_size;
    float *to_sums = run.partial + lane.index * (TAPS + 1) * channels + lane.channel;
#pragma unroll
    for (int i = 0; i < TAPS; i++) store_floats(to_sums + i * channels, sums[i]);
    store_floats(to_sums + TAPS * channels, bias_sum);
}

/* One thread a weight. */
static __global__ void __launch_bounds__(CONVOLUTION_THREADS) add_spans(const __grid_constant__ convolution_run run) {
    const int taps = run.taps;
    const int64_t channels = (int64_t)run.heads * run.value_size, all = channels * (taps + 1);
    const int64_t i = (int64_t)blockIdx.x * CONVOLUTION_THREADS + threadIdx.x;
    if (i >= all) return;
    const int64_t tap = i / channels, channel = i % channels;
    float *to = tap == taps            ? run.gradients.bias ? run.gradients.bias + channel : nullptr
                : run.gradients.weight ? run.gradients.weight + channel * taps + tap
                                       : nullptr;
    if (!to) return;
    float sum = 0;
#pragma unroll 8
    for (int64_t span = 0; span < run.span_count; span++) sum += run.partial[span * all + i];
    *to = sum;
}

static unsigned blocks_of(int64_t threads) {
    return (unsigned)((threads + CONVOLUTION_THREADS - 1) / CONVOLUTION_THREADS);
}

template <int TAPS> static ln_cuda_code forward_start(const ln_cuda_convolution_run *run, void *stream) {
    const int64_t threads = run->span_count * run->heads * (run->value_size / 8);
    return launch(short_convolution_forward<TAPS>, dim3(blocks_of(threads)), dim3(CONVOLUTION_THREADS), 0, stream,
                  *run);
}
template <int TAPS> static ln_cuda_code backward_start(const ln_cuda_convolution_run *run, void *stream) {
    const int64_t channels = (int64_t)run->heads * run->value_size, threads = run->span_count * (channels / 4);
    const ln_cuda_code code =
        launch(run->silu ? short_convolution_backward<TAPS, true> : short_convolution_backward<TAPS, false>,
               dim3(blocks_of(threads)), dim3(CONVOLUTION_THREADS), 0, stream, *run);
    if (code || (!run->gradients.weight && !run->gradients.bias)) return code;
    return ln_cuda_convolution_add_spans(run, stream);
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_convolution_add_spans(const ln_cuda_convolution_run *run, void *stream) {
    const int64_t sums = (int64_t)run->heads * run->value_size * (run->taps + 1);
    return launch(add_spans, dim3(blocks_of(sums)), dim3(CONVOLUTION_THREADS), 0, stream, *run);
}

#define LN_TAPS(taps) \
    { forward_start<taps>, backward_start<taps> }

const ln_cuda_convolution_kernels ln_cuda_portable_convolutions[] = {
    LN_TAPS(2), LN_TAPS(3), LN_TAPS(4), LN_TAPS(5), LN_TAPS(6), LN_TAPS(7), LN_TAPS(8),
};
