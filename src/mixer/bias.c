/* Owns: what is added to attention's scores:
 *     score += log2(e) (-alibi |position - key| + query_factor . key_factor + dense + table[clamp(key - position)]).
 * Each term is multiplied by log2(e) and all are summed before they meet the score: the score is rounded once. Each
 * element is computed alone, in one order of operations: how keys are cut into calls changes no bit. */
#include <string.h>

#include "base/checked.h"
#include "mixer/mask.h"

enum { PIECE = LN_ATTEND_BLOCK };

static const float LOG2_E = 1.44269504f;

bool ln_bias_any(const ln_bias *bias) {
    return bias->alibi || bias->rank || bias->dense || bias->relative;
}

/* Keys of one call, at most PIECE of them, of one query. */
typedef struct piece {
    int64_t head, token, position, key; /* position and, without `order`, key are tokens of the keys' count */
    int64_t count;
    const int64_t *order; /* of the keys; NULL: key, key + 1, ... */
} piece;

static void add_alibi(const ln_bias *bias, const piece *p, float *sum) {
    const float slope = -LOG2_E * bias->alibi[p->head];
    const int64_t distance = p->key - p->position;
    if (p->order) {
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t d = p->order[i] - p->position;
            sum[i] += slope * (float)(d < 0 ? -d : d);
        }
    } else if (distance > INT32_MIN / 2 && distance < INT32_MAX / 2) {
        const int32_t from = (int32_t)distance;
        for (int32_t i = 0; i < p->count; i++) {
            const int32_t d = from + i;
            sum[i] += slope * (float)(d < 0 ? -d : d);
        }
    } else {
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t d = distance + i;
            sum[i] += slope * (float)(d < 0 ? -d : d);
        }
    }
}

static void add_factors(const ln_bias *bias, const piece *p, float *sum) {
    const int64_t rank = bias->rank, head = p->head / (bias->heads / bias->key_value_heads);
    const float *query = bias->query_factors + (p->token * bias->heads + p->head) * rank;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t key = p->order ? p->order[i] : p->key + i;
        const float *factors = bias->key_factors + (key * bias->key_value_heads + head) * rank;
        float product = 0;
        for (int64_t r = 0; r < rank; r++) product += query[r] * factors[r];
        sum[i] += LOG2_E * product;
    }
}

static void add_dense(const ln_bias *bias, const piece *p, float *sum) {
    const float *row = bias->dense + p->head * bias->dense_head_stride + p->token * bias->dense_row_stride;
    if (p->order) {
        for (int64_t i = 0; i < p->count; i++) sum[i] += LOG2_E * row[p->order[i]];
    } else {
        for (int64_t i = 0; i < p->count; i++) sum[i] += LOG2_E * row[p->key + i];
    }
}

static void add_relative(const ln_bias *bias, const piece *p, float *sum) {
    const int64_t most = bias->relative - 1;
    const float *middle = bias->table + p->head * (2 * most + 1) + most;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t d = (p->order ? p->order[i] : p->key + i) - p->position;
        sum[i] += LOG2_E * middle[ln_max_i64(-most, ln_min_i64(most, d))];
    }
}

void ln_bias_add(const ln_bias *bias, int64_t head, int64_t token, int64_t position, int64_t key, int64_t count,
                 float *scores) {
    const int64_t at = bias->order ? bias->order[position] : position;
    for (int64_t from = 0; from < count; from += PIECE) {
        const piece p = {.head = head,
                         .token = token,
                         .position = at,
                         .key = key + from,
                         .count = ln_min_i64(PIECE, count - from),
                         .order = bias->order ? bias->order + key + from : NULL};
        float sum[PIECE] = {0};
        if (bias->alibi) add_alibi(bias, &p, sum);
        if (bias->rank) add_factors(bias, &p, sum);
        if (bias->dense) add_dense(bias, &p, sum);
        if (bias->relative) add_relative(bias, &p, sum);
        for (int64_t i = 0; i < p.count; i++) scores[from + i] += sum[i];
    }
}
