/* Linnet: sessions: one sequence of tokens, the memory it keeps, and what comes next.
 *
 * A session holds keys and values in pages inside a budget of bytes that is planned before the first token:
 * linnet_plan tells what fits, linnet_session_open allocates all of it, feeding allocates nothing more. */
#ifndef LINNET_SESSION_H
#define LINNET_SESSION_H

#include "linnet/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum linnet_compute {
    LINNET_COMPUTE_FAST =
        0, /* activations rounded to the weights' kind (int8 blocks, bf16) where the processor is faster so */
    LINNET_COMPUTE_EXACT = 1 /* activations stay float32: on the processor alone */
} linnet_compute;

typedef struct linnet_session_settings {
    size_t size;
    int64_t context;       /* tokens to make room for; 0: the model's trained length */
    uint64_t memory;       /* bytes that may be allocated beyond the mapped weights, all in all; 0: no bound */
    linnet_type precision; /* of keys and values: F32, BF16, F16, Q8_0, Q4_0, or LINNET_TYPE_AUTO: the
                              best that fits */
    int64_t piece;         /* tokens processed at once; 0: chosen by the plan */
    linnet_compute compute;
    uint64_t activations; /* bytes that activations, logits and scratch (linnet_plan.workspace) may take, whatever the
                             length of the prompt; 0: no bound of their own */
    const char *policy;   /* what is kept of keys and values, how exactly and where: "NAME[:key=value,...]"
                             (linnet_policy_name, docs/memory.md); NULL or "auto": chosen by the plan */
    uint64_t cache;       /* bytes that keys and values may take (linnet_plan.pages); 0: what `memory` leaves */
    const char *folder;   /* for the private file of a policy with tier=file; NULL: $TMPDIR, or /tmp */
    struct linnet_model *draft; /* a small model of the same vocabulary, opened in the model's context and to be closed
                                   after the session, for policies that look ahead with one; NULL: none */
    /* Of models with recurrent states: earlier states that are kept, so that linnet_session_rewind can go back to them;
     * each takes linnet_plan.states / (2 + snapshots) bytes. One is taken where a feed of several tokens begins,
     * at linnet_session_mark, and about every `snapshot_interval` tokens (0: never so). */
    int64_t snapshots, snapshot_interval;
    /* Of models with matrix states (Mamba-2, delta rules, RWKV, GLA, retention, lightning attention), against states
     * that grow beyond what the model was trained with (docs/memory.md); 0: off. After each piece, or token, a head's
     * state S becomes S min(1, p / |S|), p = state_limit, or state_growth times what |S| was after `state_reference`
     * tokens, or the smaller. state_reference alone only remembers, for linnet_session_states. Files of a session need
     * the same state_reference. */
    int64_t state_reference;
    double state_growth, state_limit;
    /* What runs the model: NULL or "cpu"; "cuda": an NVIDIA GPU, with weights, keys and values on it, and `memory`,
     * `cache` and `activations` bounds of its bytes (docs/devices.md); "cuda,cpu" or "auto": the GPU where there is one
     * that runs this model, else the processor. */
    const char *device;
} linnet_session_settings;

LINNET_API linnet_session_settings linnet_session_settings_default(void);

/* What a session will take, in bytes, before anything is allocated. */
typedef struct linnet_plan {
    size_t size;
    int64_t context, piece, page_tokens;
    int64_t feed_forward, slice, step; /* columns of the feed-forward part; held at once; computed at once */
    linnet_type precision;
    uint64_t weights_mapped;     /* not part of total: the system drops and reloads them as it likes */
    uint64_t model;              /* vocabulary, tables, vectors: already allocated with the model */
    uint64_t pages;              /* keys and values, and ids of the tokens */
    uint64_t workspace;          /* activations of one piece, logits, scratch of the threads: whatever the context */
    uint64_t overhead;           /* the program itself: stacks, C library, file buffers */
    uint64_t total;              /* model + pages + states + workspace + overhead */
    uint64_t smallest;           /* the least `memory` with which this context fits in any way */
    uint64_t smallest_workspace; /* the least `activations` */
    uint64_t bytes_per_token;
    uint64_t cache;   /* part of pages: what the policy divides; 0: there is none */
    uint64_t draft;   /* part of pages and workspace: what the draft model takes */
    char policy[256]; /* as text, with all its parts; "": none, keys and values are kept whole */
    char reason[256]; /* why this precision, piece and slice, one sentence */
    uint64_t states;  /* recurrent states and their snapshots: whatever the context */
    char device[96];  /* what runs the model, with its name; "": the processor. Else model is the weights there, and
                         model, pages and workspace are bytes of the device */
} linnet_plan;

/* LINNET_ERROR_MEMORY where nothing fits: the error names, and plan->smallest and plan->smallest_workspace hold, the
 * smallest sufficient figures. Slices of activations change no bit of what is computed; pieces do by rounding. */
LINNET_API linnet_status linnet_plan_session(const linnet_model *model, const linnet_session_settings *settings,
                                             linnet_plan *plan);

/* ---- calibration: what policies cost a model, measured once and kept beside it ---- */

typedef struct linnet_calibrate_settings {
    size_t size;
    const int32_t *prose; /* [count] tokens of plain text that the model can continue; facts are planted in it */
    int64_t count;
    int64_t length;   /* of the text that is compressed; 0: 4096, or half of what the model was trained for */
    const char *path; /* of the file; NULL: where plans look for it, beside the model */
    uint64_t seed;
} linnet_calibrate_settings;

LINNET_API linnet_calibrate_settings linnet_calibrate_settings_default(void);
/* Reads the text under each policy of a list and with all of it kept, at several budgets, and compares what the model
 * then says: of prose that goes on, and of facts that come again. Writes what came out, with speeds and with what each
 * head looks at in a text that repeats itself. Plans choose by it. The model needs a tokenizer. */
LINNET_API linnet_status linnet_calibrate(linnet_model *model, const linnet_calibrate_settings *settings);

/* Names of policies, index 0 and up, and what each does, in a line; NULL past the end. */
LINNET_API const char *linnet_policy_name(int index);
LINNET_API const char *linnet_policy_about(int index);

typedef struct linnet_session linnet_session;

LINNET_API linnet_status linnet_session_open(linnet_model *model, const linnet_session_settings *settings,
                                             linnet_session **session);
LINNET_API void linnet_session_close(linnet_session *session);
LINNET_API linnet_plan linnet_session_plan(const linnet_session *session);

/* What keys and values take and hold now. */
typedef struct linnet_usage {
    size_t size;
    uint64_t pages, pages_peak; /* bytes with their tables: now, and the most so far, of a session and its forks */
    uint64_t file;              /* bytes in the file of the disk tier */
    int64_t kept, evicted;      /* tokens, summed over layers and key-value heads: held (wherever), and given up */
    uint64_t states;            /* bytes of recurrent states and snapshots */
} linnet_usage;

LINNET_API linnet_usage linnet_session_usage(const linnet_session *session);

/* Matrix states of a layer: |S| is the root of the sum of squares of a head's. */
typedef struct linnet_layer_states {
    size_t size;
    int64_t heads, floats; /* and floats of each; heads 0: the layer has none */
    double mean, largest;  /* the root of the mean of |S|^2 over the heads; the largest |S| */
    int64_t largest_head;  /* that has it */
    double early_mean;     /* `mean` after state_reference tokens; 0: not remembered, or not reached */
    double growth;         /* the largest |S| now by |S| then; 0 likewise */
    int64_t growth_head;   /* that has it */
} linnet_layer_states;

/* Reads the states of one layer where the session is now; costs nothing where it is not called. norms [heads], NULL:
 * not wanted. A head whose |S| is several times what it was early in the text may be past what the model has learnt to
 * read (arXiv 2410.07145). */
LINNET_API linnet_status linnet_session_states(const linnet_session *session, int64_t layer,
                                               linnet_layer_states *states, double *norms);

/* Appends tokens and computes what follows them. Under a policy with prompt=draft many tokens at once are thinned out
 * first: those left are appended, one position after the other. LINNET_ERROR_FULL where they exceed the context:
 * nothing is changed then. After LINNET_INTERRUPTED the tokens of finished pieces are kept: see
 * linnet_session_position. So they are where a device fails; under a policy the session is empty then. */
LINNET_API linnet_status linnet_session_feed(linnet_session *session, const int32_t *ids, int64_t count);
/* The same, giving the logits of every token: `take` is called with rows [count, vocabulary] for tokens first .. first
 * + count - 1 of `ids`; a status other than LINNET_OK from it ends the call with that status. */
typedef linnet_status (*linnet_take_logits)(void *user, int64_t first, int64_t count, const float *logits);
LINNET_API linnet_status linnet_session_feed_logits(linnet_session *session, const int32_t *ids, int64_t count,
                                                    linnet_take_logits take, void *user);
/* KV Prediction (P177): `helper`, a session of a smaller model at the same position, reads the tokens, and linear maps
 * of its keys and values become the session's own, which does not read them: a prompt costs about what it costs the
 * helper. The maps were trained for the two models and lie beside the helper's file, in MODEL.predict.gguf. No logits
 * follow: feed at least the last token of a prompt. LINNET_ERROR_UNSUPPORTED where there are no maps for these models,
 * or the session has a policy, which would need the model's own queries. After LINNET_INTERRUPTED both hold the
 * tokens of finished pieces. */
LINNET_API linnet_status linnet_session_predict(linnet_session *session, linnet_session *helper, const int32_t *ids,
                                                int64_t count);
/* Logits [vocabulary] after the last token; NULL before the first and after a rewind. Valid until the next call. */
LINNET_API const float *linnet_session_logits(const linnet_session *session);
/* Tokens held, and their ids. */
LINNET_API int64_t linnet_session_position(const linnet_session *session);
LINNET_API const int32_t *linnet_session_tokens(const linnet_session *session);

/* Forgets all tokens from `position` on. Sliding layers keep only their window, and recurrent states are known only
 * after the last token, before the piece or the token that was read last, and where snapshots were taken:
 * linnet_session_rewind_point is the last position up to `position` that can be gone back to; other positions are
 * refused (LINNET_ERROR_UNSUPPORTED). 0 is always possible, and all from linnet_session_rewind_limit on. */
LINNET_API linnet_status linnet_session_rewind(linnet_session *session, int64_t position);
LINNET_API int64_t linnet_session_rewind_point(const linnet_session *session, int64_t position);
/* Keeps a snapshot of recurrent states where the session is now, if it was opened with room for any. */
LINNET_API void linnet_session_mark(linnet_session *session);
LINNET_API int64_t linnet_session_rewind_limit(const linnet_session *session);
/* A second session that continues from the same tokens; pages are shared until one of them writes. */
LINNET_API linnet_status linnet_session_fork(linnet_session *session, linnet_session **fork);
/* Saves tokens, keys and values (checksummed; appears whole or not at all); loads them into a session of the same model
 * and precision. */
LINNET_API linnet_status linnet_session_save(linnet_session *session, const char *path);
LINNET_API linnet_status linnet_session_load(linnet_session *session, const char *path);

/* ---- choosing the next token ---- */

typedef struct linnet_sampler linnet_sampler;

typedef struct linnet_sampler_settings {
    size_t size;
    float temperature;    /* 0: the most likely token */
    int32_t top_k;        /* 0: off */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 1: off */
    int32_t repeat_last;  /* tokens the penalty looks back */
    uint64_t seed;
} linnet_sampler_settings;

/* temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalty */
LINNET_API linnet_sampler_settings linnet_sampler_settings_default(void);
LINNET_API linnet_status linnet_sampler_open(const linnet_model *model, const linnet_sampler_settings *settings,
                                             linnet_sampler **sampler);
LINNET_API void linnet_sampler_close(linnet_sampler *sampler);
/* The next token of the session by its logits. The session is not changed: feed the token to go on. */
LINNET_API linnet_status linnet_sample(linnet_sampler *sampler, const linnet_session *session, int32_t *id);

#ifdef __cplusplus
}
#endif
#endif
