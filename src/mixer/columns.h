/* What each key was given: the columns of attention's matrix of weights, without the matrix.
 *
 *     weight(row, key) = exp(scale query . key + bias(key) - log-sum-exp(row)),   0 where the row does not see the key
 *
 * Attention has left the log-sum-exp of its rows, so weights of some of them are found again block by block: those of
 * LN_ATTEND_BLOCK keys and some rows at a time are handed to a taker, whose business a sum, mean, maximum or count over
 * rows is. Blocks of keys come in ascending order, and within each its rows in ascending order; a weight depends on its
 * own row and key alone, so that neither threads nor the order of keys change a bit. */
#ifndef LN_MIXER_COLUMNS_H
#define LN_MIXER_COLUMNS_H

#include "base/checked.h"
#include "kernel/kernel.h"

/* Some queries of one key-value head. Row r is head r % group of token r / group. */
typedef struct ln_columns {
    const ln_kernels *kernels;
    const ln_page_view *view;
    int64_t head;          /* in the view */
    const uint8_t *counts; /* [pages]: tokens that are in each page; NULL: all are full */
    int64_t pages;
    const float *bias; /* [32 pages]: added to scores of a key, natural logarithm; NULL: none */
    int64_t group, key_size;
    float scale, soft_cap; /* soft_cap 0: none */
    int64_t tokens;        /* rows are tokens * group */
    int64_t position;      /* index of the first token's own key: token t sees keys up to position + t */
    const float *query;    /* by token, by head */
    int64_t query_stride, query_head_stride;
    const float *log_sum_exp; /* [token][group] */
    int64_t log_sum_exp_stride;
    const int32_t *chosen; /* [tokens]: what `query`, `log_sum_exp` and `position` know token i as; NULL: i */
    bool logarithms;       /* logarithms of weights, -inf for 0 */
} ln_columns;

typedef struct ln_columns_block {
    int64_t key, count; /* keys key .. key + count - 1, whole pages; absent tokens have weight 0 */
    int64_t row, rows;
    float *weights; /* [rows], LN_ATTEND_STRIDE apart: 0 .. 1, never NaN; the taker may use the place */
} ln_columns_block;
typedef void (*ln_columns_take)(void *taker, const ln_columns *columns, const ln_columns_block *block);

/* Bytes, a multiple of 64. */
uint64_t ln_columns_workspace(int64_t key_size);
/* workspace: aligned to 64. Rows of which nobody sees a block's keys are left out. */
void ln_columns_run(const ln_columns *columns, void *workspace, ln_columns_take take, void *taker);

/* A page's keys as floats: [layout->key_size][32 tokens]. */
void ln_page_decode_keys(const ln_attend_kernels *kernels, const ln_page_layout *layout, const unsigned char *page,
                         float *to);

static inline int64_t ln_columns_token(const ln_columns *columns, int64_t row) {
    return columns->chosen ? columns->chosen[row / columns->group] : row / columns->group;
}
/* How many of the block's keys, from its first on, its row `row` sees where they are present. */
static inline int64_t ln_columns_seen(const ln_columns *columns, const ln_columns_block *block, int64_t row) {
    const int64_t end = columns->position + ln_columns_token(columns, block->row + row) + 1 - block->key;
    return ln_max_i64(0, ln_min_i64(block->count, end));
}

/* Takers: over all rows, to[key] += weight, and to[key] = max(to[key], weight); taker: float to[32 pages]. */
void ln_columns_add(void *taker, const ln_columns *columns, const ln_columns_block *block);
void ln_columns_most(void *taker, const ln_columns *columns, const ln_columns_block *block);

#endif
