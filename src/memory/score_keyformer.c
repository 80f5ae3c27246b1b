/* Owns: Keyformer (P179): attention with noise, f += softmax((x + zeta) / tau), summed over all queries.
 *
 * zeta is standard Gumbel noise, drawn for each query and key. With p = exp(x - log-sum-exp), the weight before its
 * normalisation is
 *
 *     exp((x - log-sum-exp) / tau) e^(zeta / tau),   e^zeta = 1 / E,   E exponential,
 *
 * which neither overflows nor, tau >= 1, sums to less than the least noise: so a pass over the columns finds the rows'
 * sums, a second one adds. The noise is one of QUANTILES equally likely values, chosen by a hash of layer, head,
 * position of query and of key: the same in whatever pieces and places they come. tau is 1 for a prompt and rises by
 * tau-step with every token after it up to 2.
 * Kept: 4 bytes a token. State: 8 bytes. Workspace: 4 bytes a token and a row. */
#include <math.h>
#include <string.h>

#include "memory/score_inside.h"

enum { QUANTILES = 1024, QUANTILE_BITS = 10 };

typedef struct state {
    int64_t generated;
} state;

typedef struct parts {
    void *columns;
    float *sums;  /* [32 pages] */
    float *noise; /* [QUANTILES]: e^(zeta / tau) */
    float *norms; /* [observed][group]: sums of rows, then 1 / them */
    const ln_scene *scene;
    float inverse_tau;
    bool adds;
} parts;

static parts carve(ln_carver *carver, const ln_scene *s) {
    parts p = {.columns = ln_carve(carver, 1, ln_columns_workspace(s->key_size)), .scene = s};
    p.sums = ln_carve(carver, (uint64_t)ln_scene_slots(s), sizeof *p.sums);
    p.noise = ln_carve(carver, QUANTILES, sizeof *p.noise);
    p.norms = ln_carve(carver, (uint64_t)(s->observed * s->group), sizeof *p.norms);
    return p;
}

static uint64_t workspace_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    ln_carver carver = {0};
    carve(&carver, shape);
    return carver.overflow ? UINT64_MAX : carver.used;
}
static uint64_t state_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy, (void)shape;
    return sizeof(state);
}
static int64_t observe_all(const ln_policy *policy, int64_t piece) {
    (void)policy;
    return piece;
}

static uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* The row's logarithms of weights to weights with noise, not normalised; returns their sum. */
static float add_noise(const parts *p, const ln_columns_block *block, int64_t row, float *x, int64_t seen) {
    const ln_scene *s = p->scene;
    const int64_t token = (block->row + row) / s->group, head = (block->row + row) % s->group;
    const uint32_t seed = (uint32_t)ln_scene_hash(s, (uint64_t)(s->position - s->observed + token), (uint64_t)head);
    const int32_t *positions = s->positions + block->key;
    s->kernels->vector.scale(x, p->inverse_tau, seen);
    s->kernels->vector.exponential(x, x, 0, seen);
    float sum = 0;
    for (int64_t i = 0; i < seen; i++) {
        x[i] *= p->noise[mix(seed ^ (uint32_t)positions[i] * 0x9e3779b1u) >> (32 - QUANTILE_BITS)];
        sum += x[i];
    }
    return sum;
}

static void take(void *taker, const ln_columns *columns, const ln_columns_block *block) {
    const parts *p = taker;
    float *to = p->sums + block->key;
    for (int64_t r = 0; r < block->rows; r++) {
        float *x = block->weights + r * LN_ATTEND_STRIDE, *norm = &p->norms[block->row + r];
        const int64_t seen = ln_columns_seen(columns, block, r);
        const float sum = add_noise(p, block, r, x, seen);
        if (!p->adds)
            *norm += sum;
        else
            for (int64_t i = 0; i < seen; i++) to[i] += *norm * x[i];
    }
}

static double tau_of(ln_scene *s) {
    state *kept = s->state;
    kept->generated = ln_min_i64(ln_max_i64(0, kept->generated), s->position); /* it may come from a file */
    if (s->piece == 1) kept->generated++;
    return fmin(2, 1 + ln_policy_parameter_of(s->policy, "tau-step", 0.01) * (double)kept->generated);
}

static void score(ln_scene *s, float *to) {
    ln_carver carver = {.base = s->workspace};
    parts p = carve(&carver, s);
    const double tau = tau_of(s);
    const int64_t rows = s->observed * s->group;
    p.inverse_tau = (float)(1 / tau);
    for (int i = 0; i < QUANTILES; i++) p.noise[i] = (float)pow(-log((i + 0.5) / QUANTILES), -1 / tau);
    memset(p.sums, 0, (size_t)ln_scene_slots(s) * sizeof *p.sums);
    memset(p.norms, 0, (size_t)rows * sizeof *p.norms);
    ln_columns columns = ln_scene_columns(s, s->observed);
    columns.logarithms = true;
    ln_columns_run(&columns, p.columns, take, &p);
    for (int64_t r = 0; r < rows; r++) p.norms[r] = p.norms[r] > 0 ? 1 / p.norms[r] : 0;
    p.adds = true;
    ln_columns_run(&columns, p.columns, take, &p);
    LN_SCENE_TOKENS(s, i) {
        s->kept[i] += p.sums[i] / (float)s->group;
        if (to) to[i] = s->kept[i];
    }
}

const ln_scorer ln_scorer_keyformer = {.name = "keyformer",
                                       .source = "P179",
                                       .rule = "sum of the attention of all queries, with Gumbel noise",
                                       .defaults = "",
                                       .keeps = 1,
                                       .observes = observe_all,
                                       .state = state_bytes,
                                       .workspace = workspace_bytes,
                                       .reads = LN_READS_EACH,
                                       .score = score};
