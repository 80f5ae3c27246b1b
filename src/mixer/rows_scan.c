/* Owns: the rows of the elementwise scan. */
#include <math.h>

#include "mixer/mixer.h"

/* ---- h[t] = e^decay[t] h[t-1] + x[t] ---- */

static const ln_mixer_input hgrn_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_DECAY},
    {0},
};
static const ln_mixer_state hgrn_states[] = {{.name = "state", .columns = LN_AXIS_VALUE}, {0}};

static uint64_t hgrn_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                               const linnet_mixer_settings *settings, linnet_mixer_form form) {
    (void)mixer;
    (void)kernels;
    (void)form;
    return (uint64_t)threads * (uint64_t)settings->value_size * 3 * sizeof(float);
}

static void hgrn_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    const linnet_mixer_settings *s = call->settings;
    const int64_t sequence = task / s->heads, head = task % s->heads, n = s->value_size;
    float *x = (float *)call->workspace + worker * 3 * n, *decay = x + n, *h = decay + n;
    const float *in = ln_mixer_state_in(call, sequence, head);
    float *out = ln_mixer_state_out(call, sequence, head);
    int64_t first, count;
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    for (int64_t i = 0; i < n; i++) h[i] = in ? in[i] : 0;
    for (int64_t t = 0; t < count; t++) {
        ln_mixer_load(call, 0, head, sequence, t, 1, x);
        ln_mixer_load(call, 1, head, sequence, t, 1, decay);
        float *y = ln_mixer_output(call, head, sequence, t);
        for (int64_t i = 0; i < n; i++) y[i] = h[i] = expf(decay[i]) * h[i] + x[i];
    }
    for (int64_t i = 0; out && i < n; i++) out[i] = h[i];
}

static void hgrn_forward(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, hgrn_task, (void *)(uintptr_t)call);
}

static double hgrn_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    (void)form;
    return 2 * (double)settings->value_size;
}

const ln_mixer ln_rows_scan[] = {
    {.name = "hgrn",
     .core = "scan",
     .paper = "Qin et al. 2023, arXiv 2311.04823",
     .formula = "h[t] = e^decay[t] h[t-1] + value[t]",
     .inputs = hgrn_inputs,
     .states = hgrn_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .workspace = hgrn_workspace,
     .forward = hgrn_forward,
     .flops = hgrn_flops},
    {0},
};
