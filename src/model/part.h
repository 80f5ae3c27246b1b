/* Parts: what a layer is made of. A layer is a short list of residual blocks,
 *
 *     x = keep x + add norm'(sum over p of scale_p (part_p(h) + bias_p)),   h = norm(x),
 *
 * and a part is what stands in a block: a mixer (attention, a recurrence, a convolution) or a feed-forward network. A
 * kind of part is a row: how much room it needs, what it costs, and how a piece of tokens runs through it. The pass
 * (forward.c) does everything else: norms, residuals, memory, interruption, progress.
 *
 * A new kind is a file part_NAME.c with a function that binds its tensors (take.h) into a structure of its own from
 * ln_file_own, and an ln_part_kind. An architecture is a function that puts parts into blocks (architecture.h).
 *
 * A mixer keeps its state in the memory: state_floats float32 a sequence and layer, all zeros where a sequence begins.
 * A run reads `state` and must write all of `next`, which becomes the state when the whole piece is done: a piece that
 * is interrupted, or a probe, leaves nothing behind. */
#ifndef LN_MODEL_PART_H
#define LN_MODEL_PART_H

#include "kernel/kernel.h"
#include "linnet/model.h"
#include "memory/states.h"

struct ln_forward;
struct ln_forward_shape;
struct ln_memory;
typedef struct ln_part ln_part;

enum { LN_BLOCKS_MOST = 4, LN_PARALLEL_MOST = 2, LN_FEED_FORWARD_MOST = 1 << 22, LN_LAYERS_MOST = 4096 };

/* Room that a part needs, beside forward->h, for pieces of at most shape->piece tokens. */
typedef struct ln_room {
    int64_t stage;    /* floats of forward->stage */
    uint64_t scratch; /* bytes of forward->scratch: of products (ln_room_product) or of a mixer, one after the other */
    /* Bytes that may lie over all but the first `kept` floats of the stage, h and scratch too: ln_forward_over. */
    int64_t kept;
    uint64_t over;
    int64_t shared; /* floats of forward->shared, which parts of a pass leave to those of later layers */
} ln_room;

/* What a piece costs, in the terms of plan.c. */
typedef struct ln_cost {
    double weights[LN_FORMS]; /* multiply-adds of a token's products, by the form that panels of them have */
    double packed[LN_FORMS];  /* weights beyond these that a piece reads */
    double prepared;          /* values that products read, a token */
    double added;             /* values that are added up more than once, a token */
    double meetings;          /* of the threads, a piece */
} ln_cost;

typedef struct ln_part_call {
    struct ln_memory *memory;
    int64_t tokens, position; /* of the first token */
    const float *state;       /* [state_floats], NULL where the part has none */
    float *next;
} ln_part_call;

typedef struct ln_part_kind {
    const char *name;
    bool attends; /* has keys and values in the layer's pages */
    /* Raises what the room has to what the part needs. */
    void (*room)(linnet_model *model, const ln_part *part, const struct ln_forward_shape *shape, ln_room *room);
    /* Adds to the cost. */
    void (*weigh)(const linnet_model *model, const ln_part *part, const struct ln_forward_shape *shape, ln_cost *cost);
    /* Of a part whose columns go slice by slice, what slices are multiples of; NULL: it has no slices. */
    int64_t (*unit)(const linnet_model *model, const ln_part *part, bool exact);
    /* Reads h [tokens, width] of the pass, which it may overwrite; *given: where on the stage or in h what it gives
     * lies, [tokens, width]. */
    linnet_status (*run)(struct ln_forward *forward, const ln_part *part, const ln_part_call *call, float **given);
} ln_part_kind;

struct ln_part {
    const ln_part_kind *kind;
    const void *weights; /* the kind's own structure */
    int64_t layer;
    const float *bias;       /* [width] added to what it gives; NULL: none */
    float scale;             /* of what it gives; 0 stands for 1 */
    int64_t state_floats;    /* a sequence, in this layer */
    int64_t state_offset;    /* in the layer's state; set when the layer is done */
    ln_state_heads matrices; /* in the part's state; at most one part of a layer has any */
};

/* RMS norm, or with a bias the mean is taken off before (LayerNorm). weight NULL: there is no norm. */
typedef struct ln_norm {
    const float *weight, *bias; /* [width] */
} ln_norm;

typedef struct ln_block {
    ln_norm norm, post_norm;
    bool from_norm;  /* x = norm(x) first: the residual stream goes on from what was normed */
    float keep, add; /* 0 stands for 1 */
    int parts;       /* that run on the same h */
    ln_part part[LN_PARALLEL_MOST];
} ln_block;

typedef struct ln_layer {
    int count;
    ln_block block[LN_BLOCKS_MOST];
} ln_layer;

/* The layer's part of a kind; NULL: it has none. */
const ln_part *ln_layer_part(const ln_layer *layer, const ln_part_kind *kind);

/* ---- for the kinds ---- */

/* Floats of [tokens, count] on the stage: whole cache lines. */
int64_t ln_stage(int64_t tokens, int64_t count);
void ln_room_stage(ln_room *room, int64_t floats);
/* A product of the pass by columns of `weight`: all, or a part of them. */
void ln_room_product(linnet_model *model, const struct ln_forward_shape *shape, const ln_matrix *weight,
                     int64_t columns, ln_room *room);
/* Multiply-adds and preparing of products that share their input. */
void ln_cost_product(const linnet_model *model, const struct ln_forward_shape *shape, const ln_matrix *weight,
                     ln_cost *cost);
/* y = x W' of each product, x [tokens, columns of the weights]. */
void ln_part_multiply(struct ln_forward *forward, const ln_product *products, int count, const float *x,
                      int64_t tokens);
/* x holds `part` of the columns of the weights, in rows of `stride`. */
void ln_part_multiply_part(struct ln_forward *forward, const ln_product *products, int count, const float *x,
                           int64_t stride, int64_t tokens, const ln_matmul_part *part);
/* Rows first .. first + count - 1 of a matrix. */
ln_matrix ln_matrix_rows(const ln_matrix *matrix, int64_t first, int64_t count);
void ln_norm_row(const linnet_model *model, const ln_norm *norm, float *y, const float *x);

#endif
