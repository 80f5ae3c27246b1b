/* Naive recurrences of the rows of src/mixer/rows_linear.c: feature maps and finishes, written out again from the
 * papers.
 *
 * Traps of peers: the two epsilons of ReBased (1e-5 in its kernel, 1e-6 in its reference) differ where sums are small:
 * here it is 1e-5; linear attention normalises by default in one of the peer's forms and not in the other: here
 * `normalise` says so. Based and ReBased weigh by a polynomial of scale q . k, here without features at all. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mixer_check.h"

typedef struct linear {
    int64_t features;
    double epsilon;
    /* phi of a query or a key */
    void (*map)(const oracle_call *c, bool key, const double *x, double *phi);
    bool norm;
} linear;

static double *scratch(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    if (!values) abort();
    return values;
}

static void run(const oracle_call *c, const linear *l) {
    const int64_t F = l->features, V = c->settings->value_size;
    double *q = scratch(F), *k = scratch(F), *sums = scratch(V);
    for (int64_t h = 0; h < c->settings->heads; h++) {
        double *S = c->state_out + h * c->head_floats, *z = S + F * V;
        for (int64_t t = 0; t < c->tokens; t++) {
            l->map(c, false, oracle_input(c, 0, t, h), q);
            l->map(c, true, oracle_input(c, 1, t, h), k);
            const double *v = oracle_input(c, 2, t, h);
            double *o = oracle_output(c, t, h), weight = l->epsilon, square = 0;
            for (int64_t i = 0; c->settings->normalise && i < F; i++) {
                z[i] += k[i];
                weight += (double)c->settings->scale * q[i] * z[i];
            }
            for (int64_t j = 0; j < V; j++) {
                sums[j] = 0;
                for (int64_t i = 0; i < F; i++) {
                    S[i * V + j] += k[i] * v[j];
                    sums[j] += (double)c->settings->scale * q[i] * S[i * V + j];
                }
                square += sums[j] * sums[j] / (double)V;
            }
            for (int64_t j = 0; j < V; j++)
                o[j] = l->norm                  ? sums[j] / sqrt(square + l->epsilon)
                       : c->settings->normalise ? sums[j] / weight
                                                : sums[j];
        }
    }
    free(q);
    free(k);
    free(sums);
}

static void elu_map(const oracle_call *c, bool key, const double *x, double *phi) {
    (void)key;
    for (int64_t i = 0; i < c->settings->key_size; i++) phi[i] = x[i] > 0 ? x[i] + 1 : exp(x[i]);
}
static void elu(const oracle_call *c) {
    run(c, &(linear){c->settings->key_size, 1e-6, elu_map, false});
}
static void norm_attention(const oracle_call *c) {
    run(c, &(linear){c->settings->key_size, 1e-6, elu_map, true});
}

static void relu_map(const oracle_call *c, bool key, const double *x, double *phi) {
    (void)key;
    for (int64_t i = 0; i < c->settings->key_size; i++) phi[i] = fmax(x[i], 0);
}
static void relu(const oracle_call *c) {
    run(c, &(linear){c->settings->key_size, 1e-6, relu_map, false});
}

static void hedgehog_map(const oracle_call *c, bool key, const double *x, double *phi) {
    (void)key;
    const int64_t n = c->settings->key_size;
    double sum = 0;
    for (int64_t i = 0; i < 2 * n; i++) sum += phi[i] = exp(i < n ? x[i] : -x[i - n]);
    for (int64_t i = 0; i < 2 * n; i++) phi[i] /= sum;
}
static void hedgehog(const oracle_call *c) {
    run(c, &(linear){2 * c->settings->key_size, 1e-6, hedgehog_map, false});
}

/* Weights are polynomials of scale q . k; the state, which has other features than x and its square, begins at 0 and is
 * not compared. The sums of tokens before are those of features 1, x, x x^T. */
static void polynomial(const oracle_call *c, double one, double linear_, double square, double epsilon) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size;
    const double scale = (double)c->settings->scale;
    for (int64_t h = 0; h < c->settings->heads; h++)
        for (int64_t t = 0; t < c->tokens; t++) {
            double *o = oracle_output(c, t, h), sum = epsilon;
            const double *q = oracle_input(c, 0, t, h);
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t past = 0; past <= t; past++) {
                const double *k = oracle_input(c, 1, past, h), *v = oracle_input(c, 2, past, h);
                double a = 0;
                for (int64_t i = 0; i < K; i++) a += scale * q[i] * k[i];
                const double weight = one + linear_ * a + square * a * a;
                sum += weight;
                for (int64_t j = 0; j < V; j++) o[j] += weight * v[j];
            }
            for (int64_t j = 0; c->settings->normalise && j < V; j++) o[j] /= sum;
        }
}
static void based(const oracle_call *c) {
    polynomial(c, 1, 1, 0.5, 1e-6);
}
static void rebased(const oracle_call *c) {
    polynomial(c, 0, 0, 1, 1e-5);
}

static void performer_map(const oracle_call *c, bool key, const double *x, double *phi) {
    const int64_t K = c->settings->key_size, M = c->settings->slots;
    const double scale = (double)c->settings->scale;
    for (int64_t m = 0; m < M; m++) {
        double exponent = 0;
        for (int64_t i = 0; i < K; i++)
            exponent += c->input[3][m * K + i] * sqrt(scale) * x[i] - scale * x[i] * x[i] / 2;
        phi[m] = exp(exponent) / sqrt((double)M) / (key ? 1 : scale);
    }
}
static void performer(const oracle_call *c) {
    run(c, &(linear){c->settings->slots, 1e-6, performer_map, false});
}

static void nalaformer_map(const oracle_call *c, bool key, const double *x, double *phi) {
    const int64_t n = c->settings->key_size;
    const double a = c->settings->option[0], quarter = 3.14159265358979323846 / 4;
    double norm = 0;
    for (int64_t i = 0; i < n; i++) norm += x[i] * x[i];
    norm = sqrt(norm);
    for (int64_t i = 0; i < n; i++) {
        const double d = norm > 0 ? x[i] / norm : 0;
        const double size = key ? pow(fabs(x[i]), a) : pow(fabs(d), a * (0.5 + tanh(norm)));
        phi[i] = size * cos(quarter * (1 + d));
        phi[n + i] = size * sin(quarter * (1 + d));
    }
}
static void nalaformer(const oracle_call *c) {
    run(c, &(linear){2 * c->settings->key_size, 1e-6, nalaformer_map, false});
}

/* Weights of all pairs, as the paper has them. Of tokens before the first only sums are known: features of their
 * positions, read by those of the query's. */
static void cosformer(const oracle_call *c) {
    const int64_t K = c->settings->key_size, V = c->settings->value_size, T = c->tokens;
    const double half = 3.14159265358979323846 / 2, M = c->settings->option[0], scale = (double)c->settings->scale;
    for (int64_t h = 0; h < c->settings->heads; h++) {
        const double *S0 = c->state_in + h * c->head_floats, *z0 = S0 + 2 * K * V;
        double *S = c->state_out + h * c->head_floats, *z = S + 2 * K * V, *position = S + c->head_floats - 1;
        const double before = *position;
        for (int64_t t = 0; t < T; t++) {
            const double *q = oracle_input(c, 0, t, h), *own_k = oracle_input(c, 1, t, h);
            const double *own_v = oracle_input(c, 2, t, h), at = fmin(before + (double)t, M);
            double *o = oracle_output(c, t, h), sum = 1e-6;
            for (int64_t j = 0; j < V; j++) o[j] = 0;
            for (int64_t i = 0; i < 2 * K; i++) {
                const double turned = i < K ? cos(half * at / M) : sin(half * at / M);
                const double f = scale * fmax(q[i % K], 0) * turned, g = fmax(own_k[i % K], 0) * turned;
                if (c->settings->normalise) sum += f * z0[i];
                if (c->settings->normalise) z[i] += g;
                for (int64_t j = 0; j < V; j++) o[j] += f * S0[i * V + j];
                for (int64_t j = 0; j < V; j++) S[i * V + j] += g * own_v[j];
            }
            for (int64_t past = 0; past <= t; past++) {
                const double *k = oracle_input(c, 1, past, h), *v = oracle_input(c, 2, past, h);
                double weight = 0;
                for (int64_t i = 0; i < K; i++) weight += scale * fmax(q[i], 0) * fmax(k[i], 0);
                weight *= cos(half * (at - fmin(before + (double)past, M)) / M);
                sum += weight;
                for (int64_t j = 0; j < V; j++) o[j] += weight * v[j];
            }
            for (int64_t j = 0; c->settings->normalise && j < V; j++) o[j] /= sum;
        }
        *position += (double)T;
    }
}

/* Sums of weights that came before are positive, as they are of positive features. */
static bool positive(const linnet_mixer_settings *s, const char *input, double *values, int64_t count,
                     int64_t features) {
    if (strcmp(input, "state") != 0 || !s->normalise) return false;
    const int64_t head = features * (s->value_size + 1);
    for (int64_t i = 0; i < count; i++)
        if (i % head >= features * s->value_size) values[i] = 0.5 + fabs(values[i]);
    return true;
}
static bool fill_keys(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    return positive(s, input, values, count, s->key_size);
}
static bool fill_twice(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    return positive(s, input, values, count, 2 * s->key_size);
}
/* Five tokens came before. */
static bool fill_cosformer(const linnet_mixer_settings *s, const char *input, double *values, int64_t count,
                           int extreme) {
    (void)extreme;
    if (strcmp(input, "state") != 0) return false;
    const int64_t sums = 2 * s->key_size * s->value_size, head = sums + (s->normalise ? 2 * s->key_size : 0) + 1;
    for (int64_t i = 0; i < count; i++) {
        if (i % head >= sums) values[i] = 0.5 + fabs(values[i]);
        if (i % head == head - 1) values[i] = 5;
    }
    return true;
}
static bool fill_slots(const linnet_mixer_settings *s, const char *input, double *values, int64_t count, int extreme) {
    (void)extreme;
    return positive(s, input, values, count, s->slots);
}
/* Features of squares cancel where q . k is much less than |q| |k|: of sums of such weights alone, few digits are left
 * in any order of products. Layers normalise and shift queries and keys before; here they are not orthogonal. */
static bool fill_rebased(const linnet_mixer_settings *s, const char *input, double *values, int64_t count,
                         int extreme) {
    (void)s;
    (void)extreme;
    if (strcmp(input, "query") != 0 && strcmp(input, "key") != 0) return false;
    for (int64_t i = 0; i < count; i++) values[i] = 0.5 * fabs(values[i]);
    return true;
}
static void vary_normalise(linnet_mixer_settings *s, int variant) {
    s->normalise = variant == 0;
}
/* Long enough, or with an end among the tokens, none of which is at the kink. */
static void vary_cosformer(linnet_mixer_settings *s, int variant) {
    s->normalise = variant != 1;
    s->option[0] = variant ? 40.5 : 300;
}
static void vary_products(linnet_mixer_settings *s, int variant) {
    s->normalise = variant == 0;
    if (s->key_size > 32) s->key_size = 16;
}
static void vary_performer(linnet_mixer_settings *s, int variant) {
    s->normalise = variant == 0;
    s->slots = variant ? 20 : 48;
}

const mixer_oracle oracle_linear[] = {
    {.name = "linear_elu", .run = elu, .variants = 1, .vary = vary_normalise, .fill = fill_keys},
    {.name = "linear_relu", .run = relu, .variants = 1, .vary = vary_normalise, .fill = fill_keys},
    {.name = "hedgehog", .run = hedgehog, .variants = 1, .vary = vary_normalise, .fill = fill_twice},
    {.name = "based", .run = based, .variants = 1, .vary = vary_products, .opaque_state = true},
    {.name = "rebased",
     .run = rebased,
     .variants = 1,
     .vary = vary_products,
     .fill = fill_rebased,
     .opaque_state = true},
    /* exponents are about 10 in size, so e^x is known to 10 u */
    {.name = "performer", .run = performer, .forward = 5e-6, .variants = 1, .vary = vary_performer, .fill = fill_slots},
    {.name = "nalaformer", .run = nalaformer, .variants = 1, .vary = vary_normalise, .fill = fill_twice},
    {.name = "cosformer", .run = cosformer, .variants = 2, .vary = vary_cosformer, .fill = fill_cosformer},
    {.name = "norm_attention", .run = norm_attention},
    {0},
};
