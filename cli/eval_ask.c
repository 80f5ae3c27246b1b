/* Owns: how the model is asked: the session of a cell, documents read once, a fork for each question.
 *
 * Invariant: what a session has seen when it compresses is the document alone, unless --aware puts the question into
 * the same feeding. A fork is closed after its question, so that every question continues from the document's end; a
 * cache that evicts could not go back there. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "eval.h"

/* ---- tokens ---- */

typedef struct item_tokens {
    cli_ids document, question[EVAL_QUESTIONS];
} item_tokens;

static void free_tokens(item_tokens *tokens) {
    free(tokens->document.id);
    for (int i = 0; i < EVAL_QUESTIONS; i++) free(tokens->question[i].id);
}

static int join(cli_ids *ids, const cli_ids *more) {
    int32_t *grown = realloc(ids->id, (size_t)(ids->count + more->count + 1) * sizeof *grown);
    if (!grown) return cli_error("not enough memory for the tokens");
    ids->id = grown;
    if (more->count) memcpy(grown + ids->count, more->id, (size_t)more->count * sizeof *grown);
    ids->count += more->count;
    return CLI_OK;
}

static int join_text(const cli_engine *engine, cli_ids *ids, const char *text, size_t bytes) {
    return bytes ? cli_tokenize_text(engine->context, engine->tokenizer, text, bytes, 0, ids) : CLI_OK;
}

/* The chat stands around document and question; after the document alone where the model was trained so; and nowhere
 * for a model without a template: then the answer's beginning follows the question. */
static int question_tokens(const eval_run *run, const eval_question *question, bool chat, const cli_ids *after,
                           cli_ids *ids) {
    const cli_engine *engine = run->engine;
    const char *text = question->text.data ? question->text.data : "";
    int status;
    if (chat && engine->manners.document_first) {
        status = cli_question_tokens(engine, NULL, text + strspn(text, "\n"), false, ids);
    } else {
        status = join_text(engine, ids, text, strlen(text));
        if (status == CLI_OK) status = join(ids, after);
    }
    if (status == CLI_OK && !chat)
        status = join_text(engine, ids, question->begin.bytes ? " " : "\nAnswer:", question->begin.bytes ? 1 : 8);
    if (status == CLI_OK) status = join_text(engine, ids, question->begin.data, question->begin.bytes);
    return status;
}

static int text_tokens(const eval_run *run, const eval_item *item, item_tokens *tokens) {
    const cli_engine *engine = run->engine;
    const bool chat = !run->arguments->raw && cli_has_template(engine);
    int32_t id = run->source->begin;
    const cli_ids begin = {&id, id >= 0};
    cli_ids before = {0}, after = {0};
    int status = CLI_OK;
    if (chat && !engine->manners.document_first)
        status = cli_message_parts(engine, &before, &after);
    else if (item->text.bytes)
        status = join(&before, &begin);
    if (status == CLI_OK) status = join(&tokens->document, &before);
    if (status == CLI_OK) status = join_text(engine, &tokens->document, item->text.data, item->text.bytes);
    if (status == CLI_OK) status = join(&tokens->document, &item->ids);
    for (int i = 0; status == CLI_OK && i < item->questions; i++)
        status = question_tokens(run, &item->question[i], chat, &after, &tokens->question[i]);
    free(before.id);
    free(after.id);
    return status;
}

static int symbol_tokens(const eval_run *run, const eval_item *item, item_tokens *tokens) {
    int32_t id = run->source->begin;
    const cli_ids begin = {&id, id >= 0};
    int status = join(&tokens->document, &begin);
    if (status == CLI_OK) status = join(&tokens->document, &item->ids);
    for (int i = 0; status == CLI_OK && i < item->questions; i++)
        status = join(&tokens->question[i], &item->question[i].ids);
    return status;
}

static int make_tokens(const eval_run *run, const eval_task *task, int64_t length, int64_t number, eval_item *item,
                       item_tokens *tokens) {
    int status = eval_make(task, run->source, run->arguments->seed, length, number, item);
    if (status != CLI_OK) return status;
    return task->form == EVAL_SYMBOLS ? symbol_tokens(run, item, tokens) : text_tokens(run, item, tokens);
}

/* ---- sessions ---- */

/* From here on the highest resident bytes are those of this cell, without what earlier ones left behind. */
static void forget_peak(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    const int file = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (file < 0) return;
    if (write(file, "5", 1) < 0) cli_log(NULL, LINNET_LOG_INFO, "the peak of resident bytes is that of the whole run");
    close(file);
}

/* Names of number formats are policies too: the cache in that precision, whole. */
static void choose_memory(const eval_cell *cell, linnet_session_settings *settings) {
    const linnet_type type = linnet_type_of_name(cell->policy);
    if (type != LINNET_TYPE_AUTO) {
        settings->precision = type;
    } else {
        settings->policy = cell->policy;
        settings->cache = cell->cache;
    }
}

static int open_session(eval_run *run, eval_cell *cell) {
    cli_engine *engine = run->engine;
    uint64_t kept = 0;
    if (cli_helper_open(engine, run->arguments, cell->length, &kept) != CLI_OK) return CLI_FAILED;
    linnet_session_settings settings = cli_session_settings(run->arguments, cell->length, kept);
    settings.draft = engine->draft;
    choose_memory(cell, &settings);
    forget_peak();
    const linnet_status status = linnet_session_open(engine->model, &settings, &engine->session);
    if (status == LINNET_OK) {
        snprintf(cell->chosen, sizeof cell->chosen, "%s", linnet_session_plan(engine->session).policy);
        return CLI_OK;
    }
    engine->session = NULL;
    if (status == LINNET_INTERRUPTED) return cli_engine_fail(engine, status);
    snprintf(cell->refused, sizeof cell->refused, "%s", linnet_last_error(engine->context));
    return CLI_FAILED;
}

void eval_take_usage(const eval_run *run, eval_outcome *outcome) {
    const linnet_usage usage = linnet_session_usage(run->engine->session);
    if (usage.pages_peak > outcome->peak) outcome->peak = usage.pages_peak;
    if (usage.file > outcome->file) outcome->file = usage.file;
    const cli_resident resident = cli_resident_now();
    const uint64_t beyond = resident.peak > resident.file ? resident.peak - resident.file : resident.anonymous;
    if (beyond > outcome->resident) outcome->resident = beyond;
}

/* ---- asking ---- */

typedef struct forced {
    const cli_ids *expected;
    int64_t first, vocabulary, right; /* row `first` comes before the first expected token */
} forced;

static linnet_status take_forced(void *user, int64_t first, int64_t count, const float *logits) {
    forced *f = user;
    for (int64_t i = 0; i < count; i++) {
        const int64_t n = first + i - f->first;
        if (n < 0 || n >= f->expected->count) continue;
        const float *row = logits + i * f->vocabulary;
        int64_t best = 0;
        for (int64_t k = 1; k < f->vocabulary; k++)
            if (row[k] > row[best]) best = k;
        f->right += best == f->expected->id[n];
    }
    return LINNET_OK;
}

/* Feeds question and answer; each expected token is judged after the right ones before it. */
static int force(eval_run *run, linnet_session *session, const cli_ids *asked, const eval_question *question,
                 double *score) {
    cli_ids ids = {0}, answer = question->expected;
    forced f = {.expected = &question->expected, .first = asked->count - 1, .vocabulary = run->engine->info.vocabulary};
    answer.count--;
    int status = join(&ids, asked);
    if (status == CLI_OK) status = join(&ids, &answer);
    if (status == CLI_OK) {
        const linnet_status fed = linnet_session_feed_logits(session, ids.id, ids.count, take_forced, &f);
        if (fed != LINNET_OK) status = cli_engine_fail(run->engine, fed);
    }
    free(ids.id);
    *score = (double)f.right / (double)question->expected.count;
    return status;
}

static int generate(eval_run *run, linnet_sampler *sampler, const eval_task *task, const eval_question *question,
                    double *score, eval_outcome *outcome) {
    static const cli_texts no_stops;
    cli_answer answer = {0};
    int status = cli_generate(run->engine, sampler, task->answer, &no_stops, NULL, &answer);
    if (status == CLI_OK && cli_interrupted()) status = CLI_INTERRUPTED;
    const char *text = answer.text.data ? answer.text.data : "";
    *score = eval_score(task->rule, task->labels, question, text);
    if (answer.tokens > 1) {
        outcome->answer_tokens += answer.tokens - 1;
        outcome->answer_seconds += answer.seconds;
    }
    if (status == CLI_OK && *score < 1 && run->arguments->verbose)
        cli_note("missed: %s -> %s, not %s", question->text.data, text, question->answers.data);
    cli_buffer_free(&answer.text);
    return status;
}

/* Asks on `session`, which is the engine's for so long. */
static int ask_on(eval_run *run, linnet_session *session, const eval_task *task, const cli_ids *asked,
                  const eval_question *question, eval_outcome *outcome) {
    linnet_session *const document = run->engine->session;
    linnet_sampler *sampler = NULL;
    double score = 0;
    int status = CLI_OK;
    if (task->rule == EVAL_TOKENS) {
        status = force(run, session, asked, question, &score);
    } else {
        cli_arguments greedy = *run->arguments;
        greedy.temperature = 0;
        linnet_status fed = cli_sampler_open(run->engine, &greedy, &sampler);
        if (fed == LINNET_OK && asked->count) fed = linnet_session_feed(session, asked->id, asked->count);
        run->engine->session = session;
        status = fed == LINNET_OK ? generate(run, sampler, task, question, &score, outcome)
                                  : cli_engine_fail(run->engine, fed);
        run->engine->session = document;
        linnet_sampler_close(sampler);
    }
    outcome->questions++;
    outcome->score += score;
    if (question->ceiling >= 0) {
        outcome->baseline += question->baseline;
        outcome->ceiling += question->ceiling;
    }
    return status;
}

static int read_document(eval_run *run, const cli_ids *document, eval_outcome *outcome) {
    const double began = cli_seconds();
    linnet_status fed = linnet_session_rewind(run->engine->session, 0);
    if (fed == LINNET_OK) fed = cli_read_prompt(run->engine, document->id, document->count);
    if (fed != LINNET_OK) return cli_engine_fail(run->engine, fed);
    outcome->seconds += cli_seconds() - began;
    outcome->tokens += document->count;
    eval_take_usage(run, outcome);
    outcome->end = linnet_session_usage(run->engine->session).pages;
    return CLI_OK;
}

static int ask_fork(eval_run *run, const eval_task *task, const cli_ids *asked, const eval_question *question,
                    eval_outcome *outcome) {
    linnet_session *fork;
    const linnet_status forked = linnet_session_fork(run->engine->session, &fork);
    if (forked != LINNET_OK) return cli_engine_fail(run->engine, forked);
    const int status = ask_on(run, fork, task, asked, question, outcome);
    linnet_session_close(fork);
    return status;
}

/* Document and question in one feeding, for each question anew. */
static int ask_aware(eval_run *run, const eval_task *task, const cli_ids *document, const cli_ids *asked,
                     const eval_question *question, eval_outcome *outcome) {
    static const cli_ids nothing;
    cli_ids ids = {0};
    int status = join(&ids, document);
    const bool whole = task->rule != EVAL_TOKENS;
    if (status == CLI_OK && whole) status = join(&ids, asked);
    if (status == CLI_OK) status = read_document(run, &ids, outcome);
    if (status == CLI_OK) status = ask_on(run, run->engine->session, task, whole ? &nothing : asked, question, outcome);
    free(ids.id);
    return status;
}

enum { READING = 80, ASKING = 20 }; /* parts of a document's progress */

/* While the library reports, `reading` parts are its. */
static void tell_progress(const eval_run *run, const eval_cell *cell, int64_t reading, int64_t done) {
    char what[64];
    snprintf(what, sizeof what, "%.16s %lld %.20s %.6s", cell->name, (long long)cell->length, cell->policy,
             cell->budget);
    cli_progress_within(what, (READING + ASKING) * run->done + done, reading, (READING + ASKING) * run->total);
}

void eval_progress(const eval_run *run, const eval_cell *cell, int64_t done, int64_t total) {
    tell_progress(run, cell, 0, (READING + ASKING) * done / total);
}

static int ask_document(eval_run *run, eval_cell *cell, int64_t number, eval_outcome *outcome) {
    const eval_task *task = cell->task;
    eval_item item = {0};
    item_tokens tokens = {0};
    *outcome = (eval_outcome){.documents = 1};
    tell_progress(run, cell, READING, 0);
    int status = make_tokens(run, task, cell->length, number, &item, &tokens);
    if (status == CLI_OK && !run->arguments->aware) status = read_document(run, &tokens.document, outcome);
    for (int i = 0; status == CLI_OK && i < item.questions; i++) {
        tell_progress(run, cell, 0, READING + i * ASKING / item.questions);
        status = run->arguments->aware
                     ? ask_aware(run, task, &tokens.document, &tokens.question[i], &item.question[i], outcome)
                     : ask_fork(run, task, &tokens.question[i], &item.question[i], outcome);
    }
    free_tokens(&tokens);
    eval_item_free(&item);
    return status;
}

/* ---- cells ---- */

static bool is_enough(const eval_run *run, const eval_cell *cell) {
    const bool windows = cell->task->form == EVAL_MEASURE;
    const int64_t most = windows ? eval_windows(run, cell->length) : run->arguments->tokens;
    return cell->sum.documents >= most || (!windows && cell->sum.questions >= run->arguments->tokens);
}

static void close_session(eval_run *run) {
    linnet_session_close(run->engine->session);
    run->engine->session = NULL;
}

/* Each document has a session of its own: the highest bytes are those of reading it, before forks copy anything. */
int eval_run_cell(eval_run *run, eval_cell *cell) {
    linnet_session *full = NULL;
    const bool measure = cell->task->form == EVAL_MEASURE;
    int status = CLI_OK;
    for (int64_t number = 0; status == CLI_OK && !is_enough(run, cell); number++) {
        eval_outcome outcome;
        if (!eval_results_find(run->results, cell, number, &outcome)) {
            if (!run->engine->session) status = open_session(run, cell);
            if (status == CLI_OK && measure && !full) status = eval_open_full(run, cell, &full);
            if (status == CLI_OK)
                status = measure ? eval_measure_window(run, cell, full, number, &outcome)
                                 : ask_document(run, cell, number, &outcome);
            if (status == CLI_OK) status = eval_results_add(run->results, cell, number, &outcome);
            if (!measure) close_session(run);
        }
        if (status != CLI_OK) break;
        eval_add(&cell->sum, &outcome);
        run->done++;
    }
    linnet_session_close(full);
    close_session(run);
    return status;
}

/* ---- showing ---- */

static json_t *show_ids(const cli_ids *ids) {
    json_t *list = json_array();
    for (int64_t i = 0; i < ids->count; i++) json_array_append_new(list, json_integer(ids->id[i]));
    return list;
}

static json_t *show_text(const cli_buffer *text) {
    return cli_json_text(text->data, text->bytes);
}

static json_t *show_question(const eval_question *question, const cli_ids *tokens) {
    json_t *answers = json_array();
    for (size_t at = 0; at < question->answers.bytes; at += strlen(question->answers.data + at) + 1)
        json_array_append_new(answers, cli_json_text(question->answers.data + at, strlen(question->answers.data + at)));
    json_t *shown =
        json_pack("{so so so so so}", "text", show_text(&question->text), "begin", show_text(&question->begin),
                  "answers", answers, "ids", show_ids(tokens), "expected", show_ids(&question->expected));
    if (question->ceiling >= 0) {
        json_object_set_new(shown, "baseline", json_real(question->baseline));
        json_object_set_new(shown, "ceiling", json_real(question->ceiling));
    }
    return shown;
}

int eval_show(eval_run *run, const eval_task *task, int64_t length) {
    static const char *const rules[] = {"exact", "integer", "match_all", "label", "tokens"};
    int status = CLI_OK;
    int64_t asked = 0;
    for (int64_t number = 0; status == CLI_OK && asked < run->arguments->tokens && number < run->arguments->tokens;
         number++) {
        eval_item item = {0};
        item_tokens tokens = {0};
        status = make_tokens(run, task, length, number, &item, &tokens);
        json_t *questions = json_array();
        for (int i = 0; status == CLI_OK && i < item.questions; i++)
            json_array_append_new(questions, show_question(&item.question[i], &tokens.question[i]));
        asked += item.questions;
        if (status == CLI_OK)
            status = cli_json_line(
                json_pack("{ss sI sI ss sI so so so}", "task", task->name, "length", (json_int_t)length, "document",
                          (json_int_t)number, "rule", rules[task->rule], "answer_tokens", (json_int_t)task->answer,
                          "text", show_text(&item.text), "ids", show_ids(&tokens.document), "questions", questions));
        else
            json_decref(questions);
        free_tokens(&tokens);
        eval_item_free(&item);
    }
    return status;
}
