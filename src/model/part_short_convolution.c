/* Owns: the gated short convolution as a part of a layer (equation in part_short_convolution.h).
 *
 * On the stage lie the rows [b c u]; v takes the place of b, and what the taps make of it goes into h. */
#include "model/part_short_convolution.h"

#include "base/checked.h"
#include "model/part_mixer.h"
#include "model/take.h"

enum { MOST_TAPS = 64 };

typedef struct weights {
    ln_matrix in, out;
    const float *in_bias, *bias; /* [3 width], [width]; NULL: none */
    const float *taps;           /* [width, taps] */
    ln_part_mixer convolution;
} weights;

linnet_status ln_short_convolution_take(linnet_model *model, int64_t i, ln_part *part) {
    const int64_t width = model->hyper.width;
    weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (weights){0};
    *part = (ln_part){.kind = &ln_short_convolution_part, .weights = made, .layer = i};
    linnet_mixer_settings settings = linnet_mixer_settings_default("short_convolution");
    settings.key_size = 1;
    settings.value_size = width;
    LN_TRY(ln_take_count(model, "shortconv.l_cache", i, 1, MOST_TAPS, &settings.slots));
    LN_TRY(ln_part_mixer_open(model, &settings, &made->convolution));
    LN_TRY(ln_take_matrix(model, i, "shortconv.in_proj.weight", 3 * width, width, &made->in));
    LN_TRY(ln_take_vector(model, i, "shortconv.in_proj.bias", 3 * width, false, &made->in_bias));
    LN_TRY(ln_take_matrix(model, i, "shortconv.out_proj.weight", width, width, &made->out));
    LN_TRY(ln_take_vector(model, i, "shortconv.out_proj.bias", width, false, &part->bias));
    LN_TRY(ln_take_vector(model, i, "shortconv.conv.bias", width, false, &made->bias));
    LN_TRY(ln_take_values(model, i, "shortconv.conv.weight", width, settings.slots, true, &made->taps));
    part->state_floats = made->convolution.state_floats;
    return LINNET_OK;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    ln_room_stage(room, ln_stage(shape->piece, 3 * model->hyper.width));
    ln_room_product(model, shape, &w->in, w->in.columns, room);
    ln_room_product(model, shape, &w->out, w->out.columns, room);
    ln_part_mixer_room(model, &w->convolution, shape, room);
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

static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    float *h = r->h + token * r->width;
    const float *c = r->stage + token * 3 * r->width + r->width;
    for (int64_t i = 0; i < r->width; i++) h[i] *= c[i];
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const weights *w = part->weights;
    const int64_t width = forward->model->hyper.width, tokens = call->tokens;
    ln_team *team = forward->model->context->team;
    rows r = {.kernels = &forward->model->kernels, .w = w, .width = width, .stage = forward->stage, .h = forward->h};
    const ln_product in = {&w->in, forward->stage, 3 * width}, out = {&w->out, forward->stage, width};
    ln_part_multiply(forward, &in, 1, forward->h, tokens);
    ln_parallel(team, tokens, gate_row, &r);
    linnet_mixer_tensors t = {.output.data = forward->h};
    ln_part_mixer_give(&w->convolution, &t, "value", forward->stage, 3 * width, 3 * width);
    ln_part_mixer_give(&w->convolution, &t, "weight", w->taps, 0, 0);
    if (w->bias) ln_part_mixer_give(&w->convolution, &t, "bias", w->bias, 0, 0);
    ln_part_mixer_run(forward, &w->convolution, tokens, &t, call->state, call->next);
    ln_parallel(team, tokens, finish_row, &r);
    ln_part_multiply(forward, &out, 1, forward->h, tokens);
    *given = forward->stage;
    return LINNET_OK;
}

const ln_part_kind ln_short_convolution_part = {
    .name = "short convolution", .room = find_room, .weigh = weigh, .run = run};
