/* Configuring the AMX tiles. Tiles 0 to 3 hold sums, 4 and 5 activations (A), 6 and 7 weights (B): 2 x 2 blocking.
 *
 * GCC 12 takes _tile_loadconfig to read 8 bytes of the structure and drops the stores of the others: here all 64 are an
 * operand of the instruction. A thread that leaves its tiles configured slows down every later task switch:
 * ln_amx_release. */
#ifndef LN_KERNEL_X86_AMX_H
#define LN_KERNEL_X86_AMX_H

#include <stdint.h>

typedef struct ln_amx_shape {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
} ln_amx_shape;

#ifndef LN_AMX_EMULATED
#include <immintrin.h>

static inline void ln_amx_configure(const ln_amx_shape *shape) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*shape));
}
static inline void ln_amx_release(void) {
    _tile_release();
}
#endif

/* GCC does not know that tile loads read memory: what was written before must be in it. */
static inline void ln_amx_fence(void) {
    __asm__ volatile("" : : : "memory");
}

/* k_bytes: bytes of a row of A, at most 64. A: 16 tokens x k_bytes. B: k_bytes / 4 rows of 16 weights x 4 bytes. */
static inline ln_amx_shape ln_amx_shape_of(int k_bytes) {
    ln_amx_shape shape = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        const int is_a = tile == 4 || tile == 5, is_b = tile >= 6;
        shape.rows[tile] = (uint8_t)(is_b ? k_bytes / 4 : 16);
        shape.column_bytes[tile] = (uint16_t)(is_a ? k_bytes : 64);
    }
    return shape;
}

#endif
