/* A device that runs a model in the place of the processor: one table of functions. Weights, keys and values lie on
 * the device; the session (generate/session.c) keeps the ids, the position and the logits that were asked for.
 *
 * The table of NVIDIA GPUs comes with the kernels, in builds with LINNET_CUDA=ON; in all others there is none. */
#ifndef LN_MODEL_DEVICE_H
#define LN_MODEL_DEVICE_H

#include "memory/ragged.h"
#include "model/model.h"

typedef struct ln_device_shape {
    int64_t context, piece;
    linnet_type precision;   /* of keys and values */
    const ln_policy *policy; /* of layers that see everything; copied. NULL: none */
    uint64_t lane_bytes;     /* that their keys and values may take then */
} ln_device_shape;

/* Bytes on the device. */
typedef struct ln_device_bytes {
    uint64_t weights, pages, workspace, token; /* token: of a token's keys and values in layers that see everything */
    uint64_t available;                        /* of the device, now, with what is held of the model's weights */
    uint64_t lanes_least, lanes_most;          /* under a policy: lane_bytes that are needed, and that can be used */
} ln_device_bytes;

/* One sequence on the device. */
typedef struct ln_device_sequence ln_device_sequence;

typedef struct ln_device {
    const char *name;
    /* Where run, take, rows or lanes_at fails, tokens since the last wait are unknown, and so is all of memory under a
     * policy: lanes_at(0) must follow, which does not fail. */
    /* Whether there is a device, and it runs this model; else LINNET_ERROR_UNSUPPORTED with a sentence. about
     * [capacity]: what the device is. */
    linnet_status (*check)(linnet_model *model, char *about, int64_t capacity);
    /* Whether memory can be kept so on the device, after check; likewise. */
    linnet_status (*allows)(linnet_model *model, const ln_policy *policy);
    /* After check. LINNET_ERROR_UNSUPPORTED where keys and values cannot have this precision. With too few lane_bytes
     * all but lanes is weighed. */
    linnet_status (*weigh)(linnet_model *model, const ln_device_shape *shape, ln_device_bytes *bytes);
    /* Uploads the weights if no sequence did so before. */
    linnet_status (*open)(linnet_model *model, const ln_device_shape *shape, ln_device_sequence **sequence);
    /* A second sequence with the same tokens. */
    linnet_status (*fork)(ln_device_sequence *sequence, int64_t position, ln_device_sequence **fork);
    void (*close)(ln_device_sequence *sequence);
    /* Starts `tokens` <= piece tokens from `position` on; last: the logits of the last one follow. Returns before they
     * are done. */
    linnet_status (*run)(ln_device_sequence *sequence, const int32_t *ids, int64_t tokens, int64_t position, bool last);
    /* Waits; logits [vocabulary] of the last token, and its most likely id as linnet_sample has it. NULL: not wanted.
     */
    linnet_status (*take)(ln_device_sequence *sequence, float *logits, int32_t *best);
    /* Logits [count, vocabulary] of tokens of the piece that was run last; waits. */
    linnet_status (*rows)(ln_device_sequence *sequence, int64_t first, int64_t count, float *logits);
    /* Positions from here on can be gone back to, of a sequence that has held up to `most` tokens. */
    int64_t (*rewind_limit)(const ln_device_sequence *sequence, int64_t most);
    /* Keys and values of a layer without a policy: whole pages of 32 tokens of a head, in the processor's layout of the
     * same precision (memory/pages.h: ln_memory_pages), from the device or to it. Wait. */
    linnet_status (*fetch)(ln_device_sequence *sequence, int64_t layer, int64_t head, int64_t first, int64_t count,
                           const ln_page_layout *layout, unsigned char *pages);
    linnet_status (*store)(ln_device_sequence *sequence, int64_t layer, int64_t head, int64_t first, int64_t count,
                           const ln_page_layout *layout, const unsigned char *pages);
    /* Memory under the policy, brought to a position (from the rewind limit on, or 0) or, after it was loaded, found at
     * it; *lanes NULL: there is none. */
    linnet_status (*lanes_at)(ln_device_sequence *sequence, int64_t position, ln_ragged **lanes);
    /* As it is; NULL: there is none. */
    const ln_ragged *(*lanes)(const ln_device_sequence *sequence);
    /* Gives up what model->on_device holds. */
    void (*release)(linnet_model *model);
} ln_device;

/* NULL: this build has none. */
const ln_device *ln_device_cuda(void);

#endif
