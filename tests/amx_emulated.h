/* The tile instructions of AMX in plain C, so that the kernels' logic is tested on any processor. They check the shapes
 * that the processor would refuse. */
#ifndef TESTS_AMX_EMULATED_H
#define TESTS_AMX_EMULATED_H

#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LN_AMX_EMULATED
#include "kernel/x86/amx.h"
#include "number/format.h"

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_zero(tile) emulated_zero(tile)
#define _tile_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) emulated_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) emulated_bf16(c, a, b)
#define _tile_dpbsud(c, a, b) emulated_sud(c, a, b)

static struct {
    int configured;
    ln_amx_shape shape;
    unsigned char tile[8][16][64];
} emulated;

static void emulated_require(int true_here, const char *what) {
    if (true_here) return;
    fprintf(stderr, "tile instruction refused: %s\n", what);
    abort();
}

static inline void ln_amx_configure(const ln_amx_shape *shape) {
    emulated.shape = *shape;
    emulated_require(shape->palette == 1 && shape->start_row == 0, "palette");
    for (int i = 0; i < 8; i++)
        emulated_require(shape->rows[i] >= 1 && shape->rows[i] <= 16 && shape->column_bytes[i] <= 64 &&
                             shape->column_bytes[i] % 4 == 0 && shape->column_bytes[i] > 0,
                         "shape");
    for (int i = 8; i < 16; i++) emulated_require(!shape->rows[i] && !shape->column_bytes[i], "tile number");
    memset(emulated.tile, 0, sizeof emulated.tile);
    emulated.configured = 1;
}
static inline void ln_amx_release(void) {
    emulated.configured = 0;
}

static inline void emulated_zero(int tile) {
    emulated_require(emulated.configured, "not configured");
    memset(emulated.tile[tile], 0, sizeof emulated.tile[tile]);
}
static inline void emulated_load(int tile, const void *base, int64_t stride) {
    emulated_zero(tile);
    for (int i = 0; i < emulated.shape.rows[tile]; i++)
        memcpy(emulated.tile[tile][i], (const unsigned char *)base + i * stride, emulated.shape.column_bytes[tile]);
}
static inline void emulated_store(int tile, void *base, int64_t stride) {
    emulated_require(emulated.configured, "not configured");
    for (int i = 0; i < emulated.shape.rows[tile]; i++)
        memcpy((unsigned char *)base + i * stride, emulated.tile[tile][i], emulated.shape.column_bytes[tile]);
}

static void emulated_check_product(int c, int a, int b) {
    const ln_amx_shape *s = &emulated.shape;
    emulated_require(emulated.configured && c != a && c != b && a != b, "tiles of a product");
    emulated_require(s->rows[c] == s->rows[a] && s->column_bytes[a] == 4 * s->rows[b] &&
                         s->column_bytes[c] == s->column_bytes[b],
                     "shapes of a product");
}

/* Tile products read denormal numbers as zero, and write zero for them. */
static inline float emulated_flush(float x) {
    return x > -0x1p-126f && x < 0x1p-126f ? 0 * x : x;
}

static inline void emulated_bf16(int c, int a, int b) {
    emulated_check_product(c, a, b);
    for (int k = 0; k < emulated.shape.column_bytes[a] / 4; k++) {
        float w[2][16] = {{0}};
        for (int n = 0; n < emulated.shape.column_bytes[c] / 4; n++) {
            uint16_t pair[2];
            memcpy(pair, emulated.tile[b][k] + 4 * n, 4);
            for (int i = 0; i < 2; i++) w[i][n] = emulated_flush(ln_bf16_float(pair[i]));
        }
        for (int m = 0; m < emulated.shape.rows[c]; m++) {
            uint16_t pair[2];
            float sum[16];
            memcpy(pair, emulated.tile[a][m] + 4 * k, 4);
            const float x0 = emulated_flush(ln_bf16_float(pair[0])), x1 = emulated_flush(ln_bf16_float(pair[1]));
            memcpy(sum, emulated.tile[c][m], sizeof sum);
            for (int n = 0; n < 16; n++) sum[n] = emulated_flush(emulated_flush(sum[n] + x0 * w[0][n]) + x1 * w[1][n]);
            memcpy(emulated.tile[c][m], sum, emulated.shape.column_bytes[c]);
        }
    }
}

static inline void emulated_sud(int c, int a, int b) {
    emulated_check_product(c, a, b);
    for (int m = 0; m < emulated.shape.rows[c]; m++) {
        for (int k = 0; k < emulated.shape.column_bytes[a] / 4; k++) {
            for (int n = 0; n < emulated.shape.column_bytes[c] / 4; n++) {
                int32_t sum;
                memcpy(&sum, emulated.tile[c][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++)
                    sum += (int8_t)emulated.tile[a][m][4 * k + i] * (int)emulated.tile[b][k][4 * n + i];
                memcpy(emulated.tile[c][m] + 4 * n, &sum, 4);
            }
        }
    }
}

#endif
