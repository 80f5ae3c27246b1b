#include "kernel/dot.h"

void ln_dot_fill_neondot(ln_matmul_kernels *kernels) {
    (void)kernels;
}
