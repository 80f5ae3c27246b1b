/* Products of a warp group for the delta rule's backward: left operands in registers, right ones in panels that the
 * tensor cores read as they lie. Starting one returns at once; products end in the order in which they started. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_HOPPER_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_HOPPER_CUH

#include "kernel/cuda/delta_backward.cuh"
#include "kernel/cuda/hopper.cuh"

namespace ln {

/* A descriptor of what lies so many 16 bytes later in the same tile: in 32 bits. */
static __device__ __forceinline__ uint64_t later(uint64_t tile, int by) {
    return (tile & ~0xffffffffull) | (uint32_t)((uint32_t)tile + by);
}

struct group_products {
    template <int N, int STEPS, bool ADD>
    static __device__ __forceinline__ void by_rows(float (&sums)[N / 2], uint32_t (&left)[4 * STEPS],
                                                   const char *right) {
        const uint64_t tile = tile_descriptor<64, 64>(right);
        hold(sums);
        hold(left);
        products_open();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            const uint64_t step = later(tile, k / 4 * (PANEL / 16) + k % 4 * 2);
            if (ADD || k > 0)
                product<N>::template registers<true, false>(sums, left + 4 * k, step);
            else
                product<N>::template registers<false, false>(sums, left + 4 * k, step);
        }
        products_commit();
        hold(sums);
    }
    template <int N, int STEPS, bool ADD, bool PENDING = false>
    static __device__ __forceinline__ void by_columns(float (&sums)[N / 2], uint32_t (&left)[4 * STEPS],
                                                      const char *right) {
        const uint64_t tile = tile_descriptor<N, 64>(right);
        if (!PENDING) hold(sums);
        hold(left);
        products_open();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            const uint64_t step = later(tile, k * (16 * 128 / 16));
            if (ADD || k > 0)
                product<N>::template registers<true, true>(sums, left + 4 * k, step);
            else
                product<N>::template registers<false, true>(sums, left + 4 * k, step);
        }
        products_commit();
        hold(sums);
    }
    /* Copies of what lies in a row are started by one thread and end at a barrier. */
    template <int THREADS> static __device__ __forceinline__ void open(uint64_t *full, int stages) {
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < stages; stage++) barrier_open(full + stage, 1);
            barriers_opened();
        }
        block_wait(THREADS);
    }
    static __device__ __forceinline__ void expect(uint64_t *full, int bytes, int thread) {
        if (thread == 0) barrier_expect(full, bytes);
    }
    template <int THREADS>
    static __device__ __forceinline__ void copy(char *to, const void *from, int bytes, uint64_t *full, int thread) {
        if (thread == 0) copy_row(to, from, full, bytes);
    }
    static __device__ __forceinline__ void await(uint64_t *full, int phase) {
        barrier_wait(full, phase);
    }

    /* The same with left operands from the first 64 rows of a tile. */
    template <int N, int STEPS>
    static __device__ __forceinline__ void tiles_by_rows(float (&sums)[N / 2], bool add, const char *left,
                                                         const char *right) {
        const uint64_t one = tile_descriptor<64, 64>(left), two = tile_descriptor<64, 64>(right);
        hold(sums);
        products_open();
        product<N>::template adding<false, false>(sums, one, two, add);
#pragma unroll
        for (int k = 1; k < STEPS; k++) {
            const int step = k / 4 * (PANEL / 16) + k % 4 * 2;
            product<N>::template shared<true>(sums, later(one, step), later(two, step));
        }
        products_commit();
        hold(sums);
    }
    template <int N, bool PENDING = false>
    static __device__ __forceinline__ void tiles_by_columns(float (&sums)[N / 2], bool add, const char *left,
                                                            const char *right) {
        const uint64_t one = tile_descriptor<64, 64>(left), two = tile_descriptor<N, 64>(right);
        if (!PENDING) hold(sums);
        products_open();
        product<N>::template adding<false, true>(sums, one, two, add);
#pragma unroll
        for (int k = 1; k < 4; k++)
            product<N>::template turned<true, false, true>(sums, later(one, k * 2), later(two, k * (16 * 128 / 16)));
        products_commit();
        hold(sums);
    }
    template <bool PENDING = false>
    static __device__ __forceinline__ void turned_by_columns(float (&sums)[32], const char *left, const char *right) {
        const uint64_t one = tile_descriptor<64, 64>(left), two = tile_descriptor<64, 64>(right);
        if (!PENDING) hold(sums);
        products_open();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product<64>::template turned<true, true, true>(sums, later(one, k * (16 * 128 / 16)),
                                                           later(two, k * (16 * 128 / 16)));
        products_commit();
        hold(sums);
    }
    /* The compiler takes them for numbers that threads may differ in: it does not wait for loads to share them. */
    static __device__ __forceinline__ void differ(int &one, int &two) {
        uint32_t both[2] = {(uint32_t)one, (uint32_t)two};
        hold(both);
        one = (int)both[0], two = (int)both[1];
    }
    template <class... PARTS> static __device__ __forceinline__ void ready(PARTS &...parts) {
        (hold(parts), ...);
    }
    template <int LEFT, class... PARTS> static __device__ __forceinline__ void settle(PARTS &...parts) {
        products_wait<LEFT>();
        (hold(parts), ...);
    }
    /* What those of role 0 published is there for the others. */
    template <int ROLE, int THREADS> static __device__ __forceinline__ void hand_over() {
        if (ROLE == 0)
            named_arrive(4, THREADS);
        else
            named_wait(4, THREADS);
    }
    template <bool GIVE, int LESS, int MORE> static __device__ __forceinline__ void share_registers() {
        if constexpr (GIVE)
            registers_less<LESS>();
        else
            registers_more<MORE>();
    }
    /* Of THREADS, those of role 0 wait for each other, the others for all. */
    template <int ROLE, int THREADS> static __device__ __forceinline__ void pass() {
        if (ROLE == 0) {
            named_arrive(3, THREADS);
            named_wait(2, THREADS / 2);
        } else
            named_wait(3, THREADS);
    }
    static __device__ __forceinline__ void publish() {
        stores_to_async();
    }
    static __device__ __forceinline__ void store_step(char *tile, int step, const uint32_t (&part)[4],
                                                      int thread = threadIdx.x) {
        const int lane = thread % 32;
        store_matrices<false>(tile + tile_at(first_row(thread) + lane / 8 % 2 * 8 + lane % 8, 2 * step + lane / 16),
                              part);
    }
    static __device__ __forceinline__ void store_turned(char *panel, int step, const uint32_t (&part)[4],
                                                        int thread = threadIdx.x) {
        const int lane = thread % 32;
        store_matrices<true>(
            panel + tile_at(16 * step + lane / 16 * 8 + lane % 8, first_row(thread) / 8 + lane / 8 % 2), part);
    }
};

} // namespace ln

#endif
