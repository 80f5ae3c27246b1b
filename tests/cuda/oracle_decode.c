/* Owns: the CPU's codecs, compiled here from their sources (this program is not linked with the library), and what a
 * page holds. */
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

/* ---- pages ---- */

int64_t bytes_of_tokens(ln_cuda_page_format format, int size, int64_t tokens) {
    return format <= LN_CUDA_PAGE_F16 ? tokens * size * 2 : tokens / LN_CUDA_TILE * ln_cuda_tile_bytes(format, size);
}

unsigned char *row_of(const pages *p, int64_t page, int64_t head, int64_t token) {
    unsigned char *at = p->host + page * p->device.page_stride + head * p->device.head_stride;
    return at + (p->format <= LN_CUDA_PAGE_F16 ? token * p->device.token_stride
                                               : token / LN_CUDA_TILE * ln_cuda_tile_bytes(p->format, p->size));
}

static uint16_t random_scale(ln_cuda_page_format format, bool wild) {
    const double stretch = wild ? exp2((double)(random_next() % 34) - 16) : 1;
    const uint16_t half = f16_of((float)(stretch * (0.02 + 0.1 * random_uniform())));
    if (format == LN_CUDA_PAGE_Q8_0) return f16_of((float)(0.002 + 0.01 * random_uniform()));
    if (format == LN_CUDA_PAGE_Q4_0) return (uint16_t)(half | (random_next() & 1 ? 0x8000 : 0));
    return (uint16_t)(half >> 5 << 6 | (random_next() & 63));
}

void token_fill(const pages *p, int64_t page, int64_t head, int64_t token) {
    unsigned char *row = row_of(p, page, head, token);
    for (int i = 0; i < p->size; i++) {
        if (p->format <= LN_CUDA_PAGE_F16) {
            const uint16_t x = p->format == LN_CUDA_PAGE_F16 ? f16_of(random_normal()) : bf16_of(random_normal());
            memcpy(row + 2 * i, &x, 2);
            continue;
        }
        const int in_tile = (int)(token % LN_CUDA_TILE), bits = ln_cuda_page_bits(p->format);
        if (i % 32 == 0) {
            const uint16_t scale = random_scale(p->format, p->wild);
            memcpy(row + ln_cuda_scale_place(p->format, p->values, p->size, in_tile, i / 32), &scale, 2);
        }
        int bit;
        const int place = ln_cuda_code_place(p->format, p->values, p->size, in_tile, i, &bit);
        const unsigned mask = (1u << bits) - 1u, code = (unsigned)random_next() & mask;
        row[place] = (unsigned char)((row[place] & ~(mask << bit)) | code << bit);
    }
}

double value_at(const pages *p, int64_t page, int64_t head, int64_t token, int i) {
    const unsigned char *row = row_of(p, page, head, token);
    uint16_t half;
    if (p->format <= LN_CUDA_PAGE_F16) {
        memcpy(&half, row + 2 * i, 2);
        return (double)(p->format == LN_CUDA_PAGE_F16 ? of_f16(half) : of_bf16(half));
    }
    const int in_tile = (int)(token % LN_CUDA_TILE), bits = ln_cuda_page_bits(p->format);
    memcpy(&half, row + ln_cuda_scale_place(p->format, p->values, p->size, in_tile, i / 32), 2);
    int bit;
    const int place = ln_cuda_code_place(p->format, p->values, p->size, in_tile, i, &bit);
    const int code = row[place] >> bit & ((1 << bits) - 1);
    if (p->format == LN_CUDA_PAGE_Q8_0) return (double)of_f16(half) * (int8_t)code;
    if (p->format == LN_CUDA_PAGE_Q4_0) return (double)of_f16(half) * (code - 8);
    const double zero = (half & 63) * ((1 << bits) - 1) / 63.0;
    return (double)of_f16((uint16_t)(half >> 6 << 5)) * (code - zero);
}
