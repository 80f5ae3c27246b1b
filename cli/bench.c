/* Owns: the verb bench: tokens per second of prompts and of generation, at several depths of context, beside what the
 * machine can do at most, measured in the same run.
 *
 * A row is the median over repetitions, after one that is not counted. Tokens are random: speed does not depend on
 * them. Each repetition starts from the same tokens in memory. What a token costs at least, with d tokens before it:
 *   generated: reading all weights but a separate embedding, and d * bytes_per_token of pages; against read_bytes;
 *   of a prompt: 2 operations a weight of the layers, and 4 * layers * heads * key_size * d of attention; against the
 *   operations a second of the kind that most weights are multiplied in.
 * On a device read_bytes is what a copy there reads and writes, and prompts are multiplied in bf16. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "bench_shared.h"
#include "linnet/cuda.h"

static const cli_option bench_options[] = {
    CLI_OPTION('p', "prompts", CLI_INTEGERS, prompts, "N,N", "tokens of prompts to process at once; 0: none",
               .fallback = "512", .highest = 1e9),
    CLI_OPTION('n', "generations", CLI_INTEGERS, generations, "N,N", "tokens to generate one by one; 0: none",
               .fallback = "64", .highest = 1e9),
    CLI_OPTION('d', "depths", CLI_INTEGERS, depths, "N,N", "tokens that stand before", .fallback = "0", .highest = 1e9),
    CLI_OPTION('r', "repetitions", CLI_INTEGER, repetitions, "N", "timed repetitions", .fallback = "5", .lowest = 1,
               .highest = 1000),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL,
               "print one JSON object (attention and mixers: one a line) instead of a Markdown table"),
    {0}};

static const cli_group groups[] = {{"bench", bench_options},
                                   {"bench attention and mixers", cli_attention_options},
                                   {"bench mixers", cli_mixer_options},
                                   {"model", cli_model_options},
                                   {"memory", cli_memory_options},
                                   {"other", cli_common_options},
                                   {0}};

enum { MOST_REPETITIONS = 1000 };

typedef struct bench {
    cli_engine engine;
    const cli_arguments *arguments;
    int32_t *ids; /* random; as many as the context */
    double speeds[MOST_REPETITIONS];
    json_t *rows;
    linnet_peaks peaks;
    double operations;    /* a second, of the kind that most weights are multiplied in */
    double layer_weights; /* weights that every token of a prompt is multiplied with */
    double read_weights;  /* bytes of weights that a generated token reads */
    bool on_device;
} bench;

/* The part of a tensor that one token meets: of experts, those that it is sent to. */
static double share_of(const linnet_model_info *info, const char *name) {
    char what[8];
    int layer, expert;
    const bool alone = sscanf(name, "blk.%5d.ffn_%7[a-z].%5d.", &layer, what, &expert) == 3;
    const bool chosen = info->experts > 0 && (alone || strstr(name, "_exps."));
    return chosen ? (double)info->experts_used / (double)info->experts : 1;
}

/* Which weights a token meets, from the table of tensors. */
static void weigh(bench *b, bool exact) {
    const linnet_file *file = linnet_model_file(b->engine.model);
    double int8_values = 0, bf16_values = 0, other_values = 0, embedding = 0;
    bool tied = true;
    linnet_tensor_info info;
    for (int64_t i = 0; linnet_file_tensor(file, i, &info); i++) {
        const double share = share_of(&b->engine.info, info.name);
        const double rows = info.dimensions > 1 ? (double)(info.size[1] * info.size[2]) : 0;
        const double values = share * (double)info.size[0] * rows;
        int block, bytes;
        b->read_weights += share * (double)info.bytes;
        if (!strcmp(info.name, "token_embd.weight")) {
            embedding = (double)info.bytes;
        } else if (!strcmp(info.name, "output.weight")) {
            tied = false;
        } else if (info.type == LINNET_BF16 && !exact) {
            bf16_values += values;
        } else if (linnet_type_layout(info.type, &block, &bytes) && block > 1 && !exact) {
            int8_values += values;
        } else {
            other_values += values;
        }
    }
    if (!tied) b->read_weights -= embedding;
    b->layer_weights = int8_values + bf16_values + other_values;
    b->operations = b->on_device ? b->peaks.bf16_operations : b->peaks.f32_operations;
    if (b->on_device) return;
    if (int8_values > bf16_values && int8_values > other_values && b->peaks.int8_operations > 0)
        b->operations = b->peaks.int8_operations;
    if (bf16_values > int8_values && bf16_values > other_values && b->peaks.bf16_operations > 0)
        b->operations = b->peaks.bf16_operations;
}

/* The speed that the peaks allow: `tokens` after `depth`. */
static double bound(const bench *b, int64_t depth, int64_t tokens, bool one_by_one) {
    const linnet_model_info info = b->engine.info;
    const linnet_plan plan = linnet_session_plan(b->engine.session);
    const double before = (double)depth + 0.5 * (double)tokens;
    if (one_by_one)
        return b->peaks.read_bytes /
               (b->read_weights + (double)info.state_bytes + before * (double)plan.bytes_per_token);
    const double attention = 4.0 * (double)(info.attention_layers * info.heads * info.key_size) * before;
    return b->operations / (2 * b->layer_weights + attention);
}

static linnet_status feed_one_by_one(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; status == LINNET_OK && i < count; i++) status = linnet_session_feed(session, ids + i, 1);
    return status;
}

/* Back to exactly the first `depth` tokens, with work only where they were forgotten. */
static linnet_status restore(linnet_session *session, const int32_t *ids, int64_t depth) {
    const int64_t held = linnet_session_rewind_point(session, depth);
    const int64_t position = linnet_session_position(session);
    linnet_status status = LINNET_OK;
    if (position > held) status = linnet_session_rewind(session, held);
    const int64_t now = linnet_session_position(session);
    if (status == LINNET_OK && now < depth) status = linnet_session_feed(session, ids + now, depth - now);
    linnet_session_mark(session);
    return status;
}

static void report(bench *b, const char *test, int64_t depth, double most) {
    const int64_t count = b->arguments->repetitions;
    json_t *samples = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(samples, json_real(b->speeds[i]));
    const double median = cli_median(b->speeds, (int)count);
    json_array_append_new(b->rows,
                          json_pack("{ss sI sf sf so}", "test", test, "depth", (json_int_t)depth, "tokens_per_second",
                                    median, "percent_of_peak", 100 * median / most, "samples", samples));
    if (b->arguments->json) return;
    char name[48];
    snprintf(name, sizeof name, depth ? "%s @ %lld" : "%s", test, (long long)depth);
    printf("| %-16s | %12.2f | %12.2f | %12.2f | %9.1f %% |\n", name, median, b->speeds[0], b->speeds[count - 1],
           100 * median / most);
    fflush(stdout);
}

static int measure(bench *b, int64_t depth, int64_t count, bool one_by_one) {
    linnet_session *session = b->engine.session;
    if (!count) return CLI_OK;
    for (int64_t repetition = -1; repetition < b->arguments->repetitions; repetition++) {
        linnet_status status = restore(session, b->ids, depth);
        const double began = cli_seconds();
        if (status == LINNET_OK)
            status = (one_by_one ? feed_one_by_one : linnet_session_feed)(session, b->ids + depth, count);
        if (status != LINNET_OK) return cli_engine_fail(&b->engine, status);
        if (!linnet_session_logits(session)) return cli_engine_fail(&b->engine, LINNET_ERROR_UNSUPPORTED); /* waits */
        const double seconds = cli_seconds() - began;
        if (repetition >= 0) b->speeds[repetition] = seconds > 0 ? (double)count / seconds : 0;
    }
    char test[32];
    snprintf(test, sizeof test, one_by_one ? "tg%lld" : "pp%lld", (long long)count);
    report(b, test, depth, bound(b, depth, count, one_by_one));
    return CLI_OK;
}

static int64_t largest(const cli_integers *list) {
    int64_t most = 0;
    for (int i = 0; i < list->count; i++) most = list->value[i] > most ? list->value[i] : most;
    return most;
}

static int measure_all(bench *b) {
    const cli_arguments *arguments = b->arguments;
    int status = CLI_OK;
    for (int d = 0; d < arguments->depths.count; d++) {
        for (int i = 0; status == CLI_OK && i < arguments->prompts.count; i++)
            status = measure(b, arguments->depths.value[d], arguments->prompts.value[i], false);
        for (int i = 0; status == CLI_OK && i < arguments->generations.count; i++)
            status = measure(b, arguments->depths.value[d], arguments->generations.value[i], true);
    }
    return status;
}

static int open_session(bench *b) {
    const cli_arguments *arguments = b->arguments;
    const int64_t prompt = largest(&arguments->prompts), generation = largest(&arguments->generations);
    int64_t context = largest(&arguments->depths) + (prompt > generation ? prompt : generation);
    if (context < arguments->context) context = arguments->context;
    if (!context) return cli_usage(&cli_bench, "nothing to measure: -p and -n are 0");
    linnet_session_settings settings = cli_session_settings(arguments, context, 0);
    if (!settings.snapshots) settings.snapshots = 1;
    const int status = cli_session_open(&b->engine, &settings, 0);
    if (status != CLI_OK) return status;
    b->ids = malloc((size_t)context * sizeof *b->ids);
    if (!b->ids) return cli_error("not enough memory for %lld tokens", (long long)context);
    unsigned short state[3] = {1, 2, 3};
    for (int64_t i = 0; i < context; i++) b->ids[i] = (int32_t)(nrand48(state) % b->engine.info.vocabulary);
    return CLI_OK;
}

static linnet_status measure_peaks(bench *b) {
    b->peaks.size = sizeof b->peaks;
    if (!b->on_device) return linnet_measure_peaks(b->engine.context, &b->peaks);
    linnet_cuda *cuda;
    linnet_status status = linnet_cuda_open(b->engine.context, 0, &cuda);
    if (status != LINNET_OK) return status;
    status = linnet_cuda_measure_peaks(cuda, &b->peaks);
    linnet_cuda_close(cuda);
    return status;
}

static int run_bench(bench *b) {
    int status = open_session(b);
    if (status != CLI_OK) return status;
    const linnet_model_info info = b->engine.info;
    const linnet_plan plan = linnet_session_plan(b->engine.session);
    b->on_device = *plan.device;
    const linnet_status measured = measure_peaks(b);
    if (measured != LINNET_OK) return cli_engine_fail(&b->engine, measured);
    weigh(b, b->arguments->exact);
    const char *name = *info.name ? info.name : info.architecture;
    const char *cpu = linnet_cpu(b->engine.context);
    const int threads = linnet_threads(b->engine.context);
    if (!b->arguments->json) {
        printf("%s, %s of weights, %.1f M parameters, cache %s, ", name, cli_size(info.weight_bytes),
               1e-6 * (double)info.parameters, linnet_type_name(plan.precision));
        if (b->on_device)
            printf("%s\n\npeaks: %.0f GB/s of a copy, %.0f TFLOP/s of a product in bf16\n\n", plan.device,
                   1e-9 * b->peaks.read_bytes, 1e-12 * b->peaks.bf16_operations);
        else
            printf("%d threads, %s\n\n"
                   "peaks: %.1f GB/s read; %.0f (f32), %.0f (bf16), %.0f (int8) GFLOP/s, of which this model's weights "
                   "can "
                   "use %.0f\n\n",
                   threads, cpu, 1e-9 * b->peaks.read_bytes, 1e-9 * b->peaks.f32_operations,
                   1e-9 * b->peaks.bf16_operations, 1e-9 * b->peaks.int8_operations, 1e-9 * b->operations);
        printf("| %-16s | %12s | %12s | %12s | %11s |\n"
               "| :--------------- | -----------: | -----------: | -----------: | ----------: |\n",
               "test", "tokens/s", "slowest", "fastest", "of the peak");
        fflush(stdout);
    }
    status = measure_all(b);
    if (status != CLI_OK || !b->arguments->json) return status;
    json_t *rows = json_incref(b->rows);
    return cli_json_print(json_pack("{ss sI sI ss si ss ss s{sf sf sf sf} so}", "model", name, "weight_bytes",
                                    (json_int_t)info.weight_bytes, "parameters", (json_int_t)info.parameters,
                                    "precision", linnet_type_name(plan.precision), "threads", threads, "cpu", cpu,
                                    "device", plan.device, "peaks", "read_bytes", b->peaks.read_bytes, "f32_operations",
                                    b->peaks.f32_operations, "bf16_operations", b->peaks.bf16_operations,
                                    "int8_operations", b->peaks.int8_operations, "rows", rows));
}

static int run(const cli_arguments *arguments) {
    if (arguments->operand_count) {
        const bool attention = !strcmp(arguments->operands[0], "attention"),
                   mixers = !strcmp(arguments->operands[0], "mixers");
        if ((attention || mixers) && cli_on_device(arguments)) return cli_bench_device(arguments, attention, mixers);
        if (attention) return cli_bench_attention(arguments);
        if (mixers) return cli_bench_mixers(arguments);
        return cli_usage(&cli_bench, "there is nothing '%s' to measure, only attention and mixers",
                         arguments->operands[0]);
    }
    if (cli_on_device(arguments) && !arguments->model) return cli_bench_device(arguments, true, true);
    static bench b;
    b.arguments = arguments;
    int status = cli_engine_open(arguments, false, &b.engine);
    b.rows = json_array();
    if (status == CLI_OK) status = run_bench(&b);
    json_decref(b.rows);
    free(b.ids);
    cli_engine_close(&b.engine);
    return status;
}

const cli_verb cli_bench = {
    .name = "bench",
    .operands = "[attention | mixers]",
    .summary = "measure tokens per second of a model, or operators alone",
    .details =
        "pp512 is a prompt of 512 tokens processed at once, tg64 are 64 tokens generated one by one, @ N with N "
        "tokens standing before. Each figure is the median of the repetitions, after one that is not counted. "
        "'bench attention' needs no "
        "model: it times the attention operator, one work a line, in percent of peaks measured before. 'bench mixers' "
        "does so for every mixer in linear time, in each of its forms. With --device cuda they time the operators that "
        "a GPU has, in sizes that fill one; without a word and a model, both do.",
    .groups = groups,
    .run = run,
    .most_operands = 1};
