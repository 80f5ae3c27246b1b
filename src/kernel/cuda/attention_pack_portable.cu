/* Queries and keys with the factors of a bias behind them (P257): row [x, high, high, low] or [x, high, low, high],
 * high + low = scale * factor to 16 (bf16) or 22 (f16) bits. */
#include "kernel/cuda/attention_table.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

struct packing {
    const uint16_t *from;
    const float *factors;
    uint16_t *to;
    int64_t rows, token_stride, head_stride; /* rows: of all tokens and heads */
    float scale;
    int heads, size, rank, packed_size, half, keys;
};

template <bool HALF> static __device__ __forceinline__ uint16_t rounded(float x) {
    return (uint16_t)(pack_as<HALF>(x, 0.0f) & 0xffff);
}
template <bool HALF> static __device__ __forceinline__ float widened(uint16_t bits) {
    if (HALF) return __half2float(__ushort_as_half(bits));
    return __uint_as_float((uint32_t)bits << 16);
}

/* One warp a row. */
template <bool HALF> static __global__ void __launch_bounds__(256) attention_pack(const __grid_constant__ packing p) {
    const int64_t row = (int64_t)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= p.rows) return;
    const uint16_t *from = p.from + row / p.heads * p.token_stride + row % p.heads * p.head_stride;
    const float *factors = p.factors + row * p.rank;
    uint16_t *to = p.to + row * p.packed_size;
    for (int i = threadIdx.x % 32; i < p.packed_size; i += 32) {
        uint16_t bits = 0;
        if (i < p.size)
            bits = from[i];
        else if (i < p.size + 3 * p.rank) {
            const int group = (i - p.size) / p.rank;
            const float x = factors[(i - p.size) % p.rank] * p.scale;
            bits = rounded<HALF>(x);
            if (group == (p.keys ? 1 : 2)) bits = rounded<HALF>(x - widened<HALF>(bits));
        }
        to[i] = bits;
    }
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_attention_pack(const ln_cuda_tensor *from, int64_t size, const float *factors, int64_t rank,
                                    float scale, int64_t tokens, int64_t heads, bool half, bool keys,
                                    int64_t packed_size, void *to, void *stream) {
    if (tokens == 0) return LN_CUDA_OK;
    const packing p = {(const uint16_t *)from->data,
                       factors,
                       (uint16_t *)to,
                       tokens * heads,
                       from->token_stride,
                       from->head_stride,
                       scale,
                       (int)heads,
                       (int)size,
                       (int)rank,
                       (int)packed_size,
                       half,
                       keys};
    const dim3 grid((unsigned)((p.rows + 7) / 8));
    return half ? launch(attention_pack<true>, grid, dim3(256), 0, stream, p)
                : launch(attention_pack<false>, grid, dim3(256), 0, stream, p);
}
