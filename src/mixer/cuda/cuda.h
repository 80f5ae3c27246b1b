/* What the operators on a device share: the opened device, and how its codes become statuses with a sentence. */
#ifndef LN_MIXER_CUDA_H
#define LN_MIXER_CUDA_H

#include "base/context.h"
#include "kernel/cuda/device_cuda.h"
#include "linnet/cuda.h"

struct linnet_cuda {
    linnet_context *context;
    ln_cuda_device device;
    void *sensors; /* opened by the first that asks; NULL: none */
};

/* LINNET_OK, or the failure of `what` told on the context; why: a plan's sentence, or NULL. */
linnet_status ln_cuda_tell(const linnet_cuda *cuda, ln_cuda_code code, const char *what, const char *why);

/* NULL, or what is wrong with a workspace: asked before anything is written to it. */
const char *ln_cuda_wrong_workspace(const void *workspace);

#endif
