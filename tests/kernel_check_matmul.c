/* The dot and the dense kernels against float64.
 *
 * The oracle multiplies what the kernel is given: activations as prepared, weights as the form holds them. So all that
 * is left is the rounding of float32 additions, and a kernel of n of them in a row may be wrong by n 2^-24 sum |w x|
 * (we allow twice that): a term that is left out, doubled or misplaced is far above it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "kernel/panel.h"
#include "kernel_check.h"

typedef enum input { RANDOM, LARGEST, HUGE_VALUES, NAN_ACTIVATION, NAN_WEIGHT, INPUTS } input;

/* Where a format's blocks keep their float16 scales, for making ordinary blocks of random bytes. */
static void set_scales(linnet_type type, unsigned char *block, float scale, float minimum) {
    const uint16_t s = ln_float_f16(scale), m = ln_float_f16(minimum), brain = ln_float_bf16(scale);
    switch (type) {
    case LINNET_F32:
        memcpy(block, &scale, 4);
        break;
    case LINNET_BF16:
        memcpy(block, &brain, 2);
        break;
    case LINNET_F16:
    case LINNET_Q8_0:
    case LINNET_Q4_0:
    case LINNET_Q5_0:
        memcpy(block, &s, 2);
        break;
    case LINNET_Q4_1:
    case LINNET_Q5_1:
    case LINNET_Q4_K:
    case LINNET_Q5_K:
        memcpy(block, &s, 2);
        memcpy(block + 2, &m, 2);
        break;
    case LINNET_Q2_K:
        memcpy(block + 80, &s, 2);
        memcpy(block + 82, &m, 2);
        break;
    case LINNET_Q3_K:
        memcpy(block + 108, &s, 2);
        break;
    case LINNET_Q6_K:
        memcpy(block + 208, &s, 2);
        break;
    default:
        break;
    }
}

typedef struct problem {
    linnet_type type;
    int64_t rows, columns, tokens, y_stride;
    uint64_t row_bytes;
    guarded weight, x; /* x [tokens, columns] */
    float *decoded;    /* [rows, columns] */
    float *y;          /* [tokens + 2, y_stride]: the first and the last row are guards */
    int64_t bad_token, bad_row;
} problem;

static const float GUARD = 12345.5f;

static void make_problem(problem *p, ln_random *random, linnet_type type, int64_t rows, int64_t columns, int64_t tokens,
                         input kind) {
    const ln_format *format = ln_format_of(type);
    *p = (problem){type,         rows, columns, tokens, rows + 3, ln_format_bytes(type, columns), .bad_token = -1,
                   .bad_row = -1};
    p->weight = guarded_open(p->row_bytes * (uint64_t)rows);
    p->x = guarded_open((size_t)(tokens * columns) * 4);
    p->decoded = malloc((size_t)(rows * columns) * 4);
    p->y = malloc((size_t)((tokens + 2) * p->y_stride) * 4);
    unsigned char *bytes = p->weight.data;
    for (uint64_t i = 0; i < p->row_bytes * (uint64_t)rows; i++)
        bytes[i] = kind == LARGEST ? 0xff : (unsigned char)ln_random_u64(random);
    for (int64_t b = 0; b < rows * columns / format->block; b++)
        set_scales(type, bytes + b * format->bytes, kind == LARGEST ? 1.5f : (float)ln_random_normal(random),
                   (float)ln_random_normal(random));
    float *x = (float *)(void *)p->x.data;
    for (int64_t i = 0; i < tokens * columns; i++) {
        x[i] = (float)ln_random_normal(random);
        if (kind == LARGEST) x[i] = i / 32 % 2 ? -3.0f : 3.0f;
        if (kind == HUGE_VALUES) x[i] *= i % 7 ? 1e-20f : 1e25f;
    }
    if (kind == NAN_ACTIVATION) {
        p->bad_token = (int64_t)ln_random_below(random, (uint64_t)tokens);
        x[p->bad_token * columns + (int64_t)ln_random_below(random, (uint64_t)columns)] =
            ln_random_below(random, 2) ? NAN : INFINITY;
    }
    if (kind == NAN_WEIGHT) {
        p->bad_row = (int64_t)ln_random_below(random, (uint64_t)rows);
        const int64_t blocks = columns / format->block;
        set_scales(type,
                   bytes + (uint64_t)p->bad_row * p->row_bytes +
                       (int64_t)ln_random_below(random, (uint64_t)blocks) * format->bytes,
                   NAN, 1);
    }
    for (int64_t r = 0; r < rows; r++)
        format->decode(bytes + (uint64_t)r * p->row_bytes, p->decoded + r * columns, columns);
    for (int64_t i = 0; i < (tokens + 2) * p->y_stride; i++) p->y[i] = GUARD;
}

static void free_problem(problem *p) {
    guarded_close(&p->weight);
    guarded_close(&p->x);
    free(p->decoded);
    free(p->y);
}

static ln_activation prepare_all(const problem *p, ln_form form, ln_prepare prepare) {
    ln_activation a = {.form = form, .columns = p->columns, .padded = ln_panel_padded(p->columns)};
    const uint64_t n = (uint64_t)a.padded;
    a.row_bytes = form == LN_FORM_F32 ? 4 * n : form == LN_FORM_BF16 ? 2 * n : ln_round_up(n + n / 8 + n / 4, 64);
    unsigned char *data = aligned_alloc(64, a.row_bytes * (uint64_t)p->tokens);
    for (int64_t t = 0; t < p->tokens; t++)
        prepare((const float *)(const void *)p->x.data + t * p->columns, p->columns, a.padded,
                data + (uint64_t)t * a.row_bytes);
    a.data = data;
    return a;
}

/* What the kernel was given as activation [token, column]. */
static double activation_at(const ln_activation *a, int64_t token, int64_t column) {
    const unsigned char *row = a->data + (uint64_t)token * a->row_bytes;
    if (a->form == LN_FORM_F32) return (double)((const float *)(const void *)row)[column];
    if (a->form == LN_FORM_BF16) return (double)ln_bf16_float(((const uint16_t *)(const void *)row)[column]);
    const float *scale = (const float *)(const void *)(row + a->padded);
    return (double)scale[column / 32] * ((const int8_t *)row)[column];
}

/* Largest error of y in units of the bound. `additions`: most in a row. minimums: the kernel adds products of scales
 * and of minimums apart, which may cancel. */
static double largest_error(const problem *p, const ln_activation *a, bool bf16_weights, double additions) {
    double largest = 0;
    const bool apart = a->form == LN_FORM_INT8;
    double *x = malloc((size_t)p->columns * sizeof *x);
    for (int64_t t = -1; t <= p->tokens; t++) {
        const float *y = p->y + (t + 1) * p->y_stride;
        for (int64_t c = 0; t >= 0 && t < p->tokens && c < p->columns; c++) x[c] = activation_at(a, t, c);
        for (int64_t r = 0; r < p->y_stride; r++) {
            if (t < 0 || t == p->tokens || r >= p->rows) {
                if (y[r] != GUARD) largest = INFINITY;
                continue;
            }
            if (t == p->bad_token || r == p->bad_row) {
                if (isfinite(y[r])) largest = INFINITY;
                continue;
            }
            const float *w = p->decoded + r * p->columns;
            double sum = 0, size = 0;
            for (int64_t c = 0; c < p->columns; c++) {
                const double value = (double)(bf16_weights ? ln_bf16_float(ln_float_bf16(w[c])) : w[c]);
                sum += value * x[c];
                size += fabs(value * x[c]);
            }
            if (apart) size *= 8; /* offsets and minimums up to the size of the values they meet, and their scale */
            const double error = fabs((double)y[r] - sum) / (2 * additions * 0x1p-24 * size + 1e-30);
            if (!(error <= largest)) largest = error;
        }
    }
    free(x);
    return largest;
}

/* ---- dense kernels ---- */

static void run_panel(const ln_panel_slot *slot, problem *p, const ln_activation *a) {
    const int64_t padded = ln_min_i64(slot->columns, ln_panel_padded(p->columns));
    const size_t bytes = (size_t)(ln_strip_bytes(slot->form, p->type, padded) * (slot->rows / LN_STRIP));
    unsigned char *panel = aligned_alloc(64, bytes + 64);
    memset(panel, 0xff, bytes + 64);
    for (int64_t r = 0; r < p->rows; r += slot->rows) {
        const int64_t rows = ln_min_i64(slot->rows, p->rows - r);
        for (int64_t column = 0; column < p->columns; column += slot->columns) {
            const int64_t columns = ln_min_i64(slot->columns, p->columns - column);
            slot->pack(p->weight.data + (uint64_t)r * p->row_bytes, p->type, p->row_bytes, rows, column, columns,
                       panel);
            slot->run(panel, p->type, rows, column, columns, a, 0, p->tokens, p->y + p->y_stride + r, p->y_stride);
        }
    }
    for (int i = 0; i < 64; i++)
        if (panel[bytes + (size_t)i] != 0xff) p->y[0] = 0; /* counts as a broken guard */
    free(panel);
}

static int64_t pick(ln_random *random, const int64_t *from, size_t count) {
    return from[ln_random_below(random, count)];
}

static int64_t pick_columns(ln_random *random, const ln_format *format) {
    static const int64_t plain[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 255, 256, 257, 333, 511, 513, 1025, 2050};
    static const int64_t blocks[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65};
    if (format->block == 1) return pick(random, plain, sizeof plain / sizeof *plain);
    return format->block * (format->block == 256 ? 1 + (int64_t)ln_random_below(random, 9)
                                                 : pick(random, blocks, sizeof blocks / sizeof *blocks));
}

double check_panel_slot(const ln_panel_slot *slot, ln_prepare prepare, linnet_type type) {
    static const int64_t rows[] = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 65, 129};
    static const int64_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 41};
    ln_random random;
    ln_random_seed(&random, (uint64_t)type + 1);
    double largest = 0;
    for (int i = 0; i < 60; i++) {
        const input kind = (input)(i % INPUTS);
        problem p;
        if (kind == HUGE_VALUES && slot->form == LN_FORM_INT8)
            continue; /* nothing of a block is left but its largest */
        make_problem(&p, &random, type, pick(&random, rows, sizeof rows / sizeof *rows),
                     pick_columns(&random, ln_format_of(type)), pick(&random, tokens, sizeof tokens / sizeof *tokens),
                     kind);
        ln_activation a = prepare_all(&p, slot->form, prepare);
        run_panel(slot, &p, &a);
        const double additions = (double)ln_min_i64(p.columns, slot->columns) + 8;
        const double error = largest_error(&p, &a, slot->form == LN_FORM_BF16, additions);
        if (!(error <= largest)) largest = error;
        free((void *)(uintptr_t)a.data);
        free_problem(&p);
    }
    return largest;
}

/* ---- dot kernels ---- */

static double check_dot_slot(const ln_dot_slot *slot, ln_prepare prepare, linnet_type type) {
    ln_random random;
    ln_random_seed(&random, (uint64_t)type + 1);
    double largest = 0;
    for (int i = 0; i < 60; i++) {
        const input kind = (input)(i % INPUTS);
        problem p;
        if (kind == HUGE_VALUES && slot->form == LN_FORM_INT8) continue;
        make_problem(&p, &random, type, 1 + (int64_t)ln_random_below(&random, 9),
                     pick_columns(&random, ln_format_of(type)), 1 + (int64_t)ln_random_below(&random, LN_DOT_TOKENS),
                     kind);
        ln_activation a = prepare_all(&p, slot->form, prepare);
        slot->run(p.weight.data, p.row_bytes, p.rows, &a, 0, p.tokens, p.y + p.y_stride, p.y_stride);
        const bool bf16 = slot->form == LN_FORM_BF16;
        const double error = largest_error(&p, &a, bf16, (double)p.columns / 16 + 32);
        if (!(error <= largest)) largest = error;
        free((void *)(uintptr_t)a.data);
        free_problem(&p);
    }
    return largest;
}

/* ---- speed ---- */

typedef struct timing {
    check *c;
    int exact, threads;
    ln_matrix weight;
    int64_t matrices, tokens;
    float *x, *y;
    void *workspace;
} timing;

static void run_products(void *argument) {
    const timing *t = argument;
    const uint64_t bytes = ln_format_bytes(t->weight.type, t->weight.columns) * (uint64_t)t->weight.rows;
    for (int64_t i = 0; i < t->matrices; i++) {
        ln_matrix weight = t->weight;
        weight.data = (const unsigned char *)weight.data + (uint64_t)i * bytes;
        const ln_product product = {&weight, t->y, weight.rows};
        ln_matmul(&t->c->kernels, t->c->context->team, &product, 1, t->x, weight.columns, t->tokens, t->exact,
                  t->workspace);
    }
}

/* matrices 0: as many as keep them out of the caches. */
static void time_products(check *c, linnet_type type, int exact, int64_t rows, int64_t columns, int64_t tokens,
                          bool memory) {
    timing t = {c, exact, ln_team_size(c->context->team), {type, rows, columns, NULL}, 1, tokens, NULL, NULL, NULL};
    const uint64_t bytes = ln_format_bytes(type, columns) * (uint64_t)rows;
    const int64_t panel_from = c->kernels.matmul.panel_from;
    if (memory) t.matrices = (int64_t)(LN_PEAK_BYTES / bytes);
    const uint64_t all = bytes * (uint64_t)t.matrices;
    unsigned char *data = aligned_alloc(64, ln_round_up(all, 64));
    t.x = aligned_alloc(64, (size_t)(tokens * columns) * 4);
    t.y = aligned_alloc(64, (size_t)(tokens * rows) * 4);
    t.workspace = aligned_alloc(64, ln_matmul_workspace(&c->kernels, t.threads, tokens, columns));
    if (!data || !t.x || !t.y || !t.workspace) exit(2);
    for (uint64_t i = 0; i < all; i++) data[i] = (unsigned char)(i * 2654435761u >> 13) & 0x3b; /* finite everywhere */
    for (int64_t i = 0; i < tokens * columns; i++) t.x[i] = (float)(i * 7919 % 1009) / 500 - 1;
    memset(t.y, 0, (size_t)(tokens * rows) * 4);
    t.weight.data = data;
    c->kernels.matmul.panel_from = memory ? INT64_MAX : 1;
    const double seconds = check_time(run_products, &t);
    c->kernels.matmul.panel_from = panel_from;
    char what[48];
    if (memory) {
        snprintf(what, sizeof what, "%lldx%lld", (long long)rows, (long long)columns);
        check_speed(c, what, LN_PEAK_READ, (double)all, seconds);
    } else {
        const ln_form form = c->kernels.matmul.panel[exact][type].form;
        snprintf(what, sizeof what, "%lldx%lldx%lld", (long long)rows, (long long)columns, (long long)tokens);
        check_speed(c, what, (ln_peak_kind)form, 2.0 * (double)(rows * columns * tokens), seconds);
    }
    free(data);
    free(t.x);
    free(t.y);
    free(t.workspace);
}

void check_matmul(check *c) {
    const ln_matmul_kernels *kernels = &c->kernels.matmul;
    for (int type = 0; type < LN_TYPES; type++) {
        const ln_format *format = ln_format_of((linnet_type)type);
        if (!format) continue;
        for (int exact = 0; exact < 2; exact++) {
            const ln_panel_slot *panel = &kernels->panel[exact][type];
            const ln_dot_slot *dot = &kernels->dot[exact][type];
            if (check_begin(c, panel->name, format->name)) {
                check_error(c, panel->name, format->name,
                            check_panel_slot(panel, kernels->prepare[panel->form], (linnet_type)type));
                if (c->bench) {
                    const bool slow = c->cpu == 0;
                    time_products(c, (linnet_type)type, exact, 1024, 1024, slow ? 64 : 512, false);
                    if (!slow) time_products(c, (linnet_type)type, exact, 1024, 4864, 512, false);
                    if (!slow) time_products(c, (linnet_type)type, exact, 4864, 1024, 32, false);
                }
                check_end(c);
            }
            if (check_begin(c, dot->name, format->name)) {
                check_error(c, dot->name, format->name,
                            check_dot_slot(dot, kernels->prepare[dot->form], (linnet_type)type));
                if (c->bench) time_products(c, (linnet_type)type, exact, 4096, 2048, 1, true);
                check_end(c);
            }
        }
    }
}
