/* Linear attention with diagonal decay on a device: what the rows' inputs are to its kernels (linear_cuda.h).
 *
 *     row                   decay                      write        divided by
 *     linear_attention      none                                    with normalise the sum of weights
 *     retention             log(1 - 2^(-5 - head)), of a head
 *     lightning_attention   -slope, of a head
 *     simple_gla            as given, of a token
 *     ssd                   step_size rate             step_size
 *     gla, gla_value        as given, of a channel
 *     mlstm                 made with write and maximum from both gates, kept divided by the maximum
 *     mlstm_sigmoid         as given, of a token       sigmoid      with normalise the sum of weights, at least 1
 *
 * In the workspace behind the kernels' own: what is made of the inputs and, backward, what they are made from (own_at).
 * A normaliser's gradient needs the output: the forward run is made first. */
#include <math.h>

#include "kernel/cuda/gates_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/mixer.h"

static int64_t round_up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static ln_cuda_linear_sum sum_of(const linnet_cuda_mixer *m) {
    if (!m->settings.normalise) return LN_CUDA_SUM_NONE;
    return ln_cuda_mixer_is(m, "mlstm")           ? LN_CUDA_SUM_MAXIMUM
           : ln_cuda_mixer_is(m, "mlstm_sigmoid") ? LN_CUDA_SUM_ONE
                                                  : LN_CUDA_SUM_PLAIN;
}

/* Whether the row has a gate of its input. */
static bool is_written(const linnet_cuda_mixer *m) {
    return ln_cuda_mixer_is(m, "mlstm") || ln_cuda_mixer_is(m, "mlstm_sigmoid") || ln_cuda_mixer_is(m, "ssd");
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
                            .decay = ln_cuda_mixer_is(m, "gla")         ? LN_CUDA_LINEAR_KEY
                                     : ln_cuda_mixer_is(m, "gla_value") ? LN_CUDA_LINEAR_VALUE
                                                                        : LN_CUDA_LINEAR_TOKEN,
                            .tiled_heads = s->tiled_heads,
                            .normalise = sum_of(m),
                            .weighted = is_written(m),
                            .output_float32 = s->output == LINNET_F32};
}

/* ---- the mixer's own part of the workspace ---- */

enum {
    HEAD_DECAYS,
    DECAYS,
    WRITES,
    MAXIMA,
    OFFSETS,
    DECAYS_BACK,
    WRITES_BACK,
    MAXIMA_BACK,
    ENDS,
    OUTPUT,
    FORWARD,
    PARTS
};

static int64_t own_bytes(const linnet_cuda_mixer *m, int part) {
    const linnet_mixer_settings *s = &m->settings;
    const bool mlstm = ln_cuda_mixer_is(m, "mlstm"), back = m->form == LINNET_MIXER_BACKWARD,
               again = back && s->normalise;
    const int64_t gates = s->tokens * s->heads * 4, output = s->output == LINNET_F32 ? 4 : 2;
    switch (part) {
    case HEAD_DECAYS:
        return s->heads * 4;
    case DECAYS:
        return mlstm || ln_cuda_mixer_is(m, "ssd") ? gates : 0;
    case WRITES:
        return is_written(m) ? gates : 0;
    case MAXIMA:
        return mlstm ? gates : 0;
    case OFFSETS:
        return mlstm ? (s->sequences + 1) * 8 : 0;
    case DECAYS_BACK:
    case WRITES_BACK:
        return back ? gates : 0;
    case MAXIMA_BACK:
        return back && mlstm ? gates : 0;
    case ENDS:
        return back && mlstm ? s->sequences * s->heads * 4 : 0;
    case OUTPUT:
        return again ? s->tokens * s->heads * s->value_size * output : 0;
    case FORWARD: /* the forward run's own */
        return again ? m->linear.plan.workspace : 0;
    default:
        return 0;
    }
}

/* Where a part begins, from the workspace's begin; of PARTS: its end. */
static int64_t own_at(const linnet_cuda_mixer *m, int part) {
    int64_t at = m->own;
    for (int p = 0; p < part; p++) at += round_up(own_bytes(m, p));
    return at;
}
static float *own_floats(const linnet_cuda_mixer *m, void *workspace, int part) {
    return (float *)(void *)((char *)workspace + own_at(m, part));
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

static ln_cuda_code prepare_own(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    ln_cuda_code code = LN_CUDA_OK;
    if (ln_cuda_mixer_is(m, "retention"))
        code = ln_cuda_retention_decays(m, own_floats(m, workspace, HEAD_DECAYS), stream);
    if (!ln_cuda_mixer_is(m, "mlstm")) return code;
    code = ln_cuda_copy_to_device(own_floats(m, workspace, OFFSETS), m->offsets,
                                  (uint64_t)(m->settings.sequences + 1) * 8, stream);
    return code ? code : ln_cuda_wait(stream);
}

/* ---- forward ---- */

static ln_cuda_code open_forward(linnet_cuda_mixer *m) {
    m->linear.problem = describe(m);
    const ln_cuda_code code = ln_cuda_linear_plan_make(&m->linear.problem, &m->cuda->device, NULL, 0, &m->linear.plan);
    m->why = m->linear.plan.why;
    m->own = round_up(m->linear.plan.workspace);
    m->workspace = (uint64_t)own_at(m, PARTS);
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
    const ln_cuda_code code = prepare_tasks(m, workspace, stream);
    return code ? code : prepare_own(m, workspace, stream);
}

/* Decay, write and maximum of the row. */
static ln_cuda_code make_gates(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                               ln_cuda_linear_tensors *to, void *stream) {
    const linnet_mixer_settings *s = &m->settings;
    const ln_cuda_linear *l = &m->linear.problem;
    float *of_heads = own_floats(m, workspace, HEAD_DECAYS), *decays = own_floats(m, workspace, DECAYS),
          *writes = own_floats(m, workspace, WRITES), *maxima = own_floats(m, workspace, MAXIMA);
    const ln_cuda_gate heads = {of_heads, 0, 1};
    if (l->decay != LN_CUDA_LINEAR_TOKEN)
        to->decay = ln_cuda_mixer_input(m, t, "decay");
    else
        to->token_decay = ln_cuda_mixer_gate(m, t, "decay");
    if (ln_cuda_mixer_is(m, "retention")) to->token_decay = heads;
    if (ln_cuda_mixer_is(m, "lightning_attention")) {
        const ln_cuda_gate slope = ln_cuda_mixer_gate(m, t, "slope");
        to->token_decay = heads;
        return ln_cuda_gate_product(1, s->heads, (ln_cuda_gate){0}, slope.data, slope.head_stride, -1, of_heads,
                                    stream);
    }
    if (ln_cuda_mixer_is(m, "ssd")) {
        const ln_cuda_gate rate = ln_cuda_mixer_gate(m, t, "rate");
        to->write = ln_cuda_mixer_gate(m, t, "step_size");
        to->token_decay = (ln_cuda_gate){decays, s->heads, 1};
        to->skip = ln_cuda_mixer_gate(m, t, "skip").data;
        return ln_cuda_gate_product(s->tokens, s->heads, to->write, rate.data, rate.head_stride, 1, decays, stream);
    }
    const ln_cuda_gate input = ln_cuda_mixer_gate(m, t, "input_gate");
    if (input.data) to->write = (ln_cuda_gate){writes, s->heads, 1};
    if (ln_cuda_mixer_is(m, "mlstm_sigmoid")) return ln_cuda_gate_sigmoid(s->tokens, s->heads, input, writes, stream);
    if (!ln_cuda_mixer_is(m, "mlstm")) return LN_CUDA_OK;
    to->token_decay = (ln_cuda_gate){decays, s->heads, 1};
    to->maximum = (ln_cuda_gate){maxima, s->heads, 1};
    return ln_cuda_mlstm_gates(l, (const int64_t *)(const void *)own_floats(m, workspace, OFFSETS), input,
                               ln_cuda_mixer_gate(m, t, "decay"), decays, writes, maxima, t->state_in,
                               m->form == LINNET_MIXER_BACKWARD ? NULL : t->state_out, t->state_slots, stream);
}

static ln_cuda_linear_tensors places(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    return (ln_cuda_linear_tensors){.query = ln_cuda_mixer_input(m, t, "query"),
                                    .key = ln_cuda_mixer_input(m, t, "key"),
                                    .value = ln_cuda_mixer_input(m, t, "value"),
                                    .output = ln_cuda_tensor_of(t->output),
                                    .state_in = t->state_in,
                                    .state_out = t->state_out,
                                    .state_slots = t->state_slots};
}

static ln_cuda_code run_forward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                void *stream) {
    if (!ln_cuda_mixer_dense(m, t, "skip")) return LN_CUDA_ARGUMENT;
    ln_cuda_linear_tensors to = places(m, t);
    const ln_cuda_code code = make_gates(m, t, workspace, &to, stream);
    return code ? code : ln_cuda_linear_forward(&m->linear.problem, &m->linear.plan, &to, workspace, stream);
}

static const char *const rows[] = {"linear_attention", "retention", "lightning_attention", "simple_gla", "ssd", "gla",
                                   "gla_value",        "mlstm",     "mlstm_sigmoid",       NULL};
const ln_cuda_way ln_cuda_linear_way = {rows, LINNET_MIXER_FORWARD, open_forward, prepare_forward, run_forward};

/* ---- backward ---- */

static ln_cuda_code open_backward(linnet_cuda_mixer *m) {
    m->linear.problem = describe(m);
    ln_cuda_code code = ln_cuda_linear_gradient_plan_make(&m->linear.problem, &m->cuda->device, 0, &m->linear.backward);
    m->why = m->linear.backward.why;
    if (!code && m->settings.normalise) {
        code = ln_cuda_linear_plan_make(&m->linear.problem, &m->cuda->device, NULL, 0, &m->linear.plan);
        if (code) m->why = m->linear.plan.why;
    }
    m->own = round_up(m->linear.backward.workspace);
    m->workspace = (uint64_t)own_at(m, PARTS);
    return code;
}

static ln_cuda_code prepare_backward(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    ln_cuda_code code = ln_cuda_linear_gradient_prepare(&m->linear.backward, workspace, stream);
    if (!code && m->settings.normalise) code = prepare_tasks(m, own_floats(m, workspace, FORWARD), stream);
    return code ? code : prepare_own(m, workspace, stream);
}

/* Of what the kernels took for decay and write to what was given. */
static ln_cuda_code gates_back(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t,
                               const ln_cuda_linear_gradients *made, void *workspace, void *stream) {
    const int64_t tokens = m->settings.tokens, heads = m->settings.heads;
    const float *decays = made->token_decay, *writes = made->write;
    const ln_cuda_tensor decay = ln_cuda_mixer_gradient(m, t, "decay"), slope = ln_cuda_mixer_gradient(m, t, "slope"),
                         rate = ln_cuda_mixer_gradient(m, t, "rate"), size = ln_cuda_mixer_gradient(m, t, "step_size"),
                         input = ln_cuda_mixer_gradient(m, t, "input_gate");
    const ln_cuda_gate rates = ln_cuda_mixer_gate(m, t, "rate"), sizes = ln_cuda_mixer_gate(m, t, "step_size");
    ln_cuda_code code = LN_CUDA_OK;
    if (ln_cuda_mixer_is(m, "mlstm")) {
        float *back[2] = {made->token_decay, made->write}; /* each gate's gradients take the place of what made them */
        code = ln_cuda_mlstm_gates_backward(
            &m->linear.problem, (const int64_t *)(const void *)own_floats(m, workspace, OFFSETS),
            ln_cuda_mixer_gate(m, t, "input_gate"), ln_cuda_mixer_gate(m, t, "decay"), own_floats(m, workspace, WRITES),
            own_floats(m, workspace, MAXIMA), t->state_in, decays, writes, made->maximum, made->ends,
            t->state_out_gradient, back[1], back[0], t->state_in_gradient, t->state_slots, stream);
        if (!code && input.data) code = ln_cuda_gate_add(tokens, heads, NULL, NULL, 0, back[1], input, stream);
    } else if (input.data) {
        code = ln_cuda_gate_sigmoid_back(tokens, heads, own_floats(m, workspace, WRITES), writes, input, stream);
    }
    if (!code && decay.data && decays) code = ln_cuda_gate_add(tokens, heads, NULL, NULL, 0, decays, decay, stream);
    if (!code && slope.data)
        code = ln_cuda_gate_sum(tokens, heads, (ln_cuda_gate){0}, decays, -1, slope.data, slope.head_stride, stream);
    if (!code && rate.data)
        code = ln_cuda_gate_sum(tokens, heads, sizes, decays, 1, rate.data, rate.head_stride, stream);
    if (!code && size.data)
        code = ln_cuda_gate_add(tokens, heads, writes, rates.data, rates.head_stride, decays, size, stream);
    return code;
}

static ln_cuda_code run_backward(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                 void *stream) {
    const ln_cuda_linear *l = &m->linear.problem;
    if (!ln_cuda_mixer_dense(m, t, "skip")) return LN_CUDA_ARGUMENT;
    const bool channels = l->decay != LN_CUDA_LINEAR_TOKEN, mlstm = l->normalise == LN_CUDA_SUM_MAXIMUM;
    const bool decays = !channels && !ln_cuda_mixer_is(m, "retention") && !ln_cuda_mixer_is(m, "linear_attention"),
               writes = is_written(m);
    ln_cuda_linear_tensors to = places(m, t);
    to.state_out = NULL;
    to.output = (ln_cuda_tensor){0};
    ln_cuda_code code = make_gates(m, t, workspace, &to, stream);
    if (l->normalise) {
        to.output = (ln_cuda_tensor){own_floats(m, workspace, OUTPUT), l->heads * l->value_size, l->value_size};
        if (!code) code = ln_cuda_linear_forward(l, &m->linear.plan, &to, own_floats(m, workspace, FORWARD), stream);
    }
    const ln_cuda_linear_gradients gradients = {
        .output = ln_cuda_tensor_of(t->output_gradient),
        .state_out = t->state_out_gradient,
        .query = ln_cuda_mixer_gradient(m, t, "query"),
        .key = ln_cuda_mixer_gradient(m, t, "key"),
        .value = ln_cuda_mixer_gradient(m, t, "value"),
        .decay = channels ? ln_cuda_mixer_gradient(m, t, "decay") : (ln_cuda_tensor){0},
        .token_decay = decays ? own_floats(m, workspace, DECAYS_BACK) : NULL,
        .write = writes ? own_floats(m, workspace, WRITES_BACK) : NULL,
        .maximum = mlstm ? own_floats(m, workspace, MAXIMA_BACK) : NULL,
        .ends = mlstm && t->state_out_gradient ? own_floats(m, workspace, ENDS) : NULL,
        .skip = ln_cuda_mixer_gradient(m, t, "skip").data,
        .state_in = t->state_in_gradient};
    if (!code) code = ln_cuda_linear_backward(l, &m->linear.backward, &to, &gradients, workspace, stream);
    return code || channels ? code : gates_back(m, t, &gradients, workspace, stream);
}

const ln_cuda_way ln_cuda_linear_backward_way = {rows, LINNET_MIXER_BACKWARD, open_backward, prepare_backward,
                                                 run_backward};
