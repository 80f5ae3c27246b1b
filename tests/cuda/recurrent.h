/* What the checks of operators with a state share: batches of sequences, results in float64 beside a tensor, states of
 * a pool. */
#ifndef LN_TESTS_CUDA_RECURRENT_H
#define LN_TESTS_CUDA_RECURRENT_H

#include "check.h"

enum { BATCH_MOST = 9 };

/* Sequences one after the other; a length below 0 ends the list. */
typedef struct batch {
    int64_t offsets[BATCH_MOST + 1];
    int sequences;
} batch;

static inline batch batch_of(const int *lengths) {
    batch b = {.sequences = 0};
    for (; b.sequences < BATCH_MOST && lengths[b.sequences] >= 0; b.sequences++)
        b.offsets[b.sequences + 1] = b.offsets[b.sequences] + lengths[b.sequences];
    return b;
}
static inline int64_t batch_tokens(const batch *b) {
    return b->offsets[b->sequences];
}
static inline int64_t batch_length(const batch *b, int sequence) {
    return b->offsets[sequence + 1] - b->offsets[sequence];
}

static inline double *doubles(int64_t count) {
    return calloc((size_t)count + 1, sizeof(double));
}
/* Elements of a tensor without its gaps: place of [token][head][0]. */
static inline int64_t dense_place(const tensor *t, int64_t token, int64_t head) {
    return (token * t->heads + head) * t->size;
}
/* Beside a tensor as fetched. */
static inline double tensor_error(const tensor *t, const double *want) {
    const int64_t count = t->tokens * t->heads * t->size;
    double *got = doubles(count);
    for (int64_t token = 0; token < t->tokens; token++)
        for (int64_t head = 0; head < t->heads; head++)
            for (int64_t i = 0; i < t->size; i++) got[dense_place(t, token, head) + i] = tensor_at(t, token, head, i);
    const double error = relative_error(got, want, count);
    free(got);
    return error;
}
static inline void tensor_doubles(const tensor *t, double *to) {
    for (int64_t token = 0; token < t->tokens; token++)
        for (int64_t head = 0; head < t->heads; head++)
            for (int64_t i = 0; i < t->size; i++) to[dense_place(t, token, head) + i] = tensor_at(t, token, head, i);
}

/* For benches: packed, on the device alone, the same numbers again after each million. As tensor_random otherwise. */
static inline tensor tensor_large(int64_t tokens, int64_t heads, int64_t size, int layout, element of,
                                  float deviation) {
    tensor part = tensor_random(1, 1, 1 << 20, PACKED, of, deviation);
    tensor t = {.tokens = tokens, .heads = heads, .size = size, .row = size, .element = of};
    (void)layout;
    t.device.head_stride = size;
    t.device.token_stride = size * heads;
    t.elements = tokens * heads * size;
    t.device.data = device_open(t.elements * element_bytes(of));
    for (int64_t at = 0; at < t.elements; at += part.elements) {
        const int64_t count = t.elements - at < part.elements ? t.elements - at : part.elements;
        must(cudaMemcpy((char *)t.device.data + at * element_bytes(of), part.device.data,
                        (size_t)(count * element_bytes(of)), cudaMemcpyDeviceToDevice),
             "copy");
    }
    tensor_close(&part);
    return t;
}
typedef tensor tensor_make(int64_t tokens, int64_t heads, int64_t size, int layout, element of, float deviation);

/* ---- runs, for dplr, scan and short_convolution alike ---- */

/* How the state comes: not at all, from one array to another, in place by slots. */
enum { NO_STATE, APART, IN_PLACE };

typedef struct recurrent {
    const char *work, *kernel;
    check_run *run;
    void *context;
    tensor *output, *state_in, *state_out; /* IN_PLACE begins with what is in state_in */
    int state;
    bool left_out; /* a sequence has no outputs */
} recurrent;
/* A run against float64, written to every element, and again from a graph with the same bits. most: relative errors
 * that are allowed. */
void recurrent_forward(const recurrent *r, const double *output, const double *state, double most, double state_most);
/* The same of gradients; `made` NULL: left out. */
typedef struct recurrent_gradient {
    const char *name;
    tensor *made;
    double *want, most;
} recurrent_gradient;
void recurrent_backward(const recurrent *r, const recurrent_gradient *gradients, int count);

/* Slots of a pool, two for each sequence and none twice: on both sides. */
typedef struct slots {
    int64_t host[BATCH_MOST], count;
    void *device;
} slots;

static inline slots slots_open(int sequences) {
    slots s = {.count = 2 * (int64_t)sequences};
    for (int i = 0; i < sequences; i++) s.host[i] = 2 * (sequences - 1 - i) + (i & 1);
    s.device = device_open((int64_t)sizeof s.host);
    device_send(s.device, s.host, (int64_t)sizeof s.host);
    return s;
}

/* The second sequence takes no part. */
static inline void slots_leave_out(slots *s) {
    s->host[1] = -1;
    device_send(s->device, s->host, (int64_t)sizeof s->host);
}
/* Nor has it outputs. */
static inline void expect_nothing(const tensor *t, const batch *b, double *want) {
    for (int64_t i = dense_place(t, b->offsets[1], 0); i < dense_place(t, b->offsets[2], 0); i++) want[i] = NAN;
}

#endif
