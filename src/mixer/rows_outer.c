/* Owns: the rows of the outer core (I) whose features are the inputs themselves. Inputs 0 to 3 of all are query, key,
 * value and decay. */
#include <math.h>

#include "mixer/outer.h"

enum { QUERY, KEY, VALUE, DECAY };
#define QUERIES_KEYS_VALUES                                                                  \
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},     \
        {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED}, { \
        .name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED                         \
    }

static const ln_mixer_state matrix_state[] = {{.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE}, {0}};

static void load_plain(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, KEY, t->key, t->key_stride);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
}
static void gradient_plain(ln_outer_tile *t) {
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, KEY, t->key_gradient, t->key_stride);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
}

/* ---- no decay ---- */

static const ln_mixer_input plain_inputs[] = {QUERIES_KEYS_VALUES, {0}};
static const ln_mixer_state normalised_states[] = {
    {.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE}, {.name = "keys", .columns = LN_AXIS_KEY}, {0}};
static const float LEAST_SUM = 1e-10f;

static int64_t normalised_extra(const linnet_mixer_settings *s) {
    return s->normalise;
}
static void load_normalised(ln_outer_tile *t) {
    load_plain(t);
    for (int64_t i = 0; t->extra && i < t->count; i++) t->value[i * t->value_stride + t->columns] = 1;
}
static void finish_normalised(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        const float *sums = t->sums + i * t->value_stride;
        const float weight = t->extra ? sums[t->columns] + LEAST_SUM : 1;
        for (int64_t c = t->first; c < t->last; c++) out[c] = sums[c] / weight;
    }
}
static void finish_gradient_normalised(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *out = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        const float *sums = t->sums + i * t->value_stride;
        float *gradient = t->sums_gradient + i * t->value_stride, total = 0;
        const float weight = t->extra ? sums[t->columns] + LEAST_SUM : 1;
        for (int64_t c = 0; c < t->columns; c++) {
            gradient[c] = out[c] / weight;
            total += gradient[c] * sums[c];
        }
        if (t->extra) gradient[t->columns] = -total / weight;
    }
}
static const ln_outer_row linear_attention = {.extra = normalised_extra,
                                              .load = load_normalised,
                                              .finish = finish_normalised,
                                              .finish_gradient = finish_gradient_normalised,
                                              .gradient = gradient_plain};

/* ---- a decay of a head ---- */

static void load_retention(ln_outer_tile *t) {
    load_plain(t);
    for (int64_t i = 0; i < t->count; i++) t->decay[i] = (float)log1p(-ldexp(1, (int)(-5 - t->head)));
}
static const ln_outer_row retention = {.decay = LN_OUTER_DECAY, .load = load_retention, .gradient = gradient_plain};

static const ln_mixer_input lightning_inputs[] = {
    QUERIES_KEYS_VALUES,
    {.name = "slope", .columns = LN_AXIS_ONE, .flags = LN_PARAMETER, .range = LINNET_RANGE_POSITIVE},
    {0},
};
static void load_lightning(ln_outer_tile *t) {
    load_plain(t);
    float slope;
    ln_outer_load(t, DECAY, &slope, 1);
    for (int64_t i = 0; i < t->count; i++) t->decay[i] = -slope;
}
static void gradient_lightning(ln_outer_tile *t) {
    gradient_plain(t);
    float *slope = ln_outer_parameter(t, DECAY);
    for (int64_t i = 0; i < t->count; i++) *slope -= t->decay_gradient[i];
}
static const ln_outer_row lightning = {.decay = LN_OUTER_DECAY, .load = load_lightning, .gradient = gradient_lightning};

/* ---- a decay of a token ---- */

static const ln_mixer_input token_inputs[] = {
    QUERIES_KEYS_VALUES, {.name = "decay", .columns = LN_AXIS_ONE, .range = LINNET_RANGE_DECAY}, {0}};

static void load_token(ln_outer_tile *t) {
    load_plain(t);
    ln_outer_load(t, DECAY, t->decay, 1);
}
static void gradient_token(ln_outer_tile *t) {
    gradient_plain(t);
    ln_outer_add(t, DECAY, t->decay_gradient, 1);
}
static const ln_outer_row simple_gla = {.decay = LN_OUTER_DECAY, .load = load_token, .gradient = gradient_token};

/* ---- Mamba-2 ---- */

enum { STEP_SIZE = 3, RATE, SKIP };
static const ln_mixer_input ssd_inputs[] = {
    QUERIES_KEYS_VALUES,
    {.name = "step_size", .columns = LN_AXIS_ONE, .range = LINNET_RANGE_POSITIVE},
    {.name = "rate", .columns = LN_AXIS_ONE, .flags = LN_PARAMETER, .range = LINNET_RANGE_NEGATIVE},
    {.name = "skip", .columns = LN_AXIS_ONE, .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};
/* Of a token: its step size, then its values as they were given. */
static int64_t ssd_scratch(const linnet_mixer_settings *s) {
    return s->value_size + 1;
}
static float skip_of(const ln_outer_tile *t) {
    float skip = 0;
    if (ln_mixer_has(t->call, SKIP)) ln_outer_load(t, SKIP, &skip, 1);
    return skip;
}
static void load_ssd(ln_outer_tile *t) {
    float rate, *sizes = t->scratch, *given = t->scratch + t->count;
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, KEY, t->key, t->key_stride);
    ln_outer_load(t, VALUE, given, t->columns);
    ln_outer_load(t, STEP_SIZE, sizes, 1);
    ln_outer_load(t, RATE, &rate, 1);
    for (int64_t i = 0; i < t->count; i++) t->decay[i] = sizes[i] * rate;
    t->call->kernels->tile.scale_rows(t->value, t->value_stride, given, t->columns, sizes, t->count, t->columns);
}
static void finish_ssd(ln_outer_tile *t) {
    const float skip = skip_of(t);
    for (int64_t i = 0; i < t->count; i++) {
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        const float *sums = t->sums + i * t->value_stride, *given = t->scratch + t->count + i * t->columns;
        for (int64_t c = t->first; c < t->last; c++) out[c] = sums[c] + skip * given[c];
    }
}
static void gradient_ssd(ln_outer_tile *t) {
    float rate;
    const float skip = skip_of(t), *sizes = t->scratch, *given = t->scratch + t->count;
    float *rate_gradient = ln_outer_parameter(t, RATE), *skip_gradient = ln_outer_parameter(t, SKIP);
    ln_outer_load(t, RATE, &rate, 1);
    for (int64_t i = 0; i < t->count; i++) {
        const float *x = given + i * t->columns,
                    *out = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        float *dx = t->value_gradient + i * t->value_stride, size = 0, own = 0;
        for (int64_t c = 0; c < t->columns; c++) {
            size += x[c] * dx[c];
            own += x[c] * out[c];
            dx[c] = sizes[i] * dx[c] + skip * out[c];
        }
        *skip_gradient += own;
        *rate_gradient += sizes[i] * t->decay_gradient[i];
        t->decay_gradient[i] = size + rate * t->decay_gradient[i];
    }
    gradient_plain(t);
    ln_outer_add(t, STEP_SIZE, t->decay_gradient, 1);
}
static const ln_outer_row ssd = {
    .decay = LN_OUTER_DECAY, .scratch = ssd_scratch, .load = load_ssd, .finish = finish_ssd, .gradient = gradient_ssd};

/* ---- a decay of each key channel ---- */

static const ln_mixer_input channel_inputs[] = {
    QUERIES_KEYS_VALUES, {.name = "decay", .columns = LN_AXIS_KEY, .range = LINNET_RANGE_DECAY}, {0}};

static void load_channel(ln_outer_tile *t) {
    load_plain(t);
    ln_outer_load(t, DECAY, t->decay, t->key_stride);
}
static void gradient_channel(ln_outer_tile *t) {
    gradient_plain(t);
    ln_outer_add(t, DECAY, t->decay_gradient, t->key_stride);
}
static const ln_outer_row gla = {.decay = LN_OUTER_KEY_DECAY, .load = load_channel, .gradient = gradient_channel};

enum { HGRN2_VALUE = 1, HGRN2_DECAY };
static const ln_mixer_input hgrn2_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "decay", .columns = LN_AXIS_KEY, .range = LINNET_RANGE_DECAY},
    {0},
};
static void load_hgrn2(ln_outer_tile *t) {
    ln_outer_load(t, QUERY, t->query, t->key_stride);
    ln_outer_load(t, HGRN2_VALUE, t->value, t->value_stride);
    ln_outer_load(t, HGRN2_DECAY, t->decay, t->key_stride);
    for (int64_t i = 0; i < t->count; i++)
        for (int64_t c = 0; c < t->features; c++)
            t->key[i * t->key_stride + c] = -expm1f(t->decay[i * t->key_stride + c]);
}
static void gradient_hgrn2(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++)
        for (int64_t c = 0; c < t->features; c++) {
            const int64_t at = i * t->key_stride + c;
            t->decay_gradient[at] += (t->key[at] - 1) * t->key_gradient[at];
        }
    ln_outer_add(t, QUERY, t->query_gradient, t->key_stride);
    ln_outer_add(t, HGRN2_VALUE, t->value_gradient, t->value_stride);
    ln_outer_add(t, HGRN2_DECAY, t->decay_gradient, t->key_stride);
}
static const ln_outer_row hgrn2 = {.decay = LN_OUTER_KEY_DECAY, .load = load_hgrn2, .gradient = gradient_hgrn2};

const ln_mixer ln_rows_outer[] = {
    {.name = "linear_attention",
     .paper = "Katharopoulos et al. 2020, arXiv 2006.16236",
     .formula = "S[t] = S[t-1] + k v^T; o = scale S^T q, normalised: / (scale q . sum of k + 1e-10)",
     .inputs = plain_inputs,
     .states = normalised_states,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     .can_normalise = true,
     LN_OUTER_CORE(&linear_attention)},
    {.name = "retention",
     .paper = "Sun et al. 2023, arXiv 2307.08621",
     .formula = "S[t] = (1 - 2^(-5-head)) S[t-1] + k v^T; o = scale S^T q",
     .inputs = plain_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     LN_OUTER_CORE(&retention)},
    {.name = "lightning_attention",
     .paper = "Qin et al. 2024, arXiv 2401.04658",
     .formula = "S[t] = e^-slope S[t-1] + k v^T; o = scale S^T q",
     .inputs = lightning_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     LN_OUTER_CORE(&lightning)},
    {.name = "simple_gla",
     .paper = "Yang et al. 2023, arXiv 2312.06635, with one gate a head",
     .formula = "S[t] = e^decay[t] S[t-1] + k v^T; o = scale S^T q",
     .inputs = token_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     LN_OUTER_CORE(&simple_gla)},
    {.name = "ssd",
     .paper = "Dao and Gu 2024 (Mamba-2), arXiv 2405.21060",
     .formula = "S[t] = e^(step_size rate) S[t-1] + step_size k v^T; o = scale S^T q + skip v (q, k, v: C, B, x)",
     .inputs = ssd_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = 1,
     LN_OUTER_CORE(&ssd)},
    {.name = "gla",
     .paper = "Yang et al. 2023, arXiv 2312.06635",
     .formula = "S[t] = diag(e^decay[t]) S[t-1] + k v^T; o = scale S^T q",
     .inputs = channel_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     LN_OUTER_CORE(&gla)},
    {.name = "hgrn2",
     .paper = "Qin et al. 2024, arXiv 2404.07904",
     .formula = "S[t] = diag(e^decay[t]) S[t-1] + (1 - e^decay[t]) v^T; o = scale S^T q",
     .inputs = hgrn2_inputs,
     .states = matrix_state,
     .output = LN_AXIS_VALUE,
     .scale = NAN,
     LN_OUTER_CORE(&hgrn2)},
    {0},
};
