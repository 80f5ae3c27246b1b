/* Owns: going back through a recurrence by way of kept states (mixer/replay.h), and where states are read from. */
#include "mixer/replay.h"

#include <math.h>
#include <string.h>

static void copy_or_clear(float *to, const float *from, int64_t floats) {
    if (from)
        memmove(to, from, (size_t)floats * sizeof *to);
    else
        memset(to, 0, (size_t)floats * sizeof *to);
}

void ln_mixer_read_state(const ln_mixer_call *call, int64_t sequence, int64_t head, float *state) {
    copy_or_clear(state, ln_mixer_state_in(call, sequence, head), call->head_floats);
}

void ln_mixer_read_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head, float *gradient) {
    copy_or_clear(gradient, ln_mixer_state_out_gradient(call, sequence, head), call->head_floats);
}

ln_replay ln_replay_carve(ln_carver *carver, int64_t floats, int64_t pieces) {
    ln_replay r = {.floats = floats, .segment = (int64_t)ceil(sqrt((double)ln_max_i64(pieces, 1)))};
    r.segments = ln_ceil_div(ln_max_i64(pieces, 1), r.segment);
    uint64_t states = 0, kept = 0;
    if (!ln_multiply_u64((uint64_t)r.segment, (uint64_t)floats, &states) ||
        !ln_multiply_u64((uint64_t)r.segments, (uint64_t)floats, &kept))
        carver->overflow = true;
    r.states = ln_carve(carver, states, sizeof(float));
    r.kept = ln_carve(carver, kept, sizeof(float));
    return r;
}

void ln_replay_run(const ln_replay *r, int64_t pieces, const ln_replay_steps *steps) {
    const size_t bytes = (size_t)r->floats * sizeof(float);
    const int64_t segments = ln_ceil_div(pieces, r->segment);
    for (int64_t i = 0; i + 1 < segments; i++) {
        float *next = r->kept + (i + 1) * r->floats;
        memcpy(next, next - r->floats, bytes);
        for (int64_t p = 0; p < r->segment; p++) steps->forward(steps->argument, next, i * r->segment + p);
    }
    for (int64_t i = segments - 1; i >= 0; i--) {
        const int64_t first = i * r->segment, end = ln_min_i64(first + r->segment, pieces);
        memcpy(r->states, r->kept + i * r->floats, bytes);
        for (int64_t p = first; p + 1 < end; p++) {
            float *next = r->states + (p + 1 - first) * r->floats;
            memcpy(next, next - r->floats, bytes);
            steps->forward(steps->argument, next, p);
        }
        for (int64_t p = end - 1; p >= first; p--)
            steps->backward(steps->argument, r->states + (p - first) * r->floats, p);
    }
}
