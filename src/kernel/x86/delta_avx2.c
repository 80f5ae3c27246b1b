/* Owns: the delta kernels of AVX2. */
#include "kernel/x86/lanes_avx2.h"

#define LN_DELTA_NAME "avx2"
#define LN_DELTA_SET void ln_delta_fill_avx2(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"
