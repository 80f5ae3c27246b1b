/* Latent attention (MLA, DeepSeek-V2) decoded with absorbed projections, for compute capability 8.0 and newer: one key
 * of 576 elements a token, whose first 512 are the value, and many query heads that share it.
 *
 * A block has 16 or 64 rows (queries in shared memory, outputs in registers) and walks its share of tiles of 32 keys:
 *
 *     wait for tile t ; ask for tile t + 1 ; score, weigh, add_values (decode_latent_rows.cuh).
 *
 * Invariant: a stage is asked for again after the meeting that all warps reach with their products of it done. */
#include "kernel/cuda/decode_latent_rows.cuh"
#include "kernel/cuda/decode_table.h"

namespace ln {

namespace latent_rows {

struct whole_block {
    static __device__ __forceinline__ void meet() { __syncthreads(); }
};

/* ---- copies ---- */

/* The next tile to ask for, of a segment ahead of the products; its pages are known a tile before. */
struct cursor {
    decode_segment at;
    int unit;
    int page[2]; /* of its first and its last 16 tokens; less than 0: no row sees any of them */
};

static __device__ __forceinline__ void cursor_settle(const decode_run &run, cursor &next) {
    while (next.unit >= next.at.end && next.at.left > 0) {
        segment_next(run, next.at);
        next.unit = next.at.begin;
    }
    if (next.unit >= next.at.end) return;
    const decode_sight seen = seen_by_some(run, next.at.length);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int token = (next.at.first + next.unit) * KEYS + 16 * i;
        const bool inside = token + 16 > seen.low && token < seen.high;
        next.page[i] = !inside ? -1
                       : run.of.page_table
                           ? run.of.page_table[next.at.sequence * run.of.table_stride + (token >> run.page_shift)]
                           : next.at.sequence;
    }
}

template <class SHAPE>
static __device__ __forceinline__ void copy_tile(const decode_run &run, cursor &next, char *stage) {
    if (next.unit < next.at.end) {
        const decode_sight seen = seen_by_some(run, next.at.length);
        const int first = (next.at.first + next.unit) * KEYS, mask = (1 << run.page_shift) - 1;
        const char *from[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            from[i] = (const char *)run.of.key.data + max(next.page[i], 0) * run.of.key.page_stride +
                      (int64_t)((first + 16 * i) & mask) * run.of.key.token_stride;
#pragma unroll SHAPE::UNROLLED
        for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += SHAPE::THREADS) {
            const int row = i / PIECES, piece = i % PIECES, token = first + row;
            const bool inside = token >= seen.low && token < seen.high;
            const char *row_from = (row < 16 ? from[0] : from[1]) + (int64_t)(row % 16) * run.of.key.token_stride;
            copy_piece(piece_of<KEYS>(stage, row, piece),
                       inside ? row_from + piece * 16 : (const char *)run.of.key.data, inside);
        }
        next.unit++;
        cursor_settle(run, next);
    }
    copies_commit();
}

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::THREADS, 1)
    decode_latent_portable(const __grid_constant__ decode_run run) {
    const int warp = (int)threadIdx.x / 32;
    block<SHAPE, whole_block> one = {
        run, block_memory(), (int)threadIdx.x % 32, warp / SHAPE::ACROSS, warp % SHAPE::ACROSS, 0, {}, 0, 0};
    int share, stage = 0;
    decode_segment at = segment_first(run, &share);
    cursor next = {at, at.begin, {}};
    cursor_settle(run, next);
    copy_tile<SHAPE>(run, next, one.stage(0));
    while (at.begin < at.end) {
        one.open(at);
#pragma unroll 1
        for (int unit = at.begin; unit < at.end; unit++) {
            char *tile = one.stage(stage);
            stage ^= 1;
            copies_wait<0>();
            __syncthreads(); /* the tile is here, and the one before it no longer needed */
            copy_tile<SHAPE>(run, next, one.stage(stage));
            one.score(tile);
            __syncthreads();
            one.weigh(at, (at.first + unit) * KEYS);
            __syncthreads();
            one.add_values(tile);
        }
        one.close(at, share);
        if (at.left == 0) break;
        segment_next(run, at);
    }
    copies_wait<0>();
    decode_nothing(run, VALUE, (int)threadIdx.x, SHAPE::THREADS);
}

template <class SHAPE> static ln_cuda_code latent_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *run = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch(decode_latent_portable<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::THREADS),
                                     (int)SHAPE::shared_bytes, stream, *run);
    return code ? code : join_start<VALUE, SHAPE::ROWS>(*run, stream);
}

/* Of 16 rows: what every device has room for. */
template <int ROWS, int WARPS, bool HALF> static ln_cuda_decode_kernel latent_kernel(const char *name) {
    using shape = latent_shape<ROWS, WARPS, 2, 1, HALF>;
    static_assert(ROWS > 16 || shape::shared_bytes <= 101376, "too little shared memory");
    return {name,
            HALF ? LN_CUDA_PAGE_F16 : LN_CUDA_PAGE_BF16,
            KEY,
            VALUE,
            ROWS,
            shape::THREADS,
            shape::shared_bytes,
            1,
            1,
            UNIT_SHIFT,
            8,
            true,
            latent_start<shape>};
}

} // namespace latent_rows

} // namespace ln

using namespace ln::latent_rows;

const ln_cuda_decode_kernel ln_cuda_decode_latent_portable_kernels[] = {
    latent_kernel<16, 4, false>("portable latent 16"),
    latent_kernel<64, 8, false>("portable latent 64"),
    latent_kernel<16, 4, true>("portable latent f16 16"),
    latent_kernel<64, 8, true>("portable latent f16 64"),
};
const int ln_cuda_decode_latent_portable_count =
    sizeof ln_cuda_decode_latent_portable_kernels / sizeof ln_cuda_decode_latent_portable_kernels[0];
