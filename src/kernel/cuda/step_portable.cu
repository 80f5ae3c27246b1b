/* One token of each sequence on a pool of states, for compute capability 8.0 and newer. Bound by memory: columns of a
 * state do not see one another, so a block takes a few of them, all rows, and holds them in registers between the one
 * read and the one write:
 *
 *     load S ; coefficients of the rows from query, key, decay ... ; sums over rows of query decay S and of read S ;
 *     y ; store S' = decay S + key y^T + write_key value^T ; output.
 *
 * The output needs no second pass over S': query^T S' = (query decay)^T S + (query . key) y + (query . write_key)
 * value. Factors of normalised queries and keys multiply sums, not rows, so that one meeting of the block is enough for
 * their lengths. Sums are added in a fixed order. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/step_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using step_run = ln_cuda_step_run;

static constexpr float LOG2_E = 1.442695041f;

/* What a block knows of one head of one sequence. */
struct step_place {
    int sequence, head, key_head;
    int64_t state; /* of the head, in floats; negative: the sequence takes no part */
};

static __device__ __forceinline__ step_place place_of(const step_run &run, int64_t block) {
    step_place at;
    const int64_t head = block / run.blocks_of_head;
    at.sequence = (int)(head / run.heads);
    at.head = (int)(head % run.heads);
    at.key_head = run.tiled_heads ? at.head % run.key_heads : at.head / (run.heads / run.key_heads);
    const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[at.sequence] : at.sequence;
    at.state = slot < 0 ? -1 : slot * run.slot_stride + at.head * run.head_stride;
    return at;
}

static __device__ __forceinline__ float bf16_at(const ln_cuda_tensor &of, int token, int head, int i) {
    return __bfloat162float(((const __nv_bfloat16 *)of.data)[token * of.token_stride + head * of.head_stride + i]);
}
static __device__ __forceinline__ float float_at(const ln_cuda_tensor &of, int token, int head, int i) {
    return ((const float *)of.data)[token * of.token_stride + head * of.head_stride + i];
}

/* Numbers of the whole head. */
struct step_factors {
    float decay;   /* where it is the head's */
    float gain;    /* of what is written: beta, the step size, the input gate */
    float maximum; /* of mlstm, after the token */
    float keep;    /* of its normaliser */
};

static __device__ __forceinline__ step_factors factors_of(const step_run &run, const step_place &at) {
    step_factors f = {0, 1, 0, 1};
    const ln_cuda_step_tensors &t = run.tensors;
    if (run.parts.decay == LN_CUDA_STEP_HEAD_DECAY && t.decay.data)
        f.decay = float_at(t.decay, at.sequence, at.head, 0);
    if (run.parts.strength == LN_CUDA_STEP_PLAIN) return f;
    const float strength = float_at(t.strength, at.sequence, at.head, 0);
    f.gain = strength;
    if (run.parts.strength == LN_CUDA_STEP_SIGMOID) f.gain = sigmoid(strength);
    if (run.parts.strength == LN_CUDA_STEP_SIZE) f.decay = strength * t.rate[at.head];
    if (run.parts.strength == LN_CUDA_STEP_GATE) {
        const int64_t side = at.state + (int64_t)run.key_size * (run.value_size + 1);
        const float old = f.decay + (t.state_in ? t.state_in[side] : 0);
        f.maximum = old >= strength ? old : strength;
        f.decay = old >= strength ? 0 : old - strength;
        f.gain = exponential(LOG2_E * (strength - f.maximum));
    }
    return f;
}

/* Sums over the rows that both sides of a step need. */
enum { QUERY_SQUARE, KEY_SQUARE, QUERY_KEY, QUERY_WRITE, STEP_SUMS };

template <int KEY, int COLUMNS, int WARPS> struct step_memory {
    float4 line[KEY];     /* decay, query decay, read, key of a row */
    float write_key[KEY]; /* of LOW_RANK */
    float sum[WARPS][STEP_SUMS];
    float part[WARPS][2][COLUMNS];
};

/* The rows' coefficients. mlstm: its normaliser too, which the block owns. */
template <int KIND, int KEY, int COLUMNS, int WARPS>
static __device__ __forceinline__ void make_lines(step_memory<KEY, COLUMNS, WARPS> &memory, const step_run &run,
                                                  const step_place &at, const step_factors &factors) {
    const ln_cuda_step_tensors &t = run.tensors;
    const bool stabilised = run.parts.strength == LN_CUDA_STEP_GATE;
    const float head_decay = exponential(LOG2_E * factors.decay);
    float sum[STEP_SUMS] = {};
    for (int row = threadIdx.x; row < KEY; row += 32 * WARPS) {
        float4 line = make_float4(0, 0, 0, 0);
        float write_key = 0;
        if (row < run.key_size) {
            const float query = bf16_at(t.query, at.sequence, at.key_head, row);
            const float key = bf16_at(t.key, at.sequence, at.key_head, row);
            line.x = head_decay;
            if (run.parts.decay == LN_CUDA_STEP_KEY_DECAY)
                line.x = exponential(LOG2_E * float_at(t.decay, at.sequence, at.head, row));
            line.y = query * line.x;
            line.z = key * line.x;
            line.w = key;
            sum[QUERY_SQUARE] += query * query;
            sum[KEY_SQUARE] += key * key;
            if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) {
                line.z = bf16_at(t.a, at.sequence, at.key_head, row);
                line.w = bf16_at(t.b, at.sequence, at.key_head, row);
                write_key = key;
                sum[QUERY_WRITE] += query * key;
            }
            if (stabilised) {
                const int64_t side = at.state + (int64_t)run.key_size * run.value_size + row;
                const float normaliser = line.x * (t.state_in ? t.state_in[side] : 0) + factors.gain * key;
                if (t.state_out) t.state_out[side] = normaliser;
                sum[QUERY_WRITE] += query * normaliser;
            }
            sum[QUERY_KEY] += query * line.w;
        }
        memory.line[row] = line;
        if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) memory.write_key[row] = write_key;
    }
#pragma unroll
    for (int i = 0; i < STEP_SUMS; i++) {
#pragma unroll
        for (int lane = 16; lane; lane /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lane);
        if (threadIdx.x % 32 == 0) memory.sum[threadIdx.x / 32][i] = sum[i];
    }
}

template <int WIDTH> static __device__ __forceinline__ void load_part(float (&to)[WIDTH], const float *from) {
    if constexpr (WIDTH == 4)
        load_floats(to, from);
    else
        to[0] = *from;
}
template <int WIDTH> static __device__ __forceinline__ void store_part(float *to, const float (&from)[WIDTH]) {
    if constexpr (WIDTH == 4)
        store_floats(to, from);
    else
        *to = from[0];
}

/* A thread's part of a state: rows first, first + pass, ... of WIDTH columns. */
template <int KEY, int COLUMNS, int WARPS, int WIDTH> struct step_part {
    static constexpr int column_lanes = COLUMNS / WIDTH, row_lanes = 32 / column_lanes, pass = WARPS * row_lanes,
                         rows = KEY / pass;
    float at[rows][WIDTH];

    static __device__ __forceinline__ int row_of(int i) { return i * pass + (int)threadIdx.x / column_lanes; }
    /* From where this thread's columns of the state begin; NULL: zeros. */
    __device__ __forceinline__ void load(const float *from, int key_size, int stride) {
#pragma unroll
        for (int i = 0; i < rows; i++) {
#pragma unroll
            for (int c = 0; c < WIDTH; c++) at[i][c] = 0;
            if (from && row_of(i) < key_size) load_part(at[i], from + (int64_t)row_of(i) * stride);
        }
    }
    __device__ __forceinline__ void store(float *to, int key_size, int stride) const {
#pragma unroll
        for (int i = 0; i < rows; i++)
            if (to && row_of(i) < key_size) store_part(to + (int64_t)row_of(i) * stride, at[i]);
    }
};

template <int KIND, int KEY, int COLUMNS, int WARPS, int WIDTH>
static __global__ void __launch_bounds__(32 * WARPS, 16 / WARPS) step_portable(const __grid_constant__ step_run run) {
    using part = step_part<KEY, COLUMNS, WARPS, WIDTH>;
    constexpr int column_lanes = part::column_lanes;
    __shared__ step_memory<KEY, COLUMNS, WARPS> memory;
    const ln_cuda_step_tensors &t = run.tensors;
    const step_place at = place_of(run, blockIdx.x);
    if (at.state < 0) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = lane % column_lanes * WIDTH;
    const float *from = t.state_in ? t.state_in + at.state : nullptr;
    float *to = t.state_out ? t.state_out + at.state : nullptr;
    const bool stabilised = KIND == LN_CUDA_STEP_OUTER && run.parts.strength == LN_CUDA_STEP_GATE;

    int tile = (int)(blockIdx.x % run.blocks_of_head), column = tile * COLUMNS + own;
    part state;
    state.load(from && column < run.value_size ? from + column : nullptr, run.key_size, run.value_size);
    const step_factors factors = factors_of(run, at);
    make_lines<KIND>(memory, run, at, factors);
    __syncthreads();

    float sum[STEP_SUMS] = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++)
#pragma unroll
        for (int i = 0; i < STEP_SUMS; i++) sum[i] += memory.sum[w][i];
    const float query_factor = run.scale * (run.normalise_keys ? rsqrtf(sum[QUERY_SQUARE] + 1e-6f) : 1);
    const float key_factor = run.normalise_keys ? rsqrtf(sum[KEY_SQUARE] + 1e-6f) : 1;
    float output_factor = query_factor;
    if (stabilised) {
        const float weight = fabsf(query_factor * sum[QUERY_WRITE]), least = exponential(-LOG2_E * factors.maximum);
        output_factor /= fmaxf(weight, least) + 1e-6f;
        if (threadIdx.x == 0 && to) to[(int64_t)run.key_size * (run.value_size + 1)] = factors.maximum;
    }
    const float skip = t.skip ? t.skip[at.head] : 0;

    for (;;) {
        const bool inside = column < run.value_size;
        float value[WIDTH], query_state[WIDTH] = {}, read_state[WIDTH] = {};
#pragma unroll
        for (int c = 0; c < WIDTH; c++) value[c] = inside ? bf16_at(t.value, at.sequence, at.head, column + c) : 0;
#pragma unroll
        for (int i = 0; i < part::rows; i++) {
            const float4 line = memory.line[part::row_of(i)];
#pragma unroll
            for (int c = 0; c < WIDTH; c++) {
                query_state[c] += line.y * state.at[i][c];
                if constexpr (KIND != LN_CUDA_STEP_OUTER) read_state[c] += line.z * state.at[i][c];
            }
        }
#pragma unroll
        for (int c = 0; c < WIDTH; c++)
#pragma unroll
            for (int across = column_lanes; across < 32; across *= 2) {
                query_state[c] += __shfl_xor_sync(0xffffffffu, query_state[c], across);
                if constexpr (KIND != LN_CUDA_STEP_OUTER)
                    read_state[c] += __shfl_xor_sync(0xffffffffu, read_state[c], across);
            }
        if (lane < column_lanes) {
            store_part(&memory.part[warp][0][own], query_state);
            store_part(&memory.part[warp][1][own], read_state);
        }
        __syncthreads();
        float y[WIDTH], output[WIDTH];
#pragma unroll
        for (int c = 0; c < WIDTH; c++) query_state[c] = read_state[c] = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float more[WIDTH];
            load_part(more, &memory.part[w][0][own]);
#pragma unroll
            for (int c = 0; c < WIDTH; c++) query_state[c] += more[c];
            if constexpr (KIND != LN_CUDA_STEP_OUTER) {
                load_part(more, &memory.part[w][1][own]);
#pragma unroll
                for (int c = 0; c < WIDTH; c++) read_state[c] += more[c];
            }
        }
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if constexpr (KIND == LN_CUDA_STEP_OUTER) y[c] = factors.gain * value[c];
            if constexpr (KIND == LN_CUDA_STEP_DELTA)
                y[c] = key_factor * factors.gain * (value[c] - key_factor * read_state[c]);
            if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) y[c] = read_state[c];
            output[c] = query_state[c] + sum[QUERY_KEY] * y[c];
            if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) {
                output[c] += sum[QUERY_WRITE] * key_factor * value[c];
                read_state[c] = key_factor * value[c];
            }
            output[c] = output_factor * output[c] + skip * value[c];
        }
#pragma unroll
        for (int i = 0; i < part::rows; i++) {
            const float4 line = memory.line[part::row_of(i)];
#pragma unroll
            for (int c = 0; c < WIDTH; c++) {
                state.at[i][c] = line.x * state.at[i][c] + line.w * y[c];
                if constexpr (KIND == LN_CUDA_STEP_LOW_RANK)
                    state.at[i][c] += memory.write_key[part::row_of(i)] * read_state[c];
            }
        }
        state.store(to && inside ? to + column : nullptr, run.key_size, run.value_size);
        if (threadIdx.x < column_lanes && inside) {
            const int64_t place = at.sequence * t.output.token_stride + at.head * t.output.head_stride + column;
            if (run.output_float32)
                store_part((float *)t.output.data + place, output);
            else if constexpr (WIDTH == 4)
                store_bf16((__nv_bfloat16 *)t.output.data + place, output);
            else
                ((__nv_bfloat16 *)t.output.data)[place] = __float2bfloat16(output[0]);
        }
        tile += run.blocks_of_head;
        if (tile >= run.tiles) return;
        column = tile * COLUMNS + own;
        state.load(from && column < run.value_size ? from + column : nullptr, run.key_size, run.value_size);
        __syncthreads(); /* all have read the parts */
    }
}

template <int KIND, int KEY, int COLUMNS, int WARPS, int WIDTH>
static ln_cuda_code step_start(const void *run, int64_t blocks, void *stream) {
    return launch(step_portable<KIND, KEY, COLUMNS, WARPS, WIDTH>, dim3((unsigned)blocks), dim3(32 * WARPS), 0, stream,
                  *(const step_run *)run);
}

} // namespace ln

using namespace ln;

#define LN_STEP(kind, key, columns, warps, width, name) \
    { name, kind, key, columns, 32 * warps, width, step_start<kind, key, columns, warps, width> }
#define LN_STEPS(kind, name)                                                                            \
    LN_STEP(kind, 128, 128, 8, 4, name " 128 x 128"), LN_STEP(kind, 64, 32, 4, 4, name " 64 x 32"),     \
        LN_STEP(kind, 128, 32, 4, 4, name " 128 x 32"), LN_STEP(kind, 256, 32, 8, 4, name " 256 x 32"), \
        LN_STEP(kind, 64, 32, 4, 1, name " 64 x 32 unaligned"),                                         \
        LN_STEP(kind, 128, 32, 4, 1, name " 128 x 32 unaligned"),                                       \
        LN_STEP(kind, 256, 32, 8, 1, name " 256 x 32 unaligned")

const ln_cuda_step_kernel ln_cuda_portable_steps[] = {
    LN_STEPS(LN_CUDA_STEP_OUTER, "outer"),
    LN_STEPS(LN_CUDA_STEP_DELTA, "delta"),
    LN_STEPS(LN_CUDA_STEP_LOW_RANK, "low rank"),
};
const int ln_cuda_portable_step_count = sizeof ln_cuda_portable_steps / sizeof ln_cuda_portable_steps[0];
