/* The instructions of src/kernel/cuda/hopper.cuh, emulated. */
#ifndef LN_KERNEL_CUDA_HOPPER_CUH
#define LN_KERNEL_CUDA_HOPPER_CUH

#include <cuda.h>

#include "kernel/cuda/instructions.cuh"

namespace ln {

/* ---- barriers ---- */

static inline void barrier_open(uint64_t *barrier, int arrivals) {
    ln_emulator::barrier_open(barrier, arrivals);
}
static inline void barriers_opened() {
    ln_emulator::stores_to_async();
}
static inline void barrier_expect(uint64_t *barrier, int bytes) {
    ln_emulator::barrier_arrive(barrier, 1, bytes);
}
static inline void barrier_arrive(uint64_t *barrier) {
    ln_emulator::barrier_arrive(barrier, 1, 0);
}
static inline void barrier_wait(uint64_t *barrier, int phase) {
    ln_emulator::barrier_wait(barrier, phase);
}
static inline void named_wait(int barrier, int threads) {
    ln_emulator::named_barrier(barrier, threads, true);
}
static inline void named_arrive(int barrier, int threads) {
    ln_emulator::named_barrier(barrier, threads, false);
}
static inline void stores_to_async() {
    ln_emulator::stores_to_async();
}

template <int REGISTERS> static inline void registers_more() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS <= 256, "a multiple of 8");
}
template <int REGISTERS> static inline void registers_less() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24, "a multiple of 8");
}

/* ---- the copy engine ---- */

static inline void map_prefetch(const CUtensorMap *) {}
static inline void copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int column, int head, int token) {
    const int coordinates[3] = {column, head, token};
    ln_emulator::engine_load(to, map, barrier, coordinates, 3);
}

static inline void copy_box_once(void *to, const CUtensorMap *map, uint64_t *barrier, int column, int head, int token) {
    copy_box(to, map, barrier, column, head, token);
}
static inline void copy_row(void *to, const void *from, uint64_t *barrier, int bytes) {
    ln_emulator::engine_load_bytes(to, from, bytes, barrier);
}

/* ---- clusters ---- */

static inline int cluster_rank() {
    return ln_emulator::cluster_rank();
}
static inline void cluster_meet() {
    ln_emulator::cluster_meet();
}
static inline void barrier_arrive_at(uint64_t *barrier, int rank) {
    ln_emulator::barrier_arrive_at(barrier, rank);
}
static inline void copy_box_both(void *to, const CUtensorMap *map, uint64_t *barrier, int column, int head, int token) {
    const int coordinates[3] = {column, head, token};
    ln_emulator::engine_load(to, map, barrier, coordinates, 3, 3);
}
static inline void copy_row_both(void *to, const void *from, uint64_t *barrier, int bytes) {
    ln_emulator::engine_load_bytes(to, from, bytes, barrier, 3);
}

/* ---- sums that several blocks add to in a fixed order ---- */

static inline void add_four(float *to, float4 more) {
    if ((uintptr_t)to % 16) ln_emulator::fail("add_four at %p", (void *)to);
    to[0] += more.x, to[1] += more.y, to[2] += more.z, to[3] += more.w;
}
static inline void engine_add(float *to, const void *from, int bytes, bool add) {
    ln_emulator::engine_store_bytes(to, from, bytes, add ? ln_emulator::ADD_FLOAT32 : ln_emulator::STORE);
    ln_emulator::engine_commit();
}
static inline void engine_wait_read() {
    ln_emulator::engine_wait(0, true);
}
static inline void engine_wait() {
    ln_emulator::engine_wait(0, false);
}
static inline void turn_await(const int *counter, int value) {
    while (*(const volatile int *)counter != value) ln_emulator::spin();
}
static inline void turn_set(int *counter, int value) {
    *(volatile int *)counter = value;
    ln_emulator::maybe_yield();
}

/* ---- products of a warp group ---- */

template <int COLUMNS> struct panel { static constexpr int columns = COLUMNS % 64 == 0 ? 64 : 32; };
template <int COLUMNS, int ROWS> static inline uint64_t tile_descriptor(const void *tile) {
    constexpr int width = panel<COLUMNS>::columns * 2;
    const uint64_t swizzle = width == 128 ? 1 : 2, group = width * 8 / 16, next = width * ROWS / 16;
    return swizzle << 62 | group << 32 | next << 16 | (uint64_t)((shared_address(tile) & 0x3ffff) >> 4);
}

static inline void products_open() {
    ln_emulator::products_open();
}
static inline void products_commit() {
    ln_emulator::products_commit();
}
template <int LEFT> static inline void products_wait() {
    ln_emulator::products_wait(LEFT);
}
template <int COLUMNS, int ROWS>
static inline void load_left(uint32_t (&left)[COLUMNS / 4], const void *tile, int row) {
    constexpr int width = panel<COLUMNS>::columns * 2;
    row += threadIdx.x % 16;
    const char *from = (const char *)tile + row * width;
    const int piece = threadIdx.x % 32 / 16, swizzle = width == 128 ? row % 8 : row / 2 % 4;
    for (int k = 0; k < COLUMNS / 16; k++)
        ln_emulator::load_matrices(
            left + 4 * k, 4, from + k * 32 / width * ROWS * width + ((k * 2 % (width / 16) + piece) ^ swizzle) * 16,
            false);
}

template <int N> static inline void hold(float (&)[N]) {}
template <int N> static inline void hold(uint32_t (&)[N]) {}

template <int N, bool HALF = false> struct product {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "the instruction has no such width");
    static constexpr ln_emulator::element_kind kind = HALF ? ln_emulator::F16 : ln_emulator::BF16;
    template <bool ADD> static inline void shared(float (&s)[N / 2], uint64_t left, uint64_t right) {
        ln_emulator::products_start({s, NULL, left, right, N, kind, ADD, false, false});
    }
    template <bool ADD, bool LEFT_TURNED, bool RIGHT_TURNED>
    static inline void turned(float (&s)[N / 2], uint64_t left, uint64_t right) {
        ln_emulator::products_start({s, NULL, left, right, N, kind, ADD, LEFT_TURNED, RIGHT_TURNED});
    }
    template <bool LEFT_TURNED, bool RIGHT_TURNED>
    static inline void adding(float (&s)[N / 2], uint64_t left, uint64_t right, bool add) {
        ln_emulator::products_start({s, NULL, left, right, N, kind, add, LEFT_TURNED, RIGHT_TURNED});
    }
    template <bool ADD, bool TURNED>
    static inline void registers(float (&s)[N / 2], const uint32_t *left, uint64_t right) {
        ln_emulator::products_start({s, left, 0, right, N, kind, ADD, false, TURNED});
    }
};

} // namespace ln

#endif
