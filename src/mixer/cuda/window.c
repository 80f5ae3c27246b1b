/* States of a sliding window on a device: what linnet_mixer_window is on the processor. */
#include "kernel/cuda/runtime_cuda.h"
#include "kernel/cuda/window_cuda.h"
#include "mixer/cuda/cuda.h"
#include "mixer/mixer.h"

linnet_status linnet_cuda_mixer_window(linnet_cuda *cuda, const linnet_mixer_settings *settings, const float *now,
                                       const float *before, const double *decay, float *window, void *stream) {
    ln_mixer_window_shape s;
    const linnet_status status = ln_mixer_window_of(cuda->context, settings, &s);
    if (status != LINNET_OK) return status;
    if (!now || !before || !window || (!decay && s.decayed))
        return ln_fail(cuda->context, LINNET_ERROR_ARGUMENT, "%s: a window needs both states and the decays",
                       settings->name);
    const ln_cuda_window of = {.heads = s.heads,
                               .floats = s.floats,
                               .features = s.features,
                               .columns = s.columns,
                               .decays = s.decays,
                               .now = now,
                               .before = before,
                               .decay = decay,
                               .window = window};
    ln_cuda_code code = ln_cuda_use(cuda->device.index);
    if (!code) code = ln_cuda_window_take(&of, stream);
    return ln_cuda_tell(cuda, code, settings->name, NULL);
}
