/* Owns: tile products of bf16 on AVX-512 BF16: 6 rows x 64 columns in registers, a pair of k a step. */
#include <string.h>

#include "kernel/x86/tile_pack_512.h"

enum { ROWS = 6, VECTORS = 4 };

LN_INLINE void block(float *c, int64_t c_stride, const uint16_t *a, int64_t a_stride, const uint32_t *b,
                     int64_t b_stride, int64_t k, bool add, const int rows, const int vectors) {
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? _mm512_loadu_ps(c + r * c_stride + 16 * v) : _mm512_setzero_ps();
    for (int64_t l = 0; l < k; l += 2, a += 2, b += b_stride) {
        __m512i x[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) x[v] = _mm512_loadu_si512(b + 16 * v);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + r * a_stride, sizeof pair);
            const __m512i factor = _mm512_set1_epi32(pair);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)factor, (__m512bh)x[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(c + r * c_stride + 16 * v, sum[r][v]);
}

LN_INLINE void block_of(float *c, int64_t c_stride, const uint16_t *a, int64_t a_stride, const uint32_t *b,
                        int64_t b_stride, int64_t k, bool add, int64_t rows, const int vectors) {
    if (rows == ROWS)
        block(c, c_stride, a, a_stride, b, b_stride, k, add, ROWS, vectors);
    else if (rows == 4)
        block(c, c_stride, a, a_stride, b, b_stride, k, add, 4, vectors);
    else
        block(c, c_stride, a, a_stride, b, b_stride, k, add, 2, vectors);
}

/* The number of rows is even: they come in blocks of 16. */
static void product(float *c, int64_t c_stride, const uint16_t *a, int64_t a_stride, const uint32_t *b,
                    int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add, ln_tile_shape shape) {
    m = ln_tile_whole(m, 16);
    n = ln_tile_whole(n, 16);
    k = ln_tile_whole(k, 32);
    for (int64_t j = 0; j < n; j += 16 * VECTORS)
        for (int64_t i = 0; i < m; i += ROWS) {
            const int64_t rows = ln_min_i64(ROWS, m - i),
                          depth = shape == LN_TILE_LOWER ? ln_min_i64(k, ln_tile_whole(i + rows, 2)) : k,
                          end = shape == LN_TILE_BELOW ? ln_min_i64(n, i + rows) : n;
            if (end <= j) continue;
            float *at = c + i * c_stride + j;
            const uint16_t *row = a + i * a_stride;
            switch (ln_min_i64(VECTORS, (end - j + 15) / 16)) {
            case 1:
                block_of(at, c_stride, row, a_stride, b + j, b_stride, depth, add, rows, 1);
                break;
            case 2:
                block_of(at, c_stride, row, a_stride, b + j, b_stride, depth, add, rows, 2);
                break;
            case 3:
                block_of(at, c_stride, row, a_stride, b + j, b_stride, depth, add, rows, 3);
                break;
            default:
                block_of(at, c_stride, row, a_stride, b + j, b_stride, depth, add, rows, VECTORS);
            }
        }
}

void ln_tile_fill_avx512bf16(ln_tile_kernels *kernels) {
    kernels->bf16 = (ln_tile_bf16){.name = "tile__avx512bf16",
                                   .rows = ln_tile_rows_512,
                                   .rows_turned = ln_tile_rows_turned_512,
                                   .pairs = ln_tile_pairs_512,
                                   .pairs_turned = ln_tile_pairs_turned_512,
                                   .product = product};
}
