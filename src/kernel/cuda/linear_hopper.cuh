/* Linear attention for compute capability 9.0.
 *
 * One block a task, which walks the chunks of its segment. Its first warp group feeds a ring of stages: one thread
 * keeps the copy engine busy with queries, keys and values, two or three warps by turns make the gates of a chunk.
 * Every other warp group owns 64 value columns and their state, turned, as accumulators S^T (64 x key_size), and makes
 * its share of the weights' columns:
 *
 *     start score = query key^T ; start output^T = bf16(S)^T query^T ; load value^T ; wait for score ;
 *     weight = mask and decay of score, to shared memory ; wait for output ; output, S and value^T decay ;
 *     meet the other groups ; start output^T += value^T weight^T ; start S^T += value^T key ; store the output.
 *
 * The state is the left operand of one product and the sum of another, so it never leaves registers. Invariant: weights
 * lie in two buffers by turns, so that a group that writes those of a chunk, having met the others in the chunk before,
 * knows that they have read those of two chunks before.
 *
 * Decays of keys: the groups first put query 2^c and key 2^-c in place of queries and keys, where no channel decays by
 * more than 2^-40 in the chunk; else they make the weights themselves, then put key 2^(c[last] - c) there (see
 * linear_portable.cu). Decays of values: likewise with values and outputs. A normaliser is stepped by all groups while
 * the first products run. */
#ifndef LN_KERNEL_CUDA_LINEAR_HOPPER_CUH
#define LN_KERNEL_CUDA_LINEAR_HOPPER_CUH

#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_hopper_chunk.cuh"

namespace ln {

/* One warp group's columns of a task. */
template <class SHAPE> struct hopper_columns {
    static constexpr int key = SHAPE::key, share = CHUNK / SHAPE::groups; /* columns of the weights */
    const linear_run &run;
    const ln_cuda_linear_task &task;
    linear_control<SHAPE> *control;
    char *shared;
    int group, warp, lane; /* warp: of the group */
    linear_ring at;
    int rows, turn;
    int64_t token;
    float2 total; /* of all decays so far: of tokens, or of this thread's pair of channels */
    float state[key / 2];
    float output[CHUNK / 2];
    float score[share / 2];
    uint32_t left[key / 4];
    uint32_t values[CHUNK / 4], faded[CHUNK / 4];

    __device__ __forceinline__ char *stage() { return shared + at.stage * SHAPE::stage_bytes; }
    __device__ __forceinline__ const token_gates &gates() { return control->gates[SHAPE::tokens ? at.stage : 0]; }
    __device__ __forceinline__ bool sees(int i, int j) { return run.reverse ? j >= i : j <= i; }
    __device__ __forceinline__ chunk_work<SHAPE> together() {
        return {run, task, control, stage(), shared + SHAPE::weight_at + turn * SHAPE::weight_bytes, token, rows, turn};
    }

    /* Rows of keys and values behind the last token belong to another sequence: they count 0, but 0 times infinity does
     * not. */
    __device__ __forceinline__ void clear_tail() {
        char *from = stage() + SHAPE::key_at;
        for (int i = (int)threadIdx.x - 128; i < (key + SHAPE::columns) / 8 * (CHUNK - rows);
             i += 128 * SHAPE::groups) {
            const int piece = i % ((key + SHAPE::columns) / 8), row = rows + i / ((key + SHAPE::columns) / 8);
            *(uint4 *)(from + piece / 8 * CHUNK * 128 + row * 128 + piece % 8 * 16) = {0, 0, 0, 0};
        }
        stores_to_async();
        groups_meet<SHAPE>();
    }

    /* The state's decay over the chunk, of channels. */
    __device__ __forceinline__ void fade_channels() {
        const float *fade = (const float *)control->fade;
        if constexpr (SHAPE::values) {
            const int row = group * 64 + warp * 16 + lane / 4;
            const float by[2] = {fade[row], fade[row + 8]};
#pragma unroll
            for (int i = 0; i < key / 2; i++) state[i] *= by[i / 2 % 2];
        } else {
#pragma unroll
            for (int i = 0; i < key / 2; i++) state[i] *= fade[i / 4 * 8 + 2 * (lane % 4) + i % 2];
        }
    }

    /* ---- products ---- */

    __device__ __forceinline__ void start_score() {
        const uint64_t query = tile_descriptor<key, CHUNK>(stage()),
                       keys = tile_descriptor<key, CHUNK>(stage() + SHAPE::key_at) + group * (share * 128 / 16);
        hold(score);
        products_open();
#pragma unroll
        for (int k = 0; k < key / 16; k++) {
            const uint64_t step = k / 4 * (CHUNK * 128 / 16) + k % 4 * 2;
            if (k == 0)
                product<share>::template shared<false>(score, query + step, keys + step);
            else
                product<share>::template shared<true>(score, query + step, keys + step);
        }
        products_commit();
        hold(score);
    }
    __device__ __forceinline__ void start_output() {
        const uint64_t query = tile_descriptor<key, CHUNK>(stage());
        products_open();
#pragma unroll
        for (int k = 0; k < key / 16; k++) {
            const uint64_t step = k / 4 * (CHUNK * 128 / 16) + k % 4 * 2;
            if (k == 0)
                product<CHUNK>::template registers<false, false>(output, left + 4 * k, query + step);
            else
                product<CHUNK>::template registers<true, false>(output, left + 4 * k, query + step);
        }
        products_commit();
        hold(output);
    }
    __device__ __forceinline__ void start_values() {
        const uint64_t weight = tile_descriptor<CHUNK, CHUNK>(shared + SHAPE::weight_at + turn * SHAPE::weight_bytes);
        hold(output);
        hold(values);
        products_open();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            product<CHUNK>::template registers<true, false>(output, values + 4 * k, weight + k * 2);
        products_commit();
        hold(output);
    }
    __device__ __forceinline__ void start_state(uint32_t (&left)[CHUNK / 4]) {
        const uint64_t keys = tile_descriptor<key, CHUNK>(stage() + SHAPE::key_at);
        hold(state);
        hold(left);
        products_open();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            product<key>::template registers<true, true>(state, left + 4 * k, keys + k * (16 * 128 / 16));
        products_commit();
        hold(state);
    }

    /* ---- between them ---- */

    /* Turned on the way. */
    __device__ __forceinline__ void load_values() {
        const char *tile = stage() + SHAPE::value_at + group * CHUNK * 128;
        const int row = lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
        const char *part = tile + row * 128 + (piece ^ row % 8) * 16;
#pragma unroll
        for (int t = 0; t < CHUNK; t += 16) {
            uint32_t four[4];
            load_matrices<true>(four, part + t * 128);
#pragma unroll
            for (int i = 0; i < 4; i++) values[t / 4 + i] = four[i];
        }
    }
    __device__ __forceinline__ void fade_values() {
#pragma unroll
        for (int i = 0; i < CHUNK / 8; i++) {
            const float2 fade = *(const float2 *)(gates().fade + i * 8 + 2 * (lane % 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int at = i / 2 * 4 + i % 2 * 2 + r;
                const float2 pair = unpack(values[at]);
                faded[at] = pack(pair.x * fade.x, pair.y * fade.y);
            }
        }
    }
    __device__ __forceinline__ void convert_state() {
#pragma unroll
        for (int i = 0; i < key / 4; i++) left[i] = pack(state[2 * i], state[2 * i + 1]);
        hold(left);
    }
    __device__ __forceinline__ void fade_state() {
        const float sum = control->last[at.stage], factor = exponential(sum);
        total.x += sum;
#pragma unroll
        for (int i = 0; i < key / 2; i++) state[i] *= factor;
    }
    __device__ __forceinline__ void mask_score() {
        const int row = warp * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < share / 2; i++) {
            const int column = group * share + i / 4 * 8 + 2 * (lane % 4) + i % 2;
            score[i] = sees(row + i / 2 % 2 * 8, column) ? score[i] * run.scale : 0;
        }
    }
    __device__ __forceinline__ void decay_score() {
        const int row = warp * 16 + lane / 4;
        const float sums[2] = {gates().sum[row], gates().sum[row + 8]};
#pragma unroll
        for (int j = 0; j < share / 8; j++) {
            const int column = group * share + 8 * j + 2 * (lane % 4);
            const float2 sum = *(const float2 *)(gates().sum + column),
                         write = *(const float2 *)(gates().write + column);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float *x = score + 4 * j + 2 * r;
                x[0] = sees(row + 8 * r, column) ? x[0] * (write.x * exponential(sums[r] - sum.x)) : 0;
                x[1] = sees(row + 8 * r, column + 1) ? x[1] * (write.y * exponential(sums[r] - sum.y)) : 0;
            }
        }
    }
    /* The share of the rows' normalisers. */
    __device__ __forceinline__ void sum_score() {
        float sum[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < share / 2; i++) sum[i / 2 % 2] += score[i];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            if (lane % 4 == 0) control->dot[turn][group][warp * 16 + lane / 4 + 8 * r] = sum[r];
        }
    }
    __device__ __forceinline__ void store_score() {
        char *tile = shared + SHAPE::weight_at + turn * SHAPE::weight_bytes;
        const int to_row = warp * 16 + lane % 16;
#pragma unroll
        for (int j = 0; j < share / 8; j += 2) {
            const int piece = group * share / 8 + j + lane / 16;
            const uint32_t part[4] = {pack(score[4 * j], score[4 * j + 1]), pack(score[4 * j + 2], score[4 * j + 3]),
                                      pack(score[4 * j + 4], score[4 * j + 5]),
                                      pack(score[4 * j + 6], score[4 * j + 7])};
            store_matrices<false>(tile + to_row * 128 + (piece ^ to_row % 8) * 16, part);
        }
        stores_to_async();
    }
    __device__ __forceinline__ void raise_output() {
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j++) {
            const float2 rise = *(const float2 *)(gates().rise + 8 * j + 2 * (lane % 4));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                output[4 * j + 2 * r] *= rise.x;
                output[4 * j + 2 * r + 1] *= rise.y;
            }
        }
    }

    /* ---- outputs ---- */

    __device__ __forceinline__ void skip_values() {
        const float skip = run.tensors.skip[task.head];
#pragma unroll
        for (int i = 0; i < CHUNK / 4; i++) {
            const float2 pair = unpack(values[i]);
            output[2 * i] += skip * pair.x;
            output[2 * i + 1] += skip * pair.y;
        }
    }
    __device__ __forceinline__ void normalise_output() {
#pragma unroll
        for (int j = 0; j < CHUNK / 4; j++) {
            const int row = j / 2 * 8 + 2 * (lane % 4) + j % 2;
            float dot = 0;
            for (int i = 0; i <= SHAPE::groups; i++) dot += control->dot[turn][i][row];
            const float by = normaliser(run.normalise, dot, gates().least[row], run.weight_more);
#pragma unroll
            for (int r = 0; r < 2; r++) output[j / 2 * 4 + 2 * r + j % 2] *= by;
        }
    }
    /* Decays of values: what came before row i decays until then. Steep ones: that is done from their sums; what the
     * chunk itself gives is added. */
    __device__ __forceinline__ void raise_columns(bool gentle) {
        chunk_work<SHAPE> work = together();
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2, column = own_column(i);
            const float x = ((const float *)work.outer_at(row, column / 2))[column % 2];
            output[i] = gentle ? output[i] * x : output[i] + x;
        }
    }
    __device__ __forceinline__ void raise_steep() {
        const float *sums = (const float *)(stage() + SHAPE::decay_at);
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2;
            output[i] *= exponential(sums[row * SHAPE::channels + own_column(i)]);
        }
    }
    __device__ __forceinline__ int own_column(int i) {
        return group * 64 + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    }
    /* Through this warp's own rows of 16 columns, where they are turned back. */
    __device__ __forceinline__ void store_output() {
        const ln_cuda_tensor &to = run.tensors.output;
        const int64_t from =
            token * to.token_stride + task.head * to.head_stride + task.column + group * 64 + warp * 16;
        if (run.output_float32) {
#pragma unroll
            for (int i = 0; i < CHUNK / 2; i++) {
                const int row = i / 4 * 8 + 2 * (lane % 4) + i % 2;
                if (row < rows) ((float *)to.data)[from + row * to.token_stride + lane / 4 + i / 2 % 2 * 8] = output[i];
            }
            return;
        }
        char *own = shared + SHAPE::rows_at + (group * 4 + warp) * SHAPE::row_bytes;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j += 2) {
            const int row = 8 * j + lane / 16 * 8 + lane % 8, piece = lane / 8 % 2;
            const uint32_t part[4] = {
                pack(output[4 * j], output[4 * j + 1]), pack(output[4 * j + 2], output[4 * j + 3]),
                pack(output[4 * j + 4], output[4 * j + 5]), pack(output[4 * j + 6], output[4 * j + 7])};
            store_matrices<true>(own + row * 32 + (piece ^ row / 4 % 2) * 16, part);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < CHUNK / 16; i++) {
            const int row = 16 * i + lane / 2, piece = lane % 2;
            if (row < rows)
                *(uint4 *)((__nv_bfloat16 *)to.data + from + row * to.token_stride + piece * 8) =
                    *(const uint4 *)(own + row * 32 + (piece ^ row / 4 % 2) * 16);
        }
    }

    /* ---- a chunk, and all of them ---- */

    __device__ __forceinline__ void make_weights() {
        if constexpr (SHAPE::tokens)
            decay_score();
        else
            mask_score();
        if constexpr (SHAPE::normalised) sum_score();
        store_score();
    }
    /* While products run. */
    __device__ __forceinline__ void step_normaliser() {
        if constexpr (SHAPE::normalised) together().step_normaliser(gates(), exponential(control->last[at.stage]));
    }
    /* The output but for this chunk's values, which are about to be added. */
    __device__ __forceinline__ void start_outputs(bool gentle) {
        convert_state();
        hold(output); /* moved before products run, if at all */
        start_score();
        start_output();
        load_values();
        step_normaliser();
        products_wait<1>();
        hold(score);
        if (gentle || !SHAPE::keys) make_weights();
        products_wait<0>();
        hold(output);
        hold(left);
        raise_output();
        groups_meet<SHAPE>();
        if (gentle || !SHAPE::values)
            start_values();
        else {
            raise_steep();
            together().steep_values();
            load_values();
        }
    }
    __device__ __forceinline__ void finish_outputs(bool gentle) {
        products_wait<1>();
        hold(output);
        hold(values);
        if constexpr (SHAPE::normalised) normalise_output();
        if constexpr (SHAPE::values) raise_columns(gentle);
        if (SHAPE::tokens && run.tensors.skip) skip_values();
        store_output();
    }
    __device__ __forceinline__ void step(int chunk) {
        bool gentle = true;
        rows = chunk_rows(task, chunk);
        token = task.first + (int64_t)chunk * CHUNK;
        barrier_wait(&control->full[at.stage], at.phase);
        if (rows < CHUNK) clear_tail();
        if constexpr (SHAPE::keys) gentle = together().raise_keys(total);
        if constexpr (SHAPE::values) gentle = together().raise_values(total);
        if constexpr (SHAPE::last)
            start_outputs(gentle);
        else
            load_values();
        if constexpr (SHAPE::tokens) {
            fade_values();
            fade_state();
            start_state(faded);
        } else {
            if (!gentle) fade_channels();
            start_state(values);
        }
        if constexpr (SHAPE::last)
            finish_outputs(gentle);
        else
            step_normaliser();
        products_wait<0>();
        hold(state);
        if constexpr (SHAPE::tokens)
            hold(faded);
        else {
            hold(values);
            if (gentle) fade_channels();
        }
        barrier_arrive(&control->free[at.stage]);
        turn ^= 1;
        at.template next<SHAPE::stages>();
    }
    __device__ __forceinline__ void leave(int value) {
        store_slot<key>(slot_of(run, task.to), value, state);
        const int pair = threadIdx.x - 128;
        if ((!SHAPE::values && task.column > 0) || pair >= (SHAPE::tokens ? 1 : SHAPE::pairs)) return;
        if (SHAPE::tokens)
            slot_decay(run, task.to)[0] = total.x;
        else
            ((float2 *)(slot_decay(run, task.to) + (SHAPE::values ? task.column : 0)))[pair] = total;
    }
    /* n, whose threads are those that keep it. */
    __device__ __forceinline__ void load_normaliser() {
        const int pair = threadIdx.x - 128, row = 2 * pair;
        const float *given = sums_of(run, task);
        if (pair < key / 2) control->normaliser[pair] = given ? float2{given[row], given[row + 1]} : float2{0, 0};
        groups_meet<SHAPE>();
    }
    __device__ __forceinline__ void store_normaliser(float *to) {
        const int pair = threadIdx.x - 128;
        if (task.column > 0 || pair >= key / 2) return;
        to += key * run.value_size + 2 * pair;
        to[0] = control->normaliser[pair].x;
        to[1] = control->normaliser[pair].y;
    }
    /* Reversed time has one decay behind its last step. */
    __device__ __forceinline__ void fade_reversed(int value) {
        if constexpr (SHAPE::tokens) {
            const float factor = exponential(token_decay(run, task, task.first - 1, 0, 1));
#pragma unroll
            for (int i = 0; i < key / 2; i++) state[i] *= factor;
        } else {
            const ln_cuda_tensor &from = run.tensors.decay;
            const float *first =
                (const float *)from.data + task.first * from.token_stride + task.head * from.head_stride;
#pragma unroll
            for (int i = 0; i < key / 2; i++) {
                const int channel = SHAPE::values ? value + i / 2 % 2 * 8 : i / 4 * 8 + 2 * (lane % 4) + i % 2;
                state[i] *= exponential(decay_log(first[channel]));
            }
        }
    }
    __device__ __forceinline__ void run_task() {
        const int value = task.column + group * 64 + warp * 16 + lane / 4, chunks = chunks_of(task);
        at = {0, 0};
        turn = 0;
        total = {0, 0};
        load_state<key>(run, task, value, state);
        if (SHAPE::normalised) load_normaliser();
        if (!SHAPE::last && task.from == LN_CUDA_STATE_GIVEN) {
            store_slot<key>(slot_of(run, task.to - 1), value, state);
            if (SHAPE::normalised) store_normaliser(slot_of(run, task.to - 1));
        }
#pragma unroll 1
        for (int i = 0; i < chunks; i++) step(chunk_at(run, chunks, i));
        if (task.to >= 0) {
            leave(value);
            if (SHAPE::normalised) store_normaliser(slot_of(run, task.to));
        }
        if (task.to == LN_CUDA_STATE_GIVEN && run.tensors.state_out) {
            if (run.reverse && task.tokens) fade_reversed(value);
            store_state<key>(run, task, value, state);
            if (SHAPE::normalised) store_normaliser(run.tensors.state_out + state_of(run, task));
        }
    }
};

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::blocks)
    linear_hopper(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                  const __grid_constant__ CUtensorMap value_map, const __grid_constant__ CUtensorMap decay_map,
                  const __grid_constant__ linear_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    char *shared = block_memory();
    linear_control<SHAPE> *control = (linear_control<SHAPE> *)(shared + SHAPE::control_at);
    const ln_cuda_linear_task task = run.tasks[blockIdx.x];
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < SHAPE::stages; stage++) {
            barrier_open(&control->full[stage], SHAPE::tokens ? 1 + 32 : 1);
            barrier_open(&control->free[stage], 128 * SHAPE::groups);
        }
        barriers_opened();
        map_prefetch(&query_map);
        map_prefetch(&key_map);
        map_prefetch(&value_map);
        if (!SHAPE::tokens) map_prefetch(&decay_map);
    }
    __syncthreads();
    if (group == 0) {
        registers_less<SHAPE::copy_registers>();
        if (threadIdx.x == 0)
            copy_chunks<SHAPE>(&query_map, &key_map, &value_map, &decay_map, run, task, shared, control);
        if (SHAPE::tokens && threadIdx.x >= 32 && threadIdx.x < 32 + 32 * SHAPE::gate_warps)
            make_gates<SHAPE>(run, task, control);
    } else {
        registers_more<SHAPE::group_registers>();
        hopper_columns<SHAPE> columns = {run, task, control, shared};
        columns.group = group - 1;
        columns.warp = threadIdx.x / 32 % 4;
        columns.lane = threadIdx.x % 32;
        if (!SHAPE::tokens && threadIdx.x < 128 + CHUNK) control->gates[0].rise[threadIdx.x - 128] = run.scale;
        columns.run_task();
    }
#endif
}

template <class SHAPE> static constexpr int hopper_bytes = SHAPE::control_at + (int)sizeof(linear_control<SHAPE>);

template <class SHAPE> static ln_cuda_code hopper_pass(void *const *arguments, int tasks, void *stream) {
    return launch(linear_hopper<SHAPE>, dim3((unsigned)tasks), dim3(SHAPE::threads), hopper_bytes<SHAPE>, stream,
                  *(const CUtensorMap *)arguments[0], *(const CUtensorMap *)arguments[1],
                  *(const CUtensorMap *)arguments[2], *(const CUtensorMap *)arguments[3],
                  *(const linear_run *)arguments[4]);
}
template <int KEY, int GROUPS, int STAGES_LAST, int STAGES_FIRST, int KIND>
static ln_cuda_code hopper_start(void *const *arguments, bool last, int tasks, void *stream) {
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KIND, true> last_shape;
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KIND, false> first_shape;
    return last ? hopper_pass<last_shape>(arguments, tasks, stream)
                : hopper_pass<first_shape>(arguments, tasks, stream);
}

/* A row of the table of kernels. */
template <int KEY, int GROUPS, int STAGES_LAST, int STAGES_FIRST, int KIND = LN_CUDA_LINEAR_TOKEN>
static ln_cuda_linear_kernel hopper_kernel(const char *name) {
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KIND, true> last;
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KIND, false> first;
    return {name,
            KEY,
            last::columns,
            KIND == NORMALISED ? LN_CUDA_LINEAR_TOKEN : (ln_cuda_linear_decay)KIND,
            KIND == NORMALISED,
            KIND == NORMALISED ? 0 : 1,
            last::threads,
            hopper_bytes<last> > hopper_bytes<first> ? hopper_bytes<last> : hopper_bytes<first>,
            9,
            last::blocks,
            hopper_start<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KIND>};
}

} // namespace ln

#endif
