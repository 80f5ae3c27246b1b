/* Rows made of other rows: tokens go through in pieces, a piece is prepared as packed float32, run through one or more
 * rows of the table (bases), and finished. So a method of several passes, routes or levels has no recurrence of its
 * own.
 *
 * A piece holds the next time steps of every sequence, packed one sequence after the other in the order of time
 * (reversed where settings say so), head by head: [head][token][columns]. The state lies in blocks, [sequence][repeat]
 * [head][floats], as bases want it; in the caller's arrays it is [head][block][repeat][floats].
 *
 * Invariant: a piece begins with the state that the piece before it left, forward; backward, with the same state
 * (saved) and the gradient that the piece after it left. */
#ifndef LN_MIXER_STAGED_H
#define LN_MIXER_STAGED_H

#include "mixer/mixer.h"

enum { LN_ROOMS = 24, LN_BLOCKS = 3, LN_BASES = 2 };

typedef struct ln_block {
    int64_t repeat, floats; /* of one head */
} ln_block;

typedef struct ln_stage {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    linnet_mixer_form form; /* forward or backward */
    int64_t piece, steps;   /* index of the piece; most time steps of a sequence in it */
    int64_t tokens;         /* of the piece */
    int64_t *offsets;       /* [sequences + 1] in the packed rows */
    int64_t *first;         /* [sequences]: the time step at which the piece begins in a sequence */
    bool states_only;       /* nobody reads the output of this forward */
    ln_block block[LN_BLOCKS];
    float *state[LN_BLOCKS], *state_gradient[LN_BLOCKS], *turned[LN_BLOCKS];
    float *room[LN_ROOMS];
    void *base_workspace;
} ln_stage;

/* What such a row is made of (its core_row). */
typedef struct ln_staged {
    int kind;   /* of rows that share their functions */
    bool whole; /* all tokens are one piece: rows that are not causal */
    void (*blocks)(const linnet_mixer_settings *s, ln_block *blocks);
    /* Floats of each room for a piece of so many tokens. */
    void (*rooms)(const linnet_mixer_settings *s, linnet_mixer_form form, int64_t tokens, int64_t *floats);
    /* Base i: its name, and what differs from the row's sizes and heads, and from scale 1; NULL: there is none. */
    const char *(*base)(const linnet_mixer_settings *s, int i, linnet_mixer_settings *base);
    void (*forward)(ln_stage *stage);
    void (*backward)(ln_stage *stage);
} ln_staged;

uint64_t ln_staged_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                             const linnet_mixer_settings *settings, linnet_mixer_form form);
int64_t ln_staged_head_floats(const linnet_mixer_settings *settings);
void ln_staged_forward(const ln_mixer_call *call);
void ln_staged_backward(const ln_mixer_call *call);
/* clang-format off */
#define LN_STAGED_CORE(staged)                                                                                  \
    .core = "outer", .head_floats = ln_staged_head_floats, .workspace = ln_staged_workspace,                    \
    .forward = ln_staged_forward, .backward = ln_staged_backward, .core_row = (staged)
/* clang-format on */

/* ---- for the rows ---- */

/* Runs a base on packed tensors, from and to the state of a block (-1: none); its sequences are those of offsets (NULL:
 * the piece's). Of the tensors inputs, output, gradients and state_slots are read. Backward replaces the gradients of
 * the block's states by those before the piece. */
typedef struct ln_stage_run {
    int base, block;
    const int64_t *offsets;
    linnet_mixer_tensors tensors;
} ln_stage_run;
void ln_stage_forward(ln_stage *stage, const ln_stage_run *run);
void ln_stage_backward(ln_stage *stage, const ln_stage_run *run);

/* Packed rows at .. at + count - 1 of one sequence and head, time steps step .. of the sequence. */
typedef struct ln_stage_span {
    ln_stage *stage;
    int64_t sequence, head, step, at, count;
} ln_stage_span;
/* Calls `rows` for all rows of the piece, in parallel over sequences and heads, in order of time within them; lanes:
 * for all of a sequence and head at once. Empty ones are left out. */
void ln_stage_rows(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span));
void ln_stage_lanes(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span));

/* The same with all sequences of a head one after the other, for gradients of parameters. */
void ln_stage_heads(ln_stage *stage, int64_t heads, void (*rows)(const ln_stage_span *span));

static inline float *ln_stage_at(const ln_stage_span *span, int room, int64_t columns) {
    return span->stage->room[room] + (span->head * span->stage->tokens + span->at) * columns;
}
static inline linnet_tensor ln_stage_tensor(const ln_stage *stage, int room, int64_t columns) {
    return (linnet_tensor){stage->room[room], columns, stage->tokens * columns};
}
/* A head of values that reads this head of keys. */
static inline int64_t ln_stage_value_head(const linnet_mixer_settings *s, int64_t key_head) {
    return s->tiled_heads ? key_head : key_head * (s->heads / s->key_heads);
}
/* Packs an input; for every head of values. */
void ln_stage_pack(ln_stage *stage, int input, int room);
void ln_stage_pack_values(ln_stage *stage, int input, int room);
/* Adds packed gradients to those of an input; of every head of values. */
void ln_stage_add(ln_stage *stage, int input, int room);
void ln_stage_add_values(ln_stage *stage, int input, int room);
/* Makes piece `piece` of the first `most` time steps of each sequence the one that is packed. */
void ln_stage_seek(ln_stage *stage, int64_t piece, int64_t most);
/* Packed rows to the output; the output's gradient to packed rows. */
void ln_stage_put(ln_stage *stage, int room);
void ln_stage_take(ln_stage *stage, int room);

#endif
