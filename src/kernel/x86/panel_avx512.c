/* Owns: the F32 form on AVX-512: 32 rows x 12 tokens, 24 sums in registers.
 *
 * A step loads 2 vectors of weights and 12 activations (each for both strips) for 24 multiply-adds. A panel of 256
 * columns is 32 KB: it stays in the first cache while all tokens pass. */
#include <immintrin.h>

#define LN_STEP_512(sums, w, x) _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sums)
#include "kernel/x86/pack_512.h"
#include "kernel/x86/panel_512.h"

enum { ROWS = 32 };

static void panel_f32(const void *panel, linnet_type type, int64_t rows, int64_t column, int64_t columns,
                      const ln_activation *x, int64_t first, int64_t tokens, float *y, int64_t y_stride) {
    (void)type;
    ln_panel_run_512(panel, 4, rows, column, columns, x, first, tokens, y, y_stride);
}

void ln_panel_fill_avx512(ln_matmul_kernels *kernels) {
    for (int exact = 0; exact < 2; exact++)
        ln_panel_fill(kernels, exact, ln_panel_any,
                      (ln_panel_slot){"panel_f32_32x12__avx512", LN_FORM_F32, ROWS, LN_F32_COLUMNS_512, ln_pack_f32_512,
                                      panel_f32});
}
