/* Back through the normaliser and the gates of mLSTM (linear_backward_cuda.h).
 *
 *     weight = max(|dot|, e^-m) + 1e-6,   h = sums / weight,   m[t] = max(f[t] + m[t-1], i[t]),
 *     decay[t] = f[t] + m[t-1] - m[t],   write[t] = e^(i[t] - m[t]).
 *
 * Vectors are scanned as states are, by segments, a channel a thread: what each adds alone, then segment by segment of
 * a head, then token by token from the right beginning. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_backward_table.h"
#include "kernel/cuda/linear_rows.cuh"

namespace ln {

enum { EMIT_NOTHING, EMIT_DOT, EMIT_ROWS, EMIT_BOTH, UNDO_THREADS = 128, BACK_THREADS = 1024 };

struct vector_emit {
    ln_cuda_tensor query;
    ln_cuda_gate by;
    float scale;
    float *to, *dot;
};

static __device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
static __device__ __forceinline__ float scan_decay(const ln_cuda_vector_scan &s, const ln_cuda_linear_task &task,
                                                   int64_t token) {
    token += s.reverse ? 1 : 0;
    return s.decay.data && token < task.end ? decay_log(gate_value(s.decay, token, task.head)) : 0;
}

/* The tokens of a segment; EMIT_NOTHING: from zeros, else from the right beginning. */
template <int EMIT>
static __global__ void vector_segments(const __grid_constant__ ln_cuda_vector_scan s,
                                       const __grid_constant__ vector_emit emit) {
    float *parts = (float *)block_memory(); /* [tokens of a piece][warps] */
    enum { PIECE = 64 };
    const ln_cuda_linear_task task = s.tasks[blockIdx.x];
    const int channel = threadIdx.x, head = task.head, shared = s.tiled ? head % s.key_heads : head / s.group,
              warps = s.key_size / 32, begin = task.from + (s.reverse ? 1 : 0), end = task.from + (s.reverse ? 0 : 1);
    float y = EMIT == EMIT_NOTHING ? 0 : s.sums[(int64_t)begin * s.key_size + channel], log = 0;
    for (int piece = 0; piece < task.tokens; piece += PIECE) {
        const int count = min((int)PIECE, task.tokens - piece);
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            const int64_t token = task.first + (s.reverse ? task.tokens - 1 - piece - i : piece + i);
            const float decay = scan_decay(s, task, token);
            const __nv_bfloat16 *row =
                (const __nv_bfloat16 *)s.rows.data + token * s.rows.token_stride + shared * s.rows.head_stride;
            const float factor = s.factor.data ? gate_value(s.factor, token, head) : 1;
            y = fmaf(exponential(decay), y, s.scale * factor * __bfloat162float(row[channel]));
            log += decay;
            if (EMIT == EMIT_ROWS || EMIT == EMIT_BOTH) {
                const float by = emit.by.data ? gate_value(emit.by, token, head) : 1;
                emit.to[(token * s.heads + head) * s.key_size + channel] += emit.scale * by * y;
            }
            if (EMIT == EMIT_DOT || EMIT == EMIT_BOTH) {
                const __nv_bfloat16 *query = (const __nv_bfloat16 *)emit.query.data + token * emit.query.token_stride +
                                             shared * emit.query.head_stride;
                const float dot = sum_lanes(y * __bfloat162float(query[channel]));
                if (channel % 32 == 0) parts[i * warps + channel / 32] = dot;
            }
        }
        if (EMIT != EMIT_DOT && EMIT != EMIT_BOTH) continue;
        __syncthreads();
        if (channel < count) {
            float dot = 0;
            for (int w = 0; w < warps; w++) dot += parts[channel * warps + w];
            const int64_t token = task.first + (s.reverse ? task.tokens - 1 - piece - channel : piece + channel);
            emit.dot[token * s.heads + head] = emit.scale * dot;
        }
        __syncthreads();
    }
    if (EMIT != EMIT_NOTHING) return;
    s.sums[(int64_t)end * s.key_size + channel] = y;
    if (channel == 0) s.logs[end] = log;
}

/* Where start and end of a chain lie. */
static __device__ __forceinline__ int64_t chain_place(const ln_cuda_vector_scan &s, int chain) {
    return (slot_of_sequence(s.state_slots, chain / s.heads) * s.heads + chain % s.heads) * s.head_floats;
}

static __global__ void vector_join(const __grid_constant__ ln_cuda_vector_scan s) {
    const int channel = threadIdx.x, first = s.chains[blockIdx.x][0], count = s.chains[blockIdx.x][1];
    const int64_t place = chain_place(s, blockIdx.x) + channel;
    float y = s.start ? s.start[place] : 0;
    s.sums[(int64_t)(s.reverse ? first + count - 1 : first) * s.key_size + channel] = y;
    for (int n = 1; n < count; n++) {
        const int slot = s.reverse ? first + count - 1 - n : first + n;
        y = fmaf(exponential(s.logs[slot]), y, s.sums[(int64_t)slot * s.key_size + channel]);
        s.sums[(int64_t)slot * s.key_size + channel] = y;
    }
    if (s.end && !s.reverse) s.end[place] = y;
}
/* In reversed time the first token's decay stands before the end. */
static __global__ void vector_end(const __grid_constant__ ln_cuda_vector_scan s) {
    const ln_cuda_linear_task task = s.tasks[blockIdx.x];
    const int chain = task.sequence * s.heads + task.head;
    if (task.from != s.chains[chain][0]) return;
    const float decay = task.tokens ? scan_decay(s, task, (int64_t)task.first - 1) : 0;
    s.end[chain_place(s, chain) + threadIdx.x] =
        exponential(decay) * s.sums[(int64_t)task.from * s.key_size + threadIdx.x];
}

/* One warp a token and head. */
static __global__ void __launch_bounds__(UNDO_THREADS)
    undo_normaliser(const __grid_constant__ ln_cuda_linear_finish f, const float *dots, __nv_bfloat16 *weighted,
                    float *dot_gradient) {
    const int64_t at = (int64_t)blockIdx.x * (UNDO_THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (at >= f.tokens * f.heads) return;
    const int64_t token = at / f.heads;
    const int head = (int)(at % f.heads);
    const ln_cuda_tensor &given = f.gradients.output, &made = f.tensors.output;
    const __nv_bfloat16 *gradient =
        (const __nv_bfloat16 *)given.data + token * given.token_stride + head * given.head_stride;
    const int64_t row = token * made.token_stride + head * made.head_stride;
    float least = weight_least(f.normalise);
    if (f.normalise == LN_CUDA_SUM_MAXIMUM)
        least = exponential(-1.4426950408889634f * gate_value(f.tensors.maximum, token, head));
    const float dot = dots[at], factor = normaliser(f.normalise, dot, least, weight_more(f.normalise));
    float along = 0;
    for (int channel = lane; channel < f.value_size; channel += 32) {
        const float own = __bfloat162float(gradient[channel]),
                    out = f.output_float32 ? ((const float *)made.data)[row + channel]
                                           : __bfloat162float(((const __nv_bfloat16 *)made.data)[row + channel]);
        const __nv_bfloat16 rounded = __float2bfloat16(own * factor);
        along += __bfloat162float(rounded) * out; /* as the walks read it: what cancels is rounded alike */
        weighted[at * f.value_size + channel] = rounded;
    }
    along = sum_lanes(along);
    if (lane) return;
    const float sign = f.normalise == LN_CUDA_SUM_PLAIN ? 1 : fabsf(dot) >= least ? copysignf(1.0f, dot) : 0;
    dot_gradient[at] = -sign * along;
    if (f.gradients.maximum) f.gradients.maximum[at] = -1e-6f * along;
}

/* ---- gates ---- */

/* Gradients of maxima backward in time: g[t] = own[t] + g[t + 1] where the decay made m[t + 1], else own[t]. */
struct kept_map {
    float keep, add;
};
static __device__ __forceinline__ kept_map later(kept_map one, kept_map other) {
    return {one.keep * other.keep, fmaf(other.keep, one.add, other.add)};
}
static __device__ __forceinline__ kept_map maps_before(kept_map x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const kept_map other = {__shfl_up_sync(~0u, x.keep, step), __shfl_up_sync(~0u, x.add, step)};
        if (lane >= step) x = later(other, x);
    }
    return x;
}

struct gates_back {
    const int64_t *offsets;
    ln_cuda_gate input, decay;
    const float *write, *maximum, *state_in, *decay_gradient, *write_gradient, *maximum_gradient, *ends,
        *state_out_gradient;
    float *input_gradient, *decay_in_gradient, *state_in_gradient;
    const int64_t *state_slots;
    int64_t state_floats;
    int heads;
};

static __global__ void __launch_bounds__(BACK_THREADS) mlstm_gates_back(const __grid_constant__ gates_back run) {
    kept_map *of_warps = (kept_map *)block_memory();
    float *carried = (float *)(of_warps + 32);
    const int head = (int)blockIdx.x % run.heads, sequence = (int)blockIdx.x / run.heads, warp = threadIdx.x / 32,
              lane = threadIdx.x % 32;
    const int64_t first = run.offsets[sequence], end = run.offsets[sequence + 1];
    const int64_t place = (slot_of_sequence(run.state_slots, sequence) * run.heads + head + 1) * run.state_floats - 1;
    const float start = run.state_in ? run.state_in[place] : 0;
    /* Of the maximum behind the token: what comes from later. */
    float before = run.state_out_gradient ? run.state_out_gradient[place] : 0;
    if (run.ends && first < end) before -= run.ends[sequence * run.heads + head];
    for (int64_t chunk = end; chunk > first; chunk -= BACK_THREADS) {
        const int64_t token = chunk - 1 - threadIdx.x;
        const bool inside = token >= first;
        const int64_t at = inside ? token * run.heads + head : 0;
        float own = 0, through = 0, input = 0, wrote = 0;
        bool decayed = false;
        if (inside) {
            const float old = token > first ? run.maximum[at - run.heads] : start;
            input = gate_value(run.input, token, head);
            decayed = gate_value(run.decay, token, head) + old >= input;
            through = run.decay_gradient[at];
            wrote = run.write[at] * run.write_gradient[at];
            own = run.maximum_gradient[at];
        }
        /* From the gradient of m[t] that comes from later to that of m[t - 1]; the first token's map adds what its
         * decay, which is of differences of maxima, has of the maximum before. */
        kept_map map = {decayed ? 1.0f : 0, (decayed ? own : 0) + (token == first ? through : 0)};
        if (!inside) map = {1, 0};
        map = maps_before(map);
        __syncthreads();
        if (lane == 31) of_warps[warp] = map;
        __syncthreads();
        if (warp == 0) of_warps[lane] = maps_before(of_warps[lane]);
        __syncthreads();
        if (warp > 0) map = later(of_warps[warp - 1], map);
        carried[threadIdx.x + 1] = fmaf(map.keep, before, map.add);
        if (threadIdx.x == 0) carried[0] = before;
        __syncthreads();
        if (inside) {
            const float gradient = own + carried[threadIdx.x];
            run.decay_in_gradient[at] = through + (decayed ? gradient : 0);
            run.input_gradient[at] = wrote + (decayed ? 0 : gradient);
        }
        before = carried[BACK_THREADS];
    }
    if (threadIdx.x == 0 && run.state_in_gradient) run.state_in_gradient[place] = before;
}

} // namespace ln

using namespace ln;

static ln_cuda_code segments_start(const ln_cuda_vector_scan *scan, int emit, const vector_emit &how, void *stream) {
    const dim3 blocks((unsigned)scan->task_count), threads((unsigned)scan->key_size);
    const int bytes = 64 * scan->key_size / 32 * 4;
    if (emit == EMIT_DOT) return launch(vector_segments<EMIT_DOT>, blocks, threads, bytes, stream, *scan, how);
    if (emit == EMIT_BOTH) return launch(vector_segments<EMIT_BOTH>, blocks, threads, bytes, stream, *scan, how);
    if (emit == EMIT_ROWS) return launch(vector_segments<EMIT_ROWS>, blocks, threads, bytes, stream, *scan, how);
    return launch(vector_segments<EMIT_NOTHING>, blocks, threads, bytes, stream, *scan, how);
}

ln_cuda_code ln_cuda_vector_scan_run(const ln_cuda_vector_scan *scan, void *stream) {
    ln_cuda_code code = segments_start(scan, EMIT_NOTHING, {}, stream);
    if (!code)
        code = launch(vector_join, dim3((unsigned)scan->chain_count), dim3((unsigned)scan->key_size), 0, stream, *scan);
    if (!code && scan->end && scan->reverse)
        code = launch(vector_end, dim3((unsigned)scan->task_count), dim3((unsigned)scan->key_size), 0, stream, *scan);
    return code;
}

ln_cuda_code ln_cuda_vector_scan_dot(const ln_cuda_vector_scan *scan, const ln_cuda_tensor *query, float scale,
                                     float *dot, void *stream) {
    return segments_start(scan, EMIT_DOT, {*query, {}, scale, NULL, dot}, stream);
}

ln_cuda_code ln_cuda_vector_scan_add(const ln_cuda_vector_scan *scan, ln_cuda_gate by, float scale, float *to,
                                     const ln_cuda_tensor *other, float *dot, void *stream) {
    if (!dot) return segments_start(scan, EMIT_ROWS, {{}, by, scale, to, NULL}, stream);
    return segments_start(scan, EMIT_BOTH, {*other, by, scale, to, dot}, stream);
}

ln_cuda_code ln_cuda_linear_undo_normaliser(const ln_cuda_linear_finish *finish, const float *dot, void *weighted,
                                            float *dot_gradient, void *stream) {
    const int64_t rows = finish->tokens * finish->heads, of_block = UNDO_THREADS / 32;
    if (rows == 0) return LN_CUDA_OK;
    return launch(undo_normaliser, dim3((unsigned)((rows + of_block - 1) / of_block)), dim3(UNDO_THREADS), 0, stream,
                  *finish, dot, (__nv_bfloat16 *)weighted, dot_gradient);
}

ln_cuda_code ln_cuda_mlstm_gates_backward(const ln_cuda_linear *linear, const int64_t *offsets, ln_cuda_gate input,
                                          ln_cuda_gate decay, const float *write, const float *maximum,
                                          const float *state_in, const float *decay_gradient,
                                          const float *write_gradient, const float *maximum_gradient, const float *ends,
                                          const float *state_out_gradient, float *input_gradient,
                                          float *decay_in_gradient, float *state_in_gradient,
                                          const int64_t *state_slots, void *stream) {
    if (linear->normalise != LN_CUDA_SUM_MAXIMUM || linear->heads < 1 || linear->sequences < 1 ||
        linear->sequences > INT32_MAX / linear->heads || !offsets)
        return LN_CUDA_ARGUMENT;
    if (linear->offsets[linear->sequences] > 0 &&
        (!input.data || !decay.data || !write || !maximum || !decay_gradient || !write_gradient || !maximum_gradient ||
         !input_gradient || !decay_in_gradient))
        return LN_CUDA_ARGUMENT;
    const gates_back run = {offsets,
                            input,
                            decay,
                            write,
                            maximum,
                            state_in,
                            decay_gradient,
                            write_gradient,
                            maximum_gradient,
                            ends,
                            state_out_gradient,
                            input_gradient,
                            decay_in_gradient,
                            state_in_gradient,
                            state_slots,
                            ln_cuda_linear_state_floats(linear),
                            (int)linear->heads};
    return launch(mlstm_gates_back, dim3((unsigned)(linear->sequences * linear->heads)), dim3(BACK_THREADS),
                  (int)(32 * sizeof(kept_map) + (BACK_THREADS + 1) * sizeof(float)), stream, run);
}
