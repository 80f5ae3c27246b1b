/* The forward pass: a piece of tokens through the blocks of all layers (part.h), against the memory of one sequence. */
#ifndef LN_MODEL_FORWARD_H
#define LN_MODEL_FORWARD_H

#include "memory/pages.h"
#include "model/model.h"

typedef struct ln_forward_shape {
    int64_t piece; /* most tokens at once */
    int64_t slice; /* columns of feed-forward parts: all, or a multiple of ln_forward_unit */
    int64_t step;  /* of them computed at once: at most slice, a multiple of 16 where less */
    bool exact;
    uint64_t lanes; /* workspace of memory under a policy (ln_ragged_workspace); 0: there is none */
} ln_forward_shape;

/* Is shown what goes into the first parts of each layer: h [tokens, width], valid during the call. */
typedef void (*ln_forward_watch)(void *watcher, int64_t layer, const float *h, int64_t tokens);

/* Workspace; sessions of one model that run one after the other may share it. */
typedef struct ln_forward {
    linnet_model *model;
    ln_forward_shape shape;
    double *inverse[2], magnitude[2]; /* rotary frequencies: global, local */
    float *keep;                      /* [piece, key_value_heads]: what the model's gate says; NULL: it has none */
    double *cosines;                  /* [piece] of x before and after attention */
    float *x, *h;  /* [piece, width]: residual stream; what goes into the parts, and mostly what comes out */
    float *sum;    /* [piece, width] of what parallel parts give; NULL: no block has several */
    float *stage;  /* [room.stage]: each part's in its turn */
    float *shared; /* [room.shared]: stays through a pass */
    void *scratch; /* of products and mixers */
    void *over;    /* over all but the first room.kept floats of the stage, h and scratch too */
    ln_room room;  /* the most that any part needs */
    float *cosine[2], *sine[2]; /* [piece, rope.size / 2] */
    ln_forward_watch watch;     /* NULL: nobody; set after opening */
    void *watcher;
    void *block;
} ln_forward;

/* Slices of feed-forward parts are multiples of it. */
int64_t ln_forward_unit(const linnet_model *model, bool exact);
/* What a piece of the shape costs. */
ln_cost ln_forward_cost(const linnet_model *model, const ln_forward_shape *shape);
/* Bytes that ln_forward_open allocates. */
uint64_t ln_forward_bytes(linnet_model *model, const ln_forward_shape *shape);
/* context: tokens of the longest session (some rotary scalings depend on it). */
linnet_status ln_forward_open(linnet_model *model, const ln_forward_shape *shape, int64_t context, ln_forward *forward);
void ln_forward_close(ln_forward *forward);
/* Cosines and sines of the tokens from position `first` on. */
void ln_turn(ln_forward *forward, int64_t first, int64_t tokens);

/* tokens <= piece tokens after the memory's position. On LINNET_OK the memory has grown by them and x holds their
 * residual streams; on LINNET_INTERRUPTED nothing has changed. A probe (ln_memory_begin) is run to its end, and the
 * memory has not grown. */
linnet_status ln_forward_run(ln_forward *forward, ln_memory *memory, const int32_t *ids, int64_t tokens);
/* Writes keys and values [tokens, key_value_heads * size] of a layer as its products would give them: before biases,
 * norms and rotation. */
typedef void (*ln_forward_source)(void *source, int64_t layer, int64_t tokens, float *keys, float *values);
/* Of a model that attends and nothing else (ln_attention_alone): the memory grows by tokens <= piece tokens whose keys
 * and values come from elsewhere; x is not computed. */
void ln_forward_fill(ln_forward *forward, ln_memory *memory, int64_t tokens, ln_forward_source give, void *source);
/* Logits [count, vocabulary] of the tokens first .. first + count - 1 of the piece that was run last, with the bits
 * that `together` of them at once would have. */
void ln_forward_logits(ln_forward *forward, int64_t first, int64_t count, int64_t together, float *logits);

#endif
