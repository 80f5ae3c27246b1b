/* What the warp groups that own columns do together with a chunk in shared memory, beside its products: decays of
 * channels, and the normaliser.
 *
 * Weights with steep decays of keys, in blocks of 16 steps of time: left of the diagonal, with r the sums of decays
 * before the query's block,
 *
 *     weight[i][j] = (query[i] 2^(c[i] - r)) . (key[j] 2^(r - c[j])),
 *
 * by products of 16 x 8 x 16, as both exponents are at most 0; on the diagonal element by element (2312.06635, section
 * 4.3). Steep decays of values: the chunk's own part of the outputs is made element by element. */
#ifndef LN_KERNEL_CUDA_LINEAR_HOPPER_CHUNK_CUH
#define LN_KERNEL_CUDA_LINEAR_HOPPER_CHUNK_CUH

#include "kernel/cuda/linear_hopper_stages.cuh"

namespace ln {

/* All groups of columns meet. */
template <class SHAPE> static __device__ __forceinline__ void groups_meet() {
    named_wait(1, 128 * SHAPE::groups);
}
/* Two neighbours of a tile of bf16 in panels. */
static __device__ __forceinline__ uint32_t *pair_at(char *tile, int row, int pair) {
    return (uint32_t *)(tile + pair / 32 * CHUNK * 128 + row * 128 + (pair / 4 % 8 ^ row % 8) * 16 + pair % 4 * 4);
}

template <class SHAPE> struct chunk_work {
    static constexpr int pairs = SHAPE::pairs, parts = SHAPE::parts, steps = SHAPE::steps,
                         threads = 128 * SHAPE::groups;
    const linear_run &run;
    const ln_cuda_linear_task &task;
    linear_control<SHAPE> *control;
    char *stage, *weight;
    int64_t token;
    int rows, turn;

    __device__ __forceinline__ int thread() { return (int)threadIdx.x - 128; }
    __device__ __forceinline__ int row_at(int time) { return run.reverse ? CHUNK - 1 - time : time; }
    /* Of this thread's part of the time. */
    __device__ __forceinline__ int row_of(int step) { return row_at(thread() / pairs * steps + step); }

    /* ---- decays of keys ---- */

    __device__ __forceinline__ void sum_decays(float2 (&sum)[steps], int pair) {
        const float2 *decays = (const float2 *)(stage + SHAPE::decay_at);
        const int64_t left = task.end - token - (run.reverse ? 1 : 0); /* tokens that have decays */
        float2 all = {0, 0};
#pragma unroll
        for (int i = 0; i < steps; i++) {
            const int row = row_of(i);
            const bool inside = row < rows && row < left;
            const float2 own = decays[row * pairs + pair];
            all.x += inside ? decay_log(own.x) : 0;
            all.y += inside ? decay_log(own.y) : 0;
            sum[i] = all;
        }
        control->part[turn][thread() / pairs][pair] = all;
        groups_meet<SHAPE>();
    }
    /* Makes sums of the whole chunk; returns those of its last row, of a pair of another warp too. */
    __device__ __forceinline__ float2 join_decays(float2 (&sum)[steps], int pair, float2 &other) {
        float2 before = {0, 0}, all = {0, 0};
        other = all;
#pragma unroll
        for (int i = 0; i < parts; i++) {
            const float2 part = control->part[turn][i][pair], beside = control->part[turn][i][(pair + 32) % pairs];
            if (i < thread() / pairs) before = {before.x + part.x, before.y + part.y};
            all = {all.x + part.x, all.y + part.y};
            other = {other.x + beside.x, other.y + beside.y};
        }
#pragma unroll
        for (int i = 0; i < steps; i++) sum[i] = {sum[i].x + before.x, sum[i].y + before.y};
        return all;
    }
    /* Of all channels: a warp's threads have 64, their others the rest. */
    static __device__ __forceinline__ bool is_gentle(float2 all, float2 other) {
        const float least = fminf(fminf(all.x, all.y), fminf(other.x, other.y)),
                    sum = all.x + all.y + other.x + other.y; /* not a number where one is not */
        return __all_sync(~0u, least > STEEPEST && sum == sum);
    }
    static __device__ __forceinline__ uint32_t raised(uint32_t both, float x, float y) {
        const float2 pair = unpack(both);
        return pack(pair.x * exponential(x), pair.y * exponential(y));
    }
    __device__ __forceinline__ void set_weight(int i, int j, float x) {
        const int row = row_at(i), column = row_at(j);
        *(__nv_bfloat16 *)(weight + row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2) =
            __float2bfloat16(x * run.scale);
    }
    /* Block `left` of keys for block `below` of queries, by one warp; its mirror image is 0. */
    __device__ __forceinline__ void steep_block(const float2 *sums, int below, int left) {
        const int lane = threadIdx.x % 32, i = below * 16 + lane / 4, j = left * 16 + lane / 4;
        float product[8] = {};
#pragma unroll 1
        for (int k = lane % 4; k < pairs; k += 8) {
            uint32_t query[4], keys[4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int pair = k + 4 * half;
                const float2 r = sums[row_at(below * 16 - 1) * pairs + pair];
#pragma unroll
                for (int at = 0; at < 2; at++) {
                    const int query_row = row_at(i + 8 * at), key_row = row_at(j + 8 * at);
                    const float2 c = sums[query_row * pairs + pair], d = sums[key_row * pairs + pair];
                    query[2 * half + at] = raised(*pair_at(stage, query_row, pair), c.x - r.x, c.y - r.y);
                    keys[2 * at + half] = raised(*pair_at(stage + SHAPE::key_at, key_row, pair), r.x - d.x, r.y - d.y);
                }
            }
            add_product(product, query, keys);
            add_product(product + 4, query, keys + 2);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const int column = left * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2, row = i + e / 2 % 2 * 8;
            set_weight(row, column, product[e]);
            set_weight(column, row, 0);
        }
    }
    /* The blocks on the diagonal: 136 pairs of a query and a key each, a thread a pair; lanes begin with different
     * channels, which lie in different banks. */
    __device__ __forceinline__ void steep_diagonal(const float2 *sums) {
        enum { TRIANGLE = 136 };
        for (int at = thread(); at < CHUNK / 16 * TRIANGLE; at += threads) {
            const int block = at / TRIANGLE * 16, e = at % TRIANGLE, n = (int)((sqrtf(8.0f * (float)e + 1) - 1) * 0.5f),
                      m = e - n * (n + 1) / 2, row = row_at(block + n), column = row_at(block + m);
            float sum = 0;
#pragma unroll 4
            for (int k = 0; k < pairs; k++) {
                const int pair = (k + (int)threadIdx.x) % pairs;
                const float2 a = unpack(*pair_at(stage, row, pair)), c = sums[row * pairs + pair],
                             b = unpack(*pair_at(stage + SHAPE::key_at, column, pair)), d = sums[column * pairs + pair];
                sum = fmaf(a.x * b.x, exponential(c.x - d.x), sum);
                sum = fmaf(a.y * b.y, exponential(c.y - d.y), sum);
            }
            set_weight(block + n, block + m, sum);
            if (n != m) set_weight(block + m, block + n, 0);
        }
    }
    /* Sums of decays go where the decays were. */
    __device__ __forceinline__ void steep_weights(const float2 (&sum)[steps], int pair) {
        float2 *sums = (float2 *)(stage + SHAPE::decay_at);
#pragma unroll
        for (int i = 0; i < steps; i++) sums[row_of(i) * pairs + pair] = sum[i];
        groups_meet<SHAPE>();
        for (int block = thread() / 32; block < 6; block += threads / 32) {
            const int below = block < 1 ? 1 : block < 3 ? 2 : 3;
            steep_block(sums, below, block - below * (below - 1) / 2);
        }
        steep_diagonal(sums);
        groups_meet<SHAPE>();
    }
    /* Queries and keys take the decays up; `total` grows by those of this thread's channels. Returns whether they are
     * gentle: else the weights are made. */
    __device__ __forceinline__ bool raise_keys(float2 &total) {
        const int pair = thread() % pairs;
        float2 sum[steps], other;
        sum_decays(sum, pair);
        const float2 all = join_decays(sum, pair, other);
        const bool gentle = is_gentle(all, other);
        total = {total.x + all.x, total.y + all.y};
        if (thread() < pairs) control->fade[pair] = {exponential(all.x), exponential(all.y)};
        if (SHAPE::last && !gentle) steep_weights(sum, pair);
#pragma unroll
        for (int i = 0; i < steps; i++) {
            uint32_t *query = pair_at(stage, row_of(i), pair), *keys = pair_at(stage + SHAPE::key_at, row_of(i), pair);
            if (SHAPE::last) *query = raised(*query, sum[i].x, sum[i].y);
            *keys = raised(*keys, (gentle ? 0 : all.x) - sum[i].x, (gentle ? 0 : all.y) - sum[i].y);
        }
        stores_to_async();
        groups_meet<SHAPE>();
        return gentle;
    }

    /* ---- decays of values ---- */

    /* Where 2^c of a pair of columns lies, or the chunk's own outputs: rows that a warp reads at a time meet all banks.
     */
    __device__ __forceinline__ float2 *outer_at(int row, int pair) {
        return (float2 *)(stage + SHAPE::decay_at) + row * pairs + (pair ^ row / 2 % 4 * 4);
    }
    __device__ __forceinline__ void raise_rows(const float2 (&sum)[steps], int pair, float2 all, bool gentle) {
#pragma unroll
        for (int i = 0; i < steps; i++) {
            uint32_t *values = pair_at(stage + SHAPE::value_at, row_of(i), pair);
            *values = raised(*values, (gentle ? 0 : all.x) - sum[i].x, (gentle ? 0 : all.y) - sum[i].y);
            if (SHAPE::last) *outer_at(row_of(i), pair) = {exponential(sum[i].x), exponential(sum[i].y)};
        }
        stores_to_async(); /* before the copy engine's next */
        groups_meet<SHAPE>();
    }
    /* Values take the decays up, as keys do. Steep ones: not yet, where the chunk's weights are still to be made; their
     * sums of decays go where the decays were. */
    __device__ __forceinline__ bool raise_values(float2 &total) {
        const int pair = thread() % pairs;
        float2 sum[steps], other;
        sum_decays(sum, pair);
        const float2 all = join_decays(sum, pair, other);
        const bool gentle = is_gentle(all, other);
        total = {total.x + all.x, total.y + all.y};
        if (thread() < pairs) control->fade[pair] = {exponential(all.x), exponential(all.y)};
        if (gentle || !SHAPE::last) {
            raise_rows(sum, pair, all, gentle);
            return gentle;
        }
        float2 *sums = (float2 *)(stage + SHAPE::decay_at);
#pragma unroll
        for (int i = 0; i < steps; i++) sums[row_of(i) * pairs + pair] = sum[i];
        groups_meet<SHAPE>();
        return gentle;
    }
    __device__ __forceinline__ float weight_at(int row, int column) {
        return __bfloat162float(
            *(const __nv_bfloat16 *)(weight + row * 128 + (column / 8 ^ row % 8) * 16 + column % 8 * 2));
    }
    /* With the weights: the chunk's own part of the outputs goes where the sums of decays were; the values are raised.
     */
    __device__ __forceinline__ void steep_values() {
        const int pair = thread() % pairs, part = thread() / pairs;
        const float2 *sums = (const float2 *)(stage + SHAPE::decay_at);
        const float2 all = sums[row_at(CHUNK - 1) * pairs + pair];
        float2 sum[steps], own[steps];
#pragma unroll
        for (int i = 0; i < steps; i++) {
            const int query = i * parts + part;
            const float2 c = sums[row_at(query) * pairs + pair];
            sum[i] = sums[row_of(i) * pairs + pair];
            own[i] = {0, 0};
#pragma unroll 2
            for (int j = 0; j <= query; j++) {
                const float2 d = sums[row_at(j) * pairs + pair],
                             values = unpack(*pair_at(stage + SHAPE::value_at, row_at(j), pair));
                const float by = weight_at(row_at(query), row_at(j));
                own[i].x = fmaf(by * values.x, exponential(c.x - d.x), own[i].x);
                own[i].y = fmaf(by * values.y, exponential(c.y - d.y), own[i].y);
            }
        }
        groups_meet<SHAPE>();
#pragma unroll
        for (int i = 0; i < steps; i++) {
            uint32_t *values = pair_at(stage + SHAPE::value_at, row_of(i), pair);
            *values = raised(*values, all.x - sum[i].x, all.y - sum[i].y);
            *outer_at(row_at(i * parts + part), pair) = own[i];
        }
        stores_to_async();
        groups_meet<SHAPE>();
    }

    /* ---- the normaliser ---- */

    /* n . query of the chunk's beginning, which rises as the state does; some threads a row, whose pairs of channels
     * lie in different banks. */
    __device__ __forceinline__ void dot_normaliser(const token_gates &gates) {
        constexpr int sharers = threads / CHUNK, share = pairs / sharers;
        const int row = thread() / sharers, part = thread() % sharers;
        float sum = 0;
#pragma unroll 8
        for (int k = 0; k < share; k++) {
            const int pair = part * share + k / 4 * 4 + (k + part) % 4;
            const float2 n = control->normaliser[pair], query = unpack(*pair_at(stage, row, pair));
            sum += n.x * query.x + n.y * query.y;
        }
#pragma unroll
        for (int step = 1; step < sharers; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (part == 0) control->dot[turn][SHAPE::groups][row] = sum * gates.rise[row];
    }
    /* n becomes that of the chunk's end. */
    __device__ __forceinline__ void step_normaliser(const token_gates &gates, float decay) {
        const int pair = thread() % pairs;
        float2 sum = {0, 0};
#pragma unroll
        for (int i = 0; i < steps; i++) {
            const int row = thread() / pairs * steps + i;
            const float2 keys = unpack(*pair_at(stage + SHAPE::key_at, row, pair));
            sum = {fmaf(gates.fade[row], keys.x, sum.x), fmaf(gates.fade[row], keys.y, sum.y)};
        }
        control->part[turn][thread() / pairs][pair] = sum;
        if (SHAPE::last) dot_normaliser(gates);
        groups_meet<SHAPE>();
        float2 n = {0, 0};
#pragma unroll
        for (int i = 0; i < parts; i++) {
            const float2 part = control->part[turn][i][pair];
            n = {n.x + part.x, n.y + part.y};
        }
        if (thread() < pairs) {
            float2 &own = control->normaliser[pair];
            own = {fmaf(own.x, decay, n.x), fmaf(own.y, decay, n.y)};
        }
    }
};

} // namespace ln

#endif
