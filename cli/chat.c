/* Owns: the verb chat: several turns with one session.
 *
 * Each turn the whole conversation is put into the form of the model's template; cli_feed then processes only the
 * tokens that the session does not hold yet, so a turn costs what is new in it. */
#include <jansson.h>

#include <editline/readline.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const cli_option chat_options[] = {CLI_OPTION('f', "file", CLI_TEXT, file, "FILE", "document to talk about"),
                                          {0}};

static const cli_group groups[] = {{"chat", chat_options},           {"model", cli_model_options},
                                   {"answer", cli_sampling_options}, {"memory", cli_memory_options},
                                   {"other", cli_common_options},    {0}};

enum {
    CONTEXT = 8192, /* tokens of talk to make room for without -c */
    TURNS = 2       /* whose recurrent states are kept */
};

typedef struct chat {
    cli_engine engine;
    const cli_arguments *arguments;
    linnet_sampler *sampler;
    linnet_message *messages; /* role: a literal; content: owned */
    int64_t count, room;
    cli_buffer document;
    cli_ids document_ids; /* where the document stands before the chat */
} chat;

/* ---- the conversation ---- */

static bool add_message(chat *c, const char *role, const char *content, size_t bytes) {
    if (c->count == c->room) {
        const int64_t room = 2 * c->room + 8;
        linnet_message *grown = realloc(c->messages, (size_t)room * sizeof *grown);
        if (!grown) return false;
        c->messages = grown;
        c->room = room;
    }
    char *copy = malloc(bytes + 1);
    if (!copy) return false;
    if (bytes) memcpy(copy, content, bytes);
    copy[bytes] = 0;
    c->messages[c->count++] = (linnet_message){role, copy};
    return true;
}

static void drop_messages(chat *c, int64_t keep) {
    while (c->count > keep) free((char *)(uintptr_t)c->messages[--c->count].content);
}

static bool begin_conversation(chat *c) {
    drop_messages(c, 0);
    return !c->arguments->system || add_message(c, "system", c->arguments->system, strlen(c->arguments->system));
}

/* A question; the first one carries the document where the model wants it inside. */
static bool add_question(chat *c, const char *text) {
    const bool first = !c->count || strcmp(c->messages[c->count - 1].role, "assistant") != 0;
    if (!first || !c->document.bytes || c->document_ids.count) return add_message(c, "user", text, strlen(text));
    cli_buffer content = {0};
    const bool done = cli_append(&content, c->document.data, c->document.bytes) && cli_append(&content, "\n\n", 2) &&
                      cli_append(&content, text, strlen(text)) &&
                      add_message(c, "user", content.data, strlen(content.data));
    cli_buffer_free(&content);
    return done;
}

static int conversation_tokens(chat *c, cli_ids *ids) {
    if (c->document_ids.count) {
        ids->id = malloc((size_t)c->document_ids.count * sizeof *ids->id);
        if (!ids->id) return cli_error("not enough memory for the prompt");
        memcpy(ids->id, c->document_ids.id, (size_t)c->document_ids.count * sizeof *ids->id);
        ids->count = c->document_ids.count;
    }
    return cli_chat_tokens(&c->engine, c->messages, c->count, !c->document_ids.count, ids);
}

static int answer_question(chat *c, const char *text) {
    cli_ids ids = {0};
    const int64_t before = c->count;
    if (!add_question(c, text)) return cli_error("not enough memory for the conversation");
    int status = conversation_tokens(c, &ids);
    cli_answer answer = {0};
    if (status == CLI_OK) {
        const linnet_status fed = cli_feed(&c->engine, ids.id, ids.count);
        cli_progress_end();
        if (fed == LINNET_ERROR_FULL)
            status = cli_error("the conversation would take %lld tokens, more than the context of %lld; /clear begins "
                               "a new one, -c makes more room",
                               (long long)ids.count, (long long)linnet_session_plan(c->engine.session).context);
        else if (fed != LINNET_OK)
            status = cli_engine_fail(&c->engine, fed);
    }
    free(ids.id);
    if (status == CLI_OK)
        status = cli_generate(&c->engine, c->sampler, c->arguments->tokens, &c->arguments->stops, stdout, &answer);
    if (answer.tokens) printf("\n");
    fflush(stdout);
    if (status == CLI_OK) {
        if (!add_message(c, "assistant", answer.text.data, answer.text.bytes)) drop_messages(c, before);
        if (!strcmp(answer.stopped, "context")) cli_note("note: the context is full; /clear begins a new conversation");
    } else {
        drop_messages(c, before);
    }
    cli_buffer_free(&answer.text);
    return status;
}

/* ---- commands ---- */

typedef enum going { GO_ON, LEAVE } going;

/* The session goes to FILE, the messages to FILE.json. */
static char *messages_path(const char *path) {
    char *text = NULL;
    return asprintf(&text, "%s.json", path) < 0 ? NULL : text;
}

static going save(chat *c, const char *path) {
    char *beside = messages_path(path);
    json_t *list = json_array();
    for (int64_t i = 0; i < c->count; i++)
        json_array_append_new(list, json_pack("{ss so}", "role", c->messages[i].role, "content",
                                              cli_json_text(c->messages[i].content, strlen(c->messages[i].content))));
    const linnet_status status = linnet_session_save(c->engine.session, path);
    if (status != LINNET_OK)
        cli_engine_fail(&c->engine, status);
    else if (!beside || json_dump_file(list, beside, JSON_INDENT(1)))
        cli_error("%s.json could not be written", path);
    else
        cli_note("saved %lld tokens to %s, the messages to %s", (long long)linnet_session_position(c->engine.session),
                 path, beside);
    json_decref(list);
    free(beside);
    return GO_ON;
}

static const char *known_role(const char *role) {
    static const char *const roles[] = {"system", "user", "assistant"};
    for (int i = 0; role && i < 3; i++)
        if (!strcmp(role, roles[i])) return roles[i];
    return NULL;
}

static bool take_messages(chat *c, const json_t *list) {
    size_t index;
    const json_t *entry;
    drop_messages(c, 0);
    json_array_foreach(list, index, entry) {
        const char *role = known_role(json_string_value(json_object_get(entry, "role")));
        const char *content = json_string_value(json_object_get(entry, "content"));
        if (!role || !content || !add_message(c, role, content, strlen(content))) return false;
    }
    return json_is_array(list);
}

static going load(chat *c, const char *path) {
    char *beside = messages_path(path);
    json_t *list = beside ? json_load_file(beside, 0, NULL) : NULL;
    const linnet_status status = list ? linnet_session_load(c->engine.session, path) : LINNET_OK;
    if (!list)
        cli_error("%s.json, the messages of the conversation, cannot be read", path);
    else if (status != LINNET_OK)
        cli_engine_fail(&c->engine, status);
    else if (!take_messages(c, list)) {
        begin_conversation(c);
        cli_error("%s.json does not hold messages; the conversation begins anew", path);
    } else
        cli_note("loaded %lld tokens and %lld messages", (long long)linnet_session_position(c->engine.session),
                 (long long)c->count);
    json_decref(list);
    free(beside);
    return GO_ON;
}

static going memory(chat *c, const char *path) {
    (void)path;
    const linnet_plan plan = linnet_session_plan(c->engine.session);
    cli_print_plan(&c->engine, &plan, c->arguments->memory, stderr);
    cli_note("  holding   %lld of %lld tokens; %s allocated at most",
             (long long)linnet_session_position(c->engine.session), (long long)plan.context,
             cli_size(linnet_memory_peak(c->engine.context)));
    return GO_ON;
}

static going clear(chat *c, const char *path) {
    (void)path;
    begin_conversation(c);
    return GO_ON;
}

static going quit(chat *c, const char *path) {
    (void)c;
    (void)path;
    return LEAVE;
}

static going help(chat *c, const char *path);

static const struct {
    const char *name, *argument, *help;
    going (*run)(chat *c, const char *path);
} commands[] = {{"/help", NULL, "list the commands", help},
                {"/save", "FILE", "save the conversation with its memory (FILE and FILE.json)", save},
                {"/load", "FILE", "go on with a saved conversation", load},
                {"/memory", NULL, "tell what the memory holds", memory},
                {"/clear", NULL, "begin a new conversation", clear},
                {"/quit", NULL, "leave (as ctrl-D does)", quit}};
enum { COMMANDS = sizeof commands / sizeof *commands };

static going help(chat *c, const char *path) {
    (void)c;
    (void)path;
    for (int i = 0; i < COMMANDS; i++)
        cli_note("%-8s %-5s %s", commands[i].name, commands[i].argument ? commands[i].argument : "", commands[i].help);
    cli_note("ctrl-C ends an answer or drops a line, ctrl-D leaves");
    return GO_ON;
}

static going run_command(chat *c, char *line) {
    char *argument = line + strcspn(line, " \t");
    if (*argument) *argument++ = 0;
    argument += strspn(argument, " \t");
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i].name, line) != 0) continue;
        if (!commands[i].argument == !*argument) return commands[i].run(c, argument);
        cli_error("%s %s", line, commands[i].argument ? "needs the name of a file" : "takes nothing after it");
        return GO_ON;
    }
    cli_error("there is no command %s; /help lists them", line);
    return GO_ON;
}

/* ---- the verb ---- */

/* A line to be freed; NULL at the end. Lines are edited on a terminal only. */
static char *next_line(const cli_engine *engine) {
    while (isatty(STDIN_FILENO)) {
        cli_interrupt_clear(engine); /* the one that ended an answer */
        char *line = readline("> ");
        if (!line && cli_interrupted()) { /* ctrl-C drops what was typed */
            fputc('\n', stderr);
            continue;
        }
        if (line && *line) add_history(line);
        return line;
    }
    char *line = NULL;
    size_t room = 0;
    const ssize_t bytes = getline(&line, &room, stdin);
    if (bytes < 0) {
        free(line);
        return NULL;
    }
    if (bytes && line[bytes - 1] == '\n') line[bytes - 1] = 0;
    return line;
}

static int talk(chat *c) {
    going next = GO_ON;
    int status = CLI_OK;
    char *line;
    while (next == GO_ON && (line = next_line(&c->engine))) {
        cli_interrupt_clear(&c->engine);
        if (*line == '/')
            next = run_command(c, line);
        else if (*line)
            status = answer_question(c, line);
        free(line);
    }
    /* What went wrong was told at once; only without anyone there does the exit status have to tell it. */
    return isatty(STDIN_FILENO) || status == CLI_INTERRUPTED ? CLI_OK : status;
}

static int open_chat(chat *c) {
    const cli_arguments *arguments = c->arguments;
    int status = arguments->file ? cli_read(arguments->file, &c->document) : CLI_OK;
    if (status == CLI_OK) status = cli_engine_open(arguments, true, &c->engine);
    if (status == CLI_OK && !cli_has_template(&c->engine))
        status = cli_error("the model has no chat template that is understood; 'linnet run' continues text with it");
    int64_t context = arguments->context ? arguments->context : CONTEXT;
    if (status == CLI_OK && c->document.bytes) {
        cli_ids ids = {0};
        status = cli_tokenize_text(c->engine.context, c->engine.tokenizer, c->document.data, c->document.bytes,
                                   LINNET_TOKENIZE_BEGIN, &ids);
        if (!arguments->context) context += ids.count;
        if (c->engine.manners.document_first)
            c->document_ids = ids;
        else
            free(ids.id);
    }
    if (status != CLI_OK) return status;
    const int64_t trained = c->engine.info.context_length;
    if (!arguments->context && trained && context > trained) context = trained;
    linnet_session_settings settings = cli_session_settings(arguments, context, 0);
    /* A template may write earlier turns anew: then what follows the last one that stayed is read again. */
    if (!settings.snapshots) settings.snapshots = TURNS;
    status = cli_session_open(&c->engine, &settings, 0);
    if (status != CLI_OK) return status;
    const linnet_status opened = cli_sampler_open(&c->engine, arguments, &c->sampler);
    if (opened != LINNET_OK) return cli_engine_fail(&c->engine, opened);
    return begin_conversation(c) ? CLI_OK : cli_error("not enough memory for the conversation");
}

static int run(const cli_arguments *arguments) {
    chat c = {.arguments = arguments};
    int status = open_chat(&c);
    if (status == CLI_OK) {
        const linnet_plan plan = linnet_session_plan(c.engine.session);
        cli_note("%s, %lld tokens of context in %s; /help lists the commands",
                 *c.engine.info.name ? c.engine.info.name : c.engine.info.architecture, (long long)plan.context,
                 cli_size(plan.total));
        status = talk(&c);
    }
    drop_messages(&c, 0);
    free(c.messages);
    free(c.document_ids.id);
    cli_buffer_free(&c.document);
    linnet_sampler_close(c.sampler);
    cli_engine_close(&c.engine);
    return status;
}

const cli_verb cli_chat = {
    .name = "chat",
    .operands = "",
    .summary = "talk with a model",
    .details =
        "Lines that begin with / are commands; /help lists them. ctrl-C ends an answer, not the program. Without "
        "a terminal each line of standard input is a question, and the answers go to standard output.",
    .groups = groups,
    .run = run};
