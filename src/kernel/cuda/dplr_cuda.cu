/* The host's side of diagonal plus low rank on a GPU: how long segments are, the order of sequences, the launches. */
#include "kernel/cuda/dplr_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/dplr_table.h"

static const int64_t ALIGN = 256, CHUNK = LN_CUDA_DPLR_CHUNK;
/* Of records: two segments forward, one backward. */
static const int64_t BYTES = INT64_C(512) << 20, BACK_BYTES = INT64_C(2048) << 20;

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

/* Backward: of a segment two records and twice what is kept of each chunk; states between all segments, and a gradient
 * of the state. */
static void plan_back(const ln_cuda_dplr *dplr, int64_t records, ln_cuda_dplr_plan *plan) {
    const ln_cuda_dplr_kernel *kernel = plan->kernel;
    const int64_t tasks = dplr->sequences * dplr->heads, chunk = tasks * 2 * (kernel->record + kernel->saved);
    plan->gradient_segment = (records ? records : BACK_BYTES) / chunk;
    if (plan->gradient_segment > plan->longest) plan->gradient_segment = plan->longest;
    if (plan->gradient_segment < 1) plan->gradient_segment = 1;
    const int64_t segments = (plan->longest + plan->gradient_segment - 1) / plan->gradient_segment;
    plan->gradient_records = aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence)) +
                             (segments > 1 ? segments * aligned(tasks * dplr->key_size * dplr->value_size * 4) : 0);
    plan->gradient_workspace = plan->gradient_records + aligned(plan->gradient_segment * chunk);
}

/* Blocks of half as many columns where whole ones would leave multiprocessors idle. */
static bool better(const ln_cuda_dplr *d, const ln_cuda_device *device, const ln_cuda_dplr_kernel *one,
                   const ln_cuda_dplr_kernel *best) {
    const int64_t tasks = d->sequences * d->heads * d->value_size;
    return one->columns < best->columns && tasks / best->columns < device->multiprocessors;
}

ln_cuda_code ln_cuda_dplr_plan_make(const ln_cuda_dplr *dplr, const ln_cuda_device *device,
                                    const ln_cuda_dplr_kernel *kernel, int64_t records, ln_cuda_dplr_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *why = wrong(dplr, records);
    if (why) {
        snprintf(plan->why, sizeof plan->why, "%s", why);
        return LN_CUDA_ARGUMENT;
    }
    bool small = false;
    for (int row = 0; device->major >= 8 && ln_cuda_dplr_kernels(row)->states; row++) {
        const ln_cuda_dplr_kernel *next = ln_cuda_dplr_kernels(row);
        if ((kernel && next != kernel) || next->key_size != dplr->key_size || next->value_size != dplr->value_size)
            continue;
        small |= next->shared_bytes > device->block_shared_bytes;
        if (next->shared_bytes > device->block_shared_bytes) continue;
        if (!plan->kernel || better(dplr, device, next, plan->kernel)) plan->kernel = next;
    }
    if (!plan->kernel) {
        snprintf(plan->why, sizeof plan->why, "%s",
                 device->major < 8 ? "made for compute capability 8.0 and newer"
                 : small           ? "too little shared memory in a block"
                                   : "made for keys and values of 64, or of 128");
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t chunk = dplr->sequences * dplr->heads * plan->kernel->record;
    plan->longest = (longest(dplr) + CHUNK - 1) / CHUNK;
    plan->segment = (records ? records : BYTES) / chunk / 2;
    if (plan->segment > plan->longest) plan->segment = plan->longest;
    if (plan->segment < 1) plan->segment = 1;
    const int64_t table = aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence));
    plan->carried = table;
    if (plan->segment < plan->longest)
        plan->carried += aligned(dplr->sequences * dplr->heads * dplr->key_size * dplr->value_size * 4);
    plan->workspace = plan->carried + (plan->segment < plan->longest ? 2 : 1) * aligned(plan->segment * chunk);
    plan_back(dplr, records, plan);
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
    return ln_cuda_tensor_right(&t->decay, 4);
}

/* Sequences that reach chunk `first`; those without tokens hand their states on in the first segment. */
static int64_t reaching(const ln_cuda_dplr *d, int64_t first) {
    int64_t count = 0;
    for (int64_t s = 0; s < d->sequences; s++) count += d->offsets[s + 1] - d->offsets[s] > first * CHUNK;
    return first ? count : d->sequences;
}

static ln_cuda_dplr_run run_of(const ln_cuda_dplr *dplr, const ln_cuda_dplr_tensors *tensors, int64_t segment,
                               void *workspace) {
    ln_cuda_dplr_run run = {};
    run.tensors = *tensors;
    run.sequence = (const ln_cuda_dplr_sequence *)workspace;
    run.heads = (int)dplr->heads;
    run.group = (int)(dplr->heads / dplr->key_heads);
    run.segment = (int)segment;
    run.scale = dplr->scale;
    run.output_float32 = dplr->output_float32;
    return run;
}

ln_cuda_code ln_cuda_dplr_forward(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan,
                                  const ln_cuda_dplr_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    const bool empty = dplr->offsets[dplr->sequences] == 0;
    if (!tensors_right(dplr, tensors) || !workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    if (!empty && !ln_cuda_tensor_right(&tensors->output, dplr->output_float32 ? 4 : 2)) return LN_CUDA_ARGUMENT;
    ln_cuda_dplr_run run = run_of(dplr, tensors, plan->segment, workspace);
    run.at_begin = run.at_end =
        (float *)((char *)workspace + aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence)));
    run.records = (char *)workspace + plan->carried;
    run.sequences = (int)reaching(dplr, 0);
    if (plan->longest == 0) return plan->kernel->states(&run, stream);
    /* Segments take turns at two rooms for their records. */
    const int64_t room = aligned(plan->segment * dplr->sequences * dplr->heads * plan->kernel->record);
    ln_cuda_code code = plan->kernel->inside(&run, stream);
    for (int64_t first = plan->segment; !code && first < plan->longest; first += plan->segment) {
        ln_cuda_dplr_run next = run;
        next.first_chunk = (int)first;
        next.sequences = (int)reaching(dplr, first);
        next.records = (char *)workspace + plan->carried + first / plan->segment % 2 * room;
        code = plan->kernel->both(&run, &next, stream);
        run = next;
    }
    return code ? code : plan->kernel->states(&run, stream);
}

/* ---- backward ---- */

static bool gradients_right(const ln_cuda_dplr *d, const ln_cuda_dplr_gradients *g) {
    if ((uintptr_t)g->state_in % 4 || (uintptr_t)g->state_out % 4) return false;
    if (d->offsets[d->sequences] == 0) return true;
    const ln_cuda_tensor *wanted[5] = {&g->query, &g->key, &g->value, &g->a, &g->b};
    for (int i = 0; i < 5; i++)
        if (wanted[i]->data && !ln_cuda_tensor_right(wanted[i], 2)) return false;
    if (g->decay.data && !ln_cuda_tensor_right(&g->decay, 4)) return false;
    return ln_cuda_tensor_right(&g->output, 2);
}

/* Forward through all segments but the last, for the states between them; then the segments from the last on. */
ln_cuda_code ln_cuda_dplr_backward(const ln_cuda_dplr *dplr, const ln_cuda_dplr_plan *plan,
                                   const ln_cuda_dplr_tensors *tensors, const ln_cuda_dplr_gradients *gradients,
                                   void *workspace, void *stream) {
    const ln_cuda_dplr_kernel *kernel = plan->kernel;
    if (!kernel || dplr->heads != dplr->key_heads) return LN_CUDA_UNSUPPORTED;
    if (!tensors_right(dplr, tensors) || !gradients_right(dplr, gradients)) return LN_CUDA_ARGUMENT;
    if (!workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    const int64_t tasks = dplr->sequences * dplr->heads, length = plan->gradient_segment;
    const int64_t segments = plan->longest ? (plan->longest + length - 1) / length : 1;
    const int64_t state = aligned(tasks * dplr->key_size * dplr->value_size * 4);
    ln_cuda_dplr_run run = run_of(dplr, tensors, length, workspace);
    run.gradients = *gradients;
    run.records = (char *)workspace + plan->gradient_records;
    run.back = run.records + tasks * length * kernel->record;
    /* States before segments 1, 2, ..., then the gradient of a state. */
    char *between = (char *)workspace + aligned(dplr->sequences * (int64_t)sizeof(ln_cuda_dplr_sequence));
    ln_cuda_code code = LN_CUDA_OK;
    for (int64_t i = 0; i + 1 < segments && !code; i++) {
        run.first_chunk = (int)(i * length);
        run.sequences = (int)reaching(dplr, i * length);
        run.at_begin = (float *)(between + (i - 1) * state);
        run.at_end = (float *)(between + i * state);
        code = kernel->inside(&run, stream);
        if (!code) code = kernel->kept(&run, stream);
    }
    run.states = run.back + tasks * length * kernel->record;
    run.slopes = run.states + tasks * length * kernel->saved;
    for (int64_t i = segments - 1; i >= 0 && !code; i--) {
        run.first_chunk = (int)(i * length);
        run.sequences = (int)reaching(dplr, i * length);
        run.at_begin = (float *)(between + (i - 1) * state);
        run.at_end = NULL;
        if (plan->longest) code = kernel->inside(&run, stream);
        if (!code && plan->longest) code = kernel->kept_both(&run, &run, stream);
        run.at_begin = run.at_end = (float *)(between + (segments - 1) * state);
        if (!code) code = kernel->slopes(&run, stream);
        if (!code && plan->longest) code = kernel->gradients(&run, stream);
    }
    return code;
}
