/* How codes of keys and values lie in a page on the device: in tiles of 16 tokens, in the order in which the lanes of a
 * warp need them as operands of a 16 x 8 x 16 product, so that a lane reads 16 bytes at a time and no lane reads what
 * it does not need.
 *
 * Lane l stands for the pair g = l / 4, c = l % 4. Of each block of 32 values it has a granule of 2 bits bytes:
 *     keys    values 8 c .. 8 c + 7 of token g, then of token g + 8;
 *     values  values 4 g .. 4 g + 3 of tokens 2 c, 2 c + 1, 2 c + 8, 2 c + 9.
 * Codes follow one another from the lowest bit on. A lane's granules are cut into pieces of 16 bytes (at the end of 8
 * and 4), and a tile is the first piece of all lanes, then the second, and so on; then the scales, of each g those of
 * tokens g and g + 8 of all blocks; of values of q4_0, of each c and block those of tokens 2 c, 2 c + 1, 2 c + 8,
 * 2 c + 9. */
#ifndef LN_KERNEL_CUDA_DECODE_LAYOUT_H
#define LN_KERNEL_CUDA_DECODE_LAYOUT_H

#include "kernel/cuda/decode_cuda.h"

#ifdef __CUDACC__
#define LN_BOTH static __host__ __device__ __forceinline__
#else
#define LN_BOTH static inline
#endif

/* Bits of a code, or of an element. */
LN_BOTH int ln_cuda_page_bits(ln_cuda_page_format format) {
    return format <= LN_CUDA_PAGE_F16 ? 16 : format == LN_CUDA_PAGE_Q8_0 ? 8 : format == LN_CUDA_PAGE_Q2 ? 2 : 4;
}
LN_BOTH int ln_cuda_tile_codes(ln_cuda_page_format format, int size) {
    return LN_CUDA_TILE * size * ln_cuda_page_bits(format) / 8;
}
LN_BOTH int ln_cuda_tile_size(ln_cuda_page_format format, int size) {
    return ln_cuda_tile_codes(format, size) + (format <= LN_CUDA_PAGE_F16 ? 0 : size);
}

/* Where a lane's byte `at` of its codes is in a tile, of which every lane has `bytes`. */
LN_BOTH int ln_cuda_lane_place(int bytes, int lane, int at) {
    const int whole = bytes / 16 * 16, left = bytes - whole;
    if (at < whole) return at / 16 * 512 + lane * 16 + at % 16;
    at -= whole;
    if (left >= 8 && at < 8) return whole * 32 + lane * 8 + at;
    return whole * 32 + (left >= 8 ? 256 : 0) + lane * 4 + at % 4;
}

/* Byte of a tile and bit of it where the code of value i of a token is. */
LN_BOTH int ln_cuda_code_place(ln_cuda_page_format format, bool values, int size, int token, int i, int *bit) {
    const int bits = ln_cuda_page_bits(format), inside = i % 32, half = token / 8;
    const int lane = values ? inside / 4 * 4 + token % 8 / 2 : token % 8 * 4 + inside / 8;
    const int code = values ? (token % 2 + 2 * half) * 4 + inside % 4 : half * 8 + inside % 8;
    *bit = code * bits % 8;
    return ln_cuda_lane_place(size / 16 * bits, lane, i / 32 * 2 * bits + code * bits / 8);
}
/* Byte of a tile where the scale of a token's block of 32 values is, 2 bytes. */
LN_BOTH int ln_cuda_scale_place(ln_cuda_page_format format, bool values, int size, int token, int block) {
    const int blocks = size / 32, half = token / 8, line = token % 8;
    const int at = values && format == LN_CUDA_PAGE_Q4_0 ? ((line / 2 * blocks + block) * 2 + half) * 2 + line % 2
                                                         : (line * blocks + block) * 2 + half;
    return ln_cuda_tile_codes(format, size) + at * 2;
}

#endif
