/* The core of exact sums of Laplacian kernels in few dimensions. */
#ifndef LN_MIXER_LAPLACE_H
#define LN_MIXER_LAPLACE_H

#include "mixer/mixer.h"

const char *ln_laplace_refuse(const linnet_mixer_settings *settings);
uint64_t ln_laplace_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                              const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_laplace_forward(const ln_mixer_call *call);
void ln_laplace_backward(const ln_mixer_call *call);
double ln_laplace_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
