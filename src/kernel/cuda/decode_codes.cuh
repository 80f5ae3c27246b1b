/* Codes of a page as operands of products: each becomes a bf16 that is exactly the code less `middle`; a granule
 * (decode_layout.h) becomes the left operands of two products of 16 x 8 x 16.
 *
 *     value = step (code - middle - zero).
 *
 * A code of 4 bits or less is put into the mantissa of 128, two at a time; a byte into that of 2^23 of a float32. */
#ifndef LN_KERNEL_CUDA_DECODE_CODES_CUH
#define LN_KERNEL_CUDA_DECODE_CODES_CUH

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
    static constexpr int middle = bits == 4 ? 8 : bits == 2 ? 2 : 0;
};

/* Two bf16 less a number that both have. */
static __device__ __forceinline__ uint32_t subtract_pair(uint32_t pair, float number) {
    const __nv_bfloat162 less = __hsub2(*(const __nv_bfloat162 *)&pair, __float2bfloat162_rn(number));
    return *(const uint32_t *)&less;
}
/* Codes number i of the low and the high half of a word. */
template <int BITS> static __device__ __forceinline__ uint32_t codes_pair(uint32_t word, int i) {
    constexpr uint32_t mask = ((1u << BITS) - 1) * 0x10001u;
    return subtract_pair((word >> BITS * i & mask) | 0x43004300u, 128.0f + (1 << (BITS - 1)));
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
/* The step and the zero of a block's scale. */
template <int FORMAT> static __device__ __forceinline__ float step_of(uint32_t scale) {
    return half_float(page_codes<FORMAT>::zeros ? (scale & 0xffffu) >> 6 << 5 : scale & 0xffffu);
}
template <int FORMAT> static __device__ __forceinline__ float zero_of(uint32_t scale) {
    if constexpr (page_codes<FORMAT>::zeros) {
        constexpr float unit = (float)((1 << page_codes<FORMAT>::bits) - 1) / 63;
        return fmaf((float)(scale & 63u), unit, -(float)page_codes<FORMAT>::middle);
    } else {
        return 0.0f;
    }
}

} // namespace ln

#endif
