/* What nvcc gives every source: the words of CUDA C++, the indices, and the functions of a thread. */
#ifndef LN_EMULATOR_CUDA_RUNTIME_H
#define LN_EMULATOR_CUDA_RUNTIME_H

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "emulator.h"
#include "vector_types.h"

#define LN_EMULATED 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (ln_emulator::running->thread_index)
#define blockIdx (ln_emulator::block_index)
#define blockDim (ln_emulator::block_size)
#define gridDim (ln_emulator::grid_size)
enum { warpSize = 32 };

template <class KERNEL>
static inline cudaError_t cudaFuncSetAttribute(KERNEL *kernel, cudaFuncAttribute attribute, int value) {
    return ln_emulator::function_attribute((const void *)kernel, attribute, value);
}

/* ---- of the block ---- */

static inline void __syncthreads() {
    ln_emulator::named_barrier(0, 0, true);
}
static inline int __syncthreads_count(int yes) {
    return ln_emulator::block_vote(yes != 0);
}
static inline int __syncthreads_or(int yes) {
    return ln_emulator::block_vote(yes != 0) > 0;
}
static inline int __syncthreads_and(int yes) {
    return ln_emulator::block_vote(yes == 0) == 0;
}
static inline void __threadfence() {
    ln_emulator::maybe_yield();
}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {
    ln_emulator::maybe_yield();
}
static inline void __nanosleep(unsigned) {
    ln_emulator::spin();
}
static inline void __trap() {
    ln_emulator::fail("__trap()");
}
static inline long long clock64() {
    return 0;
}
static inline size_t __cvta_generic_to_shared(const void *pointer) {
    return ln_emulator::shared_address(pointer);
}

/* ---- of the warp ---- */

namespace ln_emulator {
struct lane_value {
    uint64_t bits;
    int from; /* lane */
    uint64_t result;
};
static inline void exchange(void *const *brought, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        lane_value *own = (lane_value *)brought[__builtin_ctz(rest)];
        if (!(mask >> own->from & 1)) fail("a lane reads lane %d, which is not in the mask %#x", own->from, mask);
        own->result = ((const lane_value *)brought[own->from])->bits;
    }
}
template <class T> static inline T exchanged(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "at most 8 bytes");
    lane_value own = {0, from, 0};
    memcpy(&own.bits, &value, sizeof(T));
    warp_meet(mask, "__shfl_sync", &own, exchange);
    memcpy((void *)&value, &own.result, sizeof(T));
    return value;
}
static inline void vote(void *const *brought, uint32_t mask) {
    uint64_t yes = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        yes |= (uint64_t)(((const lane_value *)brought[lane])->bits != 0) << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) ((lane_value *)brought[__builtin_ctz(rest)])->result = yes;
}
static inline unsigned voted(unsigned mask, bool yes) {
    lane_value own = {yes, 0, 0};
    warp_meet(mask, "a vote", &own, vote);
    return (unsigned)own.result;
}
template <class T, T (*JOIN)(T, T)> static void reduce(void *const *brought, uint32_t mask) {
    T all = (T)((const lane_value *)brought[__builtin_ctz(mask)])->bits;
    for (uint32_t rest = mask & (mask - 1); rest; rest &= rest - 1)
        all = JOIN(all, (T)((const lane_value *)brought[__builtin_ctz(rest)])->bits);
    for (uint32_t rest = mask; rest; rest &= rest - 1)
        ((lane_value *)brought[__builtin_ctz(rest)])->result = (uint64_t)all;
}
template <class T, T (*JOIN)(T, T)> static inline T reduced(unsigned mask, T value) {
    lane_value own = {(uint64_t)value, 0, 0};
    warp_meet(mask, "__reduce_sync", &own, reduce<T, JOIN>);
    return (T)own.result;
}
template <class T> static inline T join_add(T a, T b) {
    return a + b;
}
template <class T> static inline T join_min(T a, T b) {
    return a < b ? a : b;
}
template <class T> static inline T join_max(T a, T b) {
    return a > b ? a : b;
}
template <class T> static inline T join_and(T a, T b) {
    return a & b;
}
template <class T> static inline T join_or(T a, T b) {
    return a | b;
}
template <class T> static inline T join_xor(T a, T b) {
    return a ^ b;
}
} // namespace ln_emulator

static inline void __syncwarp(unsigned mask = ~0u) {
    ln_emulator::warp_meet(mask, "__syncwarp", NULL, NULL);
}
static inline unsigned __activemask() {
    return ln_emulator::warp_alive();
}
static inline int __any_sync(unsigned mask, int yes) {
    return ln_emulator::voted(mask, yes) != 0;
}
static inline int __all_sync(unsigned mask, int yes) {
    return ln_emulator::voted(mask, yes) == mask;
}
static inline unsigned __ballot_sync(unsigned mask, int yes) {
    return ln_emulator::voted(mask, yes);
}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    const int lane = ln_emulator::running->lane;
    return ln_emulator::exchanged(mask, value, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
    const int lane = ln_emulator::running->lane, from = lane ^ by;
    return ln_emulator::exchanged(mask, value, from / width > lane / width ? lane : from);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = ln_emulator::running->lane, from = lane % width - (int)by;
    return ln_emulator::exchanged(mask, value, from < 0 ? lane : lane - (int)by);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const int lane = ln_emulator::running->lane, from = lane % width + (int)by;
    return ln_emulator::exchanged(mask, value, from >= width ? lane : lane + (int)by);
}
#define LN_REDUCE(name, type, join)                                                     \
    static inline type __reduce_##name##_sync(unsigned mask, type value) {              \
        return ln_emulator::reduced<type, ln_emulator::join_##join<type>>(mask, value); \
    }
LN_REDUCE(add, unsigned, add)
LN_REDUCE(add, int, add)
LN_REDUCE(min, unsigned, min)
LN_REDUCE(min, int, min)
LN_REDUCE(max, unsigned, max)
LN_REDUCE(max, int, max)
LN_REDUCE(and, unsigned, and)
LN_REDUCE(or, unsigned, or)
LN_REDUCE(xor, unsigned, xor)
#undef LN_REDUCE

/* ---- memory ---- */

#define LN_LOAD(name)                                        \
    template <class T> static inline T name(const T *from) { \
        return *from;                                        \
    }
LN_LOAD(__ldg)
LN_LOAD(__ldcs)
LN_LOAD(__ldlu)
LN_LOAD(__ldca)
#undef LN_LOAD
template <class T> static inline T __ldcg(const T *from) {
    ln_emulator::maybe_yield();
    return *from;
}
template <class T> static inline T __ldcv(const T *from) {
    return __ldcg(from);
}
#define LN_STORE(name)                                           \
    template <class T> static inline void name(T *to, T value) { \
        *to = value;                                             \
    }
LN_STORE(__stwb)
LN_STORE(__stcg)
LN_STORE(__stcs)
LN_STORE(__stwt)
#undef LN_STORE

/* One block runs at a time, so that a plain read and write are one. */
#define LN_ATOMIC(name, change)                                                                \
    template <class T> static inline T name(T *at, typename std::common_type<T>::type value) { \
        ln_emulator::maybe_yield();                                                            \
        const T old = *at;                                                                     \
        *at = (T)(change);                                                                     \
        return old;                                                                            \
    }
LN_ATOMIC(atomicAdd, old + value)
LN_ATOMIC(atomicSub, old - value)
LN_ATOMIC(atomicExch, value)
LN_ATOMIC(atomicMin, value < old ? value : old)
LN_ATOMIC(atomicMax, value > old ? value : old)
LN_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
LN_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
LN_ATOMIC(atomicAnd, old &value)
LN_ATOMIC(atomicOr, old | value)
LN_ATOMIC(atomicXor, old ^ value)
#undef LN_ATOMIC
template <class T>
static inline T atomicCAS(T *at, typename std::common_type<T>::type wanted, typename std::common_type<T>::type value) {
    ln_emulator::maybe_yield();
    const T old = *at;
    if (old == wanted) *at = value;
    return old;
}

/* ---- numbers ---- */

template <class A, class B> static constexpr typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type type;
    return (type)a > (type)b ? (type)a : (type)b;
}
template <class A, class B> static constexpr typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type type;
    return (type)a < (type)b ? (type)a : (type)b;
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline float min(float a, float b) {
    return fminf(a, b);
}

template <class TO, class FROM> static inline TO ln_bits(FROM from) {
    static_assert(sizeof(TO) == sizeof(FROM), "same size");
    TO to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline int __float_as_int(float x) {
    return ln_bits<int>(x);
}
static inline unsigned __float_as_uint(float x) {
    return ln_bits<unsigned>(x);
}
static inline float __int_as_float(int x) {
    return ln_bits<float>(x);
}
static inline float __uint_as_float(unsigned x) {
    return ln_bits<float>(x);
}
static inline long long __double_as_longlong(double x) {
    return ln_bits<long long>(x);
}
static inline double __longlong_as_double(long long x) {
    return ln_bits<double>(x);
}

static inline int __vimax3_s32(int a, int b, int c) {
    return max(max(a, b), c);
}
static inline int __vimin3_s32(int a, int b, int c) {
    return min(min(a, b), c);
}
static inline int __vimax3_s32_relu(int a, int b, int c) {
    return max(__vimax3_s32(a, b, c), 0);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline unsigned __brev(unsigned x) {
    unsigned turned = 0;
    for (int i = 0; i < 32; i++) turned |= (x >> i & 1) << (31 - i);
    return turned;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
    const uint64_t all = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(all >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
static inline int __mul24(int a, int b) {
    return a * b;
}
static inline int __mulhi(int a, int b) {
    return (int)((int64_t)a * b >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31));
}

/* The fast functions, without their errors. */
#define __expf(x) expf(x)
#define __exp10f(x) powf(10, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
static inline float __fdividef(float x, float y) {
    return x / y;
}
static inline float __saturatef(float x) {
    return x > 0 ? fminf(x, 1) : 0;
}
static inline float rsqrtf(float x) {
    return (float)(1 / sqrt((double)x));
}
static inline double rsqrt(double x) {
    return 1 / sqrt(x);
}
static inline float fdividef(float x, float y) {
    return x / y;
}
static inline float __fadd_rn(float x, float y) {
    return x + y;
}
static inline float __fsub_rn(float x, float y) {
    return x - y;
}
static inline float __fmul_rn(float x, float y) {
    return x * y;
}
static inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
static inline float __fdiv_rn(float x, float y) {
    return x / y;
}
static inline float __frcp_rn(float x) {
    return 1 / x;
}
static inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
static inline float __frsqrt_rn(float x) {
    return rsqrtf(x);
}
static inline int __float2int_rn(float x) {
    return (int)rintf(x);
}
static inline int __float2int_rz(float x) {
    return (int)x;
}
static inline int __float2int_rd(float x) {
    return (int)floorf(x);
}
static inline int __float2int_ru(float x) {
    return (int)ceilf(x);
}
static inline unsigned __float2uint_rn(float x) {
    return (unsigned)rintf(x);
}
static inline float __int2float_rn(int x) {
    return (float)x;
}
static inline float __uint2float_rn(unsigned x) {
    return (float)x;
}
static inline float __double2float_rn(double x) {
    return (float)x;
}

#endif
