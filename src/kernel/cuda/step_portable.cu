/* One token of each sequence on a pool of states, for compute capability 8.0 and newer. Bound by memory: columns of a
 * state do not see one another, so a block takes a few of them, all rows, and holds them in registers between the one
 * read and the one write (a rule that reads nothing before it writes: 128 rows at a time):
 *
 *     load S ; coefficients of the rows from query, key, decay ... ; sums over rows of query decay S and of read S ;
 *     y ; store S' = decay S + key y^T + write_key value^T ; output.
 *
 * The output needs no second pass over S': query^T S' = (query decay)^T S + (query . key) y + (query . write_key)
 * value. Factors of normalised queries and keys multiply sums, not rows, so that one meeting of the block is enough for
 * their lengths. Sums are added in a fixed order. */
#include "kernel/cuda/launch.cuh"
#include "kernel/cuda/step_table.h"
#include "kernel/cuda/vectors.cuh"

namespace ln {

using step_run = ln_cuda_step_run;

static constexpr float LOG2_E = 1.442695041f;

/* What a block knows of one head of one sequence. */
struct step_place {
    int sequence, head, key_head;
    int64_t state; /* of the head, in floats; negative: the sequence takes no part */
};

static __device__ __forceinline__ step_place place_of(const step_run &run, int64_t block) {
    step_place at;
    const int64_t head = block / run.blocks_of_head;
    at.sequence = (int)(head / run.heads);
    at.head = (int)(head % run.heads);
    at.key_head = run.tiled_heads ? at.head % run.key_heads : at.head / (run.heads / run.key_heads);
    const int64_t slot = run.tensors.state_slots ? run.tensors.state_slots[at.sequence] : at.sequence;
    at.state = slot < 0 ? -1 : slot * run.slot_stride + at.head * run.head_stride;
    return at;
}

static __device__ __forceinline__ float bf16_at(const ln_cuda_tensor &of, int token, int head, int i) {
    return __bfloat162float(((const __nv_bfloat16 *)of.data)[token * of.token_stride + head * of.head_stride + i]);
}
static __device__ __forceinline__ float float_at(const ln_cuda_tensor &of, int token, int head, int i) {
    return ((const float *)of.data)[token * of.token_stride + head * of.head_stride + i];
}

/* Numbers of the whole head. */
struct step_factors {
    float decay;   /* where it is the head's */
    float gain;    /* of what is written: beta, the step size, the input gate */
    float maximum; /* of mlstm, after the token */
    float keep;    /* of its normaliser */
};

static __device__ __forceinline__ step_factors factors_of(const step_run &run, const step_place &at) {
    step_factors f = {0, 1, 0, 1};
    const ln_cuda_step_tensors &t = run.tensors;
    if (run.parts.decay == LN_CUDA_STEP_HEAD_DECAY && t.decay.data)
        f.decay = float_at(t.decay, at.sequence, at.head, 0);
    if (run.parts.strength == LN_CUDA_STEP_PLAIN) return f;
    const float strength = float_at(t.strength, at.sequence, at.head, 0);
    f.gain = strength;
    if (run.parts.strength == LN_CUDA_STEP_SIGMOID) f.gain = sigmoid(strength);
    if (run.parts.strength == LN_CUDA_STEP_SIZE) f.decay = strength * t.rate[at.head];
    if (run.parts.strength == LN_CUDA_STEP_GATE) {
        const int64_t side = at.state + (int64_t)run.key_size * (run.value_size + 1);
        const float old = f.decay + (t.state_in ? t.state_in[side] : 0);
        f.maximum = old >= strength ? old : strength;
        f.decay = old >= strength ? 0 : old - strength;
        f.gain = exponential(LOG2_E * (strength - f.maximum));
    }
    return f;
}

/* Sums over the rows that both sides of a step need. */
enum { QUERY_SQUARE, KEY_SQUARE, QUERY_KEY, QUERY_WRITE, STEP_SUMS };

template <int KEY, int COLUMNS, int WARPS> struct step_memory {
    float4 line[KEY];     /* decay, query decay, read, key of a row */
    float write_key[KEY]; /* of LOW_RANK */
    float sum[WARPS][STEP_SUMS];
    float part[2][WARPS][COLUMNS];
};

/* The rows' coefficients. With a normaliser: that too, which the block owns. */
template <int KIND, int KEY, int COLUMNS, int WARPS>
static __device__ __forceinline__ void make_lines(step_memory<KEY, COLUMNS, WARPS> &memory, const step_run &run,
                                                  const step_place &at, const step_factors &factors) {
    const ln_cuda_step_tensors &t = run.tensors;
    const float head_decay = run.parts.decay == LN_CUDA_STEP_VALUE_DECAY ? 1 : exponential(LOG2_E * factors.decay);
    float sum[STEP_SUMS] = {};
    for (int row = threadIdx.x; row < KEY; row += 32 * WARPS) {
        float4 line = make_float4(0, 0, 0, 0);
        float write_key = 0;
        if (row < run.key_size) {
            const float query = bf16_at(t.query, at.sequence, at.key_head, row);
            const float key = bf16_at(t.key, at.sequence, at.key_head, row);
            line.x = head_decay;
            if (run.parts.decay == LN_CUDA_STEP_KEY_DECAY)
                line.x = exponential(LOG2_E * float_at(t.decay, at.sequence, at.head, row));
            line.y = query * line.x;
            line.z = key * line.x;
            line.w = key;
            sum[QUERY_SQUARE] += query * query;
            sum[KEY_SQUARE] += key * key;
            if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) {
                line.z = bf16_at(t.a, at.sequence, at.key_head, row);
                line.w = bf16_at(t.b, at.sequence, at.key_head, row);
                write_key = key;
                sum[QUERY_WRITE] += query * key;
            }
            if (run.sum != LN_CUDA_STEP_SUM_NONE) {
                const int64_t side = at.state + (int64_t)run.key_size * run.value_size + row;
                const float normaliser = line.x * (t.state_in ? t.state_in[side] : 0) + factors.gain * key;
                if (t.state_out) t.state_out[side] = normaliser;
                sum[QUERY_WRITE] += query * normaliser;
            }
            sum[QUERY_KEY] += query * line.w;
        }
        memory.line[row] = line;
        if constexpr (KIND == LN_CUDA_STEP_LOW_RANK) memory.write_key[row] = write_key;
    }
#pragma unroll
    for (int i = 0; i < STEP_SUMS; i++) {
#pragma unroll
        for (int lane = 16; lane; lane /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lane);
        if (threadIdx.x % 32 == 0) memory.sum[threadIdx.x / 32][i] = sum[i];
    }
}

/* Four columns of a thread, and where they lie in a row: neighbours, or where rows are not aligned COLUMNS / 4 apart,
 * so that a warp's single numbers are neighbours. `left`: columns from the first one to the end of the row. */
template <int COLUMNS, bool ALIGNED> struct step_columns {
    static constexpr int lanes = COLUMNS / 4, apart = ALIGNED ? 1 : lanes;

    static __device__ __forceinline__ int first() { return (int)threadIdx.x % lanes * (ALIGNED ? 4 : 1); }
    static __device__ __forceinline__ void load(float (&to)[4], const float *from, int left) {
#pragma unroll
        for (int c = 0; c < 4; c++) to[c] = 0;
        if constexpr (ALIGNED) {
            if (left > 0) load_floats(to, from);
        } else {
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (c * apart < left) to[c] = from[c * apart];
        }
    }
    static __device__ __forceinline__ void store(float *to, const float (&from)[4], int left) {
        if constexpr (ALIGNED) {
            if (left > 0) store_floats(to, from);
        } else {
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (c * apart < left) to[c * apart] = from[c];
        }
    }
};

/* A thread's part of ROWS rows of a state. */
template <int ROWS, int COLUMNS, int WARPS, bool ALIGNED> struct step_part {
    using columns = step_columns<COLUMNS, ALIGNED>;
    static constexpr int pass = WARPS * 32 / columns::lanes, rows = ROWS / pass;
    float at[rows][4];

    static __device__ __forceinline__ int row_of(int i) { return i * pass + (int)threadIdx.x / columns::lanes; }
    /* `from`, `to`: this thread's first column of the first row; NULL: there is no state. */
    __device__ __forceinline__ void load(const float *from, int key_size, int stride, int left) {
        from += from ? (int64_t)row_of(0) * stride : 0;
#pragma unroll
        for (int i = 0; i < rows; i++)
            columns::load(at[i], from + i * pass * stride, from && row_of(i) < key_size ? left : 0);
    }
    __device__ __forceinline__ void store(float *to, int key_size, int stride, int left) const {
        if (!to) return;
        to += (int64_t)row_of(0) * stride;
#pragma unroll
        for (int i = 0; i < rows; i++)
            if (row_of(i) < key_size) columns::store(to + i * pass * stride, at[i], left);
    }
    /* sums += coefficients of the rows times the rows. */
    template <bool READ>
    __device__ __forceinline__ void add(float (&query)[4], float (&read)[4], const float4 *line) const {
#pragma unroll
        for (int i = 0; i < rows; i++) {
            const float4 by = line[row_of(i)];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                query[c] += by.y * at[i][c];
                if constexpr (READ) read[c] += by.z * at[i][c];
            }
        }
    }
    __device__ __forceinline__ void fade(const float (&decay)[4]) {
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) at[i][c] *= decay[c];
    }
    /* at = decay at + key y^T ( + write_key value^T ) */
    template <bool SECOND>
    __device__ __forceinline__ void move(const float4 *line, const float *write_key, const float (&y)[4],
                                         const float (&value)[4]) {
#pragma unroll
        for (int i = 0; i < rows; i++) {
            const float4 by = line[row_of(i)];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                at[i][c] = by.x * at[i][c] + by.w * y[c];
                if constexpr (SECOND) at[i][c] += write_key[row_of(i)] * value[c];
            }
        }
    }
};

/* Sums of the threads that share columns, over the block. */
template <int COLUMNS, int WARPS, bool ALIGNED>
static __device__ __forceinline__ void add_warps(float (&sum)[4], float (&part)[WARPS][COLUMNS]) {
    using columns = step_columns<COLUMNS, ALIGNED>;
    const int warp = threadIdx.x / 32, first = columns::first();
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
        for (int across = columns::lanes; across < 32; across *= 2)
            sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], across);
    if (threadIdx.x % 32 < columns::lanes) columns::store(&part[warp][first], sum, COLUMNS);
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; c++) sum[c] = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        float more[4];
        columns::load(more, &part[w][first], COLUMNS);
#pragma unroll
        for (int c = 0; c < 4; c++) sum[c] += more[c];
    }
}

/* What queries and keys want to be multiplied by, and the sums of the whole head. */
struct step_scales {
    float sum[STEP_SUMS], query, key, output;
};

template <int KEY, int COLUMNS, int WARPS>
static __device__ __forceinline__ step_scales scales_of(const step_memory<KEY, COLUMNS, WARPS> &memory,
                                                        const step_run &run, const step_factors &factors) {
    step_scales s = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++)
#pragma unroll
        for (int i = 0; i < STEP_SUMS; i++) s.sum[i] += memory.sum[w][i];
    s.query = run.scale * (run.normalise_keys ? rsqrtf(s.sum[QUERY_SQUARE] + 1e-6f) : 1);
    s.key = run.normalise_keys ? rsqrtf(s.sum[KEY_SQUARE] + 1e-6f) : 1;
    s.output = s.query;
    const float dot = s.query * s.sum[QUERY_WRITE];
    if (run.sum == LN_CUDA_STEP_SUM_MAXIMUM)
        s.output /= fmaxf(fabsf(dot), exponential(-LOG2_E * factors.maximum)) + 1e-6f;
    if (run.sum == LN_CUDA_STEP_SUM_ONE) s.output /= fmaxf(fabsf(dot), 1);
    if (run.sum == LN_CUDA_STEP_SUM_PLAIN) s.output /= dot + 1e-10f;
    return s;
}

template <int COLUMNS, bool ALIGNED>
static __device__ __forceinline__ void store_output(const step_run &run, const step_place &at, int column, int left,
                                                    const float (&output)[4]) {
    using columns = step_columns<COLUMNS, ALIGNED>;
    const ln_cuda_tensor &to = run.tensors.output;
    const int64_t place = at.sequence * to.token_stride + at.head * to.head_stride + column;
    if (threadIdx.x >= columns::lanes) return;
    if (run.output_float32)
        columns::store((float *)to.data + place, output, left);
    else if (ALIGNED && left > 0)
        store_bf16((__nv_bfloat16 *)to.data + place, output);
    else if (!ALIGNED)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (c * columns::apart < left)
                ((__nv_bfloat16 *)to.data)[place + c * columns::apart] = __float2bfloat16(output[c]);
}

/* Rows that a block holds at once, the floats of a thread, and blocks for which a multiprocessor has registers. */
template <int KIND, int KEY, int COLUMNS, int WARPS> struct step_shape {
    static constexpr int rows = KIND != LN_CUDA_STEP_OUTER || KEY < 128 ? KEY : 128;
    static constexpr int floats = rows * COLUMNS / (32 * WARPS), warps = floats > 32 ? 16 : floats > 16 ? 20 : 24;
    static constexpr int blocks = warps / WARPS;
};

template <int KIND, int KEY, int COLUMNS, int WARPS, bool ALIGNED>
static __global__ void __launch_bounds__(32 * WARPS, step_shape<KIND, KEY, COLUMNS, WARPS>::blocks)
    step_portable(const __grid_constant__ step_run run) {
    constexpr bool reads = KIND != LN_CUDA_STEP_OUTER, second = KIND == LN_CUDA_STEP_LOW_RANK;
    constexpr int rows = step_shape<KIND, KEY, COLUMNS, WARPS>::rows;
    using columns = step_columns<COLUMNS, ALIGNED>;
    step_memory<KEY, COLUMNS, WARPS> &memory = *(step_memory<KEY, COLUMNS, WARPS> *)block_memory();
    const ln_cuda_step_tensors &t = run.tensors;
    const step_place at = place_of(run, blockIdx.x);
    if (at.state < 0) return;

    int tile = (int)(blockIdx.x % run.blocks_of_head), column = tile * COLUMNS + columns::first();
    const float *from = t.state_in ? t.state_in + at.state + column : nullptr;
    float *to = t.state_out ? t.state_out + at.state + column : nullptr;
    step_part<rows, COLUMNS, WARPS, ALIGNED> state;
    state.load(from, run.key_size, run.value_size, run.value_size - column);
    const step_factors factors = factors_of(run, at);
    make_lines<KIND>(memory, run, at, factors);
    __syncthreads();
    const step_scales scales = scales_of(memory, run, factors);
    if (run.parts.strength == LN_CUDA_STEP_GATE && t.state_out && threadIdx.x == 0)
        t.state_out[at.state + (int64_t)run.key_size * (run.value_size + 1)] = factors.maximum;

    for (;;) {
        const int left = run.value_size - column;
        const bool by_value = !reads && run.parts.decay == LN_CUDA_STEP_VALUE_DECAY;
        float value[4], written[4], y[4], fade[4], query[4] = {}, read[4] = {};
#pragma unroll
        for (int c = 0; c < 4; c++) {
            value[c] = 0;
            if (c * columns::apart < left)
                value[c] = bf16_at(t.value, at.sequence, at.head, column + c * columns::apart);
            y[c] = factors.gain * value[c];
            written[c] = scales.key * value[c];
            fade[c] = 0;
            if (by_value && c * columns::apart < left)
                fade[c] = exponential(LOG2_E * float_at(t.decay, at.sequence, at.head, column + c * columns::apart));
        }
#pragma unroll 1
        for (int row = 0;;) {
            if (by_value) state.fade(fade);
            state.template add<reads>(query, read, memory.line + row);
            if (reads) break;
            state.template move<false>(memory.line + row, nullptr, y, value);
            state.store(to ? to + (int64_t)row * run.value_size : nullptr, run.key_size - row, run.value_size, left);
            row += rows;
            if (row >= KEY) break;
            state.load(from ? from + (int64_t)row * run.value_size : nullptr, run.key_size - row, run.value_size, left);
        }
        if (reads) add_warps<COLUMNS, WARPS, ALIGNED>(read, memory.part[1]);
#pragma unroll
        for (int c = 0; c < 4 && reads; c++)
            y[c] = second ? read[c] : scales.key * factors.gain * (value[c] - scales.key * read[c]);
        if (reads) {
            state.template move<second>(memory.line, memory.write_key, y, written);
            state.store(to, run.key_size, run.value_size, left);
        }
        add_warps<COLUMNS, WARPS, ALIGNED>(query, memory.part[0]);
        const float skip = t.skip ? t.skip[at.head] : 0;
        float output[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            output[c] = query[c] + scales.sum[QUERY_KEY] * y[c];
            if (second) output[c] += scales.sum[QUERY_WRITE] * written[c];
            output[c] = scales.output * output[c] + skip * value[c];
        }
        store_output<COLUMNS, ALIGNED>(run, at, column, left, output);
        tile += run.blocks_of_head;
        if (tile >= run.tiles) return;
        column += run.blocks_of_head * COLUMNS;
        from += from ? run.blocks_of_head * COLUMNS : 0;
        to += to ? run.blocks_of_head * COLUMNS : 0;
        state.load(from, run.key_size, run.value_size, run.value_size - column);
        __syncthreads(); /* all have read the parts */
    }
}

template <int KIND, int KEY, int COLUMNS, int WARPS, bool ALIGNED>
static ln_cuda_code step_start(const void *run, int64_t blocks, void *stream) {
    return launch(step_portable<KIND, KEY, COLUMNS, WARPS, ALIGNED>, dim3((unsigned)blocks), dim3(32 * WARPS),
                  (int)sizeof(step_memory<KEY, COLUMNS, WARPS>), stream, *(const step_run *)run);
}

} // namespace ln

using namespace ln;

#define LN_STEP(kind, key, columns, warps, aligned, name) \
    { name, kind, key, columns, 32 * warps, aligned, step_start<kind, key, columns, warps, aligned> }
/* More warps: the second product wants registers too. */
#define LN_STEPS(kind, more, widest, warps, name)                                                     \
    LN_STEP(kind, 64, 64, 4, true, name " 64 x 64"), LN_STEP(kind, 64, 32, 4, true, name " 64 x 32"), \
        LN_STEP(kind, 128, 64, 4 * more, true, name " 128 x 64"),                                     \
        LN_STEP(kind, 128, 32, 4 * more, true, name " 128 x 32"),                                     \
        LN_STEP(kind, 256, widest, warps, true, name " 256"),                                         \
        LN_STEP(kind, 128, 128, 8 * more, false, name " 128 x 128 unaligned"),                        \
        LN_STEP(kind, 256, widest, warps, false, name " 256 unaligned")

const ln_cuda_step_kernel ln_cuda_portable_steps[] = {
    LN_STEPS(LN_CUDA_STEP_OUTER, 1, 128, 8, "outer"),
    LN_STEPS(LN_CUDA_STEP_DELTA, 1, 32, 8, "delta"),
    LN_STEPS(LN_CUDA_STEP_LOW_RANK, 2, 32, 8, "low rank"),
};
const int ln_cuda_portable_step_count = sizeof ln_cuda_portable_steps / sizeof ln_cuda_portable_steps[0];
