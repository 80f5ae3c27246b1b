/* Owns: SEA's estimate (P291; linnet/approximate.h): which keys hold the mass, from random features in linear time.
 *
 * The keys are cut into units, a bucket or a tile, whichever is longer. With l[f](x) = omega[f] . x' - |x'|^2 / 2,
 * x' = scale^1/2 x, the mean over f of exp(l[f](q) + l[f](k)) estimates exp(scale q . k). Of each unit is kept
 * S[f] = sum over its keys of exp(l[f](k) - m), m its largest l, so that a unit depends on its own keys alone: no later
 * key can change it. A query's mass of a unit is then exp(m) sum_f exp(l[f](q)) S[f] / features. A tile of queries sums
 * its queries' shares of mass, takes the best units, and keeps of each query the logarithm of the mass that is left. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "mixer/select.h"

enum { MEAN_TOKENS = 128 }; /* tokens whose values are summed by one task */

typedef struct sums {
    int64_t unit, units; /* tokens in a unit */
    int64_t feature_panels;
    float *planes;  /* [panel of 32 features][key_size][32], scale^1/2 omega */
    float *mass;    /* [key-value head][panel of 32 units][features][32] */
    float *largest; /* [key-value head][units]: m */
    float *left;    /* [head][token]: log of the estimated mass not visited */
    double *values; /* [key-value head][MEAN_TOKENS tokens][value_size], summed from the first token on */
} sums;

typedef struct places {
    float *rows, *logits, *mass; /* [query_tile or 32][LN_SELECT_STRIDE] */
    float *row_largest;          /* [query_tile] */
    float *weights;              /* [query_tile][units] */
    float *score;                /* [units] */
    int32_t *free_units, *heap, *chosen;
    unsigned char *taken; /* [units] */
} places;

static int64_t unit_of(const linnet_approximate_settings *s) {
    const int64_t bucket = ln_max_i64(1, ln_ceil_div(s->tokens, s->width));
    return ln_ceil_div(bucket, s->key_tile) * s->key_tile;
}

static int64_t panels_of(int64_t n) {
    return ln_ceil_div(n, LN_PANEL);
}
static int64_t mean_blocks(const linnet_approximate_settings *s) {
    return ln_ceil_div(s->tokens, MEAN_TOKENS);
}

static void carve(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_settings *s = call->s;
    sums x = {.unit = unit_of(s), .feature_panels = panels_of(s->features)};
    x.units = ln_ceil_div(s->tokens, x.unit);
    const uint64_t shared = (uint64_t)s->key_value_heads, row = LN_PANEL * sizeof(float);
    x.planes = ln_carve(carver, (uint64_t)(x.feature_panels * s->key_size), row);
    x.mass = ln_carve(carver, shared * (uint64_t)(panels_of(x.units) * s->features), row);
    x.largest = ln_carve(carver, shared * (uint64_t)x.units, sizeof(float));
    x.left = ln_carve(carver, (uint64_t)(s->heads * s->tokens), sizeof(float));
    x.values = ln_carve(carver, shared * (uint64_t)(mean_blocks(s) * s->value_size), sizeof(double));
    sums *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = x;
    call->own = own;
}

static places place(const linnet_approximate_plan *plan, ln_carver *carver) {
    const linnet_approximate_settings *s = &plan->s;
    const uint64_t units = (uint64_t)ln_ceil_div(s->tokens, unit_of(s)), rows = (uint64_t)s->query_tile,
                   floats = rows * LN_SELECT_STRIDE;
    return (places){.rows = ln_carve(carver, floats, sizeof(float)),
                    .logits = ln_carve(carver, floats, sizeof(float)),
                    .mass = ln_carve(carver, floats, sizeof(float)),
                    .row_largest = ln_carve(carver, rows, sizeof(float)),
                    .weights = ln_carve(carver, rows * units, sizeof(float)),
                    .score = ln_carve(carver, units, sizeof(float)),
                    .free_units = ln_carve(carver, units, sizeof(int32_t)),
                    .heap = ln_carve(carver, units, sizeof(int32_t)),
                    .chosen = ln_carve(carver, units, sizeof(int32_t)),
                    .taken = ln_carve(carver, units, 1)};
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    ln_carver carver = {0};
    place(plan, &carver);
    return carver.used;
}

/* ---- features ---- */

static void draw_planes(const ln_select_call *call, const sums *x) {
    const linnet_approximate_settings *s = call->s;
    ln_random random;
    ln_random_seed(&random, s->seed);
    const float root = sqrtf(s->scale);
    memset(x->planes, 0, (size_t)(x->feature_panels * s->key_size * LN_PANEL) * sizeof(float));
    for (int64_t f = 0; f < s->features; f++)
        for (int64_t i = 0; i < s->key_size; i++)
            x->planes[(f / LN_PANEL * s->key_size + i) * LN_PANEL + f % LN_PANEL] =
                root * (float)ln_random_normal(&random);
}

/* logits[r][f] = l[f] of each row */
static void make_logits(ln_select_call *call, const places *p, int64_t rows) {
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    for (int64_t panel = 0; panel < x->feature_panels; panel++)
        ln_select_product(call, x->planes + panel * s->key_size * LN_PANEL, s->key_size, p->rows, rows,
                          p->logits + panel * LN_PANEL, false);
    for (int64_t r = 0; r < rows; r++) {
        double square = 0;
        for (int64_t i = r * LN_SELECT_STRIDE; i < r * LN_SELECT_STRIDE + s->key_size; i++)
            square += (double)p->rows[i] * (double)p->rows[i];
        const float half = (float)(square * (double)s->scale / 2);
        for (int64_t f = 0; f < s->features; f++) p->logits[r * LN_SELECT_STRIDE + f] -= half;
    }
    atomic_fetch_add(&call->scored, rows * s->features);
}

/* Sums of one unit's keys, 32 at a time; a larger logit rescales what is there. */
static void sum_unit(void *argument, int64_t task, int worker) {
    ln_select_call *call = argument;
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    ln_carver carver = {.base = (unsigned char *)ln_select_scratch(call, worker) +
                                ln_round_up((uint64_t)call->plan->key_tiles, 64)};
    const places p = place(call->plan, &carver);
    const int64_t head = task / x->units, unit = task % x->units, begin = unit * x->unit;
    float *sum = x->mass + (head * panels_of(x->units) + unit / LN_PANEL) * s->features * LN_PANEL + unit % LN_PANEL;
    float most = -INFINITY;
    for (int64_t f = 0; f < s->features; f++) sum[f * LN_PANEL] = 0;
    for (int64_t from = begin; from < ln_min_i64(begin + x->unit, s->tokens); from += LN_PANEL) {
        const int64_t rows = ln_min_i64(LN_PANEL, s->tokens - from);
        for (int64_t r = 0; r < rows; r++)
            memcpy(p.rows + r * LN_SELECT_STRIDE, ln_select_key(call, head, from + r),
                   (size_t)s->key_size * sizeof(float));
        make_logits(call, &p, rows);
        float larger = most;
        for (int64_t r = 0; r < rows; r++)
            larger = fmaxf(larger, call->kernels->vector.maximum(p.logits + r * LN_SELECT_STRIDE, s->features));
        if (larger > most && most > -INFINITY)
            for (int64_t f = 0; f < s->features; f++) sum[f * LN_PANEL] *= expf(most - larger);
        most = larger;
        for (int64_t r = 0; r < rows && most > -INFINITY; r++) {
            float *logit = p.logits + r * LN_SELECT_STRIDE;
            call->kernels->vector.exponential(logit, logit, most, s->features);
            for (int64_t f = 0; f < s->features; f++) sum[f * LN_PANEL] += logit[f];
        }
    }
    x->largest[head * x->units + unit] = most;
}

static void sum_values(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t blocks = mean_blocks(s), head = task / blocks, begin = task % blocks * MEAN_TOKENS;
    double *sum = x->values + task * s->value_size;
    memset(sum, 0, (size_t)s->value_size * sizeof *sum);
    for (int64_t t = begin; t < ln_min_i64(begin + MEAN_TOKENS, s->tokens); t++)
        for (int64_t i = 0; i < s->value_size; i++) sum[i] += (double)ln_select_value(call, head, t)[i];
}

static void prepare(ln_select_call *call) {
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    draw_planes(call, x);
    ln_parallel(call->team, s->key_value_heads * x->units, sum_unit, call);
    ln_parallel(call->team, s->key_value_heads * mean_blocks(s), sum_values, call);
    for (int64_t block = 1; block < mean_blocks(s); block++)
        for (int64_t head = 0; head < s->key_value_heads; head++)
            for (int64_t i = 0; i < s->value_size; i++) {
                double *sum = x->values + (head * mean_blocks(s) + block) * s->value_size;
                sum[i] += sum[i - s->value_size];
            }
}

/* ---- selection ---- */

/* weights[r][j] = mass of unit j over exp(row_largest + shift); 0 for those taken already; returns shift, the
 * largest m of the others. */
static float weigh_units(ln_select_call *call, const ln_select_tile *tile, const places *p, int64_t units) {
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t rows = tile->end - tile->begin;
    const float *largest = x->largest + tile->shared * x->units;
    float shift = -INFINITY;
    for (int64_t j = 0; j < units; j++)
        if (!p->taken[j]) shift = fmaxf(shift, largest[j]); /* those alone lie wholly before a causal tile */
    for (int64_t r = 0; r < rows; r++)
        memcpy(p->rows + r * LN_SELECT_STRIDE, ln_select_query(call, tile->head, tile->begin + r),
               (size_t)s->key_size * sizeof(float));
    make_logits(call, p, rows);
    for (int64_t r = 0; r < rows; r++) {
        float *logit = p->logits + r * LN_SELECT_STRIDE;
        p->row_largest[r] = call->kernels->vector.maximum(logit, s->features);
        call->kernels->vector.exponential(logit, logit, p->row_largest[r], s->features);
    }
    for (int64_t first = 0; first < units; first += LN_PANEL) {
        const int64_t at = (tile->shared * panels_of(x->units) + first / LN_PANEL) * s->features * LN_PANEL;
        ln_select_product(call, x->mass + at, s->features, p->logits, rows, p->mass, false);
        for (int64_t j = first; j < ln_min_i64(first + LN_PANEL, units); j++) {
            const float factor = !p->taken[j] && largest[j] > -INFINITY ? expf(largest[j] - shift) : 0;
            for (int64_t r = 0; r < rows; r++)
                p->weights[r * x->units + j] = factor * p->mass[r * LN_SELECT_STRIDE + j - first];
        }
    }
    atomic_fetch_add(&call->scored, rows * units);
    return shift;
}

/* Sums over rows of each free unit's share. */
static void score_units(const ln_select_call *call, const ln_select_tile *tile, const places *p, int64_t count) {
    const sums *x = call->own;
    memset(p->score, 0, (size_t)count * sizeof(float));
    for (int64_t r = 0; r < tile->end - tile->begin; r++) {
        const float *weight = p->weights + r * x->units;
        double all = 0;
        for (int64_t i = 0; i < count; i++) all += (double)weight[p->free_units[i]];
        const float share = all > 0 ? (float)(1 / all) : 0;
        for (int64_t i = 0; i < count; i++) p->score[i] += share * weight[p->free_units[i]];
    }
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(p->score[i])) p->score[i] = 0;
}

static void keep_left(const ln_select_call *call, const ln_select_tile *tile, const places *p, int64_t count,
                      float shift) {
    const sums *x = call->own;
    for (int64_t r = 0; r < tile->end - tile->begin; r++) {
        double left = 0;
        for (int64_t i = 0; i < count; i++)
            if (!p->taken[p->free_units[i]]) left += (double)p->weights[r * x->units + p->free_units[i]];
        x->left[tile->head * call->s->tokens + tile->begin + r] =
            left > 0 ? (float)(log(left / (double)call->s->features) + (double)p->row_largest[r] + (double)shift)
                     : -INFINITY;
    }
}

static void mark_tiles(ln_select_call *call, const ln_select_tile *tile) {
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    ln_carver carver = {.base = tile->scratch};
    const places p = place(call->plan, &carver);
    const int64_t per_unit = x->unit / s->key_tile, units = ln_ceil_div(tile->limit, per_unit);
    int64_t count = 0;
    for (int64_t j = 0; j < units; j++) {
        bool any = false;
        const int64_t end = ln_min_i64((j + 1) * per_unit, tile->limit);
        for (int64_t i = j * per_unit; i < end; i++) any = any || tile->marks[i];
        p.taken[j] = any;
        if (!any) p.free_units[count++] = (int32_t)j;
    }
    const int64_t k = ln_min_i64(ln_ceil_div(s->budget, x->unit), count);
    float shift = 0;
    if (k < count) {
        shift = weigh_units(call, tile, &p, units);
        score_units(call, tile, &p, count);
        const int64_t chosen = ln_select_top(p.score, count, k, p.heap, p.chosen);
        for (int64_t i = 0; i < chosen; i++) p.taken[p.free_units[p.chosen[i]]] = 1;
    } else {
        memset(p.taken, 1, (size_t)units);
    }
    keep_left(call, tile, &p, count, shift);
    for (int64_t i = 0; i < tile->limit; i++) tile->marks[i] = p.taken[i / per_unit];
}

/* ---- mixing ---- */

static void mix_tile(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t head = task % s->heads, shared = head / call->plan->group, block = task / s->heads,
                  blocks = mean_blocks(s);
    double sum[LN_SELECT_SIZE_MOST] = {0};
    const int64_t before = s->causal ? block : blocks;
    if (before > 0)
        memcpy(sum, x->values + (shared * blocks + before - 1) * s->value_size, (size_t)s->value_size * sizeof *sum);
    for (int64_t t = block * MEAN_TOKENS; t < ln_min_i64((block + 1) * MEAN_TOKENS, s->tokens); t++) {
        if (s->causal)
            for (int64_t i = 0; i < s->value_size; i++) sum[i] += (double)ln_select_value(call, shared, t)[i];
        const float left = x->left[head * s->tokens + t], visited = call->visited[t * s->heads + head];
        double u = s->mix >= 0 ? (double)s->mix : 0;
        if (s->mix < 0 && left > -INFINITY) u = 1 / (1 + exp((double)visited - (double)left));
        if (!(u > 0)) continue;
        const double seen = (double)(s->causal ? t + 1 : s->tokens);
        float *to = ln_row_to(&call->output_rows, t, head);
        for (int64_t i = 0; i < s->value_size; i++) to[i] = (float)((1 - u) * (double)to[i] + u * sum[i] / seen);
    }
}

static void finish(ln_select_call *call) {
    ln_parallel(call->team, call->s->heads * mean_blocks(call->s), mix_tile, call);
}

static const char *check(linnet_approximate_settings *s) {
    if (s->width < 1 || s->features < 8 || s->features > LN_SELECT_SIZE_MOST || s->features % 8 != 0)
        return "width must be at least 1, features a multiple of 8 from 8 to 256";
    return s->mix > 1 || s->mix != s->mix ? "mix must be at most 1" : NULL;
}

const ln_select_row ln_select_sea = {.name = "sea",
                                     .source = "Lee et al. 2023",
                                     .needs = LN_SELECT_QUERY | LN_SELECT_KEY | LN_SELECT_VALUE | LN_SELECT_SPAN,
                                     .check = check,
                                     .carve = carve,
                                     .scratch = scratch,
                                     .prepare = prepare,
                                     .tile = mark_tiles,
                                     .finish = finish};
