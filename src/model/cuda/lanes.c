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

#include "memory/allocate.h"
#include "memory/pages.h"
#include "model/cuda/lanes_inside.h"

enum { STAGING_LEAST = 1 << 20 /* bytes that come from the device at once */ };

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
    ln_policy settled = *policy;
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
    else if (ln_policy_settle(&settled, 0, 1, model->hyper.key_size, model->hyper.value_size))
        why = "its precisions are chosen by the plan";
    else if (scorer && scorer->reads & LN_READS_GATE)
        why = "its scorer asks the model's own gate";
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
    uint64_t keys, values, tables, staging, kept, log_sum_exp;
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
    const int reads = lanes->policy->scorer ? lanes->policy->scorer->reads : 0;
    if (!reads) return s;
    s.staging = STAGING_LEAST;
    if (!ln_cuda_looks_at_queries(reads)) return s;
    const uint64_t sums = (uint64_t)(KEPT * room->lane_pages * LN_CUDA_PAGE_TOKENS) * sizeof(float);
    const int64_t observed = ln_max_i64(KEPT, ln_cuda_observed(lanes->policy, room->shape.piece));
    if (sums > s.staging) s.staging = round_to_256(sums);
    s.kept = round_to_256((uint64_t)(lanes->layers * KEPT * h->heads * h->key_size) * 2);
    s.log_sum_exp = round_to_256((uint64_t)(observed * h->heads) * sizeof(float));
    return s;
}

static uint64_t all_tables(const sizes *s) {
    return s->tables + s->staging + s->kept + s->log_sum_exp;
}

void ln_cuda_lanes_bytes(const ln_cuda_room *room, uint64_t *pages, uint64_t *tables) {
    ln_ragged_shape lanes;
    *pages = *tables = 0;
    if (!room->shape.policy || !ln_cuda_lanes_shape(room->model, &room->shape, &lanes)) return;
    const sizes s = sizes_of(room, &lanes);
    *pages = s.keys + s.values;
    *tables = all_tables(&s);
}

/* ---- opening ---- */

static void keep_move(void *user, int64_t head, int step, const ln_ragged_move *move) {
    ln_cuda_lanes *lanes = user;
    ln_cuda_move_list *to = &lanes->lists[step * lanes->heads + head];
    if (to->count < lanes->most)
        to->moves[to->count] =
            (ln_cuda_lane_move){(int32_t)move->to - 1, move->to_place, (int32_t)move->from - 1, move->from_place};
    to->count++; /* more than `most` is found when they are sent */
}

/* One page: as the first of a table that begins with slot 0. */
static ln_cuda_transfer transfer_of(const ln_cuda_lanes *lanes, ln_page page, const ln_page_layout *layout) {
    ln_cuda_transfer transfer = {
        .pages = lanes->of, .page_table = lanes->room->classes[0].table, .count = 1, .layout = layout};
    const int64_t slot = (int64_t)page - 1;
    transfer.pages.key.data = (char *)transfer.pages.key.data + slot * transfer.pages.key.page_stride;
    transfer.pages.value.data = (char *)transfer.pages.value.data + slot * transfer.pages.value.page_stride;
    return transfer;
}

static linnet_status fetch_page(void *user, ln_page page, const ln_page_layout *layout, unsigned char *to) {
    const ln_cuda_lanes *lanes = user;
    const ln_cuda_transfer transfer = transfer_of(lanes, page, layout);
    return ln_cuda_fetch_pages(lanes->room, &transfer, to);
}

static linnet_status store_page(void *user, ln_page page, const ln_page_layout *layout, const unsigned char *from) {
    const ln_cuda_lanes *lanes = user;
    const ln_cuda_transfer transfer = transfer_of(lanes, page, layout);
    return ln_cuda_store_pages(lanes->room, &transfer, from);
}

/* And for its queries, one by one. */
static linnet_status open_queries(ln_cuda_lanes *lanes, const ln_ragged_shape *shape) {
    const linnet_model *model = lanes->room->model;
    linnet_context *context = model->context;
    const uint64_t piece = (uint64_t)lanes->room->shape.piece, rows = piece > KEPT ? piece : KEPT,
                   heads = (uint64_t)shape->heads, pairs = (uint64_t)model->rope.size / 2;
    lanes->queries = ln_allocate(context, rows * heads * (uint64_t)shape->key_size, sizeof(float), "queries");
    lanes->log_sum_exps = ln_allocate(context, rows * heads, sizeof(float), "sums of rows");
    lanes->each = ln_allocate(context, rows * heads, sizeof(float), "sums of rows");
    if (!lanes->queries || !lanes->log_sum_exps || !lanes->each) return LINNET_ERROR_MEMORY;
    for (int local = 0; local < 2; local++) {
        double *inverse = ln_allocate(context, pairs + 1, sizeof *inverse, "rotations");
        if (!inverse) return LINNET_ERROR_MEMORY;
        lanes->rotation[local].inverse = inverse;
        lanes->rotation[local].size = model->rope.size;
        lanes->rotation[local].half = model->rope.half;
        lanes->rotation[local].magnitude =
            ln_rope_frequencies(&model->rope, local && model->rope.base_local > 0, lanes->room->shape.context, inverse);
    }
    return LINNET_OK;
}

/* Room on the host for what the scorer reads. */
static linnet_status open_reading(ln_cuda_lanes *lanes, const ln_ragged_shape *shape) {
    linnet_context *context = lanes->room->model->context;
    const uint64_t pages = (uint64_t)(lanes->heads * lanes->table_stride), heads = (uint64_t)lanes->heads;
    const linnet_type near = shape->policy->near, type = near == LINNET_BF16 || near == LINNET_F16 ? near : LINNET_F32;
    lanes->reads = shape->policy->scorer ? shape->policy->scorer->reads : 0;
    if (ln_cuda_looks_at_queries(lanes->reads)) {
        lanes->columns =
            ln_allocate(context, KEPT * pages * LN_CUDA_PAGE_TOKENS, sizeof *lanes->columns, "what queries gave");
        if (!lanes->columns) return LINNET_ERROR_MEMORY;
    }
    if (lanes->reads & LN_READS_EACH) {
        lanes->reads |= LN_READS_KEYS | LN_READS_VALUES;
        LN_TRY(open_queries(lanes, shape));
    }
    if (!(lanes->reads & (LN_READS_KEYS | LN_READS_VALUES))) return LINNET_OK;
    ln_page_layout_of(type, type, shape->key_size, shape->value_size, &lanes->layout);
    lanes->fetched = ln_allocate(context, pages, lanes->layout.bytes, "keys and values for their scores");
    lanes->slots = ln_allocate(context, pages, sizeof *lanes->slots, "pages for their scores");
    lanes->views = ln_allocate_zero(context, heads, sizeof *lanes->views, "pages for their scores");
    if (!lanes->fetched || !lanes->slots || !lanes->views) return LINNET_ERROR_MEMORY;
    for (uint64_t i = 0; i < pages; i++) lanes->slots[i] = lanes->fetched + i * lanes->layout.bytes;
    return LINNET_OK;
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
    LN_TRY(open_reading(lanes, shape));
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
    void *stream = ln_cuda_lanes_stream(lanes);
    const sizes s = sizes_of(room, shape);
    const bool plain = ln_cuda_plain(decode->format);
    const int64_t key = ln_cuda_head_bytes(decode, h->key_size), value = ln_cuda_head_bytes(decode, h->value_size);
    const uint64_t keys = round_to_256(s.keys), values = round_to_256(s.values);
    const uint64_t all = keys + values + all_tables(&s);
    LN_CUDA_TRY(context, ln_cuda_allocate(all, (void **)&lanes->memory), "making room for keys and values");
    lanes->bytes = all;
    LN_CUDA_TRY(context, ln_cuda_zero(lanes->memory, all, stream), "clearing keys and values");
    lanes->of = (ln_cuda_lane_pages){.format = decode->format,
                                     .page_tokens = LN_CUDA_PAGE_TOKENS,
                                     .key_size = h->key_size,
                                     .value_size = h->value_size,
                                     .key = {lanes->memory, key, key, plain ? 2 * h->key_size : 0},
                                     .value = {lanes->memory + keys, value, value, plain ? 2 * h->value_size : 0}};
    lanes->staging = lanes->memory + keys + values;
    lanes->staging_bytes = s.staging;
    lanes->kept = lanes->staging + s.staging;
    lanes->log_sum_exp = (float *)(void *)(lanes->kept + s.kept);
    lanes->moves = (ln_cuda_lane_move *)(void *)(lanes->kept + s.kept + s.log_sum_exp);
    lanes->lengths = (int32_t *)(void *)(lanes->moves + MOVES);
    lanes->tables = lanes->lengths + s.lanes;
    return LINNET_OK;
}

linnet_status ln_cuda_lanes_open(ln_cuda_room *room, ln_cuda_lanes *from, ln_cuda_lanes **opened) {
    linnet_context *context = room->model->context;
    ln_ragged_shape shape;
    *opened = NULL;
    ln_cuda_lanes *lanes = ln_allocate_zero(context, 1, sizeof *lanes, "lanes on the device");
    if (!lanes) return LINNET_ERROR_MEMORY;
    *opened = lanes;
    ln_cuda_lanes_shape(room->model, &room->shape, &shape);
    lanes->room = room;
    lanes->elsewhere = (ln_ragged_elsewhere){lanes, keep_move, fetch_page, store_page};
    shape.elsewhere = &lanes->elsewhere;
    lanes->layers = shape.layers;
    lanes->heads = shape.key_value_heads;
    lanes->table_stride = room->lane_pages;
    lanes->most = room->lane_pages * LN_CUDA_PAGE_TOKENS;
    LN_TRY(from ? ln_ragged_fork_elsewhere(from->ragged, &lanes->elsewhere, &lanes->ragged)
                : ln_ragged_open(context, &shape, &lanes->ragged));
    LN_TRY(open_host(lanes, &shape));
    LN_TRY(open_device(lanes, &shape));
    if (!from) return LINNET_OK;
    lanes->position = from->position;
    lanes->pending = from->pending; /* whose queries are copied with the rest */
    LN_CUDA_TRY(context, ln_cuda_copy_on_device(lanes->memory, from->memory, lanes->bytes, ln_cuda_lanes_stream(lanes)),
                "forking");
    return LINNET_OK;
}

void ln_cuda_lanes_close(ln_cuda_lanes *lanes) {
    if (!lanes) return;
    linnet_context *context = lanes->room->model->context;
    ln_cuda_release(lanes->memory);
    ln_ragged_close(lanes->ragged);
    ln_release(context, lanes->views);
    ln_release(context, lanes->slots);
    ln_release(context, lanes->fetched);
    ln_release(context, lanes->columns);
    for (int local = 0; local < 2; local++) ln_release(context, (void *)(uintptr_t)lanes->rotation[local].inverse);
    ln_release(context, lanes->each);
    ln_release(context, lanes->log_sum_exps);
    ln_release(context, lanes->queries);
    ln_release(context, lanes->workspace);
    ln_release(context, lanes->block);
    ln_release(context, lanes->lists);
    ln_release(context, lanes->host);
    ln_release(context, lanes->pages);
    ln_release(context, lanes->stale);
    ln_release(context, lanes->index);
    ln_release(context, lanes);
}

ln_ragged *ln_cuda_lanes_ragged(const ln_cuda_lanes *lanes) {
    return lanes->ragged;
}
