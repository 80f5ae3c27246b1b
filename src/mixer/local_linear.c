/* Owns: local linear attention (equations in linnet/local_linear.h).
 *
 * With the mean key k' = sum p[i] key[i], mu = k' - query and Sigma = C + mu mu^T for the covariance
 * C = sum p[i] (key[i] - k') (key[i] - k')^T + ridge I. By Sherman and Morrison, with y = C^-1 mu,
 *     rho = y / (1 + mu . y),   1 - mu . rho = 1 / (1 + mu . y),
 *     output = sum_i p[i] value[i] - sum_i p[i] ((key[i] - k') . y) value[i].
 * So the system solved is C y = mu: better conditioned than Sigma rho = mu, and nothing is divided by a difference.
 *
 * A task is a tile of queries of one head. It walks over the keys it sees, LN_ATTEND_BLOCK at a time, once for the
 * log-sum-exp, once for the means of keys and values, once for each iteration (C x = sum p (k . x - k' . x) k - ...)
 * and once for the output. Scores are computed anew in each walk; p = exp(score - lse) <= 1, so nothing overflows. A
 * row that has converged gets direction 0 and so keeps its y, whatever the other rows of its tile need: no row depends
 * on another. */
#include "linnet/local_linear.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/carve.h"
#include "mixer/pack.h"

enum {
    ROWS = 48,
    BLOCK = LN_ATTEND_BLOCK,
    PAGES = BLOCK / LN_PAGE_TOKENS,
    STRIDE = LN_ATTEND_STRIDE,
    SIZE_MOST = 256,
    NARROW = 8 /* columns of the keys that ride along where keys are laid out as values */
};

_Static_assert((int)SIZE_MOST <= (int)STRIDE && (int)BLOCK <= (int)STRIDE, "a row holds a head and a block");

/* Of one row each, but the row arrays [ROWS][STRIDE]. */
typedef struct tile_scratch {
    float query[ROWS * STRIDE]; /* divided by h */
    float scores[ROWS * STRIDE], products[ROWS * STRIDE];
    float mean[ROWS * STRIDE]; /* k' */
    float solution[ROWS * STRIDE], residual[ROWS * STRIDE], direction[ROWS * STRIDE], image[ROWS * STRIDE];
    float output[ROWS * STRIDE], correction[ROWS * STRIDE];
    float lse[ROWS], ridge[ROWS], shift[ROWS]; /* shift: k' . direction */
    double target[ROWS], square[ROWS], sum[ROWS];
    bool open[ROWS];
} tile_scratch;

typedef struct call {
    linnet_local_linear_settings s;
    ln_kernels kernels;
    ln_rows query, output;
    ln_page_layout wide, narrow; /* of keys and values; of keys as values */
    unsigned char *wide_pages, *narrow_pages;
    tile_scratch *scratch;
    int64_t tiles;
    _Atomic int64_t rows, iterations, most, unconverged;
} call;

typedef struct tile {
    const call *call;
    tile_scratch *x;
    int64_t head, shared, token, rows; /* shared: the key-value head */
    int64_t keys;                      /* seen by its last row */
} tile;

static int64_t seen(const tile *t, int64_t row) {
    const linnet_local_linear_settings *s = &t->call->s;
    return s->causal ? ln_max_i64(0, ln_min_i64(s->keys, s->keys - s->queries + t->token + row + 1)) : s->keys;
}

/* ---- products over a block of keys ---- */

static int64_t pages_in(const tile *t, int64_t block) {
    return ln_ceil_div(ln_min_i64(BLOCK, t->keys - block), LN_PAGE_TOKENS);
}

static const unsigned char *page_of(const tile *t, const ln_page_layout *layout, const unsigned char *pages,
                                    int64_t page) {
    return pages + (uint64_t)t->shared * ln_pack_bytes(layout, t->call->s.keys) + (uint64_t)page * layout->bytes;
}

/* to[row][i] = from[row] . key[block + i] */
static void multiply_keys(const tile *t, const float *from, int64_t block, float *to) {
    const call *c = t->call;
    for (int64_t i = 0; i < pages_in(t, block); i++) {
        const ln_attend_part part =
            ln_page_keys(&c->wide, page_of(t, &c->wide, c->wide_pages, block / LN_PAGE_TOKENS + i), 0);
        const ln_attend_operand keys = {&part, 1, c->s.key_size, LN_PAGE_TOKENS, false};
        c->kernels.attend.many(&keys, from, t->rows, to + i * LN_PAGE_TOKENS, false);
    }
}

/* to[row] += sum_i weights[row][i] x[block + i], x the values or, narrow, the keys. */
static void add_weighted(const tile *t, const float *weights, int64_t block, bool keys, float *to) {
    const call *c = t->call;
    const ln_page_layout *layout = keys ? &c->narrow : &c->wide;
    const unsigned char *pages = keys ? c->narrow_pages : c->wide_pages;
    const int64_t count = pages_in(t, block);
    for (int64_t panel = 0; panel * LN_PANEL < layout->value_size; panel++) {
        ln_attend_part parts[PAGES];
        for (int64_t i = 0; i < count; i++)
            parts[i] = ln_page_values(layout, page_of(t, layout, pages, block / LN_PAGE_TOKENS + i), panel, 0);
        const ln_attend_operand b = {parts, count, LN_PAGE_TOKENS,
                                     ln_min_i64(LN_PANEL, layout->value_size - panel * LN_PANEL), true};
        c->kernels.attend.many(&b, weights, t->rows, to + panel * LN_PANEL, true);
    }
}

/* scores = p of the block's keys; 0 for keys that a row does not see. */
static void weigh_block(const tile *t, int64_t block) {
    tile_scratch *x = t->x;
    multiply_keys(t, x->query, block, x->scores);
    for (int64_t r = 0; r < t->rows; r++) {
        float *p = x->scores + r * STRIDE;
        const int64_t n = ln_max_i64(0, ln_min_i64(BLOCK, seen(t, r) - block));
        if (n > 0) t->call->kernels.vector.exponential(p, p, x->lse[r], n);
        memset(p + n, 0, (size_t)(BLOCK - n) * sizeof *p);
    }
}

/* scores = p (key . direction - k' . direction); returns their sums in x->sum. */
static void weigh_differences(const tile *t, const float *direction, int64_t block) {
    tile_scratch *x = t->x;
    weigh_block(t, block);
    multiply_keys(t, direction, block, x->products);
    for (int64_t r = 0; r < t->rows; r++) {
        float *p = x->scores + r * STRIDE;
        const float *product = x->products + r * STRIDE;
        const int64_t n = ln_max_i64(0, ln_min_i64(BLOCK, seen(t, r) - block));
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            p[i] *= product[i] - x->shift[r];
            sum += (double)p[i];
        }
        x->sum[r] += sum;
    }
}

/* ---- the walks ---- */

static double dot(const float *a, const float *b, int64_t n) {
    double part[8] = {0};
    for (int64_t i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) part[j] += (double)a[i + j] * (double)b[i + j];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

static void clear_rows(const tile *t, float *rows) {
    for (int64_t r = 0; r < t->rows; r++) memset(rows + r * STRIDE, 0, SIZE_MOST * sizeof *rows);
}

static void walk_log_sum_exp(const tile *t) {
    tile_scratch *x = t->x;
    const ln_vector_kernels *vector = &t->call->kernels.vector;
    float most[ROWS];
    for (int64_t r = 0; r < t->rows; r++) {
        most[r] = -INFINITY;
        x->sum[r] = 0;
    }
    for (int64_t block = 0; block < t->keys; block += BLOCK) {
        multiply_keys(t, x->query, block, x->scores);
        for (int64_t r = 0; r < t->rows; r++) {
            const int64_t n = ln_min_i64(BLOCK, seen(t, r) - block);
            if (n <= 0) continue;
            float *scores = x->scores + r * STRIDE;
            const float larger = fmaxf(most[r], vector->maximum(scores, n));
            if (larger > most[r]) x->sum[r] *= exp((double)most[r] - (double)larger);
            most[r] = larger;
            x->sum[r] += (double)vector->exponential(scores, scores, larger, n);
        }
    }
    for (int64_t r = 0; r < t->rows; r++) x->lse[r] = (float)((double)most[r] + log(x->sum[r]));
}

/* Mean key and mean value; then mu is the first residual and the first direction. */
static void walk_means(const tile *t) {
    const call *c = t->call;
    tile_scratch *x = t->x;
    clear_rows(t, x->mean);
    clear_rows(t, x->output);
    clear_rows(t, x->solution);
    for (int64_t block = 0; block < t->keys; block += BLOCK) {
        weigh_block(t, block);
        add_weighted(t, x->scores, block, true, x->mean);
        add_weighted(t, x->scores, block, false, x->output);
    }
    for (int64_t r = 0; r < t->rows; r++) {
        float *residual = x->residual + r * STRIDE;
        ln_row_read(&c->query, t->token + r, t->head, residual);
        for (int64_t i = 0; i < c->s.key_size; i++) residual[i] = x->mean[r * STRIDE + i] - residual[i];
        memcpy(x->direction + r * STRIDE, residual, (size_t)c->s.key_size * sizeof *residual);
        x->square[r] = dot(residual, residual, c->s.key_size);
        x->target[r] = x->square[r] * (double)c->s.tolerance * (double)c->s.tolerance;
        x->ridge[r] = c->s.ridge_of_sums ? c->s.ridge * expf(-x->lse[r]) : c->s.ridge;
        x->open[r] = seen(t, r) > 0 && x->square[r] > 0;
    }
}

/* image = C direction */
static void walk_image(const tile *t) {
    const int64_t size = t->call->s.key_size;
    tile_scratch *x = t->x;
    clear_rows(t, x->image);
    for (int64_t r = 0; r < t->rows; r++) {
        x->shift[r] = (float)dot(x->mean + r * STRIDE, x->direction + r * STRIDE, size);
        x->sum[r] = 0;
    }
    for (int64_t block = 0; block < t->keys; block += BLOCK) {
        weigh_differences(t, x->direction, block);
        add_weighted(t, x->scores, block, true, x->image);
    }
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t i = r * STRIDE; i < r * STRIDE + size; i++)
            x->image[i] += x->ridge[r] * x->direction[i] - (float)x->sum[r] * x->mean[i];
}

/* One step of conjugate gradients in the open rows; the rows that are open still. */
static int64_t step_rows(const tile *t) {
    const int64_t size = t->call->s.key_size;
    tile_scratch *x = t->x;
    int64_t open = 0;
    for (int64_t r = 0; r < t->rows; r++) {
        float *direction = x->direction + r * STRIDE, *residual = x->residual + r * STRIDE;
        if (!x->open[r]) continue;
        const double curvature = dot(direction, x->image + r * STRIDE, size);
        const float along = (float)(x->square[r] / curvature);
        for (int64_t i = 0; i < size; i++) {
            x->solution[r * STRIDE + i] += along * direction[i];
            residual[i] -= along * x->image[r * STRIDE + i];
        }
        const double square = dot(residual, residual, size);
        const float keep = (float)(square / x->square[r]);
        x->square[r] = square;
        x->open[r] = square > x->target[r];
        for (int64_t i = 0; i < size; i++) direction[i] = x->open[r] ? residual[i] + keep * direction[i] : 0;
        open += x->open[r];
    }
    return open;
}

static void solve_rows(const tile *t, call *counts) {
    tile_scratch *x = t->x;
    int64_t open = 0, steps = 0, most = 0, rows = 0;
    for (int64_t r = 0; r < t->rows; r++) {
        open += x->open[r];
        rows += seen(t, r) > 0;
        if (!x->open[r]) memset(x->direction + r * STRIDE, 0, SIZE_MOST * sizeof *x->direction);
    }
    for (; open > 0 && most < t->call->s.iterations; most++) {
        steps += open;
        walk_image(t);
        open = step_rows(t);
    }
    atomic_fetch_add(&counts->rows, rows);
    atomic_fetch_add(&counts->iterations, steps);
    atomic_fetch_add(&counts->unconverged, open);
    for (int64_t old = atomic_load(&counts->most); old < most;)
        if (atomic_compare_exchange_weak(&counts->most, &old, most)) break;
}

static void walk_output(const tile *t) {
    const call *c = t->call;
    tile_scratch *x = t->x;
    clear_rows(t, x->correction);
    for (int64_t r = 0; r < t->rows; r++)
        x->shift[r] = (float)dot(x->mean + r * STRIDE, x->solution + r * STRIDE, c->s.key_size);
    for (int64_t block = 0; block < t->keys; block += BLOCK) {
        weigh_differences(t, x->solution, block);
        add_weighted(t, x->scores, block, false, x->correction);
    }
    for (int64_t r = 0; r < t->rows; r++) {
        float *to = ln_row_to(&c->output, t->token + r, t->head);
        for (int64_t i = 0; i < c->s.value_size; i++) to[i] = x->output[r * STRIDE + i] - x->correction[r * STRIDE + i];
    }
}

static void run_tile(void *argument, int64_t task, int worker) {
    call *c = argument;
    tile t = {.call = c, .x = c->scratch + worker, .head = task % c->s.heads};
    t.token = (c->tiles - 1 - task / c->s.heads) * ROWS; /* the last see the most keys: first */
    t.rows = ln_min_i64(ROWS, c->s.queries - t.token);
    t.shared = t.head / (c->s.heads / c->s.key_value_heads);
    t.keys = seen(&t, t.rows - 1);
    for (int64_t r = 0; r < t.rows; r++) {
        ln_row_read(&c->query, t.token + r, t.head, t.x->query + r * STRIDE);
        c->kernels.vector.scale(t.x->query + r * STRIDE, 1 / c->s.temperature, c->s.key_size);
    }
    walk_log_sum_exp(&t);
    walk_means(&t);
    solve_rows(&t, c);
    walk_output(&t);
}

/* ---- the call ---- */

linnet_local_linear_settings linnet_local_linear_settings_default(void) {
    return (linnet_local_linear_settings){.size = sizeof(linnet_local_linear_settings),
                                          .type = LINNET_F32,
                                          .causal = true,
                                          .ridge = 1,
                                          .tolerance = 1e-5f};
}

static linnet_local_linear_settings copy_of(const linnet_local_linear_settings *given) {
    linnet_local_linear_settings s = linnet_local_linear_settings_default();
    memcpy(&s, given, given->size < sizeof s ? given->size : sizeof s);
    return s;
}

/* The sentence of what is wrong, or NULL; fills in the defaults. */
static const char *complete(linnet_local_linear_settings *s) {
    if (!s->key_value_heads) s->key_value_heads = s->heads;
    if (!s->value_size) s->value_size = s->key_size;
    if (!s->keys) s->keys = s->queries;
    if (s->temperature == 0) s->temperature = sqrtf((float)s->key_size);
    if (s->iterations == 0) s->iterations = (int)s->key_size + 8;
    if (s->type != LINNET_F32 && s->type != LINNET_BF16) return "type must be LINNET_F32 or LINNET_BF16";
    if (s->heads < 1 || s->key_value_heads < 1 || s->heads % s->key_value_heads != 0 || s->heads > 65536)
        return "heads must be a multiple of key_value_heads, both from 1 to 65536";
    if (s->key_size < 8 || s->key_size > SIZE_MOST || s->key_size % 8 || s->value_size < 8 ||
        s->value_size > SIZE_MOST || s->value_size % 8)
        return "key_size and value_size must be multiples of 8 from 8 to 256";
    if (s->queries < 0 || s->keys < 0 || s->queries > INT32_MAX || s->keys > INT32_MAX)
        return "queries and keys must be from 0 to 2^31 - 1";
    if (!(s->temperature > 0) || !(s->ridge > 0) || !(s->tolerance >= 0) || s->iterations < 1)
        return "temperature and ridge must be above 0, tolerance at least 0, iterations at least 1";
    return NULL;
}

/* Shapes, layouts and places in the workspace; the bytes of it, 0 on overflow. */
static uint64_t lay_out(call *c, int threads, unsigned char *workspace) {
    const linnet_local_linear_settings *s = &c->s;
    const uint64_t heads = (uint64_t)s->key_value_heads;
    if (!ln_page_layout_of(LINNET_F32, LINNET_F32, s->key_size, s->value_size, &c->wide) ||
        !ln_page_layout_of(LINNET_F32, LINNET_F32, NARROW, s->key_size, &c->narrow))
        return 0;
    ln_carver carver = {.base = workspace};
    c->tiles = ln_ceil_div(s->queries, ROWS);
    c->wide_pages = ln_carve(&carver, heads, ln_pack_bytes(&c->wide, s->keys));
    c->narrow_pages = ln_carve(&carver, heads, ln_pack_bytes(&c->narrow, s->keys));
    c->scratch = ln_carve(&carver, (uint64_t)threads, ln_round_up(sizeof(tile_scratch), 64));
    return carver.overflow ? 0 : carver.used;
}

uint64_t linnet_local_linear_workspace(const linnet_context *context, const linnet_local_linear_settings *settings) {
    call c = {.s = copy_of(settings)};
    if (complete(&c.s)) return 0;
    return lay_out(&c, ln_team_size(context->team), NULL);
}

linnet_status linnet_local_linear_forward(linnet_context *context, const linnet_local_linear_settings *settings,
                                          const linnet_local_linear_tensors *tensors, void *workspace,
                                          linnet_local_linear_report *report) {
    call c = {.s = copy_of(settings)};
    const char *wrong = complete(&c.s);
    if (wrong) return ln_fail(context, LINNET_ERROR_ARGUMENT, "local linear attention: %s", wrong);
    const linnet_local_linear_settings *s = &c.s;
    if (s->queries > 0 && (!tensors->query.data || !tensors->output.data || (s->keys > 0 && !tensors->key.data) ||
                           (s->keys > 0 && !tensors->value.data)))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "local linear attention: query, key, value and output must be given");
    lay_out(&c, ln_team_size(context->team), workspace);
    ln_kernels_choose(context->cpu, &c.kernels);
    c.query = ln_rows_of(&tensors->query, s->type, s->heads, s->key_size);
    c.output = ln_rows_of(&tensors->output, LINNET_F32, s->heads, s->value_size);
    ln_packing pack = {.layout = c.wide,
                       .key = ln_rows_of(&tensors->key, s->type, s->key_value_heads, s->key_size),
                       .value = ln_rows_of(&tensors->value, s->type, s->key_value_heads, s->value_size),
                       .heads = s->key_value_heads,
                       .tokens = s->keys,
                       .pages = c.wide_pages,
                       .head_stride = ln_pack_bytes(&c.wide, s->keys)};
    ln_pack_pages(context->team, &pack);
    pack.layout = c.narrow;
    pack.value = pack.key;
    pack.pages = c.narrow_pages;
    pack.head_stride = ln_pack_bytes(&c.narrow, s->keys);
    ln_pack_pages(context->team, &pack);
    ln_parallel(context->team, c.tiles * s->heads, run_tile, &c);
    if (report)
        *report = (linnet_local_linear_report){.size = sizeof *report,
                                               .rows = c.rows,
                                               .iterations = c.iterations,
                                               .most = c.most,
                                               .unconverged = c.unconverged};
    return LINNET_OK;
}
