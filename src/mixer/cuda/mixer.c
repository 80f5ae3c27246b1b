/* Owns: the table of mixers on a device. Settings are completed and checked as on the processor (mixer.h); then the way
 * that serves the row and form makes its plan. */
#include "mixer/cuda/mixer.h"

#include <stdio.h>
#include <string.h>

#include "kernel/cuda/runtime_cuda.h"

static const ln_cuda_way *const ways[] = {&ln_cuda_linear_way,
                                          &ln_cuda_linear_backward_way,
                                          &ln_cuda_delta_way,
                                          &ln_cuda_delta_backward_way,
                                          &ln_cuda_dplr_way,
                                          &ln_cuda_scan_way,
                                          &ln_cuda_scan_step_way,
                                          &ln_cuda_convolution_way,
                                          &ln_cuda_convolution_step_way,
                                          &ln_cuda_step_way,
                                          &ln_cuda_convolution_backward_way,
                                          &ln_cuda_dplr_backward_way,
                                          &ln_cuda_scan_backward_way};

static const ln_cuda_way *way_of(const char *row, linnet_mixer_form form) {
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        for (int k = 0; ways[i]->form == form && ways[i]->rows[k]; k++)
            if (strcmp(ways[i]->rows[k], row) == 0) return ways[i];
    return NULL;
}

/* ---- inputs ---- */

bool ln_cuda_mixer_is(const linnet_cuda_mixer *mixer, const char *row) {
    return strcmp(mixer->row->name, row) == 0;
}

ln_cuda_tensor ln_cuda_mixer_input(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                   const char *name) {
    const int k = ln_mixer_input_index(mixer->row, name);
    return k < 0 ? (ln_cuda_tensor){0} : ln_cuda_tensor_of(tensors->input[k]);
}

ln_cuda_tensor ln_cuda_mixer_gradient(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                      const char *name) {
    const int k = ln_mixer_input_index(mixer->row, name);
    return k < 0 ? (ln_cuda_tensor){0} : ln_cuda_tensor_of(tensors->input_gradient[k]);
}

ln_cuda_gate ln_cuda_mixer_gate(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, const char *name) {
    const int k = ln_mixer_input_index(mixer->row, name);
    if (k < 0) return (ln_cuda_gate){0};
    const linnet_tensor *t = &tensors->input[k];
    const bool parameter = mixer->row->inputs[k].flags & LN_PARAMETER;
    return (ln_cuda_gate){t->data, parameter ? 0 : t->token_stride, t->head_stride};
}

bool ln_cuda_mixer_dense(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, const char *name) {
    const int k = ln_mixer_input_index(mixer->row, name);
    if (k < 0) return true;
    const ln_mixer_input *input = &mixer->row->inputs[k];
    const int64_t columns = ln_mixer_columns(input, &mixer->settings), heads = ln_mixer_heads(input, &mixer->settings);
    const linnet_tensor *const both[] = {&tensors->input[k], &tensors->input_gradient[k]};
    for (int i = 0; i <= (mixer->form == LINNET_MIXER_BACKWARD); i++)
        if (both[i]->data && ((heads > 1 && both[i]->head_stride != columns) ||
                              (!(input->flags & LN_PARAMETER) && both[i]->token_stride != heads * columns)))
            return false;
    return true;
}

ln_cuda_code ln_cuda_mixer_gradients_short(linnet_cuda_mixer *mixer) {
    if (mixer->form != LINNET_MIXER_BACKWARD || mixer->settings.output == LINNET_BF16) return LN_CUDA_OK;
    mixer->why = "on a GPU its gradients are bf16: settings.output must say so";
    return LN_CUDA_UNSUPPORTED;
}

/* ---- opening ---- */

static linnet_status copy_offsets(linnet_cuda_mixer *m) {
    const int64_t count = m->settings.sequences;
    m->offsets = ln_allocate(m->cuda->context, (uint64_t)count + 1, sizeof *m->offsets, "mixer on a GPU");
    if (!m->offsets) return LINNET_ERROR_MEMORY;
    for (int64_t s = 0; s <= count; s++)
        m->offsets[s] = m->settings.offsets ? m->settings.offsets[s] : s * (m->settings.tokens / (count ? count : 1));
    m->settings.offsets = m->offsets;
    return LINNET_OK;
}

/* Whether tensors or states have more numbers than any device's memory: bytes of what kernels need, however filled up
 * or repeated, can then be counted. */
static bool too_large(const linnet_mixer_settings *s, const ln_mixer *row) {
    const int64_t most = (int64_t)1 << 44, size = ln_max_i64(ln_max_i64(s->key_size, s->value_size), s->slots),
                  row_floats = ln_ceil_div(size, 256) * 256,
                  state_floats = ln_max_i64(ln_mixer_head_floats(row, s), row_floats);
    int64_t rows, states;
    return !ln_multiply_i64(s->tokens, s->heads * row_floats, &rows) || rows > most ||
           !ln_multiply_i64(s->sequences, s->heads * state_floats, &states) || states > most;
}

static linnet_status check(linnet_cuda *cuda, const linnet_mixer_settings *s, const ln_mixer *row,
                           linnet_mixer_form form) {
    static const char *const forms[] = {"forward", "step", "backward"};
    if ((size_t)form >= sizeof forms / sizeof forms[0])
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "mixers on a GPU have no form %d", (int)form);
    if (!way_of(row->name, form))
        return ln_fail(cuda->context, LINNET_ERROR_UNSUPPORTED,
                       "%s has no %s form on a GPU (linnet/cuda.h lists what has); run it on the processor", row->name,
                       forms[form]);
    if (s->type != LINNET_BF16)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "mixers on a GPU take bf16 inputs, not %s",
                       linnet_type_name(s->type) ? linnet_type_name(s->type) : "an unknown type");
    if (s->output != LINNET_F32 && s->output != LINNET_BF16)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "the output of a mixer on a GPU is f32 or bf16");
    const bool products = form != LINNET_MIXER_STEP && strcmp(row->core, "scan") != 0;
    if (s->exact && products)
        return ln_fail(cuda->context, LINNET_ERROR_UNSUPPORTED,
                       "%s goes through a GPU's matrix units, which take bf16: `exact` is for one token, the scan and "
                       "the convolution there; run it on the processor",
                       row->name);
    if (s->sequences < 1 || s->sequences > INT32_MAX / 2 || s->tokens > INT32_MAX / 2)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "mixers on a GPU take 1 to 2^30 sequences and tokens");
    if (too_large(s, row))
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT,
                       "%s: tokens, heads and sizes, or states of all sequences, are together too large for any GPU",
                       row->name);
    if (form == LINNET_MIXER_STEP && (s->tokens != s->sequences || s->offsets))
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT,
                       "a step takes one token of each sequence: tokens = sequences, no offsets");
    return LINNET_OK;
}

linnet_status linnet_cuda_mixer_open(linnet_cuda *cuda, const linnet_mixer_settings *settings, linnet_mixer_form form,
                                     linnet_cuda_mixer **mixer) {
    *mixer = NULL;
    if (!settings) return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "a mixer needs settings");
    linnet_mixer_settings s = *settings;
    const ln_mixer *row;
    const char *wrong = ln_mixer_complete(&s, &row);
    if (wrong)
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "mixer '%s': %s", settings->name ? settings->name : "",
                       wrong);
    s.name = row->name; /* the caller's need not outlive this call */
    linnet_status status = check(cuda, &s, row, form);
    if (status != LINNET_OK) return status;
    linnet_cuda_mixer *made = ln_allocate_zero(cuda->context, 1, sizeof *made, "mixer on a GPU");
    if (!made) return LINNET_ERROR_MEMORY;
    *made = (linnet_cuda_mixer){
        .cuda = cuda, .settings = s, .row = row, .form = form, .way = way_of(row->name, form), .why = ""};
    status = copy_offsets(made);
    if (status == LINNET_OK) {
        const ln_cuda_code code = ln_cuda_mixer_fit(made); /* sets made->why */
        status = ln_cuda_tell(cuda, code, row->name, made->why);
    }
    if (status != LINNET_OK) {
        linnet_cuda_mixer_close(made);
        return status;
    }
    *mixer = made;
    return LINNET_OK;
}

void linnet_cuda_mixer_close(linnet_cuda_mixer *mixer) {
    if (!mixer) return;
    linnet_context *context = mixer->cuda->context;
    ln_release(context, mixer->offsets);
    ln_release(context, mixer);
}

uint64_t linnet_cuda_mixer_workspace(const linnet_cuda_mixer *mixer) {
    return mixer->workspace ? mixer->workspace : 256;
}

size_t linnet_cuda_mixer_text(const linnet_cuda_mixer *mixer, char *text, size_t bytes) {
    const int written = snprintf(text, bytes, "%s", mixer->why);
    return (size_t)(written > 0 ? written : 0) + 1;
}

/* ---- running ---- */

linnet_status linnet_cuda_mixer_prepare(const linnet_cuda_mixer *mixer, void *workspace, void *stream) {
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(mixer->cuda->device.index);
    if (!code && mixer->way->prepare) code = mixer->way->prepare(mixer, workspace, stream);
    if (!code) code = ln_cuda_mixer_fit_prepare(mixer, workspace, stream);
    return ln_cuda_tell(mixer->cuda, code, mixer->row->name, wrong);
}

/* Whether a tensor, if given, begins at a whole element of so many bytes and goes on from there. */
static bool steps_right(const linnet_tensor *t, uintptr_t element) {
    return !t->data || ((uintptr_t)t->data % element == 0 && t->token_stride >= 0 && t->head_stride >= 0);
}

/* NULL, or what no kernel may read: those that copy tensors to fit ask for no more. */
static const char *wrong_tensors(const linnet_cuda_mixer *m, const linnet_mixer_tensors *t) {
    const bool back = m->form == LINNET_MIXER_BACKWARD;
    const uintptr_t output = m->outer.output == LINNET_BF16 ? 2 : 4;
    const float *const floats[] = {t->state_in, t->state_out, t->state_out_gradient, t->state_in_gradient};
    bool right = back ? steps_right(&t->output_gradient, 2) : steps_right(&t->output, output);
    for (int k = 0; m->row->inputs[k].name; k++) {
        const ln_mixer_input *i = &m->row->inputs[k];
        right = right && steps_right(&t->input[k], ln_mixer_input_type(i, &m->outer) == LINNET_BF16 ? 2 : 4) &&
                (!back || steps_right(&t->input_gradient[k], i->flags & LN_TYPED ? output : 4));
    }
    for (int i = 0; i < (back ? 4 : 2); i++) right = right && (uintptr_t)floats[i] % 4 == 0;
    right = right && (uintptr_t)t->state_slots % 8 == 0;
    return right ? NULL : "a tensor does not begin at a whole element, or has a negative stride";
}

linnet_status linnet_cuda_mixer_run(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                    void *workspace, void *stream) {
    linnet_mixer_settings s = mixer->outer;
    if (mixer->form == LINNET_MIXER_STEP) s.offsets = NULL;
    const linnet_status status = ln_mixer_check_tensors(mixer->cuda->context, mixer->row, &s, tensors, mixer->form);
    if (status != LINNET_OK) return status;
    linnet_mixer_tensors t = *tensors;
    ln_mixer_settle_strides(mixer->row, &s, &t);
    const char *wrong = ln_cuda_wrong_workspace(workspace);
    if (!wrong) wrong = wrong_tensors(mixer, &t);
    ln_cuda_code code = wrong ? LN_CUDA_ARGUMENT : ln_cuda_use(mixer->cuda->device.index);
    if (!code) code = ln_cuda_mixer_fit_run(mixer, &t, workspace, stream);
    return ln_cuda_tell(mixer->cuda, code, mixer->row->name, wrong);
}
