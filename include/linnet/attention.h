/* Linnet: exact softmax attention as an operator: describe it (settings), plan it, run it.
 *
 *     score[i][j] = cap(scale * query[i] . key[j]) + bias[i][j]   for the keys j that query i sees,
 *     output[i]   = sum_j exp(score[i][j] - lse[i]) value[j],      lse[i] = log(exp(sink) + sum_j exp(score[i][j])).
 *
 * Tensors are [token, head, size] with strides; the sequences of a batch lie one after the other (offsets, no padding).
 * Heads may share keys: query head h reads key-value head h / (heads / key_value_heads). A query that sees no key gives
 * zeros and lse -inf. Query i of a sequence of n queries and m keys stands at position i + m - n: aligned to the end.
 *
 * A plan is made once for given shapes; running allocates nothing, takes no lock and gives the same bits for any number
 * of threads. docs/attention.md has the formula of every option. Experimental: may change between versions. */
#ifndef LINNET_ATTENTION_H
#define LINNET_ATTENTION_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- describe ---- */

enum { LINNET_AXES_MOST = 3 };

/* Neighbourhood attention (P004: Hassani et al. 2024): tokens are the points of a grid, the last axis fastest. Along an
 * axis of n points with dilation d, a point sees `window` points of its own residue modulo d, centred on it but pushed
 * inside at the borders, start = clamp(i - window / 2, 0, n' - window) in steps of d; causal: itself and those before
 * it, at most window of them. */
typedef struct linnet_neighbourhood {
    int axes;                                                                               /* 0: none */
    int64_t extent[LINNET_AXES_MOST], window[LINNET_AXES_MOST], dilation[LINNET_AXES_MOST]; /* dilation 0: 1 */
    bool causal[LINNET_AXES_MOST];
} linnet_neighbourhood;

/* Which tiles of keys the tiles of queries see (P033): for list l = head * query_tiles + tile, or l = tile where one
 * list serves all heads, the key tiles tiles[offsets[l]] .. tiles[offsets[l + 1] - 1], ascending. Tiles are counted
 * from the first token of the sequence; only for one sequence. */
typedef struct linnet_block_mask {
    int64_t query_tile, key_tile; /* tokens in a tile; key_tile a multiple of 32. 0: none */
    bool per_head;
    const int64_t *offsets; /* [lists + 1] */
    const int32_t *tiles;
} linnet_block_mask;

typedef struct linnet_attention_settings {
    size_t size;      /* set by linnet_attention_settings_default */
    linnet_type type; /* of query, key, value and their gradients: LINNET_F32 or LINNET_BF16. Sums are float32 always */
    int64_t heads, key_value_heads; /* key_value_heads 0: as many as heads; divides heads */
    int64_t key_size, value_size;   /* multiples of 8, 8 to 576; value_size 0: key_size */
    int64_t sequences;              /* 0: 1 */
    const int64_t *query_offsets;   /* [sequences + 1], ascending from 0: tokens of sequence s */
    const int64_t *key_offsets;     /* likewise; NULL: as the queries (self attention) */
    float scale;                    /* 0: key_size^-1/2 */
    float soft_cap;                 /* cap(s) = soft_cap tanh(s / soft_cap); 0: cap(s) = s */
    bool exact; /* products of float32 even where bf16 inputs could go through matrix units with weights in bf16 */

    /* Mask: a key must pass all that are given. Positions are those of keys. */
    bool causal;                     /* key <= position */
    int64_t window;                  /* position - key < window, and, unless causal, key - position < window. 0: none */
    int64_t prefix;                  /* the first keys of each sequence, seen whatever causal and window say */
    int64_t documents;               /* 0: none */
    const int64_t *document_offsets; /* [documents + 1]: of keys, counted over the batch: only the own document */
    linnet_block_mask blocks;
    linnet_neighbourhood neighbourhood; /* self attention over sequences of extent[0] * ... tokens */

    /* Bias: a sum of all that are given. */
    const float *alibi; /* [heads]: -alibi[h] |position - key| */
    int64_t rank;       /* of factors query_factor . key_factor given when running (P257); 0: none */
    bool bias;          /* dense, given when running */
    int64_t relative;   /* relative[h][distance clamped to +-(relative - 1)], a table given when running; 0: none */
    bool sinks;         /* given when running */

    bool backward;          /* linnet_attention_backward will be called too */
    int64_t cache_capacity; /* most tokens of a cache that linnet_attention_cached will be called with; 0: not called.
                               Then offsets of keys are not needed */
    linnet_type output;     /* of the output: LINNET_F32, the default; on a device (cuda.h) also that of `type` */
} linnet_attention_settings;

LINNET_API linnet_attention_settings linnet_attention_settings_default(void);

/* ---- plan ---- */

typedef struct linnet_attention_plan linnet_attention_plan;

/* Settings are copied, with all that their pointers point to. LINNET_ERROR_ARGUMENT names the setting that is wrong. */
LINNET_API linnet_status linnet_attention_plan_open(linnet_context *context, const linnet_attention_settings *settings,
                                                    linnet_attention_plan **plan);
LINNET_API void linnet_attention_plan_close(linnet_attention_plan *plan);
/* Bytes of the workspace that running needs, aligned to 64. */
LINNET_API uint64_t linnet_attention_workspace(const linnet_attention_plan *plan);

/* What a run costs, counted from the plan's own tiles. */
typedef struct linnet_attention_cost {
    size_t size;
    double flops;         /* 2 (key_size + value_size) for each pair of query head and key that is seen */
    double visited_flops; /* the same for the tiles that are visited */
    double exponentials;  /* of visited pairs */
    int64_t tiles, visited,
        partial;   /* (query tile, key tile) pairs in all, visited, and visited under a mask by element */
    int64_t tasks; /* independent pieces of work */
    int64_t query_tile, key_tile;
    int passes;         /* over keys and values, for one tile of queries (P176) */
    double slow_words;  /* words of `type` moved between memory and the cache that the tiles were cut for */
    double bound_words; /* the law (P007): N^2 d^2 / M where the cache holds M >= d^2 words, N^2 d / sqrt(M) below */
    double cache_words; /* M */
} linnet_attention_cost;
LINNET_API linnet_status linnet_attention_plan_cost(const linnet_attention_plan *plan, linnet_attention_cost *cost);
/* The plan in a few lines: kernel, tiles, tasks, cost, and why each faster kernel was refused. Returns the bytes it
 * takes with its final zero; writes at most `bytes` of them. */
LINNET_API size_t linnet_attention_plan_text(const linnet_attention_plan *plan, char *text, size_t bytes);

/* ---- run ---- */

typedef struct linnet_attention_tensors {
    size_t size;
    linnet_tensor query, key, value; /* of settings.type */
    linnet_tensor output;            /* float32 */
    float *log_sum_exp;              /* [query tokens, heads], natural logarithm; NULL: not wanted */

    const float *sinks;         /* [heads] */
    const float *query_factors; /* [query tokens, heads, rank] */
    const float *key_factors;   /* [key tokens, key_value_heads, rank] */
    const float *bias;          /* element [h][i][j], i and j counted in their sequence, at h * bias_head_stride + i *
                                   bias_row_stride + j of          bias + bias_offset[s] */
    int64_t bias_head_stride, bias_row_stride; /* bias_head_stride 0: one for all heads */
    const int64_t *bias_offsets;               /* [sequences]; NULL: 0 for all */
    const float *relative;                     /* [heads, 2 relative - 1]; the middle is distance 0 = key - position */

    /* Backward alone: output and log_sum_exp are inputs then. Gradients are float32 and are overwritten. NULL: not
     * wanted. */
    linnet_tensor output_gradient; /* float32 */
    linnet_tensor query_gradient, key_gradient, value_gradient;
    float *query_factors_gradient, *key_factors_gradient, *sinks_gradient;
} linnet_attention_tensors;

/* workspace: linnet_attention_workspace bytes. After linnet_interrupt: LINNET_INTERRUPTED, and results are incomplete.
 */
LINNET_API linnet_status linnet_attention_forward(const linnet_attention_plan *plan,
                                                  const linnet_attention_tensors *tensors, void *workspace);
/* Gradients of sum(output * output_gradient) for a plan with settings.backward. */
LINNET_API linnet_status linnet_attention_backward(const linnet_attention_plan *plan,
                                                   const linnet_attention_tensors *tensors, void *workspace);

/* Two results for the same queries over disjoint keys become the result over both, in place of the first:
 * output [tokens, heads, value_size] packed, lse [tokens, heads]. */
LINNET_API linnet_status linnet_attention_merge(linnet_context *context, int64_t tokens, int64_t heads,
                                                int64_t value_size, float *output, float *log_sum_exp,
                                                const float *other_output, const float *other_log_sum_exp);

/* ---- keys and values kept between calls ---- */

typedef struct linnet_cache linnet_cache;

typedef struct linnet_cache_settings {
    size_t size;
    int64_t key_value_heads, key_size, value_size;
    linnet_type precision; /* LINNET_F32, BF16, F16, Q8_0, Q4_0, or Q5, Q4, Q3, Q2 */
    int64_t capacity;      /* tokens */
    bool value_in_key;     /* values are the first value_size columns of the keys (absorbed latent attention) */
} linnet_cache_settings;

LINNET_API linnet_cache_settings linnet_cache_settings_default(void);
LINNET_API linnet_status linnet_cache_open(linnet_context *context, const linnet_cache_settings *settings,
                                           linnet_cache **cache);
LINNET_API void linnet_cache_close(linnet_cache *cache);
LINNET_API int64_t linnet_cache_tokens(const linnet_cache *cache);
/* float32 keys and values of the next tokens; values are ignored with value_in_key. LINNET_ERROR_FULL changes nothing.
 */
LINNET_API linnet_status linnet_cache_append(linnet_cache *cache, int64_t tokens, linnet_tensor key,
                                             linnet_tensor value);
LINNET_API linnet_status linnet_cache_rewind(linnet_cache *cache, int64_t tokens);
/* Attention of the plan's queries over one cache a sequence (tensors->key and value are not used): decoding, and
 * prompts in pieces. Queries are float32 or bf16 as planned. */
LINNET_API linnet_status linnet_attention_cached(const linnet_attention_plan *plan,
                                                 const linnet_attention_tensors *tensors, linnet_cache *const *caches,
                                                 void *workspace);

#ifdef __cplusplus
}
#endif
#endif
