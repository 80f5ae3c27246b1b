/* A memory under a policy, fed with random rows that depend on layer, position and head alone. */
#ifndef LN_TESTS_FAR_H
#define LN_TESTS_FAR_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "kernel/page.h"
#include "memory/ragged_inside.h"

enum { FAR_LAYERS = 3, FAR_HEADS = 4, FAR_LANES = 2, FAR_KEY = 64, FAR_VALUE = 40, FAR_PIECE = 96, FAR_TEXT = 2400 };

typedef struct far {
    linnet_context *context;
    ln_kernels kernels;
    ln_policy policy;
    ln_ragged_shape shape;
    ln_ragged *ragged;
    void *workspace;
    float output[FAR_LAYERS][FAR_PIECE][FAR_HEADS * FAR_VALUE]; /* of the last piece */
} far;

/* bytes 0: what the policy needs at least, plus `more`. */
static inline linnet_status far_try(far *f, int threads, const char *policy, uint64_t bytes, uint64_t more,
                                    const char *folder) {
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    memset(f, 0, sizeof *f);
    if (linnet_context_open(&settings, &f->context) != LINNET_OK) abort();
    ln_kernels_choose(f->context->cpu, &f->kernels);
    linnet_status status = ln_policy_parse(f->context, policy, &f->policy);
    f->shape = (ln_ragged_shape){.layers = FAR_LAYERS,
                                 .heads = FAR_HEADS,
                                 .key_value_heads = FAR_LANES,
                                 .key_size = FAR_KEY,
                                 .value_size = FAR_VALUE,
                                 .scale = 0.125F,
                                 .policy = &f->policy,
                                 .bytes = bytes,
                                 .capacity = FAR_TEXT,
                                 .piece = FAR_PIECE,
                                 .folder = folder};
    if (status == LINNET_OK && !bytes) status = ln_ragged_least(f->context, &f->shape, &f->shape.bytes);
    f->shape.bytes += more;
    if (status == LINNET_OK) status = ln_ragged_open(f->context, &f->shape, &f->ragged);
    if (status != LINNET_OK) return status;
    const uint64_t room = ln_ragged_workspace(&f->kernels, ln_team_size(f->context->team), &f->shape);
    f->workspace = aligned_alloc(64, ln_round_up(room, 64));
    return f->workspace ? status : LINNET_ERROR_MEMORY;
}

static inline void far_close(far *f) {
    ln_ragged_close(f->ragged);
    free(f->workspace);
    linnet_context_close(f->context);
}

static inline void far_row(float *to, int64_t n, int64_t what, int64_t layer, int64_t position) {
    ln_random random;
    ln_random_seed(&random, (uint64_t)((what * 8 + layer) * 100000 + position));
    for (int64_t i = 0; i < n; i++) to[i] = (float)ln_random_normal(&random);
}

/* The next tokens. Stops where the memory says so. */
static inline linnet_status far_feed(far *f, ln_ragged *ragged, int64_t tokens) {
    static float key[FAR_PIECE * FAR_LANES * FAR_KEY], value[FAR_PIECE * FAR_LANES * FAR_VALUE],
        query[FAR_PIECE * FAR_HEADS * FAR_KEY];
    const int64_t first = ragged->position;
    const ln_attention attention = {.heads = FAR_HEADS,
                                    .key_value_heads = FAR_LANES,
                                    .key_size = FAR_KEY,
                                    .value_size = FAR_VALUE,
                                    .scale = f->shape.scale,
                                    .mask = {.causal = true}};
    for (int64_t l = 0; l < FAR_LAYERS; l++) {
        for (int64_t t = 0; t < tokens; t++) {
            far_row(key + t * FAR_LANES * FAR_KEY, FAR_LANES * FAR_KEY, 0, l, first + t);
            far_row(value + t * FAR_LANES * FAR_VALUE, FAR_LANES * FAR_VALUE, 1, l, first + t);
            far_row(query + t * FAR_HEADS * FAR_KEY, FAR_HEADS * FAR_KEY, 2, l, first + t);
        }
        ln_ragged_append(ragged, f->context->team, l, tokens, key, FAR_LANES * FAR_KEY, value, FAR_LANES * FAR_VALUE);
        const ln_ragged_call call = {.kernels = &f->kernels,
                                     .team = f->context->team,
                                     .attention = &attention,
                                     .tokens = tokens,
                                     .query = query,
                                     .query_stride = FAR_HEADS * FAR_KEY,
                                     .query_head_stride = FAR_KEY,
                                     .output = f->output[l][0],
                                     .output_stride = FAR_HEADS * FAR_VALUE,
                                     .output_head_stride = FAR_VALUE,
                                     .workspace = f->workspace};
        const linnet_status status = ln_ragged_attend(ragged, l, &call);
        if (status != LINNET_OK) return status;
    }
    ln_ragged_commit(ragged, tokens);
    return LINNET_OK;
}

/* Pieces of a prompt up to a position. */
static inline linnet_status far_read(far *f, ln_ragged *ragged, int64_t position) {
    linnet_status status = LINNET_OK;
    while (status == LINNET_OK && ragged->position < position)
        status = far_feed(f, ragged, ln_min_i64(FAR_PIECE, position - ragged->position));
    return status;
}

/* The largest difference of the last piece's outputs. */
static inline float far_difference(const far *a, const far *b, int64_t tokens) {
    float most = 0;
    for (int l = 0; l < FAR_LAYERS; l++)
        for (int64_t t = 0; t < tokens; t++)
            for (int i = 0; i < FAR_HEADS * FAR_VALUE; i++)
                most = fmaxf(most, fabsf(a->output[l][t][i] - b->output[l][t][i]));
    return most;
}

#endif
