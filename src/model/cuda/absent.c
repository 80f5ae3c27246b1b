/* A build without kernels for devices; where they are built (LINNET_CUDA=ON), engine.c stands for this. */
#include "model/device.h"

const ln_device *ln_device_cuda(void) {
    return NULL;
}
