/* One thread a gate, or where tokens are summed a block a head. */
#include "kernel/cuda/gates_cuda.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { GATE_THREADS = 256 };

/* What is done with each gate. */
struct gate_work {
    int64_t count;
    int heads;
    ln_cuda_gate each;
    const float *one, *other, *rate;
    int64_t rate_stride;
    float factor;
    ln_cuda_tensor to;
};
enum gate_kind { GATE_PRODUCT, GATE_SIGMOID, GATE_ADD, GATE_SIGMOID_BACK };

static __device__ __forceinline__ float each_at(const gate_work &w, int64_t token, int64_t head) {
    return w.each.data ? w.each.data[token * w.each.token_stride + head * w.each.head_stride] : 1;
}

template <gate_kind KIND>
static __global__ void __launch_bounds__(GATE_THREADS) gates_make(const __grid_constant__ gate_work w) {
    const int64_t at = (int64_t)blockIdx.x * GATE_THREADS + threadIdx.x;
    if (at >= w.count) return;
    const int64_t token = at / w.heads, head = at % w.heads;
    const float rate = w.rate ? w.rate[head * w.rate_stride] : 1;
    float y;
    if (KIND == GATE_PRODUCT) y = w.factor * rate * each_at(w, token, head);
    if (KIND == GATE_SIGMOID) y = 1 / (1 + exponential(-1.4426950408889634f * each_at(w, token, head)));
    if (KIND == GATE_ADD) y = (w.one ? w.one[at] : 0) + rate * w.other[at];
    if (KIND == GATE_SIGMOID_BACK) y = w.other[at] * w.one[at] * (1 - w.one[at]);
    ((float *)w.to.data)[token * w.to.token_stride + head * w.to.head_stride] = y;
}

static __global__ void __launch_bounds__(GATE_THREADS) gates_sum(const __grid_constant__ gate_work w) {
    float *parts = (float *)block_memory(), sum = 0;
    const int64_t tokens = w.count / w.heads;
    for (int64_t token = threadIdx.x; token < tokens; token += GATE_THREADS)
        sum += each_at(w, token, blockIdx.x) * w.other[token * w.heads + blockIdx.x];
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    sum = 0;
    for (int i = 0; i < GATE_THREADS / 32; i++) sum += parts[i];
    ((float *)w.to.data)[blockIdx.x * w.to.head_stride] = w.factor * sum;
}

template <gate_kind KIND> static ln_cuda_code gates_start(const gate_work &work, void *stream) {
    if (work.count == 0) return LN_CUDA_OK;
    return launch(gates_make<KIND>, dim3((unsigned)((work.count + GATE_THREADS - 1) / GATE_THREADS)),
                  dim3(GATE_THREADS), 0, stream, work);
}

static ln_cuda_tensor packed(float *data, int64_t heads) {
    return {data, heads, 1};
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_gate_product(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *rate,
                                  int64_t rate_stride, float factor, float *product, void *stream) {
    return gates_start<GATE_PRODUCT>(
        {tokens * heads, (int)heads, each, NULL, NULL, rate, rate_stride, factor, packed(product, heads)}, stream);
}

ln_cuda_code ln_cuda_gate_sigmoid(int64_t tokens, int64_t heads, ln_cuda_gate each, float *made, void *stream) {
    return gates_start<GATE_SIGMOID>({tokens * heads, (int)heads, each, NULL, NULL, NULL, 0, 1, packed(made, heads)},
                                     stream);
}

ln_cuda_code ln_cuda_gate_add(int64_t tokens, int64_t heads, const float *one, const float *rate, int64_t rate_stride,
                              const float *other, ln_cuda_tensor to, void *stream) {
    return gates_start<GATE_ADD>({tokens * heads, (int)heads, {}, one, other, rate, rate_stride, 1, to}, stream);
}

ln_cuda_code ln_cuda_gate_sigmoid_back(int64_t tokens, int64_t heads, const float *made, const float *gradient,
                                       ln_cuda_tensor to, void *stream) {
    return gates_start<GATE_SIGMOID_BACK>({tokens * heads, (int)heads, {}, made, gradient, NULL, 0, 1, to}, stream);
}

ln_cuda_code ln_cuda_gate_sum(int64_t tokens, int64_t heads, ln_cuda_gate each, const float *gradient, float factor,
                              float *to, int64_t stride, void *stream) {
    const gate_work work = {tokens * heads, (int)heads, each, NULL, gradient, NULL, 0, factor, {to, 0, stride}};
    return launch(gates_sum, dim3((unsigned)heads), dim3(GATE_THREADS), GATE_THREADS / 32 * 4, stream, work);
}
