/* Owns: exact attention: cutting it into tasks, the order of blocks in one, and merging.
 *
 * An item is a tile of query rows (some tokens x the heads that share one key-value head) against all keys that they
 * see, in blocks of LN_ATTEND_BLOCK keys by the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022, P033):
 *     m' = max(m, S),  l' = 2^(m - m') l + sum 2^(S - m'),  O' = 2^(m - m') O + 2^(S - m') V,  output = O / l,
 * with S = log2(e) (cap(scale Q K^T) + bias), so that the exponential is a power of two, and m renewed only where S
 * exceeds it by LN_ATTEND_SLACK (P265). The block's sight, asked of the mask, decides: nobody sees it: it is skipped;
 * all see it: no mask; else element by element.
 *
 * Where items are few (decoding), their blocks, all in one row, are cut into equal spans without regard to heads,
 * sequences and lengths (P184); what a span has of an item that goes on elsewhere is kept as (m, l, O) and merged in
 * ascending order. Items and spans depend on shapes and positions only, and a row's blocks not even on its item: that
 * is why any number of threads gives the same bits.
 *
 * Hidden scores are replaced, not multiplied; hidden values are multiplied by 0 only where they are finite: so nothing
 * that is not finite leaks out of what sees it. */
#include "mixer/attention.h"

#include <math.h>
#include <string.h>

#include "mixer/attention_inside.h"

enum {
    SPANS_MOST = 256,
    SPANS_LEAST = 16, /* allowed whatever partial rows take */
    SPAN_BLOCKS = 8,  /* least blocks in a span */
    PARTIAL_FLOATS = 1 << 18,
};

static const float LN2 = 0.693147181f;

/* ---- shapes ---- */

/* NULL: bf16 matrix units serve sequences of up to `tokens` queries. */
static const char *bf16_refused(const ln_kernels *kernels, const ln_attention *attention, int64_t tokens) {
    const int64_t group = attention->heads / attention->key_value_heads;
    if (!attention->bf16) return "float32 products were asked for";
    if (!kernels->attend.bf16.name) return "this processor has none";
    if (!(attention->scale > 0)) return "the scale is not positive";
    if (tokens * group < LN_BF16_ROWS) return "too few queries share a key-value head";
    return NULL;
}

/* Pages of this type can be packed for them. */
static bool bf16_packs(linnet_type type) {
    return type == LINNET_F32 || type == LINNET_BF16 || type == LINNET_F16 || type == LINNET_Q8_0;
}

static const ln_attention_way *way_of(const ln_kernels *kernels, const ln_attention *attention,
                                      const ln_attention_sequence *sequences, int64_t count) {
    int64_t tokens = 0;
    for (int64_t s = 0; s < count; s++) {
        int64_t layouts;
        const ln_page_layout *layout = ln_page_layouts(&sequences[s].view, &layouts);
        tokens = ln_max_i64(tokens, sequences[s].tokens);
        for (int64_t i = 0; i < layouts; i++)
            if (!bf16_packs(layout[i].key_type) || !bf16_packs(layout[i].value_type)) return &ln_attention_f32;
    }
    return bf16_refused(kernels, attention, tokens) ? &ln_attention_f32 : &ln_attention_bf16;
}

ln_attention_choice ln_attention_choose(const ln_kernels *kernels, const ln_attention *attention, int64_t tokens) {
    const char *refused = bf16_refused(kernels, attention, tokens);
    const ln_attention_way *way = refused ? &ln_attention_f32 : &ln_attention_bf16;
    return (ln_attention_choice){refused ? kernels->attend.name : kernels->attend.bf16.name, refused,
                                 refused ? LINNET_F32 : LINNET_BF16, way->tile_rows(kernels, attention)};
}

/* Floats of the two partial items of a span. */
static int64_t partial_floats(const ln_attention_call *call) {
    return 2 * call->tile_tokens * call->group * (call->attention->value_size + 2);
}

static int64_t spans_most(const ln_attention_call *call) {
    return ln_min_i64(SPANS_MOST, ln_max_i64(SPANS_LEAST, PARTIAL_FLOATS / partial_floats(call)));
}

/* Rows of a tile: whole tokens, as many as the way likes. */
static void set_rows(ln_attention_call *call, int64_t tokens) {
    const ln_attention *a = call->attention;
    call->group = a->heads / a->key_value_heads;
    call->tile_tokens = ln_max_i64(1, ln_min_i64(tokens, call->way->tile_rows(call->kernels, a) / call->group));
    const int64_t unit = ln_max_i64(call->way->row_unit, LN_ATTEND_LANES);
    call->rows = ln_ceil_div(call->tile_tokens * call->group, unit) * unit;
}

static void set_scratch(ln_attention_call *call) {
    const ln_attention *a = call->attention;
    const int64_t output = ln_depth_panels(a->value_size) * LN_ATTEND_STRIDE;
    const uint64_t rows = (uint64_t)(call->rows * (output + LN_ATTEND_LANES + 1));
    uint64_t scratch = call->way->scratch(call->kernels, a, call->rows);
    const uint64_t instead = ln_attention_f32.scratch(call->kernels, a, call->rows);
    if (instead > scratch) scratch = instead;
    call->worker_floats = ln_round_up(rows + scratch, 16);
}

static uint64_t table_bytes(int64_t count) {
    return ln_round_up((uint64_t)(count + 1 + SPANS_MOST + 1) * sizeof(int64_t), 64);
}

uint64_t ln_attention_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention,
                                int64_t sequences, int64_t tokens) {
    const ln_attention_way *const ways[] = {&ln_attention_f32, &ln_attention_bf16};
    uint64_t worker = 0, partial = PARTIAL_FLOATS;
    for (int i = 0; i < 1 + !bf16_refused(kernels, attention, tokens); i++) {
        ln_attention_call call = {.kernels = kernels, .attention = attention, .way = ways[i]};
        set_rows(&call, tokens);
        set_scratch(&call);
        const uint64_t floats = (uint64_t)(SPANS_LEAST * partial_floats(&call));
        if (call.worker_floats > worker) worker = call.worker_floats;
        if (floats > partial) partial = floats;
    }
    return table_bytes(sequences) + sizeof(float) * ((uint64_t)threads * worker + ln_round_up(partial, 16));
}

/* ---- items ---- */

static void find_item(const ln_attention_call *call, int64_t item, ln_attention_tile *tile) {
    const int64_t index = ln_find_i64(call->first_item, call->count, item);
    const int64_t heads = call->attention->key_value_heads, inside = item - call->first_item[index];
    const int64_t tiles = (call->first_item[index + 1] - call->first_item[index]) / heads;
    const ln_attention_sequence *sequence = &call->sequences[index];
    tile->sequence = sequence;
    tile->mask = call->attention->mask;
    tile->mask.key_begin = sequence->key_begin;
    tile->mask.query_begin = sequence->position;
    tile->mask.counts = sequence->counts;
    /* The tiles of a head one after the other: its keys may still be in the cache. Of a causal sequence the last tiles
     * see the most: first. */
    tile->head = inside / tiles;
    tile->token = (tiles - 1 - inside % tiles) * call->tile_tokens;
    tile->tokens = ln_min_i64(call->tile_tokens, sequence->tokens - tile->token);
    tile->position = sequence->position + tile->token;
    tile->rows = tile->tokens * call->group;
}

/* Blocks first .. end - 1 hold all keys that the item sees. */
static void item_blocks(const ln_attention_tile *tile, int64_t *first, int64_t *end) {
    const ln_mask_tile queries = ln_tile_queries(tile, 0, tile->tokens);
    ln_mask_range(&tile->mask, &queries, tile->sequence->keys, first, end);
    *first = *first / LN_ATTEND_BLOCK;
    *end = ln_max_i64(*first, ln_ceil_div(*end, LN_ATTEND_BLOCK));
}

static void count_items(ln_attention_call *call) {
    call->first_item[0] = 0;
    for (int64_t s = 0; s < call->count; s++) {
        const int64_t tiles = ln_ceil_div(call->sequences[s].tokens, call->tile_tokens);
        call->first_item[s + 1] = call->first_item[s] + tiles * call->attention->key_value_heads;
    }
    call->items = call->first_item[call->count];
}

static void cut_spans(ln_attention_call *call) {
    if (call->items == 0 || call->items >= SPANS_MOST) return;
    call->first_block[0] = 0;
    for (int64_t i = 0; i < call->items; i++) {
        ln_attention_tile tile = {.call = call};
        int64_t first, end;
        find_item(call, i, &tile);
        item_blocks(&tile, &first, &end);
        call->first_block[i + 1] = call->first_block[i] + ln_max_i64(1, end - first);
    }
    call->blocks = call->first_block[call->items];
    const int64_t spans = ln_min_i64(spans_most(call), call->blocks / SPAN_BLOCKS);
    if (spans > call->items) call->spans = spans;
}

static int64_t span_begin(const ln_attention_call *call, int64_t span) {
    return span * call->blocks / call->spans;
}
static int64_t span_of(const ln_attention_call *call, int64_t block) {
    return ((block + 1) * call->spans - 1) / call->blocks;
}

/* ---- rows ---- */

void ln_tile_adjust(const ln_attention_tile *tile, int64_t row, int64_t begin, int64_t end, ln_sight sight,
                    float *scores) {
    const ln_attention_call *call = tile->call;
    const int64_t group = call->group, token = row / group, head = tile->head * group + row % group;
    const float cap = call->attention->soft_cap;
    if (cap != 0) call->kernels->attend.cap(scores, end - begin, cap * LN_LOG2E);
    if (ln_bias_any(&tile->sequence->bias))
        ln_bias_add(&call->kernels->vector, &tile->sequence->bias, head, tile->token + token, tile->position + token,
                    begin, end - begin, scores);
    if (sight == LN_SEES_ALL) return;
    uint64_t bits[LN_MASK_WORDS];
    ln_mask_row(&tile->mask, head, tile->position + token, begin, end - begin, bits);
    for (int64_t i = 0; i < end - begin; i += LN_ATTEND_LANES) {
        const unsigned lanes = bits[i / 64] >> (i % 64) & 0xffff;
        if (lanes == 0xffff) continue;
        for (int64_t j = 0; j < ln_min_i64(LN_ATTEND_LANES, end - begin - i); j++)
            if (!(lanes >> j & 1)) scores[i + j] = -INFINITY;
    }
}

static float sum_of(const ln_attention_tile *tile, int64_t r) {
    float part[LN_ATTEND_LANES];
    memcpy(part, tile->sum + r * LN_ATTEND_LANES, sizeof part);
    for (int width = LN_ATTEND_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

/* A finished row: its sink joins, output = O / l, lse = ln 2 (m + log2 l). `values` is the row of O, packed, and is
 * changed. */
static void finish_row(const ln_attention_call *call, const ln_attention_sequence *sequence, int64_t token,
                       int64_t head, float maximum, float sum, float *values) {
    const int64_t size = call->attention->value_size, row = sequence->order ? sequence->order[token] : token;
    float factor = 1;
    if (call->attention->sinks) {
        const float sink = call->attention->sinks[head] * LN_LOG2E, most = fmaxf(maximum, sink);
        if (most != -INFINITY) {
            factor = exp2f(maximum - most);
            sum = sum * factor + exp2f(sink - most);
            maximum = most;
        }
    }
    float *to = sequence->output + row * sequence->output_stride + head * sequence->output_head_stride;
    call->kernels->vector.scale(values, sum == 0 ? 0 : factor / sum, size);
    memcpy(to, values, (size_t)size * sizeof *to);
    if (sequence->log_sum_exp)
        sequence->log_sum_exp[row * call->attention->heads + head] = sum == 0 ? -INFINITY : LN2 * maximum + logf(sum);
}

static void gather_row(const ln_attention_tile *tile, int64_t r, float *to) {
    const int64_t size = tile->call->attention->value_size;
    for (int64_t at = 0; at < size; at += LN_DEPTH)
        memcpy(to + at, ln_tile_output(tile, r, at / LN_PANEL), (size_t)ln_min_i64(LN_DEPTH, size - at) * sizeof *to);
}

static void finish_tile(const ln_attention_tile *tile) {
    const int64_t group = tile->call->group;
    const bool whole = tile->call->attention->value_size <= LN_DEPTH;
    float gathered[LN_HEAD_MOST];
    for (int64_t r = 0; r < tile->rows; r++) {
        float *row = whole ? ln_tile_output(tile, r, 0) : gathered;
        if (!whole) gather_row(tile, r, row);
        finish_row(tile->call, tile->sequence, tile->token + r / group, tile->head * group + r % group,
                   tile->maximum[r], sum_of(tile, r), row);
    }
}

/* ---- partial rows: of each span, those of the item that began before it, and of the item that goes on after it ----
 */

static float *partial_of(const ln_attention_call *call, int64_t span, bool began_before, int64_t row) {
    const int64_t size = call->attention->value_size + 2;
    return call->partial + (2 * span + !began_before) * call->tile_tokens * call->group * size + row * size;
}

static void keep_partial(const ln_attention_tile *tile, int64_t span, bool began_before) {
    for (int64_t r = 0; r < tile->rows; r++) {
        float *to = partial_of(tile->call, span, began_before, r);
        to[0] = tile->maximum[r];
        to[1] = sum_of(tile, r);
        gather_row(tile, r, to + 2);
    }
}

/* A row from its parts: O = sum 2^(m_c - m) O_c, l = sum 2^(m_c - m) l_c. */
static void merge_row(const ln_attention_tile *tile, int64_t item, int64_t r, int64_t first, int64_t last) {
    const ln_attention_call *call = tile->call;
    const int64_t size = call->attention->value_size, begin = call->first_block[item];
    float row[LN_HEAD_MOST] = {0}, most = -INFINITY, sum = 0;
    for (int64_t s = first; s <= last; s++) most = fmaxf(most, partial_of(call, s, begin < span_begin(call, s), r)[0]);
    const float shift = most == -INFINITY ? 0 : most;
    for (int64_t s = first; s <= last; s++) {
        const float *from = partial_of(call, s, begin < span_begin(call, s), r);
        const float factor = exp2f(from[0] - shift);
        sum += factor * from[1];
        for (int64_t i = 0; i < size; i++) row[i] += factor * from[2 + i];
    }
    finish_row(call, tile->sequence, tile->token + r / call->group, tile->head * call->group + r % call->group, most,
               sum, row);
}

static void merge_task(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_attention_call *call = argument;
    const int64_t item = task / call->rows, r = task % call->rows;
    const int64_t first = span_of(call, call->first_block[item]), last = span_of(call, call->first_block[item + 1] - 1);
    if (first == last) return;
    ln_attention_tile tile = {.call = call};
    find_item(call, item, &tile);
    if (r < tile.rows) merge_row(&tile, item, r, first, last);
}

/* ---- tasks ---- */

static void start_tile(ln_attention_tile *tile, const ln_attention_way *way) {
    const int64_t rows = ln_ceil_div(tile->rows, way->row_unit) * way->row_unit;
    const int64_t columns = ln_ceil_div(tile->call->attention->value_size, LN_ATTEND_LANES) * LN_ATTEND_LANES;
    const int64_t panels = ln_depth_panels(columns);
    tile->way = way;
    way->load(tile);
    for (int64_t r = 0; r < rows; r++) {
        tile->maximum[r] = -INFINITY;
        memset(tile->sum + r * LN_ATTEND_LANES, 0, LN_ATTEND_LANES * sizeof(float));
        for (int64_t p = 0; p < panels; p++)
            memset(tile->output + r * tile->output_stride + p * tile->output_panel, 0,
                   (size_t)ln_min_i64(LN_DEPTH, columns - p * LN_DEPTH) * sizeof(float));
    }
}

static void open_tile(const ln_attention_call *call, int worker, int64_t item, ln_attention_tile *tile) {
    const int64_t panels = ln_depth_panels(call->attention->value_size);
    *tile = (ln_attention_tile){.call = call, .padded_rows = call->rows};
    tile->output = call->scratch + (uint64_t)worker * call->worker_floats;
    tile->sum = tile->output + panels * call->rows * LN_ATTEND_STRIDE;
    tile->maximum = tile->sum + call->rows * LN_ATTEND_LANES;
    tile->scratch = tile->maximum + call->rows;
    find_item(call, item, tile);
    tile->adjusts = call->attention->soft_cap != 0 || ln_bias_any(&tile->sequence->bias);
    start_tile(tile, call->way);
}

/* Blocks from .. to - 1 of those that the item sees; false: the tile's way cannot. */
static bool try_blocks(ln_attention_tile *tile, int64_t from, int64_t to) {
    const ln_mask_tile queries = ln_tile_queries(tile, 0, tile->tokens);
    int64_t first, end;
    ln_mask_range(&tile->mask, &queries, tile->sequence->keys, &first, &end);
    for (int64_t block = from, next; block < to; block = next) {
        const int64_t key = ln_max_i64(block * LN_ATTEND_BLOCK, first / LN_PAGE_TOKENS * LN_PAGE_TOKENS);
        int64_t key_end = ln_min_i64((block + 1) * LN_ATTEND_BLOCK, end);
        next = block + 1;
        if (key >= key_end) continue;
        if (ln_attention_interrupted(tile->call->attention)) return true;
        const ln_sight sight = ln_mask_block(&tile->mask, &queries, key, key_end - key);
        const int64_t last = sight == LN_SEES_ALL && !ln_tile_adjusts(tile) ? block + tile->way->blocks : next;
        for (int64_t more; next < ln_min_i64(to, last) && key_end < end; next++, key_end = more) {
            more = ln_min_i64((next + 1) * LN_ATTEND_BLOCK, end);
            if (ln_mask_block(&tile->mask, &queries, key_end, more - key_end) != LN_SEES_ALL) break;
        }
        if (sight != LN_SEES_NONE && !tile->way->step(tile, key, key_end, sight)) return false;
    }
    return true;
}

static void run_blocks(ln_attention_tile *tile, int64_t from, int64_t to) {
    if (try_blocks(tile, from, to)) return;
    start_tile(tile, &ln_attention_f32);
    try_blocks(tile, from, to);
}

static void run_item(void *argument, int64_t item, int worker) {
    ln_attention_tile tile;
    int64_t first, end;
    open_tile(argument, worker, item, &tile);
    item_blocks(&tile, &first, &end);
    run_blocks(&tile, first, end);
    finish_tile(&tile);
}

static void run_span(void *argument, int64_t span, int worker) {
    const ln_attention_call *call = argument;
    int64_t at = span_begin(call, span);
    const int64_t stop = span_begin(call, span + 1);
    int64_t item = 0;
    while (call->first_block[item + 1] <= at) item++;
    for (; at < stop; item++) {
        const int64_t begin = call->first_block[item], end = call->first_block[item + 1];
        const int64_t until = ln_min_i64(end, stop);
        ln_attention_tile tile;
        int64_t first, last;
        open_tile(call, worker, item, &tile);
        item_blocks(&tile, &first, &last);
        run_blocks(&tile, first + at - begin, ln_min_i64(last, first + until - begin));
        if (begin >= span_begin(call, span) && end <= stop)
            finish_tile(&tile);
        else
            keep_partial(&tile, span, begin < span_begin(call, span));
        at = until;
    }
}

void ln_attention_run(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                      const ln_attention_sequence *sequences, int64_t count, void *workspace) {
    ln_attention_call call = {.kernels = kernels,
                              .attention = attention,
                              .way = way_of(kernels, attention, sequences, count),
                              .sequences = sequences,
                              .count = count,
                              .first_item = workspace};
    int64_t tokens = 0;
    for (int64_t s = 0; s < count; s++) tokens = ln_max_i64(tokens, sequences[s].tokens);
    if (tokens <= 0) return;
    set_rows(&call, tokens);
    set_scratch(&call);
    call.first_block = call.first_item + count + 1;
    call.partial = (float *)(void *)((unsigned char *)workspace + table_bytes(count));
    count_items(&call);
    cut_spans(&call);
    call.scratch = call.partial + ln_round_up((uint64_t)(call.spans * partial_floats(&call)), 16);
    ln_parallel(team, call.spans ? call.spans : call.items, call.spans ? run_span : run_item, &call);
    if (call.spans) ln_parallel(team, call.items * call.rows, merge_task, &call);
}
