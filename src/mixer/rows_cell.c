/* Owns: the rows of the cell core (mixer/cell.h), and the leaky memory neuron (cell_leaky.c). s is the logistic
 * function, y[g] = h[t-1] R[g] + bias[g], and x[g] the part of `value` that belongs to gate g.
 *
 *     lstm    c' = s(f) c + s(i) tanh(z),  h' = s(o) tanh(c'),  i, f, z, o = x + y
 *     gru     h' = (1 - u) tanh(x[n] + s(r) y[n]) + u h,  r = x + y,  u = s(x + y)
 *     slstm   m' = max(i, log s(f) + m) (i where n = 0),  a = min(e^(i - m'), 1),  b = min(e^(log s(f) + m - m'), 1)
 *             c' = b c + a tanh(z),  n' = b n + a,  h' = s(o) c' / n';  with option[0] = 1, n' = max(b n + a, 1)
 *     elman   h' = tanh(x + y)
 *     spike   p = u + (x + y - u) / tau,  h' = 1 where p >= threshold, else 0,  u' = p - threshold h'
 *
 * A spike has no derivative: backward takes that of 1/2 + atan(pi/2 steepness (p - threshold)) / pi, which option[3] =
 * 1 also gives out instead of the spike.
 *
 * Exponential gates: c and n are those of the paper times e^-m, so no exponent is positive, and h does not depend on m.
 * The normaliser of option 0 is that of the xlstm code, that of option 1 flashrnn's: they differ where a state was
 * given whose n is less than 1. */
#include <math.h>

#include "mixer/cell.h"
#include "mixer/cell_leaky.h"

enum { LSTM_GATES = 4, GRU_GATES = 3, ELMAN_GATES = 1 };

#define CELL_INPUTS(count)                                                                                     \
    {                                                                                                          \
        {.name = "value", .columns = LN_AXIS_VALUE, .times = count, .flags = LN_TYPED},                        \
            {.name = "recurrent",                                                                              \
             .rows = LN_AXIS_VALUE,                                                                            \
             .columns = LN_AXIS_VALUE,                                                                         \
             .times = count,                                                                                   \
             .flags = LN_PARAMETER | LN_OPTIONAL,                                                              \
             .range = LINNET_RANGE_SMALL},                                                                     \
            {.name = "bias", .columns = LN_AXIS_VALUE, .times = count, .flags = LN_PARAMETER | LN_OPTIONAL}, { \
            0                                                                                                  \
        }                                                                                                      \
    }

static const ln_mixer_input four[] = CELL_INPUTS(LSTM_GATES), three[] = CELL_INPUTS(GRU_GATES),
                            one[] = CELL_INPUTS(ELMAN_GATES);
static const ln_mixer_state states[] = {{.name = "hidden", .columns = LN_AXIS_VALUE}, {0}},
                            lstm_states[] = {{.name = "hidden", .columns = LN_AXIS_VALUE},
                                             {.name = "cell", .columns = LN_AXIS_VALUE},
                                             {0}},
                            slstm_states[] = {{.name = "hidden", .columns = LN_AXIS_VALUE},
                                              {.name = "cell", .columns = LN_AXIS_VALUE},
                                              {.name = "normaliser", .columns = LN_AXIS_VALUE},
                                              {.name = "stabiliser", .columns = LN_AXIS_VALUE},
                                              {0}};
static const ln_cell lstm = {LN_CELL_LSTM, LSTM_GATES, 2}, gru = {LN_CELL_GRU, GRU_GATES, 1},
                     slstm = {LN_CELL_SLSTM, LSTM_GATES, 4}, elman = {LN_CELL_ELMAN, ELMAN_GATES, 1};

static const ln_mixer_state spike_states[] = {
    {.name = "hidden", .columns = LN_AXIS_VALUE}, {.name = "potential", .columns = LN_AXIS_VALUE}, {0}};
static const ln_cell spike = {LN_CELL_SPIKE, ELMAN_GATES, 2};

static double cell_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    const ln_mixer *mixer = ln_mixer_find(settings->name);
    const double n = (double)settings->value_size, gates = ((const ln_cell *)mixer->core_row)->gates;
    const double products = 2 * gates * n * n;
    /* Backward: the states again (twice), and the gradients of state and matrix. */
    return form == LINNET_MIXER_BACKWARD ? 4 * products : products;
}

static const char *slstm_refuse(const linnet_mixer_settings *settings) {
    return settings->option[0] == 0 || settings->option[0] == 1 ? NULL : "option[0] must be 0 or 1";
}

/* ---- the leaky memory neuron: key_size branches of `slots` synapses, value_size memories ---- */

static const ln_mixer_input leaky_inputs[] = {
    {.name = "value", .rows = LN_AXIS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_TYPED},
    {.name = "synapse", .rows = LN_AXIS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "synapse_decay",
     .rows = LN_AXIS_KEY,
     .columns = LN_AXIS_SLOT,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_DECAY},
    {.name = "branch",
     .rows = LN_AXIS_KEY,
     .columns = LN_AXIS_VALUE,
     .times = 2,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {.name = "recurrent",
     .rows = LN_AXIS_VALUE,
     .columns = LN_AXIS_VALUE,
     .times = 2,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {.name = "hidden_bias", .columns = LN_AXIS_VALUE, .times = 2, .flags = LN_PARAMETER | LN_OPTIONAL},
    {.name = "write",
     .rows = LN_AXIS_VALUE,
     .columns = LN_AXIS_VALUE,
     .times = 2,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {.name = "bias", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {.name = "decay", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER, .range = LINNET_RANGE_DECAY},
    {0},
};
static const ln_mixer_state leaky_states[] = {{.name = "synapses", .rows = LN_AXIS_KEY, .columns = LN_AXIS_SLOT},
                                              {.name = "memory", .columns = LN_AXIS_VALUE},
                                              {0}};

static double leaky_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double synapses = (double)s->key_size * (double)s->slots, n = (double)s->value_size;
    const double forward = 4 * synapses + 4 * n * ((double)s->key_size + 2 * n);
    return form == LINNET_MIXER_BACKWARD ? 4 * forward : forward;
}

static const char *spike_refuse(const linnet_mixer_settings *s) {
    return s->option[0] >= 1 && s->option[0] <= 1e6 && fabs(s->option[1]) <= 1e6 && s->option[2] > 0 &&
                   s->option[2] <= 1e6 && (s->option[3] == 0 || s->option[3] == 1)
               ? NULL
               : "option must be tau >= 1, a threshold, a steepness > 0, and 0 or 1";
}

#define CELL_CORE                                                                                         \
    .core = "cell", .output = LN_AXIS_VALUE, .scale = 1, .reverse = true, .workspace = ln_cell_workspace, \
    .forward = ln_cell_run_forward, .backward = ln_cell_run_backward, .flops = cell_flops

const ln_mixer ln_rows_cell[] = {
    {.name = "lstm",
     .paper = "Hochreiter and Schmidhuber 1997; heads: Poeppel et al. 2024, arXiv 2412.07752",
     .formula = "c = s(f) c + s(i) tanh(z), h = s(o) tanh(c); i, f, z, o = value + h R + bias",
     .inputs = four,
     .states = lstm_states,
     .core_row = &lstm,
     CELL_CORE},
    {.name = "gru",
     .paper = "Cho et al. 2014, arXiv 1406.1078; heads: Poeppel et al. 2024, arXiv 2412.07752",
     .formula = "h = (1 - u) tanh(value[n] + s(r) (h R[n] + bias[n])) + u h",
     .inputs = three,
     .states = states,
     .core_row = &gru,
     CELL_CORE},
    {.name = "slstm",
     .paper = "Beck et al. 2024, arXiv 2405.04517",
     .formula = "c = s(f) c + e^i tanh(z), n = s(f) n + e^i, h = s(o) c / n; i, f, z, o = value + h R + bias",
     .inputs = four,
     .states = slstm_states,
     .core_row = &slstm,
     .options = {"1: the normaliser is at least 1"},
     .refuse = slstm_refuse,
     CELL_CORE},
    {.name = "elman",
     .paper = "Elman 1990; heads: Poeppel et al. 2024, arXiv 2412.07752",
     .formula = "h = tanh(value + h R + bias)",
     .inputs = one,
     .states = states,
     .core_row = &elman,
     CELL_CORE},
    {.name = "spike",
     .paper = "leaky integrate and fire of Zhu et al. 2023, arXiv 2302.13939",
     .formula = "p = u + (value + h R + bias - u) / tau, h = p >= threshold, u = p - threshold h",
     .inputs = one,
     .states = spike_states,
     .core_row = &spike,
     .option = {2, 1, 2, 0},
     .options = {"tau", "threshold", "steepness of the gradient", "1: the soft step that has this gradient"},
     .refuse = spike_refuse,
     CELL_CORE},
    {.name = "leaky_memory",
     .core = "cell",
     .paper = "Spieler et al. 2023, arXiv 2306.16922",
     .formula = "m = K m + lambda (1 - K) tanh(bias + max(0, hidden_bias + b B + (K m) R) W), b sums of leaky synapses",
     .inputs = leaky_inputs,
     .states = leaky_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .option = {5},
     .options = {"lambda"},
     .workspace = ln_leaky_workspace,
     .forward = ln_leaky_forward,
     .backward = ln_leaky_backward,
     .flops = leaky_flops},
    {0},
};
