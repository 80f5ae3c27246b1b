/* The host's side of the backward pass of attention: which kernel, the tables of a plan, and the launches.
 *
 * The order of tasks. Tiles of keys add to the same tiles of queries, and each tile of queries takes them in a fixed
 * order (turn_of), so that a task may have to wait for others. Tasks of one sequence and head, a set, visit so that
 * they need not: those that start together meet different tiles of queries, and follow each other at a distance of one
 * tile.
 *
 *     up:    each visits upward from the first query that sees it; the last tile of keys comes first to a query.
 *     down:  each visits downward from the last query; the first tile of keys comes first.
 *     round: every query sees every key. Companies of at most as many tasks as there are blocks, member k of m starts
 *            at tile floor(k n / m) of n and goes round; the company before is done with a tile first.
 *
 * When causal, as many sets as have blocks for all of their tasks are a wave, and waves go up and down by turns: a
 * block that had a short task of one wave takes a long one of the next. Invariant: a task of up or down waits for tasks
 * in front of it in the list alone; one of round for those of companies in front of its own, and for its company, whose
 * members are on different blocks, since it has no more of them than there are blocks and block b takes tasks b, b +
 * blocks, ... So the first task that is not done can always go on.
 *
 * Lists leave visits out (attention_backward_lists.cu), and the order of those that are left is the same. */
#include "kernel/cuda/attention_backward_cuda.h"

#include <cuda_runtime.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/attention_backward_rows.cuh"
#include "kernel/cuda/attention_backward_table.h"
#include "kernel/cuda/attention_table.h"
#include "kernel/cuda/boxes_cuda.h"

const ln_cuda_backward_kernel *ln_cuda_backward_kernels(int row) {
    static const ln_cuda_backward_kernel none = {};
    if (row < 0) return &none;
    if (row < ln_cuda_backward_hopper_count) return &ln_cuda_backward_hopper_kernels[row];
    row -= ln_cuda_backward_hopper_count;
    if (row < ln_cuda_backward_hopper_half_count) return &ln_cuda_backward_hopper_half_kernels[row];
    row -= ln_cuda_backward_hopper_half_count;
    return row < ln_cuda_backward_portable_count ? &ln_cuda_backward_portable_kernels[row] : &none;
}

/* ---- plan ---- */

static int64_t tiles_of(const int64_t *offsets, int64_t sequences, int64_t tile) {
    int64_t tiles = 0;
    for (int64_t s = 0; s < sequences; s++) tiles += (offsets[s + 1] - offsets[s] + tile - 1) / tile;
    return tiles;
}

/* NULL, or why this kernel cannot do this work. */
static const char *refusal(const ln_cuda_attention *a, const ln_cuda_device *device,
                           const ln_cuda_backward_kernel *kernel) {
    const int wanted =
        (a->window ? LN_CUDA_WINDOW : 0) | (a->soft_cap > 0 ? LN_CUDA_CAP : 0) | (a->half ? LN_CUDA_HALF : 0);
    /* With factors, what is left of a tile's columns is zeros. */
    if (a->rank ? a->key_size + 3 * a->rank > kernel->wide_key_size || a->value_size > kernel->wide_value_size
                : a->key_size != kernel->key_size || a->value_size != kernel->value_size)
        return "made for another size of heads";
    if ((wanted & ~kernel->options) || (kernel->options & ~wanted & (LN_CUDA_CAP | LN_CUDA_HALF)))
        return "made for other options";
    if (kernel->major == 9 ? device->major != 9 : device->major < 8) return "made for another compute capability";
    if (kernel->shared_bytes > device->block_shared_bytes) return "too little shared memory in a block";
    return NULL;
}

/* Where the parts of a workspace lie. */
typedef struct backward_places {
    int64_t tables, turns, rows, sums;
    int64_t query, key, query_gradient, key_gradient; /* with their factors */
    int64_t bytes;
} backward_places;

static int64_t whole(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static backward_places places_of(const ln_cuda_attention *a, const ln_cuda_backward_plan *plan) {
    const int64_t places = a->heads * plan->tiles, queries = plan->kernel->queries;
    const int64_t packed_queries = a->query_offsets[a->sequences] * a->heads * plan->packed_size,
                  packed_keys = a->key_offsets[a->sequences] * a->key_value_heads * plan->packed_size;
    backward_places at;
    at.tables = 256; /* after the counter of tasks */
    at.turns = at.tables + whole(plan->tables);
    at.rows = at.turns + whole(places * 4);
    at.sums = at.rows + whole(places * queries * 2 * 4);
    at.query = at.sums + (plan->kernel->major == 9 ? whole(places * queries * plan->kernel->wide_key_size * 4) : 0);
    at.key = at.query + whole(packed_queries * 2);
    at.query_gradient = at.key + whole(packed_keys * 2);
    at.key_gradient = at.query_gradient + whole(packed_queries * 4);
    at.bytes = at.key_gradient + whole(packed_keys * 4);
    return at;
}

/* The first in the table of those that can, or with factors the smallest of the first one's path. */
static const ln_cuda_backward_kernel *choose(const ln_cuda_attention *a, const ln_cuda_device *device,
                                             const ln_cuda_backward_kernel *kernel, const char **fast) {
    const ln_cuda_backward_kernel *best = NULL;
    *fast = "none made for this size of heads";
    for (int row = 0;; row++) {
        const ln_cuda_backward_kernel *next = ln_cuda_backward_kernels(row);
        if (!next->start) return best;
        if (kernel && next != kernel) continue;
        const char *why = refusal(a, device, next);
        if (!why && (!best || (best->major == next->major && 3 * next->wide_key_size + 2 * next->wide_value_size <
                                                                 3 * best->wide_key_size + 2 * best->wide_value_size)))
            best = next;
        if (next->major == 9 && next->key_size == a->key_size && next->value_size == a->value_size && why) *fast = why;
    }
}

static void count_tables(const ln_cuda_attention *a, ln_cuda_backward_plan *plan);

ln_cuda_code ln_cuda_backward_plan_make(const ln_cuda_backward *backward, const ln_cuda_device *device,
                                        const ln_cuda_backward_kernel *kernel, ln_cuda_backward_plan *plan) {
    const ln_cuda_attention *a = &backward->attention;
    *plan = {};
    plan->device = *device;
    const char *lacking = ln_cuda_attention_lacking(a), *wrong = ln_cuda_attention_wrong(a, INT_MAX / 4);
    if (lacking || wrong) {
        snprintf(plan->why, sizeof plan->why, "%s", lacking ? lacking : wrong);
        return lacking ? LN_CUDA_UNSUPPORTED : LN_CUDA_ARGUMENT;
    }
    const char *fast;
    plan->kernel = choose(a, device, kernel, &fast);
    if (!plan->kernel) {
        snprintf(plan->why, sizeof plan->why,
                 "no kernel for the gradients of keys of %lld%s and values of %lld elements on compute capability "
                 "%d.%d (its fast path: %s)",
                 (long long)(a->key_size + 3 * a->rank), a->rank ? " with their factors" : "", (long long)a->value_size,
                 device->major, device->minor, fast);
        return LN_CUDA_UNSUPPORTED;
    }
    const ln_cuda_backward_kernel *best = plan->kernel;
    plan->tiles = tiles_of(a->query_offsets, a->sequences, best->queries);
    plan->tasks = tiles_of(a->key_offsets, a->sequences, best->keys) * a->key_value_heads;
    if (plan->tiles * a->heads > INT_MAX / 2 || plan->tasks > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "more than 2^30 tiles of queries or of keys");
        return LN_CUDA_ARGUMENT;
    }
    count_tables(a, plan);
    if (plan->visits > INT_MAX / 2) {
        snprintf(plan->why, sizeof plan->why, "lists of more than 2^30 pairs of tiles");
        return LN_CUDA_ARGUMENT;
    }
    if (a->rank) plan->packed_size = best->wide_key_size;
    plan->blocks = plan->tasks;
    if (best->major == 9 && plan->blocks > device->multiprocessors) plan->blocks = device->multiprocessors;
    plan->workspace = places_of(a, plan).bytes;
    snprintf(plan->why, sizeof plan->why, "%s: %lld tasks of %d keys, queries by %d%s%s", best->name,
             (long long)plan->tasks, best->keys, best->queries,
             best->major == 9 ? "" : "; copy engine and warp group products: ", best->major == 9 ? "" : fast);
    return LN_CUDA_OK;
}

/* ---- tables ---- */

static ln_cuda_backward_rows rows_of(const ln_cuda_attention *a, const ln_cuda_backward_kernel *kernel,
                                     int64_t sequence, int64_t row) {
    const int64_t queries = a->query_offsets[sequence + 1] - a->query_offsets[sequence];
    const int64_t keys = a->key_offsets[sequence + 1] - a->key_offsets[sequence];
    const int64_t rows = queries - row < kernel->queries ? queries - row : kernel->queries;
    const int64_t position = row + keys - queries, last = position + rows - 1;
    int64_t low = 0, high = keys;
    if (a->causal && last + 1 < high) high = last + 1;
    if (a->window && !a->causal && last + a->window < high) high = last + a->window;
    if (a->window && position - a->window + 1 > 0) low = position - a->window + 1;
    if (high < 0) high = 0;
    if (low > keys) low = keys;
    const int64_t end = (high + kernel->keys - 1) / kernel->keys;
    return {(int32_t)(a->query_offsets[sequence] + row),
            (int32_t)rows,
            (int32_t)position,
            (int32_t)a->key_offsets[sequence],
            (int32_t)keys,
            (int32_t)(low < high ? low / kernel->keys : end),
            (int32_t)end,
            0};
}

/* The tasks of one sequence and key-value head, whose query tiles are first .. end - 1; how many. */
static int64_t tasks_of(const ln_cuda_attention *a, const ln_cuda_backward_plan *plan,
                        const ln_cuda_backward_rows *tiles, int64_t sequence, int64_t head, int64_t first, int64_t end,
                        bool up, ln_cuda_backward_task *tasks) {
    const int64_t keys = a->key_offsets[sequence + 1] - a->key_offsets[sequence], tile = plan->kernel->keys;
    const int64_t count = (keys + tile - 1) / tile, blocks = plan->blocks > 0 ? plan->blocks : 1;
    const int64_t companies = (count + blocks - 1) / blocks;
    const int64_t company = companies ? (count + companies - 1) / companies : 1;
    const bool round = !a->causal && !a->window;
    int64_t low = first, high = first;
    for (int64_t j = 0; j < count; j++) {
        while (low < end && tiles[low].end_tile <= j) low++;
        if (high < low) high = low;
        while (high < end && tiles[high].first_tile <= j) high++;
        const int64_t before = j / company * company, members = count - before < company ? count - before : company;
        tasks[up && !round ? count - 1 - j : j] = {(int32_t)(a->key_offsets[sequence] + j * tile),
                                                   (int32_t)j,
                                                   (int32_t)keys,
                                                   (int32_t)head,
                                                   (int32_t)low,
                                                   (int32_t)high,
                                                   round ? LN_CUDA_ROUND
                                                   : up  ? LN_CUDA_UP
                                                         : LN_CUDA_DOWN,
                                                   (int32_t)(low + (j - before) * (high - low) / members),
                                                   (int32_t)(j - before),
                                                   (int32_t)members,
                                                   (int32_t)before,
                                                   0};
    }
    return count;
}

/* Those that end early first, so that the blocks which they leave come to the next wave one after the other; in a wave
 * that goes down the other way about. Tasks of one set stay in their order. */
static int shorter(const void *one, const void *two) {
    const ln_cuda_backward_task *a = (const ln_cuda_backward_task *)one, *b = (const ln_cuda_backward_task *)two;
    const int more = (a->end - a->first) - (b->end - b->first);
    if (more) return a->order == LN_CUDA_UP ? more : -more;
    return a->filler < b->filler ? -1 : a->filler > b->filler;
}

static void sort_wave(ln_cuda_backward_task *tasks, int64_t count) {
    for (int64_t i = 0; i < count; i++) tasks[i].filler = (int32_t)i;
    qsort(tasks, (size_t)count, sizeof *tasks, shorter);
    for (int64_t i = 0; i < count; i++) tasks[i].filler = 0;
}

ln_cuda_backward_tables ln_cuda_backward_tables_at(const ln_cuda_backward_plan *plan, void *tables) {
    ln_cuda_backward_tables at = {};
    at.tiles = (ln_cuda_backward_rows *)tables;
    at.tasks = (ln_cuda_backward_task *)(at.tiles + plan->tiles);
    if (!plan->places) return at;
    at.visits = (ln_cuda_backward_visit *)(at.tasks + plan->tasks);
    at.starts = (int32_t *)(at.visits + plan->visits);
    at.listed = at.starts + plan->places + 1;
    at.ends = at.listed + plan->visits;
    return at;
}

/* Sizes of the tables; with lists the pairs of tiles that meet are counted one by one. */
static void count_tables(const ln_cuda_attention *a, ln_cuda_backward_plan *plan) {
    plan->tables =
        plan->tiles * (int64_t)sizeof(ln_cuda_backward_rows) + plan->tasks * (int64_t)sizeof(ln_cuda_backward_task);
    if (!a->query_tile) return;
    plan->places = plan->tiles * a->heads;
    if (!plan->places) return;
    for (int64_t head = 0; head < a->heads && plan->visits <= INT_MAX / 2; head++)
        for (int64_t tile = 0; tile < plan->tiles; tile++) {
            const ln_cuda_backward_rows rows = rows_of(a, plan->kernel, 0, tile * plan->kernel->queries);
            plan->visits += ln_cuda_backward_listed(a, plan->kernel, &rows, head, NULL);
        }
    plan->tables += plan->visits * (int64_t)(sizeof(ln_cuda_backward_visit) + 4) + (plan->places + plan->tasks + 2) * 4;
}

void ln_cuda_backward_tables_make(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan, void *tables) {
    const ln_cuda_attention *a = &backward->attention;
    const ln_cuda_backward_tables at = ln_cuda_backward_tables_at(plan, tables);
    ln_cuda_backward_rows *tiles = at.tiles;
    ln_cuda_backward_task *tasks = at.tasks;
    const bool waves = a->causal && !a->window;
    int64_t count = 0, wave = 0, first = 0; /* wave: its first task */
    bool up = true;
    for (int64_t s = 0; s < a->sequences; s++) {
        const int64_t keys = a->key_offsets[s + 1] - a->key_offsets[s];
        const int64_t more = (keys + plan->kernel->keys - 1) / plan->kernel->keys;
        int64_t end = first;
        for (int64_t row = 0; row < a->query_offsets[s + 1] - a->query_offsets[s]; row += plan->kernel->queries)
            tiles[end++] = rows_of(a, plan->kernel, s, row);
        for (int64_t head = 0; head < a->key_value_heads; head++) {
            if (waves && count > wave && count + more - wave > plan->blocks) {
                sort_wave(tasks + wave, count - wave);
                wave = count;
                up = !up;
            }
            count += tasks_of(a, plan, tiles, s, head, first, end, up, tasks + count);
        }
        first = end;
    }
    if (waves && count > wave) sort_wave(tasks + wave, count - wave);
    if (plan->places) ln_cuda_backward_lists(a, plan, &at);
}

ln_cuda_code ln_cuda_backward_prepare(const ln_cuda_backward_plan *plan, const void *tables, void *workspace,
                                      void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    cudaError_t error = cudaMemsetAsync(workspace, 0, 256, on);
    if (error == cudaSuccess && plan->tables)
        error = cudaMemcpyAsync((char *)workspace + 256, tables, (size_t)plan->tables, cudaMemcpyHostToDevice, on);
    if (error == cudaSuccess) error = cudaStreamSynchronize(on);
    return ln_cuda_code_of(error);
}

/* ---- launch ---- */

/* Boxes of 64 columns of one head, `rows` tokens high; what lies outside the tensor is 0. */
static ln_cuda_code describe(CUtensorMap *map, const ln_cuda_tensor *tensor, int64_t size, int64_t heads,
                             int64_t tokens, int rows) {
    return ln_cuda_boxes_of_heads(tensor, 2, size, heads, tokens, 64, rows, map);
}

static ln::backward_run run_of(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                               const ln_cuda_backward_tensors *t, void *workspace) {
    const ln_cuda_attention *a = &backward->attention;
    const backward_places at = places_of(a, plan);
    const double log2_e = 1.4426950408889634;
    char *base = (char *)workspace;
    ln::backward_run run = {};
    run.query = t->query, run.key = t->key, run.value = t->value, run.output = t->output;
    run.output_gradient = t->output_gradient, run.query_gradient = t->query_gradient;
    run.key_gradient = t->key_gradient, run.value_gradient = t->value_gradient;
    run.log_sum_exp = t->log_sum_exp, run.sinks = t->sinks, run.sink_gradient = t->sink_gradient;
    run.next = (unsigned *)base;
    const ln_cuda_backward_tables tables = ln_cuda_backward_tables_at(plan, base + at.tables);
    run.tiles = tables.tiles, run.tasks = tables.tasks, run.visits = tables.visits;
    run.starts = tables.starts, run.listed = tables.listed;
    run.turns = (int *)(base + at.turns);
    run.rows = (float *)(base + at.rows);
    run.sums = (float *)(base + at.sums);
    run.task_count = (int)plan->tasks, run.tile_count = (int)plan->tiles;
    run.tile_queries = plan->kernel->queries, run.tile_keys = plan->kernel->keys;
    run.heads = (int)a->heads, run.group = (int)(a->heads / a->key_value_heads);
    run.query_tokens = (int)a->query_offsets[a->sequences];
    run.key_size = (int)a->key_size, run.value_size = (int)a->value_size;
    run.wide_key_size = plan->kernel->wide_key_size;
    run.causal = a->causal, run.window = (int)a->window;
    run.scale = (float)((a->soft_cap > 0 ? a->soft_cap : a->scale) * log2_e);
    run.cap_scale = a->soft_cap > 0 ? (float)(2 * log2_e * a->scale / a->soft_cap) : 0;
    run.gradient_scale = a->scale;
    run.output_float32 = a->output_float32;
    run.gradient_float32 = run.packed_float32 = backward->gradient_float32;
    run.half = a->half;
    if (a->rank) {
        const int64_t size = plan->packed_size;
        run.key_size = (int)size;
        run.query = {base + at.query, size * a->heads, size};
        run.key = {base + at.key, size * a->key_value_heads, size};
        run.query_gradient = {base + at.query_gradient, size * a->heads, size};
        run.key_gradient = {base + at.key_gradient, size * a->key_value_heads, size};
        run.packed_float32 = true;
    }
    return run;
}

static ln_cuda_code pack_factors(const ln_cuda_attention *a, const ln_cuda_backward_tensors *t,
                                 const ln::backward_run *run, void *stream) {
    ln_cuda_code code =
        ln_cuda_attention_pack(&t->query, a->key_size, t->query_factors, a->rank, 1 / a->scale, run->query_tokens,
                               a->heads, a->half, false, run->key_size, run->query.data, stream);
    if (!code)
        code = ln_cuda_attention_pack(&t->key, a->key_size, t->key_factors, a->rank, 1, a->key_offsets[a->sequences],
                                      a->key_value_heads, a->half, true, run->key_size, run->key.data, stream);
    return code;
}

static ln_cuda_code unpack_factors(const ln_cuda_backward *backward, const ln_cuda_backward_tensors *t,
                                   const ln::backward_run *run, void *stream) {
    const ln_cuda_attention *a = &backward->attention;
    ln_cuda_unpacking it = {(const float *)run->query_gradient.data,
                            t->query_gradient,
                            t->query_factors_gradient,
                            1 / a->scale,
                            run->query_tokens,
                            a->heads,
                            a->key_size,
                            a->rank,
                            run->key_size,
                            backward->gradient_float32,
                            a->half,
                            false};
    const ln_cuda_code code = ln_cuda_backward_unpack(&it, stream);
    it.from = (const float *)run->key_gradient.data;
    it.to = t->key_gradient;
    it.factors = t->key_factors_gradient;
    it.factor_scale = 1;
    it.tokens = a->key_offsets[a->sequences];
    it.heads = a->key_value_heads;
    it.keys = true;
    return code ? code : ln_cuda_backward_unpack(&it, stream);
}

static bool tensors_right(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                          const ln_cuda_backward_tensors *t) {
    const int64_t element = backward->gradient_float32 ? 4 : 2;
    if (plan->tiles && (!ln_cuda_tensor_right(&t->query, 2) || !ln_cuda_tensor_right(&t->output_gradient, 2) ||
                        !ln_cuda_tensor_right(&t->output, backward->attention.output_float32 ? 4 : 2) ||
                        !ln_cuda_tensor_right(&t->query_gradient, element) || !t->log_sum_exp))
        return false;
    if (plan->tasks &&
        (!ln_cuda_tensor_right(&t->key, 2) || !ln_cuda_tensor_right(&t->value, 2) ||
         !ln_cuda_tensor_right(&t->key_gradient, element) || !ln_cuda_tensor_right(&t->value_gradient, element)))
        return false;
    if (backward->attention.rank && ((plan->tiles && !t->query_factors) || (plan->tasks && !t->key_factors)))
        return false;
    return !t->sink_gradient || t->sinks;
}

static ln_cuda_code start_kernel(const ln_cuda_attention *a, const ln_cuda_backward_plan *plan, ln::backward_run *run,
                                 void *stream) {
    const ln_cuda_backward_kernel *kernel = plan->kernel;
    CUtensorMap maps[4];
    void *arguments[5] = {&maps[0], &maps[1], &maps[2], &maps[3], run};
    if (kernel->major != 9) return kernel->start(arguments + 4, (int)plan->blocks, stream);
    const int64_t queries = a->query_offsets[a->sequences], keys = a->key_offsets[a->sequences];
    /* Without queries nothing is copied, but the kernel takes descriptions all the same: of the keys. */
    const bool none = queries == 0;
    const int64_t heads = none ? a->key_value_heads : a->heads, tokens = none ? keys : queries;
    ln_cuda_code code =
        describe(&maps[0], none ? &run->key : &run->query, run->key_size, heads, tokens, kernel->queries);
    if (!code) code = describe(&maps[1], &run->key, run->key_size, a->key_value_heads, keys, kernel->keys);
    if (!code) code = describe(&maps[2], &run->value, a->value_size, a->key_value_heads, keys, kernel->keys);
    if (!code)
        code = describe(&maps[3], none ? &run->value : &run->output_gradient, a->value_size, heads, tokens,
                        kernel->queries);
    return code ? code : kernel->start(arguments, (int)plan->blocks, stream);
}

ln_cuda_code ln_cuda_backward_run(const ln_cuda_backward *backward, const ln_cuda_backward_plan *plan,
                                  const ln_cuda_backward_tensors *tensors, void *workspace, void *stream) {
    if (!plan->kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256 || !tensors_right(backward, plan, tensors)) return LN_CUDA_ARGUMENT;
    ln::backward_run run = run_of(backward, plan, tensors, workspace);
    const ln_cuda_attention *a = &backward->attention;
    ln_cuda_code code = LN_CUDA_OK;
    if (a->rank) code = pack_factors(a, tensors, &run, stream);
    if (!code && plan->tiles) code = ln_cuda_backward_open(&run, stream);
    if (!code && (plan->tasks || plan->kernel->major != 9)) code = start_kernel(a, plan, &run, stream);
    if (!code && plan->tiles && plan->kernel->major == 9) code = ln_cuda_backward_close(&run, stream);
    if (!code && a->rank) code = unpack_factors(backward, tensors, &run, stream);
    if (!code && tensors->sink_gradient) {
        if (plan->tiles)
            code = ln_cuda_backward_sinks(&run, stream);
        else
            code = ln_cuda_code_of(
                cudaMemsetAsync(tensors->sink_gradient, 0, (size_t)run.heads * sizeof(float), (cudaStream_t)stream));
    }
    return code;
}
