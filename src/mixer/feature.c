/* Owns: the feature maps of linear attention, phi(q) . phi(k) being the weight of a pair:
 *
 *     elu        elu(x) + 1                                        Katharopoulos et al. 2020
 *     relu       max(x, 0)                                         L2ViT (Zheng 2025)
 *     hedgehog   softmax over [x, -x]                              Zhang et al. 2024
 *     taylor     weight 1 + a + a^2 / 2, a = scale q . k           Based (Arora et al. 2024)
 *     square     weight a^2                                        ReBased (Aksenov et al. 2024)
 *     random     e^(w . x - |x|^2 / 2) / slots^1/2, x scaled       Performer (Choromanski et al. 2021)
 *     norm-aware |d|^p of the direction d, with cosine and sine    NaLaFormer (Meng et al. 2025)
 *
 * Products x_i x_j, i <= j, stand once, with a factor: half as many features as the square of x has, the same weight.
 * The core multiplies by scale, so the queries' features are divided by what is too much. */
#include "mixer/feature.h"

#include <math.h>
#include <string.h>

#include "base/random.h"

#define TINY 1e-30f

/* ---- elementwise ---- */

/* Sides are chosen after both are there: branches by the sign of x would be guessed wrong half of the time. */
void ln_elu(const ln_kernels *kernels, float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = x[i] < 0 ? x[i] : 0;
    kernels->vector.exponential(y, y, 0, n);
    for (int64_t i = 0; i < n; i++) y[i] += x[i] < 0 ? 0 : x[i];
}
void ln_elu_gradient(float *dx, const float *dy, const float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * (x[i] < 0 ? y[i] : 1);
}
void ln_sigmoid(const ln_kernels *kernels, float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = -x[i];
    kernels->vector.exponential(y, y, 0, n);
    for (int64_t i = 0; i < n; i++) y[i] = 1 / (1 + y[i]);
}

static void elu_map(const ln_feature_row *r) {
    ln_elu(r->kernels, r->phi, r->x, r->settings->key_size);
}
static void elu_gradient(const ln_feature_row *r) {
    ln_elu_gradient(r->x_gradient, r->phi_gradient, r->phi, r->x, r->settings->key_size);
}

static void relu_map(const ln_feature_row *r) {
    for (int64_t i = 0; i < r->settings->key_size; i++) r->phi[i] = r->x[i] < 0 ? 0 : r->x[i];
}
static void relu_gradient(const ln_feature_row *r) {
    for (int64_t i = 0; i < r->settings->key_size; i++)
        r->x_gradient[i] = r->phi_gradient[i] * (r->x[i] > 0 ? 1.0f : 0.0f);
}

/* ---- softmax over [x, -x] ---- */

int64_t ln_features_twice(const linnet_mixer_settings *s) {
    return 2 * s->key_size;
}

static void hedgehog_map(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    const ln_vector_kernels *vector = &r->kernels->vector;
    for (int64_t i = 0; i < n; i++) r->phi[n + i] = -r->x[i];
    const float most = fmaxf(vector->maximum(r->x, n), vector->maximum(r->phi + n, n));
    const float sum = vector->exponential(r->phi, r->x, most, n) + vector->exponential(r->phi + n, r->phi + n, most, n);
    vector->scale(r->phi, 1 / sum, 2 * n);
}
static void hedgehog_gradient(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    float mean = 0;
    for (int64_t i = 0; i < 2 * n; i++) mean += r->phi[i] * r->phi_gradient[i];
    for (int64_t i = 0; i < n; i++)
        r->x_gradient[i] = r->phi[i] * (r->phi_gradient[i] - mean) - r->phi[n + i] * (r->phi_gradient[n + i] - mean);
}

/* ---- polynomials: features factor[d] x^d, one factor for squares and one for products of two ---- */

int64_t ln_features_square(const linnet_mixer_settings *s) {
    return s->key_size * (s->key_size + 1) / 2;
}
int64_t ln_features_taylor(const linnet_mixer_settings *s) {
    return 1 + s->key_size + ln_features_square(s);
}

static void products(const float *x, int64_t n, float square, float product, float *phi) {
    for (int64_t i = 0; i < n; i++) {
        *phi++ = square * x[i] * x[i];
        for (int64_t j = i + 1; j < n; j++) *phi++ = product * x[i] * x[j];
    }
}
static void products_gradient(const float *x, int64_t n, float square, float product, const float *gradient,
                              float *x_gradient) {
    for (int64_t i = 0; i < n; i++) {
        float sum = 2 * square * x[i] * *gradient++;
        for (int64_t j = i + 1; j < n; j++) {
            sum += product * x[j] * *gradient;
            x_gradient[j] += product * x[i] * *gradient++;
        }
        x_gradient[i] += sum;
    }
}

static void taylor_map(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    const float scale = r->key ? 1 : r->settings->scale;
    r->phi[0] = r->key ? 1 : 1 / scale;
    memcpy(r->phi + 1, r->x, (size_t)n * sizeof *r->x);
    products(r->x, n, sqrtf(0.5f) * scale, scale, r->phi + 1 + n);
}
static void taylor_gradient(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    const float scale = r->key ? 1 : r->settings->scale;
    memcpy(r->x_gradient, r->phi_gradient + 1, (size_t)n * sizeof *r->x);
    products_gradient(r->x, n, sqrtf(0.5f) * scale, scale, r->phi_gradient + 1 + n, r->x_gradient);
}

static void square_map(const ln_feature_row *r) {
    const float scale = r->key ? 1 : r->settings->scale;
    products(r->x, r->settings->key_size, scale, sqrtf(2) * scale, r->phi);
}
static void square_gradient(const ln_feature_row *r) {
    const float scale = r->key ? 1 : r->settings->scale;
    memset(r->x_gradient, 0, (size_t)r->settings->key_size * sizeof *r->x_gradient);
    products_gradient(r->x, r->settings->key_size, scale, sqrtf(2) * scale, r->phi_gradient, r->x_gradient);
}

/* ---- positive random features ---- */

int64_t ln_features_slots(const linnet_mixer_settings *s) {
    return s->slots;
}

/* The exponents, by the query or key; constant factors join in the shift. */
static void random_map(const ln_feature_row *r) {
    const linnet_mixer_settings *s = r->settings;
    const float out = logf(sqrtf((float)s->slots) * (r->key ? 1 : s->scale));
    float square = 0;
    for (int64_t i = 0; i < s->key_size; i++) square += r->x[i] * r->x[i];
    r->kernels->tile.product_tb(r->phi, s->slots, r->x, s->key_size, r->parameter, s->key_size, 1, s->slots,
                                s->key_size, false);
    r->kernels->vector.scale(r->phi, sqrtf(s->scale), s->slots);
    r->kernels->vector.exponential(r->phi, r->phi, 0.5f * s->scale * square + out, s->slots);
}
static void random_gradient(const ln_feature_row *r) {
    const linnet_mixer_settings *s = r->settings;
    const float root = sqrtf(s->scale);
    float sum = 0;
    memset(r->x_gradient, 0, (size_t)s->key_size * sizeof *r->x_gradient);
    for (int64_t m = 0; m < s->slots; m++) {
        const float of = r->phi_gradient[m] * r->phi[m];
        const float *w = r->parameter + m * s->key_size;
        float *to = r->parameter_gradient ? r->parameter_gradient + m * s->key_size : NULL;
        sum += of;
        for (int64_t i = 0; i < s->key_size; i++) r->x_gradient[i] += of * root * w[i];
        for (int64_t i = 0; to && i < s->key_size; i++) to[i] += of * root * r->x[i];
    }
    for (int64_t i = 0; i < s->key_size; i++) r->x_gradient[i] -= sum * s->scale * r->x[i];
}

/* ---- norm-aware: d = x / |x|, angle = pi/4 (1 + d), phi = size [cos angle, sin angle], size = |d|^p of queries with
 * p = option[0] (1/2 + tanh |q|), |k|^option[0] of keys. Opposite directions are orthogonal, and a longer query has a
 * larger exponent: a sharper distribution. ---- */

static const float QUARTER = 0.785398163397448f;

static void norm_aware_map(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    const float power = (float)r->settings->option[0];
    float square = 0;
    for (int64_t i = 0; i < n; i++) square += r->x[i] * r->x[i];
    const float norm = sqrtf(square), p = r->key ? power : power * (0.5f + tanhf(norm));
    for (int64_t i = 0; i < n; i++) {
        const float d = r->x[i] / fmaxf(norm, TINY), size = powf(fabsf(r->key ? r->x[i] : d), p);
        r->phi[i] = size * cosf(QUARTER * (1 + d));
        r->phi[n + i] = size * sinf(QUARTER * (1 + d));
    }
}
static void norm_aware_gradient(const ln_feature_row *r) {
    const int64_t n = r->settings->key_size;
    const float power = (float)r->settings->option[0];
    float square = 0, along = 0, p_gradient = 0;
    for (int64_t i = 0; i < n; i++) square += r->x[i] * r->x[i];
    const float norm = fmaxf(sqrtf(square), TINY), bend = tanhf(norm), p = r->key ? power : power * (0.5f + bend);
    for (int64_t i = 0; i < n; i++) {
        const float d = r->x[i] / norm, base = fabsf(r->key ? r->x[i] : d), size = powf(base, p);
        const float c = cosf(QUARTER * (1 + d)), s = sinf(QUARTER * (1 + d));
        const float of_size = r->phi_gradient[i] * c + r->phi_gradient[n + i] * s;
        const float slope = base > 0 ? of_size * p * size / base : 0, of_base = r->x[i] < 0 ? -slope : slope;
        const float of_d =
            size * QUARTER * (r->phi_gradient[n + i] * c - r->phi_gradient[i] * s) + (r->key ? 0 : of_base);
        if (!r->key && base > 0) p_gradient += of_size * size * logf(base);
        along += of_d * d;
        r->x_gradient[i] = of_d / norm + (r->key ? of_base : 0);
    }
    const float of_norm = r->key ? 0 : p_gradient * power * (1 - bend * bend);
    for (int64_t i = 0; i < n; i++) r->x_gradient[i] += (of_norm - along / norm) * (r->x[i] / norm);
}

const ln_feature ln_feature_elu = {elu_map, elu_gradient}, ln_feature_relu = {relu_map, relu_gradient},
                 ln_feature_hedgehog = {hedgehog_map, hedgehog_gradient},
                 ln_feature_taylor = {taylor_map, taylor_gradient}, ln_feature_square = {square_map, square_gradient},
                 ln_feature_random = {random_map, random_gradient},
                 ln_feature_norm_aware = {norm_aware_map, norm_aware_gradient};

/* ---- projections ---- */

double ln_normal_quantile(double p) {
    static const double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                               1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
    static const double b[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
                               6.680131188771972e+01, -1.328068155288572e+01};
    static const double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                               -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
    static const double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                               3.754408661907416e+00};
    const double tail = fmin(p, 1 - p);
    double x;
    if (tail < 0.02425) {
        const double q = sqrt(-2 * log(tail));
        x = (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
            ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
        if (p > 0.5) x = -x;
    } else {
        const double q = p - 0.5, r = q * q;
        x = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
            (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
    }
    const double off = (0.5 * erfc(-x / sqrt(2.0)) - p) * sqrt(2 * 3.14159265358979323846) * exp(x * x / 2);
    return x - off / (1 + x * off / 2);
}

/* Gram and Schmidt among the rows of each block of key_size; lengths are those of the normal rows that they were. */
static void orthogonalise(float *w, int64_t slots, int64_t n) {
    for (int64_t m = 0; m < slots; m++) {
        float *row = w + m * n;
        double length = 0, rest = 0;
        for (int64_t i = 0; i < n; i++) length += (double)row[i] * (double)row[i];
        for (int pass = 0; pass < 2; pass++)
            for (int64_t other = m / n * n; other < m; other++) {
                const float *o = w + other * n;
                double dot = 0, square = 0;
                for (int64_t i = 0; i < n; i++) {
                    dot += (double)o[i] * (double)row[i];
                    square += (double)o[i] * (double)o[i];
                }
                for (int64_t i = 0; i < n; i++) row[i] -= (float)(dot / square * (double)o[i]);
            }
        for (int64_t i = 0; i < n; i++) rest += (double)row[i] * (double)row[i];
        for (int64_t i = 0; i < n; i++) row[i] *= (float)sqrt(length / rest);
    }
}

static int64_t prime_from(int64_t least) {
    for (int64_t p = least;; p++) {
        bool prime = true;
        for (int64_t d = 2; prime && d * d <= p; d++) prime = p % d != 0;
        if (prime) return p;
    }
}

/* Points (m z[i] / prime) of coordinates i are even in every coordinate for any z; jointly by construction component by
 * component: each z is that of some candidates which makes the worst-case error of the coordinates so far least,
 * sum over m of prod over i of (1 + weight B2(frac(m z[i] / prime))), B2 = x^2 - x + 1/6 (Sloan and Reztsov 2002).
 * product [prime]: of the coordinates before; it is multiplied by the factor of the new one. */
static int64_t next_generator(int64_t prime, double weight, double *product) {
    enum { CANDIDATES = 64 };
    const int64_t half = (prime - 1) / 2, stride = half < CANDIDATES ? 1 : half / CANDIDATES;
    int64_t best = 1;
    double least = INFINITY;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t z = pass ? best : 1; z <= (pass ? best : half); z += stride) {
            double sum = 0;
            for (int64_t m = 0; m < prime; m++) {
                const double x = (double)(m * z % prime) / (double)prime, factor = 1 + weight * (x * x - x + 1.0 / 6);
                sum += product[m] * factor;
                if (pass) product[m] *= factor;
            }
            if (!pass && sum < least) {
                least = sum;
                best = z;
            }
        }
    return best;
}

void ln_random_projection(int kind, uint64_t seed, int64_t slots, int64_t n, float *projection, double *room) {
    ln_random random;
    ln_random_seed(&random, seed);
    if (kind != LN_RANDOM_LATTICE) {
        for (int64_t i = 0; i < slots * n; i++) projection[i] = (float)ln_random_normal(&random);
        if (kind == LN_RANDOM_ORTHOGONAL) orthogonalise(projection, slots, n);
        return;
    }
    const int64_t prime = prime_from(slots < 5 ? 5 : slots);
    for (int64_t m = 0; m < prime; m++) room[m] = 1;
    for (int64_t i = 0; i < n; i++) {
        const double shift = ln_random_unit(&random);
        const int64_t z = next_generator(prime, 2 * 9.8696 / (double)n, room);
        for (int64_t m = 0; m < slots; m++) {
            double whole;
            const double u = modf((double)(m * z % prime) / (double)prime + shift, &whole);
            projection[m * n + i] = (float)ln_normal_quantile(fmin(fmax(u, 1e-12), 1 - 1e-12));
        }
    }
}
