/* Owns: gradients of the outer core. A task is a sequence and the heads that share a key head, one after the other, so
 * whoever adds to a row of a gradient is alone. A head goes forward once, keeping the state before each chunk, then
 * backward with D, the gradient of the state behind the chunk; of a long sequence it keeps the state before each group
 * of chunks, about the root of their number, and goes forward over each group again. With P the scores, s the scale, w
 * the decays, dO the gradients of the sums:
 *
 *     G = s tril(dO V^T) w                dV = P^T dO + (K e^(end - G)) D
 *     dQ = G K + s (dO S^T) e^G           D <- e^end D + (s Q e^G)^T dO
 *     dK = G^T Q + (V D^T) e^(end - G)
 *
 * The gradient of a gate is the sum of all that goes across it. Of a channel that is what is read from there on less
 * what is written from there on,
 *     dg[t] = sum over i >= t in the chunk of (q dq - k dk)[i] + rowsum(S D) behind the chunk
 * (of a value channel with sums and values in the place of queries and keys). Of a token, where one gate gathers all
 * channels and a parameter all tokens, the difference would lose digits: pairs, reads and writes across it are added.
 */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/outer_inside.h"

typedef struct backward_run {
    const ln_mixer_call *call;
    int64_t owners, parameters;
    float *parameter_gradients; /* [sequences][heads][parameters] */
} backward_run;

static void load_gradients(const ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++)
        memcpy(t->sums_gradient + i * t->value_stride,
               ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i),
               (size_t)t->columns * sizeof(float));
}

/* In double: gradients of gates are small differences of such sums. */
static double dot(const float *a, const float *b, int64_t n) {
    enum { LANES = 8 };
    double part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) part[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < n; i++) part[0] += (double)a[i] * (double)b[i];
    for (int l = 1; l < LANES; l++) part[0] += part[l];
    return part[0];
}

/* ---- gates ---- */

/* Pairs of the chunk across each gate: of scores and their gradients before decay. */
static void cross_pairs(const ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    memset(w->crossing, 0, (size_t)t->count * sizeof *w->crossing);
    for (int64_t i = 1; i < t->count; i++) {
        const float *score = w->scores + i * w->chunk, *gradient = w->score_gradient + i * w->chunk;
        double sum = 0;
        for (int64_t j = 0; j < i - t->row->before; j++) {
            sum += (double)score[j] * (double)gradient[j];
            w->crossing[j + 1] += sum;
        }
    }
}

/* Before scores are part of them: what was read of the state before the chunk, and written to that behind it. */
static void cross_states(const ln_outer_work *w, const float *before) {
    const ln_outer_tile *t = &w->tile;
    double through = 0, read = 0, written = 0;
    for (int64_t r = 0; r < t->features; r++)
        through += dot(before + r * t->value_stride, w->state_gradient + r * t->value_stride, t->columns + t->extra);
    through *= (double)w->gates.end;
    for (int64_t i = 0; i < t->count; i++) {
        const int64_t at = i * t->key_stride, back = t->count - 1 - i, back_at = back * t->key_stride;
        w->crossing[i] += through + written;
        written += dot(t->key + at, t->key_gradient + at, t->features);
        const double own = dot(t->query + back_at, t->query_gradient + back_at, t->features);
        w->crossing[back] += t->row->before ? read : read + own;
        read += own;
    }
    for (int64_t i = 0; i < t->count; i++) t->decay_gradient[i] = (float)w->crossing[i];
}

/* ends [channels]: the gradient of what is behind the chunk. */
static void channel_gate_gradients(const ln_outer_work *w, float *sum, const float *x, const float *dx, const float *y,
                                   const float *dy) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_gates *g = &w->gates;
    for (int64_t i = t->count - 1; i >= 0; i--)
        for (int64_t c = 0; c < g->channels; c++) {
            const int64_t at = i * g->stride + c;
            if (!t->row->before) sum[c] += x[at] * dx[at];
            sum[c] -= y[at] * dy[at];
            t->decay_gradient[at] = sum[c];
            if (t->row->before) sum[c] += x[at] * dx[at];
        }
}

static void key_gate_gradients(ln_outer_work *w, const float *state) {
    const ln_outer_tile *t = &w->tile;
    for (int64_t r = 0; r < t->features; r++)
        w->running[r] =
            (float)dot(state + r * t->value_stride, w->state_gradient + r * t->value_stride, t->columns + t->extra);
    channel_gate_gradients(w, w->running, t->query, t->query_gradient, t->key, t->key_gradient);
}

static void value_gate_gradients(ln_outer_work *w, const float *state) {
    const ln_outer_tile *t = &w->tile;
    for (int64_t c = 0; c < w->gates.channels; c++) w->running[c] = 0;
    for (int64_t r = 0; r < t->features; r++)
        for (int64_t c = 0; c < w->gates.channels; c++)
            w->running[c] += state[r * t->value_stride + c] * w->state_gradient[r * t->value_stride + c];
    channel_gate_gradients(w, w->running, t->sums, t->sums_gradient, t->value, t->value_gradient);
}

/* ---- a chunk ---- */

/* G, and what its diagonal would be without decay. */
static void score_gradients(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const float scale = t->call->settings->scale;
    w->kernels->lower_tb(w->score_gradient, w->chunk, t->sums_gradient, t->value_stride, t->value, t->value_stride,
                         t->count, t->columns + t->extra);
    for (int64_t i = 0; t->row->before && i < t->count; i++) w->own[i] = scale * w->score_gradient[i * w->chunk + i];
    if (t->row->decay == LN_OUTER_DECAY) cross_pairs(w);
    ln_outer_mask(w, w->score_gradient);
}

static void query_and_key_gradients(ln_outer_work *w, const float *before) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_gates *g = &w->gates;
    const ln_tile_kernels *k = w->kernels;
    const int64_t n = t->count, ks = t->key_stride, vs = t->value_stride, values = t->columns + t->extra;
    const bool by_value = t->row->decay == LN_OUTER_VALUE_DECAY;
    if (by_value) {
        ln_outer_channel_in(w, w->query_in, t->sums_gradient);
        ln_outer_channel_scores(w, w->score_gradient, t->sums_gradient, w->query_in, t->value, w->key_out);
        ln_outer_mask(w, w->score_gradient);
        /* The gradient of values first: it needs query_in since the block's begin. */
        k->product(t->value_gradient, vs, t->key, ks, w->state_gradient, vs, n, values, t->features, false);
        ln_outer_channel_write(w, t->value_gradient, w->scores, t->sums_gradient, w->query_in);
        ln_outer_channel_since(w, w->query_in, t->call->settings->scale);
    } else {
        score_gradients(w);
    }
    k->product_tb(t->query_gradient, ks, by_value ? w->query_in : t->sums_gradient, vs, before, vs, n, t->features,
                  values, false);
    k->product_tb(t->key_gradient, ks, by_value ? w->key_out : t->value, vs, w->state_gradient, vs, n, t->features,
                  values, false);
    if (t->row->decay == LN_OUTER_KEY_DECAY) {
        memcpy(w->query_in, g->prefix, (size_t)(n * g->stride) * sizeof(float));
        ln_outer_channel_since(w, w->query_in, t->call->settings->scale);
        k->multiply(t->query_gradient, ks, t->query_gradient, ks, w->query_in, ks, n, t->features);
        ln_outer_channel_read(w, t->query_gradient, w->score_gradient, t->key, w->key_out);
        ln_outer_channel_in(w, w->query_in, t->query);
        ln_outer_channel_write(w, t->key_gradient, w->score_gradient, t->query, w->query_in);
        ln_outer_channel_since(w, w->query_in, t->call->settings->scale);
        return;
    }
    if (!by_value) k->scale_rows(t->query_gradient, ks, t->query_gradient, ks, g->query_factor, n, t->features);
    if (t->row->decay == LN_OUTER_DECAY)
        k->scale_rows(t->key_gradient, ks, t->key_gradient, ks, g->key_factor, n, t->features);
    if (t->row->decay == LN_OUTER_DECAY) cross_states(w, before);
    k->lower(t->query_gradient, ks, w->score_gradient, w->chunk, t->key, ks, n, t->features, true);
    k->lower_ta(t->key_gradient, ks, w->score_gradient, w->chunk, t->query, ks, n, t->features, true);
}

static void value_gradients(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_tile_kernels *k = w->kernels;
    const int64_t n = t->count, ks = t->key_stride, vs = t->value_stride, values = t->columns + t->extra;
    const float *key = t->key;
    if (t->row->decay == LN_OUTER_VALUE_DECAY) return;
    if (t->row->decay == LN_OUTER_DECAY) k->scale_rows(w->key_out, ks, t->key, ks, w->gates.key_factor, n, t->features);
    if (t->row->decay != LN_OUTER_NO_DECAY) key = w->key_out;
    k->product(t->value_gradient, vs, key, ks, w->state_gradient, vs, n, values, t->features, false);
    k->lower_ta(t->value_gradient, vs, w->scores, w->chunk, t->sums_gradient, vs, n, values, true);
}

/* What a token read of itself. */
static void own_gradients(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    if (!t->row->before) return;
    memset(t->bonus_gradient, 0, (size_t)t->features * sizeof(float));
    for (int64_t i = 0; i < t->count; i++) {
        const int64_t at = i * t->key_stride;
        for (int64_t c = 0; c < t->features; c++) {
            const float q = t->query[at + c], k = t->key[at + c];
            t->query_gradient[at + c] += w->own[i] * t->bonus[c] * k;
            t->key_gradient[at + c] += w->own[i] * t->bonus[c] * q;
            t->bonus_gradient[c] += w->own[i] * q * k;
        }
    }
}

static void recede(ln_outer_work *w) {
    const ln_outer_tile *t = &w->tile;
    const ln_outer_gates *g = &w->gates;
    const ln_tile_kernels *k = w->kernels;
    const int64_t n = t->count, ks = t->key_stride, vs = t->value_stride, values = t->columns + t->extra;
    const float *query = t->query, *gradient = t->sums_gradient;
    float *d = w->state_gradient;
    if (t->row->decay == LN_OUTER_VALUE_DECAY) {
        k->scale_columns(d, vs, d, vs, g->ends, t->features, values);
        gradient = w->query_in;
    } else if (t->row->decay == LN_OUTER_KEY_DECAY) {
        k->scale_rows(d, vs, d, vs, g->ends, t->features, values);
        query = w->query_in;
    } else {
        if (t->row->decay == LN_OUTER_DECAY) {
            for (int64_t c = 0; c < values; c++) w->running[c] = g->end;
            k->scale_columns(d, vs, d, vs, w->running, t->features, values);
        }
        k->scale_rows(w->room, ks, query, ks, g->query_factor, n, t->features);
        query = w->room;
    }
    k->product_ta(d, vs, query, ks, gradient, vs, t->features, values, n, true);
}

static void chunk_gradients(ln_outer_work *w, const float *before, const float *behind) {
    ln_outer_tile *t = &w->tile;
    ln_outer_sums(w);
    if (t->row->finish_gradient)
        t->row->finish_gradient(t);
    else
        load_gradients(t);
    query_and_key_gradients(w, before);
    value_gradients(w);
    if (t->row->decay == LN_OUTER_KEY_DECAY)
        key_gate_gradients(w, behind);
    else if (t->row->decay == LN_OUTER_VALUE_DECAY)
        value_gate_gradients(w, behind);
    own_gradients(w);
    t->state_dot = 0;
    for (int64_t r = 0; t->sides && r < t->features; r++)
        t->state_dot +=
            dot(behind + r * t->value_stride, w->state_gradient + r * t->value_stride, t->columns + t->extra);
    recede(w);
    t->row->gradient(t);
}

/* ---- a head ---- */

static void keep(const ln_outer_work *w, float *to) {
    const int64_t floats = w->tile.features * w->tile.value_stride;
    memcpy(to, w->state, (size_t)floats * sizeof *to);
    memcpy(to + floats, w->tile.side, (size_t)w->tile.sides * sizeof *to);
}
static void restore(ln_outer_work *w, const float *from) {
    const int64_t floats = w->tile.features * w->tile.value_stride;
    memcpy(w->state, from, (size_t)floats * sizeof *from);
    memcpy(w->tile.side, from + floats, (size_t)w->tile.sides * sizeof *from);
}

/* Forward over a chunk without its sums. */
static void pass_chunk(ln_outer_work *w, int64_t chunk, int64_t count) {
    ln_outer_load_chunk(w, chunk * w->chunk, ln_min_i64(w->chunk, count - chunk * w->chunk));
    ln_outer_skip_sums(w);
    ln_outer_advance(w);
}

static void backward_group(ln_outer_work *w, int64_t group, int64_t chunks, int64_t count) {
    const int64_t floats = w->tile.features * w->tile.value_stride + w->tile.sides, first = group * w->group,
                  last = ln_min_i64(chunks, first + w->group);
    restore(w, w->groups + group * floats);
    for (int64_t c = first; c < last; c++) {
        keep(w, w->states + (c - first) * floats);
        pass_chunk(w, c, count);
    }
    keep(w, w->states + (last - first) * floats);
    for (int64_t c = last - 1; c >= first; c--) {
        const float *before = w->states + (c - first) * floats;
        restore(w, before);
        ln_outer_load_chunk(w, c * w->chunk, ln_min_i64(w->chunk, count - c * w->chunk));
        chunk_gradients(w, before, before + floats);
    }
}

static void backward_head(ln_outer_work *w, const backward_run *run, int64_t sequence, int64_t head) {
    const ln_mixer_call *call = run->call;
    ln_outer_tile *t = &w->tile;
    int64_t first, count;
    ln_mixer_span(call->settings, sequence, &first, &count);
    const int64_t chunks = ln_ceil_div(count, w->chunk), groups = ln_ceil_div(chunks, w->group),
                  floats = t->features * t->value_stride + t->sides;
    t->parameter_gradients = run->parameter_gradients + (sequence * call->settings->heads + head) * run->parameters;
    ln_outer_begin(w, sequence, head, ln_mixer_state_out_gradient(call, sequence, head), NULL);
    memcpy(w->state_gradient, w->state, (size_t)(t->features * t->value_stride) * sizeof(float));
    memcpy(t->side_gradient, t->side, (size_t)t->sides * sizeof(float));
    ln_outer_begin(w, sequence, head, ln_mixer_state_in(call, sequence, head), NULL);
    for (int64_t c = 0; c <= (groups - 1) * w->group; c++) {
        if (c % w->group == 0) keep(w, w->groups + c / w->group * floats);
        if (c < (groups - 1) * w->group) pass_chunk(w, c, count);
    }
    for (int64_t g = groups - 1; g >= 0; g--) backward_group(w, g, chunks, count);
    float *out = ln_mixer_state_in_gradient(call, sequence, head);
    if (out) {
        memcpy(t->side, t->side_gradient, (size_t)t->sides * sizeof(float));
        ln_outer_end(w, w->state_gradient, out, true);
    }
}

static void backward_task(void *argument, int64_t task, int worker) {
    const backward_run *run = argument;
    const linnet_mixer_settings *s = run->call->settings;
    const int64_t sequence = task / run->owners, owner = task % run->owners;
    int64_t first, count;
    ln_mixer_span(s, sequence, &first, &count);
    if (count == 0) return;
    ln_outer_work w;
    ln_outer_open(&w, run->call, LINNET_MIXER_BACKWARD, worker);
    for (int64_t head = 0; head < s->heads; head++)
        if (run->owners == 1 || ln_mixer_key_head(s, head) == owner) backward_head(&w, run, sequence, head);
}

/* Of all sequences, and of the heads that share a parameter, in ascending order. */
static void sum_parameters(const backward_run *run) {
    const ln_mixer_call *call = run->call;
    const float *from = run->parameter_gradients;
    for (int64_t lane = 0; lane < call->settings->sequences * call->settings->heads; lane++)
        for (int k = 0; call->mixer->inputs[k].name; k++) {
            if (!(call->mixer->inputs[k].flags & LN_PARAMETER)) continue;
            const int64_t columns = ln_mixer_columns(&call->mixer->inputs[k], call->settings);
            float *to = ln_mixer_gradient(call, k, lane % call->settings->heads, 0, 0);
            if (to) call->kernels->vector.add(to, from, columns);
            from += columns;
        }
}

void ln_outer_backward(const ln_mixer_call *call) {
    const linnet_mixer_settings *s = call->settings;
    backward_run run = {.call = call, .owners = s->key_heads, .parameters = ln_outer_parameters(call->mixer, s)};
    for (const ln_mixer_input *i = call->mixer->inputs; i->name; i++)
        if (i->heads == LN_HEADS_ONE && !(i->flags & LN_PARAMETER)) run.owners = 1;
    ln_outer_work w = {0};
    const uint64_t each = ln_outer_layout(&w, call->mixer, s, LINNET_MIXER_BACKWARD, NULL);
    run.parameter_gradients =
        (float *)(void *)((unsigned char *)call->workspace + each * (uint64_t)ln_team_size(call->team));
    memset(run.parameter_gradients, 0, (size_t)(s->sequences * s->heads * run.parameters) * sizeof(float));
    ln_parallel(call->team, s->sequences * run.owners, backward_task, &run);
    sum_parameters(&run);
}
