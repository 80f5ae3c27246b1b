/* Owns: attention of a piece over the lanes of a layer, and what of its queries settling needs.
 *
 * A lane is a sequence of its own, of the heads that share it. All of its far and sink tokens, whatever their order,
 * lie before the piece, so the causal mask on indices is the one on positions. */
#include <math.h>
#include <string.h>

#include "kernel/page.h"
#include "memory/ragged_inside.h"
#include "mixer/carve.h"

/* ---- what will be done ---- */

int64_t ln_ragged_leaving(const ln_ragged *ragged, int64_t layer) {
    const ln_policy *policy = &ragged->policy;
    if (ragged->pass == LN_PASS_HELD) return 0;
    const int64_t probe = ragged->pass == LN_PASS_PROBE ? ragged->appended : 0;
    const int64_t near = ln_lane_of(ragged, layer, 0)->tokens[LN_NEAR] - probe;
    const int64_t beyond = near - ln_sink_pages(policy) * LN_PAGE_TOKENS - policy->recent;
    return ln_max_i64(0, beyond / LN_PAGE_TOKENS);
}

bool ln_ragged_settles(const ln_ragged *ragged, int64_t layer, int64_t tokens, int64_t *observed) {
    const ln_scorer *scorer = ragged->policy.scorer;
    const bool leaves = ln_ragged_leaving(ragged, layer) > 0,
               own = ragged->pass != LN_PASS_HELD || ragged->policy.probe == LN_PROBE_DRAFT,
               scores = scorer && own && (leaves || scorer->keeps || scorer->state);
    *observed = scores && scorer->observes ? ln_min_i64(tokens, scorer->observes(&ragged->policy, tokens)) : 0;
    if (leaves && !*observed) *observed = ln_ragged_order_observes(ragged, layer, tokens);
    return leaves || scores || ragged->pass == LN_PASS_PROBE;
}

/* ---- attention ---- */

typedef struct parts {
    ln_attention_sequence *sequences;
    float *query, *log_sum_exp, *bias;
    void *rest; /* of attention, then of settling */
} parts;

static ln_attention lane_attention(const ln_attention *layer) {
    ln_attention lane = *layer;
    lane.heads = layer->heads / layer->key_value_heads;
    lane.key_value_heads = 1;
    lane.mask = (ln_mask){.causal = true};
    return lane;
}

/* pages: of all lanes of the layer. */
static parts place(ln_carver *from, const ln_ragged_shape *shape, int64_t tokens, int64_t observed, int64_t pages) {
    parts p;
    p.sequences = ln_carve(from, (uint64_t)shape->key_value_heads, sizeof *p.sequences);
    p.query = ln_carve(from, (uint64_t)(observed * shape->heads * shape->key_size), sizeof *p.query);
    p.log_sum_exp = ln_carve(from, observed ? (uint64_t)(tokens * shape->heads) : 0, sizeof *p.log_sum_exp);
    p.bias = ln_carve(from, shape->policy->merger ? (uint64_t)(pages * LN_PAGE_TOKENS) : 0, sizeof *p.bias);
    p.rest = ln_carve(from, 0, 1);
    return p;
}

uint64_t ln_ragged_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape) {
    ln_carver carver = {0};
    ln_pool_shape pool;
    const ln_scorer *scorer = shape->policy->scorer;
    int64_t observed = ln_policy_orders(shape->policy) ? ln_min_i64(shape->piece, LN_ORDER_QUERIES) : 0;
    if (scorer && scorer->observes)
        observed = ln_max_i64(observed, ln_min_i64(shape->piece, scorer->observes(shape->policy, shape->piece)));
    if (!ln_ragged_pool_shape(shape, &pool)) return UINT64_MAX / 4;
    place(&carver, shape, shape->piece, observed, ln_ragged_layer_pages(shape, &pool));
    const ln_attention attention = {.heads = shape->heads / shape->key_value_heads,
                                    .key_value_heads = 1,
                                    .key_size = shape->key_size,
                                    .value_size = shape->value_size,
                                    .scale = shape->scale,
                                    .bf16 = true};
    const uint64_t attend = ln_attention_workspace(kernels, threads, &attention, shape->key_value_heads, shape->piece);
    const uint64_t settle = ln_ragged_settle_workspace(kernels, threads, shape, &pool);
    ln_tier_shape tier;
    if (ln_ragged_tier_shape(shape, &pool, &tier)) carver.used += ln_ragged_tier_workspace(shape, &tier, threads);
    return carver.used + (attend > settle ? attend : settle);
}

typedef struct rotate_call {
    float *row;
    int64_t stride, head_stride, heads, size;
} rotate_call;

static void rotate_task(void *argument, int64_t token, int worker) {
    (void)worker;
    const rotate_call *call = argument;
    for (int64_t h = 0; h < call->heads; h++)
        ln_hadamard(call->row + token * call->stride + h * call->head_stride, call->size);
}

static void keep_queries(const ln_ragged_shape *shape, const ln_ragged_call *call, int64_t observed, float *to) {
    for (int64_t t = 0; t < observed; t++)
        for (int64_t h = 0; h < shape->heads; h++)
            memcpy(to + (t * shape->heads + h) * shape->key_size,
                   call->query + (call->tokens - observed + t) * call->query_stride + h * call->query_head_stride,
                   (size_t)shape->key_size * sizeof *to);
}

static int64_t pages_now(const ln_ragged *ragged, int64_t layer) {
    int64_t pages = 0;
    for (int64_t h = 0; h < ragged->shape.key_value_heads; h++) pages += ln_lane_pages(ln_lane_of(ragged, layer, h));
    return pages;
}

/* Running mean over tokens of how far each head's output is from the mean of all. */
static void observe_distance(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call) {
    const ln_ragged_shape *shape = &ragged->shape;
    double now[LN_HEADS_MOST], *distance = ragged->distance + layer * shape->key_value_heads;
    if (shape->key_value_heads > LN_HEADS_MOST) return;
    ln_statistics_distance(call->output, call->tokens, call->output_stride, call->output_head_stride, shape->heads,
                           shape->heads / shape->key_value_heads, shape->value_size, now);
    const double part = (double)call->tokens / (double)(ragged->position + call->tokens);
    for (int64_t h = 0; h < shape->key_value_heads; h++)
        if (now[h] < INFINITY) distance[h] += (now[h] - distance[h]) * part;
}

/* The lanes' sequences, but for what they read. */
static void describe(const ln_ragged *ragged, const ln_ragged_call *call, const parts *p, int64_t observed) {
    const ln_ragged_shape *shape = &ragged->shape;
    const int64_t group = shape->heads / shape->key_value_heads;
    for (int64_t h = 0; h < shape->key_value_heads; h++)
        p->sequences[h] =
            (ln_attention_sequence){.tokens = call->tokens,
                                    .query_type = LINNET_F32,
                                    .query = call->query + h * group * call->query_head_stride,
                                    .output = call->output + h * group * call->output_head_stride,
                                    .query_stride = call->query_stride,
                                    .query_head_stride = call->query_head_stride,
                                    .output_stride = call->output_stride,
                                    .output_head_stride = call->output_head_stride,
                                    .log_sum_exp = observed ? p->log_sum_exp + h * call->tokens * group : NULL};
}

static void attend_lanes(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call, const ln_attention *attention,
                         const parts *p) {
    const int64_t heads = ragged->shape.key_value_heads;
    float *bias = p->bias;
    for (int64_t h = 0; h < heads; h++) {
        ln_lane *lane = ln_lane_of(ragged, layer, h);
        ln_attention_sequence *sequence = &p->sequences[h];
        sequence->view = ln_ragged_view(ragged, lane);
        sequence->counts = ragged->count + lane->begin;
        sequence->keys = ln_lane_keys(ragged, lane);
        sequence->position = sequence->keys - call->tokens;
        if (!ragged->policy.merger) continue;
        ln_ragged_bias(ragged, lane, bias);
        sequence->bias.keys = bias;
        bias += ln_lane_pages(lane) * LN_PAGE_TOKENS;
    }
    ln_attention_run(call->kernels, call->team, attention, p->sequences, heads, p->rest);
}

static linnet_status attend(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call) {
    const ln_ragged_shape *shape = &ragged->shape;
    int64_t observed;
    const bool settles = ln_ragged_settles(ragged, layer, call->tokens, &observed);
    ln_carver carver = {.base = call->workspace};
    const parts p = place(&carver, shape, call->tokens, observed, pages_now(ragged, layer));
    if (ragged->policy.rotate) {
        rotate_call rotate = {call->query, call->query_stride, call->query_head_stride, shape->heads, shape->key_size};
        ln_parallel(call->team, call->tokens, rotate_task, &rotate);
    }
    if (ragged->order) ln_ragged_order_queries(ragged, layer, call);
    keep_queries(shape, call, observed, p.query);
    describe(ragged, call, &p, observed);
    const ln_attention attention = lane_attention(call->attention);
    linnet_status status = LINNET_OK;
    if (ragged->tier)
        status = ln_ragged_tier_attend(ragged, layer, call, &attention, p.sequences, p.rest);
    else
        attend_lanes(ragged, layer, call, &attention, &p);
    if (status != LINNET_OK) return status;
    if (ragged->policy.rotate) {
        rotate_call rotate = {call->output, call->output_stride, call->output_head_stride, shape->heads,
                              shape->value_size};
        ln_parallel(call->team, call->tokens, rotate_task, &rotate);
    }
    if (ragged->policy.allocator && ragged->policy.allocator->distance) observe_distance(ragged, layer, call);
    if (!settles) return LINNET_OK;
    const ln_settling settling = {.layer = layer,
                                  .tokens = call->tokens,
                                  .call = call,
                                  .observed = observed,
                                  .query = p.query,
                                  .log_sum_exp = p.log_sum_exp,
                                  .workspace = p.rest};
    if (ragged->tier) ln_tier_quiet(ragged->tier);
    status = ln_ragged_settle(ragged, &settling);
    return ragged->tier && status == LINNET_OK ? ln_ragged_tier_take(ragged, call->team, layer) : status;
}

linnet_status ln_ragged_attend(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call) {
    linnet_status status = LINNET_OK;
    if (ragged->tier && layer == 0)
        status = ln_tier_reserve(ragged->tier, ln_ragged_leaving(ragged, 0) * ragged->lanes);
    if (status == LINNET_OK) status = attend(ragged, layer, call);
    if (ragged->tier && status != LINNET_OK) ln_ragged_undo(ragged);
    return status;
}

/* ---- keys and values on a device ---- */

int64_t ln_ragged_lane_of(const ln_ragged *ragged, int64_t layer, int64_t head, const ln_page **pages, int64_t *count) {
    const ln_lane *lane = ln_lane_of(ragged, layer, head);
    *pages = ragged->page + lane->begin;
    *count = ln_lane_pages(lane);
    return ln_lane_keys(ragged, lane);
}

linnet_status ln_ragged_attended(ln_ragged *ragged, int64_t layer, const ln_ragged_call *call) {
    const ln_scorer *scorer = ragged->policy.scorer;
    int64_t observed;
    if (!ln_ragged_settles(ragged, layer, call->tokens, &observed)) return LINNET_OK;
    ragged->settled = true; /* as where keys are here: then all is settled at once */
    if (!call->columns && !call->observed && (call->behind || !ln_ragged_leaving(ragged, layer))) return LINNET_OK;
    if (scorer && scorer->reads & (LN_READS_SUMS | LN_READS_MOST | LN_READS_EACH) && !call->columns && !call->observed)
        return ln_fail(ragged->context, LINNET_ERROR_ARGUMENT, "scores without what queries gave: a defect");
    const ln_settling settling = {.layer = layer,
                                  .tokens = call->tokens,
                                  .call = call,
                                  .observed = observed,
                                  .query = call->observed,
                                  .log_sum_exp = call->log_sum_exp,
                                  .workspace = call->workspace};
    return ln_ragged_settle(ragged, &settling);
}

uint64_t ln_ragged_attended_workspace(const ln_kernels *kernels, int threads, const ln_ragged_shape *shape) {
    ln_pool_shape pool;
    return ln_ragged_pool_shape(shape, &pool) ? ln_ragged_settle_workspace(kernels, threads, shape, &pool) : 0;
}

int64_t ln_ragged_positions(const ln_ragged *ragged, int64_t layer, int64_t head, int32_t *positions) {
    const ln_lane *lane = ln_lane_of(ragged, layer, head);
    int64_t n = 0;
    for (int64_t e = lane->begin; e < lane->begin + ln_lane_pages(lane); e++) {
        const int32_t *of = ln_pool_positions(ragged->pool, ragged->page[e]);
        for (int64_t t = 0; of && t < ragged->count[e]; t++) positions[n++] = of[t];
    }
    return n;
}
