/* Owns: what a piece of tokens needs on a GPU beside weights and pages: one block of memory, and how each class of
 * layers attends. Sequences that are forks of one another share it: they run one after the other. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "model/cuda/engine.h"

enum { LOGITS_BYTES = 64 << 20, ROWS_OF_TASK = 64, TASK_SLACK = 4096 };

/* ---- how layers attend ---- */

static bool page_format(linnet_type precision, ln_cuda_page_format *format) {
    switch (precision) {
    case LINNET_BF16:
        *format = LN_CUDA_PAGE_BF16;
        return true;
    case LINNET_F16:
        *format = LN_CUDA_PAGE_F16;
        return true;
    case LINNET_Q8_0:
        *format = LN_CUDA_PAGE_Q8_0;
        return true;
    case LINNET_Q4_0:
        *format = LN_CUDA_PAGE_Q4_0;
        return true;
    default:
        return false;
    }
}

int64_t ln_cuda_head_bytes(const ln_cuda_decode *decode, int64_t size) {
    if (ln_cuda_plain(decode->format)) return 2 * LN_CUDA_PAGE_TOKENS * size;
    return LN_CUDA_PAGE_TOKENS / LN_CUDA_TILE * ln_cuda_tile_bytes(decode->format, size);
}

int64_t ln_cuda_page_bytes(const ln_cuda_room *room, int class, int part) {
    const ln_hyperparameters *h = &room->model->hyper;
    const int64_t bytes = ln_cuda_head_bytes(&room->classes[class].decode, part ? h->value_size : h->key_size);
    return (int64_t)ln_round_up((size_t)(h->key_value_heads * bytes), LN_CUDA_ALIGNMENT);
}

static linnet_status plan_class(ln_cuda_room *room, const ln_cuda_device *device, int64_t window,
                                ln_cuda_page_format format, ln_cuda_class *class) {
    linnet_model *model = room->model;
    const ln_hyperparameters *h = &model->hyper;
    const ln_device_shape *shape = &room->shape;
    const int64_t pages = ln_ceil_div(shape->context, LN_CUDA_PAGE_TOKENS);
    class->window = window;
    class->slots = window ? ln_min_i64(pages, ln_ceil_div(window + shape->piece, LN_CUDA_PAGE_TOKENS) + 1) : pages;
    class->decode = (ln_cuda_decode){.sequences = 1,
                                     .queries = 1,
                                     .heads = h->heads,
                                     .key_value_heads = h->key_value_heads,
                                     .key_size = h->key_size,
                                     .value_size = h->value_size,
                                     .capacity = shape->context,
                                     .page_tokens = LN_CUDA_PAGE_TOKENS,
                                     .format = format,
                                     .query_element = LN_CUDA_ELEMENT_BF16,
                                     .output_element = LN_CUDA_ELEMENT_BF16,
                                     .scale = h->score_scale,
                                     .soft_cap = h->score_cap,
                                     .window = window};
    if (shape->policy && !window) {
        class->decode.sequences = h->key_value_heads;
        class->decode.heads = h->heads / h->key_value_heads;
        class->decode.key_value_heads = 1;
        class->decode.capacity = ln_min_i64(shape->context, room->lane_pages * LN_CUDA_PAGE_TOKENS);
    }
    class->any = ln_cuda_decode_plan_make(&class->decode, device, NULL, &class->decode_plan) != LN_CUDA_OK;
    class->key_offsets[1] = shape->context;
    class->query_offsets[1] = ln_min_i64(shape->piece, shape->context);
    class->attention = (ln_cuda_attention){.heads = h->heads,
                                           .key_value_heads = h->key_value_heads,
                                           .key_size = h->key_size,
                                           .value_size = h->value_size,
                                           .sequences = 1,
                                           .query_offsets = class->query_offsets,
                                           .key_offsets = class->key_offsets,
                                           .scale = h->score_scale,
                                           .soft_cap = h->score_cap,
                                           .causal = true,
                                           .window = window};
    class->any_prompt =
        ln_cuda_attention_plan_make(&class->attention, device, NULL, &class->attention_plan) != LN_CUDA_OK;
    if ((class->any || class->any_prompt) && !ln_cuda_plain(format))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "keys of %lld and values of %lld cannot be kept as %s on a GPU, only as bf16 or f16",
                       (long long)h->key_size, (long long)h->value_size,
                       linnet_type_name(shape->policy && !window ? shape->policy->near : shape->precision));
    return LINNET_OK;
}

/* ---- sizes ---- */

static int64_t most_columns(const linnet_model *model) {
    int64_t most = 0;
    for (int64_t i = 0; i < model->hyper.layers; i++) {
        const ln_part *part = ln_layer_part(&model->layers[i], &ln_feed_forward_part);
        if (part) most = ln_max_i64(most, ((const ln_feed_forward_weights *)part->weights)->columns);
    }
    return most;
}

/* Workspace of a product of this many tokens with any matrix of the model. */
static uint64_t product_bytes(const linnet_model *model, const ln_cuda_device *device, int64_t tokens) {
    const ln_hyperparameters *h = &model->hyper;
    const int64_t columns[] = {h->width, h->heads * h->value_size, most_columns(model)};
    const int64_t rows = ln_max_i64(ln_max_i64(h->vocabulary, h->heads * h->key_size), most_columns(model));
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        ln_cuda_product product = {.count = 1, .tokens = tokens};
        ln_cuda_product_plan plan;
        if (!columns[i]) continue;
        product.weight[0] =
            (ln_cuda_weight){.kind = LN_CUDA_WEIGHT_Q8_0, .rows = ln_max_i64(rows, h->width), .columns = columns[i]};
        /* As if cuBLASLt were there. */
        if (ln_cuda_product_plan_make(&product, device, device, &plan) == LN_CUDA_OK)
            most = ln_max_i64(most, plan.workspace);
    }
    return (uint64_t)most;
}

static void lay_out(ln_cuda_room *room, const ln_cuda_device *device, ln_cuda_carver *from) {
    const linnet_model *model = room->model;
    const ln_hyperparameters *h = &model->hyper;
    const uint64_t tokens = (uint64_t)room->shape.piece, pairs = (uint64_t)model->rope.size / 2;
    const uint64_t columns = (uint64_t)most_columns(model), real = sizeof(float), half = 2;
    const uint64_t queries = (uint64_t)(h->heads * h->key_size), keys = (uint64_t)(h->key_value_heads * h->key_size),
                   values = (uint64_t)(h->key_value_heads * h->value_size);
    room->task_bytes = (uint64_t)h->heads * (tokens / ROWS_OF_TASK + 1) * sizeof(ln_cuda_task) + TASK_SLACK;
    uint64_t stage = queries + keys + values, gathered = 0;
    if (tokens > LN_CUDA_PRODUCT_FEW && 2 * columns > stage) stage = 2 * columns;
    room->rows = ln_max_i64(1, ln_min_i64(room->shape.piece, LOGITS_BYTES / 4 / h->vocabulary));
    room->step = ln_cuda_carve(from, tokens + 2, sizeof *room->step);
    room->best = ln_cuda_carve(from, 1, sizeof *room->best);
    room->best_workspace = ln_cuda_carve(from, LN_CUDA_BEST_BYTES, 1);
    room->x = ln_cuda_carve(from, tokens * (uint64_t)h->width, real);
    room->finished = ln_cuda_carve(from, (uint64_t)h->width, real);
    room->given = ln_cuda_carve(from, tokens * (uint64_t)h->width, real);
    room->stage = ln_cuda_carve(from, tokens * stage, real);
    room->key = ln_cuda_carve(from, tokens * keys, real);
    room->value = ln_cuda_carve(from, tokens * values, real);
    room->h = ln_cuda_carve(from, tokens * (uint64_t)ln_cuda_padded(h->width), half);
    const uint64_t few = tokens < LN_CUDA_PRODUCT_FEW ? tokens : LN_CUDA_PRODUCT_FEW;
    room->digits.high = ln_cuda_carve(from, few * (uint64_t)ln_cuda_padded(h->width), 2);
    room->digits.step = ln_cuda_carve(from, few * (uint64_t)ln_cuda_padded(h->width) / 32, real);
    room->query = ln_cuda_carve(from, tokens * queries, half);
    room->mixed = ln_cuda_carve(from, tokens * (uint64_t)ln_cuda_padded(h->heads * h->value_size), half);
    room->gated = ln_cuda_carve(from, tokens * (uint64_t)ln_cuda_padded((int64_t)columns), half);
    room->logits = ln_cuda_carve(from, (uint64_t)(room->rows * h->vocabulary), real);
    for (int local = 0; local < 2; local++) {
        room->inverse[local] = ln_cuda_carve(from, pairs, sizeof(double));
        room->cosine[local] = ln_cuda_carve(from, tokens * pairs, real);
        room->sine[local] = ln_cuda_carve(from, tokens * pairs, real);
    }
    for (int c = 0; c < LN_CUDA_CLASSES; c++) {
        ln_cuda_class *class = &room->classes[c];
        const int64_t held = class->window ? class->window + room->shape.piece : class->decode.capacity;
        class->table =
            ln_cuda_carve(from, (uint64_t)ln_ceil_div(room->shape.context, LN_CUDA_PAGE_TOKENS), sizeof(int32_t));
        class->decode_workspace = ln_cuda_carve(from, class->any ? 0 : (uint64_t) class->decode_plan.workspace, 1);
        const bool prompts = class->layers && !class->any_prompt;
        class->tasks = ln_cuda_carve(from, prompts ? room->task_bytes : 0, 1);
        if (prompts) gathered = (uint64_t)ln_max_i64((int64_t)gathered, ln_min_i64(held, room->shape.context));
    }
    room->gathered[0] = ln_cuda_carve(from, gathered * keys, half);
    room->gathered[1] = ln_cuda_carve(from, gathered * values, half);
    const uint64_t of_piece = product_bytes(model, device, room->shape.piece),
                   of_logits = product_bytes(model, device, room->rows),
                   of_few = product_bytes(model, device, ln_min_i64(room->shape.piece, LN_CUDA_PRODUCT_FEW));
    uint64_t most = of_piece > of_logits ? of_piece : of_logits;
    if (of_few > most) most = of_few;
    room->products = ln_cuda_carve(from, most, 1);
}

linnet_status ln_cuda_room_plan(linnet_model *model, const ln_cuda_device *device, const ln_device_shape *shape,
                                ln_cuda_room *room) {
    *room = (ln_cuda_room){.model = model, .shape = *shape, .users = 1};
    ln_ragged_shape lanes;
    if (shape->policy) {
        room->policy = *shape->policy;
        room->shape.policy = &room->policy;
    }
    if (shape->policy && !ln_cuda_lanes_shape(model, shape, &lanes))
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                       "policy %s is for layers that see the whole text; this model has none",
                       shape->policy->row->name);
    if (shape->policy) room->lane_pages = ln_max_i64(1, ln_ragged_lane_pages(&lanes));
    for (int c = 0; c < LN_CUDA_CLASSES; c++) {
        const linnet_type precision = shape->policy && c == 0 ? shape->policy->near : shape->precision;
        ln_cuda_page_format format;
        if (!page_format(precision, &format))
            return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                           "on a GPU keys and values can be kept as bf16, f16, q8_0 or q4_0, not as %s",
                           linnet_type_name(precision));
        for (int64_t i = 0; i < model->hyper.layers; i++)
            room->classes[c].layers += model->attends[i] && (model->windows[i] > 0) == c;
        const linnet_status status = plan_class(room, device, c ? model->hyper.window : 0, format, &room->classes[c]);
        if (status != LINNET_OK) return status;
    }
    ln_cuda_carver counted = {0};
    lay_out(room, device, &counted);
    room->bytes = counted.used;
    return LINNET_OK;
}

/* ---- opening ---- */

static linnet_status fill_table(ln_cuda_room *room, ln_cuda_class *class, int32_t *host) {
    ln_cuda_model *on = room->model->on_device;
    const int64_t pages = ln_ceil_div(room->shape.context, LN_CUDA_PAGE_TOKENS);
    for (int64_t i = 0; i < pages; i++) host[i] = (int32_t)(i % class->slots);
    ln_cuda_code code = ln_cuda_copy_to_device(class->table, host, (uint64_t)pages * sizeof *host, on->stream);
    if (!code && !class->any) code = ln_cuda_decode_prepare(&class->decode_plan, class->decode_workspace, on->stream);
    if (!code) code = ln_cuda_wait(on->stream);
    return ln_cuda_fail(room->model->context, code, "preparing attention");
}

static linnet_status fill(ln_cuda_room *room) {
    linnet_model *model = room->model;
    linnet_context *context = model->context;
    ln_cuda_model *on = model->on_device;
    const uint64_t pairs = (uint64_t)model->rope.size / 2,
                   pages = (uint64_t)ln_ceil_div(room->shape.context, LN_CUDA_PAGE_TOKENS);
    const uint64_t bytes = pairs * sizeof(double) > pages * 4 ? pairs * sizeof(double) : pages * 4;
    LN_CUDA_TRY(context, ln_cuda_zero(room->memory, room->bytes, on->stream), "clearing the workspace");
    void *host = ln_allocate(context, bytes, 1, "tables for the device");
    if (!host) return LINNET_ERROR_MEMORY;
    linnet_status status = LINNET_OK;
    for (int c = 0; c < LN_CUDA_CLASSES && status == LINNET_OK; c++) status = fill_table(room, &room->classes[c], host);
    for (int local = 0; local < 2 && status == LINNET_OK; local++) {
        room->magnitude[local] =
            ln_rope_frequencies(&model->rope, local && model->rope.base_local > 0, room->shape.context, host);
        ln_cuda_code code = ln_cuda_copy_to_device(room->inverse[local], host, pairs * sizeof(double), on->stream);
        if (!code) code = ln_cuda_wait(on->stream);
        status = ln_cuda_fail(context, code, "preparing rotations");
    }
    ln_release(context, host);
    return status;
}

static linnet_status open_room(ln_cuda_room *room) {
    linnet_context *context = room->model->context;
    const ln_cuda_model *on = room->model->on_device;
    const uint64_t ints = (uint64_t)room->shape.piece + 2;
    void *host;
    LN_CUDA_TRY(context, ln_cuda_allocate(room->bytes, (void **)&room->memory), "making room for activations");
    LN_CUDA_TRY(context, ln_cuda_allocate_host(ints * sizeof(int32_t), &host), "making room on the host");
    room->step_host = host;
    LN_CUDA_TRY(context, ln_cuda_allocate_host(sizeof(int32_t), &host), "making room on the host");
    room->best_host = host;
    room->tasks_host = ln_allocate(context, room->task_bytes, 1, "tasks of attention");
    if (!room->tasks_host) return LINNET_ERROR_MEMORY;
    ln_cuda_carver parts = {.base = room->memory};
    lay_out(room, &on->device, &parts);
    return fill(room);
}

linnet_status ln_cuda_room_open(linnet_model *model, const ln_device_shape *shape, ln_cuda_room **room) {
    const ln_cuda_model *on = model->on_device;
    *room = NULL;
    ln_cuda_room *made = ln_allocate_zero(model->context, 1, sizeof *made, "room on the device");
    if (!made) return LINNET_ERROR_MEMORY;
    linnet_status status = ln_cuda_room_plan(model, &on->device, shape, made);
    if (status == LINNET_OK) {
        /* The offsets lie in the structure itself, which does not move from here on. */
        status = open_room(made);
    }
    if (status != LINNET_OK) {
        ln_cuda_room_close(made);
        return status;
    }
    *room = made;
    return LINNET_OK;
}

void ln_cuda_room_close(ln_cuda_room *room) {
    if (!room || --room->users > 0) return;
    linnet_context *context = room->model->context;
    ln_cuda_release(room->memory);
    ln_cuda_release_host(room->step_host);
    ln_cuda_release_host(room->best_host);
    ln_release(context, room->tasks_host);
    ln_release(context, room);
}
