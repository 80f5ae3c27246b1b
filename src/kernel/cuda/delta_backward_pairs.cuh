/* The pairs of tokens of a chunk when tokens have one decay; a block takes a chunk and a key head:
 *
 *     A[i][j] = beta[i] e^(gamma[i] - gamma[j]) key[i] . key[j], j < i,   T = (1 + A)^-1
 *     P[i][j] = scale e^(gamma[i] - gamma[j]) query[i] . key[j], j <= i
 *
 * with gamma the sum of the decays up to a token. The warps share the products of keys with keys and queries, by blocks
 * of 16 x 16; then each has a value head, puts decays on the blocks and inverts them where they lie
 * (delta_invert.cuh). Blocks above the diagonal are zeros, which nobody writes or reads.
 *
 * No exponent is above 0: a pair's decay is made of that from the row back to where its block of rows begins, those of
 * whole blocks between, and that from the column on to where its block ends. Decays below FAINT are that: their powers
 * are 0 in float32 all the same, and differences of sums stay numbers. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_PAIRS_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_PAIRS_CUH

#include "kernel/cuda/delta_backward.cuh"
#include "kernel/cuda/delta_blocks.cuh"
#include "kernel/cuda/delta_invert.cuh"

namespace ln {

/* Strengths below WEAK are that: their gradients are quotients by them. What comes of it otherwise is as small. */
static constexpr float WEAK = 0x1p-30f;
static __device__ __forceinline__ float strength_of(float beta) {
    return fabsf(beta) < WEAK ? copysignf(WEAK, beta) : beta;
}

/* What a warp needs of the tokens of a chunk for one head. */
struct head_tokens {
    float gamma[64], strength[64];
    float plain[64]; /* beta times what makes the key's length 1 */
    /* Factors of rows of A and P, from the beginning of their block of 16 on, and of columns, to the end of theirs. */
    float row[64], query[64], column[64];
};

template <int KEY, int WARPS> struct pairs_shared {
    union {
        char rows[2][KEY / 64 * PANEL]; /* keys, queries */
        struct {                        /* later */
            float product[20][256]; /* blocks of keys with keys, and of queries with keys, each lane's four by four */
            float scratch[WARPS][INVERT_FLOATS]; /* of the inverse; 16 rows of results on their way */
        };
    };
    float key_norm[64], query_norm[64];
    head_tokens tokens[WARPS];
};

/* 1 / length of 16 rows, or 1, of the squares on the diagonal of a block. */
static __device__ __forceinline__ void take_norms(float *norm, const float (&block)[8], bool normalise) {
    const int lane = threadIdx.x % 32;
    if (lane / 8 != lane % 4) return;
    const bool odd = lane / 4 % 2;
    norm[lane / 4] = normalise ? rsqrtf((odd ? block[1] : block[0]) + 1e-6f) : 1;
    norm[lane / 4 + 8] = normalise ? rsqrtf((odd ? block[7] : block[6]) + 1e-6f) : 1;
}
/* sum += left right^T, both 16 x 16 and loaded as left operands are. */
static __device__ __forceinline__ void add_lefts(float (&sum)[8], const uint32_t (&left)[4],
                                                 const uint32_t (&right)[4]) {
    const uint32_t first[2] = {right[0], right[2]}, second[2] = {right[1], right[3]};
    add_product(sum, left, first);
    add_product(sum + 4, left, second);
}

/* Products of a warp: WARPS share the rows of blocks, of keys from the first one on, of queries from the last, so that
 * all have as much to do. */
template <int KEY, int WARPS> struct pair_products {
    enum { COUNT = 4 / WARPS };
    float sum[5 * COUNT][8], self[COUNT][8];

    /* Of row R of WARP, the place of block J of keys, or of queries. */
    template <int WARP> static constexpr __device__ __forceinline__ int of_keys(int r, int j) { return 5 * r + j; }
    template <int WARP> static constexpr __device__ __forceinline__ int of_queries(int r, int j) {
        return 5 * r + WARP + r * WARPS + 1 + j;
    }
    template <int WARP> __device__ __forceinline__ void multiply(const pairs_shared<KEY, WARPS> *shared) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 5 * COUNT; i++) clear(sum[i]);
#pragma unroll
        for (int r = 0; r < COUNT; r++) clear(self[r]);
#pragma unroll 1
        for (int k = 0; k < KEY / 16; k++) {
            const int piece = 2 * k + lane / 16;
            uint32_t right[4][4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                load_matrices<false>(right[j], shared->rows[0] + tile_at(16 * j + lane % 16, piece));
#pragma unroll
            for (int r = 0; r < COUNT; r++) {
                const int row = WARP + r * WARPS, other = 3 - row;
                uint32_t asks[4];
                load_matrices<false>(asks, shared->rows[1] + tile_at(16 * other + lane % 16, piece));
#pragma unroll
                for (int j = 0; j <= row; j++) add_lefts(sum[of_keys<WARP>(r, j)], right[row], right[j]);
#pragma unroll
                for (int j = 0; j <= other; j++) add_lefts(sum[of_queries<WARP>(r, j)], asks, right[j]);
                add_lefts(self[r], asks, asks);
            }
        }
    }
    template <int WARP> __device__ __forceinline__ void put(pairs_shared<KEY, WARPS> *shared, bool normalise) const {
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            const int row = WARP + r * WARPS, other = 3 - row;
#pragma unroll
            for (int j = 0; j <= row; j++) put_lane(shared->product[lower(row, j)], sum[of_keys<WARP>(r, j)]);
#pragma unroll
            for (int j = 0; j <= other; j++)
                put_lane(shared->product[10 + lower(other, j)], sum[of_queries<WARP>(r, j)]);
            take_norms(shared->key_norm + 16 * row, sum[of_keys<WARP>(r, row)], normalise);
            take_norms(shared->query_norm + 16 * other, self[r], normalise);
        }
    }
};
/* Products take the place of keys and queries. */
template <int KEY, int WARPS>
static __device__ __forceinline__ void make_products(pairs_shared<KEY, WARPS> *shared, int warp, bool normalise) {
    pair_products<KEY, WARPS> products;
    if (warp == 0)
        products.template multiply<0>(shared);
    else if (warp == 1)
        products.template multiply<1>(shared);
    else if (WARPS == 4 && warp == 2)
        products.template multiply<2 % WARPS>(shared);
    else if (WARPS == 4)
        products.template multiply<3 % WARPS>(shared);
    __syncthreads();
    if (warp == 0)
        products.template put<0>(shared, normalise);
    else if (warp == 1)
        products.template put<1>(shared, normalise);
    else if (WARPS == 4 && warp == 2)
        products.template put<2 % WARPS>(shared, normalise);
    else if (WARPS == 4)
        products.template put<3 % WARPS>(shared, normalise);
    __syncthreads();
}

/* Lane l of a warp has tokens 2 l and 2 l + 1. */
struct two_tokens {
    float decay[2], strength[2];
};
static __device__ __forceinline__ two_tokens read_tokens(const delta_backward_run &run,
                                                         const delta_backward_chunk &chunk, int head) {
    two_tokens two;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = threadIdx.x % 32 * 2 + i;
        const int64_t at = (int64_t)(chunk.token + row) * run.heads + head;
        two.decay[i] = row < chunk.rows && run.decay ? run.decay[at] : 0;
        two.strength[i] = row < chunk.rows ? run.beta[at] : 0;
    }
    return two;
}
/* Sums of decays and what follows from them, to shared memory and the record. */
template <int KEY, int WARPS>
static __device__ __forceinline__ void put_tokens(const pairs_shared<KEY, WARPS> *shared, head_tokens &to,
                                                  const two_tokens &two, float scale, float *record) {
    const int lane = threadIdx.x % 32;
    float gamma[2] = {gate_of(two.decay[0]), gate_of(two.decay[1])};
    const decay_span span = sum_decays(gamma);
    const float last = __shfl_sync(~0u, gamma[1], 31);
    float read[2], write[2], ask[2], source[2], strength[2], key_norm[2], query_norm[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int t = 2 * lane + i;
        const float since = exponential(gamma[i] - span.begin), past = exponential(gamma[i]);
        key_norm[i] = shared->key_norm[t], query_norm[i] = shared->query_norm[t];
        strength[i] = strength_of(two.strength[i]);
        read[i] = key_norm[i] * past;
        write[i] = key_norm[i] * exponential(last - gamma[i]);
        ask[i] = scale * query_norm[i] * past;
        source[i] = gamma[i] - log2f(key_norm[i]);
        to.gamma[t] = gamma[i];
        to.strength[t] = strength[i];
        to.plain[t] = strength[i] * key_norm[i];
        to.row[t] = strength[i] * key_norm[i] * since;
        to.query[t] = scale * query_norm[i] * since;
        to.column[t] = key_norm[i] * exponential(span.end - gamma[i]);
    }
    float2 *out = (float2 *)record + lane;
    out[READ / 2] = make_float2(read[0], read[1]);
    out[WRITE / 2] = make_float2(write[0], write[1]);
    out[ASK / 2] = make_float2(ask[0], ask[1]);
    out[STRENGTH / 2] = make_float2(strength[0], strength[1]);
    out[GAMMA / 2] = make_float2(gamma[0], gamma[1]);
    out[KEY_NORM / 2] = make_float2(key_norm[0], key_norm[1]);
    out[QUERY_NORM / 2] = make_float2(query_norm[0], query_norm[1]);
    out[SOURCE / 2] = make_float2(source[0], source[1]);
    if (lane < 2) out[END / 2] = make_float2(lane == 0 ? exponential(last) : 0, 0);
    __syncwarp();
}

/* Block (i, j) in bf16, to 16 rows of a tile in scratch. */
static __device__ __forceinline__ void put_row(float *scratch, const float (&block)[8], int j) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 4; e++)
        *(uint32_t *)((char *)scratch + tile_at(e % 2 * 8 + lane / 4, 2 * j + e / 2) + lane % 4 * 4) =
            pack(block[2 * e], block[2 * e + 1]);
}
/* Blocks 0 .. i of row i to memory. */
static __device__ __forceinline__ void send_row(char *to, const float *scratch, int i) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int j = 0; j <= i; j++) {
        const int at = tile_at(lane / 2, 2 * j + lane % 2);
        *(uint4 *)(to + i * 16 * 128 + at) = *(const uint4 *)((const char *)scratch + at);
    }
    __syncwarp();
}

/* Row ROW of blocks of P, to memory, and of A. */
template <int KEY, int WARPS, int ROW>
static __device__ __forceinline__ void decay_row(float (&block)[10][8], char *to, float *scratch,
                                                 const pairs_shared<KEY, WARPS> *shared, const head_tokens &tokens,
                                                 float scale) {
    float row[2], query[2], score[8], norm[4], there[4], here[2], pair[8];
    load_rows(row, tokens.row + 16 * ROW);
    load_rows(query, tokens.query + 16 * ROW);
#pragma unroll
    for (int j = ROW - 1; j >= 0; j--) {
        if (j + 1 < ROW) { /* the blocks between are no longer to the next block's end, but to that of this */
            const float between = exponential(tokens.gamma[16 * j + 31] - tokens.gamma[16 * j + 15]);
            row[0] *= between, row[1] *= between;
            query[0] *= between, query[1] *= between;
        }
        float column[4];
        load_columns(column, tokens.column + 16 * j);
        get_lane(block[lower(ROW, j)], shared->product[lower(ROW, j)]);
        decay_below(block[lower(ROW, j)], row, column);
        get_lane(score, shared->product[10 + lower(ROW, j)]);
        decay_below(score, query, column);
        put_row(scratch, score, j);
    }
    load_rows(here, tokens.gamma + 16 * ROW);
    load_columns(there, tokens.gamma + 16 * ROW);
    load_columns(norm, shared->key_norm + 16 * ROW);
    load_rows(row, tokens.plain + 16 * ROW);
#pragma unroll
    for (int e = 0; e < 8; e++) pair[e] = exponential(here[e / 2 % 2] - there[e / 4 * 2 + e % 2]);
    get_lane(block[lower(ROW, ROW)], shared->product[lower(ROW, ROW)]);
    decay_diagonal<true>(block[lower(ROW, ROW)], row, norm, pair);
    load_rows(query, shared->query_norm + 16 * ROW);
    query[0] *= scale, query[1] *= scale;
    get_lane(score, shared->product[10 + lower(ROW, ROW)]);
    decay_diagonal<false>(score, query, norm, pair);
    put_row(scratch, score, ROW);
    send_row(to, scratch, ROW);
}

/* T and P of one head, by one warp. */
template <int KEY, int WARPS>
static __device__ __forceinline__ void make_pairs(char *to, float *scratch, const pairs_shared<KEY, WARPS> *shared,
                                                  const head_tokens &tokens, float scale) {
    float block[10][8];
    decay_row<KEY, WARPS, 0>(block, to + PANEL, scratch, shared, tokens, scale);
    decay_row<KEY, WARPS, 1>(block, to + PANEL, scratch, shared, tokens, scale);
    decay_row<KEY, WARPS, 2>(block, to + PANEL, scratch, shared, tokens, scale);
    decay_row<KEY, WARPS, 3>(block, to + PANEL, scratch, shared, tokens, scale);
#pragma unroll
    for (int i = 0; i < 4; i++) put_block(scratch + i * INVERT_BLOCK, block[lower(i, i)]);
    invert(block, scratch);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j <= i; j++) put_row(scratch, block[lower(i, j)], j);
        send_row(to, scratch, i);
    }
}

/* WARPS value heads of a key head a block. */
template <int KEY, int WARPS>
static __global__ void __launch_bounds__(32 * WARPS, WARPS == 2 ? 6 : 2)
    delta_pairs(const __grid_constant__ delta_backward_run run) {
    pairs_shared<KEY, WARPS> *shared = (pairs_shared<KEY, WARPS> *)block_memory();
    const int parts = (run.group + WARPS - 1) / WARPS, warp = threadIdx.x / 32,
              member = blockIdx.x % parts * WARPS + warp, key_head = blockIdx.x / parts % run.key_heads,
              index = blockIdx.x / parts / run.key_heads, head = value_head(run, key_head, member);
    const delta_backward_chunk chunk = run.chunks[index];
#pragma unroll
    for (int panel = 0; panel < KEY / 64; panel++) {
        copy_tokens<64, 32 * WARPS>(shared->rows[0] + panel * PANEL, run.key, key_head, 64 * panel, chunk);
        copy_tokens<64, 32 * WARPS>(shared->rows[1] + panel * PANEL, run.query, key_head, 64 * panel, chunk);
    }
    copies_commit();
    two_tokens two = {};
    if (member < run.group) two = read_tokens(run, chunk, head);
    copies_wait<0>();
    __syncthreads();
    make_products(shared, warp, run.normalise);
    if (member >= run.group) return;
    const int64_t place = place_of(run, index, head);
    put_tokens(shared, shared->tokens[warp], two, run.scale, run.records + place * RECORD);
    make_pairs(run.pairs + place * 2 * PANEL, shared->scratch[warp], shared, shared->tokens[warp], run.scale);
}

} // namespace ln

#endif
