/* Convolutions of any length by transforms (kernel/fft.h) that fit the cache: 2^L points go through columns of the
 * first levels, copied together, and rows of the others. Up to 2^12 points there is one column, and a task of a loop
 * over channels does it alone; above, all threads share one transform.
 *
 * A signal has 2M reals per channel; it lies nowhere, but is read at positions by a source, and what comes back is
 * given to a sink. Positions of different points are read and written by different tasks. */
#ifndef LN_MIXER_WAVE_H
#define LN_MIXER_WAVE_H

#include "mixer/mixer.h"

/* `count` rows of 16 reals, `gap` floats apart, of positions from `first` on. */
typedef void (*ln_wave_source)(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap);
typedef void (*ln_wave_sink)(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap);

typedef struct ln_wave {
    const ln_fft_kernels *kernels;
    ln_team *team; /* NULL: whoever calls does all */
    ln_fft fft;
    int levels, column_levels;
    int64_t points;
    int64_t together; /* columns a task takes */
    float *columns;   /* [workers][together] of 2^column_levels points; unused with one column */
} ln_wave;

enum { LN_WAVE_ALONE = 12 }; /* levels up to which there is one column */

/* Levels that make a convolution of so many tokens with so many taps cheapest, where every block of 2M positions begins
 * with taps - 1 that came before; and about what it costs, in cycles for 16 channels. */
int ln_wave_levels(int64_t tokens, int64_t taps, double *cycles);

/* Lays out the roots and columns; fill false: the roots were written before. */
void ln_wave_open(ln_wave *wave, ln_carver *carver, const ln_kernels *kernels, ln_team *team, int threads, int levels,
                  bool fill);

/* x: [points] points. low, high: signals of the positions below M and from M on, NULL: zeros there. */
void ln_wave_down_columns(const ln_wave *wave, float *x, ln_wave_source source, const void *argument, bool high);
/* Work on rows between columns: `points` points from point `first` of every array, which are the nodes `node` of
 * `level`. */
typedef void (*ln_wave_rows)(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level,
                             int64_t node);
void ln_wave_each_row(const ln_wave *wave, ln_wave_rows work, void *argument);
void ln_wave_up_columns(const ln_wave *wave, float *x, ln_wave_sink sink, const void *argument);

/* The rest of a transform within ln_wave_rows. */
static inline void ln_wave_down_row(const ln_wave *wave, float *x, int64_t first, int level, int64_t node) {
    wave->kernels->down(&wave->fft, x + first * LN_FFT_POINT, level, node, wave->levels - level);
}
static inline void ln_wave_up_row(const ln_wave *wave, float *x, int64_t first, int level, int64_t node) {
    wave->kernels->up(&wave->fft, x + first * LN_FFT_POINT, level, node, wave->levels - level);
}

#endif
