/* The gated delta rule over a text in pieces, then a token at a time, against the text as a whole: mixer [NAME]
 *
 *     cc mixer.c $(pkg-config --cflags --libs linnet) -lm -o mixer */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linnet/linnet.h>

enum { TOKENS = 1000, HEADS = 4, KEY_HEADS = 2, SIZE = 64 };

static float uniform(void) {
    return (float)rand() / (float)RAND_MAX - 0.5F;
}

/* Random values that suit the input: decays at most 0, strengths from 0 to 1, keys of length about one. */
static float *random_input(const linnet_mixer_input *input) {
    const int64_t count = (input->parameter ? 1 : TOKENS) * input->heads * input->columns;
    float *values = malloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) {
        const float x = uniform();
        values[i] = input->range == LINNET_RANGE_ANY ? 3.5F * x / sqrtf((float)input->columns)
                    : input->range == LINNET_RANGE_DECAY || input->range == LINNET_RANGE_NEGATIVE ? -fabsf(x)
                    : input->range == LINNET_RANGE_SMALL                                          ? 0.1F * x
                                                                                                  : 0.5F + x;
    }
    return values;
}

/* Tokens first .. first + s.tokens - 1, the state carried on. */
static linnet_status run(linnet_context *context, linnet_mixer_settings s, float *const *inputs, int64_t first,
                         float *output, float *state, linnet_mixer_form form) {
    linnet_mixer_tensors t = {.size = sizeof t};
    linnet_mixer_input input;
    for (int k = 0; linnet_mixer_input_of(&s, k, &input); k++)
        t.input[k].data = inputs[k] + (input.parameter ? 0 : first * input.heads * input.columns);
    t.output.data = output + first * s.heads * linnet_mixer_output_columns(&s);
    t.state_in = t.state_out = state;
    void *workspace = aligned_alloc(64, linnet_mixer_workspace(context, &s, form));
    const linnet_status status = form == LINNET_MIXER_STEP ? linnet_mixer_step(context, &s, &t, workspace)
                                                           : linnet_mixer_forward(context, &s, &t, workspace);
    free(workspace);
    return status;
}

int main(int count, char **words) {
    linnet_context *context;
    if (linnet_context_open(NULL, &context) != LINNET_OK) return 1;
    linnet_mixer_settings s = linnet_mixer_settings_default(count > 1 ? words[1] : "gated_delta_rule");
    s.heads = HEADS, s.key_heads = KEY_HEADS, s.key_size = SIZE, s.tokens = TOKENS;
    const int64_t outputs = TOKENS * HEADS * linnet_mixer_output_columns(&s), states = linnet_mixer_state_floats(&s);
    float *inputs[LINNET_MIXER_INPUTS] = {0}, *whole = calloc((size_t)outputs + 1, sizeof *whole),
          *pieces = calloc((size_t)outputs + 1, sizeof *pieces), *state = calloc((size_t)states + 1, sizeof *state);
    linnet_mixer_input input;
    for (int k = 0; linnet_mixer_input_of(&s, k, &input); k++) {
        inputs[k] = random_input(&input);
        printf("%s: [%s%lld, %lld]\n", input.name, input.parameter ? "" : "token, ", (long long)input.heads,
               (long long)input.columns);
    }
    linnet_status status = run(context, s, inputs, 0, whole, state, LINNET_MIXER_FORWARD);
    memset(state, 0, (size_t)states * sizeof *state);
    const int64_t cuts[] = {0, 1, 700, 997};
    for (int i = 0; i < 3 && status == LINNET_OK; i++) {
        s.tokens = cuts[i + 1] - cuts[i];
        status = run(context, s, inputs, cuts[i], pieces, state, LINNET_MIXER_FORWARD);
    }
    s.tokens = 1;
    for (int64_t token = cuts[3]; token < TOKENS && status == LINNET_OK; token++)
        status = run(context, s, inputs, token, pieces, state, LINNET_MIXER_STEP);
    if (status != LINNET_OK) return puts(linnet_last_error(context)), 1;
    double error = 0, size = 0;
    for (int64_t i = 0; i < outputs; i++) {
        error += pow((double)(whole[i] - pieces[i]), 2);
        size += pow((double)whole[i], 2);
    }
    printf("state: %lld bytes a sequence; pieces and steps differ from the whole by %.1e of its size\n",
           (long long)(4 * states), sqrt(error / size));
    for (int k = 0; k < LINNET_MIXER_INPUTS; k++) free(inputs[k]);
    free(whole);
    free(pieces);
    free(state);
    linnet_context_close(context);
    return 0;
}
