/* What the kernels of the backward pass for compute capability 9.0 share: the copying threads, and what a warp group
 * does with its accumulators.
 *
 * Sums of query gradients are those of several blocks. Each tile of queries counts the tiles of keys that were added;
 * a block adds when the count is its task's turn (turn_of), so that the order is fixed, and sets the next when its
 * additions are seen. Two threads beside the groups do the waiting for both, ahead and behind. Tasks visit queries in
 * an order in which turns come up as time goes (see attention_backward_cuda.cu). Invariant: the task whose turn it is
 * has been taken, or will be by a block that waits for nobody behind it. */
#ifndef LN_KERNEL_CUDA_ATTENTION_BACKWARD_GROUP_CUH
#define LN_KERNEL_CUDA_ATTENTION_BACKWARD_GROUP_CUH

#include "kernel/cuda/attention_backward_rows.cuh"
#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

/* Of the warps of both groups, one lane speaks for all at a barrier. The assembler leaves out meetings of lanes that it
 * knows to be together, and so compute-sanitizer's racecheck does not know it: for that (tests/cuda/sanitize) compile
 * with LN_EVERY_LANE. */
#ifdef LN_EVERY_LANE
enum { BACKWARD_SPEAKERS = 32, BACKWARD_ARRIVALS = 8 * BACKWARD_SPEAKERS };
#else
enum { BACKWARD_SPEAKERS = 1, BACKWARD_ARRIVALS = 8 * BACKWARD_SPEAKERS };
#endif
enum { ENGINE = 64 }; /* beside LN_CUDA_CAP and LN_CUDA_HALF: the copy engine adds to the sums, from shared memory */

template <int STAGES> struct backward_control {
    uint64_t key_full, value_full, keys_free;
    uint64_t query_full[STAGES], query_free[STAGES], gradient_full[STAGES], gradient_free[STAGES];
    uint64_t turn_come[STAGES], added[STAGES], slopes_full[2], sums_free;
    uint64_t task_full[2], task_free[2];
    ln_cuda_backward_task task[2];
    struct {
        int place, position, rows, turn, seen; /* place: of head and tile */
    } step[STAGES];
};

/* Which stage the n-th tile of queries lies in, and the phase of its barriers. */
template <int STAGES> struct backward_ring {
    int stage, phase;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

template <int SIZE, int ROWS>
static __device__ __forceinline__ void copy_panels(char *to, const CUtensorMap *map, uint64_t *barrier, int head,
                                                   int token) {
#pragma unroll 1
    for (int column = 0; column < SIZE; column += 64)
        copy_box(to + column * ROWS * 2, map, barrier, column, head, token);
}

/* The first copying thread: tasks, keys, values, queries. */
template <class TILE, int STAGES>
static __device__ __forceinline__ void copy_queries(const CUtensorMap *map, const backward_run &run, char *shared,
                                                    backward_control<STAGES> *control,
                                                    const ln_cuda_backward_task &task, backward_ring<STAGES> &ring) {
    const int steps = steps_of(run, task);
#pragma unroll 1
    for (int n = 0; n < steps; n++) {
        const ln_cuda_backward_visit visit = visit_of(run, task, n);
        const ln_cuda_backward_rows rows = run.tiles[visit.tile];
        barrier_wait(&control->query_free[ring.stage], ring.phase);
        control->step[ring.stage] = {visit.head * run.tile_count + visit.tile, rows.position, rows.rows, visit.turn,
                                     visit.seen};
        barrier_expect(&control->query_full[ring.stage], TILE::query_bytes);
        copy_panels<TILE::key_size, TILE::queries>(shared + TILE::query_at + ring.stage * TILE::query_bytes, map,
                                                   &control->query_full[ring.stage], visit.head, rows.query);
        ring.next();
    }
}
template <class TILE, int STAGES>
static __device__ __forceinline__ void copy_backward_tasks(const CUtensorMap *query_map, const CUtensorMap *key_map,
                                                           const CUtensorMap *value_map, const backward_run &run,
                                                           char *shared, backward_control<STAGES> *control) {
    backward_ring<STAGES> ring = {0, 1}; /* the first wait for a free stage passes at once */
    backward_ring<2> tasks = {0, 1};
    int keys_phase = 1;
    int index = blockIdx.x;
    for (;;) {
        ln_cuda_backward_task &task = control->task[tasks.stage];
        barrier_wait(&control->task_free[tasks.stage], tasks.phase);
        if (index < run.task_count)
            task = run.tasks[index];
        else
            task.head = -1;
        barrier_arrive(&control->task_full[tasks.stage]);
        tasks.next();
        if (index >= run.task_count) break;
        if (task.first < task.end) {
            barrier_wait(&control->keys_free, keys_phase);
            keys_phase ^= 1;
            barrier_expect(&control->key_full, TILE::key_bytes);
            copy_panels<TILE::key_size, TILE::keys>(shared, key_map, &control->key_full, task.head, task.key);
            barrier_expect(&control->value_full, TILE::value_bytes);
            copy_panels<TILE::value_size, TILE::keys>(shared + TILE::value_at, value_map, &control->value_full,
                                                      task.head, task.key);
            copy_queries<TILE, STAGES>(query_map, run, shared, control, task, ring);
        }
        /* A company takes blocks that follow each other, so that none has two of its members; others take what comes
         * next, when the copies of this task have started. Back to 0 after as many as there are tasks. */
        index = task.order == LN_CUDA_ROUND ? index + gridDim.x : gridDim.x + atomicInc(run.next, run.task_count - 1);
    }
}

/* The second: gradients of outputs, and the numbers of their rows. */
template <class TILE, int STAGES>
static __device__ __forceinline__ void copy_gradients(const CUtensorMap *map, const backward_run &run, char *shared,
                                                      backward_control<STAGES> *control) {
    backward_ring<STAGES> ring = {0, 1};
    backward_ring<2> tasks = {0, 0};
    for (;;) {
        const ln_cuda_backward_task &task = control->task[tasks.stage];
        barrier_wait(&control->task_full[tasks.stage], tasks.phase);
        if (task.head < 0) break;
        const int steps = steps_of(run, task);
#pragma unroll 1
        for (int n = 0; n < steps; n++) {
            const ln_cuda_backward_visit visit = visit_of(run, task, n);
            uint64_t *full = &control->gradient_full[ring.stage];
            barrier_wait(&control->gradient_free[ring.stage], ring.phase);
            barrier_expect(full, TILE::gradient_bytes + TILE::row_bytes);
            copy_row(shared + TILE::row_at + ring.stage * TILE::row_bytes,
                     run.rows + (int64_t)(visit.head * run.tile_count + visit.tile) * 2 * TILE::queries, full,
                     TILE::row_bytes);
            copy_panels<TILE::value_size, TILE::queries>(shared + TILE::gradient_at + ring.stage * TILE::gradient_bytes,
                                                         map, full, visit.head, run.tiles[visit.tile].query);
            ring.next();
        }
        barrier_arrive(&control->task_free[tasks.stage]);
        tasks.next();
    }
}

/* The third: waits until it is the task's turn at a tile of queries, ahead of the groups where it can. */
template <int STAGES>
static __device__ __forceinline__ void await_turns(const backward_run &run, backward_control<STAGES> *control) {
    backward_ring<STAGES> ring = {0, 0};
    backward_ring<2> tasks = {0, 0};
    for (;;) {
        const ln_cuda_backward_task &task = control->task[tasks.stage];
        barrier_wait(&control->task_full[tasks.stage], tasks.phase);
        if (task.head < 0) break;
        const int count = steps_of(run, task);
#pragma unroll 1
        for (int n = 0; n < count; n++) {
            barrier_wait(&control->query_full[ring.stage], ring.phase);
            turn_await(run.turns + control->step[ring.stage].place, control->step[ring.stage].turn);
            barrier_arrive(&control->turn_come[ring.stage]);
            ring.next();
        }
        barrier_arrive(&control->task_free[tasks.stage]);
        tasks.next();
    }
}
/* The fourth: passes the turn on when the additions of all warps are seen; the groups do not wait for that. */
template <class TILE, int STAGES, int OPTIONS>
static __device__ __forceinline__ void pass_turns(const backward_run &run, char *shared,
                                                  backward_control<STAGES> *control) {
    backward_ring<STAGES> ring = {0, 0};
    backward_ring<2> tasks = {0, 0};
    for (;;) {
        const ln_cuda_backward_task &task = control->task[tasks.stage];
        barrier_wait(&control->task_full[tasks.stage], tasks.phase);
        if (task.head < 0) break;
        const int count = steps_of(run, task);
#pragma unroll 1
        for (int n = 0; n < count; n++) {
            barrier_wait(&control->query_full[ring.stage], ring.phase);
            const int place = control->step[ring.stage].place, turn = control->step[ring.stage].turn;
            if constexpr ((OPTIONS & ENGINE) == 0) barrier_wait(&control->added[ring.stage], ring.phase);
            if constexpr ((OPTIONS & ENGINE) != 0) {
                constexpr int bytes = TILE::queries * TILE::key_size * 4;
                barrier_wait(&control->turn_come[ring.stage], ring.phase);
                barrier_arrive(&control->query_free[ring.stage]); /* the next queries need not wait for the additions */
                barrier_wait(&control->added[ring.stage], ring.phase);
                engine_add(run.sums + (int64_t)place * (bytes / 4), shared + TILE::sum_at, bytes, turn > 0);
                engine_wait_read();
                barrier_arrive(&control->sums_free);
                engine_wait();
            } else
                barrier_arrive(&control->query_free[ring.stage]);
            turn_set(run.turns + place, turn + 1);
            ring.next();
        }
        barrier_arrive(&control->task_free[tasks.stage]);
        tasks.next();
    }
}

/* What a warp group has and does, whatever its part. */
template <class TILE, int STAGES, int OPTIONS> struct backward_group {
    static constexpr bool HALF = (OPTIONS & LN_CUDA_HALF) != 0;
    static constexpr int KEY_SIZE = TILE::key_size, VALUE_SIZE = TILE::value_size, QUERIES = TILE::queries;
    const backward_run &run;
    backward_control<STAGES> *control;
    char *shared;
    int group, warp, lane;
    backward_ring<STAGES> now;
    float score[QUERIES / 2];
    uint32_t weight[QUERIES / 4], slope[QUERIES / 4];
    uint32_t steep[(OPTIONS & LN_CUDA_CAP) != 0 ? QUERIES / 4 : 1]; /* weights by the derivative of the cap */

    /* This warp has done with what the barrier stands for. */
    __device__ __forceinline__ void leave(uint64_t *barrier) {
        __syncwarp();
        if (lane < BACKWARD_SPEAKERS) barrier_arrive(barrier);
    }
    /* sum = left (64 x SIZE) * right^T (QUERIES x SIZE); both in panels of 64 columns. */
    template <int SIZE>
    __device__ __forceinline__ void start_square(float (&sum)[QUERIES / 2], uint64_t left, uint64_t right) {
        hold(sum);
        products_open();
#pragma unroll
        for (int k = 0; k < SIZE / 16; k++) {
            const uint64_t step = k % 4 * 2, from = left + (k / 4 * (TILE::keys * 8) + step),
                           to = right + (k / 4 * (QUERIES * 8) + step);
            if (k == 0)
                product<QUERIES, HALF>::template shared<false>(sum, from, to);
            else
                product<QUERIES, HALF>::template shared<true>(sum, from, to);
        }
        products_commit();
        hold(sum);
    }
    /* sum += left (64 x QUERIES) * rows (QUERIES x SIZE) */
    template <int SIZE>
    __device__ __forceinline__ void start_sum(float (&sum)[SIZE / 2], uint32_t (&left)[QUERIES / 4], uint64_t rows) {
        hold(sum);
        hold(left);
        products_open();
#pragma unroll
        for (int k = 0; k < QUERIES / 16; k++)
            product<SIZE, HALF>::template registers<true, true>(sum, left + 4 * k,
                                                                rows + (uint64_t)(k * (16 * 128 / 16)));
        products_commit();
        hold(sum);
    }
    /* Scores become weights. first_key, listed: this group's keys in the tile, and its bits of what a list lets see. */
    template <bool MASKED>
    __device__ __forceinline__ void weigh(const ln_cuda_backward_task &task, int first_key, int position, int listed,
                                          const float *lse) {
        int low[2] = {}, high[2] = {};
        if (MASKED)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const sight seen = key_sight(run, task.tile * TILE::keys + first_key + warp * 16 + lane / 4 + 8 * half,
                                             task.keys, position);
                low[half] = max(seen.low, listed & 1 ? 0 : 64) - 2 * (lane % 4);
                high[half] = min(seen.high, listed & 4 ? 128 : 64) - 2 * (lane % 4);
            }
#pragma unroll
        for (int k = 0; k < QUERIES / 16; k++) {
            const float4 four = *(const float4 *)(lse + 16 * k + 4 * (lane % 4));
            const float base[2][2] = {{four.x, four.y}, {four.z, four.w}};
            float capped[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int column = 16 * k + i / 4 * 8 + i % 2;
                float &x = score[8 * k + i], exponent;
                if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) x = tangent(x * run.cap_scale);
                exponent = fmaf(x, run.scale, -base[i / 4][i % 2]);
                if (MASKED && (column < low[i / 2 % 2] || column >= high[i / 2 % 2])) exponent = -CUDART_INF_F;
                x = (OPTIONS & LN_CUDA_CAP) != 0 ? fmaf(-x, x, 1.0f) : x;
                const float slope_of_cap = x;
                x = exponential(exponent);
                if constexpr ((OPTIONS & LN_CUDA_CAP) != 0) capped[i] = x * slope_of_cap;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                weight[4 * k + i] = pack_as<HALF>(score[8 * k + 2 * i], score[8 * k + 2 * i + 1]);
                if constexpr ((OPTIONS & LN_CUDA_CAP) != 0)
                    steep[4 * k + i] = pack_as<HALF>(capped[2 * i], capped[2 * i + 1]);
            }
        }
    }

    /* Changes become slopes, in registers and, turned, in a panel of shared memory. */
    __device__ __forceinline__ void incline(const float (&change)[QUERIES / 2], const float *part, int slopes) {
#pragma unroll
        for (int k = 0; k < QUERIES / 16; k++) {
            const float4 four = *(const float4 *)(part + 16 * k + 4 * (lane % 4));
            const float base[2][2] = {{four.x, four.y}, {four.z, four.w}};
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int e = 8 * k + i;
                const float moved = change[e] - base[i / 4][i % 2];
                out[i] = unpack_as<HALF>((OPTIONS & LN_CUDA_CAP) != 0 ? steep[e / 2] : weight[e / 2], e % 2) * moved;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) slope[4 * k + i] = pack_as<HALF>(out[2 * i], out[2 * i + 1]);
        }
        char *to = shared + slopes;
        const int query = lane / 16 * 8 + lane % 8, piece = 2 * warp + lane / 8 % 2;
#pragma unroll
        for (int k = 0; k < QUERIES / 16; k++) {
            const uint32_t four[4] = {slope[4 * k], slope[4 * k + 1], slope[4 * k + 2], slope[4 * k + 3]};
            store_matrices<true>(to + (16 * k + query) * 128 + (piece ^ query % 8) * 16, four);
        }
    }

    /* block: of 64 x 64 of the tile's. */
    __device__ __forceinline__ void add_query(const float (&query_gradient)[32], int place, int block, int turn) {
        constexpr int blocks = QUERIES / 64 * (KEY_SIZE / 64);
        float *to = run.sums + ((int64_t)place * blocks + block) * 4096 + threadIdx.x % 128 * 4;
        if (turn) {
#pragma unroll
            for (int j = 0; j < 8; j++)
                add_four(to + j * 512, {query_gradient[4 * j], query_gradient[4 * j + 1], query_gradient[4 * j + 2],
                                        query_gradient[4 * j + 3]});
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++)
                *(float4 *)(to + j * 512) = {query_gradient[4 * j], query_gradient[4 * j + 1],
                                             query_gradient[4 * j + 2], query_gradient[4 * j + 3]};
        }
    }
    /* This warp has added what it has of this stage. */
    __device__ __forceinline__ void pass_turn(int stage) {
        leave(&control->added[stage]);
    }

    /* Rows of a tile after the last of the sequence belong to another one: their weights are 0, but 0 times infinity is
     * not. */
    template <int SIZE, int ROWS> __device__ __forceinline__ void clear_rows(char *at, int from) {
#pragma unroll 1
        for (int panel = 0; panel < SIZE / 64; panel++)
#pragma unroll 1
            for (int i = from * 128 + ((int)threadIdx.x - 128) * 16; i < ROWS * 128; i += 256 * 16)
                *(uint4 *)(at + panel * ROWS * 128 + i) = {0, 0, 0, 0};
    }
    __device__ __forceinline__ void clear_keys(int rows, int phase) {
        if (rows >= TILE::keys) return;
        barrier_wait(&control->value_full, phase);
        clear_rows<KEY_SIZE, TILE::keys>(shared, rows);
        clear_rows<VALUE_SIZE, TILE::keys>(shared + TILE::value_at, rows);
        stores_to_async();
        __syncwarp();
        named_wait(3, 256);
    }
    __device__ __forceinline__ void await_queries(const backward_ring<STAGES> &ring) {
        barrier_wait(&control->query_full[ring.stage], ring.phase);
        const int rows = control->step[ring.stage].rows;
        if (rows >= QUERIES) return;
        barrier_wait(&control->gradient_full[ring.stage], ring.phase);
        clear_rows<KEY_SIZE, QUERIES>(shared + TILE::query_at + ring.stage * TILE::query_bytes, rows);
        clear_rows<VALUE_SIZE, QUERIES>(shared + TILE::gradient_at + ring.stage * TILE::gradient_bytes, rows);
        stores_to_async();
        __syncwarp();
        named_wait(3, 256);
    }
};

/* The tasks of a warp group that has the gradients of its keys and values to itself. */
template <class KEYS> static __device__ __forceinline__ void run_backward_tasks(KEYS &keys) {
    backward_ring<2> tasks = {0, 0};
    int phase = 0;
    keys.open();
    for (;;) {
        barrier_wait(&keys.of.control->task_full[tasks.stage], tasks.phase);
        const ln_cuda_backward_task &task = keys.of.control->task[tasks.stage];
        if (task.head < 0) break;
#pragma unroll
        for (float &x : keys.key_gradient) x = 0;
#pragma unroll
        for (float &x : keys.value_gradient) x = 0;
        if (task.first < task.end) {
            keys.walk(task, phase);
            phase ^= 1;
        }
        keys.store(task);
        keys.of.leave(&keys.of.control->task_free[tasks.stage]);
        tasks.next();
    }
}

/* The barriers of a block, by one thread. */
template <int STAGES> static __device__ __forceinline__ void open_control(backward_control<STAGES> *control) {
    barrier_open(&control->key_full, 1);
    barrier_open(&control->value_full, 1);
    barrier_open(&control->keys_free, BACKWARD_ARRIVALS);
    for (int stage = 0; stage < STAGES; stage++) {
        barrier_open(&control->query_full[stage], 1);
        barrier_open(&control->gradient_full[stage], 1);
        barrier_open(&control->query_free[stage], BACKWARD_ARRIVALS + 1);
        barrier_open(&control->turn_come[stage], 1);
        barrier_open(&control->added[stage], BACKWARD_ARRIVALS);
        barrier_open(&control->gradient_free[stage], BACKWARD_ARRIVALS);
    }
    barrier_open(&control->sums_free, 1);
    for (int stage = 0; stage < 2; stage++) {
        barrier_open(&control->slopes_full[stage], BACKWARD_ARRIVALS);
        barrier_open(&control->task_full[stage], 1);
        barrier_open(&control->task_free[stage], BACKWARD_ARRIVALS + 3);
    }
    barriers_opened();
}

} // namespace ln

#endif
