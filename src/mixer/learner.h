/* Memories that learn at test time (core of rows_learner.c): a matrix M that takes steps down the gradient of a loss on
 * each token's key and value, where all tokens of a chunk take the gradient at the chunk's start.
 *
 * With z = k P, P being M at the chunk's start, the loss is |LN(z) w + b - (v - k)|^2 / 2 (or |z - v|^2 / 2), and u its
 * gradient in z. Each row's M after token t of a piece of a chunk is then
 *
 *     M[t] = a[t] M + b[t] S - sum_(j <= t) c[t][j] k[j]^T u[j],
 *
 * S a second matrix (momentum, or what waits for the chunk's end), so that a row is the numbers a, b, c and those that
 * make M and S of the piece's end, of which there are few: everything else is products of matrices. The output is
 * o + LN(o) w + b (or o) with o = q M[t].
 *
 * A piece ends where the chunk or the call does; the state holds the position in the chunk, so cuts change nothing but
 * rounding. */
#ifndef LN_MIXER_LEARNER_H
#define LN_MIXER_LEARNER_H

#include "mixer/mixer.h"

enum { /* inputs */
       LN_LEARNER_QUERY,
       LN_LEARNER_KEY,
       LN_LEARNER_VALUE,
       LN_LEARNER_STEP_SIZE,
       LN_LEARNER_WEIGHT,
       LN_LEARNER_BIAS,
       LN_LEARNER_DECAY,
       LN_LEARNER_MOMENTUM,
       LN_LEARNER_CHUNK_MOST = 256
};

/* Of `count` tokens; matrices [token][chunk]. */
typedef struct ln_learner_terms {
    float *memory, *momentum, *token; /* a, b, c */
    float *kept, *written;            /* of S[t] = kept[t] S - sum_(j <= t) written[t][j] k[j]^T u[j] */
    float last_memory, last_momentum; /* M of the end = last_memory M + last_momentum S - sum last_token[j] .. */
    float *last_token;                /* [token] */
    float keep;                       /* S of the end = keep S - sum last_written[j] k[j]^T u[j] */
    float *last_written;              /* [token] */
    bool uses_momentum, moves_memory, writes_momentum; /* else b is nothing; M stays; S becomes 0 */
} ln_learner_terms;

typedef struct ln_learner_piece {
    int64_t count, chunk;
    bool first, complete;                                      /* begins, ends its chunk */
    const float *step_size, *decay, *momentum;                 /* [token] */
    float *step_gradient, *decay_gradient, *momentum_gradient; /* [token], overwritten */
} ln_learner_piece;

typedef struct ln_learner {
    bool constant; /* keys and queries end in a 1 of their own: M has a row of biases */
    bool start;    /* P is kept beside M, which moves within a chunk */
    void (*terms)(const ln_learner_piece *piece, ln_learner_terms *terms);
    /* `gradient` has the gradients in all terms but kept and written, where it has room. */
    void (*terms_back)(const ln_learner_piece *piece, const ln_learner_terms *terms, ln_learner_terms *gradient);
} ln_learner;

uint64_t ln_learner_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                              const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_learner_forward(const ln_mixer_call *call);
void ln_learner_backward(const ln_mixer_call *call);

#endif
