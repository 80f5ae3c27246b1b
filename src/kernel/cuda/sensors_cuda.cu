/* Clock and power by the driver's management library, loaded at run time: it is part of the driver, and where it is not
 * there nothing is lost but two figures. Its few functions are declared here as its manual gives them. */
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "kernel/cuda/peaks_cuda.h"

typedef struct sensors {
    void *file, *device;
    int (*close)(void);
    int (*clock)(void *device, int which, unsigned *megahertz);
    int (*power)(void *device, unsigned *milliwatts);
} sensors;

enum { CLOCK_OF_MULTIPROCESSORS = 1, ADDRESS_BYTES = 32 };

void *ln_cuda_sensors_open(int index) {
    char address[ADDRESS_BYTES] = "";
    sensors *made = (sensors *)calloc(1, sizeof *made);
    if (!made) return NULL;
    made->file = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (made->file && cudaDeviceGetPCIBusId(address, ADDRESS_BYTES, index) == cudaSuccess) {
        int (*open)(void) = (int (*)(void))dlsym(made->file, "nvmlInit_v2");
        int (*find)(const char *, void **) =
            (int (*)(const char *, void **))dlsym(made->file, "nvmlDeviceGetHandleByPciBusId_v2");
        made->clock = (int (*)(void *, int, unsigned *))dlsym(made->file, "nvmlDeviceGetClockInfo");
        made->power = (int (*)(void *, unsigned *))dlsym(made->file, "nvmlDeviceGetPowerUsage");
        int (*close)(void) = (int (*)(void))dlsym(made->file, "nvmlShutdown");
        if (open && find && made->clock && made->power && close && open() == 0) {
            made->close = close;
            if (find(address, &made->device) == 0) return made;
        }
    }
    ln_cuda_sensors_close(made);
    return NULL;
}

void ln_cuda_sensors_close(void *given) {
    sensors *made = (sensors *)given;
    if (!made) return;
    if (made->close) made->close();
    if (made->file) dlclose(made->file);
    free(made);
}

void ln_cuda_sensors_read(void *given, double *clock, double *power) {
    const sensors *made = (const sensors *)given;
    unsigned megahertz = 0, milliwatts = 0;
    *clock = made && made->clock(made->device, CLOCK_OF_MULTIPROCESSORS, &megahertz) == 0 ? megahertz : 0;
    *power = made && made->power(made->device, &milliwatts) == 0 ? milliwatts * 1e-3 : 0;
}
