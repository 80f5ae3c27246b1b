/* The bodies of the cell kernels, written once with the compiler's 16-lane vectors and compiled for each instruction
 * set by including this file with LN_CELL_SET(name) defined (cell.c, x86/cell_*.c). Formulas: mixer/rows_cell.c. */
#include "kernel/cell.h"

#include "kernel/lanes16.h"

#define EACH(p) for (int64_t i = 0, left = (p)->n; left > 0; i += LANES, left -= LANES)
#define GET(rows, row) load_left((rows) + (row)*n + i, left)
#define PUT(rows, row, v) store_left((rows) + (row)*n + i, v, left)
/* The preactivation of a gate with what came back to it. */
#define GATE(p, gate) (GET((p)->x, gate) + GET((p)->y, gate))

/* Both sums have the same gradient. */
#define PUT_GATE(gate, v)            \
    do {                             \
        const lanes both = v;        \
        PUT(x_gradient, gate, both); \
        PUT(y_gradient, gate, both); \
    } while (0)

/* ---- long short-term memory: gates input, forget, cell, output; parts hidden, cell ---- */

static void lstm_forward(const ln_cell_pass *p) {
    const int64_t n = p->n;
    EACH(p) {
        const lanes c =
            sigmoid_lanes(GATE(p, 1)) * GET(p->last, 1) + sigmoid_lanes(GATE(p, 0)) * tanh_lanes(GATE(p, 2));
        PUT(p->next, 1, c);
        PUT(p->next, 0, sigmoid_lanes(GATE(p, 3)) * tanh_lanes(c));
    }
}

static void lstm_backward(const ln_cell_pass *p, float *gradient, float *x_gradient, float *y_gradient) {
    const int64_t n = p->n;
    const lanes one = splat(1);
    EACH(p) {
        const lanes in = sigmoid_lanes(GATE(p, 0)), forget = sigmoid_lanes(GATE(p, 1)), z = tanh_lanes(GATE(p, 2)),
                    out = sigmoid_lanes(GATE(p, 3)), t = tanh_lanes(GET(p->next, 1));
        const lanes dh = GET(gradient, 0), dc = GET(gradient, 1) + dh * out * (one - t * t);
        PUT_GATE(0, dc * z * in * (one - in));
        PUT_GATE(1, dc * GET(p->last, 1) * forget * (one - forget));
        PUT_GATE(2, dc * in * (one - z * z));
        PUT_GATE(3, dh * t * out * (one - out));
        PUT(gradient, 0, splat(0));
        PUT(gradient, 1, dc * forget);
    }
}

/* ---- gated recurrent unit: gates reset, update, new; part hidden ---- */

static void gru_forward(const ln_cell_pass *p) {
    const int64_t n = p->n;
    EACH(p) {
        const lanes update = sigmoid_lanes(GATE(p, 1)),
                    new = tanh_lanes(GET(p->x, 2) + sigmoid_lanes(GATE(p, 0)) * GET(p->y, 2));
        PUT(p->next, 0, (splat(1) - update) * new + update *GET(p->last, 0));
    }
}

static void gru_backward(const ln_cell_pass *p, float *gradient, float *x_gradient, float *y_gradient) {
    const int64_t n = p->n;
    const lanes one = splat(1);
    EACH(p) {
        const lanes reset = sigmoid_lanes(GATE(p, 0)), update = sigmoid_lanes(GATE(p, 1)), back = GET(p->y, 2),
                    new = tanh_lanes(GET(p->x, 2) + reset * back);
        const lanes dh = GET(gradient, 0), dn = dh * (one - update) * (one - new *new);
        PUT_GATE(0, dn * back * reset * (one - reset));
        PUT_GATE(1, dh * (GET(p->last, 0) - new) * update * (one - update));
        PUT(x_gradient, 2, dn);
        PUT(y_gradient, 2, dn * reset);
        PUT(gradient, 0, dh * update);
    }
}

/* ---- exponential gates: gates input, forget, cell, output; parts hidden, cell, normaliser, stabiliser ---- */

typedef struct slstm_gates {
    lanes_int first, input_wins, input_clipped, forget_clipped; /* masks */
    lanes stabiliser, input, forget;
} slstm_gates;

/* Where the normaliser is 0 nothing was ever written: the stabiliser is not read. */
INLINE slstm_gates slstm_gate(lanes in, lanes forget, lanes normaliser, lanes stabiliser) {
    const lanes decay = log_sigmoid_lanes(forget) + stabiliser;
    slstm_gates g;
    g.first = normaliser == splat(0);
    g.input_wins = g.first | (in > decay);
    g.stabiliser = choose(g.input_wins, in, decay);
    const lanes a = exponential_lanes(in - g.stabiliser), b = exponential_lanes(decay - g.stabiliser);
    g.input_clipped = a > splat(1);
    g.forget_clipped = b > splat(1);
    g.input = choose(g.input_clipped, splat(1), a);
    g.forget = choose(g.forget_clipped, splat(1), b);
    return g;
}

static void slstm_forward(const ln_cell_pass *p) {
    const int64_t n = p->n;
    EACH(p) {
        const slstm_gates g = slstm_gate(GATE(p, 0), GATE(p, 1), GET(p->last, 2), GET(p->last, 3));
        const lanes c = g.forget * GET(p->last, 1) + g.input * tanh_lanes(GATE(p, 2)),
                    all = g.forget * GET(p->last, 2) + g.input,
                    normaliser = p->option[0] == 1 ? choose(all < splat(1), splat(1), all) : all;
        PUT(p->next, 0, sigmoid_lanes(GATE(p, 3)) * c / normaliser);
        PUT(p->next, 1, c);
        PUT(p->next, 2, normaliser);
        PUT(p->next, 3, g.stabiliser);
    }
}

static void slstm_backward(const ln_cell_pass *p, float *gradient, float *x_gradient, float *y_gradient) {
    const int64_t n = p->n;
    const lanes one = splat(1), zero = splat(0);
    EACH(p) {
        const lanes last_c = GET(p->last, 1), last_n = GET(p->last, 2), pre = GATE(p, 1), z = tanh_lanes(GATE(p, 2)),
                    out = sigmoid_lanes(GATE(p, 3)), normaliser = GET(p->next, 2), h = GET(p->next, 1) / normaliser;
        const slstm_gates g = slstm_gate(GATE(p, 0), pre, last_n, GET(p->last, 3));
        const lanes dh = GET(gradient, 0), dc = GET(gradient, 1) + dh * out / normaliser;
        lanes dn = GET(gradient, 2) - dh * out * h / normaliser;
        if (p->option[0] == 1) dn = choose(g.forget * last_n + g.input < one, zero, dn);
        /* Of the exponents input - stabiliser and decay - stabiliser. */
        const lanes da = choose(g.input_clipped, zero, (dc * z + dn) * g.input),
                    db = choose(g.forget_clipped, zero, (dc * last_c + dn * last_n) * g.forget),
                    dm = GET(gradient, 3) - da - db, decay = db + choose(g.input_wins, zero, dm);
        PUT_GATE(0, da + choose(g.input_wins, dm, zero));
        PUT_GATE(1, decay * sigmoid_lanes(-pre));
        PUT_GATE(2, dc * g.input * (one - z * z));
        PUT_GATE(3, dh * h * out * (one - out));
        PUT(gradient, 0, zero);
        PUT(gradient, 1, dc * g.forget);
        PUT(gradient, 2, dn * g.forget);
        PUT(gradient, 3, decay);
    }
}

/* ---- one gate, part hidden ---- */

static void elman_forward(const ln_cell_pass *p) {
    const int64_t n = p->n;
    EACH(p) PUT(p->next, 0, tanh_lanes(GATE(p, 0)));
}

static void elman_backward(const ln_cell_pass *p, float *gradient, float *x_gradient, float *y_gradient) {
    const int64_t n = p->n;
    EACH(p) {
        const lanes h = GET(p->next, 0);
        PUT_GATE(0, GET(gradient, 0) * (splat(1) - h * h));
        PUT(gradient, 0, splat(0));
    }
}

/* ---- leaky integrate and fire: one gate; parts hidden (the spike), potential ---- */

typedef struct spike_constants {
    lanes leak, threshold, steepness; /* steepness: pi / 2 times that of the option */
    int soft;
} spike_constants;

INLINE spike_constants spike_of(const ln_cell_pass *p) {
    return (spike_constants){splat((float)(1 / p->option[0])), splat((float)p->option[1]),
                             splat((float)(1.57079633 * p->option[2])), p->option[3] == 1};
}

/* 1/2 + atan(u) / pi */
INLINE lanes arctan_step(lanes u) {
    for (int l = 0; l < LANES; l++) u[l] = 0.5f + 0.318309886f * atanf(u[l]);
    return u;
}

static void spike_forward(const ln_cell_pass *p) {
    const int64_t n = p->n;
    const spike_constants c = spike_of(p);
    EACH(p) {
        const lanes last = GET(p->last, 1), potential = last + (GATE(p, 0) - last) * c.leak,
                    over = potential - c.threshold;
        lanes spike = choose(over < splat(0), splat(0), over - over + splat(1));
        if (c.soft) spike = arctan_step(over * c.steepness);
        PUT(p->next, 0, spike);
        PUT(p->next, 1, potential - spike * c.threshold);
    }
}

static void spike_backward(const ln_cell_pass *p, float *gradient, float *x_gradient, float *y_gradient) {
    const int64_t n = p->n;
    const spike_constants c = spike_of(p);
    EACH(p) {
        /* The potential before the spike took its threshold away. */
        const lanes u = GET(p->next, 1) + (GET(p->next, 0) - splat(1)) * c.threshold, steep = u * c.steepness,
                    slope = splat(0.318309886f) * c.steepness / (splat(1) + steep * steep);
        const lanes after = GET(gradient, 1), spike = GET(gradient, 0) - after * c.threshold,
                    before = after + spike * slope;
        PUT_GATE(0, before * c.leak);
        PUT(gradient, 0, splat(0));
        PUT(gradient, 1, before - before * c.leak);
    }
}

LN_CELL_SET {
    *kernels = (ln_cell_kernels){.name = LN_CELL_NAME,
                                 .forward = {[LN_CELL_LSTM] = lstm_forward,
                                             [LN_CELL_GRU] = gru_forward,
                                             [LN_CELL_SLSTM] = slstm_forward,
                                             [LN_CELL_ELMAN] = elman_forward,
                                             [LN_CELL_SPIKE] = spike_forward},
                                 .backward = {[LN_CELL_LSTM] = lstm_backward,
                                              [LN_CELL_GRU] = gru_backward,
                                              [LN_CELL_SLSTM] = slstm_backward,
                                              [LN_CELL_ELMAN] = elman_backward,
                                              [LN_CELL_SPIKE] = spike_backward}};
}
