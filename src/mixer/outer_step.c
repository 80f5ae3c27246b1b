/* Owns: one token of the outer core: the state is read once and written once. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "mixer/outer_inside.h"

/* The same for an extra column, whose state is a row of features. */
static void step_extra(const ln_tile_step *s, const float *in, float *out, float value, float decay, float *sum) {
    float total = 0;
    for (int64_t r = 0; r < s->features; r++) {
        const float old = in ? in[r] : 0, kept = (s->rows ? s->rows[r] : 1) * decay * old + s->key[r] * value;
        total += s->query[r] * (s->bonus ? old + s->bonus[r] * s->key[r] * value : kept);
        if (out) out[r] = kept;
    }
    *sum = s->scale * total;
}

static void step_task(void *argument, int64_t task, int worker) {
    const ln_mixer_call *call = argument;
    const linnet_mixer_settings *s = call->settings;
    const int64_t sequence = task / s->heads, head = task % s->heads;
    ln_outer_work w;
    ln_outer_open(&w, call, LINNET_MIXER_STEP, worker);
    ln_outer_tile *t = &w.tile;
    const float *in = ln_mixer_state_in(call, sequence, head);
    float *out = ln_mixer_state_out(call, sequence, head);
    const int64_t extra_at = t->features * t->columns, side_at = extra_at + t->extra * t->features;
    t->sequence = sequence;
    t->head = head;
    t->count = 1;
    for (int64_t i = 0; i < t->sides; i++) t->side[i] = in ? in[side_at + i] : 0;
    t->row->load(t);
    ln_tile_step step = {.out = out ? out : w.state,
                         .in = in,
                         .stride = t->columns,
                         .features = t->features,
                         .columns = t->columns,
                         .query = t->query,
                         .key = t->key,
                         .value = t->value,
                         .bonus = t->row->before ? t->bonus : NULL,
                         .scale = s->scale,
                         .sums = t->sums};
    if (t->row->decay == LN_OUTER_DECAY)
        for (int64_t r = 0; r < t->features; r++) w.decays[r] = r ? w.decays[0] : expf(t->decay[0]);
    else if (t->row->decay != LN_OUTER_NO_DECAY)
        w.vector->exponential(w.decays, t->decay, 0, w.gates.channels);
    const bool by_value = t->row->decay == LN_OUTER_VALUE_DECAY;
    if (by_value)
        step.columns_decay = w.decays;
    else if (t->row->decay != LN_OUTER_NO_DECAY)
        step.rows = w.decays;
    w.kernels->step_outer(&step);
    for (int64_t e = 0; e < t->extra; e++) {
        const int64_t at = extra_at + e * t->features;
        step_extra(&step, in ? in + at : NULL, out ? out + at : NULL, t->value[t->columns + e],
                   by_value ? w.decays[t->columns + e] : 1, t->sums + t->columns + e);
    }
    for (int64_t i = 0; out && i < t->sides; i++) out[side_at + i] = t->side[i];
    if (t->row->finish)
        t->row->finish(t);
    else
        memcpy(ln_mixer_output(call, head, sequence, 0), t->sums, (size_t)t->columns * sizeof(float));
}

void ln_outer_step(const ln_mixer_call *call) {
    ln_parallel(call->team, call->settings->sequences * call->settings->heads, step_task, (void *)(uintptr_t)call);
}
