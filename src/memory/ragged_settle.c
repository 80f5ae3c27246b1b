/* Owns: settling a layer after a piece was attended: scores, allowances, what is given up, what changes its kind.
 *
 * Candidates of a lane are its far tokens and those that leave the near ones. Where they are more than the lane's
 * allowance of tokens n, with a share s of them salient:
 *     the n best by score are kept: of those that are not low yet the s n best are far, the rest is low;
 *     the others are given up, or merged into those
 * (a token that is low stays so). Ties go to the newer token, so that the outcome does not depend on places. So no more
 * tokens become low than leave the near ones, unless the allowance shrinks, and the reserve has room for both kinds.
 *
 * Lanes are settled by tasks. A task takes pages and never drops one, because dropping moves pages that others read:
 * what it wants dropped is listed, and dropped when all are done. */
#include <math.h>
#include <string.h>

#include "kernel/page.h"
#include "memory/merge.h"
#include "memory/order.h"
#include "memory/ragged_inside.h"
#include "mixer/carve.h"

enum { GIVEN_UP, FAR = LN_FAR, LOW = LN_LOW };
enum { MERGED = 48 /* tokens that are merged at once */ };

/* A lane while it is settled. Indices are those of the view: 32 * page + place. */
typedef struct lane_work {
    int64_t pages, keys; /* of the view; keys = 32 pages */
    float *score, *compact, *kept, *bias, *sorted;
    int32_t *positions, *index;
    uint8_t *fate;
    ln_page *list[LN_LANE_KINDS]; /* of far and low, with room for what comes */
    int64_t count[LN_LANE_KINDS]; /* pages of the lists */
    ln_page *dropped;
    int64_t drops;
    int64_t candidates, allowance; /* tokens */
    bool full;                     /* no page was left: a defect */
} lane_work;

typedef struct layer_work {
    ln_ragged *ragged;
    const ln_settling *s;
    int64_t leaving; /* pages */
    lane_work *lane; /* [heads] */
    unsigned char *workers;
    uint64_t worker_bytes;
} layer_work;

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* ---- workspace ---- */

static ln_scene shape_scene(const ln_ragged_shape *shape, const ln_kernels *kernels, int64_t pages) {
    return (ln_scene){.kernels = kernels,
                      .policy = shape->policy,
                      .pages = pages,
                      .piece = shape->piece,
                      .observed = shape->piece,
                      .group = shape->heads / shape->key_value_heads,
                      .key_size = shape->key_size,
                      .value_size = shape->value_size,
                      .scale = shape->scale};
}

/* Of a task, while it moves and merges tokens. */
typedef struct rows {
    float *keys, *values; /* 32 of each */
    ln_merge merge;
    float *gone, *gone_values, *counts; /* MERGED of each */
    int32_t *names;
} rows;

static rows carve_rows(ln_carver *from, const ln_ragged_shape *shape) {
    const uint64_t key = (uint64_t)shape->key_size, value = (uint64_t)shape->value_size;
    const uint64_t merged = shape->policy->merger ? MERGED : 0;
    rows r = {.keys = ln_carve(from, LN_PAGE_TOKENS * key, sizeof(float))};
    r.values = ln_carve(from, LN_PAGE_TOKENS * value, sizeof(float));
    r.gone = ln_carve(from, merged * key, sizeof(float));
    r.gone_values = ln_carve(from, merged * value, sizeof(float));
    r.counts = ln_carve(from, merged, sizeof(float));
    r.names = ln_carve(from, merged, sizeof(int32_t));
    r.merge.into = ln_carve(from, merged, sizeof(int32_t));
    r.merge.best = ln_carve(from, merged, sizeof(float));
    r.merge.workspace = ln_carve(from, merged ? ln_merge_workspace(shape->key_size) : 0, 1);
    return r;
}

static uint64_t worker_bytes_of(const ln_kernels *kernels, const ln_ragged_shape *shape, int64_t pages) {
    const ln_scorer *scorer = shape->policy->scorer;
    ln_carver parts = {0};
    carve_rows(&parts, shape);
    uint64_t bytes = ln_round_up(parts.used, 64);
    if (scorer && scorer->workspace) {
        const ln_scene scene = shape_scene(shape, kernels, pages);
        const uint64_t wanted = ln_round_up(scorer->workspace(shape->policy, &scene), 64);
        if (wanted > bytes) bytes = wanted;
    }
    return bytes;
}

int64_t ln_ragged_layer_pages(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    return ln_pool_pages_most(pool) + shape->key_value_heads * 4;
}

/* The parts of a lane of so many pages. Without a base it only counts. */
static void carve_lane(ln_carver *from, const ln_policy *policy, int64_t pages, lane_work *lane) {
    const ln_scorer *scorer = policy->scorer;
    const uint64_t keys = (uint64_t)(pages * LN_PAGE_TOKENS), room = (uint64_t)pages;
    for (int k = LN_FAR; k <= LN_LOW; k++) lane->list[k] = ln_carve(from, room, sizeof(ln_page));
    lane->dropped = ln_carve(from, 2 * room, sizeof(ln_page));
    if (!scorer) return;
    lane->score = ln_carve(from, keys, sizeof(float));
    lane->compact = ln_carve(from, keys, sizeof(float));
    lane->kept = ln_carve(from, keys * (uint64_t)scorer->keeps, sizeof(float));
    lane->bias = ln_carve(from, policy->merger ? keys : 0, sizeof(float));
    lane->sorted = ln_carve(from, policy->allocator && policy->allocator->mass ? 2 * keys : 0, sizeof(float));
    lane->positions = ln_carve(from, keys, sizeof(int32_t));
    lane->index = ln_carve(from, keys, sizeof(int32_t));
    lane->fate = ln_carve(from, keys, 1);
}

uint64_t ln_ragged_settle_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape,
                                    const ln_pool_shape *pool) {
    ln_carver parts = {0};
    const int64_t pages = ln_ragged_layer_pages(shape, pool);
    lane_work lane;
    ln_carve(&parts, (uint64_t)shape->key_value_heads, sizeof(lane_work));
    carve_lane(&parts, shape->policy, pages, &lane);
    ln_carve(&parts, (uint64_t)shape->key_value_heads, 16 * 64); /* each lane's parts are rounded up */
    ln_carve(&parts, (uint64_t)ln_min_i64(threads, shape->key_value_heads), worker_bytes_of(kernels, shape, pages));
    return parts.used;
}

/* ---- scores ---- */

static void gather(const ln_ragged *ragged, const ln_lane *lane, lane_work *work) {
    const int keeps = ragged->policy.scorer->keeps;
    for (int64_t p = 0; p < work->pages; p++) {
        const ln_page page = ragged->page[lane->begin + p];
        const int64_t at = p * LN_PAGE_TOKENS;
        memcpy(work->positions + at, ln_pool_positions(ragged->pool, page), LN_PAGE_TOKENS * sizeof(int32_t));
        if (keeps)
            memcpy(work->kept + at * keeps, ln_pool_kept(ragged->pool, page),
                   (size_t)(LN_PAGE_TOKENS * keeps) * sizeof(float));
    }
    if (ragged->policy.merger) ln_ragged_bias(ragged, lane, work->bias);
}

static ln_page own(ln_ragged *ragged, lane_work *work, ln_page page) {
    if (!ln_ragged_own(ragged, &page, work->dropped, &work->drops)) work->full = true;
    return page;
}

static void scatter(ln_ragged *ragged, ln_lane *lane, lane_work *work) {
    const int keeps = ragged->policy.scorer->keeps;
    for (int64_t p = 0; keeps && p < work->pages; p++) {
        ln_page *page = &ragged->page[lane->begin + p];
        *page = own(ragged, work, *page);
        memcpy(ln_pool_kept(ragged->pool, *page), work->kept + p * LN_PAGE_TOKENS * keeps,
               (size_t)(LN_PAGE_TOKENS * keeps) * sizeof(float));
    }
    if (work->drops) lane->version = 0;
}

/* Room that no other running task has: there are as many as threads, or lanes where these are fewer. */
static unsigned char *worker_place(const layer_work *layer, int64_t head, int worker) {
    const bool by_lane = layer->ragged->shape.key_value_heads < ln_team_size(layer->s->call->team);
    return layer->workers + (uint64_t)(by_lane ? head : worker) * layer->worker_bytes;
}

/* Takes the last tokens from the counts of a lane's pages, or puts them back; where pages are elsewhere, and so of one
 * kind, all are full but the last. */
static void set_back(ln_ragged *ragged, const ln_lane *lane, int64_t tokens) {
    const int64_t keys = lane->tokens[LN_FAR] + lane->tokens[LN_NEAR] - (tokens > 0 ? tokens : 0);
    for (int64_t p = 0; tokens && p < ln_lane_pages(lane); p++)
        ragged->count[lane->begin + p] = (uint8_t)ln_max_i64(0, ln_min_i64(LN_PAGE_TOKENS, keys - p * LN_PAGE_TOKENS));
}

static void score_lane(void *argument, int64_t head, int worker) {
    const layer_work *layer = argument;
    ln_ragged *ragged = layer->ragged;
    const ln_settling *s = layer->s;
    const ln_ragged_shape *shape = &ragged->shape;
    ln_lane *lane = ln_lane_of(ragged, s->layer, head);
    lane_work *work = &layer->lane[head];
    const int64_t group = shape->heads / shape->key_value_heads, skipped = s->tokens - s->observed;
    const int64_t number = s->layer * shape->key_value_heads + head;
    const ln_page_view view = ln_ragged_view(ragged, lane);
    gather(ragged, lane, work);
    ln_scene scene = {.kernels = s->call->kernels,
                      .policy = &ragged->policy,
                      .view = s->call->views ? &s->call->views[head] : &view,
                      .columns = s->call->columns ? s->call->columns + head * s->call->columns_stride : NULL,
                      .counts = ragged->count + lane->begin,
                      .pages = work->pages,
                      .positions = work->positions,
                      .key_bias = ragged->policy.merger ? work->bias : NULL,
                      .kept = work->kept,
                      .position = ragged->position + s->tokens - s->call->behind,
                      .piece = s->tokens,
                      .layer = s->layer,
                      .head = head,
                      .group = group,
                      .key_size = shape->key_size,
                      .value_size = shape->value_size,
                      .scale = s->call->attention->scale,
                      .soft_cap = s->call->attention->soft_cap,
                      .rotation = s->call->rotation,
                      .observed = ragged->policy.scorer->observes ? s->observed : 0,
                      .query = s->query ? s->query + head * group * shape->key_size : NULL,
                      .query_stride = shape->heads * shape->key_size,
                      .query_head_stride = shape->key_size,
                      .log_sum_exp = s->log_sum_exp ? s->log_sum_exp + (head * s->tokens + skipped) * group : NULL,
                      .log_sum_exp_stride = group,
                      .gate = s->call->gate ? s->call->gate + head : NULL,
                      .gate_stride = shape->key_value_heads,
                      .state = ragged->state + (uint64_t)number * ragged->state_bytes,
                      .workspace = worker_place(layer, head, worker)};
    set_back(ragged, lane, s->call->behind);
    ragged->policy.scorer->score(&scene, layer->leaving ? work->score : NULL);
    set_back(ragged, lane, -s->call->behind);
    scatter(ragged, lane, work);
}

/* ---- allowances ---- */

/* Far bytes that pages of a lane take, with the low ones. */
static uint64_t lane_bytes(const ln_ragged *ragged, const ln_lane *lane) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    uint64_t bytes = (uint64_t)lane->pages[LN_FAR] * ln_pool_page_bytes(pool, LN_FAR);
    if (pool->kinds > LN_LOW) bytes += (uint64_t)lane->pages[LN_LOW] * ln_pool_page_bytes(pool, LN_LOW);
    return bytes;
}

static uint64_t layer_bytes(const ln_ragged *ragged, int64_t layer) {
    uint64_t bytes = 0;
    for (int64_t h = 0; h < ragged->shape.key_value_heads; h++)
        bytes += lane_bytes(ragged, ln_lane_of(ragged, layer, h));
    return bytes;
}

/* Pages that all lanes of the layer may have together: its share, where others have left as much. */
static int64_t layer_pages(const ln_ragged *ragged, int64_t layer) {
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const double far = (double)ln_pool_page_bytes(pool, LN_FAR), salient = ragged->policy.salient;
    const double page =
        pool->kinds > LN_LOW ? salient * far + (1 - salient) * (double)ln_pool_page_bytes(pool, LN_LOW) : far;
    const uint64_t share = (uint64_t)(ragged->share[layer] * (double)ragged->allowance);
    const uint64_t most =
        layer_bytes(ragged, layer) + (ragged->allowance - min_u64(ragged->allowance, ragged->far_used));
    return (int64_t)((double)min_u64(share, most) / page);
}

/* The scores of a lane's candidates, one after the other; returns how many. */
static int64_t compact_scores(const ln_ragged *ragged, const layer_work *layer, const ln_lane *lane, lane_work *work) {
    const int64_t first = ln_lane_first(lane, LN_NEAR) - lane->begin + ln_sink_pages(&ragged->policy);
    int64_t n = 0;
    for (int64_t p = 0; p < work->pages; p++) {
        if (p >= lane->pages[LN_FAR] + lane->pages[LN_LOW] && (p < first || p >= first + layer->leaving)) continue;
        const float *weights = ln_pool_weights(ragged->pool, ragged->page[lane->begin + p]);
        for (int64_t i = 0; i < ragged->count[lane->begin + p]; i++) {
            float *score = &work->score[p * LN_PAGE_TOKENS + i];
            if (isnan(*score)) *score = -INFINITY;
            if (weights && weights[i] < 0) *score = INFINITY;
            work->index[n] = (int32_t)(p * LN_PAGE_TOKENS + i);
            work->compact[n++] = *score;
        }
    }
    return n;
}

static void divide(layer_work *layer) {
    ln_ragged *ragged = layer->ragged;
    const int64_t heads = ragged->shape.key_value_heads, pages = layer_pages(ragged, layer->s->layer);
    const ln_allocator *allocator = ragged->policy.allocator;
    ln_statistics *statistics = &ragged->statistics[layer->s->layer];
    int64_t held[LN_HEADS_MOST], tokens[LN_HEADS_MOST];
    const float *scores[LN_HEADS_MOST];
    for (int64_t h = 0; h < heads; h++) {
        lane_work *work = &layer->lane[h];
        work->candidates = compact_scores(ragged, layer, ln_lane_of(ragged, layer->s->layer, h), work);
        work->allowance = ln_max_i64(1, pages / heads) * LN_PAGE_TOKENS;
        const ln_lane *lane = ln_lane_of(ragged, layer->s->layer, h);
        const int64_t far = lane->tokens[LN_FAR] + lane->tokens[LN_LOW];
        if (allocator && allocator->scores)
            ln_statistics_scores(statistics, work->compact + far, work->candidates - far);
        if (allocator && allocator->mass) ln_statistics_mass(statistics, work->compact, work->candidates, work->sorted);
    }
    if (!allocator || !allocator->heads || heads > LN_HEADS_MOST) return;
    for (int64_t h = 0; h < heads; h++) {
        held[h] = layer->lane[h].candidates;
        scores[h] = layer->lane[h].compact;
    }
    const ln_head_tokens call = {.policy = &ragged->policy,
                                 .heads = heads,
                                 .tokens = pages * LN_PAGE_TOKENS,
                                 .least = LN_PAGE_TOKENS,
                                 .held = held,
                                 .scores = scores,
                                 .statistics = statistics,
                                 .kinds = ragged->heads ? ragged->heads + layer->s->layer * heads : NULL};
    ln_allocate_heads(allocator, &call, tokens);
    for (int64_t h = 0; h < heads; h++)
        layer->lane[h].allowance =
            tokens[h] >= held[h] ? tokens[h] : ln_max_i64(1, tokens[h] / LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
}

/* ---- ranking ---- */

/* a before b in the order of what to keep. */
static bool better(const void *what, int32_t a, int32_t b) {
    const lane_work *work = what;
    const float x = work->score[a], y = work->score[b];
    return x != y ? x > y : work->positions[a] > work->positions[b];
}

/* The fate of each candidate. */
static void rank(const ln_ragged *ragged, const ln_lane *lane, lane_work *work) {
    const bool low = ln_pool_shape_of(ragged->pool)->kinds > LN_LOW;
    const int64_t n = work->candidates, kept = ln_min_i64(n, work->allowance);
    const int64_t pages = work->allowance / LN_PAGE_TOKENS;
    const int64_t far =
        low ? ln_min_i64(kept, (int64_t)(ragged->policy.salient * (double)pages) * LN_PAGE_TOKENS) : kept;
    const int64_t first_low = lane->pages[LN_FAR] * LN_PAGE_TOKENS,
                  first_near = first_low + lane->pages[LN_LOW] * LN_PAGE_TOKENS;
    if (kept < n) ln_order_select(work->index, n, kept, better, work);
    int64_t high = 0; /* kept tokens that are not low yet come first */
    for (int64_t i = 0; i < kept; i++) {
        const int32_t at = work->index[i];
        if (at >= first_low && at < first_near) continue;
        work->index[i] = work->index[high];
        work->index[high++] = at;
    }
    if (far < high) ln_order_select(work->index, high, far, better, work);
    for (int64_t i = 0; i < n; i++)
        work->fate[work->index[i]] = i >= kept ? GIVEN_UP : i < ln_min_i64(high, far) ? FAR : LOW;
}

/* ---- merging ---- */

static float count_of(const ln_ragged *ragged, const ln_lane *lane, int64_t index) {
    const float weight =
        ln_pool_weights(ragged->pool, ragged->page[lane->begin + index / LN_PAGE_TOKENS])[index % LN_PAGE_TOKENS];
    return weight != 0 ? fabsf(weight) : 1;
}

static void decode(const ln_ragged *ragged, const ln_lane *lane, int64_t index, float *key, float *value) {
    const ln_page page = ragged->page[lane->begin + index / LN_PAGE_TOKENS];
    ln_page_decode_token(&ln_pool_layouts(ragged->pool)[ln_pool_kind(ragged->pool, page)],
                         ln_pool_data(ragged->pool, page), index % LN_PAGE_TOKENS, key, value);
}

/* The token that all are merged into: that of a negative weight. The first time, the worst of those that stay. */
static int64_t find_summary(ln_ragged *ragged, ln_lane *lane, lane_work *work, int64_t kept) {
    int64_t worst = -1;
    for (int64_t i = 0; i < kept; i++) {
        const int32_t at = work->index[i];
        if (ln_pool_weights(ragged->pool, ragged->page[lane->begin + at / LN_PAGE_TOKENS])[at % LN_PAGE_TOKENS] < 0)
            return at;
        if (worst < 0 || better(work, (int32_t)worst, at)) worst = at;
    }
    if (worst < 0) return -1;
    ln_page *page = &ragged->page[lane->begin + worst / LN_PAGE_TOKENS];
    const float count = count_of(ragged, lane, worst);
    *page = own(ragged, work, *page);
    ln_pool_weights(ragged->pool, *page)[worst % LN_PAGE_TOKENS] = -count;
    return worst;
}

/* Of every token that is given up, the most similar that stays. */
static void find_similar(const ln_ragged *ragged, const ln_lane *lane, const lane_work *work, int64_t leaving,
                         rows *r) {
    const int64_t first = ln_lane_first(lane, LN_NEAR) - lane->begin + ln_sink_pages(&ragged->policy);
    for (int64_t p = 0; p < first + leaving; p++) {
        if (p >= lane->pages[LN_FAR] + lane->pages[LN_LOW] && p < first) continue;
        r->merge.kept = 0;
        for (int64_t i = 0; i < ragged->count[lane->begin + p]; i++) {
            const int64_t at = p * LN_PAGE_TOKENS + i;
            if (work->fate[at] == GIVEN_UP) continue;
            decode(ragged, lane, at, r->keys + r->merge.kept * r->merge.key_size, NULL);
            r->names[r->merge.kept++] = (int32_t)at;
        }
        ln_merge_find(&r->merge, r->names);
    }
}

/* All of a batch that go into one token, together: it is encoded anew once. */
static void merge_batch(ln_ragged *ragged, ln_lane *lane, lane_work *work, rows *r) {
    for (int64_t i = 0; i < r->merge.evicted; i++) {
        const int32_t to = r->merge.into[i];
        if (to < 0) continue;
        float count = count_of(ragged, lane, to);
        decode(ragged, lane, to, r->keys, r->values);
        r->merge.counts = &count;
        for (int64_t k = i; k < r->merge.evicted; k++) {
            if (r->merge.into[k] != to) continue;
            ln_merge_add(&r->merge, k, 0);
            r->merge.into[k] = -1;
        }
        ln_page *page = &ragged->page[lane->begin + to / LN_PAGE_TOKENS];
        *page = own(ragged, work, *page);
        ln_page_encode_token(&ln_pool_layouts(ragged->pool)[ln_pool_kind(ragged->pool, *page)],
                             ln_pool_data(ragged->pool, *page), to % LN_PAGE_TOKENS, r->keys, r->values);
        float *weight = &ln_pool_weights(ragged->pool, *page)[to % LN_PAGE_TOKENS];
        *weight = *weight < 0 ? -count : count;
    }
}

/* What is given up, index[kept] and after, into what stays, before anything is moved. */
static void merge_given_up(const layer_work *layer, ln_lane *lane, lane_work *work, rows *r) {
    ln_ragged *ragged = layer->ragged;
    const ln_ragged_shape *shape = &ragged->shape;
    const ln_merger *merger = ragged->policy.merger;
    const int64_t n = work->candidates, kept = ln_min_i64(n, work->allowance);
    if (kept == n) return;
    const int64_t summary = merger->summary ? find_summary(ragged, lane, work, kept) : -1;
    r->merge.kernels = layer->s->call->kernels;
    r->merge.key_size = shape->key_size;
    r->merge.value_size = shape->value_size;
    r->merge.keys = r->keys;
    r->merge.values = r->values;
    r->merge.evicted_keys = r->gone;
    r->merge.evicted_values = r->gone_values;
    r->merge.evicted_counts = r->counts;
    r->merge.similar = ln_policy_parameter_of(&ragged->policy, "similar", LN_MERGE_SIMILAR);
    for (int64_t i = kept; i < n; i += MERGED) {
        r->merge.evicted = ln_min_i64(MERGED, n - i);
        for (int64_t k = 0; k < r->merge.evicted; k++) {
            decode(ragged, lane, work->index[i + k], r->gone + k * shape->key_size,
                   r->gone_values + k * shape->value_size);
            r->counts[k] = count_of(ragged, lane, work->index[i + k]);
        }
        ln_merge_begin(&r->merge);
        for (int64_t k = 0; merger->summary && k < r->merge.evicted; k++)
            r->merge.into[k] = r->merge.best[k] < INFINITY ? (int32_t)summary : -1;
        if (!merger->summary) find_similar(ragged, lane, work, layer->leaving, r);
        merge_batch(ragged, lane, work, r);
    }
}

/* ---- moving ---- */

typedef struct mover {
    ln_ragged *ragged;
    int64_t head;
    const ln_page_layout *layouts;
    lane_work *work;
    int64_t tokens[LN_LANE_KINDS];
    rows *rows;
} mover;

static void copy_extras(const ln_pool *pool, ln_page to, int64_t to_place, ln_page from, int64_t from_place) {
    const int keeps = ln_pool_shape_of(pool)->kept;
    int32_t *positions = ln_pool_positions(pool, to);
    if (!positions) return;
    positions[to_place] = ln_pool_positions(pool, from)[from_place];
    if (keeps)
        memcpy(ln_pool_kept(pool, to) + to_place * keeps, ln_pool_kept(pool, from) + from_place * keeps,
               (size_t)keeps * sizeof(float));
    float *weights = ln_pool_weights(pool, to);
    if (weights) weights[to_place] = ln_pool_weights(pool, from)[from_place];
}

/* Where the next token of a kind goes: the page's place in the list. */
static ln_page *next_page(mover *m, int kind) {
    lane_work *work = m->work;
    const int64_t at = m->tokens[kind] / LN_PAGE_TOKENS;
    if (at == work->count[kind]) {
        const ln_page page = ln_pool_take(m->ragged->pool, kind);
        if (!page) {
            work->full = true;
            return NULL;
        }
        work->list[kind][work->count[kind]++] = page;
    }
    work->list[kind][at] = own(m->ragged, work, work->list[kind][at]);
    return &work->list[kind][at];
}

enum { HOLES, ENDS /* steps of moving: holes are filled, then tokens put behind the last */ };

/* To a device that has the pages; false: they are here. */
static bool move_elsewhere(const mover *m, int step, ln_page to, int64_t to_place, ln_page from, int64_t from_place) {
    const ln_ragged_elsewhere *there = m->ragged->shape.elsewhere;
    const ln_ragged_move move = {to, from, (int32_t)to_place, (int32_t)from_place};
    if (there) there->move(there->user, m->head, step, &move);
    return there;
}

/* A token of any page, encoded anew, at the end of a kind. */
static void add_token(mover *m, int kind, ln_page from, int64_t place) {
    ln_pool *pool = m->ragged->pool;
    const int64_t to_place = m->tokens[kind] % LN_PAGE_TOKENS;
    ln_page *to = next_page(m, kind);
    if (!to) return;
    float *key = m->rows->keys, *value = m->rows->values;
    if (!move_elsewhere(m, ENDS, *to, to_place, from, place)) {
        ln_page_decode_token(&m->layouts[ln_pool_kind(pool, from)], ln_pool_data(pool, from), place, key, value);
        ln_page_encode_token(&m->layouts[kind], ln_pool_data(pool, *to), to_place, key, value);
    }
    copy_extras(pool, *to, to_place, from, place);
    m->tokens[kind]++;
}

/* A whole near page at the end of the far ones, where these end with a whole page. */
static void add_page(mover *m, ln_page from) {
    ln_pool *pool = m->ragged->pool;
    const ln_ragged_shape *shape = &m->ragged->shape;
    ln_page *to = next_page(m, LN_FAR);
    if (!to) return;
    float *keys = m->rows->keys, *values = m->rows->values;
    for (int64_t i = 0; i < LN_PAGE_TOKENS; i++) {
        copy_extras(pool, *to, i, from, i);
        if (move_elsewhere(m, ENDS, *to, i, from, i)) continue;
        ln_page_decode_token(&m->layouts[LN_NEAR], ln_pool_data(pool, from), i, keys + i * shape->key_size,
                             values + i * shape->value_size);
    }
    if (!shape->elsewhere)
        ln_page_encode(&m->layouts[LN_FAR], ln_pool_data(pool, *to), LN_PAGE_TOKENS, keys, shape->key_size, values,
                       shape->value_size);
    m->tokens[LN_FAR] += LN_PAGE_TOKENS;
}

/* Keeps the tokens of a kind whose fate it is, from the index `first` on: holes take the last ones. */
static void fill_holes(mover *m, int kind, int64_t first) {
    ln_pool *pool = m->ragged->pool;
    lane_work *work = m->work;
    ln_page *list = work->list[kind];
    uint8_t *fate = work->fate + first;
    int64_t i = 0, end = m->tokens[kind];
    for (; i < end; i++) {
        if (fate[i] == kind) continue;
        do end--;
        while (end > i && fate[end] != kind);
        if (end == i) break;
        list[i / LN_PAGE_TOKENS] = own(m->ragged, work, list[i / LN_PAGE_TOKENS]);
        const ln_page to = list[i / LN_PAGE_TOKENS], from = list[end / LN_PAGE_TOKENS];
        if (!move_elsewhere(m, HOLES, to, i % LN_PAGE_TOKENS, from, end % LN_PAGE_TOKENS))
            ln_page_move(&m->layouts[kind], ln_pool_data(pool, to), i % LN_PAGE_TOKENS, ln_pool_data(pool, from),
                         end % LN_PAGE_TOKENS);
        copy_extras(pool, to, i % LN_PAGE_TOKENS, from, end % LN_PAGE_TOKENS);
    }
    m->tokens[kind] = end;
}

static void move_far(mover *m, const ln_lane *lane) {
    const lane_work *work = m->work;
    const int64_t first_low = lane->pages[LN_FAR] * LN_PAGE_TOKENS;
    fill_holes(m, LN_LOW, first_low);
    for (int64_t i = 0; i < lane->tokens[LN_FAR]; i++)
        if (work->fate[i] == LOW) add_token(m, LN_LOW, work->list[LN_FAR][i / LN_PAGE_TOKENS], i % LN_PAGE_TOKENS);
    fill_holes(m, LN_FAR, 0);
}

static void move_leaving(mover *m, const ln_ragged *ragged, const ln_lane *lane, int64_t leaving, bool ranked) {
    const int64_t first = ln_lane_first(lane, LN_NEAR) - lane->begin + ln_sink_pages(&ragged->policy);
    for (int64_t p = first; p < first + leaving; p++) {
        const ln_page page = ragged->page[lane->begin + p];
        const uint8_t *fate = ranked ? m->work->fate + p * LN_PAGE_TOKENS : NULL;
        bool whole = m->tokens[LN_FAR] % LN_PAGE_TOKENS == 0;
        for (int i = 0; ranked && whole && i < LN_PAGE_TOKENS; i++) whole = fate[i] == FAR;
        if (whole) {
            add_page(m, page);
        } else {
            for (int i = 0; i < LN_PAGE_TOKENS; i++)
                if (!ranked || fate[i] != GIVEN_UP) add_token(m, ranked ? fate[i] : LN_FAR, page, i);
        }
        m->work->dropped[m->work->drops++] = page;
    }
}

/* The lane's entries from the lists, and the near pages that stay. */
static void write_back(ln_ragged *ragged, ln_lane *lane, const mover *m, int64_t leaving) {
    lane_work *work = m->work;
    const int64_t near = ln_lane_first(lane, LN_NEAR), sinks = ln_sink_pages(&ragged->policy);
    const int64_t stay = lane->pages[LN_NEAR] - sinks - leaving;
    int64_t pages[LN_LANE_KINDS];
    for (int k = LN_FAR; k <= LN_LOW; k++) {
        pages[k] = ln_ceil_div(m->tokens[k], LN_PAGE_TOKENS);
        for (int64_t i = pages[k]; i < work->count[k]; i++) work->dropped[work->drops++] = work->list[k][i];
    }
    const int64_t to = lane->begin + pages[LN_FAR] + pages[LN_LOW];
    if (leaving) {
        memmove(ragged->page + near + sinks, ragged->page + near + sinks + leaving, (size_t)stay * sizeof(ln_page));
        memmove(ragged->count + near + sinks, ragged->count + near + sinks + leaving, (size_t)stay);
    }
    memmove(ragged->page + to, ragged->page + near, (size_t)(sinks + stay) * sizeof(ln_page));
    memmove(ragged->count + to, ragged->count + near, (size_t)(sinks + stay));
    memset(ragged->kind + to, LN_NEAR, (size_t)(sinks + stay));
    int64_t at = lane->begin;
    for (int k = LN_FAR; k <= LN_LOW; k++) {
        for (int64_t i = 0; i < pages[k]; i++, at++) {
            ragged->page[at] = work->list[k][i];
            ragged->kind[at] = (uint8_t)k;
            ragged->count[at] = (uint8_t)ln_min_i64(LN_PAGE_TOKENS, m->tokens[k] - i * LN_PAGE_TOKENS);
        }
        lane->pages[k] = pages[k];
        lane->tokens[k] = m->tokens[k];
    }
    lane->pages[LN_NEAR] = sinks + stay;
    lane->tokens[LN_NEAR] -= leaving * LN_PAGE_TOKENS;
    lane->version = 0;
}

static void move_lane(void *argument, int64_t head, int worker) {
    const layer_work *layer = argument;
    ln_ragged *ragged = layer->ragged;
    ln_lane *lane = ln_lane_of(ragged, layer->s->layer, head);
    lane_work *work = &layer->lane[head];
    const bool ranked =
        ragged->policy.scorer && work->candidates > (ln_pool_shape_of(ragged->pool)->kinds > LN_LOW
                                                         ? (int64_t)(ragged->policy.salient * (double)work->allowance)
                                                         : work->allowance);
    ln_carver parts = {.base = worker_place(layer, head, worker)};
    rows room = carve_rows(&parts, &ragged->shape);
    if (ragged->order && !ln_ragged_order_lane(ragged, layer->s, head, room.keys, work->dropped, &work->drops))
        work->full = true;
    mover m = {.ragged = ragged, .head = head, .layouts = ln_pool_layouts(ragged->pool), .work = work, .rows = &room};
    if (ranked) {
        rank(ragged, lane, work);
        if (ragged->policy.merger) merge_given_up(layer, lane, work, &room);
    }
    const int64_t before = lane->tokens[LN_FAR] + lane->tokens[LN_LOW] + layer->leaving * LN_PAGE_TOKENS;
    for (int k = LN_FAR; k <= LN_LOW; k++) {
        m.tokens[k] = lane->tokens[k];
        work->count[k] = lane->pages[k];
        memcpy(work->list[k], ragged->page + ln_lane_first(lane, k), (size_t)lane->pages[k] * sizeof(ln_page));
    }
    if (ranked) move_far(&m, lane);
    move_leaving(&m, ragged, lane, layer->leaving, ranked);
    write_back(ragged, lane, &m, layer->leaving);
    lane->given_up += before - lane->tokens[LN_FAR] - lane->tokens[LN_LOW];
}

/* ---- the whole ---- */

static void lay_out(layer_work *layer) {
    ln_ragged *ragged = layer->ragged;
    const int64_t heads = ragged->shape.key_value_heads;
    ln_carver parts = {.base = layer->s->workspace};
    layer->lane = ln_carve(&parts, (uint64_t)heads, sizeof *layer->lane);
    int64_t most = 0;
    for (int64_t h = 0; h < heads; h++) {
        const int64_t pages = ln_lane_pages(ln_lane_of(ragged, layer->s->layer, h));
        layer->lane[h] = (lane_work){.pages = pages, .keys = pages * LN_PAGE_TOKENS};
        carve_lane(&parts, &ragged->policy, pages + 2, &layer->lane[h]);
        most = ln_max_i64(most, pages);
    }
    layer->worker_bytes = worker_bytes_of(layer->s->call->kernels, &ragged->shape, most);
    layer->workers = ln_carve(&parts, 1, 1);
}

linnet_status ln_ragged_settle(ln_ragged *ragged, const ln_settling *settling) {
    const int64_t heads = ragged->shape.key_value_heads, l = settling->layer;
    layer_work layer = {
        .ragged = ragged, .s = settling, .leaving = settling->call->behind ? 0 : ln_ragged_leaving(ragged, l)};
    ln_team *team = settling->call->team;
    const ln_scorer *scorer = ragged->policy.scorer;
    lay_out(&layer);
    if (scorer) {
        ln_parallel(team, heads, score_lane, &layer);
        if (scorer->shared && layer.leaving) {
            float *scores[LN_HEADS_MOST];
            for (int64_t h = 0; h < heads; h++) scores[h] = layer.lane[h].score;
            ln_score_share(scores, heads, layer.lane[0].keys);
        }
    }
    if (ragged->pass == LN_PASS_PROBE) {
        for (int64_t h = 0; h < heads; h++) {
            ln_lane *lane = ln_lane_of(ragged, l, h);
            ln_ragged_keep_near(ragged, lane, lane->tokens[LN_NEAR] - settling->tokens);
        }
    }
    const uint64_t before = layer_bytes(ragged, l);
    if (layer.leaving) {
        if (scorer) divide(&layer);
        ln_ragged_make_room(ragged, l, 2);
        ln_parallel(team, heads, move_lane, &layer);
    }
    bool full = false;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < layer.lane[h].drops; i++) ln_pool_drop(ragged->pool, layer.lane[h].dropped[i]);
        full = full || layer.lane[h].full;
    }
    ragged->far_used += layer_bytes(ragged, l) - before;
    ragged->settled = true;
    return full ? ln_fail(ragged->context, LINNET_ERROR_MEMORY, "the pages of this policy do not suffice: a defect")
                : LINNET_OK;
}
