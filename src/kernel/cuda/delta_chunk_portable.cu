/* The first kernel of the delta rules: records of all chunks and heads (delta_chunk.cuh), none depending on another.
 *
 * One decay a head: a block has one chunk of one key head. Its warps share in the products of keys with keys and
 * queries, blocks of 16 x 16 from the tensor cores; then each makes the record of one value head after the other: puts
 * decays on the blocks and takes the inverse where they lie (delta_invert.cuh). */
#include "kernel/cuda/delta_chunk.cuh"
#include "kernel/cuda/delta_invert.cuh"
#include "kernel/cuda/delta_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { CHUNK_THREADS = 128, CHUNK_WARPS = CHUNK_THREADS / 32 };

static constexpr float LOG2_E = 1.44269504f;

/* What one warp needs of the tokens of a chunk for one head. */
struct delta_tokens {
    float gate[CHUNK];     /* G, base 2 */
    float strength[CHUNK]; /* beta, 0 after the last token */
    float plain[CHUNK];    /* times what makes the key's length 1 */
    /* Factors of rows of A and P, from the beginning of their block of 16 on, and of columns, to the end of theirs. */
    float row[CHUNK], query[CHUNK], column[CHUNK];
};

template <int KEY_SIZE> struct delta_chunk_shared {
    union {
        struct {
            char key[CHUNK * KEY_SIZE * 2], query[CHUNK * KEY_SIZE * 2];
        };
        char tile[CHUNK_WARPS][CHUNK * 128]; /* later: scratch of the inverse, results on their way */
    };
    float product[20][256]; /* blocks of keys with keys, and of queries with keys, each lane's four by four */
    delta_tokens tokens[CHUNK_WARPS];
    float key_norm[CHUNK], query_norm[CHUNK]; /* factors */
};

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

/* A logarithm of base 2, no smaller than FAINT; what is not a number stays so. */
static __device__ __forceinline__ float gate_of(float decay) {
    const float gate = decay * LOG2_E;
    return gate < FAINT ? FAINT : gate;
}

/* Lane l of a warp has tokens 2 l and 2 l + 1. */
struct delta_pair {
    float gate[2], strength[2];
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
template <int KEY_SIZE>
static __device__ __forceinline__ void sum_tokens(delta_tokens &to, const delta_pair &pair, float scale,
                                                  const delta_chunk_shared<KEY_SIZE> *shared) {
    const int lane = threadIdx.x % 32;
    const float strength[2] = {pair.strength[0], pair.strength[1]};
    float gate[2] = {gate_of(pair.gate[0]), gate_of(pair.gate[1])};
    gate[1] += gate[0];
    float sum = gate[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    float before = __shfl_up_sync(~0u, sum, 1);
    if (lane == 0) before = 0;
    gate[0] += before, gate[1] = sum;
    const float begin = __shfl_sync(~0u, before, lane & 24), end = __shfl_sync(~0u, sum, lane | 7);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int t = 2 * lane + i;
        const float since = exponential(gate[i] - begin), key_norm = shared->key_norm[t];
        to.gate[t] = gate[i];
        to.strength[t] = strength[i];
        to.plain[t] = strength[i] * key_norm;
        to.row[t] = strength[i] * key_norm * since;
        to.query[t] = scale * shared->query_norm[t] * since;
        to.column[t] = key_norm * exponential(end - gate[i]);
    }
    __syncwarp();
}

/* A block of 16 x 16 as lanes keep it, in shared memory. */
static __device__ __forceinline__ void put_lane(float *to, const float (&block)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e += 4)
        *(float4 *)(to + e * 32 + lane * 4) = {block[e], block[e + 1], block[e + 2], block[e + 3]};
}
static __device__ __forceinline__ void get_lane(float (&block)[8], const float *from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
        const float4 four = *(const float4 *)(from + e * 32 + lane * 4);
        block[e] = four.x, block[e + 1] = four.y, block[e + 2] = four.z, block[e + 3] = four.w;
    }
}

/* Factors that give the rows of a block on the diagonal the length 1: of the squares there. */
static __device__ __forceinline__ void take_norms(float *norm, const float (&block)[8], bool normalise) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) { /* elements (lane / 4 + 8 r, lane % 4 * 2 + c + 8 r) */
        const int r = i / 2, c = i % 2;
        if (lane / 4 == lane % 4 * 2 + c) norm[lane / 4 + 8 * r] = normalise ? rsqrtf(block[6 * r + c] + 1e-6f) : 1;
    }
}

static __device__ __forceinline__ void add_tiles(float (&sum)[8], const uint32_t (&left)[4],
                                                 const uint32_t (&right)[4]) {
    const uint32_t first[2] = {right[0], right[2]}, second[2] = {right[1], right[3]};
    add_product(sum, left, first);
    add_product(sum + 4, left, second);
}

/* Warp w: the row w of blocks of keys, the row 3 - w of queries, so that all have as much to do. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_products(delta_chunk_shared<KEY_SIZE> *shared, bool normalise) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, other = 3 - warp;
    float key[4][8] = {}, query[4][8] = {}, self[8] = {};
#pragma unroll 2
    for (int k = 0; k < KEY_SIZE / 16; k++) {
        const int column = 2 * k + lane / 16;
        uint32_t own[4], asks[4], right[4];
        load_matrices<false>(own, shared->key + piece_at(16 * warp + lane % 16, column));
        load_matrices<false>(asks, shared->query + piece_at(16 * other + lane % 16, column));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (j > warp && j > other) continue;
            load_matrices<false>(right, shared->key + piece_at(16 * j + lane % 16, column));
            if (j <= warp) add_tiles(key[j], own, right);
            if (j <= other) add_tiles(query[j], asks, right);
        }
        if (normalise) {
            load_matrices<false>(right, shared->query + piece_at(16 * warp + lane % 16, column));
            add_tiles(self, right, right);
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (j <= warp) put_lane(shared->product[lower(warp, j)], key[j]);
        if (j <= other) put_lane(shared->product[10 + lower(other, j)], query[j]);
        if (j == warp) take_norms(shared->key_norm + 16 * warp, key[j], normalise);
    }
    take_norms(shared->query_norm + 16 * warp, self, normalise);
}

/* Below the diagonal: rows times row, columns times column. */
static __device__ __forceinline__ void decay_below(float (&block)[8], const float (&row)[2], const float (&column)[4]) {
#pragma unroll
    for (int e = 0; e < 8; e++) block[e] *= row[e / 2 % 2] * column[e / 4 * 2 + e % 2];
}
/* On the diagonal: 0 above it, and on it where STRICT. pair: the decays of its elements. */
template <bool STRICT>
static __device__ __forceinline__ void decay_diagonal(float (&block)[8], const float (&row)[2],
                                                      const float (&column)[4], const float (&pair)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const int below = lane / 4 + e / 2 % 2 * 8 - e / 4 * 8 - lane % 4 * 2 - e % 2;
        const float x = block[e] * (row[e / 2 % 2] * column[e / 4 * 2 + e % 2]) * pair[e];
        block[e] = below >= STRICT ? x : 0;
    }
}
/* Elements of a row of a block, and of its columns. */
static __device__ __forceinline__ void load_rows(float (&row)[2], const float *from) {
    row[0] = from[threadIdx.x % 32 / 4], row[1] = from[threadIdx.x % 32 / 4 + 8];
}
static __device__ __forceinline__ void load_columns(float (&column)[4], const float *from) {
    const float2 one = *(const float2 *)(from + threadIdx.x % 4 * 2),
                 two = *(const float2 *)(from + threadIdx.x % 4 * 2 + 8);
    column[0] = one.x, column[1] = one.y, column[2] = two.x, column[3] = two.y;
}

/* A block in bf16, each column times `by`, to a tile. */
static __device__ __forceinline__ void put_tile(char *tile, const float (&block)[8], const float (&by)[4], int i,
                                                int j) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(uint32_t *)(tile + word_at(16 * i + 8 * r + lane / 4, 16 * j + 8 * n + lane % 4 * 2)) =
                pack(block[4 * n + 2 * r] * by[2 * n], block[4 * n + 2 * r + 1] * by[2 * n + 1]);
}
/* The blocks on and below the diagonal of this warp's tile to memory, where the others are zeros for ever. */
static __device__ __forceinline__ void send_lower(char *to, const char *tile) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j <= i; j++) {
            const int at = piece_at(16 * i + lane / 2, 2 * j + lane % 2);
            *(uint4 *)(to + at) = *(const uint4 *)(tile + at);
        }
    __syncwarp();
}
static __device__ __forceinline__ void send_transform(char *to, char *tile, const float (&block)[10][8],
                                                      const float *strength) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float by[4];
        load_columns(by, strength + 16 * j);
#pragma unroll
        for (int i = j; i < 4; i++) put_tile(tile, block[lower(i, j)], by, i, j);
    }
    send_lower(to, tile);
}

template <int KEY_SIZE>
static __device__ __forceinline__ void store_factors(float *to, const delta_run &run, const delta_tokens &tokens,
                                                     const delta_chunk_shared<KEY_SIZE> *shared) {
    for (int t = threadIdx.x % 32; t < CHUNK; t += 32) {
        const float key_norm = shared->key_norm[t], gate = tokens.gate[t], last = tokens.gate[CHUNK - 1];
        to[FACTOR_READ + t] = key_norm * exponential(gate);
        to[FACTOR_QUERY + t] = run.scale * shared->query_norm[t] * exponential(gate);
        to[FACTOR_WRITE + t] = key_norm * exponential(last - gate);
        if (t == 0) to[FACTOR_LAST] = exponential(last);
    }
}

/* Row i of blocks of P, to the warp's tile, and of A. */
template <int KEY_SIZE, int ROW>
static __device__ __forceinline__ void decay_row(float (&block)[10][8], char *tile,
                                                 const delta_chunk_shared<KEY_SIZE> *shared, const delta_tokens &tokens,
                                                 float scale) {
    const float one[4] = {1, 1, 1, 1};
    float row[2], query[2], score[8], norm[4], there[4], here[2], pair[8];
    load_rows(row, tokens.row + 16 * ROW);
    load_rows(query, tokens.query + 16 * ROW);
#pragma unroll
    for (int j = ROW - 1; j >= 0; j--) {
        if (j + 1 < ROW) { /* the blocks between are no longer to the next block's end, but to that of this */
            const float between = exponential(tokens.gate[16 * j + 31] - tokens.gate[16 * j + 15]);
            row[0] *= between, row[1] *= between;
            query[0] *= between, query[1] *= between;
        }
        float column[4];
        load_columns(column, tokens.column + 16 * j);
        get_lane(block[lower(ROW, j)], shared->product[lower(ROW, j)]);
        decay_below(block[lower(ROW, j)], row, column);
        {
            get_lane(score, shared->product[10 + lower(ROW, j)]);
            decay_below(score, query, column);
            put_tile(tile, score, one, ROW, j);
        }
    }
    load_rows(here, tokens.gate + 16 * ROW);
    load_columns(there, tokens.gate + 16 * ROW);
    load_columns(norm, shared->key_norm + 16 * ROW);
    load_rows(row, tokens.plain + 16 * ROW);
#pragma unroll
    for (int e = 0; e < 8; e++) pair[e] = exponential(here[e / 2 % 2] - there[e / 4 * 2 + e % 2]);
    get_lane(block[lower(ROW, ROW)], shared->product[lower(ROW, ROW)]);
    decay_diagonal<true>(block[lower(ROW, ROW)], row, norm, pair);
    {
        load_rows(query, shared->query_norm + 16 * ROW);
        query[0] *= scale, query[1] *= scale;
        get_lane(score, shared->product[10 + lower(ROW, ROW)]);
        decay_diagonal<false>(score, query, norm, pair);
        put_tile(tile, score, one, ROW, ROW);
    }
    __syncwarp(); /* registers are short: nothing is loaded before */
}

/* The record of one head, by one warp. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_record(char *to, char *tile, const delta_chunk_shared<KEY_SIZE> *shared,
                                                   const delta_tokens &tokens, float scale) {
    typedef delta_record<KEY_SIZE, false> record;
    float block[10][8];
    decay_row<KEY_SIZE, 0>(block, tile, shared, tokens, scale);
    decay_row<KEY_SIZE, 1>(block, tile, shared, tokens, scale);
    decay_row<KEY_SIZE, 2>(block, tile, shared, tokens, scale);
    decay_row<KEY_SIZE, 3>(block, tile, shared, tokens, scale);
    send_lower(to + record::scores, tile);
#pragma unroll
    for (int i = 0; i < 4; i++) put_block((float *)tile + i * INVERT_BLOCK, block[lower(i, i)]);
    invert(block, (float *)tile);
    send_transform(to + record::transform, tile, block, tokens.strength);
}

template <int KEY_SIZE>
static __global__ void __launch_bounds__(CHUNK_THREADS, 3) delta_chunks(const __grid_constant__ delta_run run) {
    typedef delta_record<KEY_SIZE, false> record;
    delta_chunk_shared<KEY_SIZE> *shared = (delta_chunk_shared<KEY_SIZE> *)block_memory();
    const int warp = threadIdx.x / 32;
    const int parts = (run.group + CHUNK_WARPS - 1) / CHUNK_WARPS, part = blockIdx.x % parts;
    const int64_t piece_index = blockIdx.x / parts / run.key_heads;
    const int key_head = blockIdx.x / parts % run.key_heads, member = part * CHUNK_WARPS + warp;
    const delta_piece piece = run.pieces[piece_index];
    copy_rows<KEY_SIZE>(shared->key, run.key, key_head, piece, CHUNK_THREADS);
    copy_rows<KEY_SIZE>(shared->query, run.query, key_head, piece, CHUNK_THREADS);
    copies_commit();
    const int head = run.tiled ? member * run.key_heads + key_head : key_head * run.group + member;
    delta_pair pair = {};
    if (member < run.group) pair = read_tokens(run, piece, head);
    copies_wait<0>();
    __syncthreads();
    make_products<KEY_SIZE>(shared, run.normalise);
    __syncthreads();
    if (member >= run.group) return;
    delta_tokens &tokens = shared->tokens[warp];
    char *to = run.records + (piece_index * run.heads + head) * record::bytes;
    sum_tokens<KEY_SIZE>(tokens, pair, run.scale, shared);
    store_factors<KEY_SIZE>((float *)(to + record::factors), run, tokens, shared);
    make_record<KEY_SIZE>(to, shared->tile[warp], shared, tokens, run.scale);
}

/* ---- decays of keys ---- */

/* Each key channel decays by itself: <x, y> of rows i and j of blocks I and J of 16 tokens is sum_c x e^g[i] F y
 * e^(total[J] - g[j]), where g is the cumulative decay since the block began, total that of the block, and F =
 * e^(totals of the blocks between). For I = J, F = e^-total, a quotient after all, which is taken only where nothing
 * can overflow; else the pairs of the block are summed one by one. */
enum { KEY_THREADS = 256, STEEP = 116, LARGE = 1024 };

template <int KEY_SIZE> struct delta_key_shared {
    char key[CHUNK * KEY_SIZE * 2], query[CHUNK * KEY_SIZE * 2]; /* as read, then times e^g */
    char write[CHUNK * KEY_SIZE * 2];                            /* keys times e^(total - g) */
    float gate[CHUNK][KEY_SIZE + 8];                             /* g, base 2; at last a tile on its way */
    float decay[4][KEY_SIZE], inverse[4][KEY_SIZE];              /* of blocks: e^total, e^-total */
    float diagonal[INVERT_FLOATS], below[6][256];                /* A */
    float strength[CHUNK], key_norm[CHUNK], query_norm[CHUNK];
    int exact[4]; /* of a block on the diagonal */
};

template <int KEY_SIZE>
static __device__ __forceinline__ void copy_gates(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                  const delta_piece &piece, int head) {
    for (int i = threadIdx.x; i < CHUNK * KEY_SIZE / 4; i += KEY_THREADS) {
        const int row = i / (KEY_SIZE / 4), column = i % (KEY_SIZE / 4) * 4;
        const bool inside = row < piece.rows;
        const int64_t token = piece.token + (inside ? row : 0);
        copy_piece(&shared->gate[row][column], run.decay + (token * run.heads + head) * KEY_SIZE + column, inside);
    }
}

/* Decays as read become g. */
template <int KEY_SIZE> static __device__ __forceinline__ void sum_gates(delta_key_shared<KEY_SIZE> *shared) {
    for (int i = threadIdx.x; i < 4 * KEY_SIZE; i += KEY_THREADS) {
        const int block = i / KEY_SIZE, column = i % KEY_SIZE;
        float sum = 0;
#pragma unroll
        for (int t = 0; t < 16; t++) {
            float *gate = &shared->gate[16 * block + t][column];
            sum += gate_of(*gate);
            *gate = sum;
        }
        shared->decay[block][column] = exponential(sum);
        shared->inverse[block][column] = exponential(-sum);
        if (!(sum >= -STEEP)) shared->exact[block] = 1;
    }
}

/* Factors that give queries and keys the length 1, two threads a row. */
template <int KEY_SIZE>
static __device__ __forceinline__ void norm_rows(delta_key_shared<KEY_SIZE> *shared, bool normalise) {
    const int row = threadIdx.x / 2 % CHUNK, half = threadIdx.x % 2;
    const bool query = threadIdx.x >= KEY_THREADS / 2;
    const char *tile = query ? shared->query : shared->key;
    float sum = 0;
#pragma unroll 2
    for (int column = half; column < KEY_SIZE / 8 && normalise; column += 2) {
        const uint4 piece = *(const uint4 *)(tile + piece_at(row, column));
        const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int i = 0; i < 4; i++) sum += low_of(word[i]) * low_of(word[i]) + high_of(word[i]) * high_of(word[i]);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (half == 0) (query ? shared->query_norm : shared->key_norm)[row] = normalise ? rsqrtf(sum + 1e-6f) : 1;
}

static __device__ __forceinline__ uint4 pack_eight(const float (&x)[8]) {
    return {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
}
static __device__ __forceinline__ void unpack_eight(float (&x)[8], const uint4 &from) {
    const uint32_t word[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = low_of(word[i]), x[2 * i + 1] = high_of(word[i]);
}

static __device__ __forceinline__ void load_eight(float (&x)[8], const float *from) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 four = *(const float4 *)(from + i);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
}

/* Eight columns of one token: the tiles of the block, and what the walk reads, to memory. decay: of the four blocks. */
template <int KEY_SIZE>
static __device__ __forceinline__ void decay_piece(delta_key_shared<KEY_SIZE> *shared, char *to, int row, int column,
                                                   int block, const delta_run &run, const float (&decay)[4][8]) {
    typedef delta_record<KEY_SIZE, true> record;
    const int at = piece_at(row, column);
    float key[8], query[8], gate[8], after[8], total[8];
    unpack_eight(key, *(uint4 *)(shared->key + at));
    unpack_eight(query, *(uint4 *)(shared->query + at));
    load_eight(gate, &shared->gate[row][column * 8]);
    load_eight(total, &shared->gate[16 * block + 15][column * 8]);
    const float key_norm = shared->key_norm[row], query_norm = shared->query_norm[row] * run.scale;
#pragma unroll
    for (int i = 0; i < 8; i++) key[i] *= key_norm, query[i] *= query_norm;
    if (!run.normalise) {
        bool large = false;
#pragma unroll
        for (int i = 0; i < 8; i++) large = large || !(fabsf(key[i]) < LARGE && fabsf(query[i]) < LARGE);
        if (large) shared->exact[block] = 1;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        after[i] = key[i] * exponential(total[i] - gate[i]);
        gate[i] = exponential(gate[i]);
        key[i] *= gate[i], query[i] *= gate[i];
    }
    *(uint4 *)(shared->write + at) = pack_eight(after);
    *(uint4 *)(shared->key + at) = pack_eight(key);
    *(uint4 *)(shared->query + at) = pack_eight(query);
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (b > block) after[i] *= decay[b][i];
            if (b < block) key[i] *= decay[b][i], query[i] *= decay[b][i];
        }
    *(uint4 *)(to + record::write + at) = pack_eight(after);
    *(uint4 *)(to + record::read + at) = pack_eight(key);
    *(uint4 *)(to + record::query + at) = pack_eight(query);
}

template <int KEY_SIZE>
static __device__ __forceinline__ void decay_tiles(delta_key_shared<KEY_SIZE> *shared, char *to, const delta_run &run) {
    typedef delta_record<KEY_SIZE, true> record;
    constexpr int pieces = KEY_SIZE / 8, rows = KEY_THREADS / pieces; /* 16 rows at once, or 32 */
    const int column = threadIdx.x % pieces, row = threadIdx.x / pieces;
    float decay[4][8];
#pragma unroll
    for (int b = 0; b < 4; b++) load_eight(decay[b], &shared->decay[b][column * 8]);
#pragma unroll
    for (int first = 0; first < CHUNK; first += rows)
        decay_piece<KEY_SIZE>(shared, to, first + row, column, rows == 16 ? first / 16 : (first + row) / 16, run,
                              decay);
    if (row == 0)
#pragma unroll
        for (int i = 0; i < 8; i++)
            ((float *)(to + record::factors))[column * 8 + i] = decay[0][i] * decay[1][i] * decay[2][i] * decay[3][i];
}

/* Left operand times F. */
static __device__ __forceinline__ uint32_t times(uint32_t both, float2 by) {
    return pack(low_of(both) * by.x, high_of(both) * by.y);
}

/* block (i, j) of rows of `left` and keys. */
template <int KEY_SIZE>
static __device__ __forceinline__ void multiply_block(float (&block)[8], const delta_key_shared<KEY_SIZE> *shared,
                                                      const char *left, int i, int j) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < 8; e++) block[e] = 0;
#pragma unroll 4
    for (int k = 0; k < KEY_SIZE / 16; k++) {
        uint32_t one[4], two[4];
        load_matrices<false>(one, left + piece_at(16 * i + lane % 16, 2 * k + lane / 16));
        load_matrices<false>(two, shared->write + piece_at(16 * j + lane % 16, 2 * k + lane / 16));
        if (i != j + 1) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = 16 * k + 8 * half + lane % 4 * 2;
                float2 by = *(const float2 *)((i == j ? shared->inverse[i] : shared->decay[j + 1]) + column);
                if (i == j + 3) {
                    const float2 more = *(const float2 *)(shared->decay[j + 2] + column);
                    by.x *= more.x, by.y *= more.y;
                }
                one[2 * half] = times(one[2 * half], by);
                one[2 * half + 1] = times(one[2 * half + 1], by);
            }
        }
        const uint32_t first[2] = {two[0], two[2]}, second[2] = {two[1], two[3]};
        add_product(block, one, first);
        add_product(block + 4, one, second);
    }
}

/* A block on the diagonal, pair by pair. */
template <int KEY_SIZE>
static __device__ __forceinline__ void multiply_exact(float (&block)[8], const delta_key_shared<KEY_SIZE> *shared,
                                                      const ln_cuda_tensor &left, const float *left_norm, float scale,
                                                      const ln_cuda_tensor &key, int key_head, const delta_piece &piece,
                                                      int i) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int e = 0; e < 8; e++) {
        const int row = 16 * i + lane / 4 + e / 2 % 2 * 8, column = 16 * i + e / 4 * 8 + lane % 4 * 2 + e % 2;
        float sum = 0;
        if (column <= row && row < piece.rows) {
            const __nv_bfloat16 *one = (const __nv_bfloat16 *)left.data + (piece.token + row) * left.token_stride +
                                       key_head * left.head_stride,
                                *two = (const __nv_bfloat16 *)key.data + (piece.token + column) * key.token_stride +
                                       key_head * key.head_stride;
            for (int c = 0; c < KEY_SIZE; c++)
                sum += __bfloat162float(one[c]) * left_norm[row] * __bfloat162float(two[c]) * shared->key_norm[column] *
                       exponential(shared->gate[row][c] - shared->gate[column][c]);
        }
        /* Not block[e]: registers are told by constants. */
#pragma unroll
        for (int other = 0; other < 8; other++)
            if (other == e) block[other] = sum * scale;
    }
}

/* Block (i, j) of P, or of A, by one warp. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_block(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                  const delta_piece &piece, int key_head, char *scores, bool query,
                                                  int i, int j) {
    const int lane = threadIdx.x % 32;
    float block[8] = {};
    if (j == i && shared->exact[i])
        multiply_exact<KEY_SIZE>(block, shared, query ? run.query : run.key,
                                 query ? shared->query_norm : shared->key_norm, query ? run.scale : 1, run.key,
                                 key_head, piece, i);
    else
        multiply_block<KEY_SIZE>(block, shared, query ? shared->query : shared->key, i, j);
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const int row = 16 * i + lane / 4 + e / 2 % 2 * 8, column = 16 * j + e / 4 * 8 + lane % 4 * 2 + e % 2;
        block[e] = column + !query <= row ? block[e] * (query ? 1 : shared->strength[row]) : 0;
    }
    if (query) {
#pragma unroll
        for (int e = 0; e < 8; e += 2)
            *(uint32_t *)(scores + word_at(16 * i + lane / 4 + e / 2 % 2 * 8, 16 * j + e / 4 * 8 + lane % 4 * 2)) =
                pack(block[e], block[e + 1]);
    } else if (j == i)
        put_block(shared->diagonal + i * INVERT_BLOCK, block);
    else
        put_lane(shared->below[i * (i - 1) / 2 + j], block);
}
/* All blocks of both, so that each warp has two or three. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_blocks(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                   const delta_piece &piece, int key_head, char *scores) {
#pragma unroll 1
    for (int task = threadIdx.x / 32; task < 20; task += KEY_THREADS / 32) {
        const int place = task / 2, i = (place > 0) + (place > 2) + (place > 5), j = place - i * (i + 1) / 2;
        make_block<KEY_SIZE>(shared, run, piece, key_head, scores, task % 2, i, j);
    }
}

/* Column J of blocks of T, by one warp. */
template <int KEY_SIZE, int J>
static __device__ __forceinline__ void make_column(char *tile, const delta_key_shared<KEY_SIZE> *shared) {
    float block[10][8], by[4];
#pragma unroll
    for (int i = J + 1; i < 4; i++) {
        get_block(block[lower(i, i)], shared->diagonal + i * INVERT_BLOCK);
        make_operand(block[lower(i, i)], 1);
#pragma unroll
        for (int k = J; k < i; k++) {
            get_lane(block[lower(i, k)], shared->below[i * (i - 1) / 2 + k]);
            make_operand(block[lower(i, k)], 1);
        }
    }
    invert_column<J>(block, shared->diagonal);
    get_block(block[lower(J, J)], shared->diagonal + J * INVERT_BLOCK);
    load_columns(by, shared->strength + 16 * J);
#pragma unroll
    for (int i = J; i < 4; i++) put_tile(tile, block[lower(i, J)], by, i, J);
}
template <int KEY_SIZE>
static __device__ __forceinline__ void make_transform(char *to, delta_key_shared<KEY_SIZE> *shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    char *tile = (char *)shared->gate;
    if (warp == 0) invert_diagonal(shared->diagonal);
    __syncthreads();
    if (warp == 0) make_column<KEY_SIZE, 0>(tile, shared);
    if (warp == 1) make_column<KEY_SIZE, 1>(tile, shared);
    if (warp == 2) make_column<KEY_SIZE, 2>(tile, shared);
    if (warp == 3) make_column<KEY_SIZE, 3>(tile, shared);
    __syncthreads();
#pragma unroll 1
    for (int block = warp; block < 10; block += KEY_THREADS / 32) {
        const int i = (block > 0) + (block > 2) + (block > 5), j = block - i * (i + 1) / 2;
        const int at = piece_at(16 * i + lane / 2, 2 * j + lane % 2);
        *(uint4 *)(to + at) = *(const uint4 *)(tile + at);
    }
}

template <int KEY_SIZE>
static __global__ void __launch_bounds__(KEY_THREADS) delta_key_chunks(const __grid_constant__ delta_run run) {
    typedef delta_record<KEY_SIZE, true> record;
    delta_key_shared<KEY_SIZE> *shared = (delta_key_shared<KEY_SIZE> *)block_memory();
    const int head = blockIdx.x % run.heads, key_head = key_head_of(run, head);
    const delta_piece piece = run.pieces[blockIdx.x / run.heads];
    char *to = run.records + (int64_t)blockIdx.x * record::bytes;
    copy_rows<KEY_SIZE>(shared->key, run.key, key_head, piece, KEY_THREADS);
    copy_rows<KEY_SIZE>(shared->query, run.query, key_head, piece, KEY_THREADS);
    copy_gates<KEY_SIZE>(shared, run, piece, head);
    copies_commit();
    if (threadIdx.x < CHUNK) {
        const bool inside = (int)threadIdx.x < piece.rows;
        shared->strength[threadIdx.x] = inside ? run.beta[(int64_t)(piece.token + threadIdx.x) * run.heads + head] : 0;
    }
    if (threadIdx.x < 4) shared->exact[threadIdx.x] = 0;
    copies_wait<0>();
    __syncthreads();
    norm_rows<KEY_SIZE>(shared, run.normalise);
    sum_gates<KEY_SIZE>(shared);
    __syncthreads();
    decay_tiles<KEY_SIZE>(shared, to, run);
    __syncthreads();
    make_blocks<KEY_SIZE>(shared, run, piece, key_head, to + record::scores);
    __syncthreads();
    make_transform<KEY_SIZE>(to + record::transform, shared);
}

/* ---- start ---- */

template <int KEY_SIZE> static ln_cuda_code start_chunks(const delta_run &run, bool by_key, void *stream) {
    const int64_t parts = by_key ? run.group : (run.group + CHUNK_WARPS - 1) / CHUNK_WARPS;
    const int64_t blocks = run.piece_count * run.key_heads * parts;
    const dim3 grid((unsigned)blocks);
    if (by_key)
        return launch(delta_key_chunks<KEY_SIZE>, grid, dim3(KEY_THREADS), (int)sizeof(delta_key_shared<KEY_SIZE>),
                      stream, run);
    return launch(delta_chunks<KEY_SIZE>, grid, dim3(CHUNK_THREADS), (int)sizeof(delta_chunk_shared<KEY_SIZE>), stream,
                  run);
}

} // namespace ln

ln_cuda_code ln_cuda_delta_chunks(const ln::delta_run &run, bool by_key, void *stream) {
    return run.key_size == 64 ? ln::start_chunks<64>(run, by_key, stream) : ln::start_chunks<128>(run, by_key, stream);
}
