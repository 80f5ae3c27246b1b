/* Owns: scorers that look at what queries gave to keys. All take columns of weights (mixer/columns.h), meaned over the
 * heads of the group; they differ in which queries count, in what of a weight counts, and in how long it is remembered:
 *
 *   h2o           sum of weights over all queries so far
 *   snapkv        mean over the last `window` queries, pooled over neighbours in the text
 *   critical      (snapkv + 1e-4) * |value|_1
 *   tova          the last query alone, and all heads of a layer keep the same tokens
 *   alisa         sum over the last `window` queries
 *   scissorhands  minus the count, over the last `window` queries, of weights below the mean of their row
 *   ems           mean over all queries that saw the key, and mean over the last `window`, each divided by its sum
 *                 over the tokens, meaned, pooled
 *   zipcache      sum over probes / probes that saw the key; probes: the last 5 % of the queries and 5 % at random
 *   kvzip         maximum over queries
 *
 * A window that is longer than the piece (decoding) is kept as an average that forgets: with n new queries,
 * kept <- (1 - n / window) kept + sum / window, which needs no old queries, and is the mean itself where n = window.
 * State: scene->kept alone, 4 bytes a token (ems, zipcache and critical: 8). Workspace: 4 bytes a token, 12 with
 * pooling. */
#include "memory/score_inside.h"

#include <math.h>
#include <string.h>

/* ---- workspace ---- */

typedef struct parts {
    void *columns;
    float *sums;            /* [32 pages] */
    int32_t *order, *other; /* [32 pages]: for pooling */
    int32_t *chosen;        /* [observed]: for probes */
    float *rows;            /* for values */
} parts;

enum { POOLS = 1, PROBES = 2, VALUES = 4 };

static parts carve(ln_carver *carver, const ln_scene *s, int needs) {
    const uint64_t slots = (uint64_t)ln_scene_slots(s);
    parts p = {.columns = ln_carve(carver, 1, ln_columns_workspace(s->key_size))};
    p.sums = ln_carve(carver, slots, sizeof *p.sums);
    if (needs & POOLS) {
        p.order = ln_carve(carver, slots, sizeof *p.order);
        p.other = ln_carve(carver, slots, sizeof *p.other);
    }
    if (needs & PROBES) p.chosen = ln_carve(carver, (uint64_t)s->observed, sizeof *p.chosen);
    if (needs & VALUES) p.rows = ln_carve(carver, 1, ln_scene_page_bytes(s));
    return p;
}

static uint64_t bytes_of(const ln_scene *shape, int needs) {
    ln_carver carver = {0};
    carve(&carver, shape, needs);
    return carver.overflow ? UINT64_MAX : carver.used;
}
static uint64_t plain_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return bytes_of(shape, 0);
}
static uint64_t pooled_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return bytes_of(shape, POOLS);
}
static uint64_t probed_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return bytes_of(shape, PROBES);
}
static uint64_t critical_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return bytes_of(shape, POOLS | VALUES);
}

static parts open_parts(const ln_scene *s, int needs) {
    ln_carver carver = {.base = s->workspace};
    return carve(&carver, s, needs);
}

/* ---- observing ---- */

static int64_t observe_all(const ln_policy *policy, int64_t piece) {
    (void)policy;
    return piece;
}
static int64_t observe_last(const ln_policy *policy, int64_t piece) {
    (void)policy;
    return ln_min_i64(piece, 1);
}

/* sums of weights of the last n queries, or what else the taker makes of them. */
static void observe(const ln_scene *s, const parts *p, int64_t n, ln_columns_take take) {
    if (s->columns) {
        memcpy(p->sums, s->columns, (size_t)ln_scene_slots(s) * sizeof *p->sums);
        return;
    }
    memset(p->sums, 0, (size_t)ln_scene_slots(s) * sizeof *p->sums);
    const ln_columns columns = ln_scene_columns(s, n);
    ln_columns_run(&columns, p->columns, take, p->sums);
}

/* kept, `stride` floats from token to token, becomes the average over the last `window` queries, of which n are new. */
static void remember(const ln_scene *s, const float *sums, int64_t n, int64_t window, float *kept, int64_t stride) {
    const float old = 1 - (float)n / (float)window, new = 1 / ((float)window * (float)s->group);
    LN_SCENE_TOKENS(s, i) kept[i * stride] = old * kept[i * stride] + new *sums[i];
}

/* The kept figure itself is the score. */
static void give(const ln_scene *s, float factor, float *score) {
    if (!score) return;
    LN_SCENE_TOKENS(s, i) score[i] = factor * s->kept[i];
}

/* ---- all queries ---- */

static void score_h2o(ln_scene *s, float *score) {
    const parts p = open_parts(s, 0);
    observe(s, &p, s->observed, ln_columns_add);
    LN_SCENE_TOKENS(s, i) s->kept[i] += p.sums[i] / (float)s->group;
    give(s, 1, score);
}

static void score_kvzip(ln_scene *s, float *score) {
    const parts p = open_parts(s, 0);
    observe(s, &p, s->observed, ln_columns_most);
    LN_SCENE_TOKENS(s, i) s->kept[i] = fmaxf(s->kept[i], p.sums[i]);
    give(s, 1, score);
}

/* ---- the last queries ---- */

enum { SNAPKV_WINDOW = 64, SNAPKV_POOLING = 5, ALISA_WINDOW = 32, SCISSORHANDS_WINDOW = 400, EMS_WINDOW = 32 };

static int64_t observe_snapkv(const ln_policy *policy, int64_t piece) {
    return ln_min_i64(piece, ln_or_default(policy->window, SNAPKV_WINDOW));
}
static int64_t observe_alisa(const ln_policy *policy, int64_t piece) {
    return ln_min_i64(piece, ln_or_default(policy->window, ALISA_WINDOW));
}
static int64_t observe_scissorhands(const ln_policy *policy, int64_t piece) {
    return ln_min_i64(piece, ln_or_default(policy->window, SCISSORHANDS_WINDOW));
}

static int64_t last_of(const ln_scene *s, int64_t window) {
    return ln_min_i64(s->observed, window);
}

static void pool(const ln_scene *s, const parts *p, const float *from, int64_t window, float *score) {
    const bool maximum = ln_policy_parameter_of(s->policy, "pooling-maximum", 0) != 0;
    ln_scene_pool(s, from, s->position - window, ln_or_default(s->policy->pooling, SNAPKV_POOLING), maximum, p->order,
                  p->other, score);
}

/* What is kept of a token is `stride` floats, this the first. */
static void score_pooled(ln_scene *s, const parts *p, float *kept, int64_t stride, float *score) {
    const int64_t window = ln_or_default(s->policy->window, SNAPKV_WINDOW);
    observe(s, p, last_of(s, window), ln_columns_add);
    remember(s, p->sums, last_of(s, window), window, kept, stride);
    if (!score) return;
    LN_SCENE_TOKENS(s, i) p->sums[i] = kept[i * stride];
    pool(s, p, p->sums, window, score);
}

static void score_snapkv(ln_scene *s, float *score) {
    const parts p = open_parts(s, POOLS);
    score_pooled(s, &p, s->kept, 1, score);
}

static void score_critical(ln_scene *s, float *score) {
    enum { AVERAGE, LENGTH, KEPT };
    const parts p = open_parts(s, POOLS | VALUES);
    score_pooled(s, &p, s->kept + AVERAGE, KEPT, score);
    if (!score) return;
    ln_scene_value_norms(s, 1, p.rows, s->kept + LENGTH, KEPT);
    LN_SCENE_TOKENS(s, i) score[i] = (score[i] + 1e-4f) * s->kept[KEPT * i + LENGTH];
}

static void score_window_sum(ln_scene *s, float *score, int64_t window) {
    const parts p = open_parts(s, 0);
    observe(s, &p, last_of(s, window), ln_columns_add);
    remember(s, p.sums, last_of(s, window), window, s->kept, 1);
    give(s, 1, score);
}
static void score_tova(ln_scene *s, float *score) {
    score_window_sum(s, score, 1);
}
static void score_alisa(ln_scene *s, float *score) {
    score_window_sum(s, score, ln_or_default(s->policy->window, ALISA_WINDOW));
}

/* ---- how often a weight is low ---- */

typedef struct low {
    float *counts;
    int64_t present; /* keys that token 0 sees */
} low;

/* Below the mean by more than rounding: where all weights are the same, none is low. */
static void take_low(void *taker, const ln_columns *columns, const ln_columns_block *block) {
    const low *l = taker;
    float *to = l->counts + block->key;
    for (int64_t r = 0; r < block->rows; r++) {
        const float *weights = block->weights + r * LN_ATTEND_STRIDE;
        const float mean = (1 - 1e-4f) / (float)(l->present + ln_columns_token(columns, block->row + r));
        const int64_t seen = ln_columns_seen(columns, block, r);
        for (int64_t i = 0; i < seen; i++) to[i] += weights[i] < mean ? 1.0f : 0.0f;
    }
}

static void score_scissorhands(ln_scene *s, float *score) {
    const parts p = open_parts(s, 0);
    const int64_t window = ln_or_default(s->policy->window, SCISSORHANDS_WINDOW), n = last_of(s, window);
    int64_t present = 0;
    for (int64_t page = 0; page < s->pages; page++) present += ln_scene_count(s, page);
    memset(p.sums, 0, (size_t)ln_scene_slots(s) * sizeof *p.sums);
    const ln_columns columns = ln_scene_columns(s, n);
    ln_columns_run(&columns, p.columns, take_low, &(low){p.sums, present - n + 1});
    remember(s, p.sums, n, window, s->kept, 1);
    give(s, -1, score);
}

/* ---- the whole and the last ---- */

static double reciprocal_sum(const ln_scene *s, const float *x) {
    double sum = 0;
    LN_SCENE_TOKENS(s, i) sum += (double)x[i];
    return sum > 0 ? 1 / sum : 0;
}

static void score_ems(ln_scene *s, float *score) {
    enum { GLOBAL, LOCAL, KEPT };
    const parts p = open_parts(s, POOLS);
    const int64_t window = ln_or_default(s->policy->window, EMS_WINDOW);
    observe(s, &p, s->observed, ln_columns_add);
    LN_SCENE_TOKENS(s, i) s->kept[KEPT * i + GLOBAL] += p.sums[i] / (float)s->group;
    if (last_of(s, window) < s->observed) observe(s, &p, last_of(s, window), ln_columns_add);
    remember(s, p.sums, last_of(s, window), window, s->kept + LOCAL, KEPT);
    if (!score) return;
    LN_SCENE_TOKENS(s, i) {
        p.sums[i] = s->kept[KEPT * i + GLOBAL] / (float)(s->position - s->positions[i]);
        score[i] = s->kept[KEPT * i + LOCAL];
    }
    const double global = reciprocal_sum(s, p.sums), local = reciprocal_sum(s, score);
    LN_SCENE_TOKENS(s, i) p.sums[i] = (float)((global * (double)p.sums[i] + local * (double)score[i]) / 2);
    pool(s, &p, p.sums, window, score);
}

/* ---- some queries ---- */

/* The last 5 % and 5 % at random of the others; of few queries, each with 10 %. */
static int64_t choose_probes(const ln_scene *s, int32_t *chosen) {
    const int64_t recent = s->observed / 20;
    const double share = recent ? 0.05 / 0.95 : 0.1;
    int64_t n = 0;
    for (int64_t t = 0; t < s->observed; t++) {
        const uint64_t hash = ln_scene_hash(s, (uint64_t)(s->position - s->observed + t), 0);
        if (t >= s->observed - recent || (double)(hash >> 11) * 0x1p-53 < share) chosen[n++] = (int32_t)t;
    }
    return n;
}

static void score_zipcache(ln_scene *s, float *score) {
    enum { SUM, SEEN, KEPT };
    const parts p = open_parts(s, PROBES);
    ln_columns columns = ln_scene_columns(s, s->observed);
    columns.chosen = p.chosen;
    columns.tokens = choose_probes(s, p.chosen);
    memset(p.sums, 0, (size_t)ln_scene_slots(s) * sizeof *p.sums);
    ln_columns_run(&columns, p.columns, ln_columns_add, p.sums);
    int64_t before = 0; /* probes that come before the key */
    LN_SCENE_TOKENS(s, i) {
        float *kept = s->kept + KEPT * i;
        while (before < columns.tokens && columns.position + p.chosen[before] < i) before++;
        kept[SUM] += p.sums[i] / (float)s->group;
        kept[SEEN] += (float)(columns.tokens - before);
        if (score) score[i] = kept[SEEN] > 0 ? kept[SUM] / kept[SEEN] : 1;
    }
}

/* ---- the rows ---- */

const ln_scorer ln_scorer_h2o = {.name = "h2o",
                                 .source = "P057",
                                 .rule = "sum of the attention of all queries so far",
                                 .defaults = "",
                                 .keeps = 1,
                                 .observes = observe_all,
                                 .workspace = plain_bytes,
                                 .reads = LN_READS_SUMS,
                                 .score = score_h2o};
const ln_scorer ln_scorer_kvzip = {.name = "kvzip",
                                   .source = "KVzip",
                                   .rule = "the most attention that any query gave",
                                   .defaults = "",
                                   .keeps = 1,
                                   .observes = observe_all,
                                   .workspace = plain_bytes,
                                   .reads = LN_READS_MOST,
                                   .score = score_kvzip};
const ln_scorer ln_scorer_snapkv = {.name = "snapkv",
                                    .source = "P205",
                                    .rule = "attention of the last queries, pooled over neighbours",
                                    .defaults = "window=64,pooling=5,recent=64",
                                    .keeps = 1,
                                    .observes = observe_snapkv,
                                    .workspace = pooled_bytes,
                                    .reads = LN_READS_SUMS,
                                    .score = score_snapkv};
const ln_scorer ln_scorer_critical = {.name = "critical",
                                      .source = "CriticalKV",
                                      .rule = "snapkv times the length of the value",
                                      .defaults = "window=64,pooling=5,recent=64",
                                      .keeps = 2,
                                      .observes = observe_snapkv,
                                      .workspace = critical_bytes,
                                      .reads = LN_READS_SUMS | LN_READS_VALUES,
                                      .score = score_critical};
const ln_scorer ln_scorer_tova = {.name = "tova",
                                  .source = "TOVA",
                                  .rule = "attention of the last query, one choice for all heads of a layer",
                                  .defaults = "recent=1",
                                  .keeps = 1,
                                  .shared = true,
                                  .observes = observe_last,
                                  .workspace = plain_bytes,
                                  .reads = LN_READS_SUMS,
                                  .score = score_tova};
const ln_scorer ln_scorer_alisa = {.name = "alisa",
                                   .source = "P235",
                                   .rule = "sum of the attention of the last queries",
                                   .defaults = "window=32",
                                   .keeps = 1,
                                   .observes = observe_alisa,
                                   .workspace = plain_bytes,
                                   .reads = LN_READS_SUMS,
                                   .score = score_alisa};
const ln_scorer ln_scorer_scissorhands = {.name = "scissorhands",
                                          .source = "P212",
                                          .rule = "how seldom its attention was below the mean lately",
                                          .defaults = "window=400,recent=10",
                                          .keeps = 1,
                                          .observes = observe_scissorhands,
                                          .workspace = plain_bytes,
                                          .reads = LN_READS_EACH,
                                          .score = score_scissorhands};
const ln_scorer ln_scorer_ems = {.name = "ems",
                                 .source = "P196",
                                 .rule = "attention of all queries and of the last, pooled over neighbours",
                                 .defaults = "window=32,pooling=5",
                                 .keeps = 2,
                                 .observes = observe_all,
                                 .workspace = pooled_bytes,
                                 .reads = LN_READS_EACH,
                                 .score = score_ems};
const ln_scorer ln_scorer_zipcache = {.name = "zipcache",
                                      .source = "P221",
                                      .rule = "mean attention of a tenth of the queries, as probes",
                                      .defaults = "salient=0.6",
                                      .keeps = 2,
                                      .observes = observe_all,
                                      .workspace = probed_bytes,
                                      .reads = LN_READS_EACH,
                                      .score = score_zipcache};
