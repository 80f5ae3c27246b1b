/* Owns: what the kernels of the delta rules share: the record of a chunk, its tiles, and one warp's rows of the walk.
 *
 * With a chunk of tokens t, cumulative decays G[t], keys as rows of K, and A[t][j] = beta[t] <key[t], key[j]> e^(G[t] -
 * G[j]) for j < t (Yang et al. 2024, arXiv 2406.06484, 2412.06464):
 *
 *     T = (I + A)^-1 diag(beta)                       P[t][j] = scale <query[t], key[j]> e^(G[t] - G[j]), j <= t
 *     V' = T (V - (K e^G) S)                          O = scale (Q e^G) S + P V'
 *     S = e^G[last] S + (K e^(G[last] - G))^T V'
 *
 * The record of a chunk and head holds T and P in bf16, and for one decay a head the factors of each token, for decays
 * of keys the decayed keys and queries themselves. A warp keeps 16 columns of S transposed, as rows of accumulators,
 * so that what it multiplies from the left always lies in its registers already.
 *
 * No decay is formed but from a later to an earlier token, so that none exceeds 1. Logarithms below FAINT count as
 * FAINT: its exponential is 0 in float32, and a cumulative sum stays finite. */
#ifndef LN_KERNEL_CUDA_DELTA_CHUNK_CUH
#define LN_KERNEL_CUDA_DELTA_CHUNK_CUH

#include "kernel/cuda/delta_cuda.h"
#include "kernel/cuda/instructions.cuh"

namespace ln {

enum { CHUNK = LN_CUDA_DELTA_CHUNK };

struct delta_piece { /* a chunk */
    int32_t token, rows;
};
struct delta_text { /* a sequence, or a segment of one */
    int32_t token, tokens, first_piece, number;
    int32_t start; /* segments begin with this one of run.starts; -1: with state_in */
    int32_t last;  /* the state after it is state_out */
};
struct delta_join { /* a sequence in segments */
    int32_t number, first, segments;
};

struct delta_run {
    ln_cuda_tensor query, key, value, output;
    const float *beta, *decay, *state_in;
    float *state_out;
    const int64_t *state_slots;
    const delta_piece *pieces;
    const delta_text *texts; /* the longest first */
    char *records;           /* [piece][head] */
    /* Of segments (delta_segments.cuh): those that have one after them; [start][head]: what they make of states. */
    const delta_text *parts;
    const delta_join *joins;
    float *summaries, *starts;
    int32_t piece_count, heads, key_heads, group, key_size, value_size, slices;
    float scale;
    bool tiled, normalise, float32;
};

static __device__ __forceinline__ int key_head_of(const delta_run &run, int head) {
    return run.tiled ? head % run.key_heads : head / run.group;
}

static __device__ __forceinline__ int head_of(const delta_run &run, int key_head, int member) {
    return run.tiled ? member * run.key_heads + key_head : key_head * run.group + member;
}

/* Bytes of a record, and where its parts lie. */
template <int KEY_SIZE, bool BY_KEY> struct delta_record {
    static constexpr int scores = 0, transform = 8192, factors = 16384, small = 17408;
    static constexpr int factors_end = BY_KEY ? factors + KEY_SIZE * 4 : small; /* of what is used */
    static constexpr int tile = CHUNK * KEY_SIZE * 2;
    static constexpr int read = small, query = read + tile, write = query + tile, bytes = BY_KEY ? write + tile : small;
};
/* Floats among the factors: of a token's reading, query and writing, and the decay of the whole chunk. Or the decay of
 * the whole chunk for each key. */
enum { FACTOR_READ = 0, FACTOR_QUERY = CHUNK, FACTOR_WRITE = 2 * CHUNK, FACTOR_LAST = 3 * CHUNK };

/* Where 8 columns of a row lie in a tile of CHUNK rows: panels of 64 columns, pieces of 16 bytes in an order that
 * depends on the row, as the copy engine stores them. */
static __device__ __forceinline__ int piece_at(int row, int piece) {
    return piece / 8 * (CHUNK * 128) + row * 128 + ((piece ^ row) % 8) * 16;
}
static __device__ __forceinline__ int word_at(int row, int column) {
    return piece_at(row, column / 8) + column % 8 * 2;
}

/* Rows after the last are zeros. */
template <int KEY_SIZE>
static __device__ __forceinline__ void copy_rows(char *tile, const ln_cuda_tensor &from, int head,
                                                 const delta_piece &piece, int threads) {
    const __nv_bfloat16 *rows =
        (const __nv_bfloat16 *)from.data + piece.token * from.token_stride + head * from.head_stride;
    for (int i = threadIdx.x; i < CHUNK * KEY_SIZE / 8; i += threads) {
        const int row = i / (KEY_SIZE / 8), column = i % (KEY_SIZE / 8);
        const bool inside = row < piece.rows;
        copy_piece(tile + piece_at(row, column), rows + (inside ? row * from.token_stride : 0) + column * 8, inside);
    }
}

/* ---- one warp's products: left (16 rows) in registers, right in a tile ---- */

/* sum (16 x N) += left (16 x K) * rows 0 .. N-1, columns 0 .. K-1 of the tile, transposed */
template <int N, int K>
static __device__ __forceinline__ void add_rows(float (&sum)[N / 2], const uint32_t (&left)[K / 4], const char *tile) {
    const int lane = threadIdx.x % 32, row = lane % 16, piece = lane / 16;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t part[4];
            load_matrices<false>(part, tile + piece_at(16 * n + row, 2 * k + piece));
            const uint32_t one[2] = {part[0], part[2]}, two[2] = {part[1], part[3]};
            add_product(sum + 8 * n, left + 4 * k, one);
            add_product(sum + 8 * n + 4, left + 4 * k, two);
        }
}
/* sum (16 x N) += left (16 x CHUNK) * the tile's columns 0 .. N-1 */
template <int N>
static __device__ __forceinline__ void add_columns(float (&sum)[N / 2], const uint32_t (&left)[CHUNK / 4],
                                                   const char *tile) {
    const int lane = threadIdx.x % 32, row = lane % 16, piece = lane / 16;
#pragma unroll
    for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t part[4];
            load_matrices<true>(part, tile + piece_at(16 * k + row, 2 * n + piece));
            add_product(sum + 8 * n, left + 4 * k, part);
            add_product(sum + 8 * n + 4, left + 4 * k, part + 2);
        }
}

/* ---- one warp's rows: 16 columns of values, from `column` on ---- */

template <int N> static __device__ __forceinline__ void pack_all(uint32_t (&to)[N / 2], const float (&from)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) to[i] = pack(from[2 * i], from[2 * i + 1]);
}

static __device__ __forceinline__ float low_of(uint32_t both) {
    return __uint_as_float(both << 16);
}
static __device__ __forceinline__ float high_of(uint32_t both) {
    return __uint_as_float(both & 0xffff0000);
}
/* Values of the chunk, transposed: columns column .. column + 15 of the tile. */
static __device__ __forceinline__ void load_values(uint32_t (&value)[CHUNK / 4], const char *tile, int column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < CHUNK / 16; n++) {
        uint32_t part[4];
        load_matrices<true>(part, tile + piece_at(16 * n + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 4; i++) value[4 * n + i] = part[i];
    }
}
/* Factors of the tokens that this lane's columns are. */
static __device__ __forceinline__ void load_factors(float (&by)[CHUNK / 4], const float *factors) {
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n++) {
        const float2 two = *(const float2 *)(factors + 8 * n + threadIdx.x % 4 * 2);
        by[2 * n] = two.x, by[2 * n + 1] = two.y;
    }
}
/* value - by * what the state answered, in bf16; without factors by is 1 */
template <bool FACTORS>
static __device__ __forceinline__ void differ(uint32_t (&left)[CHUNK / 4], const uint32_t (&value)[CHUNK / 4],
                                              const float (&answer)[CHUNK / 2], const float (&by)[CHUNK / 4]) {
#pragma unroll
    for (int i = 0; i < CHUNK / 4; i++) {
        const int n = i / 2 * 2;
        const float one = FACTORS ? by[n] * answer[2 * i] : answer[2 * i],
                    two = FACTORS ? by[n + 1] * answer[2 * i + 1] : answer[2 * i + 1];
        left[i] = pack(low_of(value[i]) - one, high_of(value[i]) - two);
    }
}
static __device__ __forceinline__ void pack_times(uint32_t (&to)[CHUNK / 4], const float (&from)[CHUNK / 2],
                                                  const float (&by)[CHUNK / 4]) {
#pragma unroll
    for (int i = 0; i < CHUNK / 4; i++) {
        const int n = i / 2 * 2;
        to[i] = pack(from[2 * i] * by[n], from[2 * i + 1] * by[n + 1]);
    }
}
static __device__ __forceinline__ void multiply(float (&x)[CHUNK / 2], const float (&by)[CHUNK / 4]) {
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) x[i] *= by[i / 4 * 2 + i % 2];
}
/* By the decays of a whole chunk; not at all after the last. */
template <int KEY_SIZE, bool BY_KEY>
static __device__ __forceinline__ void decay_state(float (&state)[KEY_SIZE / 2], const float *factors, bool last) {
    const float all = BY_KEY || last ? 1 : factors[FACTOR_LAST];
#pragma unroll
    for (int n = 0; n < KEY_SIZE / 8; n++) {
        float2 by = {all, all};
        if (BY_KEY && !last) by = *(const float2 *)(factors + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
        for (int r = 0; r < 2; r++) state[4 * n + 2 * r] *= by.x, state[4 * n + 2 * r + 1] *= by.y;
    }
}

/* ---- states and outputs in memory ---- */

static __device__ __forceinline__ int64_t state_at(const delta_run &run, int number, int head) {
    const int64_t slot = run.state_slots ? run.state_slots[number] : number;
    return (slot * run.heads + head) * run.key_size * run.value_size;
}
/* Columns column .. column + 15 of a matrix [KEY_SIZE][stride]; NULL: zeros. */
template <int KEY_SIZE>
static __device__ __forceinline__ void load_matrix(float (&state)[KEY_SIZE / 2], const float *from, int stride,
                                                   int column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < KEY_SIZE / 2; i++) {
        const int key = i / 4 * 8 + lane % 4 * 2 + i % 2, row = column + lane / 4 + i / 2 % 2 * 8;
        state[i] = from ? from[(int64_t)key * stride + row] : 0;
    }
}
template <int KEY_SIZE>
static __device__ __forceinline__ void store_matrix(const float (&state)[KEY_SIZE / 2], float *to, int stride,
                                                    int column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < KEY_SIZE / 2; i++) {
        const int key = i / 4 * 8 + lane % 4 * 2 + i % 2, row = column + lane / 4 + i / 2 % 2 * 8;
        to[(int64_t)key * stride + row] = state[i];
    }
}
template <int KEY_SIZE>
static __device__ __forceinline__ void load_state(float (&state)[KEY_SIZE / 2], const delta_run &run,
                                                  const delta_text &text, int head, int column) {
    const float *from = text.start >= 0
                            ? run.starts + ((int64_t)text.start * run.heads + head) * KEY_SIZE * run.value_size
                        : run.state_in ? run.state_in + state_at(run, text.number, head)
                                       : NULL;
    load_matrix<KEY_SIZE>(state, from, run.value_size, column);
}
template <int KEY_SIZE>
static __device__ __forceinline__ void store_state(const float (&state)[KEY_SIZE / 2], const delta_run &run,
                                                   const delta_text &text, int head, int column) {
    if (text.last && run.state_out)
        store_matrix<KEY_SIZE>(state, run.state_out + state_at(run, text.number, head), run.value_size, column);
}
/* What a segment makes of states: first [KEY_SIZE][value_size], from zeros; then [KEY_SIZE][KEY_SIZE], the product of
 * its transitions. */
static __device__ __forceinline__ float *summary_at(const delta_run &run, int start, int head) {
    return run.summaries + ((int64_t)start * run.heads + head) * run.key_size * (run.value_size + run.key_size);
}
/* Outputs of one chunk that are float32. */
static __device__ __forceinline__ void store_float32(const float (&output)[CHUNK / 2], const delta_run &run, int token,
                                                     int rows, int head, int column) {
    const int lane = threadIdx.x % 32;
    float *to =
        (float *)run.output.data + token * run.output.token_stride + head * run.output.head_stride + column + lane / 4;
#pragma unroll
    for (int i = 0; i < CHUNK / 2; i++) {
        const int at = i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (at < rows) to[at * run.output.token_stride + i / 2 % 2 * 8] = output[i];
    }
}
/* Where 8 of a warp's 16 columns of outputs lie in its scratch of 2048 bytes. */
static __device__ __forceinline__ int scratch_at(int row, int piece) {
    return row * 32 + ((row >> 2 & 1) ^ piece) * 16;
}
/* Outputs of one chunk that are bf16, from the scratch. */
static __device__ __forceinline__ void store_scratch(const delta_run &run, const char *scratch, int token, int rows,
                                                     int head, int column) {
    const int lane = threadIdx.x % 32;
    __nv_bfloat16 *to = (__nv_bfloat16 *)run.output.data + token * run.output.token_stride +
                        head * run.output.head_stride + column + lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < CHUNK / 16; i++) {
        const int row = 16 * i + lane / 2;
        if (row < rows)
            *(uint4 *)(to + row * run.output.token_stride) = *(const uint4 *)(scratch + scratch_at(row, lane % 2));
    }
}

} // namespace ln

#endif
