/* Owns: the gated delta net as a part of a layer (equation in part_delta.h).
 *
 * On the stage lie the rows [q k v] before and after the convolution, then z, then b a with what is made of them; the
 * rule reads queries, keys and values where the convolution left them, by strides. */
#include "model/part_delta.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/part_mixer.h"
#include "model/take.h"

enum { TAPS_MOST = 8, HEADS_MOST = 1 << 14, SIZE_MOST = 1 << 12 };

typedef struct weights {
    ln_part_mixer rule, convolution;
    int64_t key_heads, heads, key_size, value_size, taps;
    int64_t channels, values; /* floats of [q k v] and of z, a token */
    ln_matrix mixed, gate;    /* gate.rows 0: mixed has it, by key heads */
    ln_matrix strengths, output;
    bool channel;                  /* KDA: strengths are beta alone, and these count */
    ln_matrix query, key, value;   /* mixed.rows 0 then */
    ln_matrix decays[2], gates[2]; /* of low rank */
    const float *filter, *rate, *bias, *norm;
    int64_t convolution_floats; /* of the state */
} weights;

static const ln_part_kind delta_part;

/* ---- taking ---- */

static linnet_status take_sizes(linnet_model *model, int64_t i, weights *w) {
    int64_t inner = 0;
    LN_TRY(ln_take_count(model, "ssm.conv_kernel", i, 1, TAPS_MOST, &w->taps));
    LN_TRY(ln_take_count(model, "ssm.state_size", i, 1, SIZE_MOST, &w->key_size));
    LN_TRY(ln_take_count(model, "ssm.group_count", i, 1, HEADS_MOST, &w->key_heads));
    LN_TRY(ln_take_count(model, "ssm.time_step_rank", i, 1, HEADS_MOST, &w->heads));
    LN_TRY(ln_take_count(model, "ssm.inner_size", i, 1, (int64_t)HEADS_MOST * SIZE_MOST, &inner));
    if (w->heads % w->key_heads != 0 || inner % w->heads != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT,
                       "%s: %lld value heads of %lld values do not fit %lld key heads (ssm.* keys)", model->file->path,
                       (long long)w->heads, (long long)inner, (long long)w->key_heads);
    w->value_size = inner / w->heads;
    w->values = inner;
    w->channels = 2 * w->key_heads * w->key_size + inner;
    return LINNET_OK;
}

static linnet_status begin(linnet_model *model, int64_t i, ln_part *part, weights **made) {
    weights *w = *made = ln_file_own(model->file, 1, sizeof *w, "layers");
    if (!w) return LINNET_ERROR_MEMORY;
    *w = (weights){0};
    *part = (ln_part){.kind = &delta_part, .weights = w, .layer = i};
    return LINNET_OK;
}

static linnet_status finish_take(linnet_model *model, const char *rule, weights *w, ln_part *part) {
    linnet_mixer_settings c = linnet_mixer_settings_default("short_convolution"),
                          r = linnet_mixer_settings_default(rule);
    c.key_size = 1;
    c.value_size = w->channels;
    c.slots = w->taps;
    c.option[0] = 1; /* silu */
    r.heads = w->heads;
    r.key_heads = w->key_heads;
    r.key_size = w->key_size;
    r.value_size = w->value_size;
    r.normalise_keys = true;
    LN_TRY(ln_part_mixer_open(model, &c, &w->convolution));
    LN_TRY(ln_part_mixer_open(model, &r, &w->rule));
    w->convolution_floats = ln_stage(1, w->convolution.state_floats);
    part->state_floats = w->convolution_floats + w->rule.state_floats;
    part->matrices = (ln_state_heads){w->convolution_floats, w->heads, w->rule.state_floats / w->heads};
    return LINNET_OK;
}

linnet_status ln_delta_take(linnet_model *model, int64_t i, ln_part *part) {
    const int64_t width = model->hyper.width;
    weights *w;
    LN_TRY(begin(model, i, part, &w));
    LN_TRY(take_sizes(model, i, w));
    if (ln_take_find(model, i, "ssm_in.weight")) {
        LN_TRY(ln_take_matrix(model, i, "ssm_in.weight", w->channels + w->values, width, &w->mixed));
    } else {
        LN_TRY(ln_take_matrix(model, i, "attn_qkv.weight", w->channels, width, &w->mixed));
        LN_TRY(ln_take_matrix(model, i, "attn_gate.weight", w->values, width, &w->gate));
    }
    LN_TRY(ln_take_matrix(model, i, "ssm_ba.weight", 2 * w->heads, width, &w->strengths));
    LN_TRY(ln_take_matrix(model, i, "ssm_out.weight", width, w->values, &w->output));
    LN_TRY(ln_take_values(model, i, "ssm_conv1d.weight", w->channels, w->taps, true, &w->filter));
    LN_TRY(ln_take_vector(model, i, "ssm_a", w->heads, true, &w->rate));
    LN_TRY(ln_take_vector(model, i, "ssm_dt.bias", w->heads, true, &w->bias));
    LN_TRY(ln_take_vector(model, i, "ssm_norm.weight", w->value_size, true, &w->norm));
    return finish_take(model, "gated_delta_rule", w, part);
}

/* The filters of queries, keys and values as one, [channels, taps]. */
static linnet_status take_filters(linnet_model *model, int64_t i, weights *w) {
    static const char *const names[] = {"ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"};
    if (ln_take_find(model, i, "ssm_conv1d.weight"))
        return ln_take_values(model, i, "ssm_conv1d.weight", w->channels, w->taps, true, &w->filter);
    float *made = ln_file_own(model->file, (uint64_t)(w->channels * w->taps), sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    w->filter = made;
    for (int k = 0; k < 3; k++) {
        const float *one;
        const int64_t rows = w->channels / 3;
        LN_TRY(ln_take_values(model, i, names[k], rows, w->taps, true, &one));
        memcpy(made + k * rows * w->taps, one, (size_t)(rows * w->taps) * sizeof *made);
    }
    return LINNET_OK;
}

linnet_status ln_delta_channel_take(linnet_model *model, int64_t i, ln_part *part) {
    const int64_t width = model->hyper.width, heads = model->hyper.heads;
    weights *w;
    LN_TRY(begin(model, i, part, &w));
    w->channel = true;
    LN_TRY(ln_take_count(model, "ssm.conv_kernel", i, 1, TAPS_MOST, &w->taps));
    LN_TRY(ln_take_count(model, "kda.head_dim", i, 1, SIZE_MOST, &w->key_size));
    w->heads = w->key_heads = heads;
    w->value_size = w->key_size;
    w->values = heads * w->key_size;
    w->channels = 3 * w->values;
    LN_TRY(ln_take_matrix(model, i, "attn_q.weight", w->values, width, &w->query));
    LN_TRY(ln_take_matrix(model, i, "attn_k.weight", w->values, width, &w->key));
    LN_TRY(ln_take_matrix(model, i, "attn_v.weight", w->values, width, &w->value));
    LN_TRY(ln_take_matrix(model, i, "ssm_f_a.weight", w->key_size, width, &w->decays[0]));
    LN_TRY(ln_take_matrix(model, i, "ssm_f_b.weight", w->values, w->key_size, &w->decays[1]));
    LN_TRY(ln_take_matrix(model, i, "ssm_g_a.weight", w->key_size, width, &w->gates[0]));
    LN_TRY(ln_take_matrix(model, i, "ssm_g_b.weight", w->values, w->key_size, &w->gates[1]));
    LN_TRY(ln_take_matrix(model, i, "ssm_beta.weight", heads, width, &w->strengths));
    LN_TRY(ln_take_matrix(model, i, "attn_output.weight", width, w->values, &w->output));
    LN_TRY(take_filters(model, i, w));
    LN_TRY(ln_take_vector(model, i, "ssm_a", heads, true, &w->rate));
    LN_TRY(ln_take_vector(model, i, "ssm_dt.bias", w->values, true, &w->bias));
    LN_TRY(ln_take_vector(model, i, "ssm_norm.weight", w->value_size, true, &w->norm));
    return finish_take(model, "kda", w, part);
}

/* ---- room and cost ---- */

/* Places on the stage. */
typedef struct places {
    float *before, *after, *gate, *strengths, *decay, *beta;
    int64_t floats;
} places;

static places place(const weights *w, float *stage, int64_t tokens) {
    places p = {0};
    float **const all[] = {&p.before, &p.after, &p.gate, &p.strengths, &p.decay, &p.beta};
    /* Where q k v z come together they lie in the place of what follows the convolution, and of z behind it. */
    const bool together = !w->channel && !w->gate.rows;
    const int64_t sizes[] = {w->channels,
                             w->channels + (together ? w->values : 0),
                             w->values,
                             w->channel ? w->key_size : 2 * w->heads,
                             w->channel ? w->values : w->heads,
                             w->heads};
    for (int k = 0; k < 6; k++) {
        *all[k] = stage ? stage + p.floats : NULL;
        p.floats += ln_stage(tokens, sizes[k]);
    }
    return p;
}

/* The products of a token; NULL-ended. */
static void list(const weights *w, const ln_matrix *products[12]) {
    const ln_matrix *const all[] = {&w->mixed, &w->gate,      &w->strengths, &w->output,   &w->query,   &w->key,
                                    &w->value, &w->decays[0], &w->decays[1], &w->gates[0], &w->gates[1]};
    int count = 0;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (all[k]->rows) products[count++] = all[k];
    products[count] = NULL;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    const ln_matrix *products[12];
    list(w, products);
    for (int k = 0; products[k]; k++) ln_room_product(model, shape, products[k], products[k]->columns, room);
    ln_room_stage(room, place(w, NULL, shape->piece).floats);
    ln_part_mixer_room(model, &w->convolution, shape, room);
    ln_part_mixer_room(model, &w->rule, shape, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    const ln_matrix *products[12];
    list(w, products);
    for (int k = 0; products[k]; k++) ln_cost_product(model, shape, products[k], cost);
    cost->prepared += (double)(model->hyper.width + w->values);
    cost->meetings += 6;
}

/* ---- running ---- */

typedef struct rows {
    const linnet_model *model;
    const weights *w;
    places at;
} rows;

/* [q k v z] of each key head in turn to [q k v] and z. */
static void part_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const int64_t key = w->key_size, group = w->values / w->key_heads, keys = w->key_heads * key;
    const float *from = r->at.after + token * (w->channels + w->values);
    float *to = r->at.before + token * w->channels, *gate = r->at.gate + token * w->values;
    for (int64_t head = 0; head < w->key_heads; head++, from += 2 * (key + group)) {
        memcpy(to + head * key, from, (size_t)key * sizeof *to);
        memcpy(to + keys + head * key, from + key, (size_t)key * sizeof *to);
        memcpy(to + 2 * keys + head * group, from + 2 * key, (size_t)group * sizeof *to);
        memcpy(gate + head * group, from + 2 * key + group, (size_t)group * sizeof *to);
    }
}

static void strength_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const int64_t group = w->heads / w->key_heads;
    const float *from = r->at.strengths + token * 2 * w->heads;
    float *decay = r->at.decay + token * w->heads, *beta = r->at.beta + token * w->heads;
    for (int64_t h = 0; h < w->heads; h++) {
        const float *pair = from + h / group * 2 * group + h % group; /* b of the group, then a */
        const float a = pair[group] + w->bias[h];
        beta[h] = 1 / (1 + expf(-pair[0]));
        decay[h] = w->rate[h] * (a > 20 ? a : log1pf(expf(a)));
    }
}

/* Of KDA: decays lie where the product left them. */
static void channel_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    float *decay = r->at.decay + token * w->values, *beta = r->at.beta + token * w->heads;
    for (int64_t h = 0; h < w->heads; h++) beta[h] = 1 / (1 + expf(-beta[h]));
    for (int64_t i = 0; i < w->values; i++) {
        const float a = decay[i] + w->bias[i];
        decay[i] = w->rate[i / w->key_size] * (a > 20 ? a : log1pf(expf(a)));
    }
}

/* In the place of [q k v] before the convolution, rows of `values`. */
static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const ln_vector_kernels *vector = &r->model->kernels.vector;
    float *o = r->at.before + token * w->values;
    const float *gate = r->at.gate + token * w->values;
    for (int64_t h = 0; h < w->heads; h++, o += w->value_size, gate += w->value_size) {
        vector->rms_norm(o, o, w->norm, w->value_size, r->model->hyper.norm_epsilon);
        if (!w->channel) vector->silu_multiply(o, gate, o, w->value_size);
        for (int64_t i = 0; w->channel && i < w->value_size; i++) o[i] /= 1 + expf(-gate[i]);
    }
}

static void convolve(ln_forward *forward, const weights *w, const ln_part_call *call, const places *at) {
    linnet_mixer_tensors t = {.output.data = at->after};
    ln_part_mixer_give(&w->convolution, &t, "value", at->before, 0, 0);
    ln_part_mixer_give(&w->convolution, &t, "weight", w->filter, 0, 0);
    ln_part_mixer_run(forward, &w->convolution, call->tokens, &t, call->state, call->next);
}

static void run_rule(ln_forward *forward, const weights *w, const ln_part_call *call, const places *at) {
    const int64_t keys = w->key_heads * w->key_size;
    linnet_mixer_tensors t = {.output.data = at->before};
    ln_part_mixer_give(&w->rule, &t, "query", at->after, w->channels, w->key_size);
    ln_part_mixer_give(&w->rule, &t, "key", at->after + keys, w->channels, w->key_size);
    ln_part_mixer_give(&w->rule, &t, "value", at->after + 2 * keys, w->channels, w->value_size);
    ln_part_mixer_give(&w->rule, &t, "decay", at->decay, 0, 0);
    ln_part_mixer_give(&w->rule, &t, "beta", at->beta, 0, 0);
    ln_part_mixer_run(forward, &w->rule, call->tokens, &t, call->state + w->convolution_floats,
                      call->next + w->convolution_floats);
}

/* What the rule reads, before the convolution. */
static void project(ln_forward *forward, const weights *w, int64_t tokens, const rows *r) {
    ln_team *team = forward->model->context->team;
    void *argument = (void *)(uintptr_t)r;
    const places *at = &r->at;
    if (w->channel) {
        const ln_product products[] = {{&w->query, at->before, w->channels},
                                       {&w->key, at->before + w->values, w->channels},
                                       {&w->value, at->before + 2 * w->values, w->channels},
                                       {&w->strengths, at->beta, w->heads},
                                       {&w->decays[0], at->strengths, w->key_size}};
        const ln_product decay = {&w->decays[1], at->decay, w->values},
                         low = {&w->gates[0], at->strengths, w->key_size}, gate = {&w->gates[1], at->gate, w->values};
        ln_part_multiply(forward, products, 5, forward->h, tokens);
        ln_part_multiply(forward, &decay, 1, at->strengths, tokens);
        ln_part_multiply(forward, &low, 1, forward->h, tokens);
        ln_part_multiply(forward, &gate, 1, at->strengths, tokens);
        ln_parallel(team, tokens, channel_row, argument);
        return;
    }
    const bool together = !w->gate.rows;
    const ln_product products[] = {
        {&w->strengths, at->strengths, 2 * w->heads},
        {&w->mixed, together ? at->after : at->before, together ? w->channels + w->values : w->channels},
        {&w->gate, at->gate, w->values}};
    ln_part_multiply(forward, products, together ? 2 : 3, forward->h, tokens);
    if (together) ln_parallel(team, tokens, part_row, argument);
    ln_parallel(team, tokens, strength_row, argument);
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const weights *w = part->weights;
    rows r = {.model = forward->model, .w = w, .at = place(w, forward->stage, call->tokens)};
    project(forward, w, call->tokens, &r);
    convolve(forward, w, call, &r.at);
    run_rule(forward, w, call, &r.at);
    ln_parallel(forward->model->context->team, call->tokens, finish_row, &r);
    const ln_product output = {&w->output, forward->h, forward->model->hyper.width};
    ln_part_multiply(forward, &output, 1, r.at.before, call->tokens);
    *given = forward->h;
    return LINNET_OK;
}

static const ln_part_kind delta_part = {.name = "gated delta net", .room = find_room, .weigh = weigh, .run = run};
