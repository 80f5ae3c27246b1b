/* Owns: the verb run: one prompt, one answer.
 *
 * The text the model sees: with --raw or without a chat template it is the document followed by the prompt, as they
 * are. With a template the prompt is a message of the user; the document stands inside it, before the prompt, or before
 * the whole chat where the model was trained so (its file says linnet.prompt_form = "document-then-chat"). */
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option prompt_options[] = {
    CLI_OPTION('p', "prompt", CLI_TEXT, prompt, "TEXT", "what to ask, or the text to continue"),
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE", "document that stands before the prompt; - is standard input"),
    CLI_OPTION(0, "raw", CLI_FLAG, raw, NULL,
               "continue document and prompt as they are, without the model's chat template"),
    CLI_OPTION(0, "predict", CLI_TEXT, predict, "MODEL",
               "small model that reads the prompt; maps beside its file make the keys and values of the model "
               "from its own (KV Prediction)"),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object: text, token counts, timings, memory"),
    {0}};

static const cli_group groups[] = {{"prompt", prompt_options},       {"model", cli_model_options},
                                   {"answer", cli_sampling_options}, {"memory", cli_memory_options},
                                   {"other", cli_common_options},    {0}};

/* The question asked: texts that live through the run. */
typedef struct question {
    cli_buffer document, prompt, system;
    bool demonstration; /* nothing was named: the built-in model answers from the built-in document */
    cli_ids ids;
} question;

static int read_question(const cli_arguments *arguments, question *q) {
    char path[PATH_MAX];
    q->demonstration = !arguments->model && !arguments->file && !arguments->prompt;
    if (q->demonstration) {
        if (!cli_shared_file("document.txt", path, sizeof path))
            return cli_error("share/linnet/document.txt is not installed beside this program; name a text with -f FILE "
                             "or -p TEXT");
        cli_note("document  %s", path);
        int status = cli_read(path, &q->document);
        if (status == CLI_OK && cli_shared_file("question.txt", path, sizeof path)) status = cli_read(path, &q->prompt);
        while (q->prompt.bytes && q->prompt.data[q->prompt.bytes - 1] == '\n') q->prompt.data[--q->prompt.bytes] = 0;
        if (status == CLI_OK) cli_note("question  %s", q->prompt.data ? q->prompt.data : "");
        return status;
    }
    if (!arguments->file && !arguments->prompt)
        return cli_usage(&cli_run, "nothing to do: give a prompt with -p or a document with -f");
    if (arguments->prompt && !cli_append(&q->prompt, arguments->prompt, strlen(arguments->prompt)))
        return cli_error("not enough memory for the prompt");
    return arguments->file ? cli_read(arguments->file, &q->document) : CLI_OK;
}

/* Document inside the message of the user. */
static int message_tokens(const cli_engine *engine, const cli_arguments *arguments, question *q) {
    cli_buffer content = {0};
    bool room = cli_append(&content, q->document.data, q->document.bytes);
    if (room && q->document.bytes && q->prompt.bytes) room = cli_append(&content, "\n\n", 2);
    room = room && cli_append(&content, q->prompt.data, q->prompt.bytes);
    int status = room ? CLI_OK : cli_error("not enough memory for the prompt");
    if (status == CLI_OK && strlen(content.data) < content.bytes)
        status = cli_error("the document holds a zero byte, which a chat message cannot carry; use --raw");
    if (status == CLI_OK) status = cli_question_tokens(engine, arguments->system, content.data, true, &q->ids);
    cli_buffer_free(&content);
    return status;
}

/* Document, then the chat: what the document spells is never taken for special tokens. */
static int document_first_tokens(const cli_engine *engine, const cli_arguments *arguments, question *q) {
    const bool document = q->document.bytes > 0;
    const int status = document ? cli_tokenize_text(engine->context, engine->tokenizer, q->document.data,
                                                    q->document.bytes, LINNET_TOKENIZE_BEGIN, &q->ids)
                                : CLI_OK;
    if (status != CLI_OK || !q->prompt.bytes) return status;
    return cli_question_tokens(engine, arguments->system, q->prompt.data, !document, &q->ids);
}

static int raw_tokens(const cli_engine *engine, question *q) {
    if (!cli_append(&q->document, q->prompt.data, q->prompt.bytes))
        return cli_error("not enough memory for the prompt");
    return cli_tokenize_text(engine->context, engine->tokenizer, q->document.data, q->document.bytes,
                             LINNET_TOKENIZE_SPECIAL | LINNET_TOKENIZE_BEGIN, &q->ids);
}

static int question_tokens(const cli_engine *engine, const cli_arguments *arguments, question *q) {
    int status;
    if (arguments->raw || !cli_has_template(engine)) {
        status = raw_tokens(engine, q);
    } else if (engine->manners.document_first) {
        status = document_first_tokens(engine, arguments, q);
    } else {
        status = message_tokens(engine, arguments, q);
    }
    cli_buffer_free(&q->document);
    cli_buffer_free(&q->prompt);
    if (status == CLI_OK && !q->ids.count) return cli_error("the prompt has no tokens; give some text with -p or -f");
    return status;
}

/* Tokens of context that the run needs, or a sentence. */
static int choose_context(const cli_engine *engine, const cli_arguments *arguments, const question *q,
                          int64_t *context) {
    const int64_t prompt = q->ids.count, trained = engine->info.context_length;
    if (arguments->context && prompt > arguments->context)
        return cli_error("the prompt has %lld tokens, more than the context of %lld; raise -c or shorten the text",
                         (long long)prompt, (long long)arguments->context);
    const int64_t needed = arguments->tokens < 0 ? (trained > prompt ? trained : prompt) : prompt + arguments->tokens;
    *context = arguments->context ? arguments->context : needed;
    if (trained && prompt > trained)
        cli_note("note: the prompt has %lld tokens, the model was trained for %lld", (long long)prompt,
                 (long long)trained);
    return CLI_OK;
}

/* The demonstration's bound: half of what the same cache takes in float32. */
static int half_of_float32(const cli_engine *engine, int64_t context, uint64_t *memory) {
    linnet_session_settings settings = linnet_session_settings_default();
    settings.context = context;
    settings.precision = LINNET_F32;
    linnet_plan plan;
    const int status = cli_plan_session(engine, &settings, 0, &plan);
    if (status != CLI_OK) return status;
    *memory = plan.pages / 2;
    cli_note("keys and values of %lld tokens take %s in float32; bounding all memory beyond the weights to half: "
             "--memory %llu",
             (long long)context, cli_size(plan.pages), (unsigned long long)*memory);
    if (linnet_memory_limit(engine->context, *memory) != LINNET_OK) return cli_engine_fail(engine, LINNET_ERROR_MEMORY);
    return CLI_OK;
}

/* ---- what is told at the end ---- */

typedef struct outcome {
    int64_t prompt_tokens; /* those processed, fewer than asked after ctrl-C */
    double prompt_seconds, first_seconds;
    cli_answer answer;
} outcome;

static double rate(int64_t count, double seconds) {
    return count > 0 && seconds > 0 ? (double)count / seconds : 0;
}

static void print_summary(const cli_engine *engine, const outcome *o, uint64_t memory) {
    const cli_resident resident = cli_resident_now();
    const cli_answer *answer = &o->answer;
    cli_note("prompt    %7lld tokens in %.2f s, %.1f tokens/s", (long long)o->prompt_tokens, o->prompt_seconds,
             rate(o->prompt_tokens, o->prompt_seconds));
    cli_note("generated %7lld tokens in %.2f s, %.1f tokens/s, ended by %s", (long long)answer->tokens, answer->seconds,
             rate(answer->tokens - 1, answer->seconds), answer->stopped);
    if (o->first_seconds > 0) cli_note("first token after %.2f s", o->first_seconds);
    const char *bound = memory ? cli_size(memory) : "no bound";
    cli_note("memory    %s allocated at most (%llu bytes) of %s; %s resident at most, mapped weights included",
             cli_size(linnet_memory_peak(engine->context)), (unsigned long long)linnet_memory_peak(engine->context),
             bound, cli_size(resident.peak));
}

static int print_json(const cli_engine *engine, const outcome *o, uint64_t memory) {
    const cli_resident resident = cli_resident_now();
    const cli_answer *answer = &o->answer;
    json_t *tokens =
        json_pack("{sI sI}", "prompt", (json_int_t)o->prompt_tokens, "generated", (json_int_t)answer->tokens);
    json_t *timings =
        json_pack("{sf sf sf sf sf sf}", "open_seconds", engine->open_seconds, "prompt_seconds", o->prompt_seconds,
                  "prompt_tokens_per_second", rate(o->prompt_tokens, o->prompt_seconds), "first_token_seconds",
                  o->first_seconds, "generation_seconds", answer->seconds, "generation_tokens_per_second",
                  rate(answer->tokens - 1, answer->seconds));
    const linnet_plan plan = linnet_session_plan(engine->session);
    json_t *bytes =
        json_pack("{sI sI sI sI so}", "limit", (json_int_t)memory, "peak_allocated",
                  (json_int_t)linnet_memory_peak(engine->context), "peak_resident", (json_int_t)resident.peak,
                  "anonymous_resident", (json_int_t)resident.anonymous, "plan", cli_json_plan(&plan));
    return cli_json_print(json_pack("{so ss so so so ss si}", "text",
                                    cli_json_text(answer->text.data, answer->text.bytes), "stopped", answer->stopped,
                                    "tokens", tokens, "timings", timings, "memory", bytes, "cpu",
                                    linnet_cpu(engine->context), "threads", linnet_threads(engine->context)));
}

static int answer_question(cli_engine *engine, const cli_arguments *arguments, question *q, uint64_t memory,
                           outcome *o) {
    linnet_sampler *sampler = NULL;
    linnet_status status = cli_sampler_open(engine, arguments, &sampler);
    if (status != LINNET_OK) return cli_engine_fail(engine, status);
    const double began = cli_seconds();
    status = cli_read_prompt(engine, q->ids.id, q->ids.count);
    cli_progress_end();
    o->prompt_seconds = cli_seconds() - began;
    o->prompt_tokens = linnet_session_position(engine->session);
    o->answer.stopped = "interrupted";
    int result = CLI_OK;
    if (status == LINNET_OK)
        result = cli_generate(engine, sampler, arguments->tokens, &arguments->stops, arguments->json ? NULL : stdout,
                              &o->answer);
    else if (status != LINNET_INTERRUPTED)
        result = cli_engine_fail(engine, status);
    linnet_sampler_close(sampler);
    if (o->answer.tokens) o->first_seconds = o->answer.first - began + engine->open_seconds;
    const bool open_line = o->answer.text.bytes && o->answer.text.data[o->answer.text.bytes - 1] != '\n';
    if (!arguments->json && open_line) putchar('\n');
    fflush(stdout);
    if (result != CLI_OK) return result;
    if (arguments->json) result = print_json(engine, o, memory);
    print_summary(engine, o, memory);
    cli_note_states(engine, arguments->state_reference);
    return result == CLI_OK && cli_interrupted() ? CLI_INTERRUPTED : result;
}

static int run_question(cli_engine *engine, cli_arguments *arguments, question *q, outcome *o) {
    int status = question_tokens(engine, arguments, q);
    int64_t context = 0;
    if (status == CLI_OK) status = choose_context(engine, arguments, q, &context);
    if (status == CLI_OK && q->demonstration && !arguments->memory && !cli_on_device(arguments))
        status = half_of_float32(engine, context, &arguments->memory);
    if (q->demonstration && arguments->temperature < 0) arguments->temperature = 0;
    if (status != CLI_OK) return status;
    uint64_t kept = (uint64_t)q->ids.count * sizeof *q->ids.id;
    status = cli_helper_open(engine, arguments, context, &kept);
    if (status != CLI_OK) return status;
    const linnet_session_settings settings = cli_session_settings(arguments, context, kept);
    status = cli_session_open(engine, &settings, kept);
    if (status != CLI_OK) return status;
    const linnet_plan plan = linnet_session_plan(engine->session);
    if (!arguments->quiet) cli_print_plan(engine, &plan, arguments->memory, stderr);
    return answer_question(engine, arguments, q, arguments->memory, o);
}

static int run(const cli_arguments *given) {
    cli_arguments arguments = *given;
    cli_engine engine = {0};
    question q = {0};
    outcome o = {0};
    int status = read_question(&arguments, &q);
    if (status == CLI_OK) status = cli_engine_open(&arguments, true, &engine);
    if (status == CLI_OK) status = run_question(&engine, &arguments, &q, &o);
    cli_buffer_free(&q.document);
    cli_buffer_free(&q.prompt);
    cli_buffer_free(&o.answer.text);
    free(q.ids.id);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_run = {
    .name = "run",
    .operands = "",
    .summary = "answer a prompt, from a document if one is given",
    .details = "Standard output carries the generated text alone. Without -m the built-in model is used; without -p "
               "and -f as well, it answers from a built-in document of more than 16,000 tokens within half the memory "
               "that float32 keys and values would take. A model with a chat template is asked through it: the prompt "
               "is the message of the user and the document stands before it. After ctrl-C what was generated stays, "
               "the summary is printed, and the exit status is 130.",
    .groups = groups,
    .run = run};
