/* Owns: the CPU's codecs, compiled here from their sources: this program is not linked with the library. */
#include "oracle_decode.h"

#include "kernel/low_bits.c"
#include "number/format.c"

static int bits_of(ln_cuda_page_format format) {
    return format == LN_CUDA_PAGE_Q2 ? 2 : 4;
}

void oracle_encode(ln_cuda_page_format format, const float *values, uint8_t *codes, uint16_t *scale) {
    unsigned char block[34];
    if (format == LN_CUDA_PAGE_Q4 || format == LN_CUDA_PAGE_Q2) {
        *scale = ln_fit_token(values, 32, bits_of(format), codes);
        return;
    }
    ln_format_of(format == LN_CUDA_PAGE_Q8_0 ? LINNET_Q8_0 : LINNET_Q4_0)->encode(values, block, 32);
    memcpy(scale, block, sizeof *scale);
    for (int i = 0; i < 32; i++)
        codes[i] = format == LN_CUDA_PAGE_Q8_0 ? block[2 + i] : block[2 + i % 16] >> (i < 16 ? 0 : 4) & 15;
}

float oracle_decode(ln_cuda_page_format format, uint8_t code, uint16_t scale) {
    if (format == LN_CUDA_PAGE_Q8_0) return ln_f16_float(scale) * (float)(int8_t)code;
    if (format == LN_CUDA_PAGE_Q4_0) return ln_f16_float(scale) * (float)(code - 8);
    return ln_token_step(scale) * (float)code + ln_token_minimum(scale, bits_of(format));
}

uint16_t oracle_half(ln_cuda_page_format format, float value) {
    return format == LN_CUDA_PAGE_F16 ? ln_float_f16(value) : ln_float_bf16(value);
}
