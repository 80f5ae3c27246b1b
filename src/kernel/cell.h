/* What a nonlinear cell does to its units once the products are made (mixer/cell.h): every unit by itself.
 *
 * Rows of n units: x [gate][n] the preactivations, y [gate][n] the recurrent products with their bias, a state
 * [part][n], whose first part is what the cell gives out. */
#ifndef LN_KERNEL_CELL_H
#define LN_KERNEL_CELL_H

#include <stdint.h>

typedef enum ln_cell_kind {
    LN_CELL_LSTM,
    LN_CELL_GRU,
    LN_CELL_SLSTM,
    LN_CELL_ELMAN,
    LN_CELL_SPIKE,
    LN_CELL_KINDS
} ln_cell_kind;
enum { LN_CELL_GATES_MOST = 4, LN_CELL_PARTS_MOST = 4 };

typedef struct ln_cell_pass {
    const float *x, *y, *last;
    float *next; /* written by forward, read by backward; not last */
    int64_t n;
    const double *option; /* of the row: see mixer/rows_cell.c */
} ln_cell_pass;

typedef void (*ln_cell_forward)(const ln_cell_pass *pass);
/* `gradient` is that of `next` and becomes that of `last`, but for what reached `next` through y. */
typedef void (*ln_cell_backward)(const ln_cell_pass *pass, float *gradient, float *x_gradient, float *y_gradient);

typedef struct ln_cell_kernels {
    const char *name; /* "portable", "avx2", "avx512" */
    ln_cell_forward forward[LN_CELL_KINDS];
    ln_cell_backward backward[LN_CELL_KINDS];
} ln_cell_kernels;

void ln_cell_choose(unsigned cpu, ln_cell_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_cell_fill_portable(ln_cell_kernels *kernels);
void ln_cell_fill_avx2(ln_cell_kernels *kernels);
void ln_cell_fill_avx512(ln_cell_kernels *kernels);

#endif
