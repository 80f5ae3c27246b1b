/* Owns: attention over the far pages that a step chose, or over all of them, wherever they lie.
 *
 * Few queries read the pages that the selector ranks best, many queries all of them. What is read is attended as one
 * sequence [far pages in their order][near] where all of it is in RAM or finds room there. Else it passes through a
 * staging buffer in runs, the next one read while one is attended, and what the runs give is merged by its log-sum-exp.
 *
 * Invariant: the order of pages and the ends of runs depend on how many pages there are and what is selected, not on
 * what happens to be in RAM: the bits of the outcome do not either. */
#include <stdlib.h>
#include <string.h>

#include "kernel/page.h"
#include "linnet/attention.h"
#include "memory/ragged_inside.h"
#include "memory/tier.h"
#include "mixer/carve.h"

enum { FEW_TOKENS = 8 };

typedef struct lane_list {
    int32_t *pages; /* far pages to read, ascending */
    int64_t count;
    const unsigned char **slots; /* of a run, then near ones */
    uint8_t *kinds, *counts;
    float *output, *log_sum_exp; /* merged so far: [tokens][group][value_size], [tokens][group] */
    float *more, *more_log_sum_exp;
} lane_list;

typedef struct chooser {
    ln_ragged *ragged;
    const ln_ragged_call *call;
    int64_t layer;
    lane_list *lists;
    unsigned char *workers;
    uint64_t worker_bytes;
    ln_attention_sequence *sequences;
    const ln_attention *attention;
    void *rest;
} chooser;

/* ---- workspace ---- */

static int64_t near_most(const ln_ragged_shape *shape) {
    return ln_sink_pages(shape->policy) + ln_ceil_div(shape->policy->recent + shape->piece, LN_PAGE_TOKENS) + 4;
}

/* capacity: far pages of a lane. Without a base it only counts. */
static void carve(ln_carver *from, const ln_ragged_shape *shape, const ln_tier *tier, int64_t tokens, chooser *c) {
    const int64_t heads = shape->key_value_heads, group = shape->heads / heads, capacity = tier->shape.capacity;
    const uint64_t pages = (uint64_t)(capacity + near_most(shape)), rows = tier->file ? (uint64_t)(tokens * group) : 0;
    lane_list counted;
    c->lists = ln_carve(from, (uint64_t)heads, sizeof *c->lists);
    for (int64_t h = 0; h < heads; h++) {
        lane_list *list = from->base ? &c->lists[h] : &counted;
        list->pages = ln_carve(from, (uint64_t)capacity, sizeof *list->pages);
        list->slots = ln_carve(from, pages, sizeof *list->slots);
        list->kinds = ln_carve(from, pages, 1);
        list->counts = ln_carve(from, pages, 1);
        list->output = ln_carve(from, rows * (uint64_t)shape->value_size, sizeof(float));
        list->more = ln_carve(from, rows * (uint64_t)shape->value_size, sizeof(float));
        list->log_sum_exp = ln_carve(from, rows, sizeof(float));
        list->more_log_sum_exp = ln_carve(from, rows, sizeof(float));
    }
    c->workers = ln_carve(from, 0, 1);
    c->worker_bytes = 0;
    if (!ln_tier_selects(tier)) return;
    ln_carver worker = {0};
    ln_carve(&worker, (uint64_t)capacity, sizeof(float) + sizeof(int32_t));
    ln_carve(&worker, (uint64_t)ln_summary_workspace(&tier->summary, capacity), sizeof(float));
    ln_carve(&worker, (uint64_t)(FEW_TOKENS * group), (uint64_t)shape->key_size * sizeof(float) + sizeof(float *));
    c->worker_bytes = worker.used + 4 * 64;
}

uint64_t ln_ragged_tier_workspace(const ln_ragged_shape *shape, const ln_tier_shape *tier_shape, int threads) {
    ln_carver parts = {0};
    ln_tier tier = {0};
    chooser c = {0};
    ln_tier_describe(tier_shape, &tier);
    carve(&parts, shape, &tier, shape->piece, &c);
    return parts.used + (uint64_t)threads * c.worker_bytes;
}

/* ---- choosing ---- */

static int compare(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Queries as the summaries have keys: not rotated by Hadamard. */
static void take_queries(const chooser *c, int64_t head, const float **queries, float *copies) {
    const ln_ragged_shape *shape = &c->ragged->shape;
    const int64_t group = shape->heads / shape->key_value_heads;
    for (int64_t t = 0; t < c->call->tokens; t++) {
        for (int64_t g = 0; g < group; g++) {
            const float *query =
                c->call->query + t * c->call->query_stride + (head * group + g) * c->call->query_head_stride;
            float *copy = copies + (t * group + g) * shape->key_size;
            queries[t * group + g] = copy;
            memcpy(copy, query, (size_t)shape->key_size * sizeof *copy);
            if (c->ragged->policy.rotate) ln_hadamard(copy, shape->key_size);
        }
    }
}

static void select_task(void *argument, int64_t head, int worker) {
    const chooser *c = argument;
    ln_tier *tier = c->ragged->tier;
    const ln_ragged_shape *shape = &c->ragged->shape;
    const int64_t number = c->layer * shape->key_value_heads + head, capacity = tier->shape.capacity;
    const int64_t rows = c->call->tokens * (shape->heads / shape->key_value_heads);
    ln_far_lane *lane = &tier->lane[number];
    int32_t *pick = tier->pick + number * tier->picks;
    lane_list *list = &c->lists[head];
    if (lane->front > 0 && lane->age > 0) {
        lane->age--;
    } else {
        ln_carver parts = {.base = c->workers + (uint64_t)worker * c->worker_bytes};
        float *score = ln_carve(&parts, (uint64_t)capacity, sizeof *score);
        int32_t *chosen = ln_carve(&parts, (uint64_t)capacity, sizeof *chosen);
        float *workspace =
            ln_carve(&parts, (uint64_t)ln_summary_workspace(&tier->summary, capacity), sizeof *workspace);
        float *copies = ln_carve(&parts, (uint64_t)(rows * shape->key_size), sizeof *copies);
        const float **queries = ln_carve(&parts, (uint64_t)rows, sizeof *queries);
        int64_t front;
        take_queries(c, head, queries, copies);
        ln_summary_score(&tier->summary, c->call->kernels, tier->summaries + (uint64_t)number * tier->summary_bytes,
                         lane->pages, queries, rows, c->attention->scale, score, workspace);
        const int64_t n = ln_summary_choose(&tier->summary, score, lane->pages, tier->read,
                                            tier->picks - tier->summary.unit, chosen, &front);
        lane->picked = (int32_t)ln_min_i64(n, tier->picks);
        lane->front = (int32_t)front;
        lane->age = (int32_t)(tier->reuse - 1);
        memcpy(pick, chosen, (size_t)lane->picked * sizeof *pick);
    }
    memcpy(list->pages, pick, (size_t)lane->front * sizeof *pick);
    list->count = lane->front;
    qsort(list->pages, (size_t)list->count, sizeof *list->pages, compare);
}

/* Whether the step reads some pages only. */
static bool selects(const ln_ragged *ragged, int64_t layer, int64_t tokens) {
    const ln_tier *tier = ragged->tier;
    const int64_t pages = tier->lane[layer * ragged->shape.key_value_heads].pages;
    return ln_tier_selects(tier) && tokens <= FEW_TOKENS && layer >= tier->dense && pages > tier->read;
}

static void choose(chooser *c, bool some) {
    const int64_t heads = c->ragged->shape.key_value_heads;
    const ln_tier *tier = c->ragged->tier;
    if (some) {
        ln_parallel(c->call->team, heads, select_task, c);
        return;
    }
    for (int64_t h = 0; h < heads; h++) {
        lane_list *list = &c->lists[h];
        list->count = tier->lane[c->layer * heads + h].pages;
        for (int64_t i = 0; i < list->count; i++) list->pages[i] = (int32_t)i;
    }
}

/* ---- attention ---- */

/* Far pages from .. to - 1 of a head's list as attention reads them, those that are not in RAM from the staging buffer;
 * then, at the end, the near pages. */
static void lay_out(const chooser *c, int64_t head, int64_t from, int64_t to, const unsigned char *staged, bool last) {
    ln_ragged *ragged = c->ragged;
    const ln_tier *tier = ragged->tier;
    const int64_t number = c->layer * ragged->shape.key_value_heads + head, capacity = tier->shape.capacity;
    const lane_list *list = &c->lists[head];
    ln_lane *lane = &ragged->lane[number];
    ln_attention_sequence *sequence = &c->sequences[head];
    int64_t n = 0, keys = 0;
    for (int64_t i = from; i < to; i++, n++) {
        const ln_far_page *page = ln_far_page_of(tier, number, list->pages[i]);
        list->slots[n] = page->page ? ln_pool_data(ragged->pool, page->page) : staged;
        if (!page->page) staged += tier->shape.pool->layout[tier->shape.kind].bytes;
        list->kinds[n] = (uint8_t)tier->shape.kind;
        list->counts[n] = tier->count[number * capacity + list->pages[i]];
        keys = n * LN_PAGE_TOKENS + list->counts[n];
    }
    if (last) {
        const ln_page_view near = ln_ragged_view(ragged, lane);
        const int64_t pages = ln_lane_pages(lane);
        memcpy(list->slots + n, near.slots, (size_t)pages * sizeof *list->slots);
        memcpy(list->kinds + n, near.kinds, (size_t)pages);
        memcpy(list->counts + n, ragged->count + lane->begin, (size_t)pages);
        keys = n * LN_PAGE_TOKENS + ln_lane_keys(ragged, lane);
        n += pages;
    }
    sequence->view = (ln_page_view){.layouts = ln_pool_layouts(ragged->pool),
                                    .kinds = list->kinds,
                                    .layout_count = tier->shape.pool->kinds,
                                    .key_value_heads = 1,
                                    .slots = list->slots,
                                    .slot_count = n,
                                    .end = keys};
    sequence->counts = list->counts;
    sequence->keys = keys;
    sequence->position = last ? keys - c->call->tokens : keys;
}

static void run(const chooser *c) {
    ln_attention_run(c->call->kernels, c->call->team, c->attention, c->sequences, c->ragged->shape.key_value_heads,
                     c->rest);
}

/* All that is read is in RAM, or finds room there. */
static linnet_status attend_at_once(chooser *c, bool some) {
    ln_ragged *ragged = c->ragged;
    ln_tier *tier = ragged->tier;
    const int64_t heads = ragged->shape.key_value_heads;
    int64_t fetches = 0;
    if (tier->file) {
        tier->clock++;
        for (int64_t h = 0; h < heads; h++)
            if (!ln_tier_place(tier, c->layer * heads + h, c->lists[h].pages, c->lists[h].count, tier->fetch, &fetches))
                return ln_fail(ragged->context, LINNET_ERROR_MEMORY,
                               "the pages of this policy do not suffice: a defect");
        ln_tier_begin(tier, tier->fetch, fetches);
        const linnet_status status = ln_tier_arrive(tier, tier->fetch, fetches);
        if (status != LINNET_OK) return status;
        if (some && c->layer + 1 < ragged->shape.layers && c->layer + 1 >= tier->dense)
            ln_tier_look_ahead(tier, c->layer + 1);
    }
    for (int64_t h = 0; h < heads; h++) lay_out(c, h, 0, c->lists[h].count, NULL, true);
    run(c);
    return LINNET_OK;
}

/* Begins to read what a run needs that is not in RAM. Returns how many pages that are. */
static int64_t stage(const chooser *c, int64_t from, int half) {
    ln_tier *tier = c->ragged->tier;
    const int64_t heads = c->ragged->shape.key_value_heads;
    const uint64_t bytes = tier->shape.pool->layout[tier->shape.kind].bytes;
    ln_fetch *fetches = tier->fetch + half * heads * tier->fetches;
    int64_t n = 0;
    for (int64_t h = 0; h < heads; h++) {
        const lane_list *list = &c->lists[h];
        unsigned char *to = tier->staging + (uint64_t)((half * heads + h) * tier->run) * bytes;
        for (int64_t i = from; i < ln_min_i64(list->count, from + tier->run); i++) {
            const ln_far_page *page = ln_far_page_of(tier, c->layer * heads + h, list->pages[i]);
            if (page->page) continue;
            fetches[n++] = (ln_fetch){.read.to = to, .slot = page->slot};
            to += bytes;
        }
    }
    ln_store_begin(tier->store, fetches, n);
    return n;
}

static void merge_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const chooser *c = argument;
    const ln_ragged_shape *shape = &c->ragged->shape;
    const int64_t heads = shape->key_value_heads, group = shape->heads / heads, token = task / heads;
    const lane_list *list = &c->lists[task % heads];
    const int64_t row = token * group;
    linnet_attention_merge(c->ragged->context, 1, group, shape->value_size, list->output + row * shape->value_size,
                           list->log_sum_exp + row, list->more + row * shape->value_size, list->more_log_sum_exp + row);
}

static void hand_out_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const chooser *c = argument;
    const ln_ragged_shape *shape = &c->ragged->shape;
    const int64_t heads = shape->key_value_heads, group = shape->heads / heads, token = task / heads,
                  head = task % heads;
    for (int64_t g = 0; g < group; g++)
        memcpy(c->call->output + token * c->call->output_stride + (head * group + g) * c->call->output_head_stride,
               c->lists[head].output + (token * group + g) * shape->value_size,
               (size_t)shape->value_size * sizeof(float));
}

static linnet_status attend_in_runs(chooser *c) {
    ln_ragged *ragged = c->ragged;
    ln_tier *tier = ragged->tier;
    const ln_ragged_shape *shape = &ragged->shape;
    const int64_t heads = shape->key_value_heads, group = shape->heads / heads;
    const uint64_t bytes = tier->shape.pool->layout[tier->shape.kind].bytes;
    int64_t most = 0, fetches[2] = {0};
    for (int64_t h = 0; h < heads; h++) most = ln_max_i64(most, c->lists[h].count);
    fetches[0] = stage(c, 0, 0);
    linnet_status status = LINNET_OK;
    for (int64_t from = 0, half = 0; from < most; from += tier->run, half ^= 1) {
        const linnet_status read =
            ln_store_finish(tier->store, tier->fetch + half * heads * tier->fetches, fetches[half]);
        if (status == LINNET_OK) status = read;
        if (status != LINNET_OK) break;
        const bool last = from + tier->run >= most;
        if (!last) fetches[half ^ 1] = stage(c, from + tier->run, (int)(half ^ 1));
        for (int64_t h = 0; h < heads; h++) {
            const lane_list *list = &c->lists[h];
            ln_attention_sequence *sequence = &c->sequences[h];
            const int64_t count = list->count;
            lay_out(c, h, ln_min_i64(count, from), ln_min_i64(count, from + tier->run),
                    tier->staging + (uint64_t)((half * heads + h) * tier->run) * bytes, last);
            sequence->output = from ? list->more : list->output;
            sequence->log_sum_exp = from ? list->more_log_sum_exp : list->log_sum_exp;
            sequence->output_stride = group * shape->value_size;
            sequence->output_head_stride = shape->value_size;
        }
        run(c);
        if (from) ln_parallel(c->call->team, c->call->tokens * heads, merge_task, c);
    }
    if (status == LINNET_OK) ln_parallel(c->call->team, c->call->tokens * heads, hand_out_task, c);
    return status;
}

linnet_status ln_ragged_tier_attend(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call,
                                    const ln_attention *attention, ln_attention_sequence *sequences, void *workspace) {
    ln_tier *tier = ragged->tier;
    chooser c = {.ragged = ragged, .call = call, .layer = layer, .sequences = sequences, .attention = attention};
    ln_carver parts = {.base = workspace};
    carve(&parts, &ragged->shape, tier, call->tokens, &c);
    ln_carve(&parts, (uint64_t)ln_team_size(call->team), c.worker_bytes);
    c.rest = ln_carve(&parts, 0, 1);
    ln_tier_quiet(tier);
    const bool some = selects(ragged, layer, call->tokens);
    choose(&c, some);
    int64_t most = 0;
    for (int64_t h = 0; h < ragged->shape.key_value_heads; h++) most = ln_max_i64(most, c.lists[h].count);
    return tier->file && most > tier->shape.resident ? attend_in_runs(&c) : attend_at_once(&c, some);
}

/* ---- new pages ---- */

typedef struct adder {
    ln_ragged *ragged;
    int64_t layer;
} adder;

static void add_task(void *argument, int64_t head, int worker) {
    (void)worker;
    const adder *a = argument;
    ln_ragged *ragged = a->ragged;
    const int64_t size = ragged->shape.key_size, number = a->layer * ragged->shape.key_value_heads + head;
    ln_lane *lane = &ragged->lane[number];
    float keys[LN_PAGE_TOKENS * LN_HEAD_MOST];
    for (int64_t p = 0; p < lane->pages[LN_FAR]; p++) {
        const ln_page page = ragged->page[lane->begin + p];
        for (int64_t t = 0; ln_tier_selects(ragged->tier) && t < LN_PAGE_TOKENS; t++) {
            ln_page_decode_token(&ln_pool_layouts(ragged->pool)[LN_FAR], ln_pool_data(ragged->pool, page), t,
                                 keys + t * size, NULL);
            if (ragged->policy.rotate) ln_hadamard(keys + t * size, size);
        }
        ln_tier_add(ragged->tier, number, page, keys);
    }
    lane->begin += lane->pages[LN_FAR];
    lane->room -= lane->pages[LN_FAR];
    lane->pages[LN_FAR] = lane->tokens[LN_FAR] = 0;
    lane->version = 0;
}

linnet_status ln_ragged_tier_take(ln_ragged *ragged, ln_team *team, int64_t layer) {
    adder a = {ragged, layer};
    ln_parallel(team, ragged->shape.key_value_heads, add_task, &a);
    ragged->far_used = 0;
    return ln_tier_flush(ragged->tier, layer);
}

void ln_ragged_undo(ln_ragged *ragged) {
    const int64_t sinks = ln_sink_pages(&ragged->policy) * LN_PAGE_TOKENS, position = ragged->position;
    if (position == 0) {
        ln_ragged_rewind(ragged, 0);
        return;
    }
    for (int64_t i = 0; i < ragged->lanes; i++) {
        ln_lane *lane = &ragged->lane[i];
        const int64_t far = ln_min_i64(ragged->tier->lane[i].tokens, ln_max_i64(0, position - sinks));
        if (far < ragged->tier->lane[i].tokens) ln_tier_cut(ragged->tier, i, far);
        ln_ragged_keep_near(ragged, lane, position - far);
    }
    ragged->appended = 0;
    if (ragged->settled) ragged->limit = position;
    ragged->settled = false;
}
