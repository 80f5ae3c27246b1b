/* The loops of scan.h over a vector type that the including file defines (W, lanes, load, store, load_some, store_some,
 * splat, add, subtract, multiply, multiply_add, divide, where_below, nearest, power (2^x for any x), fold_two,
 * fold_four, fold_rest).
 *
 * The sum over lanes of W vectors becomes one vector by folding pairs, pairs of pairs and so on: three instructions a
 * vector instead of a sum of each. */
#include <math.h>

static const float LOG2_E = 1.44269504f;

HELPER lanes exponential_of(lanes x) {
    return power(multiply(x, splat(LOG2_E)));
}
HELPER lanes sigmoid_of(lanes x) {
    return divide(splat(1), add(splat(1), power(multiply(x, splat(-LOG2_E)))));
}
/* max(x, 0) + log(1 + z), z = e^-|x|, and log(1 + z) = 2 atanh(s), s = z / (2 + z) <= 1/3. */
HELPER lanes softplus_of(lanes x) {
    const lanes magnitude = where_below(x, splat(0), x, subtract(splat(0), x));
    const lanes z = exponential_of(magnitude), s = divide(z, add(z, splat(2))), q = multiply(s, s);
    lanes series = splat(1.0f / 13);
    for (int k = 11; k > 0; k -= 2) series = multiply_add(series, q, splat(1.0f / (float)k));
    const lanes y = multiply_add(add(s, s), series, where_below(x, splat(0), splat(0), x));
    return where_below(splat(20), x, x, y);
}

/* ---- rows ---- */

#define MAP(NAME, OF)                                                     \
    static void NAME(float *y, const float *x, int64_t n) {               \
        int64_t i = 0;                                                    \
        for (; i + W <= n; i += W) store(y + i, OF(load(x + i)));         \
        if (i < n) store_some(y + i, OF(load_some(x + i, n - i)), n - i); \
    }
MAP(exponential, exponential_of)
MAP(softplus, softplus_of)
MAP(sigmoid, sigmoid_of)

static void transpose(float *restrict y, const float *restrict x, int64_t rows, int64_t columns) {
    if (columns == 4) { /* the usual width: the compiler makes shuffles of it */
        for (int64_t r = 0; r < rows; r++) {
            y[r] = x[4 * r];
            y[rows + r] = x[4 * r + 1];
            y[2 * rows + r] = x[4 * r + 2];
            y[3 * rows + r] = x[4 * r + 3];
        }
        return;
    }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) y[c * rows + r] = x[r * columns + c];
}

/* ---- one state a channel ---- */

static void scan(int64_t tokens, int64_t channels, ln_series a, ln_series x, float *h, ln_series_out y) {
    int64_t c = 0;
    for (; c + 2 * W <= channels; c += 2 * W) {
        lanes low = load(h + c), high = load(h + c + W);
        for (int64_t t = 0; t < tokens; t++) {
            const float *at = a.at + t * a.stride + c, *xt = x.at + t * x.stride + c;
            float *yt = y.at + t * y.stride + c;
            low = multiply_add(load(at), low, load(xt));
            high = multiply_add(load(at + W), high, load(xt + W));
            store(yt, low);
            store(yt + W, high);
        }
        store(h + c, low);
        store(h + c + W, high);
    }
    for (; c < channels; c += W) {
        const int64_t n = channels - c < W ? channels - c : W;
        lanes state = load_some(h + c, n);
        for (int64_t t = 0; t < tokens; t++) {
            const lanes at = load_some(a.at + t * a.stride + c, n), xt = load_some(x.at + t * x.stride + c, n);
            state = multiply_add(at, state, xt);
            store_some(y.at + t * y.stride + c, state, n);
        }
        store_some(h + c, state, n);
    }
}

static void scan_backward(int64_t tokens, int64_t channels, ln_series a, ln_series before, ln_series y_gradient,
                          float *state_gradient, ln_series_out a_gradient, ln_series_out x_gradient) {
    for (int64_t c = 0; c < channels; c += W) {
        const int64_t n = channels - c < W ? channels - c : W;
        lanes d = load_some(state_gradient + c, n);
        for (int64_t t = tokens - 1; t >= 0; t--) {
            d = add(d, load_some(y_gradient.at + t * y_gradient.stride + c, n));
            store_some(x_gradient.at + t * x_gradient.stride + c, d, n);
            store_some(a_gradient.at + t * a_gradient.stride + c,
                       multiply(d, load_some(before.at + t * before.stride + c, n)), n);
            d = multiply(d, load_some(a.at + t * a.stride + c, n));
        }
        store_some(state_gradient + c, d, n);
    }
}

/* ---- several states a channel ---- */

HELPER lanes sum_of_each(const lanes *x) {
    lanes folded[W / 4];
    for (int k = 0; k < W / 4; k++)
        folded[k] = fold_four(fold_two(x[4 * k], x[4 * k + 1]), fold_two(x[4 * k + 2], x[4 * k + 3]));
    return fold_rest(folded);
}

/* Steps and writings of up to W channels at a token. */
typedef struct strength {
    float step[W], write[W]; /* step log2 e; step value */
} strength;

HELPER void strengths(const ln_selective *s, int64_t t, int64_t c, int64_t n, strength *of) {
    const lanes step = load_some(s->step.at + t * s->step.stride + c, n),
                value = load_some(s->value.at + t * s->value.stride + c, n);
    store(of->step, multiply(step, splat(LOG2_E)));
    store(of->write, multiply(step, value));
}

HELPER void selective_output(const ln_selective *s, int64_t t, int64_t c, int64_t n, lanes sum) {
    if (s->skip)
        sum = multiply_add(load_some(s->skip + c, n), load_some(s->value.at + t * s->value.stride + c, n), sum);
    store_some(s->y.at + t * s->y.stride + c, sum, n);
}

/* W channels whose states are one vector each: these stay in registers. */
static void selective_narrow(const ln_selective *s, int64_t c) {
    lanes h[W];
    const float *rate = s->rate + c * W;
    float *state = s->state + c * W;
    for (int j = 0; j < W; j++) h[j] = load(state + j * W);
    for (int64_t t = 0; t < s->tokens; t++) {
        strength of;
        strengths(s, t, c, W, &of);
        const lanes write = load(s->write.at + t * s->write.stride), read = load(s->read.at + t * s->read.stride);
        lanes folded[W / 4];
#define READ(j)                                                                        \
    (h[j] = multiply_add(power(multiply(splat(of.step[j]), load(rate + (j)*W))), h[j], \
                         multiply(splat(of.write[j]), write)),                         \
     multiply(h[j], read))
#pragma GCC unroll 4
        for (int k = 0; k < W / 4; k++) {
            const lanes a = READ(4 * k), b = READ(4 * k + 1), ab = fold_two(a, b);
            const lanes d = READ(4 * k + 2), e = READ(4 * k + 3);
            folded[k] = fold_four(ab, fold_two(d, e));
        }
#undef READ
        selective_output(s, t, c, W, fold_rest(folded));
    }
    for (int j = 0; j < W; j++) store(state + j * W, h[j]);
}

/* One step of a channel; `a` may be NULL. */
HELPER lanes selective_step(const ln_selective *s, int64_t t, int64_t c, float step, float write, float *h) {
    const float *rate = s->rate + c * s->states, *b = s->write.at + t * s->write.stride,
                *r = s->read.at + t * s->read.stride;
    lanes sum = splat(0);
    for (int64_t n = 0; n < s->states; n += W) {
        const lanes a = power(multiply(splat(step), load(rate + n)));
        const lanes next = multiply_add(a, load(h + n), multiply(splat(write), load(b + n)));
        store(h + n, next);
        sum = multiply_add(next, load(r + n), sum);
    }
    return sum;
}

static void selective_wide(const ln_selective *s, int64_t c, int64_t count) {
    for (int64_t t = 0; t < s->tokens; t++) {
        strength of;
        lanes sums[W];
        strengths(s, t, c, count, &of);
        for (int j = 0; j < W; j++)
            sums[j] = j < count ? selective_step(s, t, c + j, of.step[j], of.write[j], s->state + (c + j) * s->states)
                                : splat(0);
        selective_output(s, t, c, count, sum_of_each(sums));
    }
}

static void selective(const ln_selective *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t count = s->channels - c < W ? s->channels - c : W;
        if (count == W && s->states == W)
            selective_narrow(s, c);
        else
            selective_wide(s, c, count);
    }
}

/* Token t of one channel: D = gradient of the state after it. Returns in sums what the step's gradient and the value's
 * add up from: sum_n rate D h' and sum_n write D, h' the decayed state. */
HELPER void selective_step_backward(const ln_selective *s, int64_t t, int64_t c, const strength *of, int j,
                                    lanes *rates, lanes *writes) {
    const int64_t states = s->states;
    const float *rate = s->rate + (c + j) * states, *b = s->write.at + t * s->write.stride,
                *r = s->read.at + t * s->read.stride, *before = s->history + (t * W + j) * states,
                *after = before + W * states;
    float *d = s->state_gradient + (c + j) * states, *rate_gradient = s->rate_gradient + (c + j) * states,
          *b_gradient = s->write_gradient.at + t * s->write_gradient.stride,
          *r_gradient = s->read_gradient.at + t * s->read_gradient.stride;
    const lanes y = splat(s->y_gradient.at[t * s->y_gradient.stride + c + j]),
                step = splat(s->step.at[t * s->step.stride + c + j]);
    *rates = *writes = splat(0);
    for (int64_t n = 0; n < states; n += W) {
        const lanes a = power(multiply(splat(of->step[j]), load(rate + n)));
        const lanes full = multiply_add(y, load(r + n), load(d + n));
        const lanes decayed = multiply(multiply(full, a), load(before + n));
        store(r_gradient + n, multiply_add(y, load(after + n), load(r_gradient + n)));
        store(b_gradient + n, multiply_add(full, splat(of->write[j]), load(b_gradient + n)));
        store(rate_gradient + n, multiply_add(step, decayed, load(rate_gradient + n)));
        *rates = multiply_add(decayed, load(rate + n), *rates);
        *writes = multiply_add(full, load(b + n), *writes);
        store(d + n, multiply(full, a));
    }
}

static void selective_history(const ln_selective *s, int64_t c, int64_t count) {
    const int64_t row = W * s->states;
    for (int64_t i = 0; i < count * s->states; i += W) store(s->history + i, load(s->state + c * s->states + i));
    for (int64_t t = 0; t < s->tokens; t++) {
        strength of;
        float *h = s->history + (t + 1) * row;
        for (int64_t i = 0; i < count * s->states; i += W) store(h + i, load(h - row + i));
        strengths(s, t, c, count, &of);
        for (int j = 0; j < count; j++) selective_step(s, t, c + j, of.step[j], of.write[j], h + j * s->states);
    }
}

static void selective_backward(const ln_selective *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t count = s->channels - c < W ? s->channels - c : W;
        selective_history(s, c, count);
        for (int64_t t = s->tokens - 1; t >= 0; t--) {
            strength of;
            lanes rates[W], writes[W];
            strengths(s, t, c, count, &of);
            for (int j = 0; j < W; j++) rates[j] = writes[j] = splat(0);
            for (int j = 0; j < count; j++) selective_step_backward(s, t, c, &of, j, &rates[j], &writes[j]);
            const lanes step = load_some(s->step.at + t * s->step.stride + c, count),
                        value = load_some(s->value.at + t * s->value.stride + c, count),
                        y = load_some(s->y_gradient.at + t * s->y_gradient.stride + c, count);
            const lanes written = sum_of_each(writes);
            lanes value_gradient = multiply(step, written);
            if (s->skip) value_gradient = multiply_add(load_some(s->skip + c, count), y, value_gradient);
            store_some(s->value_gradient.at + t * s->value_gradient.stride + c, value_gradient, count);
            store_some(s->step_gradient.at + t * s->step_gradient.stride + c,
                       multiply_add(value, written, sum_of_each(rates)), count);
            if (s->skip_gradient)
                store_some(s->skip_gradient + c, multiply_add(y, value, load_some(s->skip_gradient + c, count)), count);
        }
    }
}

/* ---- short convolution ---- */

HELPER lanes convolve(const ln_short_convolution *s, int64_t t, int64_t c, int64_t n) {
    lanes sum = s->bias ? load_some(s->bias + c, n) : splat(0);
    for (int64_t i = 0; i < s->taps; i++)
        sum = multiply_add(load_some(s->weight + i * s->channels + c, n), load_some(s->rows[t + i] + c, n), sum);
    return sum;
}

HELPER lanes silu_of(lanes x) {
    return multiply(x, sigmoid_of(x));
}

HELPER void convolve_row(const ln_short_convolution *s, int64_t t, bool silu) {
    float *y = s->y.at + t * s->y.stride;
    int64_t c = 0;
    for (; c + W <= s->channels; c += W) {
        lanes sum = s->bias ? load(s->bias + c) : splat(0);
        for (int64_t i = 0; i < s->taps; i++)
            sum = multiply_add(load(s->weight + i * s->channels + c), load(s->rows[t + i] + c), sum);
        store(y + c, silu ? silu_of(sum) : sum);
    }
    if (c == s->channels) return;
    const lanes sum = convolve(s, t, c, s->channels - c);
    store_some(y + c, silu ? silu_of(sum) : sum, s->channels - c);
}

static void short_convolution(const ln_short_convolution *s) {
    if (s->silu)
        for (int64_t t = 0; t < s->tokens; t++) convolve_row(s, t, true);
    else
        for (int64_t t = 0; t < s->tokens; t++) convolve_row(s, t, false);
}

static void short_convolution_backward(const ln_short_convolution *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t n = s->channels - c < W ? s->channels - c : W;
        for (int64_t t = 0; t < s->tokens; t++) {
            lanes d = load_some(s->y_gradient.at + t * s->y_gradient.stride + c, n);
            if (s->silu) {
                const lanes x = convolve(s, t, c, n), g = sigmoid_of(x);
                d = multiply(d, multiply(g, multiply_add(x, subtract(splat(1), g), splat(1))));
            }
            store_some(s->bias_gradient + c, add(load_some(s->bias_gradient + c, n), d), n);
            for (int64_t i = 0; i < s->taps; i++) {
                float *weight = s->weight_gradient + i * s->channels + c,
                      *row = s->rows_gradient + (t + i) * s->channels + c;
                store_some(weight, multiply_add(d, load_some(s->rows[t + i] + c, n), load_some(weight, n)), n);
                store_some(row, multiply_add(d, load_some(s->weight + i * s->channels + c, n), load_some(row, n)), n);
            }
        }
    }
}

LN_SCAN_SET {
    *kernels = (ln_scan_kernels){.name = LN_SCAN_NAME,
                                 .lanes = W,
                                 .exponential = exponential,
                                 .softplus = softplus,
                                 .sigmoid = sigmoid,
                                 .transpose = transpose,
                                 .scan = scan,
                                 .scan_backward = scan_backward,
                                 .selective = selective,
                                 .selective_backward = selective_backward,
                                 .short_convolution = short_convolution,
                                 .short_convolution_backward = short_convolution_backward};
}
