/* The vector kernels: the same bits as the portable ones (which test_vector compares with float64); timed in the first
 * cache. */
#include <stdlib.h>
#include <string.h>

#include "kernel_check.h"

enum { LENGTH = 2048, SHORT = 77 };

typedef struct rows {
    float y[LENGTH], x[LENGTH], z[LENGTH], result;
} rows;

typedef void (*run)(const ln_vector_kernels *k, rows *r, int64_t n);
static void run_rms_norm(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->rms_norm(r->y, r->x, r->z, n, 1e-5f);
}
static void run_add(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->add(r->y, r->x, n);
}
static void run_add_products(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->add_products(r->y, 1.1f, r->z, 4, r->x, LENGTH / 4, n / 4);
}
static void run_add_distance(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->add_distance(r->y, -0.3f, -40, n);
}
static void run_scale(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->scale(r->y, 1.25f, n);
}
static void run_silu(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->silu_multiply(r->y, r->x, r->z, n);
}
static void run_gelu(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->gelu_tanh_multiply(r->y, r->x, r->z, n);
}
static void run_soft_cap(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->soft_cap(r->y, 30, n);
}
static void run_rotate(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->rotate(r->y, r->x, r->z, n / 2 * 2, 1);
}
static void run_hadamard(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->hadamard(r->y, n);
}
static void run_widen(const ln_vector_kernels *k, rows *r, int64_t n) {
    k->widen(r->y, (const uint16_t *)(const void *)r->x, n);
}
static void run_maximum(const ln_vector_kernels *k, rows *r, int64_t n) {
    r->result = k->maximum(r->x, n);
}
static void run_exponential(const ln_vector_kernels *k, rows *r, int64_t n) {
    r->result = k->exponential(r->y, r->x, 0.5f, n);
}

static const struct {
    const char *name;
    run run;
    int streams; /* rows read and written: bytes are counted so */
} entries[] = {
    {"rms_norm", run_rms_norm, 3},         {"add", run_add, 3},           {"add_products", run_add_products, 2},
    {"add_distance", run_add_distance, 2}, {"scale", run_scale, 2},       {"silu_multiply", run_silu, 3},
    {"gelu_tanh_multiply", run_gelu, 3},   {"soft_cap", run_soft_cap, 2}, {"rotate", run_rotate, 3},
    {"hadamard", run_hadamard, 2},         {"widen", run_widen, 2},       {"maximum", run_maximum, 1},
    {"exponential", run_exponential, 2},
};

static void fill(rows *r) {
    ln_random random;
    ln_random_seed(&random, 1);
    for (int i = 0; i < LENGTH; i++) {
        r->x[i] = (float)ln_random_normal(&random);
        r->y[i] = (float)ln_random_normal(&random);
        r->z[i] = (float)ln_random_normal(&random);
    }
    r->result = 0;
}

typedef struct timing {
    const ln_vector_kernels *kernels;
    rows *rows;
    run run;
} timing;

enum { REPEATS = 64 };
static void run_many(void *argument) {
    const timing *t = argument;
    for (int i = 0; i < REPEATS; i++) t->run(t->kernels, t->rows, LENGTH);
}

void check_vector(check *c) {
    ln_vector_kernels portable;
    ln_vector_fill_portable(&portable);
    rows *want = aligned_alloc(64, (sizeof *want + 63) / 64 * 64),
         *got = aligned_alloc(64, (sizeof *got + 63) / 64 * 64);
    if (!want || !got) exit(2);
    memset(want, 0, sizeof *want);
    memset(got, 0, sizeof *got);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        if (!check_begin(c, entries[i].name, c->kernels.vector.name)) continue;
        double error = 0;
        for (int64_t n = 0; n <= SHORT; n++) {
            fill(want);
            fill(got);
            entries[i].run(&portable, want, n);
            entries[i].run(&c->kernels.vector, got, n);
            if (memcmp(want, got, sizeof *want) != 0) error = 2;
        }
        check_error(c, entries[i].name, c->kernels.vector.name, error);
        if (c->bench) {
            timing t = {&c->kernels.vector, got, entries[i].run};
            const double seconds = check_time(run_many, &t);
            check_speed(c, "in cache", LN_PEAKS, 4.0 * LENGTH * REPEATS * entries[i].streams, seconds);
        }
        check_end(c);
    }
    free(want);
    free(got);
}
