/* Naive recurrences of the rows of src/mixer/rows_delta.c. Each is one loop over tokens with the state as it is. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

typedef struct matrix {
    double *s; /* [keys, values] */
    int64_t keys, values;
} matrix;

static matrix begin(const oracle_call *c, int64_t head) {
    matrix m = {c->state_out + head * c->head_floats, c->settings->key_size, c->settings->value_size};
    memcpy(m.s, c->state_in + head * c->head_floats, (size_t)(m.keys * m.values) * sizeof *m.s);
    return m;
}

/* S^T x */
static void read_state(matrix m, const double *x, double *y) {
    for (int64_t v = 0; v < m.values; v++) {
        y[v] = 0;
        for (int64_t k = 0; k < m.keys; k++) y[v] += x[k] * m.s[k * m.values + v];
    }
}
/* S += x y^T */
static void add_outer(matrix m, const double *x, const double *y) {
    for (int64_t k = 0; k < m.keys; k++)
        for (int64_t v = 0; v < m.values; v++) m.s[k * m.values + v] += x[k] * y[v];
}
static void decay_all(matrix m, double g) {
    for (int64_t i = 0; i < m.keys * m.values; i++) m.s[i] *= exp(g);
}
static void decay_rows(matrix m, const double *g) {
    for (int64_t k = 0; k < m.keys; k++)
        for (int64_t v = 0; v < m.values; v++) m.s[k * m.values + v] *= exp(g[k]);
}
static void answer(const oracle_call *c, matrix m, const double *query, int64_t token, int64_t head) {
    double *o = oracle_output(c, token, head);
    read_state(m, query, o);
    for (int64_t v = 0; v < m.values; v++) o[v] *= (double)c->settings->scale;
}

/* x, or x / sqrt(sum x^2 + 1e-6) where the settings say so; into `room`. */
static const double *key_of(const oracle_call *c, const double *x, double *room) {
    double square = 0;
    for (int64_t k = 0; k < c->settings->key_size; k++) square += x[k] * x[k];
    for (int64_t k = 0; k < c->settings->key_size; k++)
        room[k] = c->settings->normalise_keys ? x[k] / sqrt(square + 1e-6) : x[k];
    return room;
}

enum { QUERY, KEY, VALUE };
enum { MOST = 512 };

/* S += k (beta (v - S^T e))^T */
static void correct(matrix m, const double *k, const double *v, const double *e, double beta) {
    double u[MOST];
    read_state(m, e, u);
    for (int64_t i = 0; i < m.values; i++) u[i] = beta * (v[i] - u[i]);
    add_outer(m, k, u);
}

static void delta_rule(const oracle_call *c) {
    double q[MOST], k[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            key_of(c, oracle_input(c, KEY, t, head), k);
            correct(m, k, oracle_input(c, VALUE, t, head), k, *oracle_input(c, 3, t, head));
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void gated_delta_rule(const oracle_call *c) {
    double q[MOST], k[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            key_of(c, oracle_input(c, KEY, t, head), k);
            decay_all(m, *oracle_input(c, 3, t, head));
            correct(m, k, oracle_input(c, VALUE, t, head), k, *oracle_input(c, 4, t, head));
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void kda(const oracle_call *c) {
    double q[MOST], k[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            key_of(c, oracle_input(c, KEY, t, head), k);
            decay_rows(m, oracle_input(c, 3, t, head));
            correct(m, k, oracle_input(c, VALUE, t, head), k, *oracle_input(c, 4, t, head));
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void gdn2(const oracle_call *c) {
    double q[MOST], k[MOST], bk[MOST], u[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *erase = oracle_input(c, 4, t, head), *write = oracle_input(c, 5, t, head),
                         *v = oracle_input(c, VALUE, t, head);
            key_of(c, oracle_input(c, KEY, t, head), k);
            decay_rows(m, oracle_input(c, 3, t, head));
            for (int64_t i = 0; i < m.keys; i++) bk[i] = erase[i] * k[i];
            read_state(m, bk, u);
            for (int64_t i = 0; i < m.values; i++) u[i] = write[i] * v[i] - u[i];
            add_outer(m, k, u);
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void comba(const oracle_call *c) {
    double q[MOST], k[MOST], p[MOST], u[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            const double *v = oracle_input(c, VALUE, t, head), beta = *oracle_input(c, 4, t, head);
            key_of(c, oracle_input(c, KEY, t, head), k);
            key_of(c, oracle_input(c, c->input[5] ? 5 : KEY, t, head), p);
            read_state(m, p, u); /* not decayed yet */
            for (int64_t i = 0; i < m.values; i++) u[i] = beta * (v[i] - u[i]);
            decay_all(m, *oracle_input(c, 3, t, head));
            add_outer(m, k, u);
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void gated_delta_product(const oracle_call *c) {
    double q[MOST], k[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            decay_all(m, *oracle_input(c, 3, t, head));
            for (int64_t j = 0; j < c->settings->slots; j++) {
                key_of(c, oracle_input(c, KEY, t, head) + j * m.keys, k);
                correct(m, k, oracle_input(c, VALUE, t, head) + j * m.values, k, oracle_input(c, 4, t, head)[j]);
            }
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}

static void low_rank(const oracle_call *c, int decay, int a, int b) {
    double q[MOST], k[MOST], y[MOST];
    for (int64_t head = 0; head < c->settings->heads; head++) {
        const matrix m = begin(c, head);
        for (int64_t t = 0; t < c->tokens; t++) {
            read_state(m, oracle_input(c, a, t, head), y);
            if (decay) decay_rows(m, oracle_input(c, decay, t, head));
            add_outer(m, oracle_input(c, b, t, head), y);
            add_outer(m, key_of(c, oracle_input(c, KEY, t, head), k), oracle_input(c, VALUE, t, head));
            answer(c, m, key_of(c, oracle_input(c, QUERY, t, head), q), t, head);
        }
    }
}
static void dplr(const oracle_call *c) {
    low_rank(c, 3, 4, 5);
}
static void iplr(const oracle_call *c) {
    low_rank(c, 0, 3, 4);
}

static void vary(linnet_mixer_settings *s, int variant) {
    if (variant == 1) s->normalise_keys = true;
    if (variant == 2) s->tiled_heads = true;
}
static void vary_product(linnet_mixer_settings *s, int variant) {
    static const int64_t slots[] = {2, 3, 1, 9};
    s->slots = slots[variant];
    s->normalise_keys = variant == 2;
    if (variant == 3) s->scale = 0.5f;
}

#define ORACLE(NAME, RUN) \
    { .name = NAME, .run = RUN, .forward = 1e-5, .variants = 2, .vary = vary }

const mixer_oracle oracle_delta[] = {
    ORACLE("delta_rule", delta_rule),
    ORACLE("gated_delta_rule", gated_delta_rule),
    ORACLE("kda", kda),
    ORACLE("gdn2", gdn2),
    ORACLE("comba", comba),
    {.name = "gated_delta_product", .run = gated_delta_product, .forward = 1e-5, .variants = 3, .vary = vary_product},
    ORACLE("iplr", iplr),
    ORACLE("dplr", dplr),
    ORACLE("rwkv7", dplr),
    {0},
};
