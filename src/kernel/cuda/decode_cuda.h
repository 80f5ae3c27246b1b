/* Decode attention on an NVIDIA GPU: a few new queries of each sequence against all its keys and values, which lie in
 * pages.
 *
 *     score[r][j] = cap(scale * query[r] . key[j]) for the keys j that row r sees,
 *     output[r] = sum_j exp(score[r][j] - lse[r]) value[j],   lse[r] = log(exp(sink) + sum_j exp(score[r][j])).
 *
 * A row r is one query of one head; the rows of all query heads of a key-value head are done together, so that each key
 * is read once. Query i of n stands at position length - n + i and sees keys up to its position, with a window w only
 * those at less than w from it.
 *
 * Lengths and page tables are on the device and may change between runs, also of a captured graph: the kernel divides
 * the work itself. Invariant: a result depends on the lengths of the batch and the plan alone, bit for bit. */
#ifndef LN_KERNEL_CUDA_DECODE_H
#define LN_KERNEL_CUDA_DECODE_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Plain pages hold rows of size elements. Pages of codes hold tiles of LN_CUDA_TILE tokens (decode_layout.h), a block
 * of 32 values with the same codes and scale as on the CPU: q8_0 and q4_0 of number/format.h, q4 and q2 of
 * kernel/low_bits.h by token. */
typedef enum ln_cuda_page_format {
    LN_CUDA_PAGE_BF16,
    LN_CUDA_PAGE_F16,
    LN_CUDA_PAGE_Q8_0,
    LN_CUDA_PAGE_Q4_0,
    LN_CUDA_PAGE_Q4,
    LN_CUDA_PAGE_Q2,
    LN_CUDA_PAGE_FORMATS
} ln_cuda_page_format;

typedef enum ln_cuda_element { LN_CUDA_ELEMENT_BF16, LN_CUDA_ELEMENT_F16, LN_CUDA_ELEMENT_FLOAT32 } ln_cuda_element;

enum { LN_CUDA_TILE = 16, LN_CUDA_QUERIES = 8 /* most queries of a sequence */ };

/* The keys or the values of all pages: token t of page p and head h is at data + p * page_stride + h * head_stride, and
 * then t * token_stride, or in tile t / LN_CUDA_TILE of the tiles that lie one after the other there. Strides in bytes,
 * multiples of 16. Of plain pages the page_stride is a multiple of token_stride, and the head_stride is, or of 128. */
typedef struct ln_cuda_page_part {
    void *data;
    int64_t page_stride, head_stride, token_stride;
} ln_cuda_page_part;

/* Bytes of a tile of such keys or values; size is a multiple of 32. */
int64_t ln_cuda_tile_bytes(ln_cuda_page_format format, int64_t size);

typedef struct ln_cuda_decode {
    int64_t sequences, queries; /* of each sequence */
    int64_t heads, key_value_heads, key_size, value_size;
    int64_t capacity;    /* no length will be more */
    int64_t page_tokens; /* a power of two >= LN_CUDA_TILE; 0: contiguous, page s is all of sequence s */
    ln_cuda_page_format format;
    ln_cuda_element query_element, output_element; /* output: bf16 or float32 */
    float scale, soft_cap;                         /* scale > 0; soft_cap 0: none */
    int64_t window;                                /* 0: none */
    bool value_in_key; /* values are the first value_size elements of keys (latent attention); key_value_heads is 1 */
} ln_cuda_decode;

/* One compiled kernel. */
typedef struct ln_cuda_decode_kernel {
    const char *name;
    ln_cuda_page_format format;
    int key_size, value_size, rows; /* rows: of a tile of queries */
    int threads, shared_bytes;
    int blocks;        /* of a multiprocessor at a time */
    bool brief;        /* for short contexts alone: lengths do not decide which block does what */
    int unit_shift;    /* log2 of the tokens of a unit of work */
    int major;         /* 9: sm_90a alone; 8: sm_80 and newer */
    bool value_in_key; /* and results are always joined by a second kernel */
    /* Starts it; `arguments` are its run and (of 9) the description of keys for the copy engine. NULL: the end of the
     * table. */
    ln_cuda_code (*start)(void *const *arguments, int blocks, void *stream);
} ln_cuda_decode_kernel;

typedef struct ln_cuda_decode_plan {
    ln_cuda_device device;
    const ln_cuda_decode_kernel *kernel;
    int64_t tiles, shares; /* of rows of a key-value head; blocks that divide the keys. Blocks: tiles * shares */
    int64_t workspace;     /* bytes, aligned to 256 */
    bool joined;           /* a second kernel joins what blocks leave */
    char why[LN_CUDA_WHY];
} ln_cuda_decode_plan;

/* The table of kernels, best first, ended by a row that cannot start. */
const ln_cuda_decode_kernel *ln_cuda_decode_kernels(int row);

/* Chooses a kernel; `kernel` not NULL: takes that one or fails. */
ln_cuda_code ln_cuda_decode_plan_make(const ln_cuda_decode *decode, const ln_cuda_device *device,
                                      const ln_cuda_decode_kernel *kernel, ln_cuda_decode_plan *plan);
/* Makes a workspace ready; waits for the stream. Once for a plan: running leaves it as it was. Two runs may not use one
 * workspace at the same time. */
ln_cuda_code ln_cuda_decode_prepare(const ln_cuda_decode_plan *plan, void *workspace, void *stream);

/* All on the device. */
typedef struct ln_cuda_decode_tensors {
    ln_cuda_tensor query, output; /* token s * queries + i is query i of sequence s */
    ln_cuda_page_part key, value;
    const int32_t *page_table; /* [sequences][table_stride]: the numbers of a sequence's pages; contiguous: not read */
    int64_t table_stride;
    const int32_t *lengths; /* [sequences]: with the new tokens */
    const float *sinks;     /* [heads]; NULL: none */
    float *log_sum_exp;     /* [sequences * queries, heads]; NULL: not wanted */
} ln_cuda_decode_tensors;

/* Starts the work on the stream of the plan's device, which must be the current one; may be captured in a graph. */
ln_cuda_code ln_cuda_decode_run(const ln_cuda_decode *decode, const ln_cuda_decode_plan *plan,
                                const ln_cuda_decode_tensors *tensors, void *workspace, void *stream);

/* New keys and values, row s * tokens + i token i of sequence s. */
typedef struct ln_cuda_decode_rows {
    int64_t tokens; /* of each sequence */
    ln_cuda_element element;
    ln_cuda_tensor key, value;
} ln_cuda_decode_rows;

/* Rounds them into the pages as the CPU does, as the last `tokens` tokens of each length; those that would lie before
 * the first are left out. No plan is needed; of `decode` sizes, heads, sequences, pages and format are read. */
ln_cuda_code ln_cuda_decode_append(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors,
                                   const ln_cuda_decode_rows *rows, void *stream);
/* Tokens first .. first + tokens - 1 of a sequence, rounded to bf16, for attention of a prompt. */
ln_cuda_code ln_cuda_decode_unpack(const ln_cuda_decode *decode, const ln_cuda_decode_tensors *tensors,
                                   int64_t sequence, int64_t first, int64_t tokens, const ln_cuda_tensor *keys,
                                   const ln_cuda_tensor *values, void *stream);

#ifdef __cplusplus
}
#endif
#endif
