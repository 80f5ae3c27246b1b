/* The dot kernels of every format and instruction set that this processor reaches: against float64 sums over what the
 * format and the prepared activations mean, and against the plain product; their results depend on row and token alone;
 * nothing is read or written outside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/random.h"
#include "kernel/dot.h"

enum { TOKENS = 8, MOST_ROWS = 9, MOST_COLUMNS = 1280 };

static const unsigned levels[] = {
    0,
    LN_CPU_AVX2,
    LN_CPU_AVX2 | LN_CPU_AVX512,
    LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_BF16,
    LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_VNNI,
    LN_CPU_NEON,
    LN_CPU_NEON | LN_CPU_NEON_DOT,
};
enum { LEVELS = sizeof levels / sizeof *levels };

/* The last `bytes` bytes before a page that must not be touched. */
typedef struct guarded {
    unsigned char *base, *data;
    size_t mapped;
} guarded;

static guarded guard(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    guarded g = {.mapped = whole + page};
    g.base = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.base != MAP_FAILED);
    assert_int_equal(mprotect(g.base + whole, page, PROT_NONE), 0);
    g.data = g.base + whole - bytes;
    return g;
}

static uint64_t prepared_bytes(ln_form form, int64_t padded) {
    const uint64_t n = (uint64_t)padded;
    const uint64_t bytes = form == LN_FORM_F32 ? 4 * n : form == LN_FORM_BF16 ? 2 * n : n + n / 8 + n / 4;
    return (bytes + 63) / 64 * 64;
}

static void random_weights(ln_random *random, linnet_type type, unsigned char *data, int64_t values) {
    const ln_format *format = ln_format_of(type);
    const int64_t blocks = values / format->block;
    if (format->encode) {
        float *source = malloc((size_t)values * sizeof *source);
        for (int64_t i = 0; i < values; i++) source[i] = (float)ln_random_normal(random);
        format->encode(source, data, values);
        free(source);
        if (type == LINNET_Q8_0) /* -128 is no result of the encoder, but it is valid */
            for (int64_t b = 0; b < blocks; b += 2) memset(data + b * 34 + 2, 0x80, 20);
        return;
    }
    /* Places of the float16 factors; all other bytes are free. */
    const int factors[LN_TYPES][2] = {
        [LINNET_Q4_1] = {0, 2}, [LINNET_Q5_0] = {0, 0},     [LINNET_Q5_1] = {0, 2}, [LINNET_Q2_K] = {80, 82},
        [LINNET_Q4_K] = {0, 2}, [LINNET_Q3_K] = {108, 108}, [LINNET_Q5_K] = {0, 2}, [LINNET_Q6_K] = {208, 208},
    };
    for (int64_t b = 0; b < blocks; b++, data += format->bytes) {
        for (int i = 0; i < format->bytes; i++) data[i] = (unsigned char)ln_random_u64(random);
        for (int k = 0; k < 2; k++) {
            const uint16_t half = ln_float_f16(0.05f * (float)ln_random_normal(random));
            memcpy(data + factors[type][k], &half, 2);
        }
    }
}

/* Value i of a prepared row. */
static double prepared_value(ln_form form, const unsigned char *row, int64_t padded, int64_t i) {
    if (form == LN_FORM_F32) return ((const float *)(const void *)row)[i];
    if (form == LN_FORM_BF16) return ln_bf16_float(((const uint16_t *)(const void *)row)[i]);
    return (double)ln_int8_scales(row, padded)[i / 32] * ((const int8_t *)row)[i];
}

typedef struct problem {
    linnet_type type;
    int64_t columns, padded, rows;
    uint64_t row_bytes;
    guarded weight;
    float x[TOKENS][MOST_COLUMNS];
    double w[MOST_ROWS][MOST_COLUMNS]; /* decoded */
    double m[MOST_ROWS][MOST_COLUMNS]; /* of what is added up to make w: bounds the error of a kernel */
} problem;

static problem *make_problem(linnet_type type, int64_t rows, int64_t columns, float size) {
    problem *p = calloc(1, sizeof *p);
    const ln_format *format = ln_format_of(type);
    ln_random random;
    ln_random_seed(&random, (uint64_t)columns * 31 + (uint64_t)type);
    p->type = type, p->rows = rows, p->columns = columns, p->padded = (columns + 63) / 64 * 64;
    p->row_bytes = ln_format_bytes(type, columns);
    assert_true(p->row_bytes > 0);
    p->weight = guard((size_t)rows * p->row_bytes);
    random_weights(&random, type, p->weight.data, rows * columns);
    for (int t = 0; t < TOKENS; t++)
        for (int64_t i = 0; i < columns; i++)
            p->x[t][i] = size * (float)(ln_random_normal(&random) * (1 + 20 * (ln_random_below(&random, 50) == 0)));
    for (int64_t r = 0; r < rows; r++) {
        float decoded[MOST_COLUMNS], scale[16], minimum[16] = {0};
        int8_t q[256];
        const unsigned char *row = p->weight.data + (uint64_t)r * p->row_bytes;
        format->decode(row, decoded, columns);
        for (int64_t i = 0; i < columns; i++) {
            p->w[r][i] = decoded[i];
            p->m[r][i] = fabs(p->w[r][i]);
            if (!format->unpack) continue;
            const int64_t j = i % format->block;
            if (!j) format->unpack(row + i / format->block * format->bytes, q, scale, minimum);
            p->m[r][i] = fabsf(scale[j / 16]) * (fabs((double)q[j]) + 32) + fabsf(minimum[j / 16]);
        }
    }
    return p;
}

static void free_problem(problem *p) {
    munmap(p->weight.base, p->weight.mapped);
    free(p);
}

static ln_activation prepare(const ln_matmul_kernels *kernels, ln_form form, const problem *p, guarded *memory) {
    ln_activation x = {.form = form, .columns = p->columns, .padded = p->padded};
    x.row_bytes = prepared_bytes(form, p->padded);
    *memory = guard(TOKENS * x.row_bytes);
    memset(memory->data, 0x5a, TOKENS * x.row_bytes);
    for (int t = 0; t < TOKENS; t++)
        kernels->prepare[form](p->x[t], p->columns, p->padded, memory->data + (uint64_t)t * x.row_bytes);
    x.data = memory->data;
    return x;
}

static bool same_bits(float a, float b) {
    return ln_float_bits(a) == ln_float_bits(b);
}

static double worst; /* error in units of the sum of magnitudes, over what one kernel was given */

static void check_values(const problem *p, const ln_activation *x, const float *y, int64_t stride, int skip_token) {
    for (int t = 0; t < TOKENS; t++) {
        if (t == skip_token) continue;
        const unsigned char *row = x->data + (uint64_t)t * x->row_bytes;
        for (int64_t r = 0; r < p->rows; r++) {
            double prepared = 0, magnitude = 0, plain = 0, slack = 0;
            for (int64_t i = 0; i < p->columns; i++) {
                const double value = prepared_value(x->form, row, p->padded, i), given = p->x[t][i];
                prepared += p->w[r][i] * value;
                magnitude += p->m[r][i] * fabs(value);
                plain += p->w[r][i] * given;
                slack +=
                    fabs(p->w[r][i]) * (x->form == LN_FORM_F32    ? 0
                                        : x->form == LN_FORM_BF16 ? fabs(given) * 0x1p-8
                                                                  : 0.5001 * ln_int8_scales(row, p->padded)[i / 32]);
            }
            const double error = fabs(y[t * stride + r] - prepared);
            if (!(error <= 5e-7 * magnitude))
                print_error("type %d rows %d columns %d token %d row %d: %g, not %g\n", (int)p->type, (int)p->rows,
                            (int)p->columns, t, (int)r, y[t * stride + r], prepared);
            assert_true(error <= 5e-7 * magnitude);
            assert_true(fabs(y[t * stride + r] - plain) <= slack + 1e-6 * magnitude);
            if (magnitude > 0) worst = fmax(worst, error / magnitude);
        }
    }
}

static void check_slot(const ln_matmul_kernels *kernels, const ln_dot_slot *slot, problem *p) {
    const int64_t stride = p->rows + 3;
    float y[TOKENS * (MOST_ROWS + 3)], again[TOKENS * (MOST_ROWS + 3)];
    guarded memory;
    ln_activation x = prepare(kernels, slot->form, p, &memory);
    for (int64_t i = 0; i < TOKENS * stride; i++) y[i] = again[i] = 12345;
    slot->run(p->weight.data, p->row_bytes, p->rows, &x, 0, TOKENS, y, stride);
    for (int t = 0; t < TOKENS; t++)
        for (int64_t r = p->rows; r < stride; r++) assert_true(y[t * stride + r] == 12345);
    check_values(p, &x, y, stride, -1);

    /* Any number of tokens and rows, from anywhere, gives the same bits. */
    for (int tokens = 1; tokens < TOKENS; tokens++) {
        const int first = tokens % 3 < TOKENS - tokens ? tokens % 3 : 0;
        slot->run(p->weight.data, p->row_bytes, p->rows, &x, first, tokens, again, stride);
        for (int t = 0; t < tokens; t++)
            for (int64_t r = 0; r < stride; r++)
                assert_true(same_bits(again[t * stride + r], y[(first + t) * stride + r]));
        for (int64_t i = tokens * stride; i < TOKENS * stride; i++) assert_true(again[i] == 12345);
        for (int64_t i = 0; i < TOKENS * stride; i++) again[i] = 12345;
    }
    for (int64_t r = 0; r < p->rows; r++) {
        slot->run(p->weight.data + (uint64_t)r * p->row_bytes, p->row_bytes, 1, &x, 0, TOKENS, again, 1);
        for (int t = 0; t < TOKENS; t++) assert_true(same_bits(again[t], y[t * stride + r]));
    }

    /* Kernels may read on into the next row, but nothing of it counts: here it is all NaN. */
    if (p->rows > 1) {
        unsigned char *row = p->weight.data + p->row_bytes, *kept = malloc(p->row_bytes);
        memcpy(kept, row, p->row_bytes);
        memset(row, 0xff, p->row_bytes);
        slot->run(p->weight.data, p->row_bytes, p->rows, &x, 0, TOKENS, again, stride);
        for (int t = 0; t < TOKENS; t++)
            for (int64_t r = 0; r < p->rows; r++)
                assert_true(r == 1 || same_bits(again[t * stride + r], y[t * stride + r]));
        memcpy(row, kept, p->row_bytes);
        free(kept);
    }

    /* What is not finite in one token stays there, and shows. */
    const float odd[] = {NAN, -INFINITY};
    for (int k = 0; k < 2; k++) {
        guarded other;
        const float kept = p->x[2][p->columns - 1];
        p->x[2][p->columns - 1] = odd[k];
        ln_activation z = prepare(kernels, slot->form, p, &other);
        slot->run(p->weight.data, p->row_bytes, p->rows, &z, 0, TOKENS, again, stride);
        for (int t = 0; t < TOKENS; t++)
            for (int64_t r = 0; r < p->rows; r++)
                assert_true(t == 2 ? !(fabsf(again[t * stride + r]) <= 3.4e38f)
                                   : same_bits(again[t * stride + r], y[t * stride + r]));
        p->x[2][p->columns - 1] = kept;
        munmap(other.base, other.mapped);
    }
    munmap(memory.base, memory.mapped);
}

static void test_dot(void **state) {
    (void)state;
    const unsigned cpu = ln_cpu_detect();
    const float sizes[] = {1, 1e25f, 1e-20f};
    for (int level = 0; level < LEVELS; level++) {
        if (levels[level] & ~cpu) continue;
        ln_matmul_kernels kernels = {0};
        ln_dot_choose(levels[level], &kernels);
        for (int type = 0; type < LN_TYPES; type++) {
            const ln_format *format = ln_format_of((linnet_type)type);
            if (!format) continue;
            for (int exact = 0; exact < 2; exact++) {
                const ln_dot_slot *slot = &kernels.dot[exact][type];
                assert_non_null(slot->run);
                if (exact) assert_int_equal(slot->form, LN_FORM_F32);
                worst = 0;
                const int64_t few[] = {1, 2, 7, 17, 31, 33, 63, 100, 255, 321, 577},
                              many[] = {1, 2, 3, 7, 8, 9, 13, 28};
                const int count = format->block == 1 ? 11 : format->block == 32 ? 8 : 4;
                for (int k = 0; k < count; k++) {
                    const int64_t columns = format->block == 1 ? few[k] : many[k] * format->block;
                    if (columns > MOST_COLUMNS) continue;
                    problem *p = make_problem((linnet_type)type, k % 2 ? MOST_ROWS : 1 + k % 8, columns, sizes[k % 3]);
                    check_slot(&kernels, slot, p);
                    free_problem(p);
                }
                if (getenv("LINNET_TEST_VERBOSE")) print_message("%-32s %.2g\n", slot->name, worst);
            }
        }
    }
}

/* Every instruction set prepares the same bits as portable C. */
static void test_prepare(void **state) {
    (void)state;
    const unsigned cpu = ln_cpu_detect();
    ln_matmul_kernels portable = {0};
    ln_dot_fill_portable(&portable);
    ln_random random;
    ln_random_seed(&random, 5);
    const int64_t sizes[] = {1, 5, 31, 32, 33, 64, 65, 96, 127, 320, 833};
    for (int level = 0; level < LEVELS; level++) {
        if (levels[level] & ~cpu) continue;
        ln_matmul_kernels kernels = {0};
        ln_dot_choose(levels[level], &kernels);
        for (int k = 0; k < 11 * LN_FORMS; k++) {
            const int64_t columns = sizes[k / LN_FORMS], padded = (columns + 63) / 64 * 64;
            const ln_form form = (ln_form)(k % LN_FORMS);
            guarded in = guard((size_t)columns * sizeof(float));
            float *x = (float *)(void *)in.data;
            for (int64_t i = 0; i < columns; i++) {
                const double odd[] = {0, -0.0, NAN, INFINITY, -INFINITY, 3e38, 1e-40, 1e-30, 0.5, -2.5, 127, 1e-34};
                x[i] = (float)(i % 3 == 1 ? ln_random_normal(&random)
                               : i % 3    ? (double)ln_random_below(&random, 64) / 2
                                          : 0);
                if (i / 32 % 3 == 2) x[i] = (float)odd[ln_random_below(&random, i / 32 % 2 ? 2 : 12)];
                if (i / 32 % 7 == 4) x[i] *= 1e-38f;
            }
            const uint64_t bytes = prepared_bytes(form, padded);
            guarded a = guard(bytes), b = guard(bytes);
            portable.prepare[form](x, columns, padded, a.data);
            kernels.prepare[form](x, columns, padded, b.data);
            if (form == LN_FORM_INT8) { /* a NaN is a NaN */
                float *scales[] = {(float *)(void *)(a.data + padded), (float *)(void *)(b.data + padded)};
                for (int64_t i = 0; i < padded / 32; i++) {
                    assert_int_equal(isnan(scales[0][i]), isnan(scales[1][i]));
                    if (isnan(scales[0][i])) scales[0][i] = scales[1][i] = 0;
                }
            }
            assert_memory_equal(a.data, b.data, bytes);
            munmap(in.base, in.mapped), munmap(a.base, a.mapped), munmap(b.base, b.mapped);
        }
    }
}

/* The formats as the kernels are compiled for them are those of the table. */
static void test_formats(void **state) {
    (void)state;
    int rows = 0;
#define CHECK_PLAIN(name, NAME, wanted)                               \
    {                                                                 \
        assert_int_equal(ln_format_of(LINNET_##NAME)->bytes, wanted); \
        rows++;                                                       \
    }
#define CHECK_BLOCK(name, NAME, values, wanted, minimum)                 \
    assert_int_equal(ln_format_of(LINNET_##NAME)->block, values);        \
    assert_int_equal(ln_format_of(LINNET_##NAME)->has_minimum, minimum); \
    CHECK_PLAIN(name, NAME, wanted)
    LN_PLAIN_FORMATS(CHECK_PLAIN)
    LN_BLOCK_FORMATS(CHECK_BLOCK)
    assert_int_equal(rows, 13);
}

static void test_int8_blocks(void **state) {
    (void)state;
    ln_matmul_kernels kernels = {0};
    ln_dot_fill_portable(&kernels);
    float x[96] = {0};
    _Alignas(64) unsigned char row[256];
    x[3] = 127, x[4] = 2.5f, x[5] = -3.5f, x[6] = 0.49999997f;
    x[40] = NAN, x[41] = 5;
    kernels.prepare[LN_FORM_INT8](x, 96, 128, row);
    const int8_t *q = (const int8_t *)row;
    assert_int_equal(q[3], 127);
    assert_int_equal(q[4], 2);
    assert_int_equal(q[5], -4);
    assert_int_equal(q[6], 0);
    assert_true(ln_int8_scales(row, 128)[0] == 1.0f);
    assert_int_equal(ln_int8_sums(row, 128)[0], 125);
    assert_true(isnan(ln_int8_scales(row, 128)[1]));
    assert_int_equal(q[41], 0);
    assert_true(ln_int8_scales(row, 128)[2] == 0 && ln_int8_scales(row, 128)[3] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_int8_blocks),
        cmocka_unit_test(test_dot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
