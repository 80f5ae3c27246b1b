/* Owns: the plan of the public attention operator: checking and copying what was described, the workspace, what a run
 * costs, and the plan as text.
 *
 * Cost is counted by asking the mask what the tile loop will ask it. Words moved: a tile of queries is read and its
 * output written once, the keys and values of each block that it visits are read once, and once for all tiles of a
 * head where the cache holds all keys of it:
 *     words = sum over tiles of rows (key_size + value_size) + visited keys (key_size + value_size),
 * which for N queries and keys, in tiles as large as a cache of M words allows, is the known law (Saha and Ye 2024,
 * P007): proportional to N^2 d^2 / M where M >= d^2; below, N^2 d / sqrt(M) by square tiles of the products.
 * tests/test_attention_traffic.c watches the tile loop move them. */
#include "mixer/attention_plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "mixer/attention_gradient.h"
#include "mixer/attention_inside.h"

linnet_attention_settings linnet_attention_settings_default(void) {
    return (linnet_attention_settings){.size = sizeof(linnet_attention_settings), .type = LINNET_F32, .sequences = 1};
}

/* ---- opening ---- */

/* A copy of count elements, or NULL where there are none; *failed where memory ran out. */
static void *copy(linnet_context *context, const void *from, int64_t count, size_t size, bool *failed) {
    if (!from || count <= 0) return NULL;
    void *to = ln_allocate(context, (uint64_t)count, size, "attention plan");
    if (!to)
        *failed = true;
    else
        memcpy(to, from, (size_t)count * size);
    return to;
}

static linnet_status check_shape(linnet_context *context, linnet_attention_settings *s) {
    enum { HEADS_MOST = 1 << 20, SEQUENCES_MOST = 1 << 24 };
    if (s->key_value_heads == 0) s->key_value_heads = s->heads;
    if (s->value_size == 0) s->value_size = s->key_size;
    if (s->sequences == 0) s->sequences = 1;
    if (s->scale == 0 && s->key_size > 0) s->scale = 1 / sqrtf((float)s->key_size);
    if (s->type != LINNET_F32 && s->type != LINNET_BF16)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention takes f32 or bf16 tensors, not %s",
                       linnet_type_name(s->type) ? linnet_type_name(s->type) : "an unknown type");
    if (s->heads < 1 || s->heads > HEADS_MOST || s->key_value_heads < 1 || s->heads % s->key_value_heads)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%lld heads cannot share %lld key-value heads evenly",
                       (long long)s->heads, (long long)s->key_value_heads);
    ln_page_layout layout;
    if (!ln_page_layout_of(LINNET_F32, LINNET_F32, s->key_size, s->value_size, &layout))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "heads of %lld keys and %lld values: each must be a multiple of 8 from 8 to %d",
                       (long long)s->key_size, (long long)s->value_size, LN_HEAD_MOST);
    if (s->sequences < 1 || s->sequences > SEQUENCES_MOST)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%lld sequences are outside 1 to %d", (long long)s->sequences,
                       SEQUENCES_MOST);
    if (!s->query_offsets)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "query_offsets is NULL: give the first token of each sequence, and the end");
    if (s->cache_capacity < 0 || s->cache_capacity > (int64_t)1 << 40)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "a cache_capacity of %lld tokens", (long long)s->cache_capacity);
    if (s->cache_capacity && s->backward)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "backward is not for attention over caches: set cache_capacity to 0");
    if (s->output != LINNET_F32)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the output of attention on this processor is f32, not %s",
                       linnet_type_name(s->output) ? linnet_type_name(s->output) : "an unknown type");
    if (!isfinite(s->scale) || !isfinite(s->soft_cap))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "scale and soft_cap must be finite numbers");
    return LINNET_OK;
}

/* No size of a workspace can overflow: each is at most some hundred times one of these. */
static linnet_status check_sizes(linnet_context *context, const linnet_attention_settings *s) {
    const int64_t most = (int64_t)1 << 48, row = s->key_size + s->value_size + s->rank;
    int64_t queries = s->query_offsets[s->sequences],
            keys = (s->key_offsets ? s->key_offsets : s->query_offsets)[s->sequences];
    /* Each sequence may begin a page. */
    if (queries <= most && keys <= most &&
        (s->cache_capacity == 0 || ln_multiply_i64(s->cache_capacity, s->sequences, &keys)) &&
        ln_multiply_i64(queries, s->heads * row, &queries) && queries <= most && keys <= most &&
        ln_multiply_i64(keys + LN_PAGE_TOKENS * s->sequences, s->key_value_heads * row, &keys) && keys <= most)
        return LINNET_OK;
    return ln_fail(
        context, LINNET_ERROR_ARGUMENT,
        "this attention has more than 2^48 numbers in its queries or keys: fewer tokens, heads or sequences");
}

static linnet_status copy_settings(linnet_attention_plan *plan) {
    linnet_attention_settings *s = &plan->settings;
    linnet_context *context = plan->context;
    bool failed = false;
    plan->sequences = s->sequences;
    plan->query_offsets = copy(context, s->query_offsets, s->sequences + 1, sizeof(int64_t), &failed);
    plan->key_offsets =
        copy(context, s->key_offsets ? s->key_offsets : s->query_offsets, s->sequences + 1, sizeof(int64_t), &failed);
    s->query_offsets = plan->query_offsets;
    s->key_offsets = plan->key_offsets;
    /* Cost is told for full caches. */
    for (int64_t i = 0; s->cache_capacity && plan->key_offsets && i <= s->sequences; i++)
        plan->key_offsets[i] = i * s->cache_capacity;
    s->document_offsets =
        copy(context, s->document_offsets, s->documents ? s->documents + 1 : 0, sizeof(int64_t), &failed);
    s->alibi = copy(context, s->alibi, s->heads, sizeof(float), &failed);
    if (s->blocks.query_tile) {
        const int64_t tiles = ln_ceil_div(plan->query_offsets ? plan->query_offsets[1] : 0, s->blocks.query_tile);
        const int64_t lists = s->blocks.per_head ? tiles * s->heads : tiles;
        const int64_t entries = s->blocks.offsets[lists];
        s->blocks.offsets = copy(context, s->blocks.offsets, lists + 1, sizeof(int64_t), &failed);
        s->blocks.tiles = copy(context, s->blocks.tiles, entries, sizeof(int32_t), &failed);
    }
    return failed ? LINNET_ERROR_MEMORY : LINNET_OK;
}

static void describe(linnet_attention_plan *plan) {
    const linnet_attention_settings *s = &plan->settings;
    plan->attention = (ln_attention){
        .heads = s->heads,
        .key_value_heads = s->key_value_heads,
        .key_size = s->key_size,
        .value_size = s->value_size,
        .scale = s->scale,
        .soft_cap = s->soft_cap,
        .bf16 = s->type == LINNET_BF16 && !s->exact,
        .exact = s->exact,
        .interrupted = &plan->context->interrupted,
        .mask = {.causal = s->causal,
                 .window = s->window,
                 .prefix = s->prefix,
                 .documents = s->documents,
                 .document_offsets = s->document_offsets,
                 .blocks = s->blocks,
                 .query_tiles = s->blocks.query_tile ? ln_ceil_div(ln_plan_queries(plan, 0), s->blocks.query_tile) : 0,
                 .grid = s->neighbourhood.axes ? &plan->grid : NULL}};
}

static linnet_status lay_out(linnet_attention_plan *plan) {
    const linnet_attention_settings *s = &plan->settings;
    plan->first_page = ln_allocate(plan->context, (uint64_t)(plan->sequences + 1), sizeof(int64_t), "attention plan");
    if (!plan->first_page) return LINNET_ERROR_MEMORY;
    int64_t factors = 0;
    plan->first_page[0] = 0;
    for (int64_t i = 0; i < plan->sequences; i++) {
        plan->first_page[i + 1] = plan->first_page[i] + ln_ceil_div(ln_plan_keys(plan, i), LN_PAGE_TOKENS);
        factors += ln_plan_factor_stride(ln_plan_keys(plan, i));
        plan->longest = ln_max_i64(plan->longest, ln_plan_queries(plan, i));
    }
    const ln_attention_choice choice = ln_attention_choose(&plan->kernels, &plan->attention, plan->longest);
    ln_page_layout_of(choice.packed, choice.packed, s->key_size, s->value_size, &plan->layout);
    const uint64_t pages = (uint64_t)plan->first_page[plan->sequences];
    const uint64_t bytes = pages * plan->layout.bytes * (uint64_t)s->key_value_heads;
    const uint64_t run = ln_attention_workspace(&plan->kernels, ln_team_size(plan->context->team), &plan->attention,
                                                plan->sequences, plan->longest);
    const uint64_t sequences = ln_round_up((uint64_t)plan->sequences * sizeof(ln_attention_sequence), 64);
    plan->slots_at = sequences;
    plan->factors_at = plan->slots_at + ln_round_up(pages * sizeof(void *), 64);
    plan->pages_at =
        plan->factors_at + ln_round_up((uint64_t)(s->rank * s->key_value_heads * factors) * sizeof(float), 64);
    plan->operands_at = plan->pages_at + bytes;
    plan->run_at = plan->operands_at;
    for (int64_t i = 0; !choice.refused && i < plan->sequences; i++)
        plan->run_at += ln_attention_operand_bytes(&plan->kernels, &plan->attention, ln_plan_keys(plan, i));
    plan->forward_bytes = plan->run_at + run;
    plan->cached_bytes = sequences + run;
    return s->backward ? ln_plan_backward_bytes(plan, &plan->backward_bytes) : LINNET_OK;
}

linnet_status linnet_attention_plan_open(linnet_context *context, const linnet_attention_settings *settings,
                                         linnet_attention_plan **plan) {
    *plan = NULL;
    if (!settings) return ln_fail(context, LINNET_ERROR_ARGUMENT, "attention needs settings");
    linnet_attention_settings settled = linnet_attention_settings_default();
    memcpy(&settled, settings, settings->size < sizeof settled ? settings->size : sizeof settled);
    linnet_status status = check_shape(context, &settled);
    if (status == LINNET_OK) status = ln_mask_check(context, &settled);
    if (status == LINNET_OK) status = check_sizes(context, &settled);
    if (status != LINNET_OK) return status;
    linnet_attention_plan *made = ln_allocate_zero(context, 1, sizeof *made, "attention plan");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->settings = settled;
    ln_kernels_choose(context->cpu, &made->kernels);
    status = copy_settings(made);
    if (status == LINNET_OK && settled.neighbourhood.axes)
        status = ln_grid_open(context, &settled.neighbourhood, &made->grid);
    if (status == LINNET_OK) {
        describe(made);
        status = lay_out(made);
    }
    if (status != LINNET_OK) {
        linnet_attention_plan_close(made);
        return status;
    }
    *plan = made;
    return LINNET_OK;
}

void linnet_attention_plan_close(linnet_attention_plan *plan) {
    if (!plan) return;
    linnet_context *context = plan->context;
    ln_grid_close(context, &plan->grid);
    ln_release(context, plan->first_page);
    ln_release(context, plan->query_offsets);
    ln_release(context, plan->key_offsets);
    ln_release(context, (void *)(uintptr_t)plan->settings.document_offsets);
    ln_release(context, (void *)(uintptr_t)plan->settings.alibi);
    if (plan->settings.blocks.query_tile) {
        ln_release(context, (void *)(uintptr_t)plan->settings.blocks.offsets);
        ln_release(context, (void *)(uintptr_t)plan->settings.blocks.tiles);
    }
    ln_release(context, plan);
}

uint64_t linnet_attention_workspace(const linnet_attention_plan *plan) {
    uint64_t most = plan->settings.cache_capacity ? plan->cached_bytes : plan->forward_bytes;
    if (plan->settings.backward && plan->backward_bytes > most) most = plan->backward_bytes;
    return most;
}

/* ---- cost ---- */

/* Of one key-value head's tile: pairs seen, and blocks. */
static void count_tile(const linnet_attention_plan *plan, int64_t sequence, const ln_mask_tile *queries,
                       linnet_attention_cost *cost) {
    const int64_t keys = ln_plan_keys(plan, sequence);
    const double words = (double)(plan->settings.key_size + plan->settings.value_size);
    const double rows = (double)(queries->heads * queries->tokens);
    ln_mask mask = plan->attention.mask;
    mask.key_begin = plan->key_offsets[sequence];
    mask.query_begin = keys - ln_plan_queries(plan, sequence);
    int64_t first, end;
    ln_mask_range(&mask, queries, keys, &first, &end);
    cost->tiles += ln_ceil_div(keys, LN_ATTEND_BLOCK);
    for (int64_t block = first / LN_ATTEND_BLOCK * LN_ATTEND_BLOCK; block < end; block += LN_ATTEND_BLOCK) {
        const int64_t key = ln_max_i64(block, first / LN_PAGE_TOKENS * LN_PAGE_TOKENS);
        const int64_t count = ln_min_i64(block + LN_ATTEND_BLOCK, end) - key;
        const ln_sight sight = ln_mask_block(&mask, queries, key, count);
        if (sight == LN_SEES_NONE) continue;
        cost->visited++;
        cost->partial += sight == LN_SEES_SOME;
        cost->visited_flops += 2 * words * rows * (double)count;
        cost->slow_words += words * (double)count;
        int64_t seen = sight == LN_SEES_ALL ? (int64_t)rows * count : 0;
        for (int64_t t = 0; sight == LN_SEES_SOME && t < queries->tokens; t++)
            for (int64_t h = 0; h < queries->heads; h++) {
                uint64_t bits[LN_MASK_WORDS];
                ln_mask_row(&mask, queries->head + h, queries->position + t, key, count, bits);
                for (int i = 0; i < LN_MASK_WORDS; i++) seen += __builtin_popcountll(bits[i]);
            }
        cost->flops += 2 * words * (double)seen;
    }
}

/* The law for one head of n queries and m keys of size d, cache of M words. */
static double law(double n, double m, double d, double cache) {
    return cache >= d * d ? n * m * d * d / cache : n * m * d / sqrt(cache);
}

linnet_status linnet_attention_plan_cost(const linnet_attention_plan *plan, linnet_attention_cost *result) {
    const linnet_attention_settings *s = &plan->settings;
    linnet_attention_cost cost = {.size = sizeof cost, .passes = 1, .key_tile = LN_ATTEND_BLOCK};
    const int64_t group = s->heads / s->key_value_heads;
    const ln_attention_choice choice = ln_attention_choose(&plan->kernels, &plan->attention, plan->longest);
    const double d = 0.5 * (double)(s->key_size + s->value_size), row_words = 2 * d + LN_ATTEND_BLOCK;
    cost.query_tile = ln_max_i64(1, choice.tile_rows / group);
    cost.cache_words = (double)plan->kernels.cache_bytes / (choice.packed == LINNET_BF16 ? 2 : 4);
    for (int64_t i = 0; i < plan->sequences; i++) {
        const int64_t queries = ln_plan_queries(plan, i), keys = ln_plan_keys(plan, i);
        double key_words = 0;
        for (int64_t t = 0; t < queries; t += cost.query_tile) {
            if (ln_interrupted(plan->context)) return ln_fail(plan->context, LINNET_INTERRUPTED, "interrupted");
            /* Heads differ only where each has its own lists. */
            const int64_t different = s->blocks.per_head ? s->key_value_heads : 1;
            linnet_attention_cost one = {0};
            for (int64_t h = 0; h < different; h++)
                count_tile(
                    plan, i,
                    &(ln_mask_tile){h * group, group, keys - queries + t, ln_min_i64(cost.query_tile, queries - t)},
                    &one);
            const int64_t times = s->key_value_heads / different;
            cost.flops += (double)times * one.flops;
            cost.visited_flops += (double)times * one.visited_flops;
            key_words += (double)times * one.slow_words;
            cost.tiles += times * one.tiles;
            cost.visited += times * one.visited;
            cost.partial += times * one.partial;
            cost.tasks += s->key_value_heads;
        }
        /* The tiles of a head follow each other: keys that stay in the cache are read once. */
        const double head_words = 2 * d * (double)keys, tile_words = (double)(group * cost.query_tile) * row_words;
        if (head_words + tile_words <= cost.cache_words)
            key_words = fmin(key_words, (double)s->key_value_heads * head_words);
        cost.slow_words += key_words + (double)(s->heads * queries) * 2 * d;
        cost.bound_words += (double)s->heads * law((double)queries, (double)keys, d, cost.cache_words);
    }
    cost.exponentials = cost.visited_flops / (4 * d);
    const size_t bytes = result->size < sizeof cost ? result->size : sizeof cost;
    memcpy(result, &cost, bytes);
    return LINNET_OK;
}

/* ---- text ---- */

typedef struct writer {
    char *text;
    size_t bytes, used;
} writer;

LINNET_PRINTF(2, 3) static void put(writer *w, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const size_t left = w->used < w->bytes ? w->bytes - w->used : 0;
    const int n = vsnprintf(left ? w->text + w->used : NULL, left, format, arguments);
    va_end(arguments);
    if (n > 0) w->used += (size_t)n;
}

size_t linnet_attention_plan_text(const linnet_attention_plan *plan, char *text, size_t bytes) {
    const linnet_attention_settings *s = &plan->settings;
    writer w = {text, bytes, 0};
    linnet_attention_cost cost = {.size = sizeof cost};
    const ln_attention_choice choice = ln_attention_choose(&plan->kernels, &plan->attention, plan->longest);
    const linnet_status counted = linnet_attention_plan_cost(plan, &cost);
    put(&w, "attention %s, %lld heads on %lld, sizes %lld/%lld, %lld sequences, %lld queries, %lld keys\n",
        linnet_type_name(s->type), (long long)s->heads, (long long)s->key_value_heads, (long long)s->key_size,
        (long long)s->value_size, (long long)plan->sequences, (long long)plan->query_offsets[plan->sequences],
        (long long)plan->key_offsets[plan->sequences]);
    put(&w, "kernel    %s, keys and values packed as %s\n", choice.kernel, linnet_type_name(choice.packed));
    if (choice.refused) put(&w, "refused   bf16 matrix units: %s\n", choice.refused);
    if (s->backward) put(&w, "backward  %s\n", ln_attention_gradient_kernel(&plan->kernels, &plan->attention, s->type));
    put(&w, "workspace %.1f MiB\n", (double)linnet_attention_workspace(plan) / (1 << 20));
    if (counted != LINNET_OK) return w.used + 1;
    put(&w, "tiles     %lld queries x %lld keys: %lld in all, %lld visited, %lld of them under a mask by element\n",
        (long long)cost.query_tile, (long long)cost.key_tile, (long long)cost.tiles, (long long)cost.visited,
        (long long)cost.partial);
    put(&w, "work      %.4g GFLOP, %.4g visited, %.4g G exponentials, %lld tasks\n", 1e-9 * cost.flops,
        1e-9 * cost.visited_flops, 1e-9 * cost.exponentials, (long long)cost.tasks);
    put(&w, "traffic   %.4g M words, %d pass over keys; the law for %.4g K words of cache: %.4g M (%s)\n",
        1e-6 * cost.slow_words, cost.passes, 1e-3 * cost.cache_words, 1e-6 * cost.bound_words,
        cost.cache_words >= 0.25 * (double)(s->key_size + s->value_size) * (double)(s->key_size + s->value_size)
            ? "N^2 d^2 / M"
            : "N^2 d / sqrt M");
    return w.used + 1;
}
