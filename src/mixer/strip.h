/* Sixteen channels of a tensor as lanes. Channels are numbered through heads: channel c of head h is h * columns + c,
 * so that heads of a single channel fill lanes too. */
#ifndef LN_MIXER_STRIP_H
#define LN_MIXER_STRIP_H

#include <string.h>

#include "kernel/fft.h"
#include "linnet/types.h"
#include "number/format.h"

typedef struct ln_strip {
    void *data;     /* NULL: left out */
    int64_t stride; /* from row to row, in elements */
    int64_t offset[LN_FFT_LANES];
    int lanes;     /* that are channels; the others are 0 */
    bool together; /* all are, side by side */
    bool half;     /* bf16 */
} ln_strip;

/* Channels from `first` on, of `channels`, `columns` to a head. */
static inline ln_strip ln_strip_of(void *data, int64_t stride, int64_t head_stride, int64_t columns, int64_t first,
                                   int64_t channels, bool half) {
    ln_strip s = {.data = data, .stride = stride, .half = half};
    for (; s.lanes < LN_FFT_LANES && first + s.lanes < channels; s.lanes++)
        s.offset[s.lanes] = (first + s.lanes) / columns * head_stride + (first + s.lanes) % columns;
    s.together = s.lanes == LN_FFT_LANES;
    for (int i = 1; i < s.lanes; i++) s.together &= s.offset[i] == s.offset[0] + i;
    return s;
}

static inline void ln_strip_load(const ln_strip *s, int64_t row, float *out) {
    const int64_t at = row * s->stride;
    if (s->together && !s->half) {
        memcpy(out, (const float *)s->data + at + s->offset[0], LN_FFT_LANES * sizeof *out);
    } else if (s->together) {
        const uint16_t *from = (const uint16_t *)s->data + at + s->offset[0];
        for (int i = 0; i < LN_FFT_LANES; i++) out[i] = ln_bf16_float(from[i]);
    } else {
        for (int i = 0; i < s->lanes; i++)
            out[i] = s->half ? ln_bf16_float(((const uint16_t *)s->data)[at + s->offset[i]])
                             : ((const float *)s->data)[at + s->offset[i]];
        for (int i = s->lanes; i < LN_FFT_LANES; i++) out[i] = 0;
    }
}

static inline void ln_strip_store(const ln_strip *s, int64_t row, const float *in) {
    float *to = (float *)s->data + row * s->stride;
    if (s->together)
        memcpy(to + s->offset[0], in, LN_FFT_LANES * sizeof *in);
    else
        for (int i = 0; i < s->lanes; i++) to[s->offset[i]] = in[i];
}

static inline void ln_strip_add(const ln_strip *s, int64_t row, const float *in) {
    float *to = (float *)s->data + row * s->stride;
    if (s->together)
        for (int i = 0; i < LN_FFT_LANES; i++) to[s->offset[0] + i] += in[i];
    else
        for (int i = 0; i < s->lanes; i++) to[s->offset[i]] += in[i];
}

static inline void ln_strip_multiply(float *x, const float *y) {
    for (int i = 0; i < LN_FFT_LANES; i++) x[i] *= y[i];
}
static inline void ln_strip_zero(float *x) {
    memset(x, 0, LN_FFT_LANES * sizeof *x);
}

#endif
