/* The copies of decode attention for compute capability 8.0 and newer: each warp has a ring of stages of its own, which
 * its lanes fill by asynchronous copies, far ahead and across the ends of segments. It never waits for another warp but
 * where a segment ends.
 *
 * Plain rows are put in the order in which lanes read them (decode_warp.cuh); both the 32 pieces that a copy reads and
 * the eight that are stored at once lie together. */
#ifndef LN_KERNEL_CUDA_DECODE_PORTABLE_CUH
#define LN_KERNEL_CUDA_DECODE_PORTABLE_CUH

#include "kernel/cuda/decode_warp.cuh"

namespace ln {

/* 16 tokens of plain rows. Piece p of lane 4 g + c, of keys: 8 elements of chunk p / 2 of 32, of token g + 8 (p % 2);
 * of values: 8 elements of chunk p / 4 of 64, of token 2 c + p % 2 + 8 (p / 2 % 2), the last chunk of 32 in halves.
 * Tokens outside low .. high - 1 become zeros. */
template <class SHAPE>
static __device__ __forceinline__ void copy_plain(char *stage, const char *key, const char *value,
                                                  const ln_cuda_decode_tensors &of, int low, int high) {
    constexpr int chunks = SHAPE::SIZE / 32;
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 2 * chunks; i++) {
        const int pair = (4 * i + lane / 8) / chunks, j = (4 * i + lane / 8) % chunks, token = 2 * pair + lane / 4 % 2;
        const bool inside = token >= low && token < high;
        copy_piece(stage + (2 * j + token / 8) * 512 + token % 8 * 64 + c * 16,
                   key + (inside ? token : low) * of.key.token_stride + j * 64 + c * 16, inside);
    }
    char *to = stage + SHAPE::tile + lane * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int token = 2 * c + i % 2 + 8 * (i / 2);
        const bool inside = token >= low && token < high;
        const char *from = value + (inside ? token : low) * of.value.token_stride;
#pragma unroll
        for (int j = 0; j < SHAPE::SIZE / 64; j++) copy_piece(to + (4 * j + i) * 512, from + j * 128 + g * 16, inside);
        if constexpr (SHAPE::SIZE % 64 != 0)
            copy_half_piece(stage + SHAPE::tile + SHAPE::SIZE / 64 * 2048 + i * 256 + lane * 8,
                            from + SHAPE::SIZE / 64 * 128 + g * 8, inside);
    }
}
/* A tile of codes as it lies. */
template <class SHAPE> static __device__ __forceinline__ void copy_codes(char *to, const char *from) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < SHAPE::tile / 16; i += 32)
        if (i + 32 <= SHAPE::tile / 16 || i + lane < SHAPE::tile / 16)
            copy_piece(to + (i + lane) * 16, from + (i + lane) * 16, true);
}

/* Starts the copy of the cursor's unit, if there is one, and moves it to the warp's next. */
template <class SHAPE>
static __device__ __forceinline__ void copy_unit(const decode_run &run, decode_cursor &next, char *stage) {
    if (cursor_valid(next)) {
        const ln_cuda_decode_tensors &of = run.of;
        const int token = (next.at.first + next.unit) * LN_CUDA_TILE, head = next.at.head;
        const int64_t inside = token & ((1 << run.page_shift) - 1);
        const char *key = (const char *)of.key.data + next.page * of.key.page_stride + head * of.key.head_stride,
                   *value =
                       (const char *)of.value.data + next.page * of.value.page_stride + head * of.value.head_stride;
        if constexpr (SHAPE::codes::plain) {
            const decode_sight seen = seen_by_some(run, next.at.length);
            copy_plain<SHAPE>(stage, key + inside * of.key.token_stride, value + inside * of.value.token_stride, of,
                              max(seen.low - token, 0), min(seen.high - token, LN_CUDA_TILE));
        } else {
            copy_codes<SHAPE>(stage, key + inside / LN_CUDA_TILE * SHAPE::tile);
            copy_codes<SHAPE>(stage + SHAPE::tile, value + inside / LN_CUDA_TILE * SHAPE::tile);
        }
        next.unit += SHAPE::WARPS;
        cursor_settle(run, next);
    }
    copies_commit();
}

template <class SHAPE> struct copied_ring {
    char *stages;
    int stage;
    decode_cursor next;

    __device__ __forceinline__ void open(const decode_run &run, const decode_segment &first) {
        next = cursor_open(run, first, (int)threadIdx.x / 32);
#pragma unroll 1
        for (stage = 0; stage < SHAPE::STAGES; stage++) copy_unit<SHAPE>(run, next, stages + stage * SHAPE::stage);
        stage = 0;
    }
    __device__ __forceinline__ char *await(const decode_run &) {
        copies_wait<SHAPE::STAGES - 1>();
        __syncwarp();
        return stages + stage * SHAPE::stage;
    }
    __device__ __forceinline__ void leave(const decode_run &run, bool) {
        __syncwarp();
        copy_unit<SHAPE>(run, next, stages + stage * SHAPE::stage);
        if (++stage == SHAPE::STAGES) stage = 0;
    }
    static __device__ __forceinline__ void meet() {
        __syncthreads();
    }
};

template <class SHAPE>
static __global__ void __launch_bounds__(SHAPE::threads, SHAPE::BLOCKS)
    decode_portable(const __grid_constant__ decode_run run) {
    char *memory = block_memory();
    let_next_start();
    wait_for_previous();
    copied_ring<SHAPE> ring = {memory + threadIdx.x / 32 * SHAPE::STAGES * SHAPE::stage, 0, {}};
    decode_block<unit_work<SHAPE>>(run, ring, memory + SHAPE::ring_bytes);
    copies_wait<0>();
}

template <class SHAPE> static ln_cuda_code decode_start(void *const *arguments, int blocks, void *stream) {
    const decode_run *of = (const decode_run *)arguments[0];
    const ln_cuda_code code = launch_early(decode_portable<SHAPE>, dim3((unsigned)blocks), dim3(SHAPE::threads),
                                           SHAPE::shared_bytes, stream, *of);
    return code || !of->joined ? code : join_start<SHAPE::SIZE, SHAPE::rows>(*of, stream);
}

template <class SHAPE, int MAJOR> static ln_cuda_decode_kernel lane_kernel(const char *name) {
    return {name,
            SHAPE::codes::format,
            SHAPE::SIZE,
            SHAPE::SIZE,
            SHAPE::rows,
            SHAPE::threads,
            SHAPE::shared_bytes,
            SHAPE::BLOCKS,
            false,
            4,
            MAJOR,
            false,
            decode_start<SHAPE>};
}

/* What fits into the 99 KiB that a block has on the smaller devices. */
template <int FORMAT, int SIZE, int COLUMNS> struct portable_choice {
    static constexpr int warps = SIZE * COLUMNS > 256 ? 2 : 4;
    template <int STAGES> using of = decode_shape<FORMAT, SIZE, COLUMNS, warps, STAGES, LANE_ORDER, 1>;
    static constexpr int room = 101376;
    static constexpr int stages = of<4>::shared_bytes <= room   ? 4
                                  : of<3>::shared_bytes <= room ? 3
                                  : of<2>::shared_bytes <= room ? 2
                                                                : 1;
    using shape = of<stages>;
    static_assert(shape::shared_bytes <= room, "too little shared memory");
};

template <int FORMAT, int SIZE, int COLUMNS> static ln_cuda_decode_kernel portable_kernel(const char *name) {
    return lane_kernel<typename portable_choice<FORMAT, SIZE, COLUMNS>::shape, 8>(name);
}

} // namespace ln

#endif
