/* The selective scan backward, for compute capability 8.0 and newer: first forward, keeping the states before every 16
 * tokens; then from the last 16 tokens to the first. With A = e^(step rate) and d the gradient of the state h,
 *
 *     d[t] = query[t] slope[t] + A[t + 1] d[t + 1],   slope: the gradient of the output,
 *     value' = step sum_n key d + skip slope,      step' = sum_n (rate A h[t - 1] + value key) d,
 *     key' = sum_c step value d,   query' = sum_c slope h,   rate' = sum_t step A h[t - 1] d,   skip' = sum_t value
 * slope.
 *
 * A block takes 32 channels, eight lanes a channel, whose states of a chunk it makes again and holds in registers. Sums
 * over lanes and over a warp's channels exchange as many numbers as they leave. Keys and queries belong to all channels
 * of a group: blocks leave their sums apart, and another kernel adds them in the blocks' order: same bits every time.
 * States do not see one another: of more than 16 each 16 are a run of their own. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/scan_rows.cuh"

namespace ln {

using scan_kept = ln_cuda_scan_kept;

enum {
    BACK_LANES = 8,
    BACK_TIME = LN_CUDA_SCAN_CHUNK,
    BACK_CHANNELS = LN_CUDA_SCAN_BLOCK,
    BACK_THREADS = BACK_LANES * BACK_CHANNELS,
    BACK_WARPS = BACK_THREADS / 32,
    SLOTS = 16
};

struct back_memory {
    float4 input[BACK_TIME][BACK_CHANNELS + 1]; /* step, value, slope, what a step is to what was given */
    float2 sum[BACK_TIME][BACK_CHANNELS + 1];   /* over the states: key d; rate A h d */
    float key[BACK_TIME][SLOTS], query[BACK_TIME][SLOTS];
    float part[BACK_WARPS][BACK_TIME][2 * SLOTS];
};

static __device__ __forceinline__ void load_eight(float (&to)[8], const scan_run &run, const ln_cuda_tensor &of,
                                                  int64_t token, int channel) {
    widen(to, *(const uint4 *)((const __nv_bfloat16 *)of.data + scan_place(run, of, token, channel)));
}

/* A chunk of inputs: 128 threads eight channels of a token each, then 64 threads keys and queries. */
template <bool SLOPES>
static __device__ __forceinline__ void load_chunk(back_memory &memory, const scan_run &run, const scan_channels &at,
                                                  int begin) {
    const ln_cuda_scan_tensors &t = run.tensors;
    if (threadIdx.x < BACK_TIME * BACK_CHANNELS / 8) {
        const int row = threadIdx.x / (BACK_CHANNELS / 8), column = threadIdx.x % (BACK_CHANNELS / 8) * 8;
        float value[8] = {}, slope[8] = {}, step[8] = {}, to_given[8] = {};
        if (begin + row < at.sequence.count && column < at.count) {
            const int64_t token = (int64_t)at.sequence.token + begin + row;
            const int channel = at.first + column;
            load_eight(value, run, t.value, token, channel);
            if (SLOPES) load_eight(slope, run, run.gradients.output, token, channel);
            load_floats(step, (const float *)t.step.data + scan_place(run, t.step, token, channel));
#pragma unroll
            for (int c = 0; c < 8; c++) {
                to_given[c] = run.softplus ? sigmoid(step[c]) : 1;
                if (run.softplus) step[c] = softplus(step[c]);
            }
        }
#pragma unroll
        for (int c = 0; c < 8; c++)
            memory.input[row][column + c] = make_float4(step[c], value[c], slope[c], to_given[c]);
    } else if (threadIdx.x < BACK_TIME * BACK_CHANNELS / 8 + 4 * BACK_TIME) {
        const int piece = threadIdx.x - BACK_TIME * BACK_CHANNELS / 8, row = piece % (2 * BACK_TIME) / 2,
                  column = piece % 2 * 8, other = piece >= 2 * BACK_TIME;
        const ln_cuda_tensor &of = other ? t.query : t.key;
        float line[8] = {};
        if (begin + row < at.sequence.count)
            widen(line, *(const uint4 *)((const __nv_bfloat16 *)of.data +
                                         ((int64_t)at.sequence.token + begin + row) * of.token_stride +
                                         at.group * of.head_stride + run.slot + column));
        store_floats(&(other ? memory.query : memory.key)[row][column], line);
    }
}

/* A thread's two states of a channel. */
struct back_lane {
    int channel, first; /* of the block; of the states */
    bool inside;
    int64_t place, kept; /* of the states, of all channels; of the 16 that are kept */
    float2 rate;

    __device__ __forceinline__ back_lane(const scan_run &run, const scan_channels &at) {
        channel = threadIdx.x / BACK_LANES;
        first = threadIdx.x % BACK_LANES * 2;
        inside = channel < at.count;
        place = ((int64_t)at.first + channel) * run.slots + run.slot + first;
        kept = ((int64_t)at.first + channel) * SLOTS + first;
        rate = inside ? *(const float2 *)(run.tensors.rate + place) : make_float2(0, 0);
    }
};

/* Of a sequence's states; of the 16 of each channel that are kept. */
static __device__ __forceinline__ int64_t state_floats(const scan_run &run) {
    return (int64_t)run.heads * run.value_size * run.slots;
}
static __device__ __forceinline__ int64_t kept_floats(const scan_run &run) {
    return (int64_t)run.heads * run.value_size * SLOTS;
}

static __global__ void __launch_bounds__(BACK_THREADS)
    scan_keep(const __grid_constant__ scan_run run, const __grid_constant__ scan_kept kept) {
    back_memory &memory = *(back_memory *)block_memory();
    const scan_channels at = channels_of<BACK_CHANNELS>(run, blockIdx.x);
    const back_lane lane(run, at);
    const int64_t all = state_floats(run), each = kept_floats(run);
    float2 state = make_float2(0, 0);
    if (lane.inside && run.tensors.state_in)
        state = *(const float2 *)(run.tensors.state_in + scan_slot(run, at.sequence.sequence) * all + lane.place);
    for (int begin = 0, chunk = at.sequence.chunk; begin < at.sequence.count; begin += BACK_TIME, chunk++) {
        if (lane.inside) *(float2 *)(kept.states + chunk * each + lane.kept) = state;
        __syncthreads();
        load_chunk<false>(memory, run, at, begin);
        __syncthreads();
        const int left = at.sequence.count - begin < BACK_TIME ? at.sequence.count - begin : BACK_TIME;
#pragma unroll 4
        for (int t = 0; t < left; t++) {
            const float4 input = memory.input[t][lane.channel];
            const float2 key = *(const float2 *)&memory.key[t][lane.first];
            state.x = exponential(LOG2_E * input.x * lane.rate.x) * state.x + input.x * input.y * key.x;
            state.y = exponential(LOG2_E * input.x * lane.rate.y) * state.y + input.x * input.y * key.y;
        }
    }
}

/* Four sums over the four channels of a warp; a channel's lanes end with the sum of its number. */
static __device__ __forceinline__ float add_channels(const float (&sum)[4]) {
    const int number = threadIdx.x % 32 / BACK_LANES;
    float pair[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float mine = number & 2 ? sum[i + 2] : sum[i], other = number & 2 ? sum[i] : sum[i + 2];
        pair[i] = mine + __shfl_xor_sync(0xffffffffu, other, 16);
    }
    const float mine = number & 1 ? pair[1] : pair[0], other = number & 1 ? pair[0] : pair[1];
    return mine + __shfl_xor_sync(0xffffffffu, other, 8);
}

/* What a thread gathers on its way back. */
struct back_sums {
    float2 state, rate; /* gradients */
    float skip;
};

/* The tokens of a chunk, `left` of them; `before`: the states before it. */
static __device__ __forceinline__ void chunk_back(back_memory &memory, const back_lane &lane, back_sums &sums,
                                                  float2 before, int left) {
    const int warp = threadIdx.x / 32, own = threadIdx.x % BACK_LANES;
    float2 decayed[BACK_TIME], decay[BACK_TIME]; /* the states after a token, without what it adds */
#pragma unroll
    for (int t = 0; t < BACK_TIME; t++) {
        const float4 input = memory.input[t][lane.channel];
        const float2 key = *(const float2 *)&memory.key[t][lane.first];
        decay[t] = make_float2(1, 1);
        if (t < left)
            decay[t] =
                make_float2(exponential(LOG2_E * input.x * lane.rate.x), exponential(LOG2_E * input.x * lane.rate.y));
        decayed[t] = make_float2(decay[t].x * before.x, decay[t].y * before.y);
        before.x = decayed[t].x + input.x * input.y * key.x;
        before.y = decayed[t].y + input.x * input.y * key.y;
    }
#pragma unroll
    for (int first = BACK_TIME - 4; first >= 0; first -= 4) {
        float over_states[BACK_LANES]; /* key d of four tokens, then rate A h d */
#pragma unroll
        for (int i = 3; i >= 0; i--) {
            const int t = first + i;
            const float4 input = memory.input[t][lane.channel];
            const float2 key = *(const float2 *)&memory.key[t][lane.first],
                         query = *(const float2 *)&memory.query[t][lane.first];
            float2 &d = sums.state;
            d.x += query.x * input.z, d.y += query.y * input.z;
            const float2 old = make_float2(decayed[t].x * d.x, decayed[t].y * d.y);
            over_states[i] = key.x * d.x + key.y * d.y;
            over_states[i + 4] = t < left ? lane.rate.x * old.x + lane.rate.y * old.y : 0;
            sums.rate.x += input.x * old.x, sums.rate.y += input.x * old.y;
            sums.skip += input.y * input.z;
            const float write = input.x * input.y;
            const float over_channels[4] = {input.z * (decayed[t].x + write * key.x),
                                            input.z * (decayed[t].y + write * key.y), write * d.x, write * d.y};
            memory.part[warp][t][threadIdx.x % 32] = add_channels(over_channels);
            d.x *= decay[t].x, d.y *= decay[t].y;
        }
        const float sum = add_lanes<BACK_LANES>(over_states);
        float2 &to = memory.sum[first + own % 4][lane.channel];
        if (own < 4)
            to.x = sum;
        else
            to.y = sum;
    }
}

/* What the slots before these gave. */
static __device__ __forceinline__ void add_before(float (&value)[8], float (&step)[8], const scan_run &run,
                                                  int64_t token, int channel) {
    const ln_cuda_scan_gradients &to = run.gradients;
    float more[8];
    if (to.value.data) {
        load_eight(more, run, to.value, token, channel);
#pragma unroll
        for (int c = 0; c < 8; c++) value[c] += more[c];
    }
    if (!to.step.data) return;
    load_floats(more, (const float *)to.step.data + scan_place(run, to.step, token, channel));
#pragma unroll
    for (int c = 0; c < 8; c++) step[c] += more[c];
}

/* Gradients of values and steps of a chunk, and its sums for keys and queries. */
static __device__ __forceinline__ void store_chunk(const back_memory &memory, const scan_run &run,
                                                   const scan_kept &kept, const scan_channels &at, int begin) {
    const int row = threadIdx.x / (BACK_CHANNELS / 8), column = threadIdx.x % (BACK_CHANNELS / 8) * 8;
    const ln_cuda_scan_gradients &to = run.gradients;
    if (row < BACK_TIME && begin + row < at.sequence.count && column < at.count) {
        const int64_t token = (int64_t)at.sequence.token + begin + row;
        const int channel = at.first + column;
        float value[8], step[8];
#pragma unroll
        for (int c = 0; c < 8; c++) {
            const float4 input = memory.input[row][column + c];
            const float2 sum = memory.sum[row][column + c];
            value[c] = input.x * sum.x;
            if (run.slot == 0 && run.tensors.skip) value[c] += run.tensors.skip[channel + c] * input.z;
            step[c] = (sum.y + input.y * sum.x) * input.w;
        }
        if (run.slot) add_before(value, step, run, token, channel);
        if (to.value.data)
            store_bf16((__nv_bfloat16 *)to.value.data + scan_place(run, to.value, token, channel), value);
        if (to.step.data) store_floats((float *)to.step.data + scan_place(run, to.step, token, channel), step);
    }
    const int64_t block = (int64_t)at.group * kept.blocks + (at.first - at.group * run.group) / BACK_CHANNELS;
    for (int i = threadIdx.x; i < BACK_TIME * 2 * SLOTS; i += BACK_THREADS) {
        const int time = i / (2 * SLOTS), which = i % (2 * SLOTS);
        if (begin + time >= at.sequence.count) return;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < BACK_WARPS; warp++) sum += memory.part[warp][time][which];
        kept.shared[(block * kept.tokens + at.sequence.token + begin + time) * 2 * SLOTS + which] = sum;
    }
}

static __global__ void __launch_bounds__(BACK_THREADS, 2)
    scan_back(const __grid_constant__ scan_run run, const __grid_constant__ scan_kept kept) {
    back_memory &memory = *(back_memory *)block_memory();
    const scan_channels at = channels_of<BACK_CHANNELS>(run, blockIdx.x);
    const back_lane lane(run, at);
    const int64_t own = at.sequence.sequence * state_floats(run) + lane.place, each = kept_floats(run),
                  left_at = at.sequence.sequence * each + lane.kept;
    back_sums sums = {};
    if (lane.inside && run.gradients.state_out) sums.state = *(const float2 *)(run.gradients.state_out + own);
    const int chunks = (at.sequence.count + BACK_TIME - 1) / BACK_TIME;
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        const int begin = chunk * BACK_TIME, left = at.sequence.count - begin;
        float2 before = make_float2(0, 0);
        if (lane.inside)
            before = *(const float2 *)(kept.states + ((int64_t)at.sequence.chunk + chunk) * each + lane.kept);
        __syncthreads();
        load_chunk<true>(memory, run, at, begin);
        __syncthreads();
        chunk_back(memory, lane, sums, before, left);
        __syncthreads();
        store_chunk(memory, run, kept, at, begin);
    }
    if (!lane.inside) return;
    *(float2 *)(kept.rates + left_at) = sums.rate;
    if (lane.first == 0) kept.skips[left_at / SLOTS] = sums.skip;
    if (run.gradients.state_in) *(float2 *)(run.gradients.state_in + own) = sums.state;
}

/* A thread a key's or query's number of a token: the blocks' sums, in their order (see add_channels for theirs). */
static __global__ void __launch_bounds__(BACK_THREADS)
    scan_add_blocks(const __grid_constant__ scan_run run, const __grid_constant__ scan_kept kept) {
    const int64_t i = (int64_t)blockIdx.x * BACK_THREADS + threadIdx.x, token = i / (2 * SLOTS) / run.key_heads;
    const int which = (int)(i % (2 * SLOTS)), group = (int)(i / (2 * SLOTS) % run.key_heads);
    if (token >= kept.tokens) return;
    const ln_cuda_tensor &to = which < SLOTS ? run.gradients.query : run.gradients.key;
    float sum = 0;
#pragma unroll 4
    for (int block = 0; block < kept.blocks; block++)
        sum += kept.shared[(((int64_t)group * kept.blocks + block) * kept.tokens + token) * 2 * SLOTS + which];
    const int slot = run.slot + which % 8 * 2 + which / 8 % 2;
    if (to.data)
        ((__nv_bfloat16 *)to.data)[token * to.token_stride + group * to.head_stride + slot] = __float2bfloat16(sum);
}

/* A thread a rate: the sequences' sums. */
static __global__ void __launch_bounds__(BACK_THREADS)
    scan_add_sequences(const __grid_constant__ scan_run run, const __grid_constant__ scan_kept kept) {
    const int64_t i = (int64_t)blockIdx.x * BACK_THREADS + threadIdx.x, all = kept_floats(run);
    if (i >= all) return;
    float rate = 0, skip = 0;
    for (int64_t s = 0; s < run.sequences; s++) {
        rate += kept.rates[s * all + i];
        if (i % SLOTS == 0) skip += kept.skips[(s * all + i) / SLOTS];
    }
    if (run.gradients.rate) run.gradients.rate[i / SLOTS * run.slots + run.slot + i % SLOTS] = rate;
    if (run.gradients.skip && run.slot == 0 && i % SLOTS == 0) run.gradients.skip[i / SLOTS] = skip;
}

static unsigned blocks_of(int64_t threads) {
    return (unsigned)((threads + BACK_THREADS - 1) / BACK_THREADS);
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_scan_gradients_start(const ln_cuda_scan_run *run, const ln_cuda_scan_kept *kept, void *stream) {
    const dim3 grid((unsigned)(run->sequences * run->key_heads * kept->blocks)), block(BACK_THREADS);
    const int bytes = (int)sizeof(back_memory);
    ln_cuda_code code = launch(scan_keep, grid, block, bytes, stream, *run, *kept);
    if (!code) code = launch(scan_back, grid, block, bytes, stream, *run, *kept);
    if (!code && kept->tokens)
        code = launch(scan_add_blocks, dim3(blocks_of(kept->tokens * run->key_heads * 2 * SLOTS)), block, 0, stream,
                      *run, *kept);
    const int64_t rates = (int64_t)run->heads * run->value_size * SLOTS;
    return code ? code : launch(scan_add_sequences, dim3(blocks_of(rates)), block, 0, stream, *run, *kept);
}
