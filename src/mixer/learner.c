/* Owns: memories that learn at test time, forward and backward (equations in mixer/learner.h).
 *
 * A layer norm LN(z) = (z - mean) r, r = (variance + 1e-6)^-1/2, has the transposed Jacobian
 * LN'(z)^T g = r (g - mean g - LN(z) mean(g LN(z))), which is u for g = (LN(z) w + b - v + k) w. Backward goes through
 * u once more, piece by piece from the last to the first (mixer/replay.h). */
#include "mixer/learner.h"

#include <math.h>
#include <string.h>

#include "mixer/learner_inside.h"
#include "mixer/replay.h"

static const float EPSILON = 1e-6f;

typedef struct rows {
    float *query, *key, *value; /* [token][..]; queries scaled */
    float *step_size, *decay, *momentum;
    float *hat, *residual, *inner, *step, *rate; /* of z: LN, LN w + b - v + k, its LN'^T over r, u, r */
    float *from_memory, *from_momentum;          /* q M, q S */
    float *products, *mixed;                     /* q k^T; -c of it, [token][chunk] */
    float *output, *output_hat, *output_rate;
    float *weighted; /* u times a number each */
} rows;

typedef struct back_rows {
    float *query, *key, *value, *output, *step, *z, *spare, *products, *mixed;
    float *step_size, *decay, *momentum, *weight, *bias;
    float *memory, *momentum_matrix, *start; /* gradients of the state */
    ln_replay replay;
} back_rows;

typedef struct job {
    const ln_mixer_call *call;
    const ln_learner *row;
    const linnet_mixer_settings *s;
    const ln_tile_kernels *tile;
    int64_t columns, keys, chunk, matrix, floats; /* keys: rows of M; matrix: floats of M; floats: of a state */
    int64_t tokens, position;                     /* of the sequence; of its first token in the chunk */
    bool plain;
    int64_t head, sequence;
    float *state, *weight, *bias;
    rows x;
    back_rows g;
    ln_learner_terms terms, terms_gradient;
} job;

/* ---- rows of numbers ---- */

static float mean(const float *a, int64_t n) {
    float part[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int l = 0; l < 4; l++) part[l] += a[i + l];
    for (; i < n; i++) part[0] += a[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) / (float)n;
}

/* hat = LN(x); returns r. */
static float normalise(float *hat, const float *x, int64_t n) {
    const float middle = mean(x, n);
    for (int64_t i = 0; i < n; i++) hat[i] = x[i] - middle;
    const float r = 1 / sqrtf((float)dot(hat, hat, n) / (float)n + EPSILON);
    for (int64_t i = 0; i < n; i++) hat[i] *= r;
    return r;
}

/* to = (g - mean g - hat mean(g hat)): LN'^T g / r. to may be g. */
static void project(float *to, const float *g, const float *hat, int64_t n) {
    const float middle = mean(g, n), along = (float)dot(g, hat, n) / (float)n;
    for (int64_t i = 0; i < n; i++) to[i] = g[i] - middle - hat[i] * along;
}

/* ---- workspace ---- */

static void lay_out_terms(ln_carver *c, ln_learner_terms *t, int64_t chunk) {
    const uint64_t n = (uint64_t)chunk;
    t->memory = ln_carve(c, n, sizeof(float));
    t->momentum = ln_carve(c, n, sizeof(float));
    t->kept = ln_carve(c, n, sizeof(float));
    t->last_token = ln_carve(c, n, sizeof(float));
    t->last_written = ln_carve(c, n, sizeof(float));
    t->token = ln_carve(c, n * n, sizeof(float));
    t->written = ln_carve(c, n * n, sizeof(float));
}

static void lay_out_back(ln_carver *c, job *j) {
    const uint64_t n = (uint64_t)j->chunk, keys = n * (uint64_t)j->keys, columns = n * (uint64_t)j->columns;
    back_rows *g = &j->g;
    float **wide[] = {&g->query, &g->key}, **narrow[] = {&g->value, &g->output, &g->step, &g->z, &g->spare},
          **square[] = {&g->products, &g->mixed}, **one[] = {&g->step_size, &g->decay, &g->momentum},
          **matrix[] = {&g->memory, &g->momentum_matrix, &g->start};
    for (int i = 0; i < 2; i++) *wide[i] = ln_carve(c, keys, sizeof(float));
    for (int i = 0; i < 5; i++) *narrow[i] = ln_carve(c, columns, sizeof(float));
    for (int i = 0; i < 2; i++) *square[i] = ln_carve(c, n * n, sizeof(float));
    for (int i = 0; i < 3; i++) *one[i] = ln_carve(c, n, sizeof(float));
    for (int i = 0; i < 3; i++) *matrix[i] = ln_carve(c, (uint64_t)j->matrix, sizeof(float));
    g->weight = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    g->bias = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    g->replay = ln_replay_carve(c, j->floats, ln_mixer_longest(j->s) / j->chunk + 2);
    lay_out_terms(c, &j->terms_gradient, j->chunk);
}

static void lay_out(ln_carver *c, job *j, linnet_mixer_form form) {
    const uint64_t n = (uint64_t)j->chunk, keys = n * (uint64_t)j->keys, columns = n * (uint64_t)j->columns;
    rows *x = &j->x;
    float **wide[] = {&x->query, &x->key},
          **narrow[] = {&x->value,       &x->hat,           &x->residual, &x->inner,      &x->step,
                        &x->from_memory, &x->from_momentum, &x->output,   &x->output_hat, &x->weighted},
          **square[] = {&x->products, &x->mixed},
          **one[] = {&x->step_size, &x->decay, &x->momentum, &x->rate, &x->output_rate};
    for (int i = 0; i < 2; i++) *wide[i] = ln_carve(c, keys, sizeof(float));
    for (int i = 0; i < 10; i++) *narrow[i] = ln_carve(c, columns, sizeof(float));
    for (int i = 0; i < 2; i++) *square[i] = ln_carve(c, n * n, sizeof(float));
    for (int i = 0; i < 5; i++) *one[i] = ln_carve(c, n, sizeof(float));
    j->weight = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    j->bias = ln_carve(c, (uint64_t)j->columns, sizeof(float));
    j->state = ln_carve(c, (uint64_t)j->floats, sizeof(float));
    lay_out_terms(c, &j->terms, j->chunk);
    if (form == LINNET_MIXER_BACKWARD) lay_out_back(c, j);
}

static job describe(const ln_mixer *mixer, const linnet_mixer_settings *s) {
    const ln_learner *row = mixer->core_row;
    job j = {.row = row,
             .s = s,
             .columns = s->value_size,
             .keys = s->key_size + row->constant,
             .chunk = s->slots,
             .floats = ln_mixer_head_floats(mixer, s),
             .plain = s->option[0] == 1};
    j.matrix = j.keys * j.columns;
    return j;
}

uint64_t ln_learner_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
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

static void open_head(job *j, int64_t head) {
    j->head = head;
    for (int64_t i = 0; i < j->columns; i++) {
        j->weight[i] = 1;
        j->bias[i] = 0;
    }
    if (ln_mixer_has(j->call, LN_LEARNER_WEIGHT)) ln_mixer_load(j->call, LN_LEARNER_WEIGHT, head, 0, 0, 1, j->weight);
    if (ln_mixer_has(j->call, LN_LEARNER_BIAS)) ln_mixer_load(j->call, LN_LEARNER_BIAS, head, 0, 0, 1, j->bias);
}

/* ---- a piece ---- */

typedef struct state {
    float *memory, *momentum, *start, *position;
} state;

static state state_of(const job *j, float *floats) {
    return (state){floats, floats + j->matrix, j->row->start ? floats + 2 * j->matrix : floats, floats + j->floats - 1};
}

static int64_t position_of(const job *j, const float *floats) {
    const float position = floats[j->floats - 1];
    return position > 0 && position < (float)j->chunk ? (int64_t)(position + 0.5f) % j->chunk : 0;
}

/* Rows of keys and queries are loaded packed and then moved apart where a 1 follows each. */
static void load_wide(job *j, int input, int64_t step, int64_t count, float factor, float *to) {
    const int64_t n = j->s->key_size;
    ln_mixer_load(j->call, input, j->head, j->sequence, step, count, to);
    for (int64_t i = count - 1; i >= 0; i--) {
        float *row = to + i * j->keys;
        memmove(row, to + i * n, (size_t)n * sizeof *to);
        if (factor != 1) times(row, factor, row, n);
        if (j->row->constant) row[n] = 1;
    }
}

static ln_learner_piece load_piece(job *j, int64_t step, int64_t count, int64_t position) {
    rows *x = &j->x;
    load_wide(j, LN_LEARNER_QUERY, step, count, j->s->scale, x->query);
    load_wide(j, LN_LEARNER_KEY, step, count, 1, x->key);
    ln_mixer_load(j->call, LN_LEARNER_VALUE, j->head, j->sequence, step, count, x->value);
    ln_mixer_load(j->call, LN_LEARNER_STEP_SIZE, j->head, j->sequence, step, count, x->step_size);
    if (j->row->start) {
        ln_mixer_load(j->call, LN_LEARNER_DECAY, j->head, j->sequence, step, count, x->decay);
        ln_mixer_load(j->call, LN_LEARNER_MOMENTUM, j->head, j->sequence, step, count, x->momentum);
    }
    return (ln_learner_piece){.count = count,
                              .chunk = j->chunk,
                              .first = position == 0,
                              .complete = position + count == j->chunk,
                              .step_size = x->step_size,
                              .decay = x->decay,
                              .momentum = x->momentum,
                              .step_gradient = j->g.step_size,
                              .decay_gradient = j->g.decay,
                              .momentum_gradient = j->g.momentum};
}

/* u of all tokens, from P. */
static void take_steps(job *j, const float *start, int64_t count) {
    rows *x = &j->x;
    const int64_t n = j->columns;
    j->tile->product(x->hat, n, x->key, j->keys, start, n, count, n, j->keys, false);
    for (int64_t t = 0; t < count; t++) {
        float *hat = x->hat + t * n, *residual = x->residual + t * n, *inner = x->inner + t * n, *u = x->step + t * n;
        const float *key = x->key + t * j->keys, *value = x->value + t * n;
        if (j->plain) {
            for (int64_t i = 0; i < n; i++) u[i] = hat[i] - value[i];
            continue;
        }
        x->rate[t] = normalise(hat, hat, n);
        for (int64_t i = 0; i < n; i++) {
            residual[i] = hat[i] * j->weight[i] + j->bias[i] - (value[i] - key[i]);
            inner[i] = residual[i] * j->weight[i];
        }
        project(inner, inner, hat, n);
        times(u, x->rate[t], inner, n);
    }
}

/* o of all tokens. */
static void read_memory(job *j, const ln_learner_terms *terms, const state *s, int64_t count) {
    rows *x = &j->x;
    const int64_t n = j->columns;
    j->tile->product(x->from_memory, n, x->query, j->keys, s->memory, n, count, n, j->keys, false);
    if (terms->uses_momentum)
        j->tile->product(x->from_momentum, n, x->query, j->keys, s->momentum, n, count, n, j->keys, false);
    j->tile->product_tb(x->products, j->chunk, x->query, j->keys, x->key, j->keys, count, count, j->keys, false);
    for (int64_t t = 0; t < count; t++) {
        float *o = x->output + t * n;
        times(o, terms->memory[t], x->from_memory + t * n, n);
        if (terms->uses_momentum) add_times(o, terms->momentum[t], x->from_momentum + t * n, n);
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = t * j->chunk + i;
            x->mixed[at] = i <= t ? -terms->token[at] * x->products[at] : 0;
        }
    }
    j->tile->product(x->output, n, x->mixed, j->chunk, x->step, n, count, n, count, true);
    for (int64_t t = 0; !j->plain && t < count; t++)
        x->output_rate[t] = normalise(x->output_hat + t * n, x->output + t * n, n);
}

/* matrix = factor matrix - k^T (numbers u) */
static void write_tokens(job *j, float *matrix, float factor, const float *numbers, int64_t count) {
    const int64_t n = j->columns;
    for (int64_t t = 0; t < count; t++) times(j->x.weighted + t * n, -numbers[t], j->x.step + t * n, n);
    if (factor != 0 && factor != 1) times(matrix, factor, matrix, j->matrix);
    j->tile->product_ta(matrix, n, j->x.key, j->keys, j->x.weighted, n, j->keys, n, count, factor != 0);
}

static void move(job *j, const ln_learner_terms *terms, const state *s, const ln_learner_piece *piece) {
    if (terms->moves_memory) {
        if (terms->uses_momentum && terms->last_momentum != 0) {
            times(s->memory, terms->last_memory, s->memory, j->matrix);
            add_times(s->memory, terms->last_momentum, s->momentum, j->matrix);
            write_tokens(j, s->memory, 1, terms->last_token, piece->count);
        } else {
            write_tokens(j, s->memory, terms->last_memory, terms->last_token, piece->count);
        }
    }
    if (terms->writes_momentum)
        write_tokens(j, s->momentum, terms->keep, terms->last_written, piece->count);
    else
        memset(s->momentum, 0, (size_t)j->matrix * sizeof(float));
}

/* The piece that begins at `step`: its outputs if wanted, and the state moves on. */
static int64_t run_piece(job *j, float *floats, int64_t step, int64_t tokens, bool wanted) {
    const state s = state_of(j, floats);
    const int64_t position = position_of(j, floats), count = ln_min_i64(j->chunk - position, tokens - step);
    const ln_learner_piece piece = load_piece(j, step, count, position);
    if (piece.first && j->row->start) memcpy(s.start, s.memory, (size_t)j->matrix * sizeof *s.start);
    j->row->terms(&piece, &j->terms);
    take_steps(j, s.start, count);
    if (wanted) {
        read_memory(j, &j->terms, &s, count);
        for (int64_t t = 0; t < count; t++) {
            float *to = ln_mixer_output(j->call, j->head, j->sequence, step + t);
            const float *o = j->x.output + t * j->columns, *hat = j->x.output_hat + t * j->columns;
            for (int64_t i = 0; i < j->columns; i++)
                to[i] = j->plain ? o[i] : o[i] + hat[i] * j->weight[i] + j->bias[i];
        }
    }
    move(j, &j->terms, &s, &piece);
    *s.position = piece.complete ? 0 : (float)(position + count);
    return count;
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    job j = open_job(call, LINNET_MIXER_FORWARD, worker);
    int64_t first, tokens;
    j.sequence = task / call->settings->heads;
    ln_mixer_span(call->settings, j.sequence, &first, &tokens);
    if (tokens == 0) return;
    open_head(&j, task % call->settings->heads);
    float *out = ln_mixer_state_out(call, j.sequence, j.head), *floats = out ? out : j.state;
    ln_mixer_read_state(call, j.sequence, j.head, floats);
    for (int64_t step = 0; step < tokens;) step += run_piece(&j, floats, step, tokens, true);
}

void ln_learner_forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

/* o's gradients from those of the output. */
static void output_back(job *j, int64_t step, int64_t count) {
    const int64_t n = j->columns;
    for (int64_t t = 0; t < count; t++) {
        const float *dy = ln_mixer_output_gradient(j->call, j->head, j->sequence, step + t),
                    *hat = j->x.output_hat + t * n;
        float *to = j->g.output + t * n;
        if (j->plain) {
            memcpy(to, dy, (size_t)n * sizeof *to);
            continue;
        }
        for (int64_t i = 0; i < n; i++) {
            j->g.weight[i] += dy[i] * hat[i];
            j->g.bias[i] += dy[i];
            to[i] = dy[i] * j->weight[i];
        }
        project(to, to, hat, n);
        for (int64_t i = 0; i < n; i++) to[i] = dy[i] + j->x.output_rate[t] * to[i];
    }
}

/* Through o = a q M + b q S - (c q k^T) u: begins the gradients of queries, keys and u, adds to those of M and S. */
static void read_back(job *j, const state *s, int64_t count) {
    const rows *x = &j->x;
    back_rows *g = &j->g;
    ln_learner_terms *of = &j->terms_gradient;
    const int64_t n = j->columns, c = j->chunk;
    const ln_learner_terms *terms = &j->terms;
    for (int64_t t = 0; t < count; t++) {
        const float *d = g->output + t * n;
        of->memory[t] = (float)dot(d, x->from_memory + t * n, n);
        of->momentum[t] = terms->uses_momentum ? (float)dot(d, x->from_momentum + t * n, n) : 0;
        times(g->spare + t * n, terms->memory[t], d, n);
    }
    j->tile->product_tb(g->query, j->keys, g->spare, n, s->memory, n, count, j->keys, n, false);
    j->tile->product_ta(g->memory, n, x->query, j->keys, g->spare, n, j->keys, n, count, true);
    if (terms->uses_momentum) {
        for (int64_t t = 0; t < count; t++) times(g->spare + t * n, terms->momentum[t], g->output + t * n, n);
        j->tile->product_tb(g->query, j->keys, g->spare, n, s->momentum, n, count, j->keys, n, true);
        j->tile->product_ta(g->momentum_matrix, n, x->query, j->keys, g->spare, n, j->keys, n, count, true);
    }
    j->tile->product_tb(g->mixed, c, g->output, n, x->step, n, count, count, n, false);
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = t * c + i;
            of->token[at] = i <= t ? -g->mixed[at] * x->products[at] : 0;
            g->products[at] = i <= t ? -g->mixed[at] * terms->token[at] : 0;
        }
    j->tile->product_ta(g->step, n, x->mixed, c, g->output, n, count, n, count, true);
    j->tile->product(g->query, j->keys, g->products, c, x->key, j->keys, count, j->keys, count, true);
    j->tile->product_ta(g->key, j->keys, g->products, c, x->query, j->keys, count, j->keys, count, true);
}

/* Through -k^T (numbers u) into a matrix of gradient d: adds to the gradients of keys and u, and writes the numbers'.
 */
static void write_back(job *j, const float *d, const float *numbers, float *numbers_gradient, int64_t count) {
    const int64_t n = j->columns;
    back_rows *g = &j->g;
    j->tile->product(g->spare, n, j->x.key, j->keys, d, n, count, n, j->keys, false);
    for (int64_t t = 0; t < count; t++) {
        numbers_gradient[t] = -(float)dot(g->spare + t * n, j->x.step + t * n, n);
        add_times(g->step + t * n, -numbers[t], g->spare + t * n, n);
        times(g->spare + t * n, -numbers[t], j->x.step + t * n, n);
    }
    j->tile->product_tb(g->key, j->keys, g->spare, n, d, n, count, j->keys, n, true);
}

/* Through the moves of M and S at the piece's end: the gradients of the matrices become those before it. */
static void move_back(job *j, const state *s, int64_t count) {
    back_rows *g = &j->g;
    ln_learner_terms *of = &j->terms_gradient;
    const ln_learner_terms *terms = &j->terms;
    if (terms->writes_momentum) write_back(j, g->momentum_matrix, terms->last_written, of->last_written, count);
    of->keep = terms->keep != 0 ? (float)dot(g->momentum_matrix, s->momentum, j->matrix) : 0;
    if (terms->keep != 0)
        times(g->momentum_matrix, terms->keep, g->momentum_matrix, j->matrix);
    else
        memset(g->momentum_matrix, 0, (size_t)j->matrix * sizeof(float));
    of->last_memory = of->last_momentum = 0;
    if (!terms->moves_memory) return;
    write_back(j, g->memory, terms->last_token, of->last_token, count);
    of->last_memory = (float)dot(g->memory, s->memory, j->matrix);
    if (terms->uses_momentum) {
        of->last_momentum = (float)dot(g->memory, s->momentum, j->matrix);
        add_times(g->momentum_matrix, terms->last_momentum, g->memory, j->matrix);
    }
    times(g->memory, terms->last_memory, g->memory, j->matrix);
}

/* Through u = r inner of one token into its key, value, z, w and b. */
static void step_back(job *j, int64_t t) {
    const int64_t n = j->columns;
    const float *hat = j->x.hat + t * n, *inner = j->x.inner + t * n, *residual = j->x.residual + t * n,
                *du = j->g.step + t * n, rate = j->x.rate[t];
    float *dz = j->g.z + t * n, *dg = j->g.spare, *key = j->g.key + t * j->keys, *value = j->g.value + t * n;
    if (j->plain) {
        memcpy(dz, du, (size_t)n * sizeof *dz);
        times(value, -1, du, n);
        return;
    }
    /* inner = g - mean g - hat mean(g hat), which is symmetric in g. */
    project(dg, du, hat, n);
    float along = 0; /* mean(g hat), g = residual w */
    for (int64_t i = 0; i < n; i++) along += residual[i] * j->weight[i] * hat[i];
    along *= rate / (float)n;
    const float of_rate = (float)dot(du, inner, n), back = rate * (float)dot(du, hat, n) / (float)n;
    for (int64_t i = 0; i < n; i++) {
        const float d = rate * dg[i], of_residual = d * j->weight[i];
        dz[i] = of_residual * j->weight[i] - du[i] * along - back * residual[i] * j->weight[i];
        j->g.weight[i] += d * residual[i] + of_residual * hat[i];
        j->g.bias[i] += of_residual;
        key[i] += of_residual;
        value[i] = -of_residual;
    }
    project(dz, dz, hat, n);
    for (int64_t i = 0; i < n; i++) dz[i] = rate * (dz[i] - rate * of_rate * hat[i] / (float)n);
}

static void give(job *j, int input, int64_t step, int64_t count, const float *gradient, int64_t stride, float factor) {
    const int64_t n = ln_mixer_columns(&j->call->mixer->inputs[input], j->s);
    for (int64_t t = 0; t < count; t++) {
        float *to = ln_mixer_gradient(j->call, input, j->head, j->sequence, step + t);
        if (to) add_times(to, factor, gradient + t * stride, n);
    }
}

/* `floats` is the state before the piece; the gradients in j->g of the state become those before it. */
static void piece_back(job *j, float *floats, int64_t step, int64_t tokens) {
    const state s = state_of(j, floats);
    back_rows *g = &j->g;
    const int64_t n = j->columns, position = position_of(j, floats),
                  count = ln_min_i64(j->chunk - position, tokens - step);
    const ln_learner_piece piece = load_piece(j, step, count, position);
    if (piece.first && j->row->start) memcpy(s.start, s.memory, (size_t)j->matrix * sizeof *s.start);
    j->row->terms(&piece, &j->terms);
    take_steps(j, s.start, count);
    read_memory(j, &j->terms, &s, count);
    memset(g->step, 0, (size_t)(count * n) * sizeof(float));
    memset(g->key, 0, (size_t)(count * j->keys) * sizeof(float));
    output_back(j, step, count);
    move_back(j, &s, count);
    read_back(j, &s, count);
    j->row->terms_back(&piece, &j->terms, &j->terms_gradient);
    for (int64_t t = 0; t < count; t++) step_back(j, t);
    j->tile->product_tb(g->key, j->keys, g->z, n, s.start, n, count, j->keys, n, true);
    j->tile->product_ta(j->row->start ? g->start : g->memory, n, j->x.key, j->keys, g->z, n, j->keys, n, count, true);
    if (piece.first && j->row->start) {
        add_times(g->memory, 1, g->start, j->matrix);
        memset(g->start, 0, (size_t)j->matrix * sizeof(float));
    }
    give(j, LN_LEARNER_QUERY, step, count, g->query, j->keys, j->s->scale);
    give(j, LN_LEARNER_KEY, step, count, g->key, j->keys, 1);
    give(j, LN_LEARNER_VALUE, step, count, g->value, n, 1);
    give(j, LN_LEARNER_STEP_SIZE, step, count, g->step_size, 1, 1);
    if (!j->row->start) return;
    give(j, LN_LEARNER_DECAY, step, count, g->decay, 1, 1);
    give(j, LN_LEARNER_MOMENTUM, step, count, g->momentum, 1, 1);
}

/* Where a piece begins: the first one ends the chunk in which the sequence begins. */
static int64_t piece_step(const job *j, int64_t piece) {
    return piece == 0 ? 0 : piece * j->chunk - j->position;
}

static void replay_forward(void *argument, float *floats, int64_t piece) {
    job *j = argument;
    run_piece(j, floats, piece_step(j, piece), j->tokens, false);
}

static void replay_backward(void *argument, float *floats, int64_t piece) {
    job *j = argument;
    piece_back(j, floats, piece_step(j, piece), j->tokens);
}

static void sequence_back(job *j) {
    back_rows *g = &j->g;
    const size_t matrix = (size_t)j->matrix * sizeof(float);
    const int64_t matrices = j->row->start ? 3 : 2;
    float *gradients[] = {g->memory, g->momentum_matrix, g->start};
    const float *given = ln_mixer_state_out_gradient(j->call, j->sequence, j->head);
    for (int64_t m = 0; m < matrices; m++)
        if (given)
            memcpy(gradients[m], given + m * j->matrix, matrix);
        else
            memset(gradients[m], 0, matrix);
    ln_mixer_read_state(j->call, j->sequence, j->head, g->replay.kept);
    j->position = position_of(j, g->replay.kept);
    const ln_replay_steps steps = {j, replay_forward, replay_backward};
    ln_replay_run(&g->replay, ln_ceil_div(j->tokens + j->position, j->chunk), &steps);
    float *to = ln_mixer_state_in_gradient(j->call, j->sequence, j->head);
    for (int64_t m = 0; to && m < matrices; m++) memcpy(to + m * j->matrix, gradients[m], matrix);
    if (to) to[j->floats - 1] = 0;
}

static void backward_task(void *argument, int64_t key_head, int worker) {
    const ln_mixer_call *call = argument;
    const linnet_mixer_settings *s = call->settings;
    job j = open_job(call, LINNET_MIXER_BACKWARD, worker);
    const size_t bytes = (size_t)j.columns * sizeof(float);
    for (int64_t head = 0; head < s->heads; head++) {
        if (ln_mixer_key_head(s, head) != key_head) continue;
        open_head(&j, head);
        memset(j.g.weight, 0, bytes);
        memset(j.g.bias, 0, bytes);
        for (j.sequence = 0; j.sequence < s->sequences; j.sequence++) {
            int64_t first;
            ln_mixer_span(s, j.sequence, &first, &j.tokens);
            if (j.tokens > 0) sequence_back(&j);
        }
        float *weight = ln_mixer_gradient(call, LN_LEARNER_WEIGHT, head, 0, 0),
              *bias = ln_mixer_gradient(call, LN_LEARNER_BIAS, head, 0, 0);
        if (weight) memcpy(weight, j.g.weight, bytes);
        if (bias) memcpy(bias, j.g.bias, bytes);
    }
}

void ln_learner_backward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->key_heads, backward_task, (void *)(uintptr_t)call);
}
