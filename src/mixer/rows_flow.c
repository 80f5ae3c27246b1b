/* Owns: rows of the outer core whose weights depend on sums over all tokens so far, kept beside the state.
 *
 *     mala              weights b w - c that add to 1: w = phi(q) . phi(k), s = sum of w, b = 1 + 1 / s, c = s / n
 *     flowformer_causal sources compete and sinks are gated by what flows between them (below)
 *
 * A sum over time is carried forward in tile->side; its gradient is carried backward in tile->side_gradient, both token
 * by token. */
#include <math.h>
#include <string.h>

#include "mixer/feature.h"
#include "mixer/outer.h"

enum { QUERY, KEY, VALUE };

static const ln_mixer_input inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {0},
};

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static void add_times(float *y, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

/* ---- mala: side: sum of values, number of tokens ---- */

static const float MALA_EPSILON = 1e-6f;

static int64_t mala_extra(const linnet_mixer_settings *s) {
    (void)s;
    return 1;
}
static int64_t mala_side(const linnet_mixer_settings *s) {
    return s->value_size + 1;
}
/* Queries and keys as given, a gradient, the sums. */
static int64_t mala_scratch(const linnet_mixer_settings *s) {
    return 3 * s->key_size + s->value_size + 1;
}

static void mala_map(ln_outer_tile *t, bool key) {
    const int64_t n = t->features;
    float *x = t->scratch + (key ? t->count * n : 0), *phi = key ? t->key : t->query;
    ln_outer_load(t, key ? KEY : QUERY, x, n);
    for (int64_t i = 0; i < t->count; i++)
        ln_feature_elu.map(&(ln_feature_row){.settings = t->call->settings,
                                             .kernels = t->call->kernels,
                                             .key = key,
                                             .x = x + i * n,
                                             .phi = phi + i * t->key_stride});
}

static float *mala_sums(const ln_outer_tile *t, int64_t i) {
    return t->scratch + 3 * t->count * t->features + i * t->sides;
}

static void mala_load(ln_outer_tile *t) {
    mala_map(t, false);
    mala_map(t, true);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
    for (int64_t i = 0; i < t->count; i++) {
        float *value = t->value + i * t->value_stride;
        value[t->columns] = 1;
        for (int64_t j = 0; j <= t->columns; j++) t->side[j] += value[j];
        memcpy(mala_sums(t, i), t->side, (size_t)t->sides * sizeof(float));
    }
}

static void mala_finish(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride, *values = mala_sums(t, i), s = sums[t->columns];
        const float b = 1 + 1 / (s + MALA_EPSILON), c = s / values[t->columns];
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        for (int64_t j = t->first; j < t->last; j++) out[j] = b * sums[j] - c * values[j];
    }
}

/* The gradient of the sums of values takes their place. */
static void mala_finish_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride, s = sums[t->columns];
        const float *of = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        float *to = t->sums_gradient + i * t->value_stride, *values = mala_sums(t, i);
        const float n = values[t->columns], most = 1 / (s + MALA_EPSILON), b = 1 + most;
        const float along = dot(of, sums, t->columns), values_along = dot(of, values, t->columns);
        for (int64_t j = 0; j < t->columns; j++) {
            to[j] = b * of[j];
            values[j] = -s / n * of[j];
        }
        to[t->columns] = -along * most * most - values_along / n;
        values[t->columns] = s / (n * n) * values_along;
    }
}

static void mala_map_gradient(ln_outer_tile *t, bool key) {
    const int64_t n = t->features;
    float *to = t->scratch + 2 * t->count * n;
    for (int64_t i = 0; i < t->count; i++)
        ln_feature_elu.gradient(
            &(ln_feature_row){.settings = t->call->settings,
                              .kernels = t->call->kernels,
                              .key = key,
                              .x = t->scratch + (key ? t->count * n : 0) + i * n,
                              .phi = (key ? t->key : t->query) + i * t->key_stride,
                              .phi_gradient = (key ? t->key_gradient : t->query_gradient) + i * t->key_stride,
                              .x_gradient = to + i * n});
    ln_outer_add(t, key ? KEY : QUERY, to, n);
}

static void mala_gradient(ln_outer_tile *t) {
    mala_map_gradient(t, false);
    mala_map_gradient(t, true);
    for (int64_t i = t->count - 1; i >= 0; i--) {
        add_times(t->side_gradient, 1, mala_sums(t, i), t->sides);
        add_times(t->value_gradient + i * t->value_stride, 1, t->side_gradient, t->columns);
    }
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
}

static const ln_outer_row mala = {.exact = true, /* what is left of sums that cancel */
                                  .extra = mala_extra,
                                  .side = mala_side,
                                  .scratch = mala_scratch,
                                  .load = mala_load,
                                  .finish = mala_finish,
                                  .finish_gradient = mala_finish_gradient,
                                  .gradient = mala_gradient};
static const ln_mixer_state mala_states[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                             {.name = "keys", .columns = LN_AXIS_KEY},
                                             {.name = "values", .columns = LN_AXIS_VALUE},
                                             {.name = "tokens"},
                                             {0}};

/* ---- flowformer, causal: q, k are sigmoids, e = 1e-6 is added to each factor of a product of vectors, n tokens so
 * far:
 *
 *     A += k, sink = n / (q . A);       B += q, source = n / (k . B)
 *     C += k source, gate = sigmoid(q . C / n);        D += q sink, c = clamp(k . D / n, -10, 10)
 *     E += e^c, share = n e^c / E;      out = gate (sink / n q)^T sum of k (share v)^T ---- */

static const float FLOW_EPSILON = 1e-6f, FLOW_MOST = 10;
/* Of a token, after its sums A, B, C, D: */
enum { TOTAL, TOKENS, SINK, SOURCE, GATE, COMPETE, SHARE, GATE_GRADIENT, SCALARS };

static int64_t flow_side(const linnet_mixer_settings *s) {
    return 4 * s->key_size + 2;
}
/* q, k, values as given, the sums and scalars of each token. */
static int64_t flow_scratch(const linnet_mixer_settings *s) {
    return 6 * s->key_size + s->value_size + SCALARS;
}

static float *flow_features(const ln_outer_tile *t, bool key, int64_t i) {
    return t->scratch + ((key ? t->count : 0) + i) * t->features;
}
static float *flow_values(const ln_outer_tile *t) {
    return t->scratch + 2 * t->count * t->features;
}
static float *flow_sums(const ln_outer_tile *t, int64_t i) {
    return t->scratch + t->count * (2 * t->features + t->columns) + i * (4 * t->features + SCALARS);
}

/* (x + e) . (y + e) */
static float flow_dot(const float *x, const float *y, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (x[i] + FLOW_EPSILON) * (y[i] + FLOW_EPSILON);
    return sum;
}
static void flow_dot_gradient(float of, const float *x, const float *y, float *dx, float *dy, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        dx[i] += of * (y[i] + FLOW_EPSILON);
        dy[i] += of * (x[i] + FLOW_EPSILON);
    }
}

static void flow_token(ln_outer_tile *t, int64_t i) {
    const int64_t n = t->features;
    const float *q = flow_features(t, false, i), *k = flow_features(t, true, i);
    float *a = t->side, *b = a + n, *c = b + n, *d = c + n, *last = d + n, *own = flow_sums(t, i) + 4 * n;
    const float tokens = last[TOKENS] += 1;
    add_times(a, 1, k, n);
    add_times(b, 1, q, n);
    own[SINK] = tokens / flow_dot(q, a, n);
    own[SOURCE] = tokens / flow_dot(k, b, n);
    add_times(c, own[SOURCE], k, n);
    add_times(d, own[SINK], q, n);
    own[GATE] = 1 / (1 + expf(-flow_dot(q, c, n) / tokens));
    own[COMPETE] = flow_dot(k, d, n) / tokens;
    const float weight = expf(fminf(fmaxf(own[COMPETE], -FLOW_MOST), FLOW_MOST));
    last[TOTAL] += weight;
    own[SHARE] = tokens * weight / last[TOTAL];
    memcpy(own - 4 * n, t->side, (size_t)t->sides * sizeof(float));
    for (int64_t r = 0; r < n; r++) {
        t->query[i * t->key_stride + r] = own[SINK] / tokens * q[r];
        t->key[i * t->key_stride + r] = k[r];
    }
    for (int64_t j = 0; j < t->columns; j++)
        t->value[i * t->value_stride + j] = own[SHARE] * flow_values(t)[i * t->columns + j];
}

static void flow_load(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, flow_features(t, false, 0), t->features);
    ln_outer_load(t, KEY, flow_features(t, true, 0), t->features);
    ln_outer_load(t, VALUE, flow_values(t), t->columns);
    ln_sigmoid(t->call->kernels, t->scratch, t->scratch, 2 * t->count * t->features);
    for (int64_t i = 0; i < t->count; i++) flow_token(t, i);
}

static void flow_finish(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float gate = flow_sums(t, i)[4 * t->features + GATE];
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        for (int64_t j = t->first; j < t->last; j++) out[j] = gate * t->sums[i * t->value_stride + j];
    }
}
static void flow_finish_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        float *own = flow_sums(t, i) + 4 * t->features;
        const float *of = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        own[GATE_GRADIENT] = dot(of, t->sums + i * t->value_stride, t->columns);
        for (int64_t j = 0; j < t->columns; j++) t->sums_gradient[i * t->value_stride + j] = own[GATE] * of[j];
    }
}

/* Backward through flow_token, in its reverse order. Gradients of q, k, v take the place of those of queries, keys and
 * values. */
static void flow_token_gradient(ln_outer_tile *t, int64_t i) {
    const int64_t n = t->features;
    const float *q = flow_features(t, false, i), *k = flow_features(t, true, i), *a = flow_sums(t, i), *b = a + n,
                *c = b + n, *d = c + n, *own = d + n, tokens = own[TOKENS];
    float *da = t->side_gradient, *db = da + n, *dc = db + n, *dd = dc + n, *last = dd + n;
    float *dq = t->query_gradient + i * t->key_stride, *dk = t->key_gradient + i * t->key_stride,
          *dv = t->value_gradient + i * t->value_stride;
    const float share = dot(dv, flow_values(t) + i * t->columns, t->columns), weight = own[SHARE] * own[TOTAL] / tokens;
    for (int64_t j = 0; j < t->columns; j++) dv[j] *= own[SHARE];
    float sink = dot(dq, q, n) / tokens, source = 0, count = share * own[SHARE] / tokens - sink * own[SINK] / tokens;
    for (int64_t r = 0; r < n; r++) dq[r] *= own[SINK] / tokens;
    last[TOTAL] -= share * own[SHARE] / own[TOTAL];
    const float competes = share * tokens / own[TOTAL] + last[TOTAL],
                compete = fabsf(own[COMPETE]) < FLOW_MOST ? competes * weight / tokens : 0,
                gate = own[GATE_GRADIENT] * own[GATE] * (1 - own[GATE]) / tokens;
    flow_dot_gradient(compete, k, d, dk, dd, n);
    flow_dot_gradient(gate, q, c, dq, dc, n);
    count -= compete * own[COMPETE] + gate * flow_dot(q, c, n) / tokens;
    add_times(dq, own[SINK], dd, n);
    sink += dot(dd, q, n);
    add_times(dk, own[SOURCE], dc, n);
    source += dot(dc, k, n);
    count += (sink * own[SINK] + source * own[SOURCE]) / tokens;
    flow_dot_gradient(-source * own[SOURCE] * own[SOURCE] / tokens, k, b, dk, db, n);
    flow_dot_gradient(-sink * own[SINK] * own[SINK] / tokens, q, a, dq, da, n);
    add_times(dq, 1, db, n);
    add_times(dk, 1, da, n);
    last[TOKENS] += count;
    for (int64_t r = 0; r < n; r++) {
        dq[r] *= q[r] * (1 - q[r]);
        dk[r] *= k[r] * (1 - k[r]);
    }
}

static void flow_gradient(ln_outer_tile *t) {
    for (int64_t i = t->count - 1; i >= 0; i--) flow_token_gradient(t, i);
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
}

static const ln_outer_row flow = {.side = flow_side,
                                  .scratch = flow_scratch,
                                  .load = flow_load,
                                  .finish = flow_finish,
                                  .finish_gradient = flow_finish_gradient,
                                  .gradient = flow_gradient};
static const ln_mixer_state flow_states[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                             {.name = "flows", .columns = LN_AXIS_KEY, .times = 4},
                                             {.name = "total"},
                                             {.name = "tokens"},
                                             {0}};

const ln_mixer ln_rows_flow[] = {
    {LN_OUTER_CORE(&mala), .name = "mala", .paper = "Fan et al. 2025, arXiv 2507.00698",
     .formula = "w = scale phi(q) . phi(k), s = sum w; out = sum of ((1 + 1/s) w - s/n) v, phi = elu + 1",
     .inputs = inputs, .states = mala_states, .output = LN_AXIS_VALUE, .scale = 1},
    {LN_OUTER_CORE(&flow), .name = "flowformer_causal", .paper = "Wu et al. 2022, arXiv 2202.06258",
     .formula = "out = sigmoid(flow into q) (q / incoming)^T sum of k (softmax over sources v)^T, causal sums",
     .inputs = inputs, .states = flow_states, .output = LN_AXIS_VALUE, .scale = 1},
    {0},
};
