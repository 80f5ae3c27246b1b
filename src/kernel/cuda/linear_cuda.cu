/* The host's side of linear attention on a GPU: which kernel, how many segments, which tasks, and the launches.
 *
 * A task costs as many rows of tensors as it reads and writes. The last pass moves four a token (query, key, value,
 * output), the first one two, both two more for decays of channels; the first is not needed for a sequence's last
 * segment, nor where there is one segment. Among lengths of segments the plan takes that whose rounds of tasks over the
 * device move the fewest rows. */
#include "kernel/cuda/linear_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/boxes_cuda.h"
#include "kernel/cuda/linear_rows.cuh"
#include "kernel/cuda/linear_table.h"

enum { SEGMENTS_MOST = 64, ROWS_OF_A_PASS = 2048 }; /* what a further pass costs, in rows */

const ln_cuda_linear_kernel *ln_cuda_linear_kernels(int row) {
    static const ln_cuda_linear_kernel none = {};
    if (row < 0) return &none;
    if (row < ln_cuda_linear_hopper_count) return &ln_cuda_linear_hopper_kernels[row];
    row -= ln_cuda_linear_hopper_count;
    return row < ln_cuda_linear_portable_count ? &ln_cuda_linear_portable_kernels[row] : &none;
}

int64_t ln_cuda_linear_state_floats(const ln_cuda_linear *linear) {
    const int64_t sums = linear->normalise ? linear->key_size + (linear->normalise == LN_CUDA_SUM_MAXIMUM) : 0;
    return linear->key_size * linear->value_size + sums + linear->state_gap;
}

/* ---- plan ---- */

static bool arguments_right(const ln_cuda_linear *l) {
    if (l->heads < 1 || l->key_heads < 1 || l->heads % l->key_heads || l->heads > 65535) return false;
    if (l->key_size < 1 || l->value_size < 1 || l->sequences < 1 || !l->offsets || !isfinite(l->scale)) return false;
    if (l->normalise && (l->decay != LN_CUDA_LINEAR_TOKEN || l->reverse || l->state_kept)) return false;
    if (l->decay < LN_CUDA_LINEAR_TOKEN || l->decay > LN_CUDA_LINEAR_VALUE || l->offsets[0] != 0) return false;
    for (int64_t s = 0; s < l->sequences; s++)
        if (l->offsets[s + 1] < l->offsets[s]) return false;
    return l->offsets[l->sequences] <= INT_MAX / 2;
}

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_linear *l, const ln_cuda_device *device, const ln_cuda_linear_kernel *kernel) {
    if (l->key_size != kernel->key_size || l->value_size % kernel->columns) return "made for another size of heads";
    if (l->decay != kernel->decay || (l->normalise != LN_CUDA_SUM_NONE) != kernel->normalise)
        return "made for another kind of decay";
    if (l->reverse && !kernel->reverse) return "made for time that runs forward";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    return NULL;
}

static int64_t segments_of(int64_t tokens, int64_t segment) {
    return tokens > segment ? (tokens + segment - 1) / segment : 1;
}

/* The segments that the first pass walks, and the slots. */
static int64_t left_of(const ln_cuda_linear *l, int64_t segments) {
    return l->state_kept ? segments : segments - 1;
}
static int64_t slots_of(const ln_cuda_linear *l, int64_t segments) {
    return left_of(l, segments) ? left_of(l, segments) + 1 : 0;
}
/* Tasks of both passes, slots. */
static void count_tasks(const ln_cuda_linear *l, ln_cuda_linear_plan *plan) {
    const int64_t parts = l->value_size / plan->kernel->columns;
    plan->tasks = plan->first_tasks = plan->slots = plan->chains = 0;
    for (int64_t s = 0; s < l->sequences; s++) {
        const int64_t segments = segments_of(l->offsets[s + 1] - l->offsets[s], plan->segment);
        plan->tasks += segments * l->heads * parts;
        plan->first_tasks += left_of(l, segments) * l->heads * parts;
        plan->slots += slots_of(l, segments) * l->heads;
        plan->chains += slots_of(l, segments) ? l->heads : 0;
    }
}

/* Rows that the busiest multiprocessor moves for some tasks: whole rounds where all are alike. */
static double rows_of(const ln_cuda_linear *l, const ln_cuda_linear_plan *plan, int64_t tasks, int64_t longest) {
    const int64_t at_once = (int64_t)plan->device.multiprocessors * plan->kernel->blocks;
    const double part = (double)(plan->segment < longest ? plan->segment : longest);
    const bool alike = l->offsets[l->sequences] == longest * l->sequences && longest % plan->segment == 0;
    if (alike) return (double)((tasks + at_once - 1) / at_once) * part;
    const double mean =
        (double)l->offsets[l->sequences] * (double)(l->heads * l->value_size / plan->kernel->columns) / (double)at_once;
    return mean > part ? mean + part / 2 : part;
}

static void choose_segment(const ln_cuda_linear *l, ln_cuda_linear_plan *plan) {
    int64_t longest = 1, best = 0;
    double least = INFINITY;
    const int more = l->decay == LN_CUDA_LINEAR_TOKEN ? 0 : 2;
    for (int64_t s = 0; s < l->sequences; s++) {
        const int64_t tokens = l->offsets[s + 1] - l->offsets[s];
        if (tokens > longest) longest = tokens;
    }
    for (int64_t segments = 1; segments <= SEGMENTS_MOST; segments++) {
        plan->segment = ((longest + segments - 1) / segments + ln::CHUNK - 1) / ln::CHUNK * ln::CHUNK;
        count_tasks(l, plan);
        double rows = (4 + more) * rows_of(l, plan, plan->tasks, longest);
        if (plan->first_tasks)
            rows +=
                (2 + more) * rows_of(l, plan, plan->first_tasks, longest) * (double)(segments - 1) / (double)segments +
                ROWS_OF_A_PASS;
        if (rows < least) {
            least = rows;
            best = plan->segment;
        }
        if (plan->segment == ln::CHUNK) break;
    }
    plan->segment = best;
}

static int64_t slot_floats(const ln_cuda_linear *l) {
    const int64_t most = l->key_size > l->value_size ? l->key_size : l->value_size;
    return (l->value_size + 1) * l->key_size + most;
}
static int64_t aligned(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}
static int64_t task_bytes(const ln_cuda_linear_plan *plan) {
    return aligned((plan->first_tasks + plan->tasks) * (int64_t)sizeof(ln_cuda_linear_task));
}
static int64_t chain_bytes(const ln_cuda_linear_plan *plan) {
    return aligned(plan->chains * (int64_t)sizeof(ln_cuda_linear_chain));
}

/* n of the states that are given, behind the slots. */
static int64_t sums_at(const ln_cuda_linear *l, const ln_cuda_linear_plan *plan) {
    return task_bytes(plan) + chain_bytes(plan) + aligned(plan->slots * slot_floats(l) * 4);
}
static int64_t sums_bytes(const ln_cuda_linear *l) {
    return aligned(l->sequences * l->heads * l->key_size * 4);
}

ln_cuda_code ln_cuda_linear_plan_make(const ln_cuda_linear *linear, const ln_cuda_device *device,
                                      const ln_cuda_linear_kernel *kernel, int64_t segment, ln_cuda_linear_plan *plan) {
    *plan = {};
    plan->device = *device;
    if (!arguments_right(linear) || segment < 0 || segment % ln::CHUNK) {
        snprintf(plan->why, sizeof plan->why, "heads, sizes, offsets, scale, segment or options are out of range");
        return LN_CUDA_ARGUMENT;
    }
    const char *fast = "none made for this size of heads";
    for (int row = 0; !plan->kernel; row++) {
        const ln_cuda_linear_kernel *next = ln_cuda_linear_kernels(row);
        if (!next->start) break;
        if (kernel && next != kernel) continue;
        const char *why = refusal(linear, device, next);
        if (next->major == 9 && next->key_size == linear->key_size) fast = why ? why : "taken";
        if (!why) plan->kernel = next;
    }
    if (!plan->kernel) {
        snprintf(plan->why, sizeof plan->why,
                 "no kernel for keys of %lld and values of %lld elements on compute capability %d.%d (its fast path: "
                 "%s)",
                 (long long)linear->key_size, (long long)linear->value_size, device->major, device->minor, fast);
        return LN_CUDA_UNSUPPORTED;
    }
    plan->segment = segment;
    if (segment == 0) choose_segment(linear, plan);
    count_tasks(linear, plan);
    if (plan->first_tasks + plan->tasks > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "more than 2^30 tasks");
        return LN_CUDA_ARGUMENT;
    }
    if (plan->chains && (linear->value_size + 1) * linear->key_size > LN_CUDA_LINEAR_JOINED) {
        snprintf(plan->why, sizeof plan->why,
                 "the state of a head is of more than %d floats: too many to be joined from segments",
                 LN_CUDA_LINEAR_JOINED);
        return LN_CUDA_ARGUMENT;
    }
    plan->workspace = sums_at(linear, plan) + (linear->normalise ? sums_bytes(linear) : 0);
    const bool hopper = plan->kernel->major == 9;
    snprintf(plan->why, sizeof plan->why, "%s: %lld tasks of %lld tokens, %lld before them for states%s%s",
             plan->kernel->name, (long long)plan->tasks, (long long)plan->segment, (long long)plan->first_tasks,
             hopper ? "" : "; copy engine and warp group products: ", hopper ? "" : fast);
    return LN_CUDA_OK;
}

/* ---- tasks ---- */

/* The longest first, heads of the same tokens together. A total order: the same list everywhere. */
static int before(const void *one, const void *two) {
    const ln_cuda_linear_task *a = (const ln_cuda_linear_task *)one, *b = (const ln_cuda_linear_task *)two;
    if (a->tokens != b->tokens) return a->tokens > b->tokens ? -1 : 1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    return a->column < b->column ? -1 : a->column > b->column;
}

/* Segment n in time of a sequence, whose slots begin at `slot`. */
static ln_cuda_linear_task task_of(const ln_cuda_linear *l, const ln_cuda_linear_plan *plan, int64_t sequence,
                                   int64_t head, int64_t column, int64_t n, int64_t slot, bool last) {
    const int64_t first = l->offsets[sequence], end = l->offsets[sequence + 1];
    const int64_t segments = segments_of(end - first, plan->segment), part = l->reverse ? segments - 1 - n : n;
    const int64_t from = first + part * plan->segment, left = end - from;
    ln_cuda_linear_task task = {(int32_t)from,       (int32_t)(left < plan->segment ? left : plan->segment),
                                (int32_t)end,        (int32_t)head,
                                (int32_t)column,     (int32_t)sequence,
                                LN_CUDA_STATE_GIVEN, LN_CUDA_STATE_GIVEN};
    if (!last) {
        if (n > 0) task.from = LN_CUDA_STATE_NONE;
        task.to = (int32_t)(slot + n + 1);
    } else if (slots_of(l, segments)) {
        task.from = (int32_t)(slot + n);
        if (n < segments - 1) task.to = LN_CUDA_STATE_NONE;
    }
    return task;
}

void ln_cuda_linear_tasks(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan, ln_cuda_linear_task *tasks) {
    int64_t first = 0, last = plan->first_tasks, slot = 0;
    for (int64_t s = 0; s < linear->sequences; s++) {
        const int64_t segments = segments_of(linear->offsets[s + 1] - linear->offsets[s], plan->segment);
        for (int64_t head = 0; head < linear->heads; head++) {
            for (int64_t n = 0; n < segments; n++)
                for (int64_t column = 0; column < linear->value_size; column += plan->kernel->columns) {
                    if (n < left_of(linear, segments))
                        tasks[first++] = task_of(linear, plan, s, head, column, n, slot, false);
                    tasks[last++] = task_of(linear, plan, s, head, column, n, slot, true);
                }
            slot += slots_of(linear, segments);
        }
    }
    qsort(tasks, (size_t)plan->first_tasks, sizeof *tasks, before);
    qsort(tasks + plan->first_tasks, (size_t)plan->tasks, sizeof *tasks, before);
}

static void chains_of(const ln_cuda_linear *l, const ln_cuda_linear_plan *plan, ln_cuda_linear_chain *chains) {
    int64_t slot = 0;
    for (int64_t s = 0; s < l->sequences; s++) {
        const int64_t slots = slots_of(l, segments_of(l->offsets[s + 1] - l->offsets[s], plan->segment));
        for (int64_t head = 0; slots && head < l->heads; head++, slot += slots)
            *chains++ = {(int32_t)slot, (int32_t)slots};
    }
}

ln_cuda_code ln_cuda_linear_prepare(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                    const ln_cuda_linear_task *tasks, void *workspace, void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    const size_t bytes = (size_t)(plan->first_tasks + plan->tasks) * sizeof *tasks;
    cudaError_t error = cudaMemcpyAsync(workspace, tasks, bytes, cudaMemcpyHostToDevice, on);
    ln_cuda_linear_chain *chains = (ln_cuda_linear_chain *)malloc((size_t)chain_bytes(plan) + 1);
    if (!chains) return LN_CUDA_OUT_OF_MEMORY;
    chains_of(linear, plan, chains);
    if (error == cudaSuccess && plan->chains)
        error = cudaMemcpyAsync((char *)workspace + task_bytes(plan), chains, (size_t)plan->chains * sizeof *chains,
                                cudaMemcpyHostToDevice, on);
    if (error == cudaSuccess) error = cudaStreamSynchronize(on);
    free(chains);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

/* Boxes of one head, a chunk high: of 64 columns of bf16, or of so many decays. */
static ln_cuda_code describe(CUtensorMap *map, const ln_cuda_tensor *tensor, int64_t size, int64_t heads,
                             int64_t tokens, int64_t decays) {
    return ln_cuda_boxes_of_heads(tensor, decays ? 4 : 2, size, heads, tokens, decays ? (int)decays : 64, ln::CHUNK,
                                  map);
}

static ln::linear_run run_of(const ln_cuda_linear *l, const ln_cuda_linear_plan *plan,
                             const ln_cuda_linear_tensors *tensors, void *workspace) {
    ln::linear_run run = {};
    run.tensors = *tensors;
    run.tasks = (const ln_cuda_linear_task *)workspace;
    run.slots = (float *)((char *)workspace + task_bytes(plan) + chain_bytes(plan));
    run.slot_floats = slot_floats(l);
    run.state_floats = ln_cuda_linear_state_floats(l);
    run.heads = (int)l->heads;
    run.key_heads = (int)l->key_heads;
    run.group = (int)(l->heads / l->key_heads);
    run.tiled = l->tiled_heads;
    run.query_shared = !l->query_whole;
    run.key_shared = !l->key_whole;
    run.value_shared = l->value_shared;
    run.normalise = l->normalise;
    run.weight_least = ln::weight_least(l->normalise);
    run.weight_more = ln::weight_more(l->normalise);
    if (l->normalise && tensors->state_in) run.sums_in = (float *)((char *)workspace + sums_at(l, plan));
    run.key_size = (int)l->key_size;
    run.value_size = (int)l->value_size;
    run.scale = l->scale;
    run.reverse = l->reverse;
    run.output_float32 = l->output_float32;
    run.state_key_stride = l->state_turned ? 1 : l->value_size;
    run.state_value_stride = !l->state_turned ? 1 : l->state_row ? l->state_row : l->key_size;
    run.state_store = l->state_divisor != 0 ? l->state_divisor : 1;
    run.state_load = 1 / run.state_store;
    return run;
}

ln_cuda_linear_slots ln_cuda_linear_kept(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                         const void *workspace) {
    const char *chains = (const char *)workspace + task_bytes(plan);
    return {(const float *)(chains + chain_bytes(plan)), slot_floats(linear), (const int32_t(*)[2])chains};
}

static bool tensors_right(const ln_cuda_linear *l, const ln_cuda_linear_tensors *t) {
    if (l->normalise == LN_CUDA_SUM_MAXIMUM && l->offsets[l->sequences] > 0 && !t->maximum.data) return false;
    if (l->offsets[l->sequences] == 0) return true;
    if (!ln_cuda_tensor_right(&t->query, 2) || !ln_cuda_tensor_right(&t->key, 2) || !ln_cuda_tensor_right(&t->value, 2))
        return false;
    if (!(l->state_kept && !t->output.data) && !ln_cuda_tensor_right(&t->output, l->output_float32 ? 4 : 2))
        return false;
    return l->decay == LN_CUDA_LINEAR_TOKEN || ln_cuda_tensor_right(&t->decay, 4);
}

ln_cuda_code ln_cuda_linear_forward(const ln_cuda_linear *linear, const ln_cuda_linear_plan *plan,
                                    const ln_cuda_linear_tensors *tensors, void *workspace, void *stream) {
    const ln_cuda_linear_kernel *kernel = plan->kernel;
    if (!kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256 || !tensors_right(linear, tensors)) return LN_CUDA_ARGUMENT;
    ln::linear_run run = run_of(linear, plan, tensors, workspace);
    const int64_t tokens = linear->offsets[linear->sequences], heads = linear->heads, shared = linear->key_heads;
    CUtensorMap maps[4] = {};
    void *arguments[5] = {&maps[0], &maps[1], &maps[2], &maps[3], &run};
    ln_cuda_code code = LN_CUDA_OK;
    if (kernel->major == 9 && tokens > 0) {
        const int64_t queries = linear->query_whole ? heads : shared, keys = linear->key_whole ? heads : shared,
                      values = linear->value_shared ? shared : heads;
        code = describe(&maps[0], &tensors->query, linear->key_size, queries, tokens, 0);
        if (!code) code = describe(&maps[1], &tensors->key, linear->key_size, keys, tokens, 0);
        if (!code) code = describe(&maps[2], &tensors->value, linear->value_size, values, tokens, 0);
        const bool of_keys = linear->decay == LN_CUDA_LINEAR_KEY;
        if (!code && linear->decay != LN_CUDA_LINEAR_TOKEN)
            code = describe(&maps[3], &tensors->decay, of_keys ? linear->key_size : linear->value_size, heads, tokens,
                            of_keys ? linear->key_size : kernel->columns);
    }
    void *const *given = kernel->major == 9 ? arguments : arguments + 4;
    if (!code && run.sums_in) code = ln_cuda_linear_sums_begin(&run, (int)linear->sequences, stream);
    if (!code && plan->first_tasks) {
        const ln_cuda_linear_chain *chains = (const ln_cuda_linear_chain *)((char *)workspace + task_bytes(plan));
        code = kernel->start(given, false, (int)plan->first_tasks, stream);
        if (!code) code = ln_cuda_linear_scan(&run, linear->decay, chains, (int)plan->chains, stream);
    }
    if (linear->state_kept && !tensors->output.data) return code;
    run.tasks += plan->first_tasks;
    return code ? code : kernel->start(given, true, (int)plan->tasks, stream);
}
