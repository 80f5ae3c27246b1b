/* Owns: what is added to attention's scores:
 *     score += log2(e) (-alibi |position - key| + query_factor . key_factor + dense + table[clamp(key - position)]
 *                       + keys[key]).
 * Each term is multiplied by log2(e), and several terms are summed before they meet the score: the score is rounded
 * once. Each element is computed alone, in one order of operations: how keys are cut into calls changes no
 * bit. */
#include "base/checked.h"
#include "mixer/mask.h"

enum { PIECE = LN_ATTEND_BLOCK };

static const float ONE = 1;

bool ln_bias_any(const ln_bias *bias) {
    return bias->alibi || bias->rank || bias->dense || bias->relative || bias->keys;
}

/* Keys of one call, at most PIECE of them, of one query. */
typedef struct piece {
    const ln_vector_kernels *kernels;
    int64_t head, token, position, key; /* token and position of the query are not places */
    int64_t count;
    const int64_t *order; /* tokens of the keys; NULL: key, key + 1, ... */
} piece;

static int64_t token_of(const piece *p, int64_t i) {
    return p->order ? p->order[i] : p->key + i;
}

static int64_t key_head_of(const ln_bias *bias, int64_t head) {
    return head / (bias->heads / bias->key_value_heads);
}

void ln_bias_turn(const ln_bias *bias, int64_t keys, int64_t stride, float *turned) {
    const int64_t rows = bias->key_value_heads * bias->rank;
    for (int64_t key = 0; key < keys; key++) {
        const float *factors = bias->key_factors + (bias->order ? bias->order[key] : key) * rows;
        for (int64_t r = 0; r < rows; r++) turned[r * stride + key] = factors[r];
    }
}

static void add_factors(const ln_bias *bias, const piece *p, float *sum) {
    const int64_t rank = bias->rank, head = key_head_of(bias, p->head), stride = bias->factor_stride;
    const float *query = bias->query_factors + (p->token * bias->heads + p->head) * rank;
    if (stride) {
        const float *turned = bias->key_factors + head * rank * stride + p->key;
        p->kernels->add_products(sum, LN_LOG2E, query, rank, turned, stride, p->count);
        return;
    }
    for (int64_t i = 0; i < p->count; i++) {
        const float *factors = bias->key_factors + (token_of(p, i) * bias->key_value_heads + head) * rank;
        float product = query[0] * factors[0];
        for (int64_t r = 1; r < rank; r++) product += query[r] * factors[r];
        sum[i] += LN_LOG2E * product;
    }
}

static void add_alibi(const ln_bias *bias, const piece *p, float *sum) {
    const float slope = -LN_LOG2E * bias->alibi[p->head];
    if (p->order) {
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t d = p->order[i] - p->position;
            sum[i] += slope * (float)(d < 0 ? -d : d);
        }
    } else {
        p->kernels->add_distance(sum, slope, p->key - p->position, p->count);
    }
}

/* A number of each key. */
static void add_row(const float *row, const piece *p, float *sum) {
    if (p->order) {
        for (int64_t i = 0; i < p->count; i++) sum[i] += LN_LOG2E * row[p->order[i]];
    } else {
        p->kernels->add_products(sum, LN_LOG2E, &ONE, 1, row + p->key, 0, p->count);
    }
}

/* In the tokens' order it is a slice of the table between two runs of its ends. */
static void add_relative(const ln_bias *bias, const piece *p, float *sum) {
    const int64_t most = bias->relative - 1;
    const float *middle = bias->table + p->head * (2 * most + 1) + most;
    if (p->order) {
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t d = p->order[i] - p->position;
            sum[i] += LN_LOG2E * middle[ln_max_i64(-most, ln_min_i64(most, d))];
        }
        return;
    }
    const int64_t distance = p->key - p->position;
    const int64_t begin = ln_max_i64(0, ln_min_i64(p->count, -most - distance));
    const int64_t end = ln_max_i64(begin, ln_min_i64(p->count, most + 1 - distance));
    for (int64_t i = 0; i < begin; i++) sum[i] += LN_LOG2E * middle[-most];
    if (begin < end)
        p->kernels->add_products(sum + begin, LN_LOG2E, &ONE, 1, middle + distance + begin, 0, end - begin);
    for (int64_t i = end; i < p->count; i++) sum[i] += LN_LOG2E * middle[most];
}

static void add_terms(const ln_bias *bias, const piece *p, float *sum) {
    if (bias->rank) add_factors(bias, p, sum);
    if (bias->alibi) add_alibi(bias, p, sum);
    if (bias->dense)
        add_row(bias->dense + p->head * bias->dense_head_stride + p->token * bias->dense_row_stride, p, sum);
    if (bias->relative) add_relative(bias, p, sum);
    if (bias->keys) add_row(bias->keys, p, sum);
}

void ln_bias_add(const ln_vector_kernels *kernels, const ln_bias *bias, int64_t head, int64_t token, int64_t position,
                 int64_t key, int64_t count, float *scores) {
    const int64_t terms = (bias->rank != 0) + (bias->alibi != NULL) + (bias->dense != NULL) + (bias->relative != 0) +
                          (bias->keys != NULL);
    const int64_t at = bias->order ? bias->order[position] : position;
    for (int64_t from = 0; from < count; from += PIECE) {
        const piece p = {.kernels = kernels,
                         .head = head,
                         .token = bias->order ? at : token,
                         .position = at,
                         .key = key + from,
                         .count = ln_min_i64(PIECE, count - from),
                         .order = bias->order ? bias->order + key + from : NULL};
        if (terms == 1) {
            add_terms(bias, &p, scores + from);
            continue;
        }
        float sum[PIECE] = {0};
        add_terms(bias, &p, sum);
        kernels->add(scores + from, sum, p.count);
    }
}
