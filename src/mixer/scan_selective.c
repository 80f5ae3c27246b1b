/* Owns: the selective scan as rows of the elementwise scan.
 *
 *     h[c][n] = e^(step[c] rate[c][n]) h[c][n] + step[c] value[c] key[n],   y[c] = sum_n query[n] h[c][n] + skip[c]
 * value[c]
 *
 * complex where there are frequencies. All channels of a group read the same keys and queries: their gradients are
 * summed within a task by the kernel, over tasks in ascending order when all are done. */
#include <string.h>

#include "mixer/scan.h"

enum { VALUE, STEP, RATE, KEY, QUERY, SKIP, FREQUENCY, INPUTS };
/* Buffers: those of the inputs, then these. */
enum { VALUE_D = INPUTS, STEP_D, RATE_D, FREQUENCY_D, SKIP_D, HISTORY, RAW };

static int inputs_of(const ln_mixer *mixer) {
    return mixer->inputs[KEY].times == 2 ? INPUTS : FREQUENCY;
}

static void lay_out(ln_scan_task *task, ln_carver *carver) {
    const int inputs = inputs_of(task->call->mixer);
    for (int k = VALUE; k < inputs; k++) {
        const bool parameter = task->call->mixer->inputs[k].flags & LN_PARAMETER;
        task->buffer[k] = ln_scan_carve(carver, parameter ? 1 : LN_SCAN_STEPS, ln_scan_columns(task, k));
    }
    if (!task->backward) return;
    task->buffer[VALUE_D] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
    task->buffer[STEP_D] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
    task->buffer[RAW] = ln_scan_carve(carver, LN_SCAN_STEPS, task->channels);
    task->buffer[RATE_D] = ln_scan_carve(carver, 1, ln_scan_columns(task, RATE));
    task->buffer[FREQUENCY_D] = ln_scan_carve(carver, 1, ln_scan_columns(task, RATE));
    task->buffer[SKIP_D] = ln_scan_carve(carver, 1, task->channels);
    task->buffer[HISTORY] =
        ln_scan_carve(carver, (LN_SCAN_STEPS + 1) * task->kernels->lanes, ln_scan_columns(task, KEY));
}

static const float *parameter_of(ln_scan_task *task, int input) {
    return ln_scan_input(task, input, 0, 1, task->buffer[input]).at;
}

static void prepare(ln_scan_task *task) {
    task->constant[RATE] = parameter_of(task, RATE);
    task->constant[SKIP] = parameter_of(task, SKIP);
    task->constant[FREQUENCY] = inputs_of(task->call->mixer) == INPUTS ? parameter_of(task, FREQUENCY) : NULL;
    if (!task->backward) return;
    memset(task->buffer[RATE_D], 0, (size_t)ln_scan_columns(task, RATE) * sizeof(float));
    memset(task->buffer[FREQUENCY_D], 0, (size_t)ln_scan_columns(task, RATE) * sizeof(float));
    memset(task->buffer[SKIP_D], 0, (size_t)task->channels * sizeof(float));
}

static ln_series rows_of(ln_scan_task *task, int input, int64_t step, int64_t count) {
    return ln_scan_input(task, input, step, count, task->buffer[input]);
}

static ln_selective scan_of(ln_scan_task *task, int64_t step, int64_t count) {
    ln_selective s = {.tokens = count,
                      .channels = task->channels,
                      .states = task->padded,
                      .step = rows_of(task, STEP, step, count),
                      .value = rows_of(task, VALUE, step, count),
                      .write = rows_of(task, KEY, step, count),
                      .read = rows_of(task, QUERY, step, count),
                      .rate = task->constant[RATE],
                      .frequency = task->constant[FREQUENCY],
                      .skip = task->constant[SKIP],
                      .state = task->state};
    if (task->call->settings->option[0] == 0) return s;
    for (int64_t t = 0; t < count; t++)
        task->kernels->softplus(task->buffer[STEP] + t * task->channels, s.step.at + t * s.step.stride, task->channels);
    s.step = (ln_series){task->buffer[STEP], task->channels};
    return s;
}

static void block(ln_scan_task *task, int64_t step, int64_t count) {
    ln_selective s = scan_of(task, step, count);
    s.y = ln_scan_output(task, step);
    task->kernels->selective(&s);
}

/* Floats of keys, and as many of queries, at a token. */
static int64_t shared_columns(const ln_mixer *mixer, int64_t padded) {
    return padded * (inputs_of(mixer) == INPUTS ? 2 : 1);
}

static uint64_t shared_floats(const linnet_mixer_settings *settings, int64_t padded, int64_t blocks) {
    const ln_mixer *mixer = ln_mixer_find(settings->name);
    return (uint64_t)blocks * (uint64_t)settings->tokens * (uint64_t)(2 * shared_columns(mixer, padded));
}

static void gradient(ln_scan_task *task, int64_t step, int64_t count) {
    const int64_t columns = shared_columns(task->call->mixer, task->padded), n = task->channels;
    const int64_t token = ln_mixer_token(task->call, task->sequence, step), tokens = task->call->settings->tokens;
    float *shared = task->shared + (task->block * tokens + token) * 2 * columns;
    const int64_t stride = task->call->settings->reverse ? -2 * columns : 2 * columns;
    ln_selective s = scan_of(task, step, count);
    s.y_gradient = ln_scan_output_gradient(task, step);
    s.value_gradient = (ln_series_out){task->buffer[VALUE_D], n};
    s.step_gradient = (ln_series_out){task->buffer[STEP_D], n};
    s.write_gradient = (ln_series_out){shared, stride};
    s.read_gradient = (ln_series_out){shared + columns, stride};
    s.rate_gradient = task->buffer[RATE_D];
    s.frequency_gradient = task->buffer[FREQUENCY_D];
    s.skip_gradient = task->buffer[SKIP_D];
    s.state_gradient = task->state_gradient;
    s.history = task->buffer[HISTORY];
    for (int64_t t = 0; t < count; t++) memset(shared + t * stride, 0, (size_t)(2 * columns) * sizeof(float));
    task->kernels->selective_backward(&s);
    if (task->call->settings->option[0] != 0) {
        const ln_series raw = ln_scan_input(task, STEP, step, count, task->buffer[RAW]);
        float *d = task->buffer[STEP_D], *slope = task->buffer[STEP];
        for (int64_t t = 0; t < count; t++) {
            task->kernels->sigmoid(slope + t * n, raw.at + t * raw.stride, n);
            for (int64_t c = 0; c < n; c++) d[t * n + c] *= slope[t * n + c];
        }
    }
    ln_scan_add_gradient(task, VALUE, step, count, task->buffer[VALUE_D]);
    ln_scan_add_gradient(task, STEP, step, count, task->buffer[STEP_D]);
}

static void finish(ln_scan_task *task) {
    ln_scan_add_gradient(task, RATE, 0, 1, task->buffer[RATE_D]);
    if (task->constant[FREQUENCY]) ln_scan_add_gradient(task, FREQUENCY, 0, 1, task->buffer[FREQUENCY_D]);
    if (task->constant[SKIP]) ln_scan_add_gradient(task, SKIP, 0, 1, task->buffer[SKIP_D]);
}

typedef struct gathering {
    const ln_mixer_call *call;
    const float *shared;
} gathering;

static void gather_token(void *argument, int64_t token, int worker) {
    (void)worker;
    const gathering *g = argument;
    const ln_mixer_call *call = g->call;
    const linnet_mixer_settings *s = call->settings;
    const int64_t lanes = call->kernels->scan.lanes, padded = ln_ceil_div(s->slots, lanes) * lanes;
    const int64_t columns = shared_columns(call->mixer, padded), parts = columns / padded;
    const int64_t blocks = ln_scan_blocks(&ln_scan_selective, s);
    for (int64_t block = 0; block < blocks * s->heads; block++)
        for (int k = KEY; k <= QUERY; k++) {
            const linnet_tensor *t = &call->tensors->input_gradient[k];
            if (!t->data) continue;
            float *to =
                (float *)t->data + token * t->token_stride + ln_mixer_key_head(s, block / blocks) * t->head_stride;
            const float *from = g->shared + ((block * s->tokens + token) * 2 + (k - KEY)) * columns;
            for (int64_t part = 0; part < parts; part++)
                for (int64_t n = 0; n < s->slots; n++) to[part * s->slots + n] += from[part * padded + n];
        }
}

static void gather(const ln_mixer_call *call, const float *shared) {
    gathering g = {call, shared};
    ln_parallel(call->team, call->settings->tokens, gather_token, &g);
}

const ln_scan_row ln_scan_selective = {.wide = true,
                                       .lay_out = lay_out,
                                       .prepare = prepare,
                                       .block = block,
                                       .gradient = gradient,
                                       .finish = finish,
                                       .shared_floats = shared_floats,
                                       .gather = gather};
