/* Owns: the rows of the elementwise scan. */
#include <math.h>
#include <string.h>

#include "mixer/scan.h"

#define ROW(core) \
    .workspace = ln_scan_workspace, .forward = ln_scan_forward, .backward = ln_scan_backward, .core_row = &(core)

/* ---- h[t] = e^decay[t] h[t - 1] + x[t] ---- */

static const ln_mixer_input hgrn_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_DECAY},
    {0},
};
static const ln_mixer_state channel_states[] = {{.name = "state", .columns = LN_AXIS_VALUE}, {0}};

static const ln_mixer_input lru_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "input_gate", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_UNIT},
    {.name = "recurrence_gate", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_UNIT},
    {.name = "strength", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER},
    {0},
};
static const ln_mixer_input gru_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "gate", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {0},
};

/* An exponential counts as one. */
static double lru_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 28 : 9) * (double)settings->value_size;
}
static double gru_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 20 : 8) * (double)settings->value_size;
}
static double hgrn_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 8 : 3) * (double)settings->value_size;
}

/* ---- selective scan ---- */

static const ln_mixer_input selective_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "step", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_POSITIVE},
    {.name = "rate",
     .rows = LN_AXIS_VALUE,
     .columns = LN_AXIS_SLOT,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_NEGATIVE},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_TYPED},
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_TYPED},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
static const ln_mixer_input complex_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "step", .columns = LN_AXIS_VALUE, .range = LINNET_RANGE_POSITIVE},
    {.name = "rate",
     .rows = LN_AXIS_VALUE,
     .columns = LN_AXIS_SLOT,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_NEGATIVE},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_TYPED, .times = 2},
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_SLOT, .flags = LN_TYPED, .times = 2},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {.name = "frequency", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {0},
};
static const ln_mixer_state complex_states[] = {
    {.name = "state", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .times = 2}, {0}};
static const ln_mixer_state selective_states[] = {{.name = "state", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT},
                                                  {0}};

/* An exponential counts as one. */
static double selective_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 22 : 7) * (double)settings->value_size * (double)settings->slots;
}

static double complex_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 54 : 18) * (double)settings->value_size * (double)settings->slots;
}

/* ---- short convolution ---- */

static const ln_mixer_input convolution_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "weight", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "bias", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
static const ln_mixer_state convolution_states[] = {{.name = "tail", .rows = LN_AXIS_TAIL, .columns = LN_AXIS_VALUE},
                                                    {0}};

static const char *refuse_taps(const linnet_mixer_settings *settings) {
    return settings->slots < 2 || settings->slots > 64 ? "slots, the taps of the convolution, must be from 2 to 64"
                                                       : NULL;
}

static double convolution_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 6 : 2) * (double)settings->value_size * (double)settings->slots;
}

const ln_mixer ln_rows_scan[] = {
    {.name = "hgrn",
     .core = "scan",
     .paper = "Qin et al. 2023, arXiv 2311.04823",
     .formula = "h[t] = e^decay[t] h[t-1] + value[t]",
     .inputs = hgrn_inputs,
     .states = channel_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .flops = hgrn_flops,
     ROW(ln_scan_hgrn)},
    {.name = "rg_lru",
     .core = "scan",
     .paper = "De et al. 2024, Griffin, arXiv 2402.19427",
     .formula = "z[t] = -option0 log(1 + e^strength) recurrence_gate[t], "
                "h[t] = e^z[t] h[t-1] + (1 - e^(2 z[t]))^1/2 input_gate[t] value[t]",
     .inputs = lru_inputs,
     .states = channel_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .option = {8},
     .options = {"factor of the gate in the exponent"},
     .flops = lru_flops,
     ROW(ln_scan_rg_lru)},
    {.name = "min_gru",
     .core = "scan",
     .paper = "Feng et al. 2024, arXiv 2410.01201",
     .formula = "z[t] = 1 / (1 + e^-gate[t]), h[t] = (1 - z[t]) h[t-1] + z[t] value[t]",
     .inputs = gru_inputs,
     .states = channel_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .options = {"1: value becomes value + 1/2 where >= 0, else 1 / (1 + e^-value): the positive one of the form in "
                 "logarithms"},
     .flops = gru_flops,
     ROW(ln_scan_min_gru)},
    /* Channels are heads x value_size, groups of keys and queries are key_heads: usually heads = 1. */
    {.name = "selective_scan",
     .core = "scan",
     .paper = "Gu and Dao 2023, Mamba, arXiv 2312.00752",
     .formula = "h[c][n] = e^(step[c] rate[c][n]) h[c][n] + step[c] value[c] key[n], "
                "y[c] = sum_n query[n] h[c][n] + skip[c] value[c]",
     .inputs = selective_inputs,
     .states = selective_states,
     .output = LN_AXIS_VALUE,
     .slots = 16,
     .scale = 1,
     .reverse = true,
     .options = {"1: step is log(1 + e^step) of what is given"},
     .flops = selective_flops,
     ROW(ln_scan_selective)},
    /* key and query have all real parts, then all imaginary parts; so has each channel's state. */
    {.name = "selective_scan_complex",
     .core = "scan",
     .paper = "Gu and Dao 2023, Mamba, arXiv 2312.00752",
     .formula = "selective_scan with e^(step (rate + i frequency)), complex key, query, state; "
                "y[c] = 2 Re sum_n query[n] h[c][n] + skip[c] value[c]",
     .inputs = complex_inputs,
     .states = complex_states,
     .output = LN_AXIS_VALUE,
     .slots = 16,
     .scale = 1,
     .reverse = true,
     .options = {"1: step is log(1 + e^step) of what is given"},
     .flops = complex_flops,
     ROW(ln_scan_selective)},
    /* Channels are heads x value_size, taps are slots; weight[channel][tap], the last tap is of the present token. */
    {.name = "short_convolution",
     .core = "scan",
     .paper = "depthwise causal convolution of width slots, as in arXiv 2312.00752",
     .formula = "y[t][c] = bias[c] + sum_i weight[c][i] value[t-slots+1+i][c]",
     .inputs = convolution_inputs,
     .states = convolution_states,
     .output = LN_AXIS_VALUE,
     .slots = 4,
     .scale = 1,
     .reverse = true,
     .options = {"1: the output goes through y / (1 + e^-y)"},
     .refuse = refuse_taps,
     .flops = convolution_flops,
     ROW(ln_scan_convolution)},
    {0},
};
