/* Owns: what an NVIDIA GPU can do at most, by a large copy and a large product as prompts do them. Numbers are random:
 * products of zeros are faster. */
#include <string.h>

#include "base/clock.h"
#include "base/context.h"
#include "model/cuda/engine.h"

enum { SIZE = 8192, COPIES = 20, PRODUCTS = 10, ROUNDS = 3 };

typedef struct machine {
    linnet_context *context;
    ln_cuda_device device;
    void *stream, *library, *weight, *x, *y, *workspace;
    ln_cuda_product product;
    ln_cuda_product_plan plan;
} machine;

/* A row of random bf16 near 1, again and again. */
static ln_cuda_code fill(const machine *m, char *to, uint64_t bytes) {
    static uint16_t values[1 << 16];
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof values / 2; i++) {
        state = state * 1664525 + 1013904223;
        values[i] = (uint16_t)((state >> 16 & 0x807f) | 0x3f00);
    }
    ln_cuda_code code = ln_cuda_copy_to_device(to, values, sizeof values, m->stream);
    for (uint64_t done = sizeof values; !code && done < bytes; done *= 2)
        code = ln_cuda_copy_on_device(to + done, to, done < bytes - done ? done : bytes - done, m->stream);
    return code ? code : ln_cuda_wait(m->stream);
}

static ln_cuda_code copy(const machine *m) {
    return ln_cuda_copy_on_device(m->y, m->x, 2ull * SIZE * SIZE, m->stream);
}
static ln_cuda_code multiply(const machine *m) {
    return ln_cuda_product_run(&m->product, &m->plan, m->library, m->workspace, m->stream);
}

/* Seconds of one, the shortest of some rounds. */
static linnet_status measure(const machine *m, ln_cuda_code (*run)(const machine *m), int count, double *seconds) {
    *seconds = 0;
    for (int round = -1; round < ROUNDS; round++) {
        const double began = ln_seconds();
        for (int i = 0; i < count; i++) LN_CUDA_TRY(m->context, run(m), "measuring the GPU");
        LN_CUDA_TRY(m->context, ln_cuda_wait(m->stream), "measuring the GPU");
        const double took = (ln_seconds() - began) / count;
        if (round >= 0 && (*seconds == 0 || took < *seconds)) *seconds = took;
    }
    return LINNET_OK;
}

static linnet_status open_machine(machine *m) {
    const uint64_t matrix = 2ull * SIZE * SIZE;
    char why[LN_CUDA_WHY] = "";
    LN_CUDA_TRY(m->context, ln_cuda_device_read(0, &m->device), "looking for a GPU");
    LN_CUDA_TRY(m->context, ln_cuda_use(m->device.index), "choosing the GPU");
    LN_CUDA_TRY(m->context, ln_cuda_stream_open(&m->stream), "opening a stream");
    m->library = ln_cuda_library_open(why);
    m->product = (ln_cuda_product){.count = 1, .stride = {SIZE}, .x_stride = SIZE, .tokens = SIZE};
    m->product.weight[0] = (ln_cuda_weight){.kind = LN_CUDA_WEIGHT_BF16, .rows = SIZE, .columns = SIZE};
    LN_CUDA_TRY(m->context, ln_cuda_product_plan_make(&m->product, &m->device, m->library, &m->plan),
                "planning a product");
    LN_CUDA_TRY(m->context, ln_cuda_allocate(matrix, &m->weight), "making room to measure the GPU");
    LN_CUDA_TRY(m->context, ln_cuda_allocate(matrix, &m->x), "making room to measure the GPU");
    LN_CUDA_TRY(m->context, ln_cuda_allocate(2 * matrix, &m->y), "making room to measure the GPU");
    LN_CUDA_TRY(m->context, ln_cuda_allocate((uint64_t)m->plan.workspace + 256, &m->workspace),
                "making room to measure the GPU");
    LN_CUDA_TRY(m->context, fill(m, m->weight, matrix), "measuring the GPU");
    LN_CUDA_TRY(m->context, fill(m, m->x, matrix), "measuring the GPU");
    m->product.weight[0].codes = m->weight;
    m->product.x = m->x;
    m->product.y[0] = m->y;
    return LINNET_OK;
}

static void close_machine(machine *m) {
    void *const blocks[] = {m->weight, m->x, m->y, m->workspace};
    for (int i = 0; i < 4; i++) ln_cuda_release(blocks[i]);
    ln_cuda_library_close(m->library);
    if (m->stream) ln_cuda_stream_close(m->stream);
}

linnet_status ln_cuda_peaks(linnet_context *context, linnet_peaks *peaks) {
    machine m = {.context = context};
    double copied = 1, multiplied = 1;
    *peaks = (linnet_peaks){.size = sizeof *peaks};
    linnet_status status = open_machine(&m);
    if (status == LINNET_OK) status = measure(&m, copy, COPIES, &copied);
    if (status == LINNET_OK) status = measure(&m, multiply, PRODUCTS, &multiplied);
    close_machine(&m);
    if (status != LINNET_OK) return status;
    peaks->read_bytes = 4.0 * SIZE * SIZE / copied;
    peaks->bf16_operations = 2.0 * SIZE * SIZE * SIZE / multiplied;
    return LINNET_OK;
}
