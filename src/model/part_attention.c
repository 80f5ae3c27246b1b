/* Owns: attention as a part of a layer (equation in part_attention.h): its tensors, its place on the stage, its run.
 *
 * Queries, keys and values lie on the stage together where there is room, else the queries in the place of the keys
 * and values, after these are in the memory. What attention gives has the place of the queries; while it runs only the
 * queries count, so that its scratch lies over all that follows them. */
#include "model/part_attention.h"

#include <math.h>

#include "base/checked.h"
#include "model/take.h"

/* ---- taking ---- */

/* From head to head of the queries. */
static int64_t query_stride(const ln_hyperparameters *h, const ln_attention_weights *w) {
    return w->gated ? 2 * h->key_size : h->key_size;
}

static linnet_status take_projections(linnet_model *model, int64_t i, ln_attention_weights *layer) {
    const ln_hyperparameters *h = &model->hyper;
    const int64_t queries = h->heads * query_stride(h, layer), keys = h->key_value_heads * h->key_size,
                  values = h->key_value_heads * h->value_size, all = queries + keys + values;
    if (ln_take_find(model, i, "attn_qkv.weight")) {
        const float *bias = NULL;
        LN_TRY(ln_take_rows(model, i, "attn_qkv.weight", 0, queries, all, h->width, &layer->query));
        LN_TRY(ln_take_rows(model, i, "attn_qkv.weight", queries, keys, all, h->width, &layer->key));
        LN_TRY(ln_take_rows(model, i, "attn_qkv.weight", queries + keys, values, all, h->width, &layer->value));
        LN_TRY(ln_take_vector(model, i, "attn_qkv.bias", all, false, &bias));
        if (bias) {
            layer->query_bias = bias;
            layer->key_bias = bias + queries;
            layer->value_bias = bias + queries + keys;
        }
    } else {
        LN_TRY(ln_take_matrix(model, i, "attn_q.weight", queries, h->width, &layer->query));
        LN_TRY(ln_take_matrix(model, i, "attn_k.weight", keys, h->width, &layer->key));
        LN_TRY(ln_take_matrix(model, i, "attn_v.weight", values, h->width, &layer->value));
        LN_TRY(ln_take_vector(model, i, "attn_q.bias", queries, false, &layer->query_bias));
        LN_TRY(ln_take_vector(model, i, "attn_k.bias", keys, false, &layer->key_bias));
        LN_TRY(ln_take_vector(model, i, "attn_v.bias", values, false, &layer->value_bias));
    }
    LN_TRY(ln_take_vector(model, i, "attn_q_norm.weight", h->key_size, false, &layer->query_norm));
    LN_TRY(ln_take_vector(model, i, "attn_k_norm.weight", h->key_size, false, &layer->key_norm));
    return ln_take_matrix(model, i, "attn_output.weight", h->width, h->heads * h->value_size, &layer->output);
}

static bool layer_slides(const linnet_model *model, int64_t i) {
    if (model->hyper.window == 0) return false;
    const ln_key *pattern = ln_file_key_of(model->file, "attention.sliding_window_pattern");
    if (pattern && pattern->array) return ln_key_integer(pattern, (uint64_t)i, 0) != 0;
    const int64_t period = ln_key_integer(pattern, 0, model->architecture->window_period);
    return period <= 0 || (i + 1) % period != 0;
}

static bool layer_rotates(const linnet_model *model, int64_t i) {
    if (model->rope.size == 0) return false;
    const ln_key *pattern = ln_file_key_of(model->file, "attention.rope_pattern");
    if (pattern && pattern->array) return ln_key_integer(pattern, (uint64_t)i, 1) != 0;
    const int period = model->architecture->no_rope_period;
    return period == 0 || (i + 1) % period != 0;
}

linnet_status ln_attention_take(linnet_model *model, int64_t i, ln_part *part) {
    if (model->hyper.heads == 0)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: layer %lld attends, but the keys say no heads",
                       model->file->path, (long long)i);
    ln_attention_weights *made = ln_file_own(model->file, 1, sizeof *made, "layers");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (ln_attention_weights){.gated = model->architecture->traits & LN_ATTENTION_GATED};
    if (made->gated && model->hyper.key_size != model->hyper.value_size)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "%s: gated attention with keys of %lld and values of %lld is not supported", model->file->path,
                       (long long)model->hyper.key_size, (long long)model->hyper.value_size);
    *part = (ln_part){.kind = &ln_attention_part, .weights = made, .layer = i};
    LN_TRY(take_projections(model, i, made));
    LN_TRY(ln_take_vector(model, i, "attn_output.bias", model->hyper.width, false, &part->bias));
    const bool slides = layer_slides(model, i);
    made->window = slides ? model->hyper.window : 0;
    model->windows[i] = made->window;
    made->rotation = slides && model->rope.base_local > 0 ? LN_ROTATE_LOCAL : LN_ROTATE_GLOBAL;
    if (!layer_rotates(model, i)) made->rotation = LN_ROTATE_NOT;
    return LINNET_OK;
}

const ln_attention_weights *ln_attention_of(const linnet_model *model, int64_t layer) {
    const ln_part *part = ln_layer_part(&model->layers[layer], &ln_attention_part);
    return part ? part->weights : NULL;
}

bool ln_attention_alone(const linnet_model *model) {
    for (int64_t i = 0; i < model->hyper.layers; i++)
        if (!ln_attention_of(model, i) || model->state_floats[i]) return false;
    return true;
}

/* ---- room and cost ---- */

static ln_attention describe_attention(const linnet_model *model, int64_t layer) {
    const ln_hyperparameters *h = &model->hyper;
    return (ln_attention){.heads = h->heads,
                          .key_value_heads = h->key_value_heads,
                          .key_size = h->key_size,
                          .value_size = h->value_size,
                          .scale = h->score_scale,
                          .soft_cap = h->score_cap,
                          .mask = {.causal = true, .window = model->windows[layer]}};
}

static int64_t query_floats(const ln_hyperparameters *h, const ln_attention_weights *w, int64_t tokens) {
    const int64_t mixed = h->key_size == h->value_size ? 0 : ln_stage(tokens, h->heads * h->value_size);
    return ln_stage(tokens, h->heads * query_stride(h, w)) + mixed;
}
static int64_t key_value_floats(const ln_hyperparameters *h, int64_t tokens) {
    return ln_stage(tokens, h->key_value_heads * h->key_size) + ln_stage(tokens, h->key_value_heads * h->value_size);
}

static void find_room(linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_room *room) {
    const ln_hyperparameters *h = &model->hyper;
    const ln_attention_weights *w = part->weights;
    const int threads = ln_team_size(model->context->team);
    const int64_t piece = shape->piece, few = ln_min_i64(piece, model->kernels.matmul.panel_from - 1);
    ln_room_stage(room, ln_max_i64(query_floats(h, w, piece), key_value_floats(h, piece)));
    ln_room_stage(room, query_floats(h, w, few) + key_value_floats(h, few));
    const ln_matrix *const products[] = {&w->query, &w->key, &w->value, &w->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        ln_room_product(model, shape, products[i], products[i]->columns, room);
    if (model->gate) {
        const uint64_t gate = ln_gate_workspace(model->gate, &model->kernels, threads, piece);
        if (gate > room->scratch) room->scratch = gate;
    }
    ln_attention attention = describe_attention(model, part->layer);
    attention.bf16 = !shape->exact;
    const uint64_t over = ln_attention_workspace(&model->kernels, threads, &attention, 1, piece);
    room->kept = ln_max_i64(room->kept, query_floats(h, w, piece));
    if (over > room->over) room->over = over;
    if (shape->lanes > room->over) room->over = shape->lanes;
}

static void weigh(const linnet_model *model, const ln_part *part, const ln_forward_shape *shape, ln_cost *cost) {
    const ln_hyperparameters *h = &model->hyper;
    const ln_attention_weights *w = part->weights;
    const ln_matrix *const products[] = {&w->query, &w->key, &w->value, &w->output};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) ln_cost_product(model, shape, products[i], cost);
    cost->prepared += (double)(h->width + h->heads * h->value_size);
    cost->meetings += 5;
}

/* ---- running ---- */

/* What the tasks of one row loop see. */
typedef struct rows {
    const ln_forward *forward;
    const ln_attention_weights *weights;
    float *query, *key, *value; /* [tokens, heads * size]; NULL: not these */
} rows;

/* Heads `stride` apart. */
static void prepare_heads(const ln_forward *forward, const ln_attention_weights *w, float *x, int64_t heads,
                          int64_t stride, const float *bias, const float *norm, int64_t token) {
    const linnet_model *model = forward->model;
    const ln_vector_kernels *vector = &model->kernels.vector;
    const int64_t size = model->hyper.key_size, pairs = model->rope.size / 2;
    if (bias) vector->add(x, bias, heads * stride);
    const int local = w->rotation == LN_ROTATE_LOCAL;
    const float *cosine = forward->cosine[local] + token * pairs, *sine = forward->sine[local] + token * pairs;
    for (int64_t head = 0; head < heads; head++, x += stride) {
        if (norm) vector->rms_norm(x, x, norm, size, model->hyper.norm_epsilon);
        if (w->rotation != LN_ROTATE_NOT) vector->rotate(x, cosine, sine, model->rope.size, model->rope.half);
    }
}

static void project_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_hyperparameters *h = &r->forward->model->hyper;
    const ln_attention_weights *w = r->weights;
    const int64_t values = h->key_value_heads * h->value_size;
    const int64_t stride = query_stride(h, w);
    if (r->query)
        prepare_heads(r->forward, w, r->query + token * h->heads * stride, h->heads, stride, w->query_bias,
                      w->query_norm, token);
    if (r->key)
        prepare_heads(r->forward, w, r->key + token * h->key_value_heads * h->key_size, h->key_value_heads, h->key_size,
                      w->key_bias, w->key_norm, token);
    if (r->value && w->value_bias)
        r->forward->model->kernels.vector.add(r->value + token * values, w->value_bias, values);
}

/* Puts queries, keys and values on the stage, keys and values into the memory; returns the queries. */
static float *project(ln_forward *forward, ln_memory *memory, const ln_part *part, int64_t tokens) {
    linnet_model *model = forward->model;
    ln_team *team = model->context->team;
    const ln_hyperparameters *h = &model->hyper;
    const ln_attention_weights *w = part->weights;
    const int64_t queries = h->heads * query_stride(h, w), keys = h->key_value_heads * h->key_size,
                  values = h->key_value_heads * h->value_size;
    const bool together =
        ln_stage(tokens, queries) + ln_stage(tokens, keys) + ln_stage(tokens, values) <= forward->room.stage;
    float *query = forward->stage, *key = together ? query + ln_stage(tokens, queries) : forward->stage;
    float *value = key + ln_stage(tokens, keys);
    const ln_product projections[] = {{&w->key, key, keys}, {&w->value, value, values}, {&w->query, query, queries}};
    ln_part_multiply(forward, projections, together ? 3 : 2, forward->h, tokens);
    rows r = {.forward = forward, .weights = w, .query = together ? query : NULL, .key = key, .value = value};
    ln_parallel(team, tokens, project_row, &r);
    ln_memory_append(memory, team, part->layer, tokens, key, keys, value, values);
    if (together) return query;
    ln_part_multiply(forward, projections + 2, 1, forward->h, tokens);
    r.query = query;
    r.key = r.value = NULL;
    ln_parallel(team, tokens, project_row, &r);
    return query;
}

/* Outputs times the sigmoid of the gates behind them, close together at the row's begin. */
static void gate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_hyperparameters *h = &r->forward->model->hyper;
    const int64_t size = h->value_size;
    float *row = r->query + token * h->heads * 2 * size;
    for (int64_t head = 0; head < h->heads; head++) {
        const float *from = row + 2 * head * size, *gate = from + size;
        float *to = row + head * size;
        for (int64_t i = 0; i < size; i++) to[i] = from[i] / (1 + expf(-gate[i]));
    }
}

static linnet_status run(ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given) {
    linnet_model *model = forward->model;
    ln_team *team = model->context->team;
    ln_memory *memory = call->memory;
    const ln_hyperparameters *h = &model->hyper;
    const ln_attention_weights *w = part->weights;
    const int64_t tokens = call->tokens, stride = query_stride(h, w), queries = h->heads * stride;
    const int64_t mixed = w->gated ? queries : h->heads * h->value_size;
    const bool gated = model->gate && ln_memory_wants_gate(memory);
    if (gated)
        ln_gate_run(model->gate, &model->kernels, team, part->layer, forward->h, tokens, forward->keep,
                    forward->scratch);
    float *query = project(forward, memory, part, tokens);
    ln_attention attention = describe_attention(model, part->layer);
    attention.exact = forward->shape.exact;
    attention.bf16 = !attention.exact;
    const int local = w->rotation == LN_ROTATE_LOCAL;
    const ln_scene_rotation rotation = {.size = model->rope.size,
                                        .half = model->rope.half,
                                        .magnitude = forward->magnitude[local],
                                        .inverse = forward->inverse[local]};
    /* A tile's output is written after its queries were read by all who need them, and has their place. */
    float *output = h->key_size == h->value_size ? query : query + ln_stage(tokens, queries);
    const ln_ragged_call attend = {.kernels = &model->kernels,
                                   .team = team,
                                   .attention = &attention,
                                   .tokens = tokens,
                                   .query = query,
                                   .query_stride = queries,
                                   .query_head_stride = stride,
                                   .output = output,
                                   .output_stride = mixed,
                                   .output_head_stride = w->gated ? stride : h->value_size,
                                   .rotation = w->rotation == LN_ROTATE_NOT ? NULL : &rotation,
                                   .gate = gated ? forward->keep : NULL,
                                   .workspace = forward->over};
    LN_TRY(ln_memory_attend(memory, part->layer, &attend));
    const rows r = {.forward = forward, .weights = w, .query = query};
    if (w->gated) ln_parallel(team, tokens, gate_row, (void *)(uintptr_t)&r);
    const ln_product product = {&w->output, forward->h, h->width};
    const ln_matmul_part all = {0};
    ln_part_multiply_part(forward, &product, 1, output, mixed, tokens, &all);
    *given = forward->h;
    return LINNET_OK;
}

void ln_attention_fill(ln_forward *forward, ln_memory *memory, int64_t layer, int64_t tokens, float *keys,
                       float *values) {
    const ln_hyperparameters *h = &forward->model->hyper;
    ln_team *team = forward->model->context->team;
    rows r = {.forward = forward, .weights = ln_attention_of(forward->model, layer), .key = keys, .value = values};
    ln_parallel(team, tokens, project_row, &r);
    ln_memory_append(memory, team, layer, tokens, keys, h->key_value_heads * h->key_size, values,
                     h->key_value_heads * h->value_size);
}

const ln_part_kind ln_attention_part = {
    .name = "attention", .attends = true, .room = find_room, .weigh = weigh, .run = run};
