/* The first kernel of the delta rules with one decay a head: records of all chunks and heads (delta_chunk.cuh), none
 * depending on another.
 *
 * A block has one chunk of one key head. Its warps share in the products of keys with keys and
 * queries, blocks of 16 x 16 from the tensor cores; then each makes the record of one value head after the other: puts
 * decays on the blocks and takes the inverse where they lie (delta_invert.cuh). */
#include "kernel/cuda/delta_chunk.cuh"
#include "kernel/cuda/delta_record.cuh"
#include "kernel/cuda/delta_table.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { CHUNK_THREADS = 128, CHUNK_WARPS = CHUNK_THREADS / 32 };

template <int KEY_SIZE> struct delta_chunk_shared {
    union {
        struct {
            char key[CHUNK * KEY_SIZE * 2], query[CHUNK * KEY_SIZE * 2];
        };
        struct { /* when their products are done */
            delta_products products;
            char scratch[CHUNK_WARPS][RECORD_SCRATCH];
        };
    };
    delta_tokens tokens[CHUNK_WARPS];
};

static __device__ __forceinline__ void add_tiles(float (&sum)[8], const uint32_t (&left)[4],
                                                 const uint32_t (&right)[4]) {
    const uint32_t first[2] = {right[0], right[2]}, second[2] = {right[1], right[3]};
    add_product(sum, left, first);
    add_product(sum + 4, left, second);
}

/* Warp w: the row w of blocks of keys, the row 3 - w of queries, so that all have as much to do. */
template <int KEY_SIZE>
static __device__ __forceinline__ void make_products(delta_chunk_shared<KEY_SIZE> *shared, bool normalise) {
    delta_products &products = shared->products;
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
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (j <= warp) put_lane(products.block[lower(warp, j)], key[j]);
        if (j <= other) put_lane(products.block[10 + lower(other, j)], query[j]);
        if (j == warp) take_norms(products.key_norm + 16 * warp, key[j], normalise);
    }
    take_norms(products.query_norm + 16 * warp, self, normalise);
}

/* T of one head, by one warp. */
static __device__ __noinline__ void make_transform(char *to, char *scratch, const delta_products &products,
                                                   const delta_tokens &tokens) {
    float block[10][8];
    uint32_t packed[10][4];
    decay_row<0>(block, scratch, products, tokens);
    decay_row<1>(block, scratch, products, tokens);
    decay_row<2>(block, scratch, products, tokens);
    decay_row<3>(block, scratch, products, tokens);
    __syncwarp();
    invert_diagonal<2>((float *)scratch);
    make_column<0>(packed, block, (const float *)scratch, tokens.strength);
    make_column<1>(packed, block, (const float *)scratch, tokens.strength);
    make_column<2>(packed, block, (const float *)scratch, tokens.strength);
    make_column<3>(packed, block, (const float *)scratch, tokens.strength);
    __syncwarp();
#pragma unroll
    for (int at = 0; at < 10; at++) stage_block(scratch, packed[at], at);
    send_lower(to, scratch);
}

template <int KEY_SIZE>
static __global__ void __launch_bounds__(CHUNK_THREADS, 4) delta_chunks(const __grid_constant__ delta_run run) {
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
    const int head = head_of(run, key_head, member);
    delta_pair pair = {};
    if (member < run.group) pair = read_tokens(run, piece, head);
    copies_wait<0>();
    __syncthreads();
    make_products<KEY_SIZE>(shared, run.normalise);
    __syncthreads();
    if (member >= run.group) return;
    delta_tokens &tokens = shared->tokens[warp];
    char *to = run.records + (piece_index * run.heads + head) * record::bytes, *scratch = shared->scratch[warp];
    sum_tokens(pair);
    put_tokens(tokens, pair, shared->products);
    store_factors((float *)(to + record::factors), run, tokens, shared->products);
#pragma unroll 1
    for (int row = 0; row < 4; row++)
        make_scores(to + record::scores, scratch, shared->products, tokens, run.scale, row);
    __syncwarp();
    make_transform(to + record::transform, scratch, shared->products, tokens);
}

/* ---- start ---- */

template <int KEY_SIZE> static ln_cuda_code start_chunks(const delta_run &run, void *stream) {
    const int64_t parts = (run.group + CHUNK_WARPS - 1) / CHUNK_WARPS, blocks = run.piece_count * run.key_heads * parts;
    return launch(delta_chunks<KEY_SIZE>, dim3((unsigned)blocks), dim3(CHUNK_THREADS),
                  (int)sizeof(delta_chunk_shared<KEY_SIZE>), stream, run);
}

} // namespace ln

ln_cuda_code ln_cuda_delta_chunks(const ln::delta_run &run, void *stream) {
    return run.key_size == 64 ? ln::start_chunks<64>(run, stream) : ln::start_chunks<128>(run, stream);
}
