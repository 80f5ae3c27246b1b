/* Owns: the public view of the measured peaks. */
#include "base/context.h"
#include "kernel/peak.h"
#include "linnet/bench.h"

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
