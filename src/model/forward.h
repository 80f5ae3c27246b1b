/* The forward pass: a piece of tokens through all layers, against the keys and values of a memory. */
#ifndef LN_MODEL_FORWARD_H
#define LN_MODEL_FORWARD_H

#include "memory/pages.h"
#include "mixer/attention.h"
#include "model/model.h"

/* Workspace for pieces of at most `piece` tokens; sessions of one model that run one after the other may share it. */
typedef struct ln_forward {
    linnet_model *model;
    int64_t piece;
    bool exact;
    double *inverse[2], magnitude[2]; /* rotary frequencies: global, local */
    float *x, *h; /* [piece, width]: residual stream; what goes into and comes out of the products */
    float *query, *key, *value, *mixed; /* [piece, heads * size] */
    float *gate, *up;                   /* [piece, feed_forward], in the place of the four above */
    float *cosine[2], *sine[2];         /* [piece, rope.size / 2] */
    void *scratch;                      /* of the products and of attention, in turn */
    void *block;
} ln_forward;

/* Bytes that ln_forward_open allocates. */
uint64_t ln_forward_bytes(linnet_model *model, int64_t piece);
/* context: tokens of the longest session (some rotary scalings depend on it). */
linnet_status ln_forward_open(linnet_model *model, int64_t piece, int64_t context, bool exact, ln_forward *forward);
void ln_forward_close(ln_forward *forward);

/* tokens <= piece tokens after the memory's position. On LINNET_OK the memory has grown by them and x holds their
 * residual streams; on LINNET_INTERRUPTED nothing has changed. */
linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens);
/* Logits [count, vocabulary] of the tokens first .. first + count - 1 of the piece that was run last. */
void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, float *logits);

#endif
