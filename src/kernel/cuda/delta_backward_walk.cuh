/* The two walks over the chunks of a sequence. A block takes one head, 64 of its values, and one direction:
 *
 *     forward:   V'^T = (beta (v - K~ S))^T T^T,   S^T <- e^g S^T + V'^T K^
 *     backward:  R^T = (dO^T P + D^T K^^T) T,      D^T <- e^g D^T + dO^T Q~ - R'^T K~,  R' = beta R
 *
 * With values as rows the state stays in accumulators from chunk to chunk, and every left operand is made of the
 * accumulators of the product before it: the four warps that compute never wait for each other. Four more copy: chunks
 * to come, STAGES - 1 ahead, and what the last chunk left in shared memory. All meet once a chunk. Invariant: between
 * two meetings a stage, or a room for what is left, is either copied or computed with. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_WALK_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_WALK_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

template <class ENGINE, int KEY, bool CHANNEL, int STAGES> struct walk {
    enum { COPIERS = 128, THREADS = 128 + COPIERS, PANELS = KEY / 64 };
    /* Of a stage. */
    enum {
        KEYS_READ = 0,
        KEYS_WRITE = CHANNEL ? PANELS * PANEL : 0,
        QUERIES = KEYS_WRITE + PANELS * PANEL,
        INVERSE = QUERIES + PANELS * PANEL,
        WEIGHTS = INVERSE + PANEL,
        VALUES = WEIGHTS + PANEL, /* or output gradients */
        FACTORS = VALUES + PANEL,
        FULL = FACTORS + RECORD * 4, /* a barrier */
        STAGE = (FULL + 8 + 1023) / 1024 * 1024
    };
    enum { STATE_OUT = 0, VALUE_OUT = PANELS * PANEL, OUT = VALUE_OUT + PANEL, ROOMS = STAGES == 1 ? 1 : 2 };
    enum { LEFT = STAGES * STAGE, BYTES = LEFT + ROOMS * OUT };

    const delta_backward_run &run;
    char *shared;
    int head, slice, sequence, first, end;
    int first_token, end_token; /* of the sequence */
    float state[KEY / 2];       /* or its gradient; rows are values */

    __device__ __forceinline__ int64_t place(int chunk) const { return place_of(run, chunk, head); }
    __device__ __forceinline__ char *slice_of(char *panels, int chunk, int count) const {
        return panels + (place(chunk) * run.slices + slice) * count * PANEL;
    }

    __device__ __forceinline__ uint64_t *full_of(int stage) const {
        return (uint64_t *)(shared + stage * STAGE + FULL);
    }
    /* Of a panel of pairs, blocks of 16 on and below the diagonal: 128, 96 and 32, and 64 pieces of its four rows. The
     * others are zeros, put once. */
    __device__ __forceinline__ void load_pairs(char *to, const char *from) const {
        const int thread = threadIdx.x % COPIERS;
        const int last = tile_at(48 + thread / 8, thread % 8),
                  third = thread < 96 ? tile_at(32 + thread / 6, thread % 6) : tile_at((thread - 96) / 2, thread % 2),
                  second = tile_at(16 + thread / 4, thread % 4);
        copy_piece(to + last, from + last, true);
        copy_piece(to + third, from + third, true);
        if (thread < 64) copy_piece(to + second, from + second, true);
    }
    __device__ __forceinline__ void clear_pairs() const {
        for (int stage = 0; stage < STAGES; stage++)
            for (int at = (int)threadIdx.x % COPIERS * 16; at < 2 * PANEL; at += COPIERS * 16)
                *(uint4 *)(shared + stage * STAGE + INVERSE + at) = make_uint4(0, 0, 0, 0);
    }
    template <bool BACKWARD> __device__ __forceinline__ void load(int chunk, int stage) {
        char *to = shared + stage * STAGE;
        const int token = first_token + (chunk - first) * CHUNK;
        const delta_backward_chunk c = {token, min(end_token - token, (int)CHUNK)};
        const int64_t at = place(chunk);
        const int thread = threadIdx.x % COPIERS, keys = CHANNEL ? (BACKWARD ? 3 : 2) * PANELS * PANEL : 0;
        uint64_t *full = full_of(stage);
        /* Of the record what comes before and with STRENGTH, and END. */
        const int factors = (CHANNEL ? RECORD : GAMMA) * 4, ends = CHANNEL ? 0 : 16;
        ENGINE::expect(full, keys + factors + ends, thread);
        load_pairs(to + INVERSE, run.pairs + at * 2 * PANEL);
        if (BACKWARD) load_pairs(to + WEIGHTS, run.pairs + at * 2 * PANEL + PANEL);
        ENGINE::template copy<COPIERS>(to + FACTORS, run.records + at * RECORD, factors, full, thread);
        if (!CHANNEL)
            ENGINE::template copy<COPIERS>(to + FACTORS + END * 4, run.records + at * RECORD + END, ends, full, thread);
        if (CHANNEL) {
            ENGINE::template copy<COPIERS>(to, run.keys + at * 3 * PANELS * PANEL, keys, full, thread);
        } else {
            copy_tokens<KEY, COPIERS>(to + KEYS_READ, run.key, key_head_of(run, head), 0, c);
            if (BACKWARD) copy_tokens<KEY, COPIERS>(to + QUERIES, run.query, key_head_of(run, head), 0, c);
        }
        copy_tokens<64, COPIERS>(to + VALUES, BACKWARD ? run.output_gradient : run.value, head, slice * 64, c);
    }

    /* States lie as [key][value]. */
    __device__ __forceinline__ void state_from(const float *from) {
#pragma unroll
        for (int i = 0; i < KEY / 2; i++) {
            const int64_t key = column_of(i / 2) + i % 2, value = slice * 64 + row_of() + i / 2 % 2 * 8;
            state[i] = from ? from[key * run.slices * 64 + value] : 0;
        }
    }
    __device__ __forceinline__ void state_to(float *to) {
#pragma unroll
        for (int i = 0; i < KEY / 2; i++) {
            const int64_t key = column_of(i / 2) + i % 2, value = slice * 64 + row_of() + i / 2 % 2 * 8;
            to[key * run.slices * 64 + value] = state[i];
        }
    }
    __device__ __forceinline__ int64_t state_place(int64_t slot) const {
        return (slot * run.heads + head) * KEY * run.slices * 64;
    }

    __device__ __forceinline__ void leave_state(const uint32_t (&left)[KEY / 4], char *room) {
#pragma unroll
        for (int k = 0; k < KEY / 16; k++)
            ENGINE::store_step(room + STATE_OUT, k, *(const uint32_t(*)[4])(left + 4 * k));
    }
    __device__ __forceinline__ void leave_values(const uint32_t (&rounded)[16], char *room) {
#pragma unroll
        for (int k = 0; k < 4; k++) ENGINE::store_turned(room + VALUE_OUT, k, *(const uint32_t(*)[4])(rounded + 4 * k));
    }
    template <bool BACKWARD> __device__ __forceinline__ void take(int chunk, const char *room) {
        char *state_to = slice_of(BACKWARD ? run.state_gradients : run.states, chunk, PANELS);
        const int from = (int)threadIdx.x % COPIERS * 16;
#pragma unroll
        for (int at = 0; at < PANELS * PANEL; at += COPIERS * 16)
            *(uint4 *)(state_to + from + at) = *(const uint4 *)(room + STATE_OUT + from + at);
        if (BACKWARD) {
            take_residuals(first_token + (chunk - first) * CHUNK, room + VALUE_OUT);
            return;
        }
        char *value_to = slice_of(run.values, chunk, 1);
#pragma unroll
        for (int at = 0; at < PANEL; at += COPIERS * 16)
            *(uint4 *)(value_to + from + at) = *(const uint4 *)(room + VALUE_OUT + from + at);
    }
    /* The gradient of values. */
    __device__ __forceinline__ void take_residuals(int token, const char *panel) {
        const int thread = threadIdx.x % COPIERS, piece = thread % 8, row = thread / 8, rows = end_token - token,
                  column = slice * 64 + piece * 8;
        const bool wide = run.value_gradient.data && !run.gradients_bf16;
        const int64_t step = COPIERS / 8 * run.residual.token_stride,
                      wide_step = COPIERS / 8 * run.value_gradient.token_stride;
        __nv_bfloat16 *to = (__nv_bfloat16 *)run.residual.data + (token + row) * run.residual.token_stride +
                            head * run.residual.head_stride + column;
        float *wide_to = (float *)run.value_gradient.data + (token + row) * run.value_gradient.token_stride +
                         head * run.value_gradient.head_stride + column;
#pragma unroll
        for (int i = 0; i < CHUNK / (COPIERS / 8); i++) {
            if (row + i * (COPIERS / 8) >= rows) return;
            const uint4 all = *(const uint4 *)(panel + tile_at(row + i * (COPIERS / 8), piece));
            *(uint4 *)(to + i * step) = all;
            if (!wide) continue;
            const float2 a = unpack(all.x), b = unpack(all.y), c = unpack(all.z), d = unpack(all.w);
            float4 *both = (float4 *)(wide_to + i * wide_step);
            both[0] = make_float4(a.x, a.y, b.x, b.y);
            both[1] = make_float4(c.x, c.y, d.x, d.y);
        }
    }

    __device__ __forceinline__ void fade(const float *factors) {
        const float all = CHANNEL ? 0 : factors[END];
#pragma unroll
        for (int i = 0; i < KEY / 4; i++) {
            const float2 by = CHANNEL ? *(const float2 *)(factors + END + column_of(i)) : make_float2(all, all);
            state[2 * i] *= by.x;
            state[2 * i + 1] *= by.y;
        }
    }

    __device__ __forceinline__ void forward(const char *stage, char *room) {
        const float *factors = (const float *)(stage + FACTORS);
        uint32_t left[KEY / 4], value[16], right[16];
        float read[32], wanted[32], by[32]; /* beta v, beta times what K~ has */
        round_sums(left, state);
        ENGINE::template by_rows<64, KEY / 16, false>(read, left, stage + KEYS_READ);
        load_turned(value, stage + VALUES);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 each = *(const float2 *)(factors + READ + column_of(i)), v = unpack(value[i]),
                         beta = *(const float2 *)(factors + STRENGTH + column_of(i));
            wanted[2 * i] = beta.x * v.x, wanted[2 * i + 1] = beta.y * v.y;
            by[2 * i] = beta.x * each.x, by[2 * i + 1] = beta.y * each.y;
        }
        leave_state(left, room);
        ENGINE::template settle<0>(read, left);
#pragma unroll
        for (int i = 0; i < 16; i++)
            right[i] =
                pack(wanted[2 * i] - by[2 * i] * read[2 * i], wanted[2 * i + 1] - by[2 * i + 1] * read[2 * i + 1]);
        ENGINE::template by_rows<64, 4, false>(read, right, stage + INVERSE);
        fade(factors);
        ENGINE::template settle<0>(read, right);
        round_columns(right, read, factors + WRITE);
        ENGINE::template by_columns<KEY, 4, true>(state, right, stage + KEYS_WRITE);
        round_sums(value, read);
        leave_values(value, room);
        ENGINE::template settle<0>(state, right);
    }

    /* What does not depend on the state goes first, what nothing waits for while the rest is made ready. */
    __device__ __forceinline__ void backward(const char *stage, char *room) {
        const float *factors = (const float *)(stage + FACTORS);
        uint32_t left[KEY / 4], output[16], asked[16], right[16], rounded[16];
        float write[32], weighed[32];
        load_turned(output, stage + VALUES);
        ENGINE::template by_columns<64, 4, false>(weighed, output, stage + WEIGHTS);
        round_sums(left, state);
        ENGINE::template by_rows<64, KEY / 16, false>(write, left, stage + KEYS_WRITE);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + ASK + column_of(i)), x = unpack(output[i]);
            asked[i] = pack(by.x * x.x, by.y * x.y);
        }
        fade(factors);
        ENGINE::template by_columns<KEY, 4, true>(state, asked, stage + QUERIES);
        leave_state(left, room);
        ENGINE::template settle<1>(write, weighed, left, output);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + WRITE + column_of(i));
            right[i] = pack(by.x * write[2 * i] + weighed[2 * i], by.y * write[2 * i + 1] + weighed[2 * i + 1]);
        }
        ENGINE::template by_columns<64, 4, false>(write, right, stage + INVERSE);
        ENGINE::template settle<0>(write, right, state, asked);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + READ + column_of(i)),
                         beta = *(const float2 *)(factors + STRENGTH + column_of(i));
            const float low = beta.x * write[2 * i], high = beta.y * write[2 * i + 1];
            rounded[i] = pack(low, high);
            right[i] = pack(-by.x * low, -by.y * high);
        }
        ENGINE::template by_columns<KEY, 4, true>(state, right, stage + KEYS_READ);
        leave_values(rounded, room);
        ENGINE::template settle<0>(state, right);
    }

    template <bool BACKWARD> __device__ __forceinline__ int chunk_of(int step) const {
        return BACKWARD ? end - 1 - step : first + step;
    }
    __device__ __forceinline__ char *room_of(int step) {
        return shared + LEFT + step % ROOMS * OUT;
    }

    template <bool BACKWARD> __device__ __forceinline__ void copy() {
        const int count = end - first;
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < count) load<BACKWARD>(chunk_of<BACKWARD>(i), i);
            copies_commit();
        }
        for (int i = 0, stage = STAGES - 1, now = 0, phase = 0; i <= count; i++) {
            const int next = i + STAGES - 1;
            if (STAGES > 1) {
                copies_wait<STAGES == 1 ? 0 : STAGES - 2>();
                ENGINE::publish();
                if (i < count) ENGINE::await(full_of(now), phase);
            }
            block_wait(THREADS);
            if (next < count) load<BACKWARD>(chunk_of<BACKWARD>(next), stage);
            copies_commit();
            if (i > 0) take<BACKWARD>(chunk_of<BACKWARD>(i - 1), room_of(i - 1));
            if (STAGES == 1) {
                copies_wait<0>();
                ENGINE::publish();
                if (i < count) ENGINE::await(full_of(now), phase);
                block_wait(THREADS);
            }
            phase ^= now == STAGES - 1;
            now = now == STAGES - 1 ? 0 : now + 1;
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
    }
    template <bool BACKWARD> __device__ __forceinline__ void compute() {
        const int count = end - first;
        for (int i = 0, stage = 0; i <= count; i++) {
            block_wait(THREADS);
            if (STAGES == 1) block_wait(THREADS);
            if (i == count) break;
            if (BACKWARD)
                backward(shared + stage * STAGE, room_of(i));
            else
                forward(shared + stage * STAGE, room_of(i));
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
    }
};

template <class ENGINE, int KEY, bool CHANNEL, int STAGES>
static __global__ void __launch_bounds__(256, 1) delta_walk(const __grid_constant__ delta_backward_run run) {
    typedef walk<ENGINE, KEY, CHANNEL, STAGES> steps;
    const int task = blockIdx.x / 2, slice = task % run.slices, head = task / run.slices % run.heads,
              sequence = task / run.slices / run.heads;
    steps w = {run, block_memory(), head, slice, sequence, run.first_chunk[sequence], run.first_chunk[sequence + 1]};
    if (w.first < w.end) {
        const delta_backward_chunk last = run.chunks[w.end - 1];
        w.first_token = run.chunks[w.first].token;
        w.end_token = last.token + last.rows;
    }
    if (threadIdx.x >= 128) w.clear_pairs(); /* they publish what they write */
    for (int stage = 0; stage < STAGES; stage++) ENGINE::template open<steps::THREADS>(w.full_of(stage), 1);
    if (threadIdx.x >= 128) {
        if (blockIdx.x % 2 == 0)
            w.template copy<true>();
        else
            w.template copy<false>();
    } else if (blockIdx.x % 2 == 0) {
        w.state_from(run.state_out_gradient ? run.state_out_gradient + w.state_place(sequence) : nullptr);
        w.template compute<true>();
        if (run.state_in_gradient) w.state_to(run.state_in_gradient + w.state_place(sequence));
    } else {
        const int64_t slot = run.state_slots ? run.state_slots[sequence] : sequence;
        w.state_from(run.state_in ? run.state_in + w.state_place(slot) : nullptr);
        w.template compute<false>();
    }
}

} // namespace ln

#endif
