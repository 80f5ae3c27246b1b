/* The host's side of one token of each sequence on a GPU: the table of rules, which kernel, checks, the launch. */
#include "kernel/cuda/step_cuda.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>

#include "kernel/cuda/step_table.h"

const ln_cuda_step_parts ln_cuda_step_rules[LN_CUDA_STEP_RULES] = {
    {"simple_gla", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_HEAD_DECAY, LN_CUDA_STEP_PLAIN},
    {"gla", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_KEY_DECAY, LN_CUDA_STEP_PLAIN},
    {"gla_value", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_VALUE_DECAY, LN_CUDA_STEP_PLAIN},
    {"ssd", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_NO_DECAY, LN_CUDA_STEP_SIZE}, /* its decay follows from the step size */
    {"mlstm", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_HEAD_DECAY, LN_CUDA_STEP_GATE},
    {"mlstm_sigmoid", LN_CUDA_STEP_OUTER, LN_CUDA_STEP_HEAD_DECAY, LN_CUDA_STEP_SIGMOID},
    {"delta_rule", LN_CUDA_STEP_DELTA, LN_CUDA_STEP_NO_DECAY, LN_CUDA_STEP_BETA},
    {"gated_delta_rule", LN_CUDA_STEP_DELTA, LN_CUDA_STEP_HEAD_DECAY, LN_CUDA_STEP_BETA},
    {"kda", LN_CUDA_STEP_DELTA, LN_CUDA_STEP_KEY_DECAY, LN_CUDA_STEP_BETA},
    {"dplr", LN_CUDA_STEP_LOW_RANK, LN_CUDA_STEP_KEY_DECAY, LN_CUDA_STEP_PLAIN},
};

const ln_cuda_step_kernel *ln_cuda_step_kernels(int row) {
    static const ln_cuda_step_kernel none = {};
    return row >= 0 && row < ln_cuda_portable_step_count ? &ln_cuda_portable_steps[row] : &none;
}

/* ---- plan ---- */

static const char *wrong(const ln_cuda_step *s) {
    if (s->rule < 0 || s->rule >= LN_CUDA_STEP_RULES) return "there is no such rule";
    if (s->sequences < 1 || s->heads < 1 || s->key_heads < 1 || s->heads % s->key_heads)
        return "key_heads must divide heads, and there must be sequences";
    if (s->key_size < 1 || s->value_size < 1 || s->value_size > INT_MAX / 1024)
        return "key_size and value_size are wrong";
    if (s->heads > INT_MAX / s->value_size || s->sequences > INT_MAX / s->heads) return "there are too many heads";
    if (isnan(s->scale) || isinf(s->scale)) return "scale must be a number";
    if (s->normalise_keys && ln_cuda_step_rules[s->rule].kind == LN_CUDA_STEP_OUTER)
        return "normalise_keys is for the delta rules";
    if (s->normalise && s->rule != LN_CUDA_STEP_SIMPLE_GLA && s->rule != LN_CUDA_STEP_MLSTM_SIGMOID)
        return "normalise is for linear attention and mlstm_sigmoid";
    return NULL;
}

static ln_cuda_step_sum sum_of(const ln_cuda_step *s) {
    if (s->rule == LN_CUDA_STEP_MLSTM) return LN_CUDA_STEP_SUM_MAXIMUM;
    if (!s->normalise) return LN_CUDA_STEP_SUM_NONE;
    return s->rule == LN_CUDA_STEP_MLSTM_SIGMOID ? LN_CUDA_STEP_SUM_ONE : LN_CUDA_STEP_SUM_PLAIN;
}

/* Floats of the state of a head. */
static int64_t state_of(const ln_cuda_step *s) {
    const ln_cuda_step_sum sum = sum_of(s);
    return s->key_size * (s->value_size + (sum != LN_CUDA_STEP_SUM_NONE)) + (sum == LN_CUDA_STEP_SUM_MAXIMUM);
}

static const char *refusal(const ln_cuda_step *s, const ln_cuda_step_kernel *kernel, bool aligned) {
    if (kernel->kind != ln_cuda_step_rules[s->rule].kind) return "made for another kind of rule";
    if (s->key_size > kernel->key_size) return "made for fewer rows";
    if (kernel->aligned && !aligned) return "made for sizes and strides of the state that are multiples of 4";
    return NULL;
}

/* Wide blocks read longer runs of memory; narrow ones are more, and begin sooner where heads are few. */
static bool better(const ln_cuda_step *s, const ln_cuda_device *device, const ln_cuda_step_kernel *one,
                   const ln_cuda_step_kernel *best) {
    if (one->aligned != best->aligned) return one->aligned;
    if (one->key_size != best->key_size) return one->key_size < best->key_size;
    const int64_t most = s->sequences * s->heads >= 4 * (int64_t)device->multiprocessors ? s->value_size : 32;
    const bool one_fits = one->columns <= most, best_fits = best->columns <= most;
    if (one_fits != best_fits) return one_fits;
    return one_fits ? one->columns > best->columns : one->columns < best->columns;
}

ln_cuda_code ln_cuda_step_plan_make(const ln_cuda_step *step, const ln_cuda_device *device,
                                    const ln_cuda_step_kernel *kernel, ln_cuda_step_plan *plan) {
    *plan = {};
    plan->device = *device;
    const char *why = wrong(step);
    if (!why) {
        plan->head_stride = step->head_stride ? step->head_stride : state_of(step);
        plan->slot_stride = step->slot_stride ? step->slot_stride : step->heads * plan->head_stride;
        if (plan->head_stride < state_of(step) || plan->slot_stride < step->heads * plan->head_stride)
            why = "strides of the states are shorter than they";
    }
    if (why) {
        snprintf(plan->why, sizeof plan->why, "%s", why);
        return LN_CUDA_ARGUMENT;
    }
    const bool aligned = step->value_size % 4 == 0 && plan->head_stride % 4 == 0 && plan->slot_stride % 4 == 0;
    const ln_cuda_step_kernel *best = NULL;
    why = device->major < 8 ? "made for compute capability 8.0 and newer" : "made for key_size of at most 256";
    for (int row = 0; device->major >= 8; row++) {
        const ln_cuda_step_kernel *next = ln_cuda_step_kernels(row);
        if (!next->start) break;
        if (kernel && next != kernel) continue;
        const char *no = refusal(step, next, aligned);
        if (kernel && no) why = no;
        if (!no && (!best || better(step, device, next, best))) best = next;
    }
    plan->kernel = best;
    snprintf(plan->why, sizeof plan->why, "%s",
             !best           ? why
             : best->aligned ? best->name
                             : "states are read a number at a time: sizes or strides of 4 would be faster");
    return best ? LN_CUDA_OK : LN_CUDA_UNSUPPORTED;
}

/* ---- launch ---- */

static bool tensors_right(const ln_cuda_step *s, const ln_cuda_step_plan *plan, const ln_cuda_step_tensors *t) {
    const ln_cuda_step_parts *parts = &ln_cuda_step_rules[s->rule];
    const uintptr_t unit = plan->kernel->aligned ? 16 : 4;
    if (!ln_cuda_tensor_right(&t->query, 2) || !ln_cuda_tensor_right(&t->key, 2) || !ln_cuda_tensor_right(&t->value, 2))
        return false;
    if (!ln_cuda_tensor_right(&t->output, s->output_float32 ? 4 : 2)) return false;
    if (parts->kind == LN_CUDA_STEP_LOW_RANK && (!ln_cuda_tensor_right(&t->a, 2) || !ln_cuda_tensor_right(&t->b, 2)))
        return false;
    if (parts->decay != LN_CUDA_STEP_NO_DECAY && !t->decay.data && s->rule != LN_CUDA_STEP_SIMPLE_GLA) return false;
    if (parts->strength != LN_CUDA_STEP_PLAIN && !t->strength.data) return false;
    if (parts->strength == LN_CUDA_STEP_SIZE && !t->rate) return false;
    return (uintptr_t)t->state_in % unit == 0 && (uintptr_t)t->state_out % unit == 0;
}

ln_cuda_code ln_cuda_step_forward(const ln_cuda_step *step, const ln_cuda_step_plan *plan,
                                  const ln_cuda_step_tensors *tensors, void *stream) {
    const ln_cuda_step_kernel *kernel = plan->kernel;
    if (!kernel) return LN_CUDA_UNSUPPORTED;
    if (!tensors_right(step, plan, tensors)) return LN_CUDA_ARGUMENT;
    ln_cuda_step_run run = {};
    run.tensors = *tensors;
    run.parts = ln_cuda_step_rules[step->rule];
    if (run.parts.strength != LN_CUDA_STEP_SIZE) run.tensors.skip = NULL;
    run.slot_stride = plan->slot_stride;
    run.head_stride = plan->head_stride;
    run.sequences = (int)step->sequences;
    run.heads = (int)step->heads;
    run.key_heads = (int)step->key_heads;
    run.key_size = (int)step->key_size;
    run.value_size = (int)step->value_size;
    run.tiles = (int)((step->value_size + kernel->columns - 1) / kernel->columns);
    /* The normaliser of a head, which all columns read, belongs to one block. */
    run.sum = sum_of(step);
    run.blocks_of_head = run.sum != LN_CUDA_STEP_SUM_NONE ? 1 : run.tiles;
    run.scale = step->scale;
    run.tiled_heads = step->tiled_heads;
    run.normalise_keys = step->normalise_keys;
    run.output_float32 = step->output_float32;
    const int64_t blocks = step->sequences * step->heads * run.blocks_of_head;
    if (blocks > INT_MAX) return LN_CUDA_ARGUMENT;
    return kernel->start(&run, blocks, stream);
}
