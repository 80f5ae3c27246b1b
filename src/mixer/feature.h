/* Feature maps of linear attention: x [key_size] to phi [features], and gradients back. */
#ifndef LN_MIXER_FEATURE_H
#define LN_MIXER_FEATURE_H

#include "mixer/mixer.h"

/* One row of queries or keys. `parameter` is what ln_feature.parameter says. */
typedef struct ln_feature_row {
    const linnet_mixer_settings *settings;
    const ln_kernels *kernels;
    bool key;
    const float *x, *parameter;
    float *phi;
    const float *phi_gradient;
    float *x_gradient, *parameter_gradient; /* overwritten; added to, NULL: not wanted */
} ln_feature_row;

typedef struct ln_feature {
    void (*map)(const ln_feature_row *row);
    void (*gradient)(const ln_feature_row *row); /* phi is there */
} ln_feature;

extern const ln_feature ln_feature_elu, ln_feature_relu, ln_feature_hedgehog, ln_feature_taylor, ln_feature_square,
    ln_feature_random, ln_feature_norm_aware;

/* y = elu(x) + 1; its gradient; y = 1 / (1 + e^-x). y may not be x but in the last. */
void ln_elu(const ln_kernels *kernels, float *y, const float *x, int64_t n);
void ln_elu_gradient(float *dx, const float *dy, const float *y, const float *x, int64_t n);
void ln_sigmoid(const ln_kernels *kernels, float *y, const float *x, int64_t n);

/* How many features: of hedgehog and norm_aware, taylor, square, random. */
int64_t ln_features_twice(const linnet_mixer_settings *settings);
int64_t ln_features_taylor(const linnet_mixer_settings *settings);
int64_t ln_features_square(const linnet_mixer_settings *settings);
int64_t ln_features_slots(const linnet_mixer_settings *settings);

/* Projections [slots][key_size] of positive random features: kind 0: independent normal; 1: orthogonal blocks with the
 * lengths of normal ones; 2: normal quantiles of a shifted rank-1 lattice (quasi-Monte-Carlo). The same seed gives the
 * same numbers everywhere. room [2 slots + 8]: there is a prime below. */
enum { LN_RANDOM_NORMAL, LN_RANDOM_ORTHOGONAL, LN_RANDOM_LATTICE, LN_RANDOM_KINDS };
void ln_random_projection(int kind, uint64_t seed, int64_t slots, int64_t key_size, float *projection, double *room);
/* The standard normal quantile (Acklam's rational approximation, one step of Halley's method: 1e-15). */
double ln_normal_quantile(double probability);

#endif
