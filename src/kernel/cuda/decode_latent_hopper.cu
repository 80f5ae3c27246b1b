/* Latent attention of up to 16 rows for compute capability 9.0, where reading keys is all that takes time: products of
 * a warp group (decode_latent.cuh) always have 64. Tiles of 32 keys come by the copy engine, which a warp of its own
 * asks for them (decode_latent_copy.cuh); four other warps do score, weigh and add_values (decode_latent_rows.cuh), and
 * two blocks of a multiprocessor fill each other's waits.
 *
 * Invariant: a stage is refilled when all warps have left it, after their products with it. Scores have two places, so
 * that a warp may begin the next tile while others still have the last one's values. */
#include "kernel/cuda/decode_latent_copy.cuh"
#include "kernel/cuda/decode_latent_rows.cuh"
#include "kernel/cuda/decode_table.h"
#include "kernel/cuda/hopper.cuh"

namespace ln {

namespace latent_rows {

enum { MEETING = 1 };

template <class SHAPE> struct workers {
    static __device__ __forceinline__ void meet() { named_wait(MEETING, SHAPE::THREADS); }
};

template <class SHAPE> struct stages { uint64_t full[SHAPE::STAGES], empty[SHAPE::STAGES]; };

/* Rows of a tile that no row of queries sees hold anything. */
template <class SHAPE>
static __device__ __forceinline__ void clear_unseen(char *tile, const decode_run &run, const decode_segment &at,
                                                    int key) {
    const decode_sight seen = seen_by_some(run, at.length);
    if (key >= seen.low && key + KEYS <= seen.high) return;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += SHAPE::THREADS)
        if (key + i / PIECES < seen.low || key + i / PIECES >= seen.high)
            *(uint4 *)piece_of<KEYS>(tile, i / PIECES, i % PIECES) = {0, 0, 0, 0};
    workers<SHAPE>::meet();
}

template <class SHAPE>
static __device__ __forceinline__ void work_all(const decode_run &run, decode_segment at, int share, char *memory,
                                                stages<SHAPE> *shared) {
    const int warp = (int)threadIdx.x / 32;
    block<SHAPE, workers<SHAPE>> one = {
        run, memory, (int)threadIdx.x % 32, warp / SHAPE::ACROSS, warp % SHAPE::ACROSS, 0, {}, 0, 0};
    int stage = 0, phase = 0;
    while (at.begin < at.end) {
        one.open(at);
        workers<SHAPE>::meet();
#pragma unroll 1
        for (int unit = at.begin; unit < at.end; unit++) {
            char *tile = one.stage(stage);
            barrier_wait(&shared->full[stage], phase);
            clear_unseen<SHAPE>(tile, run, at, (at.first + unit) * KEYS);
            one.score(tile);
            workers<SHAPE>::meet();
            one.weigh(at, (at.first + unit) * KEYS);
            workers<SHAPE>::meet();
            one.add_values(tile);
            one.parity ^= 1;
            stores_to_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(&shared->empty[stage]);
            if (++stage == SHAPE::STAGES) stage = 0, phase ^= 1;
        }
        one.close(at, share);
        if (at.left == 0) break;
        segment_next(run, at);
    }
    decode_nothing(run, VALUE, (int)threadIdx.x, SHAPE::THREADS);
}

template <class SHAPE, int BLOCKS>
static __global__ void __launch_bounds__(SHAPE::THREADS + 32, BLOCKS)
    decode_latent_rows(const __grid_constant__ CUtensorMap map, const __grid_constant__ decode_run run) {
    char *memory = block_memory();
    stages<SHAPE> *shared = (stages<SHAPE> *)(memory + SHAPE::shared_bytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SHAPE::STAGES; i++) {
            barrier_open(&shared->full[i], 1);
            barrier_open(&shared->empty[i], SHAPE::WARPS);
        }
        barriers_opened();
    }
    __syncthreads();
    int share;
    const decode_segment at = segment_first(run, &share);
    if (threadIdx.x >= SHAPE::THREADS) {
        copy_latent<KEYS, SHAPE::STAGES>(&map, run, at, memory + SHAPE::query_bytes, shared->full, shared->empty);
    } else {
        work_all<SHAPE>(run, at, share, memory, shared);
    }
}

template <class SHAPE> static __host__ __device__ constexpr int bytes_of() {
    return SHAPE::shared_bytes + (int)sizeof(stages<SHAPE>);
}

template <class SHAPE, int BLOCKS> static ln_cuda_code latent_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *run = (const decode_run *)arguments[0];
    const ln_cuda_code code =
        launch(decode_latent_rows<SHAPE, BLOCKS>, dim3((unsigned)blocks), dim3(SHAPE::THREADS + 32), bytes_of<SHAPE>(),
               stream, *(const CUtensorMap *)arguments[1], *run);
    return code ? code : join_start<VALUE, SHAPE::ROWS>(*run, stream);
}

template <int ROWS, int WARPS, int STAGES, int BLOCKS, bool HALF>
static ln_cuda_decode_kernel latent_kernel(const char *name) {
    using shape = latent_shape<ROWS, WARPS, STAGES, 2, HALF>;
    return {name,
            HALF ? LN_CUDA_PAGE_F16 : LN_CUDA_PAGE_BF16,
            KEY,
            VALUE,
            ROWS,
            shape::THREADS + 32,
            bytes_of<shape>(),
            BLOCKS,
            1,
            UNIT_SHIFT,
            9,
            true,
            latent_start<shape, BLOCKS>};
}

} // namespace latent_rows

} // namespace ln

using namespace ln::latent_rows;

const ln_cuda_decode_kernel ln_cuda_decode_latent_hopper_kernels[] = {
    latent_kernel<16, 4, 2, 2, false>("latent 16"),
    latent_kernel<16, 4, 2, 2, true>("latent f16 16"),
};
const int ln_cuda_decode_latent_hopper_count =
    sizeof ln_cuda_decode_latent_hopper_kernels / sizeof ln_cuda_decode_latent_hopper_kernels[0];
