/* The host's side of the delta rules on a GPU: which kernel, the tables of chunks and sequences, both launches. */
#include "kernel/cuda/delta_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/boxes_cuda.h"
#include "kernel/cuda/delta_table.h"

const ln_cuda_delta_kernel *ln_cuda_delta_kernels(int row) {
    static const ln_cuda_delta_kernel none = {};
    if (row < 0) return &none;
    if (row < ln_cuda_delta_hopper_count) return &ln_cuda_delta_hopper_kernels[row];
    row -= ln_cuda_delta_hopper_count;
    return row < ln_cuda_delta_portable_count ? &ln_cuda_delta_portable_kernels[row] : &none;
}

/* ---- plan ---- */

static bool arguments_right(const ln_cuda_delta *d) {
    if (d->heads < 1 || d->key_heads < 1 || d->heads % d->key_heads || d->heads > 65535) return false;
    if (d->sequences < 1 || d->sequences > INT_MAX / 2 || !d->offsets || d->offsets[0]) return false;
    if (d->key_size < 1 || d->value_size < 1 || !isfinite(d->scale) || d->segment > INT_MAX / LN_CUDA_DELTA_CHUNK)
        return false;
    if (d->decay < LN_CUDA_DECAY_NONE || d->decay > LN_CUDA_DECAY_KEY) return false;
    for (int64_t s = 0; s < d->sequences; s++)
        if (d->offsets[s + 1] < d->offsets[s]) return false;
    return d->offsets[d->sequences] <= INT_MAX / 2;
}

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_delta *d, const ln_cuda_device *device, const ln_cuda_delta_kernel *kernel) {
    const bool by_key = d->decay == LN_CUDA_DECAY_KEY;
    if (d->key_size != kernel->key_size || d->value_size % kernel->columns) return "made for another size of heads";
    if (d->value_size / kernel->columns % kernel->sharers) return "its slices of values do not share copies evenly";
    if (by_key != (kernel->decay == LN_CUDA_DECAY_KEY)) return "made for other decays";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    return NULL;
}

static int64_t chunks_of(const ln_cuda_delta *d) {
    int64_t chunks = 0;
    for (int64_t s = 0; s < d->sequences; s++)
        chunks += (d->offsets[s + 1] - d->offsets[s] + LN_CUDA_DELTA_CHUNK - 1) / LN_CUDA_DELTA_CHUNK;
    return chunks;
}

/* Narrow slices while blocks are too few to fill the device, wide ones, which read less, when they are many. Narrow
 * ones that share copies come first in the table: on some machines they are 2 %, with decays of keys 8 % faster than
 * those that do not, on others 1 % slower (docs/cuda-ladder-delta.md). */
static bool wants_many(const ln_cuda_delta *d, const ln_cuda_device *device) {
    return d->sequences * d->heads * (d->value_size / 128) >= 2 * (int64_t)device->multiprocessors;
}

enum { LEAST_SEGMENT = 16 }; /* chunks */

static int64_t rounded(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Chunks of a segment, or 0: cut where that many walks at once take less than one after the other, with the work of
 * finding what segments begin with, which is a third more than that of a walk. */
static int64_t segment_of(const ln_cuda_delta *d, const ln_cuda_device *device, const ln_cuda_delta_kernel *kernel) {
    const int64_t blocks = d->sequences * d->heads * (d->value_size / kernel->columns);
    int64_t longest = 0;
    for (int64_t s = 0; s < d->sequences; s++)
        if (d->offsets[s + 1] - d->offsets[s] > longest) longest = d->offsets[s + 1] - d->offsets[s];
    const int64_t chunks = (longest + LN_CUDA_DELTA_CHUNK - 1) / LN_CUDA_DELTA_CHUNK;
    const int64_t fit = device->multiprocessors / blocks, most = chunks / LEAST_SEGMENT;
    const int64_t segments = fit < most ? fit : most;
    if (!kernel->summarise || d->value_size % 128 || d->segment < 0) return 0;
    if (d->segment > 0) return d->segment;
    if (segments < 3) return 0;
    return (chunks + segments - 1) / segments;
}

/* Fills in what depends on the segments. */
static void count_segments(const ln_cuda_delta *d, ln_cuda_delta_plan *plan) {
    const int64_t tokens = plan->segment * LN_CUDA_DELTA_CHUNK;
    plan->texts = d->sequences;
    for (int64_t s = 0; s < d->sequences && tokens; s++) {
        const int64_t more = (d->offsets[s + 1] - d->offsets[s] - 1) / tokens;
        if (more < 1) continue;
        plan->texts += more, plan->parts += more, plan->joins++;
    }
}

typedef struct places { /* in the workspace */
    int64_t pieces, texts, parts, joins, summaries, starts, records, bytes;
} places;

static places places_of(const ln_cuda_delta *d, const ln_cuda_delta_plan *plan) {
    const int64_t tile = LN_CUDA_DELTA_CHUNK * d->key_size * 2;
    const int64_t record = ln::delta_record<64, false>::small + (d->decay == LN_CUDA_DECAY_KEY ? 3 * tile : 0);
    const int64_t states = (plan->parts + plan->joins) * d->heads * d->key_size * 4;
    places at = {};
    at.texts = rounded(plan->chunks * (int64_t)sizeof(ln::delta_piece));
    at.parts = at.texts + rounded(plan->texts * (int64_t)sizeof(ln::delta_text));
    at.joins = at.parts + rounded(plan->parts * (int64_t)sizeof(ln::delta_text));
    at.summaries = at.joins + rounded(plan->joins * (int64_t)sizeof(ln::delta_join));
    at.starts = at.summaries + states * (d->value_size + d->key_size);
    at.records = at.starts + states * d->value_size;
    at.bytes = at.records + plan->chunks * d->heads * record;
    return at;
}

ln_cuda_code ln_cuda_delta_plan_make(const ln_cuda_delta *delta, const ln_cuda_device *device,
                                     const ln_cuda_delta_kernel *kernel, ln_cuda_delta_plan *plan) {
    *plan = {};
    plan->device = *device;
    if (!arguments_right(delta)) {
        snprintf(plan->why, sizeof plan->why, "heads, sizes, offsets, decay or scale are out of range");
        return LN_CUDA_ARGUMENT;
    }
    const char *fast = "none made for this size of heads";
    const ln_cuda_delta_kernel *best = NULL;
    const bool many = wants_many(delta, device);
    for (int row = 0;; row++) {
        const ln_cuda_delta_kernel *next = ln_cuda_delta_kernels(row);
        if (!next->start) break;
        if (kernel && next != kernel) continue;
        const char *why = refusal(delta, device, next);
        if (next->major == 9 && next->key_size == delta->key_size && (!best || why == NULL)) fast = why ? why : "taken";
        if (!why && (!best || (next->major == best->major && next->many == many && best->many != many))) best = next;
    }
    if (!best) {
        snprintf(plan->why, sizeof plan->why,
                 "no kernel for keys of %lld and values of %lld elements on compute capability %d.%d (its fast path: "
                 "%s)",
                 (long long)delta->key_size, (long long)delta->value_size, device->major, device->minor, fast);
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t chunks = chunks_of(delta),
                  blocks = delta->sequences * delta->heads * (delta->value_size / best->columns);
    if (chunks * delta->heads > INT_MAX || blocks > INT_MAX) {
        snprintf(plan->why, sizeof plan->why, "more than 2^31 chunks of heads");
        return LN_CUDA_ARGUMENT;
    }
    plan->kernel = best;
    plan->chunks = chunks;
    plan->segment = segment_of(delta, device, best);
    count_segments(delta, plan);
    plan->workspace = rounded(places_of(delta, plan).bytes);
    snprintf(plan->why, sizeof plan->why, "%s: %lld walks of %d columns, %lld chunks%s%s", best->name,
             (long long)(blocks / delta->sequences * plan->texts), best->columns, (long long)chunks,
             best->major == 9 ? "" : "; copy engine and warp group products: ", best->major == 9 ? "" : fast);
    return LN_CUDA_OK;
}

/* ---- tables ---- */

/* The longest first, so that the last blocks to start are short. A total order. */
static int longer(const void *one, const void *two) {
    const ln::delta_text *a = (const ln::delta_text *)one, *b = (const ln::delta_text *)two;
    if (a->tokens != b->tokens) return a->tokens > b->tokens ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token ? 1 : a->number - b->number;
}

typedef struct tables {
    ln::delta_piece *pieces;
    ln::delta_text *texts, *parts;
    ln::delta_join *joins;
} tables;

static void fill(const ln_cuda_delta *d, const ln_cuda_delta_plan *plan, const tables *to) {
    const int64_t segment = plan->segment ? plan->segment * LN_CUDA_DELTA_CHUNK : INT_MAX;
    int32_t piece = 0, start = 0, texts = 0, parts = 0, joins = 0;
    for (int64_t s = 0; s < d->sequences; s++) {
        const int64_t first = d->offsets[s], tokens = d->offsets[s + 1] - first;
        const bool cut = tokens > segment;
        if (cut) to->joins[joins++] = {(int32_t)s, start, (int32_t)((tokens + segment - 1) / segment)};
        for (int64_t t = 0; t < tokens || t == 0; t += segment) {
            const int64_t left = tokens - t;
            const bool last = left <= segment;
            const ln::delta_text text = {(int32_t)(first + t),
                                         (int32_t)(last ? left : segment),
                                         piece + (int32_t)(t / LN_CUDA_DELTA_CHUNK),
                                         (int32_t)s,
                                         cut ? start++ : -1,
                                         last};
            to->texts[texts++] = text;
            if (!last) to->parts[parts++] = text;
        }
        for (int64_t t = 0; t < tokens; t += LN_CUDA_DELTA_CHUNK) {
            const int64_t left = tokens - t;
            to->pieces[piece++] = {(int32_t)(first + t),
                                   (int32_t)(left < LN_CUDA_DELTA_CHUNK ? left : (int64_t)LN_CUDA_DELTA_CHUNK)};
        }
    }
    qsort(to->texts, (size_t)texts, sizeof *to->texts, longer);
}

ln_cuda_code ln_cuda_delta_prepare(const ln_cuda_delta *delta, const ln_cuda_delta_plan *plan, void *workspace,
                                   void *stream) {
    const places at = places_of(delta, plan);
    char *memory = (char *)calloc((size_t)at.summaries, 1);
    if (!memory) return LN_CUDA_OUT_OF_MEMORY;
    const tables all = {(ln::delta_piece *)(memory + at.pieces), (ln::delta_text *)(memory + at.texts),
                        (ln::delta_text *)(memory + at.parts), (ln::delta_join *)(memory + at.joins)};
    fill(delta, plan, &all);
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t error = cudaMemcpyAsync(workspace, memory, (size_t)at.summaries, cudaMemcpyHostToDevice, on);
    /* What is above the diagonals of T and P is never written. */
    if (error == cudaSuccess)
        error = cudaMemsetAsync((char *)workspace + at.records, 0, (size_t)(at.bytes - at.records), on);
    const cudaError_t waited = cudaStreamSynchronize(on);
    free(memory);
    return ln_cuda_code_of(error == cudaSuccess ? waited : error);
}

/* ---- launch ---- */

/* Boxes of one panel of one head, a chunk high. */
static ln_cuda_code describe(CUtensorMap *map, const ln_cuda_tensor *tensor, int64_t size, int64_t heads,
                             int64_t tokens) {
    return ln_cuda_boxes_of_heads(tensor, 2, size, heads, tokens, 64, LN_CUDA_DELTA_CHUNK, map);
}

static bool tensors_right(const ln_cuda_delta *d, const ln_cuda_delta_tensors *t) {
    const uintptr_t unit = d->decay == LN_CUDA_DECAY_KEY ? 16 : 4;
    if (!d->offsets[d->sequences]) return true;
    return ln_cuda_tensor_right(&t->query, 2) && ln_cuda_tensor_right(&t->key, 2) &&
           ln_cuda_tensor_right(&t->value, 2) && ln_cuda_tensor_right(&t->output, d->output_float32 ? 4 : 2) &&
           t->beta && (uintptr_t)t->beta % 4 == 0 &&
           (d->decay == LN_CUDA_DECAY_NONE || (t->decay && (uintptr_t)t->decay % unit == 0));
}

static ln::delta_run run_of(const ln_cuda_delta *d, const ln_cuda_delta_plan *plan, const ln_cuda_delta_tensors *t,
                            void *workspace) {
    const places at = places_of(d, plan);
    ln::delta_run run = {};
    run.query = t->query, run.key = t->key, run.value = t->value, run.output = t->output;
    run.beta = t->beta, run.decay = d->decay == LN_CUDA_DECAY_NONE ? NULL : t->decay;
    run.state_in = t->state_in, run.state_out = t->state_out, run.state_slots = t->state_slots;
    run.pieces = (const ln::delta_piece *)((char *)workspace + at.pieces);
    run.texts = (const ln::delta_text *)((char *)workspace + at.texts);
    run.parts = (const ln::delta_text *)((char *)workspace + at.parts);
    run.joins = (const ln::delta_join *)((char *)workspace + at.joins);
    run.summaries = (float *)((char *)workspace + at.summaries);
    run.starts = (float *)((char *)workspace + at.starts);
    run.records = (char *)workspace + at.records;
    run.piece_count = (int32_t)plan->chunks;
    run.heads = (int32_t)d->heads, run.key_heads = (int32_t)d->key_heads;
    run.group = (int32_t)(d->heads / d->key_heads);
    run.key_size = (int32_t)d->key_size, run.value_size = (int32_t)d->value_size;
    run.slices = (int32_t)(d->value_size / plan->kernel->columns);
    run.scale = d->scale;
    run.tiled = d->tiled_heads, run.normalise = d->normalise_keys, run.float32 = d->output_float32;
    return run;
}

ln_cuda_code ln_cuda_delta_forward(const ln_cuda_delta *delta, const ln_cuda_delta_plan *plan,
                                   const ln_cuda_delta_tensors *tensors, void *workspace, void *stream) {
    const ln_cuda_delta_kernel *kernel = plan->kernel;
    if (!kernel) return LN_CUDA_UNSUPPORTED;
    if (!tensors_right(delta, tensors) || !workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;
    ln::delta_run run = run_of(delta, plan, tensors, workspace);
    CUtensorMap maps[3];
    void *arguments[4] = {&maps[0], &maps[1], &maps[2], &run};
    const int64_t tokens = delta->offsets[delta->sequences];
    if (kernel->major == 9) {
        /* Without tokens nothing is copied, but the kernel takes descriptions all the same: of the workspace. */
        const int64_t most = tokens ? tokens : 1;
        const ln_cuda_tensor none = {workspace, 64, 64};
        ln_cuda_code code = describe(&maps[0], tokens ? &tensors->query : &none, tokens ? delta->key_size : 64,
                                     tokens ? delta->key_heads : 1, most);
        if (!code)
            code = describe(&maps[1], tokens ? &tensors->key : &none, tokens ? delta->key_size : 64,
                            tokens ? delta->key_heads : 1, most);
        if (!code)
            code = describe(&maps[2], tokens ? &tensors->value : &none, tokens ? delta->value_size : 64,
                            tokens ? delta->heads : 1, most);
        if (code) return code;
    }
    if (tokens) {
        const ln_cuda_code code = delta->decay == LN_CUDA_DECAY_KEY ? ln_cuda_delta_key_chunks(run, stream)
                                                                    : ln_cuda_delta_chunks(run, stream);
        if (code) return code;
    }
    if (plan->parts) {
        const ln_cuda_code code = kernel->summarise(arguments, plan->parts, plan->joins, stream);
        if (code) return code;
    }
    return kernel->start(kernel->major == 9 ? arguments : arguments + 3, plan->texts * delta->heads * run.slices,
                         stream);
}
