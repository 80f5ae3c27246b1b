/* Linear attention for compute capability 8.0 and newer: one block a task of 64 value columns, which walks the chunks
 * of its segment; a warp owns 16 of the columns and their state, turned, as accumulators S^T (16 x key_size):
 *
 *     weight = mask(query key^T) ; output^T = S^T query^T + value^T weight^T ; S^T = decay S^T + value^T key.
 *
 * So the state is the left operand of the first product and the sum of the last without ever leaving registers. Warp w
 * makes rows 16 w .. of the weights, which all warps read.
 *
 * Decays of channels, with c[i] of a channel as in linear_rows.cuh: where no channel decays by more than 2^-40 in a
 * chunk, which is the rule, 2^(c[i] - c[j]) is 2^c[i] 2^-c[j], and
 *
 *     of keys:   query 2^c, key 2^-c in place of query and key, S = 2^c[last] (S + key 2^-c value^T) ;
 *     of values: value 2^-c in place of value, output 2^c, likewise S,
 *
 * exact but for rounding. Other chunks take the differences one by one, with key 2^(c[last] - c), value likewise. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_rows.cuh"
#include "kernel/cuda/linear_table.h"

namespace ln {

enum { COLUMNS = 64, THREADS = 128 };

template <int KEY, int KIND> struct portable_tile {
    static constexpr bool keys = KIND == LN_CUDA_LINEAR_KEY, values = KIND == LN_CUDA_LINEAR_VALUE,
                          tokens = !keys && !values, normalised = KIND == NORMALISED;
    static constexpr int key_row = KEY + 8, value_row = COLUMNS + 8, channels = keys ? KEY : COLUMNS;
    static constexpr int key_at = CHUNK * key_row * 2, value_at = 2 * key_at,
                         weight_at = value_at + CHUNK * value_row * 2, gates_at = weight_at + CHUNK * value_row * 2,
                         last_at = gates_at + (int)sizeof(token_gates),
                         sums_at = last_at + 4 * (keys || values ? 2 * channels : 4);
    /* Sums of the chunk's channels, then outputs of the chunk; of the normaliser: n, its part of the weights. */
    static constexpr int more = normalised ? 4 * (KEY + CHUNK)
                                : keys     ? 4 * CHUNK * channels
                                : values   ? 4 * CHUNK * (2 * channels + 1)
                                           : 0;
    static constexpr int bytes = sums_at + more;
};

template <int SIZE>
static __device__ __forceinline__ void copy_rows(__nv_bfloat16 *to, const ln_cuda_tensor &from, int head, int64_t token,
                                                 int column, int rows) {
    const __nv_bfloat16 *base =
        (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride + column;
#pragma unroll 4
    for (int i = threadIdx.x; i < CHUNK * SIZE / 8; i += THREADS) {
        const int row = i / (SIZE / 8), at = i % (SIZE / 8) * 8;
        const bool inside = row < rows;
        copy_piece(to + row * (SIZE + 8) + at, base + (inside ? row * from.token_stride + at : 0), inside);
    }
}
template <int KEY, int KIND, bool LAST> struct portable_block {
    typedef portable_tile<KEY, KIND> tile;
    const linear_run &run;
    const ln_cuda_linear_task &task;
    __nv_bfloat16 *query, *key, *value, *weight;
    token_gates *gates;
    float *last, *sums, *inner;
    float state[KEY / 2];
    int lane, warp, rows;
    int64_t token;
    float total; /* of the task's decays, of tokens; those of channels lie behind `last` */
    bool gentle; /* no channel decays by more than STEEPEST in this chunk */

    __device__ __forceinline__ int row_of(int step) { return run.reverse ? CHUNK - 1 - step : step; }
    __device__ __forceinline__ bool sees(int i, int j) { return run.reverse ? j >= i : j <= i; }

    /* ---- gates ---- */

    __device__ __forceinline__ void open_gates() {
        if (!tile::tokens) {
            for (int channel = threadIdx.x; channel < tile::channels; channel += THREADS)
                last[tile::channels + channel] = 0;
            if (threadIdx.x < CHUNK) gates->rise[threadIdx.x] = gates->write[threadIdx.x] = run.scale;
        }
    }
    __device__ __forceinline__ float channel_decay(int row, int channel) {
        const int64_t at = token + row + (run.reverse ? 1 : 0);
        if (row >= rows || at >= task.end) return 0;
        const ln_cuda_tensor &from = run.tensors.decay;
        return decay_log(((const float *)from.data)[at * from.token_stride + task.head * from.head_stride +
                                                    (tile::values ? task.column : 0) + channel]);
    }
    /* Sums of all channels; whether none is steep. */
    __device__ __forceinline__ void sum_channels() {
        bool flat = true;
        for (int channel = threadIdx.x; channel < tile::channels; channel += THREADS) {
            float sum = 0;
#pragma unroll 4
            for (int step = 0; step < CHUNK; step++) {
                sum += channel_decay(row_of(step), channel);
                sums[row_of(step) * tile::channels + channel] = sum;
            }
            last[channel] = sum;
            last[tile::channels + channel] += sum;
            flat = flat && sum > STEEPEST;
        }
        gentle = __syncthreads_and(flat);
    }
    /* Multiplies a tile by 2^(c factor + last): of queries 1, of keys and values -1 and, where not gentle, with last.
     */
    __device__ __forceinline__ void raise(__nv_bfloat16 *rows_of, int row_stride, float factor, bool with_last) {
#pragma unroll 1
        for (int i = threadIdx.x; i < CHUNK * tile::channels; i += THREADS) {
            const int row = i / tile::channels, channel = i % tile::channels;
            __nv_bfloat16 &x = rows_of[row * row_stride + channel];
            const float by = factor * sums[i] + (with_last ? last[channel] : 0);
            x = __float2bfloat16(__bfloat162float(x) * exponential(by));
        }
    }
    /* The state's decay over the chunk, of channels. */
    __device__ __forceinline__ void fade_channels() {
#pragma unroll
        for (int j = 0; j < KEY / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int channel = tile::keys ? 8 * j + 2 * (lane % 4) + i % 2 : 16 * warp + lane / 4 + i / 2 * 8;
                state[4 * j + i] *= exponential(last[channel]);
            }
    }

    /* ---- weights ---- */

    __device__ __forceinline__ void scores(float (&score)[CHUNK / 2]) {
        const __nv_bfloat16 *left_part = query + (warp * 16 + lane % 16) * tile::key_row + lane / 16 * 8;
        const __nv_bfloat16 *right_part = key + (lane / 16 * 8 + lane % 8) * tile::key_row + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < KEY; k += 16) {
            uint32_t left[4];
            load_matrices<false>(left, left_part + k);
#pragma unroll
            for (int j = 0; j < CHUNK; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, right_part + j * tile::key_row + k);
                add_product(score + j / 2, left, right);
                add_product(score + j / 2 + 4, left, right + 2);
            }
        }
    }
    /* The same with the decays of keys, one by one. */
    __device__ __forceinline__ void steep_scores() {
#pragma unroll 1
        for (int i = threadIdx.x; i < CHUNK * CHUNK; i += THREADS) {
            const int row = i / CHUNK, column = i % CHUNK;
            float sum = 0;
            if (sees(row, column))
                for (int k = 0; k < KEY; k++)
                    sum += __bfloat162float(query[row * tile::key_row + k]) *
                           __bfloat162float(key[column * tile::key_row + k]) *
                           exponential(sums[row * KEY + k] - sums[column * KEY + k]);
            weight[row * tile::value_row + column] = __float2bfloat16(sum * run.scale);
        }
    }
    __device__ __forceinline__ void weights() {
        float score[CHUNK / 2] = {}, dot[2] = {0, 0};
        scores(score);
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = warp * 16 + lane / 4 + 8 * r, column = 8 * j + 2 * (lane % 4);
                float *x = score + 4 * j + 2 * r;
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    if (tile::tokens) x[c] *= exponential(gates->sum[row] - gates->sum[column + c]);
                    x[c] = sees(row, column + c) ? x[c] * gates->write[column + c] : 0;
                    dot[r] += x[c];
                }
                *(uint32_t *)(weight + row * tile::value_row + column) = pack(x[0], x[1]);
            }
        }
        if (tile::normalised)
            for (int r = 0; r < 2; r++) {
                dot[r] += __shfl_xor_sync(~0u, dot[r], 1);
                dot[r] += __shfl_xor_sync(~0u, dot[r], 2);
                if (lane % 4 == 0) inner[warp * 16 + lane / 4 + 8 * r] = dot[r];
            }
    }

    /* ---- decays of values, one by one: the chunk's own part of the outputs ---- */

    __device__ __forceinline__ void steep_values() {
#pragma unroll 1
        for (int i = threadIdx.x; i < CHUNK * COLUMNS; i += THREADS) {
            const int row = i / COLUMNS, column = i % COLUMNS;
            float sum = 0;
            for (int j = 0; j < CHUNK; j++)
                if (sees(row, j))
                    sum += __bfloat162float(weight[row * tile::value_row + j]) *
                           __bfloat162float(value[j * tile::value_row + column]) *
                           exponential(sums[row * COLUMNS + column] - sums[j * COLUMNS + column]);
            inner[row * (COLUMNS + 1) + column] = sum;
        }
    }

    /* ---- the normaliser ---- */

    /* inner[i] becomes 1 / (max(|scale n . q|, e^-maximum) + 1e-6). */
    __device__ __forceinline__ void normalise() {
        const float *n = sums;
#pragma unroll 1
        for (int row = threadIdx.x; row < CHUNK; row += THREADS) {
            float sum = 0;
            for (int k = 0; k < KEY; k++) sum += n[k] * __bfloat162float(query[row * tile::key_row + k]);
            inner[row] =
                normaliser(run.normalise, sum * gates->rise[row] + inner[row], gates->least[row], run.weight_more);
        }
    }
    __device__ __forceinline__ void add_keys(float decay) {
#pragma unroll 1
        for (int k = threadIdx.x; k < KEY; k += THREADS) {
            float sum = 0;
            for (int row = 0; row < CHUNK; row++)
                sum += gates->fade[row] * __bfloat162float(key[row * tile::key_row + k]);
            sums[k] = sums[k] * decay + sum;
        }
    }

    /* ---- the three products with this warp's columns ---- */

    __device__ __forceinline__ void load_values(uint32_t (&left)[CHUNK / 4]) {
        const __nv_bfloat16 *part = value + (lane / 16 * 8 + lane % 8) * tile::value_row + warp * 16 + lane / 8 % 2 * 8;
#pragma unroll
        for (int t = 0; t < CHUNK; t += 16) {
            uint32_t four[4];
            load_matrices<true>(four, part + t * tile::value_row);
#pragma unroll
            for (int i = 0; i < 4; i++) left[t / 4 + i] = four[i];
        }
    }
    __device__ __forceinline__ void read_state(float (&output)[CHUNK / 2]) {
        const __nv_bfloat16 *part = query + (lane / 16 * 8 + lane % 8) * tile::key_row + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < KEY; k += 16) {
            uint32_t left[4];
#pragma unroll
            for (int i = 0; i < 4; i++) left[i] = pack(state[k / 2 + 2 * i], state[k / 2 + 2 * i + 1]);
#pragma unroll
            for (int j = 0; j < CHUNK; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, part + j * tile::key_row + k);
                add_product(output + j / 2, left, right);
                add_product(output + j / 2 + 4, left, right + 2);
            }
        }
    }
    __device__ __forceinline__ void add_values(float (&output)[CHUNK / 2], const uint32_t (&left)[CHUNK / 4]) {
        const __nv_bfloat16 *part = weight + (lane / 16 * 8 + lane % 8) * tile::value_row + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < CHUNK; k += 16)
#pragma unroll
            for (int j = 0; j < CHUNK; j += 16) {
                uint32_t right[4];
                load_matrices<false>(right, part + j * tile::value_row + k);
                add_product(output + j / 2, left + k / 4, right);
                add_product(output + j / 2 + 4, left + k / 4, right + 2);
            }
    }
    __device__ __forceinline__ void add_state(const uint32_t (&left)[CHUNK / 4]) {
        const __nv_bfloat16 *part = key + lane % 16 * tile::key_row + lane / 16 * 8;
#pragma unroll
        for (int t = 0; t < CHUNK; t += 16)
#pragma unroll
            for (int j = 0; j < KEY; j += 16) {
                uint32_t right[4];
                load_matrices<true>(right, part + t * tile::key_row + j);
                add_product(state + j / 2, left + t / 4, right);
                add_product(state + j / 2 + 4, left + t / 4, right + 2);
            }
    }
    __device__ __forceinline__ void fade_values(uint32_t (&left)[CHUNK / 4]) {
#pragma unroll
        for (int i = 0; i < CHUNK / 4; i++) {
            const float *fade = gates->fade + i / 4 * 16 + i % 4 / 2 * 8 + 2 * (lane % 4);
            const float2 pair = unpack(left[i]);
            left[i] = pack(pair.x * fade[0], pair.y * fade[1]);
        }
    }

    /* ---- outputs ---- */

    /* Before the products with values: what the state gave decays until row i. After: the rest. */
    __device__ __forceinline__ void scale_outputs(float (&output)[CHUNK / 2]) {
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            output[i] *= gates->rise[i / 4 * 8 + 2 * (lane % 4) + i % 2];
        }
    }
    __device__ __forceinline__ void finish_outputs(float (&output)[CHUNK / 2], const uint32_t (&values)[CHUNK / 4]) {
        const float skip = tile::tokens && run.tensors.skip ? run.tensors.skip[task.head] : 0;
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2, column = 16 * warp + lane / 4 + i / 2 % 2 * 8;
            if (tile::normalised) output[i] *= inner[row];
            if (tile::values) {
                output[i] *= exponential(sums[row * COLUMNS + column]);
                if (!gentle) output[i] += inner[row * (COLUMNS + 1) + column];
            }
            if (tile::tokens && run.tensors.skip) {
                const float2 pair = unpack(values[i / 2]);
                output[i] += skip * (i % 2 ? pair.y : pair.x);
            }
        }
    }
    /* Through this warp's columns of the tile of values, which are its own to overwrite: 32 bytes of each of its rows
     * hold 16 columns of bf16, or 8 of float32 of half as many tokens. */
    __device__ __forceinline__ void store_outputs(const float (&output)[CHUNK / 2]) {
        const ln_cuda_tensor &to = run.tensors.output;
        char *own = (char *)(value + 16 * warp);
        const int64_t element = run.output_float32 ? 4 : 2;
        char *first = (char *)to.data +
                      (token * to.token_stride + task.head * to.head_stride + task.column + 16 * warp) * element;
        constexpr int row_bytes = tile::value_row * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half && !run.output_float32) break;
            __syncwarp();
#pragma unroll
            for (int i = 0; i < CHUNK / 2; i++) {
                const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2, column = lane / 4 + i / 2 % 2 * 8;
                if (!run.output_float32)
                    *(__nv_bfloat16 *)(own + row * row_bytes + column * 2) = __float2bfloat16(output[i]);
                else if (i / (CHUNK / 4) == half)
                    *(float *)(own + (2 * (row % 32) + column / 8) * row_bytes + column % 8 * 4) = output[i];
            }
            __syncwarp();
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                const int at = 16 * i + lane / 2, row = run.output_float32 ? 32 * half + at / 2 : at;
                const int piece = run.output_float32 ? at % 2 * 2 + lane % 2 : lane % 2;
                if (row < rows)
                    *(uint4 *)(first + row * to.token_stride * element + piece * 16) =
                        *(const uint4 *)(own + at * row_bytes + lane % 2 * 16);
            }
        }
    }

    /* ---- a chunk ---- */

    __device__ __forceinline__ void load(int index) {
        rows = chunk_rows(task, index);
        token = task.first + (int64_t)index * CHUNK;
        __syncthreads();
        if (LAST) copy_rows<KEY>(query, run.tensors.query, head_of(run, task.head, run.query_shared), token, 0, rows);
        copy_rows<KEY>(key, run.tensors.key, head_of(run, task.head, run.key_shared), token, 0, rows);
        copy_rows<COLUMNS>(value, run.tensors.value, head_of(run, task.head, run.value_shared), token, task.column,
                           rows);
        copies_commit();
        if (tile::tokens && warp == 0) {
            const float sum = fill_gates(run, *gates, load_gates(run, task, token, rows));
            if (lane == 0) last[0] = sum;
        }
        if (!tile::tokens) sum_channels();
        copies_wait<0>();
        __syncthreads();
    }
    __device__ __forceinline__ void raise_all() {
        if (tile::keys && LAST && !gentle) {
            steep_scores();
            __syncthreads();
        }
        if (tile::values && LAST && !gentle) {
            weights();
            __syncthreads();
            steep_values();
            __syncthreads();
        }
        if (tile::keys && LAST) raise(query, tile::key_row, 1, false);
        if (tile::keys) raise(key, tile::key_row, -1, !gentle);
        if (tile::values) raise(value, tile::value_row, -1, !gentle);
        if (!tile::tokens) __syncthreads();
    }
    __device__ __forceinline__ void step(int index) {
        load(index);
        raise_all();
        uint32_t values[CHUNK / 4];
        if (LAST) {
            if (gentle) weights();
            __syncthreads();
            if (tile::normalised) {
                normalise();
                __syncthreads();
            }
        }
        if (!LAST) load_values(values);
        if (LAST) {
            float output[CHUNK / 2] = {};
            read_state(output);
            scale_outputs(output);
            load_values(values);
            if (gentle || !tile::values) add_values(output, values);
            finish_outputs(output, values);
            store_outputs(output);
        }
        const float decay = tile::tokens ? exponential(last[0]) : 1;
        if (tile::tokens) {
            total += last[0];
            fade_values(values);
#pragma unroll
            for (int i = 0; i < KEY / 2; i++) state[i] *= decay;
        }
        if (!tile::tokens && !gentle) fade_channels();
        add_state(values);
        if (!tile::tokens && gentle) fade_channels();
        if (tile::normalised) {
            __syncthreads(); /* n was read */
            add_keys(decay);
        }
    }

    /* ---- the segment ---- */

    __device__ __forceinline__ void open() {
        const int row = task.column + warp * 16 + lane / 4;
        load_state<KEY>(run, task, row, state);
        const float *given = tile::normalised ? sums_of(run, task) : NULL;
        for (int k = threadIdx.x; tile::normalised && k < KEY; k += THREADS) sums[k] = given ? given[k] : 0;
        total = 0;
        gentle = true;
        open_gates();
        if (!LAST && task.from == LN_CUDA_STATE_GIVEN) leave(task.to - 1);
    }
    /* The state goes to a slot. */
    __device__ __forceinline__ void leave(int slot) {
        float *to = slot_of(run, slot);
        store_slot<KEY>(to, task.column + warp * 16 + lane / 4, state);
        if (tile::normalised && task.column == 0)
            for (int k = threadIdx.x; k < KEY; k += THREADS) to[run.value_size * KEY + k] = sums[k];
    }
    /* The decay of the whole segment. */
    __device__ __forceinline__ void leave_decay() {
        float *to = slot_decay(run, task.to);
        if (tile::tokens) {
            if (task.column == 0 && threadIdx.x == 0) to[0] = total;
            return;
        }
        if (tile::keys && task.column > 0) return;
        for (int channel = threadIdx.x; channel < tile::channels; channel += THREADS)
            to[(tile::values ? task.column : 0) + channel] = last[tile::channels + channel];
    }
    /* Reversed time has one decay behind its last step. */
    __device__ __forceinline__ void fade_reversed() {
        token = task.first - 1;
        rows = CHUNK;
        if (task.tokens == 0) return;
        if (tile::tokens) {
            const float factor = exponential(token_decay(run, task, token, 0, 1));
            for (int i = 0; i < KEY / 2; i++) state[i] *= factor;
            return;
        }
        __syncthreads();
        for (int channel = threadIdx.x; channel < tile::channels; channel += THREADS)
            last[channel] = channel_decay(0, channel);
        __syncthreads();
        fade_channels();
    }
    __device__ __forceinline__ void close() {
        if (task.to >= 0) {
            leave(task.to);
            leave_decay();
        } else if (task.to == LN_CUDA_STATE_GIVEN && run.tensors.state_out) {
            if (run.reverse) fade_reversed();
            store_state<KEY>(run, task, task.column + warp * 16 + lane / 4, state);
            if (tile::normalised && task.column == 0)
                for (int k = threadIdx.x; k < KEY; k += THREADS)
                    run.tensors.state_out[state_of(run, task) + KEY * run.value_size + k] = sums[k];
        }
    }
};

template <int KEY, int KIND, bool LAST>
static __global__ void __launch_bounds__(THREADS) linear_portable(const __grid_constant__ linear_run run) {
    typedef portable_tile<KEY, KIND> tile;
    char *shared = block_memory();
    const ln_cuda_linear_task task = run.tasks[blockIdx.x];
    portable_block<KEY, KIND, LAST> block = {run, task};
    block.query = (__nv_bfloat16 *)shared;
    block.key = (__nv_bfloat16 *)(shared + tile::key_at);
    block.value = (__nv_bfloat16 *)(shared + tile::value_at);
    block.weight = (__nv_bfloat16 *)(shared + tile::weight_at);
    block.gates = (token_gates *)(shared + tile::gates_at);
    block.last = (float *)(shared + tile::last_at);
    block.sums = (float *)(shared + tile::sums_at);
    block.inner = block.sums + (tile::normalised ? KEY : CHUNK * COLUMNS);
    block.lane = threadIdx.x % 32;
    block.warp = threadIdx.x / 32;
    block.open();
    const int chunks = chunks_of(task);
    for (int i = 0; i < chunks; i++) block.step(run.reverse ? chunks - 1 - i : i);
    block.close();
}

template <int KEY, int KIND>
static ln_cuda_code portable_start(void *const *arguments, bool last, int tasks, void *stream) {
    const linear_run &run = *(const linear_run *)arguments[0];
    constexpr int bytes = portable_tile<KEY, KIND>::bytes;
    return last ? launch(linear_portable<KEY, KIND, true>, dim3((unsigned)tasks), dim3(THREADS), bytes, stream, run)
                : launch(linear_portable<KEY, KIND, false>, dim3((unsigned)tasks), dim3(THREADS), bytes, stream, run);
}

template <int KEY, int KIND> static ln_cuda_linear_kernel portable_kernel(const char *name) {
    constexpr int bytes = portable_tile<KEY, KIND>::bytes;
    return {name,
            KEY,
            COLUMNS,
            KIND == NORMALISED ? LN_CUDA_LINEAR_TOKEN : (ln_cuda_linear_decay)KIND,
            KIND == NORMALISED,
            KIND == NORMALISED ? 0 : 1,
            THREADS,
            bytes,
            8,
            bytes > 112 * 1024  ? 1
            : bytes > 74 * 1024 ? 2
            : bytes > 56 * 1024 ? 3
                                : 4,
            portable_start<KEY, KIND>};
}

} // namespace ln

using namespace ln;

const ln_cuda_linear_kernel ln_cuda_linear_portable_kernels[] = {
    portable_kernel<128, LN_CUDA_LINEAR_TOKEN>("portable 128"),
    portable_kernel<64, LN_CUDA_LINEAR_TOKEN>("portable 64"),
    portable_kernel<256, LN_CUDA_LINEAR_TOKEN>("portable 256"),
    portable_kernel<128, LN_CUDA_LINEAR_KEY>("portable 128 keys"),
    portable_kernel<64, LN_CUDA_LINEAR_KEY>("portable 64 keys"),
    portable_kernel<256, LN_CUDA_LINEAR_KEY>("portable 256 keys"),
    portable_kernel<128, LN_CUDA_LINEAR_VALUE>("portable 128 values"),
    portable_kernel<64, LN_CUDA_LINEAR_VALUE>("portable 64 values"),
    portable_kernel<256, LN_CUDA_LINEAR_VALUE>("portable 256 values"),
    portable_kernel<128, NORMALISED>("portable 128 normalised"),
    portable_kernel<64, NORMALISED>("portable 64 normalised"),
    portable_kernel<256, NORMALISED>("portable 256 normalised"),
};
const int ln_cuda_linear_portable_count =
    sizeof ln_cuda_linear_portable_kernels / sizeof ln_cuda_linear_portable_kernels[0];
