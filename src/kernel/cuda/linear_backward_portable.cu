/* What is left of a gradient of linear attention when its walks are done (linear_backward_cuda.h): heads that share a
 * key head are summed in their order, writes and skips are taken up, and the gradients of decays are summed backward
 * over each segment. All sums have a fixed order. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_backward_table.h"
#include "kernel/cuda/linear_rows.cuh"

namespace ln {

enum { ROW_THREADS = 128, DECAY_THREADS = 256 };

static __device__ __forceinline__ float sum_warp(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
static __device__ __forceinline__ float bf16_at(const ln_cuda_tensor &from, int64_t token, int head, int i) {
    return __bfloat162float(
        ((const __nv_bfloat16 *)from.data)[token * from.token_stride + head * from.head_stride + i]);
}
static __device__ __forceinline__ void gradient_set(const ln_cuda_linear_finish &f, const ln_cuda_tensor &to,
                                                    int64_t token, int head, int i, float x) {
    const int64_t at = token * to.token_stride + head * to.head_stride + i;
    if (f.output_float32)
        ((float *)to.data)[at] = x;
    else
        ((__nv_bfloat16 *)to.data)[at] = __float2bfloat16(x);
}

/* Head `n` of those that read key head `shared`. */
static __device__ __forceinline__ int head_of_group(const ln_cuda_linear_finish &f, int shared, int n) {
    return f.tiled ? n * f.key_heads + shared : shared * f.group + n;
}

static __global__ void __launch_bounds__(ROW_THREADS) add_rows(float *to, const float *from, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i < count) to[i] += from[i];
}

/* One warp a token and head. */
static __global__ void __launch_bounds__(ROW_THREADS)
    write_values(const __grid_constant__ ln_cuda_linear_finish f, __nv_bfloat16 *to) {
    const int64_t at = (int64_t)blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32, token = at / f.heads;
    const int head = (int)(at % f.heads);
    if (token >= f.tokens) return;
    const float write = gate_value(f.tensors.write, token, head);
    for (int channel = threadIdx.x % 32; channel < f.value_size; channel += 32)
        to[at * f.value_size + channel] = __float2bfloat16(write * bf16_at(f.tensors.value, token, head, channel));
}

/* One warp a token and key head. */
static __global__ void __launch_bounds__(ROW_THREADS) finish_rows(const __grid_constant__ ln_cuda_linear_finish f) {
    const int64_t token = (int64_t)blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
    const int shared = blockIdx.y, lane = threadIdx.x % 32;
    if (token >= f.tokens) return;
    float query[8] = {}, key[8] = {}; /* sums over the group's heads, of up to 256 channels */
    for (int n = 0; n < f.group; n++) {
        const int head = head_of_group(f, shared, n);
        const int64_t at = token * f.heads + head;
        const float write = f.tensors.write.data ? gate_value(f.tensors.write, token, head) : 1;
        float along = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int channel = i * 32 + lane;
            if (channel >= f.key_size) break;
            const float dq = f.query_rows[at * f.key_size + channel], dk = f.key_rows[at * f.key_size + channel];
            along += bf16_at(f.tensors.query, token, shared, channel) * dq -
                     bf16_at(f.tensors.key, token, shared, channel) * dk;
            query[i] += dq;
            key[i] += dk;
        }
        along = sum_warp(along);
        if (lane == 0) f.along[at] = along;
        const float skip = f.tensors.skip ? f.tensors.skip[head] : 0;
        float skipped = 0, written = 0;
        for (int channel = lane; channel < f.value_size; channel += 32) {
            const float dv = f.value_rows[at * f.value_size + channel],
                        out = bf16_at(f.gradients.output, token, head, channel),
                        value = bf16_at(f.tensors.value, token, head, channel);
            skipped += value * out;
            written += value * dv;
            if (f.gradients.value.data)
                gradient_set(f, f.gradients.value, token, head, channel, write * dv + (skip != 0 ? skip * out : 0));
        }
        written = sum_warp(written);
        skipped = sum_warp(skipped);
        if (lane == 0 && f.gradients.write) f.gradients.write[at] = (f.sums ? f.gradients.write[at] : 0) + written;
        if (lane == 0 && f.gradients.skip) f.skip[at] = skipped;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int channel = i * 32 + lane;
        if (channel >= f.key_size) break;
        if (f.gradients.query.data) gradient_set(f, f.gradients.query, token, shared, channel, query[i]);
        if (f.gradients.key.data) gradient_set(f, f.gradients.key, token, shared, channel, key[i]);
    }
}

/* Sums over the block, to all its threads. */
static __device__ __forceinline__ float sum_block(float x, float *parts) {
    x = sum_warp(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float all = 0;
    for (int i = 0; i < DECAY_THREADS / 32; i++) all += parts[i];
    return all;
}

/* Gradients of states as the walks of this segment took them up, so that what cancels is the same in both. */
static __device__ __forceinline__ float as_taken(float x) {
    return __bfloat162float(__float2bfloat16(x));
}
/* The states behind a task's segment, and their gradient but for the decay of the token behind it. A task's `from` is
 * the slot of the segment's beginning in time. */
static __device__ __forceinline__ const float *state_behind(const ln_cuda_linear_finish &f,
                                                            const ln_cuda_linear_task &task) {
    return f.before.data + (task.from + 1) * f.before.floats;
}
static __device__ __forceinline__ const float *gradient_behind(const ln_cuda_linear_finish &f,
                                                               const ln_cuda_linear_task &task) {
    const int chain = task.sequence * f.heads + task.head;
    const int segment = task.from - f.before.chains[chain][0], segments = f.before.chains[chain][1] - 1;
    return f.after.data + (f.after.chains[chain][0] + segments - 1 - segment) * f.after.floats;
}

static __global__ void __launch_bounds__(DECAY_THREADS)
    finish_token_decays(const __grid_constant__ ln_cuda_linear_finish f, const ln_cuda_linear_task *tasks) {
    float *parts = (float *)block_memory();
    const ln_cuda_linear_task task = tasks[blockIdx.x];
    if (task.tokens == 0) return;
    const int64_t behind = task.first + task.tokens;
    const float *state = state_behind(f, task), *gradient = gradient_behind(f, task);
    float dot = 0;
    for (int i = threadIdx.x; i < f.key_size * f.value_size; i += DECAY_THREADS)
        dot += state[i] * as_taken(gradient[i]);
    float later = sum_block(dot, parts) * f.scale;
    if (f.sums) {
        const int64_t at = (task.from + 1) * (int64_t)f.key_size;
        dot = 0;
        for (int i = threadIdx.x; i < f.key_size; i += DECAY_THREADS) dot += f.sums[at + i] * f.sums_back[at + i];
        later += sum_block(dot, parts);
    }
    if (behind < task.end && f.tensors.token_decay.data)
        later *= exponential(decay_log(gate_value(f.tensors.token_decay, behind, task.head)));
    for (int end = task.tokens; end > 0; end -= DECAY_THREADS) { /* the last token is thread 0's */
        const int token = end - 1 - (int)threadIdx.x;
        const bool inside = token >= 0;
        const int64_t at = (task.first + token) * (int64_t)f.heads + task.head;
        const float own = sum_before(inside ? f.along[at] : 0);
        __syncthreads();
        if (threadIdx.x % 32 == 31) parts[threadIdx.x / 32] = own;
        __syncthreads();
        float before = 0, all = 0;
        for (int i = 0; i < DECAY_THREADS / 32; i++) {
            if (i < (int)threadIdx.x / 32) before += parts[i];
            all += parts[i];
        }
        if (inside) f.gradients.token_decay[at] = later + before + own;
        later += all;
    }
}

/* A thread a channel. */
static __global__ void __launch_bounds__(DECAY_THREADS)
    finish_key_decays(const __grid_constant__ ln_cuda_linear_finish f, const ln_cuda_linear_task *tasks) {
    const ln_cuda_linear_task task = tasks[blockIdx.x];
    const int channel = threadIdx.x, shared = f.tiled ? task.head % f.key_heads : task.head / f.group;
    if (task.tokens == 0) return;
    const int64_t behind = task.first + task.tokens;
    const float *state = state_behind(f, task), *gradient = gradient_behind(f, task);
    const ln_cuda_tensor &decays = f.tensors.decay, &to = f.gradients.decay;
    float sum = 0;
    for (int v = 0; v < f.value_size; v++)
        sum += state[v * f.key_size + channel] * as_taken(gradient[v * f.key_size + channel]);
    sum *= f.scale;
    if (behind < task.end)
        sum *= exponential(decay_log(
            ((const float *)decays.data)[behind * decays.token_stride + task.head * decays.head_stride + channel]));
    for (int64_t token = behind - 1; token >= task.first; token--) {
        const int64_t at = (token * f.heads + task.head) * f.key_size + channel;
        sum += bf16_at(f.tensors.query, token, shared, channel) * f.query_rows[at] -
               bf16_at(f.tensors.key, token, shared, channel) * f.key_rows[at];
        ((float *)to.data)[token * to.token_stride + task.head * to.head_stride + channel] = sum;
    }
}

/* A warp a channel of values for the states' product, then a thread a channel. */
static __global__ void __launch_bounds__(DECAY_THREADS)
    finish_value_decays(const __grid_constant__ ln_cuda_linear_finish f, const ln_cuda_linear_task *tasks) {
    float *sums = (float *)block_memory(); /* [value_size] */
    const ln_cuda_linear_task task = tasks[blockIdx.x];
    if (task.tokens == 0) return;
    const int64_t behind = task.first + task.tokens;
    const float *state = state_behind(f, task), *gradient = gradient_behind(f, task);
    const ln_cuda_tensor &decays = f.tensors.decay, &to = f.gradients.decay;
    for (int v = threadIdx.x / 32; v < f.value_size; v += DECAY_THREADS / 32) {
        float dot = 0;
        for (int k = threadIdx.x % 32; k < f.key_size; k += 32)
            dot += state[v * f.key_size + k] * as_taken(gradient[v * f.key_size + k]);
        dot = sum_warp(dot);
        if (threadIdx.x % 32 == 0) sums[v] = dot * f.scale;
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < f.value_size; channel += DECAY_THREADS) {
        float sum = sums[channel];
        if (behind < task.end)
            sum *= exponential(decay_log(
                ((const float *)decays.data)[behind * decays.token_stride + task.head * decays.head_stride + channel]));
        for (int64_t token = behind - 1; token >= task.first; token--) {
            const int64_t at = (token * f.heads + task.head) * f.value_size + channel;
            sum += bf16_at(f.gradients.output, token, task.head, channel) * f.output_rows[at] -
                   bf16_at(f.tensors.value, token, task.head, channel) * f.value_rows[at];
            ((float *)to.data)[token * to.token_stride + task.head * to.head_stride + channel] = sum;
        }
    }
}

/* One block a sequence and head. Of a sequence's last state, [value][key] in its slot. */
static __global__ void __launch_bounds__(DECAY_THREADS) finish_ends(const __grid_constant__ ln_cuda_linear_finish f) {
    float *parts = (float *)block_memory();
    const int chain = blockIdx.x, sequence = chain / f.heads, numbers = f.key_size * f.value_size;
    const int64_t slot = f.before.chains[chain][0] + f.before.chains[chain][1] - 1;
    const float *state = f.before.data + slot * f.before.floats,
                *gradient =
                    f.gradients.state_out +
                    (slot_of_sequence(f.tensors.state_slots, sequence) * f.heads + chain % f.heads) * f.state_floats;
    float dot = 0;
    for (int i = threadIdx.x; i < numbers; i += DECAY_THREADS)
        dot += state[i % f.value_size * f.key_size + i / f.value_size] * gradient[i];
    for (int k = threadIdx.x; f.sums && k < f.key_size; k += DECAY_THREADS)
        dot += f.sums[slot * f.key_size + k] * gradient[numbers + k];
    dot = sum_block(dot, parts);
    if (threadIdx.x == 0) f.gradients.ends[chain] = dot;
}

static __global__ void __launch_bounds__(DECAY_THREADS) finish_skip(const __grid_constant__ ln_cuda_linear_finish f) {
    float *parts = (float *)block_memory(), sum = 0;
    for (int64_t token = threadIdx.x; token < f.tokens; token += DECAY_THREADS)
        sum += f.skip[token * f.heads + blockIdx.x];
    sum = sum_block(sum, parts);
    if (threadIdx.x == 0) f.gradients.skip[blockIdx.x] = sum;
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_linear_add_rows(float *to, const float *from, int64_t count, void *stream) {
    if (count == 0) return LN_CUDA_OK;
    return launch(add_rows, dim3((unsigned)((count + ROW_THREADS - 1) / ROW_THREADS)), dim3(ROW_THREADS), 0, stream, to,
                  from, count);
}

ln_cuda_code ln_cuda_linear_write_values(const ln_cuda_linear_finish *finish, void *to, void *stream) {
    constexpr int rows = ROW_THREADS / 32;
    if (finish->tokens == 0) return LN_CUDA_OK;
    return launch(write_values, dim3((unsigned)((finish->tokens * finish->heads + rows - 1) / rows)), dim3(ROW_THREADS),
                  0, stream, *finish, (__nv_bfloat16 *)to);
}

ln_cuda_code ln_cuda_linear_finish_rows(const ln_cuda_linear_finish *finish, void *stream) {
    constexpr int rows = ROW_THREADS / 32;
    ln_cuda_code code = LN_CUDA_OK;
    if (finish->tokens)
        code = launch(finish_rows, dim3((unsigned)((finish->tokens + rows - 1) / rows), (unsigned)finish->key_heads),
                      dim3(ROW_THREADS), 0, stream, *finish);
    if (!code && finish->gradients.skip)
        code = launch(finish_skip, dim3((unsigned)finish->heads), dim3(DECAY_THREADS), DECAY_THREADS / 32 * 4, stream,
                      *finish);
    return code;
}

ln_cuda_code ln_cuda_linear_finish_decays(const ln_cuda_linear_finish *finish, const ln_cuda_linear_task *tasks,
                                          int task_count, ln_cuda_linear_decay decay, void *stream) {
    if (decay == LN_CUDA_LINEAR_VALUE)
        return launch(finish_value_decays, dim3((unsigned)task_count), dim3(DECAY_THREADS), finish->value_size * 4,
                      stream, *finish, tasks);
    if (decay == LN_CUDA_LINEAR_KEY)
        return launch(finish_key_decays, dim3((unsigned)task_count), dim3((unsigned)finish->key_size), 0, stream,
                      *finish, tasks);
    return launch(finish_token_decays, dim3((unsigned)task_count), dim3(DECAY_THREADS), DECAY_THREADS / 32 * 4, stream,
                  *finish, tasks);
}

ln_cuda_code ln_cuda_linear_finish_ends(const ln_cuda_linear_finish *finish, void *stream) {
    if (!finish->gradients.state_out) return LN_CUDA_ARGUMENT;
    return launch(finish_ends, dim3((unsigned)(finish->sequences * finish->heads)), dim3(DECAY_THREADS),
                  DECAY_THREADS / 32 * 4, stream, *finish);
}
