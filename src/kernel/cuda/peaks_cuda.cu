/* Times a copy and products (peaks_cuda.h). The products go on until they take long enough to be timed; of some rounds
 * the best counts, since a peak is what nothing exceeds. */
#include <cuda_runtime.h>

#include "kernel/cuda/peaks_table.h"
#include "kernel/cuda/runtime_cuda.h"

enum { ROUNDS = 5 };
static const double LONG_ENOUGH = 5; /* ms */

typedef struct work {
    const ln_cuda_device *device;
    ln_cuda_peaks_start *start;
    int64_t size; /* rounds of products, or bytes of a copy */
    char *from, *to;
    double done; /* operations or bytes */
} work;

static ln_cuda_code start_work(work *w) {
    if (w->start) return w->start(w->device, w->size, (float *)w->to, NULL, &w->done);
    w->done = 2 * (double)w->size;
    return ln_cuda_copy_on_device(w->to, w->from, (uint64_t)w->size, NULL);
}

static ln_cuda_code time_work(work *w, cudaEvent_t begin, cudaEvent_t end, float *milliseconds) {
    ln_cuda_code code = ln_cuda_code_of(cudaEventRecord(begin, NULL));
    if (!code) code = start_work(w);
    if (!code) code = ln_cuda_code_of(cudaEventRecord(end, NULL));
    if (!code) code = ln_cuda_code_of(cudaEventSynchronize(end));
    if (!code) code = ln_cuda_code_of(cudaEventElapsedTime(milliseconds, begin, end));
    return code;
}

static ln_cuda_code rate_of(work *w, cudaEvent_t begin, cudaEvent_t end, double *rate) {
    float milliseconds = 0;
    ln_cuda_code code = time_work(w, begin, end, &milliseconds);
    while (!code && w->start && milliseconds > 0 && milliseconds < LONG_ENOUGH) {
        w->size *= 4;
        code = time_work(w, begin, end, &milliseconds);
    }
    *rate = 0;
    for (int i = 0; i < ROUNDS && !code; i++) {
        code = time_work(w, begin, end, &milliseconds);
        const double now = milliseconds > 0 ? 1e3 * w->done / milliseconds : 0;
        if (!code && now > *rate) *rate = now;
    }
    return code;
}

static ln_cuda_code measure_in(const ln_cuda_device *device, char *memory, int64_t bytes, ln_cuda_peaks *peaks) {
    cudaEvent_t begin = NULL, end = NULL;
    ln_cuda_code code = ln_cuda_code_of(cudaEventCreate(&begin));
    if (!code) code = ln_cuda_code_of(cudaEventCreate(&end));
    work copy = {device, NULL, bytes / 2, memory, memory + bytes / 2, 0};
    work products = {device, device->major == 9 ? ln_cuda_peaks_hopper : ln_cuda_peaks_portable, 2, NULL, memory, 0};
    if (!code) code = ln_cuda_zero(memory, (uint64_t)bytes, NULL);
    if (!code) code = rate_of(&copy, begin, end, &peaks->copy_bytes);
    if (!code) code = rate_of(&products, begin, end, &peaks->bf16_operations);
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    return code;
}

ln_cuda_code ln_cuda_peaks_measure(const ln_cuda_device *device, ln_cuda_peaks *peaks) {
    uint64_t available = 0, all = 0;
    void *memory = NULL;
    *peaks = {};
    ln_cuda_code code = ln_cuda_use(device->index);
    if (!code) code = ln_cuda_memory(&available, &all);
    const uint64_t least = 4096 * (uint64_t)device->multiprocessors;
    uint64_t bytes = available / 4 < UINT64_C(1) << 30 ? available / 4 : UINT64_C(1) << 30;
    bytes = bytes / 512 * 512 < least ? (least + 511) / 512 * 512 : bytes / 512 * 512;
    if (!code) code = ln_cuda_allocate(bytes, &memory);
    if (!code) code = measure_in(device, (char *)memory, (int64_t)bytes, peaks);
    ln_cuda_release(memory);
    return code;
}
