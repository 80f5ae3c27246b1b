/* The two walks over the chunks of a sequence. A block takes one head, 64 of its values, and one direction:
 *
 *     forward:   V'^T = (beta (v - K~ S))^T T^T,   S^T <- e^g S^T + V'^T K^
 *     backward:  R^T = (dO^T P + D^T K^^T) T,      D^T <- e^g D^T + dO^T Q~ - (beta R)^T K~
 *
 * With values as rows the state stays in accumulators from chunk to chunk, and every left operand is made of the
 * accumulators of the product before it: no warp waits for another, but for the copies. Copies run STAGES - 1 chunks
 * ahead. Invariant: a stage is filled again after the barrier that follows its last use. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_WALK_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_WALK_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

template <class ENGINE, int KEY, bool CHANNEL, int STAGES> struct walk {
    enum { THREADS = 128, PANELS = KEY / 64 };
    /* Of a stage. */
    enum {
        KEYS_READ = 0,
        KEYS_WRITE = CHANNEL ? PANELS * PANEL : 0,
        QUERIES = KEYS_WRITE + PANELS * PANEL,
        INVERSE = QUERIES + PANELS * PANEL,
        WEIGHTS = INVERSE + PANEL,
        VALUES = WEIGHTS + PANEL, /* or output gradients */
        FACTORS = VALUES + PANEL,
        STAGE = (FACTORS + RECORD * 4 + 1023) / 1024 * 1024
    };
    enum { STATE_OUT = STAGES * STAGE, VALUE_OUT = STATE_OUT + PANELS * PANEL, BYTES = VALUE_OUT + PANEL };

    const delta_backward_run &run;
    char *shared;
    int head, slice, sequence, first, end;
    float state[KEY / 2]; /* or its gradient; rows are values */

    __device__ __forceinline__ int64_t place(int chunk) const { return place_of(run, chunk, head); }
    __device__ __forceinline__ char *slice_of(char *panels, int chunk, int count) const {
        return panels + (place(chunk) * run.slices + slice) * count * PANEL;
    }

    template <bool BACKWARD> __device__ __forceinline__ void load(int chunk, int stage) {
        char *to = shared + stage * STAGE;
        const delta_backward_chunk c = run.chunks[chunk];
        const int64_t at = place(chunk);
        if (CHANNEL) {
            copy_panels<THREADS>(to, run.keys + at * 3 * PANELS * PANEL, (BACKWARD ? 3 : 2) * PANELS * PANEL);
        } else {
            copy_tokens<KEY, THREADS>(to + KEYS_READ, run.key, key_head_of(run, head), 0, c);
            if (BACKWARD) copy_tokens<KEY, THREADS>(to + QUERIES, run.query, key_head_of(run, head), 0, c);
        }
        copy_panels<THREADS>(to + INVERSE, run.pairs + at * 2 * PANEL, (BACKWARD ? 2 : 1) * PANEL);
        copy_tokens<64, THREADS>(to + VALUES, BACKWARD ? run.output_gradient : run.value, head, slice * 64, c);
        copy_panels<THREADS>(to + FACTORS, (const char *)(run.records + at * RECORD), RECORD * 4);
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

    /* Each warp copies what it wrote itself. */
    __device__ __forceinline__ void keep_state(const uint32_t (&left)[KEY / 4], char *to) {
        char *from = shared + STATE_OUT;
#pragma unroll
        for (int k = 0; k < KEY / 16; k++) ENGINE::store_step(from, k, *(const uint32_t(*)[4])(left + 4 * k));
        __syncwarp();
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = p * PANEL + first_row() * 128 + i * 512 + (int)threadIdx.x % 32 * 16;
                *(uint4 *)(to + at) = *(const uint4 *)(from + at);
            }
        __syncwarp();
    }
    __device__ __forceinline__ void keep_values(const uint32_t (&rounded)[16], char *to) {
        char *from = shared + VALUE_OUT;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < 4; k++) ENGINE::store_turned(from, k, *(const uint32_t(*)[4])(rounded + 4 * k));
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = tile_at(i * 16 + lane / 2, first_row() / 8 + lane % 2);
            *(uint4 *)(to + at) = *(const uint4 *)(from + at);
        }
        __syncwarp();
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

    __device__ __forceinline__ void forward(int chunk, const char *stage) {
        const float *factors = (const float *)(stage + FACTORS);
        uint32_t left[KEY / 4], value[16], right[16];
        float read[32];
        round_sums(left, state);
        ENGINE::template by_rows<64, KEY / 16, false>(read, left, stage + KEYS_READ);
        load_turned(value, stage + VALUES);
        keep_state(left, slice_of(run.states, chunk, PANELS));
        ENGINE::template settle<0>(read, left);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + READ + column_of(i)), v = unpack(value[i]),
                         beta = *(const float2 *)(factors + STRENGTH + column_of(i));
            right[i] = pack(beta.x * (v.x - by.x * read[2 * i]), beta.y * (v.y - by.y * read[2 * i + 1]));
        }
        ENGINE::template by_rows<64, 4, false>(read, right, stage + INVERSE);
        fade(factors);
        ENGINE::template settle<0>(read, right);
        round_columns(right, read, factors + WRITE);
        ENGINE::template by_columns<KEY, 4, true>(state, right, stage + KEYS_WRITE);
        round_sums(value, read);
        keep_values(value, slice_of(run.values, chunk, 1));
        ENGINE::template settle<0>(state, right);
    }

    __device__ __forceinline__ void backward(int chunk, const char *stage) {
        const float *factors = (const float *)(stage + FACTORS);
        uint32_t left[KEY / 4], output[16], right[16], rounded[16];
        float write[32], weighed[32];
        round_sums(left, state);
        load_turned(output, stage + VALUES);
        ENGINE::template by_rows<64, KEY / 16, false>(write, left, stage + KEYS_WRITE);
        ENGINE::template by_columns<64, 4, false>(weighed, output, stage + WEIGHTS);
        keep_state(left, slice_of(run.state_gradients, chunk, PANELS));
        fade(factors);
        ENGINE::template settle<0>(write, weighed, left, output);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + WRITE + column_of(i));
            right[i] = pack(by.x * write[2 * i] + weighed[2 * i], by.y * write[2 * i + 1] + weighed[2 * i + 1]);
        }
        ENGINE::template by_columns<64, 4, false>(write, right, stage + INVERSE);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + ASK + column_of(i)), x = unpack(output[i]);
            output[i] = pack(by.x * x.x, by.y * x.y);
        }
        ENGINE::template by_columns<KEY, 4, true>(state, output, stage + QUERIES);
        ENGINE::template settle<1>(write, right);
        round_sums(rounded, write);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float2 by = *(const float2 *)(factors + READ + column_of(i)),
                         beta = *(const float2 *)(factors + STRENGTH + column_of(i));
            right[i] = pack(-beta.x * by.x * write[2 * i], -beta.y * by.y * write[2 * i + 1]);
        }
        ENGINE::template by_columns<KEY, 4, true, true>(state, right, stage + KEYS_READ);
        keep_values(rounded, slice_of(run.residuals, chunk, 1));
        ENGINE::template settle<0>(state, output, right);
    }

    template <bool BACKWARD> __device__ __forceinline__ void go() {
        const int count = end - first;
        if (STAGES > 1)
            for (int i = 0; i < STAGES - 1; i++) {
                if (i < count) load<BACKWARD>(BACKWARD ? end - 1 - i : first + i, i);
                copies_commit();
            }
        for (int i = 0, stage = 0; i < count; i++) {
            const int chunk = BACKWARD ? end - 1 - i : first + i, next = i + STAGES - 1;
            if (STAGES == 1) {
                __syncthreads();
                load<BACKWARD>(chunk, 0);
                copies_commit();
            }
            copies_wait<STAGES == 1 ? 0 : STAGES - 2>();
            ENGINE::publish();
            __syncthreads();
            if (STAGES > 1) {
                if (next < count)
                    load<BACKWARD>(BACKWARD ? end - 1 - next : first + next, stage == 0 ? STAGES - 1 : stage - 1);
                copies_commit();
            }
            if (BACKWARD)
                backward(chunk, shared + stage * STAGE);
            else
                forward(chunk, shared + stage * STAGE);
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
    }
};

template <class ENGINE, int KEY, bool CHANNEL, int STAGES>
static __global__ void __launch_bounds__(128, 1) delta_walk(const __grid_constant__ delta_backward_run run) {
    typedef walk<ENGINE, KEY, CHANNEL, STAGES> steps;
    const int task = blockIdx.x / 2, slice = task % run.slices, head = task / run.slices % run.heads,
              sequence = task / run.slices / run.heads;
    steps w = {run, block_memory(), head, slice, sequence, run.first_chunk[sequence], run.first_chunk[sequence + 1]};
    if (blockIdx.x % 2 == 0) {
        w.state_from(run.state_out_gradient ? run.state_out_gradient + w.state_place(sequence) : nullptr);
        w.template go<true>();
        if (run.state_in_gradient) w.state_to(run.state_in_gradient + w.state_place(sequence));
    } else {
        const int64_t slot = run.state_slots ? run.state_slots[sequence] : sequence;
        w.state_from(run.state_in ? run.state_in + w.state_place(slot) : nullptr);
        w.template go<false>();
    }
}

} // namespace ln

#endif
