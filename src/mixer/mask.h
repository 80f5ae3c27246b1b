/* Which keys a query sees, and what is added to its scores: every mask and bias of attention, as one description of
 * which the tile loop asks a few questions. Positions and keys count from the first key of the sequence. */
#ifndef LN_MIXER_MASK_H
#define LN_MIXER_MASK_H

#include "kernel/kernel.h"
#include "linnet/attention.h"

/* Scores are in base 2. */
#define LN_LOG2E 1.44269504f

/* ---- neighbourhoods ---- */

/* Coordinates, in steps of the dilation. */
typedef struct ln_grid_box {
    int32_t least[LINNET_AXES_MOST], most[LINNET_AXES_MOST];
} ln_grid_box;

/* 64 consecutive places of a grid. */
typedef struct ln_grid_word {
    ln_grid_box box;
    int64_t below[LINNET_AXES_MOST]; /* in ln_grid.below: for c = least .. most + 1, the places of coordinates < c */
    int32_t low_least[LINNET_AXES_MOST], low_most[LINNET_AXES_MOST]; /* over the places, of ln_grid.low and high */
    int32_t high_least[LINNET_AXES_MOST], high_most[LINNET_AXES_MOST];
} ln_grid_word;

enum { LN_GRID_GROUP = 16 };

/* The points of a neighbourhood in the order in which they are processed, so that any run of consecutive ones is a
 * compact box of points of one residue class and meets the windows of few others. Fewer axes than three are the last
 * ones, from axis first_axis on. */
typedef struct ln_grid {
    int first_axis;
    int64_t points;
    int64_t *token;                                          /* [points]: place in the order -> token */
    int32_t *residue;                                        /* [points]: class, 0 and up */
    int64_t *residue_offsets;                                /* [classes + 1]: places of a class */
    int32_t *low[LINNET_AXES_MOST], *high[LINNET_AXES_MOST]; /* [points]: sees coordinates low .. high - 1 */
    ln_grid_word *words;                                     /* [points / 64, rounded up] */
    ln_grid_box *groups;                                     /* of LN_GRID_GROUP words each */
    uint64_t *below;
} ln_grid;

linnet_status ln_grid_open(linnet_context *context, const linnet_neighbourhood *neighbourhood, ln_grid *grid);
void ln_grid_close(linnet_context *context, ln_grid *grid);
/* Of ln_mask_range and ln_mask_row, for the grid alone. Everything: no place of the tile misses one of the keys. */
void ln_grid_range(const ln_grid *grid, int64_t position, int64_t tokens, int64_t *first, int64_t *end);
bool ln_grid_everything(const ln_grid *grid, int64_t position, int64_t tokens, int64_t key, int64_t count);
bool ln_grid_nothing(const ln_grid *grid, int64_t position, int64_t tokens, int64_t key, int64_t count);
uint64_t ln_grid_bits(const ln_grid *grid, int64_t position, int64_t word);

/* ---- masks ---- */

enum { LN_MASK_WORDS = LN_ATTEND_BLOCK / 64 };

/* A key must pass all that are given; 0 and NULL let everything pass. With a grid, positions and keys are places in its
 * order. */
typedef struct ln_mask {
    bool causal;
    int64_t window, prefix; /* as in linnet_attention_settings */
    int64_t documents;
    const int64_t *document_offsets; /* over the batch */
    int64_t key_begin;               /* first key of this sequence in the batch: for document_offsets alone */
    linnet_block_mask blocks;        /* of one sequence */
    int64_t query_begin;             /* position of its first query: for blocks alone */
    int64_t query_tiles;             /* of all its queries: for blocks.per_head alone */
    const ln_grid *grid;             /* not with blocks */
    const uint8_t *counts;           /* keys that are there of each LN_PAGE_TOKENS, its first ones; NULL: all */
} ln_mask;

/* The sequences, masks and biases of the settings: LINNET_ERROR_ARGUMENT names what is wrong. `heads` must be right. */
linnet_status ln_mask_check(linnet_context *context, const linnet_attention_settings *settings);

/* Heads head .. head + heads - 1, queries at position .. position + tokens - 1, keys key .. key + count - 1. */
typedef struct ln_mask_tile {
    int64_t head, heads, position, tokens;
} ln_mask_tile;

typedef enum ln_sight { LN_SEES_NONE, LN_SEES_SOME, LN_SEES_ALL } ln_sight;

/* No query of the tile sees a key outside *first .. *end - 1, which lie within 0 .. keys. An upper bound: cheap. */
void ln_mask_range(const ln_mask *mask, const ln_mask_tile *tile, int64_t keys, int64_t *first, int64_t *end);
/* What the tile's queries see of a run of keys, at most LN_ATTEND_BLOCK. NONE and ALL are certain, SOME may be either.
 */
ln_sight ln_mask_block(const ln_mask *mask, const ln_mask_tile *tile, int64_t key, int64_t count);
/* Bit i: the query of this head at this position sees key + i; 0 from count <= LN_ATTEND_BLOCK on. */
void ln_mask_row(const ln_mask *mask, int64_t head, int64_t position, int64_t key, int64_t count,
                 uint64_t bits[LN_MASK_WORDS]);

/* ---- biases ---- */

/* The sum of all that are given, of one sequence. */
typedef struct ln_bias {
    int64_t heads, key_value_heads;
    const float *alibi; /* [heads]: -alibi |position - key| */
    int64_t rank;       /* of factors; 0: none */
    const float *query_factors,
        *key_factors;      /* [tokens, heads, rank], [keys, key_value_heads, rank] of this sequence, in tokens' order */
    int64_t factor_stride; /* not 0: key_factors come from ln_bias_turn, and adding them is ten times faster */
    const float *dense;    /* [head][token][key] of this sequence; NULL: none */
    int64_t dense_head_stride, dense_row_stride;
    int64_t relative; /* table [heads, 2 relative - 1]; 0: none */
    const float *table;
    const float *keys;    /* [keys], of all heads; NULL: none */
    const int64_t *order; /* a grid's token[]: keys and positions are places; NULL: they are tokens */
} ln_bias;

bool ln_bias_any(const ln_bias *bias);
/* The key factors of keys keys as [key_value_heads, rank, stride], by place: bias->key_factors from then on. The same
 * bits as without. */
void ln_bias_turn(const ln_bias *bias, int64_t keys, int64_t stride, float *turned);
/* scores[i] += log2(e) bias(head, token, key + i) for i < count. token: of the query, counted in its sequence (with an
 * order it is order[position]); position: the same, counted as keys are. Bits do not depend on how keys are cut into
 * calls. */
void ln_bias_add(const ln_vector_kernels *kernels, const ln_bias *bias, int64_t head, int64_t token, int64_t position,
                 int64_t key, int64_t count, float *scores);

#endif
