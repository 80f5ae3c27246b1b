/* Owns: merging key-value heads by principal components (after Effectively Compress KV Heads for LLM, P062), and the
 * choice of the heads that go together.
 *
 * A part is what may be mixed freely: the values, and the values of a key that do not rotate. With M_a the weight of an
 * error of head a (of values: sum of O_ab' O_ab over its query heads b, so that the error of the layer's output counts;
 * of keys: sum of E[q_ab q_ab'], the error of the scores), M_a = F_a' F_a, and z the stack of F_a x_a: with E the first
 * eigenvectors of E[z z'], encode = E F and decode_a = F_a^-1 E_a' lose the least weighted energy that one head can.
 *
 * A rotary pair is a complex number k_a that turns by e^(i position f): only complex multiples commute with that, so
 * each frequency has a problem of its own, g x g and Hermitian, of which one eigenvector is kept: u = sum conj(e_a) w_a
 * k_a, k_a ~ e_a / w_a u with w_a^2 = sum over b of E |q_ab|^2.
 *
 * The same score for all keys is nothing to the softmax: the means of keys that do not rotate do not count, those of a
 * pair count as far as its frequency moves them (`steady`).
 *
 * Which heads: the energy lost by each two of them that become one, of keys and values in shares of all, added up over
 * the pairs of a group; greedy, then exchanges while they gain. */
#include "model/heads_basis.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/eigen.h"

static const double weight_floor = 1e-6; /* of the largest: heads that nobody reads have no exact inverse */

/* The heads of a part side by side: x [tokens, heads * size] in z's coordinates. */
typedef struct part {
    int64_t heads, size;
    double *moment;       /* [heads * size, heads * size], of z */
    double *forth, *back; /* [heads][size][size]: F_a, its inverse */
} part;

typedef struct fit {
    linnet_context *context;
    const ln_head_samples *samples;
    ln_head_bases *bases;
    int64_t group, pairs, rest; /* query heads of a key-value head; pairs that rotate; values that do not */
    part values, rests;
    double *pair_moment; /* [pairs][heads][heads][2], of z */
    double *pair_weight; /* [pairs][heads]: w_a */
    double *loss;        /* [heads, heads] */
    double total[2];     /* energy of keys and of values */
    double *kept;        /* [groups][2] */
    double *scratch;     /* [workers][scratch_values] */
    int64_t scratch_values;
    _Atomic bool failed;
} fit;

/* ---- moments ---- */

/* What a moment is made of: rows of `stride` floats, `size` of them from `first` on for each of `heads` heads. */
typedef struct rows {
    const float *x;
    int64_t tokens, heads, head, first, size; /* head: floats from head to head */
    bool centred;
    double *moment, *mean;
} rows;

static double value_at(const rows *r, int64_t token, int64_t i) {
    return (double)r->x[(token * r->heads + i / r->size) * r->head + r->first + i % r->size];
}

/* Row `i` of the upper triangle. */
static void moment_row(void *argument, int64_t i, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t n = r->heads * r->size;
    double *row = r->moment + i * n;
    memset(row, 0, (size_t)n * sizeof *row);
    for (int64_t t = 0; t < r->tokens; t++) {
        const double x = value_at(r, t, i);
        for (int64_t head = i / r->size; head < r->heads; head++) {
            const float *other = r->x + (t * r->heads + head) * r->head + r->first;
            for (int64_t j = 0; j < r->size; j++) row[head * r->size + j] += x * (double)other[j];
        }
    }
    for (int64_t j = 0; j < n; j++) row[j] /= (double)r->tokens;
}

static void moments(ln_team *team, const rows *r) {
    const int64_t n = r->heads * r->size;
    rows here = *r;
    ln_parallel(team, n, moment_row, &here);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) r->moment[i * n + j] = r->moment[j * n + i];
    if (!r->centred) return;
    memset(r->mean, 0, (size_t)n * sizeof *r->mean);
    for (int64_t t = 0; t < r->tokens; t++)
        for (int64_t i = 0; i < n; i++) r->mean[i] += value_at(r, t, i) / (double)r->tokens;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) r->moment[i * n + j] -= r->mean[i] * r->mean[j];
}

/* ---- parts that mix freely ---- */

/* weight [size, size] becomes F; back gets its inverse. */
static bool root(double *weight, double *back, int64_t size, double *scratch) {
    double *values = scratch, *work = scratch + size;
    if (!ln_eigen(weight, size, true, values, work)) return false;
    const double least = fmax(values[size - 1], 1e-30) * weight_floor;
    for (int64_t i = 0; i < size; i++) {
        const double length = sqrt(fmax(values[i], least));
        for (int64_t j = 0; j < size; j++) {
            back[j * size + i] = weight[i * size + j] / length;
            weight[i * size + j] *= length;
        }
    }
    return true;
}

/* block [size, size] of stride `stride` := left block right' ; row is scratch [size * size]. */
static void both_sides(double *block, int64_t stride, const double *left, const double *right, int64_t size,
                       double *product) {
    for (int64_t i = 0; i < size; i++)
        for (int64_t j = 0; j < size; j++) {
            double sum = 0;
            for (int64_t k = 0; k < size; k++) sum += block[i * stride + k] * right[j * size + k];
            product[i * size + j] = sum;
        }
    for (int64_t i = 0; i < size; i++) {
        memset(block + i * stride, 0, (size_t)size * sizeof *block);
        for (int64_t k = 0; k < size; k++)
            for (int64_t j = 0; j < size; j++) block[i * stride + j] += left[i * size + k] * product[k * size + j];
    }
}

typedef struct part_task {
    fit *f;
    part *p;
} part_task;

static void root_head(void *argument, int64_t head, int worker) {
    const part_task *task = argument;
    const int64_t square = task->p->size * task->p->size;
    if (!root(task->p->forth + head * square, task->p->back + head * square, task->p->size,
              task->f->scratch + worker * task->f->scratch_values))
        task->f->failed = true;
}

static void weigh_head(void *argument, int64_t a, int worker) {
    const part_task *task = argument;
    const part *p = task->p;
    const int64_t square = p->size * p->size, n = p->heads * p->size;
    for (int64_t b = 0; b < p->heads; b++)
        both_sides(p->moment + a * p->size * n + b * p->size, n, p->forth + a * square, p->forth + b * square, p->size,
                   task->f->scratch + worker * task->f->scratch_values);
}

/* forth holds the weights M_a, moment that of x. */
static void weigh(fit *f, part *p) {
    part_task task = {f, p};
    ln_parallel(f->context->team, p->heads, root_head, &task);
    if (!f->failed) ln_parallel(f->context->team, p->heads, weigh_head, &task);
}

static double trace(const part *p) {
    const int64_t n = p->heads * p->size;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += p->moment[i * n + i];
    return sum;
}

/* The moment of some heads, [count * size, count * size]. */
static void pick(const part *p, const int64_t *heads, int64_t count, double *picked) {
    const int64_t n = p->heads * p->size, side = count * p->size;
    for (int64_t a = 0; a < count; a++)
        for (int64_t b = 0; b < count; b++)
            for (int64_t i = 0; i < p->size; i++)
                memcpy(picked + (a * p->size + i) * side + b * p->size,
                       p->moment + (heads[a] * p->size + i) * n + heads[b] * p->size, (size_t)p->size * sizeof *picked);
}

/* Energy that two heads lose as one. */
static double part_loss(fit *f, const part *p, const int64_t heads[2], double *scratch) {
    const int64_t side = 2 * p->size;
    if (!side) return 0;
    double *values = scratch + side * side, lost = 0;
    pick(p, heads, 2, scratch);
    if (!ln_eigen(scratch, side, false, values, values + side)) f->failed = true;
    for (int64_t i = 0; i < p->size && !f->failed; i++) lost += fmax(values[i], 0);
    return lost;
}

/* Encodes and decodes at `first` of heads of `whole` values. */
static double part_bases(fit *f, const part *p, const int64_t *heads, int64_t whole, int64_t first, double *encode,
                         double *decode, double *scratch) {
    const int64_t members = f->bases->members, size = p->size, side = members * size, square = size * size;
    if (!side) return 0;
    double *values = scratch + side * side, kept = 0;
    pick(p, heads, members, scratch);
    if (!ln_eigen(scratch, side, true, values, values + side)) f->failed = true;
    if (f->failed) return 0;
    for (int64_t i = 0; i < size; i++) {
        const double *vector = scratch + (side - 1 - i) * side; /* the largest first */
        kept += fmax(values[side - 1 - i], 0);
        for (int64_t a = 0; a < members; a++) {
            const double *forth = p->forth + heads[a] * square, *back = p->back + heads[a] * square;
            for (int64_t j = 0; j < size; j++) {
                double in = 0, out = 0;
                for (int64_t k = 0; k < size; k++) {
                    in += vector[a * size + k] * forth[k * size + j];
                    out += back[j * size + k] * vector[a * size + k];
                }
                encode[(first + i) * members * whole + a * whole + first + j] = in;
                decode[a * whole * whole + (first + j) * whole + first + i] = out;
            }
        }
    }
    return kept;
}

/* ---- rotary pairs ---- */

static void pair_moments(void *argument, int64_t pair, int worker) {
    (void)worker;
    fit *f = argument;
    const ln_head_samples *s = f->samples;
    const int64_t heads = s->key_value_heads, size = s->key_size;
    double *moment = f->pair_moment + pair * heads * heads * 2, *weight = f->pair_weight + pair * heads;
    double *mean = f->scratch + worker * f->scratch_values; /* [heads][2] */
    int64_t x, y;
    ln_head_pair(s, pair, &x, &y);
    memset(moment, 0, (size_t)(heads * heads * 2) * sizeof *moment);
    memset(weight, 0, (size_t)heads * sizeof *weight);
    memset(mean, 0, (size_t)(2 * heads) * sizeof *mean);
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *key = s->key + t * heads * size, *query = s->query + t * s->heads * size;
        for (int64_t a = 0; a < heads; a++) {
            const double ax = (double)key[a * size + x], ay = (double)key[a * size + y];
            mean[2 * a] += ax;
            mean[2 * a + 1] += ay;
            for (int64_t b = 0; b < heads; b++) { /* k_a conj(k_b) */
                const double bx = (double)key[b * size + x], by = (double)key[b * size + y];
                moment[(a * heads + b) * 2] += ax * bx + ay * by;
                moment[(a * heads + b) * 2 + 1] += ay * bx - ax * by;
            }
        }
        for (int64_t q = 0; q < s->heads; q++) {
            const double qx = (double)query[q * size + x], qy = (double)query[q * size + y];
            weight[q / f->group] += qx * qx + qy * qy;
        }
    }
    const double tokens = (double)s->tokens, steady = s->steady[pair];
    double most = 1e-30;
    for (int64_t a = 0; a < heads; a++) most = fmax(most, weight[a]);
    for (int64_t a = 0; a < heads; a++) weight[a] = sqrt(fmax(weight[a], most * weight_floor) / tokens);
    for (int64_t a = 0; a < heads; a++)
        for (int64_t b = 0; b < heads; b++) {
            const double ax = mean[2 * a] / tokens, ay = mean[2 * a + 1] / tokens, bx = mean[2 * b] / tokens,
                         by = mean[2 * b + 1] / tokens, w = weight[a] * weight[b];
            double *at = moment + (a * heads + b) * 2;
            at[0] = w * (at[0] / tokens - steady * (ax * bx + ay * by));
            at[1] = w * (at[1] / tokens - steady * (ay * bx - ax * by));
        }
}

/* The smaller eigenvalue of the moment of two heads. */
static double pair_loss(const fit *f, int64_t pair, int64_t a, int64_t b) {
    const int64_t heads = f->samples->key_value_heads;
    const double *moment = f->pair_moment + pair * heads * heads * 2;
    const double aa = moment[(a * heads + a) * 2], bb = moment[(b * heads + b) * 2];
    const double *ab = moment + (a * heads + b) * 2;
    return fmax(0, (aa + bb) / 2 - hypot((aa - bb) / 2, hypot(ab[0], ab[1])));
}

static double pair_bases(fit *f, int64_t pair, const int64_t *heads, double *encode, double *decode, double *scratch) {
    const ln_head_samples *s = f->samples;
    const int64_t members = f->bases->members, side = 2 * members, size = s->key_size, all = s->key_value_heads;
    const double *moment = f->pair_moment + pair * all * all * 2, *weight = f->pair_weight + pair * all;
    double *values = scratch + side * side;
    for (int64_t a = 0; a < members; a++)
        for (int64_t b = 0; b < members; b++) {
            const double *at = moment + (heads[a] * all + heads[b]) * 2;
            scratch[a * side + b] = scratch[(members + a) * side + members + b] = at[0];
            scratch[(members + a) * side + b] = at[1];
            scratch[a * side + members + b] = -at[1];
        }
    if (!ln_eigen(scratch, side, true, values, values + side)) f->failed = true;
    if (f->failed) return 0;
    const double *vector = scratch + (side - 1) * side;
    int64_t x, y;
    ln_head_pair(s, pair, &x, &y);
    for (int64_t a = 0; a < members; a++) {
        const double re = vector[a], im = vector[members + a], w = weight[heads[a]];
        double *ex = encode + x * members * size + a * size, *ey = encode + y * members * size + a * size;
        ex[x] = ey[y] = re * w; /* conj(e) w */
        ex[y] = im * w;
        ey[x] = -im * w;
        double *d = decode + a * size * size;
        d[x * size + x] = d[y * size + y] = re / w;
        d[x * size + y] = -im / w;
        d[y * size + x] = im / w;
    }
    return fmax(values[side - 1], 0);
}

/* ---- which heads go together ---- */

static void lose_pair(void *argument, int64_t task, int worker) {
    fit *f = argument;
    const int64_t heads = f->samples->key_value_heads, both[2] = {task / heads, task % heads};
    if (both[0] >= both[1] || f->failed) return;
    double *scratch = f->scratch + worker * f->scratch_values;
    double keys = part_loss(f, &f->rests, both, scratch);
    for (int64_t pair = 0; pair < f->pairs; pair++) keys += pair_loss(f, pair, both[0], both[1]);
    const double values = part_loss(f, &f->values, both, scratch);
    const double loss = keys / fmax(f->total[0], 1e-300) + values / fmax(f->total[1], 1e-300);
    f->loss[both[0] * heads + both[1]] = f->loss[both[1] * heads + both[0]] = loss;
}

/* What head `a` loses with the members of a group but `without`. */
static double loss_in(const fit *f, int64_t a, const int64_t *group, int64_t count, int64_t without) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        if (group[i] != a && group[i] != without) sum += f->loss[a * f->samples->key_value_heads + group[i]];
    return sum;
}

/* Orders the heads from `from` on: the best two, then what fits them best. */
static void choose_group(fit *f, int64_t from) {
    const int64_t heads = f->samples->key_value_heads, members = f->bases->members;
    int64_t *order = f->bases->order, best[2] = {from, from + 1};
    for (int64_t i = from; i < heads && members > 1; i++)
        for (int64_t j = i + 1; j < heads; j++)
            if (f->loss[order[i] * heads + order[j]] < f->loss[order[best[0]] * heads + order[best[1]]]) {
                best[0] = i;
                best[1] = j;
            }
    for (int64_t count = 0; count < members; count++) {
        int64_t next = count < 2 ? best[count] : from + count;
        for (int64_t i = from + count; i < heads && count >= 2; i++)
            if (loss_in(f, order[i], order + from, count, -1) < loss_in(f, order[next], order + from, count, -1))
                next = i;
        const int64_t head = order[next];
        memmove(order + from + count + 1, order + from + count, (size_t)(next - from - count) * sizeof *order);
        order[from + count] = head;
    }
}

static bool exchange(fit *f, int64_t i, int64_t j) {
    const int64_t members = f->bases->members;
    int64_t *order = f->bases->order;
    const int64_t *mine = order + i / members * members, *theirs = order + j / members * members;
    if (mine == theirs) return false;
    const double now = loss_in(f, order[i], mine, members, -1) + loss_in(f, order[j], theirs, members, -1);
    const double then = loss_in(f, order[i], theirs, members, order[j]) + loss_in(f, order[j], mine, members, order[i]);
    if (!(then < now * (1 - 1e-9) - 1e-15)) return false;
    const int64_t head = order[i];
    order[i] = order[j];
    order[j] = head;
    return true;
}

static void choose_groups(fit *f) {
    const int64_t heads = f->samples->key_value_heads, members = f->bases->members;
    for (int64_t i = 0; i < heads; i++) f->bases->order[i] = i;
    if (members == 1 || members == heads) return;
    ln_parallel(f->context->team, heads * heads, lose_pair, f);
    for (int64_t from = 0; from < heads && !f->failed; from += members) choose_group(f, from);
    bool gained = !f->failed;
    for (int pass = 0; pass < 20 && gained; pass++) {
        gained = false;
        for (int64_t i = 0; i < heads; i++)
            for (int64_t j = i + 1; j < heads; j++) gained |= exchange(f, i, j);
    }
}

/* ---- the bases ---- */

static void fit_group(void *argument, int64_t group, int worker) {
    fit *f = argument;
    ln_head_bases *bases = f->bases;
    const ln_head_samples *s = f->samples;
    const int64_t members = bases->members, first = group * members, keys = s->key_size, values = s->value_size;
    const int64_t *heads = bases->order + first;
    double *scratch = f->scratch + worker * f->scratch_values, *kept = f->kept + 2 * group;
    double *encode = bases->key_encode + first * keys * keys, *decode = bases->key_decode + first * keys * keys;
    kept[0] = part_bases(f, &f->rests, heads, keys, s->rotated, encode, decode, scratch);
    for (int64_t pair = 0; pair < f->pairs && !f->failed; pair++)
        kept[0] += pair_bases(f, pair, heads, encode, decode, scratch);
    kept[1] = part_bases(f, &f->values, heads, values, 0, bases->value_encode + first * values * values,
                         bases->value_decode + first * values * values, scratch);
}

/* M_a of values: sum of O_ab' O_ab. */
static void value_weights(void *argument, int64_t head, int worker) {
    (void)worker;
    const fit *f = argument;
    const ln_head_samples *s = f->samples;
    const int64_t size = s->value_size, mixed = s->heads * size;
    double *weight = f->values.forth + head * size * size;
    memset(weight, 0, (size_t)(size * size) * sizeof *weight);
    for (int64_t row = 0; row < s->width; row++)
        for (int64_t b = head * f->group; b < (head + 1) * f->group; b++) {
            const float *o = s->output + row * mixed + b * size;
            for (int64_t i = 0; i < size; i++)
                for (int64_t j = 0; j < size; j++) weight[i * size + j] += (double)o[i] * (double)o[j];
        }
}

/* M_a of the values of a key that do not rotate: sum of E[q_ab q_ab']. */
static void rest_weights(void *argument, int64_t head, int worker) {
    (void)worker;
    const fit *f = argument;
    const ln_head_samples *s = f->samples;
    const int64_t size = f->rest;
    double *weight = f->rests.forth + head * size * size;
    memset(weight, 0, (size_t)(size * size) * sizeof *weight);
    for (int64_t t = 0; t < s->tokens; t++)
        for (int64_t b = head * f->group; b < (head + 1) * f->group; b++) {
            const float *q = s->query + (t * s->heads + b) * s->key_size + s->rotated;
            for (int64_t i = 0; i < size; i++)
                for (int64_t j = 0; j < size; j++)
                    weight[i * size + j] += (double)q[i] * (double)q[j] / (double)s->tokens;
        }
}

static void fit_all(fit *f) {
    const ln_head_samples *s = f->samples;
    ln_team *team = f->context->team;
    const int64_t heads = s->key_value_heads;
    double *mean = f->scratch;
    const rows values = {s->value, s->tokens, heads, s->value_size, 0, s->value_size, false, f->values.moment, mean};
    moments(team, &values);
    ln_parallel(team, heads, value_weights, f);
    weigh(f, &f->values);
    if (f->rest) {
        const rows rests = {s->key, s->tokens, heads, s->key_size, s->rotated, f->rest, true, f->rests.moment, mean};
        moments(team, &rests);
        ln_parallel(team, heads, rest_weights, f);
        weigh(f, &f->rests);
    }
    ln_parallel(team, f->pairs, pair_moments, f);
    f->total[0] = f->rest ? trace(&f->rests) : 0;
    for (int64_t pair = 0; pair < f->pairs; pair++)
        for (int64_t a = 0; a < heads; a++) f->total[0] += f->pair_moment[((pair * heads + a) * heads + a) * 2];
    f->total[1] = trace(&f->values);
    if (f->failed) return;
    choose_groups(f);
    if (f->failed) return;
    ln_parallel(team, f->bases->groups, fit_group, f);
    double kept[2] = {0, 0};
    for (int64_t group = 0; group < f->bases->groups; group++)
        for (int i = 0; i < 2; i++) kept[i] += f->kept[2 * group + i];
    f->bases->key_kept = f->total[0] > 0 ? kept[0] / f->total[0] : 1;
    f->bases->value_kept = f->total[1] > 0 ? kept[1] / f->total[1] : 1;
}

/* Counts (base NULL) or gives out what a fit holds. */
static uint64_t lay_out(fit *f, double *base) {
    const ln_head_samples *s = f->samples;
    const uint64_t heads = (uint64_t)s->key_value_heads, values = (uint64_t)s->value_size, rest = (uint64_t)f->rest,
                   pairs = (uint64_t)f->pairs;
    const uint64_t side = (uint64_t)(ln_max_i64(f->bases->members, 2) * ln_max_i64(s->key_size, s->value_size));
    f->scratch_values = (int64_t)(side * side + 3 * side + 2 * heads * (values + rest + 1));
    const struct {
        double **place;
        uint64_t count;
    } parts[] = {{&f->values.moment, heads * values * heads * values},
                 {&f->values.forth, heads * values * values},
                 {&f->values.back, heads * values * values},
                 {&f->rests.moment, heads * rest * heads * rest},
                 {&f->rests.forth, heads * rest * rest},
                 {&f->rests.back, heads * rest * rest},
                 {&f->pair_moment, pairs * heads * heads * 2},
                 {&f->pair_weight, pairs * heads},
                 {&f->loss, heads * heads},
                 {&f->kept, 2 * heads},
                 {&f->scratch, (uint64_t)ln_team_size(f->context->team) * (uint64_t)f->scratch_values}};
    uint64_t used = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].place = base ? base + used : NULL;
        used += parts[i].count;
    }
    return used;
}

linnet_status ln_head_bases_fit(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases) {
    fit f = {.context = context,
             .samples = samples,
             .bases = bases,
             .group = samples->heads / samples->key_value_heads,
             .pairs = samples->rotated / 2,
             .rest = samples->key_size - samples->rotated};
    f.values = (part){.heads = samples->key_value_heads, .size = samples->value_size};
    f.rests = (part){.heads = samples->key_value_heads, .size = f.rest};
    double *block = ln_allocate_zero(context, lay_out(&f, NULL), sizeof *block, "moments of keys and values");
    if (!block) return LINNET_ERROR_MEMORY;
    lay_out(&f, block);
    fit_all(&f);
    const bool failed = f.failed;
    ln_release(context, block);
    return failed ? ln_fail(context, LINNET_ERROR_FORMAT,
                            "keys or values of the calibration text are not finite: heads cannot be merged by them")
                  : LINNET_OK;
}

linnet_status ln_head_bases_open(linnet_context *context, const ln_head_samples *samples, int64_t groups,
                                 ln_head_bases *bases) {
    const uint64_t heads = (uint64_t)samples->key_value_heads, keys = (uint64_t)(samples->key_size * samples->key_size),
                   values = (uint64_t)(samples->value_size * samples->value_size);
    *bases = (ln_head_bases){.groups = groups, .members = samples->key_value_heads / groups};
    bases->order = ln_allocate_zero(context, heads, sizeof *bases->order, "order of heads");
    bases->key_encode = ln_allocate_zero(context, heads * keys, sizeof(double), "merged keys");
    bases->key_decode = ln_allocate_zero(context, heads * keys, sizeof(double), "merged keys");
    bases->value_encode = ln_allocate_zero(context, heads * values, sizeof(double), "merged values");
    bases->value_decode = ln_allocate_zero(context, heads * values, sizeof(double), "merged values");
    if (bases->order && bases->key_encode && bases->key_decode && bases->value_encode && bases->value_decode)
        return LINNET_OK;
    ln_head_bases_close(context, bases);
    return LINNET_ERROR_MEMORY;
}

void ln_head_bases_close(linnet_context *context, ln_head_bases *bases) {
    ln_release(context, bases->order);
    ln_release(context, bases->key_encode);
    ln_release(context, bases->key_decode);
    ln_release(context, bases->value_encode);
    ln_release(context, bases->value_decode);
    *bases = (ln_head_bases){0};
}

void ln_head_bases_mean(const ln_head_samples *samples, ln_head_bases *bases) {
    const int64_t members = bases->members, sizes[2] = {samples->key_size, samples->value_size};
    double *const encode[2] = {bases->key_encode, bases->value_encode}, *const decode[2] = {bases->key_decode,
                                                                                            bases->value_decode};
    for (int64_t head = 0; head < samples->key_value_heads; head++) {
        bases->order[head] = head;
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < sizes[k]; i++) {
                const int64_t size = sizes[k];
                encode[k][((head / members * size + i) * members + head % members) * size + i] = 1 / (double)members;
                decode[k][(head * size + i) * size + i] = 1;
            }
    }
}
