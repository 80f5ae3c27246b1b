/* Linnet on NVIDIA GPUs: the operators of attention.h and mixer.h with tensors in the memory of a device. Settings and
 * tensors are the same structures as on the CPU; what differs is said here.
 *
 *     linnet_cuda_open(context, 0, &cuda);
 *     linnet_cuda_attention_open(cuda, &settings, &attention);
 *     ... linnet_cuda_attention_workspace(attention) bytes on the device, aligned to 256 ...
 *     linnet_cuda_attention_prepare(attention, workspace, stream);            once; waits for the stream
 *     linnet_cuda_attention_forward(attention, &tensors, workspace, stream);  starts the work and returns
 *
 * Every pointer in tensors is to device memory; offsets and lists in settings are on the host. Streams are `void *`: a
 * cudaStream_t, NULL the default one. Running allocates nothing, waits for nothing, may be captured in a CUDA graph and
 * gives the same bits each time; two runs may not use one workspace at once. Inputs are LINNET_BF16 or LINNET_F16,
 * aligned to 16 bytes with strides that are multiples of 8 elements; settings.output says what outputs are.
 *
 * In a build without CUDA, on a machine without a device or with too old a driver, linnet_cuda_open returns
 * LINNET_ERROR_UNSUPPORTED and linnet_last_error says which. Experimental: may change between versions. */
#ifndef LINNET_CUDA_H
#define LINNET_CUDA_H

#include "linnet/attention.h"
#include "linnet/bench.h"
#include "linnet/mixer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct linnet_cuda linnet_cuda;

/* Device `index` of those that the driver shows. */
LINNET_API linnet_status linnet_cuda_open(linnet_context *context, int index, linnet_cuda **cuda);
LINNET_API void linnet_cuda_close(linnet_cuda *cuda);

typedef struct linnet_cuda_info {
    size_t size;
    char name[128];
    int index, major, minor; /* major.minor: the compute capability */
    int multiprocessors;
    uint64_t memory, free_memory; /* bytes */
    double clock, power;          /* now: MHz of the multiprocessors, watts; 0: the driver does not tell */
} linnet_cuda_info;
LINNET_API linnet_status linnet_cuda_describe(linnet_cuda *cuda, linnet_cuda_info *info);

/* What the device can do at most: bf16_operations of products whose operands stay in the multiprocessors, read_bytes
 * those that a copy on the device reads and writes; the others 0. Takes a fifth of a second and up to 1 GiB of the
 * device. */
LINNET_API linnet_status linnet_cuda_measure_peaks(linnet_cuda *cuda, linnet_peaks *peaks);

/* For programs without the CUDA toolkit; any other device memory does as well. Send and fetch wait. */
LINNET_API linnet_status linnet_cuda_allocate(linnet_cuda *cuda, uint64_t bytes, void **memory);
LINNET_API void linnet_cuda_release(linnet_cuda *cuda, void *memory);
LINNET_API linnet_status linnet_cuda_send(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes);
LINNET_API linnet_status linnet_cuda_fetch(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes);
LINNET_API linnet_status linnet_cuda_wait(linnet_cuda *cuda, void *stream);

/* ---- exact attention ---- */

typedef struct linnet_cuda_attention linnet_cuda_attention;

/* Sizes of keys and values 64, 96, 128, 192, 256, or keys of 192 with values of 128; causal, window, soft_cap, sinks,
 * sequences, blocks (tiles that are multiples of 64), and rank where a kernel has room for key_size + 3 rank columns
 * (128 for values of 64 and 96, 256 for 128 and 192). settings.backward: with all of these.
 * LINNET_ERROR_UNSUPPORTED names an option that GPUs do not have here; LINNET_ERROR_ARGUMENT the setting that is wrong.
 */
LINNET_API linnet_status linnet_cuda_attention_open(linnet_cuda *cuda, const linnet_attention_settings *settings,
                                                    linnet_cuda_attention **attention);
LINNET_API void linnet_cuda_attention_close(linnet_cuda_attention *attention);
LINNET_API uint64_t linnet_cuda_attention_workspace(const linnet_cuda_attention *attention);
/* Which kernel, and why not a faster one; as linnet_attention_plan_text. */
LINNET_API size_t linnet_cuda_attention_text(const linnet_cuda_attention *attention, char *text, size_t bytes);
LINNET_API linnet_status linnet_cuda_attention_prepare(const linnet_cuda_attention *attention, void *workspace,
                                                       void *stream);
LINNET_API linnet_status linnet_cuda_attention_forward(const linnet_cuda_attention *attention,
                                                       const linnet_attention_tensors *tensors, void *workspace,
                                                       void *stream);
/* For a plan with settings.backward, after a forward run or with the output and log_sum_exp of one. output_gradient is
 * of settings.type; the gradients of query, key and value, all of which are wanted, are of settings.output, those of
 * sinks and factors float32. Deterministic. */
LINNET_API linnet_status linnet_cuda_attention_backward(const linnet_cuda_attention *attention,
                                                        const linnet_attention_tensors *tensors, void *workspace,
                                                        void *stream);

/* ---- mixers in linear time ---- */

typedef struct linnet_cuda_mixer linnet_cuda_mixer;

/* Rows that GPUs have, with settings.type LINNET_BF16:
 *   forward   retention, lightning_attention, linear_attention, simple_gla, gla, ssd, mlstm, delta_rule,
 *             gated_delta_rule, kda, dplr, rwkv7, selective_scan, short_convolution;
 *   step      the same and mlstm_sigmoid: one token of each sequence, tokens = sequences;
 *   backward  linear_attention, simple_gla, gla, delta_rule, gated_delta_rule, kda, dplr, rwkv7, selective_scan,
 *             short_convolution. output_gradient is bf16; gradients of inputs of settings.type are of settings.output,
 *             which must be LINNET_BF16 for the last four, those of gates, parameters and states float32.
 * States are float32 in the layout that they have on the processor, so that they may move between the two. state_slots
 * are on the device; linear attention has none in its forward form. LINNET_ERROR_UNSUPPORTED names the row, the size or
 * the option that there is no kernel for. */
LINNET_API linnet_status linnet_cuda_mixer_open(linnet_cuda *cuda, const linnet_mixer_settings *settings,
                                                linnet_mixer_form form, linnet_cuda_mixer **mixer);
LINNET_API void linnet_cuda_mixer_close(linnet_cuda_mixer *mixer);
LINNET_API uint64_t linnet_cuda_mixer_workspace(const linnet_cuda_mixer *mixer);
LINNET_API size_t linnet_cuda_mixer_text(const linnet_cuda_mixer *mixer, char *text, size_t bytes);
LINNET_API linnet_status linnet_cuda_mixer_prepare(const linnet_cuda_mixer *mixer, void *workspace, void *stream);
LINNET_API linnet_status linnet_cuda_mixer_run(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                               void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
