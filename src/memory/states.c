/* Owns: recurrent states and their snapshots (states.h).
 *
 * All lie in one block of `2 + snapshots` copies of the floats of all layers: copies `now` and `next` are exchanged by
 * a commit. Invariant: positions[0 .. held - 1] ascend and are later than 0; snapshot i is in copy 2 + places[i]. */
#include "memory/states.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/context.h"

enum { SNAPSHOTS_MOST = 1 << 16 };

struct ln_states {
    linnet_context *context;
    ln_states_shape shape;
    int64_t *offsets;   /* [layers + 1] */
    int64_t *positions; /* [snapshots] */
    int64_t *places;    /* [snapshots]: a permutation, of which the first `held` are in use */
    int64_t held;
    float *block;
    int now;        /* copy that is read: 0 or 1 */
    int64_t before; /* what the other copy holds; -1: nothing */
};

/* ---- sizes ---- */

bool ln_states_any(const ln_states_shape *shape) {
    for (int64_t i = 0; shape->floats && i < shape->layers; i++)
        if (shape->floats[i]) return true;
    return false;
}

/* Norms that are remembered of a layer, in whole cache lines. */
static int64_t remembered(const ln_states_shape *shape, int64_t layer) {
    return shape->heads && shape->limits.reference ? (shape->heads[layer].count + 15) / 16 * 16 : 0;
}

static bool sizes(const ln_states_shape *shape, uint64_t *floats, uint64_t *block) {
    *floats = 0;
    if (shape->snapshots < 0 || shape->snapshots > SNAPSHOTS_MOST || shape->interval < 0) return false;
    for (int64_t i = 0; i < shape->layers; i++)
        if (shape->floats[i] < 0 || shape->floats[i] % 16 ||
            !ln_add_u64(*floats, (uint64_t)(shape->floats[i] + remembered(shape, i)), floats))
            return false;
    return ln_multiply_u64(*floats, (uint64_t)(2 + shape->snapshots) * sizeof(float), block) && *block < UINT64_MAX / 2;
}

static uint64_t table_bytes(const ln_states_shape *shape) {
    return sizeof(ln_states) + (uint64_t)(2 * shape->layers + 1 + 2 * shape->snapshots) * sizeof(int64_t) +
           (shape->heads ? (uint64_t)shape->layers * sizeof *shape->heads : 0);
}

uint64_t ln_states_bytes(const ln_states_shape *shape) {
    uint64_t floats, block;
    if (!sizes(shape, &floats, &block)) return UINT64_MAX;
    return ln_allocated_bytes(table_bytes(shape)) + ln_allocated_bytes(block);
}

/* ---- opening and closing ---- */

static size_t copy_floats(const ln_states *states) {
    return (size_t)states->offsets[states->shape.layers];
}

static float *copy_at(const ln_states *states, int64_t copy) {
    return states->block + (size_t)copy * copy_floats(states);
}

static void clear(ln_states *states) {
    memset(copy_at(states, states->now), 0, copy_floats(states) * sizeof(float));
    states->before = -1;
    states->held = 0;
}

linnet_status ln_states_open(linnet_context *context, const ln_states_shape *shape, ln_states **states) {
    *states = NULL;
    uint64_t floats, block;
    if (!sizes(shape, &floats, &block))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "recurrent states and %lld snapshots of them cannot be addressed", (long long)shape->snapshots);
    ln_states *made = ln_allocate_zero(context, 1, table_bytes(shape), "recurrent states");
    if (!made) return LINNET_ERROR_MEMORY;
    made->context = context;
    made->shape = *shape;
    int64_t *sizes_of = (int64_t *)(void *)(made + 1);
    memcpy(sizes_of, shape->floats, (size_t)shape->layers * sizeof *sizes_of);
    made->shape.floats = sizes_of;
    made->offsets = sizes_of + shape->layers;
    made->positions = made->offsets + shape->layers + 1;
    made->places = made->positions + shape->snapshots;
    if (shape->heads) {
        ln_state_heads *heads = (ln_state_heads *)(void *)(made->places + shape->snapshots);
        made->shape.heads = memcpy(heads, shape->heads, (size_t)shape->layers * sizeof *heads);
    }
    for (int64_t i = 0; i < shape->layers; i++)
        made->offsets[i + 1] = made->offsets[i] + sizes_of[i] + remembered(shape, i);
    for (int64_t i = 0; i < shape->snapshots; i++) made->places[i] = i;
    made->block = ln_allocate(context, 1, block, "recurrent states");
    if (!made->block) {
        ln_release(context, made);
        return LINNET_ERROR_MEMORY;
    }
    clear(made);
    *states = made;
    return LINNET_OK;
}

void ln_states_close(ln_states *states) {
    if (!states) return;
    ln_release(states->context, states->block);
    ln_release(states->context, states);
}

linnet_status ln_states_fork(const ln_states *states, ln_states **fork) {
    const linnet_status status = ln_states_open(states->context, &states->shape, fork);
    if (status != LINNET_OK) return status;
    ln_states *made = *fork;
    const size_t bytes = copy_floats(states) * sizeof(float);
    memcpy(copy_at(made, made->now), copy_at(states, states->now), bytes);
    made->before = states->before;
    if (made->before >= 0) memcpy(copy_at(made, !made->now), copy_at(states, !states->now), bytes);
    made->held = states->held;
    memcpy(made->positions, states->positions, (size_t)states->held * sizeof *made->positions);
    for (int64_t i = 0; i < made->held; i++)
        memcpy(copy_at(made, 2 + i), copy_at(states, 2 + states->places[i]), bytes);
    return LINNET_OK;
}

/* ---- pieces ---- */

const float *ln_states_now(const ln_states *states, int64_t layer) {
    return copy_at(states, states->now) + states->offsets[layer];
}

float *ln_states_next(ln_states *states, int64_t layer) {
    states->before = -1;
    return copy_at(states, !states->now) + states->offsets[layer];
}

/* |x|, added up in an order that is always the same. */
static double norm_of(const float *x, int64_t n) {
    enum { LANES = 8 };
    double sum[LANES] = {0}, all = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += (double)x[i + k] * (double)x[i + k];
    for (; i < n; i++) all += (double)x[i] * (double)x[i];
    for (int k = 0; k < LANES; k++) all += sum[k];
    return sqrt(all);
}

/* The next state of a layer, complete, before it becomes what is there. A state that is no number stays so. */
static void settle(ln_states *states, int64_t layer, int64_t before, int64_t after) {
    const ln_state_heads *heads = &states->shape.heads[layer];
    const ln_state_limits *limits = &states->shape.limits;
    float *next = copy_at(states, !states->now) + states->offsets[layer];
    float *early = next + states->shape.floats[layer];
    const int64_t count = remembered(&states->shape, layer);
    if (count) memcpy(early, ln_states_now(states, layer) + states->shape.floats[layer], (size_t)count * sizeof *early);
    const bool reached = count && before < limits->reference && after >= limits->reference;
    if (!reached && limits->growth <= 0 && limits->norm <= 0) return;
    for (int64_t h = 0; h < heads->count; h++) {
        float *state = next + heads->offset + h * heads->floats;
        const double norm = norm_of(state, heads->floats);
        if (reached) early[h] = (float)norm;
        double most = limits->norm > 0 ? limits->norm : (double)INFINITY;
        if (limits->growth > 0 && count && early[h] > 0) most = fmin(most, limits->growth * (double)early[h]);
        if (!isfinite(norm) || norm <= most) continue;
        const float scale = (float)(most / norm);
        for (int64_t i = 0; i < heads->floats; i++) state[i] *= scale;
    }
}

void ln_states_commit(ln_states *states, int64_t before, int64_t after) {
    const int64_t interval = states->shape.interval;
    for (int64_t i = 0; states->shape.heads && i < states->shape.layers; i++) settle(states, i, before, after);
    states->now = !states->now;
    states->before = before;
    if (interval && after / interval > before / interval) ln_states_mark(states, after);
}

/* ---- snapshots ---- */

/* Which snapshot goes: its neighbours, 0 and `position` among them, are the closest. */
static int64_t victim(const ln_states *states, int64_t position) {
    int64_t best = 0, least = INT64_MAX;
    for (int64_t i = 0; i < states->held; i++) {
        const int64_t from = i ? states->positions[i - 1] : 0,
                      to = i + 1 < states->held ? states->positions[i + 1] : position;
        if (to - from >= least) continue;
        least = to - from;
        best = i;
    }
    return best;
}

void ln_states_mark(ln_states *states, int64_t position) {
    if (position <= 0 || states->shape.snapshots == 0) return;
    if (states->held && states->positions[states->held - 1] >= position) return;
    if (states->held == states->shape.snapshots) {
        const int64_t gone = victim(states, position), place = states->places[gone];
        const size_t after = (size_t)(states->held - 1 - gone);
        memmove(states->positions + gone, states->positions + gone + 1, after * sizeof *states->positions);
        memmove(states->places + gone, states->places + gone + 1, after * sizeof *states->places);
        states->places[--states->held] = place;
    }
    memcpy(copy_at(states, 2 + states->places[states->held]), copy_at(states, states->now),
           copy_floats(states) * sizeof(float));
    states->positions[states->held++] = position;
}

int64_t ln_states_point(const ln_states *states, int64_t now, int64_t position) {
    if (position >= now) return now;
    int64_t best = 0;
    if (states->before >= 0 && states->before <= position) best = states->before;
    for (int64_t i = 0; i < states->held; i++)
        if (states->positions[i] <= position) best = ln_max_i64(best, states->positions[i]);
    return best;
}

void ln_states_rewind(ln_states *states, int64_t now, int64_t position) {
    if (position == now) return;
    int64_t held = 0;
    while (held < states->held && states->positions[held] <= position) held++;
    if (position == 0) {
        clear(states);
    } else if (states->before == position) {
        states->now = !states->now;
    } else {
        memcpy(copy_at(states, states->now), copy_at(states, 2 + states->places[held - 1]),
               copy_floats(states) * sizeof(float));
    }
    states->before = -1;
    states->held = held;
}

/* ---- norms ---- */

int64_t ln_states_heads(const ln_states *states, int64_t layer, int64_t *floats) {
    if (!states->shape.heads) return *floats = 0;
    *floats = states->shape.heads[layer].floats;
    return states->shape.heads[layer].count;
}

void ln_states_norms(const ln_states *states, int64_t layer, double *norms, double *early) {
    const float *state = ln_states_now(states, layer), *kept = state + states->shape.floats[layer];
    const ln_state_heads *heads = &states->shape.heads[layer];
    const bool known = remembered(&states->shape, layer) > 0;
    for (int64_t h = 0; h < heads->count; h++) {
        norms[h] = norm_of(state + heads->offset + h * heads->floats, heads->floats);
        early[h] = known ? (double)kept[h] : 0;
    }
}

int64_t ln_states_room(const ln_states *states, int64_t position, int64_t tokens) {
    const int64_t left = states->shape.limits.reference - position;
    return left > 0 ? ln_min_i64(left, tokens) : tokens;
}

/* ---- in a file ---- */

static int64_t stored(const ln_states *states, int64_t layer) {
    return states->offsets[layer + 1] - states->offsets[layer];
}

void ln_states_write(const ln_states *states, ln_state_writer *writer) {
    for (int64_t i = 0; i < states->shape.layers; i++) {
        ln_state_put_i64(writer, stored(states, i));
        ln_state_put(writer, ln_states_now(states, i), (uint64_t)stored(states, i) * sizeof(float));
    }
}

bool ln_states_read(ln_states *states, ln_state_reader *reader, bool store) {
    if (store) clear(states);
    for (int64_t i = 0; i < states->shape.layers; i++) {
        int64_t floats;
        if (!ln_state_take_i64(reader, &floats) || floats != stored(states, i)) return false;
        float *to = store ? copy_at(states, states->now) + states->offsets[i] : NULL;
        if (!ln_state_take(reader, to, (uint64_t)floats * sizeof(float))) return false;
    }
    return true;
}
