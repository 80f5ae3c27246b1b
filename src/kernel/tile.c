/* Owns: portable tile products, and choosing among instruction sets. */
#include "kernel/tile.h"

static void product_any(float *c, int64_t c_stride, const float *a, int64_t a_row, int64_t a_column, const float *b,
                        int64_t b_row, int64_t b_column, int64_t m, int64_t n, int64_t k, bool add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = add ? c[i * c_stride + j] : 0;
            for (int64_t l = 0; l < k; l++) sum += a[i * a_row + l * a_column] * b[l * b_row + j * b_column];
            c[i * c_stride + j] = sum;
        }
}

static void product(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                    int64_t m, int64_t n, int64_t k, bool add) {
    product_any(c, c_stride, a, a_stride, 1, b, b_stride, 1, m, n, k, add);
}
static void product_ta(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    product_any(c, c_stride, a, 1, a_stride, b, b_stride, 1, m, n, k, add);
}
static void product_tb(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                       int64_t m, int64_t n, int64_t k, bool add) {
    product_any(c, c_stride, a, a_stride, 1, b, 1, b_stride, m, n, k, add);
}

void ln_tile_fill_portable(ln_tile_kernels *kernels) {
    *kernels =
        (ln_tile_kernels){.name = "portable", .product = product, .product_ta = product_ta, .product_tb = product_tb};
}

void ln_tile_choose(unsigned cpu, ln_tile_kernels *kernels) {
    (void)cpu;
    ln_tile_fill_portable(kernels);
}
