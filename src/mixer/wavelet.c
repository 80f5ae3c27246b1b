/* Owns: linear attention over all tokens behind a filter of Haar wavelets (Dentamaro 2025, "WERSA"; the paper's method
 * as its abstract tells it, the rest is stated here): with q, k = H^T G H query, key along the sequence,
 *
 *     y[i] = f(q[i]) . sum_j f(k[j]) value[j]  /  f(q[i]) . sum_j f(k[j]).
 *
 * H: of n numbers, each pair becomes (a + b) / sqrt 2 and (a - b) / sqrt 2; the differences are the details of this
 * level, the sums, with the last number where n is odd, go to the next, `slots` levels at most. It is orthonormal, so
 * gates of 1 change nothing. G: the details of level l, of the tokens from t on, are multiplied by filter[l] and, where
 * given, by gate[t][l].
 *
 * f(x) = e^(w x - |x|^2 / 2 ) + 1e-6 for the rows w of `projection`, as many features as columns: positive random
 * features when these are normal numbers (Choromanski et al. 2020); their size is the bandwidth, and can be learned.
 *
 * Everything is O(T). Backward: H^T and H change places, as they are each other's transpose; a gate's gradient is the
 * product of what came and what is asked for. */
#include "mixer/wavelet.h"

#include <math.h>
#include <string.h>

enum { QUERY, KEY, VALUE, FILTER, GATE, PROJECTION };
static const float HALF = 0.70710678f, FLOOR = 1e-6f;

typedef struct room {
    float *side[2];                      /* [T, K]: filtered queries and keys */
    float *feature[2];                   /* [T, K] */
    float *coefficients, *spare, *gates; /* [T, K], [T, K], [T, slots] */
    float *value, *output, *error;       /* [T, V + 1] */
    float *matrix, *matrix_gradient;     /* [K, V + 1] */
    float *projection, *filter, *projection_gradient, *filter_gradient;
    float *feature_gradient; /* [T, K] */
} room;

typedef struct wavelet {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    int64_t most, keys, width, room_floats;
} wavelet;

static void carve_room(const wavelet *c, room *r, ln_carver *carver, bool backward) {
    const uint64_t narrow = (uint64_t)(c->most * c->keys), wide = (uint64_t)(c->most * c->width),
                   matrix = (uint64_t)(c->keys * c->width), square = (uint64_t)(c->keys * c->keys);
    for (int side = 0; side < 2; side++) {
        r->side[side] = ln_carve(carver, narrow, sizeof(float));
        r->feature[side] = ln_carve(carver, narrow, sizeof(float));
    }
    r->coefficients = ln_carve(carver, narrow, sizeof(float));
    r->spare = ln_carve(carver, narrow, sizeof(float));
    r->gates = ln_carve(carver, (uint64_t)(c->most * c->s->slots), sizeof(float));
    r->value = ln_carve(carver, wide, sizeof(float));
    r->output = ln_carve(carver, wide, sizeof(float));
    r->matrix = ln_carve(carver, matrix, sizeof(float));
    r->projection = ln_carve(carver, square, sizeof(float));
    r->filter = ln_carve(carver, (uint64_t)c->s->slots, sizeof(float));
    if (!backward) return;
    r->error = ln_carve(carver, wide, sizeof(float));
    r->matrix_gradient = ln_carve(carver, matrix, sizeof(float));
    r->projection_gradient = ln_carve(carver, square, sizeof(float));
    r->filter_gradient = ln_carve(carver, (uint64_t)c->s->slots, sizeof(float));
    r->feature_gradient = ln_carve(carver, narrow, sizeof(float));
}

static wavelet open_call(const linnet_mixer_settings *s, bool backward, ln_carver *room_bytes) {
    wavelet c = {.s = s, .keys = s->key_size, .width = s->value_size + 1, .most = ln_mixer_longest(s)};
    room r;
    ln_carver carver = {0};
    carve_room(&c, &r, &carver, backward);
    *room_bytes = carver;
    c.room_floats = (int64_t)(carver.used / sizeof(float));
    return c;
}

uint64_t ln_wavelet_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                              const linnet_mixer_settings *settings, linnet_mixer_form form) {
    ln_carver carver;
    (void)mixer;
    (void)kernels;
    open_call(settings, form == LINNET_MIXER_BACKWARD, &carver);
    return ln_carved(&carver, threads);
}

static room room_of(const wavelet *c, int worker, bool backward) {
    room r = {0};
    ln_carver carver = {.base = (unsigned char *)((float *)c->call->workspace + worker * c->room_floats)};
    carve_room(c, &r, &carver, backward);
    return r;
}

/* ---- wavelets ---- */

/* Rows x become rows of sums, then rows of details, level by level: sums of the last level first, then details of the
 * last level, ..., of the first. Returns levels that were there. */
static int analyse(float *x, float *spare, int64_t rows, int64_t columns, int64_t levels) {
    int level = 0;
    for (int64_t n = rows; level < levels && n > 1; level++) {
        const int64_t pairs = n / 2, rest = n - pairs;
        for (int64_t p = 0; p < pairs; p++)
            for (int64_t i = 0; i < columns; i++) {
                const float a = x[2 * p * columns + i], b = x[(2 * p + 1) * columns + i];
                spare[p * columns + i] = HALF * (a + b);
                spare[(rest + p) * columns + i] = HALF * (a - b);
            }
        if (rest > pairs) memcpy(spare + pairs * columns, x + (n - 1) * columns, (size_t)columns * sizeof *x);
        memcpy(x, spare, (size_t)(n * columns) * sizeof *x);
        n = rest;
    }
    return level;
}

/* Rows at a level: T halved that often, rounded up. */
static int64_t rows_at(int64_t rows, int level) {
    for (; level > 0; level--) rows -= rows / 2;
    return rows;
}

static void synthesise(float *x, float *spare, int64_t rows, int64_t columns, int levels) {
    for (int level = levels - 1; level >= 0; level--) {
        const int64_t n = rows_at(rows, level), pairs = n / 2, rest = n - pairs;
        for (int64_t p = 0; p < pairs; p++)
            for (int64_t i = 0; i < columns; i++) {
                const float a = x[p * columns + i], b = x[(rest + p) * columns + i];
                spare[2 * p * columns + i] = HALF * (a + b);
                spare[(2 * p + 1) * columns + i] = HALF * (a - b);
            }
        if (rest > pairs) memcpy(spare + (n - 1) * columns, x + pairs * columns, (size_t)columns * sizeof *x);
        memcpy(x, spare, (size_t)(n * columns) * sizeof *x);
    }
}

/* For each row of details: its level, and the token that it begins with. */
typedef void (*detail_work)(const wavelet *c, const room *r, float *row, const float *before, int level, int64_t token,
                            int64_t head, int64_t sequence);
static void each_detail(const wavelet *c, const room *r, float *x, const float *before, int64_t rows, int levels,
                        detail_work work, int64_t head, int64_t sequence) {
    for (int level = 0; level < levels; level++) {
        const int64_t n = rows_at(rows, level), pairs = n / 2, rest = n - pairs;
        for (int64_t p = 0; p < pairs; p++)
            work(c, r, x + (rest + p) * c->keys, before ? before + (rest + p) * c->keys : NULL, level, p << (level + 1),
                 head, sequence);
    }
}

static float gate_of(const wavelet *c, const room *r, int level, int64_t token) {
    return r->filter[level] * (ln_mixer_has(c->call, GATE) ? r->gates[token * c->s->slots + level] : 1);
}

static void scale_detail(const wavelet *c, const room *r, float *row, const float *before, int level, int64_t token,
                         int64_t head, int64_t sequence) {
    (void)before;
    (void)head;
    (void)sequence;
    const float gate = gate_of(c, r, level, token);
    for (int64_t i = 0; i < c->keys; i++) row[i] *= gate;
}

/* row: the gradient of a scaled detail becomes that of the detail; before: the detail. */
static void back_detail(const wavelet *c, const room *r, float *row, const float *before, int level, int64_t token,
                        int64_t head, int64_t sequence) {
    float *gate = ln_mixer_gradient(c->call, GATE, head, sequence, token);
    double sum = 0;
    for (int64_t i = 0; i < c->keys; i++) sum += (double)row[i] * (double)before[i];
    if (ln_mixer_has(c->call, GATE)) {
        if (gate) gate[level] += (float)(sum * (double)r->filter[level]);
        sum *= (double)r->gates[token * c->s->slots + level];
    }
    r->filter_gradient[level] += (float)sum;
    scale_detail(c, r, row, NULL, level, token, head, sequence);
}

static void filter_side(const wavelet *c, const room *r, float *x, int64_t count) {
    const int levels = analyse(x, r->spare, count, c->keys, c->s->slots);
    each_detail(c, r, x, NULL, count, levels, scale_detail, 0, 0);
    synthesise(x, r->spare, count, c->keys, levels);
}

/* ---- attention ---- */

static void make_features(const wavelet *c, const room *r, int side, int64_t count) {
    const int64_t keys = c->keys;
    c->call->kernels->tile.product_tb(r->feature[side], keys, r->side[side], keys, r->projection, keys, count, keys,
                                      keys, false);
    for (int64_t t = 0; t < count; t++) {
        const float *x = r->side[side] + t * keys;
        float *f = r->feature[side] + t * keys, square = 0;
        for (int64_t i = 0; i < keys; i++) square += x[i] * x[i];
        for (int64_t i = 0; i < keys; i++) f[i] = expf(f[i] - square / 2) + FLOOR;
    }
}

static int64_t run_forward(const wavelet *c, const room *r, int64_t head, int64_t sequence) {
    int64_t first, count;
    const ln_tile_kernels *tile = &c->call->kernels->tile;
    ln_mixer_span(c->s, sequence, &first, &count);
    if (count == 0) return 0;
    ln_mixer_load(c->call, FILTER, head, 0, 0, 1, r->filter);
    ln_mixer_load(c->call, PROJECTION, head, 0, 0, 1, r->projection);
    if (ln_mixer_has(c->call, GATE)) ln_mixer_load(c->call, GATE, head, sequence, 0, count, r->gates);
    for (int64_t t = 0; t < count; t++) {
        ln_mixer_load(c->call, VALUE, head, sequence, t, 1, r->value + t * c->width);
        r->value[t * c->width + c->width - 1] = 1;
    }
    for (int side = 0; side < 2; side++) {
        ln_mixer_load(c->call, side == 0 ? QUERY : KEY, head, sequence, 0, count, r->side[side]);
        filter_side(c, r, r->side[side], count);
        make_features(c, r, side, count);
    }
    tile->product_ta(r->matrix, c->width, r->feature[1], c->keys, r->value, c->width, c->keys, c->width, count, false);
    tile->product(r->output, c->width, r->feature[0], c->keys, r->matrix, c->width, count, c->width, c->keys, false);
    return count;
}

static void forward_task(void *argument, int64_t task, int worker) {
    const wavelet *c = argument;
    const int64_t head = task % c->s->heads, sequence = task / c->s->heads, columns = c->width - 1;
    const room r = room_of(c, worker, false);
    const int64_t count = run_forward(c, &r, head, sequence);
    for (int64_t t = 0; t < count; t++) {
        const float *sums = r.output + t * c->width, divisor = sums[columns];
        float *y = ln_mixer_output(c->call, head, sequence, t);
        for (int64_t i = 0; i < columns; i++) y[i] = sums[i] / divisor;
    }
}

void ln_wavelet_forward(const ln_mixer_call *call) {
    ln_carver carver;
    wavelet c = open_call(call->settings, false, &carver);
    c.call = call;
    ln_parallel(call->team, c.s->sequences * c.s->heads, forward_task, &c);
}

/* ---- backward ---- */

static void load_error(const wavelet *c, const room *r, int64_t head, int64_t sequence, int64_t count) {
    const int64_t columns = c->width - 1;
    for (int64_t t = 0; t < count; t++) {
        const float *dy = ln_mixer_output_gradient(c->call, head, sequence, t), *sums = r->output + t * c->width;
        float *e = r->error + t * c->width;
        double along = 0;
        for (int64_t i = 0; i < columns; i++) {
            e[i] = dy[i] / sums[columns];
            along += (double)e[i] * (double)sums[i];
        }
        e[columns] = -(float)(along / (double)sums[columns]);
    }
}

/* feature_gradient goes back through features and filter, to the input and to the parameters. */
static void side_back(const wavelet *c, const room *r, int side, int64_t head, int64_t sequence, int64_t count) {
    const int64_t keys = c->keys;
    const ln_tile_kernels *tile = &c->call->kernels->tile;
    float *g = r->feature_gradient, *x = r->side[side];
    for (int64_t t = 0; t < count; t++) {
        float sum = 0;
        for (int64_t i = 0; i < keys; i++) {
            g[t * keys + i] *= r->feature[side][t * keys + i] - FLOOR;
            sum += g[t * keys + i];
        }
        for (int64_t i = 0; i < keys; i++) r->coefficients[t * keys + i] = -sum * x[t * keys + i];
    }
    tile->product_ta(r->projection_gradient, keys, g, keys, x, keys, keys, keys, count, true);
    tile->product(r->coefficients, keys, g, keys, r->projection, keys, count, keys, keys, true);
    ln_mixer_load(c->call, side == 0 ? QUERY : KEY, head, sequence, 0, count, x);
    const int levels = analyse(x, r->spare, count, keys, c->s->slots);
    analyse(r->coefficients, r->spare, count, keys, c->s->slots);
    each_detail(c, r, r->coefficients, x, count, levels, back_detail, head, sequence);
    synthesise(r->coefficients, r->spare, count, keys, levels);
    for (int64_t t = 0; t < count; t++) {
        float *to = ln_mixer_gradient(c->call, side == 0 ? QUERY : KEY, head, sequence, t);
        for (int64_t i = 0; to && i < keys; i++) to[i] += r->coefficients[t * keys + i];
    }
}

static void back_head(const wavelet *c, const room *r, int64_t head, int64_t sequence) {
    const ln_tile_kernels *tile = &c->call->kernels->tile;
    const int64_t keys = c->keys, width = c->width, count = run_forward(c, r, head, sequence);
    if (count == 0) return;
    load_error(c, r, head, sequence, count);
    tile->product_ta(r->matrix_gradient, width, r->feature[0], keys, r->error, width, keys, width, count, false);
    tile->product_tb(r->feature_gradient, keys, r->error, width, r->matrix, width, count, keys, width, false);
    side_back(c, r, 0, head, sequence, count);
    tile->product_tb(r->feature_gradient, keys, r->value, width, r->matrix_gradient, width, count, keys, width, false);
    tile->product(r->output, width, r->feature[1], keys, r->matrix_gradient, width, count, width, keys, false);
    side_back(c, r, 1, head, sequence, count);
    for (int64_t t = 0; t < count; t++) {
        float *to = ln_mixer_gradient(c->call, VALUE, head, sequence, t);
        for (int64_t i = 0; to && i < width - 1; i++) to[i] += r->output[t * width + i];
    }
}

static void add(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; to && i < count; i++) to[i] += from[i];
}

/* All sequences and heads that add to the same gradients. */
static void backward_task(void *argument, int64_t key_head, int worker) {
    const wavelet *c = argument;
    const room r = room_of(c, worker, true);
    for (int64_t head = 0; head < c->s->heads; head++) {
        if (ln_mixer_key_head(c->s, head) != key_head) continue;
        memset(r.projection_gradient, 0, (size_t)(c->keys * c->keys) * sizeof(float));
        memset(r.filter_gradient, 0, (size_t)c->s->slots * sizeof(float));
        for (int64_t sequence = 0; sequence < c->s->sequences; sequence++) back_head(c, &r, head, sequence);
        add(ln_mixer_gradient(c->call, PROJECTION, head, 0, 0), r.projection_gradient, c->keys * c->keys);
        add(ln_mixer_gradient(c->call, FILTER, head, 0, 0), r.filter_gradient, c->s->slots);
    }
}

void ln_wavelet_backward(const ln_mixer_call *call) {
    ln_carver carver;
    wavelet c = open_call(call->settings, true, &carver);
    c.call = call;
    ln_parallel(call->team, c.s->key_heads, backward_task, &c);
}

/* ---- settings ---- */

const char *ln_wavelet_refuse(const linnet_mixer_settings *s) {
    return s->slots > 40 ? "slots, the levels of wavelets, must be at most 40" : NULL;
}

double ln_wavelet_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double keys = (double)s->key_size, columns = (double)s->value_size + 1;
    return (form == LINNET_MIXER_BACKWARD ? 3 : 1) * (4 * keys * columns + 4 * keys * keys + 20 * keys);
}
