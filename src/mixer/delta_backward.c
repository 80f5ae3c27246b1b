/* Owns: the backward of the delta core.
 *
 * A chunk (symbols of mixer/delta.c; L = read G', Q = query G, K' = key G[n] / G), D the gradient of the state after
 * it:
 *
 *     dY = B^T dO + K' D,   R = (1 - A)^-T dY = dX,   D <- G[n] D + Q^T dO + L^T R
 *     dA = R Y^T,  dB = dO Y^T,  dL = R S^T,  dQ = dO S^T,  dK' = Y D^T;   with a second product dW = B_w^T dO + W' D
 *     + A_w^T R,  dA_w = R W^T,  dB_w = dO W^T
 *
 * A, B, L, Q, K' are products of read, query and key with decays, so the gradient of the logarithms of G and G' is
 * query dquery - key dkey and read dread, each with its whole gradient; that of a token's decay is their sum over what
 * comes after it. Where a token has one decay, the products that contain it are summed instead: nothing cancels. No
 * quotient is formed.
 *
 * States before each chunk are made again: one kept every so many chunks, and those between from there. A task owns a
 * key head of a sequence and goes through its value heads in order, so shared rows have one owner. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/threads.h"
#include "mixer/delta.h"

enum { BLOCK = LN_DELTA_BLOCK, SEGMENT = 32 /* chunks whose states are simply kept */ };

/* Gradients of what ln_delta_tiles and ln_delta_inside call by these names. */
typedef struct room {
    ln_delta_tiles tiles;
    ln_delta_inside inside;
    float *kept, *states; /* [segments], [segment] states */
    float *state_gradient, *y;
    float *output, *value, *second; /* [.., value]: dO, R, dW */
    float *read_key, *query_key, *read_write, *query_write;
    float *left, *key_after, *write_after, *forget;
    float *read, *query, *key, *write_key;
    float *decay; /* logarithms: [rows], or [rows, key] */
    float *raw;   /* [rows, key or value] */
    float *keys_now, *idle[4];
    uint64_t floats;
} room;

typedef struct plan {
    const ln_mixer_call *call;
    ln_delta_shape shape;
    int64_t segment, segments; /* chunks, of the longest sequence */
    uint64_t bytes;
} plan;

static float *floats(ln_carver *carver, int64_t rows, int64_t columns) {
    return ln_carve(carver, (uint64_t)rows, (uint64_t)columns * sizeof(float));
}

static int64_t segment_of(int64_t chunks) {
    int64_t segment = ln_min_i64(chunks, SEGMENT);
    while (segment * segment < chunks) segment++;
    return segment;
}

static room carve(ln_carver *carver, const ln_delta_shape *shape, int64_t keys) {
    room r = {0};
    ln_delta_carve(carver, shape, &r.tiles, &r.inside);
    const int64_t chunks = ln_max_i64(1, ln_ceil_div(shape->longest, shape->tokens)), segment = segment_of(chunks),
                  key = shape->key, value = shape->value, n = shape->row_stride, state = keys * value;
    const int64_t tokens = ln_ceil_div(shape->tokens, BLOCK) * BLOCK;
    const bool second = shape->row->a != 0;
    const uint64_t from = carver->used;
    r.kept = floats(carver, ln_ceil_div(chunks, segment), state);
    r.states = floats(carver, segment, state);
    r.state_gradient = floats(carver, keys, value);
    r.y = floats(carver, n, value);
    r.output = floats(carver, tokens, value);
    r.value = floats(carver, n, value);
    r.second = second ? floats(carver, n, value) : NULL;
    r.read_key = floats(carver, n, n);
    r.query_key = floats(carver, tokens, n);
    r.read_write = second ? floats(carver, n, n) : NULL;
    r.query_write = second ? floats(carver, tokens, n) : NULL;
    r.left = floats(carver, n + tokens, key);
    r.key_after = floats(carver, n, key);
    r.write_after = second ? floats(carver, n, key) : NULL;
    r.forget = floats(carver, 1, key);
    r.read = floats(carver, n, key);
    r.query = floats(carver, tokens, key);
    r.key = floats(carver, n, key);
    r.write_key = second ? floats(carver, n, key) : NULL;
    r.decay = floats(carver, n, shape->channel ? key : 1);
    r.raw = floats(carver, n, ln_max_i64(key, value));
    r.keys_now = floats(carver, n, key);
    for (int i = 0; i < 4; i++) r.idle[i] = floats(carver, ln_max_i64(n, BLOCK * key), 1);
    r.floats = (carver->used - from) / sizeof(float);
    return r;
}

typedef struct walk {
    const plan *plan;
    const ln_mixer_call *call;
    const ln_delta_shape *shape;
    room room;
    int64_t sequence, head, count;
} walk;

/* ---- the two forms of decay ---- */

typedef struct side { /* of the key, or of the second product */
    const float *key, *key_after;
    float *read_a, *query_a, *gradient, *after_gradient;
} side;

static side side_of(const walk *w, bool second) {
    const room *r = &w->room;
    if (second)
        return (side){r->tiles.write_key, r->inside.write_after, r->read_write,
                      r->query_write,     r->write_key,          r->write_after};
    return (side){r->tiles.key, r->inside.key_after, r->read_key, r->query_key, r->key, r->key_after};
}

/* Row m of a pair matrix and its gradient say how tokens up to m micro + micro - 1 - late saw those before: each decay
 * between has a part in it. */
static void add_between(float *decay, const float *gradient, const float *a, int64_t stride, int64_t rows,
                        int64_t micro, int64_t late) {
    for (int64_t m = 0; m < rows; m++, gradient += stride, a += stride) {
        float sum = 0;
        for (int64_t t = 1; t < m * micro + micro - late; t++) {
            sum += gradient[t - 1] * a[t - 1];
            decay[t] += sum;
        }
    }
}

static void one_decay(walk *w, const side *s, bool first) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const ln_delta_inside *in = &r->inside;
    const ln_kernels *k = w->call->kernels;
    const int64_t key = w->shape->key, stride = w->shape->row_stride, n = t->rows, m = t->tokens;
    if (first) memset(r->decay, 0, (size_t)n * sizeof(float));
    add_between(r->decay, s->read_a, first ? in->read_key : in->read_write, stride, n, 1, 1);
    add_between(r->decay, s->query_a, first ? in->query_key : in->query_write, stride, m, w->shape->micro, 0);
    k->delta.mask(s->read_a, s->query_a, stride, t->decay, n, w->shape->micro, stride, r->idle[0], r->idle[1],
                  r->idle[2]);
    if (first) {
        k->delta.multiply(r->read, r->left, NULL, 0, in->before, n, key);
        k->delta.multiply(r->query, r->left + n * key, NULL, 0, in->upto, m, key);
    }
    k->tile.product(r->read, key, s->read_a, stride, s->key, key, n, key, n, true);
    k->tile.product(r->query, key, s->query_a, stride, s->key, key, m, key, n, true);
    k->delta.multiply(s->gradient, s->after_gradient, NULL, 0, in->after, n, key);
    k->tile.product_ta(s->gradient, key, s->read_a, stride, t->read, key, n, key, n, true);
    k->tile.product_ta(s->gradient, key, s->query_a, stride, t->query, key, n, key, m, true);
}

/* Of read and query times the decays since the beginning of their 16 tokens, from all keys before these. */
static void many_decays_queries(walk *w, const side *s, bool first) {
    room *r = &w->room;
    const ln_delta_inside *in = &r->inside;
    const ln_kernels *k = w->call->kernels;
    const int64_t key = w->shape->key, stride = w->shape->row_stride, n = r->tiles.rows;
    float *prefix = r->idle[0];
    for (int64_t c = 0; c < key; c++) prefix[c] = 1;
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t rows = ln_min_i64(BLOCK, n - i), at = i * key;
        const float *block = in->block + i / BLOCK * key;
        if (first) {
            k->delta.multiply(r->read + at, r->left + at, prefix, 0, NULL, rows, key);
            k->delta.multiply(r->query + at, r->left + n * key + at, prefix, 0, NULL, rows, key);
        }
        if (i > 0) {
            k->tile.product(r->read + at, key, s->read_a + i * stride, stride, r->keys_now, key, rows, key, i, true);
            k->tile.product(r->query + at, key, s->query_a + i * stride, stride, r->keys_now, key, rows, key, i, true);
        }
        memcpy(r->keys_now + at, s->key + at, (size_t)(rows * key) * sizeof(float));
        const ln_delta_gates gates = {
            rows,      key,        r->tiles.decay + at, r->tiles.read + at, r->tiles.query + at, r->keys_now + at,
            NULL,      r->idle[2], r->idle[2],          r->idle[2],         r->idle[2],          prefix,
            r->idle[1]};
        k->delta.gates(&gates);
        k->delta.multiply(r->keys_now, r->keys_now, block, 0, NULL, i, key);
    }
}

/* Of keys, from all read and queries after their 16 tokens; then what is inside the 16. */
static void many_decays_keys(walk *w, const side *s, bool last) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const ln_delta_inside *in = &r->inside;
    const ln_kernels *k = w->call->kernels;
    const int64_t key = w->shape->key, stride = w->shape->row_stride, n = t->rows;
    memcpy(s->gradient, s->after_gradient, (size_t)(n * key) * sizeof(float));
    for (int64_t i = (n - 1) / BLOCK * BLOCK; i >= 0; i -= BLOCK) {
        const int64_t rows = ln_min_i64(BLOCK, n - i), at = i * key;
        k->delta.multiply(s->gradient, s->gradient, in->block + i / BLOCK * key, 0, NULL, i, key);
        k->tile.product_ta(s->gradient, key, s->read_a + i * stride, stride, in->read_in + at, key, i, key, rows, true);
        k->tile.product_ta(s->gradient, key, s->query_a + i * stride, stride, in->query_in + at, key, i, key, rows,
                           true);
        /* Decays inside the 16 multiply read, query and key alike whatever they are. */
        const ln_delta_gates gates = {.tokens = rows,
                                      .columns = key,
                                      .decay = t->decay + at,
                                      .read = r->read + at,
                                      .query = r->query + at,
                                      .key = s->gradient + at,
                                      .read_in = last ? r->read + at : r->idle[2],
                                      .query_in = last ? r->query + at : r->idle[2],
                                      .read_all = r->idle[3],
                                      .query_all = r->idle[3],
                                      .prefix = r->idle[0],
                                      .block = r->idle[1]};
        k->delta.gates(&gates);
    }
}

static void many_decays_inside(walk *w, const side *s) {
    const room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const int64_t key = w->shape->key, stride = w->shape->row_stride;
    for (int64_t i = 0; i < t->rows; i += BLOCK) {
        const int64_t at = i * key;
        const ln_delta_pairs pairs = {.n = ln_min_i64(BLOCK, t->rows - i),
                                      .columns = key,
                                      .stride = stride,
                                      .read_a = s->read_a + i * stride + i,
                                      .query_a = s->query_a + i * stride + i,
                                      .read = t->read + at,
                                      .query = t->query + at,
                                      .key = s->key + at,
                                      .decay = t->decay + at,
                                      .read_gradient = r->read + at,
                                      .query_gradient = r->query + at,
                                      .key_gradient = s->gradient + at};
        w->call->kernels->delta.pairs_gradient(&pairs);
    }
}

static float dot(const float *x, const float *y, int64_t n) {
    float part[BLOCK] = {0}, sum = 0;
    for (int64_t c = 0; c < n; c += BLOCK)
        for (int64_t l = 0; l < BLOCK; l++) part[l] += x[c + l] * y[c + l];
    for (int l = 0; l < BLOCK; l++) sum += part[l];
    return sum;
}

static void add_product(float *sum, const float *x, const float *y, float sign, int64_t n) {
    for (int64_t c = 0; c < n; c++) sum[c] += sign * x[c] * y[c];
}

/* Gradients of the logarithms of decays; that of `read` by its own decay follows in unmake. Of one decay a token: the
 * parts between tokens are there (add_between); those of the states before and after the chunk are added. */
static void one_decay_gradient(walk *w) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const ln_delta_inside *in = &r->inside;
    const int64_t key = w->shape->key, n = t->rows, micro = w->shape->micro;
    double after = (double)dot(r->forget, in->forget, key), before = 0;
    for (int64_t i = 0; i < n; i++) {
        r->decay[i] += (float)after;
        after += (double)dot(in->key_after + i * key, r->key_after + i * key, key);
        if (t->write_key) after += (double)dot(in->write_after + i * key, r->write_after + i * key, key);
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t query = (n + i / micro) * key;
        if (i % micro == micro - 1) before += (double)dot(in->left + query, r->left + query, key);
        r->decay[i] += (float)before;
        before += (double)dot(in->left + i * key, r->left + i * key, key);
    }
}

/* Of a decay a channel: query dquery - key dkey and read dread, summed from the end. */
static void many_decays_gradient(walk *w) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const int64_t key = w->shape->key, n = t->rows;
    float *tail = r->idle[0];
    memset(tail, 0, (size_t)key * sizeof *tail);
    add_product(tail, r->forget, r->inside.forget, 1, key);
    for (int64_t i = 0; i < n; i++) {
        add_product(tail, r->inside.key_after + i * key, r->key_after + i * key, 1, key);
        if (t->write_key) add_product(tail, r->inside.write_after + i * key, r->write_after + i * key, 1, key);
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        const int64_t at = i * key;
        add_product(tail, t->query + at, r->query + at, 1, key);
        add_product(tail, t->key + at, r->key + at, -1, key);
        if (t->write_key) add_product(tail, t->write_key + at, r->write_key + at, -1, key);
        memcpy(r->decay + at, tail, (size_t)key * sizeof *tail);
        add_product(tail, t->read + at, r->read + at, 1, key);
    }
}

/* ---- a chunk ---- */

static void load_output_gradient(walk *w, int64_t step) {
    const int64_t value = w->shape->value, values = w->call->settings->value_size;
    const float scale = w->call->settings->scale;
    for (int64_t m = 0; m < w->room.tiles.tokens; m++) {
        const float *from = ln_mixer_output_gradient(w->call, w->head, w->sequence, step + m);
        for (int64_t v = 0; v < values; v++) w->room.output[m * value + v] = scale * from[v];
    }
}

static void solve_transposed(const ln_kernels *k, float *y, int64_t columns, const float *a, int64_t stride,
                             int64_t rows) {
    for (int64_t i = (rows - 1) / BLOCK * BLOCK; i >= 0; i -= BLOCK) {
        const int64_t end = ln_min_i64(rows, i + BLOCK);
        k->tile.product_ta(y + i * columns, columns, a + end * stride + i, stride, y + end * columns, columns, end - i,
                           columns, rows - end, true);
        k->delta.solve_transposed(y + i * columns, columns, a + i * stride + i, stride, end - i, columns);
    }
}

/* From dO and the gradient of the state after the chunk to those of all products, and of the state before. */
static void through_products(walk *w, const float *state) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const ln_delta_inside *in = &r->inside;
    const ln_kernels *k = w->call->kernels;
    const ln_tile_kernels *p = &k->tile;
    const int64_t keys = w->call->settings->key_size, key = w->shape->key, v = w->shape->value, n = t->rows,
                  m = t->tokens, stride = w->shape->row_stride;
    float *d = r->state_gradient;
    p->product_ta(r->value, v, in->query_key, stride, r->output, v, n, v, m, false);
    p->product(r->value, v, in->key_after, key, d, v, n, v, keys, true);
    solve_transposed(k, r->value, v, in->read_key, stride, n);
    p->product_tb(r->read_key, stride, r->value, v, r->y, v, n, n, v, false);
    p->product_tb(r->query_key, stride, r->output, v, r->y, v, m, n, v, false);
    p->product_tb(r->left, key, r->value, v, state, v, n, keys, v, false);
    p->product_tb(r->left + n * key, key, r->output, v, state, v, m, keys, v, false);
    p->product_tb(r->key_after, key, r->y, v, d, v, n, keys, v, false);
    if (t->write_key) {
        p->product_ta(r->second, v, in->query_write, stride, r->output, v, n, v, m, false);
        p->product(r->second, v, in->write_after, key, d, v, n, v, keys, true);
        p->product_ta(r->second, v, in->read_write, stride, r->value, v, n, v, n, true);
        p->product_tb(r->read_write, stride, r->value, v, t->value, v, n, n, v, false);
        p->product_tb(r->query_write, stride, r->output, v, t->value, v, m, n, v, false);
        p->product_tb(r->write_after, key, t->value, v, d, v, n, keys, v, false);
    }
    for (int64_t i = 0; i < keys; i++) r->forget[i] = dot(state + i * v, d + i * v, v);
    k->delta.multiply(d, d, NULL, 0, in->forget, keys, v);
    p->product_ta(d, v, in->left, key, r->value, v, keys, v, n, true);
    p->product_ta(d, v, in->left + n * key, key, r->output, v, keys, v, m, true);
}

static void through_decays(walk *w) {
    const int sides = w->room.tiles.write_key ? 2 : 1;
    for (int i = 0; i < sides; i++) {
        const side s = side_of(w, i == 1);
        if (w->shape->channel)
            many_decays_queries(w, &s, i == 0);
        else
            one_decay(w, &s, i == 0);
    }
    for (int i = 0; i < sides && w->shape->channel; i++) {
        const side s = side_of(w, i == 1);
        many_decays_keys(w, &s, i == sides - 1);
    }
    for (int i = 0; i < sides && w->shape->channel; i++) {
        const side s = side_of(w, i == 1);
        many_decays_inside(w, &s);
    }
    (w->shape->channel ? many_decays_gradient : one_decay_gradient)(w);
}

/* ---- from parts to inputs ---- */

/* Adds rows of `columns`, `stride` apart, `times` of them a token. */
static void add_rows(const walk *w, int input, int64_t step, const float *rows, int64_t columns, int64_t stride,
                     int64_t times) {
    for (int64_t m = 0; input && m < w->room.tiles.tokens; m++) {
        float *to = ln_mixer_gradient(w->call, input - 1, w->head, w->sequence, step + m);
        if (!to) return;
        for (int64_t i = 0; i < times; i++, to += columns)
            for (int64_t c = 0; c < columns; c++) to[c] += rows[(m * times + i) * stride + c];
    }
}

/* Gradient of x from that of y = x norm, where norm is 1 / length of x. */
static void unnormalise(const walk *w, float *gradient, const float *y, const float *norm, int64_t rows) {
    const int64_t key = w->shape->key;
    for (int64_t i = 0; i < rows && w->call->settings->normalise_keys; i++, gradient += key, y += key) {
        const float along = dot(gradient, y, key);
        for (int64_t c = 0; c < key; c++) gradient[c] = norm[i] * (gradient[c] - y[c] * along);
    }
}

/* read = -strength (e^g) direction and value = strength v, back to their factors; r->raw: v as it came. */
static void unmake(walk *w, int64_t step) {
    room *r = &w->room;
    ln_delta_tiles *t = &r->tiles;
    const ln_delta_row *row = w->shape->row;
    const int64_t key = w->shape->key, value = w->shape->value, micro = w->shape->micro;
    const bool decayed = row->decay && !row->undecayed, channel = w->shape->channel;
    float *direction = t->direction == t->key ? NULL : r->keys_now;
    for (int64_t i = 0; i < t->rows; i++) {
        float *dread = r->read + i * key, *dkey = direction ? direction + i * key : r->key + i * key;
        float *dvalue = r->value + i * value, *v = r->raw + i * value, beta = 0;
        const float *read = t->read + i * key, *along = t->direction + i * key;
        const float strength = row->beta ? t->beta[i] : 1;
        if (decayed && channel) add_product(r->decay + i * key, read, dread, 1, key);
        if (decayed && !channel) r->decay[i] += dot(read, dread, key);
        for (int64_t c = 0; c < key; c++) {
            const float decay = !decayed ? 1 : channel ? t->decay[i * key + c] : t->decay[i];
            const float erase = t->erase ? t->erase[i * key + c] : 1, whole = -decay * dread[c];
            dread[c] = whole * along[c] * (row->beta ? erase : strength); /* of erase; its sum that of beta */
            if (direction) dkey[c] = 0;
            dkey[c] += strength * erase * whole;
        }
        for (int64_t c = 0; c < key; c++) beta += row->beta ? dread[c] : 0;
        if (row->beta) beta += dot(v, dvalue, value);
        t->factor[i] = beta;
        for (int64_t c = 0; c < value; c++) {
            const float back = dvalue[c];
            dvalue[c] = strength * (t->write ? t->write[i * value + c] : 1) * back;
            v[c] *= back; /* of write */
        }
    }
    const linnet_mixer_settings *s = w->call->settings;
    add_rows(w, row->beta, step, t->factor, 1, 1, micro);
    add_rows(w, row->erase, step, r->read, s->key_size, key, 1);
    add_rows(w, row->write, step, r->raw, s->value_size, value, 1);
    if (!direction) return;
    unnormalise(w, direction, t->direction, t->norm + 2 * w->shape->row_stride, t->rows);
    add_rows(w, row->direction, step, direction, s->key_size, key, 1);
}

static void to_inputs(walk *w, int64_t step) {
    room *r = &w->room;
    const ln_delta_tiles *t = &r->tiles;
    const ln_delta_row *row = w->shape->row;
    const linnet_mixer_settings *s = w->call->settings;
    const int64_t key = w->shape->key, value = w->shape->value, micro = w->shape->micro;
    if (row->a) {
        add_rows(w, row->a, step, r->read, s->key_size, key, 1);
        add_rows(w, row->b, step, r->key, s->key_size, key, 1);
    } else {
        ln_delta_load_value(w->call, w->shape, w->head, w->sequence, step, t->tokens, r->raw);
        unmake(w, step);
    }
    if (w->shape->channel) {
        add_rows(w, row->decay, step, r->decay, s->key_size, key, 1);
    } else {
        for (int64_t m = 0; m < t->tokens; m++) r->decay[m] = r->decay[m * micro];
        add_rows(w, row->decay, step, r->decay, 1, 1, 1);
    }
    float *main_key = row->a ? r->write_key : r->key;
    unnormalise(w, r->query, t->query, t->norm, t->tokens);
    unnormalise(w, main_key, row->a ? t->write_key : t->key, t->norm + w->shape->row_stride, t->rows);
    add_rows(w, row->query, step, r->query, s->key_size, key, 1);
    add_rows(w, row->key, step, main_key, s->key_size, key, micro);
    add_rows(w, row->value, step, row->a ? r->second : r->value, s->value_size, value, micro);
}

/* ---- a sequence ---- */

static int64_t load_chunk(walk *w, int64_t chunk) {
    const int64_t step = chunk * w->shape->tokens;
    ln_delta_load(w->call, w->shape, w->head, w->sequence, step, ln_min_i64(w->shape->tokens, w->count - step), 1,
                  &w->room.tiles);
    ln_delta_solve_inside(w->call, w->shape, &w->room.tiles, &w->room.inside);
    return step;
}

/* The state before chunk + 1 from that before chunk; `to` may be `from`. */
static void forward_chunk(walk *w, int64_t chunk, const float *from, float *to) {
    room *r = &w->room;
    load_chunk(w, chunk);
    ln_delta_read(w->call, w->shape, &r->tiles, &r->inside, 0, from, r->y);
    if (to != from) memcpy(to, from, (size_t)(w->call->settings->key_size * w->shape->value) * sizeof *to);
    ln_delta_write(w->call, w->shape, &r->tiles, &r->inside, 0, r->y, to);
}

static void backward_chunk(walk *w, int64_t chunk, const float *state) {
    room *r = &w->room;
    const int64_t step = load_chunk(w, chunk);
    ln_delta_read(w->call, w->shape, &r->tiles, &r->inside, 0, state, r->y);
    load_output_gradient(w, step);
    through_products(w, state);
    through_decays(w);
    to_inputs(w, step);
}

static void widen(float *to, int64_t stride, const float *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) {
        memset(to + i * stride, 0, (size_t)stride * sizeof *to);
        if (from) memcpy(to + i * stride, from + i * columns, (size_t)columns * sizeof *to);
    }
}

static void run_head(walk *w) {
    room *r = &w->room;
    const int64_t keys = w->call->settings->key_size, values = w->call->settings->value_size, value = w->shape->value,
                  state = keys * value, chunks = ln_ceil_div(w->count, w->shape->tokens), segment = w->plan->segment,
                  segments = ln_ceil_div(chunks, segment);
    widen(r->kept, value, ln_mixer_state_in(w->call, w->sequence, w->head), keys, values);
    widen(r->state_gradient, value, ln_mixer_state_out_gradient(w->call, w->sequence, w->head), keys, values);
    for (int64_t s = 1; s < segments; s++) {
        memcpy(r->states, r->kept + (s - 1) * state, (size_t)state * sizeof(float));
        for (int64_t c = 0; c < segment; c++) forward_chunk(w, (s - 1) * segment + c, r->states, r->states);
        memcpy(r->kept + s * state, r->states, (size_t)state * sizeof(float));
    }
    for (int64_t s = segments - 1; s >= 0; s--) {
        const int64_t first = s * segment, count = ln_min_i64(segment, chunks - first);
        memcpy(r->states, r->kept + s * state, (size_t)state * sizeof(float));
        for (int64_t c = 0; c + 1 < count; c++)
            forward_chunk(w, first + c, r->states + c * state, r->states + (c + 1) * state);
        for (int64_t c = count - 1; c >= 0; c--) backward_chunk(w, first + c, r->states + c * state);
    }
    float *to = ln_mixer_state_in_gradient(w->call, w->sequence, w->head);
    for (int64_t k = 0; to && k < keys; k++)
        memcpy(to + k * values, r->state_gradient + k * value, (size_t)values * sizeof *to);
}

static void run_task(void *argument, int64_t task, int worker) {
    const plan *p = argument;
    const linnet_mixer_settings *s = p->call->settings;
    int64_t first;
    walk w = {.plan = p, .call = p->call, .shape = &p->shape, .sequence = task / s->key_heads};
    ln_mixer_span(s, w.sequence, &first, &w.count);
    if (w.count == 0) return;
    unsigned char *base = (unsigned char *)p->call->workspace + (uint64_t)worker * p->bytes;
    ln_carver carver = {.base = base};
    w.room = carve(&carver, &p->shape, s->key_size);
    memset(base, 0, p->bytes); /* padding stays zero */
    for (w.head = 0; w.head < s->heads; w.head++)
        if (ln_mixer_key_head(s, w.head) == task % s->key_heads) run_head(&w);
}

static plan plan_of(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                    const linnet_mixer_settings *settings) {
    plan p = {.shape = ln_delta_shape_of(mixer, kernels, threads, settings, LINNET_MIXER_BACKWARD)};
    p.segment = segment_of(ln_max_i64(1, ln_ceil_div(p.shape.longest, p.shape.tokens)));
    ln_carver carver = {0};
    carve(&carver, &p.shape, settings->key_size);
    p.bytes = carver.used;
    return p;
}

void ln_delta_backward(const ln_mixer_call *call) {
    plan p = plan_of(call->mixer, call->kernels, ln_team_size(call->team), call->settings);
    p.call = call;
    ln_parallel(call->team, call->settings->sequences * call->settings->key_heads, run_task, &p);
}

uint64_t ln_delta_backward_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                     const linnet_mixer_settings *settings) {
    return plan_of(mixer, kernels, threads, settings).bytes * (uint64_t)threads;
}
