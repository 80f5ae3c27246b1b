/* A row of the table of mixers (mixer/mixer.h) inside a part: its settings are checked once, when the model is opened;
 * running it checks nothing. */
#ifndef LN_MODEL_PART_MIXER_H
#define LN_MODEL_PART_MIXER_H

#include "mixer/mixer.h"
#include "model/forward.h"

typedef struct ln_part_mixer {
    const ln_mixer *mixer;
    linnet_mixer_settings settings;
    int64_t state_floats;
} ln_part_mixer;

/* settings: from linnet_mixer_settings_default, of one sequence. A failure names the layer's mixer. */
linnet_status ln_part_mixer_open(linnet_model *model, const linnet_mixer_settings *settings, ln_part_mixer *made);
void ln_part_mixer_room(linnet_model *model, const ln_part_mixer *mixer, const ln_forward_shape *shape, ln_room *room);
/* The input of that name: [token, head, columns], rows and heads `stride` and `head_stride` floats apart (0: packed).
 */
void ln_part_mixer_give(const ln_part_mixer *mixer, linnet_mixer_tensors *tensors, const char *name, const float *data,
                        int64_t stride, int64_t head_stride);
/* From the state of one sequence to the next, in forward->scratch. Output: packed where tensors->output says nothing
 * else. */
void ln_part_mixer_run(ln_forward *forward, const ln_part_mixer *mixer, int64_t tokens, linnet_mixer_tensors *tensors,
                       const float *state, float *next);

#endif
