/* Owns: tile products of bf16 on AMX: 32 x 32 sums in four tiles, 32 of k a step. */
#include "kernel/x86/amx.h"
#include "kernel/x86/tile_pack_512.h"

enum { SIDE = 16, DEPTH = 32 };

typedef struct tile_square {
    float *c;
    int64_t c_stride;
    const uint16_t *a;
    int64_t a_stride;
    const uint32_t *b;
    int64_t b_stride;
    int64_t k;
    bool add;
} tile_square;

/* down, across: whether there are a second 16 rows, a second 16 columns. */
LN_INLINE void run(const tile_square *s, const bool down, const bool across) {
    const int64_t c_bytes = s->c_stride * 4, a_bytes = s->a_stride * 2, b_bytes = s->b_stride * 4;
    float *below = s->c + SIDE * s->c_stride;
    ln_amx_fence();
    if (s->add) {
        _tile_loadd(0, s->c, c_bytes);
        if (across) _tile_loadd(1, s->c + SIDE, c_bytes);
        if (down) _tile_loadd(2, below, c_bytes);
        if (down && across) _tile_loadd(3, below + SIDE, c_bytes);
    } else {
        _tile_zero(0);
        if (across) _tile_zero(1);
        if (down) _tile_zero(2);
        if (down && across) _tile_zero(3);
    }
    for (int64_t k = 0; k < s->k; k += DEPTH) {
        const uint32_t *b = s->b + k / 2 * s->b_stride;
        _tile_loadd(4, s->a + k, a_bytes);
        _tile_loadd(6, b, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (across) _tile_loadd(7, b + SIDE, b_bytes);
        if (across) _tile_dpbf16ps(1, 4, 7);
        if (down) _tile_loadd(5, s->a + SIDE * s->a_stride + k, a_bytes);
        if (down) _tile_dpbf16ps(2, 5, 6);
        if (down && across) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s->c, c_bytes);
    if (across) _tile_stored(1, s->c + SIDE, c_bytes);
    if (down) _tile_stored(2, below, c_bytes);
    if (down && across) _tile_stored(3, below + SIDE, c_bytes);
    ln_amx_fence();
}

static _Thread_local bool held;

static void set_up(void) {
    const ln_amx_shape tiles = ln_amx_shape_of(64);
    ln_amx_configure(&tiles);
}

static void hold(bool on) {
    if (on)
        set_up();
    else
        ln_amx_release();
    held = on;
}

static void product(float *c, int64_t c_stride, const uint16_t *a, int64_t a_stride, const uint32_t *b,
                    int64_t b_stride, int64_t m, int64_t n, int64_t k, bool add, ln_tile_shape shape) {
    const bool alone = !held;
    if (alone) set_up();
    for (int64_t i = 0; i < m; i += 2 * SIDE) {
        const bool down = m - i > SIDE;
        const int64_t rows = down ? 2 * SIDE : SIDE, end = shape == LN_TILE_BELOW ? ln_min_i64(n, i + rows) : n,
                      depth = shape == LN_TILE_LOWER ? ln_min_i64(k, i + rows) : k;
        for (int64_t j = 0; j < end; j += 2 * SIDE) {
            const bool across = end - j > SIDE;
            const tile_square s = {
                c + i * c_stride + j, c_stride, a + i * a_stride, a_stride, b + j, b_stride, depth, add};
            if (down && across)
                run(&s, true, true);
            else if (down)
                run(&s, true, false);
            else if (across)
                run(&s, false, true);
            else
                run(&s, false, false);
        }
    }
    if (alone) ln_amx_release();
}

void ln_tile_fill_amx(ln_tile_kernels *kernels) {
    kernels->bf16 = (ln_tile_bf16){.name = "tile__amx",
                                   .rows = ln_tile_rows_512,
                                   .rows_turned = ln_tile_rows_turned_512,
                                   .pairs = ln_tile_pairs_512,
                                   .pairs_turned = ln_tile_pairs_turned_512,
                                   .product = product,
                                   .hold = hold};
}
