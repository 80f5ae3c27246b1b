/* The driver of the matrix products: right for every format, shape and instruction set that this processor has; the
 * same bits for any number of threads and any company of other tokens. (The kernels themselves: kernel_check.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/context.h"
#include "base/cpu.h"
#include "base/random.h"
#include "kernel/kernel.h"
#include "linnet/linnet.h"

static linnet_context *open_context(int threads) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    linnet_context *context = NULL;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    return context;
}

/* Blocks with random bytes, their float16 scales made small: every format then holds ordinary numbers. */
static void fill_weight(ln_random *random, linnet_type type, int64_t n, unsigned char *data) {
    const ln_format *format = ln_format_of(type);
    const uint64_t bytes = ln_format_bytes(type, n);
    for (uint64_t i = 0; i < bytes; i++) data[i] = (unsigned char)ln_random_u64(random);
    const int64_t blocks = n / format->block;
    for (int64_t b = 0; b < blocks; b++) {
        unsigned char *block = data + b * format->bytes;
        const float value = (float)ln_random_normal(random) * 0.05f;
        const uint16_t half = ln_float_f16(value), brain = ln_float_bf16(value);
        if (type == LINNET_F32)
            memcpy(block, &value, 4);
        else if (type == LINNET_BF16)
            memcpy(block, &brain, 2);
        else if (type == LINNET_Q2_K)
            memcpy(block + 80, &half, 2), memcpy(block + 82, &half, 2);
        else if (type == LINNET_Q3_K)
            memcpy(block + 108, &half, 2);
        else if (type == LINNET_Q6_K)
            memcpy(block + 208, &half, 2);
        else
            memcpy(block, &half, 2);
        if (type == LINNET_Q4_1 || type == LINNET_Q5_1 || type == LINNET_Q4_K || type == LINNET_Q5_K)
            memcpy(block + 2, &half, 2);
    }
}

typedef struct problem {
    ln_matrix weight[3];
    void *data[3];
    float *decoded[3];
    float *x, *y[3];
    int64_t tokens, columns, x_stride;
    int count;
} problem;

static void make_problem(problem *p, uint64_t seed, const linnet_type *types, const int64_t *rows, int count,
                         int64_t columns, int64_t tokens) {
    ln_random random;
    ln_random_seed(&random, seed);
    *p = (problem){.tokens = tokens, .columns = columns, .x_stride = columns + 3, .count = count};
    p->x = malloc((size_t)(tokens * p->x_stride) * 4);
    for (int64_t i = 0; i < tokens * p->x_stride; i++) p->x[i] = (float)ln_random_normal(&random);
    for (int i = 0; i < count; i++) {
        const int64_t n = rows[i] * columns;
        p->data[i] = malloc(ln_format_bytes(types[i], n));
        p->decoded[i] = malloc((size_t)n * 4);
        p->y[i] = malloc((size_t)(tokens * (rows[i] + 5)) * 4);
        fill_weight(&random, types[i], n, p->data[i]);
        ln_format_of(types[i])->decode(p->data[i], p->decoded[i], n);
        p->weight[i] = (ln_matrix){types[i], rows[i], columns, p->data[i]};
    }
}

static void free_problem(problem *p) {
    free(p->x);
    for (int i = 0; i < p->count; i++) {
        free(p->data[i]);
        free(p->decoded[i]);
        free(p->y[i]);
    }
}

static void multiply(const ln_kernels *kernels, linnet_context *context, problem *p, int64_t first, int64_t tokens,
                     bool exact) {
    ln_product products[3];
    for (int i = 0; i < p->count; i++) {
        const int64_t stride = p->weight[i].rows + 5;
        products[i] = (ln_product){&p->weight[i], p->y[i] + first * stride, stride};
    }
    const int threads = ln_team_size(context->team);
    void *workspace = ln_allocate(context, 1, ln_matmul_workspace(kernels, threads, tokens, p->columns), "workspace");
    assert_non_null(workspace);
    ln_matmul(kernels, context->team, products, p->count, p->x + first * p->x_stride, p->x_stride, tokens, exact,
              workspace);
    ln_release(context, workspace);
}

/* Largest error, in units of the norm of the products that make an output. */
static double largest_error(const problem *p) {
    double largest = 0;
    for (int i = 0; i < p->count; i++) {
        for (int64_t t = 0; t < p->tokens; t++) {
            for (int64_t r = 0; r < p->weight[i].rows; r++) {
                const float *w = p->decoded[i] + r * p->columns, *x = p->x + t * p->x_stride;
                double sum = 0, norm = 0;
                for (int64_t c = 0; c < p->columns; c++) {
                    const double term = (double)w[c] * (double)x[c];
                    sum += term;
                    norm += term * term;
                }
                const double error = fabs((double)p->y[i][t * (p->weight[i].rows + 5) + r] - sum);
                largest = fmax(largest, norm > 0 ? error / sqrt(norm) : error);
            }
        }
    }
    return largest;
}

static const unsigned levels[] = {0, LN_CPU_AVX2, LN_CPU_AVX2 | LN_CPU_AVX512,
                                  LN_CPU_AVX2 | LN_CPU_AVX512 | LN_CPU_AVX512_VNNI | LN_CPU_AVX512_BF16, ~0u};
enum { LEVELS = sizeof levels / sizeof *levels };

static const linnet_type types[] = {LINNET_F32,  LINNET_F16,  LINNET_BF16, LINNET_Q4_0, LINNET_Q4_1,
                                    LINNET_Q5_0, LINNET_Q5_1, LINNET_Q8_0, LINNET_Q2_K, LINNET_Q3_K,
                                    LINNET_Q4_K, LINNET_Q5_K, LINNET_Q6_K};
enum { TYPES = sizeof types / sizeof *types };

static void test_every_format(void **state) {
    (void)state;
    linnet_context *context = open_context(2);
    const int64_t tokens[] = {1, 3, 8, 9, 37};
    for (int level = 0; level < LEVELS; level++) {
        ln_kernels kernels;
        ln_kernels_choose(ln_cpu_detect() & levels[level], &kernels);
        for (int i = 0; i < TYPES; i++) {
            const int64_t columns = ln_format_of(types[i])->block == 1 ? 333 : 1280 + 256, rows = 53;
            for (size_t j = 0; j < sizeof tokens / sizeof *tokens; j++) {
                problem p;
                make_problem(&p, 7 + j, &types[i], &rows, 1, columns, tokens[j]);
                multiply(&kernels, context, &p, 0, tokens[j], true);
                assert_true(largest_error(&p) < 4e-6);
                multiply(&kernels, context, &p, 0, tokens[j], false);
                assert_true(largest_error(&p) < 0.04);
                free_problem(&p);
            }
        }
    }
    linnet_context_close(context);
}

/* Three products of different formats in one call; a part of the tokens alone; one thread and three. */
static void test_same_bits(void **state) {
    (void)state;
    linnet_context *one = open_context(1), *three = open_context(3);
    const linnet_type mixed[] = {LINNET_Q4_K, LINNET_BF16, LINNET_Q6_K};
    const int64_t rows[] = {130, 16, 33}, tokens = 131;
    ln_kernels kernels;
    ln_kernels_choose(ln_cpu_detect(), &kernels);
    for (int exact = 0; exact < 2; exact++) {
        problem p;
        make_problem(&p, 3, mixed, rows, 3, 768, tokens);
        multiply(&kernels, three, &p, 0, tokens, exact);
        float *kept[3];
        for (int i = 0; i < 3; i++) {
            const size_t bytes = (size_t)(tokens * (rows[i] + 5)) * 4;
            kept[i] = malloc(bytes);
            memcpy(kept[i], p.y[i], bytes);
            memset(p.y[i], 0, bytes);
        }
        multiply(&kernels, one, &p, 0, 96, exact);
        multiply(&kernels, three, &p, 96, 35, exact);
        for (int i = 0; i < 3; i++) {
            for (int64_t t = 0; t < tokens; t++)
                assert_memory_equal(kept[i] + t * (rows[i] + 5), p.y[i] + t * (rows[i] + 5), (size_t)rows[i] * 4);
            free(kept[i]);
        }
        free_problem(&p);
    }
    linnet_context_close(one);
    linnet_context_close(three);
}

/* Columns in parts, and few tokens by the panel way, give the bits of the whole. */
static void test_parts(void **state) {
    (void)state;
    linnet_context *context = open_context(2);
    enum { ROWS = 53, COLUMNS = 2560 + 256, TOKENS = 37 };
    for (int run = 0; run < 2 * LEVELS * TYPES; run++) {
        const linnet_type type = types[run / 2 % TYPES];
        const bool exact = run % 2;
        const int64_t rows = ROWS;
        ln_kernels kernels;
        ln_kernels_choose(ln_cpu_detect() & levels[run / 2 / TYPES], &kernels);
        problem p;
        make_problem(&p, 5, &type, &rows, 1, COLUMNS, TOKENS);
        p.x_stride = COLUMNS;
        float *x = ln_allocate(context, TOKENS * COLUMNS, 4, "x");
        memcpy(x, p.x, TOKENS * COLUMNS * 4);
        static float whole[TOKENS * ROWS], parts[TOKENS * ROWS];
        const int64_t unit = ln_matmul_unit(&kernels, type, exact);
        uint64_t bytes =
            ln_matmul_workspace_of(&kernels, ln_team_size(context->team), type, exact, true, TOKENS, COLUMNS);
        void *workspace = ln_allocate(context, bytes, 1, "workspace");
        const ln_product to_whole = {&p.weight[0], whole, ROWS}, to_parts = {&p.weight[0], parts, ROWS};
        ln_matmul(&kernels, context->team, &to_whole, 1, x, COLUMNS, TOKENS, exact, workspace);
        for (int64_t column = 0; column < COLUMNS; column += unit) {
            const ln_matmul_part part = {.column = column,
                                         .columns = COLUMNS - column < unit ? COLUMNS - column : unit};
            ln_matmul_run_part(&kernels, context->team, &to_parts, 1, x + column, COLUMNS, TOKENS, exact, workspace,
                               &part);
        }
        assert_memory_equal(whole, parts, sizeof whole);
        for (int64_t t = 0; t < TOKENS; t += 5) {
            const ln_matmul_part part = {.tokens = TOKENS};
            const ln_product few = {&p.weight[0], parts, ROWS};
            const int64_t count = TOKENS - t < 5 ? TOKENS - t : 5;
            ln_matmul_run_part(&kernels, context->team, &few, 1, x + t * COLUMNS, COLUMNS, count, exact, workspace,
                               &part);
            assert_memory_equal(whole + t * ROWS, parts, (size_t)(count * ROWS) * 4);
        }
        ln_release(context, workspace);
        ln_release(context, x);
        free_problem(&p);
    }
    linnet_context_close(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_format), cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
