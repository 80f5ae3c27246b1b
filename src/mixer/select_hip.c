/* Owns: HiP's search for tiles of keys (P041; linnet/approximate.h).
 *
 * The tree stands over the tiles that are not visited anyway, in order. It starts with k runs of them; a round cuts
 * each run in two, scores the key in the middle of each half against some of the tile's queries (the largest counts)
 * and keeps the best k halves. Runs of one tile stay as they are. So a tile of queries costs at most
 * 2 k (1 + log2(tiles / k)) keys, and all of them n / query_tile times that: O(n log n). */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/select.h"

typedef struct run {
    int32_t begin, end; /* indices of free tiles */
} run;

typedef struct places {
    int32_t *free_tiles, *heap, *chosen;
    run *runs, *halves; /* of halves twice as many */
    float *score, *queries, *scores, *panel;
} places;

static int64_t budget_tiles(const linnet_approximate_settings *s) {
    return ln_ceil_div(s->budget, s->key_tile);
}

static places place(const linnet_approximate_plan *plan, ln_carver *carver) {
    const uint64_t tiles = (uint64_t)plan->key_tiles, rows = (uint64_t)ln_select_sampled_most(plan),
                   runs = (uint64_t)ln_min_i64(budget_tiles(&plan->s), plan->key_tiles);
    return (places){.free_tiles = ln_carve(carver, tiles, sizeof(int32_t)),
                    .heap = ln_carve(carver, 2 * runs, sizeof(int32_t)),
                    .chosen = ln_carve(carver, 2 * runs, sizeof(int32_t)),
                    .runs = ln_carve(carver, runs, sizeof(run)),
                    .halves = ln_carve(carver, 2 * runs, sizeof(run)),
                    .score = ln_carve(carver, 2 * runs, sizeof(float)),
                    .queries = ln_carve(carver, rows * LN_SELECT_STRIDE, sizeof(float)),
                    .scores = ln_carve(carver, rows * LN_SELECT_STRIDE, sizeof(float)),
                    .panel = ln_carve(carver, LN_PANEL * LN_SELECT_SIZE_MOST, sizeof(float))};
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    ln_carver carver = {0};
    place(plan, &carver);
    return carver.used;
}

/* The key in the middle of the tiles of a run. */
static int64_t key_of(const ln_select_call *call, const places *p, run r) {
    const int64_t size = call->s->key_tile, length = r.end - r.begin;
    const int64_t tile = p->free_tiles[r.begin + length / 2];
    return ln_min_i64(tile * size + (length % 2 ? size / 2 : 0), call->s->tokens - 1);
}

static void score_halves(ln_select_call *call, const ln_select_tile *tile, const places *p, int64_t rows,
                         int64_t halves) {
    for (int64_t first = 0; first < halves; first += LN_PANEL) {
        const int64_t count = ln_min_i64(LN_PANEL, halves - first), size = call->s->key_size;
        memset(p->panel, 0, (size_t)(size * LN_PANEL) * sizeof(float));
        for (int64_t i = 0; i < count; i++)
            ln_select_column(p->panel, i, ln_select_key(call, tile->shared, key_of(call, p, p->halves[first + i])),
                             size);
        ln_select_product(call, p->panel, size, p->queries, rows, p->scores, false);
        for (int64_t i = 0; i < count; i++) {
            float best = -INFINITY;
            for (int64_t r = 0; r < rows; r++) best = fmaxf(best, p->scores[r * LN_SELECT_STRIDE + i]);
            p->score[first + i] = best;
        }
    }
    atomic_fetch_add(&call->scored, rows * halves);
}

static void mark_tiles(ln_select_call *call, const ln_select_tile *tile) {
    ln_carver carver = {.base = tile->scratch};
    const places p = place(call->plan, &carver);
    const int64_t count = ln_select_free(tile, p.free_tiles), k = ln_min_i64(budget_tiles(call->s), count);
    if (k == 0) return;
    const int64_t rows = k < count ? ln_select_sampled_queries(call, tile, p.queries) : 0;
    for (int64_t i = 0; i < k; i++) p.runs[i] = (run){(int32_t)(i * count / k), (int32_t)((i + 1) * count / k)};
    for (bool whole = k == count; !whole;) {
        int64_t halves = 0;
        for (int64_t i = 0; i < k; i++) {
            const run r = p.runs[i];
            const int32_t middle = r.begin + (r.end - r.begin + 1) / 2;
            p.halves[halves++] = (run){r.begin, middle};
            if (middle < r.end) p.halves[halves++] = (run){middle, r.end};
        }
        score_halves(call, tile, &p, rows, halves);
        ln_select_top(p.score, halves, k, p.heap, p.chosen);
        whole = true;
        for (int64_t i = 0; i < k; i++) {
            p.runs[i] = p.halves[p.chosen[i]];
            whole = whole && p.runs[i].end - p.runs[i].begin == 1;
        }
    }
    for (int64_t i = 0; i < k; i++) tile->marks[p.free_tiles[p.runs[i].begin]] = 1;
}

const ln_select_row ln_select_hip = {.name = "hip",
                                     .source = "Lee et al. 2024",
                                     .needs = LN_SELECT_QUERY | LN_SELECT_KEY | LN_SELECT_SPAN | LN_SELECT_BACKWARD |
                                              LN_SELECT_GROUPS,
                                     .scratch = scratch,
                                     .tile = mark_tiles};
