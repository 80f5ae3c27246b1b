/* Owns: the vector kernels compiled for AVX2. */
#define LN_VECTOR_NAME "avx2"
#define LN_VECTOR_SET void ln_vector_fill_avx2(ln_vector_kernels *kernels)
#include "kernel/vector_body.h"
