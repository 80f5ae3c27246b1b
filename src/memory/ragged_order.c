/* Owns: the order of a lane's key channels, by which blocks hold alike ones (P044) or the last ones are left out
 * (P022).
 *
 * It is chosen once, when the first tokens leave the near ones, from the keys near then and the queries that are
 * observed: by falling
 *
 *     max |k_c|                    order=magnitude
 *     |q_c| |k_c|, lengths over queries and keys: what a channel can add to the scores    channels below 1
 *
 * and from then on all queries and keys of the lane have it: q . k is a sum over channels, so any order leaves it. Keys
 * are stored after their rotation, which therefore need not know. Pages of the rest have the first channels only, and
 * attention multiplies as many as a page has.
 *
 * Invariant: no page but near ones exists in a lane without an order. */
#include <math.h>
#include <string.h>

#include "kernel/page.h"
#include "memory/precision.h"
#include "memory/ragged_inside.h"

uint64_t ln_ragged_order_bytes(const ln_ragged_shape *shape) {
    if (!ln_policy_orders(shape->policy)) return 0;
    return ln_round_up((uint64_t)(shape->layers * shape->key_value_heads * shape->key_size) * sizeof(int32_t), 64);
}

int64_t ln_ragged_order_observes(const ln_ragged *ragged, int64_t layer, int64_t tokens) {
    const bool open = ragged->order && !ln_lane_order(ragged, layer * ragged->shape.key_value_heads);
    return open && !ragged->policy.group ? ln_min_i64(tokens, LN_ORDER_QUERIES) : 0;
}

void ln_ragged_order_row(const int32_t *order, int64_t size, float *row) {
    float ordered[LN_HEAD_MOST];
    ln_channels_apply(order, size, row, ordered);
    memcpy(row, ordered, (size_t)size * sizeof *row);
}

/* ---- queries ---- */

typedef struct order_call {
    const ln_ragged *ragged;
    int64_t layer;
    const ln_ragged_call *call;
} order_call;

static void order_task(void *argument, int64_t token, int worker) {
    (void)worker;
    const order_call *o = argument;
    const ln_ragged_shape *shape = &o->ragged->shape;
    const int64_t group = shape->heads / shape->key_value_heads;
    for (int64_t h = 0; h < shape->heads; h++) {
        const int32_t *order = ln_lane_order(o->ragged, o->layer * shape->key_value_heads + h / group);
        float *row = o->call->query + token * o->call->query_stride + h * o->call->query_head_stride;
        if (order) ln_ragged_order_row(order, shape->key_size, row);
    }
}

void ln_ragged_order_queries(const ln_ragged *ragged, int64_t layer, const ln_ragged_call *call) {
    order_call o = {ragged, layer, call};
    ln_parallel(call->team, call->tokens, order_task, &o);
}

/* ---- choosing ---- */

/* Squares of each channel over the queries of a lane's heads. */
static void add_queries(const ln_ragged_shape *shape, const ln_settling *s, int64_t head, double *squares) {
    const int64_t group = shape->heads / shape->key_value_heads;
    for (int64_t t = 0; t < s->observed; t++)
        for (int64_t g = 0; g < group; g++) {
            const float *query = s->query + (t * shape->heads + head * group + g) * shape->key_size;
            for (int64_t i = 0; i < shape->key_size; i++) squares[i] += (double)query[i] * (double)query[i];
        }
}

/* What each channel is worth. */
static void weigh(const ln_ragged *ragged, const ln_settling *s, int64_t head, float *key, float *worth) {
    const ln_ragged_shape *shape = &ragged->shape;
    const ln_lane *lane = ln_lane_of(ragged, s->layer, head);
    double keys[LN_HEAD_MOST] = {0}, queries[LN_HEAD_MOST] = {0};
    float most[LN_HEAD_MOST] = {0};
    for (int64_t e = ln_lane_first(lane, LN_NEAR); e < lane->begin + ln_lane_pages(lane); e++)
        for (int64_t i = 0; i < ragged->count[e]; i++) {
            ln_page_decode_token(&ln_pool_layouts(ragged->pool)[LN_NEAR], ln_pool_data(ragged->pool, ragged->page[e]),
                                 i, key, NULL);
            ln_channels_observe(most, key, 1, shape->key_size, shape->key_size);
            for (int64_t c = 0; c < shape->key_size; c++) keys[c] += (double)key[c] * (double)key[c];
        }
    add_queries(shape, s, head, queries);
    for (int64_t c = 0; c < shape->key_size; c++) {
        worth[c] = ragged->policy.group ? most[c] : (float)sqrt(keys[c] * queries[c]);
        if (isnan(worth[c])) worth[c] = 0;
    }
}

bool ln_ragged_order_lane(ln_ragged *ragged, const ln_settling *settling, int64_t head, float *key, ln_page *dropped,
                          int64_t *drops) {
    const int64_t size = ragged->shape.key_size, number = settling->layer * ragged->shape.key_value_heads + head;
    const ln_lane *lane = &ragged->lane[number];
    int32_t *order = ragged->order + number * size;
    float worth[LN_HEAD_MOST];
    if (ln_lane_order(ragged, number)) return true;
    weigh(ragged, settling, head, key, worth);
    for (int64_t e = ln_lane_first(lane, LN_NEAR); e < lane->begin + ln_lane_pages(lane); e++)
        if (!ln_ragged_own(ragged, &ragged->page[e], dropped, drops)) return false;
    ln_channels_order(worth, size, 0, false, order);
    const ln_page_layout *layout = &ln_pool_layouts(ragged->pool)[LN_NEAR];
    for (int64_t e = ln_lane_first(lane, LN_NEAR); e < lane->begin + ln_lane_pages(lane); e++)
        for (int64_t i = 0; i < ragged->count[e]; i++) {
            unsigned char *page = ln_pool_data(ragged->pool, ragged->page[e]);
            ln_page_decode_token(layout, page, i, key, NULL);
            ln_ragged_order_row(order, size, key);
            ln_page_encode_token(layout, page, i, key, NULL);
        }
    return true;
}
