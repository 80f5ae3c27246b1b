/* The runtime as plain C sees it (runtime_cuda.h). */
#include "kernel/cuda/runtime_cuda.h"

#include <cuda_runtime.h>
#include <stdio.h>

/* An error is told once: the next call does not find it again. */
static ln_cuda_code code_of(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return ln_cuda_code_of(error);
}

ln_cuda_code ln_cuda_use(int index) {
    return code_of(cudaSetDevice(index));
}

ln_cuda_code ln_cuda_memory(uint64_t *available, uint64_t *all) {
    size_t unused = 0, total = 0;
    const ln_cuda_code code = code_of(cudaMemGetInfo(&unused, &total));
    *available = unused;
    *all = total;
    return code;
}

void ln_cuda_device_name(int index, char *name, int room) {
    cudaDeviceProp properties;
    const cudaError_t error = cudaGetDeviceProperties(&properties, index);
    snprintf(name, (size_t)room, "%s", error == cudaSuccess ? properties.name : "device");
    code_of(error);
}

void ln_cuda_versions(int *driver, int *runtime) {
    *driver = *runtime = 0;
    code_of(cudaDriverGetVersion(driver));
    code_of(cudaRuntimeGetVersion(runtime));
}

ln_cuda_code ln_cuda_allocate(uint64_t bytes, void **memory) {
    *memory = NULL;
    return code_of(cudaMalloc(memory, bytes ? bytes : 1));
}
void ln_cuda_release(void *memory) {
    if (memory) code_of(cudaFree(memory));
}
ln_cuda_code ln_cuda_allocate_host(uint64_t bytes, void **memory) {
    *memory = NULL;
    return code_of(cudaMallocHost(memory, bytes ? bytes : 1));
}
void ln_cuda_release_host(void *memory) {
    if (memory) code_of(cudaFreeHost(memory));
}

ln_cuda_code ln_cuda_stream_open(void **stream) {
    return code_of(cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
}
void ln_cuda_stream_close(void *stream) {
    if (stream) code_of(cudaStreamDestroy((cudaStream_t)stream));
}
ln_cuda_code ln_cuda_wait(void *stream) {
    return code_of(cudaStreamSynchronize((cudaStream_t)stream));
}

ln_cuda_code ln_cuda_copy_to_device(void *to, const void *from, uint64_t bytes, void *stream) {
    return code_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
}
ln_cuda_code ln_cuda_copy_to_host(void *to, const void *from, uint64_t bytes, void *stream) {
    return code_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream));
}
ln_cuda_code ln_cuda_copy_on_device(void *to, const void *from, uint64_t bytes, void *stream) {
    return code_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream));
}
ln_cuda_code ln_cuda_zero(void *memory, uint64_t bytes, void *stream) {
    return code_of(cudaMemsetAsync(memory, 0, bytes, (cudaStream_t)stream));
}

ln_cuda_code ln_cuda_graph_begin(void *stream) {
    return code_of(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
}
ln_cuda_code ln_cuda_graph_end(void *stream, void **graph) {
    cudaGraph_t captured = NULL;
    *graph = NULL;
    cudaError_t error = cudaStreamEndCapture((cudaStream_t)stream, &captured);
    if (error == cudaSuccess) error = cudaGraphInstantiate((cudaGraphExec_t *)graph, captured, 0);
    if (captured) cudaGraphDestroy(captured);
    return code_of(error);
}
ln_cuda_code ln_cuda_graph_run(void *graph, void *stream) {
    return code_of(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
}
void ln_cuda_graph_close(void *graph) {
    if (graph) code_of(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}
