/* Owns: the layout of key-value pages, the portable attention kernels, and the choice among the instruction sets. */
#include "kernel/attend_sets.h"

#include <string.h>

#include "base/cpu.h"
#include "kernel/lanes_portable.h"

enum { VECTORS = 4, ROWS = 2 };

HELPER lanes load(const float *x, int n) {
    (void)n;
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}
HELPER void store(float *y, lanes v, int n) {
    (void)n;
    memcpy(y, &v, sizeof v);
}
HELPER lanes load_f16(const uint16_t *x, int n) {
    (void)n;
    return (lanes){ln_f16_float(x[0]), ln_f16_float(x[1]), ln_f16_float(x[2]), ln_f16_float(x[3])};
}
HELPER lanes load_bf16(const uint16_t *x, int n) {
    (void)n;
    return (lanes){ln_bf16_float(x[0]), ln_bf16_float(x[1]), ln_bf16_float(x[2]), ln_bf16_float(x[3])};
}
HELPER lanes load_q8(const int8_t *x, int n) {
    (void)n;
    return (lanes){(float)x[0], (float)x[1], (float)x[2], (float)x[3]};
}
HELPER lanes load_q4(const uint8_t *x, int up, int n) {
    (void)n;
    return (lanes){(float)((x[0] >> up & 15) - 8), (float)((x[1] >> up & 15) - 8), (float)((x[2] >> up & 15) - 8),
                   (float)((x[3] >> up & 15) - 8)};
}
HELPER lanes load_bits(const unsigned char *x, int up, int mask) {
    lanes_int v;
    memcpy(&v, x, sizeof v);
    v = v >> up & (lanes_int){mask, mask, mask, mask};
    return (lanes){(float)v[0], (float)v[1], (float)v[2], (float)v[3]};
}
HELPER lanes divide(lanes a, lanes b) {
    return a / b;
}
HELPER lanes smaller(lanes a, lanes b) {
    return choose(a < b, a, b);
}

#include "kernel/exponential.h"
/* As in x86/attend_avx2.c. */
HELPER lanes power_of_two(lanes x) {
    const lanes magic = splat(0x1.8p23f + 127), safe = choose(x < -127, splat(-127), x), shifted = safe + magic;
    const lanes f = safe - (shifted - magic);
    return LN_POWER_NEAR_5(f) * (lanes)((lanes_int)shifted << 23);
}
HELPER float largest(lanes v) {
    const lanes pairs = larger(v, (lanes){v[2], v[3], v[2], v[3]});
    return pairs[0] > pairs[1] ? pairs[0] : pairs[1];
}
HELPER bool any_above(lanes a, lanes b) {
    const lanes_int above = a > b;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}
HELPER lanes keep(lanes v, unsigned bits) {
    const lanes_int flags = {(int32_t)(bits & 1), (int32_t)(bits >> 1 & 1), (int32_t)(bits >> 2 & 1),
                             (int32_t)(bits >> 3 & 1)};
    return (lanes)((lanes_int)v & -flags);
}
HELPER void transpose_lanes(lanes x[W]) {
    const lanes a = x[0], b = x[1], c = x[2], d = x[3];
    for (int i = 0; i < W; i++) x[i] = (lanes){a[i], b[i], c[i], d[i]};
}

#define LN_ATTEND_NAME "attend__portable"
#define LN_ATTEND_SET static void fill_portable(ln_attend_kernels *kernels)
#include "kernel/attend_body.h"

void ln_attend_choose(unsigned cpu, ln_attend_kernels *kernels) {
    (void)cpu;
    fill_portable(kernels);
#if defined(__x86_64__)
    if (cpu & LN_CPU_AVX2) ln_attend_fill_avx2(kernels);
    if (cpu & LN_CPU_AVX512) ln_attend_fill_avx512(kernels);
    if (cpu & LN_CPU_AVX2) ln_attend_fill_low_avx2(kernels);
    if (cpu & LN_CPU_AVX512_VNNI) ln_attend_fill_avx512vnni(kernels);
    if (cpu & LN_CPU_AVX512_VNNI) ln_attend_fill_low_avx512vnni(kernels);
    if (cpu & LN_CPU_AVX512_BF16) ln_attend_fill_avx512bf16(kernels);
    if (cpu & LN_CPU_AMX_BF16) ln_attend_fill_amx(kernels);
    if ((cpu & LN_CPU_AMX_BF16) && kernels->pairs.name) ln_attend_fill_pairs_amx(kernels);
#elif defined(__aarch64__)
    if (cpu & LN_CPU_NEON) ln_attend_fill_neon(kernels);
#endif
}

static int64_t bits_of(linnet_type type) {
    switch (type) {
    case LINNET_F32:
        return 32;
    case LINNET_F16:
    case LINNET_BF16:
        return 16;
    case LINNET_Q8_0:
        return 8;
    case LINNET_Q4_0:
        return 4;
    default:
        return ln_low_bits(type);
    }
}

/* Codes of `size` rows or columns of 32, whole squares of low bits. */
static uint64_t codes_of(linnet_type type, int64_t size) {
    const int64_t whole = ln_low_bits(type) ? (size + LN_LOW_SQUARE - 1) / LN_LOW_SQUARE * LN_LOW_SQUARE : size;
    return ln_code_bytes(bits_of(type), LN_PAGE_TOKENS * whole);
}

/* Scales of so many: `row` bytes for 32. */
static uint64_t scales_of(linnet_type type, int64_t size, int64_t row) {
    const bool blocks = type == LINNET_Q8_0 || type == LINNET_Q4_0 || ln_low_bits(type);
    return blocks ? (uint64_t)((size + 31) / 32 * row) : 0;
}

/* 32 scales of float16 are 64 bytes, so every offset is a multiple of 64 but for what steps by channel leave. */
static void place(ln_page_layout *layout) {
    uint64_t at = layout->key_scales = codes_of(layout->key_type, layout->key_size);
    at += scales_of(layout->key_type, layout->key_size, layout->key_channels ? (int64_t)sizeof(ln_channel_steps) : 64);
    layout->values = at = (at + 63) / 64 * 64;
    layout->value_scales = at += codes_of(layout->value_type, layout->value_size);
    layout->bytes = at + scales_of(layout->value_type, layout->value_size, 64);
}

bool ln_page_layout_of(linnet_type key_type, linnet_type value_type, int64_t key_size, int64_t value_size,
                       ln_page_layout *layout) {
    const int64_t key_bits = bits_of(key_type), value_bits = bits_of(value_type);
    if (!key_bits || !value_bits || key_size < 8 || value_size < 8 || key_size % 8 || value_size % 8 ||
        key_size > LN_HEAD_MOST || value_size > LN_HEAD_MOST)
        return false;
    *layout = (ln_page_layout){.key_type = key_type,
                               .value_type = value_type,
                               .key_size = key_size,
                               .value_size = value_size,
                               .key_bits = key_bits,
                               .value_bits = value_bits};
    place(layout);
    return true;
}

bool ln_page_layout_by_channel(ln_page_layout *layout) {
    if (!ln_low_bits(layout->key_type)) return false;
    layout->key_channels = true;
    place(layout);
    return true;
}

void ln_page_layout_join(ln_page_layout *layout) {
    layout->value_in_key = true;
    layout->values = layout->value_scales = layout->bytes = (layout->values + 63) / 64 * 64;
}

static void fill_f32(const ln_page_layout *layout, unsigned char *page, linnet_type rows, int64_t count,
                     const void *const *keys, const void *const *values) {
    float *to = (float *)(void *)page;
    for (int64_t k = 0; k < layout->key_size; k++, to += LN_PAGE_TOKENS) {
        if (rows == LINNET_BF16)
            for (int64_t t = 0; t < count; t++) to[t] = ln_bf16_float(((const uint16_t *)keys[t])[k]);
        else
            for (int64_t t = 0; t < count; t++) to[t] = ((const float *)keys[t])[k];
    }
    to = (float *)(void *)(page + layout->values);
    for (int64_t k = 0; k < layout->value_size; k += LN_PANEL, to += LN_PANEL * LN_PAGE_TOKENS) {
        const int64_t left = layout->value_size - k, n = left < LN_PANEL ? left : LN_PANEL;
        for (int64_t t = 0; t < count; t++) {
            if (rows == LINNET_BF16)
                for (int64_t i = 0; i < n; i++) to[t * n + i] = ln_bf16_float(((const uint16_t *)values[t])[k + i]);
            else
                memcpy(to + t * n, (const float *)values[t] + k, (size_t)n * sizeof *to);
        }
    }
}

static inline uint16_t half_of(linnet_type rows, const void *row, int64_t i) {
    return rows == LINNET_BF16 ? ((const uint16_t *)row)[i] : ln_float_bf16(((const float *)row)[i]);
}

static void fill_bf16(const ln_page_layout *layout, unsigned char *page, linnet_type rows, int64_t count,
                      const void *const *keys, const void *const *values) {
    uint16_t *to = (uint16_t *)(void *)page;
    for (int64_t k = 0; k < layout->key_size; k++, to += LN_PAGE_TOKENS)
        for (int64_t t = 0; t < count; t++) to[t] = half_of(rows, keys[t], k);
    to = (uint16_t *)(void *)(page + layout->values);
    for (int64_t k = 0; k < layout->value_size; k += LN_PANEL, to += LN_PANEL * LN_PAGE_TOKENS) {
        const int64_t left = layout->value_size - k, n = left < LN_PANEL ? left : LN_PANEL;
        for (int64_t t = 0; t < count; t++)
            for (int64_t i = 0; i < n; i++) to[t * n + i] = half_of(rows, values[t], k + i);
    }
}

void ln_page_fill(const ln_page_layout *layout, unsigned char *page, linnet_type rows, int64_t count,
                  const void *const *keys, const void *const *values) {
    if (layout->key_type == LINNET_F32)
        fill_f32(layout, page, rows, count, keys, values);
    else
        fill_bf16(layout, page, rows, count, keys, values);
}
