/* Owns: the layers (equation in model.h), run over a piece of tokens.
 *
 * Row work between the products is split over tokens, the products over weight rows, attention over heads and query
 * tiles: no value is computed by two threads or in an order that depends on them, so the bits are the same for any
 * number of threads. */
#include "model/forward.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"

/* ---- workspace ---- */

/* Gives out parts of one block; with base NULL it only counts. */
typedef struct carver {
    unsigned char *base;
    uint64_t used;
} carver;

static void *carve(carver *from, uint64_t count, uint64_t size) {
    void *part = from->base ? from->base + from->used : NULL;
    from->used += ln_round_up(count * size, 64);
    return part;
}

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

int64_t ln_forward_unit(const linnet_model *model, bool exact) {
    int64_t unit = 1;
    for (int64_t i = 0; i < model->hyper.layers; i++)
        unit = ln_max_i64(unit, ln_matmul_unit(&model->kernels, model->layers[i].down.type, exact));
    return unit;
}

/* One kind of product of the pass: of the panel way for the whole piece, of the dot way for as many as go by it. */
static void need_product(const linnet_model *model, const ln_forward_shape *shape, const ln_matrix *weight,
                         int64_t columns, uint64_t *bytes) {
    const int threads = ln_team_size(model->context->team);
    const int64_t few = ln_min_i64(shape->piece, model->kernels.matmul.panel_from - 1);
    const uint64_t panel =
        ln_matmul_workspace_of(&model->kernels, threads, weight->type, shape->exact, true, shape->piece, columns);
    const uint64_t dot =
        ln_matmul_workspace_of(&model->kernels, threads, weight->type, shape->exact, false, few, weight->columns);
    if (dot > *bytes) *bytes = dot;
    if (panel > *bytes && few < shape->piece) *bytes = panel;
}

static bool same_needs(const ln_layer *a, const ln_layer *b) {
    return a->query.type == b->query.type && a->key.type == b->key.type && a->value.type == b->value.type &&
           a->output.type == b->output.type && a->gate.type == b->gate.type && a->up.type == b->up.type &&
           a->down.type == b->down.type;
}

static uint64_t scratch_bytes(linnet_model *model, const ln_forward_shape *shape) {
    const ln_hyperparameters *h = &model->hyper;
    uint64_t bytes = 0;
    if (model->gate)
        bytes = ln_gate_workspace(model->gate, &model->kernels, ln_team_size(model->context->team), shape->piece);
    need_product(model, shape, &model->head, h->width, &bytes);
    for (int64_t i = 0; i < h->layers; i++) {
        const ln_layer *layer = &model->layers[i];
        if (i > 0 && same_needs(layer, layer - 1)) continue;
        const ln_matrix *const whole[] = {&layer->query,  &layer->key,  &layer->value,
                                          &layer->output, &layer->gate, &layer->up};
        for (size_t k = 0; k < sizeof whole / sizeof *whole; k++)
            need_product(model, shape, whole[k], whole[k]->columns, &bytes);
        need_product(model, shape, &layer->down, shape->slice, &bytes);
        need_product(model, shape, &layer->down, h->feed_forward % shape->slice, &bytes); /* the last slice */
    }
    return bytes;
}

static uint64_t attention_bytes(linnet_model *model, const ln_forward_shape *shape) {
    uint64_t bytes = shape->lanes;
    for (int64_t i = 0; i < model->hyper.layers; i++) {
        if (i > 0 && model->windows[i] == model->windows[i - 1]) continue;
        ln_attention attention = describe_attention(model, i);
        attention.bf16 = !shape->exact;
        const uint64_t more =
            ln_attention_workspace(&model->kernels, ln_team_size(model->context->team), &attention, 1, shape->piece);
        if (more > bytes) bytes = more;
    }
    return bytes;
}

/* ---- what lies on the stage ---- */

/* Of tokens * count floats there: whole cache lines. */
static int64_t on_stage(int64_t tokens, int64_t count) {
    return ln_ceil_div(tokens * count, 16) * 16;
}
static int64_t query_floats(const ln_hyperparameters *h, int64_t tokens) {
    const int64_t mixed = h->key_size == h->value_size ? 0 : on_stage(tokens, h->heads * h->value_size);
    return on_stage(tokens, h->heads * h->key_size) + mixed;
}
static int64_t key_value_floats(const ln_hyperparameters *h, int64_t tokens) {
    return on_stage(tokens, h->key_value_heads * h->key_size) + on_stage(tokens, h->key_value_heads * h->value_size);
}

static int64_t stage_floats(const linnet_model *model, const ln_forward_shape *shape) {
    const ln_hyperparameters *h = &model->hyper;
    const int64_t piece = shape->piece, few = ln_min_i64(piece, model->kernels.matmul.panel_from - 1);
    const int64_t attention = ln_max_i64(query_floats(h, piece), key_value_floats(h, piece));
    const int64_t given = shape->slice < h->feed_forward ? on_stage(piece, h->width) : 0;
    const int64_t feed_forward = given + on_stage(piece, shape->slice) + on_stage(piece, shape->step);
    const int64_t least =
        ln_max_i64(query_floats(h, few) + key_value_floats(h, few), 2 * on_stage(few, h->feed_forward));
    return ln_max_i64(least, ln_max_i64(attention, feed_forward));
}

static void lay_out(ln_forward *forward, linnet_model *model, const ln_forward_shape *shape, carver *from) {
    const ln_hyperparameters *h = &model->hyper;
    const uint64_t tokens = (uint64_t)shape->piece, pairs = (uint64_t)model->rope.size / 2;
    for (int local = 0; local < 2; local++) {
        if (local && model->rope.base_local <= 0) {
            forward->inverse[1] = forward->inverse[0];
            forward->cosine[1] = forward->cosine[0];
            forward->sine[1] = forward->sine[0];
            break;
        }
        forward->inverse[local] = carve(from, pairs, sizeof(double));
        forward->cosine[local] = carve(from, tokens * pairs, sizeof(float));
        forward->sine[local] = carve(from, tokens * pairs, sizeof(float));
    }
    forward->cosines = carve(from, tokens, sizeof(double));
    forward->keep = model->gate ? carve(from, tokens * (uint64_t)h->key_value_heads, sizeof(float)) : NULL;
    forward->x = carve(from, tokens * (uint64_t)h->width, sizeof(float));
    /* While attention runs only the queries count of what follows: the rest is its scratch. */
    carver attention = *from;
    carve(&attention, (uint64_t)query_floats(h, shape->piece), sizeof(float));
    forward->attention_scratch = carve(&attention, attention_bytes(model, shape), 1);
    forward->stage_floats = stage_floats(model, shape);
    forward->stage = carve(from, (uint64_t)forward->stage_floats, sizeof(float));
    forward->h = carve(from, tokens * (uint64_t)h->width, sizeof(float));
    forward->scratch = carve(from, scratch_bytes(model, shape), 1);
    if (attention.used > from->used) from->used = attention.used;
}

uint64_t ln_forward_bytes(linnet_model *model, const ln_forward_shape *shape) {
    ln_forward forward;
    carver parts = {0};
    lay_out(&forward, model, shape, &parts);
    return ln_allocated_bytes(parts.used);
}

linnet_status ln_forward_open(linnet_model *model, const ln_forward_shape *shape, int64_t context,
                              ln_forward *forward) {
    *forward = (ln_forward){.model = model, .shape = *shape};
    carver parts = {0};
    lay_out(forward, model, shape, &parts);
    parts.base = forward->block = ln_allocate(model->context, parts.used, 1, "workspace");
    if (!forward->block) return LINNET_ERROR_MEMORY;
    parts.used = 0;
    lay_out(forward, model, shape, &parts);
    for (int local = 0; local < 2; local++)
        forward->magnitude[local] =
            ln_rope_frequencies(&model->rope, local && model->rope.base_local > 0, context, forward->inverse[local]);
    return LINNET_OK;
}

void ln_forward_close(ln_forward *forward) {
    if (!forward->model) return;
    ln_release(forward->model->context, forward->block);
    *forward = (ln_forward){0};
}

/* ---- row work ---- */

/* What the tasks of one row loop see. */
typedef struct rows {
    ln_forward *forward;
    const ln_layer *layer;
    const float *next_norm; /* of the norm that prepares h for the next product; NULL: none follows */
    const int32_t *ids;
    float *query, *key, *value; /* [tokens, heads * size]; NULL: not these */
    float *gate, *up;           /* rows of slice and of step floats */
    int64_t columns;            /* to activate */
    float *given;               /* [tokens, width], what a part adds to x */
    double *cosine;             /* [tokens] of x before and after; NULL: not wanted */
} rows;

static void embed_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_forward *forward = r->forward;
    const linnet_model *model = forward->model;
    const ln_matrix *embedding = &model->embedding;
    const int64_t width = model->hyper.width;
    float *x = forward->x + token * width;
    const uint64_t row_bytes = ln_format_bytes(embedding->type, width);
    const char *row = (const char *)embedding->data + (uint64_t)r->ids[token] * row_bytes;
    ln_format_of(embedding->type)->decode(row, x, width);
    if (model->hyper.embedding_scale != 1) model->kernels.vector.scale(x, model->hyper.embedding_scale, width);
    model->kernels.vector.rms_norm(forward->h + token * width, x, r->next_norm, width, model->hyper.norm_epsilon);
}

static void prepare_heads(const ln_forward *forward, const ln_layer *layer, float *x, int64_t heads, const float *bias,
                          const float *norm, int64_t token) {
    const linnet_model *model = forward->model;
    const ln_vector_kernels *vector = &model->kernels.vector;
    const int64_t size = model->hyper.key_size, pairs = model->rope.size / 2;
    if (bias) vector->add(x, bias, heads * size);
    const int local = layer->rotation == LN_ROTATE_LOCAL;
    const float *cosine = forward->cosine[local] + token * pairs, *sine = forward->sine[local] + token * pairs;
    for (int64_t head = 0; head < heads; head++, x += size) {
        if (norm) vector->rms_norm(x, x, norm, size, model->hyper.norm_epsilon);
        if (layer->rotation != LN_ROTATE_NOT) vector->rotate(x, cosine, sine, model->rope.size, model->rope.half);
    }
}

static void project_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_forward *forward = r->forward;
    const ln_hyperparameters *h = &forward->model->hyper;
    const ln_layer *layer = r->layer;
    const int64_t values = h->key_value_heads * h->value_size;
    if (r->query)
        prepare_heads(forward, layer, r->query + token * h->heads * h->key_size, h->heads, layer->query_bias,
                      layer->query_norm, token);
    if (r->key)
        prepare_heads(forward, layer, r->key + token * h->key_value_heads * h->key_size, h->key_value_heads,
                      layer->key_bias, layer->key_norm, token);
    if (r->value && layer->value_bias)
        forward->model->kernels.vector.add(r->value + token * values, layer->value_bias, values);
}

/* Of x and x + y. */
static double cosine_of_sum(const float *x, const float *y, int64_t n) {
    double xx = 0, xy = 0, yy = 0;
    for (int64_t i = 0; i < n; i++) {
        xx += (double)x[i] * (double)x[i];
        xy += (double)x[i] * (double)y[i];
        yy += (double)y[i] * (double)y[i];
    }
    return (xx + xy) / sqrt(xx * (xx + 2 * xy + yy));
}

/* x += norm'(given + bias), then h = norm(x) for what follows. */
static void finish_row(const rows *r, int64_t token, const float *bias, const float *post_norm) {
    const ln_forward *forward = r->forward;
    const linnet_model *model = forward->model;
    const ln_vector_kernels *vector = &model->kernels.vector;
    const int64_t width = model->hyper.width;
    float *x = forward->x + token * width, *h = forward->h + token * width, *given = r->given + token * width;
    if (bias) vector->add(given, bias, width);
    if (post_norm) vector->rms_norm(given, given, post_norm, width, model->hyper.norm_epsilon);
    if (r->cosine) r->cosine[token] = cosine_of_sum(x, given, width);
    vector->add(x, given, width);
    if (r->next_norm) vector->rms_norm(h, x, r->next_norm, width, model->hyper.norm_epsilon);
}

static void finish_attention_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    finish_row(r, token, r->layer->output_bias, r->layer->attention_post_norm);
}

static void finish_feed_forward_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    finish_row(r, token, NULL, r->layer->feed_forward_post_norm);
}

static void activate_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const linnet_model *model = r->forward->model;
    float *gate = r->gate + token * r->forward->slice;
    const float *up = r->up + token * r->forward->step;
    if (model->architecture->activation == LN_GELU_TANH)
        model->kernels.vector.gelu_tanh_multiply(gate, gate, up, r->columns);
    else
        model->kernels.vector.silu_multiply(gate, gate, up, r->columns);
}

/* ---- layers ---- */

/* x holds `part` of the columns of the weights, in rows of `stride`. */
static void multiply_part(ln_forward *forward, const ln_product *products, int count, const float *x, int64_t stride,
                          int64_t tokens, const ln_matmul_part *part) {
    linnet_model *model = forward->model;
    ln_matmul_run_part(&model->kernels, model->context->team, products, count, x, stride, tokens, forward->shape.exact,
                       forward->scratch, part);
}

static void multiply(ln_forward *forward, const ln_product *products, int count, const float *x, int64_t tokens) {
    const ln_matmul_part all = {0};
    multiply_part(forward, products, count, x, products[0].weight->columns, tokens, &all);
}

/* Puts queries, keys and values on the stage, keys and values into the memory: together where there is room, else the
 * queries in the place of the keys and values, after these are in the memory. */
static void project(ln_forward *forward, ln_memory *memory, int64_t index, int64_t tokens, rows *r) {
    linnet_model *model = forward->model;
    ln_team *team = model->context->team;
    const ln_hyperparameters *h = &model->hyper;
    const ln_layer *layer = r->layer;
    const int64_t queries = h->heads * h->key_size, keys = h->key_value_heads * h->key_size,
                  values = h->key_value_heads * h->value_size;
    const bool together =
        on_stage(tokens, queries) + on_stage(tokens, keys) + on_stage(tokens, values) <= forward->stage_floats;
    float *query = forward->stage, *key = together ? query + on_stage(tokens, queries) : forward->stage;
    float *value = key + on_stage(tokens, keys);
    const ln_product projections[] = {
        {&layer->key, key, keys}, {&layer->value, value, values}, {&layer->query, query, queries}};
    multiply(forward, projections, together ? 3 : 2, forward->h, tokens);
    r->query = together ? query : NULL;
    r->key = key;
    r->value = value;
    ln_parallel(team, tokens, project_row, r);
    ln_memory_append(memory, team, index, tokens, key, keys, value, values);
    if (together) return;
    multiply(forward, projections + 2, 1, forward->h, tokens);
    r->query = query;
    r->key = r->value = NULL;
    ln_parallel(team, tokens, project_row, r);
}

static linnet_status run_attention(ln_forward *forward, ln_memory *memory, int64_t index, int64_t tokens, rows *r) {
    linnet_model *model = forward->model;
    ln_team *team = model->context->team;
    const ln_hyperparameters *h = &model->hyper;
    const int64_t queries = h->heads * h->key_size, mixed = h->heads * h->value_size;
    const bool gated = model->gate && ln_memory_wants_gate(memory);
    if (gated)
        ln_gate_run(model->gate, &model->kernels, team, index, forward->h, tokens, forward->keep, forward->scratch);
    project(forward, memory, index, tokens, r);
    ln_attention attention = describe_attention(model, index);
    attention.exact = forward->shape.exact;
    attention.bf16 = !attention.exact;
    const int local = r->layer->rotation == LN_ROTATE_LOCAL;
    const ln_scene_rotation rotation = {.size = model->rope.size,
                                        .half = model->rope.half,
                                        .magnitude = forward->magnitude[local],
                                        .inverse = forward->inverse[local]};
    /* A tile's output is written after its queries were read by all who need them, and has their place. */
    float *output = h->key_size == h->value_size ? r->query : r->query + on_stage(tokens, queries);
    const ln_ragged_call call = {.kernels = &model->kernels,
                                 .team = team,
                                 .attention = &attention,
                                 .tokens = tokens,
                                 .query = r->query,
                                 .query_stride = queries,
                                 .query_head_stride = h->key_size,
                                 .output = output,
                                 .output_stride = mixed,
                                 .output_head_stride = h->value_size,
                                 .rotation = r->layer->rotation == LN_ROTATE_NOT ? NULL : &rotation,
                                 .gate = gated ? forward->keep : NULL,
                                 .workspace = forward->attention_scratch};
    const linnet_status status = ln_memory_attend(memory, index, &call);
    if (status != LINNET_OK) return status;
    const ln_product product = {&r->layer->output, forward->h, h->width};
    multiply(forward, &product, 1, output, tokens);
    r->given = forward->h;
    r->next_norm = r->layer->feed_forward_norm;
    r->cosine = ln_memory_wants_cosine(memory) ? forward->cosines : NULL;
    ln_parallel(team, tokens, finish_attention_row, r);
    if (r->cosine) ln_memory_observe_cosine(memory, index, r->cosine, tokens);
    r->cosine = NULL;
    return LINNET_OK;
}

static ln_matrix rows_of(const ln_matrix *matrix, int64_t first, int64_t count) {
    ln_matrix part = *matrix;
    part.rows = count;
    part.data = (const unsigned char *)matrix->data + (uint64_t)first * ln_format_bytes(matrix->type, matrix->columns);
    return part;
}

/* gate = activation(G h) * U h, columns first .. first + count - 1, `step` at a time. */
static void run_gates(ln_forward *forward, int64_t first, int64_t count, int64_t tokens, rows *r) {
    for (int64_t at = 0; at < count; at += forward->step) {
        r->columns = ln_min_i64(forward->step, count - at);
        const ln_matrix gate = rows_of(&r->layer->gate, first + at, r->columns),
                        up = rows_of(&r->layer->up, first + at, r->columns);
        const ln_product gates[] = {{&gate, r->gate + at, forward->slice}, {&up, r->up, forward->step}};
        multiply(forward, gates, 2, forward->h, tokens);
        rows here = *r;
        here.gate += at;
        ln_parallel(forward->model->context->team, tokens, activate_row, &here);
    }
}

static void run_feed_forward(ln_forward *forward, int64_t index, int64_t tokens, rows *r) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *h = &model->hyper;
    const bool few = tokens < model->kernels.matmul.panel_from; /* the dot way knows no slices */
    forward->slice = few ? h->feed_forward : forward->shape.slice;
    forward->step = few ? h->feed_forward : forward->shape.step;
    const bool slices = forward->slice < h->feed_forward;
    r->given = slices ? forward->stage : forward->h;
    r->gate = forward->stage + (slices ? on_stage(tokens, h->width) : 0);
    r->up = r->gate + on_stage(tokens, forward->slice);
    const ln_product down = {&r->layer->down, r->given, h->width};
    for (int64_t first = 0; first < h->feed_forward; first += forward->slice) {
        const ln_matmul_part part = {.column = first, .columns = ln_min_i64(forward->slice, h->feed_forward - first)};
        run_gates(forward, first, part.columns, tokens, r);
        multiply_part(forward, &down, 1, r->gate, forward->slice, tokens, &part);
    }
    r->next_norm = index + 1 < h->layers ? model->layers[index + 1].attention_norm : NULL;
    ln_parallel(model->context->team, tokens, finish_feed_forward_row, r);
}

/* Cosines and sines of the positions from `first` on. */
static void turn(ln_forward *forward, int64_t first, int64_t tokens) {
    for (int local = 0; local < 2; local++)
        ln_rope_angles(&forward->model->rope, forward->inverse[local], forward->magnitude[local], first, tokens,
                       forward->cosine[local], forward->sine[local]);
}

linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens) {
    linnet_model *model = forward->model;
    linnet_context *context = model->context;
    turn(forward, ln_memory_position(memory), tokens);
    rows r = {.forward = forward, .ids = ids, .next_norm = model->layers[0].attention_norm};
    ln_parallel(context->team, tokens, embed_row, &r);
    for (int64_t i = 0; i < model->hyper.layers; i++) {
        if ((i == 0 || ln_memory_undoes(memory)) && ln_memory_pass(memory) != LN_PASS_PROBE && ln_interrupted(context))
            return ln_fail(context, LINNET_INTERRUPTED, "interrupted");
        r.layer = &model->layers[i];
        if (forward->watch) forward->watch(forward->watcher, i, forward->h, tokens);
        const linnet_status status = run_attention(forward, memory, i, tokens, &r);
        if (status != LINNET_OK) return status;
        run_feed_forward(forward, i, tokens, &r);
    }
    ln_memory_commit(memory, tokens);
    return LINNET_OK;
}

void ln_forward_fill(ln_forward *forward, ln_memory *memory, int64_t tokens, ln_forward_source give, void *source) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *h = &model->hyper;
    const int64_t keys = h->key_value_heads * h->key_size, values = h->key_value_heads * h->value_size;
    rows r = {.forward = forward, .key = forward->stage, .value = forward->stage + on_stage(tokens, keys)};
    turn(forward, ln_memory_position(memory), tokens);
    for (int64_t i = 0; i < h->layers; i++) {
        r.layer = &model->layers[i];
        give(source, i, tokens, r.key, r.value);
        ln_parallel(model->context->team, tokens, project_row, &r);
        ln_memory_append(memory, model->context->team, i, tokens, r.key, keys, r.value, values);
    }
    ln_memory_commit(memory, tokens);
}

void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, int64_t together, float *logits) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *hyper = &model->hyper;
    for (int64_t t = 0; t < count; t++)
        model->kernels.vector.rms_norm(forward->h + t * hyper->width, forward->x + (first + t) * hyper->width,
                                       model->output_norm, hyper->width, hyper->norm_epsilon);
    const ln_product head = {&model->head, logits, hyper->vocabulary};
    const ln_matmul_part part = {.tokens = together};
    multiply_part(forward, &head, 1, forward->h, hyper->width, count, &part);
    if (hyper->logit_cap > 0)
        for (int64_t t = 0; t < count; t++)
            model->kernels.vector.soft_cap(logits + t * hyper->vocabulary, hyper->logit_cap, hyper->vocabulary);
}
