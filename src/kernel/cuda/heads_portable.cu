/* Heads between products and attention, a warp a head; and attention for sizes that have no kernel of their own, a warp
 * for every fourth key, joined in their order. */
#include "kernel/cuda/heads_cuda.h"
#include "kernel/cuda/instructions.cuh"
#include "kernel/cuda/launch.cuh"

namespace ln {

enum { HEAD_WARPS = 4, HEAD_MOST = 576, HEAD_LANES = HEAD_MOST / 32 };

static __device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int i = 16; i; i /= 2) value += __shfl_xor_sync(0xffffffffu, value, i);
    return value;
}

/* The head as it turns: value i of it. */
static __device__ __forceinline__ float turned(const float *head, const float *cosine, const float *sine, int size,
                                               bool half, int i) {
    if (i >= size) return head[i];
    const int pair = half ? i % (size / 2) : i / 2;
    const bool second = half ? i >= size / 2 : i % 2;
    const float x = head[half ? pair : 2 * pair], y = head[half ? pair + size / 2 : 2 * pair + 1];
    return second ? x * sine[pair] + y * cosine[pair] : x * cosine[pair] - y * sine[pair];
}

static __global__ void __launch_bounds__(32 * HEAD_WARPS) prepare_heads(const __grid_constant__ ln_cuda_heads run) {
    __shared__ float room[HEAD_WARPS][HEAD_MOST];
    const int lane = threadIdx.x % 32;
    float *head = room[threadIdx.x / 32];
    let_next_start();
    wait_for_previous();
    int64_t number = (int64_t)blockIdx.x * HEAD_WARPS + threadIdx.x / 32;
    int which = 0;
    while (which < 3 && number >= run.part[which].heads) number -= run.part[which++].heads;
    if (which == 3) return;
    const ln_cuda_head_rows &part = run.part[which];
    const int64_t at = (blockIdx.y * part.heads + number) * part.size;
    const int size = (int)part.size;
    float squares = 0;
    for (int i = lane; i < size; i += 32) {
        const float x = part.from[at + i] + (part.bias ? part.bias[number * size + i] : 0.0f);
        head[i] = x;
        squares += x * x;
    }
    if (part.norm) {
        const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)size + run.epsilon);
        for (int i = lane; i < size; i += 32) head[i] = head[i] * factor * part.norm[i];
    }
    __syncwarp();
    const int64_t pairs = run.rotary_size / 2;
    const float *cosine = run.cosine + blockIdx.y * pairs, *sine = run.sine + blockIdx.y * pairs;
    const ln_cuda_head_pages &pages = part.pages;
    char *row = NULL;
    if (pages.part.data) {
        const int64_t lane_of = pages.table_stride ? number : 0, inside = pages.table_stride ? 0 : number;
        const int64_t token = pages.length[lane_of] - run.tokens + blockIdx.y,
                      page = pages.table[lane_of * pages.table_stride + token / pages.page_tokens];
        row = (char *)pages.part.data + page * pages.part.page_stride + inside * pages.part.head_stride +
              token % pages.page_tokens * pages.part.token_stride;
    }
    for (int i = lane; i < size; i += 32) {
        const float x = part.rotated ? turned(head, cosine, sine, (int)run.rotary_size, run.half, i) : head[i];
        if (row && pages.format == LN_CUDA_PAGE_F16)
            ((__half *)row)[i] = __float2half(x);
        else if (row)
            ((__nv_bfloat16 *)row)[i] = __float2bfloat16(x);
        else if (part.float32)
            ((float *)part.to)[at + i] = x;
        else
            ((__nv_bfloat16 *)part.to)[at + i] = __float2bfloat16(x);
    }
}

/* ---- any size ---- */

struct any_run {
    ln_cuda_decode of;
    ln_cuda_decode_tensors on;
};

static __device__ __forceinline__ const char *row_of(const any_run &run, const ln_cuda_page_part &part, int64_t token,
                                                     int64_t head) {
    const int64_t tokens = run.of.page_tokens, page = run.on.page_table[token / tokens];
    return (const char *)part.data + page * part.page_stride + head * part.head_stride +
           token % tokens * part.token_stride;
}
static __device__ __forceinline__ float element(const any_run &run, const char *row, int i) {
    return run.of.format == LN_CUDA_PAGE_BF16 ? __bfloat162float(((const __nv_bfloat16 *)row)[i])
                                              : __half2float(((const __half *)row)[i]);
}

/* What a warp has of the softmax: largest score, sum, weighted values. */
static __global__ void __launch_bounds__(32 * HEAD_WARPS) attend_any(const __grid_constant__ any_run run) {
    __shared__ float sums[HEAD_WARPS][HEAD_MOST], most[HEAD_WARPS], total[HEAD_WARPS];
    let_next_start();
    wait_for_previous();
    const ln_cuda_decode &of = run.of;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x, query = blockIdx.y;
    const int key_size = (int)of.key_size, value_size = (int)of.value_size;
    const int64_t shared_head = head / (of.heads / of.key_value_heads);
    const int64_t position = run.on.lengths[0] - of.queries + query;
    const int64_t first = of.window && position >= of.window ? position - of.window + 1 : 0;
    const int64_t query_at = query * run.on.query.token_stride + head * run.on.query.head_stride;
    float q[HEAD_LANES], sum[HEAD_LANES], largest = -CUDART_INF_F, weights = 0;
#pragma unroll
    for (int i = 0; i < HEAD_LANES; i++) {
        const int at = lane + 32 * i;
        sum[i] = q[i] = 0;
        if (at < key_size)
            q[i] = of.query_element == LN_CUDA_ELEMENT_FLOAT32
                       ? ((const float *)run.on.query.data)[query_at + at]
                       : __bfloat162float(((const __nv_bfloat16 *)run.on.query.data)[query_at + at]);
    }
    for (int64_t token = first + warp; token <= position; token += HEAD_WARPS) {
        const char *key = row_of(run, run.on.key, token, shared_head);
        float score = 0;
#pragma unroll
        for (int i = 0; i < HEAD_LANES; i++)
            if (lane + 32 * i < key_size) score += q[i] * element(run, key, lane + 32 * i);
        score = of.scale * warp_sum(score);
        if (of.soft_cap > 0) score = of.soft_cap * tanhf(score / of.soft_cap);
        const float now = fmaxf(largest, score), keep = expf(largest - now), weight = expf(score - now);
        const char *value = row_of(run, run.on.value, token, shared_head);
        weights = keep * weights + weight;
        largest = now;
#pragma unroll
        for (int i = 0; i < HEAD_LANES; i++)
            if (lane + 32 * i < value_size) sum[i] = keep * sum[i] + weight * element(run, value, lane + 32 * i);
    }
#pragma unroll
    for (int i = 0; i < HEAD_LANES; i++)
        if (lane + 32 * i < value_size) sums[warp][lane + 32 * i] = sum[i];
    if (lane == 0) most[warp] = largest, total[warp] = weights;
    __syncthreads();
    float all = 0, factor[HEAD_WARPS];
    largest = most[0];
    for (int w = 1; w < HEAD_WARPS; w++) largest = fmaxf(largest, most[w]);
#pragma unroll
    for (int w = 0; w < HEAD_WARPS; w++) {
        factor[w] = most[w] > -CUDART_INF_F ? expf(most[w] - largest) : 0.0f;
        all += factor[w] * total[w];
    }
    const int64_t to = query * run.on.output.token_stride + head * run.on.output.head_stride;
    for (int i = threadIdx.x; i < value_size; i += 32 * HEAD_WARPS) {
        float value = 0;
#pragma unroll
        for (int w = 0; w < HEAD_WARPS; w++) value += factor[w] * sums[w][i];
        value /= all;
        if (of.output_element == LN_CUDA_ELEMENT_FLOAT32)
            ((float *)run.on.output.data)[to + i] = value;
        else
            ((__nv_bfloat16 *)run.on.output.data)[to + i] = __float2bfloat16(value);
    }
}

struct gather_run {
    any_run any;
    ln_cuda_tensor to[2]; /* keys, values */
    int64_t first;
};

static __global__ void gather_any(const __grid_constant__ gather_run run) {
    let_next_start();
    wait_for_previous();
    const ln_cuda_decode &of = run.any.of;
    const int which = blockIdx.z;
    const int64_t token = blockIdx.x, head = blockIdx.y;
    const char *from = row_of(run.any, which ? run.any.on.value : run.any.on.key, run.first + token, head);
    const ln_cuda_tensor &rows = run.to[which];
    __nv_bfloat16 *to = (__nv_bfloat16 *)rows.data + token * rows.token_stride + head * rows.head_stride;
    const int size = (int)(which ? of.value_size : of.key_size);
    for (int i = threadIdx.x; i < size; i += blockDim.x) to[i] = __float2bfloat16(element(run.any, from, i));
}

} // namespace ln

using namespace ln;

ln_cuda_code ln_cuda_heads_run(const ln_cuda_heads *heads, void *stream) {
    int64_t count = 0;
    for (int i = 0; i < 3; i++) {
        const ln_cuda_head_rows *part = &heads->part[i];
        count += part->heads;
        if (part->heads < 0 || part->heads > 65535 ||
            (part->heads > 0 && (!part->from || (!part->to && !part->pages.part.data) || part->size < 1)))
            return LN_CUDA_ARGUMENT;
        if (part->pages.part.data && (!part->pages.table || !part->pages.length || part->pages.page_tokens < 1 ||
                                      part->pages.format > LN_CUDA_PAGE_F16))
            return LN_CUDA_ARGUMENT;
        if (part->size > HEAD_MOST) return LN_CUDA_UNSUPPORTED;
        if (part->rotated && (!heads->cosine || !heads->sine || heads->rotary_size > part->size))
            return LN_CUDA_ARGUMENT;
    }
    if (count < 1 || heads->tokens < 1 || heads->tokens > 65535) return LN_CUDA_ARGUMENT;
    return launch_early(prepare_heads, dim3((unsigned)((count + HEAD_WARPS - 1) / HEAD_WARPS), (unsigned)heads->tokens),
                        dim3(32 * HEAD_WARPS), 0, stream, *heads);
}

static ln_cuda_code check_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors) {
    if (decode->sequences != 1 || decode->queries < 1 || decode->queries > 65535 || decode->heads < 1 ||
        decode->key_value_heads < 1 || decode->heads % decode->key_value_heads || !tensors->page_table ||
        !tensors->lengths || !tensors->key.data || !tensors->value.data || decode->page_tokens < 1)
        return LN_CUDA_ARGUMENT;
    if (decode->key_size > HEAD_MOST || decode->value_size > HEAD_MOST ||
        (decode->format != LN_CUDA_PAGE_BF16 && decode->format != LN_CUDA_PAGE_F16))
        return LN_CUDA_UNSUPPORTED;
    return LN_CUDA_OK;
}

ln_cuda_code ln_cuda_attend_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors, void *stream) {
    const ln_cuda_code code = check_any(decode, tensors);
    if (code) return code;
    if (!tensors->query.data || !tensors->output.data || decode->query_element == LN_CUDA_ELEMENT_F16)
        return LN_CUDA_ARGUMENT;
    const any_run run = {*decode, *tensors};
    return launch_early(attend_any, dim3((unsigned)decode->heads, (unsigned)decode->queries), dim3(32 * HEAD_WARPS), 0,
                        stream, run);
}

ln_cuda_code ln_cuda_gather_any(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors, int64_t first,
                                int64_t tokens, const ln_cuda_tensor *keys, const ln_cuda_tensor *values,
                                void *stream) {
    const ln_cuda_code code = check_any(decode, tensors);
    if (code || tokens == 0) return code;
    if (!keys->data || !values->data || first < 0 || tokens < 0 || tokens > 1 << 30) return LN_CUDA_ARGUMENT;
    const gather_run run = {{*decode, *tensors}, {*keys, *values}, first};
    return launch_early(gather_any, dim3((unsigned)tokens, (unsigned)decode->key_value_heads, 2), dim3(64), 0, stream,
                        run);
}
