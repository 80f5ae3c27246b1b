/* The selective scan, for compute capability 8.0 and newer. Bound by exponentials: each token and channel wants one for
 * every state, of which a multiprocessor makes 16 a cycle.
 *
 * A block takes some channels of a sequence through all of its tokens, LANES threads a channel with their part of the
 * states in registers. Tokens come in tiles: while one is worked on, the next is loaded into registers. Of a tile,
 * shared memory holds step and step value of every channel, keys and queries.
 * Outputs of LANES tokens are summed over the lanes together, each lane ending with one token's: LANES - 1 exchanges
 * for LANES sums. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/scan_rows.cuh"

namespace ln {

enum { SCAN_THREADS = 128, SCAN_TOKENS = 8 };

template <int STATES, int LANES, int OWN> struct scan_tile {
    static constexpr int slots = STATES * LANES, channels = SCAN_THREADS / LANES * OWN,
                         time = channels > 32 ? 32 : 1024 / channels;
    static constexpr int pieces = 2 * time * slots / 8, rounds = (pieces + SCAN_THREADS - 1) / SCAN_THREADS;

    /* In shared memory. */
    struct memory {
        float2 input[time][channels + 2]; /* step, step value */
        float read[2][time][slots];       /* keys, queries */
    };
    struct outputs {
        float at[time][channels + 4];
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

/* SCAN_TOKENS tokens from `t` on; those from `end` on leave the states as they are. */
template <int STATES, int LANES, int OWN, bool WHOLE>
static __device__ __forceinline__ void
scan_tokens(const typename scan_tile<STATES, LANES, OWN>::memory &__restrict__ memory,
            typename scan_tile<STATES, LANES, OWN>::outputs &__restrict__ outputs, int t, int end,
            const float (&rate)[OWN][STATES], float (&state)[OWN][STATES]) {
    const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES * OWN;
    float sum[OWN][SCAN_TOKENS / LANES][LANES] = {};
#pragma unroll
    for (int j = 0; j < SCAN_TOKENS; j++) {
        if (!WHOLE && t + j >= end) continue;
        float key[STATES], query[STATES], input[2 * OWN];
        load_states(input, &memory.input[t + j][channel].x);
        load_states(key, &memory.read[0][t + j][lane * STATES]);
        load_states(query, &memory.read[1][t + j][lane * STATES]);
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            float part[2] = {};
#pragma unroll
            for (int n = 0; n < STATES; n++) {
                state[own][n] =
                    exponential(input[2 * own] * rate[own][n]) * state[own][n] + input[2 * own + 1] * key[n];
                part[n % 2] += query[n] * state[own][n];
            }
            sum[own][j / LANES][j % LANES] = part[0] + part[1];
        }
    }
#pragma unroll
    for (int own = 0; own < OWN; own++)
#pragma unroll
        for (int j = 0; j < SCAN_TOKENS / LANES; j++)
            outputs.at[t + j * LANES + lane][channel + own] = add_lanes<LANES>(sum[own][j]);
}

/* Outputs of a tile from shared memory. */
template <int STATES, int LANES, int OWN>
static __device__ __forceinline__ void store_tile(const typename scan_tile<STATES, LANES, OWN>::outputs &outputs,
                                                  const scan_run &run, const scan_channels &at, int begin, int share,
                                                  const uint4 &value) {
    using tile = scan_tile<STATES, LANES, OWN>;
    const ln_cuda_scan_tensors &t = run.tensors;
    if (begin + tile::row(share) >= at.sequence.count || tile::column() >= at.count) return;
    const int64_t token = at.sequence.token + begin + tile::row(share);
    const int channel = at.first + tile::column();
    float output[8], x[8];
    widen(x, value);
    load_floats(output, &outputs.at[tile::row(share)][tile::column()]);
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

template <int STATES, int LANES, int OWN>
static __global__ void __launch_bounds__(SCAN_THREADS, STATES *LANES > 32 ? 3 : 4)
    scan_portable(const __grid_constant__ scan_run run) {
    using tile = scan_tile<STATES, LANES, OWN>;
    typename tile::memory &memory = *(typename tile::memory *)block_memory();
    typename tile::outputs &outputs = *(typename tile::outputs *)(&memory + 1);
    const scan_channels at = channels_of<tile::channels>(run, blockIdx.x);
    const int lane = threadIdx.x % LANES, channel = threadIdx.x / LANES * OWN;
    const bool inside = channel < at.count; /* channels come in eights */
    if (scan_slot(run, at.sequence.sequence) < 0) return;
    const int64_t place = ((int64_t)at.first + channel) * tile::slots + lane * STATES,
                  states = (int64_t)run.heads * run.value_size * tile::slots * scan_slot(run, at.sequence.sequence);
    float rate[OWN][STATES] = {}, state[OWN][STATES] = {};
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        if (!inside) continue;
        load_states(rate[own], run.tensors.rate + place + own * tile::slots);
        if (run.tensors.state_in) load_states(state[own], run.tensors.state_in + states + place + own * tile::slots);
#pragma unroll
        for (int n = 0; n < STATES; n++) rate[own][n] *= LOG2_E;
    }

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
        for (; t + SCAN_TOKENS <= end; t += SCAN_TOKENS)
            scan_tokens<STATES, LANES, OWN, true>(memory, outputs, t, end, rate, state);
        if (t < end) scan_tokens<STATES, LANES, OWN, false>(memory, outputs, t, end, rate, state);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < tile::shares; i++) store_tile<STATES, LANES, OWN>(outputs, run, at, begin, i, value[i]);
    }
    if (!inside || !run.tensors.state_out) return;
    float *to = run.tensors.state_out + states + place;
#pragma unroll
    for (int own = 0; own < OWN; own++)
#pragma unroll
        for (int n = 0; n < STATES; n += 2)
            *(float2 *)(to + own * tile::slots + n) = make_float2(state[own][n], state[own][n + 1]);
}

/* One token of each sequence: a thread four states. */
template <int SLOTS>
static __global__ void __launch_bounds__(SCAN_THREADS) scan_step(const __grid_constant__ scan_run run) {
    constexpr int lanes = SLOTS / 4;
    const ln_cuda_scan_tensors &t = run.tensors;
    const int64_t i = (int64_t)blockIdx.x * SCAN_THREADS + threadIdx.x, channels = (int64_t)run.heads * run.value_size;
    const bool there = i < run.sequences * channels * lanes;
    const int64_t within = there ? i % (channels * lanes) : 0;
    const ln_cuda_scan_sequence at = run.sequence[there ? i / (channels * lanes) : 0];
    const bool inside = there && scan_slot(run, at.sequence) >= 0;
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

template <int STATES, int LANES, int OWN> static ln_cuda_code scan_start(const void *of, void *stream) {
    const scan_run *run = (const scan_run *)of;
    using tile = scan_tile<STATES, LANES, OWN>;
    constexpr int channels = tile::channels;
    const int64_t blocks = (int64_t)run->sequences * run->key_heads * ((run->group + channels - 1) / channels);
    return launch(scan_portable<STATES, LANES, OWN>, dim3((unsigned)blocks), dim3(SCAN_THREADS),
                  (int)(sizeof(typename tile::memory) + sizeof(typename tile::outputs)), stream, *run);
}
template <int SLOTS> static ln_cuda_code step_start(const void *of, void *stream) {
    const scan_run *run = (const scan_run *)of;
    const int64_t threads = (int64_t)run->sequences * run->heads * run->value_size * (SLOTS / 4);
    return launch(scan_step<SLOTS>, dim3((unsigned)((threads + SCAN_THREADS - 1) / SCAN_THREADS)), dim3(SCAN_THREADS),
                  0, stream, *run);
}

} // namespace ln

using namespace ln;

#define LN_SCAN(states, lanes, own, name) \
    { name, states *lanes, lanes, own, scan_start<states, lanes, own> }

const ln_cuda_scan_kernel ln_cuda_portable_scans[] = {
    LN_SCAN(4, 4, 2, "16: 4 lanes, 2 channels"),
    LN_SCAN(2, 8, 2, "16: 8 lanes, 2 channels"),
    LN_SCAN(4, 4, 1, "16: 4 lanes"),
    LN_SCAN(2, 8, 1, "16: 8 lanes"),
    LN_SCAN(2, 4, 1, "8: 4 lanes"),
    LN_SCAN(4, 8, 1, "32: 8 lanes"),
    LN_SCAN(8, 8, 1, "64: 8 lanes"),
    {"8: step", 8, 0, 1, step_start<8>},
    {"16: step", 16, 0, 1, step_start<16>},
    {"32: step", 32, 0, 1, step_start<32>},
    {"64: step", 64, 0, 1, step_start<64>},
};
const int ln_cuda_portable_scan_count = sizeof ln_cuda_portable_scans / sizeof ln_cuda_portable_scans[0];
