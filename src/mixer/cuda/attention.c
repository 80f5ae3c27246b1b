/* Owns: the public attention operator on a device. Settings are checked and copied by the processor's plan
 * (attention_plan.h), which this one holds: what is wrong there is wrong here, in the same words. The workspace of a
 * plan with backward is that of the forward run and behind it that of the gradients. */
#include <stdio.h>
#include <string.h>

#include "kernel/cuda/attention_backward_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/attention_plan.h"
#include "mixer/cuda/cuda.h"
#include "mixer/pack.h"

struct linnet_cuda_attention {
    linnet_cuda *cuda;
    linnet_attention_plan *checked;
    ln_cuda_attention problem;
    ln_cuda_attention_plan plan;
    ln_cuda_backward gradients; /* with settings.backward */
    ln_cuda_backward_plan backward;
    bool sinks, has_backward;
};

/* NULL, or the option that no kernel has. */
static const char *refused(const linnet_attention_settings *s) {
    if (s->prefix) return "prefix";
    if (s->documents) return "documents (give them as sequences)";
    if (s->neighbourhood.axes) return "neighbourhood";
    if (s->alibi) return "alibi";
    if (s->bias) return "a dense bias";
    if (s->relative) return "a relative bias";
    if (s->cache_capacity) return "caches";
    return NULL;
}

static linnet_status check(linnet_cuda *cuda, const linnet_attention_settings *s) {
    if (s->type != LINNET_BF16 && s->type != LINNET_F16)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "attention on a GPU takes bf16 or f16 tensors, not %s",
                       linnet_type_name(s->type) ? linnet_type_name(s->type) : "an unknown type");
    if (s->output != LINNET_F32 && s->output != s->type)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT,
                       "the output of attention on a GPU is f32 or of the type "
                       "of its inputs");
    if (refused(s))
        return ln_fail(cuda->context, LINNET_ERROR_UNSUPPORTED, "attention on a GPU has no %s; run it on the processor",
                       refused(s));
    if (s->exact)
        return ln_fail(cuda->context, LINNET_ERROR_UNSUPPORTED,
                       "attention on a GPU multiplies in the precision of its inputs; exact is for the processor");
    return LINNET_OK;
}

static void describe(linnet_cuda_attention *a, linnet_type type, linnet_type output) {
    const linnet_attention_settings *s = &a->checked->settings;
    a->problem = (ln_cuda_attention){.heads = s->heads,
                                     .key_value_heads = s->key_value_heads,
                                     .key_size = s->key_size,
                                     .value_size = s->value_size,
                                     .sequences = a->checked->sequences,
                                     .query_offsets = a->checked->query_offsets,
                                     .key_offsets = a->checked->key_offsets,
                                     .scale = s->scale,
                                     .soft_cap = s->soft_cap,
                                     .causal = s->causal,
                                     .window = s->window,
                                     .output_float32 = output == LINNET_F32,
                                     .half = type == LINNET_F16,
                                     .rank = s->rank,
                                     .query_tile = s->blocks.query_tile,
                                     .key_tile = s->blocks.key_tile,
                                     .list_per_head = s->blocks.per_head,
                                     .list_offsets = s->blocks.offsets,
                                     .listed = s->blocks.tiles};
    a->sinks = s->sinks;
}

linnet_status linnet_cuda_attention_open(linnet_cuda *cuda, const linnet_attention_settings *settings,
                                         linnet_cuda_attention **attention) {
    *attention = NULL;
    if (!settings) return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "attention needs settings");
    linnet_attention_settings s = linnet_attention_settings_default();
    memcpy(&s, settings, settings->size < sizeof s ? settings->size : sizeof s);
    const linnet_type type = s.type, output = s.output;
    const bool backward = s.backward;
    linnet_status status = check(cuda, &s);
    if (status != LINNET_OK) return status;
    s.type = LINNET_BF16;
    s.output = LINNET_F32;
    s.backward = false; /* the processor's gradients need no room */
    linnet_cuda_attention *made = ln_allocate_zero(cuda->context, 1, sizeof *made, "attention plan");
    if (!made) return LINNET_ERROR_MEMORY;
    made->cuda = cuda;
    status = linnet_attention_plan_open(cuda->context, &s, &made->checked);
    if (status == LINNET_OK) {
        describe(made, type, output);
        const ln_cuda_code code = ln_cuda_attention_plan_make(&made->problem, &cuda->device, NULL, &made->plan);
        status = ln_cuda_tell(cuda, code, "attention on a GPU", made->plan.why);
    }
    if (status == LINNET_OK && backward) {
        made->has_backward = true;
        made->gradients = (ln_cuda_backward){made->problem, output == LINNET_F32};
        const ln_cuda_code code = ln_cuda_backward_plan_make(&made->gradients, &cuda->device, NULL, &made->backward);
        status = ln_cuda_tell(cuda, code, "gradients of attention on a GPU", made->backward.why);
    }
    if (status != LINNET_OK) {
        linnet_cuda_attention_close(made);
        return status;
    }
    *attention = made;
    return LINNET_OK;
}

void linnet_cuda_attention_close(linnet_cuda_attention *attention) {
    if (!attention) return;
    linnet_attention_plan_close(attention->checked);
    ln_release(attention->cuda->context, attention);
}

uint64_t linnet_cuda_attention_workspace(const linnet_cuda_attention *attention) {
    return (uint64_t)(attention->plan.workspace + (attention->has_backward ? attention->backward.workspace : 0));
}

size_t linnet_cuda_attention_text(const linnet_cuda_attention *attention, char *text, size_t bytes) {
    const int written = snprintf(text, bytes, attention->has_backward ? "%s; backward: %s" : "%s", attention->plan.why,
                                 attention->backward.why);
    return (size_t)(written > 0 ? written : 0) + 1;
}

static void *backward_room(const linnet_cuda_attention *attention, void *workspace) {
    return (char *)workspace + attention->plan.workspace;
}

static ln_cuda_code prepare_backward(const linnet_cuda_attention *attention, void *workspace, void *stream) {
    linnet_context *context = attention->cuda->context;
    const ln_cuda_backward_plan *plan = &attention->backward;
    void *tables = ln_allocate(context, (uint64_t)plan->tables + 1, 1, "tasks of gradients");
    if (!tables) return LN_CUDA_OUT_OF_MEMORY;
    ln_cuda_backward_tables_make(&attention->gradients, plan, tables);
    const ln_cuda_code code = ln_cuda_backward_prepare(plan, tables, backward_room(attention, workspace), stream);
    ln_release(context, tables);
    return code;
}

linnet_status linnet_cuda_attention_prepare(const linnet_cuda_attention *attention, void *workspace, void *stream) {
    const linnet_cuda *cuda = attention->cuda;
    ln_cuda_task *tables =
        ln_allocate(cuda->context, (uint64_t)attention->plan.tables + 1, 1, "tasks of attention on a GPU");
    if (!tables) return LINNET_ERROR_MEMORY;
    ln_cuda_attention_tasks(&attention->problem, &attention->plan, tables);
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_attention_prepare(&attention->plan, tables, workspace, stream);
    ln_release(cuda->context, tables);
    if (!code && attention->has_backward) code = prepare_backward(attention, workspace, stream);
    return ln_cuda_tell(cuda, code, "preparing attention on a GPU", wrong);
}

static ln_cuda_tensor place(linnet_tensor t, int64_t heads, int64_t size) {
    t = ln_tensor_settle(t, heads, size);
    return (ln_cuda_tensor){t.data, t.token_stride, t.head_stride};
}

linnet_status linnet_cuda_attention_forward(const linnet_cuda_attention *attention,
                                            const linnet_attention_tensors *tensors, void *workspace, void *stream) {
    const ln_cuda_attention *p = &attention->problem;
    linnet_attention_tensors t = {0};
    memcpy(&t, tensors, tensors->size < sizeof t ? tensors->size : sizeof t);
    if (attention->sinks && !t.sinks)
        return ln_fail(attention->cuda->context, LINNET_ERROR_ARGUMENT, "attention with sinks needs tensors.sinks");
    if (p->rank && (!t.query_factors || !t.key_factors))
        return ln_fail(attention->cuda->context, LINNET_ERROR_ARGUMENT, "attention with a rank needs its factors");
    const ln_cuda_attention_tensors own = {.query = place(t.query, p->heads, p->key_size),
                                           .key = place(t.key, p->key_value_heads, p->key_size),
                                           .value = place(t.value, p->key_value_heads, p->value_size),
                                           .output = place(t.output, p->heads, p->value_size),
                                           .log_sum_exp = t.log_sum_exp,
                                           .sinks = attention->sinks ? t.sinks : NULL,
                                           .query_factors = t.query_factors,
                                           .key_factors = t.key_factors};
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(attention->cuda->device.index);
    if (!code) code = ln_cuda_attention_forward(p, &attention->plan, &own, workspace, stream);
    return ln_cuda_tell(attention->cuda, code, "attention on a GPU", wrong);
}

linnet_status linnet_cuda_attention_backward(const linnet_cuda_attention *attention,
                                             const linnet_attention_tensors *tensors, void *workspace, void *stream) {
    const ln_cuda_attention *p = &attention->problem;
    const linnet_cuda *cuda = attention->cuda;
    linnet_attention_tensors t = {0};
    memcpy(&t, tensors, tensors->size < sizeof t ? tensors->size : sizeof t);
    if (!attention->has_backward)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "this attention was opened without settings.backward");
    if (!t.log_sum_exp || !t.output.data || !t.output_gradient.data || (attention->sinks && !t.sinks))
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT,
                       "gradients of attention need output, log_sum_exp and output_gradient%s",
                       attention->sinks ? ", and sinks" : "");
    if (!t.query_gradient.data || !t.key_gradient.data || !t.value_gradient.data)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT,
                       "a GPU makes the gradients of query, key and value together: none may be left out");
    if (p->rank && (!t.query_factors || !t.key_factors))
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "gradients of attention with a rank need its factors");
    const ln_cuda_backward_tensors own = {.query = place(t.query, p->heads, p->key_size),
                                          .key = place(t.key, p->key_value_heads, p->key_size),
                                          .value = place(t.value, p->key_value_heads, p->value_size),
                                          .output_gradient = place(t.output_gradient, p->heads, p->value_size),
                                          .output = place(t.output, p->heads, p->value_size),
                                          .log_sum_exp = t.log_sum_exp,
                                          .sinks = attention->sinks ? t.sinks : NULL,
                                          .query_gradient = place(t.query_gradient, p->heads, p->key_size),
                                          .key_gradient = place(t.key_gradient, p->key_value_heads, p->key_size),
                                          .value_gradient = place(t.value_gradient, p->key_value_heads, p->value_size),
                                          .sink_gradient = attention->sinks ? t.sinks_gradient : NULL,
                                          .query_factors = t.query_factors,
                                          .key_factors = t.key_factors,
                                          .query_factors_gradient = t.query_factors_gradient,
                                          .key_factors_gradient = t.key_factors_gradient};
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(cuda->device.index);
    if (!code)
        code = ln_cuda_backward_run(&attention->gradients, &attention->backward, &own,
                                    backward_room(attention, workspace), stream);
    return ln_cuda_tell(cuda, code, "gradients of attention on a GPU", wrong);
}
