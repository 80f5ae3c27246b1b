/* Owns: the public cache of keys and values, and attention over caches: one layer's key-value memory (pages.h) for a
 * caller who runs the layers himself. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "memory/pages.h"
#include "mixer/attention_plan.h"

enum { PIECE = 256 }; /* tokens appended at once */

struct linnet_cache {
    linnet_context *context;
    linnet_cache_settings settings;
    ln_memory *memory;
    float *rows; /* [PIECE] keys and values of all heads, for tensors that are not packed */
};

linnet_cache_settings linnet_cache_settings_default(void) {
    return (linnet_cache_settings){.size = sizeof(linnet_cache_settings), .precision = LINNET_F16};
}

linnet_status linnet_cache_open(linnet_context *context, const linnet_cache_settings *settings, linnet_cache **cache) {
    *cache = NULL;
    if (!settings) return ln_fail(context, LINNET_ERROR_ARGUMENT, "a cache needs settings");
    linnet_cache_settings s = linnet_cache_settings_default();
    memcpy(&s, settings, settings->size < sizeof s ? settings->size : sizeof s);
    if (s.value_size == 0) s.value_size = s.key_size;
    if (s.value_in_key && s.value_size > s.key_size)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "values of %lld columns are not within keys of %lld",
                       (long long)s.value_size, (long long)s.key_size);
    const ln_memory_shape shape = {.layers = 1,
                                   .key_value_heads = s.key_value_heads,
                                   .key_size = s.key_size,
                                   .value_size = s.value_size,
                                   .precision = s.precision,
                                   .capacity = s.capacity,
                                   .piece = PIECE,
                                   .value_in_key = s.value_in_key};
    linnet_cache *made = ln_allocate_zero(context, 1, sizeof *made, "key-value cache");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->settings = s;
    linnet_status status = ln_memory_open(context, &shape, &made->memory);
    if (status == LINNET_OK) {
        made->rows = ln_allocate(context, (uint64_t)(PIECE * s.key_value_heads),
                                 (uint64_t)(s.key_size + s.value_size) * sizeof(float), "key-value rows");
        if (!made->rows) status = LINNET_ERROR_MEMORY;
    }
    if (status != LINNET_OK) {
        linnet_cache_close(made);
        return status;
    }
    *cache = made;
    return LINNET_OK;
}

void linnet_cache_close(linnet_cache *cache) {
    if (!cache) return;
    if (cache->memory) ln_memory_close(cache->memory);
    ln_release(cache->context, cache->rows);
    ln_release(cache->context, cache);
}

int64_t linnet_cache_tokens(const linnet_cache *cache) {
    return ln_memory_position(cache->memory);
}

/* Heads side by side, as the memory takes them. */
static const float *packed_rows(const linnet_tensor *tensor, int64_t token, int64_t tokens, int64_t heads, int64_t size,
                                float *rows) {
    const float *from = ln_tensor_at(tensor, LINNET_F32, token);
    if (tensor->head_stride == size && tensor->token_stride == heads * size) return from;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++)
            memcpy(rows + (t * heads + h) * size, from + t * tensor->token_stride + h * tensor->head_stride,
                   (size_t)size * sizeof *rows);
    return rows;
}

linnet_status linnet_cache_append(linnet_cache *cache, int64_t tokens, linnet_tensor key, linnet_tensor value) {
    const linnet_cache_settings *s = &cache->settings;
    linnet_context *context = cache->context;
    const int64_t heads = s->key_value_heads, left = s->capacity - linnet_cache_tokens(cache);
    if (tokens < 0) return ln_fail(context, LINNET_ERROR_ARGUMENT, "appending %lld tokens", (long long)tokens);
    if (tokens > left)
        return ln_fail(context, LINNET_ERROR_FULL, "a cache of %lld tokens has room for %lld more, not for %lld",
                       (long long)s->capacity, (long long)left, (long long)tokens);
    if (tokens > 0 && (!key.data || (!value.data && !s->value_in_key)))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the keys or values to append are NULL");
    key = ln_tensor_settle(key, heads, s->key_size);
    value = ln_tensor_settle(value, heads, s->value_size);
    for (int64_t t = 0; t < tokens; t += PIECE) {
        const int64_t n = ln_min_i64(PIECE, tokens - t);
        const float *keys = packed_rows(&key, t, n, heads, s->key_size, cache->rows);
        const float *values = s->value_in_key ? NULL
                                              : packed_rows(&value, t, n, heads, s->value_size,
                                                            cache->rows + PIECE * heads * s->key_size);
        ln_memory_append(cache->memory, context->team, 0, n, keys, heads * s->key_size, values, heads * s->value_size);
        ln_memory_commit(cache->memory, n);
    }
    return LINNET_OK;
}

linnet_status linnet_cache_rewind(linnet_cache *cache, int64_t tokens) {
    if (tokens < 0 || tokens > linnet_cache_tokens(cache))
        return ln_fail(cache->context, LINNET_ERROR_ARGUMENT, "a cache of %lld tokens cannot go back to %lld",
                       (long long)linnet_cache_tokens(cache), (long long)tokens);
    return ln_memory_rewind(cache->memory, tokens);
}

static linnet_status check_cache(const linnet_attention_plan *plan, const linnet_cache *cache, int64_t sequence) {
    const linnet_attention_settings *s = &plan->settings;
    linnet_context *context = plan->context;
    if (!cache)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the cache of sequence %lld is NULL", (long long)sequence);
    const linnet_cache_settings *c = &cache->settings;
    if (cache->context != context || c->key_value_heads != s->key_value_heads || c->key_size != s->key_size ||
        c->value_size != s->value_size)
        return ln_fail(
            context, LINNET_ERROR_ARGUMENT,
            "the cache of sequence %lld has %lld heads of %lld/%lld, the plan %lld of %lld/%lld, or another context",
            (long long)sequence, (long long)c->key_value_heads, (long long)c->key_size, (long long)c->value_size,
            (long long)s->key_value_heads, (long long)s->key_size, (long long)s->value_size);
    if (linnet_cache_tokens(cache) > s->cache_capacity)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "the cache of sequence %lld holds %lld tokens, more than the plan's cache_capacity of %lld",
                       (long long)sequence, (long long)linnet_cache_tokens(cache), (long long)s->cache_capacity);
    return LINNET_OK;
}

linnet_status linnet_attention_cached(const linnet_attention_plan *plan, const linnet_attention_tensors *tensors,
                                      linnet_cache *const *caches, void *workspace) {
    linnet_attention_tensors settled;
    if (plan->settings.cache_capacity == 0)
        return ln_fail(plan->context, LINNET_ERROR_ARGUMENT, "the plan was made without cache_capacity");
    if (!caches) return ln_fail(plan->context, LINNET_ERROR_ARGUMENT, "there are no caches");
    linnet_status status = ln_plan_check(plan, tensors, false, &settled);
    ln_attention_sequence *sequences = workspace;
    int64_t keys_before = 0;
    for (int64_t i = 0; status == LINNET_OK && i < plan->sequences; i++) {
        status = check_cache(plan, caches[i], i);
        if (status != LINNET_OK) break;
        const int64_t keys = linnet_cache_tokens(caches[i]);
        sequences[i] = ln_plan_sequence(plan, &settled, i, keys);
        sequences[i].view = ln_memory_view(caches[i]->memory, 0);
        sequences[i].key_begin = keys_before;
        if (plan->settings.rank)
            sequences[i].bias.key_factors =
                settled.key_factors + keys_before * plan->settings.key_value_heads * plan->settings.rank;
        keys_before += keys;
    }
    if (status != LINNET_OK) return status;
    ln_attention attention = plan->attention;
    attention.sinks = plan->settings.sinks ? settled.sinks : NULL;
    ln_attention_run(&plan->kernels, plan->context->team, &attention, sequences, plan->sequences,
                     (unsigned char *)workspace + plan->slots_at);
    return ln_plan_finish(plan);
}
