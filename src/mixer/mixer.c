/* Owns: the table of mixers: finding a row, completing and checking settings, and the public interface over rows.
 *
 * Invariant: a core's function runs only with settings that ln_mixer_complete took and tensors that check_tensors took,
 * whose strides are all stated. */
#include "mixer/mixer.h"

#include <math.h>
#include <string.h>

#include "base/context.h"
#include "number/format.h"

static const ln_mixer *const families[] = {ln_rows_outer,  ln_rows_linear,  ln_rows_gated, ln_rows_flow,
                                           ln_rows_routed, ln_rows_channel, ln_rows_delta, ln_rows_scan,
                                           ln_rows_cell,   ln_rows_learner, ln_rows_wave};

enum { FAMILIES = sizeof families / sizeof *families, CHUNK_UNIT = 16, CHUNK_MOST = 256 };
static const int64_t HEADS_MOST = (int64_t)1 << 20, SIZE_MOST = (int64_t)1 << 20, SLOTS_MOST = (int64_t)1 << 24,
                     TOGETHER_MOST = (int64_t)1 << 50, TOKENS_MOST = (int64_t)1 << 40, STATE_MOST = (int64_t)1 << 56;

static const ln_mixer *row(int index) {
    for (int f = 0; f < FAMILIES; f++)
        for (const ln_mixer *m = families[f]; m->name; m++)
            if (index-- == 0) return m;
    return NULL;
}

const ln_mixer *ln_mixer_find(const char *name) {
    if (!name) return NULL;
    for (int f = 0; f < FAMILIES; f++)
        for (const ln_mixer *m = families[f]; m->name; m++)
            if (strcmp(m->name, name) == 0) return m;
    return NULL;
}

const char *linnet_mixer_name(int index) {
    const ln_mixer *m = index < 0 ? NULL : row(index);
    return m ? m->name : NULL;
}

linnet_mixer_settings linnet_mixer_settings_default(const char *name) {
    const ln_mixer *m = ln_mixer_find(name);
    if (!m) return (linnet_mixer_settings){0};
    linnet_mixer_settings s = {.size = sizeof s,
                               .name = m->name,
                               .type = LINNET_F32,
                               .heads = 1,
                               .sequences = 1,
                               .scale = m->scale,
                               .normalise = m->normalise,
                               .normalise_keys = m->normalise_keys};
    memcpy(s.option, m->option, sizeof s.option);
    return s;
}

/* ---- shapes ---- */

int64_t ln_axis_of(ln_axis axis, const linnet_mixer_settings *settings) {
    switch (axis) {
    case LN_AXIS_KEY:
        return settings->key_size;
    case LN_AXIS_VALUE:
        return settings->value_size;
    case LN_AXIS_SLOT:
        return settings->slots;
    case LN_AXIS_TAIL:
        return settings->slots - 1;
    case LN_AXIS_ONE:
        break;
    }
    return 1;
}

/* Together the extents are at most 2^50 (complete_shape): with a factor they do not overflow. */
static int64_t extent(ln_axis rows, ln_axis columns, int64_t times, int64_t more,
                      const linnet_mixer_settings *settings) {
    return ln_axis_of(rows, settings) * ln_axis_of(columns, settings) * (times ? times : 1) + more;
}

int64_t ln_mixer_longest(const linnet_mixer_settings *s) {
    int64_t longest = s->offsets ? 0 : s->tokens / s->sequences;
    for (int64_t q = 0; s->offsets && q < s->sequences; q++)
        longest = ln_max_i64(longest, s->offsets[q + 1] - s->offsets[q]);
    return longest;
}

int64_t ln_mixer_columns(const ln_mixer_input *input, const linnet_mixer_settings *settings) {
    return extent(input->rows, input->columns, input->times, input->more, settings);
}

int64_t ln_mixer_heads(const ln_mixer_input *input, const linnet_mixer_settings *settings) {
    return input->heads == LN_HEADS_VALUE ? settings->heads : input->heads == LN_HEADS_KEY ? settings->key_heads : 1;
}

linnet_type ln_mixer_input_type(const ln_mixer_input *input, const linnet_mixer_settings *settings) {
    if (input->flags & LN_TYPED) return settings->type;
    const bool channels = input->rows != LN_AXIS_ONE || input->columns != LN_AXIS_ONE;
    return channels && !(input->flags & LN_PARAMETER) ? settings->gates : LINNET_F32;
}

int64_t ln_mixer_head_floats(const ln_mixer *mixer, const linnet_mixer_settings *settings) {
    if (mixer->head_floats) return mixer->head_floats(settings);
    int64_t floats = 0;
    for (const ln_mixer_state *s = mixer->states; s && s->name; s++)
        floats += extent(s->rows, s->columns, s->times, s->more, settings);
    return floats;
}

static const char *complete_shape(linnet_mixer_settings *s, const ln_mixer *m) {
    if (s->key_heads == 0) s->key_heads = s->heads;
    if (s->value_size == 0) s->value_size = s->key_size;
    if (s->sequences == 0) s->sequences = 1;
    if (s->slots == 0) s->slots = m->slots ? m->slots : 1;
    if (s->heads < 1 || s->heads > HEADS_MOST || s->key_heads < 1 || s->heads % s->key_heads != 0)
        return "heads must be from 1 to 2^20, and key_heads divide them";
    if (s->key_size < 1 || s->key_size > SIZE_MOST || s->value_size < 1 || s->value_size > SIZE_MOST)
        return "key_size and value_size must be from 1 to 2^20";
    if (s->slots < 1 || s->slots > SLOTS_MOST || s->slots > TOGETHER_MOST / (s->key_size * s->value_size))
        return "slots must be from 1 to 2^24, and 2^50 together with key_size and value_size";
    if (s->tokens < 0 || s->tokens > TOKENS_MOST || s->sequences < 0 || s->sequences > TOKENS_MOST)
        return "tokens and sequences must be from 0 to 2^40";
    if (!s->offsets && s->tokens % s->sequences != 0)
        return "without offsets all sequences are equally long: tokens must be a multiple of sequences";
    if (!s->offsets) return NULL;
    if (s->offsets[0] != 0 || s->offsets[s->sequences] != s->tokens) return "offsets must go from 0 to tokens";
    for (int64_t i = 0; i < s->sequences; i++)
        if (s->offsets[i] > s->offsets[i + 1]) return "offsets must not descend";
    return NULL;
}

const char *ln_mixer_complete(linnet_mixer_settings *s, const ln_mixer **mixer) {
    if (s->size != sizeof *s) return "settings must come from linnet_mixer_settings_default";
    const ln_mixer *m = *mixer = ln_mixer_find(s->name);
    if (!m) return "there is no mixer of this name";
    const char *wrong = complete_shape(s, m);
    if (wrong) return wrong;
    if (s->type != LINNET_F32 && s->type != LINNET_BF16) return "type must be LINNET_F32 or LINNET_BF16";
    if (s->gates != LINNET_F32 && s->gates != LINNET_BF16) return "gates must be LINNET_F32 or LINNET_BF16";
    if (isnan(s->scale)) s->scale = (float)(1 / sqrt((double)s->key_size));
    if (isinf(s->scale)) return "scale must be finite";
    if (s->chunk && (s->chunk < CHUNK_UNIT || s->chunk > CHUNK_MOST || s->chunk % CHUNK_UNIT != 0))
        return "chunk must be 0, or a multiple of 16 up to 256";
    if (s->normalise != m->normalise && !m->can_normalise) return "this mixer cannot change `normalise`";
    if (s->normalise_keys != m->normalise_keys && !m->can_normalise_keys)
        return "this mixer cannot change `normalise_keys`";
    if (s->reverse && !m->reverse) return "this mixer does not run in reverse";
    wrong = m->refuse ? m->refuse(s) : NULL;
    if (wrong) return wrong;
    return ln_mixer_head_floats(m, s) > STATE_MOST / s->heads ? "the state of a sequence would be too large" : NULL;
}

/* ---- where things lie ---- */

static int64_t state_at(const ln_mixer_call *call, int64_t sequence, int64_t head) {
    const int64_t slot = call->tensors->state_slots ? call->tensors->state_slots[sequence] : sequence;
    return (slot * call->settings->heads + head) * call->head_floats;
}

const float *ln_mixer_state_in(const ln_mixer_call *call, int64_t sequence, int64_t head) {
    return call->tensors->state_in ? call->tensors->state_in + state_at(call, sequence, head) : NULL;
}
float *ln_mixer_state_out(const ln_mixer_call *call, int64_t sequence, int64_t head) {
    return call->tensors->state_out ? call->tensors->state_out + state_at(call, sequence, head) : NULL;
}
const float *ln_mixer_state_out_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head) {
    const float *gradient = call->tensors->state_out_gradient;
    return gradient ? gradient + state_at(call, sequence, head) : NULL;
}
float *ln_mixer_state_in_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head) {
    float *gradient = call->tensors->state_in_gradient;
    return gradient ? gradient + state_at(call, sequence, head) : NULL;
}

static int64_t input_head(const ln_mixer_call *call, const ln_mixer_input *input, int64_t head) {
    if (input->heads == LN_HEADS_ONE) return 0;
    return input->heads == LN_HEADS_KEY ? ln_mixer_key_head(call->settings, head) : head;
}

void ln_mixer_load(const ln_mixer_call *call, int input, int64_t head, int64_t sequence, int64_t step, int64_t count,
                   float *rows) {
    const ln_mixer_input *i = &call->mixer->inputs[input];
    const linnet_tensor *t = &call->tensors->input[input];
    const int64_t columns = ln_mixer_columns(i, call->settings), at = input_head(call, i, head) * t->head_stride;
    const bool half = i->flags & LN_TYPED && call->settings->type == LINNET_BF16, parameter = i->flags & LN_PARAMETER;
    int64_t row = at, stride = 0;
    if (!parameter) {
        row += ln_mixer_token(call, sequence, step) * t->token_stride;
        stride = call->settings->reverse ? -t->token_stride : t->token_stride;
    }
    for (int64_t n = parameter ? 1 : count; n > 0; n--, row += stride, rows += columns)
        if (half)
            call->kernels->vector.widen(rows, (const uint16_t *)t->data + row, columns);
        else
            memcpy(rows, (const float *)t->data + row, (size_t)columns * sizeof *rows);
}

void ln_mixer_prefetch(const ln_mixer_call *call, int64_t head, int64_t sequence, int64_t step, int64_t count) {
    enum { LINE = 64 };
    for (int k = 0; call->mixer->inputs[k].name; k++) {
        const ln_mixer_input *i = &call->mixer->inputs[k];
        const linnet_tensor *t = &call->tensors->input[k];
        if (!t->data || i->flags & LN_PARAMETER) continue;
        const int64_t size = i->flags & LN_TYPED && call->settings->type == LINNET_BF16 ? 2 : 4,
                      bytes = ln_mixer_columns(i, call->settings) * size,
                      at = input_head(call, i, head) * t->head_stride;
        for (int64_t n = 0; n < count; n++) {
            const int64_t row = at + ln_mixer_token(call, sequence, step + n) * t->token_stride;
            for (int64_t b = 0; b < bytes; b += LINE) __builtin_prefetch((const char *)t->data + row * size + b);
        }
    }
}

float *ln_mixer_gradient(const ln_mixer_call *call, int input, int64_t head, int64_t sequence, int64_t step) {
    const ln_mixer_input *i = &call->mixer->inputs[input];
    const linnet_tensor *t = &call->tensors->input_gradient[input];
    if (!t->data) return NULL;
    float *at = (float *)t->data + input_head(call, i, head) * t->head_stride;
    return i->flags & LN_PARAMETER ? at : at + ln_mixer_token(call, sequence, step) * t->token_stride;
}

static void clear_gradients(const ln_mixer_call *call) {
    for (int k = 0; call->mixer->inputs[k].name; k++) {
        const ln_mixer_input *i = &call->mixer->inputs[k];
        const linnet_tensor *t = &call->tensors->input_gradient[k];
        const int64_t columns = ln_mixer_columns(i, call->settings);
        const int64_t tokens = i->flags & LN_PARAMETER ? 1 : call->settings->tokens;
        for (int64_t token = 0; t->data && token < tokens; token++)
            for (int64_t head = 0; head < ln_mixer_heads(i, call->settings); head++)
                memset((float *)t->data + token * t->token_stride + head * t->head_stride, 0,
                       (size_t)columns * sizeof(float));
    }
}

/* ---- running ---- */

uint64_t ln_mixer_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form) {
    const uint64_t bytes = mixer->workspace(mixer, kernels, threads, settings, form);
    if (bytes > UINT64_MAX / 2) return 0; /* more than there are addresses */
    return bytes < 64 ? 64 : ln_round_up(bytes, 64);
}

static void settle(linnet_tensor *tensor, int64_t heads, int64_t columns) {
    if (tensor->head_stride == 0) tensor->head_stride = columns;
    if (tensor->token_stride == 0) tensor->token_stride = heads * columns;
}

void ln_mixer_settle_strides(const ln_mixer *mixer, const linnet_mixer_settings *settings, linnet_mixer_tensors *t) {
    for (int k = 0; mixer->inputs[k].name; k++) {
        const int64_t heads = ln_mixer_heads(&mixer->inputs[k], settings),
                      columns = ln_mixer_columns(&mixer->inputs[k], settings);
        settle(&t->input[k], heads, columns);
        settle(&t->input_gradient[k], heads, columns);
    }
    settle(&t->output, settings->heads, ln_axis_of(mixer->output, settings));
    settle(&t->output_gradient, settings->heads, ln_axis_of(mixer->output, settings));
}

/* No token moves the state: it passes through. */
static void pass_empty(const ln_mixer_call *call) {
    const size_t bytes = (size_t)ln_mixer_state_floats(call) * sizeof(float);
    for (int64_t s = 0; s < call->settings->sequences; s++) {
        int64_t first, count;
        ln_mixer_span(call->settings, s, &first, &count);
        if (count || bytes == 0) continue;
        const float *in = ln_mixer_state_in(call, s, 0), *gradient = ln_mixer_state_out_gradient(call, s, 0);
        float *out = ln_mixer_state_out(call, s, 0), *to = ln_mixer_state_in_gradient(call, s, 0);
        if (out && in) memmove(out, in, bytes);
        if (out && !in) memset(out, 0, bytes);
        if (to && gradient) memmove(to, gradient, bytes);
        if (to && !gradient) memset(to, 0, bytes);
    }
}

void ln_mixer_run(const ln_mixer *mixer, const ln_kernels *kernels, ln_team *team,
                  const linnet_mixer_settings *settings, const linnet_mixer_tensors *tensors, void *workspace,
                  linnet_mixer_form form) {
    linnet_mixer_tensors settled = *tensors;
    ln_mixer_settle_strides(mixer, settings, &settled);
    const ln_mixer_call call = {.mixer = mixer,
                                .kernels = kernels,
                                .team = team,
                                .settings = settings,
                                .tensors = &settled,
                                .head_floats = ln_mixer_head_floats(mixer, settings),
                                .workspace = workspace};
    if (form == LINNET_MIXER_BACKWARD) {
        clear_gradients(&call);
        settled.state_out = NULL;
    } else {
        settled.state_out_gradient = NULL;
        settled.state_in_gradient = NULL;
    }
    pass_empty(&call);
    if (settings->tokens == 0) return;
    if (form == LINNET_MIXER_BACKWARD)
        mixer->backward(&call);
    else if (form == LINNET_MIXER_STEP && mixer->step)
        mixer->step(&call);
    else
        mixer->forward(&call);
}

/* ---- the public interface ---- */

linnet_status linnet_mixer_describe(linnet_context *context, const char *name, linnet_mixer_info *info) {
    const ln_mixer *m = ln_mixer_find(name);
    if (!m)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "there is no mixer named '%s'; linnet_mixer_name lists them",
                       name ? name : "");
    *info = (linnet_mixer_info){.size = sizeof *info,
                                .name = m->name,
                                .core = m->core,
                                .paper = m->paper,
                                .formula = m->formula,
                                .step = m->states != NULL,
                                .backward = m->backward != NULL,
                                .reverse = m->reverse,
                                .causal = !m->not_causal};
    while (m->inputs[info->inputs].name) info->inputs++;
    while (m->states && m->states[info->states].name) info->states++;
    memcpy(info->options, m->options, sizeof info->options);
    return LINNET_OK;
}

bool linnet_mixer_input_of(const linnet_mixer_settings *settings, int index, linnet_mixer_input *input) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    if (index < 0 || ln_mixer_complete(&s, &m)) return false;
    for (int k = 0; k <= index; k++)
        if (!m->inputs[k].name) return false;
    const ln_mixer_input *i = &m->inputs[index];
    *input = (linnet_mixer_input){.size = sizeof *input,
                                  .name = i->name,
                                  .parameter = i->flags & LN_PARAMETER,
                                  .optional = i->flags & LN_OPTIONAL,
                                  .heads = ln_mixer_heads(i, &s),
                                  .columns = ln_mixer_columns(i, &s),
                                  .type = ln_mixer_input_type(i, &s),
                                  .range = i->range};
    return true;
}

int ln_mixer_input_index(const ln_mixer *mixer, const char *name) {
    for (int k = 0; mixer && mixer->inputs[k].name; k++)
        if (strcmp(mixer->inputs[k].name, name) == 0) return k;
    return -1;
}

int linnet_mixer_input_index(const char *mixer, const char *name) {
    return ln_mixer_input_index(ln_mixer_find(mixer), name);
}

int64_t linnet_mixer_state_floats(const linnet_mixer_settings *settings) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    return ln_mixer_complete(&s, &m) ? 0 : ln_mixer_head_floats(m, &s) * s.heads;
}

/* Whether the parts that the list gives make up a head's state. */
static bool listed(const ln_mixer *m, const linnet_mixer_settings *s) {
    int64_t sum = 0;
    for (const ln_mixer_state *part = m->states; part->name; part++) {
        if (sum == ln_mixer_head_floats(m, s)) break; /* the rest are parts that other settings have */
        sum += extent(part->rows, part->columns, part->times, part->more, s);
    }
    return sum == ln_mixer_head_floats(m, s);
}

bool linnet_mixer_state_of(const linnet_mixer_settings *settings, int index, linnet_mixer_state *state) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    if (index < 0 || ln_mixer_complete(&s, &m) || !m->states) return false;
    if (!m->state_extent && !listed(m, &s)) { /* told as one */
        *state = (linnet_mixer_state){sizeof *state, m->states[0].name, 0, 1, ln_mixer_head_floats(m, &s)};
        return index == 0;
    }
    int64_t offset = 0;
    for (const ln_mixer_state *part = m->states; part->name; part++) {
        int64_t rows = part->more ? 1 : ln_axis_of(part->rows, &s),
                columns = extent(part->rows, part->columns, part->times, part->more, &s) / rows;
        if (m->state_extent) m->state_extent(&s, (int)(part - m->states), &rows, &columns);
        /* A part that other settings have. */
        if (columns == 0 || offset + rows * columns > ln_mixer_head_floats(m, &s)) return false;
        if (index-- == 0) {
            *state = (linnet_mixer_state){sizeof *state, part->name, offset, rows, columns};
            return true;
        }
        offset += rows * columns;
    }
    return false;
}

int64_t linnet_mixer_output_columns(const linnet_mixer_settings *settings) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    return ln_mixer_complete(&s, &m) ? 0 : ln_axis_of(m->output, &s);
}

double linnet_mixer_flops(const linnet_context *context, const linnet_mixer_settings *settings,
                          linnet_mixer_form form) {
    (void)context;
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    return ln_mixer_complete(&s, &m) ? 0 : m->flops(&s, form);
}

bool ln_mixer_has_form(const ln_mixer *mixer, linnet_mixer_form form) {
    return form == LINNET_MIXER_BACKWARD ? mixer->backward != NULL : form != LINNET_MIXER_STEP || mixer->states != NULL;
}

uint64_t linnet_mixer_workspace(const linnet_context *context, const linnet_mixer_settings *settings,
                                linnet_mixer_form form) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    if (ln_mixer_complete(&s, &m) || !ln_mixer_has_form(m, form)) return 0;
    ln_kernels kernels;
    ln_kernels_choose(context->cpu, &kernels);
    return ln_mixer_workspace(m, &kernels, ln_team_size(context->team), &s, form);
}

linnet_status ln_mixer_check_tensors(linnet_context *context, const ln_mixer *m, const linnet_mixer_settings *s,
                                     const linnet_mixer_tensors *t, linnet_mixer_form form) {
    if (t->size != sizeof *t)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "tensors.size must be sizeof(linnet_mixer_tensors)");
    for (int k = 0; m->inputs[k].name; k++)
        if (!t->input[k].data && !(m->inputs[k].flags & LN_OPTIONAL))
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s needs the input '%s' (input[%d])", m->name,
                           m->inputs[k].name, k);
    if (form == LINNET_MIXER_BACKWARD ? !t->output_gradient.data : !t->output.data)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s needs the tensor %s", m->name,
                       form == LINNET_MIXER_BACKWARD ? "output_gradient" : "output");
    if (form == LINNET_MIXER_STEP && (s->tokens != s->sequences || s->offsets))
        return ln_fail(context, LINNET_ERROR_ARGUMENT,
                       "a step takes one token of each sequence: tokens = sequences, no offsets");
    if (!m->states && (t->state_in || t->state_out))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s keeps no state", m->name);
    return LINNET_OK;
}

static linnet_status run(linnet_context *context, const linnet_mixer_settings *settings,
                         const linnet_mixer_tensors *tensors, void *workspace, linnet_mixer_form form) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *m;
    const char *wrong = ln_mixer_complete(&s, &m);
    if (wrong)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "mixer '%s': %s", settings->name ? settings->name : "", wrong);
    if (!ln_mixer_has_form(m, form))
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s has no %s form", m->name,
                       form == LINNET_MIXER_STEP ? "step" : "backward");
    const linnet_status status = ln_mixer_check_tensors(context, m, &s, tensors, form);
    if (status != LINNET_OK) return status;
    if (s.output != LINNET_F32 || s.gates != LINNET_F32)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "the output and the gates of a mixer on this processor are f32");
    for (int64_t i = 0; tensors->state_slots && i < s.sequences; i++)
        if (tensors->state_slots[i] < 0)
            return ln_fail(context, LINNET_ERROR_ARGUMENT, "state_slots[%lld] is negative", (long long)i);
    if (!workspace)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s needs a workspace (linnet_mixer_workspace)", m->name);
    ln_kernels kernels;
    ln_kernels_choose(context->cpu, &kernels);
    ln_mixer_run(m, &kernels, context->team, &s, tensors, workspace, form);
    return LINNET_OK;
}

linnet_status linnet_mixer_forward(linnet_context *context, const linnet_mixer_settings *settings,
                                   const linnet_mixer_tensors *tensors, void *workspace) {
    return run(context, settings, tensors, workspace, LINNET_MIXER_FORWARD);
}
linnet_status linnet_mixer_step(linnet_context *context, const linnet_mixer_settings *settings,
                                const linnet_mixer_tensors *tensors, void *workspace) {
    return run(context, settings, tensors, workspace, LINNET_MIXER_STEP);
}
linnet_status linnet_mixer_backward(linnet_context *context, const linnet_mixer_settings *settings,
                                    const linnet_mixer_tensors *tensors, void *workspace) {
    return run(context, settings, tensors, workspace, LINNET_MIXER_BACKWARD);
}
