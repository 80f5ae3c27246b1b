/* The host's side of attention on a GPU: which kernel, which tasks, and the launch. */
#include "kernel/cuda/attention_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/attention_rows.cuh"
#include "kernel/cuda/attention_table.h"
#include "kernel/cuda/boxes_cuda.h"

enum { COUNTER_BYTES = 256 }; /* in front of the tasks of a workspace */

const ln_cuda_kernel *ln_cuda_attention_kernels(int row) {
    static const ln_cuda_kernel none = {};
    const ln_cuda_kernel *const tables[] = {ln_cuda_hopper_kernels, ln_cuda_hopper_half_kernels,
                                            ln_cuda_portable_kernels};
    const int counts[] = {ln_cuda_hopper_count, ln_cuda_hopper_half_count, ln_cuda_portable_count};
    if (row < 0) return &none;
    for (int i = 0; i < 3; row -= counts[i++])
        if (row < counts[i]) return &tables[i][row];
    return &none;
}

/* ---- plan ---- */

static int64_t query_tiles(const ln_cuda_attention *a) {
    return (a->query_offsets[a->sequences] + a->query_tile - 1) / a->query_tile;
}

/* NULL, or what is wrong with the lists. */
static const char *lists_wrong(const ln_cuda_attention *a) {
    if (a->query_tile == 0) return NULL;
    if (a->query_tile < 0 || a->key_tile < 1 || a->query_tile > INT_MAX / 2 || a->key_tile > INT_MAX / 2)
        return "tiles of lists are not from 1 to 2^30";
    if (a->sequences != 1) return "lists of tiles are for one sequence";
    if (!a->list_offsets || a->list_offsets[0] != 0) return "lists need offsets that begin with 0";
    const int64_t lists = query_tiles(a) * (a->list_per_head ? a->heads : 1),
                  tiles = (a->key_offsets[1] + a->key_tile - 1) / a->key_tile;
    for (int64_t l = 0; l < lists; l++) {
        if (a->list_offsets[l + 1] < a->list_offsets[l]) return "offsets of lists decrease";
        for (int64_t i = a->list_offsets[l]; i < a->list_offsets[l + 1]; i++)
            if (a->listed[i] < 0 || a->listed[i] >= tiles ||
                (i > a->list_offsets[l] && a->listed[i] <= a->listed[i - 1]))
                return "a list names tiles that are not there, or not in order";
    }
    return NULL;
}

static const char *offsets_wrong(const int64_t *offsets, int64_t sequences, int64_t most) {
    if (!offsets || offsets[0] != 0) return "offsets of sequences do not begin with 0";
    for (int64_t s = 0; s < sequences; s++)
        if (offsets[s + 1] < offsets[s]) return "offsets of sequences decrease";
    return offsets[sequences] > most ? "more tokens than the kernels count (2^29, without gradients 2^30)" : NULL;
}

const char *ln_cuda_attention_wrong(const ln_cuda_attention *a, int64_t most) {
    if (a->heads < 1 || a->heads > 65535) return "heads are not from 1 to 65535";
    if (a->key_value_heads < 1 || a->heads % a->key_value_heads) return "key_value_heads do not divide heads";
    if (a->sequences < 1) return "sequences are less than 1";
    if (a->window < 0 || a->window > most) return "the window is negative or above 2^29 (without gradients 2^30)";
    if (!(a->scale > 0) || isinf(a->scale)) return "the scale is not positive";
    if (!(a->soft_cap >= 0) || isinf(a->soft_cap)) return "soft_cap is negative or infinite";
    if (a->rank < 0 || a->rank > 1024) return "rank is not from 0 to 1024";
    const char *wrong = offsets_wrong(a->query_offsets, a->sequences, most);
    if (!wrong) wrong = offsets_wrong(a->key_offsets, a->sequences, most);
    return wrong ? wrong : lists_wrong(a);
}

const char *ln_cuda_attention_lacking(const ln_cuda_attention *a) {
    if (a->rank && a->soft_cap > 0) return "a rank is not made with a soft_cap";
    if (a->query_tile && (a->query_tile % 64 || a->key_tile % 64)) return "tiles of lists must be multiples of 64";
    return NULL;
}

static int64_t tiles_of(const ln_cuda_attention *a, const ln_cuda_kernel *kernel) {
    int64_t tiles = 0;
    for (int64_t s = 0; s < a->sequences; s++)
        tiles += (a->query_offsets[s + 1] - a->query_offsets[s] + kernel->rows - 1) / kernel->rows;
    return tiles;
}

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_attention *a, const ln_cuda_device *device, const ln_cuda_kernel *kernel) {
    const int wanted = (a->window ? LN_CUDA_WINDOW : 0) | (a->soft_cap > 0 ? LN_CUDA_CAP : 0) |
                       (a->query_tile ? LN_CUDA_LISTS : 0) | (a->half ? LN_CUDA_HALF : 0);
    const int64_t key_size = a->key_size + 3 * a->rank; /* what is left of a packed row is filled with zeros */
    if ((a->rank ? key_size > kernel->key_size : key_size != kernel->key_size) || a->value_size != kernel->value_size)
        return "made for another size of heads";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if ((wanted & ~kernel->options) || ((kernel->options & ~wanted) & (LN_CUDA_CAP | LN_CUDA_HALF)))
        return "made for other options";
    if (kernel->major == 9 && !a->query_tile && (kernel->options & LN_CUDA_LISTS)) return "made for lists";
    if (a->query_tile && (a->query_tile % kernel->rows || a->key_tile % kernel->keys))
        return "tiles of the lists are no multiples of its own";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    return NULL;
}

/* Tall tiles read less, short ones waste less where a mask or the end of a sequence cuts them. */
static bool wants_short(const ln_cuda_attention *a) {
    const int64_t keys = a->key_offsets[a->sequences] / a->sequences,
                  seen = a->window && a->window < keys ? a->window : keys;
    return seen < (a->causal || a->window ? 6144 : 1024);
}

/* Keys low .. high - 1 are those that some of `rows` queries from the given position on see. */
static void seen_by(const ln_cuda_attention *a, int64_t position, int64_t rows, int64_t keys, int64_t *low,
                    int64_t *high) {
    const int64_t last = position + rows - 1;
    *low = 0, *high = keys;
    if (a->causal && last + 1 < *high) *high = last + 1;
    if (a->window && !a->causal && last + a->window < *high) *high = last + a->window;
    if (a->window && position - a->window + 1 > 0) *low = position - a->window + 1;
}

/* The blocks of a list that are seen, in places from `place` on; `blocks` NULL: only counted. */
static int64_t list_blocks(const ln_cuda_attention *a, const ln_cuda_kernel *kernel, int64_t head, int64_t row,
                           int64_t low, int64_t high, int32_t *blocks) {
    const int64_t list = (a->list_per_head ? head * query_tiles(a) : 0) + row / a->query_tile,
                  each = a->key_tile / kernel->keys;
    int64_t count = 0;
    for (int64_t i = a->list_offsets[list]; i < a->list_offsets[list + 1]; i++)
        for (int64_t block = a->listed[i] * each; block < (a->listed[i] + 1) * each; block++) {
            if (block * kernel->keys >= high || (block + 1) * kernel->keys <= low) continue;
            if (blocks) blocks[count] = (int32_t)block;
            count++;
        }
    return count;
}

/* blocks, *count: the table so far; blocks NULL: only counted. */
static ln_cuda_task task_of(const ln_cuda_attention *a, const ln_cuda_kernel *kernel, int64_t sequence, int64_t head,
                            int64_t row, int32_t *blocks, int64_t *count) {
    const int64_t queries = a->query_offsets[sequence + 1] - a->query_offsets[sequence];
    const int64_t keys = a->key_offsets[sequence + 1] - a->key_offsets[sequence];
    const int64_t rows = queries - row < kernel->rows ? queries - row : kernel->rows;
    const int64_t position = row + keys - queries;
    int64_t low, high;
    seen_by(a, position, rows, keys, &low, &high);
    ln_cuda_task task = {(int32_t)(a->query_offsets[sequence] + row),
                         (int32_t)rows,
                         (int32_t)position,
                         (int32_t)a->key_offsets[sequence],
                         (int32_t)keys,
                         (int32_t)head,
                         0,
                         0};
    if (low < high && a->query_tile) {
        task.first_block = (int32_t)*count;
        *count += list_blocks(a, kernel, head, row, low, high, blocks ? blocks + *count : NULL);
        task.end_block = (int32_t)*count;
    } else if (low < high) {
        task.first_block = (int32_t)(low / kernel->keys);
        task.end_block = (int32_t)((high + kernel->keys - 1) / kernel->keys);
    }
    return task;
}

static int64_t blocks_of(const ln_cuda_attention *a, const ln_cuda_kernel *kernel) {
    int64_t count = 0;
    for (int64_t head = 0; head < a->heads && count <= INT_MAX / 2; head++)
        for (int64_t row = 0; row < a->query_offsets[1]; row += kernel->rows)
            task_of(a, kernel, 0, head, row, NULL, &count);
    return count;
}

static int64_t round_up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Of all queries or keys with their factors. */
static int64_t packed_bytes(const ln_cuda_attention *a, const ln_cuda_attention_plan *plan, bool keys) {
    const int64_t rows =
        keys ? a->key_offsets[a->sequences] * a->key_value_heads : a->query_offsets[a->sequences] * a->heads;
    return round_up(rows * plan->packed_size * 2);
}

ln_cuda_code ln_cuda_attention_plan_make(const ln_cuda_attention *attention, const ln_cuda_device *device,
                                         const ln_cuda_kernel *kernel, ln_cuda_attention_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *lacking = ln_cuda_attention_lacking(attention),
               *wrong = ln_cuda_attention_wrong(attention, INT_MAX / 2);
    if (lacking || wrong) {
        snprintf(plan->why, sizeof plan->why, "%s", lacking ? lacking : wrong);
        return lacking ? LN_CUDA_UNSUPPORTED : LN_CUDA_ARGUMENT;
    }
    const char *fast = "none made for this size of heads";
    const ln_cuda_kernel *best = NULL;
    for (int row = 0; !best || best->short_rows != wants_short(attention); row++) {
        const ln_cuda_kernel *next = ln_cuda_attention_kernels(row);
        if (!next->start) break;
        if (kernel && next != kernel) continue;
        const char *why = refusal(attention, device, next);
        if (next->major == 9 && next->key_size == attention->key_size && next->value_size == attention->value_size &&
            (attention->query_tile || !(next->options & LN_CUDA_LISTS)))
            fast = why ? why : "taken";
        if (!why && (!best || (next->major == best->major && next->short_rows == wants_short(attention)))) best = next;
    }
    if (!best) {
        snprintf(
            plan->why, sizeof plan->why,
            "no kernel for keys of %lld and values of %lld elements on compute capability %d.%d (its fast path: %s)",
            (long long)attention->key_size, (long long)attention->value_size, device->major, device->minor, fast);
        return LN_CUDA_UNSUPPORTED;
    }
    const int64_t tasks = tiles_of(attention, best) * attention->heads;
    if (tasks > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "more than 2^30 tiles of queries");
        return LN_CUDA_ARGUMENT;
    }
    plan->kernel = best;
    plan->tasks = tasks;
    plan->blocks = attention->query_tile ? blocks_of(attention, best) : 0;
    if (plan->blocks > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "lists of more than 2^30 blocks of keys");
        return LN_CUDA_ARGUMENT;
    }
    plan->tables = tasks * (int64_t)sizeof(ln_cuda_task) + plan->blocks * 4;
    plan->workspace = COUNTER_BYTES + round_up(plan->tables);
    if (attention->rank) {
        plan->packed_size = best->key_size;
        plan->workspace += packed_bytes(attention, plan, false) + packed_bytes(attention, plan, true);
    }
    snprintf(plan->why, sizeof plan->why, "%s: %lld tasks of %d queries, keys by %d%s%s", best->name, (long long)tasks,
             best->rows, best->keys,
             best->major == 9 ? "" : "; copy engine and warp group products: ", best->major == 9 ? "" : fast);
    return LN_CUDA_OK;
}

/* ---- tasks ---- */

/* The longest first; neighbours share keys. A total order: the same list everywhere. */
static int before(const void *one, const void *two) {
    const ln_cuda_task *a = (const ln_cuda_task *)one, *b = (const ln_cuda_task *)two;
    const int length = (b->end_block - b->first_block) - (a->end_block - a->first_block);
    if (length) return length;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    return a->query < b->query ? -1 : a->query > b->query;
}

void ln_cuda_attention_tasks(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                             ln_cuda_task *tasks) {
    const int64_t group = attention->heads / attention->key_value_heads;
    const int64_t row_bytes = 2 * (attention->key_size + attention->value_size);
    int32_t *blocks = (int32_t *)(tasks + plan->tasks);
    int64_t count = 0, section = 0, bytes = 0, listed = 0;
    for (int64_t s = 0; s < attention->sequences; s++)
        for (int64_t shared = 0; shared < attention->key_value_heads; shared++) {
            const int64_t queries = attention->query_offsets[s + 1] - attention->query_offsets[s];
            const int64_t more = (attention->key_offsets[s + 1] - attention->key_offsets[s]) * row_bytes;
            /* A last section of few tasks, the longest first, would leave most multiprocessors idle at the end. */
            const bool last = plan->tasks - count < 2 * plan->device.multiprocessors;
            if (bytes + more > plan->device.cache_bytes / 2 && count > section && !last) {
                qsort(tasks + section, (size_t)(count - section), sizeof *tasks, before);
                section = count;
                bytes = 0;
            }
            bytes += more;
            for (int64_t head = shared * group; head < (shared + 1) * group; head++)
                for (int64_t row = 0; row < queries; row += plan->kernel->rows)
                    tasks[count++] = task_of(attention, plan->kernel, s, head, row, blocks, &listed);
        }
    if (count > section) qsort(tasks + section, (size_t)(count - section), sizeof *tasks, before);
}

ln_cuda_code ln_cuda_attention_prepare(const ln_cuda_attention_plan *plan, const ln_cuda_task *tasks, void *workspace,
                                       void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t error = cudaMemsetAsync(workspace, 0, COUNTER_BYTES, on);
    if (error == cudaSuccess)
        error =
            cudaMemcpyAsync((char *)workspace + COUNTER_BYTES, tasks, (size_t)plan->tables, cudaMemcpyHostToDevice, on);
    if (error == cudaSuccess) error = cudaStreamSynchronize(on);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

/* Queries and keys with their factors, in the workspace; `packed` then stands for the tensors. */
static ln_cuda_code pack_factors(const ln_cuda_attention *a, const ln_cuda_attention_plan *plan, void *workspace,
                                 ln_cuda_attention_tensors *packed, void *stream) {
    if (!packed->query_factors || !packed->key_factors) return LN_CUDA_ARGUMENT;
    const int64_t size = plan->packed_size, queries = a->query_offsets[a->sequences],
                  keys = a->key_offsets[a->sequences];
    char *query = (char *)workspace + COUNTER_BYTES + round_up(plan->tables);
    char *key = query + packed_bytes(a, plan, false);
    ln_cuda_code code = ln_cuda_attention_pack(&packed->query, a->key_size, packed->query_factors, a->rank,
                                               1 / a->scale, queries, a->heads, a->half, false, size, query, stream);
    if (!code)
        code = ln_cuda_attention_pack(&packed->key, a->key_size, packed->key_factors, a->rank, 1, keys,
                                      a->key_value_heads, a->half, true, size, key, stream);
    packed->query = {query, size * a->heads, size};
    packed->key = {key, size * a->key_value_heads, size};
    return code;
}

/* Boxes of one panel of one head, `rows` tokens high. */
static ln_cuda_code describe(CUtensorMap *map, const ln_cuda_tensor *tensor, int64_t size, int64_t heads,
                             int64_t tokens, int rows) {
    return ln_cuda_boxes_of_heads(tensor, 2, size, heads, tokens, size % 64 ? 32 : 64, rows, map);
}

static ln::attention_run run_of(const ln_cuda_attention *a, const ln_cuda_attention_plan *plan,
                                const ln_cuda_attention_tensors *tensors, void *workspace) {
    const double log2_e = 1.4426950408889634;
    ln::attention_run run = {};
    run.query = tensors->query, run.key = tensors->key, run.value = tensors->value, run.output = tensors->output;
    run.log_sum_exp = tensors->log_sum_exp;
    run.next = (unsigned *)workspace;
    run.tasks = (const ln_cuda_task *)((const char *)workspace + COUNTER_BYTES);
    run.task_count = (int)plan->tasks;
    run.blocks = a->query_tile ? (const int32_t *)(run.tasks + plan->tasks) : NULL;
    run.sinks = tensors->sinks;
    run.heads = (int)a->heads;
    run.group = (int)(a->heads / a->key_value_heads);
    run.causal = a->causal;
    run.window = (int)a->window;
    run.scale = (float)((a->soft_cap > 0 ? a->soft_cap : a->scale) * log2_e);
    run.cap_scale = a->soft_cap > 0 ? (float)(2 * log2_e * a->scale / a->soft_cap) : 0;
    run.output_float32 = a->output_float32;
    return run;
}

ln_cuda_code ln_cuda_attention_forward(const ln_cuda_attention *attention, const ln_cuda_attention_plan *plan,
                                       const ln_cuda_attention_tensors *tensors, void *workspace, void *stream) {
    const ln_cuda_kernel *kernel = plan->kernel;
    if (!kernel) return LN_CUDA_UNSUPPORTED;
    if (plan->tasks == 0) return LN_CUDA_OK;
    const bool keyless = attention->key_offsets[attention->sequences] == 0;
    if (!ln_cuda_tensor_right(&tensors->query, 2) ||
        !ln_cuda_tensor_right(&tensors->output, attention->output_float32 ? 4 : 2))
        return LN_CUDA_ARGUMENT;
    if (!keyless && (!ln_cuda_tensor_right(&tensors->key, 2) || !ln_cuda_tensor_right(&tensors->value, 2)))
        return LN_CUDA_ARGUMENT;
    if (!workspace || (uintptr_t)workspace % 256) return LN_CUDA_ARGUMENT;

    ln_cuda_attention_tensors own = *tensors;
    if (attention->rank) {
        const ln_cuda_code code = pack_factors(attention, plan, workspace, &own, stream);
        if (code) return code;
    }
    ln::attention_run run = run_of(attention, plan, &own, workspace);
    CUtensorMap maps[3];
    void *arguments[4] = {&maps[0], &maps[1], &maps[2], &run};
    int grid = (int)plan->tasks;
    if (kernel->major == 9) {
        const int64_t *queries = attention->query_offsets, *keys = attention->key_offsets, s = attention->sequences;
        /* Without keys nothing is copied, but the kernel takes descriptions all the same: of the queries. */
        const ln_cuda_tensor *key = keyless ? &own.query : &own.key, *value = keyless ? key : &own.value;
        const int64_t key_size = kernel->key_size, value_size = keyless ? key_size : attention->value_size;
        const int64_t key_heads = keyless ? attention->heads : attention->key_value_heads,
                      key_tokens = keyless ? queries[s] : keys[s];
        ln_cuda_code code = describe(&maps[0], &own.query, key_size, attention->heads, queries[s], kernel->rows);
        if (!code) code = describe(&maps[1], key, key_size, key_heads, key_tokens, kernel->keys);
        if (!code) code = describe(&maps[2], value, value_size, key_heads, key_tokens, kernel->keys);
        if (code) return code;
        if (grid > plan->device.multiprocessors) grid = plan->device.multiprocessors;
    }
    return kernel->start(kernel->major == 9 ? arguments : arguments + 3, grid, stream);
}
