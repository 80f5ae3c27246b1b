/* Owns: rows of the outer core with gates of their own.
 *
 *     rwkv6   the state is read before the token, which counts with a bonus of its own
 *     mlstm   an input gate e^i beside the decay e^f. With m[t] = max(f + m[t-1], i) the state is kept divided by e^m,
 * so that keys are written by e^(i - m) and the decay is f + m[t-1] - m[t]: never more than 1.
 *
 * How m enters: the output does not depend on it but through epsilon, since all of its parts are divided by the same
 * e^m. So its gradient is what the state's has at the end, less the state's own, and goes to the gate that made the
 * maximum, followed backward through time; the outputs' epsilon adds its small part on the way. */
#include <math.h>

#include "mixer/outer.h"

enum { QUERY, KEY, VALUE, GATE, DECAY };
static const float EPSILON = 1e-6f;

/* ---- rwkv6 ---- */

static void rwkv6_load(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, KEY, t->key, t->key_stride);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
    ln_outer_load(t, 3, t->decay, t->key_stride);
    ln_outer_load(t, 4, t->bonus, t->key_stride);
}

static void rwkv6_gradient(ln_outer_tile *t) {
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
    ln_outer_add(t, 3, t->decay_gradient, t->key_stride);
    float *to = ln_outer_parameter(t, 4);
    for (int64_t c = 0; c < t->features; c++) to[c] += t->bonus_gradient[c];
}

static const ln_outer_row rwkv6 = {
    .decay = LN_OUTER_KEY_DECAY, .before = true, .load = rwkv6_load, .gradient = rwkv6_gradient};

static const ln_mixer_input rwkv6_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_KEY, .range = LINNET_RANGE_DECAY},
    {.name = "bonus", .columns = LN_AXIS_KEY, .flags = LN_PARAMETER},
    {0},
};

/* ---- gla_value: gates of the columns of values ---- */

static void gla_value_load(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, KEY, t->key, t->key_stride);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
    ln_outer_load(t, 3, t->decay, t->value_stride);
}
static void gla_value_gradient(ln_outer_tile *t) {
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
    ln_outer_add(t, 3, t->decay_gradient, t->value_stride);
}
static const ln_outer_row gla_value = {
    .decay = LN_OUTER_VALUE_DECAY, .load = gla_value_load, .gradient = gla_value_gradient};

static const ln_mixer_input gla_value_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_DECAY},
    {0},
};

/* ---- mlstm ---- */

static int64_t one(const linnet_mixer_settings *s) {
    (void)s;
    return 1;
}
static int64_t one_to_normalise(const linnet_mixer_settings *s) {
    return s->normalise ? 1 : 0;
}

/* Of a token: its maximum, whether the decay made it, what epsilon adds to its gradient. */
enum { MAXIMUM, DECAYED, ADDED, KEPT };
static int64_t kept(const linnet_mixer_settings *s) {
    (void)s;
    return KEPT;
}

static void load_heads(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, KEY, t->key, t->key_stride);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
    for (int64_t i = 0; i < t->count && t->extra; i++) t->value[i * t->value_stride + t->columns] = 1;
    ln_outer_load(t, DECAY, t->decay, 1);
}

static void mlstm_load(ln_outer_tile *t) {
    load_heads(t);
    float m = t->side[0];
    for (int64_t i = 0; i < t->count; i++) {
        float gate;
        ln_mixer_load(t->call, GATE, t->head, t->sequence, t->step + i, 1, &gate);
        float *own = t->scratch + i * KEPT;
        const float old = t->decay[i] + m;
        own[DECAYED] = old >= gate;
        own[MAXIMUM] = old >= gate ? old : gate;
        t->decay[i] = old >= gate ? 0 : old - gate;
        const float write = expf(gate - own[MAXIMUM]);
        for (int64_t c = 0; c < t->features; c++) t->key[i * t->key_stride + c] *= write;
        m = own[MAXIMUM];
    }
    t->side[0] = m;
}

/* 1 / (max(|q . n|, e^-m) + epsilon) */
static float mlstm_factor(const ln_outer_tile *t, int64_t i) {
    const float dot = t->sums[i * t->value_stride + t->columns];
    return 1 / (fmaxf(fabsf(dot), expf(-t->scratch[i * KEPT + MAXIMUM])) + EPSILON);
}

static void scale_sums(ln_outer_tile *t, int64_t i, float factor) {
    float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
    for (int64_t j = t->first; j < t->last; j++) out[j] = t->sums[i * t->value_stride + j] * factor;
}

static void mlstm_finish(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) scale_sums(t, i, mlstm_factor(t, i));
}

/* out = sums * factor; returns sum out_gradient out. least: what the weight must exceed to count. */
static float scale_gradient(ln_outer_tile *t, int64_t i, float factor, float least) {
    const float *of = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i),
                *sums = t->sums + i * t->value_stride;
    float *to = t->sums_gradient + i * t->value_stride, along = 0;
    for (int64_t j = 0; j < t->columns; j++) {
        to[j] = of[j] * factor;
        along += to[j] * sums[j];
    }
    if (t->extra) {
        const float dot = sums[t->columns];
        to[t->columns] = fabsf(dot) >= least ? copysignf(along * factor, -along * dot) : 0;
    }
    return along;
}

static void mlstm_finish_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        float *own = t->scratch + i * KEPT;
        const float factor = mlstm_factor(t, i);
        own[ADDED] = -scale_gradient(t, i, factor, expf(-own[MAXIMUM])) * EPSILON * factor;
    }
}

static bool is_last(const ln_outer_tile *t) {
    int64_t first, count;
    ln_mixer_span(t->call->settings, t->sequence, &first, &count);
    return t->step + t->count == count;
}

static void mlstm_gradient(ln_outer_tile *t) {
    float *of = ln_mixer_gradient(t->call, GATE, t->head, t->sequence, t->step), unwanted;
    double maximum = (double)t->side_gradient[0] - (is_last(t) ? t->state_dot : 0);
    for (int64_t i = t->count - 1; i >= 0; i--) {
        const float *own = t->scratch + i * KEPT, *key = t->key + i * t->key_stride;
        float *key_gradient = t->key_gradient + i * t->key_stride, along = 0, gate;
        for (int64_t c = 0; c < t->features; c++) along += key[c] * key_gradient[c];
        ln_mixer_load(t->call, GATE, t->head, t->sequence, t->step + i, 1, &gate);
        const float write = expf(gate - own[MAXIMUM]);
        for (int64_t c = 0; c < t->features; c++) key_gradient[c] *= write;
        of = ln_mixer_gradient(t->call, GATE, t->head, t->sequence, t->step + i);
        if (!of) of = &unwanted;
        maximum += (double)own[ADDED];
        *of = along;
        if (own[DECAYED] != 0) {
            t->decay_gradient[i] += (float)maximum;
        } else {
            *of += (float)maximum;
            maximum = 0;
        }
    }
    t->side_gradient[0] = (float)maximum;
    if (t->step == 0) t->side_gradient[0] += t->decay_gradient[0] - (t->scratch[DECAYED] != 0 ? (float)maximum : 0);
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
    ln_outer_add(t, DECAY, t->decay_gradient, 1);
}

static const ln_outer_row mlstm = {.decay = LN_OUTER_DECAY,
                                   .side = one,
                                   .extra = one,
                                   .scratch = kept,
                                   .load = mlstm_load,
                                   .finish = mlstm_finish,
                                   .finish_gradient = mlstm_finish_gradient,
                                   .gradient = mlstm_gradient};

/* ---- mlstm with a sigmoid for input gate: keys are written by it, nothing needs a maximum ---- */

static void sigmoid_load(ln_outer_tile *t) {
    load_heads(t);
    ln_outer_load(t, GATE, t->scratch, 1);
    for (int64_t i = 0; i < t->count; i++) {
        t->scratch[i] = 1 / (1 + expf(-t->scratch[i]));
        for (int64_t c = 0; c < t->features; c++) t->key[i * t->key_stride + c] *= t->scratch[i];
    }
}

static float sigmoid_factor(const ln_outer_tile *t, int64_t i) {
    return t->extra ? 1 / fmaxf(fabsf(t->sums[i * t->value_stride + t->columns]), 1) : 1;
}

static void sigmoid_finish(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) scale_sums(t, i, sigmoid_factor(t, i));
}
static void sigmoid_finish_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) scale_gradient(t, i, sigmoid_factor(t, i), 1);
}

static void sigmoid_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *key = t->key + i * t->key_stride;
        float *key_gradient = t->key_gradient + i * t->key_stride, along = 0;
        for (int64_t c = 0; c < t->features; c++) {
            along += key[c] * key_gradient[c];
            key_gradient[c] *= t->scratch[i];
        }
        t->scratch[i] = along * (1 - t->scratch[i]);
    }
    ln_outer_add(t, GATE, t->scratch, 1);
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
    ln_outer_add(t, DECAY, t->decay_gradient, 1);
}

static const ln_outer_row mlstm_sigmoid = {.decay = LN_OUTER_DECAY,
                                           .extra = one_to_normalise,
                                           .scratch = one,
                                           .load = sigmoid_load,
                                           .finish = sigmoid_finish,
                                           .finish_gradient = sigmoid_finish_gradient,
                                           .gradient = sigmoid_gradient};

static const ln_mixer_input mlstm_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "input_gate"},
    {.name = "decay", .range = LINNET_RANGE_DECAY},
    {0},
};

static const ln_mixer_state state[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE}, {0}};
static const ln_mixer_state mlstm_states[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                              {.name = "normaliser", .columns = LN_AXIS_KEY},
                                              {.name = "maximum"},
                                              {0}};

const ln_mixer ln_rows_gated[] = {
    {LN_OUTER_CORE(&rwkv6), .name = "rwkv6", .paper = "Peng et al. 2024, arXiv 2404.05892",
     .formula = "out = scale (S[t-1] + diag(bonus) k v^T)^T q; S[t] = diag(e^decay) S[t-1] + k v^T",
     .inputs = rwkv6_inputs, .states = state, .output = LN_AXIS_VALUE, .scale = 1},
    {LN_OUTER_CORE(&gla_value), .name = "gla_value", .paper = "Yang et al. 2023, arXiv 2312.06635 (gates of columns)",
     .formula = "S = S diag(e^decay) + k v^T; out = scale S^T q", .inputs = gla_value_inputs, .states = state,
     .output = LN_AXIS_VALUE, .scale = NAN},
    {LN_OUTER_CORE(&mlstm), .name = "mlstm", .paper = "Beck et al. 2024, arXiv 2405.04517; TFLA 2503.14376",
     .formula = "C = e^decay C + e^input_gate k v^T, n likewise without v; out = scale C^T q / max(|scale n . q|, 1)",
     .inputs = mlstm_inputs, .states = mlstm_states, .output = LN_AXIS_VALUE, .scale = NAN, .normalise = true},
    {LN_OUTER_CORE(&mlstm_sigmoid), .name = "mlstm_sigmoid", .paper = "Beck et al. 2025 (TFLA), arXiv 2503.14376",
     .formula = "C = e^decay C + sigmoid(input_gate) k v^T; out = scale C^T q [/ max(|scale n . q|, 1)]",
     .inputs = mlstm_inputs, .states = mlstm_states, .output = LN_AXIS_VALUE, .scale = NAN, .can_normalise = true},
    {0},
};
