/* Owns: LagKV: a token is judged by the partition of 128 positions that follows its own.
 *
 * With the minimum and maximum of each channel over the next partition, x' = (x - min) / (max - min); the token's
 * spread is the standard deviation of x' over the channels; softmax over the partition; the same of the values; mean of
 * both. The score is the rank of that within the partition, (rank + 1) / tokens: each partition keeps the same share.
 * Partitions begin at the policy's sinks. A token's score is final once the partition after its own is there; until
 * then it scores 2. Kept: 4 bytes a token, 0: not judged. State: 8 bytes. Workspace: 8 bytes a token of the lane. */
#include <math.h>
#include <string.h>

#include "kernel/page.h"
#include "memory/score_inside.h"

enum { LAG = 128 };
static const float NOT_JUDGED = 2;

typedef struct state {
    int64_t judged; /* partitions that were */
} state;

typedef struct parts {
    int32_t *order, *other;    /* [32 pages] */
    float *row, *least, *most; /* [size] */
    double *spread, *sum;      /* [LAG] */
} parts;

static parts carve(ln_carver *carver, const ln_scene *s) {
    const uint64_t slots = (uint64_t)ln_scene_slots(s), size = (uint64_t)ln_max_i64(s->key_size, s->value_size);
    parts p;
    p.order = ln_carve(carver, slots, sizeof *p.order);
    p.other = ln_carve(carver, slots, sizeof *p.other);
    p.row = ln_carve(carver, size, sizeof *p.row);
    p.least = ln_carve(carver, size, sizeof *p.least);
    p.most = ln_carve(carver, size, sizeof *p.most);
    p.spread = ln_carve(carver, LAG, sizeof *p.spread);
    p.sum = ln_carve(carver, LAG, sizeof *p.sum);
    return p;
}

static uint64_t workspace_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy;
    ln_carver carver = {0};
    carve(&carver, shape);
    return carver.overflow ? UINT64_MAX : carver.used;
}
static uint64_t state_bytes(const ln_policy *policy, const ln_scene *shape) {
    (void)policy, (void)shape;
    return sizeof(state);
}

/* Tokens as rows: keys, with zeros for columns that their page leaves out, or values. */
typedef struct reader {
    const ln_scene *scene;
    const parts *p;
    bool values;
    int64_t size;
} reader;

static const float *row_of(const reader *r, int64_t index) {
    const ln_scene *s = r->scene;
    const int64_t page = index / LN_PAGE_TOKENS;
    const ln_page_layout *layout = ln_page_layout_at(s->view, page);
    const unsigned char *bytes = ln_page_of(s->view, s->view_head, page);
    if (!r->values) memset(r->p->row, 0, (size_t)r->size * sizeof *r->p->row);
    ln_page_decode_token(layout, bytes, index % LN_PAGE_TOKENS, r->values ? NULL : r->p->row,
                         r->values ? r->p->row : NULL);
    return r->p->row;
}

static void find_range(const reader *r, const int32_t *tokens, int64_t n) {
    const parts *p = r->p;
    for (int64_t t = 0; t < n; t++) {
        const float *x = row_of(r, tokens[t]);
        for (int64_t i = 0; i < r->size; i++) {
            p->least[i] = t == 0 || x[i] < p->least[i] ? x[i] : p->least[i];
            p->most[i] = t == 0 || x[i] > p->most[i] ? x[i] : p->most[i];
        }
    }
}

/* Standard deviation over the channels, with n - 1; those that do not vary in the reference are left out. */
static double spread_of(const reader *r, const float *x) {
    double sum = 0, squares = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < r->size; i++) {
        const double range = (double)r->p->most[i] - (double)r->p->least[i];
        if (!(range > 0)) continue;
        const double y = ((double)x[i] - (double)r->p->least[i]) / range;
        sum += y;
        squares += y * y;
        n++;
    }
    const double variance = n > 1 ? (squares - sum * sum / (double)n) / (double)(n - 1) : 0;
    return variance > 0 && variance < INFINITY ? sqrt(variance) : 0;
}

/* p->sum += softmax of the spreads of the partition. */
static void add_spreads(const reader *r, const int32_t *tokens, int64_t n, const int32_t *reference,
                        int64_t references) {
    const parts *p = r->p;
    find_range(r, reference, references);
    double most = 0, total = 0;
    for (int64_t t = 0; t < n; t++) {
        p->spread[t] = spread_of(r, row_of(r, tokens[t]));
        most = fmax(most, p->spread[t]);
    }
    for (int64_t t = 0; t < n; t++) total += p->spread[t] = exp(p->spread[t] - most);
    for (int64_t t = 0; t < n; t++) p->sum[t] += p->spread[t] / total;
}

/* Of n ordered tokens, those from position `from` on: the first's number. */
static int64_t find_position(const ln_scene *s, const int32_t *order, int64_t n, int64_t from) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (s->positions[order[middle]] < from)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void judge(ln_scene *s, const parts *p, int64_t n, int64_t first) {
    const int64_t begin = find_position(s, p->order, n, first), end = find_position(s, p->order, n, first + LAG),
                  next = find_position(s, p->order, n, first + 2 * LAG), tokens = ln_min_i64(LAG, end - begin);
    if (tokens == 0) return;
    memset(p->sum, 0, LAG * sizeof *p->sum);
    for (int values = 0; values < 2 && next > end; values++) {
        const reader r = {s, p, values, values ? s->value_size : s->key_size};
        add_spreads(&r, p->order + begin, tokens, p->order + end, next - end);
    }
    for (int64_t t = 0; t < tokens; t++) {
        int64_t rank = 0;
        for (int64_t u = 0; u < tokens; u++) rank += p->sum[u] < p->sum[t] || (p->sum[u] == p->sum[t] && u < t);
        s->kept[p->order[begin + t]] = (float)(rank + 1) / (float)tokens;
    }
}

/* Nothing is lost by judging later: what was not judged is not given up first. */
static void score(ln_scene *s, float *to) {
    if (!to) return;
    ln_carver carver = {.base = s->workspace};
    const parts p = carve(&carver, s);
    state *done = s->state;
    const int64_t sinks = s->policy->sinks;
    done->judged = ln_min_i64(ln_max_i64(0, done->judged), s->position / LAG); /* it may come from a file */
    if (sinks + (done->judged + 2) * LAG <= s->position) {
        const int64_t n = ln_scene_order(s, p.order, p.other);
        for (; sinks + (done->judged + 2) * LAG <= s->position; done->judged++)
            judge(s, &p, n, sinks + done->judged * LAG);
    }
    LN_SCENE_TOKENS(s, i) to[i] = s->kept[i] > 0 ? s->kept[i] : NOT_JUDGED;
}

const ln_scorer ln_scorer_lagkv = {.name = "lagkv",
                                   .source = "LagKV",
                                   .rule = "keys and values that spread in the range of those that follow",
                                   .defaults = "sinks=4,recent=128",
                                   .keeps = 1,
                                   .state = state_bytes,
                                   .workspace = workspace_bytes,
                                   .reads = LN_READS_KEYS | LN_READS_VALUES,
                                   .score = score};
