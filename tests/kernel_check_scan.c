/* The scan kernels: elementwise functions over all their range, recurrences from a state that is not zero over lengths
 * and channels that fill no vector, with the last float of every array before a page that may not be touched; timed on
 * one thread in the first cache, in states moved or outputs made. */
#include <complex.h>
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "kernel_check.h"

enum { TOKENS = 40, CHANNELS = 37, TIMED = 128, STEPS = 32, STATES = 16, ARRAYS = 16 };

/* Arrays that end where their memory does. */
typedef struct arrays {
    guarded memory[ARRAYS];
    int count;
    ln_random random;
} arrays;

static float *array(arrays *a, int64_t count, double low, double high) {
    guarded *g = &a->memory[a->count++];
    *g = guarded_open((size_t)count * sizeof(float));
    float *x = (float *)(void *)g->data;
    for (int64_t i = 0; i < count; i++) x[i] = (float)(low + (high - low) * ln_random_unit(&a->random));
    return x;
}

static void close_arrays(arrays *a) {
    for (int i = 0; i < a->count; i++) guarded_close(&a->memory[i]);
    a->count = 0;
}

/* Errors so far, in units of what is allowed. */
typedef struct tally {
    double worst;
} tally;

static void compare(tally *t, double got, double wanted, double allowed) {
    const double error = got == wanted ? 0 : fabs(got - wanted) / allowed;
    if (!(error <= t->worst)) t->worst = error;
}

/* ---- functions ---- */

static double exponential(double x) {
    return exp(x);
}
static double softplus(double x) {
    return x > 20 ? x : log1p(exp(x));
}
static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double complement(double x) {
    return sqrt(-expm1(2 * x));
}

/* The argument of the exponential is rounded once: |x| 2^-24 of the result. */
static double check_function(void (*f)(float *, const float *, int64_t), double (*wanted)(double), double low,
                             double high) {
    enum { COUNT = 5003 };
    arrays a = {0};
    tally t = {0};
    ln_random_seed(&a.random, 3);
    float *x = array(&a, COUNT, low, high), *y = array(&a, COUNT, 0, 0);
    for (int i = 0; i < COUNT; i += 2) x[i] = (float)((double)x[i] * pow(2, -(i % 40)));
    f(y, x, COUNT);
    for (int i = 0; i < COUNT; i++) {
        const double value = wanted((double)x[i]);
        compare(&t, (double)y[i], value, (4e-7 + 1.3e-7 * fabs((double)x[i])) * fabs(value) + 1e-37);
    }
    float edge[] = {-INFINITY, -200, 0, NAN}, out[4];
    f(out, edge, 4);
    for (int i = 0; i < 3; i++) compare(&t, (double)out[i], wanted((double)edge[i]), 1e-6);
    if (!isnan(out[3])) t.worst = INFINITY;
    close_arrays(&a);
    return t.worst;
}

static double check_functions(const ln_scan_kernels *k) {
    double worst = check_function(k->exponential, exponential, -80, 80);
    worst = fmax(worst, check_function(k->softplus, softplus, -80, 80));
    worst = fmax(worst, check_function(k->sigmoid, sigmoid, -80, 80));
    return fmax(worst, check_function(k->complement, complement, -40, 0));
}

static double check_change(const ln_scan_kernels *k) {
    enum { COUNT = 2003 };
    arrays a = {0};
    tally t = {0};
    ln_random_seed(&a.random, 4);
    float *step = array(&a, COUNT, 0.001, 1), *rate = array(&a, COUNT, -8, 0), *frequency = array(&a, COUNT, -300, 300),
          *real = array(&a, COUNT, 0, 0), *imaginary = array(&a, COUNT, 0, 0);
    for (int i = 0; i < COUNT; i += 2) step[i] *= 0.001f;
    k->change(real, imaginary, step, rate, frequency, COUNT);
    for (int i = 0; i < COUNT; i++) {
        const double complex z = (double)step[i] * ((double)rate[i] + I * (double)frequency[i]);
        /* e^z - 1 in float64 is exact enough above 1e-9; the argument is rounded. */
        const double allowed = 5e-7 * cabs(cexp(z) - 1) + 1.3e-7 * cabs(z);
        compare(&t, (double)real[i], expm1(creal(z)) * cos(cimag(z)) - 2 * pow(sin(cimag(z) / 2), 2), allowed);
        compare(&t, (double)imaginary[i], exp(creal(z)) * sin(cimag(z)), allowed);
    }
    close_arrays(&a);
    return t.worst;
}

/* ---- recurrences ---- */

static double check_scan_slot(const ln_scan_kernels *k) {
    arrays a = {0};
    tally t = {0};
    ln_random_seed(&a.random, 5);
    float *decay = array(&a, TOKENS * CHANNELS, 0.5, 1), *x = array(&a, TOKENS * CHANNELS, -1, 1),
          *y = array(&a, TOKENS * CHANNELS, 0, 0), *h = array(&a, CHANNELS, -1, 1);
    double wanted[CHANNELS];
    for (int c = 0; c < CHANNELS; c++) wanted[c] = (double)h[c];
    k->scan(TOKENS, CHANNELS, (ln_series){decay, CHANNELS}, (ln_series){x, CHANNELS}, h, (ln_series_out){y, CHANNELS});
    for (int i = 0; i < TOKENS * CHANNELS; i++) {
        wanted[i % CHANNELS] = (double)decay[i] * wanted[i % CHANNELS] + (double)x[i];
        compare(&t, (double)y[i], wanted[i % CHANNELS], 2e-6 * 4);
    }
    for (int c = 0; c < CHANNELS; c++) compare(&t, (double)h[c], wanted[c], 2e-6 * 4);
    close_arrays(&a);
    return t.worst;
}

static double check_selective_slot(const ln_scan_kernels *k, int64_t states, bool complex_rates) {
    arrays a = {0};
    tally sum = {0};
    ln_random_seed(&a.random, 6);
    const int64_t parts = complex_rates ? 2 : 1, row = parts * states;
    float *step = array(&a, TOKENS * CHANNELS, 0.001, 0.3), *value = array(&a, TOKENS * CHANNELS, -1, 1),
          *write = array(&a, TOKENS * row, -1, 1), *read = array(&a, TOKENS * row, -1, 1),
          *rate = array(&a, CHANNELS * states, -16, 0), *frequency = array(&a, CHANNELS * states, -9, 9),
          *skip = array(&a, CHANNELS, -1, 1), *state = array(&a, CHANNELS * row, -1, 1),
          *y = array(&a, TOKENS * CHANNELS, 0, 0);
    double complex h[CHANNELS][64];
    for (int64_t c = 0; c < CHANNELS; c++)
        for (int64_t n = 0; n < states; n++)
            h[c][n] = (double)state[c * row + n] + (complex_rates ? I * (double)state[c * row + states + n] : 0);
    const ln_selective s = {.tokens = TOKENS,
                            .channels = CHANNELS,
                            .states = states,
                            .step = {step, CHANNELS},
                            .value = {value, CHANNELS},
                            .write = {write, row},
                            .read = {read, row},
                            .rate = rate,
                            .frequency = complex_rates ? frequency : NULL,
                            .skip = skip,
                            .state = state,
                            .y = {y, CHANNELS}};
    k->selective(&s);
    for (int64_t i = 0; i < TOKENS * CHANNELS; i++) {
        const int64_t t = i / CHANNELS, c = i % CHANNELS;
        double wanted = (double)skip[c] * (double)value[i], size = 1;
        for (int64_t n = 0; n < states; n++) {
            const double complex b = (double)write[t * row + n] +
                                     (complex_rates ? I * (double)write[t * row + states + n] : 0),
                                 r = (double)read[t * row + n] +
                                     (complex_rates ? I * (double)read[t * row + states + n] : 0),
                                 z = (double)rate[c * states + n] +
                                     (complex_rates ? I * (double)frequency[c * states + n] : 0);
            h[c][n] = cexp((double)step[i] * z) * h[c][n] + (double)step[i] * (double)value[i] * b;
            wanted += (double)parts * creal(r * h[c][n]);
            size += (double)parts * cabs(r) * cabs(h[c][n]);
        }
        compare(&sum, (double)y[i], wanted, 1e-6 * size);
    }
    for (int64_t c = 0; c < CHANNELS; c++)
        for (int64_t n = 0; n < states; n++) {
            compare(&sum, (double)state[c * row + n], creal(h[c][n]), 4e-6);
            if (complex_rates) compare(&sum, (double)state[c * row + states + n], cimag(h[c][n]), 4e-6);
        }
    close_arrays(&a);
    return sum.worst;
}

static double check_diagonal_slot(const ln_scan_kernels *k) {
    arrays a = {0};
    tally sum = {0};
    ln_random_seed(&a.random, 7);
    enum { ROW = 2 * STATES };
    float *change = array(&a, CHANNELS * ROW, -0.3, 0), *read = array(&a, CHANNELS * ROW, -1, 1),
          *skip = array(&a, CHANNELS, -1, 1), *value = array(&a, TOKENS * CHANNELS, -1, 1),
          *state = array(&a, CHANNELS * ROW, -1, 1), *y = array(&a, TOKENS * CHANNELS, 0, 0);
    double complex h[CHANNELS][STATES];
    for (int c = 0; c < CHANNELS; c++)
        for (int n = 0; n < STATES; n++) h[c][n] = (double)state[c * ROW + n] + I * (double)state[c * ROW + STATES + n];
    const ln_diagonal s = {.tokens = TOKENS,
                           .channels = CHANNELS,
                           .states = STATES,
                           .change = change,
                           .read = read,
                           .skip = skip,
                           .value = {value, CHANNELS},
                           .state = state,
                           .y = {y, CHANNELS}};
    k->diagonal(&s);
    for (int i = 0; i < TOKENS * CHANNELS; i++) {
        const int c = i % CHANNELS;
        double wanted = (double)skip[c] * (double)value[i], size = 1;
        for (int n = 0; n < STATES; n++) {
            const double complex e = (double)change[c * ROW + n] + I * (double)change[c * ROW + STATES + n],
                                 r = (double)read[c * ROW + n] + I * (double)read[c * ROW + STATES + n];
            h[c][n] += e * h[c][n] + (double)value[i];
            wanted += creal(r * h[c][n]);
            size += cabs(r) * cabs(h[c][n]);
        }
        compare(&sum, (double)y[i], wanted, 2e-6 * size);
    }
    close_arrays(&a);
    return sum.worst;
}

static double check_convolution_slot(const ln_scan_kernels *k, int64_t taps) {
    arrays a = {0};
    tally sum = {0};
    ln_random_seed(&a.random, 8);
    float *x = array(&a, (TOKENS + taps - 1) * CHANNELS, -1, 1), *channel_major = array(&a, CHANNELS * taps, -1, 1),
          *weight = array(&a, taps * CHANNELS, 0, 0), *bias = array(&a, CHANNELS, -1, 1),
          *y = array(&a, TOKENS * CHANNELS, 0, 0);
    const float *rows[TOKENS + 64];
    for (int64_t t = 0; t < TOKENS + taps - 1; t++) rows[t] = x + t * CHANNELS;
    k->transpose(weight, channel_major, CHANNELS, taps);
    for (int silu = 0; silu < 2; silu++) {
        const ln_short_convolution s = {.tokens = TOKENS,
                                        .channels = CHANNELS,
                                        .taps = taps,
                                        .silu = silu,
                                        .rows = rows,
                                        .weight = weight,
                                        .bias = bias,
                                        .y = {y, CHANNELS}};
        k->short_convolution(&s);
        for (int64_t i = 0; i < TOKENS * CHANNELS; i++) {
            const int64_t c = i % CHANNELS;
            double wanted = (double)bias[c];
            for (int64_t j = 0; j < taps; j++)
                wanted += (double)channel_major[c * taps + j] * (double)x[i + j * CHANNELS];
            compare(&sum, (double)y[i], silu ? wanted / (1 + exp(-wanted)) : wanted, 1e-6 * (double)taps);
        }
    }
    close_arrays(&a);
    return sum.worst;
}

/* ---- speed ---- */

typedef struct job {
    const ln_scan_kernels *kernels;
    ln_selective selective;
    ln_diagonal diagonal;
    ln_short_convolution convolution;
    const float *x;
    float *y;
} job;

enum { TURNS = 16 };
static void run_selective(void *argument) {
    const job *j = argument;
    for (int i = 0; i < TURNS; i++) j->kernels->selective(&j->selective);
}
static void run_diagonal(void *argument) {
    const job *j = argument;
    for (int i = 0; i < TURNS; i++) j->kernels->diagonal(&j->diagonal);
}
static void run_convolution(void *argument) {
    const job *j = argument;
    for (int i = 0; i < TURNS; i++) j->kernels->short_convolution(&j->convolution);
}
static void run_scan(void *argument) {
    const job *j = argument;
    float h[TIMED] = {0};
    const ln_series x = {j->x, TIMED};
    for (int i = 0; i < TURNS; i++) j->kernels->scan(STEPS, TIMED, x, x, h, (ln_series_out){j->y, TIMED});
}

static void time_slot(check *c, void (*run)(void *), double operations) {
    static float x[STEPS * TIMED], y[STEPS * TIMED], small[TIMED * 2 * STATES], change[TIMED * 2 * STATES],
        rate[TIMED * STATES], state[TIMED * 2 * STATES];
    const float *rows[STEPS + 3];
    for (int i = 0; i < STEPS * TIMED; i++) x[i] = 0.001f * (float)(i % 100);
    for (int i = 0; i < TIMED * STATES; i++) rate[i] = -(float)(i % STATES) - 1;
    for (int i = 0; i < TIMED * 2 * STATES; i++) {
        small[i] = 0.01f * (float)(i % 7);
        change[i] = -0.01f * (float)(i % 9 + 1);
    }
    memset(state, 0, sizeof state);
    for (int i = 0; i < STEPS + 3; i++) rows[i] = x + i % STEPS * TIMED;
    job j = {.kernels = &c->kernels.scan, .x = x, .y = y};
    j.selective = (ln_selective){.tokens = STEPS,
                                 .channels = TIMED,
                                 .states = STATES,
                                 .step = {x, TIMED},
                                 .value = {x, TIMED},
                                 .write = {small, STATES},
                                 .read = {small, STATES},
                                 .rate = rate,
                                 .state = state,
                                 .y = {y, TIMED}};
    j.diagonal = (ln_diagonal){.tokens = STEPS,
                               .channels = TIMED,
                               .states = STATES,
                               .change = change,
                               .read = small,
                               .value = {x, TIMED},
                               .state = state,
                               .y = {y, TIMED}};
    j.convolution = (ln_short_convolution){
        .tokens = STEPS, .channels = TIMED, .taps = 4, .rows = rows, .weight = small, .silu = true, .y = {y, TIMED}};
    check_speed(c, "1 thread", LN_PEAK_F32, operations * STEPS * TIMED * TURNS, check_time(run, &j));
}

static void entry(check *c, const char *variant, double error, void (*run)(void *), double operations) {
    const char *kernel = c->kernels.scan.name;
    check_error(c, kernel, variant, error);
    if (c->bench && run) time_slot(c, run, operations);
    check_end(c);
}

/* Operations of one token of a channel; an exponential counts as one. */
void check_scan(check *c) {
    const ln_scan_kernels *k = &c->kernels.scan;
    if (check_begin(c, k->name, "functions")) entry(c, "functions", check_functions(k), NULL, 0);
    if (check_begin(c, k->name, "change")) entry(c, "change", check_change(k), NULL, 0);
    if (check_begin(c, k->name, "scan")) entry(c, "scan", check_scan_slot(k), run_scan, 2);
    if (check_begin(c, k->name, "selective"))
        entry(c, "selective", fmax(check_selective_slot(k, 16, false), check_selective_slot(k, 48, false)),
              run_selective, 7 * STATES);
    if (check_begin(c, k->name, "selective complex"))
        entry(c, "selective complex", check_selective_slot(k, 16, true), NULL, 0);
    if (check_begin(c, k->name, "diagonal")) entry(c, "diagonal", check_diagonal_slot(k), run_diagonal, 14 * STATES);
    if (check_begin(c, k->name, "short_convolution"))
        entry(c, "short_convolution",
              fmax(check_convolution_slot(k, 4), fmax(check_convolution_slot(k, 2), check_convolution_slot(k, 9))),
              run_convolution, 12);
}
