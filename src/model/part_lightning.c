/* Owns: lightning attention as a part of a layer (equation in part_lightning.h). The recurrence reads queries, keys and
 * values where the product left them, by strides, and writes behind them. */
#include "model/part_lightning.h"

#include <math.h>

#include "base/checked.h"
#include "model/part_mixer.h"
#include "model/take.h"

typedef struct weights {
    ln_part_mixer mixer;
    int64_t heads, size;
    ln_matrix mixed, gate, output;
    const float *norm;
    float *slopes; /* [heads] */
} weights;

static const float norm_epsilon = 1e-6F; /* whatever the model's other norms have */
static const ln_part_kind lightning_part;

linnet_status ln_lightning_take(linnet_model *model, int64_t i, ln_part *part) {
    const ln_hyperparameters *h = &model->hyper;
    const int64_t values = h->heads * h->key_size;
    weights *w = ln_file_own(model->file, 1, sizeof *w, "layers");
    if (!w) return LINNET_ERROR_MEMORY;
    *w = (weights){.heads = h->heads, .size = h->key_size};
    linnet_mixer_settings s = linnet_mixer_settings_default("lightning_attention");
    s.heads = w->heads;
    s.key_size = w->size;
    LN_TRY(ln_part_mixer_open(model, &s, &w->mixer));
    *part = (ln_part){.kind = &lightning_part,
                      .weights = w,
                      .layer = i,
                      .state_floats = w->mixer.state_floats,
                      .matrices = {0, h->heads, w->mixer.state_floats / h->heads}};
    LN_TRY(ln_take_matrix(model, i, "attn_qkv.weight", 3 * values, h->width, &w->mixed));
    LN_TRY(ln_take_matrix(model, i, "attn_gate.weight", values, h->width, &w->gate));
    LN_TRY(ln_take_matrix(model, i, "attn_output.weight", h->width, values, &w->output));
    LN_TRY(ln_take_vector(model, i, "attn_norm_2.weight", values, true, &w->norm));
    w->slopes = ln_file_own(model->file, (uint64_t)h->heads, sizeof *w->slopes, "layers");
    if (!w->slopes) return LINNET_ERROR_MEMORY;
    const double factor = 1 - (double)i / ((double)(h->layers - 1) + 1e-5) + 1e-5;
    for (int64_t k = 0; k < h->heads; k++)
        w->slopes[k] = (float)(exp2(-8 * (double)(k + 1) / (double)h->heads) * factor);
    return LINNET_OK;
}

static int64_t values_of(const weights *w) {
    return w->heads * w->size;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    const ln_matrix *const all[] = {&w->mixed, &w->gate, &w->output};
    for (int k = 0; k < 3; k++) ln_room_product(model, shape, all[k], all[k]->columns, room);
    ln_room_stage(room, ln_stage(shape->piece, 3 * values_of(w)) + 2 * ln_stage(shape->piece, values_of(w)));
    ln_part_mixer_room(model, &w->mixer, shape, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    const ln_matrix *const all[] = {&w->mixed, &w->gate, &w->output};
    for (int k = 0; k < 3; k++) ln_cost_product(model, shape, all[k], cost);
    cost->prepared += (double)(model->hyper.width + values_of(w));
    cost->meetings += 5;
}

typedef struct rows {
    const linnet_model *model;
    const weights *w;
    float *mixed, *gate, *output;
} rows;

static void activate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t columns = 3 * values_of(r->w);
    float *row = r->mixed + token * columns;
    for (int64_t i = 0; i < columns; i++) row[i] = row[i] / (1 + expf(-row[i]));
}

static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t values = values_of(r->w);
    float *o = r->output + token * values;
    const float *gate = r->gate + token * values;
    r->model->kernels.vector.rms_norm(o, o, r->w->norm, values, norm_epsilon);
    for (int64_t i = 0; i < values; i++) o[i] /= 1 + expf(-gate[i]);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const weights *w = part->weights;
    const int64_t tokens = call->tokens, values = values_of(w);
    ln_team *team = forward->model->context->team;
    rows r = {.model = forward->model, .w = w, .mixed = forward->stage};
    r.gate = r.mixed + ln_stage(tokens, 3 * values);
    r.output = r.gate + ln_stage(tokens, values);
    const ln_product products[] = {{&w->mixed, r.mixed, 3 * values}, {&w->gate, r.gate, values}};
    ln_part_multiply(forward, products, 2, forward->h, tokens);
    ln_parallel(team, tokens, activate_row, &r);
    linnet_mixer_tensors t = {.output.data = r.output};
    static const char *const names[] = {"query", "key", "value"};
    for (int k = 0; k < 3; k++)
        ln_part_mixer_give(&w->mixer, &t, names[k], r.mixed + k * w->size, 3 * values, 3 * w->size);
    ln_part_mixer_give(&w->mixer, &t, "slope", w->slopes, 0, 0);
    ln_part_mixer_run(forward, &w->mixer, tokens, &t, call->state, call->next);
    ln_parallel(team, tokens, finish_row, &r);
    const ln_product output = {&w->output, forward->h, forward->model->hyper.width};
    ln_part_multiply(forward, &output, 1, r.output, tokens);
    *given = forward->h;
    return LINNET_OK;
}

static const ln_part_kind lightning_part = {
    .name = "lightning attention", .room = find_room, .weigh = weigh, .run = run};
