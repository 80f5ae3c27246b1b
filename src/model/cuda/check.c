/* Owns: which models run on a GPU and which GPUs run models, and the sentences that say why not. */
#include <stdio.h>

#include "model/cuda/engine.h"
#include "model/take.h"

linnet_status ln_cuda_fail(linnet_context *context, ln_cuda_code code, const char *what) {
    switch (code) {
    case LN_CUDA_OK:
        return LINNET_OK;
    case LN_CUDA_NO_DEVICE:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s: there is no GPU that the driver can use", what);
    case LN_CUDA_OLD_DRIVER:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s: the GPU's driver is older than this build needs", what);
    case LN_CUDA_OUT_OF_MEMORY:
        return ln_fail(context, LINNET_ERROR_MEMORY, "%s: the GPU has too little memory left", what);
    case LN_CUDA_UNSUPPORTED:
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s: there is no kernel for this on this GPU", what);
    case LN_CUDA_ARGUMENT:
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s: a kernel was given what it cannot take", what);
    case LN_CUDA_FAILED:
        break;
    }
    return ln_fail(context, LINNET_ERROR_UNSUPPORTED, "%s: the GPU reported an error (%s); it may need a restart", what,
                   ln_cuda_error_name());
}

/* ---- which models ---- */

static linnet_status refuse_part(linnet_model *model, int64_t layer, const char *what) {
    return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED,
                   "layer %lld has %s, which does not run on a GPU yet: --device cpu runs it", (long long)layer, what);
}

static linnet_status check_model(linnet_model *model) {
    const ln_hyperparameters *h = &model->hyper;
    for (int64_t i = 0; i < h->layers; i++)
        for (int b = 0; b < model->layers[i].count; b++) {
            const ln_block *block = &model->layers[i].block[b];
            const ln_part *part = &block->part[0];
            char what[64];
            snprintf(what, sizeof what, "a part of kind %s", part->kind->name);
            if (block->parts != 1) return refuse_part(model, i, "parts side by side");
            if (part->kind != &ln_attention_part && part->kind != &ln_feed_forward_part)
                return refuse_part(model, i, what);
            if (part->kind == &ln_attention_part && ((const ln_attention_weights *)part->weights)->gated)
                return refuse_part(model, i, "gated attention");
            if (part->kind == &ln_feed_forward_part &&
                ((const ln_feed_forward_weights *)part->weights)->activation == LN_RELU_SQUARED)
                return refuse_part(model, i, "a feed-forward part with squared units");
        }
    if (h->value_in_key) return refuse_part(model, 0, "latent attention");
    if (h->width > 8192)
        return ln_fail(model->context, LINNET_ERROR_UNSUPPORTED, "a width of %lld is more than a GPU block holds",
                       (long long)h->width);
    return LINNET_OK;
}

linnet_status ln_cuda_find_device(linnet_context *context, ln_cuda_device *device) {
    const ln_cuda_code code = ln_cuda_device_read(0, device);
    int driver, runtime;
    if (code == LN_CUDA_OK && device->major >= 8) return LINNET_OK;
    if (code == LN_CUDA_OK)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "the GPU has compute capability %d.%d; 8.0 or newer is needed", device->major, device->minor);
    if (code == LN_CUDA_NO_DEVICE)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "no NVIDIA GPU was found that the driver can use; --device cpu runs without one");
    ln_cuda_versions(&driver, &runtime);
    if (code == LN_CUDA_OLD_DRIVER)
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "the GPU's driver knows CUDA %d.%d, this build needs %d.%d: update the driver, or --device cpu",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return ln_cuda_fail(context, code, "looking for a GPU");
}

linnet_status ln_cuda_check(linnet_model *model, char *about, int64_t capacity) {
    ln_cuda_device device;
    LN_TRY(ln_cuda_find_device(model->context, &device));
    LN_TRY(check_model(model));
    ln_cuda_device_name(device.index, about, (int)capacity);
    return LINNET_OK;
}
