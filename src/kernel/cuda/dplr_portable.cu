/* Diagonal plus low rank for compute capability 8.0 and newer: what of chunks does not need the state
 * (dplr_inside.cuh), then the states, chunk by chunk.
 *
 * A warp holds 16 columns of a state, transposed, as accumulators of products of 16 x 8 x 16, which are left operands
 * of the next ones as they are. Columns do not see one another, so that a chunk is four products in a row, for which
 * nobody waits but for the copies of records into shared memory:
 *
 *     Y^T = U^T + S^T W^T, output^T = L^T + S^T R^T, S^T = S^T decay + value^T key + Y^T b. */
#include "kernel/cuda/dplr_inside.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { INSIDE_WARPS = 4, STAGES = 4 };

template <int KEY, int VALUE>
static __global__ void __launch_bounds__(32 * INSIDE_WARPS, KEY == 64 ? 3 : 2)
    dplr_inside(const __grid_constant__ dplr_run run) {
    const int64_t i = (int64_t)blockIdx.x * INSIDE_WARPS + threadIdx.x / 32;
    const int head = (int)(i % run.heads), chunk = (int)(i / run.heads % run.segment);
    const int64_t sequence = i / run.heads / run.segment;
    if (sequence >= run.sequences) return;
    const ln_cuda_dplr_sequence of = run.sequence[sequence];
    const int first = (run.first_chunk + chunk) * LN_CUDA_DPLR_CHUNK, left = of.count - first;
    if (left <= 0) return;
    const dplr_place at = {(int64_t)of.token + first, left < LN_CUDA_DPLR_CHUNK ? left : LN_CUDA_DPLR_CHUNK, head,
                           head / run.group};
    dplr_record<KEY, VALUE> *record =
        (dplr_record<KEY, VALUE> *)run.records + (sequence * run.heads + head) * run.segment + chunk;
    chunk_inside(*record, ((dplr_tiles<KEY, VALUE> *)block_memory())[threadIdx.x / 32], run, at);
}

/* What a block reads of a record: all but the columns of others. */
template <int KEY, int COLUMNS> struct dplr_stage {
    uint4 w[KEY / 16][32], r[KEY / 16][32], key[KEY / 16][32], b[KEY / 16][32];
    float decay[KEY];
    uint4 value[COLUMNS / 16][32], u[COLUMNS / 16][32], l[COLUMNS / 16][32];
};

template <int KEY, int VALUE, int COLUMNS>
static __device__ __forceinline__ void copy_record(dplr_stage<KEY, COLUMNS> &to, const dplr_record<KEY, VALUE> &from,
                                                   int slice) {
    constexpr int threads = COLUMNS * 2, shared = sizeof to.w * 4 + sizeof to.decay, own = sizeof to.value;
    static_assert(sizeof to == shared + 3 * own, "without gaps");
    for (int i = threadIdx.x * 16; i < shared; i += threads * 16)
        copy_piece((char *)&to + i, (const char *)&from + i, true);
#pragma unroll
    for (int part = 0; part < 3; part++)
        for (int i = threadIdx.x * 16; i < own; i += threads * 16)
            copy_piece((char *)to.value + part * own + i,
                       (const char *)from.value + part * (int)sizeof from.value + slice * own + i, true);
}

/* Columns first .. first + 15 of a state [KEY][stride], as accumulators of its transpose. */
template <int KEY>
static __device__ __forceinline__ void load_state(float (&state)[KEY / 8][4], const float *from, int stride) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            state[j][e] = from ? from[(int64_t)(j * 8 + lane % 4 * 2 + e % 2) * stride + lane / 4 + e / 2 * 8] : 0;
}
template <int KEY>
static __device__ __forceinline__ void store_state(float *to, const float (&state)[KEY / 8][4], int stride) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            to[(int64_t)(j * 8 + lane % 4 * 2 + e % 2) * stride + lane / 4 + e / 2 * 8] = state[j][e];
}

/* Halves of a word of bf16 to a float32. */
static __device__ __forceinline__ void widen_sums(float (&low)[4], float (&high)[4], const uint4 &from) {
    low[0] = bf16_low(from.x), low[1] = bf16_high(from.x), low[2] = bf16_low(from.y), low[3] = bf16_high(from.y);
    high[0] = bf16_low(from.z), high[1] = bf16_high(from.z), high[2] = bf16_low(from.w), high[3] = bf16_high(from.w);
}

/* A state passes a chunk; the outputs come transposed, [column][token]. */
template <int KEY, int COLUMNS>
static __device__ __forceinline__ void pass_chunk(float (&state)[KEY / 8][4], float (&output)[2][4],
                                                  const dplr_stage<KEY, COLUMNS> &stage, int warp) {
    const int lane = threadIdx.x % 32;
    float y[2][4];
    widen_sums(y[0], y[1], stage.u[warp][lane]);
    widen_sums(output[0], output[1], stage.l[warp][lane]);
#pragma unroll
    for (int k = 0; k < KEY / 16; k++) {
        uint32_t left[4];
        as_left(left, state[2 * k], state[2 * k + 1]);
        const uint4 w = stage.w[k][lane], r = stage.r[k][lane];
        const uint32_t to_y[4] = {w.x, w.y, w.z, w.w}, to_output[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            add_product(y[j], left, to_y + 2 * j);
            add_product(output[j], left, to_output + 2 * j);
        }
    }
    const uint4 part = stage.value[warp][lane];
    const uint32_t value[4] = {part.x, part.y, part.z, part.w};
    uint32_t corrected[4];
    as_left(corrected, y[0], y[1]);
#pragma unroll
    for (int k = 0; k < KEY / 16; k++) {
        const uint4 key = stage.key[k][lane], b = stage.b[k][lane];
        const uint32_t from_key[4] = {key.x, key.y, key.z, key.w}, from_b[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            scale_columns(state[2 * k + j], stage.decay, 2 * k + j);
            add_product(state[2 * k + j], value, from_key + 2 * j);
            add_product(state[2 * k + j], corrected, from_b + 2 * j);
        }
    }
}

/* Outputs [column][token] of a warp to rows of tokens, through shared memory. */
static __device__ __forceinline__ void store_outputs(const dplr_run &run, float (&room)[16][20],
                                                     const float (&output)[2][4], int64_t token, int count, int head,
                                                     int column) {
    const int lane = threadIdx.x % 32, row = lane / 2, part = lane % 2 * 8;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) room[j * 8 + lane % 4 * 2 + e % 2][lane / 4 + e / 2 * 8] = run.scale * output[j][e];
    __syncwarp();
    float line[8];
    load_floats(line, &room[row][part]);
    __syncwarp();
    if (row >= count) return;
    const ln_cuda_tensor &to = run.tensors.output;
    const int64_t place = (token + row) * to.token_stride + head * to.head_stride + column + part;
    if (run.output_float32)
        store_floats((float *)to.data + place, line);
    else
        store_bf16((__nv_bfloat16 *)to.data + place, line);
}

template <int KEY, int COLUMNS> struct dplr_room {
    dplr_stage<KEY, COLUMNS> stage[STAGES];
    float output[COLUMNS / 16][16][20];
};

template <int KEY, int VALUE, int COLUMNS>
static __global__ void __launch_bounds__(COLUMNS * 2) dplr_states(const __grid_constant__ dplr_run run) {
    constexpr int slices = VALUE / COLUMNS;
    dplr_room<KEY, COLUMNS> &room = *(dplr_room<KEY, COLUMNS> *)block_memory();
    const int slice = blockIdx.x % slices, head = (int)(blockIdx.x / slices % run.heads), warp = threadIdx.x / 32;
    const int64_t sequence = blockIdx.x / slices / run.heads;
    const ln_cuda_dplr_sequence of = run.sequence[sequence];
    const int all = (of.count + LN_CUDA_DPLR_CHUNK - 1) / LN_CUDA_DPLR_CHUNK;
    const int chunks = all - run.first_chunk < run.segment ? all - run.first_chunk : run.segment;
    const dplr_record<KEY, VALUE> *records =
        (const dplr_record<KEY, VALUE> *)run.records + (sequence * run.heads + head) * run.segment;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < chunks) copy_record(room.stage[i], records[i], slice);
        copies_commit();
    }

    const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[of.sequence] : of.sequence;
    const int column = slice * COLUMNS + warp * 16;
    const int64_t own = (int64_t)head * KEY * VALUE + column, size = (int64_t)run.heads * KEY * VALUE;
    float *carried = run.carried + sequence * size + own;
    const float *from = run.first_chunk        ? carried
                        : run.tensors.state_in ? run.tensors.state_in + slot * size + own
                                               : nullptr;
    float state[KEY / 8][4];
    load_state<KEY>(state, from, VALUE);
    for (int chunk = 0; chunk < chunks; chunk++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        const int next = chunk + STAGES - 1;
        if (next < chunks) copy_record(room.stage[next % STAGES], records[next], slice);
        copies_commit();
        float output[2][4];
        pass_chunk<KEY, COLUMNS>(state, output, room.stage[chunk % STAGES], warp);
        const int first = (run.first_chunk + chunk) * LN_CUDA_DPLR_CHUNK;
        store_outputs(run, room.output[warp], output, (int64_t)of.token + first, of.count - first, head, column);
    }
    if (run.first_chunk + chunks < all)
        store_state<KEY>(carried, state, VALUE);
    else if (run.tensors.state_out)
        store_state<KEY>(run.tensors.state_out + slot * size + own, state, VALUE);
}

template <int KEY, int VALUE> static ln_cuda_code inside_start(const void *of, void *stream) {
    const dplr_run *run = (const dplr_run *)of;
    const int64_t warps = (int64_t)run->sequences * run->segment * run->heads;
    return launch(dplr_inside<KEY, VALUE>, dim3((unsigned)((warps + INSIDE_WARPS - 1) / INSIDE_WARPS)),
                  dim3(32 * INSIDE_WARPS), INSIDE_WARPS * (int)sizeof(dplr_tiles<KEY, VALUE>), stream, *run);
}
template <int KEY, int VALUE, int COLUMNS> static ln_cuda_code states_start(const void *of, void *stream) {
    const dplr_run *run = (const dplr_run *)of;
    const int64_t blocks = (int64_t)run->sequences * run->heads * (VALUE / COLUMNS);
    return launch(dplr_states<KEY, VALUE, COLUMNS>, dim3((unsigned)blocks), dim3(COLUMNS * 2),
                  (int)sizeof(dplr_room<KEY, COLUMNS>), stream, *run);
}

} // namespace ln

using namespace ln;

#define LN_DPLR(key, value, columns, name)                                                \
    {                                                                                     \
        name, key, value, (int)sizeof(dplr_record<key, value>), inside_start<key, value>, \
            states_start<key, value, columns>                                             \
    }

const ln_cuda_dplr_kernel ln_cuda_portable_dplrs[] = {
    LN_DPLR(64, 64, 64, "64 x 64"),
    LN_DPLR(128, 128, 64, "128 x 128"),
};
const int ln_cuda_portable_dplr_count = sizeof ln_cuda_portable_dplrs / sizeof ln_cuda_portable_dplrs[0];
