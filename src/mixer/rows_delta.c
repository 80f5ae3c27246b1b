/* Owns: the rows of the delta core: which inputs play which part (mixer/delta.h).
 *
 * S^T k is what the state S [key, value] says of the key k; all rows end in o[t] = scale S[t]^T q[t]. Erasure meets the
 * decayed state e^g S[t-1] except where said otherwise. */
#include <math.h>

#include "mixer/delta.h"

#define QUERY \
    { .name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED }
#define KEY \
    { .name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED }
#define VALUE \
    { .name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED }
#define DECAY \
    { .name = "decay", .range = LINNET_RANGE_DECAY }
#define DECAY_KEY \
    { .name = "decay", .columns = LN_AXIS_KEY, .range = LINNET_RANGE_DECAY }
#define BETA \
    { .name = "beta", .range = LINNET_RANGE_TWICE }
#define A \
    { .name = "a", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED, .range = LINNET_RANGE_SMALL }
#define B \
    { .name = "b", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED, .range = LINNET_RANGE_SMALL }

static const ln_mixer_input delta_inputs[] = {QUERY, KEY, VALUE, BETA, {0}};
static const ln_delta_row delta_row = {.query = 1, .key = 2, .value = 3, .beta = 4};

static const ln_mixer_input gated_inputs[] = {QUERY, KEY, VALUE, DECAY, BETA, {0}};
static const ln_mixer_input kda_inputs[] = {QUERY, KEY, VALUE, DECAY_KEY, BETA, {0}};
static const ln_delta_row gated_row = {.query = 1, .key = 2, .value = 3, .decay = 4, .beta = 5};

static const ln_mixer_input gdn2_inputs[] = {
    QUERY,
    KEY,
    VALUE,
    DECAY_KEY,
    {.name = "erase", .columns = LN_AXIS_KEY, .flags = LN_TYPED, .range = LINNET_RANGE_UNIT},
    {.name = "write", .columns = LN_AXIS_VALUE, .flags = LN_TYPED, .range = LINNET_RANGE_UNIT},
    {0}};
static const ln_delta_row gdn2_row = {.query = 1, .key = 2, .value = 3, .decay = 4, .erase = 5, .write = 6};

static const ln_mixer_input comba_inputs[] = {QUERY,
                                              KEY,
                                              VALUE,
                                              DECAY,
                                              BETA,
                                              {.name = "direction",
                                               .heads = LN_HEADS_KEY,
                                               .columns = LN_AXIS_KEY,
                                               .flags = LN_TYPED | LN_OPTIONAL,
                                               .range = LINNET_RANGE_SMALL},
                                              {0}};
static const ln_delta_row comba_row = {
    .query = 1, .key = 2, .value = 3, .decay = 4, .beta = 5, .direction = 6, .undecayed = true};

static const ln_mixer_input product_inputs[] = {
    QUERY,
    {.name = "key", .heads = LN_HEADS_KEY, .rows = LN_AXIS_SLOT, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    DECAY,
    {.name = "beta", .columns = LN_AXIS_SLOT, .range = LINNET_RANGE_TWICE},
    {0}};
static const ln_delta_row product_row = {.query = 1, .key = 2, .value = 3, .decay = 4, .beta = 5, .micro = true};

static const ln_mixer_input iplr_inputs[] = {QUERY, KEY, VALUE, A, B, {0}};
static const ln_delta_row iplr_row = {.query = 1, .key = 2, .value = 3, .a = 4, .b = 5};
static const ln_mixer_input dplr_inputs[] = {QUERY, KEY, VALUE, DECAY_KEY, A, B, {0}};
static const ln_delta_row dplr_row = {.query = 1, .key = 2, .value = 3, .decay = 4, .a = 5, .b = 6};

static const ln_mixer_state states[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE}, {0}};

enum { MICRO_MOST = 64 };

static const char *refuse_micro(const linnet_mixer_settings *settings) {
    return settings->slots > MICRO_MOST ? "slots, the steps of a token, must be at most 64" : NULL;
}

#define ROW(NAME, PAPER, FORMULA, INPUTS, PARTS, ...)                                                            \
    {                                                                                                            \
        .name = NAME, .core = "delta", .paper = PAPER, .formula = FORMULA, .inputs = INPUTS, .states = states,   \
        .output = LN_AXIS_VALUE, .can_normalise_keys = true, .reverse = true, .workspace = ln_delta_workspace,   \
        .forward = ln_delta_forward, .backward = ln_delta_backward, .flops = ln_delta_flops, .core_row = &PARTS, \
        __VA_ARGS__                                                                                              \
    }

const ln_mixer ln_rows_delta[] = {
    ROW("delta_rule", "Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484",
        "S += k (beta (v - S^T k))^T", delta_inputs, delta_row, .scale = NAN),
    ROW("gated_delta_rule", "Yang et al. 2024, arXiv 2412.06464", "S' = e^decay S; S = S' + k (beta (v - S'^T k))^T",
        gated_inputs, gated_row, .scale = NAN),
    ROW("kda", "Kimi Linear 2025, arXiv 2510.26692", "S' = diag(e^decay) S; S = S' + k (beta (v - S'^T k))^T",
        kda_inputs, gated_row, .scale = NAN),
    ROW("gdn2", "arXiv 2605.22791", "S' = diag(e^decay) S; S = S' + k (write v - S'^T (erase k))^T", gdn2_inputs,
        gdn2_row, .scale = NAN),
    ROW("comba", "Hu et al. 2025, arXiv 2506.02475",
        "S = e^decay S + k (beta (v - S^T direction))^T, S undecayed inside; direction: key where left out",
        comba_inputs, comba_row, .scale = NAN),
    ROW("gated_delta_product", "Siems et al. 2025, arXiv 2502.10297",
        "slots steps a token: S = e^decay S before the first; S += k (beta (v - S^T k))^T each", product_inputs,
        product_row, .scale = NAN, .slots = 2, .refuse = refuse_micro),
    ROW("iplr", "Yang et al. 2024, arXiv 2406.06484; flash-linear-attention", "S += b (a^T S) + k v^T", iplr_inputs,
        iplr_row, .scale = NAN),
    ROW("dplr", "Peng et al. 2025, arXiv 2503.14456; flash-linear-attention",
        "S = diag(e^decay) S + b (a^T S) + k v^T, S undecayed in a^T S", dplr_inputs, dplr_row, .scale = NAN),
    ROW("rwkv7", "Peng et al. 2025, arXiv 2503.14456", "S = diag(e^decay) S + b (a^T S) + k v^T, query: receptance",
        dplr_inputs, dplr_row, .scale = 1),
    {0},
};
