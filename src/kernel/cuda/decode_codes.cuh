/* Codes of a page as operands of products: each becomes exactly a bf16, and a granule (decode_layout.h) the left
 * operands of two products of 16 x 8 x 16.
 *
 *     value = step (code - zero),   zero = middle where the format has one for all.
 *
 * A byte is put into the mantissa of 2^23 of a float32, which is then taken away. A code of 4 bits or less is put into
 * that of 128, two at a time, and has this bias until after the product: what the bias has done is known from the
 * sum of the other operand. */
#ifndef LN_KERNEL_CUDA_DECODE_CODES_CUH
#define LN_KERNEL_CUDA_DECODE_CODES_CUH

#include <string.h>

#include "kernel/cuda/decode_layout.h"
#include "kernel/cuda/instructions.cuh"

namespace ln {

template <int FORMAT> struct page_codes {
    static constexpr ln_cuda_page_format format = (ln_cuda_page_format)FORMAT;
    static constexpr int bits = FORMAT <= LN_CUDA_PAGE_F16    ? 16
                                : FORMAT == LN_CUDA_PAGE_Q8_0 ? 8
                                : FORMAT == LN_CUDA_PAGE_Q2   ? 2
                                                              : 4;
    static constexpr bool plain = bits == 16, zeros = FORMAT == LN_CUDA_PAGE_Q4 || FORMAT == LN_CUDA_PAGE_Q2;
    static constexpr int words = plain ? 4 : bits / 2; /* of a granule */
    static constexpr bool biased = bits < 8;
    static constexpr int bias = biased ? 128 : 0, middle = bits == 4 ? 8 : bits == 2 ? 2 : 0;
};

/* Codes number i of the low and the high half of a word, with the bias. */
template <int BITS> static __device__ __forceinline__ uint32_t codes_pair(uint32_t word, int i) {
    constexpr uint32_t mask = ((1u << BITS) - 1) * 0x10001u;
    return take_bits(word >> BITS * i, mask, 0x43004300u);
}
/* Byte i of a word of signed bytes whose sign bits are turned. */
static __device__ __forceinline__ float byte_float(uint32_t word, int i) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540u | (unsigned)i)) - 8388736.0f;
}
/* The upper halves of two floats: exact where these are bf16. */
static __device__ __forceinline__ uint32_t upper_halves(float low, float high) {
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

/* Left operands whose rows are tokens: element k of product `step` is, for e = k % 2, value 8 c + i of the block, with
 * i = 2 (2 step + k / 8) + e for bytes and 2 step + k / 8 + 4 e for less. */
template <int BITS>
static __device__ __forceinline__ void key_operands(uint32_t (&left)[2][4], const uint32_t *granule) {
    if constexpr (BITS == 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t low = granule[i / 2] ^ 0x80808080u, high = granule[2 + i / 2] ^ 0x80808080u;
            const int byte = i % 2 * 2;
            left[i / 2][i % 2 * 2] = upper_halves(byte_float(low, byte), byte_float(low, byte + 1));
            left[i / 2][i % 2 * 2 + 1] = upper_halves(byte_float(high, byte), byte_float(high, byte + 1));
        }
    } else {
        const uint32_t low = BITS == 4 ? granule[0] : __byte_perm(granule[0], 0, 0x4140),
                       high = BITS == 4 ? granule[1] : __byte_perm(granule[0], 0, 0x4342);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            left[i / 2][i % 2 * 2] = codes_pair<BITS>(low, i);
            left[i / 2][i % 2 * 2 + 1] = codes_pair<BITS>(high, i);
        }
    }
}
/* Left operands whose rows are values: row l / 4 of product m is value 4 g + 2 m of the block, row l / 4 + 8 the one
 * after it. */
template <int BITS>
static __device__ __forceinline__ void value_operands(uint32_t (&left)[2][4], const uint32_t *granule) {
    if constexpr (BITS == 8) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = granule[i] ^ 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            left[i / 2][i % 2] = upper_halves(byte_float(word[0], i), byte_float(word[1], i));
            left[i / 2][i % 2 + 2] = upper_halves(byte_float(word[2], i), byte_float(word[3], i));
        }
    } else {
        const uint32_t low = BITS == 4 ? granule[0] : __byte_perm(granule[0], 0, 0x4140),
                       high = BITS == 4 ? granule[1] : __byte_perm(granule[0], 0, 0x4342);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            left[i / 2][i % 2] = codes_pair<BITS>(low, i);
            left[i / 2][i % 2 + 2] = codes_pair<BITS>(high, i);
        }
    }
}

static __device__ __forceinline__ float half_float(uint32_t bits) {
    const __half_raw raw = {(unsigned short)bits};
    return __half2float(__half(raw));
}
/* Eight elements of a query. */
static __device__ __forceinline__ void load_eight(float (&x)[8], const void *data, int64_t at, int element) {
    if (element == LN_CUDA_ELEMENT_FLOAT32) {
#pragma unroll
        for (int i = 0; i < 8; i += 4) *(float4 *)(x + i) = *(const float4 *)((const float *)data + at + i);
        return;
    }
    const uint4 four = *(const uint4 *)((const uint16_t *)data + at);
    const uint32_t word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t bits = word[i / 2] >> i % 2 * 16 & 0xffffu;
        x[i] = element == LN_CUDA_ELEMENT_BF16 ? __uint_as_float(bits << 16) : half_float(bits);
    }
}

/* The step in the low (0) or high half of a word of scales. */
template <int FORMAT> static __device__ __forceinline__ float step_of(uint32_t scales, int half) {
    const uint32_t bits = page_codes<FORMAT>::zeros ? (scales & 0xffc0ffc0u) >> 1 : scales;
    __half2 both;
    memcpy(&both, &bits, sizeof both);
    return half ? __high2float(both) : __low2float(both);
}
/* What is to be taken from a code with its bias, of a scale in the low half. */
template <int FORMAT> static __device__ __forceinline__ float zero_of(uint32_t scale) {
    if constexpr (page_codes<FORMAT>::zeros) {
        constexpr float unit = (float)((1 << page_codes<FORMAT>::bits) - 1) / 63;
        return fmaf((float)(scale & 63u), unit, (float)page_codes<FORMAT>::bias);
    } else {
        return 0.0f;
    }
}

} // namespace ln

#endif
