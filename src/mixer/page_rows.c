/* Owns: decoding whole pages, of any precision, to floats. */
#include "mixer/page_rows.h"

#include <string.h>

#include "base/checked.h"

void ln_page_decode_keys(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                         float *to) {
    for (int64_t column = 0; column < layout->key_size; column += LN_ATTEND_DEPTH) {
        const ln_attend_part part = ln_page_keys(layout, page, column);
        const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, layout->key_size - column);
        kernels->decode[layout->key_type](&(ln_attend_operand){&part, 1, depth, LN_PAGE_TOKENS, false},
                                          to + column * LN_PAGE_TOKENS);
    }
}

void ln_page_key_rows(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                      int64_t count, int64_t key_size, float *to, int64_t to_stride, float *workspace) {
    const int64_t size = ln_min_i64(key_size, layout->key_size);
    ln_page_decode_keys(kernels, layout, page, workspace);
    for (int64_t t = 0; t < count; t++) {
        float *row = to + t * to_stride;
        for (int64_t i = 0; i < size; i++) row[i] = workspace[i * LN_PAGE_TOKENS + t];
        memset(row + size, 0, (size_t)(key_size - size) * sizeof *row);
    }
}

void ln_page_value_rows(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                        int64_t count, float *to, int64_t to_stride, float *workspace) {
    if (layout->value_in_key) {
        ln_page_key_rows(kernels, layout, page, count, layout->value_size, to, to_stride, workspace);
        return;
    }
    for (int64_t panel = 0; panel * LN_PANEL < layout->value_size; panel++) {
        const int64_t columns = ln_min_i64(LN_PANEL, layout->value_size - panel * LN_PANEL);
        const ln_attend_part part = ln_page_values(layout, page, panel, 0);
        kernels->decode[layout->value_type](&(ln_attend_operand){&part, 1, LN_PAGE_TOKENS, columns, true}, workspace);
        for (int64_t t = 0; t < count; t++)
            memcpy(to + t * to_stride + panel * LN_PANEL, workspace + t * columns, (size_t)columns * sizeof *to);
    }
}
