/* Owns: exact attention: cutting it into tasks, and the order of work in one.
 *
 * A task is a tile of query rows (some tokens x the heads that share one key-value head) against a range of keys, taken
 * in blocks of LN_ATTEND_BLOCK keys by the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022):
 *     m' = max(m, S),  l' = 2^(m - m') l + sum 2^(S - m'),  O' = 2^(m - m') O + 2^(S - m') V,  output = O / l,
 * with S = log2(e) scale Q K^T, so that the exponential is a power of two. Where tiles are few (decoding), the keys are
 * cut into chunks whose (m, l, O) are then merged in ascending order. Tiles and chunks depend on shapes and positions
 * only: that is why any number of threads gives the same bits.
 *
 * Scores of keys that a row does not see are computed with their page and then ignored, never multiplied by 0: a row's
 * softmax and its product with values run over exactly the keys it sees, so nothing that is not finite leaks. Pages
 * that a whole sub-tile sees are multiplied together, the ragged ends token by token. */
#include "mixer/attention.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"

enum {
    TILE_ROWS = 96,     /* about this many query rows in a tile */
    PRODUCT_ROWS = 12,  /* rows that share one product with values */
    UNPACK_ROWS = 8,    /* more rows than these: pages are decoded once for all */
    SPLIT_TASKS = 256,  /* tiles are split over keys up to about this many tasks, */
    SPLIT_ROWS = 2048,  /* this many partial rows, */
    SPLIT_MOST = 64,    /* this many chunks of a tile, */
    SPLIT_TOKENS = 512, /* and chunks of at least this many keys */
    PAGES = LN_ATTEND_BLOCK / LN_PAGE_TOKENS,
};

/* ---- the shape of a call ---- */

typedef struct attention_plan {
    int64_t group;          /* query heads of one key-value head */
    int64_t tile_tokens;    /* tokens in a tile */
    int64_t tiles;          /* of one key-value head */
    int64_t chunks_most;    /* chunks of a tile */
    int64_t rows;           /* of a tile */
    uint64_t worker_floats; /* scratch of a worker */
} attention_plan;

static attention_plan make_plan(const ln_attention *attention, int64_t tokens) {
    attention_plan p = {.group = attention->heads / attention->key_value_heads};
    p.tile_tokens = ln_max_i64(1, ln_min_i64(tokens, TILE_ROWS / p.group));
    p.tiles = ln_ceil_div(tokens, p.tile_tokens);
    p.rows = p.tile_tokens * p.group;
    const int64_t by_tasks = SPLIT_TASKS / ln_max_i64(1, attention->key_value_heads * p.tiles);
    const int64_t by_rows = SPLIT_ROWS / ln_max_i64(1, attention->heads * tokens);
    p.chunks_most = ln_max_i64(1, ln_min_i64(SPLIT_MOST, ln_min_i64(by_tasks, by_rows)));
    const int64_t decoded = LN_PAGE_TOKENS * attention->key_size + LN_ATTEND_BLOCK * attention->value_size;
    p.worker_floats = ln_round_up((uint64_t)(p.rows * (3 * LN_ATTEND_STRIDE + LN_ATTEND_LANES + 1) + decoded), 16);
    return p;
}

uint64_t ln_attention_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention, int64_t tokens) {
    (void)kernels;
    const attention_plan whole = make_plan(attention, tokens);
    /* Fewer tokens may be split into more chunks. */
    const int64_t partial_rows = ln_min_i64(SPLIT_ROWS, attention->heads * tokens * SPLIT_MOST);
    const uint64_t partial = ln_round_up((uint64_t)(partial_rows * (attention->value_size + 2)), 16);
    return sizeof(float) * ((uint64_t)threads * whole.worker_floats + partial);
}

/* ---- one call, one task ---- */

typedef struct attention_call {
    const ln_kernels *kernels;
    const ln_attention *attention;
    const ln_page_view *view;
    const float *query;
    float *output, *partial;
    int64_t query_stride, output_stride, position, tokens;
    attention_plan plan;
    int64_t chunks, chunk_tokens;
    float query_factor, cap;
    float *workspace;
} attention_call;

/* A tile: tokens `token` to `token` + tokens - 1 of the call, at positions `position` and up; and its scratch. */
typedef struct attention_tile {
    const attention_call *call;
    int64_t head; /* key-value head */
    int64_t token, tokens, position;
    int64_t block; /* keys whose scores are held at once */
    bool few, unpack;
    float *query, *scores, *output; /* [rows][LN_ATTEND_STRIDE] */
    float *maximum, *sum;           /* [rows], [rows][LN_ATTEND_LANES] */
    float *keys, *values;           /* a page of keys, a block of values [panel][token][column], decoded */
} attention_tile;

/* The keys that the tile's token t sees: from first_key to its own. */
static inline int64_t first_key(const attention_tile *tile, int64_t t) {
    const int64_t window = tile->call->attention->window;
    return window ? ln_max_i64(0, tile->position + t - window + 1) : 0;
}

static ln_attend_product product_of(const attention_tile *tile) {
    const ln_attend_kernels *kernels = &tile->call->kernels->attend;
    return tile->few ? kernels->few[tile->call->view->layout.precision] : kernels->many;
}

static void load_queries(const attention_tile *tile) {
    const attention_call *call = tile->call;
    const int64_t group = call->plan.group, size = call->attention->key_size;
    for (int64_t t = 0; t < tile->tokens; t++) {
        for (int64_t g = 0; g < group; g++) {
            float *row = tile->query + (t * group + g) * LN_ATTEND_STRIDE;
            const float *from = call->query + (tile->token + t) * call->query_stride + (tile->head * group + g) * size;
            memcpy(row, from, (size_t)size * sizeof *row);
            call->kernels->vector.scale(row, call->query_factor, size);
        }
    }
    for (int64_t r = 0; r < tile->tokens * group; r++) {
        tile->maximum[r] = -INFINITY;
        memset(tile->sum + r * LN_ATTEND_LANES, 0, LN_ATTEND_LANES * sizeof(float));
        memset(tile->output + r * LN_ATTEND_STRIDE, 0, (size_t)call->attention->value_size * sizeof(float));
    }
}

/* Scores of the block's keys, page by page, for the tokens that see any key of the page. */
static void score_block(const attention_tile *tile, int64_t begin, int64_t end) {
    const attention_call *call = tile->call;
    const ln_page_view *view = call->view;
    const int64_t group = call->plan.group, window = call->attention->window;
    for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS) {
        const int64_t from = ln_max_i64(0, key - tile->position);
        int64_t to = tile->tokens;
        if (window) to = ln_min_i64(to, key + LN_PAGE_TOKENS - 1 + window - tile->position);
        if (from >= to) continue;
        ln_attend_part part = ln_page_keys(&view->layout, ln_page_of(view, tile->head, key / LN_PAGE_TOKENS));
        const ln_attend_operand keys = {&part, 1, call->attention->key_size, LN_PAGE_TOKENS, false};
        if (tile->unpack) {
            call->kernels->attend.decode[view->layout.precision](&keys, tile->keys);
            part.codes = (const unsigned char *)tile->keys;
        }
        const int64_t row = from * group * LN_ATTEND_STRIDE;
        product_of(tile)(&keys, tile->query + row, (to - from) * group, tile->scores + row + (key - begin), false);
    }
}

static void soften_block(const attention_tile *tile, int64_t begin, int64_t end) {
    const attention_call *call = tile->call;
    const int64_t group = call->plan.group;
    for (int64_t t = 0; t < tile->tokens; t++) {
        const int64_t from = ln_max_i64(begin, first_key(tile, t)), to = ln_min_i64(end, tile->position + t + 1);
        if (from >= to) continue;
        for (int64_t r = t * group; r < (t + 1) * group; r++) {
            const float factor =
                call->kernels->attend.softmax(tile->scores + r * LN_ATTEND_STRIDE + (from - begin), to - from,
                                              call->cap, &tile->maximum[r], tile->sum + r * LN_ATTEND_LANES);
            if (factor != 1)
                call->kernels->vector.scale(tile->output + r * LN_ATTEND_STRIDE, factor, call->attention->value_size);
        }
    }
}

static void decode_values(const attention_tile *tile, int64_t begin, int64_t end) {
    const ln_page_view *view = tile->call->view;
    ln_attend_part parts[PAGES];
    const int64_t size = view->layout.value_size;
    for (int64_t panel = 0; panel * LN_PANEL < size; panel++) {
        ln_attend_operand b = {parts, 0, LN_PAGE_TOKENS, ln_min_i64(LN_PANEL, size - panel * LN_PANEL), true};
        for (int64_t key = begin; key < end; key += LN_PAGE_TOKENS)
            parts[b.count++] =
                ln_page_values(&view->layout, ln_page_of(view, tile->head, key / LN_PAGE_TOKENS), panel, 0);
        tile->call->kernels->attend.decode[view->layout.precision](&b,
                                                                   tile->values + panel * LN_PANEL * LN_ATTEND_BLOCK);
    }
}

/* Rows `row` and up += their weights of keys from .. to - 1 times those values: whole pages in one product, or a piece
 * of one page. */
static void add_product(const attention_tile *tile, int64_t row, int64_t rows, int64_t begin, int64_t from,
                        int64_t to) {
    const attention_call *call = tile->call;
    const ln_page_view *view = call->view;
    const int64_t size = view->layout.value_size, inside = from % LN_PAGE_TOKENS;
    const int64_t depth = ln_min_i64(to - from, LN_PAGE_TOKENS);
    ln_attend_part parts[PAGES];
    for (int64_t panel = 0; panel * LN_PANEL < size; panel++) {
        ln_attend_operand b = {parts, 0, depth, ln_min_i64(LN_PANEL, size - panel * LN_PANEL), true};
        for (int64_t key = from; key < to; key += depth) {
            if (tile->unpack) {
                const float *codes = tile->values + panel * LN_PANEL * LN_ATTEND_BLOCK + (key - begin) * b.columns;
                parts[b.count++] = (ln_attend_part){.codes = (const unsigned char *)codes};
            } else {
                parts[b.count++] =
                    ln_page_values(&view->layout, ln_page_of(view, tile->head, key / LN_PAGE_TOKENS), panel, inside);
            }
        }
        product_of(tile)(&b, tile->scores + row * LN_ATTEND_STRIDE + (from - begin), rows,
                         tile->output + row * LN_ATTEND_STRIDE + panel * LN_PANEL, true);
    }
}

/* The same for any range inside the block: a piece of a page, whole pages, a piece. */
static void add_range(const attention_tile *tile, int64_t row, int64_t rows, int64_t begin, int64_t from, int64_t to) {
    while (from < to) {
        const int64_t whole = to / LN_PAGE_TOKENS * LN_PAGE_TOKENS,
                      page_end = (from / LN_PAGE_TOKENS + 1) * LN_PAGE_TOKENS;
        const int64_t next = from % LN_PAGE_TOKENS == 0 && whole > from ? whole : ln_min_i64(page_end, to);
        add_product(tile, row, rows, begin, from, next);
        from = next;
    }
}

static void add_block(const attention_tile *tile, int64_t begin, int64_t end) {
    const int64_t group = tile->call->plan.group, together = ln_max_i64(1, PRODUCT_ROWS / group);
    for (int64_t t = 0; t < tile->tokens; t += together) {
        const int64_t last = ln_min_i64(t + together, tile->tokens) - 1;
        /* Whole pages that all of them see. */
        int64_t from = ln_max_i64(begin, ln_ceil_div(first_key(tile, last), LN_PAGE_TOKENS) * LN_PAGE_TOKENS);
        int64_t to = ln_min_i64(end, (tile->position + t + 1) / LN_PAGE_TOKENS * LN_PAGE_TOKENS);
        if (last == t || from > to) from = to = begin;
        for (int64_t i = t; i <= last && from > begin; i++)
            add_range(tile, i * group, group, begin, ln_max_i64(begin, first_key(tile, i)), from);
        add_range(tile, t * group, (last - t + 1) * group, begin, from, to);
        for (int64_t i = t; i <= last; i++)
            add_range(tile, i * group, group, begin, ln_max_i64(to, first_key(tile, i)),
                      ln_min_i64(end, tile->position + i + 1));
    }
}

static float sum_of(const attention_tile *tile, int64_t r) {
    float part[LN_ATTEND_LANES];
    memcpy(part, tile->sum + r * LN_ATTEND_LANES, sizeof part);
    for (int width = LN_ATTEND_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

static float reciprocal(float sum) {
    return sum == 0 ? 0 : 1 / sum;
}

/* output = O / l; 0 where a row's scores were all -inf. */
static void finish_tile(const attention_tile *tile) {
    const attention_call *call = tile->call;
    const int64_t group = call->plan.group, size = call->attention->value_size;
    for (int64_t r = 0; r < tile->tokens * group; r++) {
        float *row = tile->output + r * LN_ATTEND_STRIDE;
        float *to =
            call->output + (tile->token + r / group) * call->output_stride + (tile->head * group + r % group) * size;
        call->kernels->vector.scale(row, reciprocal(sum_of(tile, r)), size);
        memcpy(to, row, (size_t)size * sizeof *to);
    }
}

/* Partial rows: [token of the call][head][chunk][m, l, O]. */
static float *partial_of(const attention_call *call, int64_t token, int64_t head, int64_t chunk) {
    return call->partial +
           ((token * call->attention->heads + head) * call->chunks + chunk) * (call->attention->value_size + 2);
}

static void keep_partial(const attention_tile *tile, int64_t chunk) {
    const attention_call *call = tile->call;
    const int64_t group = call->plan.group;
    for (int64_t r = 0; r < tile->tokens * group; r++) {
        float *to = partial_of(call, tile->token + r / group, tile->head * group + r % group, chunk);
        to[0] = tile->maximum[r];
        to[1] = sum_of(tile, r);
        memcpy(to + 2, tile->output + r * LN_ATTEND_STRIDE, (size_t)call->attention->value_size * sizeof *to);
    }
}

static void run_task(void *argument, int64_t task, int worker) {
    const attention_call *call = argument;
    const attention_plan *plan = &call->plan;
    float *scratch = call->workspace + (uint64_t)worker * plan->worker_floats;
    attention_tile tile = {.call = call, .head = task % call->attention->key_value_heads};
    const int64_t index = task / call->attention->key_value_heads, chunk = index % call->chunks;
    /* The last tiles see the most keys: first. */
    tile.token = (plan->tiles - 1 - index / call->chunks) * plan->tile_tokens;
    tile.tokens = ln_min_i64(plan->tile_tokens, call->tokens - tile.token);
    tile.position = call->position + tile.token;
    /* Few rows read pages in the order in which they lie, one at a time. */
    tile.few = tile.tokens * plan->group <= LN_ATTEND_FEW_ROWS;
    tile.block = tile.few ? LN_PAGE_TOKENS : LN_ATTEND_BLOCK;
    tile.unpack = !tile.few && call->view->layout.precision != LINNET_F32;
    tile.query = scratch;
    tile.scores = tile.query + plan->rows * LN_ATTEND_STRIDE;
    tile.output = tile.scores + plan->rows * LN_ATTEND_STRIDE;
    tile.keys = tile.output + plan->rows * LN_ATTEND_STRIDE;
    tile.values = tile.keys + LN_PAGE_TOKENS * call->attention->key_size;
    tile.maximum = tile.values + LN_ATTEND_BLOCK * call->attention->value_size;
    tile.sum = tile.maximum + plan->rows;

    load_queries(&tile);
    const int64_t first = first_key(&tile, 0) / LN_PAGE_TOKENS * LN_PAGE_TOKENS + chunk * call->chunk_tokens;
    const int64_t end = ln_min_i64(tile.position + tile.tokens, first + call->chunk_tokens);
    for (int64_t begin = first; begin < end; begin += tile.block) {
        const int64_t block_end = ln_min_i64(end, begin + tile.block);
        score_block(&tile, begin, block_end);
        soften_block(&tile, begin, block_end);
        if (tile.unpack) decode_values(&tile, begin, block_end);
        add_block(&tile, begin, block_end);
    }
    if (call->chunks > 1)
        keep_partial(&tile, chunk);
    else
        finish_tile(&tile);
}

/* One row from its chunks: O = sum 2^(m_c - m) O_c / sum 2^(m_c - m) l_c. */
static void merge_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const attention_call *call = argument;
    const int64_t size = call->attention->value_size, heads = call->attention->heads;
    const int64_t token = task / heads, head = task % heads;
    float most = -INFINITY, sum = 0;
    for (int64_t c = 0; c < call->chunks; c++) most = fmaxf(most, partial_of(call, token, head, c)[0]);
    if (most == -INFINITY) most = 0;
    float *to = call->output + token * call->output_stride + head * size;
    memset(to, 0, (size_t)size * sizeof *to);
    for (int64_t c = 0; c < call->chunks; c++) {
        const float *from = partial_of(call, token, head, c);
        const float factor = exp2f(from[0] - most);
        sum += factor * from[1];
        for (int64_t i = 0; i < size; i++) to[i] += factor * from[2 + i];
    }
    call->kernels->vector.scale(to, reciprocal(sum), size);
}

void ln_attention_run(const ln_kernels *kernels, ln_team *team, const ln_attention *attention, const ln_page_view *view,
                      const float *query, int64_t query_stride, int64_t position, int64_t tokens, float *output,
                      int64_t output_stride, void *workspace) {
    if (tokens <= 0) return;
    const float log2e = 1.44269504f, cap = attention->soft_cap;
    attention_call call = {.kernels = kernels,
                           .attention = attention,
                           .view = view,
                           .query = query,
                           .query_stride = query_stride,
                           .position = position,
                           .tokens = tokens,
                           .output = output,
                           .output_stride = output_stride,
                           .plan = make_plan(attention, tokens),
                           .query_factor = cap != 0 ? attention->scale / cap : attention->scale * log2e,
                           .cap = cap * log2e,
                           .workspace = workspace};
    call.partial = call.workspace + (uint64_t)ln_team_size(team) * call.plan.worker_floats;
    int64_t range = position + tokens;
    if (attention->window) range = ln_min_i64(range, attention->window + tokens + LN_PAGE_TOKENS);
    const int64_t even = ln_ceil_div(ln_ceil_div(range, call.plan.chunks_most), LN_ATTEND_BLOCK) * LN_ATTEND_BLOCK;
    call.chunk_tokens = ln_max_i64(SPLIT_TOKENS, even);
    call.chunks = ln_ceil_div(range, call.chunk_tokens);
    if (call.plan.chunks_most == 1) {
        call.chunks = 1;
        call.chunk_tokens = INT64_MAX / 2;
    }
    ln_parallel(team, attention->key_value_heads * call.plan.tiles * call.chunks, run_task, &call);
    if (call.chunks > 1) ln_parallel(team, tokens * attention->heads, merge_task, &call);
}
