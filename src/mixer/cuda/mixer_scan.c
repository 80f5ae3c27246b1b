/* The selective scan and the short convolution on a device. Their step is the same call on sequences of one token. */
#include "mixer/cuda/mixer.h"

static ln_cuda_code open_scan(linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    m->scan.problem = (ln_cuda_scan){.heads = s->heads,
                                     .key_heads = s->key_heads,
                                     .value_size = s->value_size,
                                     .slots = s->slots,
                                     .sequences = s->sequences,
                                     .offsets = m->offsets,
                                     .softplus = s->option[0] == 1,
                                     .output_float32 = s->output == LINNET_F32};
    const ln_cuda_code code = ln_cuda_scan_plan_make(&m->scan.problem, &m->cuda->device, NULL, &m->scan.plan);
    m->why = m->scan.plan.why;
    m->workspace =
        (uint64_t)(m->form == LINNET_MIXER_BACKWARD ? m->scan.plan.gradient_workspace : m->scan.plan.workspace);
    if (m->form == LINNET_MIXER_BACKWARD && s->slots % 16) {
        m->why = "gradients are made for multiples of 16 slots";
        return LN_CUDA_UNSUPPORTED;
    }
    return code ? code : ln_cuda_mixer_gradients_short(m);
}

static ln_cuda_code prepare_scan(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_scan_prepare(&m->scan.problem, &m->scan.plan, workspace, stream);
}

static ln_cuda_scan_tensors scan_places(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return (ln_cuda_scan_tensors){.value = ln_cuda_mixer_input(m, t, "value"),
                                  .key = ln_cuda_mixer_input(m, t, "key"),
                                  .query = ln_cuda_mixer_input(m, t, "query"),
                                  .step = ln_cuda_mixer_input(m, t, "step"),
                                  .rate = ln_cuda_mixer_input(m, t, "rate").data,
                                  .skip = ln_cuda_mixer_input(m, t, "skip").data,
                                  .output = ln_cuda_tensor_of(t->output),
                                  .state_in = t->state_in,
                                  .state_out = t->state_out,
                                  .state_slots = t->state_slots};
}

static bool rates_right(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return ln_cuda_mixer_dense(m, t, "rate") && ln_cuda_mixer_dense(m, t, "skip");
}

static ln_cuda_code run_scan(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace, void *stream) {
    if (!rates_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_scan_tensors to = scan_places(m, t);
    return ln_cuda_scan_forward(&m->scan.problem, &m->scan.plan, &to, workspace, stream);
}

static ln_cuda_code run_scan_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                      void *stream) {
    if (!rates_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_scan_tensors to = scan_places(m, t);
    const ln_cuda_scan_gradients gradients = {.output = ln_cuda_tensor_of(t->output_gradient),
                                              .value = ln_cuda_mixer_gradient(m, t, "value"),
                                              .key = ln_cuda_mixer_gradient(m, t, "key"),
                                              .query = ln_cuda_mixer_gradient(m, t, "query"),
                                              .step = ln_cuda_mixer_gradient(m, t, "step"),
                                              .rate = ln_cuda_mixer_gradient(m, t, "rate").data,
                                              .skip = ln_cuda_mixer_gradient(m, t, "skip").data,
                                              .state_out = t->state_out_gradient,
                                              .state_in = t->state_in_gradient};
    return ln_cuda_scan_backward(&m->scan.problem, &m->scan.plan, &to, &gradients, workspace, stream);
}

static const char *const scan_rows[] = {"selective_scan", NULL};
const ln_cuda_way ln_cuda_scan_way = {scan_rows, LINNET_MIXER_FORWARD, open_scan, prepare_scan, run_scan},
                  ln_cuda_scan_step_way = {scan_rows, LINNET_MIXER_STEP, open_scan, prepare_scan, run_scan},
                  ln_cuda_scan_backward_way = {scan_rows, LINNET_MIXER_BACKWARD, open_scan, prepare_scan,
                                               run_scan_backward};

/* ---- short convolution ---- */

static ln_cuda_code open_convolution(linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    m->convolution.problem = (ln_cuda_short_convolution){.heads = s->heads,
                                                         .value_size = s->value_size,
                                                         .taps = s->slots,
                                                         .sequences = s->sequences,
                                                         .offsets = m->offsets,
                                                         .silu = s->option[0] == 1,
                                                         .output_float32 = s->output == LINNET_F32};
    const ln_cuda_code code =
        ln_cuda_short_convolution_plan_make(&m->convolution.problem, &m->cuda->device, &m->convolution.plan);
    m->why = m->convolution.plan.why;
    m->workspace = (uint64_t)(m->form == LINNET_MIXER_BACKWARD ? m->convolution.plan.gradient_workspace
                                                               : m->convolution.plan.workspace);
    return code ? code : ln_cuda_mixer_gradients_short(m);
}

static ln_cuda_code prepare_convolution(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_short_convolution_prepare(&m->convolution.problem, &m->convolution.plan,
                                             m->form == LINNET_MIXER_BACKWARD, workspace, stream);
}

static ln_cuda_short_convolution_tensors places(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return (ln_cuda_short_convolution_tensors){.value = ln_cuda_mixer_input(m, t, "value"),
                                               .weight = ln_cuda_mixer_input(m, t, "weight").data,
                                               .bias = ln_cuda_mixer_input(m, t, "bias").data,
                                               .output = ln_cuda_tensor_of(t->output),
                                               .state_in = t->state_in,
                                               .state_out = t->state_out,
                                               .state_slots = t->state_slots};
}

static bool parameters_right(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return ln_cuda_mixer_dense(m, t, "weight") && ln_cuda_mixer_dense(m, t, "bias");
}

static ln_cuda_code run_convolution(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                    void *stream) {
    if (!parameters_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_short_convolution_tensors to = places(m, t);
    return ln_cuda_short_convolution_forward(&m->convolution.problem, &m->convolution.plan, &to, workspace, stream);
}

static ln_cuda_code run_convolution_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                             void *stream) {
    if (!parameters_right(m, t)) return LN_CUDA_ARGUMENT;
    const ln_cuda_short_convolution_tensors to = places(m, t);
    const ln_cuda_short_convolution_gradients gradients = {.output = ln_cuda_tensor_of(t->output_gradient),
                                                           .value = ln_cuda_mixer_gradient(m, t, "value"),
                                                           .weight = ln_cuda_mixer_gradient(m, t, "weight").data,
                                                           .bias = ln_cuda_mixer_gradient(m, t, "bias").data,
                                                           .state_out = t->state_out_gradient,
                                                           .state_in = t->state_in_gradient};
    return ln_cuda_short_convolution_backward(&m->convolution.problem, &m->convolution.plan, &to, &gradients, workspace,
                                              stream);
}

static const char *const convolution_rows[] = {"short_convolution", NULL};
const ln_cuda_way ln_cuda_convolution_way = {convolution_rows, LINNET_MIXER_FORWARD, open_convolution,
                                             prepare_convolution, run_convolution},
                  ln_cuda_convolution_step_way = {convolution_rows, LINNET_MIXER_STEP, open_convolution,
                                                  prepare_convolution, run_convolution},
                  ln_cuda_convolution_backward_way = {convolution_rows, LINNET_MIXER_BACKWARD, open_convolution,
                                                      prepare_convolution, run_convolution_backward};
