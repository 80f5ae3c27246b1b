/* Owns: SLA's classes of tiles and its linear part (P303; linnet/approximate.h).
 *
 * Of each tile of keys are kept its mean, h = phi(K)^T V [key_size][value_size] and z = sum phi(k) [key_size]. A tile
 * of queries ranks the key tiles before it by its mean query (softmax keeps the order, so scores suffice), marks the
 * critical ones, and adds up h and z of the marginal ones, in ascending order, when the tile loop is done. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/select_sla.h"

static void carve(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_settings *s = call->s;
    const uint64_t tiles = (uint64_t)(s->key_value_heads * call->plan->key_tiles),
                   lists = (uint64_t)(s->heads * call->plan->query_tiles), back = s->backward,
                   product = (uint64_t)ln_sla_product_floats(s) * sizeof(float),
                   feature = (uint64_t)s->key_size * sizeof(float);
    const ln_sla_sums x = {
        .means =
            ln_carve(carver, (uint64_t)(s->key_value_heads * ln_sla_panels(call->plan->key_tiles)), feature * LN_PANEL),
        .products = ln_carve(carver, tiles, product),
        .features = ln_carve(carver, tiles, feature),
        .classes = ln_carve(carver, lists, (uint64_t)call->plan->key_tiles),
        .products_gradient = ln_carve(carver, back * lists, product),
        .features_gradient = ln_carve(carver, back * lists, feature),
        .linear = ln_carve(carver, back * (uint64_t)(s->heads * s->tokens), (uint64_t)s->value_size * sizeof(float))};
    ln_sla_sums *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = x;
    call->own = own;
}

static ln_sla_places place(const linnet_approximate_plan *plan, ln_carver *carver) {
    const linnet_approximate_settings *s = &plan->s;
    const uint64_t tiles = (uint64_t)plan->key_tiles, back = s->backward,
                   most = (uint64_t)ln_max_i64(ln_max_i64(s->query_tile, s->key_tile), LN_SELECT_SIZE_MOST),
                   rows = most * LN_SELECT_STRIDE * sizeof(float);
    return (ln_sla_places){.mean = ln_carve(carver, LN_SELECT_STRIDE, sizeof(float)),
                           .row = ln_carve(carver, LN_SELECT_STRIDE, sizeof(float)),
                           .score = ln_carve(carver, tiles, sizeof(float)),
                           .free_tiles = ln_carve(carver, tiles, sizeof(int32_t)),
                           .heap = ln_carve(carver, tiles, sizeof(int32_t)),
                           .chosen = ln_carve(carver, tiles, sizeof(int32_t)),
                           .phi = ln_carve(carver, 1, rows),
                           .result = ln_carve(carver, 1, rows),
                           .panel = ln_carve(carver, LN_SLA_CHUNK * LN_PANEL, sizeof(float)),
                           .h = ln_carve(carver, (uint64_t)ln_sla_product_floats(s), sizeof(float)),
                           .z = ln_carve(carver, (uint64_t)s->key_size, sizeof(float)),
                           .numerator = ln_carve(carver, back, rows),
                           .turned = ln_carve(carver, back, rows),
                           .turned_h = ln_carve(carver, back * (uint64_t)(ln_sla_panels(s->key_size) * s->value_size),
                                                LN_PANEL * sizeof(float)),
                           .denominator = ln_carve(carver, back * most, sizeof(float))};
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    ln_carver carver = {0};
    place(plan, &carver);
    return carver.used;
}

ln_sla_places ln_sla_place(const ln_select_call *call, int worker) {
    ln_carver carver = {.base = (unsigned char *)ln_select_scratch(call, worker) +
                                ln_round_up((uint64_t)call->plan->key_tiles, 64)};
    return place(call->plan, &carver);
}

/* ---- keys ---- */

void ln_sla_features(const ln_select_call *call, const float *x, float *phi) {
    const int64_t n = call->s->key_size;
    if (call->s->feature_map == LINNET_FEATURES_ELU) {
        for (int64_t i = 0; i < n; i++) phi[i] = x[i] > 0 ? x[i] + 1 : expf(x[i]);
        return;
    }
    const ln_vector_kernels *vector = &call->kernels->vector;
    const float sum = vector->exponential(phi, x, vector->maximum(x, n), n);
    vector->scale(phi, 1 / sum, n);
}

static void mean_of(const float *rows, int64_t count, int64_t n, float *mean) {
    memset(mean, 0, (size_t)n * sizeof *mean);
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < n; i++) mean[i] += rows[r * n + i];
    for (int64_t i = 0; i < n; i++) mean[i] /= (float)count;
}

void ln_sla_outer(const ln_select_call *call, const ln_sla_places *p, const float *turned, const float *b,
                  int64_t stride, int64_t rows, float *h) {
    const linnet_approximate_settings *s = call->s;
    for (int64_t panel = 0; panel < ln_sla_panels(s->value_size); panel++) {
        const int64_t columns = ln_min_i64(LN_PANEL, s->value_size - panel * LN_PANEL);
        memset(p->panel, 0, (size_t)(rows * LN_PANEL) * sizeof(float));
        for (int64_t r = 0; r < rows; r++)
            memcpy(p->panel + r * LN_PANEL, b + r * stride + panel * LN_PANEL, (size_t)columns * sizeof(float));
        ln_select_product(call, p->panel, rows, turned, s->key_size, p->result, false);
        for (int64_t i = 0; i < s->key_size; i++)
            call->kernels->vector.add(h + (panel * s->key_size + i) * LN_PANEL, p->result + i * LN_SELECT_STRIDE,
                                      LN_PANEL);
    }
}

/* h and z of `rows` more tokens. */
static void add_tokens(const ln_select_call *call, const ln_sla_places *p, int64_t head, int64_t begin, int64_t rows,
                       float *h, float *z) {
    for (int64_t r = 0; r < rows; r++) {
        ln_sla_features(call, ln_select_key(call, head, begin + r), p->row);
        for (int64_t i = 0; i < call->s->key_size; i++) {
            z[i] += p->row[i];
            p->phi[i * LN_SELECT_STRIDE + r] = p->row[i];
        }
    }
    ln_sla_outer(call, p, p->phi, ln_select_value(call, head, begin), call->s->value_size, rows, h);
}

static void sum_tile(void *argument, int64_t task, int worker) {
    const ln_select_call *call = argument;
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const ln_sla_places p = ln_sla_place(call, worker);
    const int64_t tiles = call->plan->key_tiles, head = task / tiles, tile = task % tiles, begin = tile * s->key_tile,
                  end = ln_min_i64(begin + s->key_tile, s->tokens);
    float *means = x->means + (head * ln_sla_panels(tiles) + tile / LN_PANEL) * s->key_size * LN_PANEL;
    mean_of(ln_select_key(call, head, begin), end - begin, s->key_size, p.mean);
    ln_select_column(means, tile % LN_PANEL, p.mean, s->key_size);
    float *h = x->products + task * ln_sla_product_floats(s), *z = x->features + task * s->key_size;
    memset(h, 0, (size_t)ln_sla_product_floats(s) * sizeof *h);
    memset(z, 0, (size_t)s->key_size * sizeof *z);
    for (int64_t token = begin; token < end; token += LN_SLA_CHUNK)
        add_tokens(call, &p, head, token, ln_min_i64(LN_SLA_CHUNK, end - token), h, z);
}

static void prepare(ln_select_call *call) {
    ln_parallel(call->team, call->s->key_value_heads * call->plan->key_tiles, sum_tile, call);
}

/* ---- queries ---- */

/* How many of n tiles a share means: the critical ones rounded up, the skipped ones down. */
static int64_t share_up(float share, int64_t n) {
    return ln_min_i64(n, (int64_t)ceil((double)share * (double)n - 1e-6));
}
static int64_t share_down(float share, int64_t n) {
    return (int64_t)floor((double)share * (double)n + 1e-6);
}

static void score_tiles(ln_select_call *call, const ln_select_tile *tile, const ln_sla_places *p, int64_t count) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    mean_of(ln_select_query(call, tile->head, tile->begin), tile->end - tile->begin, s->key_size, p->mean);
    for (int64_t first = 0; first < tile->limit; first += LN_PANEL) {
        const int64_t at =
            (tile->shared * ln_sla_panels(call->plan->key_tiles) + first / LN_PANEL) * s->key_size * LN_PANEL;
        ln_select_product(call, x->means + at, s->key_size, p->mean, 1, p->row, false);
        for (int64_t j = first; j < ln_min_i64(first + LN_PANEL, tile->limit); j++)
            p->score[j] = isfinite(p->row[j - first]) ? p->row[j - first] : -INFINITY;
    }
    for (int64_t i = 0; i < count; i++) p->score[i] = p->score[p->free_tiles[i]];
    atomic_fetch_add(&call->scored, tile->limit);
}

static void mark_tiles(ln_select_call *call, const ln_select_tile *tile) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    ln_carver carver = {.base = tile->scratch};
    const ln_sla_places p = place(call->plan, &carver);
    unsigned char *classes = x->classes + (tile->head * call->plan->query_tiles + tile->tile) * call->plan->key_tiles;
    memset(classes, LN_SLA_CRITICAL, (size_t)call->plan->key_tiles);
    const int64_t count = ln_select_free(tile, p.free_tiles), marked = tile->limit - count;
    const int64_t critical = ln_max_i64(0, ln_min_i64(count, share_up(s->critical, tile->limit) - marked)),
                  skipped = ln_min_i64(count - critical, share_down(s->skipped, tile->limit));
    if (critical < count) score_tiles(call, tile, &p, count);
    for (int64_t i = 0; i < count; i++) classes[p.free_tiles[i]] = critical < count ? LN_SLA_SKIPPED : LN_SLA_CRITICAL;
    if (critical < count) {
        int64_t chosen = ln_select_top(p.score, count, count - skipped, p.heap, p.chosen);
        for (int64_t i = 0; i < chosen; i++) classes[p.free_tiles[p.chosen[i]]] = LN_SLA_MARGINAL;
        chosen = ln_select_top(p.score, count, critical, p.heap, p.chosen);
        for (int64_t i = 0; i < chosen; i++) classes[p.free_tiles[p.chosen[i]]] = LN_SLA_CRITICAL;
    }
    for (int64_t j = 0; j < tile->limit; j++) tile->marks[j] = classes[j] == LN_SLA_CRITICAL;
}

/* ---- the linear part ---- */

int64_t ln_sla_gather(const ln_select_call *call, const ln_sla_places *p, int64_t head, int64_t tile) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t tiles = call->plan->key_tiles, floats = ln_sla_product_floats(s), shared = head / call->plan->group;
    const unsigned char *classes = x->classes + (head * call->plan->query_tiles + tile) * tiles;
    int64_t count = 0;
    memset(p->h, 0, (size_t)floats * sizeof(float));
    memset(p->z, 0, (size_t)s->key_size * sizeof(float));
    for (int64_t j = 0; j < tiles; j++) {
        if (classes[j] != LN_SLA_MARGINAL) continue;
        count++;
        call->kernels->vector.add(p->h, x->products + (shared * tiles + j) * floats, floats);
        call->kernels->vector.add(p->z, x->features + (shared * tiles + j) * s->key_size, s->key_size);
    }
    return count;
}

static void add_row(const ln_select_call *call, int64_t head, int64_t token, float *linear) {
    const linnet_approximate_settings *s = call->s;
    const float *projection = call->tensors->projection;
    float *to = ln_row_to(&call->output_rows, token, head);
    if (!projection) {
        call->kernels->vector.add(to, linear, s->value_size);
        return;
    }
    call->kernels->vector.add_products(to, 1, linear, s->value_size, projection + head * s->value_size * s->value_size,
                                       s->value_size, s->value_size);
}

static void add_linear(void *argument, int64_t task, int worker) {
    const ln_select_call *call = argument;
    const linnet_approximate_settings *s = call->s;
    const ln_sla_places p = ln_sla_place(call, worker);
    const int64_t head = task % s->heads, tile = task / s->heads, begin = tile * s->query_tile,
                  rows = ln_min_i64(s->query_tile, s->tokens - begin);
    if (ln_sla_gather(call, &p, head, tile) == 0) return;
    for (int64_t r = 0; r < rows; r++)
        ln_sla_features(call, ln_select_query(call, head, begin + r), p.phi + r * LN_SELECT_STRIDE);
    for (int64_t panel = 0; panel < ln_sla_panels(s->value_size); panel++)
        ln_select_product(call, p.h + panel * s->key_size * LN_PANEL, s->key_size, p.phi, rows,
                          p.result + panel * LN_PANEL, false);
    for (int64_t r = 0; r < rows; r++) {
        double norm = 0;
        for (int64_t i = 0; i < s->key_size; i++) norm += (double)p.phi[r * LN_SELECT_STRIDE + i] * (double)p.z[i];
        if (!(norm > 0)) continue;
        call->kernels->vector.scale(p.result + r * LN_SELECT_STRIDE, (float)(1 / norm), s->value_size);
        add_row(call, head, begin + r, p.result + r * LN_SELECT_STRIDE);
    }
}

static void finish(ln_select_call *call) {
    ln_parallel(call->team, call->s->heads * call->plan->query_tiles, add_linear, call);
}

static const char *check(linnet_approximate_settings *s) {
    if (!(s->critical >= 0 && s->critical <= 1 && s->skipped >= 0 && s->skipped <= 1))
        return "critical and skipped must be from 0 to 1";
    return (unsigned)s->feature_map > LINNET_FEATURES_ELU ? "feature_map must be one of linnet_feature_map" : NULL;
}

const ln_select_row ln_select_sla = {.name = "sla",
                                     .source = "Zhang et al. 2025",
                                     .needs = LN_SELECT_QUERY | LN_SELECT_KEY | LN_SELECT_VALUE | LN_SELECT_DIAGONAL |
                                              LN_SELECT_BACKWARD,
                                     .check = check,
                                     .carve = carve,
                                     .scratch = scratch,
                                     .prepare = prepare,
                                     .tile = mark_tiles,
                                     .finish = finish,
                                     .backward = ln_sla_backward};
