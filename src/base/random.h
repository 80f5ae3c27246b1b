/* Random numbers: xoshiro256** (Blackman and Vigna 2018), seeded by splitmix64. The same seed gives the same numbers
 * everywhere. */
#ifndef LN_BASE_RANDOM_H
#define LN_BASE_RANDOM_H

#include <stdint.h>

typedef struct ln_random {
    uint64_t s[4];
} ln_random;

static inline uint64_t ln_random_mix(uint64_t *x) {
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline void ln_random_seed(ln_random *random, uint64_t seed) {
    for (int i = 0; i < 4; i++) random->s[i] = ln_random_mix(&seed);
}

static inline uint64_t ln_random_u64(ln_random *random) {
    uint64_t *s = random->s;
    const uint64_t product = s[1] * 5, result = (product << 7 | product >> 57) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

/* Uniform in [0, 1). */
static inline double ln_random_unit(ln_random *random) {
    return (double)(ln_random_u64(random) >> 11) * 0x1p-53;
}
/* Uniform in 0 .. n - 1, n > 0 (Lemire's method; the bias of n / 2^64 is left). */
static inline uint64_t ln_random_below(ln_random *random, uint64_t n) {
    return (uint64_t)((__extension__(unsigned __int128) ln_random_u64(random) * n) >> 64);
}
/* Standard normal. */
double ln_random_normal(ln_random *random);

#endif
