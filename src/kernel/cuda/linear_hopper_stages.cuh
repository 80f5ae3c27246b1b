/* The shapes of the kernels of linear attention for compute capability 9.0, the block's shared memory, and the warp
 * group that fills its ring of stages. */
#ifndef LN_KERNEL_CUDA_LINEAR_HOPPER_STAGES_CUH
#define LN_KERNEL_CUDA_LINEAR_HOPPER_STAGES_CUH

#include "kernel/cuda/hopper.cuh"
#include "kernel/cuda/linear_rows.cuh"

namespace ln {

/* SHAPE of a kernel: sizes, groups of 64 value columns, stages of the last pass and of the first. */
template <int KEY_SIZE, int GROUPS_, int STAGES_LAST, int STAGES_FIRST, int KIND, bool LAST> struct hopper_linear {
    static constexpr bool last = LAST, keys = KIND == LN_CUDA_LINEAR_KEY, values = KIND == LN_CUDA_LINEAR_VALUE,
                          tokens = !keys && !values, normalised = KIND == NORMALISED; /* what decays */
    static constexpr int key = KEY_SIZE, groups = GROUPS_, stages = LAST ? STAGES_LAST : STAGES_FIRST;
    static constexpr int columns = 64 * groups, threads = 128 * (groups + 1), blocks = groups == 1 ? 2 : 1;
    static constexpr int channels = values ? columns : key;
    static constexpr int key_bytes = CHUNK * key * 2, value_bytes = CHUNK * columns * 2;
    static constexpr int key_at = LAST ? key_bytes : 0, value_at = key_at + key_bytes,
                         decay_at = value_at + value_bytes,
                         stage_bytes = decay_at + (tokens ? 0 : CHUNK * channels * 4);
    static constexpr int weight_bytes = CHUNK * CHUNK * 2, row_bytes = 2048; /* of a warp's outputs */
    static constexpr int weight_at = stages * stage_bytes, rows_at = weight_at + (LAST ? 2 * weight_bytes : 0),
                         control_at = rows_at + (LAST ? groups * 4 * row_bytes : 0);
    /* Where the groups share work on pairs of channels: each thread has one, over a part of the chunk's time. */
    static constexpr int pairs = channels / 2, parts = 128 * groups / pairs, steps = CHUNK / parts;
    static constexpr int gate_warps = stages % 3 == 0 ? 3 : 2;
    static_assert(stages % gate_warps == 0, "a stage belongs to one warp");
    /* Of 128 or 168 a thread at the start. Gates need registers where they are made. */
    static constexpr int copy_registers = tokens ? 40 : 24,
                         group_registers = (groups == 1 ? 216 : 232) + (tokens        ? 0
                                                                        : groups == 1 ? 16
                                                                                      : 8);
};

template <class SHAPE> struct linear_control {
    uint64_t full[SHAPE::stages], free[SHAPE::stages];
    float last[SHAPE::stages];
    token_gates gates[SHAPE::tokens ? SHAPE::stages : 1];
    float2 part[2][SHAPE::parts][SHAPE::pairs]; /* sums over parts of the time */
    float2 fade[SHAPE::pairs];                  /* 2^c[last], of channels */
    float2 normaliser[SHAPE::pairs];
    float dot[2][SHAPE::groups + 1][CHUNK]; /* shares of scale n . query */
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
        if (!SHAPE::tokens)
            copy_box(stage + SHAPE::decay_at, decay_map, full, SHAPE::values ? task.column : 0, task.head,
                     token + (run.reverse ? 1 : 0));
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
    row_gates given = {};
    for (int i = 0; i < own; i++) at.template next<SHAPE::stages>();
#pragma unroll 1
    for (int step = own - SHAPE::gate_warps; step < chunks; step += SHAPE::gate_warps) {
        if (step >= 0) {
            barrier_wait(&control->free[at.stage], at.phase);
            const float last = fill_gates(run, control->gates[at.stage], given);
            if (threadIdx.x % 32 == 0) control->last[at.stage] = last;
            barrier_arrive(&control->full[at.stage]);
            for (int i = 0; i < SHAPE::gate_warps; i++) at.template next<SHAPE::stages>();
        }
        if (step + SHAPE::gate_warps < chunks) {
            const int chunk = chunk_at(run, chunks, step + SHAPE::gate_warps);
            given = load_gates(run, task, task.first + (int64_t)chunk * CHUNK, chunk_rows(task, chunk));
        }
    }
}

} // namespace ln

#endif
