/* Owns: opened devices, their memory as plain programs see it, and the sentences for what a device refuses. */
#include <string.h>

#include "kernel/cuda/peaks_cuda.h"
#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/cuda.h"

linnet_status ln_cuda_tell(const linnet_cuda *cuda, ln_cuda_code code, const char *what, const char *why) {
    linnet_context *context = cuda->context;
    switch (code) {
    case LN_CUDA_OK:
        return LINNET_OK;
    case LN_CUDA_NO_DEVICE:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the driver shows no CUDA device %d; look at nvidia-smi, or run on the processor", what,
                       cuda->device.index);
    case LN_CUDA_OLD_DRIVER: {
        int driver = 0, runtime = 0;
        ln_cuda_versions(&driver, &runtime);
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the driver knows CUDA %d.%d and this library was built with %d.%d; update the driver", what,
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    case LN_CUDA_UNSUPPORTED:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s: %s", what,
                       why ? why : "the device cannot run the kernels of this build");
    case LN_CUDA_ARGUMENT:
        return ln_fail(
            context, LINNET_ERROR_ARGUMENT, "%s: %s", what,
            why ? why
                : "a tensor or workspace is missing or not aligned, strides are no multiples of 16 bytes, or gates, "
                  "parameters or their gradients have gaps");
    case LN_CUDA_OUT_OF_MEMORY:
        return ln_fail(context, LINNET_ERROR_MEMORY,
                       "%s: device %d, or the machine for its tables, has not that much free memory", what,
                       cuda->device.index);
    default:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: device %d reported an error (%s); what it was doing is lost, close what uses it", what,
                       cuda->device.index, ln_cuda_error_name());
    }
}

const char *ln_cuda_wrong_workspace(const void *workspace) {
    return workspace && (uintptr_t)workspace % 256 == 0 ? NULL : "the workspace is NULL or not aligned to 256 bytes";
}

linnet_status linnet_cuda_open(linnet_context *context, int index, linnet_cuda **cuda) {
    *cuda = NULL;
    linnet_cuda opened = {.context = context, .device = {.index = index}};
    ln_cuda_code code = ln_cuda_device_read(index, &opened.device);
    if (!code) code = ln_cuda_use(index);
    if (code) {
        opened.device.index = index;
        return ln_cuda_tell(&opened, code, "opening a GPU", NULL);
    }
    if (opened.device.major < 8)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "GPU %d has compute capability %d.%d; 8.0 is the least that there are kernels for", index,
                       opened.device.major, opened.device.minor);
    linnet_cuda *made = ln_allocate_zero(context, 1, sizeof *made, "GPU");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = opened;
    *cuda = made;
    return LINNET_OK;
}

void linnet_cuda_close(linnet_cuda *cuda) {
    if (!cuda) return;
    ln_cuda_sensors_close(cuda->sensors);
    ln_release(cuda->context, cuda);
}

linnet_status linnet_cuda_describe(linnet_cuda *cuda, linnet_cuda_info *info) {
    const ln_cuda_device *d = &cuda->device;
    linnet_cuda_info told = {.size = info->size,
                             .index = d->index,
                             .major = d->major,
                             .minor = d->minor,
                             .multiprocessors = d->multiprocessors};
    ln_cuda_device_name(d->index, told.name, sizeof told.name);
    ln_cuda_code code = ln_cuda_use(d->index);
    if (!code) code = ln_cuda_memory(&told.free_memory, &told.memory);
    if (code) return ln_cuda_tell(cuda, code, "reading a GPU", NULL);
    if (!cuda->sensors) cuda->sensors = ln_cuda_sensors_open(d->index);
    ln_cuda_sensors_read(cuda->sensors, &told.clock, &told.power);
    memcpy(info, &told, info->size < sizeof told ? info->size : sizeof told);
    return LINNET_OK;
}

linnet_status linnet_cuda_measure_peaks(linnet_cuda *cuda, linnet_peaks *peaks) {
    ln_cuda_peaks measured;
    const ln_cuda_code code = ln_cuda_peaks_measure(&cuda->device, &measured);
    if (code) return ln_cuda_tell(cuda, code, "measuring a GPU", NULL);
    const linnet_peaks told = {
        .size = peaks->size, .bf16_operations = measured.bf16_operations, .read_bytes = measured.copy_bytes};
    memcpy(peaks, &told, peaks->size < sizeof told ? peaks->size : sizeof told);
    return LINNET_OK;
}

/* ---- memory ---- */

linnet_status linnet_cuda_allocate(linnet_cuda *cuda, uint64_t bytes, void **memory) {
    *memory = NULL;
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_allocate(bytes ? bytes : 1, memory);
    return ln_cuda_tell(cuda, code, "allocating", NULL);
}

void linnet_cuda_release(linnet_cuda *cuda, void *memory) {
    if (memory && !ln_cuda_use(cuda->device.index)) ln_cuda_release(memory);
}

linnet_status linnet_cuda_send(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes) {
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_copy_to_device(to, from, bytes, NULL);
    if (!code) code = ln_cuda_wait(NULL);
    return ln_cuda_tell(cuda, code, "sending to a GPU", NULL);
}

linnet_status linnet_cuda_fetch(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes) {
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_copy_to_host(to, from, bytes, NULL);
    if (!code) code = ln_cuda_wait(NULL);
    return ln_cuda_tell(cuda, code, "fetching from a GPU", NULL);
}

linnet_status linnet_cuda_wait(linnet_cuda *cuda, void *stream) {
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_wait(stream);
    return ln_cuda_tell(cuda, code, "waiting for a GPU", NULL);
}

/* ---- streams and graphs ---- */

linnet_status linnet_cuda_stream_open(linnet_cuda *cuda, void **stream) {
    *stream = NULL;
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_stream_open(stream);
    return ln_cuda_tell(cuda, code, "opening a stream", NULL);
}

void linnet_cuda_stream_close(linnet_cuda *cuda, void *stream) {
    if (stream && !ln_cuda_use(cuda->device.index)) ln_cuda_stream_close(stream);
}

linnet_status linnet_cuda_graph_begin(linnet_cuda *cuda, void *stream) {
    const char *wrong = stream ? NULL : "the default stream keeps no graph; open one";
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_graph_begin(stream);
    return ln_cuda_tell(cuda, code, "beginning a graph", wrong);
}

linnet_status linnet_cuda_graph_end(linnet_cuda *cuda, void *stream, void **graph) {
    *graph = NULL;
    const char *wrong = stream ? NULL : "there is no stream";
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_graph_end(stream, graph);
    return ln_cuda_tell(cuda, code, "ending a graph", wrong);
}

linnet_status linnet_cuda_graph_run(linnet_cuda *cuda, void *graph, void *stream) {
    const char *wrong = graph ? NULL : "there is none";
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_graph_run(graph, stream);
    return ln_cuda_tell(cuda, code, "running a graph", wrong);
}

void linnet_cuda_graph_close(linnet_cuda *cuda, void *graph) {
    if (graph && !ln_cuda_use(cuda->device.index)) ln_cuda_graph_close(graph);
}
