/* Owns: the mixture of experts as a part of a layer (equation in part_experts.h).
 *
 * Tokens are sorted by expert, so that each expert's weights are read once a piece: its tokens are gathered, go through
 * its three matrices, and are added to what they are given. A token gets its experts in ascending order, whatever the
 * threads. Few tokens go through all their experts' first matrices at once, so that the threads meet less. */
#include "model/part_experts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/part_feed_forward.h"
#include "model/take.h"

enum { MOST_EXPERTS = 1 << 12, MOST_USED = 256, GATE_SIGMOID = 2, TOGETHER = 2 /* tokens */, ALONE = 1 << 14 };

typedef struct weights {
    ln_matrix router;            /* [count, width] */
    const float *bias;           /* [count], of the choice alone; NULL: none */
    ln_matrix *gate, *up, *down; /* [count] */
    int64_t count, used, columns, groups, groups_used;
    ln_nonlinearity activation;
    bool sigmoid, renormalise;
    float scale;
    ln_feed_forward_weights shared; /* columns 0: none */
    const float *shared_gate;       /* [width]; NULL: none */
} weights;

/* ---- taking ---- */

bool ln_experts_has(linnet_model *model, int64_t layer) {
    return ln_take_find(model, layer, "ffn_gate_inp.weight") != NULL;
}

/* The keys that say how experts are chosen. */
static linnet_status take_keys(linnet_model *model, int64_t i, weights *w) {
    const int64_t renormalised = (model->architecture->traits & LN_EXPERTS_RENORMALISED) != 0;
    int64_t gating = 1;
    LN_TRY(ln_take_count(model, "expert_count", i, 1, MOST_EXPERTS, &w->count));
    LN_TRY(ln_take_count(model, "expert_used_count", i, 1, ln_min_i64(w->count, MOST_USED), &w->used));
    LN_TRY(ln_take_count(model, "expert_gating_func", i, 1, GATE_SIGMOID, &gating));
    w->groups = w->groups_used = 1;
    LN_TRY(ln_take_count(model, "expert_group_count", i, 0, ln_min_i64(w->count, MOST_USED), &w->groups));
    w->groups = ln_max_i64(1, w->groups);
    LN_TRY(ln_take_count(model, "expert_group_used_count", i, 0, w->groups, &w->groups_used));
    w->groups_used = ln_max_i64(1, w->groups_used);
    if (w->count % w->groups != 0 || w->count / w->groups * w->groups_used < w->used)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: %lld experts in %lld groups cannot be chosen from",
                       model->file->path, (long long)w->count, (long long)w->groups);
    w->sigmoid = gating == GATE_SIGMOID;
    w->renormalise = ln_take_integer(model, "expert_weights_norm", i, renormalised) != 0;
    w->scale = (float)ln_take_number(model, "expert_weights_scale", i, 1);
    if (w->scale == 0) w->scale = 1;
    if (!isfinite(w->scale))
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: expert_weights_scale must be finite",
                       model->file->path);
    return LINNET_OK;
}

/* Rows first .. first + rows - 1 of each of `count` matrices that have `total`: of the tensor STEM_exps, or of the
 * tensors STEM.0 and so on. */
static linnet_status take_stack(linnet_model *model, int64_t i, const char *stem, int64_t first, int64_t rows,
                                int64_t total, int64_t columns, int64_t count, ln_matrix *made) {
    char name[64];
    snprintf(name, sizeof name, "%.20s_exps.weight", stem);
    if (ln_take_find(model, i, name)) return ln_take_stack(model, i, name, count, first, rows, total, columns, made);
    for (int64_t e = 0; e < count; e++) {
        snprintf(name, sizeof name, "%.20s.%lld.weight", stem, (long long)e);
        LN_TRY(ln_take_rows(model, i, name, first, rows, total, columns, &made[e]));
    }
    return LINNET_OK;
}

/* As many columns as the first expert has. */
static linnet_status find_columns(linnet_model *model, int64_t i, weights *w) {
    static const char *const names[] = {"ffn_down_exps.weight", "ffn_down.0.weight"};
    for (int k = 0; k < 2; k++) {
        const linnet_tensor_info *down = ln_take_find(model, i, names[k]);
        if (!down) continue;
        w->columns = down->size[0];
        if (w->columns >= 1 && w->columns <= LN_FEED_FORWARD_MOST) return LINNET_OK;
        return ln_take_wrong(model, down, model->hyper.width, 1);
    }
    return ln_take_missing(model, i, names[0]);
}

static linnet_status take_experts(linnet_model *model, int64_t i, weights *w) {
    const int64_t width = model->hyper.width, columns = w->columns, n = w->count;
    w->gate = ln_file_own(model->file, 3 * (uint64_t)n, sizeof *w->gate, "layers");
    if (!w->gate) return LINNET_ERROR_MEMORY;
    w->up = w->gate + n;
    w->down = w->up + n;
    if (ln_take_find(model, i, "ffn_gate_up_exps.weight")) {
        LN_TRY(take_stack(model, i, "ffn_gate_up", 0, columns, 2 * columns, width, n, w->gate));
        LN_TRY(take_stack(model, i, "ffn_gate_up", columns, columns, 2 * columns, width, n, w->up));
    } else {
        LN_TRY(take_stack(model, i, "ffn_gate", 0, columns, columns, width, n, w->gate));
        LN_TRY(take_stack(model, i, "ffn_up", 0, columns, columns, width, n, w->up));
    }
    return take_stack(model, i, "ffn_down", 0, width, width, columns, n, w->down);
}

static linnet_status take_shared(linnet_model *model, int64_t i, weights *w) {
    const int64_t width = model->hyper.width;
    const linnet_tensor_info *down = ln_take_find(model, i, "ffn_down_shexp.weight");
    if (!down) return LINNET_OK;
    const int64_t columns = down->size[0];
    if (columns < 1 || columns > LN_FEED_FORWARD_MOST) return ln_take_wrong(model, down, width, 1);
    LN_TRY(ln_feed_forward_take_as(model, i, "_shexp", columns, &w->shared));
    return ln_take_vector(model, i, "ffn_gate_inp_shexp.weight", width, false, &w->shared_gate);
}

linnet_status ln_experts_take(linnet_model *model, int64_t i, ln_part *part) {
    weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (weights){.activation = model->architecture->activation};
    *part = (ln_part){.kind = &ln_experts_part, .weights = made, .layer = i};
    LN_TRY(take_keys(model, i, made));
    LN_TRY(ln_take_matrix(model, i, "ffn_gate_inp.weight", made->count, model->hyper.width, &made->router));
    LN_TRY(ln_take_vector(model, i, "exp_probs_b.bias", made->count, false, &made->bias));
    LN_TRY(find_columns(model, i, made));
    LN_TRY(take_experts(model, i, made));
    return take_shared(model, i, made);
}

/* ---- room and cost ---- */

/* What lies on the stage. */
typedef struct stage {
    float *given;   /* [tokens, width] */
    float *scores;  /* [tokens, count] */
    float *factor;  /* [tokens, used] */
    int32_t *taken; /* [tokens, used] experts of a token */
    int32_t *first; /* [count + 1] of each expert, in: */
    int32_t *order; /* [tokens * used] token * used + place, by expert */
    float *rows;    /* [tokens, width] of an expert, or of the shared one what it gives */
    float *gate, *up;
} stage;

/* Returns the floats. */
static int64_t lay_out(const weights *w, int64_t width, int64_t tokens, float *base, stage *s) {
    const int64_t together = tokens <= TOGETHER ? tokens * w->used : tokens;
    const int64_t columns = ln_max_i64(ln_stage(together, w->columns), ln_stage(tokens, w->shared.columns));
    const int64_t sizes[] = {ln_stage(tokens, width),
                             ln_stage(tokens, w->count),
                             ln_stage(tokens, w->used),
                             ln_stage(tokens, w->used),
                             ln_stage(1, w->count + 1),
                             ln_stage(tokens, w->used),
                             ln_stage(tokens, width),
                             columns,
                             columns};
    float *at[9];
    int64_t sum = 0;
    for (int i = 0; i < 9; i++) {
        at[i] = base ? base + sum : NULL;
        sum += sizes[i];
    }
    *s = (stage){at[0], at[1], at[2], (int32_t *)(void *)at[3], (int32_t *)(void *)at[4], (int32_t *)(void *)at[5],
                 at[6], at[7], at[8]};
    return sum;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    const int64_t few = ln_min_i64(shape->piece, TOGETHER);
    ln_forward_shape exact = *shape;
    exact.exact = true;
    stage s;
    ln_room_stage(room, lay_out(w, model->hyper.width, shape->piece, NULL, &s));
    ln_room_stage(room, lay_out(w, model->hyper.width, few, NULL, &s));
    ln_room_product(model, &exact, &w->router, w->router.columns, room);
    for (int64_t e = 0; e < w->count; e++) {
        if (e > 0 && w->gate[e].type == w->gate[e - 1].type && w->up[e].type == w->up[e - 1].type &&
            w->down[e].type == w->down[e - 1].type)
            continue;
        ln_room_product(model, shape, &w->gate[e], w->gate[e].columns, room);
        ln_room_product(model, shape, &w->up[e], w->up[e].columns, room);
        ln_room_product(model, shape, &w->down[e], w->down[e].columns, room);
    }
    if (w->shared.columns == 0) return;
    ln_room_product(model, shape, &w->shared.gate, w->shared.gate.columns, room);
    ln_room_product(model, shape, &w->shared.up, w->shared.up.columns, room);
    ln_room_product(model, shape, &w->shared.down, w->shared.down.columns, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    const double width = (double)model->hyper.width, used = (double)w->used, others = (double)w->count - used;
    ln_cost one = {0};
    ln_cost_product(model, shape, &w->gate[0], &one);
    ln_cost_product(model, shape, &w->up[0], &one);
    ln_cost_product(model, shape, &w->down[0], &one);
    for (int f = 0; f < LN_FORMS; f++) {
        cost->weights[f] += used * one.weights[f];
        cost->packed[f] += others * one.weights[f];
    }
    cost->prepared += width + used * (width + (double)w->columns);
    cost->meetings += 4 + 5 * (double)w->count;
    ln_cost_product(model, shape, &w->router, cost);
    if (w->shared.columns == 0) return;
    ln_cost_product(model, shape, &w->shared.gate, cost);
    ln_cost_product(model, shape, &w->shared.up, cost);
    ln_cost_product(model, shape, &w->shared.down, cost);
    cost->prepared += width + (double)w->shared.columns;
    cost->meetings += 5;
}

/* ---- choosing ---- */

typedef struct rows {
    ln_forward *forward;
    const weights *w;
    stage s;
    int64_t expert, offset; /* at hand: in order, from offset on */
} rows;

/* Index of the largest of n, the first of equals; NaN is never larger. */
static int64_t largest(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i]))) best = i;
    return best;
}

/* All but the best groups, by the sum of a group's two largest, are -inf. */
static void limit_groups(const weights *w, float *scores) {
    const int64_t size = w->count / w->groups;
    bool stays[MOST_USED] = {false};

    for (int64_t k = 0; k < w->groups_used; k++) {
        int64_t best = -1;
        float most = -INFINITY;
        for (int64_t g = 0; g < w->groups; g++) {
            float first = -INFINITY, second = -INFINITY;
            for (int64_t e = 0; e < size; e++) {
                const float x = scores[g * size + e];
                second = x > first ? first : x > second ? x : second;
                first = x > first ? x : first;
            }
            const float sum = size > 1 ? first + second : first;
            if (stays[g] || (best >= 0 && !(sum > most))) continue;
            best = g;
            most = sum;
        }
        stays[best] = true;
    }
    for (int64_t e = 0; e < w->count; e++)
        if (!stays[e / size]) scores[e] = -INFINITY;
}

/* Of a token: its experts, ascending, and what each counts. */
static void choose_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const ln_vector_kernels *vector = &r->forward->model->kernels.vector;
    float *scores = r->s.scores + token * w->count, *factor = r->s.factor + token * w->used;
    int32_t *taken = r->s.taken + token * w->used;
    if (w->sigmoid) {
        for (int64_t e = 0; e < w->count; e++) scores[e] = 1 / (1 + expf(-scores[e]));
    } else {
        const float sum = vector->exponential(scores, scores, vector->maximum(scores, w->count), w->count);
        vector->scale(scores, 1 / sum, w->count);
    }
    float choice[MOST_EXPERTS];
    for (int64_t e = 0; e < w->count; e++) choice[e] = scores[e] + (w->bias ? w->bias[e] : 0);
    if (w->groups > w->groups_used) limit_groups(w, choice);
    float sum = 0;
    for (int64_t k = 0; k < w->used; k++) {
        const int64_t e = largest(choice, w->count);
        choice[e] = NAN;
        sum += scores[e];
        int64_t at = k;
        for (; at > 0 && taken[at - 1] > e; at--) taken[at] = taken[at - 1];
        taken[at] = (int32_t)e;
    }
    for (int64_t k = 0; k < w->used; k++)
        factor[k] = w->scale * scores[taken[k]] / (w->renormalise ? sum + (w->sigmoid ? 1e-20F : 0) : 1);
}

/* Sorts by expert, and within one by token. */
static void sort(const weights *w, int64_t tokens, const stage *s) {
    memset(s->first, 0, (size_t)(w->count + 1) * sizeof *s->first);
    for (int64_t i = 0; i < tokens * w->used; i++) s->first[s->taken[i] + 1]++;
    for (int64_t e = 0; e < w->count; e++) s->first[e + 1] += s->first[e];
    for (int64_t i = 0; i < tokens * w->used; i++) s->order[s->first[s->taken[i]]++] = (int32_t)i;
    for (int64_t e = w->count; e > 0; e--) s->first[e] = s->first[e - 1];
    s->first[0] = 0;
}

/* ---- running ---- */

/* Rows of the width: few are done before the threads would have met. */
static void each_row(const ln_forward *forward, int64_t count, ln_task run, void *argument) {
    if (count * forward->model->hyper.width > ALONE)
        ln_parallel(forward->model->context->team, count, run, argument);
    else
        for (int64_t i = 0; i < count; i++) run(argument, i, 0);
}

static void gather_row(void *argument, int64_t row, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->forward->model->hyper.width, token = r->s.order[r->offset + row] / r->w->used;
    memcpy(r->s.rows + row * width, r->forward->h + token * width, (size_t)width * sizeof(float));
}

static void add_row(void *argument, int64_t row, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->forward->model->hyper.width, at = r->s.order[r->offset + row];
    const float *x = r->s.rows + row * width;
    r->forward->model->kernels.vector.add_products(r->s.given + at / r->w->used * width, 1, &r->s.factor[at], 1, x,
                                                   width, width);
}

/* The tokens of one expert. */
static void run_expert(rows *r, int64_t expert) {
    ln_forward *forward = r->forward;
    const weights *w = r->w;
    const stage *s = &r->s;
    const int64_t width = forward->model->hyper.width, count = s->first[expert + 1] - s->first[expert];
    if (count == 0) return;
    r->offset = s->first[expert];
    each_row(forward, count, gather_row, r);
    const ln_product gates[] = {{&w->gate[expert], s->gate, w->columns}, {&w->up[expert], s->up, w->columns}};
    ln_part_multiply(forward, gates, 2, s->rows, count);
    ln_feed_forward_activate(forward->model, w->activation, s->gate, w->columns, s->up, w->columns, w->columns, count);
    const ln_product down = {&w->down[expert], s->rows, width};
    ln_part_multiply(forward, &down, 1, s->gate, count);
    each_row(forward, count, add_row, r);
}

/* One token: the first matrices of all its experts in one meeting of the threads. */
static void run_token(rows *r, int64_t token) {
    ln_forward *forward = r->forward;
    const weights *w = r->w;
    const stage *s = &r->s;
    const int64_t width = forward->model->hyper.width;
    ln_product gates[2 * MOST_USED];
    for (int64_t k = 0; k < w->used; k++) {
        const int32_t expert = s->taken[token * w->used + k];
        gates[2 * k] = (ln_product){&w->gate[expert], s->gate + k * w->columns, w->columns};
        gates[2 * k + 1] = (ln_product){&w->up[expert], s->up + k * w->columns, w->columns};
    }
    ln_part_multiply(forward, gates, (int)(2 * w->used), forward->h + token * width, 1);
    ln_feed_forward_activate(forward->model, w->activation, s->gate, w->columns, s->up, w->columns, w->columns,
                             w->used);
    for (int64_t k = 0; k < w->used; k++) {
        const ln_product down = {&w->down[s->taken[token * w->used + k]], s->rows, width};
        ln_part_multiply(forward, &down, 1, s->gate + k * w->columns, 1);
        forward->model->kernels.vector.add_products(s->given + token * width, 1, &s->factor[token * w->used + k], 1,
                                                    s->rows, width, width);
    }
}

static void add_shared_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->forward->model->hyper.width;
    const float *h = r->forward->h + token * width;
    float factor = 1;
    if (r->w->shared_gate) {
        double sum = 0;
        for (int64_t i = 0; i < width; i++) sum += (double)h[i] * (double)r->w->shared_gate[i];
        factor = (float)(1 / (1 + exp(-sum)));
    }
    r->forward->model->kernels.vector.add_products(r->s.given + token * width, 1, &factor, 1, r->s.rows + token * width,
                                                   width, width);
}

static void run_shared(rows *r, int64_t tokens) {
    ln_forward *forward = r->forward;
    const ln_feed_forward_weights *w = &r->w->shared;
    const ln_product gates[] = {{&w->gate, r->s.gate, w->columns}, {&w->up, r->s.up, w->columns}};
    ln_part_multiply(forward, gates, 2, forward->h, tokens);
    ln_feed_forward_activate(forward->model, w->activation, r->s.gate, w->columns, r->s.up, w->columns, w->columns,
                             tokens);
    const ln_product down = {&w->down, r->s.rows, forward->model->hyper.width};
    ln_part_multiply(forward, &down, 1, r->s.gate, tokens);
    each_row(forward, tokens, add_shared_row, r);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    linnet_model *model = forward->model;
    const weights *w = part->weights;
    const int64_t width = model->hyper.width, tokens = call->tokens;
    rows r = {.forward = forward, .w = w};
    lay_out(w, width, tokens, forward->stage, &r.s);
    /* Exactly, whatever the session computes with: a rounding would change which experts run. */
    const ln_product router = {&w->router, r.s.scores, w->count};
    ln_matmul(&model->kernels, model->context->team, &router, 1, forward->h, width, tokens, true, forward->scratch);
    ln_parallel(model->context->team, tokens, choose_row, &r);
    memset(r.s.given, 0, (size_t)(tokens * width) * sizeof(float));
    if (tokens <= TOGETHER) {
        for (int64_t t = 0; t < tokens; t++) run_token(&r, t);
    } else {
        sort(w, tokens, &r.s);
        for (int64_t e = 0; e < w->count; e++) run_expert(&r, e);
    }
    if (w->shared.columns) run_shared(&r, tokens);
    *given = r.s.given;
    return LINNET_OK;
}

const ln_part_kind ln_experts_part = {.name = "experts", .room = find_room, .weigh = weigh, .run = run};
