/* Owns: the table of rows that are made of other rows (staged.h). */
#include <math.h>

#include "mixer/staged_rows.h"

#define QUERY_KEY_VALUE                                                                      \
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},     \
        {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED}, { \
        .name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED                         \
    }

static const ln_mixer_input gsa_inputs[] = {
    QUERY_KEY_VALUE,
    {.name = "slot", .columns = LN_AXIS_SLOT},
    {.name = "decay", .columns = LN_AXIS_SLOT, .range = LINNET_RANGE_DECAY},
    {0},
};
static const ln_mixer_input abc_inputs[] = {QUERY_KEY_VALUE, {.name = "slot", .columns = LN_AXIS_SLOT}, {0}};

static const ln_mixer_state gsa_states[] = {{.name = "keys", .rows = LN_AXIS_KEY, .columns = LN_AXIS_SLOT},
                                            {.name = "values", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
                                            {0}};
static const ln_mixer_state abc_states[] = {{.name = "keys", .rows = LN_AXIS_KEY, .columns = LN_AXIS_SLOT},
                                            {.name = "values", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
                                            {.name = "sums", .columns = LN_AXIS_SLOT},
                                            {.name = "begun"},
                                            {0}};

const ln_mixer ln_rows_routed[] = {
    {LN_STAGED_CORE(&ln_staged_gsa), .name = "gsa", .paper = "Zhang et al. 2024, arXiv 2409.07146",
     .formula = "K = K diag(e^decay) + k slot^T, V = diag(e^decay) V + slot v^T; out = V^T softmax(scale K^T q)",
     .inputs = gsa_inputs, .states = gsa_states, .output = LN_AXIS_VALUE, .slots = 64, .scale = NAN, .reverse = true,
     .flops = ln_slots_flops},
    {LN_STAGED_CORE(&ln_staged_abc), .name = "abc", .paper = "Peng et al. 2022, arXiv 2110.02488",
     .formula = "gsa with slot = e^(x - z), decay = z[t-1] - z[t], z = log of the sum of e^x over time",
     .inputs = abc_inputs, .states = abc_states, .output = LN_AXIS_VALUE, .slots = 64, .scale = NAN, .reverse = true,
     .flops = ln_slots_flops},
    {0},
};
