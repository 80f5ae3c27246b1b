/* What the checks of the public operators on a device share: counted expectations, numbers, memory on both sides. */
#ifndef LN_TESTS_CUDA_OPERATORS_H
#define LN_TESTS_CUDA_OPERATORS_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "linnet/cuda.h"

static const double TOLERANCE = 1.5e-2;
extern linnet_context *context;
extern linnet_cuda *cuda;

/* Ends the program where this fails. */
void must(linnet_status status, const char *what);

double uniform(void);
double normal(void);
uint16_t bf16_of(float x);
float of_bf16(uint16_t x);
/* |got - want| / |want| of the vectors. */
double distance(const float *got, const float *want, int64_t count);
float *random_floats(int64_t count, double scale);
/* The same numbers as bf16; `x` is rounded in place. */
uint16_t *rounded(float *x, int64_t count);

void *sent(const void *from, int64_t bytes);
void *poisoned(int64_t bytes); /* on the device, filled with 0xff */
float *fetched(void *from, int64_t count);
float *fetched_bf16(void *from, int64_t count);

/* Floats that both sides are to fill alike. */
typedef struct pair {
    float *here, *there; /* there: on the device */
    int64_t count;
    bool bf16; /* there */
} pair;

pair pair_open(int64_t count, bool bf16);
void pair_expect(pair *p, double tolerance, const char *work, const char *what);
void pair_close(pair *p);

/* operators_decode.c */
extern const int decode_works;
void check_decode(void);

/* operators_refused.c */
void check_refused_mixers(void);

#endif
