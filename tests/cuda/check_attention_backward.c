/* Gradients of attention against float64.
 *
 * Small works: lse and outputs are the oracle's, rounded. Large ones: they are the forward kernel's, and so are the
 * oracle's lse and part. Gradients of sampled rows are compared, all samples of a tensor as one vector. */
#include "oracle_attention_tables.h"

enum { SAMPLES = 24 };
static const double BOUND = 1e-2;

static const attention_work WORKS[] = {
    {"one token", 2, 2, 128, 128, {1}, {1}, .gradient_float32 = true},
    {"63 full", 1, 1, 128, 128, {63}, {63}, .gradient_float32 = true},
    {"130 full", 2, 1, 128, 128, {130}, {130}, .float32 = true},
    {"200 x 300 full", 1, 1, 128, 128, {200}, {300}, .gradient_float32 = true},
    {"150 causal", 2, 2, 128, 128, {150}, {150}, .causal = true, .layout = PADDED},
    {"130 causal, groups", 4, 1, 128, 128, {130}, {130}, .causal = true, .layout = HEAD_MAJOR},
    {"ragged causal", 2, 1, 128, 128, {1, 77, 30, 129}, {1, 77, 30, 129}, .causal = true},
    {"ragged, infinite neighbours", 2, 1, 128, 128, {33, 70, 100, 5}, {120, 90, 70, 133}, .infinite = true},
    {"ragged causal, infinite neighbours",
     1,
     1,
     128,
     128,
     {30, 60, 70, 5},
     {50, 60, 70, 5},
     .causal = true,
     .infinite = true},
    {"queries at the end", 1, 1, 128, 128, {17, 65}, {300, 200}, .causal = true},
    {"more queries than keys", 1, 1, 128, 128, {300, 10}, {100, 20}, .causal = true, .gradient_float32 = true},
    {"no keys", 2, 1, 128, 128, {50, 70}, {0, 100}, .gradient_float32 = true},
    {"no queries", 2, 1, 128, 128, {0, 70}, {150, 100}, .gradient_float32 = true},
    {"window causal", 1, 1, 128, 128, {400}, {400}, .causal = true, .window = 100},
    {"window 1", 1, 1, 128, 128, {150}, {150}, .causal = true, .window = 1},
    {"window both sides", 1, 1, 128, 128, {250, 40}, {250, 80}, .window = 50},
    {"cap", 1, 1, 128, 128, {180}, {180}, .causal = true, .cap = 30, .stretch = 8},
    {"cap and window", 1, 1, 128, 128, {150}, {200}, .causal = true, .window = 90, .cap = 5, .stretch = 3},
    {"sinks", 2, 2, 128, 128, {140}, {140}, .causal = true, .sinks = true},
    {"sinks, no keys", 2, 1, 128, 128, {50, 70}, {0, 100}, .sinks = true, .gradient_float32 = true},
    {"large scores", 1, 1, 128, 128, {200}, {200}, .stretch = 8},
    {"d64 200 causal", 2, 1, 64, 64, {200}, {200}, .causal = true},
    {"d64 ragged full", 2, 1, 64, 64, {129, 65, 1}, {129, 65, 140}, .layout = PADDED, .infinite = true},
    {"d64 window", 1, 1, 64, 64, {400}, {400}, .causal = true, .window = 133},
    {"d64 cap", 1, 1, 64, 64, {177}, {177}, .cap = 20, .stretch = 4},
    {"d96 150 causal", 2, 1, 96, 96, {150}, {150}, .causal = true},
    {"d96 ragged full", 1, 1, 96, 96, {70, 30}, {150, 60}, .layout = HEAD_MAJOR, .infinite = true},
    {"d96 cap", 1, 1, 96, 96, {130}, {130}, .cap = 20, .stretch = 4},
    {"d192 150 causal", 2, 1, 192, 192, {150}, {150}, .causal = true},
    {"d192 cap", 1, 1, 192, 192, {130}, {130}, .cap = 20, .stretch = 4},
    {"d192/128 150 causal", 2, 1, 192, 128, {150}, {150}, .causal = true},
    {"d192/128 ragged full", 1, 1, 192, 128, {70, 30}, {150, 60}, .layout = PADDED, .infinite = true},
    {"d192/128 groups, window", 3, 1, 192, 128, {100, 40}, {150, 200}, .causal = true, .window = 90},
    {"d192/128 cap", 1, 1, 192, 128, {100}, {140}, .cap = 20, .stretch = 4, .gradient_float32 = true},
    {"d192/128 many tasks", 3, 1, 192, 128, {20, 64, 9}, {260, 64, 130}, .sinks = true},
    {"d192/128 2000 causal", 4, 2, 192, 128, {2000}, {2000}, .causal = true},
    {"d256 150 causal", 2, 1, 256, 256, {150}, {150}, .causal = true},
    {"d256 ragged full", 1, 1, 256, 256, {70, 30}, {130, 60}, .infinite = true},
    {"d256 cap window", 1, 1, 256, 256, {130}, {130}, .causal = true, .window = 70, .cap = 20, .stretch = 4},
    {"f16 130 causal", 2, 1, 128, 128, {130}, {130}, .causal = true, .half = true},
    {"f16 d96 cap, float32",
     1,
     1,
     96,
     96,
     {130},
     {130},
     .cap = 20,
     .stretch = 4,
     .gradient_float32 = true,
     .half = true},
    {"f16 d64 ragged full", 2, 1, 64, 64, {129, 65, 1}, {129, 65, 140}, .half = true, .infinite = true},
    {"f16 d192/128 causal", 1, 1, 192, 128, {100}, {100}, .causal = true, .half = true},
    {"f16 d256 full", 1, 1, 256, 256, {70}, {130}, .float32 = true, .half = true},
    {"factors causal", 2, 1, 128, 128, {130}, {130}, .causal = true, .rank = 5},
    {"factors ragged", 2, 2, 64, 64, {70, 33}, {40, 133}, .rank = 21, .gradient_float32 = true, .infinite = true},
    {"factors d96 f16", 2, 1, 96, 96, {100}, {150}, .causal = true, .rank = 3, .half = true},
    {"factors d192", 1, 1, 192, 192, {100}, {100}, .rank = 20, .window = 50, .layout = PADDED},
    {"factors of 40, sinks", 1, 1, 128, 128, {140}, {70}, .rank = 40, .sinks = true},
    {"factors, no keys", 2, 1, 128, 128, {20, 70}, {0, 100}, .rank = 2},
    {"factors, no queries", 2, 1, 128, 128, {0, 30}, {50, 30}, .rank = 2},
    {"lists 128 x 128", 1, 1, 128, 128, {300}, {300}, .causal = true, .query_tile = 128, .key_tile = 128},
    {"lists 128 x 64 per head", 2, 2, 64, 64, {150}, {300}, .query_tile = 128, .key_tile = 64, .per_head = true},
    {"lists 64 x 64", 2, 1, 128, 128, {200}, {200}, .causal = true, .query_tile = 64, .key_tile = 64, .per_head = true},
    {"lists 64 x 192 full", 1, 1, 64, 64, {250}, {370}, .query_tile = 64, .key_tile = 192, .sinks = true},
    {"lists 192 x 64, window", 1, 1, 96, 96, {240}, {240}, .window = 70, .query_tile = 192, .key_tile = 64},
    {"lists d192/128", 2, 1, 192, 128, {180}, {180}, .causal = true, .query_tile = 64, .key_tile = 64},
    {"lists d256 f16", 1, 1, 256, 256, {100}, {200}, .query_tile = 128, .key_tile = 64, .half = true},
    {"lists, factors, groups",
     4,
     1,
     64,
     64,
     {100},
     {230},
     .query_tile = 64,
     .key_tile = 64,
     .per_head = true,
     .rank = 4},
    {"lists of 2000", 4, 2, 128, 128, {2000}, {3000}, .query_tile = 64, .key_tile = 64, .per_head = true},
    {"lists of 3000 causal", 4, 4, 64, 64, {3000}, {3000}, .causal = true, .query_tile = 64, .key_tile = 128},
    {"factors of 2000", 4, 2, 128, 128, {2000}, {2000}, .causal = true, .rank = 16},
    {"many tiles full", 3, 3, 128, 128, {200}, {2500}, .causal = false},
    {"1000 causal", 4, 2, 128, 128, {1000}, {1000}, .causal = true},
    {"3001 full", 3, 3, 128, 128, {3001}, {3001}, .gradient_float32 = true},
    {"4096 causal", 6, 6, 128, 128, {4096}, {4096}, .causal = true},
    {"18000 full", 1, 1, 128, 128, {1000}, {18000}, .layout = PADDED},
    {"d64 2000 causal", 4, 2, 64, 64, {2000}, {2000}, .causal = true},
    {"d256 1500 full", 2, 1, 256, 256, {1500}, {1500}, .causal = false},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

/* ---- a case ---- */

typedef struct problem {
    const attention_work *of;
    attention_case given;
    ln_cuda_backward backward;
    tensor output_gradient, query_gradient, key_gradient, value_gradient, sink_gradient;
    tensor query_factors_gradient, key_factors_gradient;
    double *lse, *part; /* of the oracle, [token][head] */
    const ln_cuda_backward_plan *plan;
    void *workspace;
} problem;

static double multiply_adds(const attention_work *w) {
    return attention_pairs(w) * (3 * w->key_size + 2 * w->value_size);
}

static int64_t random_below(int64_t bound) {
    return (int64_t)(random_next() >> 1) % bound;
}

/* After the case is described or open. */
static void describe_backward(problem *p, const attention_work *w) {
    p->of = w;
    p->backward = (ln_cuda_backward){p->given.attention, w->gradient_float32};
}

static void problem_open(problem *p, const attention_work *w) {
    memset(p, 0, sizeof *p);
    attention_case_open(&p->given, w);
    describe_backward(p, w);
    attention_case *c = &p->given;
    const int64_t queries = c->query.tokens, keys = c->key.tokens;
    const element input = w->half ? ELEMENT_F16 : ELEMENT_BF16,
                  gradient = w->gradient_float32 ? ELEMENT_FLOAT32 : input;
    p->output_gradient = tensor_random(queries, w->heads, w->value_size, w->layout, input, 1);
    p->query_gradient = tensor_open(queries, w->heads, w->key_size, w->layout, gradient);
    p->key_gradient = tensor_open(keys, w->key_value_heads, w->key_size, w->layout, gradient);
    p->value_gradient = tensor_open(keys, w->key_value_heads, w->value_size, w->layout, gradient);
    p->sink_gradient = tensor_open(1, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    p->query_factors_gradient = tensor_open(queries, w->heads, w->rank, PACKED, ELEMENT_FLOAT32);
    p->key_factors_gradient = tensor_open(keys, w->key_value_heads, w->rank, PACKED, ELEMENT_FLOAT32);
    p->lse = malloc((size_t)(queries * w->heads + 1) * sizeof *p->lse);
    p->part = malloc((size_t)(queries * w->heads + 1) * sizeof *p->part);
    if (!w->infinite) return;
    attention_infinite_rows(&c->query, c->query_offsets, c->attention.sequences);
    attention_infinite_rows(&p->output_gradient, c->query_offsets, c->attention.sequences);
}

static void problem_close(problem *p) {
    tensor *all[] = {&p->output_gradient, &p->query_gradient,         &p->key_gradient,        &p->value_gradient,
                     &p->sink_gradient,   &p->query_factors_gradient, &p->key_factors_gradient};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_close(all[i]);
    attention_case_close(&p->given);
    free(p->lse);
    free(p->part);
}

static ln_cuda_code run(void *context, void *stream) {
    const problem *p = context;
    const attention_case *c = &p->given;
    const ln_cuda_backward_tensors tensors = {.query = c->query.device,
                                              .key = c->key.device,
                                              .value = c->value.device,
                                              .output_gradient = p->output_gradient.device,
                                              .output = c->output.device,
                                              .log_sum_exp = c->log_sum_exp.device.data,
                                              .sinks = p->of->sinks ? c->sinks.device.data : NULL,
                                              .query_gradient = p->query_gradient.device,
                                              .key_gradient = p->key_gradient.device,
                                              .value_gradient = p->value_gradient.device,
                                              .sink_gradient = p->of->sinks ? p->sink_gradient.device.data : NULL,
                                              .query_factors = c->query_factors.device.data,
                                              .key_factors = c->key_factors.device.data,
                                              .query_factors_gradient = p->query_factors_gradient.device.data,
                                              .key_factors_gradient = p->key_factors_gradient.device.data};
    return ln_cuda_backward_run(&p->backward, p->plan, &tensors, p->workspace, stream);
}

/* ---- float64 ---- */

/* lse and output of query `row` of the sequence, and its part. */
static void oracle_forward(problem *p, int sequence, int64_t row, int64_t head) {
    const attention_work *w = p->of;
    attention_case *c = &p->given;
    const int64_t token = c->query_offsets[sequence] + row;
    double output[256], part = 0;
    const double lse = attention_row(c, sequence, row, head, output);
    for (int i = 0; i < w->value_size; i++) {
        tensor_set(&c->output, token, head, i, output[i]);
        part += output[i] * tensor_at(&p->output_gradient, token, head, i);
    }
    p->lse[token * w->heads + head] = lse;
    p->part[token * w->heads + head] = part;
    tensor_set(&c->log_sum_exp, token, 0, head, lse);
}

/* The forward kernel's outputs and sums, which the oracle takes as they are. */
static void device_forward(problem *p, const ln_cuda_device *device) {
    attention_case *c = &p->given;
    ln_cuda_attention_plan plan;
    if (ln_cuda_attention_plan_make(&c->attention, device, NULL, &plan) != LN_CUDA_OK) {
        EXPECT(false, "%s: forward: %s", p->of->name, plan.why);
        return;
    }
    c->plan = &plan;
    attention_workspace(c, &plan, &c->workspace);
    run_now(attention_forward, c, p->of->name, plan.kernel->name);
    tensor_fetch(&c->output);
    tensor_fetch(&c->log_sum_exp);
    device_close(c->workspace);
}

static void read_forward(problem *p) {
    const attention_work *w = p->of;
    attention_case *c = &p->given;
    for (int64_t token = 0; token < c->query.tokens; token++)
        for (int64_t head = 0; head < w->heads; head++) {
            p->part[token * w->heads + head] = attention_dot(&c->output, token, head, &p->output_gradient, token, head);
            p->lse[token * w->heads + head] = tensor_at(&c->log_sum_exp, token, 0, head);
        }
}

static void prepare_forward(problem *p, const ln_cuda_device *device) {
    const attention_work *w = p->of;
    if (attention_pairs(w) * w->key_size > 2e8) {
        device_forward(p, device);
        read_forward(p);
        return;
    }
    for (int s = 0; s < attention_sequences(w); s++)
        for (int64_t row = 0; row < w->queries[s]; row++)
            for (int64_t head = 0; head < w->heads; head++) oracle_forward(p, s, row, head);
    tensor_send(&p->given.output);
    tensor_send(&p->given.log_sum_exp);
}

/* The weight of a pair, the gradient of its score, and *steep: that of scale * query . key, by the scale. */
static double pair_slope(const problem *p, int64_t query, int64_t key, int64_t head, double *weight, double *steep) {
    const attention_work *w = p->of;
    const attention_case *c = &p->given;
    const int64_t shared = head / (w->heads / w->key_value_heads), at = query * w->heads + head;
    double of_cap;
    *weight = exp(attention_score(c, query, key, head, &of_cap) - p->lse[at]);
    const double change = attention_dot(&p->output_gradient, query, head, &c->value, key, shared),
                 slope = *weight * (change - p->part[at]);
    *steep = slope * of_cap * (double)c->attention.scale;
    return slope;
}
static void add_row(double *to, const tensor *t, int64_t token, int64_t head, double by) {
    for (int64_t i = 0; i < t->size; i++) to[i] += by * tensor_at(t, token, head, i);
}

enum { QUERY, KEY, VALUE, QUERY_FACTORS, KEY_FACTORS, SINK, PARTS };
static const char *const PART[PARTS] = {"query", "key", "value", "query factors", "key factors", "sink"};
enum { COLUMNS_MOST = 256 };

static void oracle_query(const problem *p, int sequence, int64_t row, int64_t head, double (*gradient)[COLUMNS_MOST]) {
    const attention_work *w = p->of;
    const attention_case *c = &p->given;
    const int64_t shared = head / (w->heads / w->key_value_heads);
    memset(gradient, 0, PARTS * sizeof *gradient);
    for (int64_t j = 0; j < w->keys[sequence]; j++) {
        double weight, steep;
        if (!attention_sees(c, sequence, row, head, j)) continue;
        const int64_t key = c->key_offsets[sequence] + j;
        const double slope = pair_slope(p, c->query_offsets[sequence] + row, key, head, &weight, &steep);
        add_row(gradient[QUERY], &c->key, key, shared, steep);
        add_row(gradient[QUERY_FACTORS], &c->key_factors, key, shared, slope);
    }
}

static void oracle_key(const problem *p, int sequence, int64_t row, int64_t shared, double (*gradient)[COLUMNS_MOST]) {
    const attention_work *w = p->of;
    const attention_case *c = &p->given;
    const int64_t group = w->heads / w->key_value_heads;
    memset(gradient, 0, PARTS * sizeof *gradient);
    for (int64_t head = shared * group; head < (shared + 1) * group; head++)
        for (int64_t i = 0; i < w->queries[sequence]; i++) {
            double weight, steep;
            if (!attention_sees(c, sequence, i, head, row)) continue;
            const int64_t query = c->query_offsets[sequence] + i;
            const double slope = pair_slope(p, query, c->key_offsets[sequence] + row, head, &weight, &steep);
            add_row(gradient[KEY], &c->query, query, head, steep);
            add_row(gradient[KEY_FACTORS], &c->query_factors, query, head, slope);
            add_row(gradient[VALUE], &p->output_gradient, query, head, weight);
        }
}

/* ---- comparison ---- */

/* Wanted gradients of sampled rows, and where to find what was got. */
typedef struct samples {
    double *want, least; /* least: what errors are at least compared with */
    int64_t *token, *head;
    int64_t count, size;
} samples;

static void samples_add(samples *s, int64_t token, int64_t head, const double *row) {
    s->want = realloc(s->want, (size_t)((s->count + 1) * s->size) * sizeof *s->want);
    s->token = realloc(s->token, (size_t)(s->count + 1) * sizeof *s->token);
    s->head = realloc(s->head, (size_t)(s->count + 1) * sizeof *s->head);
    memcpy(s->want + s->count * s->size, row, (size_t)s->size * sizeof *row);
    s->token[s->count] = token;
    s->head[s->count++] = head;
}

static double samples_error(const samples *s, const tensor *got) {
    double *all = malloc((size_t)(s->count * s->size + 1) * sizeof *all), size = 0;
    for (int64_t i = 0; i < s->count; i++)
        for (int64_t e = 0; e < s->size; e++) {
            all[i * s->size + e] = tensor_at(got, s->token[i], s->head[i], e);
            size += s->want[i * s->size + e] * s->want[i * s->size + e];
        }
    double error = relative_error(all, s->want, s->count * s->size);
    if (s->least > 0) error *= fmin(1, sqrt(size) / s->least);
    if (size < 1e-20) { /* nothing but zeros is wanted */
        error = 0;
        for (int64_t i = 0; i < s->count * s->size; i++) error = fmax(error, fabs(all[i]) <= 2e-2 ? 0 : INFINITY);
    }
    free(all);
    return error;
}

static int64_t sample_row(int64_t i, int64_t rows) {
    return rows <= SAMPLES ? i : i == 0 ? 0 : i == 1 ? rows - 1 : random_below(rows);
}

static void sample_sinks(samples *sinks, const problem *p) {
    const attention_work *w = p->of;
    double row[COLUMNS_MOST] = {0};
    for (int64_t head = 0; head < w->heads; head++)
        for (int64_t token = 0; token < p->given.query.tokens; token++) {
            const int64_t at = token * w->heads + head;
            const double one = exp(tensor_at(&p->given.sinks, 0, 0, head) - p->lse[at]) * p->part[at];
            row[head] -= one;
            sinks->least += one * one; /* terms of both signs may cancel */
        }
    sinks->least = sqrt(sinks->least);
    samples_add(sinks, 0, 0, row);
}

static void samples_open(samples *parts, const problem *p) {
    const attention_work *w = p->of;
    const attention_case *c = &p->given;
    const int64_t sizes[PARTS] = {w->key_size, w->key_size, w->value_size, w->rank, w->rank, w->heads};
    double row[PARTS][COLUMNS_MOST];
    memset(parts, 0, PARTS * sizeof *parts);
    for (int i = 0; i < PARTS; i++) parts[i].size = sizes[i];
    for (int s = 0; s < attention_sequences(w); s++) {
        if (w->infinite && s % 2) continue;
        for (int64_t i = 0; i < w->queries[s] && i < SAMPLES; i++) {
            const int64_t at = sample_row(i, w->queries[s]), head = random_below(w->heads);
            oracle_query(p, s, at, head, row);
            samples_add(&parts[QUERY], c->query_offsets[s] + at, head, row[QUERY]);
            samples_add(&parts[QUERY_FACTORS], c->query_offsets[s] + at, head, row[QUERY_FACTORS]);
        }
        for (int64_t i = 0; i < w->keys[s] && i < SAMPLES; i++) {
            const int64_t at = sample_row(i, w->keys[s]), head = random_below(w->key_value_heads);
            oracle_key(p, s, at, head, row);
            const int of_keys[] = {KEY, VALUE, KEY_FACTORS};
            for (int k = 0; k < 3; k++) samples_add(&parts[of_keys[k]], c->key_offsets[s] + at, head, row[of_keys[k]]);
        }
    }
    if (w->sinks) sample_sinks(&parts[SINK], p);
}

static void samples_close(samples *parts) {
    for (int i = 0; i < PARTS; i++) {
        free(parts[i].want);
        free(parts[i].token);
        free(parts[i].head);
    }
}

/* ---- runs ---- */

static bool workspace_open(const problem *p, const ln_cuda_backward_plan *plan, void **workspace) {
    void *tables = malloc((size_t)plan->tables + 1);
    ln_cuda_backward_tables_make(&p->backward, plan, tables);
    *workspace = device_open(plan->workspace);
    const ln_cuda_code code = ln_cuda_backward_prepare(plan, tables, *workspace, NULL);
    free(tables);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static bool part_wanted(const attention_work *w, int part) {
    return part == SINK ? w->sinks : part == QUERY_FACTORS || part == KEY_FACTORS ? w->rank > 0 : true;
}

static void check_kernel(problem *p, const ln_cuda_device *device, const samples *parts,
                         const ln_cuda_backward_kernel *kernel) {
    const char *name = p->of->name;
    tensor *gradients[PARTS] = {&p->query_gradient,         &p->key_gradient,         &p->value_gradient,
                                &p->query_factors_gradient, &p->key_factors_gradient, &p->sink_gradient};
    ln_cuda_backward_plan plan;
    if (ln_cuda_backward_plan_make(&p->backward, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!workspace_open(p, &plan, &p->workspace)) return;
    p->plan = &plan;
    for (int i = 0; i < PARTS; i++) tensor_poison(gradients[i]);
    run_now(run, p, name, kernel->name);
    printf("  %-34s %-28s", name, kernel->name);
    for (int i = 0; i < PARTS; i++) {
        if (!part_wanted(p->of, i)) continue;
        tensor_fetch(gradients[i]);
        tensor_expect_written(gradients[i], name, kernel->name);
        const double error = samples_error(&parts[i], gradients[i]);
        EXPECT(error < BOUND, "%s, %s: relative error of the %s gradient %.2e", name, kernel->name, PART[i], error);
        printf(" %.1e", error);
    }
    printf("\n");
    cudaGraphExec_t graph = run_capture(run, p, name, kernel->name);
    for (int i = 0; i < PARTS; i++) tensor_poison(gradients[i]);
    run_graph(graph, name, kernel->name);
    for (int i = 0; i < PARTS; i++)
        if (part_wanted(p->of, i)) tensor_expect_same(gradients[i], name, kernel->name, PART[i]);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        const attention_work *w = &WORKS[i];
        if (!work_wanted(options, w->name, multiply_adds(w))) continue;
        problem p;
        samples parts[PARTS];
        problem_open(&p, w);
        prepare_forward(&p, device);
        samples_open(parts, &p);
        for (int row = 0; ln_cuda_backward_kernels(row)->start; row++)
            if (kernel_wanted(options, ln_cuda_backward_kernels(row)->name))
                check_kernel(&p, device, parts, ln_cuda_backward_kernels(row));
        samples_close(parts);
        problem_close(&p);
        fflush(stdout);
    }
}

/* ---- without a GPU ---- */

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20},
                         small = {0, 9, 0, 5, 232448, 50 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_backward backward = {.attention = {.heads = 8,
                                               .key_value_heads = 2,
                                               .key_size = 128,
                                               .value_size = 128,
                                               .sequences = 1,
                                               .query_offsets = offsets,
                                               .key_offsets = offsets,
                                               .scale = 0.1f,
                                               .causal = true}};
    ln_cuda_backward_plan plan;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 9,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_backward_plan_make(&backward, &ampere, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 8,
           "plan: %s", plan.why);
    const ln_cuda_backward_tensors none = {.sink_gradient = NULL};
    EXPECT(ln_cuda_backward_run(&backward, &plan, &none, NULL, NULL) == LN_CUDA_ARGUMENT, "no workspace");
    EXPECT(ln_cuda_backward_run(&backward, &plan, &none, (void *)256, NULL) == LN_CUDA_ARGUMENT, "no tensors");
    backward.attention.rank = 50;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "278 columns: %s", plan.why);
    EXPECT(ln_cuda_backward_run(&backward, &plan, &none, (void *)256, NULL) == LN_CUDA_UNSUPPORTED, "no kernel");
    backward.attention.rank = 4;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_OK && plan.packed_size == 192,
           "factors: %s", plan.why);
    backward.attention.soft_cap = 5;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED &&
               strstr(plan.why, "soft_cap"),
           "factors and a cap: %s", plan.why);
    backward.attention.soft_cap = 0;
    backward.attention.rank = 0;
    backward.attention.query_tile = 128;
    backward.attention.key_tile = 96;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && strstr(plan.why, "64"),
           "tiles of 96: %s", plan.why);
    backward.attention.query_tile = 0;
    backward.attention.key_size = 40;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "size 40: %s", plan.why);
    backward.attention.key_size = 128;
    backward.attention.heads = 7;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "7 heads: %s", plan.why);
    backward.attention.heads = 8;
    backward.attention.key_offsets = wrong;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    for (int row = 0; ln_cuda_backward_kernels(row)->start; row++) {
        const ln_cuda_backward_kernel *kernel = ln_cuda_backward_kernels(row);
        EXPECT(kernel->shared_bytes <= (kernel->major == 9 ? 232448 : 101376), "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
        for (int i = 0; i < WORK_COUNT; i++) {
            if (attention_pairs(&WORKS[i]) > 2e6) continue;
            backward_tables_check(&WORKS[i], kernel, kernel->major == 9 ? &hopper : &ampere);
            if (kernel->major == 9) backward_tables_check(&WORKS[i], kernel, &small);
        }
    }
}

/* ---- speed ---- */

static void bench_work(const attention_work *w, const ln_cuda_device *device, const check_options *options) {
    problem p[KERNELS_MOST];
    void *contexts[KERNELS_MOST];
    ln_cuda_backward_plan plan[KERNELS_MOST];
    timing times[KERNELS_MOST];
    int kernels = 0;
    problem_open(&p[0], w);
    device_forward(&p[0], device);
    for (int row = 0; ln_cuda_backward_kernels(row)->start && kernels < KERNELS_MOST; row++) {
        const ln_cuda_backward_kernel *kernel = ln_cuda_backward_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (ln_cuda_backward_plan_make(&p[0].backward, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
        if (plan[kernels].workspace > INT64_C(8) << 30) continue;
        p[kernels] = p[0];
        p[kernels].plan = &plan[kernels];
        contexts[kernels] = &p[kernels];
        kernels += workspace_open(&p[0], &plan[kernels], &p[kernels].workspace);
    }
    time_in_turns(run, contexts, kernels, options->rounds, times);
    const double flops = 2 * multiply_adds(w);
    for (int k = 0; k < kernels; k++)
        printf("%-30s %-28s %8.3f ms %7.1f TFLOP/s (best %.1f)\n", w->name, plan[k].kernel->name, times[k].median,
               flops / times[k].median * 1e-9, flops / times[k].least * 1e-9);
    fflush(stdout);
    for (int k = 0; k < kernels; k++) device_close(p[k].workspace);
    problem_close(&p[0]);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < ATTENTION_BENCH_COUNT; i++)
        if (strstr(ATTENTION_BENCH[i].name, options->works)) bench_work(&ATTENTION_BENCH[i], device, options);
}

const suite cuda_suite_attention_backward = {"attention_backward", WORK_COUNT, check_plans, check, bench};
