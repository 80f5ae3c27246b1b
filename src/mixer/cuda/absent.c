/* The operators on a device in a build without CUDA: there is no device to open, so that nothing else has an object. */
#include "base/context.h"
#include "linnet/cuda.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"

linnet_status linnet_cuda_open(linnet_context *context, int index, linnet_cuda **cuda) {
    *cuda = NULL;
    return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                   "GPU %d: this library was built without CUDA; build it with -DLINNET_CUDA=ON", index);
}

void linnet_cuda_close(linnet_cuda *cuda) {}
linnet_status linnet_cuda_describe(linnet_cuda *cuda, linnet_cuda_info *info) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_measure_peaks(linnet_cuda *cuda, linnet_peaks *peaks) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_allocate(linnet_cuda *cuda, uint64_t bytes, void **memory) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_release(linnet_cuda *cuda, void *memory) {}
linnet_status linnet_cuda_send(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_fetch(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_wait(linnet_cuda *cuda, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_stream_open(linnet_cuda *cuda, void **stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_stream_close(linnet_cuda *cuda, void *stream) {}
linnet_status linnet_cuda_graph_begin(linnet_cuda *cuda, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_graph_end(linnet_cuda *cuda, void *stream, void **graph) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_graph_run(linnet_cuda *cuda, void *graph, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_graph_close(linnet_cuda *cuda, void *graph) {}
linnet_status linnet_cuda_attention_open(linnet_cuda *cuda, const linnet_attention_settings *settings,
                                         linnet_cuda_attention **attention) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_attention_close(linnet_cuda_attention *attention) {}
uint64_t linnet_cuda_attention_workspace(const linnet_cuda_attention *attention) {
    return 0;
}
size_t linnet_cuda_attention_text(const linnet_cuda_attention *attention, char *text, size_t bytes) {
    return 0;
}
linnet_status linnet_cuda_attention_prepare(const linnet_cuda_attention *attention, void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_attention_forward(const linnet_cuda_attention *attention,
                                            const linnet_attention_tensors *tensors, void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_attention_backward(const linnet_cuda_attention *attention,
                                             const linnet_attention_tensors *tensors, void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_cuda_decode_settings linnet_cuda_decode_settings_default(void) {
    return (linnet_cuda_decode_settings){.size = sizeof(linnet_cuda_decode_settings),
                                         .type = LINNET_BF16,
                                         .output = LINNET_F32,
                                         .precision = LINNET_BF16};
}
linnet_status linnet_cuda_decode_open(linnet_cuda *cuda, const linnet_cuda_decode_settings *settings,
                                      linnet_cuda_decode **decode) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_decode_close(linnet_cuda_decode *decode) {}
uint64_t linnet_cuda_decode_workspace(const linnet_cuda_decode *decode) {
    return 0;
}
size_t linnet_cuda_decode_text(const linnet_cuda_decode *decode, char *text, size_t bytes) {
    return 0;
}
linnet_status linnet_cuda_decode_prepare(const linnet_cuda_decode *decode, void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
uint64_t linnet_cuda_decode_page_bytes(const linnet_cuda_decode *decode) {
    return 0;
}
linnet_status linnet_cuda_decode_run(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                     void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_decode_append(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                        int64_t tokens, linnet_tensor key, linnet_tensor value, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_decode_unpack(const linnet_cuda_decode *decode, const linnet_cuda_decode_tensors *tensors,
                                        int64_t sequence, int64_t first, int64_t tokens, linnet_tensor key,
                                        linnet_tensor value, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_mixer_open(linnet_cuda *cuda, const linnet_mixer_settings *settings, linnet_mixer_form form,
                                     linnet_cuda_mixer **mixer) {
    return LINNET_ERROR_UNSUPPORTED;
}
void linnet_cuda_mixer_close(linnet_cuda_mixer *mixer) {}
uint64_t linnet_cuda_mixer_workspace(const linnet_cuda_mixer *mixer) {
    return 0;
}
size_t linnet_cuda_mixer_text(const linnet_cuda_mixer *mixer, char *text, size_t bytes) {
    return 0;
}
linnet_status linnet_cuda_mixer_prepare(const linnet_cuda_mixer *mixer, void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_mixer_run(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                    void *workspace, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
linnet_status linnet_cuda_mixer_window(linnet_cuda *cuda, const linnet_mixer_settings *settings, const float *now,
                                       const float *before, const double *decay, float *window, void *stream) {
    return LINNET_ERROR_UNSUPPORTED;
}
