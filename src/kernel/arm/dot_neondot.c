/* Owns: the fast dot kernels of the block formats with the int8 dot product instructions. */
#include "kernel/arm/dot_neon_body.h"

static inline int32x4_t dot16(int8x16_t q, int8x16_t xq) {
    return vdotq_s32(vdupq_n_s32(0), q, xq);
}

void ln_dot_fill_neondot(ln_matmul_kernels *kernels) {
#define LN_FILL(name, NAME, block, bytes, has_minimum) LN_FILL_INT8(name, NAME, "neondot")
    LN_BLOCK_FORMATS(LN_FILL)
}
