/* Owns: merged heads behind norms of queries and keys (qwen3, gemma3).
 *
 * The bases ask for u = encode k, of any length; but what a norm gives is w * y / rms(y), of one length in the
 * coordinates y = u / w. So weights w are wanted in which the wanted u have one length: with x = 1 / w^2 the least
 * squares of sum_i x_i u_i^2 = size over the samples, x bounded below, a convex problem that goes coordinate by
 * coordinate. */
#include "model/heads_norms.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"

static const double least_share = 0.05;

/* Normal equations of sum_i x_i y_i^2 = size. */
typedef struct lengths {
    int64_t size, count;
    double *gram, *right, *x, *square; /* [size, size], [size], [size], [size] */
} lengths;

static void add_length(lengths *l, const double *y) {
    for (int64_t i = 0; i < l->size; i++) l->square[i] = y[i] * y[i];
    for (int64_t i = 0; i < l->size; i++) {
        l->right[i] += l->square[i];
        for (int64_t j = 0; j < l->size; j++) l->gram[i * l->size + j] += l->square[i] * l->square[j];
    }
    l->count++;
}

/* Returns the relative error of the length. */
static double solve_lengths(lengths *l) {
    const int64_t n = l->size;
    const double count = (double)l->count, wanted = (double)n;
    for (int64_t i = 0; i < n; i++) l->x[i] = count / fmax(l->right[i], 1e-12);
    for (int pass = 0; pass < 400; pass++)
        for (int64_t i = 0; i < n; i++) {
            double slope = wanted * l->right[i];
            for (int64_t j = 0; j < n; j++) slope -= l->gram[i * n + j] * l->x[j];
            const double least = least_share * count / fmax(l->right[i], 1e-12);
            l->x[i] = fmax(least, l->x[i] + slope / fmax(l->gram[i * n + i], 1e-24));
        }
    double error = wanted * wanted * count;
    for (int64_t i = 0; i < n; i++) {
        error -= 2 * wanted * l->x[i] * l->right[i];
        for (int64_t j = 0; j < n; j++) error += l->x[i] * l->gram[i * n + j] * l->x[j];
    }
    return sqrt(fmax(error, 0) / count) / wanted / 2; /* of the square: half of it of the length */
}

/* u = encode k of one token and group. */
static void encode_key(const ln_head_samples *s, const ln_head_bases *bases, int64_t token, int64_t group, double *u) {
    const int64_t size = s->key_size, members = bases->members;
    for (int64_t i = 0; i < size; i++) {
        const double *row = bases->key_encode + (group * size + i) * members * size;
        u[i] = 0;
        for (int64_t a = 0; a < members; a++) {
            const float *key = s->key + (token * s->key_value_heads + bases->order[group * members + a]) * size;
            for (int64_t j = 0; j < size; j++) u[i] += row[a * size + j] * (double)key[j];
        }
    }
}

/* decode' q of one token and query head, numbered in the new order. */
static void decode_query(const ln_head_samples *s, const ln_head_bases *bases, int64_t token, int64_t head, double *u) {
    const int64_t size = s->key_size, group = s->heads / s->key_value_heads, place = head / group;
    const float *query = s->query + (token * s->heads + bases->order[place] * group + head % group) * size;
    const double *decode = bases->key_decode + place * size * size;
    memset(u, 0, (size_t)size * sizeof *u);
    for (int64_t j = 0; j < size; j++)
        for (int64_t i = 0; i < size; i++) u[i] += decode[j * size + i] * (double)query[j];
}

/* Each pair and each value that does not rotate gets unit energy in every group, so that one norm suits all. */
static void even_out(const ln_head_samples *s, ln_head_bases *bases, double *u, double *energy) {
    const int64_t size = s->key_size, members = bases->members;
    for (int64_t group = 0; group < bases->groups; group++) {
        memset(energy, 0, (size_t)size * sizeof *energy);
        for (int64_t t = 0; t < s->tokens; t++) {
            encode_key(s, bases, t, group, u);
            for (int64_t i = 0; i < size; i++) energy[i] += u[i] * u[i] / (double)s->tokens;
        }
        for (int64_t pair = 0; pair < s->rotated / 2; pair++) {
            int64_t x, y;
            ln_head_pair(s, pair, &x, &y);
            energy[x] = energy[y] = (energy[x] + energy[y]) / 2;
        }
        for (int64_t i = 0; i < size; i++) {
            const double factor = 1 / sqrt(fmax(energy[i], 1e-24));
            for (int64_t j = 0; j < members * size; j++)
                bases->key_encode[(group * size + i) * members * size + j] *= factor;
            for (int64_t j = 0; j < members * size; j++)
                bases->key_decode[(group * members * size + j) * size + i] /= factor;
        }
    }
}

static void clear(lengths *l) {
    memset(l->gram, 0, (size_t)(l->size * l->size) * sizeof *l->gram);
    memset(l->right, 0, (size_t)l->size * sizeof *l->right);
    l->count = 0;
}

static void fit(const ln_head_samples *s, ln_head_bases *bases, ln_head_norms *norms, lengths *l, double *u) {
    const int64_t size = s->key_size, members = bases->members;
    even_out(s, bases, u, l->x);
    if (norms->key) {
        clear(l);
        for (int64_t t = 0; t < s->tokens; t++)
            for (int64_t group = 0; group < bases->groups; group++) {
                encode_key(s, bases, t, group, u);
                add_length(l, u);
            }
        norms->key_error = solve_lengths(l);
        for (int64_t i = 0; i < size; i++) norms->new_key[i] = (float)(1 / sqrt(l->x[i]));
    }
    if (norms->query) {
        clear(l);
        for (int64_t t = 0; t < s->tokens; t++)
            for (int64_t head = 0; head < s->heads; head++) {
                decode_query(s, bases, t, head, u);
                add_length(l, u);
            }
        norms->query_error = solve_lengths(l);
        for (int64_t i = 0; i < size; i++) norms->new_query[i] = (float)(1 / sqrt(l->x[i]));
    }
    for (int64_t row = 0; row < bases->groups * size && norms->key; row++)
        for (int64_t j = 0; j < members * size; j++) {
            const int64_t head = bases->order[row / size * members + j / size];
            bases->key_encode[row * members * size + j] *=
                (double)norms->key[j % size] * norms->key_scale[head] / (double)norms->new_key[row % size];
        }
    for (int64_t row = 0; row < s->key_value_heads * size && norms->query; row++)
        for (int64_t i = 0; i < size; i++)
            bases->key_decode[row * size + i] *= (double)norms->query[row % size] / (double)norms->new_query[i];
}

linnet_status ln_head_norms_fit(linnet_context *context, const ln_head_samples *samples, ln_head_bases *bases,
                                ln_head_norms *norms) {
    const int64_t size = samples->key_size;
    double *block = ln_allocate_zero(context, (uint64_t)(size * size + 4 * size), sizeof *block, "norms of heads");
    if (!block) return LINNET_ERROR_MEMORY;
    lengths l = {.size = size,
                 .gram = block,
                 .right = block + size * size,
                 .x = block + size * size + size,
                 .square = block + size * size + 2 * size};
    fit(samples, bases, norms, &l, block + size * size + 3 * size);
    ln_release(context, block);
    return LINNET_OK;
}
