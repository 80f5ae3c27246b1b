/* Owns: long convolutions over sequences of any length, forward, by steps and backward.
 *
 * Overlap and save: a block of 2M positions holds `history` = taps - 1 inputs that came before and 2M - history new
 * ones. In the product of its transform with the filter's, modulo x^2M + 1, only the first `history` positions mix
 * with what wrapped around, and these are not wanted. M is the cheapest of all; where a sum of taps products is cheaper
 * still, it is taken instead.
 *
 * Backward: with e = output_gate * output_gradient at a block's new positions and zeros before,
 *     dv[s] = sum_j filter[j] e[s + j]    filter's transform conjugated; nothing wraps, as e begins with zeros
 *     dfilter[j] = sum_t e[t] v[t - j]    products E conj(V), added up over all blocks and taken back once
 *
 * Frequency-sparse (not causal): one block a sequence, of 2M >= 2 slots positions, whose spectrum keeps only the first
 * nodes of COMBS: of the frequencies that agree in their last bits, some combs. Rows of the others are not computed
 * where there are columns, else multiplied by zero.
 *
 * Invariant: a position of a block is written by one task, and a group of 16 channels touches no other's. */
#include "mixer/convolution.h"

#include <math.h>

#include "mixer/strip.h"
#include "mixer/wave.h"

enum { LANES = LN_FFT_LANES, POINT = LN_FFT_POINT, TILE = 256 };
enum { COMB_LEVELS = 6, COMBS = 1 << COMB_LEVELS };

/* ---- which way ---- */

typedef struct way {
    bool direct, sparse;
    int levels;
    int64_t taps, history; /* inputs of before that a block begins with */
} way;

static way choose_sparse(const linnet_mixer_settings *s) {
    way w = {.sparse = true, .taps = s->slots};
    while (((int64_t)1 << w.levels) < s->slots) w.levels++;
    return w;
}

static way choose(const linnet_mixer_settings *s, bool state, bool backward) {
    const int64_t tokens = ln_mixer_longest(s);
    const bool keep = s->option[LN_CONVOLUTION_KEEP] > 0;
    way w = {.taps = state || keep || s->slots < tokens ? s->slots : tokens};
    if (w.taps < 1) w.taps = 1;
    w.history = w.taps - 1;
    double least;
    w.levels = ln_wave_levels(tokens, w.taps, &least);
    w.direct = !backward && !keep && (double)tokens * (0.7 * (double)w.taps + 20) + 30 * (double)w.taps < least;
    return w;
}

/* ---- where things lie ---- */

typedef struct room { /* for one group at a time */
    float *spectrum, *x, *e, *sum;
} room;

typedef struct convolution {
    const ln_mixer_call *call;
    const linnet_mixer_settings *s;
    way way;
    ln_wave wave;
    bool alone; /* a task does a whole group */
    int64_t channels, groups;
    int rooms;
    float *spectra; /* of all groups, where they are kept */
    float *first;   /* what the first room begins with */
    int64_t room_floats;
} convolution;

static int64_t direct_floats(const way *w, int64_t tokens) {
    return (w->taps + ln_min_i64(tokens, TILE)) * LANES + w->taps * LANES + TILE * LANES;
}

static void lay_out(convolution *c, ln_carver *carver, const ln_kernels *kernels, ln_team *team, int threads,
                    linnet_mixer_form form) {
    const bool keep = c->s->option[LN_CONVOLUTION_KEEP] > 0, backward = form == LINNET_MIXER_BACKWARD;
    c->channels = c->s->heads * c->s->value_size;
    c->groups = (c->channels + LANES - 1) / LANES;
    if (c->way.direct) {
        c->room_floats = direct_floats(&c->way, ln_mixer_longest(c->s));
        c->rooms = threads;
    } else {
        c->alone = c->way.levels <= LN_WAVE_ALONE;
        ln_wave_open(&c->wave, carver, kernels, c->alone ? NULL : team, threads, c->way.levels,
                     c->s->option[LN_CONVOLUTION_KEEP] < 2);
        c->rooms = c->alone ? threads : 1;
        c->room_floats = c->wave.points * POINT * ((keep ? 0 : 1) + (backward ? 3 : 1));
    }
    if (keep) c->spectra = ln_carve(carver, (uint64_t)c->groups * (uint64_t)c->wave.points, POINT * sizeof(float));
    c->first = ln_carve(carver, (uint64_t)c->rooms * (uint64_t)c->room_floats, sizeof(float));
}

uint64_t ln_convolution_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                  const linnet_mixer_settings *settings, linnet_mixer_form form) {
    if (form == LINNET_MIXER_STEP) return 0;
    uint64_t most = 0;
    for (int state = 0; state < 2; state++) {
        convolution c = {.s = settings,
                         .way = mixer->not_causal ? choose_sparse(settings)
                                                  : choose(settings, state, form == LINNET_MIXER_BACKWARD)};
        ln_carver carver = {0};
        lay_out(&c, &carver, kernels, NULL, threads, form);
        if (carver.overflow) return UINT64_MAX;
        if (carver.used > most) most = carver.used;
    }
    return most;
}

static convolution open_call(const ln_mixer_call *call, linnet_mixer_form form) {
    const linnet_mixer_tensors *t = call->tensors;
    convolution c = {.call = call, .s = call->settings};
    if (call->mixer->not_causal)
        c.way = choose_sparse(c.s);
    else
        c.way =
            choose(c.s, t->state_in || t->state_out_gradient || t->state_in_gradient, form == LINNET_MIXER_BACKWARD);
    ln_carver carver = {.base = call->workspace};
    lay_out(&c, &carver, call->kernels, call->team, ln_team_size(call->team), form);
    return c;
}

static room room_of(const convolution *c, int worker, int64_t group) {
    const int64_t points = c->wave.points * POINT;
    float *at = c->first + (c->alone ? worker : 0) * c->room_floats;
    room r = {.spectrum = c->spectra ? c->spectra + group * points : at};
    r.x = c->spectra ? at : at + points;
    r.e = r.x + points;
    r.sum = r.e + points;
    return r;
}

/* ---- sixteen channels of a sequence ---- */

typedef struct strips {
    const convolution *c;
    int64_t first, count; /* tokens */
    int64_t origin;       /* the step of the first new position */
    ln_strip input[5], gradient[5], output, output_gradient;
    ln_strip state_in, state_out, state_out_gradient, state_in_gradient;
} strips;

static ln_strip tensor_strip(const convolution *c, const linnet_tensor *t, int64_t stride, int64_t group, bool half) {
    return ln_strip_of(t->data, stride, t->head_stride, c->s->value_size, group * LANES, c->channels, half);
}

static ln_strip state_strip(const convolution *c, const float *state, int64_t group) {
    return ln_strip_of((void *)(uintptr_t)state, c->s->value_size, c->s->slots * c->s->value_size, c->s->value_size,
                       group * LANES, c->channels, false);
}

static strips open_strips(const convolution *c, int64_t group) {
    const linnet_mixer_tensors *t = c->call->tensors;
    strips p = {.c = c};
    for (int k = 0; k < 5; k++) {
        const unsigned flags = c->call->mixer->inputs[k].flags;
        const bool half = flags & LN_TYPED && c->s->type == LINNET_BF16, parameter = flags & LN_PARAMETER;
        p.input[k] =
            tensor_strip(c, &t->input[k], parameter ? c->s->value_size : t->input[k].token_stride, group, half);
        p.gradient[k] = tensor_strip(c, &t->input_gradient[k],
                                     parameter ? c->s->value_size : t->input_gradient[k].token_stride, group, false);
    }
    p.output = tensor_strip(c, &t->output, t->output.token_stride, group, false);
    p.output_gradient = tensor_strip(c, &t->output_gradient, t->output_gradient.token_stride, group, false);
    return p;
}

/* false: the sequence has no token. */
static bool open_sequence(strips *p, int64_t group, int64_t sequence) {
    const convolution *c = p->c;
    ln_mixer_span(c->s, sequence, &p->first, &p->count);
    p->origin = 0;
    p->state_in = state_strip(c, ln_mixer_state_in(c->call, sequence, 0), group);
    p->state_out = state_strip(c, ln_mixer_state_out(c->call, sequence, 0), group);
    p->state_out_gradient = state_strip(c, ln_mixer_state_out_gradient(c->call, sequence, 0), group);
    p->state_in_gradient = state_strip(c, ln_mixer_state_in_gradient(c->call, sequence, 0), group);
    return p->count > 0;
}

static int64_t token_of(const strips *p, int64_t step) {
    return p->c->s->reverse ? p->first + p->count - 1 - step : p->first + step;
}

/* x *= the gate at a token, where there is one */
static void pass_gate(const strips *p, int gate, int64_t token, float *x) {
    float g[LANES];
    if (!p->input[gate].data) return;
    ln_strip_load(&p->input[gate], token, g);
    ln_strip_multiply(x, g);
}

static void signal_at(const strips *p, int64_t step, float *v) {
    if (step >= 0 && step < p->count) {
        ln_strip_load(&p->input[LN_CONVOLUTION_VALUE], token_of(p, step), v);
        pass_gate(p, LN_CONVOLUTION_IN, token_of(p, step), v);
    } else if (step < 0 && p->state_in.data && step >= -p->c->s->slots) {
        ln_strip_load(&p->state_in, p->c->s->slots + step, v);
    } else {
        ln_strip_zero(v);
    }
}

static void error_at(const strips *p, int64_t step, float *e) {
    ln_strip_load(&p->output_gradient, token_of(p, step), e);
    pass_gate(p, LN_CONVOLUTION_OUT, token_of(p, step), e);
}

/* ---- the filter as it acts: smoothed over 2w + 1 taps, then what is small taken away (Fu et al. 2023) ---- */

static void smoothed_at(const strips *p, int64_t tap, float *f) {
    const int64_t width = (int64_t)p->c->s->option[LN_CONVOLUTION_SMOOTH], slots = p->c->s->slots;
    if (width == 0) {
        ln_strip_load(&p->input[LN_CONVOLUTION_FILTER], tap, f);
        return;
    }
    float other[LANES];
    ln_strip_zero(f);
    for (int64_t j = ln_max_i64(tap - width, 0); j <= tap + width && j < slots; j++) {
        ln_strip_load(&p->input[LN_CONVOLUTION_FILTER], j, other);
        for (int i = 0; i < LANES; i++) f[i] += other[i];
    }
    const float share = 1 / (float)(2 * width + 1);
    for (int i = 0; i < LANES; i++) f[i] *= share;
}

static void filter_at(const strips *p, int64_t tap, float *f) {
    const float limit = (float)p->c->s->option[LN_CONVOLUTION_SQUASH];
    smoothed_at(p, tap, f);
    for (int i = 0; limit > 0 && i < LANES; i++) f[i] = f[i] - fmaxf(fminf(f[i], limit), -limit);
}

/* dfilter, of the filter as it acts, becomes that of the parameter, in place. */
static void filter_gradient_back(const strips *p) {
    const ln_strip *gradient = &p->gradient[LN_CONVOLUTION_FILTER];
    const float limit = (float)p->c->s->option[LN_CONVOLUTION_SQUASH];
    const int64_t width = (int64_t)p->c->s->option[LN_CONVOLUTION_SMOOTH], slots = p->c->s->slots;
    if (!gradient->data) return;
    float f[LANES], g[LANES];
    for (int64_t j = 0; limit > 0 && j < slots; j++) {
        smoothed_at(p, j, f);
        for (int i = 0; i < LANES; i++) g[i] = fabsf(f[i]) > limit ? 0.0f : -1.0f;
        ln_strip_load(gradient, j, f);
        ln_strip_multiply(g, f);
        ln_strip_add(gradient, j, g);
    }
    for (int lane = 0; width > 0 && lane < gradient->lanes; lane++) {
        /* The mean over a window is its own transpose. A ring keeps what the window leaves behind. */
        enum { RING = 2 * LN_CONVOLUTION_WIDEST + 1 };
        float ring[RING], *at = (float *)gradient->data + gradient->offset[lane];
        for (int64_t j = 0; j < slots; j++) {
            ring[j % RING] = at[j * gradient->stride];
            double sum = 0;
            for (int64_t i = ln_max_i64(j - width, 0); i <= j; i++) sum += (double)ring[i % RING];
            for (int64_t i = j + 1; i <= j + width && i < slots; i++) sum += (double)at[i * gradient->stride];
            at[j * gradient->stride] = (float)(sum / (double)(2 * width + 1));
        }
    }
}

/* ---- sources and sinks ---- */

static int64_t history(const strips *p) {
    return p->c->way.history;
}

static void filter_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const strips *p = argument;
    const float share = 1 / (float)p->c->wave.points;
    for (int64_t at = first; count > 0; count--, at++, rows += gap) {
        ln_strip_zero(rows);
        if (at >= p->c->way.taps) continue;
        filter_at(p, at, rows);
        for (int i = 0; i < LANES; i++) rows[i] *= share;
    }
}

static void signal_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const strips *p = argument;
    for (int64_t step = first + p->origin - history(p); count > 0; count--, step++, rows += gap)
        signal_at(p, step, rows);
}

static void error_source(const void *argument, int64_t first, int64_t count, float *rows, int64_t gap) {
    const strips *p = argument;
    for (int64_t step = first + p->origin - history(p); count > 0; count--, step++, rows += gap)
        if (step >= p->origin && step < p->count)
            error_at(p, step, rows);
        else
            ln_strip_zero(rows);
}

/* y += skip v, then what the output gate makes of it; y itself is not gated */
static void add_skip(const strips *p, int64_t step, float *y) {
    float v[LANES], skip[LANES];
    if (!p->input[LN_CONVOLUTION_SKIP].data) return;
    signal_at(p, step, v);
    ln_strip_load(&p->input[LN_CONVOLUTION_SKIP], 0, skip);
    for (int i = 0; i < LANES; i++) y[i] += skip[i] * v[i];
}

static void give_output(const strips *p, int64_t step, float *y) {
    add_skip(p, step, y);
    pass_gate(p, LN_CONVOLUTION_OUT, token_of(p, step), y);
    ln_strip_store(&p->output, token_of(p, step), y);
}

static void output_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const strips *p = argument;
    float y[LANES];
    for (int64_t step = first + p->origin - history(p); count > 0; count--, step++, rows += gap)
        if (step >= p->origin && step < p->count) {
            memcpy(y, rows, sizeof y);
            give_output(p, step, y);
        }
}

static void gate_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const strips *p = argument;
    float y[LANES], dy[LANES];
    for (int64_t step = first + p->origin - history(p); count > 0; count--, step++, rows += gap)
        if (step >= p->origin && step < p->count) {
            memcpy(y, rows, sizeof y);
            add_skip(p, step, y);
            ln_strip_load(&p->output_gradient, token_of(p, step), dy);
            ln_strip_multiply(y, dy);
            ln_strip_store(&p->gradient[LN_CONVOLUTION_OUT], token_of(p, step), y);
        }
}

/* Adds to the gradients of what v at a step was made of. */
static void give_signal_gradient(const strips *p, int64_t step, const float *dv) {
    if (step < 0) {
        if (p->state_in_gradient.data && step >= -p->c->s->slots)
            ln_strip_add(&p->state_in_gradient, p->c->s->slots + step, dv);
        return;
    }
    const int64_t token = token_of(p, step);
    float x[LANES];
    if (p->gradient[LN_CONVOLUTION_VALUE].data) {
        memcpy(x, dv, sizeof x);
        pass_gate(p, LN_CONVOLUTION_IN, token, x);
        ln_strip_add(&p->gradient[LN_CONVOLUTION_VALUE], token, x);
    }
    if (p->gradient[LN_CONVOLUTION_IN].data && p->input[LN_CONVOLUTION_IN].data) {
        ln_strip_load(&p->input[LN_CONVOLUTION_VALUE], token, x);
        ln_strip_multiply(x, dv);
        ln_strip_add(&p->gradient[LN_CONVOLUTION_IN], token, x);
    }
}

static void signal_gradient_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const strips *p = argument;
    float dv[LANES], skip[LANES], e[LANES];
    const bool skips = p->input[LN_CONVOLUTION_SKIP].data != NULL;
    if (skips) ln_strip_load(&p->input[LN_CONVOLUTION_SKIP], 0, skip);
    for (int64_t step = first + p->origin - history(p); count > 0; count--, step++, rows += gap) {
        if (step >= p->count) return;
        memcpy(dv, rows, sizeof dv);
        if (skips && step >= p->origin) {
            error_at(p, step, e);
            for (int i = 0; i < LANES; i++) dv[i] += skip[i] * e[i];
        }
        give_signal_gradient(p, step, dv);
    }
}

static void filter_gradient_sink(const void *argument, int64_t first, int64_t count, const float *rows, int64_t gap) {
    const strips *p = argument;
    const float share = 1 / (float)p->c->wave.points;
    float g[LANES];
    for (int64_t at = first; count > 0 && at < p->c->way.taps; count--, at++, rows += gap) {
        for (int i = 0; i < LANES; i++) g[i] = rows[i] * share;
        if (p->gradient[LN_CONVOLUTION_FILTER].data) ln_strip_store(&p->gradient[LN_CONVOLUTION_FILTER], at, g);
        /* sum e[t] v[t] is what tap 0 and skip have in common */
        if (at == 0 && !p->c->way.sparse && p->gradient[LN_CONVOLUTION_SKIP].data)
            ln_strip_store(&p->gradient[LN_CONVOLUTION_SKIP], 0, g);
    }
}

/* ---- rows of transforms ---- */

typedef struct row_work {
    room room;
    const ln_fft_kernels *kernels;
    bool output;  /* backward: the output is wanted, for its gate */
    int64_t kept; /* combs */
} row_work;

/* Points before this one are kept: whole rows, where there are columns, as these have at least COMB_LEVELS levels. */
static int64_t combs_end(const ln_wave *wave, const row_work *w) {
    return ln_max_i64(wave->points * w->kept / COMBS, 1);
}
static void clear_combs(const ln_wave *wave, const row_work *w, float *x, int64_t first, int64_t points) {
    const int64_t clear = ln_max_i64(first, combs_end(wave, w));
    if (clear < first + points) memset(x + clear * POINT, 0, (size_t)((first + points - clear) * POINT) * sizeof *x);
}

static void spectrum_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const row_work *w = argument;
    ln_wave_down_row(wave, w->room.spectrum, first, level, node);
    clear_combs(wave, w, w->room.spectrum, first, points);
}

static void forward_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const row_work *w = argument;
    if (first >= combs_end(wave, w)) {
        clear_combs(wave, w, w->room.x, first, points);
        return;
    }
    ln_wave_down_row(wave, w->room.x, first, level, node);
    w->kernels->multiply(w->room.x + first * POINT, w->room.spectrum + first * POINT, points);
    ln_wave_up_row(wave, w->room.x, first, level, node);
}

static void backward_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const row_work *w = argument;
    float *x = w->room.x + first * POINT, *e = w->room.e + first * POINT;
    const float *spectrum = w->room.spectrum + first * POINT;
    if (first >= combs_end(wave, w)) {
        clear_combs(wave, w, w->room.x, first, points);
        clear_combs(wave, w, w->room.e, first, points);
        return;
    }
    ln_wave_down_row(wave, w->room.x, first, level, node);
    ln_wave_down_row(wave, w->room.e, first, level, node);
    w->kernels->correlate(w->room.sum + first * POINT, e, x, points);
    w->kernels->multiply_conjugate(e, spectrum, points);
    ln_wave_up_row(wave, w->room.e, first, level, node);
    if (!w->output) return;
    w->kernels->multiply(x, spectrum, points);
    ln_wave_up_row(wave, w->room.x, first, level, node);
}

static void sum_rows(const ln_wave *wave, void *argument, int64_t first, int64_t points, int level, int64_t node) {
    const row_work *w = argument;
    clear_combs(wave, w, w->room.sum, first, points);
    ln_wave_up_row(wave, w->room.sum, first, level, node);
}

static void make_spectrum(const strips *p, row_work *work) {
    const ln_wave *wave = &p->c->wave;
    if (p->c->s->option[LN_CONVOLUTION_KEEP] > 1) return;
    ln_wave_down_columns(wave, work->room.spectrum, filter_source, p, p->c->way.taps > wave->points);
    ln_wave_each_row(wave, spectrum_rows, work);
}

static row_work work_of(const convolution *c, int worker, int64_t group) {
    return (row_work){.room = room_of(c, worker, group),
                      .kernels = &c->call->kernels->fft,
                      .kept = c->way.sparse ? (int64_t)c->s->option[LN_CONVOLUTION_COMBS] : COMBS};
}

/* ---- forward ---- */

static void give_state(const strips *p) {
    float v[LANES];
    const int64_t slots = p->c->s->slots;
    if (!p->state_out.data) return;
    for (int64_t row = 0; row < slots; row++) { /* ascending: the state may be moved in place */
        signal_at(p, p->count - slots + row, v);
        ln_strip_store(&p->state_out, row, v);
    }
}

static void forward_sequence(strips *p, row_work *work) {
    const ln_wave *wave = &p->c->wave;
    const int64_t fresh = 2 * wave->points - history(p);
    for (; p->origin < p->count; p->origin += fresh) {
        ln_wave_down_columns(wave, work->room.x, signal_source, p, p->count - p->origin + history(p) > wave->points);
        ln_wave_each_row(wave, forward_rows, work);
        ln_wave_up_columns(wave, work->room.x, output_sink, p);
    }
    give_state(p);
}

static void forward_part(const convolution *c, int64_t group, int64_t part, int64_t parts, int worker) {
    row_work work = work_of(c, worker, group);
    strips p = open_strips(c, group);
    make_spectrum(&p, &work);
    for (int64_t sequence = part; sequence < c->s->sequences; sequence += parts)
        if (open_sequence(&p, group, sequence)) forward_sequence(&p, &work);
}

static void direct_sequence(strips *p, float *scratch, const float *filter) {
    const int64_t taps = p->c->way.taps;
    float *y = scratch, *x = scratch + TILE * LANES;
    for (; p->origin < p->count; p->origin += TILE) {
        const int64_t tokens = ln_min_i64(TILE, p->count - p->origin);
        for (int64_t row = 0; row < taps - 1 + tokens; row++)
            signal_at(p, p->origin - (taps - 1) + row, x + row * LANES);
        memset(y, 0, (size_t)(tokens * LANES) * sizeof *y);
        p->c->call->kernels->fft.slide(y, x + (taps - 1) * LANES, LANES, filter, LANES, tokens, taps);
        for (int64_t t = 0; t < tokens; t++) give_output(p, p->origin + t, y + t * LANES);
    }
    give_state(p);
}

static void direct_part(const convolution *c, int64_t group, int64_t part, int64_t parts, int worker) {
    float *filter = c->first + worker * c->room_floats, *scratch = filter + c->way.taps * LANES;
    strips p = open_strips(c, group);
    for (int64_t j = 0; j < c->way.taps; j++) filter_at(&p, j, filter + j * LANES);
    for (int64_t sequence = part; sequence < c->s->sequences; sequence += parts)
        if (open_sequence(&p, group, sequence)) direct_sequence(&p, scratch, filter);
}

typedef struct parts {
    const convolution *c;
    int64_t parts; /* of the sequences */
} parts;

static void forward_task(void *argument, int64_t task, int worker) {
    const parts *p = argument;
    if (p->c->way.direct)
        direct_part(p->c, task / p->parts, task % p->parts, p->parts, worker);
    else
        forward_part(p->c, task / p->parts, task % p->parts, p->parts, worker);
}

void ln_convolution_forward(const ln_mixer_call *call) {
    const convolution c = open_call(call, LINNET_MIXER_FORWARD);
    if (!c.way.direct && !c.alone) {
        for (int64_t group = 0; group < c.groups; group++) forward_part(&c, group, 0, 1, 0);
        return;
    }
    /* A part makes the filter's transform anew; kept ones have one writer. */
    const int64_t wanted = c.spectra ? 1 : (2 * ln_team_size(call->team) + c.groups - 1) / c.groups;
    parts p = {&c, ln_min_i64(wanted, c.s->sequences)};
    ln_parallel(call->team, c.groups * p.parts, forward_task, &p);
}

/* ---- a step: one product with the state ---- */

static void step_task(void *argument, int64_t task, int worker) {
    const convolution *c = argument;
    const int64_t group = task % c->groups, slots = c->s->slots;
    const bool plain = c->s->option[LN_CONVOLUTION_SQUASH] <= 0 && c->s->option[LN_CONVOLUTION_SMOOTH] <= 0;
    (void)worker;
    strips p = open_strips(c, group);
    if (!open_sequence(&p, group, task / c->groups)) return;
    const ln_strip *filter = &p.input[LN_CONVOLUTION_FILTER], *state = &p.state_in;
    float v[LANES], f[LANES], y[LANES];
    signal_at(&p, 0, v);
    filter_at(&p, 0, f);
    for (int i = 0; i < LANES; i++) y[i] = f[i] * v[i];
    if (!state->data) {
    } else if (plain && filter->together && state->together && slots > 1) {
        c->call->kernels->fft.slide(y, (const float *)state->data + (slots - 1) * state->stride + state->offset[0],
                                    state->stride, (const float *)filter->data + filter->stride + filter->offset[0],
                                    filter->stride, 1, slots - 1);
    } else {
        for (int64_t j = 1; j < slots; j++) {
            filter_at(&p, j, f);
            ln_strip_load(state, slots - j, v);
            for (int i = 0; i < LANES; i++) y[i] += f[i] * v[i];
        }
    }
    give_output(&p, 0, y);
    give_state(&p);
}

void ln_convolution_step(const ln_mixer_call *call) {
    convolution c = {.call = call, .s = call->settings};
    c.channels = c.s->heads * c.s->value_size;
    c.groups = (c.channels + LANES - 1) / LANES;
    ln_parallel(call->team, c.s->sequences * c.groups, step_task, &c);
}

/* ---- backward ---- */

/* The state after the last token hands its gradient to the inputs that it consists of. */
static void take_state_gradient(const strips *p) {
    const int64_t slots = p->c->s->slots;
    const ln_strip *from = &p->state_out_gradient, *to = &p->state_in_gradient;
    float g[LANES];
    for (int64_t row = ln_max_i64(slots - p->count, 0); from->data && row < slots; row++) {
        ln_strip_load(from, row, g);
        give_signal_gradient(p, p->count - slots + row, g);
    }
    for (int64_t row = slots - 1; to->data && row >= 0; row--) { /* descending: they may be the same */
        ln_strip_zero(g);
        if (from->data && row >= p->count) ln_strip_load(from, row - p->count, g);
        ln_strip_store(to, row, g);
    }
}

/* Sums e v, where tap 0 has not all of it. */
static void skip_gradient(const strips *p) {
    float e[LANES], v[LANES];
    double sum[LANES] = {0};
    if (!p->gradient[LN_CONVOLUTION_SKIP].data) return;
    for (int64_t step = 0; step < p->count; step++) {
        error_at(p, step, e);
        signal_at(p, step, v);
        for (int i = 0; i < LANES; i++) sum[i] += (double)e[i] * (double)v[i];
    }
    for (int i = 0; i < LANES; i++) v[i] = (float)sum[i];
    ln_strip_add(&p->gradient[LN_CONVOLUTION_SKIP], 0, v);
}

static void backward_sequence(strips *p, row_work *work) {
    const ln_wave *wave = &p->c->wave;
    const int64_t fresh = 2 * wave->points - history(p);
    take_state_gradient(p);
    if (p->c->way.sparse) skip_gradient(p);
    for (; p->origin < p->count; p->origin += fresh) {
        const bool high = p->count - p->origin + history(p) > wave->points;
        ln_wave_down_columns(wave, work->room.x, signal_source, p, high);
        ln_wave_down_columns(wave, work->room.e, error_source, p, high);
        ln_wave_each_row(wave, backward_rows, work);
        if (work->output) ln_wave_up_columns(wave, work->room.x, gate_sink, p);
        ln_wave_up_columns(wave, work->room.e, signal_gradient_sink, p);
    }
}

static void backward_group(const convolution *c, int64_t group, int worker) {
    strips p = open_strips(c, group);
    row_work work = work_of(c, worker, group);
    work.output = p.gradient[LN_CONVOLUTION_OUT].data && p.input[LN_CONVOLUTION_OUT].data;
    memset(work.room.sum, 0, (size_t)(c->wave.points * POINT) * sizeof(float));
    make_spectrum(&p, &work);
    for (int64_t sequence = 0; sequence < c->s->sequences; sequence++)
        if (open_sequence(&p, group, sequence)) backward_sequence(&p, &work);
    if (!p.gradient[LN_CONVOLUTION_FILTER].data && !p.gradient[LN_CONVOLUTION_SKIP].data) return;
    ln_wave_each_row(&c->wave, sum_rows, &work);
    ln_wave_up_columns(&c->wave, work.room.sum, filter_gradient_sink, &p);
    filter_gradient_back(&p);
}

static void backward_task(void *argument, int64_t task, int worker) {
    backward_group(argument, task, worker);
}

void ln_convolution_backward(const ln_mixer_call *call) {
    convolution c = open_call(call, LINNET_MIXER_BACKWARD);
    if (c.alone)
        ln_parallel(call->team, c.groups, backward_task, &c);
    else
        for (int64_t group = 0; group < c.groups; group++) backward_group(&c, group, 0);
}

/* ---- settings ---- */

const char *ln_convolution_refuse(const linnet_mixer_settings *s) {
    const double keep = s->option[LN_CONVOLUTION_KEEP], squash = s->option[LN_CONVOLUTION_SQUASH],
                 smooth = s->option[LN_CONVOLUTION_SMOOTH];
    if (keep != 0 && keep != 1 && keep != 2) return "option[0], what becomes of the filter's transform, is 0, 1 or 2";
    if (!(squash >= 0) || isinf(squash)) return "option[1], what is taken from the filter's taps, must not be negative";
    if (!(smooth >= 0) || smooth > LN_CONVOLUTION_WIDEST || smooth != floor(smooth))
        return "option[2], half the width of the filter's smoothing, is a whole number from 0 to 32";
    if (s->heads > ((int64_t)1 << 40) / s->value_size) return "heads * value_size must be at most 2^40";
    return NULL;
}

const char *ln_convolution_refuse_sparse(const linnet_mixer_settings *s) {
    const double combs = s->option[LN_CONVOLUTION_COMBS];
    if (!(combs >= 1) || combs > COMBS || combs != floor(combs))
        return "option[3], combs of frequencies that are kept, is a whole number from 1 to 64";
    if (ln_mixer_longest(s) > s->slots) return "sequences must not be longer than the filter's slots";
    return ln_convolution_refuse(s);
}

double ln_convolution_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const double columns = (double)s->value_size;
    if (form == LINNET_MIXER_STEP) return 2 * (double)s->slots * columns;
    const way w = choose(s, false, form == LINNET_MIXER_BACKWARD);
    if (w.direct || s->tokens == 0) return 2 * (double)w.taps * columns;
    const double points = ldexp(1, w.levels), fresh = 2 * points - (double)(w.taps - 1);
    const double transforms = form == LINNET_MIXER_BACKWARD ? 4 : 2;
    const double block = points * (5 * w.levels * transforms + 6);
    return columns * block * ceil((double)ln_mixer_longest(s) / fresh) / (double)ln_mixer_longest(s);
}
