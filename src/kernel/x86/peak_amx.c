/* Owns: the peak loops of AMX: tile products, four sums from two by two operands. */
#include "kernel/peak.h"
#include "kernel/x86/amx.h"

enum { STEPS = 4, PRODUCTS = 16 * 16 * 16 /* dwords times dwords in one instruction */ };

static void clear_tiles(void) {
    const ln_amx_shape shape = ln_amx_shape_of(64);
    ln_amx_configure(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

double ln_peak_bf16_amx(int64_t rounds) {
    clear_tiles();
    for (int64_t i = 0; i < rounds; i++) {
        for (int s = 0; s < STEPS; s++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    ln_amx_release();
    return 2.0 * 2 * PRODUCTS * 4 * STEPS * (double)rounds;
}

double ln_peak_int8_amx(int64_t rounds) {
    clear_tiles();
    for (int64_t i = 0; i < rounds; i++) {
        for (int s = 0; s < STEPS; s++) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    ln_amx_release();
    return 2.0 * 4 * PRODUCTS * 4 * STEPS * (double)rounds;
}
