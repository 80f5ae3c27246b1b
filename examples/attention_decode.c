/* Decoding: keys and values of a prompt in a cache, then a token at a time; and the cache taken back.
 *
 *     cc attention_decode.c $(pkg-config --cflags --libs linnet) -lm -o attention_decode */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <linnet/attention.h>

enum { HEADS = 4, SIZE = 64, ROW = HEADS * SIZE, PROMPT = 500, TOKENS = 520 };
static float query[TOKENS * ROW], key[TOKENS * SIZE], value[TOKENS * SIZE], output[TOKENS * ROW];

static linnet_context *context;
static void check(linnet_status status) {
    if (status == LINNET_OK) return;
    fprintf(stderr, "attention_decode: %s\n", linnet_last_error(context));
    exit(1);
}

static linnet_cache *cache;
/* The next tokens: their keys and values join the cache, then their queries look at all of it. */
static void feed(int64_t tokens) {
    const int64_t at = linnet_cache_tokens(cache), offsets[] = {0, tokens};
    check(linnet_cache_append(cache, tokens, (linnet_tensor){.data = key + at * SIZE},
                              (linnet_tensor){.data = value + at * SIZE}));
    linnet_attention_settings s = linnet_attention_settings_default();
    s.heads = HEADS, s.key_value_heads = 1, s.key_size = SIZE;
    s.query_offsets = offsets, s.causal = true, s.cache_capacity = TOKENS;
    linnet_attention_plan *plan; /* for every call here; one of a single token serves all steps */
    check(linnet_attention_plan_open(context, &s, &plan));
    void *workspace = aligned_alloc(64, (linnet_attention_workspace(plan) + 63) / 64 * 64);
    const linnet_attention_tensors t = {
        .size = sizeof t, .query.data = query + at * ROW, .output.data = output + at * ROW};
    check(linnet_attention_cached(plan, &t, &cache, workspace));
    free(workspace);
    linnet_attention_plan_close(plan);
}

int main(void) {
    for (int i = 0; i < TOKENS * ROW; i++) query[i] = sinf((float)i);
    for (int i = 0; i < TOKENS * SIZE; i++) key[i] = cosf(0.7f * (float)i), value[i] = (float)(i / SIZE);
    check(linnet_context_open(NULL, &context));
    linnet_cache_settings s = linnet_cache_settings_default();
    s.key_value_heads = 1, s.key_size = SIZE, s.precision = LINNET_F16, s.capacity = TOKENS;
    check(linnet_cache_open(context, &s, &cache));
    feed(PROMPT);
    while (linnet_cache_tokens(cache) < TOKENS) feed(1);
    printf("token by token: %.2f\n", (double)output[(TOKENS - 1) * ROW]);
    check(linnet_cache_rewind(cache, PROMPT));
    feed(TOKENS - PROMPT);
    printf("in one piece: %.2f\n", (double)output[(TOKENS - 1) * ROW]);
    if (linnet_cache_append(cache, 1, (linnet_tensor){.data = key}, (linnet_tensor){.data = value}) ==
        LINNET_ERROR_FULL)
        printf("%s\n", linnet_last_error(context));
    linnet_cache_close(cache);
    linnet_context_close(context);
}
