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

static const ln_mixer_input prefix_inputs[] = {
    QUERY_KEY_VALUE,
    {.name = "prefix_key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "prefix_value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {0},
};
static const char *refuse_prefix(const linnet_mixer_settings *s) {
    if (!(s->option[LN_PREFIX_TOKENS] >= 0 && s->option[LN_PREFIX_TOKENS] <= 0x1p40))
        return "option[0], the tokens of the prefix, must be from 0 to 2^40";
    if (s->option[LN_PREFIX_TAYLOR] != 0 && s->key_size > 128)
        return "Taylor features are products of two columns: key_size must be at most 128";
    return s->scale > 0 ? NULL : "the scale must be positive";
}
static const ln_mixer_state prefix_states[] = {{.name = "state"}, {.name = "keys"}, {0}};

static const ln_mixer_input level_inputs[] = {
    QUERY_KEY_VALUE,
    {.name = "decay", .columns = LN_AXIS_ONE, .range = LINNET_RANGE_DECAY},
    {.name = "level", .columns = LN_AXIS_SLOT, .range = LINNET_RANGE_UNIT},
    {0},
};
static const char *refuse_levels(const linnet_mixer_settings *s) {
    return s->slots <= 24 ? NULL : "slots, the levels, must be at most 24";
}
static const ln_mixer_state level_states[] = {{.name = "levels"}, {.name = "position"}, {0}};

static const ln_mixer_input mom_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .rows = LN_AXIS_SLOT, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .range = LINNET_RANGE_DECAY},
    {.name = "router", .heads = LN_HEADS_ONE, .columns = LN_AXIS_SLOT},
    {0},
};
static const ln_mixer_input sse_inputs[] = {
    QUERY_KEY_VALUE,
    {.name = "decay", .columns = LN_AXIS_KEY, .range = LINNET_RANGE_DECAY},
    {.name = "router", .heads = LN_HEADS_ONE, .columns = LN_AXIS_SLOT},
    {0},
};
static const char *refuse_memories(const linnet_mixer_settings *s) {
    const double chosen = s->option[LN_MEMORIES_CHOSEN], shared = s->option[LN_MEMORIES_SHARED];
    if (s->slots > 4096) return "slots, the memories, must be at most 4096";
    if (shared != 0 && shared != 1) return "option[1] says whether the first memory is shared: 0 or 1";
    if (!(chosen >= 1 && chosen <= (double)s->slots - shared) || chosen != floor(chosen))
        return "option[0] memories are chosen: 1 to slots, less one if the first is shared";
    return NULL;
}
static const ln_mixer_state memory_states[] = {{.name = "memories"}, {0}};

static const ln_mixer_input plain_inputs[] = {QUERY_KEY_VALUE, {0}};
static const ln_mixer_input rala_inputs[] = {QUERY_KEY_VALUE, {.name = "gate", .columns = LN_AXIS_VALUE}, {0}};
static const ln_mixer_input l2vit_inputs[] = {
    QUERY_KEY_VALUE,
    {.name = "first_taps",
     .rows = LN_AXIS_SLOT,
     .columns = LN_AXIS_VALUE,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {.name = "second_taps",
     .rows = LN_AXIS_SLOT,
     .columns = LN_AXIS_VALUE,
     .flags = LN_PARAMETER,
     .range = LINNET_RANGE_SMALL},
    {0},
};
static const char *refuse_taps(const linnet_mixer_settings *s) {
    const double side = sqrt((double)s->slots);
    if (side != floor(side) || (int64_t)side % 2 == 0) return "slots, the taps, must be the square of an odd number";
    if (!(s->option[0] > 0)) return "option[0], the least divisor, must be positive";
    if (!(s->option[1] >= 0 && s->option[1] <= 0x1p30))
        return "option[1], the width of the grid, must be from 0 to 2^30";
    return NULL;
}

static const ln_mixer_state kept_states[] = {{.name = "keys", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_KEY},
                                             {.name = "values", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
                                             {.name = "position"},
                                             {0}};
static const char *refuse_segment(const linnet_mixer_settings *s) {
    return s->option[0] >= 1 && s->option[0] <= 0x1p20 ? NULL
                                                       : "option[0], the tokens of a segment, must be from 1 to 2^20";
}

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
    {LN_STAGED_CORE(&ln_staged_prefix), .name = "prefix_linear",
     .paper = "Arora et al. 2024 (Just read twice), arXiv 2407.05483",
     .formula = "S begins with the sum over the prefix of phi(prefix_key) prefix_value^T; then linear attention",
     .inputs = prefix_inputs, .states = prefix_states, .output = LN_AXIS_VALUE, .scale = 1, .normalise = true,
     .can_normalise = true, .reverse = true,
     .options = {"tokens of the prefix, the first of each sequence in this call",
                 "0: phi = elu + 1; 1: Taylor, as based"},
     .refuse = refuse_prefix, .flops = ln_prefix_flops},
    {LN_STAGED_CORE(&ln_staged_levels), .name = "log_linear", .paper = "Guo et al. 2025, arXiv 2506.04761",
     .formula =
         "out[i] = scale sum of level[i][l(i, j)] (q[i] . k[j]) e^(G[i] - G[j]) v[j], l a level of a Fenwick tree",
     .inputs = level_inputs, .states = level_states, .output = LN_AXIS_VALUE, .slots = 18, .scale = 1, .reverse = true,
     .refuse = refuse_levels, .flops = ln_levels_flops},
    {LN_STAGED_CORE(&ln_staged_mom), .name = "mom", .paper = "Du et al. 2025, arXiv 2502.13685",
     .formula = "of the chosen memories S_m = e^decay S_m + k_m v_m^T; out = scale sum of softmax(router)_m S_m^T q",
     .inputs = mom_inputs, .states = memory_states, .output = LN_AXIS_VALUE, .slots = 4, .scale = NAN, .reverse = true,
     .option = {2}, .options = {"memories chosen", "1: the first memory is shared by all tokens, with weight 1"},
     .refuse = refuse_memories, .flops = ln_memories_flops},
    {LN_STAGED_CORE(&ln_staged_sse), .name = "sparse_state", .paper = "Pan et al. 2025, arXiv 2507.16577",
     .formula =
         "of the chosen partitions, w = softmax(router): S_m = diag(e^decay) S_m + w_m softmax(k) v^T; out = scale "
         "sum of w_m S_m^T q",
     .inputs = sse_inputs, .states = memory_states, .output = LN_AXIS_VALUE, .slots = 4, .scale = NAN, .reverse = true,
     .option = {1, 1},
     .options = {"partitions chosen", "1: the first partition is shared by all tokens, with weight 1",
                 "rows of a key that are written, the largest; 0: all; -1: keys as given, no softmax"},
     .refuse = refuse_memories, .flops = ln_memories_flops},
    {LN_STAGED_CORE(&ln_staged_flowformer), .name = "flowformer", .paper = "Wu et al. 2022, arXiv 2202.06258",
     .formula =
         "out = sigmoid(q . sum k / outgoing) (q / incoming)^T sum of k (n softmax(k . sum q / incoming) v)^T, q and k "
         "sigmoids",
     .inputs = plain_inputs, .output = LN_AXIS_VALUE, .scale = 1, .not_causal = true, .flops = ln_whole_flops},
    {LN_STAGED_CORE(&ln_staged_rala), .name = "rala", .paper = "Fan et al. 2024, arXiv 2411.07635",
     .formula = "a = N softmax(scale mean(phi(q)) . phi(k)); out = gate (phi(q)^T sum a phi(k) v^T) / (phi(q) . sum a "
                "phi(k) + "
                "N 1e-6)",
     .inputs = rala_inputs, .output = LN_AXIS_VALUE, .scale = NAN, .not_causal = true, .flops = ln_whole_flops},
    {LN_STAGED_CORE(&ln_staged_l2vit), .name = "l2vit", .paper = "Zheng 2025, arXiv 2501.16182",
     .formula =
         "y = scale relu(q)^T sum relu(k) v^T / max(q . sum k, least); out = y + conv(gelu(conv(y))) over the grid",
     .inputs = l2vit_inputs, .output = LN_AXIS_VALUE, .slots = 49, .scale = NAN, .not_causal = true, .option = {100},
     .options = {"least divisor", "width of the grid of tokens; 0: square"}, .refuse = refuse_taps,
     .flops = ln_whole_flops},
    {LN_STAGED_CORE(&ln_staged_diag), .name = "diag_attention",
     .paper = "Qin et al. 2022 (The Devil in Linear Transformer), arXiv 2210.10340",
     .formula = "out = sum of softmax(scale q . k) v over the own block of `slots` tokens, up to the token",
     .inputs = plain_inputs, .states = kept_states, .output = LN_AXIS_VALUE, .slots = 64, .scale = NAN, .reverse = true,
     .flops = ln_kept_flops},
    {LN_STAGED_CORE(&ln_staged_scout), .name = "scout", .paper = "Jafari et al. 2025 (SCOUT), arXiv 2509.00935",
     .formula =
         "out = sum of softmax(scale q . k) v over the last tokens of full segments, at most `slots`, and the token",
     .inputs = plain_inputs, .states = kept_states, .output = LN_AXIS_VALUE, .slots = 256, .scale = NAN,
     .reverse = true, .option = {16}, .options = {"tokens of a segment"}, .refuse = refuse_segment,
     .flops = ln_kept_flops},
    {0},
};
