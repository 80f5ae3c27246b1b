/* Rows of numbers, as the learners use them. */
#ifndef LN_MIXER_LEARNER_INSIDE_H
#define LN_MIXER_LEARNER_INSIDE_H

#include <stdint.h>

static inline void add_times(float *to, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += factor * x[i];
}

/* to may be x. */
static inline void times(float *to, float factor, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = factor * x[i];
}

/* In float64: the rows may be whole matrices. */
static inline double dot(const float *a, const float *b, int64_t n) {
    double part[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int l = 0; l < 4; l++) part[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < n; i++) part[0] += (double)a[i] * (double)b[i];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

#endif
