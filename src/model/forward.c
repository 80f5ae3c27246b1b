/* Owns: the blocks of the layers (equation in part.h), run over a piece of tokens.
 *
 * Row work between the products is split over tokens, the products over weight rows, attention over heads and query
 * tiles: no value is computed by two threads or in an order that depends on them, so the bits are the same for any
 * number of threads. */
#include "model/forward.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/part_attention.h"

/* ---- room ---- */

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

int64_t ln_stage(int64_t tokens, int64_t count) {
    return ln_ceil_div(tokens * count, 16) * 16;
}

void ln_room_stage(ln_room *room, int64_t floats) {
    room->stage = ln_max_i64(room->stage, floats);
}

/* Of the panel way for the whole piece, of the dot way for as many as go by it. */
void ln_room_product(linnet_model *model, const ln_forward_shape *shape, const ln_matrix *weight, int64_t columns,
                     ln_room *room) {
    const int threads = ln_team_size(model->context->team);
    const int64_t few = ln_min_i64(shape->piece, model->kernels.matmul.panel_from - 1);
    const uint64_t panel =
        ln_matmul_workspace_of(&model->kernels, threads, weight->type, shape->exact, true, shape->piece, columns);
    const uint64_t dot =
        ln_matmul_workspace_of(&model->kernels, threads, weight->type, shape->exact, false, few, weight->columns);
    if (dot > room->scratch) room->scratch = dot;
    if (panel > room->scratch && few < shape->piece) room->scratch = panel;
}

void ln_cost_product(const linnet_model *model, const ln_forward_shape *shape, const ln_matrix *weight, ln_cost *cost) {
    cost->weights[model->kernels.matmul.panel[shape->exact][weight->type].form] +=
        (double)weight->rows * (double)weight->columns;
}

const ln_part *ln_layer_part(const ln_layer *layer, const ln_part_kind *kind) {
    for (int b = 0; b < layer->count; b++)
        for (int p = 0; p < layer->block[b].parts; p++)
            if (layer->block[b].part[p].kind == kind) return &layer->block[b].part[p];
    return NULL;
}

int64_t ln_forward_unit(const linnet_model *model, bool exact) {
    int64_t unit = 1;
    for (int64_t i = 0; i < model->hyper.layers; i++)
        for (int b = 0; b < model->layers[i].count; b++)
            for (int p = 0; p < model->layers[i].block[b].parts; p++) {
                const ln_part *part = &model->layers[i].block[b].part[p];
                if (part->kind->unit) unit = ln_max_i64(unit, part->kind->unit(model, part, exact));
            }
    return unit;
}

static ln_room find_room(linnet_model *model, const ln_forward_shape *shape) {
    ln_room room = {0};
    ln_room_product(model, shape, &model->head, model->hyper.width, &room);
    for (int64_t i = 0; i < model->hyper.layers; i++)
        for (int b = 0; b < model->layers[i].count; b++)
            for (int p = 0; p < model->layers[i].block[b].parts; p++) {
                const ln_part *part = &model->layers[i].block[b].part[p];
                part->kind->room(model, part, shape, &room);
            }
    return room;
}

ln_cost ln_forward_cost(const linnet_model *model, const ln_forward_shape *shape) {
    ln_cost cost = {0};
    for (int64_t i = 0; i < model->hyper.layers; i++)
        for (int b = 0; b < model->layers[i].count; b++)
            for (int p = 0; p < model->layers[i].block[b].parts; p++) {
                const ln_part *part = &model->layers[i].block[b].part[p];
                part->kind->weigh(model, part, shape, &cost);
            }
    return cost;
}

static void lay_out(ln_forward *forward, linnet_model *model, const ln_forward_shape *shape, carver *from) {
    const ln_hyperparameters *h = &model->hyper;
    const uint64_t tokens = (uint64_t)shape->piece, pairs = (uint64_t)model->rope.size / 2, width = (uint64_t)h->width;
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
    forward->room = find_room(model, shape);
    forward->cosines = carve(from, tokens, sizeof(double));
    forward->keep = model->gate ? carve(from, tokens * (uint64_t)h->key_value_heads, sizeof(float)) : NULL;
    forward->shared = carve(from, (uint64_t)forward->room.shared, sizeof(float));
    forward->sum = model->parallel ? carve(from, tokens * width, sizeof(float)) : NULL;
    forward->x = carve(from, tokens * width, sizeof(float));
    carver over = *from;
    carve(&over, (uint64_t)forward->room.kept, sizeof(float));
    forward->over = carve(&over, forward->room.over, 1);
    forward->stage = carve(from, (uint64_t)forward->room.stage, sizeof(float));
    forward->h = carve(from, tokens * width, sizeof(float));
    forward->scratch = carve(from, forward->room.scratch, 1);
    if (over.used > from->used) from->used = over.used;
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
    const ln_block *block, *next; /* next NULL: none follows */
    const ln_part *part;
    const int32_t *ids;
    float *given;     /* [tokens, width], what the part adds to x */
    double *cosine;   /* [tokens] of x before and after; NULL: not wanted */
    bool first, last; /* of the block's parts */
} rows;

/* LayerNorm: (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * weight + bias. */
void ln_norm_row(const linnet_model *model, const ln_norm *norm, float *y, const float *x) {
    const int64_t width = model->hyper.width;
    const ln_vector_kernels *vector = &model->kernels.vector;
    if (!norm->weight) {
        if (y != x) memcpy(y, x, (size_t)width * sizeof *y);
        return;
    }
    if (!norm->bias) {
        vector->rms_norm(y, x, norm->weight, width, model->hyper.norm_epsilon);
        return;
    }
    double sum = 0;
    for (int64_t i = 0; i < width; i++) sum += (double)x[i];
    const double mean = sum / (double)width;
    for (int64_t i = 0; i < width; i++) y[i] = (float)((double)x[i] - mean);
    vector->rms_norm(y, y, norm->weight, width, model->hyper.norm_epsilon);
    vector->add(y, norm->bias, width);
}

/* h = norm(x) of the block that comes. */
static void enter_row(const ln_forward *forward, const ln_block *block, int64_t token) {
    const int64_t width = forward->model->hyper.width;
    float *x = forward->x + token * width, *h = forward->h + token * width;
    ln_norm_row(forward->model, &block->norm, h, x);
    if (block->from_norm) memcpy(x, h, (size_t)width * sizeof *x);
}

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
    if (model->embedding_norm.weight) ln_norm_row(model, &model->embedding_norm, x, x);
    enter_row(forward, r->next, token);
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

static bool counts(float factor) {
    return factor != 0 && factor != 1;
}

/* given = scale (given + bias), added to those of the block's parts before; after the last: x = keep x + add
 * norm'(given), then h for what follows. */
static void finish_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const rows *r = argument;
    const ln_forward *forward = r->forward;
    const linnet_model *model = forward->model;
    const ln_vector_kernels *vector = &model->kernels.vector;
    const ln_block *block = r->block;
    const int64_t width = model->hyper.width;
    float *x = forward->x + token * width, *given = r->given + token * width;
    if (r->part->bias) vector->add(given, r->part->bias, width);
    if (counts(r->part->scale)) vector->scale(given, r->part->scale, width);
    if (!r->first) vector->add(given, forward->sum + token * width, width);
    if (!r->last) {
        memcpy(forward->sum + token * width, given, (size_t)width * sizeof *given);
        ln_norm_row(model, &block->norm, forward->h + token * width, x);
        return;
    }
    if (block->post_norm.weight) ln_norm_row(model, &block->post_norm, given, given);
    if (counts(block->add)) vector->scale(given, block->add, width);
    if (counts(block->keep)) vector->scale(x, block->keep, width);
    if (r->cosine) r->cosine[token] = cosine_of_sum(x, given, width);
    vector->add(x, given, width);
    if (r->next) enter_row(forward, r->next, token);
}

/* ---- products ---- */

void ln_part_multiply_part(ln_forward *forward, const ln_product *products, int count, const float *x, int64_t stride,
                           int64_t tokens, const ln_matmul_part *part) {
    linnet_model *model = forward->model;
    ln_matmul_run_part(&model->kernels, model->context->team, products, count, x, stride, tokens, forward->shape.exact,
                       forward->scratch, part);
}

void ln_part_multiply(ln_forward *forward, const ln_product *products, int count, const float *x, int64_t tokens) {
    const ln_matmul_part all = {0};
    ln_part_multiply_part(forward, products, count, x, products[0].weight->columns, tokens, &all);
}

ln_matrix ln_matrix_rows(const ln_matrix *matrix, int64_t first, int64_t count) {
    ln_matrix part = *matrix;
    part.rows = count;
    part.data = (const unsigned char *)matrix->data + (uint64_t)first * ln_format_bytes(matrix->type, matrix->columns);
    return part;
}

/* ---- layers ---- */

/* Cosines and sines of the positions from `first` on. */
void ln_turn(ln_forward *forward, int64_t first, int64_t tokens) {
    if (forward->model->rope.size == 0) return;
    for (int local = 0; local < 2; local++)
        ln_rope_angles(&forward->model->rope, forward->inverse[local], forward->magnitude[local], first, tokens,
                       forward->cosine[local], forward->sine[local]);
}

static bool attends(const ln_block *block) {
    for (int p = 0; p < block->parts; p++)
        if (block->part[p].kind->attends) return true;
    return false;
}

static linnet_status run_block(ln_forward *forward, ln_memory *memory, int64_t index, const ln_block *block,
                               const ln_block *next, int64_t tokens) {
    rows r = {.forward = forward, .block = block, .next = next};
    for (int p = 0; p < block->parts; p++) {
        const ln_part *part = r.part = &block->part[p];
        ln_part_call call = {.memory = memory, .tokens = tokens, .position = ln_memory_position(memory)};
        if (part->state_floats) {
            call.state = ln_memory_state(memory, index) + part->state_offset;
            call.next = ln_memory_next_state(memory, index) + part->state_offset;
        }
        const linnet_status status = part->kind->run(forward, part, &call, &r.given);
        if (status != LINNET_OK) return status;
        r.first = p == 0;
        r.last = p + 1 == block->parts;
        r.cosine = r.last && attends(block) && ln_memory_wants_cosine(memory) ? forward->cosines : NULL;
        ln_parallel(forward->model->context->team, tokens, finish_row, &r);
        if (r.cosine) ln_memory_observe_cosine(memory, index, r.cosine, tokens);
    }
    return LINNET_OK;
}

linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens) {
    linnet_model *model = forward->model;
    linnet_context *context = model->context;
    const int64_t layers = model->hyper.layers;
    ln_turn(forward, ln_memory_position(memory), tokens);
    rows r = {.forward = forward, .ids = ids, .next = &model->layers[0].block[0]};
    ln_parallel(context->team, tokens, embed_row, &r);
    for (int64_t i = 0; i < layers; i++) {
        if ((i == 0 || ln_memory_undoes(memory)) && ln_memory_pass(memory) != LN_PASS_PROBE && ln_interrupted(context))
            return ln_fail(context, LINNET_INTERRUPTED, "interrupted");
        const ln_layer *layer = &model->layers[i];
        if (forward->watch) forward->watch(forward->watcher, i, forward->h, tokens);
        for (int b = 0; b < layer->count; b++) {
            const ln_block *next = b + 1 < layer->count ? &layer->block[b + 1] : i + 1 < layers ? layer[1].block : NULL;
            const linnet_status status = run_block(forward, memory, i, &layer->block[b], next, tokens);
            if (status != LINNET_OK) return status;
        }
    }
    ln_memory_commit(memory, tokens);
    return LINNET_OK;
}

void ln_forward_fill(ln_forward *forward, ln_memory *memory, int64_t tokens, ln_forward_source give, void *source) {
    const ln_hyperparameters *h = &forward->model->hyper;
    float *keys = forward->stage, *values = keys + ln_stage(tokens, h->key_value_heads * h->key_size);
    ln_turn(forward, ln_memory_position(memory), tokens);
    for (int64_t i = 0; i < h->layers; i++) {
        give(source, i, tokens, keys, values);
        ln_attention_fill(forward, memory, i, tokens, keys, values);
    }
    ln_memory_commit(memory, tokens);
}

void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, int64_t together, float *logits) {
    linnet_model *model = forward->model;
    const ln_hyperparameters *hyper = &model->hyper;
    for (int64_t t = 0; t < count; t++)
        ln_norm_row(model, &model->output_norm, forward->h + t * hyper->width, forward->x + (first + t) * hyper->width);
    const ln_product head = {&model->head, logits, hyper->vocabulary};
    const ln_matmul_part part = {.tokens = together};
    ln_part_multiply_part(forward, &head, 1, forward->h, hyper->width, count, &part);
    for (int64_t t = 0; t < count; t++) {
        float *row = logits + t * hyper->vocabulary;
        if (counts(hyper->logit_scale)) model->kernels.vector.scale(row, hyper->logit_scale, hyper->vocabulary);
        if (hyper->logit_cap > 0) model->kernels.vector.soft_cap(row, hyper->logit_cap, hyper->vocabulary);
    }
}
