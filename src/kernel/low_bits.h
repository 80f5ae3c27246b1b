/* Low-bit blocks of key-value pages: 32 values of 2 to 5 bits.
 *
 * A block has a step s and a code c for each value, 0 to 2^bits - 1. Two rules:
 *   by token     value = s (c - z)   word = the ten upper bits of s as float16 (without its sign, 5 of the mantissa),
 * and six bits of z, in (2^bits - 1) / 63: zero is always within the block's range by channel   value = m + s c     m
 * float16; s the eight upper bits of a float16 (3 of the mantissa) A step that is not a number marks a block, by token,
 * that was not finite.
 *
 * Codes of 32 blocks make a square of 32 rows (what a product sums over: channels of keys, tokens of values) and 32
 * columns (tokens of keys, sizes of values) of 128 bits bytes. Four rows of a column are the bytes of a dword, so that
 * 16 dwords are what a processor multiplies and sums by fours; groups of four rows lie over one another in the bits of
 * a byte: planes of 2 or 4 bits [row group / planes][column][row % 4], plane = row group % planes, then, of 3 and 5
 * bits, the topmost bit of all eight groups in planes of one bit [column][row % 4]. */
#ifndef LN_KERNEL_LOW_BITS_H
#define LN_KERNEL_LOW_BITS_H

#include "number/format.h"

enum { LN_LOW_SQUARE = 32, LN_LOW_SECTION = 128 /* bytes of a byte plane of four rows */ };

/* Bits of a code of a low-bit type, else 0. */
static inline int ln_low_bits(linnet_type type) {
    return type >= LINNET_Q2 && type <= LINNET_Q5 ? (int)type - LINNET_Q2 + 2 : 0;
}
static inline int ln_plane_bits(int bits) {
    return bits >= 4 ? 4 : 2;
}

/* Where a code is: its section and shift, and those of its topmost bit where it has a plane of its own. */
static inline int64_t ln_code_section(int bits, int64_t row) {
    return row / 4 / (8 / ln_plane_bits(bits)) * LN_LOW_SECTION;
}
static inline int ln_code_shift(int bits, int64_t row) {
    return (int)(row / 4 % (8 / ln_plane_bits(bits))) * ln_plane_bits(bits);
}
static inline int64_t ln_top_section(int bits) {
    return ln_plane_bits(bits) * LN_LOW_SECTION;
}

static inline unsigned ln_code_at(const unsigned char *square, int bits, int64_t row, int64_t column) {
    const int64_t at = column * 4 + row % 4;
    const int low = ln_plane_bits(bits);
    unsigned code = (unsigned)square[ln_code_section(bits, row) + at] >> ln_code_shift(bits, row) & ((1u << low) - 1);
    if (bits > low) code |= ((unsigned)square[ln_top_section(bits) + at] >> row / 4 & 1u) << low;
    return code;
}
static inline void ln_code_put(unsigned char *square, int bits, int64_t row, int64_t column, unsigned code) {
    const int64_t at = column * 4 + row % 4;
    const int low = ln_plane_bits(bits), shift = ln_code_shift(bits, row);
    const unsigned mask = (1u << low) - 1;
    unsigned char *byte = square + ln_code_section(bits, row) + at;
    *byte = (unsigned char)((*byte & ~(mask << shift)) | (code & mask) << shift);
    if (bits == low) return;
    byte = square + ln_top_section(bits) + at;
    *byte = (unsigned char)((*byte & ~(1u << row / 4)) | code >> low << row / 4);
}

/* ---- steps ---- */

static inline float ln_token_step(uint16_t word) {
    return ln_f16_float((uint16_t)(word >> 6 << 5));
}
/* What one of z counts. */
static inline float ln_zero_unit(int bits) {
    return (float)((1 << bits) - 1) / 63;
}
static inline float ln_token_minimum(uint16_t word, int bits) {
    return -(ln_token_step(word) * ((float)(word & 63) * ln_zero_unit(bits)));
}
static inline float ln_channel_step(uint8_t byte) {
    return ln_f16_float((uint16_t)(byte << 7));
}

/* Of 32 channels. */
typedef struct ln_channel_steps {
    uint16_t minimum[LN_LOW_SQUARE];
    uint8_t step[LN_LOW_SQUARE];
} ln_channel_steps;

/* ---- encoding ---- */

/* A block's best step, and 32 codes, for its first n values. */
uint16_t ln_fit_token(const float *values, int64_t n, int bits, uint8_t *codes);
/* Values that are not finite get the nearest code, a NaN the lowest, and no say in the range. */
void ln_fit_channel(const float *values, int64_t n, int bits, uint16_t *minimum, uint8_t *step, uint8_t *codes);

#endif
