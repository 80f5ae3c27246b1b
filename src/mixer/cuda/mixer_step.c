/* One token of each sequence on a device, for the rows whose state is a matrix (step_cuda.h). Rows with a constant
 * decay are simple_gla with that decay for every token; where it is made here, it lies in the workspace. */
#include <math.h>
#include <string.h>

#include "kernel/cuda/gates_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/mixer.h"

static ln_cuda_step_rule rule_of(const linnet_cuda_mixer *m) {
    if (ln_cuda_mixer_is(m, "rwkv7")) return LN_CUDA_STEP_DPLR;
    for (int rule = 0; rule < LN_CUDA_STEP_RULES; rule++)
        if (ln_cuda_mixer_is(m, ln_cuda_step_rules[rule].name)) return (ln_cuda_step_rule)rule;
    return LN_CUDA_STEP_SIMPLE_GLA;
}

static ln_cuda_code open_step(linnet_cuda_mixer *m) {
    const linnet_mixer_settings *s = &m->settings;
    m->step.problem = (ln_cuda_step){.rule = rule_of(m),
                                     .sequences = s->sequences,
                                     .heads = s->heads,
                                     .key_heads = s->key_heads,
                                     .tiled_heads = s->tiled_heads,
                                     .key_size = s->key_size,
                                     .value_size = s->value_size,
                                     .scale = s->scale,
                                     .normalise = s->normalise && !ln_cuda_mixer_is(m, "mlstm"),
                                     .normalise_keys = s->normalise_keys,
                                     .output_float32 = s->output == LINNET_F32};
    const ln_cuda_code code = ln_cuda_step_plan_make(&m->step.problem, &m->cuda->device, NULL, &m->step.plan);
    m->why = m->step.plan.why;
    m->workspace = (uint64_t)(s->heads * 4 + 255) / 256 * 256;
    return code;
}

static ln_cuda_code prepare_step(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    return ln_cuda_mixer_is(m, "retention") ? ln_cuda_retention_decays(m, workspace, stream) : LN_CUDA_OK;
}

static ln_cuda_code run_step(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace, void *stream) {
    static const char *const strengths[] = {"beta", "step_size", "input_gate"};
    if (!ln_cuda_mixer_dense(m, t, "rate") || !ln_cuda_mixer_dense(m, t, "skip")) return LN_CUDA_ARGUMENT;
    ln_cuda_step_tensors to = {.query = ln_cuda_mixer_input(m, t, "query"),
                               .key = ln_cuda_mixer_input(m, t, "key"),
                               .value = ln_cuda_mixer_input(m, t, "value"),
                               .a = ln_cuda_mixer_input(m, t, "a"),
                               .b = ln_cuda_mixer_input(m, t, "b"),
                               .decay = ln_cuda_mixer_input(m, t, "decay"),
                               .rate = ln_cuda_mixer_input(m, t, "rate").data,
                               .skip = ln_cuda_mixer_input(m, t, "skip").data,
                               .output = ln_cuda_tensor_of(t->output),
                               .state_in = t->state_in,
                               .state_out = t->state_out,
                               .state_slots = t->state_slots};
    for (int i = 0; i < 3 && !to.strength.data; i++) to.strength = ln_cuda_mixer_input(m, t, strengths[i]);
    ln_cuda_code code = LN_CUDA_OK;
    if (ln_cuda_mixer_is(m, "retention")) to.decay = (ln_cuda_tensor){workspace, 0, 1};
    if (ln_cuda_mixer_is(m, "lightning_attention")) {
        const ln_cuda_gate slope = ln_cuda_mixer_gate(m, t, "slope");
        to.decay = (ln_cuda_tensor){workspace, 0, 1};
        code = ln_cuda_gate_product(1, m->settings.heads, (ln_cuda_gate){0}, slope.data, slope.head_stride, -1,
                                    workspace, stream);
    }
    return code ? code : ln_cuda_step_forward(&m->step.problem, &m->step.plan, &to, stream);
}

static const char *const rows[] = {
    "linear_attention", "retention",  "lightning_attention", "simple_gla", "gla",  "gla_value", "ssd", "mlstm",
    "mlstm_sigmoid",    "delta_rule", "gated_delta_rule",    "kda",        "dplr", "rwkv7",     NULL};
const ln_cuda_way ln_cuda_step_way = {rows, LINNET_MIXER_STEP, open_step, prepare_step, run_step};
