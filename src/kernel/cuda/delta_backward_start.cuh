/* Starts the kernels of the delta rule's backward one after the other. */
#ifndef LN_KERNEL_CUDA_DELTA_BACKWARD_START_CUH
#define LN_KERNEL_CUDA_DELTA_BACKWARD_START_CUH

#include "kernel/cuda/delta_backward_channel.cuh"
#include "kernel/cuda/delta_backward_walk.cuh"

namespace ln {

/* Gradients of the output that came as float32, as bf16 without gaps; eight elements a thread. */
static __global__ void __launch_bounds__(256) delta_narrow(const __grid_constant__ delta_backward_run run) {
    const int pieces = run.slices * 8;
    const int64_t all = run.tokens * run.heads * pieces;
    for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < all; i += (int64_t)gridDim.x * 256) {
        const int64_t row = i / pieces, token = row / run.heads, head = row % run.heads;
        const float4 *from = (const float4 *)((const float *)run.wide.data + token * run.wide.token_stride +
                                              head * run.wide.head_stride + i % pieces * 8);
        const float4 x = from[0], y = from[1];
        ((uint4 *)run.narrowed)[i] = {pack(x.x, x.y), pack(x.z, x.w), pack(y.x, y.y), pack(y.z, y.w)};
    }
}

template <class ENGINE, int KEY, bool CHANNEL, int STAGES> struct chunk_kernels;
template <class ENGINE, int KEY, int STAGES> struct chunk_kernels<ENGINE, KEY, false, STAGES> {
    enum { PAIRS_BYTES = sizeof(pairs_shared<KEY, 4>), BYTES = inside<ENGINE, KEY, STAGES, false, 0>::BYTES };
    static constexpr auto chunk = delta_inside<ENGINE, KEY, STAGES>;
    /* A warp a value head, two or four of a block. */
    static ln_cuda_code start_pairs(const delta_backward_run &run, void *stream) {
        const int blocks = run.chunk_count * run.key_heads;
        if (run.group <= 2)
            return launch(delta_pairs<KEY, 2>, dim3((unsigned)blocks), dim3(64), (int)sizeof(pairs_shared<KEY, 2>),
                          stream, run);
        return launch(delta_pairs<KEY, 4>, dim3((unsigned)(blocks * ((run.group + 3) / 4))), dim3(128),
                      (int)sizeof(pairs_shared<KEY, 4>), stream, run);
    }
};
template <class ENGINE, int KEY, int STAGES> struct chunk_kernels<ENGINE, KEY, true, STAGES> {
    enum { PAIRS_BYTES = channel_pairs_shape<KEY>::BYTES, BYTES = inside_channel<ENGINE, KEY, 0>::BYTES };
    static constexpr auto chunk = delta_channel_inside<ENGINE, KEY>;
    static ln_cuda_code start_pairs(const delta_backward_run &run, void *stream) {
        return launch(delta_channel_pairs<KEY>, dim3((unsigned)(run.chunk_count * run.heads)), dim3(128),
                      (int)PAIRS_BYTES, stream, run);
    }
};

template <class ENGINE, int KEY, bool CHANNEL, int WALK_STAGES, int STAGES>
static ln_cuda_code delta_backward_start(const void *argument, void *stream) {
    typedef chunk_kernels<ENGINE, KEY, CHANNEL, STAGES> kernels;
    typedef walk<ENGINE, KEY, CHANNEL, WALK_STAGES> steps;
    const delta_backward_run &run = *(const delta_backward_run *)argument;
    const int tasks = run.chunk_count * run.heads, walks = run.sequences * run.heads * run.slices * 2,
              blocks = run.chunk_count * run.key_heads;
    ln_cuda_code code = LN_CUDA_OK;
    if (run.narrowed && tasks)
        code = launch(delta_narrow, dim3((unsigned)run.multiprocessors * 8), dim3(256), 0, stream, run);
    if (!code && tasks) code = kernels::start_pairs(run, stream);
    if (!code)
        code = launch(delta_walk<ENGINE, KEY, CHANNEL, WALK_STAGES>, dim3((unsigned)walks), dim3(256),
                      (int)steps::BYTES, stream, run);
    if (!code && tasks)
        code = launch(kernels::chunk, dim3((unsigned)(blocks < run.multiprocessors ? blocks : run.multiprocessors)),
                      dim3(2 * KEY * 2), (int)kernels::BYTES, stream, run);
    return code;
}

/* A row of the table. */
template <class ENGINE, int KEY, bool CHANNEL, int WALK_STAGES, int STAGES>
static constexpr ln_cuda_delta_backward_kernel delta_backward_row(const char *name, int major) {
    typedef chunk_kernels<ENGINE, KEY, CHANNEL, STAGES> kernels;
    const int walk_bytes = walk<ENGINE, KEY, CHANNEL, WALK_STAGES>::BYTES,
              most = kernels::BYTES > kernels::PAIRS_BYTES ? kernels::BYTES : kernels::PAIRS_BYTES;
    return {name,
            KEY,
            CHANNEL ? LN_CUDA_DECAY_KEY : LN_CUDA_DECAY_HEAD,
            walk_bytes > most ? walk_bytes : most,
            major,
            delta_backward_start<ENGINE, KEY, CHANNEL, WALK_STAGES, STAGES>};
}

} // namespace ln

#endif
