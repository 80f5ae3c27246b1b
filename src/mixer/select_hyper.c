/* Owns: HyperAttention (P016; linnet/approximate.h).
 *
 * A region is a range of queries that sees a range of keys without a mask: all by all, or, causal, for each halving the
 * second half over the first. Within it queries (of each head) and keys are sorted by the Gray rank of their sign bits,
 * stably, and gathered. Its keys are cut into blocks of `bucket`, its queries into as many equal parts; a part is one
 * sequence of the tile loop over its block. Of the region's n keys m are drawn by their place in the sorted order; a
 * second call runs each part over them with a bias of log(n / m), or -inf for those in the part's own block: so each
 * pair outside the blocks has expected weight 1 and none counts twice. Regions of one depth are disjoint and run in
 * one call. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "base/random.h"
#include "mixer/select.h"

enum { ROWS = 64, SAMPLES_MOST = 1 << 20 };

typedef struct region {
    int64_t query, queries, key, keys; /* first token, how many; `key` is a multiple of a page */
    int64_t depth;
} region;

typedef struct shape {
    int64_t count, leaves, depths; /* regions, exact ends of the recursion */
    int64_t most_parts;            /* of the regions of one depth */
    region *regions;               /* by depth */
    int64_t *leaf;                 /* [leaves + 1] first tokens */
} shape;

typedef struct arrays {
    float *planes;                    /* [key_size][32] */
    uint16_t *query_rank, *key_rank;  /* [head][token] */
    int32_t *query_order, *key_order; /* [head][place]: tokens, sorted within their region */
    int32_t *histogram;               /* [worker][2^hash_bits] */
    unsigned char *query;             /* [head][place][key_size] of the plan's type */
    ln_paged pages, sample_pages;
    int32_t *samples; /* [key-value head][page-aligned place]: places of the keys drawn */
    int32_t *sample_tokens;
    float *bias;               /* [part][head][samples] */
    float *output[2], *lse[2]; /* of blocks, of samples: [head][place][value_size], [place][head] */
    float *total;              /* [token][head] */
    ln_attention_sequence *sequences;
} arrays;

/* ---- shape ---- */

static int64_t parts_of(const linnet_approximate_settings *s, const region *r) {
    return ln_ceil_div(r->keys, s->bucket);
}
static int64_t element_of(const linnet_approximate_settings *s) {
    return s->type == LINNET_BF16 ? 2 : 4;
}
static int64_t sample_room(const linnet_approximate_settings *s) {
    return ln_ceil_div(ln_min_i64(s->samples, s->tokens), LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
}
static int64_t samples_of(const linnet_approximate_settings *s, const region *r) {
    return ln_min_i64(s->samples, r->keys);
}

/* Halves begin .. end - 1 down to leaves. regions and leaf NULL: counts them; else records the regions of depth `only`,
 * or, -1, the leaves. */
static void halve(const linnet_approximate_settings *s, int64_t begin, int64_t end, int64_t depth, int64_t only,
                  shape *x) {
    if (end - begin <= s->leaf) {
        if (x->leaf && only < 0) x->leaf[x->leaves++] = begin;
        if (!x->leaf) x->leaves++;
        return;
    }
    const int64_t middle = begin + ln_ceil_div((end - begin + 1) / 2, LN_PAGE_TOKENS) * LN_PAGE_TOKENS;
    if (x->regions && depth == only)
        x->regions[x->count++] = (region){middle, end - middle, begin, middle - begin, depth};
    if (!x->regions) x->count++;
    if (!x->regions) x->depths = ln_max_i64(x->depths, depth + 1);
    halve(s, begin, middle, depth + 1, only, x);
    halve(s, middle, end, depth + 1, only, x);
}

static linnet_status open_shape(linnet_approximate_plan *plan) {
    const linnet_approximate_settings *s = &plan->s;
    shape counted = {0};
    if (s->causal)
        halve(s, 0, s->tokens, 0, 0, &counted);
    else
        counted = (shape){.count = s->tokens > 0, .depths = s->tokens > 0};
    const uint64_t head = ln_round_up(sizeof(shape), 64), regions = (uint64_t)counted.count * sizeof(region);
    shape *x = ln_allocate_zero(plan->context, 1, head + regions + (uint64_t)(counted.leaves + 1) * sizeof(int64_t),
                                "halves of HyperAttention");
    if (!x) return LINNET_ERROR_MEMORY;
    plan->own = x;
    x->regions = (region *)(void *)((unsigned char *)x + head);
    x->leaf = (int64_t *)(void *)((unsigned char *)x->regions + regions);
    for (int64_t only = -1; s->causal && only < counted.depths; only++) halve(s, 0, s->tokens, 0, only, x);
    if (!s->causal && s->tokens > 0) x->regions[x->count++] = (region){0, s->tokens, 0, s->tokens, 0};
    x->leaf[x->leaves] = s->tokens;
    x->depths = counted.depths;
    int64_t parts = 0;
    for (int64_t i = 0; i < x->count; i++) {
        if (i > 0 && x->regions[i].depth != x->regions[i - 1].depth) parts = 0;
        parts += parts_of(s, &x->regions[i]);
        x->most_parts = ln_max_i64(x->most_parts, parts);
    }
    return LINNET_OK;
}

static void carve(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    const uint64_t tokens = (uint64_t)s->tokens, heads = (uint64_t)s->heads, shared = (uint64_t)s->key_value_heads,
                   value = (uint64_t)s->value_size * sizeof(float),
                   workers = (uint64_t)ln_team_size(call->plan->context->team);
    const int64_t room = sample_room(s);
    const uint64_t samples = (uint64_t)(h->count * room);
    arrays x = {.planes = ln_carve(carver, (uint64_t)s->key_size * LN_PANEL, sizeof(float)),
                .query_rank = ln_carve(carver, tokens * heads, sizeof(uint16_t)),
                .key_rank = ln_carve(carver, tokens * shared, sizeof(uint16_t)),
                .query_order = ln_carve(carver, tokens * heads, sizeof(int32_t)),
                .key_order = ln_carve(carver, tokens * shared, sizeof(int32_t)),
                .histogram = ln_carve(carver, workers << s->hash_bits, sizeof(int32_t)),
                .query = ln_carve(carver, tokens * heads, (uint64_t)(s->key_size * element_of(s))),
                .pages = ln_paged_carve(call, carver, &call->plan->layout, s->tokens),
                .sample_pages = ln_paged_carve(call, carver, &call->plan->layout, h->count * room),
                .samples = ln_carve(carver, samples * shared, sizeof(int32_t)),
                .sample_tokens = ln_carve(carver, samples * shared, sizeof(int32_t)),
                .bias = ln_carve(carver, (uint64_t)(h->most_parts * room) * heads, sizeof(float)),
                .total = ln_carve(carver, tokens * heads, sizeof(float)),
                .sequences = ln_carve(carver, (uint64_t)ln_max_i64(h->most_parts, h->leaves) + 1,
                                      sizeof(ln_attention_sequence))};
    for (int i = 0; i < 2; i++) {
        x.output[i] = ln_carve(carver, tokens * heads, value);
        x.lse[i] = ln_carve(carver, tokens * heads, sizeof(float));
    }
    arrays *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = x;
    call->own = own;
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    (void)plan;
    return 2 * ROWS * LN_SELECT_STRIDE * sizeof(float);
}

/* ---- hashes ---- */

static void draw_planes(const ln_select_call *call, const arrays *x) {
    ln_random random;
    ln_random_seed(&random, call->s->seed);
    memset(x->planes, 0, (size_t)(call->s->key_size * LN_PANEL) * sizeof(float));
    for (int bit = 0; bit < call->s->hash_bits; bit++)
        for (int64_t i = 0; i < call->s->key_size; i++)
            x->planes[i * LN_PANEL + bit] = (float)ln_random_normal(&random);
}

/* The place of a code in Gray's order, where neighbours differ in one bit. */
static unsigned gray_rank(unsigned code) {
    for (unsigned shift = 1; shift < 16; shift *= 2) code ^= code >> shift;
    return code;
}

/* Ranks of ROWS tokens of one head; tasks: query heads first, then key-value heads. */
static void hash_rows(void *argument, int64_t task, int worker) {
    const ln_select_call *call = argument;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t begin = task / (s->heads + s->key_value_heads) * ROWS, head = task % (s->heads + s->key_value_heads),
                  rows = ln_min_i64(ROWS, s->tokens - begin);
    const bool is_query = head < s->heads;
    const int64_t own = is_query ? head : head - s->heads;
    float *from = ln_select_scratch(call, worker), *to = from + ROWS * LN_SELECT_STRIDE;
    for (int64_t r = 0; r < rows; r++)
        memcpy(from + r * LN_SELECT_STRIDE,
               is_query ? ln_select_query(call, own, begin + r) : ln_select_key(call, own, begin + r),
               (size_t)s->key_size * sizeof *from);
    ln_select_product(call, x->planes, s->key_size, from, rows, to, false);
    uint16_t *rank = (is_query ? x->query_rank : x->key_rank) + own * s->tokens + begin;
    for (int64_t r = 0; r < rows; r++) {
        unsigned code = 0;
        for (int bit = 0; bit < s->hash_bits; bit++) code |= (unsigned)(to[r * LN_SELECT_STRIDE + bit] >= 0) << bit;
        rank[r] = (uint16_t)gray_rank(code);
    }
}

/* Stable counting sort of tokens begin .. begin + count - 1. */
static void sort_tokens(const uint16_t *rank, int64_t begin, int64_t count, int bits, int32_t *histogram,
                        int32_t *order) {
    memset(histogram, 0, ((size_t)1 << bits) * sizeof *histogram);
    for (int64_t i = 0; i < count; i++) histogram[rank[begin + i]]++;
    int32_t before = 0;
    for (int64_t i = 0; i < (int64_t)1 << bits; i++) {
        const int32_t n = histogram[i];
        histogram[i] = before;
        before += n;
    }
    for (int64_t i = 0; i < count; i++) order[begin + histogram[rank[begin + i]]++] = (int32_t)(begin + i);
}

/* ---- the regions of one depth ---- */

typedef struct level {
    ln_select_call *call;
    const region *regions;
    int64_t count, first; /* first: index among all regions */
} level;

/* Distinct places of the sorted keys, ascending: each key still needed is taken with chance needed / left. */
static void draw_samples(const ln_select_call *call, const region *r, int64_t index, int64_t head) {
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    const int64_t room = sample_room(s), at = (head * h->count + index) * room;
    ln_random random;
    ln_random_seed(&random, s->seed + 0x9e3779b97f4a7c15u * (uint64_t)(1 + index * s->key_value_heads + head));
    int64_t needed = samples_of(s, r);
    for (int64_t place = 0, taken = 0; needed > 0; place++) {
        if ((int64_t)ln_random_below(&random, (uint64_t)(r->keys - place)) >= needed) continue;
        x->samples[at + taken] = (int32_t)place;
        x->sample_tokens[at + taken++] = x->key_order[head * s->tokens + r->key + place];
        needed--;
    }
}

/* Sorts and gathers queries of a head, or sorts keys of a head and draws samples of them. */
static void sort_region(void *argument, int64_t task, int worker) {
    const level *l = argument;
    const ln_select_call *call = l->call;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t all = s->heads + s->key_value_heads, head = task % all, index = task / all;
    const region *r = &l->regions[index];
    int32_t *histogram = x->histogram + ((int64_t)worker << s->hash_bits);
    if (head >= s->heads) {
        const int64_t at = (head - s->heads) * s->tokens;
        sort_tokens(x->key_rank + at, r->key, r->keys, s->hash_bits, histogram, x->key_order + at);
        draw_samples(call, r, l->first + index, head - s->heads);
        return;
    }
    int32_t *order = x->query_order + head * s->tokens;
    sort_tokens(x->query_rank + head * s->tokens, r->query, r->queries, s->hash_bits, histogram, order);
    const size_t bytes = (size_t)(s->key_size * element_of(s));
    for (int64_t i = r->query; i < r->query + r->queries; i++)
        memcpy(x->query + (uint64_t)(head * s->tokens + i) * bytes, ln_row_at(&call->query_rows, order[i], head),
               bytes);
}

static void pack_keys(const level *l) {
    ln_select_call *call = l->call;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    const int64_t room = sample_room(s);
    for (int64_t i = 0; i < l->count; i++) {
        const region *r = &l->regions[i];
        ln_select_pack(call, &x->pages, r->key, &call->key_rows, &call->value_rows, r->keys, x->key_order + r->key,
                       s->tokens);
        ln_select_pack(call, &x->sample_pages, (l->first + i) * room, &call->key_rows, &call->value_rows,
                       samples_of(s, r), x->sample_tokens + (l->first + i) * room, h->count * room);
    }
}

/* log(n / m) for the samples outside the part's block. */
static void fill_bias(const ln_select_call *call, const region *r, int64_t index, int64_t part, float *bias) {
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    const int64_t room = sample_room(s), count = samples_of(s, r);
    const float weight = (float)log((double)r->keys / (double)count);
    for (int64_t head = 0; head < s->heads; head++) {
        const int32_t *samples = x->samples + (head / call->plan->group * h->count + index) * room;
        for (int64_t i = 0; i < count; i++) bias[head * room + i] = samples[i] / s->bucket == part ? -INFINITY : weight;
    }
}

/* Which: 0 the blocks, 1 the samples. */
static int64_t make_parts(const level *l, int which) {
    ln_select_call *call = l->call;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t room = sample_room(s);
    int64_t made = 0;
    for (int64_t i = 0; i < l->count; i++) {
        const region *r = &l->regions[i];
        const int64_t parts = parts_of(s, r);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t begin = r->query + part * r->queries / parts,
                          end = r->query + (part + 1) * r->queries / parts,
                          keys = which ? samples_of(s, r) : ln_min_i64(s->bucket, r->keys - part * s->bucket);
            const int64_t at = which ? (l->first + i) * room : r->key + part * s->bucket;
            ln_attention_sequence sequence = {
                .view = ln_select_view(call, which ? &x->sample_pages : &x->pages, at, keys),
                .keys = keys,
                .tokens = end - begin,
                .query_type = s->type,
                .query = x->query + (uint64_t)(begin * s->key_size * element_of(s)),
                .output = x->output[which] + begin * s->value_size,
                .query_stride = s->key_size,
                .query_head_stride = s->tokens * s->key_size,
                .output_stride = s->value_size,
                .output_head_stride = s->tokens * s->value_size,
                .log_sum_exp = x->lse[which] + begin * s->heads,
                .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
            };
            if (which) {
                float *bias = x->bias + made * s->heads * room;
                fill_bias(call, r, l->first + i, part, bias);
                sequence.bias.dense = bias;
                sequence.bias.dense_head_stride = room;
            }
            x->sequences[made++] = sequence;
            atomic_fetch_add(which ? &call->scored : &call->pairs, s->heads * (end - begin) * keys);
        }
    }
    return made;
}

/* Rows of one head and one region go home. */
static void merge_region(void *argument, int64_t task, int worker) {
    (void)worker;
    const level *l = argument;
    const ln_select_call *call = l->call;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t head = task % s->heads;
    const region *r = &l->regions[task / s->heads];
    for (int64_t i = r->query; i < r->query + r->queries; i++) {
        const int64_t token = x->query_order[head * s->tokens + i], row = token * s->heads + head;
        float *to = ln_row_to(&call->output_rows, token, head), nothing;
        const int64_t from = (head * s->tokens + i) * s->value_size;
        for (int which = 0; which < 2; which++)
            ln_select_merge(to, &x->total[row], x->output[which] + from, x->lse[which][i * s->heads + head],
                            s->value_size);
        ln_select_merge(&nothing, &call->visited[row], NULL, x->lse[0][i * s->heads + head], 0);
    }
}

static void run_level(const level *l) {
    ln_select_call *call = l->call;
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    void *argument = (void *)(uintptr_t)l;
    ln_parallel(call->team, l->count * (s->heads + s->key_value_heads), sort_region, argument);
    pack_keys(l);
    for (int which = 0; which < 2; which++) {
        const int64_t parts = make_parts(l, which);
        ln_select_attend(call, &(ln_mask){0}, x->sequences, parts);
    }
    ln_parallel(call->team, l->count * s->heads, merge_region, argument);
}

/* ---- leaves ---- */

static void run_leaves(ln_select_call *call) {
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    for (int64_t i = 0; i < h->leaves; i++) {
        const int64_t begin = h->leaf[i], tokens = h->leaf[i + 1] - begin;
        x->sequences[i] = (ln_attention_sequence){
            .view = ln_select_view(call, &call->all, begin, tokens),
            .keys = tokens,
            .tokens = tokens,
            .query_type = s->type,
            .query = ln_row_at(&call->query_rows, begin, 0),
            .output = ln_row_to(&call->output_rows, begin, 0),
            .query_stride = call->query_rows.token_stride,
            .query_head_stride = call->query_rows.head_stride,
            .output_stride = call->output_rows.token_stride,
            .output_head_stride = call->output_rows.head_stride,
            .log_sum_exp = call->visited + begin * s->heads,
            .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
        };
        atomic_fetch_add(&call->pairs, s->heads * (tokens * (tokens + 1) / 2));
    }
    ln_select_attend(call, &(ln_mask){.causal = true}, x->sequences, h->leaves);
}

static void clear_outputs(ln_select_call *call) {
    const linnet_approximate_settings *s = call->s;
    for (int64_t t = 0; t < s->tokens; t++)
        for (int64_t h = 0; h < s->heads; h++) {
            memset(ln_row_to(&call->output_rows, t, h), 0, (size_t)s->value_size * sizeof(float));
            call->visited[t * s->heads + h] = -INFINITY;
        }
}

static void run(ln_select_call *call) {
    const arrays *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const shape *h = call->plan->own;
    if (s->causal)
        run_leaves(call);
    else
        clear_outputs(call);
    memcpy(x->total, call->visited, (size_t)(s->tokens * s->heads) * sizeof(float));
    draw_planes(call, x);
    ln_parallel(call->team, ln_ceil_div(s->tokens, ROWS) * (s->heads + s->key_value_heads), hash_rows, call);
    for (int64_t first = 0; first < h->count;) {
        int64_t end = first;
        while (end < h->count && h->regions[end].depth == h->regions[first].depth) end++;
        run_level(&(level){call, h->regions + first, end - first, first});
        first = end;
    }
}

static const char *check(linnet_approximate_settings *s) {
    if (s->bucket < LN_PAGE_TOKENS || s->bucket % LN_PAGE_TOKENS != 0 || s->bucket > INT32_MAX)
        return "bucket must be a multiple of 32";
    if (s->samples < 0 || s->samples > SAMPLES_MOST || s->leaf < 2 * LN_PAGE_TOKENS)
        return "samples must be from 0 to 2^20, leaf at least 64";
    return s->hash_bits < 1 || s->hash_bits > 12 ? "hash_bits must be from 1 to 12" : NULL;
}

const ln_select_row ln_select_hyper = {.name = "hyper",
                                       .source = "Han et al. 2023",
                                       .needs = LN_SELECT_QUERY | LN_SELECT_KEY,
                                       .check = check,
                                       .open = open_shape,
                                       .carve = carve,
                                       .scratch = scratch,
                                       .run = run};
