/* The host's side of the short convolution on a GPU: spans of sequences, checks, and the launch. */
#include "kernel/cuda/short_convolution_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/short_convolution_table.h"

static const int64_t ALIGN = 256, TIME_MOST = 64, TIME_LEAST = 8, GRADIENT_TIME = 256, THREADS_WANTED = 1024;

/* ---- plan ---- */

static const char *refusal(const ln_cuda_short_convolution *c, const ln_cuda_device *device) {
    if (c->heads < 1 || c->value_size < 8 || c->value_size % 8) return "value_size must be a multiple of 8";
    if (c->heads > INT_MAX / c->value_size) return "there are too many channels";
    if (c->taps < 2 || c->taps > LN_CUDA_CONVOLUTION_MOST) return "taps must be from 2 to 64";
    if (c->sequences < 1 || c->sequences > INT_MAX || !c->offsets || c->offsets[0] != 0)
        return "offsets of the sequences must begin with 0";
    for (int64_t s = 0; s < c->sequences; s++)
        if (c->offsets[s + 1] < c->offsets[s]) return "offsets of the sequences must ascend";
    if (c->offsets[c->sequences] > INT_MAX / 2) return "there are too many tokens";
    return device->major < 8 ? "made for compute capability 8.0 and newer" : NULL;
}

static int64_t spans_of(const ln_cuda_short_convolution *c, int64_t time) {
    int64_t spans = 0;
    for (int64_t s = 0; s < c->sequences; s++) {
        const int64_t length = c->offsets[s + 1] - c->offsets[s];
        spans += length ? (length + time - 1) / time : 1;
    }
    return spans;
}

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static int64_t turned_bytes(const ln_cuda_short_convolution *c) {
    return c->taps > LN_CUDA_CONVOLUTION_FEW ? aligned(c->taps * c->heads * c->value_size * 4) : 0;
}
static int64_t partial_bytes(const ln_cuda_short_convolution *c, const ln_cuda_short_convolution_plan *plan) {
    return aligned(plan->gradient_spans * (c->taps + 1) * c->heads * c->value_size * 4);
}

ln_cuda_code ln_cuda_short_convolution_plan_make(const ln_cuda_short_convolution *convolution,
                                                 const ln_cuda_device *device, ln_cuda_short_convolution_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *why = refusal(convolution, device);
    if (why) {
        snprintf(plan->why, sizeof plan->why, "%s", why);
        return device->major < 8 ? LN_CUDA_UNSUPPORTED : LN_CUDA_ARGUMENT;
    }
    const int64_t channels = convolution->heads * convolution->value_size;
    const int64_t wanted = (int64_t)device->multiprocessors * THREADS_WANTED;
    plan->taps = (int)convolution->taps;
    plan->time = TIME_MOST;
    const bool few = plan->taps <= LN_CUDA_CONVOLUTION_FEW;
    while (few && plan->time > TIME_LEAST && spans_of(convolution, plan->time) * (channels / 8) < wanted)
        plan->time /= 2;
    plan->spans = spans_of(convolution, plan->time);
    plan->gradient_spans = spans_of(convolution, GRADIENT_TIME);
    plan->workspace = aligned(plan->spans * (int64_t)sizeof(ln_cuda_convolution_span)) + turned_bytes(convolution);
    plan->gradient_workspace = aligned(plan->gradient_spans * (int64_t)sizeof(ln_cuda_convolution_span)) +
                               turned_bytes(convolution) + partial_bytes(convolution, plan);
    if (!few) plan->gradient_workspace += aligned(convolution->offsets[convolution->sequences] * channels * 4);
    snprintf(plan->why, sizeof plan->why,
             "portable: bound by memory, so the same for every device; %lld tokens a thread", (long long)plan->time);
    return LN_CUDA_OK;
}

ln_cuda_code ln_cuda_short_convolution_prepare(const ln_cuda_short_convolution *convolution,
                                               const ln_cuda_short_convolution_plan *plan, bool backward,
                                               void *workspace, void *stream) {
    if (!plan->taps) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    const int64_t time = backward ? GRADIENT_TIME : plan->time, spans = backward ? plan->gradient_spans : plan->spans;
    ln_cuda_convolution_span *span = (ln_cuda_convolution_span *)malloc((size_t)spans * sizeof *span);
    if (!span) return LN_CUDA_OUT_OF_MEMORY;
    int64_t count = 0;
    for (int64_t s = 0; s < convolution->sequences; s++) {
        const int64_t token = convolution->offsets[s], length = convolution->offsets[s + 1] - token;
        for (int64_t at = 0; at == 0 || at < length; at += time)
            span[count++] = {(int32_t)token, (int32_t)at, (int32_t)(length - at < time ? length - at : time),
                             (int32_t)length, (int32_t)s};
    }
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t error = cudaMemcpyAsync(workspace, span, (size_t)spans * sizeof *span, cudaMemcpyHostToDevice, on);
    if (error == cudaSuccess) error = cudaStreamSynchronize(on);
    free(span);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

static bool floats_right(const float *floats) {
    return (uintptr_t)floats % 16 == 0;
}

static bool tensors_right(const ln_cuda_short_convolution *c, const ln_cuda_short_convolution_tensors *t) {
    const bool empty = c->offsets[c->sequences] == 0;
    if (!t->weight || !floats_right(t->weight) || !floats_right(t->bias)) return false;
    if (!floats_right(t->state_in) || !floats_right(t->state_out)) return false;
    return empty || ln_cuda_tensor_right(&t->value, 2);
}

static ln_cuda_convolution_run run_of(const ln_cuda_short_convolution *c,
                                      const ln_cuda_short_convolution_tensors *tensors, int64_t spans,
                                      void *workspace) {
    ln_cuda_convolution_run run = {};
    run.tensors = *tensors;
    run.spans = (const ln_cuda_convolution_span *)workspace;
    run.turned = (float *)((char *)workspace + aligned(spans * (int64_t)sizeof(ln_cuda_convolution_span)));
    run.partial = (float *)((char *)run.turned + turned_bytes(c));
    run.span_count = spans;
    run.heads = (int)c->heads;
    run.value_size = (int)c->value_size;
    run.taps = (int)c->taps;
    run.silu = c->silu;
    run.output_float32 = c->output_float32;
    return run;
}

static const ln_cuda_convolution_kernels *kernels_of(const ln_cuda_short_convolution_plan *plan) {
    return plan->taps <= LN_CUDA_CONVOLUTION_FEW ? &ln_cuda_portable_convolutions[plan->taps - 2]
                                                 : &ln_cuda_long_convolution;
}

ln_cuda_code ln_cuda_short_convolution_forward(const ln_cuda_short_convolution *convolution,
                                               const ln_cuda_short_convolution_plan *plan,
                                               const ln_cuda_short_convolution_tensors *tensors, void *workspace,
                                               void *stream) {
    if (!plan->taps) return LN_CUDA_UNSUPPORTED;
    const bool empty = convolution->offsets[convolution->sequences] == 0;
    if (!tensors_right(convolution, tensors) || !workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    if (!empty && !ln_cuda_tensor_right(&tensors->output, convolution->output_float32 ? 4 : 2)) return LN_CUDA_ARGUMENT;
    const ln_cuda_convolution_run run = run_of(convolution, tensors, plan->spans, workspace);
    return kernels_of(plan)->forward(&run, stream);
}

ln_cuda_code ln_cuda_short_convolution_backward(const ln_cuda_short_convolution *convolution,
                                                const ln_cuda_short_convolution_plan *plan,
                                                const ln_cuda_short_convolution_tensors *tensors,
                                                const ln_cuda_short_convolution_gradients *gradients, void *workspace,
                                                void *stream) {
    if (!plan->taps) return LN_CUDA_UNSUPPORTED;
    const bool empty = convolution->offsets[convolution->sequences] == 0;
    if (!tensors_right(convolution, tensors) || !workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    if (!empty && !ln_cuda_tensor_right(&gradients->output, 2)) return LN_CUDA_ARGUMENT;
    if (!empty && gradients->value.data && !ln_cuda_tensor_right(&gradients->value, 2)) return LN_CUDA_ARGUMENT;
    if (!floats_right(gradients->state_in) || !floats_right(gradients->state_out)) return LN_CUDA_ARGUMENT;
    ln_cuda_convolution_run run = run_of(convolution, tensors, plan->gradient_spans, workspace);
    run.gradients = *gradients;
    run.slopes = (float *)((char *)run.partial + partial_bytes(convolution, plan));
    return kernels_of(plan)->backward(&run, stream);
}
