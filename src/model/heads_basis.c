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
 * k_a, k_a ~ e_a / w_a u with w_a^2 = sum over b of E |q_ab|^2 / 2. The same score for all keys is nothing to the
 * softmax: the mean key of a pair counts as far as its frequency moves it, that of values that do not rotate not at
 * all.
 *
 * Slow pairs hardly turn over the distances that matter, and mixed freely they lose much less. What is mixed is then
 * turned by the frequency of the pair where it lies, not by its own: energy |1 - e^(i (f - f') d)|^2 on the average
 * over distances d. How many pairs are mixed (`loose`) is what loses least in all, with that counted.
 *
 * Which heads: the energy lost by each two of them that become one, of keys and values in shares of all, added up over
 * the pairs of a group; greedy, then exchanges while they gain. */
#include "model/heads_basis.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/eigen.h"
#include "base/least_squares.h"

/* Angles over the distance up to which pairs are tried as loose ones. */
static const double angles[] = {0, 0.25, 0.5, 1, 2, 4};
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
    int64_t group, pairs; /* query heads of a key-value head; pairs that are not loose */
    part values, loose;
    int64_t *dims;                  /* [loose.size]: values of a key, by twos, the steadiest first */
    float *loose_query, *loose_key; /* [tokens, heads * loose.size] */
    double *pair_moment;            /* [pairs][heads][heads][2], of z */
    double *pair_weight;            /* [pairs][heads]: w_a */
    double *loss;                   /* [heads, heads] */
    double total[2];                /* energy of keys and of values */
    double *kept;                   /* [groups][2] */
    double *scratch;                /* [workers][scratch_values] */
    int64_t scratch_values;
    _Atomic bool failed;
} fit;

/* ---- moments ---- */

/* Of rows x [tokens, part]; mean [part] where they are to be centred. */
static void find_moment(const fit *f, const part *p, const float *x, int64_t tokens, double *mean) {
    const int64_t n = p->heads * p->size;
    const ln_samples rows = {x, n, n};
    ln_gram(f->context->team, rows, rows, tokens, NULL, p->moment);
    for (int64_t i = 0; i < n * n; i++) p->moment[i] /= (double)tokens;
    if (!mean) return;
    memset(mean, 0, (size_t)n * sizeof *mean);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < n; i++) mean[i] += (double)x[t * n + i] / (double)tokens;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) p->moment[i * n + j] -= mean[i] * mean[j];
}

/* The loose values of heads [tokens, heads, key_size] side by side. */
static void gather(const fit *f, const float *x, int64_t heads, float *gathered) {
    const int64_t size = f->loose.size;
    for (int64_t i = 0; i < f->samples->tokens * heads; i++)
        for (int64_t k = 0; k < size; k++) gathered[i * size + k] = x[i * f->samples->key_size + f->dims[k]];
}

/* |1 - e^(i f d)|^2, mean over d up to the distance. */
static double turned(const fit *f, double frequency) {
    const double angle = frequency * f->samples->distance;
    return fabs(angle) < 1e-4 ? angle * angle / 3 : 2 * (1 - sin(angle) / angle);
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

/* Encodes and decodes values dims[0], dims[1] .. (NULL: 0, 1 ..) of heads of `whole`. The eigenvalues stay in scratch.
 */
static double part_bases(fit *f, const part *p, const int64_t *heads, int64_t whole, const int64_t *dims,
                         double *encode, double *decode, double *scratch) {
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
                const int64_t to = dims ? dims[i] : i, from = dims ? dims[j] : j;
                encode[to * members * whole + a * whole + from] = in;
                decode[a * whole * whole + from * whole + to] = out;
            }
        }
    }
    return kept;
}

/* Energy of what loose pairs get wrong by turning with the pair they lie in. A block of two by two is a complex
 * multiple, which turns with the difference of frequencies, and a reflection, with the sum. */
static double turn_loss(const fit *f, const int64_t *heads, const double *decode, const double *energies) {
    const ln_head_samples *s = f->samples;
    const int64_t size = f->loose.size, whole = s->key_size, rest = whole - s->rotated;
    double sum = 0;
    for (int64_t a = 0; a < f->bases->members; a++)
        for (int64_t i = 0; i < size; i += 2)
            for (int64_t m = 0; m < size; m += 2) {
                const double own = i < rest ? 0 : s->frequency[s->rotated / 2 - 1 - (i - rest) / 2],
                             place = m < rest ? 0 : s->frequency[s->rotated / 2 - 1 - (m - rest) / 2];
                const double *x = decode + a * whole * whole + f->dims[i] * whole,
                             *y = decode + a * whole * whole + f->dims[i + 1] * whole;
                const double xx = x[f->dims[m]], xy = x[f->dims[m + 1]], yx = y[f->dims[m]], yy = y[f->dims[m + 1]];
                const double multiple = ((xx + yy) * (xx + yy) + (yx - xy) * (yx - xy)) / 4,
                             reflection = ((xx - yy) * (xx - yy) + (yx + xy) * (yx + xy)) / 4;
                double weight = 0;
                const double *forth = f->loose.forth + heads[a] * size * size;
                for (int64_t k = 0; k < size; k++)
                    weight += (forth[k * size + i] * forth[k * size + i] +
                               forth[k * size + i + 1] * forth[k * size + i + 1]) /
                              2;
                const double energy = fmax(energies[-1 - m], 0) + fmax(energies[-2 - m], 0);
                sum += weight * energy * (multiple * turned(f, own - place) + reflection * turned(f, own + place));
            }
    return sum;
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
    const double tokens = (double)s->tokens, angle = s->frequency[pair] * s->distance / 2;
    const double steady = angle > 1e-6 ? sin(angle) / angle * (sin(angle) / angle) : 1; /* |mean of e^(i f d)|^2 */
    double most = 1e-30;
    for (int64_t a = 0; a < heads; a++) most = fmax(most, weight[a]);
    for (int64_t a = 0; a < heads; a++) weight[a] = sqrt(fmax(weight[a], most * weight_floor) / tokens / 2);
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
    double keys = part_loss(f, &f->loose, both, scratch);
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
    kept[0] = part_bases(f, &f->loose, heads, keys, f->dims, encode, decode, scratch);
    const int64_t side = members * f->loose.size;
    if (side && !f->failed) kept[0] -= turn_loss(f, heads, decode, scratch + side * side + side);
    for (int64_t pair = 0; pair < f->pairs && !f->failed; pair++)
        kept[0] += pair_bases(f, pair, heads, encode, decode, scratch);
    kept[1] = part_bases(f, &f->values, heads, values, NULL, bases->value_encode + first * values * values,
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

/* M_a of the loose values of a key: sum of E[q_ab q_ab']. */
static void loose_weights(void *argument, int64_t head, int worker) {
    (void)worker;
    const fit *f = argument;
    const ln_head_samples *s = f->samples;
    const int64_t size = f->loose.size;
    double *weight = f->loose.forth + head * size * size;
    memset(weight, 0, (size_t)(size * size) * sizeof *weight);
    for (int64_t t = 0; t < s->tokens; t++)
        for (int64_t b = head * f->group; b < (head + 1) * f->group; b++) {
            const float *q = f->loose_query + (t * s->heads + b) * size;
            for (int64_t i = 0; i < size; i++)
                for (int64_t j = 0; j < size; j++)
                    weight[i * size + j] += (double)q[i] * (double)q[j] / (double)s->tokens;
        }
}

static void fit_all(fit *f) {
    const ln_head_samples *s = f->samples;
    ln_team *team = f->context->team;
    const int64_t heads = s->key_value_heads;
    find_moment(f, &f->values, s->value, s->tokens, NULL);
    ln_parallel(team, heads, value_weights, f);
    weigh(f, &f->values);
    if (f->loose.size) {
        gather(f, s->key, heads, f->loose_key);
        gather(f, s->query, s->heads, f->loose_query);
        find_moment(f, &f->loose, f->loose_key, s->tokens, f->scratch);
        ln_parallel(team, heads, loose_weights, f);
        weigh(f, &f->loose);
    }
    ln_parallel(team, f->pairs, pair_moments, f);
    f->total[0] = f->loose.size ? trace(&f->loose) : 0;
    for (int64_t pair = 0; pair < f->pairs; pair++)
        for (int64_t a = 0; a < heads; a++) f->total[0] += f->pair_moment[((pair * heads + a) * heads + a) * 2];
    f->total[1] = trace(&f->values);
    if (f->failed) return;
    choose_groups(f);
    if (f->failed) return;
    ln_parallel(team, f->bases->groups, fit_group, f);
}

/* Counts (base NULL) or gives out what a fit holds. */
static uint64_t lay_out(fit *f, double *base) {
    const ln_head_samples *s = f->samples;
    const uint64_t heads = (uint64_t)s->key_value_heads, values = (uint64_t)s->value_size,
                   loose = (uint64_t)f->loose.size, pairs = (uint64_t)f->pairs, tokens = (uint64_t)s->tokens;
    const uint64_t side = (uint64_t)(ln_max_i64(f->bases->members, 2) * ln_max_i64(s->key_size, s->value_size));
    f->scratch_values = (int64_t)(side * side + 3 * side + 2 * heads * (values + loose + 1));
    double *parts[13] = {NULL};
    const uint64_t counts[13] = {heads * values * heads * values,
                                 heads * values * values,
                                 heads * values * values,
                                 heads * loose * heads * loose,
                                 heads * loose * loose,
                                 heads * loose * loose,
                                 pairs * heads * heads * 2,
                                 pairs * heads,
                                 heads * heads,
                                 2 * heads,
                                 (uint64_t)ln_team_size(f->context->team) * (uint64_t)f->scratch_values,
                                 tokens * heads * loose,
                                 tokens * (uint64_t)s->heads * loose};
    uint64_t used = 0;
    for (int i = 0; i < 13; i++) {
        parts[i] = base ? base + used : NULL;
        used += counts[i];
    }
    f->values.moment = parts[0];
    f->values.forth = parts[1];
    f->values.back = parts[2];
    f->loose.moment = parts[3];
    f->loose.forth = parts[4];
    f->loose.back = parts[5];
    f->pair_moment = parts[6];
    f->pair_weight = parts[7];
    f->loss = parts[8];
    f->kept = parts[9];
    f->scratch = parts[10];
    f->loose_key = (float *)parts[11];
    f->loose_query = (float *)parts[12];
    return used;
}

/* Fits with that many loose pairs; *lost: energy of keys. */
static linnet_status fit_loose(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases,
                               int64_t loose, double *lost) {
    const int64_t rest = samples->key_size - samples->rotated, keys = samples->key_value_heads * samples->key_size;
    fit f = {.context = context,
             .samples = samples,
             .bases = bases,
             .group = samples->heads / samples->key_value_heads,
             .pairs = samples->rotated / 2 - loose};
    f.values = (part){.heads = samples->key_value_heads, .size = samples->value_size};
    f.loose = (part){.heads = samples->key_value_heads, .size = rest + 2 * loose};
    f.dims = ln_allocate(context, (uint64_t)samples->key_size, sizeof *f.dims, "moments of keys and values");
    double *block = ln_allocate_zero(context, lay_out(&f, NULL), sizeof *block, "moments of keys and values");
    if (!f.dims || !block) {
        ln_release(context, f.dims);
        ln_release(context, block);
        return LINNET_ERROR_MEMORY;
    }
    lay_out(&f, block);
    for (int64_t i = 0; i < rest; i++) f.dims[i] = samples->rotated + i;
    for (int64_t i = 0; i < loose; i++)
        ln_head_pair(samples, samples->rotated / 2 - 1 - i, &f.dims[rest + 2 * i], &f.dims[rest + 2 * i + 1]);
    memset(bases->key_encode, 0, (size_t)(keys * samples->key_size) * sizeof *bases->key_encode);
    memset(bases->key_decode, 0, (size_t)(keys * samples->key_size) * sizeof *bases->key_decode);
    fit_all(&f);
    const bool failed = f.failed;
    double kept[2] = {0, 0};
    for (int64_t group = 0; group < bases->groups && !failed; group++)
        for (int i = 0; i < 2; i++) kept[i] += f.kept[2 * group + i];
    bases->loose = loose;
    bases->key_kept = f.total[0] > 0 ? kept[0] / f.total[0] : 1;
    bases->value_kept = f.total[1] > 0 ? kept[1] / f.total[1] : 1;
    *lost = f.total[0] - kept[0];
    ln_release(context, block);
    ln_release(context, f.dims);
    return failed ? ln_fail(context, LINNET_ERROR_FORMAT,
                            "keys or values of the calibration text are not finite: heads cannot be merged by them")
                  : LINNET_OK;
}

linnet_status ln_head_bases_fit(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases) {
    double least = 0, lost = 0;
    int64_t best = -1, last = -1;
    for (size_t i = 0; i < sizeof angles / sizeof *angles; i++) {
        int64_t loose = 0;
        for (int64_t pair = 0; pair < samples->rotated / 2; pair++)
            loose += samples->frequency[pair] * samples->distance < angles[i];
        if (loose == bases->loose && last >= 0) continue;
        const linnet_status status = fit_loose(context, samples, bases, loose, &lost);
        if (status != LINNET_OK) return status;
        last = loose;
        if (best >= 0 && !(lost < least)) continue;
        best = loose;
        least = lost;
    }
    return best == last ? LINNET_OK : fit_loose(context, samples, bases, best, &lost);
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
