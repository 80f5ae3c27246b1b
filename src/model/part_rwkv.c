/* Owns: the parts of RWKV-6 and RWKV-7 (equations in part_rwkv.h).
 *
 * Invariant: h of the pass stays as it came until every x_j that reads it is made, so the last row of h is what the
 * next piece finds as its predecessor. */
#include "model/part_rwkv.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/part_mixer.h"
#include "model/take.h"

enum { LERPS = 6, RANK_MOST = 1 << 14, HEAD_MOST = 1024 };
enum { LERP_R, LERP_W, LERP_K, LERP_V, LERP_A, LERP_G }; /* of RWKV-7, and of RWKV-6 without A */
static const char lerp_names[LERPS + 1] = "rwkvag";

/* b + W2 f(W1 x) */
typedef struct low_rank {
    ln_matrix in, out; /* in.rows 0: there is none */
    const float *bias; /* NULL: none */
} low_rank;

typedef struct time_weights {
    ln_part_mixer mixer;
    int64_t heads, size;
    ln_norm norm; /* of each head */
    ln_matrix receptance, key, value, output;
    const float *lerp[LERPS];
    low_rank decay;
    /* RWKV-6 */
    ln_matrix gate, lerp_in, lerp_out[LERPS]; /* lerp_in: rows of w k v r g in turn */
    const float *lerp_x, *bonus;
    /* RWKV-7 */
    low_rank rate, first, gates;
    const float *key_direction, *key_rate, *receptance_key;
} time_weights;

typedef struct channel_weights {
    const float *lerp_key, *lerp_receptance;
    ln_matrix key, value, receptance; /* receptance.rows 0: there is none */
} channel_weights;

static const ln_part_kind time6_part, time7_part, channel_part;

/* ---- taking ---- */

static linnet_status take_matrix(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                                 ln_matrix *matrix) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    return ln_take_matrix(model, layer, full, rows, columns, matrix);
}

static linnet_status take_values(linnet_model *model, int64_t layer, const char *name, int64_t rows, int64_t columns,
                                 bool required, const float **values) {
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    return ln_take_values(model, layer, full, rows, columns, required, values);
}

/* Vectors of all lerps in one tensor, in the order of `order`, or one by one. */
static linnet_status take_lerps(linnet_model *model, int64_t layer, const char *order, time_weights *made) {
    const int64_t width = model->hyper.width;
    const float *fused;
    LN_TRY(take_values(model, layer, "time_mix_lerp_fused", (int64_t)strlen(order), width, false, &fused));
    for (int64_t j = 0; order[j]; j++) {
        const float **lerp = &made->lerp[strchr(lerp_names, order[j]) - lerp_names];
        char name[32];
        snprintf(name, sizeof name, "time_mix_lerp_%c", order[j]);
        *lerp = fused ? fused + j * width : NULL;
        if (!fused) LN_TRY(take_values(model, layer, name, 1, width, true, lerp));
    }
    return LINNET_OK;
}

/* The rank is the rows of the first map. */
static linnet_status take_low_rank(linnet_model *model, int64_t layer, const char *in, const char *out,
                                   const char *bias, low_rank *made) {
    const int64_t width = model->hyper.width;
    char full[64];
    snprintf(full, sizeof full, "%s.weight", in);
    const linnet_tensor_info *tensor = ln_take_find(model, layer, full);
    if (!tensor) return ln_take_missing(model, layer, full);
    const int64_t rank = tensor->dimensions == 2 ? tensor->size[1] : 0;
    if (rank < 1 || rank > RANK_MOST) return ln_take_wrong(model, tensor, rank, width);
    LN_TRY(take_matrix(model, layer, in, rank, width, &made->in));
    LN_TRY(take_matrix(model, layer, out, width, rank, &made->out));
    return bias ? take_values(model, layer, bias, 1, width, true, &made->bias) : LINNET_OK;
}

static linnet_status take_time(linnet_model *model, int64_t layer, const char *mixer, ln_part *part,
                               time_weights **weights) {
    const int64_t width = model->hyper.width;
    time_weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (time_weights){.size = 64};
    LN_TRY(ln_take_count(model, "wkv.head_size", layer, 1, HEAD_MOST, &made->size));
    if (width % made->size != 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: heads of %lld do not divide a width of %lld",
                       model->file->path, (long long)made->size, (long long)width);
    made->heads = width / made->size;
    linnet_mixer_settings s = linnet_mixer_settings_default(mixer);
    s.heads = made->heads;
    s.key_size = made->size;
    s.scale = 1;
    LN_TRY(ln_part_mixer_open(model, &s, &made->mixer));
    LN_TRY(take_matrix(model, layer, "time_mix_receptance", width, width, &made->receptance));
    LN_TRY(take_matrix(model, layer, "time_mix_key", width, width, &made->key));
    LN_TRY(take_matrix(model, layer, "time_mix_value", width, width, &made->value));
    LN_TRY(take_matrix(model, layer, "time_mix_output", width, width, &made->output));
    LN_TRY(ln_take_norm(model, layer, "time_mix_ln", true, &made->norm));
    *part = (ln_part){.weights = made,
                      .layer = layer,
                      .state_floats = width + made->mixer.state_floats,
                      .matrices = {width, made->heads, made->size * made->size}};
    *weights = made;
    return LINNET_OK;
}

linnet_status ln_rwkv6_time_take(linnet_model *model, int64_t layer, ln_part *part) {
    const int64_t width = model->hyper.width;
    time_weights *made;
    LN_TRY(take_time(model, layer, "rwkv6", part, &made));
    part->kind = &time6_part;
    LN_TRY(take_lerps(model, layer, "wkvrg", made));
    LN_TRY(take_values(model, layer, "time_mix_lerp_x", 1, width, true, &made->lerp_x));
    const linnet_tensor_info *in = ln_take_find(model, layer, "time_mix_w1.weight");
    if (!in) return ln_take_missing(model, layer, "time_mix_w1.weight");
    const int64_t rank = in->dimensions == 2 ? in->size[1] / 5 : 0;
    if (rank < 1 || rank > RANK_MOST) return ln_take_wrong(model, in, 5 * rank, width);
    LN_TRY(take_matrix(model, layer, "time_mix_w1", 5 * rank, width, &made->lerp_in));
    LN_TRY(ln_take_stack(model, layer, "time_mix_w2.weight", 5, 0, width, width, rank, made->lerp_out));
    LN_TRY(take_matrix(model, layer, "time_mix_gate", width, width, &made->gate));
    LN_TRY(take_values(model, layer, "time_mix_first", made->heads, made->size, true, &made->bonus));
    return take_low_rank(model, layer, "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_decay", &made->decay);
}

linnet_status ln_rwkv7_time_take(linnet_model *model, int64_t layer, ln_part *part) {
    const int64_t width = model->hyper.width;
    time_weights *made;
    LN_TRY(take_time(model, layer, "rwkv7", part, &made));
    part->kind = &time7_part;
    LN_TRY(take_lerps(model, layer, lerp_names, made));
    LN_TRY(take_low_rank(model, layer, "time_mix_w1", "time_mix_w2", "time_mix_w0", &made->decay));
    LN_TRY(take_low_rank(model, layer, "time_mix_a1", "time_mix_a2", "time_mix_a0", &made->rate));
    LN_TRY(take_low_rank(model, layer, "time_mix_g1", "time_mix_g2", NULL, &made->gates));
    if (layer > 0)
        LN_TRY(take_low_rank(model, layer, "time_mix_v1", "time_mix_v2", "time_mix_v0", &made->first));
    else /* written by converters, used by nobody */
        for (int i = 0; i < 3; i++) {
            char name[32];
            snprintf(name, sizeof name, "time_mix_v%d.weight", i);
            ln_take_find(model, layer, name);
        }
    LN_TRY(take_values(model, layer, "time_mix_k_k", 1, width, true, &made->key_direction));
    LN_TRY(take_values(model, layer, "time_mix_k_a", 1, width, true, &made->key_rate));
    return take_values(model, layer, "time_mix_r_k", 1, width, true, &made->receptance_key);
}

linnet_status ln_rwkv_channel_take(linnet_model *model, int64_t layer, ln_part *part) {
    const int64_t width = model->hyper.width, columns = model->hyper.feed_forward;
    channel_weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (channel_weights){0};
    *part = (ln_part){.kind = &channel_part, .weights = made, .layer = layer, .state_floats = width};
    LN_TRY(take_values(model, layer, "channel_mix_lerp_k", 1, width, true, &made->lerp_key));
    LN_TRY(take_values(model, layer, "channel_mix_lerp_r", 1, width, false, &made->lerp_receptance));
    LN_TRY(take_matrix(model, layer, "channel_mix_key", columns, width, &made->key));
    LN_TRY(take_matrix(model, layer, "channel_mix_value", width, columns, &made->value));
    if (!made->lerp_receptance) return LINNET_OK;
    return take_matrix(model, layer, "channel_mix_receptance", width, width, &made->receptance);
}

/* ---- rows ---- */

typedef enum activation { IDENTITY, TANH, SIGMOID, SILU, SQUARE, DECAY6, DECAY7 } activation;

typedef struct rows {
    const linnet_model *model;
    const time_weights *w;
    activation activate;
    int64_t columns;
    const float *h, *before; /* [tokens, width]; [width] of the token before the piece */
    const float *lerp, *bias;
    float *y, *more;
    /* RWKV-7 and the end */
    const float *receptance, *rate, *first;
    float *key, *value, *minus, *plus;
} rows;

static void run_rows(const rows *r, int64_t tokens, ln_task task) {
    ln_parallel(r->model->context->team, tokens, task, (void *)(uintptr_t)r);
}

/* y = h + (h' - h) (lerp + more) */
static void mix_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->model->hyper.width;
    const float *h = r->h + token * width, *before = token ? h - width : r->before;
    const float *more = r->more ? r->more + token * width : NULL;
    float *y = r->y + token * width;
    for (int64_t i = 0; i < width; i++) y[i] = h[i] + (before[i] - h[i]) * (r->lerp[i] + (more ? more[i] : 0));
}

static void sigmoid(const ln_vector_kernels *vector, float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = -x[i];
    vector->exponential(y, y, 0, n);
    for (int64_t i = 0; i < n; i++) y[i] = 1 / (1 + y[i]);
}

/* y = f(y + bias) */
static void activate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_vector_kernels *vector = &r->model->kernels.vector;
    const int64_t n = r->columns;
    float *y = r->y + token * n;
    if (r->bias) vector->add(y, r->bias, n);
    switch (r->activate) {
    case IDENTITY:
        break;
    case TANH:
        vector->soft_cap(y, 1, n);
        break;
    case SIGMOID:
        sigmoid(vector, y, y, n);
        break;
    case SILU:
        for (int64_t i = 0; i < n; i++) y[i] = y[i] / (1 + expf(-y[i]));
        break;
    case SQUARE:
        for (int64_t i = 0; i < n; i++) y[i] = y[i] > 0 ? y[i] * y[i] : 0;
        break;
    case DECAY6:
        vector->exponential(y, y, 0, n);
        vector->scale(y, -1, n);
        break;
    case DECAY7:
        sigmoid(vector, y, y, n);
        vector->scale(y, -0.60653066F, n);
        break;
    }
}

/* Of RWKV-7: v towards that of the first layer by `more`, kk into minus and plus, k by the rate. */
static void direct_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const time_weights *w = r->w;
    const int64_t width = r->model->hyper.width, at = token * width;
    float *k = r->key + at, *v = r->value + at, *minus = r->minus + at, *plus = r->plus + at;
    const float *rate = r->rate + at;
    if (r->more)
        for (int64_t i = 0; i < width; i++) v[i] += (r->first[at + i] - v[i]) * r->more[at + i];
    for (int64_t head = 0; head < w->heads; head++) {
        double square = 0;
        const int64_t first = head * w->size;
        for (int64_t i = first; i < first + w->size; i++) {
            minus[i] = k[i] * w->key_direction[i];
            square += (double)minus[i] * (double)minus[i];
        }
        const float inverse = (float)(1 / fmax(sqrt(square), 1e-12));
        for (int64_t i = first; i < first + w->size; i++) {
            const float direction = minus[i] * inverse, by = rate[i];
            minus[i] = -direction;
            plus[i] = direction * by; /* in the place of the rate */
            k[i] *= 1 + (by - 1) * w->key_rate[i];
        }
    }
}

/* y = (group norm(y) + (r . (k r_k)) v) more: the sum of RWKV-7 alone. */
static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const time_weights *w = r->w;
    const double epsilon = 64e-5;
    const int64_t width = r->model->hyper.width, n = w->size, at = token * width;
    for (int64_t first = 0; first < width; first += n) {
        float *y = r->y + at + first;
        const float *gate = r->more + at + first;
        double mean = 0, square = 0, bonus = 0;
        for (int64_t i = 0; i < n; i++) mean += (double)y[i];
        mean /= (double)n;
        for (int64_t i = 0; i < n; i++) square += ((double)y[i] - mean) * ((double)y[i] - mean);
        const double inverse = 1 / sqrt(square / (double)n + epsilon);
        for (int64_t i = first; r->receptance && i < first + n; i++)
            bonus += (double)(r->receptance[at + i] * r->key[at + i] * w->receptance_key[i]);
        for (int64_t i = 0; i < n; i++) {
            const float normed =
                (float)(((double)y[i] - mean) * inverse) * w->norm.weight[first + i] + w->norm.bias[first + i];
            y[i] = (normed + (r->receptance ? (float)bonus * r->value[at + first + i] : 0)) * gate[i];
        }
    }
}

/* ---- running ---- */

/* One part of a layer at work. */
typedef struct pass {
    ln_forward *forward;
    const linnet_model *model;
    const ln_part_call *call;
    const float *before;
    float *mixed; /* [tokens, width] */
    float *low;   /* [tokens, rank] */

} pass;

static void mix(pass *p, const float *lerp, const float *more) {
    rows r = {.model = p->model, .h = p->forward->h, .before = p->before, .lerp = lerp, .y = p->mixed};
    r.more = (float *)(uintptr_t)more;
    run_rows(&r, p->call->tokens, mix_row);
}

static void activate(pass *p, activation by, float *y, int64_t columns, const float *bias) {
    const rows r = {.model = p->model, .activate = by, .columns = columns, .bias = bias, .y = y};
    run_rows(&r, p->call->tokens, activate_row);
}

static void multiply(pass *p, const ln_matrix *weight, const float *x, float *y) {
    const ln_product product = {weight, y, weight->rows};
    ln_part_multiply(p->forward, &product, 1, x, p->call->tokens);
}

/* y = f(lora(x_lerp)) */
static void run_low_rank(pass *p, const low_rank *w, const float *lerp, activation inner, activation outer, float *y) {
    if (lerp) mix(p, lerp, NULL);
    multiply(p, &w->in, p->mixed, p->low);
    activate(p, inner, p->low, w->in.rows, NULL);
    multiply(p, &w->out, p->low, y);
    activate(p, outer, y, w->out.rows, w->bias);
}

static void run_mixer(pass *p, const time_weights *w, const float *const *inputs, const char *const *names,
                      float *output) {
    const int64_t width = p->model->hyper.width;
    linnet_mixer_tensors t = {.output.data = output};
    for (int i = 0; names[i]; i++) ln_part_mixer_give(&w->mixer, &t, names[i], inputs[i], 0, 0);
    ln_part_mixer_run(p->forward, &w->mixer, p->call->tokens, &t, p->call->state + width, p->call->next + width);
}

static pass begin(ln_forward *forward, const ln_part_call *call, float *mixed, float *low) {
    const int64_t width = forward->model->hyper.width;
    memcpy(call->next, forward->h + (call->tokens - 1) * width, (size_t)width * sizeof *call->next);
    return (pass){
        .forward = forward, .model = forward->model, .call = call, .before = call->state, .mixed = mixed, .low = low};
}

/* Places of [tokens, width] on the stage, then the low rank one. */
static float *place(const ln_forward *forward, int64_t tokens, int index) {
    return forward->stage + index * ln_stage(tokens, forward->model->hyper.width);
}

static void finish(pass *p, const time_weights *w, const rows *r) {
    run_rows(r, p->call->tokens, finish_row);
    multiply(p, &w->output, r->y, p->forward->h);
}

static linnet_status run_time6(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    enum { RECEPTANCE, KEY, VALUE, DECAY, GATE, MORE, MIXED, LOW };
    const time_weights *w = part->weights;
    const int64_t tokens = call->tokens;
    float *at[LOW + 1];
    for (int i = 0; i <= LOW; i++) at[i] = place(forward, tokens, i);
    pass p = begin(forward, call, at[MIXED], at[LOW]);
    float *const lerps = at[LOW] + ln_stage(tokens, w->decay.in.rows); /* [tokens, 5 rank] */
    const int64_t rank = w->lerp_in.rows / 5;
    mix(&p, w->lerp_x, NULL);
    multiply(&p, &w->lerp_in, p.mixed, lerps);
    activate(&p, TANH, lerps, 5 * rank, NULL);
    static const int order[] = {LERP_W, LERP_K, LERP_V, LERP_R, LERP_G};
    for (int j = 0; j < 5; j++) {
        const ln_product product = {&w->lerp_out[j], at[MORE], w->lerp_out[j].rows};
        const ln_matmul_part all = {0};
        ln_part_multiply_part(forward, &product, 1, lerps + j * rank, 5 * rank, tokens, &all);
        mix(&p, w->lerp[order[j]], at[MORE]);
        switch (order[j]) {
        case LERP_W:
            run_low_rank(&p, &w->decay, NULL, TANH, DECAY6, at[DECAY]);
            break;
        case LERP_K:
            multiply(&p, &w->key, p.mixed, at[KEY]);
            break;
        case LERP_V:
            multiply(&p, &w->value, p.mixed, at[VALUE]);
            break;
        case LERP_R:
            multiply(&p, &w->receptance, p.mixed, at[RECEPTANCE]);
            break;
        default:
            multiply(&p, &w->gate, p.mixed, at[GATE]);
            break;
        }
    }
    activate(&p, SILU, at[GATE], forward->model->hyper.width, NULL);
    static const char *const names[] = {"query", "key", "value", "decay", "bonus", NULL};
    const float *const inputs[] = {at[RECEPTANCE], at[KEY], at[VALUE], at[DECAY], w->bonus};
    run_mixer(&p, w, inputs, names, at[MIXED]);
    const rows r = {.model = forward->model, .w = w, .y = at[MIXED], .more = at[GATE]};
    finish(&p, w, &r);
    *given = forward->h;
    return LINNET_OK;
}

static linnet_status run_time7(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    enum { RECEPTANCE, KEY, VALUE, DECAY, RATE, GATE, MINUS, FIRST, MIXED, LOW };
    const time_weights *w = part->weights;
    const int64_t tokens = call->tokens, width = forward->model->hyper.width;
    float *at[LOW + 1];
    for (int i = 0; i <= LOW; i++) at[i] = place(forward, tokens, i);
    pass p = begin(forward, call, at[MIXED], at[LOW]);
    mix(&p, w->lerp[LERP_R], NULL);
    multiply(&p, &w->receptance, p.mixed, at[RECEPTANCE]);
    mix(&p, w->lerp[LERP_K], NULL);
    multiply(&p, &w->key, p.mixed, at[KEY]);
    mix(&p, w->lerp[LERP_V], NULL);
    multiply(&p, &w->value, p.mixed, at[VALUE]);
    if (part->layer > 0)
        run_low_rank(&p, &w->first, NULL, IDENTITY, SIGMOID, at[FIRST]);
    else
        memcpy(forward->shared, at[VALUE], (size_t)(tokens * width) * sizeof(float));
    run_low_rank(&p, &w->decay, w->lerp[LERP_W], TANH, DECAY7, at[DECAY]);
    run_low_rank(&p, &w->rate, w->lerp[LERP_A], IDENTITY, SIGMOID, at[RATE]);
    run_low_rank(&p, &w->gates, w->lerp[LERP_G], SIGMOID, IDENTITY, at[GATE]);
    rows r = {.model = forward->model,
              .w = w,
              .more = part->layer > 0 ? at[FIRST] : NULL,
              .first = forward->shared,
              .rate = at[RATE],
              .key = at[KEY],
              .value = at[VALUE],
              .minus = at[MINUS],
              .plus = at[RATE]};
    run_rows(&r, tokens, direct_row);
    static const char *const names[] = {"query", "key", "value", "decay", "a", "b", NULL};
    const float *const inputs[] = {at[RECEPTANCE], at[KEY], at[VALUE], at[DECAY], at[MINUS], at[RATE]};
    run_mixer(&p, w, inputs, names, at[MIXED]);
    r.y = at[MIXED];
    r.more = at[GATE];
    r.receptance = at[RECEPTANCE];
    finish(&p, w, &r);
    *given = forward->h;
    return LINNET_OK;
}

/* y *= sigmoid(more) */
static void receive_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const int64_t width = r->model->hyper.width;
    float *y = r->y + token * width, *by = r->more + token * width;
    sigmoid(&r->model->kernels.vector, by, by, width);
    for (int64_t i = 0; i < width; i++) y[i] *= by[i];
}

static linnet_status run_channel(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    const channel_weights *w = part->weights;
    const int64_t tokens = call->tokens;
    float *mixed = place(forward, tokens, 0), *by = place(forward, tokens, 1), *columns = place(forward, tokens, 2);
    pass p = begin(forward, call, mixed, NULL);
    mix(&p, w->lerp_key, NULL);
    multiply(&p, &w->key, mixed, columns);
    activate(&p, SQUARE, columns, w->key.rows, NULL);
    if (w->lerp_receptance) {
        mix(&p, w->lerp_receptance, NULL);
        multiply(&p, &w->receptance, mixed, by);
    }
    multiply(&p, &w->value, columns, forward->h);
    const rows r = {.model = forward->model, .y = forward->h, .more = by};
    if (w->lerp_receptance) run_rows(&r, tokens, receive_row);
    *given = forward->h;
    return LINNET_OK;
}

/* ---- room and cost ---- */

/* The products of a part; NULL-ended. */
static void list_time(const time_weights *w, const ln_matrix *list[24]) {
    const ln_matrix *const all[] = {&w->receptance,  &w->key,         &w->value,       &w->output,     &w->gate,
                                    &w->lerp_in,     &w->decay.in,    &w->decay.out,   &w->rate.in,    &w->rate.out,
                                    &w->first.in,    &w->first.out,   &w->gates.in,    &w->gates.out,  &w->lerp_out[0],
                                    &w->lerp_out[1], &w->lerp_out[2], &w->lerp_out[3], &w->lerp_out[4]};
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->rows) list[count++] = all[i];
    list[count] = NULL;
}

static void list_channel(const channel_weights *w, const ln_matrix *list[24]) {
    int count = 0;
    list[count++] = &w->key;
    list[count++] = &w->value;
    if (w->receptance.rows) list[count++] = &w->receptance;
    list[count] = NULL;
}

static void room_of(linnet_model *model, const ln_forward_shape *shape, const ln_matrix *const *list, int64_t widths,
                    int64_t more, ln_room *room) {
    for (; *list; list++) ln_room_product(model, shape, *list, (*list)->columns, room);
    ln_room_stage(room, widths * ln_stage(shape->piece, model->hyper.width) + more);
}

static void room_time(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const time_weights *w = part->weights;
    const ln_matrix *list[24];
    list_time(w, list);
    int64_t rank = 0;
    for (int i = 0; list[i]; i++)
        if (list[i]->rows < model->hyper.width || list[i] == &w->lerp_in) rank = ln_max_i64(rank, list[i]->rows);
    const low_rank *const all[] = {&w->decay, &w->rate, &w->first, &w->gates};
    for (int i = 0; i < 4; i++) rank = ln_max_i64(rank, all[i]->in.rows);
    room_of(model, shape, list, 9, ln_stage(shape->piece, rank) + ln_stage(shape->piece, w->lerp_in.rows), room);
    ln_part_mixer_room(model, &w->mixer, shape, room);
    room->shared = ln_max_i64(room->shared, shape->piece * model->hyper.width);
}

static void room_channel(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const channel_weights *w = part->weights;
    const ln_matrix *list[24];
    list_channel(w, list);
    room_of(model, shape, list, 2, ln_stage(shape->piece, w->key.rows), room);
}

static void weigh_list(const linnet_model *model, const ln_forward_shape *shape, const ln_matrix *const *list,
                       ln_cost *cost) {
    for (; *list; list++) {
        ln_cost_product(model, shape, *list, cost);
        cost->prepared += (double)(*list)->columns;
        cost->meetings += 2;
    }
}

static void weigh_time(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const ln_matrix *list[24];
    list_time(part->weights, list);
    weigh_list(model, shape, list, cost);
}

static void weigh_channel(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape,
                          ln_cost *cost) {
    const ln_matrix *list[24];
    list_channel(part->weights, list);
    weigh_list(model, shape, list, cost);
}

static const ln_part_kind time6_part = {
    .name = "RWKV-6 time mix", .room = room_time, .weigh = weigh_time, .run = run_time6};
static const ln_part_kind time7_part = {
    .name = "RWKV-7 time mix", .room = room_time, .weigh = weigh_time, .run = run_time7};
static const ln_part_kind channel_part = {
    .name = "RWKV channel mix", .room = room_channel, .weigh = weigh_channel, .run = run_channel};
