/* A memory under a policy and what was fed to it: keys, values and queries by a seed a token. */
#ifndef LN_TESTS_RAGGED_H
#define LN_TESTS_RAGGED_H

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "counter.h"
#include "kernel/page.h"
#include "memory/pages_inside.h"
#include "memory/ragged_inside.h"

enum {
    LAYERS = 3,
    HEADS = 4,
    KV = 2,
    KEY = 32,
    VALUE = 24,
    CAPACITY = 6000,
    PIECE = 70,
    OUTPUT = LAYERS * PIECE * HEADS * VALUE
};

typedef struct world {
    linnet_context *context;
    ln_kernels kernels;
    counter count;
    uint64_t before;
    void *workspace;
    uint64_t workspace_bytes;
} world;

static inline void open_world(world *w, int threads) {
    memset(w, 0, sizeof *w);
    w->context = counted_context(&w->count, threads);
    ln_kernels_choose(w->context->cpu, &w->kernels);
    w->before = linnet_memory_used(w->context);
}

static inline void close_world(world *w) {
    free(w->workspace);
    linnet_context_close(w->context);
}

static inline ln_attention layer_attention(int64_t window) {
    return (ln_attention){.exact = true,
                          .heads = HEADS,
                          .key_value_heads = KV,
                          .key_size = KEY,
                          .value_size = VALUE,
                          .scale = 0.6f,
                          .mask = {.causal = true, .window = window}};
}

/* Layer 1 slides. policy NULL: none. bytes 0: as few as possible. */
static const int64_t test_windows[LAYERS] = {0, 40, 0};

static inline ln_memory_shape test_shape(world *w, const ln_policy *policy, int64_t capacity, uint64_t bytes) {
    ln_memory_shape shape = {.layers = LAYERS,
                             .key_value_heads = KV,
                             .key_size = KEY,
                             .value_size = VALUE,
                             .window = test_windows,
                             .precision = LINNET_F16,
                             .capacity = capacity,
                             .piece = PIECE,
                             .policy = policy,
                             .lane_bytes = bytes,
                             .heads = HEADS,
                             .scale = 0.6f};
    ln_ragged_shape lanes;
    if (ln_memory_lanes(&shape, &lanes) && !bytes &&
        ln_ragged_least(w->context, &lanes, &shape.lane_bytes) != LINNET_OK)
        abort();
    return shape;
}

static inline void reserve_workspace(world *w, const ln_memory_shape *shape) {
    ln_ragged_shape lanes;
    const ln_attention attention = layer_attention(0);
    const int threads = ln_team_size(w->context->team);
    uint64_t bytes = ln_attention_workspace(&w->kernels, threads, &attention, KV, PIECE);
    if (ln_memory_lanes(shape, &lanes)) bytes += ln_ragged_workspace(&w->kernels, threads, &lanes);
    if (bytes <= w->workspace_bytes) return;
    free(w->workspace);
    w->workspace_bytes = ln_round_up(bytes, 64);
    w->workspace = aligned_alloc(64, w->workspace_bytes);
}

static inline linnet_status open_memory(world *w, const ln_memory_shape *shape, ln_memory **memory) {
    reserve_workspace(w, shape);
    return ln_memory_open(w->context, shape, memory);
}

/* -1 .. 1 by seed, layer, head and index. */
static inline float test_number(uint32_t seed, int64_t layer, int64_t head, int64_t i) {
    uint64_t x = seed * 0x100000001b3u + (uint64_t)(layer * 64 + head) * 1000003u + (uint64_t)i;
    return (float)(ln_random_mix(&x) >> 40) * 0x1p-23f - 1;
}

/* Row [heads, size] of a token; what: 0 keys, 1 values, 2 queries. */
static inline void test_row(uint32_t seed, int64_t layer, int what, int64_t heads, int64_t size, float *to) {
    for (int64_t i = 0; i < heads * size; i++)
        to[i] = test_number(seed + (uint32_t)what * 0x9e3779b9u, layer, i / size, i % size);
}

typedef struct piece_rows {
    float keys[PIECE * KV * KEY], values[PIECE * KV * VALUE], query[PIECE * HEADS * KEY];
} piece_rows;

/* Is shown each layer after the piece was appended, and after it was attended (output then, else NULL). */
typedef void (*feed_watch)(void *watcher, ln_memory *memory, int64_t layer, int64_t tokens, const float *query,
                           const float *output);

/* Feeds tokens of these seeds; output [LAYERS][tokens][HEADS * VALUE]. */
static inline linnet_status feed_seeds(world *w, ln_memory *memory, const uint32_t *seeds, int64_t tokens,
                                       float *output, feed_watch watch, void *watcher) {
    static piece_rows rows;
    for (int64_t l = 0; l < LAYERS; l++) {
        for (int64_t t = 0; t < tokens; t++) {
            test_row(seeds[t], l, 0, KV, KEY, rows.keys + t * KV * KEY);
            test_row(seeds[t], l, 1, KV, VALUE, rows.values + t * KV * VALUE);
            test_row(seeds[t], l, 2, HEADS, KEY, rows.query + t * HEADS * KEY);
        }
        ln_memory_append(memory, w->context->team, l, tokens, rows.keys, KV * KEY, rows.values, KV * VALUE);
        if (watch) watch(watcher, memory, l, tokens, rows.query, NULL);
        const ln_attention attention = layer_attention(test_windows[l]);
        float *to = output + l * tokens * HEADS * VALUE;
        memset(w->workspace, 0xa5, w->workspace_bytes);
        const ln_ragged_call call = {.kernels = &w->kernels,
                                     .team = w->context->team,
                                     .attention = &attention,
                                     .tokens = tokens,
                                     .query = rows.query,
                                     .query_stride = HEADS * KEY,
                                     .query_head_stride = KEY,
                                     .output = to,
                                     .output_stride = HEADS * VALUE,
                                     .output_head_stride = VALUE,
                                     .workspace = w->workspace};
        const linnet_status status = ln_memory_attend(memory, l, &call);
        if (status != LINNET_OK) return status;
        if (watch) watch(watcher, memory, l, tokens, rows.query, to);
    }
    ln_memory_commit(memory, tokens);
    return LINNET_OK;
}

/* ---- a scorer whose every word is known ---- */

/* The score is one of few levels by position, layer and head, and if `flips`, its negative after every other
 * piece; it keeps
 * the number of scorings that each token saw, times 1 + position % 7, and in the state how often it was asked. */
static inline float test_score(int64_t position, int64_t layer, int64_t head, int64_t asked) {
    uint64_t x = (uint64_t)(position * 64 + layer * 8 + head);
    const float score = (float)(ln_random_mix(&x) % 23);
    return asked % 2 ? -score : score;
}

static inline void score_by(ln_scene *s, float *score, bool flips) {
    int64_t *asked = s->state;
    ++*asked;
    for (int64_t p = 0; p < s->pages; p++)
        for (int64_t i = p * LN_PAGE_TOKENS; i < p * LN_PAGE_TOKENS + s->counts[p]; i++) {
            s->kept[i] += (float)(1 + s->positions[i] % 7);
            if (score) score[i] = test_score(s->positions[i], s->layer, s->head, flips ? *asked : 0);
        }
}
static void score_fixed(ln_scene *s, float *score) {
    score_by(s, score, false);
}
static void score_flipping(ln_scene *s, float *score) {
    score_by(s, score, true);
}
static uint64_t test_state(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    (void)shape;
    return sizeof(int64_t);
}

static const ln_scorer test_fixed = {.name = "fixed", .keeps = 1, .state = test_state, .score = score_fixed};
static const ln_scorer test_flipping = {.name = "flipping", .keeps = 1, .state = test_state, .score = score_flipping};

/* A policy as text; "fixed" and "flipping" in front of it name the scorers above. */
static inline ln_policy test_policy(linnet_context *context, const char *text) {
    ln_policy policy;
    const ln_scorer *scorer = NULL;
    if (!strncmp(text, "fixed,", 6)) scorer = &test_fixed;
    if (!strncmp(text, "flipping,", 9)) scorer = &test_flipping;
    if (scorer) text += strlen(scorer->name) + 1;
    if (ln_policy_parse(context, text, &policy) != LINNET_OK) abort();
    if (scorer) policy.scorer = scorer;
    return policy;
}

#endif
