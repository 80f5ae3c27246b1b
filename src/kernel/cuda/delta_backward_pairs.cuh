/* The pairs of tokens of a chunk, one block a chunk and head, when tokens have one decay:
 *
 *     A[i][j] = beta[i] e^(gamma[i] - gamma[j]) key[i] . key[j], j < i,   T = (1 + A)^-1
 *     P[i][j] = scale e^(gamma[i] - gamma[j]) query[i] . key[j], j <= i
 *
 * with gamma the sum of the decays up to a token. T is solved in float32 by blocks of 16, then as
 * products of tf32 by blocks of 32 and the whole:
 *
 *     T = [T1, 0; -T2 A21 T1, T2].
 *
 * Decays below FLOOR are that: their powers are 0 in float32 all the same, and differences of sums stay numbers. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_PAIRS_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_PAIRS_CUH

#include "kernel/cuda/delta_backward.cuh"

namespace ln {

enum { SOLVE_ROW = 68 /* floats */, SOLVE_BYTES = 64 * SOLVE_ROW * 4 };

static constexpr float LOG2_E = 1.4426950408889634f;
static constexpr float FLOOR = -160; /* of logarithms to base 2 */

static __device__ __forceinline__ float decay_of(float natural) {
    return fmaxf(natural * LOG2_E, FLOOR);
}

/* Strengths below WEAK are that: their gradients are quotients by them. What comes of it otherwise is as small. */
static constexpr float WEAK = 0x1p-30f;
static __device__ __forceinline__ float strength_of(float beta) {
    return fabsf(beta) < WEAK ? copysignf(WEAK, beta) : beta;
}

/* 1 / length of this thread's row (two threads a row), or 1. */
template <int KEY> static __device__ __forceinline__ float norm_of(const char *tile, bool normalise) {
    const int row = threadIdx.x / 2 % 64, half = threadIdx.x % 2;
    float square = 0;
    if (!normalise) return 1;
    for (int piece = half; piece < KEY / 8; piece += 2) {
        const uint4 x = *(const uint4 *)(tile + tile_at(row, piece));
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 both = unpack(words[i]);
            square += both.x * both.x + both.y * both.y;
        }
    }
    square += __shfl_xor_sync(~0u, square, 1);
    return rsqrtf(square + 1e-6f);
}

/* ---- (1 + A)^-1 ---- */

/* The inverse of 1 + the 16 x 16 lower triangle at `a`, in its place; lanes l and l + 16 have column l. */
static __device__ __forceinline__ void solve_block(float *a) {
    const int lane = threadIdx.x % 16;
    float column[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum[2] = {lane == i ? 1.0f : 0.0f, 0};
#pragma unroll
        for (int m = 0; m < i; m += 4) {
            const float4 row = *(const float4 *)(a + i * SOLVE_ROW + m);
            sum[0] -= row.x * column[m];
            if (m + 1 < i) sum[1] -= row.y * column[m + 1];
            if (m + 2 < i) sum[0] -= row.z * column[m + 2];
            if (m + 3 < i) sum[1] -= row.w * column[m + 3];
        }
        column[i] = sum[0] + sum[1];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (threadIdx.x % 32 < 16) a[i * SOLVE_ROW + lane] = column[i];
    __syncwarp();
}

/* Rounded to tf32, whose products leave the last 13 bits unread. */
static __device__ __forceinline__ uint32_t rounded_tf32(float x) {
    return __float_as_uint(x) + 0x1000;
}

/* to (16 x 16) = sign left (16 x INNER) * right, by a warp. */
template <int INNER>
static __device__ __forceinline__ void multiply_blocks(float *to, const float *left, const float *right, float sign) {
    const int lane = threadIdx.x % 32, row = lane / 4;
    float sum[8] = {};
#pragma unroll
    for (int k = 0; k < INNER; k += 8) {
        const float *x = left + row * SOLVE_ROW + k + lane % 4, *y = right + (k + lane % 4) * SOLVE_ROW + lane / 4;
        const uint32_t part[4] = {rounded_tf32(x[0]), rounded_tf32(x[8 * SOLVE_ROW]), rounded_tf32(x[4]),
                                  rounded_tf32(x[8 * SOLVE_ROW + 4])};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t other[2] = {rounded_tf32(y[8 * n]), rounded_tf32(y[8 * n + 4 * SOLVE_ROW])};
            add_product_tf32(sum + 4 * n, part, other);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        to[(row + i / 2 % 2 * 8) * SOLVE_ROW + i / 4 * 8 + lane % 4 * 2 + i % 2] = sign * sum[i];
}

/* All 128 threads; `a` is spoiled, of which the blocks of 16 beside the diagonal of each half must be 0 above it. T
 * goes to a panel as bf16. */
static __device__ __forceinline__ void solve(float *a, char *panel) {
    float *low = a + 32 * SOLVE_ROW, *corner = low + 32, *idle = a + 32;
    const int warp = threadIdx.x / 32, row = warp / 2 * 16 * SOLVE_ROW, column = warp % 2 * 16;
    __syncthreads();
    solve_block(a + warp * 16 * (SOLVE_ROW + 1));
    __syncthreads();
    if (warp < 2) {
        float *half = warp == 0 ? a : corner, *below = half + 16 * SOLVE_ROW, *room = idle + warp * 16;
        multiply_blocks<16>(room, below, half, 1);
        __syncwarp();
        multiply_blocks<16>(below, below + 16, room, -1);
    }
    __syncthreads();
    multiply_blocks<32>(idle + row + column, low + row, a + column, 1);
    __syncthreads();
    multiply_blocks<32>(low + row + column, corner + row, idle + column, -1);
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
        const int row = i / 8, piece = i % 8;
        const float *x = a + row * SOLVE_ROW + piece * 8;
        uint4 all = {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
        if (row < 32 && piece >= 4) all = {0, 0, 0, 0};
        *(uint4 *)(panel + tile_at(row, piece)) = all;
    }
}

/* ---- one decay a token ---- */

template <int KEY> struct pairs_shape {
    enum { PANELS = KEY / 64, KEYS = 0, QUERIES = PANELS * PANEL };
    enum { RECORDS = (2 * PANELS * PANEL > SOLVE_BYTES + 2 * PANEL ? 2 * PANELS * PANEL : SOLVE_BYTES + 2 * PANEL) };
    enum { OUT = SOLVE_BYTES, BYTES = RECORDS + RECORD * 4 };
};

/* Of the first warp: sums of the decays and what follows from them but for the norms. */
static __device__ __forceinline__ void sum_decays(const delta_backward_run &run, const delta_backward_chunk &chunk,
                                                  int head, float *record) {
    const int lane = threadIdx.x;
    float decay[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = 2 * lane + i;
        const int64_t at = (int64_t)(chunk.token + row) * run.heads + head;
        decay[i] = row < chunk.rows && run.decay ? decay_of(run.decay[at]) : 0;
        record[STRENGTH + row] = row < chunk.rows ? strength_of(run.beta[at]) : WEAK;
    }
    float sum = decay[0] + decay[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float before = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += before;
    }
    record[GAMMA + 2 * lane] = sum - decay[1];
    record[GAMMA + 2 * lane + 1] = sum;
    if (lane == 31) record[END] = exponential(sum);
}

template <class ENGINE, int KEY>
static __global__ void __launch_bounds__(128, 4) delta_pairs(const __grid_constant__ delta_backward_run run) {
    typedef pairs_shape<KEY> shape;
    char *shared = block_memory();
    float *record = (float *)(shared + shape::RECORDS);
    const int head = blockIdx.x % run.heads, index = blockIdx.x / run.heads;
    const delta_backward_chunk chunk = run.chunks[index];
    const int64_t place = place_of(run, index, head);
    copy_tokens<KEY, 128>(shared + shape::KEYS, run.key, key_head_of(run, head), 0, chunk);
    copy_tokens<KEY, 128>(shared + shape::QUERIES, run.query, key_head_of(run, head), 0, chunk);
    copies_commit();
    if (threadIdx.x > 0) record[END + threadIdx.x] = 0;
    if (threadIdx.x < 32) sum_decays(run, chunk, head, record);
    copies_wait<0>();
    ENGINE::publish();
    __syncthreads();

    const float key_norm = norm_of<KEY>(shared + shape::KEYS, run.normalise),
                query_norm = norm_of<KEY>(shared + shape::QUERIES, run.normalise);
    if (threadIdx.x % 2 == 0) {
        const int row = threadIdx.x / 2;
        const float gamma = record[GAMMA + row], past = exponential(gamma);
        record[KEY_NORM + row] = key_norm;
        record[QUERY_NORM + row] = query_norm;
        record[READ + row] = key_norm * past;
        record[WRITE + row] = key_norm * exponential(record[GAMMA + 63] - gamma);
        record[ASK + row] = run.scale * query_norm * past;
        record[SOURCE + row] = gamma - log2f(key_norm);
    }
    float keys[32], queries[32];
    {
        uint32_t left[KEY / 4]; /* one after the other: registers are short */
        load_rows<KEY / 16>(left, shared + shape::KEYS);
        ENGINE::template by_rows<64, KEY / 16, false>(keys, left, shared + shape::KEYS);
        ENGINE::template settle<0>(keys, left);
        load_rows<KEY / 16>(left, shared + shape::QUERIES);
        ENGINE::template by_rows<64, KEY / 16, false>(queries, left, shared + shape::KEYS);
        ENGINE::template settle<0>(queries, left);
    }
    __syncthreads(); /* the record is there; keys and queries may go */

    float *a = (float *)shared;
    char *inverse = shared + shape::OUT, *weights = inverse + PANEL;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t part[4] = {};
        const bool seen = 16 * k < first_row() + 16; /* of A, the block after it must be 0, the rest is not read */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!seen) {
                if (k % 2) *(float2 *)(a + (row_of() + i % 2 * 8) * SOLVE_ROW + column_of(4 * k + i)) = {0, 0};
                continue;
            }
            const int at = 4 * k + i, row = row_of() + i % 2 * 8, column = column_of(at);
            float weight[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const int j = column + c;
                const float between =
                    exponential(fminf(record[GAMMA + row] - record[GAMMA + j], 0.0f)) * record[KEY_NORM + j];
                a[row * SOLVE_ROW + j] =
                    j < row ? record[STRENGTH + row] * record[KEY_NORM + row] * between * keys[2 * at + c] : 0;
                weight[c] = j <= row ? run.scale * record[QUERY_NORM + row] * between * queries[2 * at + c] : 0;
            }
            part[i] = pack(weight[0], weight[1]);
        }
        ENGINE::store_step(weights, k, part);
    }
    solve(a, inverse);
    __syncthreads();
    uint4 *to = (uint4 *)(run.pairs + place * 2 * PANEL), *to_record = (uint4 *)(run.records + place * RECORD);
    for (int i = threadIdx.x; i < 2 * PANEL / 16; i += 128) to[i] = ((const uint4 *)inverse)[i];
    for (int i = threadIdx.x; i < RECORD / 4; i += 128) to_record[i] = ((const uint4 *)record)[i];
}

} // namespace ln

#endif
