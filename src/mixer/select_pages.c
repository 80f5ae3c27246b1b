/* Owns: page bounds (P053, LServe; linnet/approximate.h): sum_i max(q[i] low[i], q[i] high[i]) is
 * max(q, 0) . high + min(q, 0) . low, two products with panels of 32 pages. Heads that stream visit nothing besides
 * the sinks and the recent keys. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/select.h"

typedef struct bounds {
    float *high, *low; /* [key-value head][panel of 32 pages][key_size][32] */
} bounds;

typedef struct places {
    float *above, *below, *bound; /* max(q, 0), min(q, 0) and bounds of rows */
    float *score;                 /* of tiles, then of free tiles */
    int32_t *free_tiles, *heap, *chosen;
} places;

static int64_t panels_of(const linnet_approximate_plan *plan) {
    return ln_ceil_div(ln_ceil_div(plan->s.tokens, plan->s.page), LN_PANEL);
}

static void carve(ln_select_call *call, ln_carver *carver) {
    const uint64_t panels = (uint64_t)(call->s->key_value_heads * panels_of(call->plan)),
                   bytes = (uint64_t)call->s->key_size * LN_PANEL * sizeof(float);
    const bounds b = {ln_carve(carver, panels, bytes), ln_carve(carver, panels, bytes)};
    bounds *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = b;
    call->own = own;
}

static places place(const linnet_approximate_plan *plan, ln_carver *carver) {
    const uint64_t tiles = (uint64_t)plan->key_tiles,
                   floats = (uint64_t)ln_select_sampled_most(plan) * LN_SELECT_STRIDE;
    return (places){.above = ln_carve(carver, floats, sizeof(float)),
                    .below = ln_carve(carver, floats, sizeof(float)),
                    .bound = ln_carve(carver, floats, sizeof(float)),
                    .score = ln_carve(carver, tiles, sizeof(float)),
                    .free_tiles = ln_carve(carver, tiles, sizeof(int32_t)),
                    .heap = ln_carve(carver, tiles, sizeof(int32_t)),
                    .chosen = ln_carve(carver, tiles, sizeof(int32_t))};
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    ln_carver carver = {0};
    place(plan, &carver);
    return carver.used;
}

static void bound_panel(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const linnet_approximate_settings *s = call->s;
    const bounds *own = call->own;
    const int64_t panels = panels_of(call->plan), head = task / panels, size = s->key_size;
    float *high = own->high + task * size * LN_PANEL, *low = own->low + task * size * LN_PANEL;
    memset(high, 0, (size_t)(size * LN_PANEL) * sizeof *high);
    memset(low, 0, (size_t)(size * LN_PANEL) * sizeof *low);
    for (int64_t column = 0; column < LN_PANEL; column++) {
        const int64_t begin = (task % panels * LN_PANEL + column) * s->page;
        for (int64_t token = begin; token < ln_min_i64(begin + s->page, s->tokens); token++) {
            const float *key = ln_select_key(call, head, token);
            for (int64_t i = 0; i < size; i++) {
                float *h = high + i * LN_PANEL + column, *l = low + i * LN_PANEL + column;
                *h = token == begin ? key[i] : fmaxf(*h, key[i]);
                *l = token == begin ? key[i] : fminf(*l, key[i]);
            }
        }
    }
}

static void prepare(ln_select_call *call) {
    ln_parallel(call->team, call->s->key_value_heads * panels_of(call->plan), bound_panel, call);
}

/* Best bound of each tile's pages over the rows. */
static void score_tiles(ln_select_call *call, const ln_select_tile *tile, const places *p, int64_t rows) {
    const linnet_approximate_settings *s = call->s;
    const bounds *own = call->own;
    const int64_t pages = ln_ceil_div(ln_min_i64(tile->limit * s->key_tile, s->tokens), s->page),
                  per_tile = s->key_tile / s->page;
    for (int64_t j = 0; j < tile->limit; j++) p->score[j] = -INFINITY;
    for (int64_t first = 0; first < pages; first += LN_PANEL) {
        const int64_t at = (tile->shared * panels_of(call->plan) + first / LN_PANEL) * s->key_size * LN_PANEL;
        ln_select_product(call, own->high + at, s->key_size, p->above, rows, p->bound, false);
        ln_select_product(call, own->low + at, s->key_size, p->below, rows, p->bound, true);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; i < ln_min_i64(LN_PANEL, pages - first); i++) {
                float *score = &p->score[(first + i) / per_tile];
                *score = fmaxf(*score, p->bound[r * LN_SELECT_STRIDE + i]);
            }
        }
    }
    atomic_fetch_add(&call->scored, 2 * rows * pages);
}

static void mark_tiles(ln_select_call *call, const ln_select_tile *tile) {
    const linnet_approximate_settings *s = call->s;
    if (s->streaming_heads && s->streaming_heads[tile->head]) return;
    ln_carver carver = {.base = tile->scratch};
    const places p = place(call->plan, &carver);
    const int64_t count = ln_select_free(tile, p.free_tiles);
    const int64_t k = ln_min_i64(ln_ceil_div(s->budget, s->key_tile), count);
    if (k == 0) return;
    if (k < count) {
        const int64_t rows = ln_select_sampled_queries(call, tile, p.above);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = r * LN_SELECT_STRIDE; i < r * LN_SELECT_STRIDE + s->key_size; i++) {
                const float q = p.above[i];
                p.above[i] = fmaxf(q, 0);
                p.below[i] = fminf(q, 0);
            }
        }
        score_tiles(call, tile, &p, rows);
        for (int64_t i = 0; i < count; i++) p.score[i] = p.score[p.free_tiles[i]];
    }
    const int64_t chosen = k < count ? ln_select_top(p.score, count, k, p.heap, p.chosen) : 0;
    for (int64_t i = 0; i < chosen; i++) tile->marks[p.free_tiles[p.chosen[i]]] = 1;
    for (int64_t i = chosen; i < (k < count ? 0 : count); i++) tile->marks[p.free_tiles[i]] = 1;
}

static const char *check(linnet_approximate_settings *s) {
    return s->page < 1 || s->key_tile % s->page != 0 ? "page must divide key_tile" : NULL;
}

/* The settings' table of heads outlives the caller's. */
static linnet_status copy_heads(linnet_approximate_plan *plan) {
    if (!plan->s.streaming_heads) return LINNET_OK;
    for (int64_t h = 0; h < plan->s.heads && plan->s.group_choice; h++)
        if (!plan->s.streaming_heads[h] != !plan->s.streaming_heads[h / plan->group * plan->group])
            return ln_fail(
                plan->context, LINNET_ERROR_ARGUMENT,
                "approximate attention: streaming_heads differ in heads that share a key; make them alike or "
                "set group_choice to false");
    plan->own = ln_allocate(plan->context, (uint64_t)plan->s.heads, 1, "streaming heads");
    if (!plan->own) return LINNET_ERROR_MEMORY;
    memcpy(plan->own, plan->s.streaming_heads, (size_t)plan->s.heads);
    plan->s.streaming_heads = plan->own;
    return LINNET_OK;
}

const ln_select_row ln_select_pages = {.name = "pages",
                                       .source = "Yang et al. 2025",
                                       .needs = LN_SELECT_QUERY | LN_SELECT_KEY | LN_SELECT_SPAN | LN_SELECT_BACKWARD |
                                                LN_SELECT_GROUPS,
                                       .check = check,
                                       .open = copy_heads,
                                       .carve = carve,
                                       .scratch = scratch,
                                       .prepare = prepare,
                                       .tile = mark_tiles};
