/* One thread a gate. */
#include "kernel/cuda/gates_cuda.h"
#include "kernel/cuda/launch.cuh"

namespace ln {

static __global__ void __launch_bounds__(256)
    gate_product(int64_t count, int heads, ln_cuda_gate each, const float *rate, int64_t rate_stride, float factor,
                 float *product) {
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const int64_t token = at / heads, head = at % heads;
    float y = factor * rate[head * rate_stride];
    if (each.data) y *= each.data[token * each.token_stride + head * each.head_stride];
    product[at] = y;
}

} // namespace ln

ln_cuda_code ln_cuda_gate_product(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *rate,
                                  int64_t rate_stride, float factor, float *product, void *stream) {
    const int64_t count = tokens * heads;
    if (count == 0) return LN_CUDA_OK;
    return ln::launch(ln::gate_product, dim3((unsigned)((count + 255) / 256)), dim3(256), 0, stream, count, (int)heads,
                      each, rate, rate_stride, factor, product);
}
