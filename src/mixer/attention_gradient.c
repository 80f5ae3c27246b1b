/* Owns: the backward pass of exact attention (equations in the header): cutting it into tasks, and the order of work in
 * one.
 *
 * A task is a key-value head of a sequence and a range of its keys, taken LN_GRADIENT_PASS keys at a time: their keys,
 * values and sums dK, dV lie in the worker's scratch while all queries that see any of them go by, in tiles of tokens
 * of one head (attention_gradient_tile.c). dK and dV belong to one task. dQ is a sum over ranges: the first range
 * writes the result, the others a partial one each, merged in ascending order. Ranges depend on shapes only: that is
 * why any number of threads gives the same bits. */
#include <math.h>
#include <stddef.h>

#include "mixer/attention_gradient_inside.h"

enum {
    TASKS = 64,      /* keys are cut into ranges up to about this many tasks, */
    RANGES_MOST = 8, /* this many ranges of a sequence, */
    RANGE = 512,     /* and multiples of this many keys */
    PIECE = 64,      /* tokens in a task of row work */
};

/* ---- the shape of a call ---- */

/* Returns the floats of it all. */
static uint64_t lay_scratch(const ln_gradient_call *call, float *base, ln_gradient_scratch *s) {
    const int64_t key_size = call->attention->key_size, value_size = call->attention->value_size;
    const int64_t rank = call->padded_rank, tile = LN_GRADIENT_TILE * LN_ATTEND_STRIDE;
    uint64_t at = 0;
    s->key_sum = ln_take_slab(base, &at, LN_GRADIENT_PASS, key_size);
    s->value_sum = ln_take_slab(base, &at, LN_GRADIENT_PASS, value_size);
    s->key_factor_sum = ln_take_slab(base, &at, LN_GRADIENT_PASS, rank);
    s->query_sum = ln_take_slab(base, &at, LN_GRADIENT_TILE, key_size);
    s->query_factor_sum = ln_take_slab(base, &at, LN_GRADIENT_TILE, rank);
    s->key_factors = ln_take_slab(base, &at, LN_GRADIENT_PASS, rank);
    s->key_factor_panels = ln_take_panels(base, &at, LN_GRADIENT_PASS, rank);
    s->query_factors = ln_take_panels(base, &at, LN_GRADIENT_TILE, rank);
    s->query_factor_pages = ln_take(base, &at, LN_GRADIENT_TILE * rank);
    s->bias = ln_take(base, &at, tile);
    s->uncapped = ln_take(base, &at, tile);
    s->turned = ln_take(base, &at, tile);
    s->shift = ln_take(base, &at, LN_GRADIENT_TILE);
    s->delta = ln_take(base, &at, LN_GRADIENT_TILE);
    s->bits = (uint32_t(*)[LN_TILE_SQUARES])(void *)ln_take(base, &at, LN_GRADIENT_TILE * LN_TILE_SQUARES);
    s->row = ln_take(base, &at, ln_max_i64(rank, ln_max_i64(key_size, value_size)));
    s->own = ln_take(base, &at, (int64_t)call->way->scratch(call));
    return at;
}

static int64_t ranges_of(const ln_gradient_call *call, const ln_gradient_sequence *sequence) {
    return ln_max_i64(1, ln_ceil_div(sequence->keys, call->range_keys));
}

static void cut_keys(ln_gradient_call *call) {
    int64_t keys = 0, longest = 0;
    for (int64_t i = 0; i < call->count; i++) {
        keys += call->sequences[i].keys;
        longest = ln_max_i64(longest, call->sequences[i].keys);
    }
    const int64_t by_tasks = ln_ceil_div(keys, ln_max_i64(1, TASKS / call->attention->key_value_heads));
    const int64_t least = ln_max_i64(by_tasks, ln_ceil_div(longest, RANGES_MOST));
    call->range_keys = ln_max_i64(1, ln_ceil_div(least, RANGE)) * RANGE;
}

/* workspace NULL: sizes alone. Returns the floats of it all. */
static uint64_t lay_call(ln_gradient_call *call, float *workspace, int threads) {
    const ln_attention *attention = call->attention;
    call->group = attention->heads / attention->key_value_heads;
    call->rank = call->count ? call->sequences->bias.rank : 0;
    call->padded_rank = (call->rank + 7) / 8 * 8;
    cut_keys(call);
    uint64_t at = 0;
    ln_gradient_first before = {0};
    call->first = (ln_gradient_first *)(void *)ln_take(workspace, &at, 8 * (call->count + 1));
    for (int64_t i = 0; i < call->count; i++) {
        const ln_gradient_sequence *sequence = &call->sequences[i];
        const int64_t ranges = ranges_of(call, sequence);
        if (workspace) call->first[i] = before;
        before.token += sequence->tokens;
        before.task += ranges * attention->key_value_heads;
        before.piece += ln_ceil_div(sequence->tokens, PIECE);
        before.partial += (ranges - 1) * sequence->tokens * attention->heads * (attention->key_size + call->rank);
    }
    if (workspace) call->first[call->count] = before;
    call->tokens = before.token;
    call->delta = ln_take(workspace, &at, attention->heads * call->tokens);
    call->shift = ln_take(workspace, &at, attention->heads * call->tokens);
    call->partial = ln_take(workspace, &at, before.partial);
    ln_gradient_scratch s;
    call->worker_floats = lay_scratch(call, NULL, &s);
    call->scratch = ln_take(workspace, &at, (int64_t)call->worker_floats * threads);
    return at;
}

/* ---- one task ---- */

static ln_rows rows_of(const ln_gradient_sequence *sequence, const linnet_tensor *tensor) {
    return (ln_rows){tensor->data, tensor->token_stride, tensor->head_stride, sequence->order};
}
/* Of range `range` > 0 of a sequence, the part of the query's gradient (columns 0) or that of its factors. */
static ln_rows partial_rows(const ln_gradient_call *call, int64_t index, int64_t range, bool factors) {
    const ln_attention *attention = call->attention;
    const int64_t width = attention->key_size + call->rank, tokens = call->sequences[index].tokens;
    float *data = call->partial + call->first[index].partial + (range - 1) * tokens * attention->heads * width;
    return (ln_rows){data + (factors ? attention->key_size : 0), width, tokens * width, NULL};
}

/* to [columns] (+)= factor * row */
static void put_row(const ln_slab *s, int64_t row, int64_t columns, float factor, float *to, bool add) {
    for (int64_t c = 0; c < columns; c += LN_DEPTH) {
        const float *from = ln_slab_at(s, row, c);
        const int64_t n = ln_min_i64(LN_DEPTH, columns - c);
        for (int64_t i = 0; i < n && add; i++) to[c + i] += factor * from[i];
        for (int64_t i = 0; i < n && !add; i++) to[c + i] = factor * from[i];
    }
}

static void fetch_row(const float *row, int64_t size) {
    enum { LINE = 16 };
    for (int64_t i = 0; i < size; i += LINE) __builtin_prefetch(row + i, 1);
}

static void clear_rows(const ln_rows *to, int64_t token, int64_t tokens, int64_t head, int64_t heads, int64_t size) {
    if (!to->data) return;
    for (int64_t t = token; t < token + tokens; t++)
        for (int64_t h = head; h < head + heads; h++) memset(ln_row_at(to, t, h), 0, (size_t)size * sizeof(float));
}

/* Sums over queries, of the keys in scratch. */
static void store_keys(const ln_gradient_task *t) {
    const ln_attention *attention = t->call->attention;
    const ln_gradient_sequence *sequence = t->sequence;
    const struct {
        ln_rows to;
        const ln_slab *from;
        int64_t size;
        float factor;
    } results[] = {
        {rows_of(sequence, &sequence->key_gradient), &t->s.key_sum, attention->key_size, attention->scale},
        {rows_of(sequence, &sequence->value_gradient), &t->s.value_sum, attention->value_size, 1},
        {ln_factor_rows(sequence, sequence->key_factors_gradient, attention->key_value_heads, t->call->rank),
         &t->s.key_factor_sum, t->call->rank, 1},
    };
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        for (int64_t k = 0; k < t->keys && results[i].to.data; k++)
            put_row(results[i].from, k, results[i].size, results[i].factor,
                    ln_row_at(&results[i].to, t->key + k, t->head), false);
    }
}

/* Index of the last sequence that begins at or before `at`. */
static int64_t find_sequence(const ln_gradient_call *call, int64_t at, size_t field) {
    int64_t low = 0, high = call->count;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        int64_t first;
        memcpy(&first, (const char *)&call->first[middle] + field, sizeof first);
        if (first <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Where a task's sums over keys go; data NULL: not wanted. */
typedef struct targets {
    ln_rows query, factors;
} targets;

static targets targets_of(const ln_gradient_task *t, int64_t index, int64_t range) {
    const ln_gradient_call *call = t->call;
    const ln_gradient_sequence *sequence = t->sequence;
    targets to = {rows_of(sequence, &sequence->query_gradient),
                  ln_factor_rows(sequence, sequence->query_factors_gradient, call->attention->heads, call->rank)};
    if (range > 0 && to.query.data) to.query = partial_rows(call, index, range, false);
    if (range > 0 && to.factors.data) to.factors = partial_rows(call, index, range, true);
    return to;
}

/* The tile against the keys in scratch, the first of the task or not. */
static void run_tile(const ln_gradient_task *t, const targets *to, bool first) {
    const ln_gradient_call *call = t->call;
    const int64_t size = call->attention->key_size;
    const bool seen = ln_gradient_tile(t);
    if (!seen && first) {
        clear_rows(&to->query, t->token, t->tokens, t->query_head, 1, size);
        clear_rows(&to->factors, t->token, t->tokens, t->query_head, 1, call->rank);
    }
    for (int64_t i = 0; i < t->tokens && seen; i++) {
        if (to->query.data && i + LN_GRADIENT_AHEAD < t->tokens)
            fetch_row(ln_row_at(&to->query, t->token + i + LN_GRADIENT_AHEAD, t->query_head), size);
        if (to->query.data)
            put_row(&t->s.query_sum, i, size, call->attention->scale,
                    ln_row_at(&to->query, t->token + i, t->query_head), !first);
        if (to->factors.data)
            put_row(&t->s.query_factor_sum, i, call->rank, 1, ln_row_at(&to->factors, t->token + i, t->query_head),
                    !first);
    }
}

static void run_task(void *argument, int64_t task, int worker) {
    const ln_gradient_call *call = argument;
    const ln_attention *attention = call->attention;
    const int64_t index = find_sequence(call, task, offsetof(ln_gradient_first, task)), group = call->group;
    const ln_gradient_sequence *sequence = &call->sequences[index];
    ln_gradient_task t = {.call = call, .sequence = sequence, .mask = attention->mask};
    t.mask.key_begin = sequence->key_begin;
    t.mask.query_begin = sequence->position;
    lay_scratch(call, call->scratch + (uint64_t)worker * call->worker_floats, &t.s);
    const int64_t range = (task - call->first[index].task) / attention->key_value_heads;
    t.head = (task - call->first[index].task) % attention->key_value_heads;
    const targets to = targets_of(&t, index, range);
    const int64_t end = ln_min_i64(sequence->keys, (range + 1) * call->range_keys);
    /* Without keys, one empty pass clears what belongs to queries. */
    const int64_t begin = range * call->range_keys;
    for (t.key = begin; t.key < end || t.key == begin; t.key += LN_GRADIENT_PASS) {
        if (ln_attention_interrupted(attention)) return;
        t.keys = ln_min_i64(LN_GRADIENT_PASS, end - t.key);
        call->way->load_keys(&t);
        ln_gradient_load_keys(&t);
        ln_slab_clear(&t.s.key_sum, t.keys);
        ln_slab_clear(&t.s.value_sum, t.keys);
        ln_slab_clear(&t.s.key_factor_sum, t.keys);
        for (t.query_head = t.head * group; t.query_head < (t.head + 1) * group; t.query_head++) {
            for (t.token = 0; t.token < sequence->tokens; t.token += LN_GRADIENT_TILE) {
                t.tokens = ln_min_i64(LN_GRADIENT_TILE, sequence->tokens - t.token);
                run_tile(&t, &to, t.key == begin);
            }
        }
        store_keys(&t);
    }
}

/* ---- row work ---- */

static float dot(const float *a, const float *b, int64_t n) {
    enum { LANES = 8 };
    float sums[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t j = 0; j < LANES; j++) sums[j] += a[i + j] * b[i + j];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* D and the shift of a piece of a sequence's tokens. */
static void prepare_piece(void *argument, int64_t task, int worker) {
    const ln_gradient_call *call = argument;
    const ln_attention *attention = call->attention;
    const int64_t index = find_sequence(call, task, offsetof(ln_gradient_first, piece));
    const ln_gradient_sequence *sequence = &call->sequences[index];
    const int64_t token = (task - call->first[index].piece) * PIECE;
    const ln_rows output = rows_of(sequence, &sequence->output),
                  gradient = rows_of(sequence, &sequence->output_gradient);
    (void)worker;
    for (int64_t t = token; t < ln_min_i64(token + PIECE, sequence->tokens); t++) {
        const float *lse = sequence->log_sum_exp + (sequence->order ? sequence->order[t] : t) * attention->heads;
        for (int64_t h = 0; h < attention->heads; h++) {
            const int64_t at = h * call->tokens + call->first[index].token + t;
            call->delta[at] = dot(ln_row_at(&output, t, h), ln_row_at(&gradient, t, h), attention->value_size);
            call->shift[at] = lse[h] == -INFINITY ? INFINITY : lse[h] * LN_LOG2E;
        }
    }
}

static void sum_sink(void *argument, int64_t head, int worker) {
    const ln_gradient_call *call = argument;
    const ln_attention *attention = call->attention;
    double sum = 0;
    (void)worker;
    for (int64_t i = 0; i < call->count; i++) {
        const ln_gradient_sequence *sequence = &call->sequences[i];
        const float *delta = call->delta + head * call->tokens + call->first[i].token;
        for (int64_t t = 0; t < sequence->tokens; t++) {
            const float lse =
                sequence->log_sum_exp[(sequence->order ? sequence->order[t] : t) * attention->heads + head];
            if (lse != -INFINITY) sum -= exp((double)attention->sinks[head] - (double)lse) * (double)delta[t];
        }
    }
    call->sinks_gradient[head] = (float)sum;
}

/* Adds the other ranges' results to the first one's, for a piece of a sequence's tokens. */
static void merge_piece(void *argument, int64_t task, int worker) {
    const ln_gradient_call *call = argument;
    const ln_attention *attention = call->attention;
    const int64_t index = find_sequence(call, task, offsetof(ln_gradient_first, piece));
    const ln_gradient_sequence *sequence = &call->sequences[index];
    const int64_t token = (task - call->first[index].piece) * PIECE;
    const ln_rows results[] = {
        rows_of(sequence, &sequence->query_gradient),
        ln_factor_rows(sequence, sequence->query_factors_gradient, attention->heads, call->rank),
    };
    (void)worker;
    for (int factors = 0; factors < 2; factors++) {
        const int64_t size = factors ? call->rank : attention->key_size;
        for (int64_t range = 1; results[factors].data && range < ranges_of(call, sequence); range++) {
            const ln_rows from = partial_rows(call, index, range, factors);
            for (int64_t t = token; t < ln_min_i64(token + PIECE, sequence->tokens); t++)
                for (int64_t h = 0; h < attention->heads; h++)
                    call->kernels->vector.add(ln_row_at(&results[factors], t, h), ln_row_at(&from, t, h), size);
        }
    }
}

/* ---- the call ---- */

static const ln_gradient_way *choose_way(const ln_kernels *kernels, const ln_attention *attention, linnet_type type) {
    const bool bf16 = type == LINNET_BF16 && attention->bf16;
    return bf16 && kernels->attend.pairs.name ? &ln_gradient_bf16 : &ln_gradient_f32;
}

const char *ln_attention_gradient_kernel(const ln_kernels *kernels, const ln_attention *attention, linnet_type type) {
    const bool bf16 = choose_way(kernels, attention, type) == &ln_gradient_bf16;
    return bf16 ? kernels->attend.pairs.name : kernels->attend.name;
}

uint64_t ln_attention_gradient_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention,
                                         const ln_gradient_sequence *sequences, int64_t count) {
    ln_gradient_call call = {.kernels = kernels,
                             .attention = attention,
                             .way = choose_way(kernels, attention, count > 0 ? sequences->type : LINNET_F32),
                             .sequences = sequences,
                             .count = count};
    return sizeof(float) * lay_call(&call, NULL, threads);
}

void ln_attention_gradient(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                           const ln_gradient_sequence *sequences, int64_t count, float *sinks_gradient,
                           void *workspace) {
    ln_gradient_call call = {.kernels = kernels,
                             .attention = attention,
                             .way = choose_way(kernels, attention, count > 0 ? sequences->type : LINNET_F32),
                             .sequences = sequences,
                             .count = count,
                             .sinks_gradient = sinks_gradient};
    lay_call(&call, workspace, ln_team_size(team));
    for (int64_t i = 0; i < count; i++) {
        call.want_query |= sequences[i].query_gradient.data != NULL;
        call.want_key |= sequences[i].key_gradient.data != NULL;
        call.want_value |= sequences[i].value_gradient.data != NULL;
        call.want_query_factors |= sequences[i].query_factors_gradient && call.rank;
        call.want_key_factors |= sequences[i].key_factors_gradient && call.rank;
    }
    const ln_gradient_first *all = &call.first[count];
    ln_parallel(team, all->piece, prepare_piece, &call);
    if (attention->sinks && sinks_gradient) ln_parallel(team, attention->heads, sum_sink, &call);
    ln_parallel(team, all->task, run_task, &call);
    if (call.want_query || call.want_query_factors) ln_parallel(team, all->piece, merge_piece, &call);
}
