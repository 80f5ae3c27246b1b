/* Owns: running the public attention operator forward: tensors become pages, pages go through the tile loop; and
 * merging results over disjoint keys.
 *
 * A page is written once and read by every tile of queries, so packing costs 1 / queries of the whole; it is what lets
 * the tile loop be the one that cached keys use too. With a neighbourhood, tokens are packed in the grid's order. */
#include <math.h>
#include <string.h>

#include "mixer/attention_inside.h"
#include "mixer/attention_plan.h"

linnet_status ln_plan_check(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors, bool keys,
                            linnet_attention_tensors *settled) {
    const linnet_attention_settings *s = &plan->settings;
    linnet_context *context = plan->context;
    *settled = (linnet_attention_tensors){.size = sizeof *settled};
    if (!tensors) return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention needs tensors");
    memcpy(settled, tensors, tensors->size < sizeof *settled ? tensors->size : sizeof *settled);
    const struct {
        bool missing;
        const char *name;
    } needs[] = {{plan->query_offsets[plan->sequences] && !settled->query.data, "query"},
                 {plan->query_offsets[plan->sequences] && !settled->output.data, "output"},
                 {keys && plan->key_offsets[plan->sequences] && !settled->key.data, "key"},
                 {keys && plan->key_offsets[plan->sequences] && !settled->value.data, "value"},
                 {s->sinks && !settled->sinks, "sinks"},
                 {s->rank && (!settled->query_factors || !settled->key_factors), "query_factors or key_factors"},
                 {s->bias && !settled->bias, "bias"},
                 {s->relative && !settled->relative, "relative"}};
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        if (needs[i].missing)
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "the attention plan needs %s, which is NULL", needs[i].name);
    settled->query = ln_tensor_settle(settled->query, s->heads, s->key_size);
    settled->output = ln_tensor_settle(settled->output, s->heads, s->value_size);
    settled->key = ln_tensor_settle(settled->key, s->key_value_heads, s->key_size);
    settled->value = ln_tensor_settle(settled->value, s->key_value_heads, s->value_size);
    return LINNET_OK;
}

ln_attention_sequence ln_plan_sequence(const linnet_attention_plan *plan, const linnet_attention_tensors *t, int64_t i,
                                       int64_t keys) {
    const linnet_attention_settings *s = &plan->settings;
    const int64_t query = plan->query_offsets[i], key = plan->key_offsets[i];
    const int64_t *order = s->neighbourhood.axes ? plan->grid.token : NULL;
    return (ln_attention_sequence){
        .keys = keys,
        .tokens = ln_plan_queries(plan, i),
        .position = keys - ln_plan_queries(plan, i),
        .query_type = s->type,
        .query = ln_tensor_at(&t->query, s->type, query),
        .output = (float *)(uintptr_t)ln_tensor_at(&t->output, LINNET_F32, query),
        .query_stride = t->query.token_stride,
        .query_head_stride = t->query.head_stride,
        .output_stride = t->output.token_stride,
        .output_head_stride = t->output.head_stride,
        .log_sum_exp = t->log_sum_exp ? t->log_sum_exp + query * s->heads : NULL,
        .order = order,
        .key_begin = key,
        .bias = {.heads = s->heads,
                 .key_value_heads = s->key_value_heads,
                 .alibi = s->alibi,
                 .rank = s->rank,
                 .query_factors = s->rank ? t->query_factors + query * s->heads * s->rank : NULL,
                 .key_factors = s->rank ? t->key_factors + key * s->key_value_heads * s->rank : NULL,
                 .dense = s->bias ? t->bias + (t->bias_offsets ? t->bias_offsets[i] : 0) : NULL,
                 .dense_head_stride = t->bias_head_stride,
                 .dense_row_stride = t->bias_row_stride,
                 .relative = s->relative,
                 .table = t->relative,
                 .order = order}};
}

/* ---- packing ---- */

typedef struct pack_call {
    const linnet_attention_plan *plan;
    ln_rows key, value;
    ln_attention_sequence *sequences;
} pack_call;

static void pack_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const pack_call *call = argument;
    const linnet_attention_plan *plan = call->plan;
    const int64_t heads = plan->settings.key_value_heads, head = task % heads, page = task / heads;
    const int64_t i = ln_find_i64(plan->first_page, plan->sequences, page);
    const int64_t first = (page - plan->first_page[i]) * LN_PAGE_TOKENS;
    const int64_t count = ln_min_i64(LN_PAGE_TOKENS, ln_plan_keys(plan, i) - first);
    int64_t tokens[LN_PAGE_TOKENS];
    for (int64_t t = 0; t < count; t++)
        tokens[t] = plan->key_offsets[i] + (plan->grid.token ? plan->grid.token[first + t] : first + t);
    unsigned char *to =
        (unsigned char *)(uintptr_t)ln_page_of(&call->sequences[i].view, head, page - plan->first_page[i]);
    ln_pack_page(&plan->layout, &call->key, &call->value, head, tokens, count, to);
}

/* Where each sequence's pages are: those of a head side by side. */
static void place_pages(const linnet_attention_plan *plan, ln_attention_sequence *sequences, unsigned char *workspace) {
    const int64_t heads = plan->settings.key_value_heads;
    const unsigned char **slots = (const unsigned char **)(void *)(workspace + plan->slots_at);
    unsigned char *pages = workspace + plan->pages_at;
    for (int64_t i = 0; i < plan->sequences; i++) {
        const int64_t count = plan->first_page[i + 1] - plan->first_page[i];
        for (int64_t p = 0; p < count; p++) slots[p] = pages + (uint64_t)p * plan->layout.bytes;
        sequences[i].view = (ln_page_view){.layout = plan->layout,
                                           .key_value_heads = heads,
                                           .slots = slots,
                                           .slot_count = ln_max_i64(1, count),
                                           .head_stride = (uint64_t)count * plan->layout.bytes,
                                           .end = ln_plan_keys(plan, i)};
        slots += count;
        pages += (uint64_t)(count * heads) * plan->layout.bytes;
    }
}

static void turn_factors(const linnet_attention_plan *plan, ln_attention_sequence *sequences,
                         unsigned char *workspace) {
    float *to = (float *)(void *)(workspace + plan->factors_at);
    for (int64_t i = 0; plan->settings.rank && i < plan->sequences; i++) {
        const int64_t keys = ln_plan_keys(plan, i);
        if (keys == 0) continue;
        const int64_t stride = ln_plan_factor_stride(keys);
        ln_bias_turn(&sequences[i].bias, keys, stride, to);
        sequences[i].bias.key_factors = to;
        sequences[i].bias.factor_stride = stride;
        to += plan->settings.rank * plan->settings.key_value_heads * stride;
    }
}

static void pack_operands(const linnet_attention_plan *plan, ln_attention_sequence *sequences,
                          unsigned char *workspace) {
    unsigned char *to = workspace + plan->operands_at;
    for (int64_t i = 0; plan->run_at > plan->operands_at && i < plan->sequences; i++) {
        ln_attention_pack(&plan->kernels, plan->context->team, &plan->attention, &sequences[i], to);
        to += ln_attention_operand_bytes(&plan->kernels, &plan->attention, sequences[i].keys);
    }
}

linnet_status linnet_attention_forward(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors,
                                       void *workspace) {
    linnet_attention_tensors settled;
    if (plan->settings.cache_capacity)
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT,
                       "the plan was made with cache_capacity: it is for linnet_attention_cached");
    const linnet_status status = ln_plan_check(plan, tensors, true, &settled);
    if (status != LINNET_OK) return status;
    ln_team *team = plan->context->team;
    ln_attention_sequence *sequences = workspace;
    for (int64_t i = 0; i < plan->sequences; i++)
        sequences[i] = ln_plan_sequence(plan, &settled, i, ln_plan_keys(plan, i));
    place_pages(plan, sequences, workspace);
    turn_factors(plan, sequences, workspace);
    const linnet_attention_settings *s = &plan->settings;
    pack_call pack = {plan, ln_rows_of(&settled.key, s->type, s->key_value_heads, s->key_size),
                      ln_rows_of(&settled.value, s->type, s->key_value_heads, s->value_size), sequences};
    ln_parallel(team, plan->first_page[plan->sequences] * s->key_value_heads, pack_task, &pack);
    pack_operands(plan, sequences, workspace);
    ln_attention attention = plan->attention;
    attention.sinks = plan->settings.sinks ? settled.sinks : NULL;
    ln_attention_run(&plan->kernels, team, &attention, sequences, plan->sequences,
                     (unsigned char *)workspace + plan->run_at);
    return ln_plan_finish(plan);
}

/* ---- merging ---- */

linnet_status linnet_attention_merge(linnet_context *context, int64_t tokens, int64_t heads, int64_t value_size,
                                     float *output, float *log_sum_exp, const float *other_output,
                                     const float *other_log_sum_exp) {
    if (tokens < 0 || heads < 1 || value_size < 1)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "merging %lld tokens of %lld heads of %lld values",
                       (long long)tokens, (long long)heads, (long long)value_size);
    for (int64_t r = 0; r < tokens * heads; r++) {
        const float a = log_sum_exp[r], b = other_log_sum_exp[r], most = fmaxf(a, b);
        if (most == -INFINITY) continue;
        const float x = expf(a - most), y = expf(b - most), sum = x + y;
        float *to = output + r * value_size;
        const float *from = other_output + r * value_size;
        /* A part of no weight is left out, not multiplied by 0. */
        for (int64_t i = 0; i < value_size; i++)
            to[i] = y == 0 ? to[i] : x == 0 ? from[i] : to[i] * (x / sum) + from[i] * (y / sum);
        log_sum_exp[r] = most + logf(sum);
    }
    return LINNET_OK;
}
