/* Owns: products of pairs of bf16 on AMX: 32 x 32 sums in four tiles. */
#include <immintrin.h>

#include "kernel/attend_sets.h"
#include "kernel/x86/amx.h"

enum {
    TILE = 32,
    NEAR = 64 /* rows of A that stay in the first cache */
};

static void start(void) {
    const ln_amx_shape shape = ln_amx_shape_of(64);
    ln_amx_configure(&shape);
}
static void stop(void) {
    ln_amx_release();
}

static inline void tile(const unsigned char *a, int64_t a_stride, const unsigned char *b, int64_t b_stride,
                        int64_t depth, float *c, bool add) {
    enum { C_STRIDE = LN_ATTEND_STRIDE * sizeof(float), DOWN = 16 * LN_ATTEND_STRIDE };
    if (add) {
        _tile_loadd(0, c, C_STRIDE);
        _tile_loadd(1, c + 16, C_STRIDE);
        _tile_loadd(2, c + DOWN, C_STRIDE);
        _tile_loadd(3, c + DOWN + 16, C_STRIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += 32, a += 64, b += 16 * b_stride) {
        _tile_loadd(4, a, a_stride);
        _tile_loadd(6, b, b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 64, b_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 16 * a_stride, a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, C_STRIDE);
    _tile_stored(1, c + 16, C_STRIDE);
    _tile_stored(2, c + DOWN, C_STRIDE);
    _tile_stored(3, c + DOWN + 16, C_STRIDE);
}

static void product(const void *a, int64_t a_stride, const void *b, int64_t b_stride, int64_t rows, int64_t columns,
                    int64_t depth, float *c, bool add) {
    ln_amx_fence();
    for (int64_t first = 0; first < rows; first += NEAR)
        for (int64_t j = 0; j < columns; j += TILE)
            for (int64_t i = first; i < rows && i < first + NEAR; i += TILE)
                tile((const unsigned char *)a + i * a_stride, a_stride, (const unsigned char *)b + 4 * j, b_stride,
                     depth, c + i * LN_ATTEND_STRIDE + j, add);
    ln_amx_fence();
}

void ln_attend_fill_pairs_amx(ln_attend_kernels *kernels) {
    kernels->pairs.name = "attend_pairs__amx";
    kernels->pairs.start = start;
    kernels->pairs.stop = stop;
    kernels->pairs.product = product;
}
