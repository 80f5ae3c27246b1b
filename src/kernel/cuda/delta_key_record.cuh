/* Owns: the record of one chunk and head with decays of keys, by one block (delta_chunk.cuh).
 *
 * Each key channel decays by itself: <x, y> of rows i and j of blocks I and J of 16 tokens is sum_c x e^g[i] F y
 * e^(total[J] - g[j]), where g is the cumulative decay since the block began, total that of the block, and F =
 * e^(totals of the blocks between). For I = J, F = e^-total, a quotient after all, which is taken only where nothing
 * can overflow; else the pairs of the block are summed one by one.
 *
 * A thread has two channels of one block of tokens: their decays stay in its registers from memory to the last use. */
#ifndef LN_KERNEL_CUDA_DELTA_KEY_RECORD_CUH
#define LN_KERNEL_CUDA_DELTA_KEY_RECORD_CUH

#include "kernel/cuda/delta_record.cuh"

namespace ln {

enum { STEEP = 116, LARGE = 1024 };
template <int KEY_SIZE> static constexpr int KEY_THREADS = 2 * KEY_SIZE;

template <int KEY_SIZE> struct delta_key_shared {
    char key[CHUNK * KEY_SIZE * 2],
        query[CHUNK * KEY_SIZE * 2];                /* as read, then times e^g; at last blocks of T on their way */
    char write[CHUNK * KEY_SIZE * 2];               /* keys times e^(total - g) */
    float decay[4][KEY_SIZE], inverse[4][KEY_SIZE]; /* of blocks: e^total, e^-total */
    float diagonal[INVERT_FLOATS], below[6][256];   /* A; below as operands */
    float strength[CHUNK], key_norm[CHUNK], query_norm[CHUNK];
    int exact[4]; /* of a block on the diagonal */
};

/* Two channels of the 16 tokens of a block: decays as read, then g. */
struct delta_channels {
    float2 gate[16];
};
template <int KEY_SIZE>
static __device__ __forceinline__ void read_gates(delta_channels &channels, const delta_run &run,
                                                  const delta_piece &piece, int head) {
    const int column = threadIdx.x % (KEY_SIZE / 2) * 2, first = threadIdx.x / (KEY_SIZE / 2) * 16;
    const int64_t stride = (int64_t)run.heads * KEY_SIZE;
    const float *from = run.decay + (piece.token + first) * stride + head * KEY_SIZE + column;
#pragma unroll
    for (int t = 0; t < 16; t++) {
        channels.gate[t] = {0, 0};
        if (first + t < piece.rows) channels.gate[t] = *(const float2 *)(from + t * stride);
    }
}
template <int KEY_SIZE>
static __device__ __forceinline__ void sum_gates(delta_key_shared<KEY_SIZE> *shared, delta_channels &channels) {
    const int column = threadIdx.x % (KEY_SIZE / 2) * 2, block = threadIdx.x / (KEY_SIZE / 2);
    float2 sum = {0, 0};
#pragma unroll
    for (int t = 0; t < 16; t++) {
        sum.x += gate_of(channels.gate[t].x), sum.y += gate_of(channels.gate[t].y);
        channels.gate[t] = sum;
    }
    *(float2 *)&shared->decay[block][column] = {exponential(sum.x), exponential(sum.y)};
    *(float2 *)&shared->inverse[block][column] = {exponential(-sum.x), exponential(-sum.y)};
    if (!(sum.x >= -STEEP && sum.y >= -STEEP)) shared->exact[block] = 1;
}

/* Factors that give queries and keys the length 1, two threads a row. */
template <int KEY_SIZE>
static __device__ __forceinline__ void norm_rows(delta_key_shared<KEY_SIZE> *shared, bool normalise) {
    const int half = threadIdx.x % 2;
#pragma unroll
    for (int at = threadIdx.x / 2; at < 2 * CHUNK; at += KEY_THREADS<KEY_SIZE> / 2) {
        const bool query = at >= CHUNK;
        const char *tile = query ? shared->query : shared->key;
        float sum = 0;
#pragma unroll 2
        for (int column = half; column < KEY_SIZE / 8 && normalise; column += 2) {
            const uint4 piece = *(const uint4 *)(tile + piece_at(at % CHUNK, column));
            const uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
            for (int i = 0; i < 4; i++) sum += low_of(word[i]) * low_of(word[i]) + high_of(word[i]) * high_of(word[i]);
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        if (half == 0)
            (query ? shared->query_norm : shared->key_norm)[at % CHUNK] = normalise ? rsqrtf(sum + 1e-6f) : 1;
    }
}

/* The decays of a channel in the blocks before and after one. */
template <int KEY_SIZE>
static __device__ __forceinline__ void around(float2 &before, float2 &after, const delta_key_shared<KEY_SIZE> *shared,
                                              int block, int column) {
    before = after = {1, 1};
#pragma unroll
    for (int b = 0; b < 4; b++) {
        const float2 by = *(const float2 *)&shared->decay[b][column];
        if (b < block) before.x *= by.x, before.y *= by.y;
        if (b > block) after.x *= by.x, after.y *= by.y;
    }
}

/* This thread's channels and tokens: the tiles of the block, and what the walk reads, to memory. */
template <int KEY_SIZE>
static __device__ __forceinline__ void decay_tiles(delta_key_shared<KEY_SIZE> *shared, char *to,
                                                   const delta_channels &channels, const delta_run &run) {
    typedef delta_record<KEY_SIZE, true> record;
    const int pair = threadIdx.x % (KEY_SIZE / 2), block = threadIdx.x / (KEY_SIZE / 2);
    const float2 total = channels.gate[15];
    float2 before, behind;
    around(before, behind, shared, block, 2 * pair);
    if (block == 0) {
        const float2 first = *(const float2 *)&shared->decay[0][2 * pair];
        *(float2 *)(to + record::factors + pair * 8) = {first.x * behind.x, first.y * behind.y};
    }
    bool large = false;
#pragma unroll
    for (int t = 0; t < 16; t++) {
        const int row = 16 * block + t, at = word_at(row, 2 * pair);
        const float key_norm = shared->key_norm[row], query_norm = shared->query_norm[row] * run.scale;
        const uint32_t keys = *(const uint32_t *)(shared->key + at), queries = *(const uint32_t *)(shared->query + at);
        const float2 gate = channels.gate[t];
        float2 key = {low_of(keys) * key_norm, high_of(keys) * key_norm},
               query = {low_of(queries) * query_norm, high_of(queries) * query_norm};
        if (!run.normalise)
            large = large ||
                    !(fabsf(key.x) < LARGE && fabsf(key.y) < LARGE && fabsf(query.x) < LARGE && fabsf(query.y) < LARGE);
        const float2 after = {key.x * exponential(total.x - gate.x), key.y * exponential(total.y - gate.y)};
        const float2 since = {exponential(gate.x), exponential(gate.y)};
        key.x *= since.x, key.y *= since.y, query.x *= since.x, query.y *= since.y;
        *(uint32_t *)(shared->write + at) = pack(after.x, after.y);
        *(uint32_t *)(shared->key + at) = pack(key.x, key.y);
        *(uint32_t *)(shared->query + at) = pack(query.x, query.y);
        *(uint32_t *)(to + record::write + at) = pack(after.x * behind.x, after.y * behind.y);
        *(uint32_t *)(to + record::read + at) = pack(key.x * before.x, key.y * before.y);
        *(uint32_t *)(to + record::query + at) = pack(query.x * before.x, query.y * before.y);
    }
    if (large) shared->exact[block] = 1;
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

/* Channels of this lane, a row of a tensor. */
template <int EACH>
static __device__ __forceinline__ void load_channels(float (&to)[EACH], const ln_cuda_tensor &from, int64_t token,
                                                     int head, float by) {
    const __nv_bfloat16 *at = (const __nv_bfloat16 *)from.data + token * from.token_stride + head * from.head_stride +
                              threadIdx.x % 32 * EACH;
#pragma unroll
    for (int i = 0; i < EACH; i++) to[i] = __bfloat162float(at[i]) * by;
}

/* A block on the diagonal, pair by pair: the decays between them are summed on the way from one to the other. */
template <int KEY_SIZE>
static __device__ __forceinline__ void
multiply_exact(float (&block)[8], const delta_key_shared<KEY_SIZE> *shared, const ln_cuda_tensor &left,
               const float *left_norm, const delta_run &run, float scale, int head, const delta_piece &piece, int i) {
    constexpr int each = KEY_SIZE / 32;
    const int lane = threadIdx.x % 32, key_head = key_head_of(run, head);
    const int end = min(piece.rows - 16 * i, 16);
#pragma unroll 1
    for (int column = 0; column < end; column++) {
        float key[each], gate[each] = {};
        load_channels<each>(key, run.key, piece.token + 16 * i + column, key_head,
                            shared->key_norm[16 * i + column] * scale);
#pragma unroll 1
        for (int row = column; row < end; row++) {
            float x[each], sum = 0;
            const int64_t token = piece.token + 16 * i + row;
            load_channels<each>(x, left, token, key_head, left_norm[16 * i + row]);
#pragma unroll
            for (int c = 0; c < each; c++) {
                if (row > column)
                    gate[c] += gate_of(run.decay[(token * run.heads + head) * KEY_SIZE + lane * each + c]);
                sum += x[c] * key[c] * exponential(gate[c]);
            }
#pragma unroll
            for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (row == lane / 4 + e / 2 % 2 * 8 && column == e / 4 * 8 + lane % 4 * 2 + e % 2) block[e] = sum;
        }
    }
}

/* Block (i, j) of P, or of A, by one warp. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_block(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                  const delta_piece &piece, int head, char *scores, bool query, int i,
                                                  int j) {
    const int lane = threadIdx.x % 32;
    float block[8] = {};
    if (j == i && shared->exact[i])
        multiply_exact<KEY_SIZE>(block, shared, query ? run.query : run.key,
                                 query ? shared->query_norm : shared->key_norm, run, query ? run.scale : 1, head, piece,
                                 i);
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
    else {
        make_operand(block, 1);
        put_lane(shared->below[i * (i - 1) / 2 + j], block);
    }
}
/* Of the blocks of A and then those of P, `first` to end - 1, by the warps from one on. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_blocks(delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                   const delta_piece &piece, int head, char *scores, int first, int end,
                                                   int warp) {
#pragma unroll 1
    for (int task = first + (int)threadIdx.x / 32 - warp; task < end; task += KEY_THREADS<KEY_SIZE> / 32 - warp) {
        const int place = task % 10, i = (place > 0) + (place > 2) + (place > 5), j = place - i * (i + 1) / 2;
        make_block<KEY_SIZE>(shared, run, piece, head, scores, task >= 10, i, j);
    }
}

/* Column J of blocks of T, by one warp. */
template <int KEY_SIZE, int J>
static __device__ __forceinline__ void make_key_column(char *to, char *stage,
                                                       const delta_key_shared<KEY_SIZE> *shared) {
    const int lane = threadIdx.x % 32;
    uint32_t packed[10][4];
    float block[10][8];
#pragma unroll
    for (int i = J + 1; i < 4; i++)
#pragma unroll
        for (int k = J; k < i; k++) get_lane(block[lower(i, k)], shared->below[i * (i - 1) / 2 + k]);
    make_column<J>(packed, block, shared->diagonal, shared->strength);
#pragma unroll
    for (int i = J; i < 4; i++) stage_block(stage, packed[lower(i, J)], i);
    __syncwarp();
#pragma unroll
    for (int i = J; i < 4; i++)
        *(uint4 *)(to + piece_at(16 * i + lane / 2, 2 * J + lane % 2)) =
            *(const uint4 *)(stage + i * 512 + scratch_at(lane / 2, lane % 2));
}

/* T and P: the blocks on the diagonal are inverted while others still make blocks. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_lower(char *to, delta_key_shared<KEY_SIZE> *shared, const delta_run &run,
                                                  const delta_piece &piece, int head) {
    typedef delta_record<KEY_SIZE, true> record;
    const int warp = threadIdx.x / 32;
    make_blocks<KEY_SIZE>(shared, run, piece, head, to + record::scores, 0, 16, 0);
    __syncthreads();
    if (warp < 2)
        invert_diagonal<1>(shared->diagonal + warp * 2 * INVERT_BLOCK);
    else
        make_blocks<KEY_SIZE>(shared, run, piece, head, to + record::scores, 16, 20, 2);
    __syncthreads();
    to += record::transform;
    char *stage = shared->key + warp * 2048; /* keys are used up */
    if (warp == 0) make_key_column<KEY_SIZE, 0>(to, stage, shared);
    if (warp == 1) make_key_column<KEY_SIZE, 1>(to, stage, shared);
    if (warp == 2) make_key_column<KEY_SIZE, 2>(to, stage, shared);
    if (warp == 3) make_key_column<KEY_SIZE, 3>(to, stage, shared);
}

/* All threads of a block come here together, and must meet again before the next. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_key_record(char *to, delta_key_shared<KEY_SIZE> *shared,
                                                       const delta_run &run, const delta_piece &piece, int head) {
    const int key_head = key_head_of(run, head);
    copy_rows<KEY_SIZE>(shared->key, run.key, key_head, piece, KEY_THREADS<KEY_SIZE>);
    copy_rows<KEY_SIZE>(shared->query, run.query, key_head, piece, KEY_THREADS<KEY_SIZE>);
    copies_commit();
    delta_channels channels;
    read_gates<KEY_SIZE>(channels, run, piece, head);
    if (threadIdx.x < CHUNK) {
        const bool inside = (int)threadIdx.x < piece.rows;
        shared->strength[threadIdx.x] = inside ? run.beta[(int64_t)(piece.token + threadIdx.x) * run.heads + head] : 0;
    }
    if (threadIdx.x < 4) shared->exact[threadIdx.x] = 0;
    copies_wait<0>();
    __syncthreads();
    norm_rows<KEY_SIZE>(shared, run.normalise);
    sum_gates<KEY_SIZE>(shared, channels);
    __syncthreads();
    decay_tiles<KEY_SIZE>(shared, to, channels, run);
    __syncthreads();
    make_lower<KEY_SIZE>(to, shared, run, piece, head);
}

} // namespace ln

#endif
