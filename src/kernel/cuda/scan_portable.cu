/* The selective scan, for compute capability 8.0 and newer. Bound by exponentials: each token and channel wants one for
 * every state, of which a multiprocessor makes 16 a cycle.
 *
 * A block takes some channels of a sequence through all of its tokens, LANES threads a channel with their part of the
 * states in registers. Tokens come in tiles: while one is worked on, the next is loaded into registers. Of a tile,
 * shared memory holds step and step value of every channel, in whose place the outputs go, and keys and queries.
 * Outputs of LANES tokens are summed over the lanes together, each lane ending with one token's: LANES - 1 exchanges
 * for LANES sums. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/scan_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using scan_run = ln_cuda_scan_run;

enum { SCAN_THREADS = 128, SCAN_TOKENS = 8 };
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

template <int STATES, int LANES> struct scan_tile {
    static constexpr int slots = STATES * LANES, channels = SCAN_THREADS / LANES,
                         time = channels > 32 ? 32 : 1024 / channels;
    static constexpr int pieces = 2 * time * slots / 8, rounds = (pieces + SCAN_THREADS - 1) / SCAN_THREADS;

    /* In shared memory. */
    struct memory {
        float2 input[time][channels + 2]; /* step log2(e), step value; then the output and no more */
        float read[2][time][slots];       /* keys, queries */
    };
    static constexpr int shares = time * channels / 8 / SCAN_THREADS;
    /* What a thread loads: shares of eight channels of a token, and pieces of eight keys or queries. */
    float step[shares][8];
    uint4 value[shares], read[rounds];

    /* Of a share. */
    static __device__ __forceinline__ int row(int i) { return (threadIdx.x + i * SCAN_THREADS) / (channels / 8); }
    static __device__ __forceinline__ int column() { return threadIdx.x % (channels / 8) * 8; }
    __device__ __forceinline__ void load(const scan_run &run, const scan_channels &at, int begin) {
        const ln_cuda_scan_tensors &t = run.tensors;
#pragma unroll
        for (int i = 0; i < shares; i++) {
            value[i] = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int c = 0; c < 8; c++) step[i][c] = 0;
            if (begin + row(i) >= at.sequence.count || column() >= at.count) continue;
            const int64_t token = at.sequence.token + begin + row(i);
            const int channel = at.first + column();
            value[i] = *(const uint4 *)((const __nv_bfloat16 *)t.value.data + scan_place(run, t.value, token, channel));
            load_floats(step[i], (const float *)t.step.data + scan_place(run, t.step, token, channel));
        }
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            const int piece = threadIdx.x + i * SCAN_THREADS, line = piece / (slots / 8), other = line >= time;
            const int64_t token = at.sequence.token + begin + line % time;
            read[i] = make_uint4(0, 0, 0, 0);
            if (piece >= pieces || begin + line % time >= at.sequence.count) continue;
            const ln_cuda_tensor &of = other ? t.query : t.key;
            read[i] = *(const uint4 *)((const __nv_bfloat16 *)of.data + token * of.token_stride +
                                       at.group * of.head_stride + piece % (slots / 8) * 8);
        }
    }
    __device__ __forceinline__ void put(memory &to, bool smooth) const {
        float x[8];
#pragma unroll
        for (int i = 0; i < shares; i++) {
            widen(x, value[i]);
#pragma unroll
            for (int c = 0; c < 8; c += 2) {
                const float one = smooth ? softplus(step[i][c]) : step[i][c],
                            two = smooth ? softplus(step[i][c + 1]) : step[i][c + 1];
                *(float4 *)&to.input[row(i)][column() + c] = make_float4(one, one * x[c], two, two * x[c + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            const int piece = threadIdx.x + i * SCAN_THREADS, line = piece / (slots / 8);
            if (piece >= pieces) continue;
            widen(x, read[i]);
            store_floats(&to.read[line / time][line % time][piece % (slots / 8) * 8], x);
        }
    }
};

template <int COUNT> static __device__ __forceinline__ void load_states(float (&to)[COUNT], const float *from) {
    if constexpr (COUNT % 4 == 0) {
        load_floats(to, from);
    } else {
        const float2 both = *(const float2 *)from;
        to[0] = both.x, to[1] = both.y;
    }
}

/* Sums of LANES tokens over the lanes of a channel; a lane ends with that of the token of its number. */
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

/* SCAN_TOKENS tokens from `t` on; those from `end` on leave the states as they are. */
template <int STATES, int LANES, bool WHOLE>
static __device__ __forceinline__ void scan_tokens(typename scan_tile<STATES, LANES>::memory &memory, int t, int end,
                                                   const float (&rate)[STATES], float (&state)[STATES]) {
    const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES;
#pragma unroll
    for (int first = 0; first < SCAN_TOKENS; first += LANES) {
        float sum[LANES];
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            float part[2] = {};
            const int token = t + first + j;
            if (WHOLE || token < end) {
                const float2 input = memory.input[token][channel];
                float key[STATES], query[STATES];
                load_states(key, &memory.read[0][token][lane * STATES]);
                load_states(query, &memory.read[1][token][lane * STATES]);
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    state[n] = exponential(input.x * rate[n]) * state[n] + input.y * key[n];
                    part[n % 2] += query[n] * state[n];
                }
            }
            sum[j] = part[0] + part[1];
        }
        /* All lanes of the channel have read what lay there: their sums are here. */
        const float output = add_lanes<LANES>(sum);
        memory.input[t + first + lane][channel].x = output;
    }
}

/* Outputs of a tile from shared memory. */
template <int STATES, int LANES>
static __device__ __forceinline__ void store_tile(const typename scan_tile<STATES, LANES>::memory &memory,
                                                  const scan_run &run, const scan_channels &at, int begin, int share,
                                                  const uint4 &value) {
    using tile = scan_tile<STATES, LANES>;
    const ln_cuda_scan_tensors &t = run.tensors;
    if (begin + tile::row(share) >= at.sequence.count || tile::column() >= at.count) return;
    const int64_t token = at.sequence.token + begin + tile::row(share);
    const int channel = at.first + tile::column();
    float output[8], x[8];
    widen(x, value);
#pragma unroll
    for (int c = 0; c < 8; c++) output[c] = memory.input[tile::row(share)][tile::column() + c].x;
    if (t.skip) {
        float skip[8];
        load_floats(skip, t.skip + channel);
#pragma unroll
        for (int c = 0; c < 8; c++) output[c] += skip[c] * x[c];
    }
    if (t.gate.data) {
        widen(x, *(const uint4 *)((const __nv_bfloat16 *)t.gate.data + scan_place(run, t.gate, token, channel)));
#pragma unroll
        for (int c = 0; c < 8; c++) output[c] *= x[c] * sigmoid(x[c]);
    }
    const int64_t place = scan_place(run, t.output, token, channel);
    if (run.output_float32)
        store_floats((float *)t.output.data + place, output);
    else
        store_bf16((__nv_bfloat16 *)t.output.data + place, output);
}

template <int STATES, int LANES>
static __global__ void __launch_bounds__(SCAN_THREADS, STATES *LANES > 32 ? 3 : 4)
    scan_portable(const __grid_constant__ scan_run run) {
    using tile = scan_tile<STATES, LANES>;
    __shared__ __align__(16) typename tile::memory memory;
    const scan_channels at = channels_of<tile::channels>(run, blockIdx.x);
    const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES;
    const bool inside = channel < at.count;
    const int64_t own = ((int64_t)at.first + channel) * tile::slots + lane * STATES,
                  states = (int64_t)run.heads * run.value_size * tile::slots * scan_slot(run, at.sequence.sequence);
    float rate[STATES] = {}, state[STATES] = {};
    if (inside) {
        load_states(rate, run.tensors.rate + own);
        if (run.tensors.state_in) load_states(state, run.tensors.state_in + states + own);
    }
#pragma unroll
    for (int n = 0; n < STATES; n++) rate[n] *= LOG2_E;

    tile next;
    next.load(run, at, 0);
    for (int begin = 0; begin < at.sequence.count; begin += tile::time) {
        uint4 value[tile::shares];
#pragma unroll
        for (int i = 0; i < tile::shares; i++) value[i] = next.value[i];
        __syncthreads();
        next.put(memory, run.softplus);
        __syncthreads();
        next.load(run, at, begin + tile::time);
        const int left = at.sequence.count - begin, end = left < tile::time ? left : tile::time;
        int t = 0;
        for (; t + SCAN_TOKENS <= end; t += SCAN_TOKENS) scan_tokens<STATES, LANES, true>(memory, t, end, rate, state);
        if (t < end) scan_tokens<STATES, LANES, false>(memory, t, end, rate, state);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < tile::shares; i++) store_tile<STATES, LANES>(memory, run, at, begin, i, value[i]);
    }
    if (!inside || !run.tensors.state_out) return;
#pragma unroll
    for (int n = 0; n < STATES; n += 2)
        *(float2 *)(run.tensors.state_out + states + own + n) = make_float2(state[n], state[n + 1]);
}

/* One token of each sequence: a thread four states. */
template <int SLOTS>
static __global__ void __launch_bounds__(SCAN_THREADS) scan_step(const __grid_constant__ scan_run run) {
    constexpr int lanes = SLOTS / 4;
    const ln_cuda_scan_tensors &t = run.tensors;
    const int64_t i = (int64_t)blockIdx.x * SCAN_THREADS + threadIdx.x, channels = (int64_t)run.heads * run.value_size;
    const bool inside = i < run.sequences * channels * lanes;
    const int64_t within = inside ? i % (channels * lanes) : 0;
    const ln_cuda_scan_sequence at = run.sequence[inside ? i / (channels * lanes) : 0];
    const int channel = (int)(within / lanes), group = channel / run.group, first = (int)(within % lanes) * 4;
    const int64_t own = within * 4, states = channels * SLOTS * scan_slot(run, at.sequence);
    const bool alive = inside && at.count > 0;
    float state[4] = {}, rate[4] = {}, key[4] = {}, query[4] = {}, step = 0, value = 0;
    if (inside && t.state_in) load_floats(state, t.state_in + states + own);
    if (alive) {
        load_floats(rate, t.rate + own);
        step = ((const float *)t.step.data)[scan_place(run, t.step, at.token, channel)];
        value = __bfloat162float(((const __nv_bfloat16 *)t.value.data)[scan_place(run, t.value, at.token, channel)]);
        widen(key, *(const uint2 *)((const __nv_bfloat16 *)t.key.data + at.token * t.key.token_stride +
                                    group * t.key.head_stride + first));
        widen(query, *(const uint2 *)((const __nv_bfloat16 *)t.query.data + at.token * t.query.token_stride +
                                      group * t.query.head_stride + first));
        if (run.softplus) step = softplus(step);
    }
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        if (alive) state[n] = exponential(LOG2_E * step * rate[n]) * state[n] + step * value * key[n];
        sum += query[n] * state[n];
    }
#pragma unroll
    for (int across = lanes / 2; across; across /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, across);
    if (inside && t.state_out) store_floats(t.state_out + states + own, state);
    if (!alive || first) return;
    if (t.skip) sum += t.skip[channel] * value;
    if (t.gate.data) {
        const float gate =
            __bfloat162float(((const __nv_bfloat16 *)t.gate.data)[scan_place(run, t.gate, at.token, channel)]);
        sum *= gate * sigmoid(gate);
    }
    const int64_t place = scan_place(run, t.output, at.token, channel);
    if (run.output_float32)
        ((float *)t.output.data)[place] = sum;
    else
        ((__nv_bfloat16 *)t.output.data)[place] = __float2bfloat16(sum);
}

template <int STATES, int LANES> static ln_cuda_code scan_start(const void *of, void *stream) {
    const scan_run *run = (const scan_run *)of;
    constexpr int channels = scan_tile<STATES, LANES>::channels;
    const int64_t blocks = (int64_t)run->sequences * run->key_heads * ((run->group + channels - 1) / channels);
    return launch(scan_portable<STATES, LANES>, dim3((unsigned)blocks), dim3(SCAN_THREADS), 0, stream, *run);
}
template <int SLOTS> static ln_cuda_code step_start(const void *of, void *stream) {
    const scan_run *run = (const scan_run *)of;
    const int64_t threads = (int64_t)run->sequences * run->heads * run->value_size * (SLOTS / 4);
    return launch(scan_step<SLOTS>, dim3((unsigned)((threads + SCAN_THREADS - 1) / SCAN_THREADS)), dim3(SCAN_THREADS),
                  0, stream, *run);
}

} // namespace ln

using namespace ln;

#define LN_SCAN(states, lanes, name) \
    { name, states *lanes, lanes, scan_start<states, lanes> }

const ln_cuda_scan_kernel ln_cuda_portable_scans[] = {
    LN_SCAN(8, 2, "16: 2 lanes"),        LN_SCAN(4, 4, "16: 4 lanes"),        LN_SCAN(2, 8, "16: 8 lanes"),
    LN_SCAN(2, 4, "8: 4 lanes"),         LN_SCAN(8, 4, "32: 4 lanes"),        LN_SCAN(4, 8, "32: 8 lanes"),
    LN_SCAN(8, 8, "64: 8 lanes"),        {"8: step", 8, 0, step_start<8>},    {"16: step", 16, 0, step_start<16>},
    {"32: step", 32, 0, step_start<32>}, {"64: step", 64, 0, step_start<64>},
};
const int ln_cuda_portable_scan_count = sizeof ln_cuda_portable_scans / sizeof ln_cuda_portable_scans[0];
