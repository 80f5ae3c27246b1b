#include "kernel/dot.h"

void ln_dot_fill_avx512vnni(ln_matmul_kernels *kernels) {
    (void)kernels;
}
