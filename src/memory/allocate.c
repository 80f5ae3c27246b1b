/* Owns: allocators.
 *
 * All end in one division: item i gets clamp(lambda share_i, least_i, most_i), with the lambda for which the sum is the
 * total; for tokens the largest remainders are then rounded up, so the sum of the integers is exact. Rules:
 *
 *   pyramid   layers: a line from the first to the last, the last has 1 / beta of the mean (PyramidKV)
 *   squeeze   layers in 3 groups by cosine (the best 3-means of numbers on a line, found exactly); the group whose
 *             residual stream attention changes least gets p of its even share, the others the rest evenly (P088)
 *   prefix    layers: each what holds the same share of its attention; that share by bisection (P216)
 *   level     layers: each as many tokens as reach one score, the same for all; heads as adakv (KVzip)
 *   adakv     heads: the top tokens of all heads together, but alpha of the even share for each (AdaKV)
 *   duo       full heads first, streaming heads get what is left (DuoAttention, RazorAttention P170)
 *   task      heads whose output is farther than the mean distance from the mean of heads first, others `middle` of
 *             the even share (P190) */
#include "memory/allocate.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kernel/attend.h"
#include "memory/order.h"

/* ---- the division ---- */

typedef struct item {
    double share, least, most;
} item;

typedef struct division {
    item (*item_of)(const void *rule, int64_t i);
    const void *rule;
    int64_t n;
    double total; /* between the sums of least and of most */
} division;

static double part_of(const division *d, int64_t i, double lambda) {
    const item x = d->item_of(d->rule, i);
    return fmin(fmax(lambda * x.share, x.least), x.most);
}

static double sum_at(const division *d, double lambda) {
    double sum = 0;
    for (int64_t i = 0; i < d->n; i++) sum += part_of(d, i, lambda);
    return sum;
}

static double find_lambda(const division *d) {
    double low = 0, high = 1;
    while (high < 0x1p1000 && sum_at(d, high) < d->total) high *= 2;
    for (;;) {
        const double middle = low + (high - low) / 2;
        if (middle <= low || middle >= high) return high;
        if (sum_at(d, middle) < d->total)
            low = middle;
        else
            high = middle;
    }
}

/* Whole tokens: down, then one by one up where the remainder is largest. */
static void divide(const division *d, int64_t *tokens) {
    const double lambda = find_lambda(d);
    int64_t left = (int64_t)d->total;
    for (int64_t i = 0; i < d->n; i++) {
        tokens[i] = (int64_t)part_of(d, i, lambda);
        left -= tokens[i];
    }
    while (left != 0) {
        const int64_t step = left > 0 ? 1 : -1;
        int64_t best = -1;
        double most = -INFINITY;
        for (int64_t i = 0; i < d->n; i++) {
            const item x = d->item_of(d->rule, i);
            const double after = (double)(tokens[i] + step),
                         remainder = (part_of(d, i, lambda) - (double)tokens[i]) * (double)step;
            if (after < x.least || after > x.most || remainder <= most) continue;
            most = remainder;
            best = i;
        }
        if (best < 0) return;
        tokens[best] += step;
        left -= step;
    }
}

/* ---- heads ---- */

/* Shares of heads, bounds by `held`. favours: these take what they can before others get more than their least. */
typedef struct head_rule {
    const ln_head_tokens *h;
    const double *share; /* NULL: even */
    bool (*favours)(const ln_head_tokens *h, int64_t head);
    int64_t least;
} head_rule;

static int64_t held_of(const ln_head_tokens *h, int64_t head) {
    return h->held ? ln_max_i64(0, ln_min_i64(h->held[head], h->tokens)) : h->tokens;
}

static item head_item(const void *rule, int64_t i) {
    const head_rule *r = rule;
    const double most = (double)held_of(r->h, i);
    double share = r->share ? r->share[i] : 1;
    share = share > 0 ? share : 0; /* none left out where there is more than the others hold */
    if (r->favours && !r->favours(r->h, i)) share = 0;
    return (item){share + 1e-9, fmin((double)r->least, most), most};
}

static void divide_heads(const ln_head_tokens *h, head_rule rule, int64_t *tokens) {
    int64_t most = 0, least = 0;
    for (int64_t i = 0; i < h->heads; i++) {
        const int64_t held = held_of(h, i);
        most = ln_min_i64(h->tokens, most + held);
        least += ln_min_i64(held, rule.least);
    }
    if (least > most) rule.least = 0;
    divide(&(division){head_item, &rule, h->heads, (double)most}, tokens);
}

void ln_allocate_round(const double *share, int64_t n, int64_t tokens, int64_t least, const int64_t *held,
                       int64_t *tokens_of) {
    const ln_head_tokens h = {.heads = n, .tokens = ln_max_i64(0, tokens), .held = held};
    divide_heads(&h, (head_rule){.h = &h, .share = share, .least = least}, tokens_of);
}

void ln_allocate_heads(const ln_allocator *allocator, const ln_head_tokens *heads, int64_t *tokens_of_a_head) {
    if (allocator && allocator->heads)
        allocator->heads(heads, tokens_of_a_head);
    else
        divide_heads(heads, (head_rule){.h = heads, .least = heads->least}, tokens_of_a_head);
}

static int64_t even_part(const ln_head_tokens *h, double share) {
    return (int64_t)(share * (double)h->tokens / (double)ln_max_i64(1, h->heads));
}

/* ---- adakv ---- */

/* Scores of a head that are not below a threshold. */
static int64_t count_from(const ln_head_tokens *h, int64_t head, uint64_t threshold) {
    int64_t count = 0;
    for (int64_t i = 0; i < h->held[head]; i++) count += ln_order_key(h->scores[head][i]) >= threshold;
    return count;
}

static int64_t count_all(const ln_head_tokens *h, uint64_t threshold, int64_t least) {
    int64_t count = 0;
    for (int64_t i = 0; i < h->heads; i++)
        count += ln_max_i64(count_from(h, i, threshold), ln_min_i64(h->held[i], least));
    return count;
}

/* The highest threshold that leaves enough is found; what has just this score goes to the first heads. */
static void adakv_heads(const ln_head_tokens *h, int64_t *tokens) {
    const int64_t least = ln_max_i64(h->least, even_part(h, ln_policy_parameter_of(h->policy, "alpha", 0.2)));
    uint64_t low = 0, high = UINT64_C(1) << 32;
    if (count_all(h, low, least) <= h->tokens || count_all(h, high, least) > h->tokens) {
        divide_heads(h, (head_rule){.h = h, .least = h->least}, tokens);
        return;
    }
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (count_all(h, middle, least) >= h->tokens)
            low = middle;
        else
            high = middle;
    }
    int64_t left = h->tokens - count_all(h, high, least);
    for (int64_t i = 0; i < h->heads; i++) {
        const int64_t floor = ln_min_i64(h->held[i], least);
        tokens[i] = ln_max_i64(count_from(h, i, high), floor);
        const int64_t more = ln_min_i64(left, ln_max_i64(count_from(h, i, low), floor) - tokens[i]);
        tokens[i] += more;
        left -= more;
    }
}

/* ---- some heads first ---- */

static bool is_full(const ln_head_tokens *h, int64_t head) {
    return !h->kinds || h->kinds[head] == LN_HEAD_FULL;
}
static void duo_heads(const ln_head_tokens *h, int64_t *tokens) {
    divide_heads(h, (head_rule){.h = h, .favours = is_full, .least = h->least}, tokens);
}

static bool is_far(const ln_head_tokens *h, int64_t head) {
    if (!h->statistics || !h->statistics->distance) return true;
    double sum = 0;
    for (int64_t i = 0; i < h->heads; i++) sum += h->statistics->distance[i];
    return h->statistics->distance[head] * (double)h->heads >= sum;
}
static void task_heads(const ln_head_tokens *h, int64_t *tokens) {
    const int64_t middle = even_part(h, ln_policy_parameter_of(h->policy, "middle", 0.1));
    divide_heads(h, (head_rule){.h = h, .favours = is_far, .least = ln_max_i64(h->least, middle)}, tokens);
}

/* ---- layers ---- */

typedef struct layer_rule {
    const double *share;
    double most;
} layer_rule;

static item layer_item(const void *rule, int64_t i) {
    const layer_rule *r = rule;
    return (item){r->share[i] + 1e-12, 0, r->most};
}

void ln_allocate_layers(const ln_allocator *allocator, const ln_layer_shares *layers, double *share) {
    const int64_t n = layers->layers;
    for (int64_t i = 0; i < n; i++) share[i] = 1 / (double)n;
    if (!allocator || !allocator->layers || layers->kept >= 1) return;
    allocator->layers(layers, share);
    /* No layer more than the whole text; in proportion. */
    const layer_rule rule = {share, layers->kept > 0 ? 1 / (layers->kept * (double)n) : 1};
    const division d = {layer_item, &rule, n, 1};
    const double lambda = find_lambda(&d), sum = sum_at(&d, lambda);
    for (int64_t i = 0; i < n; i++) share[i] = part_of(&d, i, lambda) / sum;
}

static void pyramid_layers(const ln_layer_shares *l, double *share) {
    const double beta = fmax(1, ln_policy_parameter_of(l->policy, "beta", 20)), n = (double)l->layers;
    double most = 2 - 1 / beta;
    if (l->kept > 0) most = fmin(most, 1 / l->kept);
    for (int64_t i = 0; l->layers > 1 && i < l->layers; i++)
        share[i] = (most - (2 * most - 2) * (double)i / (n - 1)) / n;
}

/* ---- squeeze ---- */

/* Sum of squares about their mean of the layers whose cosine is in [from, to); and how many they are. */
static double scatter(const ln_layer_shares *l, double from, double to, int64_t *count) {
    double sum = 0, squares = 0;
    *count = 0;
    for (int64_t i = 0; i < l->layers; i++) {
        const double x = l->statistics[i].cosine;
        if (x < from || x >= to) continue;
        sum += x;
        squares += x * x;
        ++*count;
    }
    return *count ? fmax(0, squares - sum * sum / (double)*count) : 0;
}

/* Groups of numbers on a line are intervals: of all pairs of bounds, the best. Returns the upper. */
static double upper_bound(const ln_layer_shares *l) {
    double best = INFINITY, upper = INFINITY;
    for (int64_t i = 0; i < l->layers; i++) {
        for (int64_t j = 0; j < l->layers; j++) {
            const double a = l->statistics[i].cosine, b = l->statistics[j].cosine;
            int64_t first, second, third;
            if (a >= b) continue;
            const double all =
                scatter(l, -INFINITY, a, &first) + scatter(l, a, b, &second) + scatter(l, b, INFINITY, &third);
            if (first == 0 || all >= best) continue;
            best = all;
            upper = b;
        }
    }
    return upper;
}

static bool all_known(const ln_layer_shares *l, bool mass) {
    for (int64_t i = 0; l->statistics && i < l->layers; i++)
        if ((mass ? l->statistics[i].masses : l->statistics[i].cosines) == 0) return false;
    return l->statistics;
}

static void squeeze_layers(const ln_layer_shares *l, double *share) {
    if (!all_known(l, false)) return;
    const double p = fmin(fmax(ln_policy_parameter_of(l->policy, "p", 0.35), 0), 1), bound = upper_bound(l),
                 n = (double)l->layers;
    int64_t idle;
    scatter(l, bound, INFINITY, &idle);
    if (idle == 0) return;
    for (int64_t i = 0; i < l->layers; i++)
        share[i] = l->statistics[i].cosine >= bound ? p / n : (n - (double)idle * p) / (n - (double)idle) / n;
}

/* ---- prefix ---- */

/* The least part of the tokens that holds p of the attention; the curve is a line between its points. */
static double tokens_for(const ln_statistics *s, double p) {
    double below = 0;
    for (int i = 0; i < LN_STATISTICS_MASS; i++) {
        const double here = i == LN_STATISTICS_MASS - 1 ? 1 : fmin(1, s->mass[i]);
        if (here >= p) return (i + (here > below ? (p - below) / (here - below) : 1)) / LN_STATISTICS_MASS;
        below = fmax(below, here);
    }
    return 1;
}

static double tokens_of_all(const ln_layer_shares *l, double p) {
    double sum = 0;
    for (int64_t i = 0; i < l->layers; i++) sum += tokens_for(&l->statistics[i], p);
    return sum;
}

static void prefix_layers(const ln_layer_shares *l, double *share) {
    if (!all_known(l, true)) return;
    double low = 0, high = 1;
    for (int i = 0; i < 60; i++) {
        const double middle = (low + high) / 2;
        if (tokens_of_all(l, middle) < l->kept * (double)l->layers)
            low = middle;
        else
            high = middle;
    }
    const double sum = tokens_of_all(l, high);
    for (int64_t i = 0; sum > 0 && i < l->layers; i++) share[i] = tokens_for(&l->statistics[i], high) / sum;
}

/* ---- level ---- */

/* Mean over layers of the tokens that reach 2^(-at / 4), a line between the points. */
static double reaching(const ln_statistics *s, double at) {
    const int i = (int)at;
    if (i >= LN_STATISTICS_MASS - 1) return s->mass[LN_STATISTICS_MASS - 1];
    return s->mass[i] + (at - i) * (s->mass[i + 1] - s->mass[i]);
}

static double reaching_all(const ln_layer_shares *l, double at) {
    double sum = 0;
    for (int64_t i = 0; i < l->layers; i++) sum += reaching(&l->statistics[i], at);
    return sum;
}

static void level_layers(const ln_layer_shares *l, double *share) {
    if (!all_known(l, true)) return;
    double low = 0, high = LN_STATISTICS_MASS - 1;
    for (int i = 0; i < 60; i++) {
        const double middle = (low + high) / 2;
        if (reaching_all(l, middle) < l->kept * (double)l->layers)
            low = middle;
        else
            high = middle;
    }
    const double sum = reaching_all(l, high);
    for (int64_t i = 0; sum > 0 && i < l->layers; i++) share[i] = reaching(&l->statistics[i], high) / sum;
}

/* ---- duo ---- */

static void duo_layers(const ln_layer_shares *l, double *share) {
    double all = 0;
    for (int64_t i = 0; l->kinds && i < l->layers * l->heads; i++) all += l->kinds[i] == LN_HEAD_FULL;
    if (all == 0) return;
    for (int64_t i = 0; i < l->layers; i++) {
        share[i] = 0;
        for (int64_t h = 0; h < l->heads; h++) share[i] += (l->kinds[i * l->heads + h] == LN_HEAD_FULL) / all;
    }
}

/* ---- statistics ---- */

void ln_statistics_cosine(ln_statistics *statistics, const float *before, const float *after, int64_t tokens,
                          int64_t n) {
    for (int64_t t = 0; t < tokens; t++) {
        const float *x = before + t * n, *y = after + t * n;
        double xx = 0, yy = 0, xy = 0;
        for (int64_t i = 0; i < n; i++) {
            xx += (double)x[i] * (double)x[i];
            yy += (double)y[i] * (double)y[i];
            xy += (double)x[i] * (double)y[i];
        }
        const double cosine = xy / sqrt(xx * yy);
        if (!(fabs(cosine) <= 2)) continue; /* zeros, or not finite */
        statistics->cosines++;
        statistics->cosine += (cosine - statistics->cosine) / (double)statistics->cosines;
    }
}

/* Descending, by digits of 11 bits; values are not negative. */
static void sort_down(float *x, float *other, int64_t n) {
    enum { DIGITS = 2048 };
    for (int shift = 0; shift < 33; shift += 11) {
        int64_t begin[DIGITS + 1] = {0};
        for (int64_t i = 0; i < n; i++) begin[(~ln_order_key(x[i]) >> shift & (DIGITS - 1)) + 1]++;
        for (int d = 0; d < DIGITS; d++) begin[d + 1] += begin[d];
        for (int64_t i = 0; i < n; i++) other[begin[~ln_order_key(x[i]) >> shift & (DIGITS - 1)]++] = x[i];
        float *swap = x;
        x = other;
        other = swap;
    }
}

void ln_statistics_mass(ln_statistics *statistics, const float *weights, int64_t count, float *workspace) {
    double sum = 0, part = 0;
    if (count <= 0) return;
    for (int64_t i = 0; i < count; i++) sum += (double)(workspace[i] = weights[i] > 0 ? weights[i] : 0);
    if (!(sum > 0 && sum < INFINITY)) return;
    sort_down(workspace, workspace + count, count); /* 3 digits: the other half has it */
    const float *sorted = workspace + count;
    statistics->masses++;
    int64_t next = 0;
    for (int i = 0; i < LN_STATISTICS_MASS; i++) {
        const double place = (double)count * (i + 1) / LN_STATISTICS_MASS;
        for (; next < (int64_t)place; next++) part += (double)sorted[next];
        const double rest = next < count ? (place - (double)next) * (double)sorted[next] : 0;
        statistics->mass[i] += ((part + rest) / sum - statistics->mass[i]) / (double)statistics->masses;
    }
}

void ln_statistics_scores(ln_statistics *statistics, const float *scores, int64_t count) {
    int64_t reach[LN_STATISTICS_MASS] = {0};
    if (count <= 0) return;
    for (int64_t i = 0; i < count; i++) {
        const float at = ceilf(-4 * log2f(fmaxf(scores[i], FLT_MIN)));
        if (at < LN_STATISTICS_MASS) reach[at > 0 ? (int)at : 0]++;
    }
    statistics->masses += count;
    int64_t sum = 0;
    for (int i = 0; i < LN_STATISTICS_MASS; i++) {
        sum += reach[i];
        statistics->mass[i] += ((double)sum - statistics->mass[i] * (double)count) / (double)statistics->masses;
    }
}

void ln_statistics_distance(const float *output, int64_t tokens, int64_t stride, int64_t head_stride, int64_t heads,
                            int64_t group, int64_t value_size, double *distance) {
    double mean[LN_HEAD_MOST];
    for (int64_t h = 0; h < heads / group; h++) distance[h] = 0;
    for (int64_t t = 0; t < tokens; t++) {
        const float *rows = output + t * stride;
        memset(mean, 0, sizeof mean);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < value_size; i++) mean[i] += (double)rows[h * head_stride + i] / (double)heads;
        for (int64_t h = 0; h < heads; h++) {
            double square = 0;
            for (int64_t i = 0; i < value_size; i++) {
                const double d = (double)rows[h * head_stride + i] - mean[i];
                square += d * d;
            }
            distance[h / group] += sqrt(square) / (double)(tokens * group);
        }
    }
}

/* ---- the table ---- */

static const ln_allocator allocators[] = {
    {.name = "uniform", .source = "baseline", .rule = "even shares", .defaults = ""},
    {.name = "pyramid",
     .source = "PyramidKV",
     .rule = "fewer tokens from layer to layer",
     .defaults = "",
     .layers = pyramid_layers},
    {.name = "squeeze",
     .source = "P088",
     .rule = "few tokens for layers whose attention changes little",
     .defaults = "",
     .cosine = true,
     .layers = squeeze_layers},
    {.name = "prefix",
     .source = "P216",
     .rule = "each layer what holds the same share of its attention",
     .defaults = "",
     .mass = true,
     .layers = prefix_layers},
    {.name = "adakv",
     .source = "AdaKV",
     .rule = "the best tokens of all heads of a layer together",
     .defaults = "",
     .heads = adakv_heads},
    {.name = "level",
     .source = "KVzip",
     .rule = "each layer what reaches one score, its heads as adakv",
     .defaults = "alpha=0",
     .scores = true,
     .layers = level_layers,
     .heads = adakv_heads},
    {.name = "duo",
     .source = "DuoAttention, P170",
     .rule = "heads that look far back first",
     .defaults = "",
     .kinds = true,
     .layers = duo_layers,
     .heads = duo_heads},
    {.name = "task",
     .source = "P190",
     .rule = "heads that differ from the others first",
     .defaults = "",
     .distance = true,
     .heads = task_heads},
};
enum { ALLOCATORS = sizeof allocators / sizeof *allocators };

const ln_allocator *ln_allocator_at(int index) {
    return index >= 0 && index < ALLOCATORS ? &allocators[index] : NULL;
}

const ln_allocator *ln_allocator_of(const char *name) {
    for (int i = 0; i < ALLOCATORS; i++)
        if (strcmp(allocators[i].name, name) == 0) return &allocators[i];
    return NULL;
}
