/* Exact attention forward for compute capability 9.0.
 *
 * One block a multiprocessor, which takes task after task from the list. Its first warp group copies: one thread of it
 * keeps the tensor copy engine busy with queries, keys and values, two blocks of keys ahead. The other warp groups own
 * 64 queries each of the task's tile and walk its key blocks from right to left, so that the partly seen ones come
 * first:
 *
 *     start score(n) = query * key(n)^T ; start output += weight(n+1) * value(n+1) ; wait for score(n) ;
 *     weight(n) = softmax(score(n)) while the second product still runs ; wait for it ; rescale output if a base moved.
 *
 * The groups take turns (named barriers) in starting products: while one has the tensor cores, the others have the
 * units of the softmax. Invariant: the products of a group are started in its turn alone, every group takes as many
 * turns as the task has blocks, and a stage of keys or values is refilled when each warp of each group has left it. */
#ifndef LN_KERNEL_CUDA_ATTENTION_HOPPER_CUH
#define LN_KERNEL_CUDA_ATTENTION_HOPPER_CUH

#include "kernel/cuda/attention_rows.cuh"
#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { TURNS = 16, HELD = 32 }; /* beside LN_CUDA_*: groups take turns; queries stay in registers */

enum { STAGES = 2 };

struct hopper_control {
    uint64_t query_full, query_free;
    uint64_t key_full[STAGES], key_free[STAGES], value_full[STAGES], value_free[STAGES];
    uint64_t task_full[STAGES], task_free[STAGES];
    ln_cuda_task task[STAGES];
};

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int GROUPS> struct hopper_tile {
    static constexpr int rows = 64 * GROUPS, threads = 128 * (GROUPS + 1);
    static constexpr int query_bytes = rows * KEY_SIZE * 2, key_bytes = KEYS * KEY_SIZE * 2,
                         value_bytes = KEYS * VALUE_SIZE * 2;
    static constexpr int key_at = query_bytes, value_at = key_at + STAGES * key_bytes,
                         control_at = value_at + STAGES * value_bytes;
    /* Of what the block starts with, 168 (128) a thread. */
    static constexpr int copy_registers = GROUPS == 2 ? 24 : 32, group_registers = GROUPS == 2 ? 240 : 160;
};

/* Which stage the n-th block of keys lies in, and the phase of its barriers. */
struct ring {
    int stage, phase;
    __device__ __forceinline__ void next() {
        phase ^= stage;
        stage ^= 1;
    }
};

template <int SIZE, int ROWS>
static __device__ __forceinline__ void copy_tile(char *to, const CUtensorMap *map, uint64_t *barrier, int head,
                                                 int token) {
    constexpr int width = panel<SIZE>::columns;
#pragma unroll 1
    for (int column = 0; column < SIZE; column += width)
        copy_box(to + column * ROWS * 2, map, barrier, column, head, token);
}

template <class TILE, int KEY_SIZE, int VALUE_SIZE, int KEYS>
static __device__ __forceinline__ void copy_tasks(const CUtensorMap *query_map, const CUtensorMap *key_map,
                                                  const CUtensorMap *value_map, const attention_run &run, char *shared,
                                                  hopper_control *control) {
    ring keys = {0, 1}, values = {0, 1}, tasks = {0, 1}; /* the first wait for a free stage passes at once */
    int query_phase = 1;
    int index = blockIdx.x;
    for (;;) {
        ln_cuda_task task = {};
        if (index < run.task_count) task = run.tasks[index];
        barrier_wait(&control->task_free[tasks.stage], tasks.phase);
        control->task[tasks.stage] = task;
        barrier_arrive(&control->task_full[tasks.stage]);
        tasks.next();
        if (index >= run.task_count) break;
        index = gridDim.x + atomicInc(run.next, run.task_count - 1); /* back to 0 after as many as there are tasks */
        const int shared_head = task.head / run.group;
#pragma unroll 1
        for (int place = task.end_block - 1; place >= task.first_block; place--) {
            const int block = run.block_at(place);
            barrier_wait(&control->key_free[keys.stage], keys.phase);
            barrier_expect(&control->key_full[keys.stage], TILE::key_bytes);
            copy_tile<KEY_SIZE, KEYS>(shared + TILE::key_at + keys.stage * TILE::key_bytes, key_map,
                                      &control->key_full[keys.stage], shared_head, task.key + block * KEYS);
            keys.next();
            if (place == task.end_block - 1) {
                barrier_wait(&control->query_free, query_phase);
                query_phase ^= 1;
                barrier_expect(&control->query_full, TILE::query_bytes);
                copy_tile<KEY_SIZE, TILE::rows>(shared, query_map, &control->query_full, task.head, task.query);
            }
            barrier_wait(&control->value_free[values.stage], values.phase);
            barrier_expect(&control->value_full[values.stage], TILE::value_bytes);
            copy_tile<VALUE_SIZE, KEYS>(shared + TILE::value_at + values.stage * TILE::value_bytes, value_map,
                                        &control->value_full[values.stage], shared_head, task.key + block * KEYS);
            values.next();
        }
    }
}

/* One warp group's part of one task. */
template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int GROUPS, int OPTIONS> struct hopper_rows {
    typedef hopper_tile<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS> tile;
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    const attention_run &run;
    hopper_control *control;
    char *shared;
    uint64_t query_tile, key_tile, value_tile;
    int group; /* of warps */
    ring keys, values;
    softmax<KEYS> weights;
    float output[VALUE_SIZE / 2];
    float score[KEYS / 2];
    uint32_t weight[KEYS / 4];
    uint32_t query[(OPTIONS & HELD) ? KEY_SIZE / 4 : 4];
    float factor[2];

    __device__ __forceinline__ void leave(uint64_t *barrier) {
        if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
    }
    __device__ __forceinline__ void turn_wait() {
        if constexpr ((OPTIONS & TURNS) != 0) named_wait(1 + group, 256);
    }
    __device__ __forceinline__ void turn_pass() {
        if constexpr ((OPTIONS & TURNS) != 0) named_arrive(1 + (group + 1) % GROUPS, 256);
    }
    __device__ __forceinline__ void start_score() {
        constexpr int width = panel<KEY_SIZE>::columns, steps = width / 16;
        const uint64_t key = key_tile + (uint64_t)(keys.stage * (tile::key_bytes / 16));
        hold(score);
        if constexpr ((OPTIONS & HELD) != 0) hold(query);
        products_open();
#pragma unroll
        for (int k = 0; k < KEY_SIZE / 16; k++) {
            const uint64_t step = k % steps * 2;
            const uint64_t left = query_tile + (k / steps * (tile::rows * width * 2 / 16) + step);
            const uint64_t right = key + (k / steps * (KEYS * width * 2 / 16) + step);
            if constexpr ((OPTIONS & HELD) != 0) {
                if (k == 0)
                    product<KEYS, HALF>::template registers<false, false>(score, query, right);
                else
                    product<KEYS, HALF>::template registers<true, false>(score, query + 4 * k, right);
            } else if (k == 0)
                product<KEYS, HALF>::template shared<false>(score, left, right);
            else
                product<KEYS, HALF>::template shared<true>(score, left, right);
        }
        products_commit();
        hold(score);
    }
    __device__ __forceinline__ void start_output() {
        constexpr int width = panel<VALUE_SIZE>::columns;
        const uint64_t value = value_tile + (uint64_t)(values.stage * (tile::value_bytes / 16));
        hold(output);
        hold(weight);
        products_open();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
            product<VALUE_SIZE, HALF>::template registers<true, true>(output, weight + 4 * k,
                                                                      value + (uint64_t)(k * (16 * width * 2 / 16)));
        products_commit();
        hold(output);
    }
    template <bool MASKED, bool FIRST> __device__ __forceinline__ bool soften(const ln_cuda_task &task, int block) {
        if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) softmax<KEYS>::cap(score, run.cap_scale);
        if constexpr (MASKED) {
            const int row = group * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
            softmax<KEYS>::template mask<(OPTIONS & LN_CUDA_WINDOW) != 0>(score, run, task.position + row, task.keys,
                                                                          block * KEYS);
        }
        return weights.template step<FIRST>(score, run.scale, factor);
    }
    /* Rows of values after the last key belong to another sequence: their weights are 0, but 0 times infinity is not.
     */
    __device__ __forceinline__ void clear_values(const ln_cuda_task &task) {
        constexpr int width = panel<VALUE_SIZE>::columns * 2;
        const int from = task.keys - run.block_at(task.end_block - 1) * KEYS;
        if (from >= KEYS) return;
        barrier_wait(&control->value_full[values.stage], values.phase);
        char *value = shared + tile::value_at + values.stage * tile::value_bytes;
        for (int panel = 0; panel < VALUE_SIZE * 2 / width; panel++)
            for (int at = from * width + ((int)threadIdx.x - 128) * 16; at < KEYS * width; at += GROUPS * 128 * 16)
                *(uint4 *)(value + panel * KEYS * width + at) = {0, 0, 0, 0};
        stores_to_async();
        named_wait(GROUPS + 1, GROUPS * 128);
    }

    template <bool MASKED> __device__ __forceinline__ void step(const ln_cuda_task &task, int block) {
        barrier_wait(&control->key_full[keys.stage], keys.phase);
        turn_wait();
        start_score();
        barrier_wait(&control->value_full[values.stage], values.phase);
        start_output();
        turn_pass();
        products_wait<1>();
        hold(score);
        leave(&control->key_free[keys.stage]);
        keys.next();
        const bool moved = soften<MASKED, false>(task, block);
        products_wait<0>();
        hold(output);
        hold(weight);
        leave(&control->value_free[values.stage]);
        values.next();
        if (moved) softmax<KEYS>::rescale(output, factor);
        softmax<KEYS>::template convert<HALF>(score, weight);
    }

    __device__ __forceinline__ void walk(const ln_cuda_task &task, int query_phase) {
        int place = task.end_block - 1;
        const int first = task.first_block;
        barrier_wait(&control->query_full, query_phase);
        if constexpr ((OPTIONS & HELD) != 0) {
            load_left<KEY_SIZE, tile::rows>(query, shared, group * 64 + threadIdx.x / 32 % 4 * 16);
            __syncwarp();
            leave(&control->query_free);
        }
        barrier_wait(&control->key_full[keys.stage], keys.phase);
        turn_wait();
        start_score();
        turn_pass();
        products_wait<0>();
        hold(score);
        leave(&control->key_free[keys.stage]);
        keys.next();
        clear_values(task);
        soften<true, true>(task, run.block_at(place));
        softmax<KEYS>::template convert<HALF>(score, weight);

        const sight whole = whole_blocks<KEYS>(run, task, tile::rows);
        place--;
        if constexpr ((OPTIONS & LN_CUDA_LISTS) != 0)
            for (; place >= first; place--) {
                const int block = run.block_at(place);
                if (block < whole.high && block >= whole.low)
                    step<false>(task, block);
                else
                    step<true>(task, block);
            }
        for (; place >= max(first, whole.high); place--) step<true>(task, place);
        for (; place >= max(first, whole.low); place--) step<false>(task, place);
        if constexpr ((OPTIONS & LN_CUDA_WINDOW) != 0)
            for (; place >= first; place--) step<true>(task, place);

        if constexpr ((OPTIONS & HELD) == 0) leave(&control->query_free);
        barrier_wait(&control->value_full[values.stage], values.phase);
        start_output();
        products_wait<0>();
        hold(output);
        leave(&control->value_free[values.stage]);
        values.next();
    }

    __device__ __forceinline__ void run_tasks() {
        ring tasks = {0, 0};
        int query_phase = 0;
        keys = values = {0, 0};
        if constexpr ((OPTIONS & TURNS) != 0)
            if (group == GROUPS - 1) turn_pass();
        for (;;) {
            barrier_wait(&control->task_full[tasks.stage], tasks.phase);
            const ln_cuda_task &task = control->task[tasks.stage]; /* read where it is needed: registers are short */
            if (task.rows == 0) break;
#pragma unroll
            for (int i = 0; i < VALUE_SIZE / 2; i++) output[i] = 0;
            weights.open();
            if (task.first_block < task.end_block) {
                walk(task, query_phase);
                query_phase ^= 1;
            }
            float inverse[2], lse[2];
            weights.close(inverse, lse, sink_of(run, task.head));
            const int row = group * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
            store_rows<VALUE_SIZE, HALF>(run, task, row, output, inverse, lse);
            __syncwarp();
            leave(&control->task_free[tasks.stage]);
            tasks.next();
        }
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int GROUPS, int OPTIONS>
static __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)
    attention_hopper(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                     const __grid_constant__ CUtensorMap value_map, const __grid_constant__ attention_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef hopper_tile<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS> tile;
    char *shared = block_memory();
    hopper_control *control = (hopper_control *)(shared + tile::control_at);
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        barrier_open(&control->query_full, 1);
        barrier_open(&control->query_free, 4 * GROUPS);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_open(&control->key_full[stage], 1);
            barrier_open(&control->value_full[stage], 1);
            barrier_open(&control->task_full[stage], 1);
            barrier_open(&control->key_free[stage], 4 * GROUPS);
            barrier_open(&control->value_free[stage], 4 * GROUPS);
            barrier_open(&control->task_free[stage], 4 * GROUPS);
        }
        barriers_opened();
        map_prefetch(&query_map);
        map_prefetch(&key_map);
        map_prefetch(&value_map);
    }
    __syncthreads();
    if (group == 0) {
        registers_less<tile::copy_registers>();
        if (threadIdx.x == 0)
            copy_tasks<tile, KEY_SIZE, VALUE_SIZE, KEYS>(&query_map, &key_map, &value_map, run, shared, control);
    } else {
        registers_more<tile::group_registers>();
        hopper_rows<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS, OPTIONS> rows = {run, control, shared};
        rows.group = group - 1;
        rows.query_tile = tile_descriptor<KEY_SIZE, tile::rows>(shared) +
                          (uint64_t)(rows.group * (64 * panel<KEY_SIZE>::columns * 2 / 16));
        rows.key_tile = tile_descriptor<KEY_SIZE, KEYS>(shared + tile::key_at);
        rows.value_tile = tile_descriptor<VALUE_SIZE, KEYS>(shared + tile::value_at);
        rows.run_tasks();
    }
#endif
}

template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int GROUPS, int OPTIONS>
static ln_cuda_code hopper_start(void *const *arguments, int blocks, void *stream) {
    typedef hopper_tile<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS> tile;
    return launch(attention_hopper<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS, OPTIONS>, dim3((unsigned)blocks),
                  dim3(tile::threads), tile::control_at + (int)sizeof(hopper_control), stream,
                  *(const CUtensorMap *)arguments[0], *(const CUtensorMap *)arguments[1],
                  *(const CUtensorMap *)arguments[2], *(const attention_run *)arguments[3]);
}

/* A row of the table of kernels. */
template <int KEY_SIZE, int VALUE_SIZE, int KEYS, int GROUPS, int OPTIONS>
static ln_cuda_kernel hopper_kernel(const char *name, bool short_rows) {
    typedef hopper_tile<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS> tile;
    return {name,
            KEY_SIZE,
            VALUE_SIZE,
            tile::rows,
            KEYS,
            OPTIONS & (LN_CUDA_WINDOW | LN_CUDA_CAP | LN_CUDA_LISTS | LN_CUDA_HALF),
            tile::threads,
            tile::control_at + (int)sizeof(hopper_control),
            9,
            short_rows,
            hopper_start<KEY_SIZE, VALUE_SIZE, KEYS, GROUPS, OPTIONS>};
}

} // namespace ln

#endif
