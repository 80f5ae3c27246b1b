/* Owns: `bench mixers`: the speed of every mixer of the table in each of its forms, beside what the machine can do at
 * most, measured in the same run.
 *
 * A work is MIXER_FORM_TYPE on random inputs of the ranges that the table states. Forward and backward are measured
 * against multiply-adds, by the operations that the form needs. A step reads and writes each state once; it is measured
 * against copying blocks of as many bytes, thread by thread, which reads and writes them once too. So that a state does
 * not sit in the nearest cache by accident, the states of a step are those of --sequences sequences. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_shared.h"
#include "linnet/bench.h"
#include "linnet/mixer.h"

enum { MOST_ROUNDS = 1000 };

const cli_option cli_mixer_options[] = {
    CLI_OPTION(0, "sequences", CLI_INTEGER, sequences, "N", "of a step", .fallback = "16", .lowest = 1, .highest = 1e6),
    CLI_OPTION(0, "list", CLI_FLAG, list, NULL, "only say what they are: formula, paper, inputs, state"),
    {0}};

typedef struct work {
    linnet_context *context;
    const cli_arguments *arguments;
    linnet_mixer_settings settings;
    linnet_mixer_form form;
    linnet_mixer_tensors tensors;
    cli_blocks blocks;
    void *workspace;
    double seconds[MOST_ROUNDS];
    double median, fastest, copy; /* copy: bytes a second, read and written */
} work;

static const char *const forms[] = {"forward", "step", "backward"};

/* ---- making a work ---- */

static float draw(unsigned short state[3], linnet_mixer_range range) {
    const double unit = erand48(state), normal = (erand48(state) + erand48(state) + erand48(state) - 1.5) * 2;
    switch (range) {
    case LINNET_RANGE_DECAY:
        return (float)(-0.1 * unit);
    case LINNET_RANGE_UNIT:
        return (float)unit;
    case LINNET_RANGE_TWICE:
        return (float)unit;
    case LINNET_RANGE_POSITIVE:
        return (float)(0.1 + 0.4 * unit);
    case LINNET_RANGE_NEGATIVE:
        return (float)(-0.1 - unit);
    case LINNET_RANGE_SMALL:
        return (float)(0.05 * normal);
    case LINNET_RANGE_ANY:
        break;
    }
    return (float)normal;
}

/* Keys and queries of length about one: recurrences that correct themselves stay bounded. */
static void *random_input(work *w, const linnet_mixer_input *input) {
    const int64_t count = (input->parameter ? 1 : w->settings.tokens) * input->heads * input->columns;
    unsigned short state[3] = {1, 2, (unsigned short)input->name[0]};
    const bool direction = !strcmp(input->name, "key") || !strcmp(input->name, "query");
    const float scale = direction ? (float)(1 / sqrt((double)input->columns)) : 1;
    float *values = cli_block(&w->blocks, 4.0 * (double)count);
    for (int64_t i = 0; values && i < count; i++) {
        const float value = draw(state, input->range) * scale;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (input->type == LINNET_BF16)
            ((uint16_t *)(void *)values)[i] = (uint16_t)(bits >> 16);
        else
            values[i] = value;
    }
    return values;
}

/* Sizes that the mixer takes: what was asked for, else the first of these. */
static bool choose_sizes(work *w, int64_t size) {
    static const int64_t keys[] = {0, 64, 32, 16, 16, 8, 1}, values[] = {0, 64, 32, 64, 16, 8, 64};
    for (int i = 0; i < 7; i++) {
        w->settings.key_size = i ? keys[i] : size;
        w->settings.value_size = i ? values[i] : size;
        if (linnet_mixer_workspace(w->context, &w->settings, LINNET_MIXER_FORWARD)) return true;
    }
    return false;
}

static int make(work *w) {
    linnet_mixer_settings *s = &w->settings;
    const int64_t outputs = s->tokens * s->heads * linnet_mixer_output_columns(s),
                  states = s->sequences * linnet_mixer_state_floats(s);
    w->tensors = (linnet_mixer_tensors){.size = sizeof w->tensors};
    linnet_mixer_input input;
    bool fits = true;
    for (int k = 0; linnet_mixer_input_of(s, k, &input); k++) {
        fits &= (w->tensors.input[k].data = random_input(w, &input)) != NULL;
        if (w->form != LINNET_MIXER_BACKWARD) continue;
        const int64_t rows = input.parameter ? 1 : s->tokens;
        w->tensors.input_gradient[k].data = cli_block(&w->blocks, 4.0 * (double)(rows * input.heads * input.columns));
        fits &= w->tensors.input_gradient[k].data != NULL;
    }
    float *output = cli_block(&w->blocks, 4.0 * (double)outputs);
    for (int64_t i = 0; output && i < outputs; i++) output[i] = 1;
    if (w->form == LINNET_MIXER_BACKWARD)
        w->tensors.output_gradient.data = output;
    else
        w->tensors.output.data = output;
    if (states && w->form != LINNET_MIXER_BACKWARD) {
        float *state = cli_block(&w->blocks, 4.0 * (double)states);
        if (state) memset(state, 0, (size_t)states * sizeof *state);
        w->tensors.state_in = w->tensors.state_out = state;
        fits &= state != NULL;
    }
    w->workspace = cli_block(&w->blocks, (double)linnet_mixer_workspace(w->context, s, w->form));
    if (fits && output && w->workspace) return CLI_OK;
    return cli_error("not enough memory for %s over %lld tokens", s->name, (long long)s->tokens);
}

/* ---- timing and reporting ---- */

static linnet_status run_once(const work *w) {
    static linnet_status (*const run[])(linnet_context *, const linnet_mixer_settings *, const linnet_mixer_tensors *,
                                        void *) = {linnet_mixer_forward, linnet_mixer_step, linnet_mixer_backward};
    return run[w->form](w->context, &w->settings, &w->tensors, w->workspace);
}

/* Copies as many bytes as the states have from one half of a block to the other, in turn with the work. */
static double copy_once(char *block, size_t bytes) {
    const double began = cli_seconds();
    memcpy(block + bytes / 2, block, bytes / 2);
    const double forth = cli_seconds() - began;
    __asm__ volatile("" : : "r"(block) : "memory");
    return forth;
}

static int time_work(work *w, char *block, size_t bytes) {
    double copies[MOST_ROUNDS];
    double spent = 0;
    int counted = 0;
    for (int round = 0; counted < MOST_ROUNDS; round++) {
        const double began = cli_seconds();
        const linnet_status status = run_once(w);
        const double seconds = cli_seconds() - began;
        if (status != LINNET_OK) return cli_error("%s", linnet_last_error(w->context));
        if (cli_interrupted()) return CLI_INTERRUPTED;
        const double copied = block ? copy_once(block, bytes) : 0;
        if (round == 0 && seconds < w->arguments->seconds) continue;
        copies[counted] = copied;
        w->seconds[counted++] = seconds;
        spent += seconds;
        if (spent >= w->arguments->seconds ||
            (counted >= w->arguments->repetitions && spent >= 0.1 * w->arguments->seconds))
            break;
    }
    w->median = cli_median(w->seconds, counted);
    w->fastest = w->seconds[0];
    const double copy = block ? cli_median(copies, counted) : 0;
    w->copy = copy > 0 ? (double)bytes / copy * linnet_threads(w->context) : 0;
    return CLI_OK;
}

static int report(const work *w, const linnet_peaks *peaks) {
    const linnet_mixer_settings *s = &w->settings;
    const int threads = linnet_threads(w->context);
    const double each = (double)(s->tokens * s->heads),
                 bytes = 8.0 * (double)(s->sequences * linnet_mixer_state_floats(s));
    const bool step = w->form == LINNET_MIXER_STEP,
               half = s->type == LINNET_BF16 && !s->exact && peaks->bf16_operations > 0;
    const double rate = (step ? bytes : each * linnet_mixer_flops(w->context, s, w->form)) / w->median;
    const double peak = step ? w->copy : half ? peaks->bf16_operations : peaks->f32_operations;
    const double percent = peak > 0 ? 100 * rate / peak : 0, microseconds = 1e6 * w->median * threads / each;
    char name[96];
    snprintf(name, sizeof name, "%s_%s_%s", s->name, forms[w->form], linnet_type_name(s->type));
    if (w->arguments->json)
        return cli_json_line(json_pack(
            "{ss ss sI sI sI sI sI si sf sf sf sf ss sf}", "work", name, "path", linnet_cpu(w->context), "length",
            (json_int_t)s->tokens, "heads", (json_int_t)s->heads, "key_value_heads", (json_int_t)s->key_heads, "size",
            (json_int_t)s->key_size, "value_size", (json_int_t)s->value_size, "threads", threads, "seconds", w->median,
            "fastest", w->fastest, "microseconds", microseconds, step ? "gbs" : "gflops", 1e-9 * rate, "peak",
            step   ? "copy"
            : half ? "bf16"
                   : "f32",
            "percent_of_peak", percent));
    printf("| %-40s | %4lld x %-4lld | %7lld | %10.6f | %10.3f | %8.1f %-8s | %6.1f %% of %-4s |\n", name,
           (long long)s->key_size, (long long)s->value_size, (long long)s->tokens, w->median, microseconds, 1e-9 * rate,
           step ? "GB/s" : "GFLOP/s", percent,
           step   ? "copy"
           : half ? "bf16"
                  : "f32");
    fflush(stdout);
    return CLI_OK;
}

/* ---- the table ---- */

/* A mixer in one form at one type; nothing where it has not the form, or keeps no state to step. */
static int measure(work *w, const linnet_peaks *peaks, int64_t length, int64_t size) {
    linnet_mixer_settings *s = &w->settings;
    const bool step = w->form == LINNET_MIXER_STEP;
    s->heads = w->arguments->heads;
    s->key_heads = w->arguments->key_heads ? w->arguments->key_heads : s->heads;
    s->tokens = length;
    if (!choose_sizes(w, size)) return CLI_OK;
    /* A run of the dearest mixers is shortened to some seconds. */
    while (s->tokens > 64 && linnet_mixer_flops(w->context, s, w->form) * (double)(s->tokens * s->heads) > 4e11)
        s->tokens /= 2;
    if (step) s->tokens = s->sequences = w->arguments->sequences;
    if (!linnet_mixer_workspace(w->context, s, w->form)) return CLI_OK;
    int status = make(w);
    const size_t bytes =
        step ? 8 * (size_t)(s->sequences * linnet_mixer_state_floats(s)) / (size_t)linnet_threads(w->context) : 0;
    char *block = bytes ? cli_block(&w->blocks, (double)bytes) : NULL;
    if (block) memset(block, 1, bytes);
    if (status == CLI_OK) status = time_work(w, block, bytes);
    if (status == CLI_OK) status = report(w, peaks);
    return status;
}

static int run_row(linnet_context *context, const cli_arguments *arguments, const char *name,
                   const linnet_peaks *peaks) {
    static const linnet_type types[] = {LINNET_F32, LINNET_BF16};
    static work w;
    int status = CLI_OK;
    for (int form = 0; form < 3; form++)
        for (int t = 0; t < (form == LINNET_MIXER_STEP ? 1 : 2); t++)
            for (int l = 0; l < (form == LINNET_MIXER_STEP ? 1 : arguments->lengths.count); l++)
                for (int z = 0; status == CLI_OK && z < arguments->sizes.count; z++) {
                    char text[96];
                    snprintf(text, sizeof text, "%s_%s_%s", name, forms[form], linnet_type_name(types[t]));
                    if (!cli_wanted(text, arguments->works)) continue;
                    w = (work){.context = context, .arguments = arguments, .form = (linnet_mixer_form)form};
                    w.settings = linnet_mixer_settings_default(name);
                    w.settings.type = types[t];
                    status = measure(&w, peaks, arguments->lengths.value[l], arguments->sizes.value[z]);
                    cli_blocks_free(&w.blocks);
                }
    return status;
}

/* The names of inputs or states, "query [128], beta?": a question mark where it may be left out. */
static void name_inputs(const linnet_mixer_settings *s, char *text, size_t bytes) {
    linnet_mixer_input input;
    size_t used = 0;
    for (int k = 0; used < bytes && linnet_mixer_input_of(s, k, &input); k++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s%s%s", k ? ", " : "", input.name,
                                 input.optional ? "?" : "", input.parameter ? " (parameter)" : "");
}

static void name_states(const linnet_mixer_settings *s, char *text, size_t bytes) {
    linnet_mixer_state state;
    size_t used = 0;
    for (int k = 0; used < bytes && linnet_mixer_state_of(s, k, &state); k++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s %lld x %lld", k ? ", " : "", state.name,
                                 (long long)state.rows, (long long)state.columns);
}

/* A line a mixer, at the first of --sizes that it takes. */
static int list_row(linnet_context *context, const cli_arguments *arguments, const char *name) {
    static work w;
    linnet_mixer_info info = {.size = sizeof info};
    char inputs[1024] = "", states[512] = "";
    if (linnet_mixer_describe(context, name, &info) != LINNET_OK) return cli_error("%s", linnet_last_error(context));
    w = (work){.context = context, .arguments = arguments, .settings = linnet_mixer_settings_default(name)};
    if (!choose_sizes(&w, arguments->sizes.value[arguments->sizes.count - 1])) return CLI_OK;
    name_inputs(&w.settings, inputs, sizeof inputs);
    name_states(&w.settings, states, sizeof states);
    const int64_t bytes = 4 * linnet_mixer_state_floats(&w.settings);
    if (!arguments->json) {
        printf("%s (%s)\n  %s\n  %s\n  inputs: %s\n  state: %s%s%lld bytes a head at %lld x %lld\n", name, info.core,
               info.formula, info.paper, inputs, states, *states ? ", " : "", (long long)bytes,
               (long long)w.settings.key_size, (long long)w.settings.value_size);
        return CLI_OK;
    }
    json_t *options = json_array();
    for (int i = 0; i < 4; i++)
        if (info.options[i]) json_array_append_new(options, json_string(info.options[i]));
    return cli_json_line(json_pack("{ss ss ss ss ss ss sI sI sI sb sb sb sb so}", "name", name, "core", info.core,
                                   "paper", info.paper, "formula", info.formula, "inputs", inputs, "states", states,
                                   "state_bytes", (json_int_t)bytes, "size", (json_int_t)w.settings.key_size,
                                   "value_size", (json_int_t)w.settings.value_size, "step", info.step, "backward",
                                   info.backward, "reverse", info.reverse, "causal", info.causal, "options", options));
}

static int list_rows(linnet_context *context, const cli_arguments *arguments) {
    int status = CLI_OK;
    const char *name;
    for (int i = 0; status == CLI_OK && (name = linnet_mixer_name(i)); i++)
        if (cli_wanted(name, arguments->works)) status = list_row(context, arguments, name);
    return status;
}

int cli_bench_mixers(const cli_arguments *arguments) {
    linnet_context *context;
    int status = cli_context_open(arguments, &context);
    if (status != CLI_OK) return status;
    if (arguments->list) {
        status = list_rows(context, arguments);
        linnet_context_close(context);
        return status;
    }
    linnet_peaks peaks = {.size = sizeof peaks};
    if (linnet_measure_peaks(context, &peaks) != LINNET_OK) status = cli_error("%s", linnet_last_error(context));
    if (status == CLI_OK && !arguments->json)
        printf("%lld heads, %d threads, %s, linnet %s\npeaks: %.0f (f32), %.0f (bf16) GFLOP/s; us: microseconds of one "
               "core for a token of a head\n\n| %-40s | %-11s | %7s | %10s | %10s | %17s | %16s |\n| :-- | :-- | --: | "
               "--: | --: | --: | --: |\n",
               (long long)arguments->heads, linnet_threads(context), linnet_cpu(context), linnet_version(),
               1e-9 * peaks.f32_operations, 1e-9 * peaks.bf16_operations, "work", "size", "length", "seconds", "us",
               "speed", "of the peak");
    const char *name;
    for (int i = 0; status == CLI_OK && (name = linnet_mixer_name(i)); i++)
        status = run_row(context, arguments, name, &peaks);
    linnet_context_close(context);
    return status;
}
