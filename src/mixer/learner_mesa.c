/* Owns: ridge regression of values on keys, solved anew at every token (von Oswald et al. 2025, MesaNet):
 *
 *     H[t] = e^decay[t] H[t-1] + beta[t] k[t]^T k[t],   G[t] = e^decay[t] G[t-1] + beta[t] k[t]^T v[t]
 *     (H[t] + diag(ridge)) x = q[t],   output x G[t]
 *
 * by conjugate gradients, divided by the diagonal first (Hestenes and Stiefel 1952), from 0 until the residual is 1e-7
 * of q, or option[0] iterations. Backward solves once more: with dx = dy G^T and (H + diag(ridge)) w = dx the gradients
 * are w of q, -w x of ridge, -w^T x of H (which is symmetric) and x^T dy of G. */
#include "mixer/learner_mesa.h"

#include <math.h>
#include <string.h>

#include "mixer/learner_inside.h"
#include "mixer/replay.h"

static const double CLOSE = 1e-14; /* of the squared residual */

typedef struct job {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    const ln_tile_kernels *tile;
    int64_t keys, columns, square, floats, head, sequence, tokens, iterations;
    float decay, beta;
    float *state, *query, *key, *value, *ridge, *x;
    float *residual, *scaled, *direction, *image, *inverse; /* of the solver; inverse: of the diagonal */
    float *d, *dx, *w, *d_key, *d_value, *d_ridge;
    ln_replay replay;
} job;

static job describe(const ln_mixer *mixer, const linnet_mixer_settings *s) {
    return (job){.s = s,
                 .keys = s->key_size,
                 .columns = s->value_size,
                 .square = s->key_size * s->key_size,
                 .floats = ln_mixer_head_floats(mixer, s),
                 .iterations = s->option[0] == 0 ? 2 * s->key_size : (int64_t)s->option[0]};
}

static void lay_out(ln_carver *c, job *j, linnet_mixer_form form) {
    float **rows[] = {&j->query,  &j->key,       &j->ridge, &j->x,      &j->residual,
                      &j->scaled, &j->direction, &j->image, &j->inverse};
    for (int i = 0; i < 9; i++) *rows[i] = ln_carve(c, (uint64_t)j->keys, sizeof(float));
    j->value = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    j->state = ln_carve(c, (uint64_t)j->floats, sizeof(float));
    if (form != LINNET_MIXER_BACKWARD) return;
    float **back[] = {&j->dx, &j->w, &j->d_key, &j->d_ridge};
    for (int i = 0; i < 4; i++) *back[i] = ln_carve(c, (uint64_t)j->keys, sizeof(float));
    j->d_value = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    j->d = ln_carve(c, (uint64_t)j->floats, sizeof(float));
    j->replay = ln_replay_carve(c, j->floats, ln_mixer_longest(j->s));
}

uint64_t ln_mesa_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
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

/* (H + diag(ridge)) x = b */
static void solve(job *j, const float *covariance, const float *b, float *x) {
    const int64_t n = j->keys;
    memset(x, 0, (size_t)n * sizeof *x);
    memcpy(j->residual, b, (size_t)n * sizeof *b);
    for (int64_t i = 0; i < n; i++) {
        j->inverse[i] = 1 / (covariance[i * n + i] + j->ridge[i]);
        j->scaled[i] = j->direction[i] = j->inverse[i] * b[i];
    }
    const double enough = CLOSE * dot(b, b, n);
    double along = dot(j->residual, j->scaled, n);
    for (int64_t i = 0; i < j->iterations && dot(j->residual, j->residual, n) > enough; i++) {
        for (int64_t k = 0; k < n; k++) j->image[k] = j->ridge[k] * j->direction[k];
        j->tile->product(j->image, n, j->direction, n, covariance, n, 1, n, n, true);
        const float step = (float)(along / dot(j->direction, j->image, n));
        add_times(x, step, j->direction, n);
        add_times(j->residual, -step, j->image, n);
        for (int64_t k = 0; k < n; k++) j->scaled[k] = j->inverse[k] * j->residual[k];
        const double next = dot(j->residual, j->scaled, n);
        const float keep = (float)(next / along);
        for (int64_t k = 0; k < n; k++) j->direction[k] = j->scaled[k] + keep * j->direction[k];
        along = next;
    }
}

static float load_one(const job *j, int input, int64_t step) {
    float value;
    ln_mixer_load(j->call, input, j->head, j->sequence, step, 1, &value);
    return value;
}

static void run_token(job *j, float *state, int64_t step) {
    const int64_t n = j->keys, columns = j->columns;
    ln_mixer_load(j->call, LN_MESA_KEY, j->head, j->sequence, step, 1, j->key);
    ln_mixer_load(j->call, LN_MESA_VALUE, j->head, j->sequence, step, 1, j->value);
    j->beta = load_one(j, LN_MESA_BETA, step);
    j->decay = expf(load_one(j, LN_MESA_DECAY, step));
    for (int64_t r = 0; r < n; r++) {
        const float strength = j->beta * j->key[r];
        float *row = state + r * n, *memory = state + j->square + r * columns;
        for (int64_t i = 0; i < n; i++) row[i] = j->decay * row[i] + strength * j->key[i];
        for (int64_t i = 0; i < columns; i++) memory[i] = j->decay * memory[i] + strength * j->value[i];
    }
}

/* x of the state after the token. */
static void ask(job *j, const float *state, int64_t step) {
    ln_mixer_load(j->call, LN_MESA_QUERY, j->head, j->sequence, step, 1, j->query);
    for (int64_t i = 0; i < j->keys; i++) j->query[i] *= j->s->scale;
    solve(j, state, j->query, j->x);
}

static void open_head(job *j, int64_t head) {
    j->head = head;
    ln_mixer_load(j->call, LN_MESA_RIDGE, head, 0, 0, 1, j->ridge);
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_FORWARD, worker);
    int64_t first;
    j.sequence = task / call->settings->heads;
    ln_mixer_span(call->settings, j.sequence, &first, &j.tokens);
    if (j.tokens == 0) return;
    open_head(&j, task % call->settings->heads);
    float *out = ln_mixer_state_out(call, j.sequence, j.head), *state = out ? out : j.state;
    ln_mixer_read_state(call, j.sequence, j.head, state);
    for (int64_t step = 0; step < j.tokens; step++) {
        run_token(&j, state, step);
        ask(&j, state, step);
        j.tile->product(ln_mixer_output(call, j.head, j.sequence, step), j.columns, j.x, j.keys, state + j.square,
                        j.columns, 1, j.columns, j.keys, false);
    }
}

void ln_mesa_forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

static void give(const job *j, int input, int64_t step, float factor, const float *gradient, int64_t n) {
    float *to = ln_mixer_gradient(j->call, input, j->head, j->sequence, step);
    if (to) add_times(to, factor, gradient, n);
}

/* Through the two updates, of gradients d in H and G after them; d becomes that of the state before. */
static void update_back(job *j, const float *before, int64_t step) {
    const int64_t n = j->keys, columns = j->columns;
    float *covariance = j->d, *memory = j->d + j->square;
    j->tile->product(j->d_key, n, j->key, n, covariance, n, 1, n, n, false);
    j->tile->product_tb(j->d_key, n, j->key, n, covariance, n, 1, n, n, true);
    j->tile->product_tb(j->d_key, n, j->value, columns, memory, columns, 1, n, columns, true);
    j->tile->product(j->d_value, columns, j->key, n, memory, columns, 1, columns, n, false);
    float *of_beta = ln_mixer_gradient(j->call, LN_MESA_BETA, j->head, j->sequence, step),
          *of_decay = ln_mixer_gradient(j->call, LN_MESA_DECAY, j->head, j->sequence, step);
    /* k d_key counts H's part twice. */
    if (of_beta) *of_beta += (float)((dot(j->key, j->d_key, n) + dot(j->value, j->d_value, columns)) / 2);
    if (of_decay) *of_decay += j->decay * (float)dot(j->d, before, j->floats);
    give(j, LN_MESA_KEY, step, j->beta, j->d_key, n);
    give(j, LN_MESA_VALUE, step, j->beta, j->d_value, columns);
    for (int64_t i = 0; i < j->floats; i++) j->d[i] *= j->decay;
}

static void token_back(void *argument, float *state, int64_t step) {
    job *j = argument;
    const int64_t n = j->keys, columns = j->columns;
    const float *dy = ln_mixer_output_gradient(j->call, j->head, j->sequence, step);
    memcpy(j->state, state, (size_t)j->floats * sizeof *state);
    run_token(j, j->state, step);
    ask(j, j->state, step);
    j->tile->product_tb(j->dx, n, dy, columns, j->state + j->square, columns, 1, n, columns, false);
    solve(j, j->state, j->dx, j->w);
    give(j, LN_MESA_QUERY, step, j->s->scale, j->w, n);
    for (int64_t r = 0; r < n; r++) {
        j->d_ridge[r] -= j->w[r] * j->x[r];
        add_times(j->d + r * n, -j->w[r], j->x, n);
        add_times(j->d + j->square + r * columns, j->x[r], dy, columns);
    }
    update_back(j, state, step);
}

static void token_forward(void *argument, float *state, int64_t step) {
    run_token(argument, state, step);
}

static void sequence_back(job *j) {
    ln_mixer_read_gradient(j->call, j->sequence, j->head, j->d);
    ln_mixer_read_state(j->call, j->sequence, j->head, j->replay.kept);
    const ln_replay_steps steps = {j, token_forward, token_back};
    ln_replay_run(&j->replay, j->tokens, &steps);
    float *to = ln_mixer_state_in_gradient(j->call, j->sequence, j->head);
    if (to) memcpy(to, j->d, (size_t)j->floats * sizeof *to);
}

static void backward_task(void *argument, int64_t key_head, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_BACKWARD, worker);
    for (int64_t head = 0; head < j.s->heads; head++) {
        if (ln_mixer_key_head(j.s, head) != key_head) continue;
        open_head(&j, head);
        memset(j.d_ridge, 0, (size_t)j.keys * sizeof(float));
        for (j.sequence = 0; j.sequence < j.s->sequences; j.sequence++) {
            int64_t first;
            ln_mixer_span(j.s, j.sequence, &first, &j.tokens);
            if (j.tokens > 0) sequence_back(&j);
        }
        float *ridge = ln_mixer_gradient(call, LN_MESA_RIDGE, head, 0, 0);
        if (ridge) memcpy(ridge, j.d_ridge, (size_t)j.keys * sizeof *ridge);
    }
}

void ln_mesa_backward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->key_heads, backward_task, (void *)(uintptr_t)call);
}
