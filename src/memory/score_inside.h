/* What scorers share: the tokens of a scene, its columns of attention, neighbours in the text. */
#ifndef LN_MEMORY_SCORE_INSIDE_H
#define LN_MEMORY_SCORE_INSIDE_H

#include "memory/score.h"
#include "mixer/carve.h"
#include "mixer/columns.h"

/* The rows, one file each. */
extern const ln_scorer ln_scorer_h2o, ln_scorer_scissorhands, ln_scorer_snapkv, ln_scorer_critical, ln_scorer_tova,
    ln_scorer_alisa, ln_scorer_kvzip, ln_scorer_zipcache, ln_scorer_ems; /* score_attention.c */
extern const ln_scorer ln_scorer_keyformer;                              /* score_keyformer.c */
extern const ln_scorer ln_scorer_expected;                               /* score_expected.c */
extern const ln_scorer ln_scorer_keydiff, ln_scorer_l2norm, ln_scorer_window, ln_scorer_random,
    ln_scorer_gate;                     /* score_keys.c */
extern const ln_scorer ln_scorer_lagkv; /* score_lag.c */

static inline int64_t ln_scene_count(const ln_scene *s, int64_t page) {
    return s->counts ? s->counts[page] : LN_PAGE_TOKENS;
}
static inline int64_t ln_scene_slots(const ln_scene *s) {
    return s->pages * LN_PAGE_TOKENS;
}
/* Each index of a token that is there: for (...) body with `i`. */
#define LN_SCENE_TOKENS(s, i)                                                                    \
    for (int64_t page_of_##i = 0; page_of_##i < (s)->pages; page_of_##i++)                       \
        for (int64_t i = page_of_##i * LN_PAGE_TOKENS,                                           \
                     end_of_##i = page_of_##i * LN_PAGE_TOKENS + ln_scene_count(s, page_of_##i); \
             i < end_of_##i; i++)

/* Index behind the last token. */
int64_t ln_scene_end(const ln_scene *s);
/* The weights of the last `tokens` queries observed. */
ln_columns ln_scene_columns(const ln_scene *s, int64_t tokens);

/* Indices of the tokens that are there, by position; returns how many. order, other: [32 pages]. */
int64_t ln_scene_order(const ln_scene *s, int32_t *order, int32_t *other);
/* score[i] = mean (or maximum) of from[] over the `width` positions around i's, of those tokens that are there and
 * before position `end`; others count as 0. Tokens from `end` on: as they are. order, other: [32 pages]. */
void ln_scene_pool(const ln_scene *s, const float *from, int64_t end, int64_t width, bool maximum, int32_t *order,
                   int32_t *other, float *score);
/* For tokens whose norms[i * stride] is 0: (sum of |v|^power)^(1 / power) of their values, power 1 or 2. workspace:
 * ln_scene_page_bytes. */
void ln_scene_value_norms(const ln_scene *s, int power, float *workspace, float *norms, int64_t stride);
uint64_t ln_scene_page_bytes(const ln_scene *shape);

/* A policy's window or pooling, where it names one. */
static inline int64_t ln_or_default(int64_t value, int64_t fallback) {
    return value > 0 ? value : fallback;
}

/* A number of what is given, the same everywhere: for choices at random that a seed fixes. */
uint64_t ln_scene_hash(const ln_scene *s, uint64_t a, uint64_t b);

#endif
