/* Delta rules and diagonal plus low rank on a device. */
#include "mixer/cuda/mixer.h"

static ln_cuda_delta describe(const linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    return (ln_cuda_delta){.heads = s->heads,
                           .key_heads = s->key_heads,
                           .tiled_heads = s->tiled_heads,
                           .key_size = s->key_size,
                           .value_size = s->value_size,
                           .sequences = s->sequences,
                           .offsets = m->offsets,
                           .scale = s->scale,
                           .decay = ln_cuda_mixer_is(m, "kda")          ? LN_CUDA_DECAY_KEY
                                    : ln_cuda_mixer_is(m, "delta_rule") ? LN_CUDA_DECAY_NONE
                                                                        : LN_CUDA_DECAY_HEAD,
                           .normalise_keys = s->normalise_keys,
                           .output_float32 = s->output == LINNET_F32};
}

/* Gates without gaps, which the kernels read as they are. */
static bool gates_right(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return ln_cuda_mixer_dense(m, t, "beta") && ln_cuda_mixer_dense(m, t, "decay");
}

static ln_cuda_code open_forward(linnet_cuda_mixer *m) {
    m->delta.problem = describe(m);
    const ln_cuda_code code = ln_cuda_delta_plan_make(&m->delta.problem, &m->cuda->device, NULL, &m->delta.plan);
    m->why = m->delta.plan.why;
    m->workspace = (uint64_t)m->delta.plan.workspace;
    return code;
}

static ln_cuda_code prepare_forward(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_delta_prepare(&m->delta.problem, &m->delta.plan, workspace, stream);
}

static ln_cuda_code run_forward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                void *stream) {
    if (!gates_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_delta_tensors to = {.query = ln_cuda_mixer_input(m, t, "query"),
                                      .key = ln_cuda_mixer_input(m, t, "key"),
                                      .value = ln_cuda_mixer_input(m, t, "value"),
                                      .beta = ln_cuda_mixer_input(m, t, "beta").data,
                                      .decay = ln_cuda_mixer_input(m, t, "decay").data,
                                      .output = ln_cuda_tensor_of(t->output),
                                      .state_in = t->state_in,
                                      .state_out = t->state_out,
                                      .state_slots = t->state_slots};
    return ln_cuda_delta_forward(&m->delta.problem, &m->delta.plan, &to, workspace, stream);
}

static const char *const rows[] = {"delta_rule", "gated_delta_rule", "kda", NULL};
const ln_cuda_way ln_cuda_delta_way = {rows, LINNET_MIXER_FORWARD, open_forward, prepare_forward, run_forward};

/* ---- backward ---- */

static ln_cuda_code open_backward(linnet_cuda_mixer *m) {
    m->delta.gradients =
        (ln_cuda_delta_backward){.forward = describe(m), .gradients_bf16 = m->settings.output == LINNET_BF16};
    const ln_cuda_code code =
        ln_cuda_delta_backward_plan_make(&m->delta.gradients, &m->cuda->device, NULL, &m->delta.backward);
    m->why = m->delta.backward.why;
    m->workspace = (uint64_t)m->delta.backward.workspace;
    return code;
}

static ln_cuda_code prepare_backward(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_delta_backward_prepare(&m->delta.gradients, &m->delta.backward, workspace, stream);
}

static ln_cuda_code run_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                 void *stream) {
    if (!gates_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_delta_backward_tensors to = {.query = ln_cuda_mixer_input(m, t, "query"),
                                               .key = ln_cuda_mixer_input(m, t, "key"),
                                               .value = ln_cuda_mixer_input(m, t, "value"),
                                               .beta = ln_cuda_mixer_input(m, t, "beta").data,
                                               .decay = ln_cuda_mixer_input(m, t, "decay").data,
                                               .state_in = t->state_in,
                                               .state_slots = t->state_slots,
                                               .output_gradient = ln_cuda_tensor_of(t->output_gradient),
                                               .state_out_gradient = t->state_out_gradient,
                                               .query_gradient = ln_cuda_mixer_gradient(m, t, "query"),
                                               .key_gradient = ln_cuda_mixer_gradient(m, t, "key"),
                                               .value_gradient = ln_cuda_mixer_gradient(m, t, "value"),
                                               .beta_gradient = ln_cuda_mixer_gradient(m, t, "beta").data,
                                               .decay_gradient = ln_cuda_mixer_gradient(m, t, "decay").data,
                                               .state_in_gradient = t->state_in_gradient};
    return ln_cuda_delta_backward_run(&m->delta.gradients, &m->delta.backward, &to, workspace, stream);
}

const ln_cuda_way ln_cuda_delta_backward_way = {rows, LINNET_MIXER_BACKWARD, open_backward, prepare_backward,
                                                run_backward};

/* ---- diagonal plus low rank ---- */

static ln_cuda_code open_dplr(linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    if (s->tiled_heads || s->normalise_keys) {
        m->why = "the kernels of diagonal plus low rank have neither tiled_heads nor normalise_keys";
        return LN_CUDA_UNSUPPORTED;
    }
    m->dplr.problem = (ln_cuda_dplr){.heads = s->heads,
                                     .key_heads = s->key_heads,
                                     .key_size = s->key_size,
                                     .value_size = s->value_size,
                                     .sequences = s->sequences,
                                     .offsets = m->offsets,
                                     .scale = s->scale,
                                     .output_float32 = s->output == LINNET_F32};
    const ln_cuda_code code = ln_cuda_dplr_plan_make(&m->dplr.problem, &m->cuda->device, NULL, 0, &m->dplr.plan);
    m->why = m->dplr.plan.why;
    m->workspace =
        (uint64_t)(m->form == LINNET_MIXER_BACKWARD ? m->dplr.plan.gradient_workspace : m->dplr.plan.workspace);
    return code ? code : ln_cuda_mixer_gradients_short(m);
}

static ln_cuda_code prepare_dplr(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_dplr_prepare(&m->dplr.problem, &m->dplr.plan, workspace, stream);
}

static ln_cuda_dplr_tensors dplr_places(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return (ln_cuda_dplr_tensors){.query = ln_cuda_mixer_input(m, t, "query"),
                                  .key = ln_cuda_mixer_input(m, t, "key"),
                                  .value = ln_cuda_mixer_input(m, t, "value"),
                                  .a = ln_cuda_mixer_input(m, t, "a"),
                                  .b = ln_cuda_mixer_input(m, t, "b"),
                                  .decay = ln_cuda_mixer_input(m, t, "decay"),
                                  .output = ln_cuda_tensor_of(t->output),
                                  .state_in = t->state_in,
                                  .state_out = t->state_out,
                                  .state_slots = t->state_slots};
}

static ln_cuda_code run_dplr(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace, void *stream) {
    const ln_cuda_dplr_tensors to = dplr_places(m, t);
    return ln_cuda_dplr_forward(&m->dplr.problem, &m->dplr.plan, &to, workspace, stream);
}

static ln_cuda_code run_dplr_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                      void *stream) {
    const ln_cuda_dplr_tensors to = dplr_places(m, t);
    const ln_cuda_dplr_gradients gradients = {.output = ln_cuda_tensor_of(t->output_gradient),
                                              .query = ln_cuda_mixer_gradient(m, t, "query"),
                                              .key = ln_cuda_mixer_gradient(m, t, "key"),
                                              .value = ln_cuda_mixer_gradient(m, t, "value"),
                                              .a = ln_cuda_mixer_gradient(m, t, "a"),
                                              .b = ln_cuda_mixer_gradient(m, t, "b"),
                                              .decay = ln_cuda_mixer_gradient(m, t, "decay"),
                                              .state_out = t->state_out_gradient,
                                              .state_in = t->state_in_gradient};
    return ln_cuda_dplr_backward(&m->dplr.problem, &m->dplr.plan, &to, &gradients, workspace, stream);
}

static const char *const dplr_rows[] = {"dplr", "rwkv7", NULL};
const ln_cuda_way ln_cuda_dplr_way = {dplr_rows, LINNET_MIXER_FORWARD, open_dplr, prepare_dplr, run_dplr},
                  ln_cuda_dplr_backward_way = {dplr_rows, LINNET_MIXER_BACKWARD, open_dplr, prepare_dplr,
                                               run_dplr_backward};
