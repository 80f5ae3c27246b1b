/* What is left of each chunk when its tokens have one decay; a block takes a chunk and a key head, and the value heads
 * that share it one after the other. Keys and queries are divided by their lengths where that is asked for.
 *
 * Groups of four warps have the queries or the keys, and 64 channels of their gradients each. Of pairs of tokens they
 * share the columns, which meet in shared memory:
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

/* 64 columns of a gradient in registers, to bf16 or float32. */
static __device__ __forceinline__ void store_gradient(const ln_cuda_tensor &to, bool narrow, int head, int first,
                                                      const delta_backward_chunk &chunk, const float (&sums)[32],
                                                      int thread) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row_of(thread) + 8 * r;
        if (row >= chunk.rows) continue;
        const int64_t base = (chunk.token + row) * to.token_stride + head * to.head_stride + first;
#pragma unroll
        for (int i = r; i < 16; i += 2) {
            if (narrow)
                *(uint32_t *)((__nv_bfloat16 *)to.data + base + column_of(i, thread)) =
                    pack(sums[2 * i], sums[2 * i + 1]);
            else
                *(float2 *)((float *)to.data + base + column_of(i, thread)) = make_float2(sums[2 * i], sums[2 * i + 1]);
        }
    }
}

/* ROLE 0: queries, 1: keys. */
template <class ENGINE, int KEY, int STAGES, bool CHANNEL, int ROLE> struct inside {
    static constexpr int role = ROLE;
    enum { PANELS = KEY / 64, GROUPS = 2 * PANELS, THREADS = 128 * GROUPS, COLUMNS = 64 / PANELS /* of pairs */ };
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
        PLAIN_QUERIES = TURNED_KEYS + PANEL,
        PLAIN_KEYS = PLAIN_QUERIES + PANEL,
        NUMBERS = STAGED + STAGES * STAGE + (STAGES == 1 ? 0 : 4 * PANEL)
    };
    struct numbers {
        uint64_t full[STAGES];
        float decay[GROUPS][64], column[2][4][64], after[PANELS][64], beta[PANELS][64], along[GROUPS][64];
        float beta_value[64], state[4 * PANELS];
    };
    enum { BYTES = NUMBERS + (int)sizeof(numbers) };

    const delta_backward_run &run;
    char *shared;
    numbers *own;
    char *rows;    /* keys and queries of this task */
    float *record; /* of this value head */
    int key_head;
    int thread; /* threadIdx.x, of which the compiler does not know it: addresses are made again in each step */
    int half;   /* of this group of warps: which columns of pairs and panel of channels */
    delta_backward_chunk chunk;
    float pair[COLUMNS / 2]; /* dP or X */
    float sums[32];          /* dO S^T or R S^T, then the gradient of query or key */
    float after[32];         /* V' D^T; for queries S^T D, whose diagonal is wanted */

    /* A step is a slice of a value head of a task. A block's steps follow one another through its tasks, one in
     * gridDim.x: the next task begins when the last is done. */
    struct cursor {
        int index, key_head, member, slice, rows_at;
        delta_backward_chunk chunk;
    };
    /* key_head may be too large: by so many tasks. */
    __device__ __forceinline__ void enter(cursor &at) const {
        const int task = at.key_head, skipped = task / run.key_heads;
        at.index += skipped;
        at.key_head = task - skipped * run.key_heads;
        if (at.index < run.chunk_count) at.chunk = run.chunks[at.index];
    }
    __device__ __forceinline__ void advance(cursor &at) const {
        if (++at.slice < run.slices) return;
        at.slice = 0;
        if (++at.member < run.group) return;
        at.member = 0;
        at.key_head += gridDim.x;
        at.rows_at = STAGES == 1 ? 0 : ROWS - at.rows_at;
        enter(at);
    }
    __device__ __forceinline__ void load(const cursor &at, int stage) {
        char *to = shared + STAGED + stage * STAGE;
        const int head = value_head(run, at.key_head, at.member);
        const int64_t record_at = place_of(run, at.index, head), place = record_at * run.slices + at.slice;
        uint64_t *full = &own->full[stage];
        ENGINE::expect(full, (2 + 2 * PANELS) * PANEL + RECORD * 4, thread);
        ENGINE::template copy<THREADS>(to + VALUES, run.values + place * PANEL, PANEL, full, thread);
        ENGINE::template copy<THREADS>(to + RESIDUALS, run.residuals + place * PANEL, PANEL, full, thread);
        ENGINE::template copy<THREADS>(to + STATE, run.states + place * PANELS * PANEL, PANELS * PANEL, full, thread);
        ENGINE::template copy<THREADS>(to + GRADIENT, run.state_gradients + place * PANELS * PANEL, PANELS * PANEL,
                                       full, thread);
        ENGINE::template copy<THREADS>(to + FACTORS, run.records + record_at * RECORD, RECORD * 4, full, thread);
        if (at.slice == 0 && at.member == 0) {
            copy_tokens<KEY, THREADS>(shared + at.rows_at + KEYS, run.key, at.key_head, 0, at.chunk, thread);
            copy_tokens<KEY, THREADS>(shared + at.rows_at + QUERIES, run.query, at.key_head, 0, at.chunk, thread);
        }
        copy_tokens<64, THREADS>(to + OUTPUT, run.output_gradient, head, at.slice * 64, at.chunk, thread);
    }
    /* Values are read by 2 GROUPS threads a row. */
    enum { LANES = 2 * GROUPS, PIECES = 8 / LANES };
    __device__ __forceinline__ void load_values(uint4 (&value)[PIECES], int head, int slice) const {
        const int row = thread / LANES;
        const __nv_bfloat16 *from = (const __nv_bfloat16 *)run.value.data +
                                    (chunk.token + row) * run.value.token_stride + head * run.value.head_stride +
                                    slice * 64 + thread % LANES * 8;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
            value[p] = row < chunk.rows ? *(const uint4 *)(from + p * LANES * 8) : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ void start_products(const char *stage, bool first) {
        if (first) {
            clear(pair);
            clear(sums);
            clear(after);
        }
        const char *left = stage + (role == 0 ? OUTPUT : RESIDUALS);
        ENGINE::template tiles_by_rows<COLUMNS, 4>(pair, true, left, stage + VALUES + half * COLUMNS * 128);
        ENGINE::template tiles_by_columns<64>(sums, left, stage + STATE + half * PANEL);
        if (role == 1)
            ENGINE::template tiles_by_columns<64>(after, stage + VALUES, stage + GRADIENT + half * PANEL);
        else if (!CHANNEL)
            ENGINE::template tiles_by_rows<64, 4>(after, true, stage + STATE + half * PANEL,
                                                  stage + GRADIENT + half * PANEL);
    }

    /* dV = beta R; R V for the gradient of beta. */
    __device__ __forceinline__ void elementwise(const char *stage, int head, int slice, const uint4 (&value)[PIECES],
                                                bool first) {
        const int row = thread / LANES, lane = thread % LANES;
        const float beta = record[STRENGTH + row];
        float dot = 0;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const int piece = lane + p * LANES;
            const uint4 residual = *(const uint4 *)(stage + RESIDUALS + tile_at(row, piece));
            const uint32_t r[4] = {residual.x, residual.y, residual.z, residual.w},
                           v[4] = {value[p].x, value[p].y, value[p].z, value[p].w};
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
#pragma unroll
        for (int step = 1; step < LANES; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
        if (lane == 0) own->beta_value[row] = first ? dot : own->beta_value[row] + dot;
    }

    /* e^(gamma - gamma') and 1 / length of key j. */
    __device__ __forceinline__ float between(int i, int j) const {
        return exponential(fminf(record[GAMMA + i] - record[GAMMA + j], 0.0f));
    }
    /* The gradient of pairs, M or Z, from dP or X: times norms it goes to a tile, for the gradient of the group's own
     * rows, and to a turned one, for that of the keys. What the pairs' own gradient adds to those of gamma and beta
     * goes to decay, column and beta, beside `states`. */
    __device__ __forceinline__ void weigh(float2 states) {
        const char *own_rows = rows + (role == 0 ? QUERIES : KEYS);
        const float *own_norm = record + (role == 0 ? QUERY_NORM : KEY_NORM);
        const int first = half * COLUMNS;
        float dots[COLUMNS / 2], sum[2] = {0, 0}, strength[2], norm[2];
        ENGINE::template tiles_by_rows<COLUMNS, KEY / 16>(dots, false, own_rows, rows + KEYS + first * 128);
        ENGINE::template settle<0>(dots);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            strength[r] = role == 0 ? 1 : record[STRENGTH + row_of(thread) + 8 * r];
            norm[r] = own_norm[row_of(thread) + 8 * r];
        }
        const float sign = role == 0 ? run.scale : -1;
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) {
            uint32_t plain[4], turned[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = 4 * k + i, row = row_of(thread) + i % 2 * 8, column = first + column_of(at, thread),
                          last = row - role;
                const float2 other = *(const float2 *)(record + KEY_NORM + column);
                float x[2];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    x[c] = column + c <= last ? sign * between(row, column + c) * pair[2 * at + c] : 0;
                    dots[2 * at + c] *= x[c] * (c ? other.y : other.x) * norm[i % 2];
                    sum[i % 2] += dots[2 * at + c];
                    x[c] *= strength[i % 2];
                }
                plain[i] = pack(x[0] * other.x, x[1] * other.y);
                turned[i] = pack(x[0] * norm[i % 2], x[1] * norm[i % 2]);
            }
            ENGINE::store_step(shared + (role == 0 ? PLAIN_QUERIES : PLAIN_KEYS), first / 16 + k, plain, thread);
            ENGINE::store_turned(shared + (role == 0 ? TURNED_QUERIES : TURNED_KEYS), first / 16 + k, turned, thread);
        }
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            const float low = sum_of_column(strength[0] * dots[4 * j] + strength[1] * dots[4 * j + 2]),
                        high = sum_of_column(strength[0] * dots[4 * j + 1] + strength[1] * dots[4 * j + 3]);
            if (thread % 32 < 4)
                *(float2 *)(own->column[role][thread / 32 % 4] + first + column_of(2 * j, thread)) =
                    make_float2(low, high);
        }
        sum[0] = sum_of_row(sum[0]);
        sum[1] = sum_of_row(sum[1]);
        if (thread % 4) return;
        float *decay = own->decay[2 * half + role];
        decay[row_of(thread)] = strength[0] * sum[0] + states.x;
        decay[row_of(thread) + 8] = strength[1] * sum[1] + states.y;
        if (role == 1) {
            own->beta[half][row_of(thread)] += sum[0];
            own->beta[half][row_of(thread) + 8] += sum[1];
        }
    }

    static __device__ __forceinline__ void scale_rows(float (&x)[32], float low, float high) {
#pragma unroll
        for (int i = 0; i < 32; i++) x[i] *= i / 2 % 2 ? high : low;
    }

    /* sums and after times their decays; for the keys, their sum goes to sums. What states before and after the chunk
     * add to the gradient of gamma. */
    __device__ __forceinline__ float2 weigh_states() {
        const int row = row_of(thread);
        const float past[2] = {exponential(record[GAMMA + row]), exponential(record[GAMMA + row + 8])};
        if (role == 0) {
            const float2 dot = dot_rows<64>(sums, rows + QUERIES + half * PANEL, thread);
            const float by[2] = {run.scale * past[0], run.scale * past[1]};
            scale_rows(sums, by[0], by[1]);
            return make_float2(by[0] * dot.x * record[QUERY_NORM + row], by[1] * dot.y * record[QUERY_NORM + row + 8]);
        }
        const float end = record[GAMMA + 63], beta[2] = {record[STRENGTH + row], record[STRENGTH + row + 8]},
                    norm[2] = {record[KEY_NORM + row], record[KEY_NORM + row + 8]},
                    rest[2] = {exponential(end - record[GAMMA + row]), exponential(end - record[GAMMA + row + 8])};
        float2 read = dot_rows<64>(sums, rows + KEYS + half * PANEL, thread),
               write = dot_rows<64>(after, rows + KEYS + half * PANEL, thread);
        read = make_float2(norm[0] * past[0] * read.x, norm[1] * past[1] * read.y);
        write = make_float2(norm[0] * rest[0] * write.x, norm[1] * rest[1] * write.y);
        if (thread % 4 == 0) {
            own->beta[half][row] = -read.x;
            own->beta[half][row + 8] = -read.y;
            own->after[half][row] = write.x;
            own->after[half][row + 8] = write.y;
        }
        scale_rows(after, rest[0], rest[1]);
#pragma unroll
        for (int i = 0; i < 32; i++) sums[i] = after[i] - beta[i / 2 % 2] * past[i / 2 % 2] * sums[i];
        return make_float2(-beta[0] * read.x - write.x, -beta[1] * read.y - write.y);
    }

    /* S D. */
    __device__ __forceinline__ void sum_states() {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 32; i++)
            sum += column_of(i / 2, thread) + i % 2 == row_of(thread) + i / 2 % 2 * 8 ? after[i] : 0;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (thread % 32 == 0) own->state[half * 4 + first_row(thread) / 16] = sum;
    }

    /* After the slices of a value head. */
    __device__ __forceinline__ void finish(int head) {
        const int panel = half * PANEL;
        if (role == 0 && !CHANNEL) sum_states();
        if (STAGES == 1) __syncthreads(); /* the tiles of pairs lie where the slice was */
        const float2 states = weigh_states();
        ENGINE::template settle<0>(sums); /* nothing is put off: registers are short */
        forget();
        weigh(states);
        forget();
        ENGINE::publish();
        __syncthreads();
        ENGINE::template tiles_by_columns<64>(sums, shared + (role == 0 ? PLAIN_QUERIES : PLAIN_KEYS),
                                              rows + KEYS + panel);
        if (role == 1) {
            ENGINE::template tiles_by_columns<64, true>(sums, shared + TURNED_KEYS, rows + KEYS + panel);
            ENGINE::template tiles_by_columns<64, true>(sums, shared + TURNED_QUERIES, rows + QUERIES + panel);
        } else if (thread < 32)
            store_numbers(head);
        ENGINE::template settle<0>(sums);
    }

    __device__ __forceinline__ float beta_gradient(int t) const {
        float sum = own->beta_value[t];
        for (int panel = 0; panel < PANELS; panel++) sum += own->beta[panel][t];
        return sum;
    }
    /* Gradients of decays and beta; one warp, two tokens a lane. */
    __device__ __forceinline__ void store_numbers(int head) {
        const int lane = thread;
        float decay[2], write = 0, states = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = 2 * lane + i;
            decay[i] = 0;
            for (int group = 0; group < GROUPS; group++) decay[i] += own->decay[group][t];
            for (int column = 0; column < 8; column++) decay[i] -= own->column[column / 4][column % 4][t];
            for (int panel = 0; panel < PANELS; panel++) write += own->after[panel][t];
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) write += __shfl_xor_sync(~0u, write, step);
        for (int i = 0; i < 4 * PANELS; i++) states += own->state[i];
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
            const int64_t at = (int64_t)(chunk.token + t) * run.heads + head;
            if (t >= chunk.rows) continue;
            if (run.beta_gradient) run.beta_gradient[at] = beta_gradient(t);
            /* e^-104 is 0: so is its derivative */
            if (run.decay_gradient && run.decay)
                run.decay_gradient[at] = run.decay[at] < -104 ? 0 : i == 0 ? sum : sum - decay[0];
        }
    }

    /* The compiler forgets what it made of them. */
    __device__ __forceinline__ void forget() {
        thread = __shfl_sync(~0u, thread, thread % 32);
        half = thread / 256;
    }
    /* SELF: this, or what is made of it. */
    template <class SELF> __device__ __forceinline__ void go(SELF &self) {
        cursor now = {0, (int)blockIdx.x}, ahead;
        enter(now);
        ahead = now;
        ENGINE::open(own->full, STAGES);
        for (int i = 0; i < STAGES - 1; i++) {
            if (ahead.index < run.chunk_count) load(ahead, i);
            copies_commit();
            advance(ahead);
        }
        for (int stage = 0, phase = 0; now.index < run.chunk_count; advance(now)) {
            forget();
            chunk = now.chunk;
            key_head = now.key_head;
            const int head = value_head(run, now.key_head, now.member);
            uint4 value[PIECES];
            load_values(value, head, now.slice);
            if (STAGES == 1) {
                ENGINE::publish();
                __syncthreads();
                load(now, 0);
                copies_commit();
            }
            copies_wait<STAGES == 1 ? 0 : STAGES - 2>();
            ENGINE::publish();
            ENGINE::await(&own->full[stage], phase);
            __syncthreads();
            if (STAGES > 1) {
                if (ahead.index < run.chunk_count) load(ahead, stage == 0 ? STAGES - 1 : stage - 1);
                copies_commit();
                advance(ahead);
            }
            const char *tiles = shared + STAGED + stage * STAGE;
            const bool first = now.slice == 0;
            rows = shared + now.rows_at;
            record = (float *)(tiles + FACTORS);
            start_products(tiles, first);
            elementwise(tiles, head, now.slice, value, first);
            if constexpr (CHANNEL) self.sum_channel_states(tiles, first);
            ENGINE::template settle<0>(pair, sums, after);
            if (now.slice == run.slices - 1) {
                self.finish(head);
                total(now.member);
            }
            phase ^= stage == STAGES - 1;
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
    }

    /* Sums over value heads: each thread its own elements, in the order of the heads. */
    __device__ __forceinline__ void total(int member) {
        float4 *kept = (float4 *)run.totals + (int64_t)blockIdx.x * 8 * THREADS + thread;
        if (member > 0)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float4 x = kept[i * THREADS];
                sums[4 * i] = x.x + sums[4 * i], sums[4 * i + 1] = x.y + sums[4 * i + 1];
                sums[4 * i + 2] = x.z + sums[4 * i + 2], sums[4 * i + 3] = x.w + sums[4 * i + 3];
            }
        if (member < run.group - 1) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                kept[i * THREADS] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
            return;
        }
        const ln_cuda_tensor &to = role == 0 ? run.query_gradient : run.key_gradient;
        if (run.normalise) unnormalise();
        if (to.data) store_gradient(to, run.gradients_bf16, key_head, half * 64, chunk, sums, thread);
    }

    /* From the gradient of x / length to that of x. */
    __device__ __forceinline__ void unnormalise() {
        const char *tile = rows + (role == 0 ? QUERIES : KEYS) + half * PANEL;
        const float *norm = record + (role == 0 ? QUERY_NORM : KEY_NORM);
        const float2 dot = dot_rows<64>(sums, tile, thread);
        const int row = row_of(thread);
        if (thread % 4 == 0) {
            own->along[2 * half + role][row] = dot.x;
            own->along[2 * half + role][row + 8] = dot.y;
        }
        __syncthreads();
        const float n[2] = {norm[row], norm[row + 8]};
        float along[2] = {0, 0};
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++)
#pragma unroll
            for (int r = 0; r < 2; r++) along[r] += own->along[2 * panel + role][row + 8 * r] * n[r] * n[r];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t part[4];
            load_step(part, tile, k, thread);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 x = unpack(part[i]);
                float *to = sums + 8 * k + 2 * i;
                to[0] = n[i % 2] * (to[0] - along[i % 2] * x.x);
                to[1] = n[i % 2] * (to[1] - along[i % 2] * x.y);
            }
        }
    }
};

template <class STEPS> static __device__ __forceinline__ void start_steps(const delta_backward_run &run, int half) {
    STEPS steps = {run, block_memory()};
    steps.own = (typename STEPS::numbers *)(steps.shared + STEPS::NUMBERS);
    steps.thread = threadIdx.x;
    steps.half = half;
    steps.go(steps);
}

/* Blocks stay and take chunk after chunk: sums over value heads need little room, and copies never pause. */
template <class ENGINE, int KEY, int STAGES>
static __global__ void __launch_bounds__(2 * KEY * 2, 1) delta_inside(const __grid_constant__ delta_backward_run run) {
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group % 2 == 0)
        start_steps<inside<ENGINE, KEY, STAGES, false, 0>>(run, group / 2);
    else
        start_steps<inside<ENGINE, KEY, STAGES, false, 1>>(run, group / 2);
}

} // namespace ln

#endif
