/* Owns: which far pages are in RAM and which in the file.
 *
 * Every page of a tier with a file is written once, when it is added; so a page leaves RAM without being written, and
 * what cannot be written stays.
 *
 * Invariant: between calls a page is in RAM or in the file or in both, and nothing is in flight; a lane has at most
 * `resident` pages in RAM, but for those that could not be written. */
#include "memory/tier.h"

#include <string.h>

#include "mixer/carve.h"

enum { RUN_LEAST = 4, RUN_MOST = 64, RUN_PART = 8 /* of resident pages */, AHEAD_MOST = 8, READ_MOST = 32 };

/* ---- tables ---- */

static bool with_file(const ln_tier_shape *shape) {
    return shape->policy->file && shape->resident < shape->capacity;
}

/* What the policy says, else READ_MOST, and of a lane with a file what it has room for, with an eighth for others that
 * may soon be wanted. */
static int64_t pages_to_read(const ln_policy *policy, const ln_tier *tier) {
    const int64_t room = tier->file ? tier->shape.resident - tier->shape.resident / 8 : READ_MOST;
    const int64_t fallback = ln_max_i64(1, ln_min_i64(READ_MOST, room)) * LN_PAGE_TOKENS;
    const double tokens = ln_policy_parameter_of(policy, "read", (double)fallback);
    return ln_min_i64(tier->shape.capacity, ln_max_i64(1, ln_ceil_div((int64_t)tokens, LN_PAGE_TOKENS)));
}

void ln_tier_describe(const ln_tier_shape *shape, ln_tier *tier) {
    const ln_policy *policy = shape->policy;
    tier->shape = *shape;
    tier->file = with_file(shape);
    if (tier->file)
        tier->run = ln_max_i64(RUN_LEAST, ln_min_i64(RUN_MOST, shape->resident / RUN_PART));
    else
        tier->shape.resident = shape->capacity;
    if (!policy->selector || !ln_summary_of(policy, shape->key_size, &tier->summary)) {
        tier->summary.selector = NULL;
        tier->read = shape->capacity;
        tier->fetches = tier->run;
        return;
    }
    tier->summary_bytes = ln_summary_bytes(&tier->summary, shape->capacity);
    tier->read = pages_to_read(policy, tier);
    tier->dense = (int64_t)ln_policy_parameter_of(policy, "dense", 0);
    tier->reuse = (int64_t)ln_policy_parameter_of(policy, "reuse", policy->selector->reuse);
    tier->picks = tier->read + (tier->file ? ln_min_i64(AHEAD_MOST, shape->resident - tier->read) : 0);
    tier->picks = ln_min_i64(shape->capacity, ln_max_i64(tier->read, tier->picks) + tier->summary.unit);
    tier->fetches = tier->file ? ln_max_i64(tier->run, tier->picks) : 0;
}

static void carve(ln_tier *tier, ln_carver *from) {
    const ln_tier_shape *shape = &tier->shape;
    const uint64_t lanes = (uint64_t)shape->lanes, pages = lanes * (uint64_t)shape->capacity;
    const uint64_t heads = (uint64_t)shape->heads, file = tier->file;
    tier->lane = ln_carve(from, lanes, sizeof *tier->lane);
    tier->page = ln_carve(from, pages, sizeof *tier->page);
    tier->count = ln_carve(from, pages, 1);
    tier->resident = ln_carve(from, file * lanes * (uint64_t)tier->shape.resident, sizeof *tier->resident);
    tier->pick = ln_carve(from, lanes * (uint64_t)tier->picks, sizeof *tier->pick);
    tier->summaries = ln_carve(from, lanes, tier->summary_bytes);
    tier->staging = ln_carve(from, 2 * heads * (uint64_t)tier->run, shape->pool->layout[shape->kind].bytes);
    tier->fetch = ln_carve(from, file * 2 * heads * (uint64_t)tier->fetches, sizeof *tier->fetch);
    tier->ahead = ln_carve(from, file * heads * (uint64_t)tier->picks, sizeof *tier->ahead);
}

uint64_t ln_tier_bytes(const ln_tier_shape *shape) {
    ln_tier tier = {0};
    ln_carver parts = {.used = ln_round_up(sizeof tier, 64)};
    ln_tier_describe(shape, &tier);
    carve(&tier, &parts);
    return ln_allocated_bytes(parts.used) + (tier.file ? ln_store_bytes(shape->lanes * shape->capacity) : 0);
}

static ln_tier *make(linnet_context *context, const ln_tier_shape *shape, ln_pool *pool) {
    ln_tier tier = {.context = context, .pool = pool};
    ln_carver parts = {.used = ln_round_up(sizeof tier, 64)};
    ln_tier_describe(shape, &tier);
    carve(&tier, &parts);
    parts.base = ln_allocate_zero(context, 1, parts.used, "tables of far pages");
    if (!parts.base) return NULL;
    parts.used = ln_round_up(sizeof tier, 64);
    carve(&tier, &parts);
    ln_tier *made = (ln_tier *)(void *)parts.base;
    *made = tier;
    made->shape.folder = NULL;
    return made;
}

linnet_status ln_tier_open(linnet_context *context, const ln_tier_shape *shape, ln_pool *pool, ln_tier **tier) {
    *tier = make(context, shape, pool);
    if (!*tier) return LINNET_ERROR_MEMORY;
    if (!(*tier)->file) return LINNET_OK;
    const linnet_status status = ln_store_open(context, shape->folder, (uint32_t)shape->pool->layout[shape->kind].bytes,
                                               shape->lanes * shape->capacity, &(*tier)->store);
    if (status == LINNET_OK) return LINNET_OK;
    ln_release(context, *tier);
    *tier = NULL;
    return status;
}

void ln_tier_close(ln_tier *tier) {
    if (!tier) return;
    for (int64_t i = 0; i < tier->shape.lanes; i++) ln_tier_cut(tier, i, 0);
    ln_store_leave(tier->store);
    ln_release(tier->context, tier);
}

linnet_status ln_tier_fork(ln_tier *tier, const ln_tier_shape *shape, ln_tier **fork) {
    *fork = NULL;
    ln_tier_quiet(tier);
    ln_tier *made = make(tier->context, shape, tier->pool);
    if (!made) return LINNET_ERROR_MEMORY;
    const linnet_status status = tier->file ? ln_store_join(tier->store) : LINNET_OK;
    if (status != LINNET_OK) {
        ln_release(tier->context, made);
        return status;
    }
    const int64_t lanes = shape->lanes, capacity = shape->capacity;
    made->store = tier->store;
    made->clock = tier->clock;
    memcpy(made->lane, tier->lane, (size_t)lanes * sizeof *made->lane);
    memcpy(made->page, tier->page, (size_t)(lanes * capacity) * sizeof *made->page);
    memcpy(made->count, tier->count, (size_t)(lanes * capacity));
    if (tier->file)
        memcpy(made->resident, tier->resident, (size_t)(lanes * tier->shape.resident) * sizeof *made->resident);
    memcpy(made->pick, tier->pick, (size_t)(lanes * tier->picks) * sizeof *made->pick);
    memcpy(made->summaries, tier->summaries, (size_t)lanes * tier->summary_bytes);
    for (int64_t i = 0; i < lanes; i++) {
        for (int64_t n = 0; n < made->lane[i].pages; n++) {
            const ln_far_page *page = ln_far_page_of(made, i, n);
            if (page->page) ln_pool_share(made->pool, page->page);
            if (page->slot) ln_store_share(made->store, page->slot);
        }
    }
    *fork = made;
    return LINNET_OK;
}

/* ---- leaving RAM ---- */

/* The page at place `at` of the lane's list of those in RAM leaves them. */
static void forget(ln_tier *tier, int64_t lane, int32_t at) {
    int32_t *list = tier->resident + lane * tier->shape.resident;
    ln_far_page *page = ln_far_page_of(tier, lane, list[at]);
    ln_pool_drop(tier->pool, page->page);
    page->page = 0;
    list[at] = list[--tier->lane[lane].resident];
}

/* The place of the page that was not used for the longest time, of those that lie in the file and were used before
 * `clock`; -1: none. Ties: the older page. */
static int32_t oldest(const ln_tier *tier, int64_t lane, uint32_t clock) {
    const int32_t *list = tier->resident + lane * tier->shape.resident;
    int32_t best = -1;
    uint32_t most = 0;
    for (int32_t i = 0; i < tier->lane[lane].resident; i++) {
        const ln_far_page *page = ln_far_page_of(tier, lane, list[i]);
        const uint32_t age = clock - page->used;
        if (!page->slot || age == 0 || age < most || (age == most && list[i] > list[best])) continue;
        most = age;
        best = i;
    }
    return best;
}

static void remember(ln_tier *tier, int64_t lane, int32_t n) {
    tier->resident[lane * tier->shape.resident + tier->lane[lane].resident++] = n;
}

void ln_tier_cut(ln_tier *tier, int64_t lane, int64_t tokens) {
    ln_far_lane *of = &tier->lane[lane];
    ln_tier_quiet(tier);
    while (of->tokens > tokens) {
        const int64_t last = of->pages - 1;
        uint8_t *count = &tier->count[lane * tier->shape.capacity + last];
        if (of->tokens - *count < tokens) {
            *count = (uint8_t)(*count - (of->tokens - tokens));
            of->tokens = tokens;
            break;
        }
        ln_far_page *page = ln_far_page_of(tier, lane, last);
        if (page->page && page->slot) {
            int32_t at = 0;
            while (tier->resident[lane * tier->shape.resident + at] != last) at++;
            forget(tier, lane, at);
        } else if (page->page) {
            ln_pool_drop(tier->pool, page->page);
        }
        if (page->slot) ln_store_drop(tier->store, page->slot);
        *page = (ln_far_page){0};
        of->tokens -= *count;
        of->pages--;
    }
    of->front = of->picked = of->age = 0;
}

/* ---- new pages ---- */

linnet_status ln_tier_reserve(ln_tier *tier, int64_t pages) {
    return tier->file ? ln_store_reserve(tier->store, pages) : LINNET_OK;
}

void ln_tier_add(ln_tier *tier, int64_t lane, ln_page page, const float *keys) {
    ln_far_lane *of = &tier->lane[lane];
    const int64_t n = of->pages++;
    *ln_far_page_of(tier, lane, n) = (ln_far_page){.page = page, .used = tier->clock};
    tier->count[lane * tier->shape.capacity + n] = LN_PAGE_TOKENS;
    of->tokens += LN_PAGE_TOKENS;
    if (ln_tier_selects(tier))
        ln_summary_add(&tier->summary, tier->summaries + (uint64_t)lane * tier->summary_bytes, n, keys);
}

linnet_status ln_tier_flush(ln_tier *tier, int64_t layer) {
    linnet_status status = LINNET_OK;
    for (int64_t i = layer * tier->shape.heads; tier->file && i < (layer + 1) * tier->shape.heads; i++) {
        ln_far_lane *of = &tier->lane[i];
        int64_t first = of->pages;
        while (first > 0 && !ln_far_page_of(tier, i, first - 1)->slot) first--;
        for (; first < of->pages && status == LINNET_OK; first++) {
            ln_far_page *page = ln_far_page_of(tier, i, first);
            status = ln_store_write(tier->store, ln_pool_data(tier->pool, page->page), &page->slot);
            if (status != LINNET_OK) break;
            int32_t leaves = -1;
            if (of->resident == tier->shape.resident && (leaves = oldest(tier, i, tier->clock + 1)) >= 0)
                forget(tier, i, leaves);
            remember(tier, i, (int32_t)first);
        }
    }
    return status;
}

/* ---- reading ---- */

bool ln_tier_place(ln_tier *tier, int64_t lane, const int32_t *pages, int64_t count, ln_fetch *fetches, int64_t *n) {
    for (int64_t i = 0; i < count; i++) ln_far_page_of(tier, lane, pages[i])->used = tier->clock;
    for (int64_t i = 0; i < count; i++) {
        ln_far_page *page = ln_far_page_of(tier, lane, pages[i]);
        if (page->page) continue;
        if (tier->lane[lane].resident == tier->shape.resident) {
            const int32_t leaves = oldest(tier, lane, tier->clock);
            if (leaves < 0) return false;
            forget(tier, lane, leaves);
        }
        page->page = ln_pool_take(tier->pool, tier->shape.kind);
        if (!page->page) return false;
        remember(tier, lane, pages[i]);
        fetches[(*n)++] = (ln_fetch){.slot = page->slot, .lane = (int32_t)lane, .page = pages[i]};
    }
    return true;
}

linnet_status ln_tier_arrive(ln_tier *tier, ln_fetch *fetches, int64_t count) {
    const linnet_status status = ln_store_finish(tier->store, fetches, count);
    for (int64_t i = 0; i < count; i++) {
        if (fetches[i].good) continue;
        int32_t at = 0;
        while (tier->resident[fetches[i].lane * tier->shape.resident + at] != fetches[i].page) at++;
        forget(tier, fetches[i].lane, at);
    }
    return status;
}

void ln_tier_begin(ln_tier *tier, ln_fetch *fetches, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        fetches[i].read.to = ln_pool_data(tier->pool, ln_far_page_of(tier, fetches[i].lane, fetches[i].page)->page);
    ln_store_begin(tier->store, fetches, count);
}

void ln_tier_look_ahead(ln_tier *tier, int64_t layer) {
    tier->clock++;
    for (int64_t i = layer * tier->shape.heads; i < (layer + 1) * tier->shape.heads; i++)
        if (!ln_tier_place(tier, i, tier->pick + i * tier->picks, tier->lane[i].picked, tier->ahead, &tier->aheads))
            break;
    ln_tier_begin(tier, tier->ahead, tier->aheads);
}

void ln_tier_quiet(ln_tier *tier) {
    if (tier->aheads > 0) ln_tier_arrive(tier, tier->ahead, tier->aheads);
    tier->aheads = 0;
}
