/* Owns: weights of some rows, block by block of keys (columns.h).
 *
 * A block's keys are decoded once and multiplied with TILE_ROWS rows at a time; few rows (decoding) are multiplied with
 * pages as they lie. What is not there, or not seen, becomes -inf before the exponential. Attention may have rounded
 * its products where these do not, so a weight can come out a little above 1: it is 1 then. */
#include "mixer/columns.h"

#include <math.h>
#include <string.h>

#include "mixer/carve.h"
#include "mixer/mask.h"

enum { TILE_ROWS = 48, BLOCK_PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS };

typedef struct scratch {
    float *query;   /* [panels of LN_ATTEND_DEPTH][TILE_ROWS][LN_ATTEND_STRIDE] */
    float *weights; /* [TILE_ROWS][LN_ATTEND_STRIDE] */
    float *keys;    /* a block decoded: [page][key_size][32] */
} scratch;

static scratch carve(ln_carver *carver, int64_t key_size) {
    scratch s;
    const int64_t rows = TILE_ROWS * LN_ATTEND_STRIDE;
    s.query = ln_carve(carver, (uint64_t)(ln_ceil_div(key_size, LN_ATTEND_DEPTH) * rows), sizeof *s.query);
    s.weights = ln_carve(carver, (uint64_t)rows, sizeof *s.weights);
    s.keys = ln_carve(carver, (uint64_t)(LN_ATTEND_BLOCK * key_size), sizeof *s.keys);
    return s;
}

uint64_t ln_columns_workspace(int64_t key_size) {
    ln_carver carver = {0};
    carve(&carver, key_size);
    return carver.used;
}

/* What scores are in: natural logarithms, or powers of two. */
static float unit_of(const ln_columns *c) {
    return c->logarithms ? 1 : LN_LOG2E;
}

static void load_queries(const ln_columns *c, int64_t row, int64_t rows, const scratch *s) {
    const float factor = c->soft_cap != 0 ? c->scale / c->soft_cap : c->scale * unit_of(c);
    for (int64_t r = 0; r < rows; r++) {
        const float *from =
            c->query + ln_columns_token(c, row + r) * c->query_stride + (row + r) % c->group * c->query_head_stride;
        for (int64_t column = 0; column < c->key_size; column += LN_ATTEND_DEPTH) {
            const int64_t n = ln_min_i64(LN_ATTEND_DEPTH, c->key_size - column);
            float *to = s->query + (column / LN_ATTEND_DEPTH * TILE_ROWS + r) * LN_ATTEND_STRIDE;
            memcpy(to, from + column, (size_t)n * sizeof *to);
            c->kernels->vector.scale(to, factor, n);
        }
    }
}

static bool few_rows(const ln_columns *c) {
    return c->tokens * c->group <= LN_ATTEND_FEW_ROWS;
}
/* Few rows read pages as they lie, and keys that are floats already need no decoding. */
static bool reads_page(const ln_columns *c, const ln_page_layout *layout) {
    return layout->key_type == LINNET_F32 || few_rows(c);
}

void ln_page_decode_keys(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                         float *to) {
    for (int64_t column = 0; column < layout->key_size; column += LN_ATTEND_DEPTH) {
        const ln_attend_part part = ln_page_keys(layout, page, column);
        const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, layout->key_size - column);
        kernels->decode[layout->key_type](&(ln_attend_operand){&part, 1, depth, LN_PAGE_TOKENS, false},
                                          to + column * LN_PAGE_TOKENS);
    }
}

static void decode_block(const ln_columns *c, int64_t page, int64_t pages, const scratch *s) {
    for (int64_t p = 0; p < pages; p++) {
        const ln_page_layout *layout = ln_page_layout_at(c->view, page + p);
        if (!reads_page(c, layout))
            ln_page_decode_keys(&c->kernels->attend, layout, ln_page_of(c->view, c->head, page + p),
                                s->keys + p * LN_PAGE_TOKENS * c->key_size);
    }
}

static void multiply_page(const ln_columns *c, int64_t page, int64_t at, int64_t rows, const scratch *s) {
    const ln_page_layout *layout = ln_page_layout_at(c->view, page);
    const ln_attend_product product = few_rows(c) ? c->kernels->attend.few[layout->key_type] : c->kernels->attend.many;
    for (int64_t column = 0; column < layout->key_size; column += LN_ATTEND_DEPTH) {
        ln_attend_part part = ln_page_keys(layout, ln_page_of(c->view, c->head, page), column);
        if (!reads_page(c, layout))
            part = (ln_attend_part){
                .codes = (const unsigned char *)(s->keys + (at * c->key_size + column) * LN_PAGE_TOKENS)};
        const ln_attend_operand keys = {&part, 1, ln_min_i64(LN_ATTEND_DEPTH, layout->key_size - column),
                                        LN_PAGE_TOKENS, false};
        product(&keys, s->query + column / LN_ATTEND_DEPTH * TILE_ROWS * LN_ATTEND_STRIDE, rows,
                s->weights + at * LN_PAGE_TOKENS, column > 0);
    }
}

static bool sees_anything(float lse) {
    return lse > -INFINITY; /* nor is it NaN */
}

/* Cap, bias, and -inf for what is not there or not seen. */
static void adjust_row(const ln_columns *c, const ln_columns_block *block, int64_t row, float *x) {
    const int64_t n = block->count;
    if (c->soft_cap != 0) c->kernels->attend.cap(x, n, c->soft_cap * unit_of(c));
    if (c->bias) c->kernels->vector.add_products(x, unit_of(c), &(float){1}, 1, c->bias + block->key, 0, n);
    for (int64_t at = 0; c->counts && at < n; at += LN_PAGE_TOKENS)
        for (int64_t i = c->counts[(block->key + at) / LN_PAGE_TOKENS]; i < LN_PAGE_TOKENS; i++) x[at + i] = -INFINITY;
    for (int64_t i = ln_columns_seen(c, block, row); i < n; i++) x[i] = -INFINITY;
}

static void take_logarithms(float *x, float lse, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float d = x[i] - lse, above = d > -INFINITY ? d : -INFINITY;
        x[i] = above < 0 ? above : 0;
    }
}

/* By attention's own softmax, which begins with the log-sum-exp as its maximum. Where a score is far above it, the
 * maximum moves: those weights are 1 all the same. */
static void take_weights(const ln_columns *c, float *x, float lse, int64_t n) {
    float sums[LN_ATTEND_LANES] = {0}, maximum = lse * LN_LOG2E, sum = 0;
    const float wanted = maximum;
    c->kernels->attend.softmax(x, n, &maximum, sums);
    for (int i = 0; i < LN_ATTEND_LANES; i++) sum += sums[i];
    if (maximum == wanted && sum <= 1) return; /* so each of them is */
    const float factor = maximum == wanted ? 1 : exp2f(maximum - wanted);
    for (int64_t i = 0; i < n; i++) {
        const float weight = factor * x[i], above = weight > 0 ? weight : 0;
        x[i] = above < 1 ? above : 1;
    }
}

static void weigh_row(const ln_columns *c, const ln_columns_block *block, int64_t row) {
    float *x = block->weights + row * LN_ATTEND_STRIDE;
    const int64_t r = block->row + row, n = block->count;
    const float lse = c->log_sum_exp[ln_columns_token(c, r) * c->log_sum_exp_stride + r % c->group];
    if (!sees_anything(lse)) {
        for (int64_t i = 0; i < n; i++) x[i] = c->logarithms ? -INFINITY : 0;
        return;
    }
    adjust_row(c, block, row, x);
    if (c->logarithms)
        take_logarithms(x, lse, n);
    else
        take_weights(c, x, lse, n);
}

static void run_block(const ln_columns *c, int64_t page, int64_t pages, const scratch *s, ln_columns_take take,
                      void *taker) {
    const int64_t rows = c->tokens * c->group;
    decode_block(c, page, pages, s);
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
        const ln_columns_block block = {page * LN_PAGE_TOKENS, pages * LN_PAGE_TOKENS, row,
                                        ln_min_i64(TILE_ROWS, rows - row), s->weights};
        if (ln_columns_seen(c, &block, block.rows - 1) == 0) continue;
        load_queries(c, row, block.rows, s);
        for (int64_t p = 0; p < pages; p++) multiply_page(c, page + p, p, block.rows, s);
        for (int64_t r = 0; r < block.rows; r++) weigh_row(c, &block, r);
        take(taker, c, &block);
    }
}

void ln_columns_run(const ln_columns *columns, void *workspace, ln_columns_take take, void *taker) {
    ln_carver carver = {.base = workspace};
    const scratch s = carve(&carver, columns->key_size);
    for (int64_t page = 0; page < columns->pages; page += BLOCK_PAGES)
        run_block(columns, page, ln_min_i64(BLOCK_PAGES, columns->pages - page), &s, take, taker);
}

void ln_columns_add(void *taker, const ln_columns *columns, const ln_columns_block *block) {
    float *to = (float *)taker + block->key;
    for (int64_t r = 0; r < block->rows; r++)
        columns->kernels->vector.add(to, block->weights + r * LN_ATTEND_STRIDE, block->count);
}

void ln_columns_most(void *taker, const ln_columns *columns, const ln_columns_block *block) {
    (void)columns;
    float *to = (float *)taker + block->key;
    for (int64_t r = 0; r < block->rows; r++) {
        const float *weights = block->weights + r * LN_ATTEND_STRIDE;
        for (int64_t i = 0; i < block->count; i++) to[i] = weights[i] > to[i] ? weights[i] : to[i];
    }
}
