/* Owns: Mamba-2 as a part of a layer (equation in state_space.h). The stage holds, for T tokens,
 *     z [T, inner], (u, B, C) [T, channels], the same convolved, d [T, heads]
 * and what the recurrence gives has the place of the second. The state is that of the convolution, then that of the
 * recurrence. Numbers that multiply u, B and C are part of the taps: the convolution is linear. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/state_space.h"
#include "model/take.h"

typedef struct mamba2 {
    const ln_state_space *sizes;
    int64_t channels; /* of the convolution */
    ln_matrix gate, mixed, step, output;
    const float *gate_bias, *mixed_bias, *step_in_bias; /* of the projection; NULL: none */
    const float *taps, *taps_bias;                      /* [channels, taps], [channels] */
    const float *step_bias, *rates, *skip;              /* [heads] */
    const float *norm;                                  /* [inner]; NULL: there is none */
    ln_part_mixer convolution, recurrence;
} mamba2;

/* ---- taking ---- */

static linnet_status open_mixers(linnet_model *model, mamba2 *m) {
    const ln_state_space *s = m->sizes;
    linnet_mixer_settings convolution = linnet_mixer_settings_default("short_convolution");
    convolution.heads = 1;
    convolution.key_size = convolution.value_size = m->channels;
    convolution.slots = s->taps;
    convolution.option[0] = 1; /* silu */
    LN_TRY(ln_part_mixer_open(model, &convolution, &m->convolution));
    linnet_mixer_settings recurrence = linnet_mixer_settings_default("ssd");
    recurrence.heads = s->heads;
    recurrence.key_heads = s->groups;
    recurrence.key_size = s->states;
    recurrence.value_size = s->inner / s->heads;
    return ln_part_mixer_open(model, &recurrence, &m->recurrence);
}

/* Vectors with or without an axis of 1 or of groups. */
static linnet_status take_flat(linnet_model *model, int64_t layer, const char *name, int64_t n, bool required,
                               const float **values) {
    const linnet_tensor_info *tensor = ln_take_find(model, layer, name);
    const int64_t columns = tensor && tensor->dimensions == 2 ? tensor->size[0] : n;
    const int64_t rows = columns >= 1 && n % columns == 0 ? n / columns : 1;
    return ln_take_values(model, layer, name, rows, columns, required, values);
}

/* taps[c] *= the scale of channel c */
static linnet_status scale_taps(linnet_model *model, mamba2 *m) {
    const ln_state_space *s = m->sizes;
    if (s->scale[LN_SSM_VALUE] == 1 && s->scale[LN_SSM_KEY] == 1 && s->scale[LN_SSM_QUERY] == 1) return LINNET_OK;
    float *scaled = ln_file_own(model->file, (uint64_t)(m->channels * s->taps), sizeof *scaled, "taps of convolutions");
    if (!scaled) return LINNET_ERROR_MEMORY;
    for (int64_t c = 0; c < m->channels; c++) {
        const int kind = c < s->inner ? LN_SSM_VALUE : c < s->inner + s->groups * s->states ? LN_SSM_KEY : LN_SSM_QUERY;
        for (int64_t k = 0; k < s->taps; k++) scaled[c * s->taps + k] = s->scale[kind] * m->taps[c * s->taps + k];
    }
    m->taps = scaled;
    return LINNET_OK;
}

static linnet_status take_projections(linnet_model *model, int64_t i, mamba2 *m) {
    const ln_state_space *s = m->sizes;
    const int64_t width = model->hyper.width, all = s->inner + m->channels + s->heads;
    const float *bias = NULL;
    LN_TRY(ln_take_rows(model, i, "ssm_in.weight", 0, s->inner, all, width, &m->gate));
    LN_TRY(ln_take_rows(model, i, "ssm_in.weight", s->inner, m->channels, all, width, &m->mixed));
    LN_TRY(ln_take_rows(model, i, "ssm_in.weight", s->inner + m->channels, s->heads, all, width, &m->step));
    LN_TRY(ln_take_vector(model, i, "ssm_in.bias", all, false, &bias));
    if (bias) {
        m->gate_bias = bias;
        m->mixed_bias = bias + s->inner;
        m->step_in_bias = m->mixed_bias + m->channels;
    }
    return ln_take_matrix(model, i, "ssm_out.weight", width, s->inner, &m->output);
}

linnet_status ln_mamba2_take(linnet_model *model, int64_t i, ln_part *part) {
    const ln_state_space *s = model->own;
    if (s->inner % s->heads != 0 || s->heads % s->groups != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: ssm.group_count %lld must divide ssm.time_step_rank %lld, and that ssm.inner_size %lld",
                       model->file->path, (long long)s->groups, (long long)s->heads, (long long)s->inner);
    mamba2 *m = ln_file_own(model->file, 1, sizeof *m, "layers");
    if (!m) return LINNET_ERROR_MEMORY;
    *m = (mamba2){.sizes = s, .channels = s->inner + 2 * s->groups * s->states};
    LN_TRY(take_projections(model, i, m));
    LN_TRY(ln_take_values(model, i, "ssm_conv1d.weight", m->channels, s->taps, true, &m->taps));
    LN_TRY(ln_take_vector(model, i, "ssm_conv1d.bias", m->channels, false, &m->taps_bias));
    LN_TRY(scale_taps(model, m));
    LN_TRY(ln_take_vector(model, i, "ssm_dt.bias", s->heads, true, &m->step_bias));
    LN_TRY(take_flat(model, i, "ssm_a", s->heads, true, &m->rates));
    LN_TRY(take_flat(model, i, "ssm_d", s->heads, true, &m->skip));
    LN_TRY(take_flat(model, i, "ssm_norm.weight", s->inner, false, &m->norm));
    LN_TRY(open_mixers(model, m));
    *part = (ln_part){.kind = &ln_mamba2_part,
                      .weights = m,
                      .layer = i,
                      .state_floats = m->convolution.state_floats + m->recurrence.state_floats,
                      .matrices = {m->convolution.state_floats, s->heads, m->recurrence.state_floats / s->heads}};
    return ln_take_vector(model, i, "ssm_out.bias", model->hyper.width, false, &part->bias);
}

/* ---- room and cost ---- */

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const mamba2 *m = part->weights;
    const int64_t piece = shape->piece;
    ln_room_stage(room, ln_stage(piece, m->sizes->inner) + 2 * ln_stage(piece, m->channels) +
                            ln_stage(piece, m->sizes->heads));
    const ln_matrix *const products[] = {&m->gate, &m->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        ln_room_product(model, shape, products[i], products[i]->columns, room);
    ln_part_mixer_room(model, &m->convolution, shape, room);
    ln_part_mixer_room(model, &m->recurrence, shape, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const mamba2 *m = part->weights;
    const ln_matrix *const products[] = {&m->gate, &m->mixed, &m->step, &m->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) ln_cost_product(model, shape, products[i], cost);
    cost->prepared += (double)(model->hyper.width + m->sizes->inner);
    cost->meetings += 6;
}

/* ---- running ---- */

typedef struct rows {
    const linnet_model *model;
    const mamba2 *mamba;
    float *gate, *mixed, *step, *output;
} rows;

/* What log(1 + e^x) is in float32 from here on. */
static const float LINEAR = 20;

static void prepare_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const mamba2 *m = r->mamba;
    const ln_state_space *s = m->sizes;
    const ln_vector_kernels *vector = &r->model->kernels.vector;
    float *gate = r->gate + token * s->inner, *step = r->step + token * s->heads;
    if (m->gate_bias) {
        vector->add(gate, m->gate_bias, s->inner);
        vector->add(r->mixed + token * m->channels, m->mixed_bias, m->channels);
        vector->add(step, m->step_in_bias, s->heads);
    }
    if (s->scale[LN_SSM_GATE] != 1) vector->scale(gate, s->scale[LN_SSM_GATE], s->inner);
    for (int64_t h = 0; h < s->heads; h++) {
        const float x = s->scale[LN_SSM_STEP] * step[h] + m->step_bias[h];
        const float d = x > LINEAR ? x : log1pf(expf(x));
        step[h] = fminf(fmaxf(d, s->step_least), s->step_most);
    }
}

/* y = norm(y silu(z)) by groups, or norm(y) silu(z) */
static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const mamba2 *m = r->mamba;
    const ln_state_space *s = m->sizes;
    const ln_vector_kernels *vector = &r->model->kernels.vector;
    const int64_t group = s->inner / s->groups;
    float *y = r->output + token * s->inner;
    const float *gate = r->gate + token * s->inner;
    if (!s->norm_first || !m->norm) vector->silu_multiply(y, gate, y, s->inner);
    for (int64_t g = 0; g < s->groups && m->norm; g++)
        vector->rms_norm(y + g * group, y + g * group, m->norm + g * group, group, s->epsilon);
    if (s->norm_first && m->norm) vector->silu_multiply(y, gate, y, s->inner);
}

static void convolve(ln_forward *forward, const mamba2 *m, int64_t tokens, const float *from, float *to,
                     const ln_part_call *call) {
    linnet_mixer_tensors tensors = {.output = {.data = to}};
    ln_part_mixer_give(&m->convolution, &tensors, "value", from, 0, 0);
    ln_part_mixer_give(&m->convolution, &tensors, "weight", m->taps, 0, 0);
    ln_part_mixer_give(&m->convolution, &tensors, "bias", m->taps_bias, 0, 0);
    ln_part_mixer_run(forward, &m->convolution, tokens, &tensors, call->state, call->next);
}

static void recur(ln_forward *forward, const mamba2 *m, int64_t tokens, const float *mixed, const rows *r,
                  const ln_part_call *call) {
    const ln_state_space *s = m->sizes;
    const int64_t at = m->convolution.state_floats;
    linnet_mixer_tensors tensors = {.output = {.data = r->output}};
    ln_part_mixer_give(&m->recurrence, &tensors, "value", mixed, m->channels, s->inner / s->heads);
    ln_part_mixer_give(&m->recurrence, &tensors, "key", mixed + s->inner, m->channels, s->states);
    ln_part_mixer_give(&m->recurrence, &tensors, "query", mixed + s->inner + s->groups * s->states, m->channels,
                       s->states);
    ln_part_mixer_give(&m->recurrence, &tensors, "step_size", r->step, 0, 0);
    ln_part_mixer_give(&m->recurrence, &tensors, "rate", m->rates, 0, 0);
    ln_part_mixer_give(&m->recurrence, &tensors, "skip", m->skip, 0, 0);
    ln_part_mixer_run(forward, &m->recurrence, tokens, &tensors, call->state + at, call->next + at);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const linnet_model *model = forward->model;
    const mamba2 *m = part->weights;
    const ln_state_space *s = m->sizes;
    const int64_t tokens = call->tokens;
    rows r = {.model = model, .mamba = m, .gate = forward->stage};
    r.mixed = r.output = r.gate + ln_stage(tokens, s->inner);
    float *convolved = r.mixed + ln_stage(tokens, m->channels);
    r.step = convolved + ln_stage(tokens, m->channels);
    const ln_product in[] = {
        {&m->gate, r.gate, s->inner}, {&m->mixed, r.mixed, m->channels}, {&m->step, r.step, s->heads}};
    ln_part_multiply(forward, in, 3, forward->h, tokens);
    ln_parallel(model->context->team, tokens, prepare_row, &r);
    convolve(forward, m, tokens, r.mixed, convolved, call);
    recur(forward, m, tokens, convolved, &r, call);
    ln_parallel(model->context->team, tokens, finish_row, &r);
    const ln_product out = {&m->output, forward->h, model->hyper.width};
    ln_part_multiply(forward, &out, 1, r.output, tokens);
    *given = forward->h;
    return LINNET_OK;
}

const ln_part_kind ln_mamba2_part = {.name = "mamba-2", .room = find_room, .weigh = weigh, .run = run};
