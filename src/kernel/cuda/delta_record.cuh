/* Owns: the record of one chunk and head with one decay a head (delta_chunk.cuh): decays go on the products of keys
 * with keys and queries, blocks of 16 x 16 that value heads of a key head share; the inverse is taken where the first
 * lie (delta_invert.cuh). */
#ifndef LN_KERNEL_CUDA_DELTA_RECORD_CUH
#define LN_KERNEL_CUDA_DELTA_RECORD_CUH

#include "kernel/cuda/delta_blocks.cuh"
#include "kernel/cuda/delta_chunk.cuh"
#include "kernel/cuda/delta_invert.cuh"

namespace ln {

/* The tokens of a chunk for one head. */
struct delta_tokens {
    float gate[CHUNK];     /* G, base 2 */
    float strength[CHUNK]; /* beta, 0 after the last token */
    float since[CHUNK];    /* decay since the block of 16 began */
    float until[CHUNK];    /* to its end, times what makes the key's length 1 */
};

/* What the heads of a key head share. */
struct delta_products {
    float block[20][256]; /* of keys with keys, and of queries with keys, each lane's four by four */
    float key_norm[CHUNK], query_norm[CHUNK]; /* factors */
};

/* Bytes of a warp: of the inverse, and of results on their way. */
enum { RECORD_SCRATCH = INVERT_FLOATS * 4 };

/* Lane l of a warp has tokens 2 l and 2 l + 1. */
struct delta_pair {
    float gate[2], strength[2], since[2], until[2];
};
static __device__ __forceinline__ delta_pair read_tokens(const delta_run &run, const delta_piece &piece, int head) {
    const int lane = threadIdx.x % 32;
    delta_pair pair;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t at = (int64_t)(piece.token + 2 * lane + i) * run.heads + head;
        const bool inside = 2 * lane + i < piece.rows;
        pair.strength[i] = inside ? run.beta[at] : 0;
        pair.gate[i] = inside && run.decay ? run.decay[at] : 0;
    }
    return pair;
}
/* Decays as read become G. */
static __device__ __forceinline__ void sum_tokens(delta_pair &pair) {
    float(&gate)[2] = pair.gate;
    gate[0] = gate_of(gate[0]), gate[1] = gate_of(gate[1]);
    const decay_span span = sum_decays(gate);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        pair.since[i] = exponential(gate[i] - span.begin);
        pair.until[i] = exponential(span.end - gate[i]);
    }
}
static __device__ __forceinline__ void put_tokens(delta_tokens &to, const delta_pair &pair,
                                                  const delta_products &products) {
    const int at = threadIdx.x % 32 * 2;
    const float2 norm = *(const float2 *)(products.key_norm + at);
    *(float2 *)(to.gate + at) = {pair.gate[0], pair.gate[1]};
    *(float2 *)(to.strength + at) = {pair.strength[0], pair.strength[1]};
    *(float2 *)(to.since + at) = {pair.since[0], pair.since[1]};
    *(float2 *)(to.until + at) = {norm.x * pair.until[0], norm.y * pair.until[1]};
    __syncwarp();
}

/* Factors that give the rows of a block on the diagonal the length 1: of the squares there. */
static __device__ __forceinline__ void take_norms(float *norm, const float *block, bool normalise) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) { /* elements (lane / 4 + 8 r, lane % 4 * 2 + c + 8 r) */
        const int r = i / 2, c = i % 2;
        if (lane / 4 == lane % 4 * 2 + c) norm[lane / 4 + 8 * r] = normalise ? rsqrtf(block[6 * r + c] + 1e-6f) : 1;
    }
}

/* A block in bf16, each column times `by`. */
static __device__ __forceinline__ void pack_block(uint32_t (&packed)[4], const float (&block)[8],
                                                  const float (&by)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            packed[2 * n + r] = pack(block[4 * n + 2 * r] * by[2 * n], block[4 * n + 2 * r + 1] * by[2 * n + 1]);
}
/* To the place `at` among the ten of this warp. */
static __device__ __forceinline__ void stage_block(char *scratch, const uint32_t (&packed)[4], int at) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(uint32_t *)(scratch + at * 512 + scratch_at(8 * r + lane / 4, n) + lane % 4 * 4) = packed[2 * n + r];
}
/* The blocks on and below the diagonal to a tile in memory, where the others are zeros for ever. */
static __device__ __forceinline__ void send_lower(char *to, const char *scratch) {
    const int lane = threadIdx.x % 32, first = piece_at(lane / 2, lane % 2); /* of block (0, 0) */
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j <= i; j++)
            *(uint4 *)(to + i * 2048 + (first ^ j * 32)) =
                *(const uint4 *)(scratch + lower(i, j) * 512 + scratch_at(lane / 2, lane % 2));
    __syncwarp();
}

/* Column J of blocks of T; block: as for invert_column. */
template <int J>
static __device__ __forceinline__ void make_column(uint32_t (&packed)[10][4], float (&block)[10][8],
                                                   const float *scratch, const float *strength) {
    float by[4], own[8];
    if (J < 3) invert_column<J>(block, scratch);
    load_columns(by, strength + 16 * J);
    get_block(own, scratch + J * INVERT_BLOCK);
    pack_block(packed[lower(J, J)], own, by);
#pragma unroll
    for (int i = J + 1; i < 4; i++) pack_block(packed[lower(i, J)], block[lower(i, J)], by);
}
/* Row ROW of blocks of A: those below the diagonal as operands, that on it to scratch. */
template <int ROW>
static __device__ __forceinline__ void decay_row(float (&block)[10][8], char *scratch, const delta_products &products,
                                                 const delta_tokens &tokens) {
    float row[2], plain[2], norm[4], there[4], here[2], pair[8], own[8];
    load_rows(row, tokens.strength + 16 * ROW);
    load_rows(here, products.key_norm + 16 * ROW);
    plain[0] = row[0] * here[0], plain[1] = row[1] * here[1];
    load_rows(here, tokens.since + 16 * ROW);
    row[0] = plain[0] * here[0], row[1] = plain[1] * here[1];
#pragma unroll
    for (int j = ROW - 1; j >= 0; j--) {
        if (j + 1 < ROW) { /* the blocks between are no longer to the next block's end, but to that of this */
            const float between = exponential(tokens.gate[16 * j + 31] - tokens.gate[16 * j + 15]);
            row[0] *= between, row[1] *= between;
        }
        float column[4];
        load_columns(column, tokens.until + 16 * j);
        get_lane(block[lower(ROW, j)], products.block[lower(ROW, j)]);
        decay_below(block[lower(ROW, j)], row, column);
        make_operand(block[lower(ROW, j)], 1);
    }
    load_rows(here, tokens.gate + 16 * ROW);
    load_columns(there, tokens.gate + 16 * ROW);
    load_columns(norm, products.key_norm + 16 * ROW);
#pragma unroll
    for (int e = 0; e < 8; e++) pair[e] = exponential(here[e / 2 % 2] - there[e / 4 * 2 + e % 2]);
    get_lane(own, products.block[lower(ROW, ROW)]);
    decay_diagonal<true>(own, plain, norm, pair);
    put_block((float *)scratch + ROW * INVERT_BLOCK, own);
}
/* A block of P to memory. stage: 512 bytes of this warp. */
static __device__ __forceinline__ void send_score(char *to, char *stage, const float (&score)[8], int row, int column) {
    const int lane = threadIdx.x % 32;
    const float one[4] = {1, 1, 1, 1};
    uint32_t packed[4];
    pack_block(packed, score, one);
    __syncwarp();
    stage_block(stage, packed, 0);
    __syncwarp();
    *(uint4 *)(to + piece_at(16 * row + lane / 2, 2 * column + lane % 2)) =
        *(const uint4 *)(stage + scratch_at(lane / 2, lane % 2));
}
/* Row `at` of blocks of P of one head, by one warp. */
static __device__ __forceinline__ void make_scores(char *to, char *stage, const delta_products &products,
                                                   const delta_tokens &tokens, float scale, int at) {
    float row[2], norm[4], there[4], here[2], pair[8], score[8], plain[2];
    load_rows(plain, products.query_norm + 16 * at);
    load_rows(here, tokens.since + 16 * at);
    plain[0] *= scale, plain[1] *= scale;
    row[0] = plain[0] * here[0], row[1] = plain[1] * here[1];
    load_rows(here, tokens.gate + 16 * at);
    load_columns(there, tokens.gate + 16 * at);
    load_columns(norm, products.key_norm + 16 * at);
#pragma unroll
    for (int e = 0; e < 8; e++) pair[e] = exponential(here[e / 2 % 2] - there[e / 4 * 2 + e % 2]);
    get_lane(score, products.block[10 + lower(at, at)]);
    decay_diagonal<false>(score, plain, norm, pair);
    send_score(to, stage, score, at, at);
#pragma unroll 1
    for (int j = at - 1; j >= 0; j--) {
        const float between = j + 1 < at ? exponential(tokens.gate[16 * j + 31] - tokens.gate[16 * j + 15]) : 1;
        row[0] *= between, row[1] *= between;
        load_columns(norm, tokens.until + 16 * j);
        get_lane(score, products.block[10 + lower(at, j)]);
        decay_below(score, row, norm);
        send_score(to, stage, score, at, j);
    }
}

/* One warp. */
static __device__ __forceinline__ void store_factors(float *to, const delta_run &run, const delta_tokens &tokens,
                                                     const delta_products &products) {
    for (int t = threadIdx.x % 32; t < CHUNK; t += 32) {
        const float key_norm = products.key_norm[t], gate = tokens.gate[t], last = tokens.gate[CHUNK - 1];
        to[FACTOR_READ + t] = key_norm * exponential(gate);
        to[FACTOR_QUERY + t] = run.scale * products.query_norm[t] * exponential(gate);
        to[FACTOR_WRITE + t] = key_norm * exponential(last - gate);
        if (t == 0) to[FACTOR_LAST] = exponential(last);
    }
}

} // namespace ln

#endif
