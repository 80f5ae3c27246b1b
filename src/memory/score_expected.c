/* Owns: Expected Attention: what the next queries will give, if they are normal like those so far.
 *
 * Before rotation, queries of head h have mean m_h and covariance C (meaned over the group's heads, each about its own
 * mean: one matrix a lane). The next `future` positions rotate them by the mean rotation R, which turns pair i by the
 * angle in the middle and shortens it by sin(n f_i / 2) / (n sin(f_i / 2)). With q normal, the mean of exp(scale q . k)
 * is
 *
 *     exp(scale (R m_h) . k + scale^2 / 2 k' (R C R') k),
 *
 * a softmax of that over the keys behind the sinks, meaned over heads, plus epsilon, times |v| is the score; sinks get
 * the highest. Queries come rotated and are turned back by their own position; those of the sinks are left out.
 * Kept: |v|, 4 bytes a token. State: 8 + 4 (group + size) size bytes. Workspace: 52 KB, 2 KB and 4 size bytes a value
 * of a key, and 4 group a token. Time: size^2 a key and a query, whatever the length of the text. */
#include <math.h>
#include <string.h>

#include "memory/score_inside.h"

enum { BATCH = 64, ROWS = 48, FUTURE = 512 };

typedef struct parts {
    /* the state */
    double *count;     /* tokens that were observed */
    float *mean;       /* [group][size] */
    float *covariance; /* [size][size] */
    /* the workspace */
    float *cosine, *sine; /* [BATCH][size / 2] */
    float *queries;       /* [BATCH][size], then about their mean */
    float *turned;        /* [size][BATCH] */
    float *offset;        /* [size] */
    float *a;             /* [panels][size + group][LN_ATTEND_STRIDE]: R C R' scale^2 / 2, R m scale */
    float *matrix;        /* [size][size] */
    float *product;       /* [ROWS][LN_ATTEND_STRIDE] */
    float *keys;          /* a page [size][32] */
    float *logits;        /* [group][32 pages] */
    float *rows;
} parts;

static parts carve(ln_carver *carver, const ln_scene *s) {
    const uint64_t size = (uint64_t)s->key_size, group = (uint64_t)s->group, slots = (uint64_t)ln_scene_slots(s);
    const uint64_t panels = (uint64_t)ln_ceil_div(s->key_size, LN_ATTEND_DEPTH), cell = sizeof(float);
    parts p = {.cosine = ln_carve(carver, BATCH * size / 2, cell)};
    p.sine = ln_carve(carver, BATCH * size / 2, cell);
    p.queries = ln_carve(carver, BATCH * size, cell);
    p.turned = ln_carve(carver, BATCH * size, cell);
    p.offset = ln_carve(carver, size, cell);
    p.a = ln_carve(carver, panels * (size + group), LN_ATTEND_STRIDE * cell);
    p.matrix = ln_carve(carver, size * size, cell);
    p.product = ln_carve(carver, ROWS, LN_ATTEND_STRIDE * cell);
    p.keys = ln_carve(carver, size, LN_PAGE_TOKENS * cell);
    p.logits = ln_carve(carver, group * slots, cell);
    p.rows = ln_carve(carver, 1, ln_scene_page_bytes(s));
    p.count = s->state;
    if (p.count) {
        p.mean = (float *)(void *)(p.count + 1);
        p.covariance = p.mean + group * size;
    }
    return p;
}

static uint64_t workspace_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    ln_carver carver = {0};
    carve(&carver, &(ln_scene){.pages = shape->pages,
                               .group = shape->group,
                               .key_size = shape->key_size,
                               .value_size = shape->value_size});
    return carver.overflow ? UINT64_MAX : carver.used;
}
static uint64_t state_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    return sizeof(double) + (uint64_t)((shape->group + shape->key_size) * shape->key_size) * sizeof(float);
}
static int64_t observe_all(const ln_policy *policy, int64_t piece) {
    (void)policy;
    return piece;
}

/* ---- statistics of queries ---- */

static void find_angles(const ln_scene *s, const parts *p, int64_t first, int64_t tokens) {
    const ln_scene_rotation *rotation = s->rotation;
    const int64_t pairs = rotation ? rotation->size / 2 : 0;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < pairs; i++) {
            const double angle = (double)(first + t) * rotation->inverse[i];
            p->cosine[t * pairs + i] = (float)(cos(angle) / rotation->magnitude);
            p->sine[t * pairs + i] = (float)(-sin(angle) / rotation->magnitude);
        }
    }
}

/* Queries `token` .. of a head, before rotation, to p->queries about their mean, which goes to p->offset. Returns how
 * many there are: those that are finite. */
static int64_t load_queries(const ln_scene *s, const parts *p, int64_t token, int64_t tokens, int64_t head) {
    const int64_t size = s->key_size, pairs = s->rotation ? s->rotation->size / 2 : 0;
    int64_t n = 0;
    for (int64_t t = 0; t < tokens; t++) {
        float *to = p->queries + n * size;
        memcpy(to, s->query + (token + t) * s->query_stride + head * s->query_head_stride, (size_t)size * sizeof *to);
        if (!s->kernels->attend.finite(to, size)) continue;
        if (pairs)
            s->kernels->vector.rotate(to, p->cosine + t * pairs, p->sine + t * pairs, 2 * pairs, s->rotation->half);
        n++;
    }
    memset(p->offset, 0, (size_t)size * sizeof *p->offset);
    for (int64_t t = 0; t < n; t++) s->kernels->vector.add(p->offset, p->queries + t * size, size);
    for (int64_t i = 0; i < size; i++) p->offset[i] = n ? p->offset[i] / (float)n : 0;
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < size; i++) p->queries[t * size + i] -= p->offset[i];
    return n;
}

/* covariance += factor * (sum of q q' over the batch + offsets offset offset') */
static void add_batch(const ln_scene *s, const parts *p, int64_t n, double offsets, double factor) {
    const int64_t size = s->key_size;
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < size; i++) p->turned[i * BATCH + t] = p->queries[t * size + i];
    for (int64_t i = 0; i < size; i++) {
        float *row = p->covariance + i * size;
        s->kernels->vector.add_products(row, (float)factor, p->turned + i * BATCH, n, p->queries, size, size);
        s->kernels->vector.add_products(row, (float)(factor * offsets), p->offset + i, 1, p->offset, size, size);
    }
}

static void observe_batch(const ln_scene *s, const parts *p, int64_t token, int64_t tokens) {
    const int64_t size = s->key_size;
    const double before = *p->count, after = before + (double)tokens;
    find_angles(s, p, s->position - s->observed + token, tokens);
    s->kernels->vector.scale(p->covariance, (float)(before / after), size * size);
    for (int64_t h = 0; h < s->group; h++) {
        float *mean = p->mean + h * size;
        const int64_t n = load_queries(s, p, token, tokens, h);
        if (n == 0) continue;
        const double sum = before + (double)n;
        for (int64_t i = 0; i < size; i++) {
            p->offset[i] -= mean[i];
            mean[i] += (float)((double)n / sum) * p->offset[i];
        }
        add_batch(s, p, n, before * (double)n / sum, 1 / (after * (double)s->group));
    }
    *p->count = after;
}

static void observe(const ln_scene *s, const parts *p) {
    int64_t t = ln_max_i64(0, s->policy->sinks - (s->position - s->observed));
    for (; t < s->observed; t += BATCH) observe_batch(s, p, t, ln_min_i64(BATCH, s->observed - t));
}

/* ---- the next queries ---- */

/* The mean rotation of the next `future` positions: cosine and sine of each pair. */
static void mean_rotation(const ln_scene *s, int64_t future, float *cosine, float *sine) {
    const ln_scene_rotation *rotation = s->rotation;
    for (int64_t i = 0; i < rotation->size / 2; i++) {
        const double f = rotation->inverse[i], n = (double)future, half = sin(f / 2);
        const double shorter = fabs(half) > 1e-9 ? sin(n * f / 2) / (n * half) : 1;
        const double angle = ((double)s->position + (n - 1) / 2) * f;
        cosine[i] = (float)(rotation->magnitude * shorter * cos(angle));
        sine[i] = (float)(rotation->magnitude * shorter * sin(angle));
    }
}

static void rotate_mean(const ln_scene *s, const parts *p, float *x) {
    if (s->rotation) s->kernels->vector.rotate(x, p->cosine, p->sine, s->rotation->size, s->rotation->half);
}

/* R C R': rows are rotated, then columns. */
static void rotate_covariance(const ln_scene *s, const parts *p) {
    const int64_t size = s->key_size;
    memcpy(p->matrix, p->covariance, (size_t)(size * size) * sizeof *p->matrix);
    for (int turn = 0; s->rotation && turn < 2; turn++) {
        for (int64_t i = 0; i < size; i++) rotate_mean(s, p, p->matrix + i * size);
        for (int64_t i = 0; i < size; i++) {
            for (int64_t j = 0; j < i; j++) {
                const float swap = p->matrix[i * size + j];
                p->matrix[i * size + j] = p->matrix[j * size + i];
                p->matrix[j * size + i] = swap;
            }
        }
    }
}

static void put_row(const ln_scene *s, const parts *p, int64_t row, const float *x, float factor) {
    const int64_t size = s->key_size, rows = size + s->group;
    for (int64_t i = 0; i < size; i++)
        p->a[(i / LN_ATTEND_DEPTH * rows + row) * LN_ATTEND_STRIDE + i % LN_ATTEND_DEPTH] = factor * x[i];
}

static void prepare(const ln_scene *s, const parts *p) {
    const int64_t size = s->key_size;
    const int64_t future = (int64_t)ln_policy_parameter_of(s->policy, "future", FUTURE);
    if (s->rotation) mean_rotation(s, ln_max_i64(1, future), p->cosine, p->sine);
    rotate_covariance(s, p);
    for (int64_t i = 0; i < size; i++) put_row(s, p, i, p->matrix + i * size, s->scale * s->scale / 2);
    for (int64_t h = 0; h < s->group; h++) {
        memcpy(p->offset, p->mean + h * size, (size_t)size * sizeof *p->offset);
        rotate_mean(s, p, p->offset);
        put_row(s, p, size + h, p->offset, s->scale);
    }
}

/* ---- logits, scores ---- */

/* product = rows row .. row + rows - 1 of a times the page's keys. */
static void multiply(const ln_scene *s, const parts *p, int64_t row, int64_t rows, int64_t key_size) {
    for (int64_t column = 0; column < key_size; column += LN_ATTEND_DEPTH) {
        const ln_attend_part part = {.codes = (const unsigned char *)(p->keys + column * LN_PAGE_TOKENS)};
        const ln_attend_operand keys = {&part, 1, ln_min_i64(LN_ATTEND_DEPTH, key_size - column), LN_PAGE_TOKENS,
                                        false};
        const float *a = p->a + (column / LN_ATTEND_DEPTH * (s->key_size + s->group) + row) * LN_ATTEND_STRIDE;
        s->kernels->attend.many(&keys, a, rows, p->product, column > 0);
    }
}

static void page_logits(const ln_scene *s, const parts *p, int64_t page) {
    const ln_page_layout *layout = ln_page_layout_at(s->view, page);
    const int64_t slots = ln_scene_slots(s), key_size = layout->key_size, all = s->key_size + s->group;
    float half[LN_PAGE_TOKENS] = {0}; /* scale^2 / 2 k' C k */
    ln_page_decode_keys(&s->kernels->attend, layout, ln_page_of(s->view, s->view_head, page), p->keys);
    for (int64_t row = 0; row < all; row += ROWS) {
        const int64_t rows = ln_min_i64(ROWS, all - row);
        multiply(s, p, row, rows, key_size);
        for (int64_t r = row; r < row + rows; r++) {
            const float *x = p->product + (r - row) * LN_ATTEND_STRIDE;
            if (r < key_size)
                for (int64_t t = 0; t < LN_PAGE_TOKENS; t++) half[t] += p->keys[r * LN_PAGE_TOKENS + t] * x[t];
            if (r >= s->key_size) memcpy(p->logits + (r - s->key_size) * slots + page * LN_PAGE_TOKENS, x, sizeof half);
        }
    }
    for (int64_t h = 0; h < s->group; h++) {
        float *x = p->logits + h * slots + page * LN_PAGE_TOKENS;
        for (int64_t t = 0; t < LN_PAGE_TOKENS; t++) {
            const int64_t index = page * LN_PAGE_TOKENS + t;
            const float logit = x[t] + half[t] + (s->key_bias ? s->key_bias[index] : 0);
            const bool counts = t < ln_scene_count(s, page) && s->positions[index] >= s->policy->sinks;
            x[t] = counts && logit > -INFINITY ? fminf(logit, 1e30f) : -INFINITY;
        }
    }
}

static void score(ln_scene *s, float *to) {
    ln_carver carver = {.base = s->workspace};
    const parts p = carve(&carver, s);
    const int64_t slots = ln_scene_slots(s);
    const float epsilon = (float)ln_policy_parameter_of(s->policy, "epsilon", 0.01);
    observe(s, &p);
    if (!to) return;
    prepare(s, &p);
    for (int64_t page = 0; page < s->pages; page++) page_logits(s, &p, page);
    ln_scene_value_norms(s, 2, p.rows, s->kept, 1);
    memset(to, 0, (size_t)slots * sizeof *to);
    for (int64_t h = 0; h < s->group; h++) {
        float *x = p.logits + h * slots;
        const float most = s->kernels->vector.maximum(x, slots);
        if (!(most > -INFINITY)) continue;
        const float factor = 1 / (s->kernels->vector.exponential(x, x, most, slots) * (float)s->group);
        for (int64_t i = 0; i < slots; i++) to[i] += factor * x[i];
    }
    float highest = 0;
    LN_SCENE_TOKENS(s, i) {
        to[i] = (to[i] + epsilon) * s->kept[i];
        highest = fmaxf(highest, to[i]);
    }
    LN_SCENE_TOKENS(s, i) if (s->positions[i] < s->policy->sinks) to[i] = highest;
}

const ln_scorer ln_scorer_expected = {.name = "expected",
                                      .source = "Expected Attention",
                                      .rule =
                                          "attention to expect of the next 512 queries, times the length of the value",
                                      .defaults = "sinks=4",
                                      .keeps = 1,
                                      .state = state_bytes,
                                      .workspace = workspace_bytes,
                                      .turns = true,
                                      .observes = observe_all,
                                      .reads = LN_READS_EACH,
                                      .score = score};
