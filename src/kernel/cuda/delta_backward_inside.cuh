/* What is left of each chunk when its tokens have one decay; a block takes a chunk and a key head, and the value heads
 * that share it one after the other. Keys and queries are divided by their lengths where that is asked for.
 *
 * Of two groups of four warps the first has the queries, the second the keys:
 *
 *     dP = dO V'^T,   dQ = scale e^gamma dO S^T + M K,          M = scale e^(gamma - gamma) dP, j <= i
 *     X = R V'^T,     dK = -beta e^gamma R S^T + e^(end - gamma) V' D^T + Z K + Z^T K + M^T Q,
 *                     Z = -beta e^(gamma - gamma) X, j < i
 *
 * and the gradient of gamma[i] is what contains it: the sums of row i less those of column i of M (Q K^T) + Z (K K^T),
 * Q~ dQ~ + K~ dK~ - K^ dK^, and at the end of the chunk all of K^ dK^ and e^end S D. That of a decay is the sum over
 * the tokens from it on. Products and their own sums alone are subtracted, so that what cancels does so exactly. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_INSIDE_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_INSIDE_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

/* A row's gradient in registers, to bf16 or float32. */
template <int KEY>
static __device__ __forceinline__ void store_gradient(const ln_cuda_tensor &to, bool narrow, int head,
                                                      const delta_backward_chunk &chunk, const float (&sums)[KEY / 2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row_of() + 8 * r;
        if (row >= chunk.rows) continue;
        const int64_t base = (chunk.token + row) * to.token_stride + head * to.head_stride;
#pragma unroll
        for (int i = r; i < KEY / 4; i += 2) {
            if (narrow)
                *(uint32_t *)((__nv_bfloat16 *)to.data + base + column_of(i)) = pack(sums[2 * i], sums[2 * i + 1]);
            else
                *(float2 *)((float *)to.data + base + column_of(i)) = make_float2(sums[2 * i], sums[2 * i + 1]);
        }
    }
}

/* From the gradient of x / length, or of x, to that of x; `tile` holds x. */
template <int KEY>
static __device__ __forceinline__ void unnormalise(float (&sums)[KEY / 2], const char *tile, const float *norm,
                                                   bool normalise) {
    if (!normalise) return;
    const float2 dot = dot_rows<KEY>(sums, tile);
    const float n[2] = {norm[row_of()], norm[row_of() + 8]};
    const float along[2] = {dot.x * n[0] * n[0], dot.y * n[1] * n[1]};
#pragma unroll
    for (int k = 0; k < KEY / 16; k++) {
        uint32_t part[4];
        load_step(part, tile, k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 x = unpack(part[i]);
            float *to = sums + 8 * k + 2 * i;
            to[0] = n[i % 2] * (to[0] - along[i % 2] * x.x);
            to[1] = n[i % 2] * (to[1] - along[i % 2] * x.y);
        }
    }
}

template <class ENGINE, int KEY, int STAGES, bool CHANNEL = false> struct inside {
    enum { THREADS = 256, PANELS = KEY / 64 };
    enum {
        OUTPUT = 0,
        VALUES = PANEL,
        RESIDUALS = 2 * PANEL,
        STATE = 3 * PANEL,
        GRADIENT = STATE + PANELS * PANEL,
        FACTORS = GRADIENT + PANELS * PANEL,
        STAGE = (FACTORS + RECORD * 4 + 1023) / 1024 * 1024
    };
    /* Keys and queries of this task and the next, the stages, and the pairs' gradients, which with one stage lie where
     * the last slice was. */
    enum {
        KEYS = 0,
        QUERIES = PANELS * PANEL,
        ROWS = 2 * QUERIES,
        STAGED = (STAGES == 1 ? 1 : 2) * ROWS,
        TURNED_QUERIES = STAGES == 1 ? STAGED : STAGED + STAGES * STAGE,
        TURNED_KEYS = TURNED_QUERIES + PANEL,
        NUMBERS = STAGED + STAGES * STAGE + (STAGES == 1 ? 0 : 2 * PANEL)
    };
    struct numbers {
        float decay[2][64], column[2][4][64], after[64], beta[64], beta_value[64], state[8];
    };
    enum { BYTES = NUMBERS + (int)sizeof(numbers) };

    const delta_backward_run &run;
    char *shared;
    numbers *own;
    char *rows;    /* keys and queries of this task */
    float *record; /* of this value head */
    int key_head, group;
    delta_backward_chunk chunk;
    float pair[32];       /* dP or X */
    float sums[KEY / 2];  /* dO S^T or R S^T, then the gradient of query or key */
    float after[KEY / 2]; /* V' D^T */
    float state_sum;

    /* Steps of a block follow one another through its tasks: task blockIdx.x + n gridDim.x, member of the group, slice.
     */
    __device__ __forceinline__ int task_of(int step) const {
        return (int)blockIdx.x + step / (run.group * run.slices) * (int)gridDim.x;
    }
    __device__ __forceinline__ int rows_at(int step) const {
        return STAGES == 1 ? 0 : step / (run.group * run.slices) % 2 * ROWS;
    }
    __device__ __forceinline__ void load(int step, int stage, const delta_backward_chunk &of) {
        char *to = shared + STAGED + stage * STAGE;
        const int task = task_of(step), key = task % run.key_heads, slice = step % run.slices,
                  head = value_head(run, key, step / run.slices % run.group);
        const int64_t record_at = place_of(run, task / run.key_heads, head), place = record_at * run.slices + slice;
        if (step % (run.group * run.slices) == 0) {
            copy_tokens<KEY, THREADS>(shared + rows_at(step) + KEYS, run.key, key, 0, of);
            copy_tokens<KEY, THREADS>(shared + rows_at(step) + QUERIES, run.query, key, 0, of);
        }
        copy_tokens<64, THREADS>(to + OUTPUT, run.output_gradient, head, slice * 64, of);
        copy_panels<THREADS>(to + VALUES, run.values + place * PANEL, PANEL);
        copy_panels<THREADS>(to + RESIDUALS, run.residuals + place * PANEL, PANEL);
        copy_panels<THREADS>(to + STATE, run.states + place * PANELS * PANEL, PANELS * PANEL);
        copy_panels<THREADS>(to + GRADIENT, run.state_gradients + place * PANELS * PANEL, PANELS * PANEL);
        copy_panels<THREADS>(to + FACTORS, (const char *)(run.records + record_at * RECORD), RECORD * 4);
    }
    /* Four threads a row. */
    __device__ __forceinline__ const __nv_bfloat16 *value_row(int head, int slice) const {
        const int row = threadIdx.x / 4;
        return (const __nv_bfloat16 *)run.value.data + (chunk.token + row) * run.value.token_stride +
               head * run.value.head_stride + slice * 64 + threadIdx.x % 4 * 8;
    }

    __device__ __forceinline__ void products(const char *stage, bool first) {
        uint32_t left[16];
        if (first) {
            clear(pair);
            clear(sums);
            clear(after);
        }
        load_rows<4>(left, stage + (group == 0 ? OUTPUT : RESIDUALS));
        ENGINE::template by_rows<64, 4, true>(pair, left, stage + VALUES);
        ENGINE::template by_columns<KEY, 4, true>(sums, left, stage + STATE);
        if (group == 1) {
            uint32_t values[16];
            load_rows<4>(values, stage + VALUES);
            ENGINE::template by_columns<KEY, 4, true>(after, values, stage + GRADIENT);
            ENGINE::template settle<0>(after, values);
        }
        ENGINE::template settle<0>(pair, sums, left);
    }

    /* dV = beta R; R V for the gradient of beta; S D for that of the decay. */
    __device__ __forceinline__ void elementwise(const char *stage, int head, int slice, const uint4 (&value)[2],
                                                bool first) {
        const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
        const float beta = record[STRENGTH + row];
        float dot = 0;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int piece = quarter + 4 * h;
            const uint4 residual = *(const uint4 *)(stage + RESIDUALS + tile_at(row, piece));
            const uint32_t r[4] = {residual.x, residual.y, residual.z, residual.w},
                           v[4] = {value[h].x, value[h].y, value[h].z, value[h].w};
            float out[8];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = unpack(r[i]), y = unpack(v[i]);
                dot += x.x * y.x + x.y * y.y;
                out[2 * i] = beta * x.x, out[2 * i + 1] = beta * x.y;
            }
            if (!run.value_gradient.data || row >= chunk.rows) continue;
            const int64_t at = (chunk.token + row) * run.value_gradient.token_stride +
                               head * run.value_gradient.head_stride + slice * 64 + piece * 8;
            if (run.gradients_bf16) {
                *(uint4 *)((__nv_bfloat16 *)run.value_gradient.data + at) = {
                    pack(out[0], out[1]), pack(out[2], out[3]), pack(out[4], out[5]), pack(out[6], out[7])};
            } else {
                float4 *to = (float4 *)((float *)run.value_gradient.data + at);
                to[0] = make_float4(out[0], out[1], out[2], out[3]);
                to[1] = make_float4(out[4], out[5], out[6], out[7]);
            }
        }
        dot = sum_of_row(dot);
        if (quarter == 0) own->beta_value[row] = first ? dot : own->beta_value[row] + dot;
        for (int at = (int)threadIdx.x * 16; at < PANELS * PANEL && !CHANNEL; at += THREADS * 16) {
            const uint4 s = *(const uint4 *)(stage + STATE + at), d = *(const uint4 *)(stage + GRADIENT + at);
            const uint32_t one[4] = {s.x, s.y, s.z, s.w}, two[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = unpack(one[i]), y = unpack(two[i]);
                state_sum += x.x * y.x + x.y * y.y;
            }
        }
    }

    /* e^(gamma - gamma') and 1 / length of key j. */
    __device__ __forceinline__ float between(int i, int j) const {
        return exponential(fminf(record[GAMMA + i] - record[GAMMA + j], 0.0f));
    }
    /* Products of rows with keys. */
    __device__ __forceinline__ void dot_pairs(float (&dots)[32], const char *own_rows) {
        uint32_t left[KEY / 4];
        load_rows<KEY / 16>(left, own_rows);
        ENGINE::template by_rows<64, KEY / 16, false>(dots, left, rows + KEYS);
        ENGINE::template settle<0>(dots, left);
    }

    /* The gradient of pairs, M or Z, from dP or X: times norms it becomes `left`, for the gradient of the group's own
     * rows, and a turned tile, for that of the keys. What the pairs' own gradient adds to those of gamma and beta goes
     * to decay, column and beta, beside `states`. */
    __device__ __forceinline__ void weigh(uint32_t (&left)[16], float2 states) {
        const float *own_norm = record + (group == 0 ? QUERY_NORM : KEY_NORM);
        float dots[32], sum[2] = {0, 0}, strength[2], norm[2];
        dot_pairs(dots, rows + (group == 0 ? QUERIES : KEYS));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            strength[r] = group == 0 ? 1 : record[STRENGTH + row_of() + 8 * r];
            norm[r] = own_norm[row_of() + 8 * r];
        }
        const float sign = group == 0 ? run.scale : -1;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t turned[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = 4 * k + i, row = row_of() + i % 2 * 8, column = column_of(at), last = row - group;
                const float2 other = *(const float2 *)(record + KEY_NORM + column);
                float x[2];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    x[c] = column + c <= last ? sign * between(row, column + c) * pair[2 * at + c] : 0;
                    dots[2 * at + c] *= x[c] * (c ? other.y : other.x) * norm[i % 2];
                    sum[i % 2] += dots[2 * at + c];
                    x[c] *= strength[i % 2];
                }
                left[at] = pack(x[0] * other.x, x[1] * other.y);
                turned[i] = pack(x[0] * norm[i % 2], x[1] * norm[i % 2]);
            }
            ENGINE::store_turned(shared + (group == 0 ? TURNED_QUERIES : TURNED_KEYS), k, turned);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float low = sum_of_column(strength[0] * dots[4 * j] + strength[1] * dots[4 * j + 2]),
                        high = sum_of_column(strength[0] * dots[4 * j + 1] + strength[1] * dots[4 * j + 3]);
            if (threadIdx.x % 32 < 4)
                *(float2 *)(own->column[group][threadIdx.x / 32 % 4] + column_of(2 * j)) = make_float2(low, high);
        }
        sum[0] = sum_of_row(sum[0]);
        sum[1] = sum_of_row(sum[1]);
        if (threadIdx.x % 4) return;
        own->decay[group][row_of()] = strength[0] * sum[0] + states.x;
        own->decay[group][row_of() + 8] = strength[1] * sum[1] + states.y;
        if (group == 1) {
            own->beta[row_of()] += sum[0];
            own->beta[row_of() + 8] += sum[1];
        }
    }

    __device__ __forceinline__ void scale_rows(float (&x)[KEY / 2], float low, float high) {
#pragma unroll
        for (int i = 0; i < KEY / 2; i++) x[i] *= i / 2 % 2 ? high : low;
    }

    /* After the slices of a value head. */
    __device__ __forceinline__ void finish(int head) {
        const int row = row_of(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint32_t left[16];
#pragma unroll
        for (int step = 16; step > 0; step /= 2) state_sum += __shfl_xor_sync(~0u, state_sum, step);
        if (lane == 0) own->state[warp] = state_sum;
        if (STAGES == 1) __syncthreads(); /* the tiles of pairs lie where the slice was */
        const float past[2] = {exponential(record[GAMMA + row]), exponential(record[GAMMA + row + 8])};
        float2 states; /* what states before and after the chunk add to the gradient of gamma */
        if (group == 0) {
            scale_rows(sums, run.scale * past[0], run.scale * past[1]);
            states = dot_rows<KEY>(sums, rows + QUERIES);
            states = make_float2(states.x * record[QUERY_NORM + row], states.y * record[QUERY_NORM + row + 8]);
        } else {
            const float end = record[GAMMA + 63], beta[2] = {record[STRENGTH + row], record[STRENGTH + row + 8]},
                        norm[2] = {record[KEY_NORM + row], record[KEY_NORM + row + 8]};
            scale_rows(sums, past[0], past[1]);
            scale_rows(after, exponential(end - record[GAMMA + row]), exponential(end - record[GAMMA + row + 8]));
            float2 read = dot_rows<KEY>(sums, rows + KEYS), write = dot_rows<KEY>(after, rows + KEYS);
            read = make_float2(norm[0] * read.x, norm[1] * read.y);
            write = make_float2(norm[0] * write.x, norm[1] * write.y);
            states = make_float2(-beta[0] * read.x - write.x, -beta[1] * read.y - write.y);
            if (lane % 4 == 0) {
                own->beta[row] = -read.x;
                own->beta[row + 8] = -read.y;
                own->after[row] = write.x;
                own->after[row + 8] = write.y;
            }
            scale_rows(sums, -beta[0], -beta[1]);
#pragma unroll
            for (int i = 0; i < KEY / 2; i++) sums[i] += after[i];
        }
        ENGINE::template settle<0>(sums); /* nothing is put off: registers are short */
        weigh(left, states);
        ENGINE::publish();
        __syncthreads();
        ENGINE::template by_columns<KEY, 4, true>(sums, left, rows + KEYS);
        if (group == 0) {
            if (warp == 0) store_numbers(head);
        } else {
            uint32_t one[16], two[16];
            load_rows<4>(one, shared + TURNED_KEYS);
            ENGINE::template by_columns<KEY, 4, true, true>(sums, one, rows + KEYS);
            load_rows<4>(two, shared + TURNED_QUERIES);
            ENGINE::template by_columns<KEY, 4, true, true>(sums, two, rows + QUERIES);
            ENGINE::template settle<0>(one, two);
        }
        ENGINE::template settle<0>(sums, left);
    }

    /* Gradients of decays and beta; one warp, two tokens a lane. */
    __device__ __forceinline__ void store_numbers(int head) {
        const int lane = threadIdx.x;
        float decay[2], write = 0, states = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = 2 * lane + i;
            decay[i] = own->decay[0][t] + own->decay[1][t];
            for (int group = 0; group < 2; group++)
                for (int warp = 0; warp < 4; warp++) decay[i] -= own->column[group][warp][t];
            write += own->after[t];
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) write += __shfl_xor_sync(~0u, write, step);
        for (int i = 0; i < 8; i++) states += own->state[i];
        if (lane == 31) decay[1] += write + states * record[END];
        float sum = decay[0] + decay[1];
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const float later = __shfl_down_sync(~0u, sum, step);
            if (lane + step < 32) sum += later;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = 2 * lane + i;
            const int64_t at = (chunk.token + t) * run.heads + head;
            if (t >= chunk.rows) continue;
            if (run.beta_gradient) run.beta_gradient[at] = own->beta[t] + own->beta_value[t];
            /* e^-104 is 0: so is its derivative */
            if (run.decay_gradient && run.decay)
                run.decay_gradient[at] = run.decay[at] < -104 ? 0 : i == 0 ? sum : sum - decay[0];
        }
    }

    /* SELF: this, or what is made of it. */
    template <class SELF> __device__ __forceinline__ void go(SELF &self) {
        const int all = run.chunk_count * run.key_heads, each = run.group * run.slices,
                  steps = (all - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x * each;
        delta_backward_chunk ahead = run.chunks[task_of(0) / run.key_heads]; /* of the step to be loaded next */
        chunk = ahead;
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < steps) load(i, i, ahead);
            copies_commit();
            if (i + 1 < steps) ahead = run.chunks[task_of(i + 1) / run.key_heads];
        }
        for (int step = 0, stage = 0; step < steps; step++) {
            const int task = task_of(step), slice = step % run.slices, next = step + STAGES - 1,
                      member = step / run.slices % run.group;
            if (step % each == 0) chunk = run.chunks[task / run.key_heads];
            key_head = task % run.key_heads;
            const int head = value_head(run, key_head, member);
            uint4 value[2] = {};
            if ((int)threadIdx.x / 4 < chunk.rows) {
                const __nv_bfloat16 *from = value_row(head, slice);
                value[0] = *(const uint4 *)from;
                value[1] = *(const uint4 *)(from + 32);
            }
            if (STAGES == 1) {
                __syncthreads();
                load(step, 0, chunk);
                copies_commit();
            }
            copies_wait<STAGES == 1 ? 0 : STAGES - 2>();
            ENGINE::publish();
            __syncthreads();
            if (STAGES > 1) {
                if (next < steps) load(next, stage == 0 ? STAGES - 1 : stage - 1, ahead);
                copies_commit();
                if (next + 1 < steps) ahead = run.chunks[task_of(next + 1) / run.key_heads];
            }
            const char *now = shared + STAGED + stage * STAGE;
            rows = shared + rows_at(step);
            record = (float *)(now + FACTORS);
            if (slice == 0) state_sum = 0;
            products(now, slice == 0);
            elementwise(now, head, slice, value, slice == 0);
            if constexpr (CHANNEL) self.sum_states(now, slice == 0);
            if (slice == run.slices - 1) {
                self.finish(head);
                total(member);
            }
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
    }

    /* Sums over value heads: each thread its own elements, in the order of the heads. */
    __device__ __forceinline__ void total(int member) {
        float4 *kept = (float4 *)run.totals + (int64_t)blockIdx.x * (KEY / 8) * THREADS + threadIdx.x;
        if (member > 0)
#pragma unroll
            for (int i = 0; i < KEY / 8; i++) {
                const float4 x = kept[i * THREADS];
                sums[4 * i] = x.x + sums[4 * i], sums[4 * i + 1] = x.y + sums[4 * i + 1];
                sums[4 * i + 2] = x.z + sums[4 * i + 2], sums[4 * i + 3] = x.w + sums[4 * i + 3];
            }
        if (member < run.group - 1) {
#pragma unroll
            for (int i = 0; i < KEY / 8; i++)
                kept[i * THREADS] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
            return;
        }
        const ln_cuda_tensor &to = group == 0 ? run.query_gradient : run.key_gradient;
        unnormalise<KEY>(sums, rows + (group == 0 ? QUERIES : KEYS), record + (group == 0 ? QUERY_NORM : KEY_NORM),
                         run.normalise);
        if (to.data) store_gradient<KEY>(to, run.gradients_bf16, key_head, chunk, sums);
    }
};

/* Blocks stay and take chunk after chunk: sums over value heads need little room, and copies never pause. */
template <class ENGINE, int KEY, int STAGES>
static __global__ void __launch_bounds__(256, 1) delta_inside(const __grid_constant__ delta_backward_run run) {
    typedef inside<ENGINE, KEY, STAGES> kind;
    char *shared = block_memory();
    kind steps = {run, shared, (typename kind::numbers *)(shared + kind::NUMBERS)};
    steps.group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    steps.go(steps);
}

} // namespace ln

#endif
