/* The function table of the matrix products: see matmul.h for the two ways and the panel layouts. Portable C fills
 * every slot, then each instruction set overwrites what it has, in ascending order. */
#ifndef LN_KERNEL_MATMUL_KERNELS_H
#define LN_KERNEL_MATMUL_KERNELS_H

#include "kernel/matmul.h"

typedef enum ln_form { LN_FORM_F32, LN_FORM_BF16, LN_FORM_INT8, LN_FORMS } ln_form;

enum {
    LN_STRIP = 16,       /* weight rows side by side in a strip of a panel */
    LN_DOT_TOKENS = 8,   /* most tokens of one call of a dot kernel */
    LN_PANEL_UNIT = 256, /* panels begin at multiples of this column: a multiple of every format's block */
};

/* Activations of some tokens, prepared. `padded` is columns rounded up to a multiple of 64; padding is zero. A row
 * holds
 *   F32   float [padded]
 *   BF16  uint16 [padded]
 *   INT8  int8 q [padded], float scale [padded / 32] (x = scale * q, scale = largest |x| of the 32 / 127; NaN where one
 *         of the 32 is not finite), int32 sum [padded / 16] (sum of q over 16) */
typedef struct ln_activation {
    ln_form form;
    int64_t begin; /* the column of the weights that a row begins with: a multiple of LN_PANEL_UNIT */
    int64_t columns, padded;
    uint64_t row_bytes; /* multiple of 64 */
    const unsigned char *data;
} ln_activation;

/* y[t * y_stride + r] for `rows` weight rows and tokens first .. first + tokens - 1 (1 to LN_DOT_TOKENS). */
typedef void (*ln_dot)(const void *weight, uint64_t row_bytes, int64_t rows, const ln_activation *x, int64_t first,
                       int64_t tokens, float *y, int64_t y_stride);
/* Unpacks columns `column` .. `column + columns - 1` (column a multiple of LN_PANEL_UNIT, columns of 16) of `rows`
 * weight rows (1 to slot.rows; missing ones of the last strip and missing columns become zeros) into a panel. */
typedef void (*ln_pack)(const void *weight, linnet_type type, uint64_t row_bytes, int64_t rows, int64_t column,
                        int64_t columns, void *panel);
/* For the panel's rows and columns and tokens first .. first + tokens - 1 (any number): y[t * y_stride + r] = their
 * sums where column is 0, else += them. */
typedef void (*ln_panel)(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                         const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride);
/* One row of activations: columns floats to a prepared row. */
typedef void (*ln_prepare)(const float *x, int64_t columns, int64_t padded, void *row);

typedef struct ln_dot_slot {
    const char *name; /* of the kernel, "dot_q8_0__avx512vnni" */
    ln_form form;
    ln_dot run;
} ln_dot_slot;

typedef struct ln_panel_slot {
    const char *name; /* of the dense kernel, "panel_int8_32x6__avx512vnni" */
    ln_form form;
    int rows, columns; /* of a panel at most: multiples of LN_STRIP and of LN_PANEL_UNIT */
    ln_pack pack;
    ln_panel run;
} ln_panel_slot;

typedef struct ln_matmul_kernels {
    ln_prepare prepare[LN_FORMS];
    /* [exact]: 0 fast, 1 activations stay float32. */
    ln_dot_slot dot[2][LN_TYPES];
    ln_panel_slot panel[2][LN_TYPES];
    int64_t panel_from; /* this many tokens or more take the panel way */
} ln_matmul_kernels;

void ln_matmul_choose(unsigned cpu, ln_matmul_kernels *kernels);

#endif
