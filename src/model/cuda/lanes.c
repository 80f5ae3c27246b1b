/* Owns: layers under a policy on an NVIDIA GPU: the pages of their lanes, and where each lane's tokens are.
 *
 * memory/ragged.h decides on the host, by the numbers of pages, just as for the processor: which page a token goes to,
 * what is given up, what is moved. Page n is slot n - 1 of the device's memory, so that
 *
 *     slots * bytes of a page <= lane_bytes,
 *
 * and the device does as it is told, in the order of the stream: a layer's tables go there before its tokens come, its
 * moves after they have attended. The order of a lane's pages is the order of attention: its tokens lie before those of
 * the piece, and only the last page is not full, so that a lane is to the kernels a sequence of one key-value head.
 *
 * A token alone gets its places in all layers before the step, which reads tables and lengths on the device, so that
 * the captured graph stays right; all layers settle after it. A settled lane keeps the room for that: its near pages
 * are reserved in all layers at once. */
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "memory/allocate.h"
#include "memory/pages.h"
#include "model/cuda/engine.h"
#include "model/take.h"

enum { MOVES = 1 << 14 /* that go to the device at once */, STEPS = 2 };

typedef struct list {
    ln_cuda_lane_move *moves;
    int64_t count;
} list;

struct ln_cuda_lanes {
    ln_cuda_room *room;
    ln_ragged_elsewhere elsewhere;
    ln_ragged *ragged;
    int64_t position, layers, heads, table_stride, most; /* most: moves of a head */
    int64_t *index;                                      /* [layers of the model]: among those with lanes */
    bool *stale;                                         /* [layers]: the device has another table */
    int64_t *pages;                                      /* [layers]: of its lanes when the table was made */
    int32_t *host;                        /* lengths [layers][heads], tables [layers][heads][table_stride] */
    list *lists;                          /* [STEPS][heads] */
    ln_cuda_lane_move *block;             /* of the lists; then the moves of a step */
    void *workspace;                      /* of settling */
    int64_t planned_tokens, planned_keys; /* what the room's attention plan is for */
    /* On the device. */
    char *memory;
    ln_cuda_lane_pages of;
    int32_t *lengths, *tables;
    ln_cuda_lane_move *moves;
};

/* ---- what can be kept so ---- */

static linnet_status refuse(linnet_model *model, const ln_policy *policy, const char *why) {
    return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED, "policy %s does not run on a GPU yet: %s; --device cpu",
                   policy->row->name, why);
}

static bool on_device(linnet_type type) {
    return type == LINNET_BF16 || type == LINNET_F16 || type == LINNET_Q8_0 || type == LINNET_Q4_0;
}

linnet_status ln_cuda_lanes_allow(linnet_model *model, const ln_policy *policy) {
    const ln_scorer *scorer = policy->scorer;
    const ln_allocator *allocator = policy->allocator;
    const char *why = NULL;
    if (policy->probe || policy->draft_prompt)
        why = "it needs probes or a draft model";
    else if (policy->selector || policy->file)
        why = "it chooses pages anew for each step, or keeps them in a file";
    else if (policy->merger)
        why = "it merges tokens";
    else if (policy->rotate || policy->channels || ln_policy_orders(policy))
        why = "it rotates, scales or orders channels of keys";
    else if (policy->keys != policy->near || policy->values != policy->near || policy->low_keys != LINNET_TYPE_AUTO)
        why = "it keeps tokens in several precisions (near=, keys= and values= that are the same are taken)";
    else if (!on_device(policy->near))
        why = "pages there are bf16, f16, q8_0 or q4_0";
    else if (scorer && (scorer->observes || scorer->workspace || scorer->gate))
        why = "it scores by what only the CPU looks at; policies window, squeeze and random go by positions alone";
    else if (allocator && (allocator->cosine || allocator->distance || allocator->kinds))
        why = "it divides the budget by what only the CPU looks at";
    return why ? refuse(model, policy, why) : LINNET_OK;
}

bool ln_cuda_lanes_shape(const linnet_model *model, const ln_device_shape *shape, ln_ragged_shape *lanes) {
    const ln_hyperparameters *h = &model->hyper;
    const ln_memory_shape memory = {.layers = h->layers,
                                    .key_value_heads = h->key_value_heads,
                                    .key_size = h->key_size,
                                    .value_size = h->value_size,
                                    .window = model->windows,
                                    .attends = model->attends,
                                    .capacity = shape->context,
                                    .piece = shape->piece,
                                    .policy = shape->policy,
                                    .lane_bytes = shape->lane_bytes,
                                    .heads = h->heads,
                                    .scale = h->score_scale};
    static const ln_ragged_elsewhere elsewhere = {0};
    const bool any = ln_memory_lanes(&memory, lanes);
    lanes->elsewhere = &elsewhere;
    return any;
}

/* ---- sizes ---- */

typedef struct sizes {
    int64_t slots, lanes;
    uint64_t keys, values, tables;
} sizes;

static uint64_t round_to_256(uint64_t bytes) {
    return ln_round_up(bytes, 256);
}

static sizes sizes_of(const ln_cuda_room *room, const ln_ragged_shape *lanes) {
    const ln_hyperparameters *h = &room->model->hyper;
    const ln_cuda_decode *decode = &room->classes[0].decode;
    sizes s = {.slots = ln_ragged_pages(lanes), .lanes = lanes->layers * lanes->key_value_heads};
    s.keys = (uint64_t)(s.slots * ln_cuda_head_bytes(decode, h->key_size));
    s.values = (uint64_t)(s.slots * ln_cuda_head_bytes(decode, h->value_size));
    s.tables = round_to_256((uint64_t)(s.lanes * (room->lane_pages + 1)) * sizeof(int32_t)) +
               MOVES * sizeof(ln_cuda_lane_move);
    return s;
}

void ln_cuda_lanes_bytes(const ln_cuda_room *room, uint64_t *pages, uint64_t *tables) {
    ln_ragged_shape lanes;
    *pages = *tables = 0;
    if (!room->shape.policy || !ln_cuda_lanes_shape(room->model, &room->shape, &lanes)) return;
    const sizes s = sizes_of(room, &lanes);
    *pages = s.keys + s.values;
    *tables = s.tables;
}

/* ---- opening ---- */

static void keep_move(void *user, int64_t head, int step, const ln_ragged_move *move) {
    ln_cuda_lanes *lanes = user;
    list *to = &lanes->lists[step * lanes->heads + head];
    if (to->count < lanes->most)
        to->moves[to->count] =
            (ln_cuda_lane_move){(int32_t)move->to - 1, move->to_place, (int32_t)move->from - 1, move->from_place};
    to->count++; /* more than `most` is found when they are sent */
}

static linnet_status open_host(ln_cuda_lanes *lanes, const ln_ragged_shape *shape) {
    const linnet_model *model = lanes->room->model;
    linnet_context *context = model->context;
    const int64_t layers = model->hyper.layers, all = lanes->layers * lanes->heads;
    const uint64_t moves = (uint64_t)(STEPS * lanes->heads * lanes->most);
    lanes->index = ln_allocate(context, (uint64_t)layers, sizeof *lanes->index, "lanes");
    lanes->stale = ln_allocate(context, (uint64_t)lanes->layers, sizeof *lanes->stale, "lanes");
    lanes->pages = ln_allocate_zero(context, (uint64_t)lanes->layers, sizeof *lanes->pages, "lanes");
    lanes->host =
        ln_allocate_zero(context, (uint64_t)(all * (lanes->table_stride + 1)), sizeof *lanes->host, "tables of lanes");
    lanes->lists =
        ln_allocate_zero(context, (uint64_t)(STEPS * lanes->heads), sizeof *lanes->lists, "moves of a layer");
    lanes->block = ln_allocate(context, moves + MOVES, sizeof *lanes->block, "moves of a layer");
    lanes->workspace = ln_allocate(
        context, ln_ragged_attended_workspace(&model->kernels, ln_team_size(context->team), shape), 1, "settling");
    if (!lanes->index || !lanes->stale || !lanes->pages || !lanes->host || !lanes->lists || !lanes->block ||
        !lanes->workspace)
        return LINNET_ERROR_MEMORY;
    for (int64_t i = 0; i < STEPS * lanes->heads; i++) lanes->lists[i].moves = lanes->block + MOVES + i * lanes->most;
    for (int64_t i = 0, n = 0; i < layers; i++) lanes->index[i] = model->attends[i] && !model->windows[i] ? n++ : -1;
    memset(lanes->stale, true, (size_t)lanes->layers * sizeof *lanes->stale);
    return LINNET_OK;
}

static linnet_status open_device(ln_cuda_lanes *lanes, const ln_ragged_shape *shape) {
    const ln_cuda_room *room = lanes->room;
    const ln_hyperparameters *h = &room->model->hyper;
    const ln_cuda_decode *decode = &room->classes[0].decode;
    linnet_context *context = room->model->context;
    void *stream = ((ln_cuda_model *)room->model->on_device)->stream;
    const sizes s = sizes_of(room, shape);
    const bool plain = decode->format <= LN_CUDA_PAGE_F16;
    const int64_t key = ln_cuda_head_bytes(decode, h->key_size), value = ln_cuda_head_bytes(decode, h->value_size);
    const uint64_t keys = round_to_256(s.keys), values = round_to_256(s.values);
    LN_CUDA_TRY(context, ln_cuda_allocate(keys + values + s.tables, (void **)&lanes->memory),
                "making room for keys and values");
    LN_CUDA_TRY(context, ln_cuda_zero(lanes->memory, keys + values + s.tables, stream), "clearing keys and values");
    lanes->of = (ln_cuda_lane_pages){.format = decode->format,
                                     .page_tokens = LN_CUDA_PAGE_TOKENS,
                                     .key_size = h->key_size,
                                     .value_size = h->value_size,
                                     .key = {lanes->memory, key, key, plain ? 2 * h->key_size : 0},
                                     .value = {lanes->memory + keys, value, value, plain ? 2 * h->value_size : 0}};
    lanes->moves = (ln_cuda_lane_move *)(void *)(lanes->memory + keys + values);
    lanes->lengths = (int32_t *)(void *)(lanes->moves + MOVES);
    lanes->tables = lanes->lengths + s.lanes;
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_open(ln_cuda_room *room, ln_cuda_lanes **opened) {
    linnet_context *context = room->model->context;
    ln_ragged_shape shape;
    *opened = NULL;
    ln_cuda_lanes *lanes = ln_allocate_zero(context, 1, sizeof *lanes, "lanes on the device");
    if (!lanes) return LINNET_ERROR_MEMORY;
    *opened = lanes;
    ln_cuda_lanes_shape(room->model, &room->shape, &shape);
    lanes->room = room;
    lanes->elsewhere = (ln_ragged_elsewhere){lanes, keep_move};
    shape.elsewhere = &lanes->elsewhere;
    lanes->layers = shape.layers;
    lanes->heads = shape.key_value_heads;
    lanes->table_stride = room->lane_pages;
    lanes->most = room->lane_pages * LN_CUDA_PAGE_TOKENS;
    LN_TRY(ln_ragged_open(context, &shape, &lanes->ragged));
    LN_TRY(open_host(lanes, &shape));
    return open_device(lanes, &shape);
}

void ln_cuda_lanes_close(ln_cuda_lanes *lanes) {
    if (!lanes) return;
    linnet_context *context = lanes->room->model->context;
    ln_cuda_release(lanes->memory);
    ln_ragged_close(lanes->ragged);
    ln_release(context, lanes->workspace);
    ln_release(context, lanes->block);
    ln_release(context, lanes->lists);
    ln_release(context, lanes->host);
    ln_release(context, lanes->pages);
    ln_release(context, lanes->stale);
    ln_release(context, lanes->index);
    ln_release(context, lanes);
}

const ln_ragged *ln_cuda_lanes_ragged(const ln_cuda_lanes *lanes) {
    return lanes->ragged;
}

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
    void *stream = ((ln_cuda_model *)lanes->room->model->on_device)->stream;
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

linnet_status ln_cuda_lanes_begin(ln_cuda_lanes *lanes, int64_t tokens, int64_t position) {
    if (position < lanes->position) {
        ln_ragged_rewind(lanes->ragged, position);
        memset(lanes->stale, true, (size_t)lanes->layers * sizeof *lanes->stale);
    }
    lanes->position = position;
    if (tokens > 1) return LINNET_OK;
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

static linnet_status attend_alone(const ln_cuda_lanes *lanes, const ln_cuda_decode_tensors *tensors) {
    ln_cuda_room *room = lanes->room;
    const ln_cuda_class *class = &room->classes[0];
    const ln_hyperparameters *h = &room->model->hyper;
    linnet_context *context = room->model->context;
    void *stream = ((ln_cuda_model *)room->model->on_device)->stream;
    const ln_cuda_decode_rows rows = {.tokens = 1,
                                      .element = LN_CUDA_ELEMENT_FLOAT32,
                                      .key = {room->key, h->key_size, h->key_size},
                                      .value = {room->value, h->value_size, h->value_size}};
    ln_cuda_decode_tensors of = *tensors; /* token s is that of lane s */
    of.query.token_stride = class->decode.heads * of.query.head_stride;
    of.output.token_stride = class->decode.heads * of.output.head_stride;
    if (class->decode.format > LN_CUDA_PAGE_F16)
        LN_CUDA_TRY(context, ln_cuda_decode_append(&class->decode, &of, &rows, stream), "keeping keys and values");
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
    if (one->format <= LN_CUDA_PAGE_F16) return LN_CUDA_OK;
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
    if (lanes->planned_tokens != tokens || lanes->planned_keys != keys) {
        class->query_offsets[1] = tokens;
        class->key_offsets[1] = keys;
        LN_TRY(plan(lanes, &class->attention, &class->attention_plan));
        lanes->planned_tokens = tokens;
        lanes->planned_keys = keys;
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
    lanes->planned_tokens = 0;
    LN_TRY(plan(lanes, &attention, &made));
    const ln_cuda_attention_tensors of = {.query = lane->query,
                                          .key = gathered_of(lanes, head, 0),
                                          .value = gathered_of(lanes, head, 1),
                                          .output = lane->output};
    LN_CUDA_TRY(lanes->room->model->context,
                ln_cuda_attention_forward(&attention, &made, &of, class->tasks, on->stream), "attention");
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_attend(ln_cuda_lanes *lanes, int64_t tokens, const ln_cuda_decode_tensors *tensors) {
    const ln_cuda_class *class = &lanes->room->classes[0];
    linnet_context *context = lanes->room->model->context;
    void *stream = ((ln_cuda_model *)lanes->room->model->on_device)->stream;
    const int32_t *lengths = lanes->host + (tensors->lengths - lanes->lengths);
    bool even = true;
    if (tokens == 1) return attend_alone(lanes, tensors);
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
                        one.format <= LN_CUDA_PAGE_F16
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

/* ---- settling ---- */

static linnet_status send_some(ln_cuda_lanes *lanes, int64_t *count) {
    void *stream = ((ln_cuda_model *)lanes->room->model->on_device)->stream;
    ln_cuda_code code = LN_CUDA_OK;
    if (*count)
        code = ln_cuda_copy_to_device(lanes->moves, lanes->block, (uint64_t)*count * sizeof *lanes->block, stream);
    if (!code) code = ln_cuda_lanes_move(&lanes->of, lanes->moves, *count, stream);
    *count = 0;
    return ln_cuda_fail(lanes->room->model->context, code, "moving tokens");
}

/* The moves of a step, of all heads. */
static linnet_status send_moves(ln_cuda_lanes *lanes, const list *lists) {
    int64_t count = 0;
    for (int64_t h = 0; h < lanes->heads; h++) {
        if (lists[h].count > lanes->most)
            return ln_fail(lanes->room->model->context, LINNET_ERROR_MEMORY,
                           "more is moved than a lane holds: a defect");
        for (int64_t done = 0; done < lists[h].count;) {
            const int64_t some = ln_min_i64(MOVES - count, lists[h].count - done);
            memcpy(lanes->block + count, lists[h].moves + done, (size_t)some * sizeof *lanes->block);
            count += some;
            done += some;
            if (count == MOVES) LN_TRY(send_some(lanes, &count));
        }
    }
    return send_some(lanes, &count);
}

/* Pages of a layer's lanes. */
static int64_t count_pages(const ln_cuda_lanes *lanes, int64_t layer) {
    int64_t all = 0, count;
    const ln_page *pages;
    for (int64_t h = 0; h < lanes->heads; h++) {
        ln_ragged_lane_of(lanes->ragged, layer, h, &pages, &count);
        all += count;
    }
    return all;
}

static linnet_status settle(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens) {
    const linnet_model *model = lanes->room->model;
    const ln_attention attention = {.scale = model->hyper.score_scale, .soft_cap = model->hyper.score_cap};
    const ln_ragged_call call = {.kernels = &model->kernels,
                                 .team = model->context->team,
                                 .attention = &attention,
                                 .tokens = tokens,
                                 .workspace = lanes->workspace};
    for (int64_t i = 0; i < STEPS * lanes->heads; i++) lanes->lists[i].count = 0;
    LN_TRY(ln_ragged_attended(lanes->ragged, layer, &call));
    bool any = count_pages(lanes, layer) != lanes->pages[layer];
    for (int step = 0; step < STEPS; step++) {
        const list *lists = lanes->lists + step * lanes->heads;
        for (int64_t h = 0; h < lanes->heads; h++) any = any || lists[h].count;
        LN_TRY(send_moves(lanes, lists));
    }
    lanes->stale[layer] = lanes->stale[layer] || any;
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_leave(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens) {
    return tokens > 1 ? settle(lanes, lanes->index[layer], tokens) : LINNET_OK;
}

linnet_status ln_cuda_lanes_end(ln_cuda_lanes *lanes, int64_t tokens) {
    if (tokens == 1)
        for (int64_t i = 0; i < lanes->layers; i++) LN_TRY(settle(lanes, i, 1));
    ln_ragged_commit(lanes->ragged, tokens);
    lanes->position += tokens;
    return LINNET_OK;
}
