/* Owns: the rows of the wave core. */
#include "mixer/convolution.h"
#include "mixer/laplace.h"
#include "mixer/toeplitz.h"
#include "mixer/wavelet.h"

/* ---- long convolution ---- */

static const ln_mixer_input convolution_inputs[] = {
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "filter", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER},
    {.name = "input_gate", .columns = LN_AXIS_VALUE, .flags = LN_TYPED | LN_OPTIONAL},
    {.name = "output_gate", .columns = LN_AXIS_VALUE, .flags = LN_TYPED | LN_OPTIONAL},
    {.name = "skip", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
#define FILTER_OPTIONS                                                                                            \
    "the filter's transform: 0 made in every call, 1 made and kept in the workspace, 2 kept there by an earlier " \
    "call of the same settings",                                                                                  \
        "taken from the size of every tap of the filter, to 0", "taps to either side that smooth the filter"

static const ln_mixer_state convolution_states[] = {
    {.name = "inputs", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
    {0},
};

/* ---- kernelised attention with relative positions ---- */

#define QUERIES_KEYS_VALUES                                                                  \
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},     \
        {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED}, { \
        .name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED                         \
    }

static const ln_mixer_input toeplitz_inputs[] = {
    QUERIES_KEYS_VALUES, {.name = "bias", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER}, {0}};
static const ln_mixer_input toeplitz_both_inputs[] = {
    QUERIES_KEYS_VALUES, {.name = "bias", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER, .times = 2, .more = -1}, {0}};
static const ln_mixer_state toeplitz_states[] = {
    {.name = "keys", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_KEY},
    {.name = "values", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
    {.name = "weights", .rows = LN_AXIS_SLOT},
    {0},
};

#define TOEPLITZ                                                                                                     \
    .core = "wave", .paper = "Luo et al. 2021, arXiv 2106.12566", .output = LN_AXIS_VALUE, .slots = 64, .scale = 1,  \
    .normalise = true, .can_normalise = true, .option = {1}, .options = {"feature map f: 0 none, 1 elu + 1, 2 exp"}, \
    .refuse = ln_toeplitz_refuse, .workspace = ln_toeplitz_workspace, .forward = ln_toeplitz_forward,                \
    .backward = ln_toeplitz_backward, .flops = ln_toeplitz_flops

static const ln_mixer_input laplace_inputs[] = {QUERIES_KEYS_VALUES, {0}};

static const ln_mixer_input wavelet_inputs[] = {
    QUERIES_KEYS_VALUES,
    {.name = "filter", .columns = LN_AXIS_SLOT, .flags = LN_PARAMETER},
    {.name = "gate", .columns = LN_AXIS_SLOT, .flags = LN_OPTIONAL, .range = LINNET_RANGE_UNIT},
    {.name = "projection",
     .rows = LN_AXIS_KEY,
     .columns = LN_AXIS_KEY,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {0}};

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
     .options = {FILTER_OPTIONS},
     .refuse = ln_convolution_refuse,
     .workspace = ln_convolution_workspace,
     .forward = ln_convolution_forward,
     .step = ln_convolution_step,
     .backward = ln_convolution_backward,
     .flops = ln_convolution_flops},
    {.name = "frequency_sparse_convolution",
     .core = "wave",
     .paper = "Fu et al. 2023, arXiv 2311.05908",
     .formula = "long_convolution modulo x^2M + 1, M the power of two from slots up, of the filter without the "
                "frequencies (f + 1/4) / M whose f, its bits reversed, is at least M option[3] / 64",
     .inputs = convolution_inputs,
     .output = LN_AXIS_VALUE,
     .slots = 4096,
     .scale = 1,
     .not_causal = true,
     .reverse = true,
     .option = {0, 0, 0, 32},
     .options = {FILTER_OPTIONS, "combs of frequencies that are kept, of 64"},
     .refuse = ln_convolution_refuse_sparse,
     .workspace = ln_convolution_workspace,
     .forward = ln_convolution_forward,
     .backward = ln_convolution_backward,
     .flops = ln_convolution_flops},
    {.name = "toeplitz_attention",
     .formula =
         "y[i] = sum_j e^bias[i - j] (f(query[i]) . f(key[j])) value[j] / the same without value, i - slots < j <= i",
     .inputs = toeplitz_inputs,
     .states = toeplitz_states,
     .reverse = true,
     .step = ln_toeplitz_step,
     TOEPLITZ},
    {.name = "toeplitz_attention_both",
     .formula = "y[i] = sum_j e^bias[slots - 1 + i - j] (f(query[i]) . f(key[j])) value[j] / the same without value, "
                "|i - j| < slots",
     .inputs = toeplitz_both_inputs,
     .not_causal = true,
     TOEPLITZ},
    {.name = "laplace_attention",
     .core = "wave",
     .paper = "Langrene and Warin 2020, arXiv 2005.03246",
     .formula = "y[i] = sum_j e^(-scale |query[i] - key[j]|_1) value[j] / the same without value",
     .inputs = laplace_inputs,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .normalise = true,
     .can_normalise = true,
     .not_causal = true,
     .refuse = ln_laplace_refuse,
     .workspace = ln_laplace_workspace,
     .forward = ln_laplace_forward,
     .backward = ln_laplace_backward,
     .flops = ln_laplace_flops},
    {.name = "wavelet_attention",
     .core = "wave",
     .paper = "Dentamaro 2025 (WERSA)",
     .formula =
         "y[i] = f(q[i]) . sum_j f(k[j]) value[j] / f(q[i]) . sum_j f(k[j]); q, k: query and key with their Haar "
         "details scaled by filter[level] gate[token][level]; f(x) = e^(projection x - |x|^2 / 2) + 1e-6",
     .inputs = wavelet_inputs,
     .output = LN_AXIS_VALUE,
     .slots = 8,
     .scale = 1,
     .normalise = true,
     .not_causal = true,
     .refuse = ln_wavelet_refuse,
     .workspace = ln_wavelet_workspace,
     .forward = ln_wavelet_forward,
     .backward = ln_wavelet_backward,
     .flops = ln_wavelet_flops},
    {0},
};
