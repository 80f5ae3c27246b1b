/* Owns: the layers (equation in model.h), run over a piece of tokens.
 *
 * Row work between the products is split over tokens, the products over weight rows, attention over heads and query
 * tiles: no value is computed by two threads or in an order that depends on them, so the bits are the same for any
 * number of threads. */
#include "model/forward.h"

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

static uint64_t scratch_bytes(linnet_model *model, int64_t piece) {
    const ln_hyperparameters *h = &model->hyper;
    const int threads = ln_team_size(model->context->team);
    const int64_t columns = ln_max_i64(ln_max_i64(h->width, h->feed_forward), h->heads * h->value_size);
    uint64_t bytes = ln_matmul_workspace(&model->kernels, threads, piece, columns);
    for (int64_t i = 0; i < h->layers; i++) {
        const ln_attention attention = describe_attention(model, i);
        const uint64_t more = ln_attention_workspace(&model->kernels, threads, &attention, 1, piece);
        if (more > bytes) bytes = more;
    }
    return bytes;
}

static void lay_out(ln_forward *forward, linnet_model *model, int64_t piece, carver *from) {
    const ln_hyperparameters *h = &model->hyper;
    const uint64_t tokens = (uint64_t)piece, pairs = (uint64_t)model->rope.size / 2;
    for (int local = 0; local < 2; local++) {
        forward->inverse[local] = carve(from, pairs, sizeof(double));
        forward->cosine[local] = carve(from, tokens * pairs, sizeof(float));
        forward->sine[local] = carve(from, tokens * pairs, sizeof(float));
    }
    forward->x = carve(from, tokens * (uint64_t)h->width, sizeof(float));
    forward->h = carve(from, tokens * (uint64_t)h->width, sizeof(float));
    carver attention = *from, feed_forward = *from;
    forward->query = carve(&attention, tokens * (uint64_t)(h->heads * h->key_size), sizeof(float));
    forward->key = carve(&attention, tokens * (uint64_t)(h->key_value_heads * h->key_size), sizeof(float));
    forward->value = carve(&attention, tokens * (uint64_t)(h->key_value_heads * h->value_size), sizeof(float));
    forward->mixed = carve(&attention, tokens * (uint64_t)(h->heads * h->value_size), sizeof(float));
    forward->gate = carve(&feed_forward, tokens * (uint64_t)h->feed_forward, sizeof(float));
    forward->up = carve(&feed_forward, tokens * (uint64_t)h->feed_forward, sizeof(float));
    from->used = attention.used > feed_forward.used ? attention.used : feed_forward.used;
    forward->scratch = carve(from, scratch_bytes(model, piece), 1);
}

uint64_t ln_forward_bytes(linnet_model *model, int64_t piece) {
    ln_forward forward;
    carver parts = {0};
    lay_out(&forward, model, piece, &parts);
    return ln_allocated_bytes(parts.used);
}

linnet_status ln_forward_open(linnet_model *model, int64_t piece, int64_t context, bool exact, ln_forward *forward) {
    *forward = (ln_forward){.model = model, .piece = piece, .exact = exact};
    carver parts = {0};
    lay_out(forward, model, piece, &parts);
    parts.base = forward->block = ln_allocate(model->context, parts.used, 1, "workspace");
    if (!forward->block) return LINNET_ERROR_MEMORY;
    parts.used = 0;
    lay_out(forward, model, piece, &parts);
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
    prepare_heads(forward, layer, forward->query + token * h->heads * h->key_size, h->heads, layer->query_bias,
                  layer->query_norm, token);
    prepare_heads(forward, layer, forward->key + token * h->key_value_heads * h->key_size, h->key_value_heads,
                  layer->key_bias, layer->key_norm, token);
    if (layer->value_bias)
        forward->model->kernels.vector.add(forward->value + token * values, layer->value_bias, values);
}

/* x += norm'(h + bias), then h = norm(x) for what follows. */
static void finish_row(const rows *r, int64_t token, const float *bias, const float *post_norm) {
    const ln_forward *forward = r->forward;
    const linnet_model *model = forward->model;
    const ln_vector_kernels *vector = &model->kernels.vector;
    const int64_t width = model->hyper.width;
    float *x = forward->x + token * width, *h = forward->h + token * width;
    if (bias) vector->add(h, bias, width);
    if (post_norm) vector->rms_norm(h, h, post_norm, width, model->hyper.norm_epsilon);
    vector->add(x, h, width);
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
    const int64_t n = model->hyper.feed_forward;
    float *gate = r->forward->gate + token * n;
    const float *up = r->forward->up + token * n;
    if (model->architecture->activation == LN_GELU_TANH)
        model->kernels.vector.gelu_tanh_multiply(gate, gate, up, n);
    else
        model->kernels.vector.silu_multiply(gate, gate, up, n);
}

/* ---- layers ---- */

static void multiply(ln_forward *forward, const ln_product *products, int count, const float *x, int64_t tokens) {
    linnet_model *model = forward->model;
    ln_matmul(&model->kernels, model->context->team, products, count, x, products[0].weight->columns, tokens,
              forward->exact, forward->scratch);
}

static void run_attention(ln_forward *forward, ln_memory *memory, int64_t index, int64_t tokens, rows *r) {
    linnet_model *model = forward->model;
    ln_team *team = model->context->team;
    const ln_hyperparameters *h = &model->hyper;
    const ln_layer *layer = r->layer;
    const int64_t queries = h->heads * h->key_size, keys = h->key_value_heads * h->key_size,
                  values = h->key_value_heads * h->value_size, mixed = h->heads * h->value_size;
    const ln_product projections[] = {{&layer->query, forward->query, queries},
                                      {&layer->key, forward->key, keys},
                                      {&layer->value, forward->value, values}};
    multiply(forward, projections, 3, forward->h, tokens);
    ln_parallel(team, tokens, project_row, r);
    ln_memory_append(memory, team, index, tokens, forward->key, keys, forward->value, values);
    ln_attention attention = describe_attention(model, index);
    attention.exact = forward->exact;
    const ln_attention_sequence sequence = {.view = ln_memory_view(memory, index),
                                            .keys = ln_memory_position(memory) + tokens,
                                            .tokens = tokens,
                                            .position = ln_memory_position(memory),
                                            .query = forward->query,
                                            .output = forward->mixed,
                                            .query_stride = queries,
                                            .query_head_stride = h->key_size,
                                            .output_stride = mixed,
                                            .output_head_stride = h->value_size};
    ln_attention_run(&model->kernels, team, &attention, &sequence, 1, forward->scratch);
    const ln_product output = {&layer->output, forward->h, h->width};
    multiply(forward, &output, 1, forward->mixed, tokens);
    r->next_norm = layer->feed_forward_norm;
    ln_parallel(team, tokens, finish_attention_row, r);
}

static void run_feed_forward(ln_forward *forward, int64_t index, int64_t tokens, rows *r) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *h = &model->hyper;
    const ln_layer *layer = r->layer;
    const ln_product gates[] = {{&layer->gate, forward->gate, h->feed_forward},
                                {&layer->up, forward->up, h->feed_forward}};
    multiply(forward, gates, 2, forward->h, tokens);
    ln_parallel(model->context->team, tokens, activate_row, r);
    const ln_product down = {&layer->down, forward->h, h->width};
    multiply(forward, &down, 1, forward->gate, tokens);
    r->next_norm = index + 1 < h->layers ? model->layers[index + 1].attention_norm : NULL;
    ln_parallel(model->context->team, tokens, finish_feed_forward_row, r);
}

linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens) {
    linnet_model *model = forward->model;
    linnet_context *context = model->context;
    for (int local = 0; local < 2; local++)
        ln_rope_angles(&model->rope, forward->inverse[local], forward->magnitude[local], ln_memory_position(memory),
                       tokens, forward->cosine[local], forward->sine[local]);
    rows r = {.forward = forward, .ids = ids, .next_norm = model->layers[0].attention_norm};
    ln_parallel(context->team, tokens, embed_row, &r);
    for (int64_t i = 0; i < model->hyper.layers; i++) {
        if (ln_interrupted(context)) return ln_fail(context, LINNET_INTERRUPTED, "interrupted");
        r.layer = &model->layers[i];
        run_attention(forward, memory, i, tokens, &r);
        run_feed_forward(forward, i, tokens, &r);
    }
    ln_memory_commit(memory, tokens);
    return LINNET_OK;
}

void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, float *logits) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *hyper = &model->hyper;
    for (int64_t t = 0; t < count; t++)
        model->kernels.vector.rms_norm(forward->h + t * hyper->width, forward->x + (first + t) * hyper->width,
                                       model->output_norm, hyper->width, hyper->norm_epsilon);
    const ln_product head = {&model->head, logits, hyper->vocabulary};
    multiply(forward, &head, 1, forward->h, count);
    if (hyper->logit_cap > 0)
        for (int64_t t = 0; t < count; t++)
            model->kernels.vector.soft_cap(logits + t * hyper->vocabulary, hyper->logit_cap, hyper->vocabulary);
}
