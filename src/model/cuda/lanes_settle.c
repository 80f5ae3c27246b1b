/* Owns: settling on a GPU: what the scorer reads comes to the host (memory/score.h), which decides; what is moved goes
 * back.
 *
 * A piece is scored by what its last queries gave to all keys, summed on the device. Queries of tokens alone are kept
 * there and looked at together when something is to be given up, or KEPT of them are there: until then no token moves
 * and later keys get nothing from them, so that scoring them one by one as they came gives what scoring them at once
 * would have. */
#include <string.h>

#include "model/cuda/lanes_inside.h"

static linnet_status send_some(ln_cuda_lanes *lanes, int64_t *count) {
    void *stream = ln_cuda_lanes_stream(lanes);
    ln_cuda_code code = LN_CUDA_OK;
    if (*count)
        code = ln_cuda_copy_to_device(lanes->moves, lanes->block, (uint64_t)*count * sizeof *lanes->block, stream);
    if (!code) code = ln_cuda_lanes_move(&lanes->of, lanes->moves, *count, stream);
    *count = 0;
    return ln_cuda_fail(lanes->room->model->context, code, "moving tokens");
}

/* The moves of a step, of all heads. */
static linnet_status send_moves(ln_cuda_lanes *lanes, const ln_cuda_move_list *lists) {
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

/* Keys and values of a layer's lanes, for their scores. */
static linnet_status fetch_pages(ln_cuda_lanes *lanes, int64_t layer) {
    linnet_context *context = lanes->room->model->context;
    void *stream = ln_cuda_lanes_stream(lanes);
    const int64_t bytes = (int64_t)lanes->layout.bytes, most = (int64_t)lanes->staging_bytes / bytes;
    for (int64_t h = 0; h < lanes->heads; h++) {
        const ln_page *pages;
        int64_t count;
        const int64_t keys = ln_ragged_lane_of(lanes->ragged, layer, h, &pages, &count);
        lanes->views[h] = (ln_page_view){.layout = lanes->layout,
                                         .key_value_heads = 1,
                                         .slots = lanes->slots + h * lanes->table_stride,
                                         .slot_count = count,
                                         .end = keys};
        ln_cuda_lane_fetch fetch = {.pages = lanes->of,
                                    .page_table = lanes->tables + (layer * lanes->heads + h) * lanes->table_stride,
                                    .keys = lanes->reads & LN_READS_KEYS,
                                    .values = lanes->reads & LN_READS_VALUES,
                                    .page_bytes = bytes,
                                    .values_at = (int64_t)lanes->layout.values,
                                    .to = lanes->staging};
        for (; fetch.first < count; fetch.first += most) {
            fetch.count = ln_min_i64(most, count - fetch.first);
            LN_CUDA_TRY(context, ln_cuda_lanes_fetch(&fetch, stream), "fetching keys");
            LN_CUDA_TRY(context,
                        ln_cuda_copy_to_host(lanes->fetched + (h * lanes->table_stride + fetch.first) * bytes,
                                             lanes->staging, (uint64_t)(fetch.count * bytes), stream),
                        "fetching keys");
        }
    }
    LN_CUDA_TRY(context, ln_cuda_wait(stream), "fetching keys");
    return LINNET_OK;
}

/* Each of the queries and its log-sum-exp. */
static linnet_status fetch_queries(ln_cuda_lanes *lanes, int64_t layer, ln_cuda_lane_sums *of) {
    const ln_cuda_room *room = lanes->room;
    linnet_context *context = room->model->context;
    const int64_t row = of->row_stride, lane = layer * lanes->heads;
    void *stream = ln_cuda_lanes_stream(lanes);
    uint16_t *halves = (uint16_t *)(void *)lanes->queries; /* float32 in the end, from the last on */
    of->lanes = lanes->heads;
    of->page_table = lanes->tables + lane * lanes->table_stride;
    of->lengths = lanes->lengths + lane;
    LN_CUDA_TRY(context, ln_cuda_lanes_sums(of, stream), "sums of rows");
    LN_CUDA_TRY(context,
                ln_cuda_copy_to_host(lanes->log_sum_exps, lanes->log_sum_exp,
                                     (uint64_t)(lanes->heads * of->tokens * of->group) * sizeof(float), stream),
                "fetching sums");
    for (int64_t t = 0; t < of->tokens;) { /* round the end of those that are kept */
        const int64_t at = (of->first + t) % of->rows, some = ln_min_i64(of->tokens - t, of->rows - at);
        LN_CUDA_TRY(context,
                    ln_cuda_copy_to_host(halves + t * row, (const uint16_t *)of->query + at * row,
                                         (uint64_t)(some * row) * sizeof *halves, stream),
                    "fetching queries");
        t += some;
    }
    LN_CUDA_TRY(context, ln_cuda_wait(stream), "fetching queries");
    for (int64_t i = of->tokens * row - 1; i >= 0; i--) {
        const uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(&lanes->queries[i], &bits, sizeof bits);
    }
    return fetch_pages(lanes, layer);
}

/* Those from `first` on, as the scorer takes them. */
static void give_queries(ln_cuda_lanes *lanes, int64_t layer, const ln_cuda_lane_sums *of, int64_t first,
                         ln_ragged_call *call) {
    const ln_cuda_model *on = lanes->room->model->on_device;
    const int64_t observed = of->each ? 1 : of->tokens, tokens = call->tokens, group = of->group;
    const ln_cuda_block *block = on->blocks;
    for (int64_t h = 0; h < lanes->heads; h++)
        memcpy(lanes->each + (h * tokens + tokens - observed) * group,
               lanes->log_sum_exps + (h * of->tokens + first) * group, (size_t)(observed * group) * sizeof(float));
    call->observed = lanes->queries + first * of->row_stride;
    call->log_sum_exp = lanes->each;
    call->views = lanes->views;
    while (!block->attention || lanes->index[block->layer] != layer) block++;
    const ln_rotation rotation = block->attention->rotation;
    call->rotation = rotation == LN_ROTATE_NOT ? NULL : &lanes->rotation[rotation == LN_ROTATE_LOCAL];
}

/* What queries gave to the keys of a layer, in lanes->columns: [each ? tokens : 1][heads][of->stride]. */
static linnet_status fetch_sums(ln_cuda_lanes *lanes, int64_t layer, ln_cuda_lane_sums *of) {
    const ln_cuda_room *room = lanes->room;
    linnet_context *context = room->model->context;
    const ln_hyperparameters *h = &room->model->hyper;
    void *stream = ln_cuda_lanes_stream(lanes);
    const int64_t rows = of->each ? of->tokens : 1;
    int64_t most = 0;
    for (int64_t i = 0; i < lanes->heads; i++) {
        const ln_page *pages;
        int64_t count;
        ln_ragged_lane_of(lanes->ragged, layer, i, &pages, &count);
        most = ln_max_i64(most, count);
    }
    of->stride = most * LN_CUDA_PAGE_TOKENS;
    const int64_t row = of->stride * (int64_t)sizeof(float), together = (int64_t)lanes->staging_bytes / (rows * row);
    of->pages = lanes->of;
    of->table_stride = lanes->table_stride;
    of->group = h->heads / h->key_value_heads;
    of->scale = h->score_scale;
    of->soft_cap = h->score_cap;
    of->most = lanes->reads & LN_READS_MOST;
    of->log_sum_exp = lanes->log_sum_exp;
    if (lanes->reads & LN_READS_EACH) return fetch_queries(lanes, layer, of);
    of->sums = (float *)(void *)lanes->staging;
    const char *query = of->query;
    for (int64_t first = 0; first < lanes->heads; first += together) {
        const int64_t lane = layer * lanes->heads + first;
        of->lanes = ln_min_i64(together, lanes->heads - first);
        of->page_table = lanes->tables + lane * lanes->table_stride;
        of->lengths = lanes->lengths + lane;
        of->query = query + 2 * first * of->group * h->key_size;
        LN_CUDA_TRY(context, ln_cuda_lanes_sums(of, stream), "summing attention");
        const int64_t copies = of->lanes == lanes->heads ? 1 : rows; /* else lanes lie apart on the host */
        for (int64_t t = 0; t < copies; t++)
            LN_CUDA_TRY(context,
                        ln_cuda_copy_to_host(lanes->columns + (t * lanes->heads + first) * of->stride,
                                             lanes->staging + t * of->lanes * row,
                                             (uint64_t)(rows / copies * of->lanes * row), stream),
                        "fetching sums");
    }
    LN_CUDA_TRY(context, ln_cuda_wait(stream), "fetching sums");
    return LINNET_OK;
}

/* of: what the scorer reads of queries was fetched, the first of which is number `first`; NULL: nothing. */
static linnet_status settle(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens, int64_t behind,
                            const ln_cuda_lane_sums *of, int64_t first) {
    const linnet_model *model = lanes->room->model;
    const ln_attention attention = {.scale = model->hyper.score_scale, .soft_cap = model->hyper.score_cap};
    ln_ragged_call call = {.kernels = &model->kernels,
                           .team = model->context->team,
                           .attention = &attention,
                           .tokens = tokens,
                           .behind = behind,
                           .workspace = lanes->workspace};
    if (of && lanes->reads & LN_READS_EACH) {
        give_queries(lanes, layer, of, first, &call);
    } else if (of) {
        call.columns = lanes->columns + first * lanes->heads * of->stride;
        call.columns_stride = of->stride;
    }
    if (!call.views && lanes->views && !behind && ln_ragged_leaving(lanes->ragged, layer)) {
        LN_TRY(fetch_pages(lanes, layer));
        call.views = lanes->views;
    }
    for (int64_t i = 0; i < STEPS * lanes->heads; i++) lanes->lists[i].count = 0;
    LN_TRY(ln_ragged_attended(lanes->ragged, layer, &call));
    bool any = count_pages(lanes, layer) != lanes->pages[layer];
    for (int step = 0; step < STEPS; step++) {
        const ln_cuda_move_list *lists = lanes->lists + step * lanes->heads;
        for (int64_t h = 0; h < lanes->heads; h++) any = any || lists[h].count;
        LN_TRY(send_moves(lanes, lists));
    }
    lanes->stale[layer] = lanes->stale[layer] || any;
    return LINNET_OK;
}

/* Scores a layer by the queries that are pending, one by one as they came, the first from `position`; behind: tokens
 * that were settled after the last of them. */
static linnet_status look(ln_cuda_lanes *lanes, int64_t layer, int64_t position, int64_t behind) {
    const ln_hyperparameters *h = &lanes->room->model->hyper;
    const int64_t row = h->heads * h->key_size;
    ln_cuda_lane_sums of = {.tokens = lanes->pending,
                            .query = lanes->kept + 2 * layer * KEPT * row,
                            .row_stride = row,
                            .first = position % KEPT,
                            .rows = KEPT,
                            .each = true};
    LN_TRY(fetch_sums(lanes, layer, &of));
    for (int64_t i = 0; i < lanes->pending; i++)
        LN_TRY(settle(lanes, layer, 1, behind + lanes->pending - 1 - i, &of, i));
    return LINNET_OK;
}

/* A piece, by its last queries. */
linnet_status ln_cuda_lanes_settle_piece(ln_cuda_lanes *lanes, int64_t layer, int64_t tokens) {
    const ln_cuda_room *room = lanes->room;
    const ln_hyperparameters *h = &room->model->hyper;
    if (!ln_cuda_looks_at_queries(lanes->reads)) return settle(lanes, layer, tokens, 0, NULL, 0);
    const int64_t row = h->heads * h->key_size, observed = ln_cuda_observed(room->shape.policy, tokens);
    ln_cuda_lane_sums of = {
        .tokens = observed, .query = room->query, .row_stride = row, .first = tokens - observed, .rows = tokens};
    LN_TRY(fetch_sums(lanes, layer, &of));
    return settle(lanes, layer, tokens, 0, &of, 0);
}

linnet_status ln_cuda_lanes_look_behind(ln_cuda_lanes *lanes) {
    if (lanes->pending == 0) return LINNET_OK;
    for (int64_t i = 0; i < lanes->layers; i++) LN_TRY(look(lanes, i, lanes->position - lanes->pending, 1));
    lanes->pending = 0;
    return LINNET_OK;
}

/* Queries of tokens alone are looked at together, when something is to be given up. */
linnet_status ln_cuda_lanes_settle_token(ln_cuda_lanes *lanes) {
    const bool looks = ln_cuda_looks_at_queries(lanes->reads), leaves = ln_ragged_leaving(lanes->ragged, 0) > 0;
    if (looks && ++lanes->pending < KEPT && !leaves) return settle(lanes, 0, 1, 0, NULL, 0); /* later */
    for (int64_t i = 0; i < lanes->layers; i++)
        LN_TRY(looks ? look(lanes, i, lanes->position - lanes->pending + 1, 0) : settle(lanes, i, 1, 0, NULL, 0));
    lanes->pending = 0;
    return LINNET_OK;
}
