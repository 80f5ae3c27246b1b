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

/* ---- linear state spaces, the same in every step ---- */

#define SYSTEM                                                                                                 \
    {.name = "step", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER, .range = LINNET_RANGE_POSITIVE},         \
        {.name = "rate",                                                                                       \
         .rows = LN_AXIS_VALUE,                                                                                \
         .columns = LN_AXIS_SLOT,                                                                              \
         .flags = LN_PARAMETER,                                                                                \
         .range = LINNET_RANGE_NEGATIVE},                                                                      \
        {.name = "frequency", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},          \
        {.name = "write",                                                                                      \
         .rows = LN_AXIS_VALUE,                                                                                \
         .columns = LN_AXIS_SLOT,                                                                              \
         .times = 2,                                                                                           \
         .flags = LN_PARAMETER | LN_OPTIONAL},                                                                 \
        {.name = "read", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .times = 2, .flags = LN_PARAMETER}, { \
        .name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL                          \
    }

static const ln_mixer_input s4d_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED}, SYSTEM, {0}};
static const ln_mixer_input h3_inputs[] = {
    {.name = "query", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "key", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "weight", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    SYSTEM,
    {0},
};
static const ln_mixer_state h3_states[] = {
    {.name = "tail", .rows = LN_AXIS_TAIL, .columns = LN_AXIS_VALUE},
    {.name = "state", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .times = 2},
    {0},
};
static const ln_mixer_input s5_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "step", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER, .range = LINNET_RANGE_POSITIVE},
    {.name = "rate", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER, .range = LINNET_RANGE_NEGATIVE},
    {.name = "frequency", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "write", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .times = 2, .flags = LN_PARAMETER},
    {.name = "read", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE, .times = 2, .flags = LN_PARAMETER},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
static const ln_mixer_state s5_states[] = {{.name = "state", .columns = LN_AXIS_SLOT, .times = 2}, {0}};
static const ln_mixer_input lssl_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "step", .flags = LN_PARAMETER, .range = LINNET_RANGE_POSITIVE},
    {.name = "matrix",
     .rows = LN_AXIS_SLOT,
     .columns = LN_AXIS_SLOT,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {.name = "write", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "read", .rows = LN_AXIS_VALUE, .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};

static const char *refuse_matrix(const linnet_mixer_settings *settings) {
    if (settings->slots > 256) return "slots, the states of a channel, must be from 1 to 256";
    return settings->option[0] >= 0 && settings->option[0] <= 1 ? NULL : "option 0, a weight, must be from 0 to 1";
}

static double states_of(const linnet_mixer_settings *settings) {
    return (double)settings->value_size * (double)settings->slots;
}
static double s4d_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 42 : 14) * states_of(settings);
}
static double h3_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 48 : 16) * states_of(settings);
}
static double s5_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 3 : 1) * (8 * states_of(settings) + 14 * (double)settings->slots);
}
static double lssl_flops(const linnet_mixer_settings *settings, linnet_mixer_form form) {
    return (form == LINNET_MIXER_BACKWARD ? 3 : 1) * 2 * states_of(settings) * (double)(settings->slots + 2);
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
    /* A = rate + i frequency; write and read of a channel have all real parts, then all imaginary parts. The states are
     * those of the system without its factor write f. slots: conjugate pairs, of which one is kept. */
    {.name = "s4d",
     .core = "scan",
     .paper = "Gu et al. 2022, arXiv 2206.11893",
     .formula = "g[n] = e^(step A[n]) g[n] + value, "
                "y = 2 Re sum_n read[n] write[n] (e^(step A[n]) - 1) / A[n] g[n] + skip value",
     .inputs = s4d_inputs,
     .states = complex_states,
     .output = LN_AXIS_VALUE,
     .slots = 32,
     .scale = 1,
     .reverse = true,
     .options = {"1: the bilinear multiplier instead of e^(step A)"},
     .flops = s4d_flops,
     ROW(ln_scan_s4d)},
    /* slots: taps of the shift, and conjugate pairs of the diagonal system. */
    {.name = "h3",
     .core = "scan",
     .paper = "P268: Fu et al. 2022, arXiv 2212.14052",
     .formula = "y = query s4d(value k), k[t] = sum_i weight[i] key[t-slots+1+i]",
     .inputs = h3_inputs,
     .states = h3_states,
     .output = LN_AXIS_VALUE,
     .slots = 32,
     .scale = 1,
     .reverse = true,
     .options = {"1: the bilinear multiplier instead of e^(step A)"},
     .refuse = refuse_taps,
     .flops = h3_flops,
     ROW(ln_scan_h3)},
    /* write [2][value_size][slots], read [2][slots][value_size]. */
    {.name = "s5",
     .core = "scan",
     .paper = "Smith et al. 2022, arXiv 2208.04933",
     .formula = "h[n] = e^(step[n] A[n]) h[n] + (e^(step[n] A[n]) - 1) / A[n] sum_v write[v][n] value[v], "
                "y[v] = 2 Re sum_n read[n][v] h[n] + skip[v] value[v]",
     .inputs = s5_inputs,
     .states = s5_states,
     .output = LN_AXIS_VALUE,
     .slots = 32,
     .scale = 1,
     .reverse = true,
     .flops = s5_flops,
     ROW(ln_scan_s5)},
    /* The matrix of a head (linnet/state_space.h) moves the states of each of its channels. */
    {.name = "lssl",
     .core = "scan",
     .paper = "P034: Gu et al. 2021, arXiv 2110.13985",
     .formula = "h = (1 - w step matrix)^-1 ((1 + (1 - w) step matrix) h + step write value), w = option0, "
                "y = read . h + skip value",
     .inputs = lssl_inputs,
     .states = selective_states,
     .output = LN_AXIS_VALUE,
     .slots = 16,
     .scale = 1,
     .reverse = true,
     .option = {0.5},
     .options = {"weight of the step's end: 1/2 bilinear, 0 forward, 1 backward Euler"},
     .refuse = refuse_matrix,
     .flops = lssl_flops,
     ROW(ln_scan_lssl)},
    {0},
};
