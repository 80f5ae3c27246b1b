/* Every row of the table of mixers against its own naive recurrence in float64. tests/oracle_CORE.c has, for each row,
 * an oracle that is obviously right; test_mixers.c puts each row through the same checks. */
#ifndef LN_TESTS_MIXER_CHECK_H
#define LN_TESTS_MIXER_CHECK_H

#include "linnet/mixer.h"

/* One sequence, all heads, packed float64. */
typedef struct oracle_call {
    const linnet_mixer_settings *settings; /* complete */
    int64_t tokens;
    const double
        *input[LINNET_MIXER_INPUTS]; /* [tokens, heads, columns], a parameter [heads, columns]; NULL: left out */
    int64_t heads[LINNET_MIXER_INPUTS], columns[LINNET_MIXER_INPUTS];
    const double *state_in; /* [heads, head_floats] */
    double *output;         /* [tokens, heads, columns] */
    double *state_out;
    int64_t head_floats, output_columns;
} oracle_call;

typedef struct mixer_oracle {
    const char *name;
    void (*run)(const oracle_call *call);
    double forward;  /* allowed RMS(error) / RMS(reference) of output and state, float32; 0: 2e-6 */
    double gradient; /* of each gradient; 0: 2e-5 */
    double bf16;     /* bf16 inputs, matrix units allowed; 0: 4e-3 */
    int variants;    /* of settings beside the default */
    void (*vary)(linnet_mixer_settings *settings, int variant); /* 1 .. variants; also makes sizes acceptable for 0 */
    /* Replaces the usual random values of an input (its range says which they are); false: keeps these.
     * Also of the states before ("state", [sequences, heads, head_floats]). */
    bool (*fill)(const linnet_mixer_settings *settings, const char *input, double *values, int64_t count, int extreme);
    int surrogate;     /* variants from this one on have gradients that are no derivatives: not compared; 0: none */
    bool omits;        /* takes NULL for optional inputs: the row is then checked without them too */
    bool opaque_state; /* its numbers may differ from the oracle's: only what follows from it is compared */
    bool no_far;       /* has a parameter or state that makes strides of 2^31 elements pointless */
} mixer_oracle;

/* Ended by a row without a name. */
extern const mixer_oracle oracle_outer[], oracle_linear[], oracle_gated[], oracle_flow[], oracle_routed[],
    oracle_channel[], oracle_delta[], oracle_scan[], oracle_cell[], oracle_learner[], oracle_wave[];

/* Input i at a token, of the head that a head of values reads. */
static inline const double *oracle_input(const oracle_call *c, int i, int64_t token, int64_t head) {
    const linnet_mixer_settings *s = c->settings;
    int64_t h = head;
    if (c->heads[i] == 1)
        h = 0;
    else if (c->heads[i] != s->heads)
        h = s->tiled_heads ? head % s->key_heads : head / (s->heads / s->key_heads);
    return c->input[i] + (token * c->heads[i] + h) * c->columns[i];
}
static inline double *oracle_output(const oracle_call *c, int64_t token, int64_t head) {
    return c->output + (token * c->settings->heads + head) * c->output_columns;
}

#endif
