/* Owns: running cells over time, forward and backward (equations in mixer/cell.h).
 *
 * A task is a head and a group of sequences, longest first: at any time the sequences that still run are the first rows
 * of the group, and one product serves them all. A product's rows do not depend on one another (kernel/tile.h), so
 * grouping changes no bit.
 *
 * Backward is a task a head, group after group, since all sequences share the gradient of R. It keeps the states at the
 * beginning of each segment of about tokens^1/2 steps, and makes those inside a segment again when it comes to it. The
 * gradient of R is one product a segment, of all states with all gradients of y. */
#include "mixer/cell.h"

#include <math.h>
#include <string.h>

#include "mixer/replay.h"

enum { GROUP = 16, GROUP_BACKWARD = 8, SEGMENT_LEAST = 16, SEGMENT_MOST = 256 };

static const ln_cell *cell_of(const ln_mixer *mixer) {
    return mixer->core_row;
}

/* ---- what a group works in ---- */

typedef struct lengths {
    int64_t longest, segment, segments;
} lengths;

static lengths lengths_of(const linnet_mixer_settings *s) {
    lengths l = {.longest = ln_mixer_longest(s)};
    l.segment = ln_min_i64(ln_max_i64((int64_t)sqrt((double)l.longest), SEGMENT_LEAST), SEGMENT_MOST);
    l.segments = ln_ceil_div(ln_max_i64(l.longest, 1), l.segment);
    return l;
}

typedef struct scratch {
    float *x, *y, *state[2];           /* forward; [row][..] */
    float *before, *states, *products; /* backward: [segment][row][..], [step + 1][row][..], [step][row][..] */
    float *hidden, *y_gradient;        /* of all rows of a segment, packed */
    float *gradient, *x_gradient;      /* [row][..], one row */
    float *transposed, *recurrent_gradient, *bias_gradient; /* transposed: R, [gate][to][from] */
} scratch;

typedef struct extents {
    int64_t units, gates, state, rows; /* gates and state: floats of a row; rows: sequences at once */
    lengths l;
} extents;

static extents extents_of(const ln_mixer *mixer, const linnet_mixer_settings *s, linnet_mixer_form form, int threads) {
    const int64_t n = s->value_size, all = s->sequences * s->heads;
    extents e = {n, cell_of(mixer)->gates * n, cell_of(mixer)->parts * n, 0, lengths_of(s)};
    e.rows = form == LINNET_MIXER_BACKWARD ? ln_min_i64(s->sequences, GROUP_BACKWARD)
                                           : ln_min_i64(ln_max_i64(all / ln_max_i64(threads, 1), 1), GROUP);
    return e;
}

static float *floats(ln_carver *carver, int64_t count, int64_t times) {
    uint64_t all;
    if (!ln_multiply_u64((uint64_t)count, (uint64_t)times, &all)) {
        carver->overflow = true;
        return NULL;
    }
    return ln_carve(carver, all, sizeof(float));
}

static scratch lay_out(ln_carver *c, const extents *e, linnet_mixer_form form) {
    scratch w = {.x = floats(c, e->rows, e->gates)};
    if (form != LINNET_MIXER_BACKWARD) {
        w.y = floats(c, e->rows, e->gates);
        for (int i = 0; i < 2; i++) w.state[i] = floats(c, e->rows, e->state);
        return w;
    }
    const int64_t rows = e->rows * e->l.segment;
    w.before = floats(c, e->rows * e->l.segments, e->state);
    w.states = floats(c, rows + e->rows, e->state);
    w.products = floats(c, rows, e->gates);
    w.hidden = floats(c, rows, e->units);
    w.y_gradient = floats(c, rows, e->gates);
    w.gradient = floats(c, e->rows, e->state);
    w.x_gradient = floats(c, 1, e->gates);
    w.transposed = floats(c, e->gates, e->units);
    w.recurrent_gradient = floats(c, e->units, e->gates);
    w.bias_gradient = floats(c, 1, e->gates);
    return w;
}

uint64_t ln_cell_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                           const linnet_mixer_settings *settings, linnet_mixer_form form) {
    (void)kernels;
    const extents e = extents_of(mixer, settings, form, threads);
    ln_carver carver = {0};
    lay_out(&carver, &e, form);
    return ln_carved(&carver, threads);
}

typedef struct group {
    const ln_mixer_call *call;
    const ln_cell *cell;
    extents e;
    scratch w;
    int64_t head, count;
    int64_t sequence[GROUP], length[GROUP]; /* longest first */
    const float *recurrent, *bias;
} group;

static const float *parameter(const ln_mixer_call *call, int input, int64_t head) {
    const linnet_tensor *t = &call->tensors->input[input];
    return t->data ? (const float *)t->data + head * t->head_stride : NULL;
}

static group open_group(const ln_mixer_call *call, linnet_mixer_form form, int worker, int64_t head) {
    group g = {.call = call,
               .cell = cell_of(call->mixer),
               .e = extents_of(call->mixer, call->settings, form, ln_team_size(call->team)),
               .head = head,
               .recurrent = parameter(call, LN_CELL_RECURRENT, head),
               .bias = parameter(call, LN_CELL_BIAS, head)};
    ln_carver size = {0};
    lay_out(&size, &g.e, form);
    ln_carver carver = {.base = (unsigned char *)call->workspace + size.used * (uint64_t)worker};
    g.w = lay_out(&carver, &g.e, form);
    return g;
}

static void take_sequences(group *g, int64_t first) {
    const linnet_mixer_settings *s = g->call->settings;
    g->count = ln_min_i64(g->e.rows, s->sequences - first);
    for (int64_t i = 0; i < g->count; i++) {
        int64_t begin, length, at = i;
        ln_mixer_span(s, first + i, &begin, &length);
        for (; at > 0 && g->length[at - 1] < length; at--) {
            g->length[at] = g->length[at - 1];
            g->sequence[at] = g->sequence[at - 1];
        }
        g->length[at] = length;
        g->sequence[at] = first + i;
    }
    while (g->count > 0 && g->length[g->count - 1] == 0) g->count--;
}

/* Rows that still run at a time. */
static int64_t running(const group *g, int64_t step) {
    int64_t rows = g->count;
    while (rows > 0 && g->length[rows - 1] <= step) rows--;
    return rows;
}

static void read_states(const group *g, float *state) {
    for (int64_t r = 0; r < g->count; r++)
        ln_mixer_read_state(g->call, g->sequence[r], g->head, state + r * g->e.state);
}

static ln_cell_pass pass_of(const group *g, int64_t row, const float *y, const float *last, float *next) {
    return (ln_cell_pass){.x = g->w.x + row * g->e.gates,
                          .y = y + row * g->e.gates,
                          .last = last + row * g->e.state,
                          .next = next + row * g->e.state,
                          .n = g->e.units,
                          .option = g->call->settings->option};
}

static void load_inputs(const group *g, int64_t rows, int64_t step) {
    for (int64_t r = 0; r < rows; r++)
        ln_mixer_load(g->call, LN_CELL_VALUE, g->head, g->sequence[r], step, 1, g->w.x + r * g->e.gates);
}

/* One step of the first rows. */
static void advance(const group *g, int64_t rows, int64_t step, float *y, const float *last, float *next) {
    const extents *e = &g->e;
    load_inputs(g, rows, step);
    for (int64_t r = 0; r < rows; r++)
        if (g->bias)
            memcpy(y + r * e->gates, g->bias, (size_t)e->gates * sizeof *y);
        else
            memset(y + r * e->gates, 0, (size_t)e->gates * sizeof *y);
    if (g->recurrent)
        g->call->kernels->tile.product(y, e->gates, last, e->state, g->recurrent, e->gates, rows, e->gates, e->units,
                                       true);
    for (int64_t r = 0; r < rows; r++) {
        const ln_cell_pass p = pass_of(g, r, y, last, next);
        g->call->kernels->cell.forward[g->cell->kind](&p);
    }
}

/* ---- forward ---- */

static void run_group(const group *g) {
    const extents *e = &g->e;
    float *last = g->w.state[0], *next = g->w.state[1];
    read_states(g, last);
    for (int64_t step = 0, rows; (rows = running(g, step)) > 0; step++) {
        advance(g, rows, step, g->w.y, last, next);
        for (int64_t r = 0; r < rows; r++) {
            const float *state = next + r * e->state;
            memcpy(ln_mixer_output(g->call, g->head, g->sequence[r], step), state, (size_t)e->units * sizeof *state);
            float *out = ln_mixer_state_out(g->call, g->sequence[r], g->head);
            if (out && g->length[r] == step + 1) memcpy(out, state, (size_t)e->state * sizeof *state);
        }
        float *swap = last;
        last = next;
        next = swap;
    }
}

static void forward_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    const int64_t heads = call->settings->heads;
    group g = open_group(call, LINNET_MIXER_FORWARD, worker, task % heads);
    take_sequences(&g, task / heads * g.e.rows);
    run_group(&g);
}

void ln_cell_run_forward(const ln_mixer_call *call) {
    const linnet_mixer_settings *s = call->settings;
    const extents e = extents_of(call->mixer, s, LINNET_MIXER_FORWARD, ln_team_size(call->team));
    ln_parallel(call->team, s->heads * ln_ceil_div(s->sequences, e.rows), forward_task, (void *)(uintptr_t)call);
}

/* ---- backward ---- */

/* The states of all steps of a segment, from those before it; returns its last step + 1. */
static int64_t replay(const group *g, int64_t segment) {
    const extents *e = &g->e;
    const int64_t first = segment * e->l.segment, end = ln_min_i64(first + e->l.segment, g->length[0]);
    memcpy(g->w.states, g->w.before + segment * e->rows * e->state, (size_t)(g->count * e->state) * sizeof(float));
    for (int64_t step = first; step < end; step++) {
        float *last = g->w.states + (step - first) * e->rows * e->state;
        advance(g, running(g, step), step, g->w.products + (step - first) * e->rows * e->gates, last,
                last + e->rows * e->state);
    }
    return end;
}

static void add_rows(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

/* Gradients through one step; the packed rows of hidden states and gradients of y begin at `packed`. */
static void step_back(const group *g, int64_t step, int64_t first, int64_t rows, int64_t packed) {
    const extents *e = &g->e;
    const float *last = g->w.states + (step - first) * e->rows * e->state,
                *y = g->w.products + (step - first) * e->rows * e->gates;
    float *next = g->w.states + (step - first + 1) * e->rows * e->state, *dy = g->w.y_gradient + packed * e->gates;
    load_inputs(g, rows, step);
    for (int64_t r = 0; r < rows; r++) {
        float *gradient = g->w.gradient + r * e->state,
              *to = ln_mixer_gradient(g->call, LN_CELL_VALUE, g->head, g->sequence[r], step);
        add_rows(gradient, ln_mixer_output_gradient(g->call, g->head, g->sequence[r], step), e->units);
        const ln_cell_pass p = pass_of(g, r, y, last, next);
        g->call->kernels->cell.backward[g->cell->kind](&p, gradient, g->w.x_gradient, dy + r * e->gates);
        if (to) add_rows(to, g->w.x_gradient, e->gates);
        add_rows(g->w.bias_gradient, dy + r * e->gates, e->gates);
        memcpy(g->w.hidden + (packed + r) * e->units, last + r * e->state, (size_t)e->units * sizeof *last);
    }
    if (g->recurrent)
        g->call->kernels->tile.product(g->w.gradient, e->state, dy, e->gates, g->w.transposed, e->units, rows, e->units,
                                       e->gates, true);
}

static void group_back(const group *g) {
    const extents *e = &g->e;
    if (g->count == 0) return;
    read_states(g, g->w.before);
    const int64_t segments = ln_ceil_div(g->length[0], e->l.segment);
    for (int64_t i = 0; i + 1 < segments; i++) {
        replay(g, i);
        memcpy(g->w.before + (i + 1) * e->rows * e->state, g->w.states + e->l.segment * e->rows * e->state,
               (size_t)(g->count * e->state) * sizeof(float));
    }
    for (int64_t r = 0; r < g->count; r++)
        ln_mixer_read_gradient(g->call, g->sequence[r], g->head, g->w.gradient + r * e->state);
    for (int64_t i = segments - 1; i >= 0; i--) {
        const int64_t first = i * e->l.segment, end = replay(g, i);
        int64_t packed = 0;
        for (int64_t step = end - 1; step >= first; step--) {
            const int64_t rows = running(g, step);
            step_back(g, step, first, rows, packed);
            packed += rows;
        }
        g->call->kernels->tile.product_ta(g->w.recurrent_gradient, e->gates, g->w.hidden, e->units, g->w.y_gradient,
                                          e->gates, e->units, e->gates, packed, true);
    }
    for (int64_t r = 0; r < g->count; r++) {
        float *to = ln_mixer_state_in_gradient(g->call, g->sequence[r], g->head);
        if (to) memcpy(to, g->w.gradient + r * e->state, (size_t)e->state * sizeof *to);
    }
}

static void backward_task(void *argument, int64_t head, int worker) {
    const ln_mixer_call *call = argument;
    group g = open_group(call, LINNET_MIXER_BACKWARD, worker, head);
    const extents *e = &g.e;
    for (int64_t to = 0; g.recurrent && to < e->gates; to++)
        for (int64_t from = 0; from < e->units; from++)
            g.w.transposed[to * e->units + from] = g.recurrent[from * e->gates + to];
    memset(g.w.recurrent_gradient, 0, (size_t)(e->units * e->gates) * sizeof(float));
    memset(g.w.bias_gradient, 0, (size_t)e->gates * sizeof(float));
    for (int64_t first = 0; first < call->settings->sequences; first += e->rows) {
        take_sequences(&g, first);
        group_back(&g);
    }
    float *recurrent = ln_mixer_gradient(call, LN_CELL_RECURRENT, head, 0, 0),
          *bias = ln_mixer_gradient(call, LN_CELL_BIAS, head, 0, 0);
    if (recurrent) memcpy(recurrent, g.w.recurrent_gradient, (size_t)(e->units * e->gates) * sizeof *recurrent);
    if (bias) memcpy(bias, g.w.bias_gradient, (size_t)e->gates * sizeof *bias);
}

void ln_cell_run_backward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->heads, backward_task, (void *)(uintptr_t)call);
}
