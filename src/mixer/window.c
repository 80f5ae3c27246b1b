/* Owns: states of a sliding window by difference. The recurrence is linear in its beginning,
 *
 *     S[t] = D S[t-r] + (what the last r tokens wrote),   D = the product of their decays,
 *
 * so taking off D S[t-r] leaves what a sequence of these tokens alone would have. Sums that are kept beside S (of
 * weights, behind it in a head) decay alike. Rows with a maximum or other sides are not linear in this sense. */
#include <math.h>
#include <string.h>

#include "base/context.h"
#include "mixer/outer.h"

linnet_status ln_mixer_window_of(linnet_context *context, const linnet_mixer_settings *settings,
                                 ln_mixer_window_shape *shape) {
    linnet_mixer_settings s = *settings;
    const ln_mixer *mixer;
    const char *wrong = ln_mixer_complete(&s, &mixer);
    if (wrong) return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s: %s", s.name ? s.name : "mixer", wrong);
    const ln_outer_row *row = strcmp(mixer->core, "outer") == 0 ? mixer->core_row : NULL;
    if (!row || row->decay == LN_OUTER_VALUE_DECAY || (row->side && row->side(&s) > 0))
        return ln_fail(context, LINNET_ERROR_UNSUPPORTED,
                       "%s: the state is not a sum that decays by tokens or keys, so no window can be taken", s.name);
    *shape = (ln_mixer_window_shape){.floats = ln_mixer_head_floats(mixer, &s),
                                     .heads = s.sequences * s.heads,
                                     .features = row->features ? row->features(&s) : s.key_size,
                                     .columns = row->columns ? row->columns(&s) : s.value_size,
                                     .decays = 1,
                                     .decayed = row->decay != LN_OUTER_NO_DECAY};
    if (row->decay == LN_OUTER_KEY_DECAY) shape->decays = shape->features;
    return LINNET_OK;
}

linnet_status linnet_mixer_window(linnet_context *context, const linnet_mixer_settings *settings, const float *now,
                                  const float *before, const double *decay, float *window) {
    ln_mixer_window_shape s;
    const linnet_status status = ln_mixer_window_of(context, settings, &s);
    if (status != LINNET_OK) return status;
    if (!now || !before || !window || (!decay && s.decayed))
        return ln_fail(context, LINNET_ERROR_ARGUMENT, "%s: a window needs both states and the decays", settings->name);
    for (int64_t h = 0; h < s.heads; h++)
        for (int64_t i = 0; i < s.floats; i++) {
            const int64_t at = h * s.floats + i, feature = ln_mixer_window_feature(&s, i);
            const double d = decay ? exp(decay[h * s.decays + (s.decays > 1 ? feature : 0)]) : 1;
            window[at] = (float)((double)now[at] - d * (double)before[at]);
        }
    return LINNET_OK;
}
