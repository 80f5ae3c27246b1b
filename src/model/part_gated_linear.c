/* Owns: linear attention with decays as a part of a layer (equation in part_gated_linear.h). */
#include "model/part_gated_linear.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/part_mixer.h"
#include "model/take.h"

enum { HEADS_MOST = 1 << 14, SIZE_MOST = 1 << 12, RANK_MOST = 1 << 14, PRODUCTS = 9 };

typedef struct weights {
    ln_part_mixer mixer;
    int64_t heads, key_size, value_size;
    ln_matrix query, key, value, gate, output;
    ln_matrix decays[2]; /* of low rank; rows 0: retention */
    const float *bias, *norm;
    float normalizer;
    bool cell; /* mLSTM; bias is of the forget gate then */
    ln_matrix input, forget;
    const float *input_bias;
    float cap;
} weights;

static const ln_part_kind gated_linear_part;

static linnet_status take(linnet_model *model, int64_t i, const char *mixer, ln_part *part, weights **made) {
    const int64_t width = model->hyper.width;
    weights *w = *made = ln_file_own(model->file, 1, sizeof *w, "layers");
    if (!w) return LINNET_ERROR_MEMORY;
    *w = (weights){.normalizer = 16, .cell = strcmp(mixer, "mlstm") == 0};
    LN_TRY(ln_take_count(model, "linear.head_count", i, 1, HEADS_MOST, &w->heads));
    LN_TRY(ln_take_count(model, "linear.key_length", i, 1, SIZE_MOST, &w->key_size));
    LN_TRY(ln_take_count(model, "linear.value_length", i, 1, SIZE_MOST, &w->value_size));
    const int64_t keys = w->heads * w->key_size, values = w->heads * w->value_size;
    linnet_mixer_settings s = linnet_mixer_settings_default(mixer);
    s.heads = w->heads;
    s.key_size = w->key_size;
    s.value_size = w->value_size;
    LN_TRY(ln_part_mixer_open(model, &s, &w->mixer));
    *part = (ln_part){.kind = &gated_linear_part, .weights = w, .layer = i, .state_floats = w->mixer.state_floats};
    /* mLSTM divides by a maximum of its own. */
    if (!w->cell) part->matrices = (ln_state_heads){0, w->heads, w->mixer.state_floats / w->heads};
    LN_TRY(ln_take_matrix(model, i, "attn_q.weight", keys, width, &w->query));
    LN_TRY(ln_take_matrix(model, i, "attn_k.weight", keys, width, &w->key));
    LN_TRY(ln_take_matrix(model, i, "attn_v.weight", values, width, &w->value));
    LN_TRY(ln_take_matrix(model, i, "attn_gate.weight", values, width, &w->gate));
    LN_TRY(ln_take_matrix(model, i, "attn_output.weight", width, values, &w->output));
    return ln_take_vector(model, i, "attn_norm_2.weight", w->cell ? values : w->value_size, true, &w->norm);
}

linnet_status ln_gated_linear_take(linnet_model *model, int64_t i, ln_part *part) {
    weights *w;
    LN_TRY(take(model, i, "gla", part, &w));
    const linnet_tensor_info *low = ln_take_find(model, i, "ssm_f_a.weight");
    if (!low) return ln_take_missing(model, i, "ssm_f_a.weight");
    const int64_t rank = low->size[1], keys = w->heads * w->key_size;
    if (rank < 1 || rank > RANK_MOST) return ln_take_wrong(model, low, rank, model->hyper.width);
    LN_TRY(ln_take_matrix(model, i, "ssm_f_a.weight", rank, model->hyper.width, &w->decays[0]));
    LN_TRY(ln_take_matrix(model, i, "ssm_f_b.weight", keys, rank, &w->decays[1]));
    LN_TRY(ln_take_vector(model, i, "ssm_dt.bias", keys, true, &w->bias));
    w->normalizer = (float)ln_take_number(model, "linear.gate_normalizer", i, 16);
    if (!(w->normalizer > 0))
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: linear.gate_normalizer must be positive",
                       model->file->path);
    return LINNET_OK;
}

linnet_status ln_retention_take(linnet_model *model, int64_t i, ln_part *part) {
    weights *w;
    return take(model, i, "retention", part, &w);
}

linnet_status ln_mlstm_take(linnet_model *model, int64_t i, ln_part *part) {
    const int64_t width = model->hyper.width;
    weights *w;
    LN_TRY(take(model, i, "mlstm", part, &w));
    LN_TRY(ln_take_matrix(model, i, "attn_input_gate.weight", w->heads, width, &w->input));
    LN_TRY(ln_take_matrix(model, i, "attn_forget_gate.weight", w->heads, width, &w->forget));
    LN_TRY(ln_take_vector(model, i, "attn_input_gate.bias", w->heads, true, &w->input_bias));
    LN_TRY(ln_take_vector(model, i, "attn_forget_gate.bias", w->heads, true, &w->bias));
    w->cap = (float)ln_take_number(model, "linear.gate_cap", i, 15);
    if (!(w->cap > 0))
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: linear.gate_cap must be positive", model->file->path);
    return LINNET_OK;
}

/* ---- room and cost ---- */

/* Places on the stage. */
typedef struct places {
    float *query, *key, *value, *gate, *low, *decay, *input, *output;
    int64_t floats;
} places;

static places place(const weights *w, float *stage, int64_t tokens) {
    places p = {0};
    float **const all[] = {&p.query, &p.key, &p.value, &p.gate, &p.low, &p.decay, &p.input, &p.output};
    const int64_t keys = w->heads * w->key_size, values = w->heads * w->value_size;
    const int64_t decays = w->cell ? w->heads : w->decays[1].rows;
    const int64_t columns[] = {keys, keys, values, values, w->decays[0].rows, decays, w->input.rows, values};
    for (int k = 0; k < 8; k++) {
        *all[k] = stage ? stage + p.floats : NULL;
        p.floats += ln_stage(tokens, columns[k]);
    }
    return p;
}

/* How many of them. */
static int list(const weights *w, const ln_matrix *products[PRODUCTS]) {
    const ln_matrix *const all[PRODUCTS] = {&w->query,     &w->key,       &w->value, &w->gate,  &w->output,
                                            &w->decays[0], &w->decays[1], &w->input, &w->forget};
    int count = 0;
    for (int k = 0; k < PRODUCTS; k++)
        if (all[k]->rows) products[count++] = all[k];
    return count;
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const weights *w = part->weights;
    const ln_matrix *products[PRODUCTS];
    const int count = list(w, products);
    for (int k = 0; k < count; k++) ln_room_product(model, shape, products[k], products[k]->columns, room);
    ln_room_stage(room, place(w, NULL, shape->piece).floats);
    ln_part_mixer_room(model, &w->mixer, shape, room);
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const weights *w = part->weights;
    const ln_matrix *products[PRODUCTS];
    const int count = list(w, products);
    for (int k = 0; k < count; k++) ln_cost_product(model, shape, products[k], cost);
    cost->prepared += (double)(model->hyper.width + w->heads * w->value_size);
    cost->meetings += 6;
}

/* ---- running ---- */

typedef struct rows {
    const ln_forward *forward;
    const weights *w;
    places at;
} rows;

static float log_sigmoid(float x) {
    return x < 0 ? x - log1pf(expf(x)) : -log1pf(expf(-x));
}

/* Decays in the place of what the product gave, or queries and keys rotated. */
static void prepare_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const ln_rope *rope = &r->forward->model->rope;
    const int64_t keys = w->heads * w->key_size, pairs = rope->size / 2;
    if (w->cell) {
        float *decay = r->at.decay + token * w->heads, *input = r->at.input + token * w->heads;
        for (int64_t i = 0; i < w->heads; i++) {
            const float x = w->cap * tanhf((decay[i] + w->bias[i]) / w->cap);
            decay[i] = log_sigmoid(x);
            input[i] = w->cap * tanhf((input[i] + w->input_bias[i]) / w->cap);
        }
        return;
    }
    if (w->decays[0].rows) {
        float *decay = r->at.decay + token * keys;
        for (int64_t i = 0; i < keys; i++) {
            decay[i] = log_sigmoid(decay[i] + w->bias[i]) / w->normalizer;
        }
        return;
    }
    const float *cosine = r->forward->cosine[0] + token * pairs, *sine = r->forward->sine[0] + token * pairs;
    for (int64_t head = 0; head < w->heads; head++) {
        const int64_t at = token * keys + head * w->key_size;
        r->forward->model->kernels.vector.rotate(r->at.query + at, cosine, sine, rope->size, rope->half);
        r->forward->model->kernels.vector.rotate(r->at.key + at, cosine, sine, rope->size, rope->half);
    }
}

/* (x - mean) / sqrt(mean of its square + epsilon) weight / (1 + e^-gate) */
static void finish_cell(const rows *r, float *x, const float *gate, const float *weight) {
    const int64_t n = r->w->value_size;
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) mean += (double)x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean);
    const double inverse = 1 / sqrt(square / (double)n + (double)r->forward->model->hyper.norm_epsilon);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(((double)x[i] - mean) * inverse) * weight[i] / (1 + expf(-gate[i]));
}

static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const weights *w = r->w;
    const ln_vector_kernels *vector = &r->forward->model->kernels.vector;
    float *o = r->at.output + token * w->heads * w->value_size;
    const float *gate = r->at.gate + token * w->heads * w->value_size;
    for (int64_t head = 0; head < w->heads; head++, o += w->value_size, gate += w->value_size) {
        if (w->cell) {
            finish_cell(r, o, gate, w->norm + head * w->value_size);
            continue;
        }
        vector->rms_norm(o, o, w->norm, w->value_size, r->forward->model->hyper.norm_epsilon);
        vector->silu_multiply(o, gate, o, w->value_size);
    }
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const weights *w = part->weights;
    const linnet_model *model = forward->model;
    const int64_t tokens = call->tokens, keys = w->heads * w->key_size, values = w->heads * w->value_size;
    rows r = {.forward = forward, .w = w, .at = place(w, forward->stage, tokens)};
    const bool low = w->decays[0].rows > 0;
    const ln_product products[] = {
        {&w->query, r.at.query, keys},
        {&w->key, r.at.key, keys},
        {&w->value, r.at.value, values},
        {&w->gate, r.at.gate, values},
        {low ? &w->decays[0] : &w->forget, low ? r.at.low : r.at.decay, low ? w->decays[0].rows : w->heads},
        {&w->input, r.at.input, w->heads}};
    const ln_product decay = {&w->decays[1], r.at.decay, keys}, output = {&w->output, forward->h, model->hyper.width};
    ln_part_multiply(forward, products, w->cell ? 6 : low ? 5 : 4, forward->h, tokens);
    if (low) ln_part_multiply(forward, &decay, 1, r.at.low, tokens);
    ln_parallel(model->context->team, tokens, prepare_row, &r);
    linnet_mixer_tensors t = {.output.data = r.at.output};
    static const char *const names[] = {"query", "key", "value", "decay", "input_gate"};
    float *const inputs[] = {r.at.query, r.at.key, r.at.value, r.at.decay, r.at.input};
    for (int k = 0; k < (w->cell ? 5 : low ? 4 : 3); k++) ln_part_mixer_give(&w->mixer, &t, names[k], inputs[k], 0, 0);
    ln_part_mixer_run(forward, &w->mixer, tokens, &t, call->state, call->next);
    ln_parallel(model->context->team, tokens, finish_row, &r);
    ln_part_multiply(forward, &output, 1, r.at.output, tokens);
    *given = forward->h;
    return LINNET_OK;
}

static const ln_part_kind gated_linear_part = {
    .name = "gated linear attention", .room = find_room, .weigh = weigh, .run = run};
