/* Owns: kernelised attention with relative positions (Luo et al. 2021),
 *
 *     y[i] = sum_j w[i - j] (f(query[i]) . f(key[j])) value[j]  /  the same sum without value,  w[d] = e^bias[d],
 *
 * in time T log T: for each feature a, sum_j w[i - j] f(key[j])[a] value[j] is a convolution over j, whose result at i
 * is weighed by f(query[i])[a]. The divisor is that of one more column of values that is 1 everywhere. Blocks are those
 * of convolution.c; without an order of time there is one block, and taps for what comes later lie at its end, negative
 * as x^2M = -1.
 *
 * Backward: with e the gradient of both sums, the convolution turned round gives r[a][j] = sum_i w[i - j]
 * f(query[i])[a] e[i]; then dvalue[j] = sum_a f(key[j])[a] r[a][j], df(key[j])[a] = value[j] . r[a][j], df(query[i])[a]
 * = e[i] . (what forward weighs), dw[d] = sum over products of spectra.
 *
 * Where w spans many orders of magnitude, those below 1e-7 of the largest are lost in the transforms' rounding. */
#include "mixer/toeplitz.h"

#include <math.h>
#include <string.h>

#include "mixer/wave.h"

enum { LANES = LN_FFT_LANES, POINT = LN_FFT_POINT };
enum { GIVEN, ELU, EXPONENTIAL };

/* ---- the feature maps ---- */

/* Derivative, from the argument's feature. */
static float feature_slope(int map, float f) {
    return map == GIVEN || (map == ELU && f > 1) ? 1 : f;
}

/* ---- where things lie ---- */

/* Of one task; positions x columns. Values have one column that is 1, and zeros up to a multiple of 16. */
typedef struct room {
    float *spectrum, *x, *e, *sum;
    float *query, *key, *value, *sums, *error, *query_gradient, *key_gradient, *value_gradient;
} room;

typedef struct toeplitz {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    ln_wave wave;
    bool alone, both; /* both: also what comes later is seen */
    int map;
    int64_t keys, values, width, taps, history, positions, room_floats;
    float *rooms;
} toeplitz;

static void carve_room(const toeplitz *c, room *r, ln_carver *carver, bool backward) {
    const uint64_t points = (uint64_t)c->wave.points * POINT, keys = (uint64_t)(c->positions * c->keys),
                   values = (uint64_t)(c->positions * c->width);
    float **transforms[] = {&r->spectrum, &r->x, &r->e, &r->sum},
          **wide[] = {&r->value, &r->sums, &r->error, &r->value_gradient},
          **narrow[] = {&r->query, &r->key, &r->query_gradient, &r->key_gradient};
    const int some = backward ? 4 : 2;
    for (int i = 0; i < some; i++) {
        *transforms[i] = ln_carve(carver, points, sizeof(float));
        *wide[i] = ln_carve(carver, values, sizeof(float));
        *narrow[i] = ln_carve(carver, keys, sizeof(float));
    }
}

static void lay_out(toeplitz *c, ln_carver *carver, const ln_kernels *kernels, ln_team *team, int threads, bool state,
                    linnet_mixer_form form) {
    const linnet_mixer_settings *s = c->s;
    const int64_t tokens = ln_mixer_longest(s);
    c->map = (int)s->option[0];
    c->keys = s->key_size;
    c->values = s->value_size;
    c->width = (s->value_size + LANES) / LANES * LANES;
    c->taps = ln_max_i64(state ? s->slots : ln_min_i64(s->slots, tokens), 1);
    c->history = c->both ? 0 : c->taps - 1;
    double cycles;
    int levels = 0;
    if (c->both)
        while (((int64_t)2 << levels) < tokens + c->taps - 1) levels++;
    else
        levels = ln_wave_levels(tokens, c->taps, &cycles);
    c->positions = (int64_t)2 << levels;
    c->alone = levels <= LN_WAVE_ALONE;
    ln_wave_open(&c->wave, carver, kernels, c->alone ? NULL : team, threads, levels, true);
    room r;
    ln_carver one = {0};
    carve_room(c, &r, &one, form == LINNET_MIXER_BACKWARD);
    c->room_floats = (int64_t)(one.used / sizeof(float));
    carver->overflow |= one.overflow;
    c->rooms = ln_carve(carver, one.used, c->alone ? (uint64_t)threads : 1);
}

/* Query, keys, value, scores. */
static int64_t step_floats(const linnet_mixer_settings *s) {
    return (s->slots + 1) * s->key_size + s->value_size + s->slots;
}

uint64_t ln_toeplitz_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                               const linnet_mixer_settings *settings, linnet_mixer_form form) {
    if (form == LINNET_MIXER_STEP) return (uint64_t)threads * (uint64_t)step_floats(settings) * sizeof(float);
    uint64_t most = 0;
    for (int state = 0; state < (mixer->not_causal ? 1 : 2); state++) {
        toeplitz c = {.s = settings, .both = mixer->not_causal};
        ln_carver carver = {0};
        lay_out(&c, &carver, kernels, NULL, threads, state, form);
        if (carver.overflow) return UINT64_MAX;
        if (carver.used > most) most = carver.used;
    }
    return most;
}

static toeplitz open_call(const ln_mixer_call *call, linnet_mixer_form form) {
    const linnet_mixer_tensors *t = call->tensors;
    toeplitz c = {.call = call, .s = call->settings, .both = call->mixer->not_causal};
    ln_carver carver = {.base = call->workspace};
    lay_out(&c, &carver, call->kernels, call->team, ln_team_size(call->team),
            t->state_in || t->state_out_gradient || t->state_in_gradient, form);
    return c;
}

static room room_of(const toeplitz *c, int worker, linnet_mixer_form form) {
    room r = {0};
    ln_carver carver = {.base = (unsigned char *)(c->rooms + (c->alone ? worker : 0) * c->room_floats)};
    carve_room(c, &r, &carver, form == LINNET_MIXER_BACKWARD);
    return r;
}

/* ---- a block of a sequence, for one head ---- */

typedef struct block {
    const toeplitz *c;
    room r;
    int64_t head, sequence, count;
    int64_t origin, end; /* new steps: from origin to end */
    int64_t feature, group;
    bool backward, add;
} block;

static const float *bias_of(const toeplitz *c, int64_t head) {
    const linnet_tensor *t = &c->call->tensors->input[LN_TOEPLITZ_BIAS];
    return (const float *)t->data + head * t->head_stride + (c->both ? c->s->slots - 1 : 0);
}

static void make_features(const toeplitz *c, float *x, int64_t count) {
    enum { PART = 64 };
    const ln_vector_kernels *vector = &c->call->kernels->vector;
    if (c->map == EXPONENTIAL) vector->exponential(x, x, 0, count);
    for (int64_t first = 0; c->map == ELU && first < count; first += PART) {
        float positive[PART], *at = x + first;
        const int64_t n = ln_min_i64(PART, count - first);
        for (int64_t i = 0; i < n; i++) {
            positive[i] = at[i] > 0 ? at[i] : 0;
            at[i] = at[i] > 0 ? 0 : at[i];
        }
        vector->exponential(at, at, 0, n);
        for (int64_t i = 0; i < n; i++) at[i] += positive[i];
    }
}

/* What all biases of a head may lose without changing a quotient. */
static float shift_of(const toeplitz *c, int64_t head) {
    const float *bias = bias_of(c, head);
    float most = -INFINITY;
    if (!c->s->normalise) return 0;
    for (int64_t d = c->both ? 1 - c->s->slots : 0; d < c->s->slots; d++) most = fmaxf(most, bias[d]);
    return isfinite(most) ? most : 0;
}

/* Parts of a state [slots, columns of the part]: keys, values, and weights: 1, or 0 in the rows of a beginning, which
 * so count nothing; their sign means nothing. Numbered as the inputs are. */
enum { WEIGHT = 3, PARTS = 4 };
static int64_t part_columns(const toeplitz *c, int part) {
    return part == WEIGHT ? 1 : part == LN_TOEPLITZ_VALUE ? c->values : c->keys;
}
/* NULL where the state is, or where it does not reach back so far. step < 0 */
static float *state_row(const toeplitz *c, const float *state, int part, int64_t step) {
    const int64_t slots = c->s->slots;
    int64_t at = (slots + step) * part_columns(c, part);
    if (!state || step < -slots) return NULL;
    for (int before = LN_TOEPLITZ_KEY; before < part; before++) at += slots * part_columns(c, before);
    return (float *)(uintptr_t)state + at;
}

/* The row of an input, or part of the state, at a step. */
static void raw_row(const block *b, int part, int64_t step, float *row) {
    const toeplitz *c = b->c;
    const size_t bytes = (size_t)part_columns(c, part) * sizeof *row;
    const float *state = step < 0 ? state_row(c, ln_mixer_state_in(c->call, b->sequence, b->head), part, step) : NULL;
    if (step >= 0 && part == WEIGHT)
        *row = 1;
    else if (step >= 0)
        ln_mixer_load(c->call, part, b->head, b->sequence, step, 1, row);
    else if (state)
        memmove(row, state, bytes);
    else
        memset(row, 0, bytes);
}

/* Features of keys, values and weights of all positions; features of queries of the new ones. */
static void load_block(const block *b) {
    const toeplitz *c = b->c;
    for (int64_t p = 0; p < c->positions; p++) {
        const int64_t step = b->origin + p - c->history;
        float *key = b->r.key + p * c->keys, *query = b->r.query + p * c->keys, *value = b->r.value + p * c->width;
        memset(value, 0, (size_t)c->width * sizeof *value);
        memset(key, 0, (size_t)c->keys * sizeof *key);
        memset(query, 0, (size_t)c->keys * sizeof *query);
        if (step >= b->count) continue;
        raw_row(b, LN_TOEPLITZ_KEY, step, key);
        raw_row(b, LN_TOEPLITZ_VALUE, step, value);
        raw_row(b, WEIGHT, step, value + c->values);
        value[c->values] = fabsf(value[c->values]);
        make_features(c, key, c->keys);
        if (step < b->origin || step >= b->end) continue;
        raw_row(b, LN_TOEPLITZ_QUERY, step, query);
        make_features(c, query, c->keys);
    }
}

static void weight_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const block *b = argument;
    const toeplitz *c = b->c;
    const float *bias = bias_of(c, b->head), shift = shift_of(c, b->head), share = 1 / (float)c->wave.points;
    for (int64_t p = first; count > 0; count--, p++, rows += gap) {
        float w = 0;
        if (p < c->taps)
            w = expf(bias[p] - shift) * share;
        else if (c->both && c->positions - p < c->taps)
            w = -expf(bias[p - c->positions] - shift) * share;
        for (int i = 0; i < LANES; i++) rows[i] = w;
    }
}

/* weight[p] * row[p]'s 16 columns */
static void weighed(const block *b, const float *weight, const float *row, int64_t first, int64_t count, float *rows,
                    int64_t gap) {
    const toeplitz *c = b->c;
    for (int64_t p = first; count > 0; count--, p++, rows += gap) {
        const float w = weight[p * c->keys + b->feature], *x = row + p * c->width + b->group * LANES;
        for (int i = 0; i < LANES; i++) rows[i] = w * x[i];
    }
}
static void key_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const block *b = argument;
    weighed(b, b->r.key, b->r.value, first, count, rows, gap);
}
static void query_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const block *b = argument;
    weighed(b, b->r.query, b->r.error, first, count, rows, gap);
}

static void sums_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const block *b = argument;
    const toeplitz *c = b->c;
    for (int64_t p = first; count > 0; count--, p++, rows += gap) {
        const float w = b->r.query[p * c->keys + b->feature];
        float *y = b->r.sums + p * c->width + b->group * LANES;
        for (int i = 0; i < LANES; i++) y[i] += w * rows[i];
    }
}

static float dot_16(const float *x, const float *y) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i] * y[i];
    return sum;
}

static void query_gradient_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const block *b = argument;
    const toeplitz *c = b->c;
    for (int64_t p = first; count > 0; count--, p++, rows += gap)
        b->r.query_gradient[p * c->keys + b->feature] += dot_16(rows, b->r.error + p * c->width + b->group * LANES);
}

static void key_gradient_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const block *b = argument;
    const toeplitz *c = b->c;
    for (int64_t p = first; count > 0; count--, p++, rows += gap) {
        const float w = b->r.key[p * c->keys + b->feature], *value = b->r.value + p * c->width + b->group * LANES;
        float *gradient = b->r.value_gradient + p * c->width + b->group * LANES;
        b->r.key_gradient[p * c->keys + b->feature] += dot_16(rows, value);
        for (int i = 0; i < LANES; i++) gradient[i] += w * rows[i];
    }
}

/* ---- rows of transforms ---- */

static void spectrum_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const block *b = argument;
    (void)points;
    ln_wave_down_row(wave, b->r.spectrum, first, level, node);
}
static void forward_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const block *b = argument;
    ln_wave_down_row(wave, b->r.x, first, level, node);
    wave->kernels->multiply(b->r.x + first * POINT, b->r.spectrum + first * POINT, points);
    ln_wave_up_row(wave, b->r.x, first, level, node);
}
static void backward_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const block *b = argument;
    float *x = b->r.x + first * POINT, *e = b->r.e + first * POINT;
    const float *spectrum = b->r.spectrum + first * POINT;
    ln_wave_down_row(wave, b->r.x, first, level, node);
    ln_wave_down_row(wave, b->r.e, first, level, node);
    wave->kernels->correlate(b->r.sum + first * POINT, e, x, points);
    wave->kernels->multiply(x, spectrum, points);
    wave->kernels->multiply_conjugate(e, spectrum, points);
    ln_wave_up_row(wave, b->r.x, first, level, node);
    ln_wave_up_row(wave, b->r.e, first, level, node);
}
static void sum_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const block *b = argument;
    (void)points;
    ln_wave_up_row(wave, b->r.sum, first, level, node);
}

/* ---- forward ---- */

static void make_spectrum(block *b) {
    ln_wave_down_columns(&b->c->wave, b->r.spectrum, weight_source, b, b->c->both || b->c->taps > b->c->wave.points);
    ln_wave_each_row(&b->c->wave, spectrum_rows, b);
}

static void sum_block(block *b) {
    const toeplitz *c = b->c;
    memset(b->r.sums, 0, (size_t)(c->positions * c->width) * sizeof(float));
    const bool high = c->history + b->end - b->origin > c->wave.points;
    for (b->group = 0; b->group < c->width / LANES; b->group++)
        for (b->feature = 0; b->feature < c->keys; b->feature++) {
            ln_wave_down_columns(&c->wave, b->r.x, key_source, b, high);
            ln_wave_each_row(&c->wave, forward_rows, b);
            ln_wave_up_columns(&c->wave, b->r.x, sums_sink, b);
        }
}

static void open_sequence(block *b) {
    int64_t first;
    ln_mixer_span(b->c->s, b->sequence, &first, &b->count);
    b->origin = 0;
}

/* false: no token is left. */
static bool next_block(block *b) {
    const int64_t fresh = b->c->positions - b->c->history;
    b->end = ln_min_i64(b->origin + fresh, b->count);
    return b->origin < b->count;
}

static void give_outputs(const block *b) {
    const toeplitz *c = b->c;
    for (int64_t step = b->origin; step < b->end; step++) {
        const float *sums = b->r.sums + (step - b->origin + c->history) * c->width;
        const float factor = c->s->scale / (c->s->normalise ? sums[c->values] : 1);
        float *y = ln_mixer_output(c->call, b->head, b->sequence, step);
        for (int64_t i = 0; i < c->values; i++) y[i] = sums[i] * factor;
    }
}

static void give_state(const block *b) {
    const toeplitz *c = b->c;
    const int64_t slots = c->s->slots;
    float *out = ln_mixer_state_out(c->call, b->sequence, b->head);
    if (!out) return;
    for (int part = LN_TOEPLITZ_KEY; part < PARTS; part++)
        for (int64_t row = 0; row < slots; row++, out += part_columns(c, part)) /* ascending: may be in place */
            raw_row(b, part, b->count - slots + row, out);
}

static void forward_task(void *argument, int64_t task, int worker) {
    const toeplitz *c = argument;
    block b = {.c = c,
               .r = room_of(c, worker, LINNET_MIXER_FORWARD),
               .head = task % c->s->heads,
               .sequence = task / c->s->heads};
    open_sequence(&b);
    if (b.count == 0) return;
    make_spectrum(&b);
    for (; next_block(&b); b.origin = b.end) {
        load_block(&b);
        sum_block(&b);
        give_outputs(&b);
    }
    give_state(&b);
}

void ln_toeplitz_forward(const ln_mixer_call *call) {
    toeplitz c = open_call(call, LINNET_MIXER_FORWARD);
    const int64_t tasks = c.s->sequences * c.s->heads;
    if (c.alone)
        ln_parallel(call->team, tasks, forward_task, &c);
    else
        for (int64_t task = 0; task < tasks; task++) forward_task(&c, task, 0);
}

/* ---- a step: every slot once ---- */

/* The state's rows 1 .. slots - 1, then the token itself. */
static void step_task(void *argument, int64_t task, int worker) {
    const toeplitz *c = argument;
    const ln_tile_kernels *tile = &c->call->kernels->tile;
    const int64_t keys = c->keys, values = c->values, slots = c->s->slots;
    block b = {.c = c, .head = task % c->s->heads, .sequence = task / c->s->heads};
    float *query = (float *)c->call->workspace + worker * step_floats(c->s), *key = query + keys,
          *value = key + slots * keys, *score = value + values;
    open_sequence(&b);
    if (b.count == 0) return;
    const float *bias = bias_of(c, b.head), shift = shift_of(c, b.head),
                *state = ln_mixer_state_in(c->call, b.sequence, b.head);
    float *y = ln_mixer_output(c->call, b.head, b.sequence, 0);
    for (int64_t d = 0; d < slots; d++) raw_row(&b, LN_TOEPLITZ_KEY, -d, key + (slots - 1 - d) * keys);
    raw_row(&b, LN_TOEPLITZ_QUERY, 0, query);
    raw_row(&b, LN_TOEPLITZ_VALUE, 0, value);
    make_features(c, query, (slots + 1) * keys);
    tile->product_tb(score, slots, query, keys, key, keys, 1, slots, keys, false);
    double divisor = 0;
    for (int64_t d = 0; d < slots; d++) {
        float *at = score + slots - 1 - d, weight;
        raw_row(&b, WEIGHT, -d, &weight);
        *at *= expf(bias[d] - shift);
        divisor += (double)(*at * fabsf(weight));
    }
    const float factor = c->s->scale / (c->s->normalise ? (float)divisor : 1);
    for (int64_t i = 0; i < values; i++) y[i] = score[slots - 1] * value[i];
    if (state && slots > 1)
        tile->product(y, values, score, slots, state_row(c, state, LN_TOEPLITZ_VALUE, 1 - slots), values, 1, values,
                      slots - 1, true);
    for (int64_t i = 0; i < values; i++) y[i] *= factor;
    give_state(&b);
}

void ln_toeplitz_step(const ln_mixer_call *call) {
    toeplitz c = {.call = call,
                  .s = call->settings,
                  .map = (int)call->settings->option[0],
                  .keys = call->settings->key_size,
                  .values = call->settings->value_size};
    ln_parallel(call->team, c.s->sequences * c.s->heads, step_task, &c);
}

/* ---- backward ---- */

/* The gradients of both sums. */
static void load_error(const block *b) {
    const toeplitz *c = b->c;
    memset(b->r.error, 0, (size_t)(c->positions * c->width) * sizeof(float));
    for (int64_t step = b->origin; step < b->end; step++) {
        const int64_t p = step - b->origin + c->history;
        const float *dy = ln_mixer_output_gradient(c->call, b->head, b->sequence, step),
                    *sums = b->r.sums + p * c->width;
        float *e = b->r.error + p * c->width;
        const float divisor = c->s->normalise ? sums[c->values] : 1, factor = c->s->scale / divisor;
        double along = 0;
        for (int64_t i = 0; i < c->values; i++) {
            e[i] = dy[i] * factor;
            along += (double)e[i] * (double)sums[i];
        }
        if (c->s->normalise) e[c->values] = -(float)(along / (double)divisor);
    }
}

/* Adds to the gradient of the row of an input, or part of the state. */
static void give_gradient(const block *b, int part, int64_t step, const float *gradient, const float *features) {
    const toeplitz *c = b->c;
    float *to;
    if (step >= 0)
        to = part == WEIGHT ? NULL : ln_mixer_gradient(c->call, part, b->head, b->sequence, step);
    else
        to = state_row(c, ln_mixer_state_in_gradient(c->call, b->sequence, b->head), part, step);
    for (int64_t i = 0; to && i < part_columns(c, part); i++)
        to[i] += features ? gradient[i] * feature_slope(c->map, features[i]) : gradient[i];
}

static void give_gradients(const block *b) {
    const toeplitz *c = b->c;
    for (int64_t p = 0; p < c->positions; p++) {
        const int64_t step = b->origin + p - c->history;
        const float *value = b->r.value_gradient + p * c->width;
        if (step >= b->end) continue;
        give_gradient(b, LN_TOEPLITZ_KEY, step, b->r.key_gradient + p * c->keys, b->r.key + p * c->keys);
        give_gradient(b, LN_TOEPLITZ_VALUE, step, value, NULL);
        float weight, along;
        raw_row(b, WEIGHT, step, &weight);
        along = weight < 0 ? -value[c->values] : value[c->values];
        give_gradient(b, WEIGHT, step, &along, NULL);
        if (step >= b->origin)
            give_gradient(b, LN_TOEPLITZ_QUERY, step, b->r.query_gradient + p * c->keys, b->r.query + p * c->keys);
    }
}

static void backward_block(block *b) {
    const toeplitz *c = b->c;
    const bool high = c->history + b->end - b->origin > c->wave.points;
    load_block(b);
    sum_block(b);
    load_error(b);
    memset(b->r.query_gradient, 0, (size_t)(c->positions * c->keys) * sizeof(float));
    memset(b->r.key_gradient, 0, (size_t)(c->positions * c->keys) * sizeof(float));
    memset(b->r.value_gradient, 0, (size_t)(c->positions * c->width) * sizeof(float));
    for (b->group = 0; b->group < c->width / LANES; b->group++)
        for (b->feature = 0; b->feature < c->keys; b->feature++) {
            ln_wave_down_columns(&c->wave, b->r.x, key_source, b, high);
            ln_wave_down_columns(&c->wave, b->r.e, query_source, b, high);
            ln_wave_each_row(&c->wave, backward_rows, b);
            ln_wave_up_columns(&c->wave, b->r.x, query_gradient_sink, b);
            ln_wave_up_columns(&c->wave, b->r.e, key_gradient_sink, b);
        }
    give_gradients(b);
}

/* The state after the last token hands its gradient to what it consists of. */
static void take_state_gradient(const block *b) {
    const toeplitz *c = b->c;
    const int64_t slots = c->s->slots;
    const float *from = ln_mixer_state_out_gradient(c->call, b->sequence, b->head);
    float *to = ln_mixer_state_in_gradient(c->call, b->sequence, b->head);
    for (int part = LN_TOEPLITZ_KEY; part < PARTS; part++) {
        const size_t bytes = (size_t)part_columns(c, part) * sizeof(float);
        for (int64_t row = ln_max_i64(slots - b->count, 0); from && row < slots; row++)
            give_gradient(b, part, b->count - slots + row, state_row(c, from, part, row - slots), NULL);
        for (int64_t row = slots - 1; to && row >= 0; row--) { /* descending: they may be the same */
            if (from && row >= b->count)
                memmove(state_row(c, to, part, row - slots), state_row(c, from, part, row - slots - b->count), bytes);
            else
                memset(state_row(c, to, part, row - slots), 0, bytes);
        }
    }
}

static void bias_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const block *b = argument;
    const toeplitz *c = b->c;
    const float *bias = bias_of(c, b->head), shift = shift_of(c, b->head);
    float *gradient = ln_mixer_gradient(c->call, LN_TOEPLITZ_BIAS, b->head, 0, 0) + (c->both ? c->s->slots - 1 : 0);
    for (int64_t p = first; count > 0; count--, p++, rows += gap) {
        const bool later = c->both && c->positions - p < c->taps;
        if (p >= c->taps && !later) continue;
        const int64_t d = p < c->taps ? p : p - c->positions;
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += rows[i];
        gradient[d] = (d < 0 ? -sum : sum) / (float)c->wave.points * expf(bias[d] - shift);
    }
}

/* All heads of values that read one head of keys: they add to the same gradients. */
static void backward_task(void *argument, int64_t key_head, int worker) {
    const toeplitz *c = argument;
    block b = {.c = c, .r = room_of(c, worker, LINNET_MIXER_BACKWARD)};
    for (b.head = 0; b.head < c->s->heads; b.head++) {
        if (ln_mixer_key_head(c->s, b.head) != key_head) continue;
        make_spectrum(&b);
        memset(b.r.sum, 0, (size_t)(c->wave.points * POINT) * sizeof(float));
        for (b.sequence = 0; b.sequence < c->s->sequences; b.sequence++) {
            open_sequence(&b);
            if (b.count == 0) continue;
            take_state_gradient(&b);
            for (; next_block(&b); b.origin = b.end) backward_block(&b);
        }
        if (!ln_mixer_gradient(c->call, LN_TOEPLITZ_BIAS, b.head, 0, 0)) continue;
        ln_wave_each_row(&c->wave, sum_rows, &b);
        ln_wave_up_columns(&c->wave, b.r.sum, bias_sink, &b);
    }
}

void ln_toeplitz_backward(const ln_mixer_call *call) {
    toeplitz c = open_call(call, LINNET_MIXER_BACKWARD);
    if (c.alone)
        ln_parallel(call->team, c.s->key_heads, backward_task, &c);
    else
        for (int64_t head = 0; head < c.s->key_heads; head++) backward_task(&c, head, 0);
}

/* ---- settings ---- */

const char *ln_toeplitz_refuse(const linnet_mixer_settings *s) {
    if (s->option[0] != GIVEN && s->option[0] != ELU && s->option[0] != EXPONENTIAL)
        return "option[0], the feature map, is 0, 1 or 2";
    return NULL;
}

double ln_toeplitz_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double keys = (double)s->key_size, columns = (double)s->value_size + 1;
    if (form == LINNET_MIXER_STEP) return (double)s->slots * 2 * (keys + columns);
    toeplitz c = {.s = s};
    ln_carver carver = {0};
    if (s->tokens == 0) return 0;
    lay_out(&c, &carver, NULL, NULL, 1, false, form);
    const double transforms = form == LINNET_MIXER_BACKWARD ? 6 : 2, tokens = (double)ln_mixer_longest(s);
    const double blocks = ceil(tokens / (double)(c.positions - c.history));
    return keys * columns * blocks * (double)c.wave.points * (5 * c.wave.levels * transforms + 12) / tokens;
}
