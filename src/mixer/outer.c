/* Owns: the chunked forward form of the outer core, and what its other forms share with it. With C tokens at once,
 * G[t] the sum of the gates from the chunk's begin:
 *
 *     scores = scale tril(Q K^T e^(G[i] - G[j]))      sums = scale (Q e^G) S + scores V       S = e^(G[C]) S + (K
 * e^(G[C] - G))^T V
 *
 * A task is a head of a sequence, or where these are few a slice of its columns: the tile kernels give a column the
 * same bits whatever is computed beside it, so slices may depend on the number of threads. */
#include "mixer/outer.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/outer_inside.h"
#include "number/format.h"

enum { CHUNK = 64, SLICE = 32, GROUP = 32 };
/* e^(-1000) is 0 in float32, and sums of such gates stay exact: -inf is as good as this. */
static const float ENDLESS = -1000;

/* ---- sizes ---- */

static int64_t size_of(int64_t (*of)(const linnet_mixer_settings *), const linnet_mixer_settings *s, int64_t other) {
    return of ? of(s) : other;
}
static int64_t round16(int64_t count) {
    return (count + 15) / 16 * 16;
}

int64_t ln_outer_chunk(const linnet_mixer_settings *s) {
    return ln_min_i64(s->chunk ? s->chunk : CHUNK, round16(ln_max_i64(1, ln_mixer_longest(s))));
}

int64_t ln_outer_parameters(const ln_mixer *mixer, const linnet_mixer_settings *settings) {
    int64_t floats = 0;
    for (const ln_mixer_input *i = mixer->inputs; i->name; i++)
        if (i->flags & LN_PARAMETER) floats += ln_mixer_columns(i, settings);
    return floats;
}

int64_t ln_outer_head_floats(const linnet_mixer_settings *s) {
    const ln_outer_row *row = ln_outer_row_of(ln_mixer_find(s->name));
    return size_of(row->features, s, s->key_size) *
               (size_of(row->columns, s, s->value_size) + size_of(row->extra, s, 0)) +
           size_of(row->side, s, 0);
}

void ln_outer_state_extent(const linnet_mixer_settings *s, int index, int64_t *rows, int64_t *columns) {
    const ln_outer_row *row = ln_outer_row_of(ln_mixer_find(s->name));
    const int64_t features = size_of(row->features, s, s->key_size);
    *rows = index == 0 ? features : 1;
    *columns = index == 0 ? size_of(row->columns, s, s->value_size) : size_of(row->extra, s, 0) * features;
}

uint64_t ln_outer_layout(ln_outer_work *w, const ln_mixer *mixer, const linnet_mixer_settings *s,
                         linnet_mixer_form form, unsigned char *base) {
    ln_carver carver = {.base = base};
    const ln_outer_row *row = ln_outer_row_of(mixer);
    ln_outer_tile *t = &w->tile;
    ln_outer_gates *g = &w->gates;
    const bool step = form == LINNET_MIXER_STEP, backward = form == LINNET_MIXER_BACKWARD;
    t->row = row;
    t->features = size_of(row->features, s, s->key_size);
    t->columns = size_of(row->columns, s, s->value_size);
    t->extra = size_of(row->extra, s, 0);
    t->sides = size_of(row->side, s, 0);
    t->key_stride = round16(t->features);
    t->value_stride = round16(t->columns + t->extra);
    w->wide = ln_max_i64(t->key_stride, t->value_stride);
    w->chunk = step ? 1 : ln_outer_chunk(s);
    const bool by_value = row->decay == LN_OUTER_VALUE_DECAY, by_key = row->decay == LN_OUTER_KEY_DECAY;
    g->stride = by_value ? t->value_stride : by_key ? t->key_stride : 1;
    g->channels = by_value ? t->columns + t->extra : by_key ? t->features : 0;
#define TAKE(count) ln_carve(&carver, (uint64_t)(count), sizeof(float))
    const int64_t n = w->chunk, keys = n * t->key_stride, values = n * t->value_stride;
    t->query = TAKE(keys);
    t->key = TAKE(keys);
    t->value = TAKE(values);
    t->sums = TAKE(values);
    t->decay = TAKE(n * g->stride);
    t->bonus = row->before ? TAKE(t->key_stride) : NULL;
    t->side = TAKE(t->sides + 1);
    t->scratch = TAKE(n * size_of(row->scratch, s, 0) + 16);
    w->decays = TAKE(w->wide);
    w->state = TAKE(round16(t->features) * t->value_stride);
    if (step) return carver.overflow ? UINT64_MAX : carver.used;
    g->sums = ln_carve(&carver, (uint64_t)(n + 1), sizeof(double));
    g->query_factor = TAKE(n);
    g->key_factor = TAKE(n);
    if (g->channels) {
        g->factors = TAKE(n * g->stride);
        g->prefix = TAKE(n * g->stride);
        g->suffix = TAKE(n * g->stride);
        g->blocks = TAKE((n + 15) / 16 * g->stride);
        g->ends = TAKE(g->stride);
        w->query_in = TAKE(n * g->stride);
    }
    w->key_out = TAKE(n * w->wide);
    w->scores = TAKE(n * n);
    w->running = TAKE(w->wide);
    w->room = TAKE(n * w->wide);
    ln_outer_half *h = &w->half;
    h->used = form == LINNET_MIXER_FORWARD && s->type == LINNET_BF16 && !s->exact && !row->exact;
    h->depth = ln_tile_whole(t->features, 32);
    h->tokens = ln_tile_whole(n, 32);
    if (h->used) {
        h->query = ln_carve(&carver, (uint64_t)(n * h->depth), sizeof(uint16_t));
        h->scores = ln_carve(&carver, (uint64_t)(n * h->tokens), sizeof(uint16_t));
        h->key_turned = ln_carve(&carver, (uint64_t)(round16(t->features) * h->tokens), sizeof(uint16_t));
        h->key_pairs = TAKE(h->depth / 2 * n);
        h->state = TAKE(h->depth / 2 * t->value_stride);
        h->value = TAKE(h->tokens / 2 * t->value_stride);
    }
    if (backward) {
        const int64_t chunks = ln_ceil_div(ln_mixer_longest(s), n), floats = t->features * t->value_stride + t->sides;
        w->group = chunks <= GROUP ? GROUP : (int64_t)sqrt((double)chunks) + 1;
        t->query_gradient = TAKE(keys);
        t->key_gradient = TAKE(keys);
        t->value_gradient = TAKE(values);
        t->sums_gradient = TAKE(values);
        t->decay_gradient = TAKE(n * g->stride);
        t->side_gradient = TAKE(t->sides + 1);
        t->bonus_gradient = row->before ? TAKE(t->key_stride) : NULL;
        w->score_gradient = TAKE(n * n);
        w->own = TAKE(n);
        w->crossing = ln_carve(&carver, (uint64_t)n, sizeof(double));
        w->state_gradient = TAKE(t->features * t->value_stride);
        w->states = ln_carve(&carver, (uint64_t)(ln_min_i64(w->group, chunks) + 1), sizeof(float) * (uint64_t)floats);
        w->groups = ln_carve(&carver, (uint64_t)ln_ceil_div(chunks, w->group), sizeof(float) * (uint64_t)floats);
    }
#undef TAKE
    return carver.overflow ? UINT64_MAX : carver.used;
}

uint64_t ln_outer_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *s, linnet_mixer_form form) {
    (void)kernels;
    ln_outer_work w = {0};
    const uint64_t each = ln_outer_layout(&w, mixer, s, form, NULL);
    uint64_t all, more;
    if (each == UINT64_MAX || !ln_multiply_u64(each, (uint64_t)threads, &all)) return UINT64_MAX;
    if (form == LINNET_MIXER_FORWARD) /* what slices share (begin_slices) */
        more = 2 * (uint64_t)threads * (uint64_t)(w.tile.extra * w.tile.features + w.tile.sides) * sizeof(float);
    else if (form == LINNET_MIXER_BACKWARD)
        more = (uint64_t)(s->sequences * s->heads) * (uint64_t)ln_outer_parameters(mixer, s) * sizeof(float);
    else
        more = 0;
    return ln_add_u64(all, more, &all) ? all : UINT64_MAX;
}

/* ---- rows' helpers ---- */

void ln_outer_load(const ln_outer_tile *t, int input, float *rows, int64_t stride) {
    const ln_mixer_input *i = &t->call->mixer->inputs[input];
    const int64_t columns = ln_mixer_columns(i, t->call->settings), count = i->flags & LN_PARAMETER ? 1 : t->count;
    if (stride == columns || count == 1) {
        ln_mixer_load(t->call, input, t->head, t->sequence, t->step, count, rows);
        return;
    }
    for (int64_t n = 0; n < count; n++)
        ln_mixer_load(t->call, input, t->head, t->sequence, t->step + n, 1, rows + n * stride);
}

void ln_outer_add(const ln_outer_tile *t, int input, const float *rows, int64_t stride) {
    if (!t->call->tensors->input_gradient[input].data) return;
    const int64_t columns = ln_mixer_columns(&t->call->mixer->inputs[input], t->call->settings);
    for (int64_t n = 0; n < t->count; n++)
        t->call->kernels->vector.add(ln_mixer_gradient(t->call, input, t->head, t->sequence, t->step + n),
                                     rows + n * stride, columns);
}

float *ln_outer_parameter(const ln_outer_tile *t, int input) {
    float *at = t->parameter_gradients;
    for (int k = 0; k < input; k++)
        if (t->call->mixer->inputs[k].flags & LN_PARAMETER)
            at += ln_mixer_columns(&t->call->mixer->inputs[k], t->call->settings);
    return at;
}

/* ---- a chunk ---- */

void ln_outer_open(ln_outer_work *w, const ln_mixer_call *call, linnet_mixer_form form, int worker) {
    *w = (ln_outer_work){.kernels = &call->kernels->tile, .vector = &call->kernels->vector};
    const uint64_t each = ln_outer_layout(w, call->mixer, call->settings, form, NULL);
    ln_outer_layout(w, call->mixer, call->settings, form, (unsigned char *)call->workspace + (uint64_t)worker * each);
    w->half.used = w->half.used && call->kernels->tile.bf16.name;
    w->tile.call = call;
    w->tile.last = w->tile.columns;
}

void ln_outer_begin(ln_outer_work *w, int64_t sequence, int64_t head, const float *state, const float *extra) {
    ln_outer_tile *t = &w->tile;
    t->sequence = sequence;
    t->head = head;
    memset(w->state, 0, (size_t)(t->features * t->value_stride) * sizeof *w->state);
    memset(t->side, 0, (size_t)t->sides * sizeof *t->side);
    if (!state) return;
    for (int64_t r = 0; r < t->features; r++)
        memcpy(w->state + r * t->value_stride + t->first, state + r * t->columns + t->first,
               (size_t)(t->last - t->first) * sizeof *state);
    if (!extra) extra = state + t->features * t->columns;
    for (int64_t e = 0; e < t->extra; e++)
        for (int64_t r = 0; r < t->features; r++)
            w->state[r * t->value_stride + t->columns + e] = extra[e * t->features + r];
    memcpy(t->side, extra + t->extra * t->features, (size_t)t->sides * sizeof *t->side);
}

void ln_outer_end(const ln_outer_work *w, const float *from, float *state, bool extra) {
    const ln_outer_tile *t = &w->tile;
    for (int64_t r = 0; r < t->features; r++)
        memcpy(state + r * t->columns + t->first, from + r * t->value_stride + t->first,
               (size_t)(t->last - t->first) * sizeof *state);
    float *to = state + t->features * t->columns;
    for (int64_t e = 0; extra && e < t->extra; e++)
        for (int64_t r = 0; r < t->features; r++) to[e * t->features + r] = from[r * t->value_stride + t->columns + e];
    if (extra) memcpy(to + t->extra * t->features, t->side, (size_t)t->sides * sizeof *t->side);
}

static float decay_of(double x) {
    return (float)x < LN_TILE_LEAST ? 0 : expf((float)x);
}

static void sum_gates(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    ln_outer_gates *g = &w->gates;
    const float scale = t->call->settings->scale;
    double sum = 0;
    g->sums[0] = 0;
    for (int64_t i = 0; i < t->count; i++)
        g->sums[i + 1] = sum += (double)(t->decay[i] < ENDLESS ? ENDLESS : t->decay[i]);
    g->columns = g->sums + 1;
    g->rows = t->row->before ? g->sums : g->columns;
    for (int64_t i = 0; i < t->count; i++) {
        g->query_factor[i] = scale * decay_of(g->rows[i]);
        g->key_factor[i] = decay_of(sum - g->columns[i]);
    }
    g->end = decay_of(sum);
}

void ln_outer_load_chunk(ln_outer_work *w, int64_t step, int64_t count) {
    ln_outer_tile *t = &w->tile;
    t->step = step;
    t->count = count;
    t->row->load(t);
    if (t->row->decay == LN_OUTER_DECAY)
        sum_gates(w);
    else if (t->row->decay == LN_OUTER_NO_DECAY)
        for (int64_t i = 0; i < count; i++) w->gates.query_factor[i] = t->call->settings->scale;
    else
        ln_outer_channel_gates(w);
}

/* What a token reads of itself where the state is read before it. */
static void own_scores(const ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    for (int64_t i = 0; t->row->before && i < t->count; i++) {
        const float *q = t->query + i * t->key_stride, *k = t->key + i * t->key_stride;
        float sum = 0;
        for (int64_t c = 0; c < t->features; c++) sum += q[c] * t->bonus[c] * k[c];
        w->scores[i * w->chunk + i] = t->call->settings->scale * sum;
    }
}

void ln_outer_mask(const ln_outer_work *w, float *scores) {
    const ln_outer_gates *g = &w->gates;
    const bool gated = w->tile.row->decay == LN_OUTER_DECAY;
    w->kernels->decay_lower(scores, w->chunk, gated ? g->rows : NULL, gated ? g->columns : NULL,
                            w->tile.call->settings->scale, w->tile.row->before, w->tile.count);
}

void ln_outer_sums(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_gates *g = &w->gates;
    const bool by_key = t->row->decay == LN_OUTER_KEY_DECAY, by_value = t->row->decay == LN_OUTER_VALUE_DECAY;
    if (by_key) {
        ln_outer_channel_in(w, w->query_in, t->query);
        ln_outer_channel_scores(w, w->scores, t->query, w->query_in, t->key, w->key_out);
        ln_outer_channel_since(w, w->query_in, t->call->settings->scale);
    } else {
        ln_outer_pair(w);
    }
    ln_outer_mask(w, w->scores);
    own_scores(w);
    ln_outer_read_state(w, by_key ? w->query_in : t->query);
    if (by_value) {
        memcpy(w->query_in, g->prefix, (size_t)(t->count * g->stride) * sizeof(float));
        ln_outer_channel_since(w, w->query_in, t->call->settings->scale);
        w->kernels->multiply(t->sums, g->stride, t->sums, g->stride, w->query_in, g->stride, t->count, g->channels);
        ln_outer_channel_read(w, t->sums, w->scores, t->value, w->key_out);
        ln_outer_put_values(w, w->key_out);
        return;
    }
    const ln_outer_parts parts = ln_outer_parts_of(t);
    for (int p = 0; !by_key && p < parts.parts; p++)
        w->kernels->scale_rows(t->sums + parts.at[p], t->value_stride, t->sums + parts.at[p], t->value_stride,
                               g->query_factor, t->count, parts.count[p]);
    ln_outer_put_values(w, t->value);
    ln_outer_read_values(w);
}

void ln_outer_skip_sums(ln_outer_work *w) {
    const bool by_value = w->tile.row->decay == LN_OUTER_VALUE_DECAY;
    if (w->gates.channels) ln_outer_channel_out(w, w->key_out, by_value ? w->tile.value : w->tile.key);
    ln_outer_put_values(w, by_value ? w->key_out : w->tile.value);
}

void ln_outer_advance(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_gates *g = &w->gates;
    const ln_tile_kernels *k = w->kernels;
    const ln_outer_decay decay = t->row->decay;
    const int64_t stride = t->value_stride;
    const float *ends = decay == LN_OUTER_VALUE_DECAY ? g->ends : w->running;
    for (int64_t c = 0; decay == LN_OUTER_DECAY && c < stride; c++) w->running[c] = g->end;
    const ln_outer_parts parts = ln_outer_parts_of(t);
    for (int p = 0; decay != LN_OUTER_NO_DECAY && p < parts.parts; p++) {
        float *state = w->state + parts.at[p];
        if (decay == LN_OUTER_KEY_DECAY)
            k->scale_rows(state, stride, state, stride, g->ends, t->features, parts.count[p]);
        else
            k->scale_columns(state, stride, state, stride, ends + parts.at[p], t->features, parts.count[p]);
    }
    ln_outer_write_state(w, decay == LN_OUTER_KEY_DECAY ? w->key_out : t->key,
                         decay == LN_OUTER_DECAY ? g->key_factor : NULL);
}

/* ---- all chunks ---- */

typedef struct forward_run {
    const ln_mixer_call *call;
    int64_t slices;
    float *extras; /* of each head of each sequence; NULL: the state's own */
    int64_t extra;
} forward_run;

static void write_outputs(const ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++)
        memcpy(ln_mixer_output(t->call, t->head, t->sequence, t->step + i) + t->first,
               t->sums + i * t->value_stride + t->first, (size_t)(t->last - t->first) * sizeof(float));
}

static void forward_task(void *argument, int64_t task, int worker) {
    const forward_run *run = argument;
    const linnet_mixer_settings *s = run->call->settings;
    const int64_t lane = task / run->slices, slice = task % run->slices, sequence = lane / s->heads,
                  head = lane % s->heads;
    int64_t first, count;
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    ln_outer_work w;
    ln_outer_open(&w, run->call, LINNET_MIXER_FORWARD, worker);
    const int64_t units = ln_ceil_div(w.tile.columns, SLICE);
    w.tile.first = slice * units / run->slices * SLICE;
    w.tile.last = ln_min_i64(w.tile.columns, (slice + 1) * units / run->slices * SLICE);
    ln_outer_begin(&w, sequence, head, ln_mixer_state_in(run->call, sequence, head),
                   run->extras ? run->extras + lane * run->extra : NULL);
    for (int64_t t = 0; t < count; t += w.chunk) {
        ln_outer_load_chunk(&w, t, ln_min_i64(w.chunk, count - t));
        ln_outer_sums(&w);
        if (w.tile.row->finish)
            w.tile.row->finish(&w.tile);
        else
            write_outputs(&w.tile);
        if (t + w.chunk < count || run->call->tensors->state_out) ln_outer_advance(&w);
    }
    float *out = ln_mixer_state_out(run->call, sequence, head);
    if (out) ln_outer_end(&w, w.state, out, slice == 0);
}

void ln_outer_forward(const ln_mixer_call *call) {
    const linnet_mixer_settings *s = call->settings;
    const int64_t lanes = s->sequences * s->heads, threads = ln_team_size(call->team);
    ln_outer_work w = {0};
    const uint64_t each = ln_outer_layout(&w, call->mixer, s, LINNET_MIXER_FORWARD, NULL);
    forward_run run = {.call = call, .slices = 1, .extra = w.tile.extra * w.tile.features + w.tile.sides};
    if (threads > 1 && lanes < 2 * threads && !w.tile.row->whole && w.tile.row->decay != LN_OUTER_VALUE_DECAY)
        run.slices = ln_min_i64(ln_ceil_div(2 * threads, lanes), ln_ceil_div(w.tile.columns, SLICE));
    if (run.slices > 1 && run.extra && call->tensors->state_in) {
        /* A slice that is done may overwrite what another has still to read. */
        run.extras = (float *)(void *)((unsigned char *)call->workspace + each * (uint64_t)threads);
        for (int64_t lane = 0; lane < lanes; lane++)
            memcpy(run.extras + lane * run.extra,
                   ln_mixer_state_in(call, lane / s->heads, lane % s->heads) + w.tile.features * w.tile.columns,
                   (size_t)run.extra * sizeof(float));
    }
    ln_parallel(call->team, lanes * run.slices, forward_task, &run);
}

double ln_outer_flops(const linnet_mixer_settings *s, linnet_mixer_form form) {
    const ln_outer_row *row = ln_outer_row_of(ln_mixer_find(s->name));
    const double keys = (double)size_of(row->features, s, s->key_size),
                 values = (double)(size_of(row->columns, s, s->value_size) + size_of(row->extra, s, 0)),
                 chunk = (double)ln_outer_chunk(s);
    if (form == LINNET_MIXER_STEP) return 5 * keys * values;
    if (form == LINNET_MIXER_FORWARD) return 4 * keys * values + 2 * chunk * (keys + values);
    return 10 * keys * values + 6 * chunk * keys + 4 * chunk * values;
}
