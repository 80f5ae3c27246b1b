/* The worst that attention can be given: nothing, huge logits, rows hidden whole, numbers that are not finite, denormal
 * numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "attention_run.h"

static scene plain(int64_t heads, int64_t shared, int64_t size, int64_t queries, int64_t keys) {
    scene s = {.set = linnet_attention_settings_default()};
    s.set.heads = heads;
    s.set.key_value_heads = shared;
    s.set.key_size = size;
    s.query_offsets[1] = queries;
    s.key_offsets[1] = keys;
    return s;
}

static void fill(scene *s, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    scene_fill(s, &random);
}

/* Against float64 on every instruction set. */
static void check(scene *s, double times) {
    scene_answer(s);
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        const double extra = scene_run(s, test_context(level, 2)), error = scene_error(s, extra);
        if (!(error <= times)) fail_msg("%s: %g times the tolerance", levels[level] ? levels[level] : "all", error);
    }
}

/* ---- nothing ---- */

/* No queries, no keys, neither: not even a tensor is needed for what is not there. */
static void test_nothing(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        scene s = plain(4, 2, 16, kind & 1 ? 40 : 0, kind & 2 ? 40 : 0);
        s.set.causal = kind == 3;
        fill(&s, 1);
        if (!s.queries) s.tensors.query.data = s.tensors.output.data = NULL;
        if (!s.keys) s.tensors.key.data = s.tensors.value.data = NULL;
        s.output_floats = s.queries ? s.output_floats : 0;
        check(&s, 1);
        for (int64_t i = 0; kind == 1 && i < s.queries * 4; i++) assert_true(s.tensors.log_sum_exp[i] == -INFINITY);
        scene_close(&s);
    }
}

/* One key: its value, bit for bit, whatever its score. */
static void test_one_key(void **state) {
    (void)state;
    for (int64_t queries = 1; queries <= 33; queries += 16) {
        scene s = plain(4, 2, 16, queries, 1);
        fill(&s, 2);
        scene_run(&s, test_context(LEVELS - 1, 1));
        const float *output = s.tensors.output.data, *value = s.tensors.value.data;
        for (int64_t i = 0; i < queries * 64; i++) assert_true(output[i] == value[i / 32 % 2 * 16 + i % 16]);
        scene_close(&s);
    }
}

/* ---- logits ---- */

/* Scores of about +-1e4, one key in eight with the very same largest one. */
static void test_huge_logits(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        scene s = plain(4, 2, 16, kind < 2 ? 200 : 2, 200);
        s.set.scale = 1;
        s.set.causal = true;
        s.set.soft_cap = kind % 2 ? 30 : 0;
        fill(&s, 3);
        float *query = s.tensors.query.data, *key = s.tensors.key.data;
        for (int64_t i = 0; i < s.queries * 64; i++) query[i] = 25;
        for (int64_t j = 0; j < 200; j++)
            for (int64_t i = 0; i < 32; i++) key[j * 32 + i] = j % 8 == 0 ? 25 : j % 3 ? -25 : -24;
        scene_answer(&s);
        /* Far apart or equal: what is rounded is the same for all keys. */
        for (int64_t r = 0; r < s.queries * 4; r++) s.allowed[r] = fmin(s.allowed[r], kind % 2 ? 2e-5 : 2e-6);
        for (int level = 0; level < LEVELS; level++) {
            if (!level_is_new(level)) continue;
            const double extra = scene_run(&s, test_context(level, 1));
            for (int64_t r = 0; r < s.queries * 4; r++)
                assert_true(fabs((double)s.tensors.log_sum_exp[r] - s.lse[r]) < 1e-6 * (1 + fabs(s.lse[r])));
            for (int64_t r = 0; r < s.queries * 4; r++) s.tensors.log_sum_exp[r] = (float)s.lse[r];
            assert_true(scene_error(&s, extra) <= 1);
        }
        scene_close(&s);
    }
}

/* Scores that grow or fall by 1000 from key to key: the maximum moves, or all but the first weights vanish. */
static void test_steep_bias(void **state) {
    (void)state;
    for (int sign = -1; sign <= 1; sign += 2) {
        scene s = plain(2, 1, 16, 60, 150);
        s.set.bias = true;
        fill(&s, 4);
        s.tensors.bias_head_stride = s.tensors.bias_row_stride = 0;
        float *bias = scene_take(&s, 150, sizeof(float));
        for (int64_t j = 0; j < 150; j++) bias[j] = (float)(sign * 1000 * j);
        s.tensors.bias = bias;
        check(&s, 1);
        scene_close(&s);
    }
}

/* A dense bias of -inf hides keys, and whole rows: zeros and -inf. */
static void test_infinite_bias(void **state) {
    (void)state;
    for (int64_t queries = 3; queries <= 103; queries += 50) {
        scene s = plain(3, 1, 16, queries, 160);
        s.set.bias = true;
        s.set.causal = queries == 53;
        fill(&s, 5);
        float *bias = scene_take(&s, queries * 160, sizeof(float));
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = 0; j < 160; j++)
                bias[i * 160 + j] = i % 3 == 0 || (i % 3 == 1 && j % 7 < 4) || (i % 3 == 2 && j < 130) ? -INFINITY : 1;
        s.tensors.bias = bias;
        s.tensors.bias_head_stride = 0;
        s.tensors.bias_row_stride = 160;
        check(&s, 1);
        scene_run(&s, test_context(LEVELS - 1, 2));
        const float *output = s.tensors.output.data;
        for (int64_t i = 0; i < 3 * 16; i++) assert_true(output[i] == 0); /* row 0 */
        assert_true(s.tensors.log_sum_exp[0] == -INFINITY);
        scene_close(&s);
    }
}

/* ---- what is not finite ---- */

typedef enum place { IN_QUERY, IN_KEY, IN_VALUE, PLACES } place;

/* One number of one token and head. */
static void spoil(scene *s, place where, int64_t token, int64_t head, float bad) {
    linnet_attention_tensors *t = &s->tensors;
    const linnet_tensor *tensor = where == IN_QUERY ? &t->query : where == IN_KEY ? &t->key : &t->value;
    const int64_t heads = where == IN_QUERY ? s->set.heads : scene_key_heads(s),
                  size = where == IN_VALUE ? scene_value_size(s) : s->set.key_size;
    set_element(tensor, s->set.type, element_at(tensor, heads, size, token, head) + 5, bad);
}

/* Rows that do not see it are the same, bit for bit; rows that see a NaN are NaN where it is theirs. */
static void check_spoiled(const scene *s, place where, int64_t token, int64_t head, float bad, const float *clean) {
    const int64_t values = scene_value_size(s), group = s->set.heads / scene_key_heads(s);
    const float *output = s->tensors.output.data;
    for (int64_t i = 0; i < s->queries; i++)
        for (int64_t h = 0; h < s->set.heads; h++) {
            const int64_t row = (i * s->set.heads + h) * values;
            const bool reached =
                where == IN_QUERY ? i == token && h == head : h / group == head && scene_sees(s, 0, h, i, token);
            if (!reached) {
                if (memcmp(output + row, clean + row, (size_t)values * sizeof(float)))
                    fail_msg("%g in %d of token %d reached query %d of head %d", (double)bad, (int)where, (int)token,
                             (int)i, (int)h);
            } else if (isnan(bad) && where != IN_QUERY) {
                assert_true(isnan(output[row + 5]));
            }
        }
}

static void spoil_everywhere(scene *s, uint64_t seed) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    linnet_context *context = test_context(LEVELS - 1, 2);
    fill(s, seed);
    const size_t bytes = (size_t)(s->queries * s->set.heads * scene_value_size(s)) * sizeof(float);
    scene_run(s, context);
    float *clean = malloc(bytes + 1);
    memcpy(clean, s->tensors.output.data, bytes);
    for (int where = 0; where < PLACES; where++)
        for (int i = 0; i < 3; i++)
            for (int64_t token = 1; token < (where == IN_QUERY ? s->queries : s->keys); token += 41) {
                const int64_t head = where == IN_QUERY ? 2 : 1;
                fill(s, seed);
                spoil(s, (place)where, token, head, bad[i]);
                scene_run(s, context);
                check_spoiled(s, (place)where, token, head, bad[i], clean);
                scene_close(s);
                s->held = 0;
            }
    free(clean);
}

static void test_not_finite(void **state) {
    (void)state;
    static const int64_t documents[] = {0, 50, 101, 170}, offsets[] = {0, 2, 3, 5, 7};
    static const int32_t tiles[] = {0, 3, 1, 0, 4, 2, 5};
    for (int kind = 0; kind < 9; kind++) {
        for (int64_t queries = 2; queries <= 170; queries += 168) {
            scene s = plain(4, 2, 24, queries, 170);
            s.set.type = kind % 2 ? LINNET_BF16 : LINNET_F32;
            s.set.value_size = 40;
            s.set.causal = kind >= 1 && kind <= 4;
            if (kind == 2 || kind == 5) s.set.window = 30;
            if (kind == 3) s.set.prefix = 20;
            if (kind == 4) s.set.soft_cap = 5;
            if (kind == 6) s.set.documents = 3;
            s.set.document_offsets = documents;
            if (kind == 7)
                s.set.blocks =
                    (linnet_block_mask){.query_tile = 50, .key_tile = 32, .offsets = offsets, .tiles = tiles};
            if (kind == 8 && queries == 170)
                s.set.neighbourhood = (linnet_neighbourhood){2, {17, 10}, {5, 3}, {1, 2}, {false, true}};
            spoil_everywhere(&s, 6);
        }
    }
}

/* ---- small numbers ---- */

/* Values near 1e-40 come out as their mean, to the spacing of denormal numbers; keys and queries so small weigh all
 * alike. */
static void test_denormal(void **state) {
    (void)state;
    scene s = plain(2, 1, 16, 40, 140);
    s.set.causal = true;
    fill(&s, 7);
    float *query = s.tensors.query.data, *key = s.tensors.key.data, *value = s.tensors.value.data;
    for (int64_t i = 0; i < 40 * 32; i++) query[i] *= 1e-40f;
    for (int64_t i = 0; i < 140 * 16; i++) key[i] *= 1e-40f;
    for (int64_t i = 0; i < 140 * 16; i++) value[i] *= 1e-40f;
    scene_answer(&s);
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        scene_run(&s, test_context(level, 1));
        const float *output = s.tensors.output.data;
        for (int64_t i = 0; i < 40 * 32; i++)
            assert_true(fabs((double)output[i] - s.want[i]) < 1e-5 * s.size[i] + 140 * 0x1p-149);
    }
    scene_close(&s);
}

/* Values times keys up to 1e36: sums before they are divided, of weights up to 2^8, stay finite. Scores rise by 5 from
 * key to key, just less than renews the maximum. */
static void test_huge_values(void **state) {
    (void)state;
    for (int64_t queries = 2; queries <= 60; queries += 58) {
        scene s = plain(2, 1, 16, queries, 150);
        s.set.bias = true;
        fill(&s, 8);
        float *value = s.tensors.value.data, *bias = scene_take(&s, 150, sizeof(float));
        for (int64_t i = 0; i < 150 * 16; i++) value[i] *= 1.6e33f;
        for (int64_t j = 0; j < 150; j++) bias[j] = (float)(5 * j);
        s.tensors.bias = bias;
        s.tensors.bias_head_stride = s.tensors.bias_row_stride = 0;
        check(&s, 1);
        scene_close(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing),    cmocka_unit_test(test_one_key),       cmocka_unit_test(test_huge_logits),
        cmocka_unit_test(test_steep_bias), cmocka_unit_test(test_infinite_bias), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_denormal),   cmocka_unit_test(test_huge_values),
    };
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
