/* The inside of a linnet_session. */
#ifndef LN_GENERATE_SESSION_H
#define LN_GENERATE_SESSION_H

#include "linnet/session.h"
#include "model/device.h"
#include "model/forward.h"

/* The forward workspace, shared by a session and its forks: they run one after the other. */
typedef struct ln_workspace {
    ln_forward forward;
    int64_t users;
} ln_workspace;

/* What probes need (probe.c). */
typedef struct ln_probing ln_probing;

struct linnet_session {
    linnet_model *model;
    linnet_plan plan;
    ln_policy policy; /* plan.policy, read */
    ln_workspace *workspace;
    ln_memory *memory;
    int32_t *tokens; /* [plan.context] */
    int64_t position;
    float *logits; /* [vocabulary] */
    bool has_logits;
    ln_probing *probing;         /* NULL: the policy has no probes */
    int64_t snapshots, interval; /* as the settings had them */
    ln_state_limits limits;
    const ln_device *device;      /* NULL: the processor, and else workspace, memory and probing are NULL */
    ln_device_sequence *sequence; /* what it holds of this session */
    int64_t reached;              /* the highest position so far, on a device */
    int64_t sound;                /* tokens that the device was waited for */
    bool fetched;                 /* from a device: `logits` are those that has_logits speaks of */
    bool shares;                  /* forks may overwrite what the device has of logits: they are fetched at once */
    uint64_t spare;               /* bytes that the plan left of its bounds, for logits of many tokens */
};

/* Whether `count` tokens are of the vocabulary and have room; else the sentence that says why not. */
linnet_status ln_session_check(linnet_session *session, const int32_t *ids, int64_t count);
/* Fills what the settings leave open; LINNET_ERROR_ARGUMENT where they are impossible. */
linnet_status ln_session_settle(const linnet_model *model, const linnet_session_settings *settings,
                                linnet_session_settings *settled);
ln_state_limits ln_session_limits(const linnet_session_settings *settled);
/* What the plan leaves of the bounds that the settings give; UINT64_MAX: they give none. */
uint64_t ln_plan_spare(const linnet_plan *plan, const linnet_session_settings *settings);
/* policy NULL: none. cache: bytes for its lanes. */
ln_memory_shape ln_session_shape(const linnet_model *model, int64_t context, int64_t piece, linnet_type precision,
                                 const ln_policy *policy, uint64_t cache);
/* The plan of settled settings, precision and policy as they say; and the best that fits where they leave both open. */
linnet_status ln_plan_with(linnet_model *model, const linnet_session_settings *settled, linnet_plan *plan);
linnet_status ln_plan_choose(linnet_model *model, const linnet_session_settings *settled, linnet_plan *plan);
/* Where the policy's allocator wants the table of heads: *kinds of all layers that see everything, from the
 * calibration, for the caller to release; else NULL. LINNET_ERROR_UNSUPPORTED where there is no calibration. */
linnet_status ln_session_heads(const linnet_model *model, const ln_policy *policy, uint8_t **kinds);
/* Pieces of fewer tokens have no probe: they are settled by their own queries. */
enum { LN_PROBE_LEAST = 32 };
uint64_t ln_probing_bytes(const ln_policy *policy, int64_t piece, int64_t context);
/* Opens what the session's policy needs for probes; nothing where it has none. */
linnet_status ln_probing_open(linnet_session *session, const linnet_session_settings *settled);
void ln_probing_close(linnet_session *session);
linnet_status ln_probing_fork(linnet_session *session, linnet_session *fork);
/* Of a prompt the tokens that are read, where the policy chooses: *ids, *count become these. */
linnet_status ln_probing_choose(linnet_session *session, const int32_t **ids, int64_t *count);
/* Bytes of keys and values that the draft model holds. */
uint64_t ln_probing_pages(const linnet_session *session);
/* What the session of a draft model needs under the policy; zeros where it needs none. A sentence where there should be
 * a draft model, or it does not fit. */
linnet_status ln_draft_plan(const linnet_model *model, const linnet_session_settings *settled, const ln_policy *policy,
                            linnet_session_settings *draft, linnet_plan *plan);
/* How many of `left` tokens to read next. */
int64_t ln_probing_piece(const linnet_session *session, int64_t left);
/* Before a piece is run: finds its probe, and says so to the memory. The piece is not yet among the session's tokens.
 */
linnet_status ln_probing_prepare(linnet_session *session, const int32_t *ids, int64_t count);
/* After a piece was run, and its activations are no longer wanted. */
linnet_status ln_probing_run(linnet_session *session);
/* Whether the settings name a policy. */
bool ln_session_policy(const linnet_session_settings *settings);
/* Workspace of its lanes; 0: it has none. */
uint64_t ln_session_lanes(const linnet_model *model, const ln_memory_shape *memory);

/* ---- on a device (session_device.c, plan_device.c) ---- */

/* What settled settings name: *device NULL is the processor; about [capacity]: its name. LINNET_ERROR_UNSUPPORTED where
 * it cannot run the model and the processor is not named too. */
linnet_status ln_session_device(linnet_model *model, const linnet_session_settings *settled, const ln_device **device,
                                char *about, int64_t capacity);
/* Whether the processor is named beside a device: it is taken where the device cannot. */
bool ln_session_either(const linnet_session_settings *settings);
linnet_status ln_plan_device(linnet_model *model, const linnet_session_settings *settled, const ln_device *device,
                             const char *about, linnet_plan *plan);
linnet_status ln_device_session_open(linnet_session *session, const ln_device *device);
linnet_status ln_device_session_feed(linnet_session *session, const int32_t *ids, int64_t count);
linnet_status ln_device_session_feed_logits(linnet_session *session, const int32_t *ids, int64_t count,
                                            linnet_take_logits take, void *user);
linnet_status ln_device_session_rewind(linnet_session *session, int64_t position);
linnet_status ln_device_session_fork(linnet_session *session, linnet_session *fork);
/* A memory of the processor with what the device holds, or empty, for a session file; and back. The caller closes it.
 */
linnet_status ln_device_session_memory(linnet_session *session, bool filled, ln_memory **memory);
linnet_status ln_device_session_store(linnet_session *session, ln_memory *memory);
void ln_device_session_failed(linnet_session *session); /* after a file could not be loaded */
linnet_usage ln_device_session_usage(const linnet_session *session);
/* What a session on a device cannot do yet. */
linnet_status ln_device_session_refuse(const linnet_session *session, const char *what);
/* Brings the logits to session->logits. */
linnet_status ln_device_session_fetch(linnet_session *session);
/* The most likely token, as linnet_sample without a penalty has it. */
linnet_status ln_device_session_best(const linnet_session *session, int32_t *id);

#endif
