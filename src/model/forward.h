/* The forward pass: a piece of tokens through all layers, against the keys and values of a memory.
 *
 * Activations are held in slices (after AutoChunk, P114): of the feed-forward part, `slice` columns at a time go
 * through
 *     h' += D[:, slice] (activation(G[slice] h) * U[slice] h),
 * G and U `step` rows at a time. The product by D adds up its columns in the same groups whether sliced or not, and
 * every weight is still read once a piece: slices cost neither a bit nor a second pass. */
#ifndef LN_MODEL_FORWARD_H
#define LN_MODEL_FORWARD_H

#include "memory/pages.h"
#include "mixer/attention.h"
#include "model/model.h"

typedef struct ln_forward_shape {
    int64_t piece; /* most tokens at once */
    int64_t slice; /* columns of the feed-forward part: all, or a multiple of ln_forward_unit */
    int64_t step;  /* of them computed at once: at most slice, a multiple of 16 where less */
    bool exact;
    uint64_t lanes; /* workspace of memory under a policy (ln_ragged_workspace); 0: there is none */
} ln_forward_shape;

/* Is shown what goes into the projections of each layer: h [tokens, width], valid during the call. */
typedef void (*ln_forward_watch)(void *watcher, int64_t layer, const float *h, int64_t tokens);

/* Workspace; sessions of one model that run one after the other may share it. */
typedef struct ln_forward {
    linnet_model *model;
    ln_forward_shape shape;
    double *inverse[2], magnitude[2]; /* rotary frequencies: global, local */
    float *keep;                      /* [piece, key_value_heads]: what the model's gate says; NULL: it has none */
    double *cosines;                  /* [piece] of x before and after attention */
    float *x, *h; /* [piece, width]: residual stream; what goes into and comes out of the products */
    /* In one place, in turn: queries, keys and values, in the place of the queries what attention gives (mixed); then
     * what the feed-forward part gives, gate and up. */
    float *stage;
    int64_t stage_floats;
    int64_t slice, step;        /* of the piece that runs: few tokens are not cut */
    float *cosine[2], *sine[2]; /* [piece, rope.size / 2] */
    void *scratch;              /* of the products */
    void *attention_scratch;    /* over all of it but x and the queries */
    ln_forward_watch watch;     /* NULL: nobody; set after opening */
    void *watcher;
    void *block;
} ln_forward;

/* Slices of the feed-forward part are multiples of it. */
int64_t ln_forward_unit(const linnet_model *model, bool exact);
/* Bytes that ln_forward_open allocates. */
uint64_t ln_forward_bytes(linnet_model *model, const ln_forward_shape *shape);
/* context: tokens of the longest session (some rotary scalings depend on it). */
linnet_status ln_forward_open(linnet_model *model, const ln_forward_shape *shape, int64_t context, ln_forward *forward);
void ln_forward_close(ln_forward *forward);

/* tokens <= piece tokens after the memory's position. On LINNET_OK the memory has grown by them and x holds their
 * residual streams; on LINNET_INTERRUPTED nothing has changed. A probe (ln_memory_begin) is run to its end, and the
 * memory has not grown. */
linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens);
/* Writes keys and values [tokens, key_value_heads * size] of a layer as its products would give them: before biases,
 * norms and rotation. */
typedef void (*ln_forward_source)(void *source, int64_t layer, int64_t tokens, float *keys, float *values);
/* The memory grows by tokens <= piece tokens whose keys and values come from elsewhere; x is not computed. */
void ln_forward_fill(ln_forward *forward, ln_memory *memory, int64_t tokens, ln_forward_source give, void *source);
/* Logits [count, vocabulary] of the tokens first .. first + count - 1 of the piece that was run last, with the bits
 * that `together` of them at once would have. */
void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, int64_t together, float *logits);

#endif
