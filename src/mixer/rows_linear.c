/* Owns: rows of linear attention that differ in their feature map and their finish (feature.h):
 *
 *     S[t] = S[t-1] + phi(k) v^T, z[t] = z[t-1] + phi(k)
 *     out = S^T phi(q)                      divided by (z . phi(q) + epsilon), or by its own root mean square
 *
 * cosformer turns the features by an angle that grows with the position, which is carried beside the state.
 *
 * scale multiplies both sums, or is that of q . k where the map has one. */
#include <math.h>
#include <string.h>

#include "mixer/feature.h"
#include "mixer/outer.h"

enum { QUERY, KEY, VALUE, PARAMETER, PRODUCTS_MOST = 128 };

typedef struct linear_row {
    ln_outer_row outer; /* first: a tile's row is this */
    const ln_feature *feature;
    float epsilon;
    bool parameter; /* input 3 is the map's */
} linear_row;

static const linear_row *row_of(const ln_outer_tile *t) {
    return (const linear_row *)(const void *)t->row;
}

static int64_t extra_sum(const linnet_mixer_settings *s) {
    return s->normalise ? 1 : 0;
}

/* Queries and keys as given, and their gradients in turn. */
static int64_t raw_rows(const linnet_mixer_settings *s) {
    return 3 * s->key_size;
}

static ln_feature_row feature_row(const ln_outer_tile *t, const linear_row *row, bool key) {
    return (ln_feature_row){.settings = t->call->settings,
                            .kernels = t->call->kernels,
                            .key = key,
                            .parameter = row->parameter ? t->call->tensors->input[PARAMETER].data : NULL};
}

static void map_rows(ln_outer_tile *t, bool key) {
    const linear_row *row = row_of(t);
    const int64_t n = t->call->settings->key_size;
    float *x = t->scratch + (key ? t->count * n : 0), *phi = key ? t->key : t->query;
    ln_outer_load(t, key ? KEY : QUERY, x, n);
    ln_feature_row f = feature_row(t, row, key);
    for (int64_t i = 0; i < t->count; i++) {
        f.x = x + i * n;
        f.phi = phi + i * t->key_stride;
        row->feature->map(&f);
    }
}

static void load(ln_outer_tile *t) {
    map_rows(t, false);
    map_rows(t, true);
    ln_outer_load(t, VALUE, t->value, t->value_stride);
    for (int64_t i = 0; i < t->count && t->extra; i++) t->value[i * t->value_stride + t->columns] = 1;
}

static void finish(ln_outer_tile *t) {
    const linear_row *row = row_of(t);
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride;
        const float factor = t->extra ? 1 / (sums[t->columns] + row->epsilon) : 1;
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        for (int64_t j = t->first; j < t->last; j++) out[j] = sums[j] * factor;
    }
}

static void finish_gradient(ln_outer_tile *t) {
    const linear_row *row = row_of(t);
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride;
        const float *of = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        float *to = t->sums_gradient + i * t->value_stride;
        const float factor = t->extra ? 1 / (sums[t->columns] + row->epsilon) : 1;
        float along = 0;
        for (int64_t j = 0; j < t->columns; j++) {
            to[j] = of[j] * factor;
            along += to[j] * sums[j];
        }
        if (t->extra) to[t->columns] = -along * factor;
    }
}

static void map_gradient(ln_outer_tile *t, bool key) {
    const linear_row *row = row_of(t);
    const int64_t n = t->call->settings->key_size;
    const float *x = t->scratch + (key ? t->count * n : 0);
    float *to = t->scratch + 2 * t->count * n;
    ln_feature_row f = feature_row(t, row, key);
    f.parameter_gradient = row->parameter ? ln_outer_parameter(t, PARAMETER) : NULL;
    for (int64_t i = 0; i < t->count; i++) {
        f.x = x + i * n;
        f.phi = (key ? t->key : t->query) + i * t->key_stride;
        f.phi_gradient = (key ? t->key_gradient : t->query_gradient) + i * t->key_stride;
        f.x_gradient = to + i * n;
        row->feature->gradient(&f);
    }
    ln_outer_add(t, key ? KEY : QUERY, to, n);
}

static void gradient(ln_outer_tile *t) {
    map_gradient(t, false);
    map_gradient(t, true);
    ln_outer_add(t, VALUE, t->value_gradient, t->value_stride);
}

/* ---- phi(x) = [r cos a, r sin a], r = max(x, 0), a = pi/2 min(p / M, 1), p the position, M = option[0]: the weight of
 * a pair is r(q) . r(k) cos(a[i] - a[j]). Angles stay within a right one, so no weight is negative. ---- */

static const double RIGHT_ANGLE = 1.57079632679489662;

static int64_t turned_side(const linnet_mixer_settings *s) {
    (void)s;
    return 1;
}
/* raw_rows, and the position of each token. */
static int64_t turned_scratch(const linnet_mixer_settings *s) {
    return raw_rows(s) + 1;
}
static float *positions(const ln_outer_tile *t) {
    return t->scratch + t->count * raw_rows(t->call->settings);
}

typedef struct turn {
    float cosine, sine, slope; /* slope: of the angle by the position */
} turn;

/* In double: where the cosine is small, its relative error is that of the weights and of their sum. */
static turn turn_at(const ln_outer_tile *t, float position) {
    const double length = t->call->settings->option[0], angle = RIGHT_ANGLE * fmin((double)position / length, 1);
    return (turn){(float)cos(angle), (float)sin(angle), (double)position < length ? (float)(RIGHT_ANGLE / length) : 0};
}

static void turn_row(float *phi, int64_t n, const turn *at) {
    for (int64_t i = 0; i < n; i++) {
        phi[n + i] = phi[i] * at->sine;
        phi[i] *= at->cosine;
    }
}

/* Counts stop at 2^24 in float32, where the angle has stopped before. */
static void load_turned(ln_outer_tile *t) {
    const int64_t n = t->call->settings->key_size;
    load(t);
    for (int64_t i = 0; i < t->count; i++) {
        const turn at = turn_at(t, positions(t)[i] = *t->side);
        turn_row(t->query + i * t->key_stride, n, &at);
        turn_row(t->key + i * t->key_stride, n, &at);
        *t->side += 1;
    }
}

/* The gradient of r takes the place of that of r cos a; returns that of the angle. */
static float turn_row_gradient(const float *phi, float *gradient, int64_t n, const turn *at) {
    float along = 0;
    for (int64_t i = 0; i < n; i++) {
        along += phi[i] * gradient[n + i] - phi[n + i] * gradient[i];
        gradient[i] = at->cosine * gradient[i] + at->sine * gradient[n + i];
    }
    return along;
}

static void gradient_turned(ln_outer_tile *t) {
    const int64_t n = t->call->settings->key_size;
    for (int64_t i = 0; i < t->count; i++) {
        const int64_t row = i * t->key_stride;
        const turn at = turn_at(t, positions(t)[i]);
        const float of_query = turn_row_gradient(t->query + row, t->query_gradient + row, n, &at),
                    of_key = turn_row_gradient(t->key + row, t->key_gradient + row, n, &at);
        *t->side_gradient += at.slope * (of_query + of_key);
    }
    gradient(t);
}

/* ---- out = sums / (mean of squares + epsilon)^1/2 ---- */

static float root_mean_square(const ln_outer_tile *t, const float *sums) {
    const linear_row *row = row_of(t);
    float square = 0;
    for (int64_t j = 0; j < t->columns; j++) square += sums[j] * sums[j];
    return sqrtf(square / (float)t->columns + row->epsilon);
}

static void finish_norm(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride, factor = 1 / root_mean_square(t, sums);
        float *out = ln_mixer_output(t->call, t->head, t->sequence, t->step + i);
        for (int64_t j = t->first; j < t->last; j++) out[j] = sums[j] * factor;
    }
}

static void finish_norm_gradient(ln_outer_tile *t) {
    for (int64_t i = 0; i < t->count; i++) {
        const float *sums = t->sums + i * t->value_stride, factor = 1 / root_mean_square(t, sums);
        const float *of = ln_mixer_output_gradient(t->call, t->head, t->sequence, t->step + i);
        float *to = t->sums_gradient + i * t->value_stride, along = 0;
        for (int64_t j = 0; j < t->columns; j++) along += of[j] * sums[j];
        along *= factor * factor * factor / (float)t->columns;
        for (int64_t j = 0; j < t->columns; j++) to[j] = of[j] * factor - along * sums[j];
    }
}

/* ---- inputs, states, what is refused ---- */

static const ln_mixer_input inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {0},
};
static const ln_mixer_input random_inputs[] = {
    {.name = "query", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "key", .heads = LN_HEADS_KEY, .columns = LN_AXIS_KEY, .flags = LN_TYPED},
    {.name = "value", .columns = LN_AXIS_VALUE, .flags = LN_TYPED},
    {.name = "projection",
     .heads = LN_HEADS_ONE,
     .rows = LN_AXIS_SLOT,
     .columns = LN_AXIS_KEY,
     .flags = LN_PARAMETER | LN_OPTIONAL},
    {0},
};

/* Every map has its own axis of features, which axes of settings do not name: the core says the state's size. */
static const ln_mixer_state states[] = {{.name = "state"}, {.name = "normaliser"}, {0}};
static const ln_mixer_state turned_states[] = {
    {.name = "state", .rows = LN_AXIS_KEY, .columns = LN_AXIS_VALUE, .times = 2},
    {.name = "normaliser", .columns = LN_AXIS_KEY, .times = 2},
    {.name = "position"},
    {0},
};

static const char *refuse_scale(const linnet_mixer_settings *s) {
    return s->scale > 0 ? NULL : "the scale of q . k must be positive";
}
static const char *refuse_products(const linnet_mixer_settings *s) {
    if (s->key_size > PRODUCTS_MOST) return "features are products of two columns: key_size must be at most 128";
    return refuse_scale(s);
}

static const char *refuse_random(const linnet_mixer_settings *s) {
    if (s->option[0] != 0 && s->option[0] != 1 && s->option[0] != 2)
        return "option[0] says how projections are drawn: 0 normal, 1 orthogonal, 2 lattice";
    if (!(s->option[1] >= 0 && s->option[1] <= 0x1p53)) return "option[1], the seed, must be from 0 to 2^53";
    if (s->slots * s->key_size > (int64_t)1 << 24) return "slots times key_size must be at most 2^24";
    return refuse_scale(s);
}
static const char *refuse_power(const linnet_mixer_settings *s) {
    return s->option[0] > 0 ? NULL : "option[0], the exponent, must be positive";
}
static const char *refuse_length(const linnet_mixer_settings *s) {
    return s->option[0] >= 1 && s->option[0] <= 0x1p24 ? NULL : "option[0], the length, must be from 1 to 2^24";
}

/* ---- random features draw their projections where none are given ---- */

static uint64_t projection_bytes(const linnet_mixer_settings *s) {
    return ln_round_up((uint64_t)(s->slots * s->key_size) * sizeof(float), 64);
}

static uint64_t room_bytes(const linnet_mixer_settings *s) {
    return ln_round_up((uint64_t)(2 * s->slots + 8) * sizeof(double), 64);
}

static uint64_t random_workspace(const ln_mixer *mixer, const ln_kernels *kernels, int threads,
                                 const linnet_mixer_settings *s, linnet_mixer_form form) {
    const uint64_t core = ln_outer_workspace(mixer, kernels, threads, s, form);
    return core == UINT64_MAX ? core : projection_bytes(s) + room_bytes(s) + core;
}

/* The call with a projection at the workspace's begin. */
static ln_mixer_call with_projection(const ln_mixer_call *call, linnet_mixer_tensors *tensors) {
    ln_mixer_call out = *call;
    const linnet_mixer_settings *s = call->settings;
    *tensors = *call->tensors;
    if (!tensors->input[PARAMETER].data) {
        ln_random_projection((int)s->option[0], (uint64_t)s->option[1], s->slots, s->key_size, call->workspace,
                             (double *)(void *)((unsigned char *)call->workspace + projection_bytes(s)));
        tensors->input[PARAMETER].data = call->workspace;
    }
    out.tensors = tensors;
    out.workspace = (unsigned char *)call->workspace + projection_bytes(s) + room_bytes(s);
    return out;
}

static void random_forward(const ln_mixer_call *call) {
    linnet_mixer_tensors tensors;
    const ln_mixer_call own = with_projection(call, &tensors);
    ln_outer_forward(&own);
}
static void random_step(const ln_mixer_call *call) {
    linnet_mixer_tensors tensors;
    const ln_mixer_call own = with_projection(call, &tensors);
    ln_outer_step(&own);
}
static void random_backward(const ln_mixer_call *call) {
    linnet_mixer_tensors tensors;
    const ln_mixer_call own = with_projection(call, &tensors);
    ln_outer_backward(&own);
}

/* ---- the rows ---- */

#define MAPPED .extra = extra_sum, .scratch = raw_rows, .load = load, .gradient = gradient
#define DIVIDED MAPPED, .finish = finish, .finish_gradient = finish_gradient

static const linear_row
    elu = {.outer = {DIVIDED}, .feature = &ln_feature_elu, .epsilon = 1e-6f},
    relu = {.outer = {DIVIDED}, .feature = &ln_feature_relu, .epsilon = 1e-6f},
    hedgehog = {.outer = {DIVIDED, .features = ln_features_twice}, .feature = &ln_feature_hedgehog, .epsilon = 1e-6f},
    based = {.outer = {DIVIDED, .features = ln_features_taylor}, .feature = &ln_feature_taylor, .epsilon = 1e-6f},
    rebased = {.outer = {DIVIDED, .features = ln_features_square}, .feature = &ln_feature_square, .epsilon = 1e-5f},
    performer = {.outer = {DIVIDED, .features = ln_features_slots},
                 .feature = &ln_feature_random,
                 .epsilon = 1e-6f,
                 .parameter = true},
    nalaformer = {.outer = {DIVIDED, .features = ln_features_twice},
                  .feature = &ln_feature_norm_aware,
                  .epsilon = 1e-6f},
    cosformer = {.outer = {.features = ln_features_twice,
                           .extra = extra_sum,
                           .side = turned_side,
                           .scratch = turned_scratch,
                           .load = load_turned,
                           .gradient = gradient_turned,
                           .finish = finish,
                           .finish_gradient = finish_gradient},
                 .feature = &ln_feature_relu,
                 .epsilon = 1e-6f},
    norm_attention = {.outer = {MAPPED, .finish = finish_norm, .finish_gradient = finish_norm_gradient, .whole = true},
                      .feature = &ln_feature_elu,
                      .epsilon = 1e-6f};

#define LINEAR(row_)                                                                                 \
    LN_OUTER_CORE(&row_), .inputs = inputs, .states = states, .state_extent = ln_outer_state_extent, \
                          .output = LN_AXIS_VALUE

const ln_mixer ln_rows_linear[] = {
    {LINEAR(elu), .name = "linear_elu", .scale = 1, .paper = "Katharopoulos et al. 2020, arXiv 2006.16236",
     .formula = "S += phi(k) v^T, z += phi(k); out = scale S^T phi(q) / (scale z . phi(q) + 1e-6), phi = elu + 1",
     .normalise = true, .can_normalise = true},
    {LINEAR(relu), .name = "linear_relu", .scale = 1,
     .paper = "Katharopoulos et al. 2020, arXiv 2006.16236; phi of Zheng 2025 (L2ViT)",
     .formula = "S += phi(k) v^T, z += phi(k); out = scale S^T phi(q) / (scale z . phi(q) + 1e-6), phi = max(x, 0)",
     .normalise = true, .can_normalise = true},
    {LINEAR(hedgehog), .name = "hedgehog", .scale = 1, .paper = "Zhang et al. 2024, arXiv 2402.04347",
     .formula = "linear attention, phi(x) = softmax over [x, -x]; out = scale S^T phi(q) / (scale z . phi(q) + 1e-6)",
     .normalise = true, .can_normalise = true},
    {LINEAR(based), .name = "based", .paper = "Arora et al. 2024, arXiv 2402.18668",
     .formula = "weight 1 + a + a^2/2, a = scale q . k; out = sum of weight v / (sum of weight + 1e-6)", .scale = NAN,
     .normalise = true, .can_normalise = true, .refuse = refuse_products},
    {LINEAR(rebased), .name = "rebased", .paper = "Aksenov et al. 2024, arXiv 2402.10644",
     .formula = "weight a^2, a = scale q . k; out = sum of weight v / (sum of weight + 1e-5)", .scale = NAN,
     .normalise = true, .can_normalise = true, .refuse = refuse_products},
    {.name = "performer",
     .core = "outer",
     .core_row = &performer,
     .states = states,
     .state_extent = ln_outer_state_extent,
     .output = LN_AXIS_VALUE,
     .head_floats = ln_outer_head_floats,
     .reverse = true,
     .flops = ln_outer_flops,
     .paper = "Choromanski et al. 2021, arXiv 2009.14794; lattices: QMCPy",
     .formula = "phi(x) = e^(w y - |y|^2/2) / slots^1/2, y = scale^1/2 x; out = S^T phi(q) / (z . phi(q) + 1e-6)",
     .inputs = random_inputs,
     .slots = 64,
     .scale = NAN,
     .normalise = true,
     .can_normalise = true,
     .options = {"how projections are drawn where none are given: 0 normal, 1 orthogonal, 2 lattice", "seed"},
     .refuse = refuse_random,
     .workspace = random_workspace,
     .forward = random_forward,
     .step = random_step,
     .backward = random_backward},
    {LINEAR(nalaformer), .name = "nalaformer", .scale = 1,
     .paper = "Meng et al. 2025, arXiv 2506.21137 (constants reconstructed)",
     .formula =
         "d = x/|x|, phi = |d|^p [cos, sin](pi/4 (1 + d)), p = a (1/2 + tanh |q|); of keys |k|^a; then as linear_elu",
     .normalise = true, .can_normalise = true, .option = {2}, .options = {"exponent a"}, .refuse = refuse_power},
    {LN_OUTER_CORE(&cosformer), .name = "cosformer", .paper = "Qin et al. 2022, arXiv 2202.08791", .inputs = inputs,
     .states = turned_states, .output = LN_AXIS_VALUE,
     .formula =
         "weight relu(q_i) . relu(k_j) cos(pi/2 (i - j) / M), positions past M count as M; divided as linear_elu",
     .scale = 1, .normalise = true, .can_normalise = true, .option = {4096},
     .options = {"length M: of the longest text whose order counts"}, .refuse = refuse_length},
    {LINEAR(norm_attention), .name = "norm_attention", .scale = 1,
     .paper = "Qin et al. 2022 (The Devil in Linear Transformer), arXiv 2210.10340",
     .formula = "S += phi(k) v^T; out = x / (mean x^2 + 1e-6)^1/2, x = scale S^T phi(q), phi = elu + 1"},
    {0},
};
