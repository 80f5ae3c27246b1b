/* Gradients of exact attention for compute capability 9.0, heads of 192 and 256: gradients of 64 keys and values fill
 * the registers of two warp groups, so that each has one of them whole. The first group makes the scores and the
 * value's gradient, the second the slopes and the key's; weights go from the first to the second through shared memory,
 * each thread's to the thread with the same place, and slopes back to it.
 *
 *     first:  weight(n) = exp(score(n) - lse) ; pass weight ; start value_gradient += weight(n) output_gradient(n) ;
 *             start score(n+1) = key query(n+1)^T ; meet ; query_gradient = slope(n)^T key, its columns
 *     second: wait for change(n) ; take weight ; slope(n) = weight(n) (change(n) - part) ; meet ;
 *             start query_gradient = slope(n)^T key, its columns ; start key_gradient += slope(n) query(n) ;
 *             start change(n+1) = value output_gradient(n+1)^T
 *
 * Invariant: the first group passes weight(n+1) after its query gradient of n is done, so that the second has taken
 * weight(n) and slope(n) has been read by both when slope(n+1) is written. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_WIDE_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_WIDE_CUH

#include "kernel/cuda/attention_backward_group.cuh"

namespace ln {

template <int KEY_SIZE, int VALUE_SIZE, int STAGES> struct backward_wide_tile {
    static constexpr int key_size = KEY_SIZE, value_size = VALUE_SIZE, queries = 64, keys = 64, threads = 384;
    static constexpr int key_bytes = keys * KEY_SIZE * 2, value_bytes = keys * VALUE_SIZE * 2,
                         query_bytes = queries * KEY_SIZE * 2, gradient_bytes = queries * VALUE_SIZE * 2,
                         slope_bytes = queries * keys * 2, row_bytes = queries * 2 * 4;
    static constexpr int value_at = key_bytes, query_at = value_at + value_bytes,
                         gradient_at = query_at + STAGES * query_bytes,
                         slope_at = gradient_at + STAGES * gradient_bytes, weight_at = slope_at + slope_bytes,
                         row_at = weight_at + slope_bytes, control_at = row_at + STAGES * row_bytes;
    static constexpr int bytes = control_at + (int)sizeof(backward_control<STAGES>);
    /* Columns of the query gradient, in blocks of 64, that the first group takes. */
    static constexpr int first_blocks = (KEY_SIZE / 64 + 1) / 2;
};

enum { WEIGHTS_PASSED = 1, SLOPES_MET = 2 }; /* named barriers */

template <int KEY_SIZE, int VALUE_SIZE, int STAGES, int OPTIONS> struct backward_wide {
    typedef backward_wide_tile<KEY_SIZE, VALUE_SIZE, STAGES> tile;
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    backward_group<tile, STAGES, OPTIONS> of;

    __device__ __forceinline__ uint64_t query_rows(int stage) {
        return tile_descriptor<KEY_SIZE, 64>(of.shared + tile::query_at) + stage * (tile::query_bytes / 16);
    }
    __device__ __forceinline__ uint64_t gradient_rows(int stage) {
        return tile_descriptor<VALUE_SIZE, 64>(of.shared + tile::gradient_at) + stage * (tile::gradient_bytes / 16);
    }
    __device__ __forceinline__ void start_score(float (&sum)[32], int stage) {
        of.template start_square<KEY_SIZE>(sum, tile_descriptor<KEY_SIZE, 64>(of.shared), query_rows(stage));
    }
    __device__ __forceinline__ void start_change(float (&sum)[32], int stage) {
        of.template start_square<VALUE_SIZE>(sum, tile_descriptor<VALUE_SIZE, 64>(of.shared + tile::value_at),
                                             gradient_rows(stage));
    }
    /* 64 columns of slope^T * key. */
    __device__ __forceinline__ void start_query(float (&query_gradient)[32], int block) {
        const uint64_t left = tile_descriptor<64, 64>(of.shared + tile::slope_at),
                       right = tile_descriptor<KEY_SIZE, 64>(of.shared) + block * (64 * 8);
        hold(query_gradient);
        products_open();
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (k == 0)
                product<64, HALF>::template turned<false, false, true>(query_gradient, left, right);
            else
                product<64, HALF>::template turned<true, false, true>(query_gradient, left + 2 * k, right + 128 * k);
        products_commit();
        hold(query_gradient);
    }
    __device__ __forceinline__ const float *rows_of(int stage) {
        return (const float *)(of.shared + tile::row_at + stage * tile::row_bytes);
    }
    __device__ __forceinline__ uint4 *weights_of() {
        return (uint4 *)(of.shared + tile::weight_at) + threadIdx.x % 128;
    }

    /* Scores of this stage become weights, for both groups. */
    __device__ __forceinline__ void weigh(const ln_cuda_backward_task &task, int stage) {
        const int position = of.control->step[stage].position;
        if (tiles_cut(of.run, task.tile * 64, 64, task.keys, position, 64))
            of.template weigh<true>(task, 0, position, LN_CUDA_SEEN, rows_of(stage));
        else
            of.template weigh<false>(task, 0, position, LN_CUDA_SEEN, rows_of(stage));
        uint4 *to = weights_of();
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t *from = (OPTIONS & LN_CUDA_CAP) != 0 ? of.steep : of.weight;
            to[128 * k] = {from[4 * k], from[4 * k + 1], from[4 * k + 2], from[4 * k + 3]};
        }
        named_arrive(WEIGHTS_PASSED, 256);
    }
    __device__ __forceinline__ void take_weights() {
        named_wait(WEIGHTS_PASSED, 256);
        uint32_t *to = (OPTIONS & LN_CUDA_CAP) != 0 ? of.steep : of.weight;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint4 four = weights_of()[128 * k];
            to[4 * k] = four.x, to[4 * k + 1] = four.y, to[4 * k + 2] = four.z, to[4 * k + 3] = four.w;
        }
    }

    template <bool LAST>
    __device__ __forceinline__ void first_step(const ln_cuda_backward_task &task,
                                               float (&value_gradient)[VALUE_SIZE / 2]) {
        const int stage = of.now.stage;
        const int place = of.control->step[stage].place, turn = of.control->step[stage].turn;
        backward_ring<STAGES> after = of.now;
        after.next();
        barrier_wait(&of.control->gradient_full[stage], of.now.phase);
        weigh(task, stage);
        of.template start_sum<VALUE_SIZE>(value_gradient, of.weight, gradient_rows(stage));
        products_wait<0>();
        hold(value_gradient);
        hold(of.weight);
        of.leave(&of.control->gradient_free[stage]);
        float following_score[32] = {};
        if (!LAST) {
            of.await_queries(after);
            start_score(following_score, after.stage);
        }
        __syncwarp();
        named_wait(SLOPES_MET, 256);
#pragma unroll
        for (int block = 0; block < tile::first_blocks; block++) {
            float query_gradient[32] = {};
            start_query(query_gradient, block);
            products_wait<0>();
            hold(query_gradient);
            barrier_wait(&of.control->turn_come[stage], of.now.phase);
            of.add_query(query_gradient, place, block, turn);
        }
        of.pass_turn(stage);
        if (!LAST) {
            hold(following_score);
            of.leave(&of.control->query_free[after.stage]);
#pragma unroll
            for (int i = 0; i < 32; i++) of.score[i] = following_score[i];
        }
        of.now = after;
    }
    __device__ __forceinline__ void walk_first(const ln_cuda_backward_task &task, int count,
                                               float (&value_gradient)[VALUE_SIZE / 2]) {
        of.await_queries(of.now);
        start_score(of.score, of.now.stage);
        products_wait<0>();
        hold(of.score);
        of.leave(&of.control->query_free[of.now.stage]);
        for (int n = 0; n < count - 1; n++) first_step<false>(task, value_gradient);
        first_step<true>(task, value_gradient);
    }

    template <bool LAST> __device__ __forceinline__ void second_step(float (&key_gradient)[KEY_SIZE / 2]) {
        const int stage = of.now.stage;
        const int place = of.control->step[stage].place, turn = of.control->step[stage].turn;
        backward_ring<STAGES> after = of.now;
        after.next();
        take_weights();
        of.incline(of.score, rows_of(stage) + 64, tile::slope_at);
        of.leave(&of.control->gradient_free[stage]);
        if (!LAST) of.await_queries(after);
        stores_to_async();
        __syncwarp();
        named_wait(SLOPES_MET, 256);
        of.template start_sum<KEY_SIZE>(key_gradient, of.slope, query_rows(stage));
#pragma unroll
        for (int block = tile::first_blocks; block < KEY_SIZE / 64; block++) {
            float query_gradient[32] = {};
            start_query(query_gradient, block);
            products_wait<0>();
            hold(query_gradient);
            barrier_wait(&of.control->turn_come[stage], of.now.phase);
            of.add_query(query_gradient, place, block, turn);
        }
        of.pass_turn(stage);
        hold(key_gradient);
        hold(of.slope);
        of.leave(&of.control->query_free[stage]);
        if (!LAST) {
            barrier_wait(&of.control->gradient_full[after.stage], after.phase);
            start_change(of.score, after.stage);
            products_wait<0>();
            hold(of.score);
        }
        of.now = after;
    }
    __device__ __forceinline__ void walk_second(int count, float (&key_gradient)[KEY_SIZE / 2]) {
        of.await_queries(of.now);
        barrier_wait(&of.control->gradient_full[of.now.stage], of.now.phase);
        start_change(of.score, of.now.stage);
        products_wait<0>();
        hold(of.score);
        for (int n = 0; n < count - 1; n++) second_step<false>(key_gradient);
        second_step<true>(key_gradient);
    }

    template <int SIZE, bool FIRST> __device__ __forceinline__ void run_tasks() {
        backward_ring<2> tasks = {0, 0};
        int phase = 0;
        of.now = {0, 0};
        for (;;) {
            barrier_wait(&of.control->task_full[tasks.stage], tasks.phase);
            const ln_cuda_backward_task &task = of.control->task[tasks.stage];
            if (task.head < 0) break;
            float gradient[SIZE / 2];
#pragma unroll
            for (int i = 0; i < SIZE / 2; i++) gradient[i] = 0;
            if (task.first < task.end) {
                const int count = steps_of(of.run, task);
                barrier_wait(&of.control->key_full, phase);
                of.clear_keys(task.keys - task.tile * 64, phase);
                barrier_wait(&of.control->value_full, phase);
                hold(gradient);
                if constexpr (FIRST)
                    walk_first(task, count, gradient);
                else
                    walk_second(count, gradient);
                of.leave(&of.control->keys_free);
                phase ^= 1;
            }
            const int row = of.warp * 16 + of.lane / 4;
            store_gradient<SIZE, HALF>(FIRST ? of.run.value_gradient : of.run.key_gradient,
                                       FIRST ? of.run.gradient_float32 : of.run.packed_float32, task.key, task.head,
                                       row, task.keys - task.tile * 64, 0, FIRST ? of.run.value_size : of.run.key_size,
                                       gradient, FIRST ? 1.0f : of.run.gradient_scale);
            of.leave(&of.control->task_free[tasks.stage]);
            tasks.next();
        }
    }
};

template <int KEY_SIZE, int VALUE_SIZE, int STAGES, int OPTIONS>
static __global__ void __launch_bounds__(384, 1)
    attention_backward_wide(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                            const __grid_constant__ CUtensorMap value_map,
                            const __grid_constant__ CUtensorMap gradient_map,
                            const __grid_constant__ backward_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef backward_wide_tile<KEY_SIZE, VALUE_SIZE, STAGES> tile;
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
        backward_wide<KEY_SIZE, VALUE_SIZE, STAGES, OPTIONS> part = {{run, control, shared}};
        part.of.group = group - 1;
        part.of.warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0);
        part.of.lane = threadIdx.x % 32;
        if (group == 1)
            part.template run_tasks<VALUE_SIZE, true>();
        else
            part.template run_tasks<KEY_SIZE, false>();
    }
#endif
}

template <int KEY_SIZE, int VALUE_SIZE, int STAGES, int OPTIONS>
static ln_cuda_code backward_wide_start(void *const *arguments, int blocks, void *stream) {
    typedef backward_wide_tile<KEY_SIZE, VALUE_SIZE, STAGES> tile;
    return launch_together(attention_backward_wide<KEY_SIZE, VALUE_SIZE, STAGES, OPTIONS>, dim3((unsigned)blocks),
                           dim3(tile::threads), tile::bytes, stream, *(const CUtensorMap *)arguments[0],
                           *(const CUtensorMap *)arguments[1], *(const CUtensorMap *)arguments[2],
                           *(const CUtensorMap *)arguments[3], *(const backward_run *)arguments[4]);
}

/* A row of the table of kernels. */
template <int KEY_SIZE, int VALUE_SIZE, int STAGES, int OPTIONS>
static ln_cuda_backward_kernel backward_wide_kernel(const char *name) {
    typedef backward_wide_tile<KEY_SIZE, VALUE_SIZE, STAGES> tile;
    return {name,          KEY_SIZE,    VALUE_SIZE, tile::queries,
            tile::keys,    KEY_SIZE,    VALUE_SIZE, LN_CUDA_WINDOW | (OPTIONS & (LN_CUDA_CAP | LN_CUDA_HALF)),
            tile::threads, tile::bytes, 9,          backward_wide_start<KEY_SIZE, VALUE_SIZE, STAGES, OPTIONS>};
}

} // namespace ln

#endif
