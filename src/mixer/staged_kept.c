/* Owns: softmax attention over few tokens that the state keeps:
 *
 *     out[t] = sum over kept j of softmax(scale q[t] . k[j]) v[j]
 *
 *     diag_attention   kept: the tokens of the own block of `slots`, up to t
 *     scout            kept: the last token of each full segment of option[0] (a checkpoint), at most `slots` of them,
 * and t itself. So keys and values of SCOUT's mixer (its output, projected) grow by one a segment.
 *
 * A position p lies in the slot slot_of(p) until another takes it; a position of this piece is read from its rows, an
 * older one from the state. Slots that hold nothing are zero. The state is slots of keys, of values, and the position.
 */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE };
enum { Q, K, V, O, DO, DQ, DK, DV, SCORES };
enum { DIAG, SCOUT };

static int64_t block_floats(const linnet_mixer_settings *s) {
    return s->slots * (s->key_size + s->value_size) + 1;
}
static void blocks(const linnet_mixer_settings *s, ln_block *b) {
    b[0] = (ln_block){1, block_floats(s)};
}
static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    floats[Q] = floats[K] = tokens * s->heads * s->key_size;
    floats[V] = floats[O] = tokens * s->heads * s->value_size;
    floats[SCORES] = s->sequences * s->heads * 2 * (s->slots + 1);
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DQ] = floats[DK] = floats[Q];
    floats[DV] = floats[DO] = floats[V];
}

/* One head of a sequence: the piece begins at position `begin`. */
typedef struct lane {
    const ln_stage_span *span;
    const linnet_mixer_settings *s;
    bool scout;
    int64_t begin, segment;
    float *state, *turned, *state_gradient, *scores, *score_gradients;
} lane;

static lane lane_of(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t at = p->sequence * s->heads + p->head, floats = block_floats(s);
    float *state = p->stage->state[0] + at * floats, *scores = p->stage->room[SCORES] + at * 2 * (s->slots + 1);
    return (lane){.span = p,
                  .s = s,
                  .scout = ((const ln_staged *)p->stage->call->mixer->core_row)->kind == SCOUT,
                  .begin = llrintf(state[floats - 1]),
                  .segment = (int64_t)s->option[0],
                  .state = state,
                  .turned = p->stage->turned[0] ? p->stage->turned[0] + at * floats : NULL,
                  .state_gradient = p->stage->state_gradient[0] ? p->stage->state_gradient[0] + at * floats : NULL,
                  .scores = scores,
                  .score_gradients = scores + s->slots + 1};
}

/* Kept positions before `end`, in ascending order: position i of `count`. */
static int64_t kept_count(const lane *l, int64_t end) {
    return l->scout ? ln_min_i64(end / l->segment, l->s->slots) : end % l->s->slots;
}
static int64_t kept_position(const lane *l, int64_t end, int64_t i) {
    if (!l->scout) return end - end % l->s->slots + i;
    return (end / l->segment - kept_count(l, end) + i + 1) * l->segment - 1;
}
static int64_t slot_of(const lane *l, int64_t position) {
    return (l->scout ? position / l->segment : position) % l->s->slots;
}
/* What token `position` reads: what is kept before it, and itself. */
static int64_t read_position(const lane *l, int64_t position, int64_t i) {
    return i < kept_count(l, position) ? kept_position(l, position, i) : position;
}

static float *key_of(const lane *l, float *state, int room, int64_t position) {
    const int64_t n = l->s->key_size;
    return position < l->begin ? state + slot_of(l, position) * n
                               : ln_stage_at(l->span, room, n) + (position - l->begin) * n;
}
static float *value_of(const lane *l, float *state, int room, int64_t position) {
    const int64_t n = l->s->value_size;
    return position < l->begin ? state + l->s->slots * l->s->key_size + slot_of(l, position) * n
                               : ln_stage_at(l->span, room, n) + (position - l->begin) * n;
}

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static void add_times(float *y, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

/* Weights of a token into scores; returns how many. */
static int64_t weigh(const lane *l, int64_t position) {
    const ln_vector_kernels *vector = &l->span->stage->call->kernels->vector;
    const int64_t n = kept_count(l, position) + 1;
    const float *q = ln_stage_at(l->span, Q, l->s->key_size) + (position - l->begin) * l->s->key_size;
    for (int64_t i = 0; i < n; i++)
        l->scores[i] = l->s->scale * dot(q, key_of(l, l->state, K, read_position(l, position, i)), l->s->key_size);
    vector->scale(l->scores, 1 / vector->exponential(l->scores, l->scores, vector->maximum(l->scores, n), n), n);
    return n;
}

/* What is kept at the end, slot by slot; a slot may hold what it held. */
static void keep(const lane *l, int64_t end) {
    const int64_t keys = l->s->key_size, values = l->s->value_size, n = kept_count(l, end);
    for (int64_t slot = 0; slot < l->s->slots; slot++) {
        int64_t held = -1;
        for (int64_t i = 0; i < n && held < 0; i++)
            if (slot_of(l, kept_position(l, end, i)) == slot) held = kept_position(l, end, i);
        float *key = l->state + slot * keys, *value = l->state + l->s->slots * keys + slot * values;
        if (held < 0) {
            memset(key, 0, (size_t)keys * sizeof *key);
            memset(value, 0, (size_t)values * sizeof *value);
        } else if (held >= l->begin) {
            memcpy(key, key_of(l, l->state, K, held), (size_t)keys * sizeof *key);
            memcpy(value, value_of(l, l->state, V, held), (size_t)values * sizeof *value);
        }
    }
    l->state[block_floats(l->s) - 1] = (float)(l->scout ? end : end % l->s->slots);
}

static void lane_forward(const ln_stage_span *p) {
    const lane l = lane_of(p);
    const int64_t m = l.s->value_size;
    for (int64_t i = 0; i < p->count && !p->stage->states_only; i++) {
        const int64_t n = weigh(&l, l.begin + i);
        float *o = ln_stage_at(p, O, m) + i * m;
        memset(o, 0, (size_t)m * sizeof *o);
        for (int64_t j = 0; j < n; j++)
            add_times(o, l.scores[j], value_of(&l, l.state, V, read_position(&l, l.begin + i, j)), m);
    }
    keep(&l, l.begin + p->count);
}

static void lane_backward(const ln_stage_span *p) {
    const lane l = lane_of(p);
    const int64_t n = l.s->key_size, m = l.s->value_size, end = l.begin + p->count, kept = kept_count(&l, end);
    memset(l.turned, 0, (size_t)block_floats(l.s) * sizeof(float));
    memset(ln_stage_at(p, DQ, n), 0, (size_t)(p->count * n) * sizeof(float));
    memset(ln_stage_at(p, DK, n), 0, (size_t)(p->count * n) * sizeof(float));
    memset(ln_stage_at(p, DV, m), 0, (size_t)(p->count * m) * sizeof(float));
    for (int64_t i = 0; i < kept; i++) {
        const int64_t held = kept_position(&l, end, i), slot = slot_of(&l, held);
        add_times(key_of(&l, l.turned, DK, held), 1, l.state_gradient + slot * n, n);
        add_times(value_of(&l, l.turned, DV, held), 1, l.state_gradient + l.s->slots * n + slot * m, m);
    }
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t reads = weigh(&l, l.begin + i);
        const float *of = ln_stage_at(p, DO, m) + i * m, *q = ln_stage_at(p, Q, n) + i * n;
        float mean = 0;
        for (int64_t j = 0; j < reads; j++) {
            const int64_t at = read_position(&l, l.begin + i, j);
            l.score_gradients[j] = dot(of, value_of(&l, l.state, V, at), m);
            mean += l.scores[j] * l.score_gradients[j];
            add_times(value_of(&l, l.turned, DV, at), l.scores[j], of, m);
        }
        for (int64_t j = 0; j < reads; j++) {
            const int64_t at = read_position(&l, l.begin + i, j);
            const float gradient = l.s->scale * l.scores[j] * (l.score_gradients[j] - mean);
            add_times(ln_stage_at(p, DQ, n) + i * n, gradient, key_of(&l, l.state, K, at), n);
            add_times(key_of(&l, l.turned, DK, at), gradient, q, n);
        }
    }
    memcpy(l.state_gradient, l.turned, (size_t)block_floats(l.s) * sizeof(float));
}

static void pack(ln_stage *st) {
    ln_stage_pack_values(st, QUERY, Q);
    ln_stage_pack_values(st, KEY, K);
    ln_stage_pack(st, VALUE, V);
}

static void forward(ln_stage *st) {
    pack(st);
    ln_stage_lanes(st, st->s->heads, lane_forward);
    ln_stage_put(st, O);
}

static void backward(ln_stage *st) {
    pack(st);
    ln_stage_take(st, DO);
    ln_stage_lanes(st, st->s->heads, lane_backward);
    ln_stage_add_values(st, QUERY, DQ);
    ln_stage_add_values(st, KEY, DK);
    ln_stage_add(st, VALUE, DV);
}

#define KEPT .blocks = blocks, .rooms = rooms, .forward = forward, .backward = backward
const ln_staged ln_staged_diag = {KEPT, .kind = DIAG}, ln_staged_scout = {KEPT, .kind = SCOUT};

double ln_kept_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double forward_flops = (double)s->slots * (double)(s->key_size + s->value_size);
    return form == LINNET_MIXER_BACKWARD ? 3 * forward_flops : forward_flops;
}
