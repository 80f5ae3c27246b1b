/* What the checks of the GPU kernels share: counted expectations, random numbers, tensors on both sides of the bus,
 * runs captured in graphs, times.
 *
 * A family of kernels is one file check_NAME.c, which defines `const suite cuda_suite_NAME`. The same source is built
 * for a GPU (cuda_check) and for the emulator (cuda_check_emulated), which takes the small works alone. Inputs are
 * random and new in every run, by the seed that is printed; every output is filled with 0xff before each run. */
#ifndef LN_TESTS_CUDA_CHECK_H
#define LN_TESTS_CUDA_CHECK_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"
#include "kernel/cuda/device_cuda.h"

typedef struct check_options {
    const char *kernels, *works; /* part of the name; "": all */
    double largest;              /* work, in multiply-adds */
    int rounds;                  /* of a bench */
} check_options;

typedef struct suite {
    const char *name;
    int cases;           /* that need a GPU */
    void (*plans)(void); /* what needs none */
    void (*check)(const ln_cuda_device *device, const check_options *options);
    void (*bench)(const ln_cuda_device *device, const check_options *options);
} suite;

/* ---- expectations ---- */

extern int check_skipped; /* beside those of expect.h */
extern uint64_t check_seed;

/* Ends the program where a call of the runtime failed. */
void must(cudaError_t error, const char *what);
/* Whether --kernels and --works ask for it; a work that is too large for the emulator is counted as skipped. */
bool kernel_wanted(const check_options *options, const char *name);
bool work_wanted(const check_options *options, const char *name, double multiply_adds);

/* ---- numbers ---- */

uint64_t random_next(void);
float random_normal(void);   /* deviation 1 */
double random_uniform(void); /* 0 <= x < 1 */
uint16_t bf16_of(float x);
float of_bf16(uint16_t x);
uint16_t f16_of(float x);
float of_f16(uint16_t x);
/* |got - want| / |want| of the vectors; infinite where one is not a number and the other is. */
double relative_error(const double *got, const double *want, int64_t count);

/* ---- memory of the device ---- */

void *device_open(int64_t bytes); /* filled with 0xff; of 0 bytes too */
void device_poison(void *data, int64_t bytes);
void device_send(void *to, const void *from, int64_t bytes);
void device_fetch(void *to, const void *from, int64_t bytes);
void device_close(void *data);

/* ---- tensors [token][head][i] ---- */

typedef enum element { ELEMENT_BF16, ELEMENT_F16, ELEMENT_FLOAT32 } element;
enum { PACKED, PADDED, HEAD_MAJOR, LAYOUTS }; /* PADDED: gaps of 24 elements after every row */

typedef struct tensor {
    ln_cuda_tensor device;
    void *host; /* of the same layout */
    int64_t tokens, heads, size, elements, row;
    element element;
} tensor;

int64_t element_bytes(element of);
/* Poisoned on both sides. */
tensor tensor_open(int64_t tokens, int64_t heads, int64_t size, int layout, element of);
/* Normal numbers on both sides. */
tensor tensor_random(int64_t tokens, int64_t heads, int64_t size, int layout, element of, float deviation);
void tensor_send(tensor *t);
void tensor_fetch(tensor *t);
void tensor_poison(tensor *t); /* on the device */
void tensor_close(tensor *t);
int64_t tensor_place(const tensor *t, int64_t token, int64_t head);
double tensor_at(const tensor *t, int64_t token, int64_t head, int64_t i);
void tensor_set(tensor *t, int64_t token, int64_t head, int64_t i, double x);
/* As fetched: every element was written and no gap was. */
void tensor_expect_written(const tensor *t, const char *work, const char *kernel);
/* As fetched before: the device still has, or has again, the same bits. */
void tensor_expect_same(const tensor *t, const char *work, const char *kernel, const char *what);

/* ---- runs ---- */

/* Starts the work on the stream. */
typedef ln_cuda_code check_run(void *context, void *stream);

/* Waits, but not for ever: a kernel that hangs must not take the machine with it. False: it hangs. */
bool device_wait(void *stream, double seconds);
/* Runs and waits; ends the program where the device fails or hangs. */
void run_now(check_run *run, void *context, const char *work, const char *kernel);
cudaGraphExec_t run_capture(check_run *run, void *context, const char *work, const char *kernel);
void run_graph(cudaGraphExec_t graph, const char *work, const char *kernel);
void expect_same_bits(const void *one, const void *other, int64_t bytes, const char *work, const char *kernel,
                      const char *what);

typedef struct timing {
    double median, least; /* milliseconds */
} timing;

/* Runs in turn, so that all meet the same clocks; two rounds before those that count. */
void time_in_turns(check_run *run, void *const *contexts, int count, int rounds, timing *timings);
/* One after the other without a pause, where the power limit shows: milliseconds of one. */
double time_burst(check_run *run, void *context, int count);
/* Bytes a second that a copy on the device reads and writes together, measured now. */
double device_bandwidth(void);
void show_device(const char *when);

#endif
