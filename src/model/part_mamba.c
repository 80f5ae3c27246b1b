/* Owns: Mamba as a part of a layer (equation in state_space.h). The stage holds, for T tokens,
 *     u [T, inner], z [T, inner], convolved u [T, inner], (s, B, C) [T, R + 2 N], d [T, inner]
 * and what the scan gives has the place of the first. The state is that of the convolution, then that of the scan. */
#include <string.h>

#include "base/checked.h"
#include "model/state_space.h"
#include "model/take.h"

typedef struct mamba {
    const ln_state_space *sizes;
    ln_matrix value, gate, select, step, output;
    const float *value_bias, *gate_bias; /* [inner]; NULL: none */
    const float *taps, *taps_bias;       /* [inner, taps], [inner] */
    const float *step_bias, *rates, *skip;
    ln_part_mixer convolution, scan;
} mamba;

static linnet_status open_mixers(linnet_model *model, mamba *m) {
    linnet_mixer_settings convolution = linnet_mixer_settings_default("short_convolution");
    convolution.heads = 1;
    convolution.key_size = convolution.value_size = m->sizes->inner;
    convolution.slots = m->sizes->taps;
    convolution.option[0] = 1; /* silu */
    LN_TRY(ln_part_mixer_open(model, &convolution, &m->convolution));
    linnet_mixer_settings scan = linnet_mixer_settings_default("selective_scan");
    scan.heads = 1;
    scan.key_size = scan.value_size = m->sizes->inner;
    scan.slots = m->sizes->states;
    scan.option[0] = 1; /* the step goes through log(1 + e^step) */
    return ln_part_mixer_open(model, &scan, &m->scan);
}

linnet_status ln_mamba_take(linnet_model *model, int64_t i, ln_part *part) {
    const ln_state_space *s = model->own;
    const int64_t width = model->hyper.width, inner = s->inner, selected = s->heads + 2 * s->states;
    const float *bias = NULL;
    mamba *m = ln_file_own(model->file, 1, sizeof *m, "layers");
    if (!m) return LINNET_ERROR_MEMORY;
    *m = (mamba){.sizes = s};
    LN_TRY(ln_take_rows(model, i, "ssm_in.weight", 0, inner, 2 * inner, width, &m->value));
    LN_TRY(ln_take_rows(model, i, "ssm_in.weight", inner, inner, 2 * inner, width, &m->gate));
    LN_TRY(ln_take_vector(model, i, "ssm_in.bias", 2 * inner, false, &bias));
    m->value_bias = bias;
    m->gate_bias = bias ? bias + inner : NULL;
    LN_TRY(ln_take_values(model, i, "ssm_conv1d.weight", inner, s->taps, true, &m->taps));
    LN_TRY(ln_take_vector(model, i, "ssm_conv1d.bias", inner, false, &m->taps_bias));
    LN_TRY(ln_take_matrix(model, i, "ssm_x.weight", selected, inner, &m->select));
    LN_TRY(ln_take_matrix(model, i, "ssm_dt.weight", inner, s->heads, &m->step));
    LN_TRY(ln_take_vector(model, i, "ssm_dt.bias", inner, true, &m->step_bias));
    LN_TRY(ln_take_values(model, i, "ssm_a", inner, s->states, true, &m->rates));
    LN_TRY(ln_take_vector(model, i, "ssm_d", inner, true, &m->skip));
    LN_TRY(ln_take_matrix(model, i, "ssm_out.weight", width, inner, &m->output));
    LN_TRY(open_mixers(model, m));
    *part = (ln_part){.kind = &ln_mamba_part,
                      .weights = m,
                      .layer = i,
                      .state_floats = m->convolution.state_floats + m->scan.state_floats};
    return ln_take_vector(model, i, "ssm_out.bias", width, false, &part->bias);
}

/* ---- room and cost ---- */

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const mamba *m = part->weights;
    const int64_t piece = shape->piece;
    ln_room_stage(room, 4 * ln_stage(piece, m->sizes->inner) + ln_stage(piece, m->select.rows));
    const ln_matrix *const products[] = {&m->value, &m->select, &m->step, &m->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        ln_room_product(model, shape, products[i], products[i]->columns, room);
    ln_part_mixer_room(model, &m->convolution, shape, room);
    ln_part_mixer_room(model, &m->scan, shape, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const mamba *m = part->weights;
    const ln_matrix *const products[] = {&m->value, &m->gate, &m->select, &m->step, &m->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) ln_cost_product(model, shape, products[i], cost);
    cost->prepared += (double)(model->hyper.width + 2 * m->sizes->inner + m->sizes->heads);
    cost->meetings += 10;
}

/* ---- running ---- */

typedef struct rows {
    const linnet_model *model;
    const mamba *mamba;
    float *value, *gate, *selected, *step;
} rows;

static void add_biases(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t inner = r->mamba->sizes->inner;
    r->model->kernels.vector.add(r->value + token * inner, r->mamba->value_bias, inner);
    r->model->kernels.vector.add(r->gate + token * inner, r->mamba->gate_bias, inner);
}

static void normalise(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_state_space *s = r->mamba->sizes;
    const int64_t counts[] = {s->heads, s->states, s->states};
    float *x = r->selected + token * r->mamba->select.rows;
    for (int i = 0; i < 3; x += counts[i++]) r->model->kernels.vector.rms_norm(x, x, NULL, counts[i], s->epsilon);
}

static void add_step_bias(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t inner = r->mamba->sizes->inner;
    r->model->kernels.vector.add(r->step + token * inner, r->mamba->step_bias, inner);
}

static void gate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t inner = r->mamba->sizes->inner;
    float *y = r->value + token * inner;
    r->model->kernels.vector.silu_multiply(y, r->gate + token * inner, y, inner);
}

static void convolve(ln_forward *forward, const mamba *m, int64_t tokens, float *from, float *to, const float *state,
                     float *next) {
    linnet_mixer_tensors tensors = {.output = {.data = to}};
    ln_part_mixer_give(&m->convolution, &tensors, "value", from, 0, 0);
    ln_part_mixer_give(&m->convolution, &tensors, "weight", m->taps, 0, 0);
    ln_part_mixer_give(&m->convolution, &tensors, "bias", m->taps_bias, 0, 0);
    ln_part_mixer_run(forward, &m->convolution, tokens, &tensors, state, next);
}

static void scan(ln_forward *forward, const mamba *m, int64_t tokens, const float *value, const float *selected,
                 const float *step, float *to, const float *state, float *next) {
    const ln_state_space *s = m->sizes;
    linnet_mixer_tensors tensors = {.output = {.data = to}};
    ln_part_mixer_give(&m->scan, &tensors, "value", value, 0, 0);
    ln_part_mixer_give(&m->scan, &tensors, "step", step, 0, 0);
    ln_part_mixer_give(&m->scan, &tensors, "rate", m->rates, 0, 0);
    ln_part_mixer_give(&m->scan, &tensors, "key", selected + s->heads, m->select.rows, 0);
    ln_part_mixer_give(&m->scan, &tensors, "query", selected + s->heads + s->states, m->select.rows, 0);
    ln_part_mixer_give(&m->scan, &tensors, "skip", m->skip, 0, 0);
    ln_part_mixer_run(forward, &m->scan, tokens, &tensors, state, next);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const linnet_model *model = forward->model;
    const mamba *m = part->weights;
    const int64_t tokens = call->tokens, inner = m->sizes->inner, selected = m->select.rows;
    float *value = forward->stage, *gate = value + ln_stage(tokens, inner), *convolved = gate + ln_stage(tokens, inner),
          *select = convolved + ln_stage(tokens, inner), *step = select + ln_stage(tokens, selected);
    const float *scan_state = call->state + m->convolution.state_floats;
    const ln_product in[] = {{&m->value, value, inner}, {&m->gate, gate, inner}};
    ln_part_multiply(forward, in, 2, forward->h, tokens);
    rows r = {.model = model, .mamba = m, .value = value, .gate = gate, .selected = select, .step = step};
    if (m->value_bias) ln_parallel(model->context->team, tokens, add_biases, &r);
    convolve(forward, m, tokens, value, convolved, call->state, call->next);
    const ln_product selection = {&m->select, select, selected};
    ln_part_multiply(forward, &selection, 1, convolved, tokens);
    if (m->sizes->normed) ln_parallel(model->context->team, tokens, normalise, &r);
    const ln_product steps = {&m->step, step, inner};
    const ln_matmul_part all = {0};
    ln_part_multiply_part(forward, &steps, 1, select, selected, tokens, &all);
    ln_parallel(model->context->team, tokens, add_step_bias, &r);
    scan(forward, m, tokens, convolved, select, step, value, scan_state, call->next + m->convolution.state_floats);
    ln_parallel(model->context->team, tokens, gate_row, &r);
    const ln_product out = {&m->output, forward->h, model->hyper.width};
    ln_part_multiply(forward, &out, 1, value, tokens);
    *given = forward->h;
    return LINNET_OK;
}

const ln_part_kind ln_mamba_part = {.name = "mamba", .room = find_room, .weigh = weigh, .run = run};
