/* The table of mixers (linnet/mixer.h): what a row is, and the inside of a call.
 *
 * A core is a file or two with the loops of one recurrence; a row (rows_*.c) says in data which inputs and states a
 * method has, and in a few small functions how these become what the core works on. Whoever comes in through
 * ln_mixer_* or linnet_mixer_* has been checked: a core trusts its call. Adding a mixer: a row here in a rows_*.c, its
 * naive float64 recurrence in tests/oracle_*.c, its line in docs/mixers.md; test, bench and public interface follow. */
#ifndef LN_MIXER_MIXER_H
#define LN_MIXER_MIXER_H

#include "kernel/kernel.h"
#include "linnet/mixer.h"
#include "mixer/carve.h"

/* Extents that settings give. */
typedef enum ln_axis {
    LN_AXIS_ONE,
    LN_AXIS_KEY,
    LN_AXIS_VALUE,
    LN_AXIS_SLOT,
    LN_AXIS_TAIL
} ln_axis; /* TAIL: slots - 1 */
typedef enum ln_heads { LN_HEADS_VALUE, LN_HEADS_KEY, LN_HEADS_ONE } ln_heads;

enum {                   /* flags of an input */
       LN_TYPED = 1,     /* of settings.type; else float32 */
       LN_PARAMETER = 2, /* no axis of tokens */
       LN_OPTIONAL = 4
};

/* Columns are rows * columns of these axes, times `times`, plus `more`. */
typedef struct ln_mixer_input {
    const char *name; /* NULL ends the list */
    ln_heads heads;
    ln_axis rows, columns;
    unsigned flags;
    linnet_mixer_range range;
    int64_t times; /* 0: 1 */
    int64_t more;
} ln_mixer_input;

typedef struct ln_mixer_state {
    const char *name; /* NULL ends the list */
    ln_axis rows, columns;
    int64_t times, more;
} ln_mixer_state;

typedef struct ln_mixer ln_mixer;

/* One call; settings are complete (no zeros that mean something else, no NAN). */
typedef struct ln_mixer_call {
    const ln_mixer *mixer;
    const ln_kernels *kernels;
    ln_team *team;
    const linnet_mixer_settings *settings;
    const linnet_mixer_tensors *tensors;
    int64_t head_floats; /* of the state of one head */
    void *workspace;
} ln_mixer_call;

struct ln_mixer {
    const char *name, *core, *paper, *formula;
    const ln_mixer_input *inputs;
    const ln_mixer_state *states;           /* NULL: none */
    ln_axis output;                         /* columns */
    int64_t slots;                          /* default of settings.slots */
    float scale;                            /* default of settings.scale; NAN: key_size^-1/2 */
    bool normalise, normalise_keys;         /* defaults */
    bool can_normalise, can_normalise_keys; /* whether the settings may differ from them */
    bool not_causal;
    bool reverse; /* has it */
    double option[4];
    const char *options[4];
    /* What is wrong with complete settings, for people; NULL: nothing. */
    const char *(*refuse)(const linnet_mixer_settings *settings);
    /* Floats of a head's state where the lists cannot say it (rows whose state depends on more than axes). */
    int64_t (*head_floats)(const linnet_mixer_settings *settings);
    /* Rows and columns of part `index` of a head's state, where the list has names alone; columns 0: there is no such
     * part under these settings. */
    void (*state_extent)(const linnet_mixer_settings *settings, int index, int64_t *rows, int64_t *columns);
    /* Bytes; `threads` workers. UINT64_MAX: too many to be counted. */
    uint64_t (*workspace)(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                          const linnet_mixer_settings *settings, linnet_mixer_form form);
    void (*forward)(const ln_mixer_call *call);
    void (*step)(const ln_mixer_call *call);     /* NULL: forward serves */
    void (*backward)(const ln_mixer_call *call); /* NULL: has none */
    double (*flops)(const linnet_mixer_settings *settings, linnet_mixer_form form);
    const void *core_row; /* what the core wants to know of the row */
};

/* Arrays of rows, ended by a row without a name: one a core, of the outer core several. mixer.c lists them. */
extern const ln_mixer ln_rows_outer[], ln_rows_linear[], ln_rows_gated[], ln_rows_flow[], ln_rows_routed[],
    ln_rows_channel[], ln_rows_delta[], ln_rows_scan[], ln_rows_cell[], ln_rows_learner[], ln_rows_wave[];

/* ---- for the floors above: settings completed once, nothing checked when running ---- */

const ln_mixer *ln_mixer_find(const char *name);
/* Of an input of the row; -1: the row (which may be NULL) has none of the name. */
int ln_mixer_input_index(const ln_mixer *mixer, const char *name);
/* Completes settings in place; NULL, or what is wrong with them, for people. */
const char *ln_mixer_complete(linnet_mixer_settings *settings, const ln_mixer **mixer);
/* Of complete settings: every stride becomes explicit; what is missing or does not go together is told, but for
 * state_slots; whether the row has the form. */
void ln_mixer_settle_strides(const ln_mixer *mixer, const linnet_mixer_settings *settings,
                             linnet_mixer_tensors *tensors);
linnet_status ln_mixer_check_tensors(linnet_context *context, const ln_mixer *mixer,
                                     const linnet_mixer_settings *settings, const linnet_mixer_tensors *tensors,
                                     linnet_mixer_form form);
bool ln_mixer_has_form(const ln_mixer *mixer, linnet_mixer_form form);
/* Of complete settings. */
int64_t ln_mixer_head_floats(const ln_mixer *mixer, const linnet_mixer_settings *settings);
uint64_t ln_mixer_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                            const linnet_mixer_settings *settings, linnet_mixer_form form);
void ln_mixer_run(const ln_mixer *mixer, const ln_kernels *kernels, ln_team *team,
                  const linnet_mixer_settings *settings, const linnet_mixer_tensors *tensors, void *workspace,
                  linnet_mixer_form form);

/* States of a window (linnet_mixer_window): heads of all sequences, floats of each: S [features][columns], then rows of
 * [features]; decays of a head. What is wrong is told. */
typedef struct ln_mixer_window_shape {
    int64_t heads, floats, features, columns, decays;
    bool decayed; /* the row has decays */
} ln_mixer_window_shape;
linnet_status ln_mixer_window_of(linnet_context *context, const linnet_mixer_settings *settings,
                                 ln_mixer_window_shape *shape);
/* The feature that float i of a head is of. */
static inline int64_t ln_mixer_window_feature(const ln_mixer_window_shape *s, int64_t i) {
    const int64_t sums = s->features * s->columns;
    return i < sums ? i / s->columns : (i - sums) % s->features;
}

/* ---- for cores and rows ---- */

/* Tokens of sequence s. */
static inline void ln_mixer_span(const linnet_mixer_settings *s, int64_t sequence, int64_t *first, int64_t *count) {
    const int64_t each = s->tokens / s->sequences;
    *first = s->offsets ? s->offsets[sequence] : sequence * each;
    *count = s->offsets ? s->offsets[sequence + 1] - *first : each;
}
/* Tokens of the longest sequence. */
int64_t ln_mixer_longest(const linnet_mixer_settings *settings);
/* The head of queries and keys that a head of values reads. */
static inline int64_t ln_mixer_key_head(const linnet_mixer_settings *s, int64_t head) {
    return s->tiled_heads ? head % s->key_heads : head / (s->heads / s->key_heads);
}
/* Extent of an axis. */
int64_t ln_axis_of(ln_axis axis, const linnet_mixer_settings *settings);
int64_t ln_mixer_columns(const ln_mixer_input *input, const linnet_mixer_settings *settings);
int64_t ln_mixer_heads(const ln_mixer_input *input, const linnet_mixer_settings *settings);
linnet_type ln_mixer_input_type(const ln_mixer_input *input, const linnet_mixer_settings *settings);
/* Floats of one sequence's state. */
static inline int64_t ln_mixer_state_floats(const ln_mixer_call *call) {
    return call->head_floats * call->settings->heads;
}
/* The state of a head of a sequence before and after; NULL where there is none. */
const float *ln_mixer_state_in(const ln_mixer_call *call, int64_t sequence, int64_t head);
float *ln_mixer_state_out(const ln_mixer_call *call, int64_t sequence, int64_t head);
const float *ln_mixer_state_out_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head);
float *ln_mixer_state_in_gradient(const ln_mixer_call *call, int64_t sequence, int64_t head);
/* Whether input i was given. */
static inline bool ln_mixer_has(const ln_mixer_call *call, int input) {
    return call->tensors->input[input].data != NULL;
}
/* Time step `step` of a sequence is a token; under settings.reverse the last comes first. */
static inline int64_t ln_mixer_token(const ln_mixer_call *call, int64_t sequence, int64_t step) {
    int64_t first, count;
    ln_mixer_span(call->settings, sequence, &first, &count);
    return call->settings->reverse ? first + count - 1 - step : first + step;
}
/* Input i at time steps step .. step + count - 1, of the head that a head of values reads, as packed float32
 * [count, columns]. Of a parameter: sequence, step and count are not read, it is one row. */
void ln_mixer_load(const ln_mixer_call *call, int input, int64_t head, int64_t sequence, int64_t step, int64_t count,
                   float *rows);
/* Has these rows of all inputs fetched, while there is something else to do: a head's rows lie far apart. */
void ln_mixer_prefetch(const ln_mixer_call *call, int64_t head, int64_t sequence, int64_t step, int64_t count);
static inline float *ln_mixer_output(const ln_mixer_call *call, int64_t head, int64_t sequence, int64_t step) {
    const linnet_tensor *t = &call->tensors->output;
    return (float *)t->data + ln_mixer_token(call, sequence, step) * t->token_stride + head * t->head_stride;
}
static inline const float *ln_mixer_output_gradient(const ln_mixer_call *call, int64_t head, int64_t sequence,
                                                    int64_t step) {
    const linnet_tensor *t = &call->tensors->output_gradient;
    return (const float *)t->data + ln_mixer_token(call, sequence, step) * t->token_stride + head * t->head_stride;
}
/* The row of an input's gradient; NULL: not wanted. All are cleared before a core's backward runs: cores add. Heads of
 * values that share a key head share its row, and all tokens share a parameter's: one task must own such a row, in a
 * fixed order, or sums are made in scratch. */
float *ln_mixer_gradient(const ln_mixer_call *call, int input, int64_t head, int64_t sequence, int64_t step);

#endif
