/* Owns: the table of scorers, and what they share. */
#include "memory/score_inside.h"

#include <math.h>
#include <string.h>

#include "base/random.h"

static const ln_scorer *const scorers[] = {
    &ln_scorer_window,   &ln_scorer_random,    &ln_scorer_h2o,      &ln_scorer_scissorhands, &ln_scorer_snapkv,
    &ln_scorer_critical, &ln_scorer_tova,      &ln_scorer_alisa,    &ln_scorer_ems,          &ln_scorer_zipcache,
    &ln_scorer_kvzip,    &ln_scorer_keyformer, &ln_scorer_expected, &ln_scorer_keydiff,      &ln_scorer_l2norm,
    &ln_scorer_lagkv,    &ln_scorer_gate,
};
enum { SCORERS = sizeof scorers / sizeof *scorers };

const ln_scorer *ln_scorer_at(int index) {
    return index >= 0 && index < SCORERS ? scorers[index] : NULL;
}

const ln_scorer *ln_scorer_of(const char *name) {
    for (int i = 0; i < SCORERS; i++)
        if (strcmp(scorers[i]->name, name) == 0) return scorers[i];
    return NULL;
}

void ln_score_share(float *const *scores, int64_t lanes, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        double sum = 0;
        for (int64_t lane = 0; lane < lanes; lane++) sum += (double)scores[lane][i];
        for (int64_t lane = 0; lane < lanes; lane++) scores[lane][i] = (float)(sum / (double)lanes);
    }
}

/* ---- the scene ---- */

int64_t ln_scene_end(const ln_scene *s) {
    int64_t page = s->pages;
    while (page > 0 && ln_scene_count(s, page - 1) == 0) page--;
    return page == 0 ? 0 : (page - 1) * LN_PAGE_TOKENS + ln_scene_count(s, page - 1);
}

ln_columns ln_scene_columns(const ln_scene *s, int64_t tokens) {
    const int64_t first = s->observed - tokens;
    return (ln_columns){.kernels = s->kernels,
                        .view = s->view,
                        .head = s->view_head,
                        .counts = s->counts,
                        .pages = s->pages,
                        .bias = s->key_bias,
                        .group = s->group,
                        .key_size = s->key_size,
                        .scale = s->scale,
                        .soft_cap = s->soft_cap,
                        .tokens = tokens,
                        .position = ln_scene_end(s) - tokens,
                        .query = tokens ? s->query + first * s->query_stride : NULL,
                        .query_stride = s->query_stride,
                        .query_head_stride = s->query_head_stride,
                        .log_sum_exp = tokens ? s->log_sum_exp + first * s->log_sum_exp_stride : NULL,
                        .log_sum_exp_stride = s->log_sum_exp_stride};
}

uint64_t ln_scene_hash(const ln_scene *s, uint64_t a, uint64_t b) {
    uint64_t x = (uint64_t)s->layer << 32 | (uint64_t)s->head;
    x = ln_random_mix(&x) ^ a;
    x = ln_random_mix(&x) ^ b;
    return ln_random_mix(&x);
}

/* ---- neighbours ---- */

/* By the 11 bits from `shift` on; equal ones stay in order. */
static void sort_digit(const ln_scene *s, const int32_t *from, int32_t *to, int64_t n, int shift) {
    enum { DIGITS = 2048 };
    int64_t begin[DIGITS + 1] = {0};
    for (int64_t i = 0; i < n; i++) begin[((uint32_t)s->positions[from[i]] >> shift & (DIGITS - 1)) + 1]++;
    for (int d = 0; d < DIGITS; d++) begin[d + 1] += begin[d];
    for (int64_t i = 0; i < n; i++) to[begin[(uint32_t)s->positions[from[i]] >> shift & (DIGITS - 1)]++] = from[i];
}

int64_t ln_scene_order(const ln_scene *s, int32_t *order, int32_t *other) {
    int64_t n = 0;
    bool ascending = true;
    LN_SCENE_TOKENS(s, i) {
        ascending = ascending && (n == 0 || s->positions[order[n - 1]] < s->positions[i]);
        order[n++] = (int32_t)i;
    }
    if (ascending) return n;
    sort_digit(s, order, other, n, 0);
    sort_digit(s, other, order, n, 11);
    sort_digit(s, order, other, n, 22);
    memcpy(order, other, (size_t)n * sizeof *order);
    return n;
}

void ln_scene_pool(const ln_scene *s, const float *from, int64_t end, int64_t width, bool maximum, int32_t *order,
                   int32_t *other, float *score) {
    const int64_t n = ln_scene_order(s, order, other), reach = width / 2;
    int64_t first = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t position = s->positions[order[i]];
        if (position >= end) {
            score[order[i]] = from[order[i]];
            continue;
        }
        while (s->positions[order[first]] < position - reach) first++;
        float sum = 0, most = 0;
        for (int64_t j = first; j < n; j++) {
            const int64_t near = s->positions[order[j]];
            if (near > position + reach || near >= end) break;
            const float x = from[order[j]];
            sum += x;
            most = x > most ? x : most;
        }
        score[order[i]] = maximum ? most : sum / (float)(2 * reach + 1);
    }
}

/* ---- values ---- */

uint64_t ln_scene_page_bytes(const ln_scene *shape) {
    return (uint64_t)(LN_PAGE_TOKENS * ln_max_i64(shape->key_size, LN_PANEL)) * sizeof(float);
}

/* sums[t] += the power of `columns` values from `from` on, token t's stride apart from those of token 0. */
static void add_powers(const float *from, int64_t columns, int64_t step, int64_t token_step, int64_t count, int power,
                       double *sums) {
    for (int64_t t = 0; t < count; t++) {
        for (int64_t i = 0; i < columns; i++) {
            const double x = (double)from[i * step + t * token_step];
            sums[t] += power == 1 ? fabs(x) : x * x;
        }
    }
}

static void page_norms(const ln_scene *s, int64_t page, int power, float *workspace, double *sums) {
    const ln_attend_kernels *kernels = &s->kernels->attend;
    const ln_page_layout *layout = ln_page_layout_at(s->view, page);
    const unsigned char *bytes = ln_page_of(s->view, s->view_head, page);
    const int64_t count = ln_scene_count(s, page);
    if (layout->value_in_key) {
        ln_page_decode_keys(kernels, layout, bytes, workspace);
        add_powers(workspace, layout->value_size, LN_PAGE_TOKENS, 1, count, power, sums);
        return;
    }
    for (int64_t panel = 0; panel * LN_PANEL < layout->value_size; panel++) {
        const int64_t columns = ln_min_i64(LN_PANEL, layout->value_size - panel * LN_PANEL);
        const ln_attend_part part = ln_page_values(layout, bytes, panel, 0);
        kernels->decode[layout->value_type](&(ln_attend_operand){&part, 1, LN_PAGE_TOKENS, columns, true}, workspace);
        add_powers(workspace, columns, 1, columns, count, power, sums);
    }
}

void ln_scene_value_norms(const ln_scene *s, int power, float *workspace, float *norms, int64_t stride) {
    for (int64_t page = 0; page < s->pages; page++) {
        float *to = norms + page * LN_PAGE_TOKENS * stride;
        double sums[LN_PAGE_TOKENS] = {0};
        bool new = false;
        for (int64_t t = 0; t < ln_scene_count(s, page); t++) new = new || to[t * stride] == 0;
        if (!new) continue;
        page_norms(s, page, power, workspace, sums);
        for (int64_t t = 0; t < ln_scene_count(s, page); t++)
            if (to[t * stride] == 0) to[t * stride] = (float)fmin(power == 1 ? sums[t] : sqrt(sums[t]), 1e30);
    }
}
