/* What must hold of attention whatever its numbers are: identities between runs of the operator (permuted, shifted,
 * split and merged keys, options that say the same in two ways). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "attention_run.h"

/* ---- scenes, packed, of one sequence ---- */

static scene plain(int64_t heads, int64_t shared, int64_t key_size, int64_t value_size, int64_t queries, int64_t keys) {
    scene s = {.set = linnet_attention_settings_default()};
    s.set.heads = heads;
    s.set.key_value_heads = shared;
    s.set.key_size = key_size;
    s.set.value_size = value_size;
    s.query_offsets[1] = queries;
    s.key_offsets[1] = keys;
    return s;
}

static void fill(scene *s, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    scene_fill(s, &random);
}

static int64_t outputs_of(const scene *s) {
    return s->queries * s->set.heads * scene_value_size(s);
}

typedef struct result {
    float *output, *lse;
    double extra;
} result;

static result run_at(scene *s, int level, int threads) {
    result r = {.extra = scene_run(s, test_context(level, threads))};
    const size_t bytes = (size_t)outputs_of(s) * sizeof(float),
                 rows = (size_t)(s->queries * s->set.heads) * sizeof(float);
    r.output = scene_take(s, outputs_of(s), sizeof(float));
    r.lse = scene_take(s, s->queries * s->set.heads, sizeof(float));
    memcpy(r.output, s->tensors.output.data, bytes);
    memcpy(r.lse, s->tensors.log_sum_exp, rows);
    return r;
}
static result run_scene(scene *s) {
    return run_at(s, LEVELS - 1, 2);
}

/* Against the answer of `s`, in its tolerance times `times`. */
static void close_to_answer(const scene *s, const result *r, double times) {
    const int64_t values = scene_value_size(s);
    for (int64_t row = 0; row < s->queries * s->set.heads; row++) {
        const double allowed = times * (s->allowed[row] + r->extra);
        if (s->lse[row] == -INFINITY)
            assert_true(r->lse[row] == -INFINITY);
        else
            assert_true(fabs((double)r->lse[row] - s->lse[row]) <= allowed / 2 + 0x1p-23 * fabs(s->lse[row]));
        for (int64_t i = row * values; i < (row + 1) * values; i++)
            assert_true(fabs((double)r->output[i] - s->want[i]) <= allowed * s->size[i]);
    }
}

static void same_bits(const scene *s, const result *a, const result *b) {
    assert_memory_equal(a->output, b->output, (size_t)outputs_of(s) * sizeof(float));
    assert_memory_equal(a->lse, b->lse, (size_t)(s->queries * s->set.heads) * sizeof(float));
}

/* ---- keys ---- */

static void move_row(const linnet_tensor *from, const linnet_tensor *to, int64_t row, int64_t to_row, int64_t floats) {
    memcpy((float *)to->data + to_row * floats, (const float *)from->data + row * floats,
           (size_t)floats * sizeof(float));
}

static void test_permutation(void **state) {
    (void)state;
    scene s = plain(4, 2, 40, 24, 150, 217);
    fill(&s, 1);
    scene_answer(&s);
    const linnet_tensor key = s.tensors.key, value = s.tensors.value;
    s.tensors.key.data = scene_take(&s, 217 * 80, sizeof(float));
    s.tensors.value.data = scene_take(&s, 217 * 48, sizeof(float));
    for (int64_t step = 1; step < 200; step += 60) { /* none shares a factor with 217 = 7 * 31 */
        for (int64_t j = 0; j < 217; j++) {
            move_row(&key, &s.tensors.key, j, (j * step + 5) % 217, 80);
            move_row(&value, &s.tensors.value, j, (j * step + 5) % 217, 48);
        }
        const result r = run_scene(&s);
        close_to_answer(&s, &r, 1);
    }
    scene_close(&s);
}

/* A constant added to all scores: the same output, lse larger by it. A power of two, so that little is rounded. */
static void test_shift(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        scene s = plain(3, 1, 32, 32, 70, 130);
        s.set.causal = true;
        fill(&s, 2);
        scene_answer(&s);
        const float shift = kind ? -64 : 512;
        s.set.bias = true;
        s.tensors.bias = scene_take(&s, 130, sizeof(float)); /* one row for all */
        for (int i = 0; i < 130; i++) ((float *)(uintptr_t)s.tensors.bias)[i] = shift;
        result r = run_scene(&s);
        for (int64_t i = 0; i < s.queries * s.set.heads; i++) {
            r.lse[i] -= shift;
            s.allowed[i] += 6 * 0x1p-23 * fabs((double)shift);
        }
        close_to_answer(&s, &r, 1);
        scene_close(&s);
    }
}

/* Keys from .. to - 1 of the scene, alone. */
static void part_of(const scene *s, int64_t from, int64_t to, bool causal, scene *part) {
    *part = *s;
    part->held = 0;
    part->set.causal = causal;
    part->key_offsets[1] = to - from;
    part->set.query_offsets = part->query_offsets;
    part->set.key_offsets = part->key_offsets;
    part->tensors.key.data = (float *)s->tensors.key.data + from * scene_key_heads(s) * s->set.key_size;
    part->tensors.value.data = (float *)s->tensors.value.data + from * scene_key_heads(s) * scene_value_size(s);
}

static void merge_part(const scene *s, const result *all, int64_t from, int64_t to, bool causal) {
    scene part;
    part_of(s, from, to, causal, &part);
    const result r = run_scene(&part);
    assert_int_equal(linnet_attention_merge(test_context(LEVELS - 1, 2), s->queries, s->set.heads, scene_value_size(s),
                                            all->output, all->lse, r.output, r.lse),
                     LINNET_OK);
    scene_close(&part);
}

/* Any split of the keys, in two and in pieces, merged: one pass. */
static void test_split(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        scene s = plain(4, 2, 16, 24, 9, 150);
        s.set.causal = causal;
        fill(&s, 3);
        scene_answer(&s);
        const int64_t last = causal ? 150 - 9 : 150; /* the first part is seen whole */
        for (int64_t split = 0; split <= last; split += SLOW ? 17 : 1) {
            scene part;
            part_of(&s, 0, split, false, &part);
            result r = run_scene(&part);
            merge_part(&s, &r, split, 150, causal);
            close_to_answer(&s, &r, 2);
            scene_close(&part);
        }
        for (int64_t piece = 1; piece < 60; piece += 20) {
            scene part;
            part_of(&s, 0, piece, false, &part);
            result r = run_scene(&part);
            int64_t at = piece;
            for (; at + piece <= last; at += piece) merge_part(&s, &r, at, at + piece, false);
            merge_part(&s, &r, at, 150, causal);
            close_to_answer(&s, &r, piece == 1 ? 4 : 2);
            scene_close(&part);
        }
        scene_close(&s);
    }
}

static void test_merge_alone(void **state) {
    (void)state;
    linnet_context *context = test_context(0, 1);
    /* A part that saw nothing changes nothing, on either side; what it holds does not matter. */
    float a[] = {1, 2}, b[] = {NAN, INFINITY}, lse = 3, none = -INFINITY;
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, a, &lse, b, &none), LINNET_OK);
    assert_true(a[0] == 1 && a[1] == 2 && lse == 3);
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, b, &none, a, &lse), LINNET_OK);
    assert_true(b[0] == 1 && b[1] == 2 && none == 3);
    /* Two that saw nothing. */
    float zero[] = {0, 0}, other[] = {0, 0}, first = -INFINITY, second = -INFINITY;
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, zero, &first, other, &second), LINNET_OK);
    assert_true(zero[0] == 0 && zero[1] == 0 && first == -INFINITY);
    /* Equal weights, huge ones, and what is not finite. */
    float c[] = {1, 3}, d[] = {3, 5}, x = 1e4f, y = 1e4f;
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, c, &x, d, &y), LINNET_OK);
    assert_true(c[0] == 2 && c[1] == 4 && fabsf(x - 1e4f - 0.6931472f) < 1e-3f);
    float e[] = {NAN, 1}, f[] = {1, 1}, v = 0, w = 0;
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, e, &v, f, &w), LINNET_OK);
    assert_true(isnan(e[0]) && e[1] == 1);
    float g[] = {1, 1}, p = NAN, q = 0;
    assert_int_equal(linnet_attention_merge(context, 1, 1, 2, g, &p, f, &q), LINNET_OK);
    assert_true(isnan(g[0]) && isnan(g[1]) && isnan(p));
    assert_int_equal(linnet_attention_merge(context, -1, 1, 2, g, &p, f, &q), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_attention_merge(context, 1, 0, 2, g, &p, f, &q), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_attention_merge(context, 1, 1, 0, g, &p, f, &q), LINNET_ERROR_ARGUMENT);
    assert_int_equal(linnet_attention_merge(context, 0, 1, 2, NULL, NULL, NULL, NULL), LINNET_OK);
}

/* ---- values ---- */

static void test_linearity(void **state) {
    (void)state;
    scene s = plain(4, 1, 64, 40, 110, 160);
    s.set.causal = true;
    s.set.soft_cap = 3;
    fill(&s, 4);
    const int64_t count = 160 * 40;
    float *value = s.tensors.value.data, *first = scene_take(&s, count, sizeof(float));
    memcpy(first, value, (size_t)count * sizeof(float));
    ln_random random;
    ln_random_seed(&random, 5);
    float *second = random_floats(&s, &random, count, 1);
    const result a = run_scene(&s);
    for (int64_t i = 0; i < count; i++) value[i] = 4 * first[i];
    const result four = run_scene(&s);
    for (int64_t i = 0; i < outputs_of(&s); i++) assert_true(four.output[i] == 4 * a.output[i]);
    memcpy(value, second, (size_t)count * sizeof(float));
    const result b = run_scene(&s);
    for (int64_t i = 0; i < count; i++) value[i] = 0.75f * first[i] - 2.5f * second[i];
    const result both = run_scene(&s);
    for (int64_t i = 0; i < outputs_of(&s); i++)
        assert_true(fabsf(both.output[i] - (0.75f * a.output[i] - 2.5f * b.output[i])) < 2e-5f + 4 * (float)both.extra);
    scene_close(&s);
}

/* ---- one mask said in two ways: the same bits ---- */

static void test_masks_that_hide_nothing(void **state) {
    (void)state;
    static const int64_t everything[] = {0, 300};
    for (int causal = 0; causal < 2; causal++) {
        for (int64_t queries = 3; queries <= 203; queries += 200) {
            scene s = plain(6, 2, 24, 32, queries, 300);
            s.set.causal = causal;
            fill(&s, 6);
            const result full = run_scene(&s);
            s.set.window = 300;
            const result window = run_scene(&s);
            same_bits(&s, &full, &window);
            s.set.window = INT64_MAX;
            const result far = run_scene(&s);
            same_bits(&s, &full, &far);
            s.set.window = 0;
            s.set.documents = 1;
            s.set.document_offsets = everything;
            const result document = run_scene(&s);
            same_bits(&s, &full, &document);
            s.set.documents = 0;
            for (int64_t key_tile = 32; key_tile <= 160; key_tile += 32) {
                int64_t offsets[301] = {0};
                int32_t tiles[3000];
                const int64_t lists = ln_ceil_div(queries, 50), each = ln_ceil_div(300, key_tile);
                for (int64_t l = 0; l < lists; l++) {
                    for (int64_t t = 0; t < each; t++) tiles[l * each + t] = (int32_t)t;
                    offsets[l + 1] = (l + 1) * each;
                }
                s.set.blocks =
                    (linnet_block_mask){.query_tile = 50, .key_tile = key_tile, .offsets = offsets, .tiles = tiles};
                const result blocks = run_scene(&s);
                same_bits(&s, &full, &blocks);
            }
            scene_close(&s);
        }
    }
}

static void test_prefix_over_all_is_full(void **state) {
    (void)state;
    scene s = plain(4, 4, 16, 16, 140, 140);
    fill(&s, 7);
    const result full = run_scene(&s);
    s.set.causal = true;
    s.set.window = 3;
    s.set.prefix = 140;
    const result prefix = run_scene(&s);
    same_bits(&s, &full, &prefix);
    scene_close(&s);
}

/* Windows as wide as the grid, in one, two and three dimensions. The order of keys is another: not the same bits. */
static void test_neighbourhood_of_all(void **state) {
    (void)state;
    static const linnet_neighbourhood grids[] = {{1, {210}, {210}, {0}, {false}},
                                                 {2, {14, 15}, {14, 15}, {1, 1}, {false, false}},
                                                 {3, {5, 6, 7}, {5, 6, 7}, {0}, {false, false, false}}};
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++) {
        scene s = plain(4, 2, 32, 16, 210, 210);
        fill(&s, 8);
        scene_answer(&s);
        s.set.neighbourhood = grids[i];
        const result r = run_scene(&s);
        close_to_answer(&s, &r, 1);
        scene_close(&s);
    }
    /* Causal in one dimension, and a window of that, is what the other settings say. */
    scene s = plain(4, 2, 32, 16, 210, 210);
    s.set.causal = true;
    s.set.window = 33;
    fill(&s, 9);
    scene_answer(&s);
    s.set.causal = false;
    s.set.window = 0;
    s.set.neighbourhood = (linnet_neighbourhood){1, {210}, {33}, {0}, {true}};
    const result r = run_scene(&s);
    close_to_answer(&s, &r, 1);
    scene_close(&s);
}

/* Documents of one sequence are sequences of a batch. */
static void test_documents_are_sequences(void **state) {
    (void)state;
    static const int64_t offsets[] = {0, 70, 71, 71, 200};
    scene s = plain(4, 2, 16, 16, 200, 200);
    s.set.sequences = 4;
    s.set.causal = true;
    memcpy(s.query_offsets, offsets, sizeof offsets);
    memcpy(s.key_offsets, offsets, sizeof offsets);
    fill(&s, 10);
    scene_answer(&s);
    const result batch = run_scene(&s);
    close_to_answer(&s, &batch, 1);
    s.set.sequences = 1;
    s.set.documents = 4;
    s.set.document_offsets = offsets;
    s.query_offsets[1] = s.key_offsets[1] = 200;
    const result documents = run_scene(&s);
    close_to_answer(&s, &documents, 1);
    scene_close(&s);
}

/* ---- one bias said in two ways ---- */

/* -a |i - j| for j <= i is (-a i, a) . (1, j): Liu et al. 2025, FlashBias. */
static void test_alibi_is_of_rank_two(void **state) {
    (void)state;
    scene s = plain(4, 2, 32, 32, 90, 160);
    static const float wanted;
    s.set.causal = true;
    s.set.alibi = &wanted;
    fill(&s, 11);
    scene_answer(&s);
    float *query = scene_take(&s, 90 * 4 * 2, sizeof(float)), *key = scene_take(&s, 160 * 2 * 2, sizeof(float));
    for (int64_t i = 0; i < 90 * 4; i++) {
        query[2 * i] = -s.set.alibi[i % 4] * (float)(i / 4 + 70);
        query[2 * i + 1] = s.set.alibi[i % 4];
    }
    for (int64_t j = 0; j < 160 * 2; j++) {
        key[2 * j] = 1;
        key[2 * j + 1] = (float)(j / 2);
    }
    s.set.alibi = NULL;
    s.set.rank = 2;
    s.tensors.query_factors = query;
    s.tensors.key_factors = key;
    for (int64_t r = 0; r < 90 * 4; r++) s.allowed[r] += 12 * 0x1p-24 * 2 * 160; /* terms larger than their sum */
    const result r = run_scene(&s);
    close_to_answer(&s, &r, 1);
    scene_close(&s);
}

/* Factors, a relative table and ALiBi, each written out as a dense bias. */
static void test_biases_written_out(void **state) {
    (void)state;
    static const float wanted;
    for (int kind = 0; kind < 3; kind++) {
        scene s = plain(4, 2, 16, 16, 60, 140);
        if (kind == 0) s.set.alibi = &wanted;
        if (kind == 1) s.set.rank = 5;
        if (kind == 2) s.set.relative = 40;
        fill(&s, 12);
        scene_answer(&s);
        float *dense = scene_take(&s, 4 * 60 * 140, sizeof(float));
        double size;
        for (int64_t h = 0; h < 4; h++)
            for (int64_t i = 0; i < 60; i++)
                for (int64_t j = 0; j < 140; j++)
                    dense[(h * 60 + i) * 140 + j] = (float)scene_bias(&s, 0, h, i, j, &size);
        s.set.alibi = NULL;
        s.set.rank = s.set.relative = 0;
        s.set.bias = true;
        s.tensors.bias = dense;
        s.tensors.bias_head_stride = 60 * 140;
        s.tensors.bias_row_stride = 140;
        const result r = run_scene(&s);
        close_to_answer(&s, &r, 1);
        scene_close(&s);
    }
}

/* A sink is one more key with value 0 whose score is given; a sink of -inf is none. */
static void test_sinks(void **state) {
    (void)state;
    scene s = plain(4, 2, 16, 16, 50, 100);
    s.set.causal = true;
    fill(&s, 13);
    const result none = run_scene(&s);
    s.set.sinks = true;
    static const float away[] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    s.tensors.sinks = away;
    const result far = run_scene(&s);
    same_bits(&s, &none, &far);
    static const float sinks[] = {0.5f, -2, 3, 100};
    s.tensors.sinks = sinks;
    scene_answer(&s);
    const result r = run_scene(&s);
    close_to_answer(&s, &r, 1);
    for (int64_t i = 0; i < 50 * 4; i++) {
        const double with = (double)none.lse[i], sink = (double)sinks[i % 4];
        assert_true(fabs((double)r.lse[i] - (fmax(with, sink) + log1p(exp(-fabs(with - sink))))) <
                    1e-5 * (1 + fabs(sink)));
    }
    scene_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_merge_alone),
        cmocka_unit_test(test_linearity),
        cmocka_unit_test(test_masks_that_hide_nothing),
        cmocka_unit_test(test_prefix_over_all_is_full),
        cmocka_unit_test(test_neighbourhood_of_all),
        cmocka_unit_test(test_documents_are_sequences),
        cmocka_unit_test(test_alibi_is_of_rank_two),
        cmocka_unit_test(test_biases_written_out),
        cmocka_unit_test(test_sinks),
    };
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
