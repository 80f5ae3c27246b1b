/* What all kernels of linear attention share: what they are given, the gates of a chunk of 64 tokens, and where the
 * state of a head lies outside of a block.
 *
 * In logarithms to the base 2 let g[t] be the decay of token t and c[t] the sum of those from the chunk's first token
 * to t. With the state S at the chunk's beginning
 *
 *     output[i] = scale (2^c[i] S^T q[i] + sum_{j<=i} (q[i] . k[j]) 2^(c[i]-c[j]) write[j] v[j]),
 *     S         = 2^c[last] S + sum_j 2^(c[last]-c[j]) write[j] k[j] v[j]^T
 *
 * (sections 3 of 2405.21060 and 4 of 2312.06635). Invariant: only sums over some time are raised to powers, so that
 * every factor is at most 1. A logarithm below -150 is -150, for which every factor is 0 in float32; -inf would give
 * NaN in differences.
 *
 * Reversed time keeps the rows of a chunk where they are; its sums run from the last row, in which row r has the decay
 * of token r + 1, and j >= i. */
#ifndef LN_KERNEL_CUDA_LINEAR_ROWS_CUH
#define LN_KERNEL_CUDA_LINEAR_ROWS_CUH

#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/linear_cuda.h"

namespace ln {

enum { CHUNK = 64, NORMALISED = 3 };   /* beside the kinds of decays: of tokens, with a normaliser */
static constexpr float STEEPEST = -40; /* of a channel's decay over a chunk that is taken apart */

/* What a kernel is given beside its tasks; the same for all of them. */
struct linear_run {
    ln_cuda_linear_tensors tensors;
    const ln_cuda_linear_task *tasks;
    float *slots; /* states between segments */
    int64_t slot_floats, state_floats;
    const float *sums_in; /* n of the states given, [sequence][head][key]: kernels may write over them; NULL: zeros */
    int normalise;        /* ln_cuda_linear_sum */
    float weight_least, weight_more; /* at least, where maxima do not say it; added to it */
    int heads, key_heads, group, tiled;
    int query_shared, key_shared, value_shared; /* with key_heads */
    int key_size, value_size;
    float scale;
    int reverse, output_float32;
    int64_t state_key_stride, state_value_stride; /* of states outside */
    float state_load, state_store;                /* factors */
};

static __device__ __forceinline__ int head_of(const linear_run &run, int head, int shared) {
    return !shared ? head : run.tiled ? head % run.key_heads : head / run.group;
}

/* The logarithm of a decay, to the base 2. NaN stays. */
static __device__ __forceinline__ float decay_log(float natural) {
    const float x = natural * 1.4426950408889634f;
    return x < -150.0f ? -150.0f : x;
}

/* How many tokens of chunk `index` there are. */
static __device__ __forceinline__ int chunk_rows(const ln_cuda_linear_task &task, int index) {
    return min((int)CHUNK, task.tokens - index * CHUNK);
}
static __device__ __forceinline__ int chunks_of(const ln_cuda_linear_task &task) {
    return (task.tokens + CHUNK - 1) / CHUNK;
}

static __device__ __forceinline__ float gate_value(const ln_cuda_gate &gate, int64_t token, int head) {
    return gate.data[token * gate.token_stride + head * gate.head_stride];
}
/* The decay of row `row` of a chunk whose first token is `token`; 0 after the chunk's last token. */
static __device__ __forceinline__ float token_decay(const linear_run &run, const ln_cuda_linear_task &task,
                                                    int64_t token, int row, int rows) {
    if (!run.tensors.token_decay.data || row >= rows) return 0;
    token += row + (run.reverse ? 1 : 0);
    return token < task.end ? decay_log(gate_value(run.tensors.token_decay, token, task.head)) : 0;
}

/* Sums over the lanes up to this one. */
static __device__ __forceinline__ float sum_before(float x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

/* The gates of a chunk's rows: sum is c; rise, scale 2^c; write, scale write; fade, 2^(c[last] - c) write; least,
 * e^-maximum. */
struct __align__(16) token_gates {
    float sum[CHUNK], rise[CHUNK], write[CHUNK], fade[CHUNK], least[CHUNK];
};
/* Those of two rows as they are given: a lane's, of the steps lane and lane + 32 of time. */
struct row_gates {
    float decay[2], write[2], maximum[2];
};
static __device__ __forceinline__ row_gates load_gates(const linear_run &run, const ln_cuda_linear_task &task,
                                                       int64_t token, int rows) {
    row_gates given;
    const bool writes = run.tensors.write.data, maxima = run.tensors.maximum.data;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int step = threadIdx.x % 32 + 32 * half, row = run.reverse ? CHUNK - 1 - step : step;
        given.decay[half] = token_decay(run, task, token, row, rows);
        given.write[half] = writes && row < rows ? gate_value(run.tensors.write, token + row, task.head) : 1;
        given.maximum[half] = maxima && row < rows ? gate_value(run.tensors.maximum, token + row, task.head) : 0;
    }
    return given;
}
/* By one warp. Returns c[last]. */
static __device__ __forceinline__ float fill_gates(const linear_run &run, token_gates &gates, const row_gates &given) {
    const int lane = threadIdx.x % 32;
    float sum[2] = {sum_before(given.decay[0]), sum_before(given.decay[1])};
    sum[1] += __shfl_sync(~0u, sum[0], 31);
    const float last = __shfl_sync(~0u, sum[1], 31);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int step = lane + 32 * half, row = run.reverse ? CHUNK - 1 - step : step;
        gates.sum[row] = sum[half];
        gates.rise[row] = run.scale * exponential(sum[half]);
        gates.write[row] = run.scale * given.write[half];
        gates.fade[row] = given.write[half] * exponential(last - sum[half]);
        gates.least[row] =
            run.tensors.maximum.data ? exponential(-1.4426950408889634f * given.maximum[half]) : run.weight_least;
    }
    return last;
}
static __device__ __forceinline__ float2 unpack(uint32_t both) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}
/* What sums are multiplied by; `least` of a kind ln_cuda_linear_sum without maxima is its weight_least. */
static __device__ __forceinline__ float normaliser(int kind, float dot, float least, float more) {
    return 1 / (fmaxf(kind == LN_CUDA_SUM_PLAIN ? dot : fabsf(dot), least) + more);
}
/* What is added to the weight; what it is at least where maxima do not say it. */
static __host__ __device__ __forceinline__ float weight_more(int kind) {
    return kind == LN_CUDA_SUM_PLAIN ? 1e-10f : kind == LN_CUDA_SUM_ONE ? 0 : 1e-6f;
}
static __host__ __device__ __forceinline__ float weight_least(int kind) {
    return kind == LN_CUDA_SUM_PLAIN ? -3.4e38f : 1;
}

/* ---- states outside of blocks ---- */

/* Slot n of a head is the state at the beginning of its segment n, [value][key], then the logarithm of the decay of the
 * segment before it: of one number, of the keys, or of the values. With a normaliser n is one row more. */
static __device__ __forceinline__ float *slot_of(const linear_run &run, int slot) {
    return run.slots + slot * run.slot_floats;
}
static __device__ __forceinline__ float *slot_decay(const linear_run &run, int slot) {
    return slot_of(run, slot) + (run.value_size + 1) * run.key_size;
}
static __device__ __forceinline__ int64_t slot_of_sequence(const int64_t *slots, int sequence) {
    return slots ? slots[sequence] : sequence;
}
static __device__ __forceinline__ int64_t state_of(const linear_run &run, const ln_cuda_linear_task &task) {
    return (slot_of_sequence(run.tensors.state_slots, task.sequence) * run.heads + task.head) * run.state_floats;
}
/* n of the state given; NULL: zeros. */
static __device__ __forceinline__ const float *sums_of(const linear_run &run, const ln_cuda_linear_task &task) {
    if (task.from >= 0) return slot_of(run, task.from) + run.value_size * run.key_size;
    if (task.from == LN_CUDA_STATE_NONE || !run.sums_in) return NULL;
    return run.sums_in + ((int64_t)task.sequence * run.heads + task.head) * run.key_size;
}

/* The state as accumulators: rows of 16 values (value, value + 8 are this thread's), columns are keys. */
template <int KEY>
static __device__ __forceinline__ void load_state(const linear_run &run, const ln_cuda_linear_task &task, int value,
                                                  float (&state)[KEY / 2]) {
    const int lane = threadIdx.x % 4;
    const bool start = task.from == LN_CUDA_STATE_GIVEN && run.tensors.state_in;
    const float *given = start ? run.tensors.state_in + state_of(run, task) : NULL;
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int key = 8 * j + 2 * lane, row = value + 8 * r;
            float2 pair = {0, 0};
            if (task.from >= 0)
                pair = *(const float2 *)(slot_of(run, task.from) + row * KEY + key);
            else if (given)
                pair = {given[key * run.state_key_stride + row * run.state_value_stride] * run.state_load,
                        given[(key + 1) * run.state_key_stride + row * run.state_value_stride] * run.state_load};
            state[4 * j + 2 * r] = pair.x;
            state[4 * j + 2 * r + 1] = pair.y;
        }
}
template <int KEY>
static __device__ __forceinline__ void store_slot(float *slot, int value, const float (&state)[KEY / 2]) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(float2 *)(slot + (value + 8 * r) * KEY + 8 * j + 2 * lane) = {state[4 * j + 2 * r],
                                                                            state[4 * j + 2 * r + 1]};
}
template <int KEY>
static __device__ __forceinline__ void store_state(const linear_run &run, const ln_cuda_linear_task &task, int value,
                                                   const float (&state)[KEY / 2]) {
    const int lane = threadIdx.x % 4;
    float *to = run.tensors.state_out + state_of(run, task);
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                to[(8 * j + 2 * lane + c) * run.state_key_stride + (value + 8 * r) * run.state_value_stride] =
                    state[4 * j + 2 * r + c] * run.state_store;
}

} // namespace ln

#endif
