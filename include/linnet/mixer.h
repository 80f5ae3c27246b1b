/* Linnet: mixers in linear time: every recurrent, linear, state-space, cell and convolution operator of the library
 * behind one interface. A mixer is a row of a table, found by its name ("gated_delta_rule"); docs/mixers.md lists them
 * with formula, paper, inputs, state and measured speed.
 *
 * A row reads named inputs, each [token, head, columns] or, where it is a parameter, [head, columns], and writes one
 * output [token, head, columns]. What a sequence keeps between calls is its state: one block of float32. So a text may
 * be given whole, in pieces of any length, or a token at a time, and comes out the same to the row's tolerance.
 *
 *     linnet_mixer_settings s = linnet_mixer_settings_default("gated_delta_rule");
 *     s.heads = 16, s.key_heads = 4, s.key_size = s.value_size = 128, s.tokens = 4096;
 *     void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, LINNET_MIXER_FORWARD));
 *     linnet_mixer_forward(context, &s, &tensors, workspace);
 *
 * Settings say all shapes; running allocates nothing and gives the same bits for any number of threads. Sequences of a
 * batch lie one after the other, without padding. Gates are natural logarithms of decays, <= 0, -inf allowed. Value
 * head h reads query and key head h / (heads / key_heads). Experimental: may change between versions. */
#ifndef LINNET_MIXER_H
#define LINNET_MIXER_H

#include "linnet/context.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LINNET_MIXER_INPUTS = 20, LINNET_MIXER_STATES = 6 };

/* ---- describe ---- */

typedef enum linnet_mixer_form { LINNET_MIXER_FORWARD, LINNET_MIXER_STEP, LINNET_MIXER_BACKWARD } linnet_mixer_form;

typedef struct linnet_mixer_settings {
    size_t size;
    const char *name;             /* of the row */
    linnet_type type;             /* of the inputs that follow it: LINNET_F32 (default) or LINNET_BF16 */
    int64_t heads;                /* of values and states; default 1 */
    int64_t key_heads;            /* of queries and keys; divides heads; 0: as many as heads */
    int64_t key_size, value_size; /* value_size 0: key_size */
    int64_t slots;  /* of rows that have such an axis (slots, features, states of a channel, taps): see docs/mixers.md;
                       0: the row's own */
    int64_t tokens; /* of all sequences together */
    int64_t sequences;      /* 0: 1 */
    const int64_t *offsets; /* [sequences + 1], ascending from 0 to tokens; NULL: all are equally long */
    float scale;            /* of the output or the scores; the default is the row's; NAN: key_size^-1/2 */
    bool normalise;         /* divide by the sum of weights, where a row can do both; the default is the row's */
    bool normalise_keys;    /* queries and keys are first divided by (their squares' sum + 1e-6)^1/2, where a row can */
    bool tiled_heads;       /* value head h reads key head h % key_heads instead */
    bool reverse;           /* time runs backward: from the last token of each sequence to the first */
    bool exact;             /* products of float32 even where bf16 inputs could go through matrix units */
    int64_t chunk;          /* tokens at once: 16 to 256, a multiple of 16; 0: chosen */
    double option[4];       /* meaning and defaults are the row's */
    linnet_type output;     /* LINNET_F32, the default; on a device (cuda.h) also LINNET_BF16 */
    linnet_type gates;      /* likewise of gates of channels: [token, head, columns], not of settings.type */
} linnet_mixer_settings;

/* The defaults of a row; those of no row (size 0) where the name is unknown. */
LINNET_API linnet_mixer_settings linnet_mixer_settings_default(const char *name);

/* Row i of the table, i from 0; NULL after the last. */
LINNET_API const char *linnet_mixer_name(int index);

typedef struct linnet_mixer_info {
    size_t size;
    const char *name, *core, *paper, *formula; /* for people, one line each */
    bool step, backward, reverse;              /* forms it has, beside forward */
    bool causal; /* false: outputs depend on later tokens of their sequence: no state, no pieces */
    int inputs, states;
    const char *options[4]; /* what option[i] is; NULL: unused */
} linnet_mixer_info;
/* LINNET_ERROR_ARGUMENT for a name that is unknown. */
LINNET_API linnet_status linnet_mixer_describe(linnet_context *context, const char *name, linnet_mixer_info *info);

/* Values that make sense; tests and benchmarks draw from them. */
typedef enum linnet_mixer_range {
    LINNET_RANGE_ANY,      /* about standard normal */
    LINNET_RANGE_DECAY,    /* a natural-log decay, -inf .. 0 */
    LINNET_RANGE_UNIT,     /* 0 .. 1 */
    LINNET_RANGE_TWICE,    /* 0 .. 2: strengths of writing, where 2 reflects */
    LINNET_RANGE_POSITIVE, /* 0 .. inf */
    LINNET_RANGE_NEGATIVE, /* -inf .. 0, a rate: decay per unit of step size */
    LINNET_RANGE_SMALL     /* about a tenth of standard normal: matrices that feed back, directions of rank one */
} linnet_mixer_range;

typedef struct linnet_mixer_input {
    size_t size;
    const char *name; /* "query", "key", "value", "decay", "beta"; the same meaning in every row */
    bool parameter;   /* [heads, columns], the same for all tokens */
    bool optional;
    int64_t heads, columns;
    linnet_type type;
    linnet_mixer_range range;
} linnet_mixer_input;
/* Input i under these settings (shapes of tokens and sequences do not matter). false: there is none, or the settings
 * are wrong. */
LINNET_API bool linnet_mixer_input_of(const linnet_mixer_settings *settings, int index, linnet_mixer_input *input);
/* Index of a named input; -1: the row has none. */
LINNET_API int linnet_mixer_input_index(const char *mixer, const char *name);

/* Floats of the state of one sequence: [head][part][rows][columns], parts in the order of docs/mixers.md. 0: none, or
 * wrong settings. All zeros is the beginning of a sequence, in every row. */
LINNET_API int64_t linnet_mixer_state_floats(const linnet_mixer_settings *settings);
typedef struct linnet_mixer_state {
    size_t size;
    const char *name;
    int64_t offset, rows, columns; /* in the floats of one head; state_floats / heads is from head to head */
} linnet_mixer_state;
LINNET_API bool linnet_mixer_state_of(const linnet_mixer_settings *settings, int index, linnet_mixer_state *state);
/* Columns of the output, [token, heads, columns]. */
LINNET_API int64_t linnet_mixer_output_columns(const linnet_mixer_settings *settings);
/* Arithmetic of one token and head in the form that would run: multiply and add are two. */
LINNET_API double linnet_mixer_flops(const linnet_context *context, const linnet_mixer_settings *settings,
                                     linnet_mixer_form form);

/* ---- run ---- */

typedef struct linnet_mixer_tensors {
    size_t size;                              /* sizeof, set by the caller */
    linnet_tensor input[LINNET_MIXER_INPUTS]; /* in the order of linnet_mixer_input_of; data NULL: left out */
    linnet_tensor output;                     /* float32 */
    const float *state_in;                    /* [sequences, state_floats]; NULL: beginnings */
    float *state_out;                         /* likewise; NULL: not wanted. May be state_in */
    const int64_t *state_slots; /* [sequences]: sequence s has state state_slots[s] of both arrays; NULL: s */

    /* Backward alone. Gradients are float32, are overwritten, and have their own strides. data NULL: not wanted. */
    linnet_tensor output_gradient; /* float32 */
    linnet_tensor input_gradient[LINNET_MIXER_INPUTS];
    const float *state_out_gradient; /* [sequences, state_floats]; NULL: zeros */
    float *state_in_gradient;        /* NULL: not wanted */
} linnet_mixer_tensors;

/* Bytes of workspace, aligned to 64; 0 for settings that running would refuse. */
LINNET_API uint64_t linnet_mixer_workspace(const linnet_context *context, const linnet_mixer_settings *settings,
                                           linnet_mixer_form form);
/* LINNET_ERROR_ARGUMENT names the setting or the tensor that is wrong; LINNET_ERROR_UNSUPPORTED: the row has not the
 * form. */
LINNET_API linnet_status linnet_mixer_forward(linnet_context *context, const linnet_mixer_settings *settings,
                                              const linnet_mixer_tensors *tensors, void *workspace);
/* One token of each sequence (tokens = sequences): reads and writes each state once. */
LINNET_API linnet_status linnet_mixer_step(linnet_context *context, const linnet_mixer_settings *settings,
                                           const linnet_mixer_tensors *tensors, void *workspace);
/* The state as if a sequence had begun r tokens ago (a sliding window by difference, arXiv 2410.07145):
 *
 *     window = now - e^decay before,   decay: the sum of the logarithms of the decays of the last r tokens
 *
 * now, before: states [sequences, state_floats] after the last token and r tokens earlier; window may be either. decay
 * [sequences, heads, columns], columns being key_size in rows whose keys decay one by one, else 1; NULL: no decay. Of
 * rows of the core "outer" that decay by tokens or keys alone and keep nothing but sums; else
 * LINNET_ERROR_UNSUPPORTED. What was in both states cancels: the error is an ulp of e^decay before. */
LINNET_API linnet_status linnet_mixer_window(linnet_context *context, const linnet_mixer_settings *settings,
                                             const float *now, const float *before, const double *decay, float *window);
/* Gradients of sum(output * output_gradient) + sum(state_out * state_out_gradient). Output and state_out are not
 * read. */
LINNET_API linnet_status linnet_mixer_backward(linnet_context *context, const linnet_mixer_settings *settings,
                                               const linnet_mixer_tensors *tensors, void *workspace);

#ifdef __cplusplus
}
#endif
#endif
