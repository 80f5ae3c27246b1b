/* The first kernel of the delta rules: records of all chunks and heads (delta_chunk.cuh), none depending on another.
 *
 * One decay a head: a block has one chunk of one key head, whose tiles its warps share; a warp makes the record of one
 * value head after the other. Both matrices of products come from the tensor cores as blocks of 16 x 16, on which
 * decays are put, and the inverse is taken where they lie (delta_invert.cuh). */
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
    float row[CHUNK];      /* times the factor that makes the key's length 1 */
};

template <int KEY_SIZE> struct delta_chunk_shared {
    char key[CHUNK * KEY_SIZE * 2], query[CHUNK * KEY_SIZE * 2];
    char tile[CHUNK_WARPS][CHUNK * 128]; /* a result on its way; scratch of the inverse before */
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

/* 1 / |row of the tile|, or 1. */
template <int KEY_SIZE> static __device__ __forceinline__ float norm_of(const char *tile, int row, bool normalise) {
    float sum = 0;
    if (!normalise) return 1;
    for (int column = 0; column < KEY_SIZE / 8; column++) {
        const uint4 piece = *(const uint4 *)(tile + piece_at(row, column));
        const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int i = 0; i < 4; i++) sum += low_of(word[i]) * low_of(word[i]) + high_of(word[i]) * high_of(word[i]);
    }
    return rsqrtf(sum + 1e-6f);
}

/* A logarithm of base 2, no smaller than FAINT; what is not a number stays so. */
static __device__ __forceinline__ float gate_of(float decay) {
    const float gate = decay * LOG2_E;
    return gate < FAINT ? FAINT : gate;
}

/* By one warp: lane l has tokens 2 l and 2 l + 1. */
static __device__ __forceinline__ void load_tokens(delta_tokens &to, const delta_run &run, const delta_piece &piece,
                                                   int head, const float *key_norm) {
    const int lane = threadIdx.x % 32;
    float gate[2], strength[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t at = (int64_t)(piece.token + 2 * lane + i) * run.heads + head;
        const bool inside = 2 * lane + i < piece.rows;
        strength[i] = inside ? run.beta[at] : 0;
        gate[i] = inside && run.decay ? gate_of(run.decay[at]) : 0;
    }
    gate[1] += gate[0];
    float sum = gate[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    const float before = __shfl_up_sync(~0u, sum, 1);
    if (lane > 0) gate[0] += before;
    *(float2 *)(to.gate + 2 * lane) = {gate[0], sum};
    *(float2 *)(to.strength + 2 * lane) = {strength[0], strength[1]};
    *(float2 *)(to.row + 2 * lane) = {strength[0] * key_norm[2 * lane], strength[1] * key_norm[2 * lane + 1]};
    __syncwarp();
}

/* block[lower(i, j)] = rows of left times rows of right, transposed. */
template <int KEY_SIZE>
static __device__ __forceinline__ void multiply_lower(float (&block)[10][8], const char *left, const char *right) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int b = 0; b < 10; b++)
#pragma unroll
        for (int e = 0; e < 8; e++) block[b][e] = 0;
#pragma unroll 2
    for (int k = 0; k < KEY_SIZE / 16; k++) {
        uint32_t one[4][4], two[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = piece_at(16 * i + lane % 16, 2 * k + lane / 16);
            load_matrices<false>(two[i], right + at);
            if (left != right) load_matrices<false>(one[i], left + at);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j <= i; j++) {
                const uint32_t first[2] = {two[j][0], two[j][2]}, second[2] = {two[j][1], two[j][3]};
                const uint32_t(&from)[4] = left != right ? one[i] : two[i];
                add_product(block[lower(i, j)], from, first);
                add_product(block[lower(i, j)] + 4, from, second);
            }
    }
}

/* Each element times row[i] column[j] e^(G[i] - G[j]); 0 above the diagonal, and on it where STRICT. */
template <bool STRICT>
static __device__ __forceinline__ void put_decays(float (&block)[10][8], const float *gate, const float *row,
                                                  const float *column, float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int t = 16 * i + 8 * r + lane / 4;
            const float here = gate[t], by = row[t] * scale;
#pragma unroll
            for (int j = 0; j <= i; j++)
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const int from = 16 * j + 8 * n + lane % 4 * 2;
                    const float2 there = *(const float2 *)(gate + from), times = *(const float2 *)(column + from);
                    float *x = block[lower(i, j)] + 4 * n + 2 * r;
                    const bool one = i > j || from + STRICT <= t, two = i > j || from + 1 + STRICT <= t;
                    x[0] = one ? x[0] * by * times.x * exponential(here - there.x) : 0;
                    x[1] = two ? x[1] * by * times.y * exponential(here - there.y) : 0;
                }
        }
}

/* The blocks times column[j], as bf16 through the warp's tile to memory. */
static __device__ __forceinline__ void store_lower(char *to, char *tile, const float (&block)[10][8],
                                                   const float *column) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const int from = 16 * j + 8 * n + lane % 4 * 2;
                float2 by = {1, 1};
                if (column && j <= i) by = *(const float2 *)(column + from);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const float *x = block[j <= i ? lower(i, j) : 0] + 4 * n + 2 * r;
                    *(uint32_t *)(tile + word_at(16 * i + 8 * r + lane / 4, from)) =
                        j <= i ? pack(x[0] * by.x, x[1] * by.y) : 0;
                }
            }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < CHUNK * 8; i += 32) ((uint4 *)to)[i] = ((const uint4 *)tile)[i];
    __syncwarp();
}

template <int KEY_SIZE>
static __device__ __forceinline__ void store_factors(float *to, const delta_run &run, const delta_tokens &tokens,
                                                     const delta_chunk_shared<KEY_SIZE> *shared) {
    for (int t = threadIdx.x % 32; t < CHUNK; t += 32) {
        const float key_norm = shared->key_norm[t], gate = tokens.gate[t], last = tokens.gate[CHUNK - 1];
        to[FACTOR_READ + t] = key_norm * exponential(gate);
        to[FACTOR_QUERY + t] = run.scale * shared->query_norm[t] * exponential(gate);
        to[FACTOR_WRITE + t] = key_norm * exponential(last - gate);
        to[FACTOR_GATE + t] = gate;
        to[FACTOR_KEY_NORM + t] = key_norm;
        to[FACTOR_QUERY_NORM + t] = run.scale * shared->query_norm[t];
        if (t == 0) to[FACTOR_LAST] = exponential(last);
    }
}

template <int KEY_SIZE, bool SCORES>
static __global__ void __launch_bounds__(CHUNK_THREADS, 3) delta_chunks(const __grid_constant__ delta_run run) {
    typedef delta_record<KEY_SIZE, false> record;
    delta_chunk_shared<KEY_SIZE> *shared = (delta_chunk_shared<KEY_SIZE> *)block_memory();
    const int warp = threadIdx.x / 32;
    const int64_t piece_index = blockIdx.x / run.key_heads;
    const int key_head = blockIdx.x % run.key_heads;
    const delta_piece piece = run.pieces[piece_index];
    copy_rows<KEY_SIZE>(shared->key, run.key, key_head, piece, CHUNK_THREADS);
    if (SCORES || run.normalise) copy_rows<KEY_SIZE>(shared->query, run.query, key_head, piece, CHUNK_THREADS);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    const int token = threadIdx.x % CHUNK;
    if (threadIdx.x < CHUNK)
        shared->key_norm[token] = norm_of<KEY_SIZE>(shared->key, token, run.normalise);
    else
        shared->query_norm[token] = norm_of<KEY_SIZE>(shared->query, token, run.normalise);
    __syncthreads();
    char *tile = shared->tile[warp];
    delta_tokens &tokens = shared->tokens[warp];
    for (int member = warp; member < run.group; member += CHUNK_WARPS) {
        const int head = run.tiled ? member * run.key_heads + key_head : key_head * run.group + member;
        char *to = run.records + (piece_index * run.heads + head) * record::bytes;
        float block[10][8];
        load_tokens(tokens, run, piece, head, shared->key_norm);
        store_factors<KEY_SIZE>((float *)(to + record::factors), run, tokens, shared);
        if (SCORES) {
            multiply_lower<KEY_SIZE>(block, shared->query, shared->key);
            put_decays<false>(block, tokens.gate, shared->query_norm, shared->key_norm, run.scale);
            store_lower(to + record::scores, tile, block, NULL);
        }
        multiply_lower<KEY_SIZE>(block, shared->key, shared->key);
        put_decays<true>(block, tokens.gate, tokens.row, shared->key_norm, 1);
        invert(block, (float *)tile);
        store_lower(to + record::transform, tile, block, tokens.strength);
    }
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

static __device__ __forceinline__ uint4 pack_eight(const float (&x)[8]) {
    return {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
}
static __device__ __forceinline__ void unpack_eight(float (&x)[8], const uint4 &from) {
    const uint32_t word[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = low_of(word[i]), x[2 * i + 1] = high_of(word[i]);
}

/* Eight columns of one token: the tiles of the block, and what the walk reads, to memory. */
template <int KEY_SIZE>
static __device__ __forceinline__ void decay_piece(delta_key_shared<KEY_SIZE> *shared, char *to, int row, int column,
                                                   float scale) {
    typedef delta_record<KEY_SIZE, true> record;
    const int at = piece_at(row, column), block = row / 16, first = column * 8;
    float key[8], query[8], made[8];
    unpack_eight(key, *(uint4 *)(shared->key + at));
    unpack_eight(query, *(uint4 *)(shared->query + at));
    const float key_norm = shared->key_norm[row], query_norm = shared->query_norm[row] * scale;
    bool large = false;
    float before[8], after[8], upto[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float gate = shared->gate[row][first + i], total = shared->gate[16 * block + 15][first + i];
        key[i] *= key_norm, query[i] *= query_norm;
        large = large || !(fabsf(key[i]) < LARGE && fabsf(query[i]) < LARGE);
        upto[i] = exponential(gate);
        after[i] = key[i] * exponential(total - gate);
        before[i] = 1;
        for (int b = 0; b < block; b++) before[i] *= shared->decay[b][first + i];
    }
    if (large) shared->exact[block] = 1;
    *(uint4 *)(shared->write + at) = pack_eight(after);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        for (int b = block + 1; b < 4; b++) after[i] *= shared->decay[b][first + i];
        key[i] *= upto[i], query[i] *= upto[i];
    }
    *(uint4 *)(to + record::write + at) = pack_eight(after);
    *(uint4 *)(shared->key + at) = pack_eight(key);
    *(uint4 *)(shared->query + at) = pack_eight(query);
#pragma unroll
    for (int i = 0; i < 8; i++) made[i] = key[i] * before[i], query[i] *= before[i];
    *(uint4 *)(to + record::read + at) = pack_eight(made);
    *(uint4 *)(to + record::query + at) = pack_eight(query);
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
static __device__ __noinline__ void multiply_exact(float (&block)[8], const delta_key_shared<KEY_SIZE> *shared,
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

/* Row block i of P, or of A, by one warp. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_row(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                const delta_piece &piece, int key_head, char *scores, bool query,
                                                int i) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int j = 0; j < 4; j++) {
        float block[8] = {};
        if (j == i && shared->exact[i])
            multiply_exact<KEY_SIZE>(block, shared, query ? run.query : run.key,
                                     query ? shared->query_norm : shared->key_norm, query ? run.scale : 1, run.key,
                                     key_head, piece, i);
        else if (j <= i)
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
        else if (j < i)
#pragma unroll
            for (int e = 0; e < 8; e += 4)
                *(float4 *)(shared->below[i * (i - 1) / 2 + j] + e * 32 + lane * 4) = {block[e], block[e + 1],
                                                                                       block[e + 2], block[e + 3]};
    }
}

template <int KEY_SIZE>
static __device__ __forceinline__ void take_blocks(float (&block)[10][8], const delta_key_shared<KEY_SIZE> *shared) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        get_block(block[lower(i, i)], shared->diagonal + i * INVERT_BLOCK);
#pragma unroll
        for (int j = 0; j < i; j++)
#pragma unroll
            for (int e = 0; e < 8; e += 4) {
                const float4 four = *(const float4 *)(shared->below[i * (i - 1) / 2 + j] + e * 32 + lane * 4);
                float *x = block[lower(i, j)] + e;
                x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
            }
    }
}

template <int KEY_SIZE>
static __global__ void __launch_bounds__(KEY_THREADS) delta_key_chunks(const __grid_constant__ delta_run run) {
    typedef delta_record<KEY_SIZE, true> record;
    delta_key_shared<KEY_SIZE> *shared = (delta_key_shared<KEY_SIZE> *)block_memory();
    const int warp = threadIdx.x / 32, head = blockIdx.x % run.heads, key_head = key_head_of(run, head);
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
    if (threadIdx.x < CHUNK)
        shared->key_norm[threadIdx.x] = norm_of<KEY_SIZE>(shared->key, threadIdx.x, run.normalise);
    else if (threadIdx.x < 2 * CHUNK)
        shared->query_norm[threadIdx.x - CHUNK] = norm_of<KEY_SIZE>(shared->query, threadIdx.x - CHUNK, run.normalise);
    sum_gates<KEY_SIZE>(shared);
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK * KEY_SIZE / 8; i += KEY_THREADS)
        decay_piece<KEY_SIZE>(shared, to, i / (KEY_SIZE / 8), i % (KEY_SIZE / 8), run.scale);
    for (int c = threadIdx.x; c < KEY_SIZE; c += KEY_THREADS)
        ((float *)(to + record::factors))[c] =
            shared->decay[0][c] * shared->decay[1][c] * shared->decay[2][c] * shared->decay[3][c];
    __syncthreads();
    make_row<KEY_SIZE>(shared, run, piece, key_head, to + record::scores, warp >= 4, warp % 4);
    __syncthreads();
    if (warp == 0) {
        float block[10][8];
        take_blocks<KEY_SIZE>(block, shared);
        __syncwarp();
        invert(block, shared->diagonal);
        store_lower(to + record::transform, (char *)shared->gate, block, shared->strength);
    }
}

/* ---- start ---- */

template <int KEY_SIZE> static ln_cuda_code start_chunks(const delta_run &run, bool by_key, bool scores, void *stream) {
    const int64_t blocks = (int64_t)run.piece_count * (by_key ? run.heads : run.key_heads);
    const dim3 grid((unsigned)blocks);
    if (by_key)
        return launch(delta_key_chunks<KEY_SIZE>, grid, dim3(KEY_THREADS), (int)sizeof(delta_key_shared<KEY_SIZE>),
                      stream, run);
    return launch(scores ? delta_chunks<KEY_SIZE, true> : delta_chunks<KEY_SIZE, false>, grid, dim3(CHUNK_THREADS),
                  (int)sizeof(delta_chunk_shared<KEY_SIZE>), stream, run);
}

} // namespace ln

ln_cuda_code ln_cuda_delta_chunks(const ln::delta_run &run, bool by_key, bool scores, void *stream) {
    return run.key_size == 64 ? ln::start_chunks<64>(run, by_key, scores, stream)
                              : ln::start_chunks<128>(run, by_key, scores, stream);
}
