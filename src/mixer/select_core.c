/* Owns: Core Context Aware attention (P215; linnet/approximate.h).
 *
 * The tokens with the same u form a run: the first window + group - 1 of them, then `group` at a time. All runs are
 * sequences of two calls of the tile loop, one over raw tokens from u on, one over the cores of the groups before u;
 * merging them by log-sum-exp makes one softmax of both. That a run's tokens begin at u is said by a document that
 * begins there. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/select.h"

typedef struct cores {
    int64_t groups;     /* whole ones */
    float *key, *value; /* [key-value head][group][size] */
    ln_paged pages;
    float *output, *lse; /* of the cores: [token][head][value_size], [token][head] */
    ln_attention_sequence *sequences;
} cores;

/* Where document_offsets put the first key of a run's document. */
static const int64_t DOCUMENT[2] = {(int64_t)1 << 40, (int64_t)1 << 41};

enum { MERGE_TOKENS = 64 };

static int64_t first_run(const linnet_approximate_settings *s) {
    return ln_min_i64(s->tokens, s->window + s->group - 1);
}

static void carve(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_settings *s = call->s;
    cores x = {.groups = s->tokens / s->group};
    ln_page_layout layout;
    ln_page_layout_of(LINNET_F32, LINNET_F32, s->key_size, s->value_size, &layout);
    const uint64_t rows = (uint64_t)(s->key_value_heads * x.groups), outputs = (uint64_t)(s->tokens * s->heads);
    x.key = ln_carve(carver, rows, (uint64_t)s->key_size * sizeof(float));
    x.value = ln_carve(carver, rows, (uint64_t)s->value_size * sizeof(float));
    x.pages = ln_paged_carve(call, carver, &layout, x.groups);
    x.output = ln_carve(carver, outputs, (uint64_t)s->value_size * sizeof(float));
    x.lse = ln_carve(carver, outputs, sizeof(float));
    x.sequences = ln_carve(carver, (uint64_t)x.groups + 2, sizeof *x.sequences);
    cores *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = x;
    call->own = own;
}

/* One group's core: weights by online softmax, one key after the other. */
static void pool_group(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const cores *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t shared = task / x->groups, begin = task % x->groups * s->group, last = begin + s->group - 1,
                  heads = call->plan->group;
    double query[LN_SELECT_SIZE_MOST] = {0}, key[LN_SELECT_SIZE_MOST] = {0}, value[LN_SELECT_SIZE_MOST] = {0};
    for (int64_t h = shared * heads; h < (shared + 1) * heads; h++)
        for (int64_t i = 0; i < s->key_size; i++)
            query[i] += (double)s->scale / (double)heads * (double)ln_select_query(call, h, last)[i];
    double most = -INFINITY, sum = 0;
    for (int64_t t = begin; t <= last; t++) {
        const float *k = ln_select_key(call, shared, t), *v = ln_select_value(call, shared, t);
        double score = 0;
        for (int64_t i = 0; i < s->key_size; i++) score += query[i] * (double)k[i];
        const double larger = fmax(most, score), keep = exp(most - larger), weight = exp(score - larger);
        for (int64_t i = 0; i < s->key_size; i++) key[i] = keep * key[i] + weight * (double)k[i];
        for (int64_t i = 0; i < s->value_size; i++) value[i] = keep * value[i] + weight * (double)v[i];
        sum = keep * sum + weight;
        most = larger;
    }
    for (int64_t i = 0; i < s->key_size; i++) x->key[task * s->key_size + i] = (float)(key[i] / sum);
    for (int64_t i = 0; i < s->value_size; i++) x->value[task * s->value_size + i] = (float)(value[i] / sum);
}

static void pool(ln_select_call *call) {
    const cores *x = call->own;
    const linnet_approximate_settings *s = call->s;
    ln_parallel(call->team, s->key_value_heads * x->groups, pool_group, call);
    const linnet_tensor key = {x->key, s->key_size, x->groups * s->key_size},
                        value = {x->value, s->value_size, x->groups * s->value_size};
    const ln_rows keys = ln_rows_of(&key, LINNET_F32, s->key_value_heads, s->key_size),
                  values = ln_rows_of(&value, LINNET_F32, s->key_value_heads, s->value_size);
    ln_select_pack(call, &x->pages, 0, &keys, &values, x->groups, NULL, 0);
    atomic_fetch_add(&call->scored, s->heads * x->groups * s->group);
}

/* The sequences of the runs from token `begin` on; `raw`: over tokens, else over cores. */
static int64_t make_runs(ln_select_call *call, int64_t begin, bool raw) {
    const cores *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t rest = s->heads * s->value_size;
    int64_t count = 0;
    while (begin < s->tokens) {
        const int64_t start = ln_max_i64(0, begin + 1 - s->window) / s->group * s->group,
                      end = begin == 0 ? first_run(s) : ln_min_i64(s->tokens, begin + s->group), tokens = end - begin;
        ln_attention_sequence run = {
            .view =
                raw ? ln_select_view(call, &call->all, 0, s->tokens) : ln_select_view(call, &x->pages, 0, x->groups),
            .keys = raw ? end : start / s->group,
            .tokens = tokens,
            .position = raw ? begin : 0,
            .query_type = s->type,
            .query = ln_row_at(&call->query_rows, begin, 0),
            .output = raw ? ln_row_to(&call->output_rows, begin, 0) : x->output + begin * rest,
            .query_stride = call->query_rows.token_stride,
            .query_head_stride = call->query_rows.head_stride,
            .output_stride = raw ? call->output_rows.token_stride : rest,
            .output_head_stride = raw ? call->output_rows.head_stride : s->value_size,
            .log_sum_exp = (raw ? call->visited : x->lse) + begin * s->heads,
            .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
            .key_begin = DOCUMENT[0] - start,
        };
        x->sequences[count++] = run;
        if (raw)
            atomic_fetch_add(&call->pairs, s->heads * (tokens * (begin - start) + tokens * (tokens + 1) / 2));
        else
            atomic_fetch_add(&call->scored, s->heads * tokens * run.keys);
        begin = end;
    }
    return count;
}

static void merge_tokens(void *argument, int64_t task, int worker) {
    (void)worker;
    const ln_select_call *call = argument;
    const cores *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t begin = first_run(s) + task * MERGE_TOKENS;
    for (int64_t t = begin; t < ln_min_i64(begin + MERGE_TOKENS, s->tokens); t++) {
        for (int64_t h = 0; h < s->heads; h++) {
            const int64_t row = t * s->heads + h;
            float lse = call->visited[row]; /* stays that of the tokens alone */
            ln_select_merge(ln_row_to(&call->output_rows, t, h), &lse, x->output + row * s->value_size, x->lse[row],
                            s->value_size);
        }
    }
}

static void run(ln_select_call *call) {
    const cores *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const ln_mask window = {.causal = true, .documents = 1, .document_offsets = DOCUMENT};
    ln_select_attend(call, &window, x->sequences, make_runs(call, 0, true));
    const int64_t first = first_run(s);
    if (first >= s->tokens) return;
    pool(call);
    ln_select_attend(call, &(ln_mask){0}, x->sequences, make_runs(call, first, false));
    ln_parallel(call->team, ln_ceil_div(s->tokens - first, MERGE_TOKENS), merge_tokens, call);
}

static const char *check(linnet_approximate_settings *s) {
    if (s->group < 1 || s->window < 1 || s->group > INT32_MAX || s->window > INT32_MAX)
        return "group and window must be from 1 to 2^31 - 1";
    return s->causal ? NULL : "Core Context Aware attention is causal";
}

const ln_select_row ln_select_core = {.name = "core",
                                      .source = "Chen et al. 2024",
                                      .needs = LN_SELECT_QUERY | LN_SELECT_KEY | LN_SELECT_VALUE,
                                      .check = check,
                                      .carve = carve,
                                      .run = run};
