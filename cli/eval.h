/* What the files of the verb eval share.
 *
 * A task is a row of the table in eval_task.c. Its generator drafts an item, which is a document with questions, from a
 * seed alone; eval_ask.c reads the document to the model once and asks each question on a fork of the session, so that
 * no question can be seen while the document is compressed; eval_score.c judges; eval_results.c keeps what came of each
 * document; eval_report.c and eval_svg.c tell it. */
#ifndef CLI_EVAL_H
#define CLI_EVAL_H

#include <jansson.h>

#include "cli.h"

/* ---- items ---- */

enum { EVAL_QUESTIONS = 10 };

typedef enum eval_rule {
    EVAL_EXACT,     /* the whole answer is the expected text */
    EVAL_INTEGER,   /* the first integer of the answer is the expected one */
    EVAL_MATCH_ALL, /* the share of the expected texts that occur in the answer, letters in either case */
    EVAL_LABEL,     /* the first sentence names the expected labels and, but for those in the question, no other */
    EVAL_TOKENS     /* the share of the expected tokens that are the most likely ones, each after those before it */
} eval_rule;

typedef struct eval_question {
    cli_buffer text;          /* what is asked after the document */
    cli_buffer begin;         /* how the answer begins: given to the model */
    cli_buffer answers;       /* the expected texts, each ended by a zero byte */
    cli_ids ids, expected;    /* of tasks in symbols: what is asked, and what follows it */
    double baseline, ceiling; /* scores of a simple guess, and of who knows the law; below 0: there is none */
} eval_question;

typedef struct eval_item {
    cli_buffer text;
    cli_ids ids;
    eval_question question[EVAL_QUESTIONS];
    int questions;
} eval_item;

void eval_item_free(eval_item *item);

/* ---- tasks ---- */

typedef enum eval_form {
    EVAL_TEXT,    /* text, fitted to the length by the number of its units */
    EVAL_IDS,     /* tokens of the model, made by the generator */
    EVAL_SYMBOLS, /* symbols 0, 1, ..., each of which is one token of the model */
    EVAL_MEASURE  /* no questions: two sessions over a text (eval_kld.c) */
} eval_form;

typedef struct eval_task eval_task;

/* What documents are made of: the tokenizer of the model, and prose. */
typedef struct eval_source {
    const cli_engine *engine;
    cli_buffer prose;
    cli_ids prose_ids;
    cli_ids text_ids; /* of the file as it is: for kld */
    int32_t begin;    /* the token that begins a text; below 0: there is none */
    size_t *word;     /* where the words of the prose begin, and one past the last */
    int64_t words;
    int32_t *symbol; /* tokens that stand for symbols; NULL: each for itself */
    int64_t symbols;
} eval_source;

typedef struct eval_draft {
    const eval_task *task;
    const eval_source *source;
    unsigned short state[3]; /* of the random numbers */
    int64_t size;            /* units of the document: what fitting varies; tokens where the form is not text */
    int64_t length;          /* tokens that document, question and answer may have */
    eval_item *item;
    bool failed; /* not enough memory */
} eval_draft;

struct eval_task {
    const char *name, *group; /* either is asked for on the command line */
    const char *summary;
    const char *origin; /* where it was published */
    eval_form form;
    eval_rule rule;
    int64_t answer; /* tokens of the longest answer */
    void (*make)(eval_draft *draft);
    int variant;               /* of a generator that several rows share */
    int64_t symbols;           /* that its items need */
    const char *const *labels; /* EVAL_LABEL: all that can be answered, ends with NULL */
};

/* The table; the row past the last has no name. */
extern const eval_task eval_tasks[];
/* Chooses rows by names of tasks or groups, divided by commas, or "all"; false, with the word that is none. */
bool eval_choose(const char *words, const eval_task **chosen, int *count, char *wrong, size_t room);
int eval_source_open(const cli_engine *engine, const char *file, bool text, eval_source *source);
void eval_source_close(eval_source *source);
/* Drafts document `number` of a task at a length: the same for the same seed, everywhere. */
int eval_make(const eval_task *task, const eval_source *source, uint64_t seed, int64_t length, int64_t number,
              eval_item *item);

/* For generators. */
int64_t eval_below(eval_draft *draft, int64_t n);
double eval_unit(eval_draft *draft);
void eval_shuffle(eval_draft *draft, int64_t *values, int64_t count);
/* `count` different values below n, ascending. */
void eval_pick(eval_draft *draft, int64_t n, int64_t *values, int64_t count);
void *eval_allocate(eval_draft *draft, int64_t count, size_t bytes);
void eval_put(eval_draft *draft, cli_buffer *text, const char *format, ...) LINNET_PRINTF(3, 4);
void eval_push(eval_draft *draft, cli_ids *ids, int64_t id);
eval_question *eval_ask(eval_draft *draft, const char *format, ...) LINNET_PRINTF(2, 3);
void eval_answer(eval_draft *draft, eval_question *question, const char *format, ...) LINNET_PRINTF(3, 4);
/* Writes draft->size units of a haystack and the needles between them, in their order: by unit(draft, i), where
 * needles may stand before i only if cut(draft, i). */
typedef struct eval_haystack {
    void (*unit)(eval_draft *draft, int64_t i);
    bool (*cut)(const eval_draft *draft, int64_t i);
    int64_t first;  /* for unit and cut */
    int64_t depths; /* needles lie at this many evenly spaced depths; 0: anywhere */
} eval_haystack;
void eval_hide(eval_draft *draft, const eval_haystack *hay, const cli_buffer *needles, int count);
/* The words of the prose as a haystack, from a random one on. */
eval_haystack eval_prose(eval_draft *draft);
extern const eval_haystack eval_noise;

/* Generators of eval_recall.c, eval_ruler.c, eval_shared.c, eval_facts.c, eval_symbols.c, eval_language.c. */
void eval_make_recall(eval_draft *draft);
void eval_make_passkey(eval_draft *draft);
void eval_make_niah(eval_draft *draft);
void eval_make_variables(eval_draft *draft);
void eval_make_common_words(eval_draft *draft);
void eval_make_frequent_words(eval_draft *draft);
void eval_make_pairs(eval_draft *draft);
void eval_make_prefix_suffix(eval_draft *draft);
void eval_make_numbers(eval_draft *draft);
void eval_make_hops(eval_draft *draft);
void eval_make_facts(eval_draft *draft);
void eval_make_associative(eval_draft *draft);
void eval_make_copy(eval_draft *draft);
void eval_make_induction(eval_draft *draft);
void eval_make_selective(eval_draft *draft);
void eval_make_permutations(eval_draft *draft);
void eval_make_modular(eval_draft *draft);
void eval_make_brackets(eval_draft *draft);
void eval_make_language(eval_draft *draft);
/* Lines that name a person of the recall form are taken out of the text. */
void eval_keep_prose(cli_buffer *text);

/* ---- eval_words.c ---- */

/* Words of the language; and one for every number: listed ones first, then made of syllables. */
enum { EVAL_ADJECTIVES = 96, EVAL_NOUNS = 192 };
extern const char *const eval_adjectives[EVAL_ADJECTIVES], *const eval_nouns[EVAL_NOUNS];
void eval_word(int64_t number, char word[16]);

/* ---- eval_score.c ---- */

double eval_score(eval_rule rule, const char *const *labels, const eval_question *question, const char *answer);
/* Wilson's interval of 95 % about right / asked. */
void eval_interval(double right, double asked, double *low, double *high);

/* ---- what was found ---- */

/* What came of one document, or, added up, of a cell. */
typedef struct eval_outcome {
    int64_t documents, questions;
    double score;                                /* sum over questions */
    double baseline, ceiling;                    /* likewise; 0: there is none */
    int64_t tokens, answer_tokens;               /* of documents; generated */
    double seconds, answer_seconds;              /* of reading; of generating */
    uint64_t peak, end, file;                    /* bytes of pages: at most, and after the document; in a file */
    uint64_t resident;                           /* of the process beyond mapped files, at most; 0: unknown */
    double divergence, squares, loss, full_loss; /* kld: sums over tokens, of nats */
} eval_outcome;

typedef struct eval_cell {
    const eval_task *task;
    char name[32]; /* of the task */
    int64_t length;
    char policy[192], budget[24]; /* as they were asked for */
    uint64_t cache;               /* bytes that keys and values may take; 0: no bound */
    uint64_t full;                /* bytes of the float16 cache at that length */
    char chosen[256];             /* the policy with all its parts, as the plan has it; "": none */
    eval_outcome sum;
    char refused[512]; /* why it could not be run */
} eval_cell;

/* ---- eval_results.c: one line a document, appended; a run that was ended goes on where it was ---- */

typedef struct eval_results {
    json_t *lines;    /* object: key -> record */
    char *base;       /* what determines all records of this run: model, program, processor, settings */
    const char *path; /* NULL: kept in memory alone */
    int file;
} eval_results;

int eval_results_open(const char *path, const char *base, eval_results *results);
void eval_results_close(eval_results *results);
/* True where the document was asked before: *outcome has what came of it. */
bool eval_results_find(const eval_results *results, eval_cell *cell, int64_t number, eval_outcome *outcome);
int eval_results_add(eval_results *results, const eval_cell *cell, int64_t number, const eval_outcome *outcome);
void eval_add(eval_outcome *sum, const eval_outcome *outcome);
/* Cells of all records of this base, and of other programs. */
int eval_results_cells(const eval_results *results, eval_cell **cells, int *count);

/* ---- eval_ask.c ---- */

typedef struct eval_run {
    cli_engine *engine;
    const cli_arguments *arguments;
    const eval_source *source;
    eval_results *results;
    int64_t done, total; /* documents of the whole run */
} eval_run;

/* Asks what the cell still lacks. CLI_FAILED with cell->refused where the library will not open its session. */
int eval_run_cell(eval_run *run, eval_cell *cell);
/* Prints the items of a task, with their tokens, as JSON lines. */
int eval_show(eval_run *run, const eval_task *task, int64_t length);
/* Bytes of pages and process go to the outcome. */
void eval_take_usage(const eval_run *run, eval_outcome *outcome);
/* `done` of `total` of the document at hand. */
void eval_progress(const eval_run *run, const eval_cell *cell, int64_t done, int64_t total);
/* eval_kld.c: one window of the text. */
int eval_measure_window(eval_run *run, eval_cell *cell, linnet_session *full, int64_t number, eval_outcome *outcome);
int eval_open_full(eval_run *run, const eval_cell *cell, linnet_session **full);
int64_t eval_windows(const eval_run *run, int64_t length);

/* ---- eval_report.c, eval_svg.c ---- */

/* Whether no other cell of its task and length is as good with fewer bytes at peak. */
bool eval_on_frontier(const eval_cell *cells, int count, int at);
/* Quality in 0 .. 1 and its interval. */
double eval_quality(const eval_cell *cell, double *low, double *high);
void eval_print_table(const eval_cell *cells, int count);
void eval_print_csv(const eval_cell *cells, int count);
json_t *eval_json(const eval_cell *cells, int count);
int eval_write_page(const char *folder, const char *command, const char *about, const eval_cell *cells, int count);
int eval_write_svg(const char *path, const eval_cell *cells, int count);

#endif
