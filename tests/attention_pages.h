/* A lane of pages of different layouts, partly filled, with a bias for each key; attention over it in float64 on the
 * values that the pages hold; and what the library makes of it. What is not there is NaN, wherever a format has one. */
#ifndef LN_TESTS_ATTENTION_PAGES_H
#define LN_TESTS_ATTENTION_PAGES_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "base/random.h"
#include "kernel/page.h"
#include "mixer/attention.h"

enum { LANE_KINDS = 4, LANE_PAGES = 24 };

typedef struct lane {
    ln_attention attention;
    int64_t pages, piece_page, tokens; /* the last `tokens` keys are the queries', from piece_page on */
    int64_t layout_count;
    ln_page_layout layouts[LANE_KINDS];
    uint8_t kinds[LANE_PAGES], counts[LANE_PAGES];
    float key_bias[LANE_PAGES * LN_PAGE_TOKENS], alibi[64];
    ln_bias bias;
    uint64_t stride; /* bytes from page to page of a head, the largest layout's */
    unsigned char *bytes;
    const unsigned char *slots[LANE_PAGES];
    float *query;
    double *keys, *values; /* [key_value_heads][token][size] as they are held; columns that are not: 0 */
    double *expected, *sizes, *expected_lse;
    float *output, *lse;
} lane;

static inline int64_t lane_between(ln_random *random, int64_t least, int64_t most) {
    return least + (int64_t)ln_random_below(random, (uint64_t)(most - least + 1));
}

/* ---- pages ---- */

static inline void lane_fill(lane *l, ln_random *random) {
    const ln_attention *a = &l->attention;
    const int64_t keys = l->pages * LN_PAGE_TOKENS;
    for (int64_t i = 0; i < l->layout_count; i++)
        if (l->layouts[i].bytes > l->stride) l->stride = l->layouts[i].bytes;
    const uint64_t head_bytes = l->stride * (uint64_t)l->pages;
    l->bytes = aligned_alloc(64, head_bytes * (uint64_t)a->key_value_heads);
    memset(l->bytes, 0xff, head_bytes * (uint64_t)a->key_value_heads);
    l->keys = calloc((size_t)(a->key_value_heads * keys * a->key_size), sizeof(double));
    l->values = calloc((size_t)(a->key_value_heads * keys * a->value_size), sizeof(double));
    for (int64_t h = 0; h < a->key_value_heads; h++)
        for (int64_t key = 0; key < keys; key++) {
            const int64_t page = key / LN_PAGE_TOKENS, token = key % LN_PAGE_TOKENS;
            const ln_page_layout *layout = &l->layouts[l->kinds[page]];
            float key_row[LN_HEAD_MOST], value_row[LN_HEAD_MOST];
            l->slots[page] = l->bytes + (uint64_t)page * l->stride;
            if (token >= l->counts[page]) continue;
            unsigned char *to = l->bytes + (uint64_t)h * head_bytes + (uint64_t)page * l->stride;
            for (int64_t i = 0; i < a->key_size; i++) key_row[i] = (float)ln_random_normal(random);
            for (int64_t i = 0; i < a->value_size; i++) value_row[i] = (float)ln_random_normal(random);
            ln_page_encode_token(layout, to, token, key_row, value_row);
            ln_page_decode_token(layout, to, token, key_row, value_row);
            double *kept = l->keys + (h * keys + key) * a->key_size;
            for (int64_t i = 0; i < layout->key_size; i++) kept[i] = (double)key_row[i];
            kept = l->values + (h * keys + key) * a->value_size;
            for (int64_t i = 0; i < layout->value_size; i++) kept[i] = (double)value_row[i];
        }
}

/* ---- what is asked ---- */

static inline ln_page_layout lane_layout(ln_random *random, const linnet_type *types, int64_t type_count,
                                         const ln_attention *a) {
    ln_page_layout layout;
    const int64_t size = ln_random_below(random, 3) ? a->key_size : 8 * lane_between(random, 1, a->key_size / 8);
    ln_page_layout_of(types[ln_random_below(random, (uint64_t)type_count)],
                      types[ln_random_below(random, (uint64_t)type_count)], size, a->value_size, &layout);
    return layout;
}

static inline uint8_t lane_count(ln_random *random) {
    static const uint8_t counts[] = {0, 1, 31, 32, 32, 32, 32, 32};
    const uint64_t i = ln_random_below(random, 10);
    return i < sizeof counts ? counts[i] : (uint8_t)ln_random_below(random, 33);
}

/* Of these pages, `tokens` new ones among them. */
static inline lane lane_make(const ln_attention *attention, const linnet_type *types, int64_t type_count, int64_t pages,
                             int64_t tokens, uint64_t seed) {
    ln_random random;
    ln_random_seed(&random, seed);
    lane l = {.attention = *attention, .pages = pages, .tokens = tokens};
    const ln_attention *a = attention;
    l.piece_page = pages - ln_ceil_div(tokens, LN_PAGE_TOKENS);
    l.layout_count = lane_between(&random, 1, LANE_KINDS);
    for (int64_t i = 0; i < l.layout_count; i++) l.layouts[i] = lane_layout(&random, types, type_count, a);
    for (int64_t p = 0; p < pages; p++) {
        l.kinds[p] = (uint8_t)ln_random_below(&random, (uint64_t)l.layout_count);
        const int64_t new = tokens - (p - l.piece_page) * LN_PAGE_TOKENS;
        l.counts[p] = p < l.piece_page ? lane_count(&random) : (uint8_t)ln_min_i64(LN_PAGE_TOKENS, new);
    }
    lane_fill(&l, &random);
    const int64_t q = tokens * a->heads * a->key_size, o = tokens * a->heads * a->value_size;
    l.query = malloc((size_t)q * sizeof(float));
    for (int64_t i = 0; i < q; i++) l.query[i] = (float)ln_random_normal(&random);
    for (int64_t key = 0; key < pages * LN_PAGE_TOKENS; key++)
        l.key_bias[key] =
            key % LN_PAGE_TOKENS < l.counts[key / LN_PAGE_TOKENS] ? logf((float)lane_between(&random, 1, 40)) : NAN;
    for (int64_t h = 0; h < a->heads; h++) l.alibi[h] = 0.01f * (float)h;
    l.bias = (ln_bias){.heads = a->heads, .key_value_heads = a->key_value_heads};
    l.output = malloc((size_t)o * sizeof(float));
    l.expected = malloc((size_t)o * sizeof(double));
    l.sizes = malloc((size_t)o * sizeof(double));
    l.lse = malloc((size_t)(tokens * a->heads) * sizeof(float));
    l.expected_lse = malloc((size_t)(tokens * a->heads) * sizeof(double));
    return l;
}

/* For a lane at its last address. */
static inline void lane_set_biases(lane *l, bool keys, bool alibi) {
    l->bias.keys = keys ? l->key_bias : NULL;
    l->bias.alibi = alibi ? l->alibi : NULL;
}

static inline void lane_free(lane *l) {
    void *const all[] = {l->bytes, l->query, l->keys,   l->values,      l->expected,
                         l->sizes, l->lse,   l->output, l->expected_lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* ---- float64 ---- */

static inline void lane_solve_row(lane *l, int64_t t, int64_t head) {
    const ln_attention *a = &l->attention;
    const int64_t all = l->pages * LN_PAGE_TOKENS, position = l->piece_page * LN_PAGE_TOKENS + t;
    const int64_t shared = head / (a->heads / a->key_value_heads), at = t * a->heads + head;
    double score[LANE_PAGES * LN_PAGE_TOKENS], most = -INFINITY, sum = 0;
    for (int64_t key = 0; key < all; key++) {
        score[key] = -INFINITY;
        if (key % LN_PAGE_TOKENS >= l->counts[key / LN_PAGE_TOKENS] || (a->mask.causal && key > position)) continue;
        double s = 0;
        for (int64_t i = 0; i < a->key_size; i++)
            s += (double)l->query[at * a->key_size + i] * l->keys[(shared * all + key) * a->key_size + i];
        s *= (double)a->scale;
        if (a->soft_cap != 0) s = (double)a->soft_cap * tanh(s / (double)a->soft_cap);
        if (l->bias.keys) s += (double)l->bias.keys[key];
        if (l->bias.alibi) s -= (double)l->bias.alibi[head] * fabs((double)(position - key));
        score[key] = s;
        most = fmax(most, s);
    }
    double *to = l->expected + at * a->value_size, *sizes = l->sizes + at * a->value_size;
    memset(to, 0, (size_t)a->value_size * sizeof *to);
    memset(sizes, 0, (size_t)a->value_size * sizeof *sizes);
    for (int64_t key = 0; key < all; key++)
        if (score[key] != -INFINITY) sum += exp(score[key] - most);
    l->expected_lse[at] = sum > 0 ? most + log(sum) : -INFINITY;
    for (int64_t key = 0; key < all; key++) {
        if (score[key] == -INFINITY) continue;
        for (int64_t i = 0; i < a->value_size; i++) {
            const double x = exp(score[key] - most) / sum * l->values[(shared * all + key) * a->value_size + i];
            to[i] += x;
            sizes[i] += fabs(x);
        }
    }
}

static inline void lane_solve(lane *l) {
    for (int64_t t = 0; t < l->tokens; t++)
        for (int64_t head = 0; head < l->attention.heads; head++) lane_solve_row(l, t, head);
}

/* ---- the library ---- */

static inline ln_attention_sequence lane_sequence(const lane *l) {
    const ln_attention *a = &l->attention;
    return (ln_attention_sequence){.view = {.layouts = l->layouts,
                                            .layout_count = l->layout_count,
                                            .kinds = l->kinds,
                                            .key_value_heads = a->key_value_heads,
                                            .slots = (const unsigned char *const *)l->slots,
                                            .slot_count = l->pages,
                                            .head_stride = l->stride * (uint64_t)l->pages,
                                            .end = l->piece_page * LN_PAGE_TOKENS + l->tokens},
                                   .keys = l->piece_page * LN_PAGE_TOKENS + l->tokens,
                                   .tokens = l->tokens,
                                   .position = l->piece_page * LN_PAGE_TOKENS,
                                   .query = l->query,
                                   .output = l->output,
                                   .query_stride = a->heads * a->key_size,
                                   .query_head_stride = a->key_size,
                                   .output_stride = a->heads * a->value_size,
                                   .output_head_stride = a->value_size,
                                   .log_sum_exp = l->lse,
                                   .bias = l->bias,
                                   .counts = l->counts};
}

/* packed: keys and values for the matrix units once, where these serve. */
static inline void lane_run(const lane *l, const ln_kernels *kernels, linnet_context *context, int threads,
                            const ln_attention_sequence *sequence, bool packed) {
    const ln_attention *a = &l->attention;
    ln_attention_sequence mine = *sequence;
    const uint64_t bytes = ln_attention_workspace(kernels, threads, a, 1, l->tokens);
    const uint64_t size = packed ? ln_attention_operand_bytes(kernels, a, mine.keys) : 0;
    unsigned char *workspace = ln_allocate(context, bytes, 1, "workspace"),
                  *operands = packed ? ln_allocate(context, size, 1, "operands") : NULL;
    memset(workspace, 0xff, bytes);
    if (packed) {
        memset(operands, 0xff, size);
        ln_attention_pack(kernels, context->team, a, &mine, operands);
    }
    ln_attention_run(kernels, context->team, a, &mine, 1, workspace);
    ln_release(context, workspace);
    ln_release(context, operands);
}

/* Largest errors: of outputs in units of the sizes of what was summed, of log-sum-exp. */
static inline double lane_error(const lane *l) {
    double worst = 0;
    for (int64_t i = 0; i < l->tokens * l->attention.heads * l->attention.value_size; i++) {
        const double error = fabs((double)l->output[i] - l->expected[i]) / (l->sizes[i] + 1e-30);
        if (!(error <= worst)) worst = error;
    }
    return worst;
}
static inline double lane_lse_error(const lane *l) {
    double worst = 0;
    for (int64_t i = 0; i < l->tokens * l->attention.heads; i++) {
        if (l->expected_lse[i] == (double)l->lse[i]) continue;
        const double error = fabs((double)l->lse[i] - l->expected_lse[i]) / fmax(1, fabs(l->expected_lse[i]));
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

#endif
