/* Every mixer of one core (the first argument; all without one) against its float64 oracle: lengths, chunks, splits,
 * ragged batches, steps on a pool, threads, instruction sets, extreme gates, NaN in its lane, strides, bf16, reversed
 * time, and every gradient against central differences of the oracle.
 *
 * LINNET_ROW=name runs one row. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "attention_run.h"
#include "base/random.h"
#include "mixer/mixer.h"
#include "mixer_check.h"
#include "number/format.h"

typedef struct family {
    const char *part, *core; /* part: the rows of one test */
    const ln_mixer *rows;
    const mixer_oracle *oracles;
} family;

static const family families[] = {
    {"outer", "outer", ln_rows_outer, oracle_outer},    {"linear", "outer", ln_rows_linear, oracle_linear},
    {"gated", "outer", ln_rows_gated, oracle_gated},    {"flow", "outer", ln_rows_flow, oracle_flow},
    {"routed", "outer", ln_rows_routed, oracle_routed}, {"channel", "scan", ln_rows_channel, oracle_channel},
    {"delta", "delta", ln_rows_delta, oracle_delta},    {"scan", "scan", ln_rows_scan, oracle_scan},
    {"cell", "cell", ln_rows_cell, oracle_cell},        {"learner", "learner", ln_rows_learner, oracle_learner},
    {"wave", "wave", ln_rows_wave, oracle_wave}};

static const char *only_part, *only_row;

/* ---- a case: settings, inputs, what the oracle says ---- */

typedef struct instance {
    const mixer_oracle *oracle;
    const ln_mixer *mixer;
    linnet_mixer_settings s;
    int64_t head_floats, output_columns, heads[LINNET_MIXER_INPUTS], columns[LINNET_MIXER_INPUTS],
        count[LINNET_MIXER_INPUTS];
    int inputs;
    bool parameter[LINNET_MIXER_INPUTS], given[LINNET_MIXER_INPUTS];
    double *input[LINNET_MIXER_INPUTS], *state_in, *output, *state_out;
} instance;

enum { GENTLE, ZERO_GATES, HARD_GATES, ENDLESS_GATES, ZERO_KEYS, EXTREMES };

static double draw(ln_random *random, linnet_mixer_range range, int extreme) {
    const double normal = ln_random_normal(random), unit = ln_random_unit(random);
    switch (range) {
    case LINNET_RANGE_DECAY:
        if (extreme == ZERO_GATES) return 0;
        if (extreme == HARD_GATES) return unit < 0.3 ? -88 : unit < 0.5 ? 0 : -unit * 20;
        if (extreme == ENDLESS_GATES) return unit < 0.2 ? -INFINITY : -unit;
        return unit < 0.03 ? 0 : -exp(normal - 2.5);
    case LINNET_RANGE_UNIT:
        return extreme == ZERO_GATES ? (unit < 0.5 ? 0 : 1) : unit;
    case LINNET_RANGE_TWICE:
        return extreme == ZERO_GATES ? (unit < 0.3 ? 0 : unit < 0.6 ? 1 : 2) : 2 * unit;
    case LINNET_RANGE_POSITIVE:
        return 0.3 * exp(0.5 * normal);
    case LINNET_RANGE_NEGATIVE:
        return extreme == HARD_GATES ? -20 * unit : -exp(0.5 * normal);
    case LINNET_RANGE_SMALL:
        return 0.1 * normal;
    case LINNET_RANGE_ANY:
        break;
    }
    return normal;
}

static double *take(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    assert_non_null(values);
    return values;
}

static double rounded(double value, linnet_type type) {
    return type == LINNET_BF16 ? (double)ln_bf16_float(ln_float_bf16((float)value)) : (double)(float)value;
}

static void fill_input(instance *c, int k, ln_random *random, int extreme) {
    const ln_mixer_input *i = &c->mixer->inputs[k];
    const linnet_type type = i->flags & LN_TYPED ? c->s.type : LINNET_F32;
    const bool zero = extreme == ZERO_KEYS && strcmp(i->name, "key") == 0;
    for (int64_t n = 0; n < c->count[k]; n++)
        c->input[k][n] = zero && n / c->columns[k] % 3 == 0 ? 0 : draw(random, i->range, extreme);
    if (c->oracle->fill) c->oracle->fill(&c->s, i->name, c->input[k], c->count[k], extreme);
    for (int64_t n = 0; n < c->count[k]; n++) c->input[k][n] = rounded(c->input[k][n], type);
}

/* Keys of delta rules have length one, as their layers make them: the recurrence would diverge otherwise. */
static void shorten(instance *c) {
    for (int k = 0; k < c->inputs; k++) {
        const char *name = c->mixer->inputs[k].name;
        if (strcmp(name, "key") != 0 && strcmp(name, "query") != 0) continue;
        const linnet_type type = c->mixer->inputs[k].flags & LN_TYPED ? c->s.type : LINNET_F32;
        for (int64_t r = 0; r < c->count[k] / c->columns[k]; r++) {
            double *row = c->input[k] + r * c->columns[k], square = 1e-12;
            for (int64_t n = 0; n < c->columns[k]; n++) square += row[n] * row[n];
            for (int64_t n = 0; n < c->columns[k]; n++) row[n] = rounded(row[n] / sqrt(square), type);
        }
    }
}

static void run_oracle(const instance *c, const double *const *input, const double *state_in, double *output,
                       double *state_out) {
    const int64_t state = c->s.heads * c->head_floats;
    for (int64_t q = 0; q < c->s.sequences; q++) {
        int64_t first, count;
        ln_mixer_span(&c->s, q, &first, &count);
        oracle_call call = {.settings = &c->s,
                            .tokens = count,
                            .state_in = state_in + q * state,
                            .output = output + first * c->s.heads * c->output_columns,
                            .state_out = state_out + q * state,
                            .head_floats = c->head_floats,
                            .output_columns = c->output_columns};
        memcpy(call.state_out, call.state_in, (size_t)state * sizeof(double));
        double *turned[LINNET_MIXER_INPUTS] = {0};
        for (int k = 0; k < c->inputs; k++) {
            call.heads[k] = c->heads[k];
            call.columns[k] = c->columns[k];
            const int64_t row = c->heads[k] * c->columns[k];
            if (!c->given[k]) continue;
            call.input[k] = input[k] + (c->parameter[k] ? 0 : first * row);
            if (!c->s.reverse || c->parameter[k]) continue;
            call.input[k] = turned[k] = take(count * row);
            for (int64_t t = 0; t < count; t++)
                memcpy(turned[k] + t * row, input[k] + (first + count - 1 - t) * row, (size_t)row * sizeof(double));
        }
        if (count > 0) c->oracle->run(&call);
        const int64_t row = c->s.heads * c->output_columns;
        for (int64_t t = 0; c->s.reverse && t < count / 2; t++)
            for (int64_t n = 0; n < row; n++) {
                const double swap = call.output[t * row + n];
                call.output[t * row + n] = call.output[(count - 1 - t) * row + n];
                call.output[(count - 1 - t) * row + n] = swap;
            }
        for (int k = 0; k < c->inputs; k++) free(turned[k]);
    }
}

/* false: the row refuses these settings. state: begin with random states. */
static bool open_case(const mixer_oracle *oracle, linnet_mixer_settings s, int extreme, bool state, uint64_t seed,
                      instance *c) {
    memset(c, 0, sizeof *c);
    c->oracle = oracle;
    c->s = s;
    if (ln_mixer_complete(&c->s, &c->mixer)) return false;
    c->head_floats = ln_mixer_head_floats(c->mixer, &c->s);
    c->output_columns = ln_axis_of(c->mixer->output, &c->s);
    ln_random random;
    ln_random_seed(&random, seed);
    for (int k = 0; c->mixer->inputs[k].name; k++, c->inputs++) {
        c->parameter[k] = c->mixer->inputs[k].flags & LN_PARAMETER;
        c->given[k] = true;
        c->heads[k] = ln_mixer_heads(&c->mixer->inputs[k], &c->s);
        c->columns[k] = ln_mixer_columns(&c->mixer->inputs[k], &c->s);
        c->count[k] = (c->parameter[k] ? 1 : c->s.tokens) * c->heads[k] * c->columns[k];
        c->input[k] = take(c->count[k]);
        fill_input(c, k, &random, extreme);
    }
    if (strcmp(c->mixer->core, "delta") == 0) shorten(c);
    const int64_t floats = c->s.sequences * c->s.heads * c->head_floats,
                  outputs = c->s.tokens * c->s.heads * c->output_columns;
    c->state_in = take(floats);
    c->state_out = take(floats);
    c->output = take(outputs);
    for (int64_t n = 0; state && !oracle->opaque_state && n < floats; n++)
        c->state_in[n] = 0.3 * ln_random_normal(&random);
    if (state && oracle->fill) oracle->fill(&c->s, "state", c->state_in, floats, extreme);
    for (int64_t n = 0; n < floats; n++) c->state_in[n] = (double)(float)c->state_in[n];
    return true;
}

static void solve_case(instance *c) {
    run_oracle(c, (const double *const *)c->input, c->state_in, c->output, c->state_out);
}

static void close_case(instance *c) {
    for (int k = 0; k < c->inputs; k++) free(c->input[k]);
    free(c->state_in);
    free(c->state_out);
    free(c->output);
}

/* ---- running the library on a case ---- */

typedef struct floats {
    float *values;
    int64_t count;
} floats;

static float *to_floats(const double *values, int64_t count) {
    float *out = malloc((size_t)(count + 1) * sizeof *out);
    assert_non_null(out);
    for (int64_t i = 0; i < count; i++) out[i] = (float)values[i];
    return out;
}

/* Rows of `columns` floats or bf16, `gap` elements between heads and tokens, NaN there. */
static void *laid_out(const instance *c, int k, int64_t gap, linnet_tensor *tensor) {
    const linnet_type type = c->mixer->inputs[k].flags & LN_TYPED ? c->s.type : LINNET_F32;
    const int64_t columns = c->columns[k], head = columns + gap, token = c->heads[k] * head + gap;
    const int64_t rows = c->parameter[k] ? 1 : c->s.tokens;
    const size_t size = type == LINNET_BF16 ? 2 : 4;
    unsigned char *data = malloc((size_t)(rows * token) * size + 8);
    assert_non_null(data);
    memset(data, 0xff, (size_t)(rows * token) * size + 8);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < c->heads[k]; h++)
            for (int64_t n = 0; n < columns; n++) {
                const int64_t at = t * token + h * head + n;
                const float value = (float)c->input[k][(t * c->heads[k] + h) * columns + n];
                if (type == LINNET_BF16)
                    ((uint16_t *)(void *)data)[at] = ln_float_bf16(value);
                else
                    ((float *)(void *)data)[at] = value;
            }
    *tensor = (linnet_tensor){data, gap ? token : 0, gap ? head : 0};
    return data;
}

typedef struct shot {
    float *output, *state_out;
    float *gradient[LINNET_MIXER_INPUTS], *state_gradient;
} shot;

static void close_shot(shot *r) {
    free(r->output);
    free(r->state_out);
    for (int k = 0; k < LINNET_MIXER_INPUTS; k++) free(r->gradient[k]);
    free(r->state_gradient);
    memset(r, 0, sizeof *r);
}

static void run_form(linnet_context *context, const linnet_mixer_settings *s, const linnet_mixer_tensors *t,
                     linnet_mixer_form form) {
    const uint64_t bytes = linnet_mixer_workspace(context, s, form);
    assert_true(bytes > 0);
    unsigned char *workspace = open_workspace(bytes);
    const linnet_status status = form == LINNET_MIXER_FORWARD ? linnet_mixer_forward(context, s, t, workspace)
                                 : form == LINNET_MIXER_STEP  ? linnet_mixer_step(context, s, t, workspace)
                                                              : linnet_mixer_backward(context, s, t, workspace);
    if (status != LINNET_OK) fail_msg("%s: %s", s->name, linnet_last_error(context));
    for (int i = 0; i < WORKSPACE_GUARD; i++) assert_int_equal(workspace[bytes + (uint64_t)i], GUARD_BYTE);
    free(workspace);
}

/* Inputs laid out for the tensors; what must be freed goes into `kept`. */
static linnet_mixer_tensors tensors_of(const instance *c, int64_t gap, void **kept) {
    linnet_mixer_tensors t = {.size = sizeof t};
    for (int k = 0; k < c->inputs; k++)
        if (c->given[k]) kept[k] = laid_out(c, k, gap, &t.input[k]);
    return t;
}

static void forward(const instance *c, linnet_context *context, int64_t gap, shot *r) {
    void *kept[LINNET_MIXER_INPUTS] = {0};
    linnet_mixer_tensors t = tensors_of(c, gap, kept);
    const int64_t columns = c->output_columns, head = columns + gap, token = c->s.heads * head + gap,
                  states = c->s.sequences * c->s.heads * c->head_floats;
    float *wide = malloc((size_t)(c->s.tokens * token + 1) * sizeof *wide), *state_in = to_floats(c->state_in, states);
    assert_non_null(wide);
    memset(wide, 0xff, (size_t)(c->s.tokens * token + 1) * sizeof *wide);
    r->state_out = to_floats(c->state_in, states);
    r->output = malloc((size_t)(c->s.tokens * c->s.heads * columns + 1) * sizeof *r->output);
    assert_non_null(r->output);
    t.output = (linnet_tensor){wide, gap ? token : 0, gap ? head : 0};
    if (c->mixer->states) {
        t.state_in = state_in;
        t.state_out = r->state_out;
    }
    run_form(context, &c->s, &t, LINNET_MIXER_FORWARD);
    for (int64_t i = 0; i < c->s.tokens; i++)
        for (int64_t h = 0; h < c->s.heads; h++) {
            memcpy(r->output + (i * c->s.heads + h) * columns, wide + i * token + h * head,
                   (size_t)columns * sizeof *wide);
            for (int64_t n = columns; n < head; n++) assert_true(isnan(wide[i * token + h * head + n]));
        }
    for (int k = 0; k < c->inputs; k++) free(kept[k]);
    free(wide);
    free(state_in);
}

/* ---- comparing ---- */

static const char *where;

static void near(const instance *c, const char *what, const float *got, const double *wanted, int64_t count,
                 double allowed) {
    double error = 0, size = 0, worst = 0, largest = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        const double off = fabs((double)got[i] - wanted[i]);
        if (!(off <= worst)) {
            worst = off;
            at = i;
        }
        error += off * off;
        size += wanted[i] * wanted[i];
        largest = fmax(largest, fabs(wanted[i]));
    }
    if (count == 0) return;
    const double ratio = sqrt(error) / (sqrt(size) + 1e-8 * sqrt((double)count));
    const bool fine = worst <= 1e-6 * allowed / 2e-6 * 0.1 || (ratio <= allowed && worst <= 40 * allowed * largest);
    if (!fine)
        fail_msg(
            "%s %s, %s: T %lld chunk %lld heads %lld/%lld K %lld V %lld slots %lld: RMS ratio %.3g (allowed %.3g), "
            "worst %.3g at %lld of %lld (%.6g instead of %.6g)",
            c->s.name, where, what, (long long)c->s.tokens, (long long)c->s.chunk, (long long)c->s.heads,
            (long long)c->s.key_heads, (long long)c->s.key_size, (long long)c->s.value_size, (long long)c->s.slots,
            ratio, allowed, worst, (long long)at, (long long)count, (double)got[at], wanted[at]);
}

static double allowed_forward(const instance *c) {
    if (c->s.type == LINNET_BF16) return c->oracle->bf16 > 0 ? c->oracle->bf16 : 4e-3;
    return c->oracle->forward > 0 ? c->oracle->forward : 2e-6;
}

static void compare(const instance *c, const shot *r) {
    near(c, "output", r->output, c->output, c->s.tokens * c->s.heads * c->output_columns, allowed_forward(c));
    if (c->mixer->states && !c->oracle->opaque_state)
        near(c, "state", r->state_out, c->state_out, c->s.sequences * c->s.heads * c->head_floats, allowed_forward(c));
}

static void check(const instance *c, int level, int threads, int64_t gap) {
    shot r = {0};
    forward(c, test_context(level, threads), gap, &r);
    compare(c, &r);
    close_shot(&r);
}

/* ---- the checks ---- */

typedef struct sizes {
    int64_t heads, key_heads, key, value;
} sizes;
static const sizes shapes[] = {{2, 1, 16, 24}, {2, 2, 32, 32}, {1, 1, 20, 12}, {3, 1, 64, 64}, {4, 2, 8, 8}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static linnet_mixer_settings settings_of(const mixer_oracle *oracle, int shape, int variant, int64_t tokens) {
    linnet_mixer_settings s = linnet_mixer_settings_default(oracle->name);
    if (s.size == 0) fail_msg("%s is not in the table", oracle->name);
    const sizes *z = &shapes[shape];
    s.heads = z->heads;
    s.key_heads = z->key_heads;
    s.key_size = z->key;
    s.value_size = z->value;
    s.tokens = tokens;
    if (oracle->vary) oracle->vary(&s, variant);
    return s;
}

/* A shape that the row takes; `which` counts those. */
static bool some_case(const mixer_oracle *oracle, int which, int variant, int64_t tokens, int extreme, uint64_t seed,
                      instance *c) {
    for (int shape = 0; shape < SHAPES; shape++) {
        const linnet_mixer_settings s = settings_of(oracle, shape, variant, tokens);
        if (!open_case(oracle, s, extreme, true, seed, c)) continue;
        if (which-- == 0) return true;
        close_case(c);
    }
    return false;
}

static void check_lengths(const mixer_oracle *oracle) {
    static const int64_t lengths[] = {0, 1, 2, 15, 16, 17, 63, 64, 65, 130};
    int accepted = 0;
    for (int which = 0; which < SHAPES; which++)
        for (int variant = 0; variant <= oracle->variants; variant++)
            for (int l = 0; l < 10; l++) {
                if (SLOW && (which + l + variant) % 3) continue;
                instance c;
                if (!some_case(oracle, which, variant, lengths[l], GENTLE, (uint64_t)(l + 1), &c)) break;
                accepted++;
                solve_case(&c);
                check(&c, (l + which) % 2 ? 3 : which % 3, 1, l % 3 == 2 ? 5 : 0);
                close_case(&c);
            }
    assert_true(accepted > 1);
}

static void check_levels(const mixer_oracle *oracle) {
    instance c;
    for (int which = 0; which < 2 && some_case(oracle, which, which % (oracle->variants + 1), 83, GENTLE, 5, &c);
         which++) {
        solve_case(&c);
        for (int level = 0; level < LEVELS; level++)
            if (level_is_new(level)) check(&c, level, 2, 3);
        close_case(&c);
    }
}

static void check_chunks(const mixer_oracle *oracle) {
    static const int64_t chunks[] = {16, 32, 48, 64, 128, 256};
    for (int i = 0; i < 6; i++)
        for (int extreme = 0; extreme < EXTREMES; extreme++) {
            if (SLOW && (i + extreme) % 2) continue;
            instance c;
            assert_true(some_case(oracle, i % 2 && SHAPES > 1 ? 1 : 0, extreme % (oracle->variants + 1), 150 + 23 * i,
                                  extreme, (uint64_t)(i * 7 + extreme), &c) ||
                        some_case(oracle, 0, 0, 150, extreme, 3, &c));
            c.s.chunk = chunks[i];
            solve_case(&c);
            check(&c, 3, 2, 0);
            close_case(&c);
        }
}

static void check_threads(const mixer_oracle *oracle) {
    instance c;
    assert_true(some_case(oracle, 0, 0, 77, GENTLE, 9, &c));
    shot one = {0};
    forward(&c, test_context(3, 1), 0, &one);
    for (int threads = 2; threads <= THREADS_MOST; threads++) {
        shot more = {0};
        forward(&c, test_context(3, threads), 0, &more);
        assert_memory_equal(one.output, more.output,
                            (size_t)(c.s.tokens * c.s.heads * c.output_columns) * sizeof(float));
        assert_memory_equal(one.state_out, more.state_out, (size_t)(c.s.heads * c.head_floats) * sizeof(float));
        close_shot(&more);
    }
    close_shot(&one);
    close_case(&c);
}

/* A sequence cut at random, states handed over; the last piece by single steps. */
static void check_splits(const mixer_oracle *oracle) {
    instance whole;
    assert_true(some_case(oracle, 0, oracle->variants ? 1 : 0, 141, GENTLE, 21, &whole) ||
                some_case(oracle, 0, 0, 141, GENTLE, 21, &whole));
    if (!whole.mixer->states) {
        close_case(&whole);
        return;
    }
    solve_case(&whole);
    const int64_t cuts[] = {0, 1, 40, 41, 105, 130, 141}, states = whole.s.heads * whole.head_floats;
    float *output = malloc((size_t)(whole.s.tokens * whole.s.heads * whole.output_columns) * sizeof *output);
    float *state = to_floats(whole.state_in, states);
    void *kept[LINNET_MIXER_INPUTS] = {0};
    const linnet_mixer_tensors all = tensors_of(&whole, 0, kept);
    for (int piece = 0; piece < 6; piece++) {
        const bool steps = piece == 5;
        const int64_t each = steps ? 1 : cuts[piece + 1] - cuts[piece];
        for (int64_t at = cuts[piece]; at < cuts[piece + 1]; at += each) {
            linnet_mixer_tensors t = all;
            linnet_mixer_settings s = whole.s;
            s.tokens = each;
            for (int k = 0; k < whole.inputs; k++)
                if (t.input[k].data && !whole.parameter[k]) {
                    const size_t size = whole.mixer->inputs[k].flags & LN_TYPED && whole.s.type == LINNET_BF16 ? 2 : 4;
                    t.input[k].data = (char *)t.input[k].data + (size_t)(at * whole.heads[k] * whole.columns[k]) * size;
                }
            t.output.data = output + at * whole.s.heads * whole.output_columns;
            t.state_in = t.state_out = state;
            run_form(test_context(3, 2), &s, &t, steps ? LINNET_MIXER_STEP : LINNET_MIXER_FORWARD);
        }
    }
    shot r = {.output = output, .state_out = state};
    compare(&whole, &r);
    free(output);
    free(state);
    for (int k = 0; k < whole.inputs; k++) free(kept[k]);
    close_case(&whole);
}

/* Empty, single and long sequences together; and a step of a pool in another order. */
static void check_ragged(const mixer_oracle *oracle) {
    static const int64_t offsets[] = {0, 0, 1, 40, 40, 121, 122};
    instance c;
    for (int shape = 0; shape < SHAPES; shape++) {
        linnet_mixer_settings s = settings_of(oracle, shape, 0, 122);
        s.sequences = 6;
        s.offsets = offsets;
        if (!open_case(oracle, s, GENTLE, true, 33, &c)) continue;
        solve_case(&c);
        check(&c, 3, 2, 0);
        close_case(&c);
        return;
    }
    fail_msg("%s: no shape of the oracle takes ragged sequences", oracle->name);
}

static void check_pool(const mixer_oracle *oracle) {
    instance c;
    linnet_mixer_settings s;
    int shape = 0;
    do {
        s = settings_of(oracle, shape, 0, 5);
        s.sequences = 5;
    } while (!open_case(oracle, s, GENTLE, true, 34, &c) && ++shape < SHAPES);
    assert_true(shape < SHAPES);
    if (c.mixer->states) {
        solve_case(&c);
        static const int64_t slots[] = {7, 0, 3, 2, 8};
        const int64_t state = c.s.heads * c.head_floats;
        float *pool = malloc((size_t)(9 * state) * sizeof *pool), *before = to_floats(c.state_in, 5 * state);
        memset(pool, 0xff, (size_t)(9 * state) * sizeof *pool);
        for (int i = 0; i < 5; i++) memcpy(pool + slots[i] * state, before + i * state, (size_t)state * sizeof *pool);
        void *kept[LINNET_MIXER_INPUTS] = {0};
        linnet_mixer_tensors t = tensors_of(&c, 0, kept);
        shot r = {.output = malloc((size_t)(5 * c.s.heads * c.output_columns) * sizeof(float)),
                  .state_out = malloc((size_t)(5 * state) * sizeof(float))};
        t.output.data = r.output;
        t.state_in = t.state_out = pool;
        t.state_slots = slots;
        run_form(test_context(3, 2), &c.s, &t, LINNET_MIXER_STEP);
        for (int i = 0; i < 5; i++)
            memcpy(r.state_out + i * state, pool + slots[i] * state, (size_t)state * sizeof *pool);
        compare(&c, &r);
        close_shot(&r);
        for (int k = 0; k < c.inputs; k++) free(kept[k]);
        free(pool);
        free(before);
    }
    close_case(&c);
}

static void check_reverse(const mixer_oracle *oracle) {
    instance c;
    assert_true(some_case(oracle, 0, 0, 70, GENTLE, 41, &c));
    if (c.mixer->reverse) {
        c.s.reverse = true;
        solve_case(&c);
        check(&c, 3, 1, 3);
    }
    close_case(&c);
}

static void check_bf16(const mixer_oracle *oracle) {
    int runs = 0;
    for (int which = 0; which < 2; which++) {
        instance c;
        linnet_mixer_settings s;
        bool open = false;
        for (int shape = which; !open && shape < SHAPES; shape++) {
            s = settings_of(oracle, shape, 0, 90 + 60 * which);
            s.type = LINNET_BF16;
            open = open_case(oracle, s, GENTLE, true, 51, &c);
        }
        if (!open) continue;
        solve_case(&c);
        check(&c, 3, 2, which ? 4 : 0);
        close_case(&c);
        runs++;
    }
    assert_true(runs > 0);
}

/* A NaN in one token of one head of the values changes no other head and no other sequence. */
static void check_lanes(const mixer_oracle *oracle) {
    static const int64_t offsets[] = {0, 50, 100};
    for (int shape = 0; shape < SHAPES; shape++) {
        linnet_mixer_settings s = settings_of(oracle, shape, 0, 100);
        s.sequences = 2;
        s.offsets = offsets;
        instance c;
        if (s.heads < 2 || !open_case(oracle, s, GENTLE, true, 61, &c)) continue;
        const int k = linnet_mixer_input_index(s.name, "value");
        if (k >= 0 && !c.parameter[k] && c.heads[k] == c.s.heads) {
            shot clean = {0}, dirty = {0};
            forward(&c, test_context(3, 1), 0, &clean);
            c.input[k][(60 * c.heads[k] + 1) * c.columns[k]] = (double)NAN;
            forward(&c, test_context(3, 1), 0, &dirty);
            const size_t row = (size_t)c.output_columns;
            for (int64_t t = 0; t < 100; t++)
                for (int64_t h = 0; h < c.s.heads; h++)
                    if (t < 50 || h != 1)
                        assert_memory_equal(clean.output + (size_t)(t * c.s.heads + h) * row,
                                            dirty.output + (size_t)(t * c.s.heads + h) * row, row * sizeof(float));
            close_shot(&clean);
            close_shot(&dirty);
        }
        close_case(&c);
        return;
    }
    fail_msg("%s: no shape of the oracle has two heads and two sequences", oracle->name);
}

/* Three tokens 2^31 elements apart. */
static void check_far(const mixer_oracle *oracle) {
    instance c;
    assert_true(some_case(oracle, 0, 0, 3, GENTLE, 71, &c));
    const size_t far = (size_t)1 << 31, bytes = 2 * far * sizeof(float) + (1 << 20);
    void *room = oracle->no_far
                     ? MAP_FAILED
                     : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const int k = linnet_mixer_input_index(c.s.name, "value");
    if (room != MAP_FAILED && k >= 0 && !c.parameter[k]) {
        solve_case(&c);
        void *kept[LINNET_MIXER_INPUTS] = {0};
        linnet_mixer_tensors t = tensors_of(&c, 0, kept);
        const size_t row = (size_t)(c.heads[k] * c.columns[k]);
        for (size_t i = 0; i < 3; i++) memcpy((float *)room + i * far, (float *)kept[k] + i * row, row * sizeof(float));
        t.input[k] = (linnet_tensor){room, (int64_t)far, c.columns[k]};
        float *state = to_floats(c.state_in, c.s.heads * c.head_floats);
        shot r = {.output = malloc((size_t)(3 * c.s.heads * c.output_columns) * sizeof(float)), .state_out = state};
        t.output.data = r.output;
        if (c.mixer->states) t.state_in = t.state_out = state;
        run_form(test_context(3, 1), &c.s, &t, LINNET_MIXER_FORWARD);
        compare(&c, &r);
        close_shot(&r);
        for (int i = 0; i < c.inputs; i++) free(kept[i]);
    }
    if (room != MAP_FAILED) munmap(room, bytes);
    close_case(&c);
}

/* ---- gradients ---- */

static double weigh(const double *x, const double *weight, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * weight[i];
    return sum;
}

typedef struct loss {
    const instance *c;
    const double *output_weight, *state_weight;
    double *output, *state;
    int64_t outputs, states;
} loss;

static double loss_of(const loss *l) {
    run_oracle(l->c, (const double *const *)l->c->input, l->c->state_in, l->output, l->state);
    return weigh(l->output, l->output_weight, l->outputs) + weigh(l->state, l->state_weight, l->states);
}

/* Central differences at up to 40 elements of `values` against what backward said. */
static void check_gradient(const loss *l, const char *name, double *values, const float *gradient, int64_t count,
                           ln_random *random) {
    enum { MOST = 40 };
    float got[MOST];
    double wanted[MOST];
    const int64_t some = ln_min_i64(count, SLOW ? 12 : MOST);
    for (int64_t i = 0; i < some; i++) {
        /* The last too: small parts of a state lie at its end. */
        const int64_t at = some == count ? i : i == 0 ? count - 1 : (int64_t)ln_random_below(random, (uint64_t)count);
        const double x = values[at], h = 1e-5 * fmax(1, fabs(x));
        values[at] = x + h;
        const double more = loss_of(l);
        values[at] = x - h;
        const double less = loss_of(l);
        values[at] = x;
        wanted[i] = (more - less) / (2 * h);
        got[i] = gradient[at];
    }
    near(l->c, name, got, wanted, some, l->c->oracle->gradient > 0 ? l->c->oracle->gradient : 2e-5);
}

static void check_gradients_of(instance *c) {
    ln_random random;
    ln_random_seed(&random, 77);
    const int64_t outputs = c->s.tokens * c->s.heads * c->output_columns,
                  states = c->s.sequences * c->s.heads * c->head_floats;
    loss l = {.c = c, .output = take(outputs), .state = take(states), .outputs = outputs, .states = states};
    double *output_weight = take(outputs), *state_weight = take(states);
    for (int64_t i = 0; i < outputs; i++) output_weight[i] = (double)(float)ln_random_normal(&random);
    for (int64_t i = 0; i < states && !c->oracle->opaque_state; i++)
        state_weight[i] = (double)(float)ln_random_normal(&random);
    l.output_weight = output_weight;
    l.state_weight = state_weight;
    void *kept[LINNET_MIXER_INPUTS] = {0};
    linnet_mixer_tensors t = tensors_of(c, 0, kept);
    float *output_gradient = to_floats(output_weight, outputs), *state_gradient = to_floats(state_weight, states),
          *state_in = to_floats(c->state_in, states);
    shot r = {.state_gradient = malloc((size_t)(states + 1) * sizeof(float))};
    t.output_gradient.data = output_gradient;
    for (int k = 0; k < c->inputs; k++) {
        if (!c->given[k]) continue;
        t.input_gradient[k].data = r.gradient[k] = malloc((size_t)(c->count[k] + 1) * sizeof(float));
        memset(r.gradient[k], 0xff, (size_t)(c->count[k] + 1) * sizeof(float));
    }
    if (c->mixer->states) {
        t.state_in = state_in;
        t.state_out_gradient = state_gradient;
        t.state_in_gradient = r.state_gradient;
    }
    run_form(test_context(3, 2), &c->s, &t, LINNET_MIXER_BACKWARD);
    char name[64];
    for (int k = 0; k < c->inputs; k++) {
        if (!c->given[k]) continue;
        snprintf(name, sizeof name, "gradient of %s", c->mixer->inputs[k].name);
        check_gradient(&l, name, c->input[k], r.gradient[k], c->count[k], &random);
    }
    if (c->mixer->states && !c->oracle->opaque_state)
        check_gradient(&l, "gradient of the state", c->state_in, r.state_gradient, states, &random);
    shot other = {0}; /* the same bits on one thread, with nothing but some gradients wanted */
    for (int k = 0; k < c->inputs; k++) {
        if (!c->given[k]) continue;
        other.gradient[k] = malloc((size_t)(c->count[k] + 1) * sizeof(float));
        t.input_gradient[k].data = k % 2 ? NULL : other.gradient[k];
    }
    run_form(test_context(3, 1), &c->s, &t, LINNET_MIXER_BACKWARD);
    for (int k = 0; k < c->inputs; k += 2)
        if (c->given[k]) assert_memory_equal(other.gradient[k], r.gradient[k], (size_t)c->count[k] * sizeof(float));
    close_shot(&other);
    close_shot(&r);
    for (int k = 0; k < c->inputs; k++) free(kept[k]);
    free(output_gradient);
    free(state_gradient);
    free(state_in);
    free(output_weight);
    free(state_weight);
    free(l.output);
    free(l.state);
}

static void check_gradients(const mixer_oracle *oracle) {
    static const int64_t offsets[] = {0, 22, 22, 23, 60};
    int runs = 0;
    for (int which = 0; which < 3; which++)
        for (int variant = 0; variant <= oracle->variants; variant++) {
            if (oracle->surrogate && variant >= oracle->surrogate) continue;
            linnet_mixer_settings s = settings_of(oracle, which, variant, which ? 37 : 60);
            instance c;
            if (which == 0) {
                s.sequences = 4;
                s.offsets = offsets;
            }
            s.chunk = which == 1 ? 16 : 0;
            if (!open_case(oracle, s, which == 2 ? HARD_GATES : GENTLE, true, (uint64_t)(81 + which), &c)) continue;
            if (c.mixer->backward) check_gradients_of(&c);
            close_case(&c);
            runs++;
        }
    assert_true(runs > 0);
}

/* Every input that may be left out, left out. */
static void check_omitted(const mixer_oracle *oracle) {
    instance c;
    if (!oracle->omits) return;
    assert_true(some_case(oracle, 0, 0, 37, GENTLE, 91, &c));
    for (int k = 0; k < c.inputs; k++) c.given[k] = !(c.mixer->inputs[k].flags & LN_OPTIONAL);
    solve_case(&c);
    check(&c, 3, 2, 0);
    if (c.mixer->backward) check_gradients_of(&c);
    close_case(&c);
}

/* ---- running all of it ---- */

typedef struct part {
    const char *name;
    void (*run)(const mixer_oracle *oracle);
} part;
static const part parts[] = {{"lengths", check_lengths}, {"levels", check_levels},   {"chunks", check_chunks},
                             {"threads", check_threads}, {"splits", check_splits},   {"ragged", check_ragged},
                             {"pool", check_pool},       {"reverse", check_reverse}, {"bf16", check_bf16},
                             {"lanes", check_lanes},     {"far", check_far},         {"gradients", check_gradients},
                             {"omitted", check_omitted}};

static void rows_are_right(void **state) {
    (void)state;
    int ran = 0;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        if (only_part && strcmp(only_part, families[f].part) != 0) continue;
        for (const mixer_oracle *o = families[f].oracles; o->name; o++) {
            if (only_row && strcmp(only_row, o->name) != 0) continue;
            ran++;
            for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
                where = parts[p].name;
                parts[p].run(o);
            }
        }
    }
    if (!ran) fail_msg("no row %s in part %s", only_row ? only_row : "", only_part ? only_part : "");
}

static void every_row_has_an_oracle(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (const ln_mixer *m = families[f].rows; m->name; m++) {
            bool found = false;
            for (const mixer_oracle *o = families[f].oracles; o->name; o++) found |= strcmp(o->name, m->name) == 0;
            if (!found) fail_msg("%s has no oracle in tests/oracle_%s.c", m->name, families[f].part);
            assert_ptr_equal(ln_mixer_find(m->name), m);
            assert_string_equal(m->core, families[f].core);
            assert_non_null(m->paper);
            assert_non_null(m->formula);
            assert_non_null(m->workspace);
            assert_non_null(m->forward);
            assert_non_null(m->flops);
            linnet_mixer_settings s = linnet_mixer_settings_default(m->name);
            linnet_mixer_state one;
            int64_t sum = 0;
            s.key_size = s.value_size = 16;
            for (int i = 0; linnet_mixer_state_of(&s, i, &one); i++) {
                assert_int_equal(one.offset, sum);
                sum += one.rows * one.columns;
            }
            if (sum != linnet_mixer_state_floats(&s)) fail_msg("%s: the parts of its state do not add up", m->name);
        }
}

/* What is refused or too large to be counted has no workspace; nothing overflows on the way. */
static void sizes_are_checked(void **state) {
    (void)state;
    static const int64_t most[] = {1, 3, (int64_t)1 << 12, (int64_t)1 << 20, (int64_t)1 << 24, INT64_MAX};
    enum { MOST = sizeof most / sizeof *most };
    linnet_context *context = test_context(3, 1);
    const char *name;
    for (int i = 0; (name = linnet_mixer_name(i)); i++)
        for (int z = 0; z < MOST * MOST * MOST; z++) {
            linnet_mixer_settings s = linnet_mixer_settings_default(name);
            s.heads = most[z % MOST];
            s.key_size = s.value_size = most[z / MOST % MOST];
            s.slots = most[z / MOST / MOST];
            s.tokens = z % 2 ? (int64_t)1 << 40 : 1 << 20;
            assert_true(linnet_mixer_state_floats(&s) >= 0);
            for (int form = LINNET_MIXER_FORWARD; form <= LINNET_MIXER_BACKWARD; form++) {
                const uint64_t bytes = linnet_mixer_workspace(context, &s, (linnet_mixer_form)form);
                assert_true(bytes == 0 || (bytes >= 64 && bytes <= UINT64_MAX / 2));
            }
        }
}

int main(int argc, char **argv) {
    only_part = argc > 1 ? argv[1] : NULL;
    only_row = getenv("LINNET_ROW");
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_row_has_an_oracle), cmocka_unit_test(sizes_are_checked),
                                       cmocka_unit_test(rows_are_right)};
    return cmocka_run_group_tests(tests, NULL, close_contexts);
}
