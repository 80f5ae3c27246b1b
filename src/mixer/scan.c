/* Owns: the driver of the elementwise scan: blocks of channels and time, states in and out, and what is kept for the
 * way back.
 *
 * Invariant: one task owns its channels of all sequences going backward, of one sequence going forward; so each state
 * and each gradient of a parameter has one writer, and sums have one order. */
#include "mixer/scan.h"

#include <string.h>

#include "number/format.h"

enum { NARROWEST = 32, WIDEST = 2048 }; /* channels of a task: whole vectors of any instruction set */

/* ---- extents ---- */

/* Of a row of an input or of a part of the states: `lines` runs of `length` floats, `stride` apart from `from` on; the
 * task keeps `kept` floats of each. Runs that touch are one. */
typedef struct extents {
    int64_t from, lines, length, stride, kept;
} extents;

static extents extents_of(const ln_scan_task *task, ln_axis rows, ln_axis columns, int64_t times) {
    const linnet_mixer_settings *s = task->call->settings;
    const int64_t length = ln_axis_of(columns, s);
    extents e = {0, ln_axis_of(rows, s) * times, length, length, columns == LN_AXIS_SLOT ? task->padded : length};
    if (rows == LN_AXIS_VALUE) {
        e.from = task->first * times * length;
        e.lines = task->channels * times;
    } else if (columns == LN_AXIS_VALUE) {
        e.from = task->first;
        e.length = e.kept = task->channels;
    }
    if (e.length == e.stride && e.length == e.kept && e.lines > 0) {
        e.length = e.stride = e.kept = e.length * e.lines;
        e.lines = 1;
    }
    return e;
}

static extents extents_of_input(const ln_scan_task *task, int input) {
    const ln_mixer_input *i = &task->call->mixer->inputs[input];
    return extents_of(task, i->rows, i->columns, i->times ? i->times : 1);
}

static extents extents_of_part(const ln_scan_task *task, int part) {
    const ln_mixer_state *p = &task->call->mixer->states[part];
    return extents_of(task, p->rows, p->columns, p->times ? p->times : 1);
}

static int64_t blocks_of(const ln_scan_row *row, const linnet_mixer_settings *settings, int64_t width) {
    return row->whole ? 1 : ln_ceil_div(settings->value_size, width);
}

/* Forward, channels do not meet, and blocks of any width give the same bits: two for each thread, up to what the row
 * can use. Backward their sums meet, and the width is fixed. */
static int64_t width_of(const ln_scan_row *row, const linnet_mixer_settings *settings, int threads, bool backward) {
    if (backward) return LN_SCAN_CHANNELS;
    const int64_t blocks = threads > 1 ? ln_ceil_div(2 * threads, settings->heads) : 1,
                  most = row->wide ? WIDEST : LN_SCAN_CHANNELS;
    const int64_t width = ln_ceil_div(ln_ceil_div(settings->value_size, blocks), NARROWEST) * NARROWEST;
    return ln_min_i64(ln_max_i64(width, NARROWEST), most);
}

int64_t ln_scan_blocks(const ln_scan_row *row, const linnet_mixer_settings *settings) {
    return blocks_of(row, settings, LN_SCAN_CHANNELS);
}

int64_t ln_scan_columns(const ln_scan_task *task, int input) {
    const extents e = extents_of_input(task, input);
    return e.lines * e.kept;
}

float *ln_scan_carve(ln_carver *carver, int64_t rows, int64_t columns) {
    return ln_carve(carver, (uint64_t)rows, (uint64_t)columns * sizeof(float));
}

/* ---- inputs, outputs ---- */

static int64_t head_of(const ln_scan_task *task, int input) {
    const ln_heads heads = task->call->mixer->inputs[input].heads;
    if (heads == LN_HEADS_ONE) return 0;
    return heads == LN_HEADS_KEY ? ln_mixer_key_head(task->call->settings, task->head) : task->head;
}

static void copy_lines(extents e, const float *from, const uint16_t *half, float *to) {
    for (int64_t line = 0; line < e.lines; line++, to += e.kept) {
        if (half)
            for (int64_t i = 0; i < e.length; i++) to[i] = ln_bf16_float(half[line * e.stride + i]);
        else
            memcpy(to, from + line * e.stride, (size_t)e.length * sizeof *to);
        for (int64_t i = e.length; i < e.kept; i++) to[i] = 0;
    }
}

ln_series ln_scan_input(const ln_scan_task *task, int input, int64_t step, int64_t count, float *buffer) {
    const ln_mixer_call *call = task->call;
    const ln_mixer_input *i = &call->mixer->inputs[input];
    const linnet_tensor *t = &call->tensors->input[input];
    if (!t->data) return (ln_series){0};
    const extents e = extents_of_input(task, input);
    int64_t at = head_of(task, input) * t->head_stride + e.from, stride = 0;
    if (!(i->flags & LN_PARAMETER)) {
        at += ln_mixer_token(call, task->sequence, step) * t->token_stride;
        stride = call->settings->reverse ? -t->token_stride : t->token_stride;
    } else {
        count = 1;
    }
    const bool half = i->flags & LN_TYPED && call->settings->type == LINNET_BF16;
    if (!half && e.lines == 1 && e.length == e.kept) return (ln_series){(const float *)t->data + at, stride};
    for (int64_t n = 0; n < count; n++) {
        const int64_t row = at + n * stride;
        copy_lines(e, half ? NULL : (const float *)t->data + row, half ? (const uint16_t *)t->data + row : NULL,
                   buffer + n * e.lines * e.kept);
    }
    return (ln_series){buffer, e.lines * e.kept};
}

const float *ln_scan_parameter(const ln_scan_task *task, int input) {
    const linnet_tensor *t = &task->call->tensors->input[input];
    return (const float *)t->data + head_of(task, input) * t->head_stride + extents_of_input(task, input).from;
}

void ln_scan_add_gradient(const ln_scan_task *task, int input, int64_t step, int64_t count, const float *rows) {
    const extents e = extents_of_input(task, input);
    for (int64_t n = 0; n < count; n++, rows += e.lines * e.kept) {
        float *to = ln_mixer_gradient(task->call, input, task->head, task->sequence, step + n);
        if (!to) return;
        for (int64_t line = 0; line < e.lines; line++)
            for (int64_t i = 0; i < e.length; i++) to[e.from + line * e.stride + i] += rows[line * e.kept + i];
    }
}

void ln_scan_add_packed_gradient(const ln_scan_task *task, int input, const float *row) {
    float *to = ln_mixer_gradient(task->call, input, task->head, 0, 0);
    const int64_t columns = ln_mixer_columns(&task->call->mixer->inputs[input], task->call->settings);
    for (int64_t i = 0; to && i < columns; i++) to[i] += row[i];
}

ln_series_out ln_scan_output(const ln_scan_task *task, int64_t step) {
    const int64_t stride = task->call->tensors->output.token_stride;
    if (task->backward) return (ln_series_out){task->unseen, task->channels};
    return (ln_series_out){ln_mixer_output(task->call, task->head, task->sequence, step) + task->first,
                           task->call->settings->reverse ? -stride : stride};
}

ln_series ln_scan_output_gradient(const ln_scan_task *task, int64_t step) {
    const int64_t stride = task->call->tensors->output_gradient.token_stride;
    return (ln_series){ln_mixer_output_gradient(task->call, task->head, task->sequence, step) + task->first,
                       task->call->settings->reverse ? -stride : stride};
}

/* ---- states ---- */

static void take_states(const ln_scan_task *task, const float *from, float *to) {
    const ln_mixer_state *parts = task->call->mixer->states;
    if (!from) memset(to, 0, (size_t)task->part[LINNET_MIXER_STATES] * sizeof *to);
    for (int p = 0; from && parts[p].name; p++) {
        extents e = extents_of_part(task, p);
        const ln_mixer_state *part = &parts[p];
        copy_lines(e, from + e.from, NULL, to + task->part[p]);
        from += ln_axis_of(part->rows, task->call->settings) * ln_axis_of(part->columns, task->call->settings) *
                (part->times ? part->times : 1);
    }
}

static void give_states(const ln_scan_task *task, const float *from, float *to) {
    const ln_mixer_state *parts = task->call->mixer->states;
    for (int p = 0; to && parts[p].name; p++) {
        const extents e = extents_of_part(task, p);
        const ln_mixer_state *part = &parts[p];
        for (int64_t line = 0; line < e.lines; line++)
            memcpy(to + e.from + line * e.stride, from + task->part[p] + line * e.kept, (size_t)e.length * sizeof *to);
        to += ln_axis_of(part->rows, task->call->settings) * ln_axis_of(part->columns, task->call->settings) *
              (part->times ? part->times : 1);
    }
}

/* ---- tasks ---- */

const float *ln_scan_checkpoint(const ln_scan_task *task, int64_t step) {
    return task->checkpoints + step / LN_SCAN_STEPS * task->part[LINNET_MIXER_STATES];
}

typedef struct job {
    const ln_mixer_call *call;
    bool backward, each_sequence; /* a task is of one sequence */
    int64_t width;                /* channels of a task */
    uint64_t worker_bytes;
    unsigned char *workers;
    float *shared;
} job;

static int64_t padded_slots(const ln_kernels *kernels, const linnet_mixer_settings *settings) {
    return ln_ceil_div(settings->slots, kernels->scan.lanes) * kernels->scan.lanes;
}

static void lay_out(ln_scan_task *task, ln_carver *carver) {
    task->part[0] = 0;
    int p = 0;
    for (; task->call->mixer->states[p].name; p++) {
        const extents e = extents_of_part(task, p);
        task->part[p + 1] = task->part[p] + e.lines * e.kept;
    }
    task->part[LINNET_MIXER_STATES] = task->part[p];
    const int64_t floats = task->part[p];
    task->state = ln_scan_carve(carver, 1, floats);
    if (task->backward) {
        task->state_gradient = ln_scan_carve(carver, 1, floats);
        task->unseen = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
        task->checkpoints = ln_scan_carve(carver, ln_ceil_div(task->call->settings->tokens, LN_SCAN_STEPS), floats);
    }
    task->row->lay_out(task, carver);
}

static ln_scan_task task_of(const ln_mixer_call *call, bool backward, int64_t block, int64_t width) {
    const linnet_mixer_settings *s = call->settings;
    const ln_scan_row *row = call->mixer->core_row;
    const int64_t blocks = blocks_of(row, s, width), within = block % blocks, first = within * width;
    return (ln_scan_task){.call = call,
                          .row = row,
                          .kernels = &call->kernels->scan,
                          .backward = backward,
                          .head = block / blocks,
                          .first = first,
                          .channels = row->whole ? s->value_size : ln_min_i64(width, s->value_size - first),
                          .block = block,
                          .padded = padded_slots(call->kernels, s)};
}

/* Of one worker. */
static ln_carver worker_room(const ln_mixer *mixer, const ln_kernels *kernels, const linnet_mixer_settings *settings,
                             int threads, bool backward) {
    const ln_mixer_call call = {.mixer = mixer, .kernels = kernels, .settings = settings};
    ln_scan_task task =
        task_of(&call, backward, 0, width_of(mixer->core_row, settings, threads, backward)); /* no other is larger */
    ln_carver carver = {0};
    lay_out(&task, &carver);
    return carver;
}

static uint64_t shared_bytes(const ln_mixer *mixer, const ln_kernels *kernels, const linnet_mixer_settings *settings,
                             bool backward) {
    const ln_scan_row *row = mixer->core_row;
    if (!backward || !row->shared_floats) return 0;
    const int64_t blocks = ln_scan_blocks(row, settings) * settings->heads;
    return ln_round_up(row->shared_floats(settings, padded_slots(kernels, settings), blocks) * sizeof(float), 64);
}

uint64_t ln_scan_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                           const linnet_mixer_settings *settings, linnet_mixer_form form) {
    const bool backward = form == LINNET_MIXER_BACKWARD;
    const ln_carver room = worker_room(mixer, kernels, settings, threads, backward);
    uint64_t bytes;
    return ln_add_u64(ln_carved(&room, threads), shared_bytes(mixer, kernels, settings, backward), &bytes) ? bytes
                                                                                                           : UINT64_MAX;
}

/* Where the states that come out may be worked on in place: they lie as the task would keep them. */
static float *in_place(const ln_scan_task *task) {
    float *out = ln_mixer_state_out(task->call, task->sequence, task->head);
    const extents e = extents_of_part(task, 0);
    const bool alike = e.lines == 1 && e.length == e.kept && !task->call->mixer->states[1].name;
    return alike && out && !task->backward ? out + e.from : NULL;
}

static void walk(ln_scan_task *task, int64_t count) {
    const float *in = ln_mixer_state_in(task->call, task->sequence, task->head);
    float *out = ln_mixer_state_out(task->call, task->sequence, task->head), *own = task->state;
    float *const direct = in_place(task);
    if (direct) task->state = direct;
    if (!direct || in != out) take_states(task, in, task->state);
    for (int64_t step = 0; step < count; step += LN_SCAN_STEPS) {
        const int64_t floats = task->part[LINNET_MIXER_STATES];
        if (task->backward)
            memcpy(task->checkpoints + step / LN_SCAN_STEPS * floats, task->state, (size_t)floats * sizeof(float));
        if (task->backward && step + LN_SCAN_STEPS >= count) break;
        task->row->block(task, step, ln_min_i64(LN_SCAN_STEPS, count - step));
    }
    if (!direct) give_states(task, task->state, out);
    task->state = own;
}

static void walk_back(ln_scan_task *task, int64_t count) {
    const int64_t floats = task->part[LINNET_MIXER_STATES];
    take_states(task, ln_mixer_state_out_gradient(task->call, task->sequence, task->head), task->state_gradient);
    for (int64_t step = (count - 1) / LN_SCAN_STEPS * LN_SCAN_STEPS; step >= 0; step -= LN_SCAN_STEPS) {
        memcpy(task->state, ln_scan_checkpoint(task, step), (size_t)floats * sizeof(float));
        task->row->gradient(task, step, ln_min_i64(LN_SCAN_STEPS, count - step));
    }
    give_states(task, task->state_gradient, ln_mixer_state_in_gradient(task->call, task->sequence, task->head));
}

static void run_task(void *argument, int64_t index, int worker) {
    const job *j = argument;
    const linnet_mixer_settings *s = j->call->settings;
    const int64_t units = blocks_of(j->call->mixer->core_row, s, j->width) * s->heads;
    ln_scan_task task = task_of(j->call, j->backward, index % units, j->width);
    ln_carver carver = {.base = j->workers + (uint64_t)worker * j->worker_bytes};
    lay_out(&task, &carver);
    task.shared = j->shared;
    task.row->prepare(&task);
    const int64_t from = j->each_sequence ? index / units : 0, to = j->each_sequence ? from + 1 : s->sequences;
    for (task.sequence = from; task.sequence < to; task.sequence++) {
        int64_t first, count;
        ln_mixer_span(s, task.sequence, &first, &count);
        if (count == 0) continue;
        walk(&task, count);
        if (j->backward) walk_back(&task, count);
    }
    if (j->backward && task.row->finish) task.row->finish(&task);
}

static void run(const ln_mixer_call *call, bool backward) {
    const ln_scan_row *row = call->mixer->core_row;
    const linnet_mixer_settings *s = call->settings;
    const uint64_t shared = shared_bytes(call->mixer, call->kernels, s, backward);
    const int threads = ln_team_size(call->team);
    const int64_t width = width_of(row, s, threads, backward);
    const int64_t units = blocks_of(row, s, width) * s->heads;
    job j = {.call = call,
             .backward = backward,
             .each_sequence = !backward && units < 2 * threads,
             .width = width,
             .worker_bytes = worker_room(call->mixer, call->kernels, s, threads, backward).used,
             .workers = (unsigned char *)call->workspace + shared,
             .shared = call->workspace};
    ln_parallel(call->team, units * (j.each_sequence ? s->sequences : 1), run_task, &j);
    if (backward && row->gather) row->gather(call, j.shared);
}

void ln_scan_forward(const ln_mixer_call *call) {
    run(call, false);
}

void ln_scan_backward(const ln_mixer_call *call) {
    run(call, true);
}
