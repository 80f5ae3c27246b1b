/* Owns: the table of selectors, and the summaries by which pages are chosen.
 *
 * Vectors lie in pages of keys alone: vector v of unit u is token u % 32 of page u / 32 * vectors + v.
 *
 * Invariant of boxes: what is decoded of a largest number is no less than any key's, of a smallest no more. Encoding
 * rounds by at most half a step; numbers are moved outward by a little more than that before. */
#include "memory/select.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/page.h"
#include "memory/order.h"

static const ln_selector selectors[] = {
    {"quest", "P053", "pages by the box around their keys, a bound of every score", LN_SUMMARY_BOX, 1, 1, 1},
    {"lserve", "P053", "as quest, by boxes around half pages, each choice for several steps", LN_SUMMARY_BOX, 2, 1, 4},
    {"sentence", "P225", "pages, in the place of sentences, by their mean key", LN_SUMMARY_MEAN, 1, 1, 1},
    {"squeezed", "P209", "pages by the best centre of clusters of their keys", LN_SUMMARY_CENTRES, 4, 1, 1},
    {"zoomr", "P267", "groups of pages by a coarse summary, the best ones opened in full", LN_SUMMARY_MEAN, 1, 4, 1},
};
enum { SELECTORS = sizeof selectors / sizeof *selectors, PARTS_MOST = 4, ROUNDS = 4 };

const ln_selector *ln_selector_at(int index) {
    return index >= 0 && index < SELECTORS ? &selectors[index] : NULL;
}

const ln_selector *ln_selector_of(const char *name) {
    for (int i = 0; i < SELECTORS; i++)
        if (!strcmp(selectors[i].name, name)) return &selectors[i];
    return NULL;
}

bool ln_summary_of(const ln_policy *policy, int64_t key_size, ln_summary *summary) {
    const ln_selector *selector = policy->selector;
    *summary = (ln_summary){.selector = selector, .key_size = key_size};
    summary->unit = (int64_t)ln_policy_parameter_of(policy, "open", selector->open);
    summary->vectors = selector->parts * (selector->kind == LN_SUMMARY_BOX ? 2 : 1);
    if (!ln_page_layout_of(LINNET_Q8_0, LINNET_Q8_0, key_size, key_size, &summary->layout)) return false;
    ln_page_layout_join(&summary->layout);
    return true;
}

static int64_t units_of(const ln_summary *summary, int64_t pages) {
    return ln_ceil_div(pages, summary->unit);
}

uint64_t ln_summary_bytes(const ln_summary *summary, int64_t pages) {
    return (uint64_t)(ln_ceil_div(units_of(summary, pages), LN_PAGE_TOKENS) * summary->vectors) * summary->layout.bytes;
}

static uint64_t vector_page(const ln_summary *summary, int64_t unit, int vector) {
    return (uint64_t)(unit / LN_PAGE_TOKENS * summary->vectors + vector) * summary->layout.bytes;
}

/* ---- summaries ---- */

static void take_vector(const ln_summary *summary, const unsigned char *lane, int64_t unit, int vector, float *to) {
    ln_page_decode_token(&summary->layout, lane + vector_page(summary, unit, vector), unit % LN_PAGE_TOKENS, to, NULL);
}

static void put_vector(const ln_summary *summary, unsigned char *lane, int64_t unit, int vector, const float *from) {
    ln_page_encode_token(&summary->layout, lane + vector_page(summary, unit, vector), unit % LN_PAGE_TOKENS, from,
                         NULL);
}

/* Outward by what encoding may take back: half a step of each block of 32 channels, and the rounding of its scale. */
static void move_outward(float *x, int64_t n, float sign) {
    for (int64_t b = 0; b < n; b += 32) {
        const int64_t end = ln_min_i64(n, b + 32);
        float most = 0;
        for (int64_t i = b; i < end; i++) most = fmaxf(most, fabsf(x[i]));
        for (int64_t i = b; i < end; i++) x[i] += sign * (0.0047F * most + 1e-7F);
    }
}

/* Channel by channel over some keys. The old box is decoded from what already lies outward: it grows by no more. */
static void add_box(const ln_summary *summary, unsigned char *lane, int64_t unit, int part, bool first,
                    const float *keys, int64_t count) {
    const int64_t n = summary->key_size;
    float most[LN_HEAD_MOST], least[LN_HEAD_MOST], old[LN_HEAD_MOST];
    memcpy(most, keys, (size_t)n * sizeof *most);
    memcpy(least, keys, (size_t)n * sizeof *least);
    for (int64_t t = 1; t < count; t++) {
        for (int64_t i = 0; i < n; i++) {
            most[i] = fmaxf(most[i], keys[t * n + i]);
            least[i] = fminf(least[i], keys[t * n + i]);
        }
    }
    if (!first) {
        take_vector(summary, lane, unit, 2 * part, old);
        for (int64_t i = 0; i < n; i++) most[i] = fmaxf(most[i], old[i]);
        take_vector(summary, lane, unit, 2 * part + 1, old);
        for (int64_t i = 0; i < n; i++) least[i] = fminf(least[i], old[i]);
    }
    move_outward(most, n, 1);
    move_outward(least, n, -1);
    put_vector(summary, lane, unit, 2 * part, most);
    put_vector(summary, lane, unit, 2 * part + 1, least);
}

/* before: keys that the vector is the mean of already. */
static void add_mean(const ln_summary *summary, unsigned char *lane, int64_t unit, int part, int64_t before,
                     const float *keys, int64_t count) {
    const int64_t n = summary->key_size;
    float mean[LN_HEAD_MOST] = {0};
    if (before) take_vector(summary, lane, unit, part, mean);
    for (int64_t i = 0; i < n; i++) mean[i] *= (float)before;
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < n; i++) mean[i] += keys[t * n + i];
    for (int64_t i = 0; i < n; i++) mean[i] /= (float)(before + count);
    put_vector(summary, lane, unit, part, mean);
}

static float distance_of(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

/* Lloyd's rounds from keys far apart: the first one, then each time the key farthest from all taken. */
static void add_centres(const ln_summary *summary, unsigned char *lane, int64_t unit, const float *keys) {
    const int64_t n = summary->key_size, tokens = LN_PAGE_TOKENS;
    const int parts = summary->selector->parts;
    float centre[PARTS_MOST][LN_HEAD_MOST], nearest[LN_PAGE_TOKENS];
    for (int c = 0; c < parts; c++) {
        int64_t best = 0;
        for (int64_t t = 0; c > 0 && t < tokens; t++) {
            const float d = distance_of(keys + t * n, centre[c - 1], n);
            nearest[t] = c > 1 ? fminf(nearest[t], d) : d;
            if (nearest[t] > nearest[best]) best = t;
        }
        memcpy(centre[c], keys + best * n, (size_t)n * sizeof(float));
    }
    for (int round = 0; round < ROUNDS; round++) {
        int of[LN_PAGE_TOKENS], members[PARTS_MOST] = {0};
        for (int64_t t = 0; t < tokens; t++) {
            of[t] = 0;
            nearest[t] = distance_of(keys + t * n, centre[0], n);
            for (int c = 1; c < parts; c++) {
                const float d = distance_of(keys + t * n, centre[c], n);
                if (d >= nearest[t]) continue;
                nearest[t] = d;
                of[t] = c;
            }
            members[of[t]]++;
        }
        for (int c = 0; c < parts; c++) {
            if (!members[c]) continue;
            memset(centre[c], 0, (size_t)n * sizeof(float));
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = 0; of[t] == c && i < n; i++) centre[c][i] += keys[t * n + i] / (float)members[c];
        }
    }
    for (int c = 0; c < parts; c++) put_vector(summary, lane, unit, c, centre[c]);
}

void ln_summary_add(const ln_summary *summary, unsigned char *lane, int64_t n, const float *keys) {
    const ln_selector *selector = summary->selector;
    const int64_t unit = n / summary->unit, before = n % summary->unit, count = LN_PAGE_TOKENS / selector->parts;
    if (selector->kind == LN_SUMMARY_CENTRES && summary->unit == 1) {
        add_centres(summary, lane, unit, keys);
        return;
    }
    for (int p = 0; p < selector->parts; p++) {
        const float *from = keys + p * count * summary->key_size;
        if (selector->kind == LN_SUMMARY_BOX)
            add_box(summary, lane, unit, p, before == 0, from, count);
        else
            add_mean(summary, lane, unit, p, before * count, from, count);
    }
}

/* ---- scores ---- */

int64_t ln_summary_workspace(const ln_summary *summary, int64_t pages) {
    const int64_t units = ln_ceil_div(units_of(summary, pages), LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
    return LN_ATTEND_FEW_ROWS * units + 3 * LN_ATTEND_FEW_ROWS * LN_ATTEND_STRIDE;
}

/* c [rows][32] (+)= queries times the vectors of a page; sign 1 and -1: only columns of that sign of the queries. */
static void multiply(const ln_summary *summary, const ln_kernels *kernels, const unsigned char *page,
                     const float *const *queries, int64_t rows, float sign, float *a, float *c, bool add) {
    for (int64_t first = 0; first < summary->key_size; first += LN_ATTEND_DEPTH) {
        const int64_t depth = ln_min_i64(LN_ATTEND_DEPTH, summary->key_size - first);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < depth; i++) {
                const float q = queries[r][first + i];
                a[r * LN_ATTEND_STRIDE + i] = sign * q >= 0 ? q : 0;
            }
        const ln_attend_part part = ln_page_keys(&summary->layout, page, first);
        const ln_attend_operand b = {&part, 1, depth, LN_PAGE_TOKENS, false};
        kernels->attend.few[summary->layout.key_type](&b, a, rows, c, add || first > 0);
    }
}

/* Rows of all units, unscaled. */
static void score_rows(const ln_summary *summary, const ln_kernels *kernels, const unsigned char *lane, int64_t units,
                       const float *const *queries, int64_t rows, float *score, float *workspace) {
    const bool box = summary->selector->kind == LN_SUMMARY_BOX;
    const int64_t stride = ln_ceil_div(units, LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
    float *a = workspace, *c = a + LN_ATTEND_FEW_ROWS * LN_ATTEND_STRIDE;
    for (int64_t u = 0; u < units; u += LN_PAGE_TOKENS) {
        for (int p = 0; p < summary->selector->parts; p++) {
            const unsigned char *page = lane + vector_page(summary, u, box ? 2 * p : p);
            if (box) {
                multiply(summary, kernels, page, queries, rows, 1, a, c, false);
                multiply(summary, kernels, page + summary->layout.bytes, queries, rows, -1, a, c, true);
            } else {
                multiply(summary, kernels, page, queries, rows, 0, a, c, false);
            }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < LN_PAGE_TOKENS; i++) {
                    float *to = &score[r * stride + u + i];
                    const float x = c[r * LN_ATTEND_STRIDE + i];
                    *to = p == 0 || x > *to ? x : *to;
                }
        }
    }
}

int64_t ln_summary_score(const ln_summary *summary, const ln_kernels *kernels, const unsigned char *lane, int64_t pages,
                         const float *const *queries, int64_t rows, float scale, float *score, float *workspace) {
    const int64_t units = units_of(summary, pages), stride = ln_ceil_div(units, LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
    float *row_scores = workspace + 3 * LN_ATTEND_FEW_ROWS * LN_ATTEND_STRIDE;
    for (int64_t u = 0; u < units; u++) score[u] = -INFINITY;
    for (int64_t r = 0; r < rows; r += LN_ATTEND_FEW_ROWS) {
        const int64_t count = ln_min_i64(LN_ATTEND_FEW_ROWS, rows - r);
        score_rows(summary, kernels, lane, units, queries + r, count, row_scores, workspace);
        for (int64_t k = 0; k < count; k++) {
            const float *from = row_scores + k * stride;
            float best = -INFINITY;
            for (int64_t u = 0; u < units; u++) best = from[u] > best ? from[u] : best;
            for (int64_t u = 0; u < units; u++) {
                const float x = scale * (from[u] - best);
                score[u] = x > score[u] ? x : score[u];
            }
        }
    }
    return units;
}

/* ---- choice ---- */

static bool better(const void *what, int32_t a, int32_t b) {
    const float *score = what;
    return score[a] != score[b] ? score[a] > score[b] : a > b;
}

int64_t ln_summary_choose(const ln_summary *summary, const float *score, int64_t pages, int64_t first, int64_t most,
                          int32_t *chosen, int64_t *front) {
    const int64_t unit = summary->unit, units = units_of(summary, pages);
    const int64_t all = ln_min_i64(units, ln_max_i64(1, most / unit)),
                  best = ln_min_i64(all, ln_max_i64(1, first / unit));
    int64_t n = 0;
    for (int64_t u = 0; u < units; u++) chosen[u] = (int32_t)u;
    ln_order_select(chosen, units, all, better, score);
    ln_order_select(chosen, all, best, better, score);
    *front = 0;
    for (int64_t u = 0; u < all; u++) {
        const int64_t count = ln_min_i64(unit, pages - chosen[u] * unit);
        n += count;
        if (u < best) *front += count;
    }
    /* Units become their pages, the last one first: its pages lie behind all units that are left. */
    int64_t at = n;
    for (int64_t u = all - 1; u >= 0; u--) {
        const int64_t of = chosen[u], count = ln_min_i64(unit, pages - of * unit);
        at -= count;
        for (int64_t i = count - 1; i >= 0; i--) chosen[at + i] = (int32_t)(of * unit + i);
    }
    return n;
}
