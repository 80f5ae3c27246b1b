/* What is in a page, as floats. */
#ifndef LN_MIXER_PAGE_ROWS_H
#define LN_MIXER_PAGE_ROWS_H

#include "kernel/kernel.h"

/* Keys [layout->key_size][32 tokens]. */
void ln_page_decode_keys(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                         float *to);
/* The first `count` tokens as rows, to_stride floats apart: keys, of which columns beyond layout->key_size and below
 * key_size become 0; or values. workspace: 32 * layout->key_size floats, 32 * LN_PANEL at least. */
void ln_page_key_rows(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                      int64_t count, int64_t key_size, float *to, int64_t to_stride, float *workspace);
void ln_page_value_rows(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                        int64_t count, float *to, int64_t to_stride, float *workspace);

static inline uint64_t ln_page_rows_workspace(int64_t key_size) {
    const int64_t columns = key_size > LN_PANEL ? key_size : LN_PANEL;
    return (uint64_t)(columns * LN_PAGE_TOKENS) * sizeof(float);
}

#endif
