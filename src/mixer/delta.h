/* The core of recurrences whose state is decayed, and changed along what is read from it:
 *
 *     y[t] = x[t] + read[t]^T S[t-1]
 *     S[t] = diag(e^g[t]) S[t-1] + key[t] y[t]^T ( + write_key[t] write_value[t]^T )
 *     o[t] = query[t]^T S[t]
 *
 * read meets the state before it decays. The delta rules have key = write key: what is written is corrected by what is
 * read. Diagonal plus low rank (DPLR) has x = 0 and the second product.
 *
 * A row of the table says which input plays which part (ln_delta_row): tiles, steps and gradients follow from it. */
#ifndef LN_MIXER_DELTA_H
#define LN_MIXER_DELTA_H

#include "mixer/mixer.h"

/* Where the parts come from: index of an input + 1; 0: the row has none.
 *
 * Without `a`:  x = strength value,   read = -strength e^g (direction or key),   strength: beta or write and erase
 * With `a`:     read = a, key = b, write_key = key, write_value = value, x = 0 */
typedef struct ln_delta_row {
    signed char query, key, value, decay; /* decay: a column a head or a key channel; none: no decay */
    signed char beta;                     /* [micro]: of value and erasure */
    signed char erase, write;             /* [key], [value]: strengths of erasure and of value, in place of beta */
    signed char direction;                /* erased in place of key; may be left out */
    signed char a, b;
    bool undecayed; /* what is erased is read before the decay: no e^g in `read` */
    bool micro;     /* settings.slots steps a token: keys, values and beta for each, decay before the first, output
                       after the last */
} ln_delta_row;

typedef struct ln_delta_shape {
    const ln_delta_row *row;
    int64_t longest;             /* tokens of a sequence */
    int64_t micro, tokens, rows; /* of a chunk at most; rows = micro tokens */
    int64_t row_stride;          /* rows rounded up to 16, as all strides */
    int64_t key, value;          /* strides of their tiles */
    int64_t slices, width;       /* columns of the state are worked on in so many tasks, `width` each, */
    int64_t piece;               /* `piece` at a time: rows of a piece of the state lie one after the other */
    bool channel;                /* a decay a key channel */
    bool half;                   /* by products of bf16 */
    bool plain;                  /* and with one decay a token and one key: keys and queries stay as they came */
} ln_delta_shape;

/* A chunk of a head: the parts. */
typedef struct ln_delta_tiles {
    int64_t tokens, rows;
    float *query;              /* [tokens, key] */
    float *read, *key, *value; /* [rows, key], [rows, key], [rows, value]: value is x, or of the second product */
    float *write_key;          /* [rows, key]; NULL: none */
    float *decay;              /* factors: [rows], or [rows, key] */
    float *beta, *factor;      /* [rows] */
    float *erase, *write;      /* [rows, key], [rows, value]; NULL: none */
    float *direction;          /* [rows, key]: what is erased; may be `key` */
    float *other;              /* [rows, key]: room of a direction */
    float *norm;               /* [3][rows]: 1 / length of query, key, direction before they were normalised */
} ln_delta_tiles;

/* Operands of products of bf16 (kernel/tile.h): of the parts of ln_delta_inside of these names, of the state, of y and
 * of the values of the second product. Rows of read and query begin at whole blocks. */
typedef struct ln_delta_half {
    uint16_t *left, *query_key, *read_write, *query_write, *key_after, *write_after;
    uint32_t *keys, *state, *y, *value;
} ln_delta_half;

/* What follows from a chunk without its state. Of products with the decays between two tokens, rows of `row_stride`. */
typedef struct ln_delta_inside {
    float *read_key, *query_key;     /* [rows], [tokens] */
    float *read_write, *query_write; /* with write_key; NULL: none */
    float *left;                     /* [rows + tokens, key]: read, then query, times the decays since the beginning */
    float *key_after, *write_after;  /* [rows, key]: times the decays to the end */
    float *forget;                   /* [key]: all decays of the chunk */
    float *after, *before, *upto;    /* one decay a token: kernel/delta.h */
    float *scale;                    /* [tokens] */
    float *read_in, *query_in;       /* decays a channel: [rows, key], times those since the beginning of 16 tokens */
    float *block;                    /* [blocks, key]: all decays of 16 tokens */
    float *scratch;
    ln_delta_half half;
} ln_delta_inside;

enum {
    LN_DELTA_CHUNK = 16,
    LN_DELTA_CHUNK_BF16 = 32,
    LN_DELTA_PIECE = 64,
    LN_DELTA_FEW = 12 /* fewer rows than this are faster one by one */
};

/* Whether so many rows go by products of bf16 with queries and keys as they came: `query` is not scaled then, and
 * `read` is not made, only `factor`, which takes `direction` to it. */
static inline bool ln_delta_plain(const ln_delta_shape *shape, int64_t rows) {
    return shape->plain && rows >= LN_DELTA_FEW;
}

ln_delta_shape ln_delta_shape_of(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                 const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_delta_carve(ln_carver *carver, const ln_delta_shape *shape, ln_delta_tiles *tiles, ln_delta_inside *inside);
/* Time steps `step` .. `step + tokens - 1` of a sequence; queries times `scale`. */
void ln_delta_load(const ln_mixer_call *call, const ln_delta_shape *shape, int64_t head, int64_t sequence, int64_t step,
                   int64_t tokens, float scale, ln_delta_tiles *tiles);
/* Values as they came, [rows, value]. */
void ln_delta_load_value(const ln_mixer_call *call, const ln_delta_shape *shape, int64_t head, int64_t sequence,
                         int64_t step, int64_t tokens, float *rows);
void ln_delta_solve_inside(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                           ln_delta_inside *inside);
/* Columns column .. column + piece - 1. y [rows, piece] from the state [key_size, piece] before the chunk; the state
 * after it. */
void ln_delta_read(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                   const ln_delta_inside *inside, int64_t column, const float *state, float *y);
void ln_delta_write(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                    const ln_delta_inside *inside, int64_t column, const float *y, float *state);

/* y += a y, row by row: a [rows, rows] is zero on and above the diagonal. */
void ln_delta_substitute(const ln_kernels *kernels, float *y, int64_t stride, const float *a, int64_t a_stride,
                         int64_t rows, int64_t columns);

/* ---- by products of bf16: mixer/delta_bf16.c ---- */

void ln_delta_carve_bf16(ln_carver *carver, const ln_delta_shape *shape, ln_delta_half *half);
/* Plain: read_key and query_key before decays. */
void ln_delta_pairs_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                         ln_delta_inside *inside);
void ln_delta_prepare_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                           ln_delta_inside *inside);
/* A piece of the state passes the chunk; y [row_stride + tokens, piece]: room. Returns the outputs [tokens, piece]. */
const float *ln_delta_pass_bf16(const ln_mixer_call *call, const ln_delta_shape *shape, const ln_delta_tiles *tiles,
                                const ln_delta_inside *inside, int64_t column, float *state, float *y);

uint64_t ln_delta_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form);
uint64_t ln_delta_backward_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                     const linnet_mixer_settings *settings);
double ln_delta_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_delta_forward(const ln_mixer_call *call);
void ln_delta_backward(const ln_mixer_call *call);

#endif
