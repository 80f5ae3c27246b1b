/* Owns: the driver of the matrix products: preparing activations, cutting the work into tasks, the two ways.
 *
 * A task is a block of weight rows of one product, times all tokens; on the panel way, where that makes too few tasks,
 * times a part of the tokens. A task alone writes its outputs, and goes over the columns in pieces whose ends depend on
 * the kernel alone: so no output depends on the cut. Products whose kernels want different forms go in turn, one form
 * at a time, through the same workspace. */
#include "kernel/matmul.h"

#include <string.h>

#include "base/checked.h"
#include "kernel/dot.h"
#include "kernel/kernel.h"
#include "kernel/panel.h"

enum {
    TASKS_PER_THREAD = 6,        /* so that a thread slowed by other programs takes fewer */
    LEAST_TASK_BYTES = 16384,    /* of weights, on the dot way */
    LEAST_TOKENS = 96,           /* of a task on the panel way: a multiple of every tile */
    LEAST_PREPARED_HERE = 16384, /* more values than this are prepared by the team */
};

typedef struct pass {
    const ln_matmul_kernels *kernels;
    const ln_product *products;
    int count, threads;
    ln_form form;
    int exact;
    bool panel;
    const float *x;
    int64_t x_stride, tokens;
    ln_activation activation;
    unsigned char *panels; /* one a thread */
    int64_t rows_a_task;   /* dot way */
    int64_t tokens_a_task; /* panel way; on preparing as well */
} pass;

/* An odd number of cache lines, so that the same columns of many tokens do not fight for a few sets of the cache. */
static uint64_t activation_row_bytes(ln_form form, int64_t padded) {
    const uint64_t n = (uint64_t)padded;
    const uint64_t bytes = form == LN_FORM_F32 ? n * 4 : form == LN_FORM_BF16 ? n * 2 : n + n / 32 * 4 + n / 16 * 4;
    return ln_round_up(bytes, 64) | 64;
}

static int64_t padded_columns(int64_t columns) {
    return ln_ceil_div(columns, 64) * 64;
}

static uint64_t panel_bytes(const ln_matmul_kernels *kernels, int64_t columns) {
    uint64_t most = 0;
    for (int exact = 0; exact < 2; exact++) {
        for (int type = 0; type < LN_TYPES; type++) {
            const ln_panel_slot *slot = &kernels->panel[exact][type];
            if (!slot->run) continue;
            const int64_t strip =
                ln_strip_bytes(slot->form, (linnet_type)type, ln_min_i64(slot->columns, padded_columns(columns)));
            const uint64_t bytes = (uint64_t)(slot->rows / LN_STRIP) * (uint64_t)strip;
            if (bytes > most) most = bytes;
        }
    }
    return most;
}

static bool fits_in_place(ln_form form, int64_t columns) {
    return form == LN_FORM_F32 && columns == padded_columns(columns);
}

/* Of one prepared row; 0: used in place. */
static uint64_t prepared_bytes(ln_form form, int64_t columns) {
    return fits_in_place(form, columns) ? 0 : activation_row_bytes(form, padded_columns(columns));
}

uint64_t ln_matmul_workspace_of(const ln_kernels *kernels, int threads, linnet_type type, bool exact, bool panel,
                                int64_t tokens, int64_t columns) {
    const ln_matmul_kernels *k = &kernels->matmul;
    const uint64_t row = prepared_bytes(panel ? k->panel[exact][type].form : k->dot[exact][type].form, columns);
    return row * (uint64_t)tokens + (panel ? panel_bytes(k, columns) * (uint64_t)threads : 0);
}

int64_t ln_matmul_unit(const ln_kernels *kernels, linnet_type type, bool exact) {
    return kernels->matmul.panel[exact][type].columns;
}

uint64_t ln_matmul_workspace(const ln_kernels *kernels, int threads, int64_t tokens, int64_t columns) {
    const uint64_t row = activation_row_bytes(LN_FORM_F32, padded_columns(columns));
    return row * (uint64_t)tokens + panel_bytes(&kernels->matmul, columns) * (uint64_t)threads;
}

/* ---- activations ---- */

static void prepare_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const pass *p = argument;
    const ln_activation *a = &p->activation;
    const int64_t first = task * p->tokens_a_task, end = ln_min_i64(p->tokens, first + p->tokens_a_task);
    unsigned char *rows = (unsigned char *)(uintptr_t)a->data;
    for (int64_t t = first; t < end; t++)
        p->kernels->prepare[p->form](p->x + t * p->x_stride, a->columns, a->padded, rows + (uint64_t)t * a->row_bytes);
}

/* Rows that already lie as the F32 form wants them are used in place. */
static bool in_place(const pass *p) {
    return fits_in_place(p->form, p->activation.columns) && p->x_stride % 16 == 0 && (uintptr_t)p->x % 64 == 0;
}

static void prepare(pass *p, ln_team *team, void *workspace) {
    ln_activation *a = &p->activation;
    a->form = p->form;
    if (in_place(p)) {
        a->data = (const unsigned char *)p->x;
        a->row_bytes = (uint64_t)p->x_stride * 4;
        return;
    }
    a->data = workspace;
    a->row_bytes = activation_row_bytes(p->form, a->padded);
    if (p->tokens * a->columns <= LEAST_PREPARED_HERE || p->tokens < 2) {
        p->tokens_a_task = p->tokens;
        prepare_task(p, 0, 0);
        return;
    }
    p->tokens_a_task = ln_ceil_div(p->tokens, (int64_t)p->threads * TASKS_PER_THREAD);
    ln_parallel(team, ln_ceil_div(p->tokens, p->tokens_a_task), prepare_task, p);
}

/* ---- tasks ---- */

static ln_form form_of(const pass *p, const ln_product *product) {
    const linnet_type type = product->weight->type;
    return p->panel ? p->kernels->panel[p->exact][type].form : p->kernels->dot[p->exact][type].form;
}

static int64_t tasks_of(const pass *p, const ln_product *product) {
    const ln_matrix *w = product->weight;
    if (form_of(p, product) != p->form) return 0;
    if (!p->panel) return ln_ceil_div(w->rows, p->rows_a_task);
    return ln_ceil_div(w->rows, p->kernels->panel[p->exact][w->type].rows) * ln_ceil_div(p->tokens, p->tokens_a_task);
}

/* The product that a task belongs to; *task becomes its number inside the product. */
static const ln_product *product_of(const pass *p, int64_t *task) {
    for (const ln_product *product = p->products;; product++) {
        const int64_t tasks = tasks_of(p, product);
        if (*task < tasks) return product;
        *task -= tasks;
    }
}

static void dot_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const pass *p = argument;
    const ln_product *product = product_of(p, &task);
    const ln_matrix *w = product->weight;
    const ln_dot_slot *slot = &p->kernels->dot[p->exact][w->type];
    const uint64_t row_bytes = ln_format_bytes(w->type, w->columns);
    const int64_t row = task * p->rows_a_task, rows = ln_min_i64(p->rows_a_task, w->rows - row);
    const unsigned char *weight = (const unsigned char *)w->data + (uint64_t)row * row_bytes;
    for (int64_t t = 0; t < p->tokens; t += LN_DOT_TOKENS)
        slot->run(weight, row_bytes, rows, &p->activation, t, ln_min_i64(LN_DOT_TOKENS, p->tokens - t),
                  product->y + row, product->y_stride);
}

static void panel_task(void *argument, int64_t task, int worker) {
    const pass *p = argument;
    const ln_product *product = product_of(p, &task);
    const ln_matrix *w = product->weight;
    const ln_panel_slot *slot = &p->kernels->panel[p->exact][w->type];
    const uint64_t row_bytes = ln_format_bytes(w->type, w->columns);
    const int64_t blocks = ln_ceil_div(w->rows, slot->rows);
    const int64_t row = task % blocks * slot->rows, rows = ln_min_i64(slot->rows, w->rows - row);
    const int64_t first = task / blocks * p->tokens_a_task, tokens = ln_min_i64(p->tokens_a_task, p->tokens - first);
    const unsigned char *weight = (const unsigned char *)w->data + (uint64_t)row * row_bytes;
    const int64_t end = p->activation.begin + p->activation.columns;
    unsigned char *panel = p->panels + panel_bytes(p->kernels, p->activation.columns) * (uint64_t)worker;
    for (int64_t column = p->activation.begin; column < end; column += slot->columns) {
        const int64_t columns = ln_min_i64(slot->columns, end - column);
        slot->pack(weight, w->type, row_bytes, rows, column, columns, panel);
        slot->run(panel, w->type, rows, column, columns, &p->activation, first, tokens, product->y + row,
                  product->y_stride);
    }
}

static void cut_dot(pass *p) {
    int64_t rows = 0, bytes = 0;
    for (int i = 0; i < p->count; i++) {
        const ln_matrix *w = p->products[i].weight;
        if (form_of(p, &p->products[i]) != p->form) continue;
        rows += w->rows;
        bytes += w->rows * (int64_t)ln_format_bytes(w->type, w->columns);
    }
    const int64_t tasks = ln_max_i64(1, ln_min_i64((int64_t)p->threads * TASKS_PER_THREAD, bytes / LEAST_TASK_BYTES));
    p->rows_a_task =
        p->threads == 1 ? ln_max_i64(rows, 1) : ln_max_i64(ln_ceil_div(ln_ceil_div(rows, tasks), 16) * 16, 16);
}

static void cut_panels(pass *p) {
    p->tokens_a_task = p->tokens;
    int64_t blocks = 0;
    for (int i = 0; i < p->count; i++) blocks += tasks_of(p, &p->products[i]);
    const int64_t parts = p->threads == 1 || blocks == 0 ? 1 : ln_ceil_div((int64_t)p->threads * 3, blocks);
    p->tokens_a_task = ln_ceil_div(ln_ceil_div(p->tokens, parts), LEAST_TOKENS) * LEAST_TOKENS;
}

void ln_matmul_run_part(const ln_kernels *kernels, ln_team *team, const ln_product *products, int count, const float *x,
                        int64_t x_stride, int64_t tokens, bool exact, void *workspace, const ln_matmul_part *part) {
    if (count < 1 || tokens < 1) return;
    const int64_t columns = part->columns ? part->columns : products[0].weight->columns;
    const int64_t whole = part->tokens ? part->tokens : tokens;
    pass p = {.kernels = &kernels->matmul,
              .products = products,
              .count = count,
              .threads = ln_team_size(team),
              .exact = exact,
              .panel = whole >= kernels->matmul.panel_from,
              .x = x,
              .x_stride = x_stride,
              .tokens = tokens,
              .activation = {.begin = part->column, .columns = columns, .padded = padded_columns(columns)}};
    uint64_t row_bytes = 0;
    for (int i = 0; i < count; i++) {
        p.form = form_of(&p, &products[i]);
        const uint64_t bytes = in_place(&p) ? 0 : activation_row_bytes(p.form, p.activation.padded);
        if (bytes > row_bytes) row_bytes = bytes;
    }
    p.panels = (unsigned char *)workspace + row_bytes * (uint64_t)tokens;
    for (p.form = 0; p.form < LN_FORMS; p.form++) {
        int64_t tasks = 0;
        int users = 0;
        for (int i = 0; i < count; i++) users += form_of(&p, &products[i]) == p.form;
        if (!users) continue;
        prepare(&p, team, workspace);
        if (p.panel)
            cut_panels(&p);
        else
            cut_dot(&p);
        for (int i = 0; i < count; i++) tasks += tasks_of(&p, &products[i]);
        ln_parallel(team, tasks, p.panel ? panel_task : dot_task, &p);
    }
}

void ln_matmul(const ln_kernels *kernels, ln_team *team, const ln_product *products, int count, const float *x,
               int64_t x_stride, int64_t tokens, bool exact, void *workspace) {
    const ln_matmul_part all = {0};
    ln_matmul_run_part(kernels, team, products, count, x, x_stride, tokens, exact, workspace, &all);
}

/* ---- choice ---- */

void ln_matmul_choose(unsigned cpu, ln_matmul_kernels *kernels) {
    memset(kernels, 0, sizeof *kernels);
    kernels->panel_from = LN_DOT_TOKENS + 1;
    ln_dot_choose(cpu, kernels);
    ln_panel_choose(cpu, kernels);
}
