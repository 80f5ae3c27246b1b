/* Gradients of exact attention for compute capability 9.0.
 *
 * One block a multiprocessor, which takes task after task: a tile of 128 keys, whose gradients stay in registers while
 * the tiles of queries that see it come by. Two threads of the first warp group keep the copy engine busy; two warp
 * groups own 64 keys each (scores are transposed, so that weights and slopes are left operands as they are):
 *
 *     weight(n) = exp(score(n) - lse) ; start change(n) = value * output_gradient(n)^T ;
 *     start value_gradient += weight(n) * output_gradient(n) ; slope(n) = weight(n) (change(n) - part) meanwhile ;
 *     start score(n+1) = key * query(n+1)^T ; meet: the slopes of both groups lie in shared memory ;
 *     start query_gradient = slope(n)^T * key, of half the columns ; start key_gradient += slope(n) * query(n) ;
 *     wait for the former and add it to the sums in device memory.
 *
 * Invariant: slopes have two places. A group writes those of n+2 when it has met the other at n+1, which had then done
 * with those of n. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_HOPPER_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_HOPPER_CUH

#include "kernel/cuda/attention_backward_group.cuh"

namespace ln {

template <int KEY_SIZE, int VALUE_SIZE, int QUERIES, int STAGES, int OPTIONS> struct backward_tile {
    static constexpr int key_size = KEY_SIZE, value_size = VALUE_SIZE, queries = QUERIES, keys = 128, threads = 384;
    static constexpr int key_bytes = keys * KEY_SIZE * 2, value_bytes = keys * VALUE_SIZE * 2,
                         query_bytes = QUERIES * KEY_SIZE * 2, gradient_bytes = QUERIES * VALUE_SIZE * 2,
                         slope_bytes = QUERIES * keys * 2, row_bytes = QUERIES * 2 * 4;
    static constexpr int value_at = key_bytes, query_at = value_at + value_bytes,
                         gradient_at = query_at + STAGES * query_bytes,
                         slope_at = gradient_at + STAGES * gradient_bytes, sum_at = slope_at + 2 * slope_bytes,
                         row_at = sum_at + ((OPTIONS & ENGINE) != 0 ? QUERIES * KEY_SIZE * 4 : 0),
                         control_at = row_at + STAGES * row_bytes;
    static constexpr int bytes = control_at + (int)sizeof(backward_control<STAGES>);
};

/* One warp group's part of the tasks. */
template <int KEY_SIZE, int VALUE_SIZE, int QUERIES, int STAGES, int OPTIONS> struct backward_keys {
    typedef backward_tile<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS> tile;
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    backward_group<tile, STAGES, OPTIONS> of;
    backward_ring<2> slopes;
    int sums_phase; /* of the room for sums on their way to the copy engine */
    float key_gradient[KEY_SIZE / 2], value_gradient[VALUE_SIZE / 2];

    /* Descriptors are made where they are needed: registers are short. */
    __device__ __forceinline__ uint64_t key_left() {
        return tile_descriptor<KEY_SIZE, tile::keys>(of.shared) + of.group * 512;
    }
    __device__ __forceinline__ uint64_t value_left() {
        return tile_descriptor<VALUE_SIZE, tile::keys>(of.shared + tile::value_at) + of.group * 512;
    }
    __device__ __forceinline__ uint64_t key_right() { /* this of.group's columns, or all of 64 */
        return tile_descriptor<KEY_SIZE, tile::keys>(of.shared) + (QUERIES == 64 ? of.group * (tile::keys * 8) : 0);
    }
    __device__ __forceinline__ uint64_t query_rows(int stage) {
        return tile_descriptor<KEY_SIZE, QUERIES>(of.shared + tile::query_at) + stage * (tile::query_bytes / 16);
    }
    __device__ __forceinline__ uint64_t gradient_rows(int stage) {
        return tile_descriptor<VALUE_SIZE, QUERIES>(of.shared + tile::gradient_at) +
               stage * (tile::gradient_bytes / 16);
    }
    __device__ __forceinline__ uint64_t slope_left() { /* all queries, or this of.group's of 128 */
        return tile_descriptor<tile::keys, QUERIES>(of.shared + tile::slope_at) +
               slopes.stage * (tile::slope_bytes / 16) + (QUERIES == 128 ? of.group * 512 : 0);
    }
    __device__ __forceinline__ void start_score(float (&sum)[QUERIES / 2], int stage) {
        of.template start_square<KEY_SIZE>(sum, key_left(), query_rows(stage));
    }
    /* 64 x 64 of slope^T * key: of 64 queries these 64 columns, of 128 these rows. */
    __device__ __forceinline__ void start_query(float (&query_gradient)[32]) {
        const uint64_t left = slope_left(), right = key_right();
        hold(query_gradient);
        products_open();
#pragma unroll
        for (int k = 0; k < tile::keys / 16; k++) {
            const uint64_t from = left + (k / 4 * (QUERIES * 8) + k % 4 * 2), to = right + k * 128;
            if (k == 0)
                product<64, HALF>::template turned<false, false, true>(query_gradient, from, to);
            else
                product<64, HALF>::template turned<true, false, true>(query_gradient, from, to);
        }
        products_commit();
        hold(query_gradient);
    }

    /* The key gradient of the step before, while two products started after it go on. */
    __device__ __forceinline__ void key_done(bool first) {
        products_wait<2>();
        hold(of.score);
        hold(key_gradient);
        hold(of.slope);
        if (!first) of.leave(&of.control->query_free[(of.now.stage + STAGES - 1) % STAGES]);
    }
    template <bool LAST> __device__ __forceinline__ void step(const ln_cuda_backward_task &task, bool first) {
        const int stage = of.now.stage;
        const float *rows = (const float *)(of.shared + tile::row_at + stage * tile::row_bytes);
        backward_ring<STAGES> after = of.now;
        after.next();
        float change[QUERIES / 2] = {};
        barrier_wait(&of.control->gradient_full[stage], of.now.phase);
        const int position = of.control->step[stage].position, seen = of.control->step[stage].seen;
        if (seen != LN_CUDA_SEEN || tiles_cut(of.run, task.tile * tile::keys, tile::keys, task.keys, position, QUERIES))
            of.template weigh<true>(task, of.group * 64, position, seen >> of.group, rows);
        else
            of.template weigh<false>(task, of.group * 64, position, LN_CUDA_SEEN, rows);
        of.template start_square<VALUE_SIZE>(change, value_left(), gradient_rows(stage));
        of.template start_sum<VALUE_SIZE>(value_gradient, of.weight, gradient_rows(stage));
        key_done(first);
        products_wait<1>();
        hold(change);
        of.incline(change, rows + QUERIES,
                   tile::slope_at + slopes.stage * tile::slope_bytes + of.group * (QUERIES * 128));
        stores_to_async();
        of.leave(&of.control->slopes_full[slopes.stage]);
        products_wait<0>();
        hold(value_gradient);
        hold(of.weight);
        of.leave(&of.control->gradient_free[stage]);
        float following_score[QUERIES / 2] = {};
        if (!LAST) {
            of.await_queries(after);
            start_score(following_score, after.stage);
        }
        float query_gradient[32] = {};
        barrier_wait(&of.control->slopes_full[slopes.stage], slopes.phase);
        start_query(query_gradient);
        of.template start_sum<KEY_SIZE>(key_gradient, of.slope, query_rows(stage));
        products_wait<1>();
        hold(query_gradient);
        if constexpr (!LAST) {
            hold(following_score);
#pragma unroll
            for (int i = 0; i < QUERIES / 2; i++) of.score[i] = following_score[i];
        }
        add_query(query_gradient);
        slopes.next();
        of.now = after;
    }
    __device__ __forceinline__ void add_query(const float (&query_gradient)[32]) {
        const int stage = of.now.stage;
        if constexpr ((OPTIONS & ENGINE) != 0) {
            barrier_wait(&of.control->sums_free, sums_phase);
            sums_phase ^= 1;
            float4 *to = (float4 *)(of.shared + tile::sum_at + of.group * 16384) + threadIdx.x % 128;
#pragma unroll
            for (int j = 0; j < 8; j++)
                to[128 * j] = {query_gradient[4 * j], query_gradient[4 * j + 1], query_gradient[4 * j + 2],
                               query_gradient[4 * j + 3]};
            stores_to_async();
        } else {
            barrier_wait(&of.control->turn_come[stage], of.now.phase);
            of.add_query(query_gradient, of.control->step[stage].place, of.group, of.control->step[stage].turn);
        }
        of.pass_turn(stage);
    }

    __device__ __forceinline__ void walk(const ln_cuda_backward_task &task, int phase) {
        const int count = steps_of(of.run, task);
        barrier_wait(&of.control->key_full, phase);
        of.clear_keys(task.keys - task.tile * tile::keys, phase);
        barrier_wait(&of.control->value_full, phase);
        of.await_queries(of.now);
        start_score(of.score, of.now.stage);
        products_wait<0>();
        hold(of.score);
        for (int n = 0; n < count - 1; n++) step<false>(task, n == 0);
        step<true>(task, count == 1);
        products_wait<0>();
        hold(key_gradient);
        hold(value_gradient);
        hold(of.slope);
        of.leave(&of.control->query_free[(of.now.stage + STAGES - 1) % STAGES]);
        of.leave(&of.control->keys_free);
    }

    __device__ __forceinline__ void store(const ln_cuda_backward_task &task) {
        const int row = of.group * 64 + of.warp * 16 + of.lane / 4, rows = task.keys - task.tile * tile::keys;
        if (row - of.lane / 4 < rows)
            store_gradient<KEY_SIZE, HALF>(of.run.key_gradient, of.run.packed_float32, task.key, task.head, row, rows,
                                           0, of.run.key_size, key_gradient, of.run.gradient_scale);
        if (row - of.lane / 4 < rows)
            store_gradient<VALUE_SIZE, HALF>(of.run.value_gradient, of.run.gradient_float32, task.key, task.head, row,
                                             rows, 0, of.run.value_size, value_gradient, 1.0f);
    }

    __device__ __forceinline__ void open() {
        of.now = {0, 0};
        slopes = {0, 0};
        sums_phase = 1;
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int QUERIES, int STAGES, int OPTIONS>
static __global__ void __launch_bounds__(384, 1)
    attention_backward_hopper(const __grid_constant__ CUtensorMap query_map,
                              const __grid_constant__ CUtensorMap key_map,
                              const __grid_constant__ CUtensorMap value_map,
                              const __grid_constant__ CUtensorMap gradient_map,
                              const __grid_constant__ backward_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef backward_tile<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS> tile;
    char *shared = block_memory();
    backward_control<STAGES> *control = (backward_control<STAGES> *)(shared + tile::control_at);
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) open_control(control);
    __syncthreads();
    if (group == 0) {
        registers_less<24>();
        if (threadIdx.x == 0) copy_backward_tasks<tile, STAGES>(&query_map, &key_map, &value_map, run, shared, control);
        if (threadIdx.x == 32) copy_gradients<tile, STAGES>(&gradient_map, run, shared, control);
        if (threadIdx.x == 64) await_turns<STAGES>(run, control);
        if (threadIdx.x == 96) pass_turns<tile, STAGES, OPTIONS>(run, shared, control);
    } else {
        registers_more<240>();
        backward_keys<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS> keys = {{run, control, shared}};
        keys.of.group = group - 1;
        keys.of.warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0);
        keys.of.lane = threadIdx.x % 32;
        run_backward_tasks(keys);
    }
#endif
}

template <int KEY_SIZE, int VALUE_SIZE, int QUERIES, int STAGES, int OPTIONS>
static ln_cuda_code backward_hopper_start(void *const *arguments, int blocks, void *stream) {
    typedef backward_tile<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS> tile;
    return launch_together(attention_backward_hopper<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS>,
                           dim3((unsigned)blocks), dim3(tile::threads), tile::bytes, stream,
                           *(const CUtensorMap *)arguments[0], *(const CUtensorMap *)arguments[1],
                           *(const CUtensorMap *)arguments[2], *(const CUtensorMap *)arguments[3],
                           *(const backward_run *)arguments[4]);
}

/* A row of the table of kernels; size: of heads, at most KEY_SIZE. */
template <int KEY_SIZE, int VALUE_SIZE, int QUERIES, int STAGES, int OPTIONS>
static ln_cuda_backward_kernel backward_hopper_kernel(const char *name, int size) {
    typedef backward_tile<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS> tile;
    return {
        name,          size,        size,       QUERIES,
        tile::keys,    KEY_SIZE,    VALUE_SIZE, LN_CUDA_WINDOW | (OPTIONS & (LN_CUDA_CAP | LN_CUDA_HALF)),
        tile::threads, tile::bytes, 9,          backward_hopper_start<KEY_SIZE, VALUE_SIZE, QUERIES, STAGES, OPTIONS>};
}

} // namespace ln

#endif
