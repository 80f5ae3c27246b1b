/* What the verbs of the program share. Each verb is one file with one `cli_verb` row; its options are rows of tables,
 * and from these alone come parsing, --help, the shell completions and the manual page. The program reaches the library
 * through its public headers only.
 *
 * Standard output carries results, standard error everything else. Functions that return int return an exit status. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stddef.h>
#include <stdio.h>

#include "linnet/linnet.h"

/* Exit statuses. CLI_INTERRUPTED is what shells give for a program that ctrl-C ended: what was made so far is kept. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

/* ---- options.c: arguments and the tables that describe them ---- */

enum { CLI_MOST = 16 };

typedef struct cli_texts {
    const char *text[CLI_MOST];
    int count;
} cli_texts;

typedef struct cli_integers {
    int64_t value[CLI_MOST];
    int count;
} cli_integers;

/* Values of the options of all verbs; an option row says which member it fills. */
typedef struct cli_arguments {
    const char *model, *file, *prompt, *system, *output, *ids, *format, *works, *policy, *draft, *predict, *folder,
        *budgets, *results, *device;
    const char *operands[4];
    int operand_count;
    cli_texts stops, keys, policies;
    int64_t tokens, context, threads, piece, snapshots, state_reference, repetitions, windows, heads, key_heads,
        sequences;
    double seconds, state_growth, state_limit;
    double temperature, top_k, top_p, min_p, repeat_penalty, repeat_last; /* below 0: not given */
    uint64_t memory, cache, activations, seed;
    linnet_type precision, type;
    cli_integers prompts, generations, depths, lengths, sizes;
    bool exact, json, raw, mean, quiet, verbose, decode, special, man, help, aware, csv, show, all, list;
} cli_arguments;

typedef enum cli_kind {
    CLI_FLAG,
    CLI_TEXT,
    CLI_TEXTS, /* may be given several times */
    CLI_INTEGER,
    CLI_INTEGERS, /* 512,1024 */
    CLI_NUMBER,
    CLI_SIZE, /* 64M, 1.5G, plain bytes */
    CLI_SEED,
    CLI_TYPE /* a number format */
} cli_kind;

typedef struct cli_option {
    char letter;      /* 0: none */
    const char *name; /* without dashes; NULL ends a table */
    cli_kind kind;
    size_t member;        /* offsetof(cli_arguments, ...) */
    const char *argument; /* how --help names the value; FILE and MODEL complete to files */
    const char *help;
    const char *fallback; /* the default as it would be typed; NULL: zero */
    double lowest, highest;
    const char *choices; /* words the shell may complete, divided by blanks */
} cli_option;

/* A row; after the help the members that have a value, designated. */
#define CLI_OPTION(letter_, name_, kind_, member_, argument_, help_, ...)                            \
    {                                                                                                \
        .letter = letter_, .name = name_, .kind = kind_, .member = offsetof(cli_arguments, member_), \
        .argument = argument_, .help = help_, __VA_ARGS__                                            \
    }

typedef struct cli_group {
    const char *title;
    const cli_option *options;
} cli_group;

typedef struct cli_verb {
    const char *name, *operands, *summary, *details;
    const cli_group *groups; /* ends with title NULL */
    int (*run)(const cli_arguments *arguments);
    int fewest_operands, most_operands;
    bool hidden; /* not listed in the overview */
} cli_verb;

extern const cli_verb *const cli_verbs[]; /* NULL ends it */
extern const cli_verb cli_run, cli_chat, cli_plan, cli_calibrate, cli_inspect, cli_convert, cli_tokenize, cli_logits,
    cli_perplexity, cli_bench, cli_eval, cli_help, cli_version, cli_completion;
/* Options that several verbs have. */
extern const cli_option cli_model_options[], cli_memory_options[], cli_sampling_options[], cli_attention_options[],
    cli_mixer_options[], cli_common_options[];

const cli_verb *cli_find_verb(const char *name);
/* The options of a verb, one by one, across its groups; NULL past the end. */
const cli_option *cli_option_at(const cli_verb *verb, int index);
/* Fills arguments from the words after the verb; CLI_USAGE with a sentence printed where they are wrong. */
int cli_parse(const cli_verb *verb, int count, char **words, cli_arguments *arguments);
void cli_print_help(const cli_verb *verb, FILE *out);
/* Prints "linnet VERB: sentence" and where to read on; returns CLI_USAGE. */
int cli_usage(const cli_verb *verb, const char *format, ...) LINNET_PRINTF(2, 3);

/* ---- console.c: standard error ---- */

void cli_console_open(bool quiet, bool verbose);
/* A line for people; nothing under --quiet. */
void cli_note(const char *format, ...) LINNET_PRINTF(1, 2);
/* "linnet: sentence", also under --quiet; returns CLI_FAILED. */
int cli_error(const char *format, ...) LINNET_PRINTF(1, 2);
/* A linnet_context_settings.progress: a bar on a terminal, a line now and then elsewhere. */
void cli_progress(void *user, const char *what, int64_t done, int64_t total);
void cli_progress_end(void);
/* Until the next call, progress is told of a whole of `total`, of which `behind` is done and what the library reports
 * is `part`; total 0: of the library's work itself again. */
void cli_progress_within(const char *what, int64_t behind, int64_t part, int64_t total);
void cli_log(void *user, linnet_log_level level, const char *text);
/* "64.0 MiB". Lives until the eighth call after it. */
const char *cli_size(uint64_t bytes);
double cli_seconds(void);
/* Resident bytes of this process, in all and at their highest, those that belong to no file, and those of mapped files;
 * 0 where unknown. */
typedef struct cli_resident {
    uint64_t peak, anonymous, file;
} cli_resident;
cli_resident cli_resident_now(void);

/* ---- input.c: text, ids and the built-in files ---- */

typedef struct cli_buffer {
    char *data; /* always terminated once something was appended */
    size_t bytes, room;
} cli_buffer;

bool cli_append(cli_buffer *buffer, const char *data, size_t bytes);
void cli_buffer_free(cli_buffer *buffer);
/* The whole of a file, or of standard input for "-". */
int cli_read(const char *path, cli_buffer *text);
/* A file of share/linnet: beside the installed program or above it in a source tree. False where there is none. */
bool cli_shared_file(const char *name, char *path, size_t room);
/* arguments->model, or the built-in model; NULL, with the error printed, where there is none. */
const char *cli_model_path(const cli_arguments *arguments);

typedef struct cli_ids {
    int32_t *id;
    int64_t count;
} cli_ids;

/* Appends the tokens of a text. */
int cli_tokenize_text(linnet_context *context, const linnet_tokenizer *tokenizer, const char *text, size_t bytes,
                      int flags, cli_ids *ids);
/* Appends ids written as numbers divided by blanks, commas or brackets. */
int cli_parse_ids(const char *text, size_t bytes, cli_ids *ids);

/* ---- engine.c: context, model, session ---- */

/* What a file says about how its model wants to be asked. */
typedef struct cli_manners {
    bool document_first; /* linnet.prompt_form = "document-then-chat": the document stands before the chat */
    double seconds;
    double temperature, top_k, top_p; /* general.sampling.*; below 0: not said */
} cli_manners;

typedef struct cli_engine {
    linnet_context *context;
    linnet_model *model, *draft, *predict;
    const linnet_tokenizer *tokenizer;
    linnet_model_info info;
    cli_manners manners;
    linnet_session *session, *helper; /* helper: reads prompts for the session (KV Prediction); NULL: it reads itself */
    double open_seconds;
} cli_engine;

/* Opens context, model and tokenizer (an error without one if `text`). ctrl-C interrupts this engine from now on. */
int cli_engine_open(const cli_arguments *arguments, bool text, cli_engine *engine);
/* Whether --device names another than the processor. */
bool cli_on_device(const cli_arguments *arguments);
int cli_context_open(const cli_arguments *arguments, linnet_context **context);
void cli_engine_close(cli_engine *engine);
/* Prints the context's error; returns CLI_FAILED, or CLI_INTERRUPTED. */
int cli_engine_fail(const cli_engine *engine, linnet_status status);
/* Settings for `context` tokens from the options; `kept` bytes that the program itself holds come out of --memory. */
linnet_session_settings cli_session_settings(const cli_arguments *arguments, int64_t context, uint64_t kept);
/* Tells where matrix states grew far beyond what they were after `reference` tokens; 0: nothing. */
void cli_note_states(const cli_engine *engine, int64_t reference);
int cli_plan_session(const cli_engine *engine, const linnet_session_settings *settings, uint64_t kept,
                     linnet_plan *plan);
void cli_print_plan(const cli_engine *engine, const linnet_plan *plan, uint64_t memory, FILE *out);
/* Plans, prints the plan to standard error, opens the session. */
int cli_session_open(cli_engine *engine, const linnet_session_settings *settings, uint64_t kept);
/* The session of --predict, before that of the model is planned: what it takes is counted there as taken. Bytes that
 * predicting takes while it runs are added to *kept. */
int cli_helper_open(cli_engine *engine, const cli_arguments *arguments, int64_t context, uint64_t *kept);
/* The first tokens of the session, by the helper where there is one: all but the last, which the model itself reads. */
linnet_status cli_read_prompt(cli_engine *engine, const int32_t *ids, int64_t count);
linnet_status cli_sampler_open(const cli_engine *engine, const cli_arguments *arguments, linnet_sampler **sampler);
/* Whether ctrl-C was pressed since the last call of cli_interrupt_clear. */
bool cli_interrupted(void);
void cli_interrupt_clear(const cli_engine *engine);

/* ---- prompt.c: chat in the form of the model's template ---- */

bool cli_has_template(const cli_engine *engine);
/* Appends the tokens of the messages, to be answered next. first: the chat begins the text of the session. */
int cli_chat_tokens(const cli_engine *engine, const linnet_message *messages, int64_t count, bool first, cli_ids *ids);
/* The same for one message of the user, after a system message where `system` is not NULL. */
int cli_question_tokens(const cli_engine *engine, const char *system, const char *content, bool first, cli_ids *ids);

/* What the template puts before and after the message of the user that begins a text. */
int cli_message_parts(const cli_engine *engine, cli_ids *before, cli_ids *after);

/* ---- generate.c: the loop that samples, decodes and stops ---- */

typedef struct cli_answer {
    cli_buffer text;
    int64_t tokens;
    double seconds;      /* of all tokens but the first */
    double first;        /* cli_seconds() when the first token was known */
    const char *stopped; /* "end", "stop", "length", "context", "interrupted" */
} cli_answer;

/* Continues the session, which must have logits, by at most `limit` tokens (below 0: to the end of its context) and
 * writes the text as it comes to `out`, where it is not NULL. A stop text is not part of the answer. */
int cli_generate(cli_engine *engine, linnet_sampler *sampler, int64_t limit, const cli_texts *stops, FILE *out,
                 cli_answer *answer);
/* Makes the session hold exactly these tokens, feeding only what differs from those it has. */
linnet_status cli_feed(cli_engine *engine, const int32_t *ids, int64_t count);

/* ---- json.c ---- */

struct json_t;
/* Text as a JSON string; bytes that are no UTF-8 become U+FFFD. */
struct json_t *cli_json_text(const char *text, size_t bytes);
struct json_t *cli_json_plan(const linnet_plan *plan);
/* Prints the object on standard output and frees it. */
int cli_json_print(struct json_t *object);
/* The same on one line. */
int cli_json_line(struct json_t *object);

/* ---- bench_attention.c: linnet bench attention ---- */

int cli_bench_attention(const cli_arguments *arguments);

/* ---- bench_mixers.c: linnet bench mixers ---- */

int cli_bench_mixers(const cli_arguments *arguments);
/* The same on a GPU. */
int cli_bench_device(const cli_arguments *arguments, bool attention, bool mixers);

#endif
