/* What the checks of attention and of its gradients share: works and their tensors, random lists of tiles, runs of the
 * forward pass, what a query sees, and scores and outputs in float64. */
#ifndef LN_TESTS_CUDA_ORACLE_ATTENTION_H
#define LN_TESTS_CUDA_ORACLE_ATTENTION_H

#include "check.h"
#include "kernel/cuda/attention_cuda.h"

enum { SEQUENCES = 8, KERNELS_MOST = 96 };

typedef struct attention_work {
    const char *name;
    int heads, key_value_heads, key_size, value_size;
    int queries[SEQUENCES], keys[SEQUENCES]; /* ended by a query and key count of 0 */
    bool causal;
    int window;
    float cap, stretch; /* stretch: scores are larger by it; 0: 1 */
    int layout;
    bool float32, gradient_float32; /* the output is float32; gradients are */
    bool infinite;                  /* keys and values of odd sequences are infinite */
    bool half, sinks;
    int rank;
    int query_tile, key_tile; /* of random lists; 0: none */
    bool per_head;
} attention_work;

/* Timed, forward and backward. */
extern const attention_work ATTENTION_BENCH[];
extern const int ATTENTION_BENCH_COUNT;

typedef struct attention_case {
    const attention_work *of;
    int64_t query_offsets[SEQUENCES + 1], key_offsets[SEQUENCES + 1];
    ln_cuda_attention attention;
    int64_t *list_offsets;
    int32_t *listed;
    tensor query, key, value, output;
    tensor log_sum_exp; /* [token][head] */
    tensor sinks, query_factors, key_factors;
    const ln_cuda_attention_plan *plan;
    void *workspace;
} attention_case;

int attention_sequences(const attention_work *w);
/* Pairs of queries and keys that are seen, about, of all heads. */
double attention_pairs(const attention_work *w);

/* The shapes and lists alone, or tensors too. */
void attention_case_describe(attention_case *c, const attention_work *w);
void attention_case_open(attention_case *c, const attention_work *w);
void attention_case_close(attention_case *c);

/* The first element of every row of odd sequences. */
void attention_infinite_rows(tensor *t, const int64_t *offsets, int64_t sequences);

/* A workspace of the plan, prepared. */
bool attention_workspace(const attention_case *c, const ln_cuda_attention_plan *plan, void **workspace);
/* The forward pass by the case's plan and workspace: a check_run. */
ln_cuda_code attention_forward(void *context, void *stream);

/* ---- float64; tokens are rows of tensors, positions are counted in their sequence ---- */

bool attention_sees(const attention_case *c, int sequence, int64_t row, int64_t head, int64_t key);
double attention_dot(const tensor *a, int64_t a_token, int64_t a_head, const tensor *b, int64_t b_token,
                     int64_t b_head);
/* The score; *slope, unless NULL: its derivative by scale * query . key. */
double attention_score(const attention_case *c, int64_t query, int64_t key, int64_t head, double *slope);
/* Query `row` of the sequence. Returns lse. */
double attention_row(const attention_case *c, int sequence, int64_t row, int64_t head, double *output);

#endif
