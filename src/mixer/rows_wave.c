/* Owns: the rows of the wave core. */
#include "mixer/convolution.h"

/* ---- long convolution ---- */

static const ln_mixer_input convolution_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "filter", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER},
    {.name = "input_gate", .columns = LN_AXIS_VALUE, .flags = LN_TYPED | LN_OPTIONAL},
    {.name = "output_gate", .columns = LN_AXIS_VALUE, .flags = LN_TYPED | LN_OPTIONAL},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
static const ln_mixer_state convolution_states[] = {
    {.name = "inputs", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
    {0},
};

const ln_mixer ln_rows_wave[] = {
    {.name = "long_convolution",
     .core = "wave",
     .paper = "Fu et al. 2023, arXiv 2311.05908 and 2302.06646",
     .formula = "y[t] = output_gate[t] (sum_j filter[j] v[t - j] + skip v[t]), v[t] = input_gate[t] value[t]",
     .inputs = convolution_inputs,
     .states = convolution_states,
     .output = LN_AXIS_VALUE,
     .slots = 64,
     .scale = 1,
     .reverse = true,
     .options = {"the filter's transform: 0 made in every call, 1 made and kept in the workspace, 2 kept there by an "
                 "earlier call of the same settings",
                 "taken from the size of every tap of the filter, to 0", "taps to either side that smooth the filter"},
     .refuse = ln_convolution_refuse,
     .workspace = ln_convolution_workspace,
     .forward = ln_convolution_forward,
     .step = ln_convolution_step,
     .backward = ln_convolution_backward,
     .flops = ln_convolution_flops},
    {0},
};
