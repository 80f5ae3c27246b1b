/* The host's side of gradients of linear attention: the walks and what they need between them. */
#include "kernel/cuda/linear_backward_cuda.h"

#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/cuda/linear_backward_table.h"

enum { SEGMENT = 256, KEYS_MOST = 256 }; /* tokens over which gradients of decays are summed; keys of a walk */

/* ---- plan ---- */

/* The best kernel of at most this major number that takes the walk. */
static ln_cuda_code plan_walk(const ln_cuda_linear *walk, const ln_cuda_device *device, int major, int64_t segment,
                              ln_cuda_linear_plan *plan) {
    ln_cuda_code code = LN_CUDA_UNSUPPORTED;
    for (int row = 0; ln_cuda_linear_kernels(row)->start && code == LN_CUDA_UNSUPPORTED; row++)
        if (!major || ln_cuda_linear_kernels(row)->major <= major)
            code = ln_cuda_linear_plan_make(walk, device, ln_cuda_linear_kernels(row), segment, plan);
    return code;
}

static void walks_of(const ln_cuda_linear *l, ln_cuda_linear_gradient_plan *plan) {
    plan->states = *l;
    plan->states.output_float32 = true;
    plan->states.normalise = LN_CUDA_SUM_NONE;
    plan->states.state_gap = ln_cuda_linear_state_floats(l) - l->key_size * l->value_size;
    plan->query = plan->key = plan->value = plan->states;
    plan->states.state_kept = plan->value.state_kept = true;

    ln_cuda_linear *q = &plan->query, *k = &plan->key, *v = &plan->value;
    const int64_t part = l->value_size < KEYS_MOST ? l->value_size : (int64_t)KEYS_MOST;
    plan->parts = l->value_size / part;
    q->key_size = k->key_size = part;
    q->state_gap = k->state_gap = ln_cuda_linear_state_floats(l) - part * l->key_size;
    q->state_row = k->state_row = l->value_size;
    q->value_size = k->value_size = l->key_size;
    q->query_whole = q->key_whole = k->query_whole = k->key_whole = true;
    q->value_shared = k->value_shared = true;
    q->state_turned = k->state_turned = true;
    if (l->decay == LN_CUDA_LINEAR_KEY) q->decay = k->decay = LN_CUDA_LINEAR_VALUE;
    if (l->decay == LN_CUDA_LINEAR_VALUE) q->decay = k->decay = LN_CUDA_LINEAR_KEY;
    k->reverse = v->reverse = true;
    k->state_divisor = v->state_divisor = l->scale;
}

static int64_t place(int64_t *at, int64_t bytes) {
    const int64_t here = *at;
    *at += (bytes + 255) / 256 * 256;
    return here;
}

ln_cuda_code ln_cuda_linear_gradient_plan_make(const ln_cuda_linear *linear, const ln_cuda_device *device, int major,
                                               ln_cuda_linear_gradient_plan *plan) {
    *plan = {};
    const bool walk_itself = linear->reverse || linear->query_whole || linear->key_whole || linear->value_shared ||
                             linear->state_turned || linear->state_kept || linear->state_divisor != 0 ||
                             linear->state_gap;
    const bool whole = linear->value_size <= KEYS_MOST || linear->value_size % KEYS_MOST == 0;
    if (walk_itself || !(fabsf(linear->scale) > 0) || linear->key_size > KEYS_MOST || !whole) {
        snprintf(
            plan->why, sizeof plan->why,
            "no gradient of reversed time, of a scale of 0, of keys of more than 256 elements or of values of more "
            "than 256 that are no multiple of it");
        return LN_CUDA_UNSUPPORTED;
    }
    if (linear->decay == LN_CUDA_LINEAR_VALUE && linear->value_size * 4 > device->block_shared_bytes) {
        snprintf(plan->why, sizeof plan->why,
                 "gradients of decays of values take 4 bytes of a block's shared memory for each of %lld values, of "
                 "%lld bytes",
                 (long long)linear->value_size, (long long)device->block_shared_bytes);
        return LN_CUDA_UNSUPPORTED;
    }
    walks_of(linear, plan);
    ln_cuda_linear *const walks[4] = {&plan->states, &plan->query, &plan->key, &plan->value};
    ln_cuda_linear_plan *const plans[4] = {&plan->states_plan, &plan->query_plan, &plan->key_plan, &plan->value_plan};
    static const char *const names[4] = {"states", "queries", "keys", "values"};
    for (int i = 0; i < 4; i++) {
        const ln_cuda_code code = plan_walk(walks[i], device, major, i == 1 || i == 2 ? 0 : SEGMENT, plans[i]);
        if (code) {
            snprintf(plan->why, sizeof plan->why, "%s: %.200s", names[i], plans[i]->why);
            return code;
        }
    }
    const int64_t rows = linear->offsets[linear->sequences] * linear->heads;
    for (int64_t s = 0; s < linear->sequences; s++) {
        const int64_t tokens = linear->offsets[s + 1] - linear->offsets[s];
        plan->tasks += (tokens > SEGMENT ? (tokens + SEGMENT - 1) / SEGMENT : 1) * linear->heads;
    }
    int64_t at = 0;
    plan->states_at = place(&at, plan->states_plan.workspace);
    plan->query_at = place(&at, plan->query_plan.workspace);
    plan->key_at = place(&at, plan->key_plan.workspace);
    plan->value_at = place(&at, plan->value_plan.workspace);
    plan->tasks_at = place(&at, plan->tasks * (int64_t)sizeof(ln_cuda_linear_task));
    plan->query_rows_at = place(&at, rows * linear->key_size * 4);
    plan->key_rows_at = place(&at, rows * linear->key_size * 4);
    plan->value_rows_at = place(&at, rows * linear->value_size * 4);
    plan->output_rows_at = place(&at, linear->decay == LN_CUDA_LINEAR_VALUE ? rows * linear->value_size * 4 : 0);
    plan->part_at = place(&at, plan->parts > 1 ? rows * linear->key_size * 4 : 0);
    plan->along_at = place(&at, rows * 4);
    plan->skip_at = place(&at, rows * 4);
    plan->written_at = place(&at, linear->weighted ? rows * linear->value_size * 2 : 0);
    if (linear->normalise) {
        plan->slots = plan->states_plan.slots;
        plan->dot_at = place(&at, rows * 4);
        plan->dot_gradient_at = place(&at, rows * 4);
        plan->weighted_at = place(&at, rows * linear->value_size * 2);
        plan->sums_at = place(&at, plan->slots * (linear->key_size + 1) * 4);
        plan->sums_back_at = place(&at, plan->slots * (linear->key_size + 1) * 4);
    }
    plan->workspace = at;
    snprintf(plan->why, sizeof plan->why, "queries: %s; keys: %s; values: %s", plan->query_plan.kernel->name,
             plan->key_plan.kernel->name, plan->value_plan.kernel->name);
    return LN_CUDA_OK;
}

static ln_cuda_code prepare_walk(const ln_cuda_linear *walk, const ln_cuda_linear_plan *plan, void *workspace,
                                 void *stream) {
    const int64_t count = plan->first_tasks + plan->tasks;
    ln_cuda_linear_task *tasks = (ln_cuda_linear_task *)malloc((size_t)(count + 1) * sizeof *tasks);
    if (!tasks) return LN_CUDA_OUT_OF_MEMORY;
    ln_cuda_linear_tasks(walk, plan, tasks);
    const ln_cuda_code code = ln_cuda_linear_prepare(walk, plan, tasks, workspace, stream);
    free(tasks);
    return code;
}

/* The segments of all heads: of the states' last pass, the tasks of one column. */
static ln_cuda_code prepare_segments(const ln_cuda_linear_gradient_plan *plan, void *workspace, void *stream) {
    const ln_cuda_linear_plan *states = &plan->states_plan;
    const int64_t count = states->first_tasks + states->tasks;
    ln_cuda_linear_task *tasks = (ln_cuda_linear_task *)malloc((size_t)(count + 1) * sizeof *tasks);
    if (!tasks) return LN_CUDA_OUT_OF_MEMORY;
    ln_cuda_linear_tasks(&plan->states, states, tasks);
    int64_t kept = 0;
    for (int64_t i = states->first_tasks; i < count; i++)
        if (tasks[i].column == 0) tasks[kept++] = tasks[i];
    cudaError_t error = cudaMemcpyAsync((char *)workspace + plan->tasks_at, tasks, (size_t)kept * sizeof *tasks,
                                        cudaMemcpyHostToDevice, (cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize((cudaStream_t)stream);
    free(tasks);
    return ln_cuda_code_of(error);
}

ln_cuda_code ln_cuda_linear_gradient_prepare(const ln_cuda_linear_gradient_plan *plan, void *workspace, void *stream) {
    char *at = (char *)workspace;
    ln_cuda_code code = prepare_walk(&plan->states, &plan->states_plan, at + plan->states_at, stream);
    if (!code) code = prepare_walk(&plan->query, &plan->query_plan, at + plan->query_at, stream);
    if (!code) code = prepare_walk(&plan->key, &plan->key_plan, at + plan->key_at, stream);
    if (!code) code = prepare_walk(&plan->value, &plan->value_plan, at + plan->value_at, stream);
    return code ? code : prepare_segments(plan, workspace, stream);
}

/* ---- run ---- */

static ln_cuda_tensor rows_at(void *data, int64_t heads, int64_t size) {
    return {data, heads * size, size};
}

static ln_cuda_linear_finish finish_of(const ln_cuda_linear *l, const ln_cuda_linear_gradient_plan *plan,
                                       const ln_cuda_linear_tensors *tensors, const ln_cuda_linear_gradients *gradients,
                                       char *at) {
    ln_cuda_linear_finish finish = {};
    finish.tensors = *tensors;
    finish.gradients = *gradients;
    finish.query_rows = (const float *)(at + plan->query_rows_at);
    finish.key_rows = (const float *)(at + plan->key_rows_at);
    finish.value_rows = (const float *)(at + plan->value_rows_at);
    finish.output_rows = (const float *)(at + plan->output_rows_at);
    finish.along = (float *)(at + plan->along_at);
    finish.skip = (float *)(at + plan->skip_at);
    finish.before = ln_cuda_linear_kept(&plan->states, &plan->states_plan, at + plan->states_at);
    finish.after = ln_cuda_linear_kept(&plan->value, &plan->value_plan, at + plan->value_at);
    finish.tokens = l->offsets[l->sequences];
    finish.state_floats = ln_cuda_linear_state_floats(l);
    finish.normalise = l->normalise;
    finish.sequences = (int)l->sequences;
    finish.heads = (int)l->heads;
    finish.key_heads = (int)l->key_heads;
    finish.group = (int)(l->heads / l->key_heads);
    finish.tiled = l->tiled_heads;
    finish.key_size = (int)l->key_size;
    finish.value_size = (int)l->value_size;
    finish.output_float32 = l->output_float32;
    finish.scale = l->scale;
    return finish;
}

/* ---- the normaliser ---- */

static ln_cuda_vector_scan scan_of(const ln_cuda_linear *l, const ln_cuda_linear_gradient_plan *plan,
                                   const ln_cuda_linear_tensors *tensors, char *at, bool reverse) {
    const ln_cuda_linear_slots slots = ln_cuda_linear_kept(&plan->states, &plan->states_plan, at + plan->states_at);
    ln_cuda_vector_scan scan = {};
    scan.rows = reverse ? tensors->query : tensors->key;
    scan.decay = tensors->token_decay;
    scan.factor = tensors->write;
    if (reverse) scan.factor = {(const float *)(at + plan->dot_gradient_at), l->heads, 1};
    scan.scale = reverse ? l->scale : 1;
    scan.state_slots = tensors->state_slots;
    scan.head_floats = ln_cuda_linear_state_floats(l);
    scan.sums = (float *)(at + (reverse ? plan->sums_back_at : plan->sums_at));
    scan.logs = scan.sums + plan->slots * l->key_size;
    scan.chains = slots.chains;
    scan.tasks = (const ln_cuda_linear_task *)(at + plan->tasks_at);
    scan.task_count = (int)plan->tasks;
    scan.chain_count = (int)(l->sequences * l->heads);
    scan.heads = (int)l->heads;
    scan.key_heads = (int)l->key_heads;
    scan.group = (int)(l->heads / l->key_heads);
    scan.tiled = l->tiled_heads;
    scan.key_size = (int)l->key_size;
    scan.reverse = reverse;
    return scan;
}

/* The gradient of the sums takes the place of the output's; n and the dots' gradients are left in the workspace. */
static ln_cuda_code undo_normaliser(const ln_cuda_linear *l, const ln_cuda_linear_gradient_plan *plan,
                                    const ln_cuda_linear_tensors *tensors, ln_cuda_linear_finish *finish, char *at,
                                    void *stream) {
    ln_cuda_vector_scan scan = scan_of(l, plan, tensors, at, false);
    float *dot = (float *)(at + plan->dot_at);
    if (tensors->state_in) scan.start = tensors->state_in + l->key_size * l->value_size;
    ln_cuda_code code = ln_cuda_vector_scan_run(&scan, stream);
    if (!code) code = ln_cuda_vector_scan_dot(&scan, &tensors->query, l->scale, dot, stream);
    if (!code)
        code = ln_cuda_linear_undo_normaliser(finish, dot, at + plan->weighted_at,
                                              (float *)(at + plan->dot_gradient_at), stream);
    finish->gradients.output = {at + plan->weighted_at, l->heads * l->value_size, l->value_size};
    finish->sums = scan.sums;
    finish->sums_back = (const float *)(at + plan->sums_back_at);
    return code;
}

/* What goes through the dots, added to the walks' rows. */
static ln_cuda_code add_dots(const ln_cuda_linear *l, const ln_cuda_linear_gradient_plan *plan,
                             const ln_cuda_linear_tensors *tensors, const ln_cuda_linear_gradients *gradients, char *at,
                             void *stream) {
    const int64_t matrix = l->key_size * l->value_size;
    ln_cuda_vector_scan scan = scan_of(l, plan, tensors, at, true);
    if (gradients->state_out) scan.start = gradients->state_out + matrix;
    if (gradients->state_in) scan.end = gradients->state_in + matrix;
    ln_cuda_code code = ln_cuda_vector_scan_run(&scan, stream);
    if (!code)
        code = ln_cuda_vector_scan_add(&scan, tensors->write, 1, (float *)(at + plan->key_rows_at), &tensors->key,
                                       gradients->write, stream);
    const ln_cuda_gate by = scan.factor;
    scan = scan_of(l, plan, tensors, at, false);
    return code ? code
                : ln_cuda_vector_scan_add(&scan, by, l->scale, (float *)(at + plan->query_rows_at), NULL, NULL, stream);
}

static bool gradients_right(const ln_cuda_linear *l, const ln_cuda_linear_gradients *g) {
    const int64_t element = l->output_float32 ? 4 : 2;
    if (l->offsets[l->sequences] == 0) return true;
    if (!ln_cuda_tensor_right(&g->output, 2) || (g->decay.data && !ln_cuda_tensor_right(&g->decay, 4))) return false;
    if (g->query.data && !ln_cuda_tensor_right(&g->query, element)) return false;
    if (g->key.data && !ln_cuda_tensor_right(&g->key, element)) return false;
    return !g->value.data || ln_cuda_tensor_right(&g->value, element);
}

/* One of the two walks in which values stand for keys, and where its rows go. */
typedef struct walk_rows {
    const ln_cuda_linear *walk;
    const ln_cuda_linear_plan *plan;
    int64_t at, rows_at;
} walk_rows;

/* Part by part of the values; the parts' rows are added. */
static ln_cuda_code walk_parts(const ln_cuda_linear_gradient_plan *plan, const walk_rows *of,
                               const ln_cuda_linear_tensors *tensors, char *at, void *stream) {
    const ln_cuda_linear *walk = of->walk;
    const int64_t numbers = walk->offsets[walk->sequences] * walk->heads * walk->value_size;
    ln_cuda_code code = LN_CUDA_OK;
    for (int64_t part = 0; part < plan->parts && !code; part++) {
        const int64_t first = part * walk->key_size;
        float *to = (float *)(at + (part ? plan->part_at : of->rows_at));
        ln_cuda_linear_tensors t = *tensors;
        t.query.data = (char *)t.query.data + first * 2;
        t.key.data = (char *)t.key.data + first * 2;
        if (walk->decay == LN_CUDA_LINEAR_KEY) t.decay.data = (float *)t.decay.data + first;
        if (t.state_in) t.state_in += first;
        t.output = rows_at(to, walk->heads, walk->value_size);
        code = ln_cuda_linear_forward(walk, of->plan, &t, at + of->at, stream);
        if (!code && part) code = ln_cuda_linear_add_rows((float *)(at + of->rows_at), to, numbers, stream);
    }
    return code;
}

ln_cuda_code ln_cuda_linear_backward(const ln_cuda_linear *linear, const ln_cuda_linear_gradient_plan *plan,
                                     const ln_cuda_linear_tensors *tensors, const ln_cuda_linear_gradients *gradients,
                                     void *workspace, void *stream) {
    if (!plan->query_plan.kernel) return LN_CUDA_UNSUPPORTED;
    if (!workspace || (uintptr_t)workspace % 256 || !gradients_right(linear, gradients)) return LN_CUDA_ARGUMENT;
    if (linear->offsets[linear->sequences] > 0 && linear->weighted != (tensors->write.data != NULL))
        return LN_CUDA_ARGUMENT;
    char *at = (char *)workspace;
    if (linear->normalise && linear->offsets[linear->sequences] > 0 &&
        ((linear->normalise == LN_CUDA_SUM_MAXIMUM && !tensors->maximum.data) ||
         !ln_cuda_tensor_right(&tensors->output, linear->output_float32 ? 4 : 2)))
        return LN_CUDA_ARGUMENT;
    ln_cuda_linear_finish finish = finish_of(linear, plan, tensors, gradients, at);
    ln_cuda_linear_tensors walk = *tensors; /* the forward run's inputs, in the walks' places */
    const bool values = linear->decay == LN_CUDA_LINEAR_VALUE, keys = linear->decay == LN_CUDA_LINEAR_KEY;
    walk.output = {};
    if (values) walk.output = rows_at(at + plan->output_rows_at, linear->heads, linear->value_size);
    walk.state_out = NULL;
    walk.skip = NULL;
    walk.maximum = {};
    ln_cuda_code code = LN_CUDA_OK;
    if (linear->weighted) {
        code = ln_cuda_linear_write_values(&finish, at + plan->written_at, stream);
        walk.value = rows_at(at + plan->written_at, linear->heads, linear->value_size);
        walk.write = {};
    }
    const ln_cuda_tensor value = walk.value;
    if (!code) code = ln_cuda_linear_forward(&plan->states, &plan->states_plan, &walk, at + plan->states_at, stream);
    if (!code && linear->normalise) code = undo_normaliser(linear, plan, tensors, &finish, at, stream);
    const ln_cuda_tensor output = finish.gradients.output;

    const walk_rows query = {&plan->query, &plan->query_plan, plan->query_at, plan->query_rows_at},
                    key = {&plan->key, &plan->key_plan, plan->key_at, plan->key_rows_at};
    walk.query = output, walk.key = value, walk.value = tensors->key;
    if (!code) code = walk_parts(plan, &query, &walk, at, stream);
    walk.state_in = gradients->state_out;
    walk.query = value, walk.key = output, walk.value = tensors->query;
    if (!code) code = walk_parts(plan, &key, &walk, at, stream);

    walk.query = tensors->key, walk.key = tensors->query, walk.value = output;
    walk.output = rows_at(at + plan->value_rows_at, linear->heads, linear->value_size);
    walk.state_out = gradients->state_in;
    if (!code) code = ln_cuda_linear_forward(&plan->value, &plan->value_plan, &walk, at + plan->value_at, stream);

    if (!code && linear->normalise) code = add_dots(linear, plan, tensors, gradients, at, stream);
    if (!code) code = ln_cuda_linear_finish_rows(&finish, stream);
    if (!code && (keys || values ? gradients->decay.data != NULL : gradients->token_decay != NULL))
        code = ln_cuda_linear_finish_decays(&finish, (const ln_cuda_linear_task *)(at + plan->tasks_at),
                                            (int)plan->tasks, linear->decay, stream);
    return code || !gradients->ends ? code : ln_cuda_linear_finish_ends(&finish, stream);
}
