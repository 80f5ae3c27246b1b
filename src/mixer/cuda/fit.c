/* Mixers on a device whose settings no kernel takes as they are: the kernels get other settings, and tensors made to
 * fit them (fit_cuda.h); what they made is brought back. So sizes of heads are any up to the kernels' largest, time may
 * run in reverse, gates of channels be bf16, and gradients float32 where kernels write bf16. The caller's settings are
 * `outer`, the kernels' `settings`. It costs a read and a write of each tensor that does not fit. */
#include <stdio.h>
#include <string.h>

#include "kernel/cuda/runtime_cuda.h"
#include "mixer/cuda/mixer.h"

static int64_t round_up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* ---- which settings fit ---- */

static bool has_axis(const ln_mixer *row, ln_axis axis) {
    for (const ln_mixer_input *i = row->inputs; i->name; i++)
        if (i->rows == axis || i->columns == axis) return true;
    for (const ln_mixer_state *s = row->states; s && s->name; s++)
        if (s->rows == axis || s->columns == axis) return true;
    return false;
}

/* Sizes that there may be kernels for, from `least`; 0 ends the list. */
static void sizes_from(int64_t least, bool used, int64_t sizes[8]) {
    static const int64_t made[] = {8, 16, 32, 64, 128, 256};
    int count = 0;
    sizes[count++] = least;
    for (int i = 0; used && i < 6; i++)
        if (made[i] > least) sizes[count++] = made[i];
    for (int64_t unit = 64; used && least > 256 && unit <= 256; unit *= 4)
        if (least % unit) sizes[count++] = (least + unit - 1) / unit * unit;
    sizes[count] = 0;
}

/* Rows of bf16 begin at multiples of 16 bytes. */
static bool whole_rows(const linnet_cuda_mixer *m, const linnet_mixer_settings *s) {
    for (const ln_mixer_input *i = m->row->inputs; i->name; i++)
        if (i->flags & LN_TYPED && ln_mixer_columns(i, s) % 8) return false;
    return ln_axis_of(m->row->output, s) % 8 == 0;
}

static double cost_of(const linnet_cuda_mixer *m, const linnet_mixer_settings *s) {
    const double same = s->output == m->outer.output ? 0 : 0.5;
    return (double)(s->key_size + s->value_size) * (double)s->slots + same;
}

/* What does not follow from sizes: the scan has no tiled heads; the kernels of diagonal plus low rank have a head of
 * keys for each of values, and keys as they are. */
static linnet_mixer_settings begin_fit(const linnet_cuda_mixer *m) {
    linnet_mixer_settings s = m->outer;
    s.reverse = false;
    s.gates = LINNET_F32;
    const bool scan = ln_cuda_mixer_is(m, "selective_scan"),
               dplr = ln_cuda_mixer_is(m, "dplr") || ln_cuda_mixer_is(m, "rwkv7");
    if (!scan && (!dplr || m->form == LINNET_MIXER_STEP)) return s;
    if (s.tiled_heads || (dplr && m->form == LINNET_MIXER_BACKWARD)) s.key_heads = s.heads;
    s.tiled_heads = s.normalise_keys = false;
    return s;
}

/* The least of the settings for which the way has a kernel. */
static ln_cuda_code try_fits(linnet_cuda_mixer *m, linnet_mixer_settings *best) {
    const linnet_mixer_settings first = begin_fit(m);
    int64_t keys[8], values[8], slots[8];
    double least = 0;
    sizes_from(first.key_size, has_axis(m->row, LN_AXIS_KEY), keys);
    sizes_from(first.value_size, has_axis(m->row, LN_AXIS_VALUE), values);
    sizes_from(first.slots, has_axis(m->row, LN_AXIS_SLOT) && !has_axis(m->row, LN_AXIS_TAIL), slots);
    for (int k = 0; keys[k]; k++)
        for (int v = 0; values[v]; v++)
            for (int n = 0; slots[n]; n++)
                for (int half = 0; half <= (m->form == LINNET_MIXER_BACKWARD); half++) {
                    m->settings = first;
                    m->settings.key_size = keys[k];
                    m->settings.value_size = values[v];
                    m->settings.slots = slots[n];
                    if (half) m->settings.output = LINNET_BF16;
                    const double cost = cost_of(m, &m->settings);
                    if (!whole_rows(m, &m->settings) || (least > 0 && cost >= least)) continue;
                    if (m->way->open(m) != LN_CUDA_OK) continue;
                    least = cost;
                    *best = m->settings;
                }
    return least > 0 ? LN_CUDA_OK : LN_CUDA_UNSUPPORTED;
}

/* ---- where the fitted tensors lie, behind the way's own workspace ---- */

enum { MIRROR, STATE_IN, STATE_OUT, STATE_OUT_BACK, STATE_IN_BACK, OUTPUT, FIRST_INPUT };
enum { FIRST_BACK = FIRST_INPUT + LINNET_MIXER_INPUTS, PARTS = FIRST_BACK + LINNET_MIXER_INPUTS };

static bool turned(const linnet_cuda_mixer *m) {
    return m->outer.reverse && m->form != LINNET_MIXER_STEP;
}

static const int32_t *mirror_of(const linnet_cuda_mixer *m, void *workspace) {
    return workspace ? (const int32_t *)(const void *)((char *)workspace + m->fit_at[MIRROR]) : NULL;
}
/* Of an input, or of its gradient. */
static ln_cuda_fit fit_of(const linnet_cuda_mixer *m, int k, bool back, void *workspace) {
    const ln_mixer_input *i = &m->row->inputs[k];
    const linnet_mixer_settings *outer = &m->outer, *inner = &m->settings;
    const bool typed = i->flags & LN_TYPED, parameter = i->flags & LN_PARAMETER;
    const bool divided = strcmp(i->name, "query") == 0 || strcmp(i->name, "key") == 0;
    return (ln_cuda_fit){.tokens = parameter ? 1 : outer->tokens,
                         .turned = turned(m) && !parameter,
                         .mirror = mirror_of(m, workspace),
                         .outer_heads = ln_mixer_heads(i, outer),
                         .heads = ln_mixer_heads(i, inner),
                         .tiled = outer->tiled_heads,
                         .outer_lines = ln_axis_of(i->rows, outer),
                         .lines = ln_axis_of(i->rows, inner),
                         .outer_columns = ln_axis_of(i->columns, outer),
                         .columns = ln_axis_of(i->columns, inner),
                         .outer_bf16 = back ? typed && outer->output == LINNET_BF16
                                            : ln_mixer_input_type(i, outer) == LINNET_BF16,
                         .bf16 = typed && (!back || inner->output == LINNET_BF16),
                         .normalise = divided && outer->normalise_keys && !inner->normalise_keys};
}
static ln_cuda_fit fit_of_output(const linnet_cuda_mixer *m, void *workspace) {
    const bool bf16 = m->form == LINNET_MIXER_BACKWARD || m->outer.output == LINNET_BF16;
    return (ln_cuda_fit){.tokens = m->outer.tokens,
                         .turned = turned(m),
                         .mirror = mirror_of(m, workspace),
                         .outer_heads = m->outer.heads,
                         .heads = m->settings.heads,
                         .outer_lines = 1,
                         .lines = 1,
                         .outer_columns = ln_axis_of(m->row->output, &m->outer),
                         .columns = ln_axis_of(m->row->output, &m->settings),
                         .outer_bf16 = bf16,
                         .bf16 = bf16};
}
static bool fits(const ln_cuda_fit *f) {
    return !f->turned && f->heads == f->outer_heads && f->lines == f->outer_lines && f->columns == f->outer_columns &&
           f->bf16 == f->outer_bf16 && !f->normalise;
}
/* Bytes for the copy. */
static int64_t room_of(const ln_cuda_fit *f) {
    return fits(f) ? 0 : f->tokens * f->heads * f->lines * f->columns * (f->bf16 ? 2 : 4);
}

static ln_cuda_fit_states states_of(const linnet_cuda_mixer *m) {
    ln_cuda_fit_states fit = {.sequences = m->outer.sequences,
                              .heads = m->outer.heads,
                              .outer_floats = ln_mixer_head_floats(m->row, &m->outer),
                              .floats = ln_mixer_head_floats(m->row, &m->settings)};
    linnet_mixer_state outer, inner;
    for (int p = 0; p < LN_CUDA_FIT_PARTS && linnet_mixer_state_of(&m->outer, p, &outer) &&
                    linnet_mixer_state_of(&m->settings, p, &inner);
         p++)
        fit.part[fit.parts++] =
            (ln_cuda_fit_part){outer.offset, outer.rows, outer.columns, inner.offset, inner.rows, inner.columns};
    return fit;
}

static void place_fits(linnet_cuda_mixer *m) {
    const bool back = m->form == LINNET_MIXER_BACKWARD;
    m->fit_states = states_of(m);
    const int64_t state = m->fit_states.sequences * m->fit_states.heads * m->fit_states.floats * 4;
    const ln_cuda_fit output = fit_of_output(m, NULL);
    int64_t at = round_up((int64_t)m->workspace);
    for (int part = 0; part < PARTS; part++) {
        int64_t bytes = 0;
        if (part == MIRROR) bytes = turned(m) ? m->outer.tokens * 4 : 0;
        if (part == STATE_IN || part == (back ? STATE_OUT_BACK : STATE_OUT) || (back && part == STATE_IN_BACK))
            bytes = state;
        if (part == OUTPUT) bytes = room_of(&output);
        const int k = part - (part >= FIRST_BACK ? FIRST_BACK : FIRST_INPUT);
        m->fit_at[part] = at;
        if (part < FIRST_BACK && part >= FIRST_INPUT) {
            if (!m->row->inputs[k].name) {
                part = FIRST_BACK - 1;
                continue;
            }
            const ln_cuda_fit fit = fit_of(m, k, false, NULL);
            bytes = room_of(&fit);
        } else if (part >= FIRST_BACK) {
            if (!back || !m->row->inputs[k].name) break;
            const ln_cuda_fit fit = fit_of(m, k, true, NULL);
            bytes = room_of(&fit);
        }
        at += round_up(bytes);
    }
    m->workspace = (uint64_t)at;
}

ln_cuda_code ln_cuda_mixer_fit(linnet_cuda_mixer *m) {
    m->outer = m->settings;
    const linnet_mixer_settings begun = begin_fit(m);
    const bool reverse = m->outer.reverse && m->form == LINNET_MIXER_STEP;
    m->settings.reverse = m->settings.reverse && !reverse;
    const bool changed = m->settings.reverse || m->outer.gates != LINNET_F32 || begun.key_heads != m->outer.key_heads ||
                         begun.tiled_heads != m->outer.tiled_heads || begun.normalise_keys != m->outer.normalise_keys ||
                         !whole_rows(m, &begun);
    ln_cuda_code code = changed ? LN_CUDA_UNSUPPORTED : m->way->open(m);
    if (code == LN_CUDA_OK && m->form == LINNET_MIXER_BACKWARD && m->way != &ln_cuda_linear_backward_way) {
        m->fitted = true; /* where slots of states are given */
        place_fits(m);
    }
    if (code != LN_CUDA_UNSUPPORTED && code != LN_CUDA_ARGUMENT) return code;
    linnet_mixer_settings best;
    if (try_fits(m, &best) != LN_CUDA_OK) { /* why not as it was */
        m->settings = begun;
        code = m->way->open(m);
        return code ? code : LN_CUDA_UNSUPPORTED;
    }
    m->settings = best;
    code = m->way->open(m);
    m->fitted = true;
    place_fits(m);
    snprintf(m->fit_why, sizeof m->fit_why, "tensors are copied to fit (keys of %lld, values of %lld%s); %s",
             (long long)best.key_size, (long long)best.value_size, turned(m) ? ", time turned round" : "", m->why);
    m->why = m->fit_why;
    return code;
}

ln_cuda_code ln_cuda_mixer_fit_prepare(const linnet_cuda_mixer *m, void *workspace, void *stream) {
    if (!m->fitted || !turned(m) || m->outer.tokens == 0) return LN_CUDA_OK;
    int32_t *mirror = ln_allocate(m->cuda->context, (uint64_t)m->outer.tokens, sizeof *mirror, "order of tokens");
    if (!mirror) return LN_CUDA_OUT_OF_MEMORY;
    for (int64_t s = 0; s < m->outer.sequences; s++)
        for (int64_t t = m->offsets[s]; t < m->offsets[s + 1]; t++)
            mirror[t] = (int32_t)(m->offsets[s] + m->offsets[s + 1] - 1 - t);
    ln_cuda_code code = ln_cuda_copy_to_device((char *)workspace + m->fit_at[MIRROR], mirror,
                                               (uint64_t)m->outer.tokens * sizeof *mirror, stream);
    if (!code) code = ln_cuda_wait(stream);
    ln_release(m->cuda->context, mirror);
    return code;
}

/* ---- runs ---- */

static ln_cuda_fit_states states_for(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    ln_cuda_fit_states states = m->fit_states;
    states.slots = t->state_slots;
    return states;
}

/* Backward the kernels but for linear attention's have no slots of gradients. */
static bool copies_states(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    const bool slots = t->state_slots && m->form == LINNET_MIXER_BACKWARD && m->way != &ln_cuda_linear_backward_way;
    return slots || m->settings.key_size != m->outer.key_size || m->settings.value_size != m->outer.value_size ||
           m->settings.slots != m->outer.slots;
}

static linnet_tensor packed(void *at, const ln_cuda_fit *fit) {
    const int64_t row = fit->lines * fit->columns;
    return (linnet_tensor){.data = at, .token_stride = fit->heads * row, .head_stride = row};
}

/* The kernels' tensors, from the caller's. */
static ln_cuda_code fit_in(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, linnet_mixer_tensors *inner,
                           char *workspace, void *stream) {
    const bool back = m->form == LINNET_MIXER_BACKWARD;
    const ln_cuda_fit_states states = states_for(m, t);
    ln_cuda_code code = LN_CUDA_OK;
    *inner = *t;
    for (int k = 0; m->row->inputs[k].name && !code; k++) {
        const ln_cuda_fit fit = fit_of(m, k, false, workspace), to = fit_of(m, k, true, workspace);
        if (t->input_gradient[k].data && !fits(&to))
            inner->input_gradient[k] = packed(workspace + m->fit_at[FIRST_BACK + k], &to);
        if (!t->input[k].data || fits(&fit)) continue;
        inner->input[k] = packed(workspace + m->fit_at[FIRST_INPUT + k], &fit);
        code = ln_cuda_fit_in(&fit, ln_cuda_tensor_of(t->input[k]), inner->input[k].data, stream);
    }
    const ln_cuda_fit output = fit_of_output(m, workspace);
    if (!fits(&output) && !code) {
        linnet_tensor *to = back ? &inner->output_gradient : &inner->output;
        *to = packed(workspace + m->fit_at[OUTPUT], &output);
        if (back) code = ln_cuda_fit_in(&output, ln_cuda_tensor_of(t->output_gradient), to->data, stream);
    }
    if (code || !copies_states(m, t)) return code;
    float *given = (float *)(void *)(workspace + m->fit_at[STATE_IN]),
          *behind = (float *)(void *)(workspace + m->fit_at[STATE_OUT_BACK]);
    inner->state_slots = NULL;
    if (t->state_in) code = ln_cuda_fit_states_in(&states, t->state_in, given, stream);
    if (t->state_in) inner->state_in = given;
    if (back && t->state_out_gradient && !code)
        code = ln_cuda_fit_states_in(&states, t->state_out_gradient, behind, stream);
    if (back && t->state_out_gradient) inner->state_out_gradient = behind;
    if (!back && t->state_out) inner->state_out = (float *)(void *)(workspace + m->fit_at[STATE_OUT]);
    if (back && t->state_in_gradient)
        inner->state_in_gradient = (float *)(void *)(workspace + m->fit_at[STATE_IN_BACK]);
    return code;
}

static ln_cuda_code fit_out(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t,
                            const linnet_mixer_tensors *inner, char *workspace, void *stream) {
    const bool back = m->form == LINNET_MIXER_BACKWARD;
    const ln_cuda_fit_states states = states_for(m, t);
    const ln_cuda_fit output = fit_of_output(m, workspace);
    const ln_cuda_tensor none = {0};
    const bool copies = copies_states(m, t);
    ln_cuda_code code = LN_CUDA_OK;
    if (!back && !fits(&output))
        code = ln_cuda_fit_out(&output, inner->output.data, none, ln_cuda_tensor_of(t->output), stream);
    if (!back && copies && t->state_out && !code)
        code = ln_cuda_fit_states_out(&states, inner->state_out, t->state_out, stream);
    if (back && copies && t->state_in_gradient && !code)
        code = ln_cuda_fit_states_out(&states, inner->state_in_gradient, t->state_in_gradient, stream);
    for (int k = 0; back && m->row->inputs[k].name && !code; k++) {
        const ln_cuda_fit fit = fit_of(m, k, true, workspace);
        if (t->input_gradient[k].data && !fits(&fit))
            code = ln_cuda_fit_out(&fit, inner->input_gradient[k].data, ln_cuda_tensor_of(t->input[k]),
                                   ln_cuda_tensor_of(t->input_gradient[k]), stream);
    }
    return code;
}

ln_cuda_code ln_cuda_mixer_fit_run(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t, void *workspace,
                                   void *stream) {
    if (!m->fitted) return m->way->run(m, t, workspace, stream);
    linnet_mixer_tensors inner;
    ln_cuda_code code = fit_in(m, t, &inner, workspace, stream);
    if (!code) code = m->way->run(m, &inner, workspace, stream);
    return code ? code : fit_out(m, t, &inner, workspace, stream);
}
