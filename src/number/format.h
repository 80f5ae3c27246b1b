/* Number formats: the one table of how weights and cached values are stored. A method is a row; a hot loop asks the
 * table.
 *
 * The block layouts are those of the GGUF file format (bit for bit), so mapped files are used as they are. */
#ifndef LN_NUMBER_FORMAT_H
#define LN_NUMBER_FORMAT_H

#include <stdint.h>

#include "linnet/types.h"

enum { LN_TYPES = 31 /* one more than the largest linnet_type */ };

/* One block as int8: value i is scale[i / 16] * q[i], plus minimum[i / 16] where the format has one (else minimum is
 * not written). Room for 256 q and 16 of the others serves every format. */
typedef void (*ln_unpack)(const void *block, int8_t *q, float *scale, float *minimum);

typedef struct ln_format {
    const char *name; /* "q8_0"; NULL in rows of the table that are no format */
    int block;        /* values in a block */
    int bytes;        /* bytes of a block */
    /* n is a multiple of block. decode gives what the format means, exactly rounded to float32. */
    void (*decode)(const void *blocks, float *values, int64_t n);
    void (*encode)(const float *values, void *blocks, int64_t n); /* NULL: read only */
    ln_unpack unpack;                                             /* NULL: a plain format (block is 1) */
    bool has_minimum;
} ln_format;

/* NULL for a number that is no format. */
const ln_format *ln_format_of(linnet_type type);
/* Bytes of a row of n values; 0 where n is no multiple of the block or the size overflows. */
uint64_t ln_format_bytes(linnet_type type, int64_t n);

/* ---- half precisions ---- */

static inline float ln_bits_float(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } u = {bits};
    return u.f;
}
static inline uint32_t ln_float_bits(float value) {
    union {
        float f;
        uint32_t u;
    } u = {value};
    return u.u;
}
static inline float ln_bf16_float(uint16_t value) {
    return ln_bits_float((uint32_t)value << 16);
}
/* Rounds to nearest even; a NaN stays a NaN. */
static inline uint16_t ln_float_bf16(float value) {
    const uint32_t bits = ln_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
float ln_f16_float(uint16_t value);
uint16_t ln_float_f16(float value);

#endif
