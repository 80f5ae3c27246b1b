/* Owns: linear attention with many memories of which a token reads and writes few, chosen by a router:
 *
 *     MoM   weights = softmax of the chosen logits; a memory has keys and values of its own, and a decay of the head
 *     SSE   weights = softmax of all logits; memories share keys and values; keys are a softmax of their largest rows,
 *           are written by the weight, and decay by channel
 *     out = sum over the chosen of weight S_m^T q
 *
 * A memory that is not chosen stays as it is. So the tokens of a memory, gathered, are a sequence of their own: `base`
 * runs over sequences x memories, and work grows with the chosen, not with the memories. A shared memory (the first, if
 * asked for) is chosen always, with weight 1. Of equal logits the first is taken. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/threads.h"
#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE, DECAY, ROUTER };
enum { R, W, ENDS, PLACE, Q, K, V, G, O, GQ, GK, GV, GG, GO, DW, DR, GDO, DGQ, DGK, DGV, DGG, DQ, DK, DG };

enum { MOM, SSE };

static bool expands(const linnet_mixer_settings *s) {
    return ((const ln_staged *)ln_mixer_find(s->name)->core_row)->kind == SSE;
}
static bool shares(const linnet_mixer_settings *s) {
    return s->option[LN_MEMORIES_SHARED] != 0;
}
static int64_t most_chosen(const linnet_mixer_settings *s) {
    return (int64_t)s->option[LN_MEMORIES_CHOSEN] + shares(s);
}
/* Memories that have keys and values of their own; columns of decays. */
static int64_t own_memories(const linnet_mixer_settings *s) {
    return expands(s) ? 1 : s->slots;
}
static int64_t decays(const linnet_mixer_settings *s) {
    return expands(s) ? s->key_size : 1;
}

static void blocks(const linnet_mixer_settings *s, ln_block *b) {
    b[0] = (ln_block){s->slots, s->key_size * s->value_size};
}

static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    const int64_t wide = (int64_t)(sizeof(int64_t) / sizeof(float)), gathered = tokens * most_chosen(s);
    floats[R] = floats[W] = tokens * s->slots;
    floats[PLACE] = tokens * s->slots * wide;
    floats[ENDS] = (s->sequences * s->slots + 1) * wide;
    floats[Q] = tokens * s->key_heads * s->key_size;
    floats[K] = floats[Q] * own_memories(s);
    floats[O] = tokens * s->heads * s->value_size;
    floats[V] = floats[O] * own_memories(s);
    floats[G] = tokens * s->heads * decays(s);
    floats[GQ] = floats[GK] = gathered * s->key_heads * s->key_size;
    floats[GV] = floats[GO] = gathered * s->heads * s->value_size;
    floats[GG] = gathered * s->heads * decays(s);
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DW] = s->key_heads * tokens * s->slots;
    floats[DR] = floats[R];
    floats[GDO] = floats[DGV] = floats[GV];
    floats[DGQ] = floats[DGK] = floats[GQ];
    floats[DGG] = floats[GG];
    floats[DQ] = floats[Q];
    floats[DK] = floats[K];
    floats[DG] = floats[G];
}

static const char *base(const linnet_mixer_settings *s, int i, linnet_mixer_settings *b) {
    b->sequences = s->sequences * s->slots;
    b->scale = s->scale;
    return i > 0 ? NULL : expands(s) ? "gla" : "simple_gla";
}

/* ---- routes ---- */

static int64_t *ends_of(const ln_stage *st) {
    return (int64_t *)(void *)st->room[ENDS];
}
/* Where a token's rows of each memory are gathered; -1: not chosen. */
static int64_t *places(const ln_stage *st, int64_t at) {
    return (int64_t *)(void *)st->room[PLACE] + at * st->s->slots;
}

static void weigh(const linnet_mixer_settings *s, bool all, const float *logits, float *weights, int64_t *chosen) {
    const int64_t first = shares(s);
    float most = -INFINITY, sum = 0;
    for (int64_t m = 0; m < s->slots; m++) chosen[m] = m < first ? 0 : -1;
    for (int64_t n = 0; n < (int64_t)s->option[LN_MEMORIES_CHOSEN]; n++) {
        int64_t best = -1;
        for (int64_t m = first; m < s->slots; m++)
            if (chosen[m] < 0 && (best < 0 || logits[m] > logits[best])) best = m;
        chosen[best] = 0;
    }
    for (int64_t m = first; m < s->slots; m++)
        if (all || chosen[m] == 0) most = fmaxf(most, logits[m]);
    for (int64_t m = first; m < s->slots; m++) {
        weights[m] = all || chosen[m] == 0 ? expf(logits[m] - most) : 0;
        sum += weights[m];
    }
    for (int64_t m = first; m < s->slots; m++) weights[m] /= sum;
    if (first) weights[0] = 1;
}

static void weigh_rows(const ln_stage_span *span) {
    const int64_t n = span->stage->s->slots;
    const bool all = expands(span->stage->s);
    const float *logits = ln_stage_at(span, R, n);
    float *weights = ln_stage_at(span, W, n);
    for (int64_t i = 0; i < span->count; i++)
        weigh(span->stage->s, all, logits + i * n, weights + i * n, places(span->stage, span->at + i));
}

static void route(ln_stage *st) {
    const int64_t n = st->s->slots;
    int64_t *ends = ends_of(st), sum = 0;
    ln_stage_pack(st, ROUTER, R);
    ln_stage_rows(st, 1, weigh_rows);
    ends[0] = 0;
    for (int64_t q = 0; q < st->s->sequences; q++)
        for (int64_t m = 0; m < n; m++) {
            for (int64_t at = st->offsets[q]; at < st->offsets[q + 1]; at++)
                if (places(st, at)[m] == 0) places(st, at)[m] = sum++;
            ends[q * n + m + 1] = sum;
        }
}

/* The gradient of weights, of each head of keys, to that of logits. */
static void weigh_gradients(const ln_stage_span *span) {
    const ln_stage *st = span->stage;
    const linnet_mixer_settings *s = st->s;
    const int64_t n = s->slots, first = shares(s);
    for (int64_t at = span->at; at < span->at + span->count; at++) {
        const float *weights = st->room[W] + at * n;
        float *to = st->room[DR] + at * n, mean = 0;
        for (int64_t m = 0; m < n; m++) {
            to[m] = 0;
            for (int64_t h = 0; h < s->key_heads; h++) to[m] += st->room[DW][(h * st->tokens + at) * n + m];
            if (m >= first) mean += weights[m] * to[m];
        }
        for (int64_t m = 0; m < n; m++) to[m] = m < first ? 0 : weights[m] * (to[m] - mean);
    }
}

/* ---- keys that are a softmax of their largest rows ---- */

static void sharpen(float *k, int64_t n, int64_t most) {
    float top = -INFINITY, sum = 0, least = -INFINITY;
    for (int64_t c = 0; c < n; c++) top = fmaxf(top, k[c]);
    if (most > 0 && most < n) { /* the most-th largest: every round finds the next */
        float above = INFINITY;
        for (int64_t found = 0; found < most;) {
            least = -INFINITY;
            for (int64_t c = 0; c < n; c++)
                if (k[c] < above) least = fmaxf(least, k[c]);
            if (!(least > -INFINITY)) break; /* nothing else is a number */
            for (int64_t c = 0; c < n; c++) found += k[c] == least;
            above = least;
        }
    }
    for (int64_t c = 0; c < n; c++) sum += k[c] = k[c] >= least ? expf(k[c] - top) : 0;
    for (int64_t c = 0; c < n; c++) k[c] /= sum;
}

static void sharpen_rows(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    float *k = ln_stage_at(span, K, s->key_size);
    for (int64_t i = 0; i < span->count; i++)
        sharpen(k + i * s->key_size, s->key_size, (int64_t)s->option[LN_MEMORIES_ROWS]);
}
static void sharpen_gradients(const ln_stage_span *span) {
    const int64_t n = span->stage->s->key_size;
    const float *k = ln_stage_at(span, K, n);
    float *dk = ln_stage_at(span, DK, n);
    for (int64_t i = 0; i < span->count; i++, k += n, dk += n) {
        float mean = 0;
        for (int64_t c = 0; c < n; c++) mean += k[c] * dk[c];
        for (int64_t c = 0; c < n; c++) dk[c] = k[c] * (dk[c] - mean);
    }
}
static bool sharpens(const linnet_mixer_settings *s) {
    return expands(s) && s->option[LN_MEMORIES_ROWS] >= 0;
}

/* ---- gathering: spans are of heads of keys or of values ---- */

static float *gathered(const ln_stage_span *span, int room, int64_t place, int64_t columns) {
    const ln_stage *st = span->stage;
    return st->room[room] + (span->head * ends_of(st)[st->s->sequences * st->s->slots] + place) * columns;
}

static void add_times(float *y, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

static void gather_keys(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->key_size, own = own_memories(s);
    const bool expanding = expands(s);
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m];
            if (place < 0) continue;
            const float weight = span->stage->room[W][(span->at + i) * s->slots + m], written = expanding ? weight : 1;
            const float *q = ln_stage_at(span, Q, n) + i * n,
                        *k = ln_stage_at(span, K, own * n) + (i * own + (own > 1 ? m : 0)) * n;
            float *gq = gathered(span, GQ, place, n), *gk = gathered(span, GK, place, n);
            for (int64_t c = 0; c < n; c++) {
                gq[c] = weight * q[c];
                gk[c] = written * k[c];
            }
        }
}

static void scatter_keys(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->key_size, own = own_memories(s);
    const bool expanding = expands(s);
    memset(ln_stage_at(span, DQ, n), 0, (size_t)(span->count * n) * sizeof(float));
    memset(ln_stage_at(span, DK, own * n), 0, (size_t)(span->count * own * n) * sizeof(float));
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m], key = (i * own + (own > 1 ? m : 0)) * n;
            float *dw = ln_stage_at(span, DW, s->slots) + i * s->slots + m;
            *dw = 0;
            if (place < 0) continue;
            const float weight = span->stage->room[W][(span->at + i) * s->slots + m], written = expanding ? weight : 1;
            const float *q = ln_stage_at(span, Q, n) + i * n, *k = ln_stage_at(span, K, own * n) + key,
                        *dgq = gathered(span, DGQ, place, n), *dgk = gathered(span, DGK, place, n);
            add_times(ln_stage_at(span, DQ, n) + i * n, weight, dgq, n);
            add_times(ln_stage_at(span, DK, own * n) + key, written, dgk, n);
            for (int64_t c = 0; c < n; c++) *dw += dgq[c] * q[c] + (expanding ? dgk[c] * k[c] : 0);
        }
}

static void gather_values(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->value_size, own = own_memories(s), gates = decays(s);
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m];
            if (place < 0) continue;
            memcpy(gathered(span, GV, place, n), ln_stage_at(span, V, own * n) + (i * own + (own > 1 ? m : 0)) * n,
                   (size_t)n * sizeof(float));
            memcpy(gathered(span, GG, place, gates), ln_stage_at(span, G, gates) + i * gates,
                   (size_t)gates * sizeof(float));
        }
}

static void scatter_outputs(const ln_stage_span *span) {
    const int64_t n = span->stage->s->value_size;
    float *o = ln_stage_at(span, O, n);
    memset(o, 0, (size_t)(span->count * n) * sizeof(float));
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < span->stage->s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m];
            if (place >= 0) add_times(o + i * n, 1, gathered(span, GO, place, n), n);
        }
}
static void gather_gradients(const ln_stage_span *span) {
    const int64_t n = span->stage->s->value_size;
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < span->stage->s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m];
            if (place >= 0)
                memcpy(gathered(span, GDO, place, n), ln_stage_at(span, O, n) + i * n, (size_t)n * sizeof(float));
        }
}
/* V and G, which nobody needs any more, become their gradients. */
static void scatter_values(const ln_stage_span *span) {
    const linnet_mixer_settings *s = span->stage->s;
    const int64_t n = s->value_size, own = own_memories(s), gates = decays(s);
    memset(ln_stage_at(span, V, own * n), 0, (size_t)(span->count * own * n) * sizeof(float));
    memset(ln_stage_at(span, G, gates), 0, (size_t)(span->count * gates) * sizeof(float));
    for (int64_t i = 0; i < span->count; i++)
        for (int64_t m = 0; m < s->slots; m++) {
            const int64_t place = places(span->stage, span->at + i)[m];
            if (place < 0) continue;
            add_times(ln_stage_at(span, V, own * n) + (i * own + (own > 1 ? m : 0)) * n, 1,
                      gathered(span, DGV, place, n), n);
            add_times(ln_stage_at(span, G, gates) + i * gates, 1, gathered(span, DGG, place, gates), gates);
        }
}

/* ---- all of it ---- */

static linnet_tensor tensor(const ln_stage *st, int room, int64_t columns) {
    return (linnet_tensor){st->room[room], columns, ends_of(st)[st->s->sequences * st->s->slots] * columns};
}

static ln_stage_run run_of(const ln_stage *st) {
    const int64_t keys = st->s->key_size, values = st->s->value_size, gates = decays(st->s);
    return (ln_stage_run){.offsets = ends_of(st),
                          .tensors = {.input = {tensor(st, GQ, keys), tensor(st, GK, keys), tensor(st, GV, values),
                                                tensor(st, GG, gates)},
                                      .output = tensor(st, GO, values),
                                      .output_gradient = tensor(st, GDO, values),
                                      .input_gradient = {tensor(st, DGQ, keys), tensor(st, DGK, keys),
                                                         tensor(st, DGV, values), tensor(st, DGG, gates)}}};
}

static void gather(ln_stage *st) {
    route(st);
    ln_stage_pack(st, QUERY, Q);
    ln_stage_pack(st, KEY, K);
    ln_stage_pack(st, VALUE, V);
    ln_stage_pack(st, DECAY, G);
    if (sharpens(st->s)) ln_stage_rows(st, st->s->key_heads, sharpen_rows);
    ln_stage_rows(st, st->s->key_heads, gather_keys);
    ln_stage_rows(st, st->s->heads, gather_values);
}

static void forward(ln_stage *st) {
    gather(st);
    const ln_stage_run run = run_of(st);
    ln_stage_forward(st, &run);
    ln_stage_rows(st, st->s->heads, scatter_outputs);
    ln_stage_put(st, O);
}

static void backward(ln_stage *st) {
    gather(st);
    ln_stage_take(st, O);
    ln_stage_rows(st, st->s->heads, gather_gradients);
    const ln_stage_run run = run_of(st);
    ln_stage_backward(st, &run);
    ln_stage_rows(st, st->s->key_heads, scatter_keys);
    ln_stage_rows(st, st->s->heads, scatter_values);
    ln_stage_rows(st, 1, weigh_gradients);
    if (sharpens(st->s)) ln_stage_rows(st, st->s->key_heads, sharpen_gradients);
    ln_stage_add(st, QUERY, DQ);
    ln_stage_add(st, KEY, DK);
    ln_stage_add(st, VALUE, V);
    ln_stage_add(st, DECAY, G);
    ln_stage_add(st, ROUTER, DR);
}

const ln_staged ln_staged_mom = {.kind = MOM,
                                 .blocks = blocks,
                                 .rooms = rooms,
                                 .base = base,
                                 .forward = forward,
                                 .backward = backward},
                ln_staged_sse = {.kind = SSE,
                                 .blocks = blocks,
                                 .rooms = rooms,
                                 .base = base,
                                 .forward = forward,
                                 .backward = backward};

double ln_memories_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double keys = (double)s->key_size, values = (double)s->value_size, chosen = (double)most_chosen(s);
    if (form == LINNET_MIXER_STEP) return 5 * chosen * keys * values;
    return (form == LINNET_MIXER_FORWARD ? 1 : 3) * chosen * (4 * keys * values + 128 * (keys + values));
}
