/* Owns: the dense feed-forward network as a part of a layer (equation in part_feed_forward.h). */
#include "model/part_feed_forward.h"

#include <stdio.h>

#include "base/checked.h"
#include "model/take.h"

linnet_status ln_feed_forward_take_as(linnet_model *model, int64_t i, const char *suffix, int64_t columns,
                                      ln_feed_forward_weights *made) {
    const int64_t width = model->hyper.width;
    char gate[48], up[48], down[48];
    snprintf(gate, sizeof gate, "ffn_gate%.20s.weight", suffix);
    snprintf(up, sizeof up, "ffn_up%.20s.weight", suffix);
    snprintf(down, sizeof down, "ffn_down%.20s.weight", suffix);
    *made = (ln_feed_forward_weights){.columns = columns,
                                      .gate_scale = (float)ln_take_number(model, "feed_forward.gate_scale", -1, 1),
                                      .activation = model->architecture->activation};
    if (ln_take_find(model, i, gate)) {
        LN_TRY(ln_take_matrix(model, i, gate, columns, width, &made->gate));
        LN_TRY(ln_take_matrix(model, i, up, columns, width, &made->up));
    } else {
        LN_TRY(ln_take_rows(model, i, up, 0, columns, 2 * columns, width, &made->gate));
        LN_TRY(ln_take_rows(model, i, up, columns, columns, 2 * columns, width, &made->up));
    }
    return ln_take_matrix(model, i, down, width, columns, &made->down);
}

linnet_status ln_feed_forward_take(linnet_model *model, int64_t i, ln_part *part) {
    ln_feed_forward_weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    int64_t columns = 0;
    LN_TRY(ln_take_count(model, "feed_forward_length", i, 1, LN_FEED_FORWARD_MOST, &columns));
    *part = (ln_part){.kind = &ln_feed_forward_part, .weights = made, .layer = i};
    return ln_feed_forward_take_as(model, i, "", columns, made);
}

/* ---- room and cost ---- */

static int64_t least(int64_t asked, int64_t columns) {
    return asked > 0 ? ln_min_i64(asked, columns) : columns;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const ln_feed_forward_weights *w = part->weights;
    const int64_t piece = shape->piece, few = ln_min_i64(piece, model->kernels.matmul.panel_from - 1);
    const int64_t slice = least(shape->slice, w->columns), step = least(shape->step, w->columns);
    const int64_t given = slice < w->columns ? ln_stage(piece, model->hyper.width) : 0;
    ln_room_stage(room, given + ln_stage(piece, slice) + ln_stage(piece, step));
    ln_room_stage(room, 2 * ln_stage(few, w->columns));
    ln_room_product(model, shape, &w->gate, w->gate.columns, room);
    ln_room_product(model, shape, &w->up, w->up.columns, room);
    ln_room_product(model, shape, &w->down, slice, room);
    ln_room_product(model, shape, &w->down, w->columns % slice, room); /* the last slice */
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const ln_feed_forward_weights *w = part->weights;
    const int64_t slice = least(shape->slice, w->columns), step = least(shape->step, w->columns);
    const double width = (double)model->hyper.width, slices = (double)ln_ceil_div(w->columns, slice),
                 gates = slices * (double)ln_ceil_div(slice, step);
    ln_cost_product(model, shape, &w->gate, cost);
    ln_cost_product(model, shape, &w->up, cost);
    ln_cost_product(model, shape, &w->down, cost);
    cost->prepared += gates * width + (double)w->columns;
    cost->added += (slices - 1) * width;
    cost->meetings += 3 + 3 * gates;
}

static int64_t find_unit(const linnet_model *model, const ln_part *part, bool exact) {
    const ln_feed_forward_weights *w = part->weights;
    return ln_matmul_unit(&model->kernels, w->down.type, exact);
}

/* ---- running ---- */

typedef struct rows {
    const linnet_model *model;
    ln_nonlinearity activation;
    float *gate;
    const float *up;
    int64_t gate_stride, up_stride, columns;
    float gate_scale;
} rows;

static void activate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_vector_kernels *vector = &r->model->kernels.vector;
    float *gate = r->gate + token * r->gate_stride;
    const float *up = r->up + token * r->up_stride;
    if (r->activation == LN_GELU_TANH)
        vector->gelu_tanh_multiply(gate, gate, up, r->columns);
    else
        vector->silu_multiply(gate, gate, up, r->columns);
}

void ln_feed_forward_activate(const linnet_model *model, ln_nonlinearity activation, float *gate, int64_t gate_stride,
                              const float *up, int64_t up_stride, int64_t columns, int64_t tokens) {
    rows r = {model, activation, gate, up, gate_stride, up_stride, columns, 1};
    ln_parallel(model->context->team, tokens, activate_row, &r);
}

static void scale_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    r->model->kernels.vector.scale(r->gate + token * r->gate_stride, r->gate_scale, r->columns);
}

/* Where a slice lies. */
typedef struct place {
    float *gate, *up;
    int64_t slice, step; /* of the piece that runs: few tokens are not cut */
} place;

/* gate = activation(G h) * U h, columns first .. first + count - 1, `step` at a time. */
static void run_gates(ln_forward *forward, const ln_feed_forward_weights *w, const place *at, int64_t first,
                      int64_t count, int64_t tokens) {
    for (int64_t done = 0; done < count; done += at->step) {
        const int64_t columns = ln_min_i64(at->step, count - done);
        const ln_matrix gate = ln_matrix_rows(&w->gate, first + done, columns),
                        up = ln_matrix_rows(&w->up, first + done, columns);
        const ln_product gates[] = {{&gate, at->gate + done, at->slice}, {&up, at->up, at->step}};
        ln_part_multiply(forward, gates, 2, forward->h, tokens);
        rows r = {.model = forward->model,
                  .gate = at->gate + done,
                  .gate_stride = at->slice,
                  .columns = columns,
                  .gate_scale = w->gate_scale};
        if (w->gate_scale != 1) ln_parallel(forward->model->context->team, tokens, scale_row, &r);
        ln_feed_forward_activate(forward->model, w->activation, at->gate + done, at->slice, at->up, at->step, columns,
                                 tokens);
    }
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const linnet_model *model = forward->model;
    const ln_feed_forward_weights *w = part->weights;
    const int64_t tokens = call->tokens, width = model->hyper.width;
    const bool few = tokens < model->kernels.matmul.panel_from; /* the dot way knows no slices */
    place at = {.slice = few ? w->columns : least(forward->shape.slice, w->columns),
                .step = few ? w->columns : least(forward->shape.step, w->columns)};
    const bool slices = at.slice < w->columns;
    *given = slices ? forward->stage : forward->h;
    at.gate = forward->stage + (slices ? ln_stage(tokens, width) : 0);
    at.up = at.gate + ln_stage(tokens, at.slice);
    const ln_product down = {&w->down, *given, width};
    for (int64_t first = 0; first < w->columns; first += at.slice) {
        const ln_matmul_part columns = {.column = first, .columns = ln_min_i64(at.slice, w->columns - first)};
        run_gates(forward, w, &at, first, columns.columns, tokens);
        ln_part_multiply_part(forward, &down, 1, at.gate, at.slice, tokens, &columns);
    }
    return LINNET_OK;
}

const ln_part_kind ln_feed_forward_part = {
    .name = "feed-forward", .room = find_room, .weigh = weigh, .unit = find_unit, .run = run};
