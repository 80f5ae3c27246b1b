/* Owns: the backward pass of SLA's linear part (P303; linnet/approximate.h).
 *
 * For a query of features f, with H = sum h[j], z = sum z[j] over the marginal tiles, the part is L = f H / (f . z) and
 * goes through P. With g = dO P^T:
 *     dL/d(f H) = n = g / (f . z),   dL/d(f . z) = e = - (g . L) / (f . z),
 *     df = H n + e z,   dH += f^T n,   dz += e f,   dP += L^T dO.
 * dH and dz are kept for each tile of queries. A tile of keys sums those of the query tiles for which it is marginal,
 * in ascending order, to dh and dz, and has d phi(k) = dh v + dz, dv = dh^T phi(k). Through phi: softmax dx = phi (dphi
 * - phi . dphi), ELU dx = dphi min(phi, 1). */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/select_sla.h"

/* x gradient += that of phi through phi. */
static void add_through_features(const ln_select_call *call, const float *phi, const float *gradient, float *to) {
    const int64_t n = call->s->key_size;
    if (call->s->feature_map == LINNET_FEATURES_ELU) {
        for (int64_t i = 0; i < n; i++) to[i] += gradient[i] * fminf(phi[i], 1);
        return;
    }
    double mean = 0;
    for (int64_t i = 0; i < n; i++) mean += (double)phi[i] * (double)gradient[i];
    for (int64_t i = 0; i < n; i++) to[i] += phi[i] * (gradient[i] - (float)mean);
}

/* h^T as panels: [panel of 32 rows of h][value_size][32] */
static void turn(const linnet_approximate_settings *s, const float *h, float *turned) {
    memset(turned, 0, (size_t)(ln_sla_panels(s->key_size) * s->value_size * LN_PANEL) * sizeof *turned);
    for (int64_t v = 0; v < s->value_size; v++)
        for (int64_t i = 0; i < s->key_size; i++)
            turned[(i / LN_PANEL * s->value_size + v) * LN_PANEL + i % LN_PANEL] =
                h[(v / LN_PANEL * s->key_size + i) * LN_PANEL + v % LN_PANEL];
}

/* to [rows] = from [rows][value_size] h^T, that is d phi. */
static void multiply_turned(const ln_select_call *call, const ln_sla_places *p, const float *from, int64_t rows,
                            float *to) {
    const linnet_approximate_settings *s = call->s;
    for (int64_t panel = 0; panel < ln_sla_panels(s->key_size); panel++)
        ln_select_product(call, p->turned_h + panel * s->value_size * LN_PANEL, s->value_size, from, rows,
                          to + panel * LN_PANEL, false);
}

/* ---- queries ---- */

/* p->numerator = n and p->denominator = e of each row; keeps L. p->result holds f H. */
static void row_gradients(const ln_select_call *call, const ln_sla_places *p, int64_t head, int64_t begin,
                          int64_t rows) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t size = s->value_size;
    const float *projection = call->tensors->projection;
    for (int64_t r = 0; r < rows; r++) {
        const float *phi = p->phi + r * LN_SELECT_STRIDE, *above = p->result + r * LN_SELECT_STRIDE,
                    *from = ln_row_at(&call->output_gradient, begin + r, head);
        float *n = p->numerator + r * LN_SELECT_STRIDE, *linear = x->linear + (head * s->tokens + begin + r) * size;
        double norm = 0, along = 0;
        for (int64_t i = 0; i < s->key_size; i++) norm += (double)phi[i] * (double)p->z[i];
        const double inverse = norm > 0 ? 1 / norm : 0;
        for (int64_t i = 0; i < size; i++) {
            double g = projection ? 0 : (double)from[i];
            const float *row = projection ? projection + (head * size + i) * size : from;
            for (int64_t o = 0; o < size && projection; o++) g += (double)row[o] * (double)from[o];
            linear[i] = (float)((double)above[i] * inverse);
            n[i] = (float)(g * inverse);
            along += g * (double)linear[i];
        }
        p->denominator[r] = (float)(-along * inverse);
    }
}

/* dH and dz of the tile. */
static void keep_sums(const ln_select_call *call, const ln_sla_places *p, int64_t list, int64_t rows) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    float *h = x->products_gradient + list * ln_sla_product_floats(s), *z = x->features_gradient + list * s->key_size;
    memset(h, 0, (size_t)ln_sla_product_floats(s) * sizeof *h);
    memset(z, 0, (size_t)s->key_size * sizeof *z);
    for (int64_t first = 0; first < rows; first += LN_SLA_CHUNK) {
        const int64_t count = ln_min_i64(LN_SLA_CHUNK, rows - first);
        for (int64_t r = 0; r < count; r++) {
            const float *phi = p->phi + (first + r) * LN_SELECT_STRIDE;
            for (int64_t i = 0; i < s->key_size; i++) {
                p->turned[i * LN_SELECT_STRIDE + r] = phi[i];
                z[i] += p->denominator[first + r] * phi[i];
            }
        }
        ln_sla_outer(call, p, p->turned, p->numerator + first * LN_SELECT_STRIDE, LN_SELECT_STRIDE, count, h);
    }
}

static void query_tile(void *argument, int64_t task, int worker) {
    const ln_select_call *call = argument;
    const linnet_approximate_settings *s = call->s;
    const ln_sla_sums *x = call->own;
    const ln_sla_places p = ln_sla_place(call, worker);
    const int64_t head = task % s->heads, tile = task / s->heads, begin = tile * s->query_tile,
                  rows = ln_min_i64(s->query_tile, s->tokens - begin);
    if (ln_sla_gather(call, &p, head, tile) == 0) {
        memset(x->linear + (head * s->tokens + begin) * s->value_size, 0,
               (size_t)(rows * s->value_size) * sizeof(float));
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        ln_sla_features(call, ln_select_query(call, head, begin + r), p.phi + r * LN_SELECT_STRIDE);
    for (int64_t panel = 0; panel < ln_sla_panels(s->value_size); panel++)
        ln_select_product(call, p.h + panel * s->key_size * LN_PANEL, s->key_size, p.phi, rows,
                          p.result + panel * LN_PANEL, false);
    row_gradients(call, &p, head, begin, rows);
    keep_sums(call, &p, head * call->plan->query_tiles + tile, rows);
    if (!call->query_gradient.data) return;
    turn(s, p.h, p.turned_h);
    multiply_turned(call, &p, p.numerator, rows, p.result);
    for (int64_t r = 0; r < rows; r++) {
        float *gradient = p.result + r * LN_SELECT_STRIDE;
        for (int64_t i = 0; i < s->key_size; i++) gradient[i] += p.denominator[r] * p.z[i];
        add_through_features(call, p.phi + r * LN_SELECT_STRIDE, gradient,
                             ln_row_to(&call->query_gradient, begin + r, head));
    }
}

/* ---- keys ---- */

static bool sum_gradients(const ln_select_call *call, const ln_sla_places *p, int64_t shared, int64_t tile) {
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t floats = ln_sla_product_floats(s), group = call->plan->group;
    bool any = false;
    memset(p->h, 0, (size_t)floats * sizeof(float));
    memset(p->z, 0, (size_t)s->key_size * sizeof(float));
    for (int64_t list = shared * group * call->plan->query_tiles; list < (shared + 1) * group * call->plan->query_tiles;
         list++) {
        if (x->classes[list * call->plan->key_tiles + tile] != LN_SLA_MARGINAL) continue;
        any = true;
        call->kernels->vector.add(p->h, x->products_gradient + list * floats, floats);
        call->kernels->vector.add(p->z, x->features_gradient + list * s->key_size, s->key_size);
    }
    return any;
}

static void key_tile(void *argument, int64_t task, int worker) {
    const ln_select_call *call = argument;
    const linnet_approximate_settings *s = call->s;
    const ln_sla_places p = ln_sla_place(call, worker);
    const int64_t tiles = call->plan->key_tiles, shared = task / tiles, tile = task % tiles, begin = tile * s->key_tile,
                  rows = ln_min_i64(s->key_tile, s->tokens - begin);
    if (!sum_gradients(call, &p, shared, tile)) return;
    for (int64_t r = 0; r < rows; r++)
        ln_sla_features(call, ln_select_key(call, shared, begin + r), p.phi + r * LN_SELECT_STRIDE);
    if (call->value_gradient.data) {
        for (int64_t panel = 0; panel < ln_sla_panels(s->value_size); panel++)
            ln_select_product(call, p.h + panel * s->key_size * LN_PANEL, s->key_size, p.phi, rows,
                              p.result + panel * LN_PANEL, false);
        for (int64_t r = 0; r < rows; r++)
            call->kernels->vector.add(ln_row_to(&call->value_gradient, begin + r, shared),
                                      p.result + r * LN_SELECT_STRIDE, s->value_size);
    }
    if (!call->key_gradient.data) return;
    for (int64_t r = 0; r < rows; r++)
        memcpy(p.numerator + r * LN_SELECT_STRIDE, ln_select_value(call, shared, begin + r),
               (size_t)s->value_size * sizeof(float));
    turn(s, p.h, p.turned_h);
    multiply_turned(call, &p, p.numerator, rows, p.result);
    for (int64_t r = 0; r < rows; r++) {
        float *gradient = p.result + r * LN_SELECT_STRIDE;
        call->kernels->vector.add(gradient, p.z, s->key_size);
        add_through_features(call, p.phi + r * LN_SELECT_STRIDE, gradient,
                             ln_row_to(&call->key_gradient, begin + r, shared));
    }
}

/* ---- projection ---- */

/* One row in of one head: sum over tokens of L[in] dO. */
static void projection_row(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const ln_sla_sums *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t size = s->value_size, head = task / size, in = task % size;
    double sum[LN_SELECT_SIZE_MOST] = {0};
    for (int64_t t = 0; t < s->tokens; t++) {
        const double linear = (double)x->linear[(head * s->tokens + t) * size + in];
        const float *from = ln_row_at(&call->output_gradient, t, head);
        for (int64_t o = 0; o < size; o++) sum[o] += linear * (double)from[o];
    }
    for (int64_t o = 0; o < size; o++) call->tensors->projection_gradient[task * size + o] = (float)sum[o];
}

void ln_sla_backward(ln_select_call *call) {
    const linnet_approximate_settings *s = call->s;
    ln_parallel(call->team, s->heads * call->plan->query_tiles, query_tile, call);
    if (call->key_gradient.data || call->value_gradient.data)
        ln_parallel(call->team, s->key_value_heads * call->plan->key_tiles, key_tile, call);
    if (call->tensors->projection_gradient) ln_parallel(call->team, s->heads * s->value_size, projection_row, call);
}
