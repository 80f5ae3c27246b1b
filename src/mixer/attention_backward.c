/* Owns: running the public attention operator backward. */
#include <string.h>

#include "mixer/attention_gradient.h"
#include "mixer/attention_plan.h"

/* What decides the workspace. */
static ln_gradient_sequence shape_of(const linnet_attention_plan *plan, int64_t i) {
    const int64_t tokens = ln_plan_queries(plan, i), keys = ln_plan_keys(plan, i);
    return (ln_gradient_sequence){.tokens = tokens,
                                  .keys = keys,
                                  .position = keys - tokens,
                                  .type = plan->settings.type,
                                  .key_begin = plan->key_offsets[i],
                                  .bias = {.rank = plan->settings.rank}};
}

static uint64_t sequences_bytes(const linnet_attention_plan *plan) {
    return ln_round_up((uint64_t)plan->sequences * sizeof(ln_gradient_sequence), 64);
}

linnet_status ln_plan_backward_bytes(const linnet_attention_plan *plan, uint64_t *bytes) {
    ln_gradient_sequence *shapes =
        ln_allocate(plan->context, (uint64_t)plan->sequences, sizeof *shapes, "attention plan");
    if (!shapes) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < plan->sequences; i++) shapes[i] = shape_of(plan, i);
    *bytes = sequences_bytes(plan) + ln_attention_gradient_workspace(&plan->kernels, ln_team_size(plan->context->team),
                                                                     &plan->attention, shapes, plan->sequences);
    ln_release(plan->context, shapes);
    return LINNET_OK;
}

static linnet_tensor part(const linnet_tensor *tensor, linnet_type type, int64_t heads, int64_t size, int64_t token) {
    linnet_tensor t = ln_tensor_settle(*tensor, heads, size);
    if (t.data) t.data = (void *)(uintptr_t)ln_tensor_at(&t, type, token);
    return t;
}

static ln_gradient_sequence sequence_of(const linnet_attention_plan *plan, const linnet_attention_tensors *t,
                                        int64_t i) {
    const linnet_attention_settings *s = &plan->settings;
    const int64_t query = plan->query_offsets[i], key = plan->key_offsets[i];
    const ln_attention_sequence forward = ln_plan_sequence(plan, t, i, ln_plan_keys(plan, i));
    ln_gradient_sequence made = shape_of(plan, i);
    made.order = forward.order;
    made.bias = forward.bias;
    made.log_sum_exp = forward.log_sum_exp;
    made.query = part(&t->query, s->type, s->heads, s->key_size, query);
    made.key = part(&t->key, s->type, s->key_value_heads, s->key_size, key);
    made.value = part(&t->value, s->type, s->key_value_heads, s->value_size, key);
    made.output = part(&t->output, LINNET_F32, s->heads, s->value_size, query);
    made.output_gradient = part(&t->output_gradient, LINNET_F32, s->heads, s->value_size, query);
    made.query_gradient = part(&t->query_gradient, LINNET_F32, s->heads, s->key_size, query);
    made.key_gradient = part(&t->key_gradient, LINNET_F32, s->key_value_heads, s->key_size, key);
    made.value_gradient = part(&t->value_gradient, LINNET_F32, s->key_value_heads, s->value_size, key);
    if (t->query_factors_gradient && s->rank)
        made.query_factors_gradient = t->query_factors_gradient + query * s->heads * s->rank;
    if (t->key_factors_gradient && s->rank)
        made.key_factors_gradient = t->key_factors_gradient + key * s->key_value_heads * s->rank;
    return made;
}

linnet_status linnet_attention_backward(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors,
                                        void *workspace) {
    linnet_attention_tensors settled;
    const linnet_status status = ln_plan_check(plan, tensors, true, &settled);
    if (status != LINNET_OK) return status;
    if (!plan->settings.backward)
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT, "the attention plan was made without backward");
    if (plan->query_offsets[plan->sequences] && (!settled.log_sum_exp || !settled.output_gradient.data))
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT,
                       "backward needs log_sum_exp of the forward run and output_gradient: one is NULL");
    ln_gradient_sequence *sequences = workspace;
    for (int64_t i = 0; i < plan->sequences; i++) sequences[i] = sequence_of(plan, &settled, i);
    ln_attention attention = plan->attention;
    attention.sinks = plan->settings.sinks ? settled.sinks : NULL;
    ln_attention_gradient(&plan->kernels, plan->context->team, &attention, sequences, plan->sequences,
                          attention.sinks ? settled.sinks_gradient : NULL,
                          (unsigned char *)workspace + sequences_bytes(plan));
    return ln_plan_finish(plan);
}
