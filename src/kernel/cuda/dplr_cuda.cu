/* The host's side of diagonal plus low rank on a GPU: how long segments are, the order of sequences, the launches. */
#include "kernel/cuda/dplr_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/dplr_table.h"

static const int64_t ALIGN = 256, CHUNK = LN_CUDA_DPLR_CHUNK;

const ln_cuda_dplr_kernel *ln_cuda_dplr_kernels(int row) {
    static const ln_cuda_dplr_kernel none = {};
    return row >= 0 && row < ln_cuda_portable_dplr_count ? &ln_cuda_portable_dplrs[row] : &none;
}

/* ---- plan ---- */

static const char *wrong(const ln_cuda_dplr *d, int64_t records) {
    if (d->heads < 1 || d->key_heads < 1 || d->heads % d->key_heads || d->heads > 65535)
        return "key_heads must divide heads";
    if (d->key_size < 1 || d->value_size < 1) return "key_size and value_size must be above 0";
    if (isnan(d->scale) || isinf(d->scale) || records < 0) return "scale or the room of records is wrong";
    if (d->sequences < 1 || d->sequences > INT_MAX / 1024 / d->heads || !d->offsets || d->offsets[0] != 0)
        return "offsets of the sequences must begin with 0, and be for fewer heads";
    for (int64_t s = 0; s < d->sequences; s++)
        if (d->offsets[s + 1] < d->offsets[s]) return "offsets of the sequences must ascend";
    return d->offsets[d->sequences] > INT_MAX / 2 ? "there are too many tokens" : NULL;
}

static int64_t longest(const ln_cuda_dplr *d) {
    int64_t most = 0;
    for (int64_t s = 0; s < d->sequences; s++)
        if (d->offsets[s + 1] - d->offsets[s] > most) most = d->offsets[s + 1] - d->offsets[s];
    return most;
}

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

ln_cuda_code ln_cuda_dplr_plan_make(const ln_cuda_dplr *dplr, const ln_cuda_device *device, int64_t records,
                                    ln_cuda_dplr_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *why = wrong(dplr, records);
    if (why) {
        snprintf(plan->why, sizeof plan->why, "%s", why);
        return LN_CUDA_ARGUMENT;
    }
    for (int row = 0; device->major >= 8 && ln_cuda_dplr_kernels(row)->states; row++) {
        const ln_cuda_dplr_kernel *next = ln_cuda_dplr_kernels(row);
        if (next->key_size == dplr->key_size && next->value_size == dplr->value_size) plan->kernel = next;
    }
    if (!plan->kernel) {
        snprintf(plan->why, sizeof plan->why, "%s",
                 device->major < 8 ? "made for compute capability 8.0 and newer"
                                   : "made for keys and values of 64, or of 128");
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t chunk = dplr->sequences * dplr->heads * plan->kernel->record;
    plan->longest = (longest(dplr) + CHUNK - 1) / CHUNK;
    plan->segment = (records ? records : device->cache_bytes / 2) / chunk;
    if (plan->segment > plan->longest) plan->segment = plan->longest;
    if (plan->segment < 1) plan->segment = 1;
    const int64_t table = aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence));
    plan->carried = table;
    if (plan->segment < plan->longest)
        plan->carried += aligned(dplr->sequences * dplr->heads * dplr->key_size * dplr->value_size * 4);
    plan->workspace = plan->carried + aligned(plan->segment * chunk);
    snprintf(plan->why, sizeof plan->why, "portable %s: %lld tokens of a sequence at once", plan->kernel->name,
             (long long)(plan->segment * CHUNK));
    return LN_CUDA_OK;
}

static int longer(const void *one, const void *other) {
    const ln_cuda_dplr_sequence *a = (const ln_cuda_dplr_sequence *)one, *b = (const ln_cuda_dplr_sequence *)other;
    if (a->count != b->count) return a->count > b->count ? -1 : 1;
    return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

ln_cuda_code ln_cuda_dplr_prepare(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan, void *workspace,
                                  void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    const size_t bytes = (size_t)dplr->sequences * sizeof(ln_cuda_dplr_sequence);
    ln_cuda_dplr_sequence *sequence = (ln_cuda_dplr_sequence *)malloc(bytes);
    if (!sequence) return LN_CUDA_OUT_OF_MEMORY;
    for (int64_t s = 0; s < dplr->sequences; s++)
        sequence[s] = {(int32_t)dplr->offsets[s], (int32_t)(dplr->offsets[s + 1] - dplr->offsets[s]), (int32_t)s};
    qsort(sequence, (size_t)dplr->sequences, sizeof *sequence, longer);
    cudaError_t error = cudaMemcpyAsync(workspace, sequence, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize((cudaStream_t)stream);
    free(sequence);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

static bool tensors_right(const ln_cuda_dplr *d, const ln_cuda_dplr_tensors *t) {
    if ((uintptr_t)t->state_in % 4 || (uintptr_t)t->state_out % 4) return false;
    if (d->offsets[d->sequences] == 0) return true;
    const ln_cuda_tensor *inputs[5] = {&t->query, &t->key, &t->value, &t->a, &t->b};
    for (int i = 0; i < 5; i++)
        if (!ln_cuda_tensor_right(inputs[i], 2)) return false;
    return ln_cuda_tensor_right(&t->decay, 4) && ln_cuda_tensor_right(&t->output, d->output_float32 ? 4 : 2);
}

/* Sequences that reach chunk `first`; those without tokens hand their states on in the first segment. */
static int64_t reaching(const ln_cuda_dplr *d, int64_t first) {
    int64_t count = 0;
    for (int64_t s = 0; s < d->sequences; s++) count += d->offsets[s + 1] - d->offsets[s] > first * CHUNK;
    return first ? count : d->sequences;
}

ln_cuda_code ln_cuda_dplr_forward(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan,
                                  const ln_cuda_dplr_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!tensors_right(dplr, tensors) || !workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    ln_cuda_dplr_run run = {};
    run.tensors = *tensors;
    run.sequence = (const ln_cuda_dplr_sequence *)workspace;
    run.carried = (float *)((char *)workspace + aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence)));
    run.records = (char *)workspace + plan->carried;
    run.heads = (int)dplr->heads;
    run.group = (int)(dplr->heads / dplr->key_heads);
    run.segment = (int)plan->segment;
    run.scale = dplr->scale;
    run.output_float32 = dplr->output_float32;
    ln_cuda_code code = LN_CUDA_OK;
    for (int64_t first = 0; !code && (first == 0 || first < plan->longest); first += plan->segment) {
        run.first_chunk = (int)first;
        run.sequences = (int)reaching(dplr, first);
        if (plan->longest) code = plan->kernel->inside(&run, stream);
        if (!code) code = plan->kernel->states(&run, stream);
    }
    return code;
}
