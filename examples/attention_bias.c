/* The same bias said in three ways (ALiBi by slopes, as factors of rank 2, as a dense matrix), then masks: what each
 * visits.
 *
 *     cc attention_bias.c $(pkg-config --cflags --libs linnet) -lm -o attention_bias */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <linnet/attention.h>

enum { SIZE = 32, N = 1024 };
static float query[N * SIZE], key[N * SIZE], value[N * SIZE], output[N * SIZE];
static float query_factors[N][2], key_factors[N][2], dense[N][N];

static linnet_context *context;
static void check(linnet_status status) {
    if (status == LINNET_OK) return;
    fprintf(stderr, "attention_bias: %s\n", linnet_last_error(context));
    exit(1);
}

static void attend(const char *name, const linnet_attention_settings *settings,
                   const linnet_attention_tensors *tensors) {
    linnet_attention_plan *plan;
    linnet_attention_cost cost = {.size = sizeof cost};
    check(linnet_attention_plan_open(context, settings, &plan));
    check(linnet_attention_plan_cost(plan, &cost));
    void *workspace = aligned_alloc(64, (linnet_attention_workspace(plan) + 63) / 64 * 64);
    check(linnet_attention_forward(plan, tensors, workspace));
    printf("%-14s %.3f  pairs %.0f\n", name, (double)output[700 * SIZE], cost.flops / (4 * SIZE));
    free(workspace);
    linnet_attention_plan_close(plan);
}

int main(void) {
    const int64_t offsets[] = {0, N};
    const float slope = 0.125f;
    for (int i = 0; i < N * SIZE; i++)
        query[i] = sinf((float)i), key[i] = cosf(0.7f * (float)i), value[i] = (float)(i / SIZE);
    /* -slope (i - j) = (-slope i, slope) . (1, j): two numbers a token instead of N a token. */
    for (int i = 0; i < N; i++) {
        query_factors[i][0] = -slope * (float)i, query_factors[i][1] = slope;
        key_factors[i][0] = 1, key_factors[i][1] = (float)i;
        for (int j = 0; j < N; j++) dense[i][j] = -slope * fabsf((float)(i - j));
    }
    check(linnet_context_open(NULL, &context));
    linnet_attention_settings plain = linnet_attention_settings_default(), s;
    plain.heads = 1, plain.key_size = SIZE, plain.query_offsets = offsets, plain.causal = true;
    linnet_attention_tensors t = {
        .size = sizeof t, .query.data = query, .key.data = key, .value.data = value, .output.data = output};
    t.query_factors = query_factors[0], t.key_factors = key_factors[0];
    t.bias = dense[0], t.bias_row_stride = N;

    s = plain, s.alibi = &slope, attend("alibi", &s, &t);
    s = plain, s.rank = 2, attend("factors", &s, &t);
    s = plain, s.bias = true, attend("dense", &s, &t);
    s = plain, attend("causal", &s, &t);
    s = plain, s.window = 100, attend("window", &s, &t);
    s = plain, s.window = 100, s.prefix = 4, attend("and prefix", &s, &t);
    /* The tokens as an image of 32 x 32: each sees a square of 7 x 7. */
    s = plain, s.causal = false;
    s.neighbourhood = (linnet_neighbourhood){.axes = 2, .extent = {32, 32}, .window = {7, 7}};
    attend("neighbourhood", &s, &t);
    linnet_context_close(context);
}
