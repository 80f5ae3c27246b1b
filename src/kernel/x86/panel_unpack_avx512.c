/* Owns: unpacking a row of a block format for the panel files of AVX-512. */
#include <string.h>

#include "kernel/x86/panel_unpack.h"
#include "kernel/x86/unpack_avx512.h"

LN_INLINE void unpack_row(ln_unpack512 unpack, int64_t block, int64_t bytes, const unsigned char *from, int64_t columns,
                          uint8_t *u, float *scale, float *minimum) {
    unsigned char last[8 * 34] = {0};
    for (int64_t c = 0; c < columns; c += 256, from += 256 / block * bytes) {
        if (columns - c < 256) {
            memcpy(last, from, (size_t)((columns - c) / block * bytes));
            from = last;
        }
        const ln_unpacked w = unpack(from);
        for (int k = 0; k < 4; k++) _mm512_storeu_si512(u + c + 64 * k, w.u[k]);
        _mm512_storeu_ps(scale + c / 16, w.scale);
        _mm512_storeu_ps(minimum + c / 16, w.minimum);
    }
}

void ln_unpack_row_512(linnet_type type, const unsigned char *from, int64_t columns, uint8_t *u, float *scale,
                       float *minimum) {
    switch (type) {
    case LINNET_Q4_0:
        unpack_row(ln_unpack512_q4_0, 32, 18, from, columns, u, scale, minimum);
        break;
    case LINNET_Q4_1:
        unpack_row(ln_unpack512_q4_1, 32, 20, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_0:
        unpack_row(ln_unpack512_q5_0, 32, 22, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_1:
        unpack_row(ln_unpack512_q5_1, 32, 24, from, columns, u, scale, minimum);
        break;
    case LINNET_Q8_0:
        unpack_row(ln_unpack512_q8_0, 32, 34, from, columns, u, scale, minimum);
        break;
    case LINNET_Q2_K:
        unpack_row(ln_unpack512_q2_k, 256, 84, from, columns, u, scale, minimum);
        break;
    case LINNET_Q3_K:
        unpack_row(ln_unpack512_q3_k, 256, 110, from, columns, u, scale, minimum);
        break;
    case LINNET_Q4_K:
        unpack_row(ln_unpack512_q4_k, 256, 144, from, columns, u, scale, minimum);
        break;
    case LINNET_Q5_K:
        unpack_row(ln_unpack512_q5_k, 256, 176, from, columns, u, scale, minimum);
        break;
    case LINNET_Q6_K:
        unpack_row(ln_unpack512_q6_k, 256, 210, from, columns, u, scale, minimum);
        break;
    default:
        break;
    }
}
