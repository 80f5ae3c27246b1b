/* Attention in float64, straight from the formulas of linnet/attention.h (O(n^2), nothing of the engine), for tests: a
 * scene holds settings with all that they point to, tensors as a caller has them, and the answer.
 *
 * Include after cmocka.h. What lies between the rows of strided inputs is NaN, between those of outputs a mark: reading
 * or writing it shows.
 *
 * Tolerance. With u = 2^-24, score j of a row is off by at most about
 *     e_j = 6 u (scale sum |query key| + sum |bias terms| + |score| + cap),
 * products and terms being rounded one after the other. A weight is off by e_j and the exponential's 2e-7, the sum of
 * a row's weights by sqrt(n) u (n roundings of either sign), output and sum are divided, so that
 *     |output - exact| <= (2 max e_j + u (8 + sqrt n)) sum weight |value|,    |lse - exact| <= half of it + u |lse|,
 * weights below 2^-126 left aside, which float32 may lose. */
#ifndef ATTENTION_ORACLE_H
#define ATTENTION_ORACLE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "linnet/attention.h"

enum { SCENE_SEQUENCES = 5, SCENE_DOCUMENTS = 6, SCENE_BLOCKS = 64 };

static const float SCENE_MARK = 12345;

/* How a tensor lies: packed with strides 0, rows and tokens padded, or one head after the other. */
typedef enum scene_layout { PACKED, PADDED, HEAD_MAJOR, LAYOUTS } scene_layout;

typedef struct scene {
    linnet_attention_settings set;
    linnet_attention_tensors tensors;
    scene_layout layout[4]; /* of query, key, value, output */
    int64_t query_offsets[SCENE_SEQUENCES + 1], key_offsets[SCENE_SEQUENCES + 1];
    int64_t document_offsets[SCENE_DOCUMENTS + 1], bias_offsets[SCENE_SEQUENCES];
    int64_t queries, keys; /* of all sequences */
    int64_t output_floats; /* allocated, with gaps */
    float spread;          /* factor of queries; 0: 1 */
    double coarse; /* not 0: queries and weights may be integers, off by this part of the largest query of a row,
                      or of the largest weight of 32 keys */
    void *blocks[SCENE_BLOCKS];
    int held;
    /* The answer: [query, head, value_size], packed; size: sum of weight |value|. */
    double *want, *size;
    double *lse, *allowed; /* [query, head]; allowed: error of the output in units of size */
    double pairs;          /* of query head and key that are seen */
} scene;

static inline void *scene_take(scene *s, int64_t count, size_t size) {
    assert_true(s->held < SCENE_BLOCKS);
    void *block = malloc((size_t)(count + 1) * size);
    assert_non_null(block);
    return s->blocks[s->held++] = block;
}
static inline void scene_close(scene *s) {
    for (int i = 0; i < s->held; i++) free(s->blocks[i]);
}

/* ---- elements ---- */

static inline uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline float float_of_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int64_t element_at(const linnet_tensor *t, int64_t heads, int64_t size, int64_t token, int64_t head) {
    if (t->token_stride == 0 && t->head_stride == 0) return (token * heads + head) * size;
    return token * t->token_stride + head * t->head_stride;
}
static inline double element(const linnet_tensor *t, linnet_type type, int64_t at) {
    return type == LINNET_BF16 ? (double)float_of_bf16(((const uint16_t *)t->data)[at])
                               : (double)((const float *)t->data)[at];
}
static inline void set_element(const linnet_tensor *t, linnet_type type, int64_t at, float x) {
    if (type == LINNET_BF16)
        ((uint16_t *)t->data)[at] = bf16_of(x);
    else
        ((float *)t->data)[at] = x;
}

/* ---- building ---- */

static inline float *random_floats(scene *s, ln_random *random, int64_t count, float spread) {
    float *x = scene_take(s, count, sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = spread * (float)ln_random_normal(random);
    return x;
}

/* Gaps are `gap`; rows are random, or left as gaps where spread is 0. */
static inline linnet_tensor make_tensor(scene *s, ln_random *random, scene_layout layout, linnet_type type,
                                        int64_t tokens, int64_t heads, int64_t size, float spread, float gap,
                                        int64_t *elements) {
    const int64_t padded = size + 3;
    linnet_tensor t = {0};
    *elements = tokens * heads * size;
    if (layout == PADDED) {
        t = (linnet_tensor){.token_stride = heads * padded + 5, .head_stride = padded};
        *elements = tokens * t.token_stride;
    } else if (layout == HEAD_MAJOR) {
        t = (linnet_tensor){.token_stride = padded, .head_stride = tokens * padded + 7};
        *elements = heads * t.head_stride;
    }
    t.data = scene_take(s, *elements, type == LINNET_BF16 ? 2 : 4);
    for (int64_t i = 0; i < *elements; i++) set_element(&t, type, i, gap);
    for (int64_t token = 0; token < tokens && spread != 0; token++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t i = 0; i < size; i++)
                set_element(&t, type, element_at(&t, heads, size, token, head) + i,
                            spread * (float)ln_random_normal(random));
    return t;
}

static inline int64_t scene_key_heads(const scene *s) {
    return s->set.key_value_heads ? s->set.key_value_heads : s->set.heads;
}
static inline int64_t scene_value_size(const scene *s) {
    return s->set.value_size ? s->set.value_size : s->set.key_size;
}
static inline int64_t queries_of(const scene *s, int64_t i) {
    return s->query_offsets[i + 1] - s->query_offsets[i];
}
static inline int64_t keys_of(const scene *s, int64_t i) {
    return s->key_offsets[i + 1] - s->key_offsets[i];
}

/* All tensors that the settings ask for. set.heads, sizes and both offsets are there. set.alibi, where it is wanted,
 * may point to anything: it is replaced. */
static inline void scene_fill(scene *s, ln_random *random) {
    linnet_attention_settings *set = &s->set;
    const int64_t sequences = set->sequences ? set->sequences : 1, heads = set->heads, shared = scene_key_heads(s);
    s->queries = s->query_offsets[sequences];
    s->keys = s->key_offsets[sequences];
    set->query_offsets = s->query_offsets;
    set->key_offsets = s->key_offsets;
    int64_t elements;
    linnet_attention_tensors *t = &s->tensors;
    *t = (linnet_attention_tensors){.size = sizeof *t};
    const float spread = s->spread != 0 ? s->spread : 1;
    t->query =
        make_tensor(s, random, s->layout[0], set->type, s->queries, heads, set->key_size, spread, NAN, &elements);
    t->key = make_tensor(s, random, s->layout[1], set->type, s->keys, shared, set->key_size, 1, NAN, &elements);
    t->value = make_tensor(s, random, s->layout[2], set->type, s->keys, shared, scene_value_size(s), 1, NAN, &elements);
    t->output = make_tensor(s, random, s->layout[3], LINNET_F32, s->queries, heads, scene_value_size(s), 0, SCENE_MARK,
                            &s->output_floats);
    t->log_sum_exp = scene_take(s, s->queries * heads, sizeof(float));
    if (set->sinks) t->sinks = random_floats(s, random, heads, 1);
    if (set->alibi) set->alibi = random_floats(s, random, heads, 0.1f);
    if (set->rank) {
        const float factor = powf((float)set->rank, -0.25f);
        t->query_factors = random_floats(s, random, s->queries * heads * set->rank, factor);
        t->key_factors = random_floats(s, random, s->keys * shared * set->rank, factor);
    }
    if (set->relative) t->relative = random_floats(s, random, heads * (2 * set->relative - 1), 1);
    if (!set->bias) return;
    int64_t rows = 0, longest = 0;
    for (int64_t i = 0; i < sequences; i++) {
        s->bias_offsets[i] = rows; /* in rows first */
        rows += queries_of(s, i);
        if (keys_of(s, i) > longest) longest = keys_of(s, i);
    }
    t->bias_row_stride = longest + 3;
    const bool each = ln_random_below(random, 2);
    t->bias_head_stride = each ? rows * t->bias_row_stride + 1 : 0;
    for (int64_t i = 0; i < sequences; i++) s->bias_offsets[i] *= t->bias_row_stride;
    t->bias_offsets = sequences > 1 ? s->bias_offsets : NULL;
    t->bias = random_floats(s, random, (each ? heads : 1) * (rows * t->bias_row_stride + 1), 1);
}

/* ---- the formulas ---- */

static inline bool in_neighbourhood(const linnet_neighbourhood *n, int64_t query, int64_t key) {
    for (int axis = n->axes - 1; axis >= 0; axis--) {
        const int64_t extent = n->extent[axis], d = n->dilation[axis] ? n->dilation[axis] : 1;
        const int64_t q = query % extent, k = key % extent;
        if (q % d != k % d) return false;
        int64_t points = 0; /* of this residue */
        for (int64_t x = q % d; x < extent; x += d) points++;
        const int64_t i = q / d, j = k / d, window = n->window[axis];
        if (n->causal[axis]) {
            if (j > i || j <= i - window) return false;
        } else {
            int64_t start = i - window / 2;
            if (start > points - window) start = points - window;
            if (start < 0) start = 0;
            if (j < start || j >= start + window) return false;
        }
        query /= extent;
        key /= extent;
    }
    return true;
}

/* Of a key counted over the batch; -1: none. */
static inline int64_t document_of(const linnet_attention_settings *set, int64_t key) {
    for (int64_t d = 0; d < set->documents; d++)
        if (key >= set->document_offsets[d] && key < set->document_offsets[d + 1]) return d;
    return -1;
}

static inline bool in_list(const scene *s, int64_t head, int64_t query, int64_t key) {
    const linnet_block_mask *b = &s->set.blocks;
    const int64_t tiles = (s->queries + b->query_tile - 1) / b->query_tile;
    const int64_t list = (b->per_head ? head * tiles : 0) + query / b->query_tile;
    for (int64_t i = b->offsets[list]; i < b->offsets[list + 1]; i++)
        if (b->tiles[i] == key / b->key_tile) return true;
    return false;
}

/* Query and key counted in their sequence. */
static inline bool scene_sees(const scene *s, int64_t sequence, int64_t head, int64_t query, int64_t key) {
    const linnet_attention_settings *set = &s->set;
    const int64_t position = query + keys_of(s, sequence) - queries_of(s, sequence);
    if (key >= set->prefix) {
        if (set->causal && key > position) return false;
        if (set->window && position - key >= set->window) return false;
        if (set->window && !set->causal && key - position >= set->window) return false;
    }
    if (set->documents) {
        const int64_t begin = s->key_offsets[sequence];
        const int64_t own = position < 0 ? -1 : document_of(set, begin + position);
        if (own < 0 || own != document_of(set, begin + key)) return false;
    }
    if (set->blocks.query_tile && !in_list(s, head, query, key)) return false;
    return !set->neighbourhood.axes || in_neighbourhood(&set->neighbourhood, query, key);
}

/* *sizes: the sum of the terms' magnitudes. */
static inline double scene_bias(const scene *s, int64_t sequence, int64_t head, int64_t query, int64_t key,
                                double *sizes) {
    const linnet_attention_settings *set = &s->set;
    const linnet_attention_tensors *t = &s->tensors;
    const int64_t position = query + keys_of(s, sequence) - queries_of(s, sequence), rank = set->rank;
    const int64_t shared = scene_key_heads(s), key_head = head / (set->heads / shared);
    double sum = 0, size = 0;
    if (set->alibi) sum -= (double)set->alibi[head] * fabs((double)(position - key));
    size += fabs(sum);
    const float *f = rank ? t->query_factors + ((s->query_offsets[sequence] + query) * set->heads + head) * rank : NULL;
    const float *g = rank ? t->key_factors + ((s->key_offsets[sequence] + key) * shared + key_head) * rank : NULL;
    for (int64_t r = 0; r < rank; r++) {
        sum += (double)f[r] * (double)g[r];
        size += fabs((double)f[r] * (double)g[r]);
    }
    if (set->bias) {
        const double x = (double)t->bias[(t->bias_offsets ? t->bias_offsets[sequence] : 0) +
                                         head * t->bias_head_stride + query * t->bias_row_stride + key];
        sum += x;
        size += isinf(x) ? 0 : fabs(x);
    }
    if (set->relative) {
        const int64_t most = set->relative - 1, d = key - position, at = d < -most ? -most : d > most ? most : d;
        const double x = (double)t->relative[head * (2 * most + 1) + most + at];
        sum += x;
        size += fabs(x);
    }
    *sizes = size;
    return sum;
}

/* The keys and values of one key-value head of a sequence, and room for a row's scores. */
typedef struct scene_head {
    int64_t sequence, key_head, keys;
    double *key, *value, *score;
} scene_head;

static inline void answer_row(scene *s, const scene_head *h, int64_t head, int64_t query) {
    const double u = 0x1p-24;
    const linnet_attention_settings *set = &s->set;
    const int64_t size = set->key_size, values = scene_value_size(s), row = s->query_offsets[h->sequence] + query;
    const double scale = set->scale != 0 ? (double)set->scale : 1 / sqrt((double)size), cap = (double)set->soft_cap;
    const int64_t at = element_at(&s->tensors.query, set->heads, size, row, head);
    double q[576], most = set->sinks ? (double)s->tensors.sinks[head] : -INFINITY, worst = 0, seen = 0;
    double largest = 0;
    for (int64_t i = 0; i < size; i++) {
        q[i] = element(&s->tensors.query, set->type, at + i);
        largest = fmax(largest, fabs(q[i]));
    }
    for (int64_t j = 0; j < h->keys; j++) {
        h->score[j] = -INFINITY;
        if (!scene_sees(s, h->sequence, head, query, j)) continue;
        double dot = 0, length = 0, sum = 0, sizes;
        for (int64_t i = 0; i < size; i++) {
            const double x = q[i] * h->key[j * size + i];
            dot += x;
            length += fabs(x);
            sum += fabs(h->key[j * size + i]);
        }
        dot *= scale;
        if (cap != 0) dot = cap * tanh(dot / cap);
        h->score[j] = dot + scene_bias(s, h->sequence, head, query, j, &sizes);
        most = fmax(most, h->score[j]);
        seen++;
        if (h->score[j] != -INFINITY)
            worst = fmax(worst, s->coarse * fabs(scale) * largest * sum +
                                    6 * u * (fabs(scale) * length + sizes + fabs(h->score[j]) + fabs(cap)));
    }
    s->pairs += seen;
    double *to = s->want + (row * set->heads + head) * values, *sizes = s->size + (to - s->want);
    memset(to, 0, (size_t)values * sizeof *to);
    memset(sizes, 0, (size_t)values * sizeof *sizes);
    const int64_t r = row * set->heads + head;
    s->allowed[r] = 2 * worst + u * (8 + sqrt(seen));
    s->lse[r] = -INFINITY;
    if (most == -INFINITY) return;
    double sum = set->sinks ? exp((double)s->tensors.sinks[head] - most) : 0;
    for (int64_t j = 0; j < h->keys; j++) sum += exp(h->score[j] - most);
    s->lse[r] = most + log(sum);
    double page = 0; /* largest weight of 32 keys */
    for (int64_t j = 0; j < h->keys; j++) {
        for (int64_t k = j; j % 32 == 0 && k < j + 32 && k < h->keys; k++)
            page = fmax(k == j ? 0 : page, exp(h->score[k] - most) / sum);
        if (h->score[j] == -INFINITY) continue;
        const double weight = exp(h->score[j] - most) / sum;
        for (int64_t i = 0; i < values; i++) {
            to[i] += weight * h->value[j * values + i];
            sizes[i] += (weight + (s->coarse * page + 0x1p-126) / s->allowed[r]) * fabs(h->value[j * values + i]);
        }
    }
}

static inline void copy_rows(const scene *s, const linnet_tensor *t, int64_t size, const scene_head *h, double *to) {
    for (int64_t j = 0; j < h->keys; j++) {
        const int64_t at = element_at(t, scene_key_heads(s), size, s->key_offsets[h->sequence] + j, h->key_head);
        for (int64_t i = 0; i < size; i++) to[j * size + i] = element(t, s->set.type, at + i);
    }
}

static inline void scene_answer(scene *s) {
    const int64_t rows = s->queries * s->set.heads, sequences = s->set.sequences ? s->set.sequences : 1;
    const int64_t group = s->set.heads / scene_key_heads(s);
    s->want = scene_take(s, rows * scene_value_size(s), sizeof(double));
    s->size = scene_take(s, rows * scene_value_size(s), sizeof(double));
    s->lse = scene_take(s, rows, sizeof(double));
    s->allowed = scene_take(s, rows, sizeof(double));
    s->pairs = 0;
    for (int64_t i = 0; i < sequences; i++)
        for (int64_t shared = 0; shared < scene_key_heads(s); shared++) {
            scene_head h = {.sequence = i, .key_head = shared, .keys = keys_of(s, i)};
            h.key = malloc((size_t)(h.keys * s->set.key_size + 1) * sizeof(double));
            h.value = malloc((size_t)(h.keys * scene_value_size(s) + 1) * sizeof(double));
            h.score = malloc((size_t)(h.keys + 1) * sizeof(double));
            assert_true(h.key && h.value && h.score);
            copy_rows(s, &s->tensors.key, s->set.key_size, &h, h.key);
            copy_rows(s, &s->tensors.value, scene_value_size(s), &h, h.value);
            for (int64_t head = shared * group; head < (shared + 1) * group; head++)
                for (int64_t q = 0; q < queries_of(s, i); q++) answer_row(s, &h, head, q);
            free(h.key);
            free(h.value);
            free(h.score);
        }
}

/* ---- comparing ---- */

/* Largest error of output and lse as a part of what is allowed, infinite where a mark was lost; the output's rows
 * become marks. extra: of allowed, for kernels that round weights. */
static inline double scene_error(scene *s, double extra) {
    const int64_t values = scene_value_size(s);
    double worst = 0;
    for (int64_t r = 0; r < s->queries * s->set.heads; r++) {
        const double lse = (double)s->tensors.log_sum_exp[r], want = s->lse[r], allowed = s->allowed[r] + extra;
        double error =
            want == -INFINITY ? (lse == want ? 0 : INFINITY) : fabs(lse - want) / (allowed / 2 + 0x1p-24 * fabs(want));
        if (!(error <= worst)) worst = error;
        const int64_t at = element_at(&s->tensors.output, s->set.heads, values, r / s->set.heads, r % s->set.heads);
        float *output = (float *)s->tensors.output.data + at;
        for (int64_t i = 0; i < values; i++) {
            error = fabs((double)output[i] - s->want[r * values + i]);
            error = error == 0 ? 0 : error / (allowed * s->size[r * values + i]);
            if (!(error <= worst)) worst = error;
            output[i] = SCENE_MARK;
        }
    }
    const float *all = s->tensors.output.data;
    for (int64_t i = 0; i < s->output_floats; i++)
        if (all[i] != SCENE_MARK) worst = INFINITY;
    return worst;
}

#endif
