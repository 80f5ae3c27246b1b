/* Owns: scorers that look at no queries:
 *
 *   window    the later the better (StreamingLLM, with the policy's sinks)
 *   random    a number in 0 .. 1, fixed by layer, head and position
 *   l2norm    -|k|
 *   keydiff   -cos(k, mean of k / |k| over the lane's keys)
 *   gate      what the model's own gate said when the token came (P218), kept: 4 bytes a token
 *
 * l2norm keeps the length, 4 bytes a token. Workspace of l2norm and keydiff: a page decoded, and 4 bytes a token. */
#include <math.h>
#include <string.h>

#include "memory/score_inside.h"

static void score_window(ln_scene *s, float *score) {
    if (!score) return;
    LN_SCENE_TOKENS(s, i) score[i] = -(float)(s->position - 1 - s->positions[i]);
}

static void score_random(ln_scene *s, float *score) {
    if (!score) return;
    const uint64_t seed = (uint64_t)ln_policy_parameter_of(s->policy, "seed", 0);
    LN_SCENE_TOKENS(s, i)
    score[i] = (float)(ln_scene_hash(s, (uint64_t)s->positions[i], seed) >> 40) * 0x1p-24f;
}

/* ---- keys ---- */

typedef struct parts {
    float *keys;  /* [key_size][32] */
    float *mean;  /* [key_size] */
    float *norms; /* [32 pages] */
} parts;

static parts carve(ln_carver *carver, const ln_scene *s) {
    parts p;
    p.keys = ln_carve(carver, (uint64_t)s->key_size, LN_PAGE_TOKENS * sizeof *p.keys);
    p.mean = ln_carve(carver, (uint64_t)s->key_size, sizeof *p.mean);
    p.norms = ln_carve(carver, (uint64_t)ln_scene_slots(s), sizeof *p.norms);
    return p;
}

static uint64_t key_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    ln_carver carver = {0};
    carve(&carver, shape);
    return carver.overflow ? UINT64_MAX : carver.used;
}

/* Decodes a page; returns its key_size. */
static int64_t decode(const ln_scene *s, const parts *p, int64_t page) {
    const ln_page_layout *layout = ln_page_layout_at(s->view, page);
    ln_page_decode_keys(&s->kernels->attend, layout, ln_page_of(s->view, s->view_head, page), p->keys);
    return layout->key_size;
}

/* to[t] = |k_t| of the page that was decoded, 0 where it is not finite. */
static void page_norms(const parts *p, int64_t size, float *to) {
    float sums[LN_PAGE_TOKENS] = {0};
    for (int64_t i = 0; i < size; i++) {
        const float *k = p->keys + i * LN_PAGE_TOKENS;
        for (int t = 0; t < LN_PAGE_TOKENS; t++) sums[t] += k[t] * k[t];
    }
    for (int t = 0; t < LN_PAGE_TOKENS; t++) to[t] = sums[t] < INFINITY ? sqrtf(sums[t]) : 0;
}

/* A page is looked at when it has a token that is new. */
static void score_l2norm(ln_scene *s, float *score) {
    if (!score) return;
    ln_carver carver = {.base = s->workspace};
    const parts p = carve(&carver, s);
    for (int64_t page = 0; page < s->pages; page++) {
        float *kept = s->kept + page * LN_PAGE_TOKENS, norms[LN_PAGE_TOKENS];
        bool new = false;
        for (int64_t t = 0; t < ln_scene_count(s, page); t++) new = new || kept[t] == 0;
        if (new) page_norms(&p, decode(s, &p, page), norms);
        for (int64_t t = 0; t < ln_scene_count(s, page); t++) {
            if (kept[t] == 0) kept[t] = norms[t];
            score[page * LN_PAGE_TOKENS + t] = -kept[t];
        }
    }
}

/* mean += directions of the page's keys. */
static void add_directions(const ln_scene *s, const parts *p, int64_t page, int64_t size) {
    enum { LANES = 8 };
    const float *norms = p->norms + page * LN_PAGE_TOKENS;
    float inverse[LN_PAGE_TOKENS] = {0};
    for (int64_t t = 0; t < ln_scene_count(s, page); t++) inverse[t] = norms[t] > 0 ? 1 / norms[t] : 0;
    for (int64_t i = 0; i < size; i++) {
        const float *k = p->keys + i * LN_PAGE_TOKENS;
        float sums[LANES] = {0};
        for (int64_t t = 0; t < ln_scene_count(s, page); t++) sums[t % LANES] += norms[t] > 0 ? k[t] * inverse[t] : 0;
        for (int lane = 0; lane < LANES; lane++) p->mean[i] += sums[lane];
    }
}

static void score_keydiff(ln_scene *s, float *score) {
    if (!score) return;
    ln_carver carver = {.base = s->workspace};
    const parts p = carve(&carver, s);
    memset(p.mean, 0, (size_t)s->key_size * sizeof *p.mean);
    for (int64_t page = 0; page < s->pages; page++) {
        const int64_t size = decode(s, &p, page);
        page_norms(&p, size, p.norms + page * LN_PAGE_TOKENS);
        add_directions(s, &p, page, size);
    }
    double square = 0;
    for (int64_t i = 0; i < s->key_size; i++) square += (double)p.mean[i] * (double)p.mean[i];
    const float length = (float)sqrt(square);
    for (int64_t page = 0; page < s->pages; page++) {
        const int64_t size = decode(s, &p, page);
        float dots[LN_PAGE_TOKENS] = {0};
        for (int64_t i = 0; i < size; i++)
            for (int t = 0; t < LN_PAGE_TOKENS; t++) dots[t] += p.mean[i] * p.keys[i * LN_PAGE_TOKENS + t];
        for (int64_t t = 0; t < ln_scene_count(s, page); t++) {
            const int64_t index = page * LN_PAGE_TOKENS + t;
            const float norm = p.norms[index] * length;
            score[index] = norm > 0 ? -dots[t] / norm : 0;
        }
    }
}

/* ---- the model's gate ---- */

static void score_gate(ln_scene *s, float *score) {
    const int64_t first = s->position - s->piece;
    LN_SCENE_TOKENS(s, i) {
        const int64_t t = s->positions[i] - first;
        if (s->gate && t >= 0 && t < s->piece) {
            const float gate = s->gate[t * s->gate_stride];
            s->kept[i] = gate == gate ? gate : 0;
        }
        if (score) score[i] = s->kept[i];
    }
}

const ln_scorer ln_scorer_window = {.name = "window",
                                    .source = "StreamingLLM",
                                    .rule = "the last tokens, beside the sinks",
                                    .defaults = "sinks=4",
                                    .score = score_window};
const ln_scorer ln_scorer_random = {
    .name = "random", .source = "baseline", .rule = "tokens at random", .defaults = "", .score = score_random};
const ln_scorer ln_scorer_l2norm = {.name = "l2norm",
                                    .source = "Devoto et al. 2024",
                                    .rule = "short keys",
                                    .defaults = "",
                                    .keeps = 1,
                                    .workspace = key_bytes,
                                    .reads = LN_READS_KEYS,
                                    .score = score_l2norm};
const ln_scorer ln_scorer_keydiff = {.name = "keydiff",
                                     .source = "KeyDiff",
                                     .rule = "keys that differ from the others",
                                     .defaults = "",
                                     .workspace = key_bytes,
                                     .reads = LN_READS_KEYS,
                                     .score = score_keydiff};
const ln_scorer ln_scorer_gate = {.name = "gate",
                                  .source = "P218",
                                  .rule = "what the model's own gate says",
                                  .defaults = "",
                                  .keeps = 1,
                                  .gate = true,
                                  .reads = LN_READS_GATE,
                                  .score = score_gate};
