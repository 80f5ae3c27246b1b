/* Owns: running a row of the table of mixers as part of a layer. */
#include "model/part_mixer.h"

linnet_status ln_part_mixer_open(linnet_model *model, const linnet_mixer_settings *settings, ln_part_mixer *made) {
    *made = (ln_part_mixer){.settings = *settings};
    made->settings.tokens = 1;
    const char *wrong = ln_mixer_complete(&made->settings, &made->mixer);
    if (wrong)
        return ln_fail(model->context, LINNET_ERROR_FORMAT, "%s: the mixer %s cannot be as the model's keys say: %s",
                       model->file->path, settings->name ? settings->name : "", wrong);
    made->state_floats = ln_mixer_head_floats(made->mixer, &made->settings) * made->settings.heads;
    return LINNET_OK;
}

static linnet_mixer_form form_of(int64_t tokens) {
    return tokens == 1 ? LINNET_MIXER_STEP : LINNET_MIXER_FORWARD;
}

void ln_part_mixer_room(linnet_model *model, const ln_part_mixer *mixer, const ln_forward_shape *shape, ln_room *room) {
    const int64_t sizes[] = {1, shape->piece};
    for (int i = 0; i < 2; i++) {
        linnet_mixer_settings settings = mixer->settings;
        settings.tokens = sizes[i];
        settings.exact = shape->exact;
        const uint64_t bytes = ln_mixer_workspace(mixer->mixer, &model->kernels, ln_team_size(model->context->team),
                                                  &settings, form_of(sizes[i]));
        if (bytes > room->scratch) room->scratch = bytes;
    }
}

void ln_part_mixer_give(const ln_part_mixer *mixer, linnet_mixer_tensors *tensors, const char *name, const float *data,
                        int64_t stride, int64_t head_stride) {
    const int input = ln_mixer_input_index(mixer->mixer, name);
    if (input >= 0) tensors->input[input] = (linnet_tensor){(void *)(uintptr_t)data, stride, head_stride};
}

void ln_part_mixer_run(ln_forward *forward, const ln_part_mixer *mixer, int64_t tokens, linnet_mixer_tensors *tensors,
                       const float *state, float *next) {
    linnet_model *model = forward->model;
    linnet_mixer_settings settings = mixer->settings;
    settings.tokens = tokens;
    settings.exact = forward->shape.exact;
    tensors->size = sizeof *tensors;
    tensors->state_in = state;
    tensors->state_out = next;
    ln_mixer_run(mixer->mixer, &model->kernels, model->context->team, &settings, tensors, forward->scratch,
                 form_of(tokens));
}
