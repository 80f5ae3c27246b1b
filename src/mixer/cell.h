/* Nonlinear cells with a recurrent matrix per head (core of rows_cell.c; FlashRNN, Poeppel et al. 2024).
 *
 *     y[gate] = h[t-1] R[gate] + bias[gate],   state[t] = cell(value[t], y, state[t-1]),   output[t] = h[t]
 *
 * with R of a head stored [from][gate][to]: row `from` is what one unit sends to all gates, so a step is one product of
 * the rows of several sequences with R, which stays in the cache of the core that owns the head. Without R nothing
 * comes back but through the rest of the state. */
#ifndef LN_MIXER_CELL_H
#define LN_MIXER_CELL_H

#include "mixer/mixer.h"

enum { LN_CELL_VALUE, LN_CELL_RECURRENT, LN_CELL_BIAS }; /* inputs */

typedef struct ln_cell {
    ln_cell_kind kind;
    int gates, parts;
} ln_cell;

uint64_t ln_cell_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                           const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_cell_run_forward(const ln_mixer_call *call);
void ln_cell_run_backward(const ln_mixer_call *call);

#endif
