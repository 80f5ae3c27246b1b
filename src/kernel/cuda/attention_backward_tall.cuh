/* Gradients of exact attention for compute capability 9.0, keys of 192 and values of 128: tiles of 128 keys as in
 * attention_backward_hopper.cuh, of which each of two warp groups owns 64. Gradients take 160 of a thread's 240
 * registers: there is room for one product of scores, changes or the query gradient at a time.
 *
 *     weight(n) = exp(score(n) - lse), while key_gradient += slope(n-1) query(n-1) still runs ;
 *     query_gradient(n-1) = slope(n-1)^T key in blocks of 64 columns, to shared memory for the copy engine to add ;
 *     start change(n) = value output_gradient(n)^T ; start value_gradient += weight(n) output_gradient(n) ;
 *     slope(n) = weight(n) (change(n) - part) meanwhile, to shared memory ;
 *     start score(n+1) = key query(n+1)^T ; start key_gradient += slope(n) query(n).
 *
 * The query gradient needs the slopes of both groups. As it waits for the step after, one group may be half a step
 * ahead of the other, and has the tensor cores while the other makes weights.
 *
 * Three blocks for two groups: the third is the first group's at every other step, the second's between.
 *
 * Why tiles of 128 keys: a tile of queries gets half as many additions and turns, and each product is twice as long.
 *
 * Invariant: slopes have one place. A group writes slope(n) when every warp has said that its query gradient of n-1 is
 * done. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_TALL_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_TALL_CUH

#include "kernel/cuda/attention_backward_group.cuh"

namespace ln {

template <int KEY_SIZE, int VALUE_SIZE> struct backward_tall_tile {
    static constexpr int key_size = KEY_SIZE, value_size = VALUE_SIZE, queries = 64, keys = 128, threads = 384,
                         stages = 2;
    static constexpr int key_bytes = keys * KEY_SIZE * 2, value_bytes = keys * VALUE_SIZE * 2,
                         query_bytes = queries * KEY_SIZE * 2, gradient_bytes = queries * VALUE_SIZE * 2,
                         slope_bytes = queries * keys * 2, row_bytes = queries * 2 * 4;
    static constexpr int value_at = key_bytes, query_at = value_at + value_bytes,
                         gradient_at = query_at + stages * query_bytes,
                         slope_at = gradient_at + stages * gradient_bytes, sum_at = slope_at + slope_bytes,
                         row_at = sum_at + queries * KEY_SIZE * 4, control_at = row_at + stages * row_bytes;
    static constexpr int bytes = control_at + (int)sizeof(backward_control<stages>);
    static constexpr int blocks = KEY_SIZE / 64; /* of the query gradient */
};

/* One warp group's part of the tasks. */
template <int KEY_SIZE, int VALUE_SIZE, int OPTIONS> struct backward_tall {
    typedef backward_tall_tile<KEY_SIZE, VALUE_SIZE> tile;
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    static constexpr int STAGES = tile::stages;
    backward_group<tile, STAGES, OPTIONS> of;
    int sums_phase, slopes_phase, odd; /* odd: of a step, who makes the third block */
    float key_gradient[KEY_SIZE / 2], value_gradient[VALUE_SIZE / 2];

    __device__ __forceinline__ uint64_t query_rows(int stage) {
        return tile_descriptor<KEY_SIZE, 64>(of.shared + tile::query_at) + stage * (tile::query_bytes / 16);
    }
    __device__ __forceinline__ uint64_t gradient_rows(int stage) {
        return tile_descriptor<VALUE_SIZE, 64>(of.shared + tile::gradient_at) + stage * (tile::gradient_bytes / 16);
    }
    __device__ __forceinline__ void start_score(int stage) {
        of.template start_square<KEY_SIZE>(of.score, tile_descriptor<KEY_SIZE, tile::keys>(of.shared) + of.group * 512,
                                           query_rows(stage));
    }

    /* 64 columns of slope^T * key, of all keys, to shared memory. */
    __device__ __forceinline__ void make_query(int block) {
        const uint64_t left = tile_descriptor<tile::keys, 64>(of.shared + tile::slope_at),
                       right = tile_descriptor<KEY_SIZE, tile::keys>(of.shared) + block * (tile::keys * 8);
        float query_gradient[32] = {};
        hold(query_gradient);
        products_open();
#pragma unroll
        for (int k = 0; k < tile::keys / 16; k++) {
            const uint64_t from = left + (k / 4 * (64 * 8) + k % 4 * 2), to = right + k * 128;
            if (k == 0)
                product<64, HALF>::template turned<false, false, true>(query_gradient, from, to);
            else
                product<64, HALF>::template turned<true, false, true>(query_gradient, from, to);
        }
        products_commit();
        products_wait<0>();
        hold(query_gradient);
        if (block < 2) barrier_wait(&of.control->sums_free, sums_phase); /* a group's first */
        float4 *to = (float4 *)(of.shared + tile::sum_at + block * 16384) + threadIdx.x % 128;
#pragma unroll
        for (int j = 0; j < 8; j++)
            to[128 * j] = {query_gradient[4 * j], query_gradient[4 * j + 1], query_gradient[4 * j + 2],
                           query_gradient[4 * j + 3]};
    }

    /* The query gradient of the step before. */
    __device__ __forceinline__ void finish_step() {
        barrier_wait(&of.control->slopes_full[0], slopes_phase ^ 1);
        make_query(of.group);
        if (tile::blocks == 3 && of.group == odd) make_query(2);
        of.leave(&of.control->slopes_full[1]);
        stores_to_async();
        of.pass_turn((of.now.stage + STAGES - 1) % STAGES);
        sums_phase ^= 1;
        odd ^= 1;
    }

    __device__ __forceinline__ void weigh(const ln_cuda_backward_task &task, const float *rows) {
        const int position = of.control->step[of.now.stage].position, seen = of.control->step[of.now.stage].seen;
        if (seen != LN_CUDA_SEEN || tiles_cut(of.run, task.tile * tile::keys, tile::keys, task.keys, position, 64))
            of.template weigh<true>(task, of.group * 64, position, seen >> of.group, rows);
        else
            of.template weigh<false>(task, of.group * 64, position, LN_CUDA_SEEN, rows);
    }

    /* Scores were started, and the key gradient of the step before behind them. */
    template <bool LAST> __device__ __forceinline__ void step(const ln_cuda_backward_task &task, bool first) {
        const int stage = of.now.stage;
        const float *rows = (const float *)(of.shared + tile::row_at + stage * tile::row_bytes);
        backward_ring<STAGES> after = of.now;
        after.next();
        if (first)
            products_wait<0>();
        else
            products_wait<1>();
        hold(of.score);
        barrier_wait(&of.control->gradient_full[stage], of.now.phase);
        weigh(task, rows);
        if (!first) {
            key_done();
            finish_step();
        }
        float change[32] = {};
        of.template start_square<VALUE_SIZE>(
            change, tile_descriptor<VALUE_SIZE, tile::keys>(of.shared + tile::value_at) + of.group * 512,
            gradient_rows(stage));
        of.template start_sum<VALUE_SIZE>(value_gradient, of.weight, gradient_rows(stage));
        products_wait<1>();
        hold(change);
        barrier_wait(&of.control->slopes_full[1], slopes_phase ^ 1);
        of.incline(change, rows + 64, tile::slope_at + of.group * (64 * 128));
        stores_to_async();
        of.leave(&of.control->slopes_full[0]);
        slopes_phase ^= 1;
        products_wait<0>();
        hold(value_gradient);
        hold(of.weight);
        of.leave(&of.control->gradient_free[stage]);
        if (!LAST) {
            of.await_queries(after);
            start_score(after.stage);
        }
        of.template start_sum<KEY_SIZE>(key_gradient, of.slope, query_rows(stage));
        of.now = after;
    }
    /* The key gradient of the step before. */
    __device__ __forceinline__ void key_done() {
        products_wait<0>();
        hold(key_gradient);
        hold(of.slope);
        of.leave(&of.control->query_free[(of.now.stage + STAGES - 1) % STAGES]);
    }

    __device__ __forceinline__ void walk(const ln_cuda_backward_task &task, int phase) {
        const int count = steps_of(of.run, task);
        barrier_wait(&of.control->key_full, phase);
        of.clear_keys(task.keys - task.tile * tile::keys, phase);
        barrier_wait(&of.control->value_full, phase);
        of.await_queries(of.now);
        start_score(of.now.stage);
        for (int n = 0; n < count - 1; n++) step<false>(task, n == 0);
        step<true>(task, count == 1);
        key_done();
        finish_step();
        of.leave(&of.control->keys_free);
    }

    __device__ __forceinline__ void store(const ln_cuda_backward_task &task) {
        const int row = of.group * 64 + of.warp * 16 + of.lane / 4, rows = task.keys - task.tile * tile::keys;
        if (row - of.lane / 4 >= rows) return;
        store_gradient<KEY_SIZE, HALF>(of.run.key_gradient, of.run.packed_float32, task.key, task.head, row, rows, 0,
                                       of.run.key_size, key_gradient, of.run.gradient_scale);
        store_gradient<VALUE_SIZE, HALF>(of.run.value_gradient, of.run.gradient_float32, task.key, task.head, row, rows,
                                         0, of.run.value_size, value_gradient, 1.0f);
    }

    __device__ __forceinline__ void open() {
        of.now = {0, 0};
        sums_phase = 1, slopes_phase = 0, odd = 0;
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int OPTIONS>
static __global__ void __launch_bounds__(384, 1)
    attention_backward_tall(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                            const __grid_constant__ CUtensorMap value_map,
                            const __grid_constant__ CUtensorMap gradient_map,
                            const __grid_constant__ backward_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef backward_tall_tile<KEY_SIZE, VALUE_SIZE> tile;
    char *shared = block_memory();
    backward_control<tile::stages> *control = (backward_control<tile::stages> *)(shared + tile::control_at);
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) open_control(control);
    __syncthreads();
    if (group == 0) {
        registers_less<24>();
        if (threadIdx.x == 0)
            copy_backward_tasks<tile, tile::stages>(&query_map, &key_map, &value_map, run, shared, control);
        if (threadIdx.x == 32) copy_gradients<tile, tile::stages>(&gradient_map, run, shared, control);
        if (threadIdx.x == 64) await_turns<tile::stages>(run, control);
        if (threadIdx.x == 96) pass_turns<tile, tile::stages, OPTIONS | ENGINE>(run, shared, control);
    } else {
        registers_more<240>();
        backward_tall<KEY_SIZE, VALUE_SIZE, OPTIONS> keys = {{run, control, shared}};
        keys.of.group = group - 1;
        keys.of.warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0);
        keys.of.lane = threadIdx.x % 32;
        run_backward_tasks(keys);
    }
#endif
}

template <int KEY_SIZE, int VALUE_SIZE, int OPTIONS>
static ln_cuda_code backward_tall_start(void *const *arguments, int blocks, void *stream) {
    typedef backward_tall_tile<KEY_SIZE, VALUE_SIZE> tile;
    return launch_together(attention_backward_tall<KEY_SIZE, VALUE_SIZE, OPTIONS>, dim3((unsigned)blocks),
                           dim3(tile::threads), tile::bytes, stream, *(const CUtensorMap *)arguments[0],
                           *(const CUtensorMap *)arguments[1], *(const CUtensorMap *)arguments[2],
                           *(const CUtensorMap *)arguments[3], *(const backward_run *)arguments[4]);
}

/* A row of the table of kernels. */
template <int KEY_SIZE, int VALUE_SIZE, int OPTIONS>
static ln_cuda_backward_kernel backward_tall_kernel(const char *name) {
    typedef backward_tall_tile<KEY_SIZE, VALUE_SIZE> tile;
    return {name,          KEY_SIZE,    VALUE_SIZE, tile::queries,
            tile::keys,    KEY_SIZE,    VALUE_SIZE, LN_CUDA_WINDOW | (OPTIONS & (LN_CUDA_CAP | LN_CUDA_HALF)),
            tile::threads, tile::bytes, 9,          backward_tall_start<KEY_SIZE, VALUE_SIZE, OPTIONS>};
}

} // namespace ln

#endif
