/* Owns: what merging needs to see of a layer at work.
 *
 * Refit: attention through merged heads gives z in the place of o. With O the matrix behind attention, O' = what the
 * bases make of it: D minimises the sum over tokens of |O o - O' z - D z|^2 + ridge |D|^2, so that O' + D makes up for
 * errors of keys too, and takes from all heads what one head lost. */
#include "model/heads_attend.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/least_squares.h"
#include "mixer/attention.h"
#include "model/part_attention.h"

enum { PIECE = 256, RUN = 64 /* tokens that stay together when a quarter is held back */ };

static const double ridges[] = {1e-4, 1e-3, 1e-2, 1e-1}; /* of the mean of the diagonal */

linnet_status ln_heads_rotate(linnet_model *model, int64_t layer, float *x, int64_t tokens, int64_t window,
                              int64_t heads) {
    const ln_rope *rope = &model->rope;
    const int64_t pairs = rope->size / 2, size = model->hyper.key_size;
    const ln_rotation rotation = ln_attention_of(model, layer)->rotation;
    if (rotation == LN_ROTATE_NOT) return LINNET_OK;
    double *inverse = ln_allocate(model->context, (uint64_t)pairs, sizeof *inverse, "rotary frequencies");
    float *cosine = ln_allocate(model->context, (uint64_t)(2 * pairs), sizeof *cosine, "rotary frequencies");
    if (inverse && cosine) {
        const double magnitude = ln_rope_frequencies(rope, rotation == LN_ROTATE_LOCAL, window, inverse);
        for (int64_t t = 0; t < tokens; t++) {
            ln_rope_angles(rope, inverse, magnitude, t % window, 1, cosine, cosine + pairs);
            for (int64_t head = 0; head < heads; head++)
                model->kernels.vector.rotate(x + (t * heads + head) * size, cosine, cosine + pairs, rope->size,
                                             rope->half);
        }
    }
    const bool made = inverse && cosine;
    ln_release(model->context, inverse);
    ln_release(model->context, cosine);
    return made ? LINNET_OK : LINNET_ERROR_MEMORY;
}

linnet_status ln_heads_attend(linnet_model *model, int64_t layer, int64_t key_value_heads, const float *query,
                              const float *key, const float *value, int64_t tokens, int64_t window, float *output) {
    const ln_hyperparameters *h = &model->hyper;
    ln_team *team = model->context->team;
    const ln_attention attention = {.heads = h->heads,
                                    .key_value_heads = key_value_heads,
                                    .key_size = h->key_size,
                                    .value_size = h->value_size,
                                    .scale = h->score_scale,
                                    .soft_cap = h->score_cap,
                                    .exact = true,
                                    .mask = {.causal = true, .window = model->windows[layer]}};
    const ln_memory_shape shape = {.layers = 1,
                                   .key_value_heads = key_value_heads,
                                   .key_size = h->key_size,
                                   .value_size = h->value_size,
                                   .precision = LINNET_F32,
                                   .capacity = window,
                                   .piece = PIECE};
    ln_memory *memory = NULL;
    linnet_status status = ln_memory_open(model->context, &shape, &memory);
    void *workspace =
        ln_allocate(model->context, ln_attention_workspace(&model->kernels, ln_team_size(team), &attention, 1, PIECE),
                    1, "workspace");
    if (!workspace) status = LINNET_ERROR_MEMORY;
    const int64_t keys = key_value_heads * h->key_size, values = key_value_heads * h->value_size;
    for (int64_t t = 0; t < tokens && status == LINNET_OK;) {
        const int64_t in_window = t % window, piece = ln_min_i64(PIECE, ln_min_i64(window - in_window, tokens - t));
        if (in_window == 0) status = ln_memory_rewind(memory, 0);
        if (status != LINNET_OK) break;
        ln_memory_append(memory, team, 0, piece, key + t * keys, keys, value + t * values, values);
        const ln_attention_sequence sequence = {.view = ln_memory_view(memory, 0),
                                                .keys = in_window + piece,
                                                .tokens = piece,
                                                .position = in_window,
                                                .query = query + t * h->heads * h->key_size,
                                                .output = output + t * h->heads * h->value_size,
                                                .query_stride = h->heads * h->key_size,
                                                .query_head_stride = h->key_size,
                                                .output_stride = h->heads * h->value_size,
                                                .output_head_stride = h->value_size};
        ln_attention_run(&model->kernels, team, &attention, &sequence, 1, workspace);
        ln_memory_commit(memory, piece);
        t += piece;
        if (ln_interrupted(model->context))
            status = ln_fail(model->context, LINNET_INTERRUPTED, "merging heads was interrupted");
    }
    ln_release(model->context, workspace);
    ln_memory_close(memory);
    return status;
}

/* ---- the refit ---- */

typedef struct refit {
    linnet_model *model;
    const float *seen, *target;
    int64_t tokens, columns, width;
    double *gram, *factor, *cross, *solution; /* [columns, columns] twice, [columns, width] twice */
    double *weight;                           /* [tokens]: 1 or 0 */
} refit;

static bool held_back(int64_t token) {
    return token / RUN % 4 == 3;
}

/* Mean of the diagonal. */
static double add_up(refit *r, bool all) {
    ln_team *team = r->model->context->team;
    const ln_samples seen = {r->seen, r->columns, r->columns}, target = {r->target, r->width, r->width};
    for (int64_t t = 0; t < r->tokens; t++) r->weight[t] = all || !held_back(t);
    ln_gram(team, seen, seen, r->tokens, r->weight, r->gram);
    ln_gram(team, seen, target, r->tokens, r->weight, r->cross);
    double sum = 0;
    for (int64_t i = 0; i < r->columns; i++) sum += r->gram[i * r->columns + i];
    return sum / (double)r->columns;
}

static bool solve(refit *r, double ridge) {
    const size_t n = (size_t)r->columns;
    memcpy(r->factor, r->gram, n * n * sizeof *r->factor);
    memcpy(r->solution, r->cross, n * (size_t)r->width * sizeof *r->solution);
    for (size_t i = 0; i < n; i++) r->factor[i * n + i] += ridge;
    if (!ln_cholesky(r->model->context->team, r->factor, r->columns)) return false;
    ln_cholesky_solve(r->model->context->team, r->factor, r->columns, r->solution, r->width);
    return true;
}

/* Squares of what the solution leaves of the tokens held back: t't - 2 d'c + d'g d with their own sums would need these
 * again, so it is computed token by token; without a solution: of the target. */
static double left_over(const refit *r, bool solved, double *row) {
    double sum = 0;
    for (int64_t t = 0; t < r->tokens; t++) {
        if (!held_back(t)) continue;
        const float *target = r->target + t * r->width, *seen = r->seen + t * r->columns;
        for (int64_t j = 0; j < r->width; j++) row[j] = (double)target[j];
        for (int64_t i = 0; i < r->columns && solved; i++)
            for (int64_t j = 0; j < r->width; j++) row[j] -= (double)seen[i] * r->solution[i * r->width + j];
        sum += ln_dot_f64(row, row, r->width);
    }
    return sum;
}

static void choose_ridge(refit *r, float *matrix, double *row, double *before, double *after) {
    const double diagonal = add_up(r, false);
    double best = 0;
    *before = *after = left_over(r, false, row);
    for (size_t i = 0; i < sizeof ridges / sizeof *ridges && diagonal > 0; i++) {
        if (!solve(r, ridges[i] * diagonal)) continue;
        const double left = left_over(r, true, row);
        if (left < *after) {
            *after = left;
            best = ridges[i];
        }
    }
    if (best == 0) return;
    const double all = add_up(r, true);
    if (!solve(r, best * all)) return;
    for (int64_t i = 0; i < r->width; i++)
        for (int64_t j = 0; j < r->columns; j++) matrix[i * r->columns + j] += (float)r->solution[j * r->width + i];
}

linnet_status ln_heads_refit(linnet_model *model, float *matrix, int64_t columns, const float *seen, float *target,
                             int64_t tokens, double *before, double *after) {
    linnet_context *context = model->context;
    const int64_t width = model->hyper.width;
    refit r = {.model = model, .seen = seen, .target = target, .tokens = tokens, .columns = columns, .width = width};
    const int64_t squares = columns * columns, crosses = columns * width;
    double *block =
        ln_allocate(context, (uint64_t)(2 * squares + 2 * crosses + tokens + width), sizeof *block, "least squares");
    float *given = ln_allocate(context, (uint64_t)(PIECE * width), sizeof *given, "least squares");
    void *workspace = ln_allocate(
        context, ln_matmul_workspace(&model->kernels, ln_team_size(context->team), PIECE, columns), 1, "workspace");
    const bool allocated = block && given && workspace;
    if (allocated) {
        const ln_matrix weights = {LINNET_F32, width, columns, matrix};
        const ln_product product = {&weights, given, width};
        for (int64_t t = 0; t < tokens; t += PIECE) {
            const int64_t piece = ln_min_i64(PIECE, tokens - t);
            ln_matmul(&model->kernels, context->team, &product, 1, seen + t * columns, columns, piece, true, workspace);
            for (int64_t i = 0; i < piece * width; i++) target[t * width + i] -= given[i];
        }
        r.gram = block;
        r.factor = block + squares;
        r.cross = r.factor + squares;
        r.solution = r.cross + crosses;
        r.weight = r.solution + crosses;
        choose_ridge(&r, matrix, r.weight + tokens, before, after);
    }
    ln_release(context, workspace);
    ln_release(context, given);
    ln_release(context, block);
    return allocated ? LINNET_OK : LINNET_ERROR_MEMORY;
}
