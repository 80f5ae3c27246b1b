/* What the checks of models on a device share: a session of the processor and one of the device, fed the same. */
#ifndef LN_TESTS_CUDA_ENGINE_H
#define LN_TESTS_CUDA_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "expect.h"
#include "linnet/linnet.h"

#define TOLERANCE 4e-2
#define ROW 0.25

typedef struct pair {
    linnet_context *context;
    linnet_model *model;
    linnet_session *host, *device;
    int64_t vocabulary;
    const char *name;
    double worst, squares; /* squares: of the distances, summed */
    double tolerance;      /* 0: TOLERANCE */
    double row;            /* likewise of one token; 0: ROW */
    uint64_t cache;        /* of the device's session */
    double same;           /* share of the tokens that are kept by both */
    int64_t rows;
} pair;

/* Ends the program where this failed. */
void must(linnet_context *context, linnet_status status, const char *what);

/* Takes the logits of a prompt's tokens, for linnet_session_feed_logits. */
typedef struct collected {
    float *rows;
    int64_t vocabulary;
} collected;

linnet_status collect(void *user, int64_t first, int64_t count, const float *logits);

/* Rows of the device's logits with the processor's; what was seen of the pair in a line. */
void compare(pair *p, const float *got, const float *want, int64_t rows, const char *what);
void tell(const pair *p);

/* A random model, or a folder's, of which `shape` is the name, with memory under each policy; only: those whose names
 * begin so. */
void check_policies(linnet_context *context, const char *only, const char *shape);

#endif
