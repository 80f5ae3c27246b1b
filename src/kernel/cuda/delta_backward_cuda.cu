/* The host's side of the delta rule's backward on a GPU: which kernels, the tables, and the start. */
#include "kernel/cuda/delta_backward_cuda.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime.h>

#include "kernel/cuda/delta_backward.cuh"

using ln::delta_backward_chunk;
using ln::delta_backward_run;

const ln_cuda_delta_backward_kernel *ln_cuda_delta_backward_kernels(int row) {
    static const ln_cuda_delta_backward_kernel none = {};
    if (row < 0) return &none;
    if (row < ln_cuda_delta_backward_hopper_count) return &ln_cuda_delta_backward_hopper[row];
    row -= ln_cuda_delta_backward_hopper_count;
    return row < ln_cuda_delta_backward_portable_count ? &ln_cuda_delta_backward_portable[row] : &none;
}

/* ---- plan ---- */

static bool arguments_right(const ln_cuda_delta *d) {
    if (d->heads < 1 || d->key_heads < 1 || d->heads % d->key_heads || d->heads > 65535) return false;
    if (d->key_size < 1 || d->value_size < 1 || d->sequences < 1 || !d->offsets || d->offsets[0] != 0) return false;
    if (!isfinite(d->scale) || d->decay < LN_CUDA_DECAY_NONE || d->decay > LN_CUDA_DECAY_KEY) return false;
    for (int64_t s = 0; s < d->sequences; s++)
        if (d->offsets[s + 1] < d->offsets[s]) return false;
    return d->offsets[d->sequences] <= INT_MAX / 2;
}

static int64_t chunks_of(const ln_cuda_delta *d) {
    int64_t chunks = 0;
    for (int64_t s = 0; s < d->sequences; s++)
        chunks += (d->offsets[s + 1] - d->offsets[s] + ln::CHUNK - 1) / ln::CHUNK;
    return chunks;
}

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_delta *d, const ln_cuda_device *device,
                           const ln_cuda_delta_backward_kernel *kernel) {
    if (d->key_size != kernel->key_size || d->value_size % 64) return "made for another size of heads";
    if ((d->decay == LN_CUDA_DECAY_KEY) != (kernel->decay == LN_CUDA_DECAY_KEY)) return "made for other decays";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    return NULL;
}

/* Where the parts of the workspace lie, one after the other, each aligned to 256 bytes. */
typedef struct parts {
    int64_t chunks, first_chunk, pairs, keys, states, state_gradients, values, residuals, records, totals, narrowed,
        bytes;
} parts;

static int64_t part(int64_t *used, int64_t bytes) {
    const int64_t at = *used;
    *used += (bytes + 255) / 256 * 256;
    return at;
}

static parts parts_of(const ln_cuda_delta_backward *delta, const ln_cuda_device *device, int64_t chunks) {
    const ln_cuda_delta *d = &delta->forward;
    const int64_t places = chunks * d->heads, slices = d->value_size / 64, panels = d->key_size / 64,
                  tokens = d->offsets[d->sequences];
    const bool channel = d->decay == LN_CUDA_DECAY_KEY;
    parts p = {};
    int64_t used = 0;
    p.chunks = part(&used, chunks * (int64_t)sizeof(delta_backward_chunk));
    p.first_chunk = part(&used, (d->sequences + 1) * (int64_t)sizeof(int));
    p.pairs = part(&used, places * 2 * ln::PANEL);
    p.keys = part(&used, channel ? places * 3 * panels * ln::PANEL : 0);
    p.states = part(&used, places * slices * panels * ln::PANEL);
    p.state_gradients = part(&used, places * slices * panels * ln::PANEL);
    p.values = part(&used, places * slices * ln::PANEL);
    p.residuals = part(&used, tokens * d->heads * d->value_size * 2);
    p.records = part(&used, places * ln::RECORD * (int64_t)sizeof(float));
    p.totals = part(&used, channel ? (int64_t)device->multiprocessors * 2 * ln::CHUNK * d->key_size * 4 : 0);
    p.narrowed = part(&used, delta->output_gradient_float32 ? tokens * d->heads * d->value_size * 2 : 0);
    p.bytes = used;
    return p;
}

ln_cuda_code ln_cuda_delta_backward_plan_make(const ln_cuda_delta_backward *delta, const ln_cuda_device *device,
                                              const ln_cuda_delta_backward_kernel *kernel,
                                              ln_cuda_delta_backward_plan *plan) {
    const ln_cuda_delta *d = &delta->forward;
    *plan = {};
    plan->device = *device;
    if (!arguments_right(d)) {
        snprintf(plan->why, sizeof plan->why, "heads, sizes, offsets, scale or decay are out of range");
        return LN_CUDA_ARGUMENT;
    }
    const char *fast = "none made for this size of heads";
    const ln_cuda_delta_backward_kernel *best = NULL;
    for (int row = 0; !best; row++) {
        const ln_cuda_delta_backward_kernel *next = ln_cuda_delta_backward_kernels(row);
        if (!next->start) break;
        if (kernel && next != kernel) continue;
        const char *why = refusal(d, device, next);
        if (next->major == 9 && next->key_size == d->key_size) fast = why ? why : "taken";
        if (!why) best = next;
    }
    if (!best) {
        snprintf(plan->why, sizeof plan->why,
                 "no kernel for keys of %lld and values of %lld elements on compute capability %d.%d (its fast path: "
                 "%s); there are those for keys of 64 and 128 and values by 64",
                 (long long)d->key_size, (long long)d->value_size, device->major, device->minor, fast);
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t chunks = chunks_of(d), walks = d->sequences * d->heads * (d->value_size / 64);
    if (chunks * d->heads > INT_MAX / 2 || walks > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "more than 2^30 chunks of heads");
        return LN_CUDA_ARGUMENT;
    }
    plan->kernel = best;
    plan->chunks = chunks;
    plan->workspace = parts_of(delta, device, chunks).bytes;
    snprintf(plan->why, sizeof plan->why, "%s: %lld chunks of %d tokens%s%s", best->name, (long long)chunks, ln::CHUNK,
             best->major == 9 ? "" : "; warp group products: ", best->major == 9 ? "" : fast);
    return LN_CUDA_OK;
}

/* ---- tables ---- */

ln_cuda_code ln_cuda_delta_backward_prepare(const ln_cuda_delta_backward *delta,
                                            const ln_cuda_delta_backward_plan *plan, void *workspace, void *stream) {
    const ln_cuda_delta *d = &delta->forward;
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;
    const parts p = parts_of(delta, &plan->device, plan->chunks);
    char *tables = (char *)calloc(1, (size_t)p.pairs);
    if (!tables) return LN_CUDA_OUT_OF_MEMORY;
    delta_backward_chunk *chunk = (delta_backward_chunk *)(tables + p.chunks);
    int *first = (int *)(tables + p.first_chunk), count = 0;
    for (int64_t s = 0; s < d->sequences; s++) {
        first[s] = count;
        for (int64_t token = d->offsets[s]; token < d->offsets[s + 1]; token += ln::CHUNK) {
            const int64_t left = d->offsets[s + 1] - token;
            chunk[count++] = {(int)token, (int)(left < ln::CHUNK ? left : (int64_t)ln::CHUNK)};
        }
    }
    first[d->sequences] = count;
    cudaError_t error =
        cudaMemcpyAsync(workspace, tables, (size_t)p.pairs, cudaMemcpyHostToDevice, (cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize((cudaStream_t)stream);
    free(tables);
    return ln_cuda_code_of(error);
}

/* ---- run ---- */

static bool tensors_right(const ln_cuda_delta_backward *delta, const ln_cuda_delta_backward_tensors *t) {
    const int64_t gradient = delta->gradients_bf16 ? 2 : 4;
    const ln_cuda_tensor *gradients[3] = {&t->query_gradient, &t->key_gradient, &t->value_gradient};
    for (int i = 0; i < 3; i++)
        if (gradients[i]->data && !ln_cuda_tensor_right(gradients[i], gradient)) return false;
    return ln_cuda_tensor_right(&t->query, 2) && ln_cuda_tensor_right(&t->key, 2) &&
           ln_cuda_tensor_right(&t->value, 2) && t->beta &&
           ln_cuda_tensor_right(&t->output_gradient, delta->output_gradient_float32 ? 4 : 2) &&
           (t->decay != NULL) == (delta->forward.decay != LN_CUDA_DECAY_NONE);
}

static delta_backward_run run_of(const ln_cuda_delta_backward *delta, const ln_cuda_delta_backward_plan *plan,
                                 const ln_cuda_delta_backward_tensors *t, void *workspace) {
    const ln_cuda_delta *d = &delta->forward;
    const parts p = parts_of(delta, &plan->device, plan->chunks);
    char *base = (char *)workspace;
    delta_backward_run run = {};
    run.query = t->query, run.key = t->key, run.value = t->value, run.output_gradient = t->output_gradient;
    run.query_gradient = t->query_gradient, run.key_gradient = t->key_gradient;
    run.value_gradient = t->value_gradient;
    run.beta = t->beta, run.decay = t->decay, run.state_in = t->state_in;
    run.state_out_gradient = t->state_out_gradient;
    run.beta_gradient = t->beta_gradient, run.decay_gradient = t->decay_gradient;
    run.state_in_gradient = t->state_in_gradient;
    run.state_slots = t->state_slots;
    run.chunks = (const delta_backward_chunk *)(base + p.chunks);
    run.first_chunk = (const int *)(base + p.first_chunk);
    run.pairs = base + p.pairs, run.keys = base + p.keys;
    run.states = base + p.states, run.state_gradients = base + p.state_gradients;
    run.values = base + p.values;
    run.residual = {base + p.residuals, d->heads * d->value_size, d->value_size};
    if (delta->gradients_bf16 && t->value_gradient.data) run.residual = t->value_gradient;
    run.records = (float *)(base + p.records), run.totals = (float *)(base + p.totals);
    run.tokens = d->offsets[d->sequences];
    run.scale = d->scale;
    run.chunk_count = (int)plan->chunks, run.sequences = (int)d->sequences;
    run.heads = (int)d->heads, run.key_heads = (int)d->key_heads, run.group = (int)(d->heads / d->key_heads);
    run.slices = (int)(d->value_size / 64);
    run.multiprocessors = plan->device.multiprocessors;
    run.tiled = d->tiled_heads, run.normalise = d->normalise_keys, run.gradients_bf16 = delta->gradients_bf16;
    if (delta->output_gradient_float32) {
        run.wide = t->output_gradient;
        run.narrowed = base + p.narrowed;
        run.output_gradient = {run.narrowed, d->heads * d->value_size, d->value_size};
    }
    return run;
}

ln_cuda_code ln_cuda_delta_backward_run(const ln_cuda_delta_backward *delta, const ln_cuda_delta_backward_plan *plan,
                                        const ln_cuda_delta_backward_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;
    if (plan->chunks > 0 && !tensors_right(delta, tensors)) return LN_CUDA_ARGUMENT;
    const delta_backward_run run = run_of(delta, plan, tensors, workspace);
    return plan->kernel->start(&run, stream);
}
