/* What goes on around the chunks of linear attention: states of segments joined, and the gates of mLSTM.
 *
 *     slot[n] = 2^decay[n] slot[n-1] + slot[n],   m[t] = max(f[t] + m[t-1], i[t]).
 *
 * The second is a product of the maps x -> max(x + add, least), which compose to one of their kind: a block takes 1024
 * tokens of a head at once. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_rows.cuh"
#include "kernel/cuda/linear_table.h"

namespace ln {

enum { SCAN_THREADS = LN_CUDA_LINEAR_JOIN_THREADS, GATE_THREADS = 1024 };

static __global__ void __launch_bounds__(SCAN_THREADS)
    linear_scan(const __grid_constant__ linear_run run, ln_cuda_linear_decay decay, int rows,
                const ln_cuda_linear_chain *chains) {
    const ln_cuda_linear_chain chain = chains[blockIdx.x];
    const int i = (blockIdx.y * SCAN_THREADS + threadIdx.x) * 4;
    if (i >= rows * run.key_size) return;
    float4 sum = *(const float4 *)(slot_of(run, chain.first + 1) + i);
    const int value = i / run.key_size, key = i % run.key_size;
#pragma unroll 2
    for (int n = 2; n < chain.count; n++) {
        float *slot = slot_of(run, chain.first + n);
        const float *logs = slot_decay(run, chain.first + n);
        float4 own = *(const float4 *)(slot + i), factor;
        if (decay == LN_CUDA_LINEAR_KEY) {
            factor = *(const float4 *)(logs + key);
            factor = {exponential(factor.x), exponential(factor.y), exponential(factor.z), exponential(factor.w)};
        } else
            factor.x = factor.y = factor.z = factor.w = exponential(logs[decay == LN_CUDA_LINEAR_VALUE ? value : 0]);
        sum = {fmaf(factor.x, sum.x, own.x), fmaf(factor.y, sum.y, own.y), fmaf(factor.z, sum.z, own.z),
               fmaf(factor.w, sum.w, own.w)};
        *(float4 *)(slot + i) = sum;
    }
}

static __global__ void linear_sums_begin(const __grid_constant__ linear_run run) {
    const int64_t at = (int64_t)blockIdx.x * run.heads + blockIdx.y,
                  from = (slot_of_sequence(run.tensors.state_slots, blockIdx.x) * run.heads + blockIdx.y) *
                             run.state_floats +
                         run.key_size * run.value_size;
    ((float *)run.sums_in)[at * run.key_size + threadIdx.x] = run.tensors.state_in[from + threadIdx.x];
}

/* ---- mLSTM ---- */

struct maximum_map {
    float add, least;
};
/* First one, then the other. */
static __device__ __forceinline__ maximum_map after(maximum_map one, maximum_map other) {
    return {one.add + other.add, fmaxf(one.least + other.add, other.least)};
}
static __device__ __forceinline__ maximum_map map_before(maximum_map x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const maximum_map other = {__shfl_up_sync(~0u, x.add, step), __shfl_up_sync(~0u, x.least, step)};
        if (lane >= step) x = after(other, x);
    }
    return x;
}

struct gates_run {
    const int64_t *offsets;
    ln_cuda_gate input, decay;
    float *decay_out, *write_out, *maximum_out;
    const float *state_in;
    float *state_out;
    const int64_t *state_slots;
    int64_t state_floats;
    int heads;
};

static __global__ void __launch_bounds__(GATE_THREADS) mlstm_gates(const __grid_constant__ gates_run run) {
    maximum_map *of_warps = (maximum_map *)block_memory();
    float *maxima = (float *)(of_warps + 32); /* of the chunk's tokens, behind that of the token before */
    const int head = (int)blockIdx.x % run.heads, sequence = (int)blockIdx.x / run.heads, warp = threadIdx.x / 32,
              lane = threadIdx.x % 32;
    const int64_t first = run.offsets[sequence], end = run.offsets[sequence + 1];
    const int64_t place = (slot_of_sequence(run.state_slots, sequence) * run.heads + head + 1) * run.state_floats - 1;
    float before = run.state_in ? run.state_in[place] : 0;
    for (int64_t chunk = first; chunk < end; chunk += GATE_THREADS) {
        const int64_t token = chunk + threadIdx.x;
        const bool inside = token < end;
        const float decay = inside ? gate_value(run.decay, token, head) : 0;
        const float input = inside ? gate_value(run.input, token, head) : -CUDART_INF_F;
        maximum_map map = map_before({decay, input});
        __syncthreads();
        if (lane == 31) of_warps[warp] = map;
        __syncthreads();
        if (warp == 0) of_warps[lane] = map_before(of_warps[lane]);
        __syncthreads();
        if (warp > 0) map = after(of_warps[warp - 1], map);
        const float maximum = fmaxf(before + map.add, map.least);
        maxima[threadIdx.x + 1] = maximum;
        if (threadIdx.x == 0) maxima[0] = before;
        __syncthreads();
        if (inside) {
            const int64_t at = token * run.heads + head;
            const float old = decay + maxima[threadIdx.x];
            run.maximum_out[at] = maximum;
            run.decay_out[at] = old >= input ? 0 : old - input;
            run.write_out[at] = exponential(1.4426950408889634f * (input - maximum));
        }
        before = maxima[end - chunk < GATE_THREADS ? (int)(end - chunk) : (int)GATE_THREADS];
    }
    if (threadIdx.x == 0 && run.state_out) run.state_out[place] = before;
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_linear_scan(const linear_run *run, ln_cuda_linear_decay decay, const ln_cuda_linear_chain *chains,
                                 int count, void *stream) {
    const int rows = run->value_size + (run->normalise != LN_CUDA_SUM_NONE), most = rows * run->key_size;
    return launch(linear_scan, dim3((unsigned)count, (unsigned)((most / 4 + SCAN_THREADS - 1) / SCAN_THREADS)),
                  dim3(SCAN_THREADS), 0, stream, *run, decay, rows, chains);
}

ln_cuda_code ln_cuda_linear_sums_begin(const linear_run *run, int sequences, void *stream) {
    return launch(linear_sums_begin, dim3((unsigned)sequences, (unsigned)run->heads), dim3((unsigned)run->key_size), 0,
                  stream, *run);
}

ln_cuda_code ln_cuda_mlstm_gates(const ln_cuda_linear *linear, const int64_t *offsets, ln_cuda_gate input,
                                 ln_cuda_gate decay, float *decay_out, float *write_out, float *maximum_out,
                                 const float *state_in, float *state_out, const int64_t *state_slots, void *stream) {
    if (linear->normalise != LN_CUDA_SUM_MAXIMUM || linear->heads < 1 || linear->sequences < 1 ||
        linear->sequences > INT32_MAX / linear->heads || !offsets)
        return LN_CUDA_ARGUMENT;
    if (linear->offsets[linear->sequences] > 0 &&
        (!input.data || !decay.data || !decay_out || !write_out || !maximum_out))
        return LN_CUDA_ARGUMENT;
    const gates_run run = {offsets,           input,    decay,     decay_out,   write_out,
                           maximum_out,       state_in, state_out, state_slots, ln_cuda_linear_state_floats(linear),
                           (int)linear->heads};
    return launch(mlstm_gates, dim3((unsigned)(linear->sequences * linear->heads)), dim3(GATE_THREADS),
                  (int)(32 * sizeof(maximum_map) + (GATE_THREADS + 1) * sizeof(float)), stream, run);
}
