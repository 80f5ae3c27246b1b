/* Owns: the delta kernels of AVX-512. */
#include "kernel/x86/lanes_avx512.h"

#define LN_DELTA_NAME "avx512"
#define LN_DELTA_SET void ln_delta_fill_avx512(ln_delta_kernels *kernels)
#include "kernel/delta_body.h"
