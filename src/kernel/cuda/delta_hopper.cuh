/* The walk of the delta rules for compute capability 9.0.
 *
 * A block has 64 columns of values (or 128: GROUPS of 64) of one head and sequence. Two threads copy what chunks need,
 * STAGES ahead; SHARERS neighbours are a cluster, in which each asks for its part of what all need, for all: keys,
 * queries, records. Such a stage is free when all have done with it. Each group of four warps keeps the state of its 64
 * columns, transposed, as accumulators of products, and steps from chunk to chunk (delta_chunk.cuh):
 *
 *     start sum = difference T^T and output = S Q^T ; start S += written K and output += written P^T ; S in bf16 ;
 *     start answer = S K^T of the next chunk ; difference = V - answer.
 *
 * Every left operand is an accumulator rounded to bf16, which already lies where products want it, so that nothing of
 * the chain of three products passes through memory; those of the outputs fill its gaps. Another warp stores outputs.
 */
#ifndef LN_KERNEL_CUDA_DELTA_HOPPER_CUH
#define LN_KERNEL_CUDA_DELTA_HOPPER_CUH

#include "kernel/cuda/delta_chunk.cuh"
#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { DELTA_STAGES_MOST = 4 };

struct delta_control {
    uint64_t near_full[DELTA_STAGES_MOST], near_free[DELTA_STAGES_MOST];
    uint64_t far_full[DELTA_STAGES_MOST], far_free[DELTA_STAGES_MOST];
    uint64_t written[2], drained[2]; /* scratch of a group */
};

/* Of a chunk the walk first needs keys, values and T (near), later queries and P (far): each have stages of their own,
 * those near one more where there is room. */
template <int KEY_SIZE, int GROUPS, bool BY_KEY, int STAGES> struct delta_shape {
    typedef delta_record<KEY_SIZE, BY_KEY> record;
    static constexpr int threads = 128 * (GROUPS + 1), columns = 64 * GROUPS;
    static constexpr int transform = 0, factors = 8192, value = factors + 1024, read = value + CHUNK * columns * 2,
                         write = BY_KEY ? read + (int)record::tile : read, near = write + record::tile;
    static constexpr int scores = 0, queries = 8192, far = queries + record::tile;
    static constexpr int far_stages = STAGES < 3 ? STAGES : 3, first_far = STAGES * near;
    /* The barriers of decays of keys lie in what the first stage's factors leave free: all else is taken. */
    static constexpr int scratch = first_far + far_stages * far,
                         control = BY_KEY ? factors + KEY_SIZE * 4 : scratch + GROUPS * 8192,
                         bytes = BY_KEY ? scratch + GROUPS * 8192 : control + (int)sizeof(delta_control);
    static constexpr int copy_registers = 40, walk_registers = GROUPS == 1 ? 248 : 232; /* a thread's */
    static constexpr int registers = GROUPS == 1 ? 144 : 168;                           /* at first */
};

/* Which stage the n-th chunk lies in, and the phase of its barriers. */
template <int STAGES> struct delta_ring {
    int stage, phase;
    __device__ __forceinline__ void next() {
        stage++;
        if (stage == STAGES) stage = 0, phase ^= 1;
    }
};

/* sum = (or +=) left rows^T, `right` a tile of CHUNK rows. */
template <int COLUMNS, bool ADD>
static __device__ __forceinline__ void start_rows(float (&sum)[CHUNK / 2], const uint32_t *left, uint64_t right) {
#pragma unroll
    for (int k = 0; k < COLUMNS / 16; k++) {
        const uint64_t at = right + (uint64_t)(k / 4 * (CHUNK * 128 / 16) + k % 4 * 2);
        if (k > 0 || ADD)
            product<CHUNK>::registers<true, false>(sum, left + 4 * k, at);
        else
            product<CHUNK>::registers<false, false>(sum, left, at);
    }
}

/* What all sharers need: each asks for its part, for all of them. */
template <int SHARERS>
static __device__ __forceinline__ void share_panels(char *to, const CUtensorMap *map, uint64_t *full, int panels,
                                                    int head, int token, int rank) {
#pragma unroll 1
    for (int panel = rank; panel < panels; panel += SHARERS)
        if (SHARERS == 1)
            copy_box(to + panel * CHUNK * 128, map, full, panel * 64, head, token);
        else
            copy_box_both(to + panel * CHUNK * 128, map, full, panel * 64, head, token);
}
template <int SHARERS>
static __device__ __forceinline__ void share_row(char *to, const char *from, uint64_t *full, int bytes, int rank) {
    const int part = bytes / SHARERS, at = rank * part;
    if (SHARERS == 1)
        copy_row(to, from, full, bytes);
    else
        copy_row_both(to + at, from + at, full, part);
}
static __device__ __forceinline__ void copy_panels(char *to, const CUtensorMap *map, uint64_t *full, int panels,
                                                   int column, int head, int token) {
#pragma unroll 1
    for (int panel = 0; panel < panels; panel++)
        copy_box(to + panel * CHUNK * 128, map, full, column + panel * 64, head, token);
}
template <class SHAPE, int KEY_SIZE, bool BY_KEY, int STAGES, int SHARERS>
static __device__ __forceinline__ void copy_near(const CUtensorMap *key_map, const CUtensorMap *value_map,
                                                 const delta_run &run, const delta_text &text, int head, int column,
                                                 char *shared, delta_control *control) {
    typedef typename SHAPE::record record;
    delta_ring<STAGES> ring = {0, 1}; /* the first wait for a free stage passes at once */
    const int key_head = key_head_of(run, head), rank = SHARERS == 1 ? 0 : cluster_rank();
    const char *from = run.records + ((int64_t)text.first_piece * run.heads + head) * record::bytes;
    const int panels = column < run.value_size ? SHAPE::columns / 64 : 0; /* past the values: none */
#pragma unroll 1
    for (int at = 0; at < text.tokens; at += CHUNK) {
        char *stage = shared + ring.stage * SHAPE::near;
        uint64_t *full = &control->near_full[ring.stage];
        barrier_wait(&control->near_free[ring.stage], ring.phase);
        barrier_expect(full, (int)record::factors_end - record::transform + (BY_KEY ? 2 : 1) * record::tile +
                                 panels * CHUNK * 128);
        if (BY_KEY)
            share_row<SHARERS>(stage + SHAPE::read, from + record::read, full, record::tile, rank);
        else
            share_panels<SHARERS>(stage + SHAPE::read, key_map, full, KEY_SIZE / 64, key_head, text.token + at, rank);
        copy_panels(stage + SHAPE::value, value_map, full, panels, column, head, text.token + at);
        share_row<SHARERS>(stage + SHAPE::transform, from + record::transform, full,
                           record::factors_end - record::transform, rank);
        if (BY_KEY) share_row<SHARERS>(stage + SHAPE::write, from + record::write, full, record::tile, rank);
        from += (int64_t)run.heads * record::bytes;
        ring.next();
    }
}
template <class SHAPE, int KEY_SIZE, bool BY_KEY, int SHARERS>
static __device__ __forceinline__ void copy_far(const CUtensorMap *query_map, const delta_run &run,
                                                const delta_text &text, int head, char *shared,
                                                delta_control *control) {
    typedef typename SHAPE::record record;
    delta_ring<SHAPE::far_stages> ring = {0, 1};
    const int rank = SHARERS == 1 ? 0 : cluster_rank();
    const char *from = run.records + ((int64_t)text.first_piece * run.heads + head) * record::bytes;
#pragma unroll 1
    for (int at = 0; at < text.tokens; at += CHUNK) {
        char *stage = shared + SHAPE::first_far + ring.stage * SHAPE::far;
        uint64_t *full = &control->far_full[ring.stage];
        barrier_wait(&control->far_free[ring.stage], ring.phase);
        barrier_expect(full, SHAPE::far);
        if (BY_KEY)
            share_row<SHARERS>(stage + SHAPE::queries, from + record::query, full, record::tile, rank);
        else
            share_panels<SHARERS>(stage + SHAPE::queries, query_map, full, KEY_SIZE / 64, key_head_of(run, head),
                                  text.token + at, rank);
        share_row<SHARERS>(stage + SHAPE::scores, from + record::scores, full, SHAPE::queries - SHAPE::scores, rank);
        from += (int64_t)run.heads * record::bytes;
        ring.next();
    }
}

/* One warp: the outputs of a group from its scratch to memory. */
static __device__ __forceinline__ void store_outputs(const delta_run &run, const delta_text &text, int head, int column,
                                                     const char *scratch, uint64_t *written, uint64_t *drained) {
    const int lane = threadIdx.x % 32, row = lane / 8, piece = lane % 8;
    const int64_t stride = run.output.token_stride;
    __nv_bfloat16 *to = (__nv_bfloat16 *)run.output.data + head * run.output.head_stride + column + piece * 8 +
                        (int64_t)(text.token + row) * stride;
    const char *from = scratch + piece / 2 * 2048;
    int phase = 0;
#pragma unroll 1
    for (int left = text.tokens - row; left > -row; left -= CHUNK, phase ^= 1) {
        barrier_wait(written, phase);
#pragma unroll 4
        for (int i = 0; i < CHUNK; i += 4) {
            const uint4 eight = *(const uint4 *)(from + scratch_at(row + i, piece % 2));
            if (i < left) *(uint4 *)(to + i * stride) = eight;
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(drained);
        to += CHUNK * stride;
    }
}

/* One group's walk. At the end of a step no product runs: the compiler follows them through no loop. */
template <class SHAPE, int KEY_SIZE, int GROUPS, bool BY_KEY, bool SUMMARY, int STAGES, int SHARERS> struct delta_walk {
    typedef typename SHAPE::record record;
    enum { STEPS = KEY_SIZE / 16 };
    const delta_run &run;
    const delta_text *text;  /* in memory: registers are short */
    int token, tokens;       /* its own */
    uint64_t tiles;          /* description of the first stage's */
    int head, column, group; /* column: of values, the group's first */
    int drained;             /* phase */
    delta_ring<STAGES> ring; /* near */
    delta_ring<SHAPE::far_stages> far;
    float state[KEY_SIZE / 2], output[CHUNK / 2];
    uint32_t left[KEY_SIZE / 4];    /* the state in bf16 */
    uint32_t difference[CHUNK / 4]; /* of the chunk to come */

    /* Not kept: registers are short. */
    __device__ __forceinline__ delta_control *control() { return (delta_control *)(block_memory() + SHAPE::control); }
    __device__ __forceinline__ char *stage() { return block_memory() + ring.stage * SHAPE::near; }
    __device__ __forceinline__ int within() { return threadIdx.x / 32 % 4 * 16; }

    /* Rows after the last token belong to others: they weigh nothing, but nothing times infinity is not nothing. */
    __device__ __forceinline__ void clear_rows(int rows) {
        char *at = stage();
        const int thread = (int)threadIdx.x - 128;
        for (int i = thread; i < (CHUNK - rows) * SHAPE::columns / 8; i += GROUPS * 128)
            *(uint4 *)(at + SHAPE::value +
                       piece_at(rows + i / (SHAPE::columns / 8), i % (SHAPE::columns / 8))) = {0, 0, 0, 0};
        if (!BY_KEY)
            for (int i = thread; i < (CHUNK - rows) * KEY_SIZE / 8; i += GROUPS * 128)
                *(uint4 *)(at + SHAPE::read + piece_at(rows + i / (KEY_SIZE / 8), i % (KEY_SIZE / 8))) = {0, 0, 0, 0};
        stores_to_async();
        named_wait(1, GROUPS * 128);
    }

    /* The output of a chunk to the group's scratch, from where another warp stores it. */
    __device__ __forceinline__ void leave() {
        const int lane = threadIdx.x % 32;
        char *to = block_memory() + SHAPE::scratch + group * 8192 + within() * 128;
        uint32_t finished[CHUNK / 4];
        pack_all(finished, output);
        barrier_wait(&control()->drained[group], drained);
        drained ^= 1;
#pragma unroll
        for (int n = 0; n < CHUNK / 16; n++) {
            const uint32_t part[4] = {finished[4 * n], finished[4 * n + 1], finished[4 * n + 2], finished[4 * n + 3]};
            store_matrices<true>(to + scratch_at(16 * n + lane % 8 + lane / 16 * 8, lane / 8 % 2), part);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&control()->written[group]);
    }

    /* The description of the tile at this byte of a stage; all tiles have panels of CHUNK rows of 128 bytes. */
    __device__ __forceinline__ uint64_t tile(int at) {
        return tiles + (uint64_t)(ring.stage * (SHAPE::near / 16) + at / 16);
    }
    __device__ __forceinline__ uint64_t far_tile(int at) {
        return tiles + (uint64_t)(far.stage * (SHAPE::far / 16) + (SHAPE::first_far + at) / 16);
    }
    /* The product of the state, in bf16, with the keys of a chunk. */
    __device__ __forceinline__ void start_answer(float (&answer)[CHUNK / 2]) {
        pack_all(left, state);
        hold(left), hold(answer);
        products_open();
        start_rows<KEY_SIZE, false>(answer, left, tile(SHAPE::read));
        products_commit();
        hold(answer);
    }
    __device__ __forceinline__ void start_queries() {
        hold(left), hold(output);
        products_open();
        start_rows<KEY_SIZE, false>(output, left, far_tile(SHAPE::queries));
        products_commit();
        hold(output);
    }
    __device__ __forceinline__ void start_sum(float (&sum)[CHUNK / 2]) {
        hold(difference), hold(sum);
        products_open();
        start_rows<CHUNK, false>(sum, difference, tile(SHAPE::transform));
        products_commit();
        hold(sum);
    }
    __device__ __forceinline__ void start_state(uint32_t (&written)[CHUNK / 4]) {
        const uint64_t write = tile(SHAPE::write);
        hold(written), hold(state);
        products_open();
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            product<KEY_SIZE>::template registers<true, true>(state, written + 4 * k,
                                                              write + (uint64_t)(k * (16 * 128 / 16)));
        products_commit();
        hold(state);
    }
    __device__ __forceinline__ void start_output(uint32_t (&written)[CHUNK / 4]) {
        hold(output), hold(written);
        products_open();
        start_rows<CHUNK, true>(output, written, far_tile(SHAPE::scores));
        products_commit();
        hold(output);
    }

    /* A warp has done with a stage: all who copy to it hear of it. */
    __device__ __forceinline__ void free(uint64_t *barrier) {
        const int lane = threadIdx.x % 32;
        if (SHARERS == 1) {
            if (lane == 0) barrier_arrive(barrier);
        } else if (lane < SHARERS)
            barrier_arrive_at(barrier, lane);
    }

    /* Waits for the chunk of this stage, which starts at token `at` of the text. */
    __device__ __forceinline__ void meet(int at) {
        barrier_wait(&control()->near_full[ring.stage], ring.phase);
        if (at + CHUNK > tokens) clear_rows(tokens - at);
    }
    /* Past the values a summary has columns of the identity, which nothing is written to. */
    __device__ __forceinline__ bool beyond() {
        return SUMMARY && column >= run.value_size;
    }
    /* What makes the differences, with the state's answer. */
    __device__ __forceinline__ void take(uint32_t (&value)[CHUNK / 4], float (&by)[CHUNK / 4], const char *tiles) {
        if (beyond())
#pragma unroll
            for (int i = 0; i < CHUNK / 4; i++) value[i] = 0;
        else
            load_values(value, tiles + SHAPE::value, group * 64 + within());
        if (!BY_KEY) load_factors(by, (const float *)(tiles + SHAPE::factors) + FACTOR_READ);
    }

    /* The chunk that starts at token `at`, up to the differences of the next. */
    __device__ __forceinline__ void step(int at) {
        const float *factors = (const float *)(stage() + SHAPE::factors);
        float answer[CHUNK / 2], sum[CHUNK / 2], by[CHUNK / 4] = {};
        uint32_t value[CHUNK / 4], written[CHUNK / 4], plain[CHUNK / 4];

        start_sum(sum);
        if constexpr (!SUMMARY) {
            barrier_wait(&control()->far_full[far.stage], far.phase);
            start_queries();
        }
        if (!BY_KEY) load_factors(by, factors + FACTOR_WRITE);
        products_wait<SUMMARY ? 0 : 1>();
        hold(sum), hold(difference);
        if (BY_KEY)
            pack_all(written, sum);
        else
            pack_times(written, sum, by);

        start_state(written);
        if constexpr (!SUMMARY) {
            pack_all(plain, sum);
            if (!BY_KEY) load_factors(by, factors + FACTOR_QUERY);
            products_wait<1>();
            hold(output), hold(left);
            if (!BY_KEY) multiply(output, by);
            start_output(plain);
        }
        const int here = ring.stage;
        if (at + CHUNK < tokens) {
            ring.next();
            meet(at + CHUNK);
        } /* else the last tile of keys once more, for nothing */
        products_wait<SUMMARY ? 0 : 1>();
        hold(state), hold(written);
        free(&control()->near_free[here]);

        start_answer(answer);
        if constexpr (!SUMMARY) {
            products_wait<1>();
            hold(output), hold(plain);
            free(&control()->far_free[far.stage]);
            far.next();
        }
        if constexpr (!SUMMARY) {
            if (run.float32)
                store_float32(output, run, token + at, min((int)CHUNK, tokens - at), head, column + within());
            else
                leave();
        }
        take(value, by, stage());
        decay_state<KEY_SIZE, BY_KEY>(state, (const float *)(stage() + SHAPE::factors), at + CHUNK >= tokens);
        hold(state);
        products_wait<0>();
        hold(answer), hold(left);
        differ<!BY_KEY>(difference, value, answer, by);
    }

    __device__ __forceinline__ void begin() {
        const int lane = threadIdx.x % 32;
        if constexpr (!SUMMARY) load_state<KEY_SIZE>(state, run, *text, head, column + within());
        if constexpr (SUMMARY)
#pragma unroll
            for (int i = 0; i < KEY_SIZE / 2; i++) {
                const int key = i / 4 * 8 + lane % 4 * 2 + i % 2, row = within() + lane / 4 + i / 2 % 2 * 8;
                state[i] = key == column + row - run.value_size;
            }
    }
    __device__ __forceinline__ void end() {
        if constexpr (!SUMMARY) store_state<KEY_SIZE>(state, run, *text, head, column + within());
        if constexpr (SUMMARY) {
            float *to = summary_at(run, text->start, head);
            if (beyond())
                store_matrix<KEY_SIZE>(state, to + KEY_SIZE * run.value_size, KEY_SIZE,
                                       column - run.value_size + within());
            else
                store_matrix<KEY_SIZE>(state, to, run.value_size, column + within());
        }
    }

    __device__ __forceinline__ void walk() {
        begin();
        tiles = tile_descriptor<KEY_SIZE, CHUNK>(block_memory());
        ring = {0, 0}, far = {0, 0};
        drained = 1; /* the first wait passes at once */
        if (tokens > 0) {
            float answer[CHUNK / 2], by[CHUNK / 4] = {};
            uint32_t value[CHUNK / 4];
            meet(0);
            start_answer(answer);
            take(value, by, stage());
            products_wait<0>();
            hold(answer), hold(left);
            decay_state<KEY_SIZE, BY_KEY>(state, (const float *)(stage() + SHAPE::factors), false);
            differ<!BY_KEY>(difference, value, answer, by);
#pragma unroll 1
            for (int at = 0; at < tokens; at += CHUNK) step(at);
        }
        end();
    }
};

template <int KEY_SIZE, int GROUPS, bool BY_KEY, bool SUMMARY, int STAGES, int SHARERS>
static __global__ void __maxnreg__((delta_shape<KEY_SIZE, GROUPS, BY_KEY, STAGES>::registers))
    delta_hopper(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                 const __grid_constant__ CUtensorMap value_map, const __grid_constant__ delta_run run) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef delta_shape<KEY_SIZE, GROUPS, BY_KEY, STAGES> shape;
    char *shared = block_memory();
    delta_control *control = (delta_control *)(shared + shape::control);
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int slices = SUMMARY ? (run.value_size + KEY_SIZE) / shape::columns : run.slices;
    const int slice = blockIdx.x % slices, head = blockIdx.x / slices % run.heads;
    const delta_text *text = (SUMMARY ? run.parts : run.texts) + blockIdx.x / slices / run.heads;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_open(&control->near_full[stage], 1);
            barrier_open(&control->near_free[stage], 4 * GROUPS * SHARERS);
        }
        for (int stage = 0; stage < shape::far_stages; stage++) {
            barrier_open(&control->far_full[stage], 1);
            barrier_open(&control->far_free[stage], 4 * GROUPS * SHARERS);
        }
        for (int g = 0; g < GROUPS; g++) {
            barrier_open(&control->written[g], 4);
            barrier_open(&control->drained[g], 1);
        }
        barriers_opened();
    }
    if (SHARERS == 1)
        __syncthreads();
    else
        cluster_meet();
    if (group == 0) {
        const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
        registers_less<shape::copy_registers>();
        if (threadIdx.x == 0)
            copy_near<shape, KEY_SIZE, BY_KEY, STAGES, SHARERS>(&key_map, &value_map, run, *text, head,
                                                                slice * shape::columns, shared, control);
        if (threadIdx.x == 96 && !SUMMARY)
            copy_far<shape, KEY_SIZE, BY_KEY, SHARERS>(&query_map, run, *text, head, shared, control);
        if (warp > 0 && warp <= GROUPS && !SUMMARY && !run.float32)
            store_outputs(run, *text, head, slice * shape::columns + (warp - 1) * 64,
                          shared + shape::scratch + (warp - 1) * 8192, &control->written[warp - 1],
                          &control->drained[warp - 1]);
    } else {
        registers_more<shape::walk_registers>();
        delta_walk<shape, KEY_SIZE, GROUPS, BY_KEY, SUMMARY, STAGES, SHARERS> walk = {run, text, text->token,
                                                                                      text->tokens};
        walk.head = head, walk.group = group - 1, walk.column = slice * shape::columns + (group - 1) * 64;
        walk.walk();
    }
    if (SHARERS > 1) cluster_meet(); /* nobody leaves while another may copy or arrive there */
#endif
}

template <int KEY_SIZE, int GROUPS, bool BY_KEY, bool SUMMARY, int STAGES, int SHARERS>
static ln_cuda_code delta_hopper_start(void *const *arguments, int64_t blocks, void *stream) {
    typedef delta_shape<KEY_SIZE, GROUPS, BY_KEY, STAGES> shape;
    static_assert(SHARERS <= 2, "copies go to two blocks at most");
    const auto kernel = delta_hopper<KEY_SIZE, GROUPS, BY_KEY, SUMMARY, STAGES, SHARERS>;
    const dim3 grid((unsigned)blocks), block(shape::threads);
    const CUtensorMap &query = *(const CUtensorMap *)arguments[0], &key = *(const CUtensorMap *)arguments[1],
                      &value = *(const CUtensorMap *)arguments[2];
    const delta_run &run = *(const delta_run *)arguments[3];
    if (SHARERS == 1) return launch(kernel, grid, block, shape::bytes, stream, query, key, value, run);
    return launch_clusters(SHARERS, kernel, grid, block, shape::bytes, stream, query, key, value, run);
}

/* ---- segments ---- */

enum { JOIN_COLUMNS = 8, JOIN_THREADS = 256, JOIN_SLAB = 32 };

template <int KEY_SIZE>
static __device__ __forceinline__ void load_slab(float (&slab)[KEY_SIZE * JOIN_SLAB / JOIN_THREADS],
                                                 const float *from) {
#pragma unroll
    for (int i = 0; i < KEY_SIZE * JOIN_SLAB / JOIN_THREADS; i++) {
        const int at = i * JOIN_THREADS + threadIdx.x;
        slab[i] = from[at / JOIN_SLAB * KEY_SIZE + at % JOIN_SLAB];
    }
}

/* The states that segments begin with, one after the other, 8 columns of one sequence and head: the first is state_in,
 * S[n + 1] = A[n] S[n] + B[n]. In float32. */
template <int KEY_SIZE>
static __global__ void __launch_bounds__(JOIN_THREADS) delta_join_segments(const __grid_constant__ delta_run run) {
    __shared__ float state[KEY_SIZE][JOIN_COLUMNS], slab[KEY_SIZE][JOIN_SLAB + 1];
    constexpr int each = KEY_SIZE * JOIN_COLUMNS / JOIN_THREADS; /* elements of a thread: neighbours in a row */
    const int slices = run.value_size / JOIN_COLUMNS, column = (int)blockIdx.x % slices * JOIN_COLUMNS;
    const int head = blockIdx.x / slices % run.heads;
    const delta_join join = run.joins[blockIdx.x / slices / run.heads];
    const int row = threadIdx.x * each / JOIN_COLUMNS, part = threadIdx.x * each % JOIN_COLUMNS;
    const float *from = run.state_in ? run.state_in + state_at(run, join.number, head) : NULL;
    float sum[each];
#pragma unroll
    for (int i = 0; i < each; i++) sum[i] = from ? from[(int64_t)row * run.value_size + column + part + i] : 0;
    for (int n = 0; n < join.segments; n++) {
        float *to = run.starts + ((int64_t)(join.first + n) * run.heads + head) * KEY_SIZE * run.value_size +
                    row * run.value_size + column + part;
#pragma unroll
        for (int i = 0; i < each; i++) to[i] = state[row][part + i] = sum[i];
        if (n + 1 == join.segments) break;
        const float *add = summary_at(run, join.first + n, head), *turn = add + KEY_SIZE * run.value_size;
#pragma unroll
        for (int i = 0; i < each; i++) sum[i] = add[row * run.value_size + column + part + i];
        float next[KEY_SIZE * JOIN_SLAB / JOIN_THREADS]; /* the slab to come, on its way while one is used */
        load_slab<KEY_SIZE>(next, turn);
        for (int first = 0; first < KEY_SIZE; first += JOIN_SLAB) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < KEY_SIZE * JOIN_SLAB / JOIN_THREADS; i++) {
                const int at = i * JOIN_THREADS + threadIdx.x;
                slab[at / JOIN_SLAB][at % JOIN_SLAB] = next[i];
            }
            __syncthreads();
            if (first + JOIN_SLAB < KEY_SIZE) load_slab<KEY_SIZE>(next, turn + first + JOIN_SLAB);
#pragma unroll 8
            for (int c = 0; c < JOIN_SLAB; c++)
#pragma unroll
                for (int i = 0; i < each; i++) sum[i] += slab[row][c] * state[first + c][part + i];
        }
        __syncthreads();
    }
}

template <int KEY_SIZE, bool BY_KEY, int STAGES>
static ln_cuda_code delta_summarise(void *const *arguments, int64_t parts, int64_t joins, void *stream) {
    const delta_run &run = *(const delta_run *)arguments[3];
    const int64_t slices = (run.value_size + KEY_SIZE) / 128;
    constexpr int stages = BY_KEY ? 2 : 3;
    const ln_cuda_code code =
        delta_hopper_start<KEY_SIZE, 2, BY_KEY, true, stages, 1>(arguments, parts * run.heads * slices, stream);
    if (code) return code;
    return launch(delta_join_segments<KEY_SIZE>, dim3((unsigned)(joins * run.heads * run.value_size / JOIN_COLUMNS)),
                  dim3(JOIN_THREADS), 0, stream, run);
}

/* A row of the table of kernels. */
template <int KEY_SIZE, int GROUPS, bool BY_KEY, int STAGES, int SHARERS>
static ln_cuda_delta_kernel delta_hopper_kernel(const char *name) {
    typedef delta_shape<KEY_SIZE, GROUPS, BY_KEY, STAGES> shape;
    ln_cuda_code (*summarise)(void *const *, int64_t, int64_t, void *) = NULL;
    if constexpr (KEY_SIZE == 128 && GROUPS == 1) summarise = delta_summarise<KEY_SIZE, BY_KEY, STAGES>;
    return {name,
            KEY_SIZE,
            shape::columns,
            SHARERS,
            BY_KEY ? LN_CUDA_DECAY_KEY : LN_CUDA_DECAY_HEAD,
            shape::threads,
            shape::bytes,
            9,
            GROUPS == 2,
            delta_hopper_start<KEY_SIZE, GROUPS, BY_KEY, false, STAGES, SHARERS>,
            summarise};
}

} // namespace ln

#endif
