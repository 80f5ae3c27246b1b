/* Linnet: what this machine can do at most, to compare speeds with. Experimental: may change between versions. */
#ifndef LINNET_BENCH_H
#define LINNET_BENCH_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Measured by small loops on the context's threads and instruction sets; 0 where those have no such loop.
 * A multiply-add counts as two operations. */
typedef struct linnet_peaks {
    size_t size;
    double f32_operations, bf16_operations, int8_operations; /* a second */
    double read_bytes;                                       /* a second, from memory beyond the caches */
} linnet_peaks;

/* Takes about half a second and, for the time being, 256 MiB. */
LINNET_API linnet_status linnet_measure_peaks(linnet_context *context, linnet_peaks *peaks);

#ifdef __cplusplus
}
#endif
#endif
