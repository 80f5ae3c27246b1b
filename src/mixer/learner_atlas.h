/* A memory that learns a window of tokens by orthogonal steps: see learner_atlas.c. */
#ifndef LN_MIXER_LEARNER_ATLAS_H
#define LN_MIXER_LEARNER_ATLAS_H

#include "mixer/mixer.h"

enum { /* inputs */
       LN_ATLAS_QUERY,
       LN_ATLAS_KEY,
       LN_ATLAS_VALUE,
       LN_ATLAS_GAIN,
       LN_ATLAS_STEP_SIZE,
       LN_ATLAS_DECAY,
       LN_ATLAS_MOMENTUM,
       LN_ATLAS_ITERATIONS_MOST = 16
};

uint64_t ln_atlas_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_atlas_forward(const ln_mixer_call *call);
void ln_atlas_backward(const ln_mixer_call *call);

#endif
