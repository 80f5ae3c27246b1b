/* The CUDA runtime on the emulated device. Work runs when it is given to a stream; under capture it is kept. */
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

#include "emulator.h"

struct ln_emulated_graph {
    std::vector<std::function<void()>> work;
};
struct ln_emulated_stream {
    ln_emulated_graph *captured;
};
struct ln_emulated_event {
    int unused;
};

namespace ln_emulator {

/* What is wrong with the device: LN_EMULATOR_DEVICE=none, there is none; old, its driver is older than the runtime;
 * LN_EMULATOR_MEMORY=bytes, it has no more; LN_EMULATOR_LOST=n, it fails in launch n and from there on. */
static bool device_is(const char *what) {
    const char *wanted = getenv("LN_EMULATOR_DEVICE");
    return wanted && !strcmp(wanted, what);
}
static size_t memory_of_device() {
    const char *wanted = getenv("LN_EMULATOR_MEMORY");
    return wanted ? (size_t)strtoull(wanted, NULL, 10) : (size_t)8 << 30;
}
static std::map<void *, size_t> allocated;
static size_t allocated_bytes;
static int64_t launches; /* since LN_EMULATOR_LOST has its value */

static cudaError_t state() {
    static std::string before;
    const char *wanted = getenv("LN_EMULATOR_LOST");
    if (before != (wanted ? wanted : "")) {
        before = wanted ? wanted : "";
        launches = 0;
    }
    return wanted && launches >= atoll(wanted) ? cudaErrorLaunchFailure : cudaSuccess;
}

/* LN_EMULATOR_DEVICE=8.6 for another device than 9.0. */
const device_traits &device() {
    static device_traits traits = {9, 0, 4, 232448, 50 << 20};
    static bool read;
    if (!read) {
        const char *wanted = getenv("LN_EMULATOR_DEVICE");
        if (wanted && !device_is("none") && !device_is("old") &&
            sscanf(wanted, "%d.%d", &traits.major, &traits.minor) != 2)
            fail("LN_EMULATOR_DEVICE=%s", wanted);
        if (traits.major != 9) traits.shared_bytes = traits.minor == 0 ? 166912 : 101376;
        read = true;
    }
    return traits;
}

static std::map<const void *, int> allowed_bytes; /* of dynamic shared memory, by kernel */

static void give(cudaStream_t stream, std::function<void()> work) {
    if (stream && stream->captured)
        stream->captured->work.push_back(std::move(work));
    else if (state() == cudaSuccess)
        work();
}

cudaError_t launch(const void *kernel, std::function<void()> thread, dim3 grid, dim3 block, int shared_bytes,
                   cudaStream_t stream, int cluster) {
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const auto allowed = allowed_bytes.find(kernel);
    if (!threads || threads > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (cluster != 1 && (cluster < 1 || cluster > 8 || grid.x % (unsigned)cluster || device().major < 9))
        return cudaErrorInvalidClusterSize;
    if (shared_bytes > (allowed == allowed_bytes.end() ? 49152 : allowed->second)) return cudaErrorInvalidValue;
    give(stream, [=] {
        launches++;
        if (state() == cudaSuccess) run_grid(thread, grid, block, shared_bytes, cluster);
    });
    return state();
}

} // namespace ln_emulator

using namespace ln_emulator;

/* ---- errors and devices ---- */

const char *cudaGetErrorName(cudaError_t error) {
    static char text[32];
    snprintf(text, sizeof text, "cudaError %d", (int)error);
    return error == cudaSuccess ? "cudaSuccess" : text;
}
const char *cudaGetErrorString(cudaError_t error) {
    return cudaGetErrorName(error);
}
cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}
cudaError_t cudaPeekAtLastError(void) {
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = device_is("none") ? 0 : device_is("old") ? 11000 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (device_is("none")) return cudaErrorNoDevice;
    if (device_is("old")) return cudaErrorInsufficientDriver;
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *index) {
    *index = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
    return index == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetPCIBusId(char *, int, int) {
    return cudaErrorInvalidDevice; /* an emulated one lies on no bus */
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int index) {
    if (index != 0) return cudaErrorInvalidDevice;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = 49152;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = 32;
        return cudaSuccess;
    case cudaDevAttrClockRate:
        *value = 1000000;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = device().multiprocessors;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = device().cache_bytes;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = device().major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = device().minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = device().shared_bytes + 1024;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = device().shared_bytes;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}
cudaError_t cudaDeviceSynchronize(void) {
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
    const bool known = !strcmp(symbol, "cuTensorMapEncodeTiled");
    *function = known ? (void *)encode_tiled : NULL;
    if (found) *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
cudaError_t ln_emulator::function_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > device().shared_bytes) return cudaErrorInvalidValue;
    allowed_bytes[kernel] = value;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **data, size_t bytes) {
    *data = NULL;
    if (bytes == 0) return cudaSuccess;
    if (bytes > memory_of_device() - allocated_bytes || posix_memalign(data, 256, bytes))
        return cudaErrorMemoryAllocation;
    allocated_bytes += allocated[*data] = bytes;
    memset(*data, 0xff, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void *data) {
    const auto found = allocated.find(data);
    if (found != allocated.end()) {
        allocated_bytes -= found->second;
        allocated.erase(found);
    }
    free(data);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    *properties = {"emulated GPU"};
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaMallocHost(void **data, size_t bytes) {
    *data = NULL;
    return bytes && posix_memalign(data, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) {
    return cudaFree(data);
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *all) {
    *all = memory_of_device();
    *unused = *all - allocated_bytes;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    give(stream, [=] {
        if (bytes) memmove(to, from, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}
cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream) {
    give(stream, [=] {
        if (bytes) memset(to, byte, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int byte, size_t bytes) {
    return cudaMemsetAsync(to, byte, bytes, NULL);
}

/* ---- streams, graphs, events ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new ln_emulated_stream();
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
static cudaError_t waits(cudaStream_t stream) {
    return stream && stream->captured ? cudaErrorStreamCaptureUnsupported : state();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return waits(stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return waits(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream->captured) return cudaErrorStreamCaptureUnsupported;
    stream->captured = new ln_emulated_graph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream || !stream->captured) return cudaErrorInvalidValue;
    *graph = stream->captured;
    stream->captured = NULL;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long) {
    *ready = new ln_emulated_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
    for (const std::function<void()> &work : ready->work)
        if (state() == cudaSuccess) work();
    return state();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    return cudaGraphDestroy(ready);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new ln_emulated_event();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 0;
    return cudaSuccess;
}
