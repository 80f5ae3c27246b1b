/* What the forms of the outer core share: a worker's room, a chunk's gates, its sums and its way over the state. */
#ifndef LN_MIXER_OUTER_INSIDE_H
#define LN_MIXER_OUTER_INSIDE_H

#include "base/threads.h"
#include "mixer/outer.h"

/* Gates of a chunk in the form that its products want. Of a token: sums in double, of which differences are exact. Of a
 * channel: factors within blocks of 16 tokens. */
typedef struct ln_outer_gates {
    double *sums;                              /* [count + 1] */
    const double *rows, *columns;              /* of these, [count]: where queries read and keys are written */
    float *query_factor, *key_factor;          /* e^rows, e^(end - columns) */
    float end;                                 /* e^(sum of all) */
    float *factors, *prefix, *suffix, *blocks; /* [count][stride], blocks [blocks][stride] */
    float *ends;                               /* [stride]: of the whole chunk */
    int64_t stride, channels;
} ln_outer_gates;

/* Operands of a chunk's products in bf16. */
typedef struct ln_outer_half {
    bool used;
    int64_t depth, tokens;                 /* features and tokens of a chunk, up to whole blocks of 32 */
    uint16_t *query, *scores, *key_turned; /* [chunk][depth], [chunk][tokens], [features][tokens] */
    uint32_t *key_pairs, *state, *value;   /* [depth / 2][chunk], [depth / 2][..], [tokens / 2][value_stride] */
} ln_outer_half;

typedef struct ln_outer_work {
    ln_outer_tile tile;
    const ln_tile_kernels *kernels;
    const ln_vector_kernels *vector;
    int64_t chunk;
    ln_outer_gates gates;
    ln_outer_half half;
    float *scores, *state;     /* [count][chunk], [features][value_stride] */
    float *query_in, *key_out; /* decayed, to the block's or chunk's begin and end; values where those have decays */
    float *running;            /* [wide] */
    float *room;               /* [count][wide] */
    const float *value_in;     /* V of ln_outer_put_values */
    int64_t wide;              /* the larger stride */
    /* backward */
    float *score_gradient, *state_gradient, *own; /* own [count]: gradients of what a token has of itself */
    double *crossing;                             /* [count]: gradients of gates */
    float *states, *groups; /* state and sides before each chunk of a group, and behind it; before each group */
    int64_t group;          /* chunks */
    float *decays;          /* step */
} ln_outer_work;

static inline const ln_outer_row *ln_outer_row_of(const ln_mixer *mixer) {
    return mixer->core_row;
}
/* Tokens of a chunk. */
int64_t ln_outer_chunk(const linnet_mixer_settings *settings);
/* Floats of the parameters of a head together. */
int64_t ln_outer_parameters(const ln_mixer *mixer, const linnet_mixer_settings *settings);
/* Lays out worker's room from `base` on; base NULL: only its size, in bytes. */
uint64_t ln_outer_layout(ln_outer_work *work, const ln_mixer *mixer, const linnet_mixer_settings *settings,
                         linnet_mixer_form form, unsigned char *base);
/* A worker's room for a head of a sequence, with the state that it begins with, from `extra` (of the extra columns and
 * side; NULL: from where the state is). */
void ln_outer_open(ln_outer_work *work, const ln_mixer_call *call, linnet_mixer_form form, int worker);
void ln_outer_begin(ln_outer_work *work, int64_t sequence, int64_t head, const float *state, const float *extra);
/* A state to where it is kept; extra: with the extra columns and side. */
void ln_outer_end(const ln_outer_work *work, const float *from, float *state, bool extra);
/* The tile's inputs of `count` tokens from `step` on, and its gates. */
void ln_outer_load_chunk(ln_outer_work *work, int64_t step, int64_t count);
/* Scores, with decay and scale, and all sums of the tile's columns. */
void ln_outer_sums(ln_outer_work *work);
/* Gates of a token, scale and the triangle's zeros to scores or their gradients. */
void ln_outer_mask(const ln_outer_work *work, float *scores);
/* What ln_outer_advance needs of ln_outer_sums, alone. */
void ln_outer_skip_sums(ln_outer_work *work);
/* Takes the state over the chunk. */
void ln_outer_advance(ln_outer_work *work);

/* The products of a chunk (outer_products.c), of all the tile's columns, in float32 or by way of bf16:
 * scores = Q K^T, on and below the diagonal; sums = query S; sums += scores V; S += key^T V with rows of the key times
 * factors, NULL: ones. ln_outer_put_values first, which says what V is. */
void ln_outer_pair(ln_outer_work *work);
void ln_outer_read_state(ln_outer_work *work, const float *query);
void ln_outer_put_values(ln_outer_work *work, const float *value);
void ln_outer_read_values(ln_outer_work *work);
void ln_outer_write_state(ln_outer_work *work, const float *key, const float *factors);

/* Gates of channels (outer_channels.c). x are the readers, y the writers, w[i, j] the decay from j to i: */
void ln_outer_channel_gates(ln_outer_work *work);
/* in = x decayed since its block's begin */
void ln_outer_channel_in(ln_outer_work *work, float *in, const float *x);
/* in, as above, becomes scale x decayed since the chunk's begin */
void ln_outer_channel_since(ln_outer_work *work, float *in, float scale);
/* out = y decayed to the chunk's end */
void ln_outer_channel_out(ln_outer_work *work, float *out, const float *y);
/* a[i, j] = sum_c x[i] w[i, j] y[j], from `in` of x; leaves `out` of y */
void ln_outer_channel_scores(ln_outer_work *work, float *a, const float *x, const float *in, const float *y,
                             float *out);
/* z[i] += sum_j a[i, j] w[i, j] y[j]; leaves `out` of y */
void ln_outer_channel_read(ln_outer_work *work, float *z, const float *a, const float *y, float *out);
/* z[j] = z[j] decayed from the chunk's end + sum_i a[i, j] w[i, j] x[i], from `in` of x */
void ln_outer_channel_write(ln_outer_work *work, float *z, const float *a, const float *x, const float *in);

/* The tile's columns and the extra ones, as one part where they lie together; from whole blocks of 16 columns on. */
typedef struct ln_outer_parts {
    int64_t at[2], count[2];
    int parts;
} ln_outer_parts;
static inline ln_outer_parts ln_outer_parts_of(const ln_outer_tile *t) {
    const int64_t extra = t->columns / 16 * 16;
    ln_outer_parts c = {{t->first, extra}, {t->last - t->first, t->columns + t->extra - extra}, t->extra ? 2 : 1};
    if (t->last == t->columns) {
        c.count[0] += t->extra;
        c.parts = 1;
    }
    return c;
}

#endif
