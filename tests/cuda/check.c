#include "check.h"

#include <time.h>

int check_count, check_failures, check_skipped;
uint64_t check_seed;

void must(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

bool kernel_wanted(const check_options *options, const char *name) {
    return strstr(name, options->kernels) != NULL;
}

bool work_wanted(const check_options *options, const char *name, double multiply_adds) {
    if (!strstr(name, options->works)) return false;
    if (multiply_adds <= options->largest) return true;
    check_skipped++;
    return false;
}

/* ---- numbers ---- */

uint64_t random_next(void) {
    check_seed ^= check_seed << 13;
    check_seed ^= check_seed >> 7;
    check_seed ^= check_seed << 17;
    return check_seed * UINT64_C(0x2545f4914f6cdd1d);
}
/* The sum of four uniform numbers. */
float random_normal(void) {
    const uint64_t bits = random_next();
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += (int)(bits >> 16 * i & 0xffff);
    return (float)(sum - 131070) * (float)(1.7320508 / 65536);
}
double random_uniform(void) {
    return (double)(random_next() >> 11) * 0x1p-53;
}

uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float of_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
/* Adding a large power of two rounds to the last place that f16 has at x. */
uint16_t f16_of(float x) {
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) return 0x7fff;
    if (size == 0) return sign;
    if (size >= 65520) return sign | 0x7c00;
    int exponent;
    frexpf(size, &exponent);
    if (exponent < -13) exponent = -13;
    const int place = exponent - 11; /* of the last bit */
    const int steps = (int)rintf(ldexpf(size, -place));
    return sign | (uint16_t)(exponent == -13 ? steps : ((exponent + 13) << 10) + steps);
}
float of_f16(uint16_t x) {
    const int exponent = x >> 10 & 31, fraction = x & 1023;
    const float size = exponent == 31  ? fraction ? NAN : INFINITY
                       : exponent == 0 ? ldexpf((float)fraction, -24)
                                       : ldexpf((float)(1024 + fraction), exponent - 25);
    return x & 0x8000 ? -size : size;
}

double relative_error(const double *got, const double *want, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        if (got[i] == want[i] || (got[i] != got[i] && want[i] != want[i])) {
            if (isfinite(want[i])) size += want[i] * want[i];
            continue;
        }
        if (!isfinite(got[i]) || !isfinite(want[i])) return INFINITY;
        error += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

/* ---- memory of the device ---- */

void *device_open(int64_t bytes) {
    void *data;
    must(cudaMalloc(&data, (size_t)(bytes ? bytes : 1)), "memory of the device");
    device_poison(data, bytes ? bytes : 1);
    return data;
}
void device_poison(void *data, int64_t bytes) {
    must(cudaMemset(data, 0xff, (size_t)bytes), "poison");
}
void device_send(void *to, const void *from, int64_t bytes) {
    must(cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyHostToDevice), "copy to the device");
}
void device_fetch(void *to, const void *from, int64_t bytes) {
    must(cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyDeviceToHost), "copy from the device");
}
void device_close(void *data) {
    cudaFree(data);
}

/* ---- tensors ---- */

int64_t element_bytes(element of) {
    return of == ELEMENT_FLOAT32 ? 4 : 2;
}

static int64_t tensor_bytes(const tensor *t) {
    return t->elements * element_bytes(t->element);
}

tensor tensor_open(int64_t tokens, int64_t heads, int64_t size, int layout, element of) {
    tensor t = {.tokens = tokens, .heads = heads, .size = size, .element = of};
    t.row = layout == PADDED ? size + 24 : size;
    t.device.head_stride = layout == HEAD_MAJOR ? t.row * (tokens ? tokens : 1) : t.row;
    t.device.token_stride = layout == HEAD_MAJOR ? t.row : t.row * heads;
    t.elements = t.row * heads * (tokens ? tokens : 1);
    t.device.data = device_open(tensor_bytes(&t));
    t.host = malloc((size_t)tensor_bytes(&t));
    memset(t.host, 0xff, (size_t)tensor_bytes(&t));
    return t;
}
static void element_set(tensor *t, int64_t at, float x) {
    if (t->element == ELEMENT_FLOAT32)
        ((float *)t->host)[at] = x;
    else
        ((uint16_t *)t->host)[at] = t->element == ELEMENT_BF16 ? bf16_of(x) : f16_of(x);
}
tensor tensor_random(int64_t tokens, int64_t heads, int64_t size, int layout, element of, float deviation) {
    tensor t = tensor_open(tokens, heads, size, layout, of);
    for (int64_t i = 0; i < t.elements; i++) element_set(&t, i, random_normal() * deviation);
    tensor_send(&t);
    return t;
}
void tensor_send(tensor *t) {
    device_send(t->device.data, t->host, tensor_bytes(t));
}
void tensor_fetch(tensor *t) {
    device_fetch(t->host, t->device.data, tensor_bytes(t));
}
void tensor_poison(tensor *t) {
    device_poison(t->device.data, tensor_bytes(t));
}
void tensor_close(tensor *t) {
    device_close(t->device.data);
    free(t->host);
}
int64_t tensor_place(const tensor *t, int64_t token, int64_t head) {
    return token * t->device.token_stride + head * t->device.head_stride;
}
double tensor_at(const tensor *t, int64_t token, int64_t head, int64_t i) {
    const int64_t at = tensor_place(t, token, head) + i;
    if (t->element == ELEMENT_FLOAT32) return (double)((const float *)t->host)[at];
    const uint16_t bits = ((const uint16_t *)t->host)[at];
    return (double)(t->element == ELEMENT_BF16 ? of_bf16(bits) : of_f16(bits));
}
void tensor_set(tensor *t, int64_t token, int64_t head, int64_t i, double x) {
    element_set(t, tensor_place(t, token, head) + i, (float)x);
}

void tensor_expect_written(const tensor *t, const char *work, const char *kernel) {
    const int64_t bytes = element_bytes(t->element);
    int64_t unwritten = 0, spoiled = 0;
    for (int64_t at = 0; at < t->elements; at++) {
        bool poison = true;
        for (int64_t b = 0; b < bytes; b++) poison &= ((const unsigned char *)t->host)[at * bytes + b] == 0xff;
        if (at % t->row < t->size && t->tokens)
            unwritten += poison;
        else
            spoiled += !poison;
    }
    EXPECT(unwritten == 0, "%s, %s: %lld elements were not written", work, kernel, (long long)unwritten);
    EXPECT(spoiled == 0, "%s, %s: %lld elements between rows were written", work, kernel, (long long)spoiled);
}

void tensor_expect_same(const tensor *t, const char *work, const char *kernel, const char *what) {
    void *again = malloc((size_t)tensor_bytes(t));
    device_fetch(again, t->device.data, tensor_bytes(t));
    expect_same_bits(t->host, again, tensor_bytes(t), work, kernel, what);
    free(again);
}

/* ---- runs ---- */

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool device_wait(void *stream, double seconds) {
    for (const double end = seconds_now() + seconds; seconds_now() < end;) {
        const cudaError_t state = cudaStreamQuery((cudaStream_t)stream);
        if (state == cudaSuccess) return true;
        if (state != cudaErrorNotReady) must(state, "work on the device");
    }
    return false;
}

static void wait_or_end(const char *work, const char *kernel) {
    if (device_wait(NULL, 10)) return;
    printf("FAILED: %s, %s: does not end\n", work, kernel);
    exit(1);
}

void run_now(check_run *run, void *context, const char *work, const char *kernel) {
    const ln_cuda_code code = run(context, NULL);
    EXPECT(code == LN_CUDA_OK, "%s, %s: run gave %d", work, kernel, code);
    wait_or_end(work, kernel);
}

cudaGraphExec_t run_capture(check_run *run, void *context, const char *work, const char *kernel) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    must(cudaStreamCreate(&stream), "stream");
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
    const ln_cuda_code code = run(context, stream);
    EXPECT(code == LN_CUDA_OK, "%s, %s: run under capture gave %d", work, kernel, code);
    must(cudaStreamEndCapture(stream, &graph), "end of a capture");
    must(cudaGraphInstantiate(&ready, graph, 0), "graph");
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    return ready;
}

void run_graph(cudaGraphExec_t graph, const char *work, const char *kernel) {
    must(cudaGraphLaunch(graph, NULL), "launch of a graph");
    wait_or_end(work, kernel);
}

void expect_same_bits(const void *one, const void *other, int64_t bytes, const char *work, const char *kernel,
                      const char *what) {
    int64_t at = 0;
    while (at < bytes && ((const char *)one)[at] == ((const char *)other)[at]) at++;
    EXPECT(at == bytes, "%s, %s: other bits when run again: %s, from byte %lld of %lld", work, kernel, what,
           (long long)at, (long long)bytes);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void time_in_turns(check_run *run, void *const *contexts, int count, int rounds, timing *timings) {
    double *times = malloc((size_t)(rounds * count + 1) * sizeof *times);
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    for (int round = -2; round < rounds; round++)
        for (int k = 0; k < count; k++) {
            must(cudaEventRecord(begin, NULL), "event");
            const ln_cuda_code code = run(contexts[k], NULL);
            must(cudaEventRecord(end, NULL), "event");
            if (code != LN_CUDA_OK || !device_wait(NULL, 10)) {
                printf("FAILED: run gave %d or does not end\n", code);
                exit(1);
            }
            float milliseconds;
            must(cudaEventElapsedTime(&milliseconds, begin, end), "time");
            if (round >= 0) times[k * rounds + round] = (double)milliseconds;
        }
    for (int k = 0; k < count; k++) {
        qsort(times + k * rounds, (size_t)rounds, sizeof *times, ascending);
        timings[k] = (timing){times[k * rounds + rounds / 2], times[k * rounds]};
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    free(times);
}

double time_burst(check_run *run, void *context, int count) {
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    must(cudaEventRecord(begin, NULL), "event");
    for (int i = 0; i < count; i++) run(context, NULL);
    must(cudaEventRecord(end, NULL), "event");
    show_device("under load");
    float milliseconds = 0;
    if (device_wait(NULL, 20)) must(cudaEventElapsedTime(&milliseconds, begin, end), "time");
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return (double)milliseconds / count;
}

typedef struct copy {
    void *to, *from;
    size_t bytes;
} copy;
static ln_cuda_code copy_run(void *context, void *stream) {
    const copy *c = context;
    return ln_cuda_code_of(cudaMemcpyAsync(c->to, c->from, c->bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream));
}

double device_bandwidth(void) {
    const int64_t bytes = INT64_C(1) << 30;
    copy c = {device_open(bytes), device_open(bytes), (size_t)bytes};
    void *contexts[] = {&c};
    timing t;
    time_in_turns(copy_run, contexts, 1, 9, &t);
    device_close(c.to);
    device_close(c.from);
    return 2e3 * (double)bytes / t.median;
}

void show_device(const char *when) {
    printf("%s: ", when);
    fflush(stdout);
    if (system("nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader") != 0)
        printf("no nvidia-smi\n");
}
