/* Owns: rotary position embedding (RoFormer, Su et al. 2021): pair i of a head turns by the angle position * f_i with
 * f_i = base^(-2i / size), and its scalings to longer contexts:
 * - linear: f_i / factor
 * - llama 3: f_i / divisor_i, the divisors being stored with the model
 * - YaRN (Peng et al. 2023): pairs that turn more than beta_fast times in the original context stay, those that turn
 *   less than beta_slow times are divided by factor, a ramp between; cosine and sine are scaled by magnitude
 * - long: f_i / long_i where the session is longer than the original context, else f_i / short_i; scaled by magnitude
 *
 * Angles are computed in double: at position 10^6 a float32 angle is off by 0.06. */
#include <math.h>

#include "base/checked.h"
#include "model/model.h"

static const double two_pi = 6.283185307179586;

/* The pair that turns `turns` times in the original context. */
static double yarn_pair(const ln_rope *rope, double turns) {
    return (double)rope->size * log((double)rope->original_context / (turns * two_pi)) / (2 * log(rope->base));
}

static void yarn_frequencies(const ln_rope *rope, double *inverse) {
    double low = yarn_pair(rope, rope->beta_fast), high = yarn_pair(rope, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)rope->size - 1);
    if (high - low < 1e-3) high = low + 1e-3;
    for (int64_t i = 0; i < rope->size / 2; i++) {
        const double slow = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        inverse[i] *= slow / rope->factor + (1 - slow);
    }
}

double ln_rope_frequencies(const ln_rope *rope, bool local, int64_t context, double *inverse) {
    const double base = local ? rope->base_local : rope->base;
    const int64_t pairs = rope->size / 2;
    for (int64_t i = 0; i < pairs; i++) inverse[i] = pow(base, -2 * (double)i / (double)rope->size);
    if (local) return 1;
    const float *divisors = rope->divisors;
    if (rope->scaling == LN_ROPE_LONG)
        divisors = context > rope->original_context ? rope->long_factors : rope->short_factors;
    if (divisors)
        for (int64_t i = 0; i < pairs; i++) inverse[i] /= (double)divisors[i];
    switch (rope->scaling) {
    case LN_ROPE_PLAIN:
        return 1;
    case LN_ROPE_LINEAR:
        for (int64_t i = 0; i < pairs; i++) inverse[i] /= rope->factor;
        return 1;
    case LN_ROPE_YARN:
        yarn_frequencies(rope, inverse);
        return rope->magnitude;
    case LN_ROPE_LONG:
        return rope->magnitude;
    }
    return 1;
}

void ln_rope_angles(const ln_rope *rope, const double *inverse, double magnitude, int64_t first, int64_t tokens,
                    float *cosine, float *sine) {
    const int64_t pairs = rope->size / 2;
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < pairs; i++) {
            const double angle = (double)(first + t) * inverse[i];
            cosine[t * pairs + i] = (float)(magnitude * cos(angle));
            sine[t * pairs + i] = (float)(magnitude * sin(angle));
        }
    }
}
