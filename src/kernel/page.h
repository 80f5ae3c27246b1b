/* What is in a page: rows of float32 into pages of any layout (kernel/attend.h) and back, one token or all. */
#ifndef LN_KERNEL_PAGE_H
#define LN_KERNEL_PAGE_H

#include "kernel/attend.h"

/* A whole page from `count` <= 32 rows of keys and of values (not read where they are columns of the keys); what is
 * there of other tokens becomes zeros. Steps by channel come from these tokens alone, and a value that is not finite
 * reads as the nearest of its channel. By token, a row of Q2 to Q5 that is not finite reads as NaN in that block of 32,
 * and rows of the other types as their formats have it. */
void ln_page_encode(const ln_page_layout *layout, unsigned char *page, int64_t count, const float *keys,
                    int64_t key_stride, const float *values, int64_t value_stride);
/* One token's part of a page without steps by channel; the others keep theirs. value NULL: none. */
void ln_page_encode_token(const ln_page_layout *layout, unsigned char *page, int64_t token, const float *key,
                          const float *value);
/* Exactly what a token's codes mean: key_size and value_size floats; NULL: not wanted. */
void ln_page_decode_token(const ln_page_layout *layout, const unsigned char *page, int64_t token, float *key,
                          float *value);
/* Copies a token's codes between pages of one layout, or inside one. false, and nothing done: steps by channel belong
 * to all tokens of a page. */
bool ln_page_move(const ln_page_layout *layout, unsigned char *to, int64_t to_token, const unsigned char *from,
                  int64_t from_token);
/* Zeros where tokens `first` and up would be; steps by channel stay. */
void ln_page_clear(const ln_page_layout *layout, unsigned char *page, int64_t first);

/* In place, orthonormal, its own inverse: over n values where n is a power of two, else over each run of the largest
 * power of two that divides n. */
void ln_hadamard(float *row, int64_t n);

#endif
