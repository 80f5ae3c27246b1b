/* Owns: the portable dot kernels of every format, and preparing activations.
 *
 * y[t, r] = sum over c of W[r, c] x[t, c], one row of W at a time, each of its blocks unpacked once for all tokens:
 *   fast, block formats   sum over groups g of 16 of  xs_g (scale_g sum(q xq) + minimum_g sum(xq))
 *   else                  W decoded to float32, products added in 16 lanes, then a fixed tree. */
#include "kernel/dot.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"

enum { CHUNK = 256 };

/* ---- preparing ---- */

static void prepare_f32(const float *x, int64_t columns, int64_t padded, void *row) {
    float *to = row;
    memcpy(to, x, (size_t)columns * sizeof *to);
    for (int64_t i = columns; i < padded; i++) to[i] = 0;
}

static void prepare_bf16(const float *x, int64_t columns, int64_t padded, void *row) {
    uint16_t *to = row;
    for (int64_t i = 0; i < columns; i++) to[i] = ln_float_bf16(x[i]);
    for (int64_t i = columns; i < padded; i++) to[i] = 0;
}

/* Rounds |value| < 2^22 to the nearest integer, halves to even. */
static inline float round_even(float value) {
    return value + 0x1.8p23f - 0x1.8p23f;
}

static void prepare_int8(const float *x, int64_t columns, int64_t padded, void *row) {
    int8_t *q = row;
    float *scale = (float *)(void *)((unsigned char *)row + padded);
    int32_t *sum = (int32_t *)(void *)((unsigned char *)row + padded + padded / 8);
    for (int64_t i = 0; i < padded; i += 32) {
        const int64_t n = ln_max_i64(0, ln_min_i64(columns - i, 32));
        float block[32] = {0}, largest = 0;
        bool finite = true;
        if (n) memcpy(block, x + i, (size_t)n * sizeof *block);
        for (int j = 0; j < 32; j++) {
            const float magnitude = fabsf(block[j]);
            finite &= magnitude <= 0x1.fffffep127f;
            largest = magnitude > largest ? magnitude : largest;
        }
        const bool some = finite && largest >= LN_INT8_LEAST;
        const float inverse = some ? 127 / largest : 0;
        scale[i / 32] = !finite ? NAN : some ? largest / 127 : 0;
        int sums[2] = {0, 0};
        for (int j = 0; j < 32; j++) {
            q[i + j] = (int8_t)(some ? round_even(block[j] * inverse) : 0);
            sums[j >> 4] += q[i + j];
        }
        sum[i / 16] = sums[0];
        sum[i / 16 + 1] = sums[1];
    }
}

/* ---- dot ---- */

static float add_lanes(const float lanes[16]) {
    float sum[16];
    memcpy(sum, lanes, sizeof sum);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}

static inline const unsigned char *token_row(const ln_activation *x, int64_t token) {
    return x->data + (uint64_t)token * x->row_bytes;
}

static void dot_float(const ln_format *format, const void *weight, uint64_t row_bytes, int64_t rows,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    float w[CHUNK];
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        float lanes[8][16] = {{0}};
        for (int64_t c = 0; c < x->columns; c += CHUNK) {
            const int64_t n = ln_min_i64(CHUNK, x->columns - c), whole = (n + 15) / 16 * 16;
            format->decode(p, w, n);
            p += n / format->block * format->bytes;
            for (int64_t i = n; i < whole; i++) w[i] = 0;
            for (int64_t t = 0; t < tokens; t++) {
                const float *xt = (const float *)(const void *)token_row(x, first + t) + c;
                for (int64_t i = 0; i < whole; i += 16)
                    for (int j = 0; j < 16; j++) lanes[t][j] += w[i + j] * xt[i + j];
            }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = add_lanes(lanes[t]);
    }
}

static void dot_int8(const ln_format *format, const void *weight, uint64_t row_bytes, int64_t rows,
                     const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    int8_t q[CHUNK];
    float scale[CHUNK / 16], minimum[CHUNK / 16] = {0};
    const int block = format->block;
    for (int64_t r = 0; r < rows; r++) {
        const unsigned char *p = (const unsigned char *)weight + (uint64_t)r * row_bytes;
        float sum[8] = {0};
        for (int64_t c = 0; c < x->columns; c += block, p += format->bytes) {
            format->unpack(p, q, scale, minimum);
            for (int64_t t = 0; t < tokens; t++) {
                const unsigned char *row = token_row(x, first + t);
                const int8_t *xq = (const int8_t *)row + c;
                const float *xs = ln_int8_scales(row, x->padded) + c / 32;
                const int32_t *xsum = ln_int8_sums(row, x->padded) + c / 16;
                for (int g = 0; g < block / 16; g++) {
                    int32_t dot = 0;
                    for (int i = 16 * g; i < 16 * g + 16; i++) dot += q[i] * xq[i];
                    sum[t] += xs[g / 2] * (scale[g] * (float)dot + minimum[g] * (float)xsum[g]);
                }
            }
        }
        for (int64_t t = 0; t < tokens; t++) y[t * y_stride + r] = sum[t];
    }
}

#define LN_DOT(name, type, core)                                                                                  \
    static void name(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first, \
                     int64_t tokens, float *y, int64_t y_stride) {                                                \
        core(ln_format_of(type), weight, row_bytes, rows, x, first, tokens, y, y_stride);                         \
    }
#define LN_DEFINE_BLOCK(name, NAME, block, bytes, has_minimum) \
    LN_DOT(fast_##name, LINNET_##NAME, dot_int8)               \
    LN_DOT(exact_##name, LINNET_##NAME, dot_float)
#define LN_DEFINE_PLAIN(name, NAME, bytes) LN_DOT(exact_##name, LINNET_##NAME, dot_float)
LN_BLOCK_FORMATS(LN_DEFINE_BLOCK)
LN_PLAIN_FORMATS(LN_DEFINE_PLAIN)

void ln_dot_fill_portable(ln_matmul_kernels *kernels) {
    kernels->prepare[LN_FORM_F32] = prepare_f32;
    kernels->prepare[LN_FORM_BF16] = prepare_bf16;
    kernels->prepare[LN_FORM_INT8] = prepare_int8;
#define LN_FILL_BLOCK(name, NAME, block, bytes, has_minimum)                                                   \
    kernels->dot[0][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_int8__portable", LN_FORM_INT8, fast_##name}; \
    kernels->dot[1][LINNET_##NAME] = (ln_dot_slot){"dot_" #name "_f32__portable", LN_FORM_F32, exact_##name};
#define LN_FILL_PLAIN(name, NAME, bytes)                              \
    kernels->dot[0][LINNET_##NAME] = kernels->dot[1][LINNET_##NAME] = \
        (ln_dot_slot){"dot_" #name "_f32__portable", LN_FORM_F32, exact_##name};
    LN_BLOCK_FORMATS(LN_FILL_BLOCK)
    LN_PLAIN_FORMATS(LN_FILL_PLAIN)
}

void ln_dot_choose(unsigned cpu, ln_matmul_kernels *kernels) {
    ln_dot_fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_dot_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_dot_fill_avx512(kernels);
    if (cpu & LN_CPU_AVX512_VNNI) ln_dot_fill_avx512vnni(kernels);
    if (cpu & LN_CPU_AVX512_BF16) ln_dot_fill_avx512bf16(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_dot_fill_neon(kernels);
    if (cpu & LN_CPU_NEON_DOT) ln_dot_fill_neondot(kernels);
#else
    (void)cpu;
#endif
}
