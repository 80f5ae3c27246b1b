/* Recurrent states of one sequence: of each layer a block of float32, all zeros before the first token.
 *
 * There are two of each: what the layers read, and what a piece writes. A commit makes the second the first, so a piece
 * that is not committed leaves nothing changed, and the position before the last commit can be gone back to until the
 * next piece begins. Further back lead SNAPSHOTS: copies of earlier states, taken where the session marks a position (a
 * turn of a conversation) and, with an interval, about every so many tokens. When all are in use, the one goes whose
 * neighbours are closest to each other: what is left stays spread over the text.
 *
 * Of matrix states |S| is known by heads (the root of the sum of squares). They can be limited: a commit makes each
 * head
 *
 *     S min(1, p / |S|),   p = norm, or growth times |S| after `reference` tokens
 *
 * (arXiv 2410.07145). What |S| was after `reference` tokens lies behind the layer's state, 0 before, and is copied,
 * saved and gone back to with it; a commit must end there (ln_states_room). */
#ifndef LN_MEMORY_STATES_H
#define LN_MEMORY_STATES_H

#include "memory/state_file.h"

/* Where matrix states lie in a layer's state: `count` heads of `floats`, one after the other. */
typedef struct ln_state_heads {
    int64_t offset, count, floats; /* count 0: there are none */
} ln_state_heads;

typedef struct ln_state_limits {
    int64_t reference; /* tokens; 0: nothing is remembered */
    double growth;     /* over what is remembered; 0: no limit */
    double norm;       /* 0: no limit */
} ln_state_limits;

typedef struct ln_states_shape {
    int64_t layers;
    const int64_t *floats;       /* [layers], multiples of 16; 0: the layer has none */
    int64_t snapshots;           /* kept at most */
    int64_t interval;            /* tokens; 0: only where marked */
    const ln_state_heads *heads; /* [layers]; NULL: no matrix states are known of, and none are limited */
    ln_state_limits limits;
} ln_states_shape;

typedef struct ln_states ln_states;

/* Whether any layer has a state. */
bool ln_states_any(const ln_states_shape *shape);
/* Exactly what ln_states_open allocates; UINT64_MAX where the shape is impossible. */
uint64_t ln_states_bytes(const ln_states_shape *shape);
linnet_status ln_states_open(linnet_context *context, const ln_states_shape *shape, ln_states **states);
void ln_states_close(ln_states *states);
/* A copy, which takes as many bytes; only what holds something is touched. */
linnet_status ln_states_fork(const ln_states *states, ln_states **fork);

/* Of a layer, 64-byte aligned: what is there, and where what comes is to be written, all of it, before the commit. */
const float *ln_states_now(const ln_states *states, int64_t layer);
float *ln_states_next(ln_states *states, int64_t layer);
/* After every layer wrote its next state: the position goes from `before` to `after`. */
void ln_states_commit(ln_states *states, int64_t before, int64_t after);
/* Takes a snapshot of `position`, where the states are now. */
void ln_states_mark(ln_states *states, int64_t position);
/* The last position up to `position` that can be gone back to from `now`. */
int64_t ln_states_point(const ln_states *states, int64_t now, int64_t position);
/* position: now, or what ln_states_point gives. */
void ln_states_rewind(ln_states *states, int64_t now, int64_t position);

/* Heads of matrix states of a layer. */
int64_t ln_states_heads(const ln_states *states, int64_t layer, int64_t *floats);
/* |S| now, and what it was after `reference` tokens, all 0 before. */
void ln_states_norms(const ln_states *states, int64_t layer, double *norms, double *early);
/* Of `tokens` that come after `position` those that a commit may take. */
int64_t ln_states_room(const ln_states *states, int64_t position, int64_t tokens);

/* In a session file. Reading needs the same sizes; without `store` nothing changes. false: the file does not fit. */
void ln_states_write(const ln_states *states, ln_state_writer *writer);
bool ln_states_read(ln_states *states, ln_state_reader *reader, bool store);

#endif
