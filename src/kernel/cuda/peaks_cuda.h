/* What a device can do at most, and in what state it is: what speeds are compared with. */
#ifndef LN_KERNEL_CUDA_PEAKS_H
#define LN_KERNEL_CUDA_PEAKS_H

#include "kernel/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ln_cuda_peaks {
    double copy_bytes;      /* a second, read and written, of a copy that no cache holds */
    double bf16_operations; /* a second, of products with float32 sums whose operands never leave the multiprocessors */
} ln_cuda_peaks;

/* Takes a fifth of a second and waits for the device; for the time being uses 1 GiB, or a quarter of what is free. 0:
 * could not be timed. */
ln_cuda_code ln_cuda_peaks_measure(const ln_cuda_device *device, ln_cuda_peaks *peaks);

/* The driver's management library, loaded when asked for; NULL: it is not there. */
void *ln_cuda_sensors_open(int index);
void ln_cuda_sensors_close(void *sensors);
/* Clock of the multiprocessors in MHz and power in watts, now; 0: unknown. */
void ln_cuda_sensors_read(void *sensors, double *clock, double *power);

#ifdef __cplusplus
}
#endif
#endif
