/* Attention over pages, each precision: its kernels against float64 through the driver that composes them, and timed as
 * a prompt (percent of the float32 peak) and as decoding from a cache beyond the last level (percent of reading). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernel/page.h"
#include "kernel_check.h"
#include "memory/pages.h"
#include "mixer/attention.h"

enum { HEADS = 8, GROUPS = 2, SIZE = 64, TOKENS = 77, PROMPT = 512, DEPTH = 16384, TIMED_LAYERS = 16 };

static const linnet_type precisions[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0,
                                         LINNET_Q5,  LINNET_Q4,  LINNET_Q3,   LINNET_Q2};

typedef struct scene {
    check *c;
    ln_attention attention;
    ln_memory *memory;
    float *query, *key, *value, *output; /* [tokens, heads * SIZE] */
    void *workspace;
    int64_t tokens, layer;
} scene;

static float *random_rows(check *c, int64_t count) {
    float *x = ln_allocate(c->context, (uint64_t)count, sizeof *x, "rows");
    ln_random random;
    ln_random_seed(&random, (uint64_t)count);
    for (int64_t i = 0; x && i < count; i++) x[i] = (float)ln_random_normal(&random);
    return x;
}

/* `tokens` rows at once, `depth` tokens held before. */
static bool open_scene(check *c, linnet_type precision, int64_t layers, int64_t tokens, int64_t depth, scene *s) {
    *s = (scene){.c = c, .tokens = tokens};
    s->attention = (ln_attention){.mask = {.causal = true},
                                  .heads = HEADS,
                                  .key_value_heads = GROUPS,
                                  .key_size = SIZE,
                                  .value_size = SIZE,
                                  .scale = 0.125f};
    const int64_t most = depth > tokens ? depth : tokens;
    const ln_memory_shape shape = {.layers = layers,
                                   .key_value_heads = GROUPS,
                                   .key_size = SIZE,
                                   .value_size = SIZE,
                                   .precision = precision,
                                   .capacity = depth + tokens,
                                   .piece = most};
    s->query = random_rows(c, tokens * HEADS * SIZE);
    s->output = random_rows(c, tokens * HEADS * SIZE);
    s->key = random_rows(c, most * GROUPS * SIZE);
    s->value = random_rows(c, most * GROUPS * SIZE + 1);
    s->workspace = ln_allocate(
        c->context, ln_attention_workspace(&c->kernels, ln_team_size(c->context->team), &s->attention, 1, tokens), 1,
        "workspace");
    if (!s->query || !s->output || !s->key || !s->value || !s->workspace ||
        ln_memory_open(c->context, &shape, &s->memory) != LINNET_OK)
        return false;
    for (int64_t layer = 0; depth && layer < layers; layer++)
        ln_memory_append(s->memory, c->context->team, layer, depth, s->key, GROUPS * SIZE, s->value, GROUPS * SIZE);
    if (depth) ln_memory_commit(s->memory, depth);
    for (int64_t layer = 0; layer < layers; layer++)
        ln_memory_append(s->memory, c->context->team, layer, tokens, s->key, GROUPS * SIZE, s->value, GROUPS * SIZE);
    return true;
}

static void close_scene(scene *s) {
    linnet_context *context = s->c->context;
    ln_memory_close(s->memory);
    ln_release(context, s->workspace);
    ln_release(context, s->value);
    ln_release(context, s->key);
    ln_release(context, s->output);
    ln_release(context, s->query);
}

static void run_layer(void *argument) {
    scene *s = argument;
    const ln_page_view view = ln_memory_view(s->memory, s->layer);
    const ln_attention_sequence sequence = {.view = view,
                                            .keys = ln_memory_position(s->memory) + s->tokens,
                                            .tokens = s->tokens,
                                            .position = ln_memory_position(s->memory),
                                            .query = s->query,
                                            .output = s->output,
                                            .query_stride = HEADS * SIZE,
                                            .query_head_stride = SIZE,
                                            .output_stride = HEADS * SIZE,
                                            .output_head_stride = SIZE};
    ln_attention_run(&s->c->kernels, s->c->context->team, &s->attention, &sequence, 1, s->workspace);
}

static void run_layers(void *argument) {
    scene *s = argument;
    for (s->layer = 0; s->layer < TIMED_LAYERS; s->layer++) run_layer(s);
    s->layer = 0;
}

/* What a row of `precision` keeps of x. */
static void stored(linnet_type precision, const float *x, float *kept) {
    static unsigned char page[LN_PAGE_TOKENS * SIZE * 2 * sizeof(float)];
    ln_page_layout layout;
    ln_page_layout_of(precision, precision, SIZE, SIZE, &layout);
    ln_page_encode_token(&layout, page, 0, x, NULL);
    ln_page_decode_token(&layout, page, 0, kept, NULL);
}

/* Largest error over the heads of one query row, in units of 1e-5 of the values' size. */
static double row_error(const scene *s, linnet_type precision, int64_t row) {
    double worst = 0;
    for (int head = 0; head < HEADS; head++) {
        const int shared = head / (HEADS / GROUPS);
        const float *q = s->query + (row * HEADS + head) * SIZE;
        double sum = 0, want[SIZE] = {0};
        for (int64_t t = 0; t <= row; t++) {
            float k[SIZE], v[SIZE];
            stored(precision, s->key + (t * GROUPS + shared) * SIZE, k);
            stored(precision, s->value + (t * GROUPS + shared) * SIZE, v);
            double score = 0;
            for (int i = 0; i < SIZE; i++) score += (double)q[i] * (double)k[i];
            const double weight = exp(score * (double)s->attention.scale);
            sum += weight;
            for (int i = 0; i < SIZE; i++) want[i] += weight * (double)v[i];
        }
        for (int i = 0; i < SIZE; i++) {
            const double error = fabs((double)s->output[(row * HEADS + head) * SIZE + i] - want[i] / sum) / 1e-5;
            if (!(error <= worst)) worst = error;
        }
    }
    return worst;
}

static double largest_error(check *c, linnet_type precision) {
    scene s;
    double worst = NAN;
    if (open_scene(c, precision, 1, TOKENS, 0, &s)) {
        run_layer(&s);
        worst = 0;
        for (int64_t row = 0; row < TOKENS; row++) {
            const double error = row_error(&s, precision, row);
            if (!(error <= worst)) worst = error;
        }
    }
    close_scene(&s);
    return worst;
}

static void time_prompt(check *c, linnet_type precision) {
    scene s;
    if (open_scene(c, precision, 1, PROMPT, 0, &s)) {
        const double operations = 4.0 * HEADS * SIZE * PROMPT * (PROMPT + 1) / 2;
        check_speed(c, "prompt of 512", LN_PEAK_F32, operations, check_time(run_layer, &s));
    }
    close_scene(&s);
}

static void time_decoding(check *c, linnet_type precision) {
    scene s;
    if (open_scene(c, precision, TIMED_LAYERS, 1, DEPTH, &s)) {
        ln_page_layout layout;
        ln_page_layout_of(precision, precision, SIZE, SIZE, &layout);
        const double bytes = (double)layout.bytes / LN_PAGE_TOKENS * GROUPS * (DEPTH + 1) * TIMED_LAYERS;
        check_speed(c, "decoding after 16384", LN_PEAK_READ, bytes, check_time(run_layers, &s));
    }
    close_scene(&s);
}

static void check_bf16(check *c) {
    const ln_attend_bf16 *kernels = &c->kernels.attend.bf16;
    for (size_t i = 0; kernels->name && i < sizeof precisions / sizeof *precisions; i++) {
        const char *variant = linnet_type_name(precisions[i]);
        if (precisions[i] == LINNET_Q4_0 || ln_low_bits(precisions[i])) continue; /* not for these kernels */
        if (!check_begin(c, kernels->name, variant)) continue;
        check_error(c, kernels->name, variant, check_attend_bf16_slot(kernels, precisions[i]));
        for (int64_t size = 64; c->bench && i == 0 && size <= 128; size *= 2) check_attend_bf16_speed(c, kernels, size);
        check_end(c);
    }
}

void check_attend(check *c) {
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        char kernel[96];
        const ln_attend_kernels *kernels = &c->kernels.attend;
        snprintf(kernel, sizeof kernel, "%s",
                 kernels->integer.scores[precisions[i]] ? kernels->integer.name : kernels->name);
        const char *variant = linnet_type_name(precisions[i]);
        if (!check_begin(c, kernel, variant)) continue;
        check_error(c, kernel, variant, largest_error(c, precisions[i]));
        if (c->bench) {
            time_prompt(c, precisions[i]);
            time_decoding(c, precisions[i]);
        }
        check_end(c);
    }
    check_bf16(c);
}
