/* Backward through a recurrence whose states would not all fit: those before each segment of about pieces^1/2 pieces
 * are kept, and those inside a segment made again when it comes to it. So n pieces keep 2 n^1/2 states and run twice.
 */
#ifndef LN_MIXER_REPLAY_H
#define LN_MIXER_REPLAY_H

#include "mixer/mixer.h"

typedef struct ln_replay {
    int64_t floats, segment, segments; /* of a state; pieces a segment; segments at most */
    float *kept, *states;              /* [segments], [segment] states */
} ln_replay;

/* Lays out in a workspace what sequences of up to `pieces` pieces need. */
ln_replay ln_replay_carve(ln_carver *carver, int64_t floats, int64_t pieces);

typedef struct ln_replay_steps {
    void *argument;
    /* Moves the state over a piece. */
    void (*forward)(void *argument, float *state, int64_t piece);
    /* From the last piece to the first; `state` is the one before the piece, and may be changed. */
    void (*backward)(void *argument, float *state, int64_t piece);
} ln_replay_steps;

/* replay->kept holds the state before the first piece. */
void ln_replay_run(const ln_replay *replay, int64_t pieces, const ln_replay_steps *steps);

/* The state of a head of a sequence before its first token, zeros at a beginning. `state` may be where it lies. */
void ln_mixer_read_state(const ln_mixer_call *call, int64_t sequence, int64_t head, float *state);
/* The gradient of the state after its last token. */
void ln_mixer_read_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head, float *gradient);

#endif
