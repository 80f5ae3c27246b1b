/* Causal attention of two texts at once, 8 heads that share 2 key-value heads; then keys that come in two parts.
 *
 *     cc attention.c $(pkg-config --cflags --libs linnet) -lm -o attention */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <linnet/attention.h>

enum { HEADS = 8, SHARED = 2, SIZE = 64, TOKENS = 300, ROW = HEADS * SIZE, KEY_ROW = SHARED * SIZE };
static float query[TOKENS * ROW], key[TOKENS * KEY_ROW], value[TOKENS * KEY_ROW], output[TOKENS * ROW];

static linnet_context *context;
static void check(linnet_status status) {
    if (status == LINNET_OK) return;
    fprintf(stderr, "attention: %s\n", linnet_last_error(context));
    exit(1);
}

/* Who runs the same shapes often keeps plan and workspace. */
static void attend(const linnet_attention_settings *settings, const linnet_attention_tensors *tensors) {
    linnet_attention_plan *plan;
    check(linnet_attention_plan_open(context, settings, &plan));
    void *workspace = aligned_alloc(64, (linnet_attention_workspace(plan) + 63) / 64 * 64);
    check(linnet_attention_forward(plan, tensors, workspace));
    free(workspace);
    linnet_attention_plan_close(plan);
}

int main(void) {
    check(linnet_context_open(NULL, &context));
    /* A value is its token's number: an output is the mean of the numbers of the tokens seen. */
    for (int i = 0; i < TOKENS * ROW; i++) query[i] = sinf((float)i);
    for (int i = 0; i < TOKENS * KEY_ROW; i++) key[i] = cosf(0.7f * (float)i), value[i] = (float)(i / KEY_ROW);

    const int64_t texts[] = {0, 100, 300}; /* tokens 0 to 99, and 100 to 299 */
    linnet_attention_settings s = linnet_attention_settings_default();
    s.heads = HEADS, s.key_value_heads = SHARED, s.key_size = SIZE;
    s.sequences = 2, s.query_offsets = texts, s.causal = true;
    linnet_attention_tensors t = {
        .size = sizeof t, .query.data = query, .key.data = key, .value.data = value, .output.data = output};
    attend(&s, &t);
    printf("tokens 0, 99: %.3f %.3f\n", (double)output[0], (double)output[99 * ROW]);
    printf("tokens 100, 299: %.3f %.3f\n", (double)output[100 * ROW], (double)output[299 * ROW]);

    /* The second text's last token again, over its keys 0 to 149 and 150 to 199, merged: the same. */
    static float parts[2][ROW], lse[2][HEADS];
    const int64_t one[] = {0, 1}, keys[2][2] = {{0, 150}, {0, 50}};
    s.sequences = 1, s.query_offsets = one;
    t.query.data = query + 299 * ROW;
    for (int part = 0; part < 2; part++) {
        s.key_offsets = keys[part];
        t.key.data = key + (100 + 150 * part) * KEY_ROW, t.value.data = value + (100 + 150 * part) * KEY_ROW;
        t.output.data = parts[part], t.log_sum_exp = lse[part];
        attend(&s, &t);
    }
    check(linnet_attention_merge(context, 1, HEADS, SIZE, parts[0], lse[0], parts[1], lse[1]));
    printf("token 299 in two parts: %.3f\n", (double)parts[0][0]);
    linnet_context_close(context);
}
