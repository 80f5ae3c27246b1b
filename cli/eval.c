/* Owns: the verb eval: tests of what a model can do, made afresh from a seed.
 *
 * recall: documents of a given length in tokens, prose with facts at random places, then one question about each fact.
 * A question is asked of the document alone: the session is rewound to the document's end between questions. An
 * answer is right where the greedy text up to the end token is the planted value and nothing else. */
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const cli_option eval_options[] = {
    CLI_OPTION('n', "questions", CLI_INTEGER, tokens, "N", "questions of each length", .fallback = "100", .lowest = 1,
               .highest = 1e6),
    CLI_OPTION('l', "length", CLI_INTEGERS, lengths, "N,N", "tokens of a document", .fallback = "4096,8192",
               .lowest = 512, .highest = 1e9),
    CLI_OPTION('f', "file", CLI_TEXT, file, "FILE",
               "prose to plant the facts in (without it: that of the built-in document)"),
    CLI_OPTION(0, "seed", CLI_SEED, seed, "N", "of the random numbers", .fallback = "1"),
    CLI_OPTION(0, "json", CLI_FLAG, json, NULL, "print one JSON object"),
    {0}};

static const cli_group groups[] = {{"eval", eval_options},
                                   {"model", cli_model_options},
                                   {"memory", cli_memory_options},
                                   {"other", cli_common_options},
                                   {0}};

/* ---- facts ---- */

#define COUNT(list) ((long)(sizeof(list) / sizeof *(list)))

/* Those that the built-in model was trained with. */
static const char *const names[] = {"Ada",  "Alan", "Beth", "Bram", "Carl", "Cleo", "Dina", "Dora", "Emil", "Ezra",
                                    "Faye", "Fern", "Glen", "Gwen", "Hope", "Hugo", "Iris", "Ivan", "Jade", "Joel",
                                    "Kira", "Kurt", "Lena", "Liam", "Milo", "Mona", "Nico", "Nora", "Olga", "Omar",
                                    "Pete", "Pia",  "Quin", "Reed", "Rosa", "Sage", "Seth", "Tara", "Todd", "Uma",
                                    "Umar", "Vera", "Vito", "Wade", "Wren", "Xena", "Yara", "Yves", "Zara", "Zeke"};
static const char *const numbers[] = {"password", "locker", "ticket", "room", "phone",   "badge",   "parcel", "flight",
                                      "account",  "token",  "gate",   "seat", "booking", "invoice", "serial", "route"};
static const char *const things[] = {"car", "house", "coat", "boat", "kite", "door"};
static const char *const colours[] = {"red",  "blue", "green",  "black",  "white", "brown",
                                      "gray", "pink", "purple", "orange", "gold",  "silver"};
static const char *const persons[] = {"friend", "teacher", "doctor", "neighbor", "boss"};

enum { FACTS = 10, LINE_BYTES = 96, QUESTION_TOKENS = 32, ANSWER_TOKENS = 16 };

typedef struct fact {
    char line[LINE_BYTES], question[LINE_BYTES], answer[24];
} fact;

/* POSIX's nrand48: the same seed gives the same questions everywhere. */
static long below(unsigned short state[3], long n) {
    return nrand48(state) % n;
}

static void make_fact(unsigned short state[3], const char *name, fact *f) {
    const long kind = below(state, 3);
    if (kind == 0) {
        const char *number = numbers[below(state, COUNT(numbers))];
        const long digits = below(state, 3), least = digits == 0 ? 1000 : digits == 1 ? 10000 : 100000;
        snprintf(f->answer, sizeof f->answer, "%ld", least + below(state, 9 * least));
        snprintf(f->line, LINE_BYTES, "\nThe %s number of %s is %s.\n", number, name, f->answer);
        snprintf(f->question, LINE_BYTES, "What is the %s number of %s?", number, name);
    } else if (kind == 1) {
        const char *thing = things[below(state, COUNT(things))];
        snprintf(f->answer, sizeof f->answer, "%s", colours[below(state, COUNT(colours))]);
        snprintf(f->line, LINE_BYTES, "\n%s has a %s %s.\n", name, f->answer, thing);
        snprintf(f->question, LINE_BYTES, "What color is the %s of %s?", thing, name);
    } else {
        const char *person = persons[below(state, COUNT(persons))];
        const char *other = name;
        while (other == name) other = names[below(state, COUNT(names))];
        snprintf(f->answer, sizeof f->answer, "%s", other);
        snprintf(f->line, LINE_BYTES, "\nThe %s of %s is %s.\n", person, name, other);
        snprintf(f->question, LINE_BYTES, "Who is the %s of %s?", person, name);
    }
}

/* One fact for each of FACTS different persons. */
static void make_facts(unsigned short state[3], fact facts[FACTS]) {
    const char *left[COUNT(names)];
    memcpy(left, names, sizeof names);
    for (long i = 0; i < FACTS; i++) {
        const long chosen = i + below(state, COUNT(names) - i);
        const char *name = left[chosen];
        left[chosen] = left[i];
        left[i] = name;
        make_fact(state, name, &facts[i]);
    }
}

/* ---- documents ---- */

/* A line about one of the persons could contradict the facts. */
static bool names_a_person(const char *line, size_t bytes) {
    for (long i = 0; i < COUNT(names); i++)
        if (memmem(line, bytes, names[i], strlen(names[i]))) return true;
    return false;
}

/* Takes lines that name a person out of the text, where it stands. */
static void keep_prose(cli_buffer *text) {
    size_t kept = 0;
    for (size_t at = 0; at < text->bytes;) {
        const char *stop = memchr(text->data + at, '\n', text->bytes - at);
        const size_t bytes = stop ? (size_t)(stop + 1 - text->data) - at : text->bytes - at;
        if (!names_a_person(text->data + at, bytes)) {
            memmove(text->data + kept, text->data + at, bytes);
            kept += bytes;
        }
        at += bytes;
    }
    text->bytes = kept;
}

/* The tokens of the prose. */
static int read_prose(const cli_engine *engine, const char *file, cli_ids *prose) {
    char path[PATH_MAX];
    if (!file && !cli_shared_file("document.txt", path, sizeof path))
        return cli_error("share/linnet/document.txt is not installed beside this program; name a text with -f FILE");
    cli_buffer text = {0};
    int status = cli_read(file ? file : path, &text);
    if (status == CLI_OK) {
        keep_prose(&text);
        status = cli_tokenize_text(engine->context, engine->tokenizer, text.data, text.bytes, 0, prose);
    }
    cli_buffer_free(&text);
    if (status == CLI_OK && prose->count < 256)
        return cli_error("there is too little prose without the names used here");
    return status;
}

static int ascending(const void *a, const void *b) {
    const long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

/* `length` tokens less the room of a question: prose from a random token on, around to its front where it ends, cut
 * between random tokens by the facts, each on a line of its own. */
static int make_document(const cli_engine *engine, unsigned short state[3], const cli_ids *prose,
                         const fact facts[FACTS], int64_t length, cli_ids *document) {
    cli_ids lines[FACTS] = {{0}};
    int status = CLI_OK;
    int64_t left = length - QUESTION_TOKENS;
    for (int i = 0; status == CLI_OK && i < FACTS; i++) {
        status =
            cli_tokenize_text(engine->context, engine->tokenizer, facts[i].line, strlen(facts[i].line), 0, &lines[i]);
        left -= lines[i].count;
    }
    long places[FACTS];
    for (int i = 0; i < FACTS; i++) places[i] = below(state, (long)left);
    qsort(places, FACTS, sizeof *places, ascending);
    document->id = malloc((size_t)length * sizeof *document->id);
    if (status == CLI_OK && !document->id) status = cli_error("not enough memory for the document");
    const int64_t start = below(state, (long)prose->count);
    for (int64_t i = 0, next = 0; status == CLI_OK && i < left; i++) {
        for (; next < FACTS && places[next] == i; next++) {
            memcpy(document->id + document->count, lines[next].id, (size_t)lines[next].count * sizeof *document->id);
            document->count += lines[next].count;
        }
        document->id[document->count++] = prose->id[(start + i) % prose->count];
    }
    for (int i = 0; i < FACTS; i++) free(lines[i].id);
    return status;
}

/* ---- asking ---- */

typedef struct score {
    int64_t length, asked, right, tokens; /* tokens: of all documents */
    double seconds;
} score;

static int ask(cli_engine *engine, linnet_sampler *sampler, const fact *f, int64_t document, score *s) {
    static const cli_texts no_stops;
    cli_ids ids = {0};
    cli_answer answer = {0};
    int status = cli_question_tokens(engine, NULL, f->question, false, &ids);
    if (status == CLI_OK) {
        const linnet_status fed = linnet_session_feed(engine->session, ids.id, ids.count);
        status = fed == LINNET_OK ? cli_generate(engine, sampler, ANSWER_TOKENS, &no_stops, NULL, &answer)
                                  : cli_engine_fail(engine, fed);
    }
    if (status == CLI_OK && cli_interrupted()) status = CLI_INTERRUPTED;
    if (status == CLI_OK) {
        const bool right = answer.text.data && !strcmp(answer.text.data, f->answer);
        s->asked++;
        s->right += right;
        if (!right) cli_note("missed: %s %s -> %s", f->question, f->answer, answer.text.data ? answer.text.data : "");
        const linnet_status rewound = linnet_session_rewind(engine->session, document);
        if (rewound != LINNET_OK) status = cli_engine_fail(engine, rewound);
    }
    cli_buffer_free(&answer.text);
    free(ids.id);
    return status;
}

static int ask_document(cli_engine *engine, linnet_sampler *sampler, const cli_ids *prose, unsigned short state[3],
                        int64_t questions, score *s) {
    fact facts[FACTS];
    cli_ids ids = {0};
    make_facts(state, facts);
    int status = make_document(engine, state, prose, facts, s->length, &ids);
    if (status == CLI_OK) {
        linnet_status fed = linnet_session_rewind(engine->session, 0);
        if (fed == LINNET_OK) fed = linnet_session_feed(engine->session, ids.id, ids.count);
        if (fed != LINNET_OK) status = cli_engine_fail(engine, fed);
    }
    for (int64_t i = 0; status == CLI_OK && i < questions && i < FACTS; i++)
        status = ask(engine, sampler, &facts[i], ids.count, s);
    s->tokens += ids.count;
    free(ids.id);
    return status;
}

static int ask_length(cli_engine *engine, const cli_arguments *arguments, const cli_ids *prose, score *s) {
    const linnet_session_settings settings = cli_session_settings(arguments, s->length + ANSWER_TOKENS, 0);
    int status = cli_session_open(engine, &settings, 0);
    linnet_sampler *sampler = NULL;
    cli_arguments greedy = *arguments;
    greedy.temperature = 0;
    const linnet_status opened = status == CLI_OK ? cli_sampler_open(engine, &greedy, &sampler) : LINNET_OK;
    if (opened != LINNET_OK) status = cli_engine_fail(engine, opened);
    unsigned short state[3] = {(unsigned short)arguments->seed, (unsigned short)(arguments->seed >> 16),
                               (unsigned short)s->length};
    const double began = cli_seconds();
    while (status == CLI_OK && s->asked < arguments->tokens) {
        status = ask_document(engine, sampler, prose, state, arguments->tokens - s->asked, s);
        s->seconds = cli_seconds() - began;
        cli_note("length %lld: %lld of %lld right", (long long)s->length, (long long)s->right, (long long)s->asked);
    }
    linnet_sampler_close(sampler);
    linnet_session_close(engine->session);
    engine->session = NULL;
    return status;
}

static int recall(cli_engine *engine, const cli_arguments *arguments, const cli_ids *prose) {
    json_t *rows = json_array();
    int status = CLI_OK;
    for (int i = 0; status == CLI_OK && i < arguments->lengths.count; i++) {
        score s = {.length = arguments->lengths.value[i]};
        status = ask_length(engine, arguments, prose, &s);
        if (status != CLI_OK) break;
        const double accuracy = (double)s.right / (double)s.asked;
        json_array_append_new(rows, json_pack("{sI sI sI sf sI sf}", "length", (json_int_t)s.length, "questions",
                                              (json_int_t)s.asked, "right", (json_int_t)s.right, "accuracy", accuracy,
                                              "document_tokens", (json_int_t)s.tokens, "seconds", s.seconds));
        if (!arguments->json)
            printf("recall at %lld tokens: %.3f (%lld of %lld right, %.1f s)\n", (long long)s.length, accuracy,
                   (long long)s.right, (long long)s.asked, s.seconds);
    }
    if (status == CLI_OK && arguments->json)
        return cli_json_print(
            json_pack("{ss sI so}", "eval", "recall", "seed", (json_int_t)arguments->seed, "rows", rows));
    json_decref(rows);
    return status;
}

static int run(const cli_arguments *arguments) {
    if (strcmp(arguments->operands[0], "recall") != 0)
        return cli_usage(&cli_eval, "there is no test '%s', only recall", arguments->operands[0]);
    cli_engine engine;
    cli_ids prose = {0};
    int status = cli_engine_open(arguments, true, &engine);
    if (status == CLI_OK) status = read_prose(&engine, arguments->file, &prose);
    if (status == CLI_OK) status = recall(&engine, arguments, &prose);
    free(prose.id);
    cli_engine_close(&engine);
    return status;
}

const cli_verb cli_eval = {
    .name = "eval",
    .operands = "recall",
    .summary = "test what a model recalls from long documents",
    .details =
        "recall: facts such as 'The ticket number of Ada is 48213.' are planted at random places of documents of "
        "the given lengths, and a question is asked about each, ten to a document. An answer is right where the "
        "greedy text up to the end token is the planted value and nothing else. The questions follow from the "
        "seed and the length alone.",
    .groups = groups,
    .run = run,
    .fewest_operands = 1,
    .most_operands = 1};
