/* A memory that solves for the best matrix of all tokens at every token: see learner_mesa.c. */
#ifndef LN_MIXER_LEARNER_MESA_H
#define LN_MIXER_LEARNER_MESA_H

#include "mixer/mixer.h"

enum { LN_MESA_QUERY, LN_MESA_KEY, LN_MESA_VALUE, LN_MESA_BETA, LN_MESA_DECAY, LN_MESA_RIDGE }; /* inputs */

uint64_t ln_mesa_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                           const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_mesa_forward(const ln_mixer_call *call);
void ln_mesa_backward(const ln_mixer_call *call);

#endif
