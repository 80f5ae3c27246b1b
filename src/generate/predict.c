/* Owns: KV Prediction (P177): keys and values of a model from those of a smaller one.
 *
 * For layer j of the model, with the helper's keys (normalised, not rotated) and values of all its layers side by side,
 *     a = [k_0 v_0 k_1 v_1 ...],   [K_j V_j] = W_j a + b_j,
 * and K_j goes through the norm and the rotation of the model's own keys.
 *
 * Invariant: session and helper hold the same number of tokens after every piece. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "generate/session.h"
#include "model/file.h"
#include "model/part_attention.h"

typedef struct map {
    ln_matrix weight;  /* [keys + values of the model, columns] */
    const float *bias; /* [keys + values] */
} map;

typedef struct prediction {
    linnet_session *session, *helper;
    linnet_file *file;
    map *maps;       /* [layers of the model] */
    int64_t columns; /* keys and values of all layers of the helper */
    float *a;        /* [piece, columns] */
    float *mapped;   /* [piece, keys + values of the model] */
    void *scratch;
    int64_t layer; /* of the helper, that row tasks are at */
    float *keys, *values;
} prediction;

static int64_t keys_of(const linnet_model *model) {
    return model->hyper.key_value_heads * model->hyper.key_size;
}
static int64_t values_of(const linnet_model *model) {
    return model->hyper.key_value_heads * model->hyper.value_size;
}

/* ---- maps ---- */

static linnet_status wrong(const prediction *p, const char *name, const char *what) {
    return ln_fail(p->session->model->context, LINNET_ERROR_UNSUPPORTED,
                   "%s: %s %s; the maps there are for other models", p->file->path, name, what);
}

static linnet_status take_map(const prediction *p, int64_t i, map *m) {
    const linnet_model *model = p->session->model;
    const int64_t rows = keys_of(model) + values_of(model);
    char name[64];
    snprintf(name, sizeof name, "kvp.blk.%lld.weight", (long long)i);
    const linnet_tensor_info *weight = ln_file_find(p->file, name);
    if (!weight) return wrong(p, name, "is missing");
    if (weight->dimensions != 2 || weight->size[0] != p->columns || weight->size[1] != rows ||
        ln_format_bytes(weight->type, p->columns) == 0 ||
        (uintptr_t)weight->data % (weight->type == LINNET_F32 ? 4 : 2) != 0)
        return wrong(p, name, "has not the size that these two models ask for");
    m->weight = (ln_matrix){weight->type, rows, p->columns, weight->data};
    snprintf(name, sizeof name, "kvp.blk.%lld.bias", (long long)i);
    const linnet_tensor_info *bias = ln_file_find(p->file, name);
    if (!bias || bias->dimensions != 1 || bias->size[0] != rows || bias->type != LINNET_F32 ||
        (uintptr_t)bias->data % sizeof(float) != 0)
        return wrong(p, name, "is missing or has not the size that these two models ask for");
    m->bias = bias->data;
    return LINNET_OK;
}

static linnet_status open_maps(prediction *p) {
    linnet_context *context = p->session->model->context;
    const int64_t layers = p->session->model->hyper.layers;
    const char *path = p->helper->model->file->path;
    linnet_status status = ln_file_open_beside(context, path, "predict", &p->file);
    if (status != LINNET_OK) return status;
    char next[64];
    snprintf(next, sizeof next, "kvp.blk.%lld.weight", (long long)layers);
    if (!p->file)
        return ln_fail(
            context, LINNET_ERROR_UNSUPPORTED,
            "%s has no maps to another model's keys and values: no file of that name ending in .predict.gguf "
            "lies beside it",
            path);
    if (ln_file_find(p->file, next)) return wrong(p, next, "is of a layer that the model has not");
    p->maps = ln_allocate_zero(context, (uint64_t)layers, sizeof *p->maps, "maps of keys and values");
    if (!p->maps) return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; status == LINNET_OK && i < layers; i++) status = take_map(p, i, &p->maps[i]);
    return status;
}

/* ---- what the helper holds ---- */

static void finish_helper_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const prediction *p = argument;
    const linnet_model *model = p->helper->model;
    const ln_attention_weights *layer = ln_attention_of(model, p->layer);
    const ln_vector_kernels *vector = &model->kernels.vector;
    const int64_t keys = keys_of(model), values = values_of(model), size = model->hyper.key_size;
    float *row = p->a + token * p->columns + p->layer * (keys + values);
    if (layer->key_bias) vector->add(row, layer->key_bias, keys);
    if (layer->value_bias) vector->add(row + keys, layer->value_bias, values);
    for (int64_t at = 0; layer->key_norm && at < keys; at += size)
        vector->rms_norm(row + at, row + at, layer->key_norm, size, model->hyper.norm_epsilon);
}

/* Watches the helper's pass. Its products are made again, for they go into its memory rotated; while it is watched
 * nobody uses its scratch. */
static void keep_layer(void *watcher, int64_t layer, const float *h, int64_t tokens) {
    prediction *p = watcher;
    const linnet_model *model = p->helper->model;
    const ln_forward *forward = &p->helper->workspace->forward;
    const int64_t keys = keys_of(model);
    float *a = p->a + layer * (keys + values_of(model));
    const ln_attention_weights *weights = ln_attention_of(model, layer);
    const ln_product products[] = {{&weights->key, a, p->columns}, {&weights->value, a + keys, p->columns}};
    ln_matmul(&model->kernels, model->context->team, products, 2, h, model->hyper.width, tokens, forward->shape.exact,
              forward->scratch);
    p->layer = layer;
    ln_parallel(model->context->team, tokens, finish_helper_row, p);
}

/* ---- what the model gets ---- */

static void divide_row(void *argument, int64_t token, int worker) {
    (void)worker;
    const prediction *p = argument;
    const linnet_model *model = p->session->model;
    const int64_t keys = keys_of(model), values = values_of(model);
    float *row = p->mapped + token * (keys + values);
    model->kernels.vector.add(row, p->maps[p->layer].bias, keys + values);
    memcpy(p->keys + token * keys, row, (size_t)keys * sizeof *row);
    memcpy(p->values + token * values, row + keys, (size_t)values * sizeof *row);
}

static void give_layer(void *source, int64_t layer, int64_t tokens, float *keys, float *values) {
    prediction *p = source;
    const linnet_model *model = p->session->model;
    const ln_product product = {&p->maps[layer].weight, p->mapped, p->maps[layer].weight.rows};
    ln_matmul(&model->kernels, model->context->team, &product, 1, p->a, p->columns, tokens,
              p->session->workspace->forward.shape.exact, p->scratch);
    p->layer = layer;
    p->keys = keys;
    p->values = values;
    ln_parallel(model->context->team, tokens, divide_row, p);
}

static linnet_status run_piece(prediction *p, const int32_t *ids, int64_t tokens) {
    linnet_session *session = p->session;
    ln_forward *forward = &p->helper->workspace->forward;
    forward->watch = keep_layer;
    forward->watcher = p;
    const linnet_status status = linnet_session_feed(p->helper, ids, tokens);
    forward->watch = NULL;
    if (status != LINNET_OK) return status;
    ln_forward_fill(&session->workspace->forward, session->memory, tokens, give_layer, p);
    memcpy(session->tokens + session->position, ids, (size_t)tokens * sizeof *ids);
    session->position += tokens;
    session->has_logits = false;
    return LINNET_OK;
}

static linnet_status check(linnet_session *session, linnet_session *helper, const int32_t *ids, int64_t count) {
    linnet_context *context = session->model->context;
    if (session->device || helper->device)
        return ln_device_session_refuse(session->device ? session : helper, "take part in KV Prediction");
    if (helper->model->context != context || helper->model->hyper.vocabulary != session->model->hyper.vocabulary)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "session and helper must be of one context and one vocabulary");
    if (!ln_attention_alone(session->model) || !ln_attention_alone(helper->model))
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "keys and values are all that can be predicted: both models must have attention in every layer");
    if (helper->workspace == session->workspace || helper->position != session->position)
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "the helper must be another session that holds the same %lld tokens",
                       (long long)session->position);
    if (*session->plan.policy)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "keys and values cannot be predicted into a session with the policy %s: open it without one",
                       session->plan.policy);
    const linnet_status status = ln_session_check(session, ids, count);
    return status == LINNET_OK ? ln_session_check(helper, ids, count) : status;
}

static linnet_status open_room(prediction *p, int64_t piece) {
    const linnet_model *model = p->session->model;
    linnet_context *context = model->context;
    const uint64_t tokens = (uint64_t)piece, rows = (uint64_t)(keys_of(model) + values_of(model));
    p->a = ln_allocate(context, tokens * (uint64_t)p->columns, sizeof *p->a, "keys and values of the helper");
    p->mapped = ln_allocate(context, tokens * rows, sizeof *p->mapped, "predicted keys and values");
    p->scratch = ln_allocate(
        context, ln_matmul_workspace(&model->kernels, ln_team_size(context->team), piece, p->columns), 1, "workspace");
    return p->a && p->mapped && p->scratch ? LINNET_OK : LINNET_ERROR_MEMORY;
}

linnet_status linnet_session_predict(linnet_session *session, linnet_session *helper, const int32_t *ids,
                                     int64_t count) {
    linnet_context *context = session->model->context;
    linnet_status status = check(session, helper, ids, count);
    if (status != LINNET_OK || count == 0) return status;
    prediction p = {.session = session,
                    .helper = helper,
                    .columns = helper->model->hyper.layers * (keys_of(helper->model) + values_of(helper->model))};
    const int64_t piece = ln_min_i64(count, ln_min_i64(session->plan.piece, helper->plan.piece));
    status = open_maps(&p);
    if (status == LINNET_OK) status = open_room(&p, piece);
    for (int64_t done = 0; status == LINNET_OK && done < count;) {
        if (count > piece) ln_progress(context, "reading the prompt", done, count);
        const int64_t tokens = ln_min_i64(piece, count - done);
        status = run_piece(&p, ids + done, tokens);
        done += tokens;
        if (count > piece && done == count) ln_progress(context, "reading the prompt", done, count);
    }
    linnet_file_close(p.file);
    ln_release(context, p.scratch);
    ln_release(context, p.mapped);
    ln_release(context, p.a);
    ln_release(context, p.maps);
    return status;
}
