/* Mixers on a device: the opened mixer, and the ways by which rows of the table run there. A way is a family of kernels
 * (src/kernel/cuda/) with the rows that it serves; mixer_NAME.c holds those of one family. */
#ifndef LN_MIXER_CUDA_MIXER_H
#define LN_MIXER_CUDA_MIXER_H

#include "kernel/cuda/delta_backward_cuda.h"
#include "kernel/cuda/delta_cuda.h"
#include "kernel/cuda/dplr_cuda.h"
#include "kernel/cuda/fit_cuda.h"
#include "kernel/cuda/linear_backward_cuda.h"
#include "kernel/cuda/linear_cuda.h"
#include "kernel/cuda/scan_cuda.h"
#include "kernel/cuda/short_convolution_cuda.h"
#include "kernel/cuda/step_cuda.h"
#include "mixer/cuda/cuda.h"
#include "mixer/mixer.h"

typedef struct ln_cuda_way ln_cuda_way;

struct linnet_cuda_mixer {
    linnet_cuda *cuda;
    linnet_mixer_settings outer;    /* complete, the caller's; offsets are this structure's own */
    linnet_mixer_settings settings; /* those of the kernels */
    const ln_mixer *row;
    linnet_mixer_form form;
    const ln_cuda_way *way;
    int64_t *offsets;   /* [sequences + 1] */
    uint64_t workspace; /* bytes */
    int64_t own;        /* where in it what is not the kernels' begins: gates, offsets */
    const char *why;
    /* Whether tensors are made to fit the kernels, and where in the workspace (fit.c). */
    bool fitted;
    int64_t fit_at[6 + 2 * LINNET_MIXER_INPUTS];
    ln_cuda_fit_states fit_states; /* but for the slots, which are a run's */
    char fit_why[LN_CUDA_WHY + 128];
    union {
        struct {
            ln_cuda_linear problem;
            ln_cuda_linear_plan plan;
            ln_cuda_linear_gradient_plan backward;
        } linear;
        struct {
            ln_cuda_delta problem;
            ln_cuda_delta_plan plan;
            ln_cuda_delta_backward gradients;
            ln_cuda_delta_backward_plan backward;
        } delta;
        struct {
            ln_cuda_dplr problem;
            ln_cuda_dplr_plan plan;
        } dplr;
        struct {
            ln_cuda_scan problem;
            ln_cuda_scan_plan plan;
        } scan;
        struct {
            ln_cuda_short_convolution problem;
            ln_cuda_short_convolution_plan plan;
        } convolution;
        struct {
            ln_cuda_step problem;
            ln_cuda_step_plan plan;
        } step;
    };
};

struct ln_cuda_way {
    const char *const *rows; /* names, ended by NULL */
    linnet_mixer_form form;
    /* Makes the plan; sets workspace, own and why. */
    ln_cuda_code (*open)(linnet_cuda_mixer *mixer);
    ln_cuda_code (*prepare)(const linnet_cuda_mixer *mixer, void *workspace, void *stream);
    ln_cuda_code (*run)(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, void *workspace,
                        void *stream);
};

extern const ln_cuda_way ln_cuda_linear_way, ln_cuda_linear_backward_way, ln_cuda_delta_way, ln_cuda_delta_backward_way,
    ln_cuda_dplr_way, ln_cuda_scan_way, ln_cuda_scan_step_way, ln_cuda_convolution_way, ln_cuda_convolution_step_way,
    ln_cuda_convolution_backward_way, ln_cuda_step_way, ln_cuda_dplr_backward_way, ln_cuda_scan_backward_way;

/* ---- tensors that are made to fit (fit.c) ---- */

/* Opens the way, with other settings where there is no kernel for the caller's. */
ln_cuda_code ln_cuda_mixer_fit(linnet_cuda_mixer *mixer);
ln_cuda_code ln_cuda_mixer_fit_prepare(const linnet_cuda_mixer *mixer, void *workspace, void *stream);
ln_cuda_code ln_cuda_mixer_fit_run(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, void *workspace,
                                   void *stream);

/* ---- for the ways: inputs by name, strides explicit ---- */

bool ln_cuda_mixer_is(const linnet_cuda_mixer *mixer, const char *row);
ln_cuda_tensor ln_cuda_mixer_input(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                   const char *name);
/* The gradient of an input. */
ln_cuda_tensor ln_cuda_mixer_gradient(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors,
                                      const char *name);
/* Of one number a token and head, or a head: a parameter's token stride is 0. */
ln_cuda_gate ln_cuda_mixer_gate(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, const char *name);
static inline ln_cuda_tensor ln_cuda_tensor_of(linnet_tensor t) {
    return (ln_cuda_tensor){t.data, t.token_stride, t.head_stride};
}
/* Whether a tensor of one number a token and head, or of a head's columns, and backward its gradient, lie without gaps:
 * where kernels take no strides. */
bool ln_cuda_mixer_dense(const linnet_cuda_mixer *mixer, const linnet_mixer_tensors *tensors, const char *name);

/* LN_CUDA_UNSUPPORTED with a reason, where gradients are asked for in float32 and the kernels write bf16. */
ln_cuda_code ln_cuda_mixer_gradients_short(linnet_cuda_mixer *mixer);
/* log(1 - 2^(-5 - head)) of every head, to the device; waits for the stream. */
ln_cuda_code ln_cuda_retention_decays(const linnet_cuda_mixer *mixer, void *to, void *stream);

#endif
