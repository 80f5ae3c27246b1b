/* What is in pages of keys and values as the check of decode attention sees it, and the CPU's own codecs of them. */
#ifndef LN_TESTS_CUDA_ORACLE_DECODE_H
#define LN_TESTS_CUDA_ORACLE_DECODE_H

#include "check.h"
#include "kernel/cuda/decode_layout.h"

/* 32 values as codes (one a byte) and a scale, of a format of codes. */
void oracle_encode(ln_cuda_page_format format, const float *values, uint8_t *codes, uint16_t *scale);
float oracle_decode(ln_cuda_page_format format, uint8_t code, uint16_t scale);
uint16_t oracle_half(ln_cuda_page_format format, float value);

/* The keys or the values: [page][head][token] (or [page][token][head]) of a pool. */
typedef struct pages {
    ln_cuda_page_format format;
    bool values, wild; /* wild: steps of q4_0 over all that f16 has */
    int size;
    ln_cuda_page_part device;
    unsigned char *host;
    int64_t bytes;
} pages;

int64_t bytes_of_tokens(ln_cuda_page_format format, int size, int64_t tokens);
/* A token's row, or the tile that it is in. */
unsigned char *row_of(const pages *p, int64_t page, int64_t head, int64_t token);
/* A row of random numbers, or of random codes and scales. */
void token_fill(const pages *p, int64_t page, int64_t head, int64_t token);
double value_at(const pages *p, int64_t page, int64_t head, int64_t token, int i);

#endif
