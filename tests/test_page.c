/* What is in a page: the codec of every type and size, moves, rows that are not finite, steps by channel, and every
 * kernel that reads pages of low bits against the codec, on each instruction set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/random.h"
#include "kernel/page.h"

static const linnet_type types[] = {LINNET_F32, LINNET_F16, LINNET_BF16, LINNET_Q8_0, LINNET_Q4_0,
                                    LINNET_Q5,  LINNET_Q4,  LINNET_Q3,   LINNET_Q2};
enum { TYPES = sizeof types / sizeof *types, TOKENS = LN_PAGE_TOKENS, MOST = LN_HEAD_MOST };

/* Error of a Gaussian of variance 1, rms, at most. */
static double rounding(linnet_type type) {
    switch (type) {
    case LINNET_F32:
        return 0;
    case LINNET_F16:
        return 4e-4;
    case LINNET_BF16:
        return 3e-3;
    case LINNET_Q8_0:
        return 8e-3;
    case LINNET_Q4_0:
        return 0.12;
    default:
        return (double[]){0, 0, 0.33, 0.165, 0.082, 0.042}[ln_low_bits(type)];
    }
}

typedef struct page {
    ln_page_layout layout;
    unsigned char *data;
} page;

static page open_page(linnet_type keys, linnet_type values, int64_t key_size, int64_t value_size, bool channels) {
    page p;
    assert_true(ln_page_layout_of(keys, values, key_size, value_size, &p.layout));
    if (channels) assert_true(ln_page_layout_by_channel(&p.layout));
    assert_int_equal(p.layout.bytes % 64, 0);
    p.data = aligned_alloc(64, p.layout.bytes);
    assert_non_null(p.data);
    memset(p.data, 0xa5, p.layout.bytes);
    return p;
}

static void random_rows(ln_random *random, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)ln_random_normal(random);
}

static void decode_page(const page *p, float *keys, float *values) {
    for (int64_t t = 0; t < TOKENS; t++)
        ln_page_decode_token(&p->layout, p->data, t, keys + t * MOST, values ? values + t * MOST : NULL);
}

typedef struct page_rows {
    float keys[TOKENS * MOST], values[TOKENS * MOST];
} page_rows;

static page_rows *open_rows(ln_random *random) {
    page_rows *r = malloc(sizeof *r);
    assert_non_null(r);
    random_rows(random, r->keys, TOKENS * MOST);
    random_rows(random, r->values, TOKENS * MOST);
    return r;
}

static double rms(const float *a, const float *b, int64_t count, int64_t size) {
    double sum = 0;
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < size; i++) {
            const double off = (double)a[t * MOST + i] - (double)b[t * MOST + i];
            sum += off * off;
        }
    return sqrt(sum / (double)(count * size));
}

static void test_every_type_and_size(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 1);
    page_rows *in = open_rows(&random), *out = open_rows(&random);
    for (int64_t size = 8; size <= MOST; size += 8) {
        const linnet_type type = types[size / 8 % TYPES], other = types[(size / 8 * 5 + 2) % TYPES];
        const int64_t other_size = MOST + 8 - size, count = size % 3 ? TOKENS : 1 + size % TOKENS;
        page p = open_page(type, other, size, other_size, false), q = p;
        ln_page_encode(&p.layout, p.data, count, in->keys, MOST, in->values, MOST);
        decode_page(&p, out->keys, out->values);
        const double key = rms(in->keys, out->keys, count, size),
                     value = rms(in->values, out->values, count, other_size);
        if (!(key <= 1.3 * rounding(type)) || !(value <= 1.3 * rounding(other)))
            fail_msg("%s/%s, %d/%d: errors %g and %g", linnet_type_name(type), linnet_type_name(other), (int)size,
                     (int)other_size, key, value);
        for (int64_t t = count; t < TOKENS; t++)
            for (int64_t i = 0; i < size && type != LINNET_Q4_0; i++) assert_true(out->keys[t * MOST + i] == 0);
        /* Token by token, and moved, the codes are the same. */
        q.data = aligned_alloc(64, p.layout.bytes);
        memset(q.data, 0, p.layout.bytes);
        for (int64_t t = count; t-- > 0;)
            ln_page_encode_token(&p.layout, q.data, t, in->keys + t * MOST, in->values + t * MOST);
        assert_memory_equal(p.data, q.data, p.layout.bytes);
        for (int64_t t = 0; t < count; t++) assert_true(ln_page_move(&p.layout, q.data, t, p.data, count - 1 - t));
        for (int64_t t = 0; t < count; t++) {
            float a[MOST], b[MOST];
            ln_page_decode_token(&p.layout, q.data, t, a, b);
            assert_memory_equal(a, out->keys + (count - 1 - t) * MOST, (size_t)size * sizeof *a);
            assert_memory_equal(b, out->values + (count - 1 - t) * MOST, (size_t)other_size * sizeof *b);
        }
        ln_page_clear(&p.layout, q.data, 0);
        for (uint64_t i = 0; i < p.layout.bytes; i++) assert_int_equal(q.data[i], 0);
        free(p.data);
        free(q.data);
    }
    free(in);
    free(out);
}

/* Values inside the range of the codes are off by half a step at most, others by their distance from it. */
static void test_steps(void **state) {
    (void)state;
    ln_random random;
    ln_random_seed(&random, 2);
    for (int n = 0; n < 4000; n++) {
        const int bits = 2 + n % 4;
        const int64_t count = n % 8 < 4 ? 32 : 8 * (1 + n % 4);
        float x[32], size = ldexpf(1, (int)ln_random_below(&random, 24) - 12);
        const float shift = n % 5 ? 0 : 3;
        for (int64_t i = 0; i < count; i++) x[i] = size * ((float)ln_random_normal(&random) + shift);
        for (int channel = 0; channel < 2; channel++) {
            uint8_t codes[32], step_byte;
            uint16_t word;
            float step, minimum;
            if (channel) {
                ln_fit_channel(x, count, bits, &word, &step_byte, codes);
                step = ln_channel_step(step_byte);
                minimum = ln_f16_float(word);
            } else {
                word = ln_fit_token(x, count, bits, codes);
                step = ln_token_step(word);
                minimum = ln_token_minimum(word, bits);
            }
            const float top = minimum + step * (float)((1 << bits) - 1);
            for (int64_t i = 0; i < count; i++) {
                const float off = fabsf(minimum + step * (float)codes[i] - x[i]);
                const float beyond = fmaxf(0, fmaxf(minimum - x[i], x[i] - top));
                assert_true(codes[i] < 1 << bits);
                assert_true(off <= fmaxf(0.5f * step, beyond) + 1e-5f * size * 8);
            }
        }
    }
}

static void test_extremes(void **state) {
    (void)state;
    const float huge[] = {3e38f, 1e5f, 65504, 1e-30f, 0};
    for (int bits = 2; bits <= 5; bits++)
        for (size_t h = 0; h < sizeof huge / sizeof *huge; h++)
            for (int sign = -1; sign <= 1; sign++) {
                float x[32];
                uint8_t codes[32], byte;
                uint16_t word;
                for (int i = 0; i < 32; i++) x[i] = i % 3 == 0 ? huge[h] * (float)(i % 2 ? sign : 1) : 0;
                word = ln_fit_token(x, 32, bits, codes);
                assert_true(isfinite(ln_token_step(word)) && isfinite(ln_token_minimum(word, bits)));
                ln_fit_channel(x, 32, bits, &word, &byte, codes);
                assert_true(isfinite(ln_channel_step(byte)) && isfinite(ln_f16_float(word)));
            }
}

/* What is not finite stays in its own token and block, or, by channel, in its own channel's range. */
static void test_not_finite(void **state) {
    (void)state;
    enum { SIZE = 96, BAD = 7 };
    const float bad[] = {NAN, INFINITY, -INFINITY};
    ln_random random;
    ln_random_seed(&random, 3);
    page_rows *in = open_rows(&random), *good = open_rows(&random), *out = open_rows(&random);
    for (int bits = 2; bits <= 5; bits++)
        for (size_t b = 0; b < 3; b++)
            for (int channels = 0; channels < 2; channels++) {
                const linnet_type type = (linnet_type)(LINNET_Q2 + bits - 2);
                page p = open_page(type, type, SIZE, SIZE, channels);
                ln_page_encode(&p.layout, p.data, TOKENS, in->keys, MOST, in->values, MOST);
                decode_page(&p, good->keys, good->values);
                const float key = in->keys[BAD * MOST + 40], value = in->values[BAD * MOST + 40];
                in->keys[BAD * MOST + 40] = in->values[BAD * MOST + 40] = bad[b];
                ln_page_encode(&p.layout, p.data, TOKENS, in->keys, MOST, in->values, MOST);
                decode_page(&p, out->keys, out->values);
                for (int64_t t = 0; t < TOKENS; t++)
                    for (int64_t i = 0; i < SIZE; i++) {
                        const bool hit = t == BAD && i / 32 == 1;
                        assert_int_equal(isfinite(out->values[t * MOST + i]) == 0, hit);
                        assert_int_equal(isfinite(out->keys[t * MOST + i]) == 0, hit && !channels);
                        if (!hit) assert_true(out->values[t * MOST + i] == good->values[t * MOST + i]);
                        if (!hit && (!channels || i != 40))
                            assert_true(out->keys[t * MOST + i] == good->keys[t * MOST + i]);
                    }
                in->keys[BAD * MOST + 40] = key;
                in->values[BAD * MOST + 40] = value;
                free(p.data);
            }
    free(in);
    free(good);
    free(out);
}

/* Channels far from zero: their own steps keep the others' precision, and theirs. */
static void test_channels(void **state) {
    (void)state;
    enum { SIZE = 64 };
    ln_random random;
    ln_random_seed(&random, 4);
    page_rows *in = open_rows(&random), *out = open_rows(&random);
    for (int64_t t = 0; t < TOKENS; t++)
        for (int64_t i = 5; i < SIZE; i += 16) in->keys[t * MOST + i] = in->keys[t * MOST + i] * 2 + 30;
    for (int bits = 2; bits <= 5; bits++)
        for (int64_t count = 1; count <= TOKENS; count += 31) {
            const linnet_type type = (linnet_type)(LINNET_Q2 + bits - 2);
            double error[2];
            for (int channels = 0; channels < 2; channels++) {
                page p = open_page(type, LINNET_F16, SIZE, SIZE, channels);
                ln_page_encode(&p.layout, p.data, count, in->keys, MOST, in->values, MOST);
                decode_page(&p, out->keys, NULL);
                error[channels] = rms(in->keys, out->keys, count, SIZE);
                assert_int_equal(ln_page_move(&p.layout, p.data, 0, p.data, 1), !channels);
                free(p.data);
            }
            assert_true(error[1] < 0.4 * error[0]);
        }
    free(in);
    free(out);
}

static void test_refusals(void **state) {
    (void)state;
    ln_page_layout layout;
    assert_false(ln_page_layout_of(LINNET_Q4_1, LINNET_F32, 64, 64, &layout));
    assert_false(ln_page_layout_of(LINNET_F32, LINNET_Q2, 64, 4, &layout));
    assert_false(ln_page_layout_of(LINNET_F32, LINNET_Q2, 64, 584, &layout));
    assert_true(ln_page_layout_of(LINNET_Q8_0, LINNET_Q2, 64, 64, &layout));
    assert_false(ln_page_layout_by_channel(&layout));
    assert_string_equal(linnet_type_name(LINNET_Q3), "q3");
    assert_int_equal(linnet_type_of_name("Q5"), LINNET_Q5);
    assert_null(ln_format_of(LINNET_Q4));
}

/* ---- kernels ---- */

static const unsigned masks[] = {0, LN_CPU_AVX2, LN_CPU_AVX2 | LN_CPU_AVX512,
                                 LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_VNNI, LN_CPU_NEON};

enum { ROWS = 8, STRIDE = LN_ATTEND_STRIDE };

/* A scene of one page: A [ROWS][STRIDE], exact products of its decoded rows with `depth` rows of B. */
typedef struct scene {
    page p;
    page_rows *exact;
    float a[ROWS * STRIDE], c[ROWS * STRIDE];
} scene;

static void check_decode(const scene *s, const ln_attend_kernels *k) {
    static float out[LN_ATTEND_DEPTH * LN_PANEL];
    const ln_page_layout *l = &s->p.layout;
    for (int64_t column = 0; column < l->key_size; column += LN_ATTEND_DEPTH) {
        ln_attend_part part = ln_page_keys(l, s->p.data, column);
        const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, l->key_size - column);
        const ln_attend_operand b = {&part, 1, depth, TOKENS, false};
        k->decode[l->key_type](&b, out);
        for (int64_t i = 0; i < depth; i++)
            for (int64_t t = 0; t < TOKENS; t++)
                assert_true(out[i * TOKENS + t] == s->exact->keys[t * MOST + column + i]);
    }
    for (int64_t panel = 0; panel * LN_PANEL < l->value_size; panel++) {
        const int64_t columns = ln_min_i64(LN_PANEL, l->value_size - panel * LN_PANEL);
        for (int64_t token = 0; token < TOKENS; token += 5) {
            ln_attend_part part = ln_page_values(l, s->p.data, panel, token);
            const ln_attend_operand b = {&part, 1, TOKENS - token, columns, true};
            k->decode[l->value_type](&b, out);
            for (int64_t t = token; t < TOKENS; t++)
                for (int64_t i = 0; i < columns; i++)
                    assert_true(out[(t - token) * columns + i] == s->exact->values[t * MOST + panel * LN_PANEL + i]);
        }
    }
}

/* The product's element and the sum of its terms' magnitudes. */
static double product(const float *a, const float *b, int64_t b_stride, int64_t depth, double *size) {
    double sum = 0;
    *size = 0;
    for (int64_t i = 0; i < depth; i++) {
        sum += (double)a[i] * (double)b[i * b_stride];
        *size += fabs((double)a[i] * (double)b[i * b_stride]);
    }
    return sum;
}

static void check_few(scene *s, const ln_attend_kernels *k, int64_t rows) {
    const ln_page_layout *l = &s->p.layout;
    double size;
    ln_attend_part part = ln_page_keys(l, s->p.data, 0);
    const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, l->key_size);
    ln_attend_operand b = {&part, 1, depth, TOKENS, false};
    k->few[l->key_type](&b, s->a, rows, s->c, false);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < TOKENS; t++) {
            const double want = product(s->a + r * STRIDE, s->exact->keys + t * MOST, 1, depth, &size);
            assert_true(fabs((double)s->c[r * STRIDE + t] - want) <= 1e-6 * size);
        }
    for (int64_t panel = 0; panel * LN_PANEL < l->value_size; panel++)
        for (int64_t token = 0; token < TOKENS; token += 7) {
            part = ln_page_values(l, s->p.data, panel, token);
            b = (ln_attend_operand){&part, 1, TOKENS - token, ln_min_i64(LN_PANEL, l->value_size - panel * LN_PANEL),
                                    true};
            k->few[l->value_type](&b, s->a, rows, s->c, false);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < b.columns; i++) {
                    const double want =
                        product(s->a + r * STRIDE, s->exact->values + token * MOST + panel * LN_PANEL + i, MOST,
                                b.depth, &size);
                    assert_true(fabs((double)s->c[r * STRIDE + i] - want) <= 1e-6 * size);
                }
        }
}

/* Queries and weights are bytes, each off by up to half a unit, times up to half the range of the codes. */
static void check_integers(scene *s, const ln_attend_kernels *k, int64_t rows) {
    static ln_attend_integers integers[ROWS];
    const ln_page_layout *l = &s->p.layout;
    if (!k->integer.scores[l->key_type]) return;
    double size;
    float before[ROWS * STRIDE];
    const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, l->key_size), panels = ln_min_i64(l->value_size / LN_PANEL, 8);
    ln_attend_part part = ln_page_keys(l, s->p.data, 0);
    ln_attend_operand b = {&part, 1, depth, TOKENS, false};
    k->integer.quantize(s->a, depth, rows, integers);
    random_rows(&(ln_random){{1, 2, 3, 4}}, s->c, ROWS * STRIDE);
    memcpy(before, s->c, sizeof before);
    for (int add = 0; add < 2; add++) {
        k->integer.scores[l->key_type](&b, integers, rows, s->c, !add);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t t = 0; t < TOKENS; t++) {
                const double want = product(s->a + r * STRIDE, s->exact->keys + t * MOST, 1, depth, &size) +
                                    (add ? 0 : (double)before[r * STRIDE + t]);
                double most = 0;
                for (int64_t i = 0; i < depth; i++) most = fmax(most, fabs((double)s->a[r * STRIDE + i]));
                assert_true(fabs((double)s->c[r * STRIDE + t] - want) <= 0.02 * most * sqrt((double)depth));
            }
    }
    ln_attend_part parts[6];
    for (int i = 0; i < 6; i++) parts[i] = ln_page_values(l, s->p.data, 0, 0);
    for (int64_t i = 0; i < ROWS * STRIDE; i++) s->a[i] = expf(s->a[i] * 3);
    for (int count = 1; count <= 6 && panels; count += 5) {
        b = (ln_attend_operand){parts, count, TOKENS, LN_PANEL, true};
        memcpy(s->c, before, sizeof before);
        k->integer.outputs[l->value_type](&b, panels, s->a, rows, s->c);
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t i = 0; i < STRIDE; i++) {
                double want = (double)before[r * STRIDE + i], most = 0;
                for (int n = 0; n < count && r < rows && i < panels * LN_PANEL; n++) {
                    want += product(s->a + r * STRIDE + n * TOKENS, s->exact->values + i, MOST, TOKENS, &size);
                    for (int t = 0; t < TOKENS; t++) most = fmax(most, (double)s->a[r * STRIDE + n * TOKENS + t]);
                }
                assert_true(fabs((double)s->c[r * STRIDE + i] - want) <= 0.1 * most + 1e-6);
            }
    }
}

static void test_kernels(void **state) {
    (void)state;
    static const int64_t sizes[] = {8, 24, 32, 64, 72, 128, 200, 256, 576};
    ln_random random;
    ln_random_seed(&random, 5);
    static scene s;
    page_rows *in = open_rows(&random);
    s.exact = open_rows(&random);
    for (size_t m = 0; m < sizeof masks / sizeof *masks; m++) {
        if ((ln_cpu_detect() & masks[m]) != masks[m]) continue;
        ln_attend_kernels kernels;
        ln_attend_choose(masks[m], &kernels);
        for (size_t z = 0; z < sizeof sizes / sizeof *sizes; z++)
            for (int kind = 0; kind < 8; kind++) {
                const linnet_type type = (linnet_type)(LINNET_Q2 + kind % 4);
                s.p = open_page(type, (linnet_type)(LINNET_Q2 + (kind + 1) % 4), sizes[z], MOST + 8 - sizes[z],
                                kind >= 4);
                ln_page_encode(&s.p.layout, s.p.data, TOKENS, in->keys, MOST, in->values, MOST);
                decode_page(&s.p, s.exact->keys, s.exact->values);
                for (int64_t i = 0; i < ROWS * STRIDE; i++) s.a[i] = (float)ln_random_normal(&random);
                check_decode(&s, &kernels);
                check_few(&s, &kernels, 1 + kind);
                check_integers(&s, &kernels, 1 + kind);
                free(s.p.data);
            }
    }
    free(in);
    free(s.exact);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_and_size),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_channels),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
