/* Owns: a memory that learns the last c tokens together by orthogonal steps (Behrouz et al. 2025, ATLAS). With P the
 * memory at the start of the token's chunk,
 *
 *     G[t] = 2 sum_(t - c < i <= t) gain[i] k[i]^T (k[i] P - v[i])
 *     S[t] = e^momentum[t] S[t-1] + G[t],   M[t] = e^decay[t] M[t-1] - step_size[t] N(S[t]),   output q M[t]
 *
 * N brings the singular values of S near 1 by Newton and Schulz's iteration in the form of Muon (Jordan et al. 2024):
 * X = S / (|S| + 1e-7), then a few times A = X X^T, X = 3.4445 X + (-4.775 A + 2.0315 A A) X. Without iterations N(S)
 * is S.
 *
 * The state holds the window, so a cut changes nothing; a token that never was has gain 0. N makes tokens sequential,
 * and costs more than all else. Backward goes token by token over states made again (mixer/replay.h); since A is
 * symmetric, of dY and B = -4.775 A + 2.0315 A A it makes dB = dY X^T, dA = -4.775 dB + 2.0315 (dB A + A dB) and
 * dX = 3.4445 dY + B dY + (dA + dA^T) X. */
#include "mixer/learner_atlas.h"

#include <math.h>
#include <string.h>

#include "mixer/learner_inside.h"
#include "mixer/replay.h"

static const float CUBIC[3] = {3.4445f, -4.775f, 2.0315f}, LEAST = 1e-7f;

/* What a state is made of. */
typedef struct parts {
    float *memory, *momentum, *start, *keys, *values, *gains, *position;
} parts;

typedef struct job {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    const ln_tile_kernels *tile;
    int64_t key, value, window, chunk, matrix, floats, head, sequence, tokens;
    int iterations;
    float *state, *query, *errors, *weighted;  /* errors: k P - v of the window; weighted by gains */
    float *iterates, *square, *fourth, *mixed; /* X [iteration + 1]; X X^T, its square, B */
    float length, decay, momentum, step_size;  /* length: |S| */
    float *d, *d_errors, *d_next, *d_mixed, *d_square, *d_spare, *d_query;
    ln_replay replay;
} job;

static job describe(const ln_mixer *mixer, const linnet_mixer_settings *s) {
    return (job){.s = s,
                 .key = s->key_size,
                 .value = s->value_size,
                 .window = s->slots,
                 .chunk = (int64_t)s->option[0],
                 .matrix = s->key_size * s->value_size,
                 .floats = ln_mixer_head_floats(mixer, s),
                 .iterations = (int)s->option[1]};
}

static void carve(ln_carver *c, float **to, int64_t rows, int64_t columns) {
    *to = ln_carve(c, (uint64_t)rows * (uint64_t)columns, sizeof(float));
}

static void lay_out(ln_carver *c, job *j, linnet_mixer_form form) {
    carve(c, &j->state, 1, j->floats);
    carve(c, &j->query, 1, j->key);
    carve(c, &j->errors, j->window, j->value);
    carve(c, &j->weighted, j->window, j->value);
    carve(c, &j->iterates, j->iterations + 1, j->matrix);
    carve(c, &j->square, j->key, j->key);
    carve(c, &j->fourth, j->key, j->key);
    carve(c, &j->mixed, j->key, j->key);
    if (form != LINNET_MIXER_BACKWARD) return;
    carve(c, &j->d, 1, j->floats);
    carve(c, &j->d_query, 1, j->key);
    carve(c, &j->d_errors, j->window, j->value);
    carve(c, &j->d_next, 1, j->matrix);
    carve(c, &j->d_spare, 1, j->matrix);
    carve(c, &j->d_mixed, j->key, j->key);
    carve(c, &j->d_square, j->key, j->key);
    j->replay = ln_replay_carve(c, j->floats, ln_mixer_longest(j->s));
}

uint64_t ln_atlas_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form) {
    (void)kernels;
    job j = describe(mixer, settings);
    ln_carver carver = {0};
    lay_out(&carver, &j, form);
    return ln_carved(&carver, threads);
}

static job open_job(const ln_mixer_call *call, linnet_mixer_form form, int worker) {
    job j = describe(call->mixer, call->settings);
    j.call = call;
    j.tile = &call->kernels->tile;
    ln_carver size = {0};
    lay_out(&size, &j, form);
    ln_carver carver = {.base = (unsigned char *)call->workspace + size.used * (uint64_t)worker};
    lay_out(&carver, &j, form);
    return j;
}

static parts parts_of(const job *j, float *state) {
    parts p = {.memory = state, .momentum = state + j->matrix, .start = state + 2 * j->matrix};
    p.keys = p.start + j->matrix;
    p.values = p.keys + j->window * j->key;
    p.gains = p.values + j->window * j->value;
    p.position = p.gains + j->window;
    return p;
}

static int64_t position_of(const job *j, const float *position) {
    return *position > 0 && *position < (float)j->chunk ? (int64_t)(*position + 0.5f) % j->chunk : 0;
}

/* A and B of an iterate. */
static void squares_of(job *j, const float *x) {
    const int64_t k = j->key;
    j->tile->product_tb(j->square, k, x, j->value, x, j->value, k, k, j->value, false);
    j->tile->product(j->fourth, k, j->square, k, j->square, k, k, k, k, false);
    for (int64_t i = 0; i < k * k; i++) j->mixed[i] = CUBIC[1] * j->square[i] + CUBIC[2] * j->fourth[i];
}

/* N(S), the last of the iterates. */
static const float *orthogonal(job *j, const float *momentum) {
    if (j->iterations == 0) return momentum;
    j->length = (float)sqrt(dot(momentum, momentum, j->matrix));
    times(j->iterates, 1 / (j->length + LEAST), momentum, j->matrix);
    for (int i = 0; i < j->iterations; i++) {
        const float *x = j->iterates + i * j->matrix;
        float *next = j->iterates + (i + 1) * j->matrix;
        squares_of(j, x);
        times(next, CUBIC[0], x, j->matrix);
        j->tile->product(next, j->value, j->mixed, j->key, x, j->value, j->key, j->value, j->key, true);
    }
    return j->iterates + j->iterations * j->matrix;
}

static float load_one(const job *j, int input, int64_t step) {
    float value;
    ln_mixer_load(j->call, input, j->head, j->sequence, step, 1, &value);
    return value;
}

/* The window takes the token in, and its errors are made of P. */
static void take_token(job *j, const parts *p, int64_t step) {
    const int64_t last = j->window - 1;
    memmove(p->keys, p->keys + j->key, (size_t)(last * j->key) * sizeof(float));
    memmove(p->values, p->values + j->value, (size_t)(last * j->value) * sizeof(float));
    memmove(p->gains, p->gains + 1, (size_t)last * sizeof(float));
    ln_mixer_load(j->call, LN_ATLAS_KEY, j->head, j->sequence, step, 1, p->keys + last * j->key);
    ln_mixer_load(j->call, LN_ATLAS_VALUE, j->head, j->sequence, step, 1, p->values + last * j->value);
    p->gains[last] = load_one(j, LN_ATLAS_GAIN, step);
    j->step_size = load_one(j, LN_ATLAS_STEP_SIZE, step);
    j->decay = expf(load_one(j, LN_ATLAS_DECAY, step));
    j->momentum = expf(load_one(j, LN_ATLAS_MOMENTUM, step));
    ln_mixer_load(j->call, LN_ATLAS_QUERY, j->head, j->sequence, step, 1, j->query);
    times(j->query, j->s->scale, j->query, j->key);
    const int64_t position = position_of(j, p->position);
    if (position == 0) memcpy(p->start, p->memory, (size_t)j->matrix * sizeof(float));
    *p->position = (float)((position + 1) % j->chunk);
    j->tile->product(j->errors, j->value, p->keys, j->key, p->start, j->value, j->window, j->value, j->key, false);
    for (int64_t i = 0; i < j->window; i++) {
        add_times(j->errors + i * j->value, -1, p->values + i * j->value, j->value);
        times(j->weighted + i * j->value, 2 * p->gains[i], j->errors + i * j->value, j->value);
    }
}

/* Moves the state over a token; returns N(S). */
static const float *run_token(job *j, float *state, int64_t step) {
    const parts p = parts_of(j, state);
    take_token(j, &p, step);
    times(p.momentum, j->momentum, p.momentum, j->matrix);
    j->tile->product_ta(p.momentum, j->value, p.keys, j->key, j->weighted, j->value, j->key, j->value, j->window, true);
    const float *direction = orthogonal(j, p.momentum);
    times(p.memory, j->decay, p.memory, j->matrix);
    add_times(p.memory, -j->step_size, direction, j->matrix);
    return direction;
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_FORWARD, worker);
    int64_t first;
    j.sequence = task / call->settings->heads;
    j.head = task % call->settings->heads;
    ln_mixer_span(call->settings, j.sequence, &first, &j.tokens);
    if (j.tokens == 0) return;
    float *out = ln_mixer_state_out(call, j.sequence, j.head), *state = out ? out : j.state;
    ln_mixer_read_state(call, j.sequence, j.head, state);
    for (int64_t step = 0; step < j.tokens; step++) {
        run_token(&j, state, step);
        j.tile->product(ln_mixer_output(call, j.head, j.sequence, step), j.value, j.query, j.key, state, j.value, 1,
                        j.value, j.key, false);
    }
}

void ln_atlas_forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

/* j->d_next, the gradient of N(S), becomes that of S. */
static void orthogonal_back(job *j, const float *momentum) {
    const int64_t k = j->key, v = j->value;
    float *dy = j->d_next, *dx = j->d_spare;
    for (int i = j->iterations - 1; i >= 0; i--) {
        const float *x = j->iterates + i * j->matrix;
        squares_of(j, x);
        j->tile->product_tb(j->d_mixed, k, dy, v, x, v, k, k, v, false);
        j->tile->product(j->d_square, k, j->d_mixed, k, j->square, k, k, k, k, false);
        j->tile->product(j->d_square, k, j->square, k, j->d_mixed, k, k, k, k, true);
        for (int64_t n = 0; n < k * k; n++) j->d_square[n] = CUBIC[1] * j->d_mixed[n] + CUBIC[2] * j->d_square[n];
        times(dx, CUBIC[0], dy, j->matrix);
        j->tile->product(dx, v, j->mixed, k, dy, v, k, v, k, true);
        j->tile->product(dx, v, j->d_square, k, x, v, k, v, k, true);
        j->tile->product_ta(dx, v, j->d_square, k, x, v, k, v, k, true);
        memcpy(dy, dx, (size_t)j->matrix * sizeof *dy);
    }
    if (j->iterations == 0) return;
    const float inverse = 1 / (j->length + LEAST);
    const double along = j->length > 0 ? dot(dy, momentum, j->matrix) / (double)j->length : 0;
    times(dy, inverse, dy, j->matrix);
    add_times(dy, -(float)along * inverse * inverse, momentum, j->matrix);
}

static void give(const job *j, int input, int64_t step, float factor, const float *gradient) {
    float *to = ln_mixer_gradient(j->call, input, j->head, j->sequence, step);
    if (to) add_times(to, factor, gradient, ln_mixer_columns(&j->call->mixer->inputs[input], j->s));
}

static void give_one(const job *j, int input, int64_t step, float gradient) {
    float *to = ln_mixer_gradient(j->call, input, j->head, j->sequence, step);
    if (to) *to += gradient;
}

/* From the gradient of S (in d->momentum, and of G) to those of window and P; the window's last token leaves. */
static void window_back(job *j, const parts *p, const parts *d, int64_t step) {
    const int64_t k = j->key, v = j->value, last = j->window - 1;
    j->tile->product_tb(d->keys, k, j->weighted, v, d->momentum, v, j->window, k, v, true);
    j->tile->product(j->d_errors, v, p->keys, k, d->momentum, v, j->window, v, k, false);
    for (int64_t i = 0; i < j->window; i++) {
        float *row = j->d_errors + i * v;
        d->gains[i] += 2 * (float)dot(row, j->errors + i * v, v);
        times(row, 2 * p->gains[i], row, v);
        add_times(d->values + i * v, -1, row, v);
    }
    j->tile->product_tb(d->keys, k, j->d_errors, v, p->start, v, j->window, k, v, true);
    j->tile->product_ta(d->start, v, p->keys, k, j->d_errors, v, k, v, j->window, true);
    give(j, LN_ATLAS_KEY, step, 1, d->keys + last * k);
    give(j, LN_ATLAS_VALUE, step, 1, d->values + last * v);
    give_one(j, LN_ATLAS_GAIN, step, d->gains[last]);
    memmove(d->keys + k, d->keys, (size_t)(last * k) * sizeof(float));
    memmove(d->values + v, d->values, (size_t)(last * v) * sizeof(float));
    memmove(d->gains + 1, d->gains, (size_t)last * sizeof(float));
    memset(d->keys, 0, (size_t)k * sizeof(float));
    memset(d->values, 0, (size_t)v * sizeof(float));
    d->gains[0] = 0;
}

static void token_back(void *argument, float *state, int64_t step) {
    job *j = argument;
    const int64_t k = j->key, v = j->value;
    memcpy(j->state, state, (size_t)j->floats * sizeof *state);
    const float *direction = run_token(j, j->state, step),
                *dy = ln_mixer_output_gradient(j->call, j->head, j->sequence, step);
    const parts before = parts_of(j, state), after = parts_of(j, j->state), d = parts_of(j, j->d);
    j->tile->product_tb(j->d_query, k, dy, v, after.memory, v, 1, k, v, false);
    give(j, LN_ATLAS_QUERY, step, j->s->scale, j->d_query);
    j->tile->product_ta(d.memory, v, j->query, k, dy, v, k, v, 1, true);
    const float of_decay = j->decay * (float)dot(d.memory, before.memory, j->matrix),
                of_step = -(float)dot(d.memory, direction, j->matrix);
    give_one(j, LN_ATLAS_DECAY, step, of_decay);
    give_one(j, LN_ATLAS_STEP_SIZE, step, of_step);
    times(j->d_next, -j->step_size, d.memory, j->matrix);
    times(d.memory, j->decay, d.memory, j->matrix);
    orthogonal_back(j, after.momentum);
    add_times(d.momentum, 1, j->d_next, j->matrix);
    const float of_momentum = j->momentum * (float)dot(d.momentum, before.momentum, j->matrix);
    give_one(j, LN_ATLAS_MOMENTUM, step, of_momentum);
    window_back(j, &after, &d, step);
    times(d.momentum, j->momentum, d.momentum, j->matrix);
    if (position_of(j, before.position) != 0) return;
    add_times(d.memory, 1, d.start, j->matrix);
    memset(d.start, 0, (size_t)j->matrix * sizeof(float));
}

static void token_forward(void *argument, float *state, int64_t step) {
    run_token(argument, state, step);
}

static void backward_task(void *argument, int64_t key_head, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_BACKWARD, worker);
    for (int64_t task = 0; task < j.s->heads * j.s->sequences; task++) {
        int64_t first;
        j.head = task / j.s->sequences;
        j.sequence = task % j.s->sequences;
        ln_mixer_span(j.s, j.sequence, &first, &j.tokens);
        if (ln_mixer_key_head(j.s, j.head) != key_head || j.tokens == 0) continue;
        ln_mixer_read_gradient(call, j.sequence, j.head, j.d);
        ln_mixer_read_state(call, j.sequence, j.head, j.replay.kept);
        const ln_replay_steps steps = {&j, token_forward, token_back};
        ln_replay_run(&j.replay, j.tokens, &steps);
        float *to = ln_mixer_state_in_gradient(call, j.sequence, j.head);
        *parts_of(&j, j.d).position = 0;
        if (to) memcpy(to, j.d, (size_t)j.floats * sizeof *to);
    }
}

void ln_atlas_backward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->key_heads, backward_task, (void *)(uintptr_t)call);
}
