/* Linear attention with diagonal decay on a device: what the rows' inputs are to its kernels (linear_cuda.h).
 *
 *     row                   decay                      write        normaliser
 *     linear_attention      none
 *     retention             log(1 - 2^(-5 - head)), of a head
 *     lightning_attention   -slope, of a head
 *     simple_gla            as given, of a token
 *     ssd                   step_size rate             step_size
 *     gla                   as given, of a key channel
 *     mlstm                 made with write and maximum from both gates, kept divided by the maximum
 *
 * In the workspace behind the kernels' own: gates, and of mlstm the offsets. */
#include <math.h>

#include "kernel/cuda/gates_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/mixer.h"

static int64_t round_up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static ln_cuda_linear describe(const linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    return (ln_cuda_linear){.heads = s->heads,
                            .key_heads = s->key_heads,
                            .key_size = s->key_size,
                            .value_size = s->value_size,
                            .sequences = s->sequences,
                            .offsets = m->offsets,
                            .scale = s->scale,
                            .decay = ln_cuda_mixer_is(m, "gla") ? LN_CUDA_LINEAR_KEY : LN_CUDA_LINEAR_TOKEN,
                            .tiled_heads = s->tiled_heads,
                            .normalise = ln_cuda_mixer_is(m, "mlstm"),
                            .output_float32 = s->output == LINNET_F32};
}

/* Bytes of one gate of every token and head. */
static int64_t gate_bytes(const linnet_cuda_mixer *m) {
    return round_up(m->settings.tokens * m->settings.heads * 4);
}

static ln_cuda_code open_forward(linnet_cuda_mixer *m) {
    m->linear.problem = describe(m);
    const ln_cuda_code code = ln_cuda_linear_plan_make(&m->linear.problem, &m->cuda->device, NULL, 0, &m->linear.plan);
    m->why = m->linear.plan.why;
    m->own = round_up(m->linear.plan.workspace);
    int64_t bytes = m->own + round_up(m->settings.heads * 4);
    if (ln_cuda_mixer_is(m, "ssd")) bytes += gate_bytes(m);
    if (ln_cuda_mixer_is(m, "mlstm")) bytes += 3 * gate_bytes(m) + round_up((m->settings.sequences + 1) * 8);
    m->workspace = (uint64_t)bytes;
    return code;
}

ln_cuda_code ln_cuda_retention_decays(const linnet_cuda_mixer *m, void *to, void *stream) {
    linnet_context *context = m->cuda->context;
    float *decay = ln_allocate(context, (uint64_t)m->settings.heads, sizeof *decay, "decays");
    if (!decay) return LN_CUDA_OUT_OF_MEMORY;
    for (int64_t h = 0; h < m->settings.heads; h++) decay[h] = (float)log1p(-exp2(-5 - (double)h));
    ln_cuda_code code = ln_cuda_copy_to_device(to, decay, (uint64_t)m->settings.heads * 4, stream);
    if (!code) code = ln_cuda_wait(stream);
    ln_release(context, decay);
    return code;
}

static ln_cuda_code prepare_tasks(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    const ln_cuda_linear_plan *plan = &m->linear.plan;
    ln_cuda_linear_task *tasks = ln_allocate(m->cuda->context, (uint64_t)(plan->first_tasks + plan->tasks) + 1,
                                             sizeof *tasks, "tasks of a mixer");
    if (!tasks) return LN_CUDA_OUT_OF_MEMORY;
    ln_cuda_linear_tasks(&m->linear.problem, plan, tasks);
    const ln_cuda_code code = ln_cuda_linear_prepare(&m->linear.problem, plan, tasks, workspace, stream);
    ln_release(m->cuda->context, tasks);
    return code;
}

static ln_cuda_code prepare_forward(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    char *own = (char *)workspace + m->own;
    ln_cuda_code code = prepare_tasks(m, workspace, stream);
    if (!code && ln_cuda_mixer_is(m, "retention")) code = ln_cuda_retention_decays(m, own, stream);
    if (!code && ln_cuda_mixer_is(m, "mlstm")) {
        code = ln_cuda_copy_to_device(own + round_up(m->settings.heads * 4) + 3 * gate_bytes(m), m->offsets,
                                      (uint64_t)(m->settings.sequences + 1) * 8, stream);
        if (!code) code = ln_cuda_wait(stream);
    }
    return code;
}

/* Decay, write and maximum of the row. */
static ln_cuda_code make_gates(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, char *own,
                               ln_cuda_linear_tensors *to, void *stream) {
    const linnet_mixer_settings *s = &m->settings;
    float *of_heads = (float *)(void *)own, *gates = (float *)(void *)(own + round_up(s->heads * 4));
    const int64_t each = gate_bytes(m) / 4;
    const ln_cuda_gate heads = {of_heads, 0, 1};
    if (ln_cuda_mixer_is(m, "gla")) {
        to->decay = ln_cuda_mixer_input(m, t, "decay");
    } else if (ln_cuda_mixer_is(m, "simple_gla")) {
        to->token_decay = ln_cuda_mixer_gate(m, t, "decay");
    } else if (ln_cuda_mixer_is(m, "retention")) {
        to->token_decay = heads;
    } else if (ln_cuda_mixer_is(m, "lightning_attention")) {
        const ln_cuda_gate slope = ln_cuda_mixer_gate(m, t, "slope");
        to->token_decay = heads;
        return ln_cuda_gate_product(1, s->heads, (ln_cuda_gate){0}, slope.data, slope.head_stride, -1, of_heads,
                                    stream);
    } else if (ln_cuda_mixer_is(m, "ssd")) {
        const ln_cuda_gate rate = ln_cuda_mixer_gate(m, t, "rate");
        to->write = ln_cuda_mixer_gate(m, t, "step_size");
        to->token_decay = (ln_cuda_gate){gates, s->heads, 1};
        to->skip = ln_cuda_mixer_gate(m, t, "skip").data;
        return ln_cuda_gate_product(s->tokens, s->heads, to->write, rate.data, rate.head_stride, 1, gates, stream);
    } else if (ln_cuda_mixer_is(m, "mlstm")) {
        to->token_decay = (ln_cuda_gate){gates, s->heads, 1};
        to->write = (ln_cuda_gate){gates + each, s->heads, 1};
        to->maximum = (ln_cuda_gate){gates + 2 * each, s->heads, 1};
        return ln_cuda_mlstm_gates(&m->linear.problem, (const int64_t *)(const void *)(gates + 3 * each),
                                   ln_cuda_mixer_gate(m, t, "input_gate"), ln_cuda_mixer_gate(m, t, "decay"), gates,
                                   gates + each, gates + 2 * each, t->state_in, t->state_out, stream);
    }
    return LN_CUDA_OK;
}

static ln_cuda_linear_tensors places(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return (ln_cuda_linear_tensors){.query = ln_cuda_mixer_input(m, t, "query"),
                                    .key = ln_cuda_mixer_input(m, t, "key"),
                                    .value = ln_cuda_mixer_input(m, t, "value"),
                                    .output = ln_cuda_tensor_of(t->output),
                                    .state_in = t->state_in,
                                    .state_out = t->state_out};
}

static ln_cuda_code run_forward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                void *stream) {
    if (t->state_slots || !ln_cuda_mixer_dense(m, t, "skip")) return LN_CUDA_ARGUMENT;
    ln_cuda_linear_tensors to = places(m, t);
    const ln_cuda_code code = make_gates(m, t, (char *)workspace + m->own, &to, stream);
    return code ? code : ln_cuda_linear_forward(&m->linear.problem, &m->linear.plan, &to, workspace, stream);
}

static const char *const forward_rows[] = {
    "linear_attention", "retention", "lightning_attention", "simple_gla", "ssd", "gla", "mlstm", NULL};
const ln_cuda_way ln_cuda_linear_way = {forward_rows, LINNET_MIXER_FORWARD, open_forward, prepare_forward, run_forward};

/* ---- backward ---- */

static ln_cuda_code open_backward(linnet_cuda_mixer *m) {
    m->linear.problem = describe(m);
    const ln_cuda_code code =
        ln_cuda_linear_gradient_plan_make(&m->linear.problem, &m->cuda->device, 0, &m->linear.backward);
    m->why = m->linear.backward.why;
    m->workspace = (uint64_t)m->linear.backward.workspace;
    return code;
}

static ln_cuda_code prepare_backward(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_linear_gradient_prepare(&m->linear.backward, workspace, stream);
}

static ln_cuda_code run_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                 void *stream) {
    if (t->state_slots) return LN_CUDA_ARGUMENT;
    const bool keys = ln_cuda_mixer_is(m, "gla");
    ln_cuda_linear_tensors to = places(m, t);
    to.decay = keys ? ln_cuda_mixer_input(m, t, "decay") : (ln_cuda_tensor){0};
    to.token_decay = keys ? (ln_cuda_gate){0} : ln_cuda_mixer_gate(m, t, "decay");
    const ln_cuda_tensor decay = ln_cuda_mixer_gradient(m, t, "decay");
    if (!keys && decay.data && (decay.head_stride != 1 || decay.token_stride != m->settings.heads))
        return LN_CUDA_ARGUMENT;
    const ln_cuda_linear_gradients gradients = {.output = ln_cuda_tensor_of(t->output_gradient),
                                                .state_out = t->state_out_gradient,
                                                .query = ln_cuda_mixer_gradient(m, t, "query"),
                                                .key = ln_cuda_mixer_gradient(m, t, "key"),
                                                .value = ln_cuda_mixer_gradient(m, t, "value"),
                                                .decay = keys ? decay : (ln_cuda_tensor){0},
                                                .token_decay = keys ? NULL : decay.data,
                                                .state_in = t->state_in_gradient};
    return ln_cuda_linear_backward(&m->linear.problem, &m->linear.backward, &to, &gradients, workspace, stream);
}

static const char *const backward_rows[] = {"linear_attention", "simple_gla", "gla", NULL};
const ln_cuda_way ln_cuda_linear_backward_way = {backward_rows, LINNET_MIXER_BACKWARD, open_backward, prepare_backward,
                                                 run_backward};
