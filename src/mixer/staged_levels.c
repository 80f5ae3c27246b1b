/* Owns: log-linear attention: a token reads its past in buckets of a Fenwick tree, each with a weight of its own,
 *
 *     out[i] = scale sum over j <= i of level[i][l(i, j)] (q[i] . k[j]) e^(G[i] - G[j]) v[j]
 *
 * l = 0 for j = i; bucket l >= 1 has the 2^(l-1) tokens before the last multiple of 2^(l-1), if this is odd. So in
 * blocks of 2^l tokens level l is written by the first half and read by the second: it is a linear attention of its own
 * whose state ends with the block. Its keys of second halves and queries of first ones are zero. Levels beyond `slots`
 * are forgotten: with 1 + log2 of the longest text none are.
 *
 * The state is that of each level, l = 1 .., and the position modulo the largest block. */
#include <math.h>
#include <string.h>

#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE, DECAY, LEVEL };
enum { Q, K, V, G, L, O, QL, KL, GL, OL, SLOTS, NOW, DO, DQ, DK, DV, DG, DL, DQL, DKL, DVL, DGL };
enum { LEVELS, POSITION };

static void blocks(const linnet_mixer_settings *s, ln_block *b) {
    b[LEVELS] = (ln_block){s->slots - 1, s->key_size * s->value_size};
    b[POSITION] = (ln_block){1, 1};
}

static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    const int64_t rows = tokens * s->heads;
    floats[Q] = floats[K] = floats[QL] = floats[KL] = rows * s->key_size;
    floats[V] = floats[O] = floats[OL] = rows * s->value_size;
    floats[G] = floats[GL] = rows;
    floats[L] = rows * s->slots;
    floats[SLOTS] = s->sequences * (int64_t)(sizeof(int64_t) / sizeof(float));
    floats[NOW] = 1;
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DQ] = floats[DK] = floats[DQL] = floats[DKL] = rows * s->key_size;
    floats[DV] = floats[DVL] = floats[DO] = rows * s->value_size;
    floats[DG] = floats[DGL] = rows;
    floats[DL] = rows * s->slots;
}

static const char *base(const linnet_mixer_settings *s, int i, linnet_mixer_settings *b) {
    b->key_heads = s->heads;
    b->scale = s->scale;
    return i == 0 ? "simple_gla" : NULL;
}

/* ---- a level ---- */

static int64_t position(const ln_stage_span *span, int64_t i) {
    const ln_stage *st = span->stage;
    const float begin = st->state[POSITION][span->sequence * st->s->heads + span->head];
    return llrintf(begin) + span->step - st->first[span->sequence] + i;
}

typedef struct part {
    bool begins, reads;
} part;
static part part_of(const ln_stage_span *span, int64_t i) {
    const int64_t level = (int64_t)span->stage->room[NOW][0], in = position(span, i) & (((int64_t)1 << level) - 1);
    return (part){in == 0, in >> (level - 1) != 0};
}

static void level_rows(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->key_size, level = (int64_t)span->stage->room[NOW][0];
    const float *q = ln_stage_at(span, Q, n), *k = ln_stage_at(span, K, n), *g = ln_stage_at(span, G, 1),
                *weights = ln_stage_at(span, L, s->slots);
    float *ql = ln_stage_at(span, QL, n), *kl = ln_stage_at(span, KL, n), *gl = ln_stage_at(span, GL, 1);
    for (int64_t i = 0; i < span->count; i++) {
        const part p = part_of(span, i);
        const float weight = weights[i * s->slots + level];
        gl[i] = p.begins ? -INFINITY : g[i];
        for (int64_t c = i * n; c < (i + 1) * n; c++) {
            ql[c] = p.reads ? weight * q[c] : 0;
            kl[c] = p.reads ? 0 : k[c];
        }
    }
}

static void level_gradients(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->key_size, m = s->value_size, level = (int64_t)span->stage->room[NOW][0];
    const float *q = ln_stage_at(span, Q, n), *weights = ln_stage_at(span, L, s->slots),
                *dql = ln_stage_at(span, DQL, n), *dkl = ln_stage_at(span, DKL, n), *dvl = ln_stage_at(span, DVL, m),
                *dgl = ln_stage_at(span, DGL, 1);
    float *dq = ln_stage_at(span, DQ, n), *dk = ln_stage_at(span, DK, n), *dv = ln_stage_at(span, DV, m),
          *dg = ln_stage_at(span, DG, 1), *dl = ln_stage_at(span, DL, s->slots);
    for (int64_t i = 0; i < span->count; i++) {
        const part p = part_of(span, i);
        const float weight = weights[i * s->slots + level];
        float along = 0;
        if (!p.begins) dg[i] += dgl[i];
        for (int64_t c = i * n; c < (i + 1) * n; c++)
            if (p.reads) {
                dq[c] += weight * dql[c];
                along += dql[c] * q[c];
            } else {
                dk[c] += dkl[c];
            }
        dl[i * s->slots + level] = along;
        for (int64_t c = i * m; c < (i + 1) * m && !p.reads; c++) dv[c] += dvl[c];
    }
}

static ln_stage_run run_of(const ln_stage *st, int64_t level) {
    const int64_t keys = st->s->key_size, values = st->s->value_size;
    int64_t *slots = (int64_t *)(void *)st->room[SLOTS];
    st->room[NOW][0] = (float)level;
    for (int64_t q = 0; q < st->s->sequences; q++) slots[q] = q * (st->s->slots - 1) + level - 1;
    return (ln_stage_run){
        .block = LEVELS,
        .tensors = {.input = {ln_stage_tensor(st, QL, keys), ln_stage_tensor(st, KL, keys),
                              ln_stage_tensor(st, V, values), ln_stage_tensor(st, GL, 1)},
                    .output = ln_stage_tensor(st, OL, values),
                    .state_slots = slots,
                    .output_gradient = ln_stage_tensor(st, DO, values),
                    .input_gradient = {ln_stage_tensor(st, DQL, keys), ln_stage_tensor(st, DKL, keys),
                                       ln_stage_tensor(st, DVL, values), ln_stage_tensor(st, DGL, 1)}}};
}

/* ---- the token itself ---- */

static float own_score(const ln_stage_span *span, int64_t i) {
    const int64_t n = span->stage->s->key_size;
    const float *q = ln_stage_at(span, Q, n) + i * n, *k = ln_stage_at(span, K, n) + i * n;
    float sum = 0;
    for (int64_t c = 0; c < n; c++) sum += q[c] * k[c];
    return sum * span->stage->s->scale;
}

static void own_rows(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t m = s->value_size;
    const float *v = ln_stage_at(span, V, m);
    float *o = ln_stage_at(span, O, m);
    for (int64_t i = 0; i < span->count; i++) {
        const float weight = ln_stage_at(span, L, s->slots)[i * s->slots] * own_score(span, i);
        for (int64_t c = i * m; c < (i + 1) * m; c++) o[c] = weight * v[c];
    }
}

static void own_gradients(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->key_size, m = s->value_size;
    for (int64_t i = 0; i < span->count; i++) {
        const float *v = ln_stage_at(span, V, m) + i * m, *of = ln_stage_at(span, DO, m) + i * m,
                    *q = ln_stage_at(span, Q, n) + i * n, *k = ln_stage_at(span, K, n) + i * n;
        float *dq = ln_stage_at(span, DQ, n) + i * n, *dk = ln_stage_at(span, DK, n) + i * n,
              *dv = ln_stage_at(span, DV, m) + i * m, along = 0;
        const float weight = ln_stage_at(span, L, s->slots)[i * s->slots], score = own_score(span, i);
        for (int64_t c = 0; c < m; c++) {
            along += of[c] * v[c];
            dv[c] = weight * score * of[c];
        }
        for (int64_t c = 0; c < n; c++) {
            dq[c] = s->scale * weight * along * k[c];
            dk[c] = s->scale * weight * along * q[c];
        }
        ln_stage_at(span, DG, 1)[i] = 0;
        ln_stage_at(span, DL, s->slots)[i * s->slots] = along * score;
    }
}

/* ---- all of it ---- */

static void pack(ln_stage *st) {
    ln_stage_pack_values(st, QUERY, Q);
    ln_stage_pack_values(st, KEY, K);
    ln_stage_pack(st, VALUE, V);
    ln_stage_pack(st, DECAY, G);
    ln_stage_pack(st, LEVEL, L);
}

static void forward(ln_stage *st) {
    const linnet_mixer_settings *s = st->s;
    pack(st);
    ln_stage_rows(st, s->heads, own_rows);
    for (int64_t level = 1; level < s->slots; level++) {
        const ln_stage_run run = run_of(st, level);
        ln_stage_rows(st, s->heads, level_rows);
        ln_stage_forward(st, &run);
        st->call->kernels->vector.add(st->room[O], st->room[OL], st->tokens * s->heads * s->value_size);
    }
    ln_stage_put(st, O);
    const int64_t block = (int64_t)1 << (s->slots - 1);
    for (int64_t q = 0; q < s->sequences; q++)
        for (int64_t h = 0; h < s->heads; h++) {
            float *at = &st->state[POSITION][q * s->heads + h];
            *at = (float)((llrintf(*at) + st->offsets[q + 1] - st->offsets[q]) & (block - 1));
        }
}

static void backward(ln_stage *st) {
    const linnet_mixer_settings *s = st->s;
    pack(st);
    ln_stage_take(st, DO);
    ln_stage_rows(st, s->heads, own_gradients);
    for (int64_t level = 1; level < s->slots; level++) {
        const ln_stage_run run = run_of(st, level);
        ln_stage_rows(st, s->heads, level_rows);
        ln_stage_backward(st, &run);
        ln_stage_rows(st, s->heads, level_gradients);
    }
    memset(st->state_gradient[POSITION], 0, (size_t)(s->sequences * s->heads) * sizeof(float));
    ln_stage_add_values(st, QUERY, DQ);
    ln_stage_add_values(st, KEY, DK);
    ln_stage_add(st, VALUE, DV);
    ln_stage_add(st, DECAY, DG);
    ln_stage_add(st, LEVEL, DL);
}

const ln_staged ln_staged_levels = {
    .blocks = blocks, .rooms = rooms, .base = base, .forward = forward, .backward = backward};

double ln_levels_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double keys = (double)s->key_size, values = (double)s->value_size, levels = (double)s->slots - 1;
    if (form == LINNET_MIXER_STEP) return 5 * levels * keys * values;
    return (form == LINNET_MIXER_FORWARD ? 1 : 3) * levels * (4 * keys * values + 128 * (keys + values));
}
