/* Linear attention with decays of tokens or of key channels for compute capability 9.0.
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
 * more than 2^-40 in the chunk; else they make the weights one by one, then put key 2^(c[last] - c) there (see
 * linear_portable.cu). */
#ifndef LN_KERNEL_CUDA_LINEAR_HOPPER_CUH
#define LN_KERNEL_CUDA_LINEAR_HOPPER_CUH

#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/linear_rows.cuh"

namespace ln {

/* SHAPE of a kernel: sizes, groups of 64 value columns, stages of the last pass and of the first. */
template <int KEY_SIZE, int GROUPS_, int STAGES_LAST, int STAGES_FIRST, bool KEYS, bool LAST> struct hopper_linear {
    static constexpr bool last = LAST, keys = KEYS;
    static constexpr int key = KEY_SIZE, groups = GROUPS_, stages = LAST ? STAGES_LAST : STAGES_FIRST;
    static constexpr int columns = 64 * groups, threads = 128 * (groups + 1), blocks = groups == 1 ? 2 : 1;
    static constexpr int key_bytes = CHUNK * key * 2, value_bytes = CHUNK * columns * 2;
    static constexpr int key_at = LAST ? key_bytes : 0, value_at = key_at + key_bytes,
                         decay_at = value_at + value_bytes, stage_bytes = decay_at + (KEYS ? CHUNK * key * 4 : 0);
    static constexpr int weight_bytes = CHUNK * CHUNK * 2, row_bytes = 2048; /* of a warp's outputs */
    static constexpr int weight_at = stages * stage_bytes, rows_at = weight_at + (LAST ? 2 * weight_bytes : 0),
                         control_at = rows_at + (LAST ? groups * 4 * row_bytes : 0);
    static constexpr int gate_warps = stages % 3 == 0 ? 3 : 2;
    static_assert(stages % gate_warps == 0, "a stage belongs to one warp");
    static constexpr int copy_registers = 40, group_registers = groups == 1 ? 216 : 232;
};

enum { PARTS = 4 }; /* PARTS: of a chunk's time, whose channels different threads sum */
template <class SHAPE> struct linear_control {
    uint64_t full[SHAPE::stages], free[SHAPE::stages];
    float last[SHAPE::stages];
    token_gates gates[SHAPE::keys ? 1 : SHAPE::stages];
    float2 part[SHAPE::keys ? PARTS : 1][SHAPE::key / 2]; /* sums of decays of a part, of pairs of channels */
    float2 fade[SHAPE::key / 2];                          /* 2^c[last] */
};

struct linear_ring {
    int stage, phase;
    template <int STAGES> __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

template <int SIZE>
static __device__ __forceinline__ void copy_chunk(char *to, const CUtensorMap *map, uint64_t *barrier, int column,
                                                  int head, int token) {
#pragma unroll
    for (int panel = 0; panel < SIZE / 64; panel++)
        copy_box(to + panel * CHUNK * 128, map, barrier, column + panel * 64, head, token);
}

static __device__ __forceinline__ int chunk_at(const linear_run &run, int chunks, int step) {
    return run.reverse ? chunks - 1 - step : step;
}

template <class SHAPE>
static __device__ __forceinline__ void copy_chunks(const CUtensorMap *query_map, const CUtensorMap *key_map,
                                                   const CUtensorMap *value_map, const CUtensorMap *decay_map,
                                                   const linear_run &run, const ln_cuda_linear_task &task, char *shared,
                                                   linear_control<SHAPE> *control) {
    const int chunks = chunks_of(task), query_head = head_of(run, task.head, run.query_shared),
              key_head = head_of(run, task.head, run.key_shared),
              value_head = head_of(run, task.head, run.value_shared);
    linear_ring at = {0, 1}; /* the first wait for a free stage passes at once */
#pragma unroll 1
    for (int step = 0; step < chunks; step++) {
        const int token = task.first + chunk_at(run, chunks, step) * CHUNK;
        char *stage = shared + at.stage * SHAPE::stage_bytes;
        uint64_t *full = &control->full[at.stage];
        barrier_wait(&control->free[at.stage], at.phase);
        barrier_expect(full, SHAPE::stage_bytes);
        if (SHAPE::last) copy_chunk<SHAPE::key>(stage, query_map, full, 0, query_head, token);
        copy_chunk<SHAPE::key>(stage + SHAPE::key_at, key_map, full, 0, key_head, token);
        copy_chunk<SHAPE::columns>(stage + SHAPE::value_at, value_map, full, task.column, value_head, token);
        if (SHAPE::keys)
            copy_box(stage + SHAPE::decay_at, decay_map, full, 0, task.head, token + (run.reverse ? 1 : 0));
        at.template next<SHAPE::stages>();
    }
}

/* Warps 1 to gate_warps of the copying group, in turns: what a warp loads for its next chunk has as many chunks' time
 * to arrive. Each has stages of its own, so that it sees every phase of their barriers. */
template <class SHAPE>
static __device__ __forceinline__ void make_gates(const linear_run &run, const ln_cuda_linear_task &task,
                                                  linear_control<SHAPE> *control) {
    const int chunks = chunks_of(task), own = threadIdx.x / 32 - 1;
    linear_ring at = {0, 1};
    float decay[2], write[2];
    for (int i = 0; i < own; i++) at.template next<SHAPE::stages>();
#pragma unroll 1
    for (int step = own - SHAPE::gate_warps; step < chunks; step += SHAPE::gate_warps) {
        if (step >= 0) {
            barrier_wait(&control->free[at.stage], at.phase);
            const float last = fill_gates(run, control->gates[at.stage], decay, write);
            if (threadIdx.x % 32 == 0) control->last[at.stage] = last;
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(&control->full[at.stage]);
            for (int i = 0; i < SHAPE::gate_warps; i++) at.template next<SHAPE::stages>();
        }
        if (step + SHAPE::gate_warps < chunks) {
            const int chunk = chunk_at(run, chunks, step + SHAPE::gate_warps);
            load_gates(run, task, task.first + (int64_t)chunk * CHUNK, chunk_rows(task, chunk), decay, write);
        }
    }
}

static __device__ __forceinline__ float2 unpack(uint32_t both) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

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
    __device__ __forceinline__ const token_gates &gates() { return control->gates[SHAPE::keys ? 0 : at.stage]; }
    __device__ __forceinline__ bool sees(int i, int j) { return run.reverse ? j >= i : j <= i; }
    /* Of all groups of columns. */
    __device__ __forceinline__ void meet() { named_wait(1, 128 * SHAPE::groups); }

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
        meet();
    }

    /* ---- decays of keys ---- */

    /* This thread's pair of channels and sixteen rows in order of time. */
    __device__ __forceinline__ int row_of(int step) {
        const int at = (threadIdx.x - 128) / 64 * 16 + step;
        return run.reverse ? CHUNK - 1 - at : at;
    }
    __device__ __forceinline__ uint32_t *pair_at(char *tile, int row, int pair) {
        return (uint32_t *)(tile + pair / 32 * CHUNK * 128 + row * 128 + (pair / 4 % 8 ^ row % 8) * 16 + pair % 4 * 4);
    }
    __device__ __forceinline__ void sum_decays(float2 (&sum)[16], int pair) {
        const float2 *decays = (const float2 *)(stage() + SHAPE::decay_at);
        const int64_t left = task.end - token - (run.reverse ? 1 : 0); /* tokens that have decays */
        float2 all = {0, 0};
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int row = row_of(i);
            const bool inside = row < rows && row < left;
            const float2 own = decays[row * (key / 2) + pair];
            all.x += inside ? decay_log(own.x) : 0;
            all.y += inside ? decay_log(own.y) : 0;
            sum[i] = all;
        }
        control->part[(threadIdx.x - 128) / 64][pair] = all;
        meet();
    }
    /* Makes sums of the whole chunk; returns those of its last row, of another pair too. */
    __device__ __forceinline__ float2 join_decays(float2 (&sum)[16], int pair, float2 &other) {
        float2 before = {0, 0}, all = {0, 0};
        other = all;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const float2 part = control->part[i][pair], beside = control->part[i][pair ^ 32];
            if (i < (int)(threadIdx.x - 128) / 64) before = {before.x + part.x, before.y + part.y};
            all = {all.x + part.x, all.y + part.y};
            other = {other.x + beside.x, other.y + beside.y};
        }
#pragma unroll
        for (int i = 0; i < 16; i++) sum[i] = {sum[i].x + before.x, sum[i].y + before.y};
        return all;
    }
    __device__ __forceinline__ void raise_pair(char *tile, int row, int pair, float2 by) {
        uint32_t *at = pair_at(tile, row, pair);
        const float2 x = unpack(*at);
        *at = pack(x.x * exponential(by.x), x.y * exponential(by.y));
    }
    /* Sums of decays go where the decays were; weights are made from them, each element by one thread. */
    __device__ __forceinline__ void steep_weights(const float2 (&sum)[16], int pair) {
        float2 *sums = (float2 *)(stage() + SHAPE::decay_at);
#pragma unroll
        for (int i = 0; i < 16; i++) sums[row_of(i) * (key / 2) + pair] = sum[i];
        meet();
        char *tile = shared + SHAPE::weight_at + turn * SHAPE::weight_bytes;
        for (int i = threadIdx.x - 128; i < CHUNK * CHUNK; i += 256) {
            const int row = i / CHUNK, column = i % CHUNK;
            float weight = 0;
            if (sees(row, column))
#pragma unroll 4
                for (int k = 0; k < key / 2; k++) {
                    const int at = (k + lane) % (key / 2);
                    const float2 a = unpack(*pair_at(stage(), row, at)), c = sums[row * (key / 2) + at],
                                 b = unpack(*pair_at(stage() + SHAPE::key_at, column, at)),
                                 d = sums[column * (key / 2) + at];
                    weight = fmaf(a.x * b.x, exponential(c.x - d.x), weight);
                    weight = fmaf(a.y * b.y, exponential(c.y - d.y), weight);
                }
            *(__nv_bfloat16 *)(tile + row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2) =
                __float2bfloat16(weight * run.scale);
        }
        meet();
    }
    /* Queries and keys take the decays up. Returns whether these are gentle. */
    __device__ __forceinline__ bool raise_keys() {
        const int pair = threadIdx.x % 64;
        float2 sum[16], other;
        sum_decays(sum, pair);
        const float2 all = join_decays(sum, pair, other);
        const float least = fminf(fminf(all.x, all.y), fminf(other.x, other.y)),
                    zero = all.x + all.y + other.x + other.y; /* not a number where one is not */
        const bool gentle = __all_sync(~0u, least > STEEPEST && zero == zero);
        total = {total.x + all.x, total.y + all.y};
        if (threadIdx.x < 128 + 64) control->fade[pair] = {exponential(all.x), exponential(all.y)};
        if (SHAPE::last && !gentle) steep_weights(sum, pair);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int row = row_of(i);
            if (SHAPE::last) raise_pair(stage(), row, pair, sum[i]);
            const float2 by = {(gentle ? 0 : all.x) - sum[i].x, (gentle ? 0 : all.y) - sum[i].y};
            raise_pair(stage() + SHAPE::key_at, row, pair, by);
        }
        stores_to_async();
        meet();
        return gentle;
    }
    __device__ __forceinline__ void fade_keys() {
#pragma unroll
        for (int j = 0; j < key / 8; j++) {
            const float2 fade = control->fade[4 * j + lane % 4];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                state[4 * j + 2 * r] *= fade.x;
                state[4 * j + 2 * r + 1] *= fade.y;
            }
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
        hold(output);
        hold(left);
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
        if constexpr (SHAPE::keys)
            mask_score();
        else
            decay_score();
        store_score();
    }
    /* The output but for this chunk's values, which are about to be added. */
    __device__ __forceinline__ void start_outputs(bool gentle) {
        convert_state();
        start_score();
        start_output();
        load_values();
        products_wait<1>();
        hold(score);
        if (gentle) make_weights();
        products_wait<0>();
        hold(output);
        hold(left);
        raise_output();
        meet();
        start_values();
    }
    __device__ __forceinline__ void finish_outputs() {
        products_wait<1>();
        hold(output);
        hold(values);
        if (!SHAPE::keys && run.tensors.skip) skip_values();
        store_output();
        turn ^= 1;
    }
    __device__ __forceinline__ void step(int chunk) {
        bool gentle = true;
        rows = chunk_rows(task, chunk);
        token = task.first + (int64_t)chunk * CHUNK;
        barrier_wait(&control->full[at.stage], at.phase);
        if (rows < CHUNK) clear_tail();
        if constexpr (SHAPE::keys) gentle = raise_keys();
        if constexpr (SHAPE::last)
            start_outputs(gentle);
        else
            load_values();
        if constexpr (SHAPE::keys) {
            if (!gentle) fade_keys();
            start_state(values);
        } else {
            fade_values();
            fade_state();
            start_state(faded);
        }
        if constexpr (SHAPE::last) finish_outputs();
        products_wait<0>();
        hold(state);
        if constexpr (SHAPE::keys) {
            hold(values);
            if (gentle) fade_keys();
        } else
            hold(faded);
        __syncwarp();
        if (lane == 0) barrier_arrive(&control->free[at.stage]);
        at.template next<SHAPE::stages>();
    }
    __device__ __forceinline__ void leave(int value) {
        store_slot<key>(slot_of(run, task.to), value, state);
        const int pair = threadIdx.x - 128;
        if (task.column > 0 || pair >= (SHAPE::keys ? key / 2 : 1)) return;
        if (SHAPE::keys)
            ((float2 *)slot_decay(run, task.to))[pair] = total;
        else
            slot_decay(run, task.to)[0] = total.x;
    }
    /* Reversed time has one decay behind its last step. */
    __device__ __forceinline__ void fade_reversed() {
        if constexpr (SHAPE::keys) {
            const ln_cuda_tensor &from = run.tensors.decay;
            const float *first =
                (const float *)from.data + task.first * from.token_stride + task.head * from.head_stride;
#pragma unroll
            for (int i = 0; i < key / 2; i++)
                state[i] *= exponential(decay_log(first[i / 4 * 8 + 2 * (lane % 4) + i % 2]));
        } else {
            const float factor = exponential(token_decay(run, task, task.first - 1, 0, 1));
#pragma unroll
            for (int i = 0; i < key / 2; i++) state[i] *= factor;
        }
    }
    __device__ __forceinline__ void run_task() {
        const int value = task.column + group * 64 + warp * 16 + lane / 4, chunks = chunks_of(task);
        at = {0, 0};
        turn = 0;
        total = {0, 0};
        load_state<key>(run, task, value, state);
        if (!SHAPE::last && task.from == LN_CUDA_STATE_GIVEN) store_slot<key>(slot_of(run, task.to - 1), value, state);
#pragma unroll 1
        for (int i = 0; i < chunks; i++) step(chunk_at(run, chunks, i));
        if (task.to >= 0) leave(value);
        if (task.to == LN_CUDA_STATE_GIVEN && run.tensors.state_out) {
            if (run.reverse && task.tokens) fade_reversed();
            store_state<key>(run, task, value, state);
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
            barrier_open(&control->full[stage], SHAPE::keys ? 1 : 2);
            barrier_open(&control->free[stage], 4 * SHAPE::groups);
        }
        barriers_opened();
        map_prefetch(&query_map);
        map_prefetch(&key_map);
        map_prefetch(&value_map);
        if (SHAPE::keys) map_prefetch(&decay_map);
    }
    __syncthreads();
    if (group == 0) {
        registers_less<SHAPE::copy_registers>();
        if (threadIdx.x == 0)
            copy_chunks<SHAPE>(&query_map, &key_map, &value_map, &decay_map, run, task, shared, control);
        if (!SHAPE::keys && threadIdx.x >= 32 && threadIdx.x < 32 + 32 * SHAPE::gate_warps)
            make_gates<SHAPE>(run, task, control);
    } else {
        registers_more<SHAPE::group_registers>();
        hopper_columns<SHAPE> columns = {run, task, control, shared};
        columns.group = group - 1;
        columns.warp = threadIdx.x / 32 % 4;
        columns.lane = threadIdx.x % 32;
        if (SHAPE::keys && threadIdx.x < 128 + CHUNK) control->gates[0].rise[threadIdx.x - 128] = run.scale;
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
template <int KEY, int GROUPS, int STAGES_LAST, int STAGES_FIRST, bool KEYS>
static ln_cuda_code hopper_start(void *const *arguments, bool last, int tasks, void *stream) {
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KEYS, true> last_shape;
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KEYS, false> first_shape;
    return last ? hopper_pass<last_shape>(arguments, tasks, stream)
                : hopper_pass<first_shape>(arguments, tasks, stream);
}

/* A row of the table of kernels. */
template <int KEY, int GROUPS, int STAGES_LAST, int STAGES_FIRST, bool KEYS = false>
static ln_cuda_linear_kernel hopper_kernel(const char *name) {
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KEYS, true> last;
    typedef hopper_linear<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KEYS, false> first;
    return {name,
            KEY,
            last::columns,
            KEYS ? LN_CUDA_LINEAR_KEY : LN_CUDA_LINEAR_TOKEN,
            false,
            1,
            last::threads,
            hopper_bytes<last> > hopper_bytes<first> ? hopper_bytes<last> : hopper_bytes<first>,
            9,
            last::blocks,
            hopper_start<KEY, GROUPS, STAGES_LAST, STAGES_FIRST, KEYS>};
}

} // namespace ln

#endif
