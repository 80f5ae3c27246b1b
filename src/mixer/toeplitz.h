/* The core of kernelised attention with relative positions: weights e^bias[i - j] of features of queries and keys. */
#ifndef LN_MIXER_TOEPLITZ_H
#define LN_MIXER_TOEPLITZ_H

#include "mixer/mixer.h"

enum { LN_TOEPLITZ_QUERY, LN_TOEPLITZ_KEY, LN_TOEPLITZ_VALUE, LN_TOEPLITZ_BIAS };

const char *ln_toeplitz_refuse(const linnet_mixer_settings *settings);
uint64_t ln_toeplitz_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                               const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_toeplitz_forward(const ln_mixer_call *call);
void ln_toeplitz_step(const ln_mixer_call *call);
void ln_toeplitz_backward(const ln_mixer_call *call);
double ln_toeplitz_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
