/* The dot way of the matrix products (few tokens): its fillers, and what they share.
 *
 * Every kernel keeps its sums per row and token, so a result depends on its row and its token alone, not on how many of
 * either are in the call. */
#ifndef LN_KERNEL_DOT_H
#define LN_KERNEL_DOT_H

#include <string.h>

#include "kernel/matmul_kernels.h"

/* Portable C, then every instruction set that `cpu` (flags of base/cpu.h) allows, in ascending order. */
void ln_dot_choose(unsigned cpu, ln_matmul_kernels *kernels);

/* The fillers, one a file: each overwrites the prepare and dot slots that it has. */
void ln_dot_fill_portable(ln_matmul_kernels *kernels);
void ln_dot_fill_avx2(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512vnni(ln_matmul_kernels *kernels);
void ln_dot_fill_avx512bf16(ln_matmul_kernels *kernels);
void ln_dot_fill_neon(ln_matmul_kernels *kernels);
void ln_dot_fill_neondot(ln_matmul_kernels *kernels);

/* Preparing INT8: q = round to even of x * (127 / largest), scale = largest / 127. A block that is not finite gets
 * scale NaN and q 0, so that its outputs are NaN; one below this limit counts as zero (its scale's reciprocal would
 * overflow). */
#define LN_INT8_LEAST 0x1p-110f

/* Parts of a prepared row of the INT8 form. */
static inline const float *ln_int8_scales(const void *row, int64_t padded) {
    return (const float *)(const void *)((const unsigned char *)row + padded);
}
static inline const int32_t *ln_int8_sums(const void *row, int64_t padded) {
    return (const int32_t *)(const void *)((const unsigned char *)row + padded + (padded >> 3));
}

/* The formats as the kernel files want them, to be compiled with constants: name, its upper case, (block,) bytes (, has
 * a minimum). The table of number/format.c says the same, and tests compare them. */
#define LN_PLAIN_FORMATS(F) \
    F(f32, F32, 4)          \
    F(f16, F16, 2)          \
    F(bf16, BF16, 2)
#define LN_BLOCK_FORMATS(F)        \
    F(q4_0, Q4_0, 32, 18, false)   \
    F(q4_1, Q4_1, 32, 20, true)    \
    F(q5_0, Q5_0, 32, 22, false)   \
    F(q5_1, Q5_1, 32, 24, true)    \
    F(q8_0, Q8_0, 32, 34, false)   \
    F(q2_k, Q2_K, 256, 84, true)   \
    F(q3_k, Q3_K, 256, 110, false) \
    F(q4_k, Q4_K, 256, 144, true)  \
    F(q5_k, Q5_K, 256, 176, true)  \
    F(q6_k, Q6_K, 256, 210, false)

/* The kernels are inlined and unrolled for each number of tokens, except under sanitizers, whose checks on all that
 * code take minutes to compile. */
#if defined(__SANITIZE_ADDRESS__)
#define LN_DOT_SMALL 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LN_DOT_SMALL 1
#endif
#endif

/* Before a loop of few steps over vectors in registers: all of it in a row, which Clang does by itself. */
#if defined(LN_DOT_SMALL) || defined(__clang__)
#define LN_UNROLL
#else
#define LN_UNROLL _Pragma("GCC unroll 16")
#endif

/* Asks for the lines that lie LN_DOT_AHEAD behind p .. p + bytes. Beyond the end of a map it does nothing. The distance
 * is measured: 2048 gave 83 % of the read bandwidth in Q8_0, 4096 93 %, 8192 98 %, 16384 no more. */
enum { LN_DOT_AHEAD = 8192 };
static inline void ln_dot_prefetch(const unsigned char *p, int bytes) {
    for (int line = 0; line < bytes; line += 64)
        __builtin_prefetch((const void *)((uintptr_t)p + LN_DOT_AHEAD + (uintptr_t)line));
}

/* The end of a row, of `bytes` bytes, for a kernel that reads `wanted`: in place where the weights given to the kernel
 * go on behind it (then the kernel leaves what is not the row's out of its sums), else copied and followed by zeros.
 * readable: bytes from p to the end of the weights. */
static inline const unsigned char *ln_dot_end(const unsigned char *p, int64_t bytes, int64_t wanted, int64_t readable,
                                              unsigned char *copy) {
    if (readable >= wanted) return p;
    memset(copy, 0, (size_t)wanted);
    memcpy(copy, p, (size_t)bytes);
    return copy;
}

enum {
    LN_DOT_PASS = 4,      /* tokens of one pass over rows of weights */
    LN_DOT_CACHED = 16384 /* bytes of weights that stay in the first cache between passes */
};

#if defined(LN_DOT_SMALL)
#define LN_DOT_TOKENS_CASES(core, n, ...) core(n, __VA_ARGS__)
#else
#define LN_DOT_TOKENS_CASES(core, n, ...) \
    if (n == 1)                           \
        core(1, __VA_ARGS__);             \
    else if (n == 2)                      \
        core(2, __VA_ARGS__);             \
    else if (n == 3)                      \
        core(3, __VA_ARGS__);             \
    else                                  \
        core(4, __VA_ARGS__)
#endif

/* Defines the kernel `name` from an inline core that takes (tokens, ..., weight, row_bytes, rows, x, first, y,
 * y_stride) and is compiled for each number of tokens up to LN_DOT_PASS. */
#define LN_DOT_KERNEL(name, core, ...)                                                                            \
    static void name(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first, \
                     int64_t tokens, float *y, int64_t y_stride) {                                                \
        const int64_t few = tokens <= LN_DOT_PASS ? rows : 1 + (int64_t)(LN_DOT_CACHED / (row_bytes + 1));        \
        for (int64_t r = 0; r < rows; r += few)                                                                   \
            for (int64_t t = 0; t < tokens; t += LN_DOT_PASS) {                                                   \
                const int64_t n = tokens - t < LN_DOT_PASS ? tokens - t : LN_DOT_PASS;                            \
                const int64_t some = few < rows - r ? few : rows - r;                                             \
                const unsigned char *w = (const unsigned char *)weight + (uint64_t)r * row_bytes;                 \
                LN_DOT_TOKENS_CASES(core, n, __VA_ARGS__, w, row_bytes, some, x, first + t, y + t * y_stride + r, \
                                    y_stride);                                                                    \
            }                                                                                                     \
    }

#endif
