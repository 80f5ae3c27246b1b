/* The core of diagonal decay and outer product (I):
 *
 *     S[t] = decay[t] S[t-1] + key[t] value[t]^T
 *     sums[t] = scale S[t]^T query[t]             or, with `before`, scale (S[t-1] + diag(bonus) key value^T)^T query
 *
 * decay being 1, or e^g of a token, of a key channel, of a value channel.
 *
 * A row says how its inputs become queries, keys, values and gates (features), and sums an output. What it writes is
 * ln_outer_row: sizes and at most four functions on an ln_outer_tile, which holds some consecutive tokens of one head.
 * Chunked forward, one-token step, slices of columns where heads are few, ragged batches, state, reversed time,
 * gradients of queries, keys, values, gates, bonus and state follow. To write a row:
 *
 *  - `load` fills tile->query, key [count][features, stride key_stride], value [count][columns + extra, stride
 *    value_stride], decay and bonus, with ln_outer_load and arithmetic. Columns beside those of the output (a sum of
 *    weights) are `extra`: value 1 there makes sums[columns] scale q . sum k.
 *  - `finish` turns sums into ln_mixer_output rows, columns first .. last - 1 alone (sums of the extra columns are
 *    always there). NULL: the output is the sums. A row that needs whole rows of sums says `whole`.
 *  - `finish_gradient` reads sums and the output's gradient and fills sums_gradient, of the extra columns too. NULL: as
 *    finish.
 *  - `gradient` carries query_gradient, key_gradient, value_gradient, decay_gradient, bonus_gradient back to the
 * inputs: ln_outer_add adds rows to the gradient of an input, ln_outer_parameter is where that of a parameter is
 * summed.
 *
 * The state of a head is S [features][columns], then [extra][features], then `side` floats, which `load` may read and
 * write in tile->side: it is called once for each chunk, in order; what it finds there is what the last call left. In
 * backward they are what they were at the chunk's beginning; `gradient`, called from the last chunk to the first, takes
 * tile->side_gradient from the chunk's end to its beginning.
 *
 * In logarithms nothing overflows: all factors that are formed are of decays over some time, so at most 1. Gates of a
 * token are summed in double, gates of channels only forward and backward within blocks of 16 tokens, never subtracted,
 * and blocks are joined by products (sums relative to a block's first row lose
 * digits after a gate of -88, and are NaN after -inf). */
#ifndef LN_MIXER_OUTER_H
#define LN_MIXER_OUTER_H

#include "mixer/mixer.h"

typedef enum ln_outer_decay {
    LN_OUTER_NO_DECAY,
    LN_OUTER_DECAY,       /* decay [count]; also where it is constant */
    LN_OUTER_KEY_DECAY,   /* decay [count][features], stride key_stride */
    LN_OUTER_VALUE_DECAY, /* decay [count][columns + extra], stride value_stride */
} ln_outer_decay;

typedef struct ln_outer_row ln_outer_row;

typedef struct ln_outer_tile {
    const ln_mixer_call *call;
    const ln_outer_row *row;
    int64_t sequence, head, step, count; /* time steps step .. step + count - 1 of the sequence */
    int64_t features, columns, extra, sides, key_stride, value_stride;
    int64_t first, last; /* columns to be finished */
    float *query, *key, *value, *decay, *bonus, *sums;
    float *side;    /* [sides] */
    float *scratch; /* [count][row.scratch]: also from `load` to `finish`, and to the gradients */

    float *query_gradient, *key_gradient, *value_gradient, *decay_gradient, *bonus_gradient, *sums_gradient;
    float *side_gradient;       /* [sides] */
    double state_dot;           /* sum of state and its gradient behind the chunk; where there are sides */
    float *parameter_gradients; /* of all parameters, one after the other */
} ln_outer_tile;

struct ln_outer_row {
    ln_outer_decay decay;
    bool before; /* reads the state before the token, and the token through `bonus` [features]; not with value decay */
    bool whole;  /* finish needs all columns */
    bool exact;  /* products stay in float32 where inputs are bf16, too */
    int64_t (*features)(const linnet_mixer_settings *settings); /* NULL: key_size */
    int64_t (*columns)(const linnet_mixer_settings *settings);  /* NULL: value_size */
    int64_t (*extra)(const linnet_mixer_settings *settings);    /* NULL: 0 */
    int64_t (*side)(const linnet_mixer_settings *settings);     /* NULL: 0 */
    int64_t (*scratch)(const linnet_mixer_settings *settings);  /* floats a token; NULL: 0 */
    void (*load)(ln_outer_tile *tile);
    void (*finish)(ln_outer_tile *tile);
    void (*finish_gradient)(ln_outer_tile *tile);
    void (*gradient)(ln_outer_tile *tile);
};

/* Input rows of the tile's tokens (of a parameter: one row) to rows at a stride. */
void ln_outer_load(const ln_outer_tile *tile, int input, float *rows, int64_t stride);
/* Adds rows to the gradient of an input with an axis of tokens. */
void ln_outer_add(const ln_outer_tile *tile, int input, const float *rows, int64_t stride);
/* Where the gradient of a parameter's row is summed. */
float *ln_outer_parameter(const ln_outer_tile *tile, int input);

/* For ln_mixer: the core's functions, whose core_row is an ln_outer_row. */
uint64_t ln_outer_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form);
int64_t ln_outer_head_floats(const linnet_mixer_settings *settings);
/* For ln_mixer.state_extent of rows with features of their own: the matrix, then the sums of the extra columns. */
void ln_outer_state_extent(const linnet_mixer_settings *settings, int index, int64_t *rows, int64_t *columns);
void ln_outer_forward(const ln_mixer_call *call);
void ln_outer_step(const ln_mixer_call *call);
void ln_outer_backward(const ln_mixer_call *call);
double ln_outer_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
/* clang-format off */
#define LN_OUTER_CORE(row)                                                                                       \
    .core = "outer", .reverse = true, .head_floats = ln_outer_head_floats, .workspace = ln_outer_workspace,      \
    .forward = ln_outer_forward, .step = ln_outer_step, .backward = ln_outer_backward, .flops = ln_outer_flops, \
    .core_row = (row)
/* clang-format on */

#endif
