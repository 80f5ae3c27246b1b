/* Owns: facts in long documents: the recall form, and the passkey.
 *
 * recall: prose of a random place, cut between random tokens by facts, each on a line of its own, and a question about
 * each fact. It is drafted in tokens, as the documents were that the built-in model was trained with.
 * passkey: one number in sentences that are repeated. */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

/* ---- facts ---- */

#define COUNT(list) ((int64_t)(sizeof(list) / sizeof *(list)))

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

enum { LINE_BYTES = 96, QUESTION_TOKENS = 40 };

/* The line that stands in the document; what is asked and answered goes to the item. */
static void make_fact(eval_draft *draft, const char *name, char line[LINE_BYTES]) {
    const int64_t kind = eval_below(draft, 3);
    if (kind == 0) {
        const char *number = numbers[eval_below(draft, COUNT(numbers))];
        const long digits = (long)eval_below(draft, 3), least = digits == 0 ? 1000 : digits == 1 ? 10000 : 100000;
        const long value = least + (long)eval_below(draft, 9 * least);
        snprintf(line, LINE_BYTES, "\nThe %s number of %s is %ld.\n", number, name, value);
        eval_answer(draft, eval_ask(draft, "What is the %s number of %s?", number, name), "%ld", value);
    } else if (kind == 1) {
        const char *thing = things[eval_below(draft, COUNT(things))];
        const char *colour = colours[eval_below(draft, COUNT(colours))];
        snprintf(line, LINE_BYTES, "\n%s has a %s %s.\n", name, colour, thing);
        eval_answer(draft, eval_ask(draft, "What color is the %s of %s?", thing, name), "%s", colour);
    } else {
        const char *person = persons[eval_below(draft, COUNT(persons))];
        const char *other = name;
        while (other == name) other = names[eval_below(draft, COUNT(names))];
        snprintf(line, LINE_BYTES, "\nThe %s of %s is %s.\n", person, name, other);
        eval_answer(draft, eval_ask(draft, "Who is the %s of %s?", person, name), "%s", other);
    }
}

/* A line about one of the persons could contradict the facts. */
static bool names_a_person(const char *line, size_t bytes) {
    for (int64_t i = 0; i < COUNT(names); i++)
        if (memmem(line, bytes, names[i], strlen(names[i]))) return true;
    return false;
}

void eval_keep_prose(cli_buffer *text) {
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
    text->data[kept] = 0;
}

/* ---- recall ---- */

/* Prose between the lines, around to its front where it ends. */
static void fill(eval_draft *draft, const cli_ids *lines, int64_t left) {
    const cli_ids *prose = &draft->source->prose_ids;
    cli_ids *document = &draft->item->ids;
    int64_t places[EVAL_QUESTIONS];
    eval_pick(draft, left, places, EVAL_QUESTIONS);
    const int64_t start = eval_below(draft, prose->count);
    for (int64_t i = 0, next = 0; !draft->failed && i < left; i++) {
        for (; next < EVAL_QUESTIONS && places[next] == i; next++)
            for (int64_t k = 0; k < lines[next].count; k++) eval_push(draft, document, lines[next].id[k]);
        eval_push(draft, document, prose->id[(start + i) % prose->count]);
    }
}

void eval_make_recall(eval_draft *draft) {
    const cli_engine *engine = draft->source->engine;
    int64_t who[COUNT(names)];
    for (int64_t i = 0; i < COUNT(names); i++) who[i] = i;
    eval_shuffle(draft, who, COUNT(names));
    cli_ids lines[EVAL_QUESTIONS] = {{0}};
    int64_t left = draft->length - QUESTION_TOKENS;
    for (int i = 0; i < EVAL_QUESTIONS; i++) {
        char line[LINE_BYTES];
        make_fact(draft, names[who[i]], line);
        if (cli_tokenize_text(engine->context, engine->tokenizer, line, strlen(line), 0, &lines[i]) != CLI_OK)
            draft->failed = true;
        left -= lines[i].count;
    }
    if (left >= EVAL_QUESTIONS) fill(draft, lines, left);
    for (int i = 0; i < EVAL_QUESTIONS; i++) free(lines[i].id);
}

/* ---- passkey ---- */

void eval_make_passkey(eval_draft *draft) {
    const long key = 1 + (long)eval_below(draft, 50000);
    cli_buffer needle = {0};
    eval_put(draft, &draft->item->text,
             "There is an important piece of information hidden in a lot of text that does not matter. Find it and "
             "remember it: you will be asked about it.\n");
    eval_put(draft, &needle, "The pass key is %ld. Remember it. %ld is the pass key.\n", key, key);
    eval_hide(draft, &eval_noise, &needle, 1);
    cli_buffer_free(&needle);
    eval_question *question = eval_ask(draft, "\nWhat is the pass key?");
    eval_put(draft, &question->begin, "The pass key is");
    eval_answer(draft, question, "%ld", key);
}
