#include "kernel/dot.h"

void ln_dot_fill_neon(ln_matmul_kernels *kernels) {
    (void)kernels;
}
