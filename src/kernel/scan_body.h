/* The loops of scan.h over a vector type that the including file defines (W, lanes, load, store, load_some, store_some,
 * splat, add, subtract, multiply, multiply_add, divide, root, where_below, nearest, power (2^x for any x), fold_two,
 * fold_four, fold_rest).
 *
 * The sum over lanes of W vectors becomes one vector by folding pairs, pairs of pairs and so on: three instructions a
 * vector instead of a sum of each. */
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

/* e^x - 1: a series where 1 would swallow it. */
HELPER lanes change_of(lanes x) {
    lanes series = splat(1.0f / 40320);
    static const float inverse[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1};
    for (int k = 0; k < 7; k++) series = multiply_add(series, x, splat(inverse[k]));
    const lanes magnitude = where_below(x, splat(0), subtract(splat(0), x), x);
    return where_below(magnitude, splat(0.35f), multiply(x, series), subtract(exponential_of(x), splat(1)));
}

HELPER lanes complement_of(lanes x) {
    return root(subtract(splat(0), change_of(add(x, x))));
}

/* Sine and cosine of half the angle step frequency, reduced to -pi .. pi: their Taylor series reach pi / 2. */
typedef struct half_angle {
    lanes sine, cosine;
} half_angle;

HELPER half_angle half_angle_of(lanes step, lanes frequency) {
    const lanes turns = nearest(multiply(multiply(step, frequency), splat(0.159154943f)));
    lanes angle = multiply_add(step, frequency, multiply(turns, splat(-6.28125f))); /* 8 bits: an exact product */
    angle = multiply_add(turns, splat(-1.93530718e-3f), angle);
    const lanes x = multiply(angle, splat(0.5f)), q = multiply(x, x);
    static const float sine[] = {-1.0f / 39916800, 1.0f / 362880, -1.0f / 5040, 1.0f / 120, -1.0f / 6, 1},
                       cosine[] = {1.0f / 479001600, -1.0f / 3628800, 1.0f / 40320, -1.0f / 720, 1.0f / 24, -0.5f, 1};
    half_angle h = {splat(1.0f / 6227020800.0f), splat(-1.0f / 87178291200.0f)};
    for (int k = 0; k < 6; k++) h.sine = multiply_add(h.sine, q, splat(sine[k]));
    for (int k = 0; k < 7; k++) h.cosine = multiply_add(h.cosine, q, splat(cosine[k]));
    h.sine = multiply(h.sine, x);
    return h;
}

typedef struct complex_lanes {
    lanes real, imaginary;
} complex_lanes;

/* cos a - 1 = -2 sin^2 (a / 2), sin a = 2 sin (a / 2) cos (a / 2): small changes keep their digits. */
HELPER complex_lanes complex_change_of(lanes step, lanes rate, lanes frequency) {
    const lanes change = change_of(multiply(step, rate));
    const half_angle h = half_angle_of(step, frequency);
    const lanes less = multiply(multiply(h.sine, h.sine), splat(-2)),
                sine = multiply(multiply(h.sine, h.cosine), splat(2));
    return (complex_lanes){multiply_add(change, less, add(change, less)), multiply_add(change, sine, sine)};
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
MAP(complement, complement_of)

static void change(float *real, float *imaginary, const float *step, const float *rate, const float *frequency,
                   int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
        const int64_t some = n - i < W ? n - i : W;
        const complex_lanes e =
            complex_change_of(load_some(step + i, some), load_some(rate + i, some), load_some(frequency + i, some));
        store_some(real + i, e.real, some);
        store_some(imaginary + i, e.imaginary, some);
    }
}

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
    __asm__("" : "+m"(*of)); /* else compilers put shuffles in the place of loads that spread a float */
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
#define READ(j)                                                                         \
    (h[j] = multiply_add(power_of_product(splat(of.step[j]), load(rate + (j)*W)), h[j], \
                         multiply(splat(of.write[j]), write)),                          \
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

/* A step of a channel moves its states h; the sum over lanes of what it returns is the output. */
HELPER lanes selective_step(const ln_selective *s, int64_t t, int64_t c, float step, float write, const float *h,
                            float *to) {
    const float *rate = s->rate + c * s->states, *b = s->write.at + t * s->write.stride,
                *r = s->read.at + t * s->read.stride;
    lanes sum = splat(0);
    for (int64_t n = 0; n < s->states; n += W) {
        const lanes a = power_of_product(splat(step), load(rate + n));
        const lanes next = multiply_add(a, load(h + n), multiply(splat(write), load(b + n)));
        store(to + n, next);
        sum = multiply_add(next, load(r + n), sum);
    }
    return sum;
}

/* e^(step (rate + i frequency)) of n states of a channel. `scaled`: step log2 e. */
HELPER complex_lanes complex_decay(const ln_selective *s, int64_t c, int64_t n, float step, float scaled) {
    const lanes size = power_of_product(splat(scaled), load(s->rate + c * s->states + n));
    const half_angle h = half_angle_of(splat(step), load(s->frequency + c * s->states + n));
    const lanes twice = multiply(h.sine, splat(2));
    return (complex_lanes){multiply(size, multiply_add(multiply(twice, splat(-1)), h.sine, splat(1))),
                           multiply(size, multiply(twice, h.cosine))};
}

HELPER lanes complex_step(const ln_selective *s, int64_t t, int64_t c, float scaled, float write, const float *h,
                          float *to) {
    const float *b = s->write.at + t * s->write.stride, *r = s->read.at + t * s->read.stride,
                step = s->step.at[t * s->step.stride + c];
    const int64_t states = s->states;
    lanes sum = splat(0);
    for (int64_t n = 0; n < states; n += W) {
        const complex_lanes a = complex_decay(s, c, n, step, scaled);
        const lanes real = load(h + n), imaginary = load(h + states + n);
        const lanes next =
            multiply_add(a.real, real, subtract(multiply(splat(write), load(b + n)), multiply(a.imaginary, imaginary)));
        const lanes turned = multiply_add(
            a.real, imaginary, multiply_add(a.imaginary, real, multiply(splat(write), load(b + states + n))));
        store(to + n, next);
        store(to + states + n, turned);
        sum = add(sum, subtract(multiply(next, load(r + n)), multiply(turned, load(r + states + n))));
    }
    return add(sum, sum);
}

HELPER int64_t selective_parts(const ln_selective *s) {
    return s->frequency ? 2 * s->states : s->states;
}

HELPER lanes any_step(const ln_selective *s, int64_t t, int64_t c, float scaled, float write, const float *h,
                      float *to) {
    return s->frequency ? complex_step(s, t, c, scaled, write, h, to) : selective_step(s, t, c, scaled, write, h, to);
}

static void selective_wide(const ln_selective *s, int64_t c, int64_t count) {
    for (int64_t t = 0; t < s->tokens; t++) {
        strength of;
        lanes sums[W];
        strengths(s, t, c, count, &of);
        for (int j = 0; j < W; j++) {
            float *h = s->state + (c + j) * selective_parts(s);
            sums[j] = j < count ? any_step(s, t, c + j, of.step[j], of.write[j], h, h) : splat(0);
        }
        selective_output(s, t, c, count, sum_of_each(sums));
    }
}

static void selective(const ln_selective *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t count = s->channels - c < W ? s->channels - c : W;
        if (count == W && s->states == W && !s->frequency)
            selective_narrow(s, c);
        else
            selective_wide(s, c, count);
    }
}

/* ---- backward ---- */

/* What the gradients of the step and the value of W channels at a token add up from, in lanes: sum_n of rate (and
 * frequency) times the gradient of the exponent, and sum_n write D, D the gradient of the state after the token. */
typedef struct owed {
    lanes rates[W], writes[W];
} owed;

HELPER void add_to(float *y, lanes a, lanes b) {
    store(y, multiply_add(a, b, load(y)));
}

HELPER void selective_token_backward(const ln_selective *s, int64_t t, int64_t c, int64_t count, const strength *of,
                                     owed *o) {
    const int64_t states = s->states;
    const float *before = s->history + t * W * states, *after = before + W * states;
    const float *y_gradient = s->y_gradient.at + t * s->y_gradient.stride + c,
                *step = s->step.at + t * s->step.stride + c;
    for (int64_t n = 0; n < states; n += W) {
        const lanes b = load(s->write.at + t * s->write.stride + n), r = load(s->read.at + t * s->read.stride + n);
        float *b_gradient = s->write_gradient.at + t * s->write_gradient.stride + n,
              *r_gradient = s->read_gradient.at + t * s->read_gradient.stride + n;
        lanes b_sum = load(b_gradient), r_sum = load(r_gradient);
        for (int j = 0; j < count; j++) {
            const int64_t own = (c + j) * states + n;
            const lanes y = splat(y_gradient[j]), rate = load(s->rate + own);
            const lanes a = power_of_product(splat(of->step[j]), rate);
            const lanes full = multiply_add(y, r, load(s->state_gradient + own)), left = multiply(full, a);
            const lanes exponent = multiply(left, load(before + j * states + n));
            r_sum = multiply_add(y, load(after + j * states + n), r_sum);
            b_sum = multiply_add(full, splat(of->write[j]), b_sum);
            add_to(s->rate_gradient + own, splat(step[j]), exponent);
            o->rates[j] = multiply_add(exponent, rate, o->rates[j]);
            o->writes[j] = multiply_add(full, b, o->writes[j]);
            store(s->state_gradient + own, left);
        }
        store(b_gradient, b_sum);
        store(r_gradient, r_sum);
    }
}

HELPER void complex_step_backward(const ln_selective *s, int64_t t, int64_t c, const strength *of, int j, owed *o) {
    const int64_t states = s->states, own = (c + j) * states;
    const float *b = s->write.at + t * s->write.stride, *r = s->read.at + t * s->read.stride,
                *before = s->history + (t * W + j) * 2 * states, *after = before + W * 2 * states,
                step = s->step.at[t * s->step.stride + c + j];
    float *d = s->state_gradient + 2 * own, *b_gradient = s->write_gradient.at + t * s->write_gradient.stride,
          *r_gradient = s->read_gradient.at + t * s->read_gradient.stride;
    const lanes y = splat(2 * s->y_gradient.at[t * s->y_gradient.stride + c + j]), minus = subtract(splat(0), y),
                write = splat(of->write[j]);
    for (int64_t n = 0, m = states; n < states; n += W, m += W) {
        const complex_lanes a = complex_decay(s, c + j, n, step, of->step[j]);
        const lanes dr = multiply_add(y, load(r + n), load(d + n)), di = multiply_add(minus, load(r + m), load(d + m));
        /* D times the conjugate of a: the gradient of the state before. Times that state: of the exponent. */
        const lanes lr = multiply_add(a.real, dr, multiply(a.imaginary, di)),
                    li = subtract(multiply(a.real, di), multiply(a.imaginary, dr));
        const lanes pr = load(before + n), pi = load(before + m);
        const lanes er = multiply_add(lr, pr, multiply(li, pi)), ei = subtract(multiply(li, pr), multiply(lr, pi));
        add_to(r_gradient + n, y, load(after + n));
        add_to(r_gradient + m, minus, load(after + m));
        add_to(b_gradient + n, dr, write);
        add_to(b_gradient + m, di, write);
        add_to(s->rate_gradient + own + n, splat(step), er);
        add_to(s->frequency_gradient + own + n, splat(step), ei);
        o->rates[j] =
            multiply_add(er, load(s->rate + own + n), multiply_add(ei, load(s->frequency + own + n), o->rates[j]));
        o->writes[j] = multiply_add(dr, load(b + n), multiply_add(di, load(b + m), o->writes[j]));
        store(d + n, lr);
        store(d + m, li);
    }
}

static void selective_history(const ln_selective *s, int64_t c, int64_t count) {
    const int64_t parts = selective_parts(s), row = W * parts;
    for (int64_t i = 0; i < count * parts; i += W) store(s->history + i, load(s->state + c * parts + i));
    for (int64_t t = 0; t < s->tokens; t++) {
        strength of;
        float *h = s->history + t * row;
        strengths(s, t, c, count, &of);
        for (int j = 0; j < count; j++)
            any_step(s, t, c + j, of.step[j], of.write[j], h + j * parts, h + row + j * parts);
    }
}

static void selective_backward(const ln_selective *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t count = s->channels - c < W ? s->channels - c : W;
        selective_history(s, c, count);
        for (int64_t t = s->tokens - 1; t >= 0; t--) {
            strength of;
            owed o;
            strengths(s, t, c, count, &of);
            for (int j = 0; j < W; j++) o.rates[j] = o.writes[j] = splat(0);
            if (!s->frequency) selective_token_backward(s, t, c, count, &of, &o);
            for (int j = 0; s->frequency && j < count; j++) complex_step_backward(s, t, c, &of, j, &o);
            const lanes step = load_some(s->step.at + t * s->step.stride + c, count),
                        value = load_some(s->value.at + t * s->value.stride + c, count),
                        y = load_some(s->y_gradient.at + t * s->y_gradient.stride + c, count);
            const lanes written = sum_of_each(o.writes);
            lanes value_gradient = multiply(step, written);
            if (s->skip) value_gradient = multiply_add(load_some(s->skip + c, count), y, value_gradient);
            store_some(s->value_gradient.at + t * s->value_gradient.stride + c, value_gradient, count);
            store_some(s->step_gradient.at + t * s->step_gradient.stride + c,
                       multiply_add(value, written, sum_of_each(o.rates)), count);
            store_some(s->skip_gradient + c, multiply_add(y, value, load_some(s->skip_gradient + c, count)), count);
        }
    }
}

/* ---- several states a channel, the same in every step ---- */

HELPER lanes diagonal_step(const ln_diagonal *s, int64_t c, float value, float *h) {
    const int64_t states = s->states;
    const float *e = s->change + c * 2 * states, *r = s->read + c * 2 * states;
    const lanes u = splat(value);
    lanes sum = splat(0);
    for (int64_t n = 0, m = states; n < states; n += W, m += W) {
        const lanes real = load(h + n), imaginary = load(h + m), er = load(e + n), ei = load(e + m);
        const lanes next = add(real, subtract(multiply_add(er, real, u), multiply(ei, imaginary)));
        const lanes turned = add(imaginary, multiply_add(er, imaginary, multiply(ei, real)));
        store(h + n, next);
        store(h + m, turned);
        sum = add(sum, subtract(multiply(next, load(r + n)), multiply(turned, load(r + m))));
    }
    return sum;
}

static void diagonal(const ln_diagonal *s) {
    for (int64_t c = 0; c < s->channels; c += W) {
        const int64_t count = s->channels - c < W ? s->channels - c : W;
        for (int64_t t = 0; t < s->tokens; t++) {
            const float *value = s->value.at + t * s->value.stride + c;
            lanes sums[W];
            for (int j = 0; j < W; j++)
                sums[j] = j < count ? diagonal_step(s, c + j, value[j], s->state + (c + j) * 2 * s->states) : splat(0);
            lanes sum = sum_of_each(sums);
            if (s->skip) sum = multiply_add(load_some(s->skip + c, count), load_some(value, count), sum);
            store_some(s->y.at + t * s->y.stride + c, sum, count);
        }
    }
}

/* Returns what sums up to the gradient of the value. */
HELPER lanes diagonal_step_backward(const ln_diagonal *s, int64_t t, int64_t c) {
    const int64_t states = s->states, own = c * 2 * states;
    const float *e = s->change + own, *r = s->read + own, *before = s->history + t * 2 * states,
                *after = before + 2 * states;
    float *d = s->state_gradient + own, *e_gradient = s->change_gradient + own, *r_gradient = s->read_gradient + own;
    const lanes y = splat(s->y_gradient.at[t * s->y_gradient.stride + c]), minus = subtract(splat(0), y);
    lanes sum = splat(0);
    for (int64_t n = 0, m = states; n < states; n += W, m += W) {
        const lanes dr = multiply_add(y, load(r + n), load(d + n)), di = multiply_add(minus, load(r + m), load(d + m));
        const lanes pr = load(before + n), pi = load(before + m), er = load(e + n), ei = load(e + m);
        add_to(r_gradient + n, y, load(after + n));
        add_to(r_gradient + m, minus, load(after + m));
        store(e_gradient + n, add(load(e_gradient + n), multiply_add(dr, pr, multiply(di, pi))));
        store(e_gradient + m, add(load(e_gradient + m), subtract(multiply(di, pr), multiply(dr, pi))));
        sum = add(sum, dr);
        store(d + n, add(dr, multiply_add(er, dr, multiply(ei, di))));
        store(d + m, add(di, subtract(multiply(er, di), multiply(ei, dr))));
    }
    return sum;
}

static void diagonal_backward(const ln_diagonal *s) {
    for (int64_t c = 0; c < s->channels; c++) {
        const int64_t row = 2 * s->states;
        for (int64_t i = 0; i < row; i += W) store(s->history + i, load(s->state + c * row + i));
        for (int64_t t = 0; t < s->tokens; t++) {
            float *h = s->history + (t + 1) * row;
            for (int64_t i = 0; i < row; i += W) store(h + i, load(h - row + i));
            diagonal_step(s, c, s->value.at[t * s->value.stride + c], h);
        }
        for (int64_t t = s->tokens - 1; t >= 0; t--) {
            lanes sums[W];
            for (int j = 1; j < W; j++) sums[j] = splat(0);
            sums[0] = diagonal_step_backward(s, t, c);
            float first[W];
            store(first, sum_of_each(sums));
            const float y = s->y_gradient.at[t * s->y_gradient.stride + c];
            s->value_gradient.at[t * s->value_gradient.stride + c] = first[0] + (s->skip ? s->skip[c] * y : 0);
            s->skip_gradient[c] += y * s->value.at[t * s->value.stride + c];
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
                                 .complement = complement,
                                 .change = change,
                                 .transpose = transpose,
                                 .scan = scan,
                                 .scan_backward = scan_backward,
                                 .selective = selective,
                                 .selective_backward = selective_backward,
                                 .diagonal = diagonal,
                                 .diagonal_backward = diagonal_backward,
                                 .short_convolution = short_convolution,
                                 .short_convolution_backward = short_convolution_backward};
}
