/* Owns: y[i] = sum_j e^-|query[i] - key[j]| value[j] / the same without value, |x| the sum of absolute coordinates,
 * exact and in T (log T)^(d - 1) after sorting, d = key_size (Langrene and Warin 2020, in the form of divide and
 * conquer).
 *
 * One dimension: points in order, keys and queries together; a sum that decays by e^-distance from point to point, once
 * upward and once downward. More: points in the order of the first dimension are halved at m; each half is done alone;
 * a query in one half and a key in the other are e^-|query - m| e^-|m - key| apart in this dimension, both factors at
 * most 1, which leaves a sum over the other dimensions. A half comes back in the order of the next dimension, so that
 * both merge.
 *
 * A sum is kept as a number and the logarithm of a factor, so that it is right however far the keys are.
 *
 * Backward needs the same sums with queries and keys exchanged, and with the sign of query - key in one dimension,
 * which is that of the direction or of the halves. The divisor is the sum of one more column, of ones.
 *
 * Invariant: every pair of a query and a key is added exactly once: in the smallest set that holds both. */
#include "mixer/laplace.h"

#include <math.h>
#include <string.h>

enum { DIMENSIONS = 4 };

/* A point among 2T: keys (or whatever is summed) are 0 .. T - 1, queries (what sums are for) T .. 2T - 1. */
typedef struct entry {
    int64_t point;
    float exponent; /* of what it counts, or of what counts for it, in the dimensions that are done */
} entry;

typedef struct room {
    float *place[2];                  /* [T, d]: where keys and queries are, times scale */
    float *value, *error, *sums;      /* [T, width] */
    float *exponent, *error_exponent; /* [T]: sums and errors are times e to them */
    double *running;                  /* [width] */
    entry *list[DIMENSIONS], *other;
} room;

typedef struct laplace {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    int dimensions;
    int64_t most, width, room_floats;
} laplace;

/* A sum to be made: from points of one side to those of the other. */
typedef struct job {
    const room *r;
    const float *from, *to_place, *from_place; /* [T, width], [T, d] */
    const float *from_exponent;                /* [T] or NULL: zeros */
    float *to, *to_exponent;
    int dimensions, sign; /* sign: the dimension whose sign counts; -1: none */
    int64_t tokens, width;
} job;

static float place_of(const job *j, int64_t point, int dimension) {
    return point < j->tokens ? j->from_place[point * j->dimensions + dimension]
                             : j->to_place[(point - j->tokens) * j->dimensions + dimension];
}

/* ---- sorting ---- */

/* Merges two runs in the order of a dimension; the first goes first where they are equal. */
static void merge(const job *j, entry *to, const entry *a, int64_t na, const entry *b, int64_t nb, int dimension) {
    while (na > 0 && nb > 0)
        if (place_of(j, a->point, dimension) <= place_of(j, b->point, dimension)) {
            *to++ = *a++;
            na--;
        } else {
            *to++ = *b++;
            nb--;
        }
    memcpy(to, a, (size_t)na * sizeof *to);
    memcpy(to + na, b, (size_t)nb * sizeof *to);
}

static void sort(const job *j, entry *list, int64_t n, int dimension) {
    if (n < 2) return;
    const int64_t half = n / 2;
    sort(j, list, half, dimension);
    sort(j, list + half, n - half, dimension);
    merge(j, j->r->other, list, half, list + half, n - half, dimension);
    memcpy(list, j->r->other, (size_t)n * sizeof *list);
}

/* ---- the last dimension: two scans ---- */

/* to = to e^exponent + sign e^other running, the larger exponent left out of both. */
static void add_sum(const job *j, int64_t to, float sign, double other) {
    float *sums = j->to + to * j->width, *exponent = &j->to_exponent[to];
    if (other == -INFINITY) return;
    if (other > (double)*exponent) {
        const float rest = (float)exp((double)*exponent - other);
        for (int64_t c = 0; c < j->width; c++) sums[c] = sums[c] * rest + sign * (float)j->r->running[c];
        *exponent = (float)other;
    } else {
        const double factor = (double)sign * exp(other - (double)*exponent);
        for (int64_t c = 0; c < j->width; c++) sums[c] += (float)(factor * j->r->running[c]);
    }
}

static void scan(const job *j, const entry *list, int64_t n, bool upward, float sign) {
    double *running = j->r->running, exponent = -INFINITY; /* the sum is running e^exponent */
    float last = 0;
    for (int64_t i = 0; i < n; i++) {
        const entry *e = &list[upward ? i : n - 1 - i];
        const float place = place_of(j, e->point, j->dimensions - 1);
        if (i > 0) exponent -= fabs((double)place - (double)last);
        last = place;
        if (e->point >= j->tokens) {
            add_sum(j, e->point - j->tokens, sign, exponent + (double)e->exponent);
            continue;
        }
        const float *from = j->from + e->point * j->width;
        const double own = (double)e->exponent, most = fmax(own, exponent);
        const double stays = exponent == -INFINITY ? 0 : exp(exponent - most), comes = exp(own - most);
        for (int64_t c = 0; c < j->width; c++)
            running[c] = (stays == 0 ? 0 : stays * running[c]) + comes * (double)from[c];
        exponent = most;
    }
}

/* ---- the others: halves ---- */

static void solve(const job *j, entry *list, int64_t n, int dimension, float sign);

/* Keys of one half with queries of the other, in the dimensions that are left. */
static void cross(const job *j, const entry *keys, int64_t n_keys, const entry *queries, int64_t n_queries,
                  float middle, int dimension, float sign) {
    entry *list = j->r->list[dimension + 1], *end = list;
    int64_t k = 0, q = 0;
    for (;;) { /* both are in the order of the next dimension: a merge of what is wanted of them */
        while (k < n_keys && keys[k].point >= j->tokens) k++;
        while (q < n_queries && queries[q].point < j->tokens) q++;
        if (k == n_keys && q == n_queries) break;
        const bool key = q == n_queries || (k < n_keys && place_of(j, keys[k].point, dimension + 1) <=
                                                              place_of(j, queries[q].point, dimension + 1));
        *end = key ? keys[k++] : queries[q++];
        end->exponent -= fabsf(place_of(j, end->point, dimension) - middle);
        end++;
    }
    solve(j, list, end - list, dimension + 1, sign);
}

/* list is in the order of `dimension`, and comes back in that of the next, where there is one. */
static void solve(const job *j, entry *list, int64_t n, int dimension, float sign) {
    if (dimension == j->dimensions - 1) {
        scan(j, list, n, true, sign);
        scan(j, list, n, false, dimension == j->sign ? -sign : sign);
        return;
    }
    if (n < 2) return;
    const int64_t half = n / 2;
    const float middle = place_of(j, list[half].point, dimension);
    solve(j, list, half, dimension, sign);
    solve(j, list + half, n - half, dimension, sign);
    cross(j, list, half, list + half, n - half, middle, dimension, sign);
    cross(j, list + half, n - half, list, half, middle, dimension, dimension == j->sign ? -sign : sign);
    merge(j, j->r->other, list, half, list + half, n - half, dimension + 1);
    memcpy(list, j->r->other, (size_t)n * sizeof *list);
}

/* to[i] = sum over the other side. turned: from queries to keys. */
static void sum_up(const laplace *c, const room *r, int64_t tokens, bool turned, int sign) {
    const job j = {.r = r,
                   .from = turned ? r->error : r->value,
                   .from_exponent = turned ? r->error_exponent : NULL,
                   .to_exponent = r->exponent,
                   .from_place = r->place[turned],
                   .to_place = r->place[!turned],
                   .to = r->sums,
                   .dimensions = c->dimensions,
                   .sign = sign,
                   .tokens = tokens,
                   .width = c->width};
    memset(r->sums, 0, (size_t)(tokens * c->width) * sizeof *r->sums);
    for (int64_t i = 0; i < tokens; i++) {
        r->exponent[i] = -INFINITY;
        r->list[0][i] = (entry){i, j.from_exponent ? j.from_exponent[i] : 0};
        r->list[0][tokens + i] = (entry){tokens + i, 0};
    }
    sort(&j, r->list[0], 2 * tokens, 0);
    solve(&j, r->list[0], 2 * tokens, 0, 1);
}

/* ---- where things lie ---- */

static void carve_room(const laplace *c, room *r, ln_carver *carver, bool backward) {
    const uint64_t tokens = (uint64_t)c->most, wide = tokens * (uint64_t)c->width;
    for (int side = 0; side < 2; side++)
        r->place[side] = ln_carve(carver, tokens * (uint64_t)c->dimensions, sizeof(float));
    r->value = ln_carve(carver, wide, sizeof(float));
    r->sums = ln_carve(carver, wide, sizeof(float));
    r->exponent = ln_carve(carver, tokens, sizeof(float));
    if (backward) {
        r->error = ln_carve(carver, wide, sizeof(float));
        r->error_exponent = ln_carve(carver, tokens, sizeof(float));
    }
    r->running = ln_carve(carver, (uint64_t)c->width, sizeof(double));
    for (int d = 0; d < c->dimensions; d++) r->list[d] = ln_carve(carver, 2 * tokens, sizeof(entry));
    r->other = ln_carve(carver, 2 * tokens, sizeof(entry));
}

static laplace open_call(const linnet_mixer_settings *s, bool backward, ln_carver *room_bytes) {
    laplace c = {.s = s, .dimensions = (int)s->key_size, .width = s->value_size + 1, .most = ln_mixer_longest(s)};
    room r;
    ln_carver carver = {0};
    carve_room(&c, &r, &carver, backward);
    *room_bytes = carver;
    c.room_floats = (int64_t)(carver.used / sizeof(float));
    return c;
}

uint64_t ln_laplace_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                              const linnet_mixer_settings *settings, linnet_mixer_form form) {
    ln_carver carver;
    (void)mixer;
    (void)kernels;
    open_call(settings, form == LINNET_MIXER_BACKWARD, &carver);
    return ln_carved(&carver, threads);
}

static room room_of(const laplace *c, int worker, bool backward) {
    room r = {0};
    ln_carver carver = {.base = (unsigned char *)((float *)c->call->workspace + worker * c->room_floats)};
    carve_room(c, &r, &carver, backward);
    return r;
}

static int64_t load(const laplace *c, const room *r, int64_t head, int64_t sequence) {
    int64_t first, count;
    ln_mixer_span(c->s, sequence, &first, &count);
    if (count == 0) return 0;
    for (int side = 0; side < 2; side++) {
        ln_mixer_load(c->call, 1 - side, head, sequence, 0, count, r->place[side]);
        for (int64_t i = 0; i < count * c->dimensions; i++) r->place[side][i] *= c->s->scale;
    }
    for (int64_t t = 0; t < count; t++) {
        ln_mixer_load(c->call, 2, head, sequence, t, 1, r->value + t * c->width);
        r->value[t * c->width + c->width - 1] = 1;
    }
    return count;
}

/* ---- forward ---- */

static void forward_task(void *argument, int64_t task, int worker) {
    const laplace *c = argument;
    const int64_t head = task % c->s->heads, sequence = task / c->s->heads, columns = c->width - 1;
    const room r = room_of(c, worker, false);
    const int64_t count = load(c, &r, head, sequence);
    sum_up(c, &r, count, false, -1);
    for (int64_t t = 0; t < count; t++) {
        const float *sums = r.sums + t * c->width;
        const float factor = c->s->normalise ? 1 / sums[columns] : expf(r.exponent[t]);
        float *y = ln_mixer_output(c->call, head, sequence, t);
        for (int64_t i = 0; i < columns; i++) y[i] = sums[i] * factor;
    }
}

void ln_laplace_forward(const ln_mixer_call *call) {
    ln_carver carver;
    laplace c = open_call(call->settings, false, &carver);
    c.call = call;
    ln_parallel(call->team, c.s->sequences * c.s->heads, forward_task, &c);
}

/* ---- backward ---- */

/* The gradients of all sums; r->sums are the sums. */
static void load_error(const laplace *c, const room *r, int64_t head, int64_t sequence, int64_t count) {
    const int64_t columns = c->width - 1;
    for (int64_t t = 0; t < count; t++) {
        const float *dy = ln_mixer_output_gradient(c->call, head, sequence, t), *sums = r->sums + t * c->width;
        const float divisor = c->s->normalise ? sums[columns] : 1;
        float *e = r->error + t * c->width;
        double along = 0;
        r->error_exponent[t] = c->s->normalise ? -r->exponent[t] : 0;
        for (int64_t i = 0; i < columns; i++) {
            e[i] = dy[i] / divisor;
            along += (double)e[i] * (double)sums[i];
        }
        e[columns] = c->s->normalise ? -(float)(along / (double)divisor) : 0;
    }
}

/* A place moves all weights of a row: d weight / d place = -sign(place - other's) weight. */
static void give_place(const laplace *c, const room *r, int64_t head, int64_t sequence, int64_t count, bool key,
                       int dimension) {
    if (!c->call->tensors->input_gradient[key ? 1 : 0].data) return;
    const float *own = key ? r->value : r->error;
    sum_up(c, r, count, key, dimension);
    for (int64_t t = 0; t < count; t++) {
        double sum = 0;
        for (int64_t i = 0; i < c->width; i++) sum += (double)own[t * c->width + i] * (double)r->sums[t * c->width + i];
        ln_mixer_gradient(c->call, key ? 1 : 0, head, sequence, t)[dimension] -=
            c->s->scale * (float)(sum * exp((double)r->exponent[t] + (key ? 0 : (double)r->error_exponent[t])));
    }
}

static void backward_head(const laplace *c, const room *r, int64_t head, int64_t sequence) {
    const int64_t count = load(c, r, head, sequence);
    if (count == 0) return;
    sum_up(c, r, count, false, -1);
    load_error(c, r, head, sequence, count);
    for (int dimension = 0; dimension < c->dimensions; dimension++)
        for (int key = 0; key < 2; key++) give_place(c, r, head, sequence, count, key, dimension);
    if (!c->call->tensors->input_gradient[2].data) return;
    sum_up(c, r, count, true, -1);
    for (int64_t t = 0; t < count; t++) {
        float *to = ln_mixer_gradient(c->call, 2, head, sequence, t);
        for (int64_t i = 0; i < c->width - 1; i++) to[i] += r->sums[t * c->width + i] * expf(r->exponent[t]);
    }
}

/* Heads that read one head of keys add to the same gradients. */
static void backward_task(void *argument, int64_t task, int worker) {
    const laplace *c = argument;
    const room r = room_of(c, worker, true);
    for (int64_t head = 0; head < c->s->heads; head++)
        if (ln_mixer_key_head(c->s, head) == task % c->s->key_heads) backward_head(c, &r, head, task / c->s->key_heads);
}

void ln_laplace_backward(const ln_mixer_call *call) {
    ln_carver carver;
    laplace c = open_call(call->settings, true, &carver);
    c.call = call;
    ln_parallel(call->team, c.s->sequences * c.s->key_heads, backward_task, &c);
}

/* ---- settings ---- */

const char *ln_laplace_refuse(const linnet_mixer_settings *s) {
    if (s->key_size > DIMENSIONS) return "key_size, the dimensions of a Laplacian kernel, must be at most 4";
    if (!(s->scale >= 0)) return "scale, of distances, must not be negative";
    return NULL;
}

double ln_laplace_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double tokens = (double)(s->tokens / s->sequences + 1),
                 levels = pow(log2(2 * tokens), (double)s->key_size - 1);
    return (form == LINNET_MIXER_BACKWARD ? 2 + 2 * (double)s->key_size : 1) * 6 * ((double)s->value_size + 1) * levels;
}
