/* Exact softmax attention over key-value pages (equation in
 * linnet/attention.h), for a batch of sequences. */
#ifndef LN_MIXER_ATTENTION_H
#define LN_MIXER_ATTENTION_H

#include <stdatomic.h>

#include "base/threads.h"
#include "kernel/kernel.h"
#include "mixer/mask.h"

/* What the sequences of a call share. */
typedef struct ln_attention {
    int64_t heads, key_value_heads; /* heads is a multiple; a key-value head
                                       serves consecutive heads */
    int64_t key_size, value_size;
    float scale, soft_cap;
    bool bf16;  /* queries, keys, values and weights may be rounded to bf16 where that is faster */
    bool exact; /* nor may few queries be rounded to integers of 16 bits for pages of integers */
    ln_mask mask;
    const float *sinks;             /* [heads]; NULL: none */
    const atomic_bool *interrupted; /* once true, what is left is left undone; NULL: never */
} ln_attention;

static inline bool ln_attention_interrupted(const ln_attention *attention) {
    return attention->interrupted && atomic_load_explicit(attention->interrupted, memory_order_relaxed);
}

typedef struct ln_attention_sequence {
    ln_page_view view;
    int64_t keys;             /* in the view: 0 .. keys - 1, or from the mask's window on */
    int64_t tokens, position; /* of queries; the first one's position */
    linnet_type query_type;   /* F32 or BF16 */
    const void *query;
    float *output;
    int64_t query_stride, query_head_stride, output_stride,
        output_head_stride; /* elements, token to token, head to head */
    float *log_sum_exp;     /* [tokens, heads], natural; NULL: not wanted */
    const int64_t *order;   /* row of `query`, `output` and log_sum_exp of the i-th
                               token; NULL: i */
    ln_bias bias;
    const unsigned char
        *operands;     /* written by ln_attention_pack; NULL: keys and values are packed where they are used */
    int64_t key_begin; /* overrides the mask's */
    const uint8_t
        *counts; /* overrides the mask's: tokens that are in each page, its first ones; NULL: all before `keys` */
} ln_attention_sequence;

/* How a call will be computed. */
typedef struct ln_attention_choice {
    const char *kernel;  /* name of the products' kernel */
    const char *refused; /* why the bf16 matrix units are not used; NULL: they are */
    linnet_type packed;  /* best precision of pages for inputs that are not in pages yet */
    int64_t tile_rows;   /* query rows (tokens x heads of a group) of a tile */
} ln_attention_choice;
/* tokens: most in a sequence. */
ln_attention_choice ln_attention_choose(const ln_kernels *kernels, const ln_attention *attention, int64_t tokens);

/* Where ln_attention_choose says that bf16 matrix units serve, keys and values that many tiles of queries will see are
 * better packed for them once: bytes for all heads of a sequence of `keys` keys, a multiple of 64. */
uint64_t ln_attention_operand_bytes(const ln_kernels *kernels, const ln_attention *attention, int64_t keys);
/* Writes them, aligned to 64 bytes, from the sequence's pages, and sets sequence->operands. */
void ln_attention_pack(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                       ln_attention_sequence *sequence, unsigned char *operands);

/* Bytes of workspace for at most `tokens` tokens in at most `sequences`
 * sequences at once. */
uint64_t ln_attention_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention,
                                int64_t sequences, int64_t tokens);

/* workspace: aligned to 64 bytes. The bits of the output depend neither on the
 * number of threads nor on what lies beyond the positions seen; how a prompt is
 * cut into calls changes them by rounding only. Keys or values that are not
 * finite reach those heads and positions only that see them. A query that sees
 * no key gives 0 and -inf. */
void ln_attention_run(const ln_kernels *kernels, ln_team *team, const ln_attention *attention,
                      const ln_attention_sequence *sequences, int64_t count, void *workspace);

#endif
