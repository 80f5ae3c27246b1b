/* Gradients of attention against float64.
 *
 * Small works: lse and outputs are the oracle's, rounded. Large ones: they are the forward kernel's, and so are the
 * oracle's lse and part. Gradients of sampled rows are compared, all samples of a tensor as one vector. */
#include "check.h"

#include "kernel/cuda/attention_backward_cuda.h"

enum { SEQUENCES = 8, SAMPLES = 24, KERNELS_MOST = 64 };
static const double BOUND = 1e-2;

typedef struct work {
    const char *name;
    int heads, key_value_heads, key_size, value_size;
    int queries[SEQUENCES], keys[SEQUENCES]; /* ended by a query and key count of 0 */
    bool causal;
    int window;
    float cap, stretch; /* stretch: scores are larger by it; 0: 1 */
    int layout;
    bool float32, output_float32, sinks, half;
    bool infinite; /* inputs of odd sequences are infinite */
} work;

static const work WORKS[] = {
    {"one token", 2, 2, 128, 128, {1}, {1}, .float32 = true},
    {"63 full", 1, 1, 128, 128, {63}, {63}, .float32 = true},
    {"130 full", 2, 1, 128, 128, {130}, {130}, .output_float32 = true},
    {"200 x 300 full", 1, 1, 128, 128, {200}, {300}, .float32 = true},
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
    {"more queries than keys", 1, 1, 128, 128, {300, 10}, {100, 20}, .causal = true, .float32 = true},
    {"no keys", 2, 1, 128, 128, {50, 70}, {0, 100}, .float32 = true},
    {"no queries", 2, 1, 128, 128, {0, 70}, {150, 100}, .float32 = true},
    {"window causal", 1, 1, 128, 128, {400}, {400}, .causal = true, .window = 100},
    {"window 1", 1, 1, 128, 128, {150}, {150}, .causal = true, .window = 1},
    {"window both sides", 1, 1, 128, 128, {250, 40}, {250, 80}, .window = 50},
    {"cap", 1, 1, 128, 128, {180}, {180}, .causal = true, .cap = 30, .stretch = 8},
    {"cap and window", 1, 1, 128, 128, {150}, {200}, .causal = true, .window = 90, .cap = 5, .stretch = 3},
    {"sinks", 2, 2, 128, 128, {140}, {140}, .causal = true, .sinks = true},
    {"sinks, no keys", 2, 1, 128, 128, {50, 70}, {0, 100}, .sinks = true, .float32 = true},
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
    {"d256 150 causal", 2, 1, 256, 256, {150}, {150}, .causal = true},
    {"d256 ragged full", 1, 1, 256, 256, {70, 30}, {130, 60}, .infinite = true},
    {"d256 cap window", 1, 1, 256, 256, {130}, {130}, .causal = true, .window = 70, .cap = 20, .stretch = 4},
    {"f16 130 causal", 2, 1, 128, 128, {130}, {130}, .causal = true, .half = true},
    {"f16 d96 cap, float32", 1, 1, 96, 96, {130}, {130}, .cap = 20, .stretch = 4, .float32 = true, .half = true},
    {"f16 d64 ragged full", 2, 1, 64, 64, {129, 65, 1}, {129, 65, 140}, .half = true, .infinite = true},
    {"f16 d192/128 causal", 1, 1, 192, 128, {100}, {100}, .causal = true, .half = true},
    {"f16 d256 full", 1, 1, 256, 256, {70}, {130}, .output_float32 = true, .half = true},
    {"many tiles full", 3, 3, 128, 128, {200}, {2500}, .causal = false},
    {"1000 causal", 4, 2, 128, 128, {1000}, {1000}, .causal = true},
    {"3001 full", 3, 3, 128, 128, {3001}, {3001}, .float32 = true},
    {"4096 causal", 6, 6, 128, 128, {4096}, {4096}, .causal = true},
    {"18000 full", 1, 1, 128, 128, {1000}, {18000}, .layout = PADDED},
    {"d64 2000 causal", 4, 2, 64, 64, {2000}, {2000}, .causal = true},
    {"d256 1500 full", 2, 1, 256, 256, {1500}, {1500}, .causal = false},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static const work BENCH[] = {
    {"d128 full 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = false},
    {"d128 causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true},
    {"d128 causal 8k x 2", 16, 16, 128, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d128 causal 2k x 8",
     16,
     16,
     128,
     128,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = true},
    {"d128 full 2k x 8",
     16,
     16,
     128,
     128,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = false},
    {"d128 causal 16k, 64/8 heads", 64, 8, 128, 128, {16384}, {16384}, .causal = true},
    {"d64 full 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = false},
    {"d64 causal 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = true},
    {"d96 full 16k", 16, 16, 96, 96, {16384}, {16384}, .causal = false},
    {"d192/128 causal 8k x 2", 16, 16, 192, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d256 full 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = false},
    {"d256 causal 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = true},
    {"d128 window 1024 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .window = 1024},
    {"d128 cap causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .cap = 30},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0] };

/* ---- a case ---- */

typedef struct problem {
    const work *of;
    int64_t query_offsets[SEQUENCES + 1], key_offsets[SEQUENCES + 1];
    ln_cuda_backward backward;
    tensor query, key, value, output, output_gradient, log_sum_exp, sinks;
    tensor query_gradient, key_gradient, value_gradient, sink_gradient;
    double *lse, *part; /* of the oracle, [token][head] */
    const ln_cuda_backward_plan *plan;
    void *workspace;
} problem;

static int sequences_of(const work *w) {
    int count = 0;
    while (count < SEQUENCES && (w->queries[count] || w->keys[count])) count++;
    return count;
}

static double pairs_of(const work *w) {
    double pairs = 0;
    for (int s = 0; s < sequences_of(w); s++) {
        const double n = w->queries[s], m = w->keys[s];
        pairs += w->window && w->causal && w->window < n ? w->window * n - 0.5 * w->window * w->window
                 : w->causal                             ? n * m / 2
                                                         : n * m;
    }
    return pairs * w->heads;
}

static double multiply_adds(const work *w) {
    return pairs_of(w) * (3 * w->key_size + 2 * w->value_size);
}

static bool seen(const work *w, int64_t position, int64_t key) {
    return (!w->causal || key <= position) &&
           (!w->window || (position - key < w->window && (w->causal || key - position < w->window)));
}

static int64_t random_below(int64_t bound) {
    return (int64_t)(random_next() >> 1) % bound;
}

static void infinite_rows(tensor *t, const int64_t *offsets, int sequences) {
    for (int s = 1; s < sequences; s += 2)
        for (int64_t token = offsets[s]; token < offsets[s + 1]; token++)
            for (int64_t head = 0; head < t->heads; head++) tensor_set(t, token, head, 0, INFINITY);
    tensor_send(t);
}

static ln_cuda_backward backward_of(const problem *p) {
    const work *w = p->of;
    return (ln_cuda_backward){.attention = {.heads = w->heads,
                                            .key_value_heads = w->key_value_heads,
                                            .key_size = w->key_size,
                                            .value_size = w->value_size,
                                            .sequences = sequences_of(w),
                                            .query_offsets = p->query_offsets,
                                            .key_offsets = p->key_offsets,
                                            .scale = 1 / sqrtf((float)w->key_size),
                                            .soft_cap = w->cap,
                                            .causal = w->causal,
                                            .window = w->window,
                                            .output_float32 = w->output_float32,
                                            .half = w->half},
                              .gradient_float32 = w->float32};
}

static void offsets_of(problem *p) {
    const int sequences = sequences_of(p->of);
    for (int s = 0; s < sequences; s++) {
        p->query_offsets[s + 1] = p->query_offsets[s] + p->of->queries[s];
        p->key_offsets[s + 1] = p->key_offsets[s] + p->of->keys[s];
    }
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    offsets_of(p);
    p->backward = backward_of(p);
    const int sequences = sequences_of(w);
    const int64_t queries = p->query_offsets[sequences], keys = p->key_offsets[sequences];
    const element input = w->half ? ELEMENT_F16 : ELEMENT_BF16, gradient = w->float32 ? ELEMENT_FLOAT32 : input,
                  output = w->output_float32 ? ELEMENT_FLOAT32 : input;
    p->query = tensor_random(queries, w->heads, w->key_size, w->layout, input, w->stretch > 0 ? w->stretch : 1);
    p->key = tensor_random(keys, w->key_value_heads, w->key_size, w->layout, input, 1);
    p->value = tensor_random(keys, w->key_value_heads, w->value_size, w->layout, input, 1);
    p->output_gradient = tensor_random(queries, w->heads, w->value_size, w->layout, input, 1);
    p->sinks = tensor_random(1, 1, w->heads, PACKED, ELEMENT_FLOAT32, 2);
    p->output = tensor_open(queries, w->heads, w->value_size, w->layout, output);
    p->log_sum_exp = tensor_open(queries, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    p->query_gradient = tensor_open(queries, w->heads, w->key_size, w->layout, gradient);
    p->key_gradient = tensor_open(keys, w->key_value_heads, w->key_size, w->layout, gradient);
    p->value_gradient = tensor_open(keys, w->key_value_heads, w->value_size, w->layout, gradient);
    p->sink_gradient = tensor_open(1, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    p->lse = malloc((size_t)(queries * w->heads + 1) * sizeof *p->lse);
    p->part = malloc((size_t)(queries * w->heads + 1) * sizeof *p->part);
    if (w->infinite) {
        infinite_rows(&p->query, p->query_offsets, sequences);
        infinite_rows(&p->key, p->key_offsets, sequences);
        infinite_rows(&p->value, p->key_offsets, sequences);
        infinite_rows(&p->output_gradient, p->query_offsets, sequences);
    }
}

static void problem_close(problem *p) {
    tensor *all[] = {&p->query,        &p->key,   &p->value,          &p->output,       &p->output_gradient,
                     &p->log_sum_exp,  &p->sinks, &p->query_gradient, &p->key_gradient, &p->value_gradient,
                     &p->sink_gradient};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_close(all[i]);
    free(p->lse);
    free(p->part);
}

static ln_cuda_code run(void *context, void *stream) {
    const problem *p = context;
    const ln_cuda_backward_tensors tensors = {.query = p->query.device,
                                              .key = p->key.device,
                                              .value = p->value.device,
                                              .output_gradient = p->output_gradient.device,
                                              .output = p->output.device,
                                              .log_sum_exp = p->log_sum_exp.device.data,
                                              .sinks = p->of->sinks ? p->sinks.device.data : NULL,
                                              .query_gradient = p->query_gradient.device,
                                              .key_gradient = p->key_gradient.device,
                                              .value_gradient = p->value_gradient.device,
                                              .sink_gradient = p->of->sinks ? p->sink_gradient.device.data : NULL};
    return ln_cuda_backward_run(&p->backward, p->plan, &tensors, p->workspace, stream);
}

/* ---- float64 ---- */

static const uint16_t *row_of(const tensor *t, int64_t token, int64_t head) {
    return (const uint16_t *)t->host + tensor_place(t, token, head);
}
static double number(const problem *p, uint16_t x) {
    return (double)(p->of->half ? of_f16(x) : of_bf16(x));
}
static double dot(const problem *p, const uint16_t *one, const uint16_t *other, int size) {
    double sum = 0;
    for (int i = 0; i < size; i++) sum += number(p, one[i]) * number(p, other[i]);
    return sum;
}
/* The score, and its derivative by scale * query . key. */
static double score_of(const problem *p, const uint16_t *query, const uint16_t *key, double *slope) {
    const double x = dot(p, query, key, p->of->key_size) * (double)p->backward.attention.scale,
                 cap = (double)p->of->cap;
    const double t = cap > 0 ? tanh(x / cap) : 0;
    *slope = 1 - t * t;
    return cap > 0 ? cap * t : x;
}

/* lse and output of query `row` of the sequence, and its part. */
static void oracle_forward(problem *p, int sequence, int64_t row, int64_t head) {
    const work *w = p->of;
    const int64_t m = w->keys[sequence], position = row + m - w->queries[sequence];
    const int64_t shared = head / (w->heads / w->key_value_heads), token = p->query_offsets[sequence] + row;
    double *score = malloc((size_t)(m + 1) * sizeof *score), *output = calloc((size_t)w->value_size, sizeof *output);
    double most = w->sinks ? tensor_at(&p->sinks, 0, 0, head) : -INFINITY, slope, sum, part = 0;
    for (int64_t j = 0; j < m; j++) {
        score[j] = -INFINITY;
        if (seen(w, position, j))
            score[j] = score_of(p, row_of(&p->query, token, head),
                                row_of(&p->key, p->key_offsets[sequence] + j, shared), &slope);
        most = fmax(most, score[j]);
    }
    sum = w->sinks ? exp(tensor_at(&p->sinks, 0, 0, head) - most) : 0;
    for (int64_t j = 0; j < m; j++) {
        if (score[j] == -INFINITY) continue;
        const uint16_t *value = row_of(&p->value, p->key_offsets[sequence] + j, shared);
        const double weight = exp(score[j] - most);
        sum += weight;
        for (int i = 0; i < w->value_size; i++) output[i] += weight * number(p, value[i]);
    }
    const uint16_t *gradient = row_of(&p->output_gradient, token, head);
    for (int i = 0; i < w->value_size; i++) {
        if (sum > 0) output[i] /= sum;
        tensor_set(&p->output, token, head, i, output[i]);
        part += output[i] * number(p, gradient[i]);
    }
    p->lse[token * w->heads + head] = sum > 0 ? most + log(sum) : -INFINITY;
    p->part[token * w->heads + head] = part;
    tensor_set(&p->log_sum_exp, token, 0, head, p->lse[token * w->heads + head]);
    free(score);
    free(output);
}

/* The forward kernel's outputs and sums, which the oracle takes as they are. */
static void device_forward(problem *p, const ln_cuda_device *device) {
    const work *w = p->of;
    const ln_cuda_attention *attention = &p->backward.attention;
    ln_cuda_attention_plan plan;
    if (ln_cuda_attention_plan_make(attention, device, NULL, &plan) != LN_CUDA_OK) {
        EXPECT(false, "%s: forward: %s", w->name, plan.why);
        return;
    }
    ln_cuda_task *tasks = malloc((size_t)(plan.tasks + 1) * sizeof *tasks);
    void *workspace = device_open(plan.workspace);
    const ln_cuda_attention_tensors tensors = {.query = p->query.device,
                                               .key = p->key.device,
                                               .value = p->value.device,
                                               .output = p->output.device,
                                               .log_sum_exp = p->log_sum_exp.device.data};
    ln_cuda_attention_tasks(attention, &plan, tasks);
    ln_cuda_code code = ln_cuda_attention_prepare(&plan, tasks, workspace, NULL);
    if (!code) code = ln_cuda_attention_forward(attention, &plan, &tensors, workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: forward gave %d", w->name, code);
    must(cudaDeviceSynchronize(), "forward");
    tensor_fetch(&p->output);
    tensor_fetch(&p->log_sum_exp);
    device_close(workspace);
    free(tasks);
}

static void read_forward(problem *p) {
    const work *w = p->of;
    for (int64_t token = 0; token < p->query_offsets[sequences_of(w)]; token++)
        for (int64_t head = 0; head < w->heads; head++) {
            double part = 0;
            for (int i = 0; i < w->value_size; i++)
                part += tensor_at(&p->output, token, head, i) * tensor_at(&p->output_gradient, token, head, i);
            p->part[token * w->heads + head] = part;
            p->lse[token * w->heads + head] = tensor_at(&p->log_sum_exp, token, 0, head);
        }
}

static void prepare_forward(problem *p, const ln_cuda_device *device) {
    const work *w = p->of;
    if (pairs_of(w) * w->key_size > 2e8) {
        device_forward(p, device);
        read_forward(p);
        return;
    }
    for (int s = 0; s < sequences_of(w); s++)
        for (int64_t row = 0; row < w->queries[s]; row++)
            for (int64_t head = 0; head < w->heads; head++) oracle_forward(p, s, row, head);
    tensor_send(&p->output);
    tensor_send(&p->log_sum_exp);
}

/* weight and slope of a pair. */
static double pair_slope(const problem *p, int64_t query, int64_t key, int64_t head, double *weight) {
    const work *w = p->of;
    const int64_t shared = head / (w->heads / w->key_value_heads), at = query * w->heads + head;
    double of_cap;
    const double score = score_of(p, row_of(&p->query, query, head), row_of(&p->key, key, shared), &of_cap);
    *weight = exp(score - p->lse[at]);
    const double change =
        dot(p, row_of(&p->output_gradient, query, head), row_of(&p->value, key, shared), w->value_size);
    return *weight * (change - p->part[at]) * of_cap * (double)p->backward.attention.scale;
}
static void add_row(const problem *p, double *to, const uint16_t *row, double by, int size) {
    for (int i = 0; i < size; i++) to[i] += by * number(p, row[i]);
}

static void oracle_query(const problem *p, int sequence, int64_t row, int64_t head, double *gradient) {
    const work *w = p->of;
    const int64_t position = row + w->keys[sequence] - w->queries[sequence],
                  shared = head / (w->heads / w->key_value_heads);
    memset(gradient, 0, (size_t)w->key_size * sizeof *gradient);
    for (int64_t j = 0; j < w->keys[sequence]; j++) {
        double weight;
        if (!seen(w, position, j)) continue;
        const int64_t key = p->key_offsets[sequence] + j;
        const double slope = pair_slope(p, p->query_offsets[sequence] + row, key, head, &weight);
        add_row(p, gradient, row_of(&p->key, key, shared), slope, w->key_size);
    }
}

static void oracle_key(const problem *p, int sequence, int64_t row, int64_t shared, double *key_gradient,
                       double *value_gradient) {
    const work *w = p->of;
    const int64_t group = w->heads / w->key_value_heads;
    memset(key_gradient, 0, (size_t)w->key_size * sizeof *key_gradient);
    memset(value_gradient, 0, (size_t)w->value_size * sizeof *value_gradient);
    for (int64_t head = shared * group; head < (shared + 1) * group; head++)
        for (int64_t i = 0; i < w->queries[sequence]; i++) {
            double weight;
            if (!seen(w, i + w->keys[sequence] - w->queries[sequence], row)) continue;
            const int64_t query = p->query_offsets[sequence] + i;
            const double slope = pair_slope(p, query, p->key_offsets[sequence] + row, head, &weight);
            add_row(p, key_gradient, row_of(&p->query, query, head), slope, w->key_size);
            add_row(p, value_gradient, row_of(&p->output_gradient, query, head), weight, w->value_size);
        }
}

/* ---- comparison ---- */

enum { QUERY, KEY, VALUE, SINK, PARTS };
static const char *const PART[PARTS] = {"query", "key", "value", "sink"};

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

static void samples_open(samples *parts, const problem *p) {
    const work *w = p->of;
    double row[3][256];
    memset(parts, 0, PARTS * sizeof *parts);
    parts[QUERY].size = parts[KEY].size = w->key_size;
    parts[VALUE].size = w->value_size;
    parts[SINK].size = w->heads;
    for (int s = 0; s < sequences_of(w); s++) {
        if (w->infinite && s % 2) continue;
        for (int64_t i = 0; i < w->queries[s] && i < SAMPLES; i++) {
            const int64_t at = sample_row(i, w->queries[s]), head = random_below(w->heads);
            oracle_query(p, s, at, head, row[0]);
            samples_add(&parts[QUERY], p->query_offsets[s] + at, head, row[0]);
        }
        for (int64_t i = 0; i < w->keys[s] && i < SAMPLES; i++) {
            const int64_t at = sample_row(i, w->keys[s]), head = random_below(w->key_value_heads);
            oracle_key(p, s, at, head, row[1], row[2]);
            samples_add(&parts[KEY], p->key_offsets[s] + at, head, row[1]);
            samples_add(&parts[VALUE], p->key_offsets[s] + at, head, row[2]);
        }
    }
    if (!w->sinks) return;
    for (int64_t head = 0; head < w->heads; head++) {
        row[0][head] = 0;
        for (int64_t token = 0; token < p->query_offsets[sequences_of(w)]; token++) {
            const int64_t at = token * w->heads + head;
            const double one = exp(tensor_at(&p->sinks, 0, 0, head) - p->lse[at]) * p->part[at];
            row[0][head] -= one;
            parts[SINK].least += one * one; /* terms of both signs may cancel */
        }
    }
    parts[SINK].least = sqrt(parts[SINK].least);
    samples_add(&parts[SINK], 0, 0, row[0]);
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
    ln_cuda_backward_rows *tiles = malloc((size_t)(plan->tiles + 1) * sizeof *tiles);
    ln_cuda_backward_task *tasks = malloc((size_t)(plan->tasks + 1) * sizeof *tasks);
    ln_cuda_backward_tables(&p->backward, plan, tiles, tasks);
    *workspace = device_open(plan->workspace);
    const ln_cuda_code code = ln_cuda_backward_prepare(plan, tiles, tasks, *workspace, NULL);
    free(tiles);
    free(tasks);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static void check_kernel(problem *p, const ln_cuda_device *device, const samples *parts,
                         const ln_cuda_backward_kernel *kernel) {
    const char *name = p->of->name;
    tensor *gradients[PARTS] = {&p->query_gradient, &p->key_gradient, &p->value_gradient, &p->sink_gradient};
    const int count = p->of->sinks ? PARTS : SINK;
    ln_cuda_backward_plan plan;
    if (ln_cuda_backward_plan_make(&p->backward, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!workspace_open(p, &plan, &p->workspace)) return;
    p->plan = &plan;
    for (int i = 0; i < count; i++) tensor_poison(gradients[i]);
    run_now(run, p, name, kernel->name);
    printf("  %-34s %-28s", name, kernel->name);
    for (int i = 0; i < count; i++) {
        tensor_fetch(gradients[i]);
        tensor_expect_written(gradients[i], name, kernel->name);
        const double error = samples_error(&parts[i], gradients[i]);
        EXPECT(error < BOUND, "%s, %s: relative error of the %s gradient %.2e", name, kernel->name, PART[i], error);
        printf(" %.1e", error);
    }
    printf("\n");
    cudaGraphExec_t graph = run_capture(run, p, name, kernel->name);
    for (int i = 0; i < count; i++) tensor_poison(gradients[i]);
    run_graph(graph, name, kernel->name);
    for (int i = 0; i < count; i++) tensor_expect_same(gradients[i], name, kernel->name, PART[i]);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

static void check(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
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

/* The tile that a task visits as its n-th. */
static int visited(const ln_cuda_backward_task *task, int n) {
    const int count = task->end - task->first;
    if (task->order == LN_CUDA_DOWN) return task->end - 1 - n;
    if (task->order == LN_CUDA_UP) return task->first + n;
    return task->start + n < task->end ? task->start + n : task->start + n - count;
}

/* Blocks that each visit one tile at a time and wait for their turns: all tasks end, though a block takes its next task
 * as early as it can. Returns the rounds that it took, -1 if they do not end. */
static int64_t simulate(const work *w, const ln_cuda_backward_plan *plan, const ln_cuda_backward_rows *tiles,
                        const ln_cuda_backward_task *tasks, int64_t *busy);

static void check_tables(const work *w, const ln_cuda_backward_kernel *kernel, const ln_cuda_device *device) {
    problem p = {.of = w};
    offsets_of(&p);
    p.backward = backward_of(&p);
    ln_cuda_backward_plan plan;
    if (ln_cuda_backward_plan_make(&p.backward, device, kernel, &plan) != LN_CUDA_OK) return;
    ln_cuda_backward_rows *tiles = malloc((size_t)(plan.tiles + 1) * sizeof *tiles);
    ln_cuda_backward_task *tasks = malloc((size_t)(plan.tasks + 1) * sizeof *tasks);
    ln_cuda_backward_tables(&p.backward, &plan, tiles, tasks);
    int64_t keys = 0, busy = 0;
    bool right = true;
    for (int64_t t = 0; t < plan.tasks; t++) {
        const int64_t left = tasks[t].keys - (int64_t)tasks[t].tile * kernel->keys;
        keys += left < kernel->keys ? left : kernel->keys;
        for (int64_t i = 0; i < plan.tiles; i++) {
            if (tiles[i].key > tasks[t].key || tasks[t].key >= tiles[i].key + tiles[i].keys) continue;
            const bool inside = tiles[i].first_tile <= tasks[t].tile && tasks[t].tile < tiles[i].end_tile;
            bool any = false;
            for (int row = 0; row < tiles[i].rows && !any; row++)
                for (int64_t k = 0; k < kernel->keys && k < left && !any; k++)
                    any = seen(w, tiles[i].position + row, (int64_t)tasks[t].tile * kernel->keys + k);
            right = right && (!any || inside) && inside == (tasks[t].first <= i && i < tasks[t].end);
        }
    }
    EXPECT(right, "%s, %s: tiles that see each other do not meet", w->name, kernel->name);
    EXPECT(keys == p.key_offsets[sequences_of(w)] * w->key_value_heads, "%s, %s: %lld keys in tasks", w->name,
           kernel->name, (long long)keys);
    EXPECT(simulate(w, &plan, tiles, tasks, &busy) >= 0, "%s, %s: tasks wait for each other for ever", w->name,
           kernel->name);
    free(tiles);
    free(tasks);
}

/* As turn_of of the kernels. */
static int turn(const ln_cuda_backward_task *task, const ln_cuda_backward_rows *rows, int tile) {
    if (task->order == LN_CUDA_UP) return rows->end_tile - 1 - task->tile;
    if (task->order == LN_CUDA_DOWN) return task->tile - rows->first_tile;
    int before = task->before;
    for (int k = 0; k < task->members; k++) {
        const int start = (int)((int64_t)k * (task->end - task->first) / task->members), at = tile - task->first,
                  own = task->start - task->first;
        const bool later = start <= at ? own > at || k > task->member : own > at && k > task->member;
        before += k != task->member && later;
    }
    return before;
}

static int64_t claim_next(const ln_cuda_backward_plan *plan, const ln_cuda_backward_task *tasks, int64_t task,
                          int64_t *next) {
    const int64_t claimed = tasks[task].order == LN_CUDA_ROUND ? task + plan->blocks : (*next)++;
    return claimed < plan->tasks ? claimed : -1;
}

static int64_t simulate(const work *w, const ln_cuda_backward_plan *plan, const ln_cuda_backward_rows *tiles,
                        const ln_cuda_backward_task *tasks, int64_t *busy) {
    const int64_t group = w->heads / w->key_value_heads;
    int *count = calloc((size_t)(plan->tiles * w->heads + 1), sizeof *count);
    int64_t *task = malloc(2 * (size_t)(plan->blocks + 1) * sizeof *task), *claim = task + plan->blocks + 1;
    int64_t next = plan->blocks, rounds = 0, live = plan->blocks;
    int *step = calloc((size_t)(plan->blocks + 1), sizeof *step);
    int **add = malloc((size_t)(plan->blocks + 1) * sizeof *add);
    for (int64_t b = 0; b < plan->blocks; b++) {
        task[b] = b;
        claim[b] = claim_next(plan, tasks, b, &next);
    }
    while (live) {
        bool moved = false;
        int64_t adds = 0;
        live = 0;
        for (int64_t b = 0; b < plan->blocks; b++) {
            while (task[b] >= 0 && step[b] == (tasks[task[b]].end - tasks[task[b]].first) * group) {
                task[b] = claim[b];
                claim[b] = task[b] < 0 ? -1 : claim_next(plan, tasks, task[b], &next);
                step[b] = 0;
                moved = true;
            }
            if (task[b] < 0) continue;
            live++;
            const ln_cuda_backward_task *t = &tasks[task[b]];
            const int visits = t->end - t->first, tile = visited(t, step[b] % visits);
            int *at = &count[(t->head * group + step[b] / visits) * plan->tiles + tile];
            if (*at != turn(t, &tiles[tile], tile)) continue;
            add[adds++] = at;
            step[b]++;
            (*busy)++;
            moved = true;
        }
        for (int64_t i = 0; i < adds; i++) ++*add[i];
        rounds++;
        if (!moved && live) rounds = -1, live = 0;
    }
    for (int64_t i = 0; i < plan->tiles * w->heads && rounds >= 0; i++)
        if (count[i] != tiles[i % plan->tiles].end_tile - tiles[i % plan->tiles].first_tile) rounds = -1;
    free(count);
    free(task);
    free(step);
    free(add);
    return rounds;
}

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
    backward.attention.rank = 2;
    EXPECT(ln_cuda_backward_plan_make(&backward, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "factors: %s", plan.why);
    EXPECT(ln_cuda_backward_run(&backward, &plan, &none, (void *)256, NULL) == LN_CUDA_UNSUPPORTED, "no kernel");
    backward.attention.rank = 0;
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
            if (pairs_of(&WORKS[i]) > 2e6) continue;
            check_tables(&WORKS[i], kernel, kernel->major == 9 ? &hopper : &ampere);
            if (kernel->major == 9) check_tables(&WORKS[i], kernel, &small);
        }
    }
}

/* ---- speed ---- */

static void bench_work(const work *w, const ln_cuda_device *device, const check_options *options) {
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
    for (int i = 0; i < BENCH_COUNT; i++)
        if (strstr(BENCH[i].name, options->works)) bench_work(&BENCH[i], device, options);
}

const suite cuda_suite_attention_backward = {"attention_backward", WORK_COUNT, check_plans, check, bench};
