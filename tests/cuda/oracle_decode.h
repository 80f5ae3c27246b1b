/* The CPU's own codecs of cached keys and values, for the check of the GPU's. */
#ifndef LN_TESTS_CUDA_ORACLE_DECODE_H
#define LN_TESTS_CUDA_ORACLE_DECODE_H

#include <stdint.h>

#include "kernel/cuda/decode_cuda.h"

/* 32 values as codes (one a byte) and a scale, of a format of codes. */
void oracle_encode(ln_cuda_page_format format, const float *values, uint8_t *codes, uint16_t *scale);
float oracle_decode(ln_cuda_page_format format, uint8_t code, uint16_t scale);
uint16_t oracle_half(ln_cuda_page_format format, float value);

#endif
