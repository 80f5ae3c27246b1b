/* Owns: the gated short convolution as a part of a layer (equation in part_short_convolution.h).
 *
 * On the stage lie the rows [b c u]; v takes the place of b, and what the taps make of it goes into h, so that no task
 * writes what another reads. */
#include "model/part_short_convolution.h"

#include <string.h>

#include "base/checked.h"
#include "model/take.h"

enum { MOST_TAPS = 64 };

typedef struct weights {
    ln_matrix in, out;
    const float *in_bias, *bias; /* [3 width], [width]; NULL: none */
    float *taps;                 /* [taps, width] */
    int64_t count;
} weights;

linnet_status ln_short_convolution_take(linnet_model *model, int64_t i, ln_part *part) {
    const int64_t width = model->hyper.width;
    weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (weights){0};
    *part = (ln_part){.kind = &ln_short_convolution_part, .weights = made, .layer = i};
    LN_TRY(ln_take_count(model, "shortconv.l_cache", i, 1, MOST_TAPS, &made->count));
    LN_TRY(ln_take_matrix(model, i, "shortconv.in_proj.weight", 3 * width, width, &made->in));
    LN_TRY(ln_take_vector(model, i, "shortconv.in_proj.bias", 3 * width, false, &made->in_bias));
    LN_TRY(ln_take_matrix(model, i, "shortconv.out_proj.weight", width, width, &made->out));
    LN_TRY(ln_take_vector(model, i, "shortconv.out_proj.bias", width, false, &part->bias));
    LN_TRY(ln_take_vector(model, i, "shortconv.conv.bias", width, false, &made->bias));
    const float *taps;
    LN_TRY(ln_take_values(model, i, "shortconv.conv.weight", width, made->count, true, &taps));
    made->taps = ln_file_own(model->file, (uint64_t)(width * made->count), sizeof *taps, "layers");
    if (!made->taps) return LINNET_ERROR_MEMORY;
    for (int64_t k = 0; k < made->count; k++)
        for (int64_t c = 0; c < width; c++) made->taps[k * width + c] = taps[c * made->count + k];
    part->state_floats = (made->count - 1) * width;
    return LINNET_OK;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    ln_room_stage(room, ln_stage(shape->piece, 3 * model->hyper.width));
    ln_room_product(model, shape, &w->in, w->in.columns, room);
    ln_room_product(model, shape, &w->out, w->out.columns, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    ln_cost_product(model, shape, &w->in, cost);
    ln_cost_product(model, shape, &w->out, cost);
    cost->prepared += 2 * (double)model->hyper.width;
    cost->meetings += 4;
}

typedef struct rows {
    const ln_kernels *kernels;
    const weights *w;
    int64_t width;
    float *stage, *h;
    const float *state; /* [taps - 1, width] */
} rows;

/* v in the place of b. */
static void gate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    float *row = r->stage + token * 3 * r->width;
    const float *u = row + 2 * r->width;
    for (int64_t c = 0; r->w->in_bias && c < 3 * r->width; c++) row[c] += r->w->in_bias[c];
    for (int64_t c = 0; c < r->width; c++) row[c] *= u[c];
}

/* v of a token, those before the piece out of the state. */
static const float *value_of(const rows *r, int64_t token) {
    return token < 0 ? r->state + (r->w->count - 1 + token) * r->width : r->stage + token * 3 * r->width;
}

static void convolve_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->width, count = r->w->count;
    float *h = r->h + token * width;
    const float *c = r->stage + token * 3 * width + width, *values[MOST_TAPS];
    for (int64_t k = 0; k < count; k++) values[k] = value_of(r, token - count + 1 + k);
    const ln_short_convolution convolution = {.tokens = 1,
                                              .channels = width,
                                              .taps = count,
                                              .rows = values,
                                              .weight = r->w->taps,
                                              .bias = r->w->bias,
                                              .y = {h, width}};
    r->kernels->scan.short_convolution(&convolution);
    for (int64_t i = 0; i < width; i++) h[i] *= c[i];
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const weights *w = part->weights;
    const int64_t width = forward->model->hyper.width, tokens = call->tokens;
    ln_team *team = forward->model->context->team;
    rows r = {.kernels = &forward->model->kernels,
              .w = w,
              .width = width,
              .stage = forward->stage,
              .h = forward->h,
              .state = call->state};
    const ln_product in = {&w->in, forward->stage, 3 * width}, out = {&w->out, forward->stage, width};
    ln_part_multiply(forward, &in, 1, forward->h, tokens);
    ln_parallel(team, tokens, gate_row, &r);
    ln_parallel(team, tokens, convolve_row, &r);
    for (int64_t k = 0; k < w->count - 1; k++)
        memcpy(call->next + k * width, value_of(&r, tokens - w->count + 1 + k), (size_t)width * sizeof(float));
    ln_part_multiply(forward, &out, 1, forward->h, tokens);
    *given = forward->stage;
    return LINNET_OK;
}

const ln_part_kind ln_short_convolution_part = {
    .name = "short convolution", .room = find_room, .weigh = weigh, .run = run};
