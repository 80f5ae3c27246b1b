/* Owns: the layout of in-context ranking (P281; linnet/approximate.h), and its scores of documents.
 *
 * Each document is a call of the tile loop of its own, over pages that hold the instruction and then the document: so
 * its bits depend on these two alone, and under the causal mask it sees the instruction without further ado. Then the
 * query's tokens see the pages of everything. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"
#include "mixer/select.h"

enum { ROWS = 64 };

typedef struct layout {
    int64_t longest; /* tokens of the instruction and the longest document */
    ln_paged pages;
    int32_t *order; /* [longest] */
    double *scores; /* [document][head] */
} layout;

static int64_t longest_of(const linnet_approximate_settings *s) {
    int64_t longest = 0;
    for (int64_t i = 0; i < s->documents; i++)
        longest = ln_max_i64(longest, s->document_offsets[i + 1] - s->document_offsets[i]);
    return s->instruction + longest;
}

static void carve(ln_select_call *call, ln_carver *carver) {
    const linnet_approximate_settings *s = call->s;
    layout x = {.longest = longest_of(s)};
    x.pages = ln_paged_carve(call, carver, &call->plan->layout, x.longest);
    x.order = ln_carve(carver, (uint64_t)x.longest, sizeof *x.order);
    x.scores = ln_carve(carver, (uint64_t)(s->documents * s->heads), sizeof *x.scores);
    layout *own = ln_carve(carver, 1, sizeof *own);
    if (own) *own = x;
    call->own = own;
}

static uint64_t scratch(const linnet_approximate_plan *plan) {
    return (uint64_t)(2 * ROWS * LN_SELECT_STRIDE + plan->s.key_size * LN_PANEL) * sizeof(float);
}

/* Tokens begin .. end - 1 over the first `keys` keys of the pages; they stand at the end of them. */
static void attend(ln_select_call *call, const ln_paged *pages, int64_t keys, int64_t begin, int64_t end) {
    const linnet_approximate_settings *s = call->s;
    const ln_attention_sequence sequence = {
        .view = ln_select_view(call, pages, 0, keys),
        .keys = keys,
        .tokens = end - begin,
        .position = keys - (end - begin),
        .query_type = s->type,
        .query = ln_row_at(&call->query_rows, begin, 0),
        .output = ln_row_to(&call->output_rows, begin, 0),
        .query_stride = call->query_rows.token_stride,
        .query_head_stride = call->query_rows.head_stride,
        .output_stride = call->output_rows.token_stride,
        .output_head_stride = call->output_rows.head_stride,
        .log_sum_exp = call->visited + begin * s->heads,
        .bias = {.heads = s->heads, .key_value_heads = s->key_value_heads},
    };
    const int64_t n = end - begin;
    if (n > 0) ln_select_attend(call, &(ln_mask){.causal = s->causal}, &sequence, 1);
    atomic_fetch_add(&call->pairs, s->heads * (s->causal ? n * (keys - n) + n * (n + 1) / 2 : n * keys));
}

static void attend_document(ln_select_call *call, int64_t begin, int64_t end) {
    const layout *x = call->own;
    const linnet_approximate_settings *s = call->s;
    const int64_t tokens = s->instruction + end - begin;
    for (int64_t i = 0; i < tokens; i++) x->order[i] = (int32_t)(i < s->instruction ? i : begin + i - s->instruction);
    ln_select_pack(call, &x->pages, 0, &call->key_rows, &call->value_rows, tokens, x->order, 0);
    attend(call, &x->pages, tokens, begin, end);
}

/* ---- scores ---- */

static double score_rows(ln_select_call *call, const float *panel, float *queries, float *weights, int64_t head,
                         int64_t begin, int64_t rows, int64_t keys) {
    const linnet_approximate_settings *s = call->s;
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        float *row = queries + r * LN_SELECT_STRIDE;
        memcpy(row, ln_select_query(call, head, begin + r), (size_t)s->key_size * sizeof *row);
        call->kernels->vector.scale(row, s->scale, s->key_size);
    }
    ln_select_product(call, panel, s->key_size, queries, rows, weights, false);
    for (int64_t r = 0; r < rows; r++) {
        const float lse = call->visited[(begin + r) * s->heads + head];
        float *row = weights + r * LN_SELECT_STRIDE;
        sum += (double)call->kernels->vector.exponential(row, row, lse, keys);
    }
    return sum;
}

/* What the query's tokens pay to one document in one head. */
static void score_document(void *argument, int64_t task, int worker) {
    ln_select_call *call = argument;
    const layout *x = call->own;
    const linnet_approximate_settings *s = call->s;
    float *queries = ln_select_scratch(call, worker), *weights = queries + ROWS * LN_SELECT_STRIDE,
          *panel = weights + ROWS * LN_SELECT_STRIDE;
    const int64_t document = task / s->heads, head = task % s->heads, end = s->document_offsets[document + 1];
    double sum = 0;
    for (int64_t key = s->document_offsets[document]; key < end; key += LN_PANEL) {
        const int64_t keys = ln_min_i64(LN_PANEL, end - key);
        memset(panel, 0, (size_t)(s->key_size * LN_PANEL) * sizeof *panel);
        for (int64_t i = 0; i < keys; i++)
            ln_select_column(panel, i, ln_select_key(call, head / call->plan->group, key + i), s->key_size);
        for (int64_t t = s->document_offsets[s->documents]; t < s->tokens; t += ROWS)
            sum += score_rows(call, panel, queries, weights, head, t, ln_min_i64(ROWS, s->tokens - t), keys);
    }
    x->scores[task] = sum;
}

static void run(ln_select_call *call) {
    const layout *x = call->own;
    const linnet_approximate_settings *s = call->s;
    attend(call, &call->all, s->instruction, 0, s->instruction);
    for (int64_t i = 0; i < s->documents; i++)
        attend_document(call, s->document_offsets[i], s->document_offsets[i + 1]);
    attend(call, &call->all, s->tokens, s->document_offsets[s->documents], s->tokens);
    double *scores = call->tensors->document_scores;
    if (!scores) return;
    ln_parallel(call->team, s->documents * s->heads, score_document, call);
    for (int64_t i = 0; i < s->documents; i++) {
        scores[i] = 0;
        for (int64_t h = 0; h < s->heads; h++) scores[i] += x->scores[i * s->heads + h];
    }
}

static const char *check(linnet_approximate_settings *s) {
    if (s->documents < 1 || s->documents > INT32_MAX || !s->document_offsets)
        return "documents and document_offsets must be given";
    if (s->instruction < 0 || s->document_offsets[0] != s->instruction)
        return "the first document must begin where the instruction ends";
    for (int64_t i = 0; i < s->documents; i++)
        if (s->document_offsets[i + 1] < s->document_offsets[i]) return "document_offsets must not descend";
    return s->document_offsets[s->documents] > s->tokens ? "the documents must end within the tokens" : NULL;
}

static linnet_status copy_offsets(linnet_approximate_plan *plan) {
    const uint64_t bytes = (uint64_t)(plan->s.documents + 1) * sizeof(int64_t);
    plan->own = ln_allocate(plan->context, 1, bytes, "document offsets");
    if (!plan->own) return LINNET_ERROR_MEMORY;
    memcpy(plan->own, plan->s.document_offsets, bytes);
    plan->s.document_offsets = plan->own;
    return LINNET_OK;
}

const ln_select_row ln_select_ranking = {.name = "ranking",
                                         .source = "Gupta et al. 2025",
                                         .needs = LN_SELECT_QUERY | LN_SELECT_KEY,
                                         .check = check,
                                         .open = copy_offsets,
                                         .carve = carve,
                                         .scratch = scratch,
                                         .run = run};
