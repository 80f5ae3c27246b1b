/* Owns: attention over a bounded memory of slots, in two passes of gated linear attention:
 *
 *     scores[t] = scale (K[t-1] diag(e^g) + k s^T)^T q      gates of the columns of K [key][slot]
 *     p = softmax(scores), out = (diag(e^g) V[t-1] + s v^T)^T p
 *
 * GSA is given s and g. ABC has s = e^(x - z[t]) and g = z[t-1] - z[t], z[t] = log of the sum of e^x over time until t:
 * so slots are averages with weights e^x. Its z is kept with a flag that a first token was there. */
#include <math.h>
#include <string.h>

#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE, SLOT, DECAY };
enum { Q, K, V, S, G, P, O, DQ, DK, DV, DS, DG, DP, DO, MORE, ROOMS };
enum { KEYS, VALUES, SUMS };

static void gsa_blocks(const linnet_mixer_settings *s, ln_block *b) {
    b[KEYS] = (ln_block){1, s->key_size * s->slots};
    b[VALUES] = (ln_block){1, s->slots * s->value_size};
}
static void abc_blocks(const linnet_mixer_settings *s, ln_block *b) {
    gsa_blocks(s, b);
    b[SUMS] = (ln_block){1, s->slots + 1};
}

static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    const int64_t keys = tokens * s->key_heads * s->key_size, values = tokens * s->heads * s->value_size,
                  slots = tokens * s->heads * s->slots;
    floats[Q] = floats[K] = keys;
    floats[V] = floats[O] = values;
    floats[S] = floats[G] = floats[P] = slots;
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DQ] = floats[DK] = keys;
    floats[DV] = floats[DO] = values;
    floats[DS] = floats[DG] = floats[DP] = floats[MORE] = slots;
}

static const char *base(const linnet_mixer_settings *s, int i, linnet_mixer_settings *b) {
    if (i == 0) {
        b->value_size = s->slots;
        b->scale = s->scale;
        return "gla_value";
    }
    b->key_size = s->slots;
    b->key_heads = s->heads;
    return i == 1 ? "gla" : NULL;
}

static void softmax_rows(const ln_stage_span *span) {
    const int64_t n = span->stage->s->slots;
    const ln_vector_kernels *vector = &span->stage->call->kernels->vector;
    float *p = ln_stage_at(span, P, n);
    for (int64_t i = 0; i < span->count; i++, p += n)
        vector->scale(p, 1 / vector->exponential(p, p, vector->maximum(p, n), n), n);
}

/* The gradient of scores takes the place of that of p. */
static void softmax_gradient(const ln_stage_span *span) {
    const int64_t n = span->stage->s->slots;
    float *p = ln_stage_at(span, P, n), *dp = ln_stage_at(span, DP, n);
    for (int64_t i = 0; i < span->count; i++, p += n, dp += n) {
        float mean = 0;
        for (int64_t m = 0; m < n; m++) mean += p[m] * dp[m];
        for (int64_t m = 0; m < n; m++) dp[m] = p[m] * (dp[m] - mean);
    }
}

static ln_stage_run key_pass(const ln_stage *st) {
    const linnet_mixer_settings *s = st->s;
    return (ln_stage_run){
        .base = 0,
        .block = KEYS,
        .tensors = {.input = {ln_stage_tensor(st, Q, s->key_size), ln_stage_tensor(st, K, s->key_size),
                              ln_stage_tensor(st, S, s->slots), ln_stage_tensor(st, G, s->slots)},
                    .output = ln_stage_tensor(st, P, s->slots)}};
}
static ln_stage_run value_pass(const ln_stage *st) {
    const linnet_mixer_settings *s = st->s;
    return (ln_stage_run){
        .base = 1,
        .block = VALUES,
        .tensors = {.input = {ln_stage_tensor(st, P, s->slots), ln_stage_tensor(st, S, s->slots),
                              ln_stage_tensor(st, V, s->value_size), ln_stage_tensor(st, G, s->slots)},
                    .output = ln_stage_tensor(st, O, s->value_size)}};
}

static void passes(ln_stage *st) {
    const ln_stage_run keys = key_pass(st), values = value_pass(st);
    ln_stage_forward(st, &keys);
    ln_stage_rows(st, st->s->heads, softmax_rows);
    ln_stage_forward(st, &values);
    ln_stage_put(st, O);
}

/* DS and DG become the gradients of both passes. */
static void passes_back(ln_stage *st) {
    const linnet_mixer_settings *s = st->s;
    float *keys_before = st->state[KEYS], *scores = st->room[P];
    ln_stage_run run = key_pass(st), values = value_pass(st);
    /* Only p is wanted: a pass that leaves the state where it is. */
    const int64_t floats = st->block[KEYS].floats * s->heads * s->sequences;
    memcpy(st->turned[KEYS], keys_before, (size_t)floats * sizeof(float));
    st->state[KEYS] = st->turned[KEYS];
    ln_stage_forward(st, &run);
    st->state[KEYS] = keys_before;
    st->room[P] = scores;
    ln_stage_rows(st, s->heads, softmax_rows);
    ln_stage_take(st, DO);
    values.tensors.output_gradient = ln_stage_tensor(st, DO, s->value_size);
    values.tensors.input_gradient[0] = ln_stage_tensor(st, DP, s->slots);
    values.tensors.input_gradient[1] = ln_stage_tensor(st, DS, s->slots);
    values.tensors.input_gradient[2] = ln_stage_tensor(st, DV, s->value_size);
    values.tensors.input_gradient[3] = ln_stage_tensor(st, DG, s->slots);
    ln_stage_backward(st, &values);
    ln_stage_rows(st, s->heads, softmax_gradient);
    run.tensors.output_gradient = ln_stage_tensor(st, DP, s->slots);
    run.tensors.input_gradient[0] = ln_stage_tensor(st, DQ, s->key_size);
    run.tensors.input_gradient[1] = ln_stage_tensor(st, DK, s->key_size);
    run.tensors.input_gradient[2] = ln_stage_tensor(st, MORE, s->slots);
    run.tensors.input_gradient[3] = ln_stage_tensor(st, P, s->slots);
    ln_stage_backward(st, &run);
    const int64_t slots = st->tokens * s->heads * s->slots;
    st->call->kernels->vector.add(st->room[DS], st->room[MORE], slots);
    st->call->kernels->vector.add(st->room[DG], st->room[P], slots);
}

static void pack(ln_stage *st) {
    ln_stage_pack(st, QUERY, Q);
    ln_stage_pack(st, KEY, K);
    ln_stage_pack(st, VALUE, V);
    ln_stage_pack(st, SLOT, S);
}
static void add(ln_stage *st) {
    ln_stage_add(st, QUERY, DQ);
    ln_stage_add(st, KEY, DK);
    ln_stage_add(st, VALUE, DV);
    ln_stage_add(st, SLOT, DS);
}

static void gsa_forward(ln_stage *st) {
    pack(st);
    ln_stage_pack(st, DECAY, G);
    passes(st);
}
static void gsa_backward(ln_stage *st) {
    pack(st);
    ln_stage_pack(st, DECAY, G);
    passes_back(st);
    add(st);
    ln_stage_add(st, DECAY, DG);
}

/* ---- ABC ---- */

/* x to weights and gates; the last z is kept in the state. */
static void abc_weights(const ln_stage_span *span) {
    const ln_stage *st = span->stage;
    const int64_t n = st->s->slots;
    float *s = ln_stage_at(span, S, n), *g = ln_stage_at(span, G, n),
          *sums = st->state[SUMS] + (span->sequence * st->s->heads + span->head) * (n + 1);
    for (int64_t m = 0; m < n; m++) {
        double z = sums[n] > 0 ? (double)sums[m] : -INFINITY;
        for (int64_t i = 0; i < span->count; i++) {
            const double x = (double)s[i * n + m], next = x > z ? x + log1p(exp(z - x)) : z + log1p(exp(x - z));
            g[i * n + m] = (float)(z - next);
            s[i * n + m] = (float)exp(x - next);
            z = next;
        }
        sums[m] = (float)z;
    }
    sums[n] = 1;
}

/* Gradients of weights and gates to those of x, and of z at the end to that before. */
static void abc_weights_gradient(const ln_stage_span *span) {
    const ln_stage *st = span->stage;
    const int64_t n = st->s->slots;
    const float *s = ln_stage_at(span, S, n), *g = ln_stage_at(span, G, n), *dg = ln_stage_at(span, DG, n);
    float *ds = ln_stage_at(span, DS, n),
          *sums = st->state_gradient[SUMS] + (span->sequence * st->s->heads + span->head) * (n + 1);
    for (int64_t m = 0; m < n; m++) {
        double dz = (double)sums[m];
        for (int64_t i = span->count - 1; i >= 0; i--) {
            const int64_t at = i * n + m;
            const double weight = (double)s[at], written = (double)ds[at] * weight;
            dz -= written + (double)dg[at];
            ds[at] = (float)(written + dz * weight);
            dz = dz * exp((double)g[at]) + (g[at] > -INFINITY ? (double)dg[at] : 0);
        }
        sums[m] = (float)dz;
    }
    sums[n] = 0;
}

static void abc_forward(ln_stage *st) {
    pack(st);
    ln_stage_lanes(st, st->s->heads, abc_weights);
    passes(st);
}
static void abc_backward(ln_stage *st) {
    pack(st);
    ln_stage_lanes(st, st->s->heads, abc_weights);
    passes_back(st);
    ln_stage_lanes(st, st->s->heads, abc_weights_gradient);
    add(st);
}

const ln_staged ln_staged_gsa = {.blocks = gsa_blocks,
                                 .rooms = rooms,
                                 .base = base,
                                 .forward = gsa_forward,
                                 .backward = gsa_backward},
                ln_staged_abc = {.blocks = abc_blocks,
                                 .rooms = rooms,
                                 .base = base,
                                 .forward = abc_forward,
                                 .backward = abc_backward};

/* Two passes in chunks of 64. */
double ln_slots_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double keys = (double)s->key_size, values = (double)s->value_size, slots = (double)s->slots;
    const double forward = form == LINNET_MIXER_STEP ? 5 * slots * (keys + values)
                                                     : 4 * slots * (keys + values) + 128 * (keys + values + 2 * slots);
    return form == LINNET_MIXER_BACKWARD ? 3.5 * forward : forward;
}
