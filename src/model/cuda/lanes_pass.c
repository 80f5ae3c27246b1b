/* Owns: layers under a policy in the pass of a GPU: where new tokens go, tables and lengths, attention.
 *
 * Invariant: what attention of a layer reads on the device is what the host says of its lanes then. */
#include <string.h>

#include "model/cuda/lanes_inside.h"

/* ---- where tokens go ---- */

static int32_t *host_table(const ln_cuda_lanes *lanes, int64_t layer) {
    return lanes->host + lanes->layers * lanes->heads + layer * lanes->heads * lanes->table_stride;
}

/* Places for new tokens of a layer, and what the device is to know of it. */
static linnet_status place(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens) {
    linnet_context *context = lanes->room->model->context;
    int32_t *table = host_table(lanes, layer);
    int64_t all = 0;
    ln_ragged_append(lanes->ragged, context->team, layer, tokens, NULL, 0, NULL, 0);
    for (int64_t h = 0; h < lanes->heads; h++) {
        const ln_page *pages;
        int64_t count;
        lanes->host[layer * lanes->heads + h] = (int32_t)ln_ragged_lane_of(lanes->ragged, layer, h, &pages, &count);
        if (count > lanes->table_stride)
            return ln_fail(context, LINNET_ERROR_MEMORY, "a lane has more pages than the plan foresaw: a defect");
        all += count;
    }
    if (all == lanes->pages[layer] && !lanes->stale[layer]) return LINNET_OK;
    lanes->pages[layer] = all;
    lanes->stale[layer] = true;
    for (int64_t h = 0; h < lanes->heads; h++) {
        const ln_page *pages;
        int64_t count;
        ln_ragged_lane_of(lanes->ragged, layer, h, &pages, &count);
        for (int64_t i = 0; i < count; i++) table[h * lanes->table_stride + i] = (int32_t)pages[i] - 1;
    }
    return LINNET_OK;
}

/* Lengths of some layers, and their tables where they changed. What is copied is not pinned: it may change again at
 * once. */
static linnet_status send_tables(ln_cuda_lanes *lanes, int64_t first, int64_t layers) {
    linnet_context *context = lanes->room->model->context;
    const int64_t row = lanes->heads * lanes->table_stride, at = first * lanes->heads;
    void *stream = ln_cuda_lanes_stream(lanes);
    bool stale = false;
    for (int64_t i = first; i < first + layers; i++) stale = stale || lanes->stale[i];
    ln_cuda_code code = ln_cuda_copy_to_device(lanes->lengths + at, lanes->host + at,
                                               (uint64_t)(layers * lanes->heads) * sizeof(int32_t), stream);
    if (!code && stale)
        code = ln_cuda_copy_to_device(lanes->tables + first * row, host_table(lanes, first),
                                      (uint64_t)(layers * row) * sizeof(int32_t), stream);
    memset(lanes->stale + first, false, (size_t)layers * sizeof *lanes->stale);
    return ln_cuda_fail(context, code, "sending tables of pages");
}

/* ---- before and after a pass ---- */

linnet_status ln_cuda_lanes_settle_at(ln_cuda_lanes *lanes, int64_t position) {
    if (position == 0 || position > lanes->position) lanes->pending = 0; /* empty, or loaded anew */
    LN_TRY(ln_cuda_lanes_look_behind(lanes));
    /* Lanes of a pass that broke off hold tokens that no position counts. */
    if (position == 0 || position < lanes->position) ln_ragged_rewind(lanes->ragged, position);
    memset(lanes->stale, true, (size_t)lanes->layers * sizeof *lanes->stale);
    lanes->position = position;
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_begin(ln_cuda_lanes *lanes, int64_t tokens, int64_t position) {
    if (position != lanes->position) LN_TRY(ln_cuda_lanes_settle_at(lanes, position));
    if (tokens > 1) return ln_cuda_lanes_look_behind(lanes);
    for (int64_t i = 0; i < lanes->layers; i++) LN_TRY(place(lanes, i, 1));
    return send_tables(lanes, 0, lanes->layers);
}

linnet_status ln_cuda_lanes_enter(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens,
                                  ln_cuda_decode_tensors *tensors) {
    const int64_t number = lanes->index[layer];
    if (tokens > 1) {
        LN_TRY(place(lanes, number, tokens));
        LN_TRY(send_tables(lanes, number, 1));
    }
    tensors->key = lanes->of.key;
    tensors->value = lanes->of.value;
    tensors->page_table = lanes->tables + number * lanes->heads * lanes->table_stride;
    tensors->table_stride = lanes->table_stride;
    tensors->lengths = lanes->lengths + number * lanes->heads;
    return LINNET_OK;
}

/* ---- attention ---- */

static ln_cuda_tensor at_lane(const ln_cuda_tensor *all, int64_t head, int64_t heads, int64_t bytes) {
    return (ln_cuda_tensor){(char *)all->data + head * heads * all->head_stride * bytes, all->token_stride,
                            all->head_stride};
}

/* Of one lane of the piece: queries and outputs of its group. */
static ln_cuda_decode_tensors lane_tensors(const ln_cuda_lanes *lanes, const ln_cuda_decode_tensors *all,
                                           int64_t head) {
    const int64_t group = lanes->room->classes[0].decode.heads;
    ln_cuda_decode_tensors of = *all;
    of.query = at_lane(&all->query, head, group, 2);
    of.output = at_lane(&all->output, head, group, 2);
    of.page_table = all->page_table + head * all->table_stride;
    of.lengths = all->lengths + head;
    return of;
}

static linnet_status attend_alone(const ln_cuda_lanes *lanes, int64_t layer, const ln_cuda_decode_tensors *tensors) {
    ln_cuda_room *room = lanes->room;
    const ln_cuda_class *class = &room->classes[0];
    const ln_hyperparameters *h = &room->model->hyper;
    linnet_context *context = room->model->context;
    void *stream = ln_cuda_lanes_stream(lanes);
    const ln_cuda_decode_rows rows = {.tokens = 1,
                                      .element = LN_CUDA_ELEMENT_FLOAT32,
                                      .key = {room->key, h->key_size, h->key_size},
                                      .value = {room->value, h->value_size, h->value_size}};
    ln_cuda_decode_tensors of = *tensors; /* token s is that of lane s */
    of.query.token_stride = class->decode.heads * of.query.head_stride;
    of.output.token_stride = class->decode.heads * of.output.head_stride;
    if (!ln_cuda_plain(class->decode.format))
        LN_CUDA_TRY(context, ln_cuda_decode_append(&class->decode, &of, &rows, stream), "keeping keys and values");
    const int64_t row = h->heads * h->key_size;
    if (ln_cuda_looks_at_queries(lanes->reads))
        LN_CUDA_TRY(
            context,
            ln_cuda_lanes_keep(lanes->kept + 2 * layer * KEPT * row, KEPT, row, room->query, room->step, stream),
            "keeping queries");
    if (!class->any) {
        LN_CUDA_TRY(context,
                    ln_cuda_decode_run(&class->decode, &class->decode_plan, &of, class->decode_workspace, stream),
                    "attention");
        return LINNET_OK;
    }
    ln_cuda_decode one = class->decode;
    one.sequences = 1;
    for (int64_t i = 0; i < lanes->heads; i++) {
        const ln_cuda_decode_tensors lane = lane_tensors(lanes, tensors, i);
        LN_CUDA_TRY(context, ln_cuda_attend_any(&one, &lane, stream), "attention");
    }
    return LINNET_OK;
}

/* Rounds new keys and values of a lane into its pages; of plain pages they are there. */
static ln_cuda_code append_piece(const ln_cuda_lanes *lanes, const ln_cuda_decode *one, int64_t head, int64_t tokens,
                                 const ln_cuda_decode_tensors *lane, void *stream) {
    const ln_cuda_room *room = lanes->room;
    const ln_hyperparameters *h = &room->model->hyper;
    const ln_cuda_decode_rows rows = {
        .tokens = tokens,
        .element = LN_CUDA_ELEMENT_FLOAT32,
        .key = {room->key + head * h->key_size, h->key_value_heads * h->key_size, h->key_size},
        .value = {room->value + head * h->value_size, h->key_value_heads * h->value_size, h->value_size}};
    if (ln_cuda_plain(one->format)) return LN_CUDA_OK;
    return ln_cuda_decode_append(one, lane, &rows, stream);
}

static ln_cuda_tensor gathered_of(const ln_cuda_lanes *lanes, int64_t head, int part) {
    const ln_cuda_room *room = lanes->room;
    const ln_hyperparameters *h = &room->model->hyper;
    const int64_t size = part ? h->value_size : h->key_size;
    return (ln_cuda_tensor){(char *)room->gathered[part] + 2 * head * size, h->key_value_heads * size, size};
}

/* The plan of so many keys, in the room's tasks; of the whole layer, or of one lane. */
static linnet_status plan(ln_cuda_lanes *lanes, ln_cuda_attention *attention, ln_cuda_attention_plan *made) {
    ln_cuda_room *room = lanes->room;
    linnet_context *context = room->model->context;
    const ln_cuda_model *on = room->model->on_device;
    LN_CUDA_TRY(context, ln_cuda_attention_plan_make(attention, &on->device, NULL, made), "planning attention");
    if (made->workspace > (int64_t)room->task_bytes)
        return ln_cuda_fail(context, LN_CUDA_ARGUMENT, "planning attention");
    ln_cuda_attention_tasks(attention, made, room->tasks_host);
    LN_CUDA_TRY(context, ln_cuda_attention_prepare(made, room->tasks_host, room->classes[0].tasks, on->stream),
                "preparing attention");
    return LINNET_OK;
}

/* All lanes are as long: one call for all of them. */
static linnet_status run_together(ln_cuda_lanes *lanes, int64_t tokens, int64_t keys,
                                  const ln_cuda_decode_tensors *tensors) {
    ln_cuda_class *class = &lanes->room->classes[0];
    const ln_cuda_model *on = lanes->room->model->on_device;
    if (lanes->room->planned_tokens != tokens || lanes->room->planned_keys != keys) {
        lanes->room->planned_tokens = 0; /* until it is made */
        class->query_offsets[1] = tokens;
        class->key_offsets[1] = keys;
        LN_TRY(plan(lanes, &class->attention, &class->attention_plan));
        lanes->room->planned_tokens = tokens;
        lanes->room->planned_keys = keys;
    }
    const ln_cuda_attention_tensors of = {.query = tensors->query,
                                          .key = gathered_of(lanes, 0, 0),
                                          .value = gathered_of(lanes, 0, 1),
                                          .output = tensors->output};
    LN_CUDA_TRY(lanes->room->model->context,
                ln_cuda_attention_forward(&class->attention, &class->attention_plan, &of, class->tasks, on->stream),
                "attention");
    return LINNET_OK;
}

static linnet_status run_lane(ln_cuda_lanes *lanes, int64_t head, int64_t tokens, int64_t keys,
                              const ln_cuda_decode_tensors *lane) {
    const ln_cuda_class *class = &lanes->room->classes[0];
    const ln_cuda_model *on = lanes->room->model->on_device;
    const int64_t query_offsets[2] = {0, tokens}, key_offsets[2] = {0, keys};
    ln_cuda_attention attention = class->attention;
    ln_cuda_attention_plan made;
    attention.heads = class->decode.heads;
    attention.key_value_heads = 1;
    attention.query_offsets = query_offsets;
    attention.key_offsets = key_offsets;
    lanes->room->planned_tokens = 0;
    LN_TRY(plan(lanes, &attention, &made));
    const ln_cuda_attention_tensors of = {.query = lane->query,
                                          .key = gathered_of(lanes, head, 0),
                                          .value = gathered_of(lanes, head, 1),
                                          .output = lane->output};
    LN_CUDA_TRY(lanes->room->model->context,
                ln_cuda_attention_forward(&attention, &made, &of, class->tasks, on->stream), "attention");
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_attend(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens,
                                   const ln_cuda_decode_tensors *tensors) {
    const ln_cuda_class *class = &lanes->room->classes[0];
    linnet_context *context = lanes->room->model->context;
    void *stream = ln_cuda_lanes_stream(lanes);
    const int32_t *lengths = lanes->host + (tensors->lengths - lanes->lengths);
    bool even = true;
    if (tokens == 1) return attend_alone(lanes, lanes->index[layer], tensors);
    ln_cuda_decode one = class->decode;
    one.sequences = 1;
    one.queries = tokens;
    for (int64_t h = 0; h < lanes->heads; h++) {
        const ln_cuda_decode_tensors lane = lane_tensors(lanes, tensors, h);
        const ln_cuda_tensor key = gathered_of(lanes, h, 0), value = gathered_of(lanes, h, 1);
        LN_CUDA_TRY(context, append_piece(lanes, &one, h, tokens, &lane, stream), "keeping keys and values");
        if (class->any_prompt)
            LN_CUDA_TRY(context, ln_cuda_attend_any(&one, &lane, stream), "attention");
        else
            LN_CUDA_TRY(context,
                        ln_cuda_plain(one.format)
                            ? ln_cuda_gather_any(&one, &lane, 0, lengths[h], &key, &value, stream)
                            : ln_cuda_decode_unpack(&one, &lane, 0, 0, lengths[h], &key, &value, stream),
                        "gathering keys and values");
        even = even && lengths[h] == lengths[0];
    }
    if (class->any_prompt) return LINNET_OK;
    if (even) return run_together(lanes, tokens, lengths[0], tensors);
    for (int64_t h = 0; h < lanes->heads; h++) {
        const ln_cuda_decode_tensors lane = lane_tensors(lanes, tensors, h);
        LN_TRY(run_lane(lanes, h, tokens, lengths[h], &lane));
    }
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_leave(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens) {
    return tokens > 1 ? ln_cuda_lanes_settle_piece(lanes, lanes->index[layer], tokens) : LINNET_OK;
}

linnet_status ln_cuda_lanes_end(ln_cuda_lanes *lanes, int64_t tokens) {
    if (tokens == 1) LN_TRY(ln_cuda_lanes_settle_token(lanes));
    ln_ragged_commit(lanes->ragged, tokens);
    lanes->position += tokens;
    return LINNET_OK;
}
