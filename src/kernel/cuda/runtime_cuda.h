/* What an engine asks of the runtime, as plain C sees it: memory of the device, copies, streams, captured graphs.
 * Kernels need none of it. Copies and zeros are ordered by their stream; only ln_cuda_wait waits. */
#ifndef LN_KERNEL_CUDA_RUNTIME_H
#define LN_KERNEL_CUDA_RUNTIME_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the device current for this thread. */
ln_cuda_code ln_cuda_use(int index);
ln_cuda_code ln_cuda_memory(uint64_t *available, uint64_t *all);
void ln_cuda_device_name(int index, char *name, int room);
/* Versions as 1000 * major + 10 * minor; 0: unknown. */
void ln_cuda_versions(int *driver, int *runtime);

/* Aligned to 256. */
ln_cuda_code ln_cuda_allocate(uint64_t bytes, void **memory);
void ln_cuda_release(void *memory);
/* Of the host, where copies need not wait. */
ln_cuda_code ln_cuda_allocate_host(uint64_t bytes, void **memory);
void ln_cuda_release_host(void *memory);

ln_cuda_code ln_cuda_stream_open(void **stream);
void ln_cuda_stream_close(void *stream);
ln_cuda_code ln_cuda_wait(void *stream);

ln_cuda_code ln_cuda_copy_to_device(void *to, const void *from, uint64_t bytes, void *stream);
ln_cuda_code ln_cuda_copy_to_host(void *to, const void *from, uint64_t bytes, void *stream);
ln_cuda_code ln_cuda_copy_on_device(void *to, const void *from, uint64_t bytes, void *stream);
ln_cuda_code ln_cuda_zero(void *memory, uint64_t bytes, void *stream);

/* What is started on the stream between begin and end is kept, not run. */
ln_cuda_code ln_cuda_graph_begin(void *stream);
ln_cuda_code ln_cuda_graph_end(void *stream, void **graph);
ln_cuda_code ln_cuda_graph_run(void *graph, void *stream);
void ln_cuda_graph_close(void *graph);

#ifdef __cplusplus
}
#endif
#endif
