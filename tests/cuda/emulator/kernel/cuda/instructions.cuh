/* The instructions of src/kernel/cuda/instructions.cuh, emulated. */
#ifndef LN_KERNEL_CUDA_INSTRUCTIONS_CUH
#define LN_KERNEL_CUDA_INSTRUCTIONS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

namespace ln {

static inline char *block_memory() {
    return ln_emulator::block_memory();
}
static inline uint32_t shared_address(const void *pointer) {
    return ln_emulator::shared_address(pointer);
}

static inline void block_wait(int threads) {
    ln_emulator::named_barrier(1, threads, true);
}

static inline float flushed(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}
static inline float exponential(float x) {
    return flushed(exp2f(flushed(x)));
}
static inline float reciprocal(float x) {
    return flushed(1 / flushed(x));
}
static inline uint32_t pack(float low, float high) {
    return ln_emulator::bf16_of(low) | (uint32_t)ln_emulator::bf16_of(high) << 16;
}
static inline uint32_t pack_half(float low, float high) {
    return ln_emulator::f16_of(low) | (uint32_t)ln_emulator::f16_of(high) << 16;
}
template <bool HALF> static inline uint32_t pack_as(float low, float high) {
    return HALF ? pack_half(low, high) : pack(low, high);
}
static inline uint32_t tf32_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return isfinite(x) ? (bits + 0x1000) & ~UINT32_C(0x1fff) : bits;
}

static inline float half_of(uint32_t word, int i) {
    return ln_emulator::of_f16((uint16_t)(word >> 16 * i));
}
static inline uint32_t half_times(uint32_t a, uint32_t b) {
    return pack_half(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1));
}
static inline uint32_t half_most(uint32_t a, uint32_t b) {
    return pack_half(fmaxf(fabsf(half_of(a, 0)), fabsf(half_of(b, 0))),
                     fmaxf(fabsf(half_of(a, 1)), fabsf(half_of(b, 1))));
}
static inline bool half_above(uint32_t x, uint32_t bound) {
    return !(half_of(x, 0) <= half_of(bound, 0) && half_of(x, 1) <= half_of(bound, 1));
}

static inline void copy_piece(void *to, const void *from, bool inside) {
    ln_emulator::copy_piece(to, from, 16, inside ? 16 : 0);
}
static inline void copy_half_piece(void *to, const void *from, bool inside) {
    ln_emulator::copy_piece(to, from, 8, inside ? 8 : 0);
}
static inline void copies_commit() {
    ln_emulator::copies_commit();
}
template <int LEFT> static inline void copies_wait() {
    ln_emulator::copies_wait(LEFT);
}

template <bool TURN> static inline void load_matrices(uint32_t (&part)[4], const void *from) {
    ln_emulator::load_matrices(part, 4, from, TURN);
}
template <bool TURN> static inline void store_matrices(void *to, const uint32_t (&part)[4]) {
    ln_emulator::store_matrices(to, part, 4, TURN);
}

static inline uint32_t take_bits(uint32_t word, uint32_t mask, uint32_t more) {
    return (word & mask) | more;
}
static inline uint32_t turn_bits(uint32_t word, uint32_t mask, uint32_t turn) {
    return (word & mask) ^ turn;
}
static inline uint32_t transpose_matrix(uint32_t part) {
    return ln_emulator::transpose_matrix(part);
}

static inline void add_product(float *sum, const uint32_t *left, const uint32_t *right) {
    ln_emulator::add_product(sum, left, right, ln_emulator::BF16);
}
static inline void add_product_half(float *sum, const uint32_t *left, const uint32_t *right) {
    ln_emulator::add_product(sum, left, right, ln_emulator::F16);
}
static inline void add_product_tf32(float *sum, const uint32_t *left, const uint32_t *right) {
    ln_emulator::add_product(sum, left, right, ln_emulator::TF32);
}

static inline void product_half(float *sum, const uint32_t *left, const uint32_t *right, const float *more) {
    for (int i = 0; i < 4; i++) sum[i] = more[i];
    add_product_half(sum, left, right);
}

template <bool HALF> static inline void add_product_as(float *sum, const uint32_t *left, const uint32_t *right) {
    ln_emulator::add_product(sum, left, right, HALF ? ln_emulator::F16 : ln_emulator::BF16);
}

static inline unsigned load_acquire(const unsigned *from) {
    ln_emulator::maybe_yield();
    return *(const volatile unsigned *)from;
}
static inline void store_release(unsigned *to, unsigned value) {
    *(volatile unsigned *)to = value;
    ln_emulator::maybe_yield();
}
template <class T> static inline T load_relaxed(const T *from) {
    ln_emulator::maybe_yield();
    return __ldcg(from);
}
template <class T> static inline void store_relaxed(T *to, T x) {
    __stcg(to, x);
    ln_emulator::maybe_yield();
}
static inline void spin_pause() {
    ln_emulator::spin();
}

static inline void add_product_bytes(int *sum, const uint32_t *left, const uint32_t *right) {
    ln_emulator::add_product_bytes(sum, left, right);
}

static inline void wait_for_previous() {}
static inline void let_next_start() {}

} // namespace ln

#endif
