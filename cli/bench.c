/* Owns: the verb bench: tokens per second of prompts and of generation, at several depths of context.
 *
 * A row is the median over repetitions, after one that is not counted. Tokens are random: speed does not depend on
 * them. Each repetition starts from the same tokens in memory. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option bench_options[] = {
    CLI_OPTION('p', "prompts", CLI_INTEGERS, prompts, "N,N", "tokens of prompts to process at once; 0: none",
               .fallback = "512", .highest = 1e9),
    CLI_OPTION('n', "generations", CLI_INTEGERS, generations, "N,N", "tokens to generate one by one; 0: none",
               .fallback = "64", .highest = 1e9),
    CLI_OPTION('d', "depths", CLI_INTEGERS, depths, "N,N", "tokens that stand before", .fallback = "0", .highest = 1e9),
    CLI_OPTION('r', "repetitions", CLI_INTEGER, repetitions, "N", "timed repetitions", .fallback = "5", .lowest = 1,
               .highest = 1000),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object instead of a Markdown table"),
    {0}};

static const cli_group groups[] = {{"bench", bench_options},
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
} bench;

static linnet_status feed_one_by_one(linnet_session *session, const int32_t *ids, int64_t count) {
    linnet_status status = LINNET_OK;
    for (int64_t i = 0; status == LINNET_OK && i < count; i++) status = linnet_session_feed(session, ids + i, 1);
    return status;
}

/* Back to exactly the first `depth` tokens, with work only where a window forgot them. */
static linnet_status restore(linnet_session *session, const int32_t *ids, int64_t depth) {
    const int64_t held = depth < linnet_session_rewind_limit(session) ? 0 : depth;
    const int64_t position = linnet_session_position(session);
    linnet_status status = LINNET_OK;
    if (position > held) status = linnet_session_rewind(session, held);
    const int64_t now = linnet_session_position(session);
    if (status == LINNET_OK && now < depth) status = linnet_session_feed(session, ids + now, depth - now);
    return status;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(bench *b, const char *test, int64_t depth) {
    const int64_t count = b->arguments->repetitions;
    json_t *samples = json_array();
    for (int64_t i = 0; i < count; i++) json_array_append_new(samples, json_real(b->speeds[i]));
    qsort(b->speeds, (size_t)count, sizeof *b->speeds, ascending);
    const double median = 0.5 * (b->speeds[count / 2] + b->speeds[(count - 1) / 2]);
    json_array_append_new(b->rows, json_pack("{ss sI sf so}", "test", test, "depth", (json_int_t)depth,
                                             "tokens_per_second", median, "samples", samples));
    if (b->arguments->json) return;
    char name[48];
    snprintf(name, sizeof name, depth ? "%s @ %lld" : "%s", test, (long long)depth);
    printf("| %-16s | %12.2f | %12.2f | %12.2f |\n", name, median, b->speeds[0], b->speeds[count - 1]);
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
        const double seconds = cli_seconds() - began;
        if (repetition >= 0) b->speeds[repetition] = seconds > 0 ? (double)count / seconds : 0;
    }
    char test[32];
    snprintf(test, sizeof test, one_by_one ? "tg%lld" : "pp%lld", (long long)count);
    report(b, test, depth);
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
    const linnet_session_settings settings = cli_session_settings(arguments, context, 0);
    const int status = cli_session_open(&b->engine, &settings, 0);
    if (status != CLI_OK) return status;
    b->ids = malloc((size_t)context * sizeof *b->ids);
    if (!b->ids) return cli_error("not enough memory for %lld tokens", (long long)context);
    unsigned short state[3] = {1, 2, 3};
    for (int64_t i = 0; i < context; i++) b->ids[i] = (int32_t)(nrand48(state) % b->engine.info.vocabulary);
    return CLI_OK;
}

static int run_bench(bench *b) {
    int status = open_session(b);
    if (status != CLI_OK) return status;
    const linnet_model_info info = b->engine.info;
    const linnet_plan plan = linnet_session_plan(b->engine.session);
    const char *name = *info.name ? info.name : info.architecture;
    const char *cpu = linnet_cpu(b->engine.context);
    const int threads = linnet_threads(b->engine.context);
    if (!b->arguments->json) {
        printf("%s, %s of weights, %.1f M parameters, cache %s, %d threads, %s\n\n", name, cli_size(info.weight_bytes),
               1e-6 * (double)info.parameters, linnet_type_name(plan.precision), threads, cpu);
        printf("| %-16s | %12s | %12s | %12s |\n| :--------------- | -----------: | -----------: | -----------: |\n",
               "test", "tokens/s", "slowest", "fastest");
        fflush(stdout);
    }
    status = measure_all(b);
    if (status != CLI_OK || !b->arguments->json) return status;
    json_t *rows = json_incref(b->rows);
    return cli_json_print(json_pack("{ss sI sI ss si ss so}", "model", name, "weight_bytes",
                                    (json_int_t)info.weight_bytes, "parameters", (json_int_t)info.parameters,
                                    "precision", linnet_type_name(plan.precision), "threads", threads, "cpu", cpu,
                                    "rows", rows));
}

static int run(const cli_arguments *arguments) {
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
    .operands = "",
    .summary = "measure tokens per second",
    .details = "pp512 is a prompt of 512 tokens processed at once, tg64 are 64 tokens generated one by one, @ N with N "
               "tokens standing before. Each figure is the median of the repetitions, after one that is not counted.",
    .groups = groups,
    .run = run};
