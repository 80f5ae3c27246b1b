/* Owns: the verb perplexity: how well a model predicts a text.
 *
 * The text is cut into windows of CTX tokens that do not overlap; what is left over is not counted. Each window is read
 * from an empty memory. nll = mean over windows and over tokens i = 1 .. CTX - 1 of
 * log(sum_j exp(logits[i - 1][j])) - logits[i - 1][token i], in float64; perplexity = exp(nll). The same over tokens
 * i = CTX / 2 + 1 .. CTX - 1 alone is what llama.cpp reports. Where the model's rules begin a text with a token, it
 * takes the place of the first token of each window, in both programs. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option perplexity_options[] = {
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE", "the text; - is standard input"),
    CLI_OPTION('w', "windows", CLI_INTEGER, windows, "N", "read only the first N windows; 0: all", .fallback = "0",
               .highest = 1e12),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object"),
    {0}};

static const cli_group groups[] = {{"perplexity", perplexity_options},
                                   {"model", cli_model_options},
                                   {"memory", cli_memory_options},
                                   {"other", cli_common_options},
                                   {0}};

typedef struct loss {
    const int32_t *ids; /* of this window */
    int64_t window, vocabulary;
    double sum, second_half;
    int64_t counted, second_counted;
} loss;

static double token_loss(const float *logits, int64_t vocabulary, int32_t id) {
    float most = logits[0];
    for (int64_t i = 1; i < vocabulary; i++) most = logits[i] > most ? logits[i] : most;
    double sum = 0;
    for (int64_t i = 0; i < vocabulary; i++) sum += (double)expf(logits[i] - most);
    return log(sum) + (double)most - (double)logits[id];
}

static linnet_status take(void *user, int64_t first, int64_t count, const float *logits) {
    loss *l = user;
    for (int64_t i = 0; i < count; i++) {
        const int64_t next = first + i + 1;
        if (next >= l->window) break;
        const double nll = token_loss(logits + i * l->vocabulary, l->vocabulary, l->ids[next]);
        l->sum += nll;
        l->counted++;
        if (next > l->window / 2) {
            l->second_half += nll;
            l->second_counted++;
        }
    }
    return LINNET_OK;
}

static int print_result(const cli_arguments *arguments, const loss *l, int64_t windows, double seconds) {
    const double nll = l->sum / (double)l->counted, second = l->second_half / (double)l->second_counted;
    const double speed = seconds > 0 ? (double)(windows * l->window) / seconds : 0;
    if (!arguments->json) {
        printf("perplexity %.4f (nll %.5f over %lld tokens in %lld windows of %lld); second halves %.4f\n", exp(nll),
               nll, (long long)l->counted, (long long)windows, (long long)l->window, exp(second));
        return CLI_OK;
    }
    return cli_json_print(json_pack(
        "{sf sf sI sI sI s{sf sf sI} sf sf}", "nll", nll, "perplexity", exp(nll), "tokens", (json_int_t)l->counted,
        "windows", (json_int_t)windows, "context", (json_int_t)l->window, "second_half", "nll", second, "perplexity",
        exp(second), "tokens", (json_int_t)l->second_counted, "seconds", seconds, "tokens_per_second", speed));
}

static int measure(cli_engine *engine, const cli_arguments *arguments, cli_ids *ids) {
    loss l = {.window = arguments->context, .vocabulary = engine->info.vocabulary};
    int64_t windows = ids->count / l.window;
    if (!windows)
        return cli_error("the text has %lld tokens, not one window of %lld; lower -c or give more text",
                         (long long)ids->count, (long long)l.window);
    if (arguments->windows && arguments->windows < windows) windows = arguments->windows;
    const uint64_t kept = (uint64_t)ids->count * sizeof *ids->id;
    const linnet_session_settings settings = cli_session_settings(arguments, l.window, kept);
    int status = cli_session_open(engine, &settings, kept);
    if (status != CLI_OK) return status;
    cli_ids begin = {0};
    status = cli_tokenize_text(engine->context, engine->tokenizer, "", 0, LINNET_TOKENIZE_BEGIN, &begin);
    const int32_t first = begin.count ? begin.id[0] : -1;
    free(begin.id);
    if (status != CLI_OK) return status;
    const double began = cli_seconds();
    for (int64_t i = 0; i < windows; i++) {
        int32_t *window = ids->id + i * l.window;
        if (first >= 0) window[0] = first;
        l.ids = window;
        linnet_status fed = linnet_session_rewind(engine->session, 0);
        if (fed == LINNET_OK) fed = linnet_session_feed_logits(engine->session, window, l.window, take, &l);
        if (fed != LINNET_OK) return cli_engine_fail(engine, fed);
        cli_note("window %lld of %lld: perplexity so far %.4f", (long long)i + 1, (long long)windows,
                 exp(l.sum / (double)l.counted));
    }
    cli_note_states(engine, arguments->state_reference);
    return print_result(arguments, &l, windows, cli_seconds() - began);
}

static int run(const cli_arguments *given) {
    cli_arguments arguments = *given;
    if (!arguments.file) return cli_usage(&cli_perplexity, "name the text with -f");
    if (!arguments.context) arguments.context = 512;
    if (arguments.context < 4) return cli_usage(&cli_perplexity, "-c must be at least 4");
    cli_engine engine = {0};
    cli_buffer text = {0};
    cli_ids ids = {0};
    int status = cli_read(arguments.file, &text);
    if (status == CLI_OK) status = cli_engine_open(&arguments, true, &engine);
    if (status == CLI_OK) status = cli_tokenize_text(engine.context, engine.tokenizer, text.data, text.bytes, 0, &ids);
    cli_buffer_free(&text);
    if (status == CLI_OK) status = measure(&engine, &arguments, &ids);
    free(ids.id);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_perplexity = {
    .name = "perplexity",
    .operands = "",
    .summary = "measure how well a model predicts a text",
    .details = "The text is cut into windows of CTX tokens (-c, 512 without it) that do not overlap; each is read from "
               "an empty memory. nll is the mean negative log-likelihood, in nats, of the tokens 1 .. CTX - 1 of each "
               "window, perplexity its exponential. second_half counts only tokens after the middle of each window, "
               "as llama.cpp does.",
    .groups = groups,
    .run = run};
