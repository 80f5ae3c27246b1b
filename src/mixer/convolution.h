/* The core of long convolutions: y[t] = output_gate[t] (sum over j < slots of filter[j] v[t - j] + skip v[t]) for every
 * channel, v[t] = input_gate[t] value[t]. The state is the last `slots` v. */
#ifndef LN_MIXER_CONVOLUTION_H
#define LN_MIXER_CONVOLUTION_H

#include "mixer/mixer.h"

/* Inputs in this order; any but the first two may be left out. */
enum { LN_CONVOLUTION_VALUE, LN_CONVOLUTION_FILTER, LN_CONVOLUTION_IN, LN_CONVOLUTION_OUT, LN_CONVOLUTION_SKIP };
/* What option[i] is. */
enum { LN_CONVOLUTION_KEEP, LN_CONVOLUTION_SQUASH, LN_CONVOLUTION_SMOOTH, LN_CONVOLUTION_COMBS };
enum { LN_CONVOLUTION_WIDEST = 32 }; /* half-width of smoothing */

const char *ln_convolution_refuse(const linnet_mixer_settings *settings);
const char *ln_convolution_refuse_sparse(const linnet_mixer_settings *settings);
uint64_t ln_convolution_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                  const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_convolution_forward(const ln_mixer_call *call);
void ln_convolution_step(const ln_mixer_call *call);
void ln_convolution_backward(const ln_mixer_call *call);
double ln_convolution_flops(const linnet_mixer_settings *settings, linnet_mixer_form form);

#endif
