/* The softmax of a tile of scores held in the accumulators of matrix instructions, and the rows that leave it: the same
 * for every matrix instruction whose thread holds rows r and r + 8, and columns 8 j + 2 (lane % 4) + c of row r + 8 b
 * as element 4 j + 2 b + c.
 *
 *     weight[j] = 2^(scale score[j] - base),   sum += weight[j],   lse = (base + log2(sum)) / log2(e).
 *
 * The base is the greatest exponent of the row's first block, and moves when a later one exceeds it by more than 8:
 * sums and outputs need a new scale only then, which is rare. Invariant: weights are at most 2^8, and of the row's
 * first block one is at least 2^-8 of the base's; the result is the same whatever the base is. */
#ifndef LN_KERNEL_CUDA_ATTENTION_ROWS_CUH
#define LN_KERNEL_CUDA_ATTENTION_ROWS_CUH

#include "kernel/cuda/attention_cuda.h"
#include "kernel/cuda/instructions.cuh"

namespace ln {

/* What a kernel is given beside its tensors; the same for all of them. */
struct attention_run {
    ln_cuda_tensor query, key, value, output;
    float *log_sum_exp;
    const float *sinks; /* [heads]; NULL: none */
    const ln_cuda_task *tasks;
    const int32_t *blocks; /* the table of blocks; NULL: a task's blocks are neighbours */
    unsigned *next;        /* 0 before and after a run */
    int task_count, heads, group;
    int causal, window; /* window 0: none */
    float scale;        /* of scores, with log2(e) in it; with a cap: cap * log2(e) */
    float cap_scale;    /* 2 scale / cap, with log2(e) in it */
    int output_float32;
    __device__ __forceinline__ int block_at(int place) const { return blocks ? blocks[place] : place; }
};

/* 1 - 2 / (1 + 2^x) = tanh(x ln(2) / 2), within 2^-21 of 1; the instruction for it is wrong by up to 2^-11, which a cap
 * of 30 would make half a percent of a weight and more. */
static __device__ __forceinline__ float tangent(float x) {
    return fmaf(-2.0f, reciprocal(1.0f + exponential(x)), 1.0f);
}
/* Keys low .. high - 1 are those that the query at this position sees. */
struct sight {
    int low, high;
};
static __device__ __forceinline__ sight row_sight(const attention_run &run, int position, int keys) {
    sight seen = {0, keys};
    if (run.causal) seen.high = min(keys, position + 1);
    if (run.window) {
        seen.low = max(0, position - run.window + 1);
        if (!run.causal) seen.high = min(keys, position + run.window);
    }
    return seen;
}

/* Blocks first .. end - 1 of KEYS keys that every row of the tile sees whole. */
template <int KEYS>
static __device__ __forceinline__ sight whole_blocks(const attention_run &run, const ln_cuda_task &task, int rows) {
    const sight first = row_sight(run, task.position, task.keys),
                last = row_sight(run, task.position + rows - 1, task.keys);
    return {(last.low + KEYS - 1) / KEYS, max(first.high, 0) / KEYS};
}

template <int KEYS> struct softmax {
    float base[2], sum[2]; /* of the rows; sums are of this thread's columns. A base of -inf: nothing seen yet */

    __device__ __forceinline__ void open() {
        base[0] = base[1] = -CUDART_INF_F;
        sum[0] = sum[1] = 0;
    }

    static __device__ __forceinline__ void cap(float (&score)[KEYS / 2], float scale) {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) score[i] = tangent(score[i] * scale);
    }

    /* key: the first key of the block. Position: of this thread's first row. */
    template <bool WINDOW>
    static __device__ __forceinline__ void mask(float (&score)[KEYS / 2], const attention_run &run, int position,
                                                int keys, int key) {
        const int column = key + 2 * (threadIdx.x % 4);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const sight seen = row_sight(run, position + 8 * row, keys);
            const int low = seen.low - column, high = seen.high - column;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &x = score[4 * j + 2 * row + c];
                    if (8 * j + c >= high || (WINDOW && 8 * j + c < low)) x = -CUDART_INF_F;
                }
        }
    }

    /* Moves the bases of rows whose exponents grew above 8. factor: what older sums and outputs are to be multiplied
     * by. */
    __device__ __forceinline__ void move(float (&exponent)[KEYS / 2], float (&factor)[2]) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float most[2] = {exponent[2 * row], exponent[2 * row + 1]};
#pragma unroll
            for (int j = 1; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) most[c] = fmaxf(most[c], exponent[4 * j + 2 * row + c]);
            float by = fmaxf(most[0], most[1]);
            by = fmaxf(by, __shfl_xor_sync(~0u, by, 1));
            by = fmaxf(by, __shfl_xor_sync(~0u, by, 2));
            const bool first = base[row] == -CUDART_INF_F;
            if (by == -CUDART_INF_F || (!first && by <= 8.0f))
                by = 0;
            else
                base[row] = first ? by : base[row] + by;
            factor[row] = first ? 0 : exponential(-by);
            sum[row] *= factor[row];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) exponent[4 * j + 2 * row + c] -= by;
        }
    }

    /* Scores become weights. Returns whether older outputs are to be multiplied by factor; the same for the whole warp.
     * The largest exponent is sought among their bits as integers, three at a time: right where it is positive, which
     * alone matters. */
    template <bool FIRST>
    __device__ __forceinline__ bool step(float (&score)[KEYS / 2], float scale, float (&factor)[2]) {
        int most[2][2] = {};
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const float from = FIRST || base[row] == -CUDART_INF_F ? 0 : base[row];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                float *x = score + 4 * j + 2 * row;
                x[0] = fmaf(x[0], scale, -from);
                x[1] = fmaf(x[1], scale, -from);
                most[row][j % 2] = __vimax3_s32(most[row][j % 2], __float_as_int(x[0]), __float_as_int(x[1]));
            }
        }
        bool grown = true;
        if (!FIRST) {
            const int all = __vimax3_s32(max(most[0][0], most[0][1]), most[1][0], most[1][1]);
            grown = __any_sync(~0u, all > __float_as_int(8.0f) || fminf(base[0], base[1]) == -CUDART_INF_F);
        }
        if (grown) move(score, factor);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float part[2] = {0, 0};
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &x = score[4 * j + 2 * row + c];
                    x = exponential(x);
                    part[c] += x;
                }
            sum[row] += part[0] + part[1];
        }
        return grown;
    }

    /* Weights as left operands of products with 16 keys each. */
    template <bool HALF>
    static __device__ __forceinline__ void convert(const float (&score)[KEYS / 2], uint32_t (&weight)[KEYS / 4]) {
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) weight[i] = pack_as<HALF>(score[2 * i], score[2 * i + 1]);
    }

    template <int N> static __device__ __forceinline__ void rescale(float (&output)[N], const float (&factor)[2]) {
#pragma unroll
        for (int i = 0; i < N; i++) output[i] *= factor[i / 2 % 2];
    }

    /* Leaves 1 / sum, and lse in natural logarithms; a row that saw nothing: 0 and -inf. sink: in base 2; -inf: none.
     */
    __device__ __forceinline__ void close(float (&inverse)[2], float (&lse)[2], float sink) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float all = sum[row], top = base[row], factor = 1;
            all += __shfl_xor_sync(~0u, all, 1);
            all += __shfl_xor_sync(~0u, all, 2);
            if (sink > top) { /* of a row that saw nothing too */
                factor = exponential(top - sink);
                all = fmaf(all, factor, 1.0f);
                top = sink;
            } else if (sink > -CUDART_INF_F)
                all += exponential(sink - top);
            const bool any = all > 0;
            inverse[row] = any ? factor / all : all != all ? all : 0;
            lse[row] = any ? (top + log2f(all)) * CUDART_LN2_F : all != all ? all : -CUDART_INF_F;
        }
    }
};

static __device__ __forceinline__ float sink_of(const attention_run &run, int head) {
    return run.sinks ? run.sinks[head] * CUDART_L2E_F : -CUDART_INF_F;
}

/* Four threads hold words 0 .. 3 of four groups each; afterwards each holds its own group whole. */
static __device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? word[i] : word[i + 1], 1);
        word[i] = odd ? other : word[i];
        word[i + 1] = odd ? word[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t other = __shfl_xor_sync(~0u, upper ? word[i] : word[i + 2], 2);
        word[i] = upper ? other : word[i];
        word[i + 2] = upper ? word[i + 2] : other;
    }
}

/* Rows `row` and `row + 8` of the tile. */
template <int SIZE, bool HALF>
static __device__ __forceinline__ void store_rows(const attention_run &run, const ln_cuda_task &task, int row,
                                                  float (&output)[SIZE / 2], const float (&inverse)[2],
                                                  const float (&lse)[2]) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
        const bool inside = row < task.rows;
        const int64_t token = task.query + row;
        const int64_t at = token * run.output.token_stride + task.head * run.output.head_stride;
        if (run.output_float32) {
#pragma unroll
            for (int j = 0; j < SIZE / 8; j++) {
                const float2 pair = {output[4 * j + 2 * half] * inverse[half],
                                     output[4 * j + 2 * half + 1] * inverse[half]};
                if (inside) *(float2 *)((float *)run.output.data + at + 8 * j + 2 * lane) = pair;
            }
        } else {
#pragma unroll
            for (int j = 0; j < SIZE / 8; j += 4) {
                uint32_t word[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    word[i] = pack_as<HALF>(output[4 * (j + i) + 2 * half] * inverse[half],
                                            output[4 * (j + i) + 2 * half + 1] * inverse[half]);
                transpose_quad(word);
                if (inside)
                    *(uint4 *)((__nv_bfloat16 *)run.output.data + at + 8 * (j + lane)) = {word[0], word[1], word[2],
                                                                                          word[3]};
            }
        }
        if (run.log_sum_exp && inside && lane == 0) run.log_sum_exp[token * run.heads + task.head] = lse[half];
    }
}

} // namespace ln

#endif
