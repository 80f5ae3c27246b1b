/* Owns: linear attention over a whole sequence, both directions: all keys and values are summed, then read by all
 * queries. Rows of vision and of time series; what differs is what is done to keys, values and sums:
 *
 *     flowformer   conserved flows gate the sinks and let the sources compete (rows_flow.c has the causal sums)
 *     rala         keys have weights N softmax(scale mean(q) . k): a sum of higher rank; a gate on the output
 *     l2vit        ReLU features, a divisor of at least option[0], then two depthwise convolutions over the grid
 *
 * The base writes with no queries that matter, and reads with no keys. A value has a column of ones at its end: its sum
 * is the sum of weights. */
#include <math.h>
#include <string.h>

#include "mixer/feature.h"
#include "mixer/staged_rows.h"

enum { QUERY, KEY, VALUE, GATE, SECOND };
enum { RAW_Q, RAW_K, Q, K, V, NONE, O, DO, DQ, DK, DV, MORE, SUMS, PER, GRID, INNER, KEPT, DGRID };
enum { FLOWFORMER, RALA, L2VIT };
enum { LEAST, WIDTH };

static int64_t columns(const linnet_mixer_settings *s) {
    return s->value_size + 1;
}

static void blocks(const linnet_mixer_settings *s, ln_block *b) {
    b[0] = (ln_block){1, s->key_size * columns(s)};
}

/* Scalars of a token and vectors of a sequence, of flowformer and rala. */
enum { SINK, SOURCE, INTO, FROM, WEIGHT, OF_INTO, PER_TOKEN = 8, PER_SEQUENCE = 8 };

static void rooms(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats) {
    const int64_t keys = tokens * s->heads * s->key_size, values = tokens * s->heads * columns(s);
    floats[RAW_Q] = floats[RAW_K] = floats[Q] = floats[K] = floats[NONE] = keys;
    floats[V] = floats[O] = values;
    floats[SUMS] = s->sequences * s->heads * PER_SEQUENCE * s->key_size;
    floats[PER] = tokens * s->heads * PER_TOKEN;
    floats[GRID] = floats[INNER] = floats[KEPT] = tokens * s->heads * s->value_size;
    if (form != LINNET_MIXER_BACKWARD) return;
    floats[DO] = floats[DV] = values;
    floats[DQ] = floats[DK] = floats[MORE] = keys;
    floats[DGRID] = floats[GRID];
}

static const char *base(const linnet_mixer_settings *s, int i, linnet_mixer_settings *b) {
    b->key_heads = s->heads;
    b->value_size = columns(s);
    return i == 0 ? "linear_attention" : NULL;
}

/* ---- write and read ---- */

static int64_t state_floats(const ln_stage *st) {
    return st->s->sequences * st->s->heads * st->block[0].floats;
}

static ln_stage_run run_of(const ln_stage *st, int query, int key) {
    const int64_t n = st->s->key_size;
    return (ln_stage_run){.tensors = {.input = {ln_stage_tensor(st, query, n), ln_stage_tensor(st, key, n),
                                                ln_stage_tensor(st, V, columns(st->s))},
                                      .output = ln_stage_tensor(st, O, columns(st->s))}};
}

static void read_all(ln_stage *st) {
    memset(st->room[NONE], 0, (size_t)(st->tokens * st->s->heads * st->s->key_size) * sizeof(float));
    memset(st->state[0], 0, (size_t)state_floats(st) * sizeof(float));
    const ln_stage_run write = run_of(st, NONE, K), read = run_of(st, Q, NONE);
    ln_stage_forward(st, &write);
    ln_stage_forward(st, &read);
}

/* From DO to DQ, DK, DV. */
static void read_all_back(ln_stage *st) {
    const int64_t n = st->s->key_size;
    ln_stage_run write = run_of(st, NONE, K), read = run_of(st, Q, NONE);
    memset(st->state_gradient[0], 0, (size_t)state_floats(st) * sizeof(float));
    read.tensors.output_gradient = ln_stage_tensor(st, DO, columns(st->s));
    read.tensors.input_gradient[QUERY] = ln_stage_tensor(st, DQ, n);
    ln_stage_backward(st, &read);
    memset(st->state[0], 0, (size_t)state_floats(st) * sizeof(float));
    memset(st->room[DO], 0, (size_t)(st->tokens * st->s->heads * columns(st->s)) * sizeof(float));
    write.tensors.output_gradient = read.tensors.output_gradient;
    write.tensors.input_gradient[KEY] = ln_stage_tensor(st, DK, n);
    write.tensors.input_gradient[VALUE] = ln_stage_tensor(st, DV, columns(st->s));
    ln_stage_backward(st, &write);
}

/* ---- helpers ---- */

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static void add_times(float *y, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}
/* Vector i of a lane's sequence; scalars of a row. */
static float *lane_sum(const ln_stage_span *p, int64_t i) {
    const linnet_mixer_settings *s = p->stage->s;
    return p->stage->room[SUMS] + ((p->sequence * s->heads + p->head) * PER_SEQUENCE + i) * s->key_size;
}
static float *scalars(const ln_stage_span *p, int64_t i) {
    return ln_stage_at(p, PER, PER_TOKEN) + i * PER_TOKEN;
}
static void load_values(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    float *v = ln_stage_at(p, V, n + 1);
    for (int64_t i = 0; i < p->count; i++, v += n + 1) {
        ln_mixer_load(p->stage->call, VALUE, p->head, p->sequence, p->step + i, 1, v);
        v[n] = 1;
    }
}
static const float *output_gradient(const ln_stage_span *p, int64_t i) {
    return ln_mixer_output_gradient(p->stage->call, p->head, p->sequence, p->step + i);
}
static float *output(const ln_stage_span *p, int64_t i) {
    return ln_mixer_output(p->stage->call, p->head, p->sequence, p->step + i);
}

/* Adds rows of values' gradients, less their last column. */
static void add_values(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    if (!ln_mixer_gradient(p->stage->call, VALUE, p->head, p->sequence, p->step)) return;
    for (int64_t i = 0; i < p->count; i++)
        add_times(ln_mixer_gradient(p->stage->call, VALUE, p->head, p->sequence, p->step + i), 1,
                  ln_stage_at(p, DV, n + 1) + i * (n + 1), n);
}

/* ---- flowformer: q, k are sigmoids, e = 1e-6 is added to each factor of a product of vectors
 *
 *     sink = 1 / (q . sum k), source = 1 / (k . sum q), into = q . sum (k source), from = k . sum (q sink)
 *     out = sigmoid(into) (sink q)^T sum k (n softmax(from) v)^T ---- */

static const float FLOW = 1e-6f;

static float flow_dot(const float *x, const float *y, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (x[i] + FLOW) * (y[i] + FLOW);
    return sum;
}
static void flow_dot_gradient(float of, const float *x, const float *y, float *dx, float *dy, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        dx[i] += of * (y[i] + FLOW);
        dy[i] += of * (x[i] + FLOW);
    }
}

static void flow_prepare(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t n = s->key_size, all = p->count;
    float *q = ln_stage_at(p, RAW_Q, n), *k = ln_stage_at(p, RAW_K, n), most = -INFINITY, total = 0;
    memset(lane_sum(p, 0), 0, (size_t)(4 * n) * sizeof(float));
    ln_sigmoid(p->stage->call->kernels, q, q, all * n);
    ln_sigmoid(p->stage->call->kernels, k, k, all * n);
    for (int64_t i = 0; i < all; i++) {
        add_times(lane_sum(p, 0), 1, k + i * n, n);
        add_times(lane_sum(p, 1), 1, q + i * n, n);
    }
    for (int64_t i = 0; i < all; i++) {
        float *own = scalars(p, i);
        own[SINK] = 1 / flow_dot(q + i * n, lane_sum(p, 0), n);
        own[SOURCE] = 1 / flow_dot(k + i * n, lane_sum(p, 1), n);
        add_times(lane_sum(p, 2), own[SOURCE], k + i * n, n);
        add_times(lane_sum(p, 3), own[SINK], q + i * n, n);
    }
    for (int64_t i = 0; i < all; i++) {
        float *own = scalars(p, i);
        own[INTO] = 1 / (1 + expf(-flow_dot(q + i * n, lane_sum(p, 2), n)));
        own[FROM] = flow_dot(k + i * n, lane_sum(p, 3), n);
        most = fmaxf(most, own[FROM]);
    }
    for (int64_t i = 0; i < all; i++) total += scalars(p, i)[WEIGHT] = expf(scalars(p, i)[FROM] - most);
    load_values(p);
    for (int64_t i = 0; i < all; i++) {
        float *own = scalars(p, i), *v = ln_stage_at(p, V, columns(s)) + i * columns(s);
        own[WEIGHT] *= (float)all / total;
        for (int64_t c = 0; c < n; c++) {
            ln_stage_at(p, Q, n)[i * n + c] = own[SINK] * q[i * n + c];
            ln_stage_at(p, K, n)[i * n + c] = k[i * n + c];
        }
        for (int64_t c = 0; c < s->value_size; c++) v[c] *= own[WEIGHT];
    }
}

static void flow_finish(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    for (int64_t i = 0; i < p->count; i++)
        for (int64_t c = 0; c < n; c++)
            output(p, i)[c] = scalars(p, i)[INTO] * ln_stage_at(p, O, n + 1)[i * (n + 1) + c];
}

static void flow_finish_gradient(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    for (int64_t i = 0; i < p->count; i++) {
        float *own = scalars(p, i), *to = ln_stage_at(p, DO, n + 1) + i * (n + 1);
        own[OF_INTO] =
            dot(output_gradient(p, i), ln_stage_at(p, O, n + 1) + i * (n + 1), n) * own[INTO] * (1 - own[INTO]);
        for (int64_t c = 0; c < n; c++) to[c] = own[INTO] * output_gradient(p, i)[c];
        to[n] = 0;
    }
}

/* The gradients of q and k are made in DQ and DK; those of values are those of weighted ones. */
static void flow_gradient(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t n = s->key_size, m = s->value_size, all = p->count;
    const float *q = ln_stage_at(p, RAW_Q, n), *k = ln_stage_at(p, RAW_K, n);
    float *dq = ln_stage_at(p, DQ, n), *dk = ln_stage_at(p, DK, n), *dv = ln_stage_at(p, DV, m + 1), mean = 0;
    memset(lane_sum(p, 4), 0, (size_t)(4 * n) * sizeof(float));
    for (int64_t i = 0; i < all; i++) {
        const float *v = ln_stage_at(p, V, m + 1) + i * (m + 1);
        mean += dot(dv + i * (m + 1), v, m) / (float)all; /* weight times its gradient, of a softmax of sum `all` */
    }
    for (int64_t i = 0; i < all; i++) {
        float *own = scalars(p, i);
        const float of_from = dot(dv + i * (m + 1), ln_stage_at(p, V, m + 1) + i * (m + 1), m) - own[WEIGHT] * mean;
        for (int64_t c = 0; c < m; c++) dv[i * (m + 1) + c] *= own[WEIGHT];
        const float of_sink = dot(dq + i * n, q + i * n, n);
        for (int64_t c = 0; c < n; c++) dq[i * n + c] *= own[SINK];
        own[WEIGHT] = of_sink;
        flow_dot_gradient(own[OF_INTO], q + i * n, lane_sum(p, 2), dq + i * n, lane_sum(p, 6), n);
        flow_dot_gradient(of_from, k + i * n, lane_sum(p, 3), dk + i * n, lane_sum(p, 7), n);
    }
    for (int64_t i = 0; i < all; i++) {
        const float *own = scalars(p, i);
        add_times(dk + i * n, own[SOURCE], lane_sum(p, 6), n);
        add_times(dq + i * n, own[SINK], lane_sum(p, 7), n);
        const float of_source = dot(lane_sum(p, 6), k + i * n, n),
                    of_sink = own[WEIGHT] + dot(lane_sum(p, 7), q + i * n, n);
        flow_dot_gradient(-of_sink * own[SINK] * own[SINK], q + i * n, lane_sum(p, 0), dq + i * n, lane_sum(p, 4), n);
        flow_dot_gradient(-of_source * own[SOURCE] * own[SOURCE], k + i * n, lane_sum(p, 1), dk + i * n, lane_sum(p, 5),
                          n);
    }
    for (int64_t i = 0; i < all; i++) {
        add_times(dk + i * n, 1, lane_sum(p, 4), n);
        add_times(dq + i * n, 1, lane_sum(p, 5), n);
    }
    for (int64_t i = 0; i < all * n; i++) {
        dq[i] *= q[i] * (1 - q[i]);
        dk[i] *= k[i] * (1 - k[i]);
    }
    add_values(p);
}

/* ---- rala: phi = elu + 1, weights a = N softmax(scale mean(phi(q)) . phi(k))
 *
 *     out = gate (phi(q)^T sum a phi(k) v^T) / (phi(q) . sum a phi(k) + N 1e-6) ---- */

static const float RALA_EPSILON = 1e-6f;

/* Keys are divided by N, which the sums are too. RAW_K becomes phi(k). */
static void rala_prepare(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t n = s->key_size, all = p->count;
    float *mean = lane_sum(p, 0), *q = ln_stage_at(p, Q, n), *k = ln_stage_at(p, K, n), most = -INFINITY, total = 0;
    const ln_kernels *kernels = p->stage->call->kernels;
    memset(mean, 0, (size_t)n * sizeof(float));
    ln_elu(kernels, q, ln_stage_at(p, RAW_Q, n), all * n);
    ln_elu(kernels, k, ln_stage_at(p, RAW_K, n), all * n);
    for (int64_t i = 0; i < all; i++) add_times(mean, 1 / (float)all, q + i * n, n);
    for (int64_t i = 0; i < all; i++) {
        scalars(p, i)[FROM] = s->scale * dot(mean, k + i * n, n);
        most = fmaxf(most, scalars(p, i)[FROM]);
    }
    for (int64_t i = 0; i < all; i++) total += scalars(p, i)[WEIGHT] = expf(scalars(p, i)[FROM] - most);
    for (int64_t i = 0; i < all; i++) {
        scalars(p, i)[WEIGHT] /= total;
        for (int64_t c = 0; c < n; c++) k[i * n + c] *= scalars(p, i)[WEIGHT];
    }
    load_values(p);
}

static void rala_finish(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    for (int64_t i = 0; i < p->count; i++) {
        const float *sums = ln_stage_at(p, O, n + 1) + i * (n + 1), factor = 1 / (sums[n] + RALA_EPSILON);
        float *out = output(p, i);
        ln_mixer_load(p->stage->call, GATE, p->head, p->sequence, p->step + i, 1, out);
        for (int64_t c = 0; c < n; c++) out[c] *= sums[c] * factor;
    }
}

static void rala_finish_gradient(const ln_stage_span *p) {
    const int64_t n = p->stage->s->value_size;
    for (int64_t i = 0; i < p->count; i++) {
        const float *sums = ln_stage_at(p, O, n + 1) + i * (n + 1), factor = 1 / (sums[n] + RALA_EPSILON),
                    *of = output_gradient(p, i);
        float *to = ln_stage_at(p, DO, n + 1) + i * (n + 1), along = 0,
              *gate = ln_mixer_gradient(p->stage->call, GATE, p->head, p->sequence, p->step + i);
        ln_mixer_load(p->stage->call, GATE, p->head, p->sequence, p->step + i, 1, to);
        for (int64_t c = 0; c < n; c++) {
            if (gate) gate[c] = of[c] * sums[c] * factor;
            to[c] *= of[c] * factor;
            along += to[c] * sums[c];
        }
        to[n] = -along * factor;
    }
}

static void rala_gradient(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t n = s->key_size, all = p->count;
    const float *q = ln_stage_at(p, Q, n), *raw = ln_stage_at(p, RAW_K, n);
    float *phi = ln_stage_at(p, MORE, n), *dq = ln_stage_at(p, DQ, n), *dk = ln_stage_at(p, DK, n),
          *mean = lane_sum(p, 0), *of_mean = lane_sum(p, 1), total = 0;
    ln_elu(p->stage->call->kernels, phi, raw, all * n);
    memset(of_mean, 0, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < all; i++) {
        float *own = scalars(p, i);
        own[FROM] = dot(dk + i * n, phi + i * n, n);
        total += own[WEIGHT] * own[FROM];
    }
    for (int64_t i = 0; i < all; i++) {
        const float *own = scalars(p, i), of = s->scale * own[WEIGHT] * (own[FROM] - total);
        for (int64_t c = 0; c < n; c++) dk[i * n + c] = own[WEIGHT] * dk[i * n + c] + of * mean[c];
        add_times(of_mean, of / (float)all, phi + i * n, n);
    }
    for (int64_t i = 0; i < all; i++) add_times(dq + i * n, 1, of_mean, n);
    ln_elu_gradient(dq, dq, q, ln_stage_at(p, RAW_Q, n), all * n);
    ln_elu_gradient(dk, dk, phi, raw, all * n);
    add_values(p);
}

/* ---- l2vit: y = scale relu(q)^T sum relu(k) v^T / max(q . sum k, least); out = y + conv(gelu(conv(y))) ---- */

static void l2vit_prepare(const ln_stage_span *p) {
    const int64_t n = p->stage->s->key_size;
    for (int64_t i = 0; i < p->count * n; i++) {
        ln_stage_at(p, Q, n)[i] = fmaxf(ln_stage_at(p, RAW_Q, n)[i], 0);
        ln_stage_at(p, K, n)[i] = fmaxf(ln_stage_at(p, RAW_K, n)[i], 0);
    }
    load_values(p);
}

/* Taps lie [side][side][columns]; a sequence is rows of `width` tokens, of which the last may be short. */
typedef struct grid {
    int64_t width, side, n, count;
} grid;
static grid grid_of(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const int64_t width = (int64_t)s->option[WIDTH];
    return (grid){width ? width : (int64_t)ceil(sqrt((double)p->count)), (int64_t)llrint(sqrt((double)s->slots)),
                  s->value_size, p->count};
}
/* The token that tap (a, b) of token t reads; -1: outside. */
static int64_t neighbour(const grid *g, int64_t t, int64_t a, int64_t b) {
    const int64_t y = t / g->width + a - g->side / 2, x = t % g->width + b - g->side / 2, at = y * g->width + x;
    return y < 0 || x < 0 || x >= g->width || at >= g->count ? -1 : at;
}
static void convolve(const grid *g, const float *taps, const float *x, float *y) {
    memset(y, 0, (size_t)(g->count * g->n) * sizeof *y);
    for (int64_t t = 0; t < g->count; t++)
        for (int64_t tap = 0; tap < g->side * g->side; tap++) {
            const int64_t at = neighbour(g, t, tap / g->side, tap % g->side);
            for (int64_t c = 0; at >= 0 && c < g->n; c++) y[t * g->n + c] += taps[tap * g->n + c] * x[at * g->n + c];
        }
}
/* dx and dtaps are added to. */
static void convolve_gradient(const grid *g, const float *taps, const float *x, const float *dy, float *dx,
                              float *dtaps) {
    for (int64_t t = 0; t < g->count; t++)
        for (int64_t tap = 0; tap < g->side * g->side; tap++) {
            const int64_t at = neighbour(g, t, tap / g->side, tap % g->side);
            for (int64_t c = 0; at >= 0 && c < g->n; c++) {
                dx[at * g->n + c] += taps[tap * g->n + c] * dy[t * g->n + c];
                if (dtaps) dtaps[tap * g->n + c] += x[at * g->n + c] * dy[t * g->n + c];
            }
        }
}
static const float *taps_of(const ln_stage_span *p, int input) {
    const linnet_tensor *t = &p->stage->call->tensors->input[input];
    return (const float *)t->data + p->head * t->head_stride;
}

static float gelu(float x) {
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}
static float gelu_slope(float x) {
    return 0.5f * (1 + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
}

static float least_of(const linnet_mixer_settings *s) {
    return (float)s->option[LEAST];
}

/* y in GRID, conv(y) in INNER, gelu of it in KEPT. */
static void concentrate(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const grid g = grid_of(p);
    float *y = ln_stage_at(p, GRID, g.n), *inner = ln_stage_at(p, INNER, g.n), *kept = ln_stage_at(p, KEPT, g.n);
    for (int64_t i = 0; i < p->count; i++) {
        const float *sums = ln_stage_at(p, O, g.n + 1) + i * (g.n + 1);
        for (int64_t c = 0; c < g.n; c++) y[i * g.n + c] = s->scale * sums[c] / fmaxf(sums[g.n], least_of(s));
    }
    convolve(&g, taps_of(p, GATE), y, inner);
    for (int64_t i = 0; i < p->count * g.n; i++) kept[i] = gelu(inner[i]);
}

static void l2vit_finish(const ln_stage_span *p) {
    const grid g = grid_of(p);
    concentrate(p);
    float *inner = ln_stage_at(p, INNER, g.n);
    convolve(&g, taps_of(p, SECOND), ln_stage_at(p, KEPT, g.n), inner);
    for (int64_t i = 0; i < p->count; i++)
        for (int64_t c = 0; c < g.n; c++) output(p, i)[c] = ln_stage_at(p, GRID, g.n)[i * g.n + c] + inner[i * g.n + c];
}

/* A head of all sequences, one after the other: its taps' gradients have one owner. */
static void l2vit_finish_gradient(const ln_stage_span *p) {
    const linnet_mixer_settings *s = p->stage->s;
    const grid g = grid_of(p);
    const int64_t floats = g.count * g.n;
    float *y = ln_stage_at(p, GRID, g.n), *inner = ln_stage_at(p, INNER, g.n), *kept = ln_stage_at(p, KEPT, g.n),
          *of = ln_stage_at(p, DGRID, g.n), *to = ln_stage_at(p, DO, g.n + 1);
    concentrate(p);
    for (int64_t i = 0; i < g.count; i++) memcpy(of + i * g.n, output_gradient(p, i), (size_t)g.n * sizeof *of);
    memset(to, 0, (size_t)floats * sizeof *to);
    convolve_gradient(&g, taps_of(p, SECOND), kept, of, to, ln_mixer_gradient(p->stage->call, SECOND, p->head, 0, 0));
    for (int64_t i = 0; i < floats; i++) kept[i] = to[i] * gelu_slope(inner[i]);
    convolve_gradient(&g, taps_of(p, GATE), y, kept, of, ln_mixer_gradient(p->stage->call, GATE, p->head, 0, 0));
    for (int64_t i = 0; i < g.count; i++) {
        const float *sums = ln_stage_at(p, O, g.n + 1) + i * (g.n + 1), divisor = fmaxf(sums[g.n], least_of(s));
        float *row = to + i * (g.n + 1);
        row[g.n] = sums[g.n] > least_of(s) ? -dot(of + i * g.n, y + i * g.n, g.n) / divisor : 0;
        for (int64_t c = 0; c < g.n; c++) row[c] = s->scale * of[i * g.n + c] / divisor;
    }
}

static void l2vit_gradient(const ln_stage_span *p) {
    const int64_t n = p->stage->s->key_size;
    for (int64_t i = 0; i < p->count * n; i++) {
        if (!(ln_stage_at(p, RAW_Q, n)[i] > 0)) ln_stage_at(p, DQ, n)[i] = 0;
        if (!(ln_stage_at(p, RAW_K, n)[i] > 0)) ln_stage_at(p, DK, n)[i] = 0;
    }
    add_values(p);
}

/* ---- all of it ---- */

typedef struct step {
    void (*prepare)(const ln_stage_span *p), (*finish)(const ln_stage_span *p),
        (*finish_gradient)(const ln_stage_span *p), (*gradient)(const ln_stage_span *p);
} step;
static const step steps[] = {{flow_prepare, flow_finish, flow_finish_gradient, flow_gradient},
                             {rala_prepare, rala_finish, rala_finish_gradient, rala_gradient},
                             {l2vit_prepare, l2vit_finish, l2vit_finish_gradient, l2vit_gradient}};

static const step *step_of(const ln_stage *st) {
    return &steps[((const ln_staged *)st->call->mixer->core_row)->kind];
}

static void prepare(ln_stage *st) {
    ln_stage_pack_values(st, QUERY, RAW_Q);
    ln_stage_pack_values(st, KEY, RAW_K);
    ln_stage_lanes(st, st->s->heads, step_of(st)->prepare);
    read_all(st);
}

static void forward(ln_stage *st) {
    prepare(st);
    ln_stage_lanes(st, st->s->heads, step_of(st)->finish);
}

static void backward(ln_stage *st) {
    prepare(st);
    ln_stage_heads(st, st->s->heads, step_of(st)->finish_gradient);
    read_all_back(st);
    ln_stage_lanes(st, st->s->heads, step_of(st)->gradient);
    ln_stage_add_values(st, QUERY, DQ);
    ln_stage_add_values(st, KEY, DK);
}

#define WHOLE .whole = true, .blocks = blocks, .rooms = rooms, .base = base, .forward = forward, .backward = backward
const ln_staged ln_staged_flowformer = {WHOLE, .kind = FLOWFORMER}, ln_staged_rala = {WHOLE, .kind = RALA},
                ln_staged_l2vit = {WHOLE, .kind = L2VIT};

double ln_whole_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double forward_flops = 4 * (double)s->key_size * (double)s->value_size;
    return form == LINNET_MIXER_BACKWARD ? 3 * forward_flops : forward_flops;
}
