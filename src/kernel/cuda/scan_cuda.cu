/* The host's side of the selective scan on a GPU: which kernel, the order of sequences, checks, the launch. */
#include "kernel/cuda/scan_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/scan_table.h"

static const int64_t ALIGN = 256, THREADS_WANTED = 384; /* of a multiprocessor: three warps a scheduler */
enum { SLOTS_AT_ONCE = 16 };                            /* backward */

const ln_cuda_scan_kernel *ln_cuda_scan_kernels(int row) {
    static const ln_cuda_scan_kernel none = {};
    return row >= 0 && row < ln_cuda_portable_scan_count ? &ln_cuda_portable_scans[row] : &none;
}

/* ---- plan ---- */

static const char *wrong(const ln_cuda_scan *s) {
    if (s->heads < 1 || s->key_heads < 1 || s->heads % s->key_heads) return "key_heads must divide heads";
    if (s->value_size < 8 || s->value_size % 8) return "value_size must be a multiple of 8";
    if (s->heads > INT_MAX / 64 / s->value_size) return "there are too many channels";
    if (s->sequences < 1 || s->sequences > INT_MAX || !s->offsets || s->offsets[0] != 0)
        return "offsets of the sequences must begin with 0";
    for (int64_t i = 0; i < s->sequences; i++)
        if (s->offsets[i + 1] < s->offsets[i]) return "offsets of the sequences must ascend";
    if (s->offsets[s->sequences] > INT_MAX / 2) return "there are too many tokens";
    if (s->sequences > INT_MAX / (s->heads * s->value_size)) return "there are too many sequences";
    return NULL;
}

static int64_t longest(const ln_cuda_scan *s) {
    int64_t most = 0;
    for (int64_t i = 0; i < s->sequences; i++)
        if (s->offsets[i + 1] - s->offsets[i] > most) most = s->offsets[i + 1] - s->offsets[i];
    return most;
}

static int64_t threads_of(const ln_cuda_scan *s, const ln_cuda_scan_kernel *kernel) {
    return s->heads * s->value_size * s->sequences * kernel->lanes / kernel->channels;
}

/* Few threads a channel do less beside the states; more fill the device. */
static bool better(const ln_cuda_scan *s, const ln_cuda_device *device, const ln_cuda_scan_kernel *one,
                   const ln_cuda_scan_kernel *best) {
    if (!one->lanes || !best->lanes) return !one->lanes;
    const int64_t wanted = THREADS_WANTED * device->multiprocessors, now = threads_of(s, best),
                  then = threads_of(s, one);
    return now >= wanted ? then < now && then >= wanted : then > now;
}

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static int64_t blocks_of(const ln_cuda_scan *s) {
    return (s->heads / s->key_heads * s->value_size + LN_CUDA_SCAN_BLOCK - 1) / LN_CUDA_SCAN_BLOCK;
}

/* Bytes of the parts of ln_cuda_scan_kept. */
static void parts_of(const ln_cuda_scan *s, const ln_cuda_scan_plan *plan, int64_t *parts) {
    const int64_t channels = s->heads * s->value_size;
    parts[0] = aligned(plan->chunks * channels * SLOTS_AT_ONCE * 4);
    parts[1] = aligned(blocks_of(s) * s->key_heads * s->offsets[s->sequences] * 2 * SLOTS_AT_ONCE * 4);
    parts[2] = aligned(s->sequences * channels * SLOTS_AT_ONCE * 4);
    parts[3] = aligned(s->sequences * channels * 4);
}

ln_cuda_code ln_cuda_scan_plan_make(const ln_cuda_scan *scan, const ln_cuda_device *device,
                                    const ln_cuda_scan_kernel *kernel, ln_cuda_scan_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *why = wrong(scan);
    if (why) {
        snprintf(plan->why, sizeof plan->why, "%s", why);
        return LN_CUDA_ARGUMENT;
    }
    const ln_cuda_scan_kernel *best = NULL;
    for (int row = 0; device->major >= 8 && ln_cuda_scan_kernels(row)->start; row++) {
        const ln_cuda_scan_kernel *next = ln_cuda_scan_kernels(row);
        if ((kernel && next != kernel) || next->slots != scan->slots) continue;
        if (!next->lanes && longest(scan) > 1) continue;
        if (!best || better(scan, device, next, best)) best = next;
    }
    plan->kernel = best;
    plan->workspace = aligned(scan->sequences * (int64_t)sizeof(ln_cuda_scan_sequence));
    for (int64_t i = 0; i < scan->sequences; i++)
        plan->chunks += (scan->offsets[i + 1] - scan->offsets[i] + LN_CUDA_SCAN_CHUNK - 1) / LN_CUDA_SCAN_CHUNK;
    int64_t parts[4];
    plan->gradient_workspace = plan->workspace;
    parts_of(scan, plan, parts);
    for (int i = 0; i < 4; i++) plan->gradient_workspace += parts[i];
    if (best)
        snprintf(plan->why, sizeof plan->why, "portable: bound by exponentials; %s", best->name);
    else
        snprintf(plan->why, sizeof plan->why, "%s",
                 device->major < 8 ? "made for compute capability 8.0 and newer"
                 : kernel          ? "made for other slots, or one token of a sequence"
                                   : "made for 8, 16, 32 or 64 slots");
    return best ? LN_CUDA_OK : LN_CUDA_UNSUPPORTED;
}

static int longer(const void *one, const void *other) {
    const ln_cuda_scan_sequence *a = (const ln_cuda_scan_sequence *)one, *b = (const ln_cuda_scan_sequence *)other;
    if (a->count != b->count) return a->count > b->count ? -1 : 1;
    return a->sequence < b->sequence ? -1 : a->sequence > b->sequence;
}

ln_cuda_code ln_cuda_scan_prepare(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan, void *workspace,
                                  void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    const size_t bytes = (size_t)scan->sequences * sizeof(ln_cuda_scan_sequence);
    ln_cuda_scan_sequence *sequence = (ln_cuda_scan_sequence *)malloc(bytes);
    if (!sequence) return LN_CUDA_OUT_OF_MEMORY;
    int64_t chunk = 0;
    for (int64_t s = 0; s < scan->sequences; s++) {
        const int64_t count = scan->offsets[s + 1] - scan->offsets[s];
        sequence[s] = {(int32_t)scan->offsets[s], (int32_t)count, (int32_t)s, (int32_t)chunk};
        chunk += (count + LN_CUDA_SCAN_CHUNK - 1) / LN_CUDA_SCAN_CHUNK;
    }
    qsort(sequence, (size_t)scan->sequences, sizeof *sequence, longer);
    cudaError_t error = cudaMemcpyAsync(workspace, sequence, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize((cudaStream_t)stream);
    free(sequence);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

static bool floats_right(const float *floats) {
    return (uintptr_t)floats % 16 == 0;
}

static bool tensors_right(const ln_cuda_scan *s, const ln_cuda_scan_tensors *t) {
    if (!t->rate || !floats_right(t->rate) || !floats_right(t->skip)) return false;
    if (!floats_right(t->state_in) || !floats_right(t->state_out)) return false;
    if (s->offsets[s->sequences] == 0) return true;
    if (!ln_cuda_tensor_right(&t->value, 2) || !ln_cuda_tensor_right(&t->key, 2) ||
        !ln_cuda_tensor_right(&t->query, 2) || !ln_cuda_tensor_right(&t->step, 4))
        return false;
    return !t->gate.data || ln_cuda_tensor_right(&t->gate, 2);
}

static ln_cuda_scan_run run_of(const ln_cuda_scan *scan, const ln_cuda_scan_tensors *tensors, void *workspace) {
    ln_cuda_scan_run run = {};
    run.tensors = *tensors;
    run.sequence = (const ln_cuda_scan_sequence *)workspace;
    run.sequences = (int)scan->sequences;
    run.heads = (int)scan->heads;
    run.key_heads = (int)scan->key_heads;
    run.value_size = (int)scan->value_size;
    run.group = (int)(scan->heads / scan->key_heads * scan->value_size);
    run.softplus = scan->softplus;
    run.output_float32 = scan->output_float32;
    return run;
}

ln_cuda_code ln_cuda_scan_forward(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan,
                                  const ln_cuda_scan_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    const bool empty = scan->offsets[scan->sequences] == 0;
    if (!tensors_right(scan, tensors) || !workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    if (!empty && !ln_cuda_tensor_right(&tensors->output, scan->output_float32 ? 4 : 2)) return LN_CUDA_ARGUMENT;
    const ln_cuda_scan_run run = run_of(scan, tensors, workspace);
    return plan->kernel->start(&run, stream);
}

static bool gradients_right(const ln_cuda_scan *s, const ln_cuda_scan_gradients *g) {
    if (!floats_right(g->state_out) || !floats_right(g->state_in)) return false;
    if (s->offsets[s->sequences] == 0) return true;
    if (g->value.data && !ln_cuda_tensor_right(&g->value, 2)) return false;
    if (g->step.data && !ln_cuda_tensor_right(&g->step, 4)) return false;
    return ln_cuda_tensor_right(&g->output, 2);
}

ln_cuda_code ln_cuda_scan_backward(const ln_cuda_scan *scan, const ln_cuda_scan_plan *plan,
                                   const ln_cuda_scan_tensors *tensors, const ln_cuda_scan_gradients *gradients,
                                   void *workspace, void *stream) {
    if (!plan->kernel || scan->slots % SLOTS_AT_ONCE || tensors->gate.data) return LN_CUDA_UNSUPPORTED;
    if (!tensors_right(scan, tensors) || !gradients_right(scan, gradients)) return LN_CUDA_ARGUMENT;
    if (!workspace || (uintptr_t)workspace % ALIGN) return LN_CUDA_ARGUMENT;
    ln_cuda_scan_run run = run_of(scan, tensors, workspace);
    run.gradients = *gradients;
    int64_t parts[4];
    parts_of(scan, plan, parts);
    char *at = (char *)workspace + plan->workspace;
    ln_cuda_scan_kept kept = {};
    kept.states = (float *)at;
    kept.shared = (float *)(at += parts[0]);
    kept.rates = (float *)(at += parts[1]);
    kept.skips = (float *)(at += parts[2]);
    kept.tokens = scan->offsets[scan->sequences];
    kept.blocks = (int)blocks_of(scan);
    run.slots = (int)scan->slots;
    ln_cuda_code code = LN_CUDA_OK;
    for (; run.slot < run.slots && !code; run.slot += SLOTS_AT_ONCE)
        code = ln_cuda_scan_gradients_start(&run, &kept, stream);
    return code;
}
