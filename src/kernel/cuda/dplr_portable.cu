/* Diagonal plus low rank for compute capability 8.0 and newer: what of chunks does not need the state
 * (dplr_inside.cuh), then the states, chunk by chunk.
 *
 * A warp holds 16 columns of a state, transposed, as accumulators of products of 16 x 8 x 16, which are left operands
 * of the next ones as they are. Columns do not see one another, so that a chunk is four products in a row, for which
 * nobody waits but for the copies of records into shared memory:
 *
 *     Y^T = U^T + S^T W^T, output^T = L^T + S^T R^T, S^T = S^T decay + value^T key + Y^T b.
 *
 * Backward the same step takes the gradient of the state from the last chunk to the first, through other records; then
 * the gradients of the inputs follow for all chunks at once (dplr_gradient.cuh). */
#include "kernel/cuda/dplr_gradient.cuh"
#include "kernel/cuda/dplr_inside.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { INSIDE_WARPS = 4, STAGES = 4 };

/* Chunk `chunk` of the segment. False: the sequence ends before. */
static __device__ __forceinline__ bool dplr_chunk(dplr_place &at, const dplr_run &run, int64_t sequence, int head,
                                                  int chunk) {
    const ln_cuda_dplr_sequence of = run.sequence[sequence];
    const int first = (run.first_chunk + chunk) * LN_CUDA_DPLR_CHUNK, left = of.count - first;
    at = {(int64_t)of.token + first, left < LN_CUDA_DPLR_CHUNK ? left : LN_CUDA_DPLR_CHUNK, head, head / run.group};
    return left > 0;
}

template <int KEY, int VALUE, bool BACK>
static __device__ __forceinline__ void inside_block(const dplr_run &run, int64_t block) {
    const int64_t i = block * INSIDE_WARPS + threadIdx.x / 32;
    const int head = (int)(i % run.heads), chunk = (int)(i / run.heads % run.segment);
    const int64_t sequence = i / run.heads / run.segment, place = (sequence * run.heads + head) * run.segment + chunk;
    dplr_place at;
    if (sequence >= run.sequences || !dplr_chunk(at, run, sequence, head, chunk)) return;
    dplr_tiles<KEY, VALUE> &tiles = ((dplr_tiles<KEY, VALUE> *)block_memory())[threadIdx.x / 32];
    if constexpr (BACK)
        chunk_back(((dplr_record<KEY, VALUE> *)run.back)[place], tiles, run, at);
    else
        chunk_inside(((dplr_record<KEY, VALUE> *)run.records)[place], tiles, run, at);
}

template <int KEY, int VALUE>
static __global__ void __launch_bounds__(32 * INSIDE_WARPS, KEY == 64 ? 3 : 2)
    dplr_inside(const __grid_constant__ dplr_run run) {
    inside_block<KEY, VALUE, false>(run, blockIdx.x);
}

/* What a block reads of a record: all but the columns of others. */
template <int KEY, int COLUMNS> struct dplr_stage {
    uint4 w[KEY / 16][32], r[KEY / 16][32], key[KEY / 16][32], b[KEY / 16][32];
    float decay[KEY];
    uint4 value[COLUMNS / 16][32], u[COLUMNS / 16][32], l[COLUMNS / 16][32];
};

template <int BYTES, int THREADS>
static __device__ __forceinline__ void copy_bytes(void *to, const void *from, int thread) {
    constexpr int pieces = BYTES / 16, rounds = (pieces + THREADS - 1) / THREADS;
    char *const piece = (char *)to + thread * 16;
    const char *const source = (const char *)from + thread * 16;
#pragma unroll
    for (int i = 0; i < rounds; i++)
        if ((i + 1) * THREADS <= pieces || thread < pieces - i * THREADS)
            copy_piece(piece + i * THREADS * 16, source + i * THREADS * 16, true);
}

/* Warps of a block: those with columns of their own; where there are others, they copy. */
template <int COLUMNS> struct dplr_warps {
    static constexpr int own = COLUMNS * 2, threads = 32 * INSIDE_WARPS, copying = own < threads ? threads - own : own;
    static __device__ __forceinline__ bool copies() { return own == threads || threadIdx.x >= own; }
};

template <int KEY, int VALUE, int COLUMNS>
static __device__ __forceinline__ void copy_record(dplr_stage<KEY, COLUMNS> &to, const dplr_record<KEY, VALUE> &from,
                                                   int slice) {
    using warps = dplr_warps<COLUMNS>;
    constexpr int threads = warps::copying, shared = sizeof to.w * 4 + sizeof to.decay, own = sizeof to.value;
    static_assert(sizeof to == shared + 3 * own, "without gaps");
    if (!warps::copies()) return;
    const int thread = (int)threadIdx.x - (warps::threads - threads);
    if constexpr (COLUMNS == VALUE) {
        copy_bytes<sizeof to, threads>(&to, &from, thread);
    } else {
        copy_bytes<shared, threads>(&to, &from, thread);
        copy_bytes<own, threads>(to.value, from.value[slice * COLUMNS / 16], thread);
        copy_bytes<own, threads>(to.u, from.u[slice * COLUMNS / 16], thread);
        copy_bytes<own, threads>(to.l, from.l[slice * COLUMNS / 16], thread);
    }
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

/* A state passes a chunk; Y and the outputs come transposed, [column][token]. */
template <bool OUTPUTS, int KEY, int COLUMNS>
static __device__ __forceinline__ void pass_chunk(float (&state)[KEY / 8][4], float (&y)[2][4], float (&output)[2][4],
                                                  const dplr_stage<KEY, COLUMNS> &stage, int warp) {
    const int lane = threadIdx.x % 32;
    widen_sums(y[0], y[1], stage.u[warp][lane]);
    if constexpr (OUTPUTS) widen_sums(output[0], output[1], stage.l[warp][lane]);
#pragma unroll
    for (int k = 0; k < KEY / 16; k++) {
        uint32_t left[4];
        as_left(left, state[2 * k], state[2 * k + 1]);
        const uint4 w = stage.w[k][lane];
        const uint32_t to_y[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 2; j++) add_product(y[j], left, to_y + 2 * j);
        if constexpr (OUTPUTS) {
            const uint4 r = stage.r[k][lane];
            const uint32_t to_output[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
            for (int j = 0; j < 2; j++) add_product(output[j], left, to_output + 2 * j);
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

/* Sums [column][token] of a warp by tokens: the lane's eight columns, from lane % 2 * 8 on, of token lane / 2. */
static __device__ __forceinline__ void turn_sums(float (&line)[8], float (&room)[16][20], const float (&sums)[2][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) room[j * 8 + lane % 4 * 2 + e % 2][lane / 4 + e / 2 * 8] = sums[j][e];
    __syncwarp();
    load_floats(line, &room[lane / 2][lane % 2 * 8]);
    __syncwarp();
}

static __device__ __forceinline__ void store_outputs(const dplr_run &run, const float (&line)[8], int64_t token,
                                                     int count, int head, int column) {
    const int row = threadIdx.x % 32 / 2;
    const ln_cuda_tensor &to = run.tensors.output;
    const int64_t place = (token + row) * to.token_stride + head * to.head_stride + column + threadIdx.x % 2 * 8;
    if (row >= count) return;
    if (run.output_float32)
        store_floats((float *)to.data + place, line);
    else
        store_bf16((__nv_bfloat16 *)to.data + place, line);
}

/* A state before a chunk, for backward. */
template <int KEY, int VALUE>
static __device__ __forceinline__ void keep_state(dplr_saved<KEY, VALUE> &to, const float (&state)[KEY / 8][4],
                                                  int column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEY / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            to.state[j * 8 + lane % 4 * 2 + e % 2][column + lane / 4 + e / 2 * 8] = __float2bfloat16(state[j][e]);
}

template <int KEY, int COLUMNS> struct dplr_room {
    dplr_stage<KEY, COLUMNS> stage[STAGES];
    float sums[COLUMNS / 16][16][20];
};

/* What comes of the states: outputs; or states and Y are kept; or their gradients and Z, from the last chunk on. */
enum { OUTPUTS, KEPT, SLOPES };

/* Where the state of a segment begins and ends, from the first of the warp's columns; NULL: zeros, or nowhere. */
struct dplr_ends {
    const float *from;
    float *to;
};
template <int MODE, int SIZE>
static __device__ __forceinline__ dplr_ends ends_of(const dplr_run &run, int64_t sequence, int own_sequence,
                                                    int64_t own, bool first, bool last) {
    const int64_t size = (int64_t)run.heads * SIZE, between = sequence * size + own;
    const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[own_sequence] : own_sequence;
    const float *begin = run.tensors.state_in ? run.tensors.state_in + slot * size + own : nullptr;
    float *end = MODE == OUTPUTS && run.tensors.state_out ? run.tensors.state_out + slot * size + own : nullptr;
    if constexpr (MODE == SLOPES) {
        begin = run.gradients.state_out ? run.gradients.state_out + own_sequence * size + own : nullptr;
        end = run.gradients.state_in ? run.gradients.state_in + own_sequence * size + own : nullptr;
    }
    return {first ? begin : run.at_begin + between, last ? end : run.at_end ? run.at_end + between : nullptr};
}

template <int KEY, int VALUE, int COLUMNS, int MODE>
static __device__ __forceinline__ void states_block(const dplr_run &run, int block) {
    constexpr int slices = VALUE / COLUMNS;
    dplr_room<KEY, COLUMNS> &room = *(dplr_room<KEY, COLUMNS> *)block_memory();
    const int slice = block % slices, head = block / slices % run.heads, warp = threadIdx.x / 32;
    const int64_t sequence = block / slices / run.heads, place = (sequence * run.heads + head) * run.segment;
    const ln_cuda_dplr_sequence of = run.sequence[sequence];
    if (MODE == OUTPUTS && run.tensors.state_slots && run.tensors.state_slots[of.sequence] < 0) return;
    const int all = (of.count + LN_CUDA_DPLR_CHUNK - 1) / LN_CUDA_DPLR_CHUNK;
    const int chunks = all - run.first_chunk < run.segment ? all - run.first_chunk : run.segment;
    const dplr_record<KEY, VALUE> *records =
        (const dplr_record<KEY, VALUE> *)(MODE == SLOPES ? run.back : run.records) + place;
    dplr_saved<KEY, VALUE> *saved = (dplr_saved<KEY, VALUE> *)(MODE == SLOPES ? run.slopes : run.states);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < chunks) copy_record(room.stage[i], records[MODE == SLOPES ? chunks - 1 - i : i], slice);
        copies_commit();
    }

    const int column = slice * COLUMNS + warp * 16;
    const bool begins = run.first_chunk == 0, ends = run.first_chunk + chunks == all;
    const dplr_ends at = ends_of<MODE, KEY * VALUE>(run, sequence, of.sequence, (int64_t)head * KEY * VALUE + column,
                                                    MODE == SLOPES ? ends : begins, MODE == SLOPES ? begins : ends);
    const bool own = threadIdx.x < dplr_warps<COLUMNS>::own;
    float state[KEY / 8][4];
    load_state<KEY>(state, own ? at.from : nullptr, VALUE);
    for (int step = 0; step < chunks; step++) {
        const int chunk = MODE == SLOPES ? chunks - 1 - step : step, next = step + STAGES - 1;
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (next < chunks)
            copy_record(room.stage[next % STAGES], records[MODE == SLOPES ? chunks - 1 - next : next], slice);
        copies_commit();
        if (!own) continue;
        if (MODE != OUTPUTS && saved) keep_state(saved[place + chunk], state, column);
        float y[2][4], output[2][4], line[8];
        pass_chunk<MODE == OUTPUTS, KEY, COLUMNS>(state, y, output, room.stage[step % STAGES], warp);
        const int first = (run.first_chunk + chunk) * LN_CUDA_DPLR_CHUNK;
        if constexpr (MODE == OUTPUTS) {
            turn_sums(line, room.sums[warp], output);
            store_outputs(run, line, (int64_t)of.token + first, of.count - first, head, column);
        } else if (saved) {
            turn_sums(line, room.sums[warp], y);
            store_bf16(&saved[place + chunk].y[threadIdx.x % 32 / 2][column + threadIdx.x % 2 * 8], line);
        }
    }
    if (own && at.to) store_state<KEY>(at.to, state, VALUE);
}

template <int KEY, int VALUE, int COLUMNS, int MODE>
static __global__ void __launch_bounds__(32 * INSIDE_WARPS) dplr_states(const __grid_constant__ dplr_run run) {
    states_block<KEY, VALUE, COLUMNS, MODE>(run, blockIdx.x);
}

/* States of a segment, and beside them what needs no state: of the next segment, or backward of the same. One keeps the
 * multiprocessors busy that the other leaves alone. */
template <int KEY, int VALUE, int COLUMNS, int MODE>
static __global__ void __launch_bounds__(32 * INSIDE_WARPS, KEY == 64 ? 3 : 2)
    dplr_both(const __grid_constant__ dplr_run run, const __grid_constant__ dplr_run next, int blocks) {
    if ((int)blockIdx.x < blocks)
        states_block<KEY, VALUE, COLUMNS, MODE>(run, blockIdx.x);
    else
        inside_block<KEY, VALUE, MODE == KEPT>(next, blockIdx.x - blocks);
}

template <int KEY, int VALUE>
static __global__ void __launch_bounds__(KEY * 2) dplr_gradients(const __grid_constant__ dplr_run run) {
    const int head = (int)(blockIdx.x % run.heads), chunk = (int)(blockIdx.x / run.heads % run.segment);
    const int64_t sequence = blockIdx.x / run.heads / run.segment,
                  place = (sequence * run.heads + head) * run.segment + chunk;
    dplr_place at;
    if (!dplr_chunk(at, run, sequence, head, chunk)) return;
    chunk_gradients(*(dplr_gradient_memory<KEY, VALUE> *)block_memory(), run, at,
                    ((const dplr_saved<KEY, VALUE> *)run.states)[place],
                    ((const dplr_saved<KEY, VALUE> *)run.slopes)[place]);
}

template <int KEY, int VALUE> static ln_cuda_code inside_start(const void *of, void *stream) {
    const dplr_run *run = (const dplr_run *)of;
    const int64_t warps = (int64_t)run->sequences * run->segment * run->heads;
    return launch(dplr_inside<KEY, VALUE>, dim3((unsigned)((warps + INSIDE_WARPS - 1) / INSIDE_WARPS)),
                  dim3(32 * INSIDE_WARPS), INSIDE_WARPS * (int)sizeof(dplr_tiles<KEY, VALUE>), stream, *run);
}
template <int KEY, int VALUE, int COLUMNS, int MODE> static ln_cuda_code states_start(const void *of, void *stream) {
    const dplr_run *run = (const dplr_run *)of;
    const int64_t blocks = (int64_t)run->sequences * run->heads * (VALUE / COLUMNS);
    return launch(dplr_states<KEY, VALUE, COLUMNS, MODE>, dim3((unsigned)blocks), dim3(32 * INSIDE_WARPS),
                  (int)sizeof(dplr_room<KEY, COLUMNS>), stream, *run);
}
template <int KEY, int VALUE, int COLUMNS, int MODE>
static ln_cuda_code both_start(const void *of, const void *then, void *stream) {
    const dplr_run *run = (const dplr_run *)of, *next = (const dplr_run *)then;
    const int64_t blocks = (int64_t)run->sequences * run->heads * (VALUE / COLUMNS),
                  warps = (int64_t)next->sequences * next->segment * next->heads;
    const int states = (int)sizeof(dplr_room<KEY, COLUMNS>),
              inside = INSIDE_WARPS * (int)sizeof(dplr_tiles<KEY, VALUE>);
    return launch(dplr_both<KEY, VALUE, COLUMNS, MODE>,
                  dim3((unsigned)(blocks + (warps + INSIDE_WARPS - 1) / INSIDE_WARPS)), dim3(32 * INSIDE_WARPS),
                  states > inside ? states : inside, stream, *run, *next, (int)blocks);
}
template <int KEY, int VALUE> static ln_cuda_code gradients_start(const void *of, void *stream) {
    const dplr_run *run = (const dplr_run *)of;
    const int64_t blocks = (int64_t)run->sequences * run->segment * run->heads;
    return launch(dplr_gradients<KEY, VALUE>, dim3((unsigned)blocks), dim3(KEY * 2),
                  (int)sizeof(dplr_gradient_memory<KEY, VALUE>), stream, *run);
}

} // namespace ln

using namespace ln;

/* Of a block, the most of all kernels. */
template <int SIZE, int COLUMNS> static constexpr int shared_bytes() {
    const int inside = INSIDE_WARPS * (int)sizeof(dplr_tiles<SIZE, SIZE>),
              states = (int)sizeof(dplr_room<SIZE, COLUMNS>), gradients = (int)sizeof(dplr_gradient_memory<SIZE, SIZE>),
              more = inside > states ? inside : states;
    return more > gradients ? more : gradients;
}

#define LN_DPLR(size, columns, name)                                                                                   \
    {                                                                                                                  \
        name, size, size, columns, shared_bytes<size, columns>(), (int)sizeof(dplr_record<size, size>),                \
            (int)sizeof(dplr_saved<size, size>), inside_start<size, size>, states_start<size, size, columns, OUTPUTS>, \
            both_start<size, size, columns, OUTPUTS>, states_start<size, size, columns, KEPT>,                         \
            both_start<size, size, columns, KEPT>, states_start<size, size, columns, SLOPES>,                          \
            gradients_start<size, size>                                                                                \
    }

const ln_cuda_dplr_kernel ln_cuda_portable_dplrs[] = {
    LN_DPLR(64, 64, "64 x 64"),
    LN_DPLR(64, 32, "64 x 64, 32 columns"),
    LN_DPLR(128, 64, "128 x 128"),
    LN_DPLR(128, 32, "128 x 128, 32 columns"),
};
const int ln_cuda_portable_dplr_count = sizeof ln_cuda_portable_dplrs / sizeof ln_cuda_portable_dplrs[0];
