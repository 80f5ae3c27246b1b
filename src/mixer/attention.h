/* Exact softmax attention over key-value pages, causal, with an optional window and soft cap:
 *     output[p] = sum over keys k of softmax_k(cap(scale q[p] . key[k])) value[k],   p - window < k <= p. */
#ifndef LN_MIXER_ATTENTION_H
#define LN_MIXER_ATTENTION_H

#include "base/threads.h"
#include "kernel/kernel.h"

typedef struct ln_attention {
    int64_t heads,
        key_value_heads; /* heads is a multiple of key_value_heads; a key-value head serves consecutive heads */
    int64_t key_size, value_size;
    float scale;
    float soft_cap; /* s = cap tanh(s / cap); 0: none */
    int64_t window; /* a token sees itself and window - 1 before it; 0: all */
} ln_attention;

/* Bytes of workspace for at most `tokens` tokens at once. */
uint64_t ln_attention_workspace(const ln_kernels *kernels, int threads, const ln_attention *attention, int64_t tokens);

/* query [tokens, query_stride >= heads * key_size], rotated already, of positions position .. position + tokens - 1,
 * whose keys and values are in the view. output [tokens, output_stride >= heads * value_size]. workspace: aligned to
 * 64 bytes. The bits of the output depend neither on the number of threads nor on what lies beyond the positions seen;
 * how a prompt is cut into calls changes them by rounding only. Keys or values that are not finite reach those heads
 * and positions only that see them. */
void ln_attention_run(const ln_kernels *kernels, ln_team *team, const ln_attention *attention, const ln_page_view *view,
                      const float *query, int64_t query_stride, int64_t position, int64_t tokens, float *output,
                      int64_t output_stride, void *workspace);

#endif
