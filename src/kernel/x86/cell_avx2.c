/* Owns: the cell kernels compiled for AVX2. */
#define LN_CELL_NAME "avx2"
#define LN_CELL_SET void ln_cell_fill_avx2(ln_cell_kernels *kernels)
#include "kernel/cell_body.h"
