/* Owns: the table of number formats, and the exact conversions of half precision.
 *
 * A block format is one row with one function: unpack, a block to int8 with a scale (and a minimum) for each 16 values,
 *     value = scale * q + minimum.
 * Both factors of every product here have few bits (float16 times small integers), so scale is exact and a value is
 * rounded once or twice as the format's reference does; decode is that line over all blocks. */
#include "number/format.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"

/* ---- half precision ---- */

static inline float f16_float(uint16_t value) {
    const uint32_t sign = (uint32_t)(value & 0x8000u) << 16, magnitude = value & 0x7fffu;
    /* The exponent's bias moves by a product with a power of two, which is exact for subnormal halves as well. */
    const uint32_t finite = ln_float_bits(ln_bits_float(magnitude << 13) * 0x1p112f);
    const uint32_t special = 0x7f800000u | magnitude << 13 | (magnitude > 0x7c00u ? 0x400000u : 0);
    return ln_bits_float(sign | (magnitude >= 0x7c00u ? special : finite));
}

static inline uint16_t float_f16(float value) {
    const uint32_t bits = ln_float_bits(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (magnitude < 0x38800000u) {
        /* Below 2^-14 the half's step is 2^-24, that of a float in [0.5, 1): let the addition round. */
        const uint32_t sum = ln_float_bits(ln_bits_float(magnitude) + 0.5f);
        return (uint16_t)(sign | (sum - 0x3f000000u));
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1);
    return (uint16_t)(sign | rounded >> 13);
}

float ln_f16_float(uint16_t value) {
    return f16_float(value);
}
uint16_t ln_float_f16(float value) {
    return float_f16(value);
}

/* ---- plain formats; blocks may be unaligned ---- */

static void copy_f32(const void *from, void *to, int64_t n) {
    memmove(to, from, (size_t)n * sizeof(float));
}
static void decode_f32(const void *blocks, float *values, int64_t n) {
    copy_f32(blocks, values, n);
}
static void encode_f32(const float *values, void *blocks, int64_t n) {
    copy_f32(values, blocks, n);
}

static inline uint16_t load_u16(const void *place) {
    uint16_t value;
    memcpy(&value, place, sizeof value);
    return value;
}
static inline float load_f16(const void *place) {
    return f16_float(load_u16(place));
}

static void decode_f16(const void *blocks, float *values, int64_t n) {
    const unsigned char *p = blocks;
    for (int64_t i = 0; i < n; i++) values[i] = load_f16(p + 2 * i);
}
static void encode_f16(const float *values, void *blocks, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = float_f16(values[i]);
        memcpy((unsigned char *)blocks + 2 * i, &half, sizeof half);
    }
}
static void decode_bf16(const void *blocks, float *values, int64_t n) {
    const unsigned char *p = blocks;
    for (int64_t i = 0; i < n; i++) values[i] = ln_bf16_float(load_u16(p + 2 * i));
}
static void encode_bf16(const float *values, void *blocks, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = ln_float_bf16(values[i]);
        memcpy((unsigned char *)blocks + 2 * i, &half, sizeof half);
    }
}

/* ---- blocks of 32: float16 scale, [float16 minimum], [32 fifth bits], 32 nibbles (low ones first) or 32 bytes ---- */

static inline void unpack_nibbles(const unsigned char *nibbles, uint32_t fifth, int offset, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        const int low = (nibbles[i] & 15) | (int)(fifth >> i & 1) << 4;
        const int high = nibbles[i] >> 4 | (int)(fifth >> (i + 16) & 1) << 4;
        q[i] = (int8_t)(low - offset);
        q[i + 16] = (int8_t)(high - offset);
    }
}

static inline uint32_t load_u32(const void *place) {
    uint32_t value;
    memcpy(&value, place, sizeof value);
    return value;
}

static void unpack_q4_0(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block;
    (void)minimum;
    scale[0] = scale[1] = load_f16(p);
    unpack_nibbles(p + 2, 0, 8, q);
}
static void unpack_q4_1(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block;
    scale[0] = scale[1] = load_f16(p);
    minimum[0] = minimum[1] = load_f16(p + 2);
    unpack_nibbles(p + 4, 0, 0, q);
}
static void unpack_q5_0(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block;
    (void)minimum;
    scale[0] = scale[1] = load_f16(p);
    unpack_nibbles(p + 6, load_u32(p + 2), 16, q);
}
static void unpack_q5_1(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block;
    scale[0] = scale[1] = load_f16(p);
    minimum[0] = minimum[1] = load_f16(p + 2);
    unpack_nibbles(p + 8, load_u32(p + 4), 0, q);
}
static void unpack_q8_0(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block;
    (void)minimum;
    scale[0] = scale[1] = load_f16(p);
    memcpy(q, p + 2, 32);
}

/* ---- blocks of 256: integer scales for 16 or 32 values under one or two float16. Bits of 128 values (of 64 in Q4_K
 * and Q5_K) lie over one another in the same bytes, 32 apart. ---- */

static void unpack_q2_k(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block, *bits = p + 16;
    const float d = load_f16(p + 80), m = load_f16(p + 82);
    for (int g = 0; g < 16; g++) {
        scale[g] = d * (float)(p[g] & 15);
        minimum[g] = -(m * (float)(p[g] >> 4));
    }
    for (int i = 0; i < 256; i++) q[i] = (int8_t)(bits[(i >> 7) * 32 + (i & 31)] >> 2 * (i >> 5 & 3) & 3);
}

static void unpack_q3_k(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *high = block, *bits = high + 32, *packed = high + 96;
    const float d = load_f16(high + 108);
    (void)minimum;
    for (int g = 0; g < 16; g++) {
        const int low = packed[g & 7] >> 4 * (g >> 3) & 15, top = packed[8 + (g & 3)] >> 2 * (g >> 2) & 3;
        scale[g] = d * (float)((low | top << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        const int low = bits[(i >> 7) * 32 + (i & 31)] >> 2 * (i >> 5 & 3) & 3, top = high[i & 31] >> (i >> 5) & 1;
        q[i] = (int8_t)((low | top << 2) - 4);
    }
}

/* 8 scales and 8 minimums of 6 bits in 12 bytes: four whole scales, four whole minimums, with the top bits of the other
 * four above them; then their nibbles. */
static inline void unpack_six_bits(const unsigned char *p, float *scale, float *minimum) {
    const float d = load_f16(p), m = load_f16(p + 2);
    const unsigned char *s = p + 4;
    for (int j = 0; j < 8; j++) {
        const int a = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        const int b = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
        scale[2 * j] = scale[2 * j + 1] = d * (float)a;
        minimum[2 * j] = minimum[2 * j + 1] = -(m * (float)b);
    }
}

static void unpack_q4_k(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block, *nibbles = p + 16;
    unpack_six_bits(p, scale, minimum);
    for (int i = 0; i < 256; i++) q[i] = (int8_t)(nibbles[(i >> 6) * 32 + (i & 31)] >> 4 * (i >> 5 & 1) & 15);
}

static void unpack_q5_k(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *p = block, *high = p + 16, *nibbles = p + 48;
    unpack_six_bits(p, scale, minimum);
    for (int i = 0; i < 256; i++) {
        const int low = nibbles[(i >> 6) * 32 + (i & 31)] >> 4 * (i >> 5 & 1) & 15, top = high[i & 31] >> (i >> 5) & 1;
        q[i] = (int8_t)(low | top << 4);
    }
}

static void unpack_q6_k(const void *block, int8_t *q, float *scale, float *minimum) {
    const unsigned char *low = block, *high = low + 128;
    const float d = load_f16(low + 208);
    (void)minimum;
    for (int g = 0; g < 16; g++) scale[g] = d * (float)(int8_t)low[192 + g];
    for (int i = 0; i < 256; i++) {
        const int nibble = low[(i >> 7) * 64 + (i & 63)] >> 4 * (i >> 6 & 1) & 15;
        const int top = high[(i >> 7) * 32 + (i & 31)] >> 2 * (i >> 5 & 3) & 3;
        q[i] = (int8_t)((nibble | top << 4) - 32);
    }
}

static inline void decode_blocks(ln_unpack unpack, int block, int bytes, bool has_minimum, const void *blocks,
                                 float *values, int64_t n) {
    int8_t q[256];
    float scale[16], minimum[16];
    const unsigned char *p = blocks;
    for (int64_t i = 0; i < n; i += block, p += bytes) {
        unpack(p, q, scale, minimum);
        for (int j = 0; j < block; j++) {
            const float value = scale[j >> 4] * (float)q[j];
            values[i + j] = has_minimum ? value + minimum[j >> 4] : value;
        }
    }
}

#define LN_DECODE(name, block, bytes, has_minimum)                                  \
    static void decode_##name(const void *blocks, float *values, int64_t n) {       \
        decode_blocks(unpack_##name, block, bytes, has_minimum, blocks, values, n); \
    }
LN_DECODE(q4_0, 32, 18, false)
LN_DECODE(q4_1, 32, 20, true)
LN_DECODE(q5_0, 32, 22, false)
LN_DECODE(q5_1, 32, 24, true)
LN_DECODE(q8_0, 32, 34, false)
LN_DECODE(q2_k, 256, 84, true)
LN_DECODE(q3_k, 256, 110, false)
LN_DECODE(q4_k, 256, 144, true)
LN_DECODE(q5_k, 256, 176, true)
LN_DECODE(q6_k, 256, 210, false)

/* ---- encoders. A block with a NaN or an infinity becomes all NaN: nothing else says that it was lost. ---- */

static inline void store_scale(unsigned char *block, float scale) {
    const uint16_t half = float_f16(scale);
    memcpy(block, &half, sizeof half);
}

/* 1 / scale; 0 where the scale is 0 or too small to have a reciprocal (then its float16 is 0 as well). */
static inline float reciprocal(float scale) {
    const float inverse = scale == 0 ? 0 : 1 / scale;
    return isinf(inverse) ? 0 : inverse;
}

static void encode_q8_0(const float *values, void *blocks, int64_t n) {
    unsigned char *p = blocks;
    for (int64_t i = 0; i < n; i += 32, p += 34) {
        float largest = 0;
        bool finite = true;
        for (int j = 0; j < 32; j++) {
            const float a = fabsf(values[i + j]);
            if (!(a <= 0x1.fffffep127f)) finite = false;
            if (a > largest) largest = a;
        }
        const float scale = largest / 127, inverse = reciprocal(scale);
        store_scale(p, finite ? scale : NAN);
        for (int j = 0; j < 32; j++) {
            const float q = finite ? values[i + j] * inverse : 0, magnitude = fabsf(q);
            const int down = (int)magnitude,
                      rounded = down + (magnitude - (float)down >= 0.5f); /* halves go outwards */
            p[2 + j] = (unsigned char)(q < 0 ? -rounded : rounded);
        }
    }
}

/* The value of largest magnitude, with its sign, becomes -8. */
static void encode_q4_0(const float *values, void *blocks, int64_t n) {
    unsigned char *p = blocks;
    for (int64_t i = 0; i < n; i += 32, p += 18) {
        float largest = 0;
        bool finite = true;
        for (int j = 0; j < 32; j++) {
            const float a = fabsf(values[i + j]);
            if (!(a <= 0x1.fffffep127f)) finite = false;
            if (a > fabsf(largest)) largest = values[i + j];
        }
        const float scale = largest / -8, inverse = reciprocal(scale);
        store_scale(p, finite ? scale : NAN);
        int q[32];
        for (int j = 0; j < 32; j++) {
            const int up = (int)((finite ? values[i + j] * inverse : 0) + 8.5f);
            q[j] = up < 0 ? 0 : up > 15 ? 15 : up;
        }
        for (int j = 0; j < 16; j++) p[2 + j] = (unsigned char)(q[j] | q[j + 16] << 4);
    }
}

/* ---- the table ---- */

static const ln_format formats[LN_TYPES] = {
    [LINNET_F32] = {"f32", 1, 4, decode_f32, encode_f32, NULL, false},
    [LINNET_F16] = {"f16", 1, 2, decode_f16, encode_f16, NULL, false},
    [LINNET_BF16] = {"bf16", 1, 2, decode_bf16, encode_bf16, NULL, false},
    [LINNET_Q4_0] = {"q4_0", 32, 18, decode_q4_0, encode_q4_0, unpack_q4_0, false},
    [LINNET_Q4_1] = {"q4_1", 32, 20, decode_q4_1, NULL, unpack_q4_1, true},
    [LINNET_Q5_0] = {"q5_0", 32, 22, decode_q5_0, NULL, unpack_q5_0, false},
    [LINNET_Q5_1] = {"q5_1", 32, 24, decode_q5_1, NULL, unpack_q5_1, true},
    [LINNET_Q8_0] = {"q8_0", 32, 34, decode_q8_0, encode_q8_0, unpack_q8_0, false},
    [LINNET_Q2_K] = {"q2_k", 256, 84, decode_q2_k, NULL, unpack_q2_k, true},
    [LINNET_Q3_K] = {"q3_k", 256, 110, decode_q3_k, NULL, unpack_q3_k, false},
    [LINNET_Q4_K] = {"q4_k", 256, 144, decode_q4_k, NULL, unpack_q4_k, true},
    [LINNET_Q5_K] = {"q5_k", 256, 176, decode_q5_k, NULL, unpack_q5_k, true},
    [LINNET_Q6_K] = {"q6_k", 256, 210, decode_q6_k, NULL, unpack_q6_k, false},
};

const ln_format *ln_format_of(linnet_type type) {
    const int row = (int)type;
    return row >= 0 && row < LN_TYPES && formats[row].name ? &formats[row] : NULL;
}

uint64_t ln_format_bytes(linnet_type type, int64_t n) {
    const ln_format *format = ln_format_of(type);
    uint64_t bytes;
    if (!format || n < 0 || n % format->block) return 0;
    return ln_multiply_u64((uint64_t)(n / format->block), (uint64_t)format->bytes, &bytes) ? bytes : 0;
}

/* Types of pages alone: values in a block and its bytes, as kernel/low_bits.h has them by token. */
static const struct page_type {
    linnet_type type;
    const char *name;
    int block, bytes;
} page_types[] = {
    {LINNET_Q2, "q2", 32, 10}, {LINNET_Q3, "q3", 32, 14}, {LINNET_Q4, "q4", 32, 18}, {LINNET_Q5, "q5", 32, 22}};
enum { PAGE_TYPES = sizeof page_types / sizeof *page_types };

static const struct page_type *page_type_of(linnet_type type) {
    for (int i = 0; i < PAGE_TYPES; i++)
        if (page_types[i].type == type) return &page_types[i];
    return NULL;
}

const char *linnet_type_name(linnet_type type) {
    const ln_format *format = ln_format_of(type);
    const struct page_type *page = page_type_of(type);
    return format ? format->name : page ? page->name : NULL;
}

linnet_type linnet_type_of_name(const char *name) {
    for (int row = 0; name && row < LN_TYPES; row++)
        if (linnet_type_name((linnet_type)row) && strcasecmp(linnet_type_name((linnet_type)row), name) == 0)
            return (linnet_type)row;
    return LINNET_TYPE_AUTO;
}

bool linnet_type_layout(linnet_type type, int *block, int *bytes) {
    const ln_format *format = ln_format_of(type);
    const struct page_type *page = page_type_of(type);
    if (!format && !page) return false;
    if (block) *block = format ? format->block : page->block;
    if (bytes) *bytes = format ? format->bytes : page->bytes;
    return true;
}
