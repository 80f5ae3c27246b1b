/* Decode attention over pages against float64.
 *
 * Pages lie in a pool in random order; what no token was written to keeps its 0xff, in page tables too, so that a
 * kernel that reads it shows. */
#include "check.h"

#include "kernel/cuda/decode_layout.h"
#include "oracle_decode.h"

enum { SEQUENCES = 8, KERNELS_MOST = 12 };

typedef struct work {
    const char *name;
    ln_cuda_page_format format;
    int heads, key_value_heads, size, value_size; /* value_size 0: the same; else values are in the keys */
    int lengths[SEQUENCES], sequences;            /* more than SEQUENCES of them repeat the first, or all */
    int page_tokens, queries;                     /* queries 0: 1 */
    int window;
    float cap, stretch;                     /* stretch: of queries, 0: 1 */
    bool sinks, float32, token_major, wild; /* wild: steps of values of q4_0 over all that f16 has */
    ln_cuda_element query;
} work;

#define BF16 LN_CUDA_PAGE_BF16
#define F16 LN_CUDA_PAGE_F16
#define Q8_0 LN_CUDA_PAGE_Q8_0
#define Q4_0 LN_CUDA_PAGE_Q4_0
#define Q4 LN_CUDA_PAGE_Q4
#define Q2 LN_CUDA_PAGE_Q2

static const work WORKS[] = {
    {"one key", BF16, 4, 4, 128, 0, {1}, 1, 16, .float32 = true},
    {"17 keys", BF16, 4, 1, 128, 0, {17}, 1, 16, .queries = 1},
    {"300 keys, float32", BF16, 8, 2, 128, 0, {300}, 1, 32, .float32 = true, .query = LN_CUDA_ELEMENT_FLOAT32},
    {"contiguous", BF16, 8, 2, 128, 0, {200, 77}, 2, 0, .queries = 1},
    {"token major", BF16, 8, 2, 128, 0, {200, 77}, 2, 16, .token_major = true},
    {"ragged with none", BF16, 4, 2, 128, 0, {0, 5, 600, 0, 33, 1, 128, 0}, 8, 16, .queries = 1},
    {"none at all", BF16, 4, 2, 128, 0, {0}, 2, 16, .sinks = true},
    {"group of 16, sinks", BF16, 16, 1, 128, 0, {150}, 1, 64, .sinks = true, .float32 = true},
    {"group of 12", BF16, 24, 2, 128, 0, {150, 10}, 2, 64, .queries = 1},
    {"window", BF16, 8, 2, 128, 0, {700, 90, 300}, 3, 16, .window = 100},
    {"window, 5 queries", BF16, 8, 2, 128, 0, {700, 3, 300}, 3, 16, .window = 37, .queries = 5},
    {"8 queries", BF16, 8, 2, 128, 0, {100, 8, 4}, 3, 32, .queries = 8, .float32 = true},
    {"cap, large scores", BF16, 8, 4, 128, 0, {500}, 1, 32, .cap = 20, .stretch = 5},
    {"large scores", BF16, 8, 4, 128, 0, {900}, 1, 32, .stretch = 8},
    {"40 sequences", BF16, 4, 2, 128, 0, {40, 1, 99, 16, 0, 33, 31, 64}, 40, 16, .queries = 1},
    {"f16", F16, 8, 2, 128, 0, {333, 48}, 2, 16, .query = LN_CUDA_ELEMENT_F16},
    {"f16 size 96", F16, 8, 2, 96, 0, {333, 48}, 2, 16, .queries = 1},
    {"size 64", BF16, 8, 2, 64, 0, {333, 48}, 2, 16, .queries = 1},
    {"size 96", BF16, 8, 2, 96, 0, {333, 48}, 2, 16, .float32 = true},
    {"size 192", BF16, 8, 2, 192, 0, {333, 48}, 2, 16, .queries = 1},
    {"size 256", BF16, 8, 2, 256, 0, {333, 48}, 2, 16, .queries = 1},
    {"size 256, group of 16", BF16, 16, 1, 256, 0, {333}, 1, 16, .queries = 1},
    {"q8_0", Q8_0, 8, 2, 128, 0, {333, 48}, 2, 16, .float32 = true},
    {"q4_0", Q4_0, 8, 2, 128, 0, {333, 48}, 2, 16, .float32 = true},
    {"q4_0, 3 queries, window", Q4_0, 8, 2, 128, 0, {333, 48}, 2, 16, .queries = 3, .window = 50},
    {"q4", Q4, 8, 2, 128, 0, {333, 48}, 2, 64, .float32 = true},
    {"q2", Q2, 8, 2, 128, 0, {333, 48}, 2, 16, .float32 = true},
    {"q8_0 size 64", Q8_0, 8, 2, 64, 0, {100, 48}, 2, 16, .queries = 1},
    {"q8_0 size 96", Q8_0, 8, 2, 96, 0, {100, 48}, 2, 16, .queries = 1},
    {"q4_0 size 96", Q4_0, 8, 2, 96, 0, {100, 48}, 2, 16, .queries = 1},
    {"q4 size 192", Q4, 8, 2, 192, 0, {100, 48}, 2, 16, .queries = 1},
    {"q2 size 64", Q2, 8, 2, 64, 0, {100, 48}, 2, 16, .queries = 1},
    {"q2 size 96", Q2, 8, 2, 96, 0, {100, 48}, 2, 16, .queries = 1},
    {"q2 size 192", Q2, 8, 2, 192, 0, {100, 48}, 2, 16, .queries = 1},
    {"q2 size 256, group of 12", Q2, 12, 1, 256, 0, {100, 48}, 2, 16, .sinks = true},
    {"equal sequences", BF16, 8, 2, 128, 0, {160, 157}, 2, 16, .queries = 1},
    {"q4_0, equal sequences", Q4_0, 8, 2, 128, 0, {160, 157}, 2, 16, .queries = 1},
    {"q4_0, wild steps", Q4_0, 8, 2, 128, 0, {333, 48}, 2, 16, .wild = true, .stretch = 3},
    {"q4_0, cap, 32 tokens a page", Q4_0, 8, 2, 128, 0, {333, 48}, 2, 32, .cap = 20, .stretch = 5},
    {"latent, 16 heads", BF16, 16, 1, 576, 512, {100}, 1, 64, .float32 = true},
    {"latent, ragged", BF16, 128, 1, 576, 512, {70, 0, 333, 1}, 4, 16, .queries = 1},
    {"latent, contiguous", BF16, 40, 1, 576, 512, {200, 130}, 2, 0, .sinks = true, .stretch = 3},
    {"latent, 3 queries, cap", BF16, 32, 1, 576, 512, {150, 65}, 2, 32, .queries = 3, .cap = 15},
    {"latent, window, large pages", BF16, 64, 1, 576, 512, {500}, 1, 128, .window = 140, .stretch = 5},
    {"latent f16, window, small pages", F16, 24, 1, 576, 512, {170, 90, 5}, 3, 16, .window = 41, .queries = 2},
    {"q4_0 contiguous", Q4_0, 8, 2, 128, 0, {100, 200}, 2, 0, .queries = 1},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static const work BENCH[] = {
    {"0.5 GB: 16 x 8k, 32/8", BF16, 32, 8, 128, 0, {8192}, 16, 16, .queries = 1},
    {"0.5 GB, contiguous", BF16, 32, 8, 128, 0, {8192}, 16, 0, .queries = 1},
    {"0.5 GB, token major", BF16, 32, 8, 128, 0, {8192}, 16, 0, .token_major = true},
    {"2 GB: 64 x 8k", BF16, 32, 8, 128, 0, {8192}, 64, 16, .queries = 1},
    {"1 GB, ragged", BF16, 32, 8, 128, 0, {131072, 100, 3000, 65536, 20000, 17, 40000, 8192}, 8, 16, .queries = 1},
    {"1 x 128k", BF16, 32, 8, 128, 0, {131072}, 1, 16, .queries = 1},
    {"1 x 32k", BF16, 32, 8, 128, 0, {32768}, 1, 16, .queries = 1},
    {"1 x 1k", BF16, 32, 8, 128, 0, {1024}, 1, 16, .queries = 1},
    {"1 x 4k", BF16, 32, 8, 128, 0, {4096}, 1, 16, .queries = 1},
    {"4 x 2k", BF16, 32, 8, 128, 0, {2048}, 4, 16, .queries = 1},
    {"16 x 2k", BF16, 32, 8, 128, 0, {2048}, 16, 16, .queries = 1},
    {"0.5 GB bf16 of q4_0", Q4_0, 32, 8, 128, 0, {8192}, 16, 16, .queries = 1},
    {"2 GB bf16 of q4_0", Q4_0, 32, 8, 128, 0, {8192}, 64, 16, .queries = 1},
    {"2 GB bf16 of q4", Q4, 32, 8, 128, 0, {8192}, 64, 16, .queries = 1},
    {"2 GB bf16 of q8_0", Q8_0, 32, 8, 128, 0, {8192}, 64, 16, .queries = 1},
    {"2 GB bf16 of q2", Q2, 32, 8, 128, 0, {8192}, 64, 16, .queries = 1},
    {"group of 1: 16 x 2k", BF16, 32, 32, 128, 0, {2048}, 16, 16, .queries = 1},
    {"group of 16: 16 x 32k", BF16, 32, 2, 128, 0, {32768}, 16, 16, .queries = 1},
    {"latent: 64 x 8k, 16", BF16, 16, 1, 576, 512, {8192}, 64, 64, .queries = 1},
    {"latent: 64 x 8k, 64", BF16, 64, 1, 576, 512, {8192}, 64, 64, .queries = 1},
    {"latent: 64 x 8k, 128", BF16, 128, 1, 576, 512, {8192}, 64, 64, .queries = 1},
    {"latent: 128 x 4k, 128", BF16, 128, 1, 576, 512, {4096}, 128, 16, .queries = 1},
    {"latent: 1 x 32k, 128", BF16, 128, 1, 576, 512, {32768}, 1, 64, .queries = 1},
    {"size 64: 32 x 8k", BF16, 32, 8, 64, 0, {8192}, 32, 16, .queries = 1},
    {"size 256: 16 x 8k", BF16, 32, 4, 256, 0, {8192}, 16, 16, .queries = 1},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0] };

/* ---- pages ---- */

static int value_size_of(const work *w) {
    return w->value_size ? w->value_size : w->size;
}

static pages pages_open(const work *w, bool values, int64_t count, int64_t tokens, bool mirrored) {
    pages p = {.format = w->format, .values = values, .size = w->size};
    const int64_t run = bytes_of_tokens(w->format, w->size, tokens), row = (int64_t)w->size * 2;
    p.device.page_stride = run * w->key_value_heads;
    p.device.head_stride = w->token_major ? row : run;
    p.device.token_stride = w->token_major ? row * w->key_value_heads : row;
    p.bytes = p.device.page_stride * count;
    p.device.data = device_open(p.bytes);
    if (mirrored) {
        p.host = malloc((size_t)p.bytes);
        memset(p.host, 0xff, (size_t)p.bytes);
    }
    return p;
}
static void pages_close(pages *p) {
    device_close(p->device.data);
    free(p->host);
}

/* ---- a case ---- */

typedef struct problem {
    const work *of;
    int queries, sequences;
    int64_t page_tokens, pages_each; /* of a sequence; page_tokens of the pool, also where contiguous */
    int32_t *lengths, *table;
    ln_cuda_decode decode;
    ln_cuda_decode_tensors tensors;
    pages key, value;
    tensor query, output, log_sum_exp, sinks;
    const ln_cuda_decode_plan *plan;
    void *workspace;
} problem;

/* Numbers 0 .. count - 1 in random order. */
static void shuffle(int32_t *numbers, int64_t count) {
    for (int64_t i = 0; i < count; i++) numbers[i] = (int32_t)i;
    for (int64_t i = count - 1; i > 0; i--) {
        const int64_t other = (int64_t)(random_next() % (uint64_t)(i + 1));
        const int32_t held = numbers[i];
        numbers[i] = numbers[other];
        numbers[other] = held;
    }
}

static void problem_table(problem *p) {
    const int64_t count = p->pages_each * p->sequences;
    int32_t *order = malloc((size_t)count * sizeof *order);
    p->table = malloc((size_t)count * sizeof *p->table);
    shuffle(order, count);
    memset(p->table, 0x7f, (size_t)count * sizeof *p->table);
    for (int s = 0; s < p->sequences; s++)
        for (int64_t i = 0; i * p->page_tokens < p->lengths[s]; i++)
            p->table[s * p->pages_each + i] = order[s * p->pages_each + i];
    free(order);
}

static int64_t page_of(const problem *p, int sequence, int64_t token) {
    return p->of->page_tokens ? p->table[sequence * p->pages_each + token / p->page_tokens] : sequence;
}

static void *sent(const void *from, int64_t bytes) {
    void *to = device_open(bytes);
    device_send(to, from, bytes);
    return to;
}

/* mirrored: with random contents that the host knows. */
static void problem_open(problem *p, const work *w, bool mirrored) {
    memset(p, 0, sizeof *p);
    p->of = w;
    p->queries = w->queries ? w->queries : 1;
    p->sequences = w->sequences;
    p->lengths = malloc((size_t)w->sequences * sizeof *p->lengths);
    const int given = w->sequences <= SEQUENCES ? w->sequences : w->lengths[1] ? SEQUENCES : 1;
    int longest = 0;
    for (int s = 0; s < w->sequences; s++) {
        p->lengths[s] = w->lengths[s % given];
        if (p->lengths[s] > longest) longest = p->lengths[s];
    }
    const int64_t rounded = (longest + 15) / 16 * 16 + (longest == 0 ? 16 : 0);
    p->page_tokens = w->page_tokens ? w->page_tokens : rounded;
    p->pages_each = (rounded + p->page_tokens - 1) / p->page_tokens;
    problem_table(p);
    p->key = pages_open(w, false, p->pages_each * p->sequences, p->page_tokens, mirrored);
    p->value = pages_open(w, true, w->value_size ? 0 : p->pages_each * p->sequences, p->page_tokens, mirrored);
    p->value.wild = w->wild;
    p->decode = (ln_cuda_decode){.sequences = w->sequences,
                                 .queries = p->queries,
                                 .heads = w->heads,
                                 .key_value_heads = w->key_value_heads,
                                 .key_size = w->size,
                                 .value_size = value_size_of(w),
                                 .value_in_key = w->value_size != 0,
                                 .capacity = longest,
                                 .page_tokens = w->page_tokens,
                                 .format = w->format,
                                 .query_element = w->query,
                                 .output_element = w->float32 ? LN_CUDA_ELEMENT_FLOAT32 : LN_CUDA_ELEMENT_BF16,
                                 .scale = 1 / sqrtf((float)w->size),
                                 .soft_cap = w->cap,
                                 .window = w->window};
    static const element elements[] = {ELEMENT_BF16, ELEMENT_F16, ELEMENT_FLOAT32};
    const int64_t tokens = (int64_t)p->queries * p->sequences;
    p->query = tensor_random(tokens, w->heads, w->size, PADDED, elements[w->query], w->stretch > 0 ? w->stretch : 1);
    p->output = tensor_open(tokens, w->heads, value_size_of(w), PADDED, w->float32 ? ELEMENT_FLOAT32 : ELEMENT_BF16);
    p->log_sum_exp = tensor_open(tokens, 1, w->heads, PACKED, ELEMENT_FLOAT32);
    p->sinks = tensor_random(1, 1, w->heads, PACKED, ELEMENT_FLOAT32, 3);
    p->tensors = (ln_cuda_decode_tensors){
        .query = p->query.device,
        .output = p->output.device,
        .key = p->key.device,
        .value = p->value.device,
        .page_table = sent(p->table, p->pages_each * p->sequences * 4),
        .table_stride = p->pages_each,
        .lengths = sent(p->lengths, (int64_t)p->sequences * 4),
        .sinks = w->sinks ? p->sinks.device.data : NULL,
        .log_sum_exp = p->log_sum_exp.device.data,
    };
}

static void problem_fill(problem *p) {
    for (int s = 0; s < p->sequences; s++)
        for (int64_t t = 0; t < p->lengths[s]; t++)
            for (int64_t h = 0; h < p->of->key_value_heads; h++) {
                token_fill(&p->key, page_of(p, s, t), h, t % p->page_tokens);
                if (!p->of->value_size) token_fill(&p->value, page_of(p, s, t), h, t % p->page_tokens);
            }
    device_send(p->key.device.data, p->key.host, p->key.bytes);
    device_send(p->value.device.data, p->value.host, p->value.bytes);
}

static void problem_close(problem *p) {
    tensor_close(&p->query);
    tensor_close(&p->output);
    tensor_close(&p->log_sum_exp);
    tensor_close(&p->sinks);
    pages_close(&p->key);
    pages_close(&p->value);
    device_close((void *)(uintptr_t)p->tensors.page_table);
    device_close((void *)(uintptr_t)p->tensors.lengths);
    free(p->lengths);
    free(p->table);
}

static ln_cuda_code decode(void *context, void *stream) {
    const problem *p = context;
    return ln_cuda_decode_run(&p->decode, p->plan, &p->tensors, p->workspace, stream);
}

/* ---- float64 ---- */

/* One query of one head. Returns lse. */
static double oracle_row(const problem *p, int sequence, int query, int64_t head, double *output) {
    const work *w = p->of;
    const int64_t length = p->lengths[sequence], position = length - p->queries + query;
    const int64_t shared = head / (w->heads / w->key_value_heads), token = (int64_t)sequence * p->queries + query;
    double *score = malloc((size_t)(length + 1) * sizeof *score), sum = 0;
    double most = w->sinks ? tensor_at(&p->sinks, 0, 0, head) : -INFINITY;
    for (int64_t j = 0; j < length; j++) {
        score[j] = -INFINITY;
        if (j > position || (w->window && position - j >= w->window)) continue;
        double dot = 0;
        for (int i = 0; i < w->size; i++)
            dot += tensor_at(&p->query, token, head, i) *
                   value_at(&p->key, page_of(p, sequence, j), shared, j % p->page_tokens, i);
        dot *= (double)p->decode.scale;
        score[j] = w->cap > 0 ? (double)w->cap * tanh(dot / (double)w->cap) : dot;
        if (score[j] > most) most = score[j];
    }
    const pages *values = w->value_size ? &p->key : &p->value;
    const int value_size = value_size_of(w);
    for (int i = 0; i < value_size; i++) output[i] = 0;
    if (w->sinks) sum = exp(tensor_at(&p->sinks, 0, 0, head) - most);
    for (int64_t j = 0; j < length; j++) {
        if (score[j] == -INFINITY) continue;
        const double weight = exp(score[j] - most);
        sum += weight;
        for (int i = 0; i < value_size; i++)
            output[i] += weight * value_at(values, page_of(p, sequence, j), shared, j % p->page_tokens, i);
    }
    free(score);
    if (sum > 0)
        for (int i = 0; i < value_size; i++) output[i] /= sum;
    return sum > 0 ? most + log(sum) : -INFINITY;
}

/* All rows of an output: [sequence][query][head][value size + 1], the last one lse. */
static double *oracle(const problem *p) {
    const int64_t rows = (int64_t)p->sequences * p->queries * p->of->heads, row = value_size_of(p->of) + 1;
    double *all = malloc((size_t)(rows * row) * sizeof *all);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t token = r / p->of->heads;
        all[r * row + row - 1] =
            oracle_row(p, (int)(token / p->queries), (int)(token % p->queries), r % p->of->heads, all + r * row);
    }
    return all;
}

/* The largest relative error of a row. */
static double compare(const problem *p, const double *wanted, const char *kernel) {
    const work *w = p->of;
    const int64_t row = value_size_of(w) + 1;
    double *got = malloc((size_t)row * sizeof *got), worst = 0;
    for (int64_t token = 0; token < (int64_t)p->sequences * p->queries; token++)
        for (int64_t head = 0; head < w->heads; head++) {
            const double *want = wanted + (token * w->heads + head) * row, lse = want[row - 1];
            for (int i = 0; i < row - 1; i++) got[i] = tensor_at(&p->output, token, head, i);
            const double error = relative_error(got, want, row - 1);
            if (!(error <= worst)) worst = error;
            const double sum = tensor_at(&p->log_sum_exp, token, 0, head);
            EXPECT(sum == lse || fabs(sum - lse) < 2e-2 + 1e-3 * fabs(lse),
                   "%s, %s: lse of query %lld, head %lld is %g, not %g", w->name, kernel, (long long)token,
                   (long long)head, sum, lse);
        }
    free(got);
    return worst;
}

/* ---- runs ---- */

static bool workspace_open(const problem *p, const ln_cuda_decode_plan *plan, void **workspace) {
    *workspace = device_open(plan->workspace);
    const ln_cuda_code code = ln_cuda_decode_prepare(plan, *workspace, NULL);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static void check_kernel(problem *p, const double *wanted, const ln_cuda_device *device,
                         const ln_cuda_decode_kernel *kernel) {
    const char *name = p->of->name;
    ln_cuda_decode_plan plan;
    if (ln_cuda_decode_plan_make(&p->decode, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!workspace_open(p, &plan, &p->workspace)) return;
    p->plan = &plan;
    tensor_poison(&p->output);
    tensor_poison(&p->log_sum_exp);
    run_now(decode, p, name, kernel->name);
    tensor_fetch(&p->output);
    tensor_fetch(&p->log_sum_exp);
    tensor_expect_written(&p->output, name, kernel->name);
    const double worst = compare(p, wanted, kernel->name);
    EXPECT(worst < 6e-3, "%s, %s: relative error %.2e", name, kernel->name, worst);
    cudaGraphExec_t graph = run_capture(decode, p, name, kernel->name);
    tensor_poison(&p->output);
    tensor_poison(&p->log_sum_exp);
    run_graph(graph, name, kernel->name);
    tensor_expect_same(&p->output, name, kernel->name, "output");
    tensor_expect_same(&p->log_sum_exp, name, kernel->name, "sums");
    printf("  %-34s %-28s %.2e\n", name, kernel->name, worst);
    cudaGraphExecDestroy(graph);
    device_close(p->workspace);
}

/* Multiply-adds of products padded to 8 rows. */
static double cost_of(const work *w) {
    double keys = 0;
    for (int s = 0; s < w->sequences; s++) keys += w->lengths[s % SEQUENCES] + 16;
    return keys * w->key_value_heads * w->size * 2 * 16;
}

static void check_pages(const check_options *options);

static void check(const ln_cuda_device *device, const check_options *options) {
    check_pages(options);
    for (int i = 0; i < WORK_COUNT; i++) {
        const work *w = &WORKS[i];
        if (!work_wanted(options, w->name, cost_of(w))) continue;
        problem p;
        problem_open(&p, w, true);
        problem_fill(&p);
        double *wanted = oracle(&p);
        int kernels = 0;
        for (int row = 0; ln_cuda_decode_kernels(row)->start; row++) {
            const ln_cuda_decode_kernel *kernel = ln_cuda_decode_kernels(row);
            if (kernel->format == w->format && kernel->key_size == w->size) kernels++;
            if (kernel_wanted(options, kernel->name)) check_kernel(&p, wanted, device, kernel);
        }
        if (!kernels) printf("  %-34s no kernel\n", w->name);
        free(wanted);
        problem_close(&p);
        fflush(stdout);
    }
}

/* ---- writing and reading pages ---- */

/* A row of plain or of odd numbers: all zeros, huge, tiny, one that is not finite. */
static void row_random(float *row, int size) {
    const int kind = (int)(random_next() % 8);
    const float stretch = kind == 1 ? 1e30f : kind == 2 ? 1e-30f : kind == 3 ? 3000.0f : 1.0f;
    for (int i = 0; i < size; i++) row[i] = kind == 4 ? 0 : stretch * random_normal();
    if (kind == 5) row[random_next() % (uint64_t)size] = random_next() & 1 ? INFINITY : NAN;
    if (kind == 6)
        for (int i = 0; i < size; i++) row[i] = roundf(row[i]);
    if (kind == 7)
        for (int i = 0; i < size; i++) row[i] = fabsf(row[i]) + 2;
}

/* What the page should hold of a row, and what reading it should give. */
static void row_expected(const pages *p, const float *row, unsigned char *page, int token, uint16_t *read) {
    for (int i = 0; i < p->size; i += 32) {
        uint8_t codes[32];
        uint16_t scale = 0;
        if (p->format > F16) {
            oracle_encode(p->format, row + i, codes, &scale);
            memcpy(page + ln_cuda_scale_place(p->format, p->values, p->size, token, i / 32), &scale, 2);
        }
        for (int k = 0; k < 32; k++) {
            if (p->format <= F16) {
                const uint16_t half = oracle_half(p->format, row[i + k]);
                memcpy(page + 2 * (i + k), &half, 2);
                read[i + k] = oracle_half(BF16, p->format == F16 ? of_f16(half) : of_bf16(half));
                continue;
            }
            int bit;
            const int place = ln_cuda_code_place(p->format, p->values, p->size, token, i + k, &bit);
            const unsigned mask = (1u << ln_cuda_page_bits(p->format)) - 1u;
            page[place] = (unsigned char)((page[place] & ~(mask << bit)) | (unsigned)codes[k] << bit);
            read[i + k] = oracle_half(BF16, oracle_decode(p->format, codes[k], scale));
        }
    }
}

typedef struct append_run {
    problem *p;
    ln_cuda_decode_rows rows;
} append_run;
static ln_cuda_code append(void *context, void *stream) {
    const append_run *run = context;
    return ln_cuda_decode_append(&run->p->decode, &run->p->tensors, &run->rows, stream);
}

/* Whether both are NaN, or the same bits. */
static bool same_half(uint16_t a, uint16_t b) {
    return a == b || (of_bf16(a) != of_bf16(a) && of_bf16(b) != of_bf16(b));
}
static bool same_in_page(ln_cuda_page_format format, uint16_t a, uint16_t b) {
    if (format == F16) return a == b || (of_f16(a) != of_f16(a) && of_f16(b) != of_f16(b));
    return format == BF16 ? same_half(a, b) : a == b;
}

static void expect_read(problem *p, const tensor *keys, const tensor *values, const uint16_t *wanted, int sequence,
                        int64_t tokens) {
    const int64_t first = p->lengths[sequence] - tokens, heads = p->of->key_value_heads, size = p->of->size;
    int wrong = 0;
    const ln_cuda_code code =
        ln_cuda_decode_unpack(&p->decode, &p->tensors, sequence, first, tokens, &keys->device, &values->device, NULL);
    EXPECT(code == LN_CUDA_OK && device_wait(NULL, 10), "%s: reading pages gave %d", p->of->name, code);
    for (int side = 0; side < 2; side++) {
        tensor *got = (tensor *)(side ? values : keys);
        tensor_fetch(got);
        for (int64_t r = 0; r < tokens * heads * size; r++) {
            const int64_t at = tensor_place(got, r / size / heads, r / size % heads) + r % size;
            const uint16_t want = wanted[(((side * p->sequences + sequence) * tokens) * heads) * size + r];
            wrong += !same_half(((const uint16_t *)got->host)[at], want);
        }
    }
    EXPECT(wrong == 0, "%s: %d values of sequence %d read wrongly", p->of->name, wrong, sequence);
}

/* Rows appended to poisoned pages are there bit for bit as the CPU rounds them, and nothing else was written. */
static void check_append(const work *w, ln_cuda_element rounding) {
    enum { TOKENS = 5 };
    problem p;
    problem_open(&p, w, true);
    p.decode.value_size = w->size;
    const int64_t heads = w->key_value_heads, size = w->size, rows = (int64_t)TOKENS * p.sequences;
    static const element elements[] = {ELEMENT_BF16, ELEMENT_F16, ELEMENT_FLOAT32};
    const element of = elements[rounding];
    tensor news[2] = {tensor_random(rows, heads, size, PADDED, of, 1), tensor_random(rows, heads, size, PACKED, of, 1)};
    uint16_t *read = calloc((size_t)(2 * rows * heads * size), sizeof *read);
    float *row = malloc((size_t)size * sizeof *row);
    for (int side = 0; side < 2; side++) {
        pages *to = side ? &p.value : &p.key;
        for (int64_t r = 0; r < rows * heads; r++) {
            const int sequence = (int)(r / heads / TOKENS);
            const int64_t head = r % heads, token = p.lengths[sequence] - TOKENS + r / heads % TOKENS;
            row_random(row, (int)size);
            for (int i = 0; i < size; i++) {
                tensor_set(&news[side], r / heads, head, i, (double)row[i]);
                row[i] = (float)tensor_at(&news[side], r / heads, head, i);
            }
            if (token < 0) continue;
            unsigned char *page = row_of(to, page_of(&p, sequence, token), head, token % p.page_tokens);
            row_expected(to, row, page, (int)(token % LN_CUDA_TILE), read + (side * rows * heads + r) * size);
        }
        tensor_send(&news[side]);
    }
    append_run run = {&p, {TOKENS, rounding, news[0].device, news[1].device}};
    run_now(append, &run, w->name, "append");
    for (int side = 0; side < 2; side++) {
        const pages *to = side ? &p.value : &p.key;
        unsigned char *got = malloc((size_t)to->bytes);
        device_fetch(got, to->device.data, to->bytes);
        int64_t at = 0, wrong = 0, first = -1;
        for (; at < to->bytes; at += 2) {
            uint16_t a, b;
            memcpy(&a, got + at, 2);
            memcpy(&b, to->host + at, 2);
            const bool same = same_in_page(w->format, a, b);
            if (!same && first < 0) first = at;
            wrong += !same;
        }
        EXPECT(wrong == 0, "%s: %lld halves of the %s appended wrongly, from byte %lld on", w->name, (long long)wrong,
               side ? "values" : "keys", (long long)first);
        free(got);
    }
    for (int s = 0; s < p.sequences; s++) {
        if (p.lengths[s] < TOKENS) continue;
        tensor keys = tensor_open(TOKENS, heads, size, PADDED, ELEMENT_BF16),
               values = tensor_open(TOKENS, heads, size, PACKED, ELEMENT_BF16);
        expect_read(&p, &keys, &values, read, s, TOKENS);
        tensor_close(&keys);
        tensor_close(&values);
    }
    printf("  %-34s appended and read\n", w->name);
    tensor_close(&news[0]);
    tensor_close(&news[1]);
    free(read);
    free(row);
    problem_close(&p);
}

static void check_pages(const check_options *options) {
    static const ln_cuda_page_format formats[] = {BF16, F16, Q8_0, Q4_0, Q4, Q2};
    static const int sizes[] = {64, 96, 128, 256};
    for (int i = 0; i < 6; i++)
        for (int k = 0; k < 4; k++) {
            char name[64];
            snprintf(name, sizeof name, "pages of format %d, size %d", (int)formats[i], sizes[k]);
            if (!work_wanted(options, name, 1e5)) continue;
            const work w = {name,        formats[i], 4, 2, sizes[k], 0, {70, 3, 16, 37}, 4, k == 1 ? 0 : 16 << k % 3,
                            .queries = 1};
            check_append(&w, k % 2 ? LN_CUDA_ELEMENT_BF16 : i % 2 ? LN_CUDA_ELEMENT_F16 : LN_CUDA_ELEMENT_FLOAT32);
        }
}

/* ---- bench ---- */

/* Random bytes all over; codes of 16 bits are kept finite. */
static void bench_fill(const pages *p) {
    const int64_t piece = INT64_C(1) << 22;
    unsigned char *bytes = malloc((size_t)piece);
    uint16_t *halves = (uint16_t *)(void *)bytes;
    for (int64_t i = 0; i < piece / 2; i++)
        halves[i] = p->format == BF16 ? bf16_of(random_normal()) : (uint16_t)(random_next() & 0x2fff);
    for (int64_t at = 0; at < p->bytes; at += piece)
        device_send((char *)p->device.data + at, bytes, at + piece < p->bytes ? piece : p->bytes - at);
    free(bytes);
}

static double bytes_read(const problem *p) {
    double bytes = 0;
    for (int s = 0; s < p->sequences; s++)
        bytes += (double)bytes_of_tokens(p->of->format, p->of->size, (p->lengths[s] + 15) / 16 * 16);
    return (p->of->value_size ? 1 : 2) * bytes * p->of->key_value_heads;
}

enum { REPEATS = 20 };
static ln_cuda_code decode_repeated(void *context, void *stream) {
    ln_cuda_code code = LN_CUDA_OK;
    for (int i = 0; i < REPEATS && code == LN_CUDA_OK; i++) code = decode(context, stream);
    return code;
}
typedef struct replay {
    cudaGraphExec_t graph;
} replay;
static ln_cuda_code replay_run(void *context, void *stream) {
    return ln_cuda_code_of(cudaGraphLaunch(((replay *)context)->graph, (cudaStream_t)stream));
}

static void bench_work(const work *w, const ln_cuda_device *device, const check_options *options) {
    static problem p[KERNELS_MOST];
    void *contexts[KERNELS_MOST];
    replay replays[KERNELS_MOST];
    ln_cuda_decode_plan plan[KERNELS_MOST];
    timing times[KERNELS_MOST];
    int kernels = 0;
    problem_open(&p[0], w, false);
    bench_fill(&p[0].key);
    bench_fill(&p[0].value);
    for (int row = 0; ln_cuda_decode_kernels(row)->start && kernels < KERNELS_MOST; row++) {
        const ln_cuda_decode_kernel *kernel = ln_cuda_decode_kernels(row);
        if (!kernel_wanted(options, kernel->name)) continue;
        if (ln_cuda_decode_plan_make(&p[0].decode, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
        p[kernels] = p[0];
        p[kernels].plan = &plan[kernels];
        if (!workspace_open(&p[0], &plan[kernels], &p[kernels].workspace)) continue;
        run_now(decode, &p[kernels], w->name, kernel->name);
        replays[kernels].graph = run_capture(decode_repeated, &p[kernels], w->name, kernel->name);
        contexts[kernels] = &replays[kernels];
        kernels++;
    }
    time_in_turns(replay_run, contexts, kernels, bytes_read(&p[0]) > 1e8 ? 3 : options->rounds, times);
    const double bytes = bytes_read(&p[0]), row = (double)bytes_of_tokens(w->format, w->size, 16) / 16;
    const double keys = bytes / row / (w->value_size ? 1 : 2) / w->key_value_heads;
    const double flops = 2 * keys * w->heads * (w->size + value_size_of(w));
    for (int k = 0; k < kernels; k++) {
        const double each = times[k].median / REPEATS;
        printf("%-26s %-26s %9.2f us %6.3f TB/s (best %.3f) %8.1f million keys/s %6.1f TFLOP/s\n", w->name,
               plan[k].kernel->name, each * 1e3, bytes / each * 1e-9, bytes / times[k].least * REPEATS * 1e-9,
               keys / each * 1e-3, flops / each * 1e-9);
        cudaGraphExecDestroy(replays[k].graph);
        device_close(p[k].workspace);
    }
    fflush(stdout);
    problem_close(&p[0]);
}

static void bench(const ln_cuda_device *device, const check_options *options) {
    for (int i = 0; i < BENCH_COUNT; i++)
        if (strstr(BENCH[i].name, options->works)) bench_work(&BENCH[i], device, options);
}

/* ---- without a GPU ---- */

/* Every code and scale of a tile has a place of its own. */
static void check_layout(ln_cuda_page_format format, bool values, int size) {
    const int64_t bytes = ln_cuda_tile_bytes(format, size);
    unsigned char *taken = calloc((size_t)bytes, 1);
    int wrong = 0;
    for (int token = 0; token < LN_CUDA_TILE; token++) {
        for (int i = 0; i < size; i++) {
            int bit;
            const int place = ln_cuda_code_place(format, values, size, token, i, &bit);
            const unsigned mask = ((1u << ln_cuda_page_bits(format)) - 1u) << bit;
            wrong += place < 0 || place >= bytes || mask > 255 || (taken[place] & mask);
            taken[place] |= (unsigned char)mask;
        }
        for (int b = 0; b < size / 32; b++)
            for (int i = 0; i < 2; i++) {
                const int place = ln_cuda_scale_place(format, values, size, token, b) + i;
                wrong += place >= bytes || taken[place];
                taken[place] = 0xff;
            }
    }
    for (int64_t i = 0; i < bytes; i++) wrong += taken[i] != 0xff;
    EXPECT(wrong == 0, "layout of format %d, size %d: %d wrong places", (int)format, size, wrong);
    free(taken);
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20};
    static const int sizes[] = {64, 96, 128, 192, 256, 576};
    for (int i = 0; i < 6; i++)
        for (int format = Q8_0; format <= Q2; format++)
            for (int values = 0; values < 2; values++) check_layout((ln_cuda_page_format)format, values, sizes[i]);
    ln_cuda_decode decode = {1, 1, 32, 8, 128, 128, 4096, 16, BF16, 0, 0, 0.1f, 0, 0, false};
    ln_cuda_decode_plan plan;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_OK, "plan: %s", plan.why);
    EXPECT(plan.kernel && plan.kernel->brief && !plan.joined, "4096 keys are a short context: %s", plan.why);
    decode.capacity = 131072;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_OK, "plan: %s", plan.why);
    EXPECT(plan.kernel && !plan.kernel->brief && plan.kernel->rows == 8, "131072 keys are none: %s", plan.why);
    decode.capacity = 4096;
    decode.sequences = INT64_C(1) << 61;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "2^61 sequences: %s", plan.why);
    decode.sequences = 1;
    decode.key_size = 40;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0], "size 40");
    decode.key_size = 128;
    decode.page_tokens = 24;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "pages of 24");
    decode.page_tokens = 8;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "pages of 8");
    decode.page_tokens = 16;
    decode.queries = 9;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "9 queries");
    decode.queries = 1;
    decode.heads = 33;
    EXPECT(ln_cuda_decode_plan_make(&decode, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "33 heads of 8");
    for (int row = 0; ln_cuda_decode_kernels(row)->start; row++) {
        const ln_cuda_decode_kernel *kernel = ln_cuda_decode_kernels(row);
        EXPECT(kernel->shared_bytes * kernel->blocks <= 233472 - 1024 * kernel->blocks, "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
    }
}

const suite cuda_suite_decode = {"decode", WORK_COUNT, check_plans, check, bench};
