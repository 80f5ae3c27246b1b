/* Owns: the rows of memories that learn at test time (mixer/learner.h): the numbers that each makes of its gates.
 *
 *     ttt_linear   M[t] = M - step_size[t] sum_(j <= t) k[j]^T u[j], M the chunk's own; at its end M becomes that of
 * its last token. S holds the sum until then. The state after a part of a chunk is the one whose M, less the last step
 * size times S, is the memory that ends there. titans       S[t] = e^momentum[t] S[t-1] - 2 step_size[t] k[t]^T u[t],
 * M[t] = e^decay[t] M[t-1] + S[t]
 *
 * Titans over a piece, E and D the cumulative factors e^momentum and e^decay: S[t] = E[t] S - sum written[t][j] k u
 * with written[t][j] = e^momentum[t] written[t-1][j], from 2 step_size[j] at t = j; M[t] adds them up: a[t] =
 * e^decay[t] a[t-1], b[t] = e^decay[t] b[t-1] + E[t], c[t][j] = e^decay[t] c[t-1][j] + written[t][j]. */
#include <math.h>
#include <string.h>

#include "mixer/learner.h"
#include "mixer/learner_atlas.h"
#include "mixer/learner_mesa.h"

/* ---- test-time training ---- */

static void ttt_terms(const ln_learner_piece *p, ln_learner_terms *t) {
    const float last = p->step_size[p->count - 1];
    for (int64_t i = 0; i < p->count; i++) {
        t->memory[i] = 1;
        t->momentum[i] = -p->step_size[i];
        for (int64_t j = 0; j <= i; j++) t->token[i * p->chunk + j] = p->step_size[i];
        t->last_token[i] = last;
        t->last_written[i] = -1;
    }
    t->uses_momentum = !p->first;
    t->moves_memory = p->complete;
    t->writes_momentum = !p->complete;
    t->last_memory = 1;
    t->last_momentum = p->first ? 0 : -last;
    t->keep = p->first || p->complete ? 0 : 1;
}

static void ttt_back(const ln_learner_piece *p, const ln_learner_terms *t, ln_learner_terms *gradient) {
    for (int64_t i = 0; i < p->count; i++) {
        float sum = t->uses_momentum ? -gradient->momentum[i] : 0;
        for (int64_t j = 0; j <= i; j++) sum += gradient->token[i * p->chunk + j];
        p->step_gradient[i] = sum;
    }
    float *last = &p->step_gradient[p->count - 1];
    if (!p->complete) return;
    if (t->uses_momentum) *last -= gradient->last_momentum;
    for (int64_t j = 0; j < p->count; j++) *last += gradient->last_token[j];
}

/* ---- momentum and forgetting ---- */

static void titans_terms(const ln_learner_piece *p, ln_learner_terms *t) {
    const int64_t last = p->count - 1;
    float memory = 1, momentum = 0, kept = 1;
    for (int64_t i = 0; i < p->count; i++) {
        const float keep = expf(p->decay[i]), carry = expf(p->momentum[i]);
        float *token = t->token + i * p->chunk, *written = t->written + i * p->chunk;
        t->kept[i] = kept *= carry;
        t->memory[i] = memory *= keep;
        t->momentum[i] = momentum = keep * momentum + kept;
        for (int64_t j = 0; j < i; j++) {
            written[j] = carry * written[j - p->chunk];
            token[j] = keep * token[j - p->chunk] + written[j];
        }
        written[i] = token[i] = 2 * p->step_size[i];
    }
    memcpy(t->last_token, t->token + last * p->chunk, (size_t)p->count * sizeof(float));
    memcpy(t->last_written, t->written + last * p->chunk, (size_t)p->count * sizeof(float));
    t->uses_momentum = t->moves_memory = t->writes_momentum = true;
    t->last_memory = memory;
    t->last_momentum = momentum;
    t->keep = kept;
}

static void titans_back(const ln_learner_piece *p, const ln_learner_terms *t, ln_learner_terms *gradient) {
    /* Of what the terms of token i are, from all tokens from i on. */
    float memory = gradient->last_memory, momentum = gradient->last_momentum, kept = gradient->keep;
    float *token = gradient->last_token, *written = gradient->last_written;
    for (int64_t i = p->count - 1; i >= 0; i--) {
        const float keep = expf(p->decay[i]), carry = expf(p->momentum[i]);
        const int64_t row = i * p->chunk, before = row - p->chunk;
        memory += gradient->memory[i];
        momentum += gradient->momentum[i];
        kept += momentum;
        float of_keep = i ? memory * t->memory[i - 1] + momentum * t->momentum[i - 1] : memory,
              of_carry = kept * (i ? t->kept[i - 1] : 1);
        for (int64_t j = 0; j <= i; j++) {
            token[j] += gradient->token[row + j];
            written[j] += token[j];
        }
        for (int64_t j = 0; j < i; j++) {
            of_keep += token[j] * t->token[before + j];
            of_carry += written[j] * t->written[before + j];
            token[j] *= keep;
            written[j] *= carry;
        }
        p->step_gradient[i] = 2 * written[i];
        p->decay_gradient[i] = of_keep * keep;
        p->momentum_gradient[i] = of_carry * carry;
        memory *= keep;
        momentum *= keep;
        kept *= carry;
    }
}

/* ---- the rows ---- */

#define LEARNER_INPUTS                                                                       \
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},     \
        {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},   \
        {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},                      \
        {.name = "step_size", .range = LINNET_RANGE_POSITIVE},                               \
        {.name = "weight", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL}, { \
        .name = "bias", .columns = LN_AXIS_VALUE, .flags = LN_PARAMETER | LN_OPTIONAL        \
    }

static const ln_mixer_input ttt_inputs[] = {LEARNER_INPUTS, {0}},
                            titans_inputs[] = {LEARNER_INPUTS,
                                               {.name = "decay", .range = LINNET_RANGE_DECAY},
                                               {.name = "momentum", .range = LINNET_RANGE_DECAY},
                                               {0}};
static const ln_mixer_state ttt_states[] = {{.name = "memory", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                            {.name = "memory_bias", .columns = LN_AXIS_VALUE},
                                            {.name = "pending", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                            {.name = "pending_bias", .columns = LN_AXIS_VALUE},
                                            {.name = "position"},
                                            {0}},
                            titans_states[] = {{.name = "memory", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                               {.name = "momentum", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                               {.name = "start", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                               {.name = "position"},
                                               {0}};
static const ln_learner ttt = {.constant = true, .terms = ttt_terms, .terms_back = ttt_back},
                        titans = {.start = true, .terms = titans_terms, .terms_back = titans_back};

static const char *refuse(const linnet_mixer_settings *s) {
    if (s->slots > LN_LEARNER_CHUNK_MOST) return "slots are the tokens of a chunk, 256 at most";
    if (s->option[0] != 0 && s->option[0] != 1) return "option[0] must be 0 or 1";
    return s->option[0] == 0 && s->key_size != s->value_size ? "value_size must be key_size: the loss compares both"
                                                             : NULL;
}

static double flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const ln_learner *row = ln_mixer_find(s->name)->core_row;
    const double key = (double)(s->key_size + row->constant), value = (double)s->value_size, chunk = (double)s->slots;
    /* Products with M and S, and those of tokens with tokens. */
    const double matrices = row->start ? 5 : 3, forward = 2 * matrices * key * value + 2 * chunk * (key + value);
    return form == LINNET_MIXER_BACKWARD ? 4 * forward : forward;
}

/* ---- a window of tokens at once: `slots` of them ---- */

static const ln_mixer_input atlas_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "gain", .range = LINNET_RANGE_UNIT},
    {.name = "step_size", .range = LINNET_RANGE_POSITIVE},
    {.name = "decay", .range = LINNET_RANGE_DECAY},
    {.name = "momentum", .range = LINNET_RANGE_DECAY},
    {0},
};
static const ln_mixer_state atlas_states[] = {{.name = "memory", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                              {.name = "momentum", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                              {.name = "start", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                              {.name = "keys", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_KEY},
                                              {.name = "values", .rows = LN_AXIS_SLOT, .columns = LN_AXIS_VALUE},
                                              {.name = "gains", .columns = LN_AXIS_SLOT},
                                              {.name = "position"},
                                              {0}};

static const char *atlas_refuse(const linnet_mixer_settings *s) {
    if (!(s->option[0] >= 1 && s->option[0] <= LN_LEARNER_CHUNK_MOST) || s->option[0] != floor(s->option[0]))
        return "option[0], the tokens of a chunk, must be a whole number from 1 to 256";
    if (!(s->option[1] >= 0 && s->option[1] <= LN_ATLAS_ITERATIONS_MOST) || s->option[1] != floor(s->option[1]))
        return "option[1], the iterations, must be a whole number from 0 to 16";
    return s->slots > LN_LEARNER_CHUNK_MOST ? "slots are the tokens of the window, 256 at most" : NULL;
}

static double atlas_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double key = (double)s->key_size, value = (double)s->value_size, matrix = key * value;
    const double iteration = 4 * key * matrix + 2 * key * key * key;
    const double forward = 4 * (double)s->slots * matrix + s->option[1] * iteration + 2 * matrix;
    return form == LINNET_MIXER_BACKWARD ? 5 * forward : forward;
}

/* ---- the best matrix of all tokens ---- */

static const ln_mixer_input mesa_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "beta", .range = LINNET_RANGE_UNIT},
    {.name = "decay", .range = LINNET_RANGE_DECAY},
    {.name = "ridge", .columns = LN_AXIS_KEY, .flags = LN_PARAMETER, .range = LINNET_RANGE_POSITIVE},
    {0},
};
static const ln_mixer_state mesa_states[] = {{.name = "covariance", .rows = LN_AXIS_KEY, .columns = LN_AXIS_KEY},
                                             {.name = "memory", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE},
                                             {0}};

static const char *mesa_refuse(const linnet_mixer_settings *s) {
    return s->option[0] >= 0 && s->option[0] <= 1e6 && s->option[0] == floor(s->option[0])
               ? NULL
               : "option[0], the iterations, must be a whole number from 0 to 10^6";
}

/* With all iterations; there are mostly fewer. */
static double mesa_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double key = (double)s->key_size, value = (double)s->value_size;
    const double solve = 2 * key * key * (s->option[0] > 0 ? s->option[0] : 2 * key), update = 3 * key * (key + value);
    return form == LINNET_MIXER_BACKWARD ? 2 * solve + 4 * update : solve + update + 2 * key * value;
}

#define LEARNER_CORE                                                                                 \
    .core = "learner", .output = LN_AXIS_VALUE, .scale = NAN, .slots = 16, .reverse = true,          \
    .options = {"1: the loss is |z - v|^2 / 2, the output o: without layer norm"}, .refuse = refuse, \
    .workspace = ln_learner_workspace, .forward = ln_learner_forward, .backward = ln_learner_backward, .flops = flops

const ln_mixer ln_rows_learner[] = {
    {.name = "ttt_linear",
     .paper = "Sun et al. 2024, arXiv 2407.04620",
     .formula = "M[t] = M - step_size[t] sum key[j]^T u[j] over the chunk, u the gradient of its loss at its start",
     .inputs = ttt_inputs,
     .states = ttt_states,
     .core_row = &ttt,
     LEARNER_CORE},
    {.name = "titans",
     .paper = "Behrouz et al. 2025, arXiv 2501.00663",
     .formula = "S[t] = e^momentum[t] S[t-1] - 2 step_size[t] key[t]^T u[t], M[t] = e^decay[t] M[t-1] + S[t]",
     .inputs = titans_inputs,
     .states = titans_states,
     .core_row = &titans,
     LEARNER_CORE},
    {.name = "atlas",
     .core = "learner",
     .paper = "Behrouz et al. 2025, arXiv 2505.23735",
     .formula = "S[t] = e^momentum[t] S[t-1] + G[t], M[t] = e^decay[t] M[t-1] - step_size[t] NewtonSchulz(S[t]), G the "
                "gradient of the last `slots` tokens' gain |key M - value|^2",
     .inputs = atlas_inputs,
     .states = atlas_states,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     .slots = 4,
     .reverse = true,
     .option = {1, 5},
     .options = {"tokens of a chunk: its gradients are those at its start", "iterations of Newton and Schulz; 0: S"},
     .refuse = atlas_refuse,
     .workspace = ln_atlas_workspace,
     .forward = ln_atlas_forward,
     .backward = ln_atlas_backward,
     .flops = atlas_flops},
    {.name = "mesa_net",
     .core = "learner",
     .paper = "von Oswald et al. 2025, arXiv 2506.05233",
     .formula = "o = q (H + diag(ridge))^-1 G, H = e^decay H + beta k^T k, G = e^decay G + beta k^T v",
     .inputs = mesa_inputs,
     .states = mesa_states,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     .reverse = true,
     .options = {"iterations at most; 0: twice the columns of a key"},
     .refuse = mesa_refuse,
     .workspace = ln_mesa_workspace,
     .forward = ln_mesa_forward,
     .backward = ln_mesa_backward,
     .flops = mesa_flops},
    {0},
};
