/* The backward pass of attention against float64, itself checked by central differences of a float64 forward pass:
 * every mask, bias and shape, strides with guards, threads, instruction sets, huge logits, and values that are not
 * finite. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/context.h"
#include "base/cpu.h"
#include "base/random.h"
#include "mixer/attention_gradient.h"

enum { SEQUENCES = 5, HEADS = 8 };

typedef struct setting {
    const char *name;
    int64_t heads, shared, key_size, value_size, sequences, tokens[SEQUENCES], keys[SEQUENCES];
    linnet_type type;
    float cap, logits;                                /* logits: factor of queries, 0: 1 */
    bool causal, sinks, alibi, dense, strided, loose; /* loose: products of bf16 where there are such */
    int64_t window, prefix, documents, rank, relative;
    const int64_t *document_offsets;
    linnet_block_mask blocks;
    linnet_neighbourhood grid;
} setting;

/* ---- the problem in float64, tensors packed ---- */

/* Inputs, and the gradients of them, in the same order. */
typedef enum part { QUERY, KEY, VALUE, QUERY_FACTORS, KEY_FACTORS, SINKS, PARTS } part;

typedef struct problem {
    const setting *s;
    int64_t tokens, keys, first_token[SEQUENCES + 1], first_key[SEQUENCES + 1];
    float scale;
    int64_t count[PARTS];
    double *input[PARTS], *want[PARTS], *size[PARTS]; /* size: sum of the absolute values of what was summed */
    double *gradient, *output, *lse;                  /* gradient: of the output */
    float *alibi, *table, *dense;
    int64_t dense_offsets[SEQUENCES], dense_count;
} problem;

static double rounded(double x, linnet_type type) {
    return (double)(type == LINNET_BF16 ? ln_bf16_float(ln_float_bf16((float)x)) : (float)x);
}
static double *random_doubles(int64_t n, uint64_t seed, double scale, linnet_type type) {
    double *x = malloc((size_t)(n + 1) * sizeof *x);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = rounded(scale * ln_random_normal(&random), type);
    return x;
}
static float *random_floats(int64_t n, uint64_t seed, float scale) {
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int64_t i = 0; i < n; i++) x[i] = scale * (float)ln_random_normal(&random);
    return x;
}

static problem open_problem(const setting *s) {
    problem p = {.s = s, .scale = 1 / sqrtf((float)s->key_size)};
    for (int64_t i = 0; i < s->sequences; i++) {
        p.first_token[i + 1] = p.first_token[i] + s->tokens[i];
        p.first_key[i + 1] = p.first_key[i] + s->keys[i];
        p.dense_offsets[i] = p.dense_count;
        p.dense_count += s->heads * s->tokens[i] * s->keys[i];
    }
    p.tokens = p.first_token[s->sequences];
    p.keys = p.first_key[s->sequences];
    const int64_t count[PARTS] = {p.tokens * s->heads * s->key_size,  p.keys * s->shared * s->key_size,
                                  p.keys * s->shared * s->value_size, p.tokens * s->heads * s->rank,
                                  p.keys * s->shared * s->rank,       s->sinks ? s->heads : 0};
    for (int i = 0; i < PARTS; i++) {
        p.count[i] = count[i];
        const bool factors = i == QUERY_FACTORS || i == KEY_FACTORS;
        const double scale = i == QUERY && s->logits != 0 ? (double)s->logits
                             : factors                    ? pow((double)s->rank, -0.25)
                                                          : 1;
        p.input[i] = random_doubles(count[i], 1 + (uint64_t)i, scale, i <= VALUE ? s->type : LINNET_F32);
        p.want[i] = malloc((size_t)(count[i] + 1) * sizeof(double));
        p.size[i] = malloc((size_t)(count[i] + 1) * sizeof(double));
    }
    const int64_t outputs = p.tokens * s->heads * s->value_size;
    p.gradient = random_doubles(outputs, 11, 1, LINNET_F32);
    p.output = random_doubles(outputs, 12, 1, LINNET_F32);
    p.lse = random_doubles(p.tokens * s->heads, 13, 1, LINNET_F32);
    p.alibi = random_floats(s->heads, 14, 0.1f);
    p.table = random_floats(s->heads * 2 * s->relative, 15, 1);
    p.dense = random_floats(s->dense ? p.dense_count : 0, 16, 1);
    return p;
}
static void close_problem(problem *p) {
    for (int i = 0; i < PARTS; i++) {
        free(p->input[i]);
        free(p->want[i]);
        free(p->size[i]);
    }
    free(p->gradient);
    free(p->output);
    free(p->lse);
    free(p->alibi);
    free(p->table);
    free(p->dense);
}

/* ---- the formulas of linnet/attention.h ---- */

static bool grid_sees(const linnet_neighbourhood *g, int64_t query, int64_t key) {
    for (int axis = g->axes - 1; axis >= 0; axis--) {
        const int64_t n = g->extent[axis], d = g->dilation[axis] ? g->dilation[axis] : 1, w = g->window[axis];
        const int64_t q = query % n, k = key % n, inside = (n - q % d + d - 1) / d;
        int64_t start = q / d - w / 2, end;
        if (start > inside - w) start = inside - w;
        if (start < 0) start = 0;
        end = start + w;
        if (g->causal[axis]) {
            end = q / d + 1;
            start = end - w;
        }
        if (k % d != q % d || k / d < start || k / d >= end) return false;
        query /= n;
        key /= n;
    }
    return true;
}
static int64_t document_of(const setting *s, int64_t key) {
    int64_t d = 0;
    while (d < s->documents && s->document_offsets[d + 1] <= key) d++;
    return d;
}
static bool sees(const problem *p, int64_t sequence, int64_t head, int64_t i, int64_t j) {
    const setting *s = p->s;
    const int64_t position = i + s->keys[sequence] - s->tokens[sequence], first = p->first_key[sequence];
    if (j >= s->prefix) {
        if (s->causal && j > position) return false;
        if (s->window && (position - j >= s->window || (!s->causal && j - position >= s->window))) return false;
    }
    if (s->documents && document_of(s, first + position) != document_of(s, first + j)) return false;
    if (s->grid.axes && !grid_sees(&s->grid, i, j)) return false;
    if (s->blocks.key_tile) {
        const linnet_block_mask *b = &s->blocks;
        const int64_t tiles = (s->tokens[sequence] + b->query_tile - 1) / b->query_tile;
        const int64_t list = (b->per_head ? head * tiles : 0) + i / b->query_tile;
        bool found = false;
        for (int64_t at = b->offsets[list]; at < b->offsets[list + 1]; at++) found |= b->tiles[at] == j / b->key_tile;
        if (!found) return false;
    }
    return true;
}
static double bias_of(const problem *p, int64_t sequence, int64_t head, int64_t i, int64_t j) {
    const setting *s = p->s;
    const int64_t position = i + s->keys[sequence] - s->tokens[sequence], shared = head / (s->heads / s->shared);
    double sum = 0;
    if (s->alibi) sum -= (double)p->alibi[head] * fabs((double)(position - j));
    const double *q = p->input[QUERY_FACTORS] + ((p->first_token[sequence] + i) * s->heads + head) * s->rank;
    const double *k = p->input[KEY_FACTORS] + ((p->first_key[sequence] + j) * s->shared + shared) * s->rank;
    for (int64_t r = 0; r < s->rank; r++) sum += q[r] * k[r];
    if (s->dense)
        sum += (double)p->dense[p->dense_offsets[sequence] + (head * s->tokens[sequence] + i) * s->keys[sequence] + j];
    if (s->relative) {
        const int64_t most = s->relative - 1, d = j - position, at = d < -most ? -most : d > most ? most : d;
        sum += (double)p->table[head * (2 * s->relative - 1) + most + at];
    }
    return sum;
}

/* Of one query. */
typedef struct row {
    int64_t sequence, head, shared, i;
    int64_t q, o;           /* rows of [token, head] and, for key 0, [key, key-value head] */
    double *score, *capped; /* [keys]: with bias; tanh of the cap; score -inf where not seen */
} row;

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static int64_t key_row(const problem *p, const row *r, int64_t j) {
    return (p->first_key[r->sequence] + j) * p->s->shared + r->shared;
}

static void forward_row(const problem *p, row *r) {
    const setting *s = p->s;
    const int64_t keys = s->keys[r->sequence];
    r->shared = r->head / (s->heads / s->shared);
    r->q = (p->first_token[r->sequence] + r->i) * s->heads + r->head;
    double most = s->sinks ? p->input[SINKS][r->head] : -INFINITY, sum = 0;
    for (int64_t j = 0; j < keys; j++) {
        r->score[j] = -INFINITY;
        if (!sees(p, r->sequence, r->head, r->i, j)) continue;
        double x = (double)p->scale * dot(p->input[QUERY] + r->q * s->key_size,
                                          p->input[KEY] + key_row(p, r, j) * s->key_size, s->key_size);
        r->capped[j] = s->cap != 0 ? tanh(x / (double)s->cap) : 0;
        if (s->cap != 0) x = (double)s->cap * r->capped[j];
        r->score[j] = x + bias_of(p, r->sequence, r->head, r->i, j);
        most = fmax(most, r->score[j]);
    }
    if (s->sinks) sum += exp(p->input[SINKS][r->head] - most);
    for (int64_t j = 0; j < keys; j++)
        if (r->score[j] != -INFINITY) sum += exp(r->score[j] - most);
    p->lse[r->q] = sum > 0 ? most + log(sum) : -INFINITY;
    double *output = p->output + r->q * s->value_size;
    memset(output, 0, (size_t)s->value_size * sizeof *output);
    for (int64_t j = 0; j < keys; j++) {
        if (r->score[j] == -INFINITY) continue;
        const double weight = exp(r->score[j] - p->lse[r->q]), *v = p->input[VALUE] + key_row(p, r, j) * s->value_size;
        for (int64_t c = 0; c < s->value_size; c++) output[c] += weight * v[c];
    }
}

static void add_to(const problem *p, part which, int64_t at, double factor, double size, const double *x, int64_t n) {
    for (int64_t c = 0; c < n; c++) {
        p->want[which][at * n + c] += factor * x[c];
        p->size[which][at * n + c] += size * fabs(x[c]);
    }
}

static void backward_row(const problem *p, const row *r) {
    const setting *s = p->s;
    const double *g = p->gradient + r->q * s->value_size, *o = p->output + r->q * s->value_size;
    const double delta = dot(g, o, s->value_size), lse = p->lse[r->q], scale = (double)p->scale;
    double delta_size = 0;
    for (int64_t c = 0; c < s->value_size; c++) delta_size += fabs(g[c] * o[c]);
    if (s->sinks) {
        p->want[SINKS][r->head] -= exp(p->input[SINKS][r->head] - lse) * delta;
        p->size[SINKS][r->head] += exp(p->input[SINKS][r->head] - lse) * delta_size;
    }
    for (int64_t j = 0; j < s->keys[r->sequence]; j++) {
        if (r->score[j] == -INFINITY) continue;
        const int64_t k = key_row(p, r, j);
        const double weight = exp(r->score[j] - lse), *v = p->input[VALUE] + k * s->value_size;
        const double biased = weight * (dot(g, v, s->value_size) - delta);
        double size = delta_size;
        for (int64_t c = 0; c < s->value_size; c++) size += fabs(g[c] * v[c]);
        size *= weight;
        /* The slope of the cap is a difference from 1: its error is that of 1. */
        const double score = biased * (1 - r->capped[j] * r->capped[j]) * scale;
        add_to(p, VALUE, k, weight, weight, g, s->value_size);
        add_to(p, QUERY, r->q, score, size * scale, p->input[KEY] + k * s->key_size, s->key_size);
        add_to(p, KEY, k, score, size * scale, p->input[QUERY] + r->q * s->key_size, s->key_size);
        add_to(p, QUERY_FACTORS, r->q, biased, size, p->input[KEY_FACTORS] + k * s->rank, s->rank);
        add_to(p, KEY_FACTORS, k, biased, size, p->input[QUERY_FACTORS] + r->q * s->rank, s->rank);
    }
}

static void solve_exactly(const problem *p, bool backward) {
    const setting *s = p->s;
    row r = {.score = malloc((size_t)(p->keys + 1) * sizeof(double)),
             .capped = malloc((size_t)(p->keys + 1) * sizeof(double))};
    for (int i = 0; backward && i < PARTS; i++) {
        memset(p->want[i], 0, (size_t)p->count[i] * sizeof(double));
        memset(p->size[i], 0, (size_t)p->count[i] * sizeof(double));
    }
    for (r.sequence = 0; r.sequence < s->sequences; r.sequence++)
        for (r.i = 0; r.i < s->tokens[r.sequence]; r.i++)
            for (r.head = 0; r.head < s->heads; r.head++) {
                forward_row(p, &r);
                if (backward && p->lse[r.q] != -INFINITY) backward_row(p, &r);
            }
    free(r.score);
    free(r.capped);
}

/* ---- the library ---- */

enum { GUARD = 5 };

/* Tensors as they are given: of s->type or float32, with guards between heads and tokens where strided. */
typedef struct tensors {
    linnet_tensor tensor[PARTS], gradient[PARTS], output, output_gradient;
    float *lse, *sinks, *sinks_gradient;
} tensors;

static linnet_tensor strided(const setting *s, int64_t tokens, int64_t heads, int64_t size, linnet_type type,
                             const double *from) {
    const int64_t guard = s->strided ? GUARD : 0, head_stride = size + guard, stride = heads * head_stride + 2 * guard;
    linnet_tensor t = {NULL, stride, head_stride};
    const size_t element = type == LINNET_BF16 ? 2 : 4, bytes = (size_t)(tokens * stride + 1) * element;
    t.data = malloc(bytes);
    memset(t.data, 0xff, bytes);
    for (int64_t i = 0; from && i < tokens; i++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t c = 0; c < size; c++) {
                const float x = (float)from[(i * heads + h) * size + c];
                const int64_t at = i * stride + h * head_stride + c;
                if (type == LINNET_BF16)
                    ((uint16_t *)t.data)[at] = ln_float_bf16(x);
                else
                    ((float *)t.data)[at] = x;
            }
    return t;
}
static linnet_tensor moved(const linnet_tensor *t, int64_t token, linnet_type type) {
    const int64_t element = type == LINNET_BF16 ? 2 : 4;
    return (linnet_tensor){(char *)t->data + token * t->token_stride * element, t->token_stride, t->head_stride};
}

static void part_shape(const problem *p, int which, int64_t *tokens, int64_t *heads, int64_t *size) {
    const setting *s = p->s;
    const bool query = which == QUERY || which == QUERY_FACTORS;
    *tokens = which == SINKS ? 1 : query ? p->tokens : p->keys;
    *heads = query || which == SINKS ? s->heads : s->shared;
    *size = which == VALUE ? s->value_size : which == SINKS ? 1 : which >= QUERY_FACTORS ? s->rank : s->key_size;
}

static const setting plain; /* packed */

static tensors open_tensors(const problem *p) {
    const setting *s = p->s;
    tensors t;
    for (int i = 0; i < PARTS; i++) {
        int64_t tokens, heads, size;
        part_shape(p, i, &tokens, &heads, &size);
        const setting *how = i <= VALUE ? s : &plain;
        t.tensor[i] =
            strided(how, tokens, heads, size, i <= VALUE ? s->type : LINNET_F32, p->count[i] ? p->input[i] : NULL);
        t.gradient[i] = strided(how, tokens, heads, size, LINNET_F32, NULL);
    }
    t.output = strided(s, p->tokens, s->heads, s->value_size, LINNET_F32, p->output);
    t.output_gradient = strided(s, p->tokens, s->heads, s->value_size, LINNET_F32, p->gradient);
    t.lse = strided(&plain, p->tokens, s->heads, 1, LINNET_F32, p->lse).data;
    return t;
}
static void close_tensors(tensors *t) {
    for (int i = 0; i < PARTS; i++) {
        free(t->tensor[i].data);
        free(t->gradient[i].data);
    }
    free(t->output.data);
    free(t->output_gradient.data);
    free(t->lse);
}

/* wanted: bits of parts whose gradients are computed. */
static void solve(const problem *p, const tensors *t, int threads, const char *cpu, unsigned wanted) {
    const setting *s = p->s;
    linnet_context_settings settings = linnet_context_settings_default();
    settings.threads = threads;
    settings.cpu = cpu;
    linnet_context *context;
    assert_int_equal(linnet_context_open(&settings, &context), LINNET_OK);
    ln_kernels kernels;
    ln_kernels_choose(context->cpu, &kernels);
    ln_grid grid = {0};
    if (s->grid.axes) assert_int_equal(ln_grid_open(context, &s->grid, &grid), LINNET_OK);
    ln_attention attention = {.heads = s->heads,
                              .key_value_heads = s->shared,
                              .key_size = s->key_size,
                              .value_size = s->value_size,
                              .scale = p->scale,
                              .soft_cap = s->cap,
                              .bf16 = s->loose,
                              .sinks = s->sinks ? t->tensor[SINKS].data : NULL};
    attention.mask = (ln_mask){
        .causal = s->causal,
        .window = s->window,
        .prefix = s->prefix,
        .documents = s->documents,
        .document_offsets = s->document_offsets,
        .blocks = s->blocks,
        .query_tiles = s->blocks.query_tile ? (s->tokens[0] + s->blocks.query_tile - 1) / s->blocks.query_tile : 0,
        .grid = s->grid.axes ? &grid : NULL};
    ln_gradient_sequence sequences[SEQUENCES] = {0};
    for (int64_t i = 0; i < s->sequences; i++) {
        const int64_t token = p->first_token[i], key = p->first_key[i];
        ln_gradient_sequence *q = &sequences[i];
        *q = (ln_gradient_sequence){.type = s->type,
                                    .tokens = s->tokens[i],
                                    .keys = s->keys[i],
                                    .position = s->keys[i] - s->tokens[i],
                                    .query = moved(&t->tensor[QUERY], token, s->type),
                                    .key = moved(&t->tensor[KEY], key, s->type),
                                    .value = moved(&t->tensor[VALUE], key, s->type),
                                    .output = moved(&t->output, token, LINNET_F32),
                                    .output_gradient = moved(&t->output_gradient, token, LINNET_F32),
                                    .log_sum_exp = t->lse + token * s->heads,
                                    .order = grid.token,
                                    .key_begin = key};
        if (wanted & 1u << QUERY) q->query_gradient = moved(&t->gradient[QUERY], token, LINNET_F32);
        if (wanted & 1u << KEY) q->key_gradient = moved(&t->gradient[KEY], key, LINNET_F32);
        if (wanted & 1u << VALUE) q->value_gradient = moved(&t->gradient[VALUE], key, LINNET_F32);
        const int64_t query_factor = token * s->heads * s->rank, key_factor = key * s->shared * s->rank;
        if (wanted & 1u << QUERY_FACTORS)
            q->query_factors_gradient = (float *)t->gradient[QUERY_FACTORS].data + query_factor;
        if (wanted & 1u << KEY_FACTORS) q->key_factors_gradient = (float *)t->gradient[KEY_FACTORS].data + key_factor;
        q->bias = (ln_bias){.heads = s->heads,
                            .key_value_heads = s->shared,
                            .alibi = s->alibi ? p->alibi : NULL,
                            .rank = s->rank,
                            .query_factors = (float *)t->tensor[QUERY_FACTORS].data + query_factor,
                            .key_factors = (float *)t->tensor[KEY_FACTORS].data + key_factor,
                            .dense = s->dense ? p->dense + p->dense_offsets[i] : NULL,
                            .dense_head_stride = s->tokens[i] * s->keys[i],
                            .dense_row_stride = s->keys[i],
                            .relative = s->relative,
                            .table = s->relative ? p->table : NULL,
                            .order = grid.token};
    }
    const uint64_t bytes = ln_attention_gradient_workspace(&kernels, threads, &attention, sequences, s->sequences);
    unsigned char *workspace = ln_allocate(context, bytes + 64, 1, "workspace");
    memset(workspace, 0xff, bytes + 64);
    ln_attention_gradient(&kernels, context->team, &attention, sequences, s->sequences,
                          wanted & 1u << SINKS ? t->gradient[SINKS].data : NULL, workspace);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + (uint64_t)i], 0xff);
    ln_release(context, workspace);
    ln_grid_close(context, &grid);
    linnet_context_close(context);
}

/* The library's own forward pass: output and log_sum_exp. */
static void forward(const problem *p, tensors *t) {
    const setting *s = p->s;
    linnet_context *context;
    assert_int_equal(linnet_context_open(NULL, &context), LINNET_OK);
    linnet_attention_settings settings = linnet_attention_settings_default();
    settings.heads = s->heads;
    settings.key_value_heads = s->shared;
    settings.key_size = s->key_size;
    settings.value_size = s->value_size;
    settings.sequences = s->sequences;
    settings.query_offsets = p->first_token;
    settings.key_offsets = p->first_key;
    settings.soft_cap = s->cap;
    settings.causal = s->causal;
    settings.window = s->window;
    settings.prefix = s->prefix;
    settings.documents = s->documents;
    settings.document_offsets = s->document_offsets;
    settings.blocks = s->blocks;
    settings.neighbourhood = s->grid;
    settings.alibi = s->alibi ? p->alibi : NULL;
    settings.rank = s->rank;
    settings.bias = s->dense;
    settings.relative = s->relative;
    settings.sinks = s->sinks;
    linnet_attention_plan *plan;
    if (linnet_attention_plan_open(context, &settings, &plan) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    linnet_attention_tensors given = {.size = sizeof given,
                                      .query = t->tensor[QUERY],
                                      .key = t->tensor[KEY],
                                      .value = t->tensor[VALUE],
                                      .output = t->output,
                                      .log_sum_exp = t->lse,
                                      .sinks = t->tensor[SINKS].data,
                                      .query_factors = t->tensor[QUERY_FACTORS].data,
                                      .key_factors = t->tensor[KEY_FACTORS].data,
                                      .bias = p->dense,
                                      .bias_head_stride = s->tokens[0] * s->keys[0],
                                      .bias_row_stride = s->keys[0],
                                      .relative = p->table};
    void *workspace = ln_allocate(context, linnet_attention_workspace(plan) + 1, 1, "workspace");
    if (linnet_attention_forward(plan, &given, workspace) != LINNET_OK) fail_msg("%s", linnet_last_error(context));
    ln_release(context, workspace);
    linnet_attention_plan_close(plan);
    linnet_context_close(context);
}

/* Element `at` of a packed tensor of this shape. */
static float element(const problem *p, const linnet_tensor *x, int which, int64_t at) {
    int64_t tokens, heads, size;
    part_shape(p, which, &tokens, &heads, &size);
    const int64_t token = at / size / heads, head = at / size % heads;
    return ((const float *)x->data)[token * x->token_stride + head * x->head_stride + at % size];
}

static double loss_of_forward(const problem *p) {
    const setting *s = p->s;
    tensors t = open_tensors(p);
    forward(p, &t);
    double sum = 0;
    for (int64_t r = 0; r < p->tokens * s->heads; r++) {
        const float *o =
            (const float *)t.output.data + r / s->heads * t.output.token_stride + r % s->heads * t.output.head_stride;
        for (int64_t c = 0; c < s->value_size; c++) sum += (double)o[c] * p->gradient[r * s->value_size + c];
    }
    close_tensors(&t);
    return sum;
}

/* ---- comparing ---- */

enum { ALL_PARTS = (1 << PARTS) - 1 };

/* Largest error of a gradient in units of the size of what was summed; guards stay. */
static double error_of(const problem *p, const tensors *t, int which) {
    int64_t tokens, heads, size;
    part_shape(p, which, &tokens, &heads, &size);
    if (p->count[which] == 0) return 0;
    const linnet_tensor *x = &t->gradient[which];
    const float *data = x->data;
    double worst = 0;
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t at = 0; at < x->token_stride; at++) {
            const int64_t h = at / x->head_stride, c = at % x->head_stride;
            const float got = data[i * x->token_stride + at];
            if (h >= heads || c >= size) {
                assert_true(ln_float_bits(got) == 0xffffffff);
                continue;
            }
            const int64_t from = (i * heads + h) * size + c;
            const double error = fabs((double)got - p->want[which][from]) / (p->size[which][from] + 1e-30);
            if (!(error <= worst)) worst = error;
        }
    return worst;
}

static const char *const part_names[] = {"query", "key", "value", "query factors", "key factors", "sinks"};
static const char *const levels[] = {"portable", "avx2", "avx512", "amx"};
enum { LEVELS = 4 };

/* Levels that this processor does not reach are the one before again. */
static bool level_is_new(int level) {
    unsigned mask, before = 0;
    ln_cpu_mask(levels[level], &mask);
    if (level > 0) ln_cpu_mask(levels[level - 1], &before);
    return level == 0 || (mask & ln_cpu_detect()) != (before & ln_cpu_detect());
}

static void check(const setting *s, double tolerance) {
    problem p = open_problem(s);
    solve_exactly(&p, true);
    for (int level = 0; level < LEVELS; level++) {
        if (!level_is_new(level)) continue;
        tensors t = open_tensors(&p);
        solve(&p, &t, 2, levels[level], ALL_PARTS);
        for (int i = 0; i < PARTS; i++) {
            const double error = error_of(&p, &t, i);
            if (getenv("SHOW")) printf("%s %s %s %.2e\n", s->name, levels[level], part_names[i], error);
            if (!(error <= tolerance)) fail_msg("%s, %s, %s: error %g", s->name, levels[level], part_names[i], error);
        }
        close_tensors(&t);
    }
    close_problem(&p);
}

/* ---- settings ---- */

static const int64_t three_documents[] = {0, 30, 31, 80}, batch_documents[] = {0, 40, 41, 100, 260, 300};
static const int64_t block_offsets[] = {0, 1, 3, 3, 6, 8, 9, 11};
static const int32_t block_tiles[] = {0, 0, 1, 0, 2, 3, 1, 4, 3, 0, 4};
static const int64_t head_block_offsets[] = {0, 1, 3, 4, 4, 5, 7};
static const int32_t head_block_tiles[] = {0, 0, 1, 2, 0, 1, 2};

#define ONE(n, m) .sequences = 1, .tokens = {n}, .keys = {m}
#define LOOSE .type = LINNET_BF16, .loose = true
#define TWO_HEADS .heads = 2, .shared = 2, .key_size = 16, .value_size = 16

/* Small: also checked by differences. */
static const setting small[] = {
    {.name = "full", TWO_HEADS, ONE(7, 9)},
    {.name = "causal", TWO_HEADS, ONE(9, 9), .causal = true},
    {.name = "rows that see nothing", TWO_HEADS, ONE(9, 5), .causal = true},
    {.name = "cap", TWO_HEADS, ONE(7, 9), .cap = 1.5f},
    {.name = "sinks", TWO_HEADS, ONE(7, 9), .causal = true, .sinks = true},
    {.name = "groups", .heads = 6, .shared = 2, .key_size = 8, .value_size = 24, ONE(5, 6), .causal = true},
    {.name = "factors", TWO_HEADS, ONE(6, 7), .rank = 3},
    {.name = "factors, cap, groups and sinks",
     .heads = 4,
     .shared = 2,
     .key_size = 8,
     .value_size = 16,
     ONE(6, 7),
     .rank = 2,
     .cap = 1,
     .causal = true,
     .sinks = true},
    {.name = "all biases", TWO_HEADS, ONE(6, 7), .rank = 1, .alibi = true, .dense = true, .relative = 4, .cap = 2},
    {.name = "batch", TWO_HEADS, .sequences = 5, .tokens = {3, 0, 1, 4, 2}, .keys = {3, 2, 1, 0, 4}, .causal = true},
};

static const setting large[] = {
    {.name = "full", TWO_HEADS, ONE(150, 170)},
    {.name = "one token", TWO_HEADS, ONE(1, 1), .causal = true},
    {.name = "no keys", TWO_HEADS, ONE(3, 0)},
    {.name = "no queries", TWO_HEADS, ONE(0, 3)},
    {.name = "causal", .heads = 2, .shared = 1, .key_size = 64, .value_size = 64, ONE(300, 300), .causal = true},
    {.name = "causal, several passes",
     .heads = 1,
     .shared = 1,
     .key_size = 16,
     .value_size = 8,
     ONE(900, 1200),
     .causal = true,
     .rank = 3},
    {.name = "more queries than keys", TWO_HEADS, ONE(280, 140), .causal = true},
    {.name = "strided, groups, sizes",
     .heads = 6,
     .shared = 3,
     .key_size = 40,
     .value_size = 72,
     ONE(140, 133),
     .strided = true},
    {.name = "wide", .heads = 2, .shared = 1, .key_size = 576, .value_size = 512, ONE(40, 70), .strided = true},
    {.name = "wide values", .heads = 1, .shared = 1, .key_size = 8, .value_size = 264, ONE(33, 65), .causal = true},
    {.name = "bf16",
     .heads = 4,
     .shared = 2,
     .key_size = 32,
     .value_size = 48,
     ONE(150, 150),
     .type = LINNET_BF16,
     .causal = true,
     .strided = true},
    {.name = "bf16 products",
     LOOSE,
     .heads = 4,
     .shared = 2,
     .key_size = 64,
     .value_size = 64,
     ONE(300, 300),
     .causal = true},
    {.name = "bf16 products, all options",
     LOOSE,
     .heads = 4,
     .shared = 2,
     .key_size = 24,
     .value_size = 40,
     .sequences = 5,
     .tokens = {130, 0, 1, 33, 20},
     .keys = {135, 3, 1, 33, 7},
     .causal = true,
     .window = 100,
     .cap = 2,
     .sinks = true,
     .alibi = true,
     .rank = 3,
     .dense = true,
     .relative = 5,
     .strided = true},
    {.name = "bf16 products, several passes", LOOSE, TWO_HEADS, ONE(700, 1100), .causal = true},
    {.name = "bf16 products, wide", LOOSE, .heads = 2, .shared = 1, .key_size = 576, .value_size = 264, ONE(40, 70)},
    {.name = "bf16 products, neighbourhood",
     LOOSE,
     TWO_HEADS,
     ONE(170, 170),
     .grid = {.axes = 1, .extent = {170}, .window = {9}}},
    {.name = "window", TWO_HEADS, ONE(300, 300), .causal = true, .window = 50},
    {.name = "window of one", TWO_HEADS, ONE(130, 140), .causal = true, .window = 1},
    {.name = "window on both sides", TWO_HEADS, ONE(200, 230), .window = 33},
    {.name = "window and prefix", TWO_HEADS, ONE(300, 300), .causal = true, .window = 40, .prefix = 5},
    {.name = "prefix", TWO_HEADS, ONE(140, 140), .causal = true, .prefix = 70},
    {.name = "documents", TWO_HEADS, ONE(80, 80), .documents = 3, .document_offsets = three_documents},
    {.name = "causal documents of a batch",
     TWO_HEADS,
     .sequences = 3,
     .tokens = {100, 160, 40},
     .keys = {100, 160, 40},
     .causal = true,
     .documents = 5,
     .document_offsets = batch_documents},
    {.name = "blocks",
     TWO_HEADS,
     ONE(220, 160),
     .blocks = {.query_tile = 32, .key_tile = 32, .offsets = block_offsets, .tiles = block_tiles}},
    {.name = "causal blocks of each head",
     TWO_HEADS,
     ONE(150, 150),
     .causal = true,
     .blocks = {.query_tile = 50,
                .key_tile = 64,
                .per_head = true,
                .offsets = head_block_offsets,
                .tiles = head_block_tiles}},
    {.name = "neighbourhood", TWO_HEADS, ONE(170, 170), .grid = {.axes = 1, .extent = {170}, .window = {9}}},
    {.name = "neighbourhood, two axes, dilated",
     TWO_HEADS,
     ONE(216, 216),
     .alibi = true,
     .rank = 2,
     .grid = {.axes = 2, .extent = {12, 18}, .window = {5, 4}, .dilation = {2, 3}, .causal = {true, false}}},
    {.name = "neighbourhood, three axes",
     .heads = 2,
     .shared = 1,
     .key_size = 8,
     .value_size = 8,
     ONE(336, 336),
     .dense = true,
     .grid = {.axes = 3, .extent = {6, 7, 8}, .window = {3, 3, 5}}},
    {.name = "cap", TWO_HEADS, ONE(150, 150), .causal = true, .cap = 2, .strided = true},
    {.name = "sinks",
     .heads = 6,
     .shared = 2,
     .key_size = 16,
     .value_size = 16,
     ONE(150, 150),
     .causal = true,
     .sinks = true},
    {.name = "alibi", TWO_HEADS, ONE(150, 150), .causal = true, .alibi = true},
    {.name = "factors, wide",
     .heads = 4,
     .shared = 2,
     .key_size = 16,
     .value_size = 16,
     ONE(140, 140),
     .causal = true,
     .rank = 40},
    {.name = "dense bias", TWO_HEADS, ONE(135, 150), .dense = true},
    {.name = "relative bias", TWO_HEADS, ONE(135, 150), .relative = 20},
    {.name = "all biases, cap, sinks, groups, batch",
     .heads = 4,
     .shared = 2,
     .key_size = 24,
     .value_size = 16,
     .sequences = 5,
     .tokens = {130, 0, 1, 33, 20},
     .keys = {135, 3, 1, 33, 7},
     .causal = true,
     .window = 100,
     .cap = 2,
     .sinks = true,
     .alibi = true,
     .rank = 3,
     .dense = true,
     .relative = 5,
     .strided = true},
    {.name = "lengths of 0 and 1",
     TWO_HEADS,
     .sequences = 5,
     .tokens = {0, 1, 4, 0, 1},
     .keys = {0, 1, 0, 6, 40},
     .causal = true},
};

enum { SMALL = sizeof small / sizeof *small, LARGE = sizeof large / sizeof *large };

/* ---- tests ---- */

static double loss(const problem *p) {
    solve_exactly(p, false);
    return dot(p->gradient, p->output, p->tokens * p->s->heads * p->s->value_size);
}

/* Every input of every setting by central differences: (f(x + h) - f(x - h)) / 2h = f' + h^2 f''' / 6 + rounding
 * 1e-16 f / h: with h = 1e-4 both below 1e-7. */
static void test_oracle(void **state) {
    (void)state;
    for (int i = 0; i < SMALL; i++) {
        problem p = open_problem(&small[i]);
        solve_exactly(&p, true);
        for (int which = 0; which < PARTS; which++) {
            for (int64_t at = 0; at < p.count[which]; at++) {
                const double h = 1e-4, x = p.input[which][at];
                p.input[which][at] = x + h;
                const double above = loss(&p);
                p.input[which][at] = x - h;
                const double below = loss(&p), difference = (above - below) / (2 * h);
                p.input[which][at] = x;
                if (fabs(difference - p.want[which][at]) > 1e-6)
                    fail_msg("%s, %s %d: difference %g, gradient %g", small[i].name, part_names[which], (int)at,
                             difference, p.want[which][at]);
            }
        }
        close_problem(&p);
    }
}

/* Relative errors: 2^-24 a rounding; scores of size up to about 6 in the exponent, each with several roundings of its
 * terms, and sums of up to 1200 terms in float32. */
#define FORWARD_TOLERANCE 2e-3
/* Weights, their gradients and the gradient of the output are rounded to bf16: each term of a sum twice by 2^-8. */
static const double tolerance = 5e-6, loose_tolerance = 2.01 * 0x1p-8;

static void test_small(void **state) {
    (void)state;
    for (int i = 0; i < SMALL; i++) check(&small[i], tolerance);
}
static void test_large(void **state) {
    (void)state;
    for (int i = 0; i < LARGE; i++) check(&large[i], large[i].loose ? loose_tolerance : tolerance);
}

/* Every residue of tails, of queries and keys, of sizes and ranks. */
static void test_tails(void **state) {
    (void)state;
    for (int64_t n = 1; n <= 34; n++) {
        const setting s = {.name = "tails",
                           .heads = 2,
                           .shared = 1,
                           .key_size = 8 * (n % 9 + 1),
                           .value_size = 8 * (n % 5 + 1),
                           ONE(96 + n, 162 - n),
                           .causal = n % 2 == 1,
                           .rank = n % 11,
                           .strided = n % 3 == 1};
        check(&s, tolerance);
        setting loose = s;
        loose.type = LINNET_BF16;
        loose.loose = true;
        check(&loose, loose_tolerance);
    }
}

static double *direction_of(const problem *p, int which) {
    return random_doubles(p->count[which], 50 + (uint64_t)which, 1, LINNET_F32);
}
static void move(const problem *p, double step) {
    for (int which = 0; which < PARTS; which++) {
        double *direction = direction_of(p, which);
        for (int64_t at = 0; at < p->count[which]; at++) p->input[which][at] += step * direction[at];
        free(direction);
    }
}

/* The loss of the library's own forward pass along a direction, each input moved by h times a random one:
 * (L(h) - L(-h)) / 2h = gradient . direction + h^2 L''' / 6 + 2^-24 L / h. */
static void test_forward(void **state) {
    (void)state;
    const double h = 1e-2;
    for (int i = 0; i < LARGE; i++) {
        const setting *s = &large[i];
        /* The public bias has one stride for all sequences. */
        if (s->type != LINNET_F32 || (s->dense && s->sequences > 1)) continue;
        problem p = open_problem(s);
        double want = 0, size = 0;
        tensors t = open_tensors(&p);
        forward(&p, &t);
        solve(&p, &t, 2, NULL, ALL_PARTS);
        for (int which = 0; which < PARTS; which++) {
            double *direction = direction_of(&p, which);
            for (int64_t at = 0; at < p.count[which]; at++) {
                const double term = direction[at] * (double)element(&p, &t.gradient[which], which, at);
                want += term;
                size += term * term;
            }
            free(direction);
        }
        move(&p, h);
        const double above = loss_of_forward(&p);
        move(&p, -2 * h);
        const double below = loss_of_forward(&p), difference = (above - below) / (2 * h);
        const double error = fabs(difference - want) / (sqrt(size) + 1e-30);
        if (getenv("SHOW")) printf("%s forward %.2e\n", s->name, error);
        if (!(error <= FORWARD_TOLERANCE))
            fail_msg("%s: difference of the forward pass %g, gradient %g", s->name, difference, want);
        close_tensors(&t);
        close_problem(&p);
    }
}

/* Scores of 1e4: the scores' own rounding, and that of log_sum_exp, is 2^-24 of them, times log2(e) and ln 2: weights
 * are right to a few thousandths. */
static void test_huge(void **state) {
    (void)state;
    const setting s = {.name = "huge", TWO_HEADS, ONE(140, 150), .causal = true, .logits = 1e4f};
    const setting capped = {.name = "huge, cap", TWO_HEADS, ONE(140, 150), .causal = true, .logits = 1e4f, .cap = 30};
    check(&s, 2e-2);
    check(&capped, 2e-5);
}

static void test_threads(void **state) {
    (void)state;
    for (int i = 0; i < LARGE; i++) {
        problem p = open_problem(&large[i]);
        solve_exactly(&p, false);
        tensors one = open_tensors(&p);
        solve(&p, &one, 1, NULL, ALL_PARTS);
        for (int threads = 2; threads <= 3; threads++) {
            tensors t = open_tensors(&p);
            solve(&p, &t, threads, NULL, ALL_PARTS);
            for (int which = 0; which < PARTS; which++) {
                int64_t tokens, heads, size;
                part_shape(&p, which, &tokens, &heads, &size);
                const size_t bytes = (size_t)(tokens * one.gradient[which].token_stride) * sizeof(float);
                assert_memory_equal(one.gradient[which].data, t.gradient[which].data, bytes);
            }
            close_tensors(&t);
        }
        close_tensors(&one);
        close_problem(&p);
    }
}

/* Each gradient asked for alone has the bits that it has among all. */
static void test_parts(void **state) {
    (void)state;
    const setting *s = &large[5]; /* several passes */
    problem p = open_problem(s);
    solve_exactly(&p, false);
    tensors all = open_tensors(&p);
    solve(&p, &all, 2, NULL, ALL_PARTS);
    for (int which = 0; which < PARTS; which++) {
        tensors t = open_tensors(&p);
        solve(&p, &t, 2, NULL, 1u << which);
        for (int i = 0; i < PARTS; i++) {
            const float *x = t.gradient[i].data, *y = all.gradient[i].data;
            for (int64_t at = 0; at < p.count[i]; at++)
                assert_true(ln_float_bits(x[at]) == (i == which ? ln_float_bits(y[at]) : 0xffffffff));
        }
        close_tensors(&t);
    }
    close_tensors(&all);
    close_problem(&p);
}

/* What is not finite in one head changes no bit of the others. */
static void test_not_finite(void **state) {
    (void)state;
    const setting s = {
        .name = "NaN", .heads = 4, .shared = 2, .key_size = 16, .value_size = 16, ONE(140, 150), .causal = true};
    problem p = open_problem(&s);
    solve_exactly(&p, false);
    tensors clean = open_tensors(&p), t = open_tensors(&p);
    solve(&p, &clean, 2, NULL, ALL_PARTS);
    const float bad[] = {NAN, INFINITY, NAN};
    for (int i = QUERY; i <= VALUE; i++) ((float *)t.tensor[i].data)[7 * t.tensor[i].token_stride + 3] = bad[i];
    ((float *)t.output_gradient.data)[9 * t.output_gradient.token_stride] = NAN;
    solve(&p, &t, 2, NULL, ALL_PARTS);
    for (int i = QUERY; i <= VALUE; i++) {
        int64_t tokens, heads, size;
        part_shape(&p, i, &tokens, &heads, &size);
        const float *x = t.gradient[i].data, *y = clean.gradient[i].data;
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t at = heads / 2 * size; at < heads * size; at++)
                assert_true(ln_float_bits(x[token * heads * size + at]) == ln_float_bits(y[token * heads * size + at]));
    }
    close_tensors(&t);
    close_tensors(&clean);
    close_problem(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle),  cmocka_unit_test(test_small), cmocka_unit_test(test_large),
        cmocka_unit_test(test_tails),   cmocka_unit_test(test_huge),  cmocka_unit_test(test_forward),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_parts), cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
