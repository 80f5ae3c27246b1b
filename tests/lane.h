/* A lane for tests of what reads its pages: a text of random keys, values and queries, whose tokens lie in pages of
 * several layouts, partly filled, in any order; and attention's matrix in float64, written down in full.
 *
 * Numbers are bf16, so that pages of float32 and of bf16 hold them alike; of other pages, what they decode to counts.
 */
#ifndef LN_TESTS_LANE_H
#define LN_TESTS_LANE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cpu.h"
#include "base/random.h"
#include "kernel/kernel.h"
#include "kernel/page.h"
#include "mixer/mask.h"

enum { LANE_TEXT = 1200, LANE_PAGES = 120, LANE_SLOTS = 32 * LANE_PAGES, LANE_KINDS = 6, LANE_KEEPS = 2 };

typedef struct lane {
    ln_kernels kernels;
    ln_random random;
    int64_t group, key_size, value_size;
    float scale, soft_cap;
    float *key, *value, *query; /* by position: [LANE_TEXT][size], queries [LANE_TEXT][group][key_size] */
    float bias[LANE_SLOTS];
    bool biased;
    /* the pages */
    int64_t text, pages; /* tokens so far */
    int64_t used_kinds;  /* pages are packed anew in the first of the layouts */
    ln_page_layout layouts[LANE_KINDS];
    uint8_t kinds[LANE_PAGES], counts[LANE_PAGES];
    int32_t positions[LANE_SLOTS];
    int64_t keeps; /* floats in kept of each token */
    float kept[LANE_SLOTS * LANE_KEEPS];
    unsigned char *bytes;
    float *rows; /* [32 pages][key_size]: keys as the pages have them */
    const unsigned char *slots[LANE_PAGES];
    ln_page_view view;
} lane;

static inline float lane_number(lane *l) {
    return ln_bf16_float(ln_float_bf16((float)ln_random_normal(&l->random)));
}

static inline void lane_open(lane *l, uint64_t seed, unsigned cpu, int64_t group, int64_t key_size,
                             int64_t value_size) {
    memset(l, 0, sizeof *l);
    ln_kernels_choose(cpu, &l->kernels);
    ln_random_seed(&l->random, seed);
    l->group = group, l->key_size = key_size, l->value_size = value_size;
    l->scale = 1 / sqrtf((float)key_size);
    l->key = malloc(sizeof(float) * (size_t)(LANE_TEXT * key_size));
    l->value = malloc(sizeof(float) * (size_t)(LANE_TEXT * value_size));
    l->query = malloc(sizeof(float) * (size_t)(LANE_TEXT * group * key_size));
    for (int64_t i = 0; i < LANE_TEXT * key_size; i++) l->key[i] = lane_number(l);
    for (int64_t i = 0; i < LANE_TEXT * value_size; i++) l->value[i] = lane_number(l);
    for (int64_t i = 0; i < LANE_TEXT * group * key_size; i++) l->query[i] = 2 * lane_number(l);
    for (int64_t i = 0; i < LANE_SLOTS; i++) l->bias[i] = (float)ln_random_unit(&l->random);
    static const linnet_type types[LANE_KINDS] = {LINNET_F32,  LINNET_BF16, LINNET_F32,
                                                  LINNET_Q8_0, LINNET_Q4,   LINNET_Q3};
    for (int k = 0; k < LANE_KINDS; k++)
        ln_page_layout_of(types[k], types[k], k == 2 ? key_size / 2 / 8 * 8 : key_size, value_size, &l->layouts[k]);
    ln_page_layout_by_channel(&l->layouts[5]);
    l->used_kinds = 2; /* what holds the numbers as they are */
    l->rows = malloc(sizeof(float) * (size_t)(LANE_SLOTS * key_size));
    l->bytes = aligned_alloc(64, (size_t)l->layouts[0].bytes * LANE_PAGES);
    memset(l->bytes, 0xff, (size_t)l->layouts[0].bytes * LANE_PAGES); /* NaN where nothing was written */
}

static inline void lane_close(lane *l) {
    free(l->key);
    free(l->value);
    free(l->query);
    free(l->bytes);
    free(l->rows);
}

static inline void lane_add_page(lane *l, int kind, const int32_t *positions, int64_t count) {
    const int64_t page = l->pages++;
    const ln_page_layout *layout = &l->layouts[kind];
    unsigned char *to = l->bytes + (uint64_t)page * l->layouts[0].bytes;
    float keys[32][LN_HEAD_MOST], values[32][LN_HEAD_MOST];
    for (int64_t t = 0; t < count; t++) {
        l->positions[32 * page + t] = positions[t];
        memcpy(keys[t], l->key + positions[t] * l->key_size, (size_t)l->key_size * sizeof(float));
        memcpy(values[t], l->value + positions[t] * l->value_size, (size_t)l->value_size * sizeof(float));
    }
    if (count) ln_page_encode(layout, to, count, keys[0], LN_HEAD_MOST, values[0], LN_HEAD_MOST);
    for (int64_t t = 0; t < count; t++) {
        float *row = l->rows + (32 * page + t) * l->key_size;
        memset(row, 0, (size_t)l->key_size * sizeof *row);
        ln_page_decode_token(layout, to, t, row, NULL);
    }
    if (layout->key_type == LINNET_F32) { /* what was not written is anything */
        float *codes = (float *)(void *)to;
        for (int64_t i = 0; i < layout->key_size; i++)
            for (int64_t t = count; t < 32; t++) codes[32 * i + t] = NAN;
    }
    l->kinds[page] = (uint8_t)kind;
    l->counts[page] = (uint8_t)count;
    l->slots[page] = to;
    l->view = (ln_page_view){.layout = l->layouts[0],
                             .layouts = l->layouts,
                             .layout_count = LANE_KINDS,
                             .kinds = l->kinds,
                             .key_value_heads = 1,
                             .slots = l->slots,
                             .slot_count = LANE_PAGES,
                             .end = 32 * l->pages};
}

/* The next tokens of the text. */
static inline void lane_append(lane *l, int64_t tokens) {
    while (tokens > 0) {
        const int64_t count = ln_min_i64(32, tokens);
        int32_t positions[32];
        memset(l->kept + 32 * l->pages * l->keeps, 0, 32 * (size_t)l->keeps * sizeof *l->kept);
        for (int64_t t = 0; t < count; t++) positions[t] = (int32_t)(l->text + t);
        lane_add_page(l, 0, positions, count);
        l->text += count;
        tokens -= count;
    }
}

/* Puts what is there, or of each token as `keep` (by position; NULL: all) says, into pages anew: in random order
 * (shuffle) or by position, with random kinds, partly filled. What is kept of a token goes with it. */
static inline void lane_repack(lane *l, const bool *keep, bool shuffle) {
    const int64_t keeps = l->keeps;
    static float moved[LANE_TEXT][LANE_KEEPS];
    static bool there[LANE_TEXT];
    int32_t order[LANE_TEXT];
    int64_t n = 0;
    memset(there, 0, sizeof there);
    for (int64_t p = 0; p < l->pages; p++) {
        for (int64_t i = 32 * p; i < 32 * p + l->counts[p]; i++) {
            there[l->positions[i]] = !keep || keep[l->positions[i]];
            memcpy(moved[l->positions[i]], l->kept + i * keeps, (size_t)keeps * sizeof **moved);
        }
    }
    for (int32_t t = 0; t < l->text; t++)
        if (there[t]) order[n++] = t;
    for (int64_t i = n - 1; shuffle && i > 0; i--) {
        const int64_t j = (int64_t)ln_random_below(&l->random, (uint64_t)i + 1);
        const int32_t swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    l->pages = 0;
    for (int64_t at = 0; at < n;) {
        const int64_t most = ln_min_i64(32, n - at);
        const int64_t room = LANE_PAGES - 10 - l->pages - (n - at + 31) / 32; /* pages that may be lost to holes */
        const int64_t count = room > 0 ? 1 + (int64_t)ln_random_below(&l->random, (uint64_t)most) : most;
        for (int64_t t = 0; t < count; t++)
            memcpy(l->kept + (32 * l->pages + t) * keeps, moved[order[at + t]], (size_t)keeps * sizeof **moved);
        lane_add_page(l, (int)ln_random_below(&l->random, (uint64_t)l->used_kinds), order + at, count);
        at += count;
    }
}

static inline int64_t lane_end(const lane *l) {
    return l->pages ? 32 * (l->pages - 1) + l->counts[l->pages - 1] : 0;
}
static inline bool lane_there(const lane *l, int64_t index) {
    return index % 32 < l->counts[index / 32];
}

/* The logit of key `index` for a query of the text. */
static inline double lane_logit(const lane *l, int64_t position, int64_t head, int64_t index) {
    const float *q = l->query + (position * l->group + head) * l->key_size, *k = l->rows + index * l->key_size;
    const int64_t size = l->key_size;
    double dot = 0;
    for (int64_t i = 0; i < size; i++) dot += (double)q[i] * (double)k[i];
    dot *= (double)l->scale;
    if (l->soft_cap != 0) dot = (double)l->soft_cap * tanh(dot / (double)l->soft_cap);
    return dot + (l->biased ? (double)l->bias[index] : 0);
}

/* Row of the last `tokens` queries: weights [32 pages], 0 where a key is absent or later; returns the log-sum-exp. */
static inline double lane_row(const lane *l, int64_t tokens, int64_t token, int64_t head, double *weights) {
    const int64_t position = l->text - tokens + token, end = lane_end(l) - tokens + token;
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < 32 * l->pages; i++) {
        weights[i] = i <= end && lane_there(l, i) ? lane_logit(l, position, head, i) : -INFINITY;
        most = fmax(most, weights[i]);
    }
    for (int64_t i = 0; i < 32 * l->pages; i++) sum += weights[i] == -INFINITY ? 0 : exp(weights[i] - most);
    const double lse = most + log(sum);
    for (int64_t i = 0; i < 32 * l->pages; i++) weights[i] = weights[i] == -INFINITY ? 0 : exp(weights[i] - lse);
    return lse;
}

/* All rows of the last `tokens` queries: matrix [tokens][group][32 pages], to be freed, and lse [tokens][group]. */
static inline double *lane_matrix(const lane *l, int64_t tokens, float *lse) {
    const int64_t slots = 32 * l->pages;
    double *matrix = malloc(sizeof(double) * (size_t)(ln_max_i64(1, tokens * l->group * slots)));
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < l->group; h++)
            lse[t * l->group + h] = (float)lane_row(l, tokens, t, h, matrix + (t * l->group + h) * slots);
    return matrix;
}

#endif
