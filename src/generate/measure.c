/* Owns: the public view of the measured peaks. */
#include <string.h>

#include "base/context.h"
#include "kernel/peak.h"
#include "linnet/bench.h"
#include "model/device.h"

linnet_status linnet_measure_peaks(linnet_context *context, linnet_peaks *peaks) {
    ln_peak measured[LN_PEAKS];
    *peaks = (linnet_peaks){.size = sizeof *peaks};
    const linnet_status status = ln_peak_measure(context, context->cpu, measured);
    if (status != LINNET_OK) return status;
    double *const to[LN_PEAKS] = {
        [LN_PEAK_F32] = &peaks->f32_operations,
        [LN_PEAK_BF16] = &peaks->bf16_operations,
        [LN_PEAK_INT8] = &peaks->int8_operations,
        [LN_PEAK_READ] = &peaks->read_bytes,
    };
    for (int i = 0; i < LN_PEAKS; i++) *to[i] = measured[i].name ? measured[i].per_second : 0;
    return LINNET_OK;
}

linnet_status linnet_measure_device_peaks(linnet_context *context, const char *device, linnet_peaks *peaks) {
    const ln_device *table = ln_device_cuda();
    *peaks = (linnet_peaks){.size = sizeof *peaks};
    if (!device || strcmp(device, "cuda") != 0)
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "there is no device '%s', only cuda", device ? device : "");
    if (!table)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "this build has no kernels for GPUs; builds with LINNET_CUDA=ON do");
    return table->peaks(context, peaks);
}
