/* The copies of decode attention for compute capability 9.0. A last warp has the copy engine fill the rings of the
 * others, far ahead and across the ends of segments: its lane w brings warp w its units, plain rows as they lie in
 * memory, codes as the tile that they are. All lanes go on together, so that what is read at a time lies together.
 *
 * Invariant: a stage's `full` completes when all bytes of its unit have come, `empty` when the warp has read it. */
#ifndef LN_KERNEL_CUDA_DECODE_BULK_CUH
#define LN_KERNEL_CUDA_DECODE_BULK_CUH

#include "kernel/cuda/decode_warp.cuh"
#include "kernel/cuda/hopper.cuh"

namespace ln {

template <class SHAPE> struct bulk_shape {
    static constexpr int threads = SHAPE::threads + 32, barriers = SHAPE::WARPS * SHAPE::STAGES,
                         barriers_at = SHAPE::shared_bytes, shared_bytes = barriers_at + 2 * barriers * 8;
};

/* ---- the warp that copies ---- */

struct bulk_maps {
    const CUtensorMap *key, *value;
};

template <class SHAPE>
static __device__ __forceinline__ void bulk_copy(const bulk_maps &maps, const decode_run &run,
                                                 const decode_cursor &next, char *to, uint64_t *full) {
    const int token = (next.at.first + next.unit) * LN_CUDA_TILE, inside = token & ((1 << run.page_shift) - 1);
    const int head = next.at.head;
    barrier_expect(full, SHAPE::stage);
    if constexpr (SHAPE::codes::plain) {
        copy_box_once(to, maps.key, full, 0, head * run.key.lines,
                      next.page * run.key.page + head * run.key.head + inside);
        copy_box_once(to + SHAPE::tile, maps.value, full, 0, head * run.value.lines,
                      next.page * run.value.page + head * run.value.head + inside);
    } else {
        const ln_cuda_page_part &key = run.of.key, &value = run.of.value;
        const int64_t at = (int64_t)(inside / LN_CUDA_TILE) * SHAPE::tile;
        copy_row(to, (const char *)key.data + next.page * key.page_stride + head * key.head_stride + at, full,
                 SHAPE::tile);
        copy_row(to + SHAPE::tile,
                 (const char *)value.data + next.page * value.page_stride + head * value.head_stride + at, full,
                 SHAPE::tile);
    }
}

template <class SHAPE>
static __device__ __forceinline__ void bulk_produce(const bulk_maps &maps, const decode_run &run, char *stages,
                                                    uint64_t *full, uint64_t *empty) {
    const int lane = threadIdx.x % 32;
    int share, stage = lane * SHAPE::STAGES, phase = 1; /* the first wait for a free stage passes at once */
    const decode_segment first = segment_first(run, &share);
    if (lane >= SHAPE::WARPS) return;
    decode_cursor next = cursor_open(run, first, lane);
#pragma unroll 1
    while (cursor_valid(next)) {
        barrier_wait(&empty[stage], phase);
        bulk_copy<SHAPE>(maps, run, next, stages + stage * SHAPE::stage, &full[stage]);
        if (++stage == (lane + 1) * SHAPE::STAGES) stage = lane * SHAPE::STAGES, phase ^= 1;
        next.unit += SHAPE::WARPS;
        cursor_settle(run, next);
    }
}

/* ---- the others ---- */

template <class SHAPE> struct bulk_ring {
    char *stages;
    uint64_t *full, *empty; /* [STAGES] */
    int stage, phase;

    __device__ __forceinline__ void open(const decode_run &, const decode_segment &) {}
    __device__ __forceinline__ char *await(const decode_run &) {
        barrier_wait(&full[stage], phase);
        return stages + stage * SHAPE::stage;
    }
    __device__ __forceinline__ void leave(const decode_run &, bool written) {
        if (written) stores_to_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(&empty[stage]);
        if (++stage == SHAPE::STAGES) stage = 0, phase ^= 1;
    }
    static __device__ __forceinline__ void meet() { named_wait(1, SHAPE::threads); }
};

template <class SHAPE>
static __global__ void __launch_bounds__(bulk_shape<SHAPE>::threads, SHAPE::BLOCKS)
    decode_bulk(const __grid_constant__ CUtensorMap key_map, const __grid_constant__ CUtensorMap value_map,
                const __grid_constant__ decode_run run) {
    char *memory = block_memory();
    const int warp = threadIdx.x / 32;
    uint64_t *full = (uint64_t *)(memory + bulk_shape<SHAPE>::barriers_at), *empty = full + bulk_shape<SHAPE>::barriers;
    if ((int)threadIdx.x < 2 * bulk_shape<SHAPE>::barriers) barrier_open(&full[threadIdx.x], 1);
    barriers_opened();
    if constexpr (SHAPE::codes::plain)
        if (warp == SHAPE::WARPS && threadIdx.x % 32 < 2) map_prefetch(threadIdx.x % 32 ? &value_map : &key_map);
    let_next_start();
    __syncthreads();
    wait_for_previous();
    if (warp == SHAPE::WARPS) {
        bulk_produce<SHAPE>({&key_map, &value_map}, run, memory, full, empty);
        return;
    }
    const int first = warp * SHAPE::STAGES;
    bulk_ring<SHAPE> ring = {memory + first * SHAPE::stage, full + first, empty + first, 0, 0};
    decode_block<unit_work<SHAPE>>(run, ring, memory + SHAPE::ring_bytes);
}

template <class SHAPE> static ln_cuda_code bulk_start(void *const *arguments, int blocks, void *stream) {
    static_assert(2 * bulk_shape<SHAPE>::barriers <= bulk_shape<SHAPE>::threads, "a barrier a thread");
    const decode_run *of = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch_early(decode_bulk<SHAPE>, dim3((unsigned)blocks), dim3(bulk_shape<SHAPE>::threads),
                                           (int)bulk_shape<SHAPE>::shared_bytes, stream,
                                           *(const CUtensorMap *)arguments[1], *(const CUtensorMap *)arguments[2], *of);
    return code || !of->joined ? code : join_start<SHAPE::SIZE, SHAPE::rows>(*of, stream);
}

template <int FORMAT, int SIZE, int COLUMNS, int WARPS, int STAGES, int BLOCKS>
static ln_cuda_decode_kernel bulk_kernel(const char *name) {
    using shape = decode_shape<FORMAT, SIZE, COLUMNS, WARPS, STAGES, LINE_ORDER, BLOCKS>;
    return {name,
            (ln_cuda_page_format)FORMAT,
            SIZE,
            SIZE,
            shape::rows,
            bulk_shape<shape>::threads,
            bulk_shape<shape>::shared_bytes,
            BLOCKS,
            false,
            4,
            9,
            false,
            bulk_start<shape>};
}

} // namespace ln

#endif
