/* The copies of decode attention for compute capability 9.0: each warp has a ring of stages of its own, and its first
 * lane has the copy engine fill them, far ahead and across the ends of segments: plain rows as panels of 64 columns of
 * a unit's 16 tokens, codes as the tile that they are.
 *
 * Invariant: a stage's barrier completes when all bytes of its unit have come; it is filled again when every lane of
 * the warp has read it. */
#ifndef LN_KERNEL_CUDA_DECODE_BULK_CUH
#define LN_KERNEL_CUDA_DECODE_BULK_CUH

#include "kernel/cuda/decode_warp.cuh"
#include "kernel/cuda/hopper.cuh"

namespace ln {

template <class SHAPE> struct bulk_ring {
    const CUtensorMap *key_map, *value_map;
    char *stages;
    uint64_t *full; /* [STAGES] */
    int stage, phase;

    /* Starts the copy of the cursor's unit, if there is one, and moves it to the warp's next. */
    __device__ __forceinline__ void fill(const decode_run &run, decode_cursor &next) {
        if (next.unit >= next.at.end) return;
        if (threadIdx.x % 32 == 0) {
            const int token = (next.at.first + next.unit) * LN_CUDA_TILE, inside = token & ((1 << run.page_shift) - 1);
            char *to = stages + stage * SHAPE::stage;
            barrier_expect(&full[stage], SHAPE::stage);
            if constexpr (SHAPE::codes::plain && SHAPE::ORDER == ROW_ORDER) {
                const ln_cuda_page_part &key = run.of.key, &value = run.of.value;
                copy_row(to,
                         (const char *)key.data + next.page * key.page_stride + next.at.head * key.head_stride +
                             inside * key.token_stride,
                         &full[stage], SHAPE::tile);
                copy_row(to + SHAPE::tile,
                         (const char *)value.data + next.page * value.page_stride + next.at.head * value.head_stride +
                             inside * value.token_stride,
                         &full[stage], SHAPE::tile);
            } else if constexpr (SHAPE::codes::plain) {
                const int key = next.page * run.key_rows + inside, value = next.page * run.value_rows + inside;
#pragma unroll
                for (int column = 0; column < SHAPE::SIZE; column += 64)
                    copy_box_once(to + column * 32, key_map, &full[stage], column, next.at.head, key);
#pragma unroll
                for (int column = 0; column < SHAPE::SIZE; column += 64)
                    copy_box_once(to + SHAPE::tile + column * 32, value_map, &full[stage], column, next.at.head, value);
            } else {
                const ln_cuda_page_part &key = run.of.key, &value = run.of.value;
                const int64_t at = (int64_t)(inside / LN_CUDA_TILE) * SHAPE::tile;
                copy_row(to, (const char *)key.data + next.page * key.page_stride + next.at.head * key.head_stride + at,
                         &full[stage], SHAPE::tile);
                copy_row(to + SHAPE::tile,
                         (const char *)value.data + next.page * value.page_stride + next.at.head * value.head_stride +
                             at,
                         &full[stage], SHAPE::tile);
            }
        }
        next.unit += SHAPE::WARPS;
        cursor_settle<SHAPE>(run, next);
    }
    __device__ __forceinline__ void open(const decode_run &run, decode_cursor &next) {
#pragma unroll 1
        for (stage = 0; stage < SHAPE::STAGES; stage++) fill(run, next);
        stage = phase = 0;
    }
    __device__ __forceinline__ char *await() {
        barrier_wait(&full[stage], phase);
        return stages + stage * SHAPE::stage;
    }
    __device__ __forceinline__ void refill(const decode_run &run, decode_cursor &next) {
        if constexpr (SHAPE::codes::plain) stores_to_async(); /* values that were cleared */
        __syncwarp();
        fill(run, next);
        if (++stage == SHAPE::STAGES) stage = 0, phase ^= 1;
    }
};

template <class SHAPE> struct bulk_shape {
    static constexpr int barriers_at = SHAPE::shared_bytes,
                         shared_bytes = barriers_at + SHAPE::WARPS * SHAPE::STAGES * 8;
};

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::BLOCKS)
    decode_bulk(const __grid_constant__ CUtensorMap key_map, const __grid_constant__ CUtensorMap value_map,
                const __grid_constant__ decode_run run) {
    char *memory = block_memory();
    const int warp = threadIdx.x / 32;
    uint64_t *full = (uint64_t *)(memory + bulk_shape<SHAPE>::barriers_at) + warp * SHAPE::STAGES;
    if (threadIdx.x % 32 == 0) {
        for (int i = 0; i < SHAPE::STAGES; i++) barrier_open(&full[i], 1);
        barriers_opened();
    }
    __syncwarp();
    bulk_ring<SHAPE> ring = {&key_map, &value_map, memory + warp * SHAPE::STAGES * SHAPE::stage, full, 0, 0};
    decode_block<SHAPE>(run, ring, memory + SHAPE::ring_bytes);
}

template <class SHAPE> static ln_cuda_code bulk_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *of = (const decode_run *)arguments[0];
    const ln_cuda_code code =
        launch(decode_bulk<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::threads), (int)bulk_shape<SHAPE>::shared_bytes,
               stream, *(const CUtensorMap *)arguments[1], *(const CUtensorMap *)arguments[2], *of);
    return code || of->tickets ? code : join_start<SHAPE::SIZE, SHAPE::rows>(*of, stream);
}

template <int FORMAT, int SIZE, int COLUMNS, int WARPS, int STAGES, int BLOCKS, int WAVES = 1, int ORDER = PANEL_ORDER>
static ln_cuda_decode_kernel bulk_kernel(const char *name) {
    using shape = decode_shape<FORMAT, SIZE, COLUMNS, WARPS, STAGES, ORDER, BLOCKS>;
    return {name,
            (ln_cuda_page_format)FORMAT,
            SIZE,
            SIZE,
            shape::rows,
            shape::threads,
            bulk_shape<shape>::shared_bytes,
            BLOCKS,
            WAVES,
            4,
            9,
            false,
            bulk_start<shape>};
}

} // namespace ln

#endif
