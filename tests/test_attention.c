/* Exact attention against float64 on the values that the memory holds: every precision and instruction set, head sizes,
 * groups, windows, soft caps, the ways a prompt can be cut, threads, huge logits, and values that are not finite. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/random.h"
#include "memory/pages.h"
#include "mixer/attention.h"

typedef struct problem {
    ln_attention attention;
    linnet_type precision;
    int64_t tokens, piece;
    float *query, *keys, *values, *output; /* [tokens, heads * size] */
    double *expected, *sizes;              /* sizes: sum of weight |value| of an output element */
} problem;

static void fill(float *x, int64_t n, uint64_t seed, float scale) {
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = scale * (float)ln_random_normal(&random);
}

static problem make_problem(const ln_attention *attention, linnet_type precision, int64_t tokens, int64_t piece) {
    problem p = {.attention = *attention, .precision = precision, .tokens = tokens, .piece = piece};
    const int64_t q = tokens * attention->heads * attention->key_size,
                  o = tokens * attention->heads * attention->value_size,
                  k = tokens * attention->key_value_heads * attention->key_size,
                  v = tokens * attention->key_value_heads * attention->value_size;
    p.query = malloc((size_t)q * sizeof(float));
    p.keys = malloc((size_t)k * sizeof(float));
    p.values = malloc((size_t)v * sizeof(float));
    p.output = malloc((size_t)o * sizeof(float));
    p.expected = malloc((size_t)o * sizeof(double));
    p.sizes = malloc((size_t)o * sizeof(double));
    fill(p.query, q, 1, 1);
    fill(p.keys, k, 2, 1);
    fill(p.values, v, 3, 1);
    return p;
}

static void free_problem(problem *p) {
    free(p->query);
    free(p->keys);
    free(p->values);
    free(p->output);
    free(p->expected);
    free(p->sizes);
}

/* What a row becomes in the memory. */
static void through_format(linnet_type precision, const float *from, double *to, int64_t n) {
    float padded[LN_HEAD_MOST] = {0}, back[LN_HEAD_MOST];
    unsigned char codes[4 * LN_HEAD_MOST];
    const ln_format *format = ln_format_of(precision);
    const int64_t whole = (n + format->block - 1) / format->block * format->block;
    memcpy(padded, from, (size_t)n * sizeof *from);
    format->encode(padded, codes, whole);
    format->decode(codes, back, whole);
    for (int64_t i = 0; i < n; i++) to[i] = (double)back[i];
}

static void oracle_row(const problem *p, const double *keys, const double *values, int64_t t, int64_t head) {
    const ln_attention *a = &p->attention;
    const int64_t group = a->heads / a->key_value_heads, shared = head / group;
    const int64_t first = a->mask.window && t - a->mask.window + 1 > 0 ? t - a->mask.window + 1 : 0;
    const float *query = p->query + (t * a->heads + head) * a->key_size;
    double *score = malloc((size_t)(t + 1) * sizeof *score), most = -INFINITY, sum = 0;
    for (int64_t k = first; k <= t; k++) {
        const double *key = keys + (k * a->key_value_heads + shared) * a->key_size;
        double s = 0;
        for (int64_t i = 0; i < a->key_size; i++) s += (double)query[i] * key[i];
        s *= (double)a->scale;
        if (a->soft_cap != 0) s = (double)a->soft_cap * tanh(s / (double)a->soft_cap);
        score[k] = s;
        most = fmax(most, s);
    }
    double *to = p->expected + (t * a->heads + head) * a->value_size, *sizes = p->sizes + (to - p->expected);
    memset(to, 0, (size_t)a->value_size * sizeof *to);
    memset(sizes, 0, (size_t)a->value_size * sizeof *sizes);
    for (int64_t k = first; k <= t; k++) sum += exp(score[k] - most);
    for (int64_t k = first; k <= t; k++) {
        const double weight = exp(score[k] - most) / sum;
        const double *value = values + (k * a->key_value_heads + shared) * a->value_size;
        for (int64_t i = 0; i < a->value_size; i++) {
            to[i] += weight * value[i];
            sizes[i] += weight * fabs(value[i]);
        }
    }
    free(score);
}

static void solve_exactly(const problem *p) {
    const ln_attention *a = &p->attention;
    const int64_t rows = p->tokens * a->key_value_heads;
    double *keys = malloc((size_t)(rows * a->key_size) * sizeof *keys);
    double *values = malloc((size_t)(rows * a->value_size) * sizeof *values);
    for (int64_t r = 0; r < rows; r++) {
        through_format(p->precision, p->keys + r * a->key_size, keys + r * a->key_size, a->key_size);
        through_format(p->precision, p->values + r * a->value_size, values + r * a->value_size, a->value_size);
    }
    for (int64_t t = 0; t < p->tokens; t++)
        for (int64_t head = 0; head < a->heads; head++) oracle_row(p, keys, values, t, head);
    free(keys);
    free(values);
}

static linnet_context *open_context(int threads, const char *cpu) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = cpu;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

enum { GUARD = 37 };

/* Feeds pieces of p->piece tokens. The pool is filled with NaN first, so that a stale byte that is used shows; the
 * output has guards between its rows. */
static void solve(const problem *p, int threads, const char *cpu) {
    linnet_context *context = open_context(threads, cpu);
    ln_kernels kernels;
    ln_kernels_choose(context->cpu, &kernels);
    const ln_attention *a = &p->attention;
    ln_memory_shape shape = {.layers = 1,
                             .key_value_heads = a->key_value_heads,
                             .key_size = a->key_size,
                             .value_size = a->value_size,
                             .window = &a->mask.window,
                             .precision = p->precision,
                             .capacity = p->tokens + 7,
                             .piece = p->piece};
    ln_memory *memory;
    assert_int_equal(ln_memory_open(context, &shape, &memory), LINNET_OK);
    const ln_page_view empty = ln_memory_view(memory, 0);
    for (int64_t s = 0; s < empty.slot_count; s++)
        for (int64_t h = 0; h < a->key_value_heads; h++)
            memset((void *)(uintptr_t)(empty.slots[s] + (uint64_t)h * empty.head_stride), 0xff, empty.layout.bytes);
    const uint64_t bytes = ln_attention_workspace(&kernels, threads, a, 1, p->piece);
    unsigned char *workspace = ln_allocate(context, bytes + 64, 1, "workspace");
    memset(workspace, 0xff, bytes + 64);
    const int64_t q = a->heads * a->key_size, o = a->heads * a->value_size, stride = o + GUARD;
    float *output = malloc((size_t)(p->piece * stride) * sizeof *output);
    for (int64_t i = 0; i < p->piece * stride; i++) output[i] = 12345;
    for (int64_t t = 0; t < p->tokens; t += p->piece) {
        const int64_t n = p->tokens - t < p->piece ? p->tokens - t : p->piece;
        ln_memory_append(memory, context->team, 0, n, p->keys + t * a->key_value_heads * a->key_size,
                         a->key_value_heads * a->key_size, p->values + t * a->key_value_heads * a->value_size,
                         a->key_value_heads * a->value_size);
        const ln_page_view view = ln_memory_view(memory, 0);
        assert_int_equal(view.end, t + n);
        const ln_attention_sequence sequence = {.view = view,
                                                .keys = t + n,
                                                .tokens = n,
                                                .position = t,
                                                .query = p->query + t * q,
                                                .output = output,
                                                .query_stride = q,
                                                .query_head_stride = a->key_size,
                                                .output_stride = stride,
                                                .output_head_stride = a->value_size};
        ln_attention_run(&kernels, context->team, a, &sequence, 1, workspace);
        ln_memory_commit(memory, n);
        for (int64_t i = 0; i < n; i++) {
            memcpy(p->output + (t + i) * o, output + i * stride, (size_t)o * sizeof *output);
            for (int64_t g = o; g < stride; g++) assert_true(output[i * stride + g] == 12345);
        }
    }
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + (uint64_t)i], 0xff);
    free(output);
    ln_release(context, workspace);
    ln_memory_close(memory);
    linnet_context_close(context);
}

/* Largest error, in units of the size of what was summed. */
static double error_of(const problem *p) {
    double worst = 0;
    const int64_t n = p->tokens * p->attention.heads * p->attention.value_size;
    for (int64_t i = 0; i < n; i++) {
        const double error = fabs((double)p->output[i] - p->expected[i]) / (p->sizes[i] + 1e-30);
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

static const char *const levels[] = {"portable", "avx2", "avx512", "all"};
static const linnet_type precisions[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0};
enum { LEVELS = 4, PRECISIONS = 5 };

/* Levels that this processor reaches no further are the one before again. */
static bool level_is_new(int level) {
    unsigned mask, before = 0;
    ln_cpu_mask(levels[level], &mask);
    if (level > 0) ln_cpu_mask(levels[level - 1], &before);
    return level == 0 || (mask & ln_cpu_detect()) != (before & ln_cpu_detect());
}

static void check(const ln_attention *a, int64_t tokens, int64_t piece, double tolerance) {
    for (int i = 0; i < PRECISIONS; i++) {
        problem p = make_problem(a, precisions[i], tokens, piece);
        solve_exactly(&p);
        for (int level = 0; level < LEVELS; level++) {
            if (!level_is_new(level)) continue;
            solve(&p, 2, levels[level]);
            const double error = error_of(&p);
            /* Integer products: queries and weights have 16 bits of the row's largest. */
            ln_kernels kernels;
            unsigned mask;
            ln_cpu_mask(levels[level], &mask);
            ln_kernels_choose(mask & ln_cpu_detect(), &kernels);
            const double allowed = kernels.attend.integer.scores[precisions[i]] ? fmax(tolerance, 2e-4) : tolerance;
            if (!(error <= allowed)) {
                fail_msg("%s %s: heads %d/%d sizes %d/%d window %d cap %g tokens %d piece %d: error %g", levels[level],
                         linnet_type_name(precisions[i]), (int)a->heads, (int)a->key_value_heads, (int)a->key_size,
                         (int)a->value_size, (int)a->mask.window, (double)a->soft_cap, (int)tokens, (int)piece, error);
            }
        }
        free_problem(&p);
    }
}

static ln_attention shape_of(int64_t heads, int64_t key_value_heads, int64_t key_size, int64_t value_size) {
    return (ln_attention){.heads = heads,
                          .key_value_heads = key_value_heads,
                          .key_size = key_size,
                          .value_size = value_size,
                          .scale = 1 / sqrtf((float)key_size),
                          .mask = {.causal = true}};
}

static void test_sizes(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{16, 16},   {64, 64},   {80, 80}, {96, 96}, {128, 128},
                                       {256, 256}, {192, 128}, {8, 40},  {24, 56}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const ln_attention a = shape_of(2, 1, sizes[i][0], sizes[i][1]);
        check(&a, 141, 141, 2e-6);
        check(&a, 70, 33, 2e-6);
    }
}

static void test_groups(void **state) {
    (void)state;
    static const int64_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 100};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        const ln_attention a = shape_of(2 * groups[i], 2, 16, 24);
        check(&a, 150, 150, 2e-6);
        check(&a, 40, 1, 2e-6);
    }
}

static void test_lengths(void **state) {
    (void)state;
    const ln_attention a = shape_of(4, 2, 16, 16);
    for (int64_t tokens = 1; tokens <= 300; tokens += tokens < 35 ? 3 : 31) {
        check(&a, tokens, tokens, 2e-6);
        check(&a, tokens, 13, 2e-6);
    }
}

static void test_window_and_cap(void **state) {
    (void)state;
    static const int64_t windows[] = {1, 2, 31, 32, 33, 64, 100, 128, 129, 1000};
    static const int64_t pieces[] = {300, 50, 1};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        for (size_t j = 0; j < sizeof pieces / sizeof *pieces; j++) {
            ln_attention a = shape_of(3, 1, 16, 16);
            a.mask.window = windows[i];
            a.soft_cap = (i + j) % 2 ? 2.0f : 0;
            check(&a, 300, pieces[j], 4e-6);
        }
    }
}

/* Long enough for the chunks of decoding, with few and with many heads. */
static void test_long(void **state) {
    (void)state;
    for (int64_t window = 0; window <= 900; window += 900) {
        ln_attention a = shape_of(4, 1, 32, 32);
        a.mask.window = window;
        problem p = make_problem(&a, LINNET_F16, 2600, 2600);
        solve_exactly(&p);
        for (int level = 0; level < LEVELS; level++) {
            static const int64_t pieces[] = {2600, 700, 16, 3, 1};
            if (!level_is_new(level)) continue;
            for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
                p.piece = pieces[i];
                solve(&p, 2, levels[level]);
                assert_true(error_of(&p) < 3e-6);
            }
        }
        free_problem(&p);
    }
}

static void test_threads(void **state) {
    (void)state;
    static const int64_t pieces[] = {1500, 333, 4, 1};
    for (int i = 0; i < PRECISIONS; i++) {
        const ln_attention a = shape_of(6, 2, 32, 48);
        for (size_t j = 0; j < sizeof pieces / sizeof *pieces; j++) {
            problem p = make_problem(&a, precisions[i], 1500, pieces[j]);
            const size_t bytes = (size_t)(p.tokens * a.heads * a.value_size) * sizeof(float);
            float *first = malloc(bytes);
            solve(&p, 1, NULL);
            memcpy(first, p.output, bytes);
            for (int threads = 2; threads <= 3; threads++) {
                solve(&p, threads, NULL);
                assert_memory_equal(first, p.output, bytes);
            }
            free(first);
            free_problem(&p);
        }
    }
}

/* Logits of +-1e4: the largest takes all. One key in eight is the query's direction, so that many tie exactly. */
static void test_huge_logits(void **state) {
    (void)state;
    for (int cap = 0; cap < 2; cap++) {
        ln_attention a = shape_of(4, 2, 16, 16);
        a.scale = 1;
        a.soft_cap = cap ? 30 : 0;
        for (int level = 0; level < LEVELS; level++) {
            if (!level_is_new(level)) continue;
            problem p = make_problem(&a, LINNET_F32, 200, 200);
            for (int64_t i = 0; i < 200 * 4 * 16; i++) p.query[i] = 25;
            for (int64_t t = 0; t < 200; t++)
                for (int64_t i = 0; i < 32; i++) p.keys[t * 32 + i] = t % 8 == 0 ? 25 : t % 3 ? -25 : -24;
            solve_exactly(&p);
            for (p.piece = 200; p.piece; p.piece /= 14) {
                solve(&p, 1, levels[level]);
                const double error = error_of(&p);
                if (!(error < 2e-6)) fail_msg("%s: cap %d piece %d: error %g", levels[level], cap, (int)p.piece, error);
            }
            free_problem(&p);
        }
    }
}

/* Scores of -inf alone give zeros, not NaN. */
static void test_no_key(void **state) {
    (void)state;
    const ln_attention a = shape_of(2, 1, 8, 8);
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        problem p = make_problem(&a, LINNET_F32, 150, 150);
        for (int64_t i = 0; i < 150 * 16; i++) p.query[i] = 1;
        for (int64_t i = 0; i < 150 * 8; i++) p.keys[i] = -INFINITY;
        for (p.piece = 150; p.piece; p.piece /= 20) {
            solve(&p, 1, levels[level]);
            for (int64_t i = 0; i < 150 * 16; i++) assert_true(p.output[i] == 0);
        }
        free_problem(&p);
    }
}

/* What is not finite reaches only the head and the positions that see it: the others keep their bits. */
static void test_poison(void **state) {
    (void)state;
    static const float poisons[] = {NAN, INFINITY, -INFINITY};
    static const int64_t places[] = {0, 40, 63, 64, 130, 199}, pieces[] = {200, 37, 1};
    for (int test = 0; test < 3 * 6 * 3 * 2 * 2; test++) {
        ln_attention a = shape_of(6, 2, 16, 16);
        const bool in_values = test / 54 % 2;
        a.mask.window = test / 108 ? 50 : 0;
        const int64_t place = places[test / 3 % 6];
        const float poison = poisons[test % 3];
        problem p = make_problem(&a, precisions[test % PRECISIONS], 200, pieces[test / 18 % 3]);
        const char *cpu = levels[test / 7 % LEVELS];
        const size_t count = (size_t)(p.tokens * a.heads * a.value_size);
        float *clean = malloc(count * sizeof *clean);
        solve(&p, 1, cpu);
        memcpy(clean, p.output, count * sizeof *clean);
        float *row = (in_values ? p.values : p.keys) + (place * 2 + 1) * 16;
        row[5] = poison;
        solve(&p, 1, cpu);
        bool reached = false;
        for (int64_t t = 0; t < p.tokens; t++) {
            for (int64_t i = 0; i < 6 * 16; i++) {
                const bool sees = i / 48 == 1 && t >= place && (!a.mask.window || t < place + a.mask.window);
                const float x = p.output[t * 96 + i], y = clean[t * 96 + i];
                if (!sees) assert_true(x == y);
                reached |= sees && x != y;
            }
        }
        assert_true(reached);
        free(clean);
        free_problem(&p);
    }
}

/* The power of two of the softmax, over its whole range. */
static void test_softmax(void **state) {
    (void)state;
    for (int level = 0; level < LEVELS; level++) {
        unsigned mask;
        assert_true(ln_cpu_mask(levels[level], &mask));
        ln_attend_kernels kernels;
        ln_attend_choose(ln_cpu_detect() & mask, &kernels);
        double worst = 0;
        for (int64_t i = 0; i < 126 * 400; i++) {
            float scores[LN_ATTEND_BLOCK + LN_ATTEND_PAD], maximum = 0, sum[LN_ATTEND_LANES] = {0};
            scores[0] = 0;
            scores[1] = -(float)i / 400;
            scores[2] = -(float)i / 400 - 0x1p-12f;
            kernels.softmax(scores, 3, &maximum, sum);
            assert_true(scores[0] == 1 && maximum == 0);
            for (int j = 1; j < 3; j++) {
                const double x = j == 1 ? -(double)(float)((float)i / 400) : (double)(-(float)i / 400 - 0x1p-12f);
                worst = fmax(worst, fabs((double)scores[j] / exp2(x) - 1));
            }
        }
        if (!(worst < 2e-7)) fail_msg("%s: %g", kernels.name, worst);
        float scores[LN_ATTEND_PAD] = {-1000, -INFINITY, -0x1p127f, -127.5f}, maximum = 1000,
              sum[LN_ATTEND_LANES] = {1};
        assert_true(kernels.softmax(scores, 3, &maximum, sum) == 1);
        assert_true(scores[0] == 0 && scores[1] == 0 && scores[2] == 0 && sum[0] == 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_softmax), cmocka_unit_test(test_sizes),          cmocka_unit_test(test_groups),
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_window_and_cap), cmocka_unit_test(test_long),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_huge_logits),    cmocka_unit_test(test_no_key),
        cmocka_unit_test(test_poison),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
