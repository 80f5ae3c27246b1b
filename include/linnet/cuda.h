/* Linnet on NVIDIA GPUs: the operators of attention.h and mixer.h with tensors in the memory of a device. Settings and
 * tensors are the same structures as on the CPU; what differs is said here. Decoding has its own: pages are the
 * caller's.
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
 * aligned to 16 bytes with strides that are multiples of 8 elements; settings.output says what outputs are. Calls make
 * the device the calling thread's current one. What was opened on a linnet_cuda is closed before it.
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

/* For programs without the CUDA toolkit; any other device memory, stream and graph do as well. Send and fetch wait
 * until they are done, not for what runs on other streams: linnet_cuda_wait before. */
LINNET_API linnet_status linnet_cuda_allocate(linnet_cuda *cuda, uint64_t bytes, void **memory);
LINNET_API void linnet_cuda_release(linnet_cuda *cuda, void *memory);
LINNET_API linnet_status linnet_cuda_send(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes);
LINNET_API linnet_status linnet_cuda_fetch(linnet_cuda *cuda, void *to, const void *from, uint64_t bytes);
LINNET_API linnet_status linnet_cuda_wait(linnet_cuda *cuda, void *stream);
LINNET_API linnet_status linnet_cuda_stream_open(linnet_cuda *cuda, void **stream);
LINNET_API void linnet_cuda_stream_close(linnet_cuda *cuda, void *stream);
/* What is started on an opened stream between begin and end is kept, not run: a graph, which runs as often as asked. */
LINNET_API linnet_status linnet_cuda_graph_begin(linnet_cuda *cuda, void *stream);
LINNET_API linnet_status linnet_cuda_graph_end(linnet_cuda *cuda, void *stream, void **graph);
LINNET_API linnet_status linnet_cuda_graph_run(linnet_cuda *cuda, void *graph, void *stream);
LINNET_API void linnet_cuda_graph_close(linnet_cuda *cuda, void *graph);

/* ---- exact attention ---- */

typedef struct linnet_cuda_attention linnet_cuda_attention;

/* Sizes of keys and values 64, 96, 128, 192, 256, or keys of 192 with values of 128; causal, window, soft_cap, sinks,
 * sequences, blocks (tiles that are multiples of 64), and rank where a kernel has room for key_size + 3 rank columns
 * (128 for values of 64 and 96, 256 for 128 and 192), not with soft_cap. settings.backward: with all of these.
 * Unlike on the processor, an infinity or NaN in a value may also reach rows that do not see it, of the same sequence
 * and key-value head: where a mask cuts a tile, weights of 0 are multiplied.
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

/* ---- exact attention over pages: decoding ---- */

typedef struct linnet_cuda_decode linnet_cuda_decode;

/* What linnet_attention_cached does with caches, for a few new queries of each sequence and keys and values that lie in
 * pages of the caller's. Lengths and page tables are on the device and may change between runs, also of a captured
 * graph. Query i of n stands at position length - n + i and sees the keys up to it (causal); one before the first
 * key, and any of a length of 0, gives zeros and a log_sum_exp of -inf, or of the sink. Of several queries, one may be
 * reached by an infinity or NaN in a value that only a later one sees. Terms are as in attention.h. */
typedef struct linnet_cuda_decode_settings {
    size_t size;           /* set by linnet_cuda_decode_settings_default */
    linnet_type type;      /* of queries, and of keys and values to append: LINNET_BF16 (default), F16 or F32 */
    linnet_type output;    /* of the output: LINNET_F32 (default) or LINNET_BF16 */
    linnet_type precision; /* of the pages: LINNET_BF16 (default), F16, Q8_0, Q4_0, Q4 or Q2 */
    int64_t sequences;     /* 0: 1 */
    int64_t queries;       /* of each sequence, 1 to 8; 0: 1 */
    int64_t heads, key_value_heads; /* key_value_heads 0: as many as heads; divides heads */
    int64_t key_size, value_size;   /* 64, 96, 128, 192 or 256, both the same (value_size 0: key_size); or 576 and 512
                                       with value_in_key */
    bool value_in_key;   /* values are the first value_size columns of the keys (absorbed latent attention, MLA); one
                            key-value head, pages of bf16 or f16 */
    int64_t capacity;    /* no length will be more; at most 2^30 */
    int64_t page_tokens; /* a power of two from 16 on; 0: no page table, page s is all of sequence s */
    float scale;         /* 0: key_size^-1/2 */
    float soft_cap;      /* 0: none */
    int64_t window;      /* 0: none */
    bool sinks;          /* given when running */
} linnet_cuda_decode_settings;

LINNET_API linnet_cuda_decode_settings linnet_cuda_decode_settings_default(void);

/* Errors as of linnet_cuda_attention_open. */
LINNET_API linnet_status linnet_cuda_decode_open(linnet_cuda *cuda, const linnet_cuda_decode_settings *settings,
                                                 linnet_cuda_decode **decode);
LINNET_API void linnet_cuda_decode_close(linnet_cuda_decode *decode);
LINNET_API uint64_t linnet_cuda_decode_workspace(const linnet_cuda_decode *decode);
LINNET_API size_t linnet_cuda_decode_text(const linnet_cuda_decode *decode, char *text, size_t bytes);
LINNET_API linnet_status linnet_cuda_decode_prepare(const linnet_cuda_decode *decode, void *workspace, void *stream);
/* Bytes of the keys of a page, all heads, where strides are 0. As many for values, where they are not in the keys. */
LINNET_API uint64_t linnet_cuda_decode_page_bytes(const linnet_cuda_decode *decode);

/* Keys or values of all pages: head h of page p begins at data + p * page_stride + h * head_stride. Of bf16 and f16
 * token t follows at t * token_stride; of the others come tiles of 16 tokens, one after the other, in an order of their
 * own (append writes it, unpack reads it). Strides in bytes, multiples of 16; 0: packed [page][head][token]. Of bf16
 * and f16 page_stride is a multiple of token_stride, and head_stride is, or of 128. */
typedef struct linnet_cuda_pages {
    void *data; /* aligned to 16 bytes */
    int64_t page_stride, head_stride, token_stride;
} linnet_cuda_pages;

/* All on the device. */
typedef struct linnet_cuda_decode_tensors {
    size_t size;
    linnet_tensor query, output;  /* token s * queries + i is query i of sequence s */
    linnet_cuda_pages key, value; /* value: not read with value_in_key */
    const int32_t *page_table; /* [sequences][table_stride]: numbers of a sequence's pages, those that hold tokens that
                                  are seen; NULL where page_tokens is 0 */
    int64_t table_stride;      /* 0: pages of `capacity` tokens */
    const int32_t *lengths;    /* [sequences]: with the new tokens, 0 to capacity */
    const float *sinks;        /* [heads] */
    float *log_sum_exp;        /* [sequences * queries, heads]; NULL: not wanted */
} linnet_cuda_decode_tensors;

LINNET_API linnet_status linnet_cuda_decode_run(const linnet_cuda_decode *decode,
                                                const linnet_cuda_decode_tensors *tensors, void *workspace,
                                                void *stream);
/* Rounds keys and values (settings.type) into the pages as linnet_cache_append does, Q4 and Q2 with steps by token,
 * as the last `tokens` tokens of each length; what would lie before the first is left out. Row s * tokens + i is token
 * i of sequence s. Of `tensors` pages, page_table and lengths are read. */
LINNET_API linnet_status linnet_cuda_decode_append(const linnet_cuda_decode *decode,
                                                   const linnet_cuda_decode_tensors *tensors, int64_t tokens,
                                                   linnet_tensor key, linnet_tensor value, void *stream);
/* Tokens first .. first + tokens - 1 of one sequence out of the pages, rounded to bf16: for linnet_cuda_attention_* of
 * a prompt's next piece. */
LINNET_API linnet_status linnet_cuda_decode_unpack(const linnet_cuda_decode *decode,
                                                   const linnet_cuda_decode_tensors *tensors, int64_t sequence,
                                                   int64_t first, int64_t tokens, linnet_tensor key,
                                                   linnet_tensor value, void *stream);

/* ---- mixers in linear time ---- */

typedef struct linnet_cuda_mixer linnet_cuda_mixer;

/* Rows that GPUs have, all in each of their forms, with settings.type LINNET_BF16: linear_attention, retention,
 * lightning_attention, simple_gla, ssd, gla, gla_value, mlstm, mlstm_sigmoid, delta_rule, gated_delta_rule, kda, dplr,
 * rwkv7, selective_scan, short_convolution. Settings and tensors mean what they mean on the processor; besides
 *  - output_gradient is bf16; gradients of inputs of settings.type are of settings.output (those of dplr, rwkv7,
 *    selective_scan and short_convolution are rounded to bf16 first), of gates, parameters and states float32;
 *  - states are float32 in the processor's layout, so that they may move between the two; state_slots are on the
 *    device;
 *  - heads have keys of any size to 256 (delta rules, kda, dplr, rwkv7: to 128 but in the step) and values of any size
 *    (dplr, rwkv7: to 128 but in the step); a scan has to 64 slots. Where there is no kernel for a size (there are
 *    for 64, 128 and mostly 256), for `reverse` or for `gates` of bf16, tensors are copied into the workspace to fit;
 *  - every tensor begins at a whole element and has no negative strides; rate, skip, weight and bias, beta and decay of
 *    the delta rules and the gradients of these lie without gaps;
 *  - `exact` is for the step, the scan and the convolution, `chunk` is the kernels' own.
 * LINNET_ERROR_UNSUPPORTED names the row, the size or the option that there is no kernel for. */
LINNET_API linnet_status linnet_cuda_mixer_open(linnet_cuda *cuda, const linnet_mixer_settings *settings,
                                                linnet_mixer_form form, linnet_cuda_mixer **mixer);
LINNET_API void linnet_cuda_mixer_close(linnet_cuda_mixer *mixer);
LINNET_API uint64_t linnet_cuda_mixer_workspace(const linnet_cuda_mixer *mixer);
LINNET_API size_t linnet_cuda_mixer_text(const linnet_cuda_mixer *mixer, char *text, size_t bytes);
LINNET_API linnet_status linnet_cuda_mixer_prepare(const linnet_cuda_mixer *mixer, void *workspace, void *stream);
LINNET_API linnet_status linnet_cuda_mixer_run(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                               void *workspace, void *stream);
/* As linnet_mixer_window, with both states, decay and window on the device. */
LINNET_API linnet_status linnet_cuda_mixer_window(linnet_cuda *cuda, const linnet_mixer_settings *settings,
                                                  const float *now, const float *before, const double *decay,
                                                  float *window, void *stream);

#ifdef __cplusplus
}
#endif
#endif
