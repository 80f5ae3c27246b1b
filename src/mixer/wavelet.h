/* The core of linear attention behind a filter of wavelets. */
#ifndef LN_MIXER_WAVELET_H
#define LN_MIXER_WAVELET_H

#include "mixer/mixer.h"

const char *ln_wavelet_refuse(const linnet_mixer_settings *settings);
uint64_t ln_wavelet_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                              const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_wavelet_forward(const ln_mixer_call *call);
void ln_wavelet_backward(const ln_mixer_call *call);
double ln_wavelet_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
