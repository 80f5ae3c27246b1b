/* The leaky memory neuron: see cell_leaky.c. */
#ifndef LN_MIXER_CELL_LEAKY_H
#define LN_MIXER_CELL_LEAKY_H

#include "mixer/mixer.h"

uint64_t ln_leaky_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_leaky_forward(const ln_mixer_call *call);
void ln_leaky_backward(const ln_mixer_call *call);

#endif
