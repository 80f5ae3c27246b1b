/* The instructions of compute capability 8.0 and newer that the C++ of CUDA does not have: asynchronous copies of 16
 * bytes, operands of matrix products from shared memory, products of 16 x 8 x 16, fast exponentials.
 *
 * Accumulators of a 16 x 8 product: lane l of the warp holds rows l / 4 + 8 r, r = 0, 1, and columns 2 (l % 4) + c,
 * c = 0, 1, as element 2 r + c. */
#ifndef LN_KERNEL_CUDA_INSTRUCTIONS_CUH
#define LN_KERNEL_CUDA_INSTRUCTIONS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>

namespace ln {

/* The block's dynamic shared memory, aligned to 1024 bytes. */
static __device__ __forceinline__ char *block_memory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}
static __device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* 2^x, within 2^-22; numbers below 2^-126 are 0. */
static __device__ __forceinline__ float exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Two numbers as bf16 (f16) of one word, the first in the low half. */
static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&both;
}
static __device__ __forceinline__ uint32_t pack_half(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *(const uint32_t *)&both;
}
template <bool HALF> static __device__ __forceinline__ uint32_t pack_as(float low, float high) {
    return HALF ? pack_half(low, high) : pack(low, high);
}

/* word & mask | more, as one instruction: written as such it is two where both are constants. */
static __device__ __forceinline__ uint32_t take_bits(uint32_t word, uint32_t mask, uint32_t more) {
    uint32_t taken;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(taken) : "r"(word), "r"(mask), "r"(more));
    return taken;
}

/* (word & mask) ^ turn, likewise. */
static __device__ __forceinline__ uint32_t turn_bits(uint32_t word, uint32_t mask, uint32_t turn) {
    uint32_t turned;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(turned) : "r"(word), "r"(mask), "r"(turn));
    return turned;
}

/* Of two f16 a word: products; the larger magnitudes; whether one is above its bound. */
static __device__ __forceinline__ __half2 half_pair(uint32_t word) {
    return *(const __half2 *)&word;
}
static __device__ __forceinline__ uint32_t half_times(uint32_t a, uint32_t b) {
    const __half2 both = __hmul2(half_pair(a), half_pair(b));
    return *(const uint32_t *)&both;
}
static __device__ __forceinline__ uint32_t half_most(uint32_t a, uint32_t b) {
    const __half2 both = __hmax2(__habs2(half_pair(a)), __habs2(half_pair(b)));
    return *(const uint32_t *)&both;
}
static __device__ __forceinline__ bool half_above(uint32_t x, uint32_t bound) {
    return !__hble2(half_pair(x), half_pair(bound));
}

/* 16 bytes to shared memory, zeros where not inside; `from` must be readable all the same. */
static __device__ __forceinline__ void copy_piece(void *to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
}
/* The same with 8 bytes. */
static __device__ __forceinline__ void copy_half_piece(void *to, const void *from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 8 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* This thread's copies are done, but for its last LEFT commits. */
template <int LEFT> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* Four 8 x 8 matrices of 2-byte elements: lane l gives the address of row l % 8 of matrix l / 8, and gets of each
 * matrix the elements (l / 4, 2 (l % 4) + 0, 1), or with TURN (2 (l % 4) + 0, 1; l / 4). */
template <bool TURN> static __device__ __forceinline__ void load_matrices(uint32_t (&part)[4], const void *from) {
    const uint32_t at = shared_address(from);
    if (TURN)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                     : "r"(at)
                     : "memory");
}
/* The reverse: four matrices go to the rows whose addresses the lanes give. Needs compute capability 9.0. */
template <bool TURN> static __device__ __forceinline__ void store_matrices(void *to, const uint32_t (&part)[4]) {
    const uint32_t at = shared_address(to);
    if (TURN)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(part[0]),
                     "r"(part[1]), "r"(part[2]), "r"(part[3])
                     : "memory");
    else
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(part[0]),
                     "r"(part[1]), "r"(part[2]), "r"(part[3])
                     : "memory");
}

/* An 8 x 8 matrix of 2-byte elements held as (l / 4, 2 (l % 4) + 0, 1): the transposed one, held likewise. */
static __device__ __forceinline__ uint32_t transpose_matrix(uint32_t part) {
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(part));
    return turned;
}

/* sums (16 x 8) += left (16 x 16) * right (16 x 8), bf16 and f16. */
static __device__ __forceinline__ void add_product(float *sum, const uint32_t *left, const uint32_t *right) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
        "%1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
static __device__ __forceinline__ void add_product_half(float *sum, const uint32_t *left, const uint32_t *right) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
                 "%1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
/* The same with `more` as what is added to. */
static __device__ __forceinline__ void product_half(float *sum, const uint32_t *left, const uint32_t *right,
                                                    const float *more) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %11, %12, %13};"
                 : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]), "f"(more[0]),
                   "f"(more[1]), "f"(more[2]), "f"(more[3]));
}
template <bool HALF>
static __device__ __forceinline__ void add_product_as(float *sum, const uint32_t *left, const uint32_t *right) {
    if (HALF)
        add_product_half(sum, left, right);
    else
        add_product(sum, left, right);
}
/* To the nearest number that tf32 has. */
static __device__ __forceinline__ uint32_t tf32_of(float x) {
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
/* sums (16 x 8) += left (16 x 8) * right (8 x 8), tf32: elements (l / 4 + 8 r, l % 4 + 4 c) as left[r + 2 c], and
 * (l % 4 + 4 c, l / 4) as right[c]. */
static __device__ __forceinline__ void add_product_tf32(float *sum, const uint32_t *left, const uint32_t *right) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

/* As __syncthreads(), for all `threads` of a block whose warps wait at different places of the code: the
 * named barrier 1. */
static __device__ __forceinline__ void block_wait(int threads) {
    asm volatile("barrier.sync 1, %0;" ::"r"(threads) : "memory");
}

/* ---- between blocks ---- */

/* A flag or ticket in device memory: what was written before the release is seen after the acquire that reads it. */
static __device__ __forceinline__ unsigned load_acquire(const unsigned *from) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
static __device__ __forceinline__ void store_release(unsigned *to, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
/* Four words that other blocks read or write meanwhile: each is there as a whole, in no order with the others. */
static __device__ __forceinline__ float4 load_relaxed(const float4 *from) {
    float4 x;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(from)
                 : "memory");
    return x;
}
static __device__ __forceinline__ float load_relaxed(const float *from) {
    float x;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
    return x;
}
static __device__ __forceinline__ void store_relaxed(float4 *to, float4 x) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z),
                 "f"(x.w)
                 : "memory");
}
static __device__ __forceinline__ void store_relaxed(float *to, float x) {
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
}
/* In every loop that polls memory: lets others run. */
static __device__ __forceinline__ void spin_pause() {
    __nanosleep(32);
}

/* sums (16 x 8) += left (16 x 32) * right (32 x 8), signed bytes: of the rows l / 4 + 8 r columns 4 (l % 4) + 16 c and
 * the three after it are left[r + 2 c], and right[c] has these of column l / 4. */
static __device__ __forceinline__ void add_product_bytes(int *sum, const uint32_t *left, const uint32_t *right) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

/* Of kernels that launch_early starts (compute capability 9.0; before, they start in turn). The kernels before this one
 * on the stream are done, and what they wrote is seen. */
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* The next kernel may start where there is room, when all blocks of this one have said so or ended. */
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

} // namespace ln

#endif
