/* Owns: the vector kernels compiled for AVX512. */
#define LN_VECTOR_NAME "avx512"
#define LN_VECTOR_SET void ln_vector_fill_avx512(ln_vector_kernels *kernels)
#include "kernel/vector_body.h"
