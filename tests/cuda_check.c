/* Attention on the GPU against float64 on the CPU, and how fast it is.
 *
 *     cuda_check [--bench] [--kernels TEXT] [--works TEXT] [--rounds N]
 *
 * Without a GPU it checks what needs none and says how many cases it skipped. Inputs are random and new for every case,
 * by the seed that is printed; outputs are filled with NaN before every launch, gaps between rows included, which must
 * stay. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernel/cuda/attention_cuda.h"

enum { SEQUENCES = 8, PACKED = 0, PADDED = 1, HEAD_MAJOR = 2 };

typedef struct work {
    const char *name;
    int heads, key_value_heads, key_size, value_size;
    int queries[SEQUENCES], keys[SEQUENCES]; /* ended by a query and key count of 0 */
    bool causal;
    int window;
    float cap, stretch; /* stretch: scores are larger by it; 0: 1 */
    int layout;
    bool float32, infinite; /* infinite: values of odd sequences are infinite */
} work;

static const work WORKS[] = {
    {"one token", 2, 2, 128, 128, {1}, {1}, .float32 = true},
    {"63 full", 4, 4, 128, 128, {63}, {63}, .float32 = true},
    {"127 causal", 4, 4, 128, 128, {127}, {127}, .causal = true},
    {"129 causal, groups", 8, 2, 128, 128, {129}, {129}, .causal = true},
    {"1000 causal", 4, 4, 128, 128, {1000}, {1000}, .causal = true, .layout = PADDED},
    {"1000 full", 4, 1, 128, 128, {1000}, {1000}, .layout = HEAD_MAJOR},
    {"2048 full", 4, 4, 128, 128, {2048}, {2048}, .causal = false},
    {"4096 causal", 8, 8, 128, 128, {4096}, {4096}, .causal = true},
    {"4099 full, large scores", 2, 2, 128, 128, {4099}, {4099}, .stretch = 8},
    {"3001 causal, large scores", 2, 2, 128, 128, {3001}, {3001}, .causal = true, .stretch = 8},
    {"ragged causal", 4, 2, 128, 128, {1, 77, 512, 129, 1000}, {1, 77, 512, 129, 1000}, .causal = true},
    {"ragged full, infinite neighbours",
     4,
     2,
     128,
     128,
     {33, 70, 200, 5, 300},
     {200, 90, 70, 333, 300},
     .infinite = true},
    {"queries at the end", 4, 2, 128, 128, {17, 128, 300}, {900, 128, 1111}, .causal = true},
    {"more queries than keys", 4, 2, 128, 128, {300, 10}, {100, 200}, .causal = true, .float32 = true},
    {"no keys", 4, 2, 128, 128, {50, 70}, {0, 100}, .float32 = true},
    {"window causal", 4, 2, 128, 128, {1500}, {1500}, .causal = true, .window = 200},
    {"window 1", 2, 2, 128, 128, {300}, {300}, .causal = true, .window = 1},
    {"window both sides", 4, 2, 128, 128, {1500, 100}, {1500, 400}, .causal = false, .window = 130},
    {"cap", 4, 2, 128, 128, {700}, {700}, .causal = true, .cap = 30, .stretch = 8},
    {"cap and window", 4, 2, 128, 128, {700}, {900}, .causal = true, .window = 300, .cap = 5, .stretch = 3},
    {"d64 1000 causal", 6, 2, 64, 64, {1000}, {1000}, .causal = true},
    {"d64 ragged full", 6, 2, 64, 64, {191, 193, 65, 1}, {191, 193, 65, 400}, .layout = PADDED, .infinite = true},
    {"d64 4096 full", 4, 4, 64, 64, {4096}, {4096}, .float32 = true},
    {"d64 window", 4, 4, 64, 64, {1300}, {1300}, .causal = true, .window = 333},
    {"d64 cap", 4, 4, 64, 64, {777}, {777}, .causal = false, .cap = 20, .stretch = 4},
    {"d256 1000 causal", 4, 2, 256, 256, {1000}, {1000}, .causal = true},
    {"d256 2000 full", 2, 2, 256, 256, {2000}, {2000}, .causal = false},
    {"d256 window cap", 2, 2, 256, 256, {700}, {700}, .causal = true, .window = 150, .cap = 25},
    {"d96 1000 causal", 4, 2, 96, 96, {1000}, {1000}, .causal = true},
    {"d96 2000 full", 2, 2, 96, 96, {2000}, {2000}, .layout = HEAD_MAJOR},
    {"d96 ragged window", 2, 1, 96, 96, {500, 129}, {500, 300}, .causal = true, .window = 100},
    {"d192/128 1000 causal", 4, 4, 192, 128, {1000}, {1000}, .causal = true},
    {"d192/128 ragged full", 4, 4, 192, 128, {300, 80}, {300, 500}, .causal = false},
    {"d192 1000 causal", 4, 2, 192, 192, {1000}, {1000}, .causal = true},
    {"d192 cap", 2, 2, 192, 192, {500}, {500}, .causal = false, .cap = 30},
};
enum { WORK_COUNT = sizeof WORKS / sizeof WORKS[0] };

static const work BENCH[] = {
    {"d128 full 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = false},
    {"d128 causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true},
    {"d128 causal 8k x 2", 16, 16, 128, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d128 causal 4k x 4", 16, 16, 128, 128, {4096, 4096, 4096, 4096}, {4096, 4096, 4096, 4096}, .causal = true},
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
    {"d64 full 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = false},
    {"d64 causal 16k", 32, 32, 64, 64, {16384}, {16384}, .causal = true},
    {"d256 full 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = false},
    {"d256 causal 16k", 8, 8, 256, 256, {16384}, {16384}, .causal = true},
    {"d96 full 16k", 16, 16, 96, 96, {16384}, {16384}, .causal = false},
    {"d192 causal 8k x 2", 16, 16, 192, 192, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d64 causal 2k x 8",
     32,
     32,
     64,
     64,
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
     .causal = true},
    {"d192/128 causal 8k x 2", 16, 16, 192, 128, {8192, 8192}, {8192, 8192}, .causal = true},
    {"d128 causal 16k, 64/8 heads", 64, 8, 128, 128, {16384}, {16384}, .causal = true},
    {"d128 window 1024 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .window = 1024},
    {"d128 cap causal 16k", 16, 16, 128, 128, {16384}, {16384}, .causal = true, .cap = 30},
};
enum { BENCH_COUNT = sizeof BENCH / sizeof BENCH[0], KERNELS_MOST = 64 };

static int failures, checks;
static uint64_t seed;

#define EXPECT(condition, ...)              \
    do {                                    \
        checks++;                           \
        if (!(condition)) {                 \
            failures++;                     \
            printf("FAILED: " __VA_ARGS__); \
            printf("\n");                   \
        }                                   \
    } while (0)

static void cuda(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* ---- numbers ---- */

static uint64_t random_next(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * UINT64_C(0x2545f4914f6cdd1d);
}
/* Close to normal, deviation 1: the sum of four uniform numbers. */
static float random_normal(void) {
    const uint64_t bits = random_next();
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += (int)(bits >> 16 * i & 0xffff);
    return (float)(sum - 131070) * (float)(1.7320508 / 65536);
}
static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float of_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

/* ---- a case: its tensors on both sides ---- */

typedef struct tensor {
    ln_cuda_tensor device;
    uint16_t *host; /* of the same layout; NULL for outputs that were not fetched */
    int64_t tokens, heads, size, elements;
} tensor;

typedef struct problem {
    const work *of;
    int64_t query_offsets[SEQUENCES + 1], key_offsets[SEQUENCES + 1];
    ln_cuda_attention attention;
    tensor query, key, value, output;
    float *log_sum_exp; /* device */
} problem;

static tensor tensor_open(int64_t tokens, int64_t heads, int64_t size, int layout, int64_t bytes) {
    tensor t = {.tokens = tokens, .heads = heads, .size = size};
    const int64_t row = layout == PADDED ? size + 24 : size;
    t.device.head_stride = layout == HEAD_MAJOR ? row * (tokens ? tokens : 1) : row;
    t.device.token_stride = layout == HEAD_MAJOR ? row : row * heads;
    t.elements = row * heads * (tokens ? tokens : 1);
    cuda(cudaMalloc(&t.device.data, (size_t)(t.elements * bytes)), "memory of a tensor");
    return t;
}
static tensor tensor_random(int64_t tokens, int64_t heads, int64_t size, int layout, float deviation) {
    tensor t = tensor_open(tokens, heads, size, layout, 2);
    t.host = malloc((size_t)t.elements * 2);
    for (int64_t i = 0; i < t.elements; i++) t.host[i] = bf16_of(random_normal() * deviation);
    return t;
}
static void tensor_send(tensor *t) {
    cuda(cudaMemcpy(t->device.data, t->host, (size_t)t->elements * 2, cudaMemcpyHostToDevice), "copy to the device");
}
static const uint16_t *tensor_row(const tensor *t, int64_t token, int64_t head) {
    return t->host + token * t->device.token_stride + head * t->device.head_stride;
}
static void tensor_close(tensor *t) {
    cudaFree(t->device.data);
    free(t->host);
}

static int sequences_of(const work *w) {
    int count = 0;
    while (count < SEQUENCES && (w->queries[count] || w->keys[count])) count++;
    return count;
}

static void problem_open(problem *p, const work *w) {
    memset(p, 0, sizeof *p);
    p->of = w;
    const int sequences = sequences_of(w);
    for (int s = 0; s < sequences; s++) {
        p->query_offsets[s + 1] = p->query_offsets[s] + w->queries[s];
        p->key_offsets[s + 1] = p->key_offsets[s] + w->keys[s];
    }
    p->attention = (ln_cuda_attention){.heads = w->heads,
                                       .key_value_heads = w->key_value_heads,
                                       .key_size = w->key_size,
                                       .value_size = w->value_size,
                                       .sequences = sequences,
                                       .query_offsets = p->query_offsets,
                                       .key_offsets = p->key_offsets,
                                       .scale = 1 / sqrtf((float)w->key_size),
                                       .soft_cap = w->cap,
                                       .causal = w->causal,
                                       .window = w->window,
                                       .output_float32 = w->float32};
    const int64_t queries = p->query_offsets[sequences], keys = p->key_offsets[sequences];
    p->query = tensor_random(queries, w->heads, w->key_size, w->layout, w->stretch > 0 ? w->stretch : 1);
    p->key = tensor_random(keys, w->key_value_heads, w->key_size, w->layout, 1);
    p->value = tensor_random(keys, w->key_value_heads, w->value_size, w->layout, 1);
    p->output = tensor_open(queries, w->heads, w->value_size, w->layout, w->float32 ? 4 : 2);
    if (w->infinite)
        for (int s = 1; s < sequences; s += 2)
            for (int64_t t = p->key_offsets[s]; t < p->key_offsets[s + 1]; t++)
                for (int64_t h = 0; h < w->key_value_heads; h++)
                    p->value.host[t * p->value.device.token_stride + h * p->value.device.head_stride] = 0x7f80;
    tensor_send(&p->query);
    tensor_send(&p->key);
    tensor_send(&p->value);
    cuda(cudaMalloc((void **)&p->log_sum_exp, (size_t)(queries * w->heads) * 4), "memory of sums");
}

static void problem_close(problem *p) {
    tensor_close(&p->query);
    tensor_close(&p->key);
    tensor_close(&p->value);
    tensor_close(&p->output);
    cudaFree(p->log_sum_exp);
}

static ln_cuda_attention_tensors tensors_of(const problem *p) {
    return (ln_cuda_attention_tensors){.query = p->query.device,
                                       .key = p->key.device,
                                       .value = p->value.device,
                                       .output = p->output.device,
                                       .log_sum_exp = p->log_sum_exp};
}

/* ---- float64 ---- */

/* Query `row` of the sequence. Returns lse. */
static double oracle_row(const problem *p, int sequence, int64_t row, int64_t head, double *output) {
    const work *w = p->of;
    const int64_t n = w->queries[sequence], m = w->keys[sequence], position = row + m - n;
    const int64_t shared = head / (w->heads / w->key_value_heads);
    const uint16_t *query = tensor_row(&p->query, p->query_offsets[sequence] + row, head);
    double *score = malloc((size_t)(m + 1) * sizeof *score), most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < m; j++) {
        const bool seen = (!w->causal || j <= position) &&
                          (!w->window || (position - j < w->window && (w->causal || j - position < w->window)));
        score[j] = -INFINITY;
        if (!seen) continue;
        const uint16_t *key = tensor_row(&p->key, p->key_offsets[sequence] + j, shared);
        double dot = 0;
        for (int i = 0; i < w->key_size; i++) dot += (double)of_bf16(query[i]) * (double)of_bf16(key[i]);
        dot *= (double)p->attention.scale;
        score[j] = w->cap > 0 ? (double)w->cap * tanh(dot / (double)w->cap) : dot;
        if (score[j] > most) most = score[j];
    }
    for (int i = 0; i < w->value_size; i++) output[i] = 0;
    for (int64_t j = 0; j < m && most > -INFINITY; j++) {
        if (score[j] == -INFINITY) continue;
        const double weight = exp(score[j] - most);
        const uint16_t *value = tensor_row(&p->value, p->key_offsets[sequence] + j, shared);
        sum += weight;
        for (int i = 0; i < w->value_size; i++) output[i] += weight * (double)of_bf16(value[i]);
    }
    for (int i = 0; i < w->value_size && sum > 0; i++) output[i] /= sum;
    free(score);
    return sum > 0 ? most + log(sum) : -INFINITY;
}

typedef struct fetched {
    void *output;
    float *log_sum_exp;
    size_t bytes, sums;
} fetched;

static double element(const problem *p, const fetched *f, int64_t token, int64_t head, int64_t i) {
    const int64_t at = token * p->output.device.token_stride + head * p->output.device.head_stride + i;
    return p->of->float32 ? (double)((const float *)f->output)[at] : (double)of_bf16(((const uint16_t *)f->output)[at]);
}

/* The worst relative error of sampled rows; lse within 1e-3 of its size. */
static double compare(const problem *p, const fetched *f, const char *kernel) {
    const work *w = p->of;
    double worst = 0, *row_output = malloc((size_t)w->value_size * sizeof *row_output);
    for (int s = 0; s < p->attention.sequences; s++) {
        if (w->infinite && s % 2) continue;
        const int64_t n = w->queries[s], samples = n < 40 ? n : 40;
        for (int64_t i = 0; i < samples; i++) {
            int64_t row = n <= 40 ? i : (int64_t)(random_next() >> 1) % n;
            if (n > 40 && i < 2) row = i ? n - 1 : 0;
            const int64_t head = (int64_t)(random_next() >> 1) % w->heads, token = p->query_offsets[s] + row;
            const double lse = oracle_row(p, s, row, head, row_output);
            double error = 0, size = 0;
            for (int e = 0; e < w->value_size; e++) {
                const double d = element(p, f, token, head, e) - row_output[e];
                error += d * d;
                size += row_output[e] * row_output[e];
            }
            const double relative = size > 0 ? sqrt(error / size) : error > 0 || error != error ? INFINITY : 0;
            if (!(relative <= worst)) worst = relative == relative ? relative : INFINITY;
            const double got = (double)f->log_sum_exp[token * w->heads + head];
            EXPECT(lse == -INFINITY ? got == lse : fabs(got - lse) <= 1e-4 * (1 + fabs(lse)),
                   "%s, %s: lse of query %lld of sequence %d, head %lld is %g, not %g", w->name, kernel, (long long)row,
                   s, (long long)head, got, lse);
        }
    }
    free(row_output);
    return worst;
}

/* Every element was written and no gap was. */
static void check_written(const problem *p, const fetched *f, const char *kernel) {
    const work *w = p->of;
    const int64_t row = w->layout == PADDED ? w->value_size + 24 : w->value_size, bytes = w->float32 ? 4 : 2;
    int64_t unwritten = 0, spoiled = 0;
    for (int64_t at = 0; at < p->output.elements; at++) {
        bool poison = true;
        for (int64_t b = 0; b < bytes; b++) poison &= ((const unsigned char *)f->output)[at * bytes + b] == 0xff;
        if (at % row < w->value_size)
            unwritten += poison;
        else
            spoiled += !poison;
    }
    EXPECT(unwritten == 0, "%s, %s: %lld elements were not written", w->name, kernel, (long long)unwritten);
    EXPECT(spoiled == 0, "%s, %s: %lld elements between rows were written", w->name, kernel, (long long)spoiled);
}

/* ---- runs ---- */

static bool workspace_open(const problem *p, const ln_cuda_attention_plan *plan, void **workspace) {
    ln_cuda_task *tasks = malloc((size_t)(plan->tasks + 1) * sizeof *tasks);
    ln_cuda_attention_tasks(&p->attention, plan, tasks);
    cuda(cudaMalloc(workspace, (size_t)plan->workspace), "workspace");
    const ln_cuda_code code = ln_cuda_attention_prepare(plan, tasks, *workspace, NULL);
    free(tasks);
    EXPECT(code == LN_CUDA_OK, "%s: prepare gave %d", p->of->name, code);
    return code == LN_CUDA_OK;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Waits for the device, but not for ever: a kernel that hangs must not take the machine with it. */
static bool wait_for(cudaStream_t stream, double seconds) {
    for (const double end = seconds_now() + seconds; seconds_now() < end;) {
        const cudaError_t state = cudaStreamQuery(stream);
        if (state == cudaSuccess) return true;
        if (state != cudaErrorNotReady) {
            printf("FAILED: %s\n", cudaGetErrorString(state));
            exit(1);
        }
    }
    return false;
}

static fetched run_once(const problem *p, const ln_cuda_attention_plan *plan, void *workspace, cudaGraphExec_t graph) {
    const ln_cuda_attention_tensors tensors = tensors_of(p);
    fetched f = {.bytes = (size_t)p->output.elements * (p->of->float32 ? 4 : 2),
                 .sums = (size_t)(p->query.tokens * p->of->heads) * 4};
    cuda(cudaMemset(p->output.device.data, 0xff, f.bytes), "poison");
    cuda(cudaMemset(p->log_sum_exp, 0xff, f.sums), "poison");
    if (graph)
        cuda(cudaGraphLaunch(graph, NULL), "launch of a graph");
    else {
        const ln_cuda_code code = ln_cuda_attention_forward(&p->attention, plan, &tensors, workspace, NULL);
        EXPECT(code == LN_CUDA_OK, "%s: forward gave %d", p->of->name, code);
    }
    if (!wait_for(NULL, 10)) {
        printf("FAILED: %s, %s: does not end\n", p->of->name, plan->kernel->name);
        exit(1);
    }
    f.output = malloc(f.bytes);
    f.log_sum_exp = malloc(f.sums);
    cuda(cudaMemcpy(f.output, p->output.device.data, f.bytes, cudaMemcpyDeviceToHost), "copy from the device");
    cuda(cudaMemcpy(f.log_sum_exp, p->log_sum_exp, f.sums, cudaMemcpyDeviceToHost), "copy from the device");
    return f;
}

static cudaGraphExec_t capture(const problem *p, const ln_cuda_attention_plan *plan, void *workspace) {
    const ln_cuda_attention_tensors tensors = tensors_of(p);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cuda(cudaStreamCreate(&stream), "stream");
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    const ln_cuda_code code = ln_cuda_attention_forward(&p->attention, plan, &tensors, workspace, stream);
    EXPECT(code == LN_CUDA_OK, "%s: forward under capture gave %d", p->of->name, code);
    cuda(cudaStreamEndCapture(stream, &graph), "end of a capture");
    cuda(cudaGraphInstantiate(&ready, graph, 0), "graph");
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return ready;
}

static void check_kernel(const problem *p, const ln_cuda_device *device, const ln_cuda_kernel *kernel) {
    ln_cuda_attention_plan plan;
    void *workspace;
    if (ln_cuda_attention_plan_make(&p->attention, device, kernel, &plan) != LN_CUDA_OK) return;
    if (!workspace_open(p, &plan, &workspace)) return;
    cudaGraphExec_t graph = capture(p, &plan, workspace);
    fetched first = run_once(p, &plan, workspace, NULL), again = run_once(p, &plan, workspace, graph);
    EXPECT(memcmp(first.output, again.output, first.bytes) == 0 &&
               memcmp(first.log_sum_exp, again.log_sum_exp, first.sums) == 0,
           "%s, %s: other bits when run again", p->of->name, kernel->name);
    check_written(p, &first, kernel->name);
    const double worst = compare(p, &first, kernel->name);
    EXPECT(worst < 6e-3, "%s, %s: relative error %.2e", p->of->name, kernel->name, worst);
    printf("  %-34s %-28s %.2e\n", p->of->name, kernel->name, worst);
    cudaGraphExecDestroy(graph);
    free(first.output);
    free(first.log_sum_exp);
    free(again.output);
    free(again.log_sum_exp);
    cudaFree(workspace);
}

/* ---- without a GPU ---- */

/* Every query, key block and head is in the tasks once, and those left out are not seen. */
static void check_tasks(const work *w, const ln_cuda_kernel *kernel, const ln_cuda_device *device) {
    problem p = {.of = w};
    const int sequences = sequences_of(w);
    for (int s = 0; s < sequences; s++) {
        p.query_offsets[s + 1] = p.query_offsets[s] + w->queries[s];
        p.key_offsets[s + 1] = p.key_offsets[s] + w->keys[s];
    }
    const ln_cuda_attention attention = {w->heads,  w->key_value_heads, w->key_size,   w->value_size,
                                         sequences, p.query_offsets,    p.key_offsets, 1,
                                         w->cap,    w->causal,          w->window,     w->float32};
    ln_cuda_attention_plan plan;
    if (ln_cuda_attention_plan_make(&attention, device, kernel, &plan) != LN_CUDA_OK) return;
    ln_cuda_task *tasks = malloc((size_t)(plan.tasks + 1) * sizeof *tasks);
    ln_cuda_attention_tasks(&attention, &plan, tasks);
    int64_t rows = 0, seen = 0, wanted = 0;
    for (int64_t t = 0; t < plan.tasks; t++) {
        rows += tasks[t].rows;
        for (int row = 0; row < tasks[t].rows; row++)
            for (int64_t j = (int64_t)tasks[t].first_block * kernel->keys;
                 j < (int64_t)tasks[t].end_block * kernel->keys; j++) {
                const int64_t position = tasks[t].position + row;
                seen += j < tasks[t].keys && (!w->causal || j <= position) &&
                        (!w->window || (position - j < w->window && (w->causal || j - position < w->window)));
            }
    }
    for (int s = 0; s < sequences; s++)
        for (int64_t i = 0; i < w->queries[s]; i++)
            for (int64_t j = 0; j < w->keys[s]; j++) {
                const int64_t position = i + w->keys[s] - w->queries[s];
                wanted +=
                    w->heads * ((!w->causal || j <= position) &&
                                (!w->window || (position - j < w->window && (w->causal || j - position < w->window))));
            }
    EXPECT(rows == p.query_offsets[sequences] * w->heads, "%s, %s: %lld rows in tasks", w->name, kernel->name,
           (long long)rows);
    EXPECT(seen == wanted, "%s, %s: tasks see %lld pairs of %lld", w->name, kernel->name, (long long)seen,
           (long long)wanted);
    free(tasks);
}

static void check_plans(void) {
    const ln_cuda_device hopper = {0, 9, 0, 132, 232448, 50 << 20}, ampere = {0, 8, 6, 84, 101376, 6 << 20};
    const int64_t offsets[2] = {0, 1000}, wrong[2] = {0, -1};
    ln_cuda_attention attention = {8, 2, 128, 128, 1, offsets, offsets, 0.1f, 0, true, 0, false};
    ln_cuda_attention_plan plan;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 9,
           "plan: %s", plan.why);
    EXPECT(ln_cuda_attention_plan_make(&attention, &ampere, NULL, &plan) == LN_CUDA_OK && plan.kernel->major == 8,
           "plan: %s", plan.why);
    const int64_t far[2] = {0, 16384};
    attention.query_offsets = attention.key_offsets = far;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && !plan.kernel->short_rows,
           "plan: %s", plan.why);
    attention.window = 1000;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->short_rows &&
               (plan.kernel->options & LN_CUDA_WINDOW),
           "plan: %s", plan.why);
    attention.window = 0;
    attention.query_offsets = attention.key_offsets = offsets;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_OK && plan.kernel->short_rows,
           "plan: %s", plan.why);
    attention.key_size = 40;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_UNSUPPORTED && plan.why[0],
           "size 40: %s", plan.why);
    attention.key_size = 128;
    attention.heads = 7;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "7 heads: %s", plan.why);
    attention.heads = 8;
    attention.key_offsets = wrong;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "offsets: %s", plan.why);
    attention.key_offsets = offsets;
    attention.scale = -1;
    EXPECT(ln_cuda_attention_plan_make(&attention, &hopper, NULL, &plan) == LN_CUDA_ARGUMENT, "scale: %s", plan.why);
    for (int row = 0; ln_cuda_attention_kernels(row)->start; row++) {
        const ln_cuda_kernel *kernel = ln_cuda_attention_kernels(row);
        EXPECT(kernel->shared_bytes <= (kernel->major == 9 ? 232448 : 101376), "%s: %d bytes of shared memory",
               kernel->name, kernel->shared_bytes);
        for (int i = 0; i < WORK_COUNT; i++)
            if (WORKS[i].queries[0] <= 1500) check_tasks(&WORKS[i], kernel, kernel->major == 9 ? &hopper : &ampere);
    }
}

/* ---- speed ---- */

static void show_device(const char *when) {
    printf("%s: ", when);
    fflush(stdout);
    if (system("nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader") != 0)
        printf("no nvidia-smi\n");
}

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
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

static void bench_work(const work *w, const ln_cuda_device *device, const char *wanted, int rounds, bool show) {
    problem p;
    problem_open(&p, w);
    const ln_cuda_attention_tensors tensors = tensors_of(&p);
    ln_cuda_attention_plan plan[KERNELS_MOST];
    void *workspace[KERNELS_MOST];
    float *times = malloc((size_t)rounds * KERNELS_MOST * sizeof *times);
    int kernels = 0;
    for (int row = 0; ln_cuda_attention_kernels(row)->start && kernels < KERNELS_MOST; row++) {
        const ln_cuda_kernel *kernel = ln_cuda_attention_kernels(row);
        if (wanted && !strstr(kernel->name, wanted)) continue;
        if (!w->window && kernel->options)
            if (!(w->cap > 0)) continue;
        if (ln_cuda_attention_plan_make(&p.attention, device, kernel, &plan[kernels]) != LN_CUDA_OK) continue;
        kernels += workspace_open(&p, &plan[kernels], &workspace[kernels]);
    }
    cudaEvent_t begin, end;
    cuda(cudaEventCreate(&begin), "event");
    cuda(cudaEventCreate(&end), "event");
    for (int round = -2; round < rounds; round++)
        for (int k = 0; k < kernels; k++) {
            cuda(cudaEventRecord(begin, NULL), "event");
            const ln_cuda_code code = ln_cuda_attention_forward(&p.attention, &plan[k], &tensors, workspace[k], NULL);
            cuda(cudaEventRecord(end, NULL), "event");
            if (code != LN_CUDA_OK || !wait_for(NULL, 10)) {
                printf("FAILED: %s, %s: gave %d or does not end\n", w->name, plan[k].kernel->name, code);
                exit(1);
            }
            float milliseconds;
            cuda(cudaEventElapsedTime(&milliseconds, begin, end), "time");
            if (round >= 0) times[k * rounds + round] = milliseconds;
        }
    for (int k = 0; k < kernels; k++) {
        qsort(times + k * rounds, (size_t)rounds, sizeof *times, ascending);
        const double flops = 2 * (double)(w->key_size + w->value_size) * pairs_of(w);
        const double median = (double)times[k * rounds + rounds / 2], least = (double)times[k * rounds];
        printf("%-30s %-28s %8.3f ms %7.1f TFLOP/s (best %.1f)\n", w->name, plan[k].kernel->name, median,
               flops / median * 1e-9, flops / least * 1e-9);
    }
    /* Back to back the power limit lowers the clocks further than in turns. */
    if (show && kernels) {
        enum { BURST = 300 };
        cuda(cudaEventRecord(begin, NULL), "event");
        for (int i = 0; i < BURST; i++) ln_cuda_attention_forward(&p.attention, &plan[0], &tensors, workspace[0], NULL);
        cuda(cudaEventRecord(end, NULL), "event");
        show_device("under load");
        float milliseconds = 0;
        if (wait_for(NULL, 10)) cuda(cudaEventElapsedTime(&milliseconds, begin, end), "time");
        printf("%-30s %-28s %8.3f ms %7.1f TFLOP/s back to back\n", w->name, plan[0].kernel->name,
               (double)milliseconds / BURST,
               2 * (double)(w->key_size + w->value_size) * pairs_of(w) * BURST / (double)milliseconds * 1e-9);
    }
    fflush(stdout);
    for (int k = 0; k < kernels; k++) cudaFree(workspace[k]);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    free(times);
    problem_close(&p);
}

int main(int count, char **words) {
    bool bench = false;
    const char *wanted = NULL, *works = "";
    int rounds = 15;
    for (int i = 1; i < count; i++) {
        if (!strcmp(words[i], "--bench"))
            bench = true;
        else if (!strcmp(words[i], "--kernels") && i + 1 < count)
            wanted = words[++i];
        else if (!strcmp(words[i], "--works") && i + 1 < count)
            works = words[++i];
        else if (!strcmp(words[i], "--rounds") && i + 1 < count)
            rounds = atoi(words[++i]);
        else {
            fprintf(stderr, "usage: cuda_check [--bench] [--kernels TEXT] [--works TEXT] [--rounds N]\n");
            return 2;
        }
    }
    if (rounds < 1) rounds = 1;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = (uint64_t)now.tv_nsec * 1000003u + (uint64_t)now.tv_sec + 1;
    printf("seed %llu\n", (unsigned long long)seed);
    ln_cuda_device device;
    const ln_cuda_code found = ln_cuda_device_read(0, &device);
    if (!bench) {
        check_plans();
        int skipped = 0;
        for (int i = 0; i < WORK_COUNT; i++) {
            if (found != LN_CUDA_OK) {
                skipped++;
                continue;
            }
            problem p;
            problem_open(&p, &WORKS[i]);
            for (int row = 0; ln_cuda_attention_kernels(row)->start; row++)
                if (!wanted || strstr(ln_cuda_attention_kernels(row)->name, wanted))
                    check_kernel(&p, &device, ln_cuda_attention_kernels(row));
            problem_close(&p);
            fflush(stdout);
        }
        printf("%d checks, %d failed, %d GPU cases skipped%s\n", checks, failures, skipped,
               skipped ? " for want of a GPU" : "");
    } else if (found == LN_CUDA_OK) {
        show_device("idle");
        for (int i = 0; i < BENCH_COUNT; i++)
            if (strstr(BENCH[i].name, works)) bench_work(&BENCH[i], &device, wanted, rounds, i < 2);
    } else
        printf("no GPU: code %d\n", found);
    return failures ? 1 : 0;
}
