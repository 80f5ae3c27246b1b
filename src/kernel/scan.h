/* The loops of recurrences whose states do not mix: h[t] = a[t] h[t - 1] + x[t], many of them side by side, and of the
 * short convolution before them. Rows of a time step are contiguous, `stride` floats from step to step, which may be
 * negative. States are read and written in place: a sequence may be cut anywhere.
 *
 * Where a channel has several states, the lanes are its states, padded to a multiple of `lanes` with zeros in all that
 * is indexed by state; else the lanes are channels. A sum over states is a fixed tree, over time and taps it ascends:
 * one instruction set gives the same bits for any cut of channels and time. */
#ifndef LN_KERNEL_SCAN_H
#define LN_KERNEL_SCAN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ln_series {
    const float *at; /* NULL where the rows are left out */
    int64_t stride;
} ln_series;
typedef struct ln_series_out {
    float *at;
    int64_t stride;
} ln_series_out;

/* h[c][n] = e^(step[c] rate[c][n]) h[c][n] + step[c] value[c] write[n],  y[c] = sum_n read[n] h[c][n] + skip[c]
 * value[c]
 *
 * With frequencies it is complex: e^(step (rate + i frequency)); state [channels][2][states], write and read
 * [2][states], real parts first; and y is twice the real part of the sum. */
typedef struct ln_selective {
    int64_t tokens, channels, states;
    ln_series step, value, write, read;
    const float *rate, *frequency; /* [channels][states]; frequency NULL: real */
    const float *skip;             /* [channels] or NULL */
    float *state;
    ln_series_out y;
    /* Backward: state is before the first step, and not written. */
    ln_series y_gradient;
    ln_series_out step_gradient, value_gradient; /* written */
    ln_series_out write_gradient, read_gradient; /* these and all that follow: added to */
    float *rate_gradient, *frequency_gradient, *skip_gradient;
    float *state_gradient; /* after the last step; becomes that before the first */
    float *history;        /* scratch [tokens + 1][lanes][1 or 2][states] */
} ln_selective;

/* The same in every step: h[c] = h[c] + change[c] h[c] + value[c],  y[c] = Re sum_n read[c][n] h[c][n] + skip[c]
 * value[c]. `change` is the multiplier less one: exact where memory is long, and the same error is made in every step.
 * All [channels][2][states]. */
typedef struct ln_diagonal {
    int64_t tokens, channels, states;
    const float *change, *read, *skip;
    ln_series value;
    float *state;
    ln_series_out y;
    /* Backward, as above. */
    ln_series y_gradient;
    ln_series_out value_gradient;                           /* written */
    float *change_gradient, *read_gradient, *skip_gradient; /* added to */
    float *state_gradient;
    float *history; /* scratch [tokens + 1][2][states] */
} ln_diagonal;

/* y[t][c] = bias[c] + sum_i weight[i][c] rows[t + i][c], then maybe y / (1 + e^-y). rows: taps - 1 before the first. */
typedef struct ln_short_convolution {
    int64_t tokens, channels, taps;
    bool silu;
    const float *const *rows;   /* [tokens + taps - 1] */
    const float *weight, *bias; /* [taps][channels]; bias [channels] or NULL */
    ln_series_out y;
    /* Backward: all gradients are added to; bias_gradient is needed. */
    ln_series y_gradient;
    float *rows_gradient; /* [tokens + taps - 1][channels] */
    float *weight_gradient, *bias_gradient;
} ln_short_convolution;

typedef struct ln_scan_kernels {
    const char *name; /* "scan__avx2" */
    int64_t lanes;

    /* y = e^x for any x; log(1 + e^x), which is x above 20; 1 / (1 + e^-x). y may be x. */
    void (*exponential)(float *y, const float *x, int64_t n);
    void (*softplus)(float *y, const float *x, int64_t n);
    void (*sigmoid)(float *y, const float *x, int64_t n);

    /* y = (1 - e^2x)^1/2, x <= 0, to full precision near 0 */
    void (*complement)(float *y, const float *x, int64_t n);
    /* e^(step (rate + i frequency)) - 1 */
    void (*change)(float *real, float *imaginary, const float *step, const float *rate, const float *frequency,
                   int64_t n);
    /* y [columns][rows] of x [rows][columns]; made for few columns. */
    void (*transpose)(float *y, const float *x, int64_t rows, int64_t columns);

    /* h = a h + x, y = h */
    void (*scan)(int64_t tokens, int64_t channels, ln_series a, ln_series x, float *h, ln_series_out y);
    /* Of scan: state_gradient (after the last step; becomes that before the first). before: h before each step.
     * a_gradient = D before, x_gradient = D, D = y_gradient + a[t + 1] D[t + 1]. */
    void (*scan_backward)(int64_t tokens, int64_t channels, ln_series a, ln_series before, ln_series y_gradient,
                          float *state_gradient, ln_series_out a_gradient, ln_series_out x_gradient);

    void (*selective)(const ln_selective *s);
    void (*selective_backward)(const ln_selective *s);
    void (*diagonal)(const ln_diagonal *s);
    void (*diagonal_backward)(const ln_diagonal *s);
    void (*short_convolution)(const ln_short_convolution *s);
    void (*short_convolution_backward)(const ln_short_convolution *s);
} ln_scan_kernels;

void ln_scan_choose(unsigned cpu, ln_scan_kernels *kernels);

/* The fillers, one an instruction set. */
void ln_scan_fill_avx2(ln_scan_kernels *kernels);
void ln_scan_fill_avx512(ln_scan_kernels *kernels);

#endif
