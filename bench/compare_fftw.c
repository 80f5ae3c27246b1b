/* Long convolutions of Linnet beside the same ones through FFTW, in turn, on one thread:
 *
 *     cc -O3 -march=native -Iinclude bench/compare_fftw.c build/release/liblinnet.a -lfftw3f -lpcre2-8 -ljansson -lm \
 *        -lpthread -o compare_fftw && ./compare_fftw [channels]
 *
 * FFTW: real transforms of twice the length, plans measured, the filter's transform made before, channel by channel;
 * once with the channel lying together already, once with fetching it from [token, channel] and putting it back, which
 * is what Linnet does. The fastest of many turns of each. */
#include <fftw3.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "linnet/linnet.h"

enum { TURNS_LEAST = 5, TURNS_MOST = 200 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct peer {
    int64_t tokens;
    float *x;
    fftwf_complex *spectrum, *filter;
    fftwf_plan there, back;
} peer;

static void peer_open(peer *p, int64_t tokens) {
    *p = (peer){.tokens = tokens};
    p->x = fftwf_malloc((size_t)(2 * tokens) * sizeof *p->x);
    p->spectrum = fftwf_malloc((size_t)(tokens + 1) * sizeof *p->spectrum);
    p->filter = fftwf_malloc((size_t)(tokens + 1) * sizeof *p->filter);
    p->there = fftwf_plan_dft_r2c_1d((int)(2 * tokens), p->x, p->spectrum, FFTW_MEASURE);
    p->back = fftwf_plan_dft_c2r_1d((int)(2 * tokens), p->spectrum, p->x, FFTW_MEASURE);
}

static void peer_fetch(peer *p, const float *from, int64_t stride, float factor) {
    for (int64_t t = 0; t < p->tokens; t++) p->x[t] = from[t * stride] * factor;
}

static void peer_run(peer *p) {
    memset(p->x + p->tokens, 0, (size_t)p->tokens * sizeof *p->x);
    fftwf_execute(p->there);
    for (int64_t i = 0; i <= p->tokens; i++) {
        const float a = p->spectrum[i][0], b = p->spectrum[i][1], c = p->filter[i][0], d = p->filter[i][1];
        p->spectrum[i][0] = a * c - b * d;
        p->spectrum[i][1] = a * d + b * c;
    }
    fftwf_execute(p->back);
}

static void compare(linnet_context *context, int64_t tokens, int64_t channels) {
    linnet_mixer_settings s = linnet_mixer_settings_default("long_convolution");
    s.key_size = s.value_size = channels;
    s.slots = s.tokens = tokens;
    s.option[0] = 1;
    const size_t count = (size_t)(tokens * channels);
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD));
    float *value = malloc(count * sizeof *value), *filter = malloc(count * sizeof *filter),
          *y = calloc(count, sizeof *y), *other = calloc(count, sizeof *other);
    peer p;
    if (!workspace || !value || !filter || !y || !other) exit(2);
    for (size_t i = 0; i < count; i++) {
        value[i] = (float)(i * 2654435761u % 1000) * 0.001f - 0.5f;
        filter[i] = (float)(i * 40503u % 997) * 0.001f - 0.5f;
    }
    peer_open(&p, tokens);
    linnet_mixer_tensors t = {.size = sizeof t};
    t.input[0].data = value;
    t.input[1].data = filter;
    t.output.data = y;
    double best[5] = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY}, error = 0, size = 0;
    const double begin = seconds();
    for (int turn = 0; turn < TURNS_LEAST || (turn < TURNS_MOST && seconds() - begin < 5); turn++) {
        double times[5];
        for (int form = 1; form <= 2; form++) {
            s.option[0] = form;
            const double start = seconds();
            if (linnet_mixer_forward(context, &s, &t, workspace) != LINNET_OK) {
                fprintf(stderr, "%s\n", linnet_last_error(context));
                exit(1);
            }
            times[form] = (seconds() - start) / (double)channels;
        }
        const int64_t channel = turn % channels;
        peer_fetch(&p, filter + channel, channels, 1 / (float)(2 * tokens));
        memset(p.x + tokens, 0, (size_t)tokens * sizeof *p.x);
        fftwf_execute(p.there);
        memcpy(p.filter, p.spectrum, (size_t)(tokens + 1) * sizeof *p.filter);
        const double start = seconds();
        peer_fetch(&p, value + channel, channels, 1);
        const double fetched = seconds();
        peer_run(&p);
        const double ran = seconds();
        for (int64_t i = 0; i < tokens; i++) other[i * channels + channel] = p.x[i];
        times[3] = ran - fetched;
        times[4] = seconds() - start;
        for (int64_t i = 0; i < tokens; i++) {
            const double a = (double)y[i * channels + channel], b = (double)p.x[i];
            error += (a - b) * (a - b);
            size += b * b;
        }
        for (int i = 1; i < 5; i++) best[i] = fmin(best[i], times[i]);
    }
    const double a = best[2], b = best[1], c = best[3], d = best[4];
    printf("%8lld tokens, us a channel: linnet %8.1f, with the filter's transform %8.1f; fftw %8.1f, from and to rows "
           "%8.1f: %.1f and %.1f times; difference %.1e\n",
           (long long)tokens, a * 1e6, b * 1e6, c * 1e6, d * 1e6, c / a, d / a, sqrt(error / size));
    fftwf_destroy_plan(p.there);
    fftwf_destroy_plan(p.back);
    fftwf_free(p.x);
    fftwf_free(p.spectrum);
    fftwf_free(p.filter);
    free(workspace);
    free(value);
    free(filter);
    free(y);
    free(other);
}

int main(int count, char **words) {
    const int64_t channels = count > 1 ? atoll(words[1]) : 16;
    linnet_context_settings settings = linnet_context_settings_default();
    linnet_context *context;
    settings.threads = 1;
    if (linnet_context_open(&settings, &context) != LINNET_OK) return 2;
    for (int64_t tokens = 1 << 12; tokens <= 1 << 20; tokens *= 16) compare(context, tokens, channels);
    linnet_context_close(context);
    return 0;
}
