/* Owns: the cell kernels compiled for AVX512. */
#define LN_CELL_NAME "avx512"
#define LN_CELL_SET void ln_cell_fill_avx512(ln_cell_kernels *kernels)
#include "kernel/cell_body.h"
