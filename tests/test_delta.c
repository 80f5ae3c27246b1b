/* What the delta core does beside what test_mixers sees: rows that are others in disguise, so that each keeps its own
 * convention (decay before or after erasure, scale, left-out inputs); slices of columns where heads are few; backward
 * over more chunks than it keeps states of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "linnet/linnet.h"
#include "linnet/mixer.h"

enum { TOKENS = 75, HEADS = 2, KEYS = 24, VALUES = 40 };

typedef struct work {
    linnet_mixer_settings settings;
    linnet_mixer_tensors tensors;
    float *output, *state;
    int64_t outputs, states;
} work;

static float *take(int64_t count) {
    float *x = calloc((size_t)count + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static float *normals(int64_t rows, int64_t columns, uint64_t seed, bool unit) {
    float *x = take(rows * columns);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < rows; i++) {
        double square = 0;
        for (int64_t c = 0; c < columns; c++) {
            x[i * columns + c] = (float)ln_random_normal(&random);
            square += (double)(x[i * columns + c] * x[i * columns + c]);
        }
        for (int64_t c = 0; c < columns && unit; c++) x[i * columns + c] /= (float)sqrt(square);
    }
    return x;
}

static work open_work(const char *row, int64_t tokens, int64_t heads, int64_t keys, int64_t values) {
    work w = {.settings = linnet_mixer_settings_default(row)};
    assert_true(w.settings.size > 0);
    w.settings.heads = heads;
    w.settings.key_size = keys;
    w.settings.value_size = values;
    w.settings.tokens = tokens;
    w.outputs = tokens * heads * values;
    w.states = linnet_mixer_state_floats(&w.settings);
    w.tensors.size = sizeof w.tensors;
    w.tensors.output.data = w.output = take(w.outputs);
    w.tensors.state_in = w.tensors.state_out = w.state = take(w.states);
    for (int64_t i = 0; i < w.states; i++) w.state[i] = (float)(i % 7) * 0.1f;
    return w;
}

static void give(work *w, const char *input, float *values) {
    const int i = linnet_mixer_input_index(w->settings.name, input);
    assert_true(i >= 0);
    w->tensors.input[i].data = values;
}

static void close_work(work *w) {
    free(w->output);
    free(w->state);
}

static void run(work *w, int threads, linnet_mixer_form form) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &w->settings, form));
    assert_non_null(workspace);
    assert_int_equal(form == LINNET_MIXER_FORWARD ? linnet_mixer_forward(context, &w->settings, &w->tensors, workspace)
                     : form == LINNET_MIXER_STEP  ? linnet_mixer_step(context, &w->settings, &w->tensors, workspace)
                                                 : linnet_mixer_backward(context, &w->settings, &w->tensors, workspace),
                     LINNET_OK);
    free(workspace);
    linnet_context_close(context);
}

static void same(const float *a, const float *b, int64_t count) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        off += (double)((a[i] - b[i]) * (a[i] - b[i]));
        size += (double)(a[i] * a[i]);
    }
    assert_true(size > 0 && off <= 1e-10 * size);
}

typedef struct parts {
    float *query, *key, *value, *decay, *wide, *beta, *other, *a, *b, *strong;
} parts;

static parts open_parts(void) {
    const int64_t rows = TOKENS * HEADS;
    parts p = {.query = normals(rows, KEYS, 1, true),
               .key = normals(rows, KEYS, 2, true),
               .value = normals(rows, VALUES, 3, false),
               .decay = normals(rows, 1, 4, false),
               .beta = normals(rows, 1, 5, false),
               .wide = take(rows * KEYS),
               .other = normals(rows, KEYS, 6, true),
               .a = take(rows * KEYS),
               .b = take(rows * KEYS),
               .strong = take(rows * VALUES)};
    for (int64_t i = 0; i < rows; i++) {
        p.decay[i] = -fabsf(p.decay[i]) * (i % 5 ? 0.3f : 0);
        p.beta[i] = fminf(2, fabsf(p.beta[i]));
        for (int64_t c = 0; c < KEYS; c++) p.wide[i * KEYS + c] = p.decay[i];
        for (int64_t c = 0; c < VALUES; c++) p.strong[i * VALUES + c] = p.beta[i] * p.value[i * VALUES + c];
    }
    return p;
}

static void close_parts(parts *p) {
    float *const all[] = {p->query, p->key, p->value, p->decay, p->wide, p->beta, p->other, p->a, p->b, p->strong};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* Low rank: a = e^(decays) direction, b = -beta key, value beta v. */
static work as_low_rank(const char *row, parts *p, const float *direction, bool decayed) {
    work w = open_work(row, TOKENS, HEADS, KEYS, VALUES);
    for (int64_t i = 0; i < TOKENS * HEADS; i++)
        for (int64_t c = 0; c < KEYS; c++) {
            p->a[i * KEYS + c] = (decayed ? expf(p->decay[i]) : 1) * direction[i * KEYS + c];
            p->b[i * KEYS + c] = -p->beta[i] * p->key[i * KEYS + c];
        }
    give(&w, "query", p->query);
    give(&w, "key", p->key);
    give(&w, "value", p->strong);
    if (linnet_mixer_input_index(row, "decay") >= 0) give(&w, "decay", p->wide);
    give(&w, "a", p->a);
    give(&w, "b", p->b);
    run(&w, 2, LINNET_MIXER_FORWARD);
    return w;
}

static work as_row(const char *row, parts *p, bool wide) {
    work w = open_work(row, TOKENS, HEADS, KEYS, VALUES);
    give(&w, "query", p->query);
    give(&w, "key", p->key);
    give(&w, "value", p->value);
    give(&w, "beta", p->beta);
    if (linnet_mixer_input_index(row, "decay") >= 0) give(&w, "decay", wide ? p->wide : p->decay);
    return w;
}

static void expect_equal(work *a, work *b) {
    same(a->output, b->output, a->outputs);
    same(a->state, b->state, a->states);
    close_work(a);
    close_work(b);
}

/* A decay for each channel that is the same for all; decay before erasure. */
static void gated_is_kda_is_low_rank(void **state) {
    (void)state;
    parts p = open_parts();
    work gated = as_row("gated_delta_rule", &p, false), kda = as_row("kda", &p, true),
         low = as_low_rank("dplr", &p, p.key, true);
    run(&gated, 2, LINNET_MIXER_FORWARD);
    run(&kda, 2, LINNET_MIXER_FORWARD);
    same(gated.output, kda.output, gated.outputs);
    close_work(&kda);
    expect_equal(&gated, &low);
    close_parts(&p);
}

/* Comba reads before the decay, and along its key where no direction is given. */
static void comba_reads_undecayed(void **state) {
    (void)state;
    parts p = open_parts();
    work comba = as_row("comba", &p, false);
    run(&comba, 2, LINNET_MIXER_FORWARD);
    work low = as_low_rank("dplr", &p, p.key, false);
    expect_equal(&comba, &low);
    comba = as_row("comba", &p, false);
    give(&comba, "direction", p.other);
    run(&comba, 2, LINNET_MIXER_FORWARD);
    low = as_low_rank("dplr", &p, p.other, false);
    expect_equal(&comba, &low);
    close_parts(&p);
}

/* One step a token is the gated rule, with its scale; RWKV-7's scale is 1. */
static void scales_are_kept(void **state) {
    (void)state;
    parts p = open_parts();
    work gated = as_row("gated_delta_rule", &p, false), product = as_row("gated_delta_product", &p, false);
    assert_int_equal(product.settings.slots, 0);
    gated.settings.scale = product.settings.scale = 0.37f;
    product.settings.slots = 1;
    run(&gated, 2, LINNET_MIXER_FORWARD);
    run(&product, 2, LINNET_MIXER_FORWARD);
    expect_equal(&gated, &product);
    work dplr = as_low_rank("dplr", &p, p.key, true), rwkv7 = as_low_rank("rwkv7", &p, p.key, true);
    for (int64_t i = 0; i < dplr.outputs; i++) dplr.output[i] *= sqrtf(KEYS);
    expect_equal(&dplr, &rwkv7);
    memset(p.wide, 0, (size_t)(TOKENS * HEADS * KEYS) * sizeof(float));
    memset(p.decay, 0, (size_t)(TOKENS * HEADS) * sizeof(float));
    work rule = as_row("delta_rule", &p, false), iplr = as_low_rank("iplr", &p, p.key, true);
    run(&rule, 2, LINNET_MIXER_FORWARD);
    expect_equal(&rule, &iplr);
    close_parts(&p);
}

/* One head on several threads: its columns are divided, and no bit changes. */
static void slices_change_no_bit(void **state) {
    (void)state;
    enum { LONG = 130, SIZE = 128 };
    const char *const rows[] = {"gated_delta_rule", "kda"};
    float *query = normals(LONG, SIZE, 1, true), *key = normals(LONG, SIZE, 2, true),
          *value = normals(LONG, SIZE, 3, false), *decay = normals(LONG, SIZE, 4, false), *beta = take(LONG);
    uint16_t *half = calloc(3 * LONG * SIZE, sizeof *half);
    assert_non_null(half);
    for (int i = 0; i < LONG * SIZE; i++) decay[i] = -0.1f * fabsf(decay[i]);
    for (int i = 0; i < LONG; i++) beta[i] = 0.5f;
    for (int i = 0; i < LONG * SIZE; i++) {
        const float *const from[] = {query, key, value};
        for (int k = 0; k < 3; k++) {
            uint32_t bits;
            memcpy(&bits, from[k] + i, sizeof bits);
            half[k * LONG * SIZE + i] = (uint16_t)(bits >> 16);
        }
    }
    for (int r = 0; r < 4; r++)
        for (int64_t tokens = 1; tokens <= LONG; tokens += 43) {
            float *first = NULL;
            for (int threads = 1; threads <= 5; threads++) {
                work w = open_work(rows[r % 2], tokens, 1, SIZE, SIZE);
                give(&w, "query", r < 2 ? query : (void *)half);
                give(&w, "key", r < 2 ? key : (void *)(half + LONG * SIZE));
                give(&w, "value", r < 2 ? value : (void *)(half + 2 * LONG * SIZE));
                give(&w, "decay", decay);
                give(&w, "beta", beta);
                w.settings.type = r < 2 ? LINNET_F32 : LINNET_BF16;
                run(&w, threads, LINNET_MIXER_FORWARD);
                if (first) assert_memory_equal(first, w.output, (size_t)w.outputs * sizeof(float));
                if (!first) {
                    first = take(w.outputs);
                    memcpy(first, w.output, (size_t)w.outputs * sizeof(float));
                }
                close_work(&w);
            }
            free(first);
        }
    float *const all[] = {query, key, value, decay, beta};
    for (int i = 0; i < 5; i++) free(all[i]);
    free(half);
}

/* More chunks than states are kept of: gradients as of one segment, to rounding. */
static void long_sequences_keep_few_states(void **state) {
    (void)state;
    enum { LONG = 1300, SIZE = 16 };
    float *input[5] = {normals(LONG, SIZE, 1, true), normals(LONG, SIZE, 2, true), normals(LONG, SIZE, 3, false),
                       normals(LONG, 1, 4, false), take(LONG)};
    float *gradient[2][5], *weight = normals(LONG, SIZE, 5, false);
    for (int i = 0; i < LONG; i++) {
        input[3][i] = -0.1f * fabsf(input[3][i]);
        input[4][i] = 0.7f;
    }
    for (int way = 0; way < 2; way++) { /* chunks of 16: 82; of 256: 6 */
        work w = open_work("gated_delta_rule", LONG, 1, SIZE, SIZE);
        w.settings.chunk = way ? 256 : 16;
        w.tensors.output_gradient.data = weight;
        w.tensors.state_out = NULL;
        for (int i = 0; i < 5; i++) {
            w.tensors.input[i].data = input[i];
            w.tensors.input_gradient[i].data = gradient[way][i] = take(LONG * SIZE);
        }
        run(&w, 1 + way, LINNET_MIXER_BACKWARD);
        close_work(&w);
    }
    for (int i = 0; i < 5; i++) {
        same(gradient[0][i], gradient[1][i], i < 3 ? LONG * SIZE : LONG);
        free(input[i]);
        free(gradient[0][i]);
        free(gradient[1][i]);
    }
    free(weight);
}

/* A step of more small steps than a chunk has rows, in bf16. */
static void many_steps_a_token(void **state) {
    (void)state;
    enum { SIZE = 32, SLOTS = 40 };
    float *query = normals(1, SIZE, 1, true), *key = normals(SLOTS, SIZE, 2, true),
          *value = normals(SLOTS, SIZE, 3, false), *decay = take(1), *beta = take(SLOTS);
    uint16_t half[3][SLOTS * SIZE];
    for (int i = 0; i < SLOTS * SIZE; i++)
        for (int k = 0; k < 3; k++) {
            float *from = k == 0 ? query + i % SIZE : (k == 1 ? key : value) + i;
            uint32_t bits;
            memcpy(&bits, from, sizeof bits);
            half[k][i] = (uint16_t)(bits >> 16);
            bits &= 0xffff0000;
            memcpy(from, &bits, sizeof bits);
        }
    for (int i = 0; i < SLOTS; i++) beta[i] = 0.5f;
    work w[2];
    for (int typed = 0; typed < 2; typed++) {
        w[typed] = open_work("gated_delta_product", 1, 1, SIZE, SIZE);
        w[typed].settings.slots = SLOTS;
        w[typed].settings.type = typed ? LINNET_BF16 : LINNET_F32;
        give(&w[typed], "query", typed ? (void *)half[0] : query);
        give(&w[typed], "key", typed ? (void *)half[1] : key);
        give(&w[typed], "value", typed ? (void *)half[2] : value);
        give(&w[typed], "decay", decay);
        give(&w[typed], "beta", beta);
        run(&w[typed], 1, LINNET_MIXER_STEP);
    }
    for (int64_t i = 0; i < w[0].states; i++) assert_true(fabsf(w[0].state[i] - w[1].state[i]) < 0.02f);
    for (int64_t i = 0; i < SIZE; i++) assert_true(fabsf(w[0].output[i] - w[1].output[i]) < 0.02f);
    close_work(&w[0]);
    close_work(&w[1]);
    float *const all[] = {query, key, value, decay, beta};
    for (int i = 0; i < 5; i++) free(all[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(gated_is_kda_is_low_rank),
                                       cmocka_unit_test(comba_reads_undecayed),
                                       cmocka_unit_test(scales_are_kept),
                                       cmocka_unit_test(slices_change_no_bit),
                                       cmocka_unit_test(long_sequences_keep_few_states),
                                       cmocka_unit_test(many_steps_a_token)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
