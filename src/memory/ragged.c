/* Owns: memory under a policy: its tables, forks, the pages of new tokens, and attention over lanes.
 *
 *   bytes = tables + slabs;   slabs = waste of kinds + near pages of all lanes + one piece of a layer + allowance
 *
 * The allowance is what far pages of all lanes may take together (ragged_settle.c divides it). Everything else is
 * reserved, so a page that is asked for is there.
 *
 * The tables hold the pages of one lane after the other, with some room after each; where a lane needs more, all are
 * spread anew. */
#include "memory/ragged.h"

#include <math.h>
#include <string.h>

#include "kernel/page.h"
#include "memory/ragged_inside.h"

/* ---- sizes ---- */

static bool has_low(const ln_policy *policy) {
    return policy->low_keys != LINNET_TYPE_AUTO;
}

static bool shape_pool(const ln_ragged_shape *shape, ln_pool_shape *pool) {
    const ln_policy *p = shape->policy;
    const ln_scorer *scorer = p->scorer;
    *pool = (ln_pool_shape){.kinds = has_low(p) ? 3 : 2,
                            .positions = scorer != NULL,
                            .kept = scorer ? scorer->keeps : 0,
                            .weights = p->merger != NULL,
                            .elsewhere = shape->elsewhere != NULL,
                            .bytes = shape->bytes};
    const int64_t keys = shape->key_size, values = shape->value_size, rest = ln_policy_key_size(p, keys);
    if (shape->key_value_heads > LN_HEADS_MOST) return false;
    if (!ln_page_layout_of(p->near, p->near, keys, values, &pool->layout[LN_NEAR]) ||
        !ln_page_layout_of(p->keys, p->values, rest, values, &pool->layout[LN_FAR]) ||
        (p->channels && !ln_page_layout_by_channel(&pool->layout[LN_FAR])))
        return false;
    return !has_low(p) || ln_page_layout_of(p->low_keys, p->low_values, rest, values, &pool->layout[LN_LOW]);
}

static int64_t lanes_of(const ln_ragged_shape *shape) {
    return shape->layers * shape->key_value_heads;
}

/* Near pages of a lane between pieces: sinks, recent tokens, the page that is about to leave, the page begun. */
static int64_t near_pages(const ln_ragged_shape *shape) {
    const ln_policy *policy = shape->policy;
    const int64_t pages = ln_sink_pages(policy) + ln_ceil_div(policy->recent, LN_PAGE_TOKENS) + 2;
    return ln_min_i64(pages, ln_ceil_div(shape->capacity, LN_PAGE_TOKENS) + 1);
}

static int64_t piece_pages(const ln_ragged_shape *shape) {
    return ln_ceil_div(shape->piece, LN_PAGE_TOKENS) + 1;
}

/* Slabs taken beside the allowance. */
static uint64_t reserved_bytes(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    const uint64_t near = ln_pool_page_bytes(pool, LN_NEAR), far = ln_pool_page_bytes(pool, LN_FAR);
    const uint64_t low = pool->kinds > LN_LOW ? ln_pool_page_bytes(pool, LN_LOW) : 0;
    const uint64_t lanes = (uint64_t)lanes_of(shape), heads = (uint64_t)shape->key_value_heads;
    const uint64_t held = shape->policy->probe ? (uint64_t)piece_pages(shape) : 0;
    return ln_pool_waste(pool) + lanes * (((uint64_t)near_pages(shape) + held) * near + low) +
           heads * (uint64_t)piece_pages(shape) * (near + far);
}

static int64_t entries_of(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    return ln_pool_pages_most(pool) + lanes_of(shape) * (piece_pages(shape) + 4);
}

static uint64_t state_bytes_of(const ln_ragged_shape *shape) {
    const ln_scorer *scorer = shape->policy->scorer;
    if (!scorer || !scorer->state) return 0;
    const ln_scene scene = {.key_size = shape->key_size,
                            .value_size = shape->value_size,
                            .group = shape->heads / shape->key_value_heads,
                            .observed = shape->piece,
                            .scale = shape->scale};
    return ln_round_up(scorer->state(shape->policy, &scene), 64);
}

/* The one block of tables. */
static uint64_t table_bytes(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    const uint64_t entries = (uint64_t)entries_of(shape, pool), lanes = (uint64_t)lanes_of(shape);
    return ln_round_up(sizeof(ln_ragged), 64) + ln_round_up(lanes * state_bytes_of(shape), 64) +
           ln_ragged_order_bytes(shape) + (uint64_t)shape->layers * sizeof(double) + lanes * sizeof(ln_lane) +
           (uint64_t)shape->layers * sizeof(ln_statistics) + lanes * (sizeof(double) + 1) +
           entries * (sizeof(unsigned char *) + sizeof(ln_page) + 2);
}

static uint64_t tier_bytes(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    ln_tier_shape tier;
    return ln_ragged_tier_shape(shape, pool, &tier) ? ln_tier_bytes(&tier) : 0;
}

/* The largest pool that with its tables takes at most shape->bytes; false: none. */
static bool fit_pool(const ln_ragged_shape *shape, ln_pool_shape *pool) {
    for (int i = 0; i < 64; i++) {
        const uint64_t all =
            ln_allocated_bytes(table_bytes(shape, pool)) + ln_pool_bytes(pool) + tier_bytes(shape, pool);
        if (all <= shape->bytes) return true;
        const uint64_t over = all - shape->bytes;
        const uint64_t slabs = ln_pool_capacity(pool); /* what does not drop one changes nothing */
        if (over >= slabs) return false;
        pool->bytes = slabs - over;
    }
    return false;
}

bool ln_ragged_pool_shape(const ln_ragged_shape *shape, ln_pool_shape *pool) {
    return shape_pool(shape, pool) && fit_pool(shape, pool);
}

int64_t ln_ragged_pages(const ln_ragged_shape *shape) {
    ln_pool_shape pool;
    return ln_ragged_pool_shape(shape, &pool) ? ln_pool_pages_most(&pool) : 0;
}

int64_t ln_ragged_lane_pages(const ln_ragged_shape *shape) {
    ln_pool_shape pool;
    if (!ln_ragged_pool_shape(shape, &pool)) return 0;
    const int64_t all = ln_min_i64(ln_ceil_div(shape->capacity, LN_PAGE_TOKENS), ln_pool_pages_most(&pool));
    if (shape->policy->allocator) return all;
    return ln_min_i64(all, ln_pool_pages_most(&pool) / lanes_of(shape) + near_pages(shape) + piece_pages(shape) + 2);
}

uint64_t ln_ragged_staged(const ln_ragged_shape *shape) {
    ln_pool_shape pool;
    if (!shape_pool(shape, &pool)) return 0;
    const uint64_t near = ln_pool_page_bytes(&pool, LN_NEAR), pages = (uint64_t)piece_pages(shape);
    const uint64_t held = shape->policy->probe ? (uint64_t)lanes_of(shape) * pages * near : 0;
    return (uint64_t)shape->key_value_heads * pages * (near + ln_pool_page_bytes(&pool, LN_FAR)) + held;
}

/* Bytes of far pages that a lane needs at least. */
static uint64_t least_allowance(const ln_ragged_shape *shape, const ln_pool_shape *pool) {
    const int64_t left = shape->capacity - ln_sink_pages(shape->policy) * LN_PAGE_TOKENS;
    const bool few = shape->policy->scorer || shape->policy->file;
    const int64_t pages = few ? 1 : ln_max_i64(1, ln_ceil_div(left, LN_PAGE_TOKENS));
    return (uint64_t)(lanes_of(shape) * pages) * ln_pool_page_bytes(pool, LN_FAR);
}

bool ln_ragged_tier_shape(const ln_ragged_shape *shape, const ln_pool_shape *pool, ln_tier_shape *tier) {
    const ln_policy *policy = shape->policy;
    if (!policy->selector && !policy->file) return false;
    const uint64_t room = ln_pool_capacity(pool), reserved = reserved_bytes(shape, pool);
    const uint64_t left = room > reserved ? room - reserved : 0;
    const int64_t far = shape->capacity - ln_sink_pages(policy) * LN_PAGE_TOKENS - policy->recent;
    *tier =
        (ln_tier_shape){.policy = policy,
                        .pool = pool,
                        .kind = LN_FAR,
                        .lanes = lanes_of(shape),
                        .heads = shape->key_value_heads,
                        .key_size = shape->key_size,
                        .capacity = ln_max_i64(1, far / LN_PAGE_TOKENS) + 1,
                        .resident = (int64_t)(left / ((uint64_t)lanes_of(shape) * ln_pool_page_bytes(pool, LN_FAR))),
                        .folder = shape->folder};
    return true;
}

static bool fits(const ln_ragged_shape *shape, ln_pool_shape *pool) {
    return shape_pool(shape, pool) && fit_pool(shape, pool) && ln_pool_pages_most(pool) > 0 &&
           ln_pool_capacity(pool) >= reserved_bytes(shape, pool) + least_allowance(shape, pool);
}

linnet_status ln_ragged_least(linnet_context *context, const ln_ragged_shape *shape, uint64_t *bytes) {
    ln_ragged_shape trial = *shape;
    ln_pool_shape pool;
    trial.bytes = 1 << 20;
    if (!shape_pool(&trial, &pool))
        return ln_fail(
            context, LINNET_ERROR_ARGUMENT,
            "pages of this policy's precisions need head sizes that are multiples of 8 up to %d, and at most %d "
            "key-value heads",
            LN_HEAD_MOST, LN_HEADS_MOST);
    uint64_t low = 0, high = 1 << 16;
    for (trial.bytes = high; !fits(&trial, &pool); trial.bytes = high) {
        if (high >> 46) return ln_fail(context, LINNET_ERROR_MEMORY, "this context cannot be addressed");
        low = high;
        high *= 2;
    }
    while (high - low > 4096) {
        trial.bytes = low + (high - low) / 2;
        if (fits(&trial, &pool))
            high = trial.bytes;
        else
            low = trial.bytes;
    }
    *bytes = high;
    return LINNET_OK;
}

/* ---- shares of layers ---- */

static void forget_statistics(ln_ragged *ragged) {
    const ln_ragged_shape *shape = &ragged->shape;
    memset(ragged->distance, 0, (size_t)ragged->lanes * sizeof *ragged->distance);
    for (int64_t l = 0; l < shape->layers; l++)
        ragged->statistics[l] = (ln_statistics){.distance = ragged->distance + l * shape->key_value_heads};
}

/* By what is known, for a text of so many tokens. Each layer has at least one page a lane; that a layer grows only as
 * far as others have left room is seen to where it settles. */
static void divide_layers(ln_ragged *ragged, const ln_pool_shape *pool, int64_t text) {
    const ln_ragged_shape *shape = &ragged->shape;
    const double page = (double)ln_pool_page_bytes(pool, LN_FAR), all = (double)ragged->allowance;
    const double tokens = all / page * LN_PAGE_TOKENS / (double)ragged->lanes;
    const ln_layer_shares layers = {.policy = &ragged->policy,
                                    .layers = shape->layers,
                                    .heads = shape->key_value_heads,
                                    .statistics = ragged->statistics,
                                    .kinds = ragged->heads,
                                    .kept = fmin(1, tokens / (double)text)};
    const double least = (page * (double)shape->key_value_heads + 1) / all, rest = 1 - least * (double)shape->layers;
    ln_allocate_layers(rest > 0 ? ragged->policy.allocator : NULL, &layers, ragged->share);
    for (int64_t l = 0; rest > 0 && l < shape->layers; l++) ragged->share[l] = least + rest * ragged->share[l];
}

void ln_ragged_observe_cosine(ln_ragged *ragged, int64_t layer, const double *cosine, int64_t tokens) {
    ln_statistics *statistics = &ragged->statistics[layer];
    for (int64_t i = 0; i < tokens; i++) {
        if (!(fabs(cosine[i]) <= 2)) continue; /* of zeros, or not finite */
        statistics->cosines++;
        statistics->cosine += (cosine[i] - statistics->cosine) / (double)statistics->cosines;
    }
}

/* ---- opening and closing ---- */

static linnet_status make(linnet_context *context, const ln_ragged_shape *shape, const ln_pool_shape *pool,
                          ln_ragged **ragged) {
    const int64_t lanes = lanes_of(shape), entries = entries_of(shape, pool);
    unsigned char *block = ln_allocate_zero(context, 1, table_bytes(shape, pool), "key-value page tables");
    if (!block) return LINNET_ERROR_MEMORY;
    ln_ragged *made = (ln_ragged *)(void *)block;
    *made =
        (ln_ragged){.context = context, .shape = *shape, .policy = *shape->policy, .lanes = lanes, .entries = entries};
    made->shape.policy = &made->policy;
    made->shape.folder = NULL;
    made->state_bytes = state_bytes_of(shape);
    made->state = block + ln_round_up(sizeof *made, 64);
    unsigned char *const order = made->state + ln_round_up((uint64_t)lanes * made->state_bytes, 64);
    if (ln_policy_orders(shape->policy)) made->order = (int32_t *)(void *)order;
    made->share = (double *)(void *)(order + ln_ragged_order_bytes(shape));
    made->statistics = (ln_statistics *)(void *)(made->share + shape->layers);
    made->distance = (double *)(void *)(made->statistics + shape->layers);
    made->lane = (ln_lane *)(void *)(made->distance + lanes);
    made->slot = (const unsigned char **)(void *)(made->lane + lanes);
    made->page = (ln_page *)(void *)(made->slot + entries);
    made->kind = (uint8_t *)(made->page + entries);
    made->count = made->kind + entries;
    made->allowance = ln_pool_capacity(pool) - reserved_bytes(shape, pool);
    forget_statistics(made);
    if (shape->kinds) {
        made->heads = made->count + entries;
        memcpy(made->heads, shape->kinds, (size_t)lanes);
        made->shape.kinds = made->heads;
    }
    divide_layers(made, pool, shape->capacity);
    for (int64_t i = 0; i < lanes; i++) {
        made->lane[i].begin = i * entries / lanes;
        made->lane[i].room = (i + 1) * entries / lanes - made->lane[i].begin;
    }
    *ragged = made;
    return LINNET_OK;
}

linnet_status ln_ragged_open(linnet_context *context, const ln_ragged_shape *shape, ln_ragged **ragged) {
    ln_pool_shape pool;
    *ragged = NULL;
    if (!fits(shape, &pool))
        return ln_fail(context, LINNET_ERROR_MEMORY, "%llu bytes are too little for keys and values under this policy",
                       (unsigned long long)shape->bytes);
    linnet_status status = make(context, shape, &pool, ragged);
    if (status == LINNET_OK) status = ln_pool_open(context, &pool, &(*ragged)->pool);
    ln_tier_shape tier;
    if (status == LINNET_OK && ln_ragged_tier_shape(shape, &pool, &tier)) {
        tier.policy = &(*ragged)->policy;
        tier.pool = ln_pool_shape_of((*ragged)->pool);
        status = ln_tier_open(context, &tier, (*ragged)->pool, &(*ragged)->tier);
        if (status != LINNET_OK) ln_pool_leave((*ragged)->pool);
    }
    if (status != LINNET_OK) {
        ln_release(context, *ragged);
        *ragged = NULL;
    }
    return status;
}

void ln_ragged_close(ln_ragged *ragged) {
    if (!ragged) return;
    ln_ragged_rewind(ragged, 0);
    ln_tier_close(ragged->tier);
    ln_pool_leave(ragged->pool);
    ln_release(ragged->context, ragged);
}

/* All but the pool and the tier. */
static void copy_tables(const ln_ragged *ragged, ln_ragged *made) {
    made->position = ragged->position;
    made->limit = ragged->limit;
    made->far_used = ragged->far_used;
    memcpy(made->share, ragged->share, (size_t)ragged->shape.layers * sizeof *made->share);
    memcpy(made->distance, ragged->distance, (size_t)ragged->lanes * sizeof *made->distance);
    for (int64_t l = 0; l < ragged->shape.layers; l++) {
        const double *distance = made->statistics[l].distance;
        made->statistics[l] = ragged->statistics[l];
        made->statistics[l].distance = distance;
    }
    memcpy(made->state, ragged->state, (size_t)ragged->lanes * ragged->state_bytes);
    if (made->order) memcpy(made->order, ragged->order, ln_ragged_order_bytes(&ragged->shape));
    memcpy(made->lane, ragged->lane, (size_t)ragged->lanes * sizeof *made->lane);
    memcpy(made->page, ragged->page, (size_t)ragged->entries * sizeof *made->page);
    memcpy(made->slot, ragged->slot, (size_t)ragged->entries * sizeof *made->slot);
    memcpy(made->kind, ragged->kind, (size_t)ragged->entries);
    memcpy(made->count, ragged->count, (size_t)ragged->entries);
}

linnet_status ln_ragged_fork(ln_ragged *ragged, ln_ragged **fork) {
    *fork = NULL;
    ln_pool_shape pool;
    if (!fits(&ragged->shape, &pool)) return ln_fail(ragged->context, LINNET_ERROR_ARGUMENT, "no memory to fork");
    ln_ragged *made = NULL;
    linnet_status status = make(ragged->context, &ragged->shape, &pool, &made);
    if (status == LINNET_OK) status = ln_pool_join(ragged->pool);
    if (status != LINNET_OK) {
        ln_release(ragged->context, made);
        return status;
    }
    made->pool = ragged->pool;
    if (ragged->tier) {
        ln_tier_shape tier = ragged->tier->shape;
        tier.policy = &made->policy;
        status = ln_tier_fork(ragged->tier, &tier, &made->tier);
        if (status != LINNET_OK) {
            ln_pool_leave(made->pool);
            ln_release(ragged->context, made);
            return status;
        }
    }
    copy_tables(ragged, made);
    for (int64_t i = 0; i < made->lanes; i++)
        for (int64_t p = 0; p < ln_lane_pages(&made->lane[i]); p++)
            ln_pool_share(made->pool, made->page[made->lane[i].begin + p]);
    *fork = made;
    return LINNET_OK;
}

linnet_status ln_ragged_fork_elsewhere(ln_ragged *ragged, const ln_ragged_elsewhere *there, ln_ragged **fork) {
    ln_ragged_shape shape = ragged->shape;
    ln_pool_shape pool;
    *fork = NULL;
    shape.elsewhere = there;
    if (!fits(&shape, &pool)) return ln_fail(ragged->context, LINNET_ERROR_ARGUMENT, "no memory to fork");
    linnet_status status = make(ragged->context, &shape, &pool, fork);
    if (status == LINNET_OK) status = ln_pool_clone(ragged->pool, &(*fork)->pool);
    if (status == LINNET_OK) {
        copy_tables(ragged, *fork);
        return LINNET_OK;
    }
    ln_release(ragged->context, *fork);
    *fork = NULL;
    return status;
}

/* ---- tables ---- */

static void move_entries(ln_ragged *ragged, int64_t to, int64_t from, int64_t count) {
    memmove(ragged->page + to, ragged->page + from, (size_t)count * sizeof *ragged->page);
    memmove(ragged->slot + to, ragged->slot + from, (size_t)count * sizeof *ragged->slot);
    memmove(ragged->kind + to, ragged->kind + from, (size_t)count);
    memmove(ragged->count + to, ragged->count + from, (size_t)count);
}

/* All lanes packed to the front, then apart again: those of the layer with room for `more` pages, and all with an even
 * part of what is left. */
static void spread(ln_ragged *ragged, int64_t layer, int64_t more) {
    const int64_t heads = ragged->shape.key_value_heads, first = layer * heads;
    int64_t at = 0, left;
    for (int64_t i = 0; i < ragged->lanes; i++) {
        ln_lane *lane = &ragged->lane[i];
        move_entries(ragged, at, lane->begin, ln_lane_pages(lane));
        lane->begin = at;
        at += ln_lane_pages(lane);
    }
    left = (ragged->entries - at - heads * more) / ragged->lanes;
    int64_t end = ragged->entries;
    for (int64_t i = ragged->lanes - 1; i >= 0; i--) {
        ln_lane *lane = &ragged->lane[i];
        const bool here = i >= first && i < first + heads;
        lane->room = ln_lane_pages(lane) + left + (here ? more : 0);
        end -= lane->room;
        move_entries(ragged, end, lane->begin, ln_lane_pages(lane));
        lane->begin = end;
    }
}

void ln_ragged_make_room(ln_ragged *ragged, int64_t layer, int64_t more) {
    for (int64_t h = 0; h < ragged->shape.key_value_heads; h++) {
        const ln_lane *lane = ln_lane_of(ragged, layer, h);
        if (ln_lane_pages(lane) + more <= lane->room) continue;
        spread(ragged, layer, more);
        return;
    }
}

/* Where the lane's pages are now. */
static void refresh(ln_ragged *ragged, ln_lane *lane) {
    const uint64_t version = ln_pool_version(ragged->pool) + 1;
    if (lane->version == version) return;
    for (int64_t i = lane->begin; i < lane->begin + ln_lane_pages(lane); i++)
        ragged->slot[i] = ln_pool_data(ragged->pool, ragged->page[i]);
    lane->version = version;
}

ln_page_view ln_ragged_view(ln_ragged *ragged, ln_lane *lane) {
    refresh(ragged, lane);
    return (ln_page_view){.layouts = ln_pool_layouts(ragged->pool),
                          .kinds = ragged->kind + lane->begin,
                          .layout_count = ln_pool_shape_of(ragged->pool)->kinds,
                          .key_value_heads = 1,
                          .slots = ragged->slot + lane->begin,
                          .slot_count = ln_lane_pages(lane),
                          .end = ln_lane_keys(ragged, lane)};
}

void ln_ragged_bias(const ln_ragged *ragged, const ln_lane *lane, float *bias) {
    for (int64_t p = 0; p < ln_lane_pages(lane); p++) {
        const float *weights = ln_pool_weights(ragged->pool, ragged->page[lane->begin + p]);
        for (int64_t i = 0; i < LN_PAGE_TOKENS; i++, bias++)
            *bias = fabsf(weights[i]) > 1 ? logf(fabsf(weights[i])) : 0;
    }
}

bool ln_ragged_own(ln_ragged *ragged, ln_page *page, ln_page *dropped, int64_t *drops) {
    if (!ln_pool_shared(ragged->pool, *page)) return true;
    const ln_page copy = ln_pool_copy(ragged->pool, *page);
    if (!copy) return false;
    dropped[(*drops)++] = *page;
    *page = copy;
    return true;
}

/* ---- new tokens ---- */

/* An entry after the lane's last. */
static void add_page(ln_ragged *ragged, ln_lane *lane) {
    const int64_t at = lane->begin + ln_lane_pages(lane);
    ragged->page[at] = ln_pool_take(ragged->pool, LN_NEAR);
    ragged->slot[at] = ln_pool_data(ragged->pool, ragged->page[at]);
    ragged->kind[at] = LN_NEAR;
    ragged->count[at] = 0;
    lane->pages[LN_NEAR]++;
}

static void own_entry(ln_ragged *ragged, int64_t entry) {
    const ln_page before = ragged->page[entry];
    if (!ln_pool_shared(ragged->pool, before)) return;
    const ln_page own = ln_pool_copy(ragged->pool, before);
    ln_pool_drop(ragged->pool, before); /* another has it: nothing moves */
    ragged->page[entry] = own;
    ragged->slot[entry] = ln_pool_data(ragged->pool, own);
}

typedef struct append_call {
    ln_ragged *ragged;
    int64_t layer, tokens, first; /* first: near tokens before them */
    const float *keys, *values;
    int64_t key_stride, value_stride;
} append_call;

/* One page of one head. */
static void append_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const append_call *call = argument;
    ln_ragged *ragged = call->ragged;
    const ln_ragged_shape *shape = &ragged->shape;
    const int64_t head = task % shape->key_value_heads,
                  page = call->first / LN_PAGE_TOKENS + task / shape->key_value_heads;
    const ln_lane *lane = ln_lane_of(ragged, call->layer, head);
    const int64_t entry = ln_lane_first(lane, LN_NEAR) + page;
    const int32_t *order = ln_lane_order(ragged, call->layer * shape->key_value_heads + head);
    const int64_t begin = ln_max_i64(call->first, page * LN_PAGE_TOKENS),
                  end = ln_min_i64(call->first + call->tokens, (page + 1) * LN_PAGE_TOKENS);
    unsigned char *to = ln_pool_data(ragged->pool, ragged->page[entry]);
    int32_t *positions = ln_pool_positions(ragged->pool, ragged->page[entry]);
    float *kept = ln_pool_kept(ragged->pool, ragged->page[entry]);
    const int64_t keeps = ln_pool_shape_of(ragged->pool)->kept;
    float key[LN_HEAD_MOST], value[LN_HEAD_MOST];
    for (int64_t i = begin; i < end; i++) {
        const int64_t t = i - call->first, place = i % LN_PAGE_TOKENS;
        if (positions) positions[place] = (int32_t)(ragged->position + t);
        if (kept) memset(kept + place * keeps, 0, (size_t)keeps * sizeof *kept);
        if (!call->keys) continue;
        memcpy(key, call->keys + t * call->key_stride + head * shape->key_size, (size_t)shape->key_size * sizeof *key);
        memcpy(value, call->values + t * call->value_stride + head * shape->value_size,
               (size_t)shape->value_size * sizeof *value);
        if (ragged->policy.rotate) {
            ln_hadamard(key, shape->key_size);
            ln_hadamard(value, shape->value_size);
        }
        if (order) ln_ragged_order_row(order, shape->key_size, key);
        ln_page_encode_token(&ln_pool_layouts(ragged->pool)[LN_NEAR], to, place, key, value);
    }
    ragged->count[entry] = (uint8_t)(end - page * LN_PAGE_TOKENS);
}

void ln_ragged_append(ln_ragged *ragged, ln_team *team, int64_t layer, int64_t tokens, const float *keys,
                      int64_t key_stride, const float *values, int64_t value_stride) {
    const int64_t heads = ragged->shape.key_value_heads;
    const int64_t first = ln_lane_of(ragged, layer, 0)->tokens[LN_NEAR];
    const int64_t from = first / LN_PAGE_TOKENS, to = ln_ceil_div(first + tokens, LN_PAGE_TOKENS);
    ln_ragged_make_room(ragged, layer, to - from);
    for (int64_t h = 0; h < heads; h++) {
        ln_lane *lane = ln_lane_of(ragged, layer, h);
        refresh(ragged, lane);
        if (first % LN_PAGE_TOKENS) own_entry(ragged, ln_lane_first(lane, LN_NEAR) + from);
        while (lane->pages[LN_NEAR] < to) add_page(ragged, lane);
        lane->tokens[LN_NEAR] += tokens;
    }
    append_call call = {ragged, layer, tokens, first, keys, values, key_stride, value_stride};
    if (keys)
        ln_parallel(team, (to - from) * heads, append_task, &call);
    else
        for (int64_t i = 0; i < (to - from) * heads; i++) append_task(&call, i, 0);
    ragged->appended = tokens;
}

void ln_ragged_begin(ln_ragged *ragged, ln_pass pass) {
    ragged->pass = pass;
}

void ln_ragged_commit(ln_ragged *ragged, int64_t tokens) {
    if (ragged->tier) ln_tier_quiet(ragged->tier);
    if (ragged->pass != LN_PASS_PROBE) ragged->position += tokens;
    ragged->pass = LN_PASS_PIECE;
    ragged->appended = 0;
    if (ragged->settled) ragged->limit = ragged->position;
    ragged->settled = false;
    if (ragged->policy.allocator && ragged->policy.allocator->layers && tokens)
        divide_layers(ragged, ln_pool_shape_of(ragged->pool), ragged->position);
}

int64_t ln_ragged_rewind_limit(const ln_ragged *ragged) {
    return ragged->limit;
}

static void drop_last_page(ln_ragged *ragged, ln_lane *lane, int kind) {
    ln_pool_drop(ragged->pool, ragged->page[lane->begin + ln_lane_pages(lane) - 1]);
    lane->pages[kind]--;
}

void ln_ragged_keep_near(ln_ragged *ragged, ln_lane *lane, int64_t tokens) {
    while (lane->pages[LN_NEAR] > ln_ceil_div(tokens, LN_PAGE_TOKENS)) drop_last_page(ragged, lane, LN_NEAR);
    lane->tokens[LN_NEAR] = tokens;
    if (tokens) ragged->count[lane->begin + ln_lane_pages(lane) - 1] = (uint8_t)((tokens - 1) % LN_PAGE_TOKENS + 1);
}

void ln_ragged_rewind(ln_ragged *ragged, int64_t position) {
    for (int64_t i = 0; i < ragged->lanes; i++) {
        ln_lane *lane = &ragged->lane[i];
        ln_ragged_keep_near(ragged, lane,
                            position ? ln_max_i64(0, lane->tokens[LN_NEAR] - (ragged->position - position)) : 0);
        if (position) continue;
        if (ragged->tier) ln_tier_cut(ragged->tier, i, 0);
        while (lane->pages[LN_LOW]) drop_last_page(ragged, lane, LN_LOW);
        while (lane->pages[LN_FAR]) drop_last_page(ragged, lane, LN_FAR);
        lane->tokens[LN_FAR] = lane->tokens[LN_LOW] = lane->given_up = 0;
    }
    ragged->position = position;
    ragged->appended = 0;
    if (position) return;
    ragged->limit = 0;
    ragged->settled = false;
    ragged->far_used = 0;
    memset(ragged->state, 0, (size_t)ragged->lanes * ragged->state_bytes);
    if (ragged->order) memset(ragged->order, 0, ln_ragged_order_bytes(&ragged->shape));
    forget_statistics(ragged);
    divide_layers(ragged, ln_pool_shape_of(ragged->pool), ragged->shape.capacity);
}

const void *ln_ragged_state(const ln_ragged *ragged, int64_t layer, int64_t head) {
    const uint64_t lane = (uint64_t)(layer * ragged->shape.key_value_heads + head);
    return ragged->state_bytes ? ragged->state + lane * ragged->state_bytes : NULL;
}

ln_ragged_usage ln_ragged_measure(const ln_ragged *ragged) {
    ln_ragged_usage usage = {0};
    const ln_pool_shape *pool = ln_pool_shape_of(ragged->pool);
    const uint64_t tables =
        (uint64_t)ln_pool_members(ragged->pool) * (table_bytes(&ragged->shape, pool) + ln_pool_bytes(pool) -
                                                   ln_pool_capacity(pool) + tier_bytes(&ragged->shape, pool));
    if (ragged->tier && ragged->tier->file) usage.file = ln_store_size(ragged->tier->store);
    usage.bytes = ln_pool_used(ragged->pool, &usage.peak) + tables;
    usage.peak += tables;
    for (int64_t i = 0; i < ragged->lanes; i++) {
        for (int k = 0; k < LN_LANE_KINDS; k++) usage.kept += ragged->lane[i].tokens[k];
        usage.evicted += ragged->lane[i].given_up;
        if (ragged->tier) usage.kept += ragged->tier->lane[i].tokens;
    }
    return usage;
}

int64_t ln_ragged_room(const ln_ragged *ragged) {
    const uint64_t page = ln_pool_page_bytes(ln_pool_shape_of(ragged->pool), LN_FAR) * (uint64_t)ragged->lanes;
    const int64_t far = (int64_t)(ragged->allowance / page) * LN_PAGE_TOKENS;
    return far + ln_sink_pages(&ragged->policy) * LN_PAGE_TOKENS + ragged->policy.recent;
}

void ln_ragged_importance(const ln_ragged *ragged, float *of) {
    const int64_t keeps = ln_pool_shape_of(ragged->pool)->kept;
    for (int64_t i = 0; keeps && i < ragged->lanes; i++) {
        const ln_lane *lane = &ragged->lane[i];
        for (int64_t e = lane->begin; e < lane->begin + ln_lane_pages(lane); e++) {
            const int32_t *positions = ln_pool_positions(ragged->pool, ragged->page[e]);
            const float *kept = ln_pool_kept(ragged->pool, ragged->page[e]);
            for (int64_t t = 0; t < ragged->count[e]; t++) of[positions[t]] += kept[t * keeps];
        }
    }
}
