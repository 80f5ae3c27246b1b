/* Masks and biases against the formulas of linnet/attention.h, one pair at a time: bits of rows exactly, ranges and
 * tiles never wrong where they are certain, biases against float64; and that the check finds every wrong setting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "base/random.h"
#include "mixer/mask.h"

enum { KEYS_MOST = 700, HEADS = 4, DOCUMENTS_MOST = 9 };

static int64_t between(ln_random *random, int64_t least, int64_t most) {
    return least + (int64_t)ln_random_below(random, (uint64_t)(most - least + 1));
}
static bool chance(ln_random *random, double p) {
    return ln_random_unit(random) < p;
}

/* ---- the formulas ---- */

typedef struct scene {
    linnet_attention_settings settings;
    int64_t queries, keys, key_begin;
    int64_t query_offsets[2], documents[DOCUMENTS_MOST + 1], lists[HEADS * KEYS_MOST + 1];
    int32_t *tiles;
    ln_grid grid;
    ln_mask mask;
    uint8_t counts[KEYS_MOST / LN_PAGE_TOKENS + 1];
} scene;

static int64_t document_at(const scene *s, int64_t key) {
    if (key < 0) return -1;
    for (int64_t d = 0; d < s->settings.documents; d++)
        if (s->documents[d] <= key + s->key_begin && key + s->key_begin < s->documents[d + 1]) return d;
    return -1;
}

static bool listed(const scene *s, int64_t head, int64_t query, int64_t key) {
    const linnet_block_mask *b = &s->settings.blocks;
    const int64_t query_tiles = (s->queries + b->query_tile - 1) / b->query_tile, tile = query / b->query_tile;
    const int64_t l = b->per_head ? head * query_tiles + tile : tile;
    for (int64_t i = b->offsets[l]; i < b->offsets[l + 1]; i++)
        if (b->tiles[i] == key / b->key_tile) return true;
    return false;
}

static bool neighbours(const linnet_neighbourhood *n, int64_t query, int64_t key) {
    for (int a = n->axes - 1; a >= 0; a--) {
        const int64_t d = n->dilation[a] ? n->dilation[a] : 1, q = query % n->extent[a], k = key % n->extent[a];
        query /= n->extent[a];
        key /= n->extent[a];
        if (q % d != k % d) return false;
        const int64_t points = (n->extent[a] - q % d - 1) / d + 1; /* q % d + x d < extent */
        const int64_t i = q / d, j = k / d, window = n->window[a];
        if (n->causal[a]) {
            if (j > i || i - j >= window) return false;
        } else {
            int64_t start = i - window / 2;
            if (start > points - window) start = points - window;
            if (start < 0) start = 0;
            if (j < start || j >= start + window) return false;
        }
    }
    return true;
}

/* Query and key counted in their sequence. */
static bool formula(const scene *s, int64_t head, int64_t query, int64_t key) {
    const linnet_attention_settings *set = &s->settings;
    const int64_t position = query + s->keys - s->queries;
    bool sees = true;
    if (set->causal && key > position) sees = false;
    if (set->window && position - key >= set->window) sees = false;
    if (set->window && !set->causal && key - position >= set->window) sees = false;
    if (key < set->prefix) sees = true;
    if (set->documents && (document_at(s, position) < 0 || document_at(s, position) != document_at(s, key)))
        sees = false;
    if (set->blocks.query_tile && !listed(s, head, query, key)) sees = false;
    if (set->neighbourhood.axes && !neighbours(&set->neighbourhood, query, key)) sees = false;
    return sees;
}

/* Positions and keys of the mask: places where there is a grid. */
static bool formula_at(const scene *s, int64_t head, int64_t position, int64_t key) {
    if (s->mask.counts && key % LN_PAGE_TOKENS >= s->counts[key / LN_PAGE_TOKENS]) return false;
    if (s->mask.grid) return formula(s, head, s->grid.token[position], s->grid.token[key]);
    return formula(s, head, position - (s->keys - s->queries), key);
}

/* ---- random scenes ---- */

static void random_documents(scene *s, ln_random *random) {
    s->key_begin = chance(random, 0.5) ? 0 : between(random, 0, 50);
    s->settings.documents = between(random, 1, DOCUMENTS_MOST);
    int64_t at = chance(random, 0.5) ? 0 : between(random, 0, s->key_begin + 30);
    for (int64_t d = 0; d <= s->settings.documents; d++) {
        s->documents[d] = at;
        at += chance(random, 0.2) ? 0 : between(random, 0, 1 + 3 * s->keys / s->settings.documents);
    }
    s->settings.document_offsets = s->documents;
}

static void random_blocks(scene *s, ln_random *random) {
    linnet_block_mask *b = &s->settings.blocks;
    b->query_tile = between(random, 1, 150);
    b->key_tile = 32 * between(random, 1, 5);
    b->per_head = chance(random, 0.5);
    const int64_t query_tiles = ln_ceil_div(s->queries, b->query_tile), key_tiles = ln_ceil_div(s->keys, b->key_tile);
    const int64_t lists = query_tiles * (b->per_head ? HEADS : 1);
    const double density = chance(random, 0.3) ? 1 : ln_random_unit(random);
    s->tiles = malloc((size_t)(lists * key_tiles + 1) * sizeof *s->tiles);
    assert_non_null(s->tiles);
    int64_t count = 0;
    for (int64_t l = 0; l < lists; l++) {
        s->lists[l] = count;
        for (int64_t t = 0; t < key_tiles; t++)
            if (chance(random, density)) s->tiles[count++] = (int32_t)t;
    }
    s->lists[lists] = count;
    b->offsets = s->lists;
    b->tiles = s->tiles;
}

static void random_neighbourhood(scene *s, ln_random *random) {
    static const int64_t most[] = {0, KEYS_MOST, 26, 8};
    linnet_neighbourhood *n = &s->settings.neighbourhood;
    n->axes = (int)between(random, 1, LINNET_AXES_MOST);
    s->keys = 1;
    for (int a = 0; a < n->axes; a++) {
        n->extent[a] = between(random, 1, most[n->axes]);
        n->dilation[a] = chance(random, 0.5) ? between(random, 0, 1) : between(random, 1, ln_min_i64(n->extent[a], 7));
        n->causal[a] = chance(random, 0.3);
        const int64_t limit = n->extent[a] / ln_max_i64(1, n->dilation[a]);
        n->window[a] = between(random, 1, chance(random, 0.5) ? limit : ln_min_i64(limit, 5));
        s->keys *= n->extent[a];
    }
    s->queries = s->keys;
}

static void open_scene(scene *s, linnet_context *context, ln_random *random) {
    *s = (scene){.settings = {.heads = HEADS}};
    s->keys = between(random, 1, KEYS_MOST);
    s->queries = chance(random, 0.2) ? between(random, 1, KEYS_MOST) : between(random, 1, s->keys);
    const bool grid = chance(random, 0.4), mix = !grid || chance(random, 0.3);
    if (grid) random_neighbourhood(s, random);
    if (mix && chance(random, 0.5)) s->settings.causal = true;
    if (mix && chance(random, 0.5)) s->settings.window = between(random, 1, chance(random, 0.5) ? 40 : 400);
    if (mix && chance(random, 0.02)) s->settings.window = INT64_MAX;
    if (mix && chance(random, 0.3)) s->settings.prefix = between(random, 0, s->keys + 10);
    if (mix && chance(random, 0.3)) random_documents(s, random);
    if (!grid && chance(random, 0.3)) random_blocks(s, random);
    s->query_offsets[1] = s->queries;
    s->settings.query_offsets = s->query_offsets;
    if (grid) assert_int_equal(ln_grid_open(context, &s->settings.neighbourhood, &s->grid), LINNET_OK);
    s->mask = (ln_mask){.causal = s->settings.causal,
                        .window = s->settings.window,
                        .prefix = s->settings.prefix,
                        .documents = s->settings.documents,
                        .document_offsets = s->settings.document_offsets,
                        .key_begin = s->key_begin,
                        .blocks = s->settings.blocks,
                        .query_begin = s->keys - s->queries,
                        .grid = grid ? &s->grid : NULL};
    if (chance(random, 0.3)) s->mask.counts = s->counts;
    for (size_t p = 0; p < sizeof s->counts; p++)
        s->counts[p] = (uint8_t)(chance(random, 0.3) ? 0 : chance(random, 0.5) ? 32 : between(random, 0, 32));
    if (s->settings.blocks.query_tile) s->mask.query_tiles = ln_ceil_div(s->queries, s->settings.blocks.query_tile);
}

static void close_scene(scene *s, linnet_context *context) {
    ln_grid_close(context, &s->grid);
    free(s->tiles);
}

/* ---- masks ---- */

static void check_run(const scene *s, const ln_mask_tile *tile, int64_t key, int64_t count) {
    bool any = false, all = true;
    for (int64_t h = tile->head; h < tile->head + tile->heads; h++) {
        for (int64_t t = 0; t < tile->tokens; t++) {
            uint64_t bits[LN_MASK_WORDS], wanted[LN_MASK_WORDS] = {0};
            for (int64_t i = 0; i < count; i++) {
                const bool sees = formula_at(s, h, tile->position + t, key + i);
                any = any || sees;
                all = all && sees;
                if (sees) wanted[i / 64] |= UINT64_C(1) << i % 64;
            }
            ln_mask_row(&s->mask, h, tile->position + t, key, count, bits);
            assert_memory_equal(bits, wanted, sizeof bits);
        }
    }
    const ln_sight sight = ln_mask_block(&s->mask, tile, key, count);
    if (sight == LN_SEES_NONE) assert_false(any);
    if (sight == LN_SEES_ALL) assert_true(all);
    const bool plain = !s->mask.grid && !s->mask.documents && !s->mask.blocks.query_tile && !s->mask.counts;
    if ((s->mask.grid && !s->mask.counts) || plain) assert_int_equal(sight == LN_SEES_NONE, !any);
    if (plain) assert_int_equal(sight == LN_SEES_ALL, all);
}

static void check_range(const scene *s, const ln_mask_tile *tile) {
    int64_t first, end;
    ln_mask_range(&s->mask, tile, s->keys, &first, &end);
    assert_true(0 <= first && first <= end && end <= s->keys);
    for (int64_t h = tile->head; h < tile->head + tile->heads; h++)
        for (int64_t t = 0; t < tile->tokens; t++)
            for (int64_t key = 0; key < s->keys; key++)
                if (key < first || key >= end) assert_false(formula_at(s, h, tile->position + t, key));
}

static void test_masks(void **state) {
    linnet_context *context = *state;
    ln_random random;
    ln_random_seed(&random, 1);
    static scene s;
    for (int i = 0; i < 1500; i++) {
        open_scene(&s, context, &random);
        for (int j = 0; j < 6; j++) {
            ln_mask_tile tile = {.heads = between(&random, 1, 2), .tokens = between(&random, 1, 100)};
            tile.head = between(&random, 0, HEADS - tile.heads);
            tile.tokens = ln_min_i64(tile.tokens, s.queries);
            tile.position = s.mask.query_begin + between(&random, 0, s.queries - tile.tokens);
            if (j == 0) check_range(&s, &tile);
            for (int k = 0; k < 3; k++) {
                const int64_t run = chance(&random, 0.5) ? LN_ATTEND_BLOCK : between(&random, 1, LN_ATTEND_BLOCK);
                const int64_t key = between(&random, 0, s.keys - 1);
                check_run(&s, &tile, key, ln_min_i64(run, s.keys - key));
            }
        }
        close_scene(&s, context);
    }
}

/* Every token has one place, and the places of a class are together. */
static void test_grid_order(void **state) {
    linnet_context *context = *state;
    ln_random random;
    ln_random_seed(&random, 2);
    static scene s;
    static bool seen[KEYS_MOST];
    for (int i = 0; i < 300; i++) {
        s = (scene){0};
        random_neighbourhood(&s, &random);
        assert_int_equal(ln_grid_open(context, &s.settings.neighbourhood, &s.grid), LINNET_OK);
        assert_int_equal(s.grid.points, s.keys);
        memset(seen, 0, sizeof seen);
        for (int64_t p = 0; p < s.keys; p++) {
            assert_in_range(s.grid.token[p], 0, s.keys - 1);
            assert_false(seen[s.grid.token[p]]);
            seen[s.grid.token[p]] = true;
            const int32_t residue = s.grid.residue[p];
            assert_true(p >= s.grid.residue_offsets[residue] && p < s.grid.residue_offsets[residue + 1]);
        }
        close_scene(&s, context);
    }
}

/* P004: the tiles visited are exactly those with a pair of neighbours, and the order keeps them few. */
static void test_grid_visits(void **state) {
    linnet_context *context = *state;
    static const struct {
        linnet_neighbourhood neighbourhood;
        int64_t tokens, most; /* of a tile; visited tiles */
    } cases[] = {
        {{1, {1500}, {65}, {3}, {false}}, 96, 45},
        {{1, {4000}, {9}, {2}, {true}}, 32, 256},
        {{2, {48, 40}, {7, 9}, {1, 1}, {false, true}}, 64, 150},
        {{2, {60, 30}, {9, 5}, {2, 2}, {false, false}}, 128, 60},
        {{3, {12, 12, 12}, {3, 5, 3}, {1, 2, 1}, {true, false, false}}, 96, 150},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const linnet_neighbourhood *n = &cases[i].neighbourhood;
        ln_grid grid;
        assert_int_equal(ln_grid_open(context, n, &grid), LINNET_OK);
        const ln_mask mask = {.grid = &grid};
        int64_t visited = 0, wanted = 0;
        for (int64_t q = 0; q < grid.points; q += cases[i].tokens) {
            const ln_mask_tile tile = {0, 1, q, ln_min_i64(cases[i].tokens, grid.points - q)};
            int64_t first, end;
            ln_mask_range(&mask, &tile, grid.points, &first, &end);
            for (int64_t k = 0; k < grid.points; k += LN_ATTEND_BLOCK) {
                const int64_t count = ln_min_i64(LN_ATTEND_BLOCK, grid.points - k);
                bool any = false;
                for (int64_t t = 0; t < tile.tokens; t++) {
                    for (int64_t j = 0; j < count; j++) {
                        if (!neighbours(n, grid.token[q + t], grid.token[k + j])) continue;
                        any = true;
                        assert_true(k + j >= first && k + j < end);
                    }
                }
                wanted += any;
                visited += k < end && k + count > first && ln_mask_block(&mask, &tile, k, count) != LN_SEES_NONE;
            }
        }
        assert_int_equal(visited, wanted);
        assert_in_range(visited, 1, cases[i].most);
        ln_grid_close(context, &grid);
    }
}

static int64_t live_blocks, blocks_left;
static void *few_blocks(void *user, size_t bytes) {
    (void)user;
    if (blocks_left-- <= 0) return NULL;
    live_blocks++;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}
static void release_block(void *user, void *block, size_t bytes) {
    (void)user;
    (void)bytes;
    live_blocks--;
    free(block);
}

/* Whichever allocation fails, nothing is left behind. */
static void test_grid_memory(void **state) {
    (void)state;
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = 1;
    settings.allocate = few_blocks;
    settings.release = release_block;
    blocks_left = 1000;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    const linnet_neighbourhood n = {2, {9, 30}, {3, 5}, {1, 2}, {false, false}};
    const int64_t live = live_blocks;
    linnet_status status = LINNET_ERROR_MEMORY;
    for (int64_t blocks = 0; status; blocks++) {
        ln_grid grid;
        blocks_left = blocks;
        status = ln_grid_open(context, &n, &grid);
        assert_true(status == LINNET_OK || status == LINNET_ERROR_MEMORY);
        if (!status) ln_grid_close(context, &grid);
        assert_int_equal(live_blocks, live);
    }
    linnet_context_close(context);
}

/* ---- the check ---- */

static const int64_t two_sequences[] = {0, 60, 120}, not_ascending[] = {0, 70, 60}, from_one[] = {1, 60, 120};
static const int64_t some_documents[] = {0, 50, 50, 120}, far_documents[] = {0, 50, 50, 121};
static const int64_t one_sequence[] = {0, 120}, list_offsets[] = {0, 2, 4}, bad_lists[] = {0, 3, 2};
static const int32_t list_tiles[] = {0, 2, 1, 3}, tiles_outside[] = {0, 2, 1, 4}, tiles_falling[] = {2, 0, 1, 3};
static const int32_t tiles_twice[] = {0, 0, 1, 3}, tiles_negative[] = {-1, 0, 1, 3};
static const float slopes[] = {0.5F, INFINITY};

static linnet_attention_settings right_settings(void) {
    return (linnet_attention_settings){
        .heads = 2, .key_value_heads = 1, .sequences = 2, .query_offsets = two_sequences};
}
static linnet_attention_settings right_blocks(void) {
    linnet_attention_settings s = right_settings();
    s.sequences = 1;
    s.query_offsets = one_sequence;
    s.blocks = (linnet_block_mask){64, 32, false, list_offsets, list_tiles};
    return s;
}
static linnet_attention_settings right_grid(void) {
    linnet_attention_settings s = right_settings();
    s.neighbourhood = (linnet_neighbourhood){2, {6, 10}, {3, 5}, {2, 0}, {false, true}};
    return s;
}

/* `base` with one member changed is refused, and the sentence names `word`. */
#define WRONG(base, word, ...)                                                                     \
    do {                                                                                           \
        linnet_attention_settings s = base();                                                      \
        assert_int_equal(ln_mask_check(context, &s), LINNET_OK);                                   \
        __VA_ARGS__;                                                                               \
        assert_int_equal(ln_mask_check(context, &s), LINNET_ERROR_ARGUMENT);                       \
        if (!strstr(linnet_last_error(context), word)) fail_msg("%s", linnet_last_error(context)); \
    } while (0)

static void test_check(void **state) {
    linnet_context *context = *state;
    WRONG(right_settings, "sequences", s.sequences = -1);
    WRONG(right_settings, "cache_capacity", s.cache_capacity = -1);
    WRONG(right_settings, "query_offsets", s.query_offsets = NULL);
    WRONG(right_settings, "query_offsets[2]", s.query_offsets = not_ascending);
    WRONG(right_settings, "query_offsets", s.query_offsets = from_one);
    WRONG(right_settings, "key_offsets[2]", s.key_offsets = not_ascending);
    WRONG(right_settings, "key_offsets", s.key_offsets = from_one);
    WRONG(right_settings, "window", s.window = -1);
    WRONG(right_settings, "prefix", s.prefix = -1);
    WRONG(right_settings, "documents", s.documents = -1);
    WRONG(right_settings, "document_offsets", s.documents = 2);
    WRONG(right_settings, "document_offsets[2]", s.documents = 2; s.document_offsets = not_ascending);
    WRONG(right_settings, "121", s.documents = 3; s.document_offsets = far_documents);
    WRONG(right_settings, "rank", s.rank = -1);
    WRONG(right_settings, "relative", s.relative = -1);
    WRONG(right_settings, "alibi[1]", s.alibi = slopes);
    WRONG(right_blocks, "query_tile", s.blocks.query_tile = 0);
    WRONG(right_blocks, "query_tile", s.blocks.query_tile = -64);
    WRONG(right_blocks, "key_tile", s.blocks.key_tile = 48);
    WRONG(right_blocks, "key_tile", s.blocks.key_tile = 0);
    WRONG(right_blocks, "one sequence", s.sequences = 2; s.query_offsets = two_sequences);
    WRONG(right_blocks, "together", s.neighbourhood.axes = 1);
    WRONG(right_blocks, "blocks.offsets", s.blocks.offsets = NULL);
    WRONG(right_blocks, "blocks.offsets[2]", s.blocks.offsets = bad_lists);
    WRONG(right_blocks, "blocks.offsets", s.blocks.offsets = from_one);
    WRONG(right_blocks, "blocks.tiles are missing", s.blocks.tiles = NULL);
    WRONG(right_blocks, "blocks.tiles[3]", s.blocks.tiles = tiles_outside);
    WRONG(right_blocks, "blocks.tiles[1]", s.blocks.tiles = tiles_falling);
    WRONG(right_blocks, "blocks.tiles[1]", s.blocks.tiles = tiles_twice);
    WRONG(right_blocks, "blocks.tiles[0]", s.blocks.tiles = tiles_negative);
    WRONG(right_blocks, "too many", s.blocks.per_head = true; s.heads = INT64_MAX);
    WRONG(right_grid, "axes", s.neighbourhood.axes = 4);
    WRONG(right_grid, "axes", s.neighbourhood.axes = -1);
    WRONG(right_grid, "multiply to 54", s.neighbourhood.extent[1] = 9);
    WRONG(right_grid, "axis 0", s.neighbourhood.extent[0] = 0);
    WRONG(right_grid, "axis 0", s.neighbourhood.window[0] = 4);
    WRONG(right_grid, "axis 1", s.neighbourhood.window[1] = 0);
    WRONG(right_grid, "axis 0", s.neighbourhood.dilation[0] = -1);
    WRONG(right_grid, "axis 1", s.neighbourhood.dilation[1] = 11);
    WRONG(right_grid, "axis 1", s.neighbourhood.extent[1] = INT64_MAX);
    WRONG(right_grid, "2^63",
          s.neighbourhood = (linnet_neighbourhood){3, {1 << 30, 1 << 30, 1 << 30}, {1, 1, 1}, {0}, {0}});
    WRONG(right_grid, "cache", s.cache_capacity = 5);
    linnet_attention_settings s = right_settings();
    s.documents = 3;
    s.document_offsets = some_documents;
    s.causal = true;
    s.window = INT64_MAX;
    assert_int_equal(ln_mask_check(context, &s), LINNET_OK);
}

/* ---- biases ---- */

enum { RANK_MOST = 5, RELATIVE_MOST = 40, BIAS_KEYS = 300 };

typedef struct bias_data {
    float alibi[HEADS], query_factors[BIAS_KEYS * HEADS * RANK_MOST], key_factors[BIAS_KEYS * HEADS * RANK_MOST];
    float dense[HEADS * BIAS_KEYS * (BIAS_KEYS + 3)], table[HEADS * (2 * RELATIVE_MOST - 1)];
    int64_t order[BIAS_KEYS];
} bias_data;

static void fill(ln_random *random, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)ln_random_normal(random);
}

static ln_bias random_bias(ln_random *random, bias_data *data) {
    ln_bias b = {.heads = HEADS, .key_value_heads = (int64_t)1 << between(random, 0, 2)};
    if (chance(random, 0.5)) b.alibi = data->alibi;
    if (chance(random, 0.5)) {
        b.rank = between(random, 1, RANK_MOST);
        b.query_factors = data->query_factors;
        b.key_factors = data->key_factors;
    }
    if (chance(random, 0.5)) {
        b.dense = data->dense;
        b.dense_row_stride = BIAS_KEYS + 3;
        b.dense_head_stride = chance(random, 0.5) ? 0 : BIAS_KEYS * b.dense_row_stride;
    }
    if (chance(random, 0.5)) {
        b.relative = between(random, 1, RELATIVE_MOST);
        b.table = data->table;
    }
    if (chance(random, 0.3)) b.order = data->order;
    return b;
}

/* Returns the sum of the terms' sizes too: what a float32 sum's error is measured by. */
static double bias_formula(const ln_bias *b, int64_t head, int64_t token, int64_t position, int64_t key, double *size) {
    const double distance = (double)(key - position);
    double sum = 0, product = 0;
    *size = 0;
    if (b->alibi) {
        sum -= (double)b->alibi[head] * fabs(distance);
        *size += (double)fabsf(b->alibi[head]) * fabs(distance);
    }
    for (int64_t r = 0; r < b->rank; r++) {
        const int64_t key_head = head * b->key_value_heads / b->heads;
        product = (double)b->query_factors[(token * b->heads + head) * b->rank + r] *
                  (double)b->key_factors[(key * b->key_value_heads + key_head) * b->rank + r];
        sum += product;
        *size += fabs(product);
    }
    if (b->dense) {
        const float x = b->dense[head * b->dense_head_stride + token * b->dense_row_stride + key];
        sum += (double)x;
        *size += (double)fabsf(x);
    }
    if (b->relative) {
        const double most = (double)(b->relative - 1), at = fmax(-most, fmin(most, distance));
        const float x = b->table[head * (2 * b->relative - 1) + b->relative - 1 + (int64_t)at];
        sum += (double)x;
        *size += (double)fabsf(x);
    }
    return sum;
}

static void check_bias(const ln_vector_kernels *kernels, const ln_bias *b, ln_random *random) {
    float scores[BIAS_KEYS], before[BIAS_KEYS], pieces[BIAS_KEYS];
    static float turned[HEADS * RANK_MOST * (BIAS_KEYS + 1)];
    const int64_t head = between(random, 0, HEADS - 1), position = between(random, 0, BIAS_KEYS - 1);
    const int64_t at = b->order ? b->order[position] : position;
    const int64_t token = b->order ? at : between(random, 0, at);
    const int64_t key = between(random, 0, BIAS_KEYS - 1), count = between(random, 1, BIAS_KEYS - key);
    fill(random, before, BIAS_KEYS);
    memcpy(scores, before, sizeof scores);
    memcpy(pieces, before, sizeof pieces);
    ln_bias_add(kernels, b, head, token, position, key, count, scores);
    for (int64_t i = 0; i < count; i++) {
        double size;
        const double bias =
            bias_formula(b, head, token, at, b->order ? b->order[key + i] : key + i, &size) * 1.4426950408889634;
        assert_true(fabs((double)scores[i] - (double)before[i] - bias) <=
                    (size * 6 + fabs((double)before[i])) * 0x1p-23);
    }
    for (int64_t i = count; i < BIAS_KEYS; i++) assert_true(scores[i] == before[i]);
    ln_bias again = *b;
    if (b->rank) {
        again.factor_stride = BIAS_KEYS + 1;
        again.key_factors = turned;
        ln_bias_turn(b, BIAS_KEYS, again.factor_stride, turned);
    }
    for (int64_t from = 0, n; from < count; from += n) {
        n = between(random, 1, count - from);
        ln_bias_add(kernels, &again, head, token, position, key + from, n, pieces + from);
    }
    assert_memory_equal(pieces, scores, sizeof scores);
}

static void test_biases(void **state) {
    ln_vector_kernels kernels;
    ln_vector_choose(((linnet_context *)*state)->cpu, &kernels);
    ln_random random;
    ln_random_seed(&random, 3);
    bias_data *data = malloc(sizeof *data);
    assert_non_null(data);
    fill(&random, data->alibi, sizeof data->alibi / sizeof(float));
    fill(&random, data->query_factors, sizeof data->query_factors / sizeof(float));
    fill(&random, data->key_factors, sizeof data->key_factors / sizeof(float));
    fill(&random, data->dense, sizeof data->dense / sizeof(float));
    fill(&random, data->table, sizeof data->table / sizeof(float));
    for (int64_t i = 0; i < BIAS_KEYS; i++) data->order[i] = i * 7 % BIAS_KEYS;
    for (int i = 0; i < 3000; i++) {
        const ln_bias b = random_bias(&random, data);
        assert_int_equal(ln_bias_any(&b), b.alibi || b.rank || b.dense || b.relative);
        check_bias(&kernels, &b, &random);
    }
    free(data);
}

/* Distances are exact far from the beginning, and beyond 32 bits. */
static void test_alibi_far(void **state) {
    ln_vector_kernels kernels;
    ln_vector_choose(((linnet_context *)*state)->cpu, &kernels);
    const float slope = 0.25F;
    const ln_bias b = {.heads = 1, .key_value_heads = 1, .alibi = &slope};
    static const int64_t positions[] = {1000000, 16000001, INT64_C(1) << 31, INT64_C(5) << 31};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        float scores[200] = {0};
        const int64_t key = i % 2 ? positions[i] - 100 : 0;
        ln_bias_add(&kernels, &b, 0, 0, positions[i], key, 200, scores);
        for (int64_t k = 0; k < 200; k++) {
            const double wanted = -0.25 * 1.4426950408889634 * fabs((double)(positions[i] - key - k));
            assert_true(fabs((double)scores[k] - wanted) <= -wanted * 0x1p-22);
        }
    }
}

static int open_context(void **state) {
    const linnet_context_settings settings = linnet_context_settings_default();
    return linnet_context_open(&settings, (linnet_context **)state);
}
static int close_context(void **state) {
    linnet_context_close(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),       cmocka_unit_test(test_grid_order), cmocka_unit_test(test_grid_visits),
        cmocka_unit_test(test_grid_memory), cmocka_unit_test(test_check),      cmocka_unit_test(test_biases),
        cmocka_unit_test(test_alibi_far),
    };
    return cmocka_run_group_tests(tests, open_context, close_context);
}
