/* Linnet: approximate attention, each method a choice of what the one exact tile loop (linnet/attention.h) visits.
 *
 *     linnet_approximate_settings settings = linnet_approximate_settings_default(LINNET_APPROXIMATE_HIP);
 *
 * Self attention of one sequence. Tensors, heads and strides are those of linnet_attention. A plan is made for given
 * shapes; running allocates nothing and gives the same bits for any number of threads. In a causal plan no output
 * depends on a later key or value; where queries choose together, a tile of them or (HYPER) a half, a later query of
 * the same tile or half takes part in the choice. linnet_approximate_error tells what a method costs in accuracy on
 * given inputs. "Tiles" are query_tile x key_tile; where a method chooses whole tiles, scores of pairs in them are
 * exact. docs/approximate.md has a table of all, and what the papers leave open. Experimental: may change between
 * versions. */
#ifndef LINNET_APPROXIMATE_H
#define LINNET_APPROXIMATE_H

#include "linnet/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum linnet_approximation {
    /* Block-sparse attention (P033: Dao et al. 2022): the tiles of settings.blocks. */
    LINNET_APPROXIMATE_BLOCKS,
    /* HyperAttention (P016: Han et al. 2023). Signs of `hash_bits` random projections give each query and key a bucket,
     * numbered so that neighbouring buckets differ in one sign (Gray order); queries and keys are sorted by it, and the
     * i-th `bucket` queries see the i-th `bucket` keys exactly. Of n keys, m = `samples` drawn without repetition stand
     * for those outside the block, each with weight n / m; both parts are merged by their log-sum-exp. Causal: the
     * second half sees the first half in that way, and each half is halved again down to `leaf` tokens, which are
     * exact. bucket >= tokens or samples >= tokens: exact. */
    LINNET_APPROXIMATE_HYPER,
    /* HiP (P041: Lee et al. 2024). For each tile of queries the tiles of keys are cut into k = budget / key_tile runs;
     * each round halves every run, takes the key in the middle of a half for it, and keeps the k halves whose largest
     * score with the tile's queries (every query_stride-th) is best, until a run is one tile. */
    LINNET_APPROXIMATE_HIP,
    /* Core Context Aware attention (P215: Chen et al. 2024). A group of `group` tokens becomes one core key and value,
     * sum_j w[j] key[j] and sum_j w[j] value[j] with w = softmax over the group of scale * query[last] . key[j] (the
     * mean of those scores over the query heads that share the key). Query t sees the tokens from u = group *
     * floor(max(0, t + 1 - window) / group) on, and the cores of the groups before u, in one softmax: each earlier
     * token once. Causal only. group = 1: exact. */
    LINNET_APPROXIMATE_CORE,
    /* In-context ranking (P281: BlockRank, Gupta et al. 2025): instruction, documents, query, one after the other. The
     * instruction and each document see themselves, documents also the instruction, query tokens everything (causal:
     * before them). An output of a document has the same bits whatever the other documents are. document_scores gets
     * the attention that query tokens pay to each document, summed over tokens and heads. */
    LINNET_APPROXIMATE_RANKING,
    /* SEA (P291: Lee et al. 2023), its training-free part. Keys fall into `width` buckets; positive random features
     * phi(x) = exp(omega . x - |x|^2 / 2) / features^1/2 (Performer; scale goes into x as its root) estimate
     * phi(query) . sum phi(key), the mass of each bucket, in linear time. The buckets of most mass, summed over a
     * tile's queries, up to `budget` keys, become tiles. output = (1 - u) softmax over them + u (mean of the values
     * seen), u the estimated share of the mass left out, or `mix`. The paper's learned decoder (an MLP and a CNN that
     * refine the estimate) and learned mixing are left out: the linear estimate itself chooses. */
    LINNET_APPROXIMATE_SEA,
    /* SLA (P303: Zhang et al. 2025). With the mean query and mean key of each tile, softmax(scale Q' K'^T) ranks the
     * key tiles of a query tile: the share `critical` is attended to exactly, the share `skipped` from the bottom is
     * left out, the rest is linear attention: output = softmax part + (phi(q) sum_j h[j]) / (phi(q) . sum_j z[j]) P
     * with h[j] = phi(K_j)^T V_j, z[j] = sum phi(K_j) and P given or the identity. Causal: tiles on the diagonal are
     * critical. Made for models tuned with it: the two parts are each normalised. critical = 1: exact. */
    LINNET_APPROXIMATE_SLA,
    /* Prefill of LServe (P053: Yang et al. 2025). Streaming heads see the first `sinks` and last `recent` keys. In the
     * others every `page` keys have bounds low, high of each channel; sum_i max(q[i] low[i], q[i] high[i]) is at least
     * the score of each key of the page. A tile of keys has the best bound of its pages with the tile's queries (every
     * query_stride-th), and the best budget / key_tile tiles are seen besides. */
    LINNET_APPROXIMATE_PAGES,
    LINNET_APPROXIMATIONS
} linnet_approximation;

typedef enum linnet_feature_map {
    LINNET_FEATURES_SOFTMAX, /* phi(x) = softmax of the elements of x */
    LINNET_FEATURES_ELU      /* phi(x) = x + 1 above 0, exp(x) below */
} linnet_feature_map;

typedef struct linnet_approximate_settings {
    size_t size; /* set by linnet_approximate_settings_default */
    linnet_approximation method;
    linnet_type type; /* of query, key and value: LINNET_F32 or LINNET_BF16 */
    int64_t tokens;
    int64_t heads, key_value_heads; /* key_value_heads 0: as many as heads; divides heads */
    int64_t key_size, value_size;   /* multiples of 8, 8 to 256; value_size 0: key_size */
    float scale;                    /* 0: key_size^-1/2 */
    bool causal, exact;             /* as in linnet_attention_settings; causal is true by default */
    bool backward;                  /* linnet_approximate_backward will be called too: BLOCKS, HIP, SLA, PAGES */
    uint64_t seed;                  /* of hash planes, samples and random features */

    /* Tiles of keys that are chosen: all methods but HYPER, CORE and RANKING. */
    int64_t query_tile, key_tile; /* multiples of 32, at most 1024; query_tile 0, the default: what the tile loop
                                       takes at once on this processor; key_tile: 128 */
    /* HIP, SEA, PAGES: what each tile of queries sees, in keys, rounded up to whole tiles. */
    int64_t sinks, recent; /* the first keys; those around the query (before it, causal): default 128, 512 */
    int64_t budget;        /* chosen besides; default 1024 */
    int64_t query_stride;  /* HIP, PAGES: default 16 */
    bool group_choice; /* HIP, PAGES: query heads that share a key choose together, by the best score of any (default):
                          the tile loop then computes nothing that it hides. false: each for itself, as in the papers */

    int64_t bucket, samples;              /* HYPER: default 256, 256; bucket a multiple of 32, samples at most 2^20 */
    int64_t leaf;                         /* HYPER, causal: default 2048 */
    int hash_bits;                        /* HYPER: 1 to 12; default 8 */
    int64_t group, window;                /* CORE: default 16, 1024 */
    int64_t instruction, documents;       /* RANKING: tokens of the instruction, number of documents */
    const int64_t *document_offsets;      /* RANKING: [documents + 1]: first is `instruction`, last the query's begin */
    int64_t width, features;              /* SEA: default 256, 64; features a multiple of 8, at most 256 */
    float mix;                            /* SEA: u; below 0: estimated; default -1 */
    float critical, skipped;              /* SLA: shares; default 0.05, 0.1 */
    linnet_feature_map feature_map;       /* SLA: default LINNET_FEATURES_SOFTMAX */
    const unsigned char *streaming_heads; /* PAGES: [heads], 1: streaming; NULL: none. With group_choice alike
                                       in heads that share a key */
    int64_t page;                         /* PAGES: divides key_tile; default 16 */
    linnet_block_mask blocks;             /* BLOCKS; its tile sizes replace those above */
} linnet_approximate_settings;

LINNET_API linnet_approximate_settings linnet_approximate_settings_default(linnet_approximation method);
/* "hip", and where it comes from: "Lee et al. 2024"; NULL for a number that is no method. */
LINNET_API const char *linnet_approximate_name(linnet_approximation method);
LINNET_API const char *linnet_approximate_source(linnet_approximation method);

typedef struct linnet_approximate_plan linnet_approximate_plan;

/* Settings are copied, with all that their pointers point to. LINNET_ERROR_ARGUMENT names the setting that is wrong. */
LINNET_API linnet_status linnet_approximate_plan_open(linnet_context *context,
                                                      const linnet_approximate_settings *settings,
                                                      linnet_approximate_plan **plan);
LINNET_API void linnet_approximate_plan_close(linnet_approximate_plan *plan);
/* Bytes of the workspace that running needs, aligned to 64. */
LINNET_API uint64_t linnet_approximate_workspace(const linnet_approximate_plan *plan);

typedef struct linnet_approximate_tensors {
    size_t size;
    linnet_tensor query, key, value; /* of settings.type */
    linnet_tensor output;            /* float32 */
    double *document_scores;         /* RANKING: [documents]; NULL: not wanted */
    const float *projection;         /* SLA: P, [heads, value_size, value_size], row in, column out; NULL: identity */

    /* Backward alone: float32, gradients are overwritten; NULL: not wanted. */
    linnet_tensor output_gradient, query_gradient, key_gradient, value_gradient;
    float *projection_gradient;
} linnet_approximate_tensors;

LINNET_API linnet_status linnet_approximate_forward(const linnet_approximate_plan *plan,
                                                    const linnet_approximate_tensors *tensors, void *workspace);

/* Gradients of sum(output * output_gradient), for a plan with settings.backward. Which tiles are visited, and SLA's
 * classes, are taken as given: no gradient goes through the choice. The choice and the softmax part are computed anew;
 * `output` is not read. */
LINNET_API linnet_status linnet_approximate_backward(const linnet_approximate_plan *plan,
                                                     const linnet_approximate_tensors *tensors, void *workspace);

/* e = exact output, o = the method's, over rows = tokens x heads. */
typedef struct linnet_approximate_report {
    size_t size;
    double error;          /* root of (sum |o - e|^2 / sum |e|^2) */
    double row_error;      /* largest |o - e| of a row over the root mean square of |e| */
    double mass;           /* exact probability of the pairs whose scores were visited exactly, mean over rows */
    double least_mass;     /* of the worst row */
    double visited, pairs; /* (query, key, head) visited exactly, and all that exact attention visits */
    double scored;         /* products of key_size numbers made to choose them */
} linnet_approximate_report;

/* Runs the method, then exact attention on the same inputs (full cost; allocates its own memory), and compares.
 * Output and document_scores are left as linnet_approximate_forward leaves them. */
LINNET_API linnet_status linnet_approximate_error(const linnet_approximate_plan *plan,
                                                  const linnet_approximate_tensors *tensors, void *workspace,
                                                  linnet_approximate_report *report);

#ifdef __cplusplus
}
#endif
#endif
